"""The adaptive plan: hours are spent only where they change the verdict.

Selection is cheap and exploratory (stages 1 to 3 only allocate), confirmation is on fresh seeds
with error control (`looks`). Improvement = mean val_loss(baseline) - mean val_loss(arm),
nats/token: positive is good.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ablation import stats
from ablation.plan.costs import Costs
from ablation.plan.decision import (
    ARM_SIDE,
    FINAL,
    PROCEED,
    STOP,
    Decision,
    Group,
    baseline_losses,
    delta_text,
    finished_pairs,
    groups_of,
    lacking,
    loss_lines,
    losses_text,
    mean_text,
    missing_arms,
    no_comparison,
    on_shared_seed,
    p_text,
)
from ablation.plan.looks import (
    NO_EFFECT,
    UNDECIDED,
    Look,
    Pair,
    level_among_finished,
    looks_at,
    settled,
)
from ablation.plan.stage import (
    Situation,
    Stage,
    affordable,
    each_arm_once,
    left_on_entry_s,
    names_wanted,
    of_what,
    pair_of,
    together,
)
from ablation.runs.run import Arm, RunConfig, RunResult, duration, machine_seconds
from ablation.study.heads import (
    DEFAULT_CELL,
    FEW_CELLS,
    FINAL_ARMS,
    LAYERS,
    MANY_CELLS,
    SCREENING,
    SHORT,
    aux,
    cell_name,
)
from ablation.study.profiles import Design

RULES = {  # shown beside the decisions, registered, and in docs/plans.md
    1: "drop an arm if it diverges or improvement < -{drop:g} nats/token; STOP if all are dropped",
    2: "the lower mean of the two best, each with two seeds; z2 allocates stage 3, no more",
    3: "z2 < 4 or none: best observed of three cells; z2 >= 4: best predicted of the seven run",
    4: (
        "improves if the sequential interval lies above 0, harmful if below; no meaningful effect"
        " if the equivalence interval lies inside ±{delta_eq:g}; target met if its lower end >="
        " {delta_target:g} nats/token"
    ),
}
Z2_RICH = 4.0  # from here on the effect is plain enough to spend six runs on weight and schedule


def rule_text(stage: int, design: Design) -> str:
    return RULES[stage].format(**vars(design))


# ---------------------------------------------------------------------------------------------
# Stages 1 to 3: allocation


def dropped_by_screening(results: Sequence[RunResult], design: Design) -> set[tuple[int, ...]]:
    """Tap layers that diverged or were clearly worse than the baseline on the seed that all share;
    early gain is never required."""
    groups = groups_of(on_shared_seed(results))
    baseline = groups.pop((), None)
    return {
        group.arm.layers
        for group in groups.values()
        if group.diverged
        or (
            baseline is not None
            and baseline.usable
            and group.usable
            and baseline.mean - group.mean < -design.drop
        )
    }


def usable_baseline(results: Sequence[RunResult]) -> Group | None:
    """The baseline's runs; None where there is nothing to compare with: none finished, or one
    diverged."""
    group = groups_of(results).get(())
    return group if group and group.usable else None


def decide_screening(results: Sequence[RunResult], expected, design: Design) -> Decision:
    missing = missing_arms(results, expected)
    usable = usable_baseline(results)
    tried_any = any(r.run.arm.layers and r.has_outcome for r in results)
    if usable is None or not tried_any:
        without = lacking(usable, tried_any or None)
        return no_comparison(1, rule_text(1, design), results, without, missing)
    dropped = dropped_by_screening(results, design)
    groups = groups_of(results)
    del groups[()]
    tried = {group.arm.layers for group in groups.values()}
    names = [g.names[0] for g in groups.values() if g.arm.layers in dropped]
    stop = tried == dropped
    return Decision(
        stage=1,
        verdict=STOP if stop else PROCEED,
        title="STOP: every arm was dropped" if stop else "PROCEED to Stage 2",
        because=(
            f"Dropped: {', '.join(names) or 'none'}.",
            "Early losses hardly predict final ones: only divergence and plain harm drop an arm.",
        ),
        facts=(
            f"Baseline loss: {mean_text(usable.losses, 4)}",
            *loss_lines([r for r in results if r.run.arm.layers], baseline_losses(results)),
        ),
        rule=rule_text(1, design),
        numbers={"dropped": [list(layers) for layers in sorted(dropped)]},
        missing=missing,
    )


def two_best(results: Sequence[RunResult]) -> list[Arm]:
    """The arms to run again, by the first run of each placement; fewer if there are fewer."""
    first = [r for r in results if r.status == "ok" and r.run.index == 0 and r.run.arm.layers]
    return [r.run.arm for r in sorted(first, key=lambda r: r.val_loss)[:2]]


def decide_layers(results: Sequence[RunResult], expected, design: Design) -> Decision:
    groups = groups_of(results)
    groups.pop((), None)
    baseline = usable_baseline(results)
    again = {arm.configuration for arm in two_best(results)}
    finalists = [g for c, g in groups.items() if c in again and g.usable]
    best = min(finalists, key=lambda group: group.mean, default=None)
    missing = missing_arms(results, expected)
    if best is None or baseline is None:
        without = lacking(baseline, best)
        undecided = no_comparison(2, rule_text(2, design), results, without, missing)
        return replace(undecided, chosen=best and best.arm)  # should a person go on all the same
    samples = [g.losses for g in (baseline, *groups.values())]
    s = math.sqrt(stats.pooled_variance(samples, design.sigma0**2, design.nu0))
    n, m = len(best.losses), len(baseline.losses)
    z2 = (baseline.mean - best.mean) / (s * math.sqrt(1 / n + 1 / m))
    taps = ",".join(map(str, best.arm.layers))
    return Decision(
        stage=2,
        verdict=PROCEED,
        title="PROCEED to Stage 3",
        because=(
            f"Layers {taps}: the lowest mean of those run twice. Exploratory, biased upwards.",
            f"z2 = {z2:.1f}: used to allocate stage 3, no evidence.",
        ),
        facts=(
            f"Baseline loss: {baseline.mean:.4f}",
            *loss_lines([r for r in results if r.run.arm.layers], baseline_losses(results)),
            f"Best: {best.names[0]}, {mean_text(best.losses, 4)}; sd with the prior's {s:.4f}",
        ),
        rule=rule_text(2, design),
        numbers={"z2": z2, "s": s, "best_loss": best.mean, "best_n": len(best.losses)},
        chosen=best.arm,
        missing=missing,
    )


def cells_to_run(z2: float | None) -> tuple[tuple[float, str], ...]:
    return MANY_CELLS if z2 is not None and z2 >= Z2_RICH else FEW_CELLS


def decide_hyperparameters(
    results: Sequence[RunResult], expected, design: Design, layers: Arm, stage_2: Decision | None
) -> Decision:
    """Choose weight and schedule; the default cell enters with its mean of stage 2.

    The additive fit pools what seven runs say about each weight and schedule. It could predict the
    two cells that were not run, too, but a configuration that nobody has seen train is not
    confirmed at the price of stage 4: where cells do not add up, that costs power
    (benchmarks/RESULTS.md).
    """
    observed = {
        (r.run.arm.weight, r.run.arm.schedule): r.val_loss for r in results if r.status == "ok"
    }
    numbers = stage_2.numbers if stage_2 else {}
    if "best_loss" in numbers:
        observed[DEFAULT_CELL] = numbers["best_loss"]
    missing = missing_arms(results, expected)
    if not observed:
        return no_comparison(3, rule_text(3, design), results, [ARM_SIDE], missing)
    rich = cells_to_run(numbers.get("z2")) == MANY_CELLS
    predicted = additive_fit(observed) if rich else observed
    predicted = {cell: loss for cell, loss in predicted.items() if cell in observed}
    weight, schedule = min(predicted, key=lambda cell: (predicted[cell], cell))
    how = "by an additive fit" if rich else "observed"
    return Decision(
        stage=3,
        verdict=PROCEED,
        title="PROCEED to Stage 4",
        because=(
            f"Weight {weight:g}, schedule {schedule}: best {how}"
            f" ({predicted[weight, schedule]:.4f}). Exploratory, biased upwards.",
        ),
        facts=tuple(
            f"weight {w:g}, {s}: {loss:.4f}{' (stage 2)' if (w, s) == DEFAULT_CELL else ''}"
            for (w, s), loss in sorted(observed.items())
        ),
        rule=rule_text(3, design),
        numbers={"predicted": [[w, s, loss] for (w, s), loss in sorted(predicted.items())]},
        chosen=replace(layers, weight=weight, schedule=schedule),
        missing=missing,
    )


def additive_fit(observed: dict[tuple[float, str], float]) -> dict[tuple[float, str], float]:
    """Loss = mean + effect of weight + effect of schedule, by least squares; every crossing of the
    weights and schedules seen. Cells that the data cannot determine get the minimum-norm fit."""
    import numpy as np

    weights = sorted({w for w, _ in observed})
    schedules = sorted({s for _, s in observed})

    def row(cell):
        return [1.0, *(cell[0] == w for w in weights), *(cell[1] == s for s in schedules)]

    matrix = np.array([row(cell) for cell in observed], dtype=float)
    losses = np.array(list(observed.values()))
    center = losses.mean()
    effects = np.linalg.lstsq(matrix, losses - center, rcond=None)[0]
    return {
        (w, s): float(center + np.dot(row((w, s)), effects)) for w in weights for s in schedules
    }


def decide_validation(
    looks: Sequence[Look],
    pairs: Sequence[Pair],
    pair_cost_s: float,
    design: Design,
    chosen: Arm,
    missing: tuple[str, ...],
) -> Decision:
    """The verdict of the last look, with what it rests on."""
    undecided = Decision(
        stage=4,
        verdict=FINAL,
        title=f"{UNDECIDED}: {len(pairs)} complete pair(s), the first look needs more",
        because=("Nothing is concluded about auxiliary heads.",),
        facts=loss_lines([r for pair in pairs for r in pair], None),
        rule=rule_text(4, design),
        numbers={"verdict": UNDECIDED, "label": "", "n": len(pairs), "looks": []},
        chosen=chosen,
        missing=missing,
    )
    if not looks:
        return undecided
    last = looks[-1]
    baseline = [b.val_loss for b, _ in pairs[: last.n] if b.status == "ok"]
    best = [a.val_loss for _, a in pairs[: last.n] if a.status == "ok"]
    diverged = 2 * last.n - len(baseline) - len(best)
    finished = finished_pairs([r for pair in pairs[: last.n] for r in pair])
    verdict, label = last.verdict or UNDECIDED, last.label
    if not last.verdict and diverged and level_among_finished(last, finished, design):
        verdict = NO_EFFECT
        label = f"among the runs that finished ({diverged} of {2 * last.n} diverged)"
    fell = next((k for k, look in enumerate(looks, 1) if look.verdict), len(looks))
    numbers = {
        "verdict": verdict,
        "label": label,
        "fell_at_look": fell if last.verdict else None,
        **{name: getattr(last, name) for name in LAST_LOOK},
        "baseline_diverged": last.n - len(baseline),
        "best_diverged": last.n - len(best),
        "looks": [vars(look) for look in looks],
    }
    because = (
        *explain(last, verdict, numbers, baseline, best, pair_cost_s, design),
        *when_it_fell(looks, fell),
    )
    title = title_of(verdict, label, fell, len(looks))
    facts = look_facts(looks, chosen, baseline, best, len(finished))
    return replace(undecided, title=title, because=because, facts=facts, numbers=numbers)


LAST_LOOK = ("n", "n_max", "improvement", "low", "high", "p")  # of it, told beside the verdict


def look_facts(
    looks: Sequence[Look], chosen: Arm, baseline: Sequence[float], best: Sequence[float],
    both_finished: int,
) -> tuple[str, ...]:  # fmt: skip
    """The last look as lines. baseline, best: final val losses of the runs that finished;
    both_finished: pairs of which both did."""
    last = looks[-1]
    span = "no interval: a run diverged, ranks decide"
    if last.p is None:
        span = "no interval: without variance there is no test"
    if last.low is not None:
        span = f"sequential interval {last.low:+.4f} to {last.high:+.4f}"
    estimate = delta_text(last.improvement)
    if len(baseline) + len(best) < 2 * last.n:
        estimate += f" over the {both_finished} pair(s) of which both finished"
    return (
        f"Configuration: {chosen.label}",
        f"Baseline: {losses_text(baseline)}",
        f"Best:     {losses_text(best)}",
        f"Improvement: {estimate}, {span}",
        f"Nominal {p_text(last.p)}; look {len(looks)} at {last.n} of at most {last.n_max} pairs",
    )


def title_of(verdict: str, label: str, fell: int, looks: int) -> str:
    """A verdict as it fell: later looks can only settle its label."""
    if verdict == NO_EFFECT:
        return f"{verdict} {label}".rstrip()
    when = f" at look {fell}" if fell < looks else ""
    return f"{verdict}{when}{f', {label}' if label else ''}"


def when_it_fell(looks: Sequence[Look], fell: int) -> Iterable[str]:
    look = looks[fell - 1]
    if fell < len(looks):
        by = "by ranks" if look.low is None else f"at {look.low:+.4f} to {look.high:+.4f}"
        yield f"It fell at {look.n} pairs {by}; later looks settle its label only."


def explain(last, verdict, numbers, baseline, best, pair_cost_s, design) -> list[str]:
    """What the verdict means, and what it would still take where there is none."""
    if verdict == NO_EFFECT and not last.verdict:
        return [
            f"Ranks, in which a diverged run is the worst, show no difference (p = {last.p:.4f});"
            f" the runs that finished are equivalent within ±{design.delta_eq:g} nats/token."
        ]
    if verdict == NO_EFFECT:
        excluded = max(abs(last.eq_low), abs(last.eq_high))
        return [f"A null result is a result: effects beyond ±{excluded:.4f} are excluded."]
    if verdict != UNDECIDED:
        return [f"Level {design.alpha:g} two-sided over all looks; fresh seeds for both arms."]
    lines = ["The bounds were not crossed: neither a gain, nor a harm, nor its absence is shown."]
    if last.low is not None:
        sd = math.sqrt(stats.pooled_variance([baseline, best], 0.0, 0.0))
        effect = max(abs(last.improvement), design.delta_eq)
        needed = stats.runs_needed(effect, sd)
        if needed:
            numbers["runs_needed"] = needed
            more = needed - last.n
            still = f"{more} more pairs, {duration(more * pair_cost_s)}"
            if more <= 0:
                still = (
                    "as many as were run, so chance decided. A new experiment is a second test:"
                    " its p-value does not undo this one"
                )
            lines.append(
                f"For power .8 at {effect:.4f} nats/token it takes about {needed} runs per arm:"
                f" {still}."
            )
    return lines


MAX_PAIRS = 100  # in stage 4 of the adaptive plan: enough for effects of half a sigma
MAX_GIVEN_UP = 3  # pairs of the adaptive plan's stage 4 that may fail for good before it ends


# ---------------------------------------------------------------------------------------------
# Which runs a stage asks for, and the table of stages


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
    return first + [s.run(arm, 1, index=1) for arm in two_best(done)]


def cells(s: Situation) -> list[RunConfig]:
    """Weights and schedules around the default, as many as the effect so far is worth."""
    z2 = s.decisions[2].numbers.get("z2") if 2 in s.decisions else None
    return [
        s.run(aux(s.choice.layers, cell_name(weight, schedule), weight, schedule))
        for weight, schedule in cells_to_run(z2)
    ]


def final_pairs(s: Situation) -> tuple[list[Pair], int]:
    """(complete pairs in order, up to the first one that is still open; number of pairs given up
    after repeated failures)."""
    complete, given_up = [], 0
    for k in itertools.count():
        pair = tuple(s.of(pair_of(s, k)))
        if len(pair) < 2:
            return complete, given_up
        if all(r.has_outcome for r in pair):
            complete.append(pair)
        else:
            given_up += 1


def batch_end(s: Situation, n: int) -> int:
    """The n-th pair is launched together with those up to this one; a look comes after them: after
    first_look pairs, then after every pair, or after as many as fill the machine."""
    first = s.experiment.profile.design.first_look
    return max(first, n + (first - n) % together(s))


def most_pairs(s: Situation, complete: Sequence[Pair]) -> list[int]:
    """n_max on entry, and after each complete pair as the budget then allowed; it never rises."""
    e = s.experiment
    limits = [min(e.validation_runs or MAX_PAIRS, affordable(s, s.costs, left_on_entry_s(s)))]
    for n in range(1, len(complete) + 1):
        end = n if e.share.parallel_runs == 1 else batch_end(s, n)
        if end > len(complete):  # others that were launched with it still run, and are paid for
            limits.append(limits[-1])
            continue
        last = complete[end - 1][0].run.index
        paid = [r for r in s.history if r.run.stage < 4 or r.run.index <= last]
        left_s = 3600 * e.budget_at(n) - machine_seconds(paid)
        limits.append(min(limits[-1], end + affordable(s, Costs(e, paid), left_s)))
    return limits


def pairs_until_settled(s: Situation) -> list[RunConfig]:
    """Pairs up to the first look, then more as long as the last look leaves something open."""
    complete, given_up = final_pairs(s)
    limits = most_pairs(s, complete)
    n, n_max = len(complete), limits[-1]
    if s.experiment.stop_on == "never":
        return [run for k in range(n_max) for run in pair_of(s, k)]
    looks = looks_so_far(s, complete, limits[1:])
    target = batch_end(s, n + 1)
    if (looks and settled(looks[-1])) or given_up > MAX_GIVEN_UP:
        target = n
    count = min(target, max(n, n_max)) + given_up
    return [run for k in range(count) for run in pair_of(s, k)]


def looks_so_far(s: Situation, complete: Sequence[Pair], limits: Sequence[int]):
    e = s.experiment
    return looks_at(
        complete, limits, e.profile.design, e.stop_on == "any", together=together(s)
    )


def decide_pairs(s: Situation) -> Decision:
    complete, given_up = final_pairs(s)
    limits = most_pairs(s, complete)[1:]
    looks = looks_so_far(s, complete, limits)
    if complete and not (looks and settled(looks[-1])):
        # no further pair comes: what is left of alpha is spent on this look
        limits[-1] = len(complete)
        looks = looks_so_far(s, complete, limits)
    cost_s = sum(map(s.costs, pair_of(s, 0)))
    missing = (f"{given_up} pair(s), of which a run failed for good",) if given_up else ()
    design = s.experiment.profile.design
    decision = decide_validation(looks, complete, cost_s, design, s.choice, missing)
    return of_what(s, decision)


def with_design(rule: Callable[[Sequence[RunResult], Sequence[str], Design], Decision]):
    return lambda s: rule(s.told, names_wanted(s), s.experiment.profile.design)


def decide_cells(s: Situation) -> Decision:
    design, stage_2 = s.experiment.profile.design, s.decisions.get(2)
    return decide_hyperparameters(s.told, names_wanted(s), design, s.choice, stage_2)


ADAPTIVE = (
    Stage(
        number=1,
        name="screening",
        question="does any placement do plain harm?",
        rule=RULES[1],
        arms=SCREENING,
        fraction=SHORT,
        wanted=twice_the_baseline,
        decide=with_design(decide_screening),
        needs_baseline=True,
    ),
    Stage(
        number=2,
        name="layer position",
        question="which tap layers?",
        rule=RULES[2],
        arms=LAYERS[:-1],
        fraction=1.0,
        wanted=placements_then_two_again,
        decide=with_design(decide_layers),
        needs_baseline=True,
    ),
    Stage(
        number=3,
        name="deep dive",
        question="which loss weight and schedule?",
        rule=RULES[3],
        arms=tuple(aux((4, 8), cell_name(*cell), *cell) for cell in MANY_CELLS),
        fraction=1.0,
        wanted=cells,
        decide=decide_cells,
    ),
    Stage(
        number=4,
        name="final validation",
        question="does it hold on seeds used nowhere else?",
        rule=RULES[4],
        arms=FINAL_ARMS,
        fraction=1.0,
        wanted=pairs_until_settled,
        decide=decide_pairs,
    ),
)
