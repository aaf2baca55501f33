"""The page of a sitting is written beside it: by a process that may die, and the runs go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_orchestrator import QUICK, Sitting

from ablation.cli import exit_codes
from ablation.execute import page_writer
from ablation.execute.page_writer import PageWriter
from ablation.report.files import PAGE
from tests.support.invented_folder import adaptive_plan, make
from tests.support.processes import stand_in_shards, survivors

ROOT = Path(__file__).resolve().parents[1]
LIVE, LAST = 'data-reload="10"', 'data-reload="0"'


@pytest.fixture
def sitting(tmp_path):
    stand_in_shards(tmp_path / "data")
    sitting = Sitting(tmp_path / "experiments", tmp_path / "data")
    yield sitting
    left = survivors(sitting.token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def until(condition, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
    return found


def page(sitting) -> str:
    """The page as it is; empty while there is none."""
    files = list(sitting.folder.glob(f"*/{PAGE}"))
    return files[0].read_text() if files else ""


def writer_of(process) -> psutil.Process:
    children = psutil.Process(process.pid).children()
    return next(child for child in children if "--watch" in child.cmdline())


def test_a_sitting_leaves_the_page_of_its_end(sitting):
    code, out, err = sitting.run(*QUICK, page=True)
    assert (code, err) == (0, ""), out
    assert out.count(f"Page: {sitting.exp_dir / PAGE}") == 2 and page_writer.PAGE == PAGE
    names = {r.run.name for r in sitting.records().results}
    assert LAST in page(sitting) and names
    assert all(f">{name}</a>" in page(sitting) for name in names)
    command = json.loads((sitting.exp_dir / "experiment_configs.json").read_text())["command"]
    assert " ".join(QUICK) in " ".join(command) and "run_aux.py --profile mini" in page(sitting)


def test_the_page_shows_what_runs_now(sitting):
    process = sitting.start(*QUICK, page=True, seconds=60)
    text = until(lambda: re.search(r"<dt>running</dt><dd>(.*?)</dd>", page(sitting)))
    assert LIVE in page(sitting)
    assert re.match(r"quick_baseline/run_0: step \d+ of 20, val loss", text[1])
    assert re.search(r"<dt>next</dt><dd>quick_aux_4_8/run_0</dd>", page(sitting))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == exit_codes.STOPPED + signal.SIGINT
    assert LAST in page(sitting) and "interrupted" in page(sitting)
    assert "<dd>nothing; orchestrator: none</dd>" in page(sitting)
    process.communicate()


def test_a_sitting_that_is_over_before_its_writer_has_begun_leaves_a_page(tmp_path):
    exp_dir, said = make(tmp_path, adaptive_plan(), most=3), []
    with PageWriter(exp_dir, said.append).beside(True):
        pass
    assert len(said) == 1 and LAST in (exp_dir / PAGE).read_text()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_writer_that_hangs_is_one_line_and_ended(tmp_path, monkeypatch):
    exp_dir, said = make(tmp_path, adaptive_plan(), most=3), []
    writer = PageWriter(exp_dir, said.append)
    monkeypatch.setattr(page_writer, "LAST_S", 0.1)
    with writer.beside(True):
        process = writer.process
        os.kill(process.pid, signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL
    _, line = said
    assert "ended with code -9. analyze_aux.py --exp_dir writes it at any time." in line


def test_without_a_page_there_is_none(sitting):
    assert sitting.run(*QUICK)[0] == 0
    assert not page(sitting)


def test_a_writer_that_dies_is_one_line_and_the_runs_go_on(sitting):
    process = sitting.start(*QUICK, page=True, seconds=1.0)
    until(lambda: page(sitting))
    writer_of(process).kill()
    out, _err = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [line for line in out.splitlines() if "The page is written no more" in line]
    assert len(lines) == 1 and "analyze_aux.py --exp_dir writes it at any time" in lines[0]
    assert set(sitting.statuses().values()) == {"ok"}


def test_a_page_that_cannot_be_written_is_one_line(sitting):
    process = sitting.start(*QUICK, page=True, seconds=1.0)
    until(lambda: page(sitting))
    (sitting.exp_dir / PAGE).unlink()
    (sitting.exp_dir / PAGE).mkdir()  # something of this name that is no page
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert out.count("The page is written no more") == 1 and PAGE in out
    assert set(sitting.statuses().values()) == {"ok"}


def test_the_writer_of_a_killed_sitting_tells_the_last_and_ends(sitting):
    process = sitting.start(*QUICK, page=True, seconds=60)
    until(lambda: LIVE in page(sitting))
    writer = writer_of(process)
    process.kill()
    process.communicate()
    until(lambda: not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE)
    assert LAST in page(sitting)
    until(lambda: not survivors(sitting.token))


# ---------------------------------------------------------------------------------------------
# By hand


def watch(exp_dir, *words):
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "analyze_aux.py"),
            "--exp_dir",
            str(exp_dir),
            "--watch",
            *words,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_watching_ends_with_the_experiment(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan())
    process = watch(exp_dir)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and str(exp_dir / PAGE) in out
    assert LAST in (exp_dir / PAGE).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_ends_when_somebody_says_so(tmp_path, number):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)
    elsewhere = tmp_path / "elsewhere"
    process = watch(exp_dir, "--output_dir", str(elsewhere))
    until(lambda: (elsewhere / PAGE).exists() and LIVE in (elsewhere / PAGE).read_text())
    process.send_signal(number)
    _out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and LAST in (elsewhere / PAGE).read_text()
    assert not (exp_dir / PAGE).exists()


def test_watching_ends_with_a_process(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = watch(exp_dir, "--pid", str(other.pid))
    until(lambda: (exp_dir / PAGE).exists())
    assert process.poll() is None
    other.communicate(b"\n")
    assert process.wait(30) == 0 and LAST in (exp_dir / PAGE).read_text()
    process.communicate()


def test_what_is_no_experiment_is_not_watched(tmp_path):
    process = watch(tmp_path)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == exit_codes.REFUSED and err.count("\n") == 1
