"""Do auxiliary prediction heads at intermediate layers make a GPT train better, and which ones?

A staged ablation: four stages, each deciding whether the next is worth its cost. One run is one
training of `train_gpt.py`; every decision follows from the results on disk (plans.py).

    python run_aux.py --staged --max_budget_hours 7     # all four stages
    python run_aux.py --staged --dry_run                # every command, count and hour, first
    python run_aux.py --stage 2                         # one stage, in the newest experiment
    python run_aux.py --experiment baseline,aux_4_8 --runs 5

Writes experiments/aux_heads_YYYYMMDD_HHMMSS/ (README.md, "What lies in an experiment folder").
"""

import argparse
import contextlib
import difflib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import decision as helper
import launchers
import slurm
from command import build_command, extra_environment, torchrun
from display import Display
from experiment import (
    ARMS,
    PHASES,
    PROFILES,
    QUESTION,
    SCHEDULE,
    WEIGHT,
    Costs,
    Experiment,
    default_profile,
)
from machine import ROOT, cores, git_state, machine, versions, visible_gpus
from materials import Materials, check_materials
from orchestrator import (
    Launcher,
    Limits,
    Lock,
    Orchestrator,
    holder,
    outcome,
    read_in_flight,
    reconcile,
)
from plans import PLANS, forecast, next_step, paid_s, pairs_begun, span_s
from records import (
    STATUSES,
    Arm,
    RunConfig,
    RunResult,
    duration,
    machine_seconds,
    printable,
    read_json,
    read_records,
)
from registration import (
    begin,
    check_choice,
    check_unchanged,
    experiment_of,
    newest_experiment,
    read_document,
    record_overrides,
    registered,
    with_override,
    with_overrides_on_record,
    write_results,
)

# ---------------------------------------------------------------------------------------------
# Before anything runs: what the plan will do, and what it will cost


def announce(e: Experiment, results: Sequence[RunResult], say) -> None:
    """Runs and hours of each stage against the budget, and what the budget cuts."""
    planned, last = forecast(e, results)
    spent_s = machine_seconds(results)
    total_s = spent_s + paid_s(e, planned)
    for stage in PLANS[e.plan]:
        mine = [p for p in planned if p.run.stage == stage.number]
        done = sum(r.run.stage == stage.number and r.settled for r in results)
        name = f"stage {stage.number} {stage.name}:" if stage.number else "by hand:"
        if mine or done:
            say(
                f"  {name:<26} {len(mine):>3} runs to do{f', {done} done' if done else ''},"
                f" {duration(paid_s(e, mine))}"
            )
    say(f"  total: {duration(total_s)} of the budget of {duration(3600 * e.budget_hours)}")
    for cut in last.cut:
        say(f"  cut by the budget: {cut}")
    if last.stage and last.stage < 4:
        say(
            f"  The budget ends in stage {last.stage}, before the final validation. To finish: a"
            " smaller --profile, a smaller --full_iterations, or a larger --max_budget_hours."
        )


def dry_run(e: Experiment, m: Materials, exp_dir: Path, results: Sequence[RunResult]) -> None:
    """Print every command, as it would run if each gate let the plan pass and 4,8 won."""
    print("Dry run: nothing is launched or written. Every gate is assumed to let the plan pass;")
    print("later stages are shown as if the layers 4,8 and the defaults won.\n")
    planned, _ = forecast(e, results)
    environment = "".join(f"{k}={v} " for k, v in extra_environment(e, exp_dir).items())
    for number, p in enumerate(planned, 1):
        log_file = exp_dir / p.run.name / "train_log.txt"
        command = build_command(e, p.run, m.script, m.data_dir, log_file)
        print(f"# {number}/{len(planned)} stage {p.run.stage}: {p.run.name}, {duration(p.wall_s)}")
        print(environment + shlex.join(command))
    print()
    announce(e, results, print)


