"""The budget is a promise: what is paid, what is started, what is cut, and what is said of it."""

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import run_aux
from ablation.execute import sitting
from ablation.execute.preview import announce
from ablation.plan.costs import Costs
from ablation.plan.forecast import Planned, forecast, paid_s, placeholder, span_s
from ablation.plan.next_step import PLANS, conclude, is_second_test, next_step, pairs_begun
from ablation.runs.run import machine_seconds
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.profiles import PROFILES
from tests.support.invent import experiment, layers_of, overridden, result, with_share

STAGED = [name for name in PLANS if name != "manual"]
SPEEDRUN = {
    "profile": PROFILES["speedrun"],
    "full_iterations": 5100,
    "processes": 8,
    "device": "cuda",
    "budget_hours": 7.0,
}


def loss_of(run):
    """Every gate lets the plan pass: two layers are best."""
    better = {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.2}[len(layers_of(run.arm))]
    return 3.3 - better + run.seed % 7 / 1e4 + run.seed / 1e9


def carry_out(e, true_s, happens=lambda run, attempt: "ok", downtime_s=0.0):
    """What an orchestrator does, on an invented clock: every result, and the last step.

    A run takes true_s(run), unless its limit comes first. Checks on the way that nothing is
    started that is not expected to end inside the budget.
    """
    results, now = [], 1000.0
    while (step := next_step(e, results)).runs:
        run, spent_s = step.runs[0], machine_seconds(results)
        assert spent_s + Costs(e, results)(run) <= 3600 * e.budget_hours
        limits = sitting.limits_of(e, run, results, spent_s, 600)
        attempt = 1 + sum(r.run.name == run.name for r in results)
        status, seconds = happens(run, attempt), true_s(run)
        if seconds > limits.seconds:
            status = "timeout" if limits.why == "timeout" else "interrupted"
            seconds = limits.seconds
        train, rest = Costs(e).prior(run)
        train_time_ms = 1000 * seconds * train / (train + rest)
        invented = result(
            run.arm, loss_of(run), status=status, stage=run.stage, attempt=attempt,
            start=now, seconds=seconds, train_time_ms=train_time_ms,
        )  # fmt: skip
        results.append(replace(invented, run=run, clock="machine"))
        now += seconds + downtime_s
        assert len(results) < 1000
    return results, step


def hours(seconds):
    return seconds / 3600


def total_of(e):
    planned, _ = forecast(replace(e, budget_hours=1e6))
    return span_s(planned)


# ---------------------------------------------------------------------------------------------
# The ledger


@pytest.mark.parametrize("status", ["ok", "diverged", "crashed", "timeout", "interrupted"])
def test_every_attempt_is_paid_for_whatever_became_of_it(status):
    e = experiment()
    run = next_step(e, []).runs[0]
    attempt = replace(result(run.arm, 3.3, status=status, seconds=25.0), run=run)
    assert machine_seconds([attempt]) == 25.0


def test_downtime_between_sittings_is_not_paid_for():
    e = experiment(budget_hours=hours(200))
    without, _ = carry_out(e, lambda run: 5.0)
    with_nights, _ = carry_out(e, lambda run: 5.0, downtime_s=36_000.0)
    assert machine_seconds(with_nights) == machine_seconds(without)
    assert [r.run for r in with_nights] == [r.run for r in without]


def test_attempts_on_clocks_of_two_boots_are_both_paid_for():
    arm = next_step(experiment(), []).runs[0].arm
    one, other = (replace(result(arm, 3.3, seconds=10.0), clock=boot) for boot in "ab")
    assert machine_seconds([one, other]) == 20.0
    assert machine_seconds([one, replace(other, clock="a")]) == 10.0  # side by side: once


def test_a_job_pays_for_each_of_its_nodes():
    arm = next_step(experiment(), []).runs[0].arm
    one, other = (replace(result(arm, 3.3, seconds=10.0), clock=f"job {k}") for k in (1, 2))
    assert machine_seconds([one, replace(other, nodes=2)]) == 30.0
    assert machine_seconds([one], [("job 2", 0.0, 4.0, 2)]) == 18.0


