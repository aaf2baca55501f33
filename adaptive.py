"""What may be concluded from few runs?  The rules of the adaptive plan.

Pure functions: selection is cheap and exploratory (stages 1 to 3 only allocate), confirmation is
on fresh seeds with error control. Stage 4 looks at its pairs one by one with Lan-DeMets bounds of
the O'Brien-Fleming kind, so that looking after every pair costs nothing of the stated level, and
ends with one of four verdicts: improves, harmful, no meaningful effect, inconclusive.

Improvement = mean val_loss(baseline) - mean val_loss(arm), nats/token: positive is good.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import aux_stats
from decision import (
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
from records import Arm, RunResult, duration


@dataclass(frozen=True)
class Design:
    """The statistical terms of an experiment, fixed before its first run."""

    sigma0: float  # sd of a final loss between seeds, as known beforehand; nats/token
    delta_eq: float  # the smallest improvement of interest, nats/token
    delta_target: float  # the improvement hoped for, nats/token
    drop: float  # screening drops an arm that is worse than the baseline by more, nats/token
    nu0: float = 8.0  # degrees of freedom that sigma0 is worth in stage 2
    alpha: float = 0.05  # two-sided
    first_look: int = 4  # pairs
    speedup: float = 0.10  # of the time to the baseline's final loss


RULES = {  # shown beside the decisions, registered, and repeated in the README
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
DEFAULT_CELL = (0.1, "constant")
FEW_CELLS = ((0.05, "linear_decay"), (0.2, "cosine_decay"))
MANY_CELLS = (
    (0.05, "constant"),
    (0.05, "linear_decay"),
    (0.1, "linear_decay"),
    (0.1, "cosine_decay"),
    (0.2, "cosine_decay"),
    (0.2, "constant"),
)


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
    tried_any = any(r.run.arm.layers and r.settled for r in results)
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
    s = math.sqrt(aux_stats.pooled_variance(samples, design.sigma0**2, design.nu0))
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


# ---------------------------------------------------------------------------------------------
# Stage 4: looks

IMPROVES, HARMFUL = "improves", "harmful"
NO_EFFECT, UNDECIDED = "no meaningful effect", "inconclusive"
MET, BELOW, UNRESOLVED = "target met", "below target", "target unresolved"


@dataclass(frozen=True)
class Look:
    """What n complete pairs say, with n_max as the most that the budget allows."""

    n: int
    n_max: int
    improvement: float | None  # of the runs that finished; None where a whole arm diverged
    z: float  # bound for the verdict, one-sided alpha/2 spent over the looks
    q: float  # bound for equivalence, one-sided alpha
    low: float | None  # sequential interval of the improvement; None where ranks had to decide
    high: float | None
    eq_low: float | None
    eq_high: float | None
    p: float | None  # nominal and two-sided: Welch, or worst-rank where a run diverged
    verdict: str = ""  # empty: no bound is crossed
    label: str = ""


Pair = tuple[RunResult, RunResult]  # baseline, best; of one seed


def looks_at(
    pairs: Sequence[Pair],
    limits: Sequence[int],
    design: Design,
    equivalence: bool = True,
    together: int = 1,
) -> list[Look]:
    """Every look so far, in order; the last one may be final.

    pairs: complete pairs in order. limits[k-1]: n_max as the budget allowed after k pairs, never
    rising. together: pairs that run side by side, with one look after them. A verdict, once
    reached, stands; later looks can only settle its label.
    """
    looks: list[Look] = []
    for n in range(1, len(pairs) + 1):
        n_max = limits[n - 1]
        if n < min(design.first_look, n_max) or n < 2:
            continue
        if (n - design.first_look) % together and n < n_max:
            continue
        look = take_look(pairs[:n], n_max, [k.n for k in looks], [k.n_max for k in looks], design)
        last = looks[-1] if looks else None
        if last and last.verdict:
            look = replace(look, verdict=last.verdict)
        elif look.verdict == NO_EFFECT and not equivalence and n < n_max:
            look = replace(look, verdict="", label="")
        if look.verdict == IMPROVES:
            label = target_label(look, design)
            if last and last.label in (MET, BELOW):
                label = last.label
            look = replace(look, label=label)
        looks.append(look)
    return looks


def target_label(look: Look, design: Design) -> str:
    if look.low is not None and look.low >= design.delta_target:
        return MET
    if look.high is not None and look.high < design.delta_target:
        return BELOW
    return UNRESOLVED


def settled(look: Look) -> bool:
    """Nothing that more pairs could add to is open."""
    if not look.verdict:
        return False
    return look.verdict != IMPROVES or look.label != UNRESOLVED or look.low is None


def alpha_spent(ns: Sequence[int], n_maxes: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Cumulative one-sided alpha at each look, O'Brien-Fleming spending (Lan and DeMets 1983).

    When the budget lowers n_max, the fraction of information jumps and what was left of alpha is
    spent sooner; what was spent stays spent.
    """
    return tuple(
        aux_stats.obrien_fleming_spending(n / max(n, n_max), alpha)
        for n, n_max in zip(ns, n_maxes, strict=True)
    )


