"""Do auxiliary prediction heads at intermediate layers make a GPT train better, and which ones?

A staged ablation: four stages, each deciding whether the next is worth its cost. One run is one
training of `train_gpt.py`, and every decision follows from the results on disk:

    results ──► plan (pure) ──► next runs, or a decision ──► launch ──► log ──► result.json ──► ...

The tables of the stages end ablation/plan/classic.py and adaptive.py; the loop is `drive` in
ablation/execute/sitting.py.

    python run_aux.py --staged --max_budget_hours 7     # all four stages
    python run_aux.py --staged --dry_run                # every command, count and hour, first
    python run_aux.py --preflight                       # would they go well on this machine?
    python run_aux.py --stage 2                         # one stage, in the newest experiment
    python run_aux.py --experiment baseline,aux_4_8 --runs 5

Writes experiments/aux_heads_YYYYMMDD_HHMMSS/ (docs/promises.md says what lies there).
"""

import os.path
import sys

if __name__ == "__main__":  # before imports that another Python cannot read or find
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out
    from ablation.cli import prerequisites

    prerequisites.check("run_aux.py")
    from ablation.cli import console

    console.stop_quietly("run_aux.py")  # Ctrl-C while the rest is imported

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ablation.cli import console, exit_codes
from ablation.cli.arguments import Parser, a_path, plain_words
from ablation.cli.checks import check_options
from ablation.execute.display import Display
from ablation.execute.machine import cores, visible_gpus
from ablation.execute.opening import (
    MachineFault,
    SittingOptions,
    begin,
    go_on,
    launcher_of,
    materials_of,
)
from ablation.execute.preview import dry_run
from ablation.execute.status import print_status, status
from ablation.folder.first_costs import NAME, check_may_write, read_first_costs
from ablation.folder.materials import Materials
from ablation.folder.overrides import (
    NewOverrides,
    read_overrides,
    with_new_overrides,
)
from ablation.folder.registration import (
    EXPERIMENTS,
    experiment_of,
    is_new,
    newest_experiment,
    read_document,
)
from ablation.plan.manual import every_seed_once
from ablation.plan.next_step import PLANS
from ablation.runs.run import RunResult
from ablation.runs.store import read_records
from ablation.runs.untrusted import printable
from ablation.study.asked import (
    TERMS_ASKED,
    UsageError,
    arms_asked,
    as_asked,
    new_experiment,
    profile_asked,
)
from ablation.study.experiment import STOP_ON, Experiment
from ablation.study.heads import PHASES, QUESTION, SCHEDULE, WEIGHT
from ablation.study.profiles import PROFILES

# ---------------------------------------------------------------------------------------------
# The command line


STAGED = tuple(plan for plan in PLANS if plan != "manual")
STOPS = f"adaptive: {', '.join(STOP_ON)} ({next(iter(STOP_ON))})"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_aux.py",
        once=("--experiment", "--phase", "--stage", "--seeds", "--best_layers", "--exp_dir"),
        description=QUESTION,
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
    how.add_argument("--stop_on", choices=(*STOP_ON,), metavar="WHAT", help=STOPS)
    how.add_argument("--screen", action="store_true", help="adaptive: short runs in stage 1, too")
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

    terms = parser.add_argument_group("statistical terms, nats/token (the profile's)")
    for name, (_, about) in TERMS_ASKED.items():
        terms.add_argument(f"--{name}", type=float, metavar="X", help=about)
    add_place(parser.add_argument_group("where and with what"))
    look = parser.add_argument_group("before the first run")
    look.add_argument("--dry_run", action="store_true", help="print commands and hours only")
    look.add_argument("--preflight", action="store_true", help="try this machine, in minutes")
    look.add_argument("--preflight_file", type=a_path, metavar="F", help="what that measured")
    look.add_argument("--json", action="store_true", help="--status, --preflight for programs")
    return parser


def add_place(where: argparse._ArgumentGroup) -> None:
    where.add_argument("--exp_dir", type=a_path, metavar="DIR", help="begin there, or go on")
    where.add_argument("--output_dir", type=a_path, metavar="DIR", help="where experiments lie")
    where.add_argument("--num_gpus", type=int, metavar="N", help="GPUs of a run (all; 0: CPU)")
    where.add_argument("--gpus_per_run", type=int, metavar="K", help="pack runs, K GPUs each")
    where.add_argument("--parallel_runs", type=int, metavar="K", help="pack K runs on a CPU")
    where.add_argument("--launcher", choices=("local", "slurm"), metavar="L", help="local or slurm")
    where.add_argument("--slurm_args", metavar="ARGS", help="for sbatch, as one word")
    where.add_argument("--nodes_per_run", type=int, metavar="N", help="nodes of a Slurm run (1)")
    where.add_argument("--device_batch_size", type=int, metavar="N", help="sequences per pass")
    where.add_argument("--data_dir", type=a_path, metavar="DIR", help="token shards")
    where.add_argument("--train_script", type=a_path, metavar="FILE", help="trainer (train_gpt.py)")
    where.add_argument("--stall_timeout", type=float, metavar="MIN", help="silence allowed (10)")


