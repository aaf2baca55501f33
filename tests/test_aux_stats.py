"""Every statistic against scipy, a published value, a simulation, or a hand-checked number."""

import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from ablation import stats as a

losses = st.lists(st.floats(2, 5), min_size=2, max_size=12)


def spread(values):
    return np.std(values) > 1e-6


# ---------------------------------------------------------------------------------------------
# Two groups


@settings(max_examples=200, deadline=None)
@given(losses, losses)
def test_compare_is_scipys_welch(x, y):
    assume(spread(x) and spread(y))
    ours, reference = a.compare(x, y), stats.ttest_ind(x, y, equal_var=False)
    low, high = reference.confidence_interval()
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-7, abs=1e-12)
    assert ours.df == pytest.approx(reference.df, rel=1e-7)
    assert (ours.ci_low, ours.ci_high) == (
        pytest.approx(low, rel=1e-7, abs=1e-9),
        pytest.approx(high, rel=1e-7, abs=1e-9),
    )


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (8, 8), (14, 5)])
def test_compare_is_scipys_welch_to_twelve_digits(n, m):
    rng = np.random.default_rng(n * 100 + m)
    for _ in range(50):
        x, y = rng.normal(0.3, 1.0, n), rng.normal(0.0, 0.5, m)
        ours, reference = a.compare(x, y), stats.ttest_ind(x, y, equal_var=False)
        low, high = reference.confidence_interval()
        found = (ours.p, ours.df, ours.improvement / ours.se, ours.ci_low, ours.ci_high)
        expected = (reference.pvalue, reference.df, reference.statistic, low, high)
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-12)


@given(losses, losses, st.floats(0.01, 100))
def test_compare_does_not_depend_on_the_unit(x, y, scale):
    assume(spread(x) and spread(y))
    nats, other = a.compare(x, y), a.compare([v * scale for v in x], [v * scale for v in y])
    assert other.ci_high == pytest.approx(nats.ci_high * scale, rel=1e-6, abs=1e-9)
    assert other.p == pytest.approx(nats.p, rel=1e-6, abs=1e-12)
    assert other.cohens_d == pytest.approx(nats.cohens_d, rel=1e-6, abs=1e-9)


@given(losses, losses, st.floats(-1, 1))
def test_compare_turns_round_and_shifts(x, y, shift):
    assume(spread(x) and spread(y))
    there, back = a.compare(x, y), a.compare(y, x)
    assert there.improvement == pytest.approx(-back.improvement)
    assert there.ci_low == pytest.approx(-back.ci_high)
    moved = a.compare([v + shift for v in x], y)
    assert moved.improvement == pytest.approx(there.improvement + shift, abs=1e-9)
    assert moved.se == pytest.approx(there.se, rel=1e-6)


def test_positive_is_good():
    assert a.compare([3.3, 3.31], [3.2, 3.21]).improvement == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("x", "y"),
    [([3.3], [3.2]), ([3.3, 3.4], [3.2]), ([3.3, 3.3], [3.2, 3.2]), ([3.3] * 3, [3.3] * 4)],
)
def test_what_is_undefined_is_none(x, y):
    c = a.compare(x, y)
    assert (c.se, c.df, c.ci_low, c.ci_high, c.p, c.cohens_d) == (None,) * 6
    assert math.isfinite(c.improvement)


def test_a_spread_too_small_to_be_squared_twice_is_still_a_test():
    tiny = a.compare([0, 1e-100, 3e-100], [5e-100, 6e-100, 8e-100])
    assert tiny.p == pytest.approx(a.compare([0, 1, 3], [5, 6, 8]).p)


def test_one_constant_group_is_still_a_test():
    c = a.compare([3.3, 3.3, 3.3], [3.2, 3.25, 3.21])
    assert c.p == pytest.approx(stats.ttest_1samp([3.2, 3.25, 3.21], 3.3).pvalue)


