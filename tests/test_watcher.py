"""Guard and watcher: whoever dies, nothing of a run is left, and its end is told."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablation.execute import watcher
from ablation.execute.launcher import Command
from ablation.execute.local import LocalLauncher, settle
from ablation.execute.watcher import read_exit
from tests.support.processes import survivors
from tests.support.started import PATIENT, STUBBORN, children_of, end_of, hurry, said

ROOT = Path(__file__).resolve().parents[1]


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


ORCHESTRATOR = """
import sys, time
from pathlib import Path
from ablation.execute.launcher import Command
from ablation.execute.local import LocalLauncher
from tests.support.started import hurry
folder = Path(sys.argv[1])
launcher = LocalLauncher(folder)
hurry(launcher.program)
run = launcher.start(Command((sys.executable, "-c", sys.argv[2]), {}, folder))
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
    run = launcher.start(Command((sys.executable, "-c", kill + program, words), {}, tmp_path))
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
    run = launcher.start(Command((sys.executable, "-c", STUBBORN), {}, tmp_path))
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
