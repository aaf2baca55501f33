"""How are runs carried out so that nothing is lost?  Folders, lock, launches, live lines.

The thin, acting half of the tool: it knows folders, processes and clocks, and nothing of stages
or decisions. An `Orchestrator` starts the attempts it is given, follows their logs, holds them to
their limits, and writes a result for each when it ends. `reconcile` does the same for attempts
that an earlier orchestrator left behind, whatever ended it.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import launchers
import slurm
from records import (
    Exit,
    Interval,
    LogReader,
    Records,
    RunConfig,
    RunResult,
    attempt_dir,
    attempt_dirs,
    exit_from,
    judge,
    printable,
    read_config,
    read_json,
    read_log,
    read_records,
    write_json,
    write_result,
)

Launcher = launchers.LocalLauncher | slurm.SlurmLauncher

# ---------------------------------------------------------------------------------------------
# One orchestrator per experiment

HEARTBEAT_S = 10.0
STALE_S = 12 * HEARTBEAT_S  # a lock of another host that nobody touched for so long is stale


class Lock:
    """The right to run an experiment. Made by link(2), which is atomic on shared folders too.

    Raises ValueError when somebody else holds it, naming host and pid. A holder that is gone, or
    out of sight (another host, another container) and silent for STALE_S, loses it, with a line
    that says so.
    """

    def __init__(self, exp_dir: Path, say: Callable[[str], None] = print):
        self.path, self.say = exp_dir / "lock.json", say
        pid = os.getpid()
        self.me = {"host": socket.gethostname(), "pid": pid, "born": process_birth(pid), **sight()}
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
        """Remove a stale lock. Of several that try, one at a time looks and removes."""
        with open(self.path.with_name(".lock.guard"), "wb") as guard:
            with contextlib.suppress(OSError):  # a file system without flock: microseconds of risk
                fcntl.flock(guard, fcntl.LOCK_EX)
            try:
                who, lives = holder(self.path, mine.stat().st_mtime)  # the disk's clock
            except FileNotFoundError:
                return
            if lives:
                raise ValueError(
                    f"{self.path.parent} is being run by another orchestrator ({who}); "
                    "wait for it, or stop it, then give the same command again"
                )
            self.path.unlink()
            self.say(f"Took over the lock of an orchestrator that is gone ({who}).")

    def touch(self) -> None:
        """Show that the holder lives. Raises ValueError when it no longer holds the lock."""
        if time.monotonic() - self.touched_s < HEARTBEAT_S:
            return
        with contextlib.suppress(OSError):
            os.utime(self.path)
        self.touched_s = time.monotonic()
        try:
            mine = read_json(self.path) == self.me
        except (OSError, ValueError):
            mine = False
        if not mine:
            raise ValueError(
                f"{self.path} is no longer this orchestrator's: the folder was moved or removed,"
                " or another one took over; --status tells where it stands"
            )

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, ValueError):
            if read_json(self.path) == self.me:
                self.path.unlink()


def holder(lock: Path, now: float) -> tuple[str, bool]:
    """(host and pid of the lock's holder, whether it lives). `now` is a time of the disk's clock.

    Raises FileNotFoundError when nobody holds it.
    """
    silent_s = now - lock.stat().st_mtime
    try:
        found = read_json(lock)
    except ValueError:
        return "unreadable", False
    here = {"host": socket.gethostname(), **sight()}
    if all(found.get(name) == value for name, value in here.items()):
        lives = process_birth(found.get("pid")) == found.get("born", "never")
    elif found.get("host") == here["host"] and found.get("boot") != here["boot"]:
        lives = False  # this machine was started anew since
    else:
        lives = silent_s <= STALE_S
    return printable(f"host {found.get('host')}, pid {found.get('pid')}"), lives


def sight() -> dict[str, str]:
    """Who sees the same processes under the same numbers: one boot, one namespace of processes."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"boot": launchers.boot_clock(), "namespace": namespace}


def process_birth(pid) -> float | None:
    """When a process was born, by a clock that is never set; None when no such process lives."""
    import psutil

    try:
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else int(fields[19])  # ticks since boot
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, OSError, TypeError, ValueError):
        return None


# ---------------------------------------------------------------------------------------------
# What an earlier orchestrator left behind


