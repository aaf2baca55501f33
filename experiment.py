"""What is asked: the experiment as tables, and what a run of it is expected to cost.

Profiles (the scale) and arms (what is compared) are rows. An `Experiment` is everything that is
fixed before the first run; together with the results on disk it determines every next step
(plans.py).
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from adaptive import Design
from records import Arm, RunConfig, RunResult

QUESTION = (
    "Do auxiliary prediction heads at intermediate layers lower the final validation loss of a"
    " GPT, and which layers, weight and schedule do it best?"
)

HYPOTHESIS = (
    "Heads that predict the next token from earlier layers give these layers gradients of their"
    " own; with the best layers, weight and schedule the main head's final validation loss is lower"
    " than the baseline's."
)

# ---------------------------------------------------------------------------------------------
# Profiles: the scale that everything runs at


@dataclass(frozen=True)
class Profile:
    """One scale: model, data, optimizer, and the expected cost of a run before any is measured."""

    name: str
    machine: str  # what it is meant for
    gpus: int  # of that machine; the forecast's times are for so many (0: CPU)
    data_dir: str
    budget_hours: float
    full_iterations: int
    n_head: int
    model_dim: int
    vocab_size: int
    sequence_length: int
    batch_size: int  # sequences per step, all devices together
    device_batch_size: int  # sequences per forward pass on one device
    val_tokens: int
    val_loss_every: int
    muon_lr: float
    embed_lr: float
    head_lr: float
    scalar_lr: float
    step_s: float  # one training step of the baseline, on that machine
    val_s: float  # one validation
    start_s: float  # start-up, compilation and end of a run
    design: Design  # statistical terms of the adaptive plan
    cpu_threads: int = 0  # of a process on the CPU; 0: its share of the cores
    n_layer: int = 12
    cooldown_frac: float = 0.7
    aux_token_fraction: float = 0.125

    @property
    def flops_per_step(self) -> float:
        """6 N D for the matrices that multiply (Kaplan et al. 2020), attention left out."""
        matrices = 12 * self.n_layer * self.model_dim**2 + self.vocab_size * self.model_dim
        return 6 * matrices * self.batch_size * self.sequence_length


TRAINER_FLAGS = (  # fields of a profile that the trainer takes under the same name
    *("n_layer", "n_head", "model_dim", "vocab_size", "sequence_length"),
    *("cooldown_frac", "batch_size", "device_batch_size"),
    *("muon_lr", "embed_lr", "head_lr", "scalar_lr"),
    *("val_tokens", "val_loss_every", "aux_token_fraction"),
)

PROFILES = {
    profile.name: profile
    for profile in (
        # 150 ms a step on 8xH100 and 1069 ms on one H200: modded-nanogpt's track 3 logs.
        Profile(
            name="speedrun",
            machine="8 GPUs of the H100 class",
            gpus=8,
            data_dir="data/fineweb",
            budget_hours=7.0,
            full_iterations=5100,
            n_head=6,
            model_dim=768,
            vocab_size=50304,
            sequence_length=1024,
            batch_size=512,
            device_batch_size=64,
            val_tokens=10_485_760,
            val_loss_every=125,
            muon_lr=0.025,
            embed_lr=0.7,
            head_lr=0.004,
            scalar_lr=0.015,
            step_s=0.165,
            val_s=2.5,
            start_s=60.0,
            # 1,311 public runs of this scale in 102 groups of equal code: median sd .0012
            design=Design(sigma0=0.0013, delta_eq=0.005, delta_target=0.02, drop=0.15),
        ),
        Profile(
            name="small",
            machine="one GPU",
            gpus=1,
            data_dir="data/fineweb",
            budget_hours=7.0,
            full_iterations=3050,
            n_head=6,
            model_dim=384,
            vocab_size=50304,
            sequence_length=1024,
            batch_size=64,
            device_batch_size=32,
            val_tokens=1_048_576,
            val_loss_every=125,
            muon_lr=0.025,
            embed_lr=0.7,
            head_lr=0.004,
            scalar_lr=0.015,
            step_s=0.12,
            val_s=0.7,
            start_s=45.0,
            # not measured: twice the sigma of the speedrun, until somebody has repeated runs of it
            design=Design(sigma0=0.0026, delta_eq=0.01, delta_target=0.03, drop=0.2),
        ),
        Profile(
            name="mini",
            machine="any CPU",
            gpus=0,
            data_dir="data/stdlib",
            budget_hours=0.09,
            full_iterations=90,
            n_head=1,
            model_dim=48,
            vocab_size=256,
            sequence_length=64,
            batch_size=16,
            device_batch_size=64,
            val_tokens=32_768,
            val_loss_every=30,
            muon_lr=0.02,
            embed_lr=0.2,
            head_lr=0.06,
            scalar_lr=0.015,
            step_s=0.06,
            val_s=0.28,
            start_s=3.5,
            # measured: sd .0125 for 12 seeds of the baseline, .0148 for 12 of aux_4_8, .0152 for 12
            # short baselines (benchmarks/RESULTS.md); delta_eq is two sd, drop some twenty
            design=Design(sigma0=0.0135, delta_eq=0.027, delta_target=0.06, drop=0.3),
            # a second thread gains little on such small matrices, and threads that wait for each
            # other on a busy machine lose it many times over; and packed runs give equal losses
            cpu_threads=1,
        ),
    )
}

CPU_FLOPS = 3e10  # per core, what small fp32 matrix products reach in practice; for forecasts only


def default_profile(gpus: int, how: str = "visible") -> tuple[str, str]:
    """(profile, why) for so many GPUs: visible on this machine, or asked for on a cluster."""
    if gpus >= 4:
        return "speedrun", f"{gpus} GPUs are {how} (4 or more)"
    if gpus >= 1:
        return "small", f"{gpus} GPU(s) {how} (1 to 3)"
    return "mini", f"no GPU is {how}"


# ---------------------------------------------------------------------------------------------
# Arms: what is compared

WEIGHT, SCHEDULE = 0.1, "constant"  # unless the arm is about the weight or the schedule
WEIGHTS = (0.05, 0.1, 0.2)
SCHEDULES = ("constant", "linear_decay", "cosine_decay")
ALL_SCHEDULES = (*SCHEDULES, "warmup_decay")  # that the trainer knows
PLACEMENTS = ((4,), (6,), (8,), (4, 8))
SCREENED = ((6,), (4, 8), (3, 6, 9))
GRID = tuple(itertools.product(PLACEMENTS, WEIGHTS, SCHEDULES))  # 36: as Arm.configuration


def aux(layers: Sequence[int], name="", weight=WEIGHT, schedule=SCHEDULE, about="") -> Arm:
    taps = ", ".join(map(str, layers))
    about = about or f"heads after layer{'s' * (len(layers) > 1)} {taps}"
    return Arm(name or placement_name(layers), tuple(layers), weight, schedule, about)


def placement_name(layers: Sequence[int]) -> str:
    return "aux_" + "_".join(map(str, layers))


def weighted(prefix: str, weight: float) -> Arm:
    name = prefix + f"w{weight:g}".replace(".", "p")
    return aux((4, 8), name, weight=weight, about=f"loss weight {weight:g}")


def scheduled(prefix: str, schedule: str) -> Arm:
    return aux((4, 8), prefix + schedule, schedule=schedule, about=f"weight schedule {schedule}")


def baseline(name: str = "baseline") -> Arm:
    return Arm(name, description="no auxiliary heads")


REPEAT = aux((6,), "aux_6_repeat", about="same arm as aux_6, new seed: run-to-run variance")
SCREENING = (
    baseline("screen_baseline"),
    *(aux(taps, "screen_" + placement_name(taps)) for taps in SCREENED),
)
LAYERS = (baseline(), *map(aux, PLACEMENTS), REPEAT)
DIVES = (  # at the layers that stage 2 chose; 4,8 stands for them until then
    *(weighted("dive_", weight) for weight in WEIGHTS),
    *(scheduled("dive_", schedule) for schedule in SCHEDULES),
)
N_VALIDATIONS = 4  # runs of the best so far, in stage 3
VALIDATIONS = tuple(
    aux((4, 8), f"validation_{k}", about="the best so far, new seed") for k in range(N_VALIDATIONS)
)
FINAL_ARMS = (
    aux((4, 8), "final_best", about="the configuration that stage 3 finalized"),
    baseline("final_baseline"),
)

NUM_HEADS = ((4, 8), (3, 9), (5, 7), (3, 6, 9), (2, 6, 10), (4, 6, 8), (2, 4, 6, 8))
PHASES = {  # of --list, --experiment and --phase: arms to run by hand, outside the stages
    "baseline": (baseline(),),
    "layer_position": (*map(aux, PLACEMENTS[:3]), REPEAT),
    "num_heads": tuple(map(aux, NUM_HEADS)),
    "loss_weight": tuple(weighted("aux_4_8_", w) for w in (0.01, 0.05, 0.1, 0.2, 0.5)),
    "loss_schedule": tuple(scheduled("aux_4_8_", s) for s in ALL_SCHEDULES),
    "screening": SCREENING,
    "quick": (baseline("quick_baseline"), aux((4, 8), "quick_aux_4_8")),
}
ARMS = {arm.name: arm for arms in PHASES.values() for arm in arms}

SHORT = 1000 / 5100  # of a full run: a complete short training, cooldown included
LENGTHS = {"screening": SHORT, "quick": 0.1}  # of a phase; the others run at full length


def phase_of(arm: Arm) -> str:
    return next(phase for phase, arms in PHASES.items() if arm in arms)


# ---------------------------------------------------------------------------------------------
# The experiment: all that is fixed before the first run


@dataclass(frozen=True)
class Override:
    """Something decided against, or instead of, a rule: by a person, or because the machine broke.
    Kept in overrides.json."""

    kind: str  # "ignore_gate", "by_hand", "budget" or "retry"
    stage: int
    value: dict = field(default_factory=dict)
    when: str = ""


@dataclass(frozen=True)
class Experiment:
    """What was asked. Together with the results on disk it determines every next step."""

    profile: Profile
    plan: str  # a key of PLANS
    budget_hours: float
    full_iterations: int
    validation_runs: int | None  # most pairs in stage 4; None: the plan's own number
    processes: int  # of one run; on GPUs, one each
    device: str  # "cuda" or "cpu"
    arms: tuple[Arm, ...] = ()  # plan "manual" only
    seeds: tuple[int, ...] = ()  # plan "manual" only
    overrides: tuple[Override, ...] = ()
    stop_on: str = "any"  # plan "adaptive": "superiority" leaves equivalence stops out; forecasts
    # assume "never"
    slots: int = 1  # runs side by side
    nodes: int = 1  # of one run, on Slurm
    cores: int = 1  # processor cores of the machine, as registered: the plan asks no machine
    launcher: str = "local"  # or "slurm"
    unet_skips: bool = False  # in every arm, the baseline too
    log_grad_norms: bool = False  # of every run, at each validation

    @property
    def paid_each(self) -> bool:
        """A job of a cluster is paid for whatever runs beside it; a machine is paid for once."""
        return self.launcher == "slurm"

    @property
    def forgiven(self) -> frozenset[tuple[str, int]]:
        """(run, attempt) of crashes that were the machine's: paid for, not held against runs."""
        faults = [o.value["attempts"] for o in self.overrides if o.kind == "retry"]
        return frozenset((name, attempt) for fault in faults for name, attempt in fault)

    def iterations(self, fraction: float) -> int:
        return max(1, round(self.full_iterations * fraction))

    def budget_at(self, pairs: int) -> float:
        """The budget in force when so many pairs of stage 4 were complete, in hours. What a look
        was taken under does not change with a budget that is given later."""
        for o in self.overrides:
            if o.kind == "budget" and pairs <= o.value["pairs"]:
                return o.value["was"]
        return self.budget_hours

    def overridden(self, stage: int, kind: str) -> Override | None:
        """The latest override of this kind for this stage."""
        found = [o for o in self.overrides if (o.kind, o.stage) == (kind, stage)]
        return found[-1] if found else None


