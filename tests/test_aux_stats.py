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


@settings(max_examples=100, deadline=None)
@given(losses)
def test_a_mean_has_scipys_interval(x):
    assume(spread(x))
    ours, reference = a.mean_interval(x, 0.1), stats.ttest_1samp(x, 0.0)
    assert (ours.n, ours.mean, ours.df) == (len(x), pytest.approx(np.mean(x)), len(x) - 1)
    interval = reference.confidence_interval(0.9)
    assert (ours.ci_low, ours.ci_high) == (
        pytest.approx(interval.low, rel=1e-7),
        pytest.approx(interval.high, rel=1e-7),
    )


@pytest.mark.parametrize("x", [[3.3], [3.3, 3.3], [3.3] * 7])
def test_a_mean_without_spread_has_no_interval(x):
    ours = a.mean_interval(x)
    assert (ours.mean, ours.se, ours.ci_low) == (pytest.approx(3.3), None, None)


@settings(max_examples=100, deadline=None)
@given(losses, losses, st.floats(-2, 2))
def test_one_sided_p_and_reach_are_scipys_and_agree(x, y, bound):
    assume(spread(x) and spread(y))
    c = a.compare(x, y)
    assert (c.se, c.df) == a.welch_error(len(x), c.sd_baseline, len(y), c.sd_arm)
    shifted = [value - bound for value in x]
    reference = stats.ttest_ind(shifted, y, equal_var=False, alternative="greater").pvalue
    p = a.one_sided_p(c.improvement - bound, c.se, c.df)
    assert p == pytest.approx(reference, rel=1e-6, abs=1e-12)
    at_the_limit = a.one_sided_reach(c.se, c.df, 0.01)
    assert a.one_sided_p(at_the_limit, c.se, c.df) == pytest.approx(0.01, rel=1e-6)


def test_the_errors_without_any_variance():
    assert a.welch_error(3, 0.0, 4, 0.0) == (0.0, 0.0)
    assert a.mean_error(4, 2.0) == (1.0, 3)


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
# Pairs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(2, 5), st.floats(2, 5)), min_size=2, max_size=9), st.data())
def test_paired_is_scipys(pairs, data):
    x, y = zip(*pairs, strict=True)
    assume(spread([b - a for b, a in pairs]))
    alpha = data.draw(st.sampled_from([0.05, 0.1, 0.4]))
    ours, reference = a.paired(x, y, alpha), stats.ttest_rel(x, y)
    assert ours.improvement / ours.se == pytest.approx(reference.statistic, rel=1e-7, abs=1e-9)
    assert ours.df == reference.df
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-7, abs=1e-12)
    found = (ours.ci_low, ours.ci_high)
    assert found == pytest.approx(tuple(reference.confidence_interval(1 - alpha)), abs=1e-9)


def test_pairs_are_undefined_where_all_differ_by_the_same():
    assert a.paired([3.3], [3.2]) == a.Paired(pytest.approx(0.1))
    assert a.paired([3.3, 3.4, 3.5], [3.2, 3.3, 3.4]).p is None  # one difference, thrice
    assert a.paired([3.3, 3.4, 3.5], [3.2, 3.3, 3.4]).ci_low is None  # not an interval of no width
    with pytest.raises(ValueError, match="3 and 2"):
        a.paired([1, 2, 3], [1, 2])


def test_what_pairs_share_does_not_widen_their_interval():
    """Unlike Welch's: a seed that is 1 nat worse is worse for both."""
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.25, 3.27, 3.28]
    bad = [0.0, 1.0, 0.0, -1.0]
    moved = [[loss + by for loss, by in zip(side, bad, strict=True)] for side in (x, y)]
    assert a.paired(*moved).se == pytest.approx(a.paired(x, y).se)
    assert a.compare(*moved).se > 10 * a.compare(x, y).se


# ---------------------------------------------------------------------------------------------
# Means of arms that do not share all seeds


def by_generalized_least_squares(runs, rho):
    """(X' V^-1 X)^-1 X' V^-1 y with V = rho where two runs share a seed, and 1 on the diagonal:
    the best linear unbiased estimates by their definition (Aitken 1936)."""
    arms, seeds, y = zip(*runs, strict=True)
    names = list(dict.fromkeys(arms))
    x = np.array([[float(arm == name) for name in names] for arm in arms])
    same = np.array([[float(s == t) for t in seeds] for s in seeds])
    inverse = np.linalg.inv(rho * same + (1 - rho) * np.eye(len(y)))
    means = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ np.array(y))
    return dict(zip(names, means, strict=True))


every_run = st.sampled_from([(arm, seed) for arm in "abcd" for seed in range(4)])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(every_run, min_size=1, max_size=12, unique=True),
    st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.9, 0.99]),
    st.integers(0, 1000),
)
def test_arm_means_are_the_best_linear_unbiased_ones(ran, rho, seed):
    noise = np.random.default_rng(seed).normal(3.3, 0.05, len(ran))
    runs = [(arm, of_seed, float(loss)) for (arm, of_seed), loss in zip(ran, noise, strict=True)]
    assert a.arm_means(runs, rho) == pytest.approx(by_generalized_least_squares(runs, rho))


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.9, 0.98])
def test_a_second_seed_counts_for_less_the_more_seeds_matter(rho):
    """One arm with two seeds among others with the first: (1-l) first + l second, l = (1-rho)/2."""
    runs = [("twice", 1, 3.30), ("once", 1, 3.31), ("other", 1, 3.27), ("twice", 2, 3.40)]
    share = (1 - rho) / 2
    found = a.arm_means(runs, rho)
    twice = (1 - share) * 3.30 + share * 3.40
    assert found["once"] - found["twice"] == pytest.approx(3.31 - twice)
    assert found["other"] - found["twice"] == pytest.approx(3.27 - twice)


