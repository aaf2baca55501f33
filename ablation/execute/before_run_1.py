"""Can the runs begin, and end?  What can be known to fail is said before the first of them.

The trainer's arguments are checked in its own terms. Token shards are looked into where they are
in this project's format; how many tokens a run needs is known for this project's trainer alone.
"""

import shlex
import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from ablation.folder.materials import ROOT, Code, Materials, shards_in
from ablation.plan.manual import runs_by_hand
from ablation.runs.untrusted import printable
from ablation.study.experiment import Experiment

# As data/prepare.py and train_gpt.py have them; a test keeps them equal
MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
SHARD_TOKENS, HUB_SHARDS = 100_000_000, 103  # of a FineWeb shard; train shards on the hub
SEEDS = 2**32


def check_materials(m: Materials, e: Experiment) -> None:
    """Raise ValueError with the remedy when a run could not even begin."""
    code = m.code
    check_arguments(e)
    if not e.study.trainer.is_ours:
        return
    if is_ours(code):
        check_passes(e)
    shards = {kind: shards_of(m, e, kind) for kind in ("train", "val")}
    if is_ours(code) and all(shards.values()):
        for shard in (*shards["train"], *shards["val"]):
            if not shard.is_known:
                raise ValueError(
                    f"{shard.path}: not a token shard (magic number or version); prepare it again"
                )
        check_amount(m, e, shards["train"], shards["val"])


def is_ours(code: Code) -> bool:
    """This project's trainer, changed or not; others have other rules of their own, also where they
    bear its name or read its shards."""
    ours = ("train_gpt.py", "aux_heads.py")
    return code.names[:1] == ours[:1] and ours[1] in code.names


# ---------------------------------------------------------------------------------------------
# Arguments


def check_arguments(e: Experiment) -> None:
    for run in runs_by_hand(e) if e.arms else ():
        if not 0 <= run.seed < SEEDS:
            raise ValueError(
                f"--seeds: {run.arm.name} would run with seed {run.seed}; give numbers from 0 to"
                f" {SEEDS - 1}, and a repeat of an arm takes a seed 1000 above"
            )
    if e.profile.scale is None:
        return
    batch = e.profile.scale.batch_size
    if batch % e.share.processes:
        fit = max(n for n in range(1, e.share.processes) if batch % n == 0)
        option = "--num_gpus" if e.share.device == "cuda" else "--nodes_per_run"
        raise ValueError(
            f"{e.share.processes} processes cannot share a batch of {batch}"
            f" sequences evenly; give {option} {fit}"
        )


def check_passes(e: Experiment) -> None:
    """A process's share of a batch has to be so many equal passes."""
    scale = e.profile.own_scale
    share, pass_size = scale.batch_size // e.share.processes, scale.device_batch_size
    if share % min(pass_size, share):
        fits = max(n for n in range(1, pass_size + 1) if share % n == 0)
        raise ValueError(
            f"--device_batch_size {pass_size} does not divide the {share} sequences of a process;"
            f" give {fits}"
        )


# ---------------------------------------------------------------------------------------------
# Shards