def reconcile(
    exp_dir: Path, experiment_id: str, launcher: Launcher, say: Callable[[str], None]
) -> Records:
    """End what still runs of earlier sittings, and give every attempt a record to be believed.

    What goes on elsewhere without us (a job in a queue) stays open, for `Orchestrator.adopt`.

    A file that cannot be believed is set aside under another name, with a line. The attempt is
    then closed as interrupted, its time paid for, and the plan asks for the run again.
    """
    launcher.settle(exp_dir.resolve())
    records = read_records(exp_dir, experiment_id)
    distrust = {}
    for path, why in records.damaged:
        aside = next_free(path, "damaged")
        os.rename(path, aside)
        say(f"Damaged record {path}: {why}; set aside as {aside.name}, the run will be run again.")
        distrust[path.parent] = f"its record was damaged ({why})"
    for name, attempt, folder in attempt_dirs(exp_dir) if distrust or records.open else ():
        if (folder / "result.json").exists() or launcher.find(folder.resolve()):
            continue
        try:
            result = close_attempt(folder, name, attempt, experiment_id, distrust.get(folder, ""))
        except (ValueError, FileNotFoundError) as error:
            aside = next_free(folder / "config.json", "damaged")
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder / "config.json", aside)
            say(
                f"Damaged record {folder}/config.json: {error}; set aside as {aside.name}."
                " What this attempt cost is not known any more."
            )
            continue
        if folder not in distrust:
            say(f"Found {name}, attempt {attempt}, without a result: {outcome(result)}")
    return read_records(exp_dir, experiment_id) if distrust or records.open else records


def outcome(r: RunResult) -> str:
    return f"val loss {r.val_loss:.4f}" if r.status == "ok" else f"{r.status}: {r.reason}"


def close_attempt(
    folder: Path, name: str, attempt: int, experiment_id: str, distrust: str
) -> RunResult:
    """Judge an attempt by what it left; with a reason for distrust, it has to be run again.

    Raises ValueError when config.json cannot be believed.
    """
    run, config = read_config(folder, name, attempt)
    exit = exit_from(launchers.read_exit(folder))
    if exit is None:
        try:
            interval = lived(folder, name, attempt, config)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it does not say when the attempt began ({error!r})") from None
        exit = Exit(None, "the orchestrator and the watcher died", *interval)
    if distrust:
        exit = replace(exit, returncode=None, ended_by=distrust)
        log = LogReader(run.num_iterations)
    else:
        log = read_log(folder / "output.log", run.num_iterations)
    result = judge(run, attempt, log, exit)
    write_result(folder, result, experiment_id)
    return result


def lived(folder: Path, name: str, attempt: int, config: Mapping) -> Interval:
    """From the launch to the last line of the log, by the file system's clock. A job begins when it
    claims the attempt.

    Somebody may have set that clock meanwhile: not beyond the attempt's limit, nor beyond now.
    """
    launched, most_s = config["launched"], float(config["limit_s"])
    clock, start_s = str(launched["clock"]), float(launched["monotonic_s"])
    begun, nodes = folder / "config.json", 1
    if launched_on(config) == "slurm":
        clock, start_s, nodes = f"job {name} {attempt}", 0.0, int(config["machine"]["nodes"])
        begun = folder / "claim.json"
    elif clock == launchers.boot_clock():
        most_s = min(most_s, time.monotonic() - start_s)
    lived_s = 0.0
    with contextlib.suppress(OSError):
        lived_s = (folder / "output.log").stat().st_mtime - begun.stat().st_mtime
    return clock, start_s, start_s + max(0.0, min(lived_s, most_s)), nodes


