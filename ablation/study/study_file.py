"""How is a study written down?  As a table: TOML that a person wrote, or JSON that was registered.

Every key is a row of a table here, and of the one in docs/studies.md. What values mean together is
checked in `sense`. All faults are told at once.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from ablation.runs.formats import FORMATS, own_format
from ablation.runs.run import Arm
from ablation.runs.untrusted import open_regular, printable, printable_path
from ablation.study import document as doc
from ablation.study.arm_option import OWN_SCRIPT, Arms, of_the_option, tables_of_arms, unknown_flags
from ablation.study.document import Faults, StudyFaults
from ablation.study.heads import HEADS
from ablation.study.profiles import NOISE_NOT_KNOWN, PROFILES, TERMS, Design, check_terms
from ablation.study.sense import UNREAD, faults_of_names, faults_of_sense
from ablation.study.study import (
    BETTER,
    FLAG_FORMS,
    LAUNCHES,
    LENGTHS,
    NOTHING,
    SHORT,
    Metric,
    Phase,
    Study,
    Trainer,
    Words,
)

BY_MACHINE = "by machine"
SEEDS = ("told", "none")
DROPS = 10  # of delta_target lost in a short run: plain harm; chosen
MOST_BYTES = 1 << 20

# ---------------------------------------------------------------------------------------------
# The keys of a trainer


def log_form(value, key: str, faults: Faults):
    """The name of a form of logs, or the study's own."""
    if not isinstance(value, Mapping):
        return doc.one_of(FORMATS)(value, key, faults)
    before = len(faults)
    found = doc.fields(value, LOG, key, faults)
    for name, what in (("step", "a regular expression"), ("example", "a line that it matches")):
        if name not in value:
            faults.lack(f"{key}.{name}", f"give {what}")
    return tuple(found.items()) if len(faults) == before else None


def command_words(value, key: str, faults: Faults) -> tuple[str, ...] | None:
    """A command: a text is one word, a script."""
    words = [value] if isinstance(value, str) else value
    return doc.list_of(doc.TEXT, "give a script, or a list of words", least=1)(words, key, faults)


LOG = {**dict.fromkeys(("step", "end", "example"), doc.TEXT), "first_step": doc.whole(1, least=0)}
TRAINER = {
    "command": command_words,
    "folder": doc.PLACE,
    "launch": doc.one_of(LAUNCHES),
    "flag_form": doc.one_of(FLAG_FORMS),
    "log": log_form,
    "metric": doc.kind(
        doc.is_name(r"[A-Za-z_][A-Za-z0-9_/.-]{0,63}( [A-Za-z0-9_/.-]{1,64}){0,2}"),
        "give its name as the log prints it",
    ),
    "unit": doc.UNIT,
    "better": doc.one_of(BETTER),
    "length": doc.one_of(LENGTHS),
    "seed": doc.one_of(SEEDS),
    "full_iterations": doc.whole(10**9),
    "full_seconds": doc.whole(10**7),
    "expected_hours": doc.number(1e-6, 1e4),
    "budget_hours": doc.number(1e-6, 1e6),
    "companions": doc.list_of(doc.INSIDE, "give a list of files"),
    "data": doc.list_of(doc.PLACE, "give a list of paths"),
    "profile": doc.one_of((BY_MACHINE, *PROFILES)),
}
LEFT_OPEN = {  # by this project's own trainer
    *("profile", "command", "folder", "full_iterations", "budget_hours", "companions", "data"),
}


def trainer_of(value, key: str, faults: Faults) -> Trainer | None:
    before = len(faults)
    found = doc.fields(value, TRAINER, key, faults)
    if isinstance(value, Mapping):
        (check_ours if "profile" in value else check_foreign)(value, key, faults)
        check_own_form(found, key, faults)
    if len(faults) > before:
        return None
    name, unit, better = (found.pop(part, None) for part in ("metric", "unit", "better"))
    metric = Metric(name or Metric.name, better=better or Metric.better)
    if unit is None:
        unit = Metric.unit if metric.name == Metric.name else ""
    full = found.pop("full_seconds", None) or found.get("full_iterations", 0)
    return Trainer(**found | {"metric": replace(metric, unit=unit), "full_iterations": full})


