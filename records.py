"""What did a run do, and how do we know?  Records on disk, and the reading of logs.

The bottom layer: values that name a run and its outcome, the parser of a training log, the verdict
on what became of a run, and the files of an experiment folder:

    experiments/aux_heads_YYYYMMDD_HHMMSS/
        <arm>/run_<k>/{config.json, exit.json, result.json, output.log, train_log.txt}
        <arm>/run_<k>/attempt_2/{...}      a second attempt, where the first one failed

`config.json` is written before a launch, `exit.json` by the process that watched the trainer,
`result.json` last and atomically: where it exists, the record is complete.  Losses are nats/token
at full precision; durations are seconds of machine time on a monotonic clock.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# ---------------------------------------------------------------------------------------------
# Vocabulary


@dataclass(frozen=True)
class Arm:
    """One configuration of the auxiliary heads. The baseline is the arm without tap layers."""

    name: str
    layers: tuple[int, ...] = ()  # tap layer L: the residual stream after L blocks, from 1
    weight: float = 0.0  # of the mean auxiliary loss, against 1 for the main loss
    schedule: str = "constant"  # of the weight over training
    description: str = ""
    unet_skips: bool = False  # of the model, baseline included: gradients have shortcuts anyway

    @property
    def configuration(self) -> tuple:
        """What tells arms of one experiment apart; of different names with one configuration are
        one arm. U-net skips are the same for all of them."""
        return (self.layers, self.weight, self.schedule) if self.layers else ()

    @property
    def label(self) -> str:
        if not self.layers:
            return "baseline"
        taps = ",".join(map(str, self.layers))
        skips = ", U-net skips" if self.unet_skips else ""
        return f"layers {taps}, weight {self.weight:g}, {self.schedule}{skips}"


NAME = re.compile(r"[A-Za-z0-9_]{1,64}")  # what may become a folder's name


@dataclass(frozen=True)
class RunConfig:
    """One training of one arm with one seed. Raises ValueError for a name that is no plain word."""

    stage: int  # 1 to 4; 0 outside a staged ablation
    arm: Arm
    index: int  # run_<index> in the arm's folder
    seed: int  # fixes initialisation and the order of the data
    num_iterations: int

    def __post_init__(self):
        if not (isinstance(self.arm.name, str) and NAME.fullmatch(self.arm.name)):
            raise ValueError(f"arm name {self.arm.name!r}: use letters, digits and underscores")
        numbers = (self.stage, self.index, self.num_iterations)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"stage, index, num_iterations {numbers!r}: give whole numbers")

    @property
    def name(self) -> str:
        return f"{self.arm.name}/run_{self.index}"

    @property
    def key(self) -> tuple:
        """What was trained, under which name. Results count for a run of the same key only: under
        the name final_best, say, another choice of layers would be another run."""
        trained = (self.arm.configuration, self.arm.unet_skips, self.seed, self.num_iterations)
        return self.stage, self.name, *trained


STATUSES = ("ok", "diverged", "crashed", "timeout", "interrupted")


@dataclass(frozen=True)
class RunResult:
    """One attempt at one run: what became of it, and what it cost.

    Raises ValueError for `ok` without a finite loss and for a loss without `ok`, so that no
    comparison downstream can meet a number that was not earned.
    """

    run: RunConfig
    attempt: int  # from 1
    status: str
    reason: str  # empty when ok
    clock: str  # which monotonic clock start_s and end_s were read from (a boot of a machine)
    start_s: float
    end_s: float
    val_loss: float | None = None  # nats/token, main head, after the last step
    steps_done: int = 0
    train_time_ms: float | None = None  # without validation and start-up
    step_avg_ms: float | None = None
    peak_memory_mib: float | None = None
    tokens_seen: int | None = None
    num_parameters: int | None = None
    nodes: int = 1  # of a cluster, that it had to itself
    curve: tuple[tuple[int, float, float], ...] = ()  # (step, val_loss, train_time_ms)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        finite = isinstance(self.val_loss, float) and math.isfinite(self.val_loss)
        if self.status == "ok" and not finite:
            raise ValueError(f"status ok needs a finite val_loss, not {self.val_loss!r}")
        if self.status != "ok" and self.val_loss is not None:
            raise ValueError(f"status {self.status} cannot carry a val_loss ({self.val_loss!r})")
        if not self.end_s >= self.start_s:
            raise ValueError(f"ends at {self.end_s!r} s before it starts at {self.start_s!r} s")

    @property
    def wall_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def interval(self) -> "Interval":
        return self.clock, self.start_s, self.end_s, self.nodes

    @property
    def settled(self) -> bool:
        """An outcome of the arm, as opposed to something that happened to the run."""
        return self.status in ("ok", "diverged")


# ---------------------------------------------------------------------------------------------
# Reading a log
#
# A log holds everything that the processes printed: the trainer's lines, torchrun's, a library's
# warnings, perhaps another program's. Only lines of exactly the trainer's form, with this run's
# own number of iterations, count.

STEP_LINE = re.compile(
    rb"step:([0-9]{1,12})/([0-9]{1,12}) (val|train)_loss:([-+.0-9A-Za-z]{1,32})"
    rb" train_time:([0-9]{1,15}(?:\.[0-9]{1,9})?)ms step_avg:[-+.0-9A-Za-z]{1,32}ms"
)
SUMMARY_TIMES = ("train_time_ms", "step_avg_ms", "peak_memory_mib")
SUMMARY_COUNTS = ("tokens_seen", "num_parameters")
ERROR_LINE = re.compile(  # a worker of several says which one it is: "[rank0]: ValueError: ..."
    rb"(?:\[rank[0-9]+\]:\s*)?(?:[\w.]*(?:Error|Exception|Interrupt)\b|[\w./-]+: error:)"
)
OUT_OF_MEMORY = re.compile(rb"out of memory|OutOfMemoryError|can't allocate memory")
# One of these is in every line that means anything.
MARKS = (b"step:", b"summary: ", b"rror", b"xception", b"nterrupt", b"emory")
TAIL = 5  # lines: a crash's last words
MAX_LINE = 4096  # bytes; what is longer is no line of ours


def printable(text: str, limit: int = 300) -> str:
    """One line of text that is safe on a terminal: no control characters, bounded length."""
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_number(value) -> bool:
    """A finite number, as JSON may hold one or not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_count(value) -> bool:
    return type(value) is int and value >= 1


