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
from ablation.cli.arguments import Parser, a_path, pasteable, plain_words
from ablation.execute import local, slurm
from ablation.execute.command import build_command, check_launcher, extra_environment
from ablation.execute.display import Display
from ablation.execute.lock import Lock
from ablation.execute.machine import cores, git_state, machine, versions, visible_gpus
from ablation.execute.orchestrator import Launcher, reconcile
from ablation.execute.preflight import check_materials
from ablation.execute.session import Session, drive, resume_command
from ablation.execute.status import print_status, status
from ablation.folder.materials import ROOT, Materials
from ablation.folder.overrides import (
    check_choice,
    record_overrides,
    with_override,
    with_overrides_on_record,
)
from ablation.folder.registration import (
    check_unchanged,
    code_copy,
    data_dir_of,
    experiment_of,
    is_new,
    new_folder,
    newest_experiment,
    read_document,
    register,
    registered,
    registered_trainer,
)
from ablation.plan.forecast import forecast, paid_s
from ablation.plan.manual import every_seed_once
from ablation.plan.next_step import PLANS, is_second_test, next_step, pairs_begun
from ablation.runs.run import Arm, RunResult, duration, machine_seconds
from ablation.runs.store import read_records
from ablation.runs.untrusted import printable
from ablation.study.experiment import Experiment
from ablation.study.heads import ARMS, PHASES, QUESTION, SCHEDULE, WEIGHT
from ablation.study.profiles import PROFILES, default_profile

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
    variables = extra_environment(e, exp_dir).items()
    environment = "".join(f"{name}={shlex.quote(value)} " for name, value in variables)
    for number, p in enumerate(planned, 1):
        log_file = exp_dir / p.run.name / "train_log.txt"
        command = build_command(e, p.run, m.script, m.data_dir, log_file)
        print(f"# {number}/{len(planned)} stage {p.run.stage}: {p.run.name}, {duration(p.wall_s)}")
        print(environment + " ".join(map(pasteable, command)))
    print()
    announce(e, results, print)


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
    where.add_argument("--cpu_processes", type=int, metavar="N", help="processes on a CPU (1)")
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


class UsageError(ValueError):
    """A command line that cannot be meant."""


