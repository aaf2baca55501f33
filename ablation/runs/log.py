"""What does the log of our own trainer say?  Its lines, found in whatever else was printed.

A log holds everything that the processes printed: the trainer's lines, torchrun's, a library's
warnings, perhaps another program's. It is read as a terminal would show it, and only what has
exactly the trainer's form, with this run's own number of iterations, counts. Whatever bytes it
holds, the answer is a `LogReader` that says what was logged, and why it is not the log of one
complete training, if it is not. `reader_of` gives the reader for any trainer's log.
"""

import json
import math
import os
import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from ablation.runs.foreign_log import ForeignLog
from ablation.runs.formats import NO_NUMBER, OURS, Reading
from ablation.runs.printed import LABEL, QUOTED, Printed, label_before, rank_of, text_of
from ablation.runs.untrusted import open_regular, printable, unique

# ---------------------------------------------------------------------------------------------
# The trainer's lines

STEP_LINE = re.compile(
    rb"step:([0-9]{1,12})/([0-9]{1,12}) (val|train)_loss:([-+.0-9A-Za-z]{1,32})"
    rb" train_time:([0-9]{1,15}(?:\.[0-9]{1,9})?)ms step_avg:[-+.0-9A-Za-z]{1,32}ms"
)
STEP_LINE_AS = "step:I/I val_loss:F train_time:Ims step_avg:Fms"  # I, F: integer, number
SUMMARY = b"summary: "
# Where one of them may begin inside a line: behind a text without a line end, or behind another
# one. Not `global_step:`, which counts something else.
BEGINNING = re.compile(
    rb"(?<![_/-])(?<!sub)(?<!micro)(?<!global)(?<!mini)(?:"
    rb'step:(?=[0-9]{1,12}/[0-9]{1,12} (?:val|train)_loss:)|summary: (?=\{\s*"))'
)
# A loss that is no number counts even where the rest of its line is damaged.
LOSS = re.compile(
    rb"(?<![\"'`_/-])step:([0-9]{1,12})/([0-9]{1,12}) (?:val|train)_loss:"
    rb"(?:(?!(?i:nan|inf))[A-Za-z_][\w.]{0,30}\()?"  # tensor(nan), np.float32(inf)
    rb"([-+.#0-9A-Za-z]{3,32})"
)


@dataclass(frozen=True)
class Field:
    """One number of the summary: what it may be, and how far apart (as a share of the larger) it
    may lie in the summaries of two processes of one run."""

    name: str
    whole: bool
    least: float
    most: float
    apart: float = 0.0

    def fault(self, summary: dict) -> str:
        """What is wrong with this field of a summary, and what belongs there; empty for nothing."""
        an = "an integer" if self.whole else "a number"
        if self.name not in summary:
            return f"no {self.name}: give {an}"
        value = summary[self.name]
        seen = f"{self.name} {printable(repr(value), 40)}"
        if type(value) is not int and (self.whole or type(value) is not float):
            return f"{seen}: give {an}"
        if value < self.least:
            above = "above 0" if self.least == LEAST else f"of {self.least:g} or more"
            return f"{seen}: give {an} {above}"
        if not value <= self.most:  # NaN as well
            return f"{seen}: give {an} up to {self.most:g}"
        return ""

    def differs(self, one: dict, other: dict) -> bool:
        a, b = one[self.name], other[self.name]
        return abs(a - b) > self.apart * max(a, b)


LEAST = 1e-9  # of what has to be positive: the report divides by it
SUMMARY_FIELDS = (
    Field("val_loss", False, LEAST, 1e9),  # nats/token
    Field("steps_done", True, 0, 1e12),
    Field("train_time_ms", False, LEAST, 1e15, apart=0.01),  # each process has a clock of its own
    Field("step_avg_ms", False, LEAST, 1e15, apart=0.01),
    Field("peak_memory_mib", False, 0, 1e12, apart=0.5),  # and a memory
    Field("tokens_seen", True, 1, 1e18),
    Field("num_parameters", True, 1, 1e18),
)
SAME_LOSS = 1e-5  # a step line has six decimals, the summary all of them


