"""Killed at random moments, the orchestrator loses nothing and makes nothing up."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import crash_drill
from benchmarks.crash_drill import COUNTED, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def drills():
    """Two drills side by side: each mostly waits, for its processes or for one core."""
    with ThreadPoolExecutor(2) as beside:
        started = {"fake": beside.submit(told, kills=10, seed=20, real=False)}
        if list((ROOT / "data" / "stdlib").glob("*.bin")):
            started["real"] = beside.submit(told, kills=1, seed=4, real=True)
        yield started


def told(**drill):
    """The figures of a drill, and all that it said."""
    said = []
    return run(**drill, print_line=said.append), "\n".join(said)


def check(drill, kills):
    figures, said = drill.result()
    print(said)
    assert figures.pop("kills") >= kills
    assert figures == dict.fromkeys(COUNTED, 0)


def test_10_kills_over_a_whole_plan_lose_nothing_and_invent_nothing(drills):
    check(drills["fake"], kills=10)


def test_the_real_trainer_under_torchrun_with_two_processes_leaves_nothing_either(drills):
    if "real" not in drills:
        pytest.skip("no shards in data/stdlib: python data/prepare.py makes them")
    check(drills["real"], kills=1)


@pytest.mark.parametrize(("survivors", "code"), [(0, 0), (1, 1)])
def test_figures_are_written_as_they_are_printed(tmp_path, capsys, monkeypatch, survivors, code):
    figures = {"kills": 1, **dict.fromkeys(COUNTED, 0), "survivors": survivors}
    monkeypatch.setattr(crash_drill, "run", lambda kills, seed, real: figures)
    file = tmp_path / "figures.json"
    assert crash_drill.main(["--kills", "1", "--seed", "7", "--json", str(file)]) == code
    assert json.loads(file.read_text()) == figures
    shown = capsys.readouterr().out
    assert "seed 7" in shown
    assert all(f"{name:<11} {value}" in shown for name, value in figures.items())


@pytest.mark.parametrize(
    ("spans", "allowed", "most", "covered_s"),
    [
        ([], 1, 0, 0),
        ([(0, 1), (1, 2)], 1, 0, 2),  # one after the other
        ([(0, 2), (1, 3)], 1, 2, 3),
        ([(0, 2), (1, 3)], 2, 0, 3),  # side by side, as asked
        ([(0, 9), (1, 2), (1, 3), (8, 9)], 2, 3, 9),
    ],
)
def test_what_lives_at_once_is_counted(spans, allowed, most, covered_s):
    assert crash_drill.overlaps(spans, allowed) == most
    assert crash_drill.covered_s(spans) == covered_s
