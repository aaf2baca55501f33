"""What was asked, with which code and data, and is it still the same?  The experiment folder.

`experiment_configs.json` is written before the first run and never again: profile, plan, rules,
arms, code and data by their hashes. Whoever continues the experiment is held to it. What a person
decides against a rule is kept in `overrides.json`; `staged_ablation_results.json` is derived from
the records after every run, for people and other programs.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from ablation.folder.codes import check_code, plain
from ablation.folder.materials import ROOT, Materials, hash_of
from ablation.plan.next_step import MAX_ATTEMPTS, PLANS, stages_of
from ablation.plan.stage import Stage
from ablation.plan.validation import MAX_GIVEN_UP
from ablation.runs.run import arm_from
from ablation.runs.store import write_json
from ablation.runs.untrusted import is_number, printable, read_json
from ablation.study.experiment import (
    MOST_FIRST_SEED,
    STOP_ON,
    Experiment,
    FirstCosts,
    Share,
    profile_of,
    with_scale,
)
from ablation.study.profiles import PROFILES, Design, Profile, check_terms
from ablation.study.study import Study
from ablation.study.study_file import document_of, study_from

# ---------------------------------------------------------------------------------------------
# Registration: what is fixed before the first run


def files_of(room: str, *without: str) -> tuple[str, ...]:
    """The files of a room, by their paths in the checkout."""
    names = sorted(path.name for path in (ROOT / "ablation" / room).glob("[a-z]*.py"))
    return tuple(f"ablation/{room}/{name}" for name in names if name not in without)


OF_CODE_AND_DATA = ("materials.py", "trainers.py", "repository.py", "data.py")
DECIDING_FILES = (  # the files that a decision depends on, from the records on disk to its text
    *files_of("runs", "several.py"),
    "ablation/stats.py",
    "ablation/sequential.py",
    *files_of("study", "asked.py"),
    *files_of("plan", "forecast.py", "power.py"),
    *files_of("folder", *OF_CODE_AND_DATA, "results.py", "answer.py", "course.py"),
)


AS_THEY_ARE = (  # fields of an Experiment that are registered under their names
    *("plan", "stop_on", "screen", "full_iterations", "validation_runs", "budget_hours"),
    *("first_seed", "unet_skips", "log_grad_norms"),
)


def registered(e: Experiment, m: Materials, fingerprint: str | None = None) -> dict:
    """What a resumed experiment must have in common with the one that was begun. fingerprint: of
    the shards, where they need not be looked at."""
    stages = {
        str(stage.number): {
            "name": stage.name,
            "question": stage.question,
            "rule": stage.rule_text(e.profile.design),
            "num_iterations": e.iterations(stage.fraction),
            "arms": [asdict(arm) for arm in stage.arms or e.arms],
            "seeds": list(e.seeds) if e.arms else seeds_of(e, stage),
        }
        for stage in stages_of(e)
    }
    code = m.code
    return {
        "study": document_of(e.study),
        "estimand": estimand(e),
        "failure_rule": (
            "a diverged run is an outcome and stays in every comparison; a crashed or hung run is"
            f" repeated with its seed, {MAX_ATTEMPTS} attempts in all, each paid for"
        ),
        **{name: getattr(e, name) for name in AS_THEY_ARE},
        "profile": registered_profile(e.profile),
        "arms": [asdict(arm) for arm in e.arms],  # by hand
        "seeds": list(e.seeds),  # by hand
        "first_costs": asdict(e.first_costs),
        "stages": stages,
        "counts": {
            "attempts": MAX_ATTEMPTS,
            "pairs": stages_of(e)[-1].most_pairs,
            "pairs_given_up": MAX_GIVEN_UP,
        },
        "spending": "Lan-DeMets, alpha t^3, t: complete pairs over the most that fit",
        "share": asdict(e.share),
        "data": {"fingerprint": fingerprint or m.data_fingerprint},
        "code": {"hash": code.hash, "files": list(code.names)},
        "codes_of_arms": [
            {"trainer": plain(trainer), "hash": code.hash, "files": list(code.names)}
            for trainer, code in m.codes.items()
            if trainer
        ],
        "rules": {"hash": rules_hash(), "files": list(DECIDING_FILES)},
    }


def estimand(e: Experiment) -> str:
    """What is estimated, in words."""
    metric, trainer, scale = e.study.metric, e.study.trainer, e.profile.scale
    sides = "baseline", "arm"
    if metric.better == "higher":
        sides = "arm", "baseline"
    difference = " - ".join(f"mean {metric.name}({side})" for side in sides)
    unit = f", {metric.unit}" if metric.unit else ""
    if trainer.by_time:
        return f"{difference}{unit}, after {e.full_iterations} s of training"
    after = f"after {e.full_iterations} steps"
    if scale is None:
        return f"{difference}{unit}, {after}"
    on = f"on the first {scale.val_tokens} validation tokens"
    return f"{difference}{unit}, of the main head {after}, {on}"


def registered_profile(profile: Profile) -> dict:
    """A profile without what changes no loss."""
    value = asdict(profile)
    if value["scale"]:
        del value["scale"]["device_batch_size"]
    return value


def rules_hash() -> str:
    return hash_of([ROOT / name for name in DECIDING_FILES])


def seeds_of(e: Experiment, stage: Stage) -> dict[str, int]:
    """Those that a stage may use: its own, or those of the stage that it is compared with."""
    number = stage.seeds_of or stage.number
    return {"first": e.seed(number, 0), "last": e.seed(number + 1, 0) - 1}


def new_folder(output_dir: Path, name: str) -> Path:
    """An empty folder for a new experiment, named by its study and the time in UTC."""
    stem = folder_name(name)
    for suffix in ("", *(f"_{n}" for n in range(2, 100))):
        try:
            (output_dir / (stem + suffix)).mkdir(parents=True)
            return output_dir / (stem + suffix)
        except FileExistsError:
            continue
    raise ValueError(f"--output_dir {output_dir}: a hundred experiments began there this second")


def folder_name(study: str) -> str:
    return time.strftime(f"{study}_%Y%m%d_%H%M%S", time.gmtime())


def register(e: Experiment, m: Materials, exp_dir: Path, facts: dict) -> dict:
    """Copy the code that will run, then write the registration; returns what was written."""
    fixed = registered(e, m)
    for code in m.codes.values():
        code.copy_to(exp_dir / "code" / code.hash)
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    document = {
        "experiment_id": uuid.uuid4().hex,
        "created": created.replace("+00:00", "Z"),
        "hash": digest_of(fixed),  # of what is registered; what follows it is free to change
        "registered": fixed,
        # the loss is the same
        "device_batch_size": e.profile.scale and e.profile.scale.device_batch_size,
        "train_script": str(m.script),
        "data_dir": str(m.data_dir),
        **facts,
    }
    write_json(exp_dir / "experiment_configs.json", document)
    return document


def digest_of(fixed: dict) -> str:
    text = json.dumps(fixed, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def check_version(document: dict, exp_dir: Path) -> None:
    """Raise ValueError for an experiment of another version: its next runs would be other ones."""
    if changed := changes(document):
        raise ValueError(f"{exp_dir} cannot be gone on with: {'; '.join(changed)}")


def check_unchanged(document: dict, fixed: dict, exp_dir: Path) -> None:
    """Raise ValueError that names every registered field that differs from what is asked now."""
    check_version(document, exp_dir)
    now = json.loads(json.dumps(fixed))
    differing = [
        f"{path.lstrip('.')}: registered {printable_value(was)}, now {printable_value(is_now)}"
        for path, was, is_now in differences(document["registered"], now)
    ]
    if differing:
        code = document["registered"]["code"]
        script = exp_dir / "code" / code["hash"] / code["files"][0]
        remedy = "give what was registered, or start a new experiment"
        if any(line.startswith("code") for line in differing):
            remedy += f" (the registered trainer: --train_script {script})"
        raise ValueError(f"{exp_dir} is another experiment: {'; '.join(differing)}. {remedy}")


def differences(was, now, path=""):
    """(path, was, now) of every leaf that differs between two JSON values."""
    if isinstance(was, dict) and isinstance(now, dict):
        named = was.get("name") != now.get("name")  # then all the rest differs too
        for key in ["name"] if named else sorted({*was, *now}):
            yield from differences(was.get(key), now.get(key), f"{path}.{key}")
    elif was != now:
        yield path, was, now


def printable_value(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------------------------------------
# An experiment folder

EXPERIMENTS = Path("experiments")  # where they lie unless somebody says otherwise
OF_A_QUEUE = re.compile(  # where a job's script says cd or --output: of Slurm; of PBS or SGE
    r"slurm-[0-9]+(_[0-9]+)?\.(out|err)|[\w.-]+\.[oe][0-9]+(\.[0-9]+)?"
)


def is_new(exp_dir: Path) -> bool:
    """Nothing is there yet: no folder, an empty one, what a killed beginning left, or what a queue
    writes for the job that begins here. Raises ValueError that names what else lies there."""
    path = exp_dir / "experiment_configs.json"
    if os.path.lexists(path):
        return False
    if not exp_dir.exists():
        return True
    ours = re.compile(r"code|lock\.json|\..*")  # before the registration: no run has begun
    with os.scandir(exp_dir) as entries:
        other = sorted(
            entry.name
            for entry in entries
            if not ours.fullmatch(entry.name)
            and not (OF_A_QUEUE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
        )
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise ValueError(
            f"--exp_dir {exp_dir}: no {path.name} there, but {printable(other[0])}{more}; give a"
            " folder that run_aux.py made, or one that is empty or not"
            " there yet to begin in"
        )
    return True


def data_dir_of(document: dict, e: Experiment) -> Path:
    """Where the registered shards lie; where that folder is gone, the profile's in this checkout.
    Their fingerprint is compared with the registered one."""
    was = Path(document["data_dir"])
    here = ROOT / e.profile.data_dir
    return here if not was.is_dir() and here.is_dir() else was


def newest_experiment(output_dir: Path = EXPERIMENTS) -> Path:
    """The experiment that was registered last, of any plan, whatever its folder is called.

    Raises ValueError when there is none.
    """
    found = []
    for path in output_dir.glob("*/experiment_configs.json"):
        with contextlib.suppress(ValueError, OSError, TypeError, KeyError, OverflowError):
            created = datetime.fromisoformat(read_json(path)["created"])
            if created.tzinfo is None:
                created = created.replace(tzinfo=UTC)
            found.append((created.astimezone(UTC), path.parent.name, path.parent))
    if not found:
        begin_one = "begin one: python run_aux.py --staged, or name one: --exp_dir DIR"
        raise ValueError(f"no experiment in {output_dir}/; {begin_one}")
    return max(found)[-1]


def read_document(exp_dir: Path) -> dict:
    """experiment_configs.json, whether or not it is what was registered (`changes` tells). Raises
    ValueError when this is no folder of ours."""
    path = exp_dir / "experiment_configs.json"
    if not path.is_file():
        raise ValueError(
            f"--exp_dir {exp_dir}: no {path.name} there; give a folder that run_aux.py made"
        )
    document = read_json(path)
    try:
        experiment_of(document)
        codes = [document["registered"]["code"], *document["registered"]["codes_of_arms"]]
        for code in codes:
            check_code(code)
    except KeyError as error:
        what = "it is not an experiment of ours, or one of another version"
        raise ValueError(f"{path}: no field {error}; {what}{version_of(document)}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {printable(str(error))}; start a new experiment") from None
    return document


def changes(document: dict) -> tuple[str, ...]:
    """How the registration, or the code that decides, differs from what was registered before the
    first run; empty where nothing does. Every program shows these words, and none decides."""
    found = []
    if digest_of(document["registered"]) != document["hash"]:
        found.append("experiment_configs.json was edited since: it is not what was hashed")
    was, now = document["registered"]["rules"]["hash"], rules_hash()
    if was != now:
        about = f"{printable_value(was)}, now {printable_value(now)}{version_of(document)}"
        found.append(f"the files that decide are not those registered ({about})")
    return tuple(found)


def version_of(document: dict) -> str:
    """Which commit made an experiment, as a remedy; empty where none is known to have all of it."""
    git = document.get("git")
    commit = git.get("commit") if isinstance(git, dict) and not git.get("dirty") else None
    known = isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{4,64}", commit)
    return f"; git checkout {commit} has what made it" if known else ""


def among(*known: str) -> tuple[Callable[[object], bool], str]:
    return (lambda v: isinstance(v, str) and v in known), f"give one of {', '.join(known)}"


def up_to(most: int, least: int = 1) -> tuple[Callable[[object], bool], str]:
    remedy = f"give a whole number from {least} to {most}"
    return (lambda v: type(v) is int and least <= v <= most), remedy


A_RATIO = (lambda v: is_number(v) and 1e-4 <= v <= 1e4), "give a number from 1e-4 to 1e4"
A_TEXT = (lambda v: isinstance(v, str)), "give a text"
YES_OR_NO = (lambda v: type(v) is bool), "give true or false"
FREE_FORM = {  # of the document beside what is registered: a test of each, and what would pass it
    **dict.fromkeys(("experiment_id", "hash", "train_script", "data_dir", "slurm_args"), A_TEXT),
    "device_batch_size": ((lambda v: v is None or up_to(10**6)[0](v)), "give up to 1000000"),
}
FORM = {  # of what is registered, as far as decisions are made from it
    "rules.hash": A_TEXT,
    "data.fingerprint": A_TEXT,
    "profile.name": A_TEXT,
    "plan": among(*PLANS),
    "profile.design": ((lambda v: isinstance(v, dict)), "give an object"),
    "stop_on": among(*STOP_ON),
    "screen": YES_OR_NO,
    "first_seed": up_to(MOST_FIRST_SEED, least=0),
    "budget_hours": ((lambda v: is_number(v) and 0 < v <= 1e6), "give hours, from 0 to 1e6"),
    "full_iterations": up_to(10**9),
    "validation_runs": ((lambda v: v is None or up_to(10**4)[0](v)), "give up to 10000, or null"),
    "share.device": among("cuda", "cpu"),
    "share.launcher": among("local", "slurm"),
    "share.processes": up_to(10**5),
    "share.parallel_runs": up_to(10**5),
    "share.nodes": up_to(10**5),
    "share.cores": up_to(10**6),
    "unet_skips": YES_OR_NO,
    "log_grad_norms": YES_OR_NO,
    "first_costs.train_ratio": A_RATIO,
    "first_costs.rest_ratio": A_RATIO,
    "seeds": ((lambda v: isinstance(v, list) and {*map(type, v)} <= {int}), "give whole numbers"),
}


# What registrations of older versions lack; they are shown all the same.
OLDER = {"screen": False, "first_seed": 0}


def check_form(document: dict) -> None:
    """Raise ValueError for the first field that no experiment can have registered."""
    check_fields(document, FREE_FORM)
    if not isinstance(document["registered"], dict):
        raise ValueError("registered: give an object")
    check_fields(OLDER | document["registered"], FORM)


def check_fields(whole: dict, form: dict) -> None:
    for name, (is_fit, remedy) in form.items():
        value = whole
        for key in name.split("."):
            if not isinstance(value, dict):
                raise ValueError(f"{name}: no such field")
            value = value[key]
        if not is_fit(value):
            raise ValueError(f"{name} {printable(repr(value)[:200], limit=60)}: {remedy}")


def experiment_of(document: dict) -> Experiment:
    """The experiment that a folder registered. Raises ValueError or KeyError for a document that
    cannot be one."""
    check_form(document)
    fixed = OLDER | document["registered"]
    study = study_from(fixed["study"])
    profile = profile_from(study, fixed["profile"])
    design = design_from(fixed["profile"]["design"], profile.design)
    e = Experiment(
        profile=replace(profile, design=design),
        share=Share(**{f.name: fixed["share"][f.name] for f in fields(Share)}),
        arms=tuple(map(arm_from, fixed["arms"])),
        seeds=tuple(fixed["seeds"]),
        first_costs=FirstCosts(**fixed["first_costs"]),
        study=study,
        **{name: fixed[name] for name in AS_THEY_ARE},
    )
    sequences = document["device_batch_size"]
    return with_scale(e, device_batch_size=sequences) if e.profile.scale and sequences else e


def profile_from(study: Study, value: dict) -> Profile:
    """The profile that a study was registered with. Raises ValueError for one that cannot be."""
    if not study.trainer.is_ours:
        check_fields(value, {"gpus": up_to(10**5, least=0)})
        return profile_of(study, value["gpus"])
    check_fields(value, {"name": among(*PROFILES)})
    return PROFILES[value["name"]]


def design_from(terms: dict, now: Design) -> Design:
    """The registered statistical terms. Another version's may lack some, which are then those of
    now, or have others: such a folder is shown, and nobody goes on with it (`changes`)."""
    known = {field.name for field in fields(Design)} & terms.keys()
    design = replace(now, **{name: terms[name] for name in known})
    try:
        check_terms(design)
    except ValueError as error:
        raise ValueError(f"profile.design.{error}") from None
    return design
