"""The classic plan: fixed numbers of runs, a gate of 2 %, a Welch test at the end.

Thresholds, decisions, runs and the table of its stages. Improvement = mean val_loss(baseline) -
mean val_loss(arm), nats/token: positive is good.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ablation import stats
from ablation.plan.decision import (
    FINAL,
    PROCEED,
    STOP,
    Decision,
    Group,
    Rule,
    arm_lines,
    delta_text,
    finished_pairs,
    interval,
    loss_lines,
    loss_mean,
    losses_text,
    lowest,
    mean_text,
    missing_arms,
    on_shared_seed,
    p_text,
    percent,
    relative,
    sides,
)
from ablation.plan.looks import HARMFUL, IMPROVES, UNDECIDED
from ablation.plan.stage import (
    Stage,
    State,
    affordable,
    capitalized,
    each_arm_once,
    each_once,
    final_arms,
    left_on_entry_s,
    no_comparison,
    nothing_decided,
    pair_of,
)
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.study import SHORT, Metric, Study, text_of

CLASSIC_RULES = {  # chosen: the mission's own thresholds, which stay as they are
    "gate": Rule("best relative improvement", ">", 0.02, "%"),
    "choice": Rule("best improvement", ">", 0.0, "nats/token"),
    "significant": Rule("Welch p", "<", 0.05),
    "target_loss": Rule("improvement", ">=", 0.02, "nats/token"),
    "target_speedup": Rule("speedup", ">=", 0.10, "%"),
}

TARGETS = ("target_loss", "target_speedup")  # of which one has to hold


def rules_of(study: Study) -> dict[str, Rule]:
    """The rules in the units of a study, with its own target where it gives one; an improvement
    that is not known to matter is no target."""
    unit = study.metric.unit
    rules = {
        n: replace(r, unit=unit) if r.unit == "nats/token" else r for n, r in CLASSIC_RULES.items()
    }
    if study.noise and study.noise.noise_known:
        rules["target_loss"] = replace(rules["target_loss"], threshold=study.noise.delta_target)
    elif study.noise:
        del rules["target_loss"]
    return rules


RULE_TEXTS = {  # by stage: shown beside the decisions, registered, and in docs/plans.md
    1: "PROCEED if {gate}",
    2: "PROCEED with the best {words.choice} if {choice}, else document the null result",
    3: "finalize the {words.refinement} with the {metric.best} {metric.words} on the shared seed",
    4: "target met if {significant} and improvement > 0, with {targets}",
}


def missing(state: State) -> tuple[str, ...]:
    """Arms of the stage's row that have no outcome, whether they were asked for or not."""
    return missing_arms(state.stage_results, [arm.name for arm in state.stage.arms])


def decide_screening(state: State) -> Decision:
    """Stage 1: does any auxiliary arm clear the gate at once?"""
    results = state.stage_results
    baseline, arms = sides(results)
    best = lowest(arms)
    if not (baseline and baseline.usable and best):
        return no_comparison(state, results, baseline and baseline.usable, best, missing(state))
    words, metric = state.study.words, state.study.metric
    improvement = baseline.mean - best.mean
    share = relative(improvement, baseline.mean)
    rule = CLASSIC_RULES["gate"]
    if improvement > 0 if share is None else rule.holds(share):
        verdict, title = PROCEED, "PROCEED to Stage 2"
        found = metric.delta(improvement) if share is None else f"{share:.2%}"
        because: tuple[str, ...] = (
            f"{capitalized(words.short)} show promise ({found} improvement)",
        )
    else:
        verdict, title = STOP, "STOP after Stage 1"
        because = (
            f"Stopped by the rule: {rule} does not hold ({percent(share)}).",
            "This is no evidence of absence: one short run an arm cannot exclude a real effect;",
            "early losses hardly predict final ones. --ignore_gate goes on, and is recorded.",
        )
    return state.decided(
        verdict,
        title,
        because=because,
        facts=(
            f"Baseline {metric.noun}: {metric.text(baseline.mean)}",
            f"{words.best} {metric.noun}: {metric.text(best.mean)} ({best.names[0]})",
            f"Improvement: {percent(share)}",
        ),
        numbers=best_numbers(baseline, best),
        missing=missing(state),
    )


