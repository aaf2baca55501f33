"""What is still to come?  The plan carried out with placeholder losses: runs, hours, cuts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ablation.plan.costs import Costs
from ablation.plan.next_step import Step, next_step, stages_of
from ablation.plan.stage import FINAL_STAGE
from ablation.runs.run import RunConfig, RunResult, machine_seconds
from ablation.study.experiment import Experiment
from ablation.study.study import Study


@dataclass(frozen=True)
class Planned:
    """A run that is still to come if every gate lets the plan pass."""

    run: RunConfig
    start_s: float  # from now
    wall_s: float


def span_s(planned: Sequence[Planned]) -> float:
    """Seconds from the first start to the last end; 0 without any run."""
    ends = [p.start_s + p.wall_s for p in planned]
    return max(ends) - min(p.start_s for p in planned) if planned else 0.0


def of_stage(planned: Sequence[Planned], number: int) -> list[Planned]:
    """Those of a stage, in order."""
    return [p for p in planned if p.run.stage == number]


def pairs_of(planned: Sequence[Planned]) -> int:
    """How many pairs of stage 4 there are."""
    return len(of_stage(planned, FINAL_STAGE)) // 2


def paid_s(e: Experiment, planned: Sequence[Planned]) -> float:
    """Machine time, as `machine_seconds` will count it."""
    return sum(p.wall_s for p in planned) * e.share.nodes if e.share.paid_each else span_s(planned)


def simulate(
    e: Experiment,
    results: Sequence[RunResult],
    loss: Callable[[RunConfig], float],
    wall_s: Callable[[RunConfig], float] | None = None,
) -> tuple[list[Planned], Step]:
    """The plan carried out from these results on, as the orchestrator would: the runs in order, and
    the last step. A run ends with the loss that `loss` says (not finite: it diverges), and
    takes what the plan expects, or what wall_s says."""
    results, planned = list(results), []
    clock_s = 0.0
    attempts: dict[str, int] = {}
    for r in results:
        attempts[r.run.name] = max(r.attempt, attempts.get(r.run.name, 0))
    while (step := next_step(e, results)).runs:
        costs = Costs(e, results)
        left_s = 3600 * e.budget_hours - machine_seconds(results)  # as in next_step
        free_s = [clock_s] * e.share.parallel_runs  # when each slot is next free
        launched: list[Planned] = []
        for run in step.runs:
            slot = free_s.index(min(free_s))
            begun_s = paid_s(e, launched) if e.share.paid_each else free_s[slot] - clock_s
            if begun_s + costs(run) > left_s:
                break
            launched.append(Planned(run, free_s[slot], (wall_s or costs.wall_s)(run)))
            free_s[slot] += launched[-1].wall_s
            attempts[run.name] = attempts.get(run.name, 0) + 1
            results.append(placeholder(launched[-1], attempts[run.name], loss(run), costs))
        planned += launched
        clock_s = max(free_s)
    return planned, step


def forecast(
    e: Experiment,
    results: Sequence[RunResult] = (),
    loss: Callable[[RunConfig], float] | None = None,
) -> tuple[list[Planned], Step]:
    """The longest course that the plan can take within the budget, every gate passed and every pair
    run: the runs still to come, and the plan's last step.

    loss: of a run, where it is to be another than the placeholder's, by which the favourite
    arm wins.
    """
    scale = max((r.final_loss for r in results if r.status == "ok"), default=4.0)
    longest = replace(e, overrides=e.overrides.ungated, stop_on="never")
    spread = abs(scale) or 1.0
    loss = loss or (lambda run: scale + spread * (placeholder_loss(e.study, run) - 1))
    return simulate(longest, results, loss)


def too_few_pairs(e: Experiment) -> str:
    """Why a new experiment can conclude nothing: its sequential test would end before its first
    look; with what can be done about it. Empty where it can."""
    if not stages_of(e)[-1].sequential:
        return ""
    first = e.profile.design.first_look
    needed, fit = min(first, e.validation_runs or first), pairs_of(forecast(e)[0])
    if fit >= needed:
        return ""
    no_limit = replace(e, budget_hours=1e9, validation_runs=needed)
    hours = rounded_up(paid_s(e, forecast(no_limit)[0]) / 3600)
    while pairs_of(forecast(replace(e, budget_hours=hours))[0]) < needed:
        hours = rounded_up(1.02 * hours)  # runs side by side: whole rounds are set aside for pairs
    return (
        f"a budget of {e.budget_hours:g} h leaves {fit} pair(s) for stage 4, and a verdict takes"
        f" {needed}: give --max_budget_hours {hours:g} or more, or runs with fewer"
        " --full_iterations"
    )


def rounded_up(x: float) -> float:
    """The next number of two digits."""
    digits = 1 - math.floor(math.log10(x))
    return round(math.ceil(x * 10**digits) / 10**digits, max(0, digits))


def longest_course(e: Experiment) -> list[Planned]:
    """All runs that the plan can ask for, whatever the budget."""
    return forecast(replace(e, budget_hours=1e5))[0]


def placeholder_loss(study: Study, run: RunConfig) -> float:
    """The loss of a run, that of the baseline being 1: the favourite arm wins, without a
    refinement. No two seeds give the same, or the plan would stop."""
    configuration, of_seed = run.arm.configuration, 1e-9 * (run.seed % 1_000_003)
    if not configuration:
        return 1.0 + of_seed
    is_best = configuration == study.expected_best.configuration
    return 0.9 + 0.01 * (not is_best) + of_seed


def placeholder(planned: Planned, attempt: int, val_loss: float, costs: Costs) -> RunResult:
    """The result that stands for a run that is still to come."""
    e, run = costs.experiment, planned.run
    train, rest = (s * ratio for s, ratio in zip(costs.prior(run), costs.ratios, strict=True))
    share = train / (train + rest)
    return RunResult(
        run=run,
        attempt=attempt,
        status="ok" if math.isfinite(val_loss) else "diverged",
        reason="placeholder",
        clock=f"job {run.name} {attempt}" if e.share.paid_each else "forecast",
        start_s=planned.start_s,
        end_s=planned.start_s + planned.wall_s,
        nodes=e.share.nodes,
        val_loss=val_loss if math.isfinite(val_loss) else None,
        steps_done=run.num_iterations,
        train_time_ms=1000 * share * planned.wall_s,
        step_avg_ms=1000 * share * planned.wall_s / run.num_iterations,
    )
