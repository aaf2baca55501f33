"""Which runs come next?  The plan as a pure function.

`next_step` takes the experiment and every result so far and returns the next runs or an end; it
touches nothing, so resuming, a dry run, a forecast and a power simulation are all the same call.
`conclude` adds what the last stage decides, for whoever shows or counts it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ablation.plan.adaptive import adaptive
from ablation.plan.classic import classic, classic_verdict
from ablation.plan.costs import Costs
from ablation.plan.decision import Decision
from ablation.plan.manual import manual
from ablation.plan.stage import FINAL_STAGE, Stage, State, about
from ablation.runs.run import Arm, RunConfig, RunResult, duration, machine_seconds
from ablation.study.experiment import Experiment
from ablation.study.study import Study

PLANS: dict[str, Callable[[Study], tuple[Stage, ...]]] = {
    "classic": classic,
    "adaptive": adaptive,
    "manual": manual,
}


def stages_of(e: Experiment) -> tuple[Stage, ...]:
    """The rows of its plan's table."""
    return PLANS[e.plan](e.study)


BUDGET_SPENT, ALL_DONE = "the budget is spent", "all runs are done"
FEWEST_ROUNDED = 3  # losses of a log that rounds them: equal by chance no more; chosen
MAX_ATTEMPTS = 3  # of a run that crashes or hangs; chosen, and the seed stays the same


@dataclass(frozen=True)
class Step:
    """What the results call for: runs to launch, or an end; and the decisions on the way."""

    stage: int
    runs: tuple[RunConfig, ...] = ()  # empty at the end, or while others are still running
    decisions: dict[int, Decision] = field(default_factory=dict)
    ended: str = ""  # why the plan goes no further
    at_gate: bool = False  # it ended because a decision did not let it pass
    fault: bool = False  # it ended because results cannot be what they claim to be
    budget_cuts: tuple[str, ...] = ()  # what the budget leaves out, in words
    last: State | None = field(default=None, compare=False, repr=False)  # for `conclude`: of the
    # last stage, when no run of it is to come


# ---------------------------------------------------------------------------------------------
# What the attempts come to


