"""A sitting from start to end: what it says to scripts, and what a broken machine may cost."""

import json
import re
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from test_run_aux import FIXED, ask, call, newest

import run_aux
import staged_analysis_helper
from ablation.cli import exit_codes
from ablation.execute import sitting, watcher
from ablation.folder.registration import newest_experiment
from ablation.folder.standing import standing
from ablation.plan.next_step import Step, next_step, result_that_stands
from ablation.runs.store import attempt_dir, read_records
from tests.support.invent import arm, experiment, overridden, result

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"


def attempts(home):
    document = json.loads((newest(home) / "experiment_configs.json").read_text())
    return read_records(newest(home), document["experiment_id"]).results


def statuses(home):
    return [r.status for r in attempts(home)]


@pytest.fixture
def breaks(home, monkeypatch):
    """A launcher that fails at once as long as the file that this returns is there."""
    broken, launcher = home / "broken", home / "launcher"
    fake = shlex.quote(str(SUPPORT / "fake_torchrun"))
    launcher.write_text(
        f'#!/bin/sh\nif [ -e {broken} ]; then echo "GPU has fallen off the bus"; exit 1; fi\n'
        f'exec {fake} "$@"\n'
    )
    launcher.chmod(0o755)
    monkeypatch.setenv("TORCHRUN", str(launcher))
    return broken


# ---------------------------------------------------------------------------------------------
# Exit codes


def test_the_readme_has_the_table_of_exit_codes():
    rows = [
        f"| {'128 + n' if code == exit_codes.STOPPED else code} | {text} |"
        for code, text in exit_codes.MEANING.items()
    ]
    assert "\n".join(rows) in (ROOT / "README.md").read_text()
    constants = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert {code for code in constants if isinstance(code, int)} == exit_codes.MEANING.keys()


CASES = {  # name: (mischief by layers, arguments, exit code)
    "done": ({}, ("--experiment", "baseline"), exit_codes.DONE),
    "a stop by the rule is an answer": (
        {"4": "nan", "6": "nan", "8": "nan", "4,8": "nan"},
        ("--staged", "--plan", "adaptive"),
        exit_codes.DONE,
    ),
    "usage": ({}, ("--experiment", "baseline,baseline"), exit_codes.USAGE),
    "nothing can begin": ({}, ("--staged", "--exp_dir", "shards"), exit_codes.REFUSED),
    "one arm failed": (
        {"4": "crash"},
        ("--experiment", "baseline,aux_4"),
        exit_codes.RUNS_FAILED,
    ),
    "no outcome": ({"": "crash"}, ("--experiment", "baseline"), exit_codes.RUNS_FAILED),
    "refused": ({"": "refuse"}, ("--staged",), exit_codes.FAULT),
    "the seed is ignored": (
        {"": "unseeded"},
        ("--experiment", "baseline", "--runs", "5"),
        exit_codes.FAULT,
    ),
    "no budget": ({}, ("--staged", "--max_budget_hours", "0.001"), exit_codes.BUDGET_SPENT),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exit_code_says_how_it_ended_on_resume_too(home, monkeypatch, name):
    mischief, arguments, code = CASES[name]
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps(mischief))
    first, out, err = call(home, *arguments, *FIXED)
    assert first == code, out + err
    if (home / "experiments").exists():
        before = statuses(home)
        again, out, err = call(home, "--exp_dir", str(newest(home)))
        assert again == code, out + err
        assert statuses(home) == before or name == "refused"


def test_a_stage_that_needs_no_run_is_done(home):
    code, out, err = call(home, "--stage", "1", "--plan", "adaptive", *FIXED)
    assert code == exit_codes.DONE, out + err
    assert attempts(home) == ()
    assert "Stage 1 is decided. nothing finished; 0.0 s of" in out


# ---------------------------------------------------------------------------------------------
# A machine that breaks


