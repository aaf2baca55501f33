"""The adaptive plan: hours are spent only where they change the verdict.

Selection is cheap and exploratory: stages 1 to 3, here, only allocate. Confirmation is on fresh
seeds with error control: stage 4, in `validation`. Improvement = mean val_loss(baseline) - mean
val_loss(arm), nats/token: positive is good.
"""

from collections.abc import Sequence
from dataclasses import replace

from ablation import stats
from ablation.plan.decision import (
    INCONCLUSIVE,
    PROCEED,
    STOP,
    Decision,
    Group,
    baseline_losses,
    loss_lines,
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
from ablation.study.experiment import Experiment
from ablation.study.heads import (
    CELLS,
    FINAL_ARMS,
    LAYERS,
    SCREENING,
    SHORT,
    aux,
    refinement_name,
)
from ablation.study.profiles import Design

RULE_TEXTS = {  # by stage: shown beside the decisions, registered, and in docs/plans.md
    1: "drop an arm if it diverges or improvement < -{drop:g} nats/token; STOP if all are dropped",
    2: "the lower mean of the two best, each with the same two seeds; STOP if all diverge",
    3: "the lowest mean of three cells, the default one by stage 2; within seeds, rho {rho:g}",
    4: (
        "improves if the sequential interval lies above 0, harmful if below; no meaningful effect"
        " if the equivalence interval lies inside ±{delta_eq:g}; target met if the lower end >="
        " {delta_target:g} nats/token. Of two intervals the shorter one: pairs, with {pairing:g} of"
        " alpha, and Welch, with the rest"
    ),
}


def not_screened(e: Experiment) -> str:
    """Why stage 1 is empty: an arm that diverges shows it in stage 2, for the price of one run."""
    return "" if e.screen else "no runs without --screen: stage 2 drops an arm that diverges"


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
    if why := not_screened(state.experiment):
        because = (f"{why[0].upper()}{why[1:]}.",)
        return state.decided(
            PROCEED, "PROCEED to Stage 2", because=because, facts=(), numbers={"dropped": []}
        )
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


def means_within_seeds(results: Sequence[RunResult], rho: float) -> dict[tuple, float]:
    """Mean final val loss of each configuration as on an average seed, of the runs that finished:
    one that was run on more seeds than another gains nothing by what those seeds are like."""
    done = [
        (r.run.arm.configuration, r.run.seed, r.final_loss) for r in results if r.status == "ok"
    ]
    return stats.arm_means(done, rho) if done else {}


def lowest_within_seeds(groups: Sequence[Group], means: dict[tuple, float]) -> Group | None:
    """The usable configuration of the lowest mean; None where none is usable."""
    usable = [group for group in groups if group.usable]
    return min(usable, key=lambda group: means[group.arm.configuration], default=None)


def beside(best: Group, results: Sequence[RunResult]) -> tuple[str, ...]:
    """A line for each run, with its difference to the best one's of the same seed: across seeds, a
    difference is as much that of the seeds."""
    losses = {
        r.run.seed: r.final_loss
        for r in results
        if r.status == "ok" and r.run.arm.configuration == best.arm.configuration
    }
    return (
        f"Improvement over {best.names[0]} on the same seed, in brackets",
        *loss_lines(results, losses, best.arm.configuration),
    )


def no_placement(state: State, arms: Sequence[Group]) -> Decision:
    """Stage 2 without a placement to go on with, and why."""
    if any(group.usable for group in arms):
        verdict, about = INCONCLUSIVE, "the two best have no usable run on the second seed"
        because = "The other placements ran once, and were worse there."
    elif arms and all(group.diverged for group in arms):
        verdict, about = STOP, "every arm diverged"
        because = "A configuration that diverges is worse than any loss."
    else:
        return no_comparison(state, state.stage_results, True, None, missing(state))
    return state.decided(
        verdict,
        f"{verdict}: {about}",
        because=(because,),
        facts=loss_lines(state.stage_results),
        numbers={},
        missing=missing(state),
    )


def decide_layers(state: State) -> Decision:
    """Stage 2: which tap layers go on?"""
    results = state.stage_results
    arms = sides(results)[1]
    again = {arm.configuration for arm in two_best(results)}
    means = means_within_seeds(results, state.design.rho)
    best = lowest_within_seeds([g for g in arms if g.arm.configuration in again], means)
    if not best:
        return no_placement(state, arms)
    taps = ",".join(map(str, best.arm.layers))
    return state.decided(
        PROCEED,
        "PROCEED to Stage 3",
        because=(
            f"Layers {taps}: the lowest mean of those run twice. Exploratory, biased upwards.",
        ),
        facts=(*beside(best, results), f"Best: {best.names[0]}, {mean_text(best.losses, 4)}"),
        numbers={
            "means": [[list(g.arm.layers), means[g.arm.configuration]] for g in arms if g.losses]
        },
        chosen=best.arm,
        missing=missing(state),
    )


def at_full_length(state: State) -> list[RunResult]:
    """Every outcome of stages 2 and 3 so far: full runs of a configuration with heads. In an order
    of their own: that in which they came must not decide, not even by rounding."""
    full = state.experiment.iterations(1.0)
    found = [
        r for r in state.history
        if r.has_outcome and r.run.num_iterations == full and r.run.arm.layers
    ]  # fmt: skip
    return sorted(found, key=lambda r: (r.run.stage, r.run.index, r.run.arm.name))


def decide_hyperparameters(state: State) -> Decision:
    """Stage 3: which weight and schedule? The default ones enter with their runs of stage 2, one of
    them on the seed of this stage, so cells are compared within seeds."""
    results = at_full_length(state)
    means = means_within_seeds(results, state.design.rho)
    cells = {arm.configuration for arm in cells_of(state)}
    tried = [group for group in sides(results)[1] if group.arm.configuration in cells]
    best = lowest_within_seeds(tried, means)
    if not best:  # weights and schedules are compared with each other, not with the baseline
        return no_comparison(state, state.stage_results, True, best, missing(state))
    weight, schedule = best.arm.weight, best.arm.schedule
    mine = [r for r in results if r.run.arm.configuration in cells]
    return state.decided(
        PROCEED,
        "PROCEED to Stage 4",
        because=(
            f"Weight {weight:g}, schedule {schedule}: the lowest mean within seeds"
            f" ({means[best.arm.configuration]:.4f}). Exploratory, biased upwards.",
        ),
        facts=beside(best, mine),
        numbers={
            "means": [
                [g.arm.weight, g.arm.schedule, means[g.arm.configuration]]
                for g in tried
                if g.losses
            ]
        },
        chosen=replace(state.chosen, weight=weight, schedule=schedule),
        missing=missing(state),
    )


# ---------------------------------------------------------------------------------------------
# Which runs a stage asks for, and the table of stages


def twice_the_baseline(state: State) -> list[RunConfig]:
    """Stage 1, where it was asked for."""
    if not_screened(state.experiment):
        return []
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


def cells_of(state: State) -> list[Arm]:
    """Weights and schedules at the layers that were chosen: the default and two others."""
    return [aux(state.chosen.layers, refinement_name(*cell), *cell) for cell in CELLS]


def cells_not_run(state: State) -> list[RunConfig]:
    """The cells that stage 2 did not run, on its first seed."""
    before = {
        r.run.arm.configuration for r in at_full_length(state) if r.run.stage < state.stage.number
    }
    return [state.run(arm) for arm in cells_of(state) if arm.configuration not in before]


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
        why_empty=not_screened,
    ),
    Stage(
        number=2,
        name="layer position",
        question="which tap layers?",
        rule=RULE_TEXTS[2],
        arms=LAYERS[1:-1],
        fraction=1.0,
        runs_asked_for=placements_then_two_again,
        decide=decide_layers,
        has_gate=True,
        chooses="layers",
    ),
    Stage(
        number=3,
        name="deep dive",
        question="which loss weight and schedule?",
        rule=RULE_TEXTS[3],
        arms=tuple(aux((4, 8), refinement_name(*cell), *cell) for cell in CELLS),
        fraction=1.0,
        runs_asked_for=cells_not_run,
        decide=decide_hyperparameters,
        has_gate=True,
        takes_choice=True,
        chooses="weight and schedule",
        seeds_of=2,
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