def result_that_stands(
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


def results_that_stand(e: Experiment, results: Sequence[RunResult]) -> dict[tuple, RunResult]:
    """The result of each run that needs no further attempt, by RunConfig.key."""
    attempts: dict[tuple, list[RunResult]] = {}
    for r in sorted(results, key=lambda r: r.attempt):
        attempts.setdefault(r.run.key, []).append(r)
    forgiven = e.overrides.forgiven
    found = {key: result_that_stands(mine, forgiven) for key, mine in attempts.items()}
    return {key: r for key, r in found.items() if r}


WHY_EQUAL = {  # by trainer.seed: what to look at
    "told": (
        "does the trainer use its seed? If not, begin a new experiment with one that does, or that"
        " prints more digits"
    ),
    "none": "runs that do not differ are no repeats; begin a new experiment with more digits",
}


def equal_losses(e: Experiment, results: Sequence[RunResult]) -> tuple[int, str]:
    """(stage, what was seen) where two seeds of an arm gave exactly the same loss; (0, "") else.

    With two seeds, weights and batches differ, and so do losses, at full precision. Repeats that
    are copies would make every interval too narrow. Logs without a summary round their losses, so
    there all that were logged have to be the same, three at least.
    """
    seen: dict[tuple, RunResult] = {}
    for r in sorted(results, key=lambda r: r.run.stage):
        if r.status == "ok":
            losses = tuple(loss for _, loss, _ in r.curve) if r.evidence else (r.val_loss,)
            if r.evidence and len(losses) < FEWEST_ROUNDED:
                continue
            trained = (r.run.arm.configuration, r.run.num_iterations, losses)
            other = seen.setdefault(trained, r)
            if other.run.seed != r.run.seed:
                seeds = f"seeds {other.run.seed} and {r.run.seed}"
                both = f"{other.run.name} and {r.run.name}"
                same = f"{e.study.metric.words} {e.study.metric.sign * r.final_loss!r}"
                what = f"{both} ({seeds}) have exactly the same {same}"
                return r.run.stage, f"{what}: {WHY_EQUAL[e.study.trainer.seed]}"
    return 0, ""


# ---------------------------------------------------------------------------------------------
# What is open of a stage


def state_of(
    e: Experiment, stage: Stage, choice: Arm | None, decisions: Mapping[int, Decision],
    results: Sequence[RunResult], standing: Mapping[tuple, RunResult],
) -> State:  # fmt: skip
    """What the stage may know: nothing of later ones."""
    earlier = [r for r in results if r.run.stage < stage.number]
    return State(
        experiment=e,
        stage=stage,
        choice=choice,
        decisions=decisions,
        results={key: r for key, r in standing.items() if r.run.stage == stage.number},
        history=tuple(r for r in results if r.run.stage <= stage.number),
        left_s=3600 * e.budget_hours - machine_seconds(earlier),
        costs=Costs(e, earlier),
    )


def baseline_lost(state: State) -> bool:
    """No usable baseline will come of the stage: one diverged; or all were given up, while another
    arm could be trained. Until one could, the machine may be what is broken."""
    mine = [state.results.get(run.key) for run in state.runs_asked_for if run.arm.is_baseline]
    if any(r is not None and r.status == "diverged" for r in mine):
        return True
    lost = bool(mine) and all(r is not None and not r.has_outcome for r in mine)
    return lost and any(r.has_outcome for r in state.stage_results)


@dataclass(frozen=True)
class Open:
    """What is open of a stage."""

    runs: tuple[RunConfig, ...] = ()  # to launch, in order
    over: bool = False  # no run of it is in flight or to come
    spent: bool = False  # it is over because the budget allows no further run
    budget_cuts: tuple[str, ...] = ()


def open_of(state: State, running: frozenset[str], costs: Costs, left_s: float) -> Open:
    """What is open of a stage, by what is left of the budget, in seconds of machine time."""
    open_runs = state.open_runs
    if state.stage.needs_baseline and baseline_lost(state):
        if running:
            return Open()
        open_runs = []  # could be compared with nothing
    startable = tuple(run for run in open_runs if run.name not in running)
    unaffordable = bool(startable) and costs(startable[0]) > left_s
    over = not open_runs or (unaffordable and not running)
    least = 2 if state.stage.sequential else 1  # pairs: a look at one says nothing
    too_few = state.stage.most_pairs > 0 and len(state.runs_asked_for) < 2 * least
    return Open(
        runs=() if unaffordable else startable,
        over=over,
        spent=over and (unaffordable or too_few),
        budget_cuts=(
            *pairs_left_out(state),
            *(runs_left_out(state, startable, costs, left_s) if over and unaffordable else ()),
        ),
    )


def pairs_left_out(state: State) -> Iterator[str]:
    """Pairs that the budget leaves out of a stage that asks for all of them at once, in words."""
    stage, runs = state.stage, state.runs_asked_for
    asked = state.experiment.validation_runs or stage.most_pairs
    if stage.most_pairs and not stage.sequential and len(runs) < 2 * asked:
        yield f"stage {stage.number}: {len(runs) // 2} of {asked} pairs fit into what is left"


def runs_left_out(
    state: State, runs: Sequence[RunConfig], costs: Costs, left_s: float
) -> Iterator[str]:
    """Runs of a stage that do not begin since the first of them is unaffordable, in words."""
    yield (
        f"stage {state.stage.number}: {', '.join(run.name for run in runs)} not started: the next"
        f" one takes about {duration(costs(runs[0]))}, {duration(max(0.0, left_s))} are left"
    )


# ---------------------------------------------------------------------------------------------
# The plan


def next_step(
    e: Experiment,
    results: Sequence[RunResult],
    running: frozenset[str] = frozenset(),
    spent_s: float | None = None,
) -> Step:
    """The plan. `running` names the runs in flight, `spent_s` the machine time with theirs and with
    what is set aside for them.

    The last stage's decision, on which no run depends, is not among the step's: see `conclude`.
    """
    costs, standing = Costs(e, results), results_that_stand(e, results)
    left_s = 3600 * e.budget_hours - (machine_seconds(results) if spent_s is None else spent_s)
    fault_stage, fault = equal_losses(e, results)
    by_hand = e.overrides.first_stage
    choice, step = None, Step(0)
    for stage in stages_of(e):
        choice = e.overrides.chosen_for(stage.number) or choice
        if stage.takes_choice and choice is None:
            continue  # a person chose for a later stage
        state = state_of(e, stage, choice, step.decisions, results, standing)
        step = replace(step, stage=stage.number)
        if fault and stage.number >= fault_stage:
            return replace(step, ended=fault, fault=True)
        if state.open_runs and stage.has_gate and stage.number < by_hand:
            continue  # the same
        found = open_of(state, running, costs, left_s)
        step = replace(step, budget_cuts=(*step.budget_cuts, *found.budget_cuts))
        if not found.over:
            return replace(step, runs=found.runs)
        if not stage.has_gate:
            return replace(step, ended=BUDGET_SPENT if found.spent else ALL_DONE, last=state)
        decision = stage.decide(state)
        step = replace(step, decisions={**step.decisions, stage.number: decision})
        if found.spent:
            return replace(step, ended=BUDGET_SPENT)
        if not passes(e, decision) and stage.number >= by_hand:
            return replace(step, ended=decision.title, at_gate=True)
        choice = decision.chosen or choice
        if stage.chooses and choice is None:
            left_none = f"stage {stage.number} left no {stage.chooses} to go on with"
            return replace(step, ended=left_none)
    raise AssertionError(f"plan {e.plan}: its last stage has a gate, or needs a choice of none")


def passes(e: Experiment, decision: Decision) -> bool:
    """Whether a stage's decision lets the plan go on, by itself or because a person said so."""
    return decision.lets_pass or e.overrides.passes_gate(decision.stage)


def conclude(step: Step) -> Step:
    """The step with the last stage's decision, where that stage is over; any other as it is.

    Apart from `next_step` because no run depends on it, and it takes a test: scipy needs most of a
    second to be imported.
    """
    state = step.last
    if state is None:
        return step
    decision = state.stage.decide(state)
    if state.choice:
        decision = replace(decision, because=(*decision.because, about(state)))
    step = replace(step, decisions={**step.decisions, state.stage.number: decision})
    if step.ended == BUDGET_SPENT or passes(state.experiment, decision):
        return step
    return replace(step, ended=decision.title)


def verdict_in(decisions: Mapping[int, Decision]) -> str:
    """What was concluded about the effect, in one of the four words of `looks`; empty before the
    last stage has decided: what selects an arm concludes nothing."""
    if FINAL_STAGE not in decisions:
        return ""
    numbers = decisions[FINAL_STAGE].numbers
    return numbers["verdict"] if "verdict" in numbers else classic_verdict(numbers)


# ---------------------------------------------------------------------------------------------
# A budget that is given later


def pairs_begun(results: Sequence[RunResult]) -> int:
    """Complete pairs of stage 4; -1 before its first run."""
    mine = [r for r in results if r.run.stage == FINAL_STAGE]
    done = {(not r.run.arm.is_baseline, r.run.index) for r in mine if r.has_outcome}
    complete = [index for is_best, index in done if is_best and (False, index) in done]
    return len(complete) if mine else -1


def is_second_test(before: Experiment, after: Experiment, results: Sequence[RunResult]) -> bool:
    """Whether stage 4, whose pairs were tested when the budget of `before` ended it, would run and
    test more under that of `after`: the level of the verdict holds for one end only."""
    verdict = conclude(next_step(before, results)).decisions.get(FINAL_STAGE)
    if verdict is None:
        return False
    tested = verdict.numbers.get("looks") or verdict.numbers.get("p") is not None
    return bool(tested and next_step(after, results).runs)
