"""An auxiliary head reads one stream, starts as the logit lens, and costs what it samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
from aux_heads import (
    DECAY_END,
    SCHEDULES,
    WARMUP_END,
    AuxHeads,
    check_settings,
    draw_layer,
    pick,
    sample_positions,
)
from train_gpt import GPT, build_parser

torch.set_num_threads(1)
V, T, D = 11, 12, 8


def tiny(*arguments: str, n_layer: int = 4, seed: int = 0) -> GPT:
    """A model none of whose matrices is zero, as after some training."""
    shape = f"--n_layer {n_layer} --n_head 2 --model_dim {D} --vocab_size {V} --sequence_length {T}"
    torch.manual_seed(seed)
    model = GPT(build_parser().parse_args([*shape.split(), *arguments]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def batch(size: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(V, (size, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model: GPT, heads: AuxHeads, taps, targets, positions=None) -> torch.Tensor:
    return heads(taps, targets, positions, model.loss)


# ---------------------------------------------------------------------------------------------
# Schedules


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 1.0, 1.0),
        ("linear_decay", 0.0, 1.0),
        ("linear_decay", DECAY_END / 2, 0.5),
        ("linear_decay", DECAY_END, 0.0),
        ("linear_decay", 1.0, 0.0),
        ("cosine_decay", 0.0, 1.0),
        ("cosine_decay", DECAY_END / 3, 0.75),
        ("cosine_decay", DECAY_END / 2, 0.5),
        ("cosine_decay", DECAY_END, 0.0),
        ("cosine_decay", 1.0, 0.0),
        ("warmup_decay", 0.0, 0.0),
        ("warmup_decay", WARMUP_END / 2, 0.5),
        ("warmup_decay", WARMUP_END, 1.0),
        ("warmup_decay", (WARMUP_END + DECAY_END) / 2, 0.5),
        ("warmup_decay", DECAY_END, 0.0),
        ("warmup_decay", 1.0, 0.0),
    ],
)
def test_schedule_at_its_boundaries(name, progress, expected):
    assert SCHEDULES[name](progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["linear_decay", "cosine_decay", "warmup_decay"])
def test_a_decay_is_exactly_zero_for_the_last_third(name):
    assert {SCHEDULES[name](step / 300) for step in range(200, 301)} == {0.0}


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1))
def test_a_multiplier_is_between_zero_and_one(name, progress):
    assert 0 <= SCHEDULES[name](progress) <= 1


# ---------------------------------------------------------------------------------------------
# What may be asked for


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": (0,)}, r"--aux_head_layers 0: tap layers are 1 to 11"),
        ({"layers": (12,)}, r"--aux_head_layers 12: tap layers are 1 to 11"),
        ({"layers": (-1,)}, r"--aux_head_layers -1: tap layers are 1 to 11"),
        ({"layers": (4, 4)}, r"--aux_head_layers 4,4: give each layer once"),
        ({"weight": -0.1}, r"--aux_loss_weight -0.1: give a finite number, 0 or above"),
        ({"weight": math.nan}, r"--aux_loss_weight nan: give"),
        ({"weight": math.inf}, r"--aux_loss_weight inf: give"),
        ({"schedule": "sawtooth"}, r"--aux_loss_schedule sawtooth: give one of constant, linear"),
        ({"token_fraction": 0.0}, r"--aux_token_fraction 0.0: give a number above 0, at most 1"),
        ({"token_fraction": 1.1}, r"--aux_token_fraction 1.1: give a number above 0, at most 1"),
        ({"token_fraction": math.nan}, r"--aux_token_fraction nan: give"),
        ({"stop_frac": 0.0}, r"--aux_stop_frac 0.0: give a number above 0, at most 1"),
        ({"stop_frac": 1.1}, r"--aux_stop_frac 1.1: give a number above 0, at most 1"),
        ({"stop_frac": math.nan}, r"--aux_stop_frac nan: give"),
        ({"tokens_ahead": 0}, r"--aux_tokens_ahead 0: give 1 \(the next token\) to 64"),
        ({"tokens_ahead": 65}, r"--aux_tokens_ahead 65: give 1 \(the next token\) to 64"),
    ],
)
def test_a_setting_without_meaning_is_named_with_its_remedy(change, named):
    good = {"layers": (1, 11), "weight": 0.0, "schedule": "constant", "token_fraction": 1.0}
    good |= {"stop_frac": 1.0, "tokens_ahead": 64, "n_layer": 12, "sequence_length": 64}
    check_settings(**good)
    with pytest.raises(ValueError, match=named):
        check_settings(**(good | change))


# ---------------------------------------------------------------------------------------------
# Sampled positions


@given(
    length=st.integers(1, 200),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 10_000),
)
def test_every_sequence_has_the_same_number_of_sampled_positions(length, fraction, seed, step):
    positions = sample_positions(3, length, fraction, seed, step)
    assert positions.shape == (3, max(1, round(fraction * length)))
    assert positions.min() >= 0
    assert positions.max() < length
    assert torch.equal(positions, sample_positions(3, length, fraction, seed, step))


def test_other_seeds_and_other_steps_sample_other_positions():
    drawn = [sample_positions(8, 64, 0.25, seed, step) for seed in (0, 1) for step in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sample_positions(4, 64, 0.25, 7, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_whole_needs_no_sample():
    assert sample_positions(4, 64, 1.0, 7, 3) is None


@pytest.mark.parametrize(("length", "fraction"), [(16, 0.25), (10, 0.3), (7, 0.5), (5, 0.01)])
def test_every_position_is_as_likely_as_any_other(length, fraction):
    """Also where the positions do not divide into strata of equal size."""
    positions = sample_positions(40_000, length, fraction, 0, 0)
    share = torch.bincount(positions.flatten(), minlength=length) / positions.numel()
    sd = math.sqrt(1 / length / positions.numel())
    assert (share * length - 1).abs().max() < 5 * sd * length


def test_a_sampled_loss_is_an_unbiased_estimate_of_the_full_loss():
    """Over 4,000 draws: within 4 standard errors, which are 1 % of the loss at most."""
    model = tiny("--aux_head_layers", "1,3")
    heads = AuxHeads((1, 3), D, V)
    inputs, targets = batch(2)
    with torch.no_grad():
        _, taps = model(inputs)
        full = loss_of(model, heads, taps, targets, None).item()
        losses = torch.tensor([
            loss_of(model, heads, taps, targets, sample_positions(2, T, 0.25, 5, draw)).item()
            for draw in range(4000)
        ])
    error = losses.std().item() / math.sqrt(len(losses))
    assert 0 < 4 * error < 0.01 * full
    assert abs(losses.mean().item() - full) < 4 * error


def test_a_sampled_loss_is_the_mean_over_its_positions():
    """Against a loop over heads, sequences and positions."""
    model, heads = tiny("--aux_head_layers", "1,3"), AuxHeads((1, 3), D, V)
    torch.nn.init.normal_(heads.heads[0].translator, std=0.3)
    inputs, targets = batch(3)
    positions = sample_positions(3, T, 0.25, 0, 0)
    _, taps = model(inputs)
    terms = []
    for layer, head in zip((1, 3), heads.heads, strict=True):
        for b in range(3):
            for t in positions[b].tolist():
                logits = head(taps[layer][b : b + 1, t : t + 1], model.unembed)[0, 0]
                terms.append(-logits.log_softmax(-1)[targets[b, t]])
    expected = torch.stack(terms).mean()
    assert torch.allclose(loss_of(model, heads, taps, targets, positions), expected, atol=1e-5)


def test_no_logits_are_built_for_positions_that_are_not_sampled(monkeypatch):
    model, heads, seen = tiny("--aux_head_layers", "2"), AuxHeads((2,), D, V), []
    inputs, targets = batch(3)
    _, taps = model(inputs)
    original = train_gpt.linear

    def linear(x, *weights):
        seen.append(x.numel() // D)
        return original(x, *weights)

    monkeypatch.setattr(train_gpt, "linear", linear)
    loss_of(model, heads, taps, targets, sample_positions(3, T, 0.25, 0, 0))
    assert seen == [3 * 3]


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_pick_takes_values_at_positions(rows, count, data):
    positions = data.draw(
        st.lists(
            st.lists(st.integers(0, 6), min_size=count, max_size=count),
            min_size=rows,
            max_size=rows,
        )
    )
    values = torch.arange(rows * 7 * 2).view(rows, 7, 2)
    picked = pick(values, torch.tensor(positions))
    assert picked.tolist() == [
        [values[b, t].tolist() for t in row] for b, row in enumerate(positions)
    ]


# ---------------------------------------------------------------------------------------------
# Heads


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_an_untrained_shared_head_is_the_logit_lens(layer):
    """A plain norm, the model's unembedding and softcap, applied to an earlier stream."""
    model, heads = tiny("--aux_head_layers", str(layer)), AuxHeads((layer,), D, V)
    inputs, _ = batch(2)
    _, taps = model(inputs)
    logits = heads.heads[0](taps[layer], model.unembed)
    z = F.rms_norm(taps[layer], (D,)) @ model.head.weight.T + model.head.bias
    assert torch.allclose(logits, 15 * z / torch.sqrt(z**2 + 15**2), atol=1e-5)


