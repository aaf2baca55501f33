"""Measurements that measure nothing, for tests of the table; light, because each starts Python."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from benchmarks.table import Line

BUSY = 60.0  # seconds: longer than any test waits


@dataclass(frozen=True)
class Fake:
    """What the measurements of a test share."""

    cards: int = 1
    size: int = 4

    def begin(self) -> None:
        pass

    def smaller(self) -> "Fake | None":
        return replace(self, size=self.size // 2) if self.size > 1 else None


def good(fake: Fake):
    yield Line("first", f"{fake.size}")
    yield Line("second", "2.0", "at most 1", False)


def bad(fake: Fake):
    yield Line("before", "1.0")
    raise RuntimeError("a | b\n  broke")


def killed(fake: Fake):
    yield Line("before", "1.0")
    os.abort()


def endless(fake: Fake):
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({BUSY})"])
    yield Line("before", "1.0")
    time.sleep(BUSY)


def large(fake: Fake):
    yield Line("before", "1.0")
    if fake.size > 2:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB." + 3000 * " more")
    yield Line("fits", f"{fake.size}")


def too_large(fake: Fake):
    raise RuntimeError(f"CUDA out of memory with {fake.size}")
    yield
