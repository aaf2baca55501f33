"""Which forms do logs have, and what does one of their lines say?  A table, a row a trainer.

`FORMATS` has the forms that are known, `own_format` makes a row of what a user writes, and
`guess_format` tells from a log which row is its own. What a line says is a `Said`; whether a log
is that of one complete training, its reader decides (`foreign_log.py`; `log.py` for our own
trainer, whose lines are stricter than any row).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ablation.runs.untrusted import open_regular, printable, unique

# ---------------------------------------------------------------------------------------------
# Numbers of a line

VALUE = rb"[-+.#0-9A-Za-z]{1,32}"  # whatever stands where a number belongs
WHOLE = rb"[0-9]{1,12}"
NO_NUMBER = re.compile(rb"[-+]?1\.#(?:IND|[QS]NAN|INF)0*")  # as the C library of Windows says it
NOT_FINITE = rb"[-+]?(?:(?i:nan|inf(?:inity)?)(?![0-9A-Za-z_])|1\.#[A-Z]{3})"
NUMBER = re.compile(rb"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
LOSSES = re.compile(r"(?:.* )?(?:(?:train|val)[_/ ])?loss")  # none of these may be NaN, ever
TIMES_MS = {  # names of a training time since the start, and what one unit of it is
    **{"train_time_ms": 1.0, "time_ms": 1.0, "elapsed_ms": 1.0},
    **{"train_time_s": 1000.0, "time_s": 1000.0, "elapsed_s": 1000.0, "training_seconds": 1000.0},
}
UNITS_MS = {b"ms": 1.0, b"s": 1000.0}
STEPS = ("step", "iteration", "iter")  # names of the step in a line of JSON
TOTALS = ("total", "total_steps", "max_steps", "num_iterations", "max_iters")
STEPS_IN_ALL = "num_steps"  # a line of its own, behind the training
OWN = "own"  # the name of the row that a user writes
MAX_OWN_LINE = 1024  # bytes; a longer line is none of a form that a user wrote: its cost is bounded


def number_in(text: bytes) -> float | None:
    """A number as it is printed; None for anything else."""
    try:
        value = math.nan if NO_NUMBER.fullmatch(text) else float(text)
    except ValueError:
        return None
    return None if b"_" in text else value  # 3_2 is a number of Python's alone


class Said(NamedTuple):
    """What one line says."""

    step: int | None  # None: it stands without one
    total: int | None  # steps of the whole run
    values: dict[str, float]  # by name; also those that are not finite
    time_ms: float | None  # of training, since the start


# ---------------------------------------------------------------------------------------------
# A row of the table


@dataclass(frozen=True)
class LogFormat:
    """How the lines of a trainer look. Lines are matched whole, behind the label of a rank.

    Groups of `lines`: `step`, `total`, `time_ms`, `time_s`, `pairs` (NAME:VALUE, one or more), and
    any metric by its name; a group `value` is the metric of the study.
    """

    name: str
    shown: tuple[str, ...]  # its lines for a person; I: an integer, F: a number
    sign: re.Pattern[bytes] | None = None  # what a log of this form holds and of no earlier row
    marks: tuple[bytes, ...] = ()  # one of these is in every line of this form; none: look at all
    lines: tuple[re.Pattern[bytes], ...] = ()  # with a step
    alone: tuple[re.Pattern[bytes], ...] = ()  # without one: `label` (of each name), `pairs`
    quick: re.Pattern[bytes] | None = None  # how a line with a step begins: step, total
    end: re.Pattern[bytes] | None = None  # its own word for an end before the last step: `step`
    diverged: re.Pattern[bytes] | None = None  # found anywhere in a line, also a damaged one
    json: bool = False  # each line is an object of JSON
    summary: bool = False  # our own: a last line of JSON, read by the strictest reader
    first_step: int = 1  # 0: steps are counted from 0, and the last one is the total less 1
    value: str = ""  # the name of the group `value`
    most: int = 4096  # bytes of a line

    @cached_property
    def behind_text(self) -> tuple[re.Pattern[bytes], ...]:
        """The same lines behind a progress bar or a warning that has no line end. Not behind a
        word: `global_step:` counts something else. Of a user's own form that would cost too much:
        it may begin with anything."""
        patterns = self.lines if self.marks else ()
        return tuple(re.compile(rb"(?<![\w/-])(?:" + p.pattern + rb")\Z") for p in patterns)

    def said(self, text: bytes) -> Said | None:
        """What a whole line says; None for a line of another form."""
        if len(text) > self.most:
            return None
        if self.json:
            return said_in_json(text) if text.startswith(b"{") else None
        for pattern in self.lines:
            if match := pattern.fullmatch(text):
                return self.said_by(match)
        for pattern in self.alone:
            if match := pattern.fullmatch(text):
                return said_alone(match)
        return None

    def said_by(self, match: re.Match[bytes]) -> Said | None:
        """What a line with a step says."""
        found = {name: text for name, text in match.groupdict().items() if text is not None}
        step, total = (found.pop(name, b"") for name in ("step", "total"))
        if not all(number.isdigit() and len(number) <= 12 for number in (step, total or b"0")):
            return None
        pairs = list(pairs_in(found.pop("pairs", b"")))
        if len(said := dict(pairs)) < len(pairs):
            return None  # it says a thing twice
        for name, text in found.items():
            if (value := number_in(text)) is None or not ends_as_number(match, name):
                return None
            said[self.value if name == "value" else name] = value
        return Said(int(step), int(total) if total else None, *timed(said))


def ends_as_number(match: re.Match[bytes], name: str) -> bool:
    """Whether a group holds all of a number, not the first part: 3.2 of 3.2741, 3 of 3e-5."""
    number = NUMBER.match(match.string, match.start(name))
    return not number or number.end() <= match.end(name)


PAIR = re.compile(rb"([A-Za-z_][\w/]{0,63})(?::|: {1,20})(" + VALUE + rb")")
UNIT = re.compile(rb"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s)")


def pairs_in(text: bytes) -> Iterator[tuple[str, float]]:
    """NAME:VALUE, one or more. A training time has a unit; another number that has one is none."""
    for name, value in PAIR.findall(text):
        if name == b"train_time":
            if unit := UNIT.fullmatch(value):
                yield "train_time_ms", UNITS_MS[unit[2]] * float(unit[1])
        elif (number := number_in(value)) is not None:
            yield name.decode(), number


def timed(said: dict[str, float]) -> tuple[dict[str, float], float | None]:
    """The values of a line, and its training time."""
    if TIMES_MS.keys().isdisjoint(said):
        return said, None
    times = [unit * said.pop(name) for name, unit in TIMES_MS.items() if name in said]
    return said, times[0] if times and 0 <= times[0] <= 1e15 else None


def said_alone(match: re.Match[bytes]) -> Said:
    label = match.groupdict().get("label") or b""
    values, time_ms = timed(dict(pairs_in(match["pairs"])))
    front = f"{label.decode()} " if label else ""
    return Said(None, None, {f"{front}{name}": value for name, value in values.items()}, time_ms)


def said_in_json(text: bytes) -> Said | None:
    """What an object of JSON says: its numbers by name, also NaN, and as a text."""
    try:
        found = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    numbers = {k: n for k, value in found.items() if (n := number_of_json(value)) is not None}
    steps, totals = ([numbers.pop(k) for k in names if k in numbers] for names in (STEPS, TOTALS))
    if not all(0 <= n < 1e12 and n == int(n) for n in (*steps, *totals)):
        return None
    step, total = (int(found[0]) if found else None for found in (steps, totals))
    return Said(step, total, *timed(numbers))


def number_of_json(value) -> float | None:
    if isinstance(value, str):
        value = number_in(value.encode()) if len(value) <= 9 else None
        return value if value is not None and not math.isfinite(value) else None
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:
        return math.inf


# ---------------------------------------------------------------------------------------------
# The table


def pattern(text: bytes) -> re.Pattern[bytes]:
    """A form in which <I> is a whole number, <F> whatever stands where a number belongs."""
    for short, long in ((b"<I>", WHOLE), (b"<F>", VALUE), (b"<NAME>", rb"[A-Za-z_][\w/]{0,63}")):
        text = text.replace(short, long)
    return re.compile(text)


SPEEDRUN = (
    pattern(rb"step:(?P<step><I>)/(?P<total><I>)(?P<pairs>(?: <NAME>:<F>){1,16})"),
    pattern(rb"(?P<step><I>)/(?P<total><I>)(?P<pairs>(?: <NAME>: <F>){1,16})"),
)
SPEEDRUN_BEGINS = pattern(rb"(?:step:)?(<I>)/(<I>) ")
SPEEDRUN_SIGN = pattern(
    rb"(?<![\w\"'`/-])(?:step:<I>/<I> (?:[a-z_]+:<F> )?(?:val|train)_loss:[-+.0-9nN]"
    rb"|<I>/<I> val_loss: )"
)
STOPPED_EARLY = pattern(
    rb"stopping_early: [\w.-]{1,40}(?: train_time:<F>)? step:(?P<step><I>)/(?P<total><I>)"
)
SPEEDRUN_NAN = re.compile(
    rb"(?<![\w\"'`/-])step:(?P<step>[0-9]{1,12})/(?P<total>[0-9]{1,12})"
    rb" (?:[a-z_]{1,20}:[-+.0-9]{1,32} ){0,2}(?:train|val)_loss:"
    rb"(?:(?!(?i:nan|inf))[A-Za-z_][\w.]{0,30}\()?" + NOT_FINITE
)
SPEEDRUN_SHOWN = (
    "step:I/I val_loss:F train_time:Ims step_avg:Fms",
    "step:I/I val_loss:F val_bpb:F train_time:Fs step_avg:Fms",
    "I/I val_loss: F val_bpb: F",
)
ROWS = (
    LogFormat(
        name="ours",
        shown=(SPEEDRUN_SHOWN[0], "summary: {json}"),
        sign=re.compile(rb'(?<![\w"\'`])summary: \{"val_loss": '),
        marks=(b"step:",),
        lines=SPEEDRUN[:1],
        diverged=SPEEDRUN_NAN,
        summary=True,
    ),
    LogFormat(
        name="parameter-golf",
        shown=(*SPEEDRUN_SHOWN, "final_int8_zlib_roundtrip_exact val_loss:F val_bpb:F"),
        sign=pattern(
            rb"(?<![\w\"'`({=.:/-])[A-Za-z][\w.+-]{0,63} (?:val_loss: ?<F> )?val_bpb: ?[-+.0-9nN]"
        ),
        marks=(b"step:", b"_loss", b"_bpb"),
        lines=SPEEDRUN,
        quick=SPEEDRUN_BEGINS,
        alone=(
            pattern(
                rb"(?P<label>[A-Za-z][\w.+-]{0,63}(?: [\w.+-]{1,64}){0,4})(?P<pairs>"
                rb"(?: (?!val_)<NAME>: ?<F>){0,4} val_(?:loss|bpb): ?<F>(?: <NAME>: ?<F>){0,8})"
            ),
        ),
        end=STOPPED_EARLY,
        diverged=SPEEDRUN_NAN,
    ),
    LogFormat(
        name="modded-nanogpt",
        shown=SPEEDRUN_SHOWN,
        sign=SPEEDRUN_SIGN,
        marks=(b"step:", b"_loss: "),
        lines=SPEEDRUN,
        quick=SPEEDRUN_BEGINS,
        end=STOPPED_EARLY,
        diverged=SPEEDRUN_NAN,
    ),
    LogFormat(
        name="nanogpt",
        shown=("step I: train loss F, val loss F", "iter I: loss F, time Fms, mfu F%"),
        sign=pattern(rb"(?<![\w\"'`])(?:step <I>: train|iter <I>:) loss [-+.0-9nN]"),
        marks=(b"step ", b"iter "),
        lines=(
            pattern(
                rb"step (?P<step><I>): train loss (?P<train_loss><F>), val loss (?P<val_loss><F>)"
            ),
            pattern(rb"iter (?P<step><I>): loss (?P<loss><F>), time <F>ms(?:, mfu <F>%)?"),
        ),
        quick=pattern(rb"iter (<I>): "),
        diverged=re.compile(
            rb"(?<![\w\"'`])(?:iter (?P<step>[0-9]{1,12}): loss |step [0-9]{1,12}: train loss "
            rb"(?:[-+.0-9e]{1,32}, val loss )?)" + NOT_FINITE
        ),
    ),
    LogFormat(
        name="autoresearch",
        shown=("val_bpb: F", "num_steps: I", "training_seconds: F", "step I (F%) | loss: F | ..."),
        sign=pattern(rb"(?m:^)val_bpb: {1,20}[-+.0-9nN]"),
        marks=(b": ", b"FAIL"),
        lines=(pattern(rb"step (?P<step><I>) \([0-9.]{1,8}%\) \| loss: (?P<loss><F>)(?: \|.*)?"),),
        quick=pattern(rb"step (<I>) \([0-9.]{1,8}%\) "),
        alone=(pattern(rb"(?P<pairs><NAME>: {1,20}<F>)"),),
        diverged=re.compile(rb"\AFAIL\Z"),
    ),
    LogFormat(
        name="json-lines",
        shown=('{"step": I, "val_loss": F, "train_time_ms": F}',),
        sign=re.compile(rb'(?m:^)\{(?:[^\n]{0,2000}, ?)?"(?:step|iteration|iter)": ?[0-9]+[,}. ]'),
        marks=(b"{",),
        json=True,
    ),
)
FORMATS = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Reading:
    """How a run's log is read. Raises ValueError for a direction that is none.

    A loss is lower where it is better, everywhere in this house: a metric that is better higher has
    its sign turned when it is read, and turned back by whoever shows it (`sign`).
    """

    format: LogFormat = field(default=FORMATS["ours"])
    metric: str = "val_loss"
    better: str = "lower"  # or "higher"
    counts_steps: bool = True  # False: the trainer ends by time, its number of steps is not known

    def __post_init__(self):
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better {printable(repr(self.better))}: give 'lower' or 'higher'")
        strict = (self.metric, self.better, self.counts_steps) == ("val_loss", "lower", True)
        if self.format.summary and not strict:
            raise ValueError(
                f"metric {printable(repr(self.metric))}: the log 'ours' has val_loss, lower is"
                " better, and its length in steps; for anything else name another form of log"
            )

    @property
    def sign(self) -> float:
        return 1.0 if self.better == "lower" else -1.0


OURS = Reading()

# ---------------------------------------------------------------------------------------------
# A user's own row

KEYS = ("step", "end", "example", "first_step")  # of the table `log` in a study's file
NO_METRIC = {"step", "total", "time_ms", "time_s"}
VISIBLE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")  # what hides a sign: an escape, a class
INNER = re.compile(r"\((?:\?(?:P<\w+>|:|[=!]|<[=!]|[a-z-]+:))?([^()]*)\)([*+{]?)")


def own_format(table: Mapping, metric: str = "val_loss") -> LogFormat:
    """The row that a user's table `log` describes. Raises ValueError with all of its faults, a
    line each."""
    faults = list(faults_of_keys(table))
    patterns: dict[str, re.Pattern[bytes]] = {}
    for key in ("step", "end"):
        if key in table:
            compiled, fault = compiled_from(key, table[key])
            patterns |= {key: compiled} if compiled else {}
            faults += [fault] if fault else []
    first_step = table.get("first_step", 1)
    row = LogFormat(
        name=OWN,
        shown=(str(table.get("step", "")),),
        lines=(patterns["step"],) if "step" in patterns else (),
        end=patterns.get("end"),
        first_step=first_step,
        value=metric,
        most=MAX_OWN_LINE,
    )
    if row.lines:
        faults += faults_of_step(row, metric)
        example = table.get("example")
        if isinstance(example, str) and not any("log.step" in fault for fault in faults):
            faults += filter(None, [fault_of_example(row, example, metric)])
    if faults:
        raise ValueError("\n".join(faults))
    return row


def faults_of_keys(table: Mapping) -> Iterator[str]:
    for key in table:
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, n=1)
            meant = f"; {near[0]!r} is meant?" if near else f": give {', '.join(KEYS)}"
            yield f"log.{printable(str(key), 40)} is no key of a log's form{meant}"
    for key, what in (("step", "a regular expression"), ("example", "a line that it matches")):
        if key not in table:
            yield f"no log.{key}: give {what}"
    if not isinstance(table.get("example", ""), str):
        yield f"log.example {printable(repr(table['example']), 60)}: give a text"
    first = table.get("first_step", 1)
    if type(first) is not int or first not in (0, 1):
        yield f"log.first_step {printable(repr(first), 40)}: give 0 or 1"


def compiled_from(key: str, text) -> tuple[re.Pattern[bytes] | None, str]:
    """A user's regular expression, or what is wrong with it."""
    if not isinstance(text, str):
        return None, f"log.{key} {printable(repr(text), 60)}: give a text"
    said = f"log.{key} {printable(repr(text), 120)}"
    if len(text) > MAX_OWN_LINE:
        return None, f"{said}: longer than {MAX_OWN_LINE} characters"
    if may_take_for_ever(text):
        return None, f"{said}: a group that repeats holds * + ? {{ or |, and may take for ever"
    try:
        return re.compile(text.encode()), ""
    except (re.error, UnicodeEncodeError, OverflowError, RecursionError) as error:
        return None, f"{said} is no regular expression: {error}"


