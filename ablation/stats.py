"""What can the numbers say, and what not?  Every statistic of the project, once.

Pure functions over numbers, without knowledge of arms, stages or files. Improvement =
mean(baseline) - mean(arm): positive is good, everywhere. What is undefined (one value, no
variance) is None, never NaN; values that are missing altogether or not finite raise ValueError.
numpy and scipy are imported where they are used: importing this file costs nothing. Losses are in
nats/token, times in any one unit; p-values are two-sided where nothing else is said.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar, final

# ---------------------------------------------------------------------------------------------
# Two groups


TOO_LARGE = 1e150  # to be squared


def finite(values: Sequence[float]) -> list[float]:
    """The values as floats; ValueError if one is NaN, infinite, or too large to be squared."""
    values = [float(value) for value in values]
    if not all(abs(value) < TOO_LARGE for value in values):
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


def sd_interval(sd: float, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Between which the true standard deviation lies, by that of n normal values; n >= 2."""
    from scipy.special import chdtri

    upper, lower = (float(chdtri(n - 1, p)) for p in (alpha / 2, 1 - alpha / 2))
    return sd * math.sqrt((n - 1) / upper), sd * math.sqrt((n - 1) / lower)


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


def welch_error(n: int, sd_baseline: float, m: int, sd_arm: float) -> tuple[float, float]:
    """Standard error of the difference of two means and its Welch-Satterthwaite degrees of freedom,
    by n and m >= 2 values; (0, 0) without any variance."""
    of_baseline, of_arm = sd_baseline**2 / n, sd_arm**2 / m  # squared standard errors
    if not of_baseline + of_arm:
        return 0.0, 0.0
    share = of_baseline / (of_baseline + of_arm)  # rather than a square, which could underflow
    df = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))
    return math.sqrt(of_baseline + of_arm), df