def check_own_form(found: Mapping, key: str, faults: Faults) -> None:
    """Faults of a form of logs that the study describes, its metric not being in it among them."""
    if isinstance(found.get("log"), tuple):
        try:
            own_format(dict(found["log"]), found.get("metric", Metric.name))
        except ValueError as error:
            lines = str(error).splitlines()
            faults += (f"{key}.{printable(line, 400)}".replace(" ", ": ", 1) for line in lines)


def check_ours(value: Mapping, key: str, faults: Faults) -> None:
    """Faults of what this project's own trainer has fixed."""
    for name in value.keys() & (TRAINER.keys() - LEFT_OPEN):
        remedy = "this project's own trainer, which profile says it is, has its own; leave one out"
        faults.add(f"{key}.{name}", value[name], remedy)
    if value.get("command") in (*Trainer.command, [*Trainer.command]):
        remedy = "leave it out for this project's own, or write ./train_gpt.py for one of yours"
        faults.add(f"{key}.command", value["command"], remedy)


def check_foreign(value: Mapping, key: str, faults: Faults) -> None:
    """Faults of what has to be said of a trainer that nobody here knows."""
    if "command" not in value:
        own = f'profile = "{BY_MACHINE}" for this project\'s own trainer'
        return faults.lack(f"{key}.command", f"give a script, or {own}")
    if "log" not in value:
        faults.lack(f"{key}.log", f"give one of {', '.join(FORMATS)}, or a form of your own")
    if "expected_hours" not in value:
        faults.lack(f"{key}.expected_hours", "give the hours of a full run on the whole machine")
    by_time = value.get("length") == "time"
    full, other = ("full_iterations", "full_seconds")[:: -1 if by_time else 1]
    if full not in value and value.get("length", "steps") in (*LENGTHS,):
        faults.lack(f"{key}.{full}", "give the length of a full run")
    if other in value:
        remedy = f'for a trainer of length = "{"steps" if by_time else "time"}"; give {full}'
        faults.add(f"{key}.{other}", value[other], remedy)


def trainer_document(trainer: Trainer) -> dict:
    """The inverse of `trainer_of`."""
    metric = trainer.metric
    named = {"metric": metric.name, "unit": metric.unit, "better": metric.better}
    values = {name: getattr(trainer, name) for name in TRAINER if hasattr(trainer, name)} | named
    values["log"] = trainer.log if isinstance(trainer.log, str) else dict(trainer.log)
    if trainer.by_time:
        values["full_seconds"] = values.pop("full_iterations")
    if trainer.is_ours:
        default = asdict(Trainer())
        values = {n: v for n, v in values.items() if n in LEFT_OPEN and v != default[n]}
    lists = {n: list(v) for n, v in values.items() if isinstance(v, tuple)}
    return {name: value for name, value in (values | lists).items() if value or name == "unit"}


# ---------------------------------------------------------------------------------------------
# The keys of arms

DIFFERENCE = {
    "flags": doc.FLAGS,
    "env": doc.ENV,
    "script": doc.PLACE,
    "replace": doc.REPLACE,
    "revision": doc.kind(
        doc.is_name(r"[A-Za-z0-9_@][A-Za-z0-9_./@^~+-]{0,199}"), "give a branch, a tag or a commit"
    ),
}
BASE = {name: DIFFERENCE[name] for name in ("flags", "env", "replace")}
ARM = DIFFERENCE | {"description": doc.PROSE, "slower": doc.number(-1, 1000)}
IS_ARM = doc.is_name(r"[A-Za-z0-9_]{1,57}")  # 64 with what a plan puts before or behind it
ARM_REMEDY = "name it by letters, digits and _, at most 57"


def arm_made(name: str, found: dict) -> Arm:
    return Arm(name, replacements=found.pop("replace", ()), **found)


def base_of(value, key: str, faults: Faults) -> Arm | None:
    before = len(faults)
    found = doc.fields(value, BASE, key, faults)
    return arm_made(NOTHING.name, found) if len(faults) == before else None


