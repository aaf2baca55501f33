"""Who may run an experiment?  One orchestrator at a time, on shared disks too."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from ablation.execute import watcher
from ablation.runs.untrusted import printable

# All three chosen: a shared disk may show a change some seconds late, and a person waits OBSERVE_S.
HEARTBEAT_S = 10.0  # between two touches of a lock by its holder
OBSERVE_S = 3 * HEARTBEAT_S  # in which a holder that lives is seen to touch it
STALE_S = 12 * HEARTBEAT_S  # a lock of another host that nobody touched for so long may be stale


class Lock:
    """The right to carry out an experiment's runs. Made by link(2), atomic on shared disks too.

    Raises ValueError when somebody else holds it, naming host, pid and file. A holder that is gone
    loses it, with a line that says so. Whether a holder on another host or in another container is
    gone cannot be looked up: it loses the lock if it seems silent for STALE_S and, since clocks of
    hosts and disks differ, does not touch it for OBSERVE_S of this process's own time either.
    """

    def __init__(self, exp_dir: Path, print_line: Callable[[str], None] = print):
        self.path, self.print_line = exp_dir / "lock.json", print_line
        pid = os.getpid()
        self.me = {"host": socket.gethostname(), "pid": pid, "born": process_birth(pid)}
        self.me |= process_namespace()
        self.touched_s = 0.0

    def __enter__(self) -> "Lock":
        name = re.sub(r"[^\w.-]", "_", f".lock.{self.me['host']}.{self.me['pid']}")
        mine = self.path.with_name(name)
        while not watcher.made_first(self.path, json.dumps(self.me, indent=1) + "\n", mine):
            self._take_over()
        return self

    def _take_over(self) -> None:
        """Remove a stale lock; of several processes that try, one at a time looks and removes."""
        with open(self.path.with_name(".lock.guard"), "ab", opener=own_file) as guard:
            with contextlib.suppress(OSError):  # a file system without flock: microseconds of risk
                fcntl.flock(guard, fcntl.LOCK_EX)
            os.utime(guard.fileno())
            now = os.fstat(guard.fileno()).st_mtime  # the disk's clock
            try:
                who, lives, certain = look_at(self.path, now)
                if not lives and not certain:
                    self.print_line(f"Is {who} gone? Watching {self.path} for {OBSERVE_S:.0f} s.")
                    lives = self._is_touched()
            except FileNotFoundError:
                return
            if lives:
                raise ValueError(
                    f"{self.path.parent} is being run by another orchestrator ({who}); "
                    "wait for it, or stop it, then give the same command again"
                    f" (if it is gone for certain, remove {self.path})"
                )
            self.path.unlink(missing_ok=True)
            self.print_line(f"Took over the lock of an orchestrator that is gone ({who}).")

    def _is_touched(self) -> bool:
        """Whether somebody changes the lock while it is watched."""
        before, deadline = signature(self.path), time.monotonic() + OBSERVE_S
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if signature(self.path) != before:
                return True
        return False

    def touch(self) -> None:
        """Show that the holder lives. Raises ValueError when it no longer holds the lock."""
        if time.monotonic() - self.touched_s < HEARTBEAT_S:
            return
        self.touched_s = time.monotonic()
        if watcher.read_object(self.path) != self.me:
            raise ValueError(
                f"{self.path} is no longer this orchestrator's: the folder was moved or removed,"
                " or another one took over; --status tells where it stands"
            )
        with contextlib.suppress(OSError):
            os.utime(self.path, follow_symlinks=False)

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):
            if watcher.read_object(self.path) == self.me:
                self.path.unlink()


def holder(lock: Path, now: float) -> tuple[str, bool]:
    """(host and pid of the lock's holder, whether it lives). `now` is a time of the disk's clock.

    Raises FileNotFoundError when nobody holds it, ValueError for what is no lock at all.
    """
    return look_at(lock, now)[:2]


def look_at(lock: Path, now: float) -> tuple[str, bool, bool]:
    """As `holder`, and whether that is certain: of another host or container only two clocks tell,
    and they may differ."""
    mode, touched = signature(lock)[:2]
    if not stat.S_ISREG(mode):
        raise ValueError(f"{lock} is no regular file, so no lock of an orchestrator: remove it")
    seems_alive = abs(now - touched / 1e9) <= STALE_S  # a time to come is no sign of life
    found = watcher.read_object(lock)
    if found is None:  # half of one, where files cannot be made whole at once, or not a lock
        return "unreadable", False, False
    here = {"host": socket.gethostname(), **process_namespace()}
    who = printable(f"host {found.get('host')}, pid {found.get('pid')}")
    if all(found.get(name) == value for name, value in here.items()):
        return who, process_birth(found.get("pid")) == found.get("born", "never"), True
    if found.get("host") == here["host"] and found.get("boot") != here["boot"]:
        return who, False, False  # started anew since, or another machine of the same name
    return who, seems_alive, False


def signature(path: Path) -> tuple[int, int, int, int]:
    """A file's kind, time of change, number and length: one of them changes when somebody touches
    or replaces it."""
    found = os.lstat(path)
    return found.st_mode, found.st_mtime_ns, found.st_ino, found.st_size


def own_file(path: str, flags: int) -> int:
    """Open a file of this program for writing. Raises ValueError for what lies in its place."""
    try:
        return watcher.no_link(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"{path} is no regular file: remove it") from None
        raise


def process_namespace() -> dict[str, str]:
    """Where a process id means the same process: one boot, and in it one namespace of ids."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"boot": watcher.boot_clock(), "namespace": namespace}


def process_birth(pid) -> float | None:
    """When a process was born, by a clock that is never set; None when no such process lives."""
    import psutil

    try:
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else int(fields[19])  # ticks since boot
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, OSError, TypeError, ValueError):
        return None
