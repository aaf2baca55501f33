"""How are runs spread over a Slurm cluster?  The same launcher, with a job in place of a process.

    orchestrator ──sbatch──► job script ──► watcher ──► torchrun ──► workers

Each attempt is one job, named after its folder, so that an orchestrator that died finds its jobs
again without having kept anything. Inside the job the same watcher as on one machine ends what has
to end and writes exit.json; a run is judged by that file and its log. Slurm's word is taken for
why a job ended that could not write it, and for why a run failed: where Slurm ends a job (its node
is lost, somebody cancels it), the trainer may get the signal first, which looks like its own crash.
The first job to write `claim.json` owns the attempt: a requeued job and its orphan, or a job that
was submitted twice, cannot both run it.

Files may become visible late on a shared file system: after a job has left the queue its exit.json
is waited for. Machine time is each job's own: its allocated time, on each of its nodes, however
many jobs share a node.
"""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ablation.execute import environment, watcher
from ablation.execute.command import ONE_MACHINE
from ablation.execute.launcher import UNRECORDED, CannotStart, Command, exit_of, logged_s
from ablation.execute.watcher import A_SIGNAL, read_object, read_order
from ablation.runs.outcome import Exit
from ablation.runs.run import Interval
from ablation.runs.store import Attempt

# Times in seconds, all chosen; none is waited for where Slurm and its disk answer at once.
POLL_S = 1.0  # between two questions to Slurm
ANSWER_S = 60.0  # until a command of Slurm is held to be without an answer
PATIENCE_S, RETRY_S = 60.0, 3.0  # with a controller that does not answer: in all, between two tries
VISIBLE_S = 30.0  # how long a file may take to show up here after its job has ended
WORD_S = 360.0  # how long Slurm may call a job alive whose run has failed: SlurmdTimeout is 300 s
TRANSIENT = re.compile(  # words of a controller that may answer yet; a refusal names no connection
    r"timed ?out|time-?out|does not answer|[Uu]nable to contact|[Ss]ocket|onnect|temporarily"
    r"|Zero Bytes|standby"
)
ENDED_AS = {  # Slurm's states of a job that is over, and who ended it; in any other it lives
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "CANCELLED": "it was cancelled in Slurm",
    "PREEMPTED": "Slurm preempted it",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "COMPLETED": "",  # nobody but the run itself
    "FAILED": "",
    "OUT_OF_MEMORY": "",
    "REVOKED": "",
}
UNFIT = {  # options of sbatch under which attempts are not what they are taken for
    "--array": "an attempt is one job",
    "--wait": "sbatch would not return",
    "--test-only": "nothing would be submitted",
    "--wrap": "the job's script is ours",
    "--clusters": "set SLURM_CLUSTERS, which squeue and scancel read too",
}
UNFIT |= {"-a": UNFIT["--array"], "-W": UNFIT["--wait"], "-M": UNFIT["--clusters"]}
ENDED = "its job was ended"  # the watcher was told to stop, and nobody says by whom


def job_name(folder: Path) -> str:
    """An attempt's own name in Slurm: made from its folder, which is unique."""
    return "ablation-" + hashlib.sha256(str(folder).encode()).hexdigest()[:20]


def slurm(*command: str) -> str:
    """What a Slurm command prints. Raises OSError when it fails or its controller is silent."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_S,
            env=for_slurm(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} does not answer") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise OSError(f"{command[0]}: {said.removeprefix(f'{command[0]}: ')}")
    return done.stdout


def for_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands; those that look ask the cluster that jobs go to."""
    env = environment.clean(environ)
    if "SBATCH_CLUSTERS" in env:
        env["SLURM_CLUSTERS"] = env["SBATCH_CLUSTERS"]
    return env


def job_script(command: Command, program: Path, nodes: int, workers: int) -> str:
    """The shell script of a job. On several nodes the torchruns meet at the first, where a job's
    script runs. The CPU threads of a node's share are divided among its workers."""
    folder, words = command.folder, [shlex.quote(word) for word in command.words]
    if nodes > 1:
        port = 20000 + int(job_name(folder)[-8:], 16) % 20000
        meeting = f"--rdzv_backend=c10d --rdzv_id={job_name(folder)} --nnodes={nodes}"
        meeting += f' --rdzv_endpoint="$(hostname):{port}"'
        first = words.index(ONE_MACHINE[0])
        words[first : first + len(ONE_MACHINE)] = [meeting]
        words = ["srun", "--ntasks-per-node=1", *words]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in command.env.items()]
    watcher = shlex.join([sys.executable, "-I", str(program), "--job", str(folder)])
    threads = f"threads=$((${{SLURM_CPUS_ON_NODE:-1}} / {workers}))"
    exports.append("export OMP_NUM_THREADS=$((threads > 1 ? threads : 1))")
    place = [f"cd {shlex.quote(str(command.cwd))}"] if command.cwd else []
    start = f"exec {watcher} {' '.join(words)}"
    return "\n".join(["#!/bin/sh", threads, *exports, *place, start, ""])


