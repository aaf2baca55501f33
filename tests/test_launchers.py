"""Processes: started, watched, and ended with everything below them, whoever dies."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest

from ablation.execute import local, watcher
from ablation.execute.launcher import CannotStart, Job, exit_of
from ablation.execute.local import LocalLauncher, settle
from ablation.execute.watcher import read_exit
from ablation.runs.outcome import UNBELIEVED
from tests.support.processes import TOKEN, survivors

ROOT = Path(__file__).resolve().parents[1]
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

    def start(program, name="run_0", hurried=False, **env):
        folder = tmp_path / name
        folder.mkdir()
        command = (sys.executable, "-c", program)
        launcher = LocalLauncher(tmp_path)
        if hurried:
            hurry(launcher.program)
        return launcher.start(Job(command, env, folder))

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
    assert (exit.returncode, exit.ended_by) == (code, "itself")
    assert sorted((run.job.folder / "output.log").read_text().split()) == ["err", "out"]
    assert 0 <= exit.end_s - exit.start_s < 10
    assert asdict(exit) == read_exit(run.job.folder)


def test_a_command_killed_by_a_signal_says_so(start):
    exit = end_of(start("import os; os.kill(os.getpid(), 11)"))
    assert (exit.returncode, exit.ended_by) == (-11, "itself")


def test_a_command_that_is_missing_is_named_in_the_log(tmp_path, token):
    run = LocalLauncher(tmp_path).start(Job(("/no/such/torchrun", "x"), {}, tmp_path))
    exit = end_of(run)
    assert exit.returncode is None
    assert exit.ended_by.startswith(f"{watcher.CANNOT_START}: ")
    assert "/no/such/torchrun" in exit.ended_by
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
    assert (exit.returncode, exit.ended_by) == (9, "the operator stopped it")
    assert "saved" in (run.job.folder / "output.log").read_text()


def test_children_that_ignore_sigterm_in_other_sessions_are_ended(start, token):
    runs = {why: start(STUBBORN, name=why, hurried=True) for why in ("stopped", "timeout")}
    for why, run in runs.items():
        said(run, times=4)
        run.stop(why)
    for why, run in runs.items():
        assert end_of(run).ended_by == why
    assert not survivors(token)


@pytest.mark.skipif(not shutil.which("ps"), reason="no program ps")
def test_without_proc_ps_tells_the_same_parents(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    try:
        here = watcher.parents()
        monkeypatch.setattr(sys, "platform", "darwin")
        elsewhere = watcher.parents()
        assert elsewhere[child.pid] == here[child.pid] == os.getpid()
        assert watcher.below(child.pid) == set()
        assert child.pid in watcher.below(os.getpid())
        rows = watcher.listed_by_ps("-A", "-o", "pid=,args=")
        assert not [row for row in rows if "ps -A -o pid=,args=" in row]  # itself left out
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("folder", ["/a/run_0", "/a folder/run_0"])
def test_without_proc_the_mark_is_read_from_what_ps_shows(monkeypatch, folder):
    shown = f"python -I watcher.py HOME=/root {watcher.MARK}={folder} LANG=C"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(watcher, "listed_by_ps", lambda *_: [shown])
    assert watcher.mark_of(1) == folder
    monkeypatch.setattr(watcher, "listed_by_ps", lambda *_: ["python HOME=/root"])
    assert watcher.mark_of(1) == ""


def test_orphans_of_a_command_that_ended_are_ended_too(start, token):
    leave = "os._exit(5) if os.getsid(0) != os.getpid() else time.sleep(600)"
    exit = end_of(start(STUBBORN.replace("time.sleep(600)", leave)))
    assert (exit.returncode, exit.ended_by) == (5, "itself")
    assert not survivors(token)


HURRIED = {"GRACE_S = 4.0": "GRACE_S = 0.2", "MARGIN_S = 2.0": "MARGIN_S = 0.2"}
HURRIED |= {"LATE_HERE_S = 4.0": "LATE_HERE_S = 0.1"}


def hurry(program):
    """Less patience, where a test waits for its end."""
    text = program.read_text()
    for patient, hurried in HURRIED.items():
        assert text.count(f"\n{patient} ") == 1
        text = text.replace(patient, hurried)
    program.write_text(text)


ORCHESTRATOR = """
import sys, time
from pathlib import Path
from ablation.execute.launcher import Job
from ablation.execute.local import LocalLauncher
from tests.test_launchers import hurry
folder = Path(sys.argv[1])
launcher = LocalLauncher(folder)
hurry(launcher.program)
run = launcher.start(Job((sys.executable, "-c", sys.argv[2]), {}, folder))
print(run.guard.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def orchestrate(tmp_path, token):
    """Start a run from an orchestrator that then does nothing more: (processes, folder)."""
    started = []

    def orchestrate(program, limit_s=60, words=1):
        folder = tmp_path / f"run_{len(started)}"
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"limit_s": limit_s, "limit_why": "timeout"})
        )
        process = subprocess.Popen(
            [sys.executable, "-c", ORCHESTRATOR, folder, program],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        started.append(process)
        guard = int(process.stdout.readline())
        log, deadline = folder / "output.log", time.monotonic() + 10
        while not (log.exists() and log.read_bytes().count(b"ready") >= words):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (watcher_id,) = children_of(guard)
        command = children_of(watcher_id)[0] if words else None
        names = ("orchestrator", "guard", "watcher", "command")
        return dict(zip(names, (process.pid, guard, watcher_id, command), strict=True)), folder

    yield orchestrate
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def children_of(process):
    return [child for child, parent in watcher.parents().items() if parent == process]


def left(token, processes, killed):
    """What lives on after some time, apart from an orchestrator that nobody killed."""
    deadline = time.monotonic() + 10
    spared = set() if "orchestrator" in killed else {processes["orchestrator"]}
    while (living := {*survivors(token)} - spared) and time.monotonic() < deadline:
        time.sleep(0.02)
    return living


DIED, UNGUARDED = "the orchestrator died", "its guard was killed"
ENDS = [  # stopped, killed, who ended the run
    ((), ("orchestrator",), {DIED}),
    ((), ("watcher",), {"itself"}),
    ((), ("guard",), {UNGUARDED}),
    ((), ("command",), {"itself"}),
    ((), ("orchestrator", "watcher"), {DIED}),
    ((), ("orchestrator", "guard"), {DIED, UNGUARDED}),
    ((), ("orchestrator", "command"), {DIED, "itself"}),
    ((), ("orchestrator", "watcher", "command"), {DIED}),
    ((), ("orchestrator", "guard", "command"), {DIED, UNGUARDED, "itself"}),
    (("command",), ("orchestrator",), {DIED}),
    (("command",), ("orchestrator", "watcher"), {DIED}),
    (("watcher",), ("orchestrator",), {DIED}),
    (("watcher", "command"), ("orchestrator",), {DIED}),
    (("guard",), ("orchestrator",), {DIED}),
]


@pytest.mark.parametrize("program", [PATIENT, STUBBORN], ids=["patient", "stubborn"])
@pytest.mark.parametrize(
    ("stopped", "killed", "ended_by"),
    ENDS,
    ids=["_".join((*(f"stopped-{name}" for name in s), *k)) for s, k, _ in ENDS],
)
def test_whoever_is_killed_or_stopped_nothing_of_the_run_is_left_and_the_end_is_told(
    orchestrate, token, program, stopped, killed, ended_by
):
    processes, folder = orchestrate(program, words=4 if program is STUBBORN else 1)
    for names, number in ((stopped, signal.SIGSTOP), (killed, signal.SIGKILL)):
        for name in names:
            os.kill(processes[name], number)
    assert not left(token, processes, killed)
    exit = read_exit(folder)
    assert exit["ended_by"] in ended_by
    assert exit["returncode"] != 0
    assert exit["clock"] == watcher.boot_clock()
    assert exit["start_s"] <= exit["end_s"] <= time.monotonic()


@pytest.mark.parametrize("stopped", [("orchestrator",), ("orchestrator", "watcher")], ids="+".join)
def test_a_run_keeps_to_its_limit_while_others_are_stopped(orchestrate, token, stopped):
    processes, folder = orchestrate(PATIENT, limit_s=1.5, words=0)
    for name in stopped:
        os.kill(processes[name], signal.SIGSTOP)
    assert not left(token, processes, ())
    exit = read_exit(folder)
    assert exit["ended_by"] == "timeout"
    assert exit["end_s"] - exit["start_s"] >= 1.5


@pytest.mark.parametrize(
    "config",
    ["", "[]", '{"limit_s": "1", "limit_why": "x"}', '{"limit_s": 1e300, "limit_why": "x"}',
     '{"limit_s": NaN, "limit_why": "x"}', '{"limit_s": -1e300, "limit_why": "x"}',
     '{"limit_s": true, "limit_why": "x"}', '{"limit_s": 1}', "[" * 100_000],
)  # fmt: skip
def test_a_limit_that_cannot_be_read_is_none(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    assert watcher.limit_of(tmp_path) == (None, "")


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
    assert read_exit(run.job.folder)["ended_by"] == "stall"  # it read what the watcher did not


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


def test_what_survives_everybody_is_ended_before_the_next_run(orchestrate, token, tmp_path):
    """The exception: the three are killed at once, and the trainer ignores SIGTERM."""
    processes, folder = orchestrate(STUBBORN, words=4)
    for name in ("guard", "watcher", "orchestrator"):
        os.kill(processes[name], signal.SIGSTOP)
    for name in ("guard", "watcher", "orchestrator"):
        os.kill(processes[name], signal.SIGKILL)
    assert survivors(token)
    settle(tmp_path, patience_s=0.2)
    assert not survivors(token)
    assert read_exit(folder) is None


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
    (run.job.folder / "exit.json").write_text(text)
    assert run.poll() == exit_of(run.job.folder) == UNBELIEVED


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "/gone/python"),
                                   BlockingIOError(11, "Resource temporarily unavailable"),
                                   OSError(7, "Argument list too long")])  # fmt: skip
