"""How did the verdict come about?  Each pair of the final validation, and each look at them.

Pure drawing, as in `figures`.
"""

from ablation.plan.looks import PAIRS, WELCH, Look
from ablation.report.comparisons import Block, contrast, final_block
from ablation.report.content import level
from ablation.report.drawing import (
    A_RUN,
    BETTER,
    BLACK,
    PALETTE,
    WORSE,
    NothingToDraw,
    Style,
    folded,
    height_of,
    is_narrow,
    legend_below,
    new_figure,
    numbered_ticks,
    signed,
    width,
    with_margin,
    with_unit,
)
from ablation.report.evidence import Evidence
from ablation.report.validation import planned, primary_interval
from ablation.runs.run import RunResult
from ablation.study.profiles import Design
from ablation.study.study import Metric

MARKERS = {WELCH: ("o", "Welch's"), PAIRS: ("D", "that of pairs")}  # by whose interval counts


def draw_verdict(evidence: Evidence):
    """Above, the difference of each pair; below, the improvement and its sequential interval, look
    by look. A plan that tests once has one interval, beside its pairs.

    A verdict falls where an interval lies on one side of zero: where the estimate is beyond the
    bound, which is the same. Early intervals are many times as wide as late ones, and as the pairs
    are apart, so there are two panels, and the lower one is cut at what the later half of the looks
    needs.
    """
    block = decided_pairs(evidence)
    looks, n = evidence.looks, len(block.groups[0].runs)
    shape = {"sharex": True, "height_ratios": (2, 3)} if looks else {}
    title = verdict_title(evidence, block)
    height = (4.2 if looks else 2.6) + height_of(title)
    figure, axes = new_figure(height, 2 if looks else 1, 1, **shape)
    above, below = axes[0, 0], axes[-1, 0]
    draw_regions(above, evidence.design)
    values = draw_pairs(above, evidence.metric, block)
    if looks:
        draw_regions(below, evidence.design)
        draw_looks(below, evidence)
        below.set_xlabel(f"pairs, in the order of their seeds (at most {looks[0].n_max})")
        below.set_ylabel(with_unit("improvement", evidence.metric))
    else:
        values += draw_one_test(above, evidence, block, n + 1)
        above.set_xlabel("pairs, in the order of their seeds, and their mean")
    above.set_ylim(*with_margin([-evidence.design.delta_eq, evidence.design.delta_eq, *values]))
    above.set_xlim(0.4, n + (0.6 if looks else 1.6))
    above.set_xticks(numbered_ticks(n, 10 if is_narrow() else 20))
    above.set_ylabel(with_unit("difference of a pair", evidence.metric))
    above.set_title(title)
    figure.align_ylabels()
    entries = dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    entries |= dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(entries.values()), list(entries))
    return figure


def decided_pairs(evidence: Evidence) -> Block:
    """The pairs that a verdict is of. Raises NothingToDraw where there is none."""
    if not evidence.standing.stages[-1].most_pairs:
        raise NothingToDraw("runs by hand have no final validation")
    if evidence.changed:
        raise NothingToDraw("no decision can be shown; see the top of the report")
    if evidence.is_sequential and not evidence.looks:
        raise NothingToDraw("stage 4 has had no look yet")
    block = final_block(evidence)
    if 4 not in evidence.decisions or block is None:
        raise NothingToDraw("stage 4 is not decided, or has no complete pair")
    return block


def draw_regions(ax, d: Design) -> None:
    if d.noise_known:
        about = f"no meaningful effect: within ±{d.delta_eq:g}"
        ax.axhspan(-d.delta_eq, d.delta_eq, color=BLACK, alpha=0.1, linewidth=0, label=about)
    ax.axhline(0, color=BLACK, linewidth=1)
    if not d.noise_known:
        return
    target = {"color": PALETTE[2], "linewidth": 1.2, "linestyle": "--"}
    ax.axhline(d.delta_target, label=f"target: {d.delta_target:g}", **target)


def pairs_of(block: Block) -> list[tuple[int, RunResult, RunResult]]:
    """(number from 1, baseline, arm) of each complete pair."""
    runs = zip(*(group.runs for group in block.groups), strict=True)
    return [(k, base, arm) for k, (base, arm) in enumerate(runs, 1)]


def draw_pairs(ax, metric: Metric, block: Block) -> list[float]:
    """A point for each pair, a cross where one of it diverged; returns the differences."""
    pairs = pairs_of(block)
    both = [(k, b.final_loss - a.final_loss) for k, b, a in pairs if b.status == a.status == "ok"]
    if both:
        difference = "baseline - arm" if metric.sign > 0 else "arm - baseline"
        size = 4.5 if len(both) <= 30 else 3
        points = zip(*both, strict=True)
        ax.plot(*points, label=f"one pair: {difference}", markersize=size, **A_RUN)
    lost = {  # a run that diverged is worse than any loss
        "the arm diverged": (0, WORSE, [k for k, _, a in pairs if a.status == "diverged"]),
        "the baseline diverged": (1, BETTER, [k for k, b, _ in pairs if b.status == "diverged"]),
    }
    for about, (height, colour, numbers) in lost.items():
        if numbers:
            cross = {"transform": ax.get_xaxis_transform(), "markersize": 6, "clip_on": False}
            at = [height] * len(numbers)
            ax.plot(numbers, at, "X", color=colour, label=about, zorder=5, **cross)
    return [difference for _, difference in both]


