"""How are the processes of a run started, watched and ended?  The only file that does any of it.

    orchestrator ──► guard ──► watcher (both are this file as a program) ──► torchrun ──► workers

torchrun starts each worker in a session of its own, so no process group reaches them all, and a
killed torchrun leaves them on the GPU. Hence a watcher between orchestrator and torchrun, one for
each run: a small process that adopts every orphan below it (PR_SET_CHILD_SUBREAPER), takes orders
through its standard input, and ends everything below it when it is told to, when the run's time is
up, when torchrun ends, or when that pipe closes because the orchestrator is gone, however it died.
Its last act is `exit.json`: exit code, who ended the run, and the machine time it took. Room for it
is taken on the disk before the run begins, which may fill it.

A watcher may be killed, stopped or hang, too. So it has a parent that does nothing but wait for
it: the guard adopts what a killed watcher leaves and ends it, and ends a watcher that does not do
in time what it should. Should the guard be killed, the kernel tells the watcher (PR_SET_PDEATHSIG),
which then ends the run. The orchestrator itself, as long as it lives, finds what is left of a run
by a mark in the environment of its processes.
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

# All chosen: a trainer may take a second or two to save, and a busy machine as long to notice.
GRACE_S = 4.0  # from SIGTERM to SIGKILL; torchrun alone would wait 30 s for its workers
MARGIN_S = 2.0  # beyond what is due; then the guard acts for the watcher, the orchestrator for both
UNKILLABLE_S = 10.0  # a process that SIGKILL did not end by then hangs in the kernel
TO_END = {signal.SIGTERM, signal.SIGINT}  # signals that order a guard or a watcher to end its run
MARK = "ABLATION_RUN"  # in the environment of every process of a run: the run's folder
CANNOT_START = "the launcher could not be started"  # what ended a run that never started
NO_SPACE = "no space left on the disk"  # what ended a run whose log could not grow
FAILED = "its watcher failed"
OF_THE_MACHINE = (CANNOT_START, NO_SPACE, FAILED)  # faults that the next run would meet as well


def boot_clock() -> str:
    """Names the monotonic clock of this boot of this machine, so that readings can be compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the host and roughly when it booted
        return f"{os.uname().nodename}-{round((time.time() - time.monotonic()) / 60)}"


def marked(folder: Path) -> list[int]:
    """Living processes of runs in or below this folder, found by the mark in their environment."""
    return [
        process
        for process in parents()
        if (mark := mark_of(process)) and Path(mark).is_relative_to(folder)
    ]


def kill_marked(folder: Path) -> list[int]:
    """The living processes of runs in or below this folder, to which SIGKILL was sent."""
    processes = [process for process in marked(folder) if process != os.getpid()]
    kill(processes)
    return processes


# ---------------------------------------------------------------------------------------------
# Which processes there are. With the standard library alone: the watcher runs without packages.


def parents() -> dict[int, int]:
    """The parent of each living process, by their ids."""
    if sys.platform != "linux":
        rows = (row.split() for row in listed_by_ps("-A", "-o", "pid=,ppid=,state="))
        return {int(row[0]): int(row[1]) for row in rows if not row[2].startswith("Z")}
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = of_process(name, "stat").rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                found[int(name)] = int(parent)
    return found


