"""What can the numbers say, and what not?  Every statistic of the project, once.

Pure functions over numbers, without knowledge of arms, stages or files. Improvement =
mean(baseline) - mean(arm): positive is good, everywhere. What is undefined (one value, no
variance) is None, never NaN; values that are missing altogether or not finite raise ValueError.
numpy and scipy are imported where they are used: importing this file costs nothing. Losses are in
nats/token, times in any one unit; p-values are two-sided where nothing else is said.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar, final

# ---------------------------------------------------------------------------------------------
# Two groups


def finite(values: Sequence[float]) -> list[float]:
    """The values as floats; ValueError if one is NaN, infinite, or too large to be squared."""
    values = [float(value) for value in values]
    if not all(abs(value) < 1e150 for value in values):
        raise ValueError(f"statistics need finite values (below 1e150), not {values!r}")
    return values


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the sd of a single value is None. ValueError for none."""
    values = finite(values)
    if not values:
        raise ValueError("the mean of no finite values is undefined")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def only_rounding(spread: float, *values: float) -> bool:
    """Whether the numbers are equal and their computed standard deviation is not quite zero: a
    relative 1e-12, chosen between rounding (1e-16 a sum) and the digits of a printed loss (1e-6).
    """
    return spread <= 1e-12 * max(map(abs, values))


@final  # so never false: `c and c.p` is a p-value, or None
@dataclass(frozen=True)
class Comparison:
    """A baseline and an arm. The fields from `se` on are None where they are undefined: with fewer
    than two values in a group, or without any variance."""

    n_baseline: int
    mean_baseline: float
    sd_baseline: float | None
    n_arm: int
    mean_arm: float
    sd_arm: float | None
    improvement: float
    se: float | None = None
    df: float | None = None  # Welch-Satterthwaite
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None  # two-sided
    cohens_d: float | None = None  # in units of the pooled sd


def compare(baseline: Sequence[float], arm: Sequence[float], alpha: float = 0.05) -> Comparison:
    """Welch's test and interval (Welch 1947), as scipy.stats.ttest_ind(equal_var=False).

    Written out because a simulation asks a hundred thousand times; a test holds it to scipy's.
    """
    (mean_b, sd_b), (mean_a, sd_a) = mean_sd(baseline), mean_sd(arm)
    n, m, improvement = len(baseline), len(arm), mean_b - mean_a
    plain = Comparison(n, mean_b, sd_b, m, mean_a, sd_a, improvement)
    if sd_b is None or sd_a is None:
        return plain
    of_baseline, of_arm = sd_b**2 / n, sd_a**2 / m  # squared standard errors
    se = math.sqrt(of_baseline + of_arm)
    if only_rounding(se, mean_b, mean_a):
        return plain
    from scipy.special import stdtr, stdtrit

    share = of_baseline / (of_baseline + of_arm)  # rather than a square, which could underflow
    df = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))
    reach = -float(stdtrit(df, alpha / 2)) * se
    pooled_sd = math.sqrt(((n - 1) * sd_b**2 + (m - 1) * sd_a**2) / (n + m - 2))
    return replace(
        plain,
        se=se,
        df=df,
        ci_low=improvement - reach,
        ci_high=improvement + reach,
        p=2 * float(stdtr(df, -abs(improvement) / se)),
        cohens_d=improvement / pooled_sd,
    )


def pooled_variance(
    samples: Sequence[Sequence[float]], prior_variance: float, prior_df: float
) -> float:
    """Variance pooled over samples and a prior: (prior_df * prior_variance + SS) / (prior_df + df),
    SS about each sample's own mean.

    The scale of the posterior under a scaled inverse chi-square prior (Gelman et al. 2013).
    ValueError where nothing is known: no prior, and no sample of two or more.
    """
    squares, df = 0.0, 0
    for sample in map(finite, samples):
        if sample and (sd := mean_sd(sample)[1]) is not None:
            squares += (len(sample) - 1) * sd**2
            df += len(sample) - 1
    if prior_df + df <= 0:
        raise ValueError("a variance needs a prior or a sample of two or more")
    return (prior_df * prior_variance + squares) / (prior_df + df)


