"""How often does which plan conclude what, in scenarios whose truth is known?

    python benchmarks/plan_power.py --replicates 2000 --json plan_power.json
    python benchmarks/plan_power.py --replicates 2000 --worlds=-.003 --plans "adaptive superiority"
    python benchmarks/plan_power.py --replicates 2000 --scattered

Simulates each plan within a budget of 28 full runs of the speedrun profile (5100 iterations), and
prints verdict rates with standard errors and the cost in full runs. The adaptive and the classic
plan are `next_step` itself, as it runs experiments; the others are written here. --json writes rows
{"world", "plan", "p_improves", "p_harmful", "p_equivalent", "p_inconclusive", "runs_mean",
"runs_max", "replicates"}.

Truth: 36 configurations (4 placements x 3 weights x 3 schedules). The best has the effect that
names the scenario, the worst has none, and the others lie between: placement, weight and schedule
count a third each, in evenly spaced levels, whose order is drawn anew in each replicate
(--scattered: 36 evenly spaced effects in any order, with nothing in common between neighbours). In
`harmful` the best one does .010 of harm and the worst .020; in `null` and `delta_eq` all are alike.
Noise: normal, independent between runs (--rho: losses of one seed and one length correlate, but not
in successive halving); sd .004/.0024/.0013 at 20/50/100 % of a run, and
correlation .34/.70 of a run's noise at 20/50 % with that at its end (1,311 public runs of
modded-nanogpt in 102 groups of the same code). `noisy` scenarios have 3/1.3 of all that.

A replicate of a scenario has the same truth for every plan, and depends on --seed, the scenario and
its own number only: any number of --jobs gives the same rows.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

# before numpy is imported: the processes are the parallelism
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ablation import stats
from ablation.plan import power
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.power import NOISE, Outcome, Scenario, Truth, as_meant, plain_scenario
from ablation.runs.run import RunConfig
from ablation.study.experiment import Experiment
from ablation.study.heads import GRID
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.profiles import PROFILES

SPEEDRUN = PROFILES["speedrun"]
SIGMA = SPEEDRUN.design.sigma0
RUN_S = 900.0  # of a full run; every arm costs the same, a short run in proportion
BUDGET = 28  # full runs

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        # name, best and worst in the end, best and worst at 20 %, sd of a final loss
        Scenario("null", 0.0, 0.0, 0.0, 0.0, SIGMA),
        Scenario("delta_eq", *[SPEEDRUN.design.delta_eq] * 4, SIGMA),
        Scenario("helps early only", 0.0, 0.0, 0.030, 0.0, SIGMA),
        plain_scenario("-.003", 0.003, 0.0, SIGMA),
        plain_scenario("-.010", 0.010, 0.0, SIGMA),
        plain_scenario("-.020", 0.020, 0.0, SIGMA),
        plain_scenario("harmful", -0.010, -0.020, SIGMA),
        # the prefix-token record: .067 worse at step 250, better in the end
        Scenario("early-reversal", 0.010, 0.0, -0.067, -0.067, SIGMA),
        Scenario("rank reversal", 0.010, 0.0, 0.0, 0.010, SIGMA),
        plain_scenario("noisy", 0.010, 0.0, 0.003),
        Scenario("delta_eq noisy", *[SPEEDRUN.design.delta_eq] * 4, 0.003),
    )
}

# ---------------------------------------------------------------------------------------------
# Plans: from a truth to a verdict and its cost


def staged(plan: str, **changes) -> Experiment:
    e = as_meant(SPEEDRUN, plan)
    return replace(e, budget_hours=BUDGET * RUN_S / 3600, **changes)


def cost_s(run: RunConfig) -> float:
    return RUN_S * run.num_iterations / SPEEDRUN.full_iterations


def by_next_step(e: Experiment):
    return lambda truth: power.outcome(e, truth, cost_s)


def bash_loop(truth: Truth) -> Outcome:
    """The baseline and 27 configurations once (three of the placements); the lowest loss wins. Its
    claim: heads help if the winner is below the one baseline run, by however little."""
    losses = [truth.loss(configuration, 0) for configuration in GRID[:27]]
    improved = min(losses) < truth.loss((), 0)
    return Outcome(IMPROVES if improved else UNDECIDED, 28.0)


RUNGS = ((0.2, 12), (0.5, 4), (1.0, 1))  # length, configurations that stay; chosen


def successive_halving(truth: Truth) -> Outcome:
    """All 36 configurations to 20 % of a run, the best 12 on to 50 %, the best 4 on to the end; the
    winner against the baseline on fresh seeds, as many pairs as are left (7), one Welch test."""
    left, noise, before, spent = list(GRID), {}, 0.0, 0.0
    for fraction, stay in RUNGS:
        spent += len(left) * (fraction - before)
        noise = {which: next_noise(truth, fraction, before, noise.get(which)) for which in left}
        observed = {
            which: noise[which] * NOISE[fraction][0] * truth.scenario.sigma
            - truth.improvement(which, fraction)
            for which in left
        }
        left = sorted(left, key=observed.get)[:stay]
        before = fraction
    pairs = math.floor((BUDGET - spent) / 2)
    return Outcome(fixed_test(truth, left[0], pairs), spent + 2 * pairs)


def next_noise(truth: Truth, fraction: float, before: float, z: float | None) -> float:
    """Standardized noise of a run that goes on: a Markov chain with the correlations of NOISE."""
    fresh = truth.rng.gauss(0, 1)
    if z is None:
        return fresh
    r = NOISE[before][1] / NOISE[fraction][1]
    return r * z + math.sqrt(1 - r * r) * fresh


def oracle(truth: Truth) -> Outcome:
    """Knows the best configuration, and spends all on 14 pairs and one Welch test."""
    best = min(GRID, key=truth.rank.get)
    return Outcome(fixed_test(truth, best, BUDGET // 2), 2.0 * (BUDGET // 2))


def fixed_test(truth: Truth, configuration: tuple, pairs: int) -> str:
    """Welch, two-sided .05; if that finds nothing, TOST at .05 against delta_eq."""
    baseline = [truth.loss((), seed) for seed in range(1, pairs + 1)]
    arm = [truth.loss(configuration, seed) for seed in range(1, pairs + 1)]
    comparison = stats.compare(baseline, arm)
    if comparison.p < SPEEDRUN.design.alpha:
        return IMPROVES if comparison.improvement > 0 else HARMFUL
    narrow = stats.compare(baseline, arm, alpha=2 * SPEEDRUN.design.alpha)
    inside = max(abs(narrow.ci_low), abs(narrow.ci_high)) < SPEEDRUN.design.delta_eq
    return NO_EFFECT if inside else UNDECIDED


PLANS = {
    "bash loop": bash_loop,
    "classic": by_next_step(staged("classic")),
    "classic without gates": by_next_step(staged("classic", overrides=NOTHING_OVERRIDDEN.ungated)),
    "successive halving": successive_halving,
    "oracle": oracle,
    "adaptive": by_next_step(staged("adaptive")),
    "adaptive superiority": by_next_step(staged("adaptive", stop_on="superiority")),
}

# ---------------------------------------------------------------------------------------------
# Replicates


def replicates_of(task: tuple[Scenario, str, int, float, range]) -> list[Outcome]:
    scenario, plan, seed, rho, numbers = task
    return [PLANS[plan](Truth(scenario, f"{seed}/{scenario.name}/{k}", rho)) for k in numbers]


def rows_of(
    scenarios: Sequence[Scenario], plans: Sequence[str], replicates: int, seed: int, jobs: int,
    rho: float = 0.0,
) -> Iterator[dict]:  # fmt: skip
    """A row for each scenario and plan, in this order, as soon as it is there."""
    chunks = [range(k, min(k + 50, replicates)) for k in range(0, replicates, 50)]
    keys = [(scenario, plan) for scenario in scenarios for plan in plans]
    tasks = [(scenario, plan, seed, rho, chunk) for scenario, plan in keys for chunk in chunks]
    with Pool(jobs) as pool:
        parts = pool.imap(replicates_of, tasks)
        for scenario, plan in keys:
            outcomes = [outcome for _ in chunks for outcome in next(parts)]
            yield power.tally(scenario.name, plan, outcomes)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    names = text.split(",") if text else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} {unknown[0]!r}: give some of {', '.join(known)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Verdict rates and cost of plans in worlds whose truth is known.",
        allow_abbrev=False,
    )
    parser.add_argument("--replicates", type=int, default=2000, help="of each world and plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--worlds", default="", metavar="A,B", help="these only: --worlds=-.003")
    parser.add_argument("--plans", default="", metavar="A,B", help="these only")
    parser.add_argument("--scattered", action="store_true", help="cells have nothing in common")
    parser.add_argument("--rho", type=float, default=0.0, help="correlation within seeds (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args(argv)
    try:
        if args.replicates < 1 or args.jobs < 1:
            raise ValueError("--replicates and --jobs: give 1 or more")
        if not 0 <= args.rho < 1:
            raise ValueError(f"--rho {args.rho:g}: give 0 to below 1")
        scenarios = [SCENARIOS[name] for name in chosen(args.worlds, SCENARIOS, "--worlds")]
        plans = chosen(args.plans, PLANS, "--plans")
    except ValueError as error:
        print(f"plan_power.py: error: {error}", file=sys.stderr)
        return 1
    if args.scattered:
        scenarios = [replace(scenario, ranks=power.scattered_ranks) for scenario in scenarios]
    rows = []
    began = time.perf_counter()
    for row in rows_of(scenarios, plans, args.replicates, args.seed, args.jobs, args.rho):
        rows.append(row)
        if row["plan"] == plans[-1]:
            print(f"\n{row['world']}")
            print("\n".join(power.verdict_table(rows[-len(plans) :], by="plan")), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s with {args.jobs} processes")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
