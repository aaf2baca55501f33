"""A table of measurements that is filled line by line, in order of worth, until the time is up.

Each row of it runs in processes of its own: one that fails, hangs or breaks its GPU is a line, and
the next one goes on. Which rows there are, and what they share, says who measures: gpu_check.py.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self, TextIO


@dataclass(frozen=True)
class Line:
    what: str
    measured: str
    wanted: str = ""
    met: bool | None = None  # None: nothing is wanted of this machine
    failed: bool = False  # nothing was measured, though it could have been

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "missed"}[self.met]
        return f"| {self.what} | {self.measured} | {self.wanted} | {verdict} |"


HEAD = "| what | measured | wanted | |\n|---|---|---|---|"


def print_to(file: TextIO, line: object) -> None:
    """On the screen and in a file, where it stays whatever happens next."""
    print(line, flush=True)
    print(line, file=file, flush=True)
    os.fsync(file.fileno())


class Shared(Protocol):
    """What all measurements get."""

    cards: int

    def begin(self) -> None:
        """What each process does first."""

    def smaller(self) -> Self | None:
        """The same in less memory; None where there is no less."""


@dataclass(frozen=True)
class Row:
    """A measurement: a function that yields a line as soon as it has one."""

    name: str
    function: Callable[[Shared], Iterator[Line]]
    takes_s: float  # an estimate
    cards: int = 1  # at least


GRACE_S = 40.0  # torchrun takes up to 30 to end its workers


def measure(
    rows: Sequence[Row], shared: Shared, minutes: float, say: Callable[[Line], None]
) -> bool:
    """Whether everything was measured that so many cards can show. Starts what still fits into the
    time left by its estimate, and cuts it off where the estimate was wrong."""
    deadline, waiting, complete = time.monotonic() + 60 * minutes, list(rows), True
    while waiting:
        row, left_s = waiting.pop(0), deadline - time.monotonic()
        if row.cards > shared.cards:
            say(Line(row.name, f"not here: needs {row.cards} cards"))
        elif row.takes_s > left_s:
            complete = False
            how_long = f"takes about {row.takes_s:.0f} s, {max(0, left_s):.0f} are left"
            say(Line(row.name, f"not started: {how_long}"))
        else:
            for last in lines_of(row, shared, left_s):
                say(last)
            less = shared.smaller() if "out of memory" in last.measured else None
            if last.failed and less:
                shared, waiting = less, [row, *waiting]
            elif last.failed:
                complete = False
    return complete


def lines_of(row: Row, shared: Shared, left_s: float) -> Iterator[Line]:
    """What a measurement says, as soon as it says it, and last, if it did not go through, why."""
    context, deadline = multiprocessing.get_context("spawn"), time.monotonic() + left_s
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(row, shared, sender))
    child.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            yield receiver.recv()
        yield Line(row.name, "cut off: the time is up", failed=True)
    except EOFError:  # it closed its end
        child.join(GRACE_S)
        if child.exitcode != 0:
            yield Line(row.name, f"failed: its process ended with {child.exitcode}", failed=True)
    finally:
        stop(child)


def stop(child: multiprocessing.Process) -> None:
    """And what it started; kindly, because torchrun ends its workers only if it is asked."""
    if child.is_alive():
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(child.pid, signal.SIGTERM)
        child.join(GRACE_S)
        child.kill()


def work(row: Row, shared: Shared, sender) -> None:
    """In the child."""
    os.setsid()
    try:
        shared.begin()
        for line in row.function(shared):
            sender.send(line)
    except Exception as error:
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
        said = said if len(said) < 1000 else f"{said[:200]} ... {said[-800:]}"
        sender.send(Line(row.name, f"failed: {said}", failed=True))
