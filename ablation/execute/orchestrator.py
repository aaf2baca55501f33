"""How are runs carried out so that nothing is lost?  Launched, followed, held to their limits.

The thin, acting half of the tool: it knows folders, launchers and clocks, and nothing of stages or
decisions. An `Orchestrator` starts the attempts it is given, follows their logs, holds them to
their limits, and writes a result for each when it ends.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablation.execute import watcher
from ablation.execute.closing import believed, close_attempt, close_unstarted
from ablation.execute.launcher import CannotStart, Command, Handle, Launcher
from ablation.runs.formats import OURS, Reading
from ablation.runs.log import reader_of
from ablation.runs.outcome import UNBELIEVED, Exit, judge_attempt
from ablation.runs.printed import Printed
from ablation.runs.run import Interval, RunConfig, RunResult, machine_seconds
from ablation.runs.store import Attempt, next_attempt, read_config, write_json, write_result
from ablation.runs.untrusted import is_number


@dataclass(frozen=True)
class Limits:
    """When a run is stopped, and how that is recorded."""

    seconds: float  # since it started
    why: str  # "timeout", or "the budget is spent"
    stall_s: float  # without a sign of life in its output


@dataclass
class Flight:
    """An attempt in flight: it runs, or waits in a queue. Times are of this machine's monotonic
    clock, in seconds."""

    run: RunConfig
    attempt: Attempt
    handle: Handle
    limits: Limits
    log: Printed
    launched_s: float  # when the orchestrator began to start it
    started_s: float  # when it started; of one that waits in a queue, when it was last looked at
    slot: int  # the share of the machine that it has to itself, from 0
    last_output_s: float
    read: int = 0  # bytes of output.log
    stopped: str = ""  # why it was ordered to end

    @property
    def interval(self) -> Interval:
        """Its machine time so far."""
        return Interval(self.handle.clock, self.started_s, time.monotonic(), self.handle.nodes)

    def follow(self, most: int = 1 << 22) -> bool:
        """Whether anything was logged since the last time; what was is read, at most so many bytes
        (chosen), so that a flood starves nobody."""
        try:
            with open(self.attempt.folder / "output.log", "rb", opener=watcher.no_link) as file:
                file.seek(self.read)
                data = file.read(most)
        except OSError:  # not there yet, or something else in its place
            return False
        if data:
            self.read += len(data)
            alive = self.log.signs_of_life
            self.log.feed(data)
            if self.log.signs_of_life > alive:
                self.last_output_s = time.monotonic()
        return bool(data)


@dataclass
class Orchestrator:
    """Carries out runs, at most `parallel_runs` of them at a time, each in a slot of its own."""

    exp_dir: Path
    experiment_id: str
    launcher: Launcher
    command_of: Callable[[RunConfig, Path, int], Command]  # for an attempt's folder, and its slot
    facts: Mapping  # what every config.json tells beside its run
    parallel_runs: int = 1
    reading: Reading = OURS  # how the logs are read
    flights: dict[str, Flight] = field(default_factory=dict)

    def free_slot(self) -> int | None:
        taken = {flight.slot for flight in self.flights.values()}
        return next((slot for slot in range(self.parallel_runs) if slot not in taken), None)

    def launch(self, run: RunConfig, limits: Limits) -> list[RunResult]:
        """Start the next attempt at a run, its record written first: then it is in flight. Its
        result, where it could not be started at all."""
        slot = self.free_slot()
        assert slot is not None, "all slots are taken"
        attempt, now = next_attempt(self.exp_dir, run), time.monotonic()
        command = self.command_of(run, attempt.folder, slot)
        launched = {"clock": watcher.boot_clock(), "monotonic_s": now, "utc": utc_now()}
        config = {
            "run": asdict(run),
            "attempt": attempt.number,
            "command": command.words,
            "env": command.env,
            "limit_s": limits.seconds,
            "limit_why": limits.why,
            "launched": launched,
            **self.facts,
            **command.about,
        }
        write_json(attempt.folder / "config.json", config)
        try:
            handle = self.launcher.start(command)
        except CannotStart as error:
            return [close_unstarted(attempt, self.experiment_id, str(error), self.reading)]
        self._follow(run, attempt, handle, limits, now)
        return []

    def reattach(self, open_attempts: Sequence[Attempt], stall_s: float) -> list[RunResult]:
        """Follow the attempts of an earlier sitting that went on without it; results of those that
        have ended meanwhile."""
        ended = []
        for attempt in open_attempts:
            run, config = read_config(attempt)
            attempt = attempt._replace(folder=attempt.folder.resolve())
            handle = self.launcher.find(attempt.folder)
            if handle is None:
                end = self.launcher.end_of(attempt.folder)
                ended.append(close_attempt(attempt, self.experiment_id, end, self.reading))
                continue
            limit_s: Any = config.get("limit_s")  # whatever the file holds
            if not is_number(limit_s):
                raise ValueError(f"{attempt.folder}/config.json: limit_s {limit_s!r}")
            limits = Limits(limit_s, str(config.get("limit_why")), stall_s)
            self._follow(run, attempt, handle, limits, time.monotonic() - handle.age_s)
        return ended

    def _follow(
        self, run: RunConfig, attempt: Attempt, handle: Handle, limits: Limits, launched_s: float
    ) -> None:
        now = time.monotonic()
        self.flights[run.name] = Flight(
            run,
            attempt,
            handle,
            limits,
            log=reader_of(run.num_iterations, self.reading),
            launched_s=launched_s,
            started_s=now - handle.age_s,
            slot=self.free_slot() or 0,
            last_output_s=now,
        )

    def intervals(self) -> list[Interval]:
        """Machine time of the runs in flight so far."""
        return [flight.interval for flight in self.flights.values() if flight.handle.started]

    def paid_so_far(self) -> list[tuple[RunConfig, float]]:
        """Each run in flight with its machine time, seconds; 0 for one that waits in a queue."""
        flights = self.flights.values()
        return [(f.run, f.handle.started * machine_seconds((), [f.interval])) for f in flights]

    def wait(self, timeout_s: float) -> list[RunResult]:
        """Follow the runs in flight for at most timeout_s; results of those that ended."""
        flights = list(self.flights.values())
        self.launcher.wait([flight.handle for flight in flights], timeout_s)
        return [result for flight in flights if (result := self._follow_up(flight))]

    def _follow_up(self, flight: Flight) -> RunResult | None:
        """The result of a run that has ended; one that goes on is held to its limits."""
        exit = flight.handle.poll()
        flight.follow()
        if exit is not None:
            return self._record(flight, exit)
        now = time.monotonic()
        if not flight.handle.started:  # queued: neither running nor silent
            flight.started_s = flight.last_output_s = now
        if now - flight.started_s > flight.limits.seconds:
            self._stop(flight, flight.limits.why)
        elif now - flight.last_output_s > flight.limits.stall_s:
            self._stop(flight, "stall")
        return None

    def _record(self, flight: Flight, exit: Exit) -> RunResult:
        """Judge a run in flight that has ended, and write its result."""
        while flight.follow():
            pass
        within = flight.interval._replace(start_s=flight.launched_s)
        exit = believed(exit, within) or Exit(None, UNBELIEVED.ended_by, *within)
        log, folder = flight.log.close(), flight.attempt.folder
        result = judge_attempt(flight.run, flight.attempt.number, folder, log, exit)
        write_result(folder, result, self.experiment_id)
        del self.flights[flight.run.name]
        return result

    def _stop(self, flight: Flight, why: str) -> None:
        if not flight.stopped:
            flight.stopped = why
            flight.handle.stop(why)

    def order_stop(self, why: str) -> None:
        """Order every run in flight to end; `wait` tells when it has."""
        for flight in self.flights.values():
            self._stop(flight, why)

    def leave(self, why: str) -> None:
        """Give the runs that end with this process its own reason for ending."""
        if not self.launcher.outlived:
            self.order_stop(why)

    def stop(self, why: str) -> list[RunResult]:
        """End every run in flight and record it."""
        results = []
        self.order_stop(why)
        while self.flights:
            results += self.wait(0.2)
        return results


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
