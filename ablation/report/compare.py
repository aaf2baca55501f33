"""Which of these logs is better, and how sure is that?  A library call; it prints nothing.

from ablation.report import compare_logs

found = compare_logs({"baseline": "logs/old/*.txt", "mine": "logs/new/*.txt"})
print(found.text)
found.rows                                   # a list of dicts, a row for each run
found.figures["val_loss_comparison.png"]     # shown by a notebook
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ablation import stats
from ablation.report.comparisons import Block, Contrast, dunnett, paired_losses, race
from ablation.report.drawing import USUAL, Paper
from ablation.report.figures import Picture
from ablation.report.files import pictures_of, write_texts
from ablation.report.log_chapters import (
    Findings,
    base_of,
    chapters,
    opening,
    report,
    resolution_of,
    two_one_sided,
)
from ablation.report.logs import (
    LogGroup,
    Named,
    Progress,
    Row,
    group_of,
    groups_of,
    named_groups,
    read_all,
)
from ablation.report.page_sections import page_of_logs
from ablation.report.rules import Judged, rule_named, unit_of
from ablation.report.table import COLUMNS, TableRow, csv_of
from ablation.report.text import render
from ablation.report.validation import generator
from ablation.runs.formats import FORMATS
from ablation.runs.several import DEFAULT_METRIC, Asked
from ablation.runs.untrusted import is_number, printable
from ablation.study.profiles import PROFILES, Design, check_terms
from ablation.study.study import Metric

PICTURES = ("val_loss_comparison", "training_curves")  # of the figures of an experiment
Where = str | os.PathLike | Sequence[str | os.PathLike]  # a pattern, a folder, a file; or several


@dataclass(frozen=True)
class LogComparison:
    """What groups of logs say: as a table, as a text, as figures, and for programs."""

    findings: Findings
    paper: Paper = USUAL  # what its figures are drawn for

    @cached_property
    def rows(self) -> list[TableRow]:
        """A row for each run, with the columns of runs.csv."""
        return [row_of(self.findings, row) for row in self.findings.groups.rows]

    @cached_property
    def text(self) -> str:
        """The whole report."""
        outcomes = {name: p.why or "drawn" for name, p in self.figures.items()}
        return self.text_with(outcomes)

    def text_with(self, outcomes: Mapping[str, str]) -> str:
        return render(report(self.findings, outcomes))

    @property
    def answer(self) -> str:
        """Its beginning: what was found, and all that speaks against believing it."""
        return render(opening(self.findings))

    @property
    def chapters(self) -> str:
        """All that follows the answer, for a place where no figure can be written."""
        return render(chapters(self.findings, {}))

    @cached_property
    def figures(self) -> dict[str, Picture]:
        """By the name of its file: drawn, or why not."""
        return pictures_of(self.findings, self.paper, PICTURES)

    @cached_property
    def json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return document_of(self.findings, self.rows)

    def write(self, folder: Path) -> dict[str, str]:
        """Write report, runs.csv, figures and page; returns what became of each figure."""
        table = csv_of(self.rows)
        page = partial(page_of_logs, self.findings)
        return write_texts(folder, self.figures, self.text_with, table, page)


def compare_logs(
    logs: Mapping[str, Where] | Sequence[str],
    *,
    rule: str | Sequence[str] = (),
    metric: str = "",
    better: str = "lower",
    format: str = "",
    num_iterations: int = 0,
    delta_eq: float | None = None,
    alpha: float = 0.05,
    jobs: int = 0,
    progress: Progress | None = None,
    paper: Paper = USUAL,
) -> LogComparison:
    """Compare groups of logs, by name: patterns, folders or files; the one called baseline, or else
    the first, is the baseline. A list has texts NAME=FILES in place of that.

    rule: of a community, by name or by hand. metric: as the logs name it (default val_loss).
    format: a row of the table of formats (default: each log tells). num_iterations: steps of a
    whole run, for logs that do not tell it. delta_eq: the smallest improvement of interest. alpha:
    of two-sided tests. paper: what figures are drawn for. ValueError, in one line, for
    what cannot be meant or compared.
    """
    if isinstance(logs, Mapping):
        groups = [group_named(name, where) for name, where in logs.items()]
    else:
        groups = named_groups(logs)
    if not groups:
        raise ValueError("no group of logs: give one or more, as in {'baseline': 'logs/*.txt'}")
    rules = tuple(rule_named(text) for text in ([rule] if isinstance(rule, str) else rule))
    asked = asked_for(metric, better, format, num_iterations)
    design = design_of(delta_eq, alpha)
    read = groups_of(groups, read_all(groups, asked, progress, jobs), asked)
    called = metric_of(read.rows, asked)
    found = Findings(read, Metric(called, unit_of(called), better), design, rules)
    found.judgements  # noqa: B018 - a rule that lacks what it needs raises here
    return LogComparison(found, paper)


def group_named(name: str, where: Where) -> Named:
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise ValueError(f"group {name!r}: give a name")
    one = isinstance(where, str | os.PathLike)
    return group_of(name, [where] if one else list(where))  # type: ignore[list-item, arg-type]


def asked_for(metric: str, better: str, format: str, num_iterations: int) -> Asked:
    if format and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"format {printable(repr(format), 60)}: give one of {known}")
    if better not in ("lower", "higher"):
        raise ValueError(f"better {printable(repr(better), 60)}: give lower or higher")
    if type(num_iterations) is not int or not 0 <= num_iterations < 10**12:
        shown = printable(repr(num_iterations), 60)
        raise ValueError(f"num_iterations {shown}: give the steps of a whole run")
    return Asked(metric.strip(), better, format, num_iterations)


def design_of(delta_eq: float | None, alpha: float) -> Design:
    """Terms in force. delta_eq: by default that of the profile `speedrun`, .005 nats/token."""
    design = PROFILES["speedrun"].design
    if delta_eq is not None:
        if not is_number(delta_eq) or not delta_eq > 0:
            raise ValueError(f"delta_eq {printable(repr(delta_eq), 60)}: give a number above 0")
        design = replace(design, delta_eq=delta_eq, delta_target=max(4 * delta_eq, 0.02))
    design = replace(design, alpha=alpha)
    check_terms(design)
    return design


def metric_of(rows: Sequence[Row], asked: Asked) -> str:
    """What was asked for, or what these logs' forms end with. ValueError where they differ."""
    if asked.metric:
        return asked.metric
    counted = [row for row in rows if row.counts]
    found = {DEFAULT_METRIC.get(row.told.format, "val_loss") for row in counted}
    if len(found) > 1:
        raise ValueError(f"these logs end with {' and '.join(sorted(found))}: --metric gives one")
    return next(iter(found), "val_loss")


