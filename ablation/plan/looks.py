"""What may be concluded after each pair?  The sequential test of the adaptive plan's last stage.

Two tests share the level: Welch's, and that of differences within seeds, which is the sharper one
where runs of one seed are alike and the duller one where they are not. Which of them it is need not
be known: each spends its share over the looks, and the shorter interval counts (Bonferroni). It
ends with one of four verdicts: improves, harmful, no meaningful effect, inconclusive.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ablation import sequential, stats
from ablation.runs.run import RunResult
from ablation.study.profiles import Design

IMPROVES, HARMFUL = "improves", "harmful"
NO_EFFECT, UNDECIDED = "no meaningful effect", "inconclusive"
MET, BELOW, UNRESOLVED = "target met", "below target", "target unresolved"


WELCH, PAIRS, RANKS = "Welch", "pairs", "ranks"


@dataclass(frozen=True)
class Test:
    """One of the tests of a look, with the bounds that its share of the level leaves."""

    name: str
    share: float  # of alpha
    z: float  # bound for the verdict, one-sided share * alpha/2 spent over the looks
    q: float  # bound for equivalence, one-sided share * alpha
    se: float | None = None  # of the improvement; None where the test is undefined, and of ranks
    df: float | None = None
    p: float | None = None  # nominal and two-sided, as if it were the only test and look

    @property
    def reach(self) -> float | None:
        """How far its sequential interval reaches from the improvement, to either side."""
        return self._times_se(self.z)

    @property
    def eq_reach(self) -> float | None:
        """The same of the equivalence interval."""
        return self._times_se(self.q)

    def _times_se(self, bound: float) -> float | None:
        if self.se is None or self.df is None:
            return None
        return sequential.t_critical(bound, self.df) * self.se


@dataclass(frozen=True)
class Look:
    """What n complete pairs say, with n_max as the most that the budget allows."""

    n: int
    n_max: int
    improvement: float | None  # of the runs that finished; None where a whole arm diverged
    tests: tuple[Test, ...]  # Welch's and that of pairs; or ranks, where a run diverged
    low: float | None = None  # sequential interval of the improvement; None where ranks decide
    high: float | None = None
    eq_low: float | None = None  # the interval for equivalence
    eq_high: float | None = None
    verdict: str = ""  # empty: no bound is crossed
    label: str = ""

    @property
    def p(self) -> float | None:
        """Nominal and two-sided, of Welch's test or of ranks; None without variance."""
        return self.tests[0].p

    @property
    def decides(self) -> Test:
        """The test by whose interval the verdict falls, or would fall: the shorter one."""
        return self.shorter(for_equivalence=self.verdict == NO_EFFECT)

    def shorter(self, for_equivalence: bool) -> Test:
        """The test of the shorter interval; the first one, Welch's or of ranks, where none has."""

        def length(test: Test) -> float:
            reach = test.eq_reach if for_equivalence else test.reach
            return math.inf if reach is None else reach

        return min(self.tests, key=length)

    @property
    def reach(self) -> float | None:
        """How far the sequential interval reaches from the improvement, to either side."""
        return difference(self.high, self.improvement)

    @property
    def eq_reach(self) -> float | None:
        """The same of the equivalence interval."""
        return difference(self.eq_high, self.improvement)

    @property
    def excluded(self) -> float | None:
        """The size of effect, for better or worse, that its equivalence interval leaves out."""
        if self.eq_low is None or self.eq_high is None:
            return None
        return max(abs(self.eq_low), abs(self.eq_high))


def look_from(document: Mapping) -> Look:
    """A look, from the fields that a decision's numbers hold of it."""
    return Look(**{**document, "tests": tuple(Test(**test) for test in document["tests"])})


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


Pair = tuple[RunResult, RunResult]  # baseline, best; of one seed


def looks_at(
    pairs: Sequence[Pair],
    limits: Sequence[int],
    design: Design,
    equivalence: bool = True,
    pairs_per_batch: int = 1,
) -> list[Look]:
    """Every look at these pairs, in order; the last one may be final.

    pairs: complete pairs in order. limits[k-1]: n_max as the budget allowed after k pairs, never
    rising. pairs_per_batch: pairs that run side by side, with one look after them. A verdict, once
    reached, stands; later looks can only settle its label.
    """
    looks: list[Look] = []
    for n in range(2, len(pairs) + 1):
        n_max = limits[n - 1]
        if n < n_max and n != batch_end(n, design.first_look, pairs_per_batch):
            continue
        look = take_look(pairs[:n], n_max, looks, design)
        last = looks[-1] if looks else None
        if last and last.verdict:
            look = replace(look, verdict=last.verdict)
        elif look.verdict == NO_EFFECT and not equivalence and n < n_max:
            look = replace(look, verdict="", label="")
        if look.verdict == IMPROVES:
            label = target_label(look, design)
            if last and last.label in (MET, BELOW):
                label = last.label
            look = replace(look, label=label)
        looks.append(look)
    return looks


def batch_end(n: int, first_look: int, pairs_per_batch: int) -> int:
    """The number of the last pair that is launched together with the n-th; a look comes after it.
    The first batches hold the pairs of the first look; each fills the machine."""
    return math.ceil(max(n, first_look) / pairs_per_batch) * pairs_per_batch


