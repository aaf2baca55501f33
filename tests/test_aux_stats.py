"""Every statistic against scipy, a published value, a simulation, or a hand-checked number."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

import aux_stats as a

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
    assert a.shifted_p(x, y, 0.0) is None
    assert a.equivalence_p(x, y, 0.1) is None


def test_one_constant_group_is_still_a_test():
    c = a.compare([3.3, 3.3, 3.3], [3.2, 3.25, 3.21])
    assert c.p == pytest.approx(stats.ttest_1samp([3.2, 3.25, 3.21], 3.3).pvalue)


@pytest.mark.parametrize("bad", [[], [math.nan], [3.3, math.inf]])
def test_values_that_are_missing_or_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        a.mean_sd(bad)
    with pytest.raises(ValueError, match="finite"):
        a.compare([3.3, 3.4], bad)


def test_cohens_d_by_hand():
    # means 3 and 1, both variances 1: two pooled standard deviations
    assert a.compare([2, 3, 4], [0, 1, 2]).cohens_d == pytest.approx(2.0)


def test_shifted_and_equivalence_are_scipys_one_sided_tests():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.30, 3.31, 3.28]
    shifted = stats.ttest_ind([v - 0.02 for v in x], y, equal_var=False, alternative="greater")
    assert a.shifted_p(x, y, 0.02) == pytest.approx(shifted.pvalue)
    low = stats.ttest_ind([v + 0.03 for v in x], y, equal_var=False, alternative="greater").pvalue
    high = stats.ttest_ind([v - 0.03 for v in x], y, equal_var=False, alternative="less").pvalue
    assert a.equivalence_p(x, y, 0.03) == pytest.approx(max(low, high))


def test_equivalence_agrees_with_the_90_percent_interval():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.30, 3.31, 3.28]
    c = a.compare(x, y, alpha=0.10)
    reach = max(abs(c.ci_low), abs(c.ci_high))
    assert a.equivalence_p(x, y, reach * 1.001) < 0.05 < a.equivalence_p(x, y, reach * 0.999)


def test_pooled_variance_by_hand():
    # (8 * 0.01 + 0.5 + 0) / (8 + 1): one pair with SS .5, a single value adds nothing
    assert a.pooled_variance([[1.0, 2.0], [5.0]], 0.01, 8) == pytest.approx(0.58 / 9)


# ---------------------------------------------------------------------------------------------
# Sensitivity, many arms, failures


def test_paired_is_scipys():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.25, 3.27, 3.28]
    ours, reference = a.paired(x, y), stats.ttest_rel(x, y)
    assert ours.p == pytest.approx(reference.pvalue)
    assert ours.ci_low == pytest.approx(reference.confidence_interval().low)
    assert a.paired([3.3], [3.2]).p is None
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


def test_dunnett_is_scipys_and_none_without_variance():
    x, arms = [3.30, 3.31, 3.29], [[3.2, 3.21, 3.22], [3.29, 3.30, 3.28]]
    reference = stats.dunnett(*arms, control=x, rng=np.random.default_rng(0)).pvalue
    assert a.dunnett(x, arms, np.random.default_rng(0)) == pytest.approx(list(reference))
    assert a.dunnett([3.3], [[3.2]], np.random.default_rng(0)) is None
    assert a.dunnett([3.3, 3.3], [[3.2, 3.2]], np.random.default_rng(0)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=12, unique=True), st.data())
def test_without_ties_worst_rank_is_the_exact_mann_whitney(values, data):
    n = data.draw(st.integers(1, len(values) - 1))
    x, y = values[:n], values[n:]
    reference = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert a.worst_rank(x, y, 0, 0).p == pytest.approx(reference)


def test_worst_rank_with_divergences_against_all_permutations():
    x, y = [3.3, 3.4, math.inf], [3.1, 3.2, math.inf, math.inf]

    def rank_sum(first, second):
        return stats.rankdata([*first, *second])[: len(first)].sum()

    reference = stats.permutation_test(
        ([1e9 if v == math.inf else v for v in x], [1e9 if v == math.inf else v for v in y]),
        rank_sum,
        n_resamples=np.inf,
    ).pvalue
    assert a.worst_rank(x[:2], y[:2], 1, 2).p == pytest.approx(reference)


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


def test_runs_needed_is_the_smallest_n():
    n = a.runs_needed(0.002, 0.0013)
    assert a.power(0.002, n, 0.0013) >= 0.8 > a.power(0.002, n - 1, 0.0013)
    assert a.runs_needed(1e-6, 0.0013) is None


def test_mde80_has_power_80():
    assert a.power(a.mde80(0.0013, 8), 8, 0.0013) == pytest.approx(0.8, abs=0.01)
    assert a.mde80(0.0013, 1) is None


# ---------------------------------------------------------------------------------------------
# Sequential bounds


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (a.obrien_fleming_spending, (4.333, 2.963, 2.359, 2.014)),
        (a.pocock_spending, (2.368, 2.368, 2.358, 2.350)),
    ],
)
def test_bounds_match_the_published_ones(spending, published):
    spent = [spending(k / 4, 0.025) for k in (1, 2, 3, 4)]
    assert a.bounds((1, 2, 3, 4), spent) == pytest.approx(published, abs=5e-4)


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


def test_nothing_to_spend_is_never_crossed():
    assert a.bounds((4, 5), (0.0, 0.0)) == (a.NEVER, a.NEVER)
    assert a.bounds((4, 5), (0.02, 0.02))[1] == a.NEVER


def test_t_critical_has_the_same_tail():
    for z in (1.0, 1.96, 4.333, 7.0):
        for df in (2.0, 6.5, 40.0):
            assert stats.t.sf(a.t_critical(z, df), df) == pytest.approx(stats.norm.sf(z), rel=1e-6)


def test_repeated_p_is_where_the_bound_is_just_met():
    ns, n_maxes, dfs = (4, 5), (10, 10), (6.0, 8.0)
    spent = [a.obrien_fleming_spending(n / 10, 0.025) for n in ns]
    z = a.bounds(ns, spent)[1]
    on_the_bound = (0.0, a.t_critical(z, 8.0))
    assert a.repeated_p(ns, n_maxes, on_the_bound, dfs) == pytest.approx(0.05, rel=1e-2)
    assert a.repeated_p(ns, n_maxes, (0.0, 0.0), dfs) > 0.9


# ---------------------------------------------------------------------------------------------
# Time


def test_time_to_target_is_the_first_crossing_of_the_running_minimum():
    curve = [(0, 4.0), (1, 3.0), (2, 3.5), (3, 2.0), (4, 2.5)]
    assert a.time_to_target(curve, 3.5) == pytest.approx(0.5)
    assert a.time_to_target(curve, 2.5) == pytest.approx(2.0)  # from (1, 3.0) to (3, 2.0)
    assert a.time_to_target(curve, 4.5) == 0
    assert a.time_to_target(curve, 1.9) is None
    assert a.time_to_target([], 1.9) is None


def test_loss_at_time():
    curve = [(0, 4.0), (2, 3.0)]
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