# ---------------------------------------------------------------------------------------------
# For programs


def row_of(f: Findings, row: Row) -> TableRow:
    told, sign = row.told, f.metric.sign
    values = (
        row.group,
        row.file,
        row.seed,
        told.step,
        None if told.loss is None else sign * told.loss,
        None if told.time_ms is None else told.time_ms / 1000,
        told.status,
        told.reason,
    )
    return dict(zip(COLUMNS, values, strict=True))


def document_of(f: Findings, rows: Sequence[TableRow]) -> dict[str, Any]:
    """Every key is always there; what is not known is None. Described in docs/logs.md."""
    return {
        "schema": 1,
        "metric": f.metric.name,
        "unit": f.metric.unit,
        "better": f.metric.better,
        "level": 1 - f.design.alpha,
        "delta_eq": f.design.delta_eq,
        "baseline": f.groups.names[0],
        "groups": [group_document(f, group) for group in f.groups.parts],
        "comparisons": [comparison_document(f, *each) for each in f.arms],
        "rules": [rule_document(group, judgement) for group, judgement in f.judgements],
        "notes": list(f.groups.notes),
        "runs": [
            {**row, "curve": curve_of(f, each)}
            for row, each in zip(rows, f.groups.rows, strict=True)
        ],
    }


def curve_of(f: Findings, row: Row) -> list[list[float | None]]:
    """Step, metric as it is logged, training time in s; None where the log tells no time."""
    return [
        [step, f.metric.sign * loss, None if math.isnan(time) else time / 1000]
        for step, loss, time in row.told.curve
    ]