def target_label(look: Look, design: Design) -> str:
    """Whether an improvement reaches the target, by the look's interval."""
    if look.low is not None and look.low >= design.delta_target:
        return MET
    if look.high is not None and look.high < design.delta_target:
        return BELOW
    return UNRESOLVED


def settled(look: Look, with_label: bool = False) -> bool:
    """Whether a look leaves nothing open that more pairs could add to. with_label: whether the
    target is met counts as open, too."""
    if not look.verdict:
        return False
    open_label = look.verdict == IMPROVES and look.label == UNRESOLVED and look.low is not None
    return not (with_label and open_label)


def bound_of(ns: Sequence[int], n_maxes: Sequence[int], alpha: float) -> float:
    """The bound on z at the last of these looks, for so much one-sided alpha in all.

    When the budget lowers n_max, the fraction of information jumps and what was left of alpha is
    spent sooner; what was spent stays spent.
    """
    spent = [
        sequential.cubic_spending(n / max(n, n_max), alpha)
        for n, n_max in zip(ns, n_maxes, strict=True)
    ]
    return sequential.bounds(ns, spent)[-1]


def take_look(pairs: Sequence[Pair], n_max: int, earlier: Sequence[Look], design: Design) -> Look:
    """One look at these pairs, given the looks before it."""
    n = len(pairs)
    ns = (*(look.n for look in earlier), n)
    n_maxes = (*(look.n_max for look in earlier), n_max)
    tests = [
        Test(
            name,
            share,
            z=bound_of(ns, n_maxes, share * design.alpha / 2),
            q=bound_of(ns, n_maxes, share * design.alpha),
        )
        for name, share in ((WELCH, 1 - design.pairing), (PAIRS, design.pairing))
        if share
    ]
    if len(both_finished(pairs)) < n:
        return ranked_look(pairs, n_max, tests)
    return interval_look(pairs, n_max, tests, design)


def losses_of(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Final val losses of baseline and best, of the runs that finished."""
    baseline = [run.final_loss for run, _ in pairs if run.status == "ok"]
    best = [run.final_loss for _, run in pairs if run.status == "ok"]
    return baseline, best


def both_finished(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if all(run.status == "ok" for run in pair)]


def improvement_of(finished: Sequence[Pair]) -> float:
    """Mean difference of final val losses within pairs, nats/token."""
    return statistics.fmean(base.final_loss - best.final_loss for base, best in finished)


def interval_look(pairs: Sequence[Pair], n_max: int, tests: Sequence[Test], design: Design) -> Look:
    """A look at pairs that all finished: the shorter one of the tests' intervals decides."""
    tests, improvement = [with_spread(test, pairs) for test in tests], improvement_of(pairs)
    look = Look(len(pairs), n_max, improvement, tuple(tests))
    reach = look.shorter(for_equivalence=False).reach
    eq_reach = look.shorter(for_equivalence=True).eq_reach
    if reach is None or eq_reach is None:
        return look  # no variance: nothing can be concluded from it
    low, high = improvement - reach, improvement + reach
    eq_low, eq_high = improvement - eq_reach, improvement + eq_reach
    verdict = verdict_of(low, high, eq_low, eq_high, design)
    return replace(look, low=low, high=high, eq_low=eq_low, eq_high=eq_high, verdict=verdict)


def with_spread(test: Test, pairs: Sequence[Pair]) -> Test:
    """The test with what these pairs say; all of them finished."""
    compare = stats.paired if test.name == PAIRS else stats.compare
    found = compare(*losses_of(pairs))
    return replace(test, se=found.se, df=found.df, p=found.p)


def verdict_of(low: float, high: float, eq_low: float, eq_high: float, design: Design) -> str:
    """The verdict of a look by its two intervals; empty where no bound is crossed."""
    if low > 0:
        return IMPROVES
    if high < 0:
        return HARMFUL
    if -design.delta_eq < eq_low and eq_high < design.delta_eq:
        return NO_EFFECT
    return ""


def ranked_look(pairs: Sequence[Pair], n_max: int, tests: Sequence[Test]) -> Look:
    """A look at pairs of which a run diverged: the exact worst-rank test decides (Lachin 1999), at
    the level that Welch's would have had; the improvement is that of the pairs of which both runs
    finished."""
    (welch, *others), n = tests, len(pairs)
    baseline, best = losses_of(pairs)
    test = stats.worst_rank(baseline, best, n - len(baseline), n - len(best))
    level = 2 * sequential.upper_tail(welch.z)
    verdict = ""
    if test.p is not None and test.p <= level and baseline:  # else there is nothing to beat
        verdict = IMPROVES if test.favours_arm else HARMFUL
    finished = both_finished(pairs)
    improvement = improvement_of(finished) if finished else None
    ranks = replace(welch, name=RANKS, p=test.p)
    return Look(n, n_max, improvement, (ranks, *others), verdict=verdict)


def level_among_finished(last: Look, finished: Sequence[Pair], design: Design) -> bool:
    """Whether baseline and best are equivalent at the look's bounds, in the pairs of which both
    finished: asked where runs diverged and ranks show nothing."""
    if last.p is None or not finished:
        return False
    tests = [replace(test, name=WELCH if test.name == RANKS else test.name) for test in last.tests]
    look = interval_look(finished, last.n_max, tests, design)
    return look.excluded is not None and look.excluded < design.delta_eq
