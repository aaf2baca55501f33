"""What every test may count on."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture(autouse=True)
def subnormal_numbers_again():
    """The trainer flushes them to zero, for the whole process; other tests need them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


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
