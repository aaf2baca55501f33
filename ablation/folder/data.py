"""Which data does a study's trainer read, is it still the same, and how does a run find it?

Folders and files are named in the study, are looked at for a fingerprint, and never copied: a run
finds them by links at the same relative paths in its own folder, or by {data_dir}.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ablation.folder.materials import sampled, shards_fingerprint
from ablation.folder.trainers import folder_of
from ablation.study.study import Study

MOST_FILES = 100_000  # of all data; more are packed into shards before they are read


def data_dir_of_study(study: Study) -> Path | None:
    """{data_dir}: the first entry, absolute; None where a study names no data."""
    entries = study.trainer.data
    return at(study, entries[0]) if entries else None


def at(study: Study, entry: str) -> Path:
    return Path(os.path.abspath(folder_of(study) / entry))


def data_faults(study: Study) -> list[str]:
    """A line for each entry that is not there."""
    return [
        f"trainer.data[{number}]: there is no {at(study, entry)}; give the path of a folder or"
        " file from the study's own"
        for number, entry in enumerate(study.trainer.data)
        if not os.path.exists(at(study, entry))
    ]


def data_fingerprint(study: Study) -> str:
    """Of names, sizes and samples of all files, wherever they lie and whenever they were written;
    prepare.py's own where that lies beside the only folder's shards. Raises ValueError."""
    places = [at(study, entry) for entry in study.trainer.data]
    if len(places) == 1 and (places[0] / "fingerprint.json").is_file():
        return shards_fingerprint(places[0])
    digest = hashlib.sha256()
    number = 0
    for entry, place in enumerate(places):
        for name, path, size in files_below(place):
            number += 1
            if number > MOST_FILES:
                raise ValueError(f"{place}: more than {MOST_FILES} files; pack them into shards")
            digest.update(f"{entry} {name} {size}\n".encode(errors="surrogateescape"))
            for part in sampled(path, size):
                digest.update(part)
    return f"sampled-sha256:{digest.hexdigest()}"


def files_below(place: Path) -> Iterator[tuple[str, Path, int]]:
    """Path below the place, path, and size of every file; hidden and compiled ones are no data.
    Raises ValueError for what cannot be read."""
    if place.is_file():
        yield "", place, place.stat().st_size
        return
    for folder, folders, names in os.walk(place, onerror=unreadable, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            try:
                found = path.stat()
            except OSError as error:
                raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path}: not a regular file; move it away")
            yield path.relative_to(place).as_posix(), path, found.st_size


def unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be read ({error.strerror})")


def link_data(study: Study, run_dir: Path, code_dir: Path) -> None:
    """Links to the data and to the companions, at the paths that the study gives them below its
    folder; what was there under such a name is replaced if it is a link, else left as it is.
    code_dir: the copy of the code that the run executes."""
    links = {entry: at(study, entry) for entry in study.trainer.data}
    links |= {entry: code_dir.resolve() / entry for entry in study.trainer.companions}
    for entry, place in links.items():
        name = os.path.normpath(entry)
        if os.path.isabs(name) or name.split(os.sep)[0] in ("..", "."):
            continue  # it has no such path: {data_dir} tells where it is
        link = run_dir / name
        if any((run_dir / parent).is_symlink() for parent in Path(name).parents):
            continue  # it is below another entry, which brings it
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if place.exists() and not link.exists():
            link.symlink_to(place)
