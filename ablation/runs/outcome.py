"""What became of an attempt?  The one place that says `ok`, `diverged` or anything else.

`judge` decides from exit code, summary, steps and finiteness together; `result_from` demands of a
record that is read what `judge` demanded when it was written.
"""

import contextlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ablation.runs.foreign_log import ForeignLog
from ablation.runs.formats import Reading, guess_format
from ablation.runs.log import LEAST, SAME_LOSS, SUMMARY_FIELDS, LogReader, read_log
from ablation.runs.printed import NOTHING, Printed, text_of
from ablation.runs.run import Interval, RunConfig, RunResult, run_from
from ablation.runs.untrusted import is_count, is_number, printable


@dataclass(frozen=True)
class Exit:
    """How the processes of an attempt ended: the watcher's exit.json, or a launcher's word in its
    place."""

    returncode: int | None  # None: nobody saw it end
    ended_by: str  # "itself", or why it was ended: "timeout", "stall", or the words of an order
    clock: str  # this and the next three as in Interval
    start_s: float
    end_s: float
    nodes: int = 1

    @property
    def interval(self) -> Interval:
        return Interval(self.clock, self.start_s, self.end_s, self.nodes)


# in place of an exit.json that no watcher can have written: on no clock, so inside of no launch
UNBELIEVED = Exit(None, "its exit.json cannot be believed", "", 0.0, 0.0)


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


MOST_S = 1e12  # of any clock; chosen, 30 thousand years
MOST_MS = 1e15


def is_interval(start_s, end_s) -> bool:
    numbers = is_number(start_s) and is_number(end_s)
    return numbers and -MOST_S <= start_s <= end_s <= MOST_S


def is_returncode(value) -> bool:
    return value is None or (type(value) is int and abs(value) < 1 << 32)


def judge_attempt(
    run: RunConfig, attempt: int, folder: Path, log: Printed, exit: Exit
) -> RunResult:
    """Judge an attempt by what its folder holds. `log` is the screen's copy, output.log."""
    own = read_log(folder / "train_log.txt", run.num_iterations, log.reading)
    result = judge(run, attempt, log.with_file(own), exit)
    if not result.final or result.curve or not (other := other_form(log.reading, folder)):
        return result
    reason = f"its lines are of the form {other!r}, not {log.reading.format.name!r}"
    return replace(result, reason=printable(f"{reason}: {result.reason}", limit=MAX_REASON))


def other_form(reading: Reading, folder: Path) -> str:
    """The name of another form that the log of an attempt has; empty for none."""
    with contextlib.suppress(OSError, ValueError):
        form = guess_format(folder / "output.log")
        if form and form.name != reading.format.name:
            return form.name
    return ""


STOPPED = {"timeout": "its time limit", "stall": "a silence that was too long"}


def judge(run: RunConfig, attempt: int, log: Printed, exit: Exit) -> RunResult:
    """Decide from exit code, log, steps and finiteness together what became of an attempt.

    How a log is read, its reader knows. Our own form has a summary; of any other, `evidence` tells
    what was concluded from what.
    """
    wall_ms = 1000 * (exit.end_s - exit.start_s)
    refused_log, earned = verdict_on(log, exit.returncode, wall_ms)
    numbers: dict = {}
    if log.non_finite:
        status, reason = "diverged", f"non-finite loss: {text_of(log.non_finite)}"
    elif exit.returncode == 0 and not refused_log:
        status, reason, numbers = "ok", "", earned
    elif what := STOPPED.get(exit.ended_by):
        status, reason = "timeout", explained(f"stopped after {what} at step {log.step}", log)
    elif exit.ended_by != "itself":
        where = f", at step {log.step}" if log.step or log.tail else ""
        status, reason = "interrupted", f"{printable(exit.ended_by)}{where}"
    elif words := refusal(log, exit.returncode):
        status, reason = "refused", words
    else:
        status, reason = "crashed", crash_reason(log, exit.returncode, refused_log)
        numbers = {"evidence": would_say_it_again(log, exit.returncode)}
    return RunResult(
        run=run,
        attempt=attempt,
        status=status,
        reason=printable(reason, limit=MAX_REASON),
        clock=exit.clock,
        start_s=exit.start_s,
        end_s=exit.end_s,
        nodes=exit.nodes,
        steps_done=log.steps_done,
        curve=curve_of(log, wall_ms),
        returncode=exit.returncode,
        by_time=not log.reading.counts_steps,
        **numbers,
    )


