"""What lies in an experiment folder, and who is compared with whom?

Reads the files of one experiment into values, for the report and the figures alike; what cannot be
believed becomes a note, never a guess. Runs are compared within a block only, the runs of one stage
with one number of steps: other stages have other seeds, and other lengths other losses.
Improvement = mean val_loss(baseline) - mean val_loss(arm) in nats/token: positive is good.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import aux_stats
from adaptive import Design, Look
from decision import Decision, decision_from
from records import (
    STATUSES,
    Arm,
    Records,
    RunResult,
    attempt_dir,
    attempt_dirs,
    is_number,
    printable,
    read_json,
    read_records,
)

# ---------------------------------------------------------------------------------------------
# Reading an experiment folder


@dataclass(frozen=True)
class Experiment:
    """All that an experiment folder says."""

    exp_dir: Path
    registered: dict  # experiment_configs.json
    design: Design  # the registered statistical terms
    derived: dict  # staged_ablation_results.json; empty where there is none
    decisions: dict[int, Decision]
    looks: tuple[Look, ...]  # of stage 4, adaptive plan
    records: Records
    run_configs: Mapping[tuple[str, int], dict]  # (run, attempt): config.json
    grad_norms: Mapping[str, tuple["GradNorms", ...]]  # run: what its log says, where it does
    notes: tuple[str, ...]  # what could not be read, or does not fit together

    @property
    def plan(self) -> str:
        return self.registered["plan"]

    def stage_name(self, number: int) -> str:
        if not number:
            return "Runs by hand"
        name = field(self.registered, "stages", str(number), "name")
        return f"Stage {number}, {name}"

    def packing(self, r: RunResult) -> str:
        """How the run shared its machine: times are compared between equals only."""
        config = self.run_configs.get((r.run.name, r.attempt))
        processes = field(config, "machine", "processes")
        slots = field(config, "slots") or field(config, "machine", "slots") or 1
        return f"{slots} side by side, {processes or 'unknown'} process(es) each"


def field(value, *path: str):
    """A value deep in a JSON object; None where the object ends earlier."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


OUTPUT_DIR = Path("experiments")
REGISTERED = {"experiment_id": str, "plan": str, "profile": dict, "stages": dict}  # at the least
REMEDY = "give a folder that run_aux.py made (experiments/aux_heads_...)"


def newest(output_dir: Path = OUTPUT_DIR) -> Path:
    """The newest experiment, of any kind. Raises ValueError when there is none."""
    found = [file.parent for file in output_dir.glob("aux_heads_*/experiment_configs.json")]
    if not found:
        begin = "give --exp_dir, or begin one: python run_aux.py --staged"
        raise ValueError(f"no experiment in {output_dir}/; {begin}")
    return max(found, key=lambda folder: [int(n) for n in re.findall("[0-9]+", folder.name)])


def read_experiment(exp_dir: Path) -> Experiment:
    """Raises ValueError where this is no experiment; what is merely damaged becomes a note."""
    path = exp_dir / "experiment_configs.json"
    if not exp_dir.is_dir():
        raise ValueError(f"--exp_dir {exp_dir}: no such folder; {REMEDY}")
    if not path.is_file():
        raise ValueError(f"--exp_dir {exp_dir}: no {path.name} there; {REMEDY}")
    registered = read_json(path)
    for name, kind in REGISTERED.items():
        if not isinstance(registered.get(name), kind):
            raise ValueError(f"{path}: {name} is {registered.get(name)!r:.40}; {REMEDY}")
    records = read_records(exp_dir, registered["experiment_id"])
    derived, decisions, looks, notes = read_derived(exp_dir, registered["experiment_id"], records)
    configs = {}
    for name, attempt, folder in attempt_dirs(exp_dir):
        try:
            configs[name, attempt] = read_json(folder / "config.json")
        except (ValueError, OSError) as error:
            notes.append(f"A run's configuration cannot be read: {error}")
    return Experiment(
        exp_dir=exp_dir,
        registered=registered,
        design=design_from(path, registered["profile"].get("design")),
        derived=derived,
        decisions=decisions,
        looks=looks,
        records=records,
        run_configs=configs,
        grad_norms=read_grad_norms(exp_dir, records),
        notes=tuple(notes),
    )


