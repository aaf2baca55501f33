"""Is the next stage worth its cost?  The decision rules of the staged ablation.

Pure functions from the results of a stage to a `Decision`, the table of thresholds that they
apply, and the text that a person reads on screen. Everywhere, improvement =
mean val_loss(baseline) - mean val_loss(arm) in nats/token: positive is good.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import aux_stats
from records import STATUSES, Arm, RunResult, arm_from

# ---------------------------------------------------------------------------------------------
# The thresholds of the classic plan


@dataclass(frozen=True)
class Rule:
    """One inequality: it holds when the quantity lies strictly (or not) beyond the threshold."""

    quantity: str
    sign: str  # ">", ">=" or "<"
    threshold: float
    unit: str = ""

    def holds(self, value: float) -> bool:
        return {
            ">": value > self.threshold,
            ">=": value >= self.threshold,
            "<": value < self.threshold,
        }[self.sign]

    def __str__(self) -> str:
        scale = 100 if self.unit == "%" else 1
        return f"{self.quantity} {self.sign} {self.threshold * scale:g} {self.unit}".rstrip()


CLASSIC_RULES = {
    "gate": Rule("best relative improvement", ">", 0.02, "%"),
    "layers": Rule("best improvement", ">", 0.0, "nats/token"),
    "significant": Rule("Welch p", "<", 0.05),
    "target_loss": Rule("improvement", ">=", 0.02, "nats/token"),
    "target_speedup": Rule("speedup", ">=", 0.10, "%"),
}

STAGE_RULES = {
    1: "PROCEED if {gate}",
    2: "PROCEED with the best layers if {layers}, else document the null result",
    3: "finalize the weight and schedule with the lowest val loss on the shared seed",
    4: "target met if {significant} and improvement > 0, with {target_loss} or {target_speedup}",
}


def rule_text(stage: int) -> str:
    return STAGE_RULES[stage].format(**CLASSIC_RULES)


# ---------------------------------------------------------------------------------------------
# Decisions

PROCEED, STOP, INCONCLUSIVE, FINAL = "PROCEED", "STOP", "INCONCLUSIVE", "FINAL"


@dataclass(frozen=True)
class Decision:
    """What a stage's results say about the next step."""

    stage: int
    verdict: str  # PROCEED, STOP, INCONCLUSIVE, or FINAL after the last stage
    title: str  # one line: what is decided
    because: tuple[str, ...]  # the lines under it
    facts: tuple[str, ...]  # the stage's results, as lines
    rule: str
    numbers: dict  # the same results for programs, at full precision
    chosen: Arm | None = None  # the configuration that the following stages use
    missing: tuple[str, ...] = ()  # arms of which there is no result


@dataclass(frozen=True)
class Group:
    """All runs of one configuration within a stage."""

    names: tuple[str, ...]
    arm: Arm
    losses: tuple[float, ...]
    diverged: int

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def usable(self) -> bool:
        """A configuration that diverged is worse than any loss, not a smaller sample."""
        return bool(self.losses) and not self.diverged


def groups_of(results: Sequence[RunResult]) -> dict[tuple, Group]:
    """Results by configuration: aux_6 and aux_6_repeat are one, under the first one's name."""
    members: dict[tuple, list[RunResult]] = {}
    for result in results:
        members.setdefault(result.run.arm.configuration, []).append(result)
    return {
        configuration: Group(
            names=tuple(dict.fromkeys(r.run.arm.name for r in runs)),
            arm=runs[0].run.arm,
            losses=tuple(r.val_loss for r in runs if r.status == "ok"),
            diverged=sum(r.status == "diverged" for r in runs),
        )
        for configuration, runs in members.items()
    }


def missing_arms(results: Sequence[RunResult], expected: Sequence[str]) -> tuple[str, ...]:
    settled = {r.run.arm.name for r in results if r.settled}
    return tuple(name for name in expected if name not in settled)


def on_shared_seed(results: Sequence[RunResult]) -> list[RunResult]:
    """The results on the stage's first seed, which all its arms share.

    A repeat on another seed shows how much runs differ; in a mean it would make its arm look
    better or worse by the seed alone, where seeds matter more than arms.
    """
    first = min((r.run.seed for r in results), default=None)
    return [r for r in results if r.run.seed == first or r.status == "diverged"]


def baseline_losses(results: Sequence[RunResult]) -> dict[int, float]:
    """Final val loss of the baseline, by seed, of the runs that finished."""
    return {r.run.seed: r.val_loss for r in results if r.status == "ok" and not r.run.arm.layers}


