"""The check for whoever has a GPU: its table, its arithmetic, and its measurements on a CPU that
does what a GPU does."""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_gpt
from ablation.study.profiles import PROFILES
from benchmarks import gpu_check, step_time
from benchmarks.gpu_check import ROWS, Check, farthest, peak_flops, utilisation
from benchmarks.table import Line, Row, measure
from tests.support import fake_rows
from tests.support.fake_rows import Fake
from tests.support.processes import survivors

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"

# ---------------------------------------------------------------------------------------------
# The table


def said(*names: str, minutes: float = 1.0, fake: Fake | None = None, **fields):
    """(all was measured, what was said) of rows of tests/support/fake_rows.py."""
    rows, lines = [Row(name, getattr(fake_rows, name), 1, **fields) for name in names], []
    complete = measure(rows, fake or Fake(), minutes, lines.append)
    return complete, [(line.what, line.measured) for line in lines]


def test_a_failed_measurement_is_a_line_and_the_next_goes_on():
    complete, lines = said("bad", "killed", "good")
    assert not complete
    assert lines == [
        ("before", "1.0"),
        ("bad", "failed: RuntimeError: a / b broke"),
        ("before", "1.0"),
        ("killed", "failed: its process ended with -6"),
        ("first", "4"),
        ("second", "2.0"),
    ]


def test_what_is_not_as_wanted_is_measured_all_the_same():
    assert said("good")[0]
    line = Line("a", "2.0", "at most 1", False)
    assert str(line) == "| a | 2.0 | at most 1 | missed |"
    assert str(replace(line, met=True)) == "| a | 2.0 | at most 1 | met |"
    assert str(Line("a", "2.0")) == "| a | 2.0 |  |  |"


def test_a_line_is_said_while_its_measurement_goes_on_and_the_time_limit_leaves_nothing(token):
    started, heard = time.monotonic(), []
    rows = [Row("endless", fake_rows.endless, 1), Row("good", fake_rows.good, 1)]

    def say(line):
        heard.append((line.what, line.measured, time.monotonic() - started))

    assert not measure(rows, Fake(), 3 / 60, say)
    assert [words for *words, _ in heard] == [
        ["before", "1.0"],
        ["endless", "cut off: the time is up"],
        ["good", "not started: takes about 1 s, 0 are left"],
    ]
    assert heard[0][2] < 2.5 < heard[1][2] < 10
    for _ in range(50):
        if not survivors(token):
            break
        time.sleep(0.1)
    assert not survivors(token), "the processes that it started are gone too"


def test_what_takes_longer_than_is_left_makes_room_for_what_does_not():
    rows = [Row("long", fake_rows.endless, 90), Row("good", fake_rows.good, 20)]
    lines = []
    assert not measure(rows, Fake(), 0.5, lines.append)
    assert re.fullmatch(r"not started: takes about 90 s, (29|30) are left", lines[0].measured)
    assert [line.what for line in lines[1:]] == ["first", "second"]


def test_what_needs_more_cards_than_there_are_is_no_failure():
    assert said("good", cards=2) == (True, [("good", "not here: needs 2 cards")])
    assert len(said("good", cards=2, fake=Fake(cards=2))[1]) == 2


def test_what_ran_out_of_memory_is_tried_again_smaller_and_so_is_all_that_follows():
    complete, lines = said("large", "good")
    assert complete
    assert [what for what, _ in lines] == ["before", "large", "before", "fits", "first", "second"]
    assert lines[1][1].startswith("failed: RuntimeError: CUDA out of memory")
    assert len(lines[1][1]) < 1200
    assert lines[3:5] == [("fits", "2"), ("first", "2")]
    complete, lines = said("too_large")
    assert (complete, [m[-1] for _, m in lines]) == (False, ["4", "2", "1"])


# ---------------------------------------------------------------------------------------------
# Arithmetic

H100 = "NVIDIA H100 80GB HBM3"
CARDS = {
    H100: 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": None,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": None,
    "NVIDIA GH200 480GB": None,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "AMD Instinct MI300X": 1307.4e12,
    "NVIDIA A10G": None,
    "NVIDIA L40": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb": None,
    "Tesla T4": None,
}


@pytest.mark.parametrize("card", CARDS)
def test_the_peak_is_that_of_the_card_or_not_known(card):
    assert peak_flops(card) == CARDS[card]


@pytest.fixture
def on_a(monkeypatch):
    def on_a(card: str) -> Check:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
        return Check(cards=1)

    return on_a


@pytest.mark.parametrize(("share", "met"), [(0.51, True), (0.49, False)])
def test_utilisation_is_the_models_flops_over_the_peak(on_a, share, met):
    """124M: 85M in the blocks and 39M in the head multiply, six FLOPs each for a token."""
    matrices = 12 * (4 + 8) * 768**2 + 50304 * 768
    attention = 12 * 6 * 1024 * 768  # each position looks at half of the others
    flops = (6 * matrices + attention) * 512 * 1024
    line = utilisation(on_a(H100), PROFILES["speedrun"], flops / (share * 989e12), cards=1)
    assert line.measured.startswith(f"{share:.3f} of 989 TFLOP/s ({share * 989:.3g} TFLOP/s")
    assert (line.wanted, line.met) == ("at least .50 on an H100", met)
    eight = utilisation(on_a(H100), PROFILES["speedrun"], flops / (share * 8 * 989e12), cards=8)
    assert (eight.measured, eight.met) == (line.measured, None)


