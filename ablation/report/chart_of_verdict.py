"""What do pairs, looks and the interval that counts look like?  The chart of a page's first screen.

The values of `verdict`, the figure, in one small picture: each seed's difference, and beside it
what was known when it came. Only plotly's terms are made here, as in `charts`.
"""

from collections.abc import Sequence

from ablation.plan.looks import Look
from ablation.report.charting import (
    BAND,
    INK,
    SIZE,
    TARGET,
    Part,
    axis,
    axis_title,
    band,
    hover,
    layout,
    line,
    points,
    spread,
    text,
    words_at,
)
from ablation.report.comparisons import Block, final_block
from ablation.report.content import Chart, level, span
from ablation.report.drawing import BETTER, WORSE, NothingToDraw, signed
from ablation.report.evidence import Compared, Evidence
from ablation.report.validation import BY, exclusion, planned, primary_interval
from ablation.report.verdict import pairs_of
from ablation.runs.run import RunResult
from ablation.study.profiles import Design
from ablation.study.study import Metric

UNDER = -1  # of traces, among which points are 0
BESIDE = 0.16  # of a place on the axis: how far looks stand to the right of their last pair


def verdict(evidence: Compared) -> Chart:
    """Each pair and each look at them; of a null result what it excludes. Raises NothingToDraw
    where there is no pair, and for logs."""
    if not isinstance(evidence, Evidence):
        raise NothingToDraw("logs have no final validation: nothing was registered before them")
    if not evidence.standing.stages[-1].most_pairs:
        raise NothingToDraw("runs by hand have no final validation")
    block = final_block(evidence)
    if block is None:
        raise NothingToDraw("the final validation has no pair with an outcome on both sides yet")
    looks, one_test = evidence.looks, 4 in evidence.decisions and not evidence.is_sequential
    n = len(pairs_of(block))
    judged = looks_told(evidence) if looks else one_told(evidence, block, n + 1) if one_test else []
    low, high = limits(evidence, block, one_test)
    beyond = exclusion(evidence, block)
    across = (0.5, n + (1.5 if one_test and judged else 0.5))
    data = [hatched(across, (low, high), beyond[0])] if beyond else []
    data += [*pairs_told(evidence.metric, block, (low, high)), *judged]
    data += lines_across(evidence.design, across)
    about = caption(evidence, len(differences(block)), n, bool(one_test and judged), beyond)
    x = {**axis("pairs, in the order of their seeds"), **ticks(n, bool(one_test and judged))}
    x |= {"range": [*across], "showgrid": False}
    y = axis(axis_title("improvement", evidence.metric), range=[low, high], tickformat="+.4~f")
    d, words = evidence.design, f"no meaningful effect: within ±{evidence.design.delta_eq:g}"
    shapes = []
    if d.noise_known:
        shapes = [band(-d.delta_eq, d.delta_eq, words), on_target(d, (low, high))]
    notes = on_excluded((low, high), beyond[0]) if beyond else []
    whole = layout(440, xaxis=x, yaxis=y, shapes=shapes, annotations=notes)
    return Chart("verdict", "Every pair, and what it showed", about, tuple(data), whole)


def on_target(d: Design, ends: tuple[float, float]) -> Part:
    """The region of an effect worth having, from the line of the target on."""
    beyond = ends[1] + 10 * (ends[1] - ends[0])  # for who zooms out
    return {**band(d.delta_target, beyond, "target met", TARGET), "showlegend": False}


def differences(block: Block) -> list[float]:
    """Of the pairs of which both finished."""
    return [
        b.final_loss - a.final_loss for _, b, a in pairs_of(block) if b.status == a.status == "ok"
    ]


def ticks(n: int, with_mean: bool) -> Part:
    every = 1 if n <= 12 else 2 if n <= 24 else 5 if n <= 60 else 10
    at = [k for k in range(1, n + 1) if k % every == 0 or (k == 1 and every != 2)]
    names = [str(k) for k in at]
    if with_mean:
        at, names = [*at, n + 1], [*names, "mean"]
    return {"tickmode": "array", "tickvals": at, "ticktext": names}


