"""What may a stage know, and what is a row of a plan's table?  Shared by all plans."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ablation.plan.costs import Costs
from ablation.plan.decision import Decision
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, seed_of
from ablation.study.heads import GRID, baseline


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


def of_what(s: Situation, decision: Decision) -> Decision:
    """The decision, with what it is about: one configuration, chosen from those that were run."""
    full = s.experiment.iterations(1.0)
    trained = [r for r in s.history if r.has_outcome and r.run.num_iterations == full]
    run = {r.run.arm.configuration for r in trained}
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


def pair_of(s: Situation, k: int) -> tuple[RunConfig, RunConfig]:
    """The k-th pair of stage 4, on a seed of its own."""
    arms = (baseline("final_baseline"), replace(s.choice, name="final_best"))
    return tuple(s.run(arm, k, index=k) for arm in arms)


def left_on_entry_s(s: Situation) -> float:
    """Of the budget that was in force when stage 4 began. One that is given later buys no pairs:
    with them the verdict that the first ones gave would be tested again, at the same level."""
    e = s.experiment
    return s.left_s + 3600 * (e.budget_at(0) - e.budget_hours)


def affordable(s: Situation, costs: Costs, left_s: float) -> int:
    """How many pairs fit into what is left; side by side on a machine, their runs go in rounds."""
    e, times = s.experiment, [costs(run) for run in pair_of(s, 0)]
    if e.share.parallel_runs == 1 or e.share.paid_each:
        return max(0, math.floor(left_s / sum(times)))
    rounds = max(0, math.floor(left_s / max(times)))
    if s.stage.all_pairs_at_once:  # an odd slot takes half of the next pair
        return rounds * e.share.parallel_runs // 2
    return rounds * together(s)


def together(s: Situation) -> int:
    return max(1, s.experiment.share.parallel_runs // 2)


def names_wanted(s: Situation) -> list[str]:
    return list(dict.fromkeys(run.arm.name for run in s.stage.wanted(s)))