# ---------------------------------------------------------------------------------------------
# Sensitivity, many arms, failures


@dataclass(frozen=True)
class Paired:
    """Differences within shared seeds. The fields from `se` on are None where they are undefined:
    with fewer than two pairs, or without any variance."""

    improvement: float
    se: float | None = None
    df: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None  # two-sided


def paired(baseline: Sequence[float], arm: Sequence[float], alpha: float = 0.05) -> Paired:
    """Paired t test and interval, as scipy.stats.ttest_rel; value k of both groups is of one seed.
    Raises ValueError on unequal n. Written out, as `compare` is."""
    if len(baseline) != len(arm):
        raise ValueError(f"pairs need equal numbers, not {len(baseline)} and {len(arm)}")
    differences = [b - a for b, a in zip(finite(baseline), finite(arm), strict=True)]
    improvement, sd = mean_sd(differences)
    if sd is None or only_rounding(sd, *baseline, *arm):
        return Paired(improvement)
    from scipy.special import stdtr, stdtrit

    se, df = sd / math.sqrt(len(differences)), len(differences) - 1
    reach = -float(stdtrit(df, alpha / 2)) * se
    p = 2 * float(stdtr(df, -abs(improvement) / se))
    return Paired(improvement, se, df, improvement - reach, improvement + reach, p)


Named = TypeVar("Named", bound=Hashable)


def arm_means(losses: Sequence[tuple[Named, Hashable, float]], rho: float) -> dict[Named, float]:
    """Mean loss of each arm on an average seed, from (arm, seed, loss), where arms need not share
    all seeds.

    rho: correlation of two losses of one seed, in [0, 1); ValueError outside. The best linear
    unbiased estimates for loss = arm + seed + rest with random seed effects: least squares with the
    penalty (1 - rho) / rho on the squared seed effects (Henderson 1975). At rho = 0 plain means.
    """
    if not 0 <= rho < 1:
        raise ValueError(f"rho must be in [0, 1), not {rho!r}")
    return dict(_arm_means(tuple(losses), rho))


@lru_cache(maxsize=1 << 8)  # a plan asks again at every step
def _arm_means(losses: tuple[tuple[Named, Hashable, float], ...], rho: float) -> dict[Named, float]:
    import numpy as np

    arms = list(dict.fromkeys(arm for arm, _, _ in losses))
    seeds = list(dict.fromkeys(seed for _, seed, _ in losses))
    values = np.array(finite([loss for _, _, loss in losses]))
    center = values.mean()
    rows = [
        [*(arm == each for each in arms), *(rho > 0 and seed == each for each in seeds)]
        for arm, seed, _ in losses
    ]
    penalty = math.sqrt((1 - rho) / rho) if rho else 1.0  # without correlation: of nothing
    penalties = np.hstack([np.zeros((len(seeds), len(arms))), penalty * np.eye(len(seeds))])
    matrix = np.vstack([np.array(rows, dtype=float), penalties])
    target = np.concatenate([values - center, np.zeros(len(seeds))])
    effects = np.linalg.lstsq(matrix, target, rcond=None)[0]
    return {arm: float(center + effect) for arm, effect in zip(arms, effects, strict=False)}


