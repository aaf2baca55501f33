"""Where do heads help, and what do they do to gradients?  The figures of the built-in study.

They are drawn where arms name layers to put heads at; pure drawing, as in `figures`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ablation.report.charting import (
    INK,
    Part,
    axis_title,
    band,
    hover,
    line,
    points,
    spread,
    text,
)
from ablation.report.charting import axis as chart_axis
from ablation.report.charting import layout as chart_layout
from ablation.report.comparisons import (
    ON_OTHER_SEEDS,
    ArmRuns,
    Block,
    WithinSeeds,
    blocks_of,
    depth,
    left_out,
    logged_norms,
    matched,
    mean_grad_norms,
    reference,
    within_seeds,
)
from ablation.report.content import DASH, Chart
from ablation.report.drawing import (
    A_RUN,
    BETTER,
    BLACK,
    WORSE,
    NothingToDraw,
    folded,
    height_of,
    improvement_entries,
    inches,
    is_narrow,
    legend_below,
    new_figure,
    note_points,
    numbered_ticks,
    width,
    with_unit,
)
from ablation.report.evidence import Compared, Evidence, GradNorms
from ablation.study.heads import settings_beside, tap_layers
from ablation.study.study import Metric

Norms = Mapping[int, GradNorms]  # by step

# ---------------------------------------------------------------------------------------------
# Improvements, by placement


def by_depth(group: ArmRuns) -> tuple[int, int]:
    layers = tap_layers(group.arm)
    return len(layers), sum(layers)


def placements(evidence: Evidence) -> tuple[Block, ArmRuns, list[ArmRuns]]:
    """The block that tells most about layers, what its arms are compared with, and its arms of one
    weight and schedule, by depth."""
    for stage in (2, 0, 1):  # full runs about layers, runs by hand, short runs
        for block in blocks_of(evidence):
            usable = [g for g in block.arms if tap_layers(g.arm) and (g.losses or g.diverged)]
            base = reference(evidence, block)
            if block.stage == stage and base and base.losses and usable:
                settings = Counter(settings_beside(g.arm) for g in usable)
                most = settings.most_common(1)[0][0]
                chosen = [g for g in usable if settings_beside(g.arm) == most]
                return block, base, sorted(chosen, key=by_depth)
    if not any(tap_layers(arm) for arm in evidence.study.arms) and not evidence.changed:
        raise NothingToDraw("for the built-in study")
    raise NothingToDraw(
        "needs an arm's outcome, and a finished baseline or a choice to compare it with, of one"
        " stage and length"
    )


def draw_layers(evidence: Evidence):
    """Improvement by placement, each run against the baseline's of its seed, over a map of which
    layers are tapped: one head, two, more. A stage without a baseline is shown beside the placement
    that it chose, which is the best by chance too: bars are mostly below zero."""
    block, base, groups = placements(evidence)
    slot = (width() - 0.75) / len(groups)  # inches
    if slot < NARROWEST:
        raise NothingToDraw(
            f"{len(groups)} placements are too many for a figure {width():g} in wide"
        )
    labels = [about_placement(base, group) for group in groups]
    title = "\n".join(
        folded(line, width() - 0.85) for line in about_placements(block, base, groups)
    )
    height = (3.1 if is_narrow() else 3.6) + height_of(title)
    figure, axes = new_figure(height, 2, 1, sharex=True, height_ratios=(3, 2))
    effect, taps = axes[:, 0]
    effect.axhline(0, color=BLACK, linewidth=1)
    base_sd = base.mean_sd()[1] if base is block.baseline else None
    if base_sd is not None:
        effect.axhspan(-base_sd, base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for k, group in enumerate(groups):
        colour = draw_placement(effect, k, base, group)
        layers = tap_layers(group.arm)
        taps.plot([k] * len(layers), layers, "-o", color=colour, markersize=min(5, 30 * slot))
    effect.use_sticky_edges = False  # room on both sides of zero
    effect.autoscale_view(scalex=False)
    effect.set_title(title)
    effect.set_ylabel(with_unit("improvement", evidence.metric))
    draw_taps(taps, labels, evidence.standing.experiment.profile.own_scale.n_layer)
    figure.align_ylabels()
    line = "baseline's mean" if base is block.baseline else base.label
    entries = improvement_entries(line, band=base_sd is not None)
    legend_below(figure, entries, [entry.get_label() for entry in entries])
    return figure


NARROWEST = 0.13  # inches for a placement: a line of 7 points, upright beside the next


def draw_placement(ax, k: int, base: ArmRuns, group: ArmRuns) -> str:
    """The bar and points of one placement; returns its colour."""
    found = within_seeds(base, group)
    improvements = found.improvements if found else []
    colour = BLACK if not found else BETTER if found.improvement > 0 else WORSE
    if found:
        ax.bar(k, found.improvement, width=0.6, color=colour, alpha=0.5)
    ax.plot([k] * len(improvements), improvements, **A_RUN)
    return colour


def about_placement(base: ArmRuns, group: ArmRuns) -> list[str]:
    """What stands below it: its layers, how many seeds are compared, what is left out."""
    words, found = [", ".join(map(str, tap_layers(group.arm)))], within_seeds(base, group)
    if base.arm.configuration == group.arm.configuration:
        words.append("others' zero")
    elif found:
        few = len(found.arm) < len(group.losses)
        words.append(f"n = {len(found.arm)}" + (f" of {len(group.losses)}" if few else ""))
    return [*words, *([f"✕ {group.lost}"] if group.lost else [])]


def draw_taps(ax, labels: Sequence[Sequence[str]], n_layer: int) -> None:
    """Axes of the map of layers; labels: of the placements."""
    slot = (width() - 0.85) / len(labels) - 0.06
    wide = max(inches(word, note_points()) for words in labels for word in words)
    between, turned = ("\n", 0) if wide < slot else ("; ", 90)
    ax.set_ylabel("tap layer")
    ax.set_ylim(0.3, n_layer - 0.3)
    ax.set_yticks(range(2, n_layer, 2 if n_layer <= 16 else -(-n_layer // 8)))
    ax.set_yticks(range(1, n_layer, 1 if n_layer <= 16 else n_layer), minor=True)
    ax.set_xticks(range(len(labels)), list(map(between.join, labels)), rotation=turned)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    words = "tap layers of the heads; n: seeds compared, of those that finished"
    ax.set_xlabel(folded(words, width() - 1.0))
    ax.grid(axis="y", which="both", alpha=0.3, linewidth=0.5)


def about_placements(block: Block, base: ArmRuns, groups: Sequence[ArmRuns]) -> Iterator[str]:
    """The title's lines: what is drawn, compared with what, on which seeds."""
    yield block.title
    yield settings_beside(groups[0].arm)
    if base is not block.baseline:
        yield f"no baseline: compared with {base.label}, the best of these"
    others = [g for g in groups if g.arm.configuration != base.arm.configuration]
    if len({frozenset(g.seeds & base.seeds) for g in others}) > 1:
        yield ON_OTHER_SEEDS