def may_take_for_ever(text: str) -> bool:
    """Whether a group that is repeated as a whole can match one text in several ways, as (a+)* or
    (a|aa)+ can: matching may take exponential time."""
    text = VISIBLE.sub("x", text)
    while match := INNER.search(text):
        repeats = any(sign in match[1] for sign in "*+?{|\0")
        if repeats and match[2]:
            return True
        inside = "\0" if repeats or match[2] else "x"
        text = text[: match.start()] + inside + text[match.end() :]
    return False


def faults_of_step(row: LogFormat, metric: str) -> Iterator[str]:
    names = set(row.lines[0].groupindex)
    if "step" not in names:
        yield "log.step has no group for the step: write (?P<step>[0-9]+) in it"
    if "value" not in names and metric not in names:
        there = ", ".join(sorted(names - NO_METRIC)) or "none"
        yield f"log.step has no group for {metric} (it names {there}): write (?P<value>\\S+) in it"


def fault_of_example(row: LogFormat, example: str, metric: str) -> str:
    """What is wrong with the line that a user's form is shown by; empty for nothing."""
    line = example.encode(errors="replace").rstrip()
    quoted = f"log.example {printable(repr(example), 120)}"
    if not (match := row.lines[0].fullmatch(line)):
        part = row.lines[0].search(line)
        how = f"only {printable(repr(part[0].decode(errors='replace')), 60)} of it" if part else ""
        remedy = "; it has to match the whole line: write .* for what may follow" if how else ""
        return f"{quoted}: log.step matches {how or 'nothing of it'}{remedy}"
    said = row.said(line)
    if said is None or not math.isfinite(said.values.get(metric, math.nan)):
        return f"{quoted}: what log.step finds in it is no step and no number for {metric}"
    group = "value" if "value" in match.groupdict() else metric
    start, end = match.span(group)
    nan = row.said(line[:start] + b"nan" + line[end:])
    if nan is None or metric not in nan.values:
        return (
            f"{quoted}: with nan as its {metric} log.step does not match it, and would not see a"
            f" divergence: write (?P<{group}>\\S+), or [^, ]+ for \\S+"
        )
    return ""


