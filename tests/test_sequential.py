"""Bounds of group-sequential tests against published values, scipy and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from ablation import sequential
from ablation import stats as a


def obrien_fleming_spending(t: float, alpha: float) -> float:
    """One-sided alpha spent by information fraction t, 2 (1 - Phi(z_{alpha/2} / sqrt(t))) (Lan and
    DeMets 1983): the convention of the published bounds below."""
    return 2 * stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(min(1.0, t))) if t > 0 else 0.0


def pocock_spending(t: float, alpha: float) -> float:
    """One-sided alpha spent by information fraction t, alpha ln(1 + (e - 1) t), for bounds that are
    nearly the same at every look (Lan and DeMets 1983)."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, max(0.0, t)))


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (obrien_fleming_spending, (4.333, 2.963, 2.359, 2.014)),
        (pocock_spending, (2.368, 2.368, 2.358, 2.350)),
        (obrien_fleming_spending, (4.877, 3.357, 2.680, 2.290, 2.031)),
        (pocock_spending, (2.438, 2.427, 2.410, 2.397, 2.386)),
    ],
)
def test_bounds_match_the_published_ones(spending, published):
    looks = range(1, len(published) + 1)
    spent = [spending(k / len(published), 0.025) for k in looks]
    assert sequential.bounds(looks, spent) == pytest.approx(published, abs=5.1e-4)


@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.5])
def test_spending_starts_at_nothing_grows_and_ends_at_alpha(alpha):
    assert sequential.cubic_spending(0, alpha) == sequential.cubic_spending(-0.1, alpha) == 0.0
    assert sequential.cubic_spending(-2.0, alpha) == 0.0
    spent = [sequential.cubic_spending(k / 50, alpha) for k in range(51)]
    assert spent == sorted(spent)
    assert spent[-1] == sequential.cubic_spending(1.2, alpha) == pytest.approx(alpha)


def test_three_of_nine_pairs_spend_a_27th_and_six_eight():
    assert sequential.cubic_spending(3 / 9, 0.027) == pytest.approx(0.001)
    assert sequential.cubic_spending(6 / 9, 0.027) == pytest.approx(0.008)
    strict, lax = obrien_fleming_spending(1 / 3, 0.025), pocock_spending(1 / 3, 0.025)
    assert strict < sequential.cubic_spending(1 / 3, 0.025) / 5 < lax / 5


@pytest.mark.parametrize("ns", [(4, 5, 9), (1, 2, 3), (4, 30, 31)])
def test_bounds_spend_alpha_by_the_multivariate_normal(ns):
    """z at looks n < m correlates by sqrt(n / m): scipy's own integral as the reference."""
    spent = [pocock_spending(n / ns[-1], 0.05) for n in ns]
    bounds = sequential.bounds(ns, spent)
    for k in (1, 2, 3):
        covariance = [[math.sqrt(min(n, m) / max(n, m)) for m in ns[:k]] for n in ns[:k]]
        stay = stats.multivariate_normal.cdf(
            bounds[:k], cov=covariance, abseps=1e-8, releps=1e-8, maxpts=10**6
        )
        assert 1 - stay == pytest.approx(spent[k - 1], abs=2e-6)


def test_forty_looks_spend_alpha_in_simulation_look_by_look():
    rng = np.random.default_rng(40)
    ns = np.arange(4, 44)
    spent = [sequential.cubic_spending(n / 43, 0.025) for n in ns]
    bounds = np.array(sequential.bounds(ns.tolist(), spent))
    walks = rng.standard_normal((100_000, 43)).cumsum(axis=1)
    crossed = np.logical_or.accumulate(walks[:, 3:] / np.sqrt(ns) > bounds, axis=1).mean(axis=0)
    assert crossed == pytest.approx(spent, abs=4 * math.sqrt(0.025 / 100_000))
    assert bounds[-1] > stats.norm.isf(0.025)
    assert (np.diff(bounds[1:]) < 0).all()  # harder early; the first look also spends for n < 4


