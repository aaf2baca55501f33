"""Where do the files of a run lie, and what do they say?  Written whole, read as untrusted.

    experiments/<study>_YYYYMMDD_HHMMSS/
        <arm>/run_<k>/{config.json, exit.json, result.json, output.log, train_log.txt}
        <arm>/run_<k>/attempt_2/{...}      a second attempt, where the first one failed

`config.json` is written before a launch, `exit.json` by the process that watched the trainer,
`result.json` last and atomically, by whoever judges the attempt (`write_result`): where it exists,
the record is complete.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ablation.runs.outcome import result_from
from ablation.runs.run import NAME, RunConfig, RunResult, run_from
from ablation.runs.untrusted import is_count, printable, printable_path, read_json

# ---------------------------------------------------------------------------------------------
# Writing


def write_json(path: Path, value: dict, durable: bool = True) -> None:
    """Write atomically: a reader sees the old file or the whole new one, whatever dies when.

    Durable, it also survives a power cut; what is derived from other files need not. A link in the
    file's place is replaced, not followed.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    temporary = None
    try:
        temporary, descriptor = new_file_beside(path)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def new_file_beside(path: Path) -> tuple[Path, int]:
    """A file that was not there before, open for writing: its path and its descriptor.

    A name of ours that is taken is litter, of a killed process with the same number, or a trap: it
    is removed if it can be, and another name is used in any case.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for number in range(100):
        more = f"-{number}" if number else ""
        temporary = path.with_name(f".{path.name}.{os.getpid()}{more}.tmp")
        try:
            return temporary, os.open(temporary, flags, 0o666)
        except FileExistsError:
            with contextlib.suppress(OSError):
                temporary.unlink()
    raise OSError(errno.EEXIST, "a hundred leftover temporary files beside it", str(path))


# ---------------------------------------------------------------------------------------------
# Files


class Attempt(NamedTuple):
    """One attempt at a run, by where its files lie."""

    run_name: str  # <arm>/run_<k>
    number: int  # from 1; 0 where a link lies in the folder's place
    folder: Path


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    return run_dir if attempt == 1 else run_dir / f"attempt_{attempt}"


RUN_FOLDER = re.compile(r"run_[0-9]{1,6}")
ATTEMPT_FOLDER = re.compile(r"attempt_([2-9]|[1-9][0-9]{1,5})")  # the first lies in run_<k> itself
MAX_FOUND = 100_000  # files in one folder; chosen, a hundred times what an experiment has


def attempts_in(exp_dir: Path) -> list[Attempt]:
    """Every attempt on disk, in the order of names and numbers. Raises ValueError for more than
    any experiment has."""
    return sorted(attempt for attempt in found_below(exp_dir) if attempt.number)


def found_below(exp_dir: Path) -> Iterator[Attempt]:
    """Attempts on disk, in no order. Whatever a link in such a folder's place leads to lies
    elsewhere, and is not looked at."""
    for arm, is_link in folders(exp_dir, NAME):
        if is_link:
            if any(folders(arm, RUN_FOLDER)):
                yield Attempt(arm.name, 0, arm)
            continue
        for run_dir, is_link in folders(arm, RUN_FOLDER):
            name = f"{arm.name}/{run_dir.name}"
            if is_link:
                yield Attempt(name, 0, run_dir)
                continue
            if holds_attempt(run_dir):
                yield Attempt(name, 1, run_dir)
            for folder, is_link in folders(run_dir, ATTEMPT_FOLDER):
                if is_link or holds_attempt(folder):
                    number = int(folder.name.removeprefix("attempt_"))
                    yield Attempt(name, 0 if is_link else number, folder)


def folders(parent: Path, form: re.Pattern) -> list[tuple[Path, bool]]:
    """Folders of names of a form, each with whether it is a link (to whatever)."""
    try:
        with os.scandir(parent) as found:
            entries = list(islice(found, MAX_FOUND + 1))
    except (FileNotFoundError, NotADirectoryError):
        return []
    if len(entries) > MAX_FOUND:
        raise ValueError(f"{printable_path(parent)}: holds more than {MAX_FOUND} files")
    named = [entry for entry in entries if form.fullmatch(entry.name)]
    kept = [entry for entry in named if entry.is_symlink() or entry.is_dir()]
    return [(parent / entry.name, entry.is_symlink()) for entry in kept]


def holds_attempt(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in ("config.json", "result.json"))


def refuse_links(exp_dir: Path, folder: Path) -> None:
    """Raise ValueError where a folder of a run is something else: nothing is written through it."""
    for part in (folder, *folder.parents):
        if part == exp_dir:
            return
        if os.path.lexists(part) and not stat.S_ISDIR(os.lstat(part).st_mode):
            raise ValueError(
                f"{printable(str(part))} is a link or a file, not a folder of this experiment;"
                " nothing is written through it: remove it, then give the same command again"
            )


def next_attempt(exp_dir: Path, run: RunConfig) -> Attempt:
    """The next attempt at a run, its folder made: never one in which anything lies. Raises
    ValueError where the folder would be elsewhere."""
    run_dir = exp_dir / run.name
    refuse_links(exp_dir, run_dir)
    number = 1
    while is_used(attempt_dir(run_dir, number)):
        number += 1
    if number > MOST_ATTEMPTS:
        raise ValueError(f"{run_dir} holds {MOST_ATTEMPTS} attempts: that cannot be meant")
    folder = attempt_dir(run_dir, number).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return Attempt(run.name, number, folder)


MOST_ATTEMPTS = 999_999  # more digits would not be read as an attempt's number


def is_used(folder: Path) -> bool:
    """Whether anything lies in an attempt's folder, other than later attempts and litter."""
    if not os.path.lexists(folder):
        return False
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        return True
    with os.scandir(folder) as entries:
        return not all(entry.name.startswith(".") or is_attempt(entry) for entry in entries)


