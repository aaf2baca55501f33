"""What is the command of a run, and in which environment does it start?  Pure functions."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from ablation.execute.machine import named_gpus
from ablation.runs.run import RunConfig
from ablation.study.experiment import Experiment
from ablation.study.profiles import TRAINER_FLAGS
from ablation.study.study import overlaid, text_of

# Workers meet on this machine and nowhere else, whatever its host name resolves to.
ONE_MACHINE = ("--standalone", "--nnodes=1", "--local-addr=127.0.0.1")
# Else torchrun makes a folder torchelastic_... for each run, and leaves it in the temporary folder.
# All output goes to output.log, so nothing would be in it.
NO_LOG_DIR = f"--log-dir={os.devnull}"


def build_command(
    e: Experiment, run: RunConfig, script: Path, data_dir: Path, log_file: Path
) -> tuple[str, ...]:
    """The whole command line; pasted into a shell, it does the same run."""
    arguments = {
        "num_iterations": run.num_iterations,
        **{name: getattr(e.profile.own_scale, name) for name in TRAINER_FLAGS},
        "data_dir": data_dir,
        **{name: text_of(value) for name, value in overlaid(e.study.base, run.arm).flags},
        "seed": run.seed,
        "device": e.share.device,
        "log_file": log_file,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    asked = {"--unet_skips": e.unet_skips, "--log_grad_norms": e.log_grad_norms}
    flags += [flag for flag, is_asked in asked.items() if is_asked]
    per_node = f"--nproc_per_node={e.share.processes // e.share.nodes}"
    return (*torchrun(), *ONE_MACHINE, per_node, NO_LOG_DIR, str(script), *flags)


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
