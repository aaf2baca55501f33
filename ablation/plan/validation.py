"""How far has the adaptive plan's stage 4 come, and what does it conclude?

A `Validation` is what both are read off: which pairs are asked for, and the decision. The test is
that of `looks`; the seeds are used nowhere else.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

from ablation import stats
from ablation.plan.costs import Costs
from ablation.plan.decision import (
    FINAL,
    Decision,
    delta_text,
    loss_lines,
    losses_text,
    p_text,
)
from ablation.plan.looks import (
    NO_EFFECT,
    UNDECIDED,
    Look,
    Pair,
    batch_end,
    both_finished,
    level_among_finished,
    looks_at,
    losses_of,
    settled,
)
from ablation.plan.stage import (
    State,
    affordable,
    left_on_entry_s,
    pair_of,
    pairs_per_batch,
    seconds_of_pairs,
)
from ablation.runs.run import RunConfig, duration, machine_seconds
from ablation.study.profiles import Design
from ablation.study.study import Metric

MAX_PAIRS = 100  # chosen: enough for effects of half a sigma
MAX_GIVEN_UP = 3  # pairs that may fail for good before stage 4 ends; chosen


# ---------------------------------------------------------------------------------------------
# How far it has come


@dataclass(frozen=True)
class Validation:
    """How far stage 4 has come."""

    pairs: tuple[Pair, ...]  # complete, in order, up to the first that is still open
    given_up: int  # pairs before that one of which a run failed for good
    limits: tuple[int, ...]  # n_max on entry, and after each complete pair; never rising
    design: Design
    stop_on: str = "any"  # what may end it: Experiment.stop_on
    pairs_per_batch: int = 1

    @cached_property
    def looks(self) -> list[Look]:
        """Every look so far, as it was taken while more pairs might come."""
        return self._looks(self.limits[1:])

    @cached_property
    def final_looks(self) -> list[Look]:
        """The looks where no further pair comes: what is left of alpha is spent on the last."""
        if not self.pairs or self.is_settled:
            return self.looks
        return self._looks((*self.limits[1:-1], len(self.pairs)))

    @property
    def is_settled(self) -> bool:
        """The last look leaves nothing open that more pairs could add to."""
        return bool(self.looks) and settled(self.looks[-1], with_label=self.stop_on == "label")

    @property
    def has_nothing_to_beat(self) -> bool:
        """No baseline had finished by the first look: a verdict needs one, whatever it costs."""
        return bool(self.looks) and not losses_of(self.pairs)[0]

    def _looks(self, limits: Sequence[int]) -> list[Look]:
        equivalence = self.stop_on != "superiority"
        return looks_at(self.pairs, limits, self.design, equivalence, self.pairs_per_batch)


@lru_cache(maxsize=1)  # a state is asked twice: for runs, then for a decision
def validation_of(state: State) -> Validation:
    """How far stage 4 has come, by its results."""
    pairs, given_up = pairs_so_far(state)
    return Validation(
        pairs=tuple(pairs),
        given_up=given_up,
        limits=tuple(limits_of(state, pairs)),
        design=state.design,
        stop_on=state.experiment.stop_on,
        pairs_per_batch=pairs_per_batch(state.experiment.share),
    )


def pairs_so_far(state: State) -> tuple[list[Pair], int]:
    """(complete pairs in order, up to the first one that is still open; number of pairs given up
    after repeated failures)."""
    complete: list[Pair] = []
    given_up = 0
    while len(pair := state.results_of(pair_of(state, len(complete) + given_up))) == 2:
        baseline, best = pair
        if baseline.has_outcome and best.has_outcome:
            complete.append((baseline, best))
        else:
            given_up += 1
    return complete, given_up


def limits_of(state: State, complete: Sequence[Pair]) -> list[int]:
    """n_max on entry, and after each complete pair as the budget then allowed; it never rises."""
    e, first = state.experiment, state.design.first_look
    side_by_side = pairs_per_batch(e.share)
    fit = affordable(state, state.costs, left_on_entry_s(state))
    limits = [min(e.validation_runs or state.stage.most_pairs, fit)]
    for n in range(1, len(complete) + 1):
        end = n if e.share.parallel_runs == 1 else batch_end(n, first, side_by_side)
        if end > len(complete):  # others that were launched with it still run, and are paid for
            limits.append(limits[-1])
            continue
        last = complete[end - 1][0].run.index
        paid = [r for r in state.history if r.run.stage < state.stage.number or r.run.index <= last]
        left_s = 3600 * e.overrides.budget_hours_at(n, e.budget_hours) - machine_seconds(paid)
        limits.append(min(limits[-1], end + affordable(state, Costs(e, paid), left_s)))
    return limits


def pairs_until_settled(state: State) -> list[RunConfig]:
    """Pairs up to the first look, then more as long as the last look leaves something open."""
    validation = validation_of(state)
    n, n_max = len(validation.pairs), validation.limits[-1]
    if state.experiment.stop_on == "never":
        count = n_max + validation.given_up
    else:
        ends = validation.is_settled or validation.has_nothing_to_beat
        goes_on = not ends and validation.given_up <= MAX_GIVEN_UP
        first = state.design.first_look
        target = batch_end(n + 1, first, validation.pairs_per_batch) if goes_on else n
        count = min(target, max(n, n_max)) + validation.given_up
    return [run for k in range(count) for run in pair_of(state, k)]


# ---------------------------------------------------------------------------------------------
# What it concludes


@dataclass(frozen=True)
class Tested:
    """What a verdict rests on: the looks, and the pairs of the last one."""

    looks: Sequence[Look]
    pairs: Sequence[Pair]

    @property
    def last(self) -> Look:
        return self.looks[-1]

    @property
    def fell(self) -> int:
        """The look, counted from 1, at which the verdict fell; the last one where none did."""
        return next((k for k, look in enumerate(self.looks, 1) if look.verdict), len(self.looks))

    @property
    def baseline(self) -> list[float]:
        """Final val losses of the baseline's runs that finished."""
        return losses_of(self.pairs)[0]

    @property
    def best(self) -> list[float]:
        """The same of the configuration that is tested."""
        return losses_of(self.pairs)[1]

    @property
    def finished(self) -> list[Pair]:
        """The pairs of which both finished."""
        return both_finished(self.pairs)

    @property
    def diverged(self) -> int:
        return 2 * len(self.pairs) - len(self.baseline) - len(self.best)