@pytest.mark.parametrize("packed", ["1", "3", "8"])
def test_a_machine_that_breaks_stops_the_sitting_and_when_mended_the_plan_is_completed(
    home, breaks, packed
):
    how = ["--plan", "adaptive", "--validation_runs", "4", "--parallel_runs", packed, *FIXED]
    call(home, "--stage", "1", *how)
    before = len(attempts(home))
    breaks.touch()
    code, out, err = call(home, "--staged", "--exp_dir", str(newest(home)))
    assert code == exit_codes.FAULT, out + err
    crashed = [r for r in attempts(home) if r.status == "crashed"]
    assert 3 <= len(crashed) <= 9
    assert len({r.run.arm.configuration for r in crashed}) > 1
    assert len(attempts(home)) == before + len(crashed)
    (said,) = [line for line in out.splitlines() if line.startswith("STOPPED: ")]
    assert "GPU has fallen off the bus" in said and "machine seems broken" in said
    (go_on,) = re.findall(r"^Go on: python run_aux.py (.*)$", out, re.MULTILINE)

    breaks.unlink()
    code, out, err = call(home, *shlex.split(go_on))
    assert code == exit_codes.DONE, out + err
    assert "STAGE 4 RESULTS" in out
    final = standing(newest(home))
    assert not final.step.runs and "improves" in final.step.decisions[4].title
    assert {r.run.key for r in crashed} <= {r.run.key for r in attempts(home) if r.has_outcome}
    spent = sum(r.wall_s for r in crashed)
    assert spent > 0 and final.records.results  # kept, and paid for


def test_a_trainer_that_refuses_is_asked_once(home, monkeypatch):
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"6": "refuse"}))
    code, out, _ = call(home, "--staged", "--validation_runs", "2", *FIXED)
    assert code == exit_codes.FAULT
    assert statuses(home) == ["refused", "ok"]
    assert "--batch_size 3: give a multiple of 2" in out
    monkeypatch.delenv("FAKE_MISCHIEF")
    code, out, _ = call(home, "--staged", "--exp_dir", str(newest(home)))
    assert code == exit_codes.DONE
    assert "DECISION: AUX HEADS HELP" in out


def test_two_seeds_with_one_loss_stop_the_plan_at_once(home, monkeypatch):
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"": "unseeded"}))
    code, out, _ = call(home, "--experiment", "baseline,aux_4", "--runs", "20", *FIXED)
    assert code == exit_codes.FAULT
    assert len(attempts(home)) == 3
    assert "does the trainer use its seed?" in out


def test_without_a_baseline_nothing_else_of_the_stage_is_paid_for(home, monkeypatch):
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"": "nan"}))
    code, out, _ = call(home, "--staged", *FIXED)
    assert code == exit_codes.DONE
    assert statuses(home) == ["diverged"]
    assert "INCONCLUSIVE: no usable run of the baseline" in out


def refused_logs(*names):
    """Complete trainings, exit code 0, each with a log that was refused."""
    return [replace(result(arm(f"a{n}", int(n)), status="crashed"), returncode=0) for n in names]


def crashes(*names, seeds=1):
    return [
        result(arm(f"a{name}", int(name)), status="crashed", attempt=k, index=index)
        for name in names
        for index in range(seeds)
        for k in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("row", "trained", "broken"),
    [
        (crashes("1", "2", "3"), (), True),
        (crashes("1", "2", "3")[:8], (), False),  # eight attempts
        (crashes("1", "2", "2"), (), False),  # two runs
        (crashes("4", seeds=3), (), False),  # an arm that never trained
        (crashes("4", seeds=3), [result(arm("a4", 4), 3.3, index=7)], True),
        (refused_logs("1", "2", "3"), (), True),  # none of them is tried again
        (refused_logs("1", "2"), (), False),
        (crashes("1", "2", "3")[::3], (), False),  # each will be tried again
    ],
)  # fmt: skip
def test_it_is_the_machine_when_several_runs_of_arms_that_can_train_fail(row, trained, broken):
    why = sitting.fault_of(experiment(), row, row[-1], [*trained, *row])
    assert bool(why) == broken


