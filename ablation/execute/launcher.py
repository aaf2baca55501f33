"""What is asked of a launcher?  The contract between the orchestrator and whoever starts runs.

A `Launcher` starts an attempt and gives back a `Handle` of it. What an attempt has cost is told by
the same module from files alone (`Pricing`), since nobody may have followed it to its end. Two
modules keep the contract: `local`, processes of this machine, and `slurm`, jobs of a cluster.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from ablation.execute import watcher
from ablation.runs.outcome import UNBELIEVED, Exit, exit_from
from ablation.runs.run import Interval
from ablation.runs.store import Attempt


@dataclass(frozen=True)
class Command:
    """What is to be started: one attempt at a run."""

    words: tuple[str, ...]
    env: dict[str, str]  # additions to the orchestrator's environment
    folder: Path  # receives output.log and exit.json; absolute
    cwd: Path | None = None  # where it starts; None: where the orchestrator did
    about: Mapping = field(default_factory=dict)  # what its config.json tells beside it


class CannotStart(OSError):
    """The launcher could not be started: for certain, nothing of the attempt runs or ever will."""


class Handle(Protocol):
    """An attempt that was started. `stop` asks and `poll` tells; neither waits for its end."""

    @property
    def clock(self) -> str:
        """Which clock its machine time is on, as in `Interval`."""

    @property
    def nodes(self) -> int:
        """Of a cluster, that it has to itself: each is paid for. 1 on this machine."""

    @property
    def started(self) -> bool:
        """False while it waits in a queue, where it costs nothing."""

    @property
    def age_s(self) -> float:
        """Seconds since it started; 0 before that, and for one that was started here just now."""

    def stop(self, why: str) -> None:
        """Order it to end, once: `poll` gives the reason back as what ended the run."""

    def poll(self) -> Exit | None:
        """None while it runs, waits, or may still tell how it ended; then how it ended."""


Own = TypeVar("Own", bound=Handle)  # a launcher waits for the handles that it gave


class Launcher(Protocol[Own]):
    """Starts attempts. Each starts from a copy of the watcher, which later edits do not change."""

    @property
    def outlived(self) -> bool:
        """Whether its runs go on when the orchestrator ends."""

    def start(self, command: Command) -> Own:
        """Raises CannotStart, and OSError where nobody knows whether it was started."""

    def find(self, folder: Path) -> Own | None:
        """The attempt of an earlier orchestrator in this folder, where it goes on."""

    def end_of(self, folder: Path) -> Exit | None:
        """How an attempt ended that nobody followed to its end; None where nobody knows."""

    def settle(self, exp_dir: Path) -> None:
        """End what is left below this folder of an earlier orchestrator's attempts, except those
        that `find` then finds. May take seconds. Raises OSError where others may still live."""

    def wait(self, handles: Sequence[Own], timeout_s: float) -> None:
        """Return when one of them ends, where that can be noticed; after timeout_s in any case."""


class Pricing(Protocol):
    """What an attempt costs, from its folder and its config.json.

    What config.json holds is not believed: a field that is missing or of another kind raises
    KeyError, TypeError, ValueError, AttributeError or OverflowError.
    """

    def clock_of(self, attempt: Attempt) -> str:
        """The clock of an attempt that has no handle, and may never have started."""

    def interval_so_far(self, attempt: Attempt, config: Mapping) -> Interval | None:
        """Machine time of an attempt that runs. None: it waits in a queue, or started on another
        machine or before this one's last boot."""

    def machine_interval(self, attempt: Attempt, config: Mapping) -> Interval:
        """Machine time of an attempt whose end nobody recorded, up to the last line of its log: at
        most its limit."""

    def unrecorded(self, folder: Path) -> str:
        """Why nobody recorded the end of an attempt."""


UNRECORDED = "nobody recorded its end: orchestrator and watcher died, or the disk was full"


def exit_of(folder: Path) -> Exit | None:
    """What exit.json in an attempt's folder says; None while there is none. What is an object, but
    no exit, is UNBELIEVED: the attempt is over, and nobody waits for a better one."""
    value = watcher.read_exit(folder)
    return None if value is None else exit_from(value) or UNBELIEVED


def logged_s(began: Path, most_s: float) -> float:
    """Seconds from the file that an attempt began with to the last line of its log, by the file
    system's clock; at least 0 and at most most_s, since that clock may have been set meanwhile."""
    seconds = 0.0
    with contextlib.suppress(OSError):
        log = began.with_name("output.log")
        seconds = os.lstat(log).st_mtime - os.lstat(began).st_mtime
    return max(0.0, min(seconds, most_s))
