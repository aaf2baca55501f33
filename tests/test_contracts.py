"""What is written on two sides is the same on both: the program that asks, and what it calls."""

import argparse
import dataclasses
import itertools
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import aux_heads
import train_gpt
from ablation.cli.checks import MOST
from ablation.execute import before_run_1
from ablation.execute.command import build_command
from ablation.folder.materials import Materials
from ablation.folder.registration import seeds_of
from ablation.plan.next_step import PLANS
from ablation.plan.validation import MAX_GIVEN_UP
from ablation.runs.run import RunConfig
from ablation.study.experiment import MOST_FIRST_SEED, Experiment
from ablation.study.heads import ALL_SCHEDULES, HEADS, SCHEDULE, SCHEDULES, check_choice
from ablation.study.profiles import PROFILES, TRAINER_FLAGS
from data import prepare
from tests.support.invent import (
    ARMS,
    code_at,
    experiment,
    layers_of,
    rescaled,
    schedule_of,
    settings_of,
    with_share,
)

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = vars(train_gpt.build_parser().parse_args([]))

# ---------------------------------------------------------------------------------------------
# Every command that can be built is one that the trainer takes

STAGES = [stage for plan in PLANS.values() for stage in plan(HEADS)]
EVERY_ARM = (*ARMS.values(), *(arm for stage in STAGES for arm in stage.arms))


