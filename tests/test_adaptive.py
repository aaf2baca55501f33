"""Each rule of the adaptive plan, at, above and below its boundary, and where it has no data."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from ablation import stats
from ablation.plan.adaptive import (
    additive_fit,
    dropped_by_screening,
    refinements_to_run,
    two_best,
)
from ablation.plan.costs import Costs
from ablation.plan.forecast import Planned, placeholder
from ablation.plan.looks import (
    BELOW,
    HARMFUL,
    IMPROVES,
    MET,
    NO_EFFECT,
    UNDECIDED,
    UNRESOLVED,
    Look,
    looks_at,
    settled,
    target_label,
    verdict_of,
)
from ablation.plan.next_step import MAX_ATTEMPTS, conclude, next_step, pairs_begun
from ablation.plan.validation import MAX_GIVEN_UP, Validation, decide_looks
from ablation.runs.run import machine_seconds
from ablation.study import heads
from ablation.study.heads import FEW_REFINEMENTS, MANY_REFINEMENTS
from ablation.study.profiles import PROFILES, Design
from tests.support.invent import BASELINE, arm, experiment, overridden, result, state_of

DESIGN = Design(sigma0=0.0013, delta_eq=0.005, delta_target=0.02, drop=0.125)
BEST = arm("final_best", 4, 8)
TINY = 1e-9


def state_of_design(stage, results=(), expected=(), **fields):
    """The state of a stage of the adaptive plan, by DESIGN."""
    e = experiment(plan="adaptive", profile=replace(PROFILES["speedrun"], design=DESIGN))
    return state_of("adaptive", stage, results, expected, experiment=e, **fields)


def decide(*of_state, **fields):
    state = state_of_design(*of_state, **fields)
    return state.stage.decide(state)


# ---------------------------------------------------------------------------------------------
# Stage 4: one look


def look(**fields) -> Look:
    plain = {"low": -1.0, "high": 1.0, "eq_low": -1.0, "eq_high": 1.0, "p": 0.5}
    return Look(**{"n": 6, "n_max": 8, "improvement": 0.0, "z": 2.5, "q": 2.1, **plain, **fields})


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
    assert settled(look(verdict=verdict, label=label, low=low)) == expected


# ---------------------------------------------------------------------------------------------
# Stage 4: look after look


def pairs_of(baseline, best):
    """Pairs in order; None is a run that diverged."""

    def run(an_arm, k, loss):
        status = "diverged" if loss is None else "ok"
        return result(an_arm, loss, status=status, stage=4, index=k)

    both = zip(baseline, best, strict=True)
    return [(run(BASELINE, k, b), run(BEST, k, a)) for k, (b, a) in enumerate(both)]


def noisy_pairs(n, improvement, sd=0.0013, seed=0):
    """Whose observed improvement is exactly this, at the last pair."""
    noise = np.random.default_rng(seed).standard_normal((2, n))
    noise -= noise.mean(axis=1, keepdims=True) if n else 0.0
    baseline, best = 3.28 + sd * noise - [[0.0], [improvement]]
    return pairs_of(baseline.tolist(), best.tolist())


@pytest.mark.parametrize(
    ("n", "n_max", "looks"),
    [
        (0, 9, []),
        (1, 9, []),
        (3, 9, []),
        (4, 9, [4]),
        (6, 9, [4, 5, 6]),
        (3, 3, [3]),  # the budget allows no more
        (2, 2, [2]),
        (1, 1, []),  # one run an arm has no variance
    ],
)
def test_looks_begin_at_four_pairs_or_at_the_last_one(n, n_max, looks):
    found = looks_at(noisy_pairs(n, 0.0), [n_max] * n, DESIGN)
    assert [k.n for k in found] == looks


def test_pairs_side_by_side_are_looked_at_together_and_at_the_end():
    found = looks_at(noisy_pairs(11, 0.0), [11] * 11, DESIGN, pairs_per_batch=4)
    assert [k.n for k in found] == [4, 8, 11]


def test_intervals_are_welch_at_the_nominal_level_of_the_bound():
    pairs = noisy_pairs(6, 0.002)
    last = looks_at(pairs, [9] * 6, DESIGN)[-1]
    spent = [stats.obrien_fleming_spending(n / 9, 0.025) for n in (4, 5, 6)]
    assert last.z == pytest.approx(stats.bounds((4, 5, 6), spent)[-1])
    level = 1 - 2 * scipy.stats.norm.sf(last.z)
    reference = scipy.stats.ttest_ind(
        [b.val_loss for b, _ in pairs], [a.val_loss for _, a in pairs], equal_var=False
    ).confidence_interval(level)
    assert (last.low, last.high) == pytest.approx(tuple(reference), abs=1e-12)
    assert last.eq_low > last.low
    assert last.eq_high < last.high


def test_first_looks_are_strict_and_the_last_one_nearly_nominal():
    zs = [k.z for k in looks_at(noisy_pairs(9, 0.0), [9] * 9, DESIGN)]
    assert zs == sorted(zs, reverse=True)
    assert zs[0] > 2.9
    assert 1.96 < zs[-1] < 2.1


def test_one_look_at_the_end_spends_all_of_alpha():
    only = looks_at(noisy_pairs(4, 0.0), [4] * 4, DESIGN)
    assert only[0].z == pytest.approx(scipy.stats.norm.isf(0.025), abs=1e-9)
    assert only[0].q == pytest.approx(scipy.stats.norm.isf(0.05), abs=1e-9)


def test_a_budget_that_lowers_n_max_spends_the_rest_of_alpha_sooner():
    pairs = noisy_pairs(6, 0.0)
    kept = looks_at(pairs, [10] * 6, DESIGN)
    lowered = looks_at(pairs, [10, 10, 10, 10, 10, 6], DESIGN)
    assert [k.z for k in lowered[:2]] == [k.z for k in kept[:2]]  # what was spent stays spent
    spent = [stats.obrien_fleming_spending(n / 10, 0.025) for n in (4, 5)] + [0.025]
    assert lowered[2].z == pytest.approx(stats.bounds((4, 5, 6), spent)[-1])
    assert lowered[2].z < kept[2].z
    assert lowered[2].low > kept[2].low


def test_a_verdict_once_reached_stands():
    good, bad = noisy_pairs(4, 0.02), noisy_pairs(6, -0.03, seed=1)
    looks = looks_at(good + bad, [10] * 10, DESIGN)
    assert looks[0].verdict == IMPROVES
    assert {k.verdict for k in looks} == {IMPROVES}
    assert looks[-1].low < 0  # although its own interval would not say so
    good, bad = noisy_pairs(4, 0.08), noisy_pairs(20, -0.08, seed=1)
    looks = looks_at(good + bad, [24] * 24, DESIGN, pairs_per_batch=10)
    assert looks[-1].high < 0 and {k.verdict for k in looks} == {IMPROVES}


def test_a_label_once_settled_stands():
    good, better = noisy_pairs(5, 0.01), noisy_pairs(5, 0.08, seed=1)
    looks = looks_at(good + better, [10] * 10, DESIGN)
    assert looks[1].label == BELOW
    assert target_label(looks[-1], DESIGN) != BELOW
    assert looks[-1].label == BELOW


def test_a_label_is_settled_later_than_its_verdict():
    looks = looks_at(noisy_pairs(9, 0.0235), [9] * 9, DESIGN)
    assert (looks[0].verdict, looks[0].label) == (IMPROVES, UNRESOLVED)
    assert looks[-1].label == MET


def test_superiority_leaves_equivalence_stops_out_except_at_the_end():
    pairs, limits = noisy_pairs(9, 0.0), [9] * 9
    stops = [k.verdict for k in looks_at(pairs, limits, DESIGN)]
    assert NO_EFFECT in stops[:-1]
    left_out = [k.verdict for k in looks_at(pairs, limits, DESIGN, equivalence=False)]
    assert left_out == [""] * 5 + [NO_EFFECT]


def test_where_no_further_pair_comes_the_last_look_spends_what_is_left():
    going_on = Validation(tuple(noisy_pairs(5, 0.002, sd=0.006)), 0, (9,) * 6, DESIGN)
    assert [k.n_max for k in going_on.looks] == [9, 9]
    assert [k.n_max for k in going_on.final_looks] == [9, 5]
    assert going_on.final_looks[-1].z < going_on.looks[-1].z
    decided_already = Validation(tuple(noisy_pairs(4, -0.05)), 0, (9,) * 5, DESIGN)
    assert decided_already.is_settled
    assert decided_already.final_looks == decided_already.looks
    assert Validation((), 0, (9,), DESIGN).final_looks == []


# ---------------------------------------------------------------------------------------------
# Stage 4: samples that allow no test, and divergences


@pytest.mark.parametrize("best", [3.28, 3.27])
def test_without_any_variance_nothing_is_concluded(best):
    pairs = pairs_of([3.28] * 6, [best] * 6)
    looks = looks_at(pairs, [6] * 6, DESIGN)
    assert {k.verdict for k in looks} == {""}
    assert not settled(looks[-1])
    decision = verdict_on(looks, pairs)
    assert decision.numbers["verdict"] == UNDECIDED
    assert any("without variance" in fact for fact in decision.facts)


def test_equal_samples_have_no_effect():
    losses = [3.2801, 3.2790, 3.2812, 3.2795, 3.2806, 3.2799]
    last = looks_at(pairs_of(losses, losses), [6] * 6, DESIGN)[-1]
    assert last.improvement == 0
    assert last.verdict == NO_EFFECT


def test_all_diverged_is_inconclusive():
    pairs = pairs_of([None] * 8, [None] * 8)
    looks = looks_at(pairs, [8] * 8, DESIGN)
    assert {k.verdict for k in looks} == {""}
    decision = verdict_on(looks, pairs)
    assert decision.numbers["verdict"] == UNDECIDED
    assert "every run diverged" in " ".join(decision.facts)
    assert (decision.numbers["baseline_diverged"], decision.numbers["best_diverged"]) == (8, 8)


def test_an_arm_that_always_diverges_is_harmful():
    pairs = pairs_of([3.28 + k / 1e4 for k in range(8)], [None] * 8)
    last = looks_at(pairs, [8] * 8, DESIGN)[-1]
    assert last.verdict == HARMFUL
    assert last.improvement is None  # of losses that do not exist


def test_a_baseline_that_always_diverges_is_nothing_to_beat():
    last = looks_at(pairs_of([None] * 8, [3.28 + k / 1e4 for k in range(8)]), [8] * 8, DESIGN)[-1]
    assert last.p < 0.001
    assert last.verdict == ""


def test_one_divergence_switches_to_ranks():
    baseline = [3.28 + k / 1e4 for k in range(8)]
    best = [3.26 + k / 1e4 for k in range(7)]
    pairs = pairs_of(baseline, [*best[:5], None, *best[5:]])
    looks = looks_at(pairs, [8] * 8, DESIGN)
    assert [k.low is None for k in looks] == [False, False, True, True, True]
    reference = scipy.stats.mannwhitneyu(baseline, [*best, 99.0], method="exact").pvalue
    assert looks[-1].p == pytest.approx(reference)
    # 7 of 8 are far better: one divergence does not hide it, nor the verdict reached before
    assert looks[-1].verdict == IMPROVES


@pytest.mark.parametrize(("diverged", "verdict"), [(1, IMPROVES), (2, ""), (4, "")])
def test_the_rank_test_decides_at_the_level_of_its_look(diverged, verdict):
    baseline = [3.28 + k / 1e4 for k in range(9)]
    best = [3.26 + k / 1e4 for k in range(9 - diverged)]
    (look,) = looks_at(pairs_of(baseline, [None] * diverged + best), [9] * 9, DESIGN)[-1:]
    assert look.verdict == verdict
    assert (look.p <= 2 * stats.upper_tail(look.z)) == bool(verdict)


def test_where_runs_diverged_differences_are_of_the_pairs_that_finished():
    of_seeds = [3.20, 3.21, 3.22, 3.23, 3.24, 3.60]  # the last seed is a bad one, for both
    best = [loss - 0.01 for loss in of_seeds[:5]] + [None]
    last = looks_at(pairs_of(of_seeds, best), [6] * 6, DESIGN)[-1]
    assert last.improvement == pytest.approx(0.01)
    decision = verdict_on([last], pairs_of(of_seeds, best))
    assert any("over the 5 pair(s) of which both finished" in fact for fact in decision.facts)


def test_a_rank_look_too_early_to_reach_its_level_decides_nothing():
    pairs = pairs_of([3.28, 3.281, 3.282, None], [3.20, 3.201, 3.202, 3.203])
    (look,) = looks_at(pairs, [9] * 4, DESIGN)
    assert look.p == pytest.approx(2 / math.comb(8, 4))  # the least that four against four can give
    assert look.verdict == ""


# ---------------------------------------------------------------------------------------------
# Stage 4: the decision


def verdict_on(looks, pairs):
    decision = decide_looks(state_of_design(4, choice=BEST, costs=lambda run: 900.0), looks, pairs)
    json.dumps(decision.numbers, allow_nan=False)  # it goes into a file
    return decision


@pytest.mark.parametrize(
    ("improvement", "title"),
    [
        (0.0, NO_EFFECT),
        (0.01, f"{IMPROVES}, {BELOW}"),
        (0.02, f"{IMPROVES}, {UNRESOLVED}"),
        (0.03, f"{IMPROVES}, {MET}"),
        (-0.01, HARMFUL),
    ],
)
def test_the_title_is_verdict_and_label(improvement, title):
    pairs = noisy_pairs(9, improvement)
    (look,) = looks_at(pairs, [9] * 9, DESIGN)[-1:]
    assert verdict_on([look], pairs).title == title


def test_a_verdict_is_told_as_it_fell_whatever_later_looks_show():
    pairs = [*noisy_pairs(4, 0.03), *noisy_pairs(9, -0.03)[4:]]
    looks = looks_at(pairs, [9] * 9, DESIGN)
    assert looks[0].verdict == IMPROVES and looks[-1].low < 0 < looks[-1].high
    decision = verdict_on(looks, pairs)
    assert decision.title == f"{IMPROVES} at look 1, {decision.numbers['label']}"
    assert f"It fell at 4 pairs at {looks[0].low:+.4f} to" in decision.because[-1]


@pytest.mark.parametrize(
    ("sd", "title"),
    [
        (0.0013, f"{NO_EFFECT} among the runs that finished (2 of 18 diverged)"),
        (0.02, UNDECIDED),
    ],
)
def test_level_runs_beside_diverged_ones_are_called_so_and_no_more(sd, title):
    """Ranks show nothing where as many diverge on either side."""
    pairs = noisy_pairs(9, 0.0, sd=sd)
    lost = [replace(r, status="diverged", val_loss=None) for r in (pairs[0][0], pairs[1][1])]
    pairs[0], pairs[1] = (lost[0], pairs[0][1]), (pairs[1][0], lost[1])
    looks = looks_at(pairs, [9] * 9, DESIGN)
    assert not any(look.verdict for look in looks)  # not before the last pair
    assert verdict_on(looks, pairs).title == title


def test_inconclusive_says_what_it_would_still_take():
    pairs = noisy_pairs(4, 0.004, sd=0.006)
    decision = verdict_on(looks_at(pairs, [4] * 4, DESIGN), pairs)
    assert decision.title == UNDECIDED
    baseline, best = ([r.val_loss for r in side] for side in zip(*pairs, strict=True))
    sd = math.sqrt((np.var(baseline, ddof=1) + np.var(best, ddof=1)) / 2)
    effect = max(abs(decision.numbers["improvement"]), DESIGN.delta_eq)
    needed = stats.runs_needed(effect, sd)
    assert decision.numbers["runs_needed"] == needed
    hours = f"{(needed - 4) * 1800 / 3600:.1f} h"
    assert f"{needed} runs per arm: {needed - 4} more pairs, {hours}" in " ".join(decision.because)


def test_a_null_result_says_what_it_excludes():
    pairs = noisy_pairs(9, 0.0)
    looks = looks_at(pairs, [9] * 9, DESIGN)
    excluded = max(abs(looks[-1].eq_low), abs(looks[-1].eq_high))
    assert f"effects beyond ±{excluded:.4f} are excluded" in verdict_on(looks, pairs).because[0]


def test_a_null_result_stands_where_a_run_diverged_after_it():
    """A failed pair that is run again after all comes in between, and moves the later ones up."""
    pairs = [*noisy_pairs(9, 0.0), *pairs_of([3.28], [None])]
    looks = looks_at(pairs, [10] * 10, DESIGN)
    assert (looks[-1].verdict, looks[-1].eq_low) == (NO_EFFECT, None)
    decision = verdict_on(looks, pairs)
    assert decision.title == NO_EFFECT
    assert f"effects beyond ±{looks[-2].excluded:.4f} are excluded" in decision.because[0]


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pairs_for_any_look_are_inconclusive(n):
    decision = verdict_on([], noisy_pairs(n, 0.05))
    assert decision.numbers["verdict"] == UNDECIDED
    assert f"{n} complete pair(s)" in decision.title


# ---------------------------------------------------------------------------------------------
# Stage 1: screening drops an arm only for divergence or plain harm


def screening(baseline=(3.0, 3.0), **losses):
    """losses: a6=3.1 for layer 6; None diverged."""
    results = [result(arm("screen_baseline"), b, index=k) for k, b in enumerate(baseline)]
    for name, loss in losses.items():
        layers = tuple(map(int, name[1:]))
        status = "diverged" if loss is None else "ok"
        results.append(result(arm(f"screen_{name}", *layers), loss, status=status))
    return results


@pytest.mark.parametrize(
    ("loss", "dropped"),
    [
        (3.125, set()),  # exactly as much worse as is allowed
        (3.125 + 2**-20, {(6,)}),
        (3.125 - 2**-20, set()),
        (2.9, set()),
        (None, {(6,)}),
    ],
)
def test_screening_drops_above_its_threshold_only(loss, dropped):
    assert dropped_by_screening(screening(a6=loss, a48=3.0), DESIGN) == dropped


def test_screening_compares_on_the_seed_that_all_share():
    assert dropped_by_screening(screening((3.0, 2.0), a6=3.125), DESIGN) == set()
    assert dropped_by_screening(screening((2.75, 9.0), a6=3.125), DESIGN) == {(6,)}


def test_without_a_usable_baseline_only_a_divergence_drops():
    results = [result(arm("screen_baseline"), status="diverged"), *screening((), a6=9.0, a48=None)]
    assert dropped_by_screening(results, DESIGN) == {(4, 8)}


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({"a6": 9.0, "a48": 9.0, "a369": None}, "STOP"),
        ({"a6": 9.0, "a48": 9.0, "a369": 3.0}, "PROCEED"),
        ({"a6": 3.1, "a48": 3.1, "a369": 3.1}, "PROCEED"),  # early gain is never required
        ({}, "INCONCLUSIVE"),
    ],
)
def test_screening_stops_only_if_every_arm_is_dropped(losses, verdict):
    decision = decide(1, screening(**losses), ["screen_baseline"])
    assert decision.verdict == verdict


def test_a_crash_is_no_reason_to_drop():
    results = [*screening(a48=9.0), result(arm("screen_a6", 6), status="crashed")]
    decision = decide(1, results, ["screen_a6"])
    assert decision.verdict == "PROCEED"
    assert decision.missing == ("screen_a6",)


# ---------------------------------------------------------------------------------------------
# Stage 2: layers


def placements(again=(), baseline=3.28, **losses):
    results = [result(BASELINE, baseline, stage=2)] if baseline is not None else []
    for index, runs in enumerate((losses, dict(again))):
        for name, loss in runs.items():
            layers = tuple(map(int, name[1:]))
            status = "diverged" if loss is None else "ok"
            results.append(result(arm(name, *layers), loss, status=status, stage=2, index=index))
    return results


FIRST = {"a4": 3.27, "a6": 3.26, "a8": 3.28, "a48": 3.265}


def test_two_best_by_their_first_run():
    results = placements({"a8": 1.0}, **FIRST)
    assert [a.layers for a in two_best(results)] == [(6,), (4, 8)]


@pytest.mark.parametrize(
    ("losses", "n"), [({"a4": 3.2, "a6": None}, 1), ({"a6": None}, 0), ({}, 0)]
)
def test_two_best_of_fewer(losses, n):
    assert len(two_best(placements(**losses))) == n


def test_the_lower_mean_of_the_two_wins_not_the_best_single_run():
    results = placements({"a6": 3.30, "a48": 3.265}, **FIRST)
    assert decide(2, results).chosen.layers == (4, 8)


def test_z2_is_the_formula_of_the_plan():
    results = placements({"a6": 3.264, "a48": 3.268}, **FIRST)
    decision = decide(2, results)
    # SS about the means of the two pairs: 2 * .002^2 + 2 * .0015^2, with a degree of freedom each
    s = math.sqrt((8 * 0.0013**2 + 2 * 0.002**2 + 2 * 0.0015**2) / (8 + 2))
    assert decision.numbers["s"] == pytest.approx(s, rel=1e-9)
    assert decision.numbers["z2"] == pytest.approx((3.28 - 3.262) / (s * math.sqrt(1.5)), rel=1e-9)


@pytest.mark.parametrize(("z2", "runs"), [(3.99, 2), (4.0 + TINY, 6), (4.01, 6)])
def test_stage_3_is_as_large_as_the_losses_of_stage_2_are_worth(z2, runs):
    s = math.sqrt(8 * 0.0013**2 / (8 + 2))  # two pairs without any spread
    baseline = 3.26 + z2 * s * math.sqrt(1 / 2 + 1)
    decision = decide(2, placements({"a6": 3.26, "a48": 3.265}, baseline, **FIRST))
    assert decision.numbers["z2"] == pytest.approx(z2, abs=1e-8)
    assert len(refinements_to_run(decision.numbers["z2"])) == runs


@pytest.mark.parametrize("status", ["crashed", "diverged", None])
def test_no_stage_proceeds_without_a_usable_baseline(status):
    lost = [result(BASELINE, status=status, stage=2)] if status else []
    layers = decide(2, [*lost, *placements({"a6": 3.26}, None, **FIRST)], ["baseline"])
    lost = [replace(r, run=replace(r.run, arm=arm("screen_baseline"))) for r in lost]
    screened = decide(1, [*lost, *screening((), a6=3.0)], ["screen_baseline"])
    for decision in (layers, screened):
        assert decision.verdict == "INCONCLUSIVE"
        assert "no usable run of the baseline" in decision.title
    assert layers.chosen.layers == (6,)  # should a person go on all the same
    assert status == "diverged" or layers.missing == ("baseline",)


def test_a_finalist_that_diverges_the_second_time_is_out():
    results = placements({"a6": None, "a48": 3.4}, **FIRST)
    assert decide(2, results).chosen.layers == (4, 8)


def test_no_usable_placement_is_inconclusive():
    decision = decide(2, placements(a4=None, a6=None))
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.chosen is None


# ---------------------------------------------------------------------------------------------
# Stage 3: weight and schedule


@pytest.mark.parametrize(
    ("z2", "refinements"),
    [
        (3.99, FEW_REFINEMENTS),
        (4.0, MANY_REFINEMENTS),
        (4.01, MANY_REFINEMENTS),
        (-9.0, FEW_REFINEMENTS),
        (None, FEW_REFINEMENTS),
    ],
)
def test_refinements_at_above_and_below_z2(z2, refinements):
    assert refinements_to_run(z2) == refinements


def test_additive_fit_is_least_squares():
    rng = random.Random(3)
    seen = (heads.DEFAULT_REFINEMENT, *MANY_REFINEMENTS)
    observed = {which: rng.gauss(3.28, 0.01) for which in seen}
    weights, schedules = (0.05, 0.1, 0.2), ("constant", "cosine_decay", "linear_decay")

    def row(weight, schedule):  # the first weight and schedule as references: full rank
        return [1, *(weight == w for w in weights[1:]), *(schedule == s for s in schedules[1:])]

    matrix = np.array([row(*which) for which in observed], dtype=float)
    normal = np.linalg.solve(matrix.T @ matrix, matrix.T @ np.array(list(observed.values())))
    fit = additive_fit(observed)
    assert len(fit) == 9
    for which, loss in fit.items():
        assert loss == pytest.approx(float(np.dot(row(*which), normal)), abs=1e-12)


def test_additive_fit_finds_the_best_refinement_that_was_never_run():
    effect = {0.05: 0.00, 0.1: 0.01, 0.2: 0.02}
    of_schedule = {"constant": 0.02, "linear_decay": 0.01, "cosine_decay": 0.0}
    seen = (heads.DEFAULT_REFINEMENT, *MANY_REFINEMENTS)
    fit = additive_fit({(w, s): 3.2 + effect[w] + of_schedule[s] for w, s in seen})
    assert min(fit, key=fit.get) == (0.05, "cosine_decay")
    assert (0.05, "cosine_decay") not in seen
    assert fit[0.05, "cosine_decay"] == pytest.approx(3.2, abs=1e-12)


def refined(losses):
    return [
        result(arm(f"dive_{k}", 6, weight=w, schedule=s), loss, stage=3)
        if loss is not None
        else result(arm(f"dive_{k}", 6, weight=w, schedule=s), status="diverged", stage=3)
        for k, ((w, s), loss) in enumerate(losses.items())
    ]


def stage_2(z2, best_loss=3.27):
    decision = decide(2, placements(**FIRST))
    return replace(decision, numbers={"z2": z2, "best_loss": best_loss})


def chosen_refinement(results, decision_2):
    layers = arm("aux_6", 6)
    chosen = decide(3, results, choice=layers, decisions={2: decision_2}).chosen
    assert chosen.layers == (6,)
    return chosen.weight, chosen.schedule


@pytest.mark.parametrize(
    ("default", "few", "best"),
    [
        (3.27, (3.28, 3.29), (0.1, "constant")),
        (3.27, (3.26, 3.29), (0.05, "linear_decay")),
        (3.27, (3.28, 3.26), (0.2, "cosine_decay")),
        (3.27, (None, None), (0.1, "constant")),
        (3.27, (None, 3.26), (0.2, "cosine_decay")),
    ],
)
def test_small_effects_take_the_best_observed_of_three(default, few, best):
    results = refined(dict(zip(FEW_REFINEMENTS, few, strict=True)))
    assert chosen_refinement(results, stage_2(3.99, default)) == best


def test_plain_effects_take_the_best_predicted_of_those_that_were_run():
    losses = {(w, s): 3.2 + w / 10 + (s != "cosine_decay") / 100 for w, s in MANY_REFINEMENTS}
    assert (0.05, "cosine_decay") not in losses  # the best, if it were run
    assert chosen_refinement(refined(losses), stage_2(4.0, 3.22)) == (0.1, "cosine_decay")
    losses[0.2, "constant"] -= 0.0201  # one lucky run: its neighbours say otherwise
    assert min(losses, key=losses.get) == (0.2, "constant")
    assert chosen_refinement(refined(losses), stage_2(4.0, 3.22)) == (0.05, "constant")


def test_a_refinement_that_diverged_is_never_chosen_however_good_its_prediction():
    losses = {(w, s): 3.2 - w / 10 - (s == "cosine_decay") / 100 for w, s in MANY_REFINEMENTS}
    assert chosen_refinement(refined(losses), stage_2(4.0, 3.19)) == (0.2, "cosine_decay")
    losses[0.2, "cosine_decay"] = None
    assert chosen_refinement(refined(losses), stage_2(4.0, 3.19)) != (0.2, "cosine_decay")


def test_without_any_result_stage_3_is_inconclusive():
    decision = decide(3, [], ["dive_0"])
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.missing == ("dive_0",)


# ---------------------------------------------------------------------------------------------
# The plan as a whole


def adaptive_experiment(full_runs=28.0, **changes):
    """Runs take 900 s at full length; the budget is so many of them."""
    fields = {
        "plan": "adaptive",
        "profile": PROFILES["speedrun"],
        "full_iterations": 5100,
        "budget_hours": full_runs * 900 / 3600,
        "device": "cuda",
        "processes": 8,
    }
    return experiment(**{**fields, **changes})


def carry_out(e, improvement=0.003, happens=lambda run, attempt: "ok", seconds=900.0, seed=0):
    """Everything launched, in order, the last step, and all results; as many at once as fit."""
    rng = random.Random(seed)
    results, launched, now_s, running = [], [], 0.0, []
    while True:
        in_flight = frozenset(r.run.name for r in running)
        spent_s = machine_seconds(results, [(r.clock, r.start_s, now_s, 1) for r in running])
        step = next_step(e, results, in_flight, spent_s)
        assert not (step.ended and running)
        for run in step.runs[: e.share.parallel_runs - len(running)]:
            attempt = 1 + sum(r.run.name == run.name for r in results)
            took_s = seconds * run.num_iterations / e.full_iterations * rng.uniform(0.999, 1.001)
            loss = 3.28 - improvement * bool(run.arm.layers) + rng.gauss(0, 0.0013)
            done = placeholder(Planned(run, now_s, took_s), attempt, loss, Costs(e, results))
            if (status := happens(run, attempt)) != "ok":
                done = replace(done, status=status, reason="invented", val_loss=None)
            running.append(done)
            launched.append(run)
        if not running:
            return launched, conclude(step), results
        done = min(running, key=lambda r: r.end_s)
        running.remove(done)
        results.append(done)
        now_s = done.end_s
        assert len(launched) < 300, "the plan loops"


def of_stage(launched, stage):
    return [run for run in launched if run.stage == stage]


@pytest.mark.parametrize(("improvement", "stage_3", "n_max"), [(0.0, 2, 9), (0.02, 6, 7)])
def test_the_adaptive_plan_runs_the_agreed_runs(improvement, stage_3, n_max):
    launched, step, _ = carry_out(adaptive_experiment(stop_on="never"), improvement)
    assert [run.name for run in of_stage(launched, 1)] == [
        *("screen_baseline/run_0", "screen_aux_6/run_0", "screen_aux_4_8/run_0"),
        *("screen_aux_3_6_9/run_0", "screen_baseline/run_1"),
    ]
    stage_2 = [run.name for run in of_stage(launched, 2)]
    assert stage_2[:5] == [
        f"{name}/run_0" for name in ("baseline", "aux_4", "aux_6", "aux_8", "aux_4_8")
    ]
    assert len(stage_2) == 7
    assert {name.split("/")[1] for name in stage_2[5:]} == {"run_1"}
    assert len(of_stage(launched, 3)) == stage_3
    assert [run.name for run in of_stage(launched, 4)] == [
        f"{name}/run_{k}" for k in range(n_max) for name in ("final_baseline", "final_best")
    ]
    assert step.decisions[4].numbers["n_max"] == n_max


def test_seeds_of_stage_4_are_shared_by_a_pair_and_used_nowhere_else():
    launched, _, _ = carry_out(adaptive_experiment(stop_on="never"))
    final = of_stage(launched, 4)
    seeds = [run.seed for run in final]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == len(final) // 2
    assert not set(seeds) & {run.seed for run in launched if run.stage < 4}


@pytest.mark.parametrize("layers", [(6,), (4, 8)])
def test_a_placement_that_screening_dropped_is_not_run_and_not_missing(layers):
    launched, step, _ = carry_out(
        adaptive_experiment(),
        happens=lambda run, _: "diverged" if run.stage == 1 and run.arm.layers == layers else "ok",
    )
    assert layers not in {run.arm.layers for run in of_stage(launched, 2)}
    assert step.decisions[2].missing == ()


def test_the_plan_stops_when_screening_drops_everything():
    launched, step, _ = carry_out(
        adaptive_experiment(), happens=lambda run, _: "diverged" if run.arm.layers else "ok"
    )
    assert len(launched) == 5
    assert step.at_gate


def test_stage_4_ends_when_its_verdict_is_settled():
    launched, step, _ = carry_out(adaptive_experiment(), improvement=-0.02)
    assert len(of_stage(launched, 4)) == 8
    assert step.decisions[4].numbers["verdict"] == HARMFUL
    assert step.ended == "all runs are done"


def test_a_broken_pair_is_repeated_with_its_seed_and_paid_for():
    def happens(run, attempt):
        return "crashed" if (run.name, attempt) == ("final_best/run_1", 1) else "ok"

    launched, step, results = carry_out(adaptive_experiment(stop_on="never"), happens=happens)
    tries = [run for run in launched if run.name == "final_best/run_1"]
    assert len(tries) == 2
    assert len({run.seed for run in tries}) == 1
    assert step.decisions[4].missing == ()
    # 18 runs were paid for, 8 pairs fit beside the one that was wasted
    assert step.decisions[4].numbers["n"] == 8
    assert machine_seconds(results) <= 28.1 * 900


def test_a_pair_that_fails_for_good_is_given_up_and_replaced():
    launched, step, _ = carry_out(
        adaptive_experiment(60.0, stop_on="superiority"),
        improvement=0.0,
        happens=lambda run, _: "crashed" if run.name == "final_best/run_1" else "ok",
    )
    assert sum(run.name == "final_best/run_1" for run in launched) == MAX_ATTEMPTS
    decision = step.decisions[4]
    assert decision.missing == ("1 pair(s), of which a run failed for good",)
    assert decision.numbers["n"] >= 4
    assert "final_best/run_4" in {run.name for run in launched}


def test_pairs_that_always_fail_end_the_plan():
    launched, step, _ = carry_out(
        adaptive_experiment(200.0),
        happens=lambda run, _: "crashed" if run.arm.name == "final_best" else "ok",
    )
    failed = [run for run in launched if run.arm.name == "final_best"]
    assert len(failed) == (MAX_GIVEN_UP + 1) * MAX_ATTEMPTS
    assert step.decisions[4].numbers["verdict"] == UNDECIDED
    assert step.ended


def test_an_interrupted_run_is_no_failure_of_its_pair():
    _, step, _ = carry_out(
        adaptive_experiment(60.0),
        happens=lambda run, attempt: (
            "interrupted" if run.name == "final_best/run_0" and attempt < 6 else "ok"
        ),
    )
    assert step.decisions[4].missing == ()


def test_a_divergence_in_stage_4_is_kept_and_counted():
    _, step, _ = carry_out(
        adaptive_experiment(),
        improvement=0.01,
        happens=lambda run, _: "diverged" if run.name == "final_best/run_0" else "ok",
    )
    numbers = step.decisions[4].numbers
    assert numbers["best_diverged"] == 1
    assert numbers["low"] is None
    assert numbers["n"] == numbers["n_max"]  # one against many takes every pair


def test_a_budget_that_shrinks_lowers_n_max_and_nothing_raises_it():
    e = adaptive_experiment(stop_on="superiority")
    cheaper = carry_out(e, improvement=0.0)[1].decisions[4].numbers
    assert {k["n_max"] for k in cheaper["looks"]} == {9}
    wasted = (
        carry_out(
            e,
            improvement=0.0,
            happens=lambda run, attempt: (
                "crashed" if run.name == "final_best/run_5" and attempt < 3 else "ok"
            ),
        )[1]
        .decisions[4]
        .numbers
    )
    n_maxes = [k["n_max"] for k in wasted["looks"]]
    assert n_maxes == sorted(n_maxes, reverse=True)
    assert (n_maxes[0], n_maxes[-1]) == (9, 8)
    assert wasted["n"] == 8
    spent = [stats.obrien_fleming_spending(k["n"] / k["n_max"], 0.025) for k in wasted["looks"]]
    assert spent[-1] == pytest.approx(0.025)
    bounds = stats.bounds([k["n"] for k in wasted["looks"]], spent)
    assert [k["z"] for k in wasted["looks"]] == pytest.approx(list(bounds))


def test_a_look_is_taken_with_what_its_own_pairs_left_of_the_budget():
    e = adaptive_experiment()
    _, step, results = carry_out(e, improvement=0.03)
    before = step.decisions[4].numbers
    *others, last = results
    slow = replace(last, end_s=last.end_s + 2 * 1800)  # two pairs more
    after = conclude(next_step(e, [*others, slow])).decisions[4].numbers
    assert before["n"] == after["n"] == 4 and after["n_max"] <= before["n_max"] - 2


def test_the_last_look_spends_what_is_left_where_no_further_pair_comes():
    _, step, _ = carry_out(
        adaptive_experiment(60.0, stop_on="superiority"),
        improvement=0.0,
        happens=lambda run, _: "crashed" if run.stage == 4 and run.index >= 4 else "ok",
    )
    (look,) = step.decisions[4].numbers["looks"]
    assert look["n"] == look["n_max"] == 4


def test_a_pair_has_begun_when_both_of_its_runs_have_an_outcome():
    best = [result(BEST, 3.2, stage=4, index=k) for k in (0, 1)]
    base = [result(BASELINE, s and 3.3, stage=4, index=k, status=s or "crashed")
            for k, s in enumerate(("diverged", ""))]  # fmt: skip
    assert pairs_begun([]) == pairs_begun([result(BEST, 3.2, stage=3)]) == -1
    assert pairs_begun(best) == 0
    assert pairs_begun([*best, *base]) == 1


def with_budget(e, hours, pairs):
    """The experiment after a person gave another budget, when so many pairs were complete."""
    value = {"hours": hours, "was": e.budget_hours, "pairs": pairs}
    return overridden(e, "budget", 0, value)


@pytest.mark.parametrize("factor", [0.9, 2.0])
def test_a_budget_given_later_changes_no_look_that_was_taken(factor):
    e = adaptive_experiment(stop_on="superiority")
    _, _, results = carry_out(e, improvement=0.0)
    looks = conclude(next_step(e, results)).decisions[4].numbers["looks"]
    assert pairs_begun(results) == looks[-1]["n"] == 9
    later = with_budget(e, factor * e.budget_hours, 9)
    assert conclude(next_step(later, results)).decisions[4].numbers["looks"] == looks
    assert next_step(later, results).ended

    by_then = [r for r in results if r.run.stage < 4 or r.run.index < 6]
    assert pairs_begun(by_then) == 6
    changed = with_budget(e, factor * e.budget_hours, 6)
    launched, _, everything = carry_out(changed, improvement=0.0)
    again = conclude(next_step(changed, everything)).decisions[4].numbers["looks"]
    assert [k["n_max"] for k in again][:3] == [9, 9, 9]
    assert len(of_stage(launched, 4)) <= 18  # fixed on entry: nothing raises it


def test_a_budget_given_before_stage_4_counts_for_it():
    e = adaptive_experiment(18.0)
    raised = with_budget(e, 28 * 900 / 3600, -1)
    same = adaptive_experiment(28.0)
    assert [*carry_out(raised)[0]] == [*carry_out(same)[0]]


def test_results_count_for_the_configuration_that_was_trained_only():
    """Another choice by hand, after stage 4: its runs have the same names, and are other runs."""
    launched, _, results = carry_out(adaptive_experiment(), improvement=0.02)
    e = adaptive_experiment(60.0)
    by_hand = {"layers": [3, 9], "weight": 0.1, "schedule": "constant"}
    step = next_step(overridden(e, "by_hand", 4, by_hand), results)
    assert step.runs and not step.ended
    assert {run.arm.layers for run in step.runs} == {(3, 9)}  # the baseline's still count
    names = {run.name for run in launched}
    assert {run.name for run in step.runs} <= names


def test_a_choice_by_hand_takes_the_place_of_a_stage_that_is_half_done():
    e = adaptive_experiment()
    _, _, results = carry_out(e)
    half = [r for r in results if r.run.stage == 1 or r.run.name in ("aux_4/run_0", "aux_6/run_0")]
    by_hand = {"layers": [3, 9], "weight": 0.1, "schedule": "constant"}
    assert next_step(overridden(e, "by_hand", 4, by_hand), half).stage == 4
    assert next_step(overridden(e, "by_hand", 3, by_hand), half).stage == 3


def test_validation_runs_caps_the_pairs():
    launched, step, _ = carry_out(adaptive_experiment(validation_runs=3), improvement=0.0)
    assert len(of_stage(launched, 4)) == 6
    assert [k["n"] for k in step.decisions[4].numbers["looks"]] == [3]


@pytest.mark.parametrize("full_runs", [0.5, 3.0, 9.0, 10.5, 12.0, 15.0, 28.0])
@pytest.mark.parametrize("parallel_runs", [1, 2, 8])
def test_no_budget_is_overrun_and_every_end_is_said(full_runs, parallel_runs):
    e = adaptive_experiment(full_runs, parallel_runs=parallel_runs)
    _, step, results = carry_out(e, improvement=0.0)
    assert step.ended
    assert machine_seconds(results) <= 900 * full_runs * 1.002


def test_a_half_finished_pair_is_not_looked_at():
    e = adaptive_experiment()
    _, step, results = carry_out(e, improvement=-0.02)
    assert len(step.decisions[4].numbers["looks"]) == 1
    without = [r for r in results if r.run.name != "final_best/run_2"]
    again = next_step(e, without)
    assert [run.name for run in again.runs] == ["final_best/run_2"]
    assert 4 not in again.decisions


def test_side_by_side_the_budget_is_read_in_rounds():
    """Four pairs that run at once and use up the budget are looked at once, at full alpha."""
    e = adaptive_experiment(0.2 + 2 + 1 + 1.1, parallel_runs=8)
    _, step, _ = carry_out(e, improvement=0.0)
    (only,) = step.decisions[4].numbers["looks"]
    assert (only["n"], only["n_max"]) == (4, 4)
    assert only["z"] == pytest.approx(scipy.stats.norm.isf(0.025))


def test_the_adaptive_plan_is_a_function_of_its_results():
    e = adaptive_experiment(stop_on="superiority")
    _, _, results = carry_out(e, improvement=0.001)
    rng = random.Random(0)
    for cut in range(0, len(results) + 1, 4):
        some = results[:cut]
        expected = next_step(e, some)
        rng.shuffle(some)
        assert next_step(e, some) == expected
        assert next_step(e, some) == expected
