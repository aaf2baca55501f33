"""Attempts on this machine: started, told to end, and ended with everything below them."""

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from ablation.execute import local, watcher
from ablation.execute.launcher import CannotStart, Command, exit_of
from ablation.execute.local import LocalLauncher, settle
from ablation.execute.watcher import read_exit
from ablation.runs.outcome import UNBELIEVED
from tests.support.processes import survivors
from tests.support.started import PATIENT, STUBBORN, children_of, end_of, said


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code_and_output_are_those_of_the_command(start, code):
    run = start(f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({code})")
    exit = end_of(run)
    assert (exit.returncode, exit.ended_by) == (code, "itself")
    assert sorted((run.folder / "output.log").read_text().split()) == ["err", "out"]
    assert 0 <= exit.end_s - exit.start_s < 10
    assert asdict(exit) == read_exit(run.folder)


def test_a_command_killed_by_a_signal_says_so(start):
    exit = end_of(start("import os; os.kill(os.getpid(), 11)"))
    assert (exit.returncode, exit.ended_by) == (-11, "itself")


def test_a_command_that_is_missing_is_named_in_the_log(tmp_path, token):
    run = LocalLauncher(tmp_path).start(Command(("/no/such/torchrun", "x"), {}, tmp_path))
    exit = end_of(run)
    assert exit.returncode is None
    assert exit.ended_by.startswith(f"{watcher.CANNOT_START}: ")
    assert "/no/such/torchrun" in exit.ended_by
    assert "cannot start /no/such/torchrun" in (tmp_path / "output.log").read_text()


def test_arguments_are_never_read_by_a_shell(tmp_path, token):
    words = ("$(touch x)", "; touch x", "a b", "'", '"', "*", "")
    program = (sys.executable, "-c", "import sys; print(sys.argv[1:])")
    end_of(LocalLauncher(tmp_path).start(Command((*program, *words), {}, tmp_path)))
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
    assert (run.folder / "output.log").read_text().split() == ["7", "True", "True", "b''"]


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
    assert (exit.returncode, exit.ended_by) == (9, "the operator stopped it")
    assert "saved" in (run.folder / "output.log").read_text()


def test_children_that_ignore_sigterm_in_other_sessions_are_ended(start, token):
    runs = {why: start(STUBBORN, name=why, hurried=True) for why in ("stopped", "timeout")}
    for why, run in runs.items():
        said(run, times=4)
        run.stop(why)
    for why, run in runs.items():
        assert end_of(run).ended_by == why
    assert not survivors(token)


def test_orphans_of_a_command_that_ended_are_ended_too(start, token):
    leave = "os._exit(5) if os.getsid(0) != os.getpid() else time.sleep(600)"
    exit = end_of(start(STUBBORN.replace("time.sleep(600)", leave)))
    assert (exit.returncode, exit.ended_by) == (5, "itself")
    assert not survivors(token)


def test_a_watcher_that_does_not_answer_an_order_is_ended_by_the_mark(start, token, monkeypatch):
    """Guard and watcher are both stopped: only the orchestrator is left to do it."""
    run = start(STUBBORN)
    said(run, times=4)
    (watcher_id,) = children_of(run.guard.pid)
    for process in (watcher_id, run.guard.pid):
        os.kill(process, signal.SIGSTOP)
    monkeypatch.setattr(local, "GRACE_S", 0.0)
    monkeypatch.setattr(local, "MARGIN_S", 0.1)
    run.stop("the budget is spent")
    exit = end_of(run)
    assert (exit.returncode, exit.ended_by) == (None, "the budget is spent")
    assert not survivors(token)


def test_an_order_that_the_guard_had_to_carry_out_is_told_as_the_order_it_was(start, token):
    run = start(PATIENT, hurried=True)
    said(run)
    (watcher_id,) = children_of(run.guard.pid)
    os.kill(watcher_id, signal.SIGSTOP)
    run.stop("stall")
    assert end_of(run).ended_by == "stall"
    assert read_exit(run.folder)["ended_by"] == "stall"  # it read what the watcher did not


@pytest.mark.parametrize("killed", [("guard",), ("watcher",), ("guard", "watcher")], ids="+".join)
def test_an_orchestrator_that_lives_ends_what_lost_its_watchers(start, token, killed):
    run = start(STUBBORN)
    said(run, times=4)
    processes = {"guard": run.guard.pid, "watcher": children_of(run.guard.pid)[0]}
    for name in killed:
        os.kill(processes[name], signal.SIGKILL)
    exit = end_of(run)
    assert exit.returncode is None
    assert exit.ended_by == "itself"
    assert exit.end_s > exit.start_s
    assert not survivors(token)


def test_a_run_that_is_over_ends_although_its_guard_was_stopped(start, token):
    run = start("import sys; sys.stdin.read(); print('ready', flush=True)")
    said(run)
    os.kill(run.guard.pid, signal.SIGSTOP)
    assert end_of(run).returncode == 0


@pytest.mark.parametrize("text", ["{}", '{"returncode": 0}', '{"end_s": "x", "more": [1]}'])
def test_a_run_whose_exit_cannot_be_believed_is_over_all_the_same(start, text):
    """Nobody waits for a better one. (What is no object at all is no exit.json of anybody's.)"""
    run = start("print('ready', flush=True)")
    end_of(run)
    (run.folder / "exit.json").write_text(text)
    assert run.poll() == exit_of(run.folder) == UNBELIEVED


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "/gone/python"),
                                   BlockingIOError(11, "Resource temporarily unavailable"),
                                   OSError(7, "Argument list too long")])  # fmt: skip
def test_a_watcher_that_cannot_be_started_is_told_as_that(tmp_path, monkeypatch, error):
    def no_process(*_, **__):
        raise error

    monkeypatch.setattr(watcher.subprocess, "Popen", no_process)
    with pytest.raises(CannotStart, match=str(error.strerror)):
        LocalLauncher(tmp_path).start(Command(("true",), {}, tmp_path))


def test_a_log_that_cannot_be_written_is_a_launch_that_failed(tmp_path, token):
    folder, elsewhere = tmp_path / "run_0", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "output.log").symlink_to(elsewhere)
    exit = end_of(LocalLauncher(tmp_path).start(Command((sys.executable, "-V"), {}, folder)))
    assert exit.ended_by.startswith(watcher.CANNOT_START)
    assert not elsewhere.exists()


def test_a_run_gets_the_environment_that_this_project_chose(start, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    run = start("import os; print(os.environ.get('PET_NNODES'), os.environ['NCCL_DEBUG'])")
    end_of(run)
    assert (run.folder / "output.log").read_text().split() == ["None", "WARN"]


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
    os.kill(run.guard.pid, signal.SIGTERM)
    assert end_of(run).ended_by == "a signal to the watcher"


def test_runs_start_from_a_copy_so_that_an_edit_changes_nothing(tmp_path, token):
    launcher = LocalLauncher(tmp_path)
    assert launcher.program.parent == tmp_path
    assert launcher.program.read_bytes() == Path(watcher.__file__).read_bytes()
