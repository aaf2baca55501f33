"""How does the page of a sitting stay fresh?  By a program beside it, never in the way of a run.

It is `analyze_aux.py --watch`, a process of its own: whatever becomes of it, the sitting goes on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ablation.folder.materials import ROOT
from ablation.runs.untrusted import printable

PAGE = "report.html"  # what it writes, in the experiment's folder
LAST_S = 15.0  # in which the last page is to be written, after the last run; chosen
ENV = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # one core


class PageWriter:
    """The process that writes the page of this sitting."""

    def __init__(self, exp_dir: Path, print_line: Callable[[str], None]):
        self.exp_dir, self.print_line = exp_dir, print_line
        self.process: subprocess.Popen | None = None
        self.said: IO[bytes] | None = None

    @property
    def writes(self) -> bool:
        return self.process is not None

    @contextlib.contextmanager
    def beside(self, wanted: bool) -> Iterator[None]:
        """In here the page is kept fresh, where it is wanted."""
        if wanted:
            self.start()
        try:
            yield
        finally:
            self.end()
            if self.said is not None:
                self.said.close()

    def start(self) -> None:
        words = ["--exp_dir", str(self.exp_dir), "--watch", "--pid", str(os.getpid())]
        command = [sys.executable, str(ROOT / "analyze_aux.py"), *words]
        # A new process inherits what is blocked: told to end before it can listen, it hears it then
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self.said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.said,
                env={**os.environ, **ENV},
                start_new_session=True,  # Ctrl-C is for the sitting, which ends it
            )
        except OSError as error:
            self._tell(error.strerror or str(error))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.print_line(f"Page: {self.exp_dir / PAGE}, kept fresh while runs go on.")

    def look(self, goes_on: bool = True) -> None:
        """Say so, once, when it has failed. goes_on: there is more to come in this sitting."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self.process = None
            if code:
                self._tell(self._last_words() or f"its writer ended with code {code}", goes_on)

    def end(self) -> None:
        """Let it write the page of how things stand now, which is the last one."""
        self.look()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.look(goes_on=False)

    def _last_words(self) -> str:
        assert self.said is not None
        self.said.seek(0)
        lines = self.said.read(1 << 16).decode(errors="replace").splitlines()
        return printable(lines[-1], limit=300) if lines else ""

    def _tell(self, why: str, goes_on: bool = True) -> None:
        more = " The experiment goes on;" if goes_on else ""
        remedy = "analyze_aux.py --exp_dir writes it at any time."
        self.print_line(f"The page is written no more: {why.removesuffix('.')}.{more} {remedy}")
