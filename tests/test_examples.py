"""The examples are started for real, as short as they can be."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.folder.materials import Materials
from ablation.folder.registration import registered
from ablation.folder.standing import standing
from ablation.study.heads import HEADS
from ablation.study.study_file import read_study
from tests.support.invented_folder import adaptive_plan

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
STARTED = {  # study: what is run of it
    "muon_lr.toml": ("baseline", "low_lr"),
    "plain/plain.toml": ("baseline", "gated", "fast"),
    "heads.toml": ("baseline", "aux_4_8"),
}


@pytest.mark.parametrize("study", STARTED)
def test_an_example_runs(study, tmp_path):
    if not list((ROOT / "data" / "stdlib").glob("*.bin")):
        pytest.skip("no shards in data/stdlib: python data/prepare.py makes them")
    arms = STARTED[study]
    words = ["--experiment", ",".join(arms), "--full_iterations", "2", "--parallel_runs", "2"]
    words += ["--study", EXAMPLES / study, "--num_gpus", "0", "--exp_dir", tmp_path / "exp"]
    words += ["--max_budget_hours", "1", "--no_page"]
    env = {name: value for name, value in os.environ.items() if name != "TORCHRUN"}
    program = [sys.executable, ROOT / "run_aux.py", *words]
    done = subprocess.run(
        list(map(str, program)), cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    results = standing(tmp_path / "exp").records.results
    assert sorted(r.run.arm.name for r in results if r.status == "ok") == sorted(arms)
    assert len({r.val_loss for r in results}) == len(arms)


def test_the_heads_as_a_file_are_registered_as_the_built_in_study(tmp_path):
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "x_train_1.bin").write_bytes(b"tokens")
    m, e = Materials(tmp_path / "train.py", tmp_path), adaptive_plan()
    of_file = replace(e, study=read_study(EXAMPLES / "heads.toml"))
    assert registered(of_file, m) == registered(e, m)
    assert e.study is HEADS
