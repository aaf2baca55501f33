"""One sitting: results -> plan -> launch -> results, until the plan ends or something stops it.

Nothing here decides about arms: `next_step` does, from the results alone. What is decided
here is when a sitting ends: the plan's end, a person, the budget, or a machine that is broken.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ablation.cli import exit_codes
from ablation.cli.arguments import pasteable
from ablation.execute import watcher
from ablation.execute.answering import Told
from ablation.execute.command import command_for
from ablation.execute.display import Display
from ablation.execute.launcher import Command, Launcher
from ablation.execute.lock import Lock
from ablation.execute.orchestrator import Limits, Orchestrator
from ablation.execute.page_writer import PAGE, PageWriter
from ablation.folder.materials import CodeCopy
from ablation.folder.overrides import put_on_record
from ablation.folder.results import write_results
from ablation.plan.costs import Costs
from ablation.plan.decision import counted, is_overridden, render
from ablation.plan.forecast import Planned, forecast, span_s
from ablation.plan.next_step import BUDGET_SPENT, Step, conclude, next_step, result_that_stands
from ablation.runs.run import RunConfig, RunResult, duration, machine_seconds, spent_of
from ablation.runs.store import Attempt
from ablation.study.experiment import Experiment, asked_by
from ablation.study.study import Metric


class StopRequest:
    """Ctrl-C or SIGTERM asks to stop; a second one ends at once. A lost terminal is survived."""

    def __init__(self):
        self.signal = ""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number, _frame):
        if self.signal:
            os._exit(128 + number)  # the watchers see the pipe close and end their runs
        self.signal = signal.Signals(number).name


@dataclass(frozen=True)
class Sitting:
    """What a sitting runs, where, and until when."""

    exp_dir: Path
    experiment_id: str
    codes: Mapping[tuple, CodeCopy]  # the copies under code/, by Arm.trainer
    data_dir: Path
    facts: dict  # versions, machine, git: written into every run's config.json
    lock: Lock
    launcher: Launcher
    running: Sequence[Attempt]  # attempts of an earlier sitting that go on
    stages: range  # that were asked for; the sitting ends with the last of them
    ignore_gate: bool
    stall_s: float
    decided: frozenset[int]  # stages whose decisions were known when it began
    to_come: Sequence[Planned]  # what was still to run then
    told: Told  # what it comes to, for whoever gave the command
    page: PageWriter  # beside it

    @property
    def until(self) -> int:
        return self.stages[-1]


# ---------------------------------------------------------------------------------------------
# What a run may take


def set_aside_s(
    e: Experiment, results: Sequence[RunResult], in_flight: Sequence[tuple[RunConfig, float]]
) -> float:
    """What runs in flight are still expected to cost, where each is paid for on its own.

    in_flight: each run with the machine time that it has taken so far, seconds.
    """
    costs = Costs(e, results)
    if not e.share.paid_each:
        return 0.0
    return sum(max(0.0, costs(run) - paid_s) for run, paid_s in in_flight)


def limits_of(e: Experiment, run: RunConfig, results, spent_s: float, stall_s: float) -> Limits:
    """A run may take three times what is expected and a little more, but not past the budget."""
    patience_s = 3 * Costs(e, results).wall_s(run) + 120
    left_s = (3600 * e.budget_hours - spent_s) / e.share.nodes
    if left_s < patience_s:
        return Limits(left_s, BUDGET_SPENT, stall_s)
    return Limits(patience_s, "timeout", stall_s)


# ---------------------------------------------------------------------------------------------
# A machine that breaks does not eat the plan

FAULT_RUNS, FAULT_ATTEMPTS = 3, 9  # in a row, before it is the machine that is doubted


def failed(r: RunResult) -> bool:
    return r.status in ("crashed", "timeout")


def fault_of(
    e: Experiment, failures: Sequence[RunResult], last: RunResult, results: Sequence[RunResult]
) -> str:
    """Why the sitting stops after this result; empty while it goes on.

    failures: the attempts that failed in a row, up to now. That of several runs means a broken
    machine, if their arms differ or have trained before; one arm that never has trained may be at
    fault itself. Another trainer whose first training cannot be read would train on for nothing.
    """
    if last.status == "refused":
        return f"{last.run.name}: the trainer refuses: {last.reason}"
    if last.status == "interrupted" and last.reason.startswith(watcher.OF_THE_MACHINE):
        return f"{last.run.name}: {last.reason}"
    if not e.study.trainer.is_ours and last.final and not any(r.has_outcome for r in results):
        return f"{last.run.name}, the first to end, cannot be read: {last.reason}"
    runs = {r.run.name for r in failures}
    arms = {r.run.arm.configuration for r in failures}
    trained = any(r.has_outcome and r.run.arm.configuration in arms for r in results)
    many = len(failures) >= FAULT_ATTEMPTS or sum(r.final for r in failures) >= FAULT_RUNS
    if not many or len(runs) < FAULT_RUNS or not (trained or len(arms) > 1):
        return ""
    return (
        f"{len(failures)} attempts at {len(runs)} runs failed in a row, of different arms or of"
        " one that has trained before: the machine seems broken."
        f" The last: {last.status}: {last.reason}"
    )


def in_a_row(failures: Sequence[RunResult], latest: RunResult) -> list[RunResult]:
    """The failures in a row after one more result: an outcome ends the row, a stop does not."""
    if latest.has_outcome:
        return []
    return [*failures, latest] if failed(latest) else [*failures]


def failed_last(e: Experiment, results: Sequence[RunResult]) -> list[RunResult]:
    """The failures in a row that earlier sittings ended with, as far as their order is known: on
    this machine, since it was started. A queue that starts a sitting again and again on a broken
    machine is to be told, too."""
    failures: list[RunResult] = []
    here = watcher.boot_clock()
    for r in sorted((r for r in results if r.clock == here), key=lambda r: r.end_s):
        failures = in_a_row(failures, r)
    return [r for r in failures if (r.run.name, r.attempt) not in e.overrides.forgiven]


def fault_at_end(failures: Sequence[RunResult], results: Sequence[RunResult]) -> str:
    """The same where the plan came to its end before so many had failed."""
    trained = {r.run.arm.configuration for r in results if r.has_outcome}
    runs = {r.run.name for r in failures if r.run.arm.configuration in trained}
    if len(runs) < 2:
        return ""
    last = failures[-1]
    return (
        f"the last {len(runs)} runs failed, of arms that have trained before: the machine seems"
        f" broken. The last: {last.status}: {last.reason}"
    )


def forgiveness(failures: Sequence[RunResult], why: str) -> dict:
    """The value of an override by which these failures are not held against their runs."""
    return {"attempts": [[r.run.name, r.attempt] for r in failures], "why": why}


# ---------------------------------------------------------------------------------------------
# The loop


def drive(e: Experiment, s: Sitting, results: list[RunResult], display: Display) -> int:
    """Run until the plan ends, the stages asked for are decided, or something stops it; the exit
    code."""
    orchestrator = Orchestrator(
        s.exp_dir, s.experiment_id, s.launcher, partial(command_of, e, s), s.facts,
        e.share.parallel_runs, e.study.trainer.reading,
    )  # fmt: skip
    try:
        return drive_with(orchestrator, e, s, results, display)
    except (OSError, ValueError) as error:  # a full disk, a lock or a folder that is gone
        orchestrator.leave(f"its sitting ended: {error}")
        raise


def drive_with(
    orchestrator: Orchestrator, e: Experiment, s: Sitting, results: list[RunResult], display
) -> int:
    stop = StopRequest()
    flights, failures, fault = orchestrator.flights, failed_last(e, results), ""
    to_come = s.to_come
    shown = set(s.decided) - {s.until}  # what it was asked to decide is shown again

    def take(ended: Sequence[RunResult]) -> None:
        nonlocal failures, fault, to_come
        for r in ended:
            results.append(r)
            to_come = forecast(e, results)[0]
            done = runs_with_outcome(results)
            display.print_line(result_line(e.study.metric, r, done, len(to_come)))
            failures = in_a_row(failures, r)
            fault = fault or fault_of(e, failures, r, results)

    take(orchestrator.reattach(s.running, s.stall_s))
    while True:
        spent_s = machine_seconds(results, orchestrator.intervals())
        spent_s += set_aside_s(e, results, orchestrator.paid_so_far())
        step = conclude(next_step(e, results, frozenset(flights), spent_s))
        if step.at_gate and s.ignore_gate and step.stage <= s.until:
            e = put_on_record(s.exp_dir, e, "ignore_gate", step.stage, {})
            past = f"going on past stage {step.stage} ({step.ended})"
            display.print_line(f"OVERRIDE, on record: {past}.")
            continue
        show_decisions(e, step, shown, display)
        write_results(s.exp_dir, s.experiment_id, e, results, step)
        over = bool(step.ended or fault) or step.stage > s.until
        if stop.signal or (over and not flights):
            break
        if step.runs and not over and may_launch(orchestrator, failures):
            limits = limits_of(e, step.runs[0], results, spent_s, s.stall_s)
            take(orchestrator.launch(step.runs[0], limits))
        else:
            take(next_ended(orchestrator, e, s, results, to_come, stop, display))

    take(orchestrator.stop("the operator stopped it"))
    return end_of_sitting(e, s, results, failures, fault, stop.signal, display)


def may_launch(orchestrator: Orchestrator, failures: Sequence[RunResult]) -> bool:
    """Whether a slot is free, and the runs in flight could not show, with the failures in a row,
    that the machine is broken: then no run is begun beside them."""
    flights = orchestrator.flights
    doubted = bool(failures and flights) and len(failures) + len(flights) >= FAULT_ATTEMPTS
    return not doubted and orchestrator.free_slot() is not None


def next_ended(
    orchestrator: Orchestrator, e: Experiment, s: Sitting, results: Sequence[RunResult],
    to_come: Sequence[Planned], stop: StopRequest, display: Display,
) -> list[RunResult]:  # fmt: skip
    """Wait, with live lines, until a run ends or somebody asks to stop: the runs that ended. What
    is still in flight when the budget is spent is stopped."""
    ended: list[RunResult] = []
    while not (ended or stop.signal):
        ended = orchestrator.wait(0.2)
        s.lock.touch()
        s.page.look()
        spent_s = machine_seconds(results, orchestrator.intervals())
        if spent_s > 3600 * e.budget_hours:
            orchestrator.order_stop(BUDGET_SPENT)
        flights, done = list(orchestrator.flights.values()), runs_with_outcome(results)
        total = done + len(to_come)
        plan = plan_line(e, done + len(flights), total, spent_s, span_s(to_come))
        display.progress(flights, plan)
    return ended


def command_of(e: Experiment, s: Sitting, run: RunConfig, folder: Path, slot: int) -> Command:
    """The command of an attempt in this folder, with this slot's share of the machine."""
    copy = s.codes[run.arm.trainer]
    return command_for(e, run, copy, s.data_dir, s.exp_dir, folder, slot)