def best_numbers(baseline: Group, best: Group) -> dict:
    """The best arm against the baseline, for programs."""
    improvement = baseline.mean - best.mean
    return {
        "baseline_loss": baseline.mean,
        "best_loss": best.mean,
        "best_arm": best.names[0],
        "improvement": improvement,
        "relative_improvement": relative(improvement, baseline.mean),
    }


def decide_arms(state: State) -> Decision:
    """Stage 2: which arm goes on?"""
    results = state.stage_results
    baseline, arms = sides(on_shared_seed(results))
    best = lowest(arms)
    if not (baseline and baseline.usable and best):
        has_baseline, chosen = baseline and baseline.usable, best and best.arm
        return no_comparison(state, results, has_baseline, best, missing(state), chosen)
    improvement = baseline.mean - best.mean
    words, metric = state.study.words, state.study.metric
    numbers = best_numbers(baseline, best)
    facts = [
        f"Baseline {metric.noun}: {metric.text(baseline.mean)}",
        *arm_lines(metric, results),
        f"{words.best} {metric.noun}: {metric.text(best.mean)} ({best.names[0]})",
        f"Improvement: {percent(numbers['relative_improvement'])} ({metric.delta(improvement)})",
    ]
    if repeated := repeat_difference(results):
        name, difference = repeated
        facts.append(
            f"Run-to-run difference ({name}, two seeds): {metric.amount(f'{difference:.4f}')}"
        )
        numbers["repeat_difference"] = difference
    rule = rules_of(state.study)["choice"]
    if rule.holds(improvement):
        verdict, title = PROCEED, "PROCEED to Stage 3"
        value = state.study.settings(best.arm, state.study.arms)
        value = value.removeprefix(f"{words.choice} ")
        because: tuple[str, ...] = (
            f"Best {words.choice}: {value}. Single runs chose {words.it}: exploratory, biased"
            " upwards.",
        )
    else:
        verdict, title = STOP, "STOP after Stage 2: null result"
        because = (
            f"Stopped by the rule: {rule} does not hold ({improvement:+.4f}).",
            f"No {words.arm} beat the baseline here; with single runs this is no evidence of"
            " absence.",
        )
    return state.decided(
        verdict,
        title,
        because=because,
        facts=tuple(facts),
        numbers=numbers,
        chosen=best.arm,
        missing=missing(state),
    )


def repeat_difference(results: Sequence[RunResult]) -> tuple[str, float] | None:
    """(arm, difference of the losses) of the arm that ran on two seeds; None unless both ended."""
    for repeat in (r for r in results if r.run.role == "repeat" and r.status == "ok"):
        for first in (r for r in results if r.run.role == "arm" and r.status == "ok"):
            if first.run.arm.configuration == repeat.run.arm.configuration:
                return first.run.arm.name, abs(first.final_loss - repeat.final_loss)
    return None


def best_refinement(results: Sequence[RunResult]) -> Group | None:
    """The configuration with the lowest loss on the seed that all refinements share; what stage
    3 validates and finalizes."""
    return lowest(sides(on_shared_seed(results))[1])


def decide_refinements(state: State) -> Decision:
    """Stage 3: which refinement goes into the final validation?"""
    if why := nothing_to_refine(state.study):
        return nothing_decided(state, why)
    results = state.stage_results
    best = best_refinement([r for r in results if r.run.role == "refinement"])
    if not best:  # refinements are compared with each other, not with the baseline
        return no_comparison(state, results, True, best, missing(state))
    validations = [r for r in results if r.run.role == "validation"]
    losses = [r.final_loss for r in validations if r.status == "ok"]
    metric = state.study.metric
    facts = [
        *loss_lines(metric, [r for r in results if r not in validations]),
        f"Best: {metric.text(best.mean)} ({best.names[0]})",
    ]
    because = [f"{state.study.chosen(best.arm, state.study.refined_arms(best.arm))}."]
    numbers = {"best_loss": best.mean, "best_arm": best.names[0]}
    if losses:
        mean, sd = stats.mean_sd(losses)
        facts.append(f"Validation with new seeds: {loss_mean(metric, losses)}")
        numbers |= {"validation_mean": mean, "validation_sd": sd, "validation_n": len(losses)}
    if diverged := sum(r.status == "diverged" for r in validations):
        because.append(f"Beware: {diverged} of {len(validations)} validation runs diverged.")
        numbers["validation_diverged"] = diverged
    return state.decided(
        PROCEED,
        "PROCEED to Stage 4",
        because=tuple(because),
        facts=tuple(facts),
        numbers=numbers,
        chosen=best.arm,
        missing=missing(state),
    )


