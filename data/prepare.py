"""Which text does a run train on?  Token shards, and a fingerprint that says which.

    python data/prepare.py                        # data/stdlib: the embedded default, a second
    python data/prepare.py fineweb --shards 27    # data/fineweb: for the speedrun profile, 5.6 GB

`stdlib` is the source of Python's own standard library, real text that every machine already has,
as bytes.  `fineweb` is FineWeb in GPT-2 tokens, from the hub (HF_ENDPOINT names a mirror).

Writes <dataset>_train_000001.bin, ..., <dataset>_val_000000.bin, in modded-nanogpt's format of 256
int32 of header and then uint16 tokens, and fingerprint.json with their lengths and hashes.

A shard gets its name when it is whole, and the fingerprint is removed first and written last: a
folder that has one is complete.  After any interruption run it again: whole shards are kept,
damaged ones made again.  A dropped connection goes on where it broke; a killed download starts
its shard over.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy as np

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 256 * 4  # the header: magic, version, tokens, zeros

STDLIB_NAMES = ("stdlib_train_000001.bin", "stdlib_val_000000.bin")
STDLIB_VOCAB_SIZE = 256  # bytes
STDLIB_SEED = 1337  # of the order of the files, and so of the split
VAL_FRACTION = 0.1  # of the bytes, in whole files
DOCUMENT_START = b"\0"  # opens each document, as 50256 does in FineWeb; never occurs in text
# Left out: tests, which many distributions do not ship, and what differs from machine to machine.
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "sitecustomize.py"}
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")
LEAST_STDLIB_BYTES = 5_000_000  # a complete library has 11 MB or more

FINEWEB_REPO = "kjj0/fineweb10B-gpt2"
FINEWEB_VAL, FINEWEB_TRAIN = "fineweb_val_000000.bin", "fineweb_train_{:06d}.bin"
FINEWEB_TRAIN_SHARDS = 103  # on the hub, 100M tokens each
FINEWEB_DEFAULT_SHARDS = 27  # 5100 iterations of 524,288 tokens
FINEWEB_VOCAB_SIZE = 50257


class PrepareError(Exception):
    """A known failure: one line that says what was seen and what to do."""


# ---------------------------------------------------------------------------------------------
# Shards on disk


def publish(scratch: Path, path: Path) -> None:
    """Gives a finished file its name: after a crash it is there whole, or not at all."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(path)


def write_atomically(path: Path, *parts: bytes) -> None:
    scratch = path.with_name(path.name + ".tmp")
    try:
        with scratch.open("wb") as file:
            file.writelines(parts)
        publish(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_shard(path: Path, text: bytes) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(text)
    tokens = np.frombuffer(text, dtype=np.uint8).astype("<u2")
    write_atomically(path, header.tobytes(), tokens.tobytes())


def describe_shard(path: Path) -> dict:
    """The fingerprint's row of one shard.  Raises ValueError where header and size disagree."""
    with path.open("rb") as file:
        size, header = os.fstat(file.fileno()).st_size, np.frombuffer(file.read(12), dtype="<i4")
        if len(header) < 3 or tuple(header[:2]) != (MAGIC, VERSION):
            raise ValueError(f"header {header.tolist()}, expected [{MAGIC}, {VERSION}, tokens]")
        tokens = int(header[2])
        if tokens < 1 or size != HEADER_BYTES + 2 * tokens:
            raise ValueError(f"{size} bytes, expected {HEADER_BYTES} + 2 x {tokens} tokens")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "tokens": tokens, "bytes": size, "sha256": sha256}