def counted(results: Sequence[RunResult]) -> str:
    """How many there are of each status, in words. Those that are ok have finished."""
    count = Counter(r.status for r in results)
    return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])


def best_against_baseline(results: Sequence[RunResult]) -> tuple[Group | None, Group | None]:
    """The baseline, and the auxiliary configuration with the lowest mean loss; None if unusable."""
    groups = groups_of(results)
    baseline = groups.pop((), None)
    usable = [group for group in groups.values() if group.usable]
    best = min(usable, key=lambda group: group.mean, default=None)
    return (baseline if baseline and baseline.usable else None), best


def loss_lines(
    results: Sequence[RunResult], baselines: Mapping[int, float] | None = None
) -> tuple[str, ...]:
    """A line for each run; with its improvement over the baseline's run of the same seed, where
    there is one. baselines: final val loss by seed.

    Two runs of one seed start from the same weights and see the same batches. Across seeds, a
    difference would be that of the seeds as much as that of the arms.
    """
    lines = []
    for r in results:
        if r.status != "ok":
            lines.append(f"{r.run.name}: {r.status} ({r.reason})")
            continue
        base = (baselines or {}).get(r.run.seed) if r.run.arm.layers else None
        improvement = "" if base is None else f" ({base - r.val_loss:+.4f})"
        lines.append(f"{r.run.name}: {r.val_loss:.4f}{improvement}")
    return tuple(lines)


BASELINE_SIDE, ARM_SIDE = "the baseline", "an auxiliary arm"  # of a comparison


def lacking(baseline: object, best: object) -> list[str]:
    """The sides of a comparison that have no usable run, in words."""
    sides = {BASELINE_SIDE: baseline, ARM_SIDE: best}
    return [side for side, found in sides.items() if found is None]


def no_comparison(
    stage: int,
    rule: str,
    results: Sequence[RunResult],
    without: Sequence[str],
    missing: tuple[str, ...],
) -> Decision:
    """INCONCLUSIVE: these sides of the comparison have no usable run."""
    what = f"no usable run of {' or '.join(without)}"
    return Decision(
        stage=stage,
        verdict=INCONCLUSIVE,
        title=f"INCONCLUSIVE: {what}",
        because=("The rule cannot be applied; nothing is concluded about auxiliary heads.",),
        facts=loss_lines(results, baseline_losses(results)),
        rule=rule,
        numbers={},
        missing=missing,
    )


def decide_screening(results: Sequence[RunResult], expected: Sequence[str]) -> Decision:
    """Stage 1: does any auxiliary arm clear the gate at once?"""
    missing = missing_arms(results, expected)
    baseline, best = best_against_baseline(results)
    if baseline is None or best is None:
        return no_comparison(1, rule_text(1), results, lacking(baseline, best), missing)
    improvement = baseline.mean - best.mean
    relative = improvement / baseline.mean
    percent = f"{relative:+.2%}"
    rule = CLASSIC_RULES["gate"]
    if rule.holds(relative):
        verdict, title = PROCEED, "PROCEED to Stage 2"
        because = (f"Aux heads show promise ({relative:.2%} improvement)",)
    else:
        verdict, title = STOP, "STOP after Stage 1"
        because = (
            f"Stopped by the rule: {rule} does not hold ({percent}).",
            "This is no evidence of absence: one short run an arm cannot exclude a real effect;",
            "early losses hardly predict final ones. --ignore_gate goes on, and is recorded.",
        )
    return Decision(
        stage=1,
        verdict=verdict,
        title=title,
        because=because,
        facts=(
            f"Baseline loss: {baseline.mean:.4f}",
            f"Best aux loss: {best.mean:.4f} ({best.names[0]})",
            f"Improvement: {percent}",
        ),
        rule=rule_text(1),
        numbers={
            "baseline_loss": baseline.mean,
            "best_loss": best.mean,
            "best_arm": best.names[0],
            "improvement": improvement,
            "relative_improvement": relative,
        },
        missing=missing,
    )


