"""What may be concluded after each pair?  The sequential test of the adaptive plan's last stage.

Lan-DeMets bounds of the O'Brien-Fleming kind: looking after every pair costs nothing of the stated
level. It ends with one of four verdicts: improves, harmful, no meaningful effect, inconclusive.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ablation import stats
from ablation.plan.decision import finished_pairs
from ablation.runs.run import RunResult
from ablation.study.profiles import Design

IMPROVES, HARMFUL = "improves", "harmful"
NO_EFFECT, UNDECIDED = "no meaningful effect", "inconclusive"
MET, BELOW, UNRESOLVED = "target met", "below target", "target unresolved"


@dataclass(frozen=True)
class Look:
    """What n complete pairs say, with n_max as the most that the budget allows."""

    n: int
    n_max: int
    improvement: float | None  # of the runs that finished; None where a whole arm diverged
    z: float  # bound for the verdict, one-sided alpha/2 spent over the looks
    q: float  # bound for equivalence, one-sided alpha
    low: float | None  # sequential interval of the improvement; None where ranks had to decide
    high: float | None
    eq_low: float | None
    eq_high: float | None
    p: float | None  # nominal and two-sided: Welch, or worst-rank where a run diverged
    verdict: str = ""  # empty: no bound is crossed
    label: str = ""

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
    for n in range(1, len(pairs) + 1):
        n_max = limits[n - 1]
        if n < min(design.first_look, n_max) or n < 2:
            continue
        if (n - design.first_look) % pairs_per_batch and n < n_max:
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


def target_label(look: Look, design: Design) -> str:
    """Whether an improvement reaches the target, by the look's interval."""
    if look.low is not None and look.low >= design.delta_target:
        return MET
    if look.high is not None and look.high < design.delta_target:
        return BELOW
    return UNRESOLVED


def settled(look: Look) -> bool:
    """Whether a look leaves nothing open that more pairs could add to."""
    if not look.verdict:
        return False
    return look.verdict != IMPROVES or look.label != UNRESOLVED or look.low is None


def alpha_spent(ns: Sequence[int], n_maxes: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Cumulative one-sided alpha at each look, O'Brien-Fleming spending (Lan and DeMets 1983).

    When the budget lowers n_max, the fraction of information jumps and what was left of alpha is
    spent sooner; what was spent stays spent.
    """
    return tuple(
        stats.obrien_fleming_spending(n / max(n, n_max), alpha)
        for n, n_max in zip(ns, n_maxes, strict=True)
    )


def take_look(
    pairs: Sequence[Pair], n_max: int, earlier: Sequence[Look], design: Design
) -> Look:
    """One look at these pairs, given the looks before it."""
    n = len(pairs)
    ns = (*(look.n for look in earlier), n)
    n_maxes = (*(look.n_max for look in earlier), n_max)
    z, q = (
        stats.bounds(ns, alpha_spent(ns, n_maxes, alpha))[-1]
        for alpha in (design.alpha / 2, design.alpha)
    )
    baseline, best = losses_of(pairs)
    if len(baseline) < n or len(best) < n:
        return ranked_look(pairs, n_max, z, q)
    found = stats.compare(baseline, best)
    if found.se is None or found.df is None:  # no variance: nothing can be concluded from it
        return Look(n, n_max, found.improvement, z, q, None, None, None, None, None)
    reach, eq_reach = (stats.t_critical(bound, found.df) * found.se for bound in (z, q))
    low, high = found.improvement - reach, found.improvement + reach
    eq_low, eq_high = found.improvement - eq_reach, found.improvement + eq_reach
    return Look(
        n=n,
        n_max=n_max,
        improvement=found.improvement,
        z=z,
        q=q,
        low=low,
        high=high,
        eq_low=eq_low,
        eq_high=eq_high,
        p=found.p,
        verdict=verdict_of(low, high, eq_low, eq_high, design),
    )


def losses_of(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Final val losses of baseline and best, of the runs that finished."""
    baseline = [run.final_loss for run, _ in pairs if run.status == "ok"]
    best = [run.final_loss for _, run in pairs if run.status == "ok"]
    return baseline, best


def verdict_of(low: float, high: float, eq_low: float, eq_high: float, design: Design) -> str:
    """The verdict of a look by its two intervals; empty where no bound is crossed."""
    if low > 0:
        return IMPROVES
    if high < 0:
        return HARMFUL
    if -design.delta_eq < eq_low and eq_high < design.delta_eq:
        return NO_EFFECT
    return ""


def ranked_look(pairs: Sequence[Pair], n_max: int, z: float, q: float) -> Look:
    """A look at pairs of which a run diverged: the exact worst-rank test decides (Lachin 1999), at
    the look's level; the improvement is that of the pairs of which both runs finished."""
    n = len(pairs)
    baseline, best = losses_of(pairs)
    test = stats.worst_rank(baseline, best, n - len(baseline), n - len(best))
    level = 2 * stats.upper_tail(z)
    verdict = ""
    if test.p is not None and test.p <= level and baseline:  # else there is nothing to beat
        verdict = IMPROVES if test.favours_arm else HARMFUL
    finished = finished_pairs([r for pair in pairs for r in pair])
    improvement = statistics.fmean(b - a for b, a in finished) if finished else None
    return Look(n, n_max, improvement, z, q, None, None, None, None, test.p, verdict)


def level_among_finished(
    last: Look, finished: Sequence[tuple[float, float]], design: Design
) -> bool:
    """Whether baseline and best are equivalent at the look's bound, in the pairs of which both
    finished (their val losses): asked where runs diverged and ranks show nothing."""
    if last.p is None or len(finished) < 2:
        return False
    found = stats.compare([base for base, _ in finished], [best for _, best in finished])
    if found.se is None or found.df is None:
        return False
    reach = stats.t_critical(last.q, found.df) * found.se
    return abs(found.improvement) + reach < design.delta_eq
