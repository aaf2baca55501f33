"""What does a report say?  The answer, then a chapter for each question that a reader has."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from ablation.plan.decision import STOP, Decision, is_overridden
from ablation.plan.looks import NO_EFFECT
from ablation.report.comparisons import (
    SELECTING,
    ArmRuns,
    Block,
    Race,
    blocks_of,
    by_packing,
    contrast,
    dunnett,
    final_block,
    race,
    ratio,
    reference,
    within_seeds,
)
from ablation.report.content import (
    Column,
    Content,
    Heading,
    Pairs,
    Paragraph,
    Role,
    Table,
    bare_p,
    columns,
    number,
    numbered,
    percent,
    span,
)
from ablation.report.evidence import FIXED, Evidence, field, in_words, simple
from ablation.report.validation import effect_line, excluded, generator, validated
from ablation.runs.run import STATUSES, RunResult, arm_from, duration, machine_seconds, part_of
from ablation.runs.untrusted import is_count, is_number
from ablation.study.overrides import Override
from ablation.study.study import Metric

# ---------------------------------------------------------------------------------------------
# The answer

SELECTS = "exploratory and biased: what is picked as the best of several looks better than it is"


RECORDED = "Recorded by the version that ran it, and not checked:"


def answer(evidence: Evidence) -> Iterator[Content]:
    """The latest decision, and no more than the data carry."""
    done = sum(r.status == "ok" for r in evidence.records.latest().values())
    step = evidence.standing.step
    if step is None:
        yield Paragraph(f"No decision is shown: see the top. {done} run(s) have finished.")
        for n in sorted(evidence.recorded)[-1:]:
            yield Paragraph(f"{RECORDED} {evidence.stage_name(n)}: {evidence.recorded[n].title}.")
        return
    ended = f"Ended: {step.ended}."
    state = ended if step.ended else "NOT FINISHED: the plan has not come to an end."
    if not done:
        yield Paragraph(f"There is no answer yet: no run has finished. {state}")
    elif not evidence.decisions:
        yield Paragraph(f"No stage is decided yet; {done} run(s) have finished. {state}")
    else:
        yield from conclusion(evidence, evidence.decisions[max(evidence.decisions)])
        yield Paragraph(state)


def conclusion(evidence: Evidence, last: Decision) -> Iterator[Content]:
    """The last decision, with what qualifies it."""
    stopped = "stopped by rule; inconclusive. " if last.verdict == STOP else ""
    yield Paragraph(f"{evidence.stage_name(last.stage)}: {stopped}{last.title}.", Role.ITEM)
    for because in last.because if last.stage else ():
        if not because.startswith("A null result is a result"):  # said below, with its level
            yield Paragraph(because, Role.DETAIL)
    if last.stage == 4:
        block = final_block(evidence)
        yield Paragraph(effect_line(evidence, block), Role.DETAIL)
        if null := block and excluded(evidence, block):
            shown = evidence.verdict == NO_EFFECT
            opening = "A null result is a result: " if shown else "Not shown either way, but "
            yield Paragraph(f"{opening}{null}.", Role.DETAIL)
    if last.stage == 0:
        yield Paragraph("No rule was registered, so nothing is concluded beyond the tables.")
    elif last.stage in SELECTING:
        yield Paragraph(
            f"Numbers of this stage are {SELECTS}. They choose what runs next; only stage 4, on"
            " seeds used nowhere else, can confirm an effect."
        )
        if last.stage == 1:
            yield Paragraph("Short runs say little about full ones.")


# ---------------------------------------------------------------------------------------------
# What was asked, and what was held fixed

SCALE = ("n_layer", "model_dim", "n_head", "sequence_length", "batch_size", "val_tokens")


def asked(evidence: Evidence) -> Iterator[Content]:
    """The registration in words: whatever it holds, it is only shown."""
    r, profile = evidence.registered, field(evidence.registered, "profile")
    counted = evidence.study.trainer.counted
    known = [("name", field(profile, "name"))]
    known += [(name, field(profile, "scale", name)) for name in SCALE]
    scale = ", ".join(f"{name} {simple(v)}" for name, v in known if v is not None)
    on_file = ", ".join(simple(field(r, name)) for name in ("created", "hash"))
    rows = [
        ("question", field(r, "study", "question")),
        ("hypothesis", field(r, "study", "hypothesis") or None),
        ("plan", r.get("plan")),
        ("profile", scale.removeprefix("name ") if evidence.study.trainer.is_ours else None),
        ("full run", f"{simple(r.get('full_iterations'))} {counted}"),
        ("estimand", r.get("estimand")),
        ("improvement", f"{evidence.metric.difference}, positive is good"),
        ("failures", r.get("failure_rule")),
        ("budget", f"{simple(r.get('budget_hours'))} h of machine time"),
        ("on file", f"{on_file}; see the top") if evidence.changed else ("registered", on_file),
    ]
    numbers = [str(stage.number) for stage in evidence.standing.stages]
    stages = [(f"stage {n}", stage_line(field(r, "stages", n), counted)) for n in numbers]
    empty = {f"stage {n}": why for n, why in evidence.empty_stages.items()}
    stages = [(name, f"{line}; {empty[name]}" if name in empty else line) for name, line in stages]
    yield Pairs((*rows, *stages))


def stage_line(registered, counted: str) -> str:
    """One registered stage: what it asks, and of which runs."""
    arms, seeds = field(registered, "arms"), field(registered, "seeds")
    names = [simple(field(arm, "name")) for arm in few(arms)]
    between = " to " if isinstance(seeds, dict) else ", "  # a stage's first and last, or a list
    listed = between.join(map(simple, few(seeds)))
    name, what, steps = (
        simple(field(registered, key)) for key in ("name", "question", "num_iterations")
    )
    return f"{name}: {what} {steps} {counted}, seeds {listed}: {', '.join(names) or 'no arm'}"


MOST_SHOWN = 100  # entries that are shown: chosen, as no plan registers as many


def few(value) -> list:
    """The first entries of a list or an object, of anything else none."""
    values = value.values() if isinstance(value, dict) else value
    return list(islice(values, MOST_SHOWN)) if isinstance(value, dict | list) else []


def held_fixed(evidence: Evidence) -> Iterator[Content]:
    """What was registered as fixed; where runs differ from it all the same is a deviation."""
    r = evidence.registered
    steps, scale = r.get("full_iterations"), field(r, "profile", "scale")
    batch, length = field(scale, "batch_size"), field(scale, "sequence_length")
    rows: list[tuple[str, str | None]] = []
    if all(map(is_count, (steps, batch, length))):
        count = f"{batch * length:,} a step, {steps * batch * length:,} a full run"
        same = "arms that share a seed see the same ones in the same order"
        rows.append(("tokens", f"{count}; {same}"))
    ours = evidence.study.trainer.is_ours
    rows += [(n, in_words(field(r, *at))) for n, at in FIXED.items() if ours or n != "U-net skips"]
    if own := codes_of_arms(evidence):
        rows.append(("arms' own code", ", ".join(own)))
    concluded = [e.evidence for e in evidence.records.results if e.evidence]
    rows += [("a run counts", f"by what is told: {concluded[0]}")] if concluded else []
    if evidence.study.trainer.seed == "none":
        rows.append(("seed", "the trainer has none: repeats are independent, pairs do not count"))
    costs, noun = evidence.study.words.costs, evidence.metric.noun
    not_fixed = f"training time and parameters: {costs}, so see {noun} at equal time"
    yield Pairs((*rows, ("not fixed", not_fixed)))


def deviations(evidence: Evidence) -> Iterator[Content]:
    """What was done otherwise than registered, or could not be: all of it, on purpose or not."""
    found = [*decided_otherwise(evidence), *read_otherwise(evidence), *run_otherwise(evidence)]
    yield from (Paragraph(text, Role.ITEM) for text in found or ["None."])


def decided_otherwise(evidence: Evidence) -> Iterator[str]:
    """What the folder, a person or the budget changed."""
    yield from (f"Beware: {change}" for change in evidence.changed)
    for o in evidence.standing.experiment.overrides:
        stage = f"stage {o.stage}" if o.stage else ""
        words = ": ".join(filter(None, (stage, o.kind, override_in_words(o))))
        yield f"Override {simple(o.when)}: {words}"
    if step := evidence.standing.step:
        yield from (f"Cut by the budget: {cut}" for cut in step.budget_cuts)


def override_in_words(o: Override) -> str | None:
    """What was decided instead: which arm, or which attempts are not held against their runs."""
    if o.kind == "by_hand":
        return arm_from(o.value["arm"]).label
    if o.kind == "retry":
        names = few([f"{name}, attempt {attempt}" for name, attempt in o.value["attempts"]])
        return f"{'; '.join(names)}: {simple(o.value.get('why'))}"
    return in_words(o.value)


def read_otherwise(evidence: Evidence) -> Iterator[str]:
    """What of the folder was not read."""
    if evidence.notes:
        yield "Files that could not be believed: see the answer, above."
    if stray := evidence.records.stray:
        folders = (folder.relative_to(evidence.exp_dir) for folder in few([*stray]))
        names = ", ".join(folder.as_posix() for folder in folders)
        yield f"Passed over, as copies of other runs or links: {names}"


def run_otherwise(evidence: Evidence) -> Iterator[str]:
    """What runs differ in beside their arm, and which failed or are missing."""
    as_asked = {("code", code) for code in codes_of_arms(evidence)}  # it differs on purpose
    for name in FIXED:
        told = (words[name] for words in evidence.circumstances.values() if name in words)
        seen = Counter(value for value in told if (name, value) not in as_asked)
        if len(seen) > 1:
            which = "; ".join(f"{value} ({n} runs)" for value, n in seen.most_common())
            yield f"Beware, runs differ in {name}: {which}"
    counted = Counter(r.status for r in evidence.records.results if r.status != "ok")
    if counted:
        words = ", ".join(f"{counted[status]} {status}" for status in STATUSES if counted[status])
        yield f"Attempts that failed: {words}; see below for each"
    for n, decision in evidence.decisions.items():
        if decision.missing:
            yield f"{evidence.stage_name(n)}: no result of {', '.join(decision.missing)}"


def codes_of_arms(evidence: Evidence) -> list[str]:
    """The registered code of the arms that have another than the baseline."""
    rows = few(evidence.registered.get("codes_of_arms"))
    return list(dict.fromkeys(simple(field(row, "hash")) for row in rows))


def decided(evidence: Evidence) -> Iterator[Content]:
    """Every stage with its decision, the rule and what it rests on."""
    for stage in evidence.standing.stages:
        decision = evidence.decisions.get(stage.number)
        none = "not shown: see the top" if evidence.changed else "not decided"
        title = decision.title if decision else none
        yield Paragraph(f"{evidence.stage_name(stage.number)}: {title}", Role.ITEM)
        rule = field(evidence.registered, "stages", str(stage.number), "rule")
        yield Paragraph(f"rule: {decision.rule if decision else simple(rule)}", Role.RULE)
        if recorded := evidence.recorded.get(stage.number):
            yield Paragraph(f"{RECORDED} {recorded.title}", Role.NOTE)
            yield from (Paragraph(line, Role.NOTE) for line in recorded.lines)
        if decision is None:
            continue
        yield from (Paragraph(line, Role.NOTE) for line in (*decision.because, *decision.facts))
        if is_overridden(decision, evidence.standing.experiment.overrides):
            gone_on = "OVERRIDDEN: --ignore_gate was given; the plan went on."
            yield Paragraph(gone_on, Role.DETAIL)


# ---------------------------------------------------------------------------------------------
# What the runs say

ARM_COLUMNS = columns(
    *("arm", "n", "mean", "sd"),
    *("seeds", "improvem.", "95 % interval", "p", "d"),
    left=("arm",),
)
ARM_NOTES = (
    "n: runs that finished; mean and sd: of their {words}. seeds: those of which arm and baseline"
    " both have an outcome; the rest is of these alone. improvem.: {difference},"
    " {unit}, with its Welch interval; p: Welch, two-sided; d: Cohen's. Where a stage has no"
    " baseline, its arms are compared with the configuration that a note names, and not tested."
    f" Stages are not pooled: they differ in seeds, or in length. Stages that select are {SELECTS}."
)
MULTIPLE = "Several arms against one baseline: p of the table are not corrected for their number."
SEQUENTIAL = (
    "The plan looked as pairs came, and within them: its decision allows for that, this p does not."
)


def arm_row(metric: Metric, block: Block, group: ArmRuns, base: ArmRuns | None) -> tuple:
    found, (mean, sd) = contrast(block, group), group.mean_sd()
    difference, beside = found.comparison, within_seeds(base, group)
    return (
        group.label,
        len(group.losses),
        number(mean and metric.sign * mean, ".4f"),
        number(sd, ".4f"),
        found.seeds or (beside and len(beside.arm)),
        number(beside.improvement if beside else None, "+.4f"),
        difference and span(difference.ci_low, difference.ci_high),
        None if found.p is None else bare_p(found.p),
        number(difference and difference.cohens_d, "+.1f"),
    )


def arm_notes(evidence: Evidence, block: Block, base: ArmRuns | None) -> Iterable[str]:
    """What a dash means, what a mean leaves out, which configuration a name is."""
    reasons: dict[str, list[str]] = {}
    another = base is not None and base is not block.baseline
    for group in block.groups:
        left_out = group.lost and f"{group.lost}, not in the mean"
        one = "n = 1, no sd" if group is block.baseline and len(group.losses) == 1 else ""
        dash = "" if another else contrast(block, group).why
        for why in filter(None, (dash, left_out, one, not_compared(block, group))):
            reasons.setdefault(why, []).append(group.label)
    if base and another:
        of = f"{base.label} of stage {base.runs[0].run.stage}"
        yield f"No baseline of this stage and length ran: compared with {of}, on the same seeds."
    yield from (f"{', '.join(names)}: {why}." for why, names in reasons.items())
    for group in block.arms:
        named = group.arm.label.startswith(f"{group.label} (")
        yield group.arm.label if named else f"{group.label} = {group.arm.label}"
    if sum(bool(g.losses) for g in block.arms) > 1 and len(block.baseline_losses) > 1:
        yield MULTIPLE
        if corrected := dunnett(block, generator()):
            listed = ", ".join(f"{name} {bare_p(p)}" for name, p in corrected.items())
            yield f"Dunnett's p, for {len(corrected)} arms, assuming one sd: {listed}."
    if evidence.is_sequential and block.stage == 4:
        yield SEQUENTIAL


def not_compared(block: Block, group: ArmRuns) -> str:
    """How many finished runs of an arm the difference is not of, in words; empty when none."""
    seeds = block.baseline.seeds if block.baseline else set()
    other = sum(r.run.seed not in seeds for r in group.ok)
    if not other or not contrast(block, group).comparison:
        return ""
    return f"{other} of {len(group.ok)} runs not compared: no baseline of their seed"


def compared(evidence: Evidence) -> Iterator[Content]:
    """Every arm against the baseline of its block."""
    metric = evidence.metric
    difference = "baseline mean - mean" if metric.sign > 0 else "mean - baseline mean"
    terms = {"words": metric.words, "difference": difference, "unit": metric.unit or metric.words}
    yield Paragraph(ARM_NOTES.format(**terms))
    for stage, why in evidence.empty_stages.items():
        yield Paragraph(f"{evidence.stage_name(stage)}: {why}", Role.SUBHEADING)
    for block in blocks_of(evidence):
        base = reference(evidence, block)
        yield Paragraph(block.title, Role.SUBHEADING)
        yield Table(
            ARM_COLUMNS, tuple(arm_row(metric, block, group, base) for group in block.groups)
        )
        yield from (Paragraph(note, Role.NOTE) for note in arm_notes(evidence, block, base))


TIME_NOTES = (
    "Training time, without start-up and validation, compared between runs of equal packing only;"
    " losses, and times to a loss, on shared seeds."
    " ratio: of training time, to the baseline's. arrived: runs that reached the baseline's mean"
    " final loss. to it: mean time to that, interpolated; a run that never got there enters with"
    " its full time. saved: of that time, with its interval for one look. equal steps, equal time:"
    " improvement of the final loss, and after the training time at which the first run ended, when"
    " a slower arm is not yet through its cooldown."
)
COST_COLUMNS = columns(
    *("arm", "n", "train, s", "sd", "ratio", "ms/step", "wall, s", "peak MiB"), left=("arm",)
)
RACE_COLUMNS = columns(
    *("arm", "arrived", "to it, s", "saved", "equal steps", "equal time"), left=("arm",)
)


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


def race_row(block: Block, group: ArmRuns, found: Race) -> tuple:
    steps, time = contrast(block, group).comparison, found.at_equal_time
    return (
        group.label,
        f"{found.arrived} of {found.runs}",
        number(found.time_s, ".1f"),
        percent(found.saved),
        number(steps and steps.improvement, "+.4f"),
        number(time and time.improvement, "+.4f"),
    )


def timed(evidence: Evidence) -> Iterator[Content]:
    """What every arm costs in time, and what it saves."""
    packings = list(dict.fromkeys(map(evidence.packing, evidence.records.latest().values())))
    yield Paragraph(TIME_NOTES)
    yield Paragraph(f"Packing: {'; '.join(packings) or 'no run yet'}.")
    for whole in blocks_of(evidence):
        for packing, block in by_packing(evidence, whole).items():
            about = f": {packing}" if len(packings) > 1 else ""
            yield Paragraph(whole.title + about, Role.SUBHEADING)
            yield Table(COST_COLUMNS, tuple(cost_row(block, group) for group in block.groups))
            races = [(g, race(block, g, evidence.design.alpha)) for g in block.arms]
            if rows := tuple(race_row(block, g, found) for g, found in races if found):
                yield Table(RACE_COLUMNS, rows)


# ---------------------------------------------------------------------------------------------
# The records


def run_columns(metric: Metric) -> tuple[Column, ...]:
    return columns(
        *("st", "run", "try", "status", "seed", "steps", metric.words, "wall", "reason"),
        left=("run", "status", "reason"),
    )


def every_run(evidence: Evidence) -> Iterator[Content]:
    """Every attempt, in the order of the records."""
    rows = [attempt_row(evidence.metric, r) for r in evidence.records.results]
    rows += [(None, a.run_name, a.number, "no result", *[None] * 5) for a in evidence.records.open]
    for path, why in evidence.records.damaged:
        where = path.parent.relative_to(evidence.exp_dir).as_posix()
        rows.append((None, where, None, "damaged", *[None] * 4, why))
    yield Paragraph(f"Attempts: {', '.join(attempts(evidence)) or 'none'}.")
    yield Table(run_columns(evidence.metric), tuple(rows))


def attempts(evidence: Evidence) -> Iterator[str]:
    """How many there are of each kind, in words."""
    counted = Counter(r.status for r in evidence.records.results)
    yield from (f"{counted[status]} {status}" for status in STATUSES if counted[status])
    if evidence.records.open:
        yield f"{len(evidence.records.open)} without a result (in flight, or lost)"
    if evidence.records.damaged:
        yield f"{len(evidence.records.damaged)} with a damaged record"


def attempt_row(metric: Metric, r: RunResult) -> tuple:
    return (
        r.run.stage,
        r.run.name,
        r.attempt,
        r.status,
        r.run.seed,
        f"{r.steps_done}/{r.run.num_iterations}",
        number(r.val_loss and metric.sign * r.val_loss, ".6f"),
        duration(r.wall_s),
        r.reason,
    )


def failed(evidence: Evidence) -> Iterator[Content]:
    """Every attempt that failed, with its reason in full, and every record that is not believed."""
    latest = evidence.records.latest()
    for r in evidence.records.results:
        if r.status != "ok":
            later = latest[r.run.name]
            then = f"; attempt {later.attempt}: {later.status}" if later is not r else ""
            what = f"{r.run.name}, attempt {r.attempt}: {r.status} at step {r.steps_done}{then}"
            yield Paragraph(what)
            yield Paragraph(r.reason, Role.REASON)
    for path, why in evidence.records.damaged:
        yield Paragraph(f"{path.relative_to(evidence.exp_dir)}: not believed: {why}", Role.FILE)
    if all(r.status == "ok" for r in evidence.records.results) and not evidence.records.damaged:
        yield Paragraph("None.")


def spent(evidence: Evidence) -> Iterator[Content]:
    """The ledger: every attempt is paid for, failed ones too."""
    spent_s = machine_seconds(evidence.records.results)
    lost_s = spent_s - machine_seconds([r for r in evidence.records.results if r.has_outcome])
    budget = evidence.standing.experiment.budget_hours
    known = is_budget(budget)
    share = f"{budget:g} h ({spent_s / 3600 / budget:.0%} spent)" if known else None
    spent, lost = (part_of(part_s, budget if known else 1.0) for part_s in (spent_s, lost_s))
    yield Pairs(
        (
            ("spent", f"{spent} of machine time, start-up and validation included"),
            ("thereof", f"{lost} on attempts that crashed, hung or were interrupted"),
            ("budget", share),
        )
    )
    if evidence.records.open:
        yield Paragraph("Attempts without a result are not counted.")


def is_budget(value) -> bool:
    """Whether a share of it can be said."""
    return is_number(value) and value > 1e-6


# ---------------------------------------------------------------------------------------------
# The report, chapter by chapter

CHAPTERS = {
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


def opening(evidence: Evidence) -> Iterator[Content]:
    """The answer, with all that speaks against believing it; what the screen gets."""
    about = evidence.study.words.title or evidence.study.name
    title = f"Staged ablation of {about}: {evidence.exp_dir.name}"
    yield Paragraph(title, Role.TITLE)
    yield from (Paragraph(f"Beware: {words}", Role.WARNING) for words in evidence.changed)
    yield Heading("The answer")
    yield from answer(evidence)
    yield from (Paragraph(f"Beware: {note}", Role.ITEM) for note in evidence.notes)


def chapters(evidence: Evidence, figures: Mapping[str, str]) -> Iterator[Content]:
    """All that follows; figures maps each name to what became of it."""
    yield from numbered(CHAPTERS, evidence, figures)


def report(evidence: Evidence, figures: Mapping[str, str]) -> Iterator[Content]:
    """The whole report."""
    yield from opening(evidence)
    yield from chapters(evidence, figures)
