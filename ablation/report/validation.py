"""What may be claimed?  The final validation: the comparison that was planned before its runs."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ablation import stats
from ablation.plan.decision import p_text, relative
from ablation.plan.decision import percent as percent_of
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, PAIRS, RANKS, WELCH, Look, Test
from ablation.report.comparisons import (
    ArmRuns,
    Block,
    Contrast,
    by_packing,
    contrast,
    final_block,
    paired_losses,
    race,
    repeated_ps,
)
from ablation.report.content import (
    Column,
    Content,
    Pairs,
    Paragraph,
    Role,
    Table,
    bare_p,
    columns,
    level,
    number,
    percent,
    span,
)
from ablation.report.evidence import Evidence
from ablation.study.profiles import Design
from ablation.study.study import Metric

SEED = 0  # of the bootstrap and of Dunnett's integration; chosen: the same report again


def generator():
    """A generator of random numbers that gives the same ones again."""
    import numpy as np

    return np.random.default_rng(SEED)


def planned(evidence: Evidence, block: Block) -> Contrast:
    """The comparison that was planned, at the level that was registered for it."""
    return contrast(block, block.arms[0], evidence.design.alpha)


def effect_line(evidence: Evidence, block: Block | None) -> str:
    """The effect of the final validation, with all that qualifies it, in a sentence."""
    found = planned(evidence, block) if block else Contrast()
    difference = found.comparison
    if not block or not difference:
        return "There is no difference to show: no seed on which both arms finished."
    interval, kind = primary_interval(evidence, found)
    when = f" at look {len(evidence.looks)}" if evidence.looks else ""
    repeated = " (repeated)" if evidence.looks else ""
    within = f"{kind} interval {span(*interval)}{when}" if interval else "no interval"
    line = (
        f"{block.arms[0].arm.label}: improvement {evidence.metric.delta(difference.improvement)},"
        f" {within}, {p_text(final_p(evidence, block))}{repeated},"
        f" n = {difference.n_arm} and {difference.n_baseline} baseline, of {found.seeds} pairs"
    )
    lost = [f"{g.label} {g.lost}" for g in block.groups if g.lost]
    return line + (f"; not in these means: {', '.join(lost)}" if lost else "") + "."


Ends = tuple[float, float]  # of an improvement, in nats/token: (low, high)


def ends(low: float | None, high: float | None) -> Ends | None:
    return None if low is None or high is None else (low, high)


def primary_interval(evidence: Evidence, found: Contrast) -> tuple[Ends | None, str]:
    """The interval that the verdict rests on, and what it is; none where ranks decide, as the runs
    that finished are then only the better ones."""
    kind = level(evidence.design.alpha)
    if evidence.looks:
        last = evidence.looks[-1]
        return ends(last.low, last.high), f"sequential {kind}"
    if found.ranked or not found.comparison:
        return None, kind
    return ends(found.comparison.ci_low, found.comparison.ci_high), kind


def validated(evidence: Evidence) -> Iterator[Content]:
    """Everything about the one comparison that was planned before its runs."""
    if not evidence.standing.stages[-1].most_pairs:
        yield Paragraph("Runs by hand have none: no test was registered before them.")
        return
    block = final_block(evidence)
    if not block:
        yield Paragraph("Nothing is confirmed: stage 4 has no pair with an outcome on both sides.")
        return
    versus = f"{block.arms[0].arm.label}; against the baseline, on seeds used nowhere else"
    verdict = "none shown: see the top" if evidence.changed else "none yet"
    verdict += "; p and intervals are nominal, and do not allow for looking early"
    verdict = evidence.decisions[4].title if 4 in evidence.decisions else verdict
    rows = [("verdict", verdict + how_it_fell(evidence)), ("configuration", versus)]
    found = planned(evidence, block)
    rows += effect_rows(evidence, block, found)
    rows += [("p", p_line(evidence, block, found))]
    spreads = (spread_line(evidence.metric, group) for group in block.groups)
    rows += zip(("baseline", "arm"), spreads, strict=True)
    if found.comparison:
        rows += [*sensitivity_rows(evidence, block), *resolution_rows(evidence, block)]
    rows += time_rows(evidence, block)
    yield Pairs(tuple(rows))
    if evidence.looks:
        yield Paragraph(LOOK_NOTES, Role.CAPTION)
        yield Table(look_columns(evidence), tuple(look_rows(evidence)))


BY = {WELCH: "Welch's interval", PAIRS: "the interval of pairs", RANKS: "ranks"}


def how_it_fell(evidence: Evidence) -> str:
    """By which of the tests the verdict fell, as the end of a sentence; empty without a verdict."""
    fell = next((look for look in evidence.looks if look.verdict), None)
    return f"; it fell at {fell.n} pairs by {BY[fell.decides.name]}" if fell else ""


def effect_rows(evidence: Evidence, block: Block, found: Contrast) -> Iterable[tuple[str, str]]:
    interval, kind = primary_interval(evidence, found)
    difference = found.comparison
    if difference is None:
        return
    share = percent_of(relative(difference.improvement, difference.mean_baseline))
    size = evidence.metric.delta(difference.improvement)
    yield "effect", f"improvement {size} ({share} of the baseline's)"
    if interval is None:
        yield "interval", "none: ranks decide where a run diverged, and n = 1 or no spread has none"
        return
    of_looks = f" over all looks, at look {len(evidence.looks)}" if evidence.looks else ""
    yield "interval", f"{span(*interval)}, {kind}{of_looks}"
    if evidence.looks:
        yield from test_rows(evidence.looks[-1])
    if null := excluded(evidence, block):
        yield "excluded", null
    if equivalence := equivalence_interval(evidence, block):
        (low, high), delta_eq = equivalence, evidence.design.delta_eq
        inside = "inside" if -delta_eq < low and high < delta_eq else "not inside"
        about = f"{level(2 * evidence.design.alpha)}: {inside} ±{delta_eq:g} (delta_eq)"
        if not evidence.design.noise_known:
            about = f"{level(2 * evidence.design.alpha)}; what matters is not known (no [noise])"
        yield "equivalence", f"{span(low, high)}, {about}"


def test_rows(look: Look) -> Iterable[tuple[str, str]]:
    """The interval of each test of a look, where there are several: the shorter one counts."""
    shorter = look.shorter(for_equivalence=False)
    for test in look.tests if len(look.tests) > 1 else ():
        counts = "; the shorter one counts" if test is shorter else ""
        within = span(*interval_of(look, test)) if test.reach is not None else "none: no spread"
        yield test.name, f"{within}, {test.share:g} of alpha{counts}"


def interval_of(look: Look, test: Test) -> Ends:
    """The sequential interval of one of the tests of a look; it has one."""
    assert look.improvement is not None and test.reach is not None
    return look.improvement - test.reach, look.improvement + test.reach


def equivalence_interval(evidence: Evidence, block: Block) -> Ends | None:
    """The interval of two one-sided tests at alpha: that of the last look, or Welch's."""
    if evidence.looks:
        return ends(evidence.looks[-1].eq_low, evidence.looks[-1].eq_high)
    base, arm = block.groups
    c = stats.compare(base.losses, arm.losses, 2 * evidence.design.alpha)
    return ends(c.ci_low, c.ci_high)