def group_document(f: Findings, group: LogGroup) -> dict[str, Any]:
    found = stats.mean_interval(group.losses, f.design.alpha) if group.losses else None
    ends = (None, None) if found is None or found.ci_low is None else (found.ci_low, found.ci_high)
    low, high = ends if f.metric.sign > 0 else ends[::-1]
    lost = [row.told.status for row in group.rows if not row.counts]
    return {
        "name": group.name,
        "n": len(group.losses),
        "mean": found and f.metric.sign * found.mean,
        "sd": found and found.sd,
        "low": None if low is None else f.metric.sign * low,
        "high": None if high is None else f.metric.sign * high,
        "steps": group.length,
        "val_tokens": group.val_tokens,
        "not_counted": {status: lost.count(status) for status in sorted(set(lost))},
    }


def comparison_document(
    f: Findings, block: Block, arm: LogGroup, found: Contrast
) -> dict[str, Any]:
    base, c = base_of(block), found.comparison
    equivalent, ranked = two_one_sided(f, base, arm), found.ranked
    resolution, d = resolution_of(f, base, arm), f.design
    needed = resolution and stats.runs_needed(d.delta_eq, resolution[1], alpha=d.alpha)
    return {
        "group": arm.name,
        "baseline": base.name,
        "improvement": c and c.improvement,
        "low": None if ranked else c and c.ci_low,
        "high": None if ranked else c and c.ci_high,
        "p": found.p,
        "test": "exact worst rank" if ranked else "Welch",
        "n": len(arm.losses),
        "n_baseline": len(base.losses),
        "diverged": arm.diverged,
        "diverged_baseline": base.diverged,
        "same_kind": arm.is_like(base),
        "equivalent": equivalent and equivalent[2],
        "mde80": resolution and resolution[0].mde80,
        "runs_needed": needed,
        "dunnett_p": dunnett(block, generator()).get(arm.label),
        "pairs": pairs_document(f, base, arm),
        "time": time_document(f, block, arm),
    }


def pairs_document(f: Findings, base: LogGroup, arm: LogGroup) -> dict[str, Any] | None:
    sides = paired_losses(base, arm)
    if not sides[0]:
        return None
    test = stats.paired(*sides, f.design.alpha)
    found = {"improvement": test.improvement, "low": test.ci_low, "high": test.ci_high}
    return {"n": len(sides[0]), **found, "p": test.p}


def time_document(f: Findings, block: Block, arm: LogGroup) -> dict[str, Any] | None:
    if not (found := race(block, arm, f.design.alpha)):
        return None
    return {
        "to_target_s": found.time_s,
        "arrived": found.arrived,
        "runs": found.runs,
        "saved": found.saved and found.saved.ratio,
        "saved_low": found.saved and found.saved.low,
        "saved_high": found.saved and found.saved.high,
        "equal_time_s": found.equal_s,
        "improvement_at_equal_time": found.at_equal_time and found.at_equal_time.improvement,
    }


def rule_document(group: LogGroup, j: Judged) -> dict[str, Any]:
    return {
        "group": group.name,
        "rule": j.rule.name,
        "inequality": j.rule.inequality,
        "source": j.rule.source,
        "met": j.met,
        "by": j.by,
        "p": j.p,
        "more_runs": j.more,
        "words": list(j.words),
    }
