"""How did every run go?  The chart of loss over steps and over training time.

Only plotly's terms are made here, as in `charts`. All runs of an arm are one trace, with gaps, as a
browser draws twenty traces and not a thousand.
"""

from collections.abc import Iterator, Sequence

from ablation.report.charting import (
    BAND,
    DASHES,
    INK,
    MOST_NAME,
    SERIES,
    SIZE,
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
from ablation.report.figures import MEAN, STEP, TIME, mean_curve, rows_from
from ablation.runs.run import RunResult
from ablation.study.study import Metric

MOST_POINTS = 16_000  # in all curves together: chosen, as 0.8 MB of a page
MOST_OF_A_RUN = 400  # chosen: a screen has not many more columns
DECIMALS = 6  # of losses that are drawn; records keep all
Point = tuple[float, float, float]  # step, loss, training time in s

Curve = Sequence[Point]


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
    all have more than 16,000 points. Raises NothingToDraw where no run has a curve."""
    blocks = [b for b in blocks_of(evidence) if any(drawn(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    groups = [(b, g) for b in blocks for g in b.groups if drawn(g)]
    timed = all(g.numbers("train_time_ms") for _, g in groups if g.ok)
    styles = styles_of(blocks)
    n_curves = sum(len(drawn(g)) + (len(g.ok) > 1) for _, g in groups)
    most = min(MOST_OF_A_RUN, MOST_POINTS // n_curves)
    first = shown_first(blocks)
    data: list[Part] = []
    owners: list[Block] = []  # of each trace
    for block, group in groups:
        mine = traces(evidence.metric, group, styles[group.key], most)
        data += [{**trace, "visible": block is first} for trace in mine]
        owners += [block] * len(mine)
    menus = list(menus_of(evidence.metric, blocks, first, owners, data, timed))
    for trace in data:
        del trace["times"]
    x, y = axes_of(evidence.metric, first)
    height = 470 + 34 * len(menus)
    margin = {"l": 12, "r": 12, "t": 12 + 38 * len(menus), "b": 12}
    looks = {"dragmode": "zoom", "margin": margin, "updatemenus": menus}
    about = caption(evidence.metric, blocks, timed, sum(len(g.ok) for _, g in groups))
    whole = layout(height, xaxis=x, yaxis=y, **looks)
    return Chart("curves", "Curves of every run", about, tuple(data), whole)


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


def traces(metric: Metric, group: ArmRuns, style: tuple[str, str], most: int) -> list[Part]:
    """Of an arm: its runs, the mean of those that finished, and where runs diverged."""
    colour, dash = style
    named = f"{text(group.label, MOST_NAME)} (n = {len(group.ok)})"
    lost = f", ✕ {text(group.lost, 60)}" if group.lost else ""
    runs = drawn(group)
    parts = {"legendgroup": repr(group.key[1]) + group.label, "zorder": int(group.arm.is_baseline)}
    pale = {"opacity": 0.4} if len(group.ok) > 1 else {}
    told = [(group.told_apart(r), thinned(curve_of(r), most)) for r in runs]
    found = [trace(metric, told, group.label, colour, dash, 1.0 if pale else 1.8)]
    found[0] |= {"name": named + lost, **pale}
    if len(group.ok) > 1 and (rows := mean_curve(group)):
        curve = [(row[STEP], row[MEAN], row[TIME]) for row in rows]
        mean = [(f"mean of {len(group.ok)}", thinned(curve, most))]
        found.append(trace(metric, mean, group.label, colour, dash, 2.5))
        found[0]["showlegend"] = False
        found[1]["name"] = named + lost
    if ends := [(group.told_apart(r), [curve_of(r)[-1]]) for r in runs if r.status == "diverged"]:
        crosses = trace(metric, ends, f"{group.label}, diverged", colour, dash, 1.0)
        marker = {"symbol": "x", "size": 10, "color": colour}
        found.append({**crosses, "mode": "markers", "marker": marker, "showlegend": False})
    return [{**each, **parts} for each in found]


def curve_of(r: RunResult) -> list[Point]:
    return [(step, loss, ms / 1000) for step, loss, ms in r.curve]


def trace(
    metric: Metric,
    told: Sequence[tuple[str, Curve]],
    name: str,
    colour: str,
    dash: str,
    width: float,
) -> Part:
    """Curves in one trace, a gap after each. told: which run it is, and its points. "times" is not
    plotly's: what x is where the axis is of time."""
    flat = [(which, point) for which, points in told for point in (*points, None)][:-1]
    steps = [point and point[0] for _, point in flat]
    times = [point and time_shown(point) for _, point in flat]
    hovers = [point and [text(which, 60), point[0], time_shown(point)] for which, point in flat]
    timed = any(time is not None for time in times)
    over_time = "<br>after %{customdata[2]} s of training" if timed else ""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": steps,
        "y": [point and round(metric.sign * point[1], DECIMALS) for _, point in flat],
        "times": times,
        "customdata": hovers,
        "hovertemplate": f"{text(name, 120)}, %{{customdata[0]}}<br>step %{{customdata[1]}}"
        f"{over_time}<br>{text(metric.words)} %{{y}}<extra></extra>",
        "line": {"color": colour, "dash": dash, "width": width},
    }


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
    """Which block, where there are several; and over what, where all runs tell their times."""
    look: Part = {"x": 0, "xanchor": "left", "yanchor": "bottom", "borderwidth": 1}
    look |= {"bgcolor": "rgba(0,0,0,0)", "bordercolor": BAND, "font": {"size": SIZE, "color": INK}}
    look |= {"pad": {"t": 0, "b": 6, "l": 0, "r": 0}, "y": 1}
    if timed:
        over = {"steps": [t["x"] for t in data], "training time (s)": [t["times"] for t in data]}
        buttons = [
            {"label": words, "method": "update", "args": [{"x": x}, {"xaxis.title.text": words}]}
            for words, x in over.items()
        ]
        yield {**look, "type": "buttons", "direction": "right", "buttons": buttons}
    if len(blocks) > 1:
        buttons = []
        for block in blocks:
            shown = {"visible": [owner is block for owner in owners]}
            axes = {"yaxis.range": limits(metric, block), "xaxis.autorange": True}
            buttons.append({"label": named(block), "method": "update", "args": [shown, axes]})
        place = {"pad": {"t": 0, "b": 44 if timed else 6, "l": 0, "r": 0}}
        chosen = {"active": blocks.index(first), "buttons": buttons}
        yield {**look, **place, "type": "dropdown", "direction": "down", **chosen}


def named(block: Block) -> str:
    """A block in few words."""
    is_stage = block.groups[0].by_seed
    words = f"{block.name}, {block.num_iterations} {block.counted}" if is_stage else block.title
    return text(words, MOST_NAME)


def caption(metric: Metric, blocks: Sequence[Block], timed: bool, n: int) -> str:
    choice = " The menu chooses the stage." if len(blocks) > 1 else ""
    early = "losses lie above" if metric.sign > 0 else "values lie below"
    return (
        f"Thin: one run; thick: the mean of an arm's runs that finished (n beside its name, {n} in"
        f" all); ✕: where a run diverged.{choice} Early {early} the axis: a double click shows all,"
        " and a rectangle drawn with the mouse enlarges."
    )
