"""How are runs carried out so that nothing is lost?  Folders, lock, launches, live lines.

The thin, acting half of the tool: it knows folders, processes and clocks, and nothing of stages
or decisions. An `Orchestrator` starts the attempts it is given, follows their logs, holds them to
their limits, and writes a result for each when it ends. `reconcile` does the same for attempts
that an earlier orchestrator left behind, whatever ended it.
"""

import contextlib
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ablation.execute import local, slurm, watcher
from ablation.execute.launcher import CannotStart, Job
from ablation.execute.lock import STALE_S, look_at, process_birth
from ablation.runs.log import LogReader, read_log
from ablation.runs.outcome import UNBELIEVED, Exit, judge, judge_attempt
from ablation.runs.run import Interval, RunConfig, RunResult
from ablation.runs.store import (
    Attempt,
    Records,
    attempt_dir,
    attempts_in,
    read_config,
    read_records,
    write_json,
    write_result,
)
from ablation.runs.untrusted import is_number, printable

Launcher = local.LocalLauncher | slurm.SlurmLauncher


# ---------------------------------------------------------------------------------------------
# What an earlier orchestrator left behind


def reconcile(
    exp_dir: Path, experiment_id: str, launcher: Launcher, say: Callable[[str], None]
) -> Records:
    """End what still runs of earlier sittings, and give every attempt a record to be believed.

    What goes on elsewhere without us (a job in a queue) stays open, for `Orchestrator.adopt`.

    A file that cannot be believed is set aside under another name, with a line. The attempt is
    then closed as interrupted, its time paid for, and the plan asks for the run again.

    Raises ValueError for a folder that is a link: nothing is written through it.
    """
    launcher.settle(exp_dir.resolve())
    records = read_records(exp_dir, experiment_id)
    distrust = {path.parent: f"its record was damaged ({why})" for path, why in records.damaged}
    to_close = {*distrust, *(attempt.folder for attempt in records.open)}
    for folder in to_close:
        refuse_links(exp_dir, folder)
    for path, why in records.damaged:
        aside = next_free(path, "damaged")
        os.rename(path, aside)
        say(f"Damaged record {path}: {why}; set aside as {aside.name}, the run will be run again.")
    for attempt in attempts_in(exp_dir) if to_close else ():
        folder = attempt.folder
        if folder not in to_close or launcher.find(folder.resolve()):
            continue
        try:
            ended = launcher.end_of(folder.resolve())
            why = distrust.get(folder, "")
            result = close_attempt(attempt, experiment_id, ended, why)
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
            found = f"{attempt.run_name}, attempt {attempt.number}"
            say(f"Found {found}, without a result: {outcome(result)}")
    if to_close:
        records = read_records(exp_dir, experiment_id)
    sweep(exp_dir, records, launcher)
    return records


def outcome(r: RunResult) -> str:
    return f"val loss {r.val_loss:.4f}" if r.status == "ok" else f"{r.status}: {r.reason}"


UNRECORDED = "nobody recorded its end: orchestrator and watcher died, or the disk was full"
NEVER_BEGAN = "its job left the queue before it began, and Slurm does not know why any more"


def close_attempt(
    attempt: Attempt, experiment_id: str, ended: Exit | None, distrust: str = ""
) -> RunResult:
    """Judge an attempt by what it left; with a reason for distrust, it has to be run again.

    ended: what its exit.json says, or its launcher in its place; None where nobody knows.

    Raises ValueError when config.json cannot be believed.
    """
    run, config = read_config(attempt)
    folder = attempt.folder
    try:
        interval = lived(attempt, config)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it does not say when the attempt began ({error!r})") from None
    here = interval.clock == watcher.boot_clock()
    latest_s = time.monotonic() if here else math.inf
    exit = witnessed(ended, interval._replace(end_s=latest_s))
    if exit is None:
        never_began = launched_on(config) == "slurm" and not (folder / "claim.json").exists()
        unrecorded = NEVER_BEGAN if never_began else UNRECORDED
        exit = Exit(None, watcher.read_order(folder) or unrecorded, *interval)
    if distrust:
        exit = replace(exit, returncode=None, ended_by=distrust)
        result = judge(run, attempt.number, LogReader(run.num_iterations), exit)
    else:
        log = read_log(folder / "output.log", run.num_iterations)
        result = judge_attempt(run, attempt.number, folder, log, exit)
    write_result(folder, result, experiment_id)
    return result


