"""From the options of a command line, and the machine, to an experiment."""

import shlex

import pytest

from ablation.study.asked import UsageError, as_asked, new_experiment, profile_asked
from run_aux import build_parser

SHARE = ("launcher", "device", "processes", "parallel_runs", "nodes")


def options(text: str):
    return build_parser().parse_args(["--staged", *shlex.split(text)])


def asked(text: str, gpus: int, profile: str = "speedrun"):
    given = options(text)
    return as_asked(new_experiment(profile, gpus, cores=4), given, gpus)


@pytest.mark.parametrize(
    ("text", "gpus", "share"),
    [
        ("", 8, ("local", "cuda", 8, 1, 1)),
        ("", 1, ("local", "cuda", 1, 1, 1)),
        ("", 0, ("local", "cpu", 1, 1, 1)),
        ("--num_gpus 4", 8, ("local", "cuda", 4, 1, 1)),
        ("--num_gpus 0", 8, ("local", "cpu", 1, 1, 1)),
        ("--gpus_per_run 2", 8, ("local", "cuda", 2, 4, 1)),
        ("--gpus_per_run 3", 8, ("local", "cuda", 3, 2, 1)),
        ("--num_gpus 4 --gpus_per_run 1", 8, ("local", "cuda", 1, 4, 1)),
        ("--parallel_runs 2", 0, ("local", "cpu", 1, 2, 1)),
        ("--num_gpus 0 --parallel_runs 2", 8, ("local", "cpu", 1, 2, 1)),
        ("--launcher slurm", 0, ("slurm", "cuda", 8, 1, 1)),  # what the profile is meant for
        ("--launcher slurm --num_gpus 16", 0, ("slurm", "cuda", 16, 1, 1)),
        ("--launcher slurm --num_gpus 16 --gpus_per_run 8", 0, ("slurm", "cuda", 8, 2, 1)),
        ("--launcher slurm --num_gpus 16 --nodes_per_run 2", 0, ("slurm", "cuda", 16, 1, 2)),
        ("--launcher slurm --num_gpus 0 --parallel_runs 3", 0, ("slurm", "cpu", 1, 3, 1)),
        ("--launcher slurm --num_gpus 0 --nodes_per_run 2", 0, ("slurm", "cpu", 2, 1, 2)),
        ("--launcher slurm --num_gpus 16 --gpus_per_run 4 --nodes_per_run 2", 0,
         ("slurm", "cuda", 4, 4, 2)),
    ],
)
def test_a_run_gets_the_share_that_was_asked_for(text, gpus, share):
    e = asked(text, gpus)
    assert tuple(getattr(e.share, name) for name in SHARE) == share


@pytest.mark.parametrize(
    ("text", "gpus", "words"),
    [
        ("--num_gpus 8", 4, r"8 GPU\(s\) are asked for and 4 visible; give --num_gpus 4$"),
        ("--num_gpus 1", 0, r"give --num_gpus 0 \(the CPU\)$"),
        ("--gpus_per_run 9", 8, "there are 8 GPUs to share"),
        ("--gpus_per_run 1", 0, "there are 0 GPUs to share"),
        ("--num_gpus 0 --gpus_per_run 1", 8, "there are 0 GPUs to share"),
        ("--parallel_runs 2", 8, "for a CPU"),
        ("--num_gpus 0 --nodes_per_run 2", 8, "for --launcher slurm"),
        ("--nodes_per_run 2", 8, "for --launcher slurm"),
        ("--launcher slurm --num_gpus 16 --nodes_per_run 3", 0, "16 processes of a run do not"),
        ("--stop_on any", 8, "for --plan adaptive"),
    ],
)
def test_a_share_that_cannot_be_is_refused(text, gpus, words):
    with pytest.raises(UsageError, match=words):
        asked(text, gpus)


def test_a_share_is_only_changed_by_what_is_asked():
    e = asked("--launcher slurm --num_gpus 16 --gpus_per_run 8 --nodes_per_run 2", 0)
    assert as_asked(e, options("--launcher slurm"), 0) == e


@pytest.mark.parametrize(
    ("text", "gpus", "name"),
    [
        *[("", 8, "speedrun"), ("", 4, "speedrun"), ("", 3, "small"), ("", 1, "small")],
        *[("", 0, "mini"), ("--profile mini", 8, "mini")],
        ("--launcher slurm", 0, "mini"),
        ("--launcher slurm --num_gpus 16", 0, "speedrun"),
        ("--num_gpus 1", 8, "speedrun"),  # of the machine, not of the run
    ],
)
def test_the_profile_follows_the_gpus(text, gpus, name):
    found, why = profile_asked(options(text), gpus)
    assert found == name
    assert bool(why) == ("--profile" not in text)


def test_a_pass_has_no_more_sequences_than_a_process_has():
    e = asked("", 8)
    assert e.profile.device_batch_size == min(64, e.profile.batch_size // 8)
    assert asked("--device_batch_size 16", 8).profile.device_batch_size == 16