def seed_of(stage: int, number: int) -> int:
    """Each stage has seeds of its own: what selected an arm never also confirms it."""
    return 1000 * stage + number


# ---------------------------------------------------------------------------------------------
# What a run costs, in machine time


class Costs:
    """Expected seconds of machine time of a run: measured where possible, else the profile's prior.

    A run of a configuration and length that has been measured costs the median of those. Any other
    costs the prior, with its training part and its remainder (start-up, validation) each scaled by
    the median ratio of measurement to prior over all runs so far.
    """

    def __init__(self, experiment: Experiment, results: Sequence[RunResult] = ()):
        self.experiment = experiment
        done = [r for r in results if r.status == "ok"]
        self.measured: dict[tuple, list[float]] = {}
        train, rest = [], []
        for r in done:
            self.measured.setdefault(self._key(r.run), []).append(r.wall_s)
            prior_train, prior_rest = self.prior(r.run)
            train.append(r.train_time_ms / 1000 / prior_train)
            rest.append(max(0.0, r.wall_s - r.train_time_ms / 1000) / prior_rest)
        self.train_ratio = statistics.median(train or [1.0])
        self.rest_ratio = statistics.median(rest or [1.0])

    @staticmethod
    def _key(run: RunConfig) -> tuple:
        return run.arm.configuration, run.num_iterations

    def prior(self, run: RunConfig) -> tuple[float, float]:
        """(training, remainder) in seconds, before anything was measured."""
        e, p = self.experiment, self.experiment.profile
        if p.gpus and e.device == "cpu":
            step_s = p.flops_per_step / (CPU_FLOPS * e.cores / e.slots)
        else:
            step_s = p.step_s * (p.gpus / e.processes if p.gpus else 1)
        # a head on all positions costs about a third of the 124M model (README, "What heads cost")
        step_s *= 1 + 0.3 * p.aux_token_fraction * len(run.arm.layers)
        validations = 1 + math.ceil(run.num_iterations / p.val_loss_every)
        slower = step_s / p.step_s
        val_s = p.val_s * max(1.0, slower) + 2 * step_s * e.log_grad_norms  # main, and all
        return run.num_iterations * step_s, p.start_s + validations * val_s

    def __call__(self, run: RunConfig) -> float:
        return self.wall_s(run) * self.experiment.nodes

    def wall_s(self, run: RunConfig) -> float:
        if walls := self.measured.get(self._key(run)):
            return statistics.median(walls)
        train, rest = self.prior(run)
        return train * self.train_ratio + rest * self.rest_ratio
