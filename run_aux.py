"""Do auxiliary prediction heads at intermediate layers make a GPT train better, and which ones?

A staged ablation: four stages, each deciding whether the next is worth its cost. One run is one
training of `train_gpt.py`; every decision follows from the results on disk (ablation/plan/).

    python run_aux.py --staged --max_budget_hours 7     # all four stages
    python run_aux.py --staged --dry_run                # every command, count and hour, first
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
import difflib
import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ablation.cli import console, exit_codes
from ablation.cli.arguments import Parser, a_path, plain_words
from ablation.execute.display import Display
from ablation.execute.machine import cores, visible_gpus
from ablation.execute.opening import MachineFault, SittingOptions, begin, go_on, materials_of
from ablation.execute.preview import dry_run
from ablation.execute.status import print_status, status
from ablation.folder.overrides import (
    NewOverrides,
    check_choice,
    with_new_overrides,
    with_overrides_on_record,
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
from ablation.runs.store import read_records
from ablation.runs.untrusted import printable
from ablation.study.asked import UsageError, arms_asked, as_asked, new_experiment, profile_asked
from ablation.study.experiment import Experiment
from ablation.study.heads import ARMS, PHASES, QUESTION, SCHEDULE, WEIGHT
from ablation.study.profiles import PROFILES

# ---------------------------------------------------------------------------------------------
# The command line


STAGED = tuple(plan for plan in PLANS if plan != "manual")
STOP_ON = "adaptive: any (default) or superiority"


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
    where.add_argument("--dry_run", action="store_true", help="print commands and hours only")
    where.add_argument("--json", action="store_true", help="--status for programs")
    return parser


def int_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers as 1,2,3") from None


MOST = {  # options that are numbers above 0: the most that somebody can mean
    "max_budget_hours": 1e5,
    "full_iterations": 10**8,
    "validation_runs": 10**4,
    "runs": 10**4,
    "stall_timeout": 1e5,
    "gpus_per_run": 10**4,
    "nodes_per_run": 10**4,
    "parallel_runs": 10**4,
    "device_batch_size": 10**6,
}
NOTHING_TO_DO = (
    "nothing to do: give --staged, --stage N, --experiment ARMS, --phase PHASE, --list,"
    " --status, or --exp_dir DIR to go on (--help explains them)"
)


def check_arguments(args) -> None:
    """Raise UsageError for a value that cannot be meant, naming it and what can be."""
    for name, value in vars(args).items():
        if isinstance(value, list):  # what argparse makes of --name=--
            raise UsageError(f"--{name}: give a value")
    for name, most in MOST.items():
        value = getattr(args, name)
        if value is not None and not 0 < value <= most:
            raise UsageError(f"--{name} {value:g}: give a number above 0, at most {most:g}")
    if args.num_gpus is not None and not 0 <= args.num_gpus <= 10**5:
        raise UsageError(f"--num_gpus {args.num_gpus}: give 0 (the CPU) or more")
    by_hand = args.experiment is not None or args.phase is not None
    staged = args.staged or args.stage is not None or args.plan_report
    if not (staged or by_hand or args.status or args.list or args.exp_dir):
        raise UsageError(NOTHING_TO_DO)
    if args.stage is not None and args.stage not in (1, 2, 3, 4):
        raise UsageError(f"--stage {args.stage}: stages are 1, 2, 3 and 4")
    if args.profile is not None and args.profile not in PROFILES:
        raise UsageError(f"--profile {args.profile}: give one of {', '.join(PROFILES)}")
    check_by_hand(args, by_hand)
    best = (args.best_layers, args.best_weight, args.best_schedule)
    if any(value is not None for value in best):
        if args.stage not in (3, 4) or not args.best_layers:
            raise UsageError(
                "--best_layers, --best_weight, --best_schedule go with --stage 3 or 4,"
                " and --best_layers is needed"
            )
        try:
            check_choice(args.best_layers, args.best_weight, args.best_schedule)
        except ValueError as error:
            raise UsageError(str(error)) from None
    try:
        shlex.split(args.slurm_args or "")
    except ValueError as error:
        raise UsageError(f"--slurm_args {args.slurm_args}: {error}") from None
    check_goes_with(args, by_hand)


def check_goes_with(args, by_hand: bool) -> None:
    """Raise UsageError for an option that would do nothing beside the others."""
    needs = {  # option: whether it has something to say here, and with what it would
        "json": (args.status, "--status"),
        "output_dir": (args.exp_dir is None, "a new experiment, without --exp_dir"),
        "plan": (not by_hand, "--staged, --stage or --plan_report"),
        "validation_runs": (not by_hand, "--staged, --stage or --plan_report"),
        "ignore_gate": (not by_hand, "--staged or --stage"),
        "slurm_args": (args.launcher == "slurm" or args.exp_dir is not None, "--launcher slurm"),
    }
    for name, (fits, what) in needs.items():
        if getattr(args, name) not in (None, False) and not fits:
            raise UsageError(f"--{name} goes with {what}; leave it out")


def check_by_hand(args, by_hand: bool) -> None:
    """Arms and seeds by hand: each known, each once."""
    if args.phase is not None and args.phase not in PHASES:
        raise UsageError(f"--phase {args.phase}: give one of {', '.join(PHASES)}")
    names = [name.strip() for name in (args.experiment or "").split(",")]
    for name in names if args.experiment is not None else ():
        if name not in ARMS:
            close = ", ".join(difflib.get_close_matches(name, ARMS, 3)) or "see --list"
            raise UsageError(f"--experiment {name!r}: no such arm; did you mean: {close}")
    if not by_hand and (args.seeds is not None or args.runs):
        raise UsageError("--seeds, --runs: stages have their own; give --experiment or --phase")
    if args.seeds == ():
        raise UsageError("--seeds: give whole numbers, as 1,2,3")
    if args.seeds and args.runs and args.runs != len(args.seeds):
        raise UsageError(f"--runs {args.runs} and {len(args.seeds)} --seeds: give one of the two")
    for option, given in (("experiment", names), ("seeds", args.seeds or ())):
        for value, count in Counter(given).items():
            if count > 1:
                raise UsageError(
                    f"--{option} names {value} {count} times: give each once; a copy of a run is no"
                    " independent run"
                )
    for seed in args.seeds or ():
        if not 0 <= seed < 2**32:
            raise UsageError(f"--seeds {seed}: give 0 to {2**32 - 1}")


# ---------------------------------------------------------------------------------------------
# One function per verb


def run(args, display: Display) -> int:
    """Begin or continue an experiment, or show what that would do."""
    exp_dir = folder_of(args, display.print_line)
    is_begun = exp_dir is not None and not is_new(exp_dir)
    document = read_document(exp_dir) if is_begun else None
    if document is None:
        check_can_begin(args, exp_dir)
    gpus = gpus_seen(args, document)
    e = experiment_of(document) if document else begun_with(args, gpus, display.print_line)
    if args.dry_run or args.plan_report:
        return show_plan(args, exp_dir, document, e, gpus, display)
    e = as_asked(e, args, len(gpus))
    try:
        every_seed_once(e)
    except ValueError as error:
        raise UsageError(f"--seeds: {error}") from None
    options = sitting_options(args)
    if document is not None:
        return go_on(e, options, exp_dir, document, gpus, display)
    e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
    return begin(e, options, exp_dir, args.output_dir or EXPERIMENTS, gpus, display)


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
    """Where runs need none of this machine's GPUs, a tool that fails to name them stops nothing."""
    share = document["share"] if document else {}
    elsewhere = (args.launcher or share.get("launcher")) == "slurm" or share.get("device") == "cpu"
    try:
        return visible_gpus(args.num_gpus)
    except ValueError:
        if elsewhere:
            return ()
        raise