# ---------------------------------------------------------------------------------------------
# The loop: results -> plan -> launch -> results


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
class Session:
    """One sitting of the orchestrator: what it runs, where, and until when."""

    exp_dir: Path
    experiment_id: str
    script: Path  # the copy under code/
    data_dir: Path
    facts: dict  # versions, machine, git: written into every run's config.json
    lock: Lock
    launcher: Launcher
    running: Sequence[tuple[str, int, Path]]  # attempts of an earlier sitting that go on
    until: int  # the last stage of this sitting
    ignore_gate: bool
    stall_s: float


BUDGET_SPENT = "the budget is spent"


def set_aside_s(
    e: Experiment, results: Sequence[RunResult], in_flight: Sequence[tuple[RunConfig, float]]
) -> float:
    """What runs in flight are still expected to cost, where each is paid for on its own.

    in_flight: each run with the machine time that it has taken so far, seconds.
    """
    costs = Costs(e, results)
    return sum(max(0.0, costs(run) - paid_s) for run, paid_s in in_flight) if e.paid_each else 0.0


def limits_of(e: Experiment, run: RunConfig, results, spent_s: float, stall_s: float) -> Limits:
    """A run may take three times what is expected and a little more, but not past the budget."""
    patience_s = 3 * Costs(e, results).wall_s(run) + 120
    left_s = (3600 * e.budget_hours - spent_s) / e.nodes
    if left_s < patience_s:
        return Limits(left_s, BUDGET_SPENT, stall_s)
    return Limits(patience_s, "timeout", stall_s)


def drive(e: Experiment, s: Session, results: list[RunResult], display: Display) -> int:
    """Run until the plan ends, the stage asked for is decided, or a person stops it."""
    stop = StopRequest()
    orchestrator = Orchestrator(s.exp_dir, s.experiment_id, s.launcher, e.slots)
    for result in orchestrator.adopt(s.running, s.stall_s):
        results.append(result)
        display.say(result_line(result, finished(results), len(forecast(e, results)[0])))
    flights = orchestrator.flights
    shown = set(next_step(e, results).decisions) - {s.until}
    to_come = forecast(e, results)[0]

    while True:
        spent_s = machine_seconds(results, orchestrator.intervals())
        spent_s += set_aside_s(e, results, orchestrator.paid_so_far())
        step = next_step(e, results, frozenset(flights), spent_s)
        if step.at_gate and s.ignore_gate and step.stage <= s.until:
            e = record_overrides(s.exp_dir, with_override(e, "ignore_gate", step.stage, {}))
            display.say(f"OVERRIDE, on record: going on past stage {step.stage} ({step.ended}).")
            continue
        for number in sorted(step.decisions.keys() - shown):
            shown.add(number)
            overridden = e.overridden(number, "ignore_gate") is not None
            display.say("\n" + helper.render(step.decisions[number], overridden) + "\n")
        write_results(s.exp_dir, s.experiment_id, e, results, step)
        over = bool(step.ended) or step.stage > s.until
        if stop.signal or (over and not flights):
            break
        if not over and step.runs and orchestrator.free_slot() is not None:
            run = step.runs[0]
            limits = limits_of(e, run, results, spent_s, s.stall_s)
            folder, attempt = orchestrator.next_attempt(run)
            command = build_command(e, run, s.script, s.data_dir, folder / "train_log.txt")
            env = extra_environment(e, s.exp_dir, orchestrator.free_slot())
            job = launchers.Job(command, env, folder)
            orchestrator.start(run, attempt, job, s.facts, limits)
            continue
        ended = []
        while not (ended or stop.signal):
            ended = orchestrator.wait(0.2)
            s.lock.touch()
            spent_s = machine_seconds(results, orchestrator.intervals())
            if spent_s > 3600 * e.budget_hours:
                orchestrator.order_stop(BUDGET_SPENT)
            done = finished(results)
            total = done + len(to_come)
            plan = plan_line(e, done + len(flights), total, spent_s, span_s(to_come))
            display.progress(list(flights.values()), plan)
        for result in ended:
            results.append(result)
            to_come = forecast(e, results)[0]
            display.say(result_line(result, finished(results), len(to_come)))

    for result in orchestrator.stop("the operator stopped it"):
        results.append(result)
        display.say(result_line(result, finished(results), len(forecast(e, results)[0])))
    step = next_step(e, results)
    write_results(s.exp_dir, s.experiment_id, e, results, step)
    close(e, s, results, step, stop.signal, display.say)
    return 128 + signal.Signals[stop.signal] if stop.signal else 0


