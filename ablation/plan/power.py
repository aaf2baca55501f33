"""What can the budget decide, before a GPU-hour is spent?

    python run_aux.py --plan_report --plan adaptive --profile speedrun

prints, without touching a GPU: runs and hours per stage, the pairs that fit into stage 4, the
smallest effect they can detect, the runs that smaller effects would take, and how often the plan
ends with which verdict. That last table is counted, not derived: `next_step`, the function
that also runs experiments, is simulated in scenarios whose truth is known;
`benchmarks/plan_power.py` drives the same functions further. Writes nothing.

Improvement = mean val_loss(baseline) - mean val_loss(arm), nats/token: positive is good.
"""

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import Pool

from ablation import stats
from ablation.plan.costs import Costs
from ablation.plan.forecast import Planned, forecast, of_stage, paid_s, pairs_of, simulate
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.next_step import conclude, stages_of, verdict_in
from ablation.plan.stage import FINAL_STAGE, seconds_of_pairs
from ablation.runs.run import RunConfig, duration, part_of
from ablation.study.experiment import Experiment, Share
from ablation.study.profiles import Profile
from ablation.study.study import Study

# ---------------------------------------------------------------------------------------------
# Scenarios: what is true, and how noisy

EARLY = 0.2  # of a run, chosen as in NOISE; early improvements hold here, then move to the end's
BASELINE_LOSS = 3.28  # nats/token, as public speedruns end; chosen: only differences matter
# Fraction of a run: (sd over that of a final loss, correlation with the final loss). Measured in
# 1,311 public runs of modded-nanogpt, 102 groups of the same code.
NOISE = {
    0.2: (4.0 / 1.3, 0.34),
    0.5: (2.4 / 1.3, 0.70),
    1.0: (1.0, 1.0),
}


def additive_ranks(study: Study, rng: random.Random) -> list[float]:
    """Rank of each configuration, 0 the best and 1 the worst: the factors count equally, and their
    levels, evenly spaced, come in an order of their own in each replicate."""
    factors = [levels for levels in study.factors if len(levels) > 1]
    ranks: list[list[float]] = []  # of each factor's levels
    for levels in factors:
        steps = [k / (len(levels) - 1) / len(factors) for k in range(len(levels))]
        rng.shuffle(steps)
        ranks.append(steps)
    return [sum(levels) for levels in product(*ranks)]


def scattered_ranks(study: Study, rng: random.Random) -> list[float]:
    """Evenly spaced ranks in any order: nothing is learnt about one but by running it."""
    n = len(study.configurations)
    ranks = [k / max(1, n - 1) for k in range(n)]
    rng.shuffle(ranks)
    return ranks


@dataclass(frozen=True)
class Scenario:
    """True improvements of a study's configurations, from the best one down to the worst, by rank.

    The early improvements belong to the same ranks: `early_best` is that of the configuration which
    is best in the end.
    """

    name: str
    best: float  # at the end of a run, nats/token
    worst: float
    early_best: float  # at 20 % of a run
    early_worst: float
    sigma: float  # sd of a final loss between seeds
    ranks: Callable[[Study, random.Random], list[float]] = additive_ranks

    def improvement(self, rank: float, fraction: float) -> float:
        """The true improvement at this rank, after this fraction of a run; nats/token."""
        early = self.early_best + rank * (self.early_worst - self.early_best)
        late = self.best + rank * (self.worst - self.best)
        return early + (late - early) * max(0.0, (fraction - EARLY) / (1 - EARLY))


def plain_scenario(name: str, best: float, worst: float, sigma: float) -> Scenario:
    """A scenario in which configurations help, or harm, early as much as in the end."""
    return Scenario(name, best, worst, best, worst, sigma)


class Truth:
    """One replicate of a scenario: the ranks of its configurations, and a source of noise.

    rho: correlation of the losses of one seed and one length, from 0 to below 1. They share an
    effect of the seed with variance rho; what is left is each run's own.
    """

    def __init__(self, study: Study, scenario: Scenario, seed: str, rho: float = 0.0):
        self.scenario, self.rng, self.rho = scenario, random.Random(seed), rho
        ranks = scenario.ranks(study, self.rng)
        self.rank = dict(zip(study.configurations, ranks, strict=True))
        self.of_seed: dict[tuple[int, float], float] = {}  # effect in sd, by seed and length

    def improvement(self, configuration: tuple, fraction: float = 1.0) -> float:
        """The true improvement, nats/token. A configuration outside of the study's factors, as one
        that is only screened, is a middling one."""
        if not configuration:
            return 0.0
        return self.scenario.improvement(self.rank.get(configuration, 0.5), fraction)

    def loss(self, configuration: tuple, seed: int, fraction: float = 1.0) -> float:
        """The loss that a new run of this seed would end with after this fraction, with noise."""
        sd = self.scenario.sigma * next(sd for f, (sd, _) in NOISE.items() if fraction <= f + 0.01)
        noise = self.rng.gauss(0, sd * math.sqrt(1 - self.rho))
        if self.rho:
            if (seed, fraction) not in self.of_seed:
                self.of_seed[seed, fraction] = self.rng.gauss(0, 1)
            noise += sd * math.sqrt(self.rho) * self.of_seed[seed, fraction]
        return BASELINE_LOSS - self.improvement(configuration, fraction) + noise


