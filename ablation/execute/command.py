"""What is the command of a run, and in which environment and folder does it start?"""

import importlib.util
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from ablation.execute.environment import clean
from ablation.execute.launcher import Command
from ablation.execute.machine import named_gpus
from ablation.execute.trainer_command import command_of, env_of, values_of
from ablation.folder.data import link_data
from ablation.folder.materials import CodeCopy
from ablation.folder.trainers import code_for_run
from ablation.runs.run import Arm, RunConfig, Value
from ablation.study.experiment import Experiment
from ablation.study.profiles import TRAINER_FLAGS
from ablation.study.study import overlaid

# Workers meet on this machine and nowhere else, whatever its host name resolves to.
ONE_MACHINE = ("--standalone", "--nnodes=1", "--local-addr=127.0.0.1")
# Else torchrun makes a folder torchelastic_... for each run, and leaves it in the temporary folder.
# All output goes to output.log, so nothing would be in it.
NO_LOG_DIR = f"--log-dir={os.devnull}"


def build_command(
    e: Experiment, run: RunConfig, copy: CodeCopy, data_dir: Path | None, run_dir: Path
) -> tuple[str, ...]:
    """The whole command line; pasted into a shell, it does the same run."""
    study, values = e.study, values_of(run, run_dir, data_dir, gpus_of(e))
    if study.trainer.is_ours:
        study = replace(study, base=own_base(e, run, data_dir, run_dir))
    words = command_of(study, run.arm, copy.code.names, copy.folder, values)
    if study.trainer.launch == "torchrun":
        per_node = f"--nproc_per_node={e.share.processes // e.share.nodes}"
        return (*torchrun(), *ONE_MACHINE, per_node, NO_LOG_DIR, *words)
    return (sys.executable, *words) if study.trainer.launch == "plain" else words


def gpus_of(e: Experiment) -> int:
    """Of one run."""
    return e.share.processes if e.share.device == "cuda" else 0


def own_base(e: Experiment, run: RunConfig, data_dir: Path | None, run_dir: Path) -> Arm:
    """What this project's own trainer is told in every run: its scale, and the study's base."""
    scale = e.profile.own_scale
    before: dict[str, Value] = {
        "num_iterations": run.num_iterations,
        **{name: getattr(scale, name) for name in TRAINER_FLAGS},
        "data_dir": str(data_dir),
    }
    after: dict[str, Value] = {
        "seed": run.seed,
        "device": e.share.device,
        "log_file": str(run_dir / "train_log.txt"),
        "unet_skips": e.unet_skips,
        "log_grad_norms": e.log_grad_norms,
    }
    whole = Arm("own", tuple(before.items()))
    return overlaid(overlaid(whole, e.study.base), Arm("own", tuple(after.items())))


def command_for(
    e: Experiment, run: RunConfig, copy: CodeCopy, data_dir: Path | None, exp_dir: Path,
    folder: Path, slot: int = 0,
) -> Command:  # fmt: skip
    """The command of an attempt in this folder, with this slot's share of the machine. A trainer of
    another project starts in a folder of its own below, where it finds its data and leaves what it
    writes."""
    about = {"code": {"hash": copy.code.hash, "files": list(copy.code.names)}}
    trainer, cwd, run_dir = e.study.trainer, None, folder
    if not trainer.is_ours:
        cwd = run_dir = folder / "work"
    values = values_of(run, run_dir, data_dir, gpus_of(e))
    copy = code_for_run(copy, folder, values)
    if cwd:
        cwd.mkdir(parents=True, exist_ok=True)
        link_data(e.study, cwd, copy.folder)
    words = build_command(e, run, copy, data_dir, run_dir)
    env = environment_of(e, run, copy, data_dir, exp_dir, run_dir, slot)
    return Command(words, env, folder, cwd, about)


def environment_of(
    e: Experiment, run: RunConfig, copy: CodeCopy, data_dir: Path | None, exp_dir: Path,
    run_dir: Path, slot: int = 0,
) -> dict[str, str]:  # fmt: skip
    """Variables of a run, beside those around it: its share of the machine, and its arm's own."""
    values = values_of(run, run_dir, data_dir, gpus_of(e))
    own = env_of(e.study, run.arm, copy.folder, values, clean(os.environ))
    return {**extra_environment(e, exp_dir, slot), **own}


def torchrun() -> tuple[str, ...]:
    """The words that start torchrun under this Python, unless the variable TORCHRUN names another:
    a program, or several words as a shell would take them. The script `torchrun` itself names the
    Python that it was installed for, which a virtual environment that was moved no longer has."""
    named = os.environ.get("TORCHRUN", "").strip()
    if not named:
        return (sys.executable, "-m", "torch.distributed.run")
    try:
        words = tuple(shlex.split(named))
    except ValueError:  # a quotation mark in a path
        words = ()
    return (named,) if shutil.which(named) or not words else words


def check_torchrun() -> None:
    """Raise ValueError where no run could be started, naming the remedy."""
    program, *_ = torchrun()
    if os.environ.get("TORCHRUN", "").strip():
        if not shutil.which(program):
            raise ValueError(
                f"TORCHRUN={os.environ['TORCHRUN']}: there is no program {program} that can be"
                " started; name one, or unset TORCHRUN to launch with this Python"
            )
        return
    torch = importlib.util.find_spec("torch")  # finding is not importing, which takes seconds
    places = list(torch.submodule_search_locations or ()) if torch else []
    if not any(Path(place, "distributed", "run.py").exists() for place in places):
        raise ValueError(
            f"{program} has no torch{'.distributed.run' * bool(torch)}: pip install -r"
            " requirements.txt there, use a Python that has it, or name a launcher in TORCHRUN"
        )


def extra_environment(e: Experiment, exp_dir: Path, slot: int = 0) -> dict[str, str]:
    """A run's share of the machine: its GPUs, where runs are packed, and its CPU threads; and what
    all runs of an experiment share: what torch compiled for the first of them.

    torchrun alone would give each of several workers one thread, and every run all GPUs. On Slurm
    the job has its share already.
    """
    env, share = {}, e.share
    on_gpus, workers = share.device == "cuda", share.parallel_runs * share.processes
    if on_gpus:
        env["TORCHINDUCTOR_CACHE_DIR"] = str(exp_dir.resolve() / "compile_cache")
    if share.launcher == "slurm":
        return env
    threads = max(1, share.cores // workers)
    if not on_gpus and e.profile.cpu_threads:
        env["OMP_NUM_THREADS"] = str(min(threads, e.profile.cpu_threads))
    elif workers > 1:
        env["OMP_NUM_THREADS"] = str(threads)
    if on_gpus and share.parallel_runs > 1:
        ids = named_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        ids = ids or [str(n) for n in range(workers)]
        mine = ids[slot * share.processes :][: share.processes]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return env
