"""A trainer that knows nothing of the project: what it is told, and that its arms differ."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ablation.folder.trainers import codes_of, faults_of
from ablation.runs.run import Arm, Replacement
from ablation.study.study import Study, Trainer
from data import prepare

PLAIN = Path(__file__).resolve().parents[1] / "examples" / "plain"


def study_of_the_file() -> Study:
    """Its code alone."""
    table = tomllib.loads((PLAIN / "plain.toml").read_text())
    changes = table["arms"]["fast"]["replace"]
    texts = tuple(Replacement(each["file"], each["find"], each["with"]) for each in changes)
    arms = Arm("gated", script=table["arms"]["gated"]["script"]), Arm("fast", replacements=texts)
    trainer = Trainer((table["trainer"]["command"],), str(PLAIN), table["trainer"]["launch"])
    return Study("plain", table["question"], trainer=trainer, arms=arms)


def test_its_arms_are_three_codes():
    assert faults_of(study_of_the_file()) == []
    assert len({code.hash for code in codes_of(study_of_the_file()).values()}) == 3


@pytest.mark.parametrize("script", ["train_plain.py", "train_gated.py"])
def test_it_does_what_its_variables_say(script, tmp_path):
    for split in ("train", "val"):
        prepare.write_shard(tmp_path / f"x_{split}_000001.bin", bytes(range(250)) * 40)

    def losses(seed):
        told = {"SEED": str(seed), "ITERS": "2", "DATA": str(tmp_path)}
        command = [sys.executable, "-B", str(PLAIN / script)]
        out = subprocess.check_output(command, env=os.environ | told, cwd=tmp_path, text=True)
        evaluated = re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)\n", out)
        assert [step for step, _ in evaluated] == ["0", "2"]
        assert re.search(r"^iter 0: loss [\d.]+, time [\d.]+ms, mfu [\d.]+%$", out, re.MULTILINE)
        return evaluated

    first = losses(1)
    assert losses(1) == first
    assert losses(2) != first
    assert float(first[-1][1]) < float(first[0][1])