def int_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers as 1,2,3") from None


# ---------------------------------------------------------------------------------------------
# One function per verb


def run(args, display: Display) -> int:
    """Begin an experiment or go on with it: one sitting; its exit code."""
    exp_dir, document, e, gpus = target_of(args, display.print_line)
    e = as_asked(e, args, len(gpus))
    if e.arms:
        check_seeds(e)
    options = sitting_options(args)
    e = with_first_costs(e, args, materials_of(options, document, exp_dir, e), display.print_line)
    if exp_dir and document:
        return go_on(e, options, exp_dir, document, gpus, display)
    e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
    return begin(e, options, exp_dir, args.output_dir or EXPERIMENTS, gpus, display)


def check_seeds(e: Experiment) -> None:
    try:
        every_seed_once(e)
    except ValueError as error:
        raise UsageError(f"--seeds: {error}") from None


class Target(NamedTuple):
    """What a command is about, before its options are put in."""

    exp_dir: Path | None  # None: a new folder in --output_dir
    document: dict | None  # the registration; None: nothing is registered yet
    experiment: Experiment
    gpus: tuple[str, ...]  # of this machine, by name


def target_of(args, print_line) -> Target:
    exp_dir = folder_of(args, print_line)
    document = None if exp_dir is None or is_new(exp_dir) else read_document(exp_dir)
    if document is None:
        check_can_begin(args, exp_dir)
    gpus = gpus_seen(args, document)
    if document is not None:
        return Target(exp_dir, document, experiment_of(document), gpus)
    return Target(exp_dir, None, experiment_to_begin(args, gpus, print_line), gpus)


def folder_of(args, print_line) -> Path | None:
    """The experiment to begin or to go on with; None for a new folder in --output_dir."""
    if args.exp_dir is not None or (args.stage or 1) == 1:
        return args.exp_dir
    newest = newest_experiment(args.output_dir or EXPERIMENTS)
    print_line(f"Continuing {newest}")
    return newest


def check_can_begin(args, exp_dir: Path | None) -> None:
    """Raise ValueError where nothing can begin: going on was asked for, or a later stage."""
    if exp_dir is None:
        return
    begin_one = "begin one there with --staged, --stage 1, --experiment ARMS or --phase PHASE"
    if (args.stage or 1) > 1:
        raise ValueError(f"--stage {args.stage}: no experiment in {exp_dir} yet; {begin_one}")
    if not (args.staged or args.stage or arms_asked(args) or args.plan_report):
        raise ValueError(f"--exp_dir {exp_dir}: no experiment there; {begin_one}")


def gpus_seen(args, document: dict | None) -> tuple[str, ...]:
    """The GPUs of this machine, by name. Where they cannot be named: none, if no run needs one;
    else ValueError."""
    share = document["registered"]["share"] if document else {}
    elsewhere = (args.launcher or share.get("launcher")) == "slurm" or share.get("device") == "cpu"
    try:
        return visible_gpus(args.num_gpus)
    except ValueError:
        if elsewhere:
            return ()
        raise


def experiment_to_begin(args, gpus: Sequence[str], print_line) -> Experiment:
    """A new experiment of the profile asked for, or of the one that fits the GPUs."""
    name, why = profile_asked(args, len(gpus))
    if why:
        print_line(f"Profile {name}: {why}.")
    return new_experiment(name, len(gpus), cores())


def sitting_options(args) -> SittingOptions:
    by_hand = None
    if args.best_layers:
        arm = {
            "layers": list(args.best_layers),
            "weight": args.best_weight or WEIGHT,
            "schedule": args.best_schedule or SCHEDULE,
        }
        by_hand = args.stage, arm
    return SittingOptions(
        stage=args.stage,
        ignore_gate=args.ignore_gate,
        overrides=NewOverrides(by_hand, args.max_budget_hours),
        train_script=args.train_script,
        data_dir=args.data_dir,
        slurm_args=args.slurm_args or "",
        stall_s=60 * (args.stall_timeout or 10),
    )


def show_power(args, display: Display) -> int:
    """--plan_report: what the budget can decide. Nothing is launched or written."""
    from ablation.plan import power

    _, _, e, gpus = target_of(args, display.print_line)
    e = as_previewed(e, args, gpus, display.print_line)
    print(power.render(replace(e, budget_hours=args.max_budget_hours or e.budget_hours)))
    return exit_codes.DONE


