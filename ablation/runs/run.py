"""What is a run, and what became of it?  The words of the whole house, and the ledger over them.

An `Arm` is one configuration, a `RunConfig` one training of it with one seed, a `RunResult` one
attempt at that. Losses are nats/token at full precision; durations are seconds of machine time on a
monotonic clock.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ablation.runs.untrusted import is_number

# ---------------------------------------------------------------------------------------------
# Vocabulary


Scalar = str | int | float | bool


@dataclass(frozen=True)
class Repeated:
    """Values of a flag that is given once for each."""

    values: tuple[Scalar, ...]


Value = (
    Scalar | tuple[Scalar, ...] | Repeated
)  # of a flag: true is a bare one; a tuple, with commas
Flags = tuple[tuple[str, Value], ...]  # in the order of the command line


@dataclass(frozen=True)
class Replacement:
    """A text in one of the trainer's files, which has to occur there once, and the new one."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Arm:
    """One configuration: a name, and what differs from the baseline, the arm without any."""

    name: str
    flags: Flags = ()  # of the trainer's command line
    env: tuple[tuple[str, str], ...] = ()  # variables of its environment
    script: str = ""  # a file in place of the trainer's
    replacements: tuple[Replacement, ...] = ()  # in the trainer's files
    revision: str = ""  # of the trainer's own repository
    slower: float = 0.0  # extra time of a step that is expected, as a share of the baseline's
    description: str = ""
    label: str = "baseline"  # what differs, in words

    @cached_property  # this, and the key of a run, are asked for again at every step of a plan
    def configuration(self) -> tuple:
        """What tells arms of one experiment apart; of different names with one configuration are
        one arm."""
        differs = (self.flags, self.env, self.script, self.replacements, self.revision)
        if not any(differs):
            return ()
        return tuple(sorted(self.flags)), tuple(sorted(self.env)), *differs[2:]

    @property
    def is_baseline(self) -> bool:
        return not self.configuration

    @property
    def trainer(self) -> tuple:
        """What tells apart the code that arms run; empty for the study's own trainer as it is."""
        differs = (self.script, self.replacements, self.revision)
        return differs if any(differs) else ()


# What a run is for.
ROLES = ("baseline", "arm", "repeat", "refinement", "validation", "final")
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")  # what may become a folder's name


@dataclass(frozen=True)
class RunConfig:
    """One training of one arm with one seed. Raises ValueError for a name that is no plain word."""

    stage: int  # 1 to 4; 0 outside a staged ablation
    arm: Arm
    index: int  # run_<index> in the arm's folder
    seed: int  # fixes initialisation and the order of the data
    num_iterations: int  # of a trainer that ends by time: seconds
    role: str = "arm"  # one of ROLES

    def __post_init__(self):
        if not (isinstance(self.arm.name, str) and NAME.fullmatch(self.arm.name)):
            raise ValueError(f"arm name {self.arm.name!r}: use letters, digits and underscores")
        numbers = (self.stage, self.index, self.num_iterations)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"stage, index, num_iterations {numbers!r}: give whole numbers")

    @property
    def name(self) -> str:
        return f"{self.arm.name}/run_{self.index}"

    @cached_property
    def key(self) -> tuple:
        """What was trained, under which name. Results count for a run of the same key only: under
        the name final_best, say, another choice would be another run."""
        return self.stage, self.name, self.arm.configuration, self.seed, self.num_iterations


STATUSES = ("ok", "diverged", "refused", "crashed", "timeout", "interrupted")


@dataclass(frozen=True)
class RunResult:
    """One attempt at one run: what became of it, and what it cost.

    Raises ValueError for `ok` without a finite loss and for a loss without `ok`, so that no
    comparison downstream can meet a number that was not earned.
    """

    run: RunConfig
    attempt: int  # from 1
    status: str
    reason: str  # empty when ok
    clock: str  # which monotonic clock start_s and end_s were read from (a boot of a machine)
    start_s: float
    end_s: float
    val_loss: float | None = None  # nats/token, main head, after the last step
    steps_done: int = 0
    train_time_ms: float | None = None  # without validation and start-up
    step_avg_ms: float | None = None
    peak_memory_mib: float | None = None
    tokens_seen: int | None = None
    num_parameters: int | None = None
    nodes: int = 1  # of a cluster, that it had to itself
    curve: tuple[tuple[int, float, float], ...] = ()  # (step, val_loss, train_time_ms)
    returncode: int | None = None  # None: nobody saw it end, or a record of an older version
    evidence: str = ""  # of a trainer without a summary: what this was concluded from
    by_time: bool = False  # the trainer ends by time: steps_done may be any number

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        finite = isinstance(self.val_loss, float) and math.isfinite(self.val_loss)
        if self.status == "ok" and not finite:
            raise ValueError(f"status ok needs a finite val_loss, not {self.val_loss!r}")
        if self.status != "ok" and self.val_loss is not None:
            raise ValueError(f"status {self.status} cannot carry a val_loss ({self.val_loss!r})")
        if not self.end_s >= self.start_s:
            raise ValueError(f"ends at {self.end_s!r} s before it starts at {self.start_s!r} s")

    @property
    def final_loss(self) -> float:
        """The val loss of a run that is ok: only there is one."""
        assert self.val_loss is not None, f"{self.run.name} is {self.status}"
        return self.val_loss

    @property
    def trained_ms(self) -> float:
        """The training time of a run that is ok."""
        assert self.train_time_ms is not None, f"{self.run.name} is {self.status}"
        return self.train_time_ms

    @property
    def wall_s(self) -> float:
        return self.end_s - self.start_s

    @cached_property
    def interval(self) -> "Interval":
        return Interval(self.clock, self.start_s, self.end_s, self.nodes)

    def in_words(self, metric: str = "val loss", sign: int = 1) -> str:
        """What became of it, for a person. metric: what it is called; sign: turns it back."""
        if self.val_loss is None:
            return f"{self.status}: {self.reason}"
        return f"{metric} {sign * self.val_loss:.4f}"

    @property
    def has_outcome(self) -> bool:
        """An outcome of the arm, as opposed to something that happened to the run."""
        return self.status in ("ok", "diverged")

    @property
    def final(self) -> bool:
        """Whether a crash would come again: the training ended as it should, and its log was
        refused. Another attempt would train as long and print the same. Of a trainer without a
        summary, the evidence says so."""
        done = self.steps_done == self.run.num_iterations
        again = done or bool(self.evidence)
        return self.status == "crashed" and self.returncode == 0 and again


