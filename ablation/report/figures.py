"""What do the figures show?  From the values of an experiment to matplotlib figures.

Pure drawing: nothing is read, decided or written here.
"""

import io
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ablation import stats
from ablation.report.comparisons import (
    ArmRuns,
    Block,
    blocks_of,
    depth,
    matched,
    mean_grad_norms,
    reference,
    within_seeds,
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
from ablation.report.verdict import draw_verdict
from ablation.runs.untrusted import printable

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
    """The innermost line of this room that an exception came through, in words."""
    room, lines = Path(__file__).parent, traceback.extract_tb(error.__traceback__)
    mine = [line for line in lines if Path(line.filename).parent == room]
    return f"{Path(mine[-1].filename).name}, line {mine[-1].lineno}"


# ---------------------------------------------------------------------------------------------
# Improvements: by stage, and by placement of the heads


def legend_entries(line: str, *more, band: bool) -> list:
    """The legend of both figures of improvements; bars pale, so that the runs on them stand out.
    line: what arms are compared with; band: whether an sd of it is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sd = Patch(color=BLACK, alpha=0.12, label="baseline ± sd of its runs (n > 1)")
    return [
        Line2D([], [], label="one run", **A_RUN),
        Line2D([], [], color=BLACK, label=line),
        *([sd] if band else []),
        Patch(color=BETTER, alpha=0.5, label="arm, same seeds: better"),
        Patch(color=WORSE, alpha=0.5, label="arm, same seeds: worse"),
        *more,
    ]


def draw_comparison(evidence: Evidence):
    """Final val loss, a panel for each stage and length: bars, runs as points, baseline as a line.

    A bar from zero would hide every effect (0.02 of 3.28), and a cut one would exaggerate it. So
    bars start at the baseline's mean on the same seeds: their length is the improvement, which has
    a true zero, while the axis still reads as val loss. In a stage without a baseline they start at
    the configuration chosen before; without a run of their seeds there are only points and their
    mean.
    """
    blocks = [b for b in blocks_of(evidence) if any(g.losses for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no run has finished")
    heights = [0.4 * len(b.groups) + 0.4 for b in blocks]
    figure, axes = new_figure(
        (9, sum(heights) + 0.75 * len(blocks) + 1.2), len(blocks), 1, height_ratios=heights
    )
    bases = [reference(evidence, block) for block in blocks]
    for ax, block, base in zip(axes[:, 0], blocks, bases, strict=True):
        draw_block(ax, block, base)
        ax.set_title("\n".join([block.title, *about_block(block, base)]))
    axes[-1, 0].set_xlabel(f"final {LOSS}; left is better")
    from matplotlib.lines import Line2D

    lone = Line2D([], [], label="mean, nothing of its seeds to compare with", **A_MEAN)
    lonely = any(alone(x, g) for b, x in zip(blocks, bases, strict=True) for g in b.arms)
    other = any(base and not b.baseline for b, base in zip(blocks, bases, strict=True))
    line = "baseline's mean" + (", or of what the title names" if other else "")
    entries = legend_entries(line, *([lone] if lonely else []), band=True)
    figure.legend(handles=entries, loc="outside lower center", ncols=2 if other else 3)
    return figure


def about_block(block: Block, base: ArmRuns | None) -> Iterator[str]:
    """Which arm it is, where there is one; what arms are compared with, where it is no baseline."""
    if len(block.arms) == 1:
        yield f"best: {plain(block.arms[0].arm.label)}"
    if base and base is not block.baseline:
        stages = {r.run.stage for r in base.runs} - {block.stage}
        of = f" of stage {min(stages)}" if stages else ""
        yield f"no baseline: compared with {plain(base.label)}{of}"


ON_OTHER_SEEDS = "n differs: these means do not rest on the same seeds"


def draw_block(ax, block: Block, base: ArmRuns | None) -> None:
    """base: what its arms are compared with, on the seeds that both finished."""
    mean, sd = block.baseline.mean_sd() if block.baseline else (None, None)
    if mean is not None:
        ax.axvline(mean, color=BLACK, linewidth=1.5)
    if mean is not None and sd is not None:
        ax.axvspan(mean - sd, mean + sd, color=BLACK, alpha=0.12, linewidth=0)
    for y, group in enumerate(block.groups):
        found, words = within_seeds(base, group), [f"n = {len(group.losses)}"]
        if found:
            colour = BETTER if found.improvement > 0 else WORSE
            start = stats.mean_sd(found.base)[0]
            reach = {"left": start, "height": 0.6}
            ax.barh(y, -found.improvement, color=colour, alpha=0.5, **reach)
            if mean is None:  # its own line: arms that differ in their seeds have no common one
                ax.plot([start, start], [y - 0.38, y + 0.38], color=BLACK, linewidth=1.5)
            few = len(found.arm) < len(group.losses)
            shared = f", {len(found.arm)} seed(s) shared" if few else ""
            words = [signed(found.improvement), words[0] + shared]
        elif alone(base, group):
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


def alone(base: ArmRuns | None, group: ArmRuns) -> bool:
    """An arm with finished runs, and none of another configuration to hold them against."""
    is_base = base is not None and base.arm.configuration == group.arm.configuration
    return bool(group.arm.layers and group.losses) and not is_base and not within_seeds(base, group)


def placements(evidence: Evidence) -> tuple[Block, ArmRuns, list[ArmRuns]]:
    """The block that tells most about layers, what its arms are compared with, and its arms of one
    weight and schedule, by depth."""
    for stage in (2, 0, 1):  # full runs about layers, runs by hand, short runs
        for block in blocks_of(evidence):
            usable = [g for g in block.arms if g.losses or g.diverged]
            base = reference(evidence, block)
            if block.stage == stage and base and base.losses and usable:
                settings = Counter((g.arm.weight, g.arm.schedule) for g in usable)
                most = settings.most_common(1)[0][0]
                chosen = [g for g in usable if (g.arm.weight, g.arm.schedule) == most]
                taps = sorted(chosen, key=lambda g: (len(g.arm.layers), sum(g.arm.layers)))
                return block, base, taps
    raise NothingToDraw(
        "needs an arm's outcome, and a finished baseline or a choice to compare it with, of one"
        " stage and length"
    )


def draw_layers(evidence: Evidence):
    """Improvement by placement, each run against the baseline's of its seed, over a map of which
    layers are tapped: one head, two, more. A stage without a baseline is shown beside the placement
    that it chose, which is the best by chance too: bars are mostly below zero."""
    block, base, groups = placements(evidence)
    found = {group.key: within_seeds(base, group) for group in groups}
    figure, axes = new_figure(
        (max(7, 3 + 0.8 * len(groups)), 7.5), 2, 1, sharex=True, height_ratios=(3, 2)
    )
    effect, taps = axes[:, 0]
    effect.axhline(0, color=BLACK, linewidth=1.5)
    base_sd = base.mean_sd()[1] if base is block.baseline else None
    if base_sd is not None:
        effect.axhspan(-base_sd, base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for k, group in enumerate(groups):
        colour = draw_placement(effect, k, base, group)
        taps.plot([k] * len(group.arm.layers), group.arm.layers, "-o", color=colour, markersize=10)
    effect.use_sticky_edges = False  # room on both sides of zero
    effect.autoscale_view(scalex=False)
    effect.set_title("\n".join(about_placements(block, base, groups)))
    effect.set_ylabel("improvement\n(nats/token)")
    numbers = [len(pairs.arm) if (pairs := found[g.key]) else 0 for g in groups]
    draw_taps(taps, groups, numbers, evidence.standing.experiment.profile.n_layer)
    figure.align_ylabels()
    line = "baseline's mean" if base is block.baseline else plain(base.label)
    entries = legend_entries(line, band=base_sd is not None)
    figure.legend(handles=entries, loc="outside lower center", ncols=2)
    return figure


def draw_placement(ax, k: int, base: ArmRuns, group: ArmRuns) -> str:
    """The bar and points of one placement, with what they leave out; returns its colour."""
    found, is_base = within_seeds(base, group), base.arm.configuration == group.arm.configuration
    improvements = found.improvements if found else []
    colour = BLACK if not found else BETTER if found.improvement > 0 else WORSE
    if found:
        ax.bar(k, found.improvement, width=0.6, color=colour, alpha=0.5)
    words = left_out(group, len(group.losses) if is_base else len(improvements))
    if words := ", ".join(filter(None, ("the others' zero" if is_base else "", words))):
        where = (k + 0.4 if found else k, 0.1)  # beside the bar, if there is one
        at = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        at["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        ax.text(*where, words, rotation=90, fontsize=11, **at)
    ax.plot([k] * len(improvements), improvements, **A_RUN)
    return colour


def draw_taps(ax, groups: Sequence[ArmRuns], numbers: Sequence[int], n_layer: int) -> None:
    """Axes of the map of layers; numbers: of seeds on which each placement is compared."""
    labels = [
        f"{', '.join(map(str, group.arm.layers))}\nn = {n}"
        if n
        else ", ".join(map(str, group.arm.layers))
        for group, n in zip(groups, numbers, strict=True)
    ]
    ax.set_ylabel("tap layer")
    ax.set_ylim(0.3, n_layer - 0.3)
    ax.set_yticks(range(2, n_layer, 2))
    ax.set_yticks(range(1, n_layer, 2), minor=True)
    ax.set_xticks(range(len(groups)), labels)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.set_xlabel("tap layers of the heads; n: seeds compared")
    ax.grid(axis="y", which="both", alpha=0.3)


def about_placements(block: Block, base: ArmRuns, groups: Sequence[ArmRuns]) -> Iterator[str]:
    """The title's lines: what is drawn, compared with what, on which seeds."""
    arm = groups[0].arm
    yield block.title
    yield f"weight {arm.weight:g}, {plain(arm.schedule)}"
    if base is not block.baseline:
        yield f"no baseline: compared with {plain(base.label)}, the best of these"
    others = [g for g in groups if g.arm.configuration != base.arm.configuration]
    if len({frozenset(g.seeds & base.seeds) for g in others}) > 1:
        yield ON_OTHER_SEEDS


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
        seeds = {frozenset(r.run.seed for r in g.ok) for g in block.groups if g.ok}
        panels[0].set_title("\n".join([block.title, *[ON_OTHER_SEEDS][: len(seeds) > 1]]))
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
