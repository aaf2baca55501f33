"""What does the log of a trainer say that is not ours?  By a row of the table of formats.

No summary says that such a training is whole. It is where the metric stands at the run's last
step, or where the trainer has said that it ends by itself, with the metric at that step.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Self

from ablation.runs.formats import LOSSES, OWN, RULE, SOURCE, SOURCE_MARKS, STEPS_IN_ALL, Said
from ablation.runs.printed import LABEL, QUOTED, Printed, label_before, rank_of, text_of

MAX_NAMES = 200  # of metrics that are kept for a message
FULLY = 100  # lines of the trainer's that are read in full; then only those that can matter
HEAD = 3  # lines of the trainer's behind which no source begins; before, they may be an example
MATTERS = rb"val|[nN]a[nN]|[iI]nf|#|rror|xcept|emory|"  # in a line, beside the metric
KEPT = {"num_iterations", "reading", "signs_of_life", "unread"}  # when a source is forgotten


@dataclass
class ForeignLog(Printed):
    """Reads a log by a row of the table.

    The source of the trainer at the head of a log is none of its output: it is known by its
    docstring or its imports, and ends with a line of 100 `=`. What stands in it, an example of a
    step line, say, is forgotten when that line comes.
    """

    names: dict[str, None] = field(default_factory=dict)  # of the values that are told
    totals: list[int] = field(default_factory=list)  # steps in all, as the lines tell them: two
    ended: bytes = b""  # the format's own word for an end before the last step
    stands_alone: bool = False  # the last value of the metric came without a step: a final one
    lines: int = 0  # of this form, with a step or a value
    _first: int | None = None  # the first step that was told
    _rank: bytes | None = None  # of the process that told it
    _in_source: bool = False

    def __post_init__(self):
        self._metric = self.reading.metric.rpartition(" ")[2].encode()  # without its label
        self._matters = re.compile(MATTERS + re.escape(self._metric))

    @property
    def marks(self) -> tuple[bytes, ...]:
        marks = self.reading.format.marks
        return (*marks, *SOURCE_MARKS, RULE) if marks else ()

    # -- one line

    def _line(self, line: bytes) -> None:
        if line == RULE:
            return self._rule()
        self._in_source |= self.lines < HEAD and bool(SOURCE.match(line))
        marks = self.reading.format.marks
        if marks and not any(mark in line for mark in marks):
            return self._explain(line)
        if self.lines >= FULLY and self._is_step_alone(line):
            return
        if not self._taken(line):
            self._find_divergence(line)
            self._explain(line)

    def _is_step_alone(self, line: bytes) -> bool:
        """Whether a line tells no more than how far the training is: most do, and a log has
        thousands of them."""
        quick = self.reading.format.quick
        match = quick.match(line) if quick else None
        if not match or self._matters.search(line):
            return False
        total = int(match[2]) if match.lastindex == 2 else None
        if not self._is_others(total):
            self._at(int(match[1]), None)
        return total is None or total in self.totals

    def _rule(self) -> None:
        """The end of what stands at the head of a log. If that was a source, it is forgotten."""
        if self._in_source:
            fresh = type(self)(self.num_iterations, self.reading)
            vars(self).update({k: v for k, v in vars(fresh).items() if k not in KEPT})

    def _taken(self, line: bytes) -> bool:
        """Whether a line is the trainer's, as it stands, behind a label, or behind a text that has
        no line end."""
        row = self.reading.format
        if self._whole(line, line, None):
            return True
        if (label := LABEL.match(line)) and self._whole(line[label.end() :], line, rank_of(label)):
            return True
        for form in row.behind_text:
            match = form.search(line)
            if not match or is_quoted(line, match.start()):
                continue
            if said := row.said(match[0]):
                self._explain(line[: match.start()].rstrip())
                self._say(said, line, rank_of(label_before(line, match.start())))
                return True
        if self._names_metric(line):
            self.odd = line
        return False

    def _whole(self, text: bytes, line: bytes, rank: bytes | None) -> bool:
        """Whether a text is a line of the trainer's from its first sign to its last."""
        row = self.reading.format
        if said := row.said(text):
            self._say(said, line, rank)
            return True
        if row.end and (match := row.end.fullmatch(text)):
            self._end(line, match.groupdict().get("step"), rank)
            return True
        return False

    def _names_metric(self, line: bytes) -> bool:
        """Whether a line of no known form looks as if it told the metric."""
        named = self._metric in line or self._metric.replace(b"_", b" ") in line
        return named and any(digit in line for digit in b"0123456789")

    def _end(self, line: bytes, step: bytes | None, rank: bytes | None) -> None:
        self.ended = self.ended or line
        if step and step.isdigit() and len(step) <= 12:
            self._at(int(step), rank)

    def _find_divergence(self, text: bytes) -> bool:
        """Look for a loss that is no number in a line that is damaged, or has more in it."""
        form = self.reading.format.diverged
        match = form.search(text) if form else None
        if not match or is_quoted(text, match.start()):
            return False
        step, total = (int(match.groupdict().get(name) or 0) for name in ("step", "total"))
        if not self._is_others(total or None):
            self.non_finite = self.non_finite or text
            self.step = max(self.step, step)
        return True

    def _divergence(self, text: bytes) -> None:
        said = None if self._find_divergence(text) else self.reading.format.said(text)
        if said and not self._is_others(said.total):
            self._look_at(said.values, text)

    def _look_at(self, values: dict[str, float], line: bytes) -> None:
        """A loss that is no number, or the metric, is a divergence at any step."""
        if all(map(math.isfinite, values.values())):
            return
        for name, value in values.items():
            is_loss = name == self.reading.metric or LOSSES.fullmatch(name)
            if is_loss and not math.isfinite(value):
                self.non_finite = self.non_finite or line

    def _is_others(self, total: int | None) -> bool:
        """Whether a line is another run's, of another length."""
        told = total is not None and self.num_iterations and self.reading.counts_steps
        return bool(told) and total != self.num_iterations

    def _say(self, said: Said, line: bytes, rank: bytes | None) -> None:
        if said.total is not None and said.total not in self.totals[:2]:
            self.totals = [*self.totals, said.total][:2]
        if self._is_others(said.total):
            return
        self.lines += 1
        if len(self.names) < MAX_NAMES:
            self.names.update(dict.fromkeys(said.values))
        self._look_at(said.values, line)
        if said.step is not None:
            self._at(said.step, rank)
        if said.time_ms is not None:
            self.train_time_ms = said.time_ms
        value = said.values.get(self.reading.metric)
        if said.step is None:
            self._without_step(said, value)
        elif value is not None and math.isfinite(value):
            self._point(said.step, self.reading.sign * value + 0.0, said.time_ms)
            self.stands_alone = False

    def _at(self, step: int, rank: bytes | None) -> None:
        """A step is told. Whoever begins anew behind the end is another run, if it is no other
        process that is late with its lines."""
        if self._first is None:
            self._first, self._rank = step, rank
        anew = step <= self._first < self.step and rank == self._rank
        by_time = not self.reading.counts_steps
        self.restarted |= anew and (self.at_end if by_time else not self.incomplete)
        if step > self.step:
            self.stands_alone = False
        self.step = max(self.step, step)

    def _without_step(self, said: Said, value: float | None) -> None:
        """A value that stands alone is that of the last step; how many there were, and how long
        they took, may be told behind it."""
        steps = said.values.get(STEPS_IN_ALL, 0.0)
        if 0 < steps < 1e12 and steps == int(steps):
            self.step = max(self.step, int(steps))
        if value is not None and math.isfinite(value):
            time_ms = said.time_ms if said.time_ms is not None else self.train_time_ms or None
            self._point(self.step, self.reading.sign * value + 0.0, time_ms)
            self.stands_alone = True
        elif self.stands_alone:
            _, loss, time_ms = self.curve.pop()
            self._point(self.step, loss, said.time_ms if said.time_ms is not None else time_ms)

    # -- what it comes to

    @property
    def last_step(self) -> int | None:
        """The step of a whole run, as the run or its lines tell it; None where nothing does."""
        told = self.num_iterations if self.reading.counts_steps else 0
        told = told or (self.totals[0] if self.totals else 0)
        return told - 1 + self.reading.format.first_step if told else None

    @property
    def steps_done(self) -> int:
        if not self.step and not self.curve:
            return 0
        return self.step + 1 - self.reading.format.first_step

    @property
    def at_end(self) -> bool:
        """Whether the last step that is told has the metric."""
        return bool(self.curve) and self.curve[-1][0] == self.step

    @property
    def says_end(self) -> bool:
        """Whether the trainer has said itself that it is at its end."""
        return bool(self.ended) or self.stands_alone

    @property
    def incomplete(self) -> str:
        return self.incomplete_after(None)

    def incomplete_after(self, returncode: int | None) -> str:
        """Why this is not the log of one complete training, for one with this exit code."""
        metric, row = self.reading.metric, self.reading.format
        if self.unread:
            return self.unread
        if self._in_source:
            return 'the log ends in the source of its trainer: no line of 100 "=" behind that'
        if self.restarted:
            return f"step {self._first} again behind the last one: more than one run"
        if self.conflict:
            return f"{self.conflict}: more than one run, or processes that do not agree"
        if not self.num_iterations and len(self.totals) > 1:
            return f"runs of {self.totals[0]} and of {self.totals[1]} steps: more than one run"
        if self.totals and all(map(self._is_others, self.totals)):
            return f"its lines tell {self.totals[0]} steps, the run has {self.num_iterations}"
        if not self.curve:
            return self._nothing()
        last, by_time = self.last_step, not self.reading.counts_steps
        own_end = (by_time or not self.num_iterations) and self.says_end
        if self.at_end and (own_end or self.step == last or (by_time and returncode == 0)):
            return ""
        seen = f"; not in this form: {text_of(self.odd)}" if self.odd else ""
        if self.at_end and (last is None or by_time):
            return f"nothing tells that step {self.step} is the last one ({row.name}){seen}"
        of = f" of {last}" if last is not None and not by_time else ""
        if self.at_end:
            from_0 = row.name == OWN and self._first == 0 and last == self.step + 1
            counted = "; if steps are counted from 0, say first_step = 0" if from_0 else ""
            return f"the log ends with {metric} at step {self.step}{of}{counted}{seen}"
        return f"{metric} at step {self.curve[-1][0]}{of}, but the log goes to {self.step}{seen}"

    def _nothing(self) -> str:
        """Why there is no value at all."""
        row, metric = self.reading.format, self.reading.metric
        if self.names:
            return f"no {metric} in its lines, which name {', '.join(metrics_in(self))}"
        forms = " | ".join(row.shown)
        last = f"; its last lines: {self.last_words}" if self.last_words else ""
        return f"no line of the form(s) {forms}{last}; forms tried: {row.name}"

    @property
    def ending(self) -> str:
        if self.incomplete:
            return ""
        return f"{self.reading.metric} {self.reading.sign * self.curve[-1][1]:.4f}"

    @property
    def concluded(self) -> str:
        """What says that the training is whole, for the record."""
        step, last = self.curve[-1][0], self.last_step
        of = f" of {last}" if last is not None and self.reading.counts_steps else ""
        how = text_of(self.ended) if self.ended else ""
        turned = "" if self.reading.sign > 0 else " (higher is better: its sign is turned)"
        value = f"{self.reading.metric}{turned} at step {step}{of}"
        return "; ".join(filter(None, (how, value, f"no summary in {self.reading.format.name}")))

    def with_file(self, own: Self) -> Self:
        both = super().with_file(own)
        both.names = {**self.names, **own.names}
        both.totals = list(dict.fromkeys([*self.totals, *own.totals]))[:2]
        both.ended, both.lines = self.ended or own.ended, self.lines + own.lines
        both.stands_alone |= own.stands_alone and own.step == both.step
        one_is_complete = not (self.incomplete and own.incomplete)
        both._in_source = not one_is_complete and (self._in_source or own._in_source)
        return both


def is_quoted(line: bytes, at: int) -> bool:
    """Whether what stands in front of a part of a line, behind its label, makes it a quotation."""
    label = LABEL.match(line, 0, at)
    return bool(QUOTED.fullmatch(line, label.end() if label else 0, at))


def metrics_in(log: Printed) -> list[str]:
    """The names of the values that a log tells, in order."""
    return sorted(getattr(log, "names", ())) or [log.reading.metric] * bool(log.curve)
