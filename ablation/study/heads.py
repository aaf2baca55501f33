"""What is asked, and of which arms?  The built-in study: auxiliary heads at intermediate layers.

The only file that knows what a head is; everything is a table.
"""

import itertools
from collections.abc import Sequence

from ablation.runs.run import Arm
from ablation.runs.untrusted import is_number
from ablation.study.profiles import PROFILES

QUESTION = (
    "Do auxiliary prediction heads at intermediate layers lower the final validation loss of a"
    " GPT, and which layers, weight and schedule do it best?"
)

HYPOTHESIS = (
    "Heads that predict the next token from earlier layers give these layers gradients of their"
    " own; with the best layers, weight and schedule the main head's final validation loss is lower"
    " than the baseline's."
)

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
REFINEMENTS = (  # of the classic plan, at the layers that stage 2 chose; 4,8 stands for them
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


# Weights and schedules that the adaptive plan compares, the default first. Chosen: the others
# differ from it, and from each other, in both.
DEFAULT_CELL = (WEIGHT, SCHEDULE)
CELLS = (DEFAULT_CELL, (0.05, "linear_decay"), (0.2, "cosine_decay"))


def refinement_name(weight: float, schedule: str) -> str:
    """The arm's name, as it is registered."""
    return f"{weighted('dive_', weight).name}_{schedule}"


def check_choice(layers: Sequence[int], weight: float | None, schedule: str | None) -> None:
    """Raise ValueError for an arm that the trainer would refuse."""
    n_layer = next(iter(PROFILES.values())).n_layer
    if not layers:
        raise ValueError("--best_layers: give at least one layer")
    for layer in layers:
        if type(layer) is not int or not 1 <= layer < n_layer:
            raise ValueError(f"--best_layers {layer}: tap layers are 1 to {n_layer - 1}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"--best_layers {','.join(map(str, layers))}: give each layer once")
    if weight is not None and not (is_number(weight) and 1e-6 <= weight <= 1e3):
        raise ValueError(f"--best_weight {weight}: give a number above 0, from 1e-6 to 1e3")
    if schedule is not None and schedule not in ALL_SCHEDULES:
        raise ValueError(f"--best_schedule {schedule}: give one of {', '.join(ALL_SCHEDULES)}")
