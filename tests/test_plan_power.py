"""The simulation behind --plan_report and benchmarks/plan_power.py: truth, noise, plans, rates."""

import itertools
import json
import math
import os
import random
import signal
import statistics
from dataclasses import replace

import pytest

from ablation import stats
from ablation.plan import power
from ablation.plan.costs import Costs
from ablation.plan.forecast import forecast, of_stage, paid_s, pairs_of
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.power import (
    LastTest,
    Scenario,
    Truth,
    additive_ranks,
    as_meant,
    scattered_ranks,
)
from ablation.runs.run import duration
from ablation.study.experiment import Experiment
from ablation.study.heads import HEADS, SCHEDULES, WEIGHTS, aux
from ablation.study.profiles import PROFILES
from benchmarks import plan_power
from benchmarks.plan_power import BUDGET, cost_s, fixed_test, next_noise, plans
from benchmarks.worlds import WORLDS, plain
from tests.support.invent import with_share

ROW = {
    *("world", "plan", "p_right", "p_improves", "p_harmful", "p_equivalent", "p_inconclusive"),
    *("runs_mean", "runs_max", "replicates"),
}


GRID = HEADS.configurations
SETTINGS = [*itertools.product(((4,), (6,), (8,), (4, 8)), WEIGHTS, SCHEDULES)]


def configuration_of(layers, weight, schedule):
    return aux(layers, weight=weight, schedule=schedule).configuration


def rates(scenario, plan, replicates, **changes):
    """A row of the benchmark, in this process."""
    e = plan_power.staged(plan, **changes)
    outcomes = [
        power.outcome(e, Truth(HEADS, WORLDS[scenario], f"test/{scenario}/{k}"), cost_s(e))
        for k in range(replicates)
    ]
    return power.tally(scenario, plan, outcomes)


# ---------------------------------------------------------------------------------------------
# Truth and noise


@pytest.mark.parametrize("ranks_of", [additive_ranks, scattered_ranks])
def test_one_configuration_is_best_one_is_worst_and_the_order_is_drawn_anew(ranks_of):
    rng = random.Random(0)
    drawn = [ranks_of(HEADS, rng) for _ in range(40)]
    for ranks in drawn:
        assert len(ranks) == len(GRID) == 36
        assert (min(ranks), max(ranks)) == (0.0, pytest.approx(1.0))
        assert ranks.count(0.0) == 1
    assert len({ranks.index(0.0) for ranks in drawn}) > 15


def test_additive_ranks_add_up_over_placement_weight_and_schedule():
    ranks = dict(zip(GRID, additive_ranks(HEADS, random.Random(1)), strict=True))
    rank = {settings: ranks[configuration_of(*settings)] for settings in SETTINGS}
    layers, weight, schedule = SETTINGS[0]
    for which, value in rank.items():
        of_layers = rank[which[0], weight, schedule]
        of_weight = rank[layers, which[1], schedule]
        of_schedule = rank[layers, weight, which[2]]
        assert value == pytest.approx(of_layers + of_weight + of_schedule - 2 * rank[SETTINGS[0]])


def test_the_best_configuration_has_the_effect_that_names_the_scenario():
    for name in ("-.003", "-.010", "-.020"):
        truth = Truth(HEADS, WORLDS[name], "0")
        improvements = [truth.improvement(which) for which in GRID]
        assert max(improvements) == pytest.approx(-float(name))
        assert min(improvements) == pytest.approx(0.0)
        assert truth.improvement(()) == 0.0


def test_the_grid_is_of_configurations_of_arms():
    assert tuple(configuration_of(*settings) for settings in SETTINGS) == GRID


def test_effects_move_from_the_early_to_the_late_ones():
    scenario = Scenario("w", best=0.01, worst=0.0, early_best=-0.07, early_worst=0.02, sigma=0.001)
    assert scenario.improvement(0.0, 0.1) == scenario.improvement(0.0, 0.2) == -0.07
    assert scenario.improvement(0.0, 0.6) == pytest.approx(-0.03)
    assert scenario.improvement(0.0, 1.0) == pytest.approx(0.01)
    assert scenario.improvement(1.0, 0.2) == pytest.approx(0.02)
    assert scenario.improvement(0.5, 1.0) == pytest.approx(0.005)