def design_from(path: Path, value) -> Design:
    try:
        design = Design(**value)
        if not all(map(is_number, vars(design).values())):
            raise TypeError
        return design
    except TypeError:
        raise ValueError(f"{path}: profile.design is {value!r:.40}; {REMEDY}") from None


Derived = tuple[dict, dict[int, Decision], tuple[Look, ...], list[str]]


def read_derived(exp_dir: Path, experiment_id: str, records: Records) -> Derived:
    """staged_ablation_results.json as (document, decisions, looks, notes), held against the
    records."""
    path = exp_dir / "staged_ablation_results.json"
    again = "python run_aux.py --exp_dir DIR with --staged or --stage writes it anew"
    if not path.exists():
        return {}, {}, (), [f"There is no {path.name}, so no decision is shown; {again}."]
    try:
        derived = read_json(path)
        if derived.get("experiment_id") != experiment_id:
            raise ValueError("it belongs to another experiment")
        stages = derived["stages"]
        decisions = {
            int(number): decision_from(stage["decision"])
            for number, stage in stages.items()
            if stage["decision"]
        }
        final = decisions[4].numbers if 4 in decisions else {}
        looks = tuple(map(look_from, final.get("looks", ())))
        known = {(run["run"], run["status"]) for s in stages.values() for run in s["runs"]}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        why = f"{path.name} cannot be believed ({error}), so no decision is shown; {again}."
        return {}, {}, (), [why]
    found = {(r.run.name, r.status) for r in records.latest().values()}
    if known == found:
        return derived, decisions, looks, []
    names = ", ".join(sorted({name for name, _ in known ^ found}))
    stale = f"{path.name} and the records of runs differ in: {names}. The tables follow the"
    return derived, decisions, looks, [f"{stale} records, the decisions the older state; {again}."]


def look_from(value: dict) -> Look:
    look = Look(**value)
    numbers = (look.n, look.n_max, look.z, look.q)
    interval = (look.low, look.high, look.eq_low, look.eq_high)
    whole = all(map(is_number, interval)) or interval == (None,) * 4
    optional = (value for value in (look.improvement, look.p) if value is not None)
    if not (whole and all(map(is_number, (*numbers, *optional)))):
        raise ValueError(f"not a look: {printable(str(value), limit=80)}")
    return look


@dataclass(frozen=True)
class GradNorms:
    """Gradient norm of each block at one step: of the main loss alone, and of the total."""

    step: int
    main: tuple[float, ...]
    total: tuple[float, ...]


GRAD_NORMS = b"grad_norms: "  # train_gpt.py --log_grad_norms: one line at each validation
LOG_BYTES = 1 << 26  # more than the log of any run; what lies beyond is not looked at


def read_grad_norms(exp_dir: Path, records: Records) -> dict[str, tuple[GradNorms, ...]]:
    """Of the finished runs whose log has any; lines that do not fit are passed over."""
    found = {}
    for r in records.latest().values():
        folder = attempt_dir(exp_dir / r.run.name, r.attempt)
        for name in ("train_log.txt", "output.log") if r.status == "ok" else ():
            try:
                with open(folder / name, "rb") as file:
                    norms = grad_norms_in(file.read(LOG_BYTES))
            except OSError:
                continue
            if norms:
                found[r.run.name] = norms
                break
    return found


