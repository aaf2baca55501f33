"""What do the pictures of a page show?  From the values of an experiment to plotly's traces.

The same values as `figures` draws; nothing is read, decided or written here, and nothing is left to
the page to compute. Whatever comes from a folder is escaped: plotly takes some tags for its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation import stats
from ablation.report.chapters import is_budget
from ablation.report.chart_of_curves import curves
from ablation.report.chart_of_verdict import verdict
from ablation.report.charting import (
    BAND,
    INK,
    MOST_NAME,
    NO_AXIS,
    SIZE,
    Part,
    axis,
    axis_title,
    hover,
    layout,
    line,
    lines_in,
    points,
    spread,
    text,
    words_at,
    wrapped,
)
from ablation.report.comparisons import (
    ArmRuns,
    Block,
    Contrast,
    WithinSeeds,
    blocks_of,
    contrast,
    reference,
    within_seeds,
)
from ablation.report.content import Chart, level, span
from ablation.report.drawing import BETTER, WORSE, NothingToDraw, signed
from ablation.report.evidence import Compared, Evidence
from ablation.report.figures import MOST, about_block, alone
from ablation.runs.run import RunResult, machine_seconds
from ablation.study.study import Metric

# ---------------------------------------------------------------------------------------------
# Arms within seeds

LANE, TITLE_LINE, GAP, FOOT = 42, 18, 46, 84  # heights in px
LOW = 0.2  # of a lane: how far below its middle points lie, as words stand above
ALPHA = 0.05  # of intervals that decide nothing, as in the report's tables


@dataclass(frozen=True)
class Lane:
    """An arm in a panel: what it is compared with, and what comes of it."""

    group: ArmRuns
    base: ArmRuns | None
    found: WithinSeeds | None
    told: Contrast

    @property
    def interval(self) -> tuple[float, float] | None:
        """Welch's; none where runs diverged, as those that finished are only the better ones."""
        c = self.told.comparison
        if self.told.ranked or c is None or c.ci_low is None or c.ci_high is None:
            return None
        return c.ci_low, c.ci_high

    @property
    def ends(self) -> list[float]:
        """All that its panel has to show."""
        mean = [self.found.improvement] if self.found else []
        return [*mean, *(self.interval or ()), *(improvement for _, improvement, _ in self.runs)]

    @property
    def runs(self) -> list[tuple[RunResult, float, float]]:
        """Of each finished run: its improvement, and the loss that it is held against."""
        if self.base is None or self.found is None:
            return []
        if not self.base.by_seed:
            mean = stats.mean_sd(self.base.losses)[0]
            return [(r, mean - r.final_loss, mean) for r in self.group.ok]
        losses = {r.run.seed: r.final_loss for r in self.base.ok}
        shared = [r for r in self.group.ok if r.run.seed in losses]
        return [(r, losses[r.run.seed] - r.final_loss, losses[r.run.seed]) for r in shared]


