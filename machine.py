"""What does this machine have, and what lies in this checkout?  Questions, with their answers.

Nothing is decided and nothing is started here but short programs that tell: nvidia-smi, git.
"""

import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from experiment import Experiment

ROOT = Path(__file__).resolve().parent


def machine(e: Experiment, gpus: Sequence[str]) -> dict:
    return {
        "host": socket.gethostname(),
        "device": e.device,
        "processes": e.processes,  # of one run
        "slots": e.slots,  # runs side by side
        "nodes": e.nodes,  # of one run
        "launcher": e.launcher,
        "gpus": list(gpus),
        "cpu": cpu_name(),
        "cpu_count": cores(),
    }


def cpu_name() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> dict:
    """Of the checkout this file lies in; `dirty` is None where there is no repository."""
    commit = output_of("git", "rev-parse", "HEAD", cwd=ROOT)
    changed = output_of("git", "status", "--porcelain", cwd=ROOT) if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def cores() -> int:
    """Processor cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that a trainer would see, without importing torch."""
    listed = output_of("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
    gpus = [line.split(", ", 2) for line in listed.splitlines() if line.count(", ") >= 2]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(name for _, _, name in gpus)
    names = {key: name for index, uuid, name in gpus for key in (index, uuid)}
    return tuple(names[key.strip()] for key in chosen.split(",") if key.strip() in names)


def output_of(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; empty when it is missing, fails, or takes longer than 20 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=cwd)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
