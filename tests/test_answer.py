"""What a sitting tells programs: one object, and exit codes that tell verdicts. docs/scripts.md."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run_aux import FIXED, SUPPORT, ask, call, newest

import run_aux
from ablation.cli import console, exit_codes
from ablation.execute import opening
from ablation.execute.answering import CODES, Told, what_is_known, with_verdict
from ablation.folder import registration
from ablation.folder.answer import answer
from ablation.folder.standing import standing
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.runs.store import read_records
from tests.support.invented_folder import adaptive_plan, make

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scripts.md").read_text()
BOTH = ("--json", "--exit_verdict")

# ---------------------------------------------------------------------------------------------
# The page says what the object holds

TYPES = {
    "text": lambda v: type(v) is str and bool(v),
    "number": lambda v: type(v) in (int, float),
    "whole number": lambda v: type(v) is int,
    "true or false": lambda v: type(v) is bool,
    "object": lambda v: type(v) is dict,
    "list": lambda v: type(v) is list,
    "null": lambda v: v is None,
}
ROWS = dict(re.findall(r"^\| `([\w.\[\]]+)` \| ([a-z ]+) \| [^|]+ \|$", PAGE, re.MULTILINE))


def flat(value, path=""):
    """Every value in an object, with its key as the page writes it."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}".lstrip("."))
    if isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                for key, deepest in inner.items():
                    yield from flat(deepest, f"{path}[].{key}")


def is_as_the_page_says(found: dict) -> bool:
    """Each key has a row and a type that fits; none is left out, but those in what is null."""
    pairs = [*flat(found)]
    for key, value in pairs:
        assert any(TYPES[name](value) for name in ROWS[key].split(" or null")[:1]) or (
            value is None and ROWS[key].endswith(" or null")
        ), f"{key} is {value!r}, not {ROWS[key]}"
    nothing = {key for key, value in pairs if value is None or value == []}
    inside = {key for key in ROWS if re.split(r"\.|\[", key)[0] in nothing}
    assert {key for key, _ in pairs} | inside == ROWS.keys()
    return True


def told(home, *words):
    """(exit code, the object, standard error) of a command; nothing else is on standard output."""
    code, out, err = call(home, *words)
    assert out.endswith("}\n") and out.count("\n") == 1, out + err
    found = json.loads(out)
    assert is_as_the_page_says(found)
    assert found["exit_code"] == code and found["schema"] == 1
    return code, found, err


# ---------------------------------------------------------------------------------------------
# Verdicts


def trainer(home, effect: float, noise: float):
    """The arguments of a sitting whose arms all have one effect; noise: sd between runs."""
    text = (SUPPORT / "fake_train.py").read_text()
    text, effects = re.subn(r"EFFECTS\.get\(layers, 0\.0\)", f"{effect} * bool(layers)", text)
    text, hyper = re.subn(r"HYPER\.get\(\w+, 0\.0\)", "0.0", text)
    text, noises = re.subn(r"gauss\(0, 0\.0013\)", f"gauss(0, {noise})", text)
    assert (effects, hyper, noises) == (1, 2, 1)
    (home / "train.py").write_text(text)
    return ("--train_script", str(home / "train.py"), "--data_dir", "shards", "--profile", "mini")


CASES = {  # name: (plan, effect, sd between runs, verdict)
    "adaptive improves": ("adaptive", 0.1, 0.001, IMPROVES),
    "adaptive no meaningful effect": ("adaptive", 0.0, 0.0002, NO_EFFECT),
    "adaptive harmful": ("adaptive", -0.1, 0.001, HARMFUL),
    "adaptive inconclusive": ("adaptive", 0.0, 0.1, UNDECIDED),
    "classic improves": ("classic", 0.2, 0.001, IMPROVES),
    "classic harmful": ("classic", -0.1, 0.001, HARMFUL),
    "classic inconclusive": ("classic", 0.0, 0.05, UNDECIDED),
}


