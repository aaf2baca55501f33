"""A run of the trainer: what it computes, against slow references; what it prints and refuses."""

import io
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import train_gpt
from aux_heads import SCHEDULES, draw_layer, sample_positions
from train_gpt import (
    GPT,
    AdamW,
    Muon,
    Rotary,
    Trainer,
    Windows,
    World,
    build_parser,
    cooldown,
    open_shard,
    orthogonalize,
)

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "support"
CPU = torch.device("cpu")
V, T = 23, 16
STEPS = 6
SHAPE = {
    "--n_layer": 4,
    "--n_head": 2,
    "--model_dim": 16,
    "--vocab_size": V,
    "--sequence_length": T,
    "--num_iterations": STEPS,
    "--batch_size": 8,
    "--device_batch_size": 8,
    "--val_tokens": 10 * T,
    "--val_loss_every": 4,
    "--muon_lr": 0.02,
    "--embed_lr": 0.2,
    "--head_lr": 0.06,
    "--device": "cpu",
}
HEADS = {"--aux_head_layers": "1,3", "--aux_loss_weight": 0.5, "--aux_token_fraction": 0.25}


def write_shard(path: Path, tokens, header=(20240520, 1, None)) -> Path:
    """A shard of the FineWeb format; header fields and length may be made to lie."""
    fields = np.zeros(256, dtype="<i4")
    fields[:3] = [len(tokens) if field is None else field for field in header]
    path.write_bytes(fields.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


def text(length: int, seed: int) -> np.ndarray:
    """Tokens that a model can learn: each is the one before it plus a small random number."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.integers(0, 3, length)) % V


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two training shards and one for validation, no length a multiple of T."""
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "text_train_000001.bin", text(9_000, 1))
    write_shard(folder / "text_train_000002.bin", text(4_001, 2))
    write_shard(folder / "text_val_000000.bin", text(1_000, 3))
    return folder


def arguments(data_dir: Path, changes: dict | None = None) -> list[str]:
    options = SHAPE | {"--data_dir": data_dir} | (changes or {})
    return [str(part) for option in options.items() for part in option if part is not None]


@dataclass
class Ran:
    """What one run left behind."""

    code: int
    out: str
    err: str

    def losses(self, kind: str) -> list[str]:
        return re.findall(rf" {kind}_loss:(\S+)", self.out)

    @property
    def summary(self) -> dict:
        return json.loads(self.out.splitlines()[-1].removeprefix("summary: "))


@pytest.fixture
def run(data):
    return lambda changes=None: alone(arguments(data, changes))


def alone(argv: list[str]) -> Ran:
    """Run the trainer in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = train_gpt.main(argv)
        except SystemExit as end:
            code = end.code
    return Ran(code, out.getvalue(), err.getvalue())


TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def torchrun(processes: int, argv: list[str], program: tuple[str, ...] = TORCHRUN) -> Ran:
    command = [sys.executable, *program, f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, str(ROOT / "train_gpt.py"), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Ran(done.returncode, done.stdout, done.stderr)


quick_torchrun = partial(torchrun, program=(str(SUPPORT / "quick_torchrun.py"),))


def trainer(data: Path, changes: dict | None = None, world=None) -> Trainer:
    args = build_parser().parse_args(arguments(data, changes))
    world = world or World(0, 1, CPU)
    windows = [Windows(data, kind, args.sequence_length, V) for kind in ("train", "val")]
    return Trainer(args, world, *windows)


def windows_of(windows: Windows, numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, (B, T) each."""
    rows = windows.read(np.asarray(numbers))
    return rows[:, :-1], rows[:, 1:]


# ---------------------------------------------------------------------------------------------
# A run: lines, summary, seeds


def test_a_run_prints_the_lines_of_modded_nanogpt_and_a_summary(run, tmp_path):
    log = tmp_path / "logs" / "train_log.txt"
    ran = run({"--log_file": log})
    assert ran.code == 0, ran.err
    number = r"\d+\.\d{6}"
    time = r"train_time:\d+ms step_avg:\d+\.\d{2}ms"
    patterns = [
        f"step:0/6 val_loss:{number} train_time:0ms step_avg:0.00ms",
        *[f"step:{n}/6 train_loss:{number} {time}" for n in (1, 2, 3, 4)],
        f"step:4/6 val_loss:{number} {time}",
        *[f"step:{n}/6 train_loss:{number} {time}" for n in (5, 6)],
        f"step:6/6 val_loss:{number} {time}",
        r"summary: \{.*\}",
    ]
    lines = ran.out.splitlines()
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(p, line) for p, line in zip(patterns, lines, strict=True)), ran.out
    assert log.read_text() == ran.out
    summary = ran.summary
    assert f"{summary['val_loss']:.6f}" == ran.losses("val")[-1]
    assert summary["steps_done"] == STEPS
    assert summary["tokens_seen"] == STEPS * 8 * T
    vectors = V + 2 * 16 + 4 * (2 + 3 + 1 + 4 + 1) * 16  # head; two norms; a block's norms and maps
    assert summary["num_parameters"] == 2 * V * 16 + 4 * 12 * 16**2 + vectors
    assert (summary["world_size"], summary["device"]) == (1, "cpu")
    assert summary["torch"] == torch.__version__
    assert summary["step_avg_ms"] == pytest.approx(summary["train_time_ms"] / STEPS)
    assert summary["peak_memory_mib"] > 10


