"""Processes: started, watched, and ended with everything below them, whoever dies."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import launchers
from benchmarks.crash_drill import TOKEN, survivors, wait_until_gone
from launchers import Job, LocalLauncher, read_exit, settle

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

    def start(program, name="run_0", **env):
        folder = tmp_path / name
        folder.mkdir()
        command = (sys.executable, "-c", program)
        return LocalLauncher(tmp_path).start(Job(command, env, folder))

    return start


def said(run, word=b"ready", times=1, patience_s=10.0):
    """Wait until the run has said a word."""
    log, deadline = run.job.folder / "output.log", time.monotonic() + patience_s
    while not (log.exists() and log.read_bytes().count(word) >= times):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end_of(run, patience_s=10.0):
    deadline = time.monotonic() + patience_s
    while (exit := run.poll()) is None:
        assert time.monotonic() < deadline
        LocalLauncher.wait(None, [run], 0.2)
    return exit


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code_and_output_are_those_of_the_command(start, code):
    run = start(f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({code})")
    exit = end_of(run)
    assert (exit["returncode"], exit["ended_by"]) == (code, "itself")
    assert sorted((run.job.folder / "output.log").read_text().split()) == ["err", "out"]
    assert 0 <= exit["end_s"] - exit["start_s"] < 10
    assert exit == read_exit(run.job.folder)


def test_a_command_killed_by_a_signal_says_so(start):
    exit = end_of(start("import os; os.kill(os.getpid(), 11)"))
    assert (exit["returncode"], exit["ended_by"]) == (-11, "itself")


def test_a_command_that_is_missing_is_named_in_the_log(tmp_path, token):
    run = LocalLauncher(tmp_path).start(Job(("/no/such/torchrun", "x"), {}, tmp_path))
    assert end_of(run)["returncode"] == 127
    assert "cannot start /no/such/torchrun" in (tmp_path / "output.log").read_text()


def test_arguments_are_never_read_by_a_shell(tmp_path, token):
    words = ("$(touch x)", "; touch x", "a b", "'", '"', "*", "")
    program = "import sys; print(sys.argv[1:])"
    run = LocalLauncher(tmp_path).start(Job((sys.executable, "-c", program, *words), {}, tmp_path))
    end_of(run)
    assert (tmp_path / "output.log").read_text().strip() == str(list(words))


def test_additions_to_the_environment_arrive_and_signals_are_as_usual(start):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as the orchestrator has it
    try:
        run = start(
            "import os, signal; print(os.environ['EXTRA'],"
            " *(signal.getsignal(n) == signal.SIG_DFL for n in (1, 15)), os.read(0, 1))",
            EXTRA="7",
        )
        end_of(run)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (run.job.folder / "output.log").read_text().split() == ["7", "True", "True", "b''"]


def test_a_stop_is_passed_on_and_can_be_answered(start):
    run = start(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(9)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    said(run)
    run.stop("the operator stopped it")
    run.stop("timeout")  # only the first order counts
    exit = end_of(run)
    assert (exit["returncode"], exit["ended_by"]) == (9, "the operator stopped it")
    assert "saved" in (run.job.folder / "output.log").read_text()


def test_children_that_ignore_sigterm_in_other_sessions_are_ended(start, token):
    runs = {why: start(STUBBORN, name=why) for why in ("stopped", "timeout")}
    for why, run in runs.items():
        said(run, times=4)
        run.stop(why)
    began = time.monotonic()
    for why, run in runs.items():
        assert end_of(run)["ended_by"] == why
    assert time.monotonic() - began < 10
    assert not survivors(token)


def test_orphans_of_a_command_that_ended_are_ended_too(start, token):
    leave = "os._exit(5) if os.getsid(0) != os.getpid() else time.sleep(600)"
    exit = end_of(start(STUBBORN.replace("time.sleep(600)", leave)))
    assert (exit["returncode"], exit["ended_by"]) == (5, "itself")
    assert not survivors(token)


ORCHESTRATOR = """
import sys, time
from pathlib import Path
from launchers import Job, LocalLauncher
folder = Path(sys.argv[1])
run = LocalLauncher(folder).start(Job((sys.executable, "-c", sys.argv[2]), {}, folder))
print(run.watcher.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def orchestrate(tmp_path, token):
    """Start a run from an orchestrator of its own: (orchestrator, the watcher's id)."""
    started = []

    def orchestrate(program):
        folder = tmp_path / f"run_{len(started)}"
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", ORCHESTRATOR, folder, program],
            stdout=subprocess.PIPE,
            cwd=Path(launchers.__file__).parent,
        )
        started.append(process)
        watcher = int(process.stdout.readline())
        log, deadline = folder / "output.log", time.monotonic() + 10
        while not (log.exists() and log.read_bytes().count(b"ready") >= 1):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process, watcher, folder

    yield orchestrate
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("program", [PATIENT, STUBBORN], ids=["patient", "stubborn"])
def test_nothing_is_left_10_s_after_the_orchestrator_was_killed(orchestrate, token, program):
    process, _, folder = orchestrate(program)
    process.kill()
    process.wait()
    assert wait_until_gone(token) == 0
    assert read_exit(folder)["ended_by"] == "the orchestrator died"


def test_nothing_is_left_after_the_watcher_was_killed(start, token):
    run = start(STUBBORN)
    said(run, times=4)
    os.kill(run.watcher.pid, signal.SIGKILL)
    exit = end_of(run)
    assert (exit["returncode"], exit["ended_by"]) == (None, "itself")
    assert not survivors(token)
    assert exit["end_s"] > exit["start_s"]


def test_a_killed_watcher_takes_a_patient_command_with_it(orchestrate, token):
    process, watcher, _ = orchestrate(PATIENT)
    os.kill(watcher, signal.SIGKILL)
    process.kill()
    process.wait()
    assert wait_until_gone(token) == 0


def test_what_survives_orchestrator_and_watcher_is_ended_before_the_next_run(
    orchestrate, token, tmp_path
):
    process, watcher, folder = orchestrate(STUBBORN)
    os.kill(watcher, signal.SIGKILL)
    process.kill()
    process.wait()
    assert survivors(token)
    settle(tmp_path, patience_s=0.2)
    assert not survivors(token)
    assert read_exit(folder) is None


def test_settling_spares_the_runs_of_other_experiments(start, token, tmp_path):
    run = start(PATIENT)
    said(run)
    settle(tmp_path / "run_", patience_s=0.0)
    settle(tmp_path / "other", patience_s=0.0)
    assert run.poll() is None
    run.stop("stopped")
    end_of(run)


def test_a_signal_to_the_watcher_ends_the_run_and_says_who(start, token):
    run = start(PATIENT)
    said(run)
    os.kill(run.watcher.pid, signal.SIGTERM)
    assert end_of(run)["ended_by"] == "a signal to the watcher"


def test_runs_start_from_a_copy_so_that_an_edit_changes_nothing(tmp_path, token):
    launcher = LocalLauncher(tmp_path)
    assert launcher.program.parent == tmp_path
    assert launcher.program.read_bytes() == Path(launchers.__file__).read_bytes()