@dataclass(frozen=True)
class Shard:
    path: Path
    tokens: int | None  # None: in a format that is not known here

    @property
    def is_known(self) -> bool:
        return self.tokens is not None

    def windows(self, sequence_length: int) -> int:
        """Windows of so many inputs, and a next token for the last of them; 0 where unknown."""
        return max(0, ((self.tokens or 0) - 1) // sequence_length)


def shards_of(m: Materials, e: Experiment, kind: str) -> list[Shard]:
    """The shards of a kind. Raises ValueError where there is none, or one is damaged."""
    found = []
    if m.data_dir.exists():
        sizes = shards_in(m.data_dir)
        found = [m.data_dir / name for name in sizes if Path(name).match(f"*_{kind}_*.bin")]
    if not found:
        raise ValueError(
            f"no *_{kind}_*.bin shard in {m.data_dir}; make them: {prepare(m.data_dir, e)}"
        )
    return [read_shard(path, sizes[path.name], e.profile.own_scale.vocab_size) for path in found]


def read_shard(path: Path, size: int, vocab_size: int) -> Shard:
    """Raises ValueError for one of this project's format that is cut off, or whose tokens do not
    fit into the vocabulary as far as a sample tells."""
    try:
        with open(path, "rb") as file:
            header = file.read(12)
            if len(header) < 12 or struct.unpack("<ii", header[:8]) != (MAGIC, VERSION):
                return Shard(path, None)
            (tokens,) = struct.unpack("<i", header[8:])
            if tokens < 0 or size != HEADER_BYTES + 2 * tokens:
                raise ValueError(
                    f"{path}: {tokens} tokens announced, but {size} bytes instead of"
                    f" {HEADER_BYTES + 2 * tokens}; it is cut off or damaged, prepare it again"
                )
            largest = largest_token(file, tokens)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if largest >= vocab_size:
        raise ValueError(
            f"{path}: token {largest}, but the profile's vocabulary has {vocab_size}; give the"
            " --profile that these shards are for, or another --data_dir"
        )
    return Shard(path, tokens)


PARTS, PART_TOKENS = 16, 8_192  # of a shard, evenly, its ends among them: 27 take a tenth second


def largest_token(file, tokens: int) -> int:
    """Of a sample; of all, where they are no more than that."""
    largest = -1
    size = min(tokens, PART_TOKENS)
    for part in range(PARTS) if size < tokens else (0,):
        file.seek(HEADER_BYTES + 2 * ((tokens - size) * part // (PARTS - 1)))
        some = array("H", file.read(2 * size))
        if sys.byteorder == "big":
            some.byteswap()
        largest = max(largest, max(some, default=-1))
    return largest


# ---------------------------------------------------------------------------------------------
# How much text a run needs


def longest_run(e: Experiment) -> int:
    """Iterations of the longest run that the plan can ask for: all of its data has to be there
    from the start, since it is registered then."""
    return max((run.num_iterations for run in runs_by_hand(e)), default=e.full_iterations)


def check_amount(m: Materials, e: Experiment, train: list[Shard], val: list[Shard]) -> None:
    p = e.profile.own_scale
    there = sum(shard.windows(p.sequence_length) for shard in train)
    needed = longest_run(e) * p.batch_size
    if needed > there:
        enough, remedy = there // p.batch_size, ""
        if is_fineweb(e) and shards_for(e) <= HUB_SHARDS:
            remedy = f"make more shards ({prepare(m.data_dir, e)}), or "
        raise ValueError(
            f"{m.data_dir}: {len(train)} train shard(s) with {there:,} windows of"
            f" {p.sequence_length} tokens, but runs of {longest_run(e):,} iterations need"
            f" {needed:,}; {remedy}give a --full_iterations with runs of at most {enough:,}"
        )
    there = sum(shard.windows(p.sequence_length) for shard in val)
    if p.val_tokens // p.sequence_length > there:
        raise ValueError(
            f"{m.data_dir}: {there * p.sequence_length:,} validation tokens in whole windows, but"
            f" the profile needs {p.val_tokens:,}; prepare them again, or give another --data_dir"
        )


def is_fineweb(e: Experiment) -> bool:
    return e.profile.data_dir == "data/fineweb"


def shards_for(e: Experiment) -> int:
    """FineWeb shards that hold the windows of the longest run."""
    windows = Shard(Path(), SHARD_TOKENS).windows(e.profile.own_scale.sequence_length)
    return -(-longest_run(e) * e.profile.own_scale.batch_size // windows)


def prepare(data_dir: Path, e: Experiment) -> str:
    """The command that makes the shards of an experiment."""
    command = "python data/prepare.py"
    if is_fineweb(e):
        command += f" fineweb --shards {min(shards_for(e), HUB_SHARDS)}"
    if data_dir != ROOT / e.profile.data_dir:
        command += f" --output_dir {shlex.quote(printable(str(data_dir)))}"
    return command