def effects(evidence: Compared) -> Chart:
    """The improvement of every arm, a panel for each stage and length: each seed that it shares
    with what it is compared with, their mean and Welch's interval. Of logs each run against the
    baseline's mean. Raises NothingToDraw where nothing can be compared."""
    panels = [(b, reference(evidence, b), lanes_of(evidence, b)) for b in blocks_of(evidence)]
    panels = [panel for panel in panels if any(lane.found for lane in panel[2])]
    if not panels:
        raise NothingToDraw("no arm has a finished run to compare with a baseline's of its seed")
    if (n := sum(len(lanes) for _, _, lanes in panels)) > MOST:
        raise NothingToDraw(f"{n} configurations are too many to be told apart")
    titles = ["<br>".join(panel_title(block, base)) for block, base, _ in panels]
    heights = [
        TITLE_LINE * lines_in(title) + LANE * len(lanes) + GAP
        for title, (_, _, lanes) in zip(titles, panels, strict=True)
    ]
    whole, top = layout(sum(heights) + FOOT), 1.0
    whole["margin"] = {"l": 8, "r": 16, "t": 4, "b": FOOT - 4}
    notes, data = [], []
    for k, ((block, _, lanes), title) in enumerate(zip(panels, titles, strict=True)):
        head = TITLE_LINE * lines_in(title) / sum(heights)
        foot = top - heights[k] / sum(heights)
        x, y = (name + str(k + 1) * (k > 0) for name in "xy")
        last = block is panels[-1][0]
        words = axis_title("improvement", evidence.metric) if last else ""
        reach = spread([0.0, *(end for lane in lanes for end in lane.ends)])
        whole[f"{x[0]}axis{x[1:]}"] = axis(words, anchor=y, range=reach, nticks=7)
        domain = [foot + GAP / sum(heights), top - head]
        rows = {"domain": domain, "range": [len(lanes) - 0.5, -0.5], "anchor": x}
        whole[f"{y[0]}axis{y[1:]}"] = {**NO_AXIS, **rows}
        notes.append(words_at(0, top - head, title, font={"size": SIZE}))
        notes += [lane_note(n, lane, y) for n, lane in enumerate(lanes)]
        data += [{**t, "xaxis": x, "yaxis": y} for t in panel_traces(evidence.metric, lanes)]
        top = foot
    whole["annotations"] = notes
    return Chart(
        "effects", "Arms, seed by seed", effects_caption(evidence, panels), once(data), whole
    )


def lanes_of(evidence: Compared, block: Block) -> list[Lane]:
    """The arms of a block; of logs, where nothing pairs runs, the baseline too."""
    base = reference(evidence, block)
    groups = [g for g in block.groups if not g.arm.is_baseline or not g.by_seed]
    return [Lane(g, base, within_seeds(base, g), contrast(block, g, ALPHA)) for g in groups]


def panel_title(block: Block, base: ArmRuns | None) -> Iterator[str]:
    """The name of a block, then what it is and what its arms are compared with."""
    name, _, about = block.title.partition(" (")
    yield "<br>".join(f"<b>{line}</b>" for line in wrapped(name, 46).split("<br>"))
    words = [about.removesuffix(")")]
    if base and base is block.baseline and base.by_seed:
        words.append(f"baseline n = {len(base.losses)}" + (f" ✕ {base.lost}" if base.lost else ""))
    words += [line for line in about_block(block, base) if not line.startswith("best:")]
    yield from (wrapped("; ".join(filter(None, words))),) if any(words) else ()


def lane_note(row: int, lane: Lane, y: str) -> Part:
    """The words above an arm's points; the whole name where the mouse is."""
    group, words = lane.group, [f"n = {len(lane.group.losses)}"]
    if lane.found:
        n = len(lane.found.arm)
        few = group.by_seed and n < len(group.losses)
        words = [signed(lane.found.improvement), words[0] + (f", {n} shared" if few else "")]
    elif group.losses and lane.base is not None and not group.arm.is_baseline:
        own = not alone(lane.base, group)
        words.append("the zero line" if own else "no seed to compare")
    if group.lost:
        words.append(f"✕ {group.lost}" if len(group.lost) <= 22 else f"✕ {lost_of(group)} lost")
    shown = f"{text(group.label, MOST_NAME)}: {text(', '.join(words))}"
    whole = hover(text(group.label), text(group.arm.label), text(group.lost and f"✕ {group.lost}"))
    place = {"xref": "paper", "yref": y, "yanchor": "middle", "yshift": 11}
    return words_at(0, row, shown, hovertext=whole, font={"size": SIZE - 1}, **place)


def lost_of(group: ArmRuns) -> int:
    return len(group.runs) - len(group.ok)


