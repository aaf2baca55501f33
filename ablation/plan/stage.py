"""What may a stage know, and what is a row of a plan's table?  Shared by all plans."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ablation.plan.costs import Costs
from ablation.plan.decision import INCONCLUSIVE, PROCEED, Decision, baseline_losses, loss_lines
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, Share
from ablation.study.profiles import Design
from ablation.study.study import Study

BASELINE = "baseline"  # the role of its runs, outside of stage 4
FINAL_STAGE = 4  # of every staged plan: its pairs confirm, and its seeds are used nowhere else


@dataclass(frozen=True, eq=False)
class State:
    """What a stage may know: the experiment, earlier stages' choice, and its own results."""

    experiment: Experiment
    stage: "Stage"
    choice: Arm | None  # the configuration as decided so far
    decisions: Mapping[int, Decision]  # of the stages before
    results: Mapping[tuple, RunResult]  # by RunConfig.key: those that stand for the stage's runs
    history: tuple[RunResult, ...]  # every attempt of this stage and of those before
    left_s: float  # of the budget, when the stage began
    costs: Costs  # as known when the stage began

    @property
    def chosen(self) -> Arm:
        """The choice, in a stage that takes one."""
        assert self.choice is not None, f"stage {self.stage.number} before anything was chosen"
        return self.choice

    @cached_property
    def runs_asked_for(self) -> list[RunConfig]:
        """All runs that the stage has asked for so far, in order; made out once."""
        return self.stage.runs_asked_for(self)

    @cached_property
    def stage_results(self) -> list[RunResult]:
        """The results of the stage, in the order in which it asked for them."""
        return self.results_of(self.runs_asked_for)

    @property
    def open_runs(self) -> list[RunConfig]:
        """Those of the runs asked for that have to be run (again)."""
        return [run for run in self.runs_asked_for if run.key not in self.results]

    def results_of(self, runs: Sequence[RunConfig]) -> list[RunResult]:
        """The results of these runs, as far as there are any."""
        return [self.results[run.key] for run in runs if run.key in self.results]

    @property
    def study(self) -> Study:
        return self.experiment.study

    @property
    def design(self) -> Design:
        return design_in_force(self.experiment, self.decisions)

    def run(self, arm: Arm, seed_number: int = 0, index: int = 0, role: str = "arm") -> RunConfig:
        """A run of this stage, at its length, on the stage's seed of this number."""
        stage, e = self.stage, self.experiment
        role = BASELINE if arm.is_baseline and role == "arm" else role
        seed = e.seed(stage.seeds_of or stage.number, seed_number)
        return RunConfig(stage.number, arm, index, seed, e.iterations(stage.fraction), role)

    def decided(self, verdict: str, title: str, **fields) -> Decision:
        """A decision of this stage, by its rule; `fields` are the other fields of a Decision."""
        rule = self.stage.rule_text(self.design)
        return Decision(self.stage.number, verdict, title, rule=rule, **fields)


class Named(str):
    """A number that is not known yet, by its name, however it would be formatted."""

    def __format__(self, spec: str) -> str:
        return str(self)


BY_NOISE = ("sigma0", "delta_eq", "delta_target", "drop")  # terms that follow from the noise


@dataclass(frozen=True)
class Stage:
    """One row of a plan's table."""

    number: int
    name: str
    question: str
    rule: str  # what decides, as a text; {} are filled in from the profile's Design
    arms: tuple[Arm, ...]
    fraction: float  # of a full run
    runs_asked_for: Callable[[State], list[RunConfig]]  # all so far, in order
    decide: Callable[[State], Decision]
    has_gate: bool  # its decision may end the plan; without one, its decision is the conclusion
    takes_choice: bool = False  # it runs what earlier stages, or a person, chose
    chooses: str = ""  # what its decision chooses, of which there has to be one then
    needs_baseline: bool = False  # without a usable one its other runs could be compared with none
    seeds_of: int = 0  # the earlier stage whose seeds it runs on, to be compared with; 0: its own
    why_empty: Callable[[Experiment], str] = lambda e: ""  # why it asks for no runs, where it does
    most_pairs: int = 0  # of baseline and best, budget permitting; 0: it has none
    sequential: bool = False  # its pairs come as looks at those before ask for more; else at once

    def rule_text(self, design: Design) -> str:
        """What decides, with the numbers of this design; with names for those to be measured."""
        unknown = {} if design.noise_known else {name: Named(name) for name in BY_NOISE}
        return self.rule.format(**vars(design) | unknown)