def test_the_first_loss_is_that_of_a_guess_and_then_it_falls(run):
    losses = run({"--num_iterations": 60}).losses("val")
    assert float(losses[0]) == pytest.approx(math.log(V), abs=1e-6)
    assert float(losses[-1]) < 0.75 * math.log(V)


@pytest.mark.parametrize("heads", [{}, HEADS], ids=["baseline", "heads"])
def test_the_same_seed_gives_the_same_losses_bit_for_bit(run, heads):
    first, again, other = run(heads), run(heads), run(heads | {"--seed": 43})
    for kind in ("train", "val"):
        assert first.losses(kind) == again.losses(kind)
        assert first.losses(kind) != other.losses(kind)
    assert first.summary["val_loss"] == again.summary["val_loss"]


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_heads_of_weight_zero_leave_the_main_path_bit_identical(run, fraction):
    plain = run()
    off = run(HEADS | {"--aux_loss_weight": 0, "--aux_token_fraction": fraction})
    assert off.losses("train") == plain.losses("train")
    assert off.summary["val_loss"] == plain.summary["val_loss"]


def test_arms_of_one_seed_share_initialisation_order_and_first_loss(data):
    """Whatever their heads: what differs later is what the heads did."""
    plain, arm = trainer(data), trainer(data, HEADS | {"--aux_unembedding": "own"})
    for (name, a), (_, b) in zip(
        plain.model.named_parameters(), arm.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert np.array_equal(plain.order, arm.order)
    assert torch.equal(plain.step(0), arm.step(0))


def test_another_seed_is_another_initialisation_and_another_order(data):
    one, other = trainer(data), trainer(data, {"--seed": 43})
    assert not torch.equal(one.model.embedding.weight, other.model.embedding.weight)
    assert not np.array_equal(one.order, other.order)


def test_existing_heads_without_weight_do_not_touch_optimizer_or_trunk(data):
    """A decay that has ended: the parameters are there, and nothing moves."""
    arm = trainer(data, HEADS | {"--aux_loss_schedule": "linear_decay"})
    plain, before = trainer(data), [p.detach().clone() for p in arm.heads.parameters()]
    for step in (4, 5):  # from 2/3 of 6 steps on the weight is zero
        assert arm.step(step).item() == plain.step(step).item()
    assert all(map(torch.equal, arm.heads.parameters(), before))


def test_heads_change_what_the_trunk_learns(run):
    plain, arm = run(), run(HEADS)
    assert arm.losses("train")[0] == plain.losses("train")[0]
    assert arm.losses("train")[3:] != plain.losses("train")[3:]


def test_heads_are_not_computed_once_their_weight_is_zero(data):
    arm, called = trainer(data, HEADS | {"--aux_loss_schedule": "cosine_decay"}), []
    arm.heads.register_forward_hook(lambda *_: called.append(1))
    counts = []
    for step in range(STEPS):
        called.clear()
        arm.step(step)
        counts.append(len(called))
    assert counts == [1, 1, 1, 1, 0, 0]


def test_validation_sees_the_main_head_only(data):
    arm = trainer(data, HEADS)
    arm.heads.register_forward_hook(lambda *_: pytest.fail("a head was computed"))
    assert arm.validate() == pytest.approx(math.log(V), abs=1e-6)


def test_after_one_step_everything_learns(data):
    """Zero-initialised projections, translators and unembeddings do not stay where they are."""
    arm = trainer(data, HEADS | {"--aux_unembedding": "own"})
    before = {}
    for step in range(4):
        arm.step(step)
        if step == 1:
            before = {n: p.detach().clone() for n, p in named(arm)}
    assert all(not torch.equal(before[name], p) for name, p in named(arm))


def named(t: Trainer):
    return [*t.model.named_parameters(), *t.heads.named_parameters()]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_weight_of_the_heads_follows_the_schedule(data, schedule):
    arm = trainer(data, HEADS | {"--aux_loss_schedule": schedule})
    for step in range(STEPS):
        assert arm.aux_weight(step) == 0.5 * SCHEDULES[schedule](step / STEPS)


@pytest.mark.parametrize(("stop", "on"), [(1.0, 6), (0.5, 3), (0.51, 4), (0.01, 1)])
def test_the_auxiliary_loss_stops_at_a_fraction_of_the_run(data, stop, on):
    arm = trainer(data, HEADS | {"--aux_stop_frac": stop})
    assert [arm.aux_weight(step) for step in range(STEPS)] == [0.5] * on + [0.0] * (STEPS - on)


def test_one_layer_a_step_leaves_the_other_heads_as_they_are(data):
    """In the step that draws it, a head learns and no other does, momentum included."""
    arm = trainer(data, HEADS | {"--aux_one_layer": None})
    for step in range(STEPS):
        drawn = draw_layer((1, 3), 42, step)
        before = [[p.detach().clone() for p in head.parameters()] for head in arm.heads.heads]
        arm.step(step)
        for layer, head, old in zip((1, 3), arm.heads.heads, before, strict=True):
            moved = [not torch.equal(a, b) for a, b in zip(head.parameters(), old, strict=True)]
            assert any(moved) == (layer == drawn)
    assert {draw_layer((1, 3), 42, step) for step in range(STEPS)} == {1, 3}


def test_one_layer_costs_the_loss_of_its_head_alone(data):
    step, arm = 2, trainer(data, HEADS | {"--aux_one_layer": None})
    drawn = draw_layer((1, 3), 42, step)
    alone = trainer(data, HEADS | {"--aux_head_layers": drawn})
    for t in (arm, alone):
        warm_up(t)
    alone.heads.heads[0].load_state_dict(arm.heads.heads[(1, 3).index(drawn)].state_dict())
    for t in (arm, alone):
        t.gradients(step, 0.5)
    for (name, a), b in zip(arm.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-7), name


# ---------------------------------------------------------------------------------------------
# The global batch: processes, passes, order


def test_one_big_pass_and_many_small_ones_accumulate_the_same_gradient(data):
    gradients = []
    for size in (8, 4, 2, 1):
        t = trainer(data, HEADS | {"--device_batch_size": size})
        warm_up(t)
        gradients.append(gradient(t))
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            assert torch.allclose(other[name], expected, rtol=1e-4, atol=1e-7), name


def warm_up(t: Trainer) -> None:
    """Give every matrix values, so that every gradient has some."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in named(t):
            p.normal_(std=0.3, generator=generator)


def gradient(t: Trainer) -> dict[str, torch.Tensor]:
    """What a step hands to the optimizers."""
    found = {}

    class Keep:
        def step(self, multiplier: float) -> None:
            found.update((name, p.grad.clone()) for name, p in named(t))

    t.optimizers = [Keep()]
    t.step(2)
    return found


def test_the_gradient_is_that_of_the_written_out_loss(data):
    """Main loss plus weight times mean over heads, of the whole batch, at the sampled positions."""
    t = trainer(data, HEADS | {"--device_batch_size": 2, "--aux_loss_schedule": "cosine_decay"})
    warm_up(t)
    accumulated = gradient(t)
    inputs, targets = windows_of(t.train, t.order[16:24])
    positions = sample_positions(8, T, 0.25, 42, 2)
    x, taps = t.model(inputs)
    log_p = t.model.unembed(x).log_softmax(-1)
    loss = -log_p.gather(-1, targets[..., None]).mean()
    for layer, head in zip((1, 3), t.heads.heads, strict=True):
        log_p = head(taps[layer], t.model.unembed).log_softmax(-1)
        all_losses = -log_p.gather(-1, targets[..., None]).squeeze(-1)
        weight = 0.5 * 0.5 * (1 + math.cos(math.pi * (2 / 6) / (2 / 3)))
        loss = loss + weight * all_losses.gather(1, positions).mean() / 2
    loss.backward()
    for name, p in named(t):
        assert torch.allclose(accumulated[name], p.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("size", [2, 4])
def test_what_processes_add_up_is_the_gradient_of_the_whole_batch(data, monkeypatch, size):
    """Its scale too, to which neither optimizer is sensitive. Here each sum is left undone."""
    undone = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: undone)
    parts = []
    for rank in range(size):
        t = trainer(data, HEADS, World(rank, size, CPU))
        warm_up(t)
        parts.append(gradient(t))
    t = trainer(data, HEADS)
    warm_up(t)
    for name, expected in gradient(t).items():
        total = sum(part[name] for part in parts)
        assert torch.allclose(total, expected, rtol=1e-4, atol=1e-6), name


NEW = "one layer, 3 ahead"


@pytest.fixture(scope="module")
def long_runs(data) -> dict:
    """50 steps with heads and skips (every kind of parameter) on 1, 2 and 4 processes."""
    common = HEADS | {"--num_iterations": 50, "--unet_skips": None}
    drawn = {"--aux_one_layer": None, "--aux_tokens_ahead": 3, "--aux_unembedding": "own"}
    options = {"all heads": common, NEW: common | drawn}

    def given(name: str, size: int) -> list[str]:
        return arguments(data, options[name] | {"--device_batch_size": size})

    with ThreadPoolExecutor(2) as beside:
        started = {  # by options, processes and sequences a pass
            (name, n, size): beside.submit(quick_torchrun, n, given(name, size))
            for name, n, size in (("all heads", 4, 1), ("all heads", 2, 2), (NEW, 2, 2))
        }
        ours = (("all heads", 2), ("all heads", 8), (NEW, 2), (NEW, 8))
        runs = {(name, 1, size): alone(given(name, size)) for name, size in ours}
        return runs | {split: run.result() for split, run in started.items()}


@pytest.mark.parametrize(
    "split",
    [*(("all heads", *s) for s in ((1, 2), (2, 2), (4, 1))), (NEW, 1, 2), (NEW, 2, 2)],
    ids=lambda split: " ".join(map(str, split)),
)
def test_processes_and_passes_do_not_change_the_losses(long_runs, split):
    """Within 1e-4 nats over 50 steps in fp32, heads on sampled positions included."""
    name, processes, _ = split
    one, other = long_runs[name, 1, 8], long_runs[split]
    assert one.code == other.code == 0, other.err
    for kind, count in (("train", 50), ("val", 14)):
        a, b = ([float(loss) for loss in r.losses(kind)] for r in (one, other))
        assert len(a) == len(b) == count
        assert np.abs(np.subtract(a, b)).max() < 1e-4
    assert other.summary["world_size"] == processes


def test_only_the_first_process_speaks(long_runs):
    assert len(long_runs["all heads", 2, 2].out.splitlines()) == 50 + 14 + 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_reads_its_windows_of_the_permutation_once(data, monkeypatch, size):
    """Of all processes together: disjoint, in order, all of them."""
    undone = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: undone)
    reads = []
    for rank in range(size):
        t = trainer(data, world=World(rank, size, CPU))
        t.optimizers, t.train = [], Recorder(t.train)
        for step in range(STEPS):
            t.step(step)
        reads.append(np.reshape(t.train.numbers, (STEPS, 8 // size)))
    assert np.array_equal(np.hstack(reads), trainer(data).order[: 8 * STEPS].reshape(STEPS, 8))


class Recorder:
    """Windows that note which of them are read."""

    def __init__(self, windows: Windows):
        self.windows, self.numbers = windows, []

    def read(self, numbers):
        self.numbers.extend(numbers)
        return self.windows.read(numbers)


# ---------------------------------------------------------------------------------------------
# Shards


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), width=st.integers(1, 9))
def test_windows_tile_each_shard_up_to_its_tail(tmp_path_factory, lengths, width):
    """Inputs of all windows: each shard from its start, without gap or repeat; targets are next."""
    folder, first, expected = tmp_path_factory.mktemp("shards"), 0, []
    for number, length in enumerate(lengths):
        tokens = np.arange(first, first + length)
        first += length
        write_shard(folder / f"x_train_{number:06}.bin", tokens)
        expected.extend(tokens[: max(0, length - 1) // width * width])
    windows = Windows(folder, "train", width, 65_536)
    assert windows.count == len(expected) // width
    if windows.count:
        inputs, targets = windows_of(windows, range(windows.count))
        assert inputs.flatten().tolist() == expected
        assert torch.equal(targets, inputs + 1)


def test_validation_is_the_mean_over_the_first_tokens_of_the_shard(data):
    t = trainer(data, {"--device_batch_size": 3})
    warm_up(t)
    tokens = torch.from_numpy(text(1_000, 3)[: 10 * T + 1].copy())
    losses = []
    for start in range(0, 10 * T, T):
        x, _ = t.model(tokens[None, start : start + T])
        logits = t.model.unembed(x)[0]
        losses.append(F.cross_entropy(logits, tokens[start + 1 : start + T + 1]).item())
    assert t.validate() == pytest.approx(np.mean(losses), abs=1e-5)


def complaint(ran: Ran) -> str:
    """The one line of a refused run."""
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("train_gpt.py: error: ")
    return line.removeprefix("train_gpt.py: error: ")


GOOD = text(4_001, 1)
DAMAGE = {
    "magic": ({"header": (1, 1, None)}, "not a token shard (magic number or version)"),
    "version": ({"header": (20240520, 2, None)}, "not a token shard (magic number or version)"),
    "cut": ({"header": (20240520, 1, 4_002)}, "4002 tokens announced, but 9026 bytes instead of"),
    "long": ({"header": (20240520, 1, 4_000)}, "4000 tokens announced, but 9026 bytes instead of"),
    "negative": ({"header": (20240520, 1, -1)}, "-1 tokens announced"),
    "token": ({"tokens": [*GOOD[:50], V, *GOOD[50:]]}, f"token {V}, but --vocab_size is {V}"),
}


@pytest.mark.parametrize("kind", ["train", "val"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_before_training(run, tmp_path, kind, damage):
    change, message = DAMAGE[damage]
    for each in ("train", "val"):
        write_shard(tmp_path / f"x_{each}_000001.bin", GOOD)
    path = tmp_path / f"x_{kind}_000001.bin"
    write_shard(path, **({"tokens": GOOD} | change))
    line = complaint(run({"--data_dir": tmp_path}))
    assert line.startswith(f"{path}: {message}")
    assert "prepare it again" in line or "another --data_dir" in line


@given(content=st.binary(max_size=1100))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_shard_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_train_0.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a token shard|tokens announced"):
        open_shard(path)


def test_a_token_beyond_the_vocabulary_far_into_a_shard_ends_the_run(run, tmp_path):
    """Beyond the first million tokens it is found in the first batch that holds one."""
    write_shard(tmp_path / "x_val_000001.bin", GOOD)
    tokens = np.repeat([0, V + 1], [1_000_000, 3_000_000])
    path = write_shard(tmp_path / "x_train_000001.bin", tokens)
    ran = run({"--data_dir": tmp_path})
    assert ran.code == 2
    assert "summary" not in ran.out
    (line,) = ran.err.splitlines()
    assert line.startswith(f"train_gpt.py: error: {path}: token {V + 1}, but --vocab_size is {V};")


def test_an_empty_shard_beside_others_holds_no_window(tmp_path):
    write_shard(tmp_path / "x_train_000001.bin", [])
    write_shard(tmp_path / "x_train_000002.bin", GOOD)
    assert Windows(tmp_path, "train", T, V).count == 4_000 // T


# ---------------------------------------------------------------------------------------------
# What is refused


REFUSED = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--batch_sise": 8}, "unrecognized arguments: --batch_sise 8; see --help"),
        ({"--batch": 8}, "unrecognized arguments: --batch 8; see --help"),
        ({"--num_iterations": "many"}, "argument --num_iterations: invalid int value: 'many'"),
        ({"--num_iterations": 0}, "--num_iterations 0: give 1 or more"),
        ({"--val_loss_every": 0}, "--val_loss_every 0: give 1 or more"),
        ({"--device_batch_size": -1}, "--device_batch_size -1: give 1 or more"),
        ({"--n_head": 3}, "--model_dim 16 and --n_head 3: the width of a head"),
        ({"--n_head": 8}, "--model_dim 16 and --n_head 8: the width of a head"),
        ({"--device_batch_size": 3}, "--device_batch_size 3 does not divide the 8 sequences"),
        ({"--cooldown_frac": 1.5}, "--cooldown_frac 1.5: give a number above 0, at most 1"),
        ({"--muon_lr": "nan"}, "--muon_lr nan: give a finite number, 0 or above"),
        ({"--embed_lr": -1}, "--embed_lr -1.0: give a finite number, 0 or above"),
        ({"--seed": -1}, "--seed -1: give 0 to 4294967295"),
        ({"--vocab_size": 70_000}, "--vocab_size 70000: tokens have 16 bits, give at most 65536"),
        ({"--aux_head_layers": "4"}, "--aux_head_layers 4: tap layers are 1 to 3"),
        ({"--aux_head_layers": "0"}, "--aux_head_layers 0: tap layers are 1 to 3"),
        ({"--aux_head_layers": "1;3"}, "argument --aux_head_layers: '1;3': give layer numbers"),
        ({"--aux_head_layers": "2,2"}, "--aux_head_layers 2,2: give each layer once"),
        ({"--aux_loss_weight": -0.1}, "--aux_loss_weight -0.1: give a finite number"),
        ({"--aux_loss_schedule": "sawtooth"}, "--aux_loss_schedule sawtooth: give one of constant"),
        ({"--aux_token_fraction": 0}, "--aux_token_fraction 0.0: give a number above 0"),
        ({"--aux_unembedding": "two"}, "argument --aux_unembedding: invalid choice: 'two'"),
        ({"--val_tokens": T - 1}, "--val_tokens 15: give 16 to 992"),
        ({"--val_tokens": 2_000}, "--val_tokens 2000: give 16 to 992"),
        ({"--num_iterations": 102}, "812 training windows of 16 tokens, but --num_iterations 102"),
        ({"--vocab_size": V - 1}, f"token {V - 1}, but --vocab_size is {V - 1}"),
        ({"--aux_stop_frac": 2}, "--aux_stop_frac 2.0: give a number above 0, at most 1"),
        ({"--aux_tokens_ahead": T + 1}, "--aux_tokens_ahead 17: give 1 (the next token) to 16"),
        ({"--log_file": "/dev/null/log"}, "--log_file /dev/null/log: no file can be written there"),
        ({"--log_file": "/dev"}, "--log_file /dev: no file can be written there"),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else "",
)


@REFUSED
def test_bad_input_is_one_line_before_any_training(run, change, message):
    assert message in complaint(run(change))


@REFUSED
def test_a_check_says_what_a_run_would(run, change, message):
    assert complaint(run(change | {"--check": None})) == complaint(run(change))


def test_a_check_of_what_can_work_is_silent_and_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "Trainer", lambda *_: pytest.fail("a trainer was built"))
    for changes in ({}, HEADS):
        ran = run(changes | {"--check": None, "--log_file": tmp_path / "logs" / "train_log.txt"})
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_check_names_a_damaged_shard(run, tmp_path, damage):
    change, message = DAMAGE[damage]
    write_shard(tmp_path / "x_train_000001.bin", **({"tokens": GOOD} | change))
    write_shard(tmp_path / "x_val_000001.bin", GOOD)
    assert message in complaint(run({"--data_dir": tmp_path, "--check": None}))


@pytest.mark.parametrize(
    ("vocab_size", "command"),
    [(256, "python data/prepare.py"), (50_304, "python data/prepare.py fineweb --shards 27")],
)
def test_missing_shards_are_answered_with_the_command_that_makes_them(
    run, tmp_path, vocab_size, command
):
    line = complaint(run({"--data_dir": tmp_path, "--vocab_size": vocab_size}))
    assert line == f"no *_train_*.bin shard in {tmp_path}; make them: {command}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(run):
    line = complaint(run({"--device": "cuda"}))
    assert line == "--device cuda: no GPU is visible to torch; give --device cpu"


def test_an_uneven_batch_is_said_once_by_two_processes(data):
    ran = torchrun(2, arguments(data, {"--batch_size": 7, "--device_batch_size": 1}))
    assert ran.code == 1  # torchrun's, for any failure
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if line.startswith("train_gpt.py: error:")]
    assert lines == [
        "train_gpt.py: error: --batch_size 7 does not divide over 2 processes; give a multiple of 2"
    ]


def test_an_unknown_option_is_said_once_by_two_processes(monkeypatch, capsys):
    monkeypatch.setattr(train_gpt, "FIRST_SPEAKS_S", 0.01)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            build_parser().parse_args(["--unknown"])
    assert capsys.readouterr().err.count("\n") == 1


def test_divergence_is_an_outcome_with_its_step(run):
    ran = run({"--muon_lr": 1e30})
    assert ran.code == 3
    *_, line, last = ran.out.splitlines()
    step = re.fullmatch(r"step:(\d)/6 train_loss:nan .*", line).group(1)
    assert last == f"diverged: train_loss is nan at step {step}/6"


def test_divergence_seen_only_by_validation(run):
    """The last update ruins the weights: no training loss shows it."""
    ran = run({"--embed_lr": 0, "--muon_lr": 1e30, "--num_iterations": 1})
    assert ran.code == 3
    assert ran.out.splitlines()[-1] == "diverged: val_loss is nan at step 1/1"


# ---------------------------------------------------------------------------------------------
# Parts of the model, against references written out


def test_rotary_turns_pairs_by_position_times_frequency():
    K = 16
    x = torch.randn(2, 3, T, K, generator=torch.Generator().manual_seed(0))
    turned = Rotary(K, T)(x)
    for t in range(T):
        for k in range(K // 2):
            # frequencies fall from 1 to 1/1024 over the first quarter; the second stands still
            angle = t * (1 / 1024) ** (k / (K // 4 - 1)) if k < K // 4 else 0.0
            a, b = x[..., t, k], x[..., t, k + K // 2]
            first = a * math.cos(angle) + b * math.sin(angle)
            second = -a * math.sin(angle) + b * math.cos(angle)
            assert torch.allclose(turned[..., t, k], first, atol=1e-5)
            assert torch.allclose(turned[..., t, k + K // 2], second, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
    rotary = Rotary(16, T)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    scores = rotary(q.expand(T, 16)) @ rotary(k.expand(T, 16)).T
    for distance in range(T):
        along = scores.diagonal(-distance)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-4)


def small_model(*flags: str) -> GPT:
    torch.manual_seed(0)
    changes = {flag: None for flag in flags}
    model = GPT(build_parser().parse_args(arguments(Path(), changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_logits_are_capped_at_15():
    model = small_model()
    x = torch.randn(5, 16) * 100
    z = x.double() @ model.head.weight.double().T + model.head.bias
    expected = 15 * z / torch.sqrt(z**2 + 15**2)
    capped = model.unembed(x)
    assert torch.allclose(capped, expected.float(), atol=1e-4)
    assert capped.abs().max() <= 15


def slow_forward(model: GPT, tokens) -> torch.Tensor:
    """One sequence, position by position, as the equations say."""
    rms = lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True))  # noqa: E731
    n, waiting = len(model.blocks), []
    x = x0 = rms(model.embedding.weight[tokens]) * model.first_norm.gain
    for layer, block in enumerate(model.blocks):
        if model.mix is not None:
            if layer >= n // 2:
                x = x + model.skips[layer - n // 2] * waiting.pop()
            x = model.mix[layer, 0] * x + model.mix[layer, 1] * x0
        heads, normed = [], rms(x) * block.attention_norm.gain
        weights, biases = block.qkv.weight, block.qkv.bias.view(3, 16)
        for head in torch.arange(16).split(8):
            q, k, v = (normed @ weights[i, head].T + biases[i, head] for i in range(3))
            q, k = model.rotary(rms(q)), model.rotary(rms(k))
            rows = []
            for t in range(len(tokens)):
                scores = 1.36 / math.sqrt(8) * (k[: t + 1] @ q[t])
                rows.append(scores.softmax(0) @ v[: t + 1])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, dim=1) @ block.out.weight.T + block.out.bias
        up = rms(x) * block.mlp_norm.gain @ block.up.weight.T + block.up.bias
        x = x + torch.relu(up) ** 2 @ block.down.weight.T + block.down.bias
        if layer < n // 2:
            waiting.append(x)
    return rms(x) * model.last_norm.gain


@pytest.mark.parametrize("flags", [(), ("--unet_skips",)])
def test_the_model_is_the_one_of_the_equations(flags):
    model = small_model(*flags)
    tokens = torch.from_numpy(text(T, 9).copy())
    assert torch.allclose(model(tokens[None])[0][0], slow_forward(model, tokens), atol=2e-4)


def test_a_position_sees_nothing_after_it():
    model, tokens = small_model(), torch.from_numpy(text(T, 9).copy())[None]
    changed = tokens.clone()
    changed[0, 10:] = 0
    assert torch.equal(model(tokens)[0][:, :10], model(changed)[0][:, :10])


# ---------------------------------------------------------------------------------------------
# Optimizers


@pytest.mark.parametrize(
    ("progress", "fraction", "multiplier"),
    [
        (0.0, 0.7, 1.0),
        (0.29, 0.7, 1.0),
        (0.3, 0.7, 1.0),
        (0.65, 0.7, 0.5),
        (1.0, 0.7, 0.0),
        (0.0, 1.0, 1.0),
        (0.5, 1.0, 0.5),
        (0.99, 0.01, 1.0),
    ],
)
def test_cooldown_is_constant_then_linear_to_zero(progress, fraction, multiplier):
    assert cooldown(progress, fraction) == pytest.approx(multiplier)


def test_both_optimizers_follow_the_cooldown(data):
    t, seen = trainer(data), []
    for optimizer in t.optimizers:
        optimizer.step = seen.append
    for step in range(STEPS):
        t.step(step)
    expected = [min(1.0, (1 - step / STEPS) / 0.7) for step in range(STEPS)]
    assert seen == pytest.approx([m for m in expected for _ in t.optimizers])


def test_adamw_is_that_of_torch():
    ours, theirs = [nn.Parameter(torch.ones(5, 3)) for _ in range(2)]
    mine = AdamW([ours], lr=0.1)
    library = torch.optim.AdamW([theirs], 0.1, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.001)
    for step in range(5):
        gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for p in (ours, theirs):
            p.grad = gradient.clone()
        library.param_groups[0]["lr"] = 0.1 * cooldown(step / 5, 0.7)
        library.step()
        mine.step(cooldown(step / 5, 0.7))
    assert torch.allclose(ours, theirs, atol=1e-6)


SHAPES = [(3, 16, 16), (16, 16), (64, 16), (16, 64)]


FIVE_EQUAL_STEPS = ((3.4445, -4.7750, 2.0315),) * 5  # of torch.optim.Muon


def test_but_for_its_steps_muon_is_that_of_torch(monkeypatch):
    """The library's works in bf16 and matrix by matrix; ours in batches, here in bf16 too."""
    monkeypatch.setattr(train_gpt, "POLAR_EXPRESS", FIVE_EQUAL_STEPS)
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    ours = [nn.Parameter(p.clone()) for p in start]
    theirs = [nn.Parameter(m.clone()) for p in start for m in p.view(-1, *p.shape[-2:])]
    world = type("Bf16", (World,), {"dtype": torch.bfloat16})(0, 1, CPU)
    mine = Muon(ours, 0.02, world)
    library = torch.optim.Muon(theirs, 0.02, weight_decay=0.05, momentum=0.95, nesterov=True)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for p in ours:
            p.grad = torch.randn(p.shape, generator=generator)
        flat = [m for p in ours for m in p.grad.view(-1, *p.shape[-2:])]
        for p, g in zip(theirs, flat, strict=True):
            p.grad = g.clone()
        library.param_groups[0]["lr"] = 0.02 * cooldown(step / 4, 0.7)
        library.step()
        mine.step(cooldown(step / 4, 0.7))
    moved = [m for p in ours for m in p.detach().view(-1, *p.shape[-2:])]
    first = [m for p in start for m in p.view(-1, *p.shape[-2:])]
    for a, b, origin in zip(moved, theirs, first, strict=True):
        assert (a - b).norm() < 0.02 * (b - origin).norm()


def with_singular_values(values: torch.Tensor) -> torch.Tensor:
    """A wide matrix that has these, random otherwise, (1, R, 4R)."""
    generator = torch.Generator().manual_seed(0)
    size = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(n, size, generator=generator))[0] for n in (size, 4 * size)
    )
    return (left * values @ right.mT).unsqueeze(0)


