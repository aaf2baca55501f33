"""What did a run do, and how do we know?  The verdict on a run, and its record on disk.

Values that name a run and its outcome, the verdict on what became of a run (its log is read in
`logs`), and the files of an experiment folder (read as `untrusted` ones):

    experiments/aux_heads_YYYYMMDD_HHMMSS/
        <arm>/run_<k>/{config.json, exit.json, result.json, output.log, train_log.txt}
        <arm>/run_<k>/attempt_2/{...}      a second attempt, where the first one failed

`config.json` is written before a launch, `exit.json` by the process that watched the trainer,
`result.json` last and atomically: where it exists, the record is complete.  Losses are nats/token
at full precision; durations are seconds of machine time on a monotonic clock.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path

from logs import NOTHING, SAME_LOSS, SUMMARY_FIELDS, LogReader, evidence, read_log, text_of
from untrusted import is_count, is_number, printable, printable_path, read_json, write_json
from untrusted import open_regular as open_regular

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


STATUSES = ("ok", "diverged", "refused", "crashed", "timeout", "interrupted")


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
    returncode: int | None = None  # None: nobody saw it end, or a record of an older version

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

    @property
    def final(self) -> bool:
        """Whether a crash would come again: the training ended as it should, and its log was
        refused. Another attempt would train as long and print the same."""
        done = self.steps_done == self.run.num_iterations
        return self.status == "crashed" and self.returncode == 0 and done


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
    times = is_interval(exit.start_s, exit.end_s)
    counts = is_returncode(exit.returncode) and is_count(exit.nodes)
    return exit if texts and times and counts else None


MOST_S = 1e12  # of any clock
MOST_MS = 1e15


def is_interval(start_s, end_s) -> bool:
    numbers = is_number(start_s) and is_number(end_s)
    return numbers and -MOST_S <= start_s <= end_s <= MOST_S


def is_returncode(value) -> bool:
    return value is None or (type(value) is int and abs(value) < 1 << 32)


def judge_attempt(
    run: RunConfig, attempt: int, folder: Path, log: LogReader, exit: Exit
) -> RunResult:
    """Judge an attempt by what its folder holds. `log` is the screen's copy, output.log."""
    own = read_log(folder / "train_log.txt", run.num_iterations)
    return judge(run, attempt, evidence(log, own), exit)


STOPPED = {"timeout": "its time limit", "stall": "a silence that was too long"}


def judge(run: RunConfig, attempt: int, log: LogReader, exit: Exit) -> RunResult:
    """Decide from exit code, summary, steps and finiteness together what became of an attempt."""
    refused_log = log.incomplete or overlong(log.summary, exit.end_s - exit.start_s)
    numbers = {}
    if log.non_finite:
        status, reason = "diverged", f"non-finite loss: {text_of(log.non_finite)}"
    elif exit.returncode == 0 and not refused_log:
        status, reason, numbers = "ok", "", earned_numbers(log.summary)
    elif what := STOPPED.get(exit.ended_by):
        status, reason = "timeout", explained(f"stopped after {what} at step {log.step}", log)
    elif exit.ended_by != "itself":
        where = f", at step {log.step}" if log.step or log.tail else ""
        status, reason = "interrupted", f"{printable(exit.ended_by)}{where}"
    elif words := refusal(log, exit.returncode):
        status, reason = "refused", words
    else:
        status, reason = "crashed", crash_reason(log, exit.returncode, refused_log)
    return RunResult(
        run=run,
        attempt=attempt,
        status=status,
        reason=printable(reason, limit=MAX_REASON),
        clock=exit.clock,
        start_s=exit.start_s,
        end_s=exit.end_s,
        nodes=exit.nodes,
        steps_done=log.step,
        curve=tuple(log.curve),
        returncode=exit.returncode,
        **numbers,
    )


MAX_REASON = 600  # characters


def earned_numbers(summary: dict) -> dict:
    """A summary's numbers as a RunResult has them."""
    named = [field for field in SUMMARY_FIELDS if field.name != "steps_done"]
    return {f.name: summary[f.name] if f.whole else float(summary[f.name]) for f in named}


def overlong(numbers: dict | None, wall_s: float) -> str:
    """What is wrong with a training time that the attempt did not have; empty for nothing."""
    if not numbers or numbers["train_time_ms"] <= 1000 * (1.01 * wall_s + 0.1):
        return ""
    took = f"more than the {wall_s:.1f} s that the attempt took by the clock"
    return f"train_time_ms {numbers['train_time_ms']}: {took}"


def refusal(log: LogReader, returncode: int | None) -> str:
    """The words of a trainer that says it cannot work: exit code 2, its own or, where torchrun
    ended with 1, that of the worker that failed first. One that says no more than that says what
    its log holds. Empty for any other end."""
    if returncode == 2 or (returncode == 1 and log.worker_refused):
        return text_of(log.refusal) or log.last_words or explained("exit code 2", log)
    return ""


