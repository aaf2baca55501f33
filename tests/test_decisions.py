"""Each decision of the classic plan, at, above and below its threshold, and where it has none."""

import math
from dataclasses import replace

import pytest

from ablation.plan.classic import (
    CLASSIC_RULES,
    final_verdict,
)
from ablation.plan.decision import FINAL, INCONCLUSIVE, PROCEED, STOP, render
from ablation.runs.run import RunResult
from ablation.study.heads import HEADS
from tests.support.invent import BASELINE, arm, decided, layers_of, result, settings_of, weight_of

SCREENED = ("screen_baseline", "screen_aux_6")


def screening(baseline_loss, aux_loss):
    results = [
        result(arm("screen_baseline"), baseline_loss),
        result(arm("screen_aux_6", 6), aux_loss),
    ]
    return decided("classic", 1, results, SCREENED)


@pytest.mark.parametrize(
    ("name", "below", "at", "above", "holds_at"),
    [
        ("gate", 0.0199, 0.02, 0.0201, False),
        ("choice", -1e-9, 0.0, 1e-9, False),
        ("target_loss", 0.0199, 0.02, 0.0201, True),
        ("target_speedup", 0.0999, 0.10, 0.1001, True),
    ],
)
def test_rules_at_above_and_below_their_thresholds(name, below, at, above, holds_at):
    rule = CLASSIC_RULES[name]
    assert not rule.holds(below)
    assert rule.holds(at) == holds_at
    assert rule.holds(above)


def test_significance_needs_p_strictly_below_alpha():
    rule = CLASSIC_RULES["significant"]
    assert rule.holds(0.0499)
    assert not rule.holds(0.05)


@pytest.mark.parametrize(
    ("aux_loss", "verdict"), [(97.9, PROCEED), (98.0, STOP), (98.1, STOP), (101.0, STOP)]
)
def test_gate_wants_more_than_two_percent(aux_loss, verdict):
    assert screening(100.0, aux_loss).verdict == verdict


def test_any_one_arm_over_the_gate_is_enough():
    results = [
        result(arm("screen_baseline"), 100.0),
        result(arm("screen_aux_6", 6), 105.0),
        result(arm("screen_aux_4_8", 4, 8), 97.0),
    ]
    decision = decided("classic", 1, results)
    assert decision.verdict == PROCEED
    assert decision.numbers["best_arm"] == "screen_aux_4_8"


def test_a_stop_at_the_gate_claims_no_evidence_of_absence():
    text = render(screening(100.0, 99.0))
    assert "Stopped by the rule" in text
    assert "no evidence of absence" in text
    assert "best relative improvement > 2 %" in text


def test_the_text_of_stage_1_has_the_agreed_form():
    assert render(screening(3.2845, 3.2156)) == "\n".join(
        [
            "📊 STAGE 1 RESULTS:",
            "  Baseline loss: 3.2845",
            "  Best aux loss: 3.2156 (screen_aux_6)",
            "  Improvement: +2.10%",
            "",
            "✅ DECISION: PROCEED to Stage 2",
            "  Aux heads show promise (2.10% improvement)",
        ]
    )


@pytest.mark.parametrize("status", ["crashed", "timeout", "diverged", "interrupted"])
def test_without_a_usable_baseline_the_rule_cannot_be_applied(status):
    results = [
        result(arm("screen_baseline"), status=status),
        result(arm("screen_aux_6", 6), 3.0),
    ]
    decision = decided("classic", 1, results, SCREENED)
    assert decision.verdict == INCONCLUSIVE
    assert (decision.missing == ("screen_baseline",)) == (status != "diverged")
    assert f"screen_baseline/run_0: {status}" in render(decision)


def test_a_bad_arm_does_not_end_the_stage_and_is_named():
    results = [
        result(arm("screen_baseline"), 100.0),
        result(arm("screen_aux_6", 6), status="crashed"),
        result(arm("screen_aux_4_8", 4, 8), 97.0),
    ]
    decision = decided("classic", 1, results, ("screen_baseline", "screen_aux_6", "screen_aux_4_8"))
    assert decision.verdict == PROCEED
    assert decision.missing == ("screen_aux_6",)
    assert "Missing: screen_aux_6" in render(decision)


