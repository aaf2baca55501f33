"""Which runs does a log tell of, that nobody registered?  One file may hold several.

Runs lie one after the other, each perhaps behind the source of its trainer; or one lies in several
files, one of each rank. What a log tells of a run, and whether it is that of a complete training,
is a `ToldRun`: bounded in size, whatever the log is. The reading itself is `foreign_log`'s.
"""

import copy
import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import BinaryIO, Self

from ablation.runs.foreign_log import HEAD, KEPT, ForeignLog, metrics_in
from ablation.runs.formats import (
    FORMATS,
    RULE,
    SOURCE,
    SOURCE_MARKS,
    LogFormat,
    Reading,
    Said,
    guess_format,
)
from ablation.runs.outcome import fault_of_loss
from ablation.runs.printed import LABEL, text_of
from ablation.runs.untrusted import open_regular, printable

# ---------------------------------------------------------------------------------------------
# What a log says beside its metric

SEED = re.compile(rb"(?<![\w.])seed[\"']?[ ]{0,2}[:=][ ]{0,2}([0-9]{1,18})(?![\w.])")
SEED_IN_NAME = re.compile(r"(?:\A|[^a-z])seed[-_=]?([0-9]{1,18})(?![0-9])", re.IGNORECASE)
VAL_TOKENS = re.compile(  # how much text the validation loss is of; also in the trainer's source
    rb"(?<!\w)val_tokens[\"']?[ ]{0,2}(?::[ ]{0,2}int[ ]{0,2})?[:=][ ]{0,2}"
    rb"([0-9][0-9_]{0,18}(?:[ ]?\*[ ]?[0-9][0-9_]{0,18}){0,4})"
    rb"|\Aval_loader:.{1,400} tokens:([0-9]{1,18})"
)
ASIDE = (b"seed", b"val_tokens", b"val_loader")  # one of these is in every such line


def val_tokens_in(line: bytes) -> int | None:
    if not (match := VAL_TOKENS.search(line)):
        return None
    return prod(int(part) for part in (match[1] or match[2]).replace(b" ", b"").split(b"*")) or None


@dataclass
class LogOfRuns(ForeignLog):
    """Reads a log in which runs may lie one after the other.

    A run begins where the steps begin anew, or behind the source of a trainer, which ends with a
    line of 100 `=`. The last one is this reader itself, the others are in `before`.
    """

    whole_steps: int = 0  # of a run, for logs that do not tell it
    before: list[ForeignLog] = field(default_factory=list)  # runs that have ended, in their order
    seed: int | None = None
    val_tokens: int | None = None
    beside: dict[str, float] = field(
        default_factory=dict
    )  # what the last line with the metric says
    _behind: dict[str, int] = field(default_factory=dict)  # told behind steps: of the next run?
    _at_source: "LogOfRuns | None" = None  # this run as it stood where a source may have begun

    @property
    def marks(self) -> tuple[bytes, ...]:
        return (*super().marks, *ASIDE) if super().marks else ()

    def _line(self, line: bytes) -> None:
        if any(mark in line for mark in ASIDE):
            self._aside(line)
        if label := LABEL.match(line) if line.endswith(RULE) or self.lines < HEAD else None:
            shown = line[label.end() :]  # of torchrun --tee, in front of a source too
            line = shown if shown == RULE or SOURCE.match(shown) else line
        since = self.lines - (self._at_source.lines if self._at_source else 0)
        if since >= HEAD and SOURCE.match(line):
            self._at_source = self._copy()
        super()._line(line)

    def _aside(self, line: bytes) -> None:
        told = {}
        if (tokens := val_tokens_in(line)) is not None:
            told["val_tokens"] = tokens
        if (found := SEED.search(line)) and not self._at_source:
            told["seed"] = int(found[1])
        if self.lines == 0:
            vars(self).update(told)
        else:
            self._behind.update(told)

    def _rule(self) -> None:
        """The end of what stands at the head of a run. If that was a source, it is forgotten."""
        if self._at_source:
            self._end_run(self._at_source)
        elif self._in_source:
            tokens = self.val_tokens
            self._begin()
            self.val_tokens = tokens

    def close(self) -> Self:
        super().close()
        whole = self._at_source and not self._at_source.incomplete
        if self._at_source and whole and self.incomplete:  # the log ends in the next run's source
            self._end_run(self._at_source)
        return self

    def _copy(self) -> "LogOfRuns":
        """This run as it stands, which nothing that comes changes."""
        run = copy.copy(self)
        run.curve, run.names, run.tail = list(self.curve), dict(self.names), self.tail.copy()
        run.before, run._at_source = [], None
        return run

    def _end_run(self, run: "LogOfRuns") -> None:
        behind = {"val_tokens": run.val_tokens, **self._behind}
        in_source = bool(run is not self._at_source and self._at_source)
        self.before.append(run)
        self._begin()
        vars(self).update(behind, _in_source=in_source)

    def _begin(self) -> None:
        """Forget everything of the run so far."""
        fresh = type(self)(self.num_iterations, self.reading)
        kept = {*KEPT, "whole_steps", "before"}
        vars(self).update({k: v for k, v in vars(fresh).items() if k not in kept})

    def _begins_anew(self, step: int, rank: bytes | None) -> bool:
        return self._first is not None and step <= self._first < self.step and rank == self._rank

    def _at(self, step: int, rank: bytes | None) -> None:
        if self._begins_anew(step, rank):
            self._end_run(self._copy())
        super()._at(step, rank)

    def _say(self, said: Said, line: bytes, rank: bytes | None) -> None:
        value = said.values.get(self.reading.metric)
        if said.step is not None and self._begins_anew(said.step, rank):
            self._end_run(self._copy())
        elif said.step is None and value is not None and self.stands_alone:
            told = self.reading.sign * self.curve[-1][1]
            if value != told and " " not in self.reading.metric:  # the end of one more run
                self._end_run(self._copy())
        super()._say(said, line, rank)
        if value is not None:
            self.beside = said.values

    # -- what it comes to

    @property
    def last_step(self) -> int | None:
        told = self.totals[0] if self.totals else self.whole_steps
        return told - 1 + self.reading.format.first_step if told else None

    @property
    def length(self) -> int | None:
        """Steps of a whole run; None of one that ended by its own word, at any step."""
        last = self.last_step
        return None if last is not None and self.ended and self.step < last else last

    @property
    def is_blank(self) -> bool:
        """Nothing of a run: what lies behind the last one."""
        return not (self.lines or self.curve or self.names or self.non_finite)