def decide_final(state: State) -> Decision:
    """Stage 4: does the finalized configuration beat the baseline on seeds used nowhere else?"""
    results = complete_pairs(state.stage_results)
    baseline, arms = sides(results)
    if not (baseline and baseline.losses and arms):
        return no_comparison(state, results, baseline and baseline.losses, arms, missing(state))
    (best,) = arms
    finished = finished_pairs(results)
    losses = [base for base, _ in finished], [arm for _, arm in finished]
    comparison = stats.compare(*losses) if finished else None
    numbers = final_numbers(results, baseline, best, comparison)
    title, because = final_verdict(numbers, state.study)
    facts = [
        *settings_lines(state.study, best.arm),
        *final_facts(state.study.metric, results, baseline, best, comparison, numbers),
    ]
    if baseline.diverged or best.diverged:
        because += (f"{baseline.diverged} baseline and {best.diverged} best runs diverged.",)
        facts.append(
            f"Diverged: baseline {baseline.diverged}, best {best.diverged}; the p-value is the"
            " exact worst-rank test's, the means are of the runs that finished, Delta of the"
            f" {len(finished)} pair(s) of which both did"
        )
    return state.decided(
        FINAL,
        title,
        because=because,
        facts=tuple(facts),
        numbers=numbers,
        chosen=best.arm,
        missing=missing(state),
    )


def final_numbers(
    results: Sequence[RunResult], baseline: Group, best: Group, comparison: stats.Comparison | None
) -> dict:
    """The results of stage 4 for programs. Differences are of the pairs of which both finished
    (`comparison`); where a run diverged, p is the exact worst-rank test's."""
    found = vars(comparison) if comparison else {}
    share = comparison and relative(comparison.improvement, comparison.mean_baseline)
    numbers = {
        "baseline_n": len(baseline.losses),
        "best_n": len(best.losses),
        "baseline_diverged": baseline.diverged,
        "best_diverged": best.diverged,
        "baseline_loss": baseline.mean,
        "best_loss": best.mean if best.losses else None,
        "improvement": found.get("improvement"),
        "relative_improvement": share,
        **{name: found.get(name) for name in ("ci_low", "ci_high", "p", "cohens_d")},
        "speedup": speedup(results),
    }
    if baseline.diverged or best.diverged:
        test = stats.worst_rank(baseline.losses, best.losses, baseline.diverged, best.diverged)
        numbers |= {"p": test.p, "favours_arm": test.favours_arm}
    return numbers


def classic_verdict(numbers: dict) -> str:
    """The conclusion in the words that both plans share, from the numbers of stage 4; {}: nothing
    could be compared. Without a test of equivalence no meaningful effect cannot be shown."""
    p = numbers.get("p")
    if p is None or not CLASSIC_RULES["significant"].holds(p):
        return UNDECIDED
    improvement = numbers["improvement"]
    # where a run diverged, ranks decide the direction too: the means leave the diverged runs out
    helps = numbers.get("favours_arm", improvement is not None and improvement > 0)
    return IMPROVES if helps else HARMFUL


def final_facts(
    metric: Metric, results: Sequence[RunResult], baseline: Group, best: Group,
    comparison: stats.Comparison | None, numbers: dict,
) -> list[str]:  # fmt: skip
    """The results of stage 4 as lines for a person."""
    times = {
        is_best: [
            r.trained_ms / 1000
            for r in results
            if r.status == "ok" and r.run.arm.is_baseline != is_best
        ]
        for is_best in (False, True)
    }
    delta = delta_text(metric, numbers["improvement"])
    if comparison:
        delta += f" ({percent(numbers['relative_improvement'])}){interval(comparison)}"
    return [
        f"Baseline: {losses_text(metric, baseline.losses)}",
        f"Best:     {losses_text(metric, best.losses)}",
        f"Training time: baseline {mean_text(times[False], 1, ' s')},"
        f" best {mean_text(times[True], 1, ' s')}",
        f"Delta: {delta}",
        f"p-value: {p_text(numbers['p']).removeprefix('p ').removeprefix('= ')}",
        f"Speedup: {speedup_text(metric, numbers['speedup'])}",
    ]