def arm_of(value, key: str, faults: Faults) -> Arm | None:
    before = len(faults)
    found = doc.fields(value, ARM, key, faults)
    return arm_made(key.split(".", 1)[1], found) if len(faults) == before else None


def arms_of(value, key: str, faults: Faults) -> tuple[Arm, ...] | None:
    """The arms of a table; those that have faults are left out."""
    if not isinstance(value, Mapping) or not 1 <= len(value) <= doc.MOST_KEYS:
        return faults.add(key, value, f"give 1 to {doc.MOST_KEYS}, each NAME = a table")
    arms: list[Arm] = []
    for name, item in value.items():
        if not IS_ARM(name):
            faults.add(f"{key}.{name}", name, ARM_REMEDY)
        elif (arm := arm_of(item, f"{key}.{name}", faults)) is not None:
            is_default = key == "cells" and not arms
            if is_default or not arm.is_baseline:
                arms.append(arm)
                continue
            remedy = f"differs in nothing; give {', '.join(DIFFERENCE)}"
            faults.add(f"{key}.{name}", item, remedy)
    return tuple(arms)


def arm_document(arm: Arm) -> dict:
    """The inverse of `arm_of`."""
    replacements = [{"file": r.file, "find": r.old, "with": r.new} for r in arm.replacements]
    values = {
        "flags": doc.plain_flags(arm.flags),
        "env": dict(arm.env),
        "script": arm.script,
        "replace": replacements,
        "revision": arm.revision,
        "description": arm.description,
        "slower": arm.slower,
    }
    return {name: value for name, value in values.items() if value}


# ---------------------------------------------------------------------------------------------
# The keys of a study


def words_of(value, key: str, faults: Faults) -> Words:
    return Words(**doc.fields(value, WORDS, key, faults))


def terms_of(value, key: str, faults: Faults) -> dict | None:
    """Statistical terms, each by itself as it should be."""
    before = len(faults)
    found = doc.fields(value, NOISE, key, faults)
    return found if len(faults) == before else None


def design_of(terms: dict | None, trainer: Trainer, faults: Faults) -> Design | None:
    """The terms of a study, in which a trainer without a seed has no pairs."""
    if terms is None and trainer.is_ours:
        return None
    terms = terms or {}
    if trainer.seed == "none":
        for name in (name for name in ("pairing", "rho") if terms.get(name)):
            faults.add(f"noise.{name}", terms[name], "no seed, so no pairs; leave it out")
        terms = {"pairing": 0.0, "rho": 0.0} | terms
    if "sigma0" not in terms:
        for name in (name for name in OF_SIGMA if name in terms):
            faults.add(f"noise.{name}", terms[name], "give sigma0 too; else stage 1 measures both")
        return replace(NOISE_NOT_KNOWN, **{n: v for n, v in terms.items() if n not in OF_SIGMA})
    known = NOISE_NOT_KNOWN.with_noise(terms["sigma0"])
    target = terms.get("delta_target", known.delta_target)
    design = replace(known, **{"drop": min(DROPS * target, 1e3)} | terms)
    try:
        check_terms(design)
    except ValueError as error:
        faults.append(f"noise.{error}".replace(" ", ": ", 1))
    return design


def term(name: str) -> doc.Kind:
    is_fit, remedy = TERMS[name]
    convert = int if name == "first_look" else float
    return doc.kind(lambda v: doc.is_number(v) and is_fit(v), remedy, convert)


OF_SIGMA = ("delta_eq", "delta_target", "drop")
NOISE = {name: term(name) for name in TERMS}
WORDS = {field.name: doc.WORD for field in fields(Words)}
STUDY = {
    "name": doc.kind(
        doc.is_name(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}"),
        "give up to 40 letters, digits, _ and -, as key name or as the file's",
    ),
    "question": doc.PROSE,
    "hypothesis": doc.PROSE,
    "trainer": trainer_of,
    "base": base_of,
    "arms": arms_of,
    "refinements": arms_of,
    "cells": arms_of,
    "screening": arms_of,
    "repeated": doc.TEXT,
    "favourite": doc.TEXT,
    "grid": doc.table_of(doc.IS_FLAG, doc.FLAG_REMEDY, doc.SCALARS),
    "words": words_of,
    "names": doc.table_of(doc.IS_FLAG, doc.FLAG_REMEDY, doc.TEXT),
    "noise": terms_of,
}
NEEDED = {
    "question": "give what the study asks",
    "trainer": "give the table of what trains: command, or profile",
    "arms": "give at least one, here or as --arm NAME='--flag value'",
}
GROUPS = ("arms", "refinements", "cells", "screening")