def begun_with(args, gpus: Sequence[str], print_line) -> Experiment:
    """A new experiment of the profile asked for, or of the one that fits the GPUs."""
    name, why = profile_asked(args, len(gpus))
    if why:
        print_line(f"Profile {name}: {why}.")
    return new_experiment(name, len(gpus), cores())


def sitting_options(args) -> SittingOptions:
    arm = None
    if args.best_layers:
        arm = {
            "layers": list(args.best_layers),
            "weight": args.best_weight or WEIGHT,
            "schedule": args.best_schedule or SCHEDULE,
        }
    return SittingOptions(
        stage=args.stage,
        ignore_gate=args.ignore_gate,
        overrides=NewOverrides(args.stage, arm, args.max_budget_hours),
        train_script=args.train_script,
        data_dir=args.data_dir,
        slurm_args=args.slurm_args or "",
        stall_s=60 * (args.stall_timeout or 10),
    )


def show_plan(args, exp_dir, document, e: Experiment, gpus: Sequence[str], display) -> int:
    """--dry_run and --plan_report: nothing is launched or written."""
    meant = PROFILES[args.profile or e.profile.name]
    if args.num_gpus is None and not gpus and meant.gpus:
        times = f"times are for {meant.machine} (--num_gpus 0: this CPU)"
        display.print_line(f"No GPU is visible: {times}.")
        gpus = ("",) * meant.gpus
        e = replace(e, share=replace(e.share, device="cuda", processes=meant.gpus))
    e = as_asked(e, args, len(gpus))
    if args.plan_report:
        from ablation.plan import power

        print(power.render(replace(e, budget_hours=args.max_budget_hours or e.budget_hours)))
        return exit_codes.DONE
    options, results = sitting_options(args), ()
    if document:
        results = read_records(exp_dir, document["experiment_id"]).results
        e = with_overrides_on_record(e, exp_dir)
    e = with_new_overrides(e, options.overrides, results)
    stem = time.strftime("aux_heads_%Y%m%d_%H%M%S", time.gmtime())
    shown_as = exp_dir or (args.output_dir or EXPERIMENTS) / stem
    dry_run(e, materials_of(options, document, exp_dir, e), shown_as, results)
    return exit_codes.DONE


def print_arms() -> None:
    print(f"{'arm':<24} {'layers':<10} {'weight':>6}  {'schedule':<13} description")
    for phase, arms in PHASES.items():
        print(f"\n{phase}")
        for arm in arms:
            layers = ",".join(map(str, arm.layers)) or "-"
            weight, schedule = (f"{arm.weight:g}", arm.schedule) if arm.layers else ("-", "-")
            print(f"  {arm.name:<22} {layers:<10} {weight:>6}  {schedule:<13} {arm.description}")


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
    args = build_parser().parse_args(argv)
    display = Display()
    try:
        with console.interruptible():
            check_arguments(args)
            if args.list:
                print_arms()
                return exit_codes.DONE
            return show_status(args) if args.status else run(args, display)
    except (ValueError, OSError) as error:
        display.clear()
        return refuse(error)
    except console.Stopped as stop:  # before the first launch or after the last
        print("run_aux.py: stopped; no run was in flight", file=sys.stderr)
        return exit_codes.STOPPED + stop.number


if __name__ == "__main__":
    sys.exit(console.run(main))
