"""Muon shared by processes, losses in chunks, compiled blocks: the same numbers for less."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_gpt
from train_gpt import GPT, Muon, World, build_parser, cooldown, softcapped, summed_loss

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "support"
CPU = torch.device("cpu")
SHAPES = [(3, 16, 16), (16, 16), (64, 16), (16, 64), (2, 24, 8), (5, 40)]
STEPS = 6


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(params: list[nn.Parameter], world: World) -> list[torch.Tensor]:
    muon = Muon(params, 0.02, world)
    for step in range(STEPS):
        for p, gradient in zip(params, gradients(step), strict=True):
            p.grad = gradient
        muon.step(cooldown(step / STEPS, 0.7))
    return [p.detach() for p in params]


# ---------------------------------------------------------------------------------------------
# Muon


def test_in_fp32_muon_is_that_of_torch_to_rounding_but_for_its_steps(monkeypatch):
    """The library iterates in bf16, whatever it is given; here it is kept from rounding to that."""
    monkeypatch.setattr(train_gpt, "POLAR_EXPRESS", ((3.4445, -4.7750, 2.0315),) * 5)
    ours = train(start(), World(0, 1, CPU))
    theirs = [nn.Parameter(m.clone()) for p in start() for m in p.detach().view(-1, *p.shape[-2:])]
    library = torch.optim.Muon(theirs, 0.02, weight_decay=0.05, momentum=0.95, nesterov=True)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    for step in range(STEPS):
        flat = [m for g in gradients(step) for m in g.view(-1, *g.shape[-2:])]
        for p, g in zip(theirs, flat, strict=True):
            p.grad = g.clone()
        library.param_groups[0]["lr"] = 0.02 * cooldown(step / STEPS, 0.7)
        library.step()
    flat = [m for p in ours for m in p.view(-1, *p.shape[-2:])]
    for a, b in zip(flat, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), a.shape


WORKER = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch, torch.distributed as dist
from test_muon import start, train
from train_gpt import World
dist.init_process_group("gloo")
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
muon = train(start(), World(rank, size, torch.device("cpu")))
torch.save(muon, sys.argv[1] + str(rank))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("size", [2, 5])
def test_processes_share_the_work_and_agree_bit_for_bit(tmp_path, size):
    """Also where a batch has fewer matrices than there are processes."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [SUPPORT / "quick_torchrun.py", f"--nproc_per_node={size}"]
    done = subprocess.run(
        [sys.executable, *command, tmp_path / "worker.py", tmp_path / "rank"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    alone = train(start(), World(0, 1, CPU))
    parts = [torch.load(tmp_path / f"rank{rank}") for rank in range(size)]
    for part in parts:
        for a, b, first in zip(part, alone, parts[0], strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
            assert torch.equal(a, first)


def test_a_process_iterates_over_its_share_only(monkeypatch):
    seen = []

    def orthogonalize(x):
        seen.append(tuple(x.shape))
        return x

    monkeypatch.setattr(train_gpt, "orthogonalize", orthogonalize)
    monkeypatch.setattr(World, "gather", lambda self, part: (part.repeat(4, 1, 1), lambda: None))
    Muon(params := start(), 0.02, world := World(1, 4, CPU))
    train(params, world)
    assert seen[:4] == [(1, 16, 16), (1, 16, 64), (1, 8, 24), (1, 5, 40)]


# ---------------------------------------------------------------------------------------------
# The loss in chunks


@pytest.fixture
def at_most(monkeypatch):
    """Set how many logits there may be at once; all shapes that are built are written down."""

    def limited(logits: int) -> list[tuple]:
        seen = []
        monkeypatch.setitem(train_gpt.LOGITS_AT_ONCE, "cpu", logits)

        def watched(x, matrix, bias):
            seen.append((len(x), len(matrix)))
            return softcapped(x, matrix, bias)

        monkeypatch.setattr(train_gpt, "softcapped", watched)
        return seen

    return limited


def model(*arguments: str) -> GPT:
    shape = "--n_layer 3 --n_head 2 --model_dim 16 --vocab_size 29 --sequence_length 8"
    torch.manual_seed(0)
    gpt = GPT(build_parser().parse_args([*shape.split(), *arguments]))
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(std=0.3)
    return gpt


@pytest.mark.parametrize(("logits", "parts"), [(10**9, 1), (29 * 40, 1), (29 * 39, 2), (29 * 6, 8)])
@pytest.mark.parametrize("own", [False, True])
def test_a_loss_in_chunks_has_the_value_and_gradients_of_the_whole(at_most, logits, parts, own):
    seen = at_most(logits)
    gpt = model()
    other = [nn.Parameter(torch.randn(shape)) for shape in ((29, 16), (29,))] if own else []
    x = torch.randn(5, 8, 16, requires_grad=True)
    targets = torch.randint(29, (5, 8))
    matrix, bias = other or (gpt.head.weight, gpt.head.bias)

    loss = gpt.loss(x, targets, *other)
    (0.3 * loss).backward()
    got = loss.item(), x.grad, matrix.grad, bias.grad
    assert len(seen) == parts
    assert all(positions * vocabulary <= logits for positions, vocabulary in seen)

    x.grad = matrix.grad = bias.grad = None
    z = x @ matrix.T + bias
    whole = F.cross_entropy((15 * z / (z**2 + 225).sqrt()).flatten(0, 1), targets.flatten())
    (0.3 * whole).backward()
    assert got[0] == pytest.approx(whole.item(), abs=1e-6)
    for ours, p in zip(got[1:], (x, matrix, bias), strict=True):
        assert torch.allclose(ours, p.grad, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        assert gpt.loss(x, targets, *other).item() == pytest.approx(whole.item(), abs=1e-6)


def test_in_bf16_matrix_and_bias_keep_their_gradients_in_fp32(at_most):
    at_most(29 * 6)
    gpt = model()
    x = torch.randn(5, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    loss = gpt.loss(x, torch.randint(29, (5, 8)))
    loss.backward()
    assert (loss.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    assert gpt.head.weight.grad.dtype == gpt.head.bias.grad.dtype == torch.float32


# ---------------------------------------------------------------------------------------------
# Compilation, as on a GPU


def test_all_blocks_share_one_compilation_and_no_step_makes_another(monkeypatch):
    """Dynamo traces as it does on a GPU; a stand-in for inductor counts what it is given."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(
        nn.Module, "compile", partial_method(nn.Module.compile, backend=backend), raising=True
    )
    gpt, plain = model(), model()
    gpt.compile()
    counts = []
    for step in range(4):
        tokens = torch.randint(29, (4, 9), generator=torch.Generator().manual_seed(step))
        losses = []
        for m in (gpt, plain):
            loss = m.loss(m(tokens[:, :-1])[0], tokens[:, 1:])
            ((1 + 0.1 * step) * loss).backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
        counts.append(len(graphs))
    assert counts[0] == 2, "one block and one loss"
    assert counts == counts[:1] * 4
    for a, b in zip(gpt.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def partial_method(method, **fixed):
    return lambda self, *args, **kwargs: method(self, *args, **(kwargs | fixed))


# ---------------------------------------------------------------------------------------------
# Gradient norms


@pytest.fixture
def run(tmp_path, capsys):
    def run_with(*arguments: str) -> list[str]:
        tokens = torch.randint(29, (3000,), generator=torch.Generator().manual_seed(0)).numpy()
        for kind in ("train", "val"):
            header = torch.zeros(256, dtype=torch.int32)
            header[:3] = torch.tensor([20240520, 1, 3000])
            content = header.numpy().tobytes() + tokens.astype("<u2").tobytes()
            (tmp_path / f"noise_{kind}_0.bin").write_bytes(content)
        shape = "--n_layer 3 --n_head 2 --model_dim 16 --vocab_size 29 --sequence_length 8"
        batch = "--batch_size 8 --num_iterations 9 --val_loss_every 4 --val_tokens 80 --device cpu"
        where = ["--data_dir", str(tmp_path)]
        assert train_gpt.main([*shape.split(), *batch.split(), *where, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run_with


HEADS = ("--aux_head_layers", "2", "--aux_loss_weight", "0.5", "--aux_loss_schedule")


def test_gradient_norms_show_what_heads_add_and_leave_the_training_alone(run):
    quiet = run(*HEADS, "linear_decay")
    spoken = run(*HEADS, "linear_decay", "--log_grad_norms")
    norms = [json.loads(line.removeprefix("grad_norms: ")) for line in spoken if "norms" in line]
    without_times = [
        [line.split(" train_time")[0] for line in lines if "norms" not in line][:-1]
        for lines in (quiet, spoken)
    ]
    assert without_times[0] == without_times[1]
    assert [n["step"] for n in norms] == [0, 4, 8, 9]
    assert all(len(n["main"]) == len(n["total"]) == 3 for n in norms)
    middle, late = norms[1], norms[2]
    assert middle["main"][2] == middle["total"][2] > 0, "above the tap nothing is added"
    assert all(a != b for a, b in zip(middle["main"][:2], middle["total"][:2], strict=True))
    assert late["main"] == late["total"], "the decay has ended"


def test_gradient_norms_are_those_of_the_next_step(run, tmp_path):
    lines = run(*HEADS, "constant", "--log_grad_norms", "--num_iterations", "1")
    assert json.loads(lines[1].removeprefix("grad_norms: "))["main"] == [0.0, 0.0, 0.0]
    assert "grad_norms" not in "".join(run(*HEADS, "constant"))


def test_the_summed_loss_is_summed():
    x, (matrix, bias) = torch.randn(7, 16), model().head.parameters()
    targets = torch.randint(29, (7,))
    assert summed_loss(x, matrix, bias, targets).item() == pytest.approx(
        7 * F.cross_entropy(softcapped(x, matrix, bias), targets).item(), rel=1e-6
    )
