"""Which experiment does a command line ask for?  A pure function of its options and the machine.

What the options leave open comes from the profile, and the profile from the GPUs; going on with an
experiment, from what was registered.
"""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from ablation.runs.run import Arm
from ablation.study.arm_option import OWN_SCRIPT
from ablation.study.document import StudyFaults
from ablation.study.experiment import Experiment, Share, profile_of, with_scale
from ablation.study.heads import HEADS, SCHEDULE, WEIGHT, aux
from ablation.study.profiles import PROFILES, Design, Profile, Scale, check_terms, default_profile
from ablation.study.sense import faults_of_equal_arms
from ablation.study.study import Study
from ablation.study.study_file import as_written, read_study, study_of_arms

ADAPTIVE, STAGED = ("adaptive",), ("classic", "adaptive")
TERMS_ASKED = {  # option, a field of Design: the plans that it changes something in, what it is
    # The classic plan's rules have their own level and target; power and report use the others.
    "sigma0": (STAGED, "sd of a final loss between seeds"),
    "delta_eq": (STAGED, "smallest improvement of interest"),
    "delta_target": (ADAPTIVE, "improvement hoped for"),
    "alpha": (ADAPTIVE, "level of the verdict, two-sided"),
    "pairing": (ADAPTIVE, "share of alpha for pairs"),
    "rho": (ADAPTIVE, "correlation within a seed"),
}
PLANS_OF = {  # option: the same of all that are not for every plan
    **{name: plans for name, (plans, _) in TERMS_ASKED.items()},
    "stop_on": ADAPTIVE,
    "screen": ADAPTIVE,
    "first_seed": STAGED,
}
FIELDS_ASKED = (  # options that are fields of an Experiment
    *("full_iterations", "validation_runs", "stop_on", "screen"),
    *("first_seed", "unet_skips", "log_grad_norms"),
)
OF_OUR_TRAINER = ("device_batch_size", "unet_skips", "log_grad_norms")  # options for no other


class UsageError(ValueError):
    """A command line that cannot be meant."""


def study_asked(options: Namespace, registered: Study = HEADS) -> Study:
    """The study that a command line names; else the registered one, or the built-in one. Raises
    ValueError, a line for each fault, for a file that is none."""
    arms = [arm_named(text) for text in options.arm or ()]
    script = options.train_script or OWN_SCRIPT
    if options.study:
        return read_study(options.study, arms, script)
    return study_of_arms(arms, script=script) if arms else registered


def arm_named(text: str) -> tuple[str, str]:
    """(name, flags) of an --arm. Raises UsageError for one without flags."""
    name, _, flags = text.partition("=")
    if not (name.strip() and flags.strip()):
        raise UsageError(f"--arm {text}: give a name and its flags, as low_lr='--muon_lr 0.02'")
    return name.strip(), flags.strip()


def best_asked(options: Namespace, study: Study) -> Arm | None:
    """The configuration that a command line chooses by hand. Raises UsageError for one that the
    study does not have."""
    if options.best_layers:
        if study.words != HEADS.words:
            raise UsageError(f"--best_layers: for {HEADS.name}; {study.name} has --best ARM")
        terms = options.best_weight or WEIGHT, options.best_schedule or SCHEDULE
        return aux(options.best_layers, "by_hand", *terms)
    if options.best is None:
        return None
    arms = {arm.name: arm for arm in study.arms}
    refinements = {change.name: change for change in (*study.refinements, *study.cells)}
    name, plus, refinement = options.best.partition("+")
    for given, known in ((name, arms), *([(refinement, refinements)] if plus else [])):
        if given not in known:
            raise UsageError(f"--best {options.best}: no {given!r}; give one of {', '.join(known)}")
    arm = replace(arms[name], name="by_hand")
    return study.refined(arm, refinements[refinement], "by_hand") if plus else arm


