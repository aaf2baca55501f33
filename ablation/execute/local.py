"""How does an attempt start and end on this machine?  The orchestrator's side of its watcher."""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablation.execute import watcher
from ablation.execute.environment import clean
from ablation.execute.launcher import UNRECORDED, CannotStart, Command, exit_of, logged_s
from ablation.execute.watcher import (
    FAILED,
    GRACE_S,
    MARGIN_S,
    MARK,
    ORDER_BYTES,
    ORPHANED,
    UNKILLABLE_S,
    boot_clock,
    command_line,
    kill_marked,
    marked,
    replace_file,
)
from ablation.runs.outcome import Exit
from ablation.runs.run import Interval
from ablation.runs.store import Attempt
from ablation.runs.untrusted import is_number


class LocalHandle:
    """An attempt on this machine."""

    started = True  # nothing queues here
    clock: str  # of this boot of this machine
    nodes = 1
    age_s = 0.0  # none is found again: it was started just now

    def __init__(self, command: Command, program: Path):
        self.folder = command.folder
        self.order: tuple[float, str] | None = None  # when it was ordered to end, and why
        self.done_s: float | None = None  # when exit.json was first seen
        self.gone_s: float | None = None  # when the guard was first seen to have ended
        self.start_s, self.clock = time.monotonic(), boot_clock()
        self.guard = subprocess.Popen(
            [sys.executable, "-I", str(program), str(self.folder), *command.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # never written to: its end of file wakes `wait`
            stderr=subprocess.DEVNULL,
            env={**clean(os.environ), **command.env, MARK: str(self.folder)},
            cwd=command.cwd,
            start_new_session=True,  # the terminal's Ctrl-C is the orchestrator's to handle
        )
        assert self.guard.stdin and self.guard.stdout  # they were asked for
        self.orders, self.lives = self.guard.stdin, self.guard.stdout

    def stop(self, why: str) -> None:
        self.order = self.order or (time.monotonic(), why)
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, or has its order
            self.orders.write(why.encode()[:ORDER_BYTES] + b"\n")
            self.orders.close()

    def poll(self) -> Exit | None:
        """None while it runs, else what exit.json says, the watcher's last act.

        What is left of the run is killed where an order is not answered in time, where guard or
        watcher stay although exit.json is there, and where both are gone and left none. They may
        have been stopped; SIGKILL ends them too.
        """
        now, ended = time.monotonic(), self.guard.poll() is not None
        exit = exit_of(self.folder)  # after that: it may be written just now
        if not ended:
            self.done_s = self.done_s or (now if exit else None)
            is_late = self.order and now - self.order[0] > GRACE_S + 3 * MARGIN_S
            if is_late or (self.done_s and now - self.done_s > MARGIN_S):
                kill_marked(self.folder)
            return None
        self.gone_s = self.gone_s or now
        if exit is None and kill_marked(self.folder) and now - self.gone_s < UNKILLABLE_S:
            return None
        self.lives.close()
        with contextlib.suppress(BrokenPipeError):
            self.orders.close()
        if exit is None:
            why = "itself" if self.guard.returncode < 0 else f"{FAILED} (is the disk full?)"
            why = self.order[1] if self.order else why
            return Exit(None, why, self.clock, self.start_s, now)
        if self.order and exit.ended_by == ORPHANED:  # it was this one's order
            return replace(exit, ended_by=self.order[1])
        return exit


class LocalLauncher:
    """Attempts as processes of this machine."""

    outlived = False  # their watchers end them with the orchestrator

    def __init__(self, code_dir: Path):
        self.program = code_dir.resolve() / Path(watcher.__file__).name
        replace_file(self.program, Path(watcher.__file__).read_bytes())

    def start(self, command: Command) -> LocalHandle:
        """Raises CannotStart, for instance when the Python that runs here is not there any more."""
        try:
            return LocalHandle(command, self.program)
        except OSError as error:
            raise CannotStart(error.errno, error.strerror, error.filename) from None

    def find(self, folder: Path) -> LocalHandle | None:
        """Nothing of an earlier sitting goes on here: its watcher ended it."""
        return None

    def end_of(self, folder: Path) -> Exit | None:
        return exit_of(folder)

    def settle(self, exp_dir: Path) -> None:
        settle(exp_dir)

    def wait(self, handles: Sequence[LocalHandle], timeout_s: float) -> None:
        guards = {h.lives: h.guard for h in handles if not h.lives.closed}
        for pipe in select.select([*guards], [], [], timeout_s)[0]:
            guards[pipe].wait()  # it closed the pipe by exiting


# ---------------------------------------------------------------------------------------------
# What an attempt costs: the time of this machine


def clock_of(attempt: Attempt) -> str:
    return boot_clock()


def interval_so_far(attempt: Attempt, config: Mapping) -> Interval | None:
    launched, now = config["launched"], time.monotonic()
    if launched["clock"] != boot_clock() or not is_number(launched["monotonic_s"]):
        return None
    return Interval(launched["clock"], min(launched["monotonic_s"], now), now, 1)


def machine_interval(attempt: Attempt, config: Mapping) -> Interval:
    """From the launch on; on this boot's clock not beyond now."""
    launched, most_s = config["launched"], float(config["limit_s"])
    clock, start_s = str(launched["clock"]), float(launched["monotonic_s"])
    if clock == boot_clock():
        most_s = min(most_s, time.monotonic() - start_s)
    return Interval(clock, start_s, start_s + logged_s(attempt.folder / "config.json", most_s), 1)


def unrecorded(folder: Path) -> str:
    return UNRECORDED


# ---------------------------------------------------------------------------------------------
# What is left of an earlier orchestrator


def settle(folder: Path, patience_s: float = 2 * GRACE_S) -> None:
    """Make sure that nothing of an earlier orchestrator's runs below this folder lives on.

    Their watchers are given the time to end them and to write exit.json; what is left is killed.
    """
    deadline = time.monotonic() + patience_s
    while any(map(is_watcher, marked(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_marked(folder)


def is_watcher(process: int) -> bool:
    """Whether a process is a guard or a watcher: this one's program runs."""
    return Path(watcher.__file__).name in map(os.path.basename, command_line(process)[:3])


def end_marked(folder: Path) -> None:
    """Kill until nothing is left. Raises OSError that names what cannot be killed."""
    deadline = time.monotonic() + UNKILLABLE_S
    while processes := kill_marked(folder):
        if time.monotonic() > deadline:
            ids = ", ".join(map(str, processes))
            raise OSError(f"processes of runs in {folder} cannot be ended: {ids}")
        time.sleep(0.02)