def plan_line(e: Experiment, number: int, total: int, spent_s: float, left_s: float) -> str:
    budget = f"{spent_s / 3600:.2f} of {e.budget_hours:g} h spent"
    return f"run {number} of {total}, {budget}, about {duration(left_s)} to go"


def finished(results: Sequence[RunResult]) -> int:
    return len({r.run.name for r in results if r.settled})


def result_line(r: RunResult, done: int, to_come: int) -> str:
    again = f", attempt {r.attempt}" if r.attempt > 1 else ""
    return f"[{done}/{done + to_come}] {r.run.name}{again}: {outcome(r)} ({duration(r.wall_s)})"


def close(e: Experiment, s: Session, results, step, stopped: str, say) -> None:
    """The last lines of a sitting: how it ended, what it cost, what to do next."""
    spent = f"{machine_seconds(results) / 3600:.2f} of {e.budget_hours:g} h of machine time spent"
    counted = ", ".join(
        f"{n} {status}" for status in STATUSES if (n := sum(r.status == status for r in results))
    )
    say()
    for cut in step.cut:
        say(f"Cut by the budget: {cut}")
    if stopped:
        say(f"Stopped by {stopped}; {counted or 'nothing finished'}; {spent}.")
    elif step.ended:
        say(f"Ended: {step.ended}. {counted}; {spent}.")
    else:
        say(f"Stage {s.until} is decided. {counted}; {spent}.")
    if step.at_gate:
        go_on = f"python run_aux.py --staged --ignore_gate --exp_dir {quoted(s.exp_dir)}"
        say(f"Go on all the same: {go_on}")
    elif not step.ended:
        say(f"Go on: {resume_command(e, s.exp_dir)}")
    say(f"Report and figures: python analyze_aux.py --exp_dir {quoted(s.exp_dir)}")


def resume_command(e: Experiment, exp_dir: Path) -> str:
    by_hand = f"--experiment {','.join(arm.name for arm in e.arms)}"
    how = "--staged" if e.plan != "manual" else by_hand
    return f"python run_aux.py {how} --exp_dir {quoted(exp_dir)}"


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


# ---------------------------------------------------------------------------------------------
# Looking on


def status(exp_dir: Path) -> dict:
    """Where an experiment stands, from its files alone."""
    document = read_document(exp_dir)
    e = with_overrides_on_record(experiment_of(document), exp_dir)
    records = read_records(exp_dir, document["experiment_id"])
    step = next_step(e, records.results, conclude=False)
    planned, _ = forecast(e, records.results)
    latest = records.latest().values()
    decisions = {str(n): d.title for n, d in step.decisions.items()}
    if step.ended and step.stage not in step.decisions:  # as written when the last run ended
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = read_json(exp_dir / "staged_ablation_results.json")["stages"]
            title = written[str(step.stage)]["decision"]["title"]
            decisions[str(step.stage)] = printable(title)
    orchestrator, lives = "none", False
    with contextlib.suppress(FileNotFoundError):
        who, lives = holder(exp_dir / "lock.json", time.time())
        orchestrator = who if lives else f"gone ({who})"
    open_attempts = [found for attempt in records.open if (found := read_in_flight(*attempt))]
    in_flight = [found.pop("interval") for found in open_attempts]
    spent_s = machine_seconds(records.results)
    in_flight_s = machine_seconds((), [i for i in in_flight if i]) if lives else 0.0
    return {
        "exp_dir": str(exp_dir),
        "plan": e.plan,
        "stage": step.stage,
        "ended": step.ended,
        "orchestrator": orchestrator,
        "in_flight": open_attempts if lives else [],
        "broken_off": [] if lives else open_attempts,
        "done": [r.run.name for r in latest if r.settled],
        "failed": {r.run.name: f"{r.status}: {r.reason}" for r in latest if not r.settled},
        "damaged": {str(path): why for path, why in records.damaged},
        "left": [p.run.name for p in planned],
        "decisions": decisions,
        "hours_spent": (spent_s + in_flight_s) / 3600,
        "hours_to_go": max(0.0, paid_s(e, planned) - in_flight_s) / 3600,
        "budget_hours": e.budget_hours,
    }


