"""Which code does each arm of a study run?  Read from disk and from git, and changed nowhere.

An arm runs the study's trainer, another script, a tree at a commit, or one of them with texts
replaced. Whatever it is becomes a `Code`: the files that are copied, and their hash.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

from ablation.folder.materials import (
    ROOT,
    Code,
    CodeCopy,
    Import,
    Module,
    check_is_file,
    gathered,
    hashed,
    located,
)
from ablation.folder.repository import repository_of
from ablation.runs.run import Arm, Replacement
from ablation.runs.untrusted import printable
from ablation.study.study import NOTHING, Study, Trainer, overlaid, text_of

# ---------------------------------------------------------------------------------------------
# The command of a trainer

PYTHON = re.compile(r"(.*/)?python[\d.]*")
A_FILE = re.compile(r"[^-].*\.[A-Za-z]\w{0,5}|\.{1,2}/.+")  # a word that names one


@dataclass(frozen=True)
class Start:
    """What is started: the words behind the launcher, and which of them is the code."""

    words: tuple[str, ...]
    entry: int  # of words: the script, or the module behind -m

    @property
    def is_module(self) -> bool:
        return self.entry > 0 and self.words[self.entry - 1] == "-m"

    @property
    def name(self) -> str:
        return self.words[self.entry]


def start_of(trainer: Trainer, arm: Arm) -> Start:
    """Pure. arm: with the base below it. Raises ValueError in words that follow the key's name."""
    words = trainer.command
    if trainer.launch != "command" and words and PYTHON.fullmatch(words[0]):
        words = words[1:]
    start = Start(words, entry_of(words, trainer.launch == "command"))
    if not arm.script:
        return start
    before = words[: start.entry - start.is_module]
    return Start((*before, arm.script, *words[start.entry + 1 :]), len(before))


def entry_of(words: tuple[str, ...], as_it_stands: bool) -> int:
    """Which word names the code."""
    for number, word in enumerate(words):
        after_python = not as_it_stands or (number and PYTHON.fullmatch(words[number - 1]))
        if word == "-m" and after_python and number + 1 < len(words):
            return number + 1
        if not as_it_stands and word.startswith("-"):
            raise ValueError(
                f'{word}: an option of Python\'s own; leave it out, or give launch = "command"'
            )
        if not as_it_stands or (A_FILE.fullmatch(word) and not PYTHON.fullmatch(word)):
            return number
    raise ValueError(f"{' '.join(words) or 'nothing'}: names no script and no module; name one")


# ---------------------------------------------------------------------------------------------
# Texts that only a run knows, in code

PLACEHOLDERS = ("num_iterations", "seconds", "seed", "run_dir", "data_dir", "num_gpus")
MARKS = {name: f"__run_{name}__" for name in PLACEHOLDERS}  # what stands for it in a file
ANY_MARK = re.compile("|".join(MARKS.values()).encode())


def marked(text: str) -> str:
    for name, mark in MARKS.items():
        text = text.replace(f"{{{name}}}", mark)
    return text


def has_placeholders(code: Code) -> bool:
    """Whether a run gets a copy of its own, with its seed or length written into it."""
    return any(ANY_MARK.search(contents) for _, contents in code.files)


def filled(code: Code, values: Mapping[str, object]) -> Code:
    """The copy of one run. Its hash is its own; the registered one is that of the code given."""
    texts = {MARKS[name].encode(): str(value).encode() for name, value in values.items()}
    files = tuple((n, ANY_MARK.sub(lambda found: texts[found[0]], c)) for n, c in code.files)
    return replace(code, files=files)


def code_for_run(copy: CodeCopy, attempt: Path, values: Mapping[str, object]) -> CodeCopy:
    """The code of one attempt: the experiment's copy, or, where it differs from run to run, one in
    the attempt's folder, which is made."""
    if not has_placeholders(copy.code):
        return copy
    own = CodeCopy(filled(copy.code, values), attempt / "code")
    own.code.copy_to(own.folder)
    return own


def readable(contents: bytes) -> bytes:
    """With a number for each mark: beside digits a word would not be Python."""
    return ANY_MARK.sub(b"1", contents)


