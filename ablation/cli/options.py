"""Which options does run_aux.py have?"""

import argparse
from functools import partial

from ablation.cli.arguments import Parser, a_path
from ablation.study.asked import STAGED, TERMS_ASKED
from ablation.study.experiment import STOP_ON
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES

ONCE = (  # options whose values might be meant together
    *("--experiment", "--phase", "--stage", "--seeds", "--exp_dir", "--study"),
    *("--best", "--best_layers"),
)
STOPS = f"adaptive: {', '.join(STOP_ON)} ({next(iter(STOP_ON))})"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_aux.py",
        once=ONCE,
        description=HEADS.question,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=30, width=100),
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
    how.add_argument("--study", type=a_path, metavar="FILE", help="a TOML file (docs/studies.md)")
    how.add_argument("--arm", action="append", metavar="NAME", help="a study of NAME='--flag 1'")
    how.add_argument("--profile", metavar="NAME", help=f"{', '.join(PROFILES)} (by the GPUs seen)")
    how.add_argument("--max_budget_hours", type=float, metavar="H", help="machine hours in all")
    how.add_argument("--plan", choices=STAGED, metavar="NAME", help="classic (default) or adaptive")
    how.add_argument("--stop_on", choices=(*STOP_ON,), metavar="WHAT", help=STOPS)
    how.add_argument("--screen", action="store_true", help="adaptive: short runs in stage 1, too")
    how.add_argument("--first_seed", type=int, metavar="N", help="added to every seed (0)")
    how.add_argument("--full_iterations", type=int, metavar="N", help="length of a full run")
    how.add_argument("--validation_runs", type=int, metavar="N", help="most pairs in stage 4")
    how.add_argument("--runs", type=int, metavar="K", help="seeds per arm by hand (1)")
    how.add_argument("--seeds", type=int_list, metavar="LIST", help="seeds by hand, as 1,2,3")
    how.add_argument("--best", metavar="ARM", help="stage 3 or 4 by hand: ARM[+REFINEMENT]")
    how.add_argument("--best_layers", type=int_list, metavar="L", help="stage 3 or 4 by hand: 4,8")
    how.add_argument("--best_weight", type=float, metavar="W", help="stage 4 by hand: loss weight")
    how.add_argument("--best_schedule", metavar="S", help="stage 4 by hand: weight schedule")
    how.add_argument("--unet_skips", action="store_true", help="every model with U-net skips")
    how.add_argument("--log_grad_norms", action="store_true", help="of each layer, in every run")
    how.add_argument("--ignore_gate", action="store_true", help="go on past a STOP, on record")

    terms = parser.add_argument_group("statistical terms, nats/token (the profile's)")
    for name, (_, about) in TERMS_ASKED.items():
        terms.add_argument(f"--{name}", type=float, metavar="X", help=about)
    add_place(parser.add_argument_group("where and with what"))
    look = parser.add_argument_group("before the first run")
    look.add_argument("--dry_run", action="store_true", help="print commands and hours only")
    look.add_argument("--preflight", action="store_true", help="try this machine, in minutes")
    look.add_argument("--preflight_file", type=a_path, metavar="F", help="what that measured")
    tell = parser.add_argument_group("for programs")
    tell.add_argument("--json", action="store_true", help="one object, for people on stderr")
    tell.add_argument("--exit_verdict", action="store_true", help="exit codes tell verdicts")
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
    where.add_argument("--no_page", action="store_true", help="no report.html while runs go on")
    where.add_argument("--stall_timeout", type=float, metavar="MIN", help="silence allowed (10)")


def int_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers as 1,2,3") from None