def print_status(s: dict) -> None:
    print(f"{s['exp_dir']} (plan {s['plan']})")
    print(f"  stage {s['stage']}{': ended, ' + s['ended'] if s['ended'] else ''}")
    print(f"  orchestrator: {s['orchestrator']}")
    for kind in ("in_flight", "broken_off"):
        for found in s[kind]:
            loss = "none yet" if found["val_loss"] is None else f"{found['val_loss']:.4f}"
            print(
                f"  {kind.replace('_', ' ')}: {found['run']},"
                f" step {found['step']}/{found['num_iterations']}, val loss {loss}"
            )
    for number, title in s["decisions"].items():
        print(f"  stage {number} decided: {title}")
    print(f"  done {len(s['done'])}, failed {len(s['failed'])}, left {len(s['left'])} runs")
    for kind in ("failed", "damaged"):
        for name, why in s[kind].items():
            print(f"  {kind}: {name}: {why}")
    print(
        f"  {s['hours_spent']:.2f} h spent, about {s['hours_to_go']:.2f} h to go,"
        f" budget {s['budget_hours']:g} h"
    )


def print_arms() -> None:
    print(f"{'arm':<24} {'layers':<10} {'weight':>6}  {'schedule':<13} description")
    for phase, arms in PHASES.items():
        print(f"\n{phase}")
        for arm in arms:
            layers = ",".join(map(str, arm.layers)) or "-"
            weight, schedule = (f"{arm.weight:g}", arm.schedule) if arm.layers else ("-", "-")
            print(f"  {arm.name:<22} {layers:<10} {weight:>6}  {schedule:<13} {arm.description}")


# ---------------------------------------------------------------------------------------------
# The command line


STAGED = tuple(plan for plan in PLANS if plan != "manual")
STOP_ON = "adaptive: any (default) or superiority"