def decide_layers(results: Sequence[RunResult], expected: Sequence[str]) -> Decision:
    """Stage 2: which tap layers go on?"""
    missing = missing_arms(results, expected)
    baseline, best = best_against_baseline(on_shared_seed(results))
    if baseline is None or best is None:
        undecided = no_comparison(2, rule_text(2), results, lacking(baseline, best), missing)
        return replace(undecided, chosen=best and best.arm)  # should a person go on all the same
    improvement = baseline.mean - best.mean
    losses = {r.run.arm.name: r.val_loss for r in results if r.status == "ok"}
    facts = [
        f"Baseline loss: {baseline.mean:.4f}",
        *loss_lines([r for r in results if r.run.arm.layers], baseline_losses(results)),
        f"Best aux loss: {best.mean:.4f} ({best.names[0]})",
        f"Improvement: {improvement / baseline.mean:+.2%} ({improvement:+.4f} nats/token)",
    ]
    numbers = {
        "baseline_loss": baseline.mean,
        "best_loss": best.mean,
        "best_arm": best.names[0],
        "improvement": improvement,
        "relative_improvement": improvement / baseline.mean,
    }
    if {"aux_6", "aux_6_repeat"} <= losses.keys():
        repeat = abs(losses["aux_6"] - losses["aux_6_repeat"])
        facts.append(f"Run-to-run difference (aux_6, two seeds): {repeat:.4f} nats/token")
        numbers["repeat_difference"] = repeat
    taps = ",".join(map(str, best.arm.layers))
    if CLASSIC_RULES["layers"].holds(improvement):
        verdict, title = PROCEED, "PROCEED to Stage 3"
        because = (f"Best layers: {taps}. Single runs chose them: exploratory, biased upwards.",)
    else:
        verdict, title = STOP, "STOP after Stage 2: null result"
        because = (
            f"Stopped by the rule: {CLASSIC_RULES['layers']} does not hold ({improvement:+.4f}).",
            "No placement beat the baseline here; with single runs this is no evidence of absence.",
        )
    return Decision(
        stage=2,
        verdict=verdict,
        title=title,
        because=because,
        facts=tuple(facts),
        rule=rule_text(2),
        numbers=numbers,
        chosen=best.arm,
        missing=missing,
    )


def best_dive(results: Sequence[RunResult]) -> Group | None:
    """The configuration with the lowest loss on the seed that all dives share; what stage 3
    validates and finalizes."""
    return best_against_baseline(on_shared_seed(results))[1]


def decide_hyperparameters(results: Sequence[RunResult], expected: Sequence[str]) -> Decision:
    """Stage 3: which loss weight and schedule go into the final validation?"""
    missing = missing_arms(results, expected)
    best = best_dive([r for r in results if r.run.arm.name.startswith("dive_")])
    if best is None:
        return no_comparison(3, rule_text(3), results, [ARM_SIDE], missing)
    validations = [r for r in results if r.run.arm.name.startswith("validation_")]
    losses = [r.val_loss for r in validations if r.status == "ok"]
    facts = [
        *loss_lines([r for r in results if r not in validations]),
        f"Best: {best.mean:.4f} ({best.names[0]})",
    ]
    because = [f"Weight {best.arm.weight:g}, schedule {best.arm.schedule}."]
    numbers = {"best_loss": best.mean, "best_arm": best.names[0]}
    if losses:
        mean, sd = aux_stats.mean_sd(losses)
        facts.append(f"Validation with new seeds: {mean_text(losses, 4)}")
        numbers |= {"validation_mean": mean, "validation_sd": sd, "validation_n": len(losses)}
    if diverged := sum(r.status == "diverged" for r in validations):
        because.append(f"Beware: {diverged} of {len(validations)} validation runs diverged.")
        numbers["validation_diverged"] = diverged
    return Decision(
        stage=3,
        verdict=PROCEED,
        title="PROCEED to Stage 4",
        because=tuple(because),
        facts=tuple(facts),
        rule=rule_text(3),
        numbers=numbers,
        chosen=best.arm,
        missing=missing,
    )


