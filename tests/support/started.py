"""Attempts that a test starts on this machine, and what it waits for."""

import time

from ablation.execute import watcher
from ablation.execute.local import LocalLauncher

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()  # as torchrun does with each worker
        break
print("ready", flush=True)
time.sleep(600)
"""
PATIENT = "import time; print('ready', flush=True); time.sleep(600)"


def said(run, word=b"ready", times=1, patience_s=10.0):
    """Wait until the run has said a word."""
    log, deadline = run.folder / "output.log", time.monotonic() + patience_s
    while not (log.exists() and log.read_bytes().count(word) >= times):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end_of(run, patience_s=10.0):
    deadline = time.monotonic() + patience_s
    while (exit := run.poll()) is None:
        assert time.monotonic() < deadline
        LocalLauncher.wait(None, [run], 0.2)
    return exit


HURRIED = {"GRACE_S = 4.0": "GRACE_S = 0.2", "MARGIN_S = 2.0": "MARGIN_S = 0.2"}
HURRIED |= {"LATE_HERE_S = 4.0": "LATE_HERE_S = 0.1"}


def hurry(program):
    """Less patience, where a test waits for its end."""
    text = program.read_text()
    for patient, hurried in HURRIED.items():
        assert text.count(f"\n{patient} ") == 1
        text = text.replace(patient, hurried)
    program.write_text(text)


def children_of(process):
    return [child for child, parent in watcher.parents().items() if parent == process]
