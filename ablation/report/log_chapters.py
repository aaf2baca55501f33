"""What does a report on raw logs say?  The answer, then the chapters of an experiment's report.

Nobody registered these runs: no plan says how many there were to be, so every p is that of one
look, and says so.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ablation import stats
from ablation.plan.decision import p_text
from ablation.report.chapters import (
    ARM_COLUMNS,
    COST_COLUMNS,
    RACE_COLUMNS,
    arm_row,
    cost_row,
    race_row,
)
from ablation.report.comparisons import (
    Block,
    Contrast,
    contrast,
    dunnett,
    paired_losses,
    race,
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
    level,
    number,
    numbered,
    span,
)
from ablation.report.logs import Groups, LogGroup, Row
from ablation.report.rules import (
    VERDICTS,
    CommunityRule,
    Judged,
    Lost,
    bpb_per_nat,
    judged,
    more_words,
)
from ablation.report.validation import Resolution, by_welch, generator
from ablation.study.profiles import Design
from ablation.study.study import Metric

KEYS = (  # of what programs are told; docs/logs.md
    *("schema", "metric", "unit", "better", "level", "delta_eq", "baseline", "groups"),
    *("comparisons", "rules", "notes", "runs"),
)


@dataclass(frozen=True)
class Findings:
    """Groups of logs, and by what terms they are judged: what an `Evidence` is of a folder."""

    groups: Groups
    metric: Metric
    design: Design
    rules: tuple[CommunityRule, ...] = ()

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.groups.blocks

    @cached_property
    def arms(self) -> list[tuple[Block, LogGroup, Contrast]]:
        """Every group that is compared with the baseline of its block, and what comes of it."""
        return [
            (block, arm, contrast(block, arm, self.design.alpha))
            for block in self.blocks
            for arm in groups_in(block)
            if block.baseline and arm is not block.baseline
        ]

    @cached_property
    def judgements(self) -> list[tuple[LogGroup, Judged]]:
        """Every rule on every group but the baseline; on that one where it is alone."""
        found = []
        alone = len(self.groups.names) == 1
        for rule in self.rules:
            for block in self.blocks:
                base, groups = block.baseline, groups_in(block)
                arms = [group for group in groups if group is not base] or groups
                for group in arms:
                    against = base if isinstance(base, LogGroup) and base is not group else None
                    if against or alone or not rule.needs_baseline:  # else a note says why not
                        found.append((group, judged_on(self, rule, group, against)))
        return found


def groups_in(block: Block) -> list[LogGroup]:
    return [group for group in block.groups if isinstance(group, LogGroup)]


def judged_on(f: Findings, rule: CommunityRule, group: LogGroup, base: LogGroup | None) -> Judged:
    """ValueError where the rule lacks what it needs."""
    both = [g for g in (group, base) if g is not None]
    told = [row.told for g in both for row in g.rows if row.counts]
    ends = [dict((n.rpartition(" ")[2], v) for n, v in each.beside) for each in told]
    pairs = [(e["val_loss"], e["val_bpb"]) for e in ends if {"val_loss", "val_bpb"} <= e.keys()]
    return judged(
        rule,
        group.losses,
        base.losses if base else None,
        sign=f.metric.sign,
        metric=f.metric.name,
        ratio=bpb_per_nat(pairs) if len(pairs) == len(told) else None,
        lost=lost_of(group),
        baseline_lost=lost_of(base) if base else Lost(),
    )


def lost_of(group: LogGroup) -> Lost:
    count = Counter(row.told.status for row in group.rows)
    others = sum(n for status, n in count.items() if status not in ("ok", "diverged", "twice"))
    return Lost(count["diverged"], others)


# ---------------------------------------------------------------------------------------------
# The answer

ONE_LOOK = (
    "Every p and interval is that of one look, at numbers of runs fixed beforehand: who tests again"
    " after each added run finds differences that are not there."
)


def opening(f: Findings) -> Iterator[Content]:
    """The answer, with all that speaks against believing it; what the screen gets."""
    first, *others = f.groups.names
    against = f"{', '.join(others)} against {first}" if others else first
    yield Paragraph(f"Logs: {against}, by {f.metric.words}", Role.TITLE)
    yield Heading("The answer")
    for block in f.blocks:
        if not block.baseline or (not block.arms and len(f.groups.parts) == 1):
            for group in groups_in(block):
                yield Paragraph(mean_line(f, group), Role.ITEM)
    for block, arm, found in f.arms:
        yield Paragraph(effect_line(f, block, arm, found), Role.ITEM)
        yield from (Paragraph(text, Role.DETAIL) for text in verdict_lines(f, block, arm, found))
    for group, judgement in f.judgements:
        yield Paragraph(f"{group.name}: {judgement_line(judgement)}{without(group)}.", Role.ITEM)
    yield from (Paragraph(f"Beware: {note}", Role.ITEM) for note in f.groups.notes)


def judgement_line(j: Judged) -> str:
    """Met or not, by how much, and how many runs more would decide it."""
    found, words = j.deciding, f"rule {j.rule.name}: {VERDICTS[j.met]}"
    if found.by is not None:
        side = "inside" if found.by >= 0 else "short of"
        words += f", {abs(found.by):.5f} {side} {found.form.bound:g}"
    if found.p is not None:
        words += f", one-sided {p_text(found.p)}"
    if not j.met and found.more:
        words += f"; {more_words(found.more)} would meet it at the present mean"
    return words


def mean_line(f: Findings, group: LogGroup) -> str:
    found = stats.mean_interval(group.losses, f.design.alpha) if group.losses else None
    if found is None:
        return f"{group.name}: no run counts{without(group)}."
    low, high = ends_as_logged(f, found.ci_low, found.ci_high)
    within = "no spread: no interval" if low is None else f"{low:.4f} to {high:.4f}"
    about = f"{level(f.design.alpha)} interval {within}" if low is not None else within
    value = f.metric.text(found.mean, 5)
    sd = "" if found.sd is None else f", sd {found.sd:.4f}"
    return f"{group.name}: mean {value}{sd}, {about}, n = {found.n}{without(group)}."


def ends_as_logged(f: Findings, low: float | None, high: float | None):
    if low is None or high is None:
        return None, None
    return sorted((f.metric.sign * low, f.metric.sign * high))


def without(*groups: LogGroup) -> str:
    """What the numbers before it leave out, as the end of a sentence."""
    lost = [f"{g.name}: {g.lost}" for g in groups if g.lost]
    return f"; not in these numbers: {'; '.join(lost)}" if lost else ""


def base_of(block: Block) -> LogGroup:
    assert isinstance(block.baseline, LogGroup)
    return block.baseline


def effect_line(f: Findings, block: Block, arm: LogGroup, found: Contrast) -> str:
    base, difference = base_of(block), found.comparison
    ns = f"n = {len(arm.losses)} against {len(base.losses)}{without(arm, base)}"
    if difference is None:
        return f"{arm.name}: no difference of means, {by_ranks(found)}, {ns}."
    if found.ranked:
        how = f"no interval, {by_ranks(found)}"
    elif difference.ci_low is None:
        alone = min(len(arm.losses), len(base.losses)) < 2
        how = f"{'one run alone' if alone else 'no spread'}: no interval and no test"
    else:
        within = span(difference.ci_low, difference.ci_high)
        how = f"{level(f.design.alpha)} interval {within}, {p_text(found.p)} (Welch, two-sided)"
    return f"{arm.name}: improvement {f.metric.delta(difference.improvement)}, {how}, {ns}."


def by_ranks(found: Contrast) -> str:
    return f"{p_text(found.p)} (exact worst rank: a diverged run is worse than any)"


def verdict_lines(f: Findings, block: Block, arm: LogGroup, found: Contrast) -> Iterator[str]:
    """What the interval says, in words."""
    base, difference = base_of(block), found.comparison
    if found.p is None:
        return
    if found.ranked:
        sides = (base.losses, arm.losses, base.diverged, arm.diverged)
        how = "better" if stats.worst_rank(*sides).favours_arm else "worse"
        sure = "" if found.p < f.design.alpha else "; not shown"
        yield f"By rank {arm.name} is {how}{sure}."
        return
    assert difference is not None
    if found.p < f.design.alpha:
        how = "better" if difference.improvement > 0 else "worse"
        yield f"{arm.name} is {how} than {base.name}, at level {f.design.alpha:g}."
    else:
        yield f"No difference is shown at level {f.design.alpha:g}; see what these runs could find."
    inside = equivalence(f, base, arm)
    if inside and (found.p >= f.design.alpha or inside.startswith(EQUIVALENT)):
        yield inside


EQUIVALENT = "Equivalent"


def two_one_sided(f: Findings, base: LogGroup, arm: LogGroup) -> tuple[float, float, bool] | None:
    """Two one-sided tests (TOST): the interval of level 1 - 2 alpha, and whether it lies inside
    ±delta_eq. None where there is none, also where a run diverged: the others are the better ones.
    """
    if not base.losses or not arm.losses or base.diverged or arm.diverged:
        return None
    c, delta = stats.compare(base.losses, arm.losses, 2 * f.design.alpha), f.design.delta_eq
    if c.ci_low is None or c.ci_high is None:
        return None
    return c.ci_low, c.ci_high, -delta < c.ci_low and c.ci_high < delta


def equivalence(f: Findings, base: LogGroup, arm: LogGroup) -> str:
    """The same in words; empty where there is none."""
    if not (found := two_one_sided(f, base, arm)):
        return ""
    low, high, inside = found
    words = EQUIVALENT if inside else "Not shown to be equivalent"
    about = f"{level(2 * f.design.alpha)} interval {span(low, high)}"
    bound = f"±{f.design.delta_eq:g} (--delta_eq)"
    return f"{words}: {about} {'inside' if inside else 'not inside'} {bound}."


# ---------------------------------------------------------------------------------------------
# Groups, and each against the baseline

GROUP_COLUMNS = (
    *columns(*("group", "n", "mean", "sd", "95 % interval", "steps"), left=("group",)),
    Column("not in it"),
)


def group_rows(f: Findings) -> Iterator[tuple]:
    for group in f.groups.parts:
        found = stats.mean_interval(group.losses, f.design.alpha) if group.losses else None
        low, high = ends_as_logged(f, found and found.ci_low, found and found.ci_high)
        yield (
            group.name,
            len(group.losses),
            number(found and f.metric.sign * found.mean, ".5f"),
            number(found and found.sd, ".5f"),
            None if low is None else f"{low:.4f} to {high:.4f}",
            group.length,
            group.lost,
        )


def groups_told(f: Findings) -> Iterator[Content]:
    yield Paragraph(
        f"n: runs with {f.metric.words} at their last step; mean, sd and interval"
        f" ({level(f.design.alpha)}, one-sample t) are of these. not in it: runs that were lost."
    )
    titles = [
        replace(c, title=f"{level(f.design.alpha)} interval") if "interval" in c.title else c
        for c in GROUP_COLUMNS
    ]
    yield Table(tuple(titles), tuple(group_rows(f)))


SEEDS = 4  # column of ARM_COLUMNS that such logs have no use for
NAME = Column("group")
COMPARED_COLUMNS = (NAME, *ARM_COLUMNS[1:SEEDS], *ARM_COLUMNS[SEEDS + 1 :], Column("not in it"))


def compared(f: Findings) -> Iterator[Content]:
    if not f.arms:
        yield Paragraph("One group alone is compared with nothing.")
        return
    yield Paragraph(
        f"improvem.: {f.metric.difference.replace('arm', 'group')}, positive is good; interval and"
        " p: Welch, two-sided; where a run diverged p is the exact worst-rank test's. d: Cohen's."
        f" {ONE_LOOK}"
    )
    for block in f.blocks:
        if block.baseline and block.arms:
            yield Table(COMPARED_COLUMNS, tuple(compared_rows(f, block)))
            yield from (Paragraph(note, Role.NOTE) for note in several_told(f, block))
    for block, arm, found in f.arms:
        yield Paragraph(f"{arm.name} against {base_of(block).name}", Role.SUBHEADING)
        yield Pairs(tuple(detail_rows(f, block, arm, found)))


def compared_rows(f: Findings, block: Block) -> Iterator[tuple]:
    for group in groups_in(block):
        row = arm_row(f.metric, block, group, block.baseline)
        improvement, interval, p, d = row[SEEDS + 1 :]
        if contrast(block, group).ranked:  # the runs that finished are only the better ones
            interval, d = None, None
        yield (*row[:SEEDS], improvement, interval, p, d, group.lost)


def several_told(f: Findings, block: Block) -> Iterator[str]:
    if len(block.arms) < 2:
        return
    corrected = dunnett(block, generator())
    yield "Several groups against one baseline: p of the table are not corrected for their number."
    if corrected:
        words = ", ".join(f"{name} {bare_p(p)}" for name, p in corrected.items())
        yield f"Dunnett's p, for {len(corrected)} groups, assuming one sd: {words}."
    else:
        yield "No Dunnett's p: it takes two runs of the baseline, two groups, and no divergence."


def detail_rows(
    f: Findings, block: Block, arm: LogGroup, found: Contrast
) -> Iterator[tuple[str, str]]:
    base, difference = base_of(block), found.comparison
    yield "n", f"{len(arm.losses)} against {len(base.losses)}{without(arm, base)}"
    if difference is None or found.ranked:
        yield "p", by_ranks(found)
    if difference is None:
        return
    share = difference.improvement / abs(difference.mean_baseline)
    yield "effect", f"improvement {f.metric.delta(difference.improvement)} ({share:+.2%})"
    if not found.ranked and difference.ci_low is not None:
        yield "interval", f"{span(difference.ci_low, difference.ci_high)}, {level(f.design.alpha)}"
        yield "p", f"{p_text(found.p)}, two-sided, Welch"
        yield "equivalence", equivalence(f, base, arm)
    if not found.ranked:
        yield "in pairs", pairs_line(f, base, arm)
    yield from resolution_rows(f, base, arm, difference)


def pairs_line(f: Findings, base: LogGroup, arm: LogGroup) -> str:
    """The paired t test, where both groups name the same seeds."""
    sides = paired_losses(base, arm)
    if not sides[0]:
        return "no: the groups do not name the same seeds"
    test = stats.paired(*sides, f.design.alpha)
    within = "no interval" if test.ci_low is None else span(test.ci_low, test.ci_high)
    left = len(base.losses) + len(arm.losses) - 2 * len(sides[0])
    others = f"; {left} run(s) of other seeds are not in it" if left else ""
    return f"{test.improvement:+.4f}, {within}, {p_text(test.p)}, n = {len(sides[0])} pairs{others}"


def resolution_of(f: Findings, base: LogGroup, arm: LogGroup) -> tuple[Resolution, float] | None:
    """What so many runs can find, with the sd of both; None where there is none."""
    sides = (base.losses, arm.losses)
    if min(map(len, sides)) < 2 or stats.compare(*sides).se is None:
        return None
    sd = math.sqrt(stats.pooled_variance(sides, 0.0, 0.0))
    return by_welch(sides, f.design, f.design.alpha), sd


def resolution_rows(
    f: Findings, base: LogGroup, arm: LogGroup, difference: stats.Comparison
) -> Iterator[tuple[str, str]]:
    """The minimum detectable effect, and how many runs more it takes."""
    if not (found := resolution_of(f, base, arm)):
        return
    resolution, sd = found
    n = min(len(base.losses), len(arm.losses))
    told = f"what n = {n} a group with sd {sd:.4f} find with power .8"
    yield "MDE80", f"{number(resolution.mde80, '.4f')} {f.metric.unit}: {told}"
    effects = {f"±{f.design.delta_eq:g} (--delta_eq)": f.design.delta_eq}
    if difference.improvement:
        effects["the improvement seen"] = difference.improvement
    for name, effect in effects.items():
        yield "runs needed", f"{more_runs(f, base, arm, effect, sd)} to find {name} with power .8"


def more_runs(f: Findings, base: LogGroup, arm: LogGroup, effect: float, sd: float) -> str:
    needed = stats.runs_needed(abs(effect), sd, alpha=f.design.alpha)
    if needed is None:
        return "more than 1000 a group"
    more = {g.name: needed - len(g.losses) for g in (base, arm)}
    words = [f"{n} more of {name}" for name, n in more.items() if n > 0]
    return f"{needed} a group ({' and '.join(words) or 'they are there'})"


# ---------------------------------------------------------------------------------------------
# Rules


def ruled(f: Findings) -> Iterator[Content]:
    if not f.rules:
        yield Paragraph("None was asked for: --rule NAME (docs/logs.md lists them).")
    for group, judgement in f.judgements:
        yield Paragraph(f"{group.name}{without(group)}", Role.SUBHEADING)
        yield from (Paragraph(words) for words in judgement.words)
        rule = judgement.rule
        yield Paragraph(f"source: {rule.source}; needs {rule.needs}", Role.NOTE)


# ---------------------------------------------------------------------------------------------
# Time

TIME_NOTES = (
    "Training time as the logs tell it. Whether the runs had one machine to themselves, or one of"
    " the same kind, logs do not say: between machines times differ by half a percent and more, so"
    " a small difference here is no evidence. to it: mean time to the baseline's mean final value,"
    " interpolated; a run that never got there enters with its full time. saved: of that time, with"
    " its interval. equal time: improvement after the time at which the first run ended."
)


def timed(f: Findings) -> Iterator[Content]:
    groups = [g for g in f.groups.parts if g.losses]
    silent = [g.name for g in groups if not g.numbers("train_time_ms")]
    if len(silent) == len(groups):
        yield Paragraph("These logs tell no training time.")
        return
    yield Paragraph(TIME_NOTES)
    if silent:
        yield Paragraph(f"No training time is told by every run of {', '.join(silent)}.")
    last = [c.title for c in COST_COLUMNS].index("ms/step") + 1  # what else a log does not tell
    for block in f.blocks:
        rows = tuple((*cost_row(block, g)[:last], g.lost) for g in groups_in(block) if g.losses)
        yield Table((NAME, *COST_COLUMNS[1:last], Column("not in it")), rows)
        races = [(g, race(block, g, f.design.alpha)) for g in block.arms if block.baseline]
        if mine := tuple(race_row(block, g, found) for g, found in races if found):
            yield Table((NAME, *RACE_COLUMNS[1:]), mine)


# ---------------------------------------------------------------------------------------------
# Every run

MOST_ROWS = 200  # that the text shows in full; runs.csv has all


def run_columns(metric: Metric) -> tuple[Column, ...]:
    return columns(
        *("group", "file", "seed", "steps", metric.words, "train, s", "status", "reason"),
        left=("group", "file", "status", "reason"),
    )


def run_row(f: Findings, row: Row) -> tuple:
    told = row.told
    return (
        row.group,
        short(row.file),
        row.seed,
        f"{told.step}/{told.length}" if told.length else told.step,
        number(told.loss if told.loss is None else f.metric.sign * told.loss, ".4f"),
        number(told.time_ms and told.time_ms / 1000, ".1f"),
        told.status,
        told.reason,
    )


def short(file: str, most: int = 36) -> str:
    return file if len(file) <= most else "…" + file[-most + 1 :]


def runs_counted(f: Findings) -> Iterator[Content]:
    count = Counter(row.told.status for row in f.groups.rows)
    yield Paragraph(f"Runs: {', '.join(f'{n} {status}' for status, n in count.items())}.")


def every_run(f: Findings) -> Iterator[Content]:
    yield from runs_counted(f)
    rows = f.groups.rows
    shown = rows if len(rows) <= MOST_ROWS else [row for row in rows if not row.counts][:MOST_ROWS]
    if len(shown) < len(rows):
        yield Paragraph(f"Shown are {len(shown)} that do not count; runs.csv has all {len(rows)}.")
    if shown:
        yield Table(run_columns(f.metric), tuple(run_row(f, row) for row in shown))
    for row in shown:
        if not row.counts:
            yield Paragraph(f"{row.group}, {row.file}: {row.told.status}", Role.TEXT)
            yield Paragraph(row.told.reason, Role.REASON)


CHAPTERS = {
    "Groups": groups_told,
    "Each group against the baseline": compared,
    "Rules": ruled,
    "Time": timed,
    "Every run": every_run,
}


def chapters(f: Findings, figures: Mapping[str, str]) -> Iterator[Content]:
    """All that follows; figures maps each name to what became of it."""
    yield from numbered(CHAPTERS, f, figures)


def report(f: Findings, figures: Mapping[str, str]) -> Iterator[Content]:
    yield from opening(f)
    yield from chapters(f, figures)