def bootstrap_interval(
    baseline: Sequence[float], arm: Sequence[float], rng, alpha: float = 0.05
) -> tuple[float, float] | None:
    """BCa interval of the improvement (Efron 1987); None where it is undefined. It covers too
    little at these n (.80 to .92 for 3 to 8): a sensitivity check only. rng: numpy Generator."""
    if compare(baseline, arm).se is None:
        return None
    import warnings

    import numpy as np
    from scipy import stats

    def improvement(b, a, axis):
        return np.mean(b, axis=axis) - np.mean(a, axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate bootstrap distribution: NaN, handled below
        found = stats.bootstrap(
            (baseline, arm), improvement, confidence_level=1 - alpha, method="BCa", rng=rng
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def dunnett(
    baseline: Sequence[float], arms: Sequence[Sequence[float]], rng=None
) -> list[float | None]:
    """Two-sided p of each arm against one baseline, corrected for their number (Dunnett 1955).

    One variance for all groups is assumed; each p is None where no group has two values, or none
    has variance. rng: numpy Generator for the integration, accurate to about 1e-4; without one,
    a fresh one of seed 0, so that equal losses give equal p.
    """
    groups = [baseline, *arms]
    means = [mean_sd(group)[0] for group in groups]
    undefined: list[float | None] = [None for _ in arms]
    if not arms or max(map(len, groups)) < 2:
        return undefined
    if only_rounding(math.sqrt(pooled_variance(groups, 0.0, 0.0)), *means):
        return undefined
    import numpy as np
    from scipy import stats

    rng = np.random.default_rng(0) if rng is None else rng
    return [float(p) for p in stats.dunnett(*arms, control=baseline, rng=rng).pvalue]


@dataclass(frozen=True)
class WorstRank:
    """Result of the exact worst-rank test."""

    p: float | None  # two-sided; None when a group is empty
    favours_arm: bool  # the arm's ranks are the better ones


def worst_rank(
    baseline: Sequence[float], arm: Sequence[float], baseline_diverged: int, arm_diverged: int
) -> WorstRank:
    """Exact Mann-Whitney in which a diverged run is worse than any loss (Lachin 1999).

    Diverged runs are tied, which scipy's method="exact" does not allow for. So the null
    distribution is that of the sum of midranks over all ways to choose the baseline's, counted
    exactly. p is twice the smaller tail: ties make the distribution skew where the groups differ
    in size, and a claim in either direction is to be wrong in at most half of p. ValueError for a
    negative count.
    """
    if min(baseline_diverged, arm_diverged) < 0:
        raise ValueError(f"diverged runs cannot be {baseline_diverged} and {arm_diverged}")
    baseline = [*finite(baseline), *[math.inf] * baseline_diverged]
    values = [*baseline, *finite(arm), *[math.inf] * arm_diverged]
    n = len(baseline)
    if n in (0, len(values)):
        return WorstRank(None, False)
    ordered = sorted(values)
    # twice the midrank, a whole number: (first + last position, counted from 1)
    doubled = [2 * ordered.index(v) + ordered.count(v) + 1 for v in values]
    ways = rank_sums(tuple(sorted(doubled)), n)
    seen, expected = sum(doubled[:n]), n * (len(values) + 1)
    above = sum(count for total, count in ways.items() if total >= seen)
    below = sum(count for total, count in ways.items() if total <= seen)
    p = min(1.0, 2 * min(above, below) / math.comb(len(values), n))
    return WorstRank(p, seen > expected)


@lru_cache(maxsize=1 << 8)  # the same for all samples with equal ties: every look asks again
def rank_sums(ranks: tuple[int, ...], n: int) -> dict[int, int]:
    """How many ways there are to choose n of the ranks, by their sum."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]  # by how many, by their sum
    for rank in ranks:
        for chosen in range(n, 0, -1):
            for total, count in ways[chosen - 1].items():
                ways[chosen][total + rank] = ways[chosen].get(total + rank, 0) + count
    return ways[n]


# ---------------------------------------------------------------------------------------------
# What so many runs can find


def power(effect: float, n_per_arm: int, sigma: float, alpha: float = 0.05) -> float:
    """Power of the two-sided t test with n runs an arm of sd sigma, by the noncentral t
    (Cohen 1988). Fewer than two runs find nothing: 0. ValueError unless sigma is above 0."""
    finite([effect, sigma])
    if sigma <= 0:
        raise ValueError(f"power needs a standard deviation above 0, not {sigma!r}")
    if n_per_arm < 2:
        return 0.0
    shift = abs(effect) / (sigma * math.sqrt(2 / n_per_arm))
    return power_of_t(shift, 2 * n_per_arm - 2, alpha)


def mde80(s: float, n: int, alpha: float = 0.05) -> float | None:
    """Minimum detectable effect of n runs an arm of sd s at power .8: (t.975 + t.8) s sqrt(2/n)
    (Bloom 1995); what has that power exactly is 5 % more at n = 2, 1 % at 3. None for n < 2."""
    finite([s])
    if n < 2:
        return None
    from scipy.special import stdtrit

    df = 2 * n - 2
    return float(stdtrit(df, 1 - alpha / 2) + stdtrit(df, 0.8)) * s * math.sqrt(2 / n)


def runs_needed(
    effect: float, sigma: float, target_power: float = 0.8, alpha: float = 0.05, most: int = 1000
) -> int | None:
    """The fewest runs an arm with that power; None where `most` do not suffice."""
    ns = range(2, most + 1)  # power grows with n
    first = bisect_left(ns, target_power, key=lambda n: power(effect, n, sigma, alpha))
    return ns[first] if first < len(ns) else None


def paired_power(effect: float, n: int, sd: float, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test with n pairs whose differences have this sd, as `power`.
    It is 0 at level 0. ValueError unless sd is above 0."""
    finite([effect, sd])
    if sd <= 0:
        raise ValueError(f"power needs a standard deviation above 0, not {sd!r}")
    if n < 2 or alpha <= 0:
        return 0.0
    return power_of_t(abs(effect) / (sd / math.sqrt(n)), n - 1, alpha)


def power_of_t(shift: float, df: int, alpha: float) -> float:
    """P(|T| > the two-sided critical value) of a noncentral t: effect / se is the shift."""
    from scipy.special import nctdtr, stdtrit

    critical = -float(stdtrit(df, alpha / 2))
    below, lower = (float(nctdtr(df, shift, t)) for t in (critical, -critical))
    below, lower = (0.0 if math.isnan(p) else p for p in (below, lower))  # far out, both nothing
    return 1 - below + lower


def paired_mde80(sd: float, n: int, alpha: float = 0.05) -> float | None:
    """Minimum detectable effect of n pairs whose differences have this sd, as `mde80`; None for
    n < 2, and at level 0."""
    finite([sd])
    if n < 2 or alpha <= 0:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, 0.8)) * sd / math.sqrt(n)