def show_decisions(e: Experiment, step: Step, shown: set[int], display: Display) -> None:
    for number in sorted(step.decisions.keys() - shown):
        shown.add(number)
        decision = step.decisions[number]
        display.print_line("\n" + render(decision, is_overridden(decision, e.overrides)) + "\n")


# ---------------------------------------------------------------------------------------------
# How it ended


def given_up(e: Experiment, results: Sequence[RunResult], stages: range) -> list[RunResult]:
    """The last failure of each run of these stages that failed for good."""
    attempts: dict[tuple, list[RunResult]] = {}
    for r in sorted(results, key=lambda r: r.attempt):
        if r.run.stage in stages:
            attempts.setdefault(r.run.key, []).append(r)
    ends = [result_that_stands(mine, e.overrides.forgiven) for mine in attempts.values()]
    return [r for r in ends if r is not None and not r.has_outcome]


def exit_code(
    e: Experiment, results, step: Step, stages: range, stopped: str = "", fault: bool = False
) -> int:
    """What the sitting says to whoever started it; 0 only when what was asked for was done."""
    if stopped:
        return exit_codes.STOPPED + signal.Signals[stopped]
    if fault or step.fault:
        return exit_codes.FAULT
    if step.ended == BUDGET_SPENT and step.stage in stages:
        return exit_codes.BUDGET_SPENT
    none = bool(results) and not any(r.has_outcome for r in results)  # a stage can need no run
    return exit_codes.RUNS_FAILED if none or given_up(e, results, stages) else exit_codes.DONE