def test_a_configuration_that_diverged_once_cannot_be_the_best():
    results = [
        result(BASELINE, 3.0, stage=2),
        result(arm("aux_6", 6), 2.0, stage=2),
        result(arm("aux_6_repeat", 6), status="diverged", stage=2),
        result(arm("aux_8", 8), 2.9, stage=2),
    ]
    assert layers_of(decided("classic", 2, results).chosen) == (8,)


def layers(aux_4=3.1, aux_6=3.1, repeat=3.1):
    results = [
        result(BASELINE, 3.0, stage=2),
        result(arm("aux_4", 4), aux_4, stage=2),
        result(arm("aux_6", 6), aux_6, stage=2),
        result(arm("aux_6_repeat", 6), repeat, stage=2, seed=2001, role="repeat"),
    ]
    return decided("classic", 2, results)


@pytest.mark.parametrize(("aux_4", "verdict"), [(2.999, PROCEED), (3.0, STOP), (3.001, STOP)])
def test_layers_go_on_only_if_one_beats_the_baseline(aux_4, verdict):
    decision = layers(aux_4)
    assert decision.verdict == verdict
    assert layers_of(decision.chosen) == (4,)


@pytest.mark.parametrize("repeat", [2.80, 2.98])
def test_a_repeat_on_another_seed_shows_variance_and_does_not_choose(repeat):
    decision = layers(aux_4=2.95, aux_6=2.90, repeat=repeat)
    assert layers_of(decision.chosen) == (6,)
    assert layers_of(layers(aux_4=2.85, aux_6=2.90, repeat=2.70).chosen) == (4,)
    assert decision.numbers["repeat_difference"] == pytest.approx(abs(2.90 - repeat))


def test_stage_2_null_result_is_documented():
    text = render(layers())
    assert "null result" in text
    assert "no evidence of absence" in text


def refined(losses, validations=(2.8, 2.9)):
    results = [
        result(
            arm(name, 4, 8, weight=weight, schedule=schedule),
            loss,
            stage=3,
            seed=3000 + (name == "dive_constant"),
            role="refinement",
        )
        for (name, weight, schedule), loss in losses.items()
    ]
    results += [
        result(
            arm(f"validation_{k}", 4, 8, weight=0.2),
            loss,
            stage=3,
            seed=3002 + k,
            role="validation",
        )
        for k, loss in enumerate(validations)
    ]
    return decided("classic", 3, results)


def test_stage_3_finalizes_the_lowest_on_the_shared_seed_and_reports_its_validation():
    decision = refined(
        {
            ("dive_w0p1", 0.1, "constant"): 2.90,
            ("dive_constant", 0.1, "constant"): 2.80,  # another seed
            ("dive_w0p2", 0.2, "constant"): 2.89,
        }
    )
    assert settings_of(decision.chosen) == (0.2, "constant")
    assert decision.numbers["validation_mean"] == pytest.approx(2.85)
    assert decision.verdict == PROCEED


def test_validation_runs_do_not_choose():
    decision = refined({("dive_w0p1", 0.1, "constant"): 2.85}, validations=(1.0, 1.0))
    assert weight_of(decision.chosen) == 0.1


def test_stage_3_without_any_result_is_inconclusive():
    assert refined({}, validations=()).verdict == INCONCLUSIVE


def final(baseline, best, **changes):
    results = [
        result(arm("final_baseline"), loss, stage=4, index=k) for k, loss in enumerate(baseline)
    ]
    results += [
        result(arm("final_best", 4, 8), loss, stage=4, index=k, **changes)
        for k, loss in enumerate(best)
    ]
    return decided("classic", 4, results, ("final_baseline", "final_best"))


@pytest.mark.parametrize(
    ("p", "improvement", "speedup", "title"),
    [
        (0.049, 0.0201, None, "target met"),
        (0.049, 0.02, None, "target met"),
        (0.049, 0.0199, None, "below the target"),
        (0.049, 0.0199, 0.10, "target met"),
        (0.049, 0.0199, 0.0999, "below the target"),
        (0.049, -0.03, None, "HARMFUL"),
        (0.05, 0.03, 0.2, "INCONCLUSIVE"),
        (None, 0.03, 0.2, "INCONCLUSIVE"),
    ],
)
def test_final_verdict_at_its_boundaries(p, improvement, speedup, title):
    numbers = {
        "p": p,
        "improvement": improvement,
        "speedup": speedup,
        "baseline_n": 4,
        "best_n": 4,
        "ci_low": -0.1,
        "ci_high": 0.1,
    }
    assert title in final_verdict(numbers, HEADS)[0]


