"""A study is a file: what it may say, what is refused and in which words, and back again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ablation.runs.run import Arm, Repeated, Replacement
from ablation.study import study_file
from ablation.study.document import MOST_SHOWN, StudyFaults
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES, check_terms
from ablation.study.study import SHORT, Metric, Study, Trainer, Words
from ablation.study.study_file import document_of, read_study, study_from, study_of_arms

ROOT = Path(__file__).resolve().parents[1]
ISSUE = """
question = "Does a lower Muon learning rate lower the final loss?"
hypothesis = "It was set for longer runs."

[trainer]
command = "train_gpt.py"
launch = "torchrun"
log = "modded-nanogpt"
metric = "val_loss"
companions = ["mymodel.py"]
full_iterations = 5100
expected_hours = 0.25
data = ["data/fineweb"]

[base]
flags = { cooldown_frac = 0.7, num_iterations = "{num_iterations}", seed = "{seed}" }
env = { ITERS = "{num_iterations}", SEED = "{seed}" }

[arms]
low_lr  = { flags = { muon_lr = 0.02 } }
warm    = { env = { WARMUP = "100" } }
gated   = { script = "train_gated.py" }
wide    = { replace = [{ file = "train_gpt.py", find = "steps = 3250", with = "steps = 3300" }] }
branch  = { revision = "my-idea" }

[refinements]
slow_embed = { flags = { embed_lr = 0.5 } }

