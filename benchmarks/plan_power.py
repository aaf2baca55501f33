"""How often does which plan conclude what, in worlds whose truth is known?

    python benchmarks/plan_power.py --replicates 2000 --json plan_power.json
    python benchmarks/plan_power.py --replicates 2000 --worlds=-.003 --plans "adaptive superiority"
    python benchmarks/plan_power.py --set graded --plans adaptive --rho .9 --pairing .2
    python benchmarks/plan_power.py --study my_idea.toml --replicates 200

Simulates each plan within a budget of 28 full runs of the speedrun profile (5100 iterations), and
prints verdict rates with standard errors and the cost in full runs. The adaptive and the classic
plan are `next_step` itself, as it runs experiments; the others are written here. --json writes rows
{"world", "plan", "p_right", "p_improves", "p_harmful", "p_equivalent", "p_inconclusive",
"runs_mean", "runs_max", "replicates"}.

A verdict is right where it calls a null or harm so (no meaningful effect; harmful), or finds the
improvement of the best configuration; where that lies above 0 and not above delta_eq, improves and
no meaningful effect are both right. The last table is the mean over the worlds, without those that
are beside the sets.

Truth and noise: worlds.py, by --set or by name. --scattered gives the project's worlds 36 evenly
spaced effects in any order, with nothing in common between neighbours; --rho correlates the losses
of one seed and one length. Neither rho nor other tails or sds reach the choices of successive
halving, only its test.

--study asks it of another study: over its own arms and refinements, with effects and noise that are
as large beside its delta_eq and sigma0 as those of the table are beside the speedrun's.

A replicate of a world has the same truth for every plan, and depends on --seed, the world and its
own number only: any number of --jobs gives the same rows.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import Pool
from pathlib import Path

# before numpy is imported: the processes are the parallelism
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ablation import stats
from ablation.plan import power
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.power import NOISE, VERDICTS, Outcome, Truth
from ablation.runs.run import RunConfig
from ablation.study.asked import new_experiment
from ablation.study.experiment import Experiment
from ablation.study.heads import HEADS
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.profiles import PROFILES, TERMS
from ablation.study.study import Study
from benchmarks.worlds import BESIDE, PROJECT, SETS, WORLDS, Replicate, World, in_units_of

SPEEDRUN = PROFILES["speedrun"]
RUN_S = 900.0  # of a full run; every arm costs the same, a short run in proportion
BUDGET = 28  # full runs

# ---------------------------------------------------------------------------------------------
# Plans: from a truth to a verdict and its cost


def staged(
    plan: str, pairing: float = SPEEDRUN.design.pairing, study: Study = HEADS, **changes
) -> Experiment:
    e = new_experiment(study, SPEEDRUN.name, SPEEDRUN.gpus, cores=1)
    profile = replace(e.profile, design=replace(e.profile.design, pairing=pairing))
    hours = BUDGET * RUN_S / 3600
    return replace(e, profile=profile, plan=plan, budget_hours=hours, **changes)


def cost_s(e: Experiment) -> Callable[[RunConfig], float]:
    return lambda run: RUN_S * run.num_iterations / e.full_iterations


def by_next_step(e: Experiment) -> "Plan":
    return lambda truth: power.outcome(e, truth, cost_s(e))


def bash_loop(truth: Truth) -> Outcome:
    """The baseline and 27 configurations once (three of the placements); the lowest loss wins. Its
    claim: they help if the winner is below the one baseline run, by however little."""
    losses = [truth.loss(configuration, 0) for configuration in [*truth.rank][:27]]
    improved = min(losses) < truth.loss((), 0)
    return Outcome(IMPROVES if improved else UNDECIDED, 1.0 + len(losses))


RUNGS = ((0.2, 12), (0.5, 4), (1.0, 1))  # length, configurations that stay; chosen


def successive_halving(truth: Truth) -> Outcome:
    """All 36 configurations to 20 % of a run, the best 12 on to 50 %, the best 4 on to the end; the
    winner against the baseline on fresh seeds, as many pairs as are left (7), one Welch test. Of
    more than 90 configurations the first ones, so that two pairs are left."""
    left, noise, before, spent = [*truth.rank][:90], {}, 0.0, 0.0
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
    best = min(truth.rank, key=truth.rank.get)
    return Outcome(fixed_test(truth, best, BUDGET // 2), 2.0 * (BUDGET // 2))


def fixed_test(truth: Truth, configuration: tuple, pairs: int) -> str:
    """Welch, two-sided .05; if that finds nothing, TOST at .05 against delta_eq. Runs that diverge
    are left out: no example to follow."""
    baseline, arm = (
        [loss for seed in range(1, pairs + 1) if (loss := truth.loss(which, seed)) < math.inf]
        for which in ((), configuration)
    )
    comparison = stats.compare(baseline, arm)
    if comparison.p < SPEEDRUN.design.alpha:
        return IMPROVES if comparison.improvement > 0 else HARMFUL
    narrow = stats.compare(baseline, arm, alpha=2 * SPEEDRUN.design.alpha)
    inside = max(abs(narrow.ci_low), abs(narrow.ci_high)) < truth.scenario.delta_eq
    return NO_EFFECT if inside else UNDECIDED


Plan = Callable[[Truth], Outcome]


@cache
def plans(pairing: float = SPEEDRUN.design.pairing, study: Study = HEADS) -> dict[str, Plan]:
    """pairing: share of alpha that the adaptive plan spends on differences within seeds."""
    any_verdict, fixed = staged("adaptive", pairing, study), staged("classic", study=study)
    ungated = NOTHING_OVERRIDDEN.ungated
    return {
        "bash loop": bash_loop,
        "classic": by_next_step(fixed),
        "classic without gates": by_next_step(replace(fixed, overrides=ungated)),
        "successive halving": successive_halving,
        "oracle": oracle,
        "adaptive": by_next_step(any_verdict),
        "adaptive superiority": by_next_step(replace(any_verdict, stop_on="superiority")),
    }


# ---------------------------------------------------------------------------------------------
# Replicates


@dataclass(frozen=True)
class Setting:
    """What all replicates have in common."""

    seed: int = 0
    rho: float = 0.0  # correlation of the losses of one seed
    pairing: float = SPEEDRUN.design.pairing
    study: Study = HEADS


def replicates_of(task: tuple[World, str, Setting, range]) -> list[Outcome]:
    world, name, setting, numbers = task
    plan, study = plans(setting.pairing, setting.study)[name], setting.study
    seeds = [f"{setting.seed}/{world.name}/{k}" for k in numbers]
    return [plan(Replicate(study, world, seed, setting.rho)) for seed in seeds]


def rows_of(
    worlds: Sequence[World], names: Sequence[str], replicates: int, setting: Setting, jobs: int
) -> Iterator[dict]:
    """A row for each world and plan, in this order, as soon as it is there."""
    chunks = [range(k, min(k + 50, replicates)) for k in range(0, replicates, 50)]
    keys = [(world, name) for world in worlds for name in names]
    tasks = [(world, name, setting, chunk) for world, name in keys for chunk in chunks]
    with Pool(jobs) as pool:
        parts = pool.imap(replicates_of, tasks)
        for world, name in keys:
            row = power.tally(world.name, name, [o for _ in chunks for o in next(parts)])
            right = [field for field, verdict in VERDICTS.items() if verdict in world.right]
            yield {**row, "p_right": math.fsum(row[field] for field in right)}


SHARES = ("p_right", *VERDICTS)  # fields of a row


def means(rows: Sequence[dict]) -> list[dict]:
    """A row for each plan: the mean of its rows, and the most that a run of it took."""
    by_plan: dict[str, list[dict]] = {}
    for row in rows:
        by_plan.setdefault(row["plan"], []).append(row)
    return [
        {
            "plan": plan,
            **{name: statistics.fmean(r[name] for r in own) for name in (*SHARES, "runs_mean")},
            "runs_max": max(r["runs_max"] for r in own),
            "replicates": sum(r["replicates"] for r in own),
        }
        for plan, own in by_plan.items()
    ]


def show(title: str, rows: Sequence[dict]) -> None:
    print(f"\n{title}")
    print("\n".join(power.verdict_table(rows, by="plan", shares=SHARES)), flush=True)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    names = text.split(",") if text else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} {unknown[0]!r}: give some of {', '.join(known)}")
    return names


def study_asked(path: Path | None) -> Study:
    if path is None:
        return HEADS
    from ablation.study.study_file import read_study

    return read_study(path)


def asked_for(args: argparse.Namespace, study: Study) -> tuple[list[World], list[str]]:
    """Worlds and plans. Raises ValueError for what cannot be meant."""
    if args.replicates < 1 or args.jobs < 1:
        raise ValueError("--replicates and --jobs: give 1 or more")
    for name in ("rho", "pairing"):
        value, (is_fit, remedy) = getattr(args, name), TERMS[name]
        if not is_fit(value):
            raise ValueError(f"--{name} {value:g}: {remedy}")
    names = args.worlds or ",".join(world.name for world in SETS[args.set])
    worlds = [WORLDS[name] for name in chosen(names, WORLDS, "--worlds")]
    if args.scattered:
        if other := next((world.name for world in worlds if world not in PROJECT), None):
            raise ValueError(f"--scattered: not for world {other!r}; give --set project")
        worlds = [replace(world, ranks=power.scattered_ranks) for world in worlds]
    if study is not HEADS:
        design = staged("adaptive", study=study).profile.design
        worlds = [in_units_of(design, world) for world in worlds]
    return worlds, chosen(args.plans, plans(), "--plans")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Verdict rates and cost of plans in worlds whose truth is known.",
        allow_abbrev=False,
    )
    parser.add_argument("--replicates", type=int, default=2000, help="of each world and plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--study", type=Path, metavar="FILE", help="other than the built-in one")
    parser.add_argument("--set", choices=SETS, default="project", help="of worlds (project)")
    parser.add_argument("--worlds", default="", metavar="A,B", help="these only: --worlds=-.003")
    parser.add_argument("--plans", default="", metavar="A,B", help="these only")
    parser.add_argument("--scattered", action="store_true", help="cells have nothing in common")
    parser.add_argument("--rho", type=float, default=0.0, help="correlation within seeds (0)")
    pairing = f"adaptive ({SPEEDRUN.design.pairing:g}, or the study's)"
    parser.add_argument("--pairing", type=float, help=pairing)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args(argv)
    try:
        study = study_asked(args.study)
        if args.pairing is None:
            args.pairing = (study.noise or SPEEDRUN.design).pairing
        worlds, names = asked_for(args, study)
    except ValueError as error:
        print(f"plan_power.py: error: {error}", file=sys.stderr)
        return 1
    setting = Setting(args.seed, args.rho, args.pairing, study)
    rows = []
    began = time.perf_counter()
    for row in rows_of(worlds, names, args.replicates, setting, args.jobs):
        rows.append(row)
        if row["plan"] == names[-1]:
            show(row["world"], rows[-len(names) :])
    beside = {world.name for world in BESIDE}
    if among := [row for row in rows if row["world"] not in beside]:
        show(f"mean over {len(among) // len(names)} world(s)", means(among))
    print(f"\n{time.perf_counter() - began:.0f} s with {args.jobs} processes")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
