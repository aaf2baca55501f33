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

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ablation.cli import console, exit_codes
from ablation.cli.arguments import plain_words
from ablation.cli.checks import check_options
from ablation.cli.options import build_parser
from ablation.cli.progress import progress
from ablation.execute.answering import Told, answering
from ablation.execute.display import Display
from ablation.execute.machine import UNCOUNTED, NotCounted, cores, visible_gpus
from ablation.execute.opening import (
    MachineFault,
    SittingOptions,
    begin,
    faults_on_disk,
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
    check_version,
    experiment_of,
    folder_name,
    is_new,
    newest_experiment,
    read_document,
)
from ablation.plan.manual import every_seed_once
from ablation.runs.run import RunResult
from ablation.runs.store import read_records
from ablation.runs.untrusted import printable
from ablation.study.asked import (
    UsageError,
    as_asked,
    as_asked_for,
    best_asked,
    new_experiment,
    profile_asked,
    study_asked,
)
from ablation.study.document import StudyFaults
from ablation.study.experiment import Experiment
from ablation.study.profiles import PROFILES
from ablation.study.study import Study

# ---------------------------------------------------------------------------------------------
# One function per verb


def run(args, words: Sequence[str], display: Display, told: Told) -> int:
    """Begin an experiment or go on with it: one sitting; its exit code."""
    exp_dir, document, e, gpus = target_of(args, display.print_line)
    e = as_asked(e, args, len(gpus))
    if e.arms:
        check_seeds(e)
    options = replace(sitting_options(args, e.study), told=told, words=tuple(words))
    m = materials_of(options, document, exp_dir, e)
    e = with_first_costs(e, args, m, display.print_line)
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
        e = experiment_of(document)
        study = study_asked(args, e.study)
        profile = replace(e.profile, design=study.noise or e.profile.design)
        return Target(exp_dir, document, replace(e, study=study, profile=profile), gpus)
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
    by_hand = args.experiment or args.phase
    if not (args.staged or args.stage or by_hand or args.plan_report):
        raise ValueError(f"--exp_dir {exp_dir}: no experiment there; {begin_one}")


def gpus_seen(args, document: dict | None) -> tuple[str, ...]:
    """The GPUs of this machine, by name. Where they cannot be counted: none, if no run needs one;
    for a preflight, which says so, as many as the runs would take; else ValueError."""
    share = document["registered"]["share"] if document else {}
    elsewhere = (args.launcher or share.get("launcher")) == "slurm" or share.get("device") == "cpu"
    try:
        return visible_gpus(args.num_gpus)
    except NotCounted as unknown:
        if elsewhere:
            return ()
        if not args.preflight:
            raise
        meant = PROFILES[args.profile or "speedrun"].gpus
        taken = share["processes"] * share["parallel_runs"] if share else meant
        return (f"{UNCOUNTED} ({unknown.why})",) * max(taken, args.gpus_per_run or 1)


def study_to_begin(args) -> Study:
    """The study asked for. Raises StudyFaults for everything that is wrong with its file, its code
    or its data, all at once."""
    faults: list[str] = []
    try:
        study = study_asked(args)
    except StudyFaults as error:
        study, faults = error.study, [*error.faults]
    if study is not None and (args.study or args.arm):
        faults += as_asked_for(faults_on_disk(study, args.train_script), args)
    if faults:
        raise StudyFaults(faults)
    return study


def experiment_to_begin(args, gpus: Sequence[str], print_line) -> Experiment:
    """A new experiment of the profile asked for, or of the one that fits the GPUs."""
    study = study_to_begin(args)
    if not study.trainer.is_ours:
        return new_experiment(study, "", len(gpus), cores())
    name, why = profile_asked(args, len(gpus), study)
    if why and not any(gpu.startswith(UNCOUNTED) for gpu in gpus):
        print_line(f"Profile {name}: {why}.")
    return new_experiment(study, name, len(gpus), cores())


def sitting_options(args, study: Study) -> SittingOptions:
    best = best_asked(args, study)
    by_hand = (args.stage, best) if best else None
    return SittingOptions(
        stage=args.stage,
        ignore_gate=args.ignore_gate,
        overrides=NewOverrides(by_hand, args.max_budget_hours),
        train_script=args.train_script,
        data_dir=args.data_dir,
        slurm_args=args.slurm_args or "",
        stall_s=60 * (args.stall_timeout or 10),
        page=not args.no_page,
    )


def show_power(args, display: Display) -> int:
    """--plan_report: what the budget can decide. Nothing is launched or written."""
    from ablation.plan import power

    exp_dir, document, e, gpus = target_of(args, display.print_line)
    e = as_previewed(e, args, gpus, display.print_line)
    m = materials_of(sitting_options(args, e.study), document, exp_dir, e)
    e = with_first_costs(e, args, m, display.print_line)
    e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
    print(power.render(e, progress=progress))
    return exit_codes.DONE


