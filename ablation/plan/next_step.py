"""Which runs come next?  The plan as a pure function.

`next_step` takes the experiment and every result so far and returns the next runs or an end; it
touches nothing, so resuming, a dry run, a forecast and a power simulation are all the same call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ablation.plan.adaptive import ADAPTIVE
from ablation.plan.classic import CLASSIC, N_PAIRS
from ablation.plan.costs import Costs
from ablation.plan.decision import FINAL, PROCEED, Decision
from ablation.plan.manual import MANUAL
from ablation.plan.stage import Situation, Stage
from ablation.runs.run import Arm, RunConfig, RunResult, duration, machine_seconds
from ablation.study.experiment import Experiment

PLANS = {"classic": CLASSIC, "adaptive": ADAPTIVE, "manual": MANUAL}

BUDGET_SPENT, ALL_DONE = "the budget is spent", "all runs are done"
MAX_ATTEMPTS = 3  # of a run that crashes or hangs; the seed stays the same


@dataclass(frozen=True)
class Step:
    """What the results call for: runs to launch, or an end; and all decisions on the way."""

    stage: int
    runs: tuple[RunConfig, ...] = ()  # empty at the end, or while others are still running
    decisions: dict[int, Decision] = field(default_factory=dict)
    ended: str = ""  # why the plan goes no further
    at_gate: bool = False  # it ended because a decision did not let it pass
    fault: bool = False  # it ended because results cannot be what they claim to be
    cut: tuple[str, ...] = ()  # what the budget took away


def concluded(
    attempts: Sequence[RunResult], forgiven: frozenset[tuple[str, int]] = frozenset()
) -> RunResult | None:
    """The result that stands for a run; None if it has to be run (again).

    forgiven: (run, attempt) of failures that are not held against their runs.
    """
    if attempts and attempts[-1].has_outcome:
        return attempts[-1]
    failures = [a for a in attempts if a.status in ("crashed", "timeout")]
    failures = [a for a in failures if (a.run.name, a.attempt) not in forgiven]
    for_good = failures and (failures[-1].final or len(failures) >= MAX_ATTEMPTS)
    return failures[-1] if for_good else None


def baseline_lost(wanted: Sequence[RunConfig], outcomes: Mapping[tuple, RunResult]) -> bool:
    """No usable baseline will come of these runs: one diverged; or all were given up, while another
    arm could be trained. Until one could, the machine may be what is broken."""
    mine = [outcomes.get(run.key) for run in wanted if not run.arm.layers]
    if any(r is not None and r.status == "diverged" for r in mine):
        return True
    lost = bool(mine) and all(r is not None and not r.has_outcome for r in mine)
    return lost and any(r.has_outcome for run in wanted if (r := outcomes.get(run.key)))


def equal_losses(results: Sequence[RunResult]) -> tuple[int, str]:
    """(stage, what was seen) where two seeds of an arm gave exactly the same loss; (0, "") else.

    With two seeds, weights and batches differ, and so do losses, at full precision. Repeats that
    are copies would make every interval too narrow.
    """
    seen: dict[tuple, RunResult] = {}
    for r in sorted(results, key=lambda r: r.run.stage):
        if r.status == "ok":
            trained = (r.run.arm.configuration, r.run.arm.unet_skips, r.run.num_iterations)
            other = seen.setdefault((*trained, r.val_loss), r)
            if other.run.seed != r.run.seed:
                seeds = f"seeds {other.run.seed} and {r.run.seed}"
                both = f"{other.run.name} and {r.run.name}"
                what = f"{both} ({seeds}) have exactly the same val loss {r.val_loss!r}"
                remedy = "begin a new experiment with one that does"
                return r.run.stage, f"{what}: does the trainer use its seed? If not, {remedy}"
    return 0, ""


def outcomes_of(e: Experiment, results: Sequence[RunResult]) -> dict[tuple, RunResult]:
    """The result that stands for each run that needs no further attempt, by RunConfig.key."""
    attempts: dict[tuple, list[RunResult]] = {}
    for r in sorted(results, key=lambda r: r.attempt):
        attempts.setdefault(r.run.key, []).append(r)
    return {key: r for key, mine in attempts.items() if (r := concluded(mine, e.forgiven))}


def situation_of(
    e: Experiment, stage: Stage, choice: Arm | None, decisions: Mapping[int, Decision],
    results: Sequence[RunResult], outcomes: Mapping[tuple, RunResult],
) -> Situation:  # fmt: skip
    """What the stage may know: nothing of later ones."""
    earlier = [r for r in results if r.run.stage < stage.number]
    return Situation(
        experiment=e,
        stage=stage,
        choice=choice,
        decisions=decisions,
        results={key: r for key, r in outcomes.items() if r.run.stage == stage.number},
        history=tuple(r for r in results if r.run.stage <= stage.number),
        left_s=3600 * e.budget_hours - machine_seconds(earlier),
        costs=Costs(e, earlier),
    )


def chosen_by_hand(e: Experiment, stage: Stage) -> Arm | None:
    """What a person chose for this stage, instead of the stages before it."""
    found = e.overridden(stage.number, "by_hand")
    return found and Arm("by_hand", **{**found.value, "layers": tuple(found.value["layers"])})


def what_is_cut(
    e: Experiment, stage: Stage, wanted: Sequence[RunConfig], unaffordable: Sequence[RunConfig],
    costs: Costs, left_s: float,
) -> Iterator[str]:  # fmt: skip
    """What the budget takes away from a stage, in words. unaffordable: its runs that do not begin
    since the first of them costs more than is left."""
    asked = e.validation_runs or N_PAIRS
    if stage.all_pairs_at_once and len(wanted) < 2 * asked:
        yield f"stage {stage.number}: {len(wanted) // 2} of {asked} pairs fit into what is left"
    if unaffordable:
        names = ", ".join(run.name for run in unaffordable)
        yield (
            f"stage {stage.number}: {names} not started: the next one takes about"
            f" {duration(costs(unaffordable[0]))}, {duration(max(0.0, left_s))} are left"
        )


def next_step(
    e: Experiment,
    results: Sequence[RunResult],
    running: frozenset[str] = frozenset(),
    spent_s: float | None = None,
    conclude: bool = True,
) -> Step:
    """The plan. `running` names the runs in flight, `spent_s` the machine time with theirs and with
    what is set aside for them.

    Without `conclude`, the last stage's decision, on which no run depends, is left out: it is the
    one that needs tests, and scipy takes most of a second to import.
    """
    outcomes, costs = outcomes_of(e, results), Costs(e, results)
    fault_stage, fault = equal_losses(results)
    left_s = 3600 * e.budget_hours - (machine_seconds(results) if spent_s is None else spent_s)
    start = max((o.stage for o in e.overrides if o.kind == "by_hand"), default=0)
    choice, step = None, Step(0)
    for stage in PLANS[e.plan]:
        choice = chosen_by_hand(e, stage) or choice
        if choice is None and stage.number > 2:
            continue  # a person chose for a later stage
        situation = situation_of(e, stage, choice, step.decisions, results, outcomes)
        step = replace(step, stage=stage.number)
        if fault and stage.number >= fault_stage:
            return replace(step, ended=fault, fault=True)
        wanted = stage.wanted(situation)
        open_runs = [run for run in wanted if run.key not in outcomes]
        if open_runs and stage.number < start:
            continue  # the same
        if stage.needs_baseline and baseline_lost(wanted, outcomes):
            if running:
                return step
            open_runs = []  # could be compared with nothing
        startable = tuple(run for run in open_runs if run.name not in running)
        broke = bool(startable) and costs(startable[0]) > left_s
        unaffordable = startable if broke and not running else ()
        cut = what_is_cut(e, stage, wanted, unaffordable, costs, left_s)
        step = replace(step, cut=(*step.cut, *cut))
        if open_runs and (not broke or running):
            return replace(step, runs=() if broke else startable)
        step = concluded_stage(situation, step, broke or not wanted, start, conclude)
        if step.ended:
            return step
        choice = step.decisions[stage.number].chosen or choice
        if choice is None and stage.number == 2:
            return replace(step, ended="stage 2 left no layers to go on with")
    return replace(step, ended=ALL_DONE)


def concluded_stage(
    situation: Situation, step: Step, spent: bool, start: int, conclude: bool
) -> Step:
    """The step with the stage's decision, `ended` where that does not let the plan pass. spent: the
    budget allows no further run. start: the stage that a person chose for, which asks no gate
    before it."""
    e, stage = situation.experiment, situation.stage
    is_last = stage is PLANS[e.plan][-1]
    if is_last and not conclude:
        return replace(step, ended=BUDGET_SPENT if spent else ALL_DONE)
    decision = stage.decide(situation)
    step = replace(step, decisions={**step.decisions, stage.number: decision})
    if spent:
        return replace(step, ended=BUDGET_SPENT)
    passed = decision.verdict in (PROCEED, FINAL) or e.overridden(stage.number, "ignore_gate")
    if not passed and stage.number >= start:
        return replace(step, ended=decision.title, at_gate=not is_last)
    return step


def pairs_begun(results: Sequence[RunResult]) -> int:
    """Complete pairs of stage 4; -1 before its first run."""
    mine = [r for r in results if r.run.stage == 4]
    settled = {(bool(r.run.arm.layers), r.run.index) for r in mine if r.has_outcome}
    complete = [index for is_best, index in settled if is_best and (False, index) in settled]
    return len(complete) if mine else -1


def is_second_test(before: Experiment, after: Experiment, results: Sequence[RunResult]) -> bool:
    """Whether stage 4, whose pairs were tested when the budget of `before` ended it, would run and
    test more under that of `after`: the level of the verdict holds for one end only."""
    verdict = next_step(before, results).decisions.get(4)
    if verdict is None:
        return False
    tested = verdict.numbers.get("looks") or verdict.numbers.get("p") is not None
    return bool(tested and next_step(after, results).runs)