def is_attempt(entry: os.DirEntry) -> bool:
    named = re.fullmatch(r"attempt_[0-9]{1,6}", entry.name)
    return bool(named) and entry.is_dir(follow_symlinks=False)


@dataclass(frozen=True)
class Records:
    """Everything that an experiment folder says about its runs."""

    results: tuple[RunResult, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()  # result.json files that cannot be believed
    open: tuple[Attempt, ...] = ()  # launched, without a result
    stray: tuple[Path, ...] = ()  # folders of another run (a copied arm), and links: left alone

    def latest(self) -> dict[str, RunResult]:
        latest: dict[str, RunResult] = {}
        for result in self.results:
            if result.run.name not in latest or result.attempt > latest[result.run.name].attempt:
                latest[result.run.name] = result
        return latest


def read_result(attempt: Attempt, experiment_id: str) -> RunResult:
    """The record of an attempt, if it belongs where it lies. Raises ValueError if not."""
    value = read_json(attempt.folder / "result.json")
    if value.pop("experiment_id", None) != experiment_id:
        raise ValueError("it belongs to another experiment")
    result = result_from(value)
    if (result.run.name, result.attempt) != attempt[:2]:
        raise ValueError(f"it is the record of {result.run.name}, attempt {result.attempt}")
    if result.run != read_config(attempt)[0]:
        raise ValueError("its run is not the one in config.json")
    return result


def read_config(attempt: Attempt) -> tuple[RunConfig, dict]:
    """The run that was launched in this folder, and all of config.json. Raises ValueError where
    that is another attempt's."""
    run, config = described(attempt.folder)
    number = config.get("attempt")
    if not is_count(number) or (run.name, number) != attempt[:2]:
        found = printable(f"{run.name}, attempt {number!r}")
        raise ValueError(f"config.json is that of {found}")
    return run, config


def described(folder: Path) -> tuple[RunConfig, dict]:
    """The run that a config.json describes, wherever it lies, and all of that file. Raises
    ValueError for anything else."""
    config = read_json(folder / "config.json")
    try:
        return run_from(config["run"]), config
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        why = printable(repr(error))
        raise ValueError(f"config.json does not describe a run: {why}") from None


def is_stray(attempt: Attempt) -> bool:
    """Whether what lies in this folder is another run's, all of it: somebody copied or renamed
    it."""
    try:
        if described(attempt.folder)[0].name == attempt.run_name:
            return False
        recorded = run_from(read_json(attempt.folder / "result.json")["run"])
        return recorded.name != attempt.run_name
    except FileNotFoundError:
        return (attempt.folder / "config.json").exists()
    except (ValueError, OSError, TypeError, KeyError, AttributeError):
        return False


def read_records(exp_dir: Path, experiment_id: str) -> Records:
    """Every record of an experiment; what cannot be believed is listed, never guessed."""
    results, damaged, open_attempts, stray = [], [], [], []
    for attempt in sorted(found_below(exp_dir)):
        record, why = attempt.folder / "result.json", ""
        try:
            if attempt.number and os.path.lexists(record):
                results.append(read_result(attempt, experiment_id))
                continue
        except (ValueError, OSError) as error:
            why = printable(str(error))
        if not attempt.number or is_stray(attempt):
            stray.append(attempt.folder)
        elif why:
            damaged.append((record, why))
        else:
            open_attempts.append(attempt)
    results.sort(key=lambda r: (r.run.stage, r.run.arm.name, r.run.index, r.attempt))
    return Records(tuple(results), tuple(damaged), tuple(open_attempts), tuple(stray))


def write_result(folder: Path, result: RunResult, experiment_id: str) -> None:
    write_json(folder / "result.json", {"experiment_id": experiment_id, **asdict(result)})
