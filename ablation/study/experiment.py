"""What is fixed before the first run?  With the results on disk it determines every next step."""

from dataclasses import dataclass, replace

from ablation.runs.run import Arm
from ablation.study.heads import HEADS
from ablation.study.overrides import NOTHING_OVERRIDDEN, Overrides
from ablation.study.profiles import Profile
from ablation.study.study import Study


@dataclass(frozen=True)
class Share:
    """The part of a machine that a run gets. Registered: losses do not depend on it, but costs,
    times and when looks are taken do."""

    device: str  # "cuda" or "cpu"
    processes: int = 1  # of one run; on GPUs one each, on a CPU one a node
    parallel_runs: int = 1  # at most so many at a time
    nodes: int = 1  # of one run, on Slurm
    launcher: str = "local"  # or "slurm"
    cores: int = 1  # processor cores of the machine: the plan asks no machine

    @property
    def paid_each(self) -> bool:
        """A job of a cluster is paid for whatever runs beside it; a machine is paid for once."""
        return self.launcher == "slurm"


@dataclass(frozen=True)
class FirstCosts:
    """What runs cost before the first has ended, as multiples of the profile's prior: measured in
    short runs (run_aux.py --preflight), or the prior itself."""

    train_ratio: float = 1.0  # of a training step
    rest_ratio: float = 1.0  # of start-up and validation


STOP_ON = {  # what ends the pairs of the adaptive plan
    "any": "any verdict",
    "label": "any verdict, and of an improvement the label too: target met, or below",
    "superiority": "improves or harmful: no equivalence stop before the last pair",
}


MOST_FIRST_SEED = 2**32 - 2 * 10**4  # so that every seed is one that the trainer takes


@dataclass(frozen=True)
class Experiment:
    """What was asked. Together with the results on disk it determines every next step."""

    profile: Profile
    plan: str  # a key of PLANS
    budget_hours: float
    full_iterations: int
    validation_runs: int | None  # most pairs in stage 4; None: the plan's own number
    share: Share  # of a machine, for a run
    arms: tuple[Arm, ...] = ()  # plan "manual" only
    seeds: tuple[int, ...] = ()  # plan "manual" only
    overrides: Overrides = NOTHING_OVERRIDDEN
    stop_on: str = "any"  # plan "adaptive": a key of STOP_ON; forecasts assume "never"
    screen: bool = False  # plan "adaptive": stage 1 has runs
    first_seed: int = 0  # added to every seed of the stages: 10000 makes an independent repeat
    unet_skips: bool = False  # in every arm, the baseline too
    log_grad_norms: bool = False  # of every run, at each validation
    first_costs: FirstCosts = FirstCosts()
    study: Study = HEADS

    def iterations(self, fraction: float) -> int:
        return max(1, round(self.full_iterations * fraction))

    def seed(self, stage: int, number: int) -> int:
        """Each stage has seeds of its own: what selected an arm never also confirms it."""
        return self.first_seed + 1000 * stage + number

    def with_overrides(self, overrides: Overrides) -> "Experiment":
        """The same with these, in place of what it has; their budget is in force."""
        hours = overrides.budget_hours(self.budget_hours)
        return replace(self, overrides=overrides, budget_hours=hours)


def asked_by(e: Experiment) -> str:
    """The option by which a command asks for it, or goes on with it."""
    if e.plan != "manual":
        return "--staged"
    return f"--experiment {','.join(arm.name for arm in e.arms)}"


def with_scale(e: Experiment, **changes) -> Experiment:
    """The experiment at another scale of this project's own trainer."""
    return replace(e, profile=replace(e.profile, scale=replace(e.profile.own_scale, **changes)))


FULL_RUNS = 30  # that the budget allows where nobody says another; chosen, as the plans ask for
STARTS = 0.1  # of a foreign trainer's expected time; chosen, until one run is measured


def profile_of(study: Study, gpus: int) -> Profile:
    """The costs of another trainer, as its study expects them on this machine."""
    trainer = study.trainer
    expected_s = 3600 * trainer.expected_hours
    assert study.noise, f"study {study.name}: a trainer of its own has noise of its own"
    return Profile(
        name=study.name,
        machine="the machine of its study",
        gpus=gpus,
        data_dir=trainer.data[0] if trainer.data else "",
        budget_hours=trainer.budget_hours or FULL_RUNS * trainer.expected_hours,
        full_iterations=trainer.full_iterations,
        step_s=(1 - STARTS) * expected_s / trainer.full_iterations,
        val_s=STARTS / 4 * expected_s,
        start_s=STARTS / 2 * expected_s,
        design=study.noise,
    )
