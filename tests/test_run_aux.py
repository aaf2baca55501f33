"""The command line, as a person uses it: with the fake trainer for its manners, and once with the
real one through all stages to the figures."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

import run_aux
import staged_analysis_helper
from ablation.cli import exit_codes
from ablation.execute import command
from ablation.plan.next_step import next_step
from ablation.runs.run import RunConfig, arm_from
from ablation.study.profiles import PROFILES
from tests.support.invent import ARMS, arm, code_at, experiment

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
FAKE = SUPPORT / "fake_train.py"


FIXED = ["--train_script", str(FAKE), "--data_dir", "shards", "--profile", "mini", "--no_page"]


def call(home, *arguments, program=ROOT / "run_aux.py"):
    """run_aux in a process of its own (it handles signals); (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def ask(*arguments):
    """The same in this process, without the start of one: where no run is launched, and what is
    asked for is an answer in words. An error that run_aux does not put into words is raised."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_aux.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def newest(home) -> Path:
    return max((home / "experiments").glob("aux_heads_*"), key=lambda p: p.stat().st_mtime_ns)


# ---------------------------------------------------------------------------------------------
# Stage by stage


def test_stages_one_by_one_and_a_finished_one_again(home):
    code, out, _ = call(home, "--stage", "1", "--validation_runs", "2", *FIXED)
    assert code == 0
    assert "✅ DECISION: PROCEED to Stage 2" in out
    assert "STAGE 2 RESULTS" not in out
    folder = newest(home)

    for stage in ("2", "3"):
        code, out, _ = call(home, "--stage", stage)  # continues the newest, nothing repeated
        assert code == 0
        assert f"DECISION: PROCEED to Stage {int(stage) + 1}" in out
    code, out, _ = call(home, "--stage", "4", "--exp_dir", str(folder))
    assert "🏁 DECISION: AUX HEADS HELP: target met" in out

    before = sorted(path for path in folder.rglob("result.json"))
    times = [path.stat().st_mtime_ns for path in before]
    code, out, _ = call(home, "--stage", "2", "--exp_dir", str(folder))
    assert code == 0
    assert "📊 STAGE 2 RESULTS:" in out
    assert "runs to do" not in out
    assert [path.stat().st_mtime_ns for path in sorted(folder.rglob("result.json"))] == times

    for stage in (1, 2, 3, 4):
        argv = ["--stage", str(stage), "--exp_dir", str(folder)]
        assert staged_analysis_helper.main(argv) == 0


def test_between_stages_the_helper_prints_the_same_block(home, capsys):
    _, out, _ = call(home, "--stage", "1", *FIXED)
    staged_analysis_helper.main(["--stage", "1", "--exp_dir", str(newest(home))])
    block = capsys.readouterr().out.strip()
    assert block.startswith("📊 STAGE 1 RESULTS:")
    assert block in out


def test_a_stop_is_kept_until_a_person_overrides_it_and_that_is_recorded(home, monkeypatch):
    monkeypatch.setenv("FAKE_MISCHIEF", json.dumps({"6": "nan", "4,8": "nan", "3,6,9": "nan"}))
    call(home, "--staged", *FIXED)
    folder = newest(home)
    monkeypatch.delenv("FAKE_MISCHIEF")
    code, _, err = ask("--stage", "2")
    assert code == 1
    assert "--ignore_gate" in err
    assert len(err.splitlines()) == 1
    code, out, _ = call(home, "--stage", "2", "--ignore_gate")
    assert code == 0
    assert "OVERRIDE" in out
    assert "STAGE 2 RESULTS" in out
    derived = json.loads((folder / "staged_ablation_results.json").read_text())
    assert derived["stages"]["1"]["overridden"] is True
    assert derived["overrides"][0]["kind"] == "ignore_gate"


def test_layers_by_hand(home):
    code, out, _ = ask(
        "--stage", "4", "--best_layers", "6", "--best_weight", "0.2", *FIXED,
        "--validation_runs", "2",
    )  # fmt: skip
    assert code == 1  # there is no experiment to continue
    call(home, "--stage", "1", *FIXED, "--validation_runs", "2")
    code, out, _ = call(home, "--stage", "4", "--best_layers", "6", "--best_weight", "0.2")
    assert code == 0
    assert "Layers: 6" in out
    assert "Weight: 0.2" in out
    value = json.loads((newest(home) / "overrides.json").read_text())["overrides"][0]["value"]
    assert arm_from(value["arm"]).configuration == arm("", 6, weight=0.2).configuration


def test_a_dry_run_shows_what_was_chosen_by_hand(home):
    call(home, "--stage", "1", *FIXED, "--validation_runs", "2")
    call(home, "--stage", "3", "--best_layers", "2,7", "--max_budget_hours", "5")
    _, out, _ = ask("--staged", "--dry_run", "--exp_dir", str(newest(home)))
    assert "--aux_head_layers 2,7" in out and "--aux_head_layers 4,8" not in out
    assert "of the budget of 5.0 h" in out


def test_a_refused_command_leaves_no_override(home):
    call(home, "--stage", "1", *FIXED)
    code, _, err = ask("--stage", "4", "--max_budget_hours", "55")
    assert code == 1
    assert "stage 2 comes first" in err
    assert not (newest(home) / "overrides.json").exists()


def test_adaptive_plan_from_end_to_end(home):
    code, out, _ = call(home, "--staged", "--plan", "adaptive", "--validation_runs", "6", *FIXED)
    assert code == 0
    assert "DECISION: improves, target met" in out
    document = json.loads((newest(home) / "experiment_configs.json").read_text())
    fixed = document["registered"]
    assert fixed["plan"] == "adaptive"
    assert {"estimand", "failure_rule", "stop_on"} <= fixed.keys()
    again = call(home, "--staged", "--exp_dir", str(newest(home)), "--max_budget_hours", "5")
    assert "a larger budget does not raise its number of pairs" in again[1], again
    assert "runs to do" not in again[1]
    assert fixed["profile"]["design"]["alpha"] == 0.05


def test_experiment_and_phase_by_hand(home):
    code, out, _ = call(home, "--experiment", "baseline,aux_4_8", "--seeds", "7,8", *FIXED)
    assert code == 0
    assert "[4/4]" in out
    assert "improvement +0.1" in out
    seeds = {
        json.loads(path.read_text())["run"]["seed"] for path in newest(home).rglob("config.json")
    }
    assert seeds == {7, 8}
    code, out, _ = call(home, "--phase", "screening", "--runs", "1", *FIXED)
    assert "screen_aux_3_6_9" in out


def test_unet_skips_and_gradient_norms_are_of_every_run_and_on_record(home):
    asked = ("--unet_skips", "--log_grad_norms")
    code, _, err = call(home, "--experiment", "baseline,aux_4_8", *asked, *FIXED)
    assert code == 0, err
    exp_dir = newest(home)
    for name in ("baseline", "aux_4_8"):
        config = json.loads((exp_dir / name / "run_0" / "config.json").read_text())
        assert set(asked) <= set(config["command"])
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    fixed = document["registered"]
    assert fixed["unet_skips"] and fixed["log_grad_norms"]
    assert call(home, "--exp_dir", str(exp_dir))[0] == 0  # as registered, without being told again

    call(home, "--experiment", "baseline", *FIXED)
    code, _, err = ask("--exp_dir", str(newest(home)), "--unet_skips")
    assert code == 1
    assert "unet_skips: registered false, now true" in err


def test_a_folder_with_a_space_is_quoted_where_it_may_be_pasted(home):
    _, out, _ = call(home, "--stage", "1", "--output_dir", "my runs", *FIXED)
    (pasted,) = re.findall(r"Report and figures: (.*)", out)
    assert shlex.split(pasted)[-1].startswith("my runs/aux_heads_")


def test_runs_side_by_side_give_the_same_decisions(home):
    call(home, "--staged", *FIXED, "--validation_runs", "3")
    alone = newest(home)
    call(home, "--staged", *FIXED, "--validation_runs", "3", "--parallel_runs", "3")
    packed = newest(home)
    assert alone != packed
    decisions = [
        {
            number: stage["decision"]["numbers"]
            for number, stage in json.loads((folder / "staged_ablation_results.json").read_text())[
                "stages"
            ].items()
        }
        for folder in (alone, packed)
    ]
    assert decisions[0] == decisions[1]


def test_every_record_has_what_reproduces_it(home):
    call(home, "--experiment", "aux_4_8", *FIXED)
    config = json.loads(next(newest(home).rglob("config.json")).read_text())
    assert {"run", "attempt", "command", "env", "launched", "machine", "versions"} <= config.keys()
    assert {"git", "code", "data"} <= config.keys()
    assert config["versions"]["torch"].startswith("2.")


# ---------------------------------------------------------------------------------------------
# Before anything runs


def test_dry_run_prints_every_command_and_writes_nothing(home):
    code, out, _ = call(home, "--staged", "--dry_run", *FIXED, "--max_budget_hours", "7")
    assert code == 0
    commands = [line for line in out.splitlines() if "--nproc_per_node" in line]
    assert len(commands) == 36
    assert re.search(r"stage 4 final validation: +16 runs to do", out)
    assert re.search(r"total: .* of the budget of 7.0 h", out)
    assert not (home / "experiments").exists()


def test_a_printed_command_can_be_pasted(home):
    _, out, _ = call(home, "--staged", "--dry_run", *FIXED)
    printed = next(line for line in out.splitlines() if "--nproc_per_node" in line)
    done = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("summary: ")


def test_a_printed_command_is_one_line_whatever_a_path_is_called(home):
    (home / "shards").rename(home / "a\x1b[31mb\nc")
    odd = [*FIXED[:2], "--data_dir", "a\x1b[31mb\nc", *FIXED[4:]]
    _, out, _ = ask("--staged", "--dry_run", *odd)
    printed = next(line for line in out.splitlines() if "--nproc_per_node" in line)
    assert printed.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {printed.partition('--data_dir ')[2]}"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.startswith(str(home / "a\x1b[31mb\nc"))


def test_dry_run_says_what_the_budget_cuts(home):
    _, out, _ = ask("--staged", "--dry_run", "--profile", "speedrun", *FIXED[:4])
    assert "cut by the budget: stage 4:" in out


def test_a_budget_too_small_for_the_final_stage_says_what_to_change(home):
    _, out, _ = ask("--staged", "--dry_run", *FIXED, "--max_budget_hours", "0.01")
    for part in ("before the final validation", "--profile", "--full_iterations", "--max_budget"):
        assert part in out


def test_golden_command_line(monkeypatch):
    monkeypatch.setenv("TORCHRUN", "torchrun")
    e = experiment(profile=PROFILES["speedrun"], full_iterations=5100, processes=8, device="cuda")
    run = RunConfig(2, ARMS["aux_4_8"], 0, 2000, 5100)
    words = command.build_command(e, run, code_at("train_gpt.py"), Path("data/fineweb"), Path(""))
    assert shlex.join(words) == (
        "torchrun --standalone --nnodes=1 --local-addr=127.0.0.1 --nproc_per_node=8"
        " --log-dir=/dev/null train_gpt.py --num_iterations 5100"
        " --n_layer 12 --n_head 6 --model_dim 768 --vocab_size 50304 --sequence_length 1024"
        " --cooldown_frac 0.7 --batch_size 512 --device_batch_size 64 --muon_lr 0.025"
        " --embed_lr 0.7 --head_lr 0.004 --scalar_lr 0.015 --val_tokens 10485760"
        " --val_loss_every 125 --aux_token_fraction 0.125 --data_dir data/fineweb"
        " --aux_head_layers 4,8 --aux_loss_weight 0.1 --aux_loss_schedule constant --seed 2000"
        " --device cuda --log_file train_log.txt"
    )


def test_on_a_cluster_the_profile_goes_by_the_gpus_that_are_asked_for(home):
    """The login node, where nobody names a profile, has no GPU."""
    on_cluster = ("--staged", "--dry_run", "--launcher", "slurm", "--num_gpus")
    _, out, _ = ask(*on_cluster, "16", "--nodes_per_run", "2")
    assert "Profile speedrun: 16 GPUs are asked for (4 or more)." in out
    assert "--batch_size 512 --device_batch_size 32 " in out
    assert "Profile mini: no GPU is asked for." in ask(*on_cluster, "0")[1]


def test_compiled_code_is_shared_by_the_runs_of_an_experiment():
    for launcher in ("local", "slurm"):
        e = experiment(device="cuda", launcher=launcher)
        found = command.extra_environment(e, Path("experiments/x"))["TORCHINDUCTOR_CACHE_DIR"]
        assert found == str(Path("experiments/x/compile_cache").resolve())
    assert "TORCHINDUCTOR_CACHE_DIR" not in command.extra_environment(experiment(), Path())


def test_packed_runs_share_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,7")
    e = experiment(device="cuda", processes=2, parallel_runs=2)
    shares = [command.extra_environment(e, Path(), slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)]
    assert shares == ["3,1", "0,7"]


def test_list_shows_every_arm(home):
    code, out, _ = ask("--list")
    assert code == 0
    for name in ARMS:
        assert re.search(rf"^  {name} ", out, re.MULTILINE), name
    assert out.splitlines() == [line.rstrip() for line in out.splitlines()]


# ---------------------------------------------------------------------------------------------
# Mistakes: one line, the value, the remedy, and nothing written


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["nothing to do", "--staged"]),
        (["--stagd"], ["--stagd"]),
        (["--stage", "5"], ["--stage 5", "1, 2, 3 and 4"]),
        (["--stage", "one"], ["'one'"]),
        (["--stage", "2"], ["no experiment in experiments/", "--staged"]),
        (["--staged", "--profile", "huge"], ["huge", "speedrun, small, mini"]),
        (["--list", "--json"], ["--json goes with --status"]),
        (["--staged", "--max_budget_hours", "0"], ["--max_budget_hours 0", "above 0"]),
        (["--staged", "--max_budget_hours", "nan"], ["nan"]),
        (["--staged", "--full_iterations", "-3"], ["-3", "above 0"]),
        (["--staged", "--num_gpus", "2"], ["2 GPU(s)", "--num_gpus 0"]),
        (["--staged", "--gpus_per_run", "1"], ["--gpus_per_run 1", "--parallel_runs"]),
        (["--staged", "--seeds", "1,2"], ["--experiment"]),
        (["--experiment", "aux_48"], ["aux_48", "aux_4_8"]),
        (["--experiment", "aux_4", "--seeds", "1,x"], ["'1,x'"]),
        (["--experiment", "aux_4", "--seeds", "1,2", "--runs", "3"], ["--runs 3"]),
        (["--phase", "layers"], ["layers", "layer_position"]),
        (["--stage", "3", "--best_layers", "0"], ["--best_layers 0", "1 to 11"]),
        (["--stage", "3", "--best_layers", "12"], ["--best_layers 12", "1 to 11"]),
        (["--stage", "4", "--best_layers", "4", "--best_weight", "-1"], ["-1", "above 0"]),
        (["--stage", "4", "--best_layers", "4", "--best_schedule", "up"], ["up", "cosine_decay"]),
        (["--stage", "4", "--best_weight", "0.2"], ["--best_layers is needed"]),
        (["--staged", "--data_dir", "nowhere"], ["nowhere", "python data/prepare.py"]),
        (["--staged", "--train_script", "nothing.py"], ["nothing.py"]),
        (["--staged", "--exp_dir", "shards"], ["shards", "experiment_configs.json"]),
        (["--status", "--exp_dir", "nowhere"], ["nowhere"]),
        (["--status", "--alpha", "0.01"], ["--alpha goes with --staged or --plan_report"]),
        (["--list", "--screen"], ["--screen goes with --staged or --plan_report"]),
        (["--staged", "--screen"], ["--screen", "--plan adaptive"]),
        (["--staged", "--plan", "adaptive", "--alpha", "2"], ["--alpha 2", "below 0.5"]),
        (
            ["--staged", "--plan", "adaptive", "--max_budget_hours", "0.03"],
            ["a budget of 0.03 h leaves", "give --max_budget_hours 0.0"],
        ),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(home, arguments, parts):
    defaults = [
        part
        for flag, value in zip(FIXED[:-1:2], FIXED[1::2], strict=True)
        if flag not in arguments
        for part in (flag, value)
    ]
    code, _, err = ask(*arguments, *defaults)
    assert code in (exit_codes.USAGE, exit_codes.REFUSED)
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("run_aux.py: error: ")
    for part in parts:
        assert part in err
    assert not (home / "experiments").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--stagd"], exit_codes.USAGE),  # the parser's own
        (["--staged", "--max_budget_hours", "nan"], exit_codes.USAGE),
        (["--staged", "--data_dir", "nowhere"], exit_codes.REFUSED),
    ],
)
def test_a_mistake_is_the_same_to_a_shell(home, arguments, code):
    before = sorted(home.rglob("*"))
    arguments = [*arguments, "--train_script", str(FAKE), "--profile", "mini"]
    assert call(home, *arguments) == ask(*arguments)
    assert call(home, *arguments)[0] == code
    assert sorted(home.rglob("*")) == before


def test_stage_3_before_stage_2(home):
    call(home, "--stage", "1", *FIXED)
    code, _, err = ask("--stage", "3")
    assert code == 1
    assert "stage 2 comes first" in err
    assert "--best ARM" in err


def test_what_differs_from_the_registered_experiment_is_named(home):
    call(home, "--stage", "1", *FIXED)
    code, _, err = ask("--stage", "2", "--full_iterations", "77", "--plan", "adaptive")
    assert code == 1
    assert 'plan: registered "classic", now "adaptive"' in err
    assert "full_iterations: registered" in err


def test_a_corrupt_experiment_file_is_named(home):
    call(home, "--stage", "1", *FIXED)
    path = newest(home) / "experiment_configs.json"
    path.write_text("{")
    code, _, err = ask("--status", "--exp_dir", str(path.parent))
    assert code == 1
    assert "experiment_configs.json" in err
    assert len(err.splitlines()) == 1


def test_status_in_words_and_for_programs(home):
    call(home, "--stage", "1", *FIXED)
    folder = str(newest(home))
    _, out, _ = ask("--status", "--exp_dir", folder)
    assert "done 4" in out
    _, out, _ = call(home, "--status", "--exp_dir", folder, "--json")
    assert len(json.loads(out)["done"]) == 4


# ---------------------------------------------------------------------------------------------
# The real thing


def test_all_stages_with_the_real_trainer_through_to_the_figures(tmp_path):
    """As in the README, at the smallest scale that trains at all: the first stage as it is, the
    others without torchrun's own import of torch and with a short validation, which would be most
    of what so short a run costs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def run(*command, **settings):
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        ).stdout

    run("data/prepare.py")
    began = run(
        *("run_aux.py", "--stage", "1", "--profile", "mini", "--full_iterations", "5"),
        *("--validation_runs", "2", "--max_budget_hours", "2"),
        *("--parallel_runs", "2", "--output_dir", str(tmp_path)),
    )
    folder = next(tmp_path.glob("aux_heads_*"))
    went_on = run(
        *("run_aux.py", "--staged", "--ignore_gate", "--exp_dir", str(folder)),
        TORCHRUN=shlex.join([sys.executable, str(SUPPORT / "quick_torchrun.py")]),
        QUICK_ARGUMENTS="--val_tokens 2048",
    )
    assert "📊 STAGE 1 RESULTS:" in began
    for stage in (2, 3, 4):
        assert f"📊 STAGE {stage} RESULTS:" in went_on
    assert "24 ok" in went_on
    run("analyze_aux.py", "--exp_dir", str(folder))
    for name in ("val_loss_comparison", "layer_ablation", "training_curves"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    assert "final_best" in (folder / "analysis_report.txt").read_text()


def test_next_step_of_a_fresh_experiment_is_the_screening():
    runs = next_step(replace(experiment(), plan="classic"), []).runs
    assert [run.stage for run in runs] == [1, 1, 1, 1]