MOST = {  # options that are numbers above 0: the most that somebody can mean
    "max_budget_hours": 1e5,
    "full_iterations": 10**8,
    "validation_runs": 10**4,
    "runs": 10**4,
    "stall_timeout": 1e5,
    "cpu_processes": 10**4,
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


def arms_asked(args) -> tuple[Arm, ...]:
    if args.phase:
        return PHASES[args.phase]
    return tuple(ARMS[name.strip()] for name in (args.experiment or "").split(",") if name)


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
    if args.stop_on and e.plan != "adaptive":
        raise UsageError(f"--stop_on {args.stop_on}: it is for --plan adaptive; leave it out")
    e = with_share(e, args, gpus)
    per_process = max(1, e.profile.batch_size // e.processes)
    sequences = args.device_batch_size or min(e.profile.device_batch_size, per_process)
    return replace(e, profile=replace(e.profile, device_batch_size=sequences))


def with_share(e: Experiment, args, gpus: Sequence[str]) -> Experiment:
    """The experiment with the share of a machine that the command line gives to a run."""
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
        raise UsageError(
            f"{used} GPU(s) are asked for and {len(gpus)} visible;"
            f" give --num_gpus {len(gpus)}{' (the CPU)' if not gpus else ''}"
        )
    if args.gpus_per_run is not None:
        if e.device == "cpu" or args.gpus_per_run > used:
            raise UsageError(
                f"--gpus_per_run {args.gpus_per_run}: there are {used if e.device == 'cuda' else 0}"
                " GPUs to share; on a CPU give --parallel_runs"
            )
        e = replace(e, processes=args.gpus_per_run, slots=used // args.gpus_per_run)
    for name, field in (("cpu_processes", "processes"), ("parallel_runs", "slots")):
        if getattr(args, name) is not None:
            if e.device == "cuda" and e.launcher == "local":
                raise UsageError(f"--{name}: for a CPU; with GPUs give --gpus_per_run")
            e = replace(e, **{field: getattr(args, name)})
    if e.processes % e.nodes:
        raise ValueError(f"{e.processes} processes of a run do not divide over {e.nodes} nodes")
    if args.nodes_per_run is not None:
        if e.launcher != "slurm" or e.processes % args.nodes_per_run:
            raise UsageError(
                f"--nodes_per_run {args.nodes_per_run}: for --launcher slurm, and a divisor of the"
                f" {e.processes} processes of a run"
            )
        e = replace(e, nodes=args.nodes_per_run)
    return e


def folder_of(args, say) -> Path | None:
    """The experiment to begin or to go on with; None for a new folder in --output_dir."""
    if args.exp_dir is not None or (args.stage or 1) == 1:
        return args.exp_dir
    newest = newest_experiment(args.output_dir or Path("experiments"))
    say(f"Continuing {newest}")
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


def run(args, display: Display) -> int:
    """Begin or continue an experiment, or show what that would do."""
    exp_dir = folder_of(args, display.say)
    new = exp_dir is None or is_new(exp_dir)
    document = None if new else read_document(exp_dir)
    if document is None:
        check_can_begin(args, exp_dir)
    gpus = gpus_seen(args, document)
    e = experiment_of(document) if document else new_experiment(args, gpus, display.say)
    if args.dry_run or args.plan_report:
        return show_plan(args, exp_dir, document, e, gpus, display)
    e = as_asked(e, args, gpus)
    try:
        every_seed_once(e)
    except ValueError as error:
        raise UsageError(f"--seeds: {error}") from None
    if document is None:
        e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
    return begin_or_go_on(args, exp_dir, document, e, gpus, display)


def show_plan(args, exp_dir, document, e: Experiment, gpus: Sequence[str], display) -> int:
    """--dry_run and --plan_report: nothing is launched or written."""
    meant = PROFILES[args.profile or e.profile.name]
    if args.num_gpus is None and not gpus and meant.gpus:
        display.say(f"No GPU is visible: times are for {meant.machine} (--num_gpus 0: this CPU).")
        gpus = ("",) * meant.gpus
        e = replace(e, device="cuda", processes=meant.gpus)
    e = as_asked(e, args, gpus)
    if args.plan_report:
        from ablation.plan import power

        e = replace(e, budget_hours=args.max_budget_hours or e.budget_hours)
        print(power.render(e))
        return exit_codes.DONE
    results = ()
    if document:
        results = read_records(exp_dir, document["experiment_id"]).results
        e = with_overrides_on_record(e, exp_dir)
    e = with_overrides(args, e, results)
    stem = time.strftime("aux_heads_%Y%m%d_%H%M%S", time.gmtime())
    shown_as = exp_dir or (args.output_dir or Path("experiments")) / stem
    dry_run(e, materials_of(args, document, exp_dir, e), shown_as, results)
    return exit_codes.DONE


def materials_of(args, document: dict | None, exp_dir: Path | None, e: Experiment) -> Materials:
    """The trainer and the shards: what was named now, else what was registered or is its like."""
    if document is None:
        script, data_dir = ROOT / "train_gpt.py", ROOT / e.profile.data_dir
    else:
        script, data_dir = registered_trainer(document, exp_dir), data_dir_of(document, e)
    return Materials((args.train_script or script).resolve(), (args.data_dir or data_dir).resolve())


def begin_or_go_on(
    args, exp_dir: Path | None, document: dict | None, e: Experiment, gpus, display: Display
) -> int:
    """Register a new experiment where there is none yet; then sit."""
    m = materials_of(args, document, exp_dir, e)
    shown_only = document is not None and not m.data_dir.is_dir() and is_done(e, document, exp_dir)
    if not shown_only:
        check_data_is_there(document, m)
        check_materials(m, e)
    check_launcher()
    facts = {"machine": machine(e, gpus), "versions": versions(), "git": git_state()}
    if document is not None:
        same = document["data"]["fingerprint"] if shown_only else None
        check_unchanged(document, registered(e, m, same), exp_dir)
    elif exp_dir is None:
        exp_dir = new_folder(args.output_dir or Path("experiments"))
    else:
        exp_dir.mkdir(parents=True, exist_ok=True)
    with Lock(exp_dir, display.say) as lock:
        if document is None:
            if not is_new(exp_dir):
                raise ValueError(
                    f"{exp_dir}: somebody began an experiment there a moment ago; give the same"
                    " command again to go on with it"
                )
            document = register(e, m, exp_dir, {**facts, "slurm_args": args.slurm_args or ""})
            display.say(f"New experiment: {exp_dir}")
            for line in m.code.told():
                display.say(line)
        return sit(args, exp_dir, document, e, m, facts, lock, display)


def check_data_is_there(document: dict | None, m: Materials) -> None:
    """Raise ValueError where the shards of an experiment are gone, with both ways out."""
    if document is not None and not m.data_dir.is_dir():
        raise ValueError(
            f"the shards of this experiment are gone: {m.data_dir} is no folder. Give where they"
            " lie now with --data_dir DIR, or put them back (data/prepare.py makes them again)"
        )


def is_done(e: Experiment, document: dict, exp_dir: Path) -> bool:
    """Nothing is left to run: a finished experiment is shown without its data."""
    records = read_records(exp_dir, document["experiment_id"])
    step = next_step(with_overrides_on_record(e, exp_dir), records.results, conclude=False)
    return bool(step.ended) and not records.open


def sit(
    args, exp_dir: Path, document: dict, e: Experiment, m: Materials, facts, lock, display: Display
) -> int:
    """One sitting, in a folder that is ours alone."""
    launcher = launcher_of(e, args.slurm_args or document["slurm_args"], exp_dir / "code")
    records = reconcile(exp_dir, document["experiment_id"], launcher, display.say)
    results = list(records.results)
    on_record = with_overrides_on_record(e, exp_dir)
    asked = with_overrides(args, on_record, results)
    stages = range(0, 1) if e.plan == "manual" else range(1, 5)
    if args.stage:
        stages = range(args.stage, args.stage + 1)
        check_turn(asked, results, args.stage, args.ignore_gate, exp_dir)
    raised = asked.budget_hours > on_record.budget_hours
    if raised and pairs_begun(results) >= 0:
        display.say("Stage 4 has begun: a larger budget does not raise its number of pairs.")
    if e.device == "cpu" and cores() != e.cores:
        display.say(
            f"Beware: {cores()} cores may be used here, {e.cores} were registered: times and costs"
            " are not those of the earlier runs."
        )
    e = record_overrides(exp_dir, asked)
    step = next_step(e, results)
    if step.runs and step.stage <= stages[-1]:
        announce(e, results, display.say)
    session = Session(
        exp_dir=exp_dir,
        experiment_id=document["experiment_id"],
        script=code_copy(document, exp_dir).resolve(),
        data_dir=m.data_dir,
        facts={**facts, "code": document["code"], "data": document["data"]},
        lock=lock,
        launcher=launcher,
        running=records.open,
        stages=stages,
        ignore_gate=args.ignore_gate,
        stall_s=60 * (args.stall_timeout or 10),
    )
    try:
        return drive(e, session, results, display)
    except (OSError, ValueError) as error:  # ValueError: the lock or a folder is not ours any more
        raise MachineFault(
            f"{plain_words(error)}. What was finished is kept; when that is mended, go on:"
            f" {resume_command(e, exp_dir)}"
        ) from error


class MachineFault(ValueError):
    """The machine failed in the middle of a sitting: a full disk, a process that cannot start."""


def launcher_of(e: Experiment, slurm_args: str, code_dir: Path) -> Launcher:
    if e.launcher == "local":
        return local.LocalLauncher(code_dir)
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
        chosen = with_override(e, "by_hand", args.stage, value)
        if chosen != e and pairs_begun(results) > 0:
            raise ValueError(
                f"--best_layers: the pairs of stage 4 have begun ({pairs_begun(results)} complete);"
                " another configuration on the same seeds would be a second test: begin a new"
                " experiment"
            )
        e = chosen
    hours = args.max_budget_hours
    if hours not in (None, e.budget_hours):
        value = {"hours": hours, "was": e.budget_hours, "pairs": pairs_begun(results)}
        rebudgeted = replace(with_override(e, "budget", 0, value), budget_hours=hours)
        if is_second_test(e, rebudgeted, results):
            raise ValueError(
                f"--max_budget_hours {hours:g}: stage 4 has its verdict, of the"
                f" {pairs_begun(results)} pairs that the budget of {e.budget_hours:g} h allowed;"
                " more of them would be a second test: begin a new experiment"
            )
        e = rebudgeted
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
        f" run: python run_aux.py --stage {step.stage} --exp_dir {pasteable(exp_dir)}{by_hand}"
    )


def show_status(args) -> int:
    found = status(args.exp_dir or newest_experiment(args.output_dir or Path("experiments")))
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
