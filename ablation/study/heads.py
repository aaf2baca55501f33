"""The built-in study: auxiliary heads at intermediate layers.

The only file that knows what a head is; everything is a table.
"""

from collections.abc import Sequence
from dataclasses import replace

from ablation.runs.run import Arm
from ablation.runs.untrusted import is_number
from ablation.study.profiles import AUX_TOKEN_FRACTION, N_LAYER
from ablation.study.study import SHORT, Phase, Study, Trainer, Words

HEAD_SHARE = 0.3  # of a step, of a head on all positions of the 124M model (docs/trainers.md)
WEIGHT, SCHEDULE = 0.1, "constant"  # unless the arm is about the weight or the schedule
WEIGHTS = (0.05, 0.1, 0.2)
SCHEDULES = ("constant", "linear_decay", "cosine_decay")
ALL_SCHEDULES = (*SCHEDULES, "warmup_decay")  # that the trainer knows
NAMES = (  # flag of the trainer: what it is called
    ("aux_head_layers", "layers"),
    ("aux_loss_weight", "weight"),
    ("aux_loss_schedule", "schedule"),
)
LAYERS_FLAG, WEIGHT_FLAG, SCHEDULE_FLAG = dict(NAMES)


def aux(layers: Sequence[int], name="", weight=WEIGHT, schedule=SCHEDULE, about="") -> Arm:
    """An arm with heads after these layers."""
    taps = ",".join(map(str, layers))
    values = (taps, weight, schedule)
    return Arm(
        name or "aux_" + "_".join(map(str, layers)),
        flags=tuple((flag, value) for (flag, _), value in zip(NAMES, values, strict=True)),
        slower=round(HEAD_SHARE * AUX_TOKEN_FRACTION * len(layers), 4),
        description=about
        or f"heads after layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}",
        label=f"layers {taps}, weight {weight:g}, {schedule}",
    )


def tap_layers(arm: Arm) -> tuple[int, ...]:
    """The layers after which an arm has heads; none for any other arm, or what is no such list."""
    layers = str(dict(arm.flags).get(LAYERS_FLAG, ""))
    return tuple(map(int, layers.split(","))) if layers.replace(",", "").isdecimal() else ()


def settings_beside(arm: Arm) -> str:
    """What an arm's label says beside its layers."""
    return arm.label.partition(", ")[2]


# What refinements change of an arm.


def weighted(weight: float) -> Arm:
    about = f"loss weight {weight:g}"
    return Arm(f"dive_{weight_name(weight)}", ((WEIGHT_FLAG, weight),), description=about)


def scheduled(name: str) -> Arm:
    about = f"weight schedule {name}"
    return Arm(f"dive_{name}", ((SCHEDULE_FLAG, name),), description=about)


def cell(weight: float, schedule: str) -> Arm:
    """A weight and a schedule at once."""
    name = f"dive_{weight_name(weight)}_{schedule}"
    return Arm(name, ((WEIGHT_FLAG, weight), (SCHEDULE_FLAG, schedule)))


def weight_name(weight: float) -> str:
    return f"w{weight:g}".replace(".", "p")


PLACEMENTS = tuple(map(aux, ((4,), (6,), (8,), (4, 8))))
HEADS = Study(
    name="aux_heads",
    question=(
        "Do auxiliary prediction heads at intermediate layers lower the final validation loss of a"
        " GPT, and which layers, weight and schedule do it best?"
    ),
    hypothesis=(
        "Heads that predict the next token from earlier layers give these layers gradients of"
        " their own; with the best layers, weight and schedule the main head's final validation"
        " loss is lower than the baseline's."
    ),
    trainer=Trainer(profile="by machine"),
    base=Arm("baseline", ((LAYERS_FLAG, ""), (WEIGHT_FLAG, 0), (SCHEDULE_FLAG, SCHEDULE))),
    arms=PLACEMENTS,
    refinements=(*map(weighted, WEIGHTS), *map(scheduled, SCHEDULES)),
    # Chosen: the others differ from the default, and from each other, in both.
    cells=(cell(WEIGHT, SCHEDULE), cell(0.05, "linear_decay"), cell(0.2, "cosine_decay")),
    screening=tuple(map(aux, ((6,), (4, 8), (3, 6, 9)))),
    repeated="aux_6",
    favourite="aux_4_8",
    grid=((WEIGHT_FLAG, WEIGHTS), (SCHEDULE_FLAG, SCHEDULES)),
    names=NAMES,
    words=Words(
        title="auxiliary prediction heads",
        idea="auxiliary heads",
        short="aux heads",
        baseline="no auxiliary heads",
        arm="placement",
        an_arm="an auxiliary arm",
        best="Best aux",
        choice="layers",
        it="them",
        compared="layer position",
        which="which tap layers?",
        refinement="weight and schedule",
        refined="deep dive",
        which_refinement="which loss weight and schedule?",
        default="the default one",
        costs="heads cost both",
    ),
)

NUM_HEADS = ((4, 8), (3, 9), (5, 7), (3, 6, 9), (2, 6, 10), (4, 6, 8), (2, 4, 6, 8))


def by_weight(weight: float) -> Arm:
    about = f"loss weight {weight:g}"
    return aux((4, 8), f"aux_4_8_{weight_name(weight)}", weight=weight, about=about)


def by_schedule(name: str) -> Arm:
    return aux((4, 8), f"aux_4_8_{name}", schedule=name, about=f"weight schedule {name}")


PHASES = (  # of --list, --experiment and --phase
    Phase("baseline", (HEADS.baseline(),)),
    Phase("layer_position", (*PLACEMENTS[:3], HEADS.repeat)),
    Phase("num_heads", tuple(map(aux, NUM_HEADS))),
    Phase("loss_weight", tuple(map(by_weight, (0.01, 0.05, 0.1, 0.2, 0.5)))),
    Phase("loss_schedule", tuple(map(by_schedule, ALL_SCHEDULES))),
    Phase("screening", HEADS.screened, SHORT),
    Phase("quick", (HEADS.baseline("quick_baseline"), aux((4, 8), "quick_aux_4_8")), 0.1),
)
HEADS = replace(HEADS, phases=PHASES)


def check_choice(layers: Sequence[int], weight: float | None, schedule: str | None) -> None:
    """Raise ValueError for an arm that the trainer would refuse."""
    if not layers:
        raise ValueError("--best_layers: give at least one layer")
    for layer in layers:
        if type(layer) is not int or not 1 <= layer < N_LAYER:
            raise ValueError(f"--best_layers {layer}: tap layers are 1 to {N_LAYER - 1}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"--best_layers {','.join(map(str, layers))}: give each layer once")
    if weight is not None and not (is_number(weight) and 1e-6 <= weight <= 1e3):
        raise ValueError(f"--best_weight {weight}: give a number above 0, from 1e-6 to 1e3")
    if schedule is not None and schedule not in ALL_SCHEDULES:
        raise ValueError(f"--best_schedule {schedule}: give one of {', '.join(ALL_SCHEDULES)}")
