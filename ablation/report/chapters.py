"""What does a report say?  The answer, then a chapter for each question that a reader has."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from ablation import stats
from ablation.folder.overrides import is_overridden
from ablation.plan.decision import STOP, p_text
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT
from ablation.report.comparisons import (
    SELECTING,
    ArmRuns,
    Block,
    Contrast,
    Race,
    blocks_of,
    by_packing,
    contrast,
    dunnett,
    final_block,
    paired_losses,
    race,
    ratio,
    repeated_ps,
)
from ablation.report.evidence import FIXED, Evidence, field, in_words, simple
from ablation.report.text import level, number, pairs, paragraph, percent, span, table
from ablation.runs.run import STATUSES, duration, machine_seconds
from ablation.runs.untrusted import is_count, is_number

# ---------------------------------------------------------------------------------------------
# The report, chapter by chapter

SELECTS = "exploratory and biased: what is picked as the best of several looks better than it is"


def answer(x: Evidence) -> list[str]:
    """The latest decision, and no more than the data carry."""
    finished = sum(r.status == "ok" for r in x.records.latest().values())
    if x.changed:
        return paragraph(f"No decision is shown: see the top. {finished} run(s) have finished.")
    ended = x.standing.step.ended
    state = f"Ended: {ended}." if ended else "NOT FINISHED: the plan has not come to an end."
    if not finished:
        return paragraph(f"There is no answer yet: no run has finished. {state}")
    if not x.decisions:
        return paragraph(f"No stage is decided yet; {finished} run(s) have finished. {state}")
    last = x.decisions[max(x.decisions)]
    stopped = "stopped by rule; inconclusive. " if last.verdict == STOP else ""
    lines = paragraph(f"{x.stage_name(last.stage)}: {stopped}{last.title}.", hang=2)
    for because in last.because if last.stage else ():
        if because.startswith("A null result is a result"):
            continue  # said below, with its level
        lines += paragraph(because, indent=4)
    if last.stage == 4:
        block = final_block(x)
        lines += paragraph(effect_line(x, block), indent=4)
        if null := block and excluded(x, block):
            shown = x.verdict == NO_EFFECT
            opening = "A null result is a result: " if shown else "Not shown either way, but "
            lines += paragraph(f"{opening}{null}.", indent=4)
    if last.stage == 0:
        lines += paragraph("No rule was registered, so nothing is concluded beyond the tables.")
    elif last.stage in SELECTING:
        lines += paragraph(
            f"Numbers of this stage are {SELECTS}. They choose what runs next; only stage 4, on"
            " seeds used nowhere else, can confirm an effect."
        )
        if last.stage == 1:
            lines += paragraph("Short runs say little about full ones.")
    return lines + paragraph(state)


def effect_line(x: Evidence, block: Block | None) -> str:
    """Of the final validation: the effect with all that qualifies it."""
    found = contrast(block, block.arms[0]) if block else Contrast()
    c = found.comparison
    if not c:
        return "There is no difference to show: no seed on which both arms finished."
    low, high, kind = primary_interval(x, found)
    when = f" at look {len(x.looks)}" * bool(x.looks)
    within = f"{kind} interval{when} {span(low, high)}" if low is not None else "no interval"
    line = (
        f"{block.arms[0].arm.label}: improvement {c.improvement:+.4f} nats/token, {within},"
        f" {p_text(final_p(x, block))}{' (repeated)' * bool(x.looks)},"
        f" n = {c.n_arm} and {c.n_baseline} baseline, of {found.seeds} pairs"
    )
    lost = [f"{g.label} {g.lost}" for g in block.groups if g.lost]
    return line + (f"; not in these means: {', '.join(lost)}" if lost else "") + "."


# ---------------------------------------------------------------------------------------------
# The final validation: what may be claimed

SEED = 0  # of the bootstrap and of Dunnett's integration: the same report again


def generator():
    import numpy as np

    return np.random.default_rng(SEED)


def primary_interval(x: Evidence, found: Contrast) -> tuple[float | None, float | None, str]:
    """(low, high, what it is) of the interval that the verdict rests on; none where ranks decide,
    as the runs that finished are then only the better ones."""
    if x.looks:
        return x.looks[-1].low, x.looks[-1].high, f"sequential {level(x.design.alpha)}"
    c, kind = found.comparison, level(x.design.alpha)
    return (None, None, kind) if found.ranked or not c else (c.ci_low, c.ci_high, kind)


def validated(x: Evidence) -> list[str]:
    """Everything about the one comparison that was planned before its runs."""
    if x.plan == "manual":
        return paragraph("Runs by hand have none: no test was registered before them.")
    block = final_block(x)
    if not block:
        return paragraph("Nothing is confirmed: stage 4 has no pair with an outcome on both sides.")
    versus = f"{block.arms[0].arm.label}; against the baseline, on seeds used nowhere else"
    verdict = "none shown: see the top" if x.changed else "none yet"
    verdict += "; p and intervals are nominal, and do not allow for looking early"
    verdict = x.decisions[4].title if 4 in x.decisions else verdict
    rows = [("verdict", verdict), ("configuration", versus)]
    found = contrast(block, block.arms[0])
    if found.comparison:
        rows += effect_rows(x, block, found)
    rows += [("p", p_line(x, block, found))]
    rows += [("baseline", spread_line(block.baseline)), ("arm", spread_line(block.arms[0]))]
    if found.comparison:
        rows += [*sensitivity_rows(x, block), *resolution_rows(x, block)]
    rows += time_rows(x, block)
    lines = pairs(rows)
    if x.looks:
        lines += ["", *paragraph(LOOK_NOTES), *table(look_columns(x), look_rows(x, block))]
    return lines


def effect_rows(x: Evidence, block: Block, found: Contrast) -> Iterable[tuple[str, str]]:
    low, high, kind = primary_interval(x, found)
    c = found.comparison
    share = c.improvement / c.mean_baseline
    yield "effect", f"improvement {c.improvement:+.4f} nats/token ({share:+.2%} of the baseline's)"
    if low is None:
        yield "interval", "none: ranks decide where a run diverged, and n = 1 or no spread has none"
        return
    of_looks = f" over all looks, at look {len(x.looks)}" * bool(x.looks)
    yield "interval", f"{span(low, high)}, {kind}{of_looks}"
    if null := excluded(x, block):
        yield "excluded", null
    eq_low, eq_high = equivalence_interval(x, block)
    delta_eq = x.design.delta_eq
    inside = "inside" if -delta_eq < eq_low and eq_high < delta_eq else "not inside"
    about = f"{level(2 * x.design.alpha)}: {inside} ±{delta_eq:g} (delta_eq)"
    yield "equivalence", f"{span(eq_low, eq_high)}, {about}"


def equivalence_interval(x: Evidence, block: Block) -> tuple[float, float]:
    """Two one-sided tests at alpha as an interval: of the last look, or Welch's."""
    if x.looks:
        return x.looks[-1].eq_low, x.looks[-1].eq_high
    c = stats.compare(block.baseline.losses, block.arms[0].losses, 2 * x.design.alpha)
    return c.ci_low, c.ci_high


