"""The simulation of stage 4's level, benchmarks/level.py, beside the rule that decides."""

from dataclasses import replace

import numpy as np
import pytest

from ablation.plan.looks import HARMFUL, IMPROVES, looks_at
from benchmarks import level
from tests.support.invent import BASELINE, arm, result


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8])
def test_the_rule_for_all_replicates_is_the_one_that_decides(share):
    limit, rng = 8, np.random.default_rng(0)
    baseline = rng.standard_normal((50, limit))
    losses = 0.5 * baseline + rng.standard_normal((50, limit)) - 0.8
    design = replace(level.DESIGN, pairing=share)
    mean, reach = level.reaches(baseline, losses, limit, share, design.alpha / 2)
    _, eq_reach = level.reaches(baseline, losses, limit, share, design.alpha)
    verdicts = set()
    for k in range(50):
        of_seeds = zip(baseline[k], losses[k], strict=True)
        pairs = [(result(BASELINE, b), result(arm("aux", 6), a)) for b, a in of_seeds]
        looks = looks_at(pairs, [limit] * limit, design, equivalence=False)
        assert [look.improvement for look in looks] == pytest.approx(mean[k])
        assert [look.reach for look in looks] == pytest.approx(reach[k], rel=5e-5)
        assert [look.eq_reach for look in looks] == pytest.approx(eq_reach[k], rel=5e-5)
        is_found = looks[-1].verdict in (IMPROVES, HARMFUL)
        assert is_found == (np.abs(mean[k]) > reach[k]).any()
        verdicts.add(is_found)
    assert verdicts == {True, False}


@pytest.mark.parametrize("kind", ["normal", "t3"])
def test_noise_has_mean_0_and_sd_1(kind):
    x = level.draws(np.random.default_rng(0), (200_000,), kind)
    assert x.mean() == pytest.approx(0.0, abs=0.01)
    assert x.std() == pytest.approx(1.0, abs=0.1)


def test_equal_seeds_give_equal_rows_and_the_worst_limit_is_marked(monkeypatch):
    monkeypatch.setattr(level, "SHARES", (0.0, 0.8))
    monkeypatch.setattr(level, "LIMITS", (3, 10))
    rows = list(level.rows_of(50, 3))
    assert rows == list(level.rows_of(50, 3))
    assert rows != list(level.rows_of(50, 4))
    cells = len(level.NOISES) * len(level.RHOS) * len(level.SHARES)
    assert len(rows) == cells * len(level.LIMITS)
    plain = [{**row, "p_verdict": 0.04} for row in rows]
    assert "*" not in level.table(plain, "p_verdict")[-1]
    last = {**plain[-1], "p_verdict": 0.2}
    assert level.table([*plain[:-1], last], "p_verdict")[-1].endswith("| 0.200* (10) |")


def test_bad_input_is_one_line(capsys):
    assert level.main(["--replicates", "0"]) == 1
    assert capsys.readouterr().err == "level.py: error: --replicates 0: give 1 or more\n"