def shares(profile) -> list[Experiment]:
    """The machines that a profile may get: its own, and all smaller ones that share its batch."""
    device = "cuda" if profile.gpus else "cpu"
    scale = profile.own_scale
    largest = profile.gpus or scale.batch_size
    sizes = [n for n in range(1, largest + 1) if scale.batch_size % n == 0]
    found = [
        experiment(
            profile=rescaled(
                profile, device_batch_size=min(scale.device_batch_size, scale.batch_size // size)
            ),
            processes=size,
            device=device,
            full_iterations=profile.full_iterations,
        )
        for size in sizes
    ]
    nodes = [(e, n) for e in found for n in (1, 2) if e.share.processes % n == 0]
    return [with_share(e, nodes=n) for e, n in nodes]


def as_the_trainer_reads(e, run) -> argparse.Namespace:
    command = build_command(e, run, code_at("train_gpt.py"), Path("data"), Path("run"))
    flags = command[command.index("train_gpt.py") + 1 :]
    return train_gpt.build_parser().parse_args(flags)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_the_flags_of_every_arm_go_through_the_trainers_own_parser_and_checks(profile):
    for e in shares(profile):
        world = train_gpt.World(0, e.share.processes, torch.device("cpu"))
        for arm in EVERY_ARM:
            most = MOST["validation_runs"] + MAX_GIVEN_UP
            last = replace(e, first_seed=MOST_FIRST_SEED).seed(4, most)
            run = RunConfig(1, arm, 0, last, e.full_iterations)
            args = as_the_trainer_reads(e, run)
            train_gpt.check_arguments(args, world)
            assert args.aux_head_layers == layers_of(arm)
            if not arm.is_baseline:
                assert (args.aux_loss_weight, args.aux_loss_schedule) == settings_of(arm)
            assert (args.seed, args.num_iterations) == (run.seed, run.num_iterations)
            assert args.device == e.share.device


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_what_a_profile_says_is_what_the_trainer_gets(profile):
    e = shares(profile)[0]
    args = vars(as_the_trainer_reads(e, RunConfig(0, EVERY_ARM[0], 0, 1, 5)))
    for name in TRAINER_FLAGS:
        assert args[name] == getattr(e.profile.own_scale, name), name
    left_to_the_trainer = set(args) - set(TRAINER_FLAGS)
    assert left_to_the_trainer == {
        *("num_iterations", "data_dir", "seed", "device", "log_file"),
        *("aux_head_layers", "aux_loss_weight", "aux_loss_schedule"),
        *("unet_skips", "log_grad_norms", "check"),
        # no arm is about these
        *("aux_unembedding", "aux_one_layer", "aux_stop_frac", "aux_tokens_ahead"),
    }


@pytest.mark.parametrize("flag", ["unet_skips", "log_grad_norms"])
def test_what_is_asked_of_all_arms_is_a_flag_of_the_trainer(flag):
    e = experiment(**{flag: True})
    args = as_the_trainer_reads(e, RunConfig(0, ARMS["aux_4_8"], 0, 1, 5))
    assert getattr(args, flag) is True
    assert (
        getattr(as_the_trainer_reads(experiment(), RunConfig(0, ARMS["aux_4"], 0, 1, 5)), flag)
        is False
    )


# ---------------------------------------------------------------------------------------------
# Values that are written on both sides


def test_the_speedrun_profile_is_the_trainers_defaults():
    speedrun = PROFILES["speedrun"]
    for name in TRAINER_FLAGS:
        assert DEFAULTS[name] == getattr(speedrun.own_scale, name), name
    assert DEFAULTS["num_iterations"] == speedrun.full_iterations
    assert DEFAULTS["data_dir"] == Path(speedrun.data_dir)
    assert DEFAULTS["aux_loss_schedule"] == SCHEDULE


def test_schedules_are_those_that_the_trainer_knows():
    assert set(ALL_SCHEDULES) == set(aux_heads.SCHEDULES)
    assert set(SCHEDULES) <= set(ALL_SCHEDULES)
    schedules = {schedule_of(arm) for arm in EVERY_ARM if not arm.is_baseline}
    assert schedules == set(aux_heads.SCHEDULES)


@pytest.mark.parametrize("layers", [(0,), (1,), (11,), (12,), (4, 8), (-1,)])
@pytest.mark.parametrize("schedule", [*ALL_SCHEDULES, "sawtooth"])
def test_a_choice_by_hand_is_let_through_where_the_trainer_would(layers, schedule):
    def accepts(check, *values):
        try:
            check(*values)
        except ValueError:
            return False
        return True

    for profile in PROFILES.values():
        mine = accepts(check_choice, layers, 0.1, schedule)
        scale = profile.own_scale
        rest = (scale.aux_token_fraction, 1.0, 1, scale.sequence_length)
        settings = (layers, scale.n_layer, 0.1, schedule, *rest)
        theirs = accepts(aux_heads.check_settings, *settings)
        assert mine is theirs


def test_seeds_of_the_stages_and_of_a_plan_by_hand_are_in_the_trainers_range():
    world = train_gpt.World(0, 1, torch.device("cpu"))
    e = experiment()
    experiments = (e, replace(e, first_seed=MOST_FIRST_SEED))
    ends = [n for each in experiments for s in STAGES for n in seeds_of(each, s).values()]
    for seed in (*ends, 0, before_run_1.SEEDS - 1):
        train_gpt.check_arguments(
            as_the_trainer_reads(e, RunConfig(0, EVERY_ARM[0], 0, seed, 5)), world
        )
    for seed in (-1, before_run_1.SEEDS):
        args = as_the_trainer_reads(e, RunConfig(0, EVERY_ARM[0], 0, seed, 5))
        with pytest.raises(ValueError, match="--seed"):
            train_gpt.check_arguments(args, world)


def test_one_format_of_shards():
    for theirs in (train_gpt, prepare):
        mine = (before_run_1.MAGIC, before_run_1.VERSION, before_run_1.HEADER_BYTES)
        assert mine == (theirs.MAGIC, theirs.VERSION, theirs.HEADER_BYTES)
    assert prepare.FINEWEB_TRAIN_SHARDS == before_run_1.HUB_SHARDS


def test_the_shards_that_prepare_makes_unasked_are_those_of_the_speedrun():
    speedrun = PROFILES["speedrun"]
    e = experiment(profile=speedrun, full_iterations=speedrun.full_iterations)
    assert before_run_1.shards_for(e) == prepare.FINEWEB_DEFAULT_SHARDS == 27
    e = replace(e, full_iterations=e.full_iterations * 26 // 27)
    assert before_run_1.shards_for(e) == 26


def test_a_validation_is_so_many_whole_windows():
    for profile in PROFILES.values():
        scale = profile.own_scale
        assert scale.val_tokens >= scale.sequence_length
        assert scale.val_tokens % scale.sequence_length == 0


def test_the_vocabulary_of_a_profile_holds_that_of_its_data():
    vocabularies = {
        "data/stdlib": prepare.STDLIB_VOCAB_SIZE,
        "data/fineweb": prepare.FINEWEB_VOCAB_SIZE,
    }
    for profile in PROFILES.values():
        assert (
            vocabularies[profile.data_dir]
            <= profile.own_scale.vocab_size
            < vocabularies[profile.data_dir] + 64
        )


# ---------------------------------------------------------------------------------------------
# Learning rates: of modded-nanogpt's track 3, with what differs from it and why

ANCESTOR = {  # its baseline of 2026-06
    "muon_lr": 0.025,
    "embed_lr": 0.7,
    "head_lr": 0.004,
    "scalar_lr": 0.015,
    "cooldown_frac": 0.7,
}
DIFFERENT = {
    "speedrun": {},
    "small": {},  # the same layers at half the width; nobody has searched for better ones
    # 90 steps on a vocabulary of 256 bytes, of which every row is met in every batch: an
    # embedding that needs no large steps, and a head that gets its few in the same time
    "mini": {"muon_lr": 0.02, "embed_lr": 0.2, "head_lr": 0.06},
}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_learning_rates_are_the_ancestors_apart_from_what_is_named_here(profile):
    found = {name: getattr(profile.own_scale, name) for name in ANCESTOR}
    assert found == ANCESTOR | DIFFERENT[profile.name]


# ---------------------------------------------------------------------------------------------
# What is refused before the first run is what the trainer would refuse

MINI = PROFILES["mini"]
T = 8
TINY = rescaled(MINI, sequence_length=T, batch_size=2, device_batch_size=2, val_tokens=4 * T)
TOKENS = list(range(200)) * 2


def shard(tokens=TOKENS, header=None):
    magic, version, count = header or (20240520, 1, len(tokens))
    head = struct.pack("<iii", magic, version, count).ljust(1024, b"\0")
    return head + struct.pack(f"<{len(tokens)}H", *tokens)


FOLDERS = {  # the shards of a folder, and the iterations of a run
    "good": ({"x_train_1.bin": shard(), "x_val_0.bin": shard()}, 24),
    "good with two": (
        {"x_train_1.bin": shard(), "x_train_2.bin": shard(), "x_val_0.bin": shard()},
        49,
    ),
    "one iteration too many": ({"x_train_1.bin": shard(), "x_val_0.bin": shard()}, 25),
    "with another file": ({"x_train_1.bin": shard(), "x_val_0.bin": shard(), "y.bin": b"?"}, 24),
    "no train": ({"x_val_0.bin": shard()}, 1),
    "no val": ({"x_train_1.bin": shard()}, 1),
    "another name": ({"train_1.bin": shard(), "x_val_0.bin": shard()}, 1),
    "an empty one beside": (
        {"x_train_1.bin": shard(), "x_train_2.bin": shard([]), "x_val_0.bin": shard()},
        24,
    ),
    "empty alone": ({"x_train_1.bin": shard([]), "x_val_0.bin": shard()}, 1),
    "short validation": ({"x_train_1.bin": shard(), "x_val_0.bin": shard(TOKENS[: 4 * T])}, 1),
    "just enough": ({"x_train_1.bin": shard(), "x_val_0.bin": shard(TOKENS[: 4 * T + 1])}, 1),
    "text": ({"x_train_1.bin": b"tokens", "x_val_0.bin": shard()}, 1),
    "nothing": ({"x_train_1.bin": b"", "x_val_0.bin": shard()}, 1),
    "cut off": ({"x_train_1.bin": shard()[:-1], "x_val_0.bin": shard()}, 1),
    "cut in the header": ({"x_train_1.bin": shard()[:100], "x_val_0.bin": shard()}, 1),
    "too long": ({"x_train_1.bin": shard() + b"12", "x_val_0.bin": shard()}, 1),
    "another magic": ({"x_train_1.bin": shard(header=(1, 1, 400)), "x_val_0.bin": shard()}, 1),
    "another version": (
        {"x_train_1.bin": shard(header=(20240520, 2, 400)), "x_val_0.bin": shard()},
        1,
    ),
    "negative": ({"x_train_1.bin": shard(header=(20240520, 1, -1)), "x_val_0.bin": shard()}, 1),
    "vocabulary": ({"x_train_1.bin": shard([*TOKENS, 256]), "x_val_0.bin": shard()}, 1),
    "vocabulary of validation": (
        {"x_train_1.bin": shard(), "x_val_0.bin": shard([256, *TOKENS])},
        1,
    ),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_said_before_run_1_refuses_the_data_that_the_trainer_refuses(folder, tmp_path):
    files, iterations = FOLDERS[folder]
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    e = experiment(profile=TINY, full_iterations=iterations)
    args = as_the_trainer_reads(e, RunConfig(1, EVERY_ARM[0], 0, 1, iterations))
    args.data_dir = tmp_path
    world = train_gpt.World(0, 1, torch.device("cpu"))

    def trainer():
        train_gpt.check_arguments(args, world)
        windows = [
            train_gpt.Windows(tmp_path, kind, args.sequence_length, args.vocab_size)
            for kind in ("train", "val")
        ]
        train_gpt.check(args, world, *windows)

    def ours():
        before_run_1.check_materials(Materials(ROOT / "train_gpt.py", tmp_path), e)

    if folder in (
        "good",
        "good with two",
        "with another file",
        "an empty one beside",
        "just enough",
    ):
        trainer()
        ours()
    else:
        for refuses in (trainer, ours):
            with pytest.raises(ValueError):
                refuses()


def remedy(check, *values) -> str | None:
    """What a refusal says to give; None where there is none."""
    try:
        check(*values)
    except ValueError as error:
        return str(error).rpartition("give ")[2]
    return None


def test_what_is_said_before_run_1_refuses_the_shares_that_the_trainer_refuses():
    def ours(e):
        before_run_1.check_arguments(e)
        before_run_1.check_passes(e)

    for processes, pass_size in itertools.product(range(1, 20), range(1, 20)):
        profile = rescaled(MINI, device_batch_size=pass_size)
        e = experiment(profile=profile, processes=processes)
        args = as_the_trainer_reads(e, RunConfig(1, EVERY_ARM[0], 0, 1, 5))
        world = train_gpt.World(0, processes, torch.device("cpu"))
        theirs, mine = remedy(train_gpt.check_arguments, args, world), remedy(ours, e)
        assert (theirs is None) is (mine is None), (processes, pass_size)
        if MINI.own_scale.batch_size % processes == 0:
            assert mine == theirs


def test_every_field_of_a_profile_that_the_trainer_has_is_handed_on():
    fields = {field.name for field in dataclasses.fields(MINI.own_scale)} & set(DEFAULTS)
    assert fields == set(TRAINER_FLAGS)
