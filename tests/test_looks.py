"""Each rule of a look at the pairs of stage 4: against the formula, scipy, and a simulation."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.special
import scipy.stats

from ablation import sequential
from ablation.plan.looks import (
    BELOW,
    HARMFUL,
    IMPROVES,
    MET,
    NO_EFFECT,
    PAIRS,
    RANKS,
    UNRESOLVED,
    WELCH,
    Look,
    batch_end,
    level_among_finished,
    look_from,
    looks_at,
    settled,
    target_label,
    verdict_of,
)
from ablation.plan.validation import Validation
from ablation.report.comparisons import repeated_ps
from ablation.study.profiles import Design
from tests.support.invent import noisy_pairs, pairs_of

DESIGN = Design(sigma0=0.0013, delta_eq=0.005, delta_target=0.02, drop=0.125)
WELCH_ALONE = replace(DESIGN, pairing=0.0)
TINY = 1e-9


def losses(pairs):
    """Final val losses, of baseline and best."""
    return [[run.val_loss for run in side] for side in zip(*pairs, strict=True)]


# ---------------------------------------------------------------------------------------------
# One look: verdict and label by its intervals


WELCH_OF_LOOK = {"name": WELCH, "share": 1.0, "z": 2.5, "q": 2.1, "p": 0.5}


def look(**fields) -> Look:
    plain = {"low": -1.0, "high": 1.0, "eq_low": -1.0, "eq_high": 1.0, "tests": [WELCH_OF_LOOK]}
    return look_from({"n": 6, "n_max": 8, "improvement": 0.0, **plain, **fields})


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"low": TINY}, IMPROVES),
        ({"low": 0.0}, ""),
        ({"low": -TINY}, ""),
        ({"high": -TINY}, HARMFUL),
        ({"high": 0.0}, ""),
        ({"high": TINY}, ""),
        ({"eq_low": -0.005 + TINY, "eq_high": 0.005 - TINY}, NO_EFFECT),
        ({"eq_low": -0.005, "eq_high": 0.004}, ""),
        ({"eq_low": -0.004, "eq_high": 0.005}, ""),
        ({"eq_low": -0.004, "eq_high": 0.005 + TINY}, ""),
        # a gain that is shown, however small, is called one
        ({"low": TINY, "eq_low": 0.001, "eq_high": 0.002}, IMPROVES),
    ],
)
def test_verdict_at_above_and_below_its_bounds(fields, verdict):
    ends = {"low": -1.0, "high": 1.0, "eq_low": -1.0, "eq_high": 1.0, **fields}
    assert verdict_of(**ends, design=DESIGN) == verdict


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (0.02, 0.03, MET),
        (0.02 + TINY, 0.03, MET),
        (0.02 - TINY, 0.03, UNRESOLVED),
        (0.01, 0.02, UNRESOLVED),
        (0.01, 0.02 + TINY, UNRESOLVED),
        (0.01, 0.02 - TINY, BELOW),
        (None, None, UNRESOLVED),
    ],
)
def test_label_at_above_and_below_the_target(low, high, label):
    assert target_label(look(low=low, high=high), DESIGN) == label


@pytest.mark.parametrize(
    ("verdict", "label", "low", "expected"),
    [
        ("", "", -1.0, False),
        (HARMFUL, "", -2.0, True),
        (NO_EFFECT, "", -0.004, True),
        (IMPROVES, MET, 0.02, True),
        (IMPROVES, BELOW, 0.001, True),
        (IMPROVES, UNRESOLVED, 0.001, False),
        (IMPROVES, UNRESOLVED, None, True),  # by ranks: no interval will ever resolve it
    ],
)
def test_settled_when_more_pairs_can_add_nothing(verdict, label, low, expected):
    found = look(verdict=verdict, label=label, low=low)
    assert settled(found, with_label=True) == expected
    assert settled(found) == bool(verdict)  # a target that is open keeps only "label" going


# ---------------------------------------------------------------------------------------------
# When looks are taken


@pytest.mark.parametrize(
    ("n", "n_max", "looks"),
    [
        (0, 9, []),
        (1, 9, []),
        (2, 9, []),
        (3, 9, [3]),
        (6, 9, [3, 4, 5, 6]),
        (2, 2, [2]),  # the budget allows no more
        (1, 1, []),  # one run an arm has no variance
    ],
)
def test_looks_begin_at_three_pairs_or_at_the_last_one(n, n_max, looks):
    found = looks_at(noisy_pairs(n, 0.0), [n_max] * n, DESIGN)
    assert [k.n for k in found] == looks


@pytest.mark.parametrize(
    ("pairs_per_batch", "looks"),
    [
        (1, [3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (2, [4, 6, 8, 10, 11]),
        (3, [3, 6, 9, 11]),
        (4, [4, 8, 11]),
        (5, [5, 10, 11]),
    ],
)
def test_pairs_side_by_side_are_looked_at_together_and_at_the_end(pairs_per_batch, looks):
    found = looks_at(noisy_pairs(11, 0.0), [11] * 11, DESIGN, pairs_per_batch=pairs_per_batch)
    assert [k.n for k in found] == looks


@pytest.mark.parametrize("pairs_per_batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("first_look", [2, 3, 4])
def test_a_batch_fills_the_machine_and_the_first_ones_hold_the_first_look(
    pairs_per_batch, first_look
):
    ends = [batch_end(n, first_look, pairs_per_batch) for n in range(1, 21)]
    first = next(k for k in range(first_look, 99) if k % pairs_per_batch == 0)
    expected = [next(k for k in range(first, 99, pairs_per_batch) if k >= n) for n in range(1, 21)]
    assert ends == expected


# ---------------------------------------------------------------------------------------------
# The two-interval rule


def cubic(n, n_max, alpha):
    return alpha * (n / n_max) ** 3


def reach_by_the_formula(z, se, df):
    """t_df(z) * se: the nominal level of the bound, on t."""
    return scipy.stats.t.isf(scipy.stats.norm.sf(z), df) * se


def looks_by_the_formula(baseline, best, n_maxes, w, alpha):
    """(n, improvement, reach, equivalence reach) of each look after a pair from the third on; w is
    the share of pairs. Welch's degrees of freedom are written out, bounds are those of `stats`,
    which have tests of their own."""
    found = []
    for n in range(3, len(baseline) + 1):
        b, a = np.array(baseline[:n]), np.array(best[:n])
        var_b, var_a = b.var(ddof=1) / n, a.var(ddof=1) / n
        df = (var_b + var_a) ** 2 / ((var_b**2 + var_a**2) / (n - 1))
        tests = [(1 - w, math.sqrt(var_b + var_a), df)]
        tests += [(w, (b - a).std(ddof=1) / math.sqrt(n), n - 1)] if w else []
        reaches = []
        for level in (alpha / 2, alpha):
            of_tests = []
            for share, se, df in tests:
                spent = [cubic(k, n_maxes[k - 1], share * level) for k in range(3, n + 1)]
                z = sequential.bounds(range(3, n + 1), spent)[-1]
                of_tests.append(reach_by_the_formula(z, se, df))
            reaches.append(min(of_tests))
        found.append((n, (b - a).mean(), *reaches))
    return found


@pytest.mark.parametrize("w", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.98])
@pytest.mark.parametrize("lowered", [9, 7])
def test_looks_are_those_of_the_formula(w, rho, lowered):
    """Also where the budget lowers the number of pairs after the fifth."""
    n = min(lowered, 9)
    pairs = noisy_pairs(n, 0.0011, seed=int(100 * rho) + n, rho=rho)
    n_maxes = [9] * 5 + [lowered] * (n - 5)
    found = looks_at(pairs, n_maxes, replace(DESIGN, pairing=w))
    expected = looks_by_the_formula(*losses(pairs), n_maxes, w, 0.05)
    assert len(found) == n - 2
    for k, (n_of_look, improvement, reach, eq_reach) in zip(found, expected, strict=True):
        ends = (improvement - reach, improvement + reach, improvement - eq_reach)
        assert k.n == n_of_look
        assert (k.improvement, k.reach, k.eq_reach) == pytest.approx((improvement, reach, eq_reach))
        assert (k.low, k.high, k.eq_low) == pytest.approx(ends)
        assert k.eq_high == pytest.approx(improvement + eq_reach)


def test_a_share_of_none_is_welch_alone_and_scipys_interval():
    pairs = noisy_pairs(6, 0.002, rho=0.9)
    last = looks_at(pairs, [9] * 6, WELCH_ALONE)[-1]
    (welch,) = last.tests
    assert (welch.name, welch.share) == (WELCH, 1.0)
    reference = scipy.stats.ttest_ind(*losses(pairs), equal_var=False)
    interval = reference.confidence_interval(1 - 2 * scipy.stats.norm.sf(welch.z))
    assert (last.low, last.high) == pytest.approx(tuple(interval), abs=1e-12)
    assert last.p == welch.p == pytest.approx(reference.pvalue)


def test_pairs_of_like_runs_decide_by_differences_as_scipys():
    pairs = noisy_pairs(6, 0.002, rho=0.98)
    last = looks_at(pairs, [9] * 6, DESIGN)[-1]
    reference = scipy.stats.ttest_rel(*losses(pairs))
    test = last.decides
    assert (test.name, test.share) == (PAIRS, DESIGN.pairing)
    interval = reference.confidence_interval(1 - 2 * scipy.stats.norm.sf(test.z))
    assert (last.low, last.high) == pytest.approx(tuple(interval), abs=1e-12)
    interval = reference.confidence_interval(1 - 2 * scipy.stats.norm.sf(test.q))
    assert (last.eq_low, last.eq_high) == pytest.approx(tuple(interval), abs=1e-12)
    assert test.p == pytest.approx(reference.pvalue)
    assert last.p == pytest.approx(scipy.stats.ttest_ind(*losses(pairs), equal_var=False).pvalue)


def test_welch_decides_where_pairs_are_no_more_alike_than_other_runs():
    last = looks_at(noisy_pairs(6, 0.002, seed=3), [9] * 6, DESIGN)[-1]
    assert [test.name for test in last.tests] == [WELCH, PAIRS]
    welch, pairs = last.tests
    assert last.decides is welch and welch.reach < pairs.reach
    assert last.reach == pytest.approx(welch.reach)


def one_test(name, z, q, df=8.0):
    """As a decision holds it: a test whose intervals reach as far as these bounds say."""
    return {"name": name, "share": 0.5, "z": z, "q": q, "se": 0.001, "df": df}


@pytest.mark.parametrize(
    ("verdict", "decides"), [("", WELCH), (IMPROVES, WELCH), (HARMFUL, WELCH), (NO_EFFECT, PAIRS)]
)
def test_the_test_that_decides_is_the_shorter_one_at_the_level_of_the_verdict(verdict, decides):
    tests = [one_test(WELCH, z=2.5, q=2.4), one_test(PAIRS, z=2.6, q=2.3)]
    assert look(tests=tests, verdict=verdict).decides.name == decides
    assert look(tests=tests[::-1], verdict=verdict).decides.name == decides


def test_each_of_the_two_intervals_is_the_shorter_one_at_its_own_level():
    """Of few pairs t has heavy tails: the test of fewer degrees of freedom loses most where the
    level is strict."""
    for seed in range(400):
        pairs = noisy_pairs(3, 0.001, seed=seed, rho=0.5)
        (found,) = looks_at(pairs, [5] * 3, replace(DESIGN, pairing=0.5))
        welch, of_pairs = found.tests
        assert found.reach == pytest.approx(min(welch.reach, of_pairs.reach))
        assert found.eq_reach == pytest.approx(min(welch.eq_reach, of_pairs.eq_reach))
        if welch.reach < of_pairs.reach and welch.eq_reach > of_pairs.eq_reach:
            return
    raise AssertionError("in no sample are they of different tests")


def test_a_look_comes_back_from_a_decisions_numbers_as_it_was():
    for pairs in (noisy_pairs(4, 0.002), pairs_of([3.2, 3.3, 3.4], [3.1, None, 3.2])):
        for found in looks_at(pairs, [9] * 4, DESIGN):
            assert look_from(asdict(found)) == found


def crossed(improvement_of_pairs, w, ns, alpha):
    """Which of the experiments (rows: baseline and best, n_max pairs) cross a bound of one of the
    tests, either way: with numpy, by p-values instead of intervals."""
    baseline, best = improvement_of_pairs
    found = np.zeros(len(baseline), dtype=bool)
    fractions = [n / ns[-1] for n in ns]
    of_welch, of_pairs = (
        sequential.bounds(ns, [share * alpha / 2 * t**3 for t in fractions]) for share in (1 - w, w)
    )
    for n, z_welch, z_pairs in zip(ns, of_welch, of_pairs, strict=True):
        b, a = baseline[:, :n], best[:, :n]
        var_b, var_a = b.var(axis=1, ddof=1), a.var(axis=1, ddof=1)
        mean = (b - a).mean(axis=1)
        df = (n - 1) * (var_b + var_a) ** 2 / (var_b**2 + var_a**2)
        for z, se, freedom in (
            (z_welch, np.sqrt((var_b + var_a) / n), df),
            (z_pairs, (b - a).std(axis=1, ddof=1) / math.sqrt(n), n - 1),
        ):
            tail = scipy.special.stdtr(freedom, -np.abs(mean) / se)
            found |= tail < scipy.stats.norm.sf(z)
    return found


@pytest.mark.parametrize("w", [0.2, 0.8])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_both_tests_and_all_looks_together_keep_the_level(w, rho):
    """10,000 experiments of at most nine pairs without an effect; the looks of 60 of them, of which
    half cross a bound, say the same."""
    rng = np.random.default_rng(int(10 * w + 100 * rho))
    noise = rng.standard_normal((3, 10_000, 9))
    sides = 3.28 + 0.0013 * (math.sqrt(1 - rho) * noise[:2] + math.sqrt(rho) * noise[2])
    found = crossed(sides, w, range(3, 10), 0.05)
    assert found.mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000)
    assert found.mean() > 0.009  # the table of FACTS has .013 at the least
    design = replace(DESIGN, pairing=w, delta_eq=1e-9)
    for k in [*np.flatnonzero(found)[:30], *np.flatnonzero(~found)[:30]]:
        looks = looks_at(pairs_of(*sides[:, k].tolist()), [9] * 9, design)
        assert (looks[-1].verdict in (IMPROVES, HARMFUL)) == found[k]


def test_first_looks_are_strict_and_the_last_one_nearly_nominal():
    zs = [k.tests[0].z for k in looks_at(noisy_pairs(9, 0.0), [9] * 9, WELCH_ALONE)]
    assert zs == sorted(zs, reverse=True)
    assert zs[0] == pytest.approx(scipy.stats.norm.isf(0.025 / 27))
    assert 1.96 < zs[-1] < 2.15


def test_one_look_at_the_end_spends_all_of_alpha_by_shares():
    (only,) = looks_at(noisy_pairs(3, 0.0), [3] * 3, DESIGN)
    for test, share in zip(only.tests, (0.8, 0.2), strict=True):
        assert test.z == pytest.approx(scipy.stats.norm.isf(share * 0.025), abs=1e-9)
        assert test.q == pytest.approx(scipy.stats.norm.isf(share * 0.05), abs=1e-9)


def test_a_budget_that_lowers_n_max_spends_the_rest_of_alpha_sooner():
    pairs = noisy_pairs(6, 0.0)
    kept = looks_at(pairs, [10] * 6, DESIGN)
    lowered = looks_at(pairs, [10, 10, 10, 10, 10, 6], DESIGN)
    assert lowered[:3] == kept[:3]  # what was spent stays spent
    for kind, share in enumerate((0.8, 0.2)):
        spent = [cubic(n, 10, share * 0.025) for n in (3, 4, 5)] + [share * 0.025]
        z = lowered[3].tests[kind].z
        assert z == pytest.approx(sequential.bounds((3, 4, 5, 6), spent)[-1])
        assert z < kept[3].tests[kind].z
    assert lowered[3].low > kept[3].low


@pytest.mark.parametrize("w", [0.0, 0.2, 0.8])
def test_the_repeated_p_is_below_alpha_exactly_where_a_verdict_fell(w):
    design, fell = replace(DESIGN, pairing=w, delta_eq=1e-9), 0
    for seed in range(12):
        pairs = noisy_pairs(6, 0.0016, seed=seed, rho=0.5 * (seed % 2))
        pairs[2:3] = pairs_of([3.3], [None]) if seed % 5 == 4 else pairs[2:3]  # ranks decide
        looks = looks_at(pairs, [7] * 6, design)
        fell += bool(looks[-1].verdict)
        assert [p <= design.alpha for p in repeated_ps(looks)] == [bool(k.verdict) for k in looks]
    assert 2 <= fell <= 10


# ---------------------------------------------------------------------------------------------
# Verdicts and labels from look to look


def test_a_verdict_once_reached_stands():
    good, bad = noisy_pairs(4, 0.02), noisy_pairs(6, -0.03, seed=1)
    looks = looks_at(good + bad, [10] * 10, DESIGN)
    assert looks[1].verdict == IMPROVES
    assert {k.verdict for k in looks[1:]} == {IMPROVES}
    assert looks[-1].low < 0  # although its own interval would not say so
    good, bad = noisy_pairs(4, 0.08), noisy_pairs(20, -0.08, seed=1)
    looks = looks_at(good + bad, [24] * 24, DESIGN, pairs_per_batch=4)
    assert looks[-1].high < 0 and {k.verdict for k in looks} == {IMPROVES}


def test_a_label_once_settled_stands():
    good, better = noisy_pairs(5, 0.01), noisy_pairs(5, 0.08, seed=1)
    looks = looks_at(good + better, [10] * 10, DESIGN)
    assert looks[2].label == BELOW
    assert target_label(looks[-1], DESIGN) != BELOW
    assert looks[-1].label == BELOW


def test_a_label_is_settled_later_than_its_verdict():
    looks = looks_at(noisy_pairs(9, 0.0235), [9] * 9, DESIGN)
    first = next(k for k in looks if k.verdict)
    assert (first.verdict, first.label) == (IMPROVES, UNRESOLVED)
    assert looks[-1].label == MET


def test_superiority_leaves_equivalence_stops_out_except_at_the_end():
    pairs, limits = noisy_pairs(9, 0.0), [9] * 9
    stops = [k.verdict for k in looks_at(pairs, limits, DESIGN)]
    assert NO_EFFECT in stops[:-1]
    left_out = [k.verdict for k in looks_at(pairs, limits, DESIGN, equivalence=False)]
    assert left_out == [""] * 6 + [NO_EFFECT]


@pytest.mark.parametrize(("stop_on", "settled_at"), [("any", 3), ("superiority", 3), ("label", 6)])
def test_only_the_label_keeps_pairs_coming_after_an_improvement(stop_on, settled_at):
    pairs, limits = tuple(noisy_pairs(9, 0.0235)), (20,) * 10
    labels = [(k.n, k.label) for k in looks_at(pairs, limits, DESIGN) if k.verdict]
    assert labels[:4] == [(3, UNRESOLVED), (4, UNRESOLVED), (5, UNRESOLVED), (6, MET)]
    so_far = [Validation(pairs[:n], 0, limits[: n + 1], DESIGN, stop_on) for n in range(10)]
    assert [len(v.pairs) for v in so_far if v.is_settled] == [*range(settled_at, 10)]


@pytest.mark.parametrize(("stop_on", "is_settled"), [("any", True), ("superiority", False)])
def test_equivalence_ends_the_pairs_unless_only_superiority_may(stop_on, is_settled):
    pairs = tuple(noisy_pairs(6, 0.0, sd=0.0005))
    assert Validation(pairs, 0, (20,) * 7, DESIGN, stop_on=stop_on).is_settled == is_settled


def test_where_no_further_pair_comes_the_last_look_spends_what_is_left():
    going_on = Validation(tuple(noisy_pairs(5, 0.002, sd=0.006)), 0, (9,) * 6, DESIGN)
    assert [k.n_max for k in going_on.looks] == [9, 9, 9]
    assert [k.n_max for k in going_on.final_looks] == [9, 9, 5]
    for before, after in zip(going_on.looks[-1].tests, going_on.final_looks[-1].tests, strict=True):
        assert after.z < before.z
    decided_already = Validation(tuple(noisy_pairs(4, -0.05)), 0, (9,) * 5, DESIGN)
    assert decided_already.is_settled
    assert decided_already.final_looks == decided_already.looks
    assert Validation((), 0, (9,), DESIGN).final_looks == []


# ---------------------------------------------------------------------------------------------
# Samples that allow no test, and divergences


@pytest.mark.parametrize("best", [3.28, 3.27])
def test_without_any_variance_nothing_is_concluded(best):
    looks = looks_at(pairs_of([3.28] * 6, [best] * 6), [6] * 6, DESIGN)
    assert {k.verdict for k in looks} == {""}
    assert {k.low for k in looks} == {k.decides.p for k in looks} == {None}
    assert not settled(looks[-1])


@pytest.mark.parametrize("w", [0.2, 0.8])
@pytest.mark.parametrize(("by", "verdict"), [(0.0001, ""), (0.02, IMPROVES), (-0.02, HARMFUL)])
def test_pairs_that_all_differ_by_the_same_leave_the_verdict_to_welch(w, by, verdict):
    """Their interval of no width would conclude from any difference, however small."""
    baseline = [3.280, 3.2813, 3.2788, 3.2795, 3.2802, 3.2797]
    pairs = pairs_of(baseline, [loss - by for loss in baseline])
    last = looks_at(pairs, [6] * 6, replace(DESIGN, pairing=w, delta_eq=1e-5))[-1]
    welch, of_pairs = last.tests
    assert of_pairs.se is of_pairs.p is of_pairs.reach is None
    assert last.decides is welch and last.reach > 0.001
    assert last.verdict == verdict


def test_equal_samples_have_no_effect():
    same = [3.2801, 3.2790, 3.2812, 3.2795, 3.2806, 3.2799]
    last = looks_at(pairs_of(same, same), [6] * 6, DESIGN)[-1]
    assert last.improvement == 0
    assert last.verdict == NO_EFFECT


def test_an_arm_that_always_diverges_is_harmful():
    pairs = pairs_of([3.28 + k / 1e4 for k in range(8)], [None] * 8)
    last = looks_at(pairs, [8] * 8, DESIGN)[-1]
    assert last.verdict == HARMFUL
    assert last.improvement is None  # of losses that do not exist


def test_a_baseline_that_always_diverges_is_nothing_to_beat():
    best = [3.28 + k / 1e4 for k in range(8)]
    last = looks_at(pairs_of([None] * 8, best), [8] * 8, DESIGN)[-1]
    assert last.p < 0.001
    assert last.verdict == ""


def test_pairs_end_where_no_baseline_finished_by_the_first_look():
    def after(baseline):
        pairs = tuple(pairs_of(baseline, [3.28 + k / 1e4 for k in range(len(baseline))]))
        return Validation(pairs, 0, (20,) * (len(pairs) + 1), DESIGN).has_nothing_to_beat

    assert not after([None, None])
    assert after([None, None, None])
    assert not after([None, None, None, 3.3])


def test_one_divergence_switches_to_ranks():
    baseline = [3.28 + k / 1e4 for k in range(8)]
    best = [3.26 + k / 1e4 for k in range(7)]
    pairs = pairs_of(baseline, [*best[:5], None, *best[5:]])
    looks = looks_at(pairs, [8] * 8, DESIGN)
    assert [k.low is None for k in looks] == [False] * 3 + [True] * 3
    assert [k.decides.name for k in looks] == [WELCH] * 3 + [RANKS] * 3
    reference = scipy.stats.mannwhitneyu(baseline, [*best, 99.0], method="exact").pvalue
    assert looks[-1].p == pytest.approx(reference)
    # 7 of 8 are far better: one divergence does not hide it, nor the verdict reached before
    assert looks[-1].verdict == IMPROVES


def test_ranks_leave_the_bounds_of_their_look_as_they_were():
    """A diverged run changes the test, not what it may spend."""
    pairs = noisy_pairs(6, 0.0)
    lost = [*pairs[:5], pairs_of([3.28] * 6, [None] * 6)[5]]
    (with_all, with_lost) = (looks_at(some, [9] * 6, DESIGN)[-1] for some in (pairs, lost))
    assert [(t.share, t.z, t.q) for t in with_all.tests] == [
        (t.share, t.z, t.q) for t in with_lost.tests
    ]
    assert [t.name for t in with_lost.tests] == [RANKS, PAIRS]
    assert with_lost.tests[1].se is with_lost.reach is with_lost.excluded is None


@pytest.mark.parametrize(("diverged", "verdict"), [(1, IMPROVES), (2, ""), (4, "")])
def test_the_rank_test_decides_at_the_level_that_welchs_would_have_had(diverged, verdict):
    baseline = [3.28 + k / 1e4 for k in range(9)]
    best = [3.26 + k / 1e4 for k in range(9 - diverged)]
    (last,) = looks_at(pairs_of(baseline, [None] * diverged + best), [9] * 9, DESIGN)[-1:]
    assert last.verdict == verdict
    level = 2 * scipy.stats.norm.sf(looks_at(noisy_pairs(9, 0.0), [9] * 9, DESIGN)[-1].tests[0].z)
    assert (last.p <= level) == bool(verdict)


@pytest.mark.parametrize("w", [0.2, 0.8])
def test_ranks_have_the_level_of_welchs_share_only(w):
    """The least p of n against n is just above, or just below, what the share of Welch leaves."""
    level = (1 - w) * 0.05
    for n in range(3, 8):
        pairs = pairs_of([3.28 + k / 1e4 for k in range(n - 1)] + [None],
                         [3.20 + k / 1e4 for k in range(n)])  # fmt: skip
        last = looks_at(pairs, [99] * (n - 1) + [n], replace(DESIGN, pairing=w, first_look=n))[-1]
        assert last.p == pytest.approx(2 / math.comb(2 * n, n))
        assert (last.verdict == IMPROVES) == (last.p <= level)


def test_a_rank_look_too_early_to_reach_its_level_decides_nothing():
    pairs = pairs_of([None, 3.28, 3.281, 3.282], [3.20, 3.201, 3.202, 3.203])
    last = looks_at(pairs, [9] * 4, DESIGN)[-1]
    assert last.p == pytest.approx(2 / math.comb(8, 4))  # the least that four against four can give
    assert last.verdict == ""


@pytest.mark.parametrize("w", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_runs_that_finished_are_level_by_the_equivalence_interval_of_their_look(w, rho):
    """At a delta just above and just below what the formula excludes, by the look's bounds."""
    pairs = noisy_pairs(8, 0.0003, seed=5, rho=rho)
    finished = pairs[1:7]
    lost = [replace(r, status="diverged", val_loss=None) for r in (pairs[0][0], pairs[7][1])]
    pairs = [(lost[0], pairs[0][1]), *finished, (pairs[7][0], lost[1])]
    design = replace(DESIGN, pairing=w)
    last = looks_at(pairs, [8] * 8, design)[-1]
    baseline, best = losses(finished)
    interval = []
    for share, test in ((1 - w, scipy.stats.ttest_ind), (w, scipy.stats.ttest_rel)):
        if share:
            spent = [cubic(n, 8, share * 0.05) for n in range(3, 9)]
            q = sequential.bounds(range(3, 9), spent)[-1]
            how = {"equal_var": False} if test is scipy.stats.ttest_ind else {}
            level = 1 - 2 * scipy.stats.norm.sf(q)
            interval.append(test(baseline, best, **how).confidence_interval(level))
    low, high = min(interval, key=lambda ends: ends.high - ends.low)
    excluded = max(-low, high)
    for factor, level in ((1.001, True), (0.999, False)):
        at_delta = replace(design, delta_eq=factor * excluded)
        assert level_among_finished(last, finished, at_delta) == level
    for too_few in ([], finished[:1]):  # no variance, no interval
        assert not level_among_finished(last, too_few, replace(design, delta_eq=99.0))
