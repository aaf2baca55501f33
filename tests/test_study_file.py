"""A study is a file: what it may say, what is refused and in which words, and back again."""

import json
import re
import string
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import run_aux
from ablation.cli import exit_codes
from ablation.runs.formats import FORMATS
from ablation.runs.run import Arm, Repeated, Replacement
from ablation.study import study_file
from ablation.study.arm_option import OWN_SCRIPT, options_of
from ablation.study.asked import as_asked, new_experiment, study_asked
from ablation.study.document import MOST_SHOWN, StudyFaults
from ablation.study.experiment import FULL_RUNS
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES, Design, check_terms
from ablation.study.sense import PLACEHOLDERS, faults_of_equal_arms
from ablation.study.study import SHORT, Metric, Study, Trainer, Words
from ablation.study.study_file import document_of, read_study, study_from, study_of_arms
from run_aux import build_parser

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
        companions=("mymodel.py",),
        data=("data/fineweb",),
    )
    low_lr, warm, gated, wide, branch = study.arms
    assert low_lr.flags == (("muon_lr", 0.02),) and "muon_lr 0.02" in low_lr.label
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
        "trainer.log: not given: give one of ours, parameter-golf, modded-nanogpt, nanogpt,"
        " autoresearch, json-lines, or a form of your own",
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
        'arms.final_best: "final_best": a name that the plans use; give another',
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
    "a flag with a dot": (
        "muon_lr = 0.02", "muon.lr = 0.02",
        "arms.low_lr.flags.muon: a table: give a value, or { values = [...], repeat = true }; a"
        " flag with a dot in it stands in quotes",
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
        "noise.delta_eq: 0.05: give less than delta_target 0.02, or a larger delta_target",
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


def test_all_faults_are_told_at_once(tmp_path):
    chosen = (
        "unknown key",
        "a variable that is no text",
        "half a replacement",
        "a term out of bounds",
    )
    text, expected = ISSUE, []
    for name in chosen:
        old, new, fault = FAULTS[name]
        text = text.replace(old, new, 1)
        expected.append(fault)
    path = written(tmp_path, text)
    with pytest.raises(StudyFaults) as error:
        read_study(path)
    assert str(error.value).splitlines() == [f"{path}: {fault}" for fault in expected]


def test_no_answer_is_endless():
    with pytest.raises(StudyFaults) as error:
        study_from({"name": "x", "arms": {f"a/{k}": {} for k in range(150)}})
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_SHOWN + 1
    assert lines[-1] == f"and {len(error.value.faults) - MOST_SHOWN} faults more"


# ---------------------------------------------------------------------------------------------
# What the trainer decides


def foreign(trainer="", base=f"flags = {{ {TOLD} }}", more=""):
    """A study of a trainer that knows nothing of this project."""
    return f"""
question = "Is it better?"
[trainer]
command = "train.py"
log = "nanogpt"
expected_hours = 0.1
{trainer or "full_iterations = 100"}
[base]
{base}
[arms]
other = {{ flags = {{ lr = 0.1 }} }}
{more}
"""


def faults_of(tmp_path, text):
    with pytest.raises(StudyFaults) as error:
        read_study(written(tmp_path, text))
    return str(error.value).replace(f"{tmp_path}/my.toml: ", "").splitlines()


def test_a_trainer_has_to_be_told_seed_and_length(tmp_path):
    assert faults_of(tmp_path, foreign(base="")) == [
        'trainer.length: "steps": nothing tells the length; give base.flags.NAME ='
        ' "{num_iterations}", or base.env, or base.replace',
        'trainer.seed: "told": nothing tells the seed; give base.flags.NAME = "{seed}", or'
        ' base.env, or base.replace; or give trainer.seed = "none" for a trainer without one',
    ]


@pytest.mark.parametrize(
    "base",
    [
        f"flags = {{ {TOLD} }}",
        'env = { STEPS = "{num_iterations}", SEED = "{seed}" }',
        'replace = [{ file = "a.py", find = "N = 9", with = "N = {num_iterations}; S = {seed}" }]',
        'flags = { steps = ["{num_iterations}", "x"] }\nenv = { SEED = "{seed}" }',
    ],
)
def test_it_may_be_told_in_any_of_these(tmp_path, base):
    assert read_study(written(tmp_path, foreign(base=base))).arms


def test_the_command_may_tell_as_well(tmp_path):
    text = foreign(base="").replace(
        '"train.py"', '["train.py", "--steps={num_iterations}", "--seed={seed}"]'
    )
    assert read_study(written(tmp_path, text)).trainer.command[1:] == (
        "--steps={num_iterations}",
        "--seed={seed}",
    )


def test_a_trainer_without_a_seed_has_no_pairs(tmp_path):
    trainer = 'full_iterations = 100\nseed = "none"'
    base = 'flags = { steps = "{num_iterations}" }'
    study = read_study(written(tmp_path, foreign(trainer, base)))
    assert (study.noise.pairing, study.noise.rho) == (0, 0)
    assert study_from(document_of(study)) == study
    assert faults_of(tmp_path, foreign(trainer, more="[noise]\nsigma0 = 1\npairing = 0.5")) == [
        "noise.pairing: 0.5: no seed, so no pairs; leave it out",
        'base.flags.seed: "{seed}": trainer.seed is "none"; leave it out, or give "told"',
    ]


def test_a_trainer_that_ends_by_time_is_told_seconds(tmp_path):
    trainer = 'full_seconds = 300\nlength = "time"'
    base = 'flags = { limit = "{seconds}", seed = "{seed}" }'
    study = read_study(written(tmp_path, foreign(trainer, base)))
    assert study.trainer.by_time and study.trainer.full_iterations == 300
    assert document_of(study)["trainer"]["full_seconds"] == 300
    assert study_from(document_of(study)) == study
    assert faults_of(tmp_path, foreign(trainer)) == [
        'trainer.length: "time": nothing tells the length; give base.flags.NAME = "{seconds}", or'
        " base.env, or base.replace",
        'base.flags.num_iterations: "{num_iterations}": for trainer.length = "steps"; give'
        " {seconds}",
    ]


def test_noise_that_nobody_knows_is_measured_by_terms_that_pass(tmp_path):
    study = read_study(written(tmp_path, foreign(more="[noise]\nalpha = 0.01")))
    assert not study.noise.noise_known and study.noise.alpha == 0.01
    check_terms(study.noise)
    assert study_from(document_of(study)) == study


def test_a_foreign_trainer_has_its_own_unit_and_metric(tmp_path):
    trainer = 'full_iterations = 100\nmetric = "val_acc"\nbetter = "higher"'
    study = read_study(written(tmp_path, foreign(trainer)))
    assert study.metric == Metric("val_acc", unit="", better="higher")
    assert read_study(written(tmp_path, foreign())).metric == Metric()


def test_a_log_of_its_own_needs_a_form_and_a_line(tmp_path):
    own = foreign().replace(
        '"nanogpt"', "{ step = '(?P<step>[0-9]+) (?P<value>\\S+)', first_step = 0 }"
    )
    assert faults_of(tmp_path, own) == [
        "trainer.log.example: not given: give a line that it matches"
    ]
    own = own.replace("{ step", "{ example = '10 3.5', step")
    study = read_study(written(tmp_path, own))
    assert dict(study.trainer.log)["first_step"] == 0
    assert study.trainer.reading.format.said(b"3 2.5").values == {"val_loss": 2.5}
    other = replace(study.trainer, metric=Metric("val_acc"))
    assert other.reading.format.said(b"3 2.5").values == {"val_acc": 2.5}
    assert study_from(json.loads(json.dumps(document_of(study)))) == study


@pytest.mark.parametrize(
    ("step", "example", "fault"),
    [
        ("(?P<value>[0-9.]+)", "1", "trainer.log.step: has no group for the step: write"),
        ("(?P<step>[0-9]+) (?P<loss>[^ ]+)", "1 2", "trainer.log.step: has no group for val_acc"),
        ("(?P<step>[0-9]+) (?P<value>[^ ]+)", "1", "trainer.log.example: '1': log.step matches"),
        (
            "(?P<step>[0-9]+) (?P<value>[^ ]+",
            "1 2",
            "trainer.log.step: '(?P<step>[0-9]+) (?P<value>",
        ),
        ("(?P<step>[0-9]+) (?P<value>[^ ]+)", "1 x", "trainer.log.example: '1 x': what log.step"),
    ],
)
def test_a_form_has_to_find_the_metric_in_its_line(tmp_path, step, example, fault):
    form = f"{{ step = '{step}', example = '{example}' }}\nmetric = 'val_acc'"
    (said,) = faults_of(tmp_path, foreign().replace('"nanogpt"', form))
    assert said.startswith(fault)


@pytest.mark.parametrize("key", ["trainer.unit", "words.refinement", "words.default"])
def test_words_that_rules_are_made_of_have_no_braces(tmp_path, key):
    table, name = key.split(".")
    unit = 'full_iterations = 100\nunit = "{drop}"'
    text = foreign(trainer=unit) if table == "trainer" else foreign()
    text += f'\n[words]\n{name} = "{{drop}}"\n' if table == "words" else ""
    (fault,) = faults_of(tmp_path, text)
    assert f'{key}: "{{drop}}"' in fault and "without braces" in fault


def test_names_in_braces_of_code_are_its_own_unless_they_are_nearly_ours(tmp_path):
    def told(code):
        more = f"""[arms.coded]
replace = [{{ file = "a.py", find = "x", with = '{code}' }}]"""
        return foreign(more=more)

    assert read_study(written(tmp_path, told('print(f"{step} {loss:.4f}", {"a": 1})')))
    assert faults_of(tmp_path, told("n = {num_iteration}")) == [
        'arms.coded.replace[0].with: "{num_iteration}": no such placeholder; did you mean'
        " num_iterations?"
    ]


@pytest.mark.parametrize("value", ["{", "{}", '{\\"a\\": 1}', "{ seed }", "{0}"])
def test_other_braces_stay_as_they_are(tmp_path, value):
    text = foreign(more=f'braces = {{ flags = {{ x = "{value}" }} }}')
    assert read_study(written(tmp_path, text)).arms[1].flags


def test_data_dir_needs_data(tmp_path):
    base = f'flags = {{ {TOLD}, data = "{{data_dir}}" }}'
    assert faults_of(tmp_path, foreign(base=base)) == [
        'base.flags.data: "{data_dir}": no trainer.data says which; give it'
    ]
    trainer = 'full_iterations = 100\ndata = ["shards"]'
    assert read_study(written(tmp_path, foreign(trainer, base)))


def test_flags_are_typed_and_ordered(tmp_path):
    base = f"flags = {{ {TOLD}, old = 1 }}"
    arm = "z = 1, a = 0.5, bare = true, old = false, t = 'x', l = [1, 'b']"
    arm += ", r = { values = [1, 2], repeat = true }"
    study = read_study(
        written(tmp_path, foreign(base=base, more=f"typed = {{ flags = {{ {arm} }} }}"))
    )
    flags = (("z", 1), ("a", 0.5), ("bare", True), ("old", False), ("t", "x"), ("l", (1, "b")))
    assert repr(study.arms[1].flags) == repr((*flags, ("r", Repeated((1, 2)))))


def test_leaving_out_what_the_base_has_is_a_difference_and_of_nothing_is_none(tmp_path):
    base = f"flags = {{ {TOLD}, fast = true }}"
    assert read_study(
        written(tmp_path, foreign(base=base, more="slow = { flags = { fast = false } }"))
    )
    assert faults_of(tmp_path, foreign(base=base, more="no = { flags = { slow = false } }")) == [
        "arms.no: slow false: is the same configuration as the baseline; change it, or leave it out"
    ]


def test_an_arm_is_compared_with_what_a_profile_tells(tmp_path):
    text = """question = "?"
trainer.profile = "mini"
arms.same.flags.muon_lr = 0.02
arms.text.flags.muon_lr = "0.02"
arms.seeded.flags.seed = 1
arms.typo.flags.moun_lr = 1
refinements.idle.flags.embed_lr = 0.2
"""
    same = "is the same configuration as the baseline; change it, or leave it out"
    assert faults_of(tmp_path, text) == [
        "arms.seeded.flags.seed: 1: this project's own trainer is told it in every run; leave it"
        " out",
        f"arms.same: muon_lr 0.02: {same}",
        f"arms.text: muon_lr 0.02: {same}",
        "refinements.idle: embed_lr 0.2: changes nothing of any arm; give another value, or leave"
        " it out",
        "arms.typo.flags.moun_lr: 1: no option of the trainer; did you mean muon_lr?",
    ]
    text = text.replace('"mini"', '"by machine"')
    assert not [fault for fault in faults_of(tmp_path, text) if fault.startswith("arms.same")]


def test_what_our_own_trainer_has_fixed_is_left_out(tmp_path):
    text = """question = "?"
trainer = { profile = "mini", seed = "none", command = "train_gpt.py" }
arms.a.flags.muon_lr = 0.1"""
    assert faults_of(tmp_path, text) == [
        'trainer.seed: "none": this project\'s own trainer, which profile says it is, has its own;'
        " leave one out",
        'trainer.command: "train_gpt.py": leave it out for this project\'s own, or write'
        " ./train_gpt.py for one of yours",
    ]


def test_a_study_may_say_another_length_and_budget_than_its_profile(tmp_path):
    text = 'question = "?"\ntrainer.profile = "mini"\narms.a.flags.muon_lr = 0.1'
    own = new_experiment(read_study(written(tmp_path, text)), "mini", 0, cores=4)
    assert own.full_iterations == PROFILES["mini"].full_iterations
    assert own.budget_hours == PROFILES["mini"].budget_hours
    text += "\ntrainer.full_iterations = 7\ntrainer.budget_hours = 3"
    other = new_experiment(read_study(written(tmp_path, text)), "mini", 0, cores=4)
    assert (other.full_iterations, other.budget_hours) == (7, 3)
    (fault,) = faults_of(tmp_path, text + "\ntrainer.expected_hours = 3")
    assert fault.startswith("trainer.expected_hours: 3: this project's own trainer")


def test_paths_start_from_the_file_where_there_are_any(tmp_path):
    text = 'question = "?"\ntrainer.profile = "mini"\narms.a.flags.muon_lr = 0.1'
    assert read_study(written(tmp_path, text)).trainer.folder == ""
    beside = text + '\narms.b.script = "gated.py"'
    study = read_study(written(tmp_path, beside))
    assert study.trainer.folder == str(tmp_path)
    assert study.trainer.command == (str(OWN_SCRIPT),)  # which does not lie there
    assert study_from(document_of(study)) == study and study.phases
    elsewhere = beside + '\ntrainer.folder = "trainers"'
    assert read_study(written(tmp_path, elsewhere)).trainer.folder == str(tmp_path / "trainers")


def test_the_folder_is_that_of_a_relative_path_and_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, foreign())
    (tmp_path / "link.toml").symlink_to("my.toml")
    study = read_study(Path("link.toml"))
    assert (study.trainer.folder, study.name) == (str(tmp_path), "link")