def recorded_rows(folder: Path) -> dict[str, dict]:
    """The rows of fingerprint.json by name; none where there is no readable fingerprint."""
    try:
        record = json.loads((folder / "fingerprint.json").read_text())
        rows = {row["name"]: row for row in record["files"]}
        return rows if record["fingerprint"] == fingerprint_of(list(rows.values())) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def whole_shard(path: Path, recorded: dict | None) -> dict | None:
    """The row of a shard that is whole and, where it was recorded before, unchanged."""
    if not path.exists():
        return None
    try:
        row = describe_shard(path)
        if recorded not in (None, row):
            raise ValueError("its contents differ from fingerprint.json")
        return row
    except ValueError as damage:
        print(f"{path.name} is damaged ({damage}): making it again", flush=True)
        return None


def refuse_foreign_shards(folder: Path, expected: set[str]) -> None:
    """The trainer reads every shard in its folder, so none may lie there unaccounted for."""
    for path in sorted(folder.glob("*.bin")):
        if path.name not in expected:
            raise PrepareError(
                f"{path} is not a shard of this data set: move it away, or use another --output_dir"
            )


def fingerprint_of(rows: list[dict]) -> str:
    lines = "".join(f"{row['name']} {row['sha256']}\n" for row in rows)
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def finish(folder: Path, rows: list[dict], vocab_size: int, source: str) -> None:
    """Writes fingerprint.json, unless it says all this already, and sums up."""
    rows = sorted(rows, key=lambda row: row["name"])
    untouched = list(recorded_rows(folder).values()) == rows
    fingerprint = fingerprint_of(rows)
    if not untouched:
        record = {"fingerprint": fingerprint, "vocab_size": vocab_size}
        record |= {"files": rows, "source": source}
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(folder / "fingerprint.json", text.encode())
    train = sum(row["tokens"] for row in rows if "_train_" in row["name"])
    val = sum(row["tokens"] for row in rows if "_val_" in row["name"])
    print(
        f"{folder}: {'already whole, nothing to do' if untouched else 'written'}: "
        f"{train:,} train and {val:,} validation tokens, {fingerprint[:19]}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------
# stdlib: the embedded default


def stdlib_documents(root: Path) -> list[bytes]:
    """The library's files, in one shuffled order for every machine with this Python."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))

    def excluded(part: str) -> bool:
        return part in EXCLUDED or part.startswith(EXCLUDED_PREFIXES)

    kept = [name for name in names if not any(map(excluded, name.split("/")))]
    random.Random(STDLIB_SEED).shuffle(kept)
    texts = [(root / name).read_bytes() for name in kept]
    return [text for text in texts if text and DOCUMENT_START not in text]


def split_by_file(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(train, validation); validation is the first documents that hold VAL_FRACTION of it all."""
    wanted, count = VAL_FRACTION * sum(map(len, documents)), 0
    while wanted > 0:
        wanted -= len(documents[count])
        count += 1
    return documents[count:], documents[:count]


def prepare_stdlib(folder: Path) -> None:
    refuse_foreign_shards(folder, set(STDLIB_NAMES))
    recorded = recorded_rows(folder)
    rows = [whole_shard(folder / name, recorded.get(name)) for name in STDLIB_NAMES]
    if not all(rows) or not recorded:  # without a record, the two may come from different Pythons
        root = Path(sysconfig.get_path("stdlib"))
        documents = stdlib_documents(root)
        if (found := sum(map(len, documents))) < LEAST_STDLIB_BYTES:
            raise PrepareError(
                f"{root} holds {found:,} bytes of source, fewer than {LEAST_STDLIB_BYTES:,}: "
                "use a Python that has its standard library as files"
            )
        (folder / "fingerprint.json").unlink(missing_ok=True)
        for name, part in zip(STDLIB_NAMES, split_by_file(documents), strict=True):
            write_shard(folder / name, b"".join(DOCUMENT_START + text for text in part))
        rows = [describe_shard(folder / name) for name in STDLIB_NAMES]
    finish(folder, rows, STDLIB_VOCAB_SIZE, f"standard library of Python {sys.version.split()[0]}")


# ---------------------------------------------------------------------------------------------
# fineweb: downloaded


def ask_hub(name: str, function, *args, **kwargs):
    """Calls the hub's library, which fails with HTTP, OS, storage and value errors of its own."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        cause = error.__cause__ or error
        raise PrepareError(
            f"cannot download {name} of {FINEWEB_REPO} ({type(cause).__name__}: {cause}): "
            "check the network (and HF_ENDPOINT, if set) and run this again, whole shards are kept"
        ) from error


def download_shard(name: str, folder: Path, scratch: Path, revision: str | None) -> dict:
    from huggingface_hub import hf_hub_download

    place = {"repo_type": "dataset", "revision": revision, "local_dir": scratch}
    for force in (False, True):  # the second time past the hub library's own cache too
        path = ask_hub(name, hf_hub_download, FINEWEB_REPO, name, force_download=force, **place)
        try:
            row = describe_shard(Path(path))
        except ValueError as error:
            damage = error
            Path(path).unlink()
            print(f"{name} came damaged ({damage}): removed", flush=True)
        else:
            publish(Path(path), folder / name)
            print(f"{name}: {row['tokens']:,} tokens", flush=True)
            return row
    raise PrepareError(f"{name} of {FINEWEB_REPO} came damaged twice ({damage}): try again later")


def prepare_fineweb(folder: Path, shards: int) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    train = [FINEWEB_TRAIN.format(k + 1) for k in range(FINEWEB_TRAIN_SHARDS)]
    refuse_foreign_shards(folder, {FINEWEB_VAL, *train})
    already = {path.name for path in folder.glob("*.bin")}  # more than asked for stays
    names = sorted({FINEWEB_VAL, *train[:shards]} | already)
    recorded = recorded_rows(folder)
    rows = {name: whole_shard(folder / name, recorded.get(name)) for name in names}
    if missing := [name for name in names if rows[name] is None]:
        url = hf_hub_url(FINEWEB_REPO, FINEWEB_VAL, repo_type="dataset")
        # Asked once, without retries: one commit for all shards, and a dead network shows now.
        revision = ask_hub(FINEWEB_VAL, get_hf_file_metadata, url).commit_hash
        (folder / "fingerprint.json").unlink(missing_ok=True)
        scratch = folder / ".download"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed download left
        try:
            for name in missing:
                rows[name] = download_shard(name, folder, scratch, revision)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finish(folder, list(rows.values()), FINEWEB_VOCAB_SIZE, f"hub dataset {FINEWEB_REPO}")


# ---------------------------------------------------------------------------------------------
# Command line


@contextlib.contextmanager
def locked(folder: Path):
    """One prepare.py per folder at a time; a second one waits, and then finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    title = __doc__.partition("\n")[0]
    parser = OneLineParser(prog="prepare.py", description=title, allow_abbrev=False)
    arg = parser.add_argument
    datasets = ("stdlib", "fineweb")
    arg("dataset", nargs="?", choices=datasets, default="stdlib", help="text (default: stdlib)")
    arg("--shards", type=int, metavar="N", help="train shards of fineweb (default: 27)")
    arg("--output_dir", type=Path, metavar="DIR", help="where to write (default: data/<dataset>)")
    args = parser.parse_args(argv)
    if args.shards is not None and args.dataset != "fineweb":
        parser.error(f"--shards {args.shards}: only fineweb has shards to choose, drop the option")
    shards = FINEWEB_DEFAULT_SHARDS if args.shards is None else args.shards
    if not 1 <= shards <= FINEWEB_TRAIN_SHARDS:
        parser.error(f"--shards {shards}: choose 1 to {FINEWEB_TRAIN_SHARDS}, what the hub holds")
    folder = args.output_dir or Path(__file__).resolve().parent / args.dataset
    try:
        with locked(folder):
            prepare_stdlib(folder) if args.dataset == "stdlib" else prepare_fineweb(folder, shards)
    except (PrepareError, OSError) as error:
        print("prepare.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare.py: interrupted, run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