@dataclass
class Patches:
    """Replacements in the files of one arm, applied in their order; what is wrong with them."""

    left: list[tuple[str, str, Replacement]]  # key in the study, file, replacement
    faults: list[str] = field(default_factory=list)

    def __call__(self, name: str, contents: bytes) -> bytes:
        mine = [patch for patch in self.left if patch[1] == name]
        self.left = [patch for patch in self.left if patch[1] != name]
        for key, _, change in mine:
            old, new = as_in(contents, change.old), as_in(contents, marked(change.new), change.old)
            found = occurrences(contents, old)
            if found == 1:
                contents = contents.replace(old, new)
                continue
            remedy = "give more of the text around it" if found else "give a text that is in it"
            self.faults.append(f"{key}.find: occurs {found} times in {name}, not once; {remedy}")
        return contents

    def check_all_used(self, code: Code) -> None:
        for key, name, _ in self.left:
            files = ", ".join(code.names[:5])
            remedy = "name one of them, or add it to companions"
            self.faults.append(
                f"{key}.file: {name} is none of the files that run ({files}); {remedy}"
            )


def as_in(contents: bytes, text: str, like: str = "") -> bytes:
    """A text with the line ends of the file that it is looked for in, or put into. like: the text
    that was looked for."""
    if b"\r\n" in contents and "\r\n" not in (like or text):
        text = text.replace("\n", "\r\n")
    return text.encode()


def occurrences(contents: bytes, text: bytes) -> int:
    """Overlapping ones counted too."""
    count, at = 0, contents.find(text)
    while text and at >= 0:
        count, at = count + 1, contents.find(text, at + 1)
    return count


# ---------------------------------------------------------------------------------------------
# What an arm is made of


@dataclass(frozen=True)
class Layers:
    """An arm as what is laid over what: the base, an arm, a refinement; each with its key in the
    study's file."""

    parts: tuple[tuple[str, Arm], ...]

    @cached_property
    def whole(self) -> Arm:
        return reduce(overlaid, (arm for _, arm in self.parts))

    @cached_property
    def arm(self) -> Arm:
        """Without the base."""
        arms = [arm for _, arm in self.parts[1:]]
        return reduce(overlaid, arms) if arms else NOTHING

    @property
    def key(self) -> str:
        return self.parts[-1][0]

    def key_of(self, name: str) -> str:
        """Of the script or the revision."""
        return next((f"{k}.{name}" for k, arm in reversed(self.parts) if getattr(arm, name)), "")

    def replacements(self) -> Iterator[tuple[str, Replacement]]:
        for key, arm in self.parts:
            for number, change in enumerate(arm.replacements):
                yield f"{key}.replace[{number}]", change


def layered(study: Study) -> Iterator[Layers]:
    """Every arm that a plan can run, or a person by hand; the baseline first."""
    base = ("base", study.base)
    yield Layers((base,))
    arms = [("arms", arm) for arm in study.arms]
    arms += [("screening", arm) for arm in study.screening]
    known = {arm.trainer for _, arm in arms}
    arms += [("by_hand", arm) for arm in study.by_hand.values() if arm.trainer not in known]
    for kind, arm in arms:
        yield Layers((base, (f"{kind}.{arm.name}", arm)))
    for arm in study.arms:
        for change in (*study.refinements, *study.cells):
            over = (f"refinements.{change.name}", change)
            yield Layers((base, (f"arms.{arm.name}", arm), over))


# ---------------------------------------------------------------------------------------------
# Code, from disk or from a commit


def folder_of(study: Study) -> Path:
    """That relative paths of a study start from."""
    return Path(study.trainer.folder).resolve() if study.trainer.folder else ROOT


def codes_of(study: Study, script: Path | None = None) -> dict[tuple, Code]:
    """The code of every arm, by `Arm.trainer`. script: in place of the trainer's own. Raises
    ValueError, one line for each fault."""
    reading = Reading(study, script)
    codes = reading.codes()
    if reading.faults:
        raise ValueError("\n".join(reading.faults))
    return codes


def faults_of(study: Study, script: Path | None = None) -> list[str]:
    """What is wrong on disk and in git with the code of a study's arms, a line each."""
    reading = Reading(study, script)
    codes = reading.codes()
    faultless = {trainer: codes[trainer] for trainer in codes.keys() - reading.faulty}
    return [*reading.faults, *same_twice(study, faultless)]


