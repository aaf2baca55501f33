"""Which files are runs made of: the trainer's code and the token shards?

A trainer is a script and the Python files that it imports from its own folder. They are read once:
what is hashed is what is copied. Nothing of it is executed to find out.
"""

import ast
import contextlib
import hashlib
import os
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    BuiltinImporter,
    ExtensionFileLoader,
    FileFinder,
    FrozenImporter,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import TypeGuard

from ablation.runs.untrusted import printable, read_json

ROOT = Path(__file__).resolve().parents[2]  # the checkout


@dataclass(frozen=True)
class Materials:
    """The files that runs are made of; read when they are asked for, and once."""

    script: Path  # the trainer as a person named it
    data_dir: Path
    read_codes: "Callable[[], Mapping[tuple, Code]] | None" = None  # else the script's alone
    fingerprint: Callable[[], str] | None = None  # of the data; else that of shards in data_dir

    @cached_property
    def codes(self) -> "Mapping[tuple, Code]":
        """The code of every arm, by `Arm.trainer`."""
        return self.read_codes() if self.read_codes else {(): read_code(self.script)}

    @property
    def code(self) -> "Code":
        """The code of the study's trainer as it is."""
        return self.codes[()]

    @cached_property
    def data_fingerprint(self) -> str:
        return self.fingerprint() if self.fingerprint else shards_fingerprint(self.data_dir)


@dataclass(frozen=True)
class CodeCopy:
    """Code, and the folder that it runs from."""

    code: "Code"
    folder: Path

    @property
    def script(self) -> Path:
        return self.folder / self.code.names[0]


# ---------------------------------------------------------------------------------------------
# Code


@dataclass(frozen=True)
class Code:
    """A trainer's files, as they were read."""

    root: Path  # the folder of the script, or one above it
    files: tuple[tuple[str, bytes], ...]  # path below root, contents; the script is the first
    left_out: tuple[str, ...]  # what a run may look for and not find, in words

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.files)

    @property
    def hash(self) -> str:
        return hashed(self.files)

    def copy_to(self, folder: Path) -> None:
        """Afterwards the folder holds these files and no others; no link in it is followed."""
        with contextlib.suppress(FileNotFoundError):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        for name, contents in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path, "xb") as file:
                    file.write(contents)
                if contents.startswith(PROGRAMS):
                    path.chmod(0o755)
            except OSError as error:  # a full disk does not say which file
                with contextlib.suppress(OSError):
                    path.unlink()  # half of it would look like an edit
                raise OSError(error.errno, error.strerror, str(path)) from None

    def notes(self) -> Iterator[str]:
        """Lines for a person, before the first run."""
        script, *others = self.names
        if others:
            yield f"The trainer is {script} with what it imports beside it: {', '.join(others)}."
        if self.left_out:
            yield "Not in the copy that will run:"
        yield from (f"  {line}" for line in self.left_out[:MOST_TOLD])
        if len(self.left_out) > MOST_TOLD:
            yield f"  and {len(self.left_out) - MOST_TOLD} more of this kind"


