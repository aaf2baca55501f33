"""What can be seen of a machine before any run?  GPUs, processor, trainer, data, disk and clock.

Looks, and starts nothing but nvidia-smi. What cannot be looked at is a fault in words: nothing here
raises for what somebody's machine is like.
"""

import contextlib
import hashlib
import math
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablation.cli.arguments import plain_words
from ablation.execute.before_run_1 import HEADER_BYTES, check_materials, read_shard
from ablation.execute.command import check_torchrun
from ablation.execute.machine import (
    UNCOUNTED,
    UNKNOWN,
    Gpu,
    as_cuda_sees,
    ask,
    cpu_name,
    listed_gpus,
    versions,
)
from ablation.execute.observed import Data, Disk, GpuState, Survey
from ablation.execute.trainer_check import has_check
from ablation.folder.data import at, data_faults, files_below
from ablation.folder.materials import ROOT, Materials, recorded_fingerprint, shards_in
from ablation.runs.untrusted import printable, printable_path, read_json
from ablation.study.experiment import Experiment
from ablation.study.study import Study

ASLEEP_S, AWAKE_S = 20.0, 5.0  # that nvidia-smi may take for GPUs that nobody, that a run uses


def survey(e: Experiment, m: Materials, folder: Path, look_s: float, gpus: Sequence[str]) -> Survey:
    """folder: an empty one where experiments would lie. look_s: that shards may be read for.
    gpus: the names of those visible, or why they have none."""
    on_gpus = e.share.device == "cuda" and e.share.launcher == "local"
    gpu_fault = next((name for name in gpus if name.startswith((UNKNOWN, UNCOUNTED))), "")
    with told_as_fault() as fault:
        code = m.code
    trainer_fault = "".join(fault)
    found, data_fault = None, "" if trainer_fault else fault_of(lambda: check_materials(m, e))
    if not (trainer_fault or data_fault):
        with told_as_fault() as fault:
            found = data_of(e, m, look_s)
        data_fault = "".join(fault)
    with told_as_fault() as disk_fault:
        disk = disk_of(folder)
    return Survey(
        host=socket.gethostname(),
        processor=cpu_name(),
        busy=busy_cores(),
        gpus=gpu_states(ASLEEP_S) if on_gpus and not gpu_fault else (),
        gpu_fault=gpu_fault,
        gpus_counted=not gpu_fault.startswith(UNCOUNTED),
        versions=versions(),
        pinned=pinned(),
        trainer="" if trainer_fault else ", ".join(code.names),
        has_check=not trainer_fault and has_check(code),
        trainer_fault=trainer_fault,
        launcher_fault=fault_of(lambda: find_launcher(e)),
        data=found,
        data_fault=data_fault,
        disk=None if disk_fault else disk,
        disk_fault="".join(disk_fault),
    )


@contextlib.contextmanager
def told_as_fault() -> Iterator[list[str]]:
    """In here a refusal becomes words, which the list gets."""
    words: list[str] = []
    try:
        yield words
    except (ValueError, OSError) as error:
        words.append(printable(plain_words(error), limit=1000))


def fault_of(look) -> str:
    """Why something cannot be looked at, or cannot work; empty where it can."""
    with told_as_fault() as words:
        look()
    return "".join(words)


def find_launcher(e: Experiment) -> None:
    check_torchrun()
    if e.share.launcher == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("--launcher slurm: there is no sbatch here; use --launcher local")


def busy_cores(over_s: float = 0.5) -> float:
    """Cores in use at the moment, while this process sleeps: nothing of it runs yet."""
    import psutil

    return psutil.cpu_percent(interval=over_s) / 100 * (psutil.cpu_count() or 1)


PIN = re.compile(r"^([\w-]+)==([\w.]+)", re.MULTILINE)


def pinned() -> dict[str, str]:
    """Versions that the checkout asks for."""
    with contextlib.suppress(OSError, ValueError):
        return dict(PIN.findall((ROOT / "requirements.txt").read_text()))
    return {}


