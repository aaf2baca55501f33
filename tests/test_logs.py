"""Logs in, verdict out: groups, what counts, what is said of it, and what is refused."""

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

import analyze_aux
from ablation import stats
from ablation.report import compare_logs
from ablation.report.log_chapters import KEYS
from ablation.report.rules import RULES
from ablation.report.table import COLUMNS
from ablation.runs.formats import FORMATS
from ablation.runs.several import STATUSES
from tests.support.foreign_logs import FORMS, HEAD, flooded, log_of, of_ranks
from tests.support.invented_folder import make

BASE = [f"3.{x}" for x in (2848, 2861, 2882, 2889, 2887, 2858, 2856, 2859, 2861, 2873)]
ARM = [f"3.{x}" for x in (2794, 2777, 2783, 2793, 2759, 2784, 2786, 2815, 2775, 2767)]
OTHER = [f"3.{x}" for x in (2767, 2765, 2771, 2795, 2798, 2781, 2767, 2766, 2777, 2795)]
WHOLE_STEPS = {"nanogpt": 8, "json": 8}  # these forms do not tell them
SPEEDRUN = FORMS["speedrun"]


def run_of(last="3.28", name="", seed=None, form=SPEEDRUN, total=8, head=HEAD, told="") -> str:
    """The log of a whole run, that no other one equals."""
    seeds = "" if seed is None else f"seed:{seed}\n"
    return f"{head}this is {name}{random.random()}\n{seeds}{told}{log_of(form, total, last)}"