def grad_norms_in(log: bytes) -> tuple[GradNorms, ...]:
    by_step = {}
    for line in re.findall(rb"^" + GRAD_NORMS + rb"(.*)$", log, re.MULTILINE):
        try:
            value = json.loads(line)
            step, main, total = value["step"], tuple(value["main"]), tuple(value["total"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if type(step) is int and len(main) == len(total) and all(map(is_number, main + total)):
            by_step[step] = GradNorms(step, main, total)
    blocks = Counter(len(norms.main) for norms in by_step.values())
    return tuple(n for _, n in sorted(by_step.items()) if len(n.main) == max(blocks))


# ---------------------------------------------------------------------------------------------
# Who is compared with whom

SELECTING = (1, 2, 3)  # stages that choose what runs next; stage 4 tests it
FRESH = "validation_"  # runs of what others, with other seeds, had selected: kept apart from those


@dataclass(frozen=True)
class Group:
    """All runs of one configuration within a block: aux_6 and aux_6_repeat are one."""

    runs: tuple[RunResult, ...]  # the last word on each

    @property
    def arm(self) -> Arm:
        return self.runs[0].run.arm

    @property
    def key(self) -> tuple:
        return self.arm.configuration, self.arm.name.startswith(FRESH)

    @property
    def label(self) -> str:
        names = list(dict.fromkeys(r.run.arm.name for r in self.runs))
        return f"{names[0]} … {names[-1]}" if len(names) > 2 else " + ".join(names)

    @property
    def ok(self) -> list[RunResult]:
        return [r for r in self.runs if r.status == "ok"]

    @property
    def losses(self) -> list[float]:
        return [r.val_loss for r in self.ok]

    @property
    def seeds(self) -> set[int]:
        return {r.run.seed for r in self.runs if r.settled}

    @property
    def diverged(self) -> int:
        return sum(r.status == "diverged" for r in self.runs)

    @property
    def lost(self) -> str:
        """What the mean leaves out, in words; empty when nothing."""
        count = Counter(r.status for r in self.runs if r.status != "ok")
        return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])

    def mean_sd(self, name: str = "val_loss") -> tuple[float | None, float | None]:
        """Over the runs that finished; None where there are too few."""
        values = [getattr(r, name) for r in self.ok]
        return aux_stats.mean_sd(values) if values else (None, None)


@dataclass(frozen=True)
class Block:
    """The runs of one stage with one number of steps: the only ones that are compared."""

    stage: int
    name: str
    num_iterations: int
    groups: tuple[Group, ...]  # the baseline first, where there is one

    @property
    def title(self) -> str:
        exploratory = ", exploratory, biased" if self.stage in SELECTING else ""
        return f"{self.name} ({self.num_iterations} steps{exploratory})"

    @property
    def baseline(self) -> Group | None:
        return next((g for g in self.groups if not g.arm.layers), None)

    @property
    def baseline_losses(self) -> list[float]:
        return self.baseline.losses if self.baseline else []

    @property
    def arms(self) -> list[Group]:
        return [g for g in self.groups if g.arm.layers]


def blocks_of(x: Experiment) -> list[Block]:
    """The last word on every run, by stage and length, by configuration."""
    blocks: dict[tuple, dict[tuple, list[RunResult]]] = {}
    by_name = sorted(x.records.latest().values(), key=lambda r: (r.run.arm.name, r.run.index))
    for r in sorted(by_name, key=lambda r: (len(r.run.arm.layers), r.run.arm.layers)):
        groups = blocks.setdefault((r.run.stage, r.run.num_iterations), {})
        groups.setdefault(Group((r,)).key, []).append(r)
    return [
        Block(stage, x.stage_name(stage), steps, tuple(Group(tuple(g)) for g in groups.values()))
        for (stage, steps), groups in sorted(blocks.items())
    ]


@dataclass(frozen=True)
class Contrast:
    """An arm against the baseline of its block, and why what is missing is missing."""

    comparison: aux_stats.Comparison | None = None
    p: float | None = None
    why: str = ""
    ranked: bool = False  # p is the exact worst-rank test's


def contrast(block: Block, group: Group) -> Contrast:
    """Welch's test; where runs diverged the exact worst-rank test, which counts them as worst."""
    base = block.baseline
    if base is None:
        return Contrast(why="no baseline of this stage and length ran")
    if group is base:
        return Contrast()
    found = None
    if base.losses and group.losses:
        found = aux_stats.compare(base.losses, group.losses)
    if base.diverged or group.diverged:
        test = aux_stats.worst_rank(base.losses, group.losses, base.diverged, group.diverged)
        why = "p by the exact worst-rank test, diverged runs as the worst"
        return Contrast(found, test.p, why, ranked=True)
    if found is None:
        return Contrast(why=f"no finished run of the {'arm' if base.losses else 'baseline'}")
    n = min(len(base.losses), len(group.losses))
    why = "" if found.p is not None else "n = 1 on a side" if n < 2 else "no spread on both sides"
    return Contrast(found, found.p, why and f"{why}: no interval, p or d")


