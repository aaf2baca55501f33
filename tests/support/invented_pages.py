"""Folders and logs whose pages a browser opens: usual ones, large ones, hostile ones."""

import shutil
from dataclasses import replace
from pathlib import Path

from ablation.report.evidence import read_experiment
from ablation.report.files import PAGE, write_page
from ablation.report.page_sections import page_of
from ablation.runs.run import Arm
from ablation.study.overrides import NOTHING_OVERRIDDEN
from tests.support.foreign_logs import FORMS, HEAD, log_of
from tests.support.invented_folder import FACTS, adaptive_plan, make, manual, speedrun

GATES = NOTHING_OVERRIDDEN.ungated


def written(exp_dir: Path, live=False) -> Path:
    """The page of what lies in a folder now."""
    write_page(exp_dir, page_of(read_experiment(exp_dir), None, live))
    return exp_dir / PAGE


def classic(folder):
    """A stage decided against an arm, a run that diverged, one that crashed three times."""
    failures = {"screen_aux_3_6_9/run_0": ("diverged",), "final_best/run_2": ("crashed",) * 3}
    return make(folder, speedrun(overrides=GATES), failures=failures)


def adaptive(folder):
    return make(folder, adaptive_plan(), scale=0.2, sd=0.004)


def large(folder):
    """200 runs of 20 arms: some have long names, some crashed whenever they were tried."""
    names = (f"arm_{k:02d}{'_with_a_long_name' * (k % 3)}" for k in range(1, 20))
    arms = tuple(Arm(name, (("lr", 0.001 * k),)) for k, name in enumerate(names, 1))
    seeds = tuple(range(1, 11))
    e = speedrun(plan="manual", arms=(Arm("baseline"), *arms), seeds=seeds, budget_hours=100.0)
    crashed = {f"arm_0{k}/run_{j}": ("crashed",) * 3 for k in (3, 6, 9) for j in range(5)}
    return make(folder, e, failures=crashed)


def sixty(folder):
    e = manual("baseline", "aux_4", "aux_6", "aux_8", "aux_4_8", seeds=tuple(range(12)))
    return make(folder, replace(e, budget_hours=100.0))


def unbegun(folder):
    return make(folder, most=0)


def of_logs(folder):
    losses_of = {"baseline": ("3.28", "3.29", "3.27"), "mine": ("3.26", "3.27", "3.25")}
    for name, losses in losses_of.items():
        (folder / name).mkdir(parents=True)
        for k, loss in enumerate(losses):
            text = f"{HEAD}seed:{k}\n{log_of(FORMS['speedrun'], 8, loss)}"
            (folder / name / f"run_{k}.txt").write_text(text)
    return {name: folder / name for name in losses_of}


MAKERS = {
    "classic": classic,
    "adaptive": adaptive,
    "large": large,
    "sixty": sixty,
    "unbegun": unbegun,
}

# ---------------------------------------------------------------------------------------------
# What comes from a folder may look like anything

EVIL = (
    "<script>window.owned=1;alert(1)</script>",
    '"><img src=x onerror="window.owned=1;alert(2)">',
    "'><svg onload='window.owned=1'>",
    "javascript:window.owned=1",
    "</script><script>window.owned=1</script>",
    "</style><style>*{display:none}</style>",
    "<!--",
    "</title></head><h1>owned</h1>",
    "&lt;b&gt;&amp;<b>%3Cscript%3E{{7*7}}${7*7}</b>",
    '<a href="javascript:window.owned=1">click</a>',
)


def evil_folder(folder: Path) -> Path:
    """Every word that a folder may hold, hostile."""
    every, (first, second, *_) = " ".join(EVIL), EVIL
    machine = {**FACTS["machine"], "host": first, "cpu": every, "gpus": [second]}
    facts = {**FACTS, "machine": machine, "versions": {"python": every, "<b>x": second}}
    facts |= {"git": {"commit": every, "dirty": True}, "slurm_args": every}
    facts |= {"command": [second, first]}
    e = speedrun(overrides=GATES)
    words = replace(e.study.words, title=first, idea=second, it=first, short=second)
    study = replace(e.study, question=every, hypothesis=every, words=words)
    e = replace(e, study=study)
    failures = {"screen_aux_6/run_0": ("crashed", "crashed"), "baseline/run_0": ("diverged",)}
    exp_dir = make(folder, e, failures=failures, facts=facts, reason=every)
    odd = exp_dir / first.replace("/", "\N{DIVISION SLASH}") / "run_0"
    odd.mkdir(parents=True)
    (odd / "result.json").write_text(every)
    renamed = exp_dir.with_name("\"><img src=x onerror=alert(4)> '&#x27;")
    shutil.move(exp_dir, renamed)
    return renamed