@dataclass
class Reading:
    """One look at the disk and at git, and the faults that it found."""

    study: Study
    script: Path | None = None  # in place of the trainer's own
    faults: list[str] = field(default_factory=list)
    faulty: set[tuple] = field(default_factory=set)  # arms' trainers with one
    trees: dict[tuple[Path, str], "Tree"] = field(default_factory=dict)  # by folder and revision

    @cached_property
    def folder(self) -> Path:
        if self.script and not self.study.trainer.folder:
            return self.script.resolve().parent
        return folder_of(self.study)

    def codes(self) -> dict[tuple, Code]:
        codes: dict[tuple, Code] = {}
        tried: set[tuple] = set()  # a fault is told once, of whichever arm comes first
        with contextlib.ExitStack() as self.held:
            for layers in layered(self.study):
                arm = layers.arm
                of_base = len(layers.parts) == 1
                told = not (of_base or () in codes or arm.script or arm.revision)
                if arm.trainer not in tried and not told:  # else the base's fault is this one's too
                    tried.add(arm.trainer)
                    with self.noting(layers):
                        codes[arm.trainer] = self.code_of(layers)
            if () in codes:
                self.check_committed(codes[()])
        self.faults = list(dict.fromkeys(map(self.in_words, self.faults)))
        return codes

    def in_words(self, fault: str) -> str:
        """Without the places where commits were unpacked for a moment."""
        for tree in self.trees.values():
            fault = fault.replace(str(tree.copy), f"{tree.top} at {tree.revision}")
        return fault

    @contextlib.contextmanager
    def noting(self, layers: Layers) -> Iterator[None]:
        """A fault of a file is told under the key that brought the file in."""
        try:
            yield
        except ValueError as error:
            replaced = f"{layers.key}.replace" if layers.parts[-1][1].replacements else ""
            keys = (layers.key_of("revision"), layers.key_of("script"), replaced, "trainer.command")
            self.faults.append(f"{next(filter(None, keys))}: {error}")

    def code_of(self, layers: Layers) -> Code:
        """Raises ValueError for a fault of the script, the revision or the command."""
        start = self.start(layers.whole)
        folder, script = self.folder, normal(self.folder / start.name)
        absent: Iterable[str] = ()
        if layers.whole.revision:
            beside = folder if start.is_module else script.parent
            tree = self.tree_of(beside, layers.whole.revision)
            folder, script, absent = tree.there(folder), tree.there(script), tree.absent
        modules = modules_of(start.name, folder) if start.is_module else (script_at(script),)
        root = folder if start.is_module else modules[0].file.parent
        below = folder if root.is_relative_to(folder) else root
        patches = Patches(self.placed(layers, modules[0].file, folder, below))
        others = self.others(start, folder, below)
        is_python = self.study.trainer.launch != "command"
        data = [os.path.relpath(self.folder / entry, root) for entry in self.study.trainer.data]
        code = gathered([*modules, *others], root, below, patches, readable, is_python, data)
        patches.check_all_used(code)
        if patches.faults:
            self.faulty.add(layers.arm.trainer)
            self.faults += patches.faults
        self.faults += odd_names(code)
        notes = (f"{name}: a submodule, which a revision does not bring" for name in absent)
        return replace(code, left_out=(*code.left_out, *notes))

    def start(self, whole: Arm) -> Start:
        trainer = self.study.trainer
        if self.script:
            trainer = replace(trainer, command=(str(self.script.resolve()),))
        return start_of(trainer, whole)

    def placed(
        self, layers: Layers, first: Path, folder: Path, below: Path
    ) -> list[tuple[str, str, Replacement]]:
        """Replacements with the names of their files in the code. Those of the trainer's script are
        those of the script in its place."""
        own = start_of(self.study.trainer, NOTHING).name
        scripts = {os.path.normpath(name) for name in (own, layers.whole.script) if name}
        placed = []
        for key, change in layers.replacements():
            is_script = os.path.normpath(change.file) in scripts
            path = first if is_script else folder / change.file
            placed.append((key, os.path.relpath(path, below), change))
        return placed

    def others(self, start: Start, folder: Path, below: Path) -> Iterator[Module]:
        """Companions, and files that the command names beside the script."""
        for number, companion in enumerate(self.study.trainer.companions):
            key, place = f"trainer.companions[{number}]", normal(folder / companion)
            if not place.is_relative_to(below):
                self.faults.append(f"{key}: {companion} is not below {below}; put it there")
            elif not os.path.exists(place):
                where = f"in {below}; give the path of a file beside the script"
                self.faults.append(f"{key}: there is no {companion} {where}")
            else:
                yield from companions_at(place, below)
        for number, word in enumerate(start.words):
            place = normal(folder / word)
            is_ours = place.is_relative_to(below) and os.path.isfile(place)  # or any text at all
            if number != start.entry and not word.startswith("-") and is_ours:
                yield from companions_at(place, below)

    def tree_of(self, beside: Path, revision: str) -> "Tree":
        """The files of a commit, unpacked elsewhere. Raises ValueError."""
        key = (beside, revision)
        if key not in self.trees:
            repository = repository_of(beside)
            commit = repository.commit(revision)
            temporary = self.held.enter_context(tempfile.TemporaryDirectory())
            copy = Path(temporary).resolve()
            absent = tuple(repository.unpack(commit, copy))
            self.trees[key] = Tree(repository.top, revision, copy, absent)
        return self.trees[key]

    def check_committed(self, base: Code) -> None:
        """Arms at a commit are compared with what is committed, not with what is being edited."""
        arms = [layers for layers in layered(self.study) if layers.whole.revision]
        if not arms or self.study.base.revision:
            return
        with contextlib.suppress(ValueError):  # no repository there: the arms' own fault
            repository, files = repository_of(base.root), [base.root / name for name in base.names]
            for name in repository.uncommitted(files):
                self.faults.append(
                    f"trainer: {name} is not as it was committed, and {arms[0].key_of('revision')}"
                    f" is a commit of its repository, {repository.top}; commit it"
                )


