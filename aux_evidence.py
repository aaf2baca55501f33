"""What lies in an experiment folder, and who is compared with whom?

Reads the files of one experiment into values, for the report and the figures alike; what cannot be
believed becomes a note, never a guess. Runs are compared within a block only, the runs of one stage
with one number of steps: other stages have other seeds, and other lengths other losses.
Improvement = mean val_loss(baseline) - mean val_loss(arm) in nats/token: positive is good.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aux_stats
from records import STATUSES, Arm, Records, RunResult, attempt_dirs, read_json, read_records
from staged_analysis_helper import Decision, decision_from

# ---------------------------------------------------------------------------------------------
# Reading an experiment folder


@dataclass(frozen=True)
class Experiment:
    """All that an experiment folder says."""

    exp_dir: Path
    registered: dict  # experiment_configs.json
    derived: dict  # staged_ablation_results.json; empty where there is none
    decisions: dict[int, Decision]
    records: Records
    run_configs: tuple[dict, ...] = ()  # config.json of every attempt
    notes: tuple[str, ...] = ()  # what could not be read, or does not fit together

    def stage_name(self, number: int) -> str:
        if not number:
            return "Runs by hand"
        name = field(self.registered, "stages", str(number), "name")
        return f"Stage {number}, {name}"


def field(value, *path: str):
    """A value deep in a JSON object; None where the object ends earlier."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


REGISTERED = {"experiment_id": str, "plan": str, "profile": dict, "stages": dict}  # at the least


def read_experiment(exp_dir: Path) -> Experiment:
    """Raises ValueError where this is no experiment; what is merely damaged becomes a note."""
    path = exp_dir / "experiment_configs.json"
    remedy = "give a folder that run_aux.py made (experiments/aux_heads_...)"
    if not exp_dir.is_dir():
        raise ValueError(f"--exp_dir {exp_dir}: no such folder; {remedy}")
    if not path.is_file():
        raise ValueError(f"--exp_dir {exp_dir}: no {path.name} there; {remedy}")
    registered = read_json(path)
    for name, kind in REGISTERED.items():
        if not isinstance(registered.get(name), kind):
            raise ValueError(f"{path}: {name} is {registered.get(name)!r:.40}; {remedy}")
    records = read_records(exp_dir, registered["experiment_id"])
    derived, decisions, notes = read_derived(exp_dir, registered["experiment_id"], records)
    configs = []
    for _, _, folder in attempt_dirs(exp_dir):
        try:
            configs.append(read_json(folder / "config.json"))
        except (ValueError, OSError) as error:
            notes.append(f"A run's configuration cannot be read: {error}")
    return Experiment(
        exp_dir, registered, derived, decisions, records, tuple(configs), tuple(notes)
    )


def read_derived(
    exp_dir: Path, experiment_id: str, records: Records
) -> tuple[dict, dict[int, Decision], list[str]]:
    """staged_ablation_results.json as (document, decisions, notes), held against the records."""
    path = exp_dir / "staged_ablation_results.json"
    again = "python run_aux.py --exp_dir DIR with --staged or --stage writes it anew"
    if not path.exists():
        return {}, {}, [f"There is no {path.name}, so no decision is shown; {again}."]
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
        known = {(run["run"], run["status"]) for s in stages.values() for run in s["runs"]}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        why = f"{path.name} cannot be believed ({error}), so no decision is shown; {again}."
        return {}, {}, [why]
    found = {(r.run.name, r.status) for r in records.latest().values()}
    if known == found:
        return derived, decisions, []
    names = ", ".join(sorted({name for name, _ in known ^ found}))
    stale = f"{path.name} and the records of runs differ in: {names}. The tables follow the"
    return derived, decisions, [f"{stale} records, the decisions the older state; {again}."]


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
        exploratory = ", exploratory" if self.stage in SELECTING else ""
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
        return Contrast(found, test.p, "p by the exact worst-rank test, diverged runs as the worst")
    if found is None:
        return Contrast(why=f"no finished run of the {'arm' if base.losses else 'baseline'}")
    n = min(len(base.losses), len(group.losses))
    why = "" if found.p is not None else "n = 1 on a side" if n < 2 else "no spread on both sides"
    return Contrast(found, found.p, why and f"{why}: no interval, p or d")


def ratio(block: Block, group: Group, name: str) -> float | None:
    """Of means, to the baseline of the block."""
    over, mine = block.baseline and block.baseline.mean_sd(name)[0], group.mean_sd(name)[0]
    return mine / over if over and mine is not None else None
