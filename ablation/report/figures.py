"""What do the figures show?  From the values of an experiment to matplotlib figures.

Pure drawing: nothing is read, decided or written here.
"""

import io
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ablation import stats
from ablation.report.comparisons import (
    ArmRuns,
    Block,
    blocks_of,
    contrast,
    depth,
    matched,
    mean_grad_norms,
    paired_losses,
)
from ablation.report.drawing import (
    A_MEAN,
    A_RUN,
    BETTER,
    BLACK,
    DASHES,
    LOSS,
    PALETTE,
    WORSE,
    NothingToDraw,
    new_figure,
    plain,
    plain_matplotlib,
    signed,
    with_margin,
)
from ablation.report.evidence import Evidence, GradNorms
from ablation.runs.untrusted import printable
from ablation.study.profiles import Design

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Norms = Mapping[int, GradNorms]  # by step

# ---------------------------------------------------------------------------------------------
# A figure as a file

MOST = 100  # configurations in all figures together: chosen, as no plan has as many


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG, or why there is none."""

    png: bytes = b""
    why: str = ""  # it was not drawn
    failed: bool = False  # it could have been, but for a package that is missing or a bug of ours


def picture(draw: Callable[[Evidence], "Figure"], evidence: Evidence) -> Picture:
    """A figure drawn, or why it is not. Never raises: the report's text is worth more."""
    try:
        if (n := sum(len(block.groups) for block in blocks_of(evidence))) > MOST:
            raise NothingToDraw(f"{n} configurations are too many to be told apart")
        with plain_matplotlib():
            image = io.BytesIO()
            draw(evidence).savefig(image, format="png")
        return Picture(image.getvalue())
    except NothingToDraw as why:
        return Picture(why=str(why))
    except Exception as error:
        remedy = "; pip install -r requirements.txt" if isinstance(error, ImportError) else ""
        said = printable(f"{type(error).__name__}: {error}{remedy}")
        return Picture(why=f"{said} ({place(error)})", failed=True)


def place(error: Exception) -> str:
    """The innermost line of this file that an exception came through, in words."""
    mine = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == __file__]
    return f"{Path(__file__).name}, line {mine[-1].lineno}"


# ---------------------------------------------------------------------------------------------
# Improvements: by stage, and by placement of the heads


