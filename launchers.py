"""How are the processes of a run started, watched and ended?  The only file that does any of it.

    orchestrator ──► watcher (this file as a program) ──► torchrun ──► workers

torchrun starts each worker in a session of its own, so no process group reaches them all, and a
killed torchrun leaves them on the GPU. Hence a watcher between orchestrator and torchrun, one for
each run: a small process that adopts every orphan below it (PR_SET_CHILD_SUBREAPER), takes orders
through its standard input, and ends everything below it when it is told to, when torchrun ends,
or when that pipe closes because the orchestrator is gone, however it died. Its last act is
`exit.json`: exit code, who ended the run, and the machine time it took.
"""

import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

GRACE_S = 4.0  # from SIGTERM to SIGKILL; torchrun alone would wait 30 s for its workers
MARK = "AUX_HEADS_RUN"  # in the environment of every process of a run: the run's folder
CANNOT_START = "the launcher could not be started"  # begins ended_by where no process came to be


class Job(NamedTuple):  # not a dataclass: the watcher would import that for every run
    """One attempt at a run, as a command."""

    command: tuple[str, ...]
    env: dict[str, str]  # additions to the orchestrator's environment
    folder: Path  # receives output.log and exit.json; absolute


def boot_clock() -> str:
    """Names the monotonic clock of this boot of this machine, so that readings can be compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the host and roughly when it booted
        return f"{os.uname().nodename}-{round((time.time() - time.monotonic()) / 60)}"


# ---------------------------------------------------------------------------------------------
# The orchestrator's side


class LocalRun:
    """A run on this machine. `stop` asks, `poll` tells; neither blocks."""

    begun = True  # nothing queues here
    nodes = 1
    age_s = 0.0  # when it came to us: it was started just now

    def __init__(self, job: Job, program: Path):
        self.job = job
        self.start_s, self.clock = time.monotonic(), boot_clock()
        self.watcher = subprocess.Popen(
            [sys.executable, "-I", str(program), str(job.folder), *job.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # never written to: its end of file wakes `wait`
            stderr=subprocess.DEVNULL,
            env={**os.environ, **job.env, MARK: str(job.folder)},
            start_new_session=True,  # the terminal's Ctrl-C is the orchestrator's to handle
        )

    def stop(self, why: str) -> None:
        """Order the watcher to end the run; only the first order counts."""
        try:
            self.watcher.stdin.write(why.encode() + b"\n")
            self.watcher.stdin.close()
        except (BrokenPipeError, ValueError):
            pass  # it has ended, or was told already

    def poll(self) -> dict | None:
        """None while it runs, else the contents of exit.json."""
        if self.watcher.poll() is None:
            return None
        self.watcher.stdout.close()
        self.stop("ended")
        if exit := read_exit(self.job.folder):
            return exit
        end_marked(self.job.folder)  # the watcher was killed: do its work
        return exit_record(None, "itself", self.start_s)


class LocalLauncher:
    """Runs as processes of this machine. Each starts from a copy: later edits change nothing."""

    def __init__(self, code_dir: Path):
        self.program = code_dir.resolve() / Path(__file__).name
        self.program.write_bytes(Path(__file__).read_bytes())

    def start(self, job: Job) -> LocalRun:
        return LocalRun(job, self.program)

    def find(self, folder: Path) -> LocalRun | None:
        """A run of an earlier sitting that goes on: never here, its watcher ended it."""
        return None

    def settle(self, exp_dir: Path) -> None:
        settle(exp_dir)

    def wait(self, runs: list[LocalRun], timeout_s: float) -> None:
        """Return when one of the runs ends, at the latest after timeout_s."""
        running = {run.watcher.stdout: run for run in runs if not run.watcher.stdout.closed}
        for pipe in select.select([*running], [], [], timeout_s)[0]:
            running[pipe].watcher.wait()  # it closed the pipe by exiting


def read_exit(folder: Path) -> dict | None:
    try:
        value = json.loads((folder / "exit.json").read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def settle(folder: Path, patience_s: float = 2 * GRACE_S) -> None:
    """Make sure that nothing of an earlier orchestrator's runs below this folder lives on.

    Their watchers are given the time to end them and to write exit.json; what is left is killed.
    """
    deadline = time.monotonic() + patience_s
    while any(map(is_watcher, marked(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_marked(folder)


def is_watcher(process) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return Path(__file__).name in map(os.path.basename, process.cmdline()[:3])
    return False


def marked(folder: Path) -> list:
    """Living processes of runs in or below this folder, found by the mark in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            ours = mark and Path(mark).is_relative_to(folder)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile
    return found