@pytest.mark.parametrize("plan", STAGED)
@pytest.mark.parametrize("nodes", [1, 2])
def test_on_a_cluster_every_run_is_paid_for_though_eight_run_side_by_side(plan, nodes):
    """The same budget buys as many runs as one after the other, each at `nodes` times the price."""
    alone = experiment(plan=plan)
    alone = replace(alone, budget_hours=0.7 * total_of(alone) / 3600)
    cluster = with_share(alone, launcher="slurm", parallel_runs=8, nodes=nodes)
    cluster = replace(cluster, budget_hours=nodes * alone.budget_hours)
    planned, _ = forecast(cluster)
    assert paid_s(cluster, planned) == pytest.approx(sum(p.wall_s for p in planned) * nodes)
    assert paid_s(cluster, planned) <= 3600 * cluster.budget_hours
    assert [p.run for p in planned] == [p.run for p in forecast(alone)[0]]
    assert span_s(planned) < 0.6 * span_s(forecast(alone)[0])


@pytest.mark.parametrize("plan", STAGED)
@pytest.mark.parametrize("share", [0.15, 0.4, 0.8])
@pytest.mark.parametrize(("parallel_runs", "nodes"), [(8, 1), (3, 2)])
def test_jobs_in_flight_have_what_they_will_cost_set_aside(plan, share, parallel_runs, nodes):
    """Jobs that all start at once must not each believe the whole rest of the budget theirs."""
    e = experiment(plan=plan, launcher="slurm", parallel_runs=parallel_runs, nodes=nodes)
    whole_s = paid_s(e, forecast(replace(e, budget_hours=1e6))[0])
    e = replace(e, budget_hours=share * whole_s / 3600)
    results, in_flight, now = [], {}, 0.0
    while True:
        spent_s = machine_seconds(
            results, [r.interval._replace(end_s=now, nodes=nodes) for r in in_flight.values()]
        )
        paid = [(r.run, nodes * (now - r.start_s)) for r in in_flight.values()]
        spent_s += sitting.set_aside_s(e, results, paid)
        step = next_step(e, results, frozenset(in_flight), spent_s)
        if step.runs and len(in_flight) < parallel_runs:
            run = step.runs[0]
            planned = Planned(run, now, Costs(e, results).wall_s(run))
            in_flight[run.name] = placeholder(planned, 1, loss_of(run), Costs(e, results))
        elif in_flight:
            done = min(in_flight.values(), key=lambda r: r.end_s)
            results.append(in_flight.pop(done.run.name))
            now = done.end_s
        else:
            break
    assert step.ended
    assert machine_seconds(results) <= 3600 * e.budget_hours + 1e-6
    assert results or not next_step(e, []).runs


# ---------------------------------------------------------------------------------------------
# What is started


@pytest.mark.parametrize("plan", STAGED)
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 1.5])
def test_the_budget_holds_when_costs_are_half_or_twice_the_forecast(plan, factor, share):
    e = experiment(plan=plan)
    e = replace(e, budget_hours=hours(share * total_of(e)))
    prior = Costs(e)
    results, step = carry_out(e, lambda run: factor * prior(run))
    assert machine_seconds(results) <= 3600 * e.budget_hours + 1e-6
    assert step.ended
    if plan == "classic" and factor > share:  # the adaptive one may stop early for good reasons
        assert step.budget_cuts