@pytest.mark.parametrize("bad", [[], [math.nan], [3.3, math.inf]])
@pytest.mark.parametrize(
    "statistic",
    [
        a.mean_sd,
        lambda bad: a.compare([3.3, 3.4], bad),
        lambda bad: a.compare(bad, [3.3, 3.4]),
        lambda bad: a.paired(bad, bad),
        lambda bad: a.bootstrap_interval(bad, [3.3, 3.4], np.random.default_rng(0)),
        lambda bad: a.dunnett([3.3, 3.4], [[3.2, 3.1], bad], np.random.default_rng(0)),
        lambda bad: a.dunnett(bad, [[3.2, 3.1]], np.random.default_rng(0)),
    ],
)
def test_values_that_are_missing_or_not_finite_are_refused(statistic, bad):
    with pytest.raises(ValueError, match="finite"):
        statistic(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_other_numbers_that_are_not_finite_are_refused(bad):
    for statistic in (
        lambda: a.pooled_variance([[3.3, 3.2], [bad]], 0.01, 8),
        lambda: a.worst_rank([3.3, bad], [3.2, 3.1], 0, 0),
        lambda: a.worst_rank([3.3], [bad], 1, 0),
        lambda: a.power(bad, 5, 0.0013),
        lambda: a.power(0.01, 5, bad),
        lambda: a.runs_needed(0.01, bad),
        lambda: a.mde80(bad, 5),
        lambda: a.time_ratio([10.0, 11.0], [9.0, bad]),
        lambda: a.compare([3.3, 1e200], [3.2, 3.1]),  # its square is not
    ):
        with pytest.raises(ValueError, match="finite"):
            statistic()


def test_cohens_d_by_hand():
    # means 3 and 1, both variances 1: two pooled standard deviations
    assert a.compare([2, 3, 4], [0, 1, 2]).cohens_d == pytest.approx(2.0)


def test_equivalence_is_shown_where_the_90_percent_interval_lies_inside():
    """Two one-sided tests (Schuirmann 1987), at .05 exactly where the interval touches delta."""
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.30, 3.31, 3.28]
    c = a.compare(x, y, alpha=0.10)
    delta = max(abs(c.ci_low), abs(c.ci_high))
    sides = ((delta, "greater"), (-delta, "less"))
    ps = [
        stats.ttest_ind([v + shift for v in x], y, equal_var=False, alternative=side).pvalue
        for shift, side in sides
    ]
    assert max(ps) == pytest.approx(0.05)


def test_pooled_variance_by_hand():
    # (8 * 0.01 + 0.5 + 0) / (8 + 1): one pair with SS .5, a single value adds nothing
    assert a.pooled_variance([[1.0, 2.0], [5.0]], 0.01, 8) == pytest.approx(0.58 / 9)
    assert a.pooled_variance([[5.0], []], 0.01, 8) == pytest.approx(0.01)  # the prior alone
    with pytest.raises(ValueError, match="a prior or a sample of two"):
        a.pooled_variance([[5.0]], 0.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(losses, losses)
def test_pooled_variance_without_a_prior_is_that_of_the_classical_t_test(x, y):
    assume(spread(x) and spread(y))
    n, m = len(x), len(y)
    expected = ((n - 1) * np.var(x, ddof=1) + (m - 1) * np.var(y, ddof=1)) / (n + m - 2)
    assert a.pooled_variance([x, y], 0.0, 0.0) == pytest.approx(expected, rel=1e-8)


def test_interval_and_equivalence_keep_their_levels_in_simulation():
    """5,000 pairs of groups of unequal n and sd; the true improvement is .02 = delta."""
    rng = np.random.default_rng(11)
    outside = equivalent = 0
    baselines, arms = rng.normal(3.32, 0.01, (5000, 4)), rng.normal(3.3, 0.02, (5000, 8))
    for x, y in zip(baselines, arms, strict=True):
        c = a.compare(x, y)
        outside += not c.ci_low <= 0.02 <= c.ci_high
        narrow = a.compare(x, y, alpha=0.10)
        equivalent += narrow.ci_low > -0.02 and narrow.ci_high < 0.02
    assert outside / 5000 == pytest.approx(0.05, abs=0.012)  # 4 se
    assert equivalent / 5000 <= 0.05 + 0.012


# ---------------------------------------------------------------------------------------------
# Sensitivity, many arms, failures


def test_paired_is_scipys():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.25, 3.27, 3.28]
    ours, reference = a.paired(x, y), stats.ttest_rel(x, y)
    assert ours.p == pytest.approx(reference.pvalue)
    assert ours.ci_low == pytest.approx(reference.confidence_interval().low)
    assert a.paired([3.3], [3.2]) == a.Paired(pytest.approx(0.1), None, None, None)
    assert a.paired([3.3, 3.4, 3.5], [3.2, 3.3, 3.4]).p is None  # one difference, thrice
    with pytest.raises(ValueError, match="3 and 2"):
        a.paired([1, 2, 3], [1, 2])


def test_bootstrap_is_repeatable_and_near_welch():
    rng = np.random.default_rng(1)
    x, y = list(rng.normal(3.3, 0.01, 10)), list(rng.normal(3.29, 0.01, 10))
    first = a.bootstrap_interval(x, y, np.random.default_rng(7))
    assert first == a.bootstrap_interval(x, y, np.random.default_rng(7))
    c = a.compare(x, y)
    assert first[0] == pytest.approx(c.ci_low, abs=0.8 * c.se)
    assert first[1] == pytest.approx(c.ci_high, abs=0.8 * c.se)
    assert a.bootstrap_interval([3.3], [3.2], np.random.default_rng(7)) is None
    assert a.bootstrap_interval([3.3] * 4, [3.2] * 4, np.random.default_rng(7)) is None


