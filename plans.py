"""Which runs come next?  The plan as a pure function.

Stages (what is run and decided when) are rows. `next_step` takes the experiment and every result
so far and returns the next runs or an end; it touches nothing, so resuming, a dry run, a forecast
and a power simulation are all the same call.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import adaptive
import decision as helper
from adaptive import Design
from decision import FINAL, PROCEED, Decision
from experiment import (
    DIVES,
    FINAL_ARMS,
    GRID,
    LAYERS,
    LENGTHS,
    N_VALIDATIONS,
    SCHEDULE,
    SCREENING,
    SHORT,
    VALIDATIONS,
    WEIGHT,
    Costs,
    Experiment,
    Override,
    aux,
    baseline,
    phase_of,
    seed_of,
    weighted,
)
from records import Arm, RunConfig, RunResult, duration, machine_seconds

# ---------------------------------------------------------------------------------------------
# Stages: which runs a stage asks for, given what is known

N_PAIRS = 8  # in stage 4 of the classic plan, budget permitting
MAX_PAIRS = 100  # in stage 4 of the adaptive plan: enough for effects of half a sigma
MAX_GIVEN_UP = 3  # pairs of the adaptive plan's stage 4 that may fail for good before it ends


@dataclass(frozen=True)
class Situation:
    """What a stage may know: the experiment, earlier stages' choice, and its own results."""

    experiment: Experiment
    stage: "Stage"
    choice: Arm | None  # layers, weight and schedule as decided so far
    decisions: Mapping[int, Decision]  # of the stages before
    results: Mapping[tuple, RunResult]  # by RunConfig.key: the last word on the stage's runs
    history: tuple[RunResult, ...]  # every attempt of this stage and of those before
    left_s: float  # of the budget, when the stage began
    costs: Costs  # as known when the stage began

    @property
    def told(self) -> list[RunResult]:
        """The results in the order in which the stage asked for them."""
        return self.of(self.stage.wanted(self))

    def of(self, runs: Sequence[RunConfig]) -> list[RunResult]:
        """The results of these runs, as far as there are any."""
        return [self.results[run.key] for run in runs if run.key in self.results]

    def run(self, arm: Arm, seed_number: int = 0, index: int = 0) -> RunConfig:
        stage, e = self.stage, self.experiment
        iterations, arm = e.iterations(stage.fraction), replace(arm, unet_skips=e.unet_skips)
        return RunConfig(stage.number, arm, index, seed_of(stage.number, seed_number), iterations)


@dataclass(frozen=True)
class Stage:
    """One row of a plan's table."""

    number: int
    name: str
    question: str
    rule: str  # what decides, as a text; {} are filled in from the profile's Design
    arms: tuple[Arm, ...]
    fraction: float  # of a full run
    wanted: Callable[[Situation], list[RunConfig]]  # all runs asked for so far, in order
    decide: Callable[[Situation], Decision]
    needs_baseline: bool = False  # without a usable one its other runs could be compared with none
    all_pairs_at_once: bool = False  # how many pairs it has is fixed before the first


def classic(rule: Callable[[Sequence[RunResult], Sequence[str]], Decision]):
    """A rule of the classic plan as the `decide` of a stage: it sees the results and the arms."""
    return lambda s: rule(s.told, [arm.name for arm in s.stage.arms or s.experiment.arms])


def final_decision(s: Situation) -> Decision:
    return of_what(s, classic(helper.decide_final)(s))


def of_what(s: Situation, decision: Decision) -> Decision:
    """The decision, with what it is about: one configuration, chosen from those that were run."""
    full = s.experiment.iterations(1.0)
    run = {r.run.arm.configuration for r in s.history if r.settled and r.run.num_iterations == full}
    about = f"of the configuration chosen; {len(run & {*GRID})} of {len(GRID)} were run"
    if s.choice.configuration not in GRID:
        about += ", this one outside of these"
    return replace(decision, because=(*decision.because, f"The verdict is {about}."))


def each_arm_once(s: Situation) -> list[RunConfig]:
    """Arms share the stage's first seed; a repeat of a configuration takes the next one."""
    runs, seen = [], {}
    for arm in s.stage.arms:
        number = seen.get(arm.configuration, 0)
        seen[arm.configuration] = number + 1
        runs.append(s.run(arm, number))
    return runs


def dives_then_validations(s: Situation) -> list[RunConfig]:
    """Weights and schedules at the chosen layers; then the best of them, with new seeds."""
    dives = each_arm_once(s)[: len(DIVES)]
    dives = [replace(run, arm=replace(run.arm, layers=s.choice.layers)) for run in dives]
    done = s.of(dives)
    if len(done) < len(dives) or (best := helper.best_dive(done)) is None:
        return dives
    validations = [replace(best.arm, name=f"validation_{k}") for k in range(N_VALIDATIONS)]
    return dives + [s.run(arm, 2 + k) for k, arm in enumerate(validations)]


