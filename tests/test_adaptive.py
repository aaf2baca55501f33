"""Each rule of the adaptive plan, at, above and below its boundary, and where it has no data."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from ablation import sequential, stats
from ablation.plan import next_step as plan
from ablation.plan.adaptive import dropped_by_screening, two_best
from ablation.plan.costs import Costs
from ablation.plan.forecast import Planned, forecast, placeholder
from ablation.plan.looks import (
    BELOW,
    HARMFUL,
    IMPROVES,
    MET,
    NO_EFFECT,
    UNDECIDED,
    UNRESOLVED,
    looks_at,
)
from ablation.plan.next_step import MAX_ATTEMPTS, conclude, next_step, pairs_begun, stages_of
from ablation.plan.validation import MAX_GIVEN_UP, decide_looks
from ablation.runs.run import machine_seconds
from ablation.study.heads import HEADS, SCHEDULES, WEIGHTS
from ablation.study.heads import cell as cell_of
from ablation.study.profiles import PROFILES, Design
from tests.support.invent import (
    BASELINE,
    BEST,
    arm,
    aux,
    by_hand,
    experiment,
    layers_of,
    noisy_pairs,
    overridden,
    pairs_of,
    result,
    settings_of,
    state_of,
)

CELLS = tuple(map(settings_of, HEADS.cells))
DESIGN = Design(sigma0=0.0013, delta_eq=0.005, delta_target=0.02, drop=0.125)


def state_of_design(stage, results=(), expected=(), design=DESIGN, **fields):
    """The state of a stage of the adaptive plan, by this design, with screening."""
    profile = replace(PROFILES["speedrun"], design=design)
    e = experiment(plan="adaptive", profile=profile, screen=True)
    return state_of("adaptive", stage, results, expected, experiment=e, **fields)


def decide(*of_state, **fields):
    state = state_of_design(*of_state, **fields)
    return state.stage.decide(state)


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
    assert f"It fell at 3 pairs at {looks[0].low:+.4f} to" in decision.because[-1]


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
    of_pairs = np.std(np.subtract(baseline, best), ddof=1)
    effect, share = max(abs(decision.numbers["improvement"]), DESIGN.delta_eq), DESIGN.pairing
    needed = min(
        stats.runs_needed(effect, sd, alpha=(1 - share) * DESIGN.alpha),
        stats.pairs_needed(effect, of_pairs, alpha=share * DESIGN.alpha),
    )
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


def test_without_any_variance_the_decision_says_why_there_is_no_interval():
    pairs = pairs_of([3.28] * 6, [3.27] * 6)
    decision = verdict_on(looks_at(pairs, [6] * 6, DESIGN), pairs)
    assert decision.numbers["verdict"] == UNDECIDED
    assert any("without variance" in fact for fact in decision.facts)


def test_all_diverged_is_inconclusive():
    pairs = pairs_of([None] * 8, [None] * 8)
    looks = looks_at(pairs, [8] * 8, DESIGN)
    assert {k.verdict for k in looks} == {""}
    decision = verdict_on(looks, pairs)
    assert decision.numbers["verdict"] == UNDECIDED
    assert "every run diverged" in " ".join(decision.facts)
    assert (decision.numbers["baseline_diverged"], decision.numbers["best_diverged"]) == (8, 8)


def test_where_runs_diverged_differences_are_of_the_pairs_that_finished():
    of_seeds = [3.20, 3.21, 3.22, 3.23, 3.24, 3.60]  # the last seed is a bad one, for both
    pairs = pairs_of(of_seeds, [loss - 0.01 for loss in of_seeds[:5]] + [None])
    last = looks_at(pairs, [6] * 6, DESIGN)[-1]
    assert last.improvement == pytest.approx(0.01)
    decision = verdict_on([last], pairs)
    assert any("over the 5 pair(s) of which both finished" in fact for fact in decision.facts)


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


def dropped(results):
    """The layers of the arms of these results that screening drops."""
    lost = dropped_by_screening(results, DESIGN)
    return {layers_of(r.run.arm) for r in results if r.run.arm.configuration in lost}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.125, set()),  # exactly as much worse as is allowed
        (3.125 + 2**-20, {(6,)}),
        (3.125 - 2**-20, set()),
        (2.9, set()),
        (None, {(6,)}),
    ],
)
def test_screening_drops_above_its_threshold_only(loss, expected):
    assert dropped(screening(a6=loss, a48=3.0)) == expected


def test_screening_compares_on_the_seed_that_all_share():
    assert dropped(screening((3.0, 2.0), a6=3.125)) == set()
    assert dropped(screening((2.75, 9.0), a6=3.125)) == {(6,)}


def test_without_a_usable_baseline_only_a_divergence_drops():
    results = [result(arm("screen_baseline"), status="diverged"), *screening((), a6=9.0, a48=None)]
    assert dropped(results) == {(4, 8)}


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


def placements(again=(), **losses):
    """a6=3.1 for layer 6, None diverged; again: the same of the second seed."""
    results = []
    for index, runs in enumerate((losses, dict(again))):
        for name, loss in runs.items():
            layers = tuple(map(int, name[1:]))
            status = "diverged" if loss is None else "ok"
            results.append(result(arm(name, *layers), loss, status=status, stage=2, index=index))
    return results


FIRST = {"a4": 3.27, "a6": 3.26, "a8": 3.28, "a48": 3.265}


def test_two_best_by_their_first_run():
    results = placements({"a8": 1.0}, **FIRST)
    assert [layers_of(a) for a in two_best(results)] == [(6,), (4, 8)]


@pytest.mark.parametrize(
    ("losses", "n"), [({"a4": 3.2, "a6": None}, 1), ({"a6": None}, 0), ({}, 0)]
)
def test_two_best_of_fewer(losses, n):
    assert len(two_best(placements(**losses))) == n


def test_the_lower_mean_of_the_two_wins_not_the_best_single_run():
    results = placements({"a6": 3.30, "a48": 3.265}, **FIRST)
    assert layers_of(decide(2, results).chosen) == (4, 8)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_of_the_two_best_with_the_same_seeds_plain_means_decide(rho):
    """At every correlation: what the second seed is like moves both."""
    design = replace(DESIGN, rho=rho)
    for worse in (-0.5, 0.0, 0.5):
        again = {"a6": 3.271 + worse, "a48": 3.265 + worse}
        assert layers_of(decide(2, placements(again, **FIRST), design=design).chosen) == (4, 8)
        again = {"a6": 3.269 + worse, "a48": 3.265 + worse}
        assert layers_of(decide(2, placements(again, **FIRST), design=design).chosen) == (6,)


@pytest.mark.parametrize(
    ("rho", "second", "layers"),
    [
        # first seed 3.260 and 3.265; the second run of 4,8 is missing. Its lag of .005 is made up
        # where l (second - first) > .005, l = (1 - rho) / 2
        (0.0, 3.2699, (6,)),
        (0.0, 3.2701, (4, 8)),
        (0.5, 3.2799, (6,)),
        (0.5, 3.2801, (4, 8)),
        (0.9, 3.3599, (6,)),
        (0.9, 3.3601, (4, 8)),
    ],
)
def test_a_missing_second_run_leaves_the_other_to_be_judged_within_seeds(rho, second, layers):
    results = [*placements({"a6": second}, **FIRST), result(arm("a48", 4, 8), status="crashed",
               stage=2, index=1)]  # fmt: skip
    decision = decide(2, results, design=replace(DESIGN, rho=rho))
    assert layers_of(decision.chosen) == layers


def test_only_the_two_that_were_run_twice_are_chosen_from():
    """Although both turn out worse than a third one that was run once."""
    results = placements({"a6": 3.40, "a48": 3.41}, **FIRST)
    design = replace(DESIGN, rho=0.0)  # so that the mean of aux_4 is the lowest
    decision = decide(2, results, design=design)
    means = dict(decision.numbers["means"])
    assert min(means, key=means.get) == arm("a4", 4).label
    assert layers_of(decision.chosen) == (6,)


def test_the_means_of_stage_2_are_kept_as_numbers_and_differences_shown_within_seeds():
    results = placements({"a6": 3.264, "a48": 3.268}, **FIRST)
    decision = decide(2, results)
    losses = [(r.run.arm.label, r.run.seed, r.val_loss) for r in results]
    means = stats.arm_means(losses, 0.5)
    found = dict(decision.numbers["means"])
    assert found == pytest.approx(means)
    assert decision.facts[0] == "Improvement over a6 on the same seed, in brackets"
    assert "a4/run_0: 3.2700 (-0.0100)" in decision.facts
    assert "a6/run_0: 3.2600" in decision.facts  # with itself it is not compared
    assert "a48/run_1: 3.2680 (-0.0040)" in decision.facts


def test_a_finalist_that_diverges_the_second_time_is_out():
    results = placements({"a6": None, "a48": 3.4}, **FIRST)
    assert layers_of(decide(2, results).chosen) == (4, 8)


def test_stage_2_stops_where_every_arm_diverges():
    decision = decide(2, placements(a4=None, a6=None, a8=None, a48=None))
    assert (decision.verdict, decision.title) == ("STOP", "STOP: every arm diverged")
    assert decision.chosen is None


def test_finalists_that_both_diverge_the_second_time_leave_none_but_do_not_stop():
    decision = decide(2, placements({"a6": None, "a48": None}, **FIRST))
    assert decision.title == "INCONCLUSIVE: the two best have no usable run on the second seed"
    assert decision.verdict == "INCONCLUSIVE" and decision.chosen is None


@pytest.mark.parametrize("others", [{}, {"a4": None}])
def test_no_usable_placement_where_one_crashed_is_inconclusive(others):
    """A crash says nothing of its arm."""
    results = [result(arm("a6", 6), status="crashed", stage=2), *placements(**others)]
    decision = decide(2, results, ["a6"])
    assert decision.verdict == "INCONCLUSIVE"
    assert "no usable run of an auxiliary arm" in decision.title
    assert decision.missing == ("a6",)
    assert decide(2, [], ["a6"]).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("status", ["crashed", "diverged", None])
def test_screening_does_not_proceed_without_a_usable_baseline(status):
    lost = [result(arm("screen_baseline"), status=status)] if status else []
    decision = decide(1, [*lost, *screening((), a6=3.0)], ["screen_baseline"])
    assert decision.verdict == "INCONCLUSIVE"
    assert "no usable run of the baseline" in decision.title


# ---------------------------------------------------------------------------------------------
# Stage 3: weight and schedule


def cell(which, loss, layers=(6,), **where):
    """A run of a weight and schedule at these layers; None diverged."""
    weight, schedule = which
    name = cell_of(weight, schedule).name
    an_arm = arm(name, *layers, weight=weight, schedule=schedule)
    status = "diverged" if loss is None else "ok"
    return result(an_arm, loss, status=status, **{"stage": 3, "seed": 2000, **where})


def test_three_cells_are_the_default_and_two_that_differ_in_both():
    assert CELLS[0] == settings_of(aux((4,))) == (0.1, "constant")
    weights, schedules = zip(*CELLS, strict=True)
    assert sorted(weights) == sorted(WEIGHTS)
    assert sorted(schedules) == sorted(SCHEDULES)


def stage_3(default, others, design=DESIGN):
    """Layer 6 won stage 2, with these losses of its seeds; the others have one on the first."""
    before = placements({"a6": default[1], "a48": 3.30}, **{**FIRST, "a6": default[0]})
    mine = [cell(which, loss) for which, loss in zip(CELLS[1:], others, strict=True)]
    history = tuple([*before, *mine])
    fields = {"choice": arm("a6", 6), "history": history, "design": design}
    return decide(3, mine, **fields)


def chosen_cell(*given, **design):
    chosen = stage_3(*given, **design).chosen
    assert layers_of(chosen) == (6,)
    return settings_of(chosen)


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ((3.28, 3.29), (0.1, "constant")),
        ((3.25, 3.29), (0.05, "linear_decay")),
        ((3.28, 3.25), (0.2, "cosine_decay")),
        ((3.25, 3.24), (0.2, "cosine_decay")),
        ((None, None), (0.1, "constant")),
        ((None, 3.25), (0.2, "cosine_decay")),
    ],
)
def test_the_lowest_of_three_cells_goes_on(others, best):
    assert chosen_cell((3.26, 3.26), others) == best


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("second", [3.20, 3.26, 3.32])
def test_a_second_seed_enters_by_the_closed_form(rho, second):
    """The default with its two seeds of stage 2 against a cell with the first one only: at the mean
    (1 - l) first + l second, l = (1 - rho) / 2, the choice turns over. Without another arm on the
    second seed: 4,8 diverged there."""
    share, design = (1 - rho) / 2, replace(DESIGN, rho=rho)
    default = (1 - share) * 3.26 + share * second
    before = placements({"a6": second}, a6=3.26)
    for by, best in ((-1e-6, CELLS[1]), (1e-6, CELLS[0])):
        mine = [cell(CELLS[1], default + by)]
        history = (*before, *mine)
        state = {"choice": arm("a6", 6), "history": history, "design": design}
        chosen = decide(3, mine, **state).chosen
        assert settings_of(chosen) == best


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_a_bad_second_seed_is_not_held_against_the_default(rho):
    """All runs of the second seed are .1 worse: with the other finalist as witness most of that is
    taken off, and by plain means the default would lose to cells that are worse on its seed."""
    bad = 0.1
    before = placements({"a6": 3.26 + bad, "a48": 3.265 + bad}, **FIRST)
    mine = [cell(CELLS[1], 3.28), cell(CELLS[2], 3.29)]
    fields = {"choice": arm("a6", 6), "history": (*before, *mine)}

    def chosen(rho):
        found = decide(3, mine, design=replace(DESIGN, rho=rho), **fields).chosen
        return settings_of(found)

    assert chosen(0.0) == CELLS[1]
    assert chosen(rho) == CELLS[0]


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.9])
def test_selection_is_by_the_best_linear_unbiased_means_of_both_stages(rho):
    before = placements({"a6": 3.31, "a48": 3.33}, **FIRST)
    mine = [cell(CELLS[1], 3.27), cell(CELLS[2], 3.262)]
    runs = [*before, *mine]
    means = stats.arm_means([(r.run.arm.configuration, r.run.seed, r.val_loss) for r in runs], rho)
    state = {"choice": arm("a6", 6), "history": tuple(runs), "design": replace(DESIGN, rho=rho)}
    decision = decide(3, mine, **state)
    found = dict(decision.numbers["means"])
    of_cells = [r for r in runs if layers_of(r.run.arm) == (6,)]
    assert found == pytest.approx(
        {r.run.arm.label: means[r.run.arm.configuration] for r in of_cells}
    )
    assert decision.chosen.label == min(found, key=found.get)


def test_stage_3_shows_its_cells_beside_the_best_one_of_the_same_seed():
    decision = stage_3((3.26, 3.30), (3.25, 3.29))
    assert decision.facts == (
        "Improvement over dive_w0p05_linear_decay on the same seed, in brackets",
        "a6/run_0: 3.2600 (-0.0100)",
        "a6/run_1: 3.3000",  # of another seed: no difference
        "dive_w0p05_linear_decay/run_0: 3.2500",
        "dive_w0p2_cosine_decay/run_0: 3.2900 (-0.0400)",
    )
    assert "the lowest mean within seeds" in decision.because[0]


def test_runs_that_are_short_or_of_the_baseline_tell_nothing_about_cells():
    before = placements({"a6": 3.26, "a48": 3.30}, **FIRST)
    mine = [cell(CELLS[1], 3.27), cell(CELLS[2], 3.28)]
    noise = [
        cell(CELLS[1], 1.0, stage=1, iterations=20),
        cell(CELLS[1], 1.0, stage=2, iterations=99),
        result(BASELINE, 1.0, stage=2),
    ]
    fields = {"choice": arm("a6", 6)}
    plain = decide(3, mine, history=(*before, *mine), **fields)
    assert decide(3, mine, history=(*before, *noise, *mine), **fields) == plain
    crashed = replace(mine[0], attempt=1, status="crashed", val_loss=None)
    again = [replace(mine[0], attempt=2), mine[1]]
    assert decide(3, again, history=(*before, crashed, *again), **fields) == plain


def test_without_any_result_stage_3_is_inconclusive():
    decision = decide(3, [], ["dive_0"])
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.missing == ("dive_0",)


# ---------------------------------------------------------------------------------------------
# The plan as a whole


def adaptive_experiment(full_runs=26.1, **changes):
    """Runs take 900 s at full length; the budget is so many: 8 select, nine pairs confirm."""
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
            loss = 3.28 - improvement * (not run.arm.is_baseline) + rng.gauss(0, 0.0013)
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


@pytest.mark.parametrize(("screen", "n_max"), [(False, 9), (True, 8)])
def test_the_adaptive_plan_runs_the_agreed_runs(screen, n_max):
    launched, step, _ = carry_out(adaptive_experiment(stop_on="never", screen=screen))
    stage_1 = [run.name for run in of_stage(launched, 1)]
    assert stage_1 == screen * [
        *("screen_baseline/run_0", "screen_aux_6/run_0", "screen_aux_4_8/run_0"),
        *("screen_aux_3_6_9/run_0", "screen_baseline/run_1"),
    ]
    stage_2 = of_stage(launched, 2)
    placements = ("aux_4", "aux_6", "aux_8", "aux_4_8")
    assert [run.name for run in stage_2[:4]] == [f"{name}/run_0" for name in placements]
    assert len(stage_2) == 6
    assert {(run.index, run.seed) for run in stage_2[:4]} == {(0, 2000)}
    assert {(run.index, run.seed) for run in stage_2[4:]} == {(1, 2001)}
    assert [(run.name, run.seed) for run in of_stage(launched, 3)] == [
        ("dive_w0p05_linear_decay/run_0", 2000),
        ("dive_w0p2_cosine_decay/run_0", 2000),
    ]
    assert {layers_of(run.arm) for run in of_stage(launched, 3)} == {
        layers_of(step.decisions[2].chosen)
    }
    assert [run.name for run in of_stage(launched, 4)] == [
        f"{name}/run_{k}" for k in range(n_max) for name in ("final_baseline", "final_best")
    ]
    assert step.decisions[4].numbers["n_max"] == n_max


def test_an_empty_stage_1_decides_nothing_and_says_why():
    decision = carry_out(adaptive_experiment())[1].decisions[1]
    assert (decision.verdict, decision.title) == ("PROCEED", "PROCEED to Stage 2")
    assert decision.numbers == {"dropped": []} and decision.missing == decision.facts == ()
    assert decision.because[0].startswith("No runs without --screen")
    assert decision.because[0].endswith(".")


@pytest.mark.parametrize(("layers", "cells"), [([4, 8], 2), ([3, 9], 3)])
def test_the_default_cell_is_run_again_only_for_layers_that_stage_2_did_not_run(layers, cells):
    """On the seed of stage 2 all the same: its other arms tell what that is like."""
    e = adaptive_experiment()
    _, _, results = carry_out(e)
    results = [r for r in results if r.run.stage < 3]
    step = next_step(overridden(e, "by_hand", 3, by_hand(*layers)), results)
    asked = [settings_of(run.arm) for run in step.runs]
    assert asked == [*CELLS][-cells:]
    assert {(run.stage, run.seed, layers_of(run.arm)) for run in step.runs} == {
        (3, 2000, (*layers,))
    }


def test_a_default_cell_that_stage_2_lost_to_crashes_is_run_in_stage_3():
    e = adaptive_experiment()
    _, _, results = carry_out(e)
    results = [
        replace(r, status="interrupted", reason="invented", val_loss=None)
        if layers_of(r.run.arm) == (4, 8)
        else r
        for r in results
        if r.run.stage < 3
    ]
    step = next_step(overridden(e, "by_hand", 3, by_hand(4, 8)), results)
    assert [settings_of(run.arm) for run in step.runs] == [*CELLS]


def test_stage_3_asks_for_the_same_runs_before_and_after_they_were_done():
    e = adaptive_experiment()
    _, step, results = carry_out(e)
    (stage,) = (stage for stage in stages_of(e) if stage.number == 3)
    asked = []
    for stages in ((1, 2), (1, 2, 3)):
        so_far = [r for r in results if r.run.stage in stages]
        standing = {r.run.key: r for r in so_far}
        state = plan.state_of(e, stage, step.decisions[2].chosen, step.decisions, so_far, standing)
        asked.append(state.runs_asked_for)
        assert len(state.stage_results) == (2 if 3 in stages else 0)
    assert asked[0] == asked[1] == of_stage([r.run for r in results], 3)


def test_a_placement_that_diverges_in_stage_2_is_dropped_at_the_price_of_one_run():
    lost = (8,)
    launched, step, _ = carry_out(
        adaptive_experiment(),
        happens=lambda run, _: "diverged" if layers_of(run.arm) == lost else "ok",
    )
    assert [run.name for run in launched if layers_of(run.arm) == lost] == ["aux_8/run_0"]
    assert len(of_stage(launched, 2)) == 6
    assert layers_of(step.decisions[2].chosen) != lost and step.decisions[2].missing == ()


def test_the_plan_stops_when_every_arm_diverges_in_stage_2():
    launched, step, _ = carry_out(
        adaptive_experiment(), happens=lambda run, _: "ok" if run.arm.is_baseline else "diverged"
    )
    assert len(launched) == 4
    assert step.at_gate and step.ended == "STOP: every arm diverged"


def test_no_placement_is_run_again_before_each_was_run_once():
    """On a packed machine a slot is free while the last one still trains: it may be the best."""
    e = adaptive_experiment(parallel_runs=8)
    _, _, results = carry_out(e)
    first = [r for r in results if (r.run.stage, r.run.index) == (2, 0)]
    for last in first:
        others = [r for r in first if r is not last]
        step = next_step(e, others, frozenset({last.run.name}))
        assert not step.runs and not step.ended
        assert next_step(e, others).runs == (last.run,)
    assert [run.index for run in next_step(e, first).runs] == [1, 1]


def test_a_second_run_that_fails_for_good_ends_no_plan():
    launched, step, _ = carry_out(
        adaptive_experiment(),
        happens=lambda run, _: "crashed" if (run.stage, run.index) == (2, 1) else "ok",
    )
    assert step.decisions[2].verdict == "PROCEED"
    assert step.decisions[2].missing == ()  # of each arm there is a run
    assert len(of_stage(launched, 3)) == 2
    assert 4 in step.decisions


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
        adaptive_experiment(screen=True),
        happens=lambda run, _: (
            "diverged" if run.stage == 1 and layers_of(run.arm) == layers else "ok"
        ),
    )
    assert layers not in {layers_of(run.arm) for run in of_stage(launched, 2)}
    assert step.decisions[2].missing == ()


def test_the_plan_stops_when_screening_drops_everything():
    launched, step, _ = carry_out(
        adaptive_experiment(screen=True),
        happens=lambda run, _: "ok" if run.arm.is_baseline else "diverged",
    )
    assert len(launched) == 5
    assert step.at_gate


def test_stage_4_ends_when_its_verdict_is_settled():
    launched, step, _ = carry_out(adaptive_experiment(), improvement=-0.02)
    assert len(of_stage(launched, 4)) == 6
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
    assert machine_seconds(results) <= 26.2 * 900


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


def test_a_forecast_counts_the_pair_that_replaces_one_that_was_given_up():
    e = adaptive_experiment(60.0, stop_on="superiority", validation_runs=6)
    lost = lambda run, _: "crashed" if run.name == "final_best/run_1" else "ok"  # noqa: E731
    launched, _, results = carry_out(e, improvement=0.0, happens=lost)
    done = [r for r in results if r.run.stage < 4 or r.run.index <= 1]
    to_come = [planned.run for planned in forecast(e, done)[0]]
    assert to_come == launched[len(done) :]
    assert to_come[-1].name == "final_best/run_6"


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
    assert (numbers["verdict"], numbers["n"]) == (IMPROVES, 8)  # one against many takes many pairs


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
    for kind, share in enumerate((0.8, 0.2)):
        spent = [share * 0.025 * (k["n"] / k["n_max"]) ** 3 for k in wasted["looks"]]
        assert spent[-1] == pytest.approx(share * 0.025)
        bounds = sequential.bounds([k["n"] for k in wasted["looks"]], spent)
        assert [k["tests"][kind]["z"] for k in wasted["looks"]] == pytest.approx(list(bounds))


def test_a_look_is_taken_with_what_its_own_pairs_left_of_the_budget():
    e = adaptive_experiment()
    _, step, results = carry_out(e, improvement=0.03)
    before = step.decisions[4].numbers
    *others, last = results
    slow = replace(last, end_s=last.end_s + 2 * 1800)  # two pairs more
    after = conclude(next_step(e, [*others, slow])).decisions[4].numbers
    assert before["n"] == after["n"] == 3 and after["n_max"] <= before["n_max"] - 2


def test_the_last_look_spends_what_is_left_where_no_further_pair_comes():
    _, step, _ = carry_out(
        adaptive_experiment(60.0, stop_on="superiority"),
        improvement=0.0,
        happens=lambda run, _: "crashed" if run.stage == 4 and run.index >= 4 else "ok",
    )
    looks = step.decisions[4].numbers["looks"]
    assert [look["n"] for look in looks] == [3, 4]
    assert looks[0]["n_max"] > looks[1]["n_max"] == 4


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
    assert len(carry_out(e)[0]) < len(carry_out(same)[0])
    assert [*carry_out(raised)[0]] == [*carry_out(same)[0]]


def test_results_count_for_the_configuration_that_was_trained_only():
    """Another choice by hand, after stage 4: its runs have the same names, and are other runs."""
    launched, _, results = carry_out(adaptive_experiment(), improvement=0.02)
    e = adaptive_experiment(60.0)
    step = next_step(overridden(e, "by_hand", 4, by_hand(3, 9)), results)
    assert step.runs and not step.ended
    assert {layers_of(run.arm) for run in step.runs} == {(3, 9)}  # the baseline's still count
    names = {run.name for run in launched}
    assert {run.name for run in step.runs} <= names


def test_a_choice_by_hand_takes_the_place_of_a_stage_that_is_half_done():
    e = adaptive_experiment()
    _, _, results = carry_out(e)
    half = [r for r in results if r.run.stage == 1 or r.run.name in ("aux_4/run_0", "aux_6/run_0")]
    assert next_step(overridden(e, "by_hand", 4, by_hand(3, 9)), half).stage == 4
    assert next_step(overridden(e, "by_hand", 3, by_hand(3, 9)), half).stage == 3


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
    e = adaptive_experiment(2 + 1 + 1.1, parallel_runs=8)
    _, step, _ = carry_out(e, improvement=0.0)
    (only,) = step.decisions[4].numbers["looks"]
    assert (only["n"], only["n_max"]) == (4, 4)
    assert only["tests"][0]["z"] == pytest.approx(scipy.stats.norm.isf(0.8 * 0.025))


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
