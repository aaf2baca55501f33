"""Whole sittings of the orchestrator as processes: signals, faults, damage, two at once."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path

import pytest

from ablation.cli import exit_codes
from ablation.execute import watcher
from ablation.execute.display import Display
from ablation.execute.local import LocalLauncher
from ablation.execute.reconcile import reconcile
from ablation.execute.status import processes_left
from ablation.runs.formats import OURS
from ablation.runs.store import read_records
from benchmarks import many_runs
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
              page=False, **how):  # fmt: skip
        env = {
            **os.environ,
            TOKEN: self.token,
            "TORCHRUN": str(torchrun),
            "FAKE_SECONDS": str(seconds),
            "FAKE_MISCHIEF": json.dumps(mischief or {}),
        }
        where = ["--output_dir", self.folder] if new else ["--exp_dir", self.exp_dir]
        program = [sys.executable, ROOT / "run_aux.py", "--profile", "mini", *where]
        program += ["--num_gpus", "0", "--train_script", script, *([] if page else ["--no_page"])]
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


def test_attempts_behind_a_link_are_passed_over_and_left_alone(tmp_path, finished):
    exp_dir, elsewhere = tmp_path / "exp", tmp_path / "elsewhere"
    shutil.copytree(finished / "quick_baseline", elsewhere)
    (elsewhere / "run_0" / "result.json").unlink()
    before = sorted(elsewhere.rglob("*"))
    exp_dir.mkdir()
    (exp_dir / "quick_baseline").symlink_to(elsewhere)
    records = reconcile(exp_dir, "id", LocalLauncher(tmp_path), OURS, lambda _: None)
    assert records.stray and not records.open and not records.results
    assert sorted(elsewhere.rglob("*")) == before


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
    assert re.search(r"run 1 of 1, [\d.]+ s of [\d.]+ (?:min|h) spent, about [\d.]+ s to go", text)


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
