"""What of a file may be believed, whoever wrote it?  Regular, bounded, whole, printable.

An experiment folder may come from anybody, and may hold anything under the names that are read
here: a FIFO that never speaks, a link to an endless device, a text as deep as it is long. Reading
gives a value or one line that names the file; writing makes a new file and never follows a link.
"""

import errno
import json
import math
import os
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import BinaryIO

MAX_JSON = 16 << 20  # bytes; the largest record there can be has a curve of 100,000 points
MAX_DEPTH = 64  # lists and objects inside each other
MAX_DIGITS = 400  # a double has at most 309 in front of its point


def printable(text: str, limit: int = 300) -> str:
    """One line of text that is safe on a terminal: no control characters, bounded length."""
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_path(path: Path) -> str:
    """A path for a message: whole, whatever somebody called it."""
    return printable(str(path), limit=4096)


def is_number(value) -> bool:
    """A finite number, as JSON may hold one or not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_count(value) -> bool:
    return type(value) is int and 1 <= value < 1 << 63


# ---------------------------------------------------------------------------------------------
# Reading

UNREADABLE = {  # what open(2) says of a thing that is there, but is nothing to read
    errno.ELOOP: "a link; put the file itself there",
    errno.ENXIO: "a socket or a device, not a file",
    errno.EOPNOTSUPP: "a socket, not a file",
    errno.EACCES: "may not be read; chmod u+r it, or ask its owner",
    errno.EPERM: "may not be read; chmod u+r it, or ask its owner",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENAMETOOLONG: "too long a path",
}
KINDS = (  # of things that can be opened and are no files
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises FileNotFoundError where there is none, and
    ValueError, with its name, for anything else that is there. Follows no link in the last part
    of the path and waits for nobody."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise ValueError(f"{printable_path(path)}: {UNREADABLE[error.errno]}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no file")
        raise ValueError(f"{printable_path(path)}: {kind}, not a regular file")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> dict:
    """Read one JSON object. Raises ValueError that names the file when it holds anything else, and
    FileNotFoundError where it is not."""
    with open_regular(path) as file:
        data = file.read(MAX_JSON + 1)
    try:
        value = json_from(data)
    except (ValueError, RecursionError) as error:
        why = printable(str(error))
        raise ValueError(f"{printable_path(path)}: not JSON ({why})") from None
    if not isinstance(value, dict):
        what = f"holds a {type(value).__name__}, not an object"
        raise ValueError(f"{printable_path(path)}: {what}")
    return value


def json_from(data: bytes):
    """The value of a JSON text that every reader would understand alike. Raises ValueError for
    names given twice, numbers that are none, and what is too long or too deep to be a record."""
    if len(data) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON >> 20} MiB")
    value = json.loads(
        data,
        object_pairs_hook=unique,
        parse_constant=refuse_constant,
        parse_int=bounded_int,
        parse_float=bounded_float,
    )
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return value


def unique(pairs: list[tuple]) -> dict:
    """An object of which no name is given twice: which of the two would be meant?"""
    value = dict(pairs)
    if len(value) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{printable(name, 40)!r} is given twice")
    return value


def refuse_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def bounded_float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{printable(digits, 40)} is beyond all bounds")
    return value


def is_deeper(value, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(is_deeper(part, most - 1) for part in inner)
