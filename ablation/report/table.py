"""What do runs look like to other programs?  runs.csv, tidy: a row for each run, and as JSON."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ablation.report.evidence import Evidence
from ablation.runs.run import RunResult
from ablation.runs.untrusted import printable

COLUMNS = ("group", "file", "seed", "step", "metric", "time", "status", "reason")
# seed: empty where none is told. step: the last one that is told. metric: as it is logged, at the
# end of a run that counts; empty for any other. time: of training to there, in s.

TableRow = Mapping[str, str | int | float | None]


def csv_of(rows: Iterable[TableRow]) -> str:
    """The text of runs.csv; numbers at full precision."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_cell(value) -> str:
    return "" if value is None else printable(str(value), limit=4096)


def rows_of_experiment(evidence: Evidence) -> Iterator[TableRow]:
    """Every attempt of an experiment, in the order of its records, and what has no result."""
    records = evidence.records
    for r in records.results:
        yield row_of_attempt(evidence, r)
    for open_attempt in records.open:
        where = f"{open_attempt.run_name}, attempt {open_attempt.number}"
        yield without_result(where, "no result", "in flight, or lost")
    for path, why in records.damaged:
        where = path.parent.relative_to(evidence.exp_dir).as_posix()
        yield without_result(where, "damaged", why)


def row_of_attempt(evidence: Evidence, r: RunResult) -> TableRow:
    attempt = f", attempt {r.attempt}" if r.attempt > 1 else ""
    values: Sequence = (
        r.run.arm.name,
        f"{r.run.name}{attempt}",
        r.run.seed,
        r.steps_done,
        None if r.val_loss is None else evidence.metric.sign * r.val_loss,
        None if r.train_time_ms is None else r.train_time_ms / 1000,
        r.status,
        r.reason,
    )
    return dict(zip(COLUMNS, values, strict=True))


def without_result(where: str, status: str, why: str) -> TableRow:
    return dict(
        zip(COLUMNS, (where.split("/")[0], where, None, None, None, None, status, why), strict=True)
    )