def test_a_tap_is_the_stream_after_so_many_blocks():
    """A model cut off behind the tap gives, through its main head, what the head gives."""
    model, short = tiny("--aux_head_layers", "2"), tiny(n_layer=2)
    short.load_state_dict(model.state_dict(), strict=False)
    inputs, targets = batch(2)
    _, taps = model(inputs)
    heads = AuxHeads((2,), D, V)
    heads.heads[0].gain = short.last_norm.gain
    loss = loss_of(model, heads, taps, targets)
    assert torch.allclose(loss, short.loss(short(inputs)[0], targets), atol=1e-5)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 3)])
@pytest.mark.parametrize("own", [False, True])
def test_gradients_reach_the_blocks_at_and_below_the_tap_and_no_others(layers, own):
    model = tiny("--aux_head_layers", ",".join(map(str, layers)))
    heads = AuxHeads(layers, D, V, own)
    if own:
        for head in heads.heads:
            torch.nn.init.normal_(head.unembedding)
    inputs, targets = batch(2)
    _, taps = model(inputs)
    loss_of(model, heads, taps, targets, None).backward()
    for number, block in enumerate(model.blocks, 1):
        for name, parameter in block.named_parameters():
            reached = parameter.grad is not None and parameter.grad.norm() > 0
            assert reached == (number <= max(layers)), (number, name)
    assert model.embedding.weight.grad.norm() > 0
    assert all(p.grad.norm() > 0 for head in heads.heads for p in head.parameters())
    assert (model.head.weight.grad is None) == own, "only a shared unembedding learns from heads"