def arms_asked(options: Namespace, study: Study) -> tuple[Arm, ...]:
    """The arms asked for by hand; none for a staged ablation. Raises UsageError for one that the
    study does not have, with its like."""
    phases = {phase.name: phase.arms for phase in study.phases}
    if options.phase is not None:
        if options.phase not in phases:
            raise UsageError(f"--phase {options.phase}: give one of {', '.join(phases)}")
        return phases[options.phase]
    if options.experiment is None:
        return ()
    names = [name.strip() for name in options.experiment.split(",")]
    for name in names:
        if name not in study.by_hand:
            close = ", ".join(get_close_matches(name, study.by_hand, 3)) or "see --list"
            raise UsageError(f"--experiment {name!r}: no such arm; did you mean: {close}")
    return tuple(study.by_hand[name] for name in names)


def profile_asked(options: Namespace, gpus: int, study: Study = HEADS) -> tuple[str, str]:
    """(name of the profile, why it is this one; empty where it was asked for)."""
    if options.profile:
        return options.profile, ""
    if study.trainer.profile in PROFILES:
        return study.trainer.profile, f"of {study.name}"
    if options.launcher == "slurm" and options.num_gpus is not None:  # a login node has none
        return default_profile(options.num_gpus, "asked for")
    return default_profile(gpus)


def new_experiment(study: Study, profile: str, gpus: int, cores: int) -> Experiment:
    """The experiment that is begun where nothing else is asked for. profile: of this project's own
    trainer; another one has costs of its own.

    gpus: visible ones, all for one run; 0 for the CPU. cores: that this process may use.
    """
    trainer = study.trainer
    p = PROFILES[profile] if trainer.is_ours else profile_of(study, gpus)
    if study.noise:
        p = replace(p, design=study.noise)
    return Experiment(
        profile=p,
        plan="classic",
        budget_hours=trainer.budget_hours or p.budget_hours,
        full_iterations=trainer.full_iterations or p.full_iterations,
        validation_runs=None,
        share=Share("cuda" if gpus else "cpu", processes=gpus or 1, cores=cores),
        study=study,
    )