def disk_of(folder: Path) -> Disk:
    probe = folder / "clock"
    probe.write_bytes(b"what time is it?")
    off_s = os.stat(probe).st_mtime - time.time()
    probe.unlink()
    return Disk(printable_path(folder.parent), shutil.disk_usage(folder).free, off_s)


# ---------------------------------------------------------------------------------------------
# GPUs

ABOUT_A_GPU = (  # a name comes last: it may hold anything
    *("index", "uuid", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm"),
    *("temperature.gpu", "name"),
)
APPS, ABOUT_A_PROCESS = "--query-compute-apps=", ("gpu_uuid", "pid", "used_memory", "process_name")
AS_CSV = "--format=csv,noheader,nounits"
SLOWING = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers, older
REASONS = {  # NVML's bits that take clocks away for a fault of the machine; not its power limit
    0x08: "slowed by its hardware",
    0x20: "slowed by its temperature",
    0x40: "slowed by its hardware for its temperature",
    0x80: "slowed by its power supply",
}


def gpu_states(patience_s: float) -> tuple[GpuState, ...]:
    """The GPUs that a trainer would see, as nvidia-smi tells; none where it fails, less where it
    takes longer than that in all."""
    until_s = time.monotonic() + patience_s
    found = {row[1]: row for row in asked("--query-gpu=", ABOUT_A_GPU, until_s)}
    rows = "\n".join(f"{row[0]}, {uuid}, {row[-1]}" for uuid, row in found.items())
    gpus = listed_gpus(rows, said(until_s, "-L")) if found else ()
    seen = as_cuda_sees(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    slowed, others = (slowdowns(until_s), processes(until_s)) if seen else ({}, {})
    untold = [""] * len(ABOUT_A_GPU)
    return tuple(
        gpu_state(
            gpu, found.get(gpu.uuid, untold), slowed.get(gpu.uuid, ()), others.get(gpu.uuid, ())
        )
        for gpu in seen
    )


def asked(query: str, fields: Sequence[str], until_s: float) -> list[list[str]]:
    """What nvidia-smi says of these fields, a whole row a line; nothing where it fails."""
    lines = said(until_s, query + ",".join(fields), AS_CSV).splitlines()
    rows = [line.split(", ", len(fields) - 1) for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def said(until_s: float, *words: str) -> str:
    """What nvidia-smi prints, until a time on the monotonic clock."""
    if (left_s := until_s - time.monotonic()) <= 0:
        return ""
    try:
        answer = ask("nvidia-smi", *words, patience_s=left_s)
    except FileNotFoundError:
        return ""
    return "" if answer.failed else answer.text


def gpu_state(
    gpu: Gpu, row: Sequence[str], slowed: tuple[str, ...], others: tuple[str, ...]
) -> GpuState:
    """row: what nvidia-smi tells of it, as in ABOUT_A_GPU."""
    total, used, clock, most, celsius = map(number, row[2:-1])
    return GpuState(gpu.name, gpu.uuid, total, used, clock, most, celsius, slowed, others)


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


def slowdowns(until_s: float) -> dict[str, tuple[str, ...]]:
    """What holds down the clocks, by GPU."""
    for field in SLOWING:
        if rows := asked("--query-gpu=", ("uuid", field), until_s):
            return {uuid: reasons_in(bits) for uuid, bits in rows}
    return {}


def reasons_in(bits: str) -> tuple[str, ...]:
    try:
        active = int(bits, 16)
    except ValueError:
        return ()
    return tuple(words for bit, words in REASONS.items() if active & bit)


def processes(until_s: float) -> dict[str, tuple[str, ...]]:
    """What computes on each GPU."""
    found: dict[str, tuple[str, ...]] = {}
    for uuid, process, used, name in asked(APPS, ABOUT_A_PROCESS, until_s):
        words = printable(f"{name} (process {process}, {used} MiB)", limit=120)
        found[uuid] = (*found.get(uuid, ()), words)
    return found


# ---------------------------------------------------------------------------------------------
# Data


def data_of(e: Experiment, m: Materials, look_s: float) -> Data:
    """Raises ValueError, as a registration of this data would."""
    if not e.study.trainer.is_ours:
        return data_of_study(e.study)
    sizes = shards_in(m.data_dir)
    kinds = {kind: [name for name in sizes if f"_{kind}_" in name] for kind in ("train", "val")}
    words = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
    total = sum(sizes.values())
    read_s = seconds_to_read(e, m, [(name, sizes[name]) for name in kinds["train"]], look_s / 4)
    checked, damaged = compared(m, sizes, look_s)
    words = f"{words} shard(s), {total / 1e6:,.1f} MB in {printable_path(m.data_dir)}"
    return Data(words, checked, damaged, read_s)


def data_of_study(study: Study) -> Data:
    """What another trainer reads: nobody knows here how it should look."""
    if faults := data_faults(study):
        raise ValueError("; ".join(faults))
    sizes = [size for entry in study.trainer.data for _, _, size in files_below(at(study, entry))]
    words = f"{len(sizes)} file(s), {sum(sizes) / 1e6:,.1f} MB in {', '.join(study.trainer.data)}"
    return Data(words if sizes else "the study names none", "in a form of its own", "", None)


def compared(m: Materials, sizes: dict[str, int], look_s: float) -> tuple[str, str]:
    """(how far the contents are those recorded by data/prepare.py, a shard that differs)."""
    meta = m.data_dir / "fingerprint.json"
    if not meta.is_file():
        return "sizes as their headers say, no checksums beside them", ""
    recorded = recorded_fingerprint(meta)[1]
    if recorded != sizes:
        return "", f"{printable_path(meta)}: its shards are not those in the folder"
    sums = {row["name"]: row["sha256"] for row in read_json(meta.resolve())["files"]}
    deadline, right = time.monotonic() + look_s, 0
    for name in sorted(sizes, key=lambda name: sizes[name]):
        found = sha256_of(m.data_dir / name, deadline)
        if found is None:
            break
        if found != sums[name]:
            return "", f"{printable_path(m.data_dir / name)}: not what was recorded (checksum)"
        right += 1
    rest = f" ({len(sizes) - right} not read for want of time)" * (right < len(sizes))
    return f"{right} of {len(sizes)} checksums right{rest}", ""


def sha256_of(path: Path, deadline: float) -> str | None:
    """None where the time is up before the end of the file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            if time.monotonic() > deadline:
                return None
    return digest.hexdigest()


ROUNDS = 5  # chosen: a slow disk is slow each time, a busy moment is not


def seconds_to_read(e: Experiment, m: Materials, shards, most_s: float) -> float | None:
    """For one step's windows of one process, at random places, from the disk and not from memory
    as far as the system lets go of it: the quickest of several rounds. None for shards in a format
    that is not known here."""
    p, rng = e.profile.scale, random.Random(0)
    if p is None:
        return None
    window = 2 * (p.sequence_length + 1)
    known = [(name, size) for name, size in shards if size > HEADER_BYTES + window]
    if not known or not read_shard(m.data_dir / known[0][0], known[0][1], p.vocab_size).is_known:
        return None
    wanted, rounds = max(1, p.batch_size // e.share.processes), [math.inf]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(m.data_dir / name, "rb", 0)) for name, _ in known]
        until_s = time.monotonic() + most_s
        while len(rounds) <= ROUNDS and (len(rounds) == 1 or time.monotonic() < until_s):
            picked = [rng.randrange(len(known)) for _ in range(wanted)]
            places = [
                (files[which].fileno(), rng.randrange(HEADER_BYTES, known[which][1] - window + 1))
                for which in picked
            ]
            rounds.append(one_round_s(places, window, until_s))
    return min(rounds)


def one_round_s(places: Sequence[tuple[int, int]], window: int, until_s: float) -> float:
    """Seconds to read a window at each place (file, offset); reckoned from those that were read
    where the time is up before, the first at least."""
    if hasattr(os, "posix_fadvise"):
        for file in {file for file, _ in places}:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    began_s, done = time.monotonic(), 0
    for file, offset in places:
        os.pread(file, window, offset)
        done += 1
        if time.monotonic() > until_s:
            break
    return (time.monotonic() - began_s) * len(places) / done