@dataclass
class SlurmHandle:
    """An attempt as a job. Its clock starts when the job does: time in the queue costs nothing."""

    folder: Path  # the attempt's
    job_id: str  # of the job that was submitted
    launcher: "SlurmLauncher"
    ended_s: float | None = None  # when it was first seen to have ended
    cancelled_s: float | None = None  # when it was last told to end
    facts: dict[str, str] = field(default_factory=dict)  # what Slurm last told of it
    asked_s: float = -1e9  # when

    @property
    def clock(self) -> str:
        return f"job {self.job_id}"

    @property
    def ran_as(self) -> str:
        """The id of the job that claimed the attempt, which may be another than was submitted."""
        return claimed_by(self.folder) or self.job_id

    @property
    def started(self) -> bool:
        return (self.folder / "claim.json").exists()

    @property
    def nodes(self) -> int:
        return self.launcher.nodes

    @property
    def age_s(self) -> float:
        """By the clocks of this host and of the shared disk, since the job claimed the attempt."""
        with contextlib.suppress(FileNotFoundError):
            return max(0.0, time.time() - (self.folder / "claim.json").stat().st_mtime)
        return 0.0

    def stop(self, why: str) -> None:
        """Write down why, then cancel: the watcher ends the run, with this reason in exit.json."""
        with contextlib.suppress(OSError):  # a full disk does not keep a job running
            watcher.write_whole(self.folder / "order.json", {"why": why})
        self._cancel()

    def _cancel(self) -> None:
        self.cancelled_s = time.monotonic()
        with contextlib.suppress(OSError):  # then it is told again
            slurm("scancel", *(self.launcher.jobs_of(self.folder) or [self.job_id]))

    def poll(self) -> Exit | None:
        """None while it runs, else what exit.json says, or what Slurm knows in its place.

        A submission whose answer came too late may have become a second job: the attempt lives as
        long as one of its name does.
        """
        exit = exit_of(self.folder)
        in_queue = bool(self.launcher.jobs_of(self.folder))
        if exit is not None:
            return exit if is_of_the_run(exit) else self._by_its_file(exit, in_queue)
        if not in_queue:
            return self._after_the_queue()
        self._in_queue()
        return None

    def _in_queue(self) -> None:
        """The job waits or runs. An order to end that Slurm may not have taken is given again."""
        self.ended_s = None
        if self.cancelled_s is not None and time.monotonic() - self.cancelled_s > RETRY_S:
            self._cancel()

    def _by_its_file(self, exit: Exit, in_queue: bool) -> Exit | None:
        """The watcher saw a failure that Slurm may have caused: its word for that is waited for."""
        state, _ = self._ask()
        if not reason_of(self.folder, state) and state not in ENDED_AS:
            lives = in_queue or bool(state)
            if self._may_come(WORD_S if lives else VISIBLE_S):
                return None
        return self._explained(exit, state)

    def _after_the_queue(self) -> Exit | None:
        """The job left the queue without an exit.json that can be seen: Slurm's state of it in its
        place. A state that names nobody, a failure to start included, is the run's own crash."""
        state, ran_s = self._ask()
        over = state in ENDED_AS
        never_ran = over and not self.started and not ran_s
        if not never_ran and self._may_come(WORD_S if state and not over else VISIBLE_S):
            return None
        why = reason_of(self.folder, state)
        if not why:
            self._tell(state)
        now = time.monotonic()
        clock = f"job {self.ran_as}"
        return Exit(None, why or "itself", clock, now - ran_s, now, self.nodes)

    def _may_come(self, patience_s: float) -> bool:
        """Whether what is missing, a file or Slurm's word, may still come: for so long after the
        job was first seen to have ended."""
        self.ended_s = self.ended_s or time.monotonic()
        if time.monotonic() - self.ended_s >= patience_s:
            return False
        os.listdir(self.folder)  # makes a shared file system look again
        return True

    def _ask(self) -> tuple[str, float]:
        """Slurm's state of the job, as of a moment ago, and how long it ran, seconds."""
        if time.monotonic() - self.asked_s > POLL_S:
            self.facts, self.asked_s = job_facts(self.ran_as) or self.facts, time.monotonic()
        return state_of(self.facts)

    def _explained(self, exit: Exit, state: str) -> Exit:
        """What the watcher saw, with what is known of why the job ended."""
        if state == "OUT_OF_MEMORY":
            self._note(watcher.KILLED_FOR_MEMORY)
        seen = ENDED if exit.ended_by == A_SIGNAL else exit.ended_by
        return replace(exit, ended_by=reason_of(self.folder, state) or seen)

    def _tell(self, state: str) -> None:
        """Say in the run's log what is known of a job that ended without a word."""
        said = b""
        with (
            contextlib.suppress(OSError),
            open(self.folder / "slurm.log", "rb", opener=watcher.no_link) as log,
        ):
            log.seek(max(0, log.seek(0, os.SEEK_END) - 500))
            said = log.read(500)
        self._note(f"job {self.ran_as} ended as {state or 'unknown'}")
        self._note(said.decode(errors="replace"))

    def _note(self, line: str) -> None:
        with (  # where the log takes nothing more, the verdict stands without it
            contextlib.suppress(OSError),
            open(self.folder / "output.log", "ab", opener=watcher.no_link) as log,
        ):
            log.write(line.encode() + b"\n")