def test_final_numbers_are_those_of_scipy():
    from scipy import stats

    baseline, best = [3.30, 3.31, 3.29, 3.305], [3.25, 3.27, 3.26, 3.24]
    numbers = final(baseline, best).numbers
    reference = stats.ttest_ind(baseline, best, equal_var=False)
    low, high = reference.confidence_interval()
    assert numbers["p"] == pytest.approx(reference.pvalue)
    assert (numbers["ci_low"], numbers["ci_high"]) == (pytest.approx(low), pytest.approx(high))


def test_stage_4_block_holds_what_was_promised():
    text = render(final([3.30, 3.31, 3.29], [3.25, 3.27, 3.26]))
    promised = ("Layers: 4,8", "Weight: 0.1", "Schedule: constant", "±", "p-value", "Delta: +0.04")
    assert all(part in text for part in promised)


def test_one_pair_is_no_test():
    decision = final([3.3], [3.2])
    assert decision.verdict == FINAL
    assert "INCONCLUSIVE" in decision.title


def test_a_divergence_is_never_dropped_from_the_final_comparison():
    results = [result(arm("final_baseline"), 3.3 + k / 1000, stage=4, index=k) for k in range(4)]
    results += [result(arm("final_best", 6), 3.2 + k / 1000, stage=4, index=k) for k in range(3)]
    results.append(result(arm("final_best", 6), status="diverged", stage=4, index=3))
    decision = decided("classic", 4, results)
    assert decision.numbers["best_diverged"] == 1
    # three wins and a worst rank among eight cannot be significant, whatever the means say
    assert decision.numbers["p"] > 0.05
    assert "INCONCLUSIVE" in decision.title
    assert "Diverged: baseline 0, best 1" in render(decision)


def test_where_baselines_diverged_ranks_give_the_direction():
    results = [result(arm("final_baseline"), 3.10 + k / 1e3, stage=4, index=k) for k in range(2)]
    results += [
        result(arm("final_baseline"), status="diverged", stage=4, index=k) for k in range(2, 9)
    ]
    results += [result(arm("final_best", 6), 3.2 + k / 1e3, stage=4, index=k) for k in range(9)]
    decision = decided("classic", 4, results)
    assert decision.numbers["improvement"] < 0  # of the two survivors
    assert decision.numbers["p"] < 0.05
    assert "HELP" in decision.title


def outcomes(baseline, best):
    """Results of stage 4, seed by seed; None is a run that diverged."""
    sides = {arm("final_baseline"): baseline, arm("final_best", 6): best}
    return [
        result(an_arm, loss, status="diverged" if loss is None else "ok", stage=4, index=k)
        for an_arm, losses in sides.items()
        for k, loss in enumerate(losses)
    ]


def test_a_difference_beside_divergences_is_of_the_seeds_that_both_finished():
    results = outcomes([3.30, 3.31, 3.32, 3.33, 3.9], [3.29, 3.30, 3.31, 3.32, None])
    decision = decided("classic", 4, results)
    assert decision.numbers["improvement"] == pytest.approx(0.01)
    assert "Delta of the 4 pair(s) of which both did" in render(decision)


def test_where_no_pair_finished_ranks_decide_and_no_difference_is_invented():
    baseline = [*(3.3 + k / 1e3 for k in range(7)), None]
    decision = decided("classic", 4, outcomes(baseline, [None] * 7 + [3.0]))
    assert decision.numbers["improvement"] is decision.numbers["ci_low"] is None
    assert decision.numbers["p"] < 0.05
    assert "HARMFUL" in decision.title
    assert "Delta: unknown" in render(decision)


def test_an_arm_that_always_diverges_is_harmful_and_a_baseline_that_does_is_nothing_to_beat():
    losses = [3.3 + k / 1e3 for k in range(8)]
    decision = decided("classic", 4, outcomes(losses, [None] * 8))
    assert "HARMFUL" in decision.title
    assert "Best:     every run diverged" in render(decision)
    decision = decided("classic", 4, outcomes([None] * 8, losses))
    assert "INCONCLUSIVE: no usable run of the baseline" in decision.title