# ---------------------------------------------------------------------------------------------
# What is no file of a study


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a = 1\nb 2\n", "line 2: b 2: Expected '=' after a key in a key/value pair"),
        (b"a = 1\na = 2\n", "line 2: a = 2: Cannot overwrite a value"),
        (b"a = 'x", "line 1: a = 'x: Expected"),
        (b"a = " + b"[" * 5000, "no TOML: "),
        (b"a = " + b"9" * 5000, "no TOML: "),
        (b"a = 1\nb = '\xff'\n", "line 2: no UTF-8; save it as UTF-8"),
        (b"# " + b"x" * (1 << 20), "more than 1 MiB; no study is as long"),
        (b"\x00", "line 1: : "),
    ],
)
def test_what_is_no_toml_is_one_line_with_its_number(tmp_path, data, said):
    path = tmp_path / "my.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_study(path)
    assert str(error.value).startswith(f"{path}: {said}") and str(error.value).isprintable()


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf" + foreign().replace("\n", "\r\n").encode())
    assert read_study(path).arms


def test_a_file_that_is_not_there_and_one_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="no such file; give the path of a study's TOML file"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="a folder, not a regular file"):
        read_study(tmp_path)


def test_the_name_of_a_file_that_is_none_for_a_folder(tmp_path):
    with pytest.raises(StudyFaults) as error:
        read_study(written(tmp_path, foreign(), "my idea.toml"))
    remedy = "give up to 40 letters, digits, _ and -, as key name or as the file's"
    assert str(error.value).endswith(f'name: "my idea": {remedy}')
    named = 'name = "my_idea"' + foreign()
    assert read_study(written(tmp_path, named, "my idea.toml")).name == "my_idea"