# ---------------------------------------------------------------------------------------------
# What a plan concludes in a scenario


@dataclass(frozen=True)
class Outcome:
    """What a plan came to in one replicate."""

    verdict: str
    runs: float  # in full runs


def outcome(e: Experiment, truth: Truth, cost_s: Callable[[RunConfig], float]) -> Outcome:
    """What a plan comes to in a replicate. Every run takes what cost_s says."""
    full = e.iterations(1.0)

    def loss(run: RunConfig) -> float:
        return truth.loss(run.arm.configuration, run.seed, run.num_iterations / full)

    planned, step = simulate(e, (), loss, cost_s)
    # a stop at a gate concludes nothing
    verdict = verdict_in(conclude(step).decisions) or UNDECIDED
    return Outcome(verdict, paid_s(e, planned) / cost_s(full_run(e)))


def full_run(e: Experiment) -> RunConfig:
    """A full run of the baseline: the unit of cost."""
    arm = e.study.baseline()
    return RunConfig(FINAL_STAGE, arm, 0, e.seed(FINAL_STAGE, 0), e.iterations(1.0))


VERDICTS = {  # field of a row: the verdict that it is the share of
    "p_improves": IMPROVES,
    "p_harmful": HARMFUL,
    "p_equivalent": NO_EFFECT,
    "p_inconclusive": UNDECIDED,
}


def tally(scenario: str, plan: str, outcomes: Sequence[Outcome]) -> dict:
    """One row of a table: the share of each verdict, and the cost in full runs."""
    n, runs = len(outcomes), [outcome.runs for outcome in outcomes]
    counts = Counter(outcome.verdict for outcome in outcomes)
    return {
        "world": scenario,
        "plan": plan,
        **{name: counts[verdict] / n for name, verdict in VERDICTS.items()},
        "runs_mean": math.fsum(runs) / n,
        "runs_max": max(runs),
        "replicates": n,
    }


