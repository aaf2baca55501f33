"""Runs by hand: the arms and seeds that somebody asked for, told without a rule."""

from collections.abc import Sequence

from ablation import stats
from ablation.plan.costs import Costs
from ablation.plan.decision import (
    FINAL,
    Decision,
    Group,
    baseline_losses,
    groups_of,
    interval,
    loss_mean,
    missing_arms,
)
from ablation.plan.stage import BASELINE, Stage, State
from ablation.runs.run import RunConfig, RunResult
from ablation.study.experiment import Experiment
from ablation.study.study import Metric, Study


def summarize(state: State) -> Decision:
    """What runs asked for by hand gave, and no rule. Runs of one length are compared."""
    results, facts = state.stage_results, []
    for length in dict.fromkeys(r.run.num_iterations for r in results):
        mine = [r for r in results if r.run.num_iterations == length]
        facts += [
            summary_line(state.study.metric, group, mine) for group in groups_of(mine).values()
        ]
    return state.decided(
        FINAL,
        "runs asked for by hand are done",
        because=("No rule applies.",),
        facts=tuple(facts),
        numbers={},
        missing=missing_arms(results, [arm.name for arm in state.experiment.arms]),
    )


def summary_line(metric: Metric, group: Group, results: Sequence[RunResult]) -> str:
    """An arm's losses, and their difference to the baseline on the seeds that both have."""
    name = ", ".join(group.names)
    lost = f"; {group.diverged} diverged" if group.diverged else ""
    if not group.losses:
        return f"{name}: no finished run{lost}"
    line = f"{name}: {metric.words} {loss_mean(metric, group.losses)}{lost}"
    baselines = baseline_losses(results)
    mine = [r for r in results if r.run.arm.configuration == group.arm.configuration]
    mine = [r for r in mine if r.status == "ok" and r.run.seed in baselines]
    if not mine or group.arm.is_baseline:
        return line
    c = stats.compare([baselines[r.run.seed] for r in mine], [r.final_loss for r in mine])
    shared = f" on {len(mine)} shared seed(s)" * (len(mine) < len(group.losses))
    return f"{line}, improvement {c.improvement:+.4f}{interval(c)}{shared}"


def every_seed(state: State) -> list[RunConfig]:
    """Runs of the arms asked for, seed by seed; a repeat of an arm gets other seeds."""
    e, runs = state.experiment, []
    for k, seed in enumerate(e.seeds):
        earlier = [arm.configuration for arm in e.arms]
        for position, arm in enumerate(e.arms):
            repeat = earlier[:position].count(arm.configuration)
            iterations = e.iterations(e.study.fraction_of(arm))
            role = BASELINE if arm.is_baseline else "repeat" if repeat else "arm"
            runs.append(RunConfig(0, arm, k, seed + 1000 * repeat, iterations, role))
    return runs


BY_HAND = (
    Stage(
        number=0,
        name="by hand",
        question="what was asked for",
        rule="none",
        arms=(),
        fraction=1.0,
        runs_asked_for=every_seed,
        decide=summarize,
        has_gate=False,
    ),
)


def manual(study: Study) -> tuple[Stage, ...]:
    """Its rows; the same for every study."""
    return BY_HAND


def runs_by_hand(e: Experiment) -> list[RunConfig]:
    """All runs of a plan by hand; stages choose theirs as they go, with seeds of their own."""
    nothing_yet = State(e, BY_HAND[0], None, {}, {}, (), 3600 * e.budget_hours, Costs(e))
    return nothing_yet.runs_asked_for if e.plan == "manual" else []


def every_seed_once(e: Experiment) -> None:
    """Raise ValueError where two runs by hand would be the same training: a copy is no repeat."""
    seen: dict[tuple, RunConfig] = {}
    for run in runs_by_hand(e):
        trained = run.arm.configuration, run.seed, run.num_iterations
        if other := seen.get(trained):
            raise ValueError(
                f"{other.name} and {run.name} would be the same training (seed {run.seed}):"
                " a repeat of an arm takes its seed + 1000; give seeds that lie closer together"
            )
        seen[trained] = run