# ---------------------------------------------------------------------------------------------
# Arms of a command line


def test_an_arm_of_the_command_line_is_a_study_of_our_own_trainer():
    study = study_of_arms([("low_lr", "--muon_lr 0.02")])
    assert study.question == "Does low_lr (--muon_lr 0.02) lower the final val_loss?"
    assert (study.name, study.trainer) == ("low_lr", Trainer(profile="by machine"))
    assert [(arm.name, arm.flags) for arm in study.arms] == [("low_lr", (("muon_lr", 0.02),))]


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("--a=b --c d", (("a", "b"), ("c", "d"))),
        ("--a --b 1", (("a", True), ("b", 1))),
        ("--a -1 --b -.5 --c 1e-3", (("a", -1), ("b", -0.5), ("c", 0.001))),
        ("--a 007 --b 4,8 --c 1_0", (("a", "007"), ("b", "4,8"), ("c", "1_0"))),
        ("--a 'x y' --b=", (("a", "x y"), ("b", ""))),
        ("--a 1 --a 2", (("a", Repeated((1, 2))),)),
    ],
)
def test_flags_as_a_shell_has_them(tmp_path, words, flags):
    path = written(tmp_path, foreign())
    (arm,) = read_study(path, [("x", words)]).arms
    assert repr(arm.flags) == repr(flags)


