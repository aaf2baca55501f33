"""What is fixed before the first run?  With the results on disk it determines every next step."""

from dataclasses import dataclass, field

from ablation.runs.run import Arm
from ablation.study.profiles import Profile


@dataclass(frozen=True)
class Override:
    """Something decided against, or instead of, a rule: by a person, or because the machine broke.
    Kept in overrides.json."""

    kind: str  # "ignore_gate", "by_hand", "budget" or "retry"
    stage: int
    value: dict = field(default_factory=dict)
    when: str = ""


@dataclass(frozen=True)
class Share:
    """The part of a machine that a run gets. Registered: losses do not depend on it, but costs,
    times and when looks are taken do."""

    device: str  # "cuda" or "cpu"
    processes: int = 1  # of one run; on GPUs one each, on a CPU one a node
    parallel_runs: int = 1  # at most so many at a time
    nodes: int = 1  # of one run, on Slurm
    launcher: str = "local"  # or "slurm"
    cores: int = 1  # processor cores of the machine: the plan asks no machine

    @property
    def paid_each(self) -> bool:
        """A job of a cluster is paid for whatever runs beside it; a machine is paid for once."""
        return self.launcher == "slurm"


@dataclass(frozen=True)
class Experiment:
    """What was asked. Together with the results on disk it determines every next step."""

    profile: Profile
    plan: str  # a key of PLANS
    budget_hours: float
    full_iterations: int
    validation_runs: int | None  # most pairs in stage 4; None: the plan's own number
    share: Share  # of a machine, for a run
    arms: tuple[Arm, ...] = ()  # plan "manual" only
    seeds: tuple[int, ...] = ()  # plan "manual" only
    overrides: tuple[Override, ...] = ()
    stop_on: str = "any"  # plan "adaptive": "superiority" leaves equivalence stops out; forecasts
    # assume "never"
    unet_skips: bool = False  # in every arm, the baseline too
    log_grad_norms: bool = False  # of every run, at each validation

    @property
    def forgiven(self) -> frozenset[tuple[str, int]]:
        """(run, attempt) of crashes that were the machine's: paid for, not held against runs."""
        faults = [o.value["attempts"] for o in self.overrides if o.kind == "retry"]
        return frozenset((name, attempt) for fault in faults for name, attempt in fault)

    def iterations(self, fraction: float) -> int:
        return max(1, round(self.full_iterations * fraction))

    def budget_at(self, pairs: int) -> float:
        """The budget in force when so many pairs of stage 4 were complete, in hours. What a look
        was taken under does not change with a budget that is given later."""
        for o in self.overrides:
            if o.kind == "budget" and pairs <= o.value["pairs"]:
                return o.value["was"]
        return self.budget_hours

    def overridden(self, stage: int, kind: str) -> Override | None:
        """The latest override of this kind for this stage."""
        found = [o for o in self.overrides if (o.kind, o.stage) == (kind, stage)]
        return found[-1] if found else None


def seed_of(stage: int, number: int) -> int:
    """Each stage has seeds of its own: what selected an arm never also confirms it."""
    return 1000 * stage + number