def standard_error(p: float, n: int) -> float:
    """Standard error of a share p of n, with two successes and two failures added (Agresti and
    Coull 1998): none of 60 does not mean never."""
    p = (p * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


# ---------------------------------------------------------------------------------------------
# The report

REPLICATES = 60  # chosen: standard errors of at most .065, and the answer in 3 s on two cores
TABLE_POWER = 0.8  # chosen, as usual (Cohen 1988); the power of `stats.runs_needed`


def scenarios_for(e: Experiment) -> list[Scenario]:
    """Truths in which it matters to this experiment what the plan says."""
    design = e.profile.design
    delta_eq, delta_target = design.delta_eq, design.delta_target
    rows = (
        ("no effect at all", 0.0, 0.0),
        ("every cell: delta_eq", delta_eq, delta_eq),
        ("best cell: 2 x delta_eq, worst: 0", 2 * delta_eq, 0.0),
        ("best cell: delta_target, worst: 0", delta_target, 0.0),
        ("every cell harms by 2 x delta_eq", -2 * delta_eq, -2 * delta_eq),
    )
    return [plain_scenario(*row, design.sigma0) for row in rows]


Progress = Callable[[Iterable, int], Iterable]  # passes on so many parts, and shows how far it is


def silently(parts: Iterable, total: int) -> Iterable:
    return parts


def outcomes_of(task: tuple[Experiment, Scenario, list[str]]) -> list[Outcome]:
    e, scenario, seeds = task
    rho, cost_s = e.profile.design.rho, Costs(e)
    return [outcome(e, Truth(e.study, scenario, seed, rho), cost_s) for seed in seeds]


def operating_characteristics(
    e: Experiment, replicates: int = REPLICATES, seed: int = 0, jobs: int | None = None,
    progress: Progress = silently,
) -> list[dict]:  # fmt: skip
    """A row of `tally` for each scenario. Equal seeds give equal rows, for any number of jobs."""
    scenarios, chunk = scenarios_for(e), 2  # replicates that a process takes at a time, chosen
    seeds = [f"{seed}/{k}" for k in range(replicates)]
    chunks = [seeds[k : k + chunk] for k in range(0, replicates, chunk)]
    tasks = [(e, scenario, some) for scenario in scenarios for some in chunks]
    import scipy.optimize  # noqa: F401 - before the fork, or each process imports it

    with Pool(jobs) as pool:
        parts = iter(list(progress(pool.imap(outcomes_of, tasks), len(tasks))))
        pool.close()  # else each worker is ended by a signal, which one that waits may not hear
        pool.join()
    return [
        tally(scenario.name, e.plan, [outcome for _ in chunks for outcome in next(parts)])
        for scenario in scenarios
    ]


def pairs_s(e: Experiment, n: int) -> float:
    """Machine time of n pairs of a baseline and the favourite arm, at full length, before any is
    measured."""
    pair = full_run(e), replace(full_run(e), arm=e.study.expected_best)
    return seconds_of_pairs(e.share, [Costs(e)(run) for run in pair], n)


@dataclass(frozen=True)
class LastTest:
    """Stage 4's test, looked at once: Welch's at its share of alpha, and for the adaptive plan the
    paired t test at the rest; the shorter of their two intervals counts."""

    sigma: float  # of a final loss between seeds
    alpha: float
    pairing: float  # share of alpha for pairs; 0: Welch alone
    rho: float  # correlation within a seed, assumed

    @property
    def sd(self) -> float:
        """Of differences within a seed."""
        return self.sigma * math.sqrt(2 * (1 - self.rho))

    def power(self, effect: float, n: int) -> float:
        """Power with n pairs, at least: that of the better test."""
        for_pairs = self.pairing * self.alpha
        return max(
            stats.power(effect, n, self.sigma, self.alpha - for_pairs),
            stats.paired_power(effect, n, self.sd, for_pairs),
        )

    def mde80(self, n: int) -> float:
        """Minimum detectable effect of n >= 2 pairs at power .8, at most."""
        for_pairs = self.pairing * self.alpha
        found = (
            stats.mde80(self.sigma, n, self.alpha - for_pairs),
            stats.paired_mde80(self.sd, n, for_pairs),
        )
        return min(mde80 for mde80 in found if mde80 is not None)

    def pairs_needed(self, effect: float) -> int | None:
        """The fewest pairs with power .8; None where a thousand do not suffice."""
        ns = range(2, 1001)  # power grows with n
        first = bisect_left(ns, TABLE_POWER, key=lambda n: self.power(effect, n))
        return ns[first] if first < len(ns) else None


def last_tests(e: Experiment) -> dict[str, LastTest]:
    """Stage 4's test by what is assumed of runs of one seed: that they are independent; and, where
    it takes pairs, that they correlate as registered, a guess until somebody measures it."""
    d = e.profile.design
    pairing = d.pairing if stages_of(e)[-1].sequential else 0.0
    independent = LastTest(d.sigma0, d.alpha, pairing, 0.0)
    if not (pairing and d.rho):
        return {"independent": independent}
    return {"independent": independent, f"correlated by {d.rho:g}": replace(independent, rho=d.rho)}


def last_test_in_words(e: Experiment) -> str:
    """What `last_tests` are, and what they assume."""
    tests = last_tests(e)
    name = "two intervals" if tests["independent"].pairing else "Welch"
    return f"{name}, one look; runs of a seed {', or '.join(tests)}"


Sizes = Sequence[int | None]


def sample_sizes(e: Experiment) -> list[tuple[float, Sizes]]:
    """(effect in nats/token, pairs for power .8 by each of `last_tests`), without the effects that
    a thousand pairs would not show."""
    design, tests = e.profile.design, last_tests(e).values()
    multiples = (design.delta_eq * k for k in (0.2, 0.4, 0.6, 1, 2))
    effects = sorted({*multiples, design.delta_target})
    rows = [(effect, [test.pairs_needed(effect) for test in tests]) for effect in effects]
    return [(effect, sizes) for effect, sizes in rows if any(sizes)]


def size_cells(e: Experiment, sizes: Sizes) -> list[str]:
    """Pairs, and the time that both arms take."""
    return [f"{n} ({duration(pairs_s(e, n))})" if n else "more than 1000" for n in sizes]


def sample_size_rows(profile: Profile) -> list[str]:
    """Rows of the table of `sample_sizes` in docs/plans.md, on the machine the profile is for."""
    e = as_meant(profile)
    return [
        f"| {effect:.3f} | {' | '.join(size_cells(e, sizes))} |"
        for effect, sizes in sample_sizes(e)
    ]


def as_meant(profile: Profile, plan: str = "adaptive") -> Experiment:
    """An experiment on the machine, and with the budget, that the profile is for."""
    return Experiment(
        profile=profile,
        plan=plan,
        budget_hours=profile.budget_hours,
        full_iterations=profile.full_iterations,
        validation_runs=None,
        share=Share("cuda" if profile.gpus else "cpu", processes=profile.gpus or 1),
    )


def render(
    e: Experiment, replicates: int = REPLICATES, seed: int = 0, progress: Progress = silently
) -> str:
    """The whole report. Takes seconds, for the counts; minutes where a hundred pairs fit."""
    design, planned, metric = e.profile.design, forecast(e)[0], e.study.metric
    hours = f"{e.budget_hours:g} hours"
    if e.budget_hours < 1:
        hours = duration(3600 * e.budget_hours)
    lines = [
        f"What can {hours} decide? Plan {e.plan}, profile {e.profile.name},"
        f" {e.full_iterations} iterations ({duration(Costs(e)(full_run(e)))}) a full run",
        f"sd between seeds {design.sigma0:g}, smallest effect of interest (delta_eq)"
        f" {design.delta_eq:g}, target {metric.amount(f'{design.delta_target:g}')},"
        f" alpha {design.alpha:g} two-sided",
        "",
        "Runs and hours, every gate passed",
        *course_table(e, planned),
        "",
    ]
    if not design.noise_known:
        return "\n".join([lines[0], *lines[2:], NOISE_NOT_KNOWN])
    lines += [
        f"Stage 4, all its pairs used ({last_test_in_words(e)})",
        f"  {resolution(e, pairs_of(planned))}",
        "",
        f"Pairs that an effect takes (power {TABLE_POWER:g})",
        *size_table(e),
        "",
        concluded(e, replicates, seed),
        *verdict_table(operating_characteristics(e, replicates, seed, progress=progress)),
    ]
    return "\n".join(lines)


NOISE_NOT_KNOWN = (
    "What this can decide depends on the noise, which the study does not give: stage 1 of the"
    " adaptive\nplan measures it. With [noise] in the study it is known beforehand."
)


def concluded(e: Experiment, replicates: int, seed: int) -> str:
    """The heading of the counted table."""
    return (
        f"What the plan concludes, in {replicates} invented experiments each (± standard error;"
        f" seed {seed};\ncorrelation within seeds {e.profile.design.rho:g} (registered))"
    )


def course_table(e: Experiment, planned: Sequence[Planned]) -> list[str]:
    """Runs and hours of each stage, at most."""
    parts = {f"{s.number} {s.name}": of_stage(planned, s.number) for s in stages_of(e)}
    rows = [(name, len(part), paid_s(e, part)) for name, part in parts.items()]
    rows.append(("at most", len(planned), sum(seconds for _, _, seconds in rows)))
    return [f"  {name:<20}{n:>4} runs{part_of(s, e.budget_hours):>10}" for name, n, s in rows]


def size_table(e: Experiment) -> list[str]:
    """The rows of `sample_sizes`, under a heading."""
    rows = [("effect", [*last_tests(e)])]
    rows += [(f"{x:.4g}", size_cells(e, sizes)) for x, sizes in sample_sizes(e)]
    return [f"  {effect:>8}" + "".join(f"{cell:>22}" for cell in cells) for effect, cells in rows]


def resolution(e: Experiment, n: int) -> str:
    """What n pairs can find, in words, by each of `last_tests`."""
    if n < 2:
        return f"{n} pair(s) fit: nothing can be concluded; give more hours or shorter runs"
    if not e.profile.design.noise_known:
        return f"{n} pairs fit; what they show depends on the noise, which is not known yet"
    design, tests = e.profile.design, last_tests(e).values()
    powers = [
        f"{span([f'{test.power(effect, n):.2f}' for test in tests])} at {effect:g}"
        for effect in (design.delta_eq, design.delta_target)
    ]
    mde80 = span([f"{test.mde80(n):.3g}" for test in tests])
    return f"{n} pairs fit; MDE80 {e.study.metric.amount(mde80)}; power {', '.join(powers)}"


def span(numbers: Sequence[str]) -> str:
    """From the first to the last; one where they are equal."""
    return " to ".join(dict.fromkeys(numbers))


def verdict_table(
    rows: Sequence[dict], by: str = "world", shares: Sequence[str] = tuple(VERDICTS)
) -> list[str]:
    """A line for each row of `tally`, under a heading. shares: fields of the columns."""
    width = 2 + max(len(row[by]) for row in rows)
    titles = "".join(f"{name.removeprefix('p_'):>15}" for name in shares)
    lines = [f"  {by:<{width}}{titles}  full runs (most)"]
    for row in rows:
        cells = [
            f"{row[name]:.3f} ± {standard_error(row[name], row['replicates']):.3f}"
            for name in shares
        ]
        runs = f"{row['runs_mean']:8.1f} ({row['runs_max']:.1f})"
        lines.append(f"  {row[by]:<{width}}" + "".join(f"{cell:>15}" for cell in cells) + runs)
    return lines
