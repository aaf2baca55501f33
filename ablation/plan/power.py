"""What can the budget decide, before a GPU-hour is spent?

    python run_aux.py --plan_report --plan adaptive --profile speedrun

prints, without touching a GPU: runs and hours per stage, the pairs that fit into stage 4, the
smallest effect they can detect, the runs that smaller effects would take, and how often the plan
ends with which verdict. That last table is counted, not derived: `next_step`, the function
that also runs experiments, is fed with invented results of worlds whose truth is known;
`benchmarks/plan_power.py` drives the same functions further. Writes nothing.

Improvement = mean val_loss(baseline) - mean val_loss(arm), nats/token: positive is good.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pool

from ablation import stats
from ablation.plan.classic import CLASSIC_RULES
from ablation.plan.costs import Costs
from ablation.plan.forecast import forecast, paid_s, simulate
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.next_step import PLANS, Step, conclude
from ablation.plan.stage import FINAL_STAGE
from ablation.runs.run import RunConfig, duration
from ablation.study.experiment import Experiment, Share, seed_of
from ablation.study.heads import GRID, PLACEMENTS, SCHEDULES, WEIGHTS, aux, baseline
from ablation.study.profiles import Profile

# ---------------------------------------------------------------------------------------------
# Worlds: what is true, and how noisy

EARLY = 0.2  # of a run: a world's early improvements hold here; then they move linearly to the end
BASELINE_LOSS = 3.28
NOISE = {  # fraction of a run: (sd over that of a final loss, correlation with the final loss)
    0.2: (4.0 / 1.3, 0.34),
    0.5: (2.4 / 1.3, 0.70),
    1.0: (1.0, 1.0),
}


def additive_ranks(rng: random.Random) -> list[float]:
    """Rank of each cell, 0 the best and 1 the worst: placement, weight and schedule count a third
    each, and their levels, evenly spaced, come in an order of their own in each replicate."""
    ranks = {}
    for levels in (PLACEMENTS, WEIGHTS, SCHEDULES):
        steps = [k / (len(levels) - 1) / 3 for k in range(len(levels))]
        rng.shuffle(steps)
        ranks |= zip(levels, steps, strict=True)
    return [sum(ranks[level] for level in cell) for cell in GRID]


def scattered_ranks(rng: random.Random) -> list[float]:
    """36 evenly spaced ranks in any order: nothing is learnt about a cell but by running it."""
    ranks = [k / (len(GRID) - 1) for k in range(len(GRID))]
    rng.shuffle(ranks)
    return ranks


@dataclass(frozen=True)
class World:
    """True improvements of the 36 cells, from the best one down to the worst, by rank.

    The early improvements belong to the same ranks: `early_best` is that of the cell which is best
    in the end.
    """

    name: str
    best: float  # at the end of a run, nats/token
    worst: float
    early_best: float  # at 20 % of a run
    early_worst: float
    sigma: float  # sd of a final loss between seeds
    ranks: Callable[[random.Random], list[float]] = additive_ranks

    def improvement(self, rank: float, fraction: float) -> float:
        """Of the cell of this rank after this fraction of a run."""
        early = self.early_best + rank * (self.early_worst - self.early_best)
        late = self.best + rank * (self.worst - self.best)
        return early + (late - early) * max(0.0, (fraction - EARLY) / (1 - EARLY))


def plain_world(name: str, best: float, worst: float, sigma: float) -> World:
    """Cells help, or harm, early as much as in the end."""
    return World(name, best, worst, best, worst, sigma)


class Truth:
    """One replicate of a world: the ranks of its cells, and a source of noise."""

    def __init__(self, world: World, seed: str):
        self.world, self.rng = world, random.Random(seed)
        self.rank = dict(zip(GRID, world.ranks(self.rng), strict=True))

    def improvement(self, configuration: tuple, fraction: float = 1.0) -> float:
        """The true one. A configuration outside the grid (layers 3,6,9) is a middling one."""
        if not configuration:
            return 0.0
        return self.world.improvement(self.rank.get(configuration, 0.5), fraction)

    def loss(self, configuration: tuple, fraction: float = 1.0) -> float:
        """An observed one of a new run."""
        sd = self.world.sigma * next(sd for f, (sd, _) in NOISE.items() if fraction <= f + 0.01)
        return BASELINE_LOSS - self.improvement(configuration, fraction) + self.rng.gauss(0, sd)


# ---------------------------------------------------------------------------------------------
# A plan, played against invented results


def verdict_of(step: Step) -> str:
    """What the plan concludes about the effect; a stop at a gate concludes nothing."""
    decision = step.decisions.get(FINAL_STAGE)
    numbers = decision.numbers if decision else {}
    if "verdict" in numbers:
        return numbers["verdict"]
    p = numbers.get("p")
    if p is None or not CLASSIC_RULES["significant"].holds(p):
        return UNDECIDED
    return IMPROVES if numbers["improvement"] > 0 else HARMFUL


@dataclass(frozen=True)
class Outcome:
    verdict: str
    runs: float  # in full runs


def outcome(e: Experiment, truth: Truth, cost_s: Callable[[RunConfig], float]) -> Outcome:
    """What a plan comes to in a replicate. Every run takes what cost_s says."""
    full = e.iterations(1.0)
    planned, _, step = simulate(
        e, (), lambda run: truth.loss(run.arm.configuration, run.num_iterations / full), cost_s
    )
    return Outcome(verdict_of(conclude(step)), paid_s(e, planned) / cost_s(full_run(e)))


def full_run(e: Experiment) -> RunConfig:
    """Of the baseline: the unit of cost."""
    return RunConfig(4, baseline(), 0, seed_of(4, 0), e.iterations(1.0))


VERDICTS = {
    "p_improves": IMPROVES,
    "p_harmful": HARMFUL,
    "p_equivalent": NO_EFFECT,
    "p_inconclusive": UNDECIDED,
}


def tally(world: str, plan: str, outcomes: Sequence[Outcome]) -> dict:
    """How often each verdict came, and what it cost: one row."""
    n = len(outcomes)
    counts = Counter(o.verdict for o in outcomes)
    return {
        "world": world,
        "plan": plan,
        **{name: counts[verdict] / n for name, verdict in VERDICTS.items()},
        "runs_mean": math.fsum(o.runs for o in outcomes) / n,
        "runs_max": max(o.runs for o in outcomes),
        "replicates": n,
    }


def standard_error(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


# ---------------------------------------------------------------------------------------------
# The report

REPLICATES = 200
TABLE_POWER = 0.8


def worlds_for(e: Experiment) -> list[World]:
    """Truths in which it matters to this experiment what the plan says."""
    d = e.profile.design
    rows = (
        ("no effect at all", 0.0, 0.0),
        ("every cell: delta_eq", d.delta_eq, d.delta_eq),
        ("best cell: 2 x delta_eq, worst: 0", 2 * d.delta_eq, 0.0),
        ("best cell: delta_target, worst: 0", d.delta_target, 0.0),
        ("every cell harms by 2 x delta_eq", -2 * d.delta_eq, -2 * d.delta_eq),
    )
    return [plain_world(*row, d.sigma0) for row in rows]


def outcomes_of(task: tuple[Experiment, World, list[str]]) -> list[Outcome]:
    e, world, seeds = task
    return [outcome(e, Truth(world, seed), Costs(e)) for seed in seeds]


def operating_characteristics(
    e: Experiment, replicates: int = REPLICATES, seed: int = 0, jobs: int | None = None
) -> list[dict]:
    """A row of `tally` for each world. Equal seeds give equal rows, whatever the number of jobs."""
    worlds, chunk = worlds_for(e), 25
    seeds = [f"{seed}/{k}" for k in range(replicates)]
    chunks = [seeds[k : k + chunk] for k in range(0, replicates, chunk)]
    tasks = [(e, world, some) for world in worlds for some in chunks]
    with Pool(jobs) as pool:
        parts = iter(pool.map(outcomes_of, tasks, chunksize=1))
    return [tally(world.name, e.plan, [o for _ in chunks for o in next(parts)]) for world in worlds]


@dataclass(frozen=True)
class Course:
    """One way in which the plan can go."""

    name: str
    runs: dict[int, int]  # by stage
    hours: dict[int, float]

    @property
    def n_max(self) -> int:
        return self.runs[4] // 2


def course(e: Experiment, name: str, improvement: float) -> Course:
    """The longest course that the budget allows, where every arm improves by so much."""
    planned, _ = forecast(
        e,
        loss=lambda run: (
            BASELINE_LOSS - (improvement if run.arm.layers else 0.0) + 1e-9 * run.seed
        ),
    )
    by_stage = {
        stage.number: [p for p in planned if p.run.stage == stage.number] for stage in PLANS[e.plan]
    }
    return Course(
        name,
        {stage: len(runs) for stage, runs in by_stage.items()},
        {stage: paid_s(e, runs) / 3600 for stage, runs in by_stage.items()},
    )


def courses(e: Experiment) -> list[Course]:
    plain, none = 100 * e.profile.design.sigma0, 0.0
    if e.plan == "adaptive":
        return [course(e, "small effect", none), course(e, "plain effect", plain)]
    return [course(e, "every gate passed", plain)]


def pair_hours(e: Experiment) -> float:
    """Of a baseline and a run with two heads, at full length, before any is measured."""
    runs = (full_run(e), replace(full_run(e), arm=aux((4, 8))))
    return sum(map(Costs(e), runs)) / 3600


def sample_sizes(e: Experiment) -> list[tuple[float, int, float]]:
    """(effect in nats/token, runs per arm, hours of both arms) for power .8, two-sided .05."""
    d = e.profile.design
    effects = sorted({*(d.delta_eq * k for k in (0.2, 0.4, 0.6, 1, 2)), d.delta_target})
    runs = [stats.runs_needed(effect, d.sigma0) for effect in effects]
    return [(effect, n, n * pair_hours(e)) for effect, n in zip(effects, runs, strict=True)]


def sample_size_rows(profile: Profile) -> list[str]:
    """The same as rows of the table in docs/plans.md, on the machine that the profile is for."""
    return [
        f"| {effect:.3f} | {n} | {hours:.1f} |"
        for effect, n, hours in sample_sizes(as_meant(profile))
    ]


def as_meant(profile: Profile, plan: str = "adaptive") -> Experiment:
    return Experiment(
        profile=profile,
        plan=plan,
        budget_hours=profile.budget_hours,
        full_iterations=profile.full_iterations,
        validation_runs=None,
        share=Share("cuda" if profile.gpus else "cpu", processes=profile.gpus or 1),
    )


def render(e: Experiment, replicates: int = REPLICATES, seed: int = 0) -> str:
    """The whole report. Takes a few seconds, for the counts."""
    d, p = e.profile.design, e.profile
    ways = courses(e)
    lines = [
        f"What can {e.budget_hours:g} hours decide? Plan {e.plan}, profile {p.name},"
        f" {e.full_iterations} iterations ({duration(Costs(e)(full_run(e)))}) a full run",
        f"sd between seeds {d.sigma0:g}, smallest effect of interest (delta_eq) {d.delta_eq:g},"
        f" target {d.delta_target:g} nats/token, alpha {d.alpha:g} two-sided",
        "",
        "Runs and hours",
        f"  {'stage':<20}" + "".join(f"{way.name:>24}" for way in ways),
    ]
    for stage in PLANS[e.plan]:
        n = stage.number
        cells = [f"{way.runs[n]} runs, {way.hours[n]:.2f} h" for way in ways]
        lines.append(f"  {f'{n} {stage.name}':<20}" + "".join(f"{cell:>24}" for cell in cells))
    totals = [f"{sum(w.runs.values())} runs, {sum(w.hours.values()):.2f} h" for w in ways]
    lines.append(f"  {'at most':<20}" + "".join(f"{total:>24}" for total in totals))
    lines += ["", "Stage 4, all its pairs used (Welch, one look)"]
    lines += [f"  {way.name}: {resolution(way.n_max, e)}" for way in ways]
    lines += [
        "",
        f"Pairs that an effect takes (Welch, one look, power {TABLE_POWER:g})",
        f"  {'effect':>8}{'runs per arm':>14}{'hours':>8}",
        *(f"  {x:>8.4g}{n:>14}{hours:>8.1f}" for x, n, hours in sample_sizes(e)),
        "",
        f"What the plan concludes, in {replicates} invented experiments each (± standard error;"
        f" seed {seed})",
        *verdict_table(operating_characteristics(e, replicates, seed)),
    ]
    return "\n".join(lines)


def resolution(n: int, e: Experiment) -> str:
    if n < 2:
        return f"{n} pair(s) fit: nothing can be concluded; give more hours or shorter runs"
    d = e.profile.design
    powers = [
        f"power {stats.power(effect, n, d.sigma0, d.alpha):.3f} at {effect:g}"
        for effect in (d.delta_eq, d.delta_target)
    ]
    mde80 = stats.mde80(d.sigma0, n, d.alpha)
    return f"{n} pairs fit; MDE80 {mde80:.4f} nats/token; {', '.join(powers)}"


def verdict_table(rows: Sequence[dict], by: str = "world") -> list[str]:
    """A line for each row of `tally`, under a heading."""
    width = 2 + max(len(row[by]) for row in rows)
    heads = [verdict.removeprefix("p_") for verdict in VERDICTS]
    lines = [f"  {by:<{width}}" + "".join(f"{head:>15}" for head in heads) + "  full runs (most)"]
    for row in rows:
        cells = [
            f"{row[name]:.3f} ± {standard_error(row[name], row['replicates']):.3f}"
            for name in VERDICTS
        ]
        runs = f"{row['runs_mean']:8.1f} ({row['runs_max']:.1f})"
        lines.append(f"  {row[by]:<{width}}" + "".join(f"{cell:>15}" for cell in cells) + runs)
    return lines
