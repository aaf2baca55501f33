"""Which arm does `--arm NAME='--muon_lr 0.02'` mean?  The flags of a command line as a table."""

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ablation.runs.untrusted import open_regular
from ablation.study.document import Faults, StudyFaults, meant
from ablation.study.study import Study

OWN_SCRIPT = Path(__file__).resolve().parents[2] / "train_gpt.py"
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # as it would be printed again
FRACTION = re.compile(r"-?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,3})?")
Arms = Sequence[tuple[str, str]]  # name, flags as on a command line


def tables_of_arms(arms: Arms) -> dict:
    """The arms as a study's file would have them. Raises StudyFaults."""
    tables: dict[str, dict] = {}
    faults = Faults()
    for name, text in arms:
        if name in tables:
            faults.add(f"--arm {name}", text, "is given twice; give each arm a name of its own")
        tables[name] = {"flags": flags_of(name, text, faults)}
    if faults:
        raise StudyFaults(faults)
    return tables


def flags_of(name: str, text: str, faults: Faults) -> dict:
    """Flags by their names; one that is given several times is repeated."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        faults.add(f"--arm {name}", text, f"{error}; close it".lower())
        return {}
    given: dict[str, list] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            given.setdefault(flag, []).append(typed(value) if equals else True)
            flag = "" if equals else flag
        elif flag and not (word.startswith("-") and not FRACTION.fullmatch(word)):
            given[flag][-1], flag = typed(word), ""
        else:
            faults.add(f"--arm {name}", word, "belongs to no flag; give --flag value")
    return {f: v[0] if len(v) == 1 else {"values": v, "repeat": True} for f, v in given.items()}


def typed(word: str) -> str | int | float:
    """A number, where the trainer is told the same by it."""
    if WHOLE.fullmatch(word):
        return int(word)
    return float(word) if FRACTION.fullmatch(word) and not word.lstrip("-").isdecimal() else word


def of_the_option(faults: Iterable[str]) -> Iterator[str]:
    """Faults of a study's arms, in the words of the command line they came from."""
    for fault in faults:
        fault = re.sub(r"^arms\.(\S*?)(?:\.flags)?(\.|: )", arm_of_the_option, fault)
        yield re.sub(r"configuration as arms\.(\w+);", r"configuration as --arm \1;", fault)


def arm_of_the_option(found: re.Match[str]) -> str:
    return f"--arm {found[1]}: {'--' if found[2] == '.' else ''}"


# ---------------------------------------------------------------------------------------------
# The options of our own trainer, without importing it: that takes seconds


@lru_cache
def options_of(script: Path) -> tuple[str, ...]:
    """The long options that a script adds to its parser, as far as they stand there as texts; none
    for a script that cannot be read."""
    try:
        with open_regular(script.resolve()) as file:
            tree = ast.parse(file.read())
    except (OSError, ValueError, SyntaxError):
        return ()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    adding = [c for c in calls if getattr(c.func, "attr", "") == "add_argument"]
    words = [str(a.value) for c in adding for a in c.args if isinstance(a, ast.Constant)]
    return tuple(word[2:] for word in words if word.startswith("--"))


def unknown_flags(study: Study, script: Path = OWN_SCRIPT) -> list[str]:
    """Faults of flags that our own trainer does not have; none where another file runs."""
    known, faults = options_of(script), Faults()
    trainer = study.trainer
    if not known or not trainer.is_ours or trainer.command != type(trainer).command:
        return faults
    groups = {"base": (study.base,), "arms": study.arms, "refinements": study.refinements}
    groups |= {"cells": study.cells, "screening": study.screening}
    for group, arms in groups.items():
        for arm in (arm for arm in arms if not arm.trainer):
            for flag, value in arm.flags:
                if flag not in known:
                    path = group if group == "base" else f"{group}.{arm.name}"
                    nearest = meant(flag, known, "it has ")
                    faults.add(
                        f"{path}.flags.{flag}", value, f"no option of the trainer; {nearest}"
                    )
    return faults