def test_costs_that_turn_out_half_buy_more_and_twice_less():
    e = experiment()
    e = replace(e, budget_hours=hours(0.9 * total_of(e)))
    prior = Costs(e)
    counts = [
        len(carry_out(e, lambda run, factor=factor: factor * prior(run))[0])
        for factor in (2.0, 1.0, 0.5)
    ]
    assert counts[0] < counts[1] <= counts[2]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_budget_that_runs_out_in_a_stage_ends_there_with_a_decision(stage):
    e = experiment()
    planned = forecast(replace(e, budget_hours=1e6))[0]
    first = next(p for p in planned if p.run.stage == stage)
    begins, run_s = first.start_s, first.wall_s  # of the stage, in machine time
    e = replace(e, budget_hours=hours(begins + 2.5 * run_s))
    prior = Costs(e)
    results, step = carry_out(e, prior)
    assert step.stage == stage
    assert 1 <= sum(r.run.stage == stage for r in results) <= 2
    assert stage in conclude(step).decisions
    assert machine_seconds(results) <= 3600 * e.budget_hours + 1e-6
    assert step.budget_cuts


def broken_off(plan, times_as_slow):
    """An experiment whose budget promised eight pairs and is spent in stage 4; the same with a
    larger budget; and the results."""
    gates = NOTHING_OVERRIDDEN.ungated
    e = experiment(plan=plan, overrides=gates, budget_hours=1e3, validation_runs=8, stop_on="any")
    e = replace(e, budget_hours=hours(total_of(e)))
    prior = Costs(e)
    results, _ = carry_out(e, lambda run: prior(run) * (times_as_slow if run.stage == 4 else 1))
    value = {"hours": 1e3, "was": e.budget_hours, "pairs": pairs_begun(results)}
    return e, overridden(e, "budget", 0, value), results


def test_a_larger_budget_does_not_test_again_what_the_smaller_one_ended():
    """A verdict that fell because the budget was spent is the one that its level allows."""
    e, larger, results = broken_off("classic", times_as_slow=1.9)
    assert "budget" in next_step(e, results).ended
    assert pairs_begun(results) >= 2 and next_step(larger, results).runs
    assert is_second_test(e, larger, results) and not is_second_test(e, e, results)


def test_a_larger_budget_goes_on_where_nothing_was_tested_yet():
    e, larger, results = broken_off("classic", times_as_slow=6)
    assert "budget" in next_step(e, results).ended
    assert pairs_begun(results) < 2 and next_step(larger, results).runs
    assert not is_second_test(e, larger, results)


@pytest.mark.parametrize("times_as_slow", [1.0, 1.9, 4.0])
def test_looks_of_the_adaptive_plan_end_with_the_budget_that_they_began_with(times_as_slow):
    e, larger, results = broken_off("adaptive", times_as_slow)
    assert not next_step(larger, results).runs or is_second_test(e, larger, results)


def test_a_single_pair_is_a_budget_that_was_spent_before_a_verdict():
    """Runs of stage 4 take so long that the first pair leaves room for no other."""
    e = experiment(plan="adaptive", budget_hours=1e3, validation_runs=3)
    e, prior = replace(e, budget_hours=hours(total_of(e))), Costs(e)
    results, step = carry_out(e, lambda run: prior(run) * (2.5 if run.stage == 4 else 1))
    assert pairs_begun(results) == 1 and not step.runs
    assert conclude(step).decisions[4].numbers["looks"] == []
    assert step.ended == sitting.BUDGET_SPENT


def test_a_run_that_overstays_is_stopped_where_the_budget_ends_and_the_rest_counts():
    e = experiment()
    e = replace(e, budget_hours=hours(0.5 * total_of(e)))
    prior = Costs(e)
    results, step = carry_out(e, lambda run: 1e6 if run.arm.name == "dive_w0p2" else prior(run))
    stopped = [r for r in results if r.status != "ok"]
    assert {r.run.arm.name for r in stopped} == {"dive_w0p2"}
    assert machine_seconds(results) <= 3600 * e.budget_hours + 1e-6
    assert 3 in step.decisions


def test_a_run_may_take_three_times_its_cost_and_some_start_up_before_it_is_a_timeout():
    e = experiment(budget_hours=100.0)
    run = next_step(e, []).runs[0]
    limits = sitting.limits_of(e, run, [], 0.0, 600)
    assert (limits.seconds, limits.why) == (3 * Costs(e)(run) + 120, "timeout")
    limits = sitting.limits_of(e, run, [], 3600 * 100 - 7.0, 600)
    assert (limits.seconds, limits.why) == (7.0, "the budget is spent")