def draw_one_test(ax, evidence: Evidence, block: Block, at: int) -> list[float]:
    """The improvement with the interval of the only test, where it has one; returns their ends."""
    found = planned(evidence, block)
    interval, kind = primary_interval(evidence, found)
    if found.comparison is None:
        return []
    improvement = found.comparison.improvement
    if interval is None:
        ax.plot([at], [improvement], label="improvement, no interval", **A_RANKED)
        return [improvement]
    reach, about = interval[1] - improvement, f"improvement, with Welch's {kind} interval"
    bar = {"fmt": "o", "color": BETTER, "elinewidth": 1.2, "capsize": 3, "markersize": 4.5}
    ax.errorbar([at], [improvement], [reach], label=about, **bar)
    return [improvement, *interval]


A_RANKED: Style = {**A_RUN, "marker": "s", "markeredgecolor": BETTER}


def draw_looks(ax, evidence: Evidence) -> None:
    """Every look: the shorter interval, which counts, with its bounds on the improvement."""
    looks = [look for look in evidence.looks if look.low is not None]
    if looks:
        draw_intervals(ax, looks, evidence.design)
    every = [(look.n, look.improvement) for look in evidence.looks if look.improvement is not None]
    with_interval = {look.n for look in looks}
    if other := [point for point in every if point[0] not in with_interval]:
        about = "improvement of runs that finished; ranks decide"
        about = "improvement, no spread" if evidence.looks[-1].p is None else about
        ax.plot(*zip(*other, strict=True), label=about, **A_RANKED)
    if without := [look.n for look in evidence.looks if look.improvement is None]:
        cross = {"transform": ax.get_xaxis_transform(), "markersize": 6, "clip_on": False}
        about = "a look: no pair of which both finished; ranks decide"
        ax.plot(without, [0] * len(without), "x", color=BLACK, label=about, zorder=5, **cross)
    fell = next((look for look in evidence.looks if look.verdict), None)
    if fell and fell.improvement is not None:
        ring = {
            "markersize": 10,
            "markerfacecolor": "none",
            "markeredgewidth": 1.2,
            "clip_on": False,
        }
        about = "the look at which the verdict fell"
        ax.plot([fell.n], [fell.improvement], "o", color=BLACK, label=about, **ring)
    d, later = evidence.design, looks[len(looks) // 2 :]
    ends = (end for look in later for end in (look.low, look.high) if end is not None)
    shown = [0, *(y for _, y in every)]
    shown += [-d.delta_eq, d.delta_eq, d.delta_target] if d.noise_known else []
    ax.set_ylim(*with_margin([*shown, *ends]))


def draw_intervals(ax, looks: list[Look], d: Design) -> None:
    ns, middle = [look.n for look in looks], [look.improvement for look in looks]
    reach = [look.reach or 0.0 for look in looks]
    thin = min(1.0, 20 / len(looks))  # of 20 looks and fewer, each is told apart
    bound = {"color": WORSE, "linestyle": ":", "linewidth": 1.2, "marker": "_"}
    bound["markersize"] = 8 * thin
    ax.plot(ns, reach, label="bound: improves above, harmful below", **bound)
    ax.plot(ns, [-r for r in reach], **bound)
    bar = {"fmt": "none", "color": BETTER}
    wide = f"sequential {level(d.alpha)} interval"
    narrow = f"sequential {level(2 * d.alpha)} interval, for equivalence"
    eq_reach = [look.eq_reach for look in looks]
    ax.errorbar(ns, middle, eq_reach, alpha=0.35, elinewidth=5 * thin, label=narrow, **bar)
    ax.errorbar(ns, middle, reach, elinewidth=1.2 * thin, capsize=3 * thin, label=wide, **bar)
    for name, (marker, whose) in MARKERS.items():
        mine = [(look.n, look.improvement) for look in looks if look.decides.name == name]
        if mine:
            about = f"improvement; the interval is {whose}"
            size = {"markersize": max(2.0, 4.5 * thin), "label": about}
            ax.plot(*zip(*mine, strict=True), marker, color=BETTER, **size)


def verdict_title(evidence: Evidence, block: Block) -> str:
    decision = evidence.decisions[4]
    arm = decision.chosen.label if decision.chosen else "the arm"
    found = contrast(block, block.arms[0]).comparison
    improvement = evidence.looks[-1].improvement if evidence.looks else found and found.improvement
    estimate = "a whole arm diverged" if improvement is None else signed(improvement)
    words = (decision.title, f"{arm}: {estimate} at n = {len(pairs_of(block))} pairs")
    return "\n".join(folded(line, width() - 0.75) for line in words)
