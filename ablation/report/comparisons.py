"""Who is compared with whom, and what comes of it?  Losses, times and gradient norms of the arms.

Runs are compared within a block only, the runs of one stage with one number of steps, and there on
the seeds that both have: other stages and seeds differ by more than arms do, and other lengths too.
Improvement = mean val_loss(baseline) - mean val_loss(arm) in nats/token: positive is good.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from ablation import sequential, stats
from ablation.plan.looks import RANKS, Look, Test
from ablation.report.evidence import Compared, Evidence, GradNorms
from ablation.runs.run import STATUSES, Arm, RunResult
from ablation.study.study import Study

# ---------------------------------------------------------------------------------------------
# Who is compared with whom

SELECTING = (1, 2, 3)  # stages that choose what runs next; stage 4 tests it


@dataclass(frozen=True)
class ArmRuns:
    """All runs of one configuration within a block: aux_6 and aux_6_repeat are one."""

    runs: tuple[RunResult, ...]  # the last word on each

    by_seed = True  # compared on the seeds that both sides have

    @property
    def arm(self) -> Arm:
        return self.runs[0].run.arm

    @property
    def key(self) -> tuple:
        return self.arm.configuration, self.runs[0].run.role == "validation"  # what others selected

    @property
    def label(self) -> str:
        names = list(dict.fromkeys(r.run.arm.name for r in self.runs))
        return f"{names[0]} … {names[-1]}" if len(names) > 2 else " + ".join(names)

    @property
    def ok(self) -> list[RunResult]:
        return [r for r in self.runs if r.status == "ok"]

    @property
    def losses(self) -> list[float]:
        return [r.final_loss for r in self.ok]

    def numbers(self, name: str) -> list[float]:
        """A field of the runs that finished; none where a log does not tell it of all of them."""
        found = [getattr(r, name) for r in self.ok]
        return [] if None in found else found

    @property
    def seeds(self) -> set[int]:
        """The seeds of which there is an outcome."""
        return {r.run.seed for r in self.runs if r.has_outcome}

    def told_apart(self, r: RunResult) -> str:
        """What tells one of its runs from the others, in words."""
        return f"seed {r.run.seed}"

    def on(self, seeds: set[int]) -> "ArmRuns":
        """The runs of these seeds; perhaps none."""
        return replace(self, runs=tuple(r for r in self.runs if r.run.seed in seeds))

    @property
    def diverged(self) -> int:
        return sum(r.status == "diverged" for r in self.runs)

    @property
    def lost(self) -> str:
        """What the mean leaves out, in words; empty when nothing."""
        count = Counter(r.status for r in self.runs if r.status != "ok")
        return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])

    def mean_sd(self, name: str = "val_loss") -> tuple[float | None, float | None]:
        """Mean and standard deviation over the runs that finished; None where there are too few."""
        return stats.mean_sd(numbers) if (numbers := self.numbers(name)) else (None, None)


@dataclass(frozen=True)
class Block:
    """The runs of one stage with one number of steps: the only ones that are compared."""

    stage: int
    name: str
    num_iterations: int  # or seconds
    groups: tuple[ArmRuns, ...]  # the baseline first, where there is one
    counted: str = "steps"

    @property
    def title(self) -> str:
        exploratory = ", exploratory, biased" if self.stage in SELECTING else ""
        return f"{self.name} ({self.num_iterations} {self.counted}{exploratory})"

    @property
    def baseline(self) -> ArmRuns | None:
        return next((g for g in self.groups if g.arm.is_baseline), None)

    @property
    def baseline_losses(self) -> list[float]:
        return self.baseline.losses if self.baseline else []

    @property
    def arms(self) -> list[ArmRuns]:
        return [g for g in self.groups if not g.arm.is_baseline]


def places(study: Study) -> dict[tuple, int]:
    """The order of configurations: the baseline, then the arms as the study names them."""
    arms = (study.baseline(), *study.arms, *study.screening)
    return {arm.configuration: n for n, arm in reversed([*enumerate(arms)])}


def blocks_of(evidence: Compared) -> list[Block]:
    """Blocks of an experiment: the last word on every run, by stage, length, configuration."""
    if not isinstance(evidence, Evidence):
        return list(evidence.blocks)
    blocks: dict[tuple, dict[tuple, list[RunResult]]] = {}
    latest = evidence.records.latest().values()
    by_name = sorted(latest, key=lambda r: (r.run.arm.name, r.run.index))
    place = places(evidence.study)
    for r in sorted(by_name, key=lambda r: place.get(r.run.arm.configuration, len(place))):
        groups = blocks.setdefault((r.run.stage, r.run.num_iterations), {})
        groups.setdefault(ArmRuns((r,)).key, []).append(r)
    found = []
    for (stage, steps), runs in sorted(blocks.items()):
        arms = tuple(ArmRuns(tuple(each)) for each in runs.values())
        counted = evidence.study.trainer.counted
        found.append(Block(stage, evidence.stage_name(stage), steps, arms, counted))
    return found


def matched(block: Block, group: ArmRuns) -> tuple[ArmRuns, ArmRuns] | None:
    """Baseline and arm on the seeds of which both have an outcome; None where there is no such.

    Runs of one seed start from the same weights and see the same batches; across seeds, a
    difference would be that of the seeds as much as that of the arms.
    """
    base = block.baseline
    if base and not base.by_seed:
        both = base.on(base.seeds), group.on(group.seeds)
        return both if all(side.runs for side in both) else None
    if not base or not (seeds := base.seeds & group.seeds):
        return None
    return base.on(seeds), group.on(seeds)


def averaged(sides: tuple[ArmRuns, ArmRuns]) -> tuple[ArmRuns, ArmRuns]:
    """The runs that a difference of means is of: on seeds that both sides finished."""
    base, arm = sides
    if not base.by_seed:
        return sides
    seeds = {r.run.seed for r in base.ok} & {r.run.seed for r in arm.ok}
    return base.on(seeds), arm.on(seeds)


@dataclass(frozen=True)
class Contrast:
    """An arm against the baseline of its block, and why what is missing is missing."""

    comparison: stats.Comparison | None = None
    p: float | None = None
    why: str = ""
    ranked: bool = False  # p is the exact worst-rank test's
    seeds: int = 0  # that arm and baseline share, with an outcome of both


def contrast(block: Block, group: ArmRuns, alpha: float = 0.05) -> Contrast:
    """Welch's test on shared seeds, with its interval at this level; where runs diverged there, the
    exact worst-rank test, which counts them as worst."""
    if block.baseline is None:
        return Contrast(why="no baseline of this stage and length ran")
    if group is block.baseline:
        return Contrast()
    sides = matched(block, group)
    if sides is None:
        for name, side in (("baseline", block.baseline), ("arm", group)):
            if not side.seeds:
                return Contrast(why=f"no finished run of the {name}")
        return Contrast(why="no seed in common with the baseline: no difference")
    base, arm = sides
    base_losses, arm_losses = (g.losses for g in averaged(sides))
    found, n = None, len(arm.seeds)
    if base_losses and arm_losses:
        found = stats.compare(base_losses, arm_losses, alpha)
    if found is None or base.diverged or arm.diverged:
        test = stats.worst_rank(base.losses, arm.losses, base.diverged, arm.diverged)
        why = "p by the exact worst-rank test, diverged runs as the worst"
        return Contrast(found, test.p, why, ranked=True, seeds=n)
    why = "" if found.p is not None else "n = 1" if n < 2 else "no spread on both sides"
    return Contrast(found, found.p, why and f"{why}: no interval, p or d", seeds=n)


def ratio(block: Block, group: ArmRuns, name: str) -> float | None:
    """The ratio of a mean, such as of train_time_ms, to the baseline's of the block."""
    over, mine = block.baseline and block.baseline.mean_sd(name)[0], group.mean_sd(name)[0]
    return mine / over if over and mine is not None else None


