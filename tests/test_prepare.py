"""Token shards: the same text is the same bytes, and nothing half made ever looks whole."""

import hashlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "data" / "prepare.py"
TRAIN, VAL = "stdlib_train_000001.bin", "stdlib_val_000000.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def prepare():
    """The script as a module, fresh for each test, without making data/ a package."""
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(prepare, tmp_path, monkeypatch):
    """A stand-in for the standard library: 40 files of 1 to 40 lines, and what is left out."""
    root = tmp_path / "library"
    for k in range(40):
        path = root / f"package{k % 4}" / f"module{k}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# file {k}\n" * (k + 1))
    for left_out in ("test/a.py", "site-packages/b.py", "json/tests/c.py", "_sysconfigdata_x.py"):
        path = root / left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left out\n")
    (root / "binary.py").write_bytes(b"left out\0")
    (root / "empty.py").touch()
    monkeypatch.setattr(prepare.sysconfig, "get_path", lambda name: str(root))
    monkeypatch.setattr(prepare, "LEAST_STDLIB_BYTES", 1000)
    return root


def read_tokens(path: Path) -> np.ndarray:
    """The format, read independently of the code under test."""
    header = np.fromfile(path, dtype="<i4", count=256)
    assert header[0] == 20240520 and header[1] == 1 and not header[3:].any()
    tokens = np.fromfile(path, dtype="<u2", offset=1024)
    assert len(tokens) == header[2]
    return tokens


def read_documents(path: Path) -> list[bytes]:
    tokens = read_tokens(path)
    assert tokens.max() < 256 and tokens[0] == 0  # each document begins with the separator
    return tokens.astype(np.uint8).tobytes().split(b"\0")[1:]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# ---------------------------------------------------------------------------------------------
# stdlib


def test_the_real_library_gives_enough_text_and_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / name)]
        assert subprocess.run(command, stdout=subprocess.PIPE, timeout=60).returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    train, val = read_tokens(tmp_path / "a" / TRAIN), read_tokens(tmp_path / "a" / VAL)
    assert len(train) > 5_000_000
    assert 0.09 < len(val) / (len(train) + len(val)) < 0.2
    assert b"def " in val.astype(np.uint8).tobytes()


def test_train_and_validation_share_no_file_and_lose_none(prepare, library, tmp_path):
    assert prepare.main(["--output_dir", str(tmp_path / "out")]) == 0
    train = read_documents(tmp_path / "out" / TRAIN)
    val = read_documents(tmp_path / "out" / VAL)
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(p.read_bytes() for p in library.glob("package*/*.py"))
    assert train != sorted(train), "the files are shuffled"