@pytest.mark.parametrize("name", CASES)
def test_each_verdict_is_told_in_one_object_and_by_the_exit_code(home, name):
    plan, effect, noise, verdict = CASES[name]
    how = ("--plan", plan, "--validation_runs", "4", "--ignore_gate")
    code, found, err = told(home, "--staged", *how, *BOTH, *trainer(home, effect, noise))
    assert code == CODES[verdict] == 20 + [IMPROVES, NO_EFFECT, HARMFUL, UNDECIDED].index(verdict)
    assert found["verdict"] == verdict and found["error"] is None
    assert f"🏁 DECISION: {found['title']}\n" in err  # for people, and nothing is lost
    assert "final_best/run_0: val loss" in err and f"Ended: {found['ended']}." in err

    s = standing(newest(home))
    numbers, records = s.step.decisions[4].numbers, s.records
    assert found["folder"] == str(newest(home).resolve())
    assert found["improvement"] == numbers["improvement"]
    low, high = ("low", "high") if plan == "adaptive" else ("ci_low", "ci_high")
    ends = {"low": numbers[low], "high": numbers[high], "level": 0.95}
    assert found["interval"] == {**ends, "sequential": plan == "adaptive"}
    assert found["p"]["kind"].endswith(("Welch", "pairs"))
    assert f"{found['p']['value']:.4f}" in err or found["p"]["value"] < 1e-4
    assert found["pairs"] == numbers.get("n", numbers.get("baseline_n")) >= 3
    assert found["chosen"]["description"] == s.step.decisions[4].chosen.label
    assert found["runs"] == {
        "finished": len(records.results),
        "diverged": 0,
        "failed": 0,
        "attempts": len(records.results),
    }
    mine = [r.final_loss for r in records.results if r.run.arm.name == "final_best"]
    (row,) = [row for row in found["arms"] if row["name"] == "final_best"]
    assert (row["stage"], row["n"]) == (4, len(mine))
    assert row["mean"] == pytest.approx(sum(mine) / len(mine)) and row["sd"] > 0
    assert sum(row["n"] for row in found["arms"]) == len(records.results)

    again = told(home, "--exp_dir", str(newest(home)), *BOTH)
    assert again[:2] == (code, found)  # it goes on, and nothing is left to do


def test_the_registered_level_is_the_one_that_is_told(home):
    how = ("--plan", "adaptive", "--alpha", "0.01", "--validation_runs", "3")
    assert told(home, "--staged", *how, *BOTH, *FIXED)[1]["interval"]["level"] == 0.99


@pytest.mark.parametrize(
    ("plan", "kind"), [(None, "ranks"), (adaptive_plan(), "nominal, ranks")], ids=["classic", "ad"]
)
def test_where_a_run_diverged_ranks_decide_and_there_is_no_interval(tmp_path, plan, kind):
    lost = ("final_best/run_1", "final_baseline/run_2")
    folder = make(tmp_path, plan, failures=dict.fromkeys(lost, ("diverged",)))
    found = answer(standing(folder), 4)
    assert found["interval"] is None
    assert found["p"]["kind"] == kind
    assert (found["runs"]["diverged"], found["runs"]["failed"]) == (2, 0)
    rows = [row for row in found["arms"] if row["stage"] == 4]
    assert [(row["diverged"], row["n"]) for row in rows] == [(1, found["pairs"] - 1)] * 2


# ---------------------------------------------------------------------------------------------
# Without a verdict


def test_stages_conclude_nothing_before_the_last(home):
    how = ("--plan", "adaptive", *BOTH)
    for stage, title in (("1", "PROCEED to Stage 2"), ("2", "PROCEED to Stage 3")):
        code, found, err = told(
            home, "--stage", stage, *(how + tuple(FIXED) if stage == "1" else how)
        )
        assert (code, found["verdict"], found["ended"]) == (0, None, None)
        assert found["title"] == title and found["pairs"] == 0
    assert "STAGE 2 RESULTS" in err
    code, found, _ = told(home, "--staged", "--exp_dir", str(newest(home)), *BOTH)
    assert code == exit_codes.IMPROVES
    code, found, _ = told(home, "--stage", "2", "--exp_dir", str(newest(home)), *BOTH)
    assert (code, found["verdict"], found["improvement"]) == (0, None, None)
    assert found["title"] == "PROCEED to Stage 3" and found["ended"]


def test_runs_by_hand_have_means_and_no_verdict(home):
    words = ("--experiment", "baseline,aux_4_8,screen_aux_4_8", "--runs", "3")
    code, found, err = told(home, *words, *BOTH, *FIXED)
    assert (code, found["verdict"], found["p"]) == (0, None, None)
    rows = {row["name"]: row for row in found["arms"]}
    assert {name: row["n"] for name, row in rows.items()} == dict.fromkeys(words[1].split(","), 3)
    for row in rows.values():
        assert f"{row['name']}: val loss {row['mean']:.4f} ± {row['sd']:.4f} sd (n = 3)" in err
    code, found, _ = told(home, "--phase", "screening", *BOTH, *FIXED)
    assert code == 0 and {row["stage"] for row in found["arms"]} == {0}


