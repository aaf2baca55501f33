"""What did an earlier orchestrator leave behind, whatever ended it?  Judged, and tidied up."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from ablation.execute.closing import close_attempt
from ablation.execute.launcher import Launcher
from ablation.execute.lock import STALE_S, look_at, process_birth
from ablation.runs.formats import Reading
from ablation.runs.store import (
    Attempt,
    Records,
    attempt_dir,
    attempts_in,
    is_attempt,
    read_records,
    refuse_links,
)


def reconcile(
    exp_dir: Path,
    experiment_id: str,
    launcher: Launcher,
    reading: Reading,
    print_line: Callable[[str], None],
) -> Records:
    """What is on record once nothing of earlier sittings runs here any more, and each of their
    attempts has a record to be believed.

    What goes on without us (a job in a queue) stays open, for `Orchestrator.reattach`. A file that
    cannot be believed is set aside under another name, with a line. The attempt is then closed as
    interrupted, its time paid for, and the plan asks for the run again.

    Raises ValueError for a folder that is a link: nothing is written through it.
    """
    launcher.settle(exp_dir.resolve())
    records = read_records(exp_dir, experiment_id)
    distrust = {path.parent: f"its record was damaged ({why})" for path, why in records.damaged}
    to_close = {*distrust, *(attempt.folder for attempt in records.open)}
    for folder in to_close:
        refuse_links(exp_dir, folder)
    for path, why in records.damaged:
        aside = set_aside(path)
        print_line(
            f"Damaged record {path}: {why}; set aside as {aside.name}, the run will be run again."
        )
    for attempt in attempts_in(exp_dir) if to_close else ():
        if attempt.folder in to_close and not launcher.find(attempt.folder.resolve()):
            why = distrust.get(attempt.folder, "")
            if line := close_left_behind(attempt, experiment_id, launcher, reading, why):
                print_line(line)
    if to_close:
        records = read_records(exp_dir, experiment_id)
    sweep(exp_dir, records, launcher)
    return records


def close_left_behind(
    attempt: Attempt, experiment_id: str, launcher: Launcher, reading: Reading, distrust: str
) -> str:
    """Close an attempt that has ended: the line that tells a person; empty where its damaged
    record has been told of."""
    config = attempt.folder / "config.json"
    try:
        ended = launcher.end_of(attempt.folder.resolve())
        result = close_attempt(attempt, experiment_id, ended, reading, distrust)
    except (ValueError, FileNotFoundError) as error:
        return (
            f"Damaged record {config}: {error}; set aside as {set_aside(config).name}."
            " What this attempt cost is not known any more."
        )
    if distrust:
        return ""
    said = result.in_words(reading.metric.replace("_", " "), int(reading.sign))
    found = f"{attempt.run_name}, attempt {attempt.number}"
    return f"Found {found}, without a result: {said}"


def set_aside(path: Path) -> Path:
    """The new path of a damaged file, renamed to one that was free."""
    number = 1
    while (free := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, free)
    return free


# in an attempt's folder, half written by who was killed
LITTER = re.compile(r"\.(config|result|exit|order)\.json\.[0-9]+(-[0-9]+)?\.tmp|\.claim\..+")
LEFT_BEHIND = re.compile(  # by a writer with this process id, or by a report, which gives none
    r"\.[\w.-]+\.(?:([0-9]{1,10})(?:-[0-9]+)?|[0-9a-f]{16})\.tmp"
)
ABANDONED_S = 3600.0  # chosen: no report writes one file for so long


def sweep(exp_dir: Path, records: Records, launcher: Launcher) -> None:
    """Remove what killed sittings left half written, and folders that they had only just made.

    Who calls this holds the lock, and what ran here has ended: in the folders of attempts nobody
    writes any more, except jobs that go on. Elsewhere a writer has to be gone, and for long.
    """
    ours = {attempt_dir(exp_dir / r.run.name, r.attempt) for r in records.results}
    ours |= {attempt.folder for attempt in records.open}
    folders = [*exp_dir.glob("*/run_*/attempt_*"), *exp_dir.glob("*/run_*")]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            refuse_links(exp_dir, folder)
            sweep_attempt(exp_dir, folder, folder in ours, launcher)
    with contextlib.suppress(OSError):
        now = os.lstat(exp_dir / "lock.json").st_mtime  # made just now, by the disk's clock
        code = exp_dir / "code"
        for path in [*exp_dir.glob(".*"), *(() if code.is_symlink() else code.glob(".*"))]:
            with contextlib.suppress(OSError, ValueError):
                if is_left_behind(path, now):
                    path.unlink()


def sweep_attempt(exp_dir: Path, folder: Path, ours: bool, launcher: Launcher) -> None:
    """Remove litter from one attempt's folder, and the folder where nothing else lies in it."""
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if not is_attempt(entry)]
    litter = [name for name in found if LITTER.fullmatch(name)]
    if (litter or not found) and (ours or litter == found) and not launcher.find(folder.resolve()):
        for name in litter:
            (folder / name).unlink()
        for part in (folder, *folder.parents[: len(folder.relative_to(exp_dir).parts) - 1]):
            part.rmdir()  # fails where anything else lies in it


def is_left_behind(path: Path, now: float) -> bool:
    """Whether nobody will need this file of an experiment's own folder any more."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return False
    age_s = now - found.st_mtime
    long_ago = age_s > STALE_S
    if re.fullmatch(r"\.lock\..+\.[0-9]+", path.name):
        _, lives, certain = look_at(path, now)
        return not lives and (certain or long_ago)
    match = LEFT_BEHIND.fullmatch(path.name)
    if not match or match[1] is None:
        return bool(match) and age_s > ABANDONED_S
    return long_ago and process_birth(match[1]) is None
