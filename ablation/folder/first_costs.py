"""What did a preflight find?  preflight.json, written and read: the first costs of a plan.

`run_aux.py --preflight` writes it, and `--staged --preflight_file F` registers the costs in it.
They hold for one trainer at one scale on one share of a machine, all of which the file names.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ablation.folder.registration import A_RATIO, check_fields, differences, printable_value
from ablation.runs.store import write_json
from ablation.runs.untrusted import printable, read_json
from ablation.study.experiment import Experiment, FirstCosts

NAME = Path("preflight.json")  # in the current folder, unless somebody names another
AGAIN = "run --preflight with the options of this run"


def measured_for(e: Experiment, code_hash: str) -> dict:
    """What costs depend on: they are of no use to a run that differs in it."""
    profile = asdict(e.profile)
    for term in ("design", "budget_hours"):  # what is concluded, and from how many runs
        del profile[term]
    return {
        "profile": profile,
        "share": asdict(e.share),
        "unet_skips": e.unet_skips,
        "log_grad_norms": e.log_grad_norms,
        "trainer": code_hash,
    }


def check_may_write(path: Path) -> None:
    """Raise ValueError where something else than a preflight's file lies, which would be lost, and
    OSError where no file can be written."""
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(errno.EACCES, "no file can be written there", str(path.parent))
    if os.path.lexists(path) and "measured_for" not in read_json(path):
        raise ValueError(f"--preflight_file {path}: not what --preflight writes; give another name")


def write_findings(
    path: Path, e: Experiment, code_hash: str, costs: FirstCosts | None, findings: Mapping
) -> dict:
    """What was written. costs: None where the short runs did not give any."""
    value = {"measured_for": measured_for(e, code_hash), "first_costs": costs and asdict(costs)}
    write_json(path, {**findings, **value})
    return {**findings, **value}


def read_first_costs(path: Path, e: Experiment, code_hash: str) -> FirstCosts:
    """The costs that a preflight measured. Raises ValueError where there are none, or where they
    are those of another run than this experiment's."""
    found = read_json(path)
    try:
        was, costs = found["measured_for"], found["first_costs"]
        if not isinstance(was, dict):
            raise TypeError("measured_for is no object")
        if costs is not None:
            check_fields(costs, {"train_ratio": A_RATIO, "rest_ratio": A_RATIO})
            costs = FirstCosts(costs["train_ratio"], costs["rest_ratio"])
    except (KeyError, TypeError, ValueError) as error:
        why = f"no field {error}" if isinstance(error, KeyError) else printable(str(error))
        raise ValueError(f"--preflight_file {path}: {why}; {AGAIN}") from None
    if costs is None:
        raise ValueError(f"--preflight_file {path}: its short runs gave no costs; {AGAIN}")
    differing = [
        f"{name.lstrip('.')}: measured {printable_value(before)}, now {printable_value(now)}"
        for name, before, now in differences(was, measured_for(e, code_hash))
    ]
    if differing:
        raise ValueError(
            f"--preflight_file {path}: measured for another run: {'; '.join(differing)}; {AGAIN}"
        )
    return costs
