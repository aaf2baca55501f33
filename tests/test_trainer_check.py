"""The trainer's own word on every arm, before anything is registered; only where it can give it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.execute import machine, trainer_check
from ablation.execute.trainer_check import check_with_trainer, has_check
from ablation.folder.materials import Materials
from tests.support.invent import ARMS, experiment

ROOT = Path(__file__).resolve().parents[1]
TRAINER = """
import json, sys
import aux_heads

def main(argv):
    flags = dict(zip(argv[:-1:2], argv[1:-1:2]))
    assert argv[-1] == "--check"
    with open({seen!r}, "a") as file:
        file.write(json.dumps(flags) + "\\n")
    if flags["--aux_head_layers"] == "6":
        print("train_gpt.py: error: --aux_head_layers 6: no", file=sys.stderr)
        return {code}
    return 0
"""


@pytest.fixture
def trainer(tmp_path):
    """Makes one of our names that notes how it is asked, and answers so for layer 6."""
    (tmp_path / "mine").mkdir()

    def make(code=0):
        text = TRAINER.format(seen=str(tmp_path / "seen"), code=code)
        (tmp_path / "mine" / "train_gpt.py").write_text(text)
        (tmp_path / "mine" / "aux_heads.py").touch()
        return Materials(tmp_path / "mine" / "train_gpt.py", tmp_path / "shards")

    return make


def seen(tmp_path):
    lines = (tmp_path / "seen").read_text().splitlines()
    return [json.loads(line)["--aux_head_layers"] for line in lines]


def by_hand(*names, seeds=(1, 2), **changes):
    arms = tuple(ARMS[name] for name in names)
    return experiment(plan="manual", arms=arms, seeds=seeds, **changes)


def test_each_distinct_arm_is_asked_once_and_nothing_is_left(trainer, tmp_path):
    m = trainer()
    check_with_trainer(by_hand("baseline", "aux_6", "aux_6_repeat", "aux_4_8"), m, tmp_path)
    assert sorted(seen(tmp_path)) == ["", "4,8", "6"]
    assert not list(tmp_path.rglob("__pycache__"))
    (tmp_path / "seen").unlink()
    check_with_trainer(experiment(), m, tmp_path)
    assert len(seen(tmp_path)) == 10  # baseline, five placements, two weights, two schedules


def test_a_refusal_is_told_in_the_trainers_words(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"^train_gpt.py: error: --aux_head_layers 6: no$"):
        check_with_trainer(by_hand("baseline", "aux_6", "aux_8"), trainer(2), tmp_path)


def test_what_is_no_refusal_stops_nothing(trainer, tmp_path, monkeypatch):
    check_with_trainer(by_hand("aux_6"), trainer(1), tmp_path)
    monkeypatch.setattr(machine, "PATIENCE_S", 0.01)  # torch on a slow disk
    check_with_trainer(by_hand("aux_6"), trainer(2), tmp_path)


def test_on_slurm_it_is_not_asked(trainer, tmp_path):
    check_with_trainer(by_hand("aux_6", launcher="slurm"), trainer(2), tmp_path)
    assert not (tmp_path / "seen").exists()


def test_who_has_no_check_is_not_disturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_check, "ask", None)
    fake = Materials(ROOT / "tests" / "support" / "fake_train.py", tmp_path)
    assert not has_check(fake.code)
    check_with_trainer(by_hand("aux_6"), fake, tmp_path)


def test_ours_is_known_by_its_flag():
    import train_gpt

    flags = train_gpt.build_parser()._option_string_actions
    ours = Materials(ROOT / "train_gpt.py", ROOT)
    assert has_check(ours.code) == (trainer_check.FLAG in flags)


def test_a_sitting_that_is_refused_registers_nothing(trainer, tmp_path):
    trainer(2)
    prepare = [sys.executable, str(ROOT / "data" / "prepare.py"), "--output_dir", "shards"]
    subprocess.run(prepare, cwd=tmp_path, check=True)
    words = ("--experiment", "baseline,aux_6", "--profile", "mini", "--data_dir", "shards")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_aux.py"), *words, "--train_script", "mine/train_gpt.py"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "run_aux.py: error: train_gpt.py: error: --aux_head_layers 6: no\n"
    assert not (tmp_path / "experiments").exists()
