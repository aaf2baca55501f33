"""A study of a trainer that knows nothing of this project, from its file to its verdict."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run_aux import FIXED, ask

import analyze_aux
from ablation.cli import exit_codes
from ablation.folder.registration import digest_of, newest_experiment
from ablation.folder.standing import standing
from tests.support.processes import survivors

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "tests" / "support" / "foreign_train.py"
STUDY = """
question = "Does a gain lower the loss?"

[trainer]
command = "train.py"
launch = "plain"
log = "nanogpt"
full_iterations = 10
expected_hours = 0.0002
budget_hours = 1
data = ["text"]

[base]
env = { SEED = "{seed}", ITERS = "{num_iterations}" }

[arms]
gain = { env = { GAIN = "0.05" } }
other = { script = "other.py" }
patched = { replace = [{ file = "train.py", find = "EXTRA = 0.0", with = "EXTRA = -0.05" }] }

[refinements]
more = { env = { GAIN = "0.1" } }

[noise]
sigma0 = 0.002
delta_eq = 0.01
delta_target = 0.02
"""


@pytest.fixture
def lab(home, monkeypatch):
    """A folder with the trainer, its data and its study; the working folder is another one."""
    folder = home / "lab"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "a.txt").write_text("text\n")
    shutil.copy(TRAINER, folder / "train.py")
    text = TRAINER.read_text()
    (folder / "other.py").write_text(text.replace("EXTRA = 0.0", "EXTRA = 0.01"))
    (folder / "s.toml").write_text(STUDY)
    return folder


def study(lab, *arguments, **changes):
    """Exit code, standard output and error of run_aux with the study of a lab."""
    text = STUDY
    for old, new in changes.get("edits", ()):
        assert old in text
        text = text.replace(old, new)
    (lab / "s.toml").write_text(text)
    return said("--study", lab / "s.toml", "--num_gpus", "0", *arguments)


def said(*arguments):
    return ask(*map(str, arguments))


def newest(home) -> Path:
    return newest_experiment(home / "experiments")


def before(folder: Path) -> dict:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*.py")}


# ---------------------------------------------------------------------------------------------
# From the first run to the verdict


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_a_plan_is_carried_out_and_told_in_the_words_of_the_study(plan, lab, home):
    was = before(lab)
    code, out, err = study(lab, "--staged", "--plan", plan, "--ignore_gate")
    assert code == exit_codes.DONE, err
    exp_dir = newest(home)
    assert exp_dir.name.startswith("s_")
    found = standing(exp_dir)
    assert found.changed == ()
    chosen = found.step.decisions[4].chosen
    assert dict(chosen.env)["GAIN"] == "0.1"
    assert "gain + more" in found.step.decisions[4].chosen.label
    code, *_ = analyze(exp_dir)
    report = (exp_dir / "analysis_report.txt").read_text()
    assert "arms' own code" in report
    assert "runs differ in code" not in report  # other.py and a patched train.py, as was asked
    for word in ("aux", "heads", "layers", "tap", "weight and schedule", "dive_"):
        assert word not in report.replace("layer_ablation.png", ""), word
        assert word not in out.replace("analyze_aux", "").replace("run_aux", ""), word
    assert "Does a gain lower the loss?" in report
    assert {path: state for path, state in before(lab).items() if path in was} == was


def analyze(exp_dir):
    return (analyze_aux.main(["--exp_dir", str(exp_dir)]),)


def test_every_arm_runs_code_of_its_own_from_the_experiment(lab, home):
    code, *_ = study(lab, "--experiment", "baseline,gain,other,patched")
    assert code == exit_codes.DONE
    exp_dir = newest(home)
    ran = {}
    for name in ("baseline", "gain", "other", "patched"):
        config = json.loads((exp_dir / name / "run_0" / "config.json").read_text())
        assert Path(config["command"][1]).is_relative_to(exp_dir / "code")
        ran[name] = config["code"]["hash"]
        assert config["command"][1].split("/")[-2] == ran[name]
    assert ran["baseline"] == ran["gain"]
    assert len({ran["baseline"], ran["other"], ran["patched"]}) == 3
    registered = json.loads((exp_dir / "experiment_configs.json").read_text())["registered"]
    hashes = {row["hash"] for row in registered["codes_of_arms"]}
    assert hashes == {ran["other"], ran["patched"]}


def test_a_run_is_told_its_own_folder_its_gpus_and_what_its_study_says_of_threads(lab, home):
    told = 'ITERS = "{num_iterations}", TO = "{run_dir}/x", GPUS = "{num_gpus}"'
    told += ', OMP_NUM_THREADS = "7"'  # else a share of the cores
    words = ("--experiment", "baseline,gain", "--parallel_runs", "2")
    code, _, err = study(lab, *words, edits=[('ITERS = "{num_iterations}"', told)])
    assert code == exit_codes.DONE, err
    run = newest(home) / "baseline" / "run_0"
    env = json.loads((run / "config.json").read_text())["env"]
    assert env["TO"] == str(run.resolve() / "work" / "x") and env["GPUS"] == "0"
    assert env["OMP_NUM_THREADS"] == "7"


def test_what_a_trainer_writes_lies_apart_from_the_records(lab, home):
    code, *_ = study(lab, "--experiment", "baseline")
    assert code == exit_codes.DONE
    run = newest(home) / "baseline" / "run_0"
    assert (run / "work" / "config.json").read_text() == "the trainer's own\n"
    assert json.loads((run / "config.json").read_text())["attempt"] == 1
    assert (run / "work" / "text").is_symlink()


def test_an_experiment_is_gone_on_with_without_the_file_and_the_lab(lab, home):
    code, *_ = study(lab, "--stage", "1")
    assert code == exit_codes.DONE
    for name in ("train.py", "other.py", "s.toml"):
        (lab / name).unlink()
    exp_dir = newest(home)
    code, _, err = said("--stage", "2", "--exp_dir", exp_dir, "--ignore_gate")
    assert code == exit_codes.DONE, err
    assert 2 in standing(exp_dir).step.decisions


def test_another_study_is_refused_in_a_folder_by_what_differs(lab, home):
    study(lab, "--experiment", "baseline")
    edits = [('GAIN = "0.05"', 'GAIN = "0.07"')]
    code, _, err = study(lab, "--experiment", "baseline", "--exp_dir", newest(home), edits=edits)
    assert code == exit_codes.REFUSED
    assert "study.arms.gain.env.GAIN" in err
    assert "0.05" in err and "0.07" in err


def test_other_noise_in_the_file_is_another_study(lab, home):
    study(lab, "--stage", "1", "--alpha", "0.04", "--plan", "adaptive")
    words = ("--stage", "2", "--exp_dir", newest(home))
    code, _, err = study(lab, *words, edits=[("sigma0 = 0.002", "sigma0 = 0.003")])
    assert code == exit_codes.REFUSED
    assert "study.noise.sigma0: registered 0.002, now 0.003" in err
    assert "profile.design.alpha: registered 0.04, now 0.05" in err
    code, _, err = study(lab, *words, "--alpha", "0.04")
    assert code == exit_codes.DONE, err


def test_data_that_changed_is_another_experiment(lab, home):
    study(lab, "--stage", "1")
    (lab / "text" / "a.txt").write_text("text, and more\n")
    code, _, err = said("--stage", "2", "--exp_dir", newest(home))
    assert code == exit_codes.REFUSED
    assert "data.fingerprint" in err


def test_a_copy_that_was_edited_is_refused(lab, home):
    study(lab, "--stage", "1")
    (script,) = (newest(home) / "code").glob("*/other.py")
    script.write_text(script.read_text() + "# edited\n")
    code, _, err = said("--stage", "2", "--exp_dir", newest(home))
    assert code == exit_codes.REFUSED
    assert "was edited" in err


FORGED = {
    "no code": ([], "no code of arms.other is registered"),
    "no texts": ([[{}, [], []]], "not by texts"),
    "no texts in a replacement": ([["", [["a", {}, "b"]], ""]], "not by texts"),
}


@pytest.mark.parametrize(("trainers", "words"), FORGED.values(), ids=FORGED)
def test_forged_code_of_arms_is_refused_in_words(trainers, words, lab, home):
    study(lab, "--stage", "1", "--plan", "adaptive")
    path = newest(home) / "experiment_configs.json"
    document = json.loads(path.read_text())
    fixed = document["registered"]
    row = fixed["codes_of_arms"][0]
    fixed["codes_of_arms"] = [row | {"trainer": trainer} for trainer in trainers]
    path.write_text(json.dumps(document | {"hash": digest_of(fixed)}))
    code, _, err = said("--stage", "2", "--exp_dir", newest(home))
    assert code == exit_codes.REFUSED and words in err


def test_a_seed_in_a_replacement_makes_a_copy_for_each_run(lab, home):
    change = 'file = "train.py", find = "EXTRA = 0.0", with = "EXTRA = {seed} * 1e-9"'
    edits = [("[refinements]", f"seeded = {{ replace = [{{ {change} }}] }}\n[refinements]")]
    code, _, err = study(lab, "--experiment", "seeded", "--runs", "2", edits=edits)
    assert code == exit_codes.DONE, err
    for index, seed in enumerate((42, 43)):
        copy = newest(home) / "seeded" / f"run_{index}" / "code" / "train.py"
        assert f"EXTRA = {seed} * 1e-9" in copy.read_text()


# ---------------------------------------------------------------------------------------------
# What goes wrong


def test_a_trainer_that_logs_nothing_recognisable_fails_its_first_run_only(lab, home):
    edits = [('ITERS = "{num_iterations}"', 'ITERS = "{num_iterations}", MISCHIEF = "other words"')]
    code, out, _ = study(lab, "--staged", edits=edits)
    assert code == exit_codes.FAULT
    (result,) = standing(newest(home)).records.results
    assert result.status == "crashed"
    assert "epoch 2 done" in out and "step I: train loss F, val loss F" in out


def test_a_loss_that_is_no_number_is_a_divergence(lab, home):
    edits = [('gain = { env = { GAIN = "0.05" } }', 'gain = { env = { MISCHIEF = "nan" } }')]
    code, *_ = study(lab, "--experiment", "baseline,gain", edits=edits)
    assert code == exit_codes.DONE
    found = {r.run.arm.name: r.status for r in standing(newest(home)).records.results}
    assert found == {"baseline": "ok", "gain": "diverged"}


def test_all_faults_are_told_at_once_and_nothing_is_written(lab, home):
    edits = [
        ('script = "other.py"', 'script = "gone.py"'),
        ('find = "EXTRA = 0.0"', 'find = "EXTRA"'),
        ('data = ["text"]', 'data = ["no_text"]'),
    ]
    code, _, err = study(lab, "--staged", edits=edits)
    assert code == exit_codes.REFUSED
    lines = err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("run_aux.py: error: ") for line in lines)
    assert any("arms.other.script" in line and "gone.py" in line for line in lines)
    assert any("arms.patched.replace[0]" in line and "train.py" in line for line in lines)
    assert any("trainer.data[0]" in line and "no_text" in line for line in lines)
    assert not (home / "experiments").exists()


def test_a_stop_ends_the_run_and_a_resume_goes_on(lab, home, token):
    (lab / "s.toml").write_text(
        STUDY.replace("[arms]", '[arms]\nslow = { env = { MISCHIEF = "slow" } }')
    )
    words = ["--study", lab / "s.toml", "--num_gpus", "0", "--experiment", "slow,gain", "--no_page"]
    program = subprocess.Popen(
        [sys.executable, ROOT / "run_aux.py", *map(str, words)], cwd=home, env=os.environ
    )
    deadline = time.monotonic() + 60
    while not list(home.glob("experiments/s_*/slow/run_0/*/config.json")):
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    assert program.wait(60) == exit_codes.STOPPED + signal.SIGINT
    assert not survivors(token)
    code, *_ = said("--exp_dir", newest(home))
    assert code == exit_codes.DONE
    statuses = [(r.run.name, r.status) for r in standing(newest(home)).records.results]
    assert statuses == [
        ("gain/run_0", "ok"), ("slow/run_0", "interrupted"), ("slow/run_0", "ok"),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Every way to look at one


LOOKS = {
    "--list": ["gain", "other.py", "more"],
    "--staged --dry_run": ["GAIN=0.05", "SEED=2000", "as if gain won"],
    "--plan_report --plan adaptive": ["nats/token", "1 screening"],
    "--staged --preflight": ["baseline: ", "1 file(s)"],
}


@pytest.mark.parametrize("words", LOOKS)
def test_a_study_can_be_looked_at_before_it_runs(words, lab, home):
    code, out, err = study(lab, *words.split())
    assert code == exit_codes.DONE, (out, err)
    for text in LOOKS[words]:
        assert text in out, text
    assert not (home / "experiments").exists()


def test_a_program_gets_its_answer(lab, home, capfd):
    code, out, _ = study(
        lab, "--staged", "--plan", "adaptive", "--json", "--exit_verdict", "--max_budget_hours", "1"
    )
    found = json.loads(out)
    assert code == found["exit_code"] == exit_codes.IMPROVES
    assert found["verdict"] == "improves" and found["improvement"] > 0.09
    assert {arm["name"] for arm in found["arms"]} >= {"gain", "other", "patched", "final_best"}


def test_an_arm_on_the_command_line_is_a_study_of_our_own_trainer(home):
    words = ("--arm", "low_lr=--muon_lr 0.01", "--experiment", "baseline,low_lr", *FIXED)
    code, out, err = said(*words)
    assert code == exit_codes.DONE, (out, err)
    config = json.loads((newest(home) / "low_lr" / "run_0" / "config.json").read_text())
    at = config["command"].index("--muon_lr")
    assert config["command"][at + 1] == "0.01" and config["command"].count("--muon_lr") == 1
    assert newest(home).name.startswith("low_lr_")


def test_the_base_of_a_study_of_our_own_trainer_is_told_to_every_run_of_it(home):
    text = 'question = "Is it better?"\n[trainer]\nprofile = "mini"\n[base.flags]\nmuon_lr = 0.03\n'
    (home / "own.toml").write_text(f"{text}[arms]\nlow = {{ flags = {{ embed_lr = 0.1 }} }}\n")
    words = ("--study", home / "own.toml", "--experiment", "baseline,low", *FIXED)
    code, out, err = said(*words)
    assert code == exit_codes.DONE, (out, err)
    for name in ("baseline", "low"):
        config = json.loads((newest(home) / name / "run_0" / "config.json").read_text())
        command = config["command"]
        assert command.count("--muon_lr") == 1
        assert command[command.index("--muon_lr") + 1] == "0.03"


@pytest.mark.parametrize("launcher", ["torchrun", "command"])
def test_a_trainer_starts_in_other_ways_too(launcher, lab, home, monkeypatch):
    monkeypatch.delenv("TORCHRUN")
    command = 'command = "train.py"\nlaunch = "plain"'
    new = {
        "torchrun": 'command = "train.py"\nlaunch = "torchrun"',
        "command": f'command = ["{sys.executable}", "train.py"]\nlaunch = "command"',
    }[launcher]
    code, out, err = study(lab, "--experiment", "baseline,other", edits=[(command, new)])
    assert code == exit_codes.DONE, (out, err)