def dunnett(block: Block, rng) -> dict[str, float]:
    """Dunnett's p of each arm, corrected for their number; of two or more arms that finished the
    baseline's seeds, two or more, without a divergence on either side."""
    base = block.baseline
    if base is None or len(base.losses) < 2 or base.diverged:
        return {}
    arms = [g for g in block.arms if g.losses and not g.diverged]
    arms = [
        g
        for g in arms
        if (finished_seeds(g) == finished_seeds(base) if g.by_seed else len(g.losses) > 1)
    ]
    if len(arms) < 2:
        return {}
    found = stats.dunnett(base.losses, [g.losses for g in arms], rng)
    return {g.label: p for g, p in zip(arms, found, strict=True) if p is not None}


def finished_seeds(group: ArmRuns) -> list[int]:
    return sorted(r.run.seed for r in group.ok)


def final_block(evidence: Evidence) -> Block | None:
    """The complete pairs of stage 4: the seeds on which baseline and arm both have an outcome; of
    the adaptive plan those of the last look. None before the first one."""
    chosen = evidence.decisions[4].chosen if 4 in evidence.decisions else None
    for block in blocks_of(evidence):
        if block.stage != 4 or not block.baseline or not block.arms:
            continue
        tested = [g for g in block.arms if chosen and g.arm.configuration == chosen.configuration]
        arm = (tested or block.arms)[0]
        seeds = sorted(block.baseline.seeds & arm.seeds)
        if evidence.looks:
            seeds = seeds[: evidence.looks[-1].n]
        if seeds:
            sides = (g.on(set(seeds)) for g in (block.baseline, arm))
            by_seed = (tuple(sorted(g.runs, key=lambda r: r.run.seed)) for g in sides)
            return replace(block, groups=tuple(map(ArmRuns, by_seed)))
    return None