def tell_layers(evidence: Evidence) -> str:
    """The caption of the placements."""
    block, base, groups = placements(evidence)
    metric, own = evidence.metric, base is block.baseline
    parts = []
    for group in groups:
        found, label = within_seeds(base, group), about_placement(base, group)
        size = f" {found.improvement:+.4f}" if found else ""
        parts.append(f"layers {label[0]}{size} {' '.join(label[1:])}")
    line = "the baseline" if own else f"{base.label}, the best of these,"
    sd = own and base.mean_sd()[1] is not None
    band = f" The grey band is ± one sd of the baseline's {len(base.losses)} runs." if sd else ""
    unit = f" in {metric.unit}" if metric.unit else ""
    beside = "" if own else f" {not_of_no_heads(base)}"
    of = metric.difference if own else metric.difference.replace("baseline", base.label)
    return (
        f"Improvement of {metric.words} by the layers that heads tap; {block.title},"
        f" {settings_beside(groups[0].arm)}. Bars are means and circles single runs, each against"
        f" {line} on its seed, {of}{unit}; positive is good, and the map below shows the"
        f" layers.{beside}{band} n, the seeds compared: {'; '.join(parts)}. No interval is drawn,"
        " and nothing is tested."
    )


def not_of_no_heads(base: ArmRuns) -> str:
    """What bars do not say where no baseline ran."""
    return f"Worse is worse than {base.label}: of a model without heads these bars say nothing."


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
    if not evidence.study.trainer.is_ours:
        logged = "this trainer logs none in this project's form"
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

    title = folded(about_gradients(evidence, block, group), width() - 0.2)
    height = (3.2 if is_narrow() else 4.2) + height_of(title)
    shape = {"height_ratios": (5, 4), "sharex": "row", "sharey": "row"}
    figure, axes = new_figure(height, 2, len(moments), **shape)
    lines = (
        ("baseline", base, "total", BLACK, "-"),
        (f"{group.label}, its main loss alone", arm, "main", BETTER, "--"),
        (f"{group.label}, heads included", arm, "total", BETTER, "-"),
    )
    for ax, step in zip(axes[0], moments, strict=True):
        for label, norms, name, colour, dashes in lines:
            values = [v if v > 0 else math.nan for v in getattr(norms[step], name)]
            style = {"color": colour, "marker": "o", "markersize": 2.5}
            ax.plot(range(1, len(values) + 1), values, dashes, label=label, **style)
        for tap in tap_layers(group.arm):
            ax.axvline(tap, color=BLACK, linewidth=0.8, linestyle=":")
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xticks(numbered_ticks(len(values), 4 if is_narrow() else 8))
        ax.set_xlabel("block")
        ax.set_title(f"step {step}")
    axes[0, 0].set_ylabel("gradient norm")
    entries = axes[0, 0].get_legend_handles_labels()
    for ax in axes[1]:
        ax.remove()
    draw_ratios(figure, axes[1, 0].get_gridspec()[1, :], base, group, arm, steps)
    legend_below(figure, *entries, handlelength=3)
    points = figure.axes[0].title.get_fontsize()
    figure.suptitle(title, x=0.01, ha="left", fontsize=points)
    return figure


