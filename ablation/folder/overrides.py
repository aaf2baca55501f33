"""What was decided instead of a rule?  overrides.json read and written; what a command adds."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ablation.folder.registration import FORM
from ablation.plan.next_step import is_second_test, pairs_begun
from ablation.runs.run import Arm, RunResult, arm_from
from ablation.runs.store import write_json
from ablation.runs.untrusted import is_count, printable, read_json
from ablation.study.experiment import Experiment
from ablation.study.overrides import Override, Overrides


def read_overrides(exp_dir: Path) -> Overrides:
    """Those on record. Raises ValueError for what nobody can have decided."""
    path = exp_dir / "overrides.json"
    if not os.path.lexists(path):
        return Overrides()
    try:
        found = read_json(path)["overrides"]
        if not isinstance(found, list):
            raise TypeError(f"holds a {type(found).__name__}, not a list")
        return Overrides(tuple(map(override_from, found)))
    except (KeyError, TypeError, ValueError) as error:
        mend = "mend it, or remove it to go on without overrides"
        raise ValueError(f"{path}: {printable(str(error))}; {mend}") from None


OF_STAGES = {"budget": (0,), "retry": (0,), "by_hand": (3, 4), "ignore_gate": (1, 2, 3, 4)}


def override_from(value: dict) -> Override:
    """Raises ValueError, TypeError or KeyError for anything that nobody can have decided."""
    o = Override(**value)
    if o.kind not in OF_STAGES or not isinstance(o.value, dict):
        raise ValueError(f"an override of the kind {o.kind!r}: {o.value!r}")
    if type(o.stage) is not int or o.stage not in OF_STAGES[o.kind]:
        raise ValueError(f"{o.kind} of stage {o.stage!r}")
    if o.kind == "budget":
        hours = (o.value["hours"], o.value["was"])
        if not all(map(FORM["budget_hours"][0], hours)) or type(o.value["pairs"]) is not int:
            raise ValueError(f"a budget of {o.value}")
    elif o.kind == "by_hand":
        if {*o.value} != {"arm"} or arm_from(o.value["arm"]).is_baseline:
            raise ValueError(f"a choice of {o.value}")
    elif o.kind == "retry":
        for name, attempt in o.value["attempts"]:
            if not isinstance(name, str) or not is_count(attempt):
                raise ValueError(f"an attempt {attempt!r} at {name!r}")
    return o


def write_overrides(exp_dir: Path, overrides: Overrides) -> None:
    if overrides.made:
        write_json(exp_dir / "overrides.json", {"overrides": [asdict(o) for o in overrides]})


def decided_now(overrides: Overrides, kind: str, stage: int, value: dict) -> Overrides:
    """These and what is decided at this moment; not yet on record."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return overrides.and_one(Override(kind, stage, value, when))


def put_on_record(exp_dir: Path, e: Experiment, kind: str, stage: int, value: dict) -> Experiment:
    """The experiment with what is decided at this moment, which is kept in overrides.json."""
    e = e.with_overrides(decided_now(e.overrides, kind, stage, value))
    write_overrides(exp_dir, e.overrides)
    return e


@dataclass(frozen=True)
class NewOverrides:
    """What a command decides instead of a rule."""

    by_hand: tuple[int, Arm] | None = None  # the stage that an arm is chosen for, 3 or 4
    budget_hours: float | None = None


def with_new_overrides(
    e: Experiment, new: NewOverrides, results: Sequence[RunResult]
) -> Experiment:
    """The experiment with what a command decides; not yet on record. Raises ValueError for what
    would test again what stage 4 has begun to test."""
    pairs = pairs_begun(results)
    if new.by_hand:
        stage, arm = new.by_hand
        value = {"arm": json.loads(json.dumps(asdict(arm)))}  # as it is read again
        chosen = e.with_overrides(decided_now(e.overrides, "by_hand", stage, value))
        if chosen != e and pairs > 0:
            raise ValueError(
                f"--best: the pairs of stage 4 have begun ({pairs} complete); another"
                " configuration on the same seeds would be a second test: begin a new experiment"
            )
        e = chosen
    hours = new.budget_hours
    if hours not in (None, e.budget_hours):
        value = {"hours": hours, "was": e.budget_hours, "pairs": pairs}
        rebudgeted = e.with_overrides(decided_now(e.overrides, "budget", 0, value))
        if is_second_test(e, rebudgeted, results):
            raise ValueError(
                f"--max_budget_hours {hours:g}: stage 4 has its verdict, of the {pairs} pairs that"
                f" the budget of {e.budget_hours:g} h allowed; more of them would be a second test:"
                " begin a new experiment"
            )
        e = rebudgeted
    return e