# ---------------------------------------------------------------------------------------------
# The ledger


class Interval(NamedTuple):
    """Machine time of one attempt, from start_s to end_s on each of its nodes."""

    clock: str  # whose readings start_s and end_s are: a boot of a machine, or "job ..."
    start_s: float  # seconds on that clock, which is never set
    end_s: float
    nodes: int  # of a cluster, that it had to itself; 1 on a machine of one's own

    @property
    def of_a_job(self) -> bool:
        """On a job's own clock, whose readings are compared with no other's."""
        return self.clock.startswith("job ")


def machine_seconds(results: Sequence[RunResult], in_flight: Sequence[Interval] = ()) -> float:
    """Machine time paid for: the union of all attempts' intervals, failed ones included.

    Attempts side by side on one machine are paid once; time between attempts is not paid. A job
    of a cluster has a clock of its own, and each of its nodes is paid for.
    """
    intervals = [*(r.interval for r in results), *in_flight]
    total, covered_clock, covered = 0.0, "", -math.inf
    for clock, start, end, nodes in sorted(intervals):
        if clock != covered_clock:
            covered_clock, covered = clock, -math.inf
        total += nodes * max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return total


def duration(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def spent_of(spent_s: float, budget_hours: float) -> str:
    """Time spent of a budget, for a person."""
    if budget_hours >= 1:
        return f"{spent_s / 3600:.2f} of {budget_hours:g} h"
    return f"{duration(spent_s)} of {duration(3600 * budget_hours)}"


def part_of(part_s: float, budget_hours: float) -> str:
    """A part of what a budget pays for, in its unit."""
    return f"{part_s / 3600:.2f} h" if budget_hours >= 1 else duration(part_s)


# ---------------------------------------------------------------------------------------------
# Records as values


def arm_from(value: dict) -> Arm:
    """The inverse of `asdict`. Raises TypeError, ValueError or KeyError for what is no arm."""
    replacements = tuple(Replacement(**each) for each in listed(value["replacements"]))
    flags = tuple((name, value_from(flag)) for name, flag in map(listed, listed(value["flags"])))
    env = tuple((name, text) for name, text in map(listed, listed(value["env"])))
    arm = Arm(**{**value, "flags": flags, "env": env, "replacements": replacements})
    texts = [arm.name, arm.script, arm.revision, arm.description, arm.label]
    texts += [name for name, _ in flags] + [text for pair in env for text in pair]
    texts += [text for r in replacements for text in (r.file, r.old, r.new)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("an arm has texts as names, variables, scripts and replacements")
    if not is_number(arm.slower):
        raise TypeError(f"slower {arm.slower!r}: give a number")
    return arm


def listed(value) -> Sequence:
    """The same, if it is a list: a text or an object could be taken apart, too."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r:.60}: give a list")
    return value


def value_from(value) -> Value:
    """A flag's value, as JSON has it."""
    if isinstance(value, dict):
        return Repeated(tuple(map(scalar_from, value["values"])))
    return tuple(map(scalar_from, value)) if isinstance(value, list) else scalar_from(value)


def scalar_from(value) -> Scalar:
    if not isinstance(value, str | bool | int) and not is_number(value):
        raise TypeError(f"{value!r}: give a text, a number, true or false")
    return value


def run_from(value: dict) -> RunConfig:
    run = RunConfig(**{**value, "arm": arm_from(value["arm"])})
    numbers = (run.stage, run.index, run.seed, run.num_iterations)
    if not all(type(number) is int and abs(number) < 1 << 63 for number in numbers):
        raise TypeError(f"stage, index, seed, num_iterations {numbers!r}: give whole numbers")
    if run.role not in ROLES:
        raise ValueError(f"role {run.role!r}: none of {', '.join(ROLES)}")
    return run