FAULTS = {  # name: (mischief by layers, words, exit code, in the error)
    "a stop at a gate": (
        {"4": "nan", "6": "nan", "8": "nan", "4,8": "nan"},
        ("--staged", "--plan", "adaptive"), exit_codes.DONE, None,
    ),
    "no budget": ({}, ("--staged", "--max_budget_hours", "0.001"), exit_codes.BUDGET_SPENT, None),
    "one arm failed": (
        {"4": "crash"}, ("--experiment", "baseline,aux_4"), exit_codes.RUNS_FAILED,
        r"aux_4/run_0: crashed: .*a cable was cut",
    ),
    "the trainer refuses": (
        {"": "refuse"}, ("--staged",), exit_codes.FAULT, "the trainer refuses: .*--batch_size 3",
    ),
    "the seed is ignored": (
        {"": "unseeded"}, ("--experiment", "baseline", "--runs", "3"), exit_codes.FAULT,
        "exactly the same val loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_stood_in_the_way_is_the_error_and_its_code_stays(home, monkeypatch, name):
    mischief, words, expected, error = FAULTS[name]
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps(mischief))
    code, found, err = told(home, *words, *BOTH, *FIXED)
    assert (code, found["verdict"]) == (expected, None), err
    assert re.search(error, found["error"]) if error else found["error"] is None
    attempts = read_records(newest(home), standing(newest(home)).document["experiment_id"]).results
    assert found["runs"]["attempts"] == len(attempts)
    assert (found["hours"]["spent"] > 0) == bool(attempts)
    if name == "a stop at a gate":
        assert found["title"] == found["ended"] == "STOP: every arm diverged"


def test_a_failed_run_goes_before_the_verdict_in_the_code(home, monkeypatch):
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"8": "crash"}))
    code, found, _ = told(home, "--staged", "--plan", "adaptive", *BOTH, *FIXED)
    assert (code, found["verdict"]) == (exit_codes.RUNS_FAILED, IMPROVES)
    assert found["error"].startswith("aux_8/run_0: crashed") and found["runs"]["failed"] == 1
    assert found["runs"]["attempts"] == found["runs"]["finished"] + 3


@pytest.mark.parametrize(
    ("code", "verdict", "p", "expected"),
    [
        *((exit_codes.DONE, verdict, {}, code) for verdict, code in CODES.items()),
        (exit_codes.DONE, None, None, exit_codes.DONE),
        (exit_codes.BUDGET_SPENT, UNDECIDED, None, exit_codes.BUDGET_SPENT),
        (exit_codes.BUDGET_SPENT, UNDECIDED, {"value": 0.3}, exit_codes.UNDECIDED),
        (exit_codes.BUDGET_SPENT, None, None, exit_codes.BUDGET_SPENT),
        (exit_codes.RUNS_FAILED, IMPROVES, {"value": 0.1}, exit_codes.RUNS_FAILED),
        (exit_codes.FAULT, IMPROVES, {"value": 0.1}, exit_codes.FAULT),
        (130, IMPROVES, {"value": 0.1}, 130),
    ],
)
def test_a_verdict_is_told_by_the_code_where_nothing_goes_before_it(code, verdict, p, expected):
    p = {"value": 0.01} if p == {} else p
    assert with_verdict(code, {"verdict": verdict, "p": p}) == expected


def test_no_two_codes_are_the_same():
    codes = [v for name, v in vars(exit_codes).items() if name.isupper() and isinstance(v, int)]
    assert len(codes) == len(set(codes)) == len(exit_codes.MEANING)
    table = re.findall(r"^\| (\d+) \| ([a-z ]+) \|$", PAGE, re.MULTILINE)
    assert {int(code): verdict for code, verdict in table} == {c: v for v, c in CODES.items()}


# ---------------------------------------------------------------------------------------------
# Refused, or stopped

