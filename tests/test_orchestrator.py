"""Whole sittings of the orchestrator as processes: signals, faults, damage, two at once."""

import errno
import json
import multiprocessing
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import uuid
from pathlib import Path

import pytest

from ablation.cli import exit_codes
from ablation.execute import lock, watcher
from ablation.execute.closing import believed
from ablation.execute.display import Display
from ablation.execute.launcher import CannotStart, Command, exit_of
from ablation.execute.lock import Lock, holder
from ablation.execute.orchestrator import Limits, Orchestrator
from ablation.execute.reconcile import reconcile
from ablation.execute.status import processes_left
from ablation.runs.outcome import exit_from
from ablation.runs.run import Interval, RunConfig
from ablation.runs.store import next_attempt, read_records, write_json
from benchmarks import many_runs
from tests.support.invent import arm
from tests.support.processes import TOKEN, stand_in_shards, survivors, wait_until_gone
from tests.support.started import children_of

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"


class Sitting:
    """Starts run_aux.py with the fake trainer at the mini profile."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data, self.token = folder, data, uuid.uuid4().hex

    @property
    def exp_dir(self) -> Path:
        (found,) = self.folder.glob("aux_heads_*")
        return found

    def start(self, *arguments, seconds=0.0, mischief=None, new=True, launch=subprocess.Popen,
              script=SUPPORT / "fake_train.py", torchrun=SUPPORT / "fake_torchrun",
              **how):  # fmt: skip
        env = {
            **os.environ,
            TOKEN: self.token,
            "TORCHRUN": str(torchrun),
            "FAKE_SECONDS": str(seconds),
            "FAKE_MISCHIEF": json.dumps(mischief or {}),
        }
        where = ["--output_dir", self.folder] if new else ["--exp_dir", self.exp_dir]
        program = [sys.executable, ROOT / "run_aux.py", "--profile", "mini", *where]
        program += ["--num_gpus", "0", "--train_script", script]
        program += ["--data_dir", self.data, *arguments]
        if "--full_iterations" not in arguments:
            program += ["--full_iterations", "200"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return launch([str(part) for part in program], env=env, **{**pipes, **how})

    def run(self, *arguments, **how):
        """(exit code, what it printed, what it complained) of a sitting to its end."""
        process = self.start(*arguments, **how)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def records(self):
        document = json.loads((self.exp_dir / "experiment_configs.json").read_bytes())
        return read_records(self.exp_dir, document["experiment_id"])

    def statuses(self):
        return {(r.run.name, r.attempt): r.status for r in self.records().results}

    def wait_for(self, pattern, patience_s=10.0):
        """The first file of the experiment that matches and holds something."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            for path in self.folder.glob(f"aux_heads_*/{pattern}"):
                if path.stat().st_size:
                    return path
            time.sleep(0.01)
        raise TimeoutError(pattern)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "data"
    stand_in_shards(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The folder of an experiment of two runs that is done."""
    sitting = Sitting(tmp_path_factory.mktemp("finished"), data)
    assert sitting.run(*QUICK)[0] == 0
    return sitting.exp_dir


@pytest.fixture
def sitting(tmp_path, data):
    sitting = Sitting(tmp_path, data)
    yield sitting
    left = survivors(sitting.token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


QUICK = ("--experiment", "quick_baseline,quick_aux_4_8")
BASELINE = ("--experiment", "quick_baseline")
FIRST, SECOND = "quick_baseline/run_0", "quick_aux_4_8/run_0"

# ---------------------------------------------------------------------------------------------
# Stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_ends_the_run_records_it_and_says_how_to_go_on(sitting, number, code):
    process = sitting.start(*QUICK, seconds=300)
    sitting.wait_for(f"{FIRST}/output.log")
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert sitting.statuses() == {(FIRST, 1): "interrupted"}
    assert not survivors(sitting.token)
    assert f"Stopped by {signal.Signals(number).name}; 1 interrupted" in out
    assert f"python run_aux.py {' '.join(QUICK)} --exp_dir {sitting.exp_dir}" in out
    assert not err
    assert not (sitting.exp_dir / "lock.json").exists()

    code, out, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert sitting.statuses() == {(FIRST, 1): "interrupted", (FIRST, 2): "ok", (SECOND, 1): "ok"}
    first_log = sitting.exp_dir / FIRST / "output.log"
    assert first_log.read_text() != (first_log.parent / "attempt_2" / "output.log").read_text()


def test_a_second_ctrl_c_is_immediate(sitting):
    process = sitting.start(*QUICK, seconds=1, mischief={"": "stubborn"})
    sitting.wait_for(f"{FIRST}/output.log")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for a run that ignores SIGTERM
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert survivors(sitting.token)  # it did not wait for them
    process.communicate()
    assert wait_until_gone(sitting.token) == 0
    code, out, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert "without a result: interrupted" in out


def test_a_lost_connection_is_survived(sitting):
    """SIGHUP, and a terminal that takes no more output."""
    terminal, other_end = pty.openpty()
    process = sitting.start(
        *QUICK, seconds=3, stdout=other_end, stderr=other_end, start_new_session=True
    )
    os.close(other_end)
    sitting.wait_for(f"{FIRST}/output.log")
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert set(sitting.statuses().values()) == {"ok"}
    assert len(sitting.statuses()) == 2


def test_a_reader_that_leaves_the_pipe_does_not_end_the_runs(sitting):
    process = sitting.start(*QUICK)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(20) == 0
    assert set(sitting.statuses().values()) == {"ok"}


def test_the_orchestrator_killed_leaves_nothing_and_loses_one_run_at_most(sitting):
    process = sitting.start(*QUICK, seconds=300)
    sitting.wait_for(f"{FIRST}/output.log")
    process.kill()
    process.communicate()
    assert wait_until_gone(sitting.token) == 0
    code, out, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert "Took over the lock of an orchestrator that is gone" in out
    assert f"Found {FIRST}, attempt 1, without a result: interrupted" in out
    assert sitting.statuses()[FIRST, 2] == "ok"


def test_what_the_dead_left_running_is_counted_and_ended_before_the_next_run(sitting):
    """Orchestrator, guard and watcher are killed at once, and the trainer ignores SIGTERM."""
    process = sitting.start(*BASELINE, seconds=1, mischief={"": "stubborn"})
    log = sitting.wait_for(f"{FIRST}/output.log")
    (guard,) = children_of(process.pid)
    (watcher_id,) = children_of(guard)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (guard, watcher_id, process.pid):
            os.kill(pid, number)
    process.communicate()
    while {guard, watcher_id} & watcher.parents().keys():
        time.sleep(0.01)
    left = survivors(sitting.token)
    assert len(left) == processes_left(sitting.exp_dir) == 3  # the trainer and its two children
    code, _, _ = sitting.run(*BASELINE, new=False)
    assert code == 0
    assert not set(left) & set(survivors(sitting.token))
    assert processes_left(sitting.exp_dir) == 0
    first, second = sitting.records().results
    assert (first.status, second.status) == ("interrupted", "ok")
    assert 0 < first.wall_s < 60
    assert first.end_s <= second.start_s
    assert log.exists()


def test_a_stopped_orchestrator_goes_on_well_when_it_is_continued(sitting):
    process = sitting.start(*QUICK, seconds=3)
    sitting.wait_for(f"{FIRST}/output.log")
    process.send_signal(signal.SIGTSTP)
    sitting.wait_for(f"{FIRST}/exit.json")  # the run ends while nobody looks
    assert not (sitting.exp_dir / FIRST / "result.json").exists()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert sitting.statuses() == {(FIRST, 1): "ok", (SECOND, 1): "ok"}


def test_a_stopped_orchestrator_does_not_make_a_run_longer(sitting):
    process = sitting.start(*BASELINE, "--max_budget_hours", 5 / 3600, "--full_iterations", "10",
                            seconds=6000)  # fmt: skip
    sitting.wait_for(f"{FIRST}/output.log")
    process.send_signal(signal.SIGSTOP)
    exit = json.loads(sitting.wait_for(f"{FIRST}/exit.json", patience_s=30).read_text())
    assert exit["ended_by"] == "the budget is spent"
    assert exit["end_s"] - exit["start_s"] < 5 + watcher.LATE_HERE_S + watcher.GRACE_S
    deadline = time.monotonic() + 10
    while processes_left(sitting.exp_dir):  # guard and watcher are about to leave
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=20)
    assert "the budget is spent" in out
    assert sitting.statuses() == {(FIRST, 1): "interrupted"}


def test_a_result_that_was_complete_when_the_orchestrator_died_counts(sitting):
    sitting.run(*BASELINE)
    (sitting.exp_dir / FIRST / "result.json").unlink()
    code, out, _ = sitting.run(*BASELINE, new=False)
    assert code == 0
    assert f"Found {FIRST}, attempt 1, without a result: val loss" in out
    assert sitting.statuses() == {(FIRST, 1): "ok"}


# ---------------------------------------------------------------------------------------------
# Faults of a run


def test_a_run_that_hangs_silently_is_stopped_as_timeout(sitting):
    code, out, _ = sitting.run(
        *BASELINE, "--stall_timeout", "0.005", seconds=0.1, mischief={"": "hang"}
    )
    assert code == exit_codes.RUNS_FAILED
    assert set(sitting.statuses().values()) == {"timeout"}
    assert len(sitting.statuses()) == 3  # retried twice
    assert "timeout: stopped after a silence that was too long" in out


def test_a_run_that_overstays_the_budget_is_stopped_and_recorded_as_interrupted(sitting):
    # the prior for a quick run is far below a budget of 5 s, and this one takes ten minutes
    budget_s = 5
    code, out, _ = sitting.run(
        *BASELINE, "--max_budget_hours", budget_s / 3600, "--full_iterations", "10", seconds=6000
    )
    assert code == exit_codes.BUDGET_SPENT
    assert sitting.statuses() == {(FIRST, 1): "interrupted"}
    (result,) = sitting.records().results
    assert "the budget is spent" in result.reason
    assert budget_s - 0.5 < result.wall_s < budget_s + 5
    assert "Ended: the budget is spent" in out
    assert "Cut by the budget" in out


def test_a_bad_arm_never_ends_the_stage(sitting):
    code, out, _ = sitting.run("--stage", "1", mischief={"6": "crash", "3,6,9": "oom"})
    assert code == exit_codes.RUNS_FAILED
    assert sitting.statuses()["screen_baseline/run_0", 1] == "ok"
    assert list(sitting.statuses().values()).count("crashed") == 6
    assert "RuntimeError: a cable was cut" in out
    assert "out of memory; try a smaller --device_batch_size" in out
    assert "PROCEED to Stage 2" in out
    assert "Missing: screen_aux_6, screen_aux_3_6_9" in out


def test_one_arm_missing_is_said_and_the_others_decide(sitting):
    code, out, _ = sitting.run("--stage", "1", mischief={"6": "crash", "3,6,9": "nan"})
    assert code == exit_codes.RUNS_FAILED
    assert "PROCEED to Stage 2" in out
    assert "Missing: screen_aux_6 (" in out
    assert sitting.statuses()["screen_aux_3_6_9/run_0", 1] == "diverged"


def test_a_flood_of_control_characters_reaches_no_terminal(sitting):
    code, out, _ = sitting.run(*BASELINE, mischief={"": "flood"})
    assert code == 0
    assert sitting.statuses() == {(FIRST, 1): "ok"}
    assert "\x1b" not in out


def test_editing_the_trainer_while_a_batch_runs_changes_nothing(sitting, tmp_path):
    script = tmp_path / "train.py"
    script.write_bytes((SUPPORT / "fake_train.py").read_bytes())
    process = sitting.start(*QUICK, seconds=3, script=script)
    sitting.wait_for(f"{FIRST}/output.log")
    script.write_text("raise SystemExit('edited')")
    process.communicate(timeout=20)
    assert sitting.statuses() == {(FIRST, 1): "ok", (SECOND, 1): "ok"}
    code, _, err = sitting.run(*QUICK, new=False, script=script)
    assert code == 1
    assert "code.hash: registered" in err


# ---------------------------------------------------------------------------------------------
# Faults around it: one clear line, and nothing lost


def complaint(err):
    (line,) = err.splitlines()
    assert line.startswith("run_aux.py: error: ")
    return line


def test_a_missing_torchrun_is_one_line_before_anything_is_made(sitting):
    code, _, err = sitting.run(*BASELINE, torchrun="/no/such/torchrun")
    assert code == 1
    assert "/no/such/torchrun" in complaint(err)
    assert not list(sitting.folder.iterdir())


@pytest.fixture
def small_disk(sitting, tmp_path):
    """The sitting's folder is on a disk of 1 MiB; what this returns makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    sitting.folder = disk
    yield lambda: subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    wait_until_gone(sitting.token)
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(sitting, small_disk):
    process = sitting.start(*QUICK, "--runs", "4", seconds=2)
    sitting.wait_for("quick_baseline/run_1/output.log")
    filler = sitting.folder / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)
    _, err = process.communicate(timeout=20)
    assert process.returncode == exit_codes.FAULT
    assert os.strerror(errno.ENOSPC) in complaint(err)
    assert f"--exp_dir {sitting.exp_dir}" in err
    assert wait_until_gone(sitting.token) == 0
    filler.unlink()
    finished = [key for key, status in sitting.statuses().items() if status == "ok"]
    assert finished
    code, _, _ = sitting.run(*QUICK, "--runs", "4", new=False)
    assert code == 0
    assert sum(status == "ok" for status in sitting.statuses().values()) == 8
    assert all(sitting.statuses()[key] == "ok" for key in finished)


