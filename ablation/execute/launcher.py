"""What does a launcher start, and how does it tell the end?  The words that launchers share."""

from dataclasses import dataclass
from pathlib import Path

from ablation.execute import watcher
from ablation.runs.outcome import UNBELIEVED, Exit, exit_from


@dataclass(frozen=True)
class Job:
    """One attempt at a run, as a command."""

    command: tuple[str, ...]
    env: dict[str, str]  # additions to the orchestrator's environment
    folder: Path  # receives output.log and exit.json; absolute


class CannotStart(OSError):
    """The launcher could not be started: for certain, nothing of the attempt runs or ever will."""


def exit_of(folder: Path) -> Exit | None:
    """What exit.json in an attempt's folder says; None while there is none. What is an object, but
    no exit, is UNBELIEVED: the attempt is over, and nobody waits for a better one."""
    value = watcher.read_exit(folder)
    return None if value is None else exit_from(value) or UNBELIEVED