def excluded(x: Evidence, block: Block) -> str:
    """A null result is a result: what it excludes. Empty where there is an effect, or no test.

    A verdict stands as it fell, also where a later look's interval has come to cover zero.
    """
    low, high, kind = primary_interval(x, contrast(block, block.arms[0]))
    if low is None or not low <= 0 <= high or x.verdict in (IMPROVES, HARMFUL):
        return ""
    if x.verdict == NO_EFFECT:  # shown at the level of that verdict
        low, high = equivalence_interval(x, block)
        kind = f"sequential {level(2 * x.design.alpha)}"
    return f"effects beyond ±{max(-low, high):.4f} nats/token are excluded ({kind} interval)"


def final_p(x: Evidence, block: Block) -> float | None:
    return repeated_ps(x, block)[-1] if x.looks else contrast(block, block.arms[0]).p


def p_line(x: Evidence, block: Block, found: Contrast) -> str:
    test = "exact worst-rank test" if found.ranked else "Welch"
    if not x.looks:
        return f"{p_text(final_p(x, block))}, two-sided, {test}"
    return (
        f"repeated {p_text(final_p(x, block))}, over {len(x.looks)} look(s); nominal"
        f" {p_text(x.looks[-1].p)} ({test}), as if there had been one look"
    )


def spread_line(group: ArmRuns) -> str:
    mean, sd = group.mean_sd()
    lost = f"; {group.lost}" if group.lost else ""
    return f"n = {len(group.losses)}, mean {number(mean, '.4f')}, sd {number(sd, '.4f')}{lost}"