# ---------------------------------------------------------------------------------------------
# What became of a run

STATUSES = {  # of a run that only its log tells of; in the order in which they are listed
    "ok": "the metric stands at its last step",
    "diverged": "a loss that is no number",
    "cut off": "the log ends before its last step",
    "unclear": "its lines contradict each other",
    "no metric": "no line tells the metric",
    "unreadable": "no text that can be read",
    "twice": "another file has the same content, and counts",
}
NO_METRIC = "no metric"
MOST_POINTS = 500  # of a curve that are kept: chosen, as many as a figure has dots


@dataclass(frozen=True)
class ToldRun:
    """What a log tells of one run."""

    status: str  # a key of STATUSES
    reason: str  # empty when ok
    loss: float | None = None  # of a run that is ok: the metric at its end; lower is better
    step: int = 0  # the last one that is told
    length: int | None = None  # steps of the whole run; None: not told, or it ends by itself
    by_itself: bool = False  # it ended by its own word, before the last step
    seed: int | None = None
    val_tokens: int | None = None
    time_ms: float | None = None  # of training, at its end; None where not all lines tell it
    points: bytes = b""  # of its curve: step, loss, training time in ms (NaN: not told), as doubles
    names: tuple[str, ...] = ()  # of the values that are told
    beside: tuple[tuple[str, float], ...] = ()  # values of the last line with the metric
    format: str = ""  # a row of FORMATS; empty where none is known

    @property
    def curve(self) -> tuple[tuple[int, float, float], ...]:
        numbers = array("d", self.points)
        return tuple((int(a), b, c) for a, b, c in zip(*[iter(numbers)] * 3, strict=True))


@dataclass(frozen=True)
class ToldFile:
    """What a log says, in one file or in several of ranks."""

    paths: tuple[Path, ...]
    digest: str  # of its content
    runs: tuple[ToldRun, ...]  # one at least
    head: str = ""  # its first lines, where no line was known


