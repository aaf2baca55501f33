"""Can a study be meant?  What its values say together: names, placeholders, arms that are equal.

Pure, and of any study, however it was written. What needs the disk (files, texts that occur once,
revisions) is looked at elsewhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import prod

from ablation.runs.run import Arm, Repeated, Value
from ablation.study.document import Faults, meant
from ablation.study.profiles import PROFILES, TRAINER_FLAGS, Scale
from ablation.study.study import BASELINE, LENGTHS, Study, Trainer, overlaid, text_of

PLACEHOLDERS = {  # that a trainer is told by, where it is told: what stands there in a run
    "num_iterations": "steps of the run",
    "seconds": "seconds of the run, for length = time",
    "seed": "its seed",
    "run_dir": "a folder of its own, where it may write",
    "data_dir": "the first of trainer.data",
    "num_gpus": "GPUs of the run; 0 on a CPU",
}
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
TOLD_OURS = ("num_iterations", "seed", "data_dir", "device", "log_file", "check")  # its flags
OF_THE_PLANS = re.compile(  # names that arms of stages have, and folders beside those of arms
    rf"{BASELINE}|unrefined|noise_baseline|by_hand|of_grid|code|compile_cache"
    r"|(final|screen)_.*|validation_[0-9]+|.*_repeat"
)
NEAR = 0.8  # to a placeholder, in code, where {other} names may be meant
MOST_CONFIGURATIONS = 10_000


def groups(study: Study) -> dict[str, tuple[Arm, ...]]:
    """The arms of a study by the table in which they stand."""
    names = ("arms", "refinements", "cells", "screening")
    return {name: getattr(study, name) for name in names}


def everything(study: Study) -> Iterator[tuple[str, Arm]]:
    """(key, arm) of all that a study says of its runs."""
    yield "base", study.base
    for group, arms in groups(study).items():
        yield from ((f"{group}.{arm.name}", arm) for arm in arms)


UNREAD = Trainer(command=())  # in place of one whose table has faults


def faults_of_sense(study: Study, has_base: bool = True) -> list[str]:
    """Everything that cannot be meant, in a study whose values are each as they should be.
    has_base: its base could be read."""
    faults = Faults()
    if study.trainer.is_ours:
        check_told_ours(study, faults)
    elif has_base and study.trainer != UNREAD:
        check_told(study, faults)
    check_placeholders(study, faults)
    known = PROFILES.get(study.trainer.profile)
    faults += faults_of_equal_arms(study, known.scale if known else None)
    check_number(study, faults)
    return faults


# ---------------------------------------------------------------------------------------------
# Names


def faults_of_names(study: Study) -> list[str]:
    """Arms that would be mistaken for another, or for what a plan adds."""
    faults, seen = Faults(), dict[str, str]()
    for key, arm in everything(study):
        if key == "base":
            continue
        if OF_THE_PLANS.fullmatch(arm.name.lower()):
            faults.add(key, arm.name, "a name that the plans use; give another")
        if key.startswith("screening."):
            continue  # it is called screen_...
        if (other := seen.setdefault(arm.name.lower(), key)) != key:
            faults.add(key, arm.name, f"the name of {other} too; give each its own")
    return faults


def check_number(study: Study, faults: Faults) -> None:
    n = len(study.arms)
    n *= prod(len(v) for _, v in study.grid) if study.grid else 1 + len(study.refinements)
    if n > MOST_CONFIGURATIONS:
        key = "grid" if study.grid else "refinements"
        faults.add(key, n, f"configurations in all; give at most {MOST_CONFIGURATIONS}")


# ---------------------------------------------------------------------------------------------
# What a run is told


def texts_in(value: Value) -> tuple[str, ...]:
    values = value.values if isinstance(value, Repeated) else value
    return tuple(v for v in (values if isinstance(values, tuple) else (values,)) if type(v) is str)


def texts_of(arm: Arm) -> Iterator[tuple[str, str]]:
    """(key, text) of everything in which a placeholder may stand."""
    for flag, value in arm.flags:
        yield from ((f"flags.{flag}", text) for text in texts_in(value))
    yield from ((f"env.{name}", text) for name, text in arm.env)
    yield from ((f"replace[{k}].with", r.new) for k, r in enumerate(arm.replacements))


def known_placeholders(study: Study) -> list[str]:
    trainer = study.trainer
    if trainer.is_ours or trainer == UNREAD:
        return [*PLACEHOLDERS, "device", "log_file"]
    without = {"num_iterations" if trainer.by_time else "seconds"}
    without |= {"seed"} if trainer.seed == "none" else set()
    without |= set() if trainer.data else {"data_dir"}
    return [name for name in PLACEHOLDERS if name not in without]


WHY_NOT = {  # a placeholder that another trainer would have
    "seconds": 'for trainer.length = "time"; give {num_iterations}',
    "num_iterations": 'for trainer.length = "steps"; give {seconds}',
    "seed": 'trainer.seed is "none"; leave it out, or give "told"',
    "data_dir": "no trainer.data says which; give it",
}


def check_placeholders(study: Study, faults: Faults) -> None:
    known = known_placeholders(study)
    texts = [(f"trainer.command[{k}]", text) for k, text in enumerate(study.trainer.command)]
    for key, arm in everything(study):
        texts += [(f"{key}.{name}", text) for name, text in texts_of(arm)]
    for key, text in texts:
        for name in PLACEHOLDER.findall(text):
            in_code = key.endswith(".with")  # where {this} may be Python
            if name in known or (in_code and not is_near(name, known)):
                continue
            if name in WHY_NOT:
                faults.add(key, f"{{{name}}}", WHY_NOT[name])
            else:
                remedy = meant(name, known).replace("known are", "known in braces are")
                faults.add(key, f"{{{name}}}", f"no such placeholder; {remedy}")


def is_near(name: str, known: Sequence[str]) -> bool:
    return name in WHY_NOT or bool(get_close_matches(name[:64], known, n=1, cutoff=NEAR))


def check_told(study: Study, faults: Faults) -> None:
    """A trainer has to be told its length, and its seed if it has one, in every run."""
    trainer = study.trainer
    sign = LENGTHS[trainer.length]
    needed = {"trainer.length": (trainer.length, sign, "length", "")}
    if trainer.seed != "none":
        remedy = '; or give trainer.seed = "none" for a trainer without one'
        needed["trainer.seed"] = (trainer.seed, "{seed}", "seed", remedy)
    for key, (value, sign, what, remedy) in needed.items():
        if not tells(study, study.base, sign):
            where = f'base.flags.NAME = "{sign}", or base.env, or base.replace'
            faults.add(key, value, f"nothing tells the {what}; give {where}{remedy}")
            continue
        for path, arm in everything(study):
            if not tells(study, overlaid(study.base, arm), sign):
                remedy = f"replaces what tells the {what}; leave {sign} in it"
                faults.append(f"{path}: {study.label(arm)}: {remedy}")


def tells(study: Study, arm: Arm, sign: str) -> bool:
    texts = (*study.trainer.command, *(text for _, text in texts_of(arm)))
    return any(sign in text for text in texts)


def check_told_ours(study: Study, faults: Faults) -> None:
    for key, arm in everything(study):
        for flag, value in arm.flags:
            if flag in TOLD_OURS:
                remedy = "this project's own trainer is told it in every run; leave it out"
                faults.add(f"{key}.flags.{flag}", value, remedy)


# ---------------------------------------------------------------------------------------------
# What differs in nothing


def settings_of(arm: Arm, told: Mapping[str, Value]) -> tuple:
    """All that is said by an arm, flags as on a command line. told: flags beneath its own."""
    flags = {flag: words_of(value) for flag, value in {**told, **dict(arm.flags)}.items()}
    pairs = frozenset(flags.items()), frozenset(arm.env)
    return *pairs, arm.script, frozenset(arm.replacements), arm.revision


def effective(study: Study, arm: Arm, told: Mapping[str, Value]) -> tuple:
    """What tells the runs of an arm apart from others: all it is told, laid over the base."""
    whole = overlaid(study.base, arm)
    if whole.script in study.trainer.command:
        whole = replace(whole, script="")
    flags, *rest = settings_of(whole, told)
    return frozenset((flag, words) for flag, words in flags if words is not None), *rest


def words_of(value: Value) -> tuple[str, ...] | None:
    """What follows a flag on the command line; None for a flag that is left out."""
    if value is False:
        return None
    if value is True:
        return ()
    return tuple(map(text_of, value.values)) if isinstance(value, Repeated) else (text_of(value),)


def faults_of_equal_arms(study: Study, scale: Scale | None = None) -> list[str]:
    """Arms that are the same configuration as another, or as the baseline; changes that are the
    same as another, or change nothing of any arm. scale: of our own trainer, where it is known."""
    faults = Faults()
    told = {name: getattr(scale, name) for name in TRAINER_FLAGS} if scale else {}
    baseline = {effective(study, study.baseline(), told): "the baseline"}
    for group, arms in groups(study).items():
        are_changes = group in ("refinements", "cells")
        seen = {} if are_changes else dict(baseline)
        for arm in (arm for arm in arms if not arm.is_baseline):
            what = settings_of(arm, {}) if are_changes else effective(study, arm, told)
            same = seen.get(what) or seen.get(arm.configuration)
            for sign in (what, arm.configuration):
                seen.setdefault(sign, f"{group}.{arm.name}")
            if same:
                remedy = f"is the same configuration as {same}; change it, or leave it out"
                faults.append(f"{group}.{arm.name}: {study.label(arm)}: {remedy}")
    return faults + faults_of_idle(study, told)


def faults_of_idle(study: Study, told: Mapping[str, Value]) -> list[str]:
    """Refinements that say what every arm is told already, by the base or its scale."""

    def is_idle(change: Arm) -> bool:
        for arm in study.arms:
            whole = overlaid(arm, change)
            same = effective(study, whole, told) == effective(study, arm, told)
            if not same or whole.configuration == arm.configuration:
                return False
        return bool(study.arms)

    what = "changes nothing of any arm; give another value, or leave it out"
    return [
        f"refinements.{change.name}: {study.label(change)}: {what}"
        for change in study.refinements
        if is_idle(change)
    ]
