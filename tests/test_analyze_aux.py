"""The report says what the records say, in whatever state an experiment is; figures are drawn."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from invent import experiment
from scipy import stats

import analyze_aux
import aux_evidence
import aux_stats
from adaptive import NO_EFFECT, Look
from experiment import ARMS, PROFILES, Override
from materials import Materials
from plans import next_step
from records import RunResult, attempt_dir, write_json, write_result
from registration import begin, read_document, write_results

ROOT = Path(__file__).resolve().parents[1]
FACTS = {
    "machine": {"host": "node1", "device": "cpu", "processes": 1, "gpus": [], "cpu": "A CPU"},
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "git": {"commit": "0123abc", "dirty": True},
}
EFFECTS = {(4,): 0.004, (6,): 0.008, (8,): -0.003, (4, 8): 0.015, (3, 6, 9): 0.006}
REPORT, *FIGURES = (
    *("analysis_report.txt", "val_loss_comparison.png"),
    *("layer_ablation.png", "training_curves.png"),
    *("verdict.png", "gradient_flow.png"),
)
ALWAYS = set(FIGURES[:3])


def fall(x: float) -> float:
    """How far above its end a curve is, after a share x of the run."""
    return 0.42 * (1 - x) ** 1.1 + 0.8 * math.exp(-15 * x) + 6 * math.exp(-60 * x) - 7e-7


def train(run, attempt=1, status="ok", reason="", start_s=0.0, sd=0.0013, scale=1.0) -> RunResult:
    """An invented run with a speedrun's shape of curve, noise and cost."""
    noise = random.Random(f"{run.arm.name} {run.seed}").gauss(0, sd)
    arm, total = run.arm, run.num_iterations
    effect = (
        EFFECTS.get(arm.layers, 0.0)
        + 0.01 * (arm.weight == 0.2)
        - 0.004 * (arm.schedule == "linear_decay")
    )
    effect *= scale
    short = 0.25 * (total < 1000)  # a short run ends higher, and its effects are larger
    val_loss = 3.28 + short - effect * (1 + 40 * short) + noise
    step_ms = 165 * (1 + 0.02 * len(arm.layers))
    steps = [*range(0, total, max(1, total // 20)), total]
    if status != "ok":
        steps = steps[: len(steps) // 2]
    curve = [(s, val_loss + fall(s / total), s * step_ms) for s in steps]
    ok = status == "ok"
    return RunResult(
        run=run,
        attempt=attempt,
        status=status,
        reason=reason,
        clock="boot",
        start_s=start_s,
        end_s=start_s + 60 + steps[-1] * step_ms / 1000,
        val_loss=curve[-1][1] if ok else None,
        steps_done=steps[-1],
        train_time_ms=steps[-1] * step_ms if ok else None,
        step_avg_ms=step_ms if ok else None,
        peak_memory_mib=31000.0 if ok else None,
        tokens_seen=total * 524288 if ok else None,
        num_parameters=123_587_328 if ok else None,
        curve=tuple(curve),
    )


def make(tmp_path, e=None, *, most=1000, failures=None, **world) -> Path:
    """A folder as the orchestrator would leave it after so many attempts.

    failures: run name -> statuses of its first attempts.
    """
    e = e or speedrun(overrides=tuple(Override("ignore_gate", n) for n in (1, 2, 3)))
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "x_train_1.bin").write_bytes(b"tokens")
    materials = Materials(tmp_path / "train.py", tmp_path)
    exp_dir = begin(e, materials, tmp_path / "experiments", FACTS)
    experiment_id = read_document(exp_dir)["experiment_id"]
    results, clock_s = [], 0.0
    while (step := next_step(e, results)).runs and len(results) < most:
        run = step.runs[0]
        attempt = 1 + sum(r.run.name == run.name for r in results)
        planned = (failures or {}).get(run.name, ())
        status = planned[attempt - 1] if attempt <= len(planned) else "ok"
        reason = "" if status == "ok" else f"invented reason of {run.name}, attempt {attempt}"
        results.append(train(run, attempt, status, reason, clock_s, **world))
        clock_s = results[-1].end_s
        store(exp_dir, results[-1], experiment_id)
    write_results(exp_dir, experiment_id, e, results, step)
    return exp_dir


def store(exp_dir, result, experiment_id) -> Path:
    folder = attempt_dir(exp_dir / result.run.name, result.attempt)
    folder.mkdir(parents=True)
    config = {"run": asdict(result.run), "attempt": result.attempt, **FACTS}
    write_json(folder / "config.json", config)
    write_result(folder, result, experiment_id)
    return folder


def speedrun(**changes):
    scale = {"profile": PROFILES["speedrun"], "full_iterations": 5100, "processes": 8}
    return experiment(**{**scale, "device": "cuda", "budget_hours": 12.0, **changes})


def manual(*names, seeds=(42,)):
    return speedrun(plan="manual", arms=tuple(ARMS[name] for name in names), seeds=seeds)


def analyze(exp_dir: Path) -> str:
    """The report, through the command; its conclusion and paths go to the screen."""
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 0
    text = (exp_dir / REPORT).read_text()
    assert all(len(line) <= 100 and line.isprintable() for line in text.splitlines())
    return text


def report(exp_dir: Path) -> str:
    """The report without drawing anything."""
    return analyze_aux.render_report(aux_evidence.read_experiment(exp_dir), {})


def chapter(text: str, title: str) -> str:
    """A chapter without its heading, and without the next one."""
    return re.search(rf"{title}\n=+\n(.*?)(?=\n\d+\. .*\n==|\Z)", text, re.DOTALL)[1]


def row(text: str, name: str) -> list[str]:
    """The cells of the first row that begins with this name."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())


def losses_of(exp_dir: Path, arm: str) -> list[float]:
    paths = sorted(exp_dir.glob(f"{arm}/run_*/result.json"), key=lambda p: int(p.parent.name[4:]))
    return [json.loads(path.read_text())["val_loss"] for path in paths]


def final_losses(exp_dir: Path) -> tuple[list[float], list[float]]:
    return losses_of(exp_dir, "final_baseline"), losses_of(exp_dir, "final_best")


def is_png(path: Path) -> bool:
    from matplotlib import image

    return path.read_bytes().startswith(b"\x89PNG\r\n") and image.imread(path).std() > 0


def drawn(exp_dir: Path) -> set[str]:
    return {name for name in FIGURES if (exp_dir / name).exists()}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    exp_dir = make(tmp_path_factory.mktemp("full"))
    return exp_dir, analyze(exp_dir)


def test_numbers_in_the_report_are_those_of_scipy(full):
    exp_dir, text = full
    baseline, best = final_losses(exp_dir)
    assert len(baseline) == len(best) == 8
    test = stats.ttest_ind(baseline, best, equal_var=False)
    low, high = test.confidence_interval()
    improvement = np.mean(baseline) - np.mean(best)
    d = improvement / math.sqrt((np.var(baseline, ddof=1) + np.var(best, ddof=1)) / 2)
    assert row(chapter(text, "Arms against their baseline"), "final_best") == [
        "final_best",
        "8",
        f"{np.mean(best):.4f}",
        f"{np.std(best, ddof=1):.4f}",
        f"{improvement:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        "<0.0001" if test.pvalue < 1e-4 else f"{test.pvalue:.4f}",
        f"{d:+.1f}",
    ]


def test_every_chapter_is_there_and_the_answer_comes_first(full):
    text = full[1]
    found = [text.index(title) for title in analyze_aux.CHAPTERS]
    assert found == sorted(found)
    head = text[: text.index("What was asked")]
    assert "Stage 4, final validation" in head
    assert "95 % interval" in head and "n = 8 and 8 baseline" in head


def test_a_stage_shows_its_rule_and_an_override(full):
    decisions = chapter(full[1], "Decisions, with their rules")
    assert "rule: PROCEED if best relative improvement > 2 %" in decisions
    assert "OVERRIDDEN" in decisions


def test_every_run_is_in_the_report(full):
    exp_dir, text = full
    runs = chapter(text, "Every run, every attempt")
    for path in exp_dir.glob("*/run_*/result.json"):
        assert path.parent.relative_to(exp_dir).as_posix() in runs
    assert "36 ok" in runs


def test_stages_are_not_pooled_and_fresh_runs_stay_apart_from_those_that_selected(full):
    arms = chapter(full[1], "Arms against their baseline")
    assert row(arms, "aux_6 + aux_6_repeat")[1] == "2"
    assert "aux_6 + aux_6_repeat: not the baseline's seeds" in arms
    assert row(arms, "aux_4_8")[1] == "1"  # dives and screening have this configuration too
    assert row(arms, "validation_0 … validation_3")[1] == "4"


def test_where_there_is_no_baseline_a_dash_says_so(full):
    arms = chapter(full[1], "Arms against their baseline")
    assert set(row(arms, "validation_0 … validation_3")[4:]) == {analyze_aux.DASH}
    assert "no baseline of this stage and length ran" in arms
    assert "n = 1 on a side: no interval, p or d" in arms


def test_figures_of_a_whole_experiment_are_pictures(full):
    assert drawn(full[0]) == ALWAYS
    assert all(is_png(full[0] / name) for name in ALWAYS)


def test_again_is_the_same_report_and_the_screen_gets_conclusion_and_paths(full, capsys):
    assert analyze(full[0]) == full[1]
    out = capsys.readouterr().out
    assert "Stage 4, final validation" in out
    assert all(str(full[0] / name) in out for name in (REPORT, *FIGURES))


@pytest.mark.parametrize("most", [1, 6, 12])
def test_an_unfinished_experiment_is_reported_as_such(tmp_path, most):
    exp_dir = make(tmp_path, most=most)
    text = analyze(exp_dir)
    assert "NOT FINISHED" in text
    assert f"{most} ok" in text
    assert "val_loss_comparison.png" in drawn(exp_dir)


def test_selection_stages_claim_nothing(tmp_path):
    exp_dir = make(tmp_path, speedrun())  # the gate stops it
    answer = chapter(report(exp_dir), "The answer")
    assert "Stage 1, screening: stopped by rule; inconclusive." in answer
    assert "exploratory and biased" in answer


def test_diverged_runs_are_shown_counted_and_tested(tmp_path):
    failures = {"final_best/run_2": ("diverged",), "aux_8/run_0": ("diverged",)}
    text = report(make(tmp_path, failures=failures))
    assert "not in these means: final_best 1 diverged" in chapter(text, "The answer")
    arms = chapter(text, "Arms against their baseline")
    assert "aux_8: 1 diverged, not in the mean" in arms
    assert "exact worst-rank test" in arms
    # eight baselines between seven runs that beat them all and one that none can be worse than
    assert "ranks decide" in entry(text, "interval") and "excluded" not in entry(text, "p")
    p = stats.mannwhitneyu(range(10, 18), [*range(7), math.inf], method="exact").pvalue
    assert row(arms, "final_best")[6] == f"{p:.4f}"
    assert "final_best/run_2, attempt 1: diverged" in chapter(text, "Runs that failed")


def test_failed_attempts_keep_their_row_and_their_reason(tmp_path):
    failures = {"aux_4/run_0": ("crashed", "timeout", "ok"), "screen_aux_6/run_0": ("crashed",) * 3}
    text = report(make(tmp_path, most=12, failures=failures))
    runs = chapter(text, "Every run, every attempt")
    assert "4 crashed, 1 timeout" in runs
    failed = chapter(text, "Runs that failed")
    assert "aux_4/run_0, attempt 1: crashed at step 2295; attempt 3: ok" in failed
    assert "invented reason of aux_4/run_0, attempt 2" in failed
    assert "screen_aux_6: 1 crashed, not in the mean" in text
    assert "on attempts that crashed" in chapter(text, "Hours")


def test_open_and_damaged_attempts_are_named(tmp_path):
    exp_dir = make(tmp_path, most=6)
    (exp_dir / "aux_4/run_0/result.json").write_text("{")
    (exp_dir / "baseline/run_0/result.json").unlink()
    runs = chapter(report(exp_dir), "Every run, every attempt")
    assert "1 without a result" in runs and "1 with a damaged record" in runs
    assert re.search(r"baseline/run_0 +1 +no result", runs)
    assert re.search(r"aux_4/run_0 .* damaged", runs)


def test_without_decisions_on_record_the_runs_are_still_reported(tmp_path):
    exp_dir = make(tmp_path, most=6)
    (exp_dir / "staged_ablation_results.json").unlink()
    text = report(exp_dir)
    assert "No stage is decided yet" in text and "There is no staged_ablation_results.json" in text
    assert row(text, "aux_4")[1] == "1"


@pytest.mark.parametrize("content", ["{", "[]", '{"experiment_id": "another"}', "{}"])
def test_results_that_cannot_be_believed_are_named(tmp_path, content):
    exp_dir = make(tmp_path, most=4)
    (exp_dir / "staged_ablation_results.json").write_text(content)
    assert "cannot be believed" in report(exp_dir)


def test_decisions_older_than_the_records_are_called_so(tmp_path):
    exp_dir = make(tmp_path, most=6)
    shutil.rmtree(exp_dir / "aux_4")
    assert "differ in: aux_4/run_0" in report(exp_dir)


def test_several_arms_by_hand_are_compared_without_a_rule(tmp_path):
    names = ("baseline", "aux_6", "aux_4_8", "aux_4_8_w0p2")
    exp_dir = make(tmp_path, manual(*names, seeds=(1, 2, 3)))
    text = analyze(exp_dir)
    assert "No rule was registered" in text
    assert "not corrected" in text
    baseline, *arms = (losses_of(exp_dir, name) for name in names)
    ps = stats.dunnett(*arms, control=baseline, rng=np.random.default_rng(0)).pvalue
    listed = ", ".join(
        f"{name} {analyze_aux.bare_p(p)}" for name, p in zip(names[1:], ps, strict=True)
    )
    assert f"Dunnett's p, for 3 arms, assuming one sd: {listed}." in text
    assert row(chapter(text, "Arms against their baseline"), "aux_4_8_w0p2")[1] == "3"
    assert drawn(exp_dir) == ALWAYS


def test_figures_that_cannot_be_drawn_are_named_and_old_ones_removed(tmp_path):
    exp_dir = make(tmp_path, manual("aux_6"))
    (exp_dir / "layer_ablation.png").write_bytes(b"stale")
    text = analyze(exp_dir)
    assert "layer_ablation.png: not drawn: needs finished runs of a baseline" in text
    assert "layer_ablation.png" not in drawn(exp_dir)


@pytest.mark.parametrize("failures", [{}, {"screen_baseline/run_0": ("diverged",)}])
def test_without_any_finished_run_there_is_a_report_and_no_figure(tmp_path, failures):
    exp_dir = make(tmp_path, most=len(failures), failures=failures)
    text = analyze(exp_dir)
    assert "There is no answer yet: no run has finished" in text
    assert text.count("not drawn") == 5
    assert not drawn(exp_dir)


def test_what_a_record_says_reaches_the_report_printable_only(tmp_path):
    evil = "bad \x1b[2J\x07 \u202e news\n0. The answer\r\ud800 $x^2$ "
    exp_dir = make(tmp_path, most=4)
    experiment_id = read_document(exp_dir)["experiment_id"]
    run = replace(train(next_step(speedrun(), []).runs[0]).run, arm=ARMS["aux_6"], stage=2)
    store(exp_dir, train(run, status="crashed", reason=evil + "x" * 500), experiment_id)
    document = read_document(exp_dir)
    document["machine"]["cpu"] = document["question"] = evil
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    text = analyze(exp_dir)  # which asserts that every line is printable and short
    assert "\x1b" not in text and "[2J" in text


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, "no experiment_configs.json there"),
        ("{}", "experiment_id is None"),
        ("[]", "holds a list"),
        ("not json", "not JSON"),
    ],
)
def test_a_folder_that_is_not_ours_is_one_line(tmp_path, capsys, content, names):
    if content is not None:
        (tmp_path / "experiment_configs.json").write_text(content)
    assert analyze_aux.main(["--exp_dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("analyze_aux.py: error: ") and error.count("\n") == 1
    assert names in error and str(tmp_path) in error


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert analyze_aux.main(["--exp_dir", str(tmp_path / "gone")]) == 1
    assert capsys.readouterr().err.endswith(
        "gone: no such folder; give a folder that run_aux.py made (experiments/aux_heads_...)\n"
    )


def test_tables_need_no_matplotlib_and_figures_no_display(tmp_path):
    exp_dir = make(tmp_path, most=4)
    tables = (
        "import sys, pathlib, analyze_aux as a; x = a.read_experiment(pathlib.Path(sys.argv[1]));"
        "a.render_report(x, {}); assert 'matplotlib' not in sys.modules; sys.exit(a.main("
        "['--exp_dir', sys.argv[1]]))"
    )
    without = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", tables, str(exp_dir)]
    environment = {**without, "MPLBACKEND": "TkAgg"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert is_png(exp_dir / "training_curves.png")


# ---------------------------------------------------------------------------------------------
# The adaptive plan, time and gradients


def adaptive_plan(**changes):
    return speedrun(plan="adaptive", **changes)


@pytest.fixture(scope="module")
def small_effect(tmp_path_factory):
    exp_dir = make(tmp_path_factory.mktemp("small"), adaptive_plan(), scale=0.2, sd=0.004)
    return exp_dir, report(exp_dir)


@pytest.fixture(scope="module")
def null(tmp_path_factory):
    exp_dir = make(tmp_path_factory.mktemp("null"), adaptive_plan(), scale=0.0, sd=0.003)
    return exp_dir, report(exp_dir)


def entry(text: str, name: str) -> str:
    """What follows "name:" in a list of names and values, unwrapped."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(f"  {name}:"))
    found = [lines[first].partition(":")[2].strip()]
    for line in lines[first + 1 :]:
        if not line.startswith(" " * 17):
            break
        found.append(line.strip())
    return " ".join(found)


def looks_of(exp_dir: Path) -> list[Look]:
    document = json.loads((exp_dir / "staged_ablation_results.json").read_text())
    return [Look(**v) for v in document["stages"]["4"]["decision"]["numbers"]["looks"]]


def test_every_statistic_of_the_final_validation_is_that_of_aux_stats(small_effect):
    exp_dir, text = small_effect
    final, looks = chapter(text, "Final validation"), looks_of(exp_dir)
    baseline, best = final_losses(exp_dir)
    last, n, d = looks[-1], len(baseline), PROFILES["speedrun"].design
    assert n == last.n > 4
    c = aux_stats.compare(baseline, best)
    assert f"improvement {c.improvement:+.4f} nats/token" in entry(final, "effect")
    span = analyze_aux.span
    assert entry(final, "interval").startswith(f"{span(last.low, last.high)}, sequential 95 %")
    assert entry(final, "equivalence").startswith(f"{span(last.eq_low, last.eq_high)}, 90 %")
    each = [aux_stats.compare(baseline[: k.n], best[: k.n]) for k in looks]
    repeated = aux_stats.repeated_p(
        [k.n for k in looks],
        [k.n_max for k in looks],
        [e.improvement / e.se for e in each],
        [e.df for e in each],
    )
    assert f"repeated p = {repeated:.4f}, over {len(looks)} look(s)" in entry(final, "p")
    assert f"nominal p = {c.p:.4f} (Welch)" in entry(final, "p")
    sides = (("baseline", c.mean_baseline, c.sd_baseline), ("arm", c.mean_arm, c.sd_arm))
    for name, mean, sd in sides:
        assert entry(final, name) == f"n = {n}, mean {mean:.4f}, sd {sd:.4f}"
    pair = aux_stats.paired(baseline, best)
    assert f"{span(pair.ci_low, pair.ci_high)}, p = {pair.p:.4f}" in entry(final, "paired t")
    rng = np.random.default_rng(analyze_aux.SEED)
    bca = aux_stats.bootstrap_interval(baseline, best, rng)
    assert entry(final, "BCa bootstrap").startswith(span(*bca))
    s = math.sqrt(aux_stats.pooled_variance([baseline, best], 0, 0))
    assert entry(final, "MDE80").startswith(f"{aux_stats.mde80(s, n):.4f} nats/token, for n = {n}")
    for delta in (d.delta_eq, d.delta_target):
        assert f"{aux_stats.power(delta, n, s):.3f} at {delta:g}" in entry(final, "power")


def test_every_look_is_listed_with_its_repeated_p_never_rising(small_effect):
    exp_dir, text = small_effect
    lines = chapter(text, "Final validation").partition("repeated p  verdict")[2].splitlines()[2:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]
    looks = looks_of(exp_dir)
    assert [int(r[0]) for r in rows] == [look.n for look in looks]
    assert [r[3] for r in rows] == [f"{look.high - look.improvement:.4f}" for look in looks]
    ps = [float(r[6].lstrip("<")) for r in rows]
    assert ps == sorted(ps, reverse=True)


def test_a_repeated_p_is_below_alpha_exactly_where_a_bound_was_crossed(small_effect, null):
    for exp_dir, _ in (small_effect, null):
        x = aux_evidence.read_experiment(exp_dir)
        ps = aux_evidence.repeated_ps(x, aux_evidence.final_block(x))
        for k, p in enumerate(ps, 1):
            crossed = any(look.low > 0 or look.high < 0 for look in x.looks[:k])
            assert (p <= 0.05) == crossed


def test_a_null_result_says_what_it_excludes(null):
    exp_dir, text = null
    last, answer = looks_of(exp_dir)[-1], " ".join(chapter(text, "The answer").split())
    assert last.verdict == NO_EFFECT
    x = max(abs(last.eq_low), abs(last.eq_high))
    assert "Stage 4, final validation: no meaningful effect." in answer
    assert f"A null result is a result: effects beyond ±{x:.4f} nats/token are excluded" in answer
    assert answer.count("A null result is a result") == 1
    assert "inside ±0.005" in entry(text, "equivalence")


def test_classic_without_significance_says_what_is_excluded(tmp_path):
    gates = tuple(Override("ignore_gate", n) for n in (1, 2, 3))
    exp_dir = make(tmp_path, speedrun(overrides=gates), scale=0.0)
    c = aux_stats.compare(*final_losses(exp_dir))
    assert c.ci_low < 0 < c.ci_high
    beyond = f"effects beyond ±{max(-c.ci_low, c.ci_high):.4f} nats/token are excluded"
    text = report(exp_dir)
    assert beyond in " ".join(chapter(text, "The answer").split())
    assert beyond in entry(text, "excluded")


def test_ranks_decide_where_a_run_of_stage_4_diverged(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), failures={"final_best/run_1": ("diverged",)})
    text = report(exp_dir)
    assert "ranks decide" in entry(text, "interval")
    assert "exact worst-rank test" in entry(text, "p")
    assert "1 diverged" in entry(text, "arm")


def test_an_arm_that_always_diverges_is_told_without_its_losses(tmp_path):
    failures = {f"final_best/run_{k}": ("diverged",) for k in range(9)}
    exp_dir = make(tmp_path, adaptive_plan(), failures=failures)
    text = analyze(exp_dir)
    assert is_png(exp_dir / "verdict.png")
    assert "no finished runs of both arms" in chapter(text, "The answer")
    assert entry(text, "arm").startswith("n = 0")


def test_stage_4_underway_claims_nothing(tmp_path):
    text = report(make(tmp_path, adaptive_plan(), most=26))
    final = chapter(text, "Final validation")
    assert entry(final, "verdict").startswith("none yet; p and intervals are nominal")
    assert "repeated" not in final and "NOT FINISHED" in text


def test_numbers_of_selecting_stages_are_marked(small_effect):
    arms = chapter(small_effect[1], "Arms against their baseline")
    titles = [line for line in arms.splitlines() if line.startswith("  Stage ")]
    assert [("exploratory, biased" in title) for title in titles] == [True, True, True, False]


def test_deviations_name_overrides_failures_and_other_machines(tmp_path):
    title = "Deviations and overrides"
    clean = make(tmp_path / "clean", adaptive_plan(), most=3)
    assert chapter(report(clean), title).strip() == "None."
    exp_dir = make(tmp_path, most=8, failures={"aux_4/run_0": ("crashed", "ok")})
    path = exp_dir / "baseline/run_0/config.json"
    config = json.loads(path.read_text())
    config["machine"]["host"] = "node2"
    path.write_text(json.dumps(config))
    found = chapter(report(exp_dir), title)
    assert "stage 1: ignore_gate" in found
    assert "Attempts that failed: 1 crashed" in found
    assert "runs differ in host: node1 (7 runs); node2 (1 runs)" in found


def test_time_to_the_baselines_loss_counts_runs_that_never_get_there(full, null):
    time = chapter(full[1], "Time")
    x = aux_evidence.read_experiment(full[0])
    block = aux_evidence.final_block(x)
    target = np.mean(block.baseline.losses)
    times = [
        aux_stats.time_to_target([(t / 1000, v) for _, v, t in r.curve], target)
        for r in block.arms[0].runs
    ]
    race = aux_evidence.race(block, block.arms[0], 0.05)
    assert (race.arrived, race.runs) == (8, 8) and None not in times
    assert race.time_s == pytest.approx(np.mean(times))
    _, baseline_times = aux_evidence.arrivals(block.baseline, target)
    slower = aux_stats.time_ratio(times, baseline_times)
    assert race.saved.ratio == pytest.approx(1 - slower.ratio)
    assert (race.saved.low, race.saved.high) == pytest.approx((1 - slower.high, 1 - slower.low))
    cells = re.split(r"\s{2,}", time.rstrip().splitlines()[-1].strip())
    assert cells[:3] == ["final_best", "8 of 8", f"{np.mean(times):.1f}"]
    x = aux_evidence.read_experiment(null[0])
    block = aux_evidence.final_block(x)
    race = aux_evidence.race(block, block.arms[0], 0.05)
    assert race.arrived < race.runs
    assert f"{race.runs - race.arrived} of {race.runs} runs never got there" in entry(
        null[1], "speedup"
    )


@pytest.mark.parametrize(
    ("arrived", "low", "shown"),
    [(4, 0.10, True), (4, 0.0999, False), (3, 0.2, False), (4, None, False)],
)
def test_a_speedup_is_shown_only_if_its_lower_bound_clears_it(arrived, low, shown):
    saved = aux_stats.Ratio(0.15, low, low and 0.3)
    race = aux_evidence.Race(arrived, 4, 100.0, saved, None, None, None)
    assert race.shows(0.10).startswith("shown") == shown


def test_losses_at_equal_time_are_compared_where_the_first_run_ends(full):
    x = aux_evidence.read_experiment(full[0])
    block = aux_evidence.final_block(x)
    race = aux_evidence.race(block, block.arms[0], 0.05)
    assert race.equal_s == pytest.approx(5100 * 0.165)  # the baseline's; the arm takes longer

    def loss(r):
        _, losses, times = np.transpose(r.curve)
        return np.interp(race.equal_s, times / 1000, losses)

    sides = [[loss(r) for r in group.runs] for group in block.groups]
    assert race.at_equal_time.improvement == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
    assert race.at_equal_time.improvement < np.subtract(*map(np.mean, final_losses(full[0])))


def test_times_are_compared_between_runs_of_equal_packing(tmp_path):
    exp_dir = make(tmp_path, manual("baseline", "aux_6", seeds=(1, 2, 3, 4)))
    for k in (2, 3):
        for arm in ("baseline", "aux_6"):
            path = exp_dir / arm / f"run_{k}/config.json"
            config = json.loads(path.read_text())
            config["machine"]["slots"] = 8
            path.write_text(json.dumps(config))
    time = chapter(report(exp_dir), "Time")
    assert "Packing: 1 side by side, 1 process(es) each; 8 side by side, 1 process(es)" in time
    for packing in ("1 side", "8 side"):
        part = time.partition(f"Runs by hand (5100 steps): {packing}")[2].partition("Runs by")[0]
        assert row(part, "aux_6")[1] == row(part, "baseline")[1] == "2"
        assert re.search(r"aux_6 +. of 2", part)


def test_the_verdict_is_drawn_for_looks_only(small_effect, tmp_path):
    exp_dir = small_effect[0]
    assert entry(analyze(exp_dir), "verdict.png") == "drawn"
    assert is_png(exp_dir / "verdict.png")
    early = make(tmp_path, adaptive_plan(), most=6)
    assert "stage 4 has had no look yet" in entry(analyze(early), "verdict.png")


@pytest.mark.parametrize("change", [{"n": None}, {"low": "x"}, {"eq_low": None}, {"more": 1}])
def test_looks_that_cannot_be_believed_are_named(null, tmp_path, change):
    exp_dir = shutil.copytree(null[0], tmp_path / "copy")
    path = exp_dir / "staged_ablation_results.json"
    document = json.loads(path.read_text())
    document["stages"]["4"]["decision"]["numbers"]["looks"][-1] |= change
    path.write_text(json.dumps(document))
    assert "cannot be believed" in report(exp_dir)


def log_gradients(exp_dir: Path, name: str, lines: list[str], file="train_log.txt") -> None:
    (exp_dir / name / "run_0" / file).write_text("\n".join(["step:0/1 x", *lines, ""]))


def norms(step: int, *total: float) -> str:
    return f"grad_norms: {json.dumps({'step': step, 'main': [1.0] * len(total), 'total': total})}"


def test_gradient_norms_are_read_from_either_log_and_drawn(tmp_path):
    exp_dir = make(tmp_path, manual("baseline", "aux_6"))
    lines = [norms(step, *([1.0 + step / 100] * 12)) for step in (0, 50, 100)]
    log_gradients(exp_dir, "baseline", lines)
    assert "gradient_flow.png: not drawn" in analyze(exp_dir)  # of one arm alone
    log_gradients(exp_dir, "aux_6", lines, "output.log")
    assert "gradient_flow.png: drawn" in analyze(exp_dir)
    assert is_png(exp_dir / "gradient_flow.png")


def test_gradient_lines_that_do_not_fit_are_passed_over():
    log = "\n".join(
        [
            *("grad_norms: {", "grad_norms: [1]", "grad_norms: null", " " + norms(1, 2.0, 2.0)),
            'grad_norms: {"step": 3, "main": [1.0], "total": [1.0, NaN]}',
            'grad_norms: {"step": 3, "main": [1.0, 1.0], "total": [1.0, NaN]}',
            *(norms(4, 2.0, 3.0), norms(2, 0.0, 1.0), norms(5, 1.0), norms(4, 5.0, 6.0)),
        ]
    )
    found = aux_evidence.grad_norms_in(log.encode() + b"\n\xff")
    assert [(n.step, n.total) for n in found] == [(2, (0.0, 1.0)), (4, (5.0, 6.0))]


# ---------------------------------------------------------------------------------------------
# The command line


def test_the_default_is_the_newest_experiment_of_any_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert analyze_aux.main([]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run_aux.py --staged" in error
    output = tmp_path / "experiments"
    older, newer = (make(tmp_path / name, manual("aux_6"), most=1) for name in "ab")
    output.mkdir()
    shutil.move(older, output / "aux_heads_20260102_000000_9")
    shutil.move(newer, output / "aux_heads_20260102_000000_10")
    (output / "aux_heads_20270101_000000").mkdir()  # begun, and nothing in it
    assert analyze_aux.main([]) == 0
    assert "aux_heads_20260102_000000_10/analysis_report.txt" in capsys.readouterr().out


def test_a_registration_without_its_design_is_one_line(tmp_path, capsys):
    exp_dir = make(tmp_path, most=1)
    document = read_document(exp_dir)
    document["profile"]["design"] = {"alpha": "x"}
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 1
    assert "profile.design is" in capsys.readouterr().err
