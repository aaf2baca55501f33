"""The report says what the records say, in whatever state an experiment is; figures are drawn."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import analyze_aux
from ablation import sequential, stats
from ablation.folder.registration import changes, digest_of, read_document
from ablation.plan.looks import NO_EFFECT, Look, look_from
from ablation.plan.next_step import next_step
from ablation.report import (
    captions,
    chapters,
    comparisons,
    content,
    evidence,
    figures,
    files,
    validation,
)
from ablation.report.text import render
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.profiles import PROFILES
from tests.support.invent import ARMS
from tests.support.invented_folder import adaptive_plan, make, manual, speedrun, store, train

ROOT = Path(__file__).resolve().parents[1]
REPORT, *FIGURES = (
    *("analysis_report.txt", "val_loss_comparison.png"),
    *("layer_ablation.png", "training_curves.png"),
    *("verdict.png", "gradient_flow.png"),
)
ALWAYS = set(FIGURES[:3])
DECIDED = {*ALWAYS, "verdict.png"}


def analyze(exp_dir: Path) -> str:
    """The report, through the command; its conclusion and paths go to the screen."""
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 0
    text = (exp_dir / REPORT).read_text()
    assert all(len(line) <= 100 and line.isprintable() for line in text.splitlines())
    return text


def report(exp_dir: Path) -> str:
    """The report without drawing anything."""
    return render(chapters.report(evidence.read_experiment(exp_dir), {}))


def chapter(text: str, title: str) -> str:
    """A chapter without its heading, and without the next one."""
    return re.search(rf"{title}\n=+\n(.*?)(?=\n\d+\. .*\n==|\Z)", text, re.DOTALL)[1]


def row(text: str, name: str) -> list[str]:
    """The cells of the first row that begins with this name."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())