@pytest.mark.parametrize(
    ("row", "trained", "broken"),
    [
        (crashes("1", "2"), "12", True),
        (crashes("1", "2"), "1", False),
        (crashes("1"), "1", False),
        ([], "1", False),
    ],
)
def test_at_the_plans_end_two_runs_of_arms_that_have_trained_are_enough(row, trained, broken):
    before = [result(arm(f"a{n}", int(n)), 3.3, index=7) for n in trained]
    assert bool(sitting.fault_at_end(row, [*before, *row])) == broken


def test_a_run_that_failed_for_good_counts_for_the_stages_that_were_asked_for():
    e, results = experiment(), [result(arm("a9", 9), 3.3), *crashes("1")]
    for stages, code in ((range(1, 5), exit_codes.RUNS_FAILED), (range(2, 3), exit_codes.DONE)):
        assert sitting.exit_code(e, results, Step(3), stages) == code
    nothing = [result(arm("a1", 1), status="interrupted")]
    assert sitting.exit_code(e, nothing, Step(3), range(1, 5)) == exit_codes.RUNS_FAILED
    for stages, code in ((range(3, 4), exit_codes.BUDGET_SPENT), (range(2, 3), exit_codes.DONE)):
        assert sitting.exit_code(e, results, Step(3, ended=sitting.BUDGET_SPENT), stages) == code


def at(second, *failures):
    """One after the other, on this machine's clock."""
    clock = watcher.boot_clock()
    return [
        replace(r, clock=clock, start_s=second + k, end_s=second + k + 1)
        for k, r in enumerate(failures)
    ]


def forgiven(e, row):
    return overridden(e, "retry", 0, sitting.forgiveness(row, "broken"))


def test_failures_in_a_row_are_counted_over_sittings():
    """A queue that starts a sitting anew, each time before nine attempts, is told all the same."""
    e, early, late = experiment(), at(0.0, *crashes("1")), at(20.0, *crashes("2", "3"))
    good = at(10.0, result(arm("a9", 9), 3.3))
    assert sitting.failed_last(e, [*late, *early]) == [*early, *late]
    assert sitting.failed_last(e, [*late, *good, *early]) == late
    assert sitting.failed_last(forgiven(e, late[:4]), late) == late[4:]
    elsewhere = [replace(r, clock="another boot") for r in late]
    assert sitting.failed_last(e, elsewhere) == []  # nobody knows in which order


def test_a_sitting_goes_on_counting_where_the_last_one_was_stopped(home, breaks):
    call(home, "--stage", "1", *FIXED)
    folder = newest(home)
    breaks.touch()
    call(home, "--exp_dir", str(folder))
    overrides = folder / "overrides.json"
    overrides.unlink()  # as if it had been stopped an attempt before the last
    shutil.rmtree(attempt_dir(folder / "aux_6/run_0", 3))
    before = len(attempts(home))
    code, out, _ = call(home, "--exp_dir", str(folder))
    assert code == exit_codes.FAULT
    assert "9 attempts at 3 runs" in out
    assert len(attempts(home)) == before + 1
    assert len(json.loads(overrides.read_text())["overrides"][0]["value"]["attempts"]) == 9


def test_a_folder_that_leads_elsewhere_ends_the_sitting_as_a_fault(home, tmp_path_factory):
    call(home, "--stage", "1", *FIXED)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (newest(home) / "aux_4").symlink_to(elsewhere)
    code, _, err = call(home, "--stage", "2")
    assert code == exit_codes.FAULT  # something was started: the baseline, which is kept
    assert len(err.splitlines()) == 1 and "go on: python run_aux.py" in err
    assert [r.status for r in attempts(home) if r.run.stage == 2] == ["ok"]
    assert not list(elsewhere.iterdir())


