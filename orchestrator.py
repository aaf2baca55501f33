"""How are runs carried out so that nothing is lost?  Folders, lock, launches, live lines.

The thin, acting half of the tool: it knows folders, processes and clocks, and nothing of stages
or decisions. An `Orchestrator` starts the attempts it is given, follows their logs, holds them to
their limits, and writes a result for each when it ends. `reconcile` does the same for attempts
that an earlier orchestrator left behind, whatever ended it.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import launchers
from records import (
    Exit,
    Interval,
    LogReader,
    Records,
    RunConfig,
    RunResult,
    attempt_dir,
    duration,
    judge,
    read_json,
    read_log,
    read_records,
    run_from,
    write_json,
    write_result,
)

# ---------------------------------------------------------------------------------------------
# One orchestrator per experiment

HEARTBEAT_S = 10.0
STALE_S = 12 * HEARTBEAT_S  # a lock of another host that nobody touched for so long is stale


class Lock:
    """The right to run an experiment. Made by link(2), which is atomic on shared folders too.

    Raises ValueError when somebody else holds it, naming host and pid. A holder that is gone, or
    on another host and silent for STALE_S, loses it, with a line that says so.
    """

    def __init__(self, exp_dir: Path, say: Callable[[str], None] = print):
        self.path, self.say = exp_dir / "lock.json", say
        self.me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": process_birth(os.getpid()),
        }
        self.touched_s = 0.0

    def __enter__(self) -> "Lock":
        mine = self.path.with_name(f".lock.{self.me['host']}.{self.me['pid']}")
        write_json(mine, self.me)
        try:
            while True:
                try:
                    os.link(mine, self.path)
                    return self
                except FileExistsError:
                    self._take_over(mine)
        finally:
            mine.unlink(missing_ok=True)

    def _take_over(self, mine: Path) -> None:
        try:
            holder = read_json(self.path)
            silent_s = mine.stat().st_mtime - self.path.stat().st_mtime  # one clock: the disk's
        except FileNotFoundError:
            return
        except ValueError:
            holder, silent_s = {}, STALE_S + 1
        who = f"host {holder.get('host')}, pid {holder.get('pid')}"
        if holder.get("host") == self.me["host"]:
            gone = process_birth(holder.get("pid")) != holder.get("born")
        else:
            gone = silent_s > STALE_S
        if not gone:
            raise ValueError(
                f"{self.path.parent} is being run by another orchestrator ({who}); "
                "wait for it, or stop it, then give the same command again"
            )
        aside = self.path.with_name(f".lock.stale.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.rename(self.path, aside)
            try:
                if holder and read_json(aside) != holder:  # somebody was quicker: give it back
                    os.link(aside, self.path)
                    return
            finally:
                aside.unlink()
            self.say(f"Took over the lock of an orchestrator that is gone ({who}).")

    def touch(self) -> None:
        if time.monotonic() - self.touched_s > HEARTBEAT_S:
            with contextlib.suppress(OSError):
                os.utime(self.path)
            self.touched_s = time.monotonic()

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, ValueError):
            if read_json(self.path) == self.me:
                self.path.unlink()


def process_birth(pid) -> float | None:
    """When a process of this host was born; None when there is no such living process."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, TypeError, ValueError):
        return None


# ---------------------------------------------------------------------------------------------
# What an earlier orchestrator left behind


def reconcile(exp_dir: Path, experiment_id: str, say: Callable[[str], None]) -> Records:
    """Give every attempt a record that can be believed, and end what still runs of them."""
    records = read_records(exp_dir, experiment_id)
    for path, why in records.damaged:
        aside = next_free(path, "damaged")
        os.rename(path, aside)
        say(f"Damaged record {path}: {why}; set aside as {aside.name}, the run will be run again.")
        close_attempt(path.parent, experiment_id, f"its record was damaged ({why})")
    for name, attempt, folder in records.open:
        result = close_attempt(folder, experiment_id)
        say(f"Found {name}, attempt {attempt}, without a result: {result.status}. {result.reason}")
    return read_records(exp_dir, experiment_id) if records.damaged or records.open else records


def close_attempt(folder: Path, experiment_id: str, distrust: str = "") -> RunResult:
    """Judge an attempt by what it left; with a reason for distrust, it has to be run again."""
    exit = launchers.settle(folder)
    try:
        config = read_json(folder / "config.json")
        run, attempt = run_from(config["run"]), int(config["attempt"])
        launched = config["launched"]
        clock, start_s = str(launched["clock"]), float(launched["monotonic_s"])
    except (ValueError, KeyError, TypeError) as error:
        aside = next_free(folder / "config.json", "damaged")
        os.rename(folder / "config.json", aside)
        raise ValueError(
            f"{folder}/config.json is damaged ({error}); set aside as {aside.name}: "
            "give the same command again, and the run will be run again"
        ) from None
    if exit is None:
        exit = {
            "returncode": None,
            "ended_by": "the orchestrator and the watcher died",
            "clock": clock,
            "start_s": start_s,
            "end_s": start_s + last_sign_of_life_s(folder),
        }
    if distrust:
        exit |= {"returncode": None, "ended_by": distrust}
        log = LogReader(run.num_iterations)
    else:
        log = read_log(folder / "output.log", run.num_iterations)
    result = judge(run, attempt, log, Exit(**exit))
    write_result(folder, result, experiment_id)
    return result


def last_sign_of_life_s(folder: Path) -> float:
    """Seconds from the launch to the last line of the log, by the file system's clock."""
    with contextlib.suppress(OSError):
        lived = (folder / "output.log").stat().st_mtime - (folder / "config.json").stat().st_mtime
        return max(0.0, lived)
    return 0.0