def told_by(log: LogOfRuns) -> ToldRun:
    """What became of a run, by its log alone: there is no exit code."""
    status, reason = judged(log)
    ok = status == "ok"
    ended = log.curve[-1] if log.curve else None
    timed = bool(log.curve) and all(time_ms is not None for *_, time_ms in log.curve)
    return ToldRun(
        status=status,
        reason=printable(reason, limit=600),
        loss=ended[1] if ok and ended else None,
        step=log.step,
        length=log.length,
        by_itself=bool(log.ended),
        seed=log.seed,
        val_tokens=log.val_tokens,
        time_ms=ended[2] if ok and timed and ended else None,
        points=thinned_points(log.curve),
        names=tuple(metrics_in(log)),
        beside=tuple(log.beside.items()) if ok else (),
        format=log.reading.format.name,
    )


def judged(log: LogOfRuns) -> tuple[str, str]:
    """Status and reason."""
    incomplete = log.incomplete
    if log.unread:
        return "unreadable", log.unread
    if log.non_finite:
        return "diverged", f"non-finite loss: {text_of(log.non_finite)}"
    if not incomplete:
        fault = fault_of_loss(log, log.curve[-1][1])
        return ("unclear", fault) if fault else ("ok", "")
    if log.conflict or len(log.totals) > 1:
        return "unclear", incomplete
    if not log.curve and not log.lines:
        return NO_METRIC, incomplete
    short = log.last_step is not None and log.step < log.last_step
    if not log.curve and log.reading.metric not in log.names and not short:
        return NO_METRIC, incomplete
    how_far = f"the log ends at step {log.step} of {log.last_step}: " if short else ""
    last = f"; its last words: {log.last_words}" if log.error or log.out_of_memory else ""
    return "cut off", f"{how_far}{incomplete}{last}"