def about_gradients(evidence: Evidence, block: Block, group: ArmRuns) -> str:
    """The title: of which runs the norms are means."""
    sides = matched(block, group)
    assert sides is not None  # they have norms
    base, arm = (len(logged_norms(evidence, side)) for side in sides)
    return f"{block.title}: {group.arm.label}; n = {arm} and {base} baseline; dotted: taps"


def tell_gradients(evidence: Evidence) -> str:
    """The caption of the gradients."""
    block, base, group, arm = gradient_pair(evidence)
    steps = sorted(base.keys() & arm.keys())
    return (
        f"Gradient norms of each block of the model: {about_gradients(evidence, block, group)}."
        " Above, by depth at up to three steps, of the total loss (solid) and of the arm's main"
        " loss alone (dashed), on a logarithmic axis. Below, the arm's total norm over the"
        f" baseline's at each of {len(steps)} logged steps; white is equal. Lines are means over"
        " the runs that logged norms, on the seeds that both have; no interval is drawn."
    )


def draw_ratios(
    figure, place, base: Norms, group: ArmRuns, arm: Norms, steps: Sequence[int]
) -> None:
    """Arm over baseline, by block and step; white is equal, and twice is as far as half."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

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
    for tap in tap_layers(group.arm):
        ax.axhline(tap, color=BLACK, linewidth=0.8, linestyle=":")
    ax.set_xlabel("steps")
    ax.set_ylabel("block")
    ax.set_yticks(numbered_ticks(len(ratios), 6))
    bar = figure.colorbar(image, ax=ax, pad=0.01)
    bar.set_label("arm / baseline")
    bar.outline.set_linewidth(0.6)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{2**value:.2f}")


# ---------------------------------------------------------------------------------------------
# Improvements, by placement, as a chart of the page


def layers(evidence: Compared) -> Chart:
    """What `draw_layers` shows: above, each placement's improvement and that of each of its seeds;
    below, which layers it taps. Raises NothingToDraw for any other study, and for logs."""
    if not isinstance(evidence, Evidence):
        raise NothingToDraw("for the built-in study")
    block, base, groups = placements(evidence)
    found = {k: within for k, g in enumerate(groups) if (within := within_seeds(base, g))}
    across = (-0.6, len(groups) - 0.4)
    data = [*placement_bars(evidence.metric, groups, found), line(across, (0, 0), INK)]
    taps = [
        (k, layer) for k, g in enumerate(groups) for layer in (*tap_layers(g.arm), None)
    ]  # a gap after each
    x, y = [None if layer is None else k for k, layer in taps], [layer for _, layer in taps]
    marker = {"mode": "lines+markers", "marker": {"size": 10, "color": INK}, "yaxis": "y2"}
    data.append(line(x, y, INK, "its heads", **marker))
    base_sd = base.mean_sd()[1] if base is block.baseline else None
    about = "baseline ± sd of its runs"
    shapes = [] if base_sd is None else [band(-base_sd, base_sd, about)]
    n_layer = evidence.standing.experiment.profile.own_scale.n_layer
    ends = [0.0, *(v for each in found.values() for v in (each.improvement, *each.improvements))]
    whole = chart_layout(
        480,
        xaxis=chart_axis(
            "tap layers; n: seeds compared", range=[*across], **placement_ticks(base, groups, found)
        ),
        yaxis=chart_axis(
            axis_title("improvement", evidence.metric),
            **{"domain": [0.42, 1], "range": spread(ends), "tickformat": "+.4~f"},
        ),
        yaxis2=chart_axis("tap layer", domain=[0, 0.36], range=[0.3, n_layer - 0.3], nticks=7),
        shapes=shapes,
    )
    told = "; ".join(about_placements(block, base, groups))
    words = f"Circles: one seed each; bars: their mean, above zero is better. {told}."
    if base is not block.baseline:
        words += f" {not_of_no_heads(base)}"
    return Chart("layers", "Where heads help", words, tuple(data), whole)


def placement_ticks(
    base: ArmRuns, groups: Sequence[ArmRuns], found: Mapping[int, WithinSeeds]
) -> Part:
    """The words below each placement, and the ends of their axis."""
    words = []
    for k, group in enumerate(groups):
        is_base = base.arm.configuration == group.arm.configuration
        n = "the zero" if is_base else "✕" if group.diverged else DASH
        n = f"n = {len(found[k].arm)}" if k in found else n
        words.append(f"{', '.join(map(str, tap_layers(group.arm)))}<br>{n}")
    at = list(range(len(groups)))
    ticks = {"tickmode": "array", "tickvals": at, "ticktext": words, "tickangle": 0}
    return {**ticks, "showgrid": False, "anchor": "y2"}


def placement_bars(
    metric: Metric, groups: Sequence[ArmRuns], found: Mapping[int, WithinSeeds]
) -> Iterator[Part]:
    """Bars of means, pale, so that the circles of seeds on them stand out."""
    for about, colour in (("better", BETTER), ("worse", WORSE)):
        mine = {k: f for k, f in found.items() if (f.improvement > 0) == (about == "better")}
        if mine:
            yield {
                "type": "bar",
                "name": f"mean: {about}",
                "x": list(mine),
                "y": [within.improvement for within in mine.values()],
                "width": 0.6,
                "marker": {"color": colour},
                "opacity": 0.55,
                "hovertext": [placement_words(metric, groups[k], f) for k, f in mine.items()],
                "hoverinfo": "text",
            }
    marker = {"symbol": "circle-open", "size": 8, "color": INK, "line": {"width": 1.5}}
    runs = [(k, v) for k, within in found.items() for v in within.improvements]
    told = [f"{text(groups[k].label, 60)}: {text(metric.delta(v))}" for k, v in runs]
    yield points([k for k, _ in runs], [v for _, v in runs], told, "one seed", marker)


def placement_words(metric: Metric, group: ArmRuns, within: WithinSeeds) -> str:
    n = len(within.arm)
    delta, others = text(metric.delta(within.improvement)), text(left_out(group, n))
    return hover(text(group.label), f"improvement {delta}, n = {n}", others)
