"""What does a document say that somebody wrote?  Its values by tables of keys, and all its faults.

A document is what TOML and JSON have: tables, lists, texts, numbers. Reading one never stops at the
first fault, and no value of it leads to anything but a fault: it may come from anybody.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ablation.runs.run import Flags, Repeated, Replacement, Value
from ablation.runs.untrusted import is_number, printable

MOST_KEYS = 200  # of any table, and entries of any list
MOST_TEXT, MOST_PROSE, MOST_CODE = 1000, 4000, 100_000  # signs
MOST_SHOWN = 50  # faults in one answer


class StudyFaults(ValueError):
    """Everything in a document that cannot be meant, a line each: key, value, what is wrong with
    it, remedy."""

    def __init__(self, faults: Iterable[str], study: Any = None):
        """study: as far as it could be read, where its trainer could."""
        self.faults, self.study = tuple(faults), study
        more = len(self.faults) - MOST_SHOWN
        more_line = [f"and {more} faults more"] if more > 0 else []
        self.lines = (*self.faults[:MOST_SHOWN], *more_line)
        super().__init__("\n".join(self.lines))


class Faults(list[str]):
    """Those found so far."""

    def add(self, key: str, value, what: str) -> Any:
        """One more. Gives None, which is what such a value is read as."""
        self.append(f"{printable(key, 200)}: {shown(value)}: {printable(what, 400)}")

    def lack(self, key: str, remedy: str) -> None:
        self.append(f"{key}: not given: {remedy}")


def shown(value) -> str:
    """A value for a message: one short line, whatever it is."""
    if isinstance(value, str):
        return f'"{printable(value, 60)}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping | list | tuple):
        kind = "table" if isinstance(value, Mapping) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a very long number"
    return printable(str(value), 60)


def meant(name: str, known: Iterable[str], what: str = "") -> str:
    """What is known in place of a name that nobody knows: the nearest, or all."""
    known = list(known)
    near = get_close_matches(name[:64], known, n=1)
    return f"did you mean {near[0]}?" if near else f"{what or 'known are '}{', '.join(known)}"


# ---------------------------------------------------------------------------------------------
# Kinds of values: each gives what is meant, or adds to the faults and gives None

Kind = Callable[[Any, str, Faults], Any]


def kind(is_fit: Callable[[Any], bool], remedy: str, convert: Callable = lambda v: v) -> Kind:
    def read(value, key: str, faults: Faults):
        if is_fit(value):
            return convert(value)
        return faults.add(key, value, remedy)

    return read


def is_text(value, most: int = MOST_TEXT, also: str = "") -> bool:
    return (
        isinstance(value, str)
        and len(value) <= most
        and all(sign.isprintable() or sign in also for sign in value)
    )


def is_name(pattern: str) -> Callable[[Any], bool]:
    whole = re.compile(pattern)
    return lambda value: isinstance(value, str) and bool(whole.fullmatch(value))


def is_prose(value) -> bool:
    return isinstance(value, str) and is_text(joined(value), MOST_PROSE) and bool(joined(value))


def joined(text: str) -> str:
    """A text of several lines as one."""
    return " ".join(text.split())


PROSE = kind(is_prose, "give a text of printable signs", joined)
TEXT = kind(lambda v: is_text(v) and bool(v.strip()), "give a text of printable signs, one line")


def is_label(value) -> bool:
    """Of what is put into the texts of rules, in which braces stand for numbers."""
    return is_text(value) and not {"{", "}"} & set(value)


UNIT = kind(is_label, "give a text of printable signs, without braces, or an empty one")
WORD = kind(
    lambda v: is_label(v) and bool(v.strip()), "give a text of printable signs, without braces"
)
PLACE = kind(
    lambda v: is_text(v) and bool(v.strip()) and v == v.strip(), "give a path, relative to the file"
)
INSIDE = kind(
    lambda v: is_text(v) and bool(v.strip()) and not v.startswith("/") and ".." not in v.split("/"),
    "give a path below the trainer's folder: relative, without ..",
)
CODE = kind(
    lambda v: is_text(v, MOST_CODE, "\n\t\r"), "give a text, of printable signs and line ends"
)
YES_OR_NO = kind(lambda v: type(v) is bool, "give true or false")


def whole(most: int, least: int = 1) -> Kind:
    remedy = f"give a whole number from {least} to {most}"
    return kind(lambda v: type(v) is int and least <= v <= most, remedy)


def number(least: float, most: float, remedy: str = "") -> Kind:
    remedy = remedy or f"give a number from {least:g} to {most:g}"
    return kind(lambda v: is_number(v) and least <= v <= most, remedy, float)


def one_of(known: Iterable[str]) -> Kind:
    known = tuple(known)

    def read(value, key: str, faults: Faults):
        if isinstance(value, str) and value in known:
            return value
        nearest = meant(value, known, "give ") if isinstance(value, str) else ""
        return faults.add(key, value, nearest or f"give {', '.join(known)}")

    return read


def list_of(each: Kind, remedy: str, least: int = 0) -> Kind:
    def read(value, key: str, faults: Faults):
        if not isinstance(value, list | tuple) or not least <= len(value) <= MOST_KEYS:
            return faults.add(key, value, remedy)
        before = len(faults)
        items = tuple(each(item, f"{key}[{k}]", faults) for k, item in enumerate(value))
        return items if len(faults) == before else None

    return read


def table_of(names: Callable[[Any], bool], remedy: str, each: Kind) -> Kind:
    """A table of names that its writer chose, as pairs in its order."""

    def read(value, key: str, faults: Faults):
        if not isinstance(value, Mapping):
            return faults.add(key, value, "give a table, NAME = value")
        if len(value) > MOST_KEYS:
            return faults.add(key, value, f"has {len(value)} entries; give at most {MOST_KEYS}")
        before, pairs = len(faults), []
        for name, item in value.items():
            if not names(name):
                faults.add(f"{key}.{name}", item, remedy)
            else:
                pairs.append((name, each(item, f"{key}.{name}", faults)))
        return tuple(pairs) if len(faults) == before else None

    return read


def fields(value, kinds: Mapping[str, Kind], path: str, faults: Faults) -> dict:
    """What a table with these keys says, as far as it can be meant; a fault for all the rest."""
    if not isinstance(value, Mapping):
        faults.add(path or "the study", value, "give a table")
        return {}
    if len(value) > MOST_KEYS:
        faults.add(path or "the study", value, f"has {len(value)} keys; known are {len(kinds)}")
        return {}
    found = {}
    for name, item in value.items():
        key = f"{path}.{name}" if path else str(name)
        if name not in kinds:
            faults.add(key, item, f"no such key; {meant(str(name), kinds)}")
        elif (read := kinds[name](item, key, faults)) is not None:
            found[name] = read
    return found


# ---------------------------------------------------------------------------------------------
# Settings of a trainer

IS_FLAG = is_name(r"[A-Za-z0-9_+~@][A-Za-z0-9_.+/@:~-]{0,99}")
FLAG_REMEDY = "give the flag's name without the dashes in front, of letters, digits, _ - and ."
IS_VARIABLE = is_name(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
REPEATED = {"values", "repeat"}


def is_scalar(value) -> bool:
    return isinstance(value, bool) or is_number(value) or is_text(value)


SCALAR = kind(is_scalar, "give a text of printable signs, a number, true or false")
SCALARS = list_of(SCALAR, "give a list of at least one value; false leaves the flag out", least=1)


def flag_value(value, key: str, faults: Faults) -> Value | None:
    """A flag's value: a list is joined with commas, or repeated."""
    if isinstance(value, Mapping):
        if not {"values"} <= value.keys() <= REPEATED:
            remedy = "give a value, or { values = [...], repeat = true }"
            return faults.add(key, value, f"{remedy}; a flag with a dot in it stands in quotes")
        values = SCALARS(value["values"], f"{key}.values", faults)
        again = YES_OR_NO(value.get("repeat", False), f"{key}.repeat", faults)
        return Repeated(values) if again and values else values
    return SCALARS(value, key, faults) if isinstance(value, list) else SCALAR(value, key, faults)