def test_another_choice_after_the_first_final_pair_is_a_second_test_and_refused(home):
    by_hand = ("--stage", "4", "--best_layers")
    call(home, "--stage", "1", "--validation_runs", "2", *FIXED)
    assert call(home, *by_hand, "6")[0] == exit_codes.DONE
    before = staged_analysis_helper.block(newest(home), 4)
    assert call(home, *by_hand, "6")[0] == exit_codes.DONE  # the same again
    for stage in ("3", "4"):
        code, _, err = ask("--stage", stage, "--best_layers", "4,8")
        assert code == exit_codes.REFUSED
        assert "second test" in err and len(err.splitlines()) == 1
    assert staged_analysis_helper.block(newest(home), 4) == before


def test_failures_that_were_the_machines_are_not_held_against_a_run():
    e = experiment()
    run = next_step(e, []).runs[0]
    failures = [replace(result(run.arm, status="crashed", attempt=k), run=run) for k in (1, 2, 3)]
    assert result_that_stands(failures) is failures[-1]
    e = forgiven(e, failures[1:])
    assert result_that_stands(failures, e.overrides.forgiven) is None
    assert next_step(e, failures).runs[0] == run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_launch_is_one_line_and_holds_nothing(monkeypatch, capsys, number):
    held = []

    def sit(*_):
        held.append("lock")
        try:
            signal.raise_signal(number)
        finally:
            held.clear()

    before = signal.getsignal(number)
    monkeypatch.setattr(run_aux, "run", sit)
    assert run_aux.main(["--staged"]) == exit_codes.STOPPED + number
    assert capsys.readouterr().err == "run_aux.py: stopped; no run was in flight\n"
    assert not held
    assert signal.getsignal(number) == before