def test_a_folder_that_is_read_only_is_one_line(sitting, tmp_path):
    sitting.run(*BASELINE)
    exp_dir = sitting.exp_dir
    bind = subprocess.run(["mount", "--bind", exp_dir, exp_dir], capture_output=True)
    if bind.returncode:
        pytest.skip("no right to mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", exp_dir], check=True)
        code, _, err = sitting.run(*QUICK, new=False)
        assert code == 1
        assert str(exp_dir) in complaint(err)
        status = subprocess.run(
            [sys.executable, ROOT / "run_aux.py", "--status", "--exp_dir", exp_dir],
            capture_output=True,
            text=True,
        )
        assert "done 1, failed 0, left 0 runs" in status.stdout
    finally:
        subprocess.run(["umount", str(exp_dir)], check=True)


def test_a_folder_that_vanishes_ends_the_sitting_and_its_processes(sitting, tmp_path):
    process = sitting.start(*QUICK, seconds=3)
    sitting.wait_for(f"{FIRST}/output.log")
    sitting.exp_dir.rename(tmp_path / "moved")
    _, err = process.communicate(timeout=30)
    assert process.returncode == exit_codes.FAULT
    assert "aux_heads_" in complaint(err)
    assert wait_until_gone(sitting.token) == 0


def test_a_clock_that_is_set_changes_no_duration(sitting):
    sitting.run(*BASELINE)
    folder = sitting.exp_dir / FIRST
    config = json.loads((folder / "config.json").read_bytes())
    for name in ("result.json", "exit.json"):
        (folder / name).unlink()
    tomorrow = time.time() + 86400
    os.utime(folder / "output.log", (tomorrow, tomorrow))
    code, _, _ = sitting.run(*BASELINE, new=False)
    assert code == 0
    first, second = sitting.records().results
    assert first.start_s == config["launched"]["monotonic_s"]
    assert first.end_s <= second.start_s


