"""How did every run go?  The chart of loss over steps and over training time.

Only plotly's terms are made here, as in `charts`. All runs of an arm are one trace, with gaps, as a
browser draws twenty traces and not a thousand.
"""

import math
from collections.abc import Iterator, Sequence

from ablation.report.charting import (
    DASHES,
    INK,
    MOST_NAME,
    SERIES,
    Part,
    axis,
    axis_title,
    layout,
    spread,
    text,
)
from ablation.report.comparisons import ArmRuns, Block, blocks_of
from ablation.report.content import Chart
from ablation.report.drawing import NothingToDraw
from ablation.report.evidence import Compared
from ablation.report.figures import MEAN, MOST, STEP, TIME, mean_curve, rows_from
from ablation.runs.run import RunResult
from ablation.study.study import Metric

MOST_POINTS = 16_000  # of all runs together: chosen, for half a megabyte of a page
MOST_OF_MEANS = 4_000  # likewise, of the means of arms
MOST_OF_A_CURVE = 400  # chosen: a screen has not many more columns
MOST_OF_A_BLOCK = 44  # signs of its name, on its button
MOST_OF_A_NAME = 24  # signs of what tells a run apart, told at each of its points
DECIMALS = 6  # of losses that are drawn; records keep all
Point = tuple[float, float, float]  # step, loss, training time in s


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of these points, in their order (4 at least): the first, the last, and of
    each of equal buckets between them the lowest and the highest, so that no peak is lost."""
    if len(points) <= max(4, most):
        return list(points)
    inner, buckets = range(1, len(points) - 1), max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for k in range(buckets):
        bucket = inner[k * len(inner) // buckets : (k + 1) * len(inner) // buckets]
        kept |= {f(bucket, key=lambda i: points[i][1]) for f in (min, max)}
    return [points[i] for i in sorted(kept)]


def curves(evidence: Compared) -> Chart:
    """Every run of every block that has a curve; one block is seen at a time, at first the last of
    the longest runs. Losses are rounded to 6 decimals, times to 0.01 s, and curves thinned where
    they have more than 16,000 points together. Raises NothingToDraw where no run has a curve."""
    blocks = [b for b in blocks_of(evidence) if any(drawn(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    if (n := sum(len(block.groups) for block in blocks)) > MOST:
        raise NothingToDraw(f"{n} configurations are too many to be told apart")
    groups = [(b, g) for b in blocks for g in b.groups if drawn(g)]
    timed = all(g.numbers("train_time_ms") for _, g in groups if g.ok)
    first, styles, most = shown_first(blocks), styles_of(blocks), limits_of(groups)
    parts = [
        (block, {**each, "legendgroup": str(k), "visible": block is first})
        for k, (block, group) in enumerate(groups)
        for each in traces(evidence.metric, group, styles[group.key], most)
    ]
    owners, data = [block for block, _ in parts], [trace for _, trace in parts]
    menus = list(menus_of(evidence.metric, blocks, first, owners, data, timed))
    entries = max(len(block.groups) for block in blocks)
    x, y = axes_of(evidence.metric, first)
    parts_of_it = {
        "dragmode": "zoom",
        "margin": {"l": 12, "r": 24, "t": 12, "b": 12},
        "updatemenus": menus,
    }
    whole = layout(440 + 9 * entries, xaxis=x, yaxis=y, **parts_of_it)
    about = caption(evidence.metric, blocks, sum(len(g.ok) for _, g in groups))
    data = [{key: value for key, value in trace.items() if key != TIMES} for trace in data]
    return Chart("curves", "Curves of every run", about, tuple(data), whole)


def limits_of(groups: Sequence[tuple[Block, ArmRuns]]) -> tuple[int, int]:
    """How many points a run may have, and a mean."""
    runs, means = sum(len(drawn(g)) for _, g in groups), max(1, len(groups))
    most = (MOST_POINTS // runs, MOST_OF_MEANS // means)
    return min(MOST_OF_A_CURVE, most[0]), min(MOST_OF_A_CURVE, most[1])


def drawn(group: ArmRuns) -> list[RunResult]:
    """The runs with an outcome and a curve."""
    return [r for r in group.runs if r.has_outcome and r.curve]


def shown_first(blocks: Sequence[Block]) -> Block:
    return max(blocks, key=lambda block: (block.num_iterations, block.stage))


def styles_of(blocks: Sequence[Block]) -> dict[tuple, tuple[str, str]]:
    """Colour and line of each configuration, the same in all blocks."""
    keys = dict.fromkeys(g.key for b in blocks for g in b.arms)
    styles = [(colour, dash) for dash in DASHES for colour in SERIES]
    of_arms = {key: styles[k % len(styles)] for k, key in enumerate(keys)}
    return {((), False): (INK, "solid"), **of_arms}


# ---------------------------------------------------------------------------------------------
# Traces


def traces(
    metric: Metric, group: ArmRuns, style: tuple[str, str], most: tuple[int, int]
) -> Iterator[Part]:
    """Of an arm: its runs, the mean of those that finished, and where runs diverged. The first one
    of the mean and the runs has the arm's place in the legend."""
    colour, dash = style
    lost = f", ✕ {text(group.lost, 60)}" if group.lost else ""
    same = {
        "name": f"{text(group.label, MOST_NAME)} (n = {len(group.ok)}){lost}",
        "zorder": int(group.arm.is_baseline),
    }
    line = {"color": colour, "dash": dash}
    runs, several = drawn(group), len(group.ok) > 1
    told = [(name_of(group, r), thinned(curve_of(r), most[0])) for r in runs]
    whose = f"{group.label}, seed" if group.by_seed else f"{group.label},"
    pale = max(0.1, 0.55 / math.sqrt(len(runs))) if several else 1.0
    style_of_runs = {"line": {**line, "width": 1.0 if several else 1.8}, "opacity": round(pale, 2)}
    yield {**trace(metric, told, whose), **same, **style_of_runs, "showlegend": not several}
    if several:
        curve = [(row[STEP], row[MEAN], row[TIME]) for row in mean_curve(group)]
        mean = [(f"mean of {len(group.ok)}", thinned(curve, most[1]))]
        yield {**trace(metric, mean, f"{group.label},"), **same, "line": {**line, "width": 2.5}}
    if ends := [(name_of(group, r), [curve_of(r)[-1]]) for r in runs if r.status == "diverged"]:
        crosses = trace(metric, ends, f"diverged: {whose}")
        marker = {"mode": "markers", "marker": {"symbol": "x", "size": 10, "color": colour}}
        yield {**crosses, **same, **marker, "showlegend": False}