@dataclass(frozen=True)
class Tree:
    """A commit's files, in a folder of their own."""

    top: Path  # of the repository
    revision: str
    copy: Path
    absent: tuple[str, ...]  # submodules

    def there(self, path: Path) -> Path:
        """Where a path of the working tree lies in the copy. Raises ValueError."""
        real = path.parent.resolve() / path.name
        if not real.is_relative_to(self.top):
            raise ValueError(f"{path} is not in the repository {self.top}; give script instead")
        return self.copy / real.relative_to(self.top)


def normal(path: Path) -> Path:
    """Without .., which lead back from where they are written, not from where links lead."""
    return Path(os.path.normpath(path))


def script_at(path: Path) -> Module:
    check_is_file(path, str(path), "give the trainer's file, by its path from the study's")
    return Module(path.resolve(), "")


def modules_of(name: str, folder: Path) -> tuple[Module, ...]:
    """The files that `python -m name` runs, the one that is started first. Raises ValueError."""
    whole = Import(name, name, 0, True)
    found, missing = located(whole, folder)
    if found and not missing and found[-1].file.name == "__init__.py":
        whole = replace(whole, name=f"{name}.__main__")
        found, missing = located(whole, folder)
    if missing or not found:
        remedy = "give a module below the study's folder"
        raise ValueError(f"-m {name}: there is no {whole.name} in {folder}; {remedy}")
    return (found[-1], *found[:-1])


def companions_at(place: Path, below: Path) -> Iterator[Module]:
    """A file, or all of a folder but what is hidden or compiled."""
    if not place.is_dir():
        package = place.parent.relative_to(below).parts if place.suffix == ".py" else ()
        yield Module(place, ".".join(package))
        return
    for path in sorted(place.iterdir()):
        if not path.name.startswith((".", "__pycache__")):
            yield from companions_at(path, below)


PLAIN_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")  # of a registered file


def odd_names(code: Code) -> Iterator[str]:
    for name in code.names:
        if not PLAIN_NAME.fullmatch(name) or ".." in name:
            remedy = "rename it: letters, digits, points, dashes and underscores"
            yield f"trainer: {printable(ascii(name))} cannot be registered; {remedy}"


def same_twice(study: Study, codes: Mapping[tuple, Code]) -> Iterator[str]:
    """A line for each arm that runs the same files with the same settings as one before it."""
    known: dict[tuple, str] = {}
    for layers in layered(study):
        code = codes.get(layers.arm.trainer)
        if code is None or not layers.key.startswith(("base", "arms.")) or len(layers.parts) > 2:
            continue
        contents = code.files[0][1]
        flags = sorted((f, text_of(v)) for f, v in layers.whole.flags if v is not False)
        files = hashed((("", contents), *code.files[1:]))
        settings = files, tuple(flags), tuple(sorted(layers.whole.env))
        if (other := known.setdefault(settings, layers.key)) != layers.key:
            same = "the baseline" if other == "base" else other
            yield f"{layers.key}: the same code and the same settings as {same}; leave it out"