def no_comparison(
    state: State, results: Sequence[RunResult], has_baseline: object, has_arm: object,
    missing: tuple[str, ...], chosen: Arm | None = None,
) -> Decision:  # fmt: skip
    """INCONCLUSIVE: a side of a comparison of the results, or both, has no usable run; what is
    given is true for one that has. chosen: should a person go on all the same."""
    words = state.study.words
    found = {"the baseline": has_baseline, words.an_arm: has_arm}
    without = [side for side, has_one in found.items() if not has_one]
    return state.decided(
        INCONCLUSIVE,
        f"INCONCLUSIVE: no usable run of {' or '.join(without)}",
        because=(f"The rule cannot be applied; nothing is concluded about {words.idea}.",),
        facts=loss_lines(state.study.metric, results, baseline_losses(results)),
        numbers={},
        missing=missing,
        chosen=chosen,
    )


def capitalized(words: str) -> str:
    """The first letter as at the beginning of a sentence, the others as they are."""
    return words[:1].upper() + words[1:]


def nothing_decided(state: State, why: str, **numbers) -> Decision:
    """A stage without runs lets the plan pass, with what was chosen before. why: in words."""
    return state.decided(
        PROCEED,
        f"PROCEED to Stage {state.stage.number + 1}",
        because=(f"{capitalized(why)}.",),
        facts=(),
        numbers=numbers,
        chosen=state.choice,
    )


def design_in_force(e: Experiment, decisions: Mapping[int, Decision]) -> Design:
    """The statistical terms that are registered; those that depend on the noise, where it was not
    known beforehand, by the repeats of stage 1."""
    design = e.profile.design
    sd = decisions[1].numbers.get("sd") if 1 in decisions else None
    return design if design.noise_known or not sd else design.with_noise(sd)


def about(state: State) -> str:
    """What a verdict is of, as a line: one configuration, chosen from those that were run."""
    full = state.experiment.iterations(1.0)
    run = {
        r.run.arm.configuration
        for r in state.history
        if r.has_outcome and r.run.num_iterations == full
    }
    grid = {*state.study.configurations}
    outside = "" if state.chosen.configuration in grid else ", this one outside of these"
    tried = f"{len(run & grid)} of {len(grid)} were run{outside}"
    return f"The verdict is of the configuration chosen; {tried}."


def each_arm_once(state: State) -> list[RunConfig]:
    """A run of each arm of the stage."""
    return each_once(state, state.stage.arms)


def each_once(state: State, arms: Sequence[Arm], role: str = "") -> list[RunConfig]:
    """A run of each of these arms. They share the stage's first seed; a repeat of a configuration
    takes the next one. role: of all of them, where it is not that of arms and their repeats."""
    runs: list[RunConfig] = []
    seen: dict[tuple, int] = {}  # runs so far, by configuration
    for arm in arms:
        number = seen.get(arm.configuration, 0)
        seen[arm.configuration] = number + 1
        runs.append(state.run(arm, number, role=role or ("repeat" if number else "arm")))
    return runs


def final_arms(study: Study) -> tuple[Arm, Arm]:
    """The two sides of stage 4, the favourite arm in place of what earlier stages choose."""
    about = "the configuration that stage 3 finalized"
    best = replace(study.expected_best, name="final_best", description=about)
    return best, study.baseline("final_baseline")


def pair_of(state: State, k: int) -> tuple[RunConfig, RunConfig]:
    """The k-th pair of stage 4, on a seed of its own."""
    baseline = state.study.baseline("final_baseline")
    best = replace(state.chosen, name="final_best")
    return state.run(baseline, k, k, role="final"), state.run(best, k, k, role="final")


def left_on_entry_s(state: State) -> float:
    """What was left, in seconds, of the budget that was in force when stage 4 began. One that is
    given later buys no pairs: with them the verdict that the first ones gave would be tested again,
    at the same level."""
    e = state.experiment
    return state.left_s + 3600 * (e.overrides.budget_hours_at(0, e.budget_hours) - e.budget_hours)


def affordable(state: State, costs: Costs, left_s: float) -> int:
    """How many pairs fit into what is left; side by side on a machine, their runs go in rounds."""
    share, times = state.experiment.share, [costs(run) for run in pair_of(state, 0)]
    if share.parallel_runs == 1 or share.paid_each:
        return max(0, math.floor(left_s / sum(times)))
    rounds = max(0, math.floor(left_s / max(times)))
    if not state.stage.sequential:  # an odd slot takes half of the next pair
        return rounds * share.parallel_runs // 2
    return rounds * pairs_per_batch(share)


def pairs_per_batch(share: Share) -> int:
    """How many pairs fill the machine: they are launched together, with one look after them."""
    return max(1, share.parallel_runs // 2)


def seconds_of_pairs(share: Share, run_s: Sequence[float], n: int) -> float:
    """Machine time of n pairs that come as looks ask for them. run_s: of a pair's two runs."""
    if share.parallel_runs == 1 or share.paid_each:
        return n * sum(run_s)
    return math.ceil(n / pairs_per_batch(share)) * max(run_s)