SPECTRA = {
    "down to 1/1000 of the norm": torch.logspace(-2.3, 0, 64),
    "all equal": torch.ones(64),
    "almost of rank one": torch.tensor([1.0] + [0.002] * 63),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 0.126), (torch.bfloat16, 0.15)])
def test_orthogonalized_singular_values_are_near_one(name, dtype, within):
    x = with_singular_values(SPECTRA[name])
    values = torch.linalg.svdvals(orthogonalize(x.to(dtype)).float())
    assert (values - 1).abs().max() < within


def test_the_least_singular_value_grows_five_hundredfold_and_none_overshoots():
    x = with_singular_values(torch.logspace(-6, 0, 64))
    values = torch.linalg.svdvals(orthogonalize(x)).flatten()
    assert values.max() < 1.126
    assert values.min() > 500 * 1e-6


def test_orthogonalizing_turns_no_singular_vector():
    x = with_singular_values(torch.logspace(-2, 0, 64)).double()
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    values = left.mT @ orthogonalize(x) @ right.mT
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < 1e-6


def test_each_step_of_the_polar_express_is_the_best_that_follows_the_steps_before():
    """An odd quintic is nearest to 1 on an interval when its error is as large, with signs in turn,
    at four points (Chebyshev): the two ends and the two extrema between."""
    low, high = 1e-3, 1.0
    for a, b, c in train_gpt.POLAR_EXPRESS:
        root = math.sqrt(9 * b * b - 20 * a * c)
        between = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
        points = np.array([low, *between, 1.01 * high])
        assert np.all(np.diff(points) > 0)
        values = a * points + b * points**3 + c * points**5
        errors = (1 - values) * [1, -1, 1, -1]
        assert errors == pytest.approx(errors[0], abs=2e-3)
        low, high = values[:2]
    assert errors.max() < 0.126


def test_a_matrix_without_gradient_is_left_alone():
    p = nn.Parameter(torch.ones(4, 4))
    Muon([p], 0.1, World(0, 1, CPU)).step(1.0)
    AdamW([p], 0.1).step(1.0)
    assert torch.equal(p, torch.ones(4, 4))


# ---------------------------------------------------------------------------------------------
# Start-up


def test_a_run_on_the_cpu_imports_no_compiler_and_importing_does_nothing(data):
    """torch._dynamo alone would cost a second of each run."""
    program = (
        "import sys, train_gpt\n"
        "assert 'argparse' in sys.modules\n"
        f"code = train_gpt.main({arguments(data, HEADS)!r})\n"
        "heavy = ('torch._dynamo', 'torch._inductor', 'sympy', 'scipy', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules], code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_help_has_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        train_gpt.main(["--help"])
    text = capsys.readouterr().out
    others = [
        "--check",
        "--aux_unembedding",
        "--aux_one_layer",
        "--aux_stop_frac",
        "--aux_tokens_ahead",
    ]
    assert all(option in text for option in [*SHAPE, *HEADS, *others, "--unet_skips"])
