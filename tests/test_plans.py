"""The plan: what comes next, given what is known."""

import itertools
import os
import random
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.plan.costs import Costs
from ablation.plan.forecast import forecast, pairs_of, span_s, too_few_pairs
from ablation.plan.next_step import (
    MAX_ATTEMPTS,
    PLANS,
    conclude,
    next_step,
    pairs_begun,
    result_that_stands,
    stages_of,
)
from ablation.plan.power import as_meant
from ablation.runs.run import STATUSES, machine_seconds
from ablation.study.heads import HEADS
from ablation.study.overrides import Override, Overrides
from ablation.study.profiles import PROFILES, default_profile
from tests.support.invent import (
    ARMS,
    by_hand,
    experiment,
    layers_of,
    overridden,
    result,
    schedule_of,
    settings_of,
    weight_of,
    with_share,
)

MINI = PROFILES["mini"]
GOOD = {(): 3.3, (4,): 3.2, (6,): 3.1, (8,): 3.15, (4, 8): 3.0, (3, 6, 9): 3.25}
HYPER = {0.05: 0.01, 0.1: 0.0, 0.2: 0.02, "constant": 0.0, "linear_decay": -0.02}


def arms_of(phase):
    return {p.name: p.arms for p in HEADS.phases}[phase]


def loss_of(run, losses=GOOD):
    arm = run.arm
    extra = 0.0
    if not arm.is_baseline:
        extra = HYPER[weight_of(arm)] + HYPER.get(schedule_of(arm), 0.03)
    return losses[layers_of(arm)] + extra + run.seed % 7 / 1e4 + run.seed / 1e9


def carry_out(e, losses=GOOD, seconds=10.0, happens=lambda run, attempt: "ok"):
    """Carry out a whole plan with invented results; every launch in order, and the last step."""
    results, launched = [], []
    while (step := next_step(e, results)).runs:
        run = step.runs[0]
        attempt = 1 + sum(r.run.name == run.name for r in results)
        outcome = result(
            run.arm,
            loss_of(run, losses),
            status=happens(run, attempt),
            stage=run.stage,
            index=run.index,
            attempt=attempt,
            seconds=seconds,
        )
        results.append(replace(outcome, run=run))
        launched.append(run)
    return launched, conclude(step), results


def names(runs, stage):
    return [run.name for run in runs if run.stage == stage]


def test_the_classic_plan_runs_the_agreed_arms_in_order():
    launched, step, _ = carry_out(experiment())
    assert names(launched, 1) == [
        "screen_baseline/run_0",
        "screen_aux_6/run_0",
        "screen_aux_4_8/run_0",
        "screen_aux_3_6_9/run_0",
    ]
    assert [run.arm.name for run in launched if run.stage == 2] == [
        *("baseline", "aux_4", "aux_6", "aux_8", "aux_4_8", "aux_6_repeat")
    ]
    assert [run.arm.name for run in launched if run.stage == 3] == [
        *("dive_w0p05", "dive_w0p1", "dive_w0p2"),
        *("dive_constant", "dive_linear_decay", "dive_cosine_decay"),
        *(f"validation_{k}" for k in range(4)),
    ]
    pairs = [f"{arm}/run_{k}" for k in range(8) for arm in ("final_baseline", "final_best")]
    assert names(launched, 4) == pairs
    assert step.ended == "all runs are done"
    assert len(launched) == 36


def test_what_each_stage_chooses_goes_into_the_next():
    launched, step, _ = carry_out(experiment(), {**GOOD, (8,): 2.9})
    refined = [run.arm for run in launched if run.stage == 3]
    assert {layers_of(arm) for arm in refined} == {(8,)}
    validated = {settings_of(arm) for arm in refined if arm.name.startswith("validation")}
    assert validated == {(0.1, "linear_decay")}
    final = next(run.arm for run in launched if run.arm.name == "final_best")
    assert (layers_of(final), *settings_of(final)) == ((8,), 0.1, "linear_decay")
    assert layers_of(step.decisions[2].chosen) == (8,)