def excluded(evidence: Evidence, block: Block) -> str:
    """What a null result excludes, in words; empty where `exclusion` has none."""
    if not (found := exclusion(evidence, block)):
        return ""
    beyond, kind = found
    amount = evidence.metric.amount(f"{beyond:.4f}")
    return f"effects beyond ±{amount} are excluded ({kind} interval)"


def exclusion(evidence: Evidence, block: Block) -> tuple[float, str] | None:
    """The size of effect, for better or worse, beyond which a null result excludes all, and by
    which interval. None where there is an effect, or no test, and before the decision: a nominal
    interval of the pairs so far would exclude too much.

    A verdict stands as it fell, also where a later look's interval has come to cover zero.
    """
    interval, kind = primary_interval(evidence, planned(evidence, block))
    if 4 not in evidence.decisions or interval is None or not interval[0] <= 0 <= interval[1]:
        return None
    if evidence.verdict in (IMPROVES, HARMFUL):
        return None
    equivalence = equivalence_interval(evidence, block)
    if equivalence and evidence.verdict == NO_EFFECT:  # shown at the level of that verdict
        interval, kind = equivalence, f"sequential {level(2 * evidence.design.alpha)}"
    low, high = interval
    return max(-low, high), kind


def final_p(evidence: Evidence, block: Block) -> float | None:
    """The p-value of the final validation: over all looks, or of its one test."""
    return repeated_ps(evidence.looks)[-1] if evidence.looks else planned(evidence, block).p


