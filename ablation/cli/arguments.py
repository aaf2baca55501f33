"""How does a command line speak?  Bad input is one line, and a path is what the shell meant."""

import argparse
import contextlib
import errno
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ablation.runs.untrusted import printable


class BadUsage(SystemExit):
    """A command line that cannot be read was told so: exit code 2, and the line that was said."""

    def __init__(self, line: str):
        super().__init__(2)
        self.line = line


class Parser(argparse.ArgumentParser):
    """Bad input is one line, without the whole usage before it; exit code 2."""

    def __init__(self, once: Sequence[str] = (), **options):
        """once: options whose values might be meant together. Of others the last one counts, as a
        person adds one to a line that a script or an alias has begun."""
        super().__init__(allow_abbrev=False, **options)
        self.once = once

    def parse_known_args(self, args=None, namespace=None):
        words = [*map(str, sys.argv[1:] if args is None else args)]
        words = words[: words.index("--")] if "--" in words else words
        named = Counter(word.partition("=")[0] for word in words)
        for option in self.once:
            if named[option] > 1:
                self.error(f"{option} is given {named[option]} times: give it once, as A,B")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        line = f"{printable(message, limit=600)} (--help lists the options)"
        self._print_message(f"{self.prog}: error: {line}\n", sys.stderr)
        raise BadUsage(line)


def a_path(text: str) -> Path:
    """What the user's shell would have made of it: --exp_dir=~/x reaches a program unexpanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("'' is no path")
    with contextlib.suppress(RuntimeError):  # a user whom nobody knows: as a shell, leave it
        return Path(text).expanduser()
    return Path(text)


def pasteable(path: Path | str) -> str:
    """A path, or another word of a command: one line, and safe on a terminal, whatever it is."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    signs = (c if c.isprintable() and c not in "\\'" else escaped(c) for c in text)
    return f"$'{''.join(signs)}'"


def escaped(sign: str) -> str:
    """For bash, ksh and zsh, byte by byte, and so also what is no UTF-8."""
    return "".join(f"\\x{byte:02x}" for byte in sign.encode(errors="surrogateescape"))


REMEDIES = {  # what the system says of a file or a process: what a person can do about it
    errno.ENOENT: "a folder on the way to it is not there; make it, or give another path",
    errno.EEXIST: "a file or a link to nothing lies there; remove it, or give another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; give another path",
    errno.ELOOP: "a link that leads back to itself; remove it, or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "chmod it, ask its owner, or give another path",
    errno.EPERM: "ask its owner, or give another path",
    errno.EROFS: "give a path on another disk",
    errno.ENOSPC: "make room on that disk, or give a path on another",
    errno.EDQUOT: "make room in your quota, or give a path on another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or give a path on another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files",
    errno.EAGAIN: "raise the limit on processes (ulimit -u), or end some",
    errno.ENOMEM: "free some memory",
    errno.EIO: "the disk seems broken: see dmesg",
    errno.ESTALE: "the network disk was lost: mount it again",
}


def plain_words(error: Exception) -> str:
    """What happened, to which file, and what a person can do about it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.errno == errno.ENOENT and error.filename and not has_current_folder():
        return "the current folder is gone; cd to one that is there"
    where = f"{error.filename}: " if error.filename else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{where}{error.strerror}{remedy}"


def has_current_folder() -> bool:
    with contextlib.suppress(OSError):
        Path.cwd()
        return True
    return False