def test_arm_means_without_a_correlation_are_plain_means():
    runs = [("x", 1, 3.0), ("x", 2, 4.0), ("y", 1, 3.2), ("z", 9, 3.1)]
    assert a.arm_means(runs, 0.0) == pytest.approx({"x": 3.5, "y": 3.2, "z": 3.1})


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_arm_means_of_equal_seeds_are_plain_means(rho):
    runs = [("x", 1, 3.0), ("y", 1, 3.2), ("x", 2, 4.0), ("y", 2, 4.4)]
    assert a.arm_means(runs, rho) == pytest.approx({"x": 3.5, "y": 3.8})


@pytest.mark.parametrize("rho", [-0.01, 1.0, 1.5, math.nan])
def test_a_correlation_that_is_none_is_refused(rho):
    with pytest.raises(ValueError, match=rf"\[0, 1\), not {rho!r}"):
        a.arm_means([("x", 1, 3.0)], rho)


def test_arm_means_refuse_a_loss_that_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        a.arm_means([("x", 1, 3.0), ("y", 1, math.inf)], 0.5)


# ---------------------------------------------------------------------------------------------
# Resampling, many arms, failures


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


@pytest.mark.parametrize(("n", "effect"), [(2, 4.0), (3, 3.0), (5, 1.5), (9, 1.0)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_against_simulation(n, effect, alpha):
    """Of Welch's test itself, whose degrees of freedom few runs leave to chance."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (40_000, n)), rng.normal(-effect, 1, (40_000, n))
    found = (stats.ttest_ind(x, y, axis=1, equal_var=False).pvalue < alpha).mean()
    assert a.power(effect, n, 1.0, alpha) == pytest.approx(found, abs=0.009)  # 3.6 se


def test_power_of_many_runs_is_that_of_the_pooled_test():
    critical, shift = stats.t.isf(0.025, 198), 0.4 / math.sqrt(2 / 100)
    assert a.power(0.4, 100, 1.0) == pytest.approx(stats.nct.sf(critical, 198, shift), abs=1e-4)


def test_power_at_no_effect_is_at_most_the_level_and_grows():
    levels = [a.power(0.0, n, 1.0) for n in (2, 3, 6, 30)]
    assert levels == sorted(levels) and levels[-1] == pytest.approx(0.05, abs=2e-4)
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


@pytest.mark.parametrize(("effect", "sd"), [(0.005, 0.0034), (0.002, 0.0034), (0.01, 0.001)])
def test_pairs_needed_is_the_smallest_n(effect, sd):
    n = a.pairs_needed(effect, sd, alpha=0.04)
    assert a.paired_power(effect, n, sd, 0.04) >= 0.8
    assert n == 2 or a.paired_power(effect, n - 1, sd, 0.04) < 0.8
    assert a.pairs_needed(effect, sd, alpha=0.04, most=n) == n
    assert n == 2 or a.pairs_needed(effect, sd, alpha=0.04, most=n - 1) is None


def test_runs_needed_beyond_the_most_is_none():
    n = a.runs_needed(0.002, 0.0013)
    assert a.runs_needed(0.002, 0.0013, most=n) == n
    assert a.runs_needed(0.002, 0.0013, most=n - 1) is None
    assert a.runs_needed(1e-6, 0.0013) is None
    assert a.runs_needed(0.0, 0.0013) is None


@given(st.floats(0, 1e4), st.integers(2, 200))
@settings(deadline=None)
def test_power_is_a_probability_whatever_the_sign(d, n):
    assert a.power(0.0, n, 1.0) - 1e-9 <= a.power(d, n, 1.0) <= 1 + 1e-9
    assert a.power(-d, n, 1.0) == a.power(d, n, 1.0)


def test_power_without_runs_or_without_a_standard_deviation():
    assert a.power(0.1, 1, 0.0013) == 0.0
    with pytest.raises(ValueError, match=r"above 0, not 0\.0"):
        a.power(0.1, 4, 0.0)


def test_mde80_has_power_80():
    for n in (2, 3, 8, 40):
        assert a.power(a.mde80(0.0013, n), n, 0.0013) == pytest.approx(0.8, abs=1e-6)
    # with many runs, the published (t.975 + t.8) s sqrt(2/n)
    assert a.mde80(2.0, 100) == pytest.approx((1.97202 + 0.84345) * 2 * math.sqrt(0.02), rel=1e-3)
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
        assert found == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("df", [1, 2, 8, 26, 1998])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, 30.0, 38.0, 1e4, 1e9])
@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.05, 0.4])
def test_the_power_of_t_is_scipys_also_far_out(df, shift, alpha):
    critical = stats.t.isf(alpha / 2, df)
    lower = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
    expected = stats.nct.sf(critical, df, shift) + lower
    assert a.power_of_t(shift, df, alpha) == pytest.approx(expected, abs=1e-9)


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