def witnessed(exit: Exit | None, within: Interval) -> Exit | None:
    """What exit.json says of an attempt, if that can be; None for anything else.

    It is on the attempt's own clock and inside of what its launch leaves open; of a job, whose
    clock is another machine's, only that it is a job's.
    """
    if exit is None or within.clock.startswith("job "):
        return exit if exit and exit.clock.startswith("job ") else None
    times = within.start_s <= exit.start_s and exit.end_s <= within.end_s
    return exit if times and (exit.clock, exit.nodes) == (within.clock, within.nodes) else None


def lived(attempt: Attempt, config: Mapping) -> Interval:
    """From the launch to the last line of the log, by the file system's clock. A job begins when it
    claims the attempt.

    Somebody may have set that clock meanwhile: not beyond the attempt's limit, nor beyond now.
    """
    launched, most_s = config["launched"], float(config["limit_s"])
    clock, start_s = str(launched["clock"]), float(launched["monotonic_s"])
    folder = attempt.folder
    begun, nodes = folder / "config.json", 1
    if launched_on(config) == "slurm":
        clock, start_s = f"job {attempt.run_name} {attempt.number}", 0.0
        nodes = int(config["machine"]["nodes"])
        begun = folder / "claim.json"
    elif clock == watcher.boot_clock():
        most_s = min(most_s, time.monotonic() - start_s)
    lived_s = 0.0
    with contextlib.suppress(OSError):
        lived_s = os.lstat(folder / "output.log").st_mtime - os.lstat(begun).st_mtime
    return Interval(clock, start_s, start_s + max(0.0, min(lived_s, most_s)), nodes)


def launched_on(config: Mapping) -> str:
    return config.get("machine", {}).get("launcher", "local")


def refuse_links(exp_dir: Path, folder: Path) -> None:
    """Raise ValueError where a folder of a run is something else: nothing is written through it."""
    for part in (folder, *folder.parents):
        if part == exp_dir:
            return
        if os.path.lexists(part) and not stat.S_ISDIR(os.lstat(part).st_mode):
            raise ValueError(
                f"{printable(str(part))} is a link or a file, not a folder of this experiment;"
                " nothing is written through it: remove it, then give the same command again"
            )


MOST_ATTEMPTS = 999_999  # more digits would not be read as an attempt's number


def is_used(folder: Path) -> bool:
    """Whether anything lies in an attempt's folder, other than later attempts and litter."""
    if not os.path.lexists(folder):
        return False
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        return True
    with os.scandir(folder) as entries:
        return not all(entry.name.startswith(".") or is_attempt(entry) for entry in entries)


def is_attempt(entry: os.DirEntry) -> bool:
    named = re.fullmatch(r"attempt_[0-9]{1,6}", entry.name)
    return bool(named) and entry.is_dir(follow_symlinks=False)


# in an attempt's folder, half written by who was killed
LITTER = re.compile(r"\.(config|result|exit|order)\.json\.[0-9]+(-[0-9]+)?\.tmp|\.claim\..+")
LEFT_BEHIND = re.compile(  # by a writer of this process id, or by a report, which hides its own
    r"\.[\w.-]+\.(?:([0-9]{1,10})(?:-[0-9]+)?|[0-9a-f]{16})\.tmp"
)
ABANDONED_S = 3600.0  # no report writes one file for so long


def sweep(exp_dir: Path, records: Records, launcher: Launcher) -> None:
    """Remove what killed sittings left half written, and folders that they had only just made.

    Who calls this holds the lock, and what ran here has ended: in the folders of attempts nobody
    writes any more, except jobs that go on. Elsewhere a writer has to be gone, and for long.
    """
    ours = {attempt_dir(exp_dir / r.run.name, r.attempt) for r in records.results}
    ours |= {attempt.folder for attempt in records.open}
    folders = [*exp_dir.glob("*/run_*/attempt_*"), *exp_dir.glob("*/run_*")]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            refuse_links(exp_dir, folder)
            sweep_attempt(exp_dir, folder, folder in ours, launcher)
    with contextlib.suppress(OSError):
        now = os.lstat(exp_dir / "lock.json").st_mtime  # made just now, by the disk's clock
        code = exp_dir / "code"
        for path in [*exp_dir.glob(".*"), *(() if code.is_symlink() else code.glob(".*"))]:
            with contextlib.suppress(OSError, ValueError):
                if is_left_behind(path, now):
                    path.unlink()


