"""What does a report consist of?  Pieces that hold words and values, and know of no layout.

Chapters make them, `text.py` renders them as plain text. Of numbers the chapters decide the digits,
as these say how much is known; what is undefined is a dash.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ablation.plan.decision import p_text
from ablation.stats import Ratio

# ---------------------------------------------------------------------------------------------
# Pieces


class Role(StrEnum):
    """What a paragraph is to what stands around it."""

    TEXT = "text"
    TITLE = "title"  # of the whole report
    ANSWER = "answer"  # the one sentence, of a page
    WARNING = "warning"  # before everything else
    SUBHEADING = "subheading"  # of the tables that follow
    CAPTION = "caption"  # of the table that follows
    ITEM = "item"  # one of a list
    DETAIL = "detail"  # of the item above
    NOTE = "note"  # on the item or table above
    RULE = "rule"  # by which the item above is decided
    REASON = "reason"  # of the failure above, in the words of whoever saw it
    FILE = "file"  # and what is wrong with it


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    role: Role = Role.TEXT


@dataclass(frozen=True)
class Pairs:
    """Names, each with its value."""

    rows: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Column:
    title: str
    align: str = "left"  # or "right": numbers


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple, ...]  # a value for each column: a text, a number, or None


@dataclass(frozen=True)
class Figure:
    name: str  # of its file
    outcome: str  # "drawn", or why there is none


Content = Heading | Paragraph | Pairs | Table | Figure


class Linked(str):
    """A value of a table that leads to a file. As a text it is the value alone."""

    file: Path  # beside the experiment's other files, or absolute

    def __new__(cls, text: str, file: Path) -> "Linked":
        linked = super().__new__(cls, text)
        linked.file = file
        return linked


@dataclass(frozen=True)
class Chart:
    """A picture that a page draws, as plotly.js takes it (https://plotly.com/javascript/reference):
    JSON values alone, nothing computed in the page."""

    name: str  # of its element: letters and underscores, unique in its page
    title: str  # what it shows, in a few words
    caption: str  # how to read it, and what n is
    data: tuple[dict[str, Any], ...]  # traces
    layout: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A stage of the plan, as a station on the way to the answer."""

    name: str
    state: str  # "decided", "under way", "next", "to come", "not reached", "left out" and why
    title: str  # what was decided
    rule: str
    numbers: tuple[tuple[str, str], ...]  # names, each with its value


@dataclass(frozen=True)
class Steps:
    """The stages in their order."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Folded:
    """What most readers pass over: one line, and the rest when it is opened."""

    title: str
    contents: tuple["PageContent", ...]


PageContent = Content | Chart | Steps | Folded  # of which a text shows the first alone


@dataclass(frozen=True)
class Section:
    """A part of the page with a title and a place of its own."""

    name: str  # of its element
    title: str
    contents: tuple[PageContent, ...]


@dataclass(frozen=True)
class Page:
    """All that a page holds; how it looks is another question."""

    kicker: str  # what this is a page of
    title: str  # the question
    first: tuple[PageContent, ...]  # the first screen
    sections: tuple[Section, ...]  # none of them empty
    written_s: float  # since 1970
    live: bool = False  # the page will be written again


def columns(*titles: str, left: tuple[str, ...] = ()) -> tuple[Column, ...]:
    """Columns of numbers, but for those named in `left`."""
    return tuple(Column(title, "left" if title in left else "right") for title in titles)


# ---------------------------------------------------------------------------------------------
# Values in words

DASH = "\N{EN DASH}"  # undefined
AND_SO = " \N{EN DASH}"  # in a page's answer: between the verdict and what it rests on


def number(value: float | None, form: str) -> str:
    """A number in a format of Python's, such as ".4f"."""
    return DASH if value is None else format(value, form)


def span(low: float | None, high: float | None) -> str:
    """An interval, in nats/token."""
    return DASH if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def level(alpha: float) -> str:
    """The level of an interval: 0.05 is 95 %."""
    return f"{100 * (1 - alpha):g} %"


def percent(share: Ratio | None) -> str:
    """A ratio less 1, with its interval where it has one."""
    if share is None:
        return DASH
    reach = "" if share.low is None else f" ({share.low:+.1%} to {share.high:+.1%})"
    return f"{share.ratio:+.1%}{reach}"


def bare_p(p: float) -> str:
    """A p-value without its letter: 0.0123 or <0.0001."""
    return p_text(p).removeprefix("p ").removeprefix("= ").replace(" ", "")


def numbered(
    chapters: Mapping[str, Callable[[Any], Iterator[Content]]], of: Any, figures: Mapping[str, str]
) -> Iterator[Content]:
    """Chapters by their titles, and the figures at the end; figures maps each name to what became
    of it."""
    for n, (title, chapter) in enumerate(chapters.items(), 1):
        yield Heading(f"{n}. {title}")
        yield from chapter(of)
    yield Heading(f"{len(chapters) + 1}. Figures")
    yield from (Figure(name, outcome) for name, outcome in figures.items())
    if "drawn" in figures.values():
        yield Paragraph("Beside each figure lies its caption, a text of the same name.", Role.NOTE)