def decide_pairs(state: State) -> Decision:
    """Stage 4: the verdict of the last look, with what it rests on."""
    validation = validation_of(state)
    given_up = validation.given_up
    missing = (f"{given_up} pair(s), of which a run failed for good",) if given_up else ()
    return decide_looks(state, validation.final_looks, validation.pairs, missing)


def decide_looks(
    state: State, looks: Sequence[Look], pairs: Sequence[Pair], missing: tuple[str, ...] = ()
) -> Decision:
    """The verdict of these looks at these pairs; missing: what failed, in words."""
    if not looks:
        return state.decided(
            FINAL,
            f"{UNDECIDED}: {len(pairs)} complete pair(s), the first look needs more",
            because=(f"Nothing is concluded about {state.study.words.idea}.",),
            facts=loss_lines(state.study.metric, [r for pair in pairs for r in pair]),
            numbers={"verdict": UNDECIDED, "label": "", "n": len(pairs), "looks": []},
            chosen=state.choice,
            missing=missing,
        )
    tested = Tested(looks, pairs[: looks[-1].n])
    verdict, label = verdict_and_label(tested, state.design)
    needed = needed_for(tested, state.design) if verdict == UNDECIDED else None
    numbers = verdict_numbers(tested, verdict, label)
    return state.decided(
        FINAL,
        title_of(tested, verdict, label),
        because=(*explain(state, tested, verdict, needed), *when_it_fell(tested)),
        facts=look_facts(tested, state.chosen.label, state.study.metric),
        numbers={**numbers, "runs_needed": needed[1]} if needed else numbers,
        chosen=state.choice,
        missing=missing,
    )


def verdict_and_label(tested: Tested, design: Design) -> tuple[str, str]:
    """(verdict, label) of the last look; or, where runs diverged and ranks show nothing, of those
    that finished."""
    last, diverged = tested.last, tested.diverged
    if not last.verdict and diverged and level_among_finished(last, tested.finished, design):
        return NO_EFFECT, f"among the runs that finished ({diverged} of {2 * last.n} diverged)"
    return last.verdict or UNDECIDED, last.label


LAST_LOOK = ("n", "n_max", "improvement", "low", "high", "p")  # its fields beside the verdict


def verdict_numbers(tested: Tested, verdict: str, label: str) -> dict:
    """The verdict and its looks, for programs."""
    last = tested.last
    return {
        "verdict": verdict,
        "label": label,
        "fell_at_look": tested.fell if last.verdict else None,
        **{name: getattr(last, name) for name in LAST_LOOK},
        "baseline_diverged": last.n - len(tested.baseline),
        "best_diverged": last.n - len(tested.best),
        "looks": [asdict(look) for look in tested.looks],
    }


