"""How is a page kept fresh while an experiment goes on?  Looked at now and then, written when the
folder says something new."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ablation.runs.store import attempts_in

GAP_S = 10.0  # between two writes, at least; chosen
SHARE = 0.05  # of a core that may be spent on looking and writing; chosen
ROOM_BYTES = 64 << 20  # of a disk, that stay for runs; chosen, some pages' worth
LOOK_S = 0.5  # between two looks at whether to end; chosen

Signature = tuple[tuple[str, int, int], ...]
LOGS = ("output.log", "result.json", "config.json", "exit.json")
DOCUMENTS = ("staged_ablation_results.json", "overrides.json", "experiment_configs.json")


def signature(exp_dir: Path) -> Signature:
    """What changes when something happens in the folder: times and sizes of its files."""
    files = [exp_dir / name for name in DOCUMENTS]
    files += [folder / name for _, _, folder in attempts_in(exp_dir) for name in LOGS]
    found = []
    for file in files:
        try:
            seen = file.lstat()
        except OSError:
            continue
        found.append((str(file), seen.st_mtime_ns, seen.st_size))
    return tuple(found)


def check_room(folder: Path) -> None:
    """Raise OSError where a page would take room that the records of runs may need."""
    if shutil.disk_usage(folder).free < ROOM_BYTES:
        left = f"less than {ROOM_BYTES >> 20} MiB are left, and runs need them"
        raise OSError(errno.ENOSPC, left, str(folder))


def keep_fresh(
    look: Callable[[], object],
    write: Callable[[bool], bool | None],
    over: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write at once, then after each change that `look` sees, until `over`, and a last time then.

    write: is told whether this is the last time, and returns whether the experiment has ended,
    which ends this as well, or None where it failed: it is tried again though nothing changes.
    Between two writes there are GAP_S at least, and as much time as keeps the share of a core that
    they take at SHARE; of a thousand runs looking takes its time, too.
    """
    seen, next_s = None, clock()
    while not over():
        if (began_s := clock()) >= next_s:
            now = look()
            if changed := now != seen:
                ended = write(False)
                if ended:
                    return
                seen = None if ended is None else now
            next_s = began_s + max(GAP_S * changed, (clock() - began_s) / SHARE)
        sleep(LOOK_S)
    write(True)