def complete_pairs(results: Sequence[RunResult]) -> list[RunResult]:
    """The results of the seeds on which baseline and best both have an outcome."""
    seeds: dict[bool, set[int]] = {is_best: set() for is_best in (False, True)}
    for r in results:
        if r.has_outcome:
            seeds[not r.run.arm.is_baseline].add(r.run.seed)
    return [r for r in results if r.has_outcome and r.run.seed in seeds[False] & seeds[True]]


def settings_lines(study: Study, arm: Arm) -> list[str]:
    """A line for each thing that has a name in which an arm differs from the baseline; else one."""
    names = dict(study.names)
    if any(flag not in names for flag, _ in arm.flags) or arm.env or arm.trainer:
        return [f"Configuration: {arm.label}"]
    return [f"{capitalized(names[flag])}: {text_of(value)}" for flag, value in arm.flags]


def final_verdict(numbers: dict, study: Study) -> tuple[str, tuple[str, ...]]:
    """The conclusion of stage 4 as (title, lines), from its numbers, in the words of the study."""
    rules, improvement = rules_of(study), numbers["improvement"]
    metric, short, verdict = study.metric, study.words.short, classic_verdict(numbers)
    n = min(numbers["baseline_n"], numbers["best_n"])
    if numbers["p"] is None:
        return (
            f"INCONCLUSIVE: no test is possible (smaller group: n = {n})",
            ("Two runs an arm, not all equal, are the least a Welch test needs.",),
        )
    if verdict == UNDECIDED:
        because = f"{p_text(numbers['p'])}"
        if numbers["ci_low"] is not None:  # one run that finished has no interval
            reach = f"{numbers['ci_low']:+.4f} to {metric.delta(numbers['ci_high'])}"
            because += f"; improvements outside this are excluded: 95 % interval {reach}"
        return "INCONCLUSIVE: no significant difference", (f"{because}.",)
    if verdict == HARMFUL:
        size = "" if improvement is None else f"{delta_text(metric, improvement)}, "
        return f"HARMFUL: {short} make the final {metric.noun} worse", (
            f"{size}{p_text(numbers['p'])}.",
        )
    met = [
        str(rules[name])
        for name, value in (("target_loss", improvement), ("target_speedup", numbers["speedup"]))
        if value is not None and name in rules and rules[name].holds(value)
    ]
    if met:
        return f"{short.upper()} HELP: target met", (f"{p_text(numbers['p'])}; {', '.join(met)}.",)
    targets = [str(rules[name]) for name in TARGETS if name in rules]
    unmet = f"neither {' nor '.join(targets)}" if len(targets) > 1 else f"not {targets[0]}"
    return f"{short.upper()} HELP: significant, below the target", (
        f"{p_text(numbers['p'])}, but {unmet}.",
    )


def speedup(results: Sequence[RunResult]) -> float | None:
    """1 - (time of the best arm to the baseline's mean final loss) / (baseline's training time).

    Training time as the trainer counts it. None unless every run of the best arm gets there:
    leaving out those that do not would flatter the arm.
    """
    baseline = [r for r in results if r.run.arm.is_baseline and r.status == "ok"]
    seeds = {r.run.seed for r in baseline}
    best = [r for r in results if not r.run.arm.is_baseline and r.run.seed in seeds]
    if not baseline or not best:
        return None
    target = sum(r.final_loss for r in baseline) / len(baseline)
    reached = [stats.time_to_target([(t, v) for _, v, t in r.curve], target) for r in best]
    times = [time_ms for time_ms in reached if time_ms is not None]
    if len(times) < len(best):
        return None
    full = sum(r.trained_ms for r in baseline) / len(baseline)
    return 1 - sum(times) / len(times) / full