def flat(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


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


@pytest.fixture(scope="module")
def pictures(full):
    x = evidence.read_experiment(full[0])
    return {
        draw: figures.picture(draw, x, tell=captions.CAPTIONS[name])
        for name, draw in figures.FIGURES.items()
    }


@pytest.fixture
def drawn_once(pictures, monkeypatch):
    """The figures of `full`, for tests of where they are written and not of what they show."""
    draw_anew = figures.picture

    def known(draw, evidence, *how):
        return pictures.get(draw) or draw_anew(draw, evidence, *how)

    monkeypatch.setattr(figures, "picture", known)


def test_numbers_in_the_report_are_those_of_scipy(full):
    exp_dir, text = full
    baseline, best = final_losses(exp_dir)
    assert len(baseline) == len(best) == 8
    test = scipy.stats.ttest_ind(baseline, best, equal_var=False)
    low, high = test.confidence_interval()
    improvement = np.mean(baseline) - np.mean(best)
    d = improvement / math.sqrt((np.var(baseline, ddof=1) + np.var(best, ddof=1)) / 2)
    assert row(chapter(text, "Arms against their baseline"), "final_best") == [
        "final_best",
        "8",
        f"{np.mean(best):.4f}",
        f"{np.std(best, ddof=1):.4f}",
        "8",
        f"{improvement:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        "<0.0001" if test.pvalue < 1e-4 else f"{test.pvalue:.4f}",
        f"{d:+.1f}",
    ]


def test_every_chapter_is_there_and_the_answer_comes_first(full):
    text = full[1]
    found = [text.index(title) for title in chapters.CHAPTERS]
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
    assert row(arms, "aux_4_8")[1] == "1"  # refinements and screening have this configuration too
    assert row(arms, "validation_0 … validation_3")[1] == "4"


def test_where_there_is_no_baseline_arms_are_beside_what_was_chosen_and_not_tested(full):
    exp_dir, text = full
    arms = chapter(text, "Arms against their baseline")
    assert set(row(arms, "validation_0 … validation_3")[4:]) == {content.DASH}  # other seeds
    (default,), (loss,) = losses_of(exp_dir, "dive_w0p1"), losses_of(exp_dir, "dive_w0p2")
    cells = row(arms, "dive_w0p2")
    assert cells[4:] == ["1", f"{default - loss:+.4f}", *[content.DASH] * 3]
    note = "No baseline of this stage and length ran: compared with dive_constant + dive_w0p1"
    assert f"{note} of stage 3, on the same seeds." in flat(arms)
    assert "n = 1: no interval, p or d" in arms


def test_before_a_choice_a_stage_without_a_baseline_has_dashes(tmp_path):
    arms = chapter(report(make(tmp_path, adaptive_plan(), most=3)), "Arms against their baseline")
    assert set(row(arms, "aux_4")[4:]) == {content.DASH}
    assert "no baseline of this stage and length ran" in arms


def test_a_stage_without_runs_says_why(small_effect, tmp_path):
    why = "no runs without --screen: stage 2 drops an arm that diverges"
    arms = chapter(small_effect[1], "Arms against their baseline")
    assert arms.count("Stage 1, screening") == 1
    assert f"Stage 1, screening: {why}\n" in arms
    assert entry(small_effect[1], "stage 1").endswith(f"; {why}")
    screened = report(make(tmp_path, adaptive_plan(screen=True), most=6))
    arms = chapter(screened, "Arms against their baseline")
    assert why not in screened and row(arms, "screen_baseline")[1] == "2"


def test_figures_of_a_whole_experiment_are_pictures(full):
    assert drawn(full[0]) == DECIDED
    assert all(is_png(full[0] / name) for name in DECIDED)


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
    p = scipy.stats.mannwhitneyu(range(10, 18), [*range(7), math.inf], method="exact").pvalue
    assert row(arms, "final_best")[7] == f"{p:.4f}"
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


@pytest.mark.parametrize("content", [None, "{", "[]", '{"experiment_id": "another"}', "edited"])
def test_what_is_derived_is_never_a_source(tmp_path, content):
    exp_dir = make(tmp_path, most=6)
    path, before = exp_dir / "staged_ablation_results.json", report(exp_dir)
    if content is None:
        path.unlink()
    elif content == "edited":
        path.write_text(path.read_text().replace("STOP", "PROCEED"))
    else:
        path.write_text(content)
    assert report(exp_dir) == before
    assert "Stage 1, screening: stopped by rule" in before


def test_decisions_are_those_of_the_records_that_are_left(tmp_path):
    exp_dir = make(tmp_path, speedrun(), scale=30.0)
    assert "Stage 4, final validation" in chapter(report(exp_dir), "The answer")
    shutil.rmtree(exp_dir / "final_best")
    shutil.rmtree(exp_dir / "baseline")
    assert "Stage 1, screening: PROCEED" in chapter(report(exp_dir), "The answer")
    assert "Stage 2, layer position: not decided" in report(exp_dir)


def edit_hypothesis(document: dict) -> None:
    document["registered"]["study"]["hypothesis"] = "It was always thought that heads do harm."


def edit_rules(document: dict) -> None:
    document["registered"]["rules"]["hash"] = "sha256:other"
    document["hash"] = digest_of(document["registered"])


@pytest.mark.parametrize("edit", [edit_hypothesis, edit_rules])
def test_a_changed_folder_is_called_so_at_the_top_and_no_decision_is_shown(full, tmp_path, edit):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    document = read_document(exp_dir)
    edit(document)
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    text = analyze(exp_dir)
    (words,) = changes(document)
    top = text.partition("The answer")[0]
    assert f"Beware: {words}" in " ".join(top.split())
    assert "No decision is shown: see the top. 36 run(s) have finished." in text
    assert not re.search("^  registered:|Ended", text, re.MULTILINE)
    recorded = "Recorded by the version that ran it, and not checked:"
    told = flat(text)
    assert (f"{recorded} Stage 4, final validation: AUX HEADS HELP" in told) == (edit is edit_rules)
    assert told.count("AUX HEADS HELP") == told.count(f"{recorded} AUX HEADS HELP") + (
        edit is edit_rules
    )
    assert document["registered"]["study"]["hypothesis"] in " ".join(text.split())
    assert row(chapter(text, "Arms against their baseline"), "final_best")[1] == "8"
    assert drawn(exp_dir) == ALWAYS


OLDER_LOOK = {"n": 4, "n_max": 9, "improvement": 0.01, "z": 4.0, "q": 3.5, "low": None}
RECORDS = {  # staged_ablation_results.json of another version: what of stage 4 is told
    "older looks": (
        {"title": "improves", "because": ["why"], "facts": [], "numbers": {"looks": [OLDER_LOOK]}},
        "improves",
    ),
    "no texts": ({"title": "harmful", "because": "x", "facts": [1, None, {}]}, "harmful"),
    "no title": ({"title": 7}, None),
    "no decision": (None, None),
    "unprintable": ({"title": "im\x1b[2Jproves\u202e"}, "im"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_what_another_version_decided_is_told_as_recorded_whatever_its_form(full, tmp_path, name):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    document, (decision, title) = read_document(exp_dir), RECORDS[name]
    edit_rules(document)
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    results = {"experiment_id": document["experiment_id"], "stages": {"4": {"decision": decision}}}
    (exp_dir / "staged_ablation_results.json").write_text(json.dumps(results))
    text = report(exp_dir)
    assert all(line.isprintable() for line in text.splitlines())
    stage_4 = flat(chapter(text, "Decisions, with their rules")).partition("Stage 4")[2]
    recorded = "Recorded by the version that ran it, and not checked:"
    assert (f"{recorded} {title}" in stage_4) == (title is not None)
    results["experiment_id"] = "another"
    (exp_dir / "staged_ablation_results.json").write_text(json.dumps(results))
    assert "Recorded" not in report(exp_dir)


def test_a_changed_folder_of_the_adaptive_plan_has_tables_and_no_verdict(small_effect, tmp_path):
    exp_dir = shutil.copytree(small_effect[0], tmp_path / "copy")
    document = read_document(exp_dir)
    edit_hypothesis(document)
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    text = report(exp_dir)
    assert entry(text, "verdict").startswith("none shown: see the top; p and intervals are nominal")
    assert "repeated" not in chapter(text, "Final validation")
    x = evidence.read_experiment(exp_dir)
    with pytest.raises(figures.NothingToDraw, match="no decision can be shown"):
        figures.draw_verdict(x)


def test_a_difference_is_between_runs_of_the_same_seed(full):
    """aux_6_repeat has a seed that no baseline has: it is in the mean, not in the difference."""
    exp_dir, text = full
    arms = chapter(text, "Arms against their baseline")
    cells = row(arms, "aux_6 + aux_6_repeat")
    (base,), (loss,), (other,) = (
        losses_of(exp_dir, name) for name in ("baseline", "aux_6", "aux_6_repeat")
    )
    assert cells[1:3] == ["2", f"{(loss + other) / 2:.4f}"]
    assert cells[4:6] == ["1", f"{base - loss:+.4f}"]
    assert "aux_6 + aux_6_repeat: 1 of 2 runs not compared: no baseline of their seed" in arms


def test_without_a_seed_in_common_there_is_a_dash_and_the_reason(tmp_path):
    failures = {"baseline/run_1": ("crashed",) * 3, "aux_6/run_0": ("crashed",) * 3}
    exp_dir = make(tmp_path, manual("baseline", "aux_6", seeds=(1, 2)), failures=failures)
    text = report(exp_dir)
    arms, time = chapter(text, "Arms against their baseline"), chapter(text, "Time")
    assert row(arms, "aux_6")[1] == "1"
    assert row(arms, "aux_6")[4:] == [content.DASH] * 5
    assert "aux_6: no seed in common with the baseline: no difference" in arms
    assert "arrived" not in time.partition("Runs by hand")[2]


def test_a_run_that_diverged_takes_its_seed_out_of_the_difference(tmp_path):
    e = manual("baseline", "aux_6", seeds=(1, 2, 3))
    exp_dir = make(tmp_path, e, failures={"aux_6/run_0": ("diverged",)})
    baseline, arm = losses_of(exp_dir, "baseline"), losses_of(exp_dir, "aux_6")
    cells = row(chapter(report(exp_dir), "Arms against their baseline"), "aux_6")
    assert cells[5] == f"{np.mean(baseline[1:]) - np.mean(arm[1:]):+.4f}"


@pytest.mark.parametrize("plan", ["classic", "adaptive"])
def test_the_final_validation_is_of_complete_pairs(tmp_path, plan):
    gates = NOTHING_OVERRIDDEN.ungated
    failures = {"final_best/run_2": ("crashed",) * 3, "final_baseline/run_0": ("crashed",) * 3}
    exp_dir = make(tmp_path, speedrun(plan=plan, overrides=gates), failures=failures)
    x = evidence.read_experiment(exp_dir)
    baseline, best = comparisons.final_block(x).groups
    assert [r.run.seed for r in baseline.runs] == [r.run.seed for r in best.runs]
    assert not {0, 2} & {r.run.index for r in best.runs}
    expected = np.mean(baseline.losses) - np.mean(best.losses)
    text = report(exp_dir)
    assert entry(text, "effect").startswith(f"improvement {expected:+.4f} nats/token")
    n = len(best.runs)
    assert f"n = {n} and {n} baseline, of {n} pairs" in flat(chapter(text, "The answer"))
    assert x.decisions[4].numbers["improvement"] == pytest.approx(expected)


def test_a_run_that_diverged_has_not_finished(tmp_path):
    failures = {"screen_baseline/run_0": ("diverged",)}
    text = report(make(tmp_path, most=1, failures=failures))
    assert "no run has finished" in chapter(text, "The answer")


def test_several_arms_by_hand_are_compared_without_a_rule(tmp_path):
    names = ("baseline", "aux_6", "aux_4_8", "aux_4_8_w0p2")
    exp_dir = make(tmp_path, manual(*names, seeds=(1, 2, 3)))
    text = analyze(exp_dir)
    assert "No rule was registered" in text
    assert "not corrected" in text
    baseline, *arms = (losses_of(exp_dir, name) for name in names)
    ps = scipy.stats.dunnett(*arms, control=baseline, rng=np.random.default_rng(0)).pvalue
    listed = ", ".join(f"{name} {content.bare_p(p)}" for name, p in zip(names[1:], ps, strict=True))
    assert f"Dunnett's p, for 3 arms, assuming one sd: {listed}." in text
    assert row(chapter(text, "Arms against their baseline"), "aux_4_8_w0p2")[1] == "3"
    assert drawn(exp_dir) == ALWAYS


def test_figures_that_cannot_be_drawn_are_named_and_old_ones_removed(tmp_path):
    exp_dir = make(tmp_path, manual("aux_6"))
    (exp_dir / "layer_ablation.png").write_bytes(b"stale")
    text = analyze(exp_dir)
    assert "layer_ablation.png: not drawn: needs an arm's outcome, and a finished baseline" in text
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
    document["machine"]["cpu"] = document["registered"]["question"] = evil
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    text = analyze(exp_dir)  # which asserts that every line is printable and short
    assert "\x1b" not in text and "[2J" in text


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, "no experiment_configs.json there"),
        ("{}", "no field 'experiment_id'"),
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
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give a folder that run_aux.py made" in error


def test_tables_need_no_matplotlib_and_figures_no_display(tmp_path):
    exp_dir = make(tmp_path, most=4)
    tables = (
        "import sys, pathlib, analyze_aux as a; from ablation.report import chapters;"
        "x = a.read_experiment(pathlib.Path(sys.argv[1]));"
        "a.render(chapters.report(x, {})); assert 'matplotlib' not in sys.modules; sys.exit(a.main("
        "['--exp_dir', sys.argv[1]]))"
    )
    without = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", tables, str(exp_dir)]
    environment = {**without, "MPLBACKEND": "TkAgg"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert is_png(exp_dir / "training_curves.png")


# ---------------------------------------------------------------------------------------------
# The adaptive plan, time and gradients


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
    return [look_from(v) for v in document["stages"]["4"]["decision"]["numbers"]["looks"]]


def test_every_statistic_of_the_final_validation_is_that_of_aux_stats(small_effect):
    exp_dir, text = small_effect
    final, looks = chapter(text, "Final validation"), looks_of(exp_dir)
    baseline, best = final_losses(exp_dir)
    last, n, d = looks[-1], len(baseline), PROFILES["speedrun"].design
    assert n == last.n > 4
    c = stats.compare(baseline, best)
    assert f"improvement {c.improvement:+.4f} nats/token" in entry(final, "effect")
    span = content.span
    assert entry(final, "interval").startswith(f"{span(last.low, last.high)}, sequential 95 %")
    assert entry(final, "equivalence").startswith(f"{span(last.eq_low, last.eq_high)}, 90 %")
    families = []
    for test, share in ((stats.compare, 1 - d.pairing), (stats.paired, d.pairing)):
        each = [test(baseline[: k.n], best[: k.n]) for k in looks]
        ts, dfs = [e.improvement / e.se for e in each], [e.df for e in each]
        families.append(sequential.Family(share, ts, dfs))
    repeated = sequential.repeated_p([k.n for k in looks], [k.n_max for k in looks], families)
    pair = stats.paired(baseline, best)
    assert f"repeated p = {repeated:.4f}, over {len(looks)} look(s)" in entry(final, "p")
    assert f"nominal p = {c.p:.4f} (Welch), p = {pair.p:.4f} (pairs)" in entry(final, "p")
    sides = (("baseline", c.mean_baseline, c.sd_baseline), ("arm", c.mean_arm, c.sd_arm))
    for name, mean, sd in sides:
        assert entry(final, name) == f"n = {n}, mean {mean:.4f}, sd {sd:.4f}"
    assert "  paired t:" not in final  # it is one of the tests that decide
    rng = np.random.default_rng(validation.SEED)
    bca = stats.bootstrap_interval(baseline, best, rng)
    assert entry(final, "BCa bootstrap").startswith(span(*bca))
    s, sd = math.sqrt(stats.pooled_variance([baseline, best], 0, 0)), pair.se * math.sqrt(n)
    of_welch, of_pairs = (1 - d.pairing) * d.alpha, d.pairing * d.alpha
    mde80 = min(stats.mde80(s, n, of_welch), stats.paired_mde80(sd, n, of_pairs))
    assert entry(final, "MDE80").startswith(f"{mde80:.4f} nats/token, for n = {n}")
    for delta in (d.delta_eq, d.delta_target):
        powers = stats.power(delta, n, s, of_welch), stats.paired_power(delta, n, sd, of_pairs)
        assert f"{max(powers):.3f} at {delta:g}" in entry(final, "power")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Runs of one seed are alike, so the test of pairs is the sharper one."""
    e = adaptive_plan()
    e = replace(e, profile=replace(e.profile, design=replace(e.profile.design, pairing=0.8)))
    world = {"scale": 0.2, "sd": 0.002, "seed_sd": 0.02}
    exp_dir = make(tmp_path_factory.mktemp("alike"), e, **world)
    return exp_dir, report(exp_dir)


@pytest.mark.parametrize(("world", "counts"), [("small_effect", "Welch"), ("alike", "pairs")])
def test_both_intervals_are_told_with_their_shares_and_the_shorter_one_counts(
    world, counts, request
):
    exp_dir, text = request.getfixturevalue(world)
    x, final = evidence.read_experiment(exp_dir), chapter(text, "Final validation")
    last, spans = x.looks[-1], {}
    assert [test.name for test in last.tests] == ["Welch", "pairs"]
    for test in last.tests:
        spans[test.name] = content.span(
            last.improvement - test.reach, last.improvement + test.reach
        )
        told = f"{spans[test.name]}, {test.share:g} of alpha"
        shorter = "; the shorter one counts" if test.name == counts else ""
        assert entry(final, test.name) == told + shorter
    assert entry(final, "interval").startswith(f"{spans[counts]}, sequential 95 %")
    assert {row[5] for row in look_rows(final)} == {counts}


def test_it_is_said_by_which_test_a_verdict_fell(alike, null, small_effect):
    x = evidence.read_experiment(alike[0])
    n = next(look.n for look in x.looks if look.verdict)
    assert entry(alike[1], "verdict").endswith(f"; it fell at {n} pairs by the interval of pairs")
    assert entry(null[1], "verdict").endswith("pairs by Welch's interval")
    assert entry(small_effect[1], "verdict") == "inconclusive"


def test_where_pairs_are_sharper_so_is_what_they_can_find(alike):
    final = chapter(alike[1], "Final validation")
    baseline, best = final_losses(alike[0])
    pair, n = stats.paired(baseline, best), len(baseline)
    sd = pair.se * math.sqrt(n)
    mde80 = stats.paired_mde80(sd, n, 0.8 * 0.05)
    assert entry(final, "MDE80").startswith(f"{mde80:.4f} nats/token, for n = {n}")
    assert entry(final, "MDE80").endswith("by the test of pairs")
    assert f"{stats.paired_power(0.005, n, sd, 0.8 * 0.05):.3f} at 0.005" in entry(final, "power")
    assert f"{sd:.4f} of differences within pairs" in entry(final, "sd")


def test_where_no_level_is_spent_on_pairs_they_are_a_sensitivity_check(tmp_path):
    e = adaptive_plan()
    e = replace(e, profile=replace(e.profile, design=replace(e.profile.design, pairing=0.0)))
    exp_dir = make(tmp_path, e, scale=0.2, sd=0.004)
    final = chapter(report(exp_dir), "Final validation")
    pair = stats.paired(*final_losses(exp_dir))
    span = content.span(pair.ci_low, pair.ci_high)
    assert f"{span}, p = {pair.p:.4f}" in entry(final, "paired t")
    assert "of alpha" not in final and "(pairs)" not in final


def look_rows(final: str) -> list[list[str]]:
    """The cells of each row of the table of looks."""
    lines = final.partition("repeated p  verdict")[2].splitlines()[2:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]


def test_every_look_is_listed_with_its_repeated_p_never_rising(small_effect):
    exp_dir, text = small_effect
    rows, looks = look_rows(chapter(text, "Final validation")), looks_of(exp_dir)
    assert [int(r[0]) for r in rows] == [look.n for look in looks]
    assert [r[3] for r in rows] == [f"{look.high - look.improvement:.4f}" for look in looks]
    assert [r[6] for r in rows] == [content.bare_p(look.decides.p) for look in looks]
    ps = [float(r[7].lstrip("<")) for r in rows]
    assert ps == sorted(ps, reverse=True)


def test_a_repeated_p_is_below_alpha_exactly_where_a_bound_was_crossed(small_effect, null, alike):
    for exp_dir, _ in (small_effect, null, alike):
        x = evidence.read_experiment(exp_dir)
        ps = comparisons.repeated_ps(x.looks)
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
    gates = NOTHING_OVERRIDDEN.ungated
    exp_dir = make(tmp_path, speedrun(overrides=gates), scale=0.0)
    c = stats.compare(*final_losses(exp_dir))
    assert c.ci_low < 0 < c.ci_high
    beyond = f"effects beyond ±{max(-c.ci_low, c.ci_high):.4f} nats/token are excluded"
    text = report(exp_dir)
    assert beyond in " ".join(chapter(text, "The answer").split())
    assert beyond in entry(text, "excluded")


@pytest.mark.parametrize(
    ("locked", "low", "high"),
    [("improves", -0.001, 0.003), ("harmful", -0.003, 0.001), ("improves", 0.001, 0.003)],
)
def test_a_locked_verdict_is_told_as_it_fell(small_effect, locked, low, high):
    """Later looks settle its label only, also where their interval has come to cover zero."""
    x = evidence.read_experiment(small_effect[0])
    decision = x.decisions[4]
    looks = [dict(look) for look in decision.numbers["looks"]]
    looks[-1] |= {"verdict": locked, "low": low, "high": high}
    numbers = {**decision.numbers, "verdict": locked, "looks": looks}
    told = replace(decision, title=f"{locked} at look 1, below target", numbers=numbers)
    step = replace(x.standing.step, decisions={**x.decisions, 4: told})
    x = replace(x, standing=replace(x.standing, step=step))
    text = render(chapters.report(x, {}))
    answer = chapter(text, "The answer")
    assert f"{locked} at look 1, below target" in answer
    assert "Not shown" not in answer and "excluded" not in answer
    assert "  excluded:" not in text
    assert f"at look {len(looks)}" in flat(answer)  # of which the interval is


def test_the_answer_says_of_which_configuration_it_is(small_effect):
    answer = flat(chapter(small_effect[1], "The answer"))
    x = evidence.read_experiment(small_effect[0])
    assert all(line in answer for line in x.decisions[4].because)
    assert "of the configuration chosen" in answer and "were run" in answer


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
    assert "no seed on which both arms finished" in chapter(text, "The answer")
    assert entry(text, "arm").startswith("n = 0")


def test_stage_4_underway_claims_nothing(tmp_path):
    text = report(make(tmp_path, adaptive_plan(), most=12))
    final = chapter(text, "Final validation")
    assert entry(final, "verdict").startswith("none yet; p and intervals are nominal")
    assert "repeated" not in final and "NOT FINISHED" in text


def test_the_interval_of_pairs_underway_has_the_registered_level_and_excludes_nothing(tmp_path):
    profile = PROFILES["speedrun"]
    profile = replace(profile, design=replace(profile.design, alpha=0.01))
    exp_dir = make(tmp_path, adaptive_plan(profile=profile), most=12, scale=0.0)
    final = chapter(report(exp_dir), "Final validation")
    sides = final_losses(exp_dir)
    assert list(map(len, sides)) == [2, 2]
    low, high = scipy.stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.99)
    assert low < 0 < high
    assert entry(final, "interval") == f"{low:+.4f} to {high:+.4f}, 99 %"
    assert "excluded" not in final


def test_numbers_of_selecting_stages_are_marked(small_effect):
    arms = chapter(small_effect[1], "Arms against their baseline")
    titles = [line for line in arms.splitlines() if line.startswith("  Stage ")]
    assert [("exploratory, biased" in title) for title in titles] == [False, True, True, False]


def test_deviations_name_overrides_failures_and_other_machines(tmp_path):
    title = "Deviations and overrides"
    clean = make(tmp_path / "clean", adaptive_plan(), most=3)
    assert chapter(report(clean), title).strip() == "None."
    exp_dir = make(tmp_path, most=8, failures={"aux_4/run_0": ("crashed", "ok")})
    path = exp_dir / "baseline/run_0/config.json"
    config = json.loads(path.read_text())
    config["machine"]["host"] = "node2"
    path.write_text(json.dumps(config | {"code": {"hash": "a" * 16}}))
    path = exp_dir / "aux_6/run_0/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": {"hash": "b" * 16}}))
    found = chapter(report(exp_dir), title)
    assert re.search(r"runs differ in code: (a{16}|b{16}) \(1 runs\); (a{16}|b{16})", found)
    assert "stage 1: ignore_gate" in found
    assert "Attempts that failed: 1 crashed" in found
    assert "runs differ in host: node1 (7 runs); node2 (1 runs)" in found


def test_time_to_the_baselines_loss_counts_runs_that_never_get_there(full, null):
    time = chapter(full[1], "Time")
    x = evidence.read_experiment(full[0])
    block = comparisons.final_block(x)
    target = np.mean(block.baseline.losses)
    times = [
        stats.time_to_target([(t / 1000, v) for _, v, t in r.curve], target)
        for r in block.arms[0].runs
    ]
    race = comparisons.race(block, block.arms[0], 0.05)
    assert (race.arrived, race.runs) == (8, 8) and None not in times
    assert race.time_s == pytest.approx(np.mean(times))
    _, baseline_times = comparisons.arrivals(block.baseline, target)
    slower = stats.time_ratio(times, baseline_times)
    assert race.saved.ratio == pytest.approx(1 - slower.ratio)
    assert (race.saved.low, race.saved.high) == pytest.approx((1 - slower.high, 1 - slower.low))
    cells = re.split(r"\s{2,}", time.rstrip().splitlines()[-1].strip())
    assert cells[:3] == ["final_best", "8 of 8", f"{np.mean(times):.1f}"]
    x = evidence.read_experiment(null[0])
    block = comparisons.final_block(x)
    race = comparisons.race(block, block.arms[0], 0.05)
    assert race.arrived < race.runs
    assert f"{race.runs - race.arrived} of {race.runs} runs never got there" in entry(
        null[1], "speedup"
    )


@pytest.mark.parametrize(
    ("arrived", "low", "shown"),
    [(4, 0.10, True), (4, 0.0999, False), (3, 0.2, False), (4, None, False)],
)
def test_a_speedup_is_shown_only_if_its_lower_bound_clears_it(arrived, low, shown):
    saved = stats.Ratio(0.15, low, low and 0.3)
    race = comparisons.Race(arrived, 4, 100.0, saved, None, None, None)
    assert race.speedup_statement(0.10).startswith("shown") == shown


def test_times_and_improvements_are_printed_with_their_sign_and_in_seconds(full):
    exp_dir, text = full
    x = evidence.read_experiment(exp_dir)
    block = comparisons.final_block(x)
    race = comparisons.race(block, block.arms[0], 0.05)
    steps, time = np.subtract(*map(np.mean, final_losses(exp_dir))), race.at_equal_time
    assert steps > 0 and time.improvement > 0
    assert f"improvement {steps:+.4f} nats/token, 95 %" in flat(chapter(text, "The answer"))
    assert entry(text, "equal time").startswith(
        f"improvement {time.improvement:+.4f} ({time.ci_low:+.4f} to {time.ci_high:+.4f})"
        f" after {race.equal_s:.1f} s"
    )
    final = chapter(text, "Time").rpartition("Stage 4, final validation")[2]
    cost, races = (
        re.split(r"\s{2,}", line.strip())
        for line in final.splitlines()
        if line.strip().startswith("final_best")
    )
    seconds = [r.train_time_ms / 1000 for r in block.arms[0].ok]
    assert cost[1:3] == ["8", f"{np.mean(seconds):.1f}"]
    assert races[-2:] == [f"{steps:+.4f}", f"{time.improvement:+.4f}"]


def test_losses_at_equal_time_are_compared_where_the_first_run_ends(full):
    x = evidence.read_experiment(full[0])
    block = comparisons.final_block(x)
    race = comparisons.race(block, block.arms[0], 0.05)
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
            config["machine"]["parallel_runs"] = 8
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
            *(norms(-1, 2.0, 2.0), norms(101, 2.0, 2.0), norms(3, 2.0, -1.0), norms(10**400, 1.0)),
            *(norms(4, 2.0, 3.0), norms(2, 0.0, 1.0), norms(5, 1.0), norms(4, 5.0, 6.0)),
        ]
    )
    found = evidence.grad_norms_in(log.encode() + b"\n\xff", 100)
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
    shutil.move(older, output / "aux_heads_20260102_000000_10")
    shutil.move(newer, output / "aux_heads_20260102_000000_9")
    (output / "aux_heads_20270101_000000").mkdir()  # begun, and nothing in it
    assert analyze_aux.main([]) == 0
    assert "aux_heads_20260102_000000_9/analysis_report.txt" in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_output_dir_gets_all_that_is_written(full, drawn_once, tmp_path, capsys):
    exp_dir, text = full
    before = contents(exp_dir)
    elsewhere = tmp_path / "not there yet" / "out"
    assert analyze_aux.main(["--exp_dir", str(exp_dir), "--output_dir", str(elsewhere)]) == 0
    assert (elsewhere / REPORT).read_text() == text
    assert drawn(elsewhere) == DECIDED
    assert contents(exp_dir) == before
    assert str(elsewhere / REPORT) in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--exp_dir", "--output_dir"])
def test_a_path_option_means_what_a_shell_makes_of_it(
    full, drawn_once, tmp_path, monkeypatch, option
):
    monkeypatch.setenv("HOME", str(tmp_path))
    exp_dir = full[0] if option == "--output_dir" else shutil.copytree(full[0], tmp_path / "x")
    given = [f"--exp_dir={exp_dir}"] if option == "--output_dir" else []
    assert analyze_aux.main([*given, f"{option}=~/x"]) == 0
    assert (tmp_path / "x" / REPORT).exists()
    with pytest.raises(SystemExit) as stopped:
        analyze_aux.main([*given, f"{option}="])
    assert stopped.value.code == 2


def test_the_answer_is_printed_before_anything_is_drawn_or_written(full, capsys, monkeypatch):
    def killed(draw, evidence, *how):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "picture", killed)
    with pytest.raises(KeyboardInterrupt):
        analyze_aux.main(["--exp_dir", str(full[0])])
    assert "Stage 4, final validation: AUX HEADS HELP" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["os.replace", "builtins.open"])
def test_a_folder_that_cannot_be_written_to_has_its_report_on_screen(
    full, drawn_once, tmp_path, capsys, monkeypatch, name
):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    before = contents(exp_dir)
    real = open

    def read_only(*args, **options):
        if name == "os.replace" or args[1:2] == ("xb",):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(*args, **options)

    monkeypatch.setattr(name, read_only)
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 1
    monkeypatch.undo()
    out, err = capsys.readouterr()
    text = full[1].replace(full[0].name, "copy")
    assert out.startswith(text.partition("11. Figures")[0])
    assert err.count("\n") == 1 and "--output_dir DIR writes elsewhere" in err
    assert f"cannot write {exp_dir / REPORT} (Read-only file system)" in err
    assert contents(exp_dir) == before


def test_nothing_is_written_through_a_link(full, drawn_once, tmp_path):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    secret = tmp_path / "secret"
    secret.write_text("theirs")
    for name in (REPORT, *FIGURES):
        (exp_dir / name).unlink(missing_ok=True)
        (exp_dir / name).symlink_to(secret)
    assert analyze(exp_dir) == full[1].replace(full[0].name, "copy")
    assert secret.read_text() == "theirs"
    assert drawn(exp_dir) == DECIDED and not (exp_dir / REPORT).is_symlink()
    assert not (exp_dir / "gradient_flow.png").is_symlink()  # nothing to draw: the link is gone


def test_what_only_has_the_name_of_a_figure_is_left_alone(full, drawn_once, tmp_path, capsys):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    (exp_dir / "gradient_flow.png").mkdir()  # there is nothing to draw
    (exp_dir / "training_curves.png").unlink()
    (exp_dir / "training_curves.png").mkdir()
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 1
    assert (exp_dir / "gradient_flow.png").is_dir() and (exp_dir / "training_curves.png").is_dir()
    text = (exp_dir / REPORT).read_text()
    assert entry(text, "training_curves.png") == "not written: Is a directory"
    assert entry(text, "val_loss_comparison.png") == "drawn"
    assert capsys.readouterr().err.startswith("analyze_aux.py: error: no training_curves.png")
    assert not list(exp_dir.glob(".*"))


def test_temporaries_have_names_that_nobody_can_know(tmp_path, monkeypatch):
    seen, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(a.name), real(a, b)))
    for _ in range(2):
        files.write(tmp_path / "x", b"")
    assert len(set(seen)) == 2 and all(re.fullmatch(r"\.x\.[0-9a-f]{16}\.tmp", n) for n in seen)


def test_a_bug_in_a_figure_is_named_and_the_rest_is_there(
    full, drawn_once, tmp_path, capsys, monkeypatch
):
    exp_dir = shutil.copytree(full[0], tmp_path / "copy")
    broken = {**figures.FIGURES, "training_curves": lambda x: 1 / 0}
    monkeypatch.setattr(figures, "FIGURES", broken)
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 1
    assert drawn(exp_dir) == DECIDED - {"training_curves.png"}  # the old one would be stale
    why = entry((exp_dir / REPORT).read_text(), "training_curves.png")
    assert re.fullmatch(
        r"not drawn: ZeroDivisionError: division by zero \(figures.py, line \d+\)", why
    )
    assert capsys.readouterr().err.count("\n") == 1


def test_without_matplotlib_there_is_a_report_and_the_remedy(tmp_path):
    exp_dir = make(tmp_path, most=4)
    code = (
        "import sys; sys.modules['matplotlib'] = None; import analyze_aux;"
        "sys.exit(analyze_aux.main(['--exp_dir', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exp_dir)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    text = flat((exp_dir / REPORT).read_text())
    assert text.count("ModuleNotFoundError") == 5
    assert "pip install -r requirements.txt" in text and "aux_4" in text


def test_a_registration_with_another_design_is_one_line(tmp_path, capsys):
    exp_dir = make(tmp_path, most=1)
    document = read_document(exp_dir)
    document["registered"]["profile"]["design"] = {"alpha": "x"}
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 1
    assert "profile.design.alpha 'x': give a level" in capsys.readouterr().err