def test_bootstrap_is_scipys_bca():
    x, y = [3.30, 3.31, 3.29, 3.34], [3.29, 3.25, 3.27, 3.28, 3.20]
    reference = stats.bootstrap(
        (x, y),
        lambda u, v, axis: u.mean(axis=axis) - v.mean(axis=axis),
        method="BCa",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert a.bootstrap_interval(x, y, np.random.default_rng(5)) == pytest.approx(tuple(reference))


def test_dunnett_is_scipys_and_none_without_variance():
    x, arms = [3.30, 3.31, 3.29], [[3.2, 3.21, 3.22], [3.29, 3.30, 3.28]]
    reference = stats.dunnett(*arms, control=x, rng=np.random.default_rng(0)).pvalue
    assert a.dunnett(x, arms, np.random.default_rng(0)) == pytest.approx(list(reference))
    assert a.dunnett(x, arms) == a.dunnett(x, arms, np.random.default_rng(0))
    assert a.dunnett([3.3], [[3.2]]) == [None]
    assert a.dunnett([3.3] * 3, [[3.1] * 3, [3.2]]) == [None, None]  # rounding
    assert a.dunnett(x, []) == []


def test_dunnett_of_one_arm_is_the_pooled_t_test_and_of_two_is_stricter():
    x, y = [3.30, 3.31, 3.29], [3.29, 3.27, 3.28]
    alone = stats.ttest_ind(x, y).pvalue
    assert a.dunnett(x, [y])[0] == pytest.approx(alone, abs=1e-3)
    one_of_two = a.dunnett(x, [y, [3.30, 3.29, 3.31]])[0]
    assert alone < one_of_two < 2 * alone  # less strict than Bonferroni


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=12, unique=True), st.data())
def test_without_ties_worst_rank_is_the_exact_mann_whitney(values, data):
    n = data.draw(st.integers(1, len(values) - 1))
    x, y = values[:n], values[n:]
    reference = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert a.worst_rank(x, y, 0, 0).p == pytest.approx(reference)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.lists(st.integers(1, 5), max_size=5),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_worst_rank_is_the_permutation_test_of_the_rank_sum(x, y, x_diverged, y_diverged):
    """Ties among losses too; scipy's permutation test goes through every way to split the runs."""
    first, second = x + [1e9] * x_diverged, y + [1e9] * y_diverged
    assume(len(first) > 1 and len(second) > 1)  # as scipy's test demands
    ranks = stats.rankdata([*first, *second])
    reference = stats.permutation_test(
        (ranks[: len(first)], ranks[len(first) :]),
        lambda u, v, axis: u.sum(axis=axis),
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    ours = a.worst_rank(x, y, x_diverged, y_diverged)
    assert ours.p == pytest.approx(reference)
    turned = a.worst_rank(y, x, y_diverged, x_diverged)
    assert turned.p == pytest.approx(ours.p)
    assert not (turned.favours_arm and ours.favours_arm)


def test_worst_rank_by_hand():
    # one of two diverged against none of two: midranks 3, 4 and 1, 2 of six equally likely splits
    assert a.worst_rank([3.4], [3.2, 3.3], 1, 0) == a.WorstRank(2 / 6, True)
    # the lone loss of eight is the arm's: of 8 places it might have had, one is that good
    assert a.worst_rank([], [3.3], 7, 0).p == pytest.approx(2 / 8)


@pytest.mark.parametrize(("n", "m", "diverged"), [(2, 8, 4), (4, 8, 5), (3, 7, 2), (6, 6, 4)])
def test_worst_rank_errs_in_either_direction_at_half_its_level_at_most(n, m, diverged):
    """Over all equally likely splits of runs of which the worst diverged: the skew of tied ranks
    must not lend one direction the level of the other."""
    fine = n + m - diverged
    wrong = {True: 0, False: 0}
    for chosen in combinations(range(n + m), n):
        x = [float(k) for k in chosen if k < fine]
        y = [float(k) for k in range(fine) if k not in chosen]
        test = a.worst_rank(x, y, n - len(x), m - len(y))
        wrong[test.favours_arm] += test.p <= 0.05
    assert max(wrong.values()) / math.comb(n + m, n) <= 0.025


def test_worst_rank_of_fifteen_a_group_with_ties_is_exact_and_symmetric():
    """A normal approximation at such n is near; the exact p is a whole number of splits."""
    rng = np.random.default_rng(15)
    x, y = list(rng.normal(3.31, 0.01, 12)), list(rng.normal(3.30, 0.01, 13))
    ours = a.worst_rank(x, y, 3, 2)
    near = stats.mannwhitneyu([*x, *[9.0] * 3], [*y, *[9.0] * 2], method="asymptotic").pvalue
    assert ours.p == pytest.approx(near, rel=0.1)
    splits = ours.p * math.comb(30, 15) / 2
    assert splits == pytest.approx(round(splits), abs=1e-3)
    assert a.worst_rank(y, x, 2, 3).p == ours.p


def test_worst_rank_knows_only_ranks():
    x, y = [3.30, 3.31, 3.36], [3.29, 3.27]
    logs = a.worst_rank([math.log(v) for v in x], [math.log(v) for v in y], 0, 1)
    assert logs == a.worst_rank(x, y, 0, 1)
    diverged_is_a_huge_loss = a.worst_rank(x, [*y, 1e9], 0, 0)
    assert diverged_is_a_huge_loss == a.worst_rank(x, y, 0, 1)


def test_worst_rank_refuses_a_negative_count():
    with pytest.raises(ValueError, match="-1"):
        a.worst_rank([3.3], [3.2], -1, 0)


def test_worst_rank_at_its_ends():
    assert a.worst_rank([], [], 3, 3).p == 1.0
    assert a.worst_rank([], [3.0], 0, 0).p is None
    good = a.worst_rank([3.3, 3.4, 3.5, 3.6], [3.1, 3.2, 3.0, 2.9], 0, 0)
    assert good.favours_arm
    assert good.p == pytest.approx(2 / math.comb(8, 4))
    assert not a.worst_rank([3.3, 3.4], [3.1], 0, 3).favours_arm


# ---------------------------------------------------------------------------------------------
# Power


def test_power_against_simulation():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (20_000, 5)), rng.normal(-1.5, 1, (20_000, 5))
    found = (stats.ttest_ind(x, y, axis=1).pvalue < 0.05).mean()
    assert a.power(1.5, 5, 1.0) == pytest.approx(found, abs=0.012)