@dataclass
class LogReader(Printed):
    """Reads a log of our own trainer: step lines of one form, and a summary as the last line."""

    train_loss: float | None = None
    summary: dict | None = None
    summaries: int = 0
    fault: str = ""  # of a summary's field
    damaged: bool = False  # a summary that is no JSON
    _summary_rank: bytes | None = None

    marks = (b"step:", SUMMARY)

    def _line(self, line: bytes) -> None:
        if b"step:" not in line and SUMMARY not in line:
            return self._explain(line)
        if match := STEP_LINE.fullmatch(line):
            return self._step(line, *match.groups())
        self._divergence(line)
        label = LABEL.match(line)
        begin = label.end() if label else 0
        own = line.startswith((b"step:", SUMMARY + b"{" if begin else SUMMARY), begin)
        starts = [match.start() for match in BEGINNING.finditer(line, begin)]
        if own:
            starts = sorted({begin, *starts})
        if not starts or (not own and QUOTED.fullmatch(line, begin, starts[0])):
            return self._explain(line)
        if not own:  # a text without a line end, or a progress bar
            self._explain(line[: starts[0]].rstrip())
        rank = rank_of(label if own else label_before(line, starts[0]))
        for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
            piece = line[start:end].rstrip()
            if piece.startswith(SUMMARY):
                self._summary(piece, own and start == begin, rank)
            elif match := STEP_LINE.fullmatch(piece):
                self._step(line, *match.groups(), own=own, rank=rank)
            else:
                self.odd = piece

    def _divergence(self, text: bytes) -> None:
        if b"step:" not in text:
            return
        for match in LOSS.finditer(text):
            if text[: match.start()].lstrip().startswith((b">", b"# ", b"//")):
                continue
            try:
                loss = math.nan if NO_NUMBER.fullmatch(match[3]) else float(match[3])
            except ValueError:
                continue
            step, total = int(match[1]), int(match[2])
            if total == self.num_iterations >= step and not math.isfinite(loss):
                self.non_finite = self.non_finite or text
                self.step = max(self.step, step)

    def _step(self, line, step, total, kind, loss, train_time_ms, *, own=True, rank=None) -> None:
        try:
            step, loss, train_time_ms = int(step), float(loss), float(train_time_ms)
        except ValueError:
            return
        if int(total) != self.num_iterations or step > self.num_iterations:
            return
        # Other processes may be late with the last lines. Whoever begins anew is another run.
        others = rank is not None and self._summary_rank not in (None, rank)
        late = step == self.num_iterations or others
        look_back = not own and kind == b"val" and self._has_point(step, loss)
        self.restarted |= self.summaries > 0 and not (late or look_back)
        self.step, self.train_time_ms = max(self.step, step), train_time_ms
        if not math.isfinite(loss):
            self.non_finite = self.non_finite or line
        elif kind == b"train":
            self.train_loss = loss
        else:
            self._point(step, loss, train_time_ms)

    def _has_point(self, step: int, loss: float) -> bool:
        at = bisect_left(self.curve, step, key=lambda point: point[0])
        return at < len(self.curve) and self.curve[at][:2] == (step, loss)

    def _summary(self, text: bytes, own: bool, rank: bytes | None) -> None:
        try:
            summary = json.loads(text.removeprefix(SUMMARY), object_pairs_hook=unique)
        except (ValueError, RecursionError):
            summary = None
        if isinstance(summary, dict) and not own and "val_loss" not in summary:
            return  # another program's
        if self.summaries == 0:
            self._summary_rank = rank
        self.summaries += 1
        if isinstance(summary, dict):
            self._agree(summary)
        else:
            self.damaged = True

    def _agree(self, summary: dict) -> None:
        """Take a summary, if its fields are right and it says what earlier ones said."""
        fault = next(filter(None, (field.fault(summary) for field in SUMMARY_FIELDS)), "")
        self.fault = self.fault or fault
        if fault:
            return
        self.summary = was = self.summary or summary
        # the trainer's own word for how far it came, also where its step lines could not be read
        self.step = max(self.step, min(summary["steps_done"], self.num_iterations))
        for number in SUMMARY_FIELDS:
            if number.differs(was, summary) and not self.conflict:
                both = f"{number.name} {was[number.name]} and {summary[number.name]}"
                self.conflict = f"the summaries say {both}"

    @property
    def incomplete(self) -> str:
        """Why this is not the log of one complete training; empty when it is."""
        total, summary = self.num_iterations, self.summary or {}
        if self.unread:
            return self.unread
        if self.summaries == 0:
            return f"no summary line; {self.step} of {total} steps in the log"
        if self.restarted:
            return f"{self.summaries} summary line(s) and steps behind them: more than one run"
        if self.fault:
            return f"the summary line is damaged: {self.fault}"
        if self.conflict:
            return f"{self.conflict}: more than one run, or processes that do not agree"
        if self.damaged or not summary:
            return "the summary line is damaged"
        if summary["steps_done"] != total:
            return f"summary after {summary['steps_done']} of {total} steps"
        if not self.curve or self.curve[-1][0] != total:
            seen = f"; not in this form: {text_of(self.odd)}" if self.odd else ""
            return f"no val_loss line at the last step ({STEP_LINE_AS}{seen})"
        if abs(self.curve[-1][1] - summary["val_loss"]) > SAME_LOSS:
            both = f"{summary['val_loss']} and {self.curve[-1][1]}"
            return f"the summary's val_loss is not that of the last step ({both})"
        return ""

    @property
    def ending(self) -> str:
        whole = self.summary and not self.incomplete
        return f"val_loss {self.summary['val_loss']:.4f}" if whole and self.summary else ""

    @property
    def contents(self) -> str:
        if self.summaries and not (self.step or self.curve or self.ending):
            return f"the log ends at step {self.step} of {self.num_iterations}"
        return super().contents

    def with_file(self, own: "LogReader") -> "LogReader":
        both = super().with_file(own)
        both.fault = self.fault or own.fault
        both.summaries = max(self.summaries, own.summaries)
        if own.summary:
            both._agree(own.summary)
        one_is_complete = not (self.incomplete and own.incomplete)
        both.damaged = not one_is_complete and (self.damaged or own.damaged)
        return both


