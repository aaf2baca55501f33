"""Attempts and their folders, in process: where one begins, what closes it, what is tidied up."""

import json
import os
import time

import pytest

from ablation.execute import watcher
from ablation.execute.closing import believed
from ablation.execute.launcher import CannotStart, Command, exit_of
from ablation.execute.lock import Lock
from ablation.execute.orchestrator import Limits, Orchestrator
from ablation.execute.reconcile import reconcile
from ablation.runs.formats import OURS
from ablation.runs.outcome import exit_from
from ablation.runs.run import Interval, RunConfig
from ablation.runs.store import next_attempt, read_records
from tests.support.invent import arm


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
        reconcile(exp_dir, "id", NoLauncher(), OURS, lambda _: None)
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