[noise]
sigma0 = 0.0013
delta_eq = 0.005
delta_target = 0.02
"""
TOLD = 'num_iterations = "{num_iterations}", seed = "{seed}"'


def written(folder, text, name="my.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_the_file_of_the_docs_says_a_study(tmp_path):
    study = read_study(written(tmp_path, ISSUE, "muon.toml"))
    assert study.name == "muon"
    assert study.trainer == Trainer(
        command=("train_gpt.py",),
        folder=str(tmp_path),
        log="modded-nanogpt",
        full_iterations=5100,
        expected_hours=0.25,
        budget_hours=7.5,
        companions=("mymodel.py",),
        data=("data/fineweb",),
    )
    low_lr, warm, gated, wide, branch = study.arms
    assert low_lr.flags == (("muon_lr", 0.02),) and low_lr.label == "muon_lr 0.02"
    assert warm.env == (("WARMUP", "100"),)
    assert (gated.script, branch.revision) == ("train_gated.py", "my-idea")
    assert wide.replacements == (Replacement("train_gpt.py", "steps = 3250", "steps = 3300"),)
    assert [name for name, _ in study.base.flags] == ["cooldown_frac", "num_iterations", "seed"]
    assert study.noise.noise_known and study.noise.drop == 0.2
    assert [phase.name for phase in study.phases] == ["arms", "screening"]
    assert study.phases[0].arms == (study.baseline(), *study.arms)
    assert (study.phases[1].arms, study.phases[1].fraction) == (study.screened, SHORT)
    assert study_from(json.loads(json.dumps(document_of(study)))) == study


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.stem)
def test_every_example_can_be_meant_and_is_the_same_from_json(path):
    study = read_study(path)
    assert study_from(json.loads(json.dumps(document_of(study)))) == study


def test_the_heads_as_a_file_are_the_study_that_is_built_in():
    read = read_study(ROOT / "examples" / "heads.toml")
    assert read == HEADS and read.phases == HEADS.phases
    assert document_of(read) == document_of(HEADS)
    assert study_from(document_of(HEADS)) is HEADS


def test_a_changed_study_is_not_taken_for_the_one_that_is_built_in():
    document = document_of(HEADS)
    document["arms"]["aux_4"]["slower"] = 0.5
    study = study_from(document)
    assert study != HEADS and [phase.name for phase in study.phases] == ["arms", "screening"]


FAULTS = {  # what is put in place of what in the file: what is said of it
    "unknown key": (
        "launch =", "lanch =",
        'trainer.lanch: "torchrun": no such key; did you mean launch?',
    ),
    "unknown table": (
        "[base]", "[bases]",
        "bases: a table: no such key; did you mean base?",
    ),
    "a value that is none of them": (
        '"torchrun"', '"torch-run"',
        'trainer.launch: "torch-run": did you mean torchrun?',
    ),
    "a wrong type": (
        "full_iterations = 5100", 'full_iterations = "5100"',
        'trainer.full_iterations: "5100": give a whole number from 1 to 1000000000',
    ),
    "no length": (
        "full_iterations = 5100", "",
        "trainer.full_iterations: not given: give the length of a full run",
    ),
    "no hours": (
        "expected_hours = 0.25", "",
        "trainer.expected_hours: not given: give the hours of a full run on the whole machine",
    ),
    "no log": (
        'log = "modded-nanogpt"', "",
        "trainer.log: not given: give one of modded-nanogpt, parameter-golf, nanogpt, autoresearch,"
        " json-lines, ours, or a form of your own",
    ),
    "a length of the other kind": (
        "full_iterations = 5100", "full_iterations = 5100\nfull_seconds = 60",
        'trainer.full_seconds: 60: for a trainer of length = "time"; give full_iterations',
    ),
    "no trainer": (
        "command =", "profile =",
        'trainer.profile: "train_gpt.py": give by machine, speedrun, small, mini',
    ),
    "unknown placeholder": (
        'ITERS = "{num_iterations}"', 'ITERS = "{num_iteration}"',
        'base.env.ITERS: "{num_iteration}": no such placeholder; did you mean num_iterations?',
    ),
    "a placeholder of another kind of trainer": (
        'ITERS = "{num_iterations}"', 'ITERS = "{seconds}"',
        'base.env.ITERS: "{seconds}": for trainer.length = "time"; give {num_iterations}',
    ),
    "an arm named as a path": (
        "low_lr  =", '"../low_lr" =',
        'arms.../low_lr: "../low_lr": name it by letters, digits and _, at most 57',
    ),
    "an arm named as a plan's": (
        "low_lr  =", "final_best =",
        'arms.final_best: "final_best": a name that the plans use; another',
    ),
    "a name given twice": (
        "slow_embed =", "Low_lr =",
        'refinements.Low_lr: "Low_lr": the name of arms.low_lr too; give each its own',
    ),
    "an arm that is another": (
        "low_lr  =", "lower = { flags = { muon_lr = 2e-2 } }\nlow_lr  =",
        "arms.low_lr: muon_lr 0.02: is the same configuration as arms.lower; change it, or leave it"
        " out",
    ),
    "an arm that is the baseline": (
        "muon_lr = 0.02", "cooldown_frac = 0.7",
        "arms.low_lr: cooldown_frac 0.7: is the same configuration as the baseline; change it, or"
        " leave it out",
    ),
    "an arm with the trainer's own script": (
        '"train_gated.py"', '"train_gpt.py"',
        "arms.gated: train_gpt.py: is the same configuration as the baseline; change it, or leave"
        " it out",
    ),
    "an arm without a difference": (
        "{ flags = { muon_lr = 0.02 } }", '{ description = "nothing" }',
        "arms.low_lr: a table: differs in nothing; give flags, env, script, replace, revision",
    ),
    "a refinement that changes nothing": (
        "embed_lr = 0.5", "cooldown_frac = 0.7",
        "refinements.slow_embed: cooldown_frac 0.7: changes nothing of any arm; give another value,"
        " or leave it out",
    ),
    "a flag with its dashes": (
        "muon_lr = 0.02", '"--muon_lr" = 0.02',
        "arms.low_lr.flags.--muon_lr: 0.02: give the flag's name without the dashes in front, of"
        " letters, digits, _ - and .",
    ),
    "a flag without a value": (
        "muon_lr = 0.02", "muon_lr = []",
        "arms.low_lr.flags.muon_lr: an empty list: give a list of at least one value; false leaves"
        " the flag out",
    ),
    "a number that is none": (
        "muon_lr = 0.02", "muon_lr = nan",
        "arms.low_lr.flags.muon_lr: nan: give a text of printable signs, a number, true or false",
    ),
    "a date": (
        "muon_lr = 0.02", "muon_lr = 2026-01-01",
        "arms.low_lr.flags.muon_lr: 2026-01-01: give a text of printable signs, a number, true or"
        " false",
    ),
    "a variable that is no text": (
        'WARMUP = "100"', "WARMUP = 100",
        'arms.warm.env.WARMUP: 100: a variable is a text of printable signs; write "100"',
    ),
    "half a replacement": (
        ', with = "steps = 3300"', "",
        "arms.wide.replace[0]: a table: give with",
    ),
    "a replacement outside": (
        'file = "train_gpt.py"', 'file = "../train_gpt.py"',
        'arms.wide.replace[0].file: "../train_gpt.py": give a path below the trainer\'s folder:'
        " relative, without ..",
    ),
    "a replacement by the same": (
        "3300", "3250",
        'arms.wide.replace[0].find: "steps = 3250": give a text that another is put in for',
    ),
    "an arm that is told no seed": (
        "{ flags = { muon_lr = 0.02 } }", '{ flags = { seed = 1 }, env = { SEED = "1" } }',
        "arms.low_lr: seed 1, SEED=1: replaces what tells the seed; leave {seed} in it",
    ),
    "terms that cannot be meant": (
        "delta_eq = 0.005", "delta_eq = 0.05",
        "noise.delta_eq 0.05: give less than delta_target 0.02, or a larger delta_target",
    ),
    "a term out of bounds": (
        "sigma0 = 0.0013", "sigma0 = 0",
        "noise.sigma0: 0: give a number above 0, from 1e-9 to 1000",
    ),
    "what matters without the noise": (
        "sigma0 = 0.0013", "",
        "noise.delta_eq: 0.005: give sigma0 too; else stage 1 measures both",
    ),
    "an arm that is not there": (
        "[trainer]", 'favourite = "low"\n[trainer]',
        'favourite: "low": no such arm; did you mean low_lr?',
    ),
    "signs that no terminal should see": (
        "my-idea", "my\\u001bidea",
        'arms.branch.revision: "my idea": give a branch, a tag or a commit',
    ),
    "a metric that is no name": (
        'metric = "val_loss"', 'metric = "val loss: (.*)"',
        'trainer.metric: "val loss: (.*)": give its name as the log prints it',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_meant_is_a_line_with_its_remedy(tmp_path, old, new, fault):
    assert ISSUE.count(old) >= 1
    path = written(tmp_path, ISSUE.replace(old, new, 1))
    with pytest.raises(StudyFaults) as error:
        read_study(path)
    assert f"{path}: {fault}" in str(error.value).splitlines()