def decide_final(results: Sequence[RunResult], expected: Sequence[str]) -> Decision:
    """Stage 4: does the finalized configuration beat the baseline on seeds used nowhere else?"""
    missing = missing_arms(results, expected)
    results = complete_pairs(results)
    groups = groups_of(results)
    baseline = groups.pop((), None)
    best = next(iter(groups.values()), None)
    if not (baseline and baseline.losses and best):
        usable = baseline if baseline and baseline.losses else None
        return no_comparison(4, rule_text(4), results, lacking(usable, best), missing)
    finished = finished_pairs(results)
    c = aux_stats.compare(*zip(*finished, strict=True)) if finished else None
    times = {
        bool(layers): [
            r.train_time_ms / 1000
            for r in results
            if r.status == "ok" and bool(r.run.arm.layers) == layers
        ]
        for layers in (False, True)
    }
    numbers = {
        "baseline_n": len(baseline.losses),
        "best_n": len(best.losses),
        "baseline_diverged": baseline.diverged,
        "best_diverged": best.diverged,
        "baseline_loss": baseline.mean,
        "best_loss": best.mean if best.losses else None,
        "improvement": c and c.improvement,
        "relative_improvement": c and c.improvement / c.mean_baseline,
        "ci_low": c and c.ci_low,
        "ci_high": c and c.ci_high,
        "p": c and c.p,
        "cohens_d": c and c.cohens_d,
        "speedup": speedup(results),
    }
    if baseline.diverged or best.diverged:
        test = aux_stats.worst_rank(
            baseline.losses, best.losses, baseline.diverged, best.diverged
        )
        numbers |= {"p": test.p, "favours_arm": test.favours_arm}
    delta = delta_text(numbers["improvement"])
    if c:
        delta += f" ({numbers['relative_improvement']:+.2%}){interval(c)}"
    facts = [
        f"Layers: {','.join(map(str, best.arm.layers))}",
        f"Weight: {best.arm.weight:g}",
        f"Schedule: {best.arm.schedule}",
        f"Baseline: {losses_text(baseline.losses)}",
        f"Best:     {losses_text(best.losses)}",
        f"Training time: baseline {mean_text(times[False], 1, ' s')},"
        f" best {mean_text(times[True], 1, ' s')}",
        f"Delta: {delta}",
        f"p-value: {p_text(numbers['p']).removeprefix('p ').removeprefix('= ')}",
        f"Speedup: {speedup_text(numbers['speedup'])}",
    ]
    if baseline.diverged or best.diverged:
        facts.append(
            f"Diverged: baseline {baseline.diverged}, best {best.diverged}; the p-value is the"
            " exact worst-rank test's, the means are of the runs that finished, Delta of the"
            f" {len(finished)} pair(s) of which both did"
        )
    title, because = final_verdict(numbers)
    if baseline.diverged or best.diverged:
        because += (f"{baseline.diverged} baseline and {best.diverged} best runs diverged.",)
    return Decision(
        stage=4,
        verdict=FINAL,
        title=title,
        because=because,
        facts=tuple(facts),
        rule=rule_text(4),
        numbers=numbers,
        chosen=best.arm,
        missing=missing,
    )


def complete_pairs(results: Sequence[RunResult]) -> list[RunResult]:
    """The results of the seeds on which baseline and best both have an outcome."""
    seeds = {is_best: set() for is_best in (False, True)}
    for r in results:
        if r.settled:
            seeds[bool(r.run.arm.layers)].add(r.run.seed)
    return [r for r in results if r.settled and r.run.seed in seeds[False] & seeds[True]]


def finished_pairs(results: Sequence[RunResult]) -> list[tuple[float, float]]:
    """Final val losses (baseline, best) of each seed on which both finished, by seed: what a
    difference of means is of, also where other runs diverged."""
    baselines = baseline_losses(results)
    best = {r.run.seed: r.val_loss for r in results if r.status == "ok" and r.run.arm.layers}
    return [(baselines[seed], best[seed]) for seed in sorted(baselines.keys() & best.keys())]


def final_verdict(numbers: dict) -> tuple[str, tuple[str, ...]]:
    """The conclusion of stage 4 as (title, lines), from its numbers alone."""
    rules, improvement = CLASSIC_RULES, numbers["improvement"]
    n = min(numbers["baseline_n"], numbers["best_n"])
    if numbers["p"] is None:
        return (
            f"INCONCLUSIVE: no test is possible (smaller group: n = {n})",
            ("Two runs an arm, not all equal, are the least a Welch test needs.",),
        )
    if not rules["significant"].holds(numbers["p"]):
        because = f"{p_text(numbers['p'])}"
        if numbers["ci_low"] is not None:  # one run that finished has no interval
            reach = f"{numbers['ci_low']:+.4f} to {numbers['ci_high']:+.4f} nats/token"
            because += f"; improvements outside this are excluded: 95 % interval {reach}"
        return "INCONCLUSIVE: no significant difference", (f"{because}.",)
    # where a run diverged, ranks decide the direction too: the means leave the diverged runs out
    if not numbers.get("favours_arm", improvement is not None and improvement > 0):
        size = "" if improvement is None else f"{delta_text(improvement)}, "
        return "HARMFUL: aux heads make the final loss worse", (f"{size}{p_text(numbers['p'])}.",)
    met = [
        str(rules[name])
        for name, value in (("target_loss", improvement), ("target_speedup", numbers["speedup"]))
        if value is not None and rules[name].holds(value)
    ]
    if met:
        return "AUX HEADS HELP: target met", (f"{p_text(numbers['p'])}; {', '.join(met)}.",)
    return "AUX HEADS HELP: significant, below the target", (
        f"{p_text(numbers['p'])}, but neither {rules['target_loss']}"
        f" nor {rules['target_speedup']}.",
    )