def crash_reason(log: LogReader, returncode: int | None, refused_log: str) -> str:
    if log.killed_for_memory:
        return explained(
            f"killed by the kernel for memory at step {log.step}; try fewer runs side by side"
            " (--parallel_runs), or a smaller --device_batch_size",
            log,
        )
    if log.out_of_memory:
        return f"out of memory; try a smaller --device_batch_size ({text_of(log.out_of_memory)})"
    if returncode == 0:
        return f"exit code 0, but {refused_log}"
    if returncode is None:
        return explained("its watcher was killed", log)
    if returncode == 1 and log.worker_exit is not None:  # torchrun's; the worker's says more
        returncode = log.worker_exit
    how = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return explained(how, log)


def explained(how: str, log: LogReader) -> str:
    """How an attempt ended, with the last words of its log, or with what else it holds."""
    if not log.incomplete:
        how = f"{how}, but {log.contents}"
    elif not log.last_words:
        how = f"{how}{', ' if log.contents == NOTHING else '; '}{log.contents}"
    return f"{how}: {log.last_words}" if log.last_words else how


# ---------------------------------------------------------------------------------------------
# Records as values


def arm_from(value: dict) -> Arm:
    if not isinstance(value["layers"], list | tuple):  # an empty text would be the baseline
        raise TypeError(f"layers {value['layers']!r}")
    arm = Arm(**{**value, "layers": tuple(value["layers"])})
    texts = (arm.name, arm.schedule, arm.description)
    if not (all(map(is_count, arm.layers)) and all(isinstance(t, str) for t in texts)):
        raise TypeError("an arm has whole numbers as layers, and texts as its other fields")
    if not is_number(arm.weight) or type(arm.unet_skips) is not bool:
        raise TypeError(f"loss weight {arm.weight!r}, unet_skips {arm.unet_skips!r}")
    return arm


def run_from(value: dict) -> RunConfig:
    run = RunConfig(**{**value, "arm": arm_from(value["arm"])})
    numbers = (run.stage, run.index, run.seed, run.num_iterations)
    if not all(type(number) is int and abs(number) < 1 << 63 for number in numbers):
        raise TypeError(f"stage, index, seed, num_iterations {numbers!r}: give whole numbers")
    return run


def result_from(value: dict) -> RunResult:
    """The inverse of `asdict`. Raises ValueError for anything that is not a whole RunResult, and
    for one that nobody can have written: reading demands what `judge` demands."""
    try:
        curve = tuple((step, loss, time_ms) for step, loss, time_ms in value["curve"])
        fields = {**value, "run": run_from(value["run"]), "curve": curve}
        result = RunResult(**{**fields, "reason": printable(value["reason"], limit=MAX_REASON)})
        if fault := fault_of(result):
            raise ValueError(f"not a run's record: {fault}")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a run's record: {printable(repr(error))}") from None
    return result


def fault_of(r: RunResult) -> str:
    """Why a result cannot be one that `judge` gave; empty where it can."""
    whole = [r.attempt, r.nodes, *(step + 1 for step, _, _ in r.curve), r.steps_done + 1]
    numbers = [number for _, *point in r.curve for number in point]
    optional = [getattr(r, f.name) for f in SUMMARY_FIELDS]
    numbers += [number for number in optional if number is not None]
    steps = all(type(step) is int for step, _, _ in r.curve)  # true + 1 is a count, too
    if not (steps and all(map(is_count, whole)) and all(map(is_number, numbers))):
        return "a field holds no number where one belongs"
    if not is_interval(r.start_s, r.end_s) or not isinstance(r.clock, str):
        return "it does not say when it began and ended"
    if not is_returncode(r.returncode):
        return f"returncode {printable(repr(r.returncode))}: give an integer"
    if not all(0 <= time_ms <= MOST_MS for _, _, time_ms in r.curve):
        return "a time of its curve can be none"
    if any(step >= later for (step, *_), (later, *_) in pairwise(r.curve)):
        return "the steps of its curve are not in their order"
    return unearned(r) if r.status == "ok" else ""


def unearned(r: RunResult) -> str:
    """Why a result does not deserve its `ok`; empty where it does."""
    total = r.run.num_iterations
    numbers = {f.name: getattr(r, f.name) for f in SUMMARY_FIELDS}
    faults = (f.fault(numbers) for f in SUMMARY_FIELDS)
    if fault := next(filter(None, faults), "") or overlong(numbers, r.wall_s):
        return f"it is ok, but {fault}"
    if r.returncode not in (0, None):
        return f"it is ok, but its exit code is {r.returncode}"
    if r.steps_done != total or not r.curve or r.curve[-1][0] != total:
        return f"it is ok, but does not reach step {total}"
    if abs(r.curve[-1][1] - r.val_loss) > SAME_LOSS:
        return f"its val_loss {r.val_loss} is not the end of its curve ({r.curve[-1][1]})"
    return ""


