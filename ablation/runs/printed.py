"""What did the processes of a run print?  Read as a terminal shows it, in bounded memory.

The part of a log's reading that knows no trainer: lines and what overwrites them, the labels of
ranks and loggers, quotations, torchrun's report, a crash's last words. The readers of our own lines
(`log.py`) and of everybody else's (`foreign_log.py`) are made of it.
"""

import copy
import re
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from ablation.runs.formats import OURS, Reading
from ablation.runs.untrusted import printable

# ---------------------------------------------------------------------------------------------
# What a terminal would show
#
# The last part of a line behind a carriage return, without trailing blanks and colour codes.

CONTROLS = re.compile(  # of terminals: colours and cursor movements, titles, single ones
    rb"\x1b(?:\[[ -?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
)
MAX_LINE = 4096  # bytes; what is longer is no line of a trainer's


def plain(text: bytes) -> bytes:
    """What a terminal would show of a text without carriage returns; empty for nothing."""
    return (CONTROLS.sub(b"", text) if b"\x1b" in text else text).rstrip()


# ---------------------------------------------------------------------------------------------
# What stands in front of a line

LABELS = {  # that ranks and loggers put in front of their lines: an example, the form
    "[rank0]: ": rb"\[[A-Za-z_]{1,20}(?P<tee>[0-9]{1,6})\]:",
    "(rank 0) ": rb"[\[(]?[Rr]ank[ =:]?(?P<rank>[0-9]{1,6})(?![0-9])[\])]?(?: ?[:>])?",
    "2026-11-25 10:00:01,123 ": (
        rb"\[?[0-9]{4}-[0-9]{2}-[0-9]{2}[T _][0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.,][0-9]{1,9})?"
        rb"(?:Z|[+-][0-9]{2}:?[0-9]{2})?\]?[:,]?"
    ),
    "[10:00:01] ": rb"\[?[0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.,][0-9]{1,9})?\]?:?",
    "I1125 10:00:01.123456 4711 train.py:12] ": (
        rb"[IWE][0-9]{4} [0-9:.]{8,20} +[0-9]+ [^\] ]{1,200}\]"
    ),
    "INFO:root:": rb"\[?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?(?::[\w.]{1,80}:|:)?",
    "(worker pid=4711) ": rb"\([\w.]{1,80} pid=[0-9]+(?:, ip=[0-9.]+)?\)",
    " 3: ": rb" {0,6}(?P<task>[0-9]{1,6}):(?= )",  # of srun --label
    "root - ": rb"[\w.:<>]{1,80}(?= [-|] )",
}
BETWEEN = rb"[ \t]{0,20}(?:[-|][ \t]{1,20})?"
LABEL = re.compile(rb"(?:(?:" + rb"|".join(LABELS.values()) + rb")" + BETWEEN + rb"){1,8}")
QUOTATIONS = {  # texts in front of what looks like a step line, that say it is none: an example
    "    ": rb"[ \t]+",  # the example in a docstring
    "> ": rb"[ \t]*>.*",
    "# the last line is ": rb"[ \t]*(?:#[^#]|//|[-*+] ).*",
    "x = [": rb".*[({\[=][ \t]*",
    # a quote that opens: the third, the fifth of its kind, but not the one behind a word
    "print('": rb"[^']*'(?:[^']*'[^']*')*[ \t]*",
    'print("': rb'[^"]*"(?:[^"]*"[^"]*")*[ \t]*',
    "`": rb"[^`]*`(?:[^`]*`[^`]*`)*[ \t]*",
}
QUOTED = re.compile(rb"|".join(QUOTATIONS.values()), re.DOTALL)

# ---------------------------------------------------------------------------------------------
# Everybody else's lines

ERROR_LINE = re.compile(  # a worker of several says which one it is: "[rank0]: ValueError: ..."
    rb"(?:\[rank[0-9]+\]:\s*)?(?:[\w.]*(?:Error|Exception|Interrupt)\b|([\w./-]+: error: ))"
)
OUT_OF_MEMORY = re.compile(rb"out of memory|OutOfMemoryError|can't allocate memory")
KERNEL_KILLED = b"the kernel killed a process of this run: out of memory"  # the watcher's words
# torchrun's report: the worker that failed first, then every worker, the root cause last.
FIRST_FAILED = re.compile(rb"failed \(exitcode: (-?[0-9]{1,5})\) local_rank: [0-9]+ ")
ROOT_CAUSE = b"Root Cause (first observed failure)"
EXIT_CODE = re.compile(rb"\bexitcode\s+: (-?[0-9]{1,5}) \(pid: [0-9]+\)")
ENDED_BY_TORCHRUN = {-15, -9}  # what the siblings of a worker that failed end with
CHATTER = re.compile(  # of torchrun, which explains nothing
    rb"[WEI][0-9]{4} .*torch/distributed/|\*{20,}$|Setting OMP_NUM_THREADS "
)
# A warning of torch's C++ code, some of which are repeated for ever while nothing happens.
CPP_WARNING = re.compile(rb"(?:\[rank[0-9]+\]:\s*)?\[(?:$|W(?:$|[0-9 ]))")
MARKS = (  # one of these is in every line of others that means anything
    *(b"rror", b"xception", b"nterrupt", b"emory", b"xitcode", b"Root Cause"),
)
TAIL = 5  # lines: a crash's last words
MAX_CURVE = 100_000  # lines with the metric that are kept