def pairs(s: Situation) -> list[RunConfig]:
    """As many baseline/best pairs as the budget allows, interleaved so that drift hits both."""
    n = min(s.experiment.validation_runs or N_PAIRS, affordable(s, s.costs, left_on_entry_s(s)))
    return [run for k in range(n) for run in pair_of(s, k)]


def left_on_entry_s(s: Situation) -> float:
    """Of the budget that was in force when stage 4 began. One that is given later buys no pairs:
    with them the verdict that the first ones gave would be tested again, at the same level."""
    e = s.experiment
    return s.left_s + 3600 * (e.budget_at(0) - e.budget_hours)


# ---------------------------------------------------------------------------------------------
# The same for the adaptive plan


def twice_the_baseline(s: Situation) -> list[RunConfig]:
    first = each_arm_once(s)
    return [*first, s.run(s.stage.arms[0], 1, index=1)]


def placements_then_two_again(s: Situation) -> list[RunConfig]:
    """Every placement that screening left, once; then the two best with a new seed."""
    dropped = s.decisions[1].numbers.get("dropped", []) if 1 in s.decisions else []
    first = [s.run(arm) for arm in s.stage.arms if list(arm.layers) not in dropped]
    done = s.of(first)
    if len(done) < len(first):
        return first
    return first + [s.run(arm, 1, index=1) for arm in adaptive.two_best(done)]


def cells(s: Situation) -> list[RunConfig]:
    """Weights and schedules around the default, as many as the effect so far is worth."""
    z2 = s.decisions[2].numbers.get("z2") if 2 in s.decisions else None
    return [
        s.run(aux(s.choice.layers, cell_name(weight, schedule), weight, schedule))
        for weight, schedule in adaptive.cells_to_run(z2)
    ]


def cell_name(weight: float, schedule: str) -> str:
    return f"{weighted('dive_', weight).name}_{schedule}"


def pair_of(s: Situation, k: int) -> tuple[RunConfig, RunConfig]:
    """The k-th pair of stage 4, on a seed of its own."""
    arms = (baseline("final_baseline"), replace(s.choice, name="final_best"))
    return tuple(s.run(arm, k, index=k) for arm in arms)


def final_pairs(s: Situation) -> tuple[list[adaptive.Pair], int]:
    """(complete pairs in order, up to the first one that is still open; number of pairs given up
    after repeated failures)."""
    complete, given_up = [], 0
    for k in itertools.count():
        pair = tuple(s.of(pair_of(s, k)))
        if len(pair) < 2:
            return complete, given_up
        if all(r.settled for r in pair):
            complete.append(pair)
        else:
            given_up += 1


def batch_end(s: Situation, n: int) -> int:
    """The n-th pair is launched together with those up to this one; a look comes after them: after
    first_look pairs, then after every pair, or after as many as fill the machine."""
    first = s.experiment.profile.design.first_look
    return max(first, n + (first - n) % together(s))