# ---------------------------------------------------------------------------------------------
# Files


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    return run_dir if attempt == 1 else run_dir / f"attempt_{attempt}"


RUN_FOLDER = re.compile(r"run_[0-9]{1,6}")
ATTEMPT_FOLDER = re.compile(r"attempt_([2-9]|[1-9][0-9]{1,5})")  # the first lies in run_<k> itself
MAX_FOUND = 100_000  # folders below one folder


def attempt_dirs(exp_dir: Path) -> list[tuple[str, int, Path]]:
    """Every attempt on disk as (run name, attempt, folder), in the order of names and numbers.
    Raises ValueError for more than any experiment has."""
    return sorted((name, n, folder) for name, n, folder in found_below(exp_dir) if n)


def found_below(exp_dir: Path) -> Iterator[tuple[str, int, Path]]:
    """Attempts as (run name, attempt, folder). A link in such a folder's place has the number 0:
    whatever it leads to lies elsewhere, and is not looked at."""
    for arm, is_link in folders(exp_dir, NAME):
        if is_link:
            if any(folders(arm, RUN_FOLDER)):
                yield arm.name, 0, arm
            continue
        for run_dir, is_link in folders(arm, RUN_FOLDER):
            name = f"{arm.name}/{run_dir.name}"
            if is_link:
                yield name, 0, run_dir
                continue
            if holds_attempt(run_dir):
                yield name, 1, run_dir
            for folder, is_link in folders(run_dir, ATTEMPT_FOLDER):
                if is_link or holds_attempt(folder):
                    number = int(ATTEMPT_FOLDER.fullmatch(folder.name)[1])
                    yield name, 0 if is_link else number, folder


def folders(parent: Path, form: re.Pattern) -> list[tuple[Path, bool]]:
    """Folders of names of a form, each with whether it is a link (to whatever)."""
    try:
        with os.scandir(parent) as entries:
            entries = list(islice(entries, MAX_FOUND + 1))
    except (FileNotFoundError, NotADirectoryError):
        return []
    if len(entries) > MAX_FOUND:
        raise ValueError(f"{printable_path(parent)}: holds more than {MAX_FOUND} files")
    named = [entry for entry in entries if form.fullmatch(entry.name)]
    found = [entry for entry in named if entry.is_symlink() or entry.is_dir()]
    return [(parent / entry.name, entry.is_symlink()) for entry in found]


def holds_attempt(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in ("config.json", "result.json"))


@dataclass(frozen=True)
class Records:
    """Everything that an experiment folder says about its runs."""

    results: tuple[RunResult, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()  # result.json files that cannot be believed
    open: tuple[tuple[str, int, Path], ...] = ()  # attempts launched, without a result
    stray: tuple[Path, ...] = ()  # folders of another run (a copied arm), and links: left alone

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
    run, config = described(folder)
    is_number_of_attempt = is_count(config.get("attempt"))
    if not is_number_of_attempt or (run.name, config["attempt"]) != (name, attempt):
        found = printable(f"{run.name}, attempt {config.get('attempt')!r}")
        raise ValueError(f"config.json is that of {found}")
    return run, config


def described(folder: Path) -> tuple[RunConfig, dict]:
    """The run that a config.json describes, wherever it lies. Raises ValueError, as above."""
    config = read_json(folder / "config.json")
    try:
        return run_from(config["run"]), config
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        why = printable(repr(error))
        raise ValueError(f"config.json does not describe a run: {why}") from None


def is_stray(folder: Path, name: str) -> bool:
    """Whether the attempt in this folder is another run's, by all that lies there: somebody copied
    or renamed it."""
    try:
        if described(folder)[0].name == name:
            return False
        return run_from(read_json(folder / "result.json")["run"]).name != name
    except FileNotFoundError:
        return (folder / "config.json").exists()
    except (ValueError, OSError, TypeError, KeyError, AttributeError):
        return False


def read_records(exp_dir: Path, experiment_id: str) -> Records:
    """Read every record of an experiment; what cannot be believed is listed, never guessed."""
    results, damaged, open_attempts, stray = [], [], [], []
    for name, attempt, folder in sorted(found_below(exp_dir)):
        try:
            if attempt and os.path.lexists(folder / "result.json"):
                results.append(read_result(folder, name, attempt, experiment_id))
                continue
            why = ""
        except (ValueError, OSError) as error:
            why = printable(str(error))
        if not attempt or is_stray(folder, name):
            stray.append(folder)
        elif why:
            damaged.append((folder / "result.json", why))
        else:
            open_attempts.append((name, attempt, folder))
    results.sort(key=lambda r: (r.run.stage, r.run.arm.name, r.run.index, r.attempt))
    return Records(tuple(results), tuple(damaged), tuple(open_attempts), tuple(stray))


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
