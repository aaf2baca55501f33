"""What is true in the worlds of benchmarks/plan_power.py, and which verdict is right in them."""

import itertools
import math
import pickle
import random
import statistics

import pytest

from ablation.plan import power
from ablation.plan.forecast import of_stage, simulate
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.next_step import conclude
from ablation.study.heads import HEADS, SCHEDULES, WEIGHTS, aux
from benchmarks.plan_power import BUDGET, cost_s, means, plans, staged
from benchmarks.worlds import (
    BESIDE,
    GRADED,
    PROJECT,
    SETS,
    WORLDS,
    HeavyTailed,
    Replicate,
    graded_ranks,
)

GRID, PLACEMENTS = HEADS.configurations, ((4,), (6,), (8,), (4, 8))


def at(layers, weight, schedule):
    return aux(layers, weight=weight, schedule=schedule).configuration


def effects(name, replicate=0):
    truth = Replicate(HEADS, WORLDS[name], str(replicate))
    return [truth.improvement(which) for which in GRID]


def test_the_sets_have_the_worlds_that_were_asked_for():
    assert (len(PROJECT), len(GRADED)) == (11, 16)
    assert {"project", "graded", "beside", "all"} == SETS.keys()
    names = [world.name for worlds in (PROJECT, GRADED, BESIDE) for world in worlds]
    assert sorted(names) == sorted([*WORLDS, "null"])  # null is in two sets
    assert not any("," in name for name in names)  # else --worlds could not name it
    assert pickle.loads(pickle.dumps(GRADED))[4].name == "graded .010"


@pytest.mark.parametrize("name", WORLDS)
def test_the_best_configuration_has_the_effect_of_the_world(name):
    for replicate in range(3):
        assert max(effects(name, replicate)) == pytest.approx(WORLDS[name].best)


def test_graded_effects_are_products_of_factors_in_an_order_drawn_anew():
    firsts = set()
    for seed in range(40):
        ranks = graded_ranks(HEADS, random.Random(seed))
        effect = dict(zip(GRID, (1 - rank for rank in ranks), strict=True))
        firsts.add(min(GRID, key=lambda which: -effect[which]))
        for a, b in itertools.pairwise(WEIGHTS):
            ratios = [
                effect[at(p, a, s)] / effect[at(p, b, s)] for p in PLACEMENTS for s in SCHEDULES
            ]
            assert ratios == pytest.approx([ratios[0]] * len(ratios))
        worst = min(effect.values())  # .4 x .6 x .75, give or take 5 % in each factor
        assert 0.12 < worst < 0.26
    assert len(firsts) > 15


def test_weights_and_placements_that_harm_do_so_beside_one_that_helps():
    assert sum(effect < -0.003 for effect in effects("weights 1 .2 -1")) == 12
    assert sum(effect < -0.003 for effect in effects("one placement helps")) == 27
    assert sum(effect > 0 for effect in effects("one of 36")) == 1
    assert all(effect < 0 for effect in effects("graded .005 less .010"))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("null", {NO_EFFECT}),
        ("helps early only", {NO_EFFECT}),
        ("-.003", {IMPROVES, NO_EFFECT}),
        ("delta_eq", {IMPROVES, NO_EFFECT}),
        ("graded .0075", {IMPROVES}),
        ("one of 36", {IMPROVES}),
        ("harmful", {HARMFUL}),
    ],
)
def test_the_right_verdict_is_what_is_true_of_the_best_configuration(name, right):
    assert set(WORLDS[name].right) == right


def losses(name, rho=0.0, count=20_000):
    """Of the baseline and of an arm, on the same seeds."""
    truth = Replicate(HEADS, WORLDS[name], "0", rho)
    return [[truth.loss(which, seed) for seed in range(count)] for which in ((), GRID[0])]


def test_heavy_tails_keep_the_sd_and_have_those_of_t3():
    rng = HeavyTailed(0)
    values = [rng.gauss(1.0, 2.0) for _ in range(50_000)]
    assert statistics.fmean(values) == pytest.approx(1.0, abs=0.03)
    quartile, tail = (statistics.quantiles(values, n=1000)[k] - 1 for k in (749, 998))
    # scipy.stats.t(3).ppf([0.75, 0.999]) * 2 / sqrt(3)
    assert (quartile, tail) == (pytest.approx(0.883, rel=0.03), pytest.approx(11.79, rel=0.15))
    assert statistics.stdev(losses("null t3")[0]) == pytest.approx(0.0013, rel=0.2)


def test_runs_with_heads_have_twice_the_sd_where_the_world_says_so():
    baseline, arm = losses("null arm sd x2", rho=0.5)
    assert statistics.stdev(baseline) == pytest.approx(0.0013, rel=0.02)
    assert statistics.stdev(arm) == pytest.approx(0.0026, rel=0.02)
    assert statistics.correlation(baseline, arm) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "of_baseline"), [("graded .010 arm diverges .1", 0.0), ("null all diverge .1", 0.1)]
)
def test_a_tenth_of_the_runs_diverges(name, of_baseline):
    for of_arm, share in zip(losses(name), (of_baseline, 0.1), strict=True):
        diverged = sum(map(math.isinf, of_arm))
        assert diverged == pytest.approx(20_000 * share, rel=0.07)


def test_a_loss_that_is_not_finite_is_a_run_that_diverged_and_is_paid_for():
    e = staged("adaptive")
    truth = Replicate(HEADS, WORLDS["graded .010"], "0")

    def loss(run):
        return math.inf if run.arm.name == "aux_6" else truth.loss(run.arm.configuration, run.seed)

    planned, step = simulate(e, (), loss, cost_s(e))
    second = [p.run.arm.name for p in of_stage(planned, 2)]
    assert second.count("aux_6") == 1  # never run again
    assert conclude(step).decisions[4].numbers["verdict"] == IMPROVES


@pytest.mark.parametrize("name", WORLDS)
def test_no_plan_spends_more_than_the_budget(name):
    for plan in plans().values():
        found = plan(Replicate(HEADS, WORLDS[name], "0", 0.3))
        assert 0 < found.runs <= BUDGET
        assert found.verdict in power.VERDICTS.values()


def test_pairs_decide_with_the_share_that_is_given():
    """Where runs of a seed are alike, pairs find what Welch's test alone does not."""
    world = WORLDS["graded .003 sigma .0026"]
    verdicts = {
        pairing: [
            plans(pairing)["adaptive"](Replicate(HEADS, world, str(k), 0.9)).verdict
            for k in range(30)
        ]
        for pairing in (0.0, 0.2)
    }
    assert verdicts[0.0].count(UNDECIDED) > 0
    assert verdicts[0.2].count(UNDECIDED) == 0


def test_the_mean_over_worlds_is_that_of_shares_and_runs_and_the_most_is_the_most():
    row = dict.fromkeys(("p_right", *power.VERDICTS), 0.0) | {"plan": "a", "replicates": 10}
    rows = [
        {**row, "p_right": 1.0, "runs_mean": 10.0, "runs_max": 28.0},
        {**row, "p_right": 0.5, "runs_mean": 20.0, "runs_max": 20.0},
        {**row, "plan": "b", "runs_mean": 3.0, "runs_max": 3.0},
    ]
    of_a, of_b = means(rows)
    assert (of_a["p_right"], of_a["runs_mean"], of_a["runs_max"]) == (0.75, 15.0, 28.0)
    assert (of_b["plan"], of_b["replicates"]) == ("b", 10)
