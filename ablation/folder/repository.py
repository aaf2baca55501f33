"""What does a git repository hold at a commit, and do the files beside us differ from it?

Git is only asked: nothing is checked out, and no file of the repository is written.
"""

import contextlib
import difflib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablation.runs.untrusted import printable

GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
PATIENCE_S = 60.0  # for an answer; a tree may take longer
MOST_BYTES_OF_A_FILE = 64 << 20  # larger ones are data or weights, and are not looked at
MOST_NAMED = 3  # revisions that are near to one that does not exist


@dataclass(frozen=True)
class Repository:
    """A repository, by its topmost folder."""

    top: Path

    def commit(self, revision: str) -> str:
        """The commit that a branch, a tag or a hash names. Raises ValueError in one line."""
        remedy = "give a branch, a tag or a commit"
        if not revision or revision.startswith("-") or not revision.isprintable():
            raise ValueError(f"{printable(revision)!r} is no revision; {remedy}")
        try:
            found = asked(self.top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except ValueError:
            near = difflib.get_close_matches(revision, self.names(), MOST_NAMED)
            perhaps = f" (perhaps {', '.join(near)})" if near else ""
            raise ValueError(f"{revision} is no commit of {self.top}{perhaps}; {remedy}") from None
        return found.decode().strip()

    def names(self) -> list[str]:
        """Of branches and tags."""
        try:
            return asked(self.top, "for-each-ref", "--format=%(refname:short)").decode().split("\n")
        except ValueError:
            return []

    def unpack(self, commit: str, folder: Path) -> list[str]:
        """Write the files of a commit below an empty folder; the submodules, which are not among
        them. Raises ValueError."""
        command = [*GIT, "-C", str(self.top), "archive", "--format=tar", commit]
        with tempfile.TemporaryFile() as said:
            git = subprocess.Popen(
                command,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
            )
            assert git.stdout  # it was asked for
            folders: list[str] = []
            with git, contextlib.suppress(tarfile.TarError):  # it is told by the exit code
                with tarfile.open(fileobj=git.stdout, mode="r|") as tree:
                    folders = unpacked(tree, folder)
                git.stdout.read()
            if git.returncode:
                said.seek(0)
                raise ValueError(in_words("archive", self.top, said.read()))
        return [name for name in folders if not any((folder / name).iterdir())]

    def uncommitted(self, files: Sequence[Path]) -> list[str]:
        """Those of these files, as git names them, that differ from the last commit or are not in
        it."""
        options = ("status", "--porcelain", "-z", "--untracked-files=all", "--ignored")
        said = asked(self.top, *options, "--", *(f":(literal){file}" for file in files))
        return sorted(os.fsdecode(entry[3:]) for entry in said.split(b"\0") if entry[2:3] == b" ")


def unpacked(tree: tarfile.TarFile, folder: Path) -> list[str]:
    """The names of the folders of an archive, whose files and links are written."""
    folders = []
    for member in tree:
        path = folder / member.name
        if path.is_symlink() or not path.parent.resolve().is_relative_to(folder):
            raise ValueError(f"{printable(member.name)}: lies behind a link of the same commit")
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            folders.append(member.name)
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.isfile() and member.size <= MOST_BYTES_OF_A_FILE:
            contents = tree.extractfile(member)
            assert contents  # it is a file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents.read())
    return folders


def repository_of(folder: Path) -> Repository:
    """The repository around a folder. Raises ValueError in one line where there is none, or no
    git."""
    return Repository(Path(os.fsdecode(asked(folder, "rev-parse", "--show-toplevel")).strip("\n")))


def asked(folder: Path, *words: str) -> bytes:
    """What git says. Raises ValueError in one line."""
    try:
        done = subprocess.run(
            [*GIT, "-C", str(folder), *words],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
        )
    except FileNotFoundError:
        raise ValueError("there is no program git here; install it") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"git {words[0]} did not answer within {PATIENCE_S:g} s") from None
    if done.returncode:
        raise ValueError(in_words(words[0], folder, done.stderr))
    return done.stdout


def in_words(word: str, folder: Path, said: bytes) -> str:
    text = printable(" ".join(said.decode(errors="replace").split()))
    return f"git {word} in {folder}: {text or 'it failed without a word'}"


def environment() -> dict[str, str]:
    """Without what says where another repository lies, as within a hook; git speaks English and
    asks nobody for a password."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