# ---------------------------------------------------------------------------------------------
# One decision, whoever shows it


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished experiment of each plan."""
    made = {}
    patch = pytest.MonkeyPatch()
    for plan in ("classic", "adaptive"):
        folder = tmp_path_factory.mktemp(plan)
        patch.setenv("TORCHRUN", str(SUPPORT / "fake_torchrun"))
        (folder / "shards").mkdir()
        for kind in ("train", "val"):
            (folder / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
        how = ("--validation_runs", "4", "--parallel_runs", "2")
        call(folder, "--staged", "--plan", plan, *how, *FIXED)
        made[plan] = newest(folder)
    patch.undo()
    return made


def test_what_is_derived_is_never_a_source(folders, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folders["classic"], copy)
    before = {n: staged_analysis_helper.block(copy, n) for n in (1, 2, 3, 4)}
    (copy / "staged_ablation_results.json").write_text('{"stages": "nonsense"}')
    assert {n: staged_analysis_helper.block(copy, n) for n in (1, 2, 3, 4)} == before
    shutil.rmtree(copy / "screen_aux_4_8")
    with pytest.raises(ValueError, match="not decided yet"):
        staged_analysis_helper.block(copy, 1)


@pytest.mark.parametrize("stage", [-1, 0, 5])
def test_a_stage_that_the_plan_lacks_is_told_as_such(folders, stage):
    for folder in folders.values():
        with pytest.raises(ValueError, match=r"the stages of .* are 1, 2, 3, 4$"):
            staged_analysis_helper.block(folder, stage)


def test_runs_by_hand_are_shown_again_and_told_how_to_go_on(home):
    call(home, "--experiment", "baseline,aux_4", *FIXED)
    folder = newest(home).rename(newest(home).with_name("aux_heads_by hand"))
    assert "runs asked for by hand are done" in staged_analysis_helper.block(folder, 0)
    shutil.rmtree(folder / "aux_4")
    with pytest.raises(ValueError, match="not decided yet") as refusal:
        staged_analysis_helper.block(folder, 0)
    go_on = shlex.split(str(refusal.value).partition("run: python run_aux.py ")[2])
    assert call(home, *go_on)[0] == exit_codes.DONE
    assert "aux_4" in staged_analysis_helper.block(folder, 0)


def test_helper_status_and_records_agree(folders, capsys):
    for folder in folders.values():
        step = standing(folder).step
        assert staged_analysis_helper.main(["--stage", "4", "--exp_dir", str(folder)]) == 0
        block = capsys.readouterr().out
        _, out, _ = ask("--status", "--exp_dir", str(folder))
        written = json.loads((folder / "staged_ablation_results.json").read_text())
        for number, decision in step.decisions.items():
            assert f"stage {number} decided: {decision.title}" in out
            assert written["stages"][str(number)]["decision"]["title"] == decision.title
        assert step.decisions[4].title in block


CHANGES = {
    "an edited hypothesis": lambda d: d | {"hypothesis": "Heads always help."},
    "an edited budget": lambda d: d | {"budget_hours": 99.0},
    "other rules": lambda d: d | {"rules": d["rules"] | {"hash": "0" * 16}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_is_not_what_was_registered_is_told_so_by_all(folders, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folders["classic"], copy)
    path = copy / "experiment_configs.json"
    document = json.loads(path.read_text())
    fixed = CHANGES[change](document["registered"])
    path.write_text(json.dumps(document | {"registered": fixed}))
    (words, *_) = standing(copy).changed
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    for arguments, code in ((("--status",), 0), (("--staged",), 1), (("--stage", "1"), 1)):
        got, out, err = ask(*arguments, "--exp_dir", str(copy))
        assert got == code
        assert words in out + err, arguments
        assert "decided:" not in out
    with pytest.raises(ValueError) as refusal:
        staged_analysis_helper.block(copy, 1)
    assert words in str(refusal.value)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


# ---------------------------------------------------------------------------------------------
# Begin or go on, wherever the folder lies


def test_one_command_begins_goes_on_and_ends(home, monkeypatch):
    command = ("--staged", "--exp_dir", "runs/mine", "--validation_runs", "2", *FIXED)
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"6": "refuse"}))
    assert call(home, *command)[0] == exit_codes.FAULT
    monkeypatch.delenv("FAKE_MISCHIEF")
    for _ in range(2):
        code, out, err = call(home, *command)
        assert code == exit_codes.DONE, out + err
    assert "runs to do" not in out
    assert [path.name for path in (home / "runs").iterdir()] == ["mine"]
    assert not (home / "experiments").exists()


@pytest.mark.parametrize(
    ("litter", "arguments", "code"),
    [
        ((), ("--staged",), 0),
        (("code/0123456789abcdef/t.py", ".lock.guard"), ("--staged",), 0),
        (("thesis.tex",), ("--staged",), 1),
        ((), ("--stage", "2"), 1),
        ((), (), 1),
    ],
)
def test_a_folder_is_begun_in_only_if_nothing_is_there(home, litter, arguments, code):
    folder = home / "mine"
    for name in litter:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    short = ("--full_iterations", "20", *("--validation_runs", "2") * bool(arguments))
    got, out, err = call(home, *arguments, "--exp_dir", "mine", *FIXED, *short)
    assert got == code, out + err
    assert code == 0 or len(err.splitlines()) == 1
    assert (folder / "experiment_configs.json").exists() == (code == 0)


def test_a_project_that_moved_goes_on(home, tmp_path_factory):
    project = home / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "data", "experiments"))
    shutil.move(home / "shards", project / "data" / "stdlib")
    fixed = ("--profile", "mini", "--train_script", "tests/support/fake_train.py")
    run = lambda where, *words: call(where, *words, program=where / "run_aux.py")  # noqa: E731
    code, out, err = run(project, "--stage", "1", *fixed)
    assert code == 0, out + err
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(project, moved)
    folder = str(newest(moved))
    assert run(moved, "--stage", "2", "--exp_dir", folder)[0] == 0

    shutil.rmtree(moved / "data" / "stdlib")
    code, out, _ = run(moved, "--stage", "1", "--exp_dir", folder)
    assert code == 1  # stage 3 is still to come
    code, _, err = run(moved, "--stage", "3", "--exp_dir", folder)
    assert code == 1
    assert "--data_dir" in err and len(err.splitlines()) == 1


def test_a_lost_copy_of_the_trainer_is_made_again_and_an_edited_one_refused(home):
    call(home, "--stage", "1", *FIXED)
    (copy,) = (newest(home) / "code").glob("*/fake_train.py")
    copy.write_text(copy.read_text() + "\n# edited\n")
    code, _, err = ask("--stage", "2")
    assert code == 1
    assert "was edited; its files no longer match their hash" in err
    shutil.rmtree(copy.parent)
    assert call(home, "--stage", "2")[0] == 0


def test_the_newest_experiment_is_the_one_registered_last(tmp_path):
    made = {
        "aux_heads_20300101_000000": "2026-11-25T10:00:00Z",
        "renamed": "2026-11-25T12:00:00.5+01:00",  # 11:00:00.5 in UTC
        "aux_heads_20200101_000000": "2026-11-25T11:00:00.25Z",
        "ahead": "2026-11-25T13:00:00+03:00",
        "broken": 7,
        "older": "yesterday",
    }
    for name, created in made.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment_configs.json").write_text(json.dumps({"created": created}))
    assert newest_experiment(tmp_path).name == "renamed"


# ---------------------------------------------------------------------------------------------
# What nobody can mean


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--experiment", "baseline,aux_4,baseline"], ["baseline 2 times", "each once"]),
        (["--experiment", "aux_4,"], ["--experiment ''"]),
        (["--experiment", ""], ["--experiment ''"]),
        (["--phase", ""], ["--phase", "give one of baseline, "]),
        (["--experiment", "baseline", "--seeds", "42,42,43"], ["42 2 times"]),
        (["--experiment", "baseline", "--seeds", ","], ["--seeds"]),
        (["--experiment", "baseline", "--seeds", "-1"], ["--seeds -1", "4294967295"]),
        (["--experiment", "baseline", "--seeds", "4294967296"], ["4294967296"]),
        (["--phase", "layer_position", "--seeds", "42,1042"], ["same training", "seed 1042"]),
        (["--staged", "--max_budget_hours", "1e308"], ["1e+308", "at most"]),
        (["--staged", "--max_budget_hours", "inf"], ["inf", "at most"]),
        (["--staged", "--full_iterations", "10" * 20], ["at most"]),
        (["--staged", "--num_gpus", "-1"], ["--num_gpus -1"]),
        (["--stage", "3", "--best_layers", "4,4"], ["--best_layers 4,4", "once"]),
        (["--stage", "3", "--best_layers", "4", "--best_weight", "inf"], ["--best_weight inf"]),
        (["--staged", "--slurm_args", "'--partition"], ["--slurm_args", "quotation"]),
        (["--staged", "--exp_dir", ""], ["--exp_dir", "no path"]),
        (["--staged", "--runs=--"], ["--runs", "value"]),
        (["--staged", "--no_such\x07"], ["unrecognized"]),
    ],
)  # fmt: skip
def test_what_nobody_can_mean_is_one_line_and_nothing_is_written(home, arguments, parts):
    code, _, err = ask(*arguments, *FIXED)
    assert code in (exit_codes.USAGE, exit_codes.REFUSED)
    assert len(err.strip().splitlines()) == 1, err
    assert err.rstrip("\n").isprintable()
    for part in parts:
        assert part in err
    assert not (home / "experiments").exists()


def test_a_path_is_what_the_shell_would_have_made_of_it(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    assert call(home, "--experiment", "baseline", "--output_dir=~/mine", *FIXED)[0] == 0
    assert not (home / "~").exists()
    assert len(list((home / "mine").iterdir())) == 1


@pytest.mark.parametrize(
    ("reason", "stops"),
    [
        (f"{watcher.CANNOT_START}: no torchrun", True),
        (f"{watcher.NO_SPACE}: /x/output.log, at step 5", True),
        (f"{watcher.FAILED} (is the disk full?)", True),
        ("its node failed", False),
        ("the operator stopped it", False),
    ],
)
def test_what_the_machine_did_to_one_run_it_would_do_to_the_next(reason, stops):
    """It is not held against a run, so nothing else would end the attempts at it."""
    last = replace(result(arm("a4", 4), status="interrupted"), reason=reason)
    why = sitting.fault_of(experiment(), [], last, [last])
    assert why == (f"{last.run.name}: {reason}" if stops else "")