def limits(evidence: Evidence, block: Block, one_test: bool) -> tuple[float, float]:
    """What the axis shows: every pair, the terms, and the intervals of the later half of the looks.
    Early ones are many times as wide."""
    d, looks = evidence.design, [look for look in evidence.looks if look.low is not None]
    values = [0.0, *differences(block)]
    values += [-d.delta_eq, d.delta_eq, d.delta_target] if d.noise_known else []
    values += [look.improvement for look in evidence.looks if look.improvement is not None]
    for look in looks[len(looks) // 2 :]:
        values += [end for end in (look.low, look.high) if end is not None]
    if one_test:
        interval, _ = primary_interval(evidence, planned(evidence, block))
        values += interval or ()
    if beyond := exclusion(evidence, block):
        values += [-1.8 * beyond[0], 1.8 * beyond[0]]  # room for the words
    low, high = spread(values)
    return low, high


# ---------------------------------------------------------------------------------------------
# Pairs


def pairs_told(metric: Metric, block: Block, ends: tuple[float, float]) -> list[Part]:
    """A circle for each pair; a cross, at the end where it counts, where one of it diverged."""
    pairs, found = pairs_of(block), []
    both = [pair for pair in pairs if pair[1].status == pair[2].status == "ok"]
    size = 9 if len(pairs) <= 30 else 6
    marker = {"symbol": "circle-open", "size": size, "color": INK, "line": {"width": 1.5}}
    if both:
        x = [k for k, _, _ in both]
        told = [pair_words(metric, b, a) for _, b, a in both]
        found.append(points(x, differences(block), told, "a pair's difference", marker))
    low, high = ends
    for about, y, colour, lost in (
        ("the arm diverged", low, WORSE, [p for p in pairs if p[2].status == "diverged"]),
        ("the baseline diverged", high, BETTER, [p for p in pairs if p[1].status == "diverged"]),
    ):
        if lost:
            cross = {"symbol": "x", "size": 11, "color": colour}
            told = [pair_words(metric, b, a) for _, b, a in lost]
            x = [k for k, _, _ in lost]
            found.append(points(x, [y] * len(x), told, about, cross, cliponaxis=False))
    return found


def pair_words(metric: Metric, base: RunResult, arm: RunResult) -> str:
    lines = [f"seed {base.run.seed}"]
    for name, r in (("baseline", base), (arm.run.arm.label, arm)):
        value = metric.text(r.final_loss) if r.status == "ok" else r.status
        lines.append(f"{text(name, 60)}: {value}")
    if base.status == arm.status == "ok":
        delta = metric.delta(base.final_loss - arm.final_loss)
        lines.append(f"difference {text(delta)}")
    return hover(*lines)


# ---------------------------------------------------------------------------------------------
# Intervals


def looks_told(evidence: Evidence) -> list[Part]:
    """Every look: its improvement, the interval of the verdict and that of equivalence."""
    looks, alpha, metric = evidence.looks, evidence.design.alpha, evidence.metric
    known = [look for look in looks if look.improvement is not None]
    sure, ranked = ([k for k in known if (k.low is None) == none] for none in (False, True))
    thin, found = min(1.0, 20 / len(looks)), []
    if sure:
        found.append(for_equivalence(sure, alpha, 8 * thin))
        about = f"a look: improvement, {level(alpha)} interval"
        found.append(at_looks(sure, metric, alpha, about, {"color": BETTER, "size": 8 * thin + 1}))
        bar = {"thickness": 2 * thin, "width": 4 * thin, "color": BETTER}
        reach = [look.reach for look in sure]
        found[-1]["error_y"] = {"type": "data", "array": reach, **bar}
    if ranked:
        square = {"symbol": "square-open", "size": 9, "color": BETTER, "line": {"width": 2}}
        about = "improvement of runs that finished; no interval"
        found.append(at_looks(ranked, metric, alpha, about, square))
    fell = next((look for look in looks if look.verdict), None)
    if fell and fell.improvement is not None:
        ring = {"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 2}}
        at, about = [fell.n + BESIDE], "the look at which the verdict fell"
        found.append(points(at, [fell.improvement], [], about, ring, hoverinfo="skip"))
    return found


def at_looks(looks: Sequence[Look], metric: Metric, alpha: float, about: str, marker: Part) -> Part:
    x, y = [look.n + BESIDE for look in looks], [look.improvement for look in looks]
    return points(x, y, [look_words(look, metric, alpha) for look in looks], about, marker)


def for_equivalence(looks: Sequence[Look], alpha: float, width: float) -> Part:
    x = [at for look in looks for at in (look.n + BESIDE, look.n + BESIDE, None)]
    y = [end for look in looks for end in (look.eq_low, look.eq_high, None)]
    about = f"a look: {level(2 * alpha)} interval, for equivalence"
    return line(x, y, BETTER, about, line={"width": width}, opacity=0.5)


def look_words(look: Look, metric: Metric, alpha: float) -> str:
    assert look.improvement is not None
    lines = [f"look at {look.n} of at most {look.n_max} pairs"]
    lines += [f"improvement {text(metric.delta(look.improvement))}"]
    if look.low is not None:
        lines += [f"{level(alpha)} interval {span(look.low, look.high)}"]
        lines += [f"{level(2 * alpha)} interval {span(look.eq_low, look.eq_high)}"]
    lines += [
        f"by {BY[look.decides.name]}",
        text(", ".join(filter(None, (look.verdict, look.label)))),
    ]
    return hover(*lines)


def one_told(evidence: Evidence, block: Block, at: int) -> list[Part]:
    """The improvement and the interval of the only test."""
    found, metric = planned(evidence, block), evidence.metric
    interval, kind = primary_interval(evidence, found)
    if found.comparison is None:
        return []
    improvement = found.comparison.improvement
    words = [f"improvement {text(metric.delta(improvement))}"]
    words += [f"{kind} interval {span(*interval)}"] if interval else ["no interval"]
    about = f"improvement, Welch's {kind} interval" if interval else "improvement, no interval"
    marker = {"color": BETTER, "size": 10, "symbol": "circle" if interval else "square-open"}
    part = points([at], [improvement], [hover(*words)], about, marker)
    if interval:
        style = {"color": BETTER, "thickness": 2.5, "width": 7}
        part["error_y"] = {"type": "data", "array": [interval[1] - improvement], **style}
    return [part]


# ---------------------------------------------------------------------------------------------
# What matters, and what is excluded


def lines_across(d: Design, xs: tuple[float, float]) -> list[Part]:
    """Zero and the target, under all points."""
    found = [line(xs, (0, 0), INK, zorder=UNDER)]
    if d.noise_known:
        about, style = f"target: {d.delta_target:g}", {"dash": "dash", "width": 2}
        found.append(line(xs, [d.delta_target] * 2, TARGET, about, line=style, zorder=UNDER))
    return found


def on_excluded(ends: tuple[float, float], beyond: float) -> list[Part]:
    """Words in the regions that a null result excludes."""
    place = {"yref": "y", "xanchor": "right", "yanchor": "middle", "xshift": -6}
    notes = []
    for end, edge in zip(ends, (-beyond, beyond), strict=True):
        words = f"<b>excluded:</b> {'above' if edge > 0 else 'below'} {signed(edge)}"
        notes.append(words_at(1, (end + edge) / 2, words, font={"size": SIZE - 1}, **place))
    return notes


def hatched(xs: tuple[float, float], ends: tuple[float, float], beyond: float) -> Part:
    """The regions beyond an interval, up to the ends of the axis."""
    (left, right), (low, high) = xs, ends
    x = [left, right, right, left, left, None, left, right, right, left, left]
    y = [beyond, beyond, high, high, beyond, None, -beyond, -beyond, low, low, -beyond]
    pattern = {
        "shape": "/",
        "fgcolor": BAND,
        "bgcolor": "rgba(0,0,0,0)",
        "size": 9,
        "solidity": 0.12,
    }
    style = {"width": 1, "dash": "dot"}
    return line(x, y, BAND, line=style, fill="toself", fillpattern=pattern, zorder=UNDER - 1)


def caption(
    evidence: Evidence, both: int, n: int, one_test: bool, beyond: tuple[float, str] | None
) -> str:
    sign = "baseline - arm" if evidence.metric.sign > 0 else "arm - baseline"
    words = [f"Circles: {sign} of one seed, so that above zero the arm is better (n = {n} pairs"]
    words[0] += ")." if both == n else f", of {both} both runs finished)."
    if any(look.low is not None for look in evidence.looks):
        n = len(evidence.looks)
        whose = f"each of the {n} looks knew from the pairs so far" if n > 1 else "the look knew"
        early = "; early ones may reach beyond the picture" if n > 1 else ""
        allow = "sequential intervals, which allow for looking often"
        words.append(f"Bars: what {whose} ({allow}){early}.")
    elif evidence.looks:
        words.append("A run diverged, so ranks decide at each look, and there is no interval.")
    elif evidence.changed:
        words.append("No decision can be shown: see the top.")
    elif not one_test:
        words.append("Nothing is concluded from them yet.")
    if beyond:
        words.append(f"Hatched: effects that the {beyond[1]} interval excludes.")
    return " ".join(words)