def next_free(path: Path, word: str) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{word}-{number}")).exists():
        number += 1
    return free


# ---------------------------------------------------------------------------------------------
# Runs in flight


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
    attempt: int
    folder: Path
    process: launchers.LocalRun
    limits: Limits
    log: LogReader
    started_s: float
    slot: int
    heard_s: float = 0.0
    read: int = 0  # bytes of output.log
    stopped: str = ""

    def follow(self, most: int = 1 << 22) -> bool:
        """Read what was logged since; at most so many bytes, so that a flood starves nobody."""
        try:
            with open(self.folder / "output.log", "rb") as file:
                file.seek(self.read)
                data = file.read(most)
        except FileNotFoundError:
            return False
        if data:
            self.read += len(data)
            self.heard_s = time.monotonic()
            self.log.feed(data)
        return bool(data)


@dataclass
class Orchestrator:
    """Carries out runs, `slots` of them side by side."""

    exp_dir: Path
    experiment_id: str
    launcher: launchers.LocalLauncher
    slots: int = 1
    flights: dict[str, Flight] = field(default_factory=dict)

    def free_slot(self) -> int | None:
        taken = {flight.slot for flight in self.flights.values()}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def next_attempt(self, run: RunConfig) -> tuple[Path, int]:
        """The folder of the next attempt at a run, made, and the attempt's number."""
        run_dir = self.exp_dir / run.arm.name / f"run_{run.index}"
        attempt = 1
        while (attempt_dir(run_dir, attempt) / "config.json").exists():
            attempt += 1
        folder = attempt_dir(run_dir, attempt).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder, attempt

    def start(
        self, run: RunConfig, attempt: int, job: launchers.Job, facts: Mapping, limits: Limits
    ) -> None:
        """Launch an attempt, its record written first."""
        slot, now = self.free_slot(), time.monotonic()
        launched = {
            "clock": launchers.boot_clock(),
            "monotonic_s": now,
            "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        record = {"run": asdict(run), "attempt": attempt, "command": job.command, "env": job.env}
        write_json(job.folder / "config.json", {**record, "launched": launched, **facts})
        self.flights[run.name] = Flight(
            run=run,
            attempt=attempt,
            folder=job.folder,
            process=self.launcher.start(job),
            limits=limits,
            log=LogReader(run.num_iterations),
            started_s=now,
            heard_s=now,
            slot=slot,
        )

    def intervals(self) -> list[Interval]:
        """Machine time of the runs in flight so far."""
        clock, now = launchers.boot_clock(), time.monotonic()
        return [(clock, flight.started_s, now) for flight in self.flights.values()]

    def wait(self, timeout_s: float) -> list[RunResult]:
        """Follow the runs in flight for at most timeout_s; results of those that ended."""
        self.launcher.wait([flight.process for flight in self.flights.values()], timeout_s)
        return [result for flight in list(self.flights.values()) if (result := self._look(flight))]

    def _look(self, flight: Flight) -> RunResult | None:
        exit = flight.process.poll()
        flight.follow()
        if exit is None:
            now = time.monotonic()
            if now - flight.started_s > flight.limits.seconds:
                self._stop(flight, flight.limits.why)
            elif now - flight.heard_s > flight.limits.stall_s:
                self._stop(flight, "stall")
            return None
        while flight.follow():
            pass
        result = judge(flight.run, flight.attempt, flight.log.close(), Exit(**exit))
        write_result(flight.folder, result, self.experiment_id)
        del self.flights[flight.run.name]
        return result

    def _stop(self, flight: Flight, why: str) -> None:
        if not flight.stopped:
            flight.stopped = why
            flight.process.stop(why)

    def stop(self, why: str) -> list[RunResult]:
        """End every run in flight and record it."""
        results = []
        for flight in self.flights.values():
            self._stop(flight, why)
        while self.flights:
            results += self.wait(0.2)
        return results


# ---------------------------------------------------------------------------------------------
# Live lines

QUIET_S = 10.0  # between progress lines where output is not a terminal


class Display:
    """Two live lines on a terminal, the run's and the plan's; elsewhere a line now and then."""

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.bars, self.said_s = [], time.monotonic()

    def say(self, text: str = "") -> None:
        """A lasting line, above the live ones."""
        self.clear()
        print(text, file=self.out, flush=True)

    def progress(self, flights: Sequence[Flight], plan: str) -> None:
        lines = [*map(flight_line, flights), plan]
        if self.live:
            self._draw(lines)
        elif time.monotonic() - self.said_s >= QUIET_S:
            self.said_s = time.monotonic()
            print(" | ".join(lines), file=self.out, flush=True)

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
    loss = f"val loss {log.curve[-1][1]:.4f}" if log.curve else "starting"
    elapsed = time.monotonic() - flight.started_s
    left = f", {duration(elapsed / log.step * (total - log.step))} left" if log.step else ""
    width = 20
    bar = ("#" * (width * log.step // total)).ljust(width, ".")
    return f"{flight.run.name} [{bar}] step {log.step}/{total}, {loss}{left}"


def read_in_flight(folder: Path) -> dict:
    """What an attempt without a result has logged so far, for a look from another terminal."""
    try:
        run = run_from(json.loads((folder / "config.json").read_bytes())["run"])
    except (ValueError, KeyError, TypeError, OSError):
        return {}
    log = read_log(folder / "output.log", run.num_iterations)
    return {
        "run": run.name,
        "stage": run.stage,
        "step": log.step,
        "num_iterations": run.num_iterations,
        "val_loss": log.curve[-1][1] if log.curve else None,
    }