def test_power_at_no_effect_is_the_level_and_grows():
    assert a.power(0.0, 6, 1.0) == pytest.approx(0.05)
    grows = [a.power(0.003, n, 0.0013) for n in range(2, 20)]
    assert grows == sorted(grows)
    assert a.power(1.0, 8, 0.0013) == pytest.approx(1.0)


@pytest.mark.parametrize(("d", "n"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_runs_needed_as_published(d, n):
    """Small, medium and large effects, power .8 at two-sided .05 (Cohen 1988; G*Power)."""
    assert a.runs_needed(d, 1.0) == n


@given(st.floats(0.3, 20), st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=30, deadline=None)
def test_runs_needed_is_the_smallest_n(d, target):
    n = a.runs_needed(d, 1.0, target)
    assert a.power(d, n, 1.0) >= target
    assert n == 2 or a.power(d, n - 1, 1.0) < target


def test_runs_needed_beyond_the_most_is_none():
    n = a.runs_needed(0.002, 0.0013)
    assert a.runs_needed(0.002, 0.0013, most=n) == n
    assert a.runs_needed(0.002, 0.0013, most=n - 1) is None
    assert a.runs_needed(1e-6, 0.0013) is None
    assert a.runs_needed(0.0, 0.0013) is None


@given(st.floats(0, 1e4), st.integers(2, 200))
@settings(deadline=None)
def test_power_is_a_probability_whatever_the_sign(d, n):
    assert 0.05 - 1e-9 <= a.power(d, n, 1.0) <= 1 + 1e-9
    assert a.power(-d, n, 1.0) == a.power(d, n, 1.0)


def test_power_without_runs_or_without_a_standard_deviation():
    assert a.power(0.1, 1, 0.0013) == 0.0
    with pytest.raises(ValueError, match=r"above 0, not 0\.0"):
        a.power(0.1, 4, 0.0)


def test_mde80_has_power_80():
    for n in (4, 8, 14, 40):
        assert a.power(a.mde80(0.0013, n), n, 0.0013) == pytest.approx(0.8, abs=0.004)
    # by hand: t.975 = 2.1448 and t.8 = 0.8681 with 14 degrees of freedom
    assert a.mde80(2.0, 8) == pytest.approx((2.1448 + 0.8681) * 2 * 0.5, abs=2e-4)
    assert a.mde80(0.0013, 1) is None
    assert a.mde80(0.0, 5) == 0.0


@pytest.mark.parametrize(("dz", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_pairs_that_an_effect_takes_are_the_published_ones(dz, n):
    """Differences of means in sd of differences, power .8 at two-sided .05 (G*Power)."""
    assert a.paired_power(dz, n, 1.0) >= 0.8 > a.paired_power(dz, n - 1, 1.0)
    assert a.paired_power(-2 * dz, n, 2.0) == a.paired_power(dz, n, 1.0)


def test_paired_power_at_no_effect_is_the_level_and_without_a_level_nothing():
    assert a.paired_power(0.0, 6, 1.0, 0.01) == pytest.approx(0.01)
    assert a.paired_power(9.0, 6, 1.0, 0.0) == a.paired_power(9.0, 1, 1.0) == 0.0
    assert a.paired_mde80(1.0, 6, 0.0) is None and a.paired_mde80(1.0, 1) is None
    with pytest.raises(ValueError, match="above 0"):
        a.paired_power(0.1, 4, 0.0)
    for n in (3, 5, 20):
        found = a.paired_power(a.paired_mde80(0.0013, n), n, 0.0013)
        assert found == pytest.approx(0.8, abs=0.03 if n < 5 else 0.005)


@pytest.mark.parametrize("df", [1, 2, 8, 26, 1998])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, 30.0, 38.0, 1e4, 1e9])
@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.05, 0.4])
def test_the_power_of_t_is_scipys_also_far_out(df, shift, alpha):
    critical = stats.t.isf(alpha / 2, df)
    lower = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
    expected = stats.nct.sf(critical, df, shift) + lower
    assert a.power_of_t(shift, df, alpha) == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------------------------------------