def show_commands(args, words: Sequence[str], display: Display) -> int:
    """--dry_run: what would run, and what it costs. Nothing is launched or written."""
    exp_dir, document, e, gpus = target_of(args, display.print_line)
    e = as_previewed(e, args, gpus, display.print_line)
    options = sitting_options(args)
    m = materials_of(options, document, exp_dir, e)
    e = with_first_costs(e, args, m, display.print_line)
    e, results = as_it_stands(e, options, exp_dir, document)
    stem = time.strftime("aux_heads_%Y%m%d_%H%M%S", time.gmtime())
    shown_as = exp_dir or (args.output_dir or EXPERIMENTS) / stem
    dry_run(e, m, shown_as, results, words)
    return exit_codes.DONE


def as_it_stands(
    e: Experiment, options: SittingOptions, exp_dir: Path | None, document: dict | None
) -> tuple[Experiment, Sequence[RunResult]]:
    """The experiment with what was decided instead of a rule, by this command too; its results."""
    results: Sequence[RunResult] = ()
    if exp_dir and document:
        results = read_records(exp_dir, document["experiment_id"]).results
        e = e.with_overrides(read_overrides(exp_dir))
    return with_new_overrides(e, options.overrides, results), results


def with_first_costs(e: Experiment, args, m: Materials, print_line) -> Experiment:
    """The experiment with the costs in --preflight_file, where one is named."""
    if args.preflight_file is None:
        return e
    costs = read_first_costs(args.preflight_file, e, m.code.hash)
    print_line(
        f"First costs from {args.preflight_file}, as multiples of the profile's prior: a step"
        f" {costs.train_ratio:.2f}, start-up and validations {costs.rest_ratio:.2f}."
    )
    return replace(e, first_costs=costs)


def try_machine(args, words: Sequence[str], display: Display) -> int:
    """--preflight: short runs, what they say of this machine, and the forecast by them."""
    from ablation.execute import preflight

    options, file = sitting_options(args), args.preflight_file or NAME
    check_may_write(file)
    print_line, show = (silent, silent) if args.json else (display.print_line, display.progress)
    exp_dir, document, e, gpus = target_of(args, print_line)
    e, results = as_it_stands(as_asked(e, args, len(gpus)), options, exp_dir, document)
    slurm_args = options.slurm_args or (document or {}).get("slurm_args", "")
    m = materials_of(options, document, exp_dir, e)
    where = exp_dir.parent if exp_dir else args.output_dir or EXPERIMENTS
    launcher_in = partial(launcher_of, e, slurm_args)
    report = preflight.preflight(e, m, launcher_in, where, gpus, results, show)
    display.clear()
    return preflight.tell(report, e, m, file, words, args.json)


def silent(*_) -> None:
    """In place of words that would stand in the way of what a program reads."""


def as_previewed(e: Experiment, args, gpus: Sequence[str], print_line) -> Experiment:
    """The experiment as asked, for a look at what it would be: on the machine that its profile is
    for, where this one has no GPU."""
    meant = PROFILES[args.profile or e.profile.name]
    if args.num_gpus is None and not gpus and meant.gpus:
        print_line(f"No GPU is visible: times are for {meant.machine} (--num_gpus 0: this CPU).")
        e = replace(e, share=replace(e.share, device="cuda", processes=meant.gpus))
        return as_asked(e, args, meant.gpus)
    return as_asked(e, args, len(gpus))


def print_arms() -> int:
    print(f"{'arm':<24} {'layers':<10} {'weight':>6}  {'schedule':<13} description")
    for phase, arms in PHASES.items():
        print(f"\n{phase}")
        for arm in arms:
            layers = ",".join(map(str, arm.layers)) or "-"
            weight, schedule = (f"{arm.weight:g}", arm.schedule) if arm.layers else ("-", "-")
            print(f"  {arm.name:<22} {layers:<10} {weight:>6}  {schedule:<13} {arm.description}")
    return exit_codes.DONE


def show_status(args) -> int:
    found = status(args.exp_dir or newest_experiment(args.output_dir or EXPERIMENTS))
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found)
    return exit_codes.DONE


def refuse(error: Exception) -> int:
    print(f"run_aux.py: error: {printable(plain_words(error), limit=2000)}", file=sys.stderr)
    kinds = ((UsageError, exit_codes.USAGE), (MachineFault, exit_codes.FAULT))
    return next((code for kind, code in kinds if isinstance(error, kind)), exit_codes.REFUSED)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    display = Display()
    try:
        with console.interruptible():
            check_options(args)
            if args.list:
                return print_arms()
            if args.status:
                return show_status(args)
            if args.plan_report:
                return show_power(args, display)
            if args.preflight:
                return try_machine(args, words, display)
            return show_commands(args, words, display) if args.dry_run else run(args, display)
    except (ValueError, OSError) as error:
        display.clear()
        return refuse(error)
    except console.Stopped as stop:  # before the first launch or after the last
        print("run_aux.py: stopped; no run was in flight", file=sys.stderr)
        return exit_codes.STOPPED + stop.number


if __name__ == "__main__":
    sys.exit(console.run(main))
