"""What does a training log say?  The lines of a trainer, found in whatever else was printed.

A log holds everything that the processes printed: the trainer's lines, torchrun's, a library's
warnings, perhaps another program's. It is read as a terminal would show it, and only what has
exactly the trainer's form, with this run's own number of iterations, counts. Whatever bytes it
holds, the answer is a `LogReader` that says what was logged, and why it is not the log of one
complete training, if it is not.
"""

import copy
import json
import math
import os
import re
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from ablation.runs.untrusted import open_regular, printable, unique

# ---------------------------------------------------------------------------------------------
# What a terminal would show
#
# The last part of a line behind a carriage return, without trailing blanks and colour codes.

CONTROLS = re.compile(  # of terminals: colours and cursor movements, titles, single ones
    rb"\x1b(?:\[[ -?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
)
MAX_LINE = 4096  # bytes; what is longer is no line of ours


def plain(text: bytes) -> bytes:
    """What a terminal would show of a text without carriage returns; empty for nothing."""
    return (CONTROLS.sub(b"", text) if b"\x1b" in text else text).rstrip()


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
NO_NUMBER = re.compile(rb"[-+]?1\.#(?:IND|[QS]NAN|INF)0*")  # as the C library of Windows says it
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
MAX_CURVE = 100_000  # val_loss lines that are kept

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
MARKS = (  # one of these is in every line that means anything
    *(b"step:", SUMMARY, b"rror", b"xception", b"nterrupt", b"emory", b"xitcode", b"Root Cause"),
)
TAIL = 5  # lines: a crash's last words


@dataclass
class LogReader:
    """Reads a training log piece by piece, in bounded memory, whatever bytes it holds.

    `feed` takes bytes as they come, so one reader serves the live line and the final record;
    where they were cut makes no difference. Equal lines of several processes are one; what
    differs is a `conflict`.
    """

    num_iterations: int
    step: int = 0
    train_time_ms: float = 0.0
    train_loss: float | None = None
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # steps in their order
    summary: dict | None = None
    summaries: int = 0
    restarted: bool = False  # step lines behind the summary: two runs in one log
    conflict: str = ""  # two values where all processes should say the same
    fault: str = ""  # of a summary's field
    damaged: bool = False  # a summary that is no JSON
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
    _summary_rank: bytes | None = None
    # The line that is not complete: the part that is seen so far, a return, the part behind it.
    _rest: bytes = b""
    _skipping: bool = False  # to the end of a part that is too long

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
        if not any(mark in data for mark in MARKS):
            lines = last_shown(lines)  # a flood of something else: it can only be the last words
        for line in lines:
            if shown := plain(self._last_part(line)):
                self._line(shown)
        self._rest = self._unfinished(rest)

    def close(self) -> "LogReader":
        """A last line without its newline was cut off: it can explain, but never count for a
        result."""
        if not self._skipping and (shown := plain(self._last_part(self._rest))):
            self._look_for_divergence(shown)
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
                if b"step:" in text:
                    self._look_for_divergence(text)
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

    def _line(self, line: bytes) -> None:
        if b"step:" not in line and SUMMARY not in line:
            return self._explain(line)
        if match := STEP_LINE.fullmatch(line):
            return self._step(line, *match.groups())
        self._look_for_divergence(line)
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

    def _look_for_divergence(self, text: bytes) -> None:
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

    def _point(self, step: int, loss: float, train_time_ms: float) -> None:
        at = bisect_left(self.curve, step, key=lambda point: point[0])
        if at == len(self.curve) or self.curve[at][0] != step:
            if len(self.curve) < MAX_CURVE:
                self.curve.insert(at, (step, loss, train_time_ms))
            else:
                self.unread = self.unread or f"more than {MAX_CURVE} val_loss lines"
        elif self.curve[at][1] != loss:
            both = f"val_loss {self.curve[at][1]:.6f} and {loss:.6f}"
            self.conflict = self.conflict or f"the log says {both} at step {step}"

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
    def contents(self) -> str:
        """What the log holds, in a few words."""
        if self.summary and not self.incomplete:
            return f"the log is complete, val_loss {self.summary['val_loss']:.4f}"
        if self.step or self.curve or self.summaries:
            return f"the log ends at step {self.step} of {self.num_iterations}"
        return self.unread or ("no step was logged" if self.tail or self.error else NOTHING)


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


# ---------------------------------------------------------------------------------------------
# Logs on disk

MAX_LOG = 1 << 30  # bytes that are read of a log, some 10 s; a complete one has less than 1 MiB
LAST = 1 << 26  # bytes at the end of a longer one


def read_log(path: Path, num_iterations: int) -> LogReader:
    """Stream a log file through a LogReader; a missing file is an empty log.

    Read is what the file holds at this moment. What a log longer than MAX_LOG says is not known:
    its end gives the last words and nothing more. The same for what is no file, or may not be read.
    """
    reader = LogReader(num_iterations)
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


def evidence(screen: LogReader, own: LogReader) -> LogReader:
    """What the screen's copy of a log and the trainer's own file say together.

    Both hold the same lines. What is damaged in one counts where the other one is complete; a loss
    that is not finite in either is a divergence, and what differs is a conflict.
    """
    both = copy.copy(screen)
    both.curve, both.summary = list(screen.curve), screen.summary
    for name in ("conflict", "fault", "odd", "non_finite", "out_of_memory", "error", "refusal"):
        setattr(both, name, getattr(screen, name) or getattr(own, name))
    both.restarted |= own.restarted
    both.step, both.summaries = max(screen.step, own.step), max(screen.summaries, own.summaries)
    for point in own.curve:
        both._point(*point)
    if own.summary:
        both._agree(own.summary)
    one_is_complete = not (screen.incomplete and own.incomplete)
    both.damaged = not one_is_complete and (screen.damaged or own.damaged)
    both.unread = "" if one_is_complete else screen.unread or own.unread
    if not screen.tail:
        both.tail = own.tail
    return both