@pytest.mark.parametrize("ns", [(4, 4), (5, 4), (0, 3)])
def test_looks_without_new_information_are_refused(ns):
    with pytest.raises(ValueError, match="grow from look to look"):
        sequential.bounds(ns, (0.01, 0.02))
    with pytest.raises(ValueError, match="3 looks and 2 levels"):
        sequential.bounds((4, 5, 6), (0.01, 0.02))


def test_a_single_look_is_the_fixed_test():
    assert sequential.bounds((5,), (0.025,))[0] == pytest.approx(stats.norm.isf(0.025))


@pytest.mark.parametrize(("first", "last"), [(4, 8), (4, 20), (2, 9)])
def test_bounds_spend_alpha_in_simulation(first, last):
    rng = np.random.default_rng(first * 100 + last)
    ns = tuple(range(first, last + 1))
    spent = [sequential.cubic_spending(n / last, 0.025) for n in ns]
    bounds = np.array(sequential.bounds(ns, spent))
    walks = rng.standard_normal((200_000, last)).cumsum(axis=1)
    z = walks[:, first - 1 :] / np.sqrt(np.array(ns))
    assert (z > bounds).any(axis=1).mean() == pytest.approx(0.025, abs=0.0012)


def test_bounds_after_a_lowered_n_max_spend_what_was_left():
    """Planned for 20 pairs; after the look at 6 the budget leaves 9. No level is lost or won."""
    rng = np.random.default_rng(9)
    ns, n_maxes = range(4, 10), (20, 20, 20, 9, 9, 9)
    spent = [sequential.cubic_spending(n / m, 0.025) for n, m in zip(ns, n_maxes, strict=True)]
    bounds = np.array(sequential.bounds(ns, spent))
    assert tuple(bounds[:3]) == sequential.bounds((4, 5, 6), spent[:3])  # what was, stays
    walks = rng.standard_normal((400_000, 9)).cumsum(axis=1)[:, 3:]
    assert (walks / np.sqrt(ns) > bounds).any(axis=1).mean() == pytest.approx(0.025, abs=0.001)


def test_nothing_to_spend_is_never_crossed():
    assert sequential.bounds((4, 5), (0.0, 0.0)) == (sequential.NEVER, sequential.NEVER)
    assert sequential.bounds((4, 5), (0.02, 0.02))[1] == sequential.NEVER
    assert sequential.bounds((4, 5, 6), (0.02, 0.01, 0.02))[1:] == (
        sequential.NEVER,
        sequential.NEVER,
    )  # spent is spent


def test_t_critical_has_the_same_tail():
    for z in (1.0, 1.96, 4.333, 7.0):
        for df in (2.0, 6.5, 40.0):
            assert stats.t.sf(sequential.t_critical(z, df), df) == pytest.approx(
                stats.norm.sf(z), rel=1e-6
            )


@pytest.mark.parametrize("z", [0.0, 0.5, 2.0, 4.333, 8.0, 20.0])
def test_t_critical_in_closed_form_far_into_the_tail(z):
    """One degree of freedom: cot(pi p). Two: (1 - 2 p) / sqrt(2 p (1 - p))."""
    p = sequential.upper_tail(z)
    assert sequential.t_critical(z, 1) == pytest.approx(
        1 / math.tan(math.pi * p), rel=1e-9, abs=1e-12
    )
    two = (1 - 2 * p) / math.sqrt(2 * p * (1 - p))
    assert sequential.t_critical(z, 2) == pytest.approx(two, rel=1e-9, abs=1e-12)
    assert sequential.t_critical(-z, 2) == -sequential.t_critical(z, 2)
    assert sequential.t_critical(z, math.inf) == pytest.approx(z, rel=1e-12, abs=1e-12)