def legend_entries(*more) -> list:
    """The legend of both figures of improvements; bars pale, so that the runs on them stand out."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], label="one run", **A_RUN),
        Line2D([], [], color=BLACK, label="baseline's mean"),
        Patch(color=BLACK, alpha=0.12, label="baseline ± sd of its runs (n > 1)"),
        Patch(color=BETTER, alpha=0.5, label="arm, same seeds: better"),
        Patch(color=WORSE, alpha=0.5, label="arm, same seeds: worse"),
        *more,
    ]


def draw_comparison(evidence: Evidence):
    """Final val loss, a panel for each stage and length: bars, runs as points, baseline as a line.

    A bar from zero would hide every effect (0.02 of 3.28), and a cut one would exaggerate it. So
    bars start at the baseline's mean on the same seeds: their length is the improvement, which has
    a true zero, while the axis still reads as val loss. Without a baseline of their seeds there
    are only points and their mean.
    """
    blocks = [b for b in blocks_of(evidence) if any(g.losses for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no run has finished")
    heights = [0.4 * len(b.groups) + 0.4 for b in blocks]
    figure, axes = new_figure(
        (9, sum(heights) + 0.75 * len(blocks) + 1.2), len(blocks), 1, height_ratios=heights
    )
    for ax, block in zip(axes[:, 0], blocks, strict=True):
        draw_block(ax, block)
        about = f"\nbest: {plain(block.arms[0].arm.label)}" if len(block.arms) == 1 else ""
        ax.set_title(block.title + about)
    axes[-1, 0].set_xlabel(f"final {LOSS}; left is better")
    from matplotlib.lines import Line2D

    lone = Line2D([], [], label="mean, no baseline of its seeds", **A_MEAN)
    more = (lone,) if any(alone(b, g) for b in blocks for g in b.arms) else ()
    figure.legend(handles=legend_entries(*more), loc="outside lower center", ncols=3)
    return figure


def draw_block(ax, block: Block) -> None:
    base, base_sd = block.baseline.mean_sd() if block.baseline else (None, None)
    if base is not None:
        ax.axvline(base, color=BLACK, linewidth=1.5)
    if base is not None and base_sd is not None:
        ax.axvspan(base - base_sd, base + base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for y, group in enumerate(block.groups):
        c, words = contrast(block, group).comparison, [f"n = {len(group.losses)}"]
        if c:
            colour = BETTER if c.improvement > 0 else WORSE
            reach = {"left": c.mean_baseline, "height": 0.6}
            ax.barh(y, -c.improvement, color=colour, alpha=0.5, **reach)
            shared = f", {c.n_arm} seed(s) shared" if c.n_arm < len(group.losses) else ""
            words = [signed(c.improvement), words[0] + shared]
        elif alone(block, group):
            ax.plot([group.mean_sd()[0]], [y], **A_MEAN)
        if group.losses:
            apart = 0.15 if len(group.losses) > 2 else 0  # so that equal losses stay countable
            rows = [y + apart * (k % 3 - 1) for k in range(len(group.losses))]
            ax.plot(group.losses, rows, markersize=6, **A_RUN)
        if group.lost:
            words.append(f"✕ {group.lost}")
        ax.text(1.02, y, "  ".join(words), transform=ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(block.groups)), [g.label for g in block.groups])
    ax.set_ylim(len(block.groups) - 0.4, -0.6)
    ax.use_sticky_edges = False  # room beyond the baseline, where bars begin
    ax.margins(x=0.06)
    ax.autoscale_view(scaley=False)
    ax.locator_params(axis="x", nbins=5)
    ax.ticklabel_format(axis="x", useOffset=False)


def alone(block: Block, group: ArmRuns) -> bool:
    """An arm with finished runs, and none of the baseline to hold them against."""
    return bool(group.arm.layers and group.losses) and not contrast(block, group).comparison


def placements(blocks: Sequence[Block]) -> tuple[Block, ArmRuns, list[ArmRuns]]:
    """The block that tells most about layers, its baseline, and its arms of one weight and
    schedule, by depth."""
    for stage in (2, 0, 1):  # full runs about layers, runs by hand, short runs
        for block in blocks:
            usable = [g for g in block.arms if g.losses or g.diverged]
            base = block.baseline
            if block.stage == stage and base and base.losses and usable:
                settings = Counter((g.arm.weight, g.arm.schedule) for g in usable)
                most = settings.most_common(1)[0][0]
                chosen = [g for g in usable if (g.arm.weight, g.arm.schedule) == most]
                taps = sorted(chosen, key=lambda g: (len(g.arm.layers), sum(g.arm.layers)))
                return block, base, taps
    raise NothingToDraw("needs a finished baseline and an arm's outcome, of one stage and length")


def draw_layers(evidence: Evidence):
    """Improvement by placement, each run against the baseline's of its seed, over a map of which
    layers are tapped: one head, two, more."""
    block, base, groups = placements(blocks_of(evidence))
    base_sd = base.mean_sd()[1]
    n_layer = evidence.standing.experiment.profile.n_layer
    figure, axes = new_figure(
        (max(7, 3 + 0.8 * len(groups)), 7), 2, 1, sharex=True, height_ratios=(3, 2)
    )
    effect, taps = axes[:, 0]
    effect.axhline(0, color=BLACK, linewidth=1.5)
    if base_sd is not None:
        effect.axhspan(-base_sd, base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for k, group in enumerate(groups):
        c = contrast(block, group).comparison
        colour = BLACK if c is None else BETTER if c.improvement > 0 else WORSE
        if c:
            effect.bar(k, c.improvement, width=0.6, color=colour, alpha=0.5)
        if words := left_out(group, c.n_arm if c else 0):
            where = (k + 0.4 if c else k, 0.1)  # beside the bar, if there is one
            at = {"transform": effect.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            effect.text(*where, words, rotation=90, fontsize=11, **at)
        improvements = [b - a for b, a in zip(*paired_losses(base, group), strict=True)]
        effect.plot([k] * len(improvements), improvements, **A_RUN)
        taps.plot([k] * len(group.arm.layers), group.arm.layers, "-o", color=colour, markersize=10)
    effect.use_sticky_edges = False  # room on both sides of zero
    effect.autoscale_view(scalex=False)
    arm = groups[0].arm
    effect.set_title(f"{block.title}\nweight {arm.weight:g}, {plain(arm.schedule)}")
    effect.set_ylabel("improvement\n(nats/token)")
    taps.set_ylabel("tap layer")
    taps.set_ylim(0.3, n_layer - 0.3)
    taps.set_yticks(range(2, n_layer, 2))
    taps.set_yticks(range(1, n_layer, 2), minor=True)
    taps.set_xticks(range(len(groups)), [", ".join(map(str, g.arm.layers)) for g in groups])
    taps.set_xlim(-0.6, len(groups) - 0.4)
    taps.set_xlabel("tap layers of the heads")
    taps.grid(axis="y", which="both", alpha=0.3)
    figure.align_ylabels()
    figure.legend(handles=legend_entries(), loc="outside lower center", ncols=2)
    return figure


def left_out(group: ArmRuns, compared: int) -> str:
    """The runs of an arm that its improvement is not of, in words; empty when there are none."""
    lost, other = group.lost, len(group.losses) - compared
    words = (f"✕ {lost}" if lost else "", f"{other} of other seeds" if other else "")
    return ", ".join(filter(None, words))


# ---------------------------------------------------------------------------------------------
# Curves

STEP, MEAN, LOW, HIGH, TIME = range(5)  # columns of a mean curve


def mean_curve(group: ArmRuns) -> list[tuple[int, float, float, float, float]]:
    """The mean over runs at each step that all have: step; mean, lowest and highest val loss; mean
    training time in s."""
    curves = [{step: (loss, t / 1000) for step, loss, t in r.curve} for r in group.ok]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    rows = []
    for step in steps:
        losses, times = zip(*(curve[step] for curve in curves), strict=True)
        mean, time_s = stats.mean_sd(losses)[0], stats.mean_sd(times)[0]
        rows.append((step, mean, min(losses), max(losses), time_s))
    return rows


def draw_curves(evidence: Evidence):
    """Val loss over steps and over training time, of the longest runs, a row for each stage.

    A run begins by falling through several nats, and the effects are hundredths: the axis leaves
    out the beginning, and an inset magnifies the end, where bands can be seen.
    """
    blocks = [b for b in blocks_of(evidence) if any(mean_curve(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    longest = max(b.num_iterations for b in blocks)
    blocks = [b for b in blocks if b.num_iterations == longest]
    figure, axes = new_figure((12, 0.8 + 4.2 * len(blocks)), len(blocks), 2, sharey="row")
    styles = curve_styles(blocks)
    for panels, block in zip(axes, blocks, strict=True):
        for ax, column in zip(panels, (STEP, TIME), strict=True):
            draw_panel(ax, block, styles, column)
        panels[0].set_title(block.title)
        panels[0].set_ylabel(LOSS)
        panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    axes[-1, 0].set_xlabel("steps")
    axes[-1, 1].set_xlabel("training time (s)")
    about = "Means over finished runs; bands: lowest to highest; ✕: where a run diverged."
    figure.supxlabel(f"{about} Early losses lie above the axis.", fontsize=12)
    return figure


def curve_styles(blocks: Sequence[Block]) -> dict[tuple, tuple[str, str]]:
    """Colour and line of each configuration, the same in all panels; the baseline is black."""
    keys = dict.fromkeys(g.key for b in blocks for g in b.arms)
    styles = [(colour, dashes) for dashes in DASHES for colour in PALETTE]
    of_arms = {key: styles[k % len(styles)] for k, key in enumerate(keys)}
    return {((), False): (BLACK, "-"), **of_arms}


def draw_panel(ax, block: Block, styles: Mapping[tuple, tuple[str, str]], column: int) -> None:
    """Curves and their inset; the axis is as high as keeps their right half below the inset."""
    inset = ax.inset_axes((0.5, 0.54, 0.5, 0.46))
    for group in block.groups:
        for axes in (ax, inset):
            draw_curve(axes, group, *styles[group.key], column)
    curves = [rows for group in block.groups if (rows := mean_curve(group))]
    for axes, share, height in ((ax, 0.4, 0.45), (inset, 0.85, 1.0)):
        shown = [row for rows in curves for row in rows_from(rows, share * block.num_iterations)]
        low, high = with_margin([loss for row in shown for loss in row[LOW:TIME]])
        axes.set_ylim(low, low + (high - low) / height)
    inset.set_xlim(*with_margin([row[column] for row in shown]))
    inset.tick_params(labelsize=11)
    inset.locator_params(nbins=4)
    ax.set_xlim(left=0)


def rows_from(rows: list[tuple], step: float) -> list[tuple]:
    """The end of a curve, from its last point before a step on; two points at least."""
    before = sum(row[STEP] <= step for row in rows)
    return rows[max(0, min(before - 1, len(rows) - 2)) :]


def draw_curve(ax, group: ArmRuns, colour: str, dashes: str, column: int) -> None:
    lost = f"\n✕ {group.lost}" if group.lost else ""
    label: str | None = f"{group.label} (n = {len(group.ok)}){lost}"  # of the first line drawn
    if rows := mean_curve(group):
        columns = list(zip(*rows, strict=True))
        at = columns[column]
        front = 2 if group.arm.layers else 3  # the baseline lies on top
        ax.plot(at, columns[MEAN], dashes, color=colour, linewidth=2, label=label, zorder=front)
        if len(group.ok) > 1:
            ax.fill_between(at, columns[LOW], columns[HIGH], color=colour, alpha=0.2, linewidth=0)
        label = None
    for r in group.runs:
        if r.status == "diverged" and r.curve:
            steps, losses, times = zip(*r.curve, strict=True)
            at = steps if column == STEP else tuple(t / 1000 for t in times)
            ax.plot(at, losses, ":", color=colour, linewidth=1.5, label=label)
            ax.plot(at[-1:], losses[-1:], "X", color=colour, markersize=9)
            label = None


# ---------------------------------------------------------------------------------------------
# The verdict


def draw_verdict(evidence: Evidence):
    """The improvement and its sequential intervals, look by look.

    A verdict falls where an interval lies on one side of zero: where the estimate is beyond the
    bound, which is the same. Early intervals are many times as wide as late ones, so the axis is
    cut at what the later half of the looks needs.
    """
    if not evidence.is_sequential:
        raise NothingToDraw("only the adaptive plan looks more than once")
    if evidence.changed:
        raise NothingToDraw("no decision can be shown; see the top of the report")
    if not evidence.looks:
        raise NothingToDraw("stage 4 has had no look yet")
    figure, ((ax,),) = new_figure((9, 5.5), 1, 1)
    draw_regions(ax, evidence.design)
    draw_looks(ax, evidence)
    ax.set_xlabel(f"complete pairs (at most {evidence.looks[0].n_max})")
    ax.set_ylabel("improvement (nats/token)")
    ax.set_title(verdict_title(evidence))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_regions(ax, d: Design) -> None:
    about = f"no meaningful effect: within ±{d.delta_eq:g}"
    ax.axhspan(-d.delta_eq, d.delta_eq, color=BLACK, alpha=0.1, linewidth=0, label=about)
    ax.axhline(0, color=BLACK, linewidth=1.5)
    target = {"color": PALETTE[2], "linewidth": 2, "linestyle": "--"}
    ax.axhline(d.delta_target, label=f"target: {d.delta_target:g}", **target)


def draw_looks(ax, evidence: Evidence) -> None:
    from matplotlib.ticker import MaxNLocator

    looks = [look for look in evidence.looks if look.low is not None]
    ns, middle = [look.n for look in looks], [look.improvement for look in looks]
    reach = [r for look in looks if (r := look.reach) is not None]
    eq_reach = [look.eq_reach for look in looks]
    if looks:
        bound = {"color": WORSE, "linestyle": ":", "linewidth": 2, "marker": "_", "markersize": 14}
        ax.plot(ns, reach, label="bound: improves above, harmful below", **bound)
        ax.plot(ns, [-r for r in reach], **bound)
        bar, about = {"fmt": "none", "color": BETTER}, "sequential {:.0%} interval{}"
        wide = about.format(1 - evidence.design.alpha, "")
        narrow = about.format(1 - 2 * evidence.design.alpha, ", for equivalence")
        ax.errorbar(ns, middle, eq_reach, alpha=0.35, elinewidth=9, label=narrow, **bar)
        ax.errorbar(ns, middle, reach, elinewidth=2, capsize=5, label=wide, **bar)
        ax.plot(ns, middle, "o", color=BETTER, markersize=8, label="improvement")
    every = [(look.n, look.improvement) for look in evidence.looks if look.improvement is not None]
    if other := [point for point in every if point[0] not in ns]:
        about = "improvement of runs that finished; ranks decide"
        about = "improvement, no spread" if evidence.looks[-1].p is None else about
        ax.plot(*zip(*other, strict=True), markersize=8, label=about, **A_RUN)
    d, later = evidence.design, looks[len(looks) // 2 :]
    ends = (end for look in later for end in (look.low, look.high) if end is not None)
    shown = [0, -d.delta_eq, d.delta_eq, d.delta_target, *(y for _, y in every)]
    ax.set_ylim(*with_margin([*shown, *ends]))
    ax.set_xlim(evidence.looks[0].n - 0.6, evidence.looks[-1].n + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def verdict_title(evidence: Evidence) -> str:
    look, decision = evidence.looks[-1], evidence.decisions[4]
    arm = plain(decision.chosen.label) if decision.chosen else "the arm"
    estimate = "a whole arm diverged" if look.improvement is None else signed(look.improvement)
    return f"{decision.title}\n{arm}: {estimate} at n = {look.n} pairs"


# ---------------------------------------------------------------------------------------------
# Gradients


def gradient_pair(evidence: Evidence):
    """The block that tells most about gradients: (block, baseline's norms, arm, its norms)."""
    for stage in (4, 2, 0, 3, 1):
        for block in blocks_of(evidence):
            for group in block.arms if block.stage == stage else ():
                sides = matched(block, group) or ()
                base, norms = [mean_grad_norms(evidence, side) for side in sides] or [{}, {}]
                if base.keys() & norms.keys() and depth(base) == depth(norms):
                    return block, base, group, norms
    logged = "runs logged none (--log_grad_norms)"
    alone = "no baseline and arm of one stage, length and seed logged them at the same steps"
    raise NothingToDraw(f"needs gradient norms: {alone if evidence.grad_norms else logged}")


def draw_gradients(evidence: Evidence):
    """Gradient norm of each block: by depth at three moments, and arm over baseline throughout.

    The hypothesis claims a mechanism: heads bring gradient to the blocks below their taps. The main
    loss alone shows what is left of that once the weights have moved.
    """
    block, base, group, arm = gradient_pair(evidence)
    steps = sorted(base.keys() & arm.keys())
    chosen = (steps[min(1, len(steps) - 1)], steps[len(steps) // 2], steps[-1])
    moments = list(dict.fromkeys(chosen))
    from matplotlib.ticker import LogLocator

    shape = {"height_ratios": (5, 4), "sharex": "row", "sharey": "row"}
    figure, axes = new_figure((12, 8.5), 2, len(moments), **shape)
    lines = (
        ("baseline", base, "total", BLACK, "-"),
        (f"{group.label}, its main loss alone", arm, "main", BETTER, "--"),
        (f"{group.label}, heads included", arm, "total", BETTER, "-"),
    )
    for ax, step in zip(axes[0], moments, strict=True):
        for label, norms, name, colour, dashes in lines:
            values = [v if v > 0 else math.nan for v in getattr(norms[step], name)]
            style = {"color": colour, "marker": "o", "markersize": 5, "linewidth": 2}
            ax.plot(range(1, len(values) + 1), values, dashes, label=label, **style)
        for tap in group.arm.layers:
            ax.axvline(tap, color=BLACK, linewidth=1, linestyle=":")
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xticks(range(2, len(values) + 1, 2))
        ax.set_xlabel("block")
        ax.set_title(f"step {step}")
    axes[0, 0].set_ylabel("gradient norm")
    entries = axes[0, 0].get_legend_handles_labels()
    for ax in axes[1]:
        ax.remove()
    draw_ratios(figure, axes[1, 0].get_gridspec()[1, :], base, group, arm, steps)
    figure.legend(*entries, loc="outside lower center", ncols=3)
    title = f"{block.title}: {plain(group.arm.label)}; dotted: taps"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def draw_ratios(
    figure, place, base: Norms, group: ArmRuns, arm: Norms, steps: Sequence[int]
) -> None:
    """Arm over baseline, by block and step; white is equal, and twice is as far as half."""
    import numpy as np

    norms = np.array([[side[step].total for step in steps] for side in (arm, base)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log2(norms[0] / norms[1]).T
    ratios[~np.isfinite(ratios)] = np.nan  # stays white
    most = max(0.1, np.nanpercentile(np.abs(ratios), 98)) if np.isfinite(ratios).any() else 1.0
    ends = (steps[0] - 0.5, steps[-1] + 0.5)
    edges = [ends[0], *((a + b) / 2 for a, b in pairwise(steps)), ends[1]]
    ax = figure.add_subplot(place)
    rows = np.arange(len(ratios) + 1) + 0.5
    image = ax.pcolormesh(edges, rows, ratios, cmap="PuOr", vmin=-most, vmax=most)
    for tap in group.arm.layers:
        ax.axhline(tap, color=BLACK, linewidth=1, linestyle=":")
    ax.set_xlabel("steps")
    ax.set_ylabel("block")
    ax.set_yticks(range(2, len(ratios) + 1, 2))
    bar = figure.colorbar(image, ax=ax, pad=0.01)
    bar.set_label("arm, heads included / baseline", fontsize=11)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{2**value:.2f}")


FIGURES = {
    "val_loss_comparison.png": draw_comparison,
    "layer_ablation.png": draw_layers,
    "training_curves.png": draw_curves,
    "verdict.png": draw_verdict,
    "gradient_flow.png": draw_gradients,
}
