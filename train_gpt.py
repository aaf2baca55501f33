"""One training run of a GPT, with or without auxiliary heads: arguments in, log and exit code out.

    torchrun --standalone --nproc_per_node=8 train_gpt.py --data_dir data/fineweb --seed 42
    python train_gpt.py --data_dir data/stdlib --vocab_size 256 --model_dim 64 --n_head 2 ...

In the line of modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt, track 3): QK-norm,
half-truncated rotary embeddings, ReLU^2, zero-initialised projections, a norm after the embedding,
an untied zero-initialised head with softcapped logits, a gain in each norm and a bias in each map;
Muon for the block matrices, AdamW for the rest; a constant learning rate with a linear cooldown
given as a fraction of the run.

One global batch is the same tokens in the same order on any number of processes. The seed fixes
initialisation and the order of the data, whatever heads there are. Exit codes: 0 after the summary
line, with --check where a run could begin; 2 for arguments or data that cannot work (one line,
before any training); 3 at the first loss that is not finite.

Shapes: B sequences, T positions, D width, H attention heads, K width of one, V vocabulary,
S sampled positions.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from aux_heads import SCHEDULES, AuxHeads, check_settings, draw_layer, sample_positions

# ---------------------------------------------------------------------------------------------
# Arguments: the defaults are the speedrun profile, 124M parameters on 8 GPUs


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line and exit code 2, from the first process; argparse would print the usage too."""
        if let_the_first_speak() == 0:
            print(f"train_gpt.py: error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


FIRST_SPEAKS_S = 3.0  # torchrun ends all processes some tenths of a second after one has ended


def let_the_first_speak() -> int:
    """This process's rank; all but the first wait here, or torchrun would end the first one for
    their exit codes before it has said why."""
    rank = int(os.environ.get("RANK", 0))
    if rank:
        time.sleep(FIRST_SPEAKS_S)
    return rank


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="train_gpt.py", allow_abbrev=False)
    parser.add_argument("--n_layer", type=int, default=12)
    parser.add_argument("--n_head", type=int, default=6)
    parser.add_argument("--model_dim", type=int, default=768)
    parser.add_argument("--vocab_size", type=int, default=50304, help="a multiple of 64 is fastest")
    parser.add_argument("--sequence_length", type=int, default=1024, help="tokens")
    parser.add_argument("--unet_skips", action="store_true", help="skips and embedding mix")
    parser.add_argument("--num_iterations", type=int, default=5100)
    parser.add_argument("--cooldown_frac", type=float, default=0.7, help="of the run, at its end")
    parser.add_argument("--batch_size", type=int, default=512, help="sequences, all devices")
    parser.add_argument("--device_batch_size", type=int, default=64, help="sequences a pass")
    parser.add_argument("--muon_lr", type=float, default=0.025)
    parser.add_argument("--embed_lr", type=float, default=0.7)
    parser.add_argument("--head_lr", type=float, default=0.004)
    parser.add_argument("--scalar_lr", type=float, default=0.015)
    parser.add_argument("--data_dir", type=Path, default=Path("data/fineweb"))
    parser.add_argument("--val_tokens", type=int, default=10_485_760)
    parser.add_argument("--val_loss_every", type=int, default=125, help="steps")
    parser.add_argument("--aux_head_layers", type=int_list, default=(), help="4,8; '' for none")
    parser.add_argument("--aux_loss_weight", type=float, default=0.1)
    parser.add_argument("--aux_loss_schedule", default="constant", help=", ".join(SCHEDULES))
    parser.add_argument("--aux_token_fraction", type=float, default=0.125, help="of positions")
    parser.add_argument("--aux_unembedding", choices=("shared", "own"), default="shared")
    parser.add_argument("--aux_one_layer", action="store_true", help="drawn anew in each step")
    parser.add_argument(
        "--aux_stop_frac", type=float, default=1.0, help="of the run; no loss after"
    )
    parser.add_argument(
        "--aux_tokens_ahead", type=int, default=1, help="of the target; 1: the next"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--log_grad_norms", action="store_true", help="by block, when validating")
    parser.add_argument("--log_file", default="", help="a copy of what rank 0 prints")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--check", action="store_true", help="arguments and data, no training")
    return parser


def int_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        hint = f"'{text}': give layer numbers with commas between, such as 4,8"
        raise argparse.ArgumentTypeError(hint) from None


# ---------------------------------------------------------------------------------------------
# Processes


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def grouped(self) -> bool:
        return self.size > 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the stream and of Muon's iterations."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def sum(self, *values: Tensor) -> None:
        """Add up each tensor over all processes, in place."""
        if self.grouped:
            for value in values:
                dist.all_reduce(value)

    def gather(self, part: Tensor) -> tuple[Tensor, Callable[[], object]]:
        """The parts of all processes along the first axis, there once the second is called."""
        if not self.grouped:
            return part, lambda: None
        whole = part.new_empty(self.size * part.size(0), *part.shape[1:])
        return whole, dist.all_gather([*whole.chunk(self.size)], part, async_op=True).wait

    def pinned(self, tensor: Tensor | None) -> Tensor | None:
        """In memory that a GPU copies from without holding up this process."""
        return tensor.pin_memory() if tensor is not None and self.device.type == "cuda" else tensor

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def join_world(wanted: str) -> World:
    """The world that torchrun described, or one of a single process."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ValueError("--device cuda: no GPU is visible to torch; give --device cpu")
    if wanted != "cpu" and has_cuda:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local + 1} of this node has no GPU: {torch.cuda.device_count()} visible;"
                f" give --nproc_per_node={torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    return World(rank, size, device)


# ---------------------------------------------------------------------------------------------
# Data: shards of a 256 x int32 header and uint16 tokens

HEADER_BYTES, MAGIC, VERSION = 1024, 20240520, 1


def open_shard(path: Path) -> np.ndarray:
    """Memory-map the tokens of a shard. Raises ValueError that names what is wrong with it."""
    header = np.fromfile(path, dtype="<i4", count=256)
    if header.size < 256 or header[0] != MAGIC or header[1] != VERSION:
        raise ValueError(f"{path}: not a token shard (magic number or version); prepare it again")
    tokens, size = int(header[2]), path.stat().st_size
    if tokens < 0 or size != HEADER_BYTES + 2 * tokens:
        raise ValueError(
            f"{path}: {tokens} tokens announced, but {size} bytes instead of"
            f" {HEADER_BYTES + 2 * tokens}; it is cut off or damaged, prepare it again"
        )
    if tokens == 0:  # which cannot be mapped
        return np.empty(0, dtype="<u2")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(tokens,))


class BadTokens(ValueError):
    """A token outside the vocabulary: found before training, or in a batch far into a shard."""


class Windows:
    """All windows of T inputs and their next tokens, by number.

    A window lies within one shard; the tail of a shard that fills no window (at most T tokens) is
    left out, nothing else is lost or repeated.
    """

    def __init__(self, data_dir: Path, kind: str, sequence_length: int, vocab_size: int):
        paths = sorted(data_dir.glob(f"*_{kind}_*.bin"))
        if not paths:
            how = " fineweb --shards 27" if vocab_size > 256 else ""
            raise ValueError(
                f"no *_{kind}_*.bin shard in {data_dir}; make them: python data/prepare.py{how}"
            )
        self.shards = [open_shard(path) for path in paths]
        self.T, self.vocab_size = sequence_length, vocab_size
        counts = [max(0, (len(shard) - 1) // sequence_length) for shard in self.shards]
        self.ends = np.cumsum(counts)
        self.count = int(self.ends[-1])
        self.paths = paths
        for number, shard in enumerate(self.shards):  # of 27 shards, all tokens would take seconds
            self.check_tokens(number, shard[:1_000_000])

    def check_tokens(self, shard: int, tokens: np.ndarray) -> None:
        if (largest := int(tokens.max(initial=0))) >= self.vocab_size:
            raise BadTokens(
                f"{self.paths[shard]}: token {largest}, but --vocab_size is {self.vocab_size};"
                " give the vocabulary of these shards, or another --data_dir"
            )

    def read(self, numbers: np.ndarray) -> Tensor:
        """These windows and the token after each, (B, T + 1), int64."""
        rows = np.empty((len(numbers), self.T + 1), dtype=np.int64)
        for row, number in zip(rows, numbers, strict=True):
            shard = int(np.searchsorted(self.ends, number, side="right"))
            start = (number - (self.ends[shard - 1] if shard else 0)) * self.T
            row[:] = self.shards[shard][start : start + self.T + 1]
            self.check_tokens(shard, row)
        return torch.from_numpy(rows)


# ---------------------------------------------------------------------------------------------
# Model


def norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), gain if gain is None else gain.type_as(x))


class Norm(nn.Module):
    """RMSNorm with a gain for each coordinate."""

    def __init__(self, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self.gain)


class Rotary(nn.Module):
    """Rotary embedding of which half the frequencies are zero (base 1024)."""

    def __init__(self, width_K: int, sequence_length: int):
        super().__init__()
        turning = (1 / 1024) ** torch.linspace(0, 1, width_K // 4)
        frequencies = torch.cat([turning, torch.zeros(width_K // 2 - width_K // 4)])
        angles = torch.outer(torch.arange(sequence_length), frequencies)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos_TK", torch.cat([cos, cos], dim=1), persistent=False)
        self.register_buffer("sin_TK", torch.cat([sin, -sin], dim=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., T, K): coordinates k and k + K/2 turn together."""
        partner = x.roll(x.size(-1) // 2, dims=-1)
        return torch.addcmul(x * self.cos_TK, partner, self.sin_TK).type_as(x)


def random_matrix(*shape: int) -> Tensor:
    """A matrix, or a stack of them, initialised like the weight of nn.Linear."""
    bound = shape[-1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In the precision of x: weights are kept in fp32, the stream is in bf16 on a GPU."""
    return F.linear(x, weight.type_as(x), bias.type_as(x))


class Linear(nn.Module):
    """A matrix, or several in a stack whose outputs lie side by side, and a bias."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[:-1].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.flatten(0, -2), self.bias)


class Block(nn.Module):
    def __init__(self, dim: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.scale = 1.36 / math.sqrt(dim // n_head)  # 0.12 at a width of 128
        self.attention_norm = Norm(dim)
        self.qkv = Linear(random_matrix(3, dim, dim))
        self.out = Linear(torch.zeros(dim, dim))
        self.mlp_norm = Norm(dim)
        self.up = Linear(random_matrix(4 * dim, dim))
        self.down = Linear(torch.zeros(dim, 4 * dim))

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary)
        return x_BTD + self.down(F.relu(self.up(self.mlp_norm(x_BTD))).square())

    def attention(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.n_head, -1)
        qk, v = qkv.permute(2, 0, 3, 1, 4).split([2, 1])
        q, k = rotary(norm(qk))
        y_BHTK = F.scaled_dot_product_attention(
            q, k, v.squeeze(0), is_causal=True, scale=self.scale
        )
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


def softcapped(x: Tensor, matrix_VD: Tensor, bias_V: Tensor) -> Tensor:
    """Logits in fp32, squeezed into (-15, 15)."""
    z = linear(x, matrix_VD, bias_V).float()
    return 15 * z * torch.rsqrt(z * z + 15 * 15)


def summed_loss(x_SD: Tensor, matrix_VD: Tensor, bias_V: Tensor, targets_S: Tensor) -> Tensor:
    return F.cross_entropy(softcapped(x_SD, matrix_VD, bias_V), targets_S, reduction="sum")


LOGITS_AT_ONCE = {"cuda": 2**29, "cpu": 2**24}  # 2 GiB of GPU memory; the cache of a CPU


def chunks(x_SD: Tensor, targets_S: Tensor, vocab_size: int):
    """Pairs of equal parts, as few as keep the logits of one below the limit (a power of two)."""
    over = len(targets_S) * vocab_size / LOGITS_AT_ONCE[x_SD.device.type]
    count = 2 ** max(0, math.ceil(math.log2(over)))
    return zip(x_SD.tensor_split(count), targets_S.tensor_split(count), strict=True)


class ChunkedLoss(torch.autograd.Function):
    """The mean loss, whose logits exist for one chunk of positions at a time.

    A chunk's gradient is taken along with its loss, so its logits are neither kept until the
    backward pass nor computed twice. The whole would be 13 GB at 64 sequences of the 124M model.
    """

    @staticmethod
    def forward(ctx, x_SD: Tensor, matrix_VD, bias_V, targets_S: Tensor, summed_loss) -> Tensor:
        weights = [w.detach().type_as(x_SD).requires_grad_() for w in (matrix_VD, bias_V)]
        total, grads_x, sums = 0, [], [torch.zeros_like(w) for w in (matrix_VD, bias_V)]
        for x, targets in chunks(x_SD.detach(), targets_S, len(bias_V)):
            with torch.enable_grad():
                loss = summed_loss(x.requires_grad_(), *weights, targets) / len(targets_S)
            total += loss.detach()
            grad_x, *grads = torch.autograd.grad(loss, (x, *weights))
            grads_x.append(grad_x)
            torch._foreach_add_(sums, grads)
        ctx.grads = torch.cat(grads_x) if len(grads_x) > 1 else grads_x[0], *sums
        return total

    @staticmethod
    def backward(ctx, g: Tensor):
        grads = ctx.grads
        del ctx.grads  # of no use to a second backward: scaled in place
        return *(grad.mul_(g) for grad in grads), None, None


class GPT(nn.Module):
    """The main path. `taps` are the residual streams that auxiliary heads read."""

    def __init__(self, args: argparse.Namespace, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype  # of the stream
        n, dim = args.n_layer, args.model_dim
        self.embedding = nn.Embedding(args.vocab_size, dim)
        self.first_norm = Norm(dim)
        self.blocks = nn.ModuleList(Block(dim, args.n_head) for _ in range(n))
        self.last_norm = Norm(dim)
        self.head = Linear(torch.zeros(args.vocab_size, dim))
        self.rotary = Rotary(dim // args.n_head, args.sequence_length)
        self.tap_layers = frozenset(args.aux_head_layers)
        self.summed_loss = summed_loss
        # records 9 and 11: each block sees a mix of stream and embedding, and the second half of
        # the blocks sees the first half's outputs, last in first out
        self.skips = nn.Parameter(torch.ones(n // 2)) if args.unet_skips else None
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.0]] * n)) if args.unet_skips else None

    def compile(self) -> None:
        """Block by block: all share one compilation, and each one's gradients are there as soon
        as its own backward pass ends. Shapes do not change, and no number that does is seen."""
        for block in self.blocks:
            block.compile(dynamic=False)
        self.summed_loss = torch.compile(summed_loss, dynamic=False)

    def forward(self, inputs_BT: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The normed last stream (B, T, D), and the stream after L blocks for each tap layer L."""
        x = x0 = self.first_norm(self.embedding(inputs_BT)).to(self.dtype)
        n, taps, waiting = len(self.blocks), {}, []
        for layer, block in enumerate(self.blocks, 1):
            if self.mix is not None:
                if layer > n - n // 2:
                    x = x + self.skips[layer - (n - n // 2) - 1] * waiting.pop()
                x = self.mix[layer - 1, 0] * x + self.mix[layer - 1, 1] * x0
            x = block(x, self.rotary)
            if self.mix is not None and layer <= n // 2:
                waiting.append(x)
            if layer in self.tap_layers:
                taps[layer] = x
        return self.last_norm(x), taps

    def unembed(self, x: Tensor, *other: Tensor) -> Tensor:
        """Logits in fp32, softcapped at 15, by the model's head or by another matrix and bias."""
        return softcapped(x, *(other or (self.head.weight, self.head.bias)))

    def loss(self, x: Tensor, targets: Tensor, *other: Tensor) -> Tensor:
        """Mean cross-entropy of what `unembed` returns, nats/token, without ever holding all of it.

        x: normed stream (..., D); targets (...) as its first axes.
        """
        weights = other or (self.head.weight, self.head.bias)
        x_SD, targets_S = x.flatten(0, -2), targets.flatten()
        if torch.is_grad_enabled():
            return ChunkedLoss.apply(x_SD, *weights, targets_S, self.summed_loss)
        pieces = chunks(x_SD, targets_S, len(weights[0]))
        return sum(self.summed_loss(x, *weights, t) for x, t in pieces) / len(targets_S)


# ---------------------------------------------------------------------------------------------
# Optimizers


class AdamW:
    """torch.optim.AdamW without its class, whose first use imports the compiler: a second a run."""

    def __init__(self, params: Sequence[nn.Parameter], lr: float, eps: float = 1e-10):
        self.params, self.lr, self.eps = list(params), lr, eps
        self.means = [torch.zeros_like(p) for p in self.params]
        self.squares = [torch.zeros_like(p) for p in self.params]
        self.steps = [torch.zeros((), device=p.device) for p in self.params]

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        state = zip(self.params, self.means, self.squares, self.steps, strict=True)
        state = [row for row in state if row[0].grad is not None]
        if not state:
            return
        params, means, squares, steps = map(list, zip(*state, strict=True))
        adamw(
            params,
            [p.grad for p in params],
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=0.8,
            beta2=0.95,
            lr=self.lr * multiplier,
            weight_decay=0.001,
            eps=self.eps,
            maximize=False,
        )


# Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932): each step is the odd
# quintic that comes nearest to 1 on all that the steps before it have made of [1/1000, 1], and on
# 1 % above that: without it, bf16 rounds a singular value over the edge and the steps explode
POLAR_EXPRESS = (
    (8.3869, -24.3713, 17.7264),
    (4.1430, -3.0186, 0.5527),
    (3.9312, -2.8741, 0.5367),
    (3.2828, -2.4166, 0.4865),
    (2.2850, -1.6324, 0.4031),
)


def orthogonalize(x_NRC: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each; rows <= columns.

    A singular value of at least 1/1000 of the norm ends in 0.87 to 1.13. A sixth step would bring
    it within 0.0015 of 1 and lower the loss by 0.001, for 5 % of the step time on a CPU.
    """
    x = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """The update of torch.optim.Muon with steps of its own, batched and shared by processes.

    A parameter is a matrix or a stack of them. All of one shape make a batch; tall ones are
    transposed, so that `up` and `down` make one. Each process keeps the momentum of its share of a
    batch and orthogonalizes that, in world.dtype; then all processes gather the updates.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, world: World):
        self.lr, self.world, self.momenta = lr, world, {}
        self.batches: dict[tuple, list[nn.Parameter]] = {}
        for p in params:
            self.batches.setdefault(tuple(sorted(p.shape[-2:])), []).append(p)
        self.weights, self.ratios = {}, {}
        for shape, batch in self.batches.items():
            self.weights[shape] = wide_matrices([p.detach() for p in batch])
            ratios = [max(1, p.size(-2) / p.size(-1)) ** 0.5 for p in batch for _ in stack(p)]
            self.ratios[shape] = torch.tensor(ratios, device=world.device).view(-1, 1, 1)

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        lr, gathered = self.lr * multiplier, {}
        for shape, batch in self.batches.items():
            if batch[0].grad is None:
                continue
            grads = wide_matrices([p.grad for p in batch])
            share = math.ceil(len(grads) / self.world.size)
            mine = grads[self.world.rank * share :][:share]
            grad = torch.stack(mine + [torch.zeros_like(grads[0])] * (share - len(mine)))
            if shape not in self.momenta:
                self.momenta[shape] = torch.zeros_like(grad)
            self.momenta[shape].lerp_(grad, 1 - momentum)
            update = orthogonalize(grad.lerp_(self.momenta[shape], momentum).to(self.world.dtype))
            gathered[shape] = self.world.gather(update)
        for shape, (updates, wait) in gathered.items():
            wait()
            weights = self.weights[shape]
            updates = updates[: len(weights)] * (-lr * self.ratios[shape])
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
            torch._foreach_add_(weights, list(updates))


def stack(p: Tensor) -> Tensor:
    return p.view(-1, *p.shape[-2:])


def wide_matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of all matrices in these tensors, transposed where they have more rows than columns."""
    views = [matrix for t in tensors for matrix in stack(t)]
    return [m.mT if m.size(0) > m.size(1) else m for m in views]


def build_optimizers(model: GPT, heads: AuxHeads, args: argparse.Namespace, world: World) -> list:
    """Muon for the matrices that blocks and heads multiply with, AdamW for the rest.

    A head's translator is a hidden matrix like any in a block, so it is treated as one. No state
    is shared between parameters: heads change nothing about how the main path is updated, and a
    head that is not drawn stays as it is.
    """
    unembeddings = [p for name, p in heads.named_parameters() if name.endswith("unembedding")]
    scalars = [p for p in (model.skips, model.mix) if p is not None]
    vectors = [p for p in (*model.parameters(), *heads.parameters()) if p.ndim == 1]
    return [
        AdamW([model.embedding.weight], args.embed_lr),
        AdamW([model.head.weight, *unembeddings], args.head_lr),
        AdamW([p for p in vectors if p is not model.skips], args.scalar_lr),
        # As long as the projections are zero, a scalar only scales what is normed at the end: its
        # gradient is rounding, about 1e-8, and a small eps would make full steps of that
        AdamW(scalars, args.scalar_lr, eps=1e-5),
        Muon([p for p in model.blocks.parameters() if p.ndim > 1], args.muon_lr, world),
        *(Muon([head.translator], args.muon_lr, world) for head in heads.heads),
    ]


def cooldown(progress: float, fraction: float) -> float:
    """Multiplier of every learning rate: 1, then linearly to 0 over the last `fraction`."""
    return 1.0 if progress < 1 - fraction else (1 - progress) / fraction


# ---------------------------------------------------------------------------------------------
# Checks: everything that can be known to fail is said before any training


def check(args: argparse.Namespace, world: World, train: Windows, val: Windows) -> None:
    """Raise ValueError, naming the value and the remedy."""
    needed = args.num_iterations * args.batch_size
    if needed > train.count:
        raise ValueError(
            f"{args.data_dir}: {train.count} training windows of {args.sequence_length} tokens, but"
            f" --num_iterations {args.num_iterations} needs {needed}; add shards (data/prepare.py"
            f" fineweb --shards N) or train for at most {train.count // args.batch_size} iterations"
        )
    if not 1 <= args.val_tokens // args.sequence_length <= val.count:
        raise ValueError(
            f"--val_tokens {args.val_tokens}: give {args.sequence_length} to"
            f" {val.count * args.sequence_length}, which is what {args.data_dir} holds"
        )
    if args.log_file:
        path = Path(args.log_file).absolute()
        folder = next(parent for parent in path.parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"--log_file {args.log_file}: no file can be written there")


def check_arguments(args: argparse.Namespace, world: World) -> None:
    """Raise ValueError for arguments that cannot work together."""
    positive = ("n_layer", "n_head", "model_dim", "vocab_size", "sequence_length", "batch_size")
    for name in (*positive, "device_batch_size", "num_iterations", "val_loss_every"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: give 1 or more")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed {args.seed}: give 0 to {2**32 - 1}")
    for name in ("muon_lr", "embed_lr", "head_lr", "scalar_lr"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name} {getattr(args, name)}: give a finite number, 0 or above")
    if args.vocab_size > 65_536:
        raise ValueError(f"--vocab_size {args.vocab_size}: tokens have 16 bits, give at most 65536")
    if not 0 < args.cooldown_frac <= 1:
        raise ValueError(f"--cooldown_frac {args.cooldown_frac}: give a number above 0, at most 1")
    if args.model_dim % args.n_head or args.model_dim // args.n_head % 4:
        raise ValueError(
            f"--model_dim {args.model_dim} and --n_head {args.n_head}: the width of a head,"
            " model_dim / n_head, has to be a multiple of 4"
        )
    if args.batch_size % world.size:
        raise ValueError(
            f"--batch_size {args.batch_size} does not divide over {world.size} processes;"
            f" give a multiple of {world.size}"
        )
    share = args.batch_size // world.size
    if share % min(args.device_batch_size, share):
        fits = [n for n in range(1, share + 1) if share % n == 0 and n <= args.device_batch_size]
        raise ValueError(
            f"--device_batch_size {args.device_batch_size} does not divide the {share} sequences"
            f" of a process; give {fits[-1]}"
        )
    check_settings(
        args.aux_head_layers,
        args.n_layer,
        args.aux_loss_weight,
        args.aux_loss_schedule,
        args.aux_token_fraction,
        args.aux_stop_frac,
        args.aux_tokens_ahead,
        args.sequence_length,
    )


# ---------------------------------------------------------------------------------------------
# Log: the lines of modded-nanogpt, with six decimals


class Log:
    """What rank 0 says, on standard output and in the log file."""

    def __init__(self, path: str, world: World, total: int):
        self.file, self.total, self.rank = None, total, world.rank
        if path and world.rank == 0:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by the exit)

    def line(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)
            if self.file:
                print(text, file=self.file, flush=True)

    def loss(self, kind: str, step: int, loss: float, train_time_s: float) -> None:
        """Print one loss. Raises Diverged, after the line, where it is not finite."""
        ms = 1000 * train_time_s
        average = ms / step if step else 0.0
        self.line(
            f"step:{step}/{self.total} {kind}_loss:{loss:.6f}"
            f" train_time:{ms:.0f}ms step_avg:{average:.2f}ms"
        )
        if not math.isfinite(loss):
            self.line(f"diverged: {kind}_loss is {loss} at step {step}/{self.total}")
            raise Diverged


class Diverged(Exception):
    """A loss is not finite; every process sees the same loss and stops."""


# ---------------------------------------------------------------------------------------------
# Training


class Buckets:
    """Gradients of several processes, summed while the backward pass goes on below.

    A bucket is one flat tensor of which the gradients of some parameters are views. Its sum starts
    when the last of these is complete, in the last pass of a step. A bucket that the loss does
    not depend on is left out: its gradients are None, as in a single process.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]):
        self.groups = [list(group) for group in groups if len(group)]
        self.flat = [torch.cat([torch.zeros_like(p).flatten() for p in g]) for g in self.groups]
        for bucket, group in enumerate(self.groups):
            for p in group:
                p.register_post_accumulate_grad_hook(partial(self.complete, bucket))

    def begin(self) -> None:
        self.last_pass, self.sums = False, {}
        self.missing = [len(group) for group in self.groups]
        for group, flat in zip(self.groups, self.flat, strict=True):
            flat.zero_()
            for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
                p.grad = part.view_as(p)

    def complete(self, bucket: int, _: Tensor) -> None:
        if self.last_pass:
            self.missing[bucket] -= 1
            if not self.missing[bucket]:
                self.sums[bucket] = dist.all_reduce(self.flat[bucket], async_op=True)

    def end(self) -> None:
        for bucket, group in enumerate(self.groups):
            if bucket in self.sums:
                self.sums[bucket].wait()
            else:
                for p in group:
                    p.grad = None


class Trainer:
    """The state of a run, and its two acts: one step, one validation."""

    def __init__(self, args: argparse.Namespace, world: World, train: Windows, val: Windows):
        self.args, self.world, self.train, self.val = args, world, train, val
        torch.manual_seed(args.seed)
        self.model = GPT(args, world.dtype).to(world.device)
        heads = args.aux_head_layers if args.aux_loss_weight else ()
        shape = args.model_dim, args.vocab_size, args.aux_unembedding == "own"
        self.heads = AuxHeads(heads, *shape, args.aux_tokens_ahead).to(world.device)
        self.optimizers = build_optimizers(self.model, self.heads, args, world)
        self.order = np.random.default_rng(args.seed).permutation(train.count)
        self.share = args.batch_size // world.size
        self.passes = self.share // min(args.device_batch_size, self.share)
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        model = self.model
        modules = [model.embedding, *model.blocks, model.head, *self.heads.heads]
        groups = [list(module.parameters()) for module in modules]
        rest = [model.first_norm.gain, model.last_norm.gain, model.skips, model.mix]
        groups.append([p for p in rest if p is not None])
        self.buckets = Buckets(groups) if world.grouped else None
        self.reader, self.ahead = ThreadPoolExecutor(1), {}
        if world.device.type == "cuda":
            self.model.compile()

    def read(self, step: int) -> tuple[Tensor, Tensor | None]:
        """This process's windows of global batch `step`, and the positions that heads predict."""
        args = self.args
        mine = slice(self.world.rank * self.share, (self.world.rank + 1) * self.share)
        windows = self.train.read(self.order[step * args.batch_size :][mine])
        positions = None
        if self.heads.layers and args.aux_token_fraction < 1:
            shape = args.batch_size, args.sequence_length - self.heads.beyond
            positions = sample_positions(*shape, args.aux_token_fraction, args.seed, step)[mine]
        return self.world.pinned(windows), self.world.pinned(positions)

    def read_ahead(self, step: int) -> tuple[Tensor, Tensor | None]:
        """What `read` returns, while a thread already reads the next step's."""
        this: Future = self.ahead.pop(step, None) or self.reader.submit(self.read, step)
        self.ahead.clear()
        if step + 1 < self.args.num_iterations:
            self.ahead[step + 1] = self.reader.submit(self.read, step + 1)
        return this.result()

    def aux_weight(self, step: int) -> float:
        """The heads' weight at a step (from 0); 0 where there are none."""
        progress = step / self.args.num_iterations
        if not self.heads.layers or progress >= self.args.aux_stop_frac:
            return 0.0
        return self.args.aux_loss_weight * SCHEDULES[self.args.aux_loss_schedule](progress)

    def step(self, step: int) -> Tensor:
        """One update with the global batch number `step`; its mean main loss, before the update."""
        loss = self.gradients(step, self.aux_weight(step))
        multiplier = cooldown(step / self.args.num_iterations, self.args.cooldown_frac)
        for optimizer in self.optimizers:
            optimizer.step(multiplier)
        self.forget_gradients()
        return loss

    def gradients(self, step: int, weight: float) -> Tensor:
        """Leave the gradients of main + weight * auxiliary loss; the mean main loss."""
        device, size = self.world.device, self.share // self.passes
        windows, positions = self.read_ahead(step)
        only = None
        if weight and self.args.aux_one_layer:
            only = draw_layer(self.heads.layers, self.args.seed, step)
        total = torch.zeros((), device=device)
        if self.buckets:
            self.buckets.begin()
        for part in range(0, self.share, size):
            tokens = windows[part : part + size].to(device, non_blocking=True)
            picked = None
            if weight and positions is not None:
                picked = positions[part : part + size].to(device, non_blocking=True)
            if self.buckets:
                self.buckets.last_pass = part + size == self.share
            total += self.accumulate(tokens[:, :-1], tokens[:, 1:], picked, weight, only)
        if self.buckets:
            self.buckets.end()
        self.world.sum(total)
        return total

    def accumulate(self, inputs, targets, positions, weight: float, only: int | None) -> Tensor:
        """Add this pass's share to the gradients; its share of the main loss."""
        x, taps = self.model(inputs)
        loss = main = self.model.loss(x, targets)
        if weight:
            loss = main + weight * self.heads(taps, targets, positions, self.model.loss, only)
        share = 1 / (self.passes * self.world.size)
        (loss * share).backward()
        return main.detach() * share

    def gradient_norms(self, step: int) -> dict:
        """By block, of the next global batch (at the end, of the last): main loss alone, and all.

        The difference is what the heads add, by depth: the shortcut that is claimed to help.
        """
        step = min(step, self.args.num_iterations - 1)
        norms = {}
        for name, weight in (("main", 0.0), ("total", self.aux_weight(step))):
            self.gradients(step, weight)
            blocks = [[p.grad.norm() for p in block.parameters()] for block in self.model.blocks]
            norms[name] = torch.stack([torch.stack(block).norm() for block in blocks]).tolist()
            self.forget_gradients()
        return norms

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def warm_up(self) -> None:
        """Compile everything that a step needs, heads included, outside the training clock."""
        if self.world.device.type == "cuda":
            self.gradients(0, weight=float(bool(self.heads.layers)))
            self.forget_gradients()

    @torch.no_grad()
    def validate(self) -> float:
        """Mean main loss over the first val_tokens tokens, nats/token; heads play no part."""
        args, world = self.args, self.world
        sequences = args.val_tokens // args.sequence_length
        mine = np.arange(sequences)[world.rank :: world.size]
        sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        for start in range(0, len(mine), args.device_batch_size):
            numbers = mine[start : start + args.device_batch_size]
            tokens = world.pinned(self.val.read(numbers)).to(world.device, non_blocking=True)
            x, _ = self.model(tokens[:, :-1])
            sums[0] += self.model.loss(x, tokens[:, 1:]).double() * len(numbers)
            sums[1] += len(numbers)
        world.sum(sums)
        return (sums[0] / sums[1]).item()


def train(trainer: Trainer, log: Log) -> dict:
    """The whole run; its summary. The training clock stands still during validation."""
    args, world = trainer.args, trainer.world
    train_time_s, val_loss, pending = 0.0, math.nan, None
    trainer.warm_up()
    world.synchronize()
    started = time.perf_counter()
    for step in range(args.num_iterations + 1):
        last = step == args.num_iterations
        if last or step % args.val_loss_every == 0:
            world.synchronize()
            train_time_s += time.perf_counter() - started
            if pending:
                log.loss("train", pending[0], pending[1].item(), pending[2])
                pending = None
            val_loss = trainer.validate()
            log.loss("val", step, val_loss, train_time_s)
            if args.log_grad_norms:
                norms = {"step": step} | trainer.gradient_norms(step)
                log.line(f"grad_norms: {json.dumps(norms)}")
            world.synchronize()
            started = time.perf_counter()
        if last:
            break
        loss = trainer.step(step)
        if pending:  # printed one step late, so that a GPU never waits for the printing
            log.loss("train", pending[0], pending[1].item(), pending[2])
        pending = (step + 1, loss, train_time_s + time.perf_counter() - started)
    return {
        "val_loss": val_loss,
        "steps_done": args.num_iterations,
        "train_time_ms": 1000 * train_time_s,
        "step_avg_ms": 1000 * train_time_s / args.num_iterations,
        "peak_memory_mib": peak_memory_mib(world),
        "tokens_seen": args.num_iterations * args.batch_size * args.sequence_length,
        "num_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "num_aux_parameters": sum(p.numel() for p in trainer.heads.parameters()),
        "world_size": world.size,
        "device": world.device.type,
        "torch": torch.__version__,
    }


def peak_memory_mib(world: World) -> float:
    """Of this process: on a GPU what torch allocated there, else resident memory."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if (status := Path("/proc/self/status")).exists():  # ru_maxrss would start at the parent's
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        world = join_world(args.device)
        check_arguments(args, world)
        windows = [
            Windows(args.data_dir, kind, args.sequence_length, args.vocab_size)
            for kind in ("train", "val")
        ]
        check(args, world, *windows)
        if args.check:
            return 0
        log = Log(args.log_file, world, args.num_iterations)
    except (ValueError, OSError) as error:
        let_the_first_speak()  # who is still here then had an error of its own
        print(f"train_gpt.py: error: {error}", file=sys.stderr)
        return 2
    if world.grouped:
        dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo")
    try:
        log.line("summary: " + json.dumps(train(Trainer(args, world, *windows), log)))
    except Diverged:
        return 3
    except BadTokens as error:  # only the process that read them knows
        print(f"train_gpt.py: error: {error}", file=sys.stderr)
        return 2
    finally:
        if world.grouped:
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
