"""What does this machine have, and what lies in this checkout?  Questions, with their answers.

Nothing is decided and nothing is started here but short programs that tell: nvidia-smi, git. They
get an environment that this project chose, and what they say is printed as they said it.
"""

import contextlib
import math
import os
import platform
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ablation.execute.environment import clean
from ablation.folder.materials import ROOT
from ablation.runs.untrusted import printable
from ablation.study.experiment import Experiment


def machine(e: Experiment, gpus: Sequence[str]) -> dict:
    return {
        "host": socket.gethostname(),
        "device": e.share.device,
        "processes": e.share.processes,  # of one run
        "parallel_runs": e.share.parallel_runs,
        "nodes": e.share.nodes,  # of one run
        "launcher": e.share.launcher,
        "gpus": list(gpus),
        "cpu": cpu_name(),
        "cpu_count": cores(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scipy"):
        try:
            found[package] = metadata.version(package) or "unreadable"
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # half removed
            found[package] = "unreadable"
    return found


# ---------------------------------------------------------------------------------------------
# Asking a program


@dataclass(frozen=True)
class Answer:
    """What a program said; `failed` says how it failed, and is empty where it did not."""

    text: str = ""
    failed: str = ""


PATIENCE_S = 20.0  # nvidia-smi wakes eight sleeping GPUs in some ten


def ask(*command: str, cwd: Path | None = None, patience_s: float | None = None) -> Answer:
    """Run a short program. FileNotFoundError where there is none of that name."""
    patience_s = PATIENCE_S if patience_s is None else patience_s
    try:
        asked = subprocess.Popen(
            command,
            cwd=cwd,
            env=clean(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        return Answer(failed=f"cannot be started ({error.strerror})")
    try:
        out, err = asked.communicate(timeout=patience_s)
    except BaseException as error:  # Ctrl-C too leaves no program behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(asked.pid, signal.SIGKILL)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        # one that waits for a broken driver does not even die: it is not waited for
        return Answer(failed=f"did not answer within {patience_s:.2g} s")
    if asked.returncode == 0:
        return Answer(out.strip())
    said = " ".join(line.strip() for line in (err.strip() or out.strip()).splitlines())
    return Answer(out.strip(), f"exit code {asked.returncode}: {printable(said) or 'no words'}")


# ---------------------------------------------------------------------------------------------
# GPUs


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi lists it, with the instances that it is divided into, if any."""

    name: str
    uuid: str
    instances: tuple["Gpu", ...] = ()


NONE_THERE = "no devices were found"
UNNAMED = re.compile(r"\[[^,]*\], ")  # "[Unknown Error], ...", "[GPU is lost], ..."
# Where a driver shows its GPUs, whether or not nvidia-smi is installed
SIGNS_OF_A_GPU = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*")
ROOT_FOLDER = Path("/")
UNKNOWN = "unknown"  # begins the name of a GPU that is there by the user's word alone
UNCOUNTED = "not counted"  # and of one that may be there, for all that is known


class NotCounted(ValueError):
    """How many GPUs there are is not known; `why`, in the tool's words."""

    def __init__(self, why: str):
        asked = "How many GPUs there are is not known: give --num_gpus N (0: the CPU)"
        super().__init__(f"{why}. {asked}")
        self.why = why


def visible_gpus(asked: int | None = None) -> tuple[str, ...]:
    """Names of the GPUs that a trainer would see, without importing torch.

    asked: of --num_gpus. Raises NotCounted with the tool's words where it fails and nobody said
    how many there are: a machine with GPUs must not be taken for one without.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked == 0 or (visible is not None and not named_gpus(visible)):
        return ()
    try:
        answer = ask("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
        if NONE_THERE in f"{answer.text} {answer.failed}".lower():
            return ()
        parts = answer if answer.failed else ask("nvidia-smi", "-L")  # instances: only there
        gpus = listed_gpus(answer.text, parts.text)
        failed = answer.failed or not_listed(answer.text, gpus)
        if (visible or "").startswith("MIG-"):
            failed = failed or parts.failed
        if not failed:
            return tuple(gpu.name for gpu in as_cuda_sees(gpus, visible))
        failed = f"nvidia-smi: {failed}"
    except FileNotFoundError:
        signs = [path for sign in SIGNS_OF_A_GPU for path in sorted(ROOT_FOLDER.glob(sign))]
        if not signs:
            return ()
        failed = f"{signs[0]} is there, but no program nvidia-smi to ask"
    if asked is None:
        raise NotCounted(failed)
    return (f"{UNKNOWN} ({failed})",) * asked


def not_listed(rows: str, gpus: Sequence[Gpu]) -> str:
    """What nvidia-smi says where it lists no GPU, or one that it lost; empty where it knows all."""
    if lost := next(filter(UNNAMED.match, rows.splitlines()), ""):
        return f"lists a GPU that it cannot name: {printable(lost)}"
    return "" if gpus else f"lists no GPU: {printable(rows) or 'nothing is printed'}"


def listed_gpus(rows: str, parts: str) -> tuple[Gpu, ...]:
    """From "index, uuid, name" of each GPU, and from what `nvidia-smi -L` prints: under each
    GPU the instances that it is divided into."""
    instances: dict[str, list[Gpu]] = {}
    name, of = "", []
    for line in parts.splitlines():
        if whole := re.match(r"GPU \d+: (.*) \(UUID: (GPU-[^)]+)\)", line):
            name, of = whole[1], instances.setdefault(whole[2], [])
        elif part := re.match(r"\s+MIG (.*?)\s+Device.*\(UUID: (MIG-[^)]+)\)", line):
            of.append(Gpu(f"{name} MIG {part[1]}", part[2]))
    gpus = [line.split(", ", 2) for line in rows.splitlines() if line.count(", ") >= 2]
    return tuple(Gpu(name, uuid, tuple(instances.get(uuid, ()))) for _, uuid, name in gpus)


def named_gpus(visible: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that CUDA does not read.

    The first entry says of which kind all are: GPU-..., MIG-... or numbers, of which only the
    leading digits count. An entry given twice leaves no device at all.
    """
    kind = visible[:4] if visible.startswith(("GPU-", "MIG-")) else ""
    keys: list[str] = []
    for entry in visible.split(","):
        number = re.match(r"\s*\+?(\d+)", entry, re.ASCII)
        key = entry if kind else number and str(int(number[1]))  # blanks count in names
        if not key or not key.startswith(kind):
            break
        if key in keys:
            return []
        keys.append(key)
    return keys


def as_cuda_sees(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """The devices that CUDA enumerates. Numbers are taken in nvidia-smi's order, which is CUDA's
    where all GPUs are alike or CUDA_DEVICE_ORDER is PCI_BUS_ID; how many there are, is the same.

    An entry that names none, or by its first digits several, ends the list. Of instances of
    divided GPUs a process sees one, and no other device beside it (NVIDIA's MIG user guide).
    """
    seen: list[Gpu] = []
    for key in map(str, range(len(gpus))) if visible is None else named_gpus(visible):
        if key.startswith("MIG-"):
            found = [i for gpu in gpus for i in gpu.instances if i.uuid.startswith(key)]
            old = re.match(r"MIG-(GPU-[^/]+)/\d+/\d+", key)  # where newer drivers list other names
            if old and not found:
                found = [gpu.instances[0] for gpu in gpus if gpu.uuid == old[1] and gpu.instances]
        elif key.startswith("GPU-"):
            found = [gpu for gpu in gpus if gpu.uuid.startswith(key)]
        else:
            found = [gpus[int(key)]] if int(key) < len(gpus) else []
        if len(found) != 1:
            break
        if found[0] in seen:
            return ()
        seen.append(found[0])
    first = [i for device in seen for i in (device.instances or (device,)) if "MIG-" in i.uuid]
    return tuple(first[:1] or seen)


# ---------------------------------------------------------------------------------------------
# Processor


def cpu_name() -> str:
    try:
        named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use, which can be fewer than the machine has: by its
    affinity (taskset, Slurm) and by the quota of its control group (docker --cpus)."""
    fits = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        fits = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(fits, quota_of_cores())))


CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def quota_of_cores() -> float:
    """The smallest quota of this process's control group (version 2) and those above it."""
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        own = next((s[3:] for s in OWN_GROUP.read_text().splitlines() if s.startswith("0::")), "/")
        group = CONTROL_GROUPS / own.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(CONTROL_GROUPS) and (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
                quotas.append(math.inf if quota == "max" else int(quota) / int(period))
    return min(quotas)


# ---------------------------------------------------------------------------------------------
# The checkout

# The files that a run and its verdict are made of. Whatever else lies in the folder, untracked or
# ignored files and links among it, is not part of what a commit would bring back.
PROGRAMS = (":(glob)*.py", ":(glob)ablation/**/*.py", "requirements.txt")
GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.fileMode=false")


def git_state(root: Path = ROOT) -> dict:
    """The commit that has these files: none where the repository around them is another's.

    `dirty`: whether tracked programs differ from it, None where that is not known; `why` says why
    there is no commit.
    """
    state = {"commit": "", "dirty": None}
    try:
        found = ask(*GIT, "rev-parse", "HEAD", "HEAD:./ablation/execute/machine.py", cwd=root)
        if found.failed:
            return state | {"why": found.failed}
        changed = ask(*GIT, "status", "--porcelain", "-uno", "--", *PROGRAMS, cwd=root)
    except FileNotFoundError:
        return state | {"why": "no program git"}
    dirty = None if changed.failed else bool(changed.text)
    return {"commit": found.text.split()[0], "dirty": dirty}