MAX_REASON = 600  # characters; chosen, some lines of a terminal


def earned_numbers(summary: dict) -> dict:
    """A summary's numbers as a RunResult has them."""
    named = [field for field in SUMMARY_FIELDS if field.name != "steps_done"]
    return {f.name: summary[f.name] if f.whole else float(summary[f.name]) for f in named}


def verdict_on(log: Printed, returncode: int | None, wall_ms: float) -> tuple[str, dict]:
    """Why a log cannot give an `ok`, and the numbers that it gives where it can."""
    incomplete = log.incomplete_after(returncode)
    if isinstance(log, ForeignLog):
        numbers = {} if incomplete else concluded_numbers(log, wall_ms)
        return incomplete or fault_of_loss(log, numbers["val_loss"]), numbers
    assert isinstance(log, LogReader)
    refused = incomplete or overlong(log.summary, wall_ms / 1000)
    return refused, {} if refused or not log.summary else earned_numbers(log.summary)


MOST_LOSS = 1e9


def fault_of_loss(log: Printed, loss: float) -> str:
    return "" if abs(loss) <= MOST_LOSS else f"{log.reading.metric} {loss}: beyond {MOST_LOSS:g}"


def concluded_numbers(log: ForeignLog, wall_ms: float) -> dict:
    """The numbers of a whole training whose form has no summary. A training time that the log does
    not tell, or that the attempt did not have, is that of the attempt by the clock."""
    _, loss, time_ms = log.curve[-1]
    told = has_times(log, wall_ms)
    train_time_ms = float(time_ms) if told and time_ms is not None else max(wall_ms, 1.0)
    times = "" if told else "; training time: the attempt's by the clock"
    evidence = f"exit code 0; {log.concluded}{times}"
    return {
        "val_loss": loss,
        "train_time_ms": train_time_ms,
        "step_avg_ms": train_time_ms / max(1, log.steps_done),
        "evidence": printable(evidence, limit=MAX_REASON),
    }


def has_times(log: Printed, wall_ms: float) -> bool:
    """Whether a log tells a training time at every point, and one that the attempt can have had."""
    times = [time_ms for *_, time_ms in log.curve if time_ms is not None]
    if not times or len(times) < len(log.curve):
        return False
    return times[-1] >= LEAST and not overlong({"train_time_ms": times[-1]}, wall_ms / 1000)


def curve_of(log: Printed, wall_ms: float) -> tuple[tuple[int, float, float], ...]:
    """The curve with a time at every point: where the log of another trainer tells none, the
    attempt's time by the clock is shared out evenly over the steps."""
    share_ms = wall_ms / max(1, log.step)
    shared = isinstance(log, ForeignLog) and not has_times(log, wall_ms)
    return tuple(
        (step, loss, share_ms * step if shared or time_ms is None else time_ms)
        for step, loss, time_ms in log.curve
    )


def would_say_it_again(log: Printed, returncode: int | None) -> str:
    """What a trainer that knows no summary ended with, where another attempt would print the same:
    with exit code 0, and without a value of the metric, or at its end."""
    if not isinstance(log, ForeignLog) or returncode != 0 or log.unread:
        return ""
    at_end = not log.reading.counts_steps or log.step == log.last_step
    nothing = f"no {log.reading.metric}" if not log.curve else f"steps to {log.step}"
    return f"exit code 0; {nothing}; no summary in this form" if at_end or not log.curve else ""