def ratio(block: Block, group: Group, name: str) -> float | None:
    """Of means, to the baseline of the block."""
    over, mine = block.baseline and block.baseline.mean_sd(name)[0], group.mean_sd(name)[0]
    return mine / over if over and mine is not None else None


def dunnett(block: Block, rng) -> dict[str, float]:
    """p of each arm, corrected for their number; of two or more arms with two or more runs each, as
    many as the baseline needs too, and none diverged."""
    arms = [g for g in block.arms if len(g.losses) > 1 and not g.diverged]
    base = block.baseline
    if len(arms) < 2 or base is None or len(base.losses) < 2 or base.diverged:
        return {}
    found = aux_stats.dunnett(base.losses, [g.losses for g in arms], rng)
    return {g.label: p for g, p in zip(arms, found, strict=True) if p is not None}


def final_block(x: Experiment) -> Block | None:
    """The runs that the last decision rests on: of the adaptive plan, the pairs of its last look.
    Baseline and arm, both with settled runs; None before that."""
    for block in blocks_of(x):
        if block.stage == 4 and block.baseline and block.arms:
            sides = (block.baseline, block.arms[0])
            settled = [[r for r in g.runs if r.settled] for g in sides]
            if x.looks:
                seeds = sorted(sides[0].seeds & sides[1].seeds)[: x.looks[-1].n]
                settled = [[r for r in side if r.run.seed in seeds] for side in settled]
            if all(settled):
                by_seed = [tuple(sorted(side, key=lambda r: r.run.seed)) for side in settled]
                return replace(block, groups=tuple(map(Group, by_seed)))
    return None


def paired_losses(baseline: Group, group: Group) -> tuple[list[float], list[float]]:
    """Final losses of the seeds on which both finished, in the same order."""
    losses = [{r.run.seed: r.val_loss for r in g.ok} for g in (baseline, group)]
    seeds = sorted(losses[0].keys() & losses[1].keys())
    return tuple([side[seed] for seed in seeds] for side in losses)


def repeated_ps(x: Experiment, block: Block) -> list[float]:
    """At each look the repeated p-value over the looks so far."""
    ts, dfs = [], []
    for look in x.looks:
        if look.p is not None and look.low is None:  # ranks decided: the z of their p
            t, df = NormalDist().inv_cdf(look.p / 2), math.inf
        else:
            c = aux_stats.compare(*(g.losses[: look.n] for g in block.groups))
            t, df = (None, None) if c.se is None else (c.improvement / c.se, c.df)
        ts.append(t)
        dfs.append(df)
    ns, n_maxes = [look.n for look in x.looks], [look.n_max for look in x.looks]
    ks = range(1, len(ns) + 1)
    return [aux_stats.repeated_p(ns[:k], n_maxes[:k], ts[:k], dfs[:k]) for k in ks]


# ---------------------------------------------------------------------------------------------
# Time


def by_packing(x: Experiment, block: Block) -> dict[str, Block]:
    """The block apart by how runs shared the machine."""
    parts = {}
    for packing in dict.fromkeys(x.packing(r) for g in block.groups for r in g.runs):
        groups = (tuple(r for r in g.runs if x.packing(r) == packing) for g in block.groups)
        parts[packing] = replace(block, groups=tuple(Group(runs) for runs in groups if runs))
    return parts


@dataclass(frozen=True)
class Race:
    """An arm against its baseline by training time: start-up and validation are left out."""

    arrived: int  # runs of the arm that reached the baseline's mean final loss
    runs: int  # settled ones
    time_s: float | None  # mean time of the arm to that loss
    saved: aux_stats.Ratio | None  # share of the time to it; a ratio above 0: the arm is faster
    overhead: aux_stats.Ratio | None  # time per step, arm over baseline, less 1
    equal_s: float | None  # the time at which losses are compared
    at_equal_time: aux_stats.Comparison | None

    def shows(self, speedup: float) -> str:
        """Whether the arm saves as much; or why that is not shown."""
        if self.arrived < self.runs:
            return f"not shown: {self.runs - self.arrived} of {self.runs} runs never got there"
        if self.saved is None or self.saved.low is None:
            return "not shown: without an interval nothing is"
        if self.saved.low < speedup:
            return f"not shown: the interval reaches down to {self.saved.low:+.1%}"
        return f"shown: the interval begins at {self.saved.low:+.1%}"