def together(s: Situation) -> int:
    return max(1, s.experiment.slots // 2)


def most_pairs(s: Situation, complete: Sequence[adaptive.Pair]) -> list[int]:
    """n_max on entry, and after each complete pair as the budget then allowed; it never rises."""
    e = s.experiment
    limits = [min(e.validation_runs or MAX_PAIRS, affordable(s, s.costs, left_on_entry_s(s)))]
    for n in range(1, len(complete) + 1):
        end = n if e.slots == 1 else batch_end(s, n)
        if end > len(complete):  # others that were launched with it still run, and are paid for
            limits.append(limits[-1])
            continue
        last = complete[end - 1][0].run.index
        paid = [r for r in s.history if r.run.stage < 4 or r.run.index <= last]
        left_s = 3600 * e.budget_at(n) - machine_seconds(paid)
        limits.append(min(limits[-1], end + affordable(s, Costs(e, paid), left_s)))
    return limits


def affordable(s: Situation, costs: Costs, left_s: float) -> int:
    """How many pairs fit into what is left; side by side on a machine, their runs go in rounds."""
    e, times = s.experiment, [costs(run) for run in pair_of(s, 0)]
    if e.slots == 1 or e.paid_each:
        return max(0, math.floor(left_s / sum(times)))
    rounds = max(0, math.floor(left_s / max(times)))
    if s.stage.all_pairs_at_once:  # an odd slot takes half of the next pair
        return rounds * e.slots // 2
    return rounds * together(s)


def pairs_until_settled(s: Situation) -> list[RunConfig]:
    """Pairs up to the first look, then more as long as the last look leaves something open."""
    complete, given_up = final_pairs(s)
    limits = most_pairs(s, complete)
    n, n_max = len(complete), limits[-1]
    if s.experiment.stop_on == "never":
        return [run for k in range(n_max) for run in pair_of(s, k)]
    looks = looks_so_far(s, complete, limits[1:])
    target = batch_end(s, n + 1)
    if (looks and adaptive.settled(looks[-1])) or given_up > MAX_GIVEN_UP:
        target = n
    count = min(target, max(n, n_max)) + given_up
    return [run for k in range(count) for run in pair_of(s, k)]


def pairs_begun(results: Sequence[RunResult]) -> int:
    """Complete pairs of stage 4; -1 before its first run."""
    mine = [r for r in results if r.run.stage == 4]
    settled = {(bool(r.run.arm.layers), r.run.index) for r in mine if r.settled}
    complete = [index for is_best, index in settled if is_best and (False, index) in settled]
    return len(complete) if mine else -1


def looks_so_far(s: Situation, complete: Sequence[adaptive.Pair], limits: Sequence[int]):
    e = s.experiment
    return adaptive.looks_at(
        complete, limits, e.profile.design, e.stop_on == "any", together=together(s)
    )


def decide_pairs(s: Situation) -> Decision:
    complete, given_up = final_pairs(s)
    limits = most_pairs(s, complete)[1:]
    looks = looks_so_far(s, complete, limits)
    if complete and not (looks and adaptive.settled(looks[-1])):
        # no further pair comes: what is left of alpha is spent on this look
        limits[-1] = len(complete)
        looks = looks_so_far(s, complete, limits)
    cost_s = sum(map(s.costs, pair_of(s, 0)))
    missing = (f"{given_up} pair(s), of which a run failed for good",) if given_up else ()
    design = s.experiment.profile.design
    decision = adaptive.decide_validation(looks, complete, cost_s, design, s.choice, missing)
    return of_what(s, decision)


def with_design(rule: Callable[[Sequence[RunResult], Sequence[str], Design], Decision]):
    return lambda s: rule(s.told, names_wanted(s), s.experiment.profile.design)


def names_wanted(s: Situation) -> list[str]:
    return list(dict.fromkeys(run.arm.name for run in s.stage.wanted(s)))


def decide_cells(s: Situation) -> Decision:
    design, stage_2 = s.experiment.profile.design, s.decisions.get(2)
    return adaptive.decide_hyperparameters(s.told, names_wanted(s), design, s.choice, stage_2)


def every_seed(s: Situation) -> list[RunConfig]:
    """Plan "manual": the arms asked for, seed by seed; a repeat of an arm gets other seeds."""
    e, runs = s.experiment, []
    for k, seed in enumerate(e.seeds):
        earlier = [arm.configuration for arm in e.arms]
        for position, arm in enumerate(e.arms):
            repeat = earlier[:position].count(arm.configuration)
            iterations = e.iterations(LENGTHS.get(phase_of(arm), 1.0))
            as_run = replace(arm, unet_skips=e.unet_skips)
            runs.append(RunConfig(0, as_run, k, seed + 1000 * repeat, iterations))
    return runs


CLASSIC = (
    Stage(
        number=1,
        name="screening",
        question="does any placement help at once?",
        rule=helper.rule_text(1),
        arms=SCREENING,
        fraction=SHORT,
        wanted=each_arm_once,
        decide=classic(helper.decide_screening),
        needs_baseline=True,
    ),
    Stage(
        number=2,
        name="layer position",
        question="which tap layers?",
        rule=helper.rule_text(2),
        arms=LAYERS,
        fraction=1.0,
        wanted=each_arm_once,
        decide=classic(helper.decide_layers),
        needs_baseline=True,
    ),
    Stage(
        number=3,
        name="deep dive",
        question="which loss weight and schedule?",
        rule=helper.rule_text(3),
        arms=DIVES + VALIDATIONS,
        fraction=1.0,
        wanted=dives_then_validations,
        decide=classic(helper.decide_hyperparameters),
    ),
    Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=helper.rule_text(4),
        arms=FINAL_ARMS,
        fraction=1.0,
        wanted=pairs,
        decide=final_decision,
        all_pairs_at_once=True,
    ),
)

ADAPTIVE = (
    Stage(
        number=1,
        name="screening",
        question="does any placement do plain harm?",
        rule=adaptive.RULES[1],
        arms=SCREENING,
        fraction=SHORT,
        wanted=twice_the_baseline,
        decide=with_design(adaptive.decide_screening),
        needs_baseline=True,
    ),
    Stage(
        number=2,
        name="layer position",
        question="which tap layers?",
        rule=adaptive.RULES[2],
        arms=LAYERS[:-1],
        fraction=1.0,
        wanted=placements_then_two_again,
        decide=with_design(adaptive.decide_layers),
        needs_baseline=True,
    ),
    Stage(
        number=3,
        name="deep dive",
        question="which loss weight and schedule?",
        rule=adaptive.RULES[3],
        arms=tuple(aux((4, 8), cell_name(*cell), *cell) for cell in adaptive.MANY_CELLS),
        fraction=1.0,
        wanted=cells,
        decide=decide_cells,
    ),
    Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=adaptive.RULES[4],
        arms=FINAL_ARMS,
        fraction=1.0,
        wanted=pairs_until_settled,
        decide=decide_pairs,
    ),
)