@dataclass
class LogReader:
    """Reads a training log piece by piece, in bounded memory, whatever bytes it holds.

    `feed` takes bytes as they come, so one reader serves the live line and the final record;
    where they were cut makes no difference.
    """

    num_iterations: int
    step: int = 0
    train_time_ms: float = 0.0
    train_loss: float | None = None
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    summary: dict | None = None
    summaries: int = 0
    after_summary: bool = False  # step lines behind the summary: two runs in one log
    non_finite: bytes = b""
    out_of_memory: bytes = b""
    error: bytes = b""
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=TAIL))
    signs_of_life: int = 0
    _rest: bytes = b""
    _skipping: bool = False

    def feed(self, data: bytes) -> None:
        self.signs_of_life += bool(data)
        if self._skipping:
            _, newline, data = data.partition(b"\n")
            self._skipping = not newline
        data = self._rest + data
        *lines, rest = data.split(b"\n")
        lines = list(filter(None, lines))
        if not any(mark in data for mark in MARKS):
            lines = lines[-TAIL:]  # a flood of something else: it can only be the last words
        for line in lines:
            self._line(line)
        if len(rest) > MAX_LINE:  # an endless line: take its head once, then skip to its end
            self._line(rest)
            self._skipping, rest = True, b""
        self._rest = rest

    def close(self) -> "LogReader":
        """A last line without its newline was cut off: it can explain, but never count."""
        if self._rest and not self._skipping:
            self._explain(self._rest)
        self._rest = b""
        return self

    def _line(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            self._explain(line[:MAX_LINE])
        elif line.startswith(b"summary: "):
            self._summary(line)
        elif not line.startswith(b"step:"):
            self._explain(line)
        elif match := STEP_LINE.fullmatch(line.rstrip(b"\r")):
            self._step(line, *match.groups())

    def _step(self, line, step, total, kind, loss, train_time_ms) -> None:
        try:
            step, loss, train_time_ms = int(step), float(loss), float(train_time_ms)
        except ValueError:
            return
        if int(total) != self.num_iterations or step > self.num_iterations:
            return
        self.after_summary |= self.summaries > 0
        self.step, self.train_time_ms = max(self.step, step), train_time_ms
        if not math.isfinite(loss):
            self.non_finite = self.non_finite or line
        elif kind == b"train":
            self.train_loss = loss
        elif not self.curve or step > self.curve[-1][0]:
            self.curve.append((step, loss, train_time_ms))

    def _summary(self, line: bytes) -> None:
        self.summaries += 1
        try:
            summary = json.loads(line.removeprefix(b"summary: "))
            numbers = [summary[name] for name in ("val_loss", *SUMMARY_TIMES)]
            counts = [summary[name] for name in ("steps_done", *SUMMARY_COUNTS)]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if all(map(is_number, numbers)) and all(type(count) is int for count in counts):
            self.summary = summary

    def _explain(self, line: bytes) -> None:
        self.tail.append(line)
        if OUT_OF_MEMORY.search(line):
            self.out_of_memory = line
        # torchrun's own last words only say that a worker failed, not why
        if ERROR_LINE.match(line) and b"ChildFailedError" not in line:
            self.error = line

    @property
    def incomplete(self) -> str:
        """Why this is not the log of one complete training; empty when it is."""
        if self.summaries == 0:
            return f"no summary line; {self.step} of {self.num_iterations} steps in the log"
        if self.summaries > 1 or self.after_summary:
            return f"{self.summaries} summary line(s) and steps behind them: more than one run"
        if self.summary is None:
            return "the summary line is damaged"
        if self.summary["steps_done"] != self.num_iterations:
            return f"summary after {self.summary['steps_done']} of {self.num_iterations} steps"
        if not self.curve or self.curve[-1][0] != self.num_iterations:
            return "no val_loss line at the last step"
        if abs(self.curve[-1][1] - self.summary["val_loss"]) > 1e-5:
            return "the summary's val_loss is not that of the last step"
        return ""


def read_log(path: Path, num_iterations: int) -> LogReader:
    """Stream a log file through a LogReader; a missing file is an empty log."""
    reader = LogReader(num_iterations)
    try:
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                reader.feed(data)
    except FileNotFoundError:
        pass
    return reader.close()


# ---------------------------------------------------------------------------------------------
# What became of a run


@dataclass(frozen=True)
class Exit:
    """How the processes of an attempt ended, written by whoever watched them."""

    returncode: int | None  # None: nobody saw it end
    ended_by: str  # "itself", or why it was stopped: "timeout", "stall", "operator", "budget", ...
    clock: str
    start_s: float
    end_s: float
    nodes: int = 1


def exit_from(value) -> Exit | None:
    """The contents of exit.json as an Exit; None for anything else: then nobody saw it end."""
    try:
        exit = Exit(**value)
    except TypeError:
        return None
    texts = isinstance(exit.ended_by, str) and isinstance(exit.clock, str)
    times = is_number(exit.start_s) and is_number(exit.end_s) and exit.end_s >= exit.start_s
    counts = isinstance(exit.returncode, int | None) and is_count(exit.nodes)
    return exit if texts and times and counts else None


def judge(run: RunConfig, attempt: int, log: LogReader, exit: Exit) -> RunResult:
    """Decide from exit code, summary, steps and finiteness together what became of an attempt."""
    outcome = {"status": "crashed", "reason": ""}
    if log.non_finite:
        outcome = {"status": "diverged", "reason": f"non-finite loss: {text_of(log.non_finite)}"}
    elif exit.returncode == 0 and not log.incomplete:
        outcome = {
            "status": "ok",
            "reason": "",
            "val_loss": float(log.summary["val_loss"]),
            **{name: float(log.summary[name]) for name in SUMMARY_TIMES},
            **{name: log.summary[name] for name in SUMMARY_COUNTS},
        }
    elif exit.ended_by in ("timeout", "stall"):
        what = "its time limit" if exit.ended_by == "timeout" else "a silence that was too long"
        outcome = {"status": "timeout", "reason": f"stopped after {what} at step {log.step}"}
    elif exit.ended_by != "itself":
        why = printable(exit.ended_by)
        outcome = {"status": "interrupted", "reason": f"{why}, at step {log.step}"}
    else:
        outcome["reason"] = crash_reason(log, exit.returncode)
    return RunResult(
        run=run,
        attempt=attempt,
        clock=exit.clock,
        start_s=exit.start_s,
        end_s=exit.end_s,
        nodes=exit.nodes,
        steps_done=log.step,
        curve=tuple(log.curve),
        **outcome,
    )


def crash_reason(log: LogReader, returncode: int | None) -> str:
    if log.out_of_memory:
        return f"out of memory; try a smaller --device_batch_size ({text_of(log.out_of_memory)})"
    if returncode == 0:
        return f"exit code 0, but {log.incomplete}"
    if returncode is None:
        how = "its watcher was killed"
    else:
        how = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    why = text_of(log.error) or " | ".join(filter(None, map(text_of, log.tail)))
    return printable(f"{how}: {why}" if why else f"{how}, nothing printed", limit=600)


def text_of(line: bytes) -> str:
    return printable(line.decode("utf-8", errors="replace"))


# ---------------------------------------------------------------------------------------------
# Files


def write_json(path: Path, value: dict, durable: bool = True) -> None:
    """Write atomically: a reader sees the old file or the whole new one, whatever dies when.

    Durable, it also survives a power cut; what is derived from other files need not.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def read_json(path: Path) -> dict:
    """Read one JSON object. Raises ValueError that names the file when it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({printable(str(error))})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def arm_from(value: dict) -> Arm:
    arm = Arm(**{**value, "layers": tuple(value["layers"])})
    texts = (arm.name, arm.schedule, arm.description)
    if not (all(type(n) is int for n in arm.layers) and all(isinstance(t, str) for t in texts)):
        raise TypeError("an arm has whole numbers as layers, and texts as its other fields")
    if not is_number(arm.weight) or type(arm.unet_skips) is not bool:
        raise TypeError(f"loss weight {arm.weight!r}, unet_skips {arm.unet_skips!r}")
    return arm


def run_from(value: dict) -> RunConfig:
    return RunConfig(**{**value, "arm": arm_from(value["arm"])})


def result_from(value: dict) -> RunResult:
    """The inverse of `asdict`. Raises ValueError for anything that is not a whole RunResult."""
    try:
        curve = tuple((step, loss, time_ms) for step, loss, time_ms in value["curve"])
        fields = {**value, "run": run_from(value["run"]), "curve": curve}
        numbers = [value["start_s"], value["end_s"], *(number for row in curve for number in row)]
        earned = [value[name] for name in ("val_loss", *SUMMARY_TIMES, *SUMMARY_COUNTS)]
        numbers += [number for number in earned if value["status"] == "ok" or number is not None]
        whole = all(map(is_number, numbers)) and type(value["steps_done"]) is int
        if not whole or not is_count(value["nodes"]) or not isinstance(value["clock"], str):
            raise ValueError("not a run's record: a field holds no number where one belongs")
        return RunResult(**{**fields, "reason": printable(value["reason"], limit=600)})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a run's record: {error!r}") from None


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    return run_dir if attempt == 1 else run_dir / f"attempt_{attempt}"


ATTEMPT = re.compile(r"([A-Za-z0-9_]{1,64}/run_[0-9]{1,6})(?:/attempt_([0-9]{1,6}))?")


def attempt_dirs(exp_dir: Path) -> list[tuple[str, int, Path]]:
    """Every attempt on disk as (run name, attempt, folder), in the order of names and numbers."""
    found = set()
    for pattern in ("*/run_*/*.json", "*/run_*/attempt_*/*.json"):
        for file in exp_dir.glob(pattern):
            match = ATTEMPT.fullmatch(file.parent.relative_to(exp_dir).as_posix())
            if match and file.name in ("config.json", "result.json"):
                found.add((match[1], int(match[2] or 1), file.parent))
    return sorted(found)


@dataclass(frozen=True)
class Records:
    """Everything that an experiment folder says about its runs."""

    results: tuple[RunResult, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()  # result.json files that cannot be believed
    open: tuple[tuple[str, int, Path], ...] = ()  # attempts launched, without a result

    def of_stage(self, stage: int) -> list[RunResult]:
        """The last word on each run of a stage."""
        return [r for r in self.latest().values() if r.run.stage == stage]

    def latest(self) -> dict[str, RunResult]:
        latest = {}
        for result in self.results:
            if result.run.name not in latest or result.attempt > latest[result.run.name].attempt:
                latest[result.run.name] = result
        return latest


def read_result(folder: Path, name: str, attempt: int, experiment_id: str) -> RunResult:
    """Read one record and check that it belongs where it lies. Raises ValueError if not."""
    value = read_json(folder / "result.json")
    if value.pop("experiment_id", None) != experiment_id:
        raise ValueError("it belongs to another experiment")
    result = result_from(value)
    if (result.run.name, result.attempt) != (name, attempt):
        raise ValueError(f"it is the record of {result.run.name}, attempt {result.attempt}")
    if result.run != read_config(folder, name, attempt)[0]:
        raise ValueError("its run is not the one in config.json")
    return result


def read_config(folder: Path, name: str, attempt: int) -> tuple[RunConfig, dict]:
    """What was launched in this folder, and all of config.json. Raises ValueError, as above."""
    config = read_json(folder / "config.json")
    try:
        run = run_from(config["run"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"config.json does not describe a run: {error!r}") from None
    if (run.name, config.get("attempt")) != (name, attempt):
        raise ValueError(f"config.json is that of {run.name}, attempt {config.get('attempt')!r}")
    return run, config


def read_records(exp_dir: Path, experiment_id: str) -> Records:
    """Read every record of an experiment; what cannot be believed is listed, never guessed."""
    results, damaged, open_attempts = [], [], []
    for name, attempt, folder in attempt_dirs(exp_dir):
        if not (folder / "result.json").exists():
            open_attempts.append((name, attempt, folder))
            continue
        try:
            results.append(read_result(folder, name, attempt, experiment_id))
        except (ValueError, OSError) as error:
            damaged.append((folder / "result.json", printable(str(error))))
    results.sort(key=lambda r: (r.run.stage, r.run.arm.name, r.run.index, r.attempt))
    return Records(tuple(results), tuple(damaged), tuple(open_attempts))


def write_result(folder: Path, result: RunResult, experiment_id: str) -> None:
    write_json(folder / "result.json", {"experiment_id": experiment_id, **asdict(result)})


# ---------------------------------------------------------------------------------------------
# The ledger


Interval = tuple[str, float, float, int]  # clock, start_s, end_s, nodes


def machine_seconds(results: Sequence[RunResult], in_flight: Sequence[Interval] = ()) -> float:
    """Machine time paid for: the union of all attempts' intervals, failed ones included.

    Attempts side by side on one machine are paid once; time between attempts is not paid. A job
    of a cluster has a clock of its own, and each of its nodes is paid for.
    """
    intervals = [*(r.interval for r in results), *in_flight]
    total, covered_clock, covered = 0.0, "", -math.inf
    for clock, start, end, nodes in sorted(intervals):
        if clock != covered_clock:
            covered_clock, covered = clock, -math.inf
        total += nodes * max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return total


def duration(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