# Sequential bounds


def pocock_spending(t: float, alpha: float) -> float:
    """One-sided alpha spent by information fraction t, alpha ln(1 + (e - 1) t), for bounds that are
    nearly the same at every look (Lan and DeMets 1983): another way to spend than the project's."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, max(0.0, t)))


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (a.obrien_fleming_spending, (4.333, 2.963, 2.359, 2.014)),
        (pocock_spending, (2.368, 2.368, 2.358, 2.350)),
        (a.obrien_fleming_spending, (4.877, 3.357, 2.680, 2.290, 2.031)),
        (pocock_spending, (2.438, 2.427, 2.410, 2.397, 2.386)),
    ],
)
def test_bounds_match_the_published_ones(spending, published):
    looks = range(1, len(published) + 1)
    spent = [spending(k / len(published), 0.025) for k in looks]
    assert a.bounds(looks, spent) == pytest.approx(published, abs=5.1e-4)


@pytest.mark.parametrize("spending", [a.obrien_fleming_spending, pocock_spending])
@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.5])
def test_spending_starts_at_nothing_grows_and_ends_at_alpha(spending, alpha):
    assert spending(0, alpha) == spending(-0.1, alpha) == 0.0
    spent = [spending(k / 50, alpha) for k in range(51)]
    assert spent == sorted(spent)
    assert spent[-1] == spending(1.2, alpha) == pytest.approx(alpha)


@pytest.mark.parametrize("ns", [(4, 5, 9), (1, 2, 3), (4, 30, 31)])
def test_bounds_spend_alpha_by_the_multivariate_normal(ns):
    """z at looks n < m correlates by sqrt(n / m): scipy's own integral as the reference."""
    spent = [pocock_spending(n / ns[-1], 0.05) for n in ns]
    bounds = a.bounds(ns, spent)
    for k in (1, 2, 3):
        covariance = [[math.sqrt(min(n, m) / max(n, m)) for m in ns[:k]] for n in ns[:k]]
        stay = stats.multivariate_normal.cdf(
            bounds[:k], cov=covariance, abseps=1e-8, releps=1e-8, maxpts=10**6
        )
        assert 1 - stay == pytest.approx(spent[k - 1], abs=2e-6)


def test_forty_looks_spend_alpha_in_simulation_look_by_look():
    rng = np.random.default_rng(40)
    ns = np.arange(4, 44)
    spent = [a.obrien_fleming_spending(n / 43, 0.025) for n in ns]
    bounds = np.array(a.bounds(ns.tolist(), spent))
    walks = rng.standard_normal((100_000, 43)).cumsum(axis=1)
    crossed = np.logical_or.accumulate(walks[:, 3:] / np.sqrt(ns) > bounds, axis=1).mean(axis=0)
    assert crossed == pytest.approx(spent, abs=4 * math.sqrt(0.025 / 100_000))
    assert bounds[-1] > stats.norm.isf(0.025)
    assert (np.diff(bounds[1:]) < 0).all()  # harder early; the first look also spends for n < 4


