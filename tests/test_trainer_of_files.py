"""From the command line: a trainer of several files, and a machine whose GPU tool fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
FAKE = SUPPORT / "fake_train.py"


@pytest.fixture
def home(home):
    """A working folder with shards that nobody reads, and a trainer of four files."""
    (home / "mine" / "lib").mkdir(parents=True)
    (home / "mine" / "train.py").write_text("import sys, lib.go\nsys.exit(lib.go.main())\n")
    (home / "mine" / "lib" / "__init__.py").touch()
    (home / "mine" / "lib" / "go.py").write_text("from engine import main\n")
    shutil.copy(FAKE, home / "mine" / "engine.py")
    return home


def call(*arguments):
    command = [sys.executable, str(ROOT / "run_aux.py"), "--profile", "mini", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


BY_HAND = ("--experiment", "baseline", "--data_dir", "shards")
MINE = (*BY_HAND, "--train_script", "mine/train.py")


def test_a_trainer_of_several_files_runs_from_its_copy(home):
    code, out, err = call(*MINE, "--runs", "2")
    assert code == 0, out + err
    assert "The trainer is train.py with what it imports beside it: engine.py, lib/__init" in out
    (exp_dir,) = (home / "experiments").iterdir()
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    copies = exp_dir / "code" / document["registered"]["code"]["hash"]
    found = {p.relative_to(copies).as_posix() for p in copies.rglob("*.py")}
    assert found == {"train.py", "engine.py", "lib/__init__.py", "lib/go.py"}
    files = ["train.py", "engine.py", "lib/__init__.py", "lib/go.py"]
    assert document["registered"]["code"]["files"] == files
    results = [json.loads(p.read_text()) for p in exp_dir.glob("baseline/run_*/result.json")]
    assert [r["status"] for r in results] == ["ok", "ok"]

    go_on = (*BY_HAND, "--runs", "2", "--exp_dir", str(exp_dir))
    (copies / "engine.py").unlink()  # a copy that is not whole is made again from where it was
    assert call(*go_on)[0] == 0
    assert (copies / "engine.py").read_text() == FAKE.read_text()

    (copies / "engine.py").write_text("raise SystemExit(1)\n")
    code, _, err = call(*go_on)
    assert code != 0
    assert "was edited" in err

    (copies / "engine.py").unlink()
    (home / "mine" / "lib" / "go.py").write_text("def main(:\n")
    code, _, err = call(*go_on)
    assert code != 0
    assert "the trainer of this experiment is gone" in err


def test_what_a_trainer_misses_is_named_before_its_first_run(home):
    (home / "mine" / "lib" / "go.py").write_text("from engine import main\nimport no_such\n")
    _, out, _ = call(*MINE)
    missing = out.index("lib/go.py, line 2: imports no_such, which is not beside it nor installed")
    assert missing < out.index("baseline/run_0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seeds=-1",), "-1"),
        (("--seeds", "4294967296"), "4294967296"),
        (("--train_script", "broken.py"), "broken.py, line 1"),
        (("--train_script", str(ROOT / "train_gpt.py")), "not a token shard"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(home, arguments, words):
    (home / "broken.py").write_text("def f(:\n")
    code, _, err = call(*MINE, *arguments)
    assert code != 0
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (home / "experiments").exists()


def test_a_gpu_tool_that_fails_is_quoted_and_a_number_goes_on(home, monkeypatch):
    (home / "nvidia-smi").write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    (home / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    code, _, err = call(*MINE)
    assert code != 0
    assert "exit code 18: Driver/library version mismatch" in err
    assert "--num_gpus" in err
    assert not (home / "experiments").exists()
    code, out, err = call(*MINE, "--num_gpus", "2")
    assert code == 0, out + err
    (exp_dir,) = (home / "experiments").iterdir()
    share = json.loads((exp_dir / "experiment_configs.json").read_text())["registered"]["share"]
    assert (share["device"], share["processes"]) == ("cuda", 2)
