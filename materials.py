"""Which files are runs made of: the trainer's code and the token shards?"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment import Experiment
from records import read_json


def hash_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Materials:
    """The files that runs are made of."""

    script: Path  # the trainer in the checkout
    data_dir: Path

    @property
    def code_files(self) -> tuple[Path, ...]:
        heads = self.script.with_name("aux_heads.py")
        return (self.script, heads) if heads.exists() else (self.script,)

    @property
    def code_hash(self) -> str:
        return hash_of(self.code_files)

    @property
    def data_fingerprint(self) -> str:
        """prepare.py's own where it lies beside the shards, else of names, sizes and samples."""
        shards = sorted(self.data_dir.glob("*.bin"))
        meta = self.data_dir / "fingerprint.json"
        if meta.exists():
            listed = read_json(meta)
            sizes = {file["name"]: file["bytes"] for file in listed["files"]}
            if sizes == {shard.name: shard.stat().st_size for shard in shards}:
                return listed["fingerprint"]
        digest = hashlib.sha256()
        for shard in shards:
            size = shard.stat().st_size
            digest.update(f"{shard.name} {size}\n".encode())
            with open(shard, "rb") as file:
                for part in range(16):
                    file.seek(size * part // 16)
                    digest.update(file.read(4096))
        return f"sampled-sha256:{digest.hexdigest()}"


def check_materials(m: Materials, e: Experiment) -> None:
    """Raise ValueError with the remedy when a run could not even begin."""
    if not m.script.is_file():
        raise ValueError(f"--train_script {m.script}: no such file")
    for kind in ("train", "val"):
        if not any(m.data_dir.glob(f"*_{kind}_*.bin")):
            prepare = "python data/prepare.py"
            if e.profile.data_dir == "data/fineweb":
                tokens = e.full_iterations * e.profile.batch_size * e.profile.sequence_length
                prepare += f" fineweb --shards {-(-tokens // 100_000_000)}"
            raise ValueError(f"no *_{kind}_*.bin shard in {m.data_dir}; make them: {prepare}")
    if e.profile.batch_size % e.processes:
        fit = [n for n in range(1, e.processes) if e.profile.batch_size % n == 0]
        raise ValueError(
            f"{e.processes} processes cannot share a batch of {e.profile.batch_size} sequences"
            f" evenly; give --num_gpus {fit[-1]}"
        )