def launched_on(config: Mapping) -> str:
    return config.get("machine", {}).get("launcher", "local")


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
    process: launchers.LocalRun | slurm.SlurmRun
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
    launcher: Launcher
    slots: int = 1
    flights: dict[str, Flight] = field(default_factory=dict)

    def free_slot(self) -> int | None:
        taken = {flight.slot for flight in self.flights.values()}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def next_attempt(self, run: RunConfig) -> tuple[Path, int]:
        """The folder of the next attempt at a run, made, and the attempt's number.

        Never one in which anything of an attempt lies, even if its config.json is gone.
        """
        run_dir = self.exp_dir / run.arm.name / f"run_{run.index}"
        attempt = 1
        while any(map(os.path.isfile, attempt_dir(run_dir, attempt).glob("[!.]*"))):
            attempt += 1
        folder = attempt_dir(run_dir, attempt).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder, attempt

    def start(
        self, run: RunConfig, attempt: int, job: launchers.Job, facts: Mapping, limits: Limits
    ) -> None:
        """Launch an attempt, its record written first."""
        now = time.monotonic()
        launched = {
            "clock": launchers.boot_clock(),
            "monotonic_s": now,
            "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        record = {"run": asdict(run), "attempt": attempt, "command": job.command, "env": job.env}
        record |= {"limit_s": limits.seconds, "limit_why": limits.why, "launched": launched}
        record |= facts
        write_json(job.folder / "config.json", record)
        self._follow(run, attempt, job.folder, self.launcher.start(job), limits)

    def adopt(
        self, open_attempts: Sequence[tuple[str, int, Path]], stall_s: float
    ) -> list[RunResult]:
        """Follow the runs of an earlier sitting that went on without it; results of those that
        ended just now."""
        ended = []
        for name, attempt, folder in open_attempts:
            run, config = read_config(folder, name, attempt)
            limits = Limits(float(config["limit_s"]), config["limit_why"], stall_s)
            process = self.launcher.find(folder.resolve())
            if process is None:
                ended.append(close_attempt(folder, name, attempt, self.experiment_id, ""))
            else:
                self._follow(run, attempt, folder.resolve(), process, limits)
        return ended

    def _follow(self, run, attempt, folder, process, limits: Limits) -> None:
        now = time.monotonic()
        self.flights[run.name] = Flight(
            run,
            attempt,
            folder,
            process,
            limits,
            log=LogReader(run.num_iterations),
            started_s=now - process.age_s,
            slot=self.free_slot() or 0,
            heard_s=now,
        )

    def intervals(self) -> list[Interval]:
        """Machine time of the runs in flight so far."""
        begun = (f for f in self.flights.values() if f.process.begun)
        return [(f.process.clock, f.started_s, time.monotonic(), f.process.nodes) for f in begun]

    def paid_so_far(self) -> list[tuple[RunConfig, float]]:
        """Each run in flight with its machine time, seconds; 0 for one that waits in a queue."""
        paid = {name: f.process.begun * f.process.nodes for name, f in self.flights.items()}
        now = time.monotonic()
        return [(f.run, paid[name] * (now - f.started_s)) for name, f in self.flights.items()]

    def wait(self, timeout_s: float) -> list[RunResult]:
        """Follow the runs in flight for at most timeout_s; results of those that ended."""
        self.launcher.wait([flight.process for flight in self.flights.values()], timeout_s)
        return [result for flight in list(self.flights.values()) if (result := self._look(flight))]

    def _look(self, flight: Flight) -> RunResult | None:
        exit = flight.process.poll()
        flight.follow()
        if exit is None:
            now = time.monotonic()
            if not flight.process.begun:  # queued: neither running nor silent
                flight.started_s = flight.heard_s = now
            if now - flight.started_s > flight.limits.seconds:
                self._stop(flight, flight.limits.why)
            elif now - flight.heard_s > flight.limits.stall_s:
                self._stop(flight, "stall")
            return None
        while flight.follow():
            pass
        result = judge(flight.run, flight.attempt, flight.log.close(), exit_from(exit))
        write_result(flight.folder, result, self.experiment_id)
        del self.flights[flight.run.name]
        return result

    def _stop(self, flight: Flight, why: str) -> None:
        if not flight.stopped:
            flight.stopped = why
            flight.process.stop(why)

    def order_stop(self, why: str) -> None:
        for flight in self.flights.values():
            self._stop(flight, why)

    def stop(self, why: str) -> list[RunResult]:
        """End every run in flight and record it."""
        results = []
        self.order_stop(why)
        while self.flights:
            results += self.wait(0.2)
        return results


# ---------------------------------------------------------------------------------------------
# Looking on


def read_in_flight(name: str, attempt: int, folder: Path) -> dict:
    """What an attempt without a result has logged so far, for a look from another terminal."""
    try:
        run, config = read_config(folder, name, attempt)
        interval = interval_so_far(name, attempt, folder, config)
    except (ValueError, OSError, KeyError, TypeError):
        return {}
    log = read_log(folder / "output.log", run.num_iterations)
    return {
        "run": run.name,
        "attempt": attempt,
        "stage": run.stage,
        "step": log.step,
        "num_iterations": run.num_iterations,
        "val_loss": log.curve[-1][1] if log.curve else None,
        "seconds": interval[2] - interval[1] if interval else None,
        "interval": interval,
    }


def interval_so_far(name: str, attempt: int, folder: Path, config: Mapping) -> Interval | None:
    """Machine time of a run in flight. None: it waits in a queue, or began on another machine or
    before this one's last start."""
    launched = config["launched"]
    if launched_on(config) == "slurm":
        with contextlib.suppress(FileNotFoundError):
            age_s = max(0.0, time.time() - (folder / "claim.json").stat().st_mtime)
            return f"job {name} {attempt}", 0.0, age_s, config["machine"]["nodes"]
    elif launched["clock"] == launchers.boot_clock():
        return launched["clock"], launched["monotonic_s"], time.monotonic(), 1
    return None