@pytest.mark.parametrize("ns", [(4, 4), (5, 4), (0, 3)])
def test_looks_without_new_information_are_refused(ns):
    with pytest.raises(ValueError, match="grow from look to look"):
        a.bounds(ns, (0.01, 0.02))
    with pytest.raises(ValueError, match="3 looks and 2 levels"):
        a.bounds((4, 5, 6), (0.01, 0.02))


def test_a_single_look_is_the_fixed_test():
    assert a.bounds((5,), (0.025,))[0] == pytest.approx(stats.norm.isf(0.025))


@pytest.mark.parametrize(("first", "last"), [(4, 8), (4, 20), (2, 9)])
def test_bounds_spend_alpha_in_simulation(first, last):
    rng = np.random.default_rng(first * 100 + last)
    ns = tuple(range(first, last + 1))
    spent = [a.obrien_fleming_spending(n / last, 0.025) for n in ns]
    bounds = np.array(a.bounds(ns, spent))
    walks = rng.standard_normal((200_000, last)).cumsum(axis=1)
    z = walks[:, first - 1 :] / np.sqrt(np.array(ns))
    assert (z > bounds).any(axis=1).mean() == pytest.approx(0.025, abs=0.0012)


def test_bounds_after_a_lowered_n_max_spend_what_was_left():
    """Planned for 20 pairs; after the look at 6 the budget leaves 9. No level is lost or won."""
    rng = np.random.default_rng(9)
    ns, n_maxes = range(4, 10), (20, 20, 20, 9, 9, 9)
    spent = [a.obrien_fleming_spending(n / m, 0.025) for n, m in zip(ns, n_maxes, strict=True)]
    bounds = np.array(a.bounds(ns, spent))
    assert tuple(bounds[:3]) == a.bounds((4, 5, 6), spent[:3])  # what was, stays
    walks = rng.standard_normal((400_000, 9)).cumsum(axis=1)[:, 3:]
    assert (walks / np.sqrt(ns) > bounds).any(axis=1).mean() == pytest.approx(0.025, abs=0.001)


def test_nothing_to_spend_is_never_crossed():
    assert a.bounds((4, 5), (0.0, 0.0)) == (a.NEVER, a.NEVER)
    assert a.bounds((4, 5), (0.02, 0.02))[1] == a.NEVER
    assert a.bounds((4, 5, 6), (0.02, 0.01, 0.02))[1:] == (a.NEVER, a.NEVER)  # spent is spent


def test_t_critical_has_the_same_tail():
    for z in (1.0, 1.96, 4.333, 7.0):
        for df in (2.0, 6.5, 40.0):
            assert stats.t.sf(a.t_critical(z, df), df) == pytest.approx(stats.norm.sf(z), rel=1e-6)


@pytest.mark.parametrize("z", [0.0, 0.5, 2.0, 4.333, 8.0, 20.0])
def test_t_critical_in_closed_form_far_into_the_tail(z):
    """One degree of freedom: cot(pi p). Two: (1 - 2 p) / sqrt(2 p (1 - p))."""
    p = a.upper_tail(z)
    assert a.t_critical(z, 1) == pytest.approx(1 / math.tan(math.pi * p), rel=1e-9, abs=1e-12)
    two = (1 - 2 * p) / math.sqrt(2 * p * (1 - p))
    assert a.t_critical(z, 2) == pytest.approx(two, rel=1e-9, abs=1e-12)
    assert a.t_critical(-z, 2) == -a.t_critical(z, 2)
    assert a.t_critical(z, math.inf) == pytest.approx(z, rel=1e-12, abs=1e-12)


def test_t_critical_at_its_ends():
    assert a.t_critical(math.inf, 5) == math.inf
    for df in (0, -1, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            a.t_critical(2.0, df)


@pytest.mark.parametrize("ns", [(4, 5, 6), (100, 101, 102), (1, 1000, 1001)])
def test_bounds_of_close_and_of_distant_looks_are_as_exact(ns):
    """The probability of crossing by the last look, by scipy's multivariate normal."""
    spent = [0.02, 0.03, 0.04]
    covariance = [[math.sqrt(min(n, m) / max(n, m)) for m in ns] for n in ns]
    stay = stats.multivariate_normal.cdf(
        a.bounds(ns, spent), cov=covariance, abseps=1e-9, releps=1e-9, maxpts=10**6
    )
    assert 1 - stay == pytest.approx(0.04, abs=1e-6)


@pytest.mark.parametrize("ns", [(1, 2, 3, 4), (4, 5, 60), range(4, 15), range(4, 44), (300, 301)])
@pytest.mark.parametrize("spending", [a.obrien_fleming_spending, pocock_spending])
def test_more_nodes_move_no_bound(ns, spending, monkeypatch):
    spent = [spending(n / max(ns), 0.025) for n in ns]
    found, legendre = a.bounds(ns, spent), a._legendre
    monkeypatch.setattr(a, "_legendre", lambda count: legendre(2 * count))
    try:
        for cached in (a._bounds, a._surviving):
            cached.cache_clear()
        assert a.bounds(ns, spent) == pytest.approx(found, abs=1e-8)
    finally:
        for cached in (a._bounds, a._surviving):
            cached.cache_clear()


def test_only_the_proportions_of_information_matter():
    spent = [0.01, 0.02, 0.05]
    assert a.bounds((400, 500, 900), spent) == pytest.approx(a.bounds((4, 5, 9), spent))


def test_looks_too_close_to_integrate_are_refused():
    with pytest.raises(ValueError, match="too close"):
        a.bounds((10**9, 10**9 + 1), (0.01, 0.02))


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan, math.inf])
def test_a_level_that_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        a.bounds((4, 5), (0.01, bad))


