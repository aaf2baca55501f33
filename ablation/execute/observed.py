"""What does a preflight see of a machine (`Survey`), and what do short runs tell (`Trials`)?"""

from dataclasses import dataclass

from ablation.runs.run import RunResult
from ablation.study.experiment import Experiment


@dataclass(frozen=True)
class GpuState:
    """One GPU that runs would get, as nvidia-smi tells; None for what it does not tell."""

    name: str
    uuid: str
    total_mib: float | None = None
    used_mib: float | None = None
    clock_mhz: float | None = None
    most_mhz: float | None = None
    celsius: float | None = None
    slowed: tuple[str, ...] = ()  # what holds its clock down, beside its power limit
    others: tuple[str, ...] = ()  # processes that compute on it


@dataclass(frozen=True)
class Disk:
    """Where experiments would lie."""

    place: str
    free_bytes: int
    clock_off_s: float  # of its files' times, against this host's


@dataclass(frozen=True)
class Data:
    """The shards of the runs to come."""

    words: str  # how many, and how large
    checked: str  # how far their contents are known to be right
    damaged: str = ""  # a shard whose contents are not what was recorded
    read_s: float | None = None  # for one step's windows of one process, from the disk


@dataclass(frozen=True)
class Survey:
    """What was seen before any run. A text that ends in `fault` is empty where nothing is wrong."""

    host: str
    processor: str
    busy: float  # cores that others compute on
    gpus: tuple[GpuState, ...] = ()
    gpu_fault: str = ""  # why nothing is known of them
    gpus_counted: bool = True  # false where nobody knows how many there are
    versions: dict[str, str] | None = None
    pinned: dict[str, str] | None = None  # by requirements.txt
    trainer: str = ""  # its files
    has_check: bool = False  # of arguments and data, by itself
    trainer_fault: str = ""
    launcher_fault: str = ""
    data: Data | None = None
    data_fault: str = ""
    disk: Disk | None = None
    disk_fault: str = ""


@dataclass(frozen=True)
class Trials:
    """What the short runs told: several of one arm where runs are packed, in the order of slots."""

    experiment: Experiment  # as they ran: its profile validates half way
    steps: int  # of the baseline; the dearest arm is told to stop after so many
    allowance_s: float
    baseline: tuple[RunResult, ...] = ()
    dearest: tuple[RunResult, ...] = ()
    stop_s: float | None = None  # from the order to the end of the last
    left: int = 0  # processes of theirs that lived on
    grace_s: float = 0.0  # that a stop may take
    ends: tuple[RunResult, ...] = ()  # the baseline on the first GPU alone, and on the last
    gpus: tuple[GpuState, ...] = ()  # while the dearest arm trained
    smaller: int | None = None  # sequences a pass with which it trained, where memory was too small
    iterations_to_come: int = 0  # of all runs of the plan together
    log_bytes: int = 0  # of the baseline's logs
    cache_bytes: int = 0  # of what torch compiled
