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
    GROUND,
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
from ablation.report.layers import layers
from ablation.runs.run import RunResult, duration, machine_seconds, spent_of
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
    looked_at: bool  # again and again, as its runs came: a nominal interval would say too much

    @property
    def interval(self) -> tuple[float, float] | None:
        """Welch's; none where runs diverged, as those that finished are only the better ones."""
        c = self.told.comparison
        if self.looked_at or self.told.ranked or c is None or c.ci_low is None or c.ci_high is None:
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
        if self.base is None or (self.base.by_seed and not self.found):
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
    whole["margin"] = {"l": 8, "r": 24, "t": 4, "b": FOOT - 4}
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
    by_seed = all(lane.group.by_seed for _, _, lanes in panels for lane in lanes)
    title = "Arms, seed by seed" if by_seed else "Groups, run by run"
    return Chart("effects", title, effects_caption(evidence, panels), once(data), whole)


def lanes_of(evidence: Compared, block: Block) -> list[Lane]:
    """The arms of a block; of logs, where nothing pairs runs, the baseline too."""
    base = reference(evidence, block)
    groups = [g for g in block.groups if not g.arm.is_baseline or not g.by_seed]
    looked_at = isinstance(evidence, Evidence) and evidence.is_sequential and block.stage == 4
    return [
        Lane(g, base, within_seeds(base, g), contrast(block, g, ALPHA), looked_at) for g in groups
    ]


def panel_title(block: Block, base: ArmRuns | None) -> Iterator[str]:
    """The name of a block, then what it is and what its arms are compared with."""
    name, _, about = block.title.partition(" (")
    yield "<br>".join(f"<b>{line}</b>" for line in wrapped(name, 46).split("<br>"))
    words = [about.removesuffix(")")]
    if base and base is block.baseline and base.by_seed:
        words.append(f"baseline n = {len(base.losses)}" + (f", ✕ {base.lost}" if base.lost else ""))
    words += [line for line in about_block(block, base) if not line.startswith(("best:", "arm:"))]
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
    return words_at(0, row, shown, hovertext=whole, font={"size": SIZE - 1}, **GROUND, **place)


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
    looked_at = any(lane.looked_at for _, _, lanes in panels for lane in lanes)
    confirms = isinstance(evidence, Evidence) and bool(evidence.standing.stages[-1].most_pairs)
    return (
        f"Right of the line is better. A point is {point}; n counts an arm's runs that finished. "
        f"Intervals are Welch's ({level(ALPHA)}), not corrected for the number of arms"
        + ("; only the final validation can confirm one" if confirms else "")
        + (", by the intervals of its looks: see the first picture." if looked_at else ".")
    )


# ---------------------------------------------------------------------------------------------
# Hours

UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
FAR = 20  # times what was spent: a budget beyond is no line, as the bars would be none


@dataclass(frozen=True)
class Spent:
    """Machine time of a stage, in s."""

    stage: str
    begun: float  # what the stages before it took
    outcomes: float  # attempts with an outcome
    failed: float
    attempts: tuple[RunResult, ...]

    @property
    def end(self) -> float:
        return self.begun + self.outcomes + self.failed


def spent_by_stage(evidence: Evidence) -> list[Spent]:
    found: list[Spent] = []
    for stage in sorted({r.run.stage for r in evidence.records.results}):
        mine = tuple(r for r in evidence.records.results if r.run.stage == stage)
        outcomes = machine_seconds([r for r in mine if r.has_outcome])
        failed, begun = machine_seconds(mine) - outcomes, found[-1].end if found else 0.0
        found.append(Spent(evidence.stage_name(stage), begun, outcomes, failed, mine))
    return found