@settings(max_examples=60, deadline=None)
@example(seed=298, share=1.0, trouble=0.25, plan="classic", slow=1.0)  # one baseline is left
@example(seed=296, share=1.0, trouble=0.25, plan="classic", slow=1.0)  # no baseline is left
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.01, 1.3),
    trouble=st.floats(0.0, 0.5),
    plan=st.sampled_from(STAGED),
    slow=st.floats(0.3, 3.0),
)
def test_whatever_runs_take_and_whatever_fails_the_budget_holds(seed, share, trouble, plan, slow):
    chance = random.Random(seed)
    e = experiment(plan=plan, validation_runs=8)
    e = replace(e, budget_hours=hours(share * total_of(e)))
    prior = Costs(e)

    def happens(run, attempt):
        statuses = ["crashed", "timeout", "interrupted", "diverged"]
        return chance.choice(statuses) if chance.random() < trouble else "ok"

    results, step = carry_out(e, lambda run: slow * chance.uniform(0.5, 2) * prior(run), happens)
    assert step.ended
    assert machine_seconds(results) <= 3600 * e.budget_hours + 1e-6
    done = [r.run.name for r in results if r.has_outcome]
    assert len(done) == len(set(done))  # nothing that has an outcome is run again


# ---------------------------------------------------------------------------------------------
# What is said of it


def said(e, results=()):
    lines = []
    announce(e, results, *forecast(e, results), lines.append)
    return "\n".join(lines)


def test_before_the_start_it_is_said_that_7_hours_do_not_hold_all_the_fixed_numbers():
    text = said(experiment(**SPEEDRUN))
    assert "of the budget of 7.0 h" in text
    assert "cut by the budget: stage 4: " in text
    assert "pairs fit into what is left" in text


def test_before_the_start_it_is_said_in_which_stage_the_budget_ends():
    for stage, share in [(1, 0.02), (2, 0.15), (3, 0.4)]:
        e = experiment()
        text = said(replace(e, budget_hours=hours(share * total_of(e))))
        assert f"The budget ends in stage {stage}, before the final validation." in text
        assert "cut by the budget: " in text


def test_a_dry_run_shows_hours_and_cuts_and_every_command(tmp_path, capsys):
    where = ["--output_dir", str(tmp_path), "--num_gpus", "0"]
    what = ["--staged", "--dry_run", "--profile", "mini", "--max_budget_hours", "0.02"]
    assert run_aux.main([*what, *where]) == 0
    shown = capsys.readouterr().out
    assert "cut by the budget: " in shown
    assert "of the budget of 72 s" in shown
    assert shown.count("--standalone") == shown.count("\n# ") > 1
    assert not list(tmp_path.iterdir())


def test_the_forecast_is_re_costed_after_each_run():
    e = experiment(budget_hours=100.0)
    before = span_s(forecast(e)[0])
    run = next_step(e, []).runs[0]
    prior = Costs(e)(run)
    twice = replace(result(run.arm, 3.3, seconds=2 * prior, train_time_ms=1600 * prior), run=run)
    after = span_s(forecast(e, [twice])[0])
    assert after > 1.3 * before


@pytest.mark.parametrize("runs", [1, 7, 36])
def test_a_forecast_ends_where_the_budget_holds_exactly_so_many_runs(runs):
    e = experiment()
    costs = [p.wall_s for p in forecast(replace(e, budget_hours=1e6))[0]][:runs]
    for more, expected in ((1.001, runs), (0.999, runs - 1)):
        planned, _ = forecast(replace(e, budget_hours=hours(more * sum(costs))))
        pairs = max(0, expected - 20)  # of stage 4: only whole ones are begun
        assert len(planned) == expected - pairs % 2
