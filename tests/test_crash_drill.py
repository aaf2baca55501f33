"""Killed at random moments, the orchestrator loses nothing and makes nothing up."""

import json
from pathlib import Path

import pytest

from benchmarks.crash_drill import COUNTED, main, run

ROOT = Path(__file__).resolve().parent.parent


def test_50_kills_over_whole_plans_lose_nothing_and_invent_nothing(capsys):
    figures = run(kills=50, seed=20, real=False)
    print(capsys.readouterr().out)
    assert figures == {"kills": 50, **dict.fromkeys(COUNTED, 0)}


def test_the_real_trainer_under_torchrun_with_two_processes_leaves_nothing_either(capsys):
    if not list((ROOT / "data" / "stdlib").glob("*.bin")):
        pytest.skip("no shards in data/stdlib: python data/prepare.py makes them")
    figures = run(kills=2, seed=3, real=True)
    print(capsys.readouterr().out)
    assert figures == {"kills": 2, **dict.fromkeys(COUNTED, 0)}


def test_figures_are_written_as_they_are_printed(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["--kills", "1", "--seed", "1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert list(figures) == ["kills", *COUNTED]
    shown = capsys.readouterr().out
    assert "seed 1" in shown
    assert all(f"{name:<11} {value}" in shown for name, value in figures.items())
