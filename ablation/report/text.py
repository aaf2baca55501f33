"""How does a report look as plain text?  At most WIDTH columns, nothing unprintable."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ablation.report.content import (
    DASH,
    Column,
    Content,
    Figure,
    Heading,
    Pairs,
    Paragraph,
    Role,
    Table,
)
from ablation.report.evidence import simple

WIDTH = 100  # columns: chosen, as wide as the lines of the code


class Layout(NamedTuple):
    """Where a paragraph stands, in columns."""

    indent: int = 2
    hang: int = 0  # of all lines but the first, beyond the indent
    blank_before: bool = False  # a line


LAYOUTS = {
    Role.TEXT: Layout(),
    Role.TITLE: Layout(indent=0),
    Role.ANSWER: Layout(),
    Role.WARNING: Layout(indent=0, blank_before=True),
    Role.SUBHEADING: Layout(hang=2, blank_before=True),
    Role.CAPTION: Layout(blank_before=True),
    Role.ITEM: Layout(hang=2),
    Role.DETAIL: Layout(indent=4),
    Role.NOTE: Layout(indent=4, hang=2),
    Role.RULE: Layout(indent=4, hang=6),
    Role.REASON: Layout(indent=6),
    Role.FILE: Layout(hang=4),
}


def render(contents: Iterable[Content]) -> str:
    """The whole text, with a newline at its end."""
    lines: list[str] = []
    before = None
    for content in contents:
        if isinstance(content, Table) and isinstance(before, Table):
            lines.append("")
        lines += lines_of(content)
        before = content
    return "\n".join(lines) + "\n"


def lines_of(content: Content) -> list[str]:
    match content:
        case Heading(text):
            return ["", text, "=" * len(text)]
        case Paragraph(text, role):
            layout = LAYOUTS[role]
            lines = wrapped(text, layout.indent, layout.hang)
            return ["", *lines] if layout.blank_before else lines
        case Pairs(rows):
            return [line for name, value in rows for line in pair(name, value)]
        case Figure(name, outcome):
            return pair(name, outcome)
        case Table(columns, rows):
            return table(columns, rows)


def cell(value) -> str:
    """A value in words, printable; a dash for nothing."""
    return DASH if value is None or value == "" else simple(value)


def wrapped(text, indent: int, hang: int) -> list[str]:
    """A paragraph's lines."""
    first, others = " " * indent, " " * (indent + hang)
    return textwrap.wrap(cell(text), WIDTH, initial_indent=first, subsequent_indent=others)


def pair(name: str, value) -> list[str]:
    """Name and value, on one line or wrapped under the value."""
    return wrapped(f"{name + ':':<14} {cell(value)}", indent=2, hang=15)


def table(columns: Sequence[Column], rows: Iterable[Sequence]) -> list[str]:
    """Aligned columns. The last one is cut where the line would grow too long."""
    lines = [[column.title for column in columns], *([cell(v) for v in row] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    pads = [str.rjust if column.align == "right" else str.ljust for column in columns]
    text = [
        "  "
        + "  ".join(
            pad(value, width) for value, width, pad in zip(line, widths, pads, strict=True)
        ).rstrip()
        for line in lines
    ]
    text = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in text]
    return [text[0], "  " + "-" * (max(map(len, text)) - 2), *text[1:]]