def test_lengths_are_proportions_of_a_full_run():
    launched, _, _ = carry_out(experiment(full_iterations=5100))
    assert {run.num_iterations for run in launched if run.stage == 1} == {1000}
    assert {run.num_iterations for run in launched if run.stage > 1} == {5100}


def test_fixed_numbers_of_the_classic_plan_add_up_to_32_8_full_runs():
    launched, _, _ = carry_out(experiment(full_iterations=5100))
    assert sum(run.num_iterations for run in launched) / 5100 == pytest.approx(32.8, abs=0.05)


def test_compared_arms_share_seeds_and_repeats_have_new_ones():
    launched, _, _ = carry_out(experiment())
    seeds = {run.name: run.seed for run in launched}
    assert len({run.seed for run in launched if run.stage == 1}) == 1
    assert seeds["aux_6_repeat/run_0"] != seeds["aux_6/run_0"] == seeds["baseline/run_0"]
    assert seeds["dive_constant/run_0"] != seeds["dive_w0p1/run_0"]
    for k in range(8):
        assert seeds[f"final_baseline/run_{k}"] == seeds[f"final_best/run_{k}"]
    assert len({seeds[f"final_best/run_{k}"] for k in range(8)}) == 8


def test_no_seed_is_shared_between_stages():
    launched, _, _ = carry_out(experiment(validation_runs=50))
    by_stage = [{run.seed for run in launched if run.stage == n} for n in (1, 2, 3, 4)]
    assert sum(map(len, by_stage)) == len(set().union(*by_stage))


def test_no_configuration_is_trained_twice_with_one_seed_within_a_stage():
    launched, _, _ = carry_out(experiment())
    keys = [(run.stage, run.arm.configuration, run.seed) for run in launched]
    assert len(keys) == len(set(keys))


def test_a_stop_at_the_gate_ends_the_plan():
    flat = dict.fromkeys(GOOD, 3.3)
    launched, step, _ = carry_out(experiment(), flat)
    assert len(launched) == 4
    assert step.at_gate
    assert step.stage == 1


def test_an_override_goes_on_past_a_stop():
    flat = dict.fromkeys(GOOD, 3.3)
    overrides = Overrides(tuple(Override("ignore_gate", stage) for stage in (1, 2)))
    launched, step, _ = carry_out(experiment(overrides=overrides), flat)
    assert len(launched) == 36
    assert step.decisions[1].verdict == "STOP"


def test_layers_by_hand_skip_the_stages_before():
    value = by_hand(3, 9, weight=0.2)
    e = overridden(experiment(), "by_hand", 4, value)
    run = next_step(e, []).runs[1]
    assert (run.stage, layers_of(run.arm), weight_of(run.arm)) == (4, (3, 9), 0.2)


def test_a_choice_by_hand_goes_past_what_earlier_stages_decided():
    _, step, flat = carry_out(experiment(), dict.fromkeys(GOOD, 3.3))
    assert step.at_gate
    value = by_hand(3, 9, weight=0.2)
    for stage in (3, 4):
        step = next_step(overridden(experiment(), "by_hand", stage, value), flat)
        assert step.stage == stage and step.runs
        assert step.decisions[1].verdict == "STOP"


def test_a_choice_for_a_stage_that_a_plan_does_not_have_changes_nothing():
    """Nobody can give it; a file that somebody edited may hold it."""
    value = by_hand(3, 9, weight=0.2)
    manual = experiment(plan="manual", arms=(ARMS["baseline"],), seeds=(1,))
    run = next_step(manual, []).runs[0]
    for results in ([], [replace(result(run.arm, 3.3), run=run)]):
        step = next_step(overridden(manual, "by_hand", 3, value), results)
        assert step.runs == next_step(manual, results).runs
        assert step.ended == next_step(manual, results).ended


def test_the_same_results_in_any_order_give_the_same_step():
    _, _, results = carry_out(experiment())
    for cut in (0, 3, 9, 17, 30):
        assert next_step(experiment(), results[:cut]) == next_step(
            experiment(), results[:cut][::-1]
        )