FLAGS = table_of(IS_FLAG, FLAG_REMEDY, flag_value)


def env_value(value, key: str, faults: Faults) -> str | None:
    if is_text(value):
        return value
    remedy = f'; write "{value}"' if is_number(value) else ""
    return faults.add(key, value, f"a variable is a text of printable signs{remedy}")


ENV = table_of(
    IS_VARIABLE, "give a variable's name: letters, digits, _, no digit in front", env_value
)


def replacement(value, key: str, faults: Faults) -> Replacement | None:
    before = len(faults)
    found = fields(value, {"file": INSIDE, "find": CODE, "with": CODE}, key, faults)
    if len(faults) > before:
        return None
    if lacking := [name for name in ("file", "find", "with") if name not in found]:
        return faults.add(key, value, f"give {' and '.join(lacking)}")
    if not found["find"].strip() or found["find"] == found["with"]:
        return faults.add(f"{key}.find", found["find"], "give a text that another is put in for")
    return Replacement(found["file"], found["find"], found["with"])


REPLACE = list_of(replacement, "give a list of { file, find, with }")


def plain_flags(flags: Flags) -> dict:
    """Flags as a document has them."""

    def plain(value):
        if isinstance(value, Repeated):
            return {"values": list(value.values), "repeat": True}
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in flags}
