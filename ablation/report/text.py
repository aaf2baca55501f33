"""How does a report look?  Plain text, at most WIDTH columns, nothing unprintable."""

import textwrap
from collections.abc import Iterable, Sequence

from ablation.report.evidence import simple
from ablation.stats import Ratio

# ---------------------------------------------------------------------------------------------
# Layout: plain text, at most WIDTH columns, nothing unprintable

WIDTH = 100
DASH = "\N{EN DASH}"  # undefined


def cell(value) -> str:
    return DASH if value is None or value == "" else simple(value)


def number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def span(low: float | None, high: float | None) -> str:
    return DASH if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


def paragraph(text: str, indent: int = 2, hang: int = 0) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(
        cell(text), WIDTH, initial_indent=pad, subsequent_indent=pad + " " * hang
    )


def pairs(rows: Iterable[tuple[str, object]]) -> list[str]:
    """Name and value, one a line or wrapped under itself."""
    return [
        line
        for name, value in rows
        for line in paragraph(f"{name + ':':<14} {cell(value)}", hang=15)
    ]


def table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Aligned columns; a heading that begins with ">" is a column of numbers, flush right.

    The last column is cut where the line would grow too long.
    """
    rows = [[cell(value) for value in row] for row in rows]
    right = [name.startswith(">") for name in head]
    lines = [[name.lstrip(">") for name in head], *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = [
        "  " + "  ".join(
            value.rjust(width) if flush else value.ljust(width)
            for value, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    text = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in text]
    return [text[0], "  " + "-" * (max(map(len, text)) - 2), *text[1:]]


def percent(r: Ratio | None) -> str:
    if r is None:
        return DASH
    return f"{r.ratio:+.1%}" + (f" ({r.low:+.1%} to {r.high:+.1%})" if r.low is not None else "")