# ---------------------------------------------------------------------------------------------
# A log whose form nobody told

RULE = b"=" * 100  # the line that ends what stands in front of a log: its trainer's source
SOURCE = re.compile(  # every source has such a line near its beginning
    rb"#!/|[rR]?(?:\"\"\"|''')|"
    rb"import [A-Za-z_][\w.]*(?: as \w+)?(?:,|[ \t]*#|[ \t]*\r?(?:\n|\Z))|from [\w.]+ import [\w(*]"
)
SOURCE_MARKS = (b"#!/", b'"""', b"'''", b"import ")
MAX_GUESSED = 1 << 22  # bytes of a log that are read for a guess; chosen, twenty long sources
LOOK = 1 << 16  # bytes at each end of what was printed in which signs are sought


def guess_format(log: Path | bytes) -> LogFormat | None:
    """The form of a log, by what its trainer printed; None for none that is known. Raises as
    `open_regular`."""
    if isinstance(log, bytes):
        data = log[:MAX_GUESSED]
    else:
        with open_regular(log) as file:
            data = file.read(MAX_GUESSED)
    output = output_in(data)
    if len(output) > 2 * LOOK:
        output = output[:LOOK] + b"\n" + output[-LOOK:]
    signs = ((row, row.sign) for row in ROWS if row.sign)
    return next((row for row, sign in signs if sign.search(output)), None)


def output_in(data: bytes) -> bytes:
    """A log without the source of its trainer at its head."""
    blocks = data.split(RULE + b"\n")
    for at, block in enumerate(blocks[:-1]):
        if not re.search(rb"(?m:^)" + SOURCE.pattern, block) and block.strip():
            return b"\n".join(blocks[at:])
    return blocks[-1]