def study_from(document, name: str = "", script: Path | None = None) -> Study:
    """The study that a table describes, as TOML or JSON have it. name: where it gives none. script:
    our own trainer, where its options are to be looked at.

    Raises StudyFaults.
    """
    faults = Faults()
    if name and isinstance(document, Mapping):
        document = {"name": name, **document}
    found = doc.fields(document, STUDY, "", faults)
    if not isinstance(document, Mapping):
        raise StudyFaults(faults)
    for key, remedy in (NEEDED | {"name": "give a name"}).items():
        if key not in document:
            faults.lack(key, remedy)
    for key in ("repeated", "favourite"):
        arms = document.get("arms")
        if key in found and isinstance(arms, Mapping) and found[key] not in arms:
            faults.add(key, found[key], f"no such arm; {doc.meant(found[key], map(str, arms))}")
    study = study_made(found, faults)
    faults += faults_of_names(study)
    faults += faults_of_sense(study, has_base="base" in found or "base" not in document)
    faults += unknown_flags(study, script) if script else []
    if faults:
        raise StudyFaults(faults, faultless(study, faults) if "trainer" in found else None)
    return HEADS if study == HEADS else study


def faultless(study: Study, faults: Iterable[str]) -> Study:
    """The study without the arms that have faults."""
    faulty = {tuple(re.split(r"[.:]", fault)[:2]) for fault in faults}
    arms, refinements, cells, screening = (
        tuple(arm for arm in getattr(study, group) if (group, arm.name) not in faulty)
        for group in GROUPS
    )
    whole = replace(study, arms=arms, refinements=refinements)
    return replace(whole, cells=cells, screening=screening, phases=())


def study_made(found: dict, faults: Faults) -> Study:
    """The study of what could be read."""
    trainer = found.get("trainer", UNREAD)
    noise = design_of(found.get("noise"), trainer, faults)
    empty = {"name": "", "question": ""}
    study = Study(**empty | found | {"noise": noise, "trainer": trainer})
    arms, screening = (
        tuple(map(study.described, group)) for group in (study.arms, study.screening)
    )  # the others are changes, and their label is of the whole
    study = replace(study, arms=arms, screening=screening)
    by_hand = Phase("arms", (study.baseline(), *study.arms))
    return replace(study, phases=(by_hand, Phase("screening", study.screened, SHORT)))


def document_of(study: Study) -> dict:
    """The table that describes a study: what `study_from` makes the same one of."""
    words = {name: getattr(study.words, name) for name in WORDS}
    tables = {
        "trainer": trainer_document(study.trainer),
        "base": arm_document(study.base),
        **{key: {arm.name: arm_document(arm) for arm in getattr(study, key)} for key in GROUPS},
        "grid": {flag: list(values) for flag, values in study.grid},
        "words": {name: word for name, word in words.items() if word != getattr(Words, name)},
        "names": dict(study.names),
    }
    texts = {key: getattr(study, key) for key in ("name", "question", "hypothesis")}
    chosen = {key: getattr(study, key) for key in ("repeated", "favourite")}
    whole = {key: value for key, value in (texts | chosen | tables).items() if value}
    if study.noise:
        names = NOISE.keys() - ({"sigma0", *OF_SIGMA} if not study.noise.noise_known else {""})
        whole["noise"] = {name: getattr(study.noise, name) for name in NOISE if name in names}
    return whole


# ---------------------------------------------------------------------------------------------
# Files and command lines

LEFT = ("trainer", "base", "names", "noise", "words")  # of a file, by arms of a command line