SAME = "is the same configuration as"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--moun_lr 1", "--moun_lr: 1: no option of the trainer; did you mean muon_lr?"),
        ("--muon_lr 1 2", '"2": belongs to no flag; give --flag value'),
        ("-x", '"-x": belongs to no flag; give --flag value'),
        ("--x 'y", '"--x \'y": no closing quotation; close it'),
        ("", "a table: differs in nothing; give flags, env, script, replace, revision"),
        ("--seed 1", "--seed: 1: this project's own trainer is told it in every run; leave it out"),
        ("--muon_lr 0.02", f"muon_lr 0.02: {SAME} the baseline; change it, or leave it out"),
        ("--muon_lr=3e-1", f"muon_lr 0.3: {SAME} --arm first; change it, or leave it out"),
    ],
)
def test_flags_that_cannot_be_meant_are_a_line_that_names_the_arm(flags, said):
    with pytest.raises(StudyFaults) as error:
        study_of_arms([("first", "--muon_lr 0.3"), ("a", flags)], "mini")
    assert str(error.value) == f"--arm a: {said}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/b", '"a/b": name it by letters, digits and _, at most 57'),
        ("baseline", '"baseline": a name that the plans use; give another'),
        ("Final_x", '"Final_x": a name that the plans use; give another'),
        ("first", '"--muon_lr 1": is given twice; give each arm a name of its own'),
    ],
)
def test_names_that_cannot_be_meant_are_a_line_too(name, said):
    with pytest.raises(StudyFaults) as error:
        study_of_arms([("first", "--muon_lr 0.3"), (name, "--muon_lr 1")], "mini")
    assert str(error.value) == f"--arm {name}: {said}"