def panel_traces(metric: Metric, lanes: Sequence[Lane]) -> Iterator[Part]:
    drawn = [
        (row, lane) for row, lane in enumerate(lanes) if lane.found or lane.group.arm.is_baseline
    ]
    ends: list[float | None] = [h for row, _ in drawn for h in (row - 0.05, row + 0.5, None)]
    zeros = [None if end is None else 0 for end in ends]
    yield line(zeros, ends, INK, "what arms are compared with")
    marker = {"symbol": "circle", "size": 8, "color": BAND, "opacity": 0.65}
    x = [improvement for _, lane in drawn for _, improvement, _ in lane.runs]
    if x:
        y = [row + LOW + apart(lane, k) for row, lane in drawn for k in range(len(lane.runs))]
        told = [run_words(metric, lane, *run) for _, lane in drawn for run in lane.runs]
        yield points(x, y, told, "one seed" if lanes[0].group.by_seed else "one run", marker)
    for about, colour in (("better", BETTER), ("worse", WORSE)):
        found = [(row, lane, lane.found) for row, lane in drawn if lane.found]
        mine = [each for each in found if (each[2].improvement > 0) == (about == "better")]
        if mine:
            yield means(metric, mine, f"mean: {about}, {level(ALPHA)} interval", colour)


def apart(lane: Lane, k: int) -> float:
    """So that equal losses stay countable."""
    return 0.09 * (k % 3 - 1) if len(lane.runs) > 2 else 0.0


def run_words(metric: Metric, lane: Lane, r: RunResult, improvement: float, against: float) -> str:
    of = "baseline" if lane.base is not None and lane.base.arm.is_baseline else "compared with"
    return hover(
        f"{text(lane.group.label, 120)}, {text(lane.group.told_apart(r), 60)}",
        f"{of}{'' if lane.group.by_seed else ' mean'}: {metric.text(against)}",
        f"arm: {metric.text(r.final_loss)}",
        f"improvement {text(metric.delta(improvement))}",
    )


def means(
    metric: Metric, mine: Sequence[tuple[int, Lane, WithinSeeds]], about: str, colour: str
) -> Part:
    """A bar at the mean of each arm, with Welch's interval where there is one."""
    reach, told = [], []
    for _, lane, found in mine:
        mean, ends = found.improvement, lane.interval
        reach.append(None if ends is None else ends[1] - mean)
        within = f"{level(ALPHA)} interval {span(*ends)} (Welch)" if ends else "no interval"
        name, n = text(lane.group.label, 120), f"n = {len(found.arm)}"
        told.append(hover(name, f"improvement {text(metric.delta(mean))}, {n}", within))
    marker = {"symbol": "line-ns", "size": 16, "color": colour}
    marker |= {"line": {"width": 3.5, "color": colour}}
    x = [found.improvement for _, _, found in mine]
    trace = points(x, [row + LOW for row, *_ in mine], told, about, marker)
    if any(end is not None for end in reach):
        trace["error_x"] = {"type": "data", "array": reach, "color": colour}
        trace["error_x"] |= {"thickness": 2, "width": 5}
    return trace


def once(data: Sequence[Part]) -> tuple[Part, ...]:
    """Each name in the legend once, for all panels."""
    seen: set[str] = set()
    found = []
    for trace in data:
        name = trace["name"]
        found.append({**trace, "legendgroup": name, "showlegend": bool(name) and name not in seen})
        seen.add(name)
    return tuple(found)


def effects_caption(evidence: Compared, panels: Sequence[tuple]) -> str:
    by_seed = all(lane.group.by_seed for _, _, lanes in panels for lane in lanes)
    point = "a seed that arm and baseline share" if by_seed else "a run against the baseline's mean"
    return (
        f"Right of the line is better. A point is {point}; n counts an arm's runs that finished. "
        f"Intervals are Welch's ({level(ALPHA)}), not corrected for the number of arms"
        + ("; only the final validation can confirm one." if by_seed else ".")
    )


# ---------------------------------------------------------------------------------------------
# Hours

UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def costs(evidence: Evidence) -> Chart:
    """Machine time, stage after stage up to the budget: of attempts with an outcome, and of those
    that failed. Raises NothingToDraw before the first attempt has ended."""
    results = evidence.records.results
    stages = sorted({r.run.stage for r in results})
    total_s = machine_seconds(results)
    if total_s <= 0:
        raise NothingToDraw("no attempt has ended")
    budget = evidence.standing.experiment.budget_hours
    budget_s = 3600 * budget if is_budget(budget) else None
    unit, scale = next(u for u in UNITS if max(total_s, budget_s or 0) >= 1.5 * u[1] or u[1] == 1)
    rows, begun = [], 0.0
    for stage in stages:
        mine = [r for r in results if r.run.stage == stage]
        good = machine_seconds([r for r in mine if r.has_outcome])
        rows.append((evidence.stage_name(stage), begun, good, machine_seconds(mine) - good, mine))
        begun += good + rows[-1][3]
    names = [wrapped(name, 16) for name, *_ in rows]
    data = list(stage_bars(rows, names, unit, scale))
    place = {"xref": "x", "yref": "y", "yanchor": "middle", "xshift": 4}
    sums = [(begun + good + lost, good + lost) for _, begun, good, lost, _ in rows]
    notes = [
        words_at(end / scale, row, f"{length / scale:.2f}", font={"size": SIZE - 1}, **place)
        for row, (end, length) in enumerate(sums)
    ]
    shapes = []
    if budget_s is not None:
        ends = {"x0": budget_s / scale, "x1": budget_s / scale, "y0": 0, "y1": 1, "yref": "paper"}
        shapes = [{"type": "line", "line": {"color": INK, "dash": "dash", "width": 1.5}, **ends}]
        words = f"budget {budget_s / scale:g} {unit}"
        side = {"xref": "x", "xanchor": "right", "xshift": -4, "yanchor": "top"}
        notes += [words_at(budget_s / scale, 1, words, font={"size": SIZE - 1}, **side)]
    most = max(begun, budget_s or 0) / scale
    x = axis(f"machine time, {unit}", range=[0, 1.03 * most], nticks=8)
    y = axis(autorange="reversed", ticks="", showgrid=False, showline=False)
    parts = {"xaxis": x, "yaxis": y, "shapes": shapes, "annotations": notes}
    whole = layout(130 + 44 * len(rows), barmode="overlay", bargap=0.35, **parts)
    return Chart("costs", "What it cost", costs_caption(evidence), tuple(data), whole)


def stage_bars(
    rows: Sequence[tuple], names: Sequence[str], unit: str, scale: float
) -> Iterator[Part]:
    """Bars of each stage that begin where the one before it ended."""
    failed = {
        "shape": "/",
        "fgcolor": WORSE,
        "bgcolor": "rgba(0,0,0,0)",
        "solidity": 0.4,
        "size": 7,
    }
    kinds = (
        ("attempts with an outcome", {"color": BETTER}, True),
        ("failed attempts", {"color": WORSE, "pattern": failed}, False),
    )
    for about, marker, outcome in kinds:
        lengths = [good if outcome else lost for _, _, good, lost, _ in rows]
        if not any(lengths):
            continue
        begun = [at + (0 if outcome else good) for _, at, good, _, _ in rows]
        counts = [sum(r.has_outcome == outcome for r in mine) for *_, mine in rows]
        told = [
            hover(text(name), f"{n} {about}: {length / scale:.2f} {unit}")
            for (name, *_), n, length in zip(rows, counts, lengths, strict=True)
        ]
        yield {
            "type": "bar",
            "orientation": "h",
            "name": about,
            "y": list(names),
            "base": [b / scale for b in begun],
            "x": [length / scale for length in lengths],
            "marker": marker,
            "hovertext": told,
            "hoverinfo": "text",
        }


def costs_caption(evidence: Evidence) -> str:
    n, failed = (
        len(evidence.records.results),
        sum(not r.has_outcome for r in evidence.records.results),
    )
    words = (
        f"Every attempt is paid for (n = {n}, of which {failed} failed); each stage's bar begins"
    )
    return f"{words} where the one before it ended. Start-up and validation are included."


# ---------------------------------------------------------------------------------------------
# All of them, in the order of the page

CHARTS: Mapping[str, Callable[[Any], Chart]] = {
    "verdict": verdict,
    "effects": effects,
    "curves": curves,
    "costs": costs,
}