# ---------------------------------------------------------------------------------------------
# Any trainer's log, on disk


def reader_of(num_iterations: int, reading: Reading = OURS) -> Printed:
    """A reader for the log of a run of this length. Only our own form has a summary."""
    kind = LogReader if reading.format.summary else ForeignLog
    return kind(num_iterations, reading)


MAX_LOG = 1 << 30  # bytes that are read of a log, some 10 s; a complete one has less than 1 MiB
LAST = 1 << 26  # bytes at the end of a longer one


def read_log(path: Path, num_iterations: int, reading: Reading = OURS) -> Printed:
    """Stream a log file through its reader; a missing file is an empty log.

    Read is what the file holds at this moment. What a log longer than MAX_LOG says is not known:
    its end gives the last words and nothing more. The same for what is no file, or may not be read.
    """
    reader = reader_of(num_iterations, reading)
    try:
        with open_regular(path) as file:
            left = file.seek(0, os.SEEK_END)
            if left > MAX_LOG:
                reader.unread = f"{path.name} is longer than {MAX_LOG} bytes; it was not read whole"
                left = LAST
            file.seek(-left, os.SEEK_END)
            while left and (data := file.read(min(left, 1 << 20))):
                left -= len(data)
                reader.feed(data)
    except FileNotFoundError:
        pass
    except ValueError as error:
        reader.unread = str(error)
    return reader.close()