def test_an_unknown_card_says_so(on_a):
    line = utilisation(on_a("Tesla T4"), PROFILES["speedrun"], 10.0, cards=1)
    assert line.measured.startswith("not known: no peak of 'Tesla T4' in PEAK_FLOPS (41.8 TFLOP/s")
    assert line.met is None
    on_another = utilisation(on_a("NVIDIA A100-SXM4-80GB"), PROFILES["speedrun"], 1.0, cards=1)
    assert on_another.met is None, "the goal is one of the H100"


def test_less_memory_halves_the_sequences_of_a_pass():
    check, tried = Check(cards=1), []
    while check:
        scales = [check.profile(name).own_scale for name in ("speedrun", "small")]
        batches = [scale.device_batch_size for scale in scales]
        tried.append(tuple(batches))
        check = check.smaller()
    assert tried[:3] == [(64, 32), (32, 32), (16, 16)]
    assert tried[-1] == (1, 1)


def test_the_farthest_tensor_counts_and_nearly_nothing_does_not():
    ones = [torch.ones(4), torch.full((4,), 1e-9)]
    assert farthest(ones, ones) == 0
    assert farthest(ones, [1.1 * ones[0], ones[1]]) == pytest.approx(0.1)
    assert farthest(ones, [ones[0], 3 * ones[1]]) == pytest.approx(2e-6)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        farthest(ones, ones[:1])


# ---------------------------------------------------------------------------------------------
# The measurements, emulated


@pytest.fixture
def emulated(monkeypatch):
    """A check in this process, whose trainer is itself again afterwards."""
    monkeypatch.setattr(train_gpt.World, "dtype", train_gpt.World.dtype)
    monkeypatch.setattr(train_gpt.Trainer, "__init__", train_gpt.Trainer.__init__)
    monkeypatch.setattr(train_gpt.Trainer, "warm_up", train_gpt.Trainer.warm_up)
    monkeypatch.setattr(torch, "compile", torch.compile)
    monkeypatch.setattr(step_time, "peak_on_cpu", step_time.peak_on_cpu)
    check = Check(cards=2, emulated=True)
    check.begin()
    return check


def lines(function, check: Check) -> dict[str, Line]:
    return {line.what: line for line in function(check)}


def test_the_speedrun_is_timed_compiled_and_in_bf16(emulated, monkeypatch):
    streams, compiled = set(), step_time.graphs_compiled()
    whole = train_gpt.GPT.loss

    def loss(self, x, *rest):
        streams.add(x.dtype)
        return whole(self, x, *rest)

    monkeypatch.setattr(train_gpt.GPT, "loss", loss)
    found = lines(gpu_check.speedrun, emulated)
    assert streams == {torch.bfloat16}
    assert step_time.graphs_compiled() - compiled >= 2, "a block and a loss"
    assert float(found["speedrun on 1 card, ms a step"].measured.split()[0]) > 0
    assert found["speedrun on 1 card, ms a step"].measured.endswith("16 steps)")
    assert found["speedrun on 1 card, peak MiB"].measured.endswith("(2 a pass)")
    assert found["speedrun on 1 card, utilisation"].measured.startswith("not known")


def test_a_slow_card_is_timed_for_fewer_steps(emulated, monkeypatch):
    monkeypatch.setattr(step_time.Arm, "step", lambda self: 20_000.0)
    found = lines(gpu_check.speedrun, emulated)
    assert found["speedrun on 1 card, ms a step"].measured.endswith("3 steps)")


def test_heads_are_measured_against_the_baseline_the_one_with_a_goal_first(emulated, monkeypatch):
    monkeypatch.setattr(gpu_check, "TURNS", 1)
    found = list(gpu_check.heads(emulated))
    label = re.compile(r"`(\w+)` at ([\d.]+) of the positions, step over the baseline's")
    arms = [label.fullmatch(line.what).groups() for line in found[:-1]]
    assert arms == [
        (arm, share) for share in ("0.125", "1.0") for arm in ("aux_4_8", "aux_6", "aux_3_6_9")
    ]
    flops = [float(re.search(r"by FLOPs ([\d.]+);", line.measured)[1]) for line in found[:-1]]
    assert flops[1] < flops[0] < flops[2] < flops[4] < flops[3] < flops[5]
    assert [line.wanted for line in found] == ["at most 1.05", "", "", "", "", "", "0"]
    assert (found[-1].measured, found[-1].met) == ("0", True)