def speedup_text(metric: Metric, value: float | None) -> str:
    """A speedup in words; None where a run did not get there."""
    if value is None:
        return f"not every run reached the baseline's {metric.noun}"
    return f"{value:+.1%}"


# ---------------------------------------------------------------------------------------------
# Which runs a stage asks for, and the table of stages

N_PAIRS = 8  # in stage 4 of the classic plan, budget permitting; chosen, the mission's own
N_VALIDATIONS = 4  # runs of the best so far, in stage 3


def nothing_to_refine(study: Study) -> str:
    """Why stage 3 is empty; empty where it is not."""
    return "" if study.refinements else "no runs: the study has no refinements"


def refinements_then_validations(state: State) -> list[RunConfig]:
    """Every refinement of the arm chosen; then the best of them, with new seeds."""
    if nothing_to_refine(state.study):
        return []
    refined = state.study.refined_arms(state.chosen)
    first = each_once(state, refined, "refinement")
    done = state.results_of(first)
    if len(done) < len(first) or (best := best_refinement(done)) is None:
        return first
    arms = validation_arms(best.arm)
    return first + [state.run(arm, 2 + k, role="validation") for k, arm in enumerate(arms)]


def validation_arms(best: Arm) -> list[Arm]:
    about = "the best so far, new seed"
    return [replace(best, name=f"validation_{k}", description=about) for k in range(N_VALIDATIONS)]


def pairs(state: State) -> list[RunConfig]:
    """As many baseline/best pairs as the budget allows, interleaved so that drift hits both."""
    fit = affordable(state, state.costs, left_on_entry_s(state))
    n = min(state.experiment.validation_runs or state.stage.most_pairs, fit)
    return [run for k in range(n) for run in pair_of(state, k)]


def rules_in_words(study: Study) -> dict[int, str]:
    """What decides in each stage, in the units and with the targets of a study."""
    known = rules_of(study)
    targets = " or ".join(str(known[name]) for name in TARGETS if name in known)
    terms = {**known, "words": study.words, "metric": study.metric, "targets": targets}
    return {n: text.format(**terms) for n, text in RULE_TEXTS.items()}


def choosing_rows(study: Study, rules: dict[int, str]) -> tuple[Stage, Stage]:
    """Stages 1 and 2, in which an arm is chosen."""
    words = study.words
    return (
        Stage(
            number=1,
            name="screening",
            question=f"does any {words.arm} help at once?",
            rule=rules[1],
            arms=study.screened,
            fraction=SHORT,
            runs_asked_for=each_arm_once,
            decide=decide_screening,
            has_gate=True,
            needs_baseline=True,
        ),
        Stage(
            number=2,
            name=words.compared,
            question=words.which,
            rule=rules[2],
            arms=(study.baseline(), *study.arms, study.repeat),
            fraction=1.0,
            runs_asked_for=each_arm_once,
            decide=decide_arms,
            has_gate=True,
            chooses=words.choice,
            needs_baseline=True,
        ),
    )


def refining_row(study: Study, rule: str) -> Stage:
    words, best = study.words, study.expected_best
    refined = study.refined_arms(best)
    return Stage(
        number=3,
        name=words.refined,
        question=words.which_refinement,
        rule=rule,
        arms=(*refined, *validation_arms(best)) if refined else (),
        fraction=1.0,
        runs_asked_for=refinements_then_validations,
        decide=decide_refinements,
        has_gate=True,
        takes_choice=True,
        chooses=words.refinement,
        why_empty=lambda e: nothing_to_refine(study),
    )


def final_row(study: Study, rule: str) -> Stage:
    return Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=rule,
        arms=final_arms(study),
        fraction=1.0,
        runs_asked_for=pairs,
        decide=decide_final,
        has_gate=False,
        takes_choice=True,
        most_pairs=N_PAIRS,
    )


@lru_cache
def classic(study: Study) -> tuple[Stage, ...]:
    """The rows of the plan for a study."""
    rules = rules_in_words(study)
    chosen = choosing_rows(study, rules)
    return (*chosen, refining_row(study, rules[3]), final_row(study, rules[4]))
