"""What do the figures show?  From the values of an experiment to matplotlib figures.

Pure drawing: nothing is read, decided or written here.
"""

import io
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import stats
from ablation.report.comparisons import (
    ON_OTHER_SEEDS,
    ArmRuns,
    Block,
    blocks_of,
    reference,
    within_seeds,
)
from ablation.report.drawing import (
    A_MEAN,
    A_RUN,
    BETTER,
    BLACK,
    DASHES,
    PALETTE,
    WORSE,
    NothingToDraw,
    as_logged,
    legend_entries,
    new_figure,
    plain,
    plain_matplotlib,
    signed,
    with_margin,
)
from ablation.report.evidence import Compared
from ablation.report.layers import draw_gradients, draw_layers
from ablation.report.verdict import draw_verdict
from ablation.runs.untrusted import printable
from ablation.study.study import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---------------------------------------------------------------------------------------------
# A figure as a file

MOST = 100  # configurations in all figures together: chosen, as no plan has as many


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG, or why there is none."""

    png: bytes = b""
    why: str = ""  # it was not drawn
    failed: bool = False  # it could have been, but for a package that is missing or a bug of ours

    def _repr_png_(self) -> bytes | None:
        """How a notebook shows it."""
        return self.png or None


def picture(draw: Callable[[Any], "Figure"], evidence: Compared) -> Picture:
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
# Improvements, by stage


def draw_comparison(evidence: Compared):
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
    better = "left" if evidence.metric.sign > 0 else "right"
    named = [as_logged(ax.xaxis, evidence.metric) for ax in axes[:, 0]]
    axes[-1, 0].set_xlabel(f"final {named[-1]}; {better} is better")
    from matplotlib.lines import Line2D

    lone = Line2D([], [], label="mean, nothing of its seeds to compare with", **A_MEAN)
    lonely = any(alone(x, g) for b, x in zip(blocks, bases, strict=True) for g in b.arms)
    other = any(base and not b.baseline for b, base in zip(blocks, bases, strict=True))
    line = "baseline's mean" + (", or of what the title names" if other else "")
    by_seed = all(g.by_seed for b in blocks for g in b.groups)
    entries = legend_entries(line, *([lone] if lonely else []), band=True, by_seed=by_seed)
    figure.legend(handles=entries, loc="outside lower center", ncols=2 if other else 3)
    return figure


def about_block(block: Block, base: ArmRuns | None) -> Iterator[str]:
    """Which arm it is, where there is one; what arms are compared with, where it is no baseline."""
    if len(block.arms) == 1 and block.arms[0].by_seed:
        yield f"best: {plain(block.arms[0].arm.label)}"
    if base and base is not block.baseline:
        stages = {r.run.stage for r in base.runs} - {block.stage}
        of = f" of stage {min(stages)}" if stages else ""
        yield f"no baseline: compared with {plain(base.label)}{of}"


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
            few = group.by_seed and len(found.arm) < len(group.losses)
            shared = f", {len(found.arm)} seed(s) shared" if few else ""
            words = [signed(found.improvement), words[0] + shared]
        elif alone(base, group):
            ax.plot([group.mean_sd()[0]], [y], **A_MEAN)
        if group.losses:
            apart = 0.15 if len(group.losses) > 2 else 0  # so that equal losses stay countable
            rows = [y + apart * (k % 3 - 1) for k in range(len(group.losses))]
            ax.plot(group.losses, rows, markersize=6, **A_RUN)
        if lost := group.lost:
            short = (
                f"{len(group.runs) - len(group.ok)} lost"  # beside the panel there is little room
            )
            words.append(f"✕ {lost if len(lost) <= MOST_BESIDE else short}")
        ax.text(1.02, y, "  ".join(words), transform=ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(block.groups)), [g.label for g in block.groups])
    ax.set_ylim(len(block.groups) - 0.4, -0.6)
    ax.use_sticky_edges = False  # room beyond the baseline, where bars begin
    ax.margins(x=0.06)
    ax.autoscale_view(scaley=False)
    ax.locator_params(axis="x", nbins=5)
    ax.ticklabel_format(axis="x", useOffset=False)


MOST_BESIDE = 40  # signs of what was lost


def alone(base: ArmRuns | None, group: ArmRuns) -> bool:
    """An arm with finished runs, and none of another configuration to hold them against."""
    is_base = base is not None and base.arm.configuration == group.arm.configuration
    return (
        bool(not group.arm.is_baseline and group.losses)
        and not is_base
        and not within_seeds(base, group)
    )


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


def draw_curves(evidence: Compared):
    """Val loss over steps and over training time, of the longest runs, a row for each stage.

    A run begins by falling through several nats, and the effects are hundredths: the axis leaves
    out the beginning, and an inset magnifies the end, where bands can be seen.
    """
    blocks = [b for b in blocks_of(evidence) if any(mean_curve(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    longest = max(b.num_iterations for b in blocks)
    blocks = [b for b in blocks if b.num_iterations == longest or not b.groups[0].by_seed]
    groups = [g for b in blocks for g in b.groups if g.ok]
    timed = all(g.numbers("train_time_ms") for g in groups)
    over = {STEP: "steps", TIME: "training time (s)"} if timed else {STEP: "steps"}
    size = (12 if timed else 9, 0.8 + 4.2 * len(blocks))
    figure, axes = new_figure(size, len(blocks), len(over), sharey="row")
    styles = curve_styles(blocks)
    for panels, block in zip(axes, blocks, strict=True):
        for ax, column in zip(panels, over, strict=True):
            draw_panel(ax, evidence.metric, block, styles, column)
        seeds = {frozenset(r.run.seed for r in g.ok) for g in block.groups if g.ok and g.by_seed}
        panels[0].set_title("\n".join([block.title, *[ON_OTHER_SEEDS][: len(seeds) > 1]]))
        panels[0].set_ylabel(as_logged(panels[0].yaxis, evidence.metric))
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    for ax, words in zip(axes[-1], over.values(), strict=True):
        ax.set_xlabel(words)
    about = "Means over finished runs; bands: lowest to highest; ✕: where a run diverged."
    early = "losses lie above" if evidence.metric.sign > 0 else "values lie below"
    figure.supxlabel(f"{about} Early {early} the axis.", fontsize=12)
    return figure


def curve_styles(blocks: Sequence[Block]) -> dict[tuple, tuple[str, str]]:
    """Colour and line of each configuration, the same in all panels; the baseline is black."""
    keys = dict.fromkeys(g.key for b in blocks for g in b.arms)
    styles = [(colour, dashes) for dashes in DASHES for colour in PALETTE]
    of_arms = {key: styles[k % len(styles)] for k, key in enumerate(keys)}
    return {((), False): (BLACK, "-"), **of_arms}


def draw_panel(
    ax, metric: Metric, block: Block, styles: Mapping[tuple, tuple[str, str]], column: int
) -> None:
    """Curves and their inset; the axis is as high as keeps their right half below the inset, or
    above it where they rise."""
    inset = ax.inset_axes((0.5, 0.54 if metric.sign > 0 else 0.1, 0.5, 0.46))
    as_logged(inset.yaxis, metric)
    for group in block.groups:
        for axes in (ax, inset):
            draw_curve(axes, group, *styles[group.key], column)
    curves = [rows for group in block.groups if (rows := mean_curve(group))]
    last = max((rows[-1][STEP] for rows in curves), default=0)
    for axes, share, height in ((ax, 0.4, 0.45), (inset, 0.85, 1.0)):
        shown = [row for rows in curves for row in rows_from(rows, share * last)]
        low, high = with_margin([loss for row in shown for loss in row[LOW:TIME]])
        ends = low, low + (high - low) / (height if metric.sign > 0 else 0.8 * height)
        axes.set_ylim(*(ends if metric.sign > 0 else reversed(ends)))
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
        front = 3 if group.arm.is_baseline else 2  # the baseline lies on top
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


FIGURES = {
    "val_loss_comparison.png": draw_comparison,
    "layer_ablation.png": draw_layers,
    "training_curves.png": draw_curves,
    "verdict.png": draw_verdict,
    "gradient_flow.png": draw_gradients,
}