# ---------------------------------------------------------------------------------------------
# Looking more than once: group-sequential bounds


def upper_tail(z: float) -> float:
    """P(Z > z) of the standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def t_critical(z: float, df: float) -> float:
    """Critical value of t with the same upper tail as z: the bound z, at small n. By the lower
    tail, which keeps its digits at large z (to 1e-9 of the tail up to z = 20)."""
    if not df > 0:
        raise ValueError(f"degrees of freedom must be above 0, not {df!r}")
    from scipy.special import stdtrit

    return math.copysign(float(stdtrit(df, upper_tail(abs(z)))), z)


def cubic_spending(t: float, alpha: float) -> float:
    """One-sided alpha spent by information fraction t: alpha t^3, of the power family of Kim and
    DeMets (1987). Between O'Brien and Fleming's, which spends next to nothing on a first look at
    three pairs of nine, and Pocock's, which leaves too little for the last."""
    return alpha * min(1.0, max(0.0, t)) ** 3


NEVER = 8.0  # the bound where nothing is to be spent; chosen: upper_tail(8) is 6e-16
LEAST_ALPHA = 1e-14  # that is spent; chosen: below any level, above what rounding leaves of none
MOST_NODES = 4096  # of the integration; chosen: enough for looks one pair apart at 16,000 pairs