def sweep_attempt(exp_dir: Path, folder: Path, ours: bool, launcher: Launcher) -> None:
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if not is_attempt(entry)]
    litter = [name for name in found if LITTER.fullmatch(name)]
    if (litter or not found) and (ours or litter == found) and not launcher.find(folder.resolve()):
        for name in litter:
            (folder / name).unlink()
        for part in (folder, *folder.parents[: len(folder.relative_to(exp_dir).parts) - 1]):
            part.rmdir()  # fails where anything else lies in it


def is_left_behind(path: Path, now: float) -> bool:
    """Whether nobody will need this file of an experiment's own folder any more."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return False
    age_s = now - found.st_mtime
    long_ago = age_s > STALE_S
    if re.fullmatch(r"\.lock\..+\.[0-9]+", path.name):
        _, lives, certain = look_at(path, now)
        return not lives and (certain or long_ago)
    match = LEFT_BEHIND.fullmatch(path.name)
    if not match or match[1] is None:
        return bool(match) and age_s > ABANDONED_S
    return long_ago and process_birth(match[1]) is None


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
    attempt: Attempt
    process: local.LocalRun | slurm.SlurmRun
    limits: Limits
    log: LogReader
    launched_s: float  # when the orchestrator began to start it
    started_s: float
    slot: int
    heard_s: float = 0.0
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
                self.heard_s = time.monotonic()
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
            process = self.launcher.start(job)
        except CannotStart as error:
            # on a cluster it is a job's, with a clock of its own, that never came to be
            job_name = f"{run.name} {attempt.number}" if launched_on(record) == "slurm" else ""
            why = f"{watcher.CANNOT_START}: {error}"
            clock, now = f"job {job_name}" if job_name else watcher.boot_clock(), time.monotonic()
            exit = Exit(None, why, clock, now, now)  # no time was paid
            watcher.write_whole(job.folder / "exit.json", asdict(exit))
            return close_attempt(attempt, self.experiment_id, exit)
        self._follow(run, attempt, process, limits, now)
        return None

    def adopt(self, open_attempts: Sequence[Attempt], stall_s: float) -> list[RunResult]:
        """Follow the runs of an earlier sitting that went on without it; results of those that
        ended just now."""
        ended = []
        for attempt in open_attempts:
            run, config = read_config(attempt)
            attempt = attempt._replace(folder=attempt.folder.resolve())
            process = self.launcher.find(attempt.folder)
            if process is None:
                end = self.launcher.end_of(attempt.folder)
                ended.append(close_attempt(attempt, self.experiment_id, end))
                continue
            limit_s = config.get("limit_s")
            if not is_number(limit_s):
                raise ValueError(f"{attempt.folder}/config.json: limit_s {limit_s!r}")
            limits = Limits(limit_s, str(config.get("limit_why")), stall_s)
            begun_s = time.monotonic() - process.age_s
            self._follow(run, attempt, process, limits, begun_s)
        return ended

    def _follow(self, run, attempt, process, limits: Limits, launched_s: float) -> None:
        now = time.monotonic()
        self.flights[run.name] = Flight(
            run,
            attempt,
            process,
            limits,
            log=LogReader(run.num_iterations),
            launched_s=launched_s,
            started_s=now - process.age_s,
            slot=self.free_slot() or 0,
            heard_s=now,
        )

    def intervals(self) -> list[Interval]:
        """Machine time of the runs in flight so far."""
        begun, now = (f for f in self.flights.values() if f.process.begun), time.monotonic()
        return [Interval(f.process.clock, f.started_s, now, f.process.nodes) for f in begun]

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
        process, now = flight.process, time.monotonic()
        latest = Interval(process.clock, flight.launched_s, now, process.nodes)
        exit = witnessed(exit, latest) or Exit(None, UNBELIEVED.ended_by, *latest)
        log = flight.log.close()
        folder = flight.attempt.folder
        result = judge_attempt(flight.run, flight.attempt.number, folder, log, exit)
        write_result(folder, result, self.experiment_id)
        del self.flights[flight.run.name]
        return result

    def _stop(self, flight: Flight, why: str) -> None:
        if not flight.stopped:
            flight.stopped = why
            flight.process.stop(why)

    def order_stop(self, why: str) -> None:
        for flight in self.flights.values():
            self._stop(flight, why)

    def leave(self, why: str) -> None:
        """Tell why to the runs that end when this process does. Jobs of a queue go on."""
        for flight in self.flights.values():
            if isinstance(flight.process, local.LocalRun):
                self._stop(flight, why)

    def stop(self, why: str) -> list[RunResult]:
        """End every run in flight and record it."""
        results = []
        self.order_stop(why)
        while self.flights:
            results += self.wait(0.2)
        return results