def paired_losses(baseline: ArmRuns, group: ArmRuns) -> tuple[list[float], list[float]]:
    """Final losses of the seeds on which both finished, in the same order."""
    base, arm = ({r.run.seed: r.final_loss for r in g.ok} for g in (baseline, group))
    seeds = sorted(base.keys() & arm.keys())
    return [base[seed] for seed in seeds], [arm[seed] for seed in seeds]


@dataclass(frozen=True)
class WithinSeeds:
    """Final losses of an arm and of what it is compared with, on the seeds that both finished."""

    base: tuple[float, ...]  # by seed, one at least; in any order where seeds do not matter
    arm: tuple[float, ...]

    @property
    def improvements(self) -> list[float]:
        return [b - a for b, a in zip(self.base, self.arm, strict=True)]

    @property
    def improvement(self) -> float:
        return stats.mean_sd(self.base)[0] - stats.mean_sd(self.arm)[0]


def within_seeds(base: ArmRuns | None, group: ArmRuns) -> WithinSeeds | None:
    """None where there is no such seed, or nothing but the arm itself to compare it with."""
    if base is None or base.arm.configuration == group.arm.configuration:
        return None
    losses, mine = paired_losses(base, group) if base.by_seed else (base.losses, group.losses)
    return WithinSeeds(tuple(losses), tuple(mine)) if losses and mine else None


def reference(evidence: Compared, block: Block) -> ArmRuns | None:
    """What the arms of a block are compared with: its baseline; in a stage without one, the
    configuration that an earlier stage chose, or else the stage itself: its runs so far on seeds of
    the block. None where there is no such."""
    if block.baseline or not isinstance(evidence, Evidence):
        return block.baseline
    decided = sorted(evidence.decisions.items())
    earlier = [d.chosen for n, d in decided if n < block.stage and d.chosen]
    its_own = [d.chosen for n, d in decided if n == block.stage and d.chosen]
    choice = next(iter([*earlier[-1:], *its_own]), None)
    seeds = {r.run.seed for g in block.groups for r in g.runs}
    runs = [
        r
        for r in evidence.records.latest().values()
        if choice
        and r.run.arm.configuration == choice.configuration
        and r.run.num_iterations == block.num_iterations
        and r.run.stage <= block.stage
        and r.run.seed in seeds
        and r.run.role != "validation"
    ]
    return ArmRuns(tuple(runs)) if runs else None


