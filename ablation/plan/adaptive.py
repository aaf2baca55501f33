"""The adaptive plan: hours are spent only where they change the verdict.

Selection is cheap and exploratory: stages 1 to 3, here, only allocate. Confirmation is on fresh
seeds with error control: stage 4, in `validation`. Improvement = mean val_loss(baseline) - mean
val_loss(arm), nats/token: positive is good.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from ablation import stats
from ablation.plan.decision import (
    PROCEED,
    STOP,
    Decision,
    Group,
    baseline_losses,
    loss_lines,
    lowest,
    mean_text,
    missing_arms,
    on_shared_seed,
    sides,
)
from ablation.plan.stage import (
    Stage,
    State,
    each_arm_once,
    no_comparison,
)
from ablation.plan.validation import MAX_PAIRS, decide_pairs, pairs_until_settled
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.heads import (
    DEFAULT_REFINEMENT,
    FEW_REFINEMENTS,
    FINAL_ARMS,
    LAYERS,
    MANY_REFINEMENTS,
    SCREENING,
    SHORT,
    aux,
    refinement_name,
)
from ablation.study.profiles import Design

RULE_TEXTS = {  # by stage: shown beside the decisions, registered, and in docs/plans.md
    1: "drop an arm if it diverges or improvement < -{drop:g} nats/token; STOP if all are dropped",
    2: "the lower mean of the two best, each with two seeds; z2 allocates stage 3, no more",
    3: "z2 < 4 or none: best observed of three cells; z2 >= 4: best predicted of the seven run",
    4: (
        "improves if the sequential interval lies above 0, harmful if below; no meaningful effect"
        " if the equivalence interval lies inside ±{delta_eq:g}; target met if its lower end >="
        " {delta_target:g} nats/token"
    ),
}
# From here on the effect of stage 2 is plain enough to spend six runs on weight and schedule;
# chosen: four standard errors, more than the choice of the best placement makes of noise.
Z2_RICH = 4.0


def missing(state: State) -> tuple[str, ...]:
    """Arms that were asked for and have no outcome."""
    return missing_arms(state.stage_results, [run.arm.name for run in state.runs_asked_for])


# ---------------------------------------------------------------------------------------------
# Stages 1 to 3: allocation


def dropped_by_screening(results: Sequence[RunResult], design: Design) -> set[tuple[int, ...]]:
    """Tap layers that diverged or were clearly worse than the baseline on the seed that all share;
    early gain is never required."""
    baseline, arms = sides(on_shared_seed(results))

    def harms(group: Group) -> bool:
        if not (baseline and baseline.usable and group.usable):
            return False
        return baseline.mean - group.mean < -design.drop

    return {group.arm.layers for group in arms if group.diverged or harms(group)}


def decide_screening(state: State) -> Decision:
    """Stage 1: which placements diverge, or do plain harm?"""
    results = state.stage_results
    baseline, arms = sides(results)
    tried = [group for group in arms if group.losses or group.diverged]
    if not (baseline and baseline.usable and tried):
        return no_comparison(state, results, baseline and baseline.usable, tried, missing(state))
    dropped = dropped_by_screening(results, state.design)
    names = [group.names[0] for group in arms if group.arm.layers in dropped]
    stop = {group.arm.layers for group in arms} == dropped
    return state.decided(
        STOP if stop else PROCEED,
        "STOP: every arm was dropped" if stop else "PROCEED to Stage 2",
        because=(
            f"Dropped: {', '.join(names) or 'none'}.",
            "Early losses hardly predict final ones: only divergence and plain harm drop an arm.",
        ),
        facts=(
            f"Baseline loss: {mean_text(baseline.losses, 4)}",
            *loss_lines([r for r in results if r.run.arm.layers], baseline_losses(results)),
        ),
        numbers={"dropped": [list(layers) for layers in sorted(dropped)]},
        missing=missing(state),
    )


def two_best(results: Sequence[RunResult]) -> list[Arm]:
    """The arms to run again, by the first run of each placement; fewer if there are fewer."""
    first = [r for r in results if r.status == "ok" and r.run.index == 0 and r.run.arm.layers]
    return [r.run.arm for r in sorted(first, key=lambda r: r.final_loss)[:2]]


def decide_layers(state: State) -> Decision:
    """Stage 2: which tap layers go on, and how plain is their effect?"""
    results, design = state.stage_results, state.design
    baseline, arms = sides(results)
    again = {arm.configuration for arm in two_best(results)}
    best = lowest([group for group in arms if group.arm.configuration in again])
    if not (baseline and baseline.usable and best):
        has_baseline, chosen = baseline and baseline.usable, best and best.arm
        return no_comparison(state, results, has_baseline, best, missing(state), chosen)
    samples = [group.losses for group in (baseline, *arms)]
    sd = math.sqrt(stats.pooled_variance(samples, design.sigma0**2, design.nu0))
    se = sd * math.sqrt(1 / len(best.losses) + 1 / len(baseline.losses))
    z2 = (baseline.mean - best.mean) / se
    taps = ",".join(map(str, best.arm.layers))
    return state.decided(
        PROCEED,
        "PROCEED to Stage 3",
        because=(
            f"Layers {taps}: the lowest mean of those run twice. Exploratory, biased upwards.",
            f"z2 = {z2:.1f}: used to allocate stage 3, no evidence.",
        ),
        facts=(
            f"Baseline loss: {baseline.mean:.4f}",
            *loss_lines([r for r in results if r.run.arm.layers], baseline_losses(results)),
            f"Best: {best.names[0]}, {mean_text(best.losses, 4)}; sd with the prior's {sd:.4f}",
        ),
        numbers={"z2": z2, "s": sd, "best_loss": best.mean, "best_n": len(best.losses)},
        chosen=best.arm,
        missing=missing(state),
    )


def refinements_to_run(z2: float | None) -> tuple[tuple[float, str], ...]:
    return MANY_REFINEMENTS if z2 is not None and z2 >= Z2_RICH else FEW_REFINEMENTS


def decide_hyperparameters(state: State) -> Decision:
    """Stage 3: which weight and schedule? The default ones enter with their mean of stage 2.

    The additive fit pools what seven runs say about each weight and schedule. It could predict the
    two refinements that were not run, too, but a configuration that nobody has seen train is not
    confirmed at the price of stage 4: where effects do not add up, that costs power
    (benchmarks/RESULTS.md).
    """
    results, numbers = state.stage_results, state.numbers_of(2)
    observed = {
        (r.run.arm.weight, r.run.arm.schedule): r.final_loss for r in results if r.status == "ok"
    }
    if "best_loss" in numbers:
        observed[DEFAULT_REFINEMENT] = numbers["best_loss"]
    if not observed:  # weights and schedules are compared with each other, not with the baseline
        return no_comparison(state, results, True, observed, missing(state))
    rich = refinements_to_run(numbers.get("z2")) == MANY_REFINEMENTS
    predicted = additive_fit(observed) if rich else observed
    predicted = {which: loss for which, loss in predicted.items() if which in observed}
    weight, schedule = min(predicted, key=lambda which: (predicted[which], which))
    how = "by an additive fit" if rich else "observed"
    return state.decided(
        PROCEED,
        "PROCEED to Stage 4",
        because=(
            f"Weight {weight:g}, schedule {schedule}: best {how}"
            f" ({predicted[weight, schedule]:.4f}). Exploratory, biased upwards.",
        ),
        facts=tuple(
            f"weight {which[0]:g}, {which[1]}: {loss:.4f}"
            f"{' (stage 2)' if which == DEFAULT_REFINEMENT else ''}"
            for which, loss in sorted(observed.items())
        ),
        numbers={"predicted": [[*which, loss] for which, loss in sorted(predicted.items())]},
        chosen=replace(state.chosen, weight=weight, schedule=schedule),
        missing=missing(state),
    )


def additive_fit(observed: dict[tuple[float, str], float]) -> dict[tuple[float, str], float]:
    """Loss = mean + effect of weight + effect of schedule, by least squares; every crossing of the
    weights and schedules seen. What the data cannot determine gets the minimum-norm fit.

    observed: val loss by (weight, schedule).
    """
    import numpy as np

    weights = sorted({weight for weight, _ in observed})
    schedules = sorted({schedule for _, schedule in observed})

    def row(weight, schedule):
        return [1.0, *(weight == each for each in weights), *(schedule == s for s in schedules)]

    matrix = np.array([row(*refinement) for refinement in observed], dtype=float)
    losses = np.array(list(observed.values()))
    center = losses.mean()
    effects = np.linalg.lstsq(matrix, losses - center, rcond=None)[0]
    crossings = itertools.product(weights, schedules)
    return {which: float(center + np.dot(row(*which), effects)) for which in crossings}


# ---------------------------------------------------------------------------------------------
# Which runs a stage asks for, and the table of stages


def twice_the_baseline(state: State) -> list[RunConfig]:
    first = each_arm_once(state)
    return [*first, state.run(state.stage.arms[0], 1, index=1)]


def placements_then_two_again(state: State) -> list[RunConfig]:
    """Every placement that screening left, once; then the two best with a new seed."""
    dropped = state.numbers_of(1).get("dropped", [])
    first = [state.run(arm) for arm in state.stage.arms if list(arm.layers) not in dropped]
    done = state.results_of(first)
    if len(done) < len(first):
        return first
    return first + [state.run(arm, 1, index=1) for arm in two_best(done)]


def refinements(state: State) -> list[RunConfig]:
    """Weights and schedules around the default, as many as the effect so far is worth."""
    return [
        state.run(aux(state.chosen.layers, refinement_name(weight, schedule), weight, schedule))
        for weight, schedule in refinements_to_run(state.numbers_of(2).get("z2"))
    ]


ADAPTIVE = (
    Stage(
        number=1,
        name="screening",
        question="does any placement do plain harm?",
        rule=RULE_TEXTS[1],
        arms=SCREENING,
        fraction=SHORT,
        runs_asked_for=twice_the_baseline,
        decide=decide_screening,
        has_gate=True,
        needs_baseline=True,
    ),
    Stage(
        number=2,
        name="layer position",
        question="which tap layers?",
        rule=RULE_TEXTS[2],
        arms=LAYERS[:-1],
        fraction=1.0,
        runs_asked_for=placements_then_two_again,
        decide=decide_layers,
        has_gate=True,
        chooses="layers",
        needs_baseline=True,
    ),
    Stage(
        number=3,
        name="deep dive",
        question="which loss weight and schedule?",
        rule=RULE_TEXTS[3],
        arms=tuple(aux((4, 8), refinement_name(*which), *which) for which in MANY_REFINEMENTS),
        fraction=1.0,
        runs_asked_for=refinements,
        decide=decide_hyperparameters,
        has_gate=True,
        takes_choice=True,
        chooses="weight and schedule",
    ),
    Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=RULE_TEXTS[4],
        arms=FINAL_ARMS,
        fraction=1.0,
        runs_asked_for=pairs_until_settled,
        decide=decide_pairs,
        has_gate=False,
        takes_choice=True,
        most_pairs=MAX_PAIRS,
        sequential=True,
    ),
)