def bounds(ns: Sequence[int], cumulative_alpha: Sequence[float]) -> tuple[float, ...]:
    """One-sided upper bounds on z at looks with information in proportion to ns.

    The probability under the null of having crossed by look k is cumulative_alpha[k]; NEVER where
    nothing is to be spent, also where the level falls below an earlier one. A bound rests on the
    looks so far and on what they spent, never on plans: where n_max is lowered for reasons other
    than the losses, spend by the new fractions from then on, and all of alpha stays right (Lan and
    DeMets 1983). By recursive numerical integration (Armitage, McPherson and Rowe 1969); what was
    computed for the earlier looks is kept.
    """
    if len(ns) != len(cumulative_alpha):
        raise ValueError(f"{len(ns)} looks and {len(cumulative_alpha)} levels: {ns}")
    return _bounds(tuple(ns), tuple(cumulative_alpha))


@lru_cache(maxsize=1 << 13)
def _bounds(ns: tuple[int, ...], cumulative_alpha: tuple[float, ...]) -> tuple[float, ...]:
    if not ns:
        return ()
    if not ns[-1] > (0, *ns)[-2]:
        raise ValueError(f"information must grow from look to look: {ns}")
    if not 0 <= cumulative_alpha[-1] < 1:
        raise ValueError(f"the alpha spent must be in [0, 1): {cumulative_alpha}")
    earlier = _bounds(ns[:-1], cumulative_alpha[:-1])
    spent = max(cumulative_alpha[:-1], default=0.0)
    return (*earlier, _next_bound(ns, earlier, cumulative_alpha[-1] - spent))


def _next_bound(ns: tuple[int, ...], earlier: tuple[float, ...], alpha: float) -> float:
    if alpha < LEAST_ALPHA:
        return NEVER
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    if not earlier:
        return -float(ndtri(alpha))
    grid, mass = _surviving(ns, earlier)
    drift, noise = _step(*ns[-2:])

    def excess(z: float) -> float:
        return float(ndtr((grid * drift - z) / noise) @ mass) - alpha

    return brentq(excess, -NEVER, NEVER, xtol=1e-9) if excess(NEVER) < 0 else NEVER


def _step(before: int, n: int) -> tuple[float, float]:
    """z at n is drift * (z before) + noise * (an independent standard normal)."""
    return math.sqrt(before / n), math.sqrt((n - before) / n)


@lru_cache(maxsize=1 << 13)
def _surviving(ns: tuple[int, ...], crossed_at: tuple[float, ...]):
    """Nodes on z at the last look but one of ns, and on each the probability mass (density times
    Gauss-Legendre weight) of the paths that crossed no bound up to and including that look.

    The last of ns only says how fine a step the nodes must carry. The normal density needs about
    one node per standard deviation; with two, bounds are within 1e-8 of those by many more.
    """
    import numpy as np

    low, high = -NEVER, crossed_at[-1]
    finest = min(_step(*pair)[1] for pair in pairwise(ns[-3:]))
    needed = 2 * (high - low) / finest
    if needed > MOST_NODES:
        raise ValueError(f"looks too close to each other for the integration: {ns[-3:]}")
    nodes, weights = _legendre(1 << max(6, math.ceil(math.log2(needed))))
    grid = low + (high - low) * (nodes + 1) / 2
    if len(crossed_at) == 1:
        density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    else:
        before, mass = _surviving(ns[:-1], crossed_at[:-1])
        drift, noise = _step(*ns[-3:-1])
        steps = (grid[:, None] - before * drift) / noise
        density = np.exp(-(steps**2) / 2) @ mass / (math.sqrt(2 * math.pi) * noise)
    return grid, density * weights * (high - low) / 2


@lru_cache(maxsize=8)
def _legendre(count: int):
    from scipy.special import roots_legendre

    return roots_legendre(count)


