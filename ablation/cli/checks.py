"""Can a command line of run_aux.py be meant?  Each option alone, and beside the others."""

import shlex
from argparse import Namespace
from collections import Counter

from ablation.study.asked import PLANS_OF, UsageError
from ablation.study.experiment import MOST_FIRST_SEED
from ablation.study.heads import check_choice
from ablation.study.profiles import PROFILES

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
    " --status, --preflight, or --exp_dir DIR to go on (--help explains them)"
)


def check_options(options: Namespace) -> None:
    """Raise UsageError for a value that cannot be meant, naming it and what can be."""
    check_numbers(options)
    by_hand = options.experiment is not None or options.phase is not None
    staged = options.staged or options.stage is not None or options.plan_report
    looks = options.status or options.list or options.preflight
    if not (staged or by_hand or looks or options.exp_dir):
        raise UsageError(NOTHING_TO_DO)
    if options.stage is not None and options.stage not in (1, 2, 3, 4):
        raise UsageError(f"--stage {options.stage}: stages are 1, 2, 3 and 4")
    if options.profile is not None and options.profile not in PROFILES:
        raise UsageError(f"--profile {options.profile}: give one of {', '.join(PROFILES)}")
    check_arms(options)
    check_seeds(options, by_hand)
    check_best(options)
    try:
        shlex.split(options.slurm_args or "")
    except ValueError as error:
        raise UsageError(f"--slurm_args {options.slurm_args}: {error}") from None
    check_goes_with(options, by_hand)


def check_numbers(options: Namespace) -> None:
    for name, value in vars(options).items():
        if isinstance(value, list) and name != "arm":  # what argparse makes of --name=--
            raise UsageError(f"--{name}: give a value")
    for name, most in MOST.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= most:
            raise UsageError(f"--{name} {value:g}: give a number above 0, at most {most:g}")
    if options.first_seed is not None and not 0 <= options.first_seed <= MOST_FIRST_SEED:
        raise UsageError(f"--first_seed {options.first_seed}: give 0 to {MOST_FIRST_SEED}")
    if options.num_gpus is not None and not 0 <= options.num_gpus <= 10**5:
        raise UsageError(f"--num_gpus {options.num_gpus}: give 0 (the CPU) or more")


def check_arms(options: Namespace) -> None:
    """Arms by hand: each once."""
    if options.experiment is not None:
        check_once("experiment", [name.strip() for name in options.experiment.split(",")])


def check_seeds(options: Namespace, by_hand: bool) -> None:
    """Seeds by hand: as many as are said, each once."""
    seeds, runs = options.seeds, options.runs
    if not by_hand and (seeds is not None or runs):
        raise UsageError("--seeds, --runs: stages have their own; give --experiment or --phase")
    if seeds == ():
        raise UsageError("--seeds: give whole numbers, as 1,2,3")
    if seeds and runs and runs != len(seeds):
        raise UsageError(f"--runs {runs} and {len(seeds)} --seeds: give one of the two")
    check_once("seeds", seeds or ())
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise UsageError(f"--seeds {seed}: give 0 to {2**32 - 1}")


def check_once(option: str, given) -> None:
    for value, count in Counter(given).items():
        if count > 1:
            raise UsageError(
                f"--{option} names {value} {count} times: give each once; a copy of a run is no"
                " independent run"
            )


def check_best(options: Namespace) -> None:
    """A configuration by hand, for a stage that has one."""
    best = (options.best_layers, options.best_weight, options.best_schedule)
    if options.best is not None and options.stage not in (3, 4):
        raise UsageError(f"--best {options.best}: goes with --stage 3 or 4; leave it out")
    if all(value is None for value in best):
        return
    if options.best is not None:
        raise UsageError(f"--best {options.best} and --best_layers: give one of the two")
    if options.stage not in (3, 4) or not options.best_layers:
        raise UsageError(
            "--best_layers, --best_weight, --best_schedule go with --stage 3 or 4,"
            " and --best_layers is needed"
        )
    try:
        check_choice(*best)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_goes_with(options: Namespace, by_hand: bool) -> None:
    """Raise UsageError for an option that would do nothing beside the others."""
    on_slurm = options.launcher == "slurm" or options.exp_dir is not None
    runs = not (options.status or options.list or options.plan_report)
    sits = runs and not (options.preflight or options.dry_run)
    sitting = "--staged, --stage, --experiment, --phase, or --exp_dir to go on"
    needs = {  # option: whether it has something to say here, and with what it would
        "json": (sits or options.status or options.preflight, f"--status, --preflight, {sitting}"),
        "exit_verdict": (sits, sitting),
        "preflight": (runs and not options.dry_run, "runs to come, not with what shows them"),
        "preflight_file": (runs or options.plan_report, "--preflight, or with runs to come"),
        "output_dir": (options.exp_dir is None, "a new experiment, without --exp_dir"),
        "plan": (not by_hand, "--staged, --stage or --plan_report"),
        "validation_runs": (not by_hand, "--staged, --stage or --plan_report"),
        "ignore_gate": (not by_hand, "--staged or --stage"),
        "slurm_args": (on_slurm, "--launcher slurm"),
        **dict.fromkeys(PLANS_OF, (runs or options.plan_report, "--staged or --plan_report")),
    }
    for name, (fits, what) in needs.items():
        if getattr(options, name) not in (None, False) and not fits:
            raise UsageError(f"--{name} goes with {what}; leave it out")
