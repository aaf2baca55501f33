"""What every test may count on."""

import os
import signal
import sys
import uuid
from pathlib import Path

import pytest

from ablation.execute.launcher import Command
from ablation.execute.local import LocalLauncher
from tests.support.processes import TOKEN, survivors
from tests.support.started import hurry

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working folder, the fake torchrun, and shards that nobody reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHRUN", str(SUPPORT / "fake_torchrun"))
    monkeypatch.setenv("FAKE_PYTHON", sys.executable)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "shards").mkdir()
    for kind in ("train", "val"):
        (tmp_path / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    return tmp_path


@pytest.fixture
def token():
    """In the environment of every process of a test; none of them outlives it."""
    token = uuid.uuid4().hex
    os.environ[TOKEN] = token
    yield token
    del os.environ[TOKEN]
    left = survivors(token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def start(tmp_path, token):
    """Start a Python program as a run."""

    def start(program, name="run_0", hurried=False, **env):
        folder = tmp_path / name
        folder.mkdir()
        command = (sys.executable, "-c", program)
        launcher = LocalLauncher(tmp_path)
        if hurried:
            hurry(launcher.program)
        return launcher.start(Command(command, env, folder))

    return start
