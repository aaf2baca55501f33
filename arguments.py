"""How does a command line speak?  Bad input is one line, and a path is what the shell meant."""

import argparse
import contextlib
from pathlib import Path

from untrusted import printable


class Parser(argparse.ArgumentParser):
    """Bad input is one line, without the whole usage before it; exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        said = printable(message, limit=600)
        self.exit(2, f"{self.prog}: error: {said} (--help lists the options)\n")


def a_path(text: str) -> Path:
    """What the user's shell would have made of it: --exp_dir=~/x reaches a program unexpanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("'' is no path")
    with contextlib.suppress(RuntimeError):  # a user whom nobody knows: as a shell, leave it
        return Path(text).expanduser()
    return Path(text)