def p_line(evidence: Evidence, block: Block, found: Contrast) -> str:
    if not evidence.looks:
        test = "exact worst-rank test" if found.ranked else "Welch"
        return f"{p_text(final_p(evidence, block))}, two-sided, {test}"
    last = evidence.looks[-1]
    names = {RANKS: "exact worst-rank test"}
    tests = [test for test in last.tests if test.p is not None] or last.tests[:1]
    nominal = ", ".join(f"{p_text(test.p)} ({names.get(test.name, test.name)})" for test in tests)
    return (
        f"repeated {p_text(final_p(evidence, block))}, over {len(evidence.looks)} look(s); nominal"
        f" {nominal}, as if it had been the only look and test"
    )


def spread_line(metric: Metric, group: ArmRuns) -> str:
    mean, sd = group.mean_sd()
    mean = mean and metric.sign * mean
    lost = f"; {group.lost}" if group.lost else ""
    return f"n = {len(group.losses)}, mean {number(mean, '.4f')}, sd {number(sd, '.4f')}{lost}"


def sensitivity_rows(evidence: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    """Other statistics of the same runs; none of them decides."""
    base, group = block.groups
    sides = paired_losses(base, group)
    has_pairs = evidence.study.trainer.seed != "none"
    if sides[0] and has_pairs and not test_of_pairs(evidence):
        test = stats.paired(*sides, evidence.design.alpha)
        about = f"{span(test.ci_low, test.ci_high)}, {p_text(test.p)}, n = {len(sides[0])} pairs"
        yield "paired t", f"{test.improvement:+.4f}, {about} (sensitivity)"
    bca = stats.bootstrap_interval(base.losses, group.losses, generator(), evidence.design.alpha)
    about = f"sensitivity: 9,999 resamples, seed {SEED}; covers too little at small n"
    yield "BCa bootstrap", f"{span(*(bca or (None, None)))} ({about})"


def test_of_pairs(evidence: Evidence) -> Test | None:
    """The test of pairs at the last look, where it is one of those that decide; else it is one more
    statistic of the same runs."""
    tests = evidence.looks[-1].tests if evidence.looks else ()
    return next((test for test in tests if test.name == PAIRS and test.se is not None), None)


@dataclass(frozen=True)
class Resolution:
    """What one test could have found, at its share of the level and with the spread seen."""

    test: str
    spread: str
    mde80: float | None
    powers: tuple[float, ...]  # at each of `effects_of`


def effects_of(design: Design) -> dict[str, float]:
    """The effects whose power is told, in nats/token."""
    if not design.noise_known:
        return {}
    return {"delta_eq": design.delta_eq, "delta_target": design.delta_target}


def by_welch(sides: tuple[list[float], list[float]], design: Design, alpha: float) -> Resolution:
    """What Welch's test could have found."""
    n, sd = min(map(len, sides)), math.sqrt(stats.pooled_variance(sides, 0.0, 0.0))
    powers = (stats.power(effect, n, sd, alpha) for effect in effects_of(design).values())
    expected = f"{design.sigma0:g} was expected" if design.noise_known else "none was expected"
    spread = f"{sd:.4f} of runs, pooled; {expected}"
    return Resolution("Welch's test", spread, stats.mde80(sd, n, alpha), tuple(powers))


def by_pairs(n: int, se: float, design: Design, alpha: float) -> Resolution:
    """What the test of n pairs could have found; se: of the mean of their differences."""
    sd = se * math.sqrt(n)
    powers = (stats.paired_power(effect, n, sd, alpha) for effect in effects_of(design).values())
    spread = f"{sd:.4f} of differences within pairs"
    return Resolution("the test of pairs", spread, stats.paired_mde80(sd, n, alpha), tuple(powers))


def resolution_rows(evidence: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    """What so many runs could have found, with the spread that they had: by the sharper test."""
    base, arm = block.groups
    design, sides = evidence.design, (base.losses, arm.losses)
    n, share = min(map(len, sides)), evidence.looks[-1].tests[0].share if evidence.looks else 1.0
    if n < 2 or stats.compare(*sides).se is None:
        return
    found = [by_welch(sides, design, share * design.alpha)]
    if (pairs := test_of_pairs(evidence)) and pairs.se:
        found.append(by_pairs(n, pairs.se, design, pairs.share * design.alpha))
    yield "sd", "; ".join(each.spread for each in found)
    sharper = min(found, key=lambda each: each.mde80 or math.inf)
    of, at = (f", by {sharper.test}", ", by the sharper test") if len(found) > 1 else ("", "")
    mde80 = evidence.metric.amount(number(sharper.mde80, ".4f"))
    yield "MDE80", f"{mde80}, for n = {n} with this sd{of}"
    most = map(max, zip(*(each.powers for each in found), strict=True))
    powers = (
        f"{power:.3f} at {effect:g} ({name})"
        for power, (name, effect) in zip(most, effects_of(design).items(), strict=True)
    )
    if design.noise_known:
        yield "power", f"{', '.join(powers)}, for n = {n} with this sd and one look{at}"


def time_rows(evidence: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    """What the arm costs and saves in training time, by packing."""
    parts = by_packing(evidence, block)
    for packing, part in parts.items():
        about = f" ({packing})" if len(parts) > 1 else ""
        found = part.arms and race(part, part.arms[0], evidence.design.alpha)
        if not found:
            continue
        yield "overhead", f"{percent(found.overhead)} time per step{about}"
        reached = f"{found.arrived} of {found.runs} runs got there"
        yield (
            "time saved",
            f"{percent(found.saved)} to the baseline's mean final loss; {reached}{about}",
        )
        target = evidence.design.speedup
        yield "speedup", f">= {target:.0%} {found.speedup_statement(target)}{about}"
        if c := found.at_equal_time:
            yield (
                "equal time",
                f"improvement {c.improvement:+.4f} ({span(c.ci_low, c.ci_high)}) after"
                f" {found.equal_s:.1f} s of training, where the first run ends{about}",
            )


LOOK_NOTES = (
    "Every look. most: pairs that the budget allowed then. ±: how far sequential intervals reach"
    " from the effect to both sides, at the level of the verdict and at that of equivalence. test:"
    " whose they are, the shorter ones; of it is the nominal p."
)


def look_columns(evidence: Evidence) -> tuple[Column, ...]:
    reaches = (f"± {level(evidence.design.alpha)}", f"± {level(2 * evidence.design.alpha)}")
    p_values = ("nominal p", "repeated p")
    titles = ("pairs", "most", "effect", *reaches, "test", *p_values, "verdict")
    return columns(*titles, left=("test", "verdict"))


def look_rows(evidence: Evidence) -> Iterable[tuple]:
    for look, p in zip(evidence.looks, repeated_ps(evidence.looks), strict=True):
        decides = look.decides
        yield (
            look.n,
            look.n_max,
            number(look.improvement, "+.4f"),
            number(look.reach, ".4f"),
            number(look.eq_reach, ".4f"),
            decides.name,
            None if decides.p is None else bare_p(decides.p),
            bare_p(p),
            ", ".join(filter(None, (look.verdict, look.label))),
        )