REFUSED = {
    "unreadable": (("--staged", "--bogus"), exit_codes.USAGE),
    "no number": (("--stage", "one"), exit_codes.USAGE),
    "cannot be meant": (("--experiment", "baseline,baseline"), exit_codes.USAGE),
    "beside a dry run": (("--staged", "--dry_run"), exit_codes.USAGE),
    "beside a list": (("--list",), exit_codes.USAGE),
    "nothing to do": ((), exit_codes.USAGE),
    "no experiment there": (("--staged", "--exp_dir", "shards"), exit_codes.REFUSED),
    "no shards": (("--staged", "--profile", "mini", "--data_dir", "none"), exit_codes.REFUSED),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_an_object_too_with_its_one_line(home, name):
    words, expected = REFUSED[name]
    code, out, err = ask(*words, *BOTH)
    found = json.loads(out)
    assert out.count("\n") == 1 and is_as_the_page_says(found)
    assert code == found["exit_code"] == expected
    assert err.splitlines()[-1] == f"run_aux.py: error: {found['error']}"
    assert found["verdict"] is found["folder"] is None and found["arms"] == []


def test_without_the_options_a_command_line_that_cannot_be_read_ends_as_before():
    code, out, err = ask("--staged", "--bogus")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert ask("--status", "--json", "--bogus")[:2] == (2, "")


@pytest.mark.parametrize("look", ["--status", "--list", "--plan_report", "--preflight"])
def test_a_verdict_code_goes_with_a_sitting_only(home, look):
    code, out, err = ask(look, "--exit_verdict")
    assert (code, out) == (exit_codes.USAGE, "")
    assert len(err.splitlines()) == 1 and "--exit_verdict goes with --staged" in err


def test_ctrl_c_is_told_in_the_object(home):
    words = [sys.executable, str(ROOT / "run_aux.py"), "--staged", *BOTH, *FIXED]
    env = {**os.environ, "FAKE_SECONDS": "60"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    sitting = subprocess.Popen(words, cwd=home, env=env, **pipes)
    deadline = time.monotonic() + 60
    while not [*home.glob("experiments/*/screen_baseline/run_0/output.log")]:
        assert time.monotonic() < deadline and sitting.poll() is None
        time.sleep(0.05)
    sitting.send_signal(signal.SIGINT)
    out, err = sitting.communicate(timeout=60)
    found = json.loads(out)
    assert out.count("\n") == 1 and is_as_the_page_says(found)
    assert sitting.returncode == found["exit_code"] == 130
    assert found["error"] == "stopped by SIGINT" and found["verdict"] is found["ended"] is None
    assert found["runs"]["attempts"] == found["runs"]["failed"] == 1
    assert found["folder"] == str(newest(home).resolve()) and "Stopped by SIGINT" in err


def test_a_stop_before_the_first_run_is_told_in_the_object(home, monkeypatch):
    def stopped(*_):
        raise console.Stopped(signal.SIGTERM)

    monkeypatch.setattr(run_aux, "run", stopped)
    code, out, err = ask("--staged", "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 143
    assert found["error"] == "stopped; no run was in flight" and found["error"] in err


def test_a_machine_that_fails_underway_is_told_with_the_folder(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "result.json")

    monkeypatch.setattr(opening, "drive", full)
    code, out, err = ask("--staged", *BOTH, *FIXED)
    found = json.loads(out)
    assert code == found["exit_code"] == exit_codes.FAULT and is_as_the_page_says(found)
    assert "No space left on device" in found["error"] and found["error"] in err
    assert found["folder"] == str(newest(home).resolve())
    assert found["runs"]["attempts"] == found["pairs"] == 0


def test_code_that_was_edited_underway_is_told_where_the_verdict_is_missing(tmp_path, monkeypatch):
    sat = Told(exp_dir=make(tmp_path, adaptive_plan()))
    assert what_is_known(sat)["title"] and not sat.error
    monkeypatch.setattr(registration, "rules_hash", lambda: "0" * 16)
    assert what_is_known(sat)["title"] is None
    assert sat.error.startswith("the files that decide are not those registered")
    assert sat.error.endswith("; no decision is shown")


def test_the_exit_code_alone_leaves_the_lines_where_they_are(home):
    words = ("--staged", "--plan", "adaptive", "--validation_runs", "3", *FIXED)
    code, out, err = call(home, *words, "--exit_verdict")
    assert (code, err) == (exit_codes.IMPROVES, "")
    assert "DECISION: improves" in out and "{" not in out
    code, found, _ = told(home, "--exp_dir", str(newest(home)), "--json")
    assert (code, found["verdict"]) == (exit_codes.DONE, IMPROVES)


def test_what_other_commands_print_stays_as_it_is(home):
    call(home, "--stage", "1", "--plan", "adaptive", *FIXED)
    code, out, _ = ask("--status", "--json")
    assert code == 0 and "orchestrator" in json.loads(out)


# ---------------------------------------------------------------------------------------------
# Trying ideas

STAND_IN = """
import json, os, sys, tomllib
from pathlib import Path
words = sys.argv[1:]
study = tomllib.loads(Path(words[words.index("--study") + 1]).read_text())
(arm,) = study["arms"].values()
with open("asked", "a") as file:
    file.write(json.dumps([words, study]) + "\\n")
code = study["code"]
found = {"title": f"title {code}", "error": "a line" if code == 2 else None, "folder": "there"}
print(json.dumps(found))
sys.exit(code)
"""


@pytest.fixture
def ideas(tmp_path, monkeypatch):
    """try_ideas.py on a folder of ideas, by the exit code that the stand-in gives for each:
    (exit code, standard output, standard error, what run_aux.py was asked)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run_aux.py").write_text(STAND_IN)
    (tmp_path / "ideas").mkdir()

    def tried(*codes):
        for k, code in enumerate(codes):
            (tmp_path / "ideas" / f"i{k}.toml").write_text(
                f'code = {code}\nquestion = "\\"é\\" = \\\\?"\n'
                f"[base]\nflags = {{ seed = '{{seed}}', lr = 0.5, on = true, b = [1, 2] }}\n"
                f"[arms.a{k}]\nflags = {{ lr = 0.{k} }}\nenv = {{ V{k} = 'x' }}\n"
            )
        words = [sys.executable, str(ROOT / "examples" / "try_ideas.py"), "ideas"]
        words += ["--hours", "2", "--run_aux", str(tmp_path / "run_aux.py")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        asked = [*map(json.loads, (tmp_path / "asked").read_text().splitlines())]
        return done.returncode, done.stdout, done.stderr, asked

    return tried


def test_ideas_that_improve_join_the_baseline_of_those_after_them(ideas):
    code, out, err, asked = ideas(20, 21, 2, 20, 23)
    assert (code, err) == (0, "")
    bases = [study["base"] for _, study in asked]
    plain = {"seed": "{seed}", "lr": 0.5, "on": True, "b": [1, 2]}
    assert bases[0] == {"flags": plain, "env": {}}
    assert bases[1] == bases[2] == bases[3] == {"flags": {**plain, "lr": 0.0}, "env": {"V0": "x"}}
    assert bases[4] == {"flags": {**plain, "lr": 0.3}, "env": {"V0": "x", "V3": "x"}}
    assert {study["question"] for _, study in asked} == {'"é" = \\?'}
    kept = json.dumps({"flags": {"lr": 0.3}, "env": {"V0": "x", "V3": "x"}})
    assert out.splitlines()[-1] == f"Kept of 5 ideas, at level 0.05 for all of them: {kept}"
    assert "i2: a line (there)" in out and "i4: title 23 (there)" in out
    assert len(ideas(21, 21, 21, 21, 21)[-1]) == 5 + 5  # what was written beside them is no idea


def test_the_level_is_divided_and_no_two_ideas_share_a_seed(ideas):
    *_, asked = ideas(21, 21, 21, 21)
    ask_of = [{**dict(zip(words, [*words[1:], ""], strict=True))} for words, _ in asked]
    assert [words["--alpha"] for words in ask_of] == ["0.0125"] * 4
    assert [words["--first_seed"] for words in ask_of] == ["0", "10000", "20000", "30000"]
    assert {words["--max_budget_hours"] for words in ask_of} == {"2"}
    for words, _ in asked:  # but for --study, run_aux.py understands it
        at = words.index("--study")
        args = run_aux.build_parser().parse_args(words[:at] + words[at + 2 :])
        assert args.staged and args.json and args.exit_verdict and args.plan == "adaptive"


@pytest.mark.parametrize("stop", [4, 130])
def test_a_broken_machine_or_a_stop_ends_the_night(ideas, stop):
    code, out, err, asked = ideas(20, stop, 20)
    assert code == 1 and len(asked) == 2 and "Kept" not in out
    assert len(err.splitlines()) == 1 and f"exit code {stop}" in err


def test_an_idea_that_could_not_be_kept_is_refused_before_any_runs(ideas, tmp_path):
    (tmp_path / "asked").touch()
    plain = "[arms.a]\nflags = { lr = 0.1 }\n"
    for odd in ("", f"{plain}[arms.b]", f"{plain}[refinements.r]", "[arms.a]\nscript = 'b.py'"):
        (tmp_path / "ideas" / "odd.toml").write_text(odd)
        code, out, err, asked = ideas(20)
        assert (code, out, asked) == (2, "", [])
        assert "odd.toml: give one arm, of flags or env" in err


def test_the_page_shows_the_example_word_for_word():
    assert f"```python\n{(ROOT / 'examples' / 'try_ideas.py').read_text()}```\n" in PAGE
    assert f"LEVEL, IMPROVES = 0.05, {exit_codes.IMPROVES} " in PAGE