def test_t_critical_at_its_ends():
    assert sequential.t_critical(math.inf, 5) == math.inf
    for df in (0, -1, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            sequential.t_critical(2.0, df)


@pytest.mark.parametrize("ns", [(4, 5, 6), (100, 101, 102), (1, 1000, 1001)])
def test_bounds_of_close_and_of_distant_looks_are_as_exact(ns):
    """The probability of crossing by the last look, by scipy's multivariate normal."""
    spent = [0.02, 0.03, 0.04]
    covariance = [[math.sqrt(min(n, m) / max(n, m)) for m in ns] for n in ns]
    stay = stats.multivariate_normal.cdf(
        sequential.bounds(ns, spent), cov=covariance, abseps=1e-9, releps=1e-9, maxpts=10**6
    )
    assert 1 - stay == pytest.approx(0.04, abs=1e-6)


@pytest.mark.parametrize("ns", [(1, 2, 3, 4), (4, 5, 60), range(4, 15), range(4, 44), (300, 301)])
@pytest.mark.parametrize("spending", [sequential.cubic_spending, pocock_spending])
def test_more_nodes_move_no_bound(ns, spending, monkeypatch):
    spent = [spending(n / max(ns), 0.025) for n in ns]
    found, legendre = sequential.bounds(ns, spent), sequential._legendre
    monkeypatch.setattr(sequential, "_legendre", lambda count: legendre(2 * count))
    try:
        for cached in (sequential._bounds, sequential._surviving):
            cached.cache_clear()
        assert sequential.bounds(ns, spent) == pytest.approx(found, abs=1e-8)
    finally:
        for cached in (sequential._bounds, sequential._surviving):
            cached.cache_clear()


def test_only_the_proportions_of_information_matter():
    spent = [0.01, 0.02, 0.05]
    assert sequential.bounds((400, 500, 900), spent) == pytest.approx(
        sequential.bounds((4, 5, 9), spent)
    )


def test_looks_too_close_to_integrate_are_refused():
    with pytest.raises(ValueError, match="too close"):
        sequential.bounds((10**9, 10**9 + 1), (0.01, 0.02))


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan, math.inf])
def test_a_level_that_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        sequential.bounds((4, 5), (0.01, bad))


def test_a_new_look_costs_one_integration_and_no_earlier_one():
    spent = [sequential.cubic_spending(n / 33, 0.0247) for n in range(4, 34)]  # asked nowhere else
    sequential.bounds(range(4, 33), spent[:-1])
    before = sequential._surviving.cache_info().misses
    sequential.bounds(range(4, 34), spent)
    assert sequential._surviving.cache_info().misses == before + 1
    sequential.bounds(range(4, 34), spent)
    assert sequential._surviving.cache_info().misses == before + 1


def alone(ts, dfs):
    """A test that has all of the level."""
    return [sequential.Family(1.0, ts, dfs)]


@pytest.mark.parametrize(
    ("ns", "n_maxes"),
    [((4, 5), (10, 10)), ((4, 5, 6, 7), (14, 14, 9, 9)), (tuple(range(4, 14)), (13,) * 10)],
)
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
@pytest.mark.parametrize("df", [3.7, 20.0, math.inf])
def test_repeated_p_is_alpha_where_the_bound_is_just_met(ns, n_maxes, alpha, df):
    fractions = [n / m for n, m in zip(ns, n_maxes, strict=True)]
    z = sequential.bounds(ns, [sequential.cubic_spending(f, alpha / 2) for f in fractions])[-1]
    ts, dfs = [0.0] * len(ns), [df] * len(ns)
    ts[-1] = sequential.t_critical(z, df)
    assert sequential.repeated_p(ns, n_maxes, alone(ts, dfs)) == pytest.approx(alpha, rel=1e-3)
    ts[-1] = -sequential.t_critical(z, df)
    assert sequential.repeated_p(ns, n_maxes, alone(ts, dfs)) == pytest.approx(alpha, rel=1e-3)
    ts[-1] = sequential.t_critical(z + 0.01, df)
    assert sequential.repeated_p(ns, n_maxes, alone(ts, dfs)) < alpha
    ts[-1] = sequential.t_critical(z - 0.01, df)
    assert sequential.repeated_p(ns, n_maxes, alone(ts, dfs)) > alpha