def race(block: Block, group: Group, alpha: float) -> Race | None:
    """Time to the baseline's mean final loss, and loss at equal time. None without finished runs.

    A run that does not get there enters with its full training time, less than it would need. Of
    the baseline that is about every second one by construction, and errs on the side of the
    baseline; of the arm it would flatter it, and `shows` refuses.
    """
    base = block.baseline
    if base is None or group is base or not (base.losses and group.losses):
        return None
    target = aux_stats.mean_sd(base.losses)[0]
    arrived, times = arrivals(group, target)
    slower = relative(times, arrivals(base, target)[1], alpha)
    equal_s = min((c[-1][0] for g in (base, group) for c in time_curves(g)), default=0.0)
    sides = [[aux_stats.loss_at_time(c, equal_s) for c in time_curves(g)] for g in (base, group)]
    covered = all(sides) and None not in sides[0] + sides[1]
    steps = [[r.step_avg_ms for r in g.ok] for g in (group, base)]
    return Race(
        arrived=arrived,
        runs=sum(r.settled for r in group.runs),
        time_s=aux_stats.mean_sd(times)[0],
        saved=slower and aux_stats.Ratio(-slower.ratio, *negated(slower)),
        overhead=relative(*steps, alpha),
        equal_s=equal_s if covered else None,
        at_equal_time=aux_stats.compare(*sides, alpha) if covered else None,
    )


def time_curves(group: Group) -> list[list[tuple[float, float]]]:
    """(training time in s, val loss) of each finished run that has any."""
    return [[(t / 1000, loss) for _, loss, t in r.curve] for r in group.ok if r.curve]


def arrivals(group: Group, target: float) -> tuple[int, list[float]]:
    """How many finished runs reach the target, and the times of all."""
    full = [r.train_time_ms / 1000 for r in group.ok]
    curves = [[(t / 1000, loss) for _, loss, t in r.curve] for r in group.ok]
    reached = [aux_stats.time_to_target(curve, target) for curve in curves]
    times = [f if t is None else t for f, t in zip(full, reached, strict=True)]
    return sum(t is not None for t in reached), times


def relative(times: list[float], others: list[float], alpha: float) -> aux_stats.Ratio | None:
    """times / others - 1, with its interval; None for times that are none."""
    if min(*times, *others) <= 0:
        return None
    r = aux_stats.time_ratio(times, others, alpha)
    return aux_stats.Ratio(*(None if v is None else v - 1 for v in (r.ratio, r.low, r.high)))


def negated(r: aux_stats.Ratio) -> tuple[float | None, float | None]:
    return (None, None) if r.low is None else (-r.high, -r.low)


# ---------------------------------------------------------------------------------------------
# Gradients


def mean_grad_norms(x: Experiment, group: Group) -> dict[int, GradNorms]:
    """By step, over the runs that logged them; only steps that all of those have."""
    named = [r.run.name for r in group.ok if r.run.name in x.grad_norms]
    logged = [{norms.step: norms for norms in x.grad_norms[name]} for name in named]
    logged = [norms for norms in logged if depth(norms) == depth(logged[0])]
    steps = sorted(set.intersection(*map(set, logged))) if logged else []

    def mean(step: int, name: str) -> tuple[float, ...]:
        columns = zip(*(getattr(norms[step], name) for norms in logged), strict=True)
        return tuple(aux_stats.mean_sd(column)[0] for column in columns)

    return {step: GradNorms(step, mean(step, "main"), mean(step, "total")) for step in steps}


def depth(norms: Mapping[int, GradNorms]) -> int:
    return len(next(iter(norms.values())).main)
