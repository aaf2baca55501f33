"""run_aux.py --preflight, as a person uses it: what it tries, what it says, what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import run_aux
from ablation.execute import survey
from ablation.execute.checklist import AFTER, ALLOWED_S, BEFORE
from ablation.execute.preflight import END_S, TO_DIE_S
from ablation.execute.watcher import GRACE_S
from ablation.plan import power
from tests.support.invent import experiment
from tests.support.processes import TOKEN, wait_until_gone

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "support" / "fake_train.py"
SHARED = ("--train_script", str(FAKE), "--data_dir", "shards", "--profile")
FIXED = (*SHARED, "mini")


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_aux.py"), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments, **environment):
    run = start(*arguments, **environment)
    out, err = run.communicate(timeout=120)
    assert "Traceback" not in out + err, out + err
    return run.returncode, out, err


def asked(*arguments, **environment):
    """A preflight for programs: exit code, what it found, and its lines by their names."""
    code, out, err = call("--preflight", "--json", *arguments, **environment)
    found = json.loads(out)
    assert found["exit_code"] == code, err
    assert found == json.loads(Path("preflight.json").read_text())
    return code, found, {line["name"]: line for line in found["lines"]}


# ---------------------------------------------------------------------------------------------
# A machine that is fit


def test_it_tries_two_arms_and_leaves_one_small_file(home):
    before = {path.name for path in home.iterdir()}
    code, out, err = call("--preflight", *FIXED, FAKE_SECONDS="6")
    assert code == 0, out + err
    assert {path.name for path in home.iterdir()} - before == {"preflight.json"}
    assert (home / "preflight.json").stat().st_size < 10_000
    for name in (*BEFORE, *AFTER):
        assert f"  {name}  " in out or f"  {name} " in out
    assert "pass  baseline         baseline: 10 steps in" in out
    assert "screen_aux_3_6_9: " in out
    assert "s after the order, 6 s allowed" in out
    assert "the largest --device_batch_size: not asked on a CPU" in out
    assert "stage 4 final validation:" in out
    assert "smallest effect to be found: 8 pairs fit; MDE80 " in out
    assert "unlike the profile's prior: start-up and validations take" in out
    assert out.rstrip().endswith(
        f"python run_aux.py --staged {' '.join(FIXED)} --preflight_file preflight.json"
    )


def test_every_line_has_a_level_a_value_and_where_needed_a_remedy(home):
    code, found, lines = asked(*FIXED, FAKE_SECONDS="6")
    assert code == 0
    assert [*lines] == [*BEFORE, *AFTER]
    for line in lines.values():
        assert line["level"] in ("pass", "warn")
        assert line["value"]
        assert bool(line["remedy"]) == (line["level"] == "warn")
    assert found["forecast"]["hours"] < found["forecast"]["budget_hours"]
    assert found["first_costs"]["train_ratio"] == pytest.approx(0.95, abs=0.05)


def test_packed_runs_are_tried_packed(home):
    trace = home / "trace"
    code, _, lines = asked(*FIXED, "--parallel_runs", "2", FAKE_SECONDS="8", FAKE_TRACE=str(trace))
    assert code == 0
    assert "(2 side by side)" in lines["baseline"]["value"]
    assert "(2 side by side)" in lines["dearest arm"]["value"]
    assert "the first and the last run side by side" in lines["evenness"]["value"]
    assert len({line.split()[1] for line in trace.read_text().splitlines()}) == 4


def test_a_trainer_of_several_files_runs_from_a_copy_and_its_folder_stays_as_it_was(home):
    mine = home / "mine"
    mine.mkdir()
    (mine / "train.py").write_text("import sys, engine\nsys.exit(engine.main())\n")
    (mine / "engine.py").write_text(FAKE.read_text())
    code, _, lines = asked("--train_script", "mine/train.py", *FIXED[2:], FAKE_SECONDS="6")
    assert code == 0, lines
    assert lines["trainer"]["value"].startswith("train.py, engine.py; --check is not known to it")
    assert sorted(path.name for path in mine.iterdir()) == ["engine.py", "train.py"]


def test_by_hand_the_dearest_of_the_arms_asked_for_is_tried(home):
    code, _, lines = asked(*FIXED, "--experiment", "aux_6,aux_4_8", FAKE_SECONDS="6")
    assert code == 0
    assert lines["dearest arm"]["value"].startswith("aux_4_8: ")


def test_an_experiment_that_goes_on_is_tried_as_it_was_registered(home):
    assert call("--experiment", "baseline,aux_6", *FIXED)[0] == 0
    (exp_dir,) = (home / "experiments").iterdir()
    files = sorted(exp_dir.rglob("*"))
    code, found, lines = asked("--exp_dir", str(exp_dir))
    assert (code, found["plan"]) == (0, "manual")
    assert lines["dearest arm"]["value"].startswith("aux_6: ")
    assert sorted(exp_dir.rglob("*")) == files
    assert len(list((home / "experiments").iterdir())) == 1


# ---------------------------------------------------------------------------------------------
# What it measured may be registered


def test_its_costs_are_registered_and_a_resume_sees_the_same(home):
    assert asked(*FIXED, FAKE_SECONDS="6")[0] == 0
    costs = json.loads((home / "preflight.json").read_text())["first_costs"]
    begin = ("--stage", "1", *FIXED, "--preflight_file", "preflight.json")
    code, out, err = call(*begin)
    assert code == 0, err
    assert "First costs from preflight.json" in out
    (exp_dir,) = (home / "experiments").iterdir()
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    assert document["registered"]["first_costs"] == costs
    (home / "preflight.json").unlink()
    assert call("--stage", "2", "--exp_dir", str(exp_dir))[0] == 0


def test_a_dry_run_goes_by_them_and_offers_to_measure(home):
    _, out, _ = call("--staged", "--dry_run", *FIXED)
    offer = out.splitlines()[-1]
    assert offer.endswith(f"python run_aux.py --staged --preflight {' '.join(FIXED)}")
    assert asked(*FIXED, FAKE_SECONDS="6")[0] == 0
    _, measured, _ = call("--staged", "--dry_run", *FIXED, "--preflight_file", "preflight.json")
    assert "First costs from preflight.json" in measured
    assert "start-up and validations 0.0" in measured


def test_the_plan_report_goes_by_them(home, monkeypatch, capsys):
    monkeypatch.setattr(power, "render", lambda e, progress: json.dumps(asdict(e.first_costs)))
    assert asked(*FIXED, FAKE_SECONDS="6")[0] == 0
    costs = json.loads(Path("preflight.json").read_text())["first_costs"]
    by_them = ("--preflight_file", "preflight.json")
    assert run_aux.main(["--plan_report", *FIXED, *by_them]) == 0
    told, numbers = capsys.readouterr()[0].splitlines()
    assert told.startswith("First costs from preflight.json")
    assert json.loads(numbers) == costs
    assert run_aux.main(["--plan_report", *FIXED, "--unet_skips", *by_them]) == 1
    assert "unet_skips: measured false, now true" in capsys.readouterr()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--unet_skips",), "unet_skips: measured false, now true"),
        (("--parallel_runs", "2"), "share.parallel_runs: measured 1, now 2"),
        (("--train_script", str(ROOT / "tests/support/quick_torchrun.py")), "trainer: measured"),
    ],
)
def test_costs_of_another_run_are_refused(home, arguments, words):
    assert asked(*FIXED)[0] == 0
    code, _, err = call("--staged", *FIXED, *arguments, "--preflight_file", "preflight.json")
    assert code == 1
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (home / "experiments").exists()


def test_a_budget_that_no_verdict_fits_in_is_told_with_the_command_to_begin(home):
    words = (*FIXED, "--plan", "adaptive", "--max_budget_hours")
    assert "Begin with what was measured: python" in call("--preflight", *words, "5")[1]
    out = call("--preflight", *words, "0.0001")[1]
    assert "No verdict: " in out
    assert "Begin with what was measured, and with the budget that a verdict takes: python" in out


def test_costs_hold_whatever_is_to_be_concluded(home):
    """What a budget decides is asked again and again, with other terms, of one preflight."""
    assert asked(*FIXED)[0] == 0
    terms = ("--plan", "adaptive", "--sigma0", "0.01", "--max_budget_hours", "0.2")
    code, out, err = call("--plan_report", *FIXED, *terms, "--preflight_file", "preflight.json")
    assert (code, err) == (0, "")
    assert "sd between seeds 0.01" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("{}", "no field 'measured_for'"),
        ('{"measured_for": {}, "first_costs": null}', "gave no costs"),
        ('{"measured_for": {}, "first_costs": {"train_ratio": -1, "rest_ratio": 1}}', "-1"),
        ('{"measured_for": [], "first_costs": null}', "no object"),
    ],
)
def test_a_file_that_holds_no_costs_is_refused_in_one_line(home, text, words):
    Path("preflight.json").write_text(text)
    code, _, err = call("--staged", *FIXED, "--preflight_file", "preflight.json")
    assert code == 1
    assert words in err
    assert len(err.splitlines()) == 1


def test_no_other_file_is_written_over(home):
    Path("notes.json").write_text('{"mine": 1}\n')
    code, _, err = call("--preflight", *FIXED, "--preflight_file", "notes.json")
    assert code == 1
    assert "notes.json: not what --preflight writes" in err
    assert Path("notes.json").read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("other", ["--dry_run", "--status", "--list", "--plan_report"])
def test_it_is_not_asked_for_beside_what_shows(home, other):
    code, _, err = call("--preflight", other, *FIXED)
    assert code == 2
    assert "--preflight goes with runs to come" in err


# ---------------------------------------------------------------------------------------------
# Bad input: a line, and the exit code

BAD_TRAINERS = {  # what the fake trainer does as the baseline: exit code, words of its line
    "crash": (3, "crashed: exit code 1: RuntimeError: a cable was cut"),
    "refuse": (4, "refused: train.py: error: --batch_size 3"),
    "truncated": (3, "no summary line"),
    "nan": (3, "diverged: non-finite loss"),
    "oom": (3, "out of memory"),
}


@pytest.mark.parametrize("mischief", BAD_TRAINERS)
def test_a_trainer_that_does_not_train_is_a_line_and_an_exit_code(home, mischief):
    wanted, words = BAD_TRAINERS[mischief]
    code, found, lines = asked(*FIXED, FAKE_MISCHIEF=json.dumps({"": mischief}))
    assert code == wanted
    assert lines["baseline"]["level"] == "fail"
    assert words in lines["baseline"]["value"]
    assert lines["baseline"]["remedy"]
    assert "did not train" in lines["dearest arm"]["value"]
    assert found["first_costs"] is None
    code, _, err = call("--staged", *FIXED, "--preflight_file", "preflight.json")
    assert code == 1 and "gave no costs" in err


def test_an_arm_that_crashes_is_told_beside_a_baseline_that_trains(home):
    code, found, lines = asked(*FIXED, FAKE_MISCHIEF='{"3,6,9": "crash"}')
    assert code == 3
    assert lines["baseline"]["level"] == "pass"
    assert "a cable was cut" in lines["dearest arm"]["value"]
    assert found["first_costs"]


def test_a_trainer_that_prints_nothing_is_told(home):
    Path("mute.py").write_text("print()\n")
    code, _, lines = asked("--train_script", "mute.py", *FIXED[2:])
    assert code == 3
    assert "exit code 0, but no summary line" in lines["baseline"]["value"]


def test_a_trainer_that_logs_seldom_is_tried_for_a_few_steps(home):
    """The fake one logs four times in a run, whatever --val_loss_every says."""
    long = (*FIXED, "--full_iterations", "100000", "--max_budget_hours", "1000")
    code, _, lines = asked(*long, FAKE_SECONDS="6")
    assert code == 0, lines
    assert ": 10 steps in " in lines["dearest arm"]["value"]
    assert "s after the order" in lines["stop"]["value"]


def test_a_trainer_that_hangs_and_does_not_hear_ends_in_the_time_allowed(home, token):
    began = time.monotonic()
    code, _, lines = asked(*FIXED, FAKE_MISCHIEF='{"": "stubborn"}')
    assert time.monotonic() - began < ALLOWED_S["cpu"]
    assert code == 3
    assert "stopped after its time limit" in lines["baseline"]["value"]
    assert lines["baseline"]["remedy"].startswith("it hangs")
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


def test_at_the_scale_of_gpus_it_ends_in_the_time_allowed_too(two_gpus, token, monkeypatch, capsys):
    """Whatever does not end: runs on two GPUs at once, deaf to the order."""
    two_gpus()
    allowed_s = TO_DIE_S["gpu"] + END_S + 3
    monkeypatch.setitem(ALLOWED_S, "gpu", allowed_s)
    monkeypatch.setenv("FAKE_MISCHIEF", '{"": "stubborn"}')
    began = time.monotonic()
    code = run_aux.main(["--preflight", "--json", *ON_GPUS, "--gpus_per_run", "1"])
    assert 3 < time.monotonic() - began < allowed_s
    lines = {line["name"]: line for line in json.loads(capsys.readouterr()[0])["lines"]}
    assert (code, lines["baseline"]["level"]) == (3, "fail")
    assert lines["baseline"]["remedy"].startswith("it hangs")
    assert wait_until_gone(os.environ[TOKEN]) == 0


def test_a_run_that_does_not_hear_the_order_is_killed_within_its_grace(home, token):
    """Children in sessions of their own, which ignore SIGTERM."""
    slow = Path("slow.py")
    slow.write_text(FAKE.read_text().replace('"stubborn") and step:', '"stubborn") and step > 60:'))
    code, _, lines = asked(
        "--train_script", "slow.py", *FIXED[2:], FAKE_MISCHIEF='{"3,6,9": "stubborn"}',
        FAKE_SECONDS="2",
    )  # fmt: skip
    assert code == 0, lines
    assert float(lines["stop"]["value"].partition(" s after")[0]) >= GRACE_S
    assert lines["stop"]["level"] in ("pass", "warn")  # on a busy machine it ends late


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (("--data_dir", "nowhere"), "data", "no *_train_*.bin shard in"),
        (("--train_script", "nothing.py"), "trainer", "no such file"),
        (("--profile", "speedrun"), "profile", "2 steps and their validations take"),
        (("--launcher", "slurm"), "launcher", "there is no sbatch here"),
    ],
)
def test_what_can_be_known_before_starts_nothing(home, monkeypatch, arguments, name, words):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, lines = asked(*FIXED, "--num_gpus", "0", *arguments)
    assert code == 1
    assert [x["name"] for x in lines.values() if x["level"] == "fail"] == [name]
    assert words in lines[name]["value"]
    assert lines[name]["remedy"]
    assert "baseline" not in lines


def test_a_launcher_that_is_not_there_is_a_line(home, monkeypatch):
    monkeypatch.setenv("TORCHRUN", "no_such_launcher")
    code, _, lines = asked(*FIXED)
    assert (code, lines["launcher"]["level"]) == (1, "fail")


def test_a_damaged_shard_is_told_by_its_checksum(home):
    import hashlib

    names = sorted(path.name for path in Path("shards").iterdir())
    sums = {name: hashlib.sha256(b"tokens").hexdigest() for name in names}
    whole = hashlib.sha256("".join(f"{n} {s}\n" for n, s in sums.items()).encode()).hexdigest()
    rows = [{"name": n, "bytes": 6, "sha256": s} for n, s in sums.items()]
    about = {"fingerprint": f"sha256:{whole}", "files": rows}
    Path("shards/fingerprint.json").write_text(json.dumps(about))
    assert "2 of 2 checksums right" in asked(*FIXED)[2]["data"]["value"]
    Path("shards", names[0]).write_bytes(b"TOKENS")
    code, _, lines = asked(*FIXED)
    assert (code, lines["data"]["level"]) == (1, "fail")
    assert f"{names[0]}: not what was recorded" in lines["data"]["value"]


@pytest.mark.parametrize(("rounds_s", "told_s"), [((0.5, 0.001, 9.0), 0.001), ((3.0,) * 3, 3.0)])
def test_a_busy_moment_is_not_a_slow_disk(home, monkeypatch, rounds_s, told_s):
    monkeypatch.setattr(survey, "ROUNDS", len(rounds_s))
    monkeypatch.setattr(survey, "read_shard", lambda *_: SimpleNamespace(is_known=True))
    left = iter(rounds_s)
    monkeypatch.setattr(survey, "one_round_s", lambda *_: next(left))
    shards = SimpleNamespace(data_dir=Path("shards"))
    found = [("x_train_000000.bin", 10_000)]
    assert survey.seconds_to_read(experiment(), shards, found, most_s=60.0) == told_s
    assert next(left, None) is None


def test_where_no_time_is_left_one_window_tells_of_all(monkeypatch):
    read = []
    monkeypatch.setattr(survey.os, "pread", lambda *place: read.append(place))
    monkeypatch.delattr(survey.os, "posix_fadvise", raising=False)
    clock = iter((10.0, 10.5, 10.5))
    monkeypatch.setattr(survey.time, "monotonic", lambda: next(clock))
    assert survey.one_round_s([(7, 8 * k) for k in range(4)], 8, until_s=10.0) == 4 * 0.5
    assert read == [(7, 8, 0)]


def test_ctrl_c_leaves_no_process_and_no_file(home, token):
    before = {path.name for path in home.iterdir()}
    trace = home / "trace"
    run = start("--preflight", *FIXED, FAKE_SECONDS="300", FAKE_TRACE=str(trace))
    while not trace.exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, out + err
    assert "stopped; its short runs are ended" in err
    assert wait_until_gone(os.environ[TOKEN]) == 0
    assert {path.name for path in home.iterdir()} - before == {"trace"}


def test_what_a_killed_one_left_is_swept_by_the_next(home, token):
    """And nothing of one that lives, of a link or of a folder that only has the name."""
    begun = []
    for name in ("killed", "lives"):
        begun.append(start("--preflight", *FIXED, "--preflight_file", f"{name}.json",
                           FAKE_SECONDS="300", FAKE_TRACE=str(home / name)))  # fmt: skip
        while not Path(name).exists():
            time.sleep(0.05)
    killed, lives = begun
    killed.kill()
    killed.communicate()
    Path(".preflight_link").symlink_to("shards", target_is_directory=True)
    Path(".preflight_new").mkdir()
    for name, content in (("old", None), ("other", '{"host": "elsewhere", "pid": 1}')):
        folder = Path(f".preflight_{name}")
        folder.mkdir()
        if content:
            (folder / "lock.json").write_text(content)
            os.utime(folder / "lock.json", (0, 0))
        os.utime(folder, (0, 0))
    before = {path.name for path in home.glob(".preflight_*")}
    assert len(before) == 6
    assert asked(*FIXED)[0] == 0
    left = {path.name for path in home.glob(".preflight_*")}
    assert len(left) == 3 and {".preflight_link", ".preflight_new"} < left
    assert len([*Path("shards").iterdir()]) == 2
    lives.send_signal(signal.SIGTERM)
    lives.communicate(timeout=30)
    assert {path.name for path in home.glob(".preflight_*")} == {
        ".preflight_link",
        ".preflight_new",
    }


# ---------------------------------------------------------------------------------------------
# GPUs, by a program nvidia-smi that knows two

SMI = """#!/bin/sh
case "$1" in
-L) ;;
*=index,uuid,name) printf '0, GPU-a, H100, 80GB\\n1, GPU-b, H100, 80GB\\n' ;;
*memory.total*) printf '0, GPU-a, 81559, USED, 1980, 1980, 61, H100, 80GB\\n'
                printf '1, GPU-b, 81559, 30000, [N/A], 1980, 60, H100, 80GB\\n' ;;