def test_a_crash_is_retried_with_the_same_seed_and_then_given_up():
    def happens(run, attempt):
        return "crashed" if run.arm.name == "screen_aux_6" else "ok"

    launched, step, _ = carry_out(experiment(), happens=happens)
    tries = [run for run in launched if run.arm.name == "screen_aux_6"]
    assert len(tries) == MAX_ATTEMPTS
    assert len({run.seed for run in tries}) == 1
    assert step.decisions[1].missing == ("screen_aux_6",)
    assert step.ended == "all runs are done"


def test_a_run_that_recovers_counts():
    def happens(run, attempt):
        return ("timeout", "crashed", "ok")[attempt - 1] if run.arm.name == "aux_4_8" else "ok"

    _, step, _ = carry_out(experiment(), happens=happens)
    assert step.decisions[2].missing == ()
    assert layers_of(step.decisions[2].chosen) == (4, 8)


def test_a_divergence_is_not_retried():
    launched, step, _ = carry_out(
        experiment(),
        happens=lambda run, _: "diverged" if layers_of(run.arm) == (3, 6, 9) else "ok",
    )
    assert sum(layers_of(run.arm) == (3, 6, 9) for run in launched) == 1
    assert step.decisions[1].verdict == "PROCEED"


def test_an_interrupted_run_is_run_again_as_often_as_it_takes():
    launched, _, _ = carry_out(
        experiment(),
        happens=lambda run, attempt: (
            "interrupted" if run.arm.name == "screen_baseline" and attempt < 6 else "ok"
        ),
    )
    assert sum(run.arm.name == "screen_baseline" for run in launched) == 6


def test_a_baseline_that_never_runs_is_inconclusive():
    never = lambda run, _: "crashed" if run.arm.is_baseline else "ok"  # noqa: E731
    _, step, _ = carry_out(experiment(), happens=never)
    assert step.decisions[1].verdict == "INCONCLUSIVE"
    assert step.at_gate


def test_the_budget_is_never_planned_over_and_stage_4_gets_what_is_left():
    e = experiment(budget_hours=300 / 3600)  # of runs of 10 s: 30 of the 36
    launched, step, results = carry_out(e)
    assert machine_seconds(results) <= 300
    assert len(names(launched, 4)) == 10
    assert any("5 of 8 pairs" in cut for cut in step.budget_cuts)
    assert step.ended == "all runs are done"


@pytest.mark.parametrize(("hours", "stage"), [(25, 1), (75, 2), (155, 3), (205, 4)])
def test_a_budget_that_ends_in_a_stage_is_said_and_decided_on_what_there_is(hours, stage):
    _, step, results = carry_out(experiment(budget_hours=hours / 3600))
    assert step.ended == "the budget is spent"
    assert step.stage == stage
    assert step.stage in step.decisions
    assert step.budget_cuts
    assert machine_seconds(results) <= hours


def test_runs_in_flight_are_not_launched_again_and_hold_the_decision():
    e = experiment()
    first = next_step(e, []).runs
    running = frozenset(run.name for run in first)
    step = next_step(e, [], running)
    assert step.runs == ()
    assert not step.ended
    assert step.decisions == {}


def test_forecast_is_what_the_plan_then_does():
    planned, _ = forecast(experiment())
    launched, _, _ = carry_out(experiment())
    assert [p.run.name for p in planned] == [run.name for run in launched]


def test_forecast_from_the_middle_holds_only_what_is_left():
    launched, _, results = carry_out(experiment())
    planned, _ = forecast(experiment(), results[:12])
    assert [p.run.name for p in planned] == [run.name for run in launched[12:]]


def test_forecast_goes_on_past_a_stop_that_was_decided():
    flat = dict.fromkeys(GOOD, 3.3)
    _, step, results = carry_out(experiment(), flat)
    assert step.at_gate
    planned, last = forecast(experiment(), results)
    assert {p.run.stage for p in planned} == {2, 3, 4} and not last.at_gate