class Parser(argparse.ArgumentParser):
    """Bad input is one line, without the whole usage before it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_aux.py",
        description=QUESTION,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
    )
    what = parser.add_argument_group("what to do (one of)").add_mutually_exclusive_group()
    what.add_argument("--staged", action="store_true", help="all four stages")
    what.add_argument("--stage", type=int, metavar="N", help="stage N (1 to 4) and its decision")
    what.add_argument("--experiment", metavar="ARMS", help="arms by name, comma-separated")
    what.add_argument("--phase", metavar="PHASE", help="all arms of a phase of --list")
    what.add_argument("--plan_report", action="store_true", help="what the budget can decide")
    what.add_argument("--list", action="store_true", help="every arm, by phase")
    what.add_argument("--status", action="store_true", help="where --exp_dir stands")

    how = parser.add_argument_group("what to run")
    how.add_argument("--profile", metavar="NAME", help=f"{', '.join(PROFILES)} (by the GPUs seen)")
    how.add_argument("--max_budget_hours", type=float, metavar="H", help="machine hours in all")
    how.add_argument("--plan", choices=STAGED, metavar="NAME", help="classic (default) or adaptive")
    how.add_argument("--stop_on", choices=("any", "superiority"), metavar="WHAT", help=STOP_ON)
    how.add_argument("--full_iterations", type=int, metavar="N", help="length of a full run")
    how.add_argument("--validation_runs", type=int, metavar="N", help="most pairs in stage 4")
    how.add_argument("--runs", type=int, metavar="K", help="seeds per arm by hand (1)")
    how.add_argument("--seeds", type=int_list, metavar="LIST", help="seeds by hand, as 1,2,3")
    how.add_argument("--best_layers", type=int_list, metavar="L", help="stage 3 or 4 by hand: 4,8")
    how.add_argument("--best_weight", type=float, metavar="W", help="stage 4 by hand: loss weight")
    how.add_argument("--best_schedule", metavar="S", help="stage 4 by hand: weight schedule")
    how.add_argument("--unet_skips", action="store_true", help="every model with U-net skips")
    how.add_argument("--log_grad_norms", action="store_true", help="what heads add to gradients")
    how.add_argument("--ignore_gate", action="store_true", help="go on past a STOP, on record")

    where = parser.add_argument_group("where and with what")
    where.add_argument("--exp_dir", type=Path, metavar="DIR", help="continue this experiment")
    where.add_argument("--output_dir", type=Path, metavar="DIR", help="where experiments lie")
    where.add_argument("--num_gpus", type=int, metavar="N", help="GPUs of a run (all; 0: CPU)")
    where.add_argument("--gpus_per_run", type=int, metavar="K", help="pack runs, K GPUs each")
    where.add_argument("--parallel_runs", type=int, metavar="K", help="pack K runs on a CPU")
    where.add_argument("--launcher", choices=("local", "slurm"), metavar="L", help="local or slurm")
    where.add_argument("--slurm_args", metavar="ARGS", help="for sbatch, as one word")
    where.add_argument("--nodes_per_run", type=int, metavar="N", help="nodes of a Slurm run (1)")
    where.add_argument("--cpu_processes", type=int, metavar="N", help="processes on a CPU (1)")
    where.add_argument("--device_batch_size", type=int, metavar="N", help="sequences per pass")
    where.add_argument("--data_dir", type=Path, metavar="DIR", help="token shards")
    where.add_argument("--train_script", type=Path, metavar="FILE", help="trainer (train_gpt.py)")
    where.add_argument("--stall_timeout", type=float, metavar="MIN", help="silence allowed (10)")
    where.add_argument("--dry_run", action="store_true", help="print commands and hours only")
    where.add_argument("--json", action="store_true", help="--status for programs")
    return parser


def int_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers as 1,2,3") from None


def check_arguments(args) -> None:
    """Raise ValueError for a value that cannot be meant, naming it and what can be."""
    positive = ("max_budget_hours", "full_iterations", "validation_runs", "runs")
    positive += ("cpu_processes", "gpus_per_run", "nodes_per_run", "parallel_runs")
    positive += ("device_batch_size",)
    for name in (*positive, "stall_timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} {value}: give a number above 0")
    by_hand = args.experiment or args.phase
    staged = args.staged or args.stage is not None or args.plan_report
    if not (staged or by_hand or args.status or args.exp_dir):
        raise ValueError(
            "nothing to do: give --staged, --stage N, --experiment ARMS, --phase PHASE, --list,"
            " --status, or --exp_dir DIR to go on (--help explains them)"
        )
    if args.stage is not None and args.stage not in (1, 2, 3, 4):
        raise ValueError(f"--stage {args.stage}: stages are 1, 2, 3 and 4")
    if args.profile is not None and args.profile not in PROFILES:
        raise ValueError(f"--profile {args.profile}: give one of {', '.join(PROFILES)}")
    if args.phase is not None and args.phase not in PHASES:
        raise ValueError(f"--phase {args.phase}: give one of {', '.join(PHASES)}")
    for name in filter(None, (args.experiment or "").split(",")):
        if name not in ARMS:
            close = ", ".join(difflib.get_close_matches(name, ARMS, 3)) or "see --list"
            raise ValueError(f"--experiment {name}: no such arm; did you mean: {close}")
    if not by_hand and (args.seeds or args.runs):
        raise ValueError("--seeds, --runs: stages have their own; give --experiment or --phase")
    if args.seeds and args.runs and args.runs != len(args.seeds):
        raise ValueError(f"--runs {args.runs} and {len(args.seeds)} --seeds: give one of the two")
    best = (args.best_layers, args.best_weight, args.best_schedule)
    if any(value is not None for value in best):
        if args.stage not in (3, 4) or not args.best_layers:
            raise ValueError(
                "--best_layers, --best_weight, --best_schedule go with --stage 3 or 4,"
                " and --best_layers is needed"
            )
        check_choice(args.best_layers, args.best_weight, args.best_schedule)


def arms_asked(args) -> tuple[Arm, ...]:
    if args.phase:
        return PHASES[args.phase]
    return tuple(ARMS[name] for name in (args.experiment or "").split(",") if name)


def new_experiment(args, gpus: Sequence[str], say) -> Experiment:
    """What the command line leaves open comes from the profile, and the profile from the GPUs."""
    name = args.profile
    if name is None:
        on_cluster = args.launcher == "slurm" and args.num_gpus is not None  # a login node has none
        asked = (args.num_gpus, "asked for") if on_cluster else (len(gpus),)
        name, why = default_profile(*asked)
        say(f"Profile {name}: {why}.")
    profile = PROFILES[name]
    return Experiment(
        profile=profile,
        plan="classic",
        budget_hours=profile.budget_hours,
        full_iterations=profile.full_iterations,
        validation_runs=None,
        processes=len(gpus) or 1,
        device="cuda" if gpus else "cpu",
        cores=cores(),
    )


def as_asked(e: Experiment, args, gpus: Sequence[str]) -> Experiment:
    """The experiment with everything that the command line names put in."""
    if args.profile:
        e = replace(e, profile=PROFILES[args.profile])
    for name in ("full_iterations", "validation_runs", "stop_on", "unet_skips", "log_grad_norms"):
        if getattr(args, name) not in (None, False):
            e = replace(e, **{name: getattr(args, name)})
    if arms := arms_asked(args):
        e = replace(e, plan="manual", arms=arms, seeds=e.seeds or (42,))
    elif args.staged or args.stage or args.plan_report:
        plan = args.plan or (e.plan if e.plan != "manual" else "classic")
        e = replace(e, plan=plan, arms=(), seeds=())
    if args.runs or args.seeds:
        e = replace(e, seeds=args.seeds or tuple(range(42, 42 + args.runs)))
    if args.launcher and args.launcher != e.launcher:
        # this may be a login node without a GPU: what the cluster has is for --num_gpus to say
        fits = e.profile.gpus or 1
        device = "cuda" if e.profile.gpus else "cpu"
        e = replace(e, launcher=args.launcher, device=device, processes=fits, slots=1, nodes=1)
    if args.num_gpus is not None:
        device = "cuda" if args.num_gpus else "cpu"
        e = replace(e, device=device, processes=args.num_gpus or 1, slots=1, nodes=1)
    used = e.processes * e.slots
    if e.device == "cuda" and e.launcher == "local" and used > len(gpus):
        raise ValueError(
            f"{used} GPU(s) are asked for and {len(gpus)} visible;"
            f" give --num_gpus {len(gpus)}{' (the CPU)' if not gpus else ''}"
        )
    if args.gpus_per_run is not None:
        if e.device == "cpu" or args.gpus_per_run > used:
            raise ValueError(
                f"--gpus_per_run {args.gpus_per_run}: there are {used if e.device == 'cuda' else 0}"
                " GPUs to share; on a CPU give --parallel_runs"
            )
        e = replace(e, processes=args.gpus_per_run, slots=used // args.gpus_per_run)
    for name, field in (("cpu_processes", "processes"), ("parallel_runs", "slots")):
        if getattr(args, name) is not None:
            if e.device == "cuda" and e.launcher == "local":
                raise ValueError(f"--{name}: for a CPU; with GPUs give --gpus_per_run")
            e = replace(e, **{field: getattr(args, name)})
    if e.processes % e.nodes:
        raise ValueError(f"{e.processes} processes of a run do not divide over {e.nodes} nodes")
    if args.nodes_per_run is not None:
        if e.launcher != "slurm" or e.processes % args.nodes_per_run:
            raise ValueError(
                f"--nodes_per_run {args.nodes_per_run}: for --launcher slurm, and a divisor of the"
                f" {e.processes} processes of a run"
            )
        e = replace(e, nodes=args.nodes_per_run)
    if args.stop_on and e.plan != "adaptive":
        raise ValueError(f"--stop_on {args.stop_on}: it is for --plan adaptive; leave it out")
    per_process = max(1, e.profile.batch_size // e.processes)
    sequences = args.device_batch_size or min(e.profile.device_batch_size, per_process)
    return replace(e, profile=replace(e.profile, device_batch_size=sequences))


def materials_of(args, document: dict | None, e: Experiment) -> Materials:
    if document is None:
        script, data_dir = ROOT / "train_gpt.py", ROOT / e.profile.data_dir
    else:
        script, data_dir = Path(document["train_script"]), Path(document["data"]["dir"])
    return Materials((args.train_script or script).resolve(), (args.data_dir or data_dir).resolve())


def run(args, display: Display) -> int:
    """Begin or continue an experiment."""
    output_dir = args.output_dir or Path("experiments")
    exp_dir = args.exp_dir
    if exp_dir is None and (args.stage or 1) > 1:
        exp_dir = newest_experiment(output_dir)
        display.say(f"Continuing {exp_dir}")
    document = read_document(exp_dir) if exp_dir else None
    gpus = visible_gpus()
    e = experiment_of(document) if document else new_experiment(args, gpus, display.say)
    meant = PROFILES[args.profile or e.profile.name]
    if (args.dry_run or args.plan_report) and args.num_gpus is None and not gpus and meant.gpus:
        display.say(f"No GPU is visible: times are for {meant.machine} (--num_gpus 0: this CPU).")
        gpus = ("",) * meant.gpus
        e = replace(e, device="cuda", processes=meant.gpus)
    e = as_asked(e, args, gpus)
    m = materials_of(args, document, e)
    if args.plan_report:
        import plan_report  # numpy: only here

        e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
        print(plan_report.render(e))
        return 0
    if args.dry_run:
        results = ()
        if document:
            results = read_records(exp_dir, document["experiment_id"]).results
            e = with_overrides_on_record(e, exp_dir)
        e = with_overrides(args, e, results)
        dry_run(e, m, exp_dir or output_dir / time.strftime("aux_heads_%Y%m%d_%H%M%S"), results)
        return 0
    check_materials(m, e)
    if not shutil.which(torchrun()):
        raise ValueError(f"no program {torchrun()}: pip install torch, or name one in TORCHRUN")
    facts = {"machine": machine(e, gpus), "versions": versions(), "git": git_state()}
    if document is None:
        e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
        exp_dir = begin(e, m, output_dir, {**facts, "slurm_args": args.slurm_args or ""})
        document = read_document(exp_dir)
        display.say(f"New experiment: {exp_dir}")
    else:
        check_unchanged(document, registered(e, m), exp_dir)
    with Lock(exp_dir, display.say) as lock:
        launcher = launcher_of(e, args.slurm_args or document["slurm_args"], exp_dir / "code")
        records = reconcile(exp_dir, document["experiment_id"], launcher, display.say)
        results = list(records.results)
        asked = with_overrides(args, with_overrides_on_record(e, exp_dir), results)
        until = args.stage or (4 if e.plan != "manual" else 0)
        if args.stage:
            check_turn(asked, results, args.stage, args.ignore_gate, exp_dir)
        raised = asked.budget_hours > with_overrides_on_record(e, exp_dir).budget_hours
        if raised and e.plan == "adaptive" and pairs_begun(results) >= 0:
            display.say("Stage 4 has begun: a larger budget does not raise its number of pairs.")
        e = record_overrides(exp_dir, asked)
        code_dir = (exp_dir / "code" / document["code"]["hash"]).resolve()
        session = Session(
            exp_dir=exp_dir,
            experiment_id=document["experiment_id"],
            script=code_dir / document["code"]["files"][0],
            data_dir=m.data_dir,
            facts={**facts, "code": document["code"], "data": document["data"]},
            lock=lock,
            launcher=launcher,
            running=records.open,
            until=until,
            ignore_gate=args.ignore_gate,
            stall_s=60 * (args.stall_timeout or 10),
        )
        if Materials(session.script, m.data_dir).code_hash != document["code"]["hash"]:
            raise ValueError(f"{code_dir} was edited; its files no longer match their hash")
        step = next_step(e, results)
        if step.runs and step.stage <= until:
            announce(e, results, display.say)
        try:
            return drive(e, session, results, display)
        except OSError as error:
            raise ValueError(
                f"{error}. What was finished is kept; when that is mended, go on:"
                f" {resume_command(e, exp_dir)}"
            ) from error


def launcher_of(e: Experiment, slurm_args: str, code_dir: Path) -> Launcher:
    if e.launcher == "local":
        return launchers.LocalLauncher(code_dir)
    workers = e.processes // e.nodes
    gpus = workers if e.device == "cuda" else 0
    return slurm.SlurmLauncher(code_dir, tuple(shlex.split(slurm_args)), gpus, e.nodes, workers)


def with_overrides(args, e: Experiment, results: Sequence[RunResult]) -> Experiment:
    """The experiment with what this command decides instead of a rule; not yet on record."""
    if args.best_layers:
        value = {
            "layers": list(args.best_layers),
            "weight": args.best_weight or WEIGHT,
            "schedule": args.best_schedule or SCHEDULE,
        }
        e = with_override(e, "by_hand", args.stage, value)
    hours = args.max_budget_hours
    if hours not in (None, e.budget_hours):
        value = {"hours": hours, "was": e.budget_hours, "pairs": pairs_begun(results)}
        e = replace(with_override(e, "budget", 0, value), budget_hours=hours)
    return e


def check_turn(e: Experiment, results, stage: int, ignore_gate: bool, exp_dir: Path) -> None:
    """Raise ValueError when the stage asked for cannot begin: earlier ones decide first."""
    step = next_step(e, results)
    if step.stage >= stage or stage in step.decisions:
        return
    if step.at_gate and step.stage == stage - 1:
        if ignore_gate:
            return
        raise ValueError(
            f"--stage {stage}: stage {step.stage} decided: {step.ended};"
            " --ignore_gate goes on all the same, on record"
        )
    by_hand = ", or choose by hand with --best_layers" if stage > 2 else ""
    raise ValueError(
        f"--stage {stage}: stage {step.stage} comes first"
        f"{' (' + step.ended + ')' if step.ended else ''};"
        f" run: python run_aux.py --stage {step.stage} --exp_dir {quoted(exp_dir)}{by_hand}"
    )


def show_status(args) -> int:
    if args.exp_dir is None:
        args.exp_dir = newest_experiment(args.output_dir or Path("experiments"))
    found = status(args.exp_dir)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    display = Display()
    try:
        if args.list:
            print_arms()
            return 0
        check_arguments(args)
        return show_status(args) if args.status else run(args, display)
    except (ValueError, OSError) as error:
        display.clear()
        print(f"run_aux.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first launch or after the last
        print("run_aux.py: stopped; no run was in flight", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