def test_the_speedup_is_of_seeds_on_which_the_baseline_finished():
    curve = ((0, 4.0, 0.0), (50, 3.2, 4000.0), (100, 3.1, 8000.0))
    never = ((0, 4.0, 0.0), (100, 3.25, 8000.0))
    results = outcomes([3.2, 3.2, None], [3.1, 3.1, 3.25])
    results = [replace(r, curve=never if r.val_loss == 3.25 else curve) for r in results]
    assert decided("classic", 4, results).numbers["speedup"] == pytest.approx(0.5)


def test_speedup_counts_only_when_every_run_gets_there():
    curve = ((0, 4.0, 0.0), (50, 3.2, 4000.0), (100, 3.1, 8000.0))
    assert final([3.2, 3.2], [3.1, 3.1], curve=curve).numbers["speedup"] == pytest.approx(0.5)
    slow = ((0, 4.0, 0.0), (100, 3.25, 8000.0))
    assert final([3.2, 3.2], [3.1, 3.1], curve=slow).numbers["speedup"] is None


def test_runs_by_hand_are_compared_with_their_baseline():
    results = [result(BASELINE, 3.0, stage=0), result(arm("aux_6", 6), 2.9, stage=0)]
    assert "improvement +0.1" in render(decided("manual", 0, results, ("baseline", "aux_6")))


@pytest.mark.parametrize(
    ("status", "loss"), [("ok", None), ("ok", math.nan), ("ok", math.inf), ("crashed", 3.0)]
)
def test_a_result_refuses_ok_without_a_finite_loss_and_a_loss_without_ok(status, loss):
    good = result(BASELINE, 3.0)
    with pytest.raises(ValueError, match="loss"):
        RunResult(**{**good.__dict__, "status": status, "val_loss": loss})


def test_printed_differences_are_improvements_over_the_run_of_the_same_seed():
    results = [
        result(arm("baseline"), 3.3, stage=2),
        result(arm("aux_4", 4), 3.2, stage=2),
        result(arm("aux_6", 6), 3.4, stage=2),
        result(arm("aux_6_repeat", 6), 3.1, stage=2, seed=2001),
    ]
    facts = decided("classic", 2, results).facts
    assert "aux_4/run_0: 3.2000 (+0.1000)" in facts
    assert "aux_6/run_0: 3.4000 (-0.1000)" in facts
    assert "aux_6_repeat/run_0: 3.1000" in facts  # of another seed: no difference
    by_hand = [replace(r, run=replace(r.run, stage=0)) for r in results]
    facts = decided("manual", 0, by_hand).facts
    assert "aux_4: val loss 3.2000 (n = 1), improvement +0.1000" in facts
    pooled = "aux_6, aux_6_repeat: val loss 3.2500 ± 0.2121 sd (n = 2), improvement -0.1000"
    assert f"{pooled} on 1 shared seed(s)" in facts


def test_the_final_test_is_of_pairs_that_both_have_an_outcome():
    results = [result(arm("final_baseline"), 3.3 + k / 1e3, stage=4, index=k) for k in range(4)]
    results += [result(arm("final_best", 6), 3.2 + k / 1e3, stage=4, index=k) for k in range(3)]
    results.append(result(arm("final_best", 6), status="crashed", stage=4, index=3))
    numbers = decided("classic", 4, results).numbers
    assert (numbers["baseline_n"], numbers["best_n"]) == (3, 3)
    assert numbers["improvement"] == pytest.approx(0.1)


def test_an_arm_that_diverged_on_another_seed_is_not_chosen():
    losses = {"baseline": 3.3, "aux_4": 3.2, "aux_6": 3.1}
    taps = {"baseline": (), "aux_4": (4,), "aux_6": (6,)}
    results = [result(arm(n, *taps[n]), loss, stage=2, seed=2000) for n, loss in losses.items()]
    assert layers_of(decided("classic", 2, results).chosen) == (6,)
    repeat = result(arm("aux_6_repeat", 6), status="diverged", stage=2, seed=2001)
    assert layers_of(decided("classic", 2, [*results, repeat]).chosen) == (4,)