def test_a_new_look_costs_one_integration_and_no_earlier_one():
    spent = [a.obrien_fleming_spending(n / 33, 0.0247) for n in range(4, 34)]  # asked nowhere else
    a.bounds(range(4, 33), spent[:-1])
    before = a._surviving.cache_info().misses
    a.bounds(range(4, 34), spent)
    assert a._surviving.cache_info().misses == before + 1
    a.bounds(range(4, 34), spent)
    assert a._surviving.cache_info().misses == before + 1


@pytest.mark.parametrize(
    ("ns", "n_maxes"),
    [((4, 5), (10, 10)), ((4, 5, 6, 7), (14, 14, 9, 9)), (tuple(range(4, 14)), (13,) * 10)],
)
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
@pytest.mark.parametrize("df", [3.7, 20.0, math.inf])
def test_repeated_p_is_alpha_where_the_bound_is_just_met(ns, n_maxes, alpha, df):
    fractions = [n / m for n, m in zip(ns, n_maxes, strict=True)]
    z = a.bounds(ns, [a.obrien_fleming_spending(f, alpha / 2) for f in fractions])[-1]
    ts, dfs = [0.0] * len(ns), [df] * len(ns)
    ts[-1] = a.t_critical(z, df)
    assert a.repeated_p(ns, n_maxes, ts, dfs) == pytest.approx(alpha, rel=1e-3)
    ts[-1] = -a.t_critical(z, df)
    assert a.repeated_p(ns, n_maxes, ts, dfs) == pytest.approx(alpha, rel=1e-3)
    ts[-1] = a.t_critical(z + 0.01, df)
    assert a.repeated_p(ns, n_maxes, ts, dfs) < alpha
    ts[-1] = a.t_critical(z - 0.01, df)
    assert a.repeated_p(ns, n_maxes, ts, dfs) > alpha


def test_repeated_p_of_a_single_look_is_the_t_tests():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.28, 3.30, 3.28]
    c = a.compare(x, y)
    found = a.repeated_p((4,), (4,), [c.improvement / c.se], [c.df])
    assert found == pytest.approx(c.p, rel=1e-3)
    assert found >= c.p  # resolved from above


def test_repeated_p_at_its_ends():
    two = (4, 5), (10, 10)
    assert a.repeated_p(*two, [0.0, 0.0], [6, 8]) == 1.0
    assert a.repeated_p(*two, [0.0, 1e9], [6, 8]) == 1e-6
    assert a.repeated_p(*two, [None, None], [None, None]) == 1.0
    assert a.repeated_p((), (), [], []) == 1.0
    with pytest.raises(ValueError, match="zip"):
        a.repeated_p(*two, [0.0], [6])


def test_repeated_p_is_the_smallest_of_its_looks_and_never_rises():
    ns, n_maxes, ts = (4, 5, 6), (12, 12, 12), [3.0, 5.0, 2.0]
    alone = [
        a.repeated_p(ns, n_maxes, [t if j == k else None for j, t in enumerate(ts)], [8] * 3)
        for k in range(3)
    ]
    assert a.repeated_p(ns, n_maxes, ts, [8] * 3) == pytest.approx(min(alone), rel=1e-3)
    so_far = [a.repeated_p(ns[:k], n_maxes[:k], ts[:k], [8] * k) for k in (1, 2, 3)]
    assert so_far[0] >= so_far[1] == pytest.approx(so_far[2], rel=1e-3)


def test_repeated_p_falls_as_t_grows_and_is_never_below_the_nominal_p():
    ts = [0.1, 1.0, 2.0, 4.0, 8.0]
    repeated = [a.repeated_p((4, 5), (12, 12), [0.0, t], [8, 8]) for t in ts]
    assert repeated == sorted(repeated, reverse=True)
    assert all(r >= 2 * stats.t.sf(t, 8) for r, t in zip(repeated, ts, strict=True))


