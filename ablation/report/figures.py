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
    GREY,
    PALETTE,
    POINTS,
    USUAL,
    WORSE,
    NothingToDraw,
    Paper,
    Style,
    as_logged,
    folded,
    height_of,
    improvement_entries,
    inches,
    is_narrow,
    legend_below,
    new_figure,
    note_points,
    plain,
    plain_matplotlib,
    settle,
    signed,
    width,
    with_margin,
)
from ablation.report.evidence import Compared
from ablation.report.layers import draw_gradients, draw_layers
from ablation.report.verdict import draw_verdict
from ablation.runs.run import RunResult
from ablation.runs.untrusted import printable
from ablation.study.study import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---------------------------------------------------------------------------------------------
# A figure as a file

MOST = 100  # configurations in all figures together: chosen, as no plan has as many
UNDATED = {  # what a file says of itself: the same evidence gives the same bytes, on any day
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


@dataclass(frozen=True)
class Picture:
    """A figure as a file and the caption beside it, or why there is none."""

    image: bytes = b""
    kind: str = "png"  # of KINDS
    caption: str = ""  # one paragraph; empty where nobody asked for it
    why: str = ""  # it was not drawn
    failed: bool = False  # it could have been, but for a package that is missing or a bug of ours

    def _repr_png_(self) -> bytes | None:
        """How a notebook shows it."""
        return self.image if self.image and self.kind == "png" else None

    def _repr_svg_(self) -> str | None:
        return self.image.decode() if self.image and self.kind == "svg" else None


Draw = Callable[[Any], "Figure"]
Tell = Callable[[Any], str]  # a caption


def picture(
    draw: Draw,
    evidence: Compared,
    kind: str = "png",
    paper: Paper = USUAL,
    tell: Tell | None = None,
) -> Picture:
    """A figure drawn and told, or why it is not. Never raises: the report's text is worth more."""
    try:
        if (n := sum(len(block.groups) for block in blocks_of(evidence))) > MOST:
            raise NothingToDraw(f"{n} configurations are too many to be told apart")
        with plain_matplotlib(paper):
            image, figure = io.BytesIO(), draw(evidence)
            settle(figure)
            figure.savefig(image, format=kind, metadata=UNDATED[kind])
        return Picture(image.getvalue(), kind, tell(evidence) if tell else "")
    except NothingToDraw as why:
        return Picture(kind=kind, why=str(why))
    except Exception as error:
        return Picture(kind=kind, why=in_a_line(error), failed=True)


def in_a_line(error: Exception) -> str:
    """What keeps a picture or a page from being made: a package that is missing, or a bug."""
    remedy = "; pip install -r requirements.txt" if isinstance(error, ImportError) else ""
    return f"{printable(f'{type(error).__name__}: {error}{remedy}')} ({place(error)})"


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
    blocks = finished_blocks(evidence)
    bases = [reference(evidence, block) for block in blocks]
    names = [[folded(g.label, 0.3 * width(), notes=True) for g in b.groups] for b in blocks]
    beside = [
        [words_beside(base, group) for group in b.groups]
        for b, base in zip(blocks, bases, strict=True)
    ]
    rows = [height_of(*a, *b) + 0.07 for a, b in zip(names, beside, strict=True)]
    heights = [row * (len(b.groups) + 0.2) for row, b in zip(rows, blocks, strict=True)]
    left = max(
        inches(line, note_points()) for part in names for n in part for line in n.split("\n")
    )
    titles = [
        "\n".join(folded(line, width() - left - 0.25) for line in (b.title, *about_block(b, base)))
        for b, base in zip(blocks, bases, strict=True)
    ]
    height = sum(heights) + sum(0.32 + height_of(title) for title in titles) + 0.25
    figure, axes = new_figure(height, len(blocks), 1, height_ratios=heights)
    for k, ax in enumerate(axes[:, 0]):
        draw_block(ax, blocks[k], bases[k], beside[k])
        ax.set_yticks(range(len(names[k])), names[k])
        ax.set_title(titles[k])
    better = "left" if evidence.metric.sign > 0 else "right"
    named = [as_logged(ax.xaxis, evidence.metric) for ax in axes[:, 0]]
    axes[-1, 0].set_xlabel(f"final {named[-1]}; {better} is better")
    entries = comparison_entries(blocks, bases)
    legend_below(figure, entries, [entry.get_label() for entry in entries])
    return figure


def finished_blocks(evidence: Compared) -> list[Block]:
    """Those with a finished run. Raises NothingToDraw where there is none."""
    blocks = [b for b in blocks_of(evidence) if any(g.losses for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no run has finished")
    return blocks


def comparison_entries(blocks: Sequence[Block], bases: Sequence[ArmRuns | None]) -> list:
    """The legend: of what is drawn."""
    from matplotlib.lines import Line2D

    lone = Line2D([], [], label="mean, nothing of its seeds to compare with", **A_MEAN)
    lonely = any(alone(x, g) for b, x in zip(blocks, bases, strict=True) for g in b.arms)
    other = any(base and not b.baseline for b, base in zip(blocks, bases, strict=True))
    line = "baseline's mean" + (", or of what the title names" if other else "")
    by_seed = all(g.by_seed for b in blocks for g in b.groups)
    return improvement_entries(line, *([lone] if lonely else []), band=True, by_seed=by_seed)


def words_beside(base: ArmRuns | None, group: ArmRuns) -> str:
    """How many runs, what improvement, what was lost: beside a row of the comparison."""
    found, words = within_seeds(base, group), [f"n = {len(group.losses)}"]
    if found and group.by_seed and len(found.arm) < len(group.losses):
        words[0] += f" ({len(found.arm)} shared)"
    if found:
        words.append(signed(found.improvement))
    if lost := group.lost:
        # beside the panel there is little room
        short = f"{len(group.runs) - len(group.ok)} lost"
        words.append(f"✕ {lost if len(lost) <= MOST_BESIDE else short}")
    lines, room = [words[0]], 0.3 * width()
    for word in words[1:]:
        joined = f"{lines[-1]}  {word}"
        if inches(joined, note_points()) <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


MOST_BESIDE = 24  # signs of what was lost


def about_block(block: Block, base: ArmRuns | None) -> Iterator[str]:
    """Which arm it is, where there is one; what arms are compared with, where it is no baseline."""
    if len(block.arms) == 1 and block.arms[0].by_seed:
        name = "best" if block.stage else "arm"  # by hand nothing is chosen
        yield f"{name}: {plain(block.arms[0].arm.label)}"
    if base and base is not block.baseline:
        stages = {r.run.stage for r in base.runs} - {block.stage}
        of = f" of stage {min(stages)}" if stages else ""
        yield f"no baseline: compared with {plain(base.label)}{of}"


def draw_block(ax, block: Block, base: ArmRuns | None, beside: Sequence[str]) -> None:
    """base: what its arms are compared with, on the seeds that both finished; beside: words."""
    mean, sd = block.baseline.mean_sd() if block.baseline else (None, None)
    if mean is not None:
        ax.axvline(mean, color=BLACK, linewidth=1)
    if mean is not None and sd is not None:
        ax.axvspan(mean - sd, mean + sd, color=BLACK, alpha=0.12, linewidth=0)
    for y, (group, words) in enumerate(zip(block.groups, beside, strict=True)):
        if found := within_seeds(base, group):
            colour = BETTER if found.improvement > 0 else WORSE
            start = stats.mean_sd(found.base)[0]
            reach = {"left": start, "height": 0.6}
            ax.barh(y, -found.improvement, color=colour, alpha=0.5, **reach)
            if mean is None:  # its own line: arms that differ in their seeds have no common one
                ax.plot([start, start], [y - 0.38, y + 0.38], color=BLACK, linewidth=1)
        elif alone(base, group):
            ax.plot([group.mean_sd()[0]], [y], **A_MEAN)
        if group.losses:
            apart = 0.15 if len(group.losses) > 2 else 0  # so that equal losses stay countable
            rows = [y + apart * (k % 3 - 1) for k in range(len(group.losses))]
            ax.plot(group.losses, rows, **A_RUN)
        at = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": note_points()}
        ax.text(1.02, y, words, **at)
    ax.set_ylim(len(block.groups) - 0.4, -0.6)
    ax.use_sticky_edges = False  # room beyond the baseline, where bars begin
    ax.margins(x=0.06)
    ax.autoscale_view(scaley=False)
    ax.locator_params(axis="x", nbins=3 if is_narrow() else 5)
    ax.ticklabel_format(axis="x", useOffset=False)


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
    """The mean over runs at each step that all have, with numbers that have a mean: step; mean,
    lowest and highest val loss; mean training time in s."""
    curves = [
        {
            step: (loss, t / 1000)
            for step, loss, t in r.curve
            if max(abs(loss), abs(t)) < stats.TOO_LARGE
        }
        for r in group.ok
    ]
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
    blocks = longest_blocks(evidence)
    over = {STEP: "steps", TIME: "training time (s)"} if is_timed(blocks) else {STEP: "steps"}
    over = {STEP: "steps"} if is_narrow() else over
    styles = curve_styles(blocks)
    named = [legend_of_curves(block, styles) for block in blocks]
    room = 3.1 if is_narrow() else 1.5 if len(over) > 1 else 3.0
    labels = [[folded(label, room, notes=True) for _, label in part] for part in named]
    legends = [sum(height_of(label) + 0.02 for label in part) for part in labels]
    narrow = 1.7 if len(blocks) < 3 else 1.35  # a page holds all
    panels = [narrow if is_narrow() else max(2.0, legend + 0.1) for legend in legends]
    titles = ["\n".join(folded(x, width() - 0.6) for x in about_curves(b)) for b in blocks]
    height = sum(panels) + sum(0.25 + height_of(title) for title in titles) + 0.5
    height += sum(legends) + 0.1 * len(legends) if is_narrow() else 0
    figure, axes = new_figure(height, len(blocks), len(over), sharey="row", height_ratios=panels)
    for ax, words in zip(axes[-1], over.values(), strict=True):
        ax.set_xlabel(words)
    for k, block in enumerate(blocks):
        for ax, column in zip(axes[k], over, strict=True):
            draw_panel(ax, evidence.metric, block, styles, column)
        axes[k, 0].set_title(titles[k])
        axes[k, 0].set_ylabel(as_logged(axes[k, 0].yaxis, evidence.metric))
        legend_beside(axes[k, -1], [handle for handle, _ in named[k]], labels[k])
    about = "Lines: means of finished runs. Bands: lowest to highest. ✕: where a run diverged."
    early = "losses lie above" if evidence.metric.sign > 0 else "values lie below"
    words = folded(f"{about} Early {early} the axis.", width() - 0.1, notes=True)
    figure.supxlabel(words, fontsize=note_points())
    return figure


def longest_blocks(evidence: Compared) -> list[Block]:
    """Those whose curves are drawn. Raises NothingToDraw where there is none."""
    blocks = [b for b in blocks_of(evidence) if any(mean_curve(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    longest = max(b.num_iterations for b in blocks)
    return [b for b in blocks if b.num_iterations == longest or not b.groups[0].by_seed]


def is_timed(blocks: Sequence[Block]) -> bool:
    return all(g.numbers("train_time_ms") for b in blocks for g in b.groups if g.ok)


def about_curves(block: Block) -> Iterator[str]:
    """The title's lines."""
    yield block.title
    seeds = {frozenset(r.run.seed for r in g.ok) for g in block.groups if g.ok and g.by_seed}
    if len(seeds) > 1:
        yield ON_OTHER_SEEDS


MOST_NAMED = {1: 7, 2: 14}  # arms of a panel that have a colour, by columns; others are grey


def told_apart(block: Block) -> list[ArmRuns]:
    """The arms of a panel that have a colour and a name: all, or the best where they are many."""
    most = MOST_NAMED[1 if is_narrow() else 2]
    if len(block.arms) <= most:
        return block.arms
    ends = {g.key: rows[-1][MEAN] for g in block.arms if (rows := mean_curve(g))}
    best = sorted(ends, key=lambda key: ends[key])[:most]
    return [g for g in block.arms if g.key in best]


Styles = Mapping[tuple, tuple[str, str]]  # colour and line of each configuration


def curve_styles(blocks: Sequence[Block]) -> Styles:
    """The same in all panels; the baseline is black."""
    keys = dict.fromkeys(g.key for b in blocks for g in told_apart(b))
    styles = [(colour, dashes) for dashes in DASHES for colour in PALETTE]
    of_arms = {key: styles[k % len(styles)] for k, key in enumerate(keys)}
    return {((), False): (BLACK, "-"), **of_arms}


def legend_of_curves(block: Block, styles: Styles) -> list[tuple[Any, str]]:
    """A line and its words for each configuration; n is how many runs its mean is of."""
    from matplotlib.lines import Line2D

    named = [g for g in block.groups if g.arm.is_baseline or g in told_apart(block)]
    entries = []
    for group in (g for g in named if g.ok or diverged_curves(g)):
        colour, dashes = styles[group.key]
        how: Style = {"linestyle": dashes} if group.ok else {"linestyle": ":", "marker": "X"}
        lost = f" ✕ {group.lost}" if group.lost else ""
        line = Line2D([], [], color=colour, **how)
        entries.append((line, f"{plain(group.label)} (n = {len(group.ok)}){lost}"))
    if others := [g for g in block.groups if g not in named and g.ok]:
        numbers = sorted({len(g.ok) for g in others})
        n = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
        entries.append(
            (Line2D([], [], color=GREY, linewidth=0.6), f"{len(others)} others (n = {n})")
        )
    return entries


def legend_beside(ax, handles: Sequence, labels: Sequence[str]) -> None:
    """To the right of a panel, or below it in a figure of one column."""
    from matplotlib.transforms import ScaledTranslation

    anchor, place = (1.02, 0.5), "center left"
    where: Style = {}
    if is_narrow():
        anchor, place = (0, 0), "upper left"
        under = -0.38 if ax.get_xlabel() else -0.22
        below = ScaledTranslation(-0.35, under, ax.figure.dpi_scale_trans)
        where = {"bbox_transform": ax.transAxes + below}
    ax.legend(handles, labels, loc=place, bbox_to_anchor=anchor, borderaxespad=0, **where)


def draw_panel(ax, metric: Metric, block: Block, styles: Styles, column: int) -> None:
    """Curves and their inset; the axis is as high as keeps their right half below the inset, or
    above it where they rise."""
    inset = ax.inset_axes((0.5, 0.54 if metric.sign > 0 else 0.1, 0.5, 0.46))
    as_logged(inset.yaxis, metric)
    named = {g.key for g in told_apart(block)} | {((), False)}
    for group in block.groups:
        for axes in (ax, inset):
            how = styles[group.key] if group.key in named else (GREY, "-")
            draw_curve(axes, group, *how, column)
    curves = [rows for group in block.groups if (rows := mean_curve(group))]
    last = max((rows[-1][STEP] for rows in curves), default=0)
    for axes, share, height in ((ax, 0.4, 0.45), (inset, 0.85, 1.0)):
        shown = [row for rows in curves for row in rows_from(rows, share * last)]
        low, high = with_margin([loss for row in shown for loss in row[LOW:TIME]])
        ends = low, low + (high - low) / (height if metric.sign > 0 else 0.8 * height)
        axes.set_ylim(*(ends if metric.sign > 0 else reversed(ends)))
    inset.set_xlim(*with_margin([row[column] for row in shown]))
    inset.tick_params(labelsize=POINTS[1][1])
    inset.locator_params(nbins=3)
    ax.locator_params(nbins=5)
    ax.set_xlim(left=0)


def rows_from(rows: list[tuple], step: float) -> list[tuple]:
    """The end of a curve, from its last point before a step on; two points at least."""
    before = sum(row[STEP] <= step for row in rows)
    return rows[max(0, min(before - 1, len(rows) - 2)) :]


def diverged_curves(group: ArmRuns) -> list[RunResult]:
    return [r for r in group.runs if r.status == "diverged" and r.curve]


def draw_curve(ax, group: ArmRuns, colour: str, dashes: str, column: int) -> None:
    """Its mean and the band of its runs, and those that diverged; grey lines lie behind."""
    behind = colour == GREY
    label = f"{plain(group.label)} (n = {len(group.ok)})"
    if rows := mean_curve(group):
        columns = list(zip(*rows, strict=True))
        at = columns[column]
        front = 1 if behind else 3 if group.arm.is_baseline else 2  # the baseline lies on top
        thin: Style = {"linewidth": 0.6} if behind else {}
        ax.plot(at, columns[MEAN], dashes, color=colour, label=label, zorder=front, **thin)
        if len(group.ok) > 1 and not behind:
            ax.fill_between(at, columns[LOW], columns[HIGH], color=colour, alpha=0.2, linewidth=0)
    for r in diverged_curves(group):
        steps, losses, times = zip(*r.curve, strict=True)
        at = steps if column == STEP else tuple(t / 1000 for t in times)
        ax.plot(at, losses, ":", color=colour, linewidth=0.9)
        ax.plot(at[-1:], losses[-1:], "X", color=colour, markersize=5)


FIGURES: dict[str, Draw] = {  # by the name of their files, without what tells the kind
    "val_loss_comparison": draw_comparison,
    "layer_ablation": draw_layers,
    "training_curves": draw_curves,
    "verdict": draw_verdict,
    "gradient_flow": draw_gradients,
}