@pytest.mark.parametrize(("plan", "runs"), [("classic", 12), ("adaptive", 7)])
def test_what_the_budget_left_out_of_a_stage_is_missing(plan, runs):
    """The classic plan misses arms of its table, the adaptive one those that it asked for."""
    e = experiment(plan=plan, budget_hours=(10 * runs + 5) / 3600)
    launched, step, _ = carry_out(e)
    assert step.ended == "the budget is spent" and step.stage == 3
    longest = {run.arm.name for run in carry_out(experiment(plan=plan))[0] if run.stage == 3}
    assert {*step.decisions[3].missing} == longest - {run.arm.name for run in launched}
    assert ("validation_3" in step.decisions[3].missing) == (plan == "classic")


def test_costs_come_from_measured_runs_once_there_are_any():
    e = experiment()
    run = next_step(e, []).runs[0]
    prior = Costs(e)(run)
    measured = replace(result(run.arm, 3.3, seconds=10 * prior), run=run)
    assert Costs(e, [measured])(run) == pytest.approx(10 * prior)
    other = next_step(e, []).runs[1]
    assert Costs(e, [measured])(other) > 2 * Costs(e)(other)


def test_a_failed_run_teaches_nothing_about_costs():
    e = experiment()
    run = next_step(e, []).runs[0]
    failed = replace(result(run.arm, status="crashed", seconds=1e-3), run=run)
    assert Costs(e, [failed])(run) == Costs(e)(run)


@pytest.mark.parametrize(
    ("gpus", "name"), [(0, "mini"), (1, "small"), (3, "small"), (4, "speedrun"), (8, "speedrun")]
)
def test_default_profile_by_the_gpus_seen(gpus, name):
    assert default_profile(gpus)[0] == name


def test_phases_hold_the_agreed_arms():
    agreed = {
        "baseline": ["baseline"],
        "layer_position": ["aux_4", "aux_6", "aux_8", "aux_6_repeat"],
        "num_heads": [
            *("aux_4_8", "aux_3_9", "aux_5_7", "aux_3_6_9"),
            *("aux_2_6_10", "aux_4_6_8", "aux_2_4_6_8"),
        ],
        "loss_weight": [f"aux_4_8_{w}" for w in ("w0p01", "w0p05", "w0p1", "w0p2", "w0p5")],
        "loss_schedule": [
            f"aux_4_8_{s}" for s in ("constant", "linear_decay", "cosine_decay", "warmup_decay")
        ],
        "screening": ["screen_baseline", "screen_aux_6", "screen_aux_4_8", "screen_aux_3_6_9"],
        "quick": ["quick_baseline", "quick_aux_4_8"],
    }
    assert {p.name: [arm.name for arm in p.arms] for p in HEADS.phases} == agreed
    assert len(ARMS) == sum(map(len, agreed.values()))


def test_arms_by_hand_run_seed_by_seed_and_a_repeat_has_other_seeds():
    arms = arms_of("layer_position")
    e = experiment(plan="manual", arms=arms, seeds=(1, 2))
    runs = next_step(e, []).runs
    assert [run.name for run in runs[:5]] == [
        *("aux_4/run_0", "aux_6/run_0", "aux_8/run_0", "aux_6_repeat/run_0", "aux_4/run_1")
    ]
    assert {run.seed for run in runs if run.arm.name == "aux_6"} == {1, 2}
    assert not {run.seed for run in runs if run.arm.name == "aux_6_repeat"} & {1, 2}


def test_quick_runs_are_a_tenth_and_screening_runs_short():
    by_hand = {"plan": "manual", "seeds": (1,), "full_iterations": 5100}
    quick = next_step(experiment(arms=arms_of("quick"), **by_hand), []).runs[0]
    short = next_step(experiment(arms=arms_of("screening"), **by_hand), []).runs[0]
    assert (quick.num_iterations, short.num_iterations) == (510, 1000)


def test_every_stage_has_seeds_of_its_own():
    first = [experiment().seed(stage.number, 0) for stage in stages_of(experiment())]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_a_repeat_with_another_first_seed_shares_no_seed(plan):
    e = experiment(plan=plan, screen=True)
    both = (e, replace(e, first_seed=10_000))
    runs, repeat = ([p.run for p in forecast(each)[0]] for each in both)
    assert [r.seed + 10_000 for r in runs] == [r.seed for r in repeat]
    assert not {r.seed for r in runs} & {r.seed for r in repeat}