def test_a_watcher_that_cannot_be_started_is_told_as_that(tmp_path, monkeypatch, error):
    def no_process(*_, **__):
        raise error

    monkeypatch.setattr(watcher.subprocess, "Popen", no_process)
    with pytest.raises(CannotStart, match=str(error.strerror)):
        LocalLauncher(tmp_path).start(Job(("true",), {}, tmp_path))


def test_a_log_that_cannot_be_written_is_a_launch_that_failed(tmp_path, token):
    folder, elsewhere = tmp_path / "run_0", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "output.log").symlink_to(elsewhere)
    exit = end_of(LocalLauncher(tmp_path).start(Job((sys.executable, "-V"), {}, folder)))
    assert exit.ended_by.startswith(watcher.CANNOT_START)
    assert not elsewhere.exists()


def test_a_run_gets_the_environment_that_this_project_chose(start, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    run = start("import os; print(os.environ.get('PET_NNODES'), os.environ['NCCL_DEBUG'])")
    end_of(run)
    assert (run.job.folder / "output.log").read_text().split() == ["None", "WARN"]


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


def test_of_a_job_whose_command_heard_of_the_end_first_it_is_told_all_the_same(tmp_path, token):
    """Slurm signals all processes of a job at once."""
    command = (sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)")
    program = [sys.executable, "-I", watcher.__file__, "--job", str(tmp_path), *command]
    process = subprocess.Popen(program, env={**os.environ, "SLURM_JOB_ID": "7"})
    log = tmp_path / "output.log"
    while not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    (watcher_id,) = children_of(process.pid)
    os.kill(*children_of(watcher_id), signal.SIGTERM)
    while children_of(watcher_id):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    exit = read_exit(tmp_path)
    assert (exit["returncode"], exit["ended_by"]) == (-15, watcher.A_SIGNAL)


# ---------------------------------------------------------------------------------------------
# Memory

CGROUPS = {  # what /proc/self/cgroup says: where kills are counted, and how
    "version 2": ("0::/user/job", "user/job/memory.events", "low 0\noom 1\noom_kill {}\n"),
    "version 2, root": ("0::/", "memory.events", "oom_kill {}\n"),
    "version 1": (
        "5:cpu:/a\n4:memory:/a/b\n0::/",
        "memory/a/b/memory.oom_control",
        "under_oom 0\noom_kill {}",
    ),
    "with others": ("3:memory,hugetlb:/x", "memory/x/memory.oom_control", "oom_kill {}\n"),
    "uncounted": ("0::/user/job", "../proc/vmstat", "pgfault 7\noom_kill {}\n"),
    "none": ("", "../proc/vmstat", "oom_kill {}\n"),
}


@pytest.mark.parametrize("group", CGROUPS.values(), ids=CGROUPS)
def test_memory_kills_are_counted_where_the_process_is(tmp_path, group):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    here, counter, text = group
    (proc / "self" / "cgroup").write_text(here + "\n")
    (proc / "vmstat").write_text("oom_kill 90\n")
    (cgroups / counter).parent.mkdir(parents=True, exist_ok=True)
    for count in (0, 3):
        (cgroups / counter).write_text(text.format(count))
        assert watcher.memory_kills(proc, cgroups) == count


@pytest.mark.parametrize("text", ["", "oom_kill many", "oom_kill", "\xff\x00"])
def test_a_counter_that_tells_nothing_counts_nothing(tmp_path, text):
    (tmp_path / "vmstat").write_text(text)
    assert watcher.memory_kills(tmp_path, tmp_path) == 0


REPORTED = "  exitcode  : -9 (pid: 77)\n  traceback : Signal 9 (SIGKILL) received by PID 77\n"
LOADER = "RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed."
SIGKILL_ITSELF = "import os; os.kill(os.getpid(), 9)"
FAIL = "import sys; print(sys.argv[1]); sys.exit(1)"
MEMORY = {  # kills counted before and after, program, its words: does the log say so?
    "the command itself": ((1, 2), SIGKILL_ITSELF, "", True),
    "a worker, as torchrun reports it": ((0, 1), FAIL, REPORTED, True),
    "a data loader": ((0, 1), FAIL, LOADER, True),
    "killed by hand": ((1, 1), SIGKILL_ITSELF, "", False),
    "a worker killed by hand": ((0, 0), FAIL, REPORTED, False),
    "failed while a neighbour was killed": ((0, 1), FAIL, "RuntimeError: a cable", False),
    "finished while a neighbour was killed": ((0, 1), "print('-9 SIGKILL')", "", False),
}


@pytest.mark.parametrize("case", MEMORY.values(), ids=MEMORY)
def test_a_kill_for_memory_is_told_where_the_run_lost_a_process(tmp_path, token, case):
    (before, after), program, words, told = case
    counter = tmp_path / "vmstat"
    counter.write_text(f"oom_kill {before}\n")
    launcher = LocalLauncher(tmp_path)
    text = launcher.program.read_text()
    launcher.program.write_text(text.replace('Path("/proc")', f"Path({str(tmp_path)!r})"))
    kill = f"open({str(counter)!r}, 'w').write('oom_kill {after}')\n"
    run = launcher.start(Job((sys.executable, "-c", kill + program, words), {}, tmp_path))
    end_of(run)
    lines = (tmp_path / "output.log").read_text().splitlines()
    assert lines[-1:].count("the kernel killed a process of this run: out of memory") == told


def test_a_run_that_was_told_to_end_was_not_killed_for_memory(tmp_path, token):
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 0\n")
    launcher = LocalLauncher(tmp_path)
    text = launcher.program.read_text()
    launcher.program.write_text(text.replace('Path("/proc")', f"Path({str(tmp_path)!r})"))
    hurry(launcher.program)
    run = launcher.start(Job((sys.executable, "-c", STUBBORN), {}, tmp_path))
    said(run, times=4)
    counter.write_text("oom_kill 1\n")
    run.stop("timeout")
    end_of(run)
    assert "out of memory" not in (tmp_path / "output.log").read_text()


# ---------------------------------------------------------------------------------------------
# Files

NOT_FILES = {
    "a link": lambda path, elsewhere: path.symlink_to(elsewhere),
    "a dangling link": lambda path, elsewhere: path.symlink_to(elsewhere.with_name("nowhere")),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
    "an endless file": lambda path, _: path.symlink_to("/dev/zero"),
    "a huge file": lambda path, _: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
    "not text": lambda path, _: path.write_bytes(b"\xff\x00" * 99),
    "too deep": lambda path, _: path.write_text("[" * 90_000),
    "a list": lambda path, _: path.write_text("[1]"),
}


@pytest.mark.parametrize("make", NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_no_file_of_ours_is_not_read(tmp_path, make):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"a": 1}')
    make(tmp_path / "exit.json", elsewhere)
    assert read_exit(tmp_path) is None


@pytest.mark.parametrize(
    "planted", ["exit.json", f".exit.json.{os.getpid()}.tmp"], ids=["the file", "the temporary"]
)
def test_writing_replaces_a_link_and_does_not_follow_it(tmp_path, planted):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / planted).symlink_to(elsewhere)
    watcher.write_whole(tmp_path / "exit.json", {"returncode": 0})
    assert elsewhere.read_text() == "precious"
    assert read_exit(tmp_path) == {"returncode": 0}
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "exit.json"}