def speedup(results: Sequence[RunResult]) -> float | None:
    """1 - (time of the best arm to the baseline's mean final loss) / (baseline's training time).

    Training time as the trainer counts it. None unless every run of the best arm gets there:
    leaving out those that do not would flatter the arm.
    """
    baseline = [r for r in results if not r.run.arm.layers and r.status == "ok"]
    seeds = {r.run.seed for r in baseline}
    best = [r for r in results if r.run.arm.layers and r.run.seed in seeds]
    if not baseline or not best:
        return None
    target = sum(r.val_loss for r in baseline) / len(baseline)
    times = [aux_stats.time_to_target([(t, v) for _, v, t in r.curve], target) for r in best]
    if None in times:
        return None
    full = sum(r.train_time_ms for r in baseline) / len(baseline)
    return 1 - sum(times) / len(times) / full


def losses_text(losses: Sequence[float]) -> str:
    return f"val loss {mean_text(losses, 4)}" if losses else "every run diverged"


def mean_text(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The mean ± the standard deviation between runs, and n, to so many digits."""
    if not values:
        return "unknown"
    mean, sd = aux_stats.mean_sd(values)
    spread = f" ± {sd:.{digits}f} sd" if sd is not None else ""
    return f"{mean:.{digits}f}{spread}{unit} (n = {len(values)})"


def delta_text(improvement: float | None) -> str:
    return "unknown" if improvement is None else f"{improvement:+.4f} nats/token"


def interval(comparison) -> str:
    if comparison.ci_low is None:
        return ""
    return f", 95 % interval {comparison.ci_low:+.4f} to {comparison.ci_high:+.4f}"


def p_text(p: float | None) -> str:
    return "p undefined" if p is None else "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def speedup_text(value: float | None) -> str:
    return "not every run reached the baseline's loss" if value is None else f"{value:+.1%}"


def summarize(results: Sequence[RunResult], expected: Sequence[str]) -> Decision:
    """Runs asked for by hand: what they gave, and no rule. Runs of one length are compared."""
    facts = []
    for length in dict.fromkeys(r.run.num_iterations for r in results):
        mine = [r for r in results if r.run.num_iterations == length]
        facts += [summary_line(group, mine) for group in groups_of(mine).values()]
    return Decision(
        stage=0,
        verdict=FINAL,
        title="runs asked for by hand are done",
        because=("No rule applies.",),
        facts=tuple(facts),
        rule="none",
        numbers={},
        missing=missing_arms(results, expected),
    )


def summary_line(group: Group, results: Sequence[RunResult]) -> str:
    """An arm's losses, and their difference to the baseline on the seeds that both have."""
    name = ", ".join(group.names)
    lost = f"; {group.diverged} diverged" if group.diverged else ""
    if not group.losses:
        return f"{name}: no finished run{lost}"
    line = f"{name}: val loss {mean_text(group.losses, 4)}{lost}"
    baselines = baseline_losses(results)
    mine = [r for r in results if r.run.arm.configuration == group.arm.configuration]
    mine = [r for r in mine if r.status == "ok" and r.run.seed in baselines]
    if not mine or not group.arm.layers:
        return line
    c = aux_stats.compare([baselines[r.run.seed] for r in mine], [r.val_loss for r in mine])
    shared = f" on {len(mine)} shared seed(s)" * (len(mine) < len(group.losses))
    return f"{line}, improvement {c.improvement:+.4f}{interval(c)}{shared}"


# ---------------------------------------------------------------------------------------------
# What a person reads

SIGNS = {PROCEED: "✅", STOP: "🛑", INCONCLUSIVE: "❔", FINAL: "🏁"}


def render(decision: Decision, overridden: bool = False) -> str:
    """The block on screen after a stage."""
    heading = f"STAGE {decision.stage} RESULTS" if decision.stage else "RESULTS"
    lines = [f"📊 {heading}:", *(f"  {fact}" for fact in decision.facts)]
    if decision.missing:
        lines.append(f"  Missing: {', '.join(decision.missing)} (no result; see the failed runs)")
    lines += ["", f"{SIGNS[decision.verdict]} DECISION: {decision.title}"]
    lines += [f"  {line}" for line in decision.because]
    if overridden:
        lines.append("  OVERRIDE: --ignore_gate was given; the plan goes on all the same.")
    return "\n".join(lines)


def decision_from(value: dict) -> Decision:
    """The inverse of `asdict`, for decisions read from staged_ablation_results.json."""
    listed = {name: tuple(value[name]) for name in ("because", "facts", "missing")}
    chosen = arm_from(value["chosen"]) if value["chosen"] else None
    return Decision(**{**value, **listed, "chosen": chosen})