def test_an_own_unembedding_starts_without_an_opinion():
    model, heads = tiny("--aux_head_layers", "2"), AuxHeads((2,), D, V, own=True)
    inputs, targets = batch(2)
    _, taps = model(inputs)
    loss = loss_of(model, heads, taps, targets, None)
    assert loss.item() == pytest.approx(math.log(V), abs=1e-6)


def test_heads_share_one_mean():
    """The auxiliary term does not grow with the number of heads."""
    model = tiny("--aux_head_layers", "1,2,3")
    inputs, targets = batch(2)
    _, taps = model(inputs)
    alone = [loss_of(model, AuxHeads((n,), D, V), taps, targets) for n in (1, 2, 3)]
    together = loss_of(model, AuxHeads((1, 2, 3), D, V), taps, targets)
    assert torch.allclose(together, torch.stack(alone).mean())


def test_a_single_layer_gives_the_loss_of_its_head():
    model, heads = tiny("--aux_head_layers", "1,3"), AuxHeads((1, 3), D, V)
    inputs, targets = batch(2)
    _, taps = model(inputs)
    for layer in (1, 3):
        loss = heads(taps, targets, None, model.loss, only=layer)
        assert torch.equal(loss, loss_of(model, AuxHeads((layer,), D, V), taps, targets))


def test_every_layer_is_drawn_as_often_and_seed_and_step_decide():
    drawn = [draw_layer((2, 5, 7), seed, step) for seed in (0, 1) for step in range(3000)]
    for layer in (2, 5, 7):
        assert abs(drawn.count(layer) - 2000) < 5 * math.sqrt(6000 * 2 / 9)
    assert drawn[:3000] != drawn[3000:]
    assert drawn[:3000] == [draw_layer((2, 5, 7), 0, step) for step in range(3000)]


@pytest.mark.parametrize("ahead", [1, 2, 5, T])
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_a_target_ahead_is_the_token_that_far_behind_the_position(ahead, fraction):
    """Against a loop; positions whose target lies beyond the window predict nothing."""
    model, heads = tiny("--aux_head_layers", "2"), AuxHeads((2,), D, V, tokens_ahead=ahead)
    tokens = torch.randint(V, (3, T + 1), generator=torch.Generator().manual_seed(1))
    positions = sample_positions(3, T - heads.beyond, fraction, 0, 0)
    _, taps = model(tokens[:, :-1])
    log_p = heads.heads[0](taps[2], model.unembed).log_softmax(-1)
    chosen = [range(T + 1 - ahead)] * 3 if positions is None else positions.tolist()
    terms = [-log_p[b, t, tokens[b, t + ahead]] for b in range(3) for t in chosen[b]]
    loss = loss_of(model, heads, taps, tokens[:, 1:], positions)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)


def test_a_head_is_light():
    assert sum(p.numel() for p in AuxHeads((1, 2), 64, 50_304).parameters()) == 2 * 64 * (64 + 2)
