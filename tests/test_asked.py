"""From the options of a command line, and the machine, to an experiment."""

import shlex
from dataclasses import replace

import pytest

from ablation.study.asked import UsageError, as_asked, new_experiment, profile_asked
from ablation.study.experiment import STOP_ON
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES, TERMS, check_terms
from run_aux import build_parser

SHARE = ("launcher", "device", "processes", "parallel_runs", "nodes")


def options(text: str):
    return build_parser().parse_args(["--staged", *shlex.split(text)])


def asked(text: str, gpus: int, profile: str = "speedrun"):
    given = options(text)
    return as_asked(new_experiment(HEADS, profile, gpus, cores=4), given, gpus)


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
        (
            "--launcher slurm --num_gpus 16 --gpus_per_run 4 --nodes_per_run 2",
            0,
            ("slurm", "cuda", 4, 4, 2),
        ),
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
    ],
)
def test_a_share_that_cannot_be_is_refused(text, gpus, words):
    with pytest.raises(UsageError, match=words):
        asked(text, gpus)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("", "sigma0", 0.0013),
        ("--sigma0 .002", "sigma0", 0.002),
        ("--delta_eq .002", "delta_eq", 0.002),
        ("--delta_target .09", "delta_target", 0.09),
        ("--alpha .01", "alpha", 0.01),
        ("--pairing 0", "pairing", 0.0),  # a share that is given, not one that is missing
        ("--pairing .8", "pairing", 0.8),
        ("--rho 0", "rho", 0.0),
        ("--rho .99", "rho", 0.99),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_term_replaces_that_of_any_profile_and_no_other(text, field, value, profile):
    design = asked(f"--plan adaptive --profile {profile} {text}", 0).profile.design
    own = PROFILES[profile].design
    assert design == replace(own, **{field: value if text else getattr(own, field)})


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("", "screen", False),
        ("--screen", "screen", True),
        ("", "stop_on", "any"),
        *((f"--stop_on {what}", "stop_on", what) for what in STOP_ON),
        ("--validation_runs 2", "validation_runs", 2),
    ],
)
def test_what_the_adaptive_plan_takes(text, field, value):
    assert getattr(asked(f"--plan adaptive {text}", 0), field) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--sigma0 0", r"--sigma0 0.0: give a number above 0, from 1e-9 to 1000$"),
        ("--sigma0 -1", "--sigma0 -1.0: give a number above 0"),
        ("--sigma0 inf", "--sigma0 inf: give a number above 0"),
        ("--delta_eq nan", "--delta_eq nan: give a number above 0"),
        ("--delta_eq .02", r"--delta_eq 0.02: give less than delta_target 0.02, or a larger"),
        ("--delta_target .001", "give less than delta_target 0.001, or a larger"),
        ("--alpha 0", "--alpha 0.0: give a level"),
        ("--alpha .5", r"--alpha 0.5: give a level from 1e-6 to below 0.5$"),
        ("--pairing -.1", "--pairing -0.1: give a share"),
        ("--pairing .81", r"--pairing 0.81: give a share from 0 to 0.8$"),
        ("--rho 1", r"--rho 1.0: give a correlation from 0 to below 1$"),
        ("--rho -.1", "--rho -0.1: give a correlation"),
        ("--validation_runs 1", r"--validation_runs 1: a single pair concludes nothing; give 2"),
    ],
)
def test_a_term_that_cannot_be_meant_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        asked(f"--plan adaptive {text}", 0)


@pytest.mark.parametrize(
    ("text", "plans"),
    [
        ("--stop_on any", ("adaptive",)),
        ("--screen", ("adaptive",)),
        ("--pairing 0", ("adaptive",)),
        ("--rho 0", ("adaptive",)),
        ("--alpha .01", ("adaptive",)),
        ("--delta_target .03", ("adaptive",)),
        ("--sigma0 .001", ("adaptive", "classic")),
        ("--delta_eq .001", ("adaptive", "classic")),
    ],
)
def test_an_option_is_refused_where_it_would_change_nothing(text, plans):
    ways = {
        "adaptive": ["--staged", "--plan", "adaptive"],
        "classic": ["--staged"],
        "manual": ["--experiment", "baseline"],
    }
    for plan, words in ways.items():
        options = build_parser().parse_args([*words, *text.split()])
        e = new_experiment(HEADS, "speedrun", 0, cores=4)
        if plan in plans:
            assert as_asked(e, options, 0).plan == plan
            continue
        with pytest.raises(UsageError, match=f"^{text.split()[0]}.*: it is for --plan adapt|class"):
            as_asked(e, options, 0)


def test_who_goes_on_keeps_the_terms_that_were_asked_for():
    e = asked("--plan adaptive --profile mini --sigma0 .02 --screen --pairing 0", 0)
    assert as_asked(e, options("--profile mini"), 0) == e  # a queue may name it again
    other = as_asked(e, options("--profile small"), 0)
    assert other.profile.design == PROFILES["small"].design


@pytest.mark.parametrize("field", TERMS)
@pytest.mark.parametrize("value", [None, True, -1, 10**400, 1e308, float("nan"), "", [], {"a": 1}])
def test_every_term_is_checked_against_everything(field, value):
    design = replace(PROFILES["mini"].design, **{field: value})
    with pytest.raises(ValueError, match=f"^{field} .*: give "):
        check_terms(design)


def test_the_terms_of_every_profile_can_be_meant():
    assert TERMS.keys() == vars(PROFILES["mini"].design).keys() - {"noise_known"}
    for profile in PROFILES.values():
        check_terms(profile.design)


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
    assert e.profile.own_scale.device_batch_size == min(64, e.profile.own_scale.batch_size // 8)
    assert asked("--device_batch_size 16", 8).profile.own_scale.device_batch_size == 16