HARD_LINKS = [None, *watcher.NO_HARD_LINKS]


@pytest.fixture(params=HARD_LINKS, ids=[number and os.strerror(number) for number in HARD_LINKS])
def a_disk(request, monkeypatch):
    """With hard links, or without them."""

    def refuse(*_, **__):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(os, "link", refuse)


def test_only_the_first_job_may_run_an_attempt_on_any_disk(tmp_path, a_disk):
    assert watcher.claim(tmp_path, "7")
    assert not watcher.claim(tmp_path, "8")
    assert json.loads((tmp_path / "claim.json").read_text())["job"] == "7"
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]
    (tmp_path / "claim.json").unlink()
    (tmp_path / "result.json").write_text("{}")
    assert not watcher.claim(tmp_path, "9")  # too late: the attempt was judged without it


def test_a_claim_whose_answer_was_lost_is_a_claim(tmp_path, monkeypatch):
    real = os.link

    def lost(*how):
        real(*how)
        real(*how)  # the server did it, the client asks again

    monkeypatch.setattr(os, "link", lost)
    assert watcher.claim(tmp_path, "7")


def race(path, number, together, answers):
    together.wait(10)
    answers.put(watcher.made_first(path, str(number), path.with_name(f".mine.{number}")))


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_make_a_file_at_once_one_is_first(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    many, processes = 4, multiprocessing.get_context("fork")
    for turn in range(20):
        together, answers = processes.Barrier(many), processes.Queue()
        path = tmp_path / f"claim_{turn}.json"
        racers = [processes.Process(target=race, args=(path, number, together, answers))
                  for number in range(many)]  # fmt: skip
        for racer in racers:
            racer.start()
        assert sorted(answers.get(timeout=10) for _ in racers) == [False] * (many - 1) + [True]
        for racer in racers:
            racer.join(10)


def no_links(*_, **__):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("write", [
    lambda path: watcher.replace_file(path, b"x" * 9),
    lambda path: watcher.made_first(path, "x" * 9, path.with_name(".mine")),
    lambda path: watcher.LastWord(path.parent),
])  # fmt: skip
def test_a_file_that_cannot_be_written_is_named_as_what_it_was_to_be(tmp_path, monkeypatch, write):
    with pytest.raises(FileNotFoundError) as missing:
        write(tmp_path / "gone" / "exit.json")
    assert missing.value.filename == str(tmp_path / "gone" / "exit.json")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write(2) says it: no name

    monkeypatch.setattr(watcher, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "exit.json")
    assert caught.value.filename == str(tmp_path / "exit.json")
    assert not list(tmp_path.iterdir())