def test_rank_reversal_turns_the_order_around():
    truth = Truth(HEADS, WORLDS["rank reversal"], "0")
    late = sorted(GRID, key=truth.improvement)
    assert truth.improvement(late[0], 0.2) > truth.improvement(late[-1], 0.2)


@pytest.mark.parametrize(("fraction", "sd"), [(1000 / 5100, 0.004), (0.5, 0.0024), (1.0, 0.0013)])
def test_noise_has_the_published_sd(fraction, sd):
    truth = Truth(HEADS, WORLDS["null"], "0")
    losses = [truth.loss((), seed, fraction) for seed in range(20_000)]
    assert statistics.stdev(losses) == pytest.approx(sd, rel=0.02)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_losses_of_a_seed_correlate_by_rho_and_no_others_do(rho):
    truth, seeds = Truth(HEADS, WORLDS["null"], "0", rho), range(20_000)
    first, same, short = (
        [truth.loss(which, seed, fraction) for seed in seeds]
        for which, fraction in (((), 1.0), (GRID[3], 1.0), ((), 0.2))
    )
    for losses, sd in ((first, 0.0013), (same, 0.0013), (short, 0.004)):
        assert statistics.stdev(losses) == pytest.approx(sd, rel=0.03)
    assert statistics.correlation(first, same) == pytest.approx(rho, abs=0.02)
    assert statistics.correlation(first, short) == pytest.approx(0, abs=0.02)
    assert statistics.correlation(first, [*same[1:], same[0]]) == pytest.approx(0, abs=0.02)


def test_without_correlation_a_seed_changes_nothing():
    one, other = Truth(HEADS, WORLDS["null"], "0"), Truth(HEADS, WORLDS["null"], "0")
    assert [one.loss((), 7) for _ in range(9)] == [other.loss((), seed) for seed in range(9)]


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_replicate_has_the_correlation_that_is_registered(rho, monkeypatch):
    seen = []
    monkeypatch.setattr(power, "outcome", lambda e, truth, cost_s: seen.append(truth.rho))
    e = as_meant(PROFILES["speedrun"])
    design = replace(e.profile.design, rho=rho)
    e = replace(e, profile=replace(e.profile, design=design))
    power.outcomes_of((e, WORLDS["null"], ["0", "1"]))
    assert seen == [rho, rho]
    assert f"correlation within seeds {rho:g} (registered)" in power.concluded(e, 60, 0)


def test_noise_of_a_run_has_the_published_correlation_with_its_end():
    truth = Truth(HEADS, WORLDS["null"], "0")
    at_20 = [next_noise(truth, 0.2, 0.0, None) for _ in range(40_000)]
    at_50 = [next_noise(truth, 0.5, 0.2, z) for z in at_20]
    final = [next_noise(truth, 1.0, 0.5, z) for z in at_50]
    assert statistics.correlation(at_20, final) == pytest.approx(0.34, abs=0.02)
    assert statistics.correlation(at_50, final) == pytest.approx(0.70, abs=0.01)
    assert statistics.stdev(final) == pytest.approx(1.0, abs=0.02)


# ---------------------------------------------------------------------------------------------
# Plans


def test_the_gate_of_the_classic_plan_stops_after_four_short_runs():
    found = plans()["classic"](Truth(HEADS, WORLDS["-.020"], "0"))
    assert (found.verdict, found.runs) == (UNDECIDED, pytest.approx(4 * 1000 / 5100))


def test_the_bash_loop_claims_whatever_wins():
    claims = [plans()["bash loop"](Truth(HEADS, WORLDS["null"], f"{k}")) for k in range(100)]
    assert sum(found.verdict == IMPROVES for found in claims) > 90
    assert plans()["bash loop"](Truth(HEADS, WORLDS["harmful"], "0")).verdict == UNDECIDED


def test_successive_halving_follows_the_early_ranks():
    """With next to no noise it finds the best of all; where ranks turn around, it loses it."""
    kept = []
    for name in ("-.010", "rank reversal"):
        scenario = replace(WORLDS[name], sigma=1e-6)
        truth = Truth(HEADS, scenario, "0")
        seen = []
        truth.loss = lambda which, seed, fraction=1.0, t=truth, s=seen: (
            s.append(which),
            Truth.loss(t, which, seed, fraction),
        )[1]
        plan_power.successive_halving(truth)
        kept.append(truth.improvement(next(which for which in seen if which)))
    assert kept[0] == pytest.approx(0.01)
    assert kept[1] < 0.008