def hashed(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, contents in files:
        digest.update(name.encode() + b"\0" + contents + b"\0")
    return digest.hexdigest()[:16]


def hash_of(files: Sequence[Path]) -> str:
    return hashed((file.name, file.read_bytes()) for file in files)


MOST_FILES, MOST_BYTES = 500, 64 << 20  # of a trainer; more is a library, to be installed
PROGRAMS = (b"#!", b"\x7fELF")  # how a file begins that may be started by its path
MOST_TOLD = 12  # lines of what is left outside


def read_code(script: Path) -> Code:
    """The script and the files that it imports from its own folder, and those that these import.

    Raises ValueError in one line for a file that Python could not read either, a link that leads
    out of the folder, and more files or bytes than a trainer has.
    """
    check_is_file(script, f"--train_script {script}", "give the trainer's Python file")
    script = script.resolve()
    return gathered((Module(script, ""),), script.parent, script.parent)


def check_is_file(file: Path, asked: str, remedy: str) -> None:
    if not os.path.isfile(file):
        what = "not a regular file" if os.path.exists(file) else "no such file"
        raise ValueError(f"{asked}: {what}; {remedy}")


def as_it_is(name: str, contents: bytes) -> bytes:
    return contents


def gathered(
    modules: Sequence["Module"],
    root: Path,
    below: Path,
    patched: Callable[[str, bytes], bytes] = as_it_is,
    readable: Callable[[bytes], bytes] = bytes,
    is_python: bool = True,
    linked: Sequence[str] = (),
) -> Code:
    """These files, the first of which is what is started, and what they import, as read_code.

    root: that imports are found from; below: that paths are relative to, root or a folder above it.
    patched: a file's contents by its path and what was read; readable: that Python can parse. The
    first file is Python's whatever it is called, if is_python. linked: paths below root at which a
    run finds data, which is not copied.
    """
    first = modules[0].file
    files: dict[str, bytes] = {}
    trees: dict[str, ast.Module] = {}
    notes: list[str] = []
    todo = [*modules]
    while todo:
        module = todo.pop()
        name = module.file.relative_to(below).as_posix()
        if name in files:
            continue
        files[name] = patched(name, contents_of(module.file, below))
        if len(files) > MOST_FILES or sum(map(len, files.values())) > MOST_BYTES:
            raise ValueError(
                f"{first}: it needs more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB of its"
                " own folder; install them as a package, or name them as data"
            )
        if module.file.suffix in SOURCE_SUFFIXES or (is_python and module.file == first):
            trees[name] = parsed(readable(files[name]), module.file)
            for found_import in imports_of(trees[name], module):
                found, missing = located(found_import, root)
                todo += found
                if missing and found_import.needed:
                    notes.append(f"{name}, line {found_import.line}: imports {missing}")
    notes += left_out(trees, root, {os.path.relpath(below / name, root) for name in files}, linked)
    name = first.relative_to(below).as_posix()
    started = (name, files.pop(name))
    return Code(below, (started, *sorted(files.items())), tuple(map(printable, notes)))


def read_copy(folder: Path, names: Sequence[str]) -> Code:
    """Code as it was copied, by the names of its files. Raises ValueError for one that is gone."""
    folder = folder.resolve()
    return Code(folder, tuple((name, contents_of(folder / name, folder)) for name in names), ())


def left_out(
    trees: dict[str, ast.Module], root: Path, copied: set[str], linked: Sequence[str] = ()
) -> Iterator[str]:
    """What the code names and no import statement tells."""
    for name, tree in trees.items():
        for call in filter(is_import_call, ast.walk(tree)):
            if not list(texts_among(call.args[:1])):
                yield f"{name}, line {call.lineno}: imports by a name that is computed"
    named = {text: name for name, tree in trees.items() for text in file_names_in(tree, root)}
    for text in sorted(named.keys() - copied):
        if any(Path(text).is_relative_to(place) for place in linked):
            continue
        yield f"{named[text]}: names {text}, which lies beside it and is not copied"


def contents_of(file: Path, root: Path) -> bytes:
    try:
        real = file.resolve(strict=True)
        if not real.is_relative_to(root):
            raise ValueError(
                f"{file} is a link out of the trainer's folder, to {real}; put a copy in its place,"
                " or install it as a package"
            )
        with open(real, "rb") as opened:
            return opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def parsed(contents: bytes, file: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(contents, str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {lineno}" if (lineno := getattr(error, "lineno", None)) else ""
        why = printable(str(getattr(error, "msg", error))) or type(error).__name__
        raise ValueError(f"{file}{line}: Python cannot read it ({why}); mend it") from None


# ---------------------------------------------------------------------------------------------
# Imports, as Python would resolve them in a program of that folder


@dataclass(frozen=True)
class Module:
    file: Path
    package: str  # that its relative imports start from


@dataclass(frozen=True)
class Import:
    name: str | None  # in full; None for a relative import that leads nowhere
    text: str  # as it is written
    line: int
    needed: bool  # or one that may be missing: below try or if, or perhaps not a module at all


def imports_of(tree: ast.Module, module: Module) -> Iterator[Import]:
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:
        node, needed = todo.pop()
        needed = needed and not isinstance(node, ast.Try | ast.TryStar | ast.If)
        todo += [(child, needed) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, alias.name, node.lineno, needed)
        elif isinstance(node, ast.ImportFrom):
            text = "." * node.level + (node.module or "")
            base = absolute(text, module.package)
            yield Import(base, text, node.lineno, needed)
            for alias in node.names if base else ():  # a module of that package, or not
                yield Import(f"{base}.{alias.name}", alias.name, node.lineno, False)
        elif isinstance(node, ast.Call) and (text := imported_text(node)):
            package = next(texts_among(node.args[1:]), module.package)
            yield Import(absolute(text, package), text, node.lineno, needed)
        elif module.file.name == "__init__.py" and is_list_of_all(node):
            for text in texts_among(ast.walk(node.value)):  # what `import *` imports
                yield Import(f"{module.package}.{text}", text, node.lineno, False)


def absolute(text: str, package: str) -> str | None:
    """A module's name in full; a leading dot is the package, each further one a step up."""
    name = text.lstrip(".")
    level = len(text) - len(name)
    if not level:
        return name
    parents = package.split(".") if package else []
    kept = parents[: len(parents) - level + 1]
    return ".".join([*kept, *filter(None, [name])]) if level <= len(parents) else None


def texts_among(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_list_of_all(node: ast.AST) -> TypeGuard[ast.Assign]:
    targets = node.targets if isinstance(node, ast.Assign) else ()
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def is_import_call(node: ast.AST) -> TypeGuard[ast.Call]:
    if not (isinstance(node, ast.Call) and node.args):
        return False
    return called(node) in ("import_module", "__import__")


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def imported_text(node: ast.Call) -> str:
    """x of importlib.import_module("x")."""
    return next(texts_among(node.args[:1]), "") if is_import_call(node) else ""


def file_names_in(tree: ast.Module, root: Path) -> Iterator[str]:
    """Texts in the code that are the path of a file below root, whole or put together."""
    for text in map("/".join, map(path_parts, ast.walk(tree))):
        elsewhere = text.startswith("/") and os.path.exists(text)
        if 0 < len(text) < 256 and text.isprintable() and not elsewhere:
            path = Path(os.path.normpath(root / text.lstrip("/")))  # folder + "/file"
            if path.is_relative_to(root) and os.path.isfile(path):
                yield path.relative_to(root).as_posix()


def path_parts(node: ast.AST) -> list[str]:
    """The texts of a path as code puts it together: "a", x / "a" / "b", join(x, "a", "b")."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*path_parts(node.left), *path_parts(node.right)]
    if isinstance(node, ast.Call) and called(node) in ("join", "joinpath", "Path", "PurePath"):
        return [text for argument in node.args for text in path_parts(argument)]
    return list(texts_among([node]))


LOADERS = (  # what Python finds in a folder, in its order
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def located(found_import: Import, root: Path) -> tuple[list[Module], str]:
    """The files below root that an import runs, and what is missing, in words."""
    parts = (found_import.name or "").split(".")
    if not all(parts) or "/" in found_import.text:
        return [], f"{found_import.text}, which leads nowhere: no package is around it"
    found: list[Module] = []
    folder = str(root)
    for depth in range(1, len(parts) + 1):
        part, package = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
        spec = FileFinder(folder, *LOADERS).find_spec(part)
        if depth == 1 and not (spec and is_first(part, regular=spec.origin is not None)):
            return [], elsewhere(part)
        if spec is None:
            return found, f"{part}, which is not in {folder}"
        places = spec.submodule_search_locations
        if spec.origin is not None:
            found.append(Module(Path(spec.origin), part if places is not None else package))
        if places is None:
            below = ".".join(parts[depth:])
            return found, f"{below} of {part}, which is no package" if below else ""
        folder = places[0]
    return found, ""


def is_first(name: str, regular: bool) -> bool:
    """Whether Python takes the script's folder's: before all that is installed, but after what is
    built in; a folder without __init__.py comes last."""
    if BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name):
        return False
    return regular or not (other := spec_elsewhere(name)) or other.origin is None


def elsewhere(name: str) -> str:
    """Nothing to say of what is installed; of code that may change underway, where it lies."""
    if name in sys.stdlib_module_names:
        return ""
    spec = spec_elsewhere(name)
    if spec is None:
        return f"{name}, which is not beside it nor installed"
    place = Path(spec.origin or "site-packages")
    if {"site-packages", "dist-packages"} & set(place.parts):
        return ""
    return f"{name}, which is not copied from {place.parent}"


def spec_elsewhere(name: str):
    """Where a trainer would find a module that is not beside it: what this folder of ours holds is
    not on its path. Nothing is imported."""
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    if spec := PathFinder.find_spec(name, path):
        return spec
    for finder in sys.meta_path:  # of `pip install -e`
        spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
        if spec and spec.origin and Path(spec.origin).parent not in (ROOT, ROOT / name):
            return spec
    return None


# ---------------------------------------------------------------------------------------------
# Data


def shards_in(folder: Path) -> dict[str, int]:
    """Name and size of every *.bin of a folder, in the order of the names. Raises ValueError for a
    folder that cannot be read, and for one that is no regular file or a link to nothing."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".bin"))
    except OSError as error:
        raise ValueError(f"--data_dir {folder}: {error.strerror}") from None
    sizes = {}
    for name in names:
        try:
            found = (folder / name).stat()
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{folder / name}: not a regular file; move it away")
        sizes[name] = found.st_size
    return sizes


def recorded_fingerprint(meta: Path) -> tuple[str, dict[str, int]]:
    """What prepare.py recorded: the fingerprint, and the size of each shard."""
    listed = read_json(meta.resolve())  # a folder of links to the shards may hold one to this too
    try:
        rows = [(row["name"], row["bytes"], row["sha256"]) for row in listed["files"]]
        lines = "".join(f"{name} {sha256}\n" for name, _, sha256 in rows)
        sizes = {name: size for name, size, _ in rows}
        consistent = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
        if listed["fingerprint"] != consistent:
            raise ValueError("the fingerprint is not that of its files")
    except (KeyError, TypeError, ValueError) as error:
        why = f"no field {error}" if isinstance(error, KeyError) else printable(str(error))
        raise ValueError(
            f"{meta}: not what data/prepare.py writes ({why}); run that again, or remove the file"
        ) from None
    return consistent, sizes


def shards_fingerprint(folder: Path) -> str:
    """prepare.py's own where it lies beside the shards, else of names, sizes and samples; not of
    where the folder lies, nor of links on the way to it."""
    sizes = shards_in(folder)
    meta = folder / "fingerprint.json"
    if meta.is_file():
        fingerprint, recorded = recorded_fingerprint(meta)
        if recorded == sizes:
            return fingerprint
    return sampled_fingerprint(folder, sizes)


def sampled_fingerprint(folder: Path, sizes: dict[str, int]) -> str:
    digest = hashlib.sha256()
    for name, size in sizes.items():
        digest.update(f"{name} {size}\n".encode())
        for part in sampled(folder / name, size):
            digest.update(part)
    return f"sampled-sha256:{digest.hexdigest()}"


def sampled(path: Path, size: int) -> Iterator[bytes]:
    """Parts from all over a file. Raises ValueError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            for part in range(16):
                file.seek(size * part // 16)
                yield file.read(4096)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