def read_study(path: Path, arms: Arms = (), script: Path = OWN_SCRIPT) -> Study:
    """The study of a TOML file. arms: (name, flags as on a command line) in place of its own.
    script: this project's own trainer, whose options are known.

    Raises StudyFaults, a line each with the file's name, and ValueError for what is no such file.
    """
    document = read_toml(path)
    if arms:
        kept = {key: value for key, value in document.items() if key in LEFT}
        document = kept | of_arms(arms, document.get("trainer"))
    folder = path.absolute().parent
    try:
        return placed_in(study_from(document, path.stem, script), folder)
    except StudyFaults as error:
        read = error.study and placed_in(error.study, folder)
        raise StudyFaults(as_written(error.faults, path, arms), read) from None


def as_written(faults: Iterable[str], path: Path | None, arms: Arms) -> Iterator[str]:
    """Faults with the file of their study in front, or with the option."""
    for fault in of_the_option(faults) if arms else faults:
        where = "" if path is None or fault.startswith("--arm ") else f"{printable_path(path)}: "
        yield f"{where}{fault}"


def of_arms(arms: Arms, trainer) -> dict:
    """The table of a study of this trainer, its own table, whose arms are on the command line.
    Raises StudyFaults."""
    said = trainer if isinstance(trainer, Mapping) else {}
    metric = printable(str(said.get("metric", Metric.name)), 64)
    verb = "raise" if said.get("better") == "higher" else "lower"
    names = "_".join(re.sub(r"[^A-Za-z0-9_-]", "_", name) for name, _ in arms)
    what = ", ".join(f"{name} ({' '.join(text.split())})" for name, text in arms)
    which = "Does" if len(arms) == 1 else "Does any of"
    return {
        "name": names[:40].lstrip("-") or "arms",
        "question": f"{which} {printable(what, 1000)} {verb} the final {metric}?",
        "arms": tables_of_arms(arms),
    }


def study_of_arms(arms: Arms, profile: str = BY_MACHINE, script: Path = OWN_SCRIPT) -> Study:
    """A study of this project's own trainer whose arms are (name, flags as on a command line).
    Raises StudyFaults, each of which names --arm."""
    document = of_arms(arms, {}) | {"trainer": {"profile": profile}}
    try:
        return study_from(document, script=script)
    except StudyFaults as error:
        raise StudyFaults(as_written(error.faults, None, arms), error.study) from None


def read_toml(path: Path) -> dict:
    """Raises ValueError, with file and line, for what is no TOML."""
    where = printable_path(path)
    try:
        with open_regular(path.resolve()) as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{where}: no such file; give the path of a study's TOML file") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{where}: more than {MOST_BYTES >> 20} MiB; no study is as long")
    try:
        text = data.decode("utf-8-sig")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{where}: line {line}: no UTF-8; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {syntax_fault(str(error), text)}") from None


def syntax_fault(said: str, text: str) -> str:
    """What tomllib says, with the line that it says it of."""
    lines = text.splitlines() or [""]
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
    if not at:
        return f"no TOML: {printable(said)}"
    number = int(at[1] or len(lines))
    line = printable(lines[min(number, len(lines)) - 1], 60)
    remedy = """TOML is key = value, with texts in "quotes", or with a \\ in them in 'quotes'"""
    return f"line {number}: {line}: {printable(said[: at.start()])}; {remedy}"


def placed_in(study: Study, folder: Path) -> Study:
    """The study with the folder from which its relative paths start. None where it has no path:
    then it is the same wherever its file lies. Our own trainer does not lie in that folder."""
    trainer = study.trainer
    others = trainer.companions or trainer.data or trainer.command != Trainer.command
    scripts = any(arm.script for key in GROUPS for arm in getattr(study, key))
    if trainer.is_ours and not (others or scripts or trainer.folder):
        return study
    is_default = trainer.is_ours and trainer.command == Trainer.command
    command = (str(OWN_SCRIPT),) if is_default else trainer.command
    trainer = replace(trainer, folder=str(folder / trainer.folder), command=command)
    return replace(study, trainer=trainer)