def test_recompilations_are_counted_from_the_first_validation_on(emulated, monkeypatch):
    found = list(gpu_check.recompilations(emulated))
    assert [line.what.split("`")[1] for line in found] == ["baseline", "aux_4_8"]
    assert all(re.match(r"0 \(4 validations, \d+ graphs", line.measured) for line in found)
    assert all(line.met for line in found)


def test_a_recompilation_is_seen(emulated, monkeypatch):
    counts = iter(range(5, 100))
    monkeypatch.setattr(gpu_check, "graphs_compiled", lambda: next(counts))

    def three_validations(_, log):
        for step in range(3):
            log.loss("val", step, 1.0, 1.0)

    monkeypatch.setattr(train_gpt, "train", three_validations)
    baseline, _ = gpu_check.recompilations(emulated)
    assert (baseline.measured, baseline.met) == ("2 (3 validations, 5 graphs at the first)", False)


@pytest.fixture
def quickly(monkeypatch):
    """torchrun's place is taken by one process that forks."""
    words = (sys.executable, str(SUPPORT / "quick_torchrun.py"))
    monkeypatch.setenv("TORCHRUN", shlex.join(words))


def test_small_is_run_by_the_command_of_an_experiment_on_real_text(
    emulated, quickly, monkeypatch, tmp_path
):
    p = step_time.rescaled(PROFILES["small"], **gpu_check.TINY)
    step_time.write_random_shards(tmp_path, p, 6, 3)
    monkeypatch.setitem(PROFILES, "small", replace(PROFILES["small"], data_dir=str(tmp_path)))
    commands, start = [], subprocess.run

    def run(command, **how):
        commands.append(command)
        return start(command, **how)

    monkeypatch.setattr(subprocess, "run", run)
    found = lines(gpu_check.small, emulated)
    assert len(commands) == 1
    assert str(SUPPORT / "emulated_gpu.py") in commands[0]
    assert f"--data_dir {tmp_path}" in " ".join(commands[0])
    loss = found["small on 1 card, val loss after 6 iterations"].measured
    assert re.fullmatch(r"4\.[12]\d{3} \(real text\)", loss), "log 64 is 4.159"
    assert float(found["small on 1 card, ms a step of the run"].measured.split()[0]) > 0
    assert "(the profile's prior: 120 on one GPU)" in str([*found.values()])
    assert float(found["small on 1 card, peak MiB of the run"].measured) > 100


def test_a_folder_without_enough_text_is_not_used(tmp_path):
    p = step_time.rescaled(PROFILES["small"], **gpu_check.TINY)
    needed = {"train": 6 * p.own_scale.batch_size, "val": 3}
    assert not gpu_check.holds(tmp_path / "nowhere", p, needed)
    step_time.write_random_shards(tmp_path, p, 5, 3)
    assert not gpu_check.holds(tmp_path, p, needed)
    step_time.write_random_shards(tmp_path, p, 6, 3)
    assert gpu_check.holds(tmp_path, p, needed)
    assert not gpu_check.holds(tmp_path, step_time.rescaled(p, vocab_size=32), needed)


def test_a_run_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHRUN", "false")
    check = Check(cards=1, emulated=True)
    with pytest.raises(RuntimeError, match="crashed: exit code 1"):
        gpu_check.run(check, check.profile("small"), 6, 1, tmp_path)


@pytest.mark.parametrize("broken", [False, True])
def test_two_processes_have_the_gradients_of_one(emulated, monkeypatch, broken):
    if broken:
        nothing = SimpleNamespace(wait=lambda: None)
        monkeypatch.setattr(train_gpt.dist, "all_reduce", lambda *_, **how: nothing)
    forked = partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "spawn", forked)
    [line] = gpu_check.processes(emulated)
    worst = float(line.measured.split()[0])
    assert worst > 0.1 if broken else worst < 1e-5
    assert line.met is not broken


# ---------------------------------------------------------------------------------------------
# The command line


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path / "out.md")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no GPU, nothing was measured" in err
    assert not [*tmp_path.iterdir()]


def test_a_file_that_cannot_be_written_is_refused(tmp_path, capsys):
    out = tmp_path / "nowhere" / "out.md"
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--emulate", "--out", str(out)])
    assert f"error: --out {out}: No such file or directory" in capsys.readouterr().err


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--only", "heads,tails"])
    assert f"--only tails: give some of {', '.join(row.name for row in ROWS)}" in (
        capsys.readouterr().err
    )


def test_the_script_itself_can_be_tried_anywhere_and_adds_to_its_file(tmp_path):
    words = ["--emulate", "--only", "card", "--out", tmp_path / "out.md"]
    (tmp_path / "out.md").write_text("before\n")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_check.py", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.md").read_text() == f"before\n{done.stdout}"
    assert "EMULATED" in done.stdout
    assert done.stdout.endswith("| cards | 2, the first: an emulated GPU |  |  |\n")


def test_ten_minutes_are_enough_on_one_card_by_the_estimates():
    assert sum(row.takes_s for row in ROWS if row.cards == 1) <= 600
    assert [row.name for row in ROWS][:3] == ["card", "speedrun", "heads"]