def take_look(
    pairs: Sequence[Pair],
    n_max: int,
    earlier_n: Sequence[int],
    earlier_n_max: Sequence[int],
    design: Design,
) -> Look:
    """One look at the first len(pairs) pairs, given the looks before it."""
    n = len(pairs)
    ns, n_maxes = (*earlier_n, n), (*earlier_n_max, n_max)
    z, q = (
        aux_stats.bounds(ns, alpha_spent(ns, n_maxes, alpha))[-1]
        for alpha in (design.alpha / 2, design.alpha)
    )
    baseline = [b.val_loss for b, _ in pairs if b.status == "ok"]
    best = [a.val_loss for _, a in pairs if a.status == "ok"]
    if len(baseline) < n or len(best) < n:
        return ranked_look(pairs, n_max, z, q)
    c = aux_stats.compare(baseline, best)
    if c.se is None or c.df is None:  # no variance at all: nothing can be concluded from it
        return Look(n, n_max, c.improvement, z, q, None, None, None, None, None)
    reach, eq_reach = (aux_stats.t_critical(bound, c.df) * c.se for bound in (z, q))
    look = Look(
        n=n,
        n_max=n_max,
        improvement=c.improvement,
        z=z,
        q=q,
        low=c.improvement - reach,
        high=c.improvement + reach,
        eq_low=c.improvement - eq_reach,
        eq_high=c.improvement + eq_reach,
        p=c.p,
    )
    return replace(look, verdict=verdict_of(look, design))


def verdict_of(look: Look, design: Design) -> str:
    if look.low > 0:
        return IMPROVES
    if look.high < 0:
        return HARMFUL
    if -design.delta_eq < look.eq_low and look.eq_high < design.delta_eq:
        return NO_EFFECT
    return ""


def ranked_look(pairs: Sequence[Pair], n_max: int, z: float, q: float) -> Look:
    """A run diverged: the exact worst-rank test decides (Lachin 1999), at this look's level; the
    improvement is that of the pairs of which both runs finished."""
    n = len(pairs)
    baseline = [b.val_loss for b, _ in pairs if b.status == "ok"]
    best = [a.val_loss for _, a in pairs if a.status == "ok"]
    test = aux_stats.worst_rank(baseline, best, n - len(baseline), n - len(best))
    level = 2 * aux_stats.upper_tail(z)
    verdict = ""
    if test.p is not None and test.p <= level and baseline:  # else there is nothing to beat
        verdict = IMPROVES if test.favours_arm else HARMFUL
    finished = finished_pairs([r for pair in pairs for r in pair])
    improvement = statistics.fmean(b - a for b, a in finished) if finished else None
    return Look(n, n_max, improvement, z, q, None, None, None, None, test.p, verdict)


def decide_validation(
    looks: Sequence[Look],
    pairs: Sequence[Pair],
    pair_cost_s: float,
    design: Design,
    chosen: Arm,
    missing: tuple[str, ...],
) -> Decision:
    """The verdict of the last look, with what it rests on."""
    rule = rule_text(4, design)
    last = looks[-1] if looks else None
    if last is None:
        return Decision(
            stage=4,
            verdict=FINAL,
            title=f"{UNDECIDED}: {len(pairs)} complete pair(s), the first look needs more",
            because=("Nothing is concluded about auxiliary heads.",),
            facts=loss_lines([r for pair in pairs for r in pair], None),
            rule=rule,
            numbers={"verdict": UNDECIDED, "label": "", "n": len(pairs), "looks": []},
            chosen=chosen,
            missing=missing,
        )
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
        "n": last.n,
        "n_max": last.n_max,
        "improvement": last.improvement,
        "low": last.low,
        "high": last.high,
        "p": last.p,
        "baseline_diverged": last.n - len(baseline),
        "best_diverged": last.n - len(best),
        "looks": [vars(look) for look in looks],
    }
    span = "no interval: a run diverged, ranks decide"
    if last.p is None:
        span = "no interval: without variance there is no test"
    if last.low is not None:
        span = f"sequential interval {last.low:+.4f} to {last.high:+.4f}"
    estimate = delta_text(last.improvement)
    if diverged:
        estimate += f" over the {len(finished)} pair(s) of which both finished"
    facts = [
        f"Configuration: {chosen.label}",
        f"Baseline: {losses_text(baseline)}",
        f"Best:     {losses_text(best)}",
        f"Improvement: {estimate}, {span}",
        f"Nominal {p_text(last.p)}; look {len(looks)} at {last.n} of at most {last.n_max} pairs",
    ]
    return Decision(
        stage=4,
        verdict=FINAL,
        title=title_of(verdict, label, fell, len(looks)),
        because=(
            *explain(last, verdict, numbers, baseline, best, pair_cost_s, design),
            *when_it_fell(looks, fell),
        ),
        facts=tuple(facts),
        rule=rule,
        numbers=numbers,
        chosen=chosen,
        missing=missing,
    )


def level_among_finished(
    last: Look, finished: Sequence[tuple[float, float]], design: Design
) -> bool:
    """Where runs diverged and ranks show nothing: whether baseline and best are equivalent, at the
    look's bound, in the pairs of which both finished (their val losses)."""
    if last.p is None or len(finished) < 2:
        return False
    c = aux_stats.compare(*zip(*finished, strict=True))
    if c.se is None:
        return False
    reach = aux_stats.t_critical(last.q, c.df) * c.se
    return abs(c.improvement) + reach < design.delta_eq


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
        sd = math.sqrt(aux_stats.pooled_variance([baseline, best], 0.0, 0.0))
        effect = max(abs(last.improvement), design.delta_eq)
        needed = aux_stats.runs_needed(effect, sd)
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
