"""Which experiment does a command line ask for?  A pure function of its options and the machine.

What the options leave open comes from the profile, and the profile from the GPUs; going on with an
experiment, from what was registered.
"""

from argparse import Namespace
from dataclasses import replace

from ablation.runs.run import Arm
from ablation.study.experiment import Experiment
from ablation.study.heads import ARMS, PHASES
from ablation.study.profiles import PROFILES, default_profile


class UsageError(ValueError):
    """A command line that cannot be meant."""


def arms_asked(options: Namespace) -> tuple[Arm, ...]:
    """The arms asked for by hand; none for a staged ablation."""
    if options.phase:
        return PHASES[options.phase]
    return tuple(ARMS[name.strip()] for name in (options.experiment or "").split(",") if name)


def profile_asked(options: Namespace, gpus: int) -> tuple[str, str]:
    """(name of the profile, why it is this one; empty where it was asked for)."""
    if options.profile:
        return options.profile, ""
    if options.launcher == "slurm" and options.num_gpus is not None:  # a login node has none
        return default_profile(options.num_gpus, "asked for")
    return default_profile(gpus)


def new_experiment(profile: str, gpus: int, cores: int) -> Experiment:
    """The experiment that is begun where nothing else is asked for.

    gpus: visible ones, all for one run; 0 for the CPU. cores: that this process may use.
    """
    p = PROFILES[profile]
    return Experiment(
        profile=p,
        plan="classic",
        budget_hours=p.budget_hours,
        full_iterations=p.full_iterations,
        validation_runs=None,
        processes=gpus or 1,
        device="cuda" if gpus else "cpu",
        cores=cores,
    )


def as_asked(e: Experiment, options: Namespace, gpus: int) -> Experiment:
    """The experiment with everything put in that the options name. Raises UsageError for what
    cannot go together, ValueError for a share that cannot be divided."""
    if options.profile:
        e = replace(e, profile=PROFILES[options.profile])
    for name in ("full_iterations", "validation_runs", "stop_on", "unet_skips", "log_grad_norms"):
        if getattr(options, name) not in (None, False):
            e = replace(e, **{name: getattr(options, name)})
    if arms := arms_asked(options):
        e = replace(e, plan="manual", arms=arms, seeds=e.seeds or (42,))
    elif options.staged or options.stage or options.plan_report:
        plan = options.plan or (e.plan if e.plan != "manual" else "classic")
        e = replace(e, plan=plan, arms=(), seeds=())
    if options.runs or options.seeds:
        e = replace(e, seeds=options.seeds or tuple(range(42, 42 + options.runs)))
    if options.stop_on and e.plan != "adaptive":
        raise UsageError(f"--stop_on {options.stop_on}: it is for --plan adaptive; leave it out")
    e = with_share(e, options, gpus)
    per_process = max(1, e.profile.batch_size // e.processes)
    sequences = options.device_batch_size or min(e.profile.device_batch_size, per_process)
    return replace(e, profile=replace(e.profile, device_batch_size=sequences))


def with_share(e: Experiment, options: Namespace, gpus: int) -> Experiment:
    """The experiment with the share of a machine that the options give to a run. Their order
    counts: where runs are started, on how much in all, how that is divided, over how many nodes."""
    if options.launcher and options.launcher != e.launcher:
        # this may be a login node without a GPU: what the cluster has is for --num_gpus to say
        fits = e.profile.gpus or 1
        device = "cuda" if e.profile.gpus else "cpu"
        e = replace(e, launcher=options.launcher, device=device, processes=fits, slots=1, nodes=1)
    if options.num_gpus is not None:
        device = "cuda" if options.num_gpus else "cpu"
        e = replace(e, device=device, processes=options.num_gpus or 1, slots=1, nodes=1)
    used = e.processes * e.slots
    if e.device == "cuda" and e.launcher == "local" and used > gpus:
        raise UsageError(
            f"{used} GPU(s) are asked for and {gpus} visible;"
            f" give --num_gpus {gpus}{'' if gpus else ' (the CPU)'}"
        )
    if options.gpus_per_run is not None:
        there = used if e.device == "cuda" else 0
        if options.gpus_per_run > there:
            raise UsageError(
                f"--gpus_per_run {options.gpus_per_run}: there are {there} GPUs to share; on a CPU"
                " give --parallel_runs"
            )
        e = replace(e, processes=options.gpus_per_run, slots=used // options.gpus_per_run)
    for name, field in (("cpu_processes", "processes"), ("parallel_runs", "slots")):
        if getattr(options, name) is not None:
            if e.device == "cuda" and e.launcher == "local":
                raise UsageError(f"--{name}: for a CPU; with GPUs give --gpus_per_run")
            e = replace(e, **{field: getattr(options, name)})
    if e.processes % e.nodes:
        raise ValueError(f"{e.processes} processes of a run do not divide over {e.nodes} nodes")
    if options.nodes_per_run is not None:
        if e.launcher != "slurm" or e.processes % options.nodes_per_run:
            raise UsageError(
                f"--nodes_per_run {options.nodes_per_run}: for --launcher slurm, and a divisor of"
                f" the {e.processes} processes of a run"
            )
        e = replace(e, nodes=options.nodes_per_run)
    return e