def costs(evidence: Compared) -> Chart:
    """Machine time, stage after stage up to the budget: of attempts with an outcome, and of those
    that failed. Raises NothingToDraw before the first attempt has ended, and for logs."""
    if not isinstance(evidence, Evidence):
        raise NothingToDraw("logs do not tell what was paid for")
    rows, budget = spent_by_stage(evidence), evidence.standing.experiment.budget_hours
    if not rows or not rows[-1].end > 0:
        raise NothingToDraw("no attempt has ended")
    total = rows[-1].end
    budget_s = 3600 * budget if is_budget(budget) and 3600 * budget < FAR * total else 0.0
    most = max(total, budget_s)
    unit, scale = next(each for each in UNITS if most >= 1.5 * each[1] or each[1] == 1)
    notes, shapes, small = [], [], {"size": SIZE - 1}
    for n, row in enumerate(rows):
        beside = budget_s if 0 < budget_s - row.end < 0.1 * most else row.end  # not on its line
        words = f"{(row.outcomes + row.failed) / scale:.2f}"
        place = {"xref": "x", "yref": "y", "yanchor": "middle", "xshift": 4}
        notes.append(words_at(beside / scale, n, words, font=small, **place))
    if budget_s:
        at = budget_s / scale
        style = {"color": INK, "dash": "dash", "width": 1.5}
        ends = {"x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({"type": "line", "line": style, **ends})
        side = {"xref": "x", "xanchor": "right", "xshift": -4, "yanchor": "top"}
        notes.append(words_at(at, 1, f"budget {at:g} {unit}", font=small, **side))
    x = axis(f"machine time, {unit}", range=[0, 1.1 * most / scale], nticks=8)
    y = axis(autorange="reversed", ticks="", showgrid=False, showline=False)
    parts = {"xaxis": x, "yaxis": y, "shapes": shapes, "annotations": notes}
    whole = layout(130 + 44 * len(rows), barmode="overlay", bargap=0.35, **parts)
    data = tuple(stage_bars(rows, unit, scale))
    return Chart("costs", "What it cost", costs_caption(evidence), data, whole)


def stage_bars(rows: Sequence[Spent], unit: str, scale: float) -> Iterator[Part]:
    """Bars of each stage that begin where the one before it ended."""
    solid = {"color": BETTER}
    hatch = {"shape": "/", "fgcolor": WORSE, "bgcolor": "rgba(0,0,0,0)", "solidity": 0.4, "size": 7}
    for about, outcome, marker in (
        ("attempts with an outcome", True, solid),
        ("failed attempts", False, {"color": WORSE, "pattern": hatch}),
    ):
        lengths = [row.outcomes if outcome else row.failed for row in rows]
        if not any(lengths):
            continue
        counts = [sum(r.has_outcome == outcome for r in row.attempts) for row in rows]
        yield {
            "type": "bar",
            "orientation": "h",
            "name": about,
            "y": [wrapped(row.stage, 16) for row in rows],
            "base": [(row.begun + (0 if outcome else row.outcomes)) / scale for row in rows],
            "x": [length / scale for length in lengths],
            "marker": marker,
            "hovertext": [
                hover(text(row.stage), f"{n} {about}: {length / scale:.2f} {unit}")
                for row, n, length in zip(rows, counts, lengths, strict=True)
            ],
            "hoverinfo": "text",
        }


def costs_caption(evidence: Evidence) -> str:
    results, budget = evidence.records.results, evidence.standing.experiment.budget_hours
    failed = sum(not r.has_outcome for r in results)
    spent_s = machine_seconds(results)
    spent = spent_of(spent_s, budget) if is_budget(budget) else duration(spent_s)
    n = f"n = {len(results)} attempts, of which {failed} failed"
    return (
        f"{spent} spent. Every attempt is paid for, with start-up and validation ({n}); each"
        " stage's bar begins where the one before it ended."
    )


# ---------------------------------------------------------------------------------------------
# All of them, in the order of the page

CHARTS: Mapping[str, Callable[[Any], Chart]] = {
    "verdict": verdict,
    "effects": effects,
    "layers": layers,
    "curves": curves,
    "costs": costs,
}
