"""How are runs carried out so that nothing is lost?  Launched, followed, held to their limits.

The thin, acting half of the tool: it knows folders, launchers and clocks, and nothing of stages or
decisions. An `Orchestrator` starts the attempts it is given, follows their logs, holds them to
their limits, and writes a result for each when it ends.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ablation.execute import watcher
from ablation.execute.closing import believed, close_attempt, pricing_of
from ablation.execute.launcher import CannotStart, Handle, Job, Launcher
from ablation.runs.log import LogReader
from ablation.runs.outcome import UNBELIEVED, Exit, judge_attempt
from ablation.runs.run import Interval, RunConfig, RunResult
from ablation.runs.store import (
    MOST_ATTEMPTS,
    Attempt,
    attempt_dir,
    is_used,
    read_config,
    refuse_links,
    write_json,
    write_result,
)
from ablation.runs.untrusted import is_number


@dataclass(frozen=True)
class Limits:
    """When a run is stopped, and how that is recorded."""

    seconds: float
    why: str  # "timeout", or "the budget is spent"
    stall_s: float  # without a byte of output


@dataclass
class Flight:
    """An attempt that is running."""

    run: RunConfig
    attempt: Attempt
    handle: Handle
    limits: Limits
    log: LogReader
    launched_s: float  # when the orchestrator began to start it
    started_s: float
    slot: int
    last_output_s: float = 0.0
    read: int = 0  # bytes of output.log
    stopped: str = ""

    def follow(self, most: int = 1 << 22) -> bool:
        """Read what was logged since; at most so many bytes, so that a flood starves nobody."""
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
    parallel_runs: int = 1
    flights: dict[str, Flight] = field(default_factory=dict)

    def free_slot(self) -> int | None:
        taken = {flight.slot for flight in self.flights.values()}
        return next((slot for slot in range(self.parallel_runs) if slot not in taken), None)

    def next_attempt(self, run: RunConfig) -> Attempt:
        """The next attempt at a run, its folder made: never one in which anything lies. Raises
        ValueError where the folder would be elsewhere."""
        run_dir = self.exp_dir / run.name
        refuse_links(self.exp_dir, run_dir)
        number = 1
        while is_used(attempt_dir(run_dir, number)):
            number += 1
        if number > MOST_ATTEMPTS:
            raise ValueError(f"{run_dir} holds {MOST_ATTEMPTS} attempts: that cannot be meant")
        folder = attempt_dir(run_dir, number).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return Attempt(run.name, number, folder)

    def start(
        self, run: RunConfig, attempt: Attempt, job: Job, facts: Mapping, limits: Limits
    ) -> RunResult | None:
        """Launch an attempt, its record written first.

        None, and it is in flight; or its result, where the launcher could not be started at all.
        """
        now = time.monotonic()
        launched = {
            "clock": watcher.boot_clock(),
            "monotonic_s": now,
            "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        record = {"run": asdict(run), "attempt": attempt.number}
        record |= {"command": job.command, "env": job.env}
        record |= {"limit_s": limits.seconds, "limit_why": limits.why, "launched": launched}
        record |= facts
        write_json(job.folder / "config.json", record)
        try:
            handle = self.launcher.start(job)
        except CannotStart as error:
            why, now = f"{watcher.CANNOT_START}: {error}", time.monotonic()
            clock = pricing_of(record).clock_of(attempt)
            exit = Exit(None, why, clock, now, now)  # no time was paid
            watcher.write_whole(job.folder / "exit.json", asdict(exit))
            return close_attempt(attempt, self.experiment_id, exit)
        self._follow(run, attempt, handle, limits, now)
        return None

    def reattach(self, open_attempts: Sequence[Attempt], stall_s: float) -> list[RunResult]:
        """Follow the runs of an earlier sitting that went on without it; results of those that
        ended just now."""
        ended = []
        for attempt in open_attempts:
            run, config = read_config(attempt)
            attempt = attempt._replace(folder=attempt.folder.resolve())
            handle = self.launcher.find(attempt.folder)
            if handle is None:
                end = self.launcher.end_of(attempt.folder)
                ended.append(close_attempt(attempt, self.experiment_id, end))
                continue
            limit_s = config.get("limit_s")
            if not is_number(limit_s):
                raise ValueError(f"{attempt.folder}/config.json: limit_s {limit_s!r}")
            limits = Limits(limit_s, str(config.get("limit_why")), stall_s)
            begun_s = time.monotonic() - handle.age_s
            self._follow(run, attempt, handle, limits, begun_s)
        return ended

    def _follow(self, run, attempt, handle, limits: Limits, launched_s: float) -> None:
        now = time.monotonic()
        self.flights[run.name] = Flight(
            run,
            attempt,
            handle,
            limits,
            log=LogReader(run.num_iterations),
            launched_s=launched_s,
            started_s=now - handle.age_s,
            slot=self.free_slot() or 0,
            last_output_s=now,
        )

    def intervals(self) -> list[Interval]:
        """Machine time of the runs in flight so far."""
        begun, now = (f for f in self.flights.values() if f.handle.started), time.monotonic()
        return [Interval(f.handle.clock, f.started_s, now, f.handle.nodes) for f in begun]

    def paid_so_far(self) -> list[tuple[RunConfig, float]]:
        """Each run in flight with its machine time, seconds; 0 for one that waits in a queue."""
        paid = {name: f.handle.started * f.handle.nodes for name, f in self.flights.items()}
        now = time.monotonic()
        return [(f.run, paid[name] * (now - f.started_s)) for name, f in self.flights.items()]

    def wait(self, timeout_s: float) -> list[RunResult]:
        """Follow the runs in flight for at most timeout_s; results of those that ended."""
        self.launcher.wait([flight.handle for flight in self.flights.values()], timeout_s)
        return [result for flight in list(self.flights.values()) if (result := self._look(flight))]

    def _look(self, flight: Flight) -> RunResult | None:
        exit = flight.handle.poll()
        flight.follow()
        if exit is None:
            now = time.monotonic()
            if not flight.handle.started:  # queued: neither running nor silent
                flight.started_s = flight.last_output_s = now
            if now - flight.started_s > flight.limits.seconds:
                self._stop(flight, flight.limits.why)
            elif now - flight.last_output_s > flight.limits.stall_s:
                self._stop(flight, "stall")
            return None
        while flight.follow():
            pass
        handle, now = flight.handle, time.monotonic()
        latest = Interval(handle.clock, flight.launched_s, now, handle.nodes)
        exit = believed(exit, latest) or Exit(None, UNBELIEVED.ended_by, *latest)
        log = flight.log.close()
        folder = flight.attempt.folder
        result = judge_attempt(flight.run, flight.attempt.number, folder, log, exit)
        write_result(folder, result, self.experiment_id)
        del self.flights[flight.run.name]
        return result

    def _stop(self, flight: Flight, why: str) -> None:
        if not flight.stopped:
            flight.stopped = why
            flight.handle.stop(why)

    def order_stop(self, why: str) -> None:
        for flight in self.flights.values():
            self._stop(flight, why)

    def leave(self, why: str) -> None:
        """Tell why to the runs that end when this process does."""
        if not self.launcher.outlived:
            self.order_stop(why)

    def stop(self, why: str) -> list[RunResult]:
        """End every run in flight and record it."""
        results = []
        self.order_stop(why)
        while self.flights:
            results += self.wait(0.2)
        return results