def test_with_a_file_its_trainer_and_base_stay_and_its_arms_do_not(tmp_path):
    more = "[refinements.r.flags]\nlr = 3\n[names]\nlr = 'rate'"
    study = read_study(written(tmp_path, foreign(more=more)), [("low", "--lr 0.01")])
    assert [arm.label for arm in study.arms] == ["rate 0.01"] and not study.refinements
    assert study.trainer.command == ("train.py",) and study.base.flags
    assert study.name == "low"
    with pytest.raises(StudyFaults) as error:
        text = foreign().replace("nanogpt", "nonegpt")
        read_study(written(tmp_path, text), [("low", "--lr 0.01 1")])
    assert str(error.value) == '--arm low: "1": belongs to no flag; give --flag value'


def test_the_options_of_our_own_trainer_are_read_without_running_it(tmp_path):
    known = options_of(OWN_SCRIPT)
    assert {"muon_lr", "aux_head_layers", "unet_skips"} <= {*known} and len(known) >= 30
    assert options_of(tmp_path / "none.py") == ()
    assert options_of(written(tmp_path, "x = (", "broken.py")) == ()
    assert study_of_arms([("a", "--anything 1")], script=written(tmp_path, "x = 1", "plain.py"))


# ---------------------------------------------------------------------------------------------
# Back and forth, and whatever anybody may have written