def test_the_plan_asks_no_machine_no_clock_and_no_folder(monkeypatch, tmp_path):
    """The same experiment and results give the same step, wherever and whenever."""
    e = experiment(plan="adaptive", profile=PROFILES["small"], budget_hours=3.0, cores=4)
    expected = next_step(e, []), forecast(e)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 0.0)
    assert (next_step(e, []), forecast(e)) == expected
    assert forecast(with_share(e, cores=16))[0] != expected[1][0]  # registered, and it matters


def test_copies_of_a_run_end_the_plan_and_near_copies_do_not():
    e = experiment(plan="manual", arms=(ARMS["baseline"],), seeds=(1, 2, 3))
    runs = next_step(e, []).runs
    same = [replace(result(run.arm, 3.25), run=run) for run in runs[:2]]
    step = next_step(e, same)
    assert step.fault and not step.runs
    assert "have exactly the same val loss 3.25" in step.ended
    near = [same[0], replace(same[1], val_loss=3.25 + 1e-12)]
    assert next_step(e, near).runs == runs[2:]
    assert next_step(e, [same[0], replace(same[0], attempt=2)]).runs == runs[1:]  # one seed
    again = replace(same[0], run=replace(runs[0], index=7))
    assert not next_step(e, [same[0], again]).fault


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
@pytest.mark.parametrize("status", ["diverged", "crashed"])
def test_a_stage_whose_baseline_is_lost_asks_for_nothing_more(plan, status):
    """A crash may be the machine's, until another arm has trained."""
    e = experiment(plan=plan, screen=True)
    lost = lambda run, attempt: status if run.arm.is_baseline else "ok"  # noqa: E731
    launched, step, results = carry_out(e, happens=lost)
    assert {run.stage for run in launched} == {1}
    most = 1 if status == "diverged" else 2 if plan == "classic" else 5  # which has two baselines
    assert len({run.name for run in launched}) == most
    assert step.at_gate and "no usable run of the baseline" in step.ended
    waiting = next_step(e, results, frozenset({"screen_aux_4_8/run_0"}))
    assert not waiting.runs and not waiting.ended


@pytest.mark.parametrize(("status", "pairs"), [("diverged", 3), ("crashed", 4)])
def test_pairs_without_a_baseline_end_the_adaptive_plan_early(status, pairs):
    """Without screening its first baseline is one of stage 4."""
    lost = lambda run, attempt: status if run.arm.is_baseline else "ok"  # noqa: E731
    launched, step, _ = carry_out(experiment(plan="adaptive"), happens=lost)
    assert not [run for run in launched if run.stage < 4 and run.arm.is_baseline]
    assert len({run.name for run in launched if run.stage == 4}) == 2 * pairs
    assert step.decisions[4].numbers["verdict"] == "inconclusive"
    assert step.ended == "all runs are done"


def test_the_verdict_says_of_which_configuration_and_how_many_were_run():
    for plan in ("classic", "adaptive"):
        launched, step, _ = carry_out(experiment(plan=plan, validation_runs=4))
        full = {run.arm.configuration for run in launched if run.stage > 1} - {()}
        about = f"The verdict is of the configuration chosen; {len(full)} of 36 were run."
        assert about in step.decisions[4].because
        assert len(full) == {"classic": 8, "adaptive": 6}[plan]