def compare(baseline: Sequence[float], arm: Sequence[float], alpha: float = 0.05) -> Comparison:
    """Welch's test and interval (Welch 1947), as scipy.stats.ttest_ind(equal_var=False).

    Written out because a simulation asks a hundred thousand times; a test holds it to scipy's.
    """
    (mean_b, sd_b), (mean_a, sd_a) = mean_sd(baseline), mean_sd(arm)
    n, m, improvement = len(baseline), len(arm), mean_b - mean_a
    plain = Comparison(n, mean_b, sd_b, m, mean_a, sd_a, improvement)
    if sd_b is None or sd_a is None:
        return plain
    se, df = welch_error(n, sd_b, m, sd_a)
    if only_rounding(se, mean_b, mean_a):
        return plain
    reach = one_sided_reach(se, df, alpha / 2)
    pooled_sd = math.sqrt(((n - 1) * sd_b**2 + (m - 1) * sd_a**2) / (n + m - 2))
    return replace(
        plain,
        se=se,
        df=df,
        ci_low=improvement - reach,
        ci_high=improvement + reach,
        p=2 * one_sided_p(abs(improvement), se, df),
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
# One group, one side


@final
@dataclass(frozen=True)
class Mean:
    """A mean. The fields from `se` on are None where they are undefined, as those of a
    Comparison."""

    n: int
    mean: float
    sd: float | None
    se: float | None = None
    df: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def mean_error(n: int, sd: float) -> tuple[float, float]:
    """Standard error of the mean of n >= 2 values, and its degrees of freedom."""
    return sd / math.sqrt(n), n - 1


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> Mean:
    """A mean with its two-sided t interval, as scipy.stats.ttest_1samp."""
    mean, sd = mean_sd(values)
    plain = Mean(len(values), mean, sd)
    if sd is None or only_rounding(sd, *finite(values)):
        return plain
    se, df = mean_error(len(values), sd)
    reach = one_sided_reach(se, df, alpha / 2)
    return replace(plain, se=se, df=df, ci_low=mean - reach, ci_high=mean + reach)


def one_sided_p(distance: float, se: float, df: float) -> float:
    """p of the claim that an estimate lies truly above a bound, by its distance above it (below is
    negative): the one-sided one-sample t test of a mean, as scipy.stats.ttest_1samp(alternative=
    "greater"), and Welch's with a margin of an improvement, as ttest_ind of shifted values."""
    from scipy.special import stdtr

    return float(stdtr(df, -distance / se))


def one_sided_reach(se: float, df: float, alpha: float) -> float:
    """How far the one-sided confidence limit of level 1 - alpha lies from the estimate: p < alpha
    just where the estimate is farther than that from the bound."""
    from scipy.special import stdtrit

    return -float(stdtrit(df, alpha)) * se


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
    se, df = mean_error(len(differences), sd)
    reach, p = one_sided_reach(se, df, alpha / 2), 2 * one_sided_p(abs(improvement), se, df)
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
    """Power of Welch's two-sided test with n runs an arm, both of sd sigma.

    Given how the variance splits between the two samples, u to 1 - u, the statistic is a noncentral
    t with 2n - 2 degrees of freedom, and its critical value that of Welch's (n - 1) / (u^2 + (1 -
    u)^2); u has a Beta((n - 1) / 2, (n - 1) / 2) distribution, whatever the sum is. That split
    costs .11 of a power of .8 at n = 3, next to nothing at 9. Fewer than two runs find nothing: 0.
    ValueError unless sigma is above 0.
    """
    finite([effect, sigma])
    if sigma <= 0:
        raise ValueError(f"power needs a standard deviation above 0, not {sigma!r}")
    if n_per_arm < 2:
        return 0.0
    return power_of_welch(abs(effect) / (sigma * math.sqrt(2 / n_per_arm)), n_per_arm, alpha)


SPLITS = 64  # of u, equally likely, in the middle of each; chosen: power is right to 1e-4


@lru_cache(maxsize=1 << 10)
def welch_dfs(n: int) -> tuple[float, ...]:
    """Degrees of freedom of Welch's test for two normal samples of n, of one variance: equally
    likely values. The two halves of u are alike."""
    from scipy.special import betaincinv

    us = betaincinv((n - 1) / 2, (n - 1) / 2, [(k + 0.5) / SPLITS for k in range(SPLITS // 2)])
    return tuple((n - 1) / (u * u + (1 - u) ** 2) for u in us.tolist())


def power_of_welch(shift: float, n: int, alpha: float) -> float:
    """The same, by the effect in standard errors."""
    from scipy.special import stdtrit

    criticals = (-float(stdtrit(df, alpha / 2)) for df in welch_dfs(n))
    found = [beyond(critical, shift, 2 * n - 2) for critical in criticals]
    return math.fsum(found) / len(found)


def beyond(critical: float, shift: float, df: float) -> float:
    """P(|T| > critical) of a noncentral t: effect / se is the shift."""
    from scipy.special import nctdtr

    below, lower = (float(nctdtr(df, shift, t)) for t in (critical, -critical))
    below, lower = (0.0 if math.isnan(p) else p for p in (below, lower))  # far out, both nothing
    return 1 - below + lower


def detectable(power_of: Callable[[float], float]) -> float:
    """The shift, in standard errors, that is found with power .8."""
    from scipy.optimize import brentq

    most = 4.0
    while power_of(most) < 0.8:
        most *= 2
    return float(brentq(lambda shift: power_of(shift) - 0.8, 0.0, most))


def mde80(s: float, n: int, alpha: float = 0.05) -> float | None:
    """Minimum detectable effect of n runs an arm of sd s: the one with power .8 (Bloom 1995, who
    takes (t.975 + t.8) s sqrt(2/n); that is 13 % short at n = 3, 2 % at 6). None for n < 2."""
    finite([s])
    if n < 2:
        return None
    return detectable(lambda shift: power_of_welch(shift, n, alpha)) * s * math.sqrt(2 / n)


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
    """Power of a two-sided t test, by the effect in standard errors."""
    from scipy.special import stdtrit

    return beyond(-float(stdtrit(df, alpha / 2)), shift, df)


def paired_mde80(sd: float, n: int, alpha: float = 0.05) -> float | None:
    """Minimum detectable effect of n pairs whose differences have this sd, as `mde80`. None for
    n < 2, and at level 0."""
    finite([sd])
    if n < 2 or alpha <= 0:
        return None
    return detectable(lambda shift: power_of_t(shift, n - 1, alpha)) * sd / math.sqrt(n)


def pairs_needed(
    effect: float, sd: float, target_power: float = 0.8, alpha: float = 0.05, most: int = 1000
) -> int | None:
    """The fewest pairs with that power; None where `most` do not suffice."""
    ns = range(2, most + 1)
    first = bisect_left(ns, target_power, key=lambda n: paired_power(effect, n, sd, alpha))
    return ns[first] if first < len(ns) else None


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