WORDS = st.text("abcXYZ 019_.,:;-+=/'\"\\\\#[]äß", min_size=1, max_size=12).filter(
    lambda text: text == " ".join(text.split())
)
NAMES = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=8)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = WORDS | st.just("") | NUMBERS | st.booleans() | st.just("{seed}")
LISTS = st.lists(SCALARS, min_size=1, max_size=3).map(tuple)
FLAGS = st.dictionaries(NAMES, SCALARS | LISTS | LISTS.map(Repeated), min_size=1, max_size=3)
CODES = st.text("ab \n\t(){}", min_size=1, max_size=8)
REPLACEMENTS = st.builds(Replacement, NAMES, CODES.map("x{}".format), CODES)
TERMS = st.builds(
    Design,
    sigma0=st.floats(1e-3, 1.0),
    delta_eq=st.floats(1e-3, 1.0),
    delta_target=st.floats(2.0, 3.0),
    drop=st.floats(1.0, 9.0),
    alpha=st.floats(1e-3, 0.1),
    first_look=st.integers(2, 9),
    pairing=st.floats(0, 0.8),
    rho=st.floats(0, 0.9),
)


def arms_called(prefix):
    arm = st.builds(
        Arm,
        name=NAMES.map(lambda name: f"{prefix}{name}"),
        flags=FLAGS.map(lambda flags: tuple(flags.items())),
        env=st.dictionaries(NAMES.map("V_{}".format), WORDS, max_size=2).map(
            lambda d: (*d.items(),)
        ),
        script=st.just("") | NAMES.map("{}.py".format),
        replacements=st.lists(REPLACEMENTS, max_size=2).map(tuple),
        revision=st.just("") | NAMES,
        slower=st.floats(0, 1000).map(abs),
        description=st.just("") | WORDS,
    )
    return st.lists(arm, max_size=3, unique_by=lambda arm: arm.name).map(tuple)


OWN_FORM = (("step", r"(?P<step>[0-9]+) (?P<value>\S+)"), ("example", "1 2"), ("first_step", 0))
TRAINERS = st.builds(
    Trainer,
    command=st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    folder=st.just("/somewhere"),
    launch=st.sampled_from(["torchrun", "plain", "command"]),
    flag_form=st.sampled_from(["--name value", "--name=value", "name=value"]),
    log=st.sampled_from(["nanogpt", OWN_FORM]),
    metric=st.builds(Metric, NAMES.map("m{}".format), st.just("") | WORDS, st.just("higher")),
    full_iterations=st.integers(1, 10**9),
    expected_hours=st.floats(1e-3, 1e3),
    budget_hours=st.floats(1e-3, 1e3),
    companions=st.lists(NAMES, max_size=2).map(tuple),
    data=st.lists(NAMES, max_size=2).map(tuple),
)
STUDIES = st.builds(
    Study,
    name=NAMES,
    question=WORDS,
    hypothesis=st.just("") | WORDS,
    trainer=TRAINERS,
    base=FLAGS.map(
        lambda f: Arm(
            "baseline",
            (("n", "{num_iterations}"), ("s", "{seed}"), *((f"b{k}", v) for k, v in f.items())),
        )
    ),
    arms=arms_called("a_").filter(bool),
    refinements=arms_called("r_"),
    cells=arms_called("c_"),
    screening=arms_called("s_"),
    grid=st.dictionaries(NAMES, LISTS, max_size=2).map(lambda d: (*d.items(),)),
    names=st.dictionaries(NAMES, WORDS, max_size=2).map(lambda d: (*d.items(),)),
    words=st.builds(Words, title=st.just("") | WORDS, arm=WORDS),
    noise=TERMS,
)


@settings(max_examples=80, deadline=None)
@given(study=STUDIES)
def test_a_study_is_the_same_after_it_was_written_down(study):
    study = replace(
        study,
        arms=tuple(map(study.described, study.arms)),
        screening=tuple(map(study.described, study.screening)),
        favourite=study.arms[-1].name,
    )
    try:
        back = study_from(json.loads(json.dumps(document_of(study))))
    except StudyFaults as error:  # of what happens to be equal, or overrides the seed
        kinds = (
            "the same configuration as",
            "changes nothing",
            "replaces what tells",
            "a name that",
        )
        assert all(any(kind in fault for kind in kinds) for fault in error.faults), error
        assume(False)
    assert back == study and repr(replace(back, phases=())) == repr(replace(study, phases=()))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just(5000).map(lambda digits: 10**digits),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Every path in a document."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


