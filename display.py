"""What does a person see while runs train?  Live lines on a terminal, plain ones elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from orchestrator import Flight
from records import duration

QUIET_S = 10.0  # between progress lines where output is not a terminal


class Display:
    """Two live lines on a terminal, the run's and the plan's; elsewhere a line now and then.

    A terminal that is gone (a lost connection, a closed pipe) ends the talking, not the runs.
    """

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.bars, self.said_s = [], time.monotonic()
        with contextlib.suppress(AttributeError):
            self.out.reconfigure(errors="replace")  # not every terminal can show every sign

    def say(self, text: str = "") -> None:
        """A lasting line, above the live ones."""
        self._attempt(lambda: (self.clear(), print(text, file=self.out, flush=True)))

    def progress(self, flights: Sequence[Flight], plan: str) -> None:
        lines = [*map(flight_line, flights), plan]
        if self.live:
            self._attempt(lambda: self._draw(lines))
        elif time.monotonic() - self.said_s >= QUIET_S:
            self.said_s = time.monotonic()
            self.say(" | ".join(lines))

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:
            self.live, self.bars = False, []
            self.out = sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def _draw(self, lines: list[str]) -> None:
        from tqdm import tqdm

        if len(self.bars) != len(lines):
            self.clear()
            look = {"bar_format": "{desc}", "leave": False, "dynamic_ncols": True}
            self.bars = [tqdm(position=n, file=self.out, **look) for n in range(len(lines))]
        for bar, line in zip(self.bars, lines, strict=True):
            bar.set_description_str(line)

    def clear(self) -> None:
        while self.bars:
            self.bars.pop().close()


def flight_line(flight: Flight) -> str:
    """Run, step, val loss, time left; by the rate of training so far."""
    log, total = flight.log, flight.run.num_iterations
    waiting = "starting" if flight.process.begun else "queued"
    loss = f"val loss {log.curve[-1][1]:.4f}" if log.curve else waiting
    elapsed = time.monotonic() - flight.started_s
    left = f", {duration(elapsed / log.step * (total - log.step))} left" if log.step else ""
    width = 20
    bar = ("#" * (width * log.step // total)).ljust(width, ".")
    return f"{flight.run.name} [{bar}] step {log.step}/{total}, {loss}{left}"