@pytest.mark.parametrize(
    ("effect", "verdict"), [(0.01, IMPROVES), (-0.01, HARMFUL), (0.0, NO_EFFECT)]
)
def test_a_fixed_test_says_what_is_true(effect, verdict):
    truth = Truth(HEADS, plain("w", effect, effect, 1e-4), "1")
    assert fixed_test(truth, GRID[0], 8) == verdict


def test_a_fixed_test_with_too_much_noise_is_inconclusive():
    assert fixed_test(Truth(HEADS, plain("w", 0.0, 0.0, 0.05), "1"), GRID[0], 4) == UNDECIDED


def test_the_oracle_tests_the_best_configuration():
    found = plans()["oracle"](Truth(HEADS, replace(WORLDS["-.003"], sigma=1e-5), "0"))
    assert (found.verdict, found.runs) == (IMPROVES, 28.0)


# ---------------------------------------------------------------------------------------------
# Rates that the adaptive plan promises. Few replicates, fixed seeds: the bounds are wide enough
# for these, benchmarks/plan_power.py measures them.


@pytest.mark.parametrize("stop_on", ["any", "superiority"])
def test_a_null_is_called_a_gain_as_rarely_as_promised(stop_on):
    row = rates("null", "adaptive", 250, stop_on=stop_on)
    assert row["p_improves"] <= 0.025 + 2 * power.standard_error(0.025, 250)
    assert row["runs_max"] <= BUDGET


@pytest.mark.parametrize("scenario", ["delta_eq", "delta_eq noisy"])
def test_the_smallest_effect_of_interest_is_rarely_called_none(scenario):
    row = rates(scenario, "adaptive", 200)
    assert row["p_equivalent"] <= 0.05 + 2 * power.standard_error(0.05, 200)


def test_plain_effects_are_found_and_cheaply():
    row = rates("-.010", "adaptive", 200)
    assert row["p_improves"] >= 0.99
    assert row["runs_mean"] <= 21


def test_the_target_effect_is_found():
    assert rates("-.020", "adaptive", 60)["p_improves"] == 1.0


def test_a_small_effect_is_found_more_often_without_equivalence_stops():
    every = rates("-.003", "adaptive", 150)
    superiority = rates("-.003", "adaptive", 150, stop_on="superiority")
    assert superiority["p_improves"] > 0.65 > every["p_improves"]


def test_early_harm_does_not_hide_a_late_gain():
    assert rates("early-reversal", "adaptive", 60)["p_improves"] == 1.0


def test_harm_is_called_harm():
    assert rates("harmful", "adaptive", 60)["p_harmful"] == 1.0


# ---------------------------------------------------------------------------------------------
# The benchmark's command line


def run_main(tmp_path, *args):
    file = tmp_path / "rows.json"
    code = plan_power.main(["--replicates", "60", "--json", str(file), *args])
    return code, json.loads(file.read_text()) if file.exists() else None


def test_rows_have_the_agreed_fields_and_equal_seeds_give_equal_rows(tmp_path, capsys):
    asked = ["--worlds=null,-.010", "--plans", "oracle,adaptive"]
    code, rows = run_main(tmp_path, *asked, "--jobs", "1")
    assert code == 0
    assert [(row["world"], row["plan"]) for row in rows] == [
        *(("null", "oracle"), ("null", "adaptive")),
        *(("-.010", "oracle"), ("-.010", "adaptive")),
    ]
    for row in rows:
        assert row.keys() == ROW
        assert sum(row[name] for name in power.VERDICTS) == pytest.approx(1.0)
        assert row["p_right"] == row["p_equivalent" if row["world"] == "null" else "p_improves"]
        assert row["replicates"] == 60
    out = capsys.readouterr().out
    assert "±" in out and "right" in out and "mean over 2 world(s)" in out
    assert run_main(tmp_path, *asked, "--jobs", "3")[1] == rows
    assert run_main(tmp_path, *asked, "--jobs", "1", "--seed", "1")[1] != rows
    other = ["--worlds", "graded .003", "--plans", "adaptive", "--rho", ".6", "--pairing", ".5"]
    rows = run_main(tmp_path, *other, "--jobs", "1")[1]
    assert run_main(tmp_path, *other, "--jobs", "2")[1] == rows
    for name, value in (("--rho", "0"), ("--pairing", "0")):
        assert run_main(tmp_path, *other, name, value)[1] != rows