def repeated_ps(looks: Sequence[Look]) -> list[float]:
    """The repeated p-value at each look, over the looks so far: of all its tests."""
    ns, n_maxes = [look.n for look in looks], [look.n_max for look in looks]
    kinds = range(len(looks[0].tests)) if looks else ()  # Welch or ranks, and pairs
    tests = [[t_of(look, look.tests[kind]) for look in looks] for kind in kinds]

    def families(k: int) -> list[sequential.Family]:
        return [
            sequential.Family(looks[0].tests[kind].share, *zip(*tests[kind][:k], strict=True))
            for kind in kinds
        ]

    return [
        sequential.repeated_p(ns[:k], n_maxes[:k], families(k)) for k in range(1, len(looks) + 1)
    ]


def t_of(look: Look, test: Test) -> tuple[float | None, float | None]:
    """The t of a test and its degrees of freedom; None where it is undefined."""
    if test.name == RANKS and test.p is not None:  # the z of their p
        return NormalDist().inv_cdf(test.p / 2), math.inf
    if test.se is None or look.improvement is None:
        return None, None
    return look.improvement / test.se, test.df


# ---------------------------------------------------------------------------------------------
# Time


def by_packing(evidence: Evidence, block: Block) -> dict[str, Block]:
    """A block for each way in which its runs shared the machine."""
    parts = {}
    for packing in dict.fromkeys(evidence.packing(r) for g in block.groups for r in g.runs):
        groups = (tuple(r for r in g.runs if evidence.packing(r) == packing) for g in block.groups)
        parts[packing] = replace(block, groups=tuple(ArmRuns(runs) for runs in groups if runs))
    return parts


@dataclass(frozen=True)
class Race:
    """An arm against its baseline by training time: start-up and validation are left out."""

    arrived: int  # runs of the arm that reached the baseline's mean final loss
    runs: int  # of it that have an outcome, on seeds shared with the baseline
    time_s: float | None  # mean time of the arm to that loss
    saved: stats.Ratio | None  # share of the time to it; a ratio above 0: the arm is faster
    overhead: stats.Ratio | None  # time per step, arm over baseline, less 1
    equal_s: float | None  # the time at which losses are compared
    at_equal_time: stats.Comparison | None

    def speedup_statement(self, speedup: float) -> str:
        """Whether it is shown that the arm saves as much, in words; or why not."""
        if self.arrived < self.runs:
            return f"not shown: {self.runs - self.arrived} of {self.runs} runs never got there"
        if self.saved is None or self.saved.low is None:
            return "not shown: without an interval nothing is"
        if self.saved.low < speedup:
            return f"not shown: the interval reaches down to {self.saved.low:+.1%}"
        return f"shown: the interval begins at {self.saved.low:+.1%}"


def race(block: Block, group: ArmRuns, alpha: float) -> Race | None:
    """Time to the baseline's mean final loss, and loss at equal time, on shared seeds. None without
    finished runs of both.

    A run that does not get there enters with its full training time, less than it would need. Of
    the baseline that is about every second one by construction, and errs on the side of the
    baseline; of the arm it would flatter it, and `speedup_statement` refuses.
    """
    sides = None if group is block.baseline else matched(block, group)
    if sides is None or not all(g.numbers("train_time_ms") for g in averaged(sides)):
        return None
    runs = len(sides[1].runs)
    base, group = averaged(sides)
    target = stats.mean_sd(base.losses)[0]
    arrived, times = arrivals(group, target)
    slower = relative(times, arrivals(base, target)[1], alpha)
    equal_s = min((c[-1][0] for g in (base, group) for c in time_curves(g)), default=0.0)
    reached = losses_at(base, equal_s), losses_at(group, equal_s)
    steps = group.numbers("step_avg_ms"), base.numbers("step_avg_ms")
    return Race(
        arrived=arrived,
        runs=runs,
        time_s=stats.mean_sd(times)[0],
        saved=slower and stats.Ratio(-slower.ratio, *negated(slower)),
        overhead=relative(*steps, alpha),
        equal_s=equal_s if all(reached) else None,
        at_equal_time=stats.compare(*reached, alpha) if all(reached) else None,
    )