@dataclass(frozen=True)
class Family:
    """One test at each of the looks, and the share of alpha that it spends."""

    share: float
    ts: Sequence[float | None]  # improvement / se; None where a look had no such test
    dfs: Sequence[float | None]  # math.inf where t is a z


def repeated_p(ns: Sequence[int], n_maxes: Sequence[int], families: Sequence[Family]) -> float:
    """Repeated p-value: the smallest two-sided alpha at which one of these tests would have crossed
    its bound at one of these looks.

    At each look this is the repeated p-value of Jennison and Turnbull (2000, chapter 9): the level
    at which the sequential interval just reaches zero, with `cubic_spending` at n / n_max of each
    family's share and the bound on z turned into one on t. The smallest over the looks so far is at
    most alpha with probability alpha under the null, whenever one stops (Liu and Anderson 2008);
    that of several families by Bonferroni.

    Resolved to a ten thousandth of itself, from above; 1e-6 stands for that or less.
    """
    fractions = [n / n_max for n, n_max in zip(ns, n_maxes, strict=True)]

    def crossed(alpha: float) -> bool:
        spent = (
            [cubic_spending(f, family.share * alpha / 2) for f in fractions] for family in families
        )
        return any(
            t is not None and df is not None and abs(t) >= t_critical(z, df)
            for family, levels in zip(families, spent, strict=True)
            for z, t, df in zip(bounds(ns, levels), family.ts, family.dfs, strict=True)
        )

    least, most = 1e-6, 1.0
    if not crossed(most):
        return most
    if crossed(least):
        return least
    while most > least * 1.0001:  # the bounds fall as alpha grows
        middle = math.sqrt(least * most)
        least, most = (least, middle) if crossed(middle) else (middle, most)
    return most


# ---------------------------------------------------------------------------------------------
# Time


Curve = Sequence[tuple[float, float]]  # (time, loss), in order of time


def time_to_target(curve: Curve, target: float) -> float | None:
    """Time at which the running minimum of the loss first reaches the target, interpolated
    linearly between evaluations; None when it does not (a censored run, to be counted and never
    dropped). A loss that is not finite lowers no minimum."""
    lowest, before = math.inf, 0.0  # the running minimum, the time of the last evaluation
    for time, loss in curve:
        if loss <= target:
            if lowest == math.inf:
                return time
            return before + (lowest - target) / (lowest - loss) * (time - before)
        lowest, before = min(lowest, loss), time
    return None


def loss_at_time(curve: Curve, time: float) -> float | None:
    """Loss at a time, interpolated linearly; None outside of the curve, and beside a loss that is
    not finite."""
    for (t0, loss0), (t1, loss1) in pairwise([*curve[:1], *curve]):
        if t0 <= time <= t1:
            loss = loss0 if t1 == t0 else loss0 + (time - t0) / (t1 - t0) * (loss1 - loss0)
            return loss if math.isfinite(loss) else None
    return None


@dataclass(frozen=True)
class Ratio:
    """A ratio of times, with its interval."""

    ratio: float  # of geometric means, baseline / arm: above 1 the arm is faster
    low: float | None
    high: float | None


def time_ratio(
    times_baseline: Sequence[float], times_arm: Sequence[float], alpha: float = 0.05
) -> Ratio:
    """Ratio of times, how many times as fast the arm is, with Welch's interval on the logarithms
    (None where Welch is undefined). Only runs with a time: count the censored ones beside it.
    ValueError for a time that is not above 0."""
    if any(t <= 0 for t in [*times_baseline, *times_arm]):
        raise ValueError(f"times must be above 0: {[*times_baseline, *times_arm]!r}")
    c = compare([math.log(t) for t in times_baseline], [math.log(t) for t in times_arm], alpha)
    if c.ci_low is None or c.ci_high is None:
        return Ratio(math.exp(c.improvement), None, None)
    return Ratio(math.exp(c.improvement), math.exp(c.ci_low), math.exp(c.ci_high))