def test_a_set_is_all_of_its_worlds_and_those_beside_have_no_mean(tmp_path, capsys):
    asked = ["--plans", "bash loop", "--replicates", "2"]
    for name, count, mean in (("graded", 16, "mean over 16"), ("beside", 10, None)):
        code, rows = run_main(tmp_path, "--set", name, *asked)
        assert (code, len(rows)) == (0, count)
        assert (mean or "") in (out := capsys.readouterr().out)
        assert ("mean over" in out) == (mean is not None)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--worlds=x"], "--worlds 'x': give some of null"),
        (["--plans", "x"], "--plans 'x': give some of bash loop"),
        (["--replicates", "0"], "give 1 or more"),
        (["--jobs", "0"], "give 1 or more"),
        (["--rho", "1"], "--rho 1: give a correlation from 0 to below 1"),
        (["--pairing", ".9"], "--pairing 0.9: give a share from 0 to 0.8"),
        (["--set", "graded", "--scattered"], "'graded .003'; give --set project"),
    ],
)
def test_bad_input_is_one_line(args, said, capsys):
    assert plan_power.main(args) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# The report before the first run


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_the_report_has_its_parts(profile, plan):
    text = power.render(as_meant(PROFILES[profile], plan), replicates=2)
    for part in ("Runs and hours", "MDE80", "power", "independent", "± standard error", "seed 0"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 125


def test_the_report_says_how_many_pairs_fit():
    text = power.render(budget_of_full_runs(28), replicates=2)
    (line,) = (line for line in text.splitlines() if "pairs fit" in line)
    stage_4 = next(line for line in text.splitlines() if "final validation" in line)
    assert f"{2 * int(line.split()[0])} runs" in stage_4


def test_a_budget_for_nothing_is_said():
    text = power.render(budget_of_full_runs(3), replicates=2)
    assert "0 pair(s) fit: nothing can be concluded" in text


def test_runs_side_by_side_are_paid_once():
    alone, packed = (
        with_share(budget_of_full_runs(28), parallel_runs=parallel_runs) for parallel_runs in (1, 8)
    )
    alone_s, packed_s = (paid_s(e, of_stage(forecast(e)[0], 2)) for e in (alone, packed))
    assert packed_s < alone_s
    pairs = [pairs_of(forecast(e)[0]) for e in (alone, packed)]
    assert pairs[1] > 2 * pairs[0]


@pytest.mark.parametrize(
    ("plan", "names"),
    [("classic", ["independent"]), ("adaptive", ["independent", "correlated by 0.5"])],
)
def test_sample_sizes_are_the_fewest_with_that_power(plan, names):
    e = as_meant(PROFILES["speedrun"], plan)
    rows, tests = power.sample_sizes(e), power.last_tests(e)
    assert [effect for effect, _ in rows] == pytest.approx([0.001, 0.002, 0.003, 0.005, 0.01, 0.02])
    assert [*tests] == names
    for effect, sizes in rows:
        for test, n in zip(tests.values(), sizes, strict=True):
            assert test.power(effect, n) >= 0.8
            assert n == 2 or test.power(effect, n - 1) < 0.8


WELCH, PAIRS, BOTH = (LastTest(0.0013, 0.05, pairing, 0.5) for pairing in (0.0, 0.8, 0.2))


@pytest.mark.parametrize("n", [2, 3, 9, 30])
@pytest.mark.parametrize("effect", [0.0005, 0.003])
def test_the_last_test_has_the_power_of_the_better_of_its_two(effect, n):
    sd = 0.0013 * math.sqrt(2 * (1 - 0.5))  # of differences within a seed
    assert WELCH.power(effect, n) == stats.power(effect, n, 0.0013, 0.05)
    for test, of_welch, of_pairs in ((PAIRS, 0.01, 0.04), (BOTH, 0.04, 0.01)):
        both = (
            stats.power(effect, n, 0.0013, of_welch),
            stats.paired_power(effect, n, sd, of_pairs),
        )
        assert test.power(effect, n) == pytest.approx(max(both))
    assert WELCH.mde80(n) == stats.mde80(0.0013, n)
    least = min(stats.mde80(0.0013, n, 0.01), stats.paired_mde80(sd, n, 0.04))
    assert PAIRS.mde80(n) == pytest.approx(least)


def test_pairs_that_correlate_promise_more_and_both_promises_are_told():
    e = as_meant(PROFILES["mini"])
    independent, correlated = power.last_tests(e).values()
    assert correlated.pairs_needed(0.01) < independent.pairs_needed(0.01) / 3
    assert f"{independent.power(0.034, 6):.2f} to {correlated.power(0.034, 6):.2f} at 0.034" in (
        power.resolution(e, 6)
    )
    said = power.last_test_in_words(e)
    assert said == "two intervals, one look; runs of a seed independent, or correlated by 0.9"
    alone = replace(e, profile=replace(e.profile, design=replace(e.profile.design, pairing=0.0)))
    assert power.last_test_in_words(alone) == "Welch, one look; runs of a seed independent"


def test_an_effect_that_a_thousand_pairs_would_not_show_is_told_as_such():
    assert PAIRS.pairs_needed(1e-6) is None
    e = as_meant(PROFILES["mini"])
    assert power.size_cells(e, (None, 3)) == [
        "more than 1000",
        f"3 ({duration(power.pairs_s(e, 3))})",
    ]


@pytest.mark.parametrize(
    ("parallel_runs", "rounds"), [(1, 7), (2, 7), (3, 7), (4, 4), (5, 4), (8, 2)]
)
def test_pairs_side_by_side_take_the_time_of_their_rounds(parallel_runs, rounds):
    """Each of as many pairs as fill the machine; one run at a time, both runs of each pair."""
    e = as_meant(PROFILES["mini"])
    one = replace(e, share=replace(e.share, parallel_runs=parallel_runs))
    longest_s = Costs(e)(replace(power.full_run(e), arm=aux((4, 8))))
    both_s = Costs(e)(power.full_run(e)) + longest_s
    expected_s = rounds * (both_s if parallel_runs == 1 else longest_s)
    assert power.pairs_s(one, 7) == pytest.approx(expected_s)


def budget_of_full_runs(n) -> Experiment:
    e = as_meant(PROFILES["speedrun"])
    one_s = Costs(e)(power.full_run(e))
    return replace(e, budget_hours=n * one_s / 3600)


def test_no_worker_of_a_report_has_to_be_ended_by_a_signal(tmp_path):
    """Python may see one only when what it waits for comes, and of a pool that ends nothing does:
    then the report would hang."""

    def note(*_):
        (tmp_path / str(os.getpid())).touch()
        os._exit(0)

    before = signal.signal(signal.SIGTERM, note)  # a fork inherits it, as it does the program's
    try:
        power.operating_characteristics(as_meant(PROFILES["speedrun"]), replicates=1, jobs=3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_whoever_waits_for_the_counts_is_shown_how_far_they_are():
    seen = []

    def progress(parts, total):
        for part in parts:
            seen.append(total)
            yield part

    e = as_meant(PROFILES["speedrun"])
    shown = power.render(e, replicates=20, progress=progress)
    assert shown == power.render(e, replicates=20)
    assert seen == [len(seen)] * len(seen) and len(seen) == 10 * len(power.scenarios_for(e))


STUDY = """
question = "Does a longer warm-up help?"
[trainer]
command = "train.py"
launch = "plain"
log = "nanogpt"
full_iterations = 100
expected_hours = 0.1
[base]
env = { ITERS = "{num_iterations}", SEED = "{seed}" }
[arms]
short = { env = { WARMUP = "1" } }
long = { env = { WARMUP = "2" } }
[noise]
sigma0 = 0.2
delta_eq = 1.0
delta_target = 4.0
"""


def test_worlds_may_be_of_another_study_in_its_own_units(tmp_path, capsys):
    pytest.importorskip("ablation.study.study_file")  # not in every checkout yet
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "warm.toml").write_text(STUDY)
    asked = ["--study", str(tmp_path / "warm.toml"), "--json", str(tmp_path / "rows.json")]
    few = ["--replicates", "4", "--worlds", "null,-.010", "--plans", "adaptive,oracle"]
    assert plan_power.main([*asked, *few]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["p_right"] for row in rows] == [1.0] * 4  # -.010 is ten of its sigma0, too