def test_order_does_not_depend_on_how_the_file_system_lists_files(
    prepare, library, tmp_path, monkeypatch
):
    assert prepare.main(["--output_dir", str(tmp_path / "a")]) == 0
    rglob = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda self, p: random.Random(1).sample(x := list(rglob(self, p)), len(x))
    )
    assert prepare.main(["--output_dir", str(tmp_path / "b")]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_fingerprint_names_every_shard_with_its_hash(prepare, library, tmp_path):
    folder = tmp_path / "out"
    prepare.main(["--output_dir", str(folder)])
    record = json.loads((folder / "fingerprint.json").read_text())
    assert record["vocab_size"] == 256
    assert record["source"].startswith("standard library of Python 3.")
    for row, name in zip(record["files"], (TRAIN, VAL), strict=True):
        data = (folder / name).read_bytes()
        assert row == {
            "name": name,
            "tokens": len(read_tokens(folder / name)),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    (library / "package0" / "module0.py").write_text("# changed\n")
    prepare.main(["--output_dir", str(tmp_path / "other")])
    other = json.loads((tmp_path / "other" / "fingerprint.json").read_text())
    assert other["fingerprint"] != record["fingerprint"]


def test_rerun_on_whole_shards_writes_nothing_and_says_so(prepare, library, tmp_path, capsys):
    folder = tmp_path / "out"
    prepare.main(["--output_dir", str(folder)])

    def modified():
        return {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}

    before = modified()
    (library / "package0" / "module0.py").write_text("# changed\n")  # another Python: not asked
    capsys.readouterr()
    assert prepare.main(["--output_dir", str(folder)]) == 0
    assert "already whole, nothing to do" in capsys.readouterr().out
    assert modified() == before


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign header": lambda path: path.write_bytes(b"\x7fELF" + path.read_bytes()[4:]),
    "one bit": flip_last_byte,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_damaged_shard_is_noticed_and_made_again(
    prepare, library, tmp_path, capsys, damage, name
):
    folder = tmp_path / "out"
    prepare.main(["--output_dir", str(folder)])
    whole = contents(folder)
    DAMAGES[damage](folder / name)
    capsys.readouterr()
    assert prepare.main(["--output_dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "written" in printed
    assert (f"{name} is damaged" in printed) == (damage != "missing")
    assert contents(folder) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": 3}', '{"files": [{}]}', "\0"])
def test_unreadable_fingerprint_counts_as_none(prepare, library, tmp_path, text):
    folder = tmp_path / "out"
    prepare.main(["--output_dir", str(folder)])
    whole = contents(folder)
    (folder / "fingerprint.json").write_text(text)
    assert prepare.main(["--output_dir", str(folder)]) == 0
    assert contents(folder) == whole


def test_write_that_fails_leaves_nothing_under_the_shards_name(
    prepare, library, tmp_path, capsys, monkeypatch
):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.os, "fsync", full)
    assert prepare.main(["--output_dir", str(tmp_path / "out")]) == 1
    assert contents(tmp_path / "out") == {}
    error = capsys.readouterr().err
    assert error == "prepare.py: error: [Errno 28] No space left on device\n"


def test_prepare_killed_between_shards_is_not_whole(prepare, library, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    prepare.main(["--output_dir", str(folder)])
    whole = contents(folder)
    flip_last_byte(folder / TRAIN)

    def die(path, text):
        (folder / (path.name + ".tmp")).write_bytes(text[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_shard", die)
        assert prepare.main(["--output_dir", str(folder)]) == 130
    assert not (folder / "fingerprint.json").exists()
    assert prepare.main(["--output_dir", str(folder)]) == 0
    assert contents(folder) == whole


def test_two_at_once_leave_one_whole_folder(tmp_path):
    command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted("already whole" in text for text in printed) == [False, True]


# ---------------------------------------------------------------------------------------------
# Refusals: one line, nonzero, naming what was seen


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["wikipedia"], "'wikipedia'"),
        (["--shards", "3"], "--shards 3: only fineweb"),
        (["fineweb", "--shards", "0"], "--shards 0: choose 1 to 103"),
        (["fineweb", "--shards", "104"], "--shards 104: choose 1 to 103"),
        (["fineweb", "--shards", "many"], "'many'"),
        (["--output_folder"], "--output_folder"),
    ],
)
def test_bad_arguments_get_one_line(prepare, capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_info:
        prepare.main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare.py: error: ") and error.count("\n") == 1 and named in error


@pytest.mark.parametrize("dataset", ["stdlib", "fineweb"])
def test_foreign_shard_in_the_folder_is_refused(prepare, tmp_path, capsys, dataset):
    (tmp_path / "pile_train_000001.bin").write_bytes(b"precious")
    assert prepare.main([dataset, "--output_dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "pile_train_000001.bin" in error and "move it away" in error and error.count("\n") == 1
    assert contents(tmp_path) == {"pile_train_000001.bin": b"precious"}


def test_library_without_source_files_is_refused(prepare, library, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "LEAST_STDLIB_BYTES", 10**6)
    assert prepare.main(["--output_dir", str(tmp_path / "out")]) == 1
    assert f"{library} holds" in capsys.readouterr().err


def test_output_dir_that_is_a_file_is_refused(prepare, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert prepare.main(["--output_dir", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_has_one_line_per_option(capsys, prepare, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_info:
        prepare.main(["--help"])
    assert exit_info.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for option in ("--shards N", "--output_dir DIR"):
        assert sum(line.lstrip().startswith(option) for line in lines) == 1


# ---------------------------------------------------------------------------------------------
# fineweb, from a stand-in for the hub on loopback


def shard_bytes(seed: int, tokens: int = 5000) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, tokens
    body = np.random.default_rng(seed).integers(0, 50257, tokens).astype("<u2")
    return header.tobytes() + body.tobytes()


class Hub(ThreadingHTTPServer):
    """Answers HEAD and GET of /datasets/<repo>/resolve/<revision>/<name>, with faults on demand."""

    daemon_threads = True

    def __init__(self):
        names = ["fineweb_val_000000.bin", *(f"fineweb_train_{k:06d}.bin" for k in (1, 2, 3))]
        self.files = {name: shard_bytes(seed) for seed, name in enumerate(names)}
        self.faults = {}  # name -> what becomes of its next GETs, in order
        self.gets = []  # (name, Range header or None)
        self.stalled = threading.Event()
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        prefix, _, rest = self.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        known = prefix == "/datasets/kjj0/fineweb10B-gpt2" and revision in ("main", COMMIT)
        if not known or name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, start = self.server.files[name], 0
        etag = hashlib.sha256(data).hexdigest()
        fault = None
        if body:
            wanted = self.headers.get("Range")
            self.server.gets.append((name, wanted))
            if self.server.faults.get(name):
                fault = self.server.faults[name].pop(0)
            if wanted:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if fault == "header":
            data = b"<html>" + data[6:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
        if fault in ("drop", "stall"):
            self.wfile.write(data[start : len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.stalled.set()
                time.sleep(30)
            self.close_connection = True
            return
        self.wfile.write(data[start:])


@pytest.fixture
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def start_download(endpoint: str, folder: Path, shards: int) -> subprocess.Popen:
    """In a process of its own: the hub's library reads its endpoint when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder.parent / "hf_home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, SCRIPT, "fineweb", "--shards", str(shards), "--output_dir", folder]
    return subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def download(hub, folder: Path, shards: int = 2) -> tuple[int, str, str]:
    process = start_download(f"http://127.0.0.1:{hub.server_address[1]}", folder, shards)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def names_of(shards: int) -> list[str]:
    return ["fineweb_val_000000.bin", *(f"fineweb_train_{k + 1:06d}.bin" for k in range(shards))]


def assert_whole(hub, folder: Path, shards: int):
    found = contents(folder)
    record = json.loads(found.pop("fingerprint.json"))
    assert found == {name: hub.files[name] for name in names_of(shards)}
    assert [row["name"] for row in record["files"]] == sorted(found)
    assert record["vocab_size"] == 50257


def test_download_fetches_each_shard_once_and_reruns_without_the_hub(hub, tmp_path):
    folder = tmp_path / "fineweb"
    code, _, _ = download(hub, folder)
    assert code == 0
    assert_whole(hub, folder, shards=2)
    assert sorted(hub.gets) == sorted((name, None) for name in names_of(2))
    process = start_download("http://127.0.0.1:9", folder, 2)  # nobody listens there
    assert "already whole, nothing to do" in process.communicate(timeout=60)[0]
    assert process.returncode == 0
    code, _, _ = download(hub, folder, shards=3)  # more: only the new one is fetched
    assert code == 0 and hub.gets[3:] == [("fineweb_train_000003.bin", None)]
    assert_whole(hub, folder, shards=3)
    flip_last_byte(folder / "fineweb_train_000002.bin")
    code, out, _ = download(hub, folder, shards=1)  # fewer: what is there stays, and stays checked
    assert code == 0 and "fineweb_train_000002.bin is damaged" in out
    assert hub.gets[4:] == [("fineweb_train_000002.bin", None)]
    assert_whole(hub, folder, shards=3)


def test_dropped_connection_goes_on_where_it_broke(hub, tmp_path):
    # The hub's library keeps what it has in steps of 10 MiB; half of this shard is 12 MB.
    hub.files["fineweb_train_000001.bin"] = shard_bytes(seed=1, tokens=12_000_000)
    hub.faults["fineweb_train_000001.bin"] = ["drop"]
    code, _, _ = download(hub, tmp_path / "fineweb", shards=1)
    assert code == 0
    assert_whole(hub, tmp_path / "fineweb", shards=1)
    ranges = [wanted for name, wanted in hub.gets if name == "fineweb_train_000001.bin"]
    assert ranges == [None, f"bytes={10 * 1024**2}-"]


def test_killed_download_leaves_whole_shards_only_and_is_taken_up_again(hub, tmp_path):
    folder = tmp_path / "fineweb"
    hub.faults["fineweb_train_000002.bin"] = ["stall"]
    process = start_download(f"http://127.0.0.1:{hub.server_address[1]}", folder, 2)
    assert hub.stalled.wait(30)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    shards = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    assert "fineweb_train_000001.bin" in shards
    assert "fineweb_train_000002.bin" not in shards
    assert all(data == hub.files[name] for name, data in shards.items())
    assert not (folder / "fingerprint.json").exists()
    code, _, _ = download(hub, folder)
    assert code == 0
    assert_whole(hub, folder, shards=2)
    assert [name for name, _ in hub.gets].count("fineweb_train_000001.bin") == 1


def test_shard_that_comes_damaged_once_is_fetched_again(hub, tmp_path):
    hub.faults["fineweb_train_000001.bin"] = ["header"]
    code, out, _ = download(hub, tmp_path / "fineweb", shards=1)
    assert code == 0
    assert "fineweb_train_000001.bin came damaged (header [" in out
    assert_whole(hub, tmp_path / "fineweb", shards=1)


@pytest.mark.parametrize("damage", ["short", "long", "magic", "page"])
def test_shard_that_stays_damaged_is_removed_and_named_in_one_line(hub, tmp_path, damage):
    name = "fineweb_train_000001.bin"
    data = hub.files[name]
    hub.files[name] = {
        "short": data[:-2],
        "long": data + b"\0\0",
        "magic": b"\0" * 4 + data[4:],
        "page": b"<html>",
    }[damage]
    code, _, err = download(hub, tmp_path / "fineweb", shards=1)
    assert code == 1
    assert err.startswith(f"prepare.py: error: {name} of kjj0/fineweb10B-gpt2 came damaged twice")
    assert err.count("\n") == 1
    assert [asked for asked, _ in hub.gets].count(name) == 2
    assert name not in contents(tmp_path / "fineweb")
    assert not (tmp_path / "fineweb" / ".download").exists()


def test_hub_that_is_down_is_one_line_and_soon(tmp_path):
    with socket.socket() as listener:  # bound and not listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = start_download(endpoint, tmp_path / "fineweb", 1)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 1 and out == ""
    assert err.startswith("prepare.py: error: cannot download fineweb_val_000000.bin of kjj0/")
    assert err.count("\n") == 1 and "check the network" in err
    assert contents(tmp_path / "fineweb") == {}


def test_shard_the_hub_lacks_is_one_line(hub, tmp_path):
    del hub.files["fineweb_train_000001.bin"]
    code, _, err = download(hub, tmp_path / "fineweb", shards=1)
    assert code == 1 and err.count("\n") == 1
    assert "cannot download fineweb_train_000001.bin" in err
