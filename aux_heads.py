"""What does an auxiliary prediction head compute, and how much does it count?

A head reads the residual stream after L blocks and predicts the next token ("deep supervision",
Lee et al. 2015, https://arxiv.org/abs/1409.5185). It is light: a norm, a learned translator that
starts as the identity, and an unembedding. With the model's own, shared unembedding the untrained
head is the logit lens and training it makes a tuned lens (Belrose et al. 2023,
https://arxiv.org/abs/2303.08112), with the difference that its gradient reaches the blocks below
the tap.

    training loss = main + weight * schedule(progress) * mean over heads of the head's loss

Instead of all heads, one may be drawn in each step; the loss may stop at a fraction of the run; and
the target may lie further ahead than the next token.

Validation never comes here. Shapes: B sequences, T positions, S sampled positions, D width,
V vocabulary, H heads.
"""

import math
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------
# Weight schedules: pure functions of training progress in [0, 1]

DECAY_END = 2 / 3  # decays are exactly zero from here on; published auxiliary losses that helped
# were largest early and off for the last third of training, so that the end serves the main loss
WARMUP_END = 0.1


def constant(progress: float) -> float:
    return 1.0


def linear_decay(progress: float) -> float:
    return max(0.0, 1 - progress / DECAY_END)


def cosine_decay(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress / DECAY_END)))


def warmup_decay(progress: float) -> float:
    """Up linearly over the first tenth, then down linearly to zero at DECAY_END."""
    if progress < WARMUP_END:
        return progress / WARMUP_END
    return max(0.0, (DECAY_END - progress) / (DECAY_END - WARMUP_END))


SCHEDULES: dict[str, Callable[[float], float]] = {
    schedule.__name__: schedule for schedule in (constant, linear_decay, cosine_decay, warmup_decay)
}

# ---------------------------------------------------------------------------------------------
# What may be asked for


def check_settings(
    layers: Sequence[int],
    n_layer: int,
    weight: float,
    schedule: str,
    token_fraction: float,
    stop_frac: float,
    tokens_ahead: int,
    sequence_length: int,
) -> None:
    """Raise ValueError, naming the value and the remedy, for settings that mean nothing."""
    for layer in layers:
        if not 1 <= layer < n_layer:
            raise ValueError(
                f"--aux_head_layers {layer}: tap layers are 1 to {n_layer - 1}"
                f" (after the last block, {n_layer}, is the main head)"
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"--aux_head_layers {','.join(map(str, layers))}: give each layer once")
    if not 0 <= weight < math.inf:
        raise ValueError(f"--aux_loss_weight {weight}: give a finite number, 0 or above")
    if schedule not in SCHEDULES:
        raise ValueError(f"--aux_loss_schedule {schedule}: give one of {', '.join(SCHEDULES)}")
    if not 0 < token_fraction <= 1:
        raise ValueError(f"--aux_token_fraction {token_fraction}: give a number above 0, at most 1")
    if not 0 < stop_frac <= 1:
        raise ValueError(f"--aux_stop_frac {stop_frac}: give a number above 0, at most 1")
    if not 1 <= tokens_ahead <= sequence_length:
        raise ValueError(
            f"--aux_tokens_ahead {tokens_ahead}: give 1 (the next token) to {sequence_length}"
        )


# ---------------------------------------------------------------------------------------------
# Which layers and positions are predicted from


def draw_layer(layers: Sequence[int], seed: int, step: int) -> int:
    """One tap layer, each as likely, by seed and step alone: the expected loss is that of all
    ("switched deep supervision")."""
    return random.Random(f"layer {seed} {step}").choice(layers)


def sample_positions(
    batch_size: int, sequence_length: int, fraction: float, seed: int, step: int
) -> Tensor | None:
    """Positions (batch_size, S) of the whole global batch; None for all of them.

    One position is drawn in each of S equal strata, so that every position is as likely as any
    other: the mean over the sample is an unbiased estimate of the mean over all. The draw depends
    on seed and step alone, hence not on how the batch is spread over processes and passes.
    """
    if fraction == 1:
        return None
    count = max(1, round(fraction * sequence_length))
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    within = torch.rand(batch_size, count, generator=generator, dtype=torch.float64)
    positions = (torch.arange(count) + within) * (sequence_length / count)
    return positions.long().clamp_(max=sequence_length - 1)


def pick(values: Tensor, positions_BS: Tensor | None) -> Tensor:
    """values (B, T, ...) at the sampled positions: (B, S, ...)."""
    if positions_BS is None:
        return values
    starts = torch.arange(values.size(0), device=values.device) * values.size(1)
    flat = (positions_BS + starts.unsqueeze(1)).flatten()
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, positions_BS.shape)


# ---------------------------------------------------------------------------------------------
# Heads


class SharedHead(nn.Module):
    """norm -> translator -> the model's own unembedding.

    The translator is D x D on top of the identity and starts at zero, so that at first the head is
    the logit lens; it has a bias and the norm a gain, as in a block. The unembedding belongs to
    the model: it learns from the main loss and, with the loss weight, from the heads.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.translator = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, stream_BSD: Tensor, unembed: Callable[..., Tensor]) -> Tensor:
        """unembed: what is done with the translated stream: logits, or a loss of them."""
        x = F.rms_norm(stream_BSD, self.gain.shape, self.gain.type_as(stream_BSD))
        return unembed(x + F.linear(x, self.translator.type_as(x), self.bias.type_as(x)))


class OwnHead(SharedHead):
    """The same with an unembedding of its own: V x D parameters more and a bias, zero at first."""

    def __init__(self, dim: int, vocab_size: int):
        super().__init__(dim)
        self.unembedding = nn.Parameter(torch.zeros(vocab_size, dim))
        self.unembedding_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, stream_BSD: Tensor, unembed: Callable[..., Tensor]) -> Tensor:
        own = self.unembedding, self.unembedding_bias
        return super().forward(stream_BSD, lambda x: unembed(x, *own))


class AuxHeads(nn.Module):
    """A head at each tap layer L: after L blocks, 1 to n_layer - 1."""

    def __init__(
        self,
        layers: Sequence[int],
        dim: int,
        vocab_size: int,
        own: bool = False,
        tokens_ahead: int = 1,
    ):
        super().__init__()
        self.layers, self.beyond = tuple(layers), tokens_ahead - 1
        self.heads = nn.ModuleList(
            OwnHead(dim, vocab_size) if own else SharedHead(dim) for _ in self.layers
        )

    def forward(
        self,
        taps: dict[int, Tensor],
        targets_BT: Tensor,
        positions_BS: Tensor | None,
        loss: Callable[..., Tensor],
        only: int | None = None,
    ) -> Tensor:
        """Mean over heads of the mean cross-entropy at the sampled positions, nats/token.

        taps: the residual stream (B, T, D) after each tap layer; of `only` one of them where it is
        given. Position t predicts targets[t + beyond]; positions without one are left out, and the
        sampled ones are among the others. loss: normed stream and targets
        to mean cross-entropy, the model's own; takes another matrix and bias as its last arguments.
        """
        predicting = targets_BT.size(1) - self.beyond
        targets_BS = pick(targets_BT[:, self.beyond :], positions_BS)
        losses = [
            head(
                pick(taps[layer][:, :predicting], positions_BS),
                lambda x, *own: loss(x, targets_BS, *own),
            )
            for layer, head in zip(self.layers, self.heads, strict=True)
            if only in (None, layer)
        ]
        return torch.stack(losses).mean()