def thinned_points(curve: Sequence[tuple[int, float, float | None]]) -> bytes:
    """A curve's points, evenly fewer where there are many; the last one always."""
    every = -(-len(curve) // MOST_POINTS) or 1
    kept = curve[::-1][::every][::-1]
    nan = float("nan")
    return array("d", [x for s, v, t in kept for x in (s, v, nan if t is None else t)]).tobytes()


# ---------------------------------------------------------------------------------------------
# Fewer lines to read
#
# Most of a log are lines that tell no more than how far the training is, or a flood of something
# else. What can matter is found by searches for a few texts, at the speed of memory.

PIECE = 1 << 20  # bytes that are read at a time
FULL = 1 << 13  # bytes behind the head that are read in full, and at the end of a piece
OF_SOURCE = (*SOURCE_MARKS, *ASIDE)
ALSO = (  # in a line that can matter, whatever the metric is; in small letters
    *(b"val", b"nan", b":inf", b" inf", b"-inf", b"1.#", b"rror", RULE, *SOURCE_MARKS, b"seed"),
)


def texts_of(reading: Reading) -> tuple[bytes, ...]:
    """One of these stands in every line that can matter, in small or in large letters."""
    row, metric = reading.format, reading.metric.rpartition(" ")[2].encode().lower()
    of_metric = () if b"val" in metric else (metric, metric.replace(b"_", b" "))
    of_end = (b"stopping",) if row.end else ()
    return (*of_metric, *of_end, *(mark.lower() for mark in row.marks if mark == b"FAIL"), *ALSO)


MOST_ASIDE = 1000  # lines of 1 MB: what is told more often is a flood


def lines_that_matter(
    data: bytes, texts: Sequence[bytes], mark: bytes = b"", step: re.Pattern | None = None
) -> bytes:
    """Of whole lines those in which one of the texts stands, the first one, and of those between
    them the last that tell a step; in their order. mark: stands in every such line."""
    ends: dict[int, int] = {0: data.find(b"\n") + 1}  # of lines, by where they start
    of_steps = set()  # of those the ones that may tell a step
    small = data.lower()
    for text in texts:
        at = -1 if text in ASIDE and small.count(text) > MOST_ASIDE else small.find(text)
        while at >= 0:
            end = data.find(b"\n", at + len(text) - 1) + 1
            start = data.rfind(b"\n", 0, at + len(text) - 1) + 1
            ends[start] = end
            if text not in ASIDE:
                of_steps.add(start)
            at = small.find(text, end)
    lines, done = [], 0
    for start in sorted(ends):
        if start in of_steps:
            lines += last_steps_in(data[done:start], mark, step)
            done = ends[start]
        lines.append(data[start : ends[start]])
    return b"".join([*lines, *last_steps_in(data[done:], mark, step)])


def last_steps_in(data: bytes, mark: bytes, step: re.Pattern | None) -> list[bytes]:
    """The last lines that look as if they told a step, of the last ones with its mark: the very
    last one may be damaged."""
    lines: list[bytes] = []
    end = len(data)
    for _ in range(LOOK_BACK):
        if step is None or len(lines) == LAST_STEPS or (at := data.rfind(mark, 0, end)) < 0:
            break
        end = data.rfind(b"\n", 0, at) + 1
        line = data[end : data.find(b"\n", at + len(mark) - 1) + 1]
        lines += [line] if step.search(line) else []
    return lines[::-1]


LAST_STEPS, LOOK_BACK = 3, 40  # lines: chosen
NOT_INSIDE = rb"(?<![\w/\"'`-])"  # what may not stand in front of a step


def end_of_head(data: bytes, step: re.Pattern) -> int:
    """Where the source of the trainer ends, if a log begins with one."""
    end = data.find(RULE + b"\n")
    source = source_in(data, min(end, MOST_BEFORE)) if end > 0 else -1
    return end if source >= 0 and not step.search(data, 0, source) else 0


MOST_BEFORE = 1 << 12  # bytes before a source at the head of a log: chosen


class Feeder:
    """Gives a reader what can matter of a log, piece by piece."""

    def __init__(self, log: LogOfRuns):
        self.log, self.rest, self.texts, self.begun = log, b"", texts_of(log.reading), b""
        quick = log.reading.format.quick
        self.step = re.compile(NOT_INSIDE + quick.pattern) if quick else None

    def feed(self, data: bytes) -> None:
        data = self.rest + data
        whole = data.rfind(b"\n") + 1
        data, self.rest = data[:whole], data[whole:]
        self._feed_lines(data)
        if len(self.rest) > PIECE:  # an endless line: the reader skips it
            self.log.feed(self.rest)
            self.rest = b""

    def close(self) -> None:
        self.log.feed(self.rest)
        self.log.close()

    def _feed_lines(self, data: bytes) -> None:
        if self.step is None or data.count(b"\r") != data.count(b"\r\n"):
            return self.log.feed(data)  # progress bars overwrite lines: each is looked at
        if not self.begun:
            data = self._begin(data)
        last = max(0, data.rfind(b"\n", 0, max(0, len(data) - FULL)) + 1)
        if self.begun and last:
            mark = b"/" if b"/" in self.begun else self.begun.rstrip(b"0123456789:,( ")
            texts = (*self.texts, self.begun)
            self.log.feed(lines_that_matter(data[:last], texts, mark, self.step))
            data = data[last:]
        self.log.feed(data)

    def _begin(self, data: bytes) -> bytes:
        """Read the head of a log, and its first steps; returns the rest. Then it is known how a
        line of the first step begins, so that one is seen where a run begins anew."""
        assert self.step is not None
        if end := end_of_head(data, self.step) if self.log.lines == 0 else 0:
            self.log.feed(lines_that_matter(data[:end], (RULE, *OF_SOURCE)))  # it is forgotten
            data = data[end:]
        if not (match := self.step.search(data)):
            return data
        begins = data[match.start() : match.end(1) + 1].lower()
        self.begun = b"\n" + begins if begins[:1].isdigit() else begins
        first = data.find(b"\n", match.start() + FULL) + 1 or len(data)
        self.log.feed(data[:first])
        return data[first:]


# ---------------------------------------------------------------------------------------------
# Files

MOST_BYTES = 1 << 30  # of a file that are read: chosen, as log.py's


@dataclass(frozen=True)
class Asked:
    """How logs are to be read."""

    metric: str = ""  # empty: val_loss, or the only one that the log's form ends with
    better: str = "lower"
    format: str = ""  # a row of FORMATS; empty: each log tells its own
    whole_steps: int = 0  # of a run, where logs do not tell it

    @property
    def sign(self) -> int:
        return -1 if self.better == "higher" else 1


DEFAULT_METRIC = {"autoresearch": "val_bpb"}  # of a form that ends with no val_loss
FIRST_LINES = 3  # of a log that nobody knows, that are shown


def read_runs(paths: Sequence[Path], asked: Asked) -> ToldFile:
    """What a log says: in one file, or in one of each rank. Whatever it holds: never raises."""
    logs, digests, head = [], [], ""
    for path in paths:
        try:
            with open_regular(path) as file:
                found, digest, head = runs_in(file, asked)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            found, digest = [unread(asked, why or str(error))], f"unreadable {path}"
        logs.append(found)
        digests.append(digest)
    runs = [together(parts) for parts in zip_longest(*logs)]
    told = tuple(map(told_by, runs))
    known = any(run.names for run in told)
    if not known:
        why = f"no line of a known form; it begins: {head or 'with nothing'}"
        told = tuple(replace(run, reason=why) if run.status == NO_METRIC else run for run in told)
    return ToldFile(tuple(paths), " ".join(sorted(digests)), told, "" if known else head)


def unread(asked: Asked, why: str) -> LogOfRuns:
    log = LogOfRuns(0, Reading(FORMATS["modded-nanogpt"], asked.metric or "val_loss", asked.better))
    log.unread = why
    return log


def together(parts: Sequence[LogOfRuns | None]) -> LogOfRuns:
    """What the ranks of a run say; those that print no step of it say nothing."""
    known = [log for log in parts if log is not None]
    speaking = [log for log in known if not log.is_blank] or known[:1]
    first, *others = speaking
    for other in others:
        first = first.with_file(other)
    return first


def runs_in(file: BinaryIO, asked: Asked) -> tuple[list[LogOfRuns], str, str]:
    """The runs that an open file tells of, its digest, its first lines."""
    data = file.read(PIECE)
    size = os.fstat(file.fileno()).st_size if hasattr(file, "fileno") else len(data)
    digest, head = hashlib.blake2b(data, digest_size=16), first_lines(data)
    if why := fault_of_file(data, size):
        while more := file.read(PIECE):
            digest.update(more)
        return [unread(asked, why)], digest.hexdigest(), head
    row = FORMATS[asked.format] if asked.format else format_of(data, file)
    reading = Reading(row, asked.metric or DEFAULT_METRIC.get(row.name, "val_loss"), asked.better)
    log = LogOfRuns(0, reading, whole_steps=asked.whole_steps)
    feeder = Feeder(log)
    while data:
        feeder.feed(data)
        if data := file.read(PIECE):
            digest.update(data)
    feeder.close()
    runs = [run for run in (*log.before, log) if isinstance(run, LogOfRuns)]
    spoken = [run for run in runs if not run.is_blank]
    return spoken or runs[:1], digest.hexdigest(), head


def fault_of_file(data: bytes, size: int) -> str:
    if not data:
        return "an empty file"
    if data.count(b"\0") > len(data) // 1000:
        return "a binary file, not a log"
    return f"longer than {MOST_BYTES} bytes" if size > MOST_BYTES else ""


def format_of(data: bytes, file: BinaryIO) -> LogFormat:
    """The form of a log. Where its head does not tell, its end may."""
    if row := guess_format(outputs_in(data)):
        return row
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(at, size - PIECE))
    end = file.read(PIECE)
    file.seek(at)
    tries = (outputs_in(end), data, end)
    return next(filter(None, map(sign_of_format, tries)), FORMATS["modded-nanogpt"])


