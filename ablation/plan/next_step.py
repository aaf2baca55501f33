"""Which runs come next?  The plan as a pure function.

`next_step` takes the experiment and every result so far and returns the next runs or an end; it
touches nothing, so resuming, a dry run, a forecast and a power simulation are all the same call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ablation.plan.adaptive import ADAPTIVE
from ablation.plan.classic import CLASSIC, N_PAIRS
from ablation.plan.costs import Costs
from ablation.plan.decision import FINAL, PROCEED, Decision
from ablation.plan.manual import MANUAL
from ablation.plan.stage import Situation
from ablation.runs.run import Arm, RunConfig, RunResult, duration, machine_seconds
from ablation.study.experiment import Experiment


def pairs_begun(results: Sequence[RunResult]) -> int:
    """Complete pairs of stage 4; -1 before its first run."""
    mine = [r for r in results if r.run.stage == 4]
    settled = {(bool(r.run.arm.layers), r.run.index) for r in mine if r.settled}
    complete = [index for is_best, index in settled if is_best and (False, index) in settled]
    return len(complete) if mine else -1


PLANS = {"classic": CLASSIC, "adaptive": ADAPTIVE, "manual": MANUAL}

# ---------------------------------------------------------------------------------------------
# The plan: a pure function from the results so far to the next runs, or to an end

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
    if attempts and attempts[-1].settled:
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
    lost = bool(mine) and all(r is not None and not r.settled for r in mine)
    return lost and any(r.settled for run in wanted if (r := outcomes.get(run.key)))


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
    attempts: dict[tuple, list[RunResult]] = {}
    for r in sorted(results, key=lambda r: r.attempt):
        attempts.setdefault(r.run.key, []).append(r)
    last_words = {key: r for key, a in attempts.items() if (r := concluded(a, e.forgiven))}
    fault_stage, fault = equal_losses(results)
    left_s = 3600 * e.budget_hours - (machine_seconds(results) if spent_s is None else spent_s)
    costs = Costs(e, results)
    start = max((o.stage for o in e.overrides if o.kind == "by_hand"), default=0)
    choice, decisions, cut = None, {}, []

    for stage in PLANS[e.plan]:
        earlier = [r for r in results if r.run.stage < stage.number]
        if by_hand := e.overridden(stage.number, "by_hand"):
            choice = Arm("by_hand", **{**by_hand.value, "layers": tuple(by_hand.value["layers"])})
        elif choice is None and stage.number > 2:
            continue  # a person chose for a later stage
        situation = Situation(
            experiment=e,
            stage=stage,
            choice=choice,
            decisions=decisions,
            results={key: r for key, r in last_words.items() if r.run.stage == stage.number},
            history=tuple(r for r in results if r.run.stage <= stage.number),
            left_s=3600 * e.budget_hours - machine_seconds(earlier),
            costs=Costs(e, earlier),
        )
        if fault and stage.number >= fault_stage:
            return Step(stage.number, (), decisions, fault, fault=True, cut=tuple(cut))
        wanted = stage.wanted(situation)
        open_runs = [run for run in wanted if run.key not in last_words]
        if open_runs and stage.number < start:
            continue  # the same
        if stage.needs_baseline and baseline_lost(wanted, last_words):
            if running:
                return Step(stage.number, (), decisions, cut=tuple(cut))
            open_runs = []  # could be compared with nothing
        startable = tuple(run for run in open_runs if run.name not in running)
        asked = e.validation_runs or N_PAIRS
        if stage.all_pairs_at_once and len(wanted) < 2 * asked:
            cut.append(f"stage 4: {len(wanted) // 2} of {asked} pairs fit into what is left")
        broke = bool(startable) and costs(startable[0]) > left_s
        if open_runs and (not broke or running):
            return Step(stage.number, () if broke else startable, decisions, cut=tuple(cut))
        if broke:
            names = ", ".join(run.name for run in startable)
            cut.append(
                f"stage {stage.number}: {names} not started: the next one takes about"
                f" {duration(costs(startable[0]))}, {duration(max(0.0, left_s))} are left"
            )

        if stage is PLANS[e.plan][-1] and not conclude:
            ended = "the budget is spent" if broke or not wanted else "all runs are done"
            return Step(stage.number, (), decisions, ended, cut=tuple(cut))
        decision = stage.decide(situation)
        decisions[stage.number] = decision
        choice = decision.chosen or choice
        if broke or not wanted:
            return Step(stage.number, (), decisions, "the budget is spent", cut=tuple(cut))
        passed = decision.verdict in (PROCEED, FINAL) or e.overridden(stage.number, "ignore_gate")
        if not passed and stage.number >= start:
            leads_on = stage is not PLANS[e.plan][-1]
            return Step(stage.number, (), decisions, decision.title, leads_on, cut=tuple(cut))
        if choice is None and stage.number == 2:
            return Step(2, (), decisions, "stage 2 left no layers to go on with", cut=tuple(cut))
    return Step(stage.number, (), decisions, "all runs are done", cut=tuple(cut))


def is_second_test(before: Experiment, after: Experiment, results: Sequence[RunResult]) -> bool:
    """Whether stage 4, whose pairs were tested when the budget of `before` ended it, would run and
    test more under that of `after`: the level of the verdict holds for one end only."""
    verdict = next_step(before, results).decisions.get(4)
    if verdict is None:
        return False
    tested = verdict.numbers.get("looks") or verdict.numbers.get("p") is not None
    return bool(tested and next_step(after, results).runs)