def test_repeated_p_is_at_most_alpha_in_at_most_alpha_of_the_experiments():
    """2,000 random walks under the null, looked at thrice; the same verdicts as the bounds'."""
    rng = np.random.default_rng(5)
    ns, maxes, dfs = (4, 6, 8), (8, 8, 8), (math.inf,) * 3
    z = rng.standard_normal((2000, 8)).cumsum(axis=1)[:, [3, 5, 7]] / np.sqrt(ns)
    promising = z[np.abs(z).max(axis=1) > 1.9]  # the rest cannot be below .05
    found = sum(a.repeated_p(ns, maxes, walk, dfs) <= 0.05 for walk in promising.tolist())
    spent = [a.obrien_fleming_spending(n / 8, 0.025) for n in ns]
    assert found == (np.abs(z) >= np.array(a.bounds(ns, spent))).any(axis=1).sum()
    assert found / 2000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


# ---------------------------------------------------------------------------------------------
# Time


def test_time_to_target_is_the_first_crossing_of_the_running_minimum():
    curve = [(0, 4.0), (1, 3.0), (2, 3.5), (3, 2.0), (4, 2.5)]
    assert a.time_to_target(curve, 3.5) == pytest.approx(0.5)
    assert a.time_to_target(curve, 2.5) == pytest.approx(2.5)  # the minimum: 3 at 2, 2 at 3
    assert a.time_to_target(curve, 4.5) == 0
    assert a.time_to_target(curve, 1.9) is None
    assert a.time_to_target([], 1.9) is None


def test_a_target_is_not_reached_where_the_loss_was_still_above_it():
    curve = [(0, 4.0), (1, 3.01), (2, 3.5), (3, 3.4), (4, 2.0)]
    assert a.time_to_target(curve, 3.0) > 3


def test_a_loss_that_is_not_finite_reaches_no_target():
    nan, inf = math.nan, math.inf
    assert a.time_to_target([(0, nan), (1, 4.0), (2, 3.0)], 3.5) == pytest.approx(1.5)
    assert a.time_to_target([(0, 4.0), (1, 3.0), (2, nan)], 3.5) == pytest.approx(0.5)
    assert a.time_to_target([(0, 4.0), (1, nan), (2, inf)], 3.5) is None
    assert a.loss_at_time([(0, 4.0), (1, nan)], 0.5) is None


@given(st.lists(st.floats(1, 5), min_size=1, max_size=8), st.floats(0.5, 5), st.floats(0, 1))
def test_time_to_target_against_a_dense_running_minimum(values, target, lower):
    minimum = np.minimum.accumulate(values)
    found = a.time_to_target(list(enumerate(values)), target)
    if minimum[-1] > target:
        assert found is None
    else:
        at = np.interp(found, range(len(values)), minimum)
        assert at == pytest.approx(min(target, values[0]))
        sooner = a.time_to_target(list(enumerate(values)), target + lower)
        assert sooner <= found + 1e-9  # an easier target is not reached later


def test_loss_at_time():
    curve = [(0, 4.0), (2, 3.0)]
    assert a.loss_at_time(curve, 0) == 4.0
    assert a.loss_at_time(curve[:1], 0) == 4.0
    assert a.loss_at_time([], 0) is None
    assert a.loss_at_time(curve, 0.5) == pytest.approx(3.75)
    assert a.loss_at_time(curve, 2) == pytest.approx(3.0)
    assert a.loss_at_time(curve, 2.1) is None


def test_time_ratio_is_welch_on_logarithms():
    x, y = [10.0, 11.0, 10.5], [9.0, 9.2, 9.1]
    r = a.time_ratio(x, y)
    low, high = stats.ttest_ind(np.log(x), np.log(y), equal_var=False).confidence_interval()
    assert r.ratio == pytest.approx(stats.gmean(x) / stats.gmean(y))
    assert (r.low, r.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert a.time_ratio([10.0], [9.0]).low is None
    assert a.time_ratio(x, y).low == pytest.approx(1 / a.time_ratio(y, x).high)
    with pytest.raises(ValueError, match="above 0"):
        a.time_ratio([0.0, 1.0], [1.0, 2.0])


# ---------------------------------------------------------------------------------------------
# The file itself


def test_importing_the_statistics_imports_no_numbers_library():
    """`run_aux.py --help` waits for this import."""
    heavy = "{'numpy', 'scipy', 'torch'}"
    loaded = f"import sys, ablation.stats; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(a.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", loaded], cwd=root, check=False).returncode == 0
