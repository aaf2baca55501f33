"""At which scale does everything run?  Model, data, optimizer, costs, statistical terms."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ablation.runs.untrusted import is_number, printable


@dataclass(frozen=True)
class Design:
    """The statistical terms of an experiment, fixed before its first run."""

    sigma0: float  # sd of a final loss between seeds, as known beforehand; nats/token
    delta_eq: float  # the smallest improvement of interest, nats/token
    delta_target: float  # the improvement hoped for, nats/token
    drop: float  # screening drops an arm that is worse than the baseline by more, nats/token
    alpha: float = 0.05  # two-sided
    first_look: int = 3  # pairs
    speedup: float = 0.10  # of the time to the baseline's final loss
    pairing: float = 0.2  # share of alpha that stage 4 spends on differences within seeds; the rest
    # on Welch's test. .8 where rho was measured at .8 or more (one-sided 95 % bound)
    rho: float = 0.5  # correlation of the final losses of one seed, for selection
    noise_known: bool = True  # else sigma0 and what depends on it are by the repeats of stage 1

    def with_noise(self, sd: float) -> "Design":
        """The same, by a standard deviation between repeats: the smallest improvement of interest
        is two of them, the one hoped for four, and ten that are lost drop an arm (all chosen)."""
        found, eq, target, drop = (float(f"{k * sd:.2g}") for k in (1, 2, 4, 10))
        terms = replace(self, sigma0=found, delta_eq=eq, delta_target=target, drop=drop)
        return replace(terms, noise_known=True)


# Until the noise is measured nothing is equivalent, no target is met, and no arm is dropped.
NOISE_NOT_KNOWN = Design(sigma0=1e-9, delta_eq=1e-9, delta_target=1e3, drop=1e3, noise_known=False)

ABOVE_0 = (lambda value: 1e-9 <= value <= 1e3), "give a number above 0, from 1e-9 to 1000"
TERMS: dict[str, tuple[Callable[[float], bool], str]] = {  # what can be meant, and in words
    **dict.fromkeys(("sigma0", "delta_eq", "delta_target", "drop", "speedup"), ABOVE_0),
    "alpha": ((lambda level: 1e-6 <= level < 0.5), "give a level from 1e-6 to below 0.5"),
    "first_look": ((lambda n: type(n) is int and 2 <= n <= 10**4), "give 2 to 10000 pairs"),
    "pairing": ((lambda share: 0 <= share <= 0.8), "give a share from 0 to 0.8"),
    "rho": ((lambda rho: 0 <= rho < 1), "give a correlation from 0 to below 1"),
}


def check_terms(design: Design) -> None:
    """Raise ValueError, with the name of the field first, for terms that cannot be meant."""
    for name, (is_fit, remedy) in TERMS.items():
        value = getattr(design, name)
        if not (is_number(value) and is_fit(value)):
            raise ValueError(f"{name} {printable(repr(value)[:200], limit=60)}: {remedy}")
    if design.delta_eq >= design.delta_target:
        raise ValueError(
            f"delta_eq {design.delta_eq:g}: give less than delta_target {design.delta_target:g},"
            " or a larger delta_target"
        )


N_LAYER = 12  # of every profile
AUX_TOKEN_FRACTION = 0.125


@dataclass(frozen=True)
class Scale:
    """What this project's own trainer is told of its scale: model, data, optimizer."""

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
    n_layer: int = N_LAYER
    cooldown_frac: float = 0.7
    aux_token_fraction: float = AUX_TOKEN_FRACTION

    @property
    def flops_per_step(self) -> float:
        """6 N D for the matrices that multiply (Kaplan et al. 2020), attention left out."""
        matrices = 12 * self.n_layer * self.model_dim**2 + self.vocab_size * self.model_dim
        return 6 * matrices * self.batch_size * self.sequence_length


@dataclass(frozen=True)
class Profile:
    """What everything runs at, and the expected cost of a run before any is measured."""

    name: str
    machine: str  # what it is meant for
    gpus: int  # of that machine; the forecast's times are for so many (0: CPU)
    data_dir: str
    budget_hours: float
    full_iterations: int
    step_s: float  # one training step of the baseline, on that machine
    val_s: float  # one validation
    start_s: float  # start-up, compilation and end of a run
    design: Design  # statistical terms of the adaptive plan
    cpu_threads: int = 0  # of a process on the CPU; 0: its share of the cores
    scale: Scale | None = None  # of this project's own trainer; None for any other

    @property
    def own_scale(self) -> Scale:
        """The scale of this project's own trainer, where only that can be meant."""
        assert self.scale is not None, f"profile {self.name} is of another trainer"
        return self.scale


TRAINER_FLAGS = (  # fields of a scale, which the trainer takes under the same name
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
            scale=Scale(
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
            ),
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
            scale=Scale(
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
            ),
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
            scale=Scale(
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
            ),
            step_s=0.06,
            val_s=0.28,
            start_s=3.5,
            # measured, 24 seeds (benchmarks/RESULTS.md): sd .0169 of the baseline's final losses,
            # .0061 of differences within seeds, correlation .93 and at least .87; delta_eq is two
            # sd, drop some twenty
            design=Design(
                sigma0=0.017, delta_eq=0.034, delta_target=0.06, drop=0.3, pairing=0.8, rho=0.9
            ),
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
