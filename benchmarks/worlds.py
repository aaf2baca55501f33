"""What may be true, and how noisy?  The worlds of plan_power.py, as tables.

A world has the configurations of a study; of the built-in one 36: 4 placements x 3 weights x 3
schedules. Effects and noise are those of the speedrun; `in_units_of` puts another study's in their
place. Three sets:

project   The best has the effect that names the world, the worst has none, and the others lie
          between: placement, weight and schedule count a third each, in evenly spaced levels. In
          `harmful` the best one does .010 of harm and the worst .020; in `null` and `delta_eq` all
          are alike. `noisy` worlds have 3/1.3 of the noise.
graded    The effect is a product of a factor of the placement (1, .8, .6, .4), of the weight (1,
          .85, .6) and of the schedule (1, .9, .75), each with 5 % of noise, scaled so that the best
          one has the effect that names the world. `less` takes as much from all of them. Another
          study has the first two: of its arms and of its refinements, with as many levels between.
beside    What is asked of no plan, but should be known: one configuration of 36 helps, noise with
          the tails of t3, runs with heads of twice the sd, runs that diverge.

Levels come in an order of their own in each replicate. Noise: normal; sd .004/.0024/.0013 at
20/50/100 % of a run, and correlation .34/.70 of a run's noise at 20/50 % with that at its end
(1,311 public runs of modded-nanogpt in 102 groups of the same code); losses of one seed and one
length correlate by rho.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT
from ablation.plan.power import BASELINE_LOSS, Scenario, Truth
from ablation.study.profiles import PROFILES, Design
from ablation.study.study import Study

DESIGN = PROFILES["speedrun"].design
SIGMA, DELTA_EQ = DESIGN.sigma0, DESIGN.delta_eq


@dataclass(frozen=True)
class World(Scenario):
    """A scenario, and how its noise differs from the published one."""

    heavy_tails: bool = False  # those of Student's t with 3 degrees of freedom, at the same sd
    arm_sd: float = 1.0  # of a run with heads, over that of the baseline
    arm_diverges: float = 0.0  # probability of a run with heads
    baseline_diverges: float = 0.0
    delta_eq: float = DELTA_EQ

    @property
    def right(self) -> tuple[str, ...]:
        """The verdicts that are right: harm and a null that are called so, an improvement that is
        found; up to delta_eq an improvement is no meaningful effect, too."""
        if self.best <= 0:
            return (HARMFUL,) if self.best < 0 else (NO_EFFECT,)
        return (IMPROVES, NO_EFFECT) if self.best <= self.delta_eq else (IMPROVES,)


class HeavyTailed(random.Random):
    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        """Not normal: t with 3 degrees of freedom over the root of 3, which has sd 1."""
        normal = super().gauss
        return mu + sigma * normal(0, 1) / math.hypot(normal(0, 1), normal(0, 1), normal(0, 1))


class Replicate(Truth):
    """One replicate of a world; a loss that is not finite is a run that diverges."""

    def __init__(self, study: Study, world: World, seed: str, rho: float = 0.0):
        super().__init__(study, world, seed, rho)
        self.world = world
        if world.heavy_tails:
            self.rng = HeavyTailed(f"{seed}/noise")

    def loss(self, configuration: tuple, seed: int, fraction: float = 1.0) -> float:
        world, loss = self.world, super().loss(configuration, seed, fraction)
        diverges = world.arm_diverges if configuration else world.baseline_diverges
        if diverges and self.rng.random() < diverges:
            return math.inf
        if not configuration or world.arm_sd == 1:
            return loss
        expected = BASELINE_LOSS - self.improvement(configuration, fraction)
        return expected + world.arm_sd * (loss - expected)


# ---------------------------------------------------------------------------------------------
# Effects of the configurations, as ranks: 0 has the effect `best` of the world, 1 has `worst`

PLACEMENT, WEIGHT, SCHEDULE = (1.0, 0.8, 0.6, 0.4), (1.0, 0.85, 0.6), (1.0, 0.9, 0.75)
FACTOR_SD = 0.05


def graded_ranks(
    study: Study,
    rng: random.Random,
    placement: Sequence[float] = PLACEMENT,
    weight: Sequence[float] = WEIGHT,
    schedule: Sequence[float] = SCHEDULE,
) -> list[float]:
    """Products of a factor each of what is varied, of which rank 0 is the largest and rank 1 is
    none; a configuration that harms where the best one helps lies beyond 1."""
    factors = []  # of the levels of each
    for levels, table in zip(study.factors, (placement, weight, schedule), strict=False):
        noisy = [f * (1 + rng.gauss(0, FACTOR_SD)) for f in spread(table, len(levels))]
        rng.shuffle(noisy)
        factors.append(noisy)
    products = [math.prod(levels) for levels in itertools.product(*factors)]
    return [1 - product / max(products) for product in products]


def spread(table: Sequence[float], n: int) -> Sequence[float]:
    """A table of n values from the first to the last of this one, on straight lines between."""
    if n == len(table):
        return table
    values = []
    for k in range(n):
        at = k * (len(table) - 1) / max(1, n - 1)
        low = min(int(at), len(table) - 2)
        values.append(table[low] + (at - low) * (table[low + 1] - table[low]))
    return values


def one_of_all(study: Study, rng: random.Random) -> list[float]:
    """One configuration has rank 0, all others 1."""
    ranks = [1.0] * len(study.configurations)
    ranks[rng.randrange(len(ranks))] = 0.0
    return ranks


def in_units_of(design: Design, world: World) -> World:
    """The world with effects and noise as large to another study as they are to the speedrun."""
    effect, noise = design.delta_eq / DELTA_EQ, design.sigma0 / SIGMA
    return replace(
        world,
        best=effect * world.best,
        worst=effect * world.worst,
        early_best=effect * world.early_best,
        early_worst=effect * world.early_worst,
        sigma=noise * world.sigma,
        delta_eq=design.delta_eq,
    )


def plain(name: str, best: float, worst: float, sigma: float = SIGMA, **others) -> World:
    """A world in which configurations help, or harm, early as much as in the end."""
    return World(name, best, worst, best, worst, sigma, **others)


def graded(name: str, best: float, less: float = 0.0, sigma: float = SIGMA, **others) -> World:
    factors = {key: others.pop(key) for key in ("placement", "weight") if key in others}
    ranks = partial(graded_ranks, **factors)
    return plain(name, best - less, -less, sigma, ranks=ranks, **others)


# ---------------------------------------------------------------------------------------------
# The tables

NULL = plain("null", 0.0, 0.0)
PROJECT = (
    NULL,
    plain("delta_eq", DELTA_EQ, DELTA_EQ),
    # name, best and worst in the end, best and worst at 20 %, sd of a final loss
    World("helps early only", 0.0, 0.0, 0.030, 0.0, SIGMA),
    plain("-.003", 0.003, 0.0),
    plain("-.010", 0.010, 0.0),
    plain("-.020", 0.020, 0.0),
    plain("harmful", -0.010, -0.020),
    # the prefix-token record: .067 worse at step 250, better in the end
    World("early-reversal", 0.010, 0.0, -0.067, -0.067, SIGMA),
    World("rank reversal", 0.010, 0.0, 0.0, 0.010, SIGMA),
    plain("noisy", 0.010, 0.0, 0.003),
    plain("delta_eq noisy", DELTA_EQ, DELTA_EQ, 0.003),
)
GRADED = (
    NULL,
    graded("graded .003", 0.003),
    graded("graded .005", 0.005),
    graded("graded .0075", 0.0075),
    graded("graded .010", 0.010),
    graded("graded .020", 0.020),
    graded("graded .030", 0.030),
    plain("all .010", 0.010, 0.010),
    graded("weights 1 .5 .1", 0.010, weight=(1.0, 0.5, 0.1)),
    graded("weights 1 .2 -1", 0.010, weight=(1.0, 0.2, -1.0)),
    graded("one placement helps", 0.010, placement=(1.0, -1.0, -1.0, -1.0)),
    graded("graded .010 less .020", 0.010, less=0.020),
    graded("graded .005 less .010", 0.005, less=0.010),
    plain("null sigma .0026", 0.0, 0.0, 2 * SIGMA),
    graded("graded .003 sigma .0026", 0.003, sigma=2 * SIGMA),
    graded("graded .010 sigma .0026", 0.010, sigma=2 * SIGMA),
)
BESIDE = (
    plain("one of 36", 0.010, 0.0, ranks=one_of_all),
    plain("null t3", 0.0, 0.0, heavy_tails=True),
    graded("graded .003 t3", 0.003, heavy_tails=True),
    graded("graded .010 t3", 0.010, heavy_tails=True),
    plain("null arm sd x2", 0.0, 0.0, arm_sd=2.0),
    graded("graded .003 arm sd x2", 0.003, arm_sd=2.0),
    graded("graded .010 arm sd x2", 0.010, arm_sd=2.0),
    plain("null all diverge .1", 0.0, 0.0, arm_diverges=0.1, baseline_diverges=0.1),
    graded("graded .010 all diverge .1", 0.010, arm_diverges=0.1, baseline_diverges=0.1),
    graded("graded .010 arm diverges .1", 0.010, arm_diverges=0.1),
)
SETS = {"project": PROJECT, "graded": GRADED, "beside": BESIDE}
WORLDS = {world.name: world for worlds in SETS.values() for world in worlds}
SETS["all"] = tuple(WORLDS.values())