def is_of_the_run(exit: Exit) -> bool:
    """Whether nobody but the run itself, or we, can have ended it so; else Slurm is asked."""
    if exit.ended_by == "itself":
        return exit.returncode in (0, 2, 127)
    return exit.ended_by != A_SIGNAL


def reason_of(folder: Path, state: str) -> str:
    """Why a job ended: our own order, or Slurm's reason; empty where only the run can know."""
    return read_order(folder) or ENDED_AS.get(state, "")


def job_facts(job_id: str) -> dict[str, str]:
    """What scontrol still knows of a job; nothing once Slurm has forgotten it."""
    try:
        words = slurm("scontrol", "--oneliner", "show", "job", job_id).split()
    except OSError:
        return {}
    facts = [word.split("=", 1) for word in words if "=" in word]
    return dict(reversed(facts))  # what comes first is Slurm's; a path of ours may look alike


def state_of(facts: Mapping[str, str]) -> tuple[str, float]:
    """Slurm's state of a job, empty where it knows none; and how long it ran, seconds."""
    return facts.get("JobState", "").split("+")[0], run_time_s(facts.get("RunTime", ""))


def job_id_in_memory(folder: Path) -> str:
    """The job of an attempt, ended or not, as long as Slurm knows its name; empty once it has
    forgotten it. Of several, the one that ran the attempt. Ids are given again, names never."""
    named = f"--name={job_name(folder)}"
    try:
        ids = slurm("squeue", "--noheader", "--me", "--states=all", named, "--format=%i").split()
    except OSError:
        return ""
    claimed = claimed_by(folder)
    return claimed if claimed in ids else (ids or [""])[-1]


def claimed_by(folder: Path) -> str:
    """The job that runs or ran an attempt; empty where none has started."""
    job_id = (read_object(folder / "claim.json") or {}).get("job")
    return job_id if isinstance(job_id, str) and job_id.isdecimal() else ""


def job_id_of(printed: str) -> str:
    """What sbatch --parsable prints: a number, on several clusters also a name; a site's own words
    may stand before it. Raises OSError when it names no job."""
    found = re.findall(r"^(\d+)(?:;.*)?$", printed, re.MULTILINE)
    if not found:
        raise OSError(f"sbatch names no job: {' '.join(printed.split())[:200]!r}")
    return found[-1]


def run_time_s(text: str) -> float:
    """Seconds of Slurm's [days-]hours:minutes:seconds."""
    days, _, clock = text.rpartition("-")
    try:
        hours, minutes, seconds = map(int, clock.split(":"))
        return 86400.0 * int(days or 0) + 3600 * hours + 60 * minutes + seconds
    except ValueError:
        return 0.0