def overlong(numbers: dict | None, wall_s: float) -> str:
    """What is wrong with a training time that the attempt did not have; empty for nothing."""
    if not numbers or numbers["train_time_ms"] <= 1000 * (1.01 * wall_s + 0.1):
        return ""
    took = f"more than the {wall_s:.1f} s that the attempt took by the clock"
    return f"train_time_ms {numbers['train_time_ms']}: {took}"


def refusal(log: Printed, returncode: int | None) -> str:
    """The words of a trainer that says it cannot work: exit code 2, its own or, where torchrun
    ended with 1, that of the worker that failed first. One that says no more than that says what
    its log holds. Empty for any other end."""
    if returncode == 2 or (returncode == 1 and log.worker_refused):
        return text_of(log.refusal) or log.last_words or explained("exit code 2", log)
    return ""


def crash_reason(log: Printed, returncode: int | None, refused_log: str) -> str:
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


def explained(how: str, log: Printed) -> str:
    """How an attempt ended, with the last words of its log, or with what else it holds."""
    if not log.incomplete:
        how = f"{how}, but {log.contents}"
    elif not log.last_words:
        how = f"{how}{', ' if log.contents == NOTHING else '; '}{log.contents}"
    return f"{how}: {log.last_words}" if log.last_words else how


def result_from(value: dict) -> RunResult:
    """The inverse of `asdict`. Raises ValueError for anything that is not a whole RunResult, and
    for one that nobody can have written: reading demands what `judge` demands."""
    try:
        curve = tuple((step, loss, time_ms) for step, loss, time_ms in value["curve"])
        fields = {**value, "run": run_from(value["run"]), "curve": curve}
        texts = {"reason": value["reason"], "evidence": value.get("evidence", "")}
        printed = {name: printable(text, limit=MAX_REASON) for name, text in texts.items()}
        result = RunResult(**{**fields, **printed})
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
    if type(r.by_time) is not bool or (r.by_time and r.status == "ok" and not r.evidence):
        return "it does not say what it was concluded from"
    return unearned(r) if r.status == "ok" else ""


def unearned(r: RunResult) -> str:
    """Why a result does not deserve its `ok`; empty where it does."""
    if r.evidence:
        return unconcluded(r)
    total = r.run.num_iterations
    numbers = {f.name: getattr(r, f.name) for f in SUMMARY_FIELDS}
    faults = (f.fault(numbers) for f in SUMMARY_FIELDS)
    if fault := next(filter(None, faults), "") or overlong(numbers, r.wall_s):
        return f"it is ok, but {fault}"
    if r.returncode not in (0, None):
        return f"it is ok, but its exit code is {r.returncode}"
    if r.steps_done != total or not r.curve or r.curve[-1][0] != total:
        return f"it is ok, but does not reach step {total}"
    if abs(r.curve[-1][1] - r.final_loss) > SAME_LOSS:
        return f"its val_loss {r.val_loss} is not the end of its curve ({r.curve[-1][1]})"
    return ""


def unconcluded(r: RunResult) -> str:
    """Why a result that no summary speaks for does not deserve its `ok`; empty where it does."""
    time = next(f for f in SUMMARY_FIELDS if f.name == "train_time_ms")
    numbers = {"train_time_ms": r.train_time_ms}
    if fault := time.fault(numbers) or overlong(numbers, r.wall_s):
        return f"it is ok, but {fault}"
    if not -MOST_LOSS <= r.final_loss <= MOST_LOSS:
        return f"it is ok, but its val_loss is {r.val_loss}"
    if r.returncode != 0:
        return f"it is ok, but its exit code is {r.returncode}"
    total, (step, loss, _) = r.run.num_iterations, r.curve[-1] if r.curve else (-1, 0.0, 0.0)
    if not r.by_time and (r.steps_done != total or step not in (total - 1, total)):
        return f"it is ok, but does not reach step {total}"
    if step not in (r.steps_done - 1, r.steps_done):
        return f"it is ok, but has no value at its last step, {r.steps_done}"
    return "" if loss == r.val_loss else f"its val_loss {r.val_loss} is not that of its last step"
