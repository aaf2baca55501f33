"""What is the command of a run, and in which environment does it start?  Pure functions."""

import os
import sys
from pathlib import Path

from experiment import TRAINER_FLAGS, Experiment
from records import RunConfig


def build_command(
    e: Experiment, run: RunConfig, script: Path, data_dir: Path, log_file: Path
) -> tuple[str, ...]:
    """The whole command line; pasted into a shell, it does the same run."""
    arguments = {
        "num_iterations": run.num_iterations,
        **{name: getattr(e.profile, name) for name in TRAINER_FLAGS},
        "data_dir": data_dir,
        "aux_head_layers": ",".join(map(str, run.arm.layers)),
        "aux_loss_weight": f"{run.arm.weight:g}",
        "aux_loss_schedule": run.arm.schedule,
        "seed": run.seed,
        "device": e.device,
        "log_file": log_file,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    asked = {"--unet_skips": run.arm.unet_skips, "--log_grad_norms": e.log_grad_norms}
    flags += [flag for flag, is_asked in asked.items() if is_asked]
    per_node = f"--nproc_per_node={e.processes // e.nodes}"
    return (torchrun(), "--standalone", per_node, str(script), *flags)


def torchrun() -> str:
    """The one beside this Python, unless the variable TORCHRUN names another."""
    beside_python = Path(sys.executable).with_name("torchrun")
    found = str(beside_python) if beside_python.exists() else "torchrun"
    return os.environ.get("TORCHRUN", found)


def extra_environment(e: Experiment, exp_dir: Path, slot: int = 0) -> dict[str, str]:
    """A run's share of the machine: its GPUs, where runs are packed, and its CPU threads; and what
    all runs of an experiment share: what torch compiled for the first of them.

    torchrun alone would give each of several workers one thread, and every run all GPUs. On Slurm
    the job has its share already.
    """
    env = {}
    if e.device == "cuda":
        env["TORCHINDUCTOR_CACHE_DIR"] = str(exp_dir.resolve() / "compile_cache")
    if e.launcher == "slurm":
        return env
    share = max(1, e.cores // (e.slots * e.processes))
    if e.device == "cpu" and e.profile.cpu_threads:
        env["OMP_NUM_THREADS"] = str(min(share, e.profile.cpu_threads))
    elif e.slots * e.processes > 1:
        env["OMP_NUM_THREADS"] = str(share)
    if e.device == "cuda" and e.slots > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = seen.split(",") if seen else [str(n) for n in range(e.slots * e.processes)]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(ids[slot * e.processes :][: e.processes])
    return env