def sensitivity_rows(x: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    """Other ways to look at the same runs; none of them decides."""
    base, group = block.baseline, block.arms[0]
    sides = paired_losses(base, group)
    if sides[0]:
        test = stats.paired(*sides, x.design.alpha)
        about = f"{span(test.ci_low, test.ci_high)}, {p_text(test.p)}, n = {len(sides[0])} pairs"
        yield "paired t", f"{test.improvement:+.4f}, {about} (sensitivity)"
    bca = stats.bootstrap_interval(base.losses, group.losses, generator(), x.design.alpha)
    about = f"sensitivity: 9,999 resamples, seed {SEED}; covers too little at small n"
    yield "BCa bootstrap", f"{span(*(bca or (None, None)))} ({about})"


def resolution_rows(x: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    """What so many runs could have found, with the spread that they had."""
    d, losses = x.design, [g.losses for g in block.groups]
    n = min(map(len, losses))
    if n < 2 or stats.compare(*losses).se is None:
        return
    s = math.sqrt(stats.pooled_variance(losses, 0.0, 0.0))
    yield "sd", f"{s:.4f} of runs, pooled; {d.sigma0:g} was expected"
    yield "MDE80", f"{stats.mde80(s, n, d.alpha):.4f} nats/token, for n = {n} with this sd"
    powers = (
        f"{stats.power(effect, n, s, d.alpha):.3f} at {effect:g} ({name})"
        for name, effect in (("delta_eq", d.delta_eq), ("delta_target", d.delta_target))
    )
    yield "power", f"{', '.join(powers)}, for n = {n} with this sd and one look"


def time_rows(x: Evidence, block: Block) -> Iterable[tuple[str, str]]:
    parts = by_packing(x, block)
    for packing, part in parts.items():
        about = f" ({packing})" if len(parts) > 1 else ""
        run = part.arms and race(part, part.arms[0], x.design.alpha)
        if not run:
            continue
        yield "overhead", f"{percent(run.overhead)} time per step{about}"
        reached = f"{run.arrived} of {run.runs} runs got there"
        yield (
            "time saved",
            f"{percent(run.saved)} to the baseline's mean final loss; {reached}{about}",
        )
        yield "speedup", f">= {x.design.speedup:.0%} {run.shows(x.design.speedup)}{about}"
        if c := run.at_equal_time:
            yield (
                "equal time",
                f"improvement {c.improvement:+.4f} ({span(c.ci_low, c.ci_high)}) after"
                f" {run.equal_s:.1f} s of training, where the first run ends{about}",
            )


LOOK_NOTES = (
    "Every look. most: pairs that the budget allowed then. The sequential intervals reach from the"
    " improvement as far as the next two columns say, to both sides: at the level of the verdict,"
    " and at that of equivalence."
)


def look_columns(x: Evidence) -> tuple[str, ...]:
    spans = (f">reach {level(x.design.alpha)}", f">reach {level(2 * x.design.alpha)}")
    return (">pairs", ">most", ">improvem.", *spans, ">nominal p", ">repeated p", "verdict")


def look_rows(x: Evidence, block: Block) -> Iterable[tuple]:
    for look, p in zip(x.looks, repeated_ps(x, block), strict=True):
        yield (
            look.n,
            look.n_max,
            number(look.improvement, "+.4f"),
            None if look.high is None else f"{look.high - look.improvement:.4f}",
            None if look.eq_high is None else f"{look.eq_high - look.improvement:.4f}",
            None if look.p is None else bare_p(look.p),
            bare_p(p),
            ", ".join(filter(None, (look.verdict, look.label))),
        )


# ---------------------------------------------------------------------------------------------
# What was asked, and what was held fixed

SCALE = ("n_layer", "model_dim", "n_head", "sequence_length", "batch_size", "val_tokens")


def asked(x: Evidence) -> list[str]:
    r, profile = x.registered, field(x.registered, "profile")
    known = ((name, field(profile, name)) for name in ("name", *SCALE))
    scale = ", ".join(f"{name} {simple(v)}" for name, v in known if v is not None)
    on_file = ", ".join(simple(field(r, name)) for name in ("created", "hash"))
    rows = [
        ("question", r.get("question")),
        ("hypothesis", r.get("hypothesis")),
        ("plan", r.get("plan")),
        ("profile", scale.removeprefix("name ")),
        ("full run", f"{simple(r.get('full_iterations'))} steps"),
        ("estimand", r.get("estimand")),
        ("improvement", "mean(baseline) - mean(arm), positive is good"),
        ("failures", r.get("failure_rule")),
        ("budget", f"{simple(r.get('budget_hours'))} h of machine time"),
        ("on file", f"{on_file}; see the top") if x.changed else ("registered", on_file),
    ]
    for stage in x.standing.stages:
        n = str(stage.number)
        registered = field(r, "stages", n)
        arms, seeds = field(registered, "arms"), field(registered, "seeds")
        names = [simple(field(arm, "name")) for arm in few(arms)]
        between = " to " if isinstance(seeds, dict) else ", "  # a stage's first and last, or a list
        listed = between.join(map(simple, few(seeds)))
        name, what, steps = (
            simple(field(registered, key)) for key in ("name", "question", "num_iterations")
        )
        about = f"{name}: {what} {steps} steps, seeds {listed}: {', '.join(names)}"
        rows.append((f"stage {n}", about))
    return pairs(rows)


def few(value) -> list:
    """The first entries of a list or an object, of anything else none."""
    values = value.values() if isinstance(value, dict) else value
    return list(islice(values, 100)) if isinstance(value, dict | list) else []


def held_fixed(x: Evidence) -> list[str]:
    """As registered; where runs differ from it all the same is a deviation."""
    r = x.registered
    steps, profile = r.get("full_iterations"), field(r, "profile")
    batch, length = field(profile, "batch_size"), field(profile, "sequence_length")
    lines = []
    if all(map(is_count, (steps, batch, length))):
        count = f"{batch * length:,} a step, {steps * batch * length:,} a full run"
        same = "arms that share a seed see the same ones in the same order"
        lines += pairs([("tokens", f"{count}; {same}")])
    lines += pairs((name, in_words(field(r, *at))) for name, at in FIXED.items())
    return lines + pairs(
        [("not fixed", "training time and parameters: heads cost both, so see loss at equal time")]
    )


def deviations(x: Evidence) -> list[str]:
    """What was done otherwise than registered, or could not be: all of it, on purpose or not."""
    found = [f"Beware: {change}" for change in x.changed]
    for o in x.standing.experiment.overrides:
        words = (f"stage {o.stage}" * bool(o.stage), o.kind, in_words(o.value))
        found.append(f"Override {simple(o.when)}: {': '.join(filter(None, words))}")
    found += [f"Cut by the budget: {cut}" for cut in (x.standing.step.cut if not x.changed else ())]
    found += ["Files that could not be believed: see the answer, above."] * bool(x.notes)
    if stray := x.records.stray:
        names = ", ".join(folder.relative_to(x.exp_dir).as_posix() for folder in few([*stray]))
        found.append(f"Passed over, as copies of other runs or links: {names}")
    for name in FIXED:
        seen = Counter(words[name] for words in x.circumstances.values() if name in words)
        if len(seen) > 1:
            which = "; ".join(f"{value} ({n} runs)" for value, n in seen.most_common())
            found.append(f"Beware, runs differ in {name}: {which}")
    counted = Counter(r.status for r in x.records.results if r.status != "ok")
    if counted:
        words = ", ".join(f"{counted[status]} {status}" for status in STATUSES if counted[status])
        found.append(f"Attempts that failed: {words}; see below for each")
    for n, decision in x.decisions.items():
        if decision.missing:
            found.append(f"{x.stage_name(n)}: no result of {', '.join(decision.missing)}")
    return [line for text in found for line in paragraph(text, hang=2)] or ["  None."]


def decided(x: Evidence) -> list[str]:
    lines = []
    for stage in x.standing.stages:
        decision = x.decisions.get(stage.number)
        none = "not shown: see the top" if x.changed else "not decided"
        lines += paragraph(
            f"{x.stage_name(stage.number)}: {decision.title if decision else none}", hang=2
        )
        rule = field(x.registered, "stages", str(stage.number), "rule")
        lines += paragraph(f"rule: {decision.rule if decision else simple(rule)}", 4, hang=6)
        if decision is None:
            continue
        for line in (*decision.because, *decision.facts):
            lines += paragraph(line, indent=4, hang=2)
        if is_overridden(decision, x.standing.experiment):
            lines += paragraph("OVERRIDDEN: --ignore_gate was given; the plan went on.", indent=4)
    return lines


def bare_p(p: float) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ").replace(" ", "")


ARM_COLUMNS = (
    *("arm", ">n", ">mean", ">sd"),
    *(">seeds", ">improvem.", ">95 % interval", ">p", ">d"),
)
ARM_NOTES = (
    "n: runs that finished; mean and sd: of their val loss. seeds: those of which arm and baseline"
    " both have an outcome; the rest is of these alone. improvem.: baseline mean - mean,"
    " nats/token, with its Welch interval; p: Welch, two-sided; d: Cohen's. Stages are not pooled:"
    f" they differ in seeds, and in length. Stages that select are {SELECTS}."
)
MULTIPLE = "Several arms against one baseline: p of the table are not corrected for their number."
SEQUENTIAL = "The plan looked after every pair: its decision allows for that, a nominal p does not."


def arm_row(block: Block, group: ArmRuns) -> tuple:
    c, (mean, sd) = contrast(block, group), group.mean_sd()
    f = c.comparison
    return (
        group.label,
        len(group.losses),
        number(mean, ".4f"),
        number(sd, ".4f"),
        c.seeds or None,
        number(f and f.improvement, "+.4f"),
        f and span(f.ci_low, f.ci_high),
        None if c.p is None else bare_p(c.p),
        number(f and f.cohens_d, "+.1f"),
    )


def arm_notes(x: Evidence, block: Block) -> Iterable[str]:
    """What a dash means, what a mean leaves out, which configuration a name is."""
    reasons: dict[str, list[str]] = {}
    for group in block.groups:
        left_out = group.lost and f"{group.lost}, not in the mean"
        one = "n = 1, no sd" if group is block.baseline and len(group.losses) == 1 else ""
        apart = not_compared(block, group)
        for why in filter(None, (contrast(block, group).why, left_out, one, apart)):
            reasons.setdefault(why, []).append(group.label)
    yield from (f"{', '.join(names)}: {why}." for why, names in reasons.items())
    yield from (f"{group.label} = {group.arm.label}" for group in block.arms)
    if sum(bool(g.losses) for g in block.arms) > 1 and len(block.baseline_losses) > 1:
        yield MULTIPLE
        if corrected := dunnett(block, generator()):
            listed = ", ".join(f"{name} {bare_p(p)}" for name, p in corrected.items())
            yield f"Dunnett's p, for {len(corrected)} arms, assuming one sd: {listed}."
    if x.plan == "adaptive" and block.stage == 4:
        yield SEQUENTIAL


def not_compared(block: Block, group: ArmRuns) -> str:
    """In words, how many finished runs of an arm the difference is not of; empty when none."""
    seeds = block.baseline.seeds if block.baseline else set()
    other = sum(r.run.seed not in seeds for r in group.ok)
    if not other or not contrast(block, group).comparison:
        return ""
    return f"{other} of {len(group.ok)} runs not compared: no baseline of their seed"


def compared(x: Evidence) -> list[str]:
    lines = paragraph(ARM_NOTES)
    for block in blocks_of(x):
        lines += ["", *paragraph(block.title, hang=2)]
        lines += table(ARM_COLUMNS, [arm_row(block, group) for group in block.groups])
        for note in arm_notes(x, block):
            lines += paragraph(note, indent=4, hang=2)
    return lines


TIME_NOTES = (
    "Training time, without start-up and validation, compared between runs of equal packing only;"
    " losses, and times to a loss, on shared seeds."
    " ratio: of training time, to the baseline's. arrived: runs that reached the baseline's mean"
    " final loss. to it: mean time to that, interpolated; a run that never got there enters with"
    " its full time. saved: of that time, with its interval for one look. equal steps, equal time:"
    " improvement of the final loss, and after the training time at which the first run ended, when"
    " a slower arm is not yet through its cooldown."
)
COST_COLUMNS = ("arm", ">n", ">train, s", ">sd", ">ratio", ">ms/step", ">wall, s", ">peak MiB")
RACE_COLUMNS = ("arm", ">arrived", ">to it, s", ">saved", ">equal steps", ">equal time")


def cost_row(block: Block, group: ArmRuns) -> tuple:
    mean_ms, sd_ms = group.mean_sd("train_time_ms")
    return (
        group.label,
        len(group.ok),
        number(mean_ms and mean_ms / 1000, ".1f"),
        number(sd_ms and sd_ms / 1000, ".1f"),
        number(ratio(block, group, "train_time_ms"), ".3f"),
        number(group.mean_sd("step_avg_ms")[0], ".2f"),
        number(group.mean_sd("wall_s")[0], ".1f"),
        number(group.mean_sd("peak_memory_mib")[0], ".0f"),
    )


def race_row(block: Block, group: ArmRuns, run: Race) -> tuple:
    steps, time = contrast(block, group).comparison, run.at_equal_time
    return (
        group.label,
        f"{run.arrived} of {run.runs}",
        number(run.time_s, ".1f"),
        percent(run.saved),
        number(steps and steps.improvement, "+.4f"),
        number(time and time.improvement, "+.4f"),
    )


def timed(x: Evidence) -> list[str]:
    packings = list(dict.fromkeys(map(x.packing, x.records.latest().values())))
    lines = paragraph(TIME_NOTES) + paragraph(f"Packing: {'; '.join(packings) or 'no run yet'}.")
    for whole in blocks_of(x):
        for packing, block in by_packing(x, whole).items():
            about = f": {packing}" if len(packings) > 1 else ""
            lines += ["", *paragraph(whole.title + about, hang=2)]
            lines += table(COST_COLUMNS, [cost_row(block, group) for group in block.groups])
            races = [(g, race(block, g, x.design.alpha)) for g in block.arms]
            rows = [race_row(block, g, run) for g, run in races if run]
            lines += ["", *table(RACE_COLUMNS, rows)] if rows else []
    return lines


def every_run(x: Evidence) -> list[str]:
    counted = Counter(r.status for r in x.records.results)
    words = [f"{counted[s]} {s}" for s in STATUSES if counted[s]]
    words += [f"{len(x.records.open)} without a result (in flight, or lost)"] * bool(x.records.open)
    words += [f"{len(x.records.damaged)} with a damaged record"] * bool(x.records.damaged)
    rows = [
        (
            r.run.stage,
            r.run.name,
            r.attempt,
            r.status,
            r.run.seed,
            f"{r.steps_done}/{r.run.num_iterations}",
            number(r.val_loss, ".6f"),
            duration(r.wall_s),
            r.reason,
        )
        for r in x.records.results
    ]
    rows += [(None, name, n, "no result", *[None] * 5) for name, n, _ in x.records.open]
    for path, why in x.records.damaged:
        where = path.parent.relative_to(x.exp_dir).as_posix()
        rows.append((None, where, None, "damaged", *[None] * 4, why))
    head = (">st", "run", ">try", "status", ">seed", ">steps", ">val loss", ">wall", "reason")
    return [*paragraph(f"Attempts: {', '.join(words) or 'none'}."), *table(head, rows)]


def failed(x: Evidence) -> list[str]:
    lines = []
    latest = x.records.latest()
    for r in x.records.results:
        if r.status != "ok":
            later = latest[r.run.name]
            then = f"; attempt {later.attempt}: {later.status}" if later is not r else ""
            what = f"{r.run.name}, attempt {r.attempt}: {r.status} at step {r.steps_done}{then}"
            lines += paragraph(what) + paragraph(r.reason, indent=6)
    for path, why in x.records.damaged:
        lines += paragraph(f"{path.relative_to(x.exp_dir)}: not believed: {why}", hang=4)
    return lines or ["  None."]


def spent(x: Evidence) -> list[str]:
    """The ledger: every attempt is paid for, failed ones too."""
    hours = machine_seconds(x.records.results) / 3600
    lost = hours - machine_seconds([r for r in x.records.results if r.settled]) / 3600
    budget = x.standing.experiment.budget_hours
    lines = pairs(
        [
            ("spent", f"{hours:.2f} h of machine time, start-up and validation included"),
            ("thereof", f"{lost:.2f} h on attempts that crashed, hung or were interrupted"),
            ("budget", f"{budget:g} h ({hours / budget:.0%} spent)" if is_budget(budget) else None),
        ]
    )
    if x.records.open:
        lines += paragraph("Attempts without a result are not counted.")
    return lines


def is_budget(value) -> bool:
    return is_number(value) and value > 1e-6


ANSWER = "The answer"
CHAPTERS: dict[str, Callable[[Evidence], list[str]]] = {
    "Final validation": validated,
    "What was asked": asked,
    "What was held fixed": held_fixed,
    "Deviations and overrides": deviations,
    "Decisions, with their rules": decided,
    "Arms against their baseline": compared,
    "Time": timed,
    "Every run, every attempt": every_run,
    "Runs that failed": failed,
    "Hours": spent,
}


def opening(x: Evidence) -> str:
    """The answer, with all that speaks against believing it; what the screen gets."""
    lines = paragraph(f"Staged ablation of auxiliary prediction heads: {x.exp_dir.name}", 0)
    for words in x.changed:
        lines += ["", *paragraph(f"Beware: {words}", indent=0)]
    lines += ["", ANSWER, "=" * len(ANSWER), *answer(x)]
    lines += [line for note in x.notes for line in paragraph(f"Beware: {note}", hang=2)]
    return "\n".join(lines) + "\n"


def chapters(x: Evidence, figures: Mapping[str, str]) -> str:
    """All that follows; figures maps each name to what became of it."""
    lines = []
    for n, (title, chapter) in enumerate(CHAPTERS.items(), 1):
        lines += ["", heading := f"{n}. {title}", "=" * len(heading), *chapter(x)]
    lines += ["", heading := f"{len(CHAPTERS) + 1}. Figures", "=" * len(heading)]
    lines += pairs(figures.items())
    return "\n".join(lines) + "\n"


def render_report(x: Evidence, figures: Mapping[str, str]) -> str:
    return opening(x) + chapters(x, figures)