def time_curves(group: ArmRuns) -> list[list[tuple[float, float]]]:
    """The curve of each finished run that has one: (training time in s, val loss)."""
    return [[(t / 1000, loss) for _, loss, t in r.curve] for r in group.ok if r.curve]


def losses_at(group: ArmRuns, time_s: float) -> list[float]:
    """The loss of each curve at a training time; of none where one does not reach so far."""
    losses = [stats.loss_at_time(curve, time_s) for curve in time_curves(group)]
    known = [loss for loss in losses if loss is not None]
    return known if len(known) == len(losses) else []


def arrivals(group: ArmRuns, target: float) -> tuple[int, list[float]]:
    """How many finished runs reach the target, and the times of all."""
    full = [r.trained_ms / 1000 for r in group.ok]
    curves = [[(t / 1000, loss) for _, loss, t in r.curve] for r in group.ok]
    reached = [stats.time_to_target(curve, target) for curve in curves]
    times = [f if t is None else t for f, t in zip(full, reached, strict=True)]
    return sum(t is not None for t in reached), times


def relative(times: list[float], others: list[float], alpha: float) -> stats.Ratio | None:
    """The ratio times / others, less 1, with its interval; None where a time is not above 0."""
    if min(*times, *others) <= 0:
        return None
    r = stats.time_ratio(times, others, alpha)
    low, high = (None if end is None else end - 1 for end in (r.low, r.high))
    return stats.Ratio(r.ratio - 1, low, high)


def negated(r: stats.Ratio) -> tuple[float | None, float | None]:
    """The interval of its negative."""
    return (None, None) if r.low is None or r.high is None else (-r.high, -r.low)


# ---------------------------------------------------------------------------------------------
# Gradients


def mean_grad_norms(evidence: Evidence, group: ArmRuns) -> dict[int, GradNorms]:
    """Mean gradient norms by step, over the runs that logged them; of steps that all these have."""
    runs = logged_norms(evidence, group)
    steps = sorted(set.intersection(*map(set, runs))) if runs else []

    def mean(step: int, name: str) -> tuple[float, ...]:
        columns = zip(*(getattr(norms[step], name) for norms in runs), strict=True)
        return tuple(stats.mean_sd(column)[0] for column in columns)

    return {step: GradNorms(step, mean(step, "main"), mean(step, "total")) for step in steps}


def logged_norms(evidence: Evidence, group: ArmRuns) -> list[dict[int, GradNorms]]:
    """The norms by step of each finished run that logged them, of models that are equally deep."""
    named = [r.run.name for r in group.ok if r.run.name in evidence.grad_norms]
    logged = [{norms.step: norms for norms in evidence.grad_norms[name]} for name in named]
    return [norms for norms in logged if depth(norms) == depth(logged[0])]


def depth(norms: Mapping[int, GradNorms]) -> int:
    """How many blocks the model has."""
    return len(next(iter(norms.values())).main)


ON_OTHER_SEEDS = "n differs: these means do not rest on the same seeds"


def left_out(group: ArmRuns, compared: int) -> str:
    """The runs of an arm that its improvement is not of, in words; empty when there are none."""
    lost, other = group.lost, len(group.losses) - compared
    words = (f"✕ {lost}" if lost else "", f"{other} of other seeds" if other else "")
    return ", ".join(filter(None, words))