@dataclass
class Printed:
    """Reads what processes print piece by piece, in bounded memory, whatever bytes it holds.

    `feed` takes bytes as they come, so one reader serves the live line and the final record;
    where they were cut makes no difference. Equal lines of several processes are one; what
    differs is a `conflict`. What a trainer's lines are, a subclass says: `_line`, `_divergence`.
    """

    num_iterations: int  # of the run; 0: not known, the log may tell
    reading: Reading = OURS
    step: int = 0
    train_time_ms: float = 0.0
    # (step, loss, training time in ms: None where the log tells none), steps in their order
    curve: list[tuple[int, float, float | None]] = field(default_factory=list)
    restarted: bool = False  # steps behind the end: two runs in one log
    conflict: str = ""  # two values where all processes should say the same
    odd: bytes = b""  # the last step line in a form of its own
    unread: str = ""  # why the log was not read, or not to its end
    non_finite: bytes = b""
    out_of_memory: bytes = b""
    killed_for_memory: bool = False
    error: bytes = b""
    refusal: bytes = b""  # the last "NAME: error: ..."
    roots: set[int] = field(default_factory=set)  # exit codes that torchrun gives as root causes
    siblings: set[int] = field(default_factory=set)  # and those of the other workers
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=TAIL))
    signs_of_life: int = field(default=0, compare=False)  # grows while anything goes on
    _first_failed: int | None = None
    _in_root: bool = False
    # The line that is not complete: the part that is seen so far, a return, the part behind it.
    _rest: bytes = b""
    _skipping: bool = False  # to the end of a part that is too long

    @property
    def marks(self) -> tuple[bytes, ...]:
        """One of these is in every line of the trainer's; empty: any line may be one."""
        raise NotImplementedError

    def _line(self, line: bytes) -> None:
        """Take a complete line."""
        raise NotImplementedError

    def _divergence(self, text: bytes) -> None:
        """Look for a loss that is no number in what was overwritten, damaged or cut off."""
        raise NotImplementedError

    def feed(self, data: bytes) -> None:
        if self._skipping:
            ends = [at for end in (b"\n", b"\r") if (at := data.find(end)) >= 0]
            if not ends:
                self.signs_of_life += bool(data)
                return
            self._skipping, data = False, data[min(ends) :]
        alive, data = bool(data), self._rest + data
        *lines, rest = data.split(b"\n")
        lines = list(filter(None, lines))
        self.signs_of_life += alive and any(map(is_sign_of_life, (rest, *lines)))
        if self.marks and not any(mark in data for mark in (*MARKS, *self.marks)):
            lines = last_shown(lines)  # a flood of something else: it can only be the last words
        for line in lines:
            if shown := plain(self._last_part(line)):
                self._line(shown)
        self._rest = self._unfinished(rest)

    def close(self) -> Self:
        """A last line without its newline was cut off: it can explain, but never count for a
        result."""
        if not self._skipping and (shown := plain(self._last_part(self._rest))):
            self._divergence(shown)
            self._explain(shown)
        self._rest, self._skipping = b"", False
        return self

    def _last_part(self, line: bytes) -> bytes:
        """The part of a line that is seen in the end; blank ones behind it hide nothing."""
        if b"\r" not in line and len(line) <= MAX_LINE:
            return line
        last = b""
        for part in filter(None, line.split(b"\r")):
            if len(part) > MAX_LINE:
                self._explain_head(part)
                last = b""
            elif text := plain(part):
                last = part
                self._divergence(text)
        return last

    def _unfinished(self, rest: bytes) -> bytes:
        """What has to be kept of a line whose end has not come: bounded, however long it gets."""
        done, overwritten, last = rest.rpartition(b"\r")
        shown = self._last_part(done) if overwritten else b""
        if len(last) > MAX_LINE:  # an endless line: take its head once, then skip to its end
            self._explain_head(last)
            self._skipping = True
            return b""
        return shown + overwritten + last

    def _explain_head(self, part: bytes) -> None:
        if head := plain(part[:MAX_LINE]):
            self._explain(head)

    # -- one line

    def _point(self, step: int, loss: float, train_time_ms: float | None) -> None:
        at = bisect_left(self.curve, step, key=lambda point: point[0])
        if at == len(self.curve) or self.curve[at][0] != step:
            if len(self.curve) < MAX_CURVE:
                self.curve.insert(at, (step, loss, train_time_ms))
            else:
                self.unread = self.unread or f"more than {MAX_CURVE} {self.reading.metric} lines"
        elif self.curve[at][1] != loss:
            one, other = (self.reading.sign * x for x in (self.curve[at][1], loss))
            both = f"{self.reading.metric} {one:.6f} and {other:.6f}"
            self.conflict = self.conflict or f"the log says {both} at step {step}"

    def _explain(self, line: bytes) -> None:
        if KERNEL_KILLED in line:
            self.killed_for_memory = True
            return
        if b"xitcode" in line or ROOT_CAUSE in line:
            self._report(line)
        if b"emory" in line and OUT_OF_MEMORY.search(line):
            self.out_of_memory = line
        # torchrun's own last words only say that a worker failed, not why
        if (match := ERROR_LINE.match(line)) and b"ChildFailedError" not in line:
            self.error, self.refusal = line, line if match[1] else self.refusal
        if self._first_failed is None and not CHATTER.match(line):
            self.tail.append(line)

    def _report(self, line: bytes) -> None:
        """A line of torchrun's report."""
        if match := FIRST_FAILED.search(line):
            self._first_failed = int(match[1])
        elif match := EXIT_CODE.search(line):
            codes = self.roots if self._in_root else self.siblings
            codes.add(int(match[1]))
        self._in_root = ROOT_CAUSE in line

    # -- what it comes to

    # -- what it comes to

    @property
    def incomplete(self) -> str:
        """Why this is not the log of one complete training; empty when it is."""
        raise NotImplementedError

    def incomplete_after(self, returncode: int | None) -> str:
        """The same of an attempt that ended with this exit code."""
        return self.incomplete

    @property
    def steps_done(self) -> int:
        return self.step

    @property
    def worker_exit(self) -> int | None:
        """The exit code of the worker that torchrun gives as the root cause, if it gives one."""
        return next(iter(self.roots)) if len(self.roots) == 1 else self._first_failed

    @property
    def worker_refused(self) -> bool:
        """Whether torchrun's report is that of a trainer that refuses to work (exit code 2).

        A worker that loses its peers fails as well. Where another one failed in its own way, the
        trainer's own word that it refuses decides.
        """
        alone = self.siblings <= {2, *ENDED_BY_TORCHRUN}
        return self.roots == {2} and bool(self.refusal or alone)

    @property
    def last_words(self) -> str:
        """The last error that was printed; else the last lines; empty where there are none."""
        return text_of(self.error) or " | ".join(filter(None, map(text_of, self.tail)))

    @property
    def ending(self) -> str:
        """What a complete log ends with; empty where it is not complete."""
        raise NotImplementedError

    @property
    def contents(self) -> str:
        """What the log holds, in a few words."""
        if ending := self.ending:
            return f"the log is complete, {ending}"
        if self.step or self.curve:
            told = self.num_iterations and self.reading.counts_steps
            of = f" of {self.num_iterations}" if told else ""
            return f"the log ends at step {self.step}{of}"
        return self.unread or ("no step was logged" if self.tail or self.error else NOTHING)

    def with_file(self, own: Self) -> Self:
        """What the screen's copy of a log and the trainer's own file say together.

        Both hold the same lines. What is damaged in one counts where the other one is complete; a
        loss that is not finite in either is a divergence, and what differs is a conflict.
        """
        both = copy.copy(self)
        both.curve = list(self.curve)
        for name in ("conflict", "odd", "non_finite", "out_of_memory", "error", "refusal"):
            setattr(both, name, getattr(self, name) or getattr(own, name))
        both.restarted |= own.restarted
        both.step = max(self.step, own.step)
        for point in own.curve:
            both._point(*point)
        if not (self.incomplete and own.incomplete):
            both.unread = ""
        else:
            both.unread = self.unread or own.unread
        if not self.tail:
            both.tail = own.tail
        return both


NOTHING = "nothing printed"


def text_of(line: bytes) -> str:
    return printable(line.decode("utf-8", errors="replace"))


def rank_of(label: re.Match | None) -> bytes | None:
    """Which process a label names; None for none."""
    return label and (label["tee"] or label["rank"] or label["task"])


def label_before(line: bytes, end: int) -> re.Match | None:
    """The label of a line behind which a text without a line end stands in front of its own."""
    return next((m for m in LABEL.finditer(line, 0, end) if m.end() == end), None)


def is_sign_of_life(line: bytes) -> bool:
    """Whether a line, or the beginning of one, shows that something goes on."""
    return bool(line.strip()) and not CPP_WARNING.match(line)


def last_shown(lines: list[bytes]) -> list[bytes]:
    """The last lines of which a terminal would show anything: enough for a crash's last words."""
    found = []
    for line in reversed(lines):
        if any(plain(part[:MAX_LINE]) for part in filter(None, line.split(b"\r"))):
            found.append(line)
            if len(found) == TAIL:
                break
    return found[::-1]
