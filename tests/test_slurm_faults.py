"""A Slurm that fails in the ways a real one does, told by a stand-in for its commands."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ablation.cli import exit_codes
from ablation.execute import closing, slurm, status, watcher
from ablation.execute.launcher import UNRECORDED, CannotStart, Command, exit_of
from ablation.execute.watcher import A_SIGNAL
from ablation.runs.formats import OURS
from ablation.runs.log import LogReader, read_log
from ablation.runs.outcome import judge
from ablation.runs.run import RunConfig, machine_seconds
from ablation.runs.store import Attempt
from tests.support.invent import arm

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
RUN = RunConfig(1, arm("aux_6", 6), 0, 1000, 10)


class Commands:
    """What sbatch, squeue, scontrol and scancel answer; `failing` names those that do not."""

    def __init__(self):
        self.queue, self.facts, self.failing, self.given = {}, "", {}, []
        self.known = {}  # jobs in Slurm's memory, ended ones too

    def __call__(self, *command):
        program = command[0]
        self.given.append(command)
        if self.failing.get(program, 0) > 0:
            self.failing[program] -= 1
            raise OSError(f"{program}: Socket timed out on send/recv operation")
        if program == "sbatch":
            name = next(word for word in command if word.startswith("--job-name="))
            self.queue[str(len(self.queue) + 1)] = name.removeprefix("--job-name=")
            self.known |= self.queue
            return f"{len(self.queue)}\n"
        if "--states=all" in command:
            return "".join(
                f"{job}\n" for job, name in self.known.items() if f"--name={name}" in command
            )
        if program == "squeue":
            return "".join(f"{job} {name}\n" for job, name in self.queue.items())
        return self.facts

    def count(self, program):
        return sum(command[0] == program for command in self.given)


@pytest.fixture
def commands(monkeypatch):
    fake = Commands()
    monkeypatch.setattr(slurm, "slurm", fake)
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/sbatch")
    monkeypatch.setattr(slurm, "RETRY_S", 0.01)
    monkeypatch.setattr(slurm, "POLL_S", 0.0)
    monkeypatch.setattr(slurm, "VISIBLE_S", 0.05)
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.3)
    return fake


@pytest.fixture
def launcher(commands, tmp_path):
    (tmp_path / "code").mkdir()
    return slurm.SlurmLauncher(tmp_path / "code")


@pytest.fixture
def run(launcher, tmp_path):
    (tmp_path / "attempt").mkdir()
    return launcher.start(Command(("true",), {}, tmp_path / "attempt"))


def leave_the_queue(commands, run):
    commands.queue.clear()
    run.launcher.ask()


def end_of(run):
    """What became of the attempt, as the orchestrator would judge it."""
    deadline = time.monotonic() + 10
    while (exit := run.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log = read_log(run.folder / "output.log", 10)
    return judge(RUN, 1, log, exit)


def test_a_queue_that_cannot_be_seen_is_not_an_empty_one(commands, launcher, run, tmp_path):
    commands.failing["squeue"] = 2
    launcher.queue = {}
    launcher.settle(tmp_path)
    assert launcher.find(run.folder).job_id == run.job_id
    commands.failing["squeue"] = 10**9
    with pytest.raises(OSError, match="squeue does not answer"):
        launcher.settle(tmp_path)


def test_a_submission_that_timed_out_is_tried_again(commands, launcher, tmp_path):
    commands.failing["sbatch"] = 2
    launcher.start(Command(("true",), {}, tmp_path))
    assert commands.count("sbatch") == 3
    assert len(commands.queue) == 1


def test_a_submission_that_timed_out_and_was_accepted_is_not_repeated(commands, launcher, tmp_path):
    commands.failing["sbatch"] = 1
    commands.queue["77"] = slurm.job_name(tmp_path)
    assert launcher.start(Command(("true",), {}, tmp_path)).job_id == "77"
    assert commands.count("sbatch") == 1


def test_of_two_jobs_of_one_attempt_the_one_that_claimed_it_is_followed(commands, run):
    """sbatch gave up, and the controller accepted its job all the same: after the second one."""
    commands.queue["2"] = commands.queue["1"]
    (run.folder / "claim.json").write_text(json.dumps({"job": "2", "host": "n0"}))
    commands.facts = "JobId=1 JobState=COMPLETED RunTime=00:00:01"
    del commands.queue["1"]  # it found the attempt claimed
    run.launcher.ask()
    for _ in range(3):
        assert run.poll() is None
        time.sleep(slurm.VISIBLE_S)
    run.stop("the operator stopped it")
    assert commands.given[-1] == ("scancel", "2")
    leave_the_queue(commands, run)
    commands.facts = "JobId=2 JobState=CANCELLED RunTime=00:00:07"
    assert end_of(run).reason.startswith("the operator stopped it")
    assert commands.given[-1][-1] == "2"  # and it was asked about


def test_a_submission_that_cannot_work_is_an_error_at_once(launcher, tmp_path, monkeypatch):
    def refuse(*command):
        raise OSError("sbatch: error: invalid partition specified: gpu")

    monkeypatch.setattr(slurm, "slurm", refuse)
    with pytest.raises(CannotStart, match="invalid partition"):
        launcher.start(Command(("true",), {}, tmp_path))


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("Batch job submission failed: Invalid account; contact help@site.example", True),
        ("Batch job submission failed: Requested node configuration is not available", True),
        ("Batch job submission failed: Job violates accounting/QOS policy (time limit)", True),
        ("unrecognized option '--patrition=gpu'", True),
        (
            "Batch job submission failed: Unable to contact slurm controller (connect failure)",
            False,
        ),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
        ("Batch job submission failed: Zero Bytes were transmitted or received", False),
        ("Batch job submission failed: Slurm backup controller in standby mode", False),
    ],
)
def test_a_controller_that_does_not_answer_has_not_refused(
    commands, launcher, tmp_path, monkeypatch, words, refused
):
    def fail(*command):
        if command[0] == "sbatch":
            raise OSError(f"sbatch: error: {words}")
        return commands(*command)

    monkeypatch.setattr(slurm, "slurm", fail)
    with pytest.raises(OSError, match="sbatch: error") as caught:
        launcher.start(Command(("true",), {}, tmp_path))
    assert isinstance(caught.value, CannotStart) == refused


def test_nothing_is_submitted_again_before_the_queue_was_seen(commands, launcher, tmp_path):
    commands.failing |= {"sbatch": 1, "squeue": 2}
    commands.queue["77"] = slurm.job_name(tmp_path)
    assert launcher.start(Command(("true",), {}, tmp_path)).job_id == "77"
    assert (commands.count("sbatch"), commands.count("squeue")) == (1, 3)


def test_a_job_is_cancelled_although_the_reason_cannot_be_written(commands, run, monkeypatch):
    def full(path, value):
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(watcher, "write_whole", full)
    run.stop("the operator stopped it")
    assert commands.count("scancel") == 1


def test_a_refusal_of_sbatch_ends_the_sitting_at_once_in_its_own_words(tmp_path):
    programs = {"sbatch": "echo 'sbatch: error: invalid partition: gpu' >&2; exit 1", "squeue": ""}
    for name, what in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{what}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "shards").mkdir()
    for kind in ("train", "val"):
        (tmp_path / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    command = [sys.executable, ROOT / "run_aux.py", "--staged", "--profile", "mini", "--no_page"]
    command += ["--launcher", "slurm", "--num_gpus", "16", "--gpus_per_run", "1"]
    command += ["--train_script", SUPPORT / "fake_train.py", "--data_dir", "shards"]
    done = subprocess.run(
        [*map(str, command), "--exp_dir", "x"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == exit_codes.FAULT, done.stderr
    (stopped,) = [line for line in done.stdout.splitlines() if line.startswith("STOPPED")]
    words = "sbatch: error: invalid partition: gpu"
    assert f"screen_baseline/run_0: {watcher.CANNOT_START}: {words}" in stopped
    (record,) = (tmp_path / "x").rglob("result.json")  # one attempt, at one run
    assert json.loads(record.read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    "option",
    ["--array=1-3", "-a1-3", "--wait", "-W", "--test-only", "--wrap=sh", "--clusters=b", "-Mb"],
)
def test_options_of_sbatch_that_make_something_else_of_an_attempt_are_refused(
    launcher, tmp_path, option
):
    with pytest.raises(ValueError, match=f"--slurm_args {option}: .*; leave it out"):
        slurm.SlurmLauncher(tmp_path / "code", ("--partition=gpu", option))


def test_what_finds_a_job_again_is_not_a_person_s_to_change(commands, tmp_path):
    (tmp_path / "code").mkdir()
    asked = ("--job-name=mine", "--requeue", "--nodes=7", "--comment=project", "--qos=long")
    slurm.SlurmLauncher(tmp_path / "code", asked).start(Command(("true",), {}, tmp_path))
    (words,) = (command for command in commands.given if command[0] == "sbatch")
    last = dict(word.partition("=")[::2] for word in words)
    assert last["--job-name"] == slurm.job_name(tmp_path)
    assert last["--nodes"] == "1"
    assert words.index("--no-requeue") > words.index("--requeue")
    assert (last["--comment"], last["--qos"]) == ("project", "long")


def test_a_submission_that_names_no_job_may_have_been_accepted(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "slurm", lambda *_: "Welcome!")
    with pytest.raises(OSError, match="names no job") as caught:
        launcher.start(Command(("true",), {}, tmp_path))
    assert not isinstance(caught.value, CannotStart)  # so it is not held for certain that none runs


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("17\n", "17"),
        ("17;east\n", "17"),
        ("Welcome!\n3 projects\n17\n", "17"),
        ("Submitted batch job\n", None),
        ("", None),
    ],
)
def test_the_job_that_sbatch_names(printed, job):
    if job:
        assert slurm.job_id_of(printed) == job
    else:
        with pytest.raises(OSError, match="names no job"):
            slurm.job_id_of(printed)


def test_a_path_that_looks_like_slurm_s_own_words_says_nothing(monkeypatch):
    said = "JobId=1 JobState=RUNNING Comment=/x/a JobState=FAILED RunTime=9"
    monkeypatch.setattr(slurm, "slurm", lambda *_: said)
    assert slurm.job_facts("1")["JobState"] == "RUNNING"


def test_slurm_s_commands_get_an_environment_of_our_choice(tmp_path, monkeypatch):
    """A stand-in on the path prints what it was given."""
    (tmp_path / "squeue").write_text("#!/bin/sh\nenv\nprintf '\\344 in latin-1\\n'\ncat\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    given = {"SQUEUE_STATES": "CD", "SLURM_TIME_FORMAT": "%s", "SLURM_JOB_ID": "1", "LANG": "de_DE"}
    kept = {"SLURM_CONF": "/a", "SBATCH_ACCOUNT": "me", "SBATCH_CLUSTERS": "b"}
    for name, value in {**given, **kept}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    seen = slurm.slurm("squeue").splitlines()
    assert not [line for line in seen if line.partition("=")[0] in given]
    assert {"SLURM_CONF=/a", "SBATCH_ACCOUNT=me", "SLURM_CLUSTERS=b"} <= set(seen)
    assert "\ufffd in latin-1" in seen


def test_a_stop_that_failed_is_repeated(commands, run):
    commands.failing["scancel"] = 3
    run.stop("timeout")
    deadline = time.monotonic() + 10
    while commands.failing["scancel"] and time.monotonic() < deadline:
        assert run.poll() is None  # it is in the queue
        time.sleep(0.005)
    assert commands.count("scancel") >= 3
    leave_the_queue(commands, run)
    commands.facts = "JobId=1 JobState=CANCELLED RunTime=00:00:07"
    assert end_of(run).status == "timeout"


@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        ("FAILED", "crashed", "python: not found"),
        ("OUT_OF_MEMORY", "crashed", "OUT_OF_MEMORY"),
        ("COMPLETED", "crashed", "COMPLETED"),
        ("CANCELLED", "interrupted", "cancelled in Slurm"),
        ("NODE_FAIL", "interrupted", "its node failed"),
        ("PREEMPTED", "interrupted", "preempted"),
        ("TIMEOUT", "timeout", "time limit"),
    ],
)
def test_what_became_of_a_job_that_left_no_exit_file(commands, run, state, status, word):
    (run.folder / "slurm.log").write_text("sh: python: not found\n")
    (run.folder / "claim.json").write_text("{}")
    leave_the_queue(commands, run)
    commands.facts = f"JobId=1 JobState={state} RunTime=00:00:07 NumNodes=1"
    result = end_of(run)
    assert (result.status, round(result.wall_s)) == (status, 7)
    assert word in result.reason


def leave_exit(run, returncode, ended_by="itself"):
    exit = watcher.exit_record(returncode, ended_by, 0.0, "1")
    (run.folder / "exit.json").write_text(json.dumps(exit))


@pytest.mark.parametrize("returncode", [-1, -9, -15, 1, 143])
@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        ("NODE_FAIL", "interrupted", "its node failed"),
        ("CANCELLED", "interrupted", "cancelled in Slurm"),
        ("PREEMPTED", "interrupted", "preempted"),
        ("TIMEOUT", "timeout", "time limit"),
        ("COMPLETED", "crashed", ""),
        ("FAILED", "crashed", ""),
        ("OUT_OF_MEMORY", "crashed", "memory"),  # in the words of the log's reader
    ],
)
def test_a_trainer_that_got_the_signal_before_its_watcher_did(
    commands, run, monkeypatch, returncode, state, status, word
):
    """Slurm ends all processes of a job, and the watcher sees its run fail; Slurm says why, later:
    first the job still runs, then it is being cleaned up."""
    monkeypatch.setattr(slurm, "VISIBLE_S", 0.0)  # it is Slurm's word that is waited for
    leave_exit(run, returncode)
    said = []
    for state_now in ("RUNNING", "COMPLETING"):
        commands.facts = f"JobId=1 JobState={state_now} RunTime=00:00:07"
        said.append(run.poll())
    leave_the_queue(commands, run)
    said.append(run.poll())
    assert said == [None, None, None]
    commands.facts = f"JobId=1 JobState={state} RunTime=00:00:07"
    result = end_of(run)
    assert result.status == status
    assert word in result.reason


@pytest.mark.parametrize("answer", ["", "JobId=1 JobState=RUNNING"])
def test_a_failure_that_slurm_never_explains_is_the_run_s_own(commands, run, monkeypatch, answer):
    monkeypatch.setattr(slurm, "WORD_S", 0.1)
    leave_exit(run, 1)
    commands.facts = answer
    if not answer:
        leave_the_queue(commands, run)
    assert end_of(run).status == "crashed"


@pytest.mark.parametrize(("returncode", "ended_by"), [(0, "itself"), (2, "itself"), (-15, "stall")])
def test_what_only_the_run_or_we_can_have_done_is_known_at_once(
    commands, run, returncode, ended_by
):
    leave_exit(run, returncode, ended_by)
    assert run.poll().returncode == returncode
    assert not commands.count("scontrol")


def test_an_order_of_ours_explains_a_trainer_that_ended_first(commands, run):
    run.stop("the budget is spent")
    leave_exit(run, -15)
    leave_the_queue(commands, run)
    result = end_of(run)
    assert (result.status, "the budget is spent" in result.reason) == ("interrupted", True)


def test_a_job_that_slurm_forgot_is_a_crash_and_hence_tried_three_times_at_most(commands, run):
    leave_the_queue(commands, run)
    assert end_of(run).status == "crashed"


def test_a_job_cancelled_while_it_waited_costs_nothing_and_is_known_at_once(
    commands, run, monkeypatch
):
    monkeypatch.setattr(slurm, "VISIBLE_S", 1e9)
    leave_the_queue(commands, run)
    commands.facts = "JobId=1 JobState=CANCELLED RunTime=00:00:00"
    result = end_of(run)
    assert (result.status, result.wall_s < 0.1) == ("interrupted", True)


def test_a_file_that_becomes_visible_late_is_waited_for(commands, run, monkeypatch):
    monkeypatch.setattr(slurm, "VISIBLE_S", 1e9)
    leave_the_queue(commands, run)
    commands.facts = "JobId=1 JobState=COMPLETED RunTime=00:00:07"
    assert [run.poll(), run.poll()] == [None, None]
    leave_exit(run, 0)
    assert run.poll().returncode == 0


def test_a_signal_that_nobody_explains_is_an_interruption(commands, run):
    leave_the_queue(commands, run)
    leave_exit(run, -15, A_SIGNAL)
    assert end_of(run).reason.startswith(slurm.ENDED)


def test_a_job_whose_orchestrator_is_gone_keeps_to_its_limit(tmp_path):
    limits = {"limit_s": 0.5 - watcher.LATE_S, "limit_why": "the budget is spent"}
    (tmp_path / "config.json").write_text(json.dumps(limits))
    program = [sys.executable, "-I", watcher.__file__, "--job", str(tmp_path)]
    subprocess.run([*program, "sleep", "60"], env={"SLURM_JOB_ID": "9"}, timeout=20, check=True)
    exit = watcher.read_exit(tmp_path)
    assert exit["ended_by"] == "the budget is spent"
    assert judge(RUN, 1, LogReader(10), exit_of(tmp_path)).status == "interrupted"


# ---------------------------------------------------------------------------------------------
# What a job has cost, without its exit file


@pytest.fixture
def attempt(tmp_path):
    """An attempt that was submitted 100 s ago and claimed 40 s ago, and last logged 10 s ago."""
    folder = tmp_path / "aux_6" / "run_0"
    folder.mkdir(parents=True)
    now = time.time()
    config = {
        "run": asdict(RUN),
        "attempt": 1,
        "limit_s": 1000.0,
        "machine": {"launcher": "slurm", "nodes": 2},
        "launched": {"clock": watcher.boot_clock(), "monotonic_s": time.monotonic() - 100},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name, age_s in (("config.json", 100), ("claim.json", 40), ("output.log", 10)):
        (folder / name).touch()
        os.utime(folder / name, (now - age_s, now - age_s))
    return folder


def test_a_job_is_paid_for_from_its_claim_to_its_last_sign_of_life_on_each_node(attempt):
    r = closing.close_attempt(Attempt(RUN.name, 1, attempt), "id", None, OURS)
    assert r.status == "interrupted"
    assert machine_seconds([r]) == pytest.approx(2 * 30, abs=1)
    assert r.clock != watcher.boot_clock()  # others beside it are paid for on their own


def test_a_job_that_still_waits_in_the_queue_has_cost_nothing(attempt):
    found = status.read_in_flight(Attempt(RUN.name, 1, attempt), OURS)
    assert machine_seconds((), [found["interval"]]) == pytest.approx(2 * 40, abs=1)
    (attempt / "claim.json").unlink()
    assert status.read_in_flight(Attempt(RUN.name, 1, attempt), OURS)["interval"] is None
    assert closing.close_attempt(Attempt(RUN.name, 1, attempt), "id", None, OURS).wall_s == 0


# ---------------------------------------------------------------------------------------------
# What ended while nobody looked


@pytest.fixture
def unseen(launcher, attempt):
    """A job that was submitted and claimed, and whose orchestrator died."""
    run = launcher.start(Command(("true",), {}, attempt))
    claim, times = attempt / "claim.json", os.stat(attempt / "claim.json")
    claim.write_text(json.dumps({"job": run.job_id, "host": "n0"}))
    os.utime(claim, ns=(times.st_atime_ns, times.st_mtime_ns))
    return run


def judged(attempt, exit):
    r = closing.close_attempt(Attempt(RUN.name, 1, attempt), "id", exit, OURS)
    return r.status, r.reason, round(r.wall_s)


@pytest.mark.parametrize(
    "left", [None, (0, "itself"), (1, "itself"), (-15, A_SIGNAL), (1, "stall")]
)
@pytest.mark.parametrize("order", ["", "the budget is spent"])
@pytest.mark.parametrize(
    "state",
    sorted(slurm.ENDED_AS.keys() - {"REVOKED"}),
)
def test_a_job_that_ended_unseen_is_judged_as_if_it_had_been_watched(
    commands, unseen, attempt, state, order, left
):
    if left:
        leave_exit(unseen, *left)
    if order:
        watcher.write_whole(attempt / "order.json", {"why": order})
    leave_the_queue(commands, unseen)
    commands.facts = f"JobId=1 JobState={state} RunTime=00:00:07"
    later = judged(attempt, slurm.SlurmLauncher(attempt.parents[1] / "code").end_of(attempt))
    (attempt / "output.log").write_bytes(b"")  # without what was explained there
    deadline = time.monotonic() + 10
    while (exit := unseen.poll()) is None:
        assert time.monotonic() < deadline
    assert later == judged(attempt, exit)


@pytest.mark.parametrize(
    ("claimed", "order", "words"),
    [
        (True, "", UNRECORDED),
        (False, "", slurm.NEVER_STARTED),
        (True, "the operator stopped it", "the operator stopped it"),
    ],
)
def test_of_a_job_that_slurm_forgot_only_what_is_known_is_told(
    commands, unseen, attempt, claimed, order, words
):
    if not claimed:
        (attempt / "claim.json").unlink()
    if order:
        watcher.write_whole(attempt / "order.json", {"why": order})
    commands.known.clear()
    commands.facts = "JobId=1 JobState=COMPLETED RunTime=00:00:07"  # its number was given again
    leave_the_queue(commands, unseen)
    status, reason, wall_s = judged(attempt, unseen.launcher.end_of(attempt))
    assert (status, reason) == ("interrupted", words)
    assert bool(wall_s) == claimed


def test_a_job_cancelled_unseen_before_it_began_is_told_as_that(commands, unseen, attempt):
    (attempt / "claim.json").unlink()
    commands.facts = "JobId=1 JobState=CANCELLED RunTime=00:00:00"
    leave_the_queue(commands, unseen)
    told = judged(attempt, unseen.launcher.end_of(attempt))
    assert told == ("interrupted", "it was cancelled in Slurm", 0)


def test_an_exit_file_that_shows_up_late_counts_unseen_too(commands, unseen, attempt, monkeypatch):
    monkeypatch.setattr(slurm, "VISIBLE_S", 1e9)
    monkeypatch.setattr(slurm.time, "sleep", lambda _: leave_exit(unseen, 0))
    commands.facts = "JobId=1 JobState=COMPLETED RunTime=00:00:07"
    leave_the_queue(commands, unseen)
    assert unseen.launcher.end_of(attempt).returncode == 0