MANUAL = (
    Stage(
        number=0,
        name="by hand",
        question="what was asked for",
        rule="none",
        arms=(),
        fraction=1.0,
        wanted=every_seed,
        decide=classic(helper.summarize),
    ),
)

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


@dataclass(frozen=True)
class Planned:
    """A run that is still to come if every gate lets the plan pass."""

    run: RunConfig
    start_s: float  # from now
    wall_s: float


def span_s(planned: Sequence[Planned]) -> float:
    """From the first start to the last end."""
    ends = [p.start_s + p.wall_s for p in planned]
    return max(ends) - min(p.start_s for p in planned) if planned else 0.0


def paid_s(e: Experiment, planned: Sequence[Planned]) -> float:
    """Machine time, as `machine_seconds` will count it."""
    return sum(p.wall_s for p in planned) * e.nodes if e.paid_each else span_s(planned)


def play(
    e: Experiment,
    results: Sequence[RunResult],
    loss: Callable[[RunConfig], float],
    wall_s: Callable[[RunConfig], float] | None = None,
    conclude: bool = True,
) -> tuple[list[Planned], list[RunResult], Step]:
    """Carry the plan out from these results on, as the orchestrator would, with invented losses:
    the runs in order, all results, and the last step. A run takes what the plan expects, or what
    wall_s says."""
    results, planned = list(results), []
    clock_s = 0.0
    attempts: dict[str, int] = {}
    for r in results:
        attempts[r.run.name] = max(r.attempt, attempts.get(r.run.name, 0))
    while (step := next_step(e, results, conclude=conclude)).runs:
        costs = Costs(e, results)
        left_s = 3600 * e.budget_hours - machine_seconds(results)  # as in next_step
        free_s = [clock_s] * e.slots  # when each slot is next free
        launched = []
        for run in step.runs:
            slot = free_s.index(min(free_s))
            begun_s = paid_s(e, launched) if e.paid_each else free_s[slot] - clock_s
            if begun_s + costs(run) > left_s:
                break
            launched.append(Planned(run, free_s[slot], (wall_s or costs.wall_s)(run)))
            free_s[slot] += launched[-1].wall_s
            attempts[run.name] = attempts.get(run.name, 0) + 1
            results.append(invented(launched[-1], attempts[run.name], loss(run), costs))
        planned += launched
        clock_s = max(free_s)
    return planned, results, step


def forecast(e: Experiment, results: Sequence[RunResult] = ()) -> tuple[list[Planned], Step]:
    """The runs still to come, and the plan's last step, if every gate lets the plan pass and the
    two-layer placement wins: the longest course that the plan can take within the budget."""
    scale = max((r.val_loss for r in results if r.status == "ok"), default=4.0)
    gates = tuple(Override("ignore_gate", n) for n in (1, 2, 3))
    everything = replace(e, overrides=(*e.overrides, *gates), stop_on="never")
    planned, _, step = play(
        everything, results, lambda run: scale * invented_loss(run), conclude=False
    )
    return planned, step


def invented_loss(run: RunConfig) -> float:
    """Of a baseline at 1: two layers win, then the default weight and schedule. No two seeds give
    the same, or the plan would stop."""
    arm, of_seed = run.arm, 1e-9 * (run.seed % 1_000_003)
    if not arm.layers:
        return 1.0 + of_seed
    off_default = (arm.weight != WEIGHT) + (arm.schedule != SCHEDULE)
    return 0.9 + 0.01 * abs(len(arm.layers) - 2) + 0.001 * off_default + of_seed


def invented(planned: Planned, attempt: int, val_loss: float, costs: Costs) -> RunResult:
    e, run = costs.experiment, planned.run
    train, rest = costs.prior(run)
    share = train * costs.train_ratio / (train * costs.train_ratio + rest * costs.rest_ratio)
    return RunResult(
        run=run,
        attempt=attempt,
        status="ok",
        reason="invented",
        clock=f"job {run.name} {attempt}" if e.paid_each else "forecast",
        start_s=planned.start_s,
        end_s=planned.start_s + planned.wall_s,
        nodes=e.nodes,
        val_loss=val_loss,
        steps_done=run.num_iterations,
        train_time_ms=1000 * share * planned.wall_s,
        step_avg_ms=1000 * share * planned.wall_s / run.num_iterations,
    )