def group(folder: Path, values=(), form=SPEEDRUN, **texts: str) -> Path:
    """A folder of logs, one for each final value; and others by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, value in enumerate(values):
        (folder / f"run_{k}.txt").write_text(run_of(value, form=form))
    for name, text in texts.items():
        (folder / f"{name}.log").write_text(text)
    return folder


@pytest.fixture
def two(tmp_path):
    """A baseline and an arm, as published."""
    return {"base": group(tmp_path / "base", BASE), "arm": group(tmp_path / "arm", ARM)}


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    """The command line, in a folder of its own: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def ask(*words):
        try:
            code = analyze_aux.main([*map(str, words)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return ask


# ---------------------------------------------------------------------------------------------
# The published groups


@pytest.mark.parametrize("name", FORMS)
def test_published_groups_give_the_published_improvement_in_every_form(name, tmp_path):
    form = FORMS[name]
    logs = {"base": group(tmp_path / "b", BASE, form), "arm": group(tmp_path / "a", ARM, form)}
    metric = {"metric": form.metric} if name == "golf" else {}
    found = compare_logs(logs, num_iterations=WHOLE_STEPS.get(name, 0), **metric).json
    (c,) = found["comparisons"]
    assert found["metric"] == form.metric
    assert (c["n"], c["n_baseline"]) == (10, 10)
    assert c["improvement"] == pytest.approx(0.0084, abs=5e-5)
    assert (c["high"] - c["low"]) / 2 == pytest.approx(0.0014, abs=5e-5)
    sides = [[float(v) for v in values] for values in (BASE, ARM)]
    assert c["p"] == pytest.approx(scipy_stats.ttest_ind(*sides, equal_var=False).pvalue)


def test_a_published_group_meets_the_rule_of_the_speedrun(tmp_path):
    found = compare_logs({"mine": group(tmp_path / "mine", OTHER)}, rule="speedrun")
    (rule,) = found.json["rules"]
    assert rule["met"] is True
    assert rule["p"] == pytest.approx(
        scipy_stats.ttest_1samp([float(v) for v in OTHER], 3.28, alternative="less").pvalue
    )
    assert "mine: rule speedrun: met" in found.answer
    (words,) = (rule["words"] for rule in found.json["rules"])
    assert any("tests again" in line for line in words)
    assert any("sequential bound" in line for line in words)
    assert all(" ".join(line.split()) in " ".join(found.text.split()) for line in words)
    base = compare_logs({"mine": group(tmp_path / "base", BASE)}, rule="speedrun")
    assert base.json["rules"][0]["met"] is False


def test_floods_and_ranks_change_no_number(two, tmp_path):
    for path in two["arm"].iterdir():
        path.write_text(of_ranks(flooded(path.read_text())))
    (c,) = compare_logs(two).json["comparisons"]
    assert c["improvement"] == pytest.approx(0.0084, abs=5e-5)


def test_rules_of_several_groups_and_by_hand(two):
    found = compare_logs(two, rule=["speedrun", "improvement>=0.005,p<0.01", "track3"])
    assert [(r["rule"], r["group"], r["met"]) for r in found.json["rules"]] == [
        ("speedrun", "arm", True),
        ("improvement>=0.005,p<0.01", "arm", True),
        ("track3", "arm", True),
    ]


# ---------------------------------------------------------------------------------------------
# Groups


def test_the_baseline_is_the_first_group_or_the_one_of_that_name(two):
    base, arm = two.values()
    assert compare_logs({"old": base, "new": arm}).json["baseline"] == "old"
    named = compare_logs({"new": arm, "baseline": base}).json
    assert named["baseline"] == "baseline"
    assert named["comparisons"][0]["improvement"] > 0


def test_a_group_is_a_pattern_a_folder_files_or_several_of_them(two, tmp_path):
    arm = two["arm"]
    files = sorted(arm.iterdir())
    for where in (arm, str(arm), f"{arm}/*.txt", files, [*files[:4], f"{arm}/run_[4-9].txt"]):
        assert len(compare_logs({"arm": where}).rows) == 10
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for k, path in enumerate(files):
        path.rename(tmp_path / "deep" / ("er" if k % 2 else "") / path.name)
    assert len(compare_logs({"arm": tmp_path / "deep"}).rows) == 10
    texts = [f"arm={tmp_path}/deep/*.txt", f"arm={tmp_path}/deep/er"]
    assert len(compare_logs(texts).rows) == 10


def test_what_is_no_log_in_a_folder_is_passed_over_and_told(two):
    (two["arm"] / "plot.png").write_bytes(b"\x89PNG\0")
    found = compare_logs(two)
    assert len(found.rows) == 20
    assert "passed over" in found.answer and "plot.png" in found.answer


@given(order=st.permutations(range(6)), again=st.integers(0, 5))
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_order_of_files_changes_nothing(tmp_path, order, again):
    if not (tmp_path / "a").is_dir():
        group(tmp_path / "b", BASE[:4])
        group(tmp_path / "a", ARM[:4], cut=run_of()[:-100], nan=run_of("nan"))
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 6
    names = [files[k] for k in order]
    one = compare_logs({"b": tmp_path / "b", "a": files})
    other = compare_logs({"b": tmp_path / "b", "a": names})
    assert (one.rows, one.answer, one.json) == (other.rows, other.answer, other.json)
    twice = compare_logs({"b": tmp_path / "b", "a": [*names, files[again]]})
    assert twice.rows == one.rows
    assert f"counted once, though there twice: {files[again]}" in twice.json["notes"][0]


def test_the_same_content_counts_once_and_it_is_said(two):
    (two["arm"] / "z.txt").write_bytes((two["arm"] / "run_3.txt").read_bytes())
    found = compare_logs(two)
    row = found.rows[-1]
    assert (row["status"], row["metric"]) == ("twice", None)
    assert row["reason"].endswith("run_3.txt")
    assert "counted once, though there twice" in found.answer
    assert found.json["comparisons"][0]["n"] == 10


def test_a_link_to_a_log_is_that_log(two):
    (two["arm"] / "z.txt").symlink_to(two["arm"] / "run_3.txt")
    assert len(compare_logs(two).rows) == 20


def test_several_runs_in_a_file_and_a_run_in_files_of_ranks(tmp_path):
    folder = group(tmp_path / "a", trials="".join(run_of(v) for v in ARM[:3]))
    text = run_of(ARM[3])
    for rank in (0, 1, 2):
        (folder / f"log_rank{rank}.txt").write_text(of_ranks(text, (rank,)))
    of_torchrun = folder / "none_x" / "attempt_0"
    for rank, text in enumerate((run_of(ARM[4]), "NCCL version 2\n")):
        (of_torchrun / str(rank)).mkdir(parents=True)
        (of_torchrun / str(rank) / "stdout.log").write_text(text)
    rows = compare_logs({"a": folder}).rows
    assert [row["metric"] for row in rows] == [*map(float, [ARM[3], ARM[4], *ARM[:3]])]
    assert rows[0]["file"].endswith("log_rank0.txt and 2 more rank(s)")


# ---------------------------------------------------------------------------------------------
# What counts


def test_a_group_says_what_it_lost_beside_every_number(two):
    whole = run_of("3.1")
    (two["arm"] / "cut.txt").write_text(whole[: whole.rindex("3.1")])
    (two["arm"] / "notes.txt").write_text("my notes\n")
    found = compare_logs(two)
    assert found.json["groups"][1]["not_counted"] == {"cut off": 1, "no metric": 1}
    assert found.json["comparisons"][0]["n"] == 10
    assert "not in these numbers: arm: 1 cut off, 1 no metric" in " ".join(found.answer.split())
    tables = [line for line in found.text.splitlines() if line.startswith("  arm   ")]
    numbers = [line for line in tables if "run_" not in line and ".txt" not in line]
    assert len(numbers) == 4
    assert all("1 cut off" in line or " of 10 " in line for line in numbers)
    assert [row["status"] for row in found.rows].count("ok") == 20


def test_where_runs_diverged_ranks_decide(two):
    for k in range(3):
        (two["arm"] / f"nan{k}.txt").write_text(run_of("nan"))
    found = compare_logs(two)
    (c,) = found.json["comparisons"]
    sides = [float(v) for v in BASE], [float(v) for v in ARM]
    assert c["p"] == stats.worst_rank(*sides, 0, 3).p
    assert (c["test"], c["diverged"]) == ("exact worst rank", 3)
    assert c["low"] is c["high"] is c["equivalent"] is None
    assert "exact worst rank" in found.answer
    assert "95 % interval +" not in found.text
    chapter = found.text.partition("2. Each group")[2]
    row = next(line for line in chapter.splitlines() if line.startswith("  arm "))
    assert "+0.0084" in row and " to " not in row


def test_lengths_within_a_group_are_told_and_not_averaged(two):
    for k in range(3):
        (two["arm"] / f"long{k}.txt").write_text(run_of(f"3.2{k}", total=12))
    found = compare_logs(two)
    names = {g["name"]: (g["n"], g["steps"]) for g in found.json["groups"]}
    assert names == {"base": (10, 8), "arm (8 steps)": (10, 8), "arm (12 steps)": (3, 12)}
    assert [c["same_kind"] for c in found.json["comparisons"]] == [True, False]
    assert "not averaged" in found.answer
    assert "the difference is also one of length" in " ".join(found.answer.split())


def test_validation_sizes_that_differ_are_told(tmp_path):
    a = {f"r{k}": run_of(v, told="val_tokens: 1000\n") for k, v in enumerate(ARM)}
    b = {f"r{k}": run_of(v, told="val_tokens: 2000\n") for k, v in enumerate(BASE)}
    found = compare_logs({"b": group(tmp_path / "b", **b), "a": group(tmp_path / "a", **a)})
    assert [g["val_tokens"] for g in found.json["groups"]] == [2000, 1000]
    assert "validated on 1000 and 2000 tokens" in " ".join(found.answer.split())


def test_a_baseline_of_two_lengths_meets_each_group_at_its_own(tmp_path):
    both = {f"r{k}": run_of(v) for k, v in enumerate(BASE[:3])}
    both |= {f"long{k}": run_of(v, total=12) for k, v in enumerate(OTHER[:3])}
    long = {f"r{k}": run_of(v, total=12) for k, v in enumerate(ARM[:3])}
    odd = {f"r{k}": run_of(v, total=20) for k, v in enumerate(ARM[3:6])}
    logs = {"b": group(tmp_path / "b", **both), "long": group(tmp_path / "l", **long)}
    found = compare_logs({**logs, "odd": group(tmp_path / "o", **odd)})
    assert [(c["group"], c["baseline"]) for c in found.json["comparisons"]] == [
        ("long", "b (12 steps)")
    ]
    assert "odd is compared with nothing: no baseline of 20 steps" in found.answer
    ruled = compare_logs({**logs, "odd": tmp_path / "o"}, rule="parameter-golf").json["rules"]
    assert {rule["group"] for rule in ruled} == {"long"}


# ---------------------------------------------------------------------------------------------
# What comes out


def seeded(folder: Path, values, seeds) -> Path:
    return group(folder, **{f"r{s}": run_of(v, seed=s) for v, s in zip(values, seeds, strict=True)})


def test_groups_that_name_the_same_seeds_are_compared_in_pairs_too(tmp_path):
    logs = {"b": seeded(tmp_path / "b", BASE[:5], range(5))}
    logs["a"] = seeded(tmp_path / "a", ARM[:5], range(5))
    found = compare_logs(logs)
    expected = scipy_stats.ttest_rel([float(v) for v in BASE[:5]], [float(v) for v in ARM[:5]])
    pairs = found.json["comparisons"][0]["pairs"]
    assert (pairs["n"], pairs["p"]) == (5, pytest.approx(expected.pvalue))
    assert "n = 5 pairs" in found.text
    logs["a"] = seeded(tmp_path / "c", ARM[:5], range(100, 105))
    found = compare_logs(logs)
    assert found.json["comparisons"][0]["pairs"] is None
    assert "the groups do not name the same seeds" in found.text
    (tmp_path / "b" / "again.log").write_text(run_of(BASE[5], seed=0))  # which one is its pair?
    logs["a"] = tmp_path / "a"
    assert compare_logs(logs).json["comparisons"][0]["pairs"] is None


def test_a_seed_may_stand_in_the_name_of_a_file(tmp_path):
    folder = group(tmp_path / "a", train_seed42=run_of("3.1"), train_seed_7=run_of("3.2", seed=9))
    assert {row["seed"] for row in compare_logs({"a": folder}).rows} == {42, 9}


def test_equivalence_and_what_so_many_runs_can_find(tmp_path):
    logs = {"b": group(tmp_path / "b", BASE), "a": group(tmp_path / "a", BASE[::-1])}
    for delta, equivalent in ((0.005, True), (0.0005, False)):
        found = compare_logs(logs, delta_eq=delta)
        (c,) = found.json["comparisons"]
        assert c["equivalent"] is equivalent
    (_, sd), n = stats.mean_sd([float(v) for v in BASE]), 10
    assert c["mde80"] == pytest.approx(stats.mde80(sd, n))
    assert c["runs_needed"] == stats.runs_needed(0.0005, sd)
    assert f"{c['runs_needed'] - 10} more of b and {c['runs_needed'] - 10} more of a" in " ".join(
        found.text.split()
    )


def test_an_improvement_and_a_harm_are_not_equivalent(two):
    for logs in (two, dict(reversed(two.items()))):
        (c,) = compare_logs(logs).json["comparisons"]
        assert c["equivalent"] is False
        assert "Equivalent:" not in compare_logs(logs).text


def test_several_groups_have_dunnetts_p(tmp_path, two):
    found = compare_logs({**two, "other": group(tmp_path / "other", OTHER)})
    sides = [[float(v) for v in values] for values in (BASE, ARM, OTHER)]
    expected = scipy_stats.dunnett(*sides[1:], control=sides[0]).pvalue
    given_p = [c["dunnett_p"] for c in found.json["comparisons"]]
    assert given_p == [pytest.approx(p, abs=1e-4) for p in expected]
    assert "Dunnett's p, for 2 groups" in found.text


def test_time_to_the_baselines_loss_is_that_of_the_curves(two):
    (c,) = compare_logs(two).json["comparisons"]
    assert c["time"]["arrived"] == c["time"]["runs"] == 10
    assert c["time"]["to_target_s"] < 0.08
    text = compare_logs(two).text
    assert "Whether the runs had one machine to themselves" in " ".join(text.split())


def test_logs_without_times_are_compared_without_them(tmp_path):
    form = FORMS["a fraction"]
    logs = {"b": group(tmp_path / "b", BASE, form), "a": group(tmp_path / "a", ARM, form)}
    found = compare_logs(logs)
    assert found.json["comparisons"][0]["time"] is None
    assert "These logs tell no training time." in found.text
    assert all(p.image for p in found.figures.values()), [p.why for p in found.figures.values()]


def test_a_metric_that_is_better_higher_is_shown_as_it_is_logged(tmp_path):
    accuracy = [str(round(4 - float(v), 4)) for v in (*BASE, *ARM)]
    logs = {"b": group(tmp_path / "b", accuracy[:10]), "a": group(tmp_path / "a", accuracy[10:])}
    found = compare_logs(logs, better="higher")
    assert found.json["comparisons"][0]["improvement"] == pytest.approx(0.0084, abs=5e-5)
    assert found.json["groups"][0]["mean"] == pytest.approx(4 - 3.28674)
    assert found.json["groups"][0]["low"] < found.json["groups"][0]["mean"]
    assert found.rows[0]["metric"] == float(accuracy[0])


def test_one_group_alone_has_a_mean_and_an_interval(tmp_path):
    found = compare_logs({"mine": group(tmp_path / "mine", OTHER)})
    mean = scipy_stats.ttest_1samp([float(v) for v in OTHER], 0).confidence_interval()
    (g,) = found.json["groups"]
    assert (g["low"], g["high"]) == (pytest.approx(mean.low), pytest.approx(mean.high))
    assert "mine: mean 3.27782" in found.answer
    assert found.json["comparisons"] == []


def test_the_library_call_prints_nothing_and_has_all(two, capsys):
    found = compare_logs(two)
    assert list(found.rows[0]) == list(COLUMNS)
    assert len(found.rows) == 20
    assert found.text.startswith(found.answer)
    assert found.figures["training_curves.png"].image.startswith(b"\x89PNG")
    assert found.figures["val_loss_comparison.png"]._repr_png_() is not None
    assert json.loads(json.dumps(found.json)) == found.json
    assert capsys.readouterr() == ("", "")


def test_several_processes_read_the_same(two, monkeypatch):
    from ablation.report import logs

    one = compare_logs(two).json
    monkeypatch.setattr(logs, "FEW_BYTES", 0)
    watched = []
    other = compare_logs(two, jobs=2, progress=lambda parts, n: (watched.append(n), parts)[1])
    assert (other.json, watched) == (one, [20])


# ---------------------------------------------------------------------------------------------
# The command line


def test_the_command_writes_a_report_a_table_and_figures(two, door, tmp_path):
    code, out, err = door("--logs", f"base={two['base']}", "--logs", f"arm={two['arm']}/*.txt")
    assert (code, err) == (0, "")
    assert "arm: improvement +0.0084 nats/token, 95 % interval +0.0070 to +0.0098" in out
    written = sorted(path.name for path in (tmp_path / "comparison").iterdir())
    assert written == [
        *("analysis_report.txt", "report.html", "runs.csv"),
        *("training_curves.png", "training_curves.txt"),
        *("val_loss_comparison.png", "val_loss_comparison.txt"),
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison/runs.csv").read_text())))
    assert list(rows[0]) == [
        *("group", "file", "seed", "step", "metric", "time", "status", "reason")
    ]
    assert [row["metric"] for row in rows] == [str(float(v)) for v in (*BASE, *ARM)]


def test_json_is_one_object_on_standard_output(two, door, tmp_path):
    code, out, err = door("--logs", f"a={two['arm']}", "--json", "--output_dir", "there")
    found = json.loads(out)
    assert (code, found["exit_code"], found["error"]) == (0, 0, None)
    assert found["groups"][0]["n"] == 10
    assert "The answer" in err
    assert (tmp_path / "there" / "runs.csv").is_file()
    code, out, _ = door("--logs", "a=nowhere", "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert json.loads(out).keys() == found.keys()


ONE = run_of("3.27", "one")
BAD = {  # words of the command line, what the line says
    "no file": (["--logs", "a=nowhere/*.txt"], "'nowhere/*.txt' matches no file"),
    "no folder": (["--logs", "a=nowhere"], "'nowhere' is no file, folder or pattern"),
    "no name": (["--logs", "arm"], "give NAME=FILES"),
    "no files": (["--logs", "arm="], "give NAME=FILES"),
    "an odd name": (["--logs", "a\tb=arm"], "give NAME=FILES"),
    "one run": (["--logs", "b=base", "--logs", "a=one"], "one run, which ends at 3.2700"),
    "no run": (["--logs", "a=cut"], "no run counts: 1 cut off"),
    "a strange text": (["--logs", "a=notes"], "begins: my notes | more; formats tried: ours"),
    "another format": (["--logs", "a=arm", "--format", "nanogpt"], "formats tried: nanogpt"),
    "binary": (["--logs", "a=binary/x.log"], "a binary file, not a log"),
    "no logs": (["--logs", "a=pictures"], "no log lies in pictures"),
    "another metric": (
        ["--logs", "a=arm", "--metric", "val_bpb"],
        "no val_bpb in its logs: --metric gives one of train_loss, val_loss",
    ),
    "no such rule": (["--logs", "a=arm", "--rule", "fair"], "give one of speedrun"),
    "a rule alone": (["--logs", "a=arm", "--rule", "parameter-golf"], "compares with a baseline"),
    "the same twice": (
        ["--logs", "a=arm", "--logs", "b=arm"],
        "each of its files counts in another group",
    ),
    "two questions": (["--logs", "a=arm", "--exp_dir", "x"], "two questions"),
    "no logs asked": (["--rule", "speedrun"], "--rule goes with --logs"),
    "a bad level": (["--logs", "a=arm", "--alpha", "2"], "alpha 2.0: give a level"),
    "a bad delta": (["--logs", "a=arm", "--delta_eq", "-1"], "delta_eq -1.0: give a number"),
    "a bad length": (["--logs", "a=arm", "--num_iterations", "-1"], "num_iterations -1: give"),
    "no length told": (["--logs", "a=silent"], "--num_iterations gives the steps"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_writes_nothing(what, door, two, tmp_path):
    group(tmp_path / "one", only=ONE)
    group(tmp_path / "cut", cut=run_of()[:-120])
    group(tmp_path / "notes", notes="my notes\nmore\n")
    group(tmp_path / "silent", ARM[:3], FORMS["nanogpt"])
    for name in ("binary/x.log", "pictures/x.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"\0\1\2" * 99)
    there = sorted(tmp_path.rglob("*"))
    words, line = BAD[what]
    code, out, err = door(*words)
    assert (code, out) == (2, "")
    assert line in err
    assert ": error: " in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == there


def test_help_names_every_rule(door):
    _, out, _ = door("--help")
    assert all(rule in " ".join(out.split()) for rule in RULES)


# ---------------------------------------------------------------------------------------------
# What the page says

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "logs.md").read_text()


def test_the_page_has_every_status_every_option_and_every_key(two):
    rows = [f"| `{status}` | {about} |" for status, about in STATUSES.items()]
    assert "\n".join(rows) in PAGE
    options = {word for word in re.findall(r"^\| `--(\w+)` \|", PAGE, re.MULTILINE)}
    assert options == {"logs", *analyze_aux.OF_LOGS, "output_dir", "json"}
    told = PAGE.partition("## The object of")[2].partition("## In a notebook")[0]
    found = compare_logs(two).json
    assert found.keys() == set(KEYS)
    inner = {k for name in ("groups", "comparisons") for row in found[name] for k in row}
    named = set(re.findall(r"`(\w+)`", told))
    assert named >= {*KEYS, "exit_code", "error"} | inner - {"group", "baseline"}


def test_the_lines_for_a_notebook_work(two, tmp_path, monkeypatch):
    for name, path in (("old", two["base"]), ("new", two["arm"])):
        (tmp_path / "logs").mkdir(exist_ok=True)
        path.rename(tmp_path / "logs" / name)
    monkeypatch.chdir(tmp_path)
    lines = PAGE.partition("```python\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 5
    known: dict = {}
    exec(lines, known)
    assert len(known["found"].rows) == 20


@pytest.mark.parametrize("name", FORMATS)
def test_a_form_can_be_named(name, tmp_path):
    form = next((f for f in FORMS.values() if f.format == name), SPEEDRUN)
    metric = {"metric": form.metric} if form.metric != "val_bpb" else {}
    logs = {"a": group(tmp_path / "a", ARM[:3], form)}
    found = compare_logs(logs, format=name, num_iterations=8, **metric)
    assert found.json["groups"][0]["n"] == 3


# ---------------------------------------------------------------------------------------------
# The same door for experiments


def test_an_experiment_has_a_table_of_its_runs_and_an_object(door, tmp_path):
    failures = {"aux_4/run_0": ("crashed", "ok"), "screen_aux_6/run_0": ("diverged",)}
    exp_dir = make(tmp_path, most=8, failures=failures)
    (exp_dir / "baseline/run_0/result.json").write_text("{")
    code, out, _ = door("--exp_dir", exp_dir, "--json")
    found = json.loads(out)
    rows = list(csv.DictReader(io.StringIO((exp_dir / "runs.csv").read_text())))
    assert (code, found["exit_code"], len(rows)) == (0, 0, len(found["rows"]))
    assert rows and list(rows[0]) == list(COLUMNS)
    ok = [row for row in found["rows"] if row["status"] == "ok"]
    assert found["runs"]["finished"] == len({row["file"] for row in ok})
    assert {row["status"] for row in found["rows"]} == {"ok", "crashed", "diverged", "damaged"}
    assert all((row["metric"] is not None) == (row["status"] == "ok") for row in found["rows"])