# ---------------------------------------------------------------------------------------------
# One orchestrator per experiment


def test_a_second_orchestrator_is_refused_with_host_and_pid(sitting):
    process = sitting.start(*BASELINE, seconds=300)
    sitting.wait_for(f"{FIRST}/output.log")
    code, _, err = sitting.run(*BASELINE, new=False)
    assert code == 1
    assert f"host {os.uname().nodename}, pid {process.pid}" in complaint(err)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert sitting.statuses() == {(FIRST, 1): "interrupted"}


def no_links(number):
    """A file system without hard links says so with one of several errors."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def take(folder, together, answers):
    said = []
    together.wait(10)
    try:
        lock = Lock(folder, said.append).__enter__()
        lock.touched_s = -1e9
        lock.touch()  # it is this one's
        answers.put(("taken", len(said)))
    except ValueError:
        answers.put(("refused", len(said)))
    together.wait(10)  # hold it until all have tried


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    many, processes = 6, multiprocessing.get_context("fork")
    for _ in range(10):
        write_json(tmp_path / "lock.json", {**Lock(tmp_path).me, "pid": 2**22 + 1})
        together, answers = processes.Barrier(many), processes.Queue()
        takers = [processes.Process(target=take, args=(tmp_path, together, answers))
                  for _ in range(many)]  # fmt: skip
        for taker in takers:
            taker.start()
        got = [answers.get(timeout=10) for _ in takers]
        for taker in takers:
            taker.join(10)
        assert [answer for answer, _ in got].count("taken") == 1
        assert sum(said for _, said in got) == 1  # one of them removed the stale lock


@pytest.mark.parametrize(
    ("lock", "silent_s", "lives"),
    [
        ({}, 0, True),
        ({}, 1e6, True),  # it lives, however silent
        ({"pid": 2**22 + 1}, 0, False),
        ({"born": 1}, 0, False),  # the id was given to another process since
        ({"pid": "x; rm"}, 0, False),
        ({"boot": "an earlier one"}, 0, False),
        ({"host": "elsewhere", "boot": "its own"}, 60, True),
        ({"host": "elsewhere", "boot": "its own"}, 600, False),
        ({"host": "elsewhere", "boot": "its own"}, -60, True),
        ({"host": "elsewhere", "boot": "its own"}, -6000, False),  # a clock that was ahead
        ({"namespace": "of a container"}, 60, True),
        ({"namespace": "of a container"}, 600, False),
        ("", 0, False),
        ("[]", 0, False),
    ],
)
def test_who_holds_a_lock_and_whether_it_lives(tmp_path, lock, silent_s, lives):
    path = tmp_path / "lock.json"
    me = Lock(tmp_path).me
    path.write_text(lock if isinstance(lock, str) else json.dumps({**me, **lock}))
    assert holder(path, path.stat().st_mtime + silent_s)[1] == lives


def test_a_lock_says_its_holder_safely(tmp_path):
    write_json(tmp_path / "lock.json", {**Lock(tmp_path).me, "host": "\x1b[2J", "boot": "x"})
    with pytest.raises(ValueError, match=r"host  \[2J, pid \d+"):
        Lock(tmp_path).__enter__()


@pytest.mark.parametrize("age_s", [600, -6000], ids=["seems old", "of tomorrow"])
@pytest.mark.parametrize("lives", [True, False])
def test_a_lock_out_of_sight_is_watched_before_it_is_lost(tmp_path, monkeypatch, age_s, lives):
    """Clocks of hosts and disks differ; whoever lives touches its lock."""
    monkeypatch.setattr(lock, "OBSERVE_S", 0.5)
    path, said = tmp_path / "lock.json", []
    write_json(path, {**Lock(tmp_path).me, "host": "elsewhere", "boot": "its own"})
    then = time.time() - age_s
    os.utime(path, (then, then))
    until = threading.Event()

    def touch():
        while not until.wait(0.02):
            os.utime(path, (then + time.monotonic(), then + time.monotonic()))

    toucher = threading.Thread(target=touch)
    if lives:
        toucher.start()
    try:
        if lives:
            with pytest.raises(ValueError, match=r"host elsewhere.*lock\.json"):
                Lock(tmp_path, said.append).__enter__()
        else:
            with Lock(tmp_path, said.append):
                assert "Took over" in said[-1]
    finally:
        until.set()
        if lives:
            toucher.join()


def test_half_a_lock_is_watched_before_it_is_taken_over(tmp_path, monkeypatch):
    """Where it cannot be made whole at once, its maker may be about to write it."""
    monkeypatch.setattr(lock, "OBSERVE_S", 60)
    path = tmp_path / "lock.json"
    path.touch()
    writer = threading.Timer(0.3, write_json, (path, Lock(tmp_path).me))
    writer.start()
    with pytest.raises(ValueError, match="being run by another"):
        Lock(tmp_path, lambda _: None).__enter__()
    writer.join()


@pytest.mark.parametrize("number", watcher.NO_HARD_LINKS, ids=os.strerror)
def test_without_hard_links_there_is_one_orchestrator_too(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", no_links(number))
    with Lock(tmp_path) as lock:
        lock.touched_s = -1e9
        lock.touch()  # it is this one's
        with pytest.raises(ValueError, match=f"pid {os.getpid()}"):
            Lock(tmp_path).__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {".lock.guard"}


IN_PLACE_OF_A_FILE = {
    "a link": lambda path, elsewhere: path.symlink_to(elsewhere),
    "a link to nothing": lambda path, elsewhere: path.symlink_to(elsewhere.with_name("nowhere")),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
    "an endless file": lambda path, _: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", IN_PLACE_OF_A_FILE.values(), ids=IN_PLACE_OF_A_FILE)
@pytest.mark.parametrize("name", ["lock.json", ".lock.guard"])
def test_what_is_no_lock_is_named_and_nothing_is_written_through_it(tmp_path, name, make):
    exp_dir, elsewhere = tmp_path / "exp", tmp_path / "elsewhere"
    exp_dir.mkdir()
    elsewhere.write_text("precious")
    if name == ".lock.guard":  # which is for those that find a lock
        write_json(exp_dir / "lock.json", {**Lock(exp_dir).me, "pid": 2**22 + 1})
    make(exp_dir / name, elsewhere)
    with pytest.raises(ValueError, match=f"{name} is no regular file") as told:
        Lock(exp_dir).__enter__()
    assert "\n" not in str(told.value)
    assert elsewhere.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"exp", "elsewhere"}


HUGE = '{"host": "' + "x" * (1 << 21) + '"}'


@pytest.mark.parametrize("text", [HUGE, "[" * 99_999, "\x00", '{"pid": 1e999}'],
                         ids=["huge", "deep", "binary", "no number"])  # fmt: skip
def test_a_lock_of_hostile_contents_is_stale_in_the_end(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "OBSERVE_S", 0.1)
    (tmp_path / "lock.json").write_text(text)
    then = time.time() - 1000
    os.utime(tmp_path / "lock.json", (then, then))
    said = []
    with Lock(tmp_path, said.append):
        assert len(said[-1]) < 400


def test_a_lock_that_became_a_link_is_lost_and_not_touched(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    with Lock(tmp_path) as lock:
        (tmp_path / "lock.json").rename(elsewhere)
        (tmp_path / "lock.json").symlink_to(elsewhere)
        os.utime(elsewhere, (1, 1))
        lock.touched_s = -1e9
        with pytest.raises(ValueError, match="no longer this orchestrator's"):
            lock.touch()
    assert elsewhere.stat().st_mtime == 1


def test_an_orchestrator_that_lost_its_lock_stops(tmp_path):
    with Lock(tmp_path) as lock:
        write_json(tmp_path / "lock.json", {"host": "another"})
        lock.touched_s = -1e9
        with pytest.raises(ValueError, match="no longer this orchestrator's"):
            lock.touch()
    assert (tmp_path / "lock.json").exists()


# ---------------------------------------------------------------------------------------------
# Attempts and their folders, in process


class NoLauncher:
    """Launches nothing: its watcher cannot be started."""

    def start(self, job):
        raise CannotStart(2, "No such file or directory", "/gone/python")

    def find(self, folder):
        return None

    def settle(self, exp_dir):
        pass


RUN = RunConfig(0, arm("aux_6", 6), 0, 1, 10)


@pytest.fixture
def attempts(tmp_path):
    def command_of(run, folder, slot):
        return Command(("torchrun",), {}, folder)

    return Orchestrator(tmp_path / "exp", "id", NoLauncher(), command_of, {})


def test_a_launcher_that_cannot_be_started_closes_the_attempt(attempts):
    (result,) = attempts.launch(RUN, Limits(9, "timeout", 9))
    assert result.status == "interrupted"
    assert result.reason.startswith(watcher.CANNOT_START)
    assert "/gone/python" in result.reason
    assert not attempts.flights
    assert read_records(attempts.exp_dir, "id").results == (result,)
    assert next_attempt(attempts.exp_dir, RUN).number == 2


USED = {  # what lies in the folder of attempt 1: the next attempt
    "nothing": (lambda folder: None, 1),
    "a record": (lambda folder: (folder / "config.json").write_text("{}"), 2),
    "half of one": (lambda folder: (folder / ".config.json.7.tmp").write_text("{"), 1),
    "a folder": (lambda folder: (folder / "checkpoints").mkdir(), 2),
    "a pipe": (lambda folder: os.mkfifo(folder / "output.log"), 2),
    "a link to nothing": (lambda folder: (folder / "x").symlink_to("/no/where"), 2),
    "a later attempt": (lambda folder: (folder / "attempt_2").mkdir(), 1),
    "a file in its place": (lambda folder: (folder / "attempt_2").write_text("x"), 3),
    "a link in its place": (lambda folder: (folder / "attempt_2").symlink_to("/tmp"), 3),
    "an attempt beyond bounds": (lambda folder: (folder / "attempt_1234567").mkdir(), 2),
}


@pytest.mark.parametrize(("lie", "attempt"), USED.values(), ids=USED)
def test_an_attempt_begins_where_nothing_lies(attempts, lie, attempt):
    folder = attempts.exp_dir / RUN.name
    folder.mkdir(parents=True)
    lie(folder)
    assert next_attempt(attempts.exp_dir, RUN).number == attempt


@pytest.mark.parametrize("part", ["aux_6", "aux_6/run_0"])
@pytest.mark.parametrize("make", ["link", "file"])
def test_nothing_is_launched_into_a_folder_that_leads_elsewhere(attempts, tmp_path, part, make):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    planted = attempts.exp_dir / part
    planted.parent.mkdir(parents=True)
    planted.symlink_to(elsewhere) if make == "link" else planted.write_text("x")
    with pytest.raises(ValueError, match="nothing is written through it"):
        next_attempt(attempts.exp_dir, RUN)
    assert not list(elsewhere.iterdir())


def test_attempts_behind_a_link_are_passed_over_and_left_alone(attempts, tmp_path, finished):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(finished / "quick_baseline", elsewhere)
    (elsewhere / "run_0" / "result.json").unlink()
    before = sorted(elsewhere.rglob("*"))
    attempts.exp_dir.mkdir()
    (attempts.exp_dir / "quick_baseline").symlink_to(elsewhere)
    records = reconcile(attempts.exp_dir, "id", NoLauncher(), lambda _: None)
    assert records.stray and not records.open and not records.results
    assert sorted(elsewhere.rglob("*")) == before


def test_litter_of_killed_sittings_is_removed_and_nothing_else(attempts):
    exp_dir, long_ago = attempts.exp_dir, time.time() - 4000
    (exp_dir / "code").mkdir(parents=True)
    old, new = next_attempt(attempts.exp_dir, RUN).folder, exp_dir / "aux_8/run_0/attempt_2"
    new.mkdir(parents=True)
    stray = exp_dir / "aux_6_copy/run_0"
    stray.mkdir(parents=True)
    dead = {**Lock(exp_dir).me, "pid": 2**22 + 1}
    elsewhere = {**dead, "host": "elsewhere", "boot": "its own"}
    me = os.getpid()
    litter = [
        (old / ".config.json.4194305.tmp", "{"),
        (new / ".exit.json.77.tmp", "{"),
        (new / ".claim.9", "{"),
        (exp_dir / f".lock.{dead['host']}.4194305", json.dumps(dead)),
        (exp_dir / ".lock.elsewhere.7", json.dumps(elsewhere)),
        (exp_dir / ".overrides.json.4194305.tmp", "{"),
        (exp_dir / ".overrides.json.4194305-2.tmp", "{"),
        (exp_dir / ".analysis_report.txt.0123456789abcdef.tmp", "the re"),
        (exp_dir / ".verdict.png.0123456789012345.tmp", ""),
        (exp_dir / "code" / ".watcher.py.4194305.tmp", ""),
        (new / ".result.json.77-1.tmp", "{"),
    ]
    kept = [
        (stray / "notes", "mine"),
        (stray / ".result.json.4194305.tmp", "{"),
        (exp_dir / f".results.json.{me}.tmp", "{"),  # its writer lives
        (exp_dir / ".lock.here.9", json.dumps(Lock(exp_dir).me)),
        (exp_dir / ".notes", "mine"),
        (exp_dir / ".notes.txt.0123456789ABCDEF.tmp", "mine"),
        (exp_dir / ".notes.txt.0123456789abcde.tmp", "mine"),
        (exp_dir / "notes.txt.0123456789abcdef.tmp", "mine"),
        (exp_dir / "notes.txt", "mine"),
        (exp_dir / "aux_6" / "notes.txt", "mine"),
    ]
    for path, text in (*litter, *kept):
        path.write_text(text)
        os.utime(path, (long_ago, long_ago))
    for path in (exp_dir / ".lock.elsewhere.8", exp_dir / ".x.json.4194305.tmp"):  # just now
        path.write_text(json.dumps(elsewhere))
        kept.append((path, ""))
    report = exp_dir / ".x.png.0123456789abcdef.tmp"  # half an hour ago: it may go on
    report.touch()
    os.utime(report, (time.time() - 1800, time.time() - 1800))
    link = exp_dir / ".y.png.0123456789abcdef.tmp"
    link.symlink_to(stray / "notes")
    os.utime(link, (long_ago, long_ago), follow_symlinks=False)
    kept += [(report, ""), (link, "")]
    with Lock(exp_dir):
        reconcile(exp_dir, "id", NoLauncher(), lambda _: None)
    assert not [path for path, _ in litter if path.exists()]
    assert [path for path, _ in kept if not path.exists()] == []
    assert not old.exists()
    assert not new.exists()
    assert not (exp_dir / "aux_8").exists()


HERE = watcher.boot_clock()
EXIT = {"returncode": 0, "ended_by": "itself", "clock": HERE, "start_s": 5.0, "end_s": 9.0}


@pytest.mark.parametrize(
    ("change", "can_be"),
    [
        ({}, True),
        ({"start_s": 3.9}, False),  # before its launch
        ({"end_s": 10.1}, False),  # later than now
        ({"end_s": 1e300}, False),
        ({"end_s": float("nan")}, False),
        ({"nodes": 1000}, False),
        ({"clock": "another"}, False),
        ({"clock": "job 7"}, False),
        ({"clock": 7}, False),
        ({"more": 1}, False),
        ({"returncode": "0"}, False),
    ],
)
def test_what_exit_json_says_is_believed_where_it_can_be(change, can_be):
    exit = exit_from({**EXIT, **change})
    assert (believed(exit, Interval(HERE, 4.0, 10.0, 1)) is not None) == can_be
    on_a_job = exit_from({**EXIT, "clock": "job 7", "end_s": 1e6})
    assert believed(on_a_job, Interval("job 7", 4.0, 10.0, 1)).end_s == 1e6
    assert believed(exit_from(EXIT), Interval("job 7", 4.0, 10.0, 1)) is None


class Ended:
    """A run that has ended, and left an exit.json."""

    started, nodes, age_s, clock = True, 1, 0.0, HERE

    def __init__(self, folder):
        self.folder = folder

    def poll(self):
        return exit_of(self.folder)


@pytest.mark.parametrize("exit", [{}, {"returncode": 0}, {**EXIT, "end_s": "x"}, EXIT])
def test_an_exit_that_cannot_be_believed_interrupts_the_run(attempts, exit):
    attempts.launcher.start = lambda job: Ended(job.folder)
    attempts.launcher.wait = lambda runs, timeout_s: None
    assert attempts.launch(RUN, Limits(9, "timeout", 9)) == []
    (attempts.exp_dir / RUN.name / "exit.json").write_text(json.dumps(exit))
    (result,) = attempts.wait(0)
    assert result.status == "interrupted"
    assert "exit.json cannot be believed" in result.reason
    assert 0 <= result.wall_s < 60


# ---------------------------------------------------------------------------------------------
# Damage by hand

DAMAGE = {
    "truncated": lambda text, other: text[:40],
    "emptied": lambda text, other: "",
    "foreign": lambda text, other: '{"program": "another"}',
    "duplicated": lambda text, other: other,
    "wrong types": lambda text, other: re.sub(r": [0-9.]+", ': "1"', text),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("file", ["result.json", "config.json"])
def test_damage_is_named_set_aside_and_rerun(sitting, finished, file, damage):
    shutil.copytree(finished, sitting.folder / finished.name)
    good = sitting.records().results
    first, second = (sitting.exp_dir / name for name in (FIRST, SECOND))
    path = first / file
    text = damage(path.read_text(), (second / file).read_text())
    path.write_text(text)
    code, out, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert f"Damaged record {path}" in out
    assert (first / f"{file}.damaged-1").read_text() == text
    records = sitting.records()
    assert not records.damaged
    assert not records.open
    latest = records.latest()
    assert latest[FIRST].attempt == 2
    assert {r.run.name: r.val_loss for r in latest.values()} == {
        r.run.name: r.val_loss for r in good
    }
    if file == "result.json":  # whose time is paid for
        assert sitting.statuses()[FIRST, 1] == "interrupted"
    code, out, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert "Damaged" not in out


def test_a_record_in_a_folder_of_a_run_that_was_never_launched_is_not_believed(sitting):
    sitting.run(*BASELINE)
    (sitting.exp_dir / SECOND).mkdir(parents=True)
    stray = sitting.exp_dir / SECOND / "result.json"
    stray.write_bytes((sitting.exp_dir / FIRST / "result.json").read_bytes())
    code, out, _ = sitting.run(*BASELINE, new=False)
    assert code == 0
    assert f"Damaged record {stray}" in out
    assert sitting.statuses() == {(FIRST, 1): "ok"}


def test_nothing_finished_is_run_again(sitting):
    sitting.run(*QUICK)
    before = {path: path.stat().st_mtime_ns for path in sitting.exp_dir.rglob("*_0/*")}
    code, _, _ = sitting.run(*QUICK, new=False)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in sitting.exp_dir.rglob("*_0/*")} == before


def test_an_experiment_goes_on_by_its_folder_alone(sitting):
    sitting.run(*QUICK)
    (sitting.exp_dir / SECOND / "result.json").unlink()
    (sitting.exp_dir / SECOND / "exit.json").unlink()
    code, _, _ = sitting.run(new=False)
    assert code == 0
    assert sitting.statuses()[SECOND, 2] == "ok"


# ---------------------------------------------------------------------------------------------
# Looking on, and what is shown


def test_status_tells_a_run_in_flight_from_one_that_was_broken_off(sitting):
    process = sitting.start(*QUICK, seconds=300)
    log = sitting.wait_for(f"{FIRST}/output.log")
    log.open("ab").write(b"step:5/20 val_loss:3.900000 train_time:9ms step_avg:1.00ms\n")

    def status(*more):
        command = [sys.executable, ROOT / "run_aux.py", "--status", "--exp_dir", sitting.exp_dir]
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        assert done.returncode == 0
        return done.stdout

    found = json.loads(status("--json"))
    assert found["in_flight"][0]["run"] == FIRST
    assert found["in_flight"][0]["val_loss"] == 3.9
    assert found["hours_spent"] > 0
    assert found["left"]
    assert f"in flight: {FIRST}, step 5/20, val loss 3.9000" in status()
    process.kill()
    process.communicate()
    found = json.loads(status("--json"))
    assert found["in_flight"] == []
    assert found["broken_off"][0]["run"] == FIRST
    assert "gone" in found["orchestrator"]
    wait_until_gone(sitting.token)


def test_many_finished_runs_are_counted_and_not_run_again(tmp_path):
    exp_dir = many_runs.invent(tmp_path, runs=60)
    _, out = many_runs.timed(exp_dir, "--status")
    assert "done 60, failed 0, left 1 runs" in out
    _, out = many_runs.timed(exp_dir)
    assert "[61/61] baseline/run_60: val loss" in out
    assert "61 ok" in out
    assert len(list(exp_dir.rglob("output.log"))) == 1


def test_live_lines_show_run_step_loss_and_plan(sitting):
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 150))
    process = sitting.start(*BASELINE, seconds=3, stdout=other_end, stderr=other_end)
    os.close(other_end)
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:
        pass  # the other end is closed
    os.close(terminal)
    assert process.wait(20) == 0
    text = shown.decode()
    assert re.search(rf"{FIRST} \[#+\.+\] step \d+/\d+, val loss \d\.\d{{4}}, [\d.]+ s left", text)
    assert re.search(r"run 1 of 1, 0\.00 of [\d.]+ h spent, about [\d.]+ s to go", text)


def test_a_display_that_breaks_is_silent_from_then_on(monkeypatch):
    class Broken:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    display = Display(Broken())
    display.print_line("x")
    display.print_line("y")


# ---------------------------------------------------------------------------------------------
# A disk that fills up while runs are underway


def fill(disk):
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)


def test_what_ended_while_the_disk_was_full_is_told_as_it_was(sitting, small_disk):
    """One run is complete and counts; the other was ended because the sitting could not go on."""
    process = sitting.start(*QUICK, "--parallel_runs", "2", seconds=1, mischief={"4,8": "hang"})
    for name in (FIRST, SECOND):
        sitting.wait_for(f"{name}/output.log")
    fill(sitting.folder)
    _, err = process.communicate(timeout=20)
    assert process.returncode == exit_codes.FAULT
    assert f"{FIRST}/result.json" in complaint(err)
    assert wait_until_gone(sitting.token) == 0
    assert sitting.statuses() == {}
    small_disk()
    code, out, _ = sitting.run(*QUICK, "--parallel_runs", "2", new=False)
    assert code == 0
    assert f"Found {FIRST}, attempt 1, without a result: val loss" in out
    assert sitting.statuses() == {(FIRST, 1): "ok", (SECOND, 1): "interrupted", (SECOND, 2): "ok"}
    second = next(r for r in sitting.records().results if r.status == "interrupted")
    assert second.reason.startswith(f"its sitting ended: [Errno {errno.ENOSPC}]")
    assert not list(sitting.exp_dir.rglob("*.tmp"))


def test_a_run_whose_log_filled_the_disk_says_which_file_and_is_not_held_against_it(
    sitting, small_disk
):
    code, _, _ = sitting.run(*BASELINE, mischief={"": "flood"})
    assert code == exit_codes.FAULT
    small_disk()
    code, _, _ = sitting.run(*BASELINE, new=False)
    assert code == 0
    assert sitting.statuses() == {(FIRST, 1): "interrupted", (FIRST, 2): "ok"}
    first, _ = sitting.records().results
    assert first.reason.startswith(f"{watcher.NO_SPACE}: {sitting.exp_dir / FIRST}/output.log")
    assert first.returncode  # its own failure, and not its fault