def look_facts(tested: Tested, configuration: str, metric: Metric) -> tuple[str, ...]:
    """The last look as lines."""
    last = tested.last
    span = "no interval: a run diverged, ranks decide"
    if last.p is None:
        span = "no interval: without variance there is no test"
    if last.low is not None:
        span = f"sequential interval {last.low:+.4f} to {last.high:+.4f}"
    estimate = delta_text(metric, last.improvement)
    if tested.diverged:
        estimate += f" over the {len(tested.finished)} pair(s) of which both finished"
    look = f"look {len(tested.looks)} at {last.n} of at most {last.n_max} pairs"
    return (
        f"Configuration: {configuration}",
        f"Baseline: {losses_text(metric, tested.baseline)}",
        f"Best:     {losses_text(metric, tested.best)}",
        f"Improvement: {estimate}, {span}",
        f"Nominal {p_text(last.decides.p)} ({last.decides.name}); {look}",
    )


def title_of(tested: Tested, verdict: str, label: str) -> str:
    """A verdict as it fell: later looks can only settle its label."""
    if verdict == NO_EFFECT:
        return f"{verdict} {label}".rstrip()
    when = f" at look {tested.fell}" if tested.fell < len(tested.looks) else ""
    return f"{verdict}{when}{f', {label}' if label else ''}"


def when_it_fell(tested: Tested) -> Iterable[str]:
    """A line where later looks followed the one at which the verdict fell."""
    look = tested.looks[tested.fell - 1]
    if tested.fell < len(tested.looks):
        by = "by ranks" if look.low is None else f"at {look.low:+.4f} to {look.high:+.4f}"
        yield f"It fell at {look.n} pairs {by}; later looks settle its label only."


def explain(
    state: State, tested: Tested, verdict: str, needed: tuple[float, int] | None
) -> Iterable[str]:
    """What the verdict means, and what it would still take where there is none."""
    last, design = tested.last, state.design
    if tested.finished and all(b.final_loss == a.final_loss for b, a in tested.finished):
        same = f"exactly the same {state.study.metric.words}"
        yield f"Both runs of every pair have {same}: does the trainer read what differs?"
    if verdict == UNDECIDED:
        yield "The bounds were not crossed: neither a gain, nor a harm, nor its absence is shown."
        if needed:
            yield still_to_come(state, last.n, *needed)
    elif verdict == NO_EFFECT and not last.verdict:
        yield (
            f"Ranks, in which a diverged run is the worst, show no difference (p = {last.p:.4f});"
            f" the runs that finished are equivalent within ±{design.delta_eq:g}"
            f"{state.study.metric.amount('')}."
        )
    elif verdict == NO_EFFECT:
        # the last look can have no interval: a run diverged after the verdict had fallen
        excluded = [look.excluded for look in tested.looks if look.excluded is not None][-1]
        yield f"A null result is a result: effects beyond ±{excluded:.4f} are excluded."
    else:
        yield f"Level {design.alpha:g} two-sided over all looks; fresh seeds for both arms."


def needed_for(tested: Tested, design: Design) -> tuple[float, int] | None:
    """(effect in nats/token, runs an arm) for power .8 at the effect seen, or at the smallest of
    interest; None without an interval, or where too many would be needed."""
    last = tested.last
    if last.low is None or last.improvement is None:
        return None
    sides, share = (tested.baseline, tested.best), design.pairing
    effect = max(abs(last.improvement), design.delta_eq)
    sd = math.sqrt(stats.pooled_variance(sides, 0.0, 0.0))
    needed = [stats.runs_needed(effect, sd, alpha=(1 - share) * design.alpha)]
    if share and (se := stats.paired(*sides).se):
        sd = se * math.sqrt(last.n)  # of the differences within pairs
        needed.append(stats.pairs_needed(effect, sd, alpha=share * design.alpha))
    fewest = min((n for n in needed if n is not None), default=None)
    return None if fewest is None else (effect, fewest)


def still_to_come(state: State, n: int, effect: float, needed: int) -> str:
    """What it would take to find an effect, beyond the n pairs that there are."""
    more = needed - n
    run_s = [state.costs(run) for run in pair_of(state, 0)]
    takes_s = seconds_of_pairs(state.experiment.share, run_s, more)
    still = f"{more} more pairs, {duration(takes_s)}"
    if more <= 0:
        still = (
            "as many as were run, so chance decided. A new experiment is a second test:"
            " its p-value does not undo this one"
        )
    size = state.study.metric.amount(f"{effect:.4f}")
    return f"For power .8 at {size} it takes about {needed} runs per arm: {still}."
