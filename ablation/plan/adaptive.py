"""The adaptive plan: hours are spent only where they change the verdict.

Selection is cheap and exploratory: stages 1 to 3, here, only allocate. Confirmation is on fresh
seeds with error control: stage 4, in `validation`. Improvement = mean val_loss(baseline) - mean
val_loss(arm), nats/token: positive is good.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ablation import stats
from ablation.plan.decision import (
    INCONCLUSIVE,
    PROCEED,
    STOP,
    Decision,
    Group,
    arm_lines,
    loss_lines,
    loss_mean,
    missing_arms,
    on_shared_seed,
    sides,
)
from ablation.plan.stage import (
    Stage,
    State,
    each_arm_once,
    final_arms,
    no_comparison,
    nothing_decided,
)
from ablation.plan.validation import MAX_PAIRS, decide_pairs, pairs_until_settled
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment
from ablation.study.profiles import Design
from ablation.study.study import SHORT, Metric, Study

RULE_TEXTS = {  # by stage: shown beside the decisions, registered, and in docs/plans.md
    1: "drop an arm if it diverges or improvement < -{drop:g}{{unit}}; STOP if all are dropped",
    2: "the {better} mean of the two best, each with the same two seeds; STOP if all diverge",
    3: "the {best} mean of {n} cells, {default} by stage 2; within seeds, rho {{rho:g}}",
    4: (
        "improves if the sequential interval lies above 0, harmful if below; no meaningful effect"
        " if the equivalence interval lies inside ±{delta_eq:g}; target met if the lower end >="
        " {delta_target:g}{{unit}}. {{tests}}"
    ),
}
TESTS = {  # by trainer.seed: which intervals stage 4 has
    "told": (
        "Of two intervals the shorter one: pairs, with {pairing:g} of alpha, and Welch, with the"
        " rest"
    ),
    "none": "The interval is Welch's: without a seed there are no pairs",
}


COUNTS = ("no", "one", "two", "three", "four", "five", "six")


def not_screened(e: Experiment) -> str:
    """Why stage 1 is empty: an arm that diverges shows it in stage 2, for the price of one run."""
    return "" if e.screen else "no runs without --screen: stage 2 drops an arm that diverges"


def nothing_to_choose(e: Experiment) -> str:
    """Why stage 2 is empty; empty where it is not."""
    return "" if len(e.study.arms) > 1 else "no runs: there is one arm, and nothing to choose"


def nothing_to_refine(e: Experiment) -> str:
    """Why stage 3 is empty; empty where it is not."""
    return "" if len(e.study.compared_cells) > 1 else "no runs: the study has no refinements"


def missing(state: State) -> tuple[str, ...]:
    """Arms that were asked for and have no outcome."""
    return missing_arms(state.stage_results, [run.arm.name for run in state.runs_asked_for])


# ---------------------------------------------------------------------------------------------
# Stages 1 to 3: allocation


def dropped_by_screening(results: Sequence[RunResult], design: Design) -> set[tuple]:
    """Configurations that diverged or were clearly worse than the baseline on the seed that all
    share; early gain is never required."""
    baseline, arms = sides(on_shared_seed(results))

    def harms(group: Group) -> bool:
        if not (baseline and baseline.usable and group.usable):
            return False
        return baseline.mean - group.mean < -design.drop

    return {group.arm.configuration for group in arms if group.diverged or harms(group)}


def decide_screening(state: State) -> Decision:
    """Stage 1: which arms diverge, or do plain harm?"""
    if why := not_screened(state.experiment):
        return nothing_decided(state, why, dropped=[])
    results = state.stage_results
    baseline, arms = sides(results)
    tried = [group for group in arms if group.losses or group.diverged]
    if not (baseline and baseline.usable and tried):
        return no_comparison(state, results, baseline and baseline.usable, tried, missing(state))
    dropped = dropped_by_screening(results, state.design)
    lost = [group for group in arms if group.arm.configuration in dropped]
    stop = len(lost) == len(arms)
    return state.decided(
        STOP if stop else PROCEED,
        "STOP: every arm was dropped" if stop else "PROCEED to Stage 2",
        because=(
            f"Dropped: {', '.join(group.names[0] for group in lost) or 'none'}.",
            "Early losses hardly predict final ones: only divergence and plain harm drop an arm.",
        ),
        facts=(
            f"Baseline {state.study.metric.noun}: {loss_mean(state.study.metric, baseline.losses)}",
            *arm_lines(state.study.metric, results),
        ),
        numbers={"dropped": [group.arm.label for group in lost]},
        missing=missing(state),
    )


def two_best(results: Sequence[RunResult]) -> list[Arm]:
    """The arms to run again, by the first run of each; fewer if there are fewer."""
    first = [r for r in results if r.status == "ok" and r.run.index == 0]
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


def beside(metric: Metric, best: Group, results: Sequence[RunResult]) -> tuple[str, ...]:
    """A line for each run, with its difference to the best one's of the same seed: across seeds, a
    difference is as much that of the seeds."""
    losses = {
        r.run.seed: r.final_loss
        for r in results
        if r.status == "ok" and r.run.arm.configuration == best.arm.configuration
    }
    return (
        f"Improvement over {best.names[0]} on the same seed, in brackets",
        *loss_lines(metric, results, losses, best.arm.configuration),
    )


def no_arm_left(state: State, arms: Sequence[Group]) -> Decision:
    """Stage 2 without an arm to go on with, and why."""
    if any(group.usable for group in arms):
        verdict, about = INCONCLUSIVE, "the two best have no usable run on the second seed"
        because = f"The other {state.study.words.arm}s ran once, and were worse there."
    elif arms and all(group.diverged for group in arms):
        verdict, about = STOP, "every arm diverged"
        because = "A configuration that diverges is worse than any loss."
    else:
        return no_comparison(state, state.stage_results, True, None, missing(state))
    return state.decided(
        verdict,
        f"{verdict}: {about}",
        because=(because,),
        facts=loss_lines(state.study.metric, state.stage_results),
        numbers={},
        missing=missing(state),
    )


def decide_arms(state: State) -> Decision:
    """Stage 2: which arm goes on?"""
    if why := nothing_to_choose(state.experiment):
        only = state.study.arms[0]
        return replace(nothing_decided(state, why), chosen=only)
    results = state.stage_results
    arms = sides(results)[1]
    again = {arm.configuration for arm in two_best(results)}
    means = means_within_seeds(results, state.design.rho)
    best = lowest_within_seeds([g for g in arms if g.arm.configuration in again], means)
    if not best:
        return no_arm_left(state, arms)
    chosen, metric = state.study.chosen(best.arm, state.study.arms), state.study.metric
    return state.decided(
        PROCEED,
        "PROCEED to Stage 3",
        because=(
            f"{chosen}: the {metric.best} mean of those run twice. Exploratory, biased upwards.",
        ),
        facts=(
            *beside(metric, best, results),
            f"Best: {best.names[0]}, {loss_mean(metric, best.losses)}",
        ),
        numbers={"means": [[g.arm.label, means[g.arm.configuration]] for g in arms if g.losses]},
        chosen=best.arm,
        missing=missing(state),
    )


def at_full_length(state: State) -> list[RunResult]:
    """Every outcome of stages 2 and 3 so far: full runs of an arm. In an order of their own: that
    in which they came must not decide, not even by rounding."""
    full = state.experiment.iterations(1.0)
    found = [
        r for r in state.history
        if r.has_outcome and r.run.num_iterations == full and not r.run.arm.is_baseline
    ]  # fmt: skip
    return sorted(found, key=lambda r: (r.run.stage, r.run.index, r.run.arm.name))


def decide_refinements(state: State) -> Decision:
    """Stage 3: which refinement? The arm as it was chosen enters with its runs of stage 2, one of
    them on the seed of this stage, so cells are compared within seeds."""
    if why := nothing_to_refine(state.experiment):
        return nothing_decided(state, why)
    results = at_full_length(state)
    means = means_within_seeds(results, state.design.rho)
    cells = {arm.configuration for arm in cells_of(state)}
    tried = [group for group in sides(results)[1] if group.arm.configuration in cells]
    best = lowest_within_seeds(tried, means)
    if not best:  # cells are compared with each other, not with the baseline
        return no_comparison(state, state.stage_results, True, best, missing(state))
    cell = next(c for c in cells_of(state) if c.configuration == best.arm.configuration)
    chosen = state.study.chosen(cell, tuple(cells_of(state)))
    metric = state.study.metric
    mine = [r for r in results if r.run.arm.configuration in cells]
    return state.decided(
        PROCEED,
        "PROCEED to Stage 4",
        because=(
            f"{chosen}: the {metric.best} mean within seeds"
            f" ({metric.text(means[best.arm.configuration])}). Exploratory, biased upwards.",
        ),
        facts=beside(metric, best, mine),
        numbers={"means": [[g.arm.label, means[g.arm.configuration]] for g in tried if g.losses]},
        chosen=replace(cell, name=state.chosen.name, description=state.chosen.description),
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


def arms_then_two_again(state: State) -> list[RunConfig]:
    """Every arm that screening left, once; then the two best with a new seed."""
    if nothing_to_choose(state.experiment):
        return []
    screened = [r for r in state.history if r.run.stage == 1]
    dropped = dropped_by_screening(screened, state.design) if state.experiment.screen else set()
    first = [state.run(arm) for arm in state.stage.arms if arm.configuration not in dropped]
    done = state.results_of(first)
    if len(done) < len(first):
        return first
    return first + [state.run(arm, 1, index=1, role="repeat") for arm in two_best(done)]


def cells_of(state: State) -> list[Arm]:
    """What is compared at the arm that was chosen: the default and others."""
    return [state.study.refined(state.chosen, cell) for cell in state.study.compared_cells]


def cells_not_run(state: State) -> list[RunConfig]:
    """The cells that stage 2 did not run, on its first seed."""
    if nothing_to_refine(state.experiment):
        return []
    before = {
        r.run.arm.configuration for r in at_full_length(state) if r.run.stage < state.stage.number
    }
    cells = [arm for arm in cells_of(state) if arm.configuration not in before]
    return [state.run(arm, role="refinement") for arm in cells]


# ---------------------------------------------------------------------------------------------
# Stage 1 where the noise is not known

N_REPEATS = 3  # of the baseline; chosen, the fewest of which a standard deviation is worth saying


def repeats_of_the_baseline(state: State) -> list[RunConfig]:
    arm = state.stage.arms[0]
    return [state.run(arm, k, index=k, role="repeat") for k in range(N_REPEATS)]


def decide_noise(state: State) -> Decision:
    """Stage 1: how much do runs of one configuration differ, by their seed alone?"""
    results = state.stage_results
    losses = [r.final_loss for r in results if r.status == "ok"]
    _, sd = stats.mean_sd(losses) if losses else (None, None)
    if sd is None or stats.only_rounding(sd, *losses):
        return no_spread(state, losses)
    design, metric = state.design.with_noise(sd), state.study.metric
    low, high = stats.sd_interval(sd, len(losses))
    return state.decided(
        PROCEED,
        "PROCEED to Stage 2",
        because=(
            f"No noise was registered, so {len(losses)} repeats say what matters: delta_eq"
            f" {design.delta_eq:.4g}, delta_target {design.delta_target:.4g}.",
            f"So few say it roughly: 95 % interval of their sd {low:.2g} to {high:.2g}.",
        ),
        facts=(f"Baseline: {loss_mean(metric, losses)}", *loss_lines(metric, results)),
        numbers={"sd": sd, "n": len(losses), "delta_eq": design.delta_eq},
        missing=missing(state),
    )


def no_spread(state: State, losses: Sequence[float]) -> Decision:
    """Stage 1 of which the repeats do not say how much runs differ, and why."""
    metric = state.study.metric
    about = f"{len(losses)} usable repeat(s) of the baseline, two are the least"
    if len(losses) > 1:
        about = f"{len(losses)} repeats have the same {metric.words}, {metric.text(losses[0])}"
    return state.decided(
        INCONCLUSIVE,
        f"INCONCLUSIVE: {about}",
        because=("How much runs differ is not known; give it in [noise] of a new study.",),
        facts=loss_lines(metric, state.stage_results),
        numbers={},
        missing=missing(state),
    )


def noise_row(study: Study) -> Stage:
    return Stage(
        number=1,
        name="noise",
        question="how much do repeats of the baseline differ?",
        rule="delta_eq is two, delta_target four standard deviations of the repeats",
        arms=(study.baseline("noise_baseline"),),
        fraction=1.0,
        runs_asked_for=repeats_of_the_baseline,
        decide=decide_noise,
        has_gate=True,
        needs_baseline=True,
    )


# ---------------------------------------------------------------------------------------------
# The table of stages


def screening_row(study: Study) -> Stage:
    unit = study.metric.amount("")
    return Stage(
        number=1,
        name="screening",
        question=f"does any {study.words.arm} do plain harm?",
        rule=RULE_TEXTS[1].replace("{{unit}}", unit),
        arms=study.screened,
        fraction=SHORT,
        runs_asked_for=twice_the_baseline,
        decide=decide_screening,
        has_gate=True,
        needs_baseline=True,
        why_empty=not_screened,
    )


def arms_row(study: Study) -> Stage:
    words = study.words
    return Stage(
        number=2,
        name=words.compared,
        question=words.which,
        rule=RULE_TEXTS[2].format(better=study.metric.better),
        arms=study.arms,
        fraction=1.0,
        runs_asked_for=arms_then_two_again,
        decide=decide_arms,
        has_gate=True,
        chooses=words.choice,
        why_empty=nothing_to_choose,
    )


def cells_row(study: Study) -> Stage:
    words, cells = study.words, study.compared_cells
    n = COUNTS[len(cells)] if len(cells) < len(COUNTS) else str(len(cells))
    rule = RULE_TEXTS[3] if len(cells) > 1 else "none: there is nothing to choose between"
    return Stage(
        number=3,
        name=words.refined,
        question=words.which_refinement,
        rule=rule.format(n=n, default=words.default, best=study.metric.best),
        arms=tuple(study.refined(study.expected_best, cell) for cell in cells),
        fraction=1.0,
        runs_asked_for=cells_not_run,
        decide=decide_refinements,
        has_gate=True,
        takes_choice=True,
        chooses=words.refinement,
        why_empty=nothing_to_refine,
        seeds_of=2,
    )


def final_row(study: Study) -> Stage:
    rule = RULE_TEXTS[4].replace("{{unit}}", study.metric.amount(""))
    return Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=rule.replace("{{tests}}", TESTS[study.trainer.seed]),
        arms=final_arms(study),
        fraction=1.0,
        runs_asked_for=pairs_until_settled,
        decide=decide_pairs,
        has_gate=False,
        takes_choice=True,
        most_pairs=MAX_PAIRS,
        sequential=True,
    )


@lru_cache
def adaptive(study: Study) -> tuple[Stage, ...]:
    """The rows of the plan for a study."""
    known = study.noise is None or study.noise.noise_known
    first = screening_row(study) if known else noise_row(study)
    return first, arms_row(study), cells_row(study), final_row(study)