def name_of(group: ArmRuns, r: RunResult) -> int | str:
    """What tells a run apart, as short as may be: it stands at each of its points."""
    if group.by_seed:  # beyond 2^53 a browser would round it
        return r.run.seed if abs(r.run.seed) < 1 << 53 else str(r.run.seed)
    return text(group.told_apart(r), MOST_OF_A_NAME)


def curve_of(r: RunResult) -> list[Point]:
    return [(step, loss, ms / 1000) for step, loss, ms in r.curve]


def trace(metric: Metric, told: Sequence[tuple[int | str, Sequence[Point]]], whose: str) -> Part:
    """Curves in one trace, a gap between them. told: which run it is, and its points."""
    flat = [(which, point) for which, points in told for point in (*points, None)][:-1]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [point and point[0] for _, point in flat],
        "y": [point and round(metric.sign * point[1], DECIMALS) for _, point in flat],
        TIMES: [point and time_shown(point) for _, point in flat],
        "customdata": [None if point is None else which for which, point in flat],
        "hovertemplate": f"{text(whose, 120)} %{{customdata}}<br>%{{xaxis.title.text}} %{{x}}<br>"
        f"{text(metric.words)} %{{y}}<extra></extra>",
    }


TIMES = "times"  # not plotly's: what x is where the axis is of time


def time_shown(point: Point) -> float | None:
    """The training time at a point; None where its log tells none."""
    step, _, time_s = point
    return None if step and not time_s else round(time_s, 2)


# ---------------------------------------------------------------------------------------------
# Axes and menus


def axes_of(metric: Metric, block: Block) -> tuple[Part, Part]:
    y = axis(axis_title(metric.words, metric), range=limits(metric, block), fixedrange=False)
    return axis("steps", fixedrange=False, rangemode="tozero"), y


def limits(metric: Metric, block: Block) -> list[float]:
    """The heights that the later 60 % of the curves need: a run begins by falling through several
    nats, and the effects are hundredths."""
    found = [curve_of(r) for g in block.groups for r in (g.ok or g.runs) if r.curve]
    last = max(curve[-1][0] for curve in found)
    values = [loss for curve in found for _, loss, _ in rows_from(curve, 0.4 * last)]
    return sorted(metric.sign * end for end in spread(values))


def menus_of(
    metric: Metric, blocks: Sequence[Block], first: Block,
    owners: Sequence[Block], data: Sequence[Part], timed: bool,
) -> Iterator[Part]:  # fmt: skip
    """Over what, where all runs tell their times; and which block, where there are several. A page
    draws them as buttons of its own."""
    if timed:
        over = {"steps": [t["x"] for t in data], "training time (s)": [t[TIMES] for t in data]}
        buttons = []
        for words, x in over.items():  # an enlarged piece of steps is none of time
            axis_of_it = {"xaxis.title.text": words, "xaxis.autorange": True}
            buttons.append({"label": words, "method": "update", "args": [{"x": x}, axis_of_it]})
        yield {"buttons": buttons}
    if len(blocks) > 1:
        buttons = []
        for block in blocks:
            shown = {"visible": [owner is block for owner in owners]}
            axes = {"yaxis.range": limits(metric, block), "xaxis.autorange": True}
            buttons.append({"label": named(block), "method": "update", "args": [shown, axes]})
        yield {"active": blocks.index(first), "buttons": buttons}


def named(block: Block) -> str:
    """A block in few words."""
    is_stage = block.groups[0].by_seed
    words = f"{block.name}, {block.num_iterations} {block.counted}" if is_stage else block.title
    return text(words, MOST_OF_A_BLOCK)


def caption(metric: Metric, blocks: Sequence[Block], n: int) -> str:
    choice = " Buttons choose the stage." if len(blocks) > 1 else ""
    early = "losses lie above" if metric.sign > 0 else "values lie below"
    return (
        f"Thin: one run; thick: the mean of an arm's runs that finished (n beside its name, {n} in"
        f" all); ✕ on a curve: where a run diverged. Early {early} the axis: a double click shows"
        f" all, and a rectangle drawn with the mouse enlarges.{choice}"
    )