def end_marked(folder: Path) -> None:
    import psutil

    while processes := marked(folder):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------
# The watcher's side


def watch(folder: Path, command: list[str], job: str = "") -> int:
    """Run the command to its end, or to the first order; leave nothing behind; write exit.json.

    With a job, orders do not come through standard input but as SIGTERM, with the reason in
    order.json, and the attempt has to be claimed first: only one job may ever run it.
    """
    start_s = time.monotonic()
    if job and not claim(folder, job):
        return 0
    limit_s, limit_why = limit_of(folder) if job else (None, "")
    finish = functools.partial(write_exit, folder, start_s=start_s, job=job)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # become the parent of every orphan below
    ask_for_sigterm = functools.partial(prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    # Handlers, not SIG_IGN: an ignored signal would stay ignored in the trainer.
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    with open(folder / "output.log", "ab") as log:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=ask_for_sigterm,  # should this watcher be killed
            )
        except OSError as error:
            log.write(f"cannot start {command[0]}: error: {error}\n".encode())
            finish(127, "itself")
            return 0

    ended_by = "itself"
    while child.poll() is None and ended_by == "itself":
        left_s = limit_s and max(0.0, start_s + limit_s - time.monotonic())
        ready, _, _ = select.select([wake] if job else [sys.stdin, wake], [], [], left_s)
        if not ready:
            ended_by = limit_why
        elif sys.stdin in ready:
            ended_by = os.read(0, 64).decode().strip() or "the orchestrator died"
        elif {signal.SIGTERM, signal.SIGINT} & set(os.read(wake, 64)):
            ended_by = read_order(folder) or A_SIGNAL
    end_descendants(child, 0.0 if ended_by == "itself" else GRACE_S)
    finish(child.returncode, ended_by)
    return 0


A_SIGNAL = "a signal to the watcher"


def claim(folder: Path, job: str) -> bool:
    """True for the first job that asks, and only while the attempt has no result."""
    mine = folder / f".claim.{job}"
    mine.write_text(json.dumps({"job": job, "host": os.uname().nodename}) + "\n")
    try:
        os.link(mine, folder / "claim.json")  # atomic on shared file systems too
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return not (folder / "result.json").exists()


LATE_S = 30.0  # so much later than the orchestrator, which can say more


def limit_of(folder: Path) -> tuple[float | None, str]:
    """How long a job may take, and why no longer, should its orchestrator be gone."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return float(config["limit_s"]) + LATE_S, str(config["limit_why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def read_order(folder: Path) -> str:
    """Why a job was told to stop; empty when nobody of ours told it."""
    try:
        return str(json.loads((folder / "order.json").read_bytes())["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None)


def prctl(option: int, value: int) -> None:
    """Linux's process control; elsewhere nothing happens."""
    if sys.platform == "linux":
        LIBC.prctl(option, int(value), 0, 0, 0)


def end_descendants(child: subprocess.Popen, grace_s: float) -> None:
    """SIGTERM to torchrun, which passes it on; after grace_s SIGKILL to all that is still there."""
    if nothing_below(child):
        return
    import psutil

    def living():
        below = psutil.Process().children(recursive=True)
        return [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    orphans_elsewhere = living() if grace_s else []  # where orphans are not adopted
    if grace_s:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    while processes := {*living(), *(p for p in orphans_elsewhere if p.is_running())}:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.poll()
        psutil.wait_procs(processes, timeout=0.2)
        orphans_elsewhere = []
    child.wait()


def nothing_below(child: subprocess.Popen) -> bool:
    """The usual end, known at once: the child has ended and left no orphans to this process."""
    if child.poll() is None or sys.platform != "linux":
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def exit_record(
    returncode: int | None, ended_by: str, start_s: float, job: str = "", nodes: int = 1
) -> dict:
    return {
        "returncode": returncode,
        "ended_by": ended_by,
        "clock": f"job {job}" if job else boot_clock(),  # each job is paid for on its own
        "start_s": start_s,
        "end_s": time.monotonic(),
        "nodes": nodes,
    }


def write_exit(
    folder: Path, returncode: int | None, ended_by: str, start_s: float, job: str
) -> None:
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) if job else 1
    write_whole(folder / "exit.json", exit_record(returncode, ended_by, start_s, job, nodes))


def write_whole(path: Path, value: dict) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    if sys.argv[1] == "--job":
        sys.exit(watch(Path(sys.argv[2]), sys.argv[3:], os.environ["SLURM_JOB_ID"]))
    sys.exit(watch(Path(sys.argv[1]), sys.argv[2:]))