def end_of_sitting(
    e: Experiment, s: Sitting, results: Sequence[RunResult], failures: Sequence[RunResult],
    fault: str, stopped: str, display: Display,
) -> int:  # fmt: skip
    """Put on record and say how it ended; the exit code. fault: why the machine, or the trainer, is
    not trusted; stopped: the signal that stopped it."""
    if not stopped:
        fault = fault or fault_at_end(failures, results)
    if fault and failures:
        e = put_on_record(s.exp_dir, e, "retry", 0, forgiveness(failures, fault))
    step = conclude(next_step(e, results))
    write_results(s.exp_dir, s.experiment_id, e, results, step)
    close(e, s, results, step, stopped, fault, display.print_line)
    code = exit_code(e, results, step, s.stages, stopped, bool(fault))
    if code == exit_codes.RUNS_FAILED:
        lost = [f"{r.run.name}: {r.in_words()}" for r in given_up(e, results, s.stages)]
        s.told.error = "; ".join(lost) or "no run has an outcome"
    else:
        s.told.error = f"stopped by {stopped}" if stopped else fault or step.ended * step.fault
    return code


def close(e: Experiment, s: Sitting, results, step, stopped: str, fault: str, print_line) -> None:
    """The last lines of a sitting: how it ended, what it cost, what to do next."""
    spent = f"{spent_of(machine_seconds(results), e.budget_hours)} of machine time spent"
    outcomes = counted(results) or "nothing finished"
    go_on = resume_command(e, s.exp_dir)
    print_line()
    for cut in step.budget_cuts:
        print_line(f"Cut by the budget: {cut}")
    for r in given_up(e, results, s.stages):
        last = f"attempt {r.attempt} was the last"
        print_line(f"Failed for good, {last}: {r.run.name}: {r.in_words()}")
    if stopped:
        print_line(f"Stopped by {stopped}; {outcomes}; {spent}.")
    elif fault:
        print_line(
            f"STOPPED: {fault}. Its log lies in the run's folder, the command in config.json. Where"
            " the study or the trainer has to be mended, begin anew: this experiment keeps the"
            " copies that it began with. Else mend the cause and give the command below: nothing"
            " of this is held against a run."
        )
        print_line(f"{outcomes}; {spent}.")
    elif step.ended:
        print_line(f"Ended: {step.ended}. {outcomes}; {spent}.")
    else:
        print_line(f"Stage {s.until} is decided. {outcomes}; {spent}.")
    if step.at_gate:
        print_line(f"Go on all the same: {go_on} --ignore_gate")
    elif not step.ended:
        print_line(f"Go on: {go_on}")
    if s.page.writes:
        print_line(f"Page: {s.exp_dir / PAGE}")
    print_line(f"Report and figures: python analyze_aux.py --exp_dir {pasteable(s.exp_dir)}")


def runs_with_outcome(results: Sequence[RunResult]) -> int:
    return len({r.run.name for r in results if r.has_outcome})


def plan_line(e: Experiment, number: int, total: int, spent_s: float, left_s: float) -> str:
    spent = spent_of(spent_s, e.budget_hours)
    return f"run {number} of {total}, {spent} spent, about {duration(left_s)} to go"


def result_line(metric: Metric, r: RunResult, done: int, to_come: int) -> str:
    again = f", attempt {r.attempt}" if r.attempt > 1 else ""
    said = f"{r.run.name}{again}: {metric.outcome(r)}"
    return f"[{done}/{done + to_come}] {said} ({duration(r.wall_s)})"


def resume_command(e: Experiment, exp_dir: Path) -> str:
    return f"python run_aux.py {asked_by(e)} --exp_dir {pasteable(exp_dir)}"