def sign_of_format(data: bytes) -> LogFormat | None:
    signs = ((row, row.sign) for row in FORMATS.values() if row.sign)
    return guess_format(data) or next((row for row, sign in signs if sign.search(data)), None)


BEGINNINGS = (b"#!/", b'"""', b"'''", b'r"""', b"import ", b"from ")  # of lines that SOURCE knows


def source_in(data: bytes, most: int | None = None) -> int:
    """Where the first line stands that begins a source, in the first bytes; -1 for nowhere."""
    if SOURCE.match(data):
        return 0
    found, most = [], len(data) if most is None else most
    for text in BEGINNINGS:
        at = data.find(b"\n" + text, 0, most)
        while at >= 0 and not SOURCE.match(data, at + 1):
            at = data.find(b"\n" + text, at + 1, most)
        if at >= 0:
            found.append(at + 1)
            most = at + 1  # only earlier ones are of interest
    return min(found, default=-1)


def outputs_in(data: bytes) -> bytes:
    """A log without the sources of trainers in it."""
    blocks = data.split(RULE + b"\n")
    ends = ((block, source_in(block)) for block in blocks)
    return b"\n".join(block if end < 0 else block[:end] for block, end in ends)


def first_lines(data: bytes) -> str:
    """The first lines of a file, for a person."""
    lines = [text for line in data[:4096].split(b"\n") if (text := text_of(line))]
    return " | ".join(printable(line, limit=80) for line in lines[:FIRST_LINES])


def seed_in_name(path: Path) -> int | None:
    """The seed that a file's name tells; None for none."""
    found = SEED_IN_NAME.findall(path.name)
    return int(found[0]) if len(found) == 1 else None