def show_commands(args, words: Sequence[str], display: Display) -> int:
    """--dry_run: what would run, and what it costs. Nothing is launched or written."""
    exp_dir, document, e, gpus = target_of(args, display.print_line)
    e = as_previewed(e, args, gpus, display.print_line)
    options = sitting_options(args, e.study)
    m = materials_of(options, document, exp_dir, e)
    e = with_first_costs(e, args, m, display.print_line)
    e, results = as_it_stands(e, options, exp_dir, document)
    shown_as = exp_dir or (args.output_dir or EXPERIMENTS) / folder_name(e.study.name)
    dry_run(e, m, shown_as, results, words)
    return exit_codes.DONE


def as_it_stands(
    e: Experiment, options: SittingOptions, exp_dir: Path | None, document: dict | None
) -> tuple[Experiment, Sequence[RunResult]]:
    """The experiment with what was decided instead of a rule, by this command too; its results."""
    results: Sequence[RunResult] = ()
    if exp_dir and document:
        check_version(document, exp_dir)
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

    began_s = time.monotonic()
    file = args.preflight_file or NAME
    check_may_write(file)
    print_line, show = (silent, silent) if args.json else (display.print_line, display.progress)
    exp_dir, document, e, gpus = target_of(args, print_line)
    options = sitting_options(args, e.study)
    e, results = as_it_stands(as_asked(e, args, len(gpus)), options, exp_dir, document)
    slurm_args = options.slurm_args or (document or {}).get("slurm_args", "")
    m = materials_of(options, document, exp_dir, e)
    where = exp_dir.parent if exp_dir else args.output_dir or EXPERIMENTS
    launcher_in = partial(launcher_of, e, slurm_args)
    report = preflight.preflight(e, m, launcher_in, where, gpus, results, show, began_s)
    display.clear()
    return preflight.tell(report, e, m, file, words, args.json)


def silent(*_) -> None:
    """In place of words that would stand in the way of what a program reads."""


def as_previewed(e: Experiment, args, gpus: Sequence[str], print_line) -> Experiment:
    """The experiment as asked, for a look at what it would be: on the machine that its profile is
    for, where this one has no GPU."""
    meant = PROFILES[args.profile or e.profile.name] if e.study.trainer.is_ours else e.profile
    if args.num_gpus is None and not gpus and meant.gpus:
        print_line(f"No GPU is visible: times are for {meant.machine} (--num_gpus 0: this CPU).")
        e = replace(e, share=replace(e.share, device="cuda", processes=meant.gpus))
        return as_asked(e, args, meant.gpus)
    return as_asked(e, args, len(gpus))


def print_arms(study: Study) -> int:
    print(f"{'arm':<24} {'what differs':<44} description")
    for phase in study.phases:
        print(f"\n{phase.name}")
        for arm in phase.arms:
            print(f"  {arm.name:<22} {arm.label:<44} {arm.description}".rstrip())
    if study.refinements:
        print("\nrefinements, of the arm that stage 2 chooses")
    for arm in study.refinements:
        print(f"  {arm.name:<22} {study.label(arm):<44} {arm.description}".rstrip())
    return exit_codes.DONE


def show_status(args) -> int:
    found = status(args.exp_dir or newest_experiment(args.output_dir or EXPERIMENTS))
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found)
    return exit_codes.DONE


def refuse(error: Exception, told: Told) -> int:
    lines = error.lines if isinstance(error, StudyFaults) else [plain_words(error)]
    lines = [printable(line, limit=2000) for line in lines]
    told.error = "; ".join(lines)
    for line in lines:  # of a study's file all faults at once
        print(f"run_aux.py: error: {line}", file=sys.stderr)
    kinds = ((UsageError, exit_codes.USAGE), (MachineFault, exit_codes.FAULT))
    return next((code for kind, code in kinds if isinstance(error, kind)), exit_codes.REFUSED)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    with answering(words) as told:
        told.code = obey(words, told)
    return told.code


def obey(words: Sequence[str], told: Told) -> int:
    """Do what a command line asks for; its exit code."""
    args = build_parser().parse_args(words)
    display = Display()
    try:
        with console.interruptible():
            check_options(args)
            if args.list:
                return print_arms(study_asked(args))
            if args.status:
                return show_status(args)
            if args.plan_report:
                return show_power(args, display)
            if args.preflight:
                return try_machine(args, words, display)
            if args.dry_run:
                return show_commands(args, words, display)
            return run(args, words, display, told)
    except (ValueError, OSError) as error:
        display.clear()
        return refuse(error, told)
    except console.Stopped as stop:  # before the first launch or after the last
        what = "its short runs are ended" if args.preflight else "no run was in flight"
        told.error = f"stopped; {what}"
        print(f"run_aux.py: {told.error}", file=sys.stderr)
        return exit_codes.STOPPED + stop.number


if __name__ == "__main__":
    sys.exit(console.run(main))