@dataclass
class SlurmLauncher:
    """Attempts as jobs. `arguments` go to sbatch as they are: --partition, --account, ..."""

    outlived = True  # a job goes on by itself, and is found again
    code_dir: Path
    arguments: tuple[str, ...] = ()
    gpus_per_node: int = 0  # of one run
    nodes: int = 1  # of one run
    workers: int = 1  # processes of one run on each node
    queue: dict[str, str] = field(default_factory=dict)  # job id -> name
    asked_s: float = -1e9  # when the queue was last looked at
    born_s: float = field(default_factory=time.monotonic)  # since when ended jobs are waited for

    def __post_init__(self):
        if shutil.which("sbatch") is None:
            raise ValueError("--launcher slurm: there is no sbatch here; use --launcher local")
        for word in self.arguments:
            option = word.partition("=")[0] if word.startswith("--") else word[:2]
            if option in UNFIT:
                raise ValueError(f"--slurm_args {word}: {UNFIT[option]}; leave it out")
        self.program = self.code_dir.resolve() / Path(watcher.__file__).name
        watcher.replace_file(self.program, Path(watcher.__file__).read_bytes())

    def start(self, command: Command) -> SlurmHandle:
        """Raises CannotStart in sbatch's own words where it says no, and OSError where after
        PATIENCE_S nobody knows whether the job was accepted."""
        folder, deadline = command.folder, time.monotonic() + PATIENCE_S
        script = job_script(command, self.program, self.nodes, self.workers)
        watcher.replace_file(folder / "job.sh", script.encode())
        while True:
            try:
                printed = slurm(*self._submission(folder))
                break
            except OSError as error:
                if not TRANSIENT.search(str(error)):
                    raise CannotStart(str(error)) from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
                self.settle(folder)
                if found := self.find(folder):  # it was accepted all the same
                    return found
        job_id = job_id_of(printed)  # or nobody knows what was accepted
        self.queue[job_id] = job_name(folder)
        return SlurmHandle(folder, job_id, self)

    def _submission(self, folder: Path) -> tuple[str, ...]:
        """The command that submits an attempt: what is offered, a person's own options, and what
        is needed after those, since the last one counts."""
        offered = [f"--export=ALL,{watcher.MARK}={folder}", f"--comment={folder}"]
        if self.gpus_per_node:
            offered.append(f"--gres=gpu:{self.gpus_per_node}")
        needed = [
            f"--job-name={job_name(folder)}",
            f"--output={folder}/slurm.log",
            f"--nodes={self.nodes}",
            "--no-requeue",
            "--open-mode=append",
        ]
        return "sbatch", "--parsable", *offered, *self.arguments, *needed, f"{folder}/job.sh"

    def find(self, folder: Path) -> SlurmHandle | None:
        """The job of an attempt that an earlier orchestrator submitted, if it still is one."""
        ids = self.jobs_of(folder)
        return SlurmHandle(folder, ids[0], self) if ids else None

    def end_of(self, folder: Path) -> Exit | None:
        """As `poll` would have told, while Slurm remembers the job: for some minutes."""
        exit = exit_of(folder)
        if exit is not None and is_of_the_run(exit):
            return exit
        job_id = job_id_in_memory(folder)
        handle = SlurmHandle(folder, job_id, self, ended_s=self.born_s)
        if not job_id or handle._ask()[0] not in ENDED_AS:  # forgotten: what the watcher saw counts
            return None if exit is None else handle._explained(exit, state="")
        while (exit := handle.poll()) is None:
            time.sleep(0.1)
        return exit

    def settle(self, exp_dir: Path) -> None:
        """Look at the queue, and end nothing: jobs go on without an orchestrator.

        Raises OSError when the queue cannot be seen: no answer does not mean that there is no job.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not self.ask():
            if time.monotonic() > deadline:
                raise OSError("squeue does not answer, so it is not known which jobs still run")
            time.sleep(RETRY_S)

    def ask(self) -> bool:
        """Look at the queue again; False where the controller does not answer: nothing changes."""
        self.asked_s = time.monotonic()
        try:
            lines = slurm("squeue", "--noheader", "--me", "--format=%i %j").splitlines()
        except OSError:
            return False
        self.queue = {job_id: name for job_id, _, name in (line.partition(" ") for line in lines)}
        return True

    def jobs_of(self, folder: Path) -> list[str]:
        """The jobs of an attempt that wait or run: one, or none; of which one can claim it."""
        return [job_id for job_id, name in self.queue.items() if name == job_name(folder)]

    def wait(self, handles: Sequence[SlurmHandle], timeout_s: float) -> None:
        time.sleep(timeout_s)
        if time.monotonic() - self.asked_s > POLL_S:
            self.ask()


# ---------------------------------------------------------------------------------------------
# What an attempt costs: the allocated time of its job, on each node, from its claim on

NEVER_STARTED = "its job left the queue before it began, and Slurm does not know why any more"


def clock_of(attempt: Attempt) -> str:
    """A clock of the job's own. Its id may have been given again meanwhile; this name never is."""
    return f"job {attempt.run_name} {attempt.number}"


def interval_so_far(attempt: Attempt, config: Mapping) -> Interval | None:
    """By the clocks of this host and of the shared disk."""
    with contextlib.suppress(FileNotFoundError):
        age_s = max(0.0, time.time() - os.lstat(attempt.folder / "claim.json").st_mtime)
        return Interval(clock_of(attempt), 0.0, age_s, int(config["machine"]["nodes"]))
    return None


def machine_interval(attempt: Attempt, config: Mapping) -> Interval:
    seconds = logged_s(attempt.folder / "claim.json", float(config["limit_s"]))
    return Interval(clock_of(attempt), 0.0, seconds, int(config["machine"]["nodes"]))


def unrecorded(folder: Path) -> str:
    return UNRECORDED if (folder / "claim.json").exists() else NEVER_STARTED