def as_asked(e: Experiment, options: Namespace, gpus: int) -> Experiment:
    """The experiment with everything put in that the options name. Raises UsageError for what
    cannot go together, ValueError for a share that cannot be divided."""
    if options.profile not in (None, e.profile.name):
        e = replace(e, profile=profile_named(options.profile, e.study))
    e = replace(e, **given(options, FIELDS_ASKED))
    if arms := arms_asked(options, e.study):
        e = replace(e, plan="manual", arms=arms, seeds=e.seeds or (42,))
    elif is_staged(options):
        plan = options.plan or (e.plan if e.plan != "manual" else "classic")
        e = replace(e, plan=plan, arms=(), seeds=())
    if options.runs or options.seeds:
        e = replace(e, seeds=options.seeds or tuple(range(42, 42 + options.runs)))
    check_plan(options, e.plan)
    if options.validation_runs == 1 and e.plan in ADAPTIVE:
        raise UsageError("--validation_runs 1: a single pair concludes nothing; give 2 or more")
    e = replace(e, share=share_asked(options, e.share, gpus, e.profile))
    design = design_asked(options, e.profile.design)
    if e.screen and not design.noise_known:
        raise UsageError("--screen: stage 1 of this study measures its noise; give that in [noise]")
    e = replace(e, profile=replace(e.profile, design=design))
    if e.study.noise:
        e = replace(e, study=replace(e.study, noise=design))
    if scale := e.profile.scale:
        check_arms(e.study, scale, options)
        per_process = max(1, scale.batch_size // e.share.processes)
        sequences = options.device_batch_size or min(scale.device_batch_size, per_process)
        return with_scale(e, device_batch_size=sequences)
    for name in OF_OUR_TRAINER:
        if getattr(options, name):
            raise UsageError(f"--{name}: it is for this project's trainer; leave it out")
    return e


def profile_named(name: str, study: Study) -> Profile:
    """The profile that is asked for, with the noise of the study. Raises UsageError where the
    trainer has none."""
    if not study.trainer.is_ours:
        raise UsageError(f"--profile {name}: the trainer of {study.name} has none; leave it out")
    profile = PROFILES[name]
    return replace(profile, design=study.noise) if study.noise else profile


def check_arms(study: Study, scale: Scale, options: Namespace) -> None:
    """Raise StudyFaults for arms that, at this scale, are told no more than the baseline, or than
    another."""
    if faults := faults_of_equal_arms(study, scale):
        raise StudyFaults(as_asked_for(faults, options))


def as_asked_for(faults: Iterable[str], options: Namespace) -> Iterable[str]:
    """Faults of a study with what it is called on the command line."""
    return as_written(faults, options.study, options.arm or ())


def given(options: Namespace, names: Iterable[str]) -> dict:
    """Those of these options that the command line names; a share of 0 is one."""
    values = {name: getattr(options, name) for name in names}
    return {name: v for name, v in values.items() if v is not None and v is not False}


def check_plan(options: Namespace, plan: str) -> None:
    """Raise UsageError for an option that would change nothing in this plan."""
    for name, value in given(options, PLANS_OF).items():
        if plan not in PLANS_OF[name]:
            words = f"--{name}" if value is True else f"--{name} {value}"
            plans = " or ".join(PLANS_OF[name])
            remedy = "give that plan, or leave it out"
            raise UsageError(f"{words}: it is for --plan {plans}; {remedy}")


def design_asked(options: Namespace, design: Design) -> Design:
    """The statistical terms with those that the options name. Raises UsageError, as above."""
    if options.sigma0 and not design.noise_known:
        design = design.with_noise(options.sigma0)
    design = replace(design, **given(options, TERMS_ASKED))
    try:
        check_terms(design)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    return design


def is_staged(options: Namespace) -> bool:
    """Whether stages are asked for; a preflight is of them where it names a plan."""
    named = options.staged or options.stage or options.plan_report
    return bool(named or (options.preflight and options.plan))


def share_asked(options: Namespace, before: Share, gpus: int, profile: Profile) -> Share:
    """The share of a machine that the options ask for; what they leave open stays as it was.

    gpus: visible ones. profile: for what a cluster is taken to have where nobody says it: this may
    be a login node, without a GPU. Raises UsageError, or ValueError for a share of before that
    cannot be divided in the way that is asked for now.
    """
    launcher = options.launcher or before.launcher
    whole = options.num_gpus
    if whole is None and launcher != before.launcher:
        whole = profile.gpus
    base = before if whole is None else Share("cuda" if whole else "cpu", processes=whole or 1)
    in_all = base.processes * base.parallel_runs
    processes = options.gpus_per_run or base.processes
    nodes = options.nodes_per_run or base.nodes
    share = Share(
        device=base.device,
        processes=nodes if base.device == "cpu" else processes,
        parallel_runs=options.parallel_runs or in_all // processes,
        nodes=nodes,
        launcher=launcher,
        cores=before.cores,
    )
    check_share(options, share, in_all, gpus)
    return share


def check_share(options: Namespace, share: Share, in_all: int, gpus: int) -> None:
    """Raise for options that no machine can follow, as above. in_all: processes of all runs that
    are to run at a time; on GPUs, so many GPUs. gpus: visible ones."""
    on_gpus = share.device == "cuda"
    if on_gpus and share.launcher == "local" and in_all > gpus:
        raise UsageError(
            f"{in_all} GPU(s) are asked for and {gpus} visible;"
            f" give --num_gpus {gpus}{'' if gpus else ' (the CPU)'}"
        )
    there = in_all if on_gpus else 0
    if options.gpus_per_run is not None and options.gpus_per_run > there:
        raise UsageError(
            f"--gpus_per_run {options.gpus_per_run}: there are {there} GPUs to share; on a CPU"
            " give --parallel_runs"
        )
    if options.parallel_runs is not None and on_gpus and share.launcher == "local":
        raise UsageError("--parallel_runs: for a CPU; with GPUs give --gpus_per_run")
    if options.nodes_per_run is not None and share.launcher != "slurm":
        raise UsageError("--nodes_per_run: for --launcher slurm; leave it out")
    if share.processes % share.nodes:
        odd = f"{share.processes} processes of a run do not divide over {share.nodes} nodes"
        if options.nodes_per_run is None:  # it was registered
            raise ValueError(odd)
        raise UsageError(f"--nodes_per_run {options.nodes_per_run}: {odd}; give a divisor")
