"""Processes and files that drills and tests have in common."""

import time
from pathlib import Path

TOKEN = "CRASH_DRILL"  # in the environment of every process of a drill
PATIENCE_S = 15.0  # for processes to be gone: grace, and the margins of guard and orchestrator


def survivors(token: str) -> list[int]:
    """Living processes with this token in their environment, by their ids."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdigit() and token.encode() in (entry / "environ").read_bytes()
            if mine and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def stand_in_shards(folder: Path) -> None:
    """Shards that the fake trainer does not read, but every run needs."""
    folder.mkdir(parents=True)
    for name in ("none_train_000001.bin", "none_val_000000.bin"):
        (folder / name).write_bytes(b"no tokens")


def wait_until_gone(token: str, patience_s: float = PATIENCE_S) -> int:
    """How many processes of the drill are left after so many seconds."""
    deadline = time.monotonic() + patience_s
    while (left := survivors(token)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(left)
