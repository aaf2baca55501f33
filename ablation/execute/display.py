"""What does a person see while runs train?  Live lines on a terminal, plain ones elsewhere.

Whatever happens to the screen happens to the talking alone. Live lines that fail give way to plain
ones; a stream that takes nothing more (a lost connection, a closed pipe) ends the talking; one that
is full for now (a terminal held by Ctrl-S, a reader that sleeps) gets the lasting lines later.
"""

import atexit
import os
import select
import sys
import time
from collections import deque
from collections.abc import Sequence

from ablation.cli import console
from ablation.cli.progress import tqdm_as_shipped
from ablation.execute.orchestrator import Flight
from ablation.runs.run import duration

QUIET_S = 10.0  # between progress lines where output is not a terminal; chosen
SMALLEST = (20, 4)  # columns and lines of a terminal that live lines fit in; chosen


class Display:
    """Two live lines on a terminal, the run's and the plan's; elsewhere a line now and then."""

    def __init__(self, out=None) -> None:
        self.out = console.underlying(sys.stdout) if out is None else out  # None: it is closed
        console.write_plainly(self.out)
        self.live = can_move_its_cursor(self.out)
        self.bars: list = []  # of tqdm's
        self.printed_s = time.monotonic()
        self.unprinted: deque[str] = deque()
        atexit.register(self._print_the_rest)

    def print_line(self, text: str = "") -> None:
        """A lasting line, above the live ones; or several. A path in it may hold anything."""
        self.clear()
        self.unprinted.append("".join(c if c.isprintable() or c == "\n" else " " for c in text))
        while self.unprinted and takes_more(self.out):
            self._print(self.unprinted.popleft())

    def progress(self, flights: Sequence[Flight], plan: str) -> None:
        if not takes_more(self.out):
            return
        lines = [*map(flight_line, flights), plan]
        if self.live and has_room(self.out):
            self._draw(lines)
        elif time.monotonic() - self.printed_s >= QUIET_S:
            self.printed_s = time.monotonic()
            self.print_line(" | ".join(lines))

    def clear(self) -> None:
        try:
            while self.bars:
                self.bars.pop().close()
        except Exception:  # as in _draw
            self.live, self.bars = False, []

    def _print(self, text: str) -> None:
        if self.out is None:
            return
        try:
            print(text, file=self.out, flush=True)
        except UnicodeError:  # a stream of somebody's own, which could not be told how to
            self._print(text.encode("ascii", "plain_signs").decode())
        except Exception:  # gone, closed, full, no stream at all: as in _draw
            console.silence(self.out)
            self.live, self.out = False, None

    def _print_the_rest(self) -> None:
        while self.unprinted:
            self._print(self.unprinted.popleft())

    def _draw(self, lines: list[str]) -> None:
        try:
            if len(self.bars) != len(lines):
                self.clear()
                tqdm = tqdm_as_shipped()
                look = {"bar_format": "{desc}", "leave": False, "dynamic_ncols": True}
                look |= {"disable": False, "file": self.out}
                self.bars = [tqdm(position=n, **look) for n in range(len(lines))]
            for bar, line in zip(self.bars, lines, strict=True):
                bar.set_description_str(line)
        except Exception:  # a library and a terminal: any kind; a run in flight matters more
            self.live, self.bars = False, []


def can_move_its_cursor(out) -> bool:
    try:
        return out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except (AttributeError, OSError, ValueError):  # no stream of Python's own, or closed
        return False


def has_room(out) -> bool:
    """A terminal may say that it has no columns or lines at all, and can be resized at any time."""
    try:
        size = os.get_terminal_size(out.fileno())
    except (AttributeError, OSError, ValueError):
        return False
    return all(has >= needed for has, needed in zip(size, SMALLEST, strict=True))


def takes_more(out) -> bool:
    """Can be written to without waiting, as far as can be told."""
    try:
        return bool(select.select([], [out.fileno()], [], 0)[1])
    except (AttributeError, OSError, ValueError):  # no file: then writing tells
        return True


def flight_line(flight: Flight) -> str:
    """Run, step, val loss, time left; by the rate of training so far."""
    log, total, reading = flight.log, flight.run.num_iterations, flight.log.reading
    waiting = "starting" if flight.handle.started else "queued"
    called = reading.metric.replace("_", " ")
    loss = f"{called} {reading.sign * log.curve[-1][1]:.4f}" if log.curve else waiting
    elapsed, of_all, left = time.monotonic() - flight.started_s, f"/{total}", ""
    share = log.step / total
    if not reading.counts_steps:  # it ends by time
        share, of_all, left = elapsed / total, "", f", {duration(max(0.0, total - elapsed))} left"
    elif log.step:
        left = f", {duration(elapsed / log.step * (total - log.step))} left"
    width = 20
    bar = ("#" * int(width * min(1.0, share))).ljust(width, ".")
    return f"{flight.run.name} [{bar}] step {log.step}{of_all}, {loss}{left}"