def listed_by_ps(*options: str) -> list[str]:
    """What ps lists where there is no /proc; itself left out."""
    ps = subprocess.Popen(("ps", *options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    rows = ps.communicate()[0].decode(errors="replace").splitlines()
    return [row for row in rows if row.split()[:1] != [str(ps.pid)]]


def of_process(process: int | str, file: str) -> bytes:
    with open(f"/proc/{process}/{file}", "rb") as opened:
        return opened.read()


def command_line(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return os.fsdecode(of_process(process, "cmdline")).split("\0")
    return []


def mark_of(process: int) -> str:
    """The folder of the run that this process belongs to; empty for one of no run."""
    if sys.platform != "linux":
        shown = " ".join(listed_by_ps("-E", "-ww", "-o", "command=", "-p", str(process)))
        found = re.search(rf" {MARK}=(.*?)(?= \w+=|$)", shown)  # before the next variable
        return found[1] if found else ""
    with contextlib.suppress(OSError):  # another user's, or gone meanwhile
        for setting in of_process(process, "environ").split(b"\0"):
            if setting.startswith(f"{MARK}=".encode()):
                return os.fsdecode(setting.partition(b"=")[2])
    return ""


def below(process: int) -> set[int]:
    """The living descendants of a process."""
    parent_of = parents()
    found: set[int] = set()
    generation = {process}
    while generation:
        generation = {child for child, parent in parent_of.items() if parent in generation} - found
        found |= generation
    return found


def kill(processes) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------
# The guard's side


def guard(folder: Path, command: list[str], job: str = "") -> int:
    """The guard's whole life: start the watcher, wait for it, do its work where it does not."""
    start_s, me = time.monotonic(), os.getpid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a killed watcher leaves comes here
    if job and not claim(folder, job):
        return 0  # the attempt is another job's
    last_word = LastWord(folder)
    watcher = os.fork()
    if watcher == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        os.setsid()  # a signal to the guard's process group is not one to the watcher's
        return watch(folder, command, job, me, last_word) if os.getppid() == me else 1
    status, why = guarded(watcher, *deadline_of(folder, start_s, job), takes_orders=not job)
    if status == 0:
        return 0  # exit.json is written
    ours = (lambda: below(me)) if job else (lambda: below(me) | {*marked(folder)} - {me})
    deadline = time.monotonic() + UNKILLABLE_S
    while (processes := ours()) and time.monotonic() < deadline:
        kill(processes)
        time.sleep(0.02)
    if not job and read_exit(folder) is None:
        if why == "itself" and is_orphaned(patience_s=1.0):
            why = ORPHANED  # both were killed, one a moment before the other
        last_word.write(None, why, start_s, job)
    return 1


def is_orphaned(patience_s: float) -> bool:
    """Whether the orchestrator's end of the pipe is closed."""
    poll = select.poll()
    poll.register(0, 0)
    return bool(poll.poll(1000 * patience_s))


def guarded(watcher: int, deadline_s: float, late: str, takes_orders: bool) -> tuple[int, str]:
    """The watcher's exit status, waited for, and who ended the run should that not be 0.

    Signals are passed on. A watcher that was told to end the run has GRACE_S + MARGIN_S for it:
    one that takes longer is stopped or hangs.
    """
    wake = wakened_by(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    if takes_orders:
        poll.register(0, 0)  # no events: it only tells that the orchestrator's end is closed
    while True:
        ended, status = os.waitpid(watcher, os.WNOHANG)
        if ended:
            return status, "itself" if os.WIFSIGNALED(status) else FAILED
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return -1, (takes_orders and order_left()) or late
        happened = dict(poll.poll(1000 * min(left_s, 3600)))
        told = TO_END & set(os.read(wake, 64) if wake in happened else b"")
        if told:
            with contextlib.suppress(OSError):
                os.kill(watcher, signal.SIGTERM)
        if told or 0 in happened:
            late = A_SIGNAL if told else ORPHANED
            deadline_s = min(deadline_s, time.monotonic() + GRACE_S + MARGIN_S)
        if 0 in happened:
            poll.unregister(0)


def deadline_of(folder: Path, start_s: float, job: str) -> tuple[float, str]:
    """By when the watcher has to be done, on this process's clock, and the reason of its limit."""
    limit_s, why = limit_of(folder, job)
    return (start_s + limit_s + GRACE_S + MARGIN_S if limit_s is not None else float("inf")), why


def order_left() -> str:
    """The order that the watcher did not read; empty where it read it."""
    with contextlib.suppress(OSError):
        if select.select([0], [], [], 0)[0]:
            return os.read(0, ORDER_BYTES).decode(errors="replace").strip()
    return ""


def wakened_by(*signals: int) -> int:
    """A pipe that a process can wait at: it brings the numbers of the signals that came.

    Handlers, not SIG_IGN: an ignored signal would stay ignored in the trainer.
    """
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return wake


# ---------------------------------------------------------------------------------------------
# The watcher's side

A_SIGNAL = "a signal to the watcher"
ORPHANED = "the orchestrator died"
UNGUARDED = "its guard was killed"
ORDER_BYTES = 200  # of an order's reason: chosen, and little enough for one read of the pipe


def watch(folder: Path, command: list[str], job: str, guard: int, last_word: "LastWord") -> int:
    """Run the command to its end, or to the first order; leave nothing behind; write exit.json.

    With a job, orders do not come through standard input but as SIGTERM, with the reason in
    order.json.
    """
    start_s = time.monotonic()
    limit = limit_of(folder, job)
    finish = functools.partial(last_word.write, start_s=start_s, job=job)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # become the parent of every orphan below
    wake = wakened_by(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    killed_before = memory_kills()
    try:
        with open(folder / "output.log", "ab", opener=no_link) as log:
            child = launch(command, log)
    except OSError as error:
        finish(None, f"{CANNOT_START}: {error}")
        return 0
    ended_by = follow(child, wake, start_s, limit, job, folder)
    if ended_by == A_SIGNAL and os.getppid() != guard:
        ended_by = UNGUARDED
    end_descendants(child, 0.0 if ended_by == "itself" else GRACE_S)
    if ended_by == "itself" and memory_kills() > killed_before:
        with contextlib.suppress(OSError):  # on a full disk, which is told below
            tell_memory_kill(folder / "output.log", child.returncode)
    if ended_by == "itself" and is_full(folder):
        ended_by = f"{NO_SPACE}: {folder / 'output.log'}"
    finish(child.returncode, ended_by)
    if os.getppid() == guard:
        os.kill(guard, signal.SIGCONT)  # should it have been stopped: it can end, too
    return 0


def launch(command: list[str], log) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=functools.partial(prctl, PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    except OSError as error:
        log.write(f"cannot start {command[0]}: error: {error}\n".encode(errors="replace"))
        raise


def follow(child, wake: int, start_s: float, limit, job: str, folder: Path) -> str:
    """Who ended the run: the command itself, or a reason to end it that came before its end."""
    limit_s, limit_why = limit
    while child.poll() is None:
        left_s = None if limit_s is None else max(0.0, start_s + limit_s - time.monotonic())
        ready, _, _ = select.select([wake] if job else [0, wake], [], [], left_s)
        if not ready:
            return limit_why
        if 0 in ready:
            return os.read(0, ORDER_BYTES).decode(errors="replace").strip() or ORPHANED
        if TO_END & set(os.read(wake, 64)):
            return read_order(folder) or A_SIGNAL
    # Slurm signals all processes of a job, and the command may end before the watcher hears of it
    if job and child.returncode:
        return read_order(folder) or (A_SIGNAL if is_told(wake, patience_s=1.0) else "itself")
    return "itself"


def is_told(wake: int, patience_s: float) -> bool:
    """Whether a signal to end comes, or came."""
    deadline = time.monotonic() + patience_s
    while select.select([wake], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if TO_END & set(os.read(wake, 64)):
            return True
    return False


def claim(folder: Path, job: str) -> bool:
    """Whether this job may run the attempt: the first that asks, and while it has no result."""
    text = json.dumps({"job": job, "host": os.uname().nodename}) + "\n"
    mine = folder / f".claim.{job}"
    return made_first(folder / "claim.json", text, mine) and not (folder / "result.json").exists()


# How much later than the orchestrator, which can say more, a watcher ends its run: chosen.
LATE_S = 30.0  # in a job, whose orchestrator is on another machine
LATE_HERE_S = 4.0  # on its orchestrator's own machine


def limit_of(folder: Path, job: str = "") -> tuple[float | None, str]:
    """How long the watcher lets the run take, seconds, and why no longer: for an orchestrator that
    is gone or stopped. (None, "") where config.json sets no limit."""
    config = read_object(folder / "config.json") or {}
    limit_s, why = config.get("limit_s"), config.get("limit_why")
    late_s = LATE_S if job else LATE_HERE_S
    if not isinstance(limit_s, int | float) or type(limit_s) is bool:
        return None, ""
    if -late_s <= limit_s < 1e9 and isinstance(why, str):
        return limit_s + late_s, why[:ORDER_BYTES]
    return None, ""


def read_order(folder: Path) -> str:
    """Why a job was told to stop; empty when nobody of ours told it."""
    return str((read_object(folder / "order.json") or {}).get("why", ""))[:ORDER_BYTES]


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
    me = os.getpid()
    orphans_elsewhere = below(me) if grace_s else set()  # where orphans are not adopted
    if grace_s:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    deadline = time.monotonic() + UNKILLABLE_S
    while processes := below(me) | (orphans_elsewhere & parents().keys()):
        kill(processes)
        child.poll()
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
        orphans_elsewhere = set()
    child.wait()


def nothing_below(child: subprocess.Popen) -> bool:
    """Whether the child has ended and left no orphans to this process: the usual end, known at
    once."""
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


ROOM = 4096  # bytes, a block of most disks; more than an exit.json has


class LastWord:
    """exit.json to be: its room on the disk is taken now, full of blanks, and filled in place when
    the run has ended. A run that ends on a full disk, however complete, would else leave none.

    Raises OSError where the disk is full already: then nothing is started. Guard and watcher share
    it, and one of them writes.
    """

    def __init__(self, folder: Path):
        self.path = folder / "exit.json"
        self.temporary = temporary_of(self.path)
        with naming(self.path):
            self.temporary.unlink(missing_ok=True)
            self.file = open(self.temporary, "xb")  # noqa: SIM115 (until the run has ended)
            self._put(b"")

    def write(self, returncode: int | None, ended_by: str, start_s: float, job: str) -> None:
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) if job else 1
        record = exit_record(returncode, ended_by, start_s, job, nodes)
        try:
            self._put(json.dumps(record).encode())
            os.replace(self.temporary, self.path)
        except OSError:  # somebody removed it, or a disk that writes nothing in place
            write_whole(self.path, record)

    def _put(self, data: bytes) -> None:
        self.file.seek(0)
        self.file.write(data.ljust(ROOM - 1) + b"\n")
        self.file.flush()


def is_full(folder: Path) -> bool:
    """Whether the disk takes nothing more, so that what a run had to say may be lost."""
    probe = temporary_of(folder / "exit.json")
    try:
        with open(probe, "xb") as file:
            file.write(bytes(ROOM))
        return False
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def write_whole(path: Path, value: dict) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    replace_file(path, (json.dumps(value) + "\n").encode())


# ---------------------------------------------------------------------------------------------
# Memory: whose kill it was


KILLED_FOR_MEMORY = "the kernel killed a process of this run: out of memory"
# how torchrun and torch's data loaders report a process that SIGKILL ended
KILLED = re.compile(rb"exitcode\s*:\s*-9\b|SIGKILL|killed by signal: Killed")


def memory_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed for memory: in this process's own control group, or
    on the whole machine where its group does not count them; 0 where nobody does."""
    counters = []
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, kind, group = line.split(":", 2)
            if kind == "":
                counters.append(cgroups / group.lstrip("/") / "memory.events")
            elif "memory" in kind.split(","):
                counters += [cgroups / "memory" / group.lstrip("/") / "memory.oom_control"]
    for counter in (*counters, proc / "vmstat"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in counter.read_text().splitlines())["oom_kill"])
    return 0


def tell_memory_kill(log: Path, returncode: int | None) -> None:
    """Say in the run's log that the kernel killed one of its processes, if this run lost one.

    The counter is not this run's alone. So a process of the run must have died of a SIGKILL, too:
    torchrun itself, or one that the last words of the log tell of. Only for a run that nobody
    of ours has ended.
    """
    with open(log, "r+b", opener=no_link) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - (1 << 14)))
        tail = file.read()
        if returncode == -signal.SIGKILL or (returncode and KILLED.search(tail)):
            file.write((b"" if tail[-1:] in (b"", b"\n") else b"\n") + KILLED_FOR_MEMORY.encode())
            file.write(b"\n")


# ---------------------------------------------------------------------------------------------
# Files. What lies in an experiment folder may come from anybody.

MOST_BYTES = 1 << 20  # of a file that is read here: chosen, a thousand times what one has


def no_link(path: str, flags: int) -> int:
    """Open a regular file, and nothing else; never through a link, never waiting for a reader."""
    opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return opened


def read_object(path: Path) -> dict | None:
    """The JSON object in a file; None where there is none."""
    try:
        with open(path, "rb", opener=no_link) as file:
            data = file.read(MOST_BYTES + 1)
        value = json.loads(data) if len(data) <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_exit(folder: Path) -> dict | None:
    return read_object(folder / "exit.json")


def temporary_of(path: Path) -> Path:
    """The path under which this process writes a file until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole new file in this place; a link that lies there is replaced, not followed."""
    temporary = temporary_of(path)
    with naming(path):
        temporary.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path):
    """A context in which an error of the system names this file: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def made_first(path: Path, text: str, mine: Path) -> bool:
    """Whether this process made the file: one of all that try to does, on shared disks too.

    By link(2) from a file of one's own, so that nobody sees half of it; where the file system has
    no hard links by O_EXCL, and a reader may for a moment find the file empty.
    """
    with naming(path):
        mine.unlink(missing_ok=True)
        with open(mine, "x") as file:
            file.write(text)
    try:
        os.link(mine, path)
        return True
    except FileExistsError:  # or the answer of a server was lost, and this is the second question
        return os.stat(mine).st_nlink == 2
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
    finally:
        mine.unlink(missing_ok=True)
    try:
        with naming(path), open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def main(words: list[str]) -> int:
    if words[0] == "--job":
        return guard(Path(words[1]), words[2:], os.environ["SLURM_JOB_ID"])
    return guard(Path(words[0]), words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