@pytest.mark.parametrize("parallel_runs", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_packed_pairs_are_as_many_as_the_rounds_hold(parallel_runs, rounds):
    """The classic plan launches all at once: an odd slot takes half of the next pair."""
    e = experiment(parallel_runs=parallel_runs, validation_runs=100)
    whole = forecast(replace(e, budget_hours=1e6))[0]
    before = [p for p in whole if p.run.stage < 4]
    run_s = max(p.wall_s for p in whole if p.run.stage == 4)
    stage_4_s = rounds * run_s if parallel_runs > 1 else rounds * 2 * run_s
    hours = (span_s(before) + stage_4_s * 1.001) / 3600
    planned, step = forecast(replace(e, budget_hours=hours))
    planned = [p for p in planned if p.run.stage == 4]
    pairs = len(planned) // 2
    most = rounds if parallel_runs == 1 else rounds * parallel_runs // 2
    assert pairs in (most, most + (parallel_runs == 1))  # two heads cost a little more
    assert f"stage 4: {pairs} of 100 pairs fit into what is left" in step.budget_cuts
    assert span_s(planned) <= stage_4_s * 1.001


@pytest.mark.parametrize(
    ("at_a_time", "looks"), [(1, [3, 4, 5, 6, 7, 8]), (4, [4, 6, 8]), (6, [3, 6, 8]), (8, [4, 8])]
)
def test_the_adaptive_plan_fills_a_packed_machine_between_looks(at_a_time, looks):
    """Pairs are asked for in batches that fill the machine; a look comes after each batch."""
    how = {"validation_runs": 8, "stop_on": "superiority"}
    e = experiment(plan="adaptive", parallel_runs=at_a_time, **how)
    noise = random.Random(1)
    results, asked = [], []
    while (step := next_step(e, results)).runs:
        if step.stage == 4:
            asked.append(len(step.runs))
        for run in step.runs:
            loss = (
                3.3 + noise.gauss(0, 0.02) - 0.3 * (layers_of(run.arm) == (4, 8)) * (run.stage < 4)
            )
            results.append(replace(result(run.arm, loss), run=run))
    assert [look["n"] for look in conclude(step).decisions[4].numbers["looks"]] == looks
    assert asked == [2 * (b - a) for a, b in itertools.pairwise([0, *looks])]


def test_a_budget_given_later_buys_no_second_test():
    """Both plans: the pairs of stage 4 are those of the budget with which it began."""
    for plan, runs_s in (("classic", 300), ("adaptive", 340)):
        e = experiment(plan=plan, budget_hours=runs_s / 3600, stop_on="any")
        _, step, results = carry_out(e)
        verdict = step.decisions[4]
        for hours in (0.5 * e.budget_hours, 100.0):
            value = {"hours": hours, "was": e.budget_hours, "pairs": pairs_begun(results)}
            later = overridden(e, "budget", 0, value)
            again = conclude(next_step(later, results))
            assert not again.runs and again.decisions[4] == verdict, (plan, hours)
    before = [r for r in results if r.run.stage < 4]
    value = {"hours": 100.0, "was": e.budget_hours, "pairs": pairs_begun(before)}
    raised = overridden(e, "budget", 0, value)
    assert next_step(raised, before).runs


def test_a_complete_training_whose_log_was_refused_is_given_up_unless_it_is_forgiven():
    run = next_step(experiment(), []).runs[0]
    refused = result(run.arm, status="crashed", iterations=run.num_iterations)
    refused = replace(refused, run=run, returncode=0)
    assert refused.final
    assert result_that_stands([refused]) is refused
    assert result_that_stands([refused], frozenset({(run.name, 1)})) is None


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_whatever_becomes_of_runs_the_plan_ends_and_never_asks_again_for_an_outcome(plan, seed):
    chance = random.Random(seed)
    by_hand = {"arms": arms_of("layer_position"), "seeds": (3, 9)} if plan == "manual" else {}
    gates = [Override("ignore_gate", n) for n in (1, 2, 3) if chance.random() < 0.5]
    hours, parallel_runs = chance.choice([0.02, 0.08, 100.0]), chance.choice([1, 2, 3, 8])
    e = experiment(
        plan=plan,
        overrides=Overrides(tuple(gates)),
        budget_hours=hours,
        parallel_runs=parallel_runs,
        validation_runs=5,
        **by_hand,
    )
    weights = [chance.choice([1, 6]), *(chance.choice([0, 0, 0.3, 2]) for _ in STATUSES[1:])]
    results, flights, done = [], [], set()
    while True:
        running = frozenset(run.name for run in flights)
        step = next_step(e, results, running)
        assert step == next_step(e, chance.sample(results, len(results)), running)
        assert not done & {run.key for run in step.runs}
        assert not running & {run.name for run in step.runs}
        assert not (step.runs and step.ended)
        if step.runs and len(flights) < parallel_runs:
            flights.append(step.runs[0])
        elif flights:
            run = flights.pop(chance.randrange(len(flights)))
            attempt = 1 + sum(r.run.name == run.name for r in results)
            status = "ok" if attempt > 9 else chance.choices(STATUSES, weights)[0]
            loss = 3.3 + chance.gauss(0, 0.05)
            results.append(replace(result(run.arm, loss, status=status, attempt=attempt), run=run))
            if results[-1].has_outcome:
                done.add(run.key)
            elif chance.random() < 0.1:
                value = {"attempts": [[run.name, attempt]]}
                e = overridden(e, "retry", 0, value)
        else:
            break
    assert step.ended


def test_behind_the_last_stage_there_is_nothing_to_go_on_with():
    """Where every final run of the baseline diverges there is no comparison, but no gate either."""
    _, step, _ = carry_out(
        experiment(validation_runs=1),
        happens=lambda run, _: "diverged" if run.arm.name == "final_baseline" else "ok",
    )
    assert step.ended == step.decisions[4].title and "INCONCLUSIVE" in step.ended
    assert not step.at_gate


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_the_last_decision_is_not_among_those_that_runs_depend_on(plan):
    _, concluded, results = carry_out(experiment(plan=plan, validation_runs=4))
    step = next_step(experiment(plan=plan, validation_runs=4), results)
    assert [*step.decisions] == [1, 2, 3] and [*concluded.decisions] == [1, 2, 3, 4]
    assert conclude(step) == concluded == conclude(concluded)
    before = next_step(experiment(plan=plan, validation_runs=4), results[:-1])
    assert conclude(before) == before


@pytest.mark.parametrize("plan", PLANS)
def test_every_stage_but_the_last_has_a_gate_and_every_choice_is_made_before_it_is_taken(plan):
    stages = PLANS[plan](HEADS)
    assert [stage.has_gate for stage in stages] == [True] * (len(stages) - 1) + [False]
    made = [bool(stage.chooses) for stage in stages]
    assert all(any(made[:k]) for k, stage in enumerate(stages) if stage.takes_choice)


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_what_a_stage_asks_for_is_made_out_once(plan, monkeypatch):
    asked = []

    def counting(stage):
        return lambda state: asked.append(stage.number) or stage.runs_asked_for(state)

    e = experiment(plan=plan, validation_runs=4)
    _, _, results = carry_out(e)
    rows = tuple(replace(stage, runs_asked_for=counting(stage)) for stage in stages_of(e))
    monkeypatch.setitem(PLANS, plan, lambda study: rows)
    conclude(next_step(e, results))
    assert asked == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------
# A budget in which nothing can be concluded


@pytest.mark.parametrize(
    ("share", "validation_runs", "needed"),
    [
        ({}, None, MINI.design.first_look),
        ({}, 2, 2),
        ({"parallel_runs": 3}, None, MINI.design.first_look),
        ({"parallel_runs": 8}, None, MINI.design.first_look),
        ({"launcher": "slurm", "nodes": 2, "processes": 2}, None, MINI.design.first_look),
    ],
)
def test_a_budget_without_a_first_look_is_refused_with_the_one_that_has_it(
    share, validation_runs, needed
):
    e = experiment(plan="adaptive", budget_hours=0.001, validation_runs=validation_runs, **share)
    why = too_few_pairs(e)
    assert f"a budget of 0.001 h leaves 0 pair(s) for stage 4, and a verdict takes {needed}" in why
    hours = float(re.search(r"give --max_budget_hours ([\d.]+) or more", why)[1])
    enough, less = (replace(e, budget_hours=h) for h in (hours, 0.8 * hours))
    assert pairs_of(forecast(enough)[0]) >= needed
    assert not too_few_pairs(enough)
    assert too_few_pairs(less)


@pytest.mark.parametrize("plan", ["classic", "manual"])
def test_only_a_sequential_test_needs_a_first_look(plan):
    by_hand = {"arms": (ARMS["baseline"],), "seeds": (1,)} if plan == "manual" else {}
    e = experiment(plan=plan, budget_hours=0.001, **by_hand)
    assert not too_few_pairs(e)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_has_the_hours_for_its_own_first_look(profile):
    e = as_meant(profile)
    assert not too_few_pairs(e)