def test_repeated_p_of_a_single_look_is_the_t_tests():
    x, y = [3.30, 3.31, 3.29, 3.32], [3.29, 3.28, 3.30, 3.28]
    c = a.compare(x, y)
    found = sequential.repeated_p((4,), (4,), alone([c.improvement / c.se], [c.df]))
    assert found == pytest.approx(c.p, rel=1e-3)
    assert found >= c.p  # resolved from above


def test_repeated_p_at_its_ends():
    two = (4, 5), (10, 10)
    assert sequential.repeated_p(*two, alone([0.0, 0.0], [6, 8])) == 1.0
    assert sequential.repeated_p(*two, alone([0.0, 1e9], [6, 8])) == 1e-6
    assert sequential.repeated_p(*two, alone([None, None], [None, None])) == 1.0
    assert sequential.repeated_p((), (), []) == 1.0
    with pytest.raises(ValueError, match="zip"):
        sequential.repeated_p(*two, alone([0.0], [6]))


def test_repeated_p_is_the_smallest_of_its_looks_and_never_rises():
    ns, n_maxes, ts = (4, 5, 6), (12, 12, 12), [3.0, 5.0, 2.0]
    singly = [[t if j == k else None for j, t in enumerate(ts)] for k in range(3)]
    smallest = min(sequential.repeated_p(ns, n_maxes, alone(one, [8] * 3)) for one in singly)
    assert sequential.repeated_p(ns, n_maxes, alone(ts, [8] * 3)) == pytest.approx(
        smallest, rel=1e-3
    )
    so_far = [sequential.repeated_p(ns[:k], n_maxes[:k], alone(ts[:k], [8] * k)) for k in (1, 2, 3)]
    assert so_far[0] >= so_far[1] == pytest.approx(so_far[2], rel=1e-3)


def test_repeated_p_falls_as_t_grows_and_is_never_below_the_nominal_p():
    ts = [0.1, 1.0, 2.0, 4.0, 8.0]
    repeated = [sequential.repeated_p((4, 5), (12, 12), alone([0.0, t], [8, 8])) for t in ts]
    assert repeated == sorted(repeated, reverse=True)
    assert all(r >= 2 * stats.t.sf(t, 8) for r, t in zip(repeated, ts, strict=True))


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_repeated_p_of_two_tests_is_that_of_the_first_to_cross_at_its_share(share):
    """A test with a share of the level needs as much more of it as it has less of it."""
    ns, n_maxes, dfs = (3, 4), (9, 9), [2, 3]
    ts, weak = [2.0, 9.0], [0.3, 0.4]

    def together(first, second):
        families = [
            sequential.Family(share, first, dfs),
            sequential.Family(1 - share, second, [5.1, 6.3]),
        ]
        return sequential.repeated_p(ns, n_maxes, families)

    all_of_it = sequential.repeated_p(ns, n_maxes, alone(ts, dfs))
    assert together(ts, weak) == pytest.approx(all_of_it / share, rel=1e-3)
    all_of_it = sequential.repeated_p(ns, n_maxes, alone(ts, [5.1, 6.3]))
    assert together([None, None], ts) == pytest.approx(all_of_it / (1 - share), rel=1e-3)
    assert together(ts, ts) == min(together(ts, weak), together(weak, ts))


def test_repeated_p_is_at_most_alpha_in_at_most_alpha_of_the_experiments():
    """2,000 random walks under the null, looked at thrice; the same verdicts as the bounds'."""
    rng = np.random.default_rng(5)
    ns, maxes, dfs = (4, 6, 8), (8, 8, 8), (math.inf,) * 3
    z = rng.standard_normal((2000, 8)).cumsum(axis=1)[:, [3, 5, 7]] / np.sqrt(ns)
    promising = z[np.abs(z).max(axis=1) > 1.9]  # the rest cannot be below .05
    found = sum(
        sequential.repeated_p(ns, maxes, alone(walk, dfs)) <= 0.05 for walk in promising.tolist()
    )
    spent = [sequential.cubic_spending(n / 8, 0.025) for n in ns]
    assert found == (np.abs(z) >= np.array(sequential.bounds(ns, spent))).any(axis=1).sum()
    assert found / 2000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