*event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field'; exit 2 ;;
*throttle_reasons*) printf 'GPU-a, 0x0000000000000004\\nGPU-b, 0x0000000000000000\\n' ;;
*compute-apps*) OTHERS ;;
esac
"""


@pytest.fixture
def two_gpus(home, monkeypatch):
    """Makes the program; what it says of memory in use, slowing and other processes."""
    (home / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def make(used="500", others="true", reasons="0x0000000000000004"):
        script = SMI.replace("USED", used).replace("OTHERS", others)
        path = home / "bin" / "nvidia-smi"
        path.write_text(script.replace("0x0000000000000004", reasons))
        path.chmod(0o755)

    return make


ON_GPUS = (*SHARED, "small", "--full_iterations", "60")


def test_one_run_on_two_gpus_is_tried_on_the_first_and_the_last_alone(two_gpus):
    two_gpus()
    code, _, lines = asked(*ON_GPUS, "--num_gpus", "2", FAKE_SECONDS="12")
    assert code == 0, lines
    assert lines["GPUs"]["value"] == "2 x H100, 80GB, 2 used"
    assert "the first and the last GPU: 120 ms and 120 ms a step" in lines["evenness"]["value"]
    assert lines["network"]["value"] == "2 GPUs do the work of 1.0"
    assert lines["network"]["level"] == "warn"
    assert lines["clocks"]["value"].startswith("1980 MHz at the least of 1980, 61 C at the most")
    assert "30000" not in lines["memory"]["value"]
    assert "the largest that fits: 32, " not in lines["memory"]["value"]


def test_packed_runs_get_gpus_of_their_own(two_gpus):
    two_gpus()
    code, _, lines = asked(*ON_GPUS, "--gpus_per_run", "1", FAKE_SECONDS="12")
    assert code == 0, lines
    assert "the first and the last run side by side" in lines["evenness"]["value"]
    assert lines["network"]["value"] == "not asked: a run is one process"


def test_a_gpu_in_use_by_somebody_else_starts_nothing(two_gpus):
    two_gpus(used="60000", others="printf 'GPU-a, 4711, 59000, python, mine\\n'")
    code, _, lines = asked(*ON_GPUS)
    assert code == 1
    assert lines["other processes"]["level"] == "fail"
    assert "python, mine (process 4711, 59000 MiB) on GPU-a" in lines["other processes"]["value"]
    assert lines["GPU memory"]["level"] == "warn"
    assert "baseline" not in lines


def test_a_card_that_its_temperature_slows_is_told(two_gpus):
    two_gpus(reasons="0x0000000000000024")
    code, _, lines = asked(*ON_GPUS, FAKE_SECONDS="12")
    assert (code, lines["clocks"]["level"]) == (0, "warn")
    assert "GPU-a: slowed by its temperature" in lines["clocks"]["value"]


def test_where_memory_is_too_small_the_largest_pass_that_trains_is_found(two_gpus):
    two_gpus()
    code, _, lines = asked(*ON_GPUS, "--gpus_per_run", "1", FAKE_FITS="8", FAKE_SECONDS="12")
    assert code == 3
    assert "out of memory" in lines["baseline"]["value"]
    assert lines["baseline"]["remedy"] == "give --device_batch_size 8, with which it trained"


BROKEN_TOOLS = {
    "echo 'GPU is lost'; exit 15": "nvidia-smi: exit code 15: GPU is lost",
    "echo 'GPU 0: no idea'": "nvidia-smi: lists no GPU: GPU 0: no idea",
    "echo '[Unknown Error], [Unknown Error], x'": "nvidia-smi: lists a GPU that it cannot name",
}


@pytest.mark.parametrize("script", BROKEN_TOOLS)
def test_a_gpu_tool_that_fails_is_a_line(two_gpus, script):
    two_gpus()
    Path("bin/nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    code, _, lines = asked(*ON_GPUS)
    assert (code, lines["GPUs"]["level"]) == (1, "fail")
    assert BROKEN_TOOLS[script] in lines["GPUs"]["value"]
    assert "give --num_gpus N" in lines["GPUs"]["remedy"]
    assert [*lines] == [*BEFORE], "and what else can be seen"
    assert [x["name"] for x in lines.values() if x["level"] == "fail"] == ["GPUs"]
    code, _, lines = asked(*ON_GPUS, "--num_gpus", "1", FAKE_SECONDS="3")
    assert (code, lines["GPUs"]["level"]) == (0, "warn")
    assert f"1 asked for: unknown ({BROKEN_TOOLS[script]}" in lines["GPUs"]["value"]
    assert lines["other processes"]["value"] == "not told by nvidia-smi"


def test_nothing_but_a_preflight_goes_on_where_gpus_cannot_be_counted(two_gpus):
    two_gpus()
    Path("bin/nvidia-smi").write_text("#!/bin/sh\nexit 15\n")
    code, _, err = call("--staged", *ON_GPUS)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "give --num_gpus N" in err


def test_a_gpu_tool_that_hangs_takes_its_time_once(two_gpus, monkeypatch, capsys):
    two_gpus()
    Path("bin/nvidia-smi").write_text("#!/bin/sh\necho asked >> asked\nsleep 99\n")
    monkeypatch.setattr("ablation.execute.machine.PATIENCE_S", 0.5)
    assert run_aux.main(["--preflight", *ON_GPUS, "--gpus_per_run", "1"]) == 1
    assert (
        "fail  GPUs             not counted (nvidia-smi: did not answer" in capsys.readouterr()[0]
    )
    assert Path("asked").read_text() == "asked\n"
    monkeypatch.setenv("FAKE_SECONDS", "3")
    assert run_aux.main(["--preflight", *ON_GPUS, "--num_gpus", "1"]) == 0


def test_a_gpu_tool_that_hangs_later_takes_its_time_once(two_gpus):
    two_gpus(others="sleep 99")
    began = time.monotonic()
    assert [gpu.uuid for gpu in survey.gpu_states(1.0)] == ["GPU-a", "GPU-b"]
    assert time.monotonic() - began < 3


def test_gpus_without_a_tool_are_a_line(two_gpus, monkeypatch, capsys):
    two_gpus()
    Path("bin/nvidia-smi").unlink()
    Path("dev").mkdir()
    Path("dev/nvidia0").touch()
    monkeypatch.setattr("ablation.execute.machine.ROOT_FOLDER", Path().resolve())
    assert run_aux.main(["--preflight", *ON_GPUS]) == 1
    out, err = capsys.readouterr()
    assert "dev/nvidia0 is there, but no program nvidia-smi to ask" in out
    assert not err


# ---------------------------------------------------------------------------------------------
# The real trainer


def test_the_real_trainer_at_mini(home, monkeypatch):
    monkeypatch.delenv("TORCHRUN")
    subprocess.run([sys.executable, str(ROOT / "data" / "prepare.py")], check=True)
    began = time.monotonic()
    code, _, lines = asked("--profile", "mini")
    assert time.monotonic() - began < ALLOWED_S["cpu"] + 5  # the start of Python, on a busy machine
    assert code in (0, 3), lines  # 3: too busy to train in time
    if code == 0:
        assert lines["baseline"]["value"].startswith("baseline: 10 steps in")
        assert "checksums right" in lines["data"]["value"]
        assert "of a step" in lines["reading"]["value"]
        assert "MiB a process" in lines["memory"]["value"]