OWN_FORMED = tomllib.loads(foreign())["trainer"] | {"log": dict(OWN_FORM), "seed": "none"}
OWN_FORMED["command"] = ["train.py", "{num_iterations}"]
VALID = [
    document_of(HEADS),
    document_of(study_from({"name": "x", **tomllib.loads(ISSUE)})),
    document_of(study_from({"name": "x", **tomllib.loads(foreign(more="[words]\nit = 'this'"))})),
    {**document_of(HEADS), "trainer": OWN_FORMED},
]
PLACES = [(k, path) for k, document in enumerate(VALID) for path in places(document)]


def is_answer(document):
    """Whatever it is, it is a study that can be written down, or lines of faults."""
    try:
        study = study_from(document)
    except StudyFaults as error:
        assert error.faults and all(fault.isprintable() for fault in error.faults)
    else:
        assert study_from(document_of(study)) == study


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON, name=st.none() | st.text(max_size=9))
def test_whatever_stands_in_a_document_is_a_study_or_faults(place, value, name):
    k, path = place
    document = json.loads(json.dumps(VALID[k]))
    if not path:
        return is_answer(value)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if name is None or isinstance(inner, list):
        inner[path[-1]] = value
    else:
        inner[name] = inner.pop(path[-1])
    is_answer(document)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_a_file_holds_is_one_answer(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_study(path)
    assert all(line.isprintable() for line in str(error.value).split("\n"))


def test_a_large_hostile_document_is_answered_soon():
    many = {f"x{k}": {f"y{j}": {} for j in range(150)} for k in range(200)}
    with pytest.raises(StudyFaults):
        study_from({"name": "x", "question": "?", "arms": many, "refinements": many, "words": many})
    arms = {f"a{k}": {"flags": {"x": k}} for k in range(200)}
    whole = json.loads(json.dumps(VALID[2])) | {"arms": arms}
    whole["refinements"] = {f"r{name}": arm for name, arm in arms.items()}
    with pytest.raises(StudyFaults, match="configurations in all; give at most 10000"):
        study_from(whole)


# ---------------------------------------------------------------------------------------------
# What docs/studies.md says

PAGE = (ROOT / "docs" / "studies.md").read_text()
ROWS = {
    key: (kind, default)
    for key, kind, default in re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \|", PAGE, re.M)
}
TABLES = {  # of keys, by the key that they are under
    "": study_file.STUDY.keys() - {"trainer", "base", "noise", "words"},
    "trainer": study_file.TRAINER,
    "trainer.log": study_file.LOG,
    "base": study_file.BASE,
    "arms.NAME": study_file.ARM,
    "noise": study_file.NOISE,
    "words": study_file.WORDS,
}
OPEN = {"arms": None, "grid": "FLAG", "names": "FLAG"}  # tables of names that a writer chooses
OPEN |= dict.fromkeys(("refinements", "cells", "screening"), "NAME")


def test_the_table_of_the_page_has_every_key_and_no_other():
    keys = {f"{path}.{name}".lstrip(".") for path, names in TABLES.items() for name in names}
    keys = {key for key in keys if key not in OPEN}
    keys |= {f"{key}.{name}" for key, name in OPEN.items() if name}
    assert keys == ROWS.keys()


def test_the_defaults_of_the_page_are_those_of_the_code():
    quoted = {key: default[1:-1] for key, (_, default) in ROWS.items() if default[0] == "`"}
    values = {
        f"words.{name}": getattr(Words(), name) for name in study_file.WORDS if name != "title"
    }
    values |= {
        f"trainer.{n}": getattr(Trainer(), n) for n in ("launch", "flag_form", "length", "seed")
    }
    metric = {"metric": Metric.name, "unit": Metric.unit, "better": Metric.better}
    assert quoted == values | {f"trainer.{name}": value for name, value in metric.items()}
    terms = ("alpha", "first_look", "speedup", "pairing", "rho")
    unknown = study_from({**VALID[2], "noise": {}}).noise
    assert {n: ROWS[f"noise.{n}"][1] for n in terms} == {
        n: f"{getattr(unknown, n):g}" for n in terms
    }
    known = study_from({**VALID[2], "noise": {"sigma0": 0.5}}).noise
    assert (known.delta_eq, known.delta_target, known.drop) == (2 * 0.5, 4 * 0.5, 10 * 4 * 0.5)
    assert [ROWS[f"noise.{n}"][1] for n in ("delta_eq", "delta_target", "drop")] == [
        "2 x sigma0", "4 x sigma0", "10 x delta_target"
    ]  # fmt: skip
    assert ROWS["trainer.budget_hours"][1] == f"{FULL_RUNS} full runs"


def test_a_key_is_needed_where_the_page_says_so():
    lacking = set()
    for trainer in ({}, {"command": "x", "log": {}}, {"command": "x", "length": "time"}):
        with pytest.raises(StudyFaults) as error:
            study_from({"trainer": trainer, "name": "x", "arms": {}})
        lacking |= {
            fault.split(": not given")[0] for fault in error.value.faults if ": not given" in fault
        }
    assert lacking == {key for key, (_, default) in ROWS.items() if default == "needed"}


def test_the_placeholders_of_the_page_are_those_that_are_known():
    rows = "\n".join(f"| `{{{name}}}` | {about} |" for name, about in PLACEHOLDERS.items())
    assert rows in PAGE


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_every_study_of_the_page_can_be_meant(tmp_path, example):
    assert read_study(written(tmp_path, example)).arms


def test_the_first_study_of_the_page_is_the_example_that_runs():
    first = re.search(r"```toml\n(.*?)```", PAGE, re.S)[1]
    assert (ROOT / "examples" / "muon_lr.toml").read_text().endswith(f"\n{first}")


def test_the_faults_of_the_page_are_told_in_these_words(tmp_path):
    shown = re.search(r"```\n(my\.toml: .*?)```", PAGE, re.S)[1].splitlines()
    text = ISSUE.replace("launch =", "lanch =").replace("muon_lr = 0.02", "cooldown_frac = 0.7")
    text = text.replace('ITERS = "{num_iterations}"', 'ITERS = "{num_iteration}"')
    assert shown == [f"my.toml: {line}" for line in faults_of(tmp_path, text)]


def test_the_names_that_the_plans_use_are_on_the_page():
    for name in ("final_x", "screen_x", "validation_0", "x_repeat", "unrefined", "noise_baseline"):
        with pytest.raises(StudyFaults, match="a name that the plans use"):
            study_from({**VALID[2], "arms": {name: {"flags": {"x": 1}}}})
        assert name.replace("x", "...").replace("......", "...") in PAGE


def test_the_page_names_every_form_of_logs():
    (row,) = re.findall(r"^\| `trainer.log` .*$", PAGE, re.M)
    assert {*re.findall(r"`([\w-]+)`", row)} == FORMATS.keys()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_no_scale_makes_two_arms_of_the_examples_equal(profile):
    assert not faults_of_equal_arms(HEADS, profile.scale)


@pytest.mark.parametrize(("profile", "is_refused"), [("mini", True), ("small", False)])
def test_an_arm_that_is_the_baseline_at_this_scale_is_refused(profile, is_refused):
    words = f"--staged --arm low_lr=--muon_lr=0.02 --profile {profile}"
    given = build_parser().parse_args(words.split())
    e = new_experiment(study_asked(given), profile, 0, cores=4)
    if not is_refused:
        assert as_asked(e, given, 0).study.arms
        return
    with pytest.raises(StudyFaults) as error:
        as_asked(e, given, 0)
    assert str(error.value) == (
        "--arm low_lr: muon_lr 0.02: is the same configuration as the baseline; change it, or leave"
        " it out"
    )


def test_what_is_wrong_on_disk_is_told_with_what_is_wrong_in_the_file(tmp_path, capsys):
    (tmp_path / "train.py").write_text("hidden = 4\n")
    text = foreign(
        more="""gone = { script = "gone.py" }
other_width = { replace = [{ file = "train.py", find = "hidden = 5", with = "hidden = 6" }] }
empty = {}
same = { flags = { lr = 1e-1 } }"""
    )
    path = written(tmp_path, text)
    assert run_aux.main(["--staged", "--dry_run", "--study", str(path)]) == exit_codes.REFUSED
    assert capsys.readouterr().err.splitlines() == [
        f"run_aux.py: error: {path}: {fault}"
        for fault in (
            "arms.empty: an empty table: differs in nothing; give flags, env, script, replace,"
            " revision",
            "arms.same: lr 0.1: is the same configuration as arms.other; change it, or leave it"
            " out",
            f"arms.gone.script: {tmp_path}/gone.py: no such file; give the trainer's file, by its"
            " path from the study's",
            "arms.other_width.replace[0].find: occurs 0 times in train.py, not once; give a text"
            " that is in it",
        )
    ]
