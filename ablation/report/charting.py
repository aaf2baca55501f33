"""How does a chart look?  What the pictures of a page share, in plotly.js's terms.

Plain dicts and lists, as https://plotly.com/javascript/reference has them. The page gives text,
lines and grid other colours in the dark: it knows them by INK, FAINT and BAND, which mean nothing
else; the ground of words is the page's there. Colours of arms and of better and worse have a
contrast of 3:1 on white and on near black.
"""

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from ablation.report.drawing import PALETTE, with_margin
from ablation.runs.untrusted import printable
from ablation.study.study import Metric

Part = dict[str, Any]  # of a chart: a trace, an axis, a shape

INK, FAINT, BAND = "#222222", "#d0d0d0", "#888888"
TARGET = PALETTE[2]
# Orange and sky blue, too faint on white, are darker than in the palette; yellow is left out
SERIES = (*PALETTE[:4], "#B07A00", "#3090C8")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # beyond six arms
SIZE = 13  # of text, in px
MOST_NAME = 32  # signs of a name that are drawn; the whole one is told where the mouse is

BASE: Part = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": SIZE, "color": INK},
    "margin": {"l": 12, "r": 24, "t": 12, "b": 12},  # axes ask for more
    "hovermode": "closest",
    "hoverlabel": {
        "bgcolor": "#39424e",
        "bordercolor": "#39424e",
        "font": {"color": "#ffffff", "size": SIZE},
        "align": "left",
        "namelength": -1,
    },
    "dragmode": False,
    "legend": {
        "orientation": "h",
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 0,
        "yref": "container",
        "yanchor": "bottom",
        "font": {"size": SIZE - 1},
    },
}
AXIS: Part = {
    "automargin": True,
    "fixedrange": True,  # a finger on it scrolls the page
    "gridcolor": FAINT,
    "zeroline": False,
    "linecolor": BAND,
    "showline": True,
    "ticks": "outside",
    "tickcolor": BAND,
    "ticklen": 4,
}
NO_AXIS: Part = {"visible": False, "fixedrange": True}


def layout(height: float, **parts: Any) -> Part:
    """A layout of so many px in height, as wide as the page allows."""
    return {**BASE, "height": round(height), **parts}


def axis(title: str = "", **parts: Any) -> Part:
    titled = {"title": {"text": title, "standoff": 8}} if title else {}
    return {**AXIS, **titled, **parts}


# ---------------------------------------------------------------------------------------------
# Words


def text(words: str, most: int = 300) -> str:
    """Any words as plotly shows them: it knows some tags of HTML, fills in %{...}, and takes what
    stands between dollars for a formula."""
    escaped = html.escape(printable(words, limit=most), quote=False)  # it knows no &quot;
    return escaped.replace("%{", "&#37;{").replace("$", "&#36;")


def wrapped(words: str, width: int = 52) -> str:
    """The same in lines that a phone has room for."""
    lines = textwrap.wrap(printable(words), width, break_on_hyphens=False)
    return "<br>".join(text(line) for line in lines)


def lines_in(shown: str) -> int:
    return 1 + shown.count("<br>")


def hover(*lines: str) -> str:
    """What is told of a point; its lines are `text` already."""
    return "<br>".join(filter(None, lines))


def axis_title(what: str, metric: Metric) -> str:
    """The words at an axis, with the metric's unit."""
    return text(f"{what} ({metric.unit})" if metric.unit else what)


# ---------------------------------------------------------------------------------------------
# Parts


def points(
    x: Sequence, y: Sequence, told: Sequence[str], about: str, marker: Part, **parts
) -> Part:
    """A trace of markers; told: of each, where the mouse is."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "hovertext": list(told),
        "hoverinfo": "text",
        "name": about,
        "marker": marker,
        **parts,
    }


def line(x: Sequence, y: Sequence, colour: str, about: str = "", **parts) -> Part:
    """A trace of lines that tells nothing; None ends one. Without words it has no legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "hoverinfo": "skip",
        "name": about,
        "showlegend": bool(about),
        "line": {"color": colour, "width": 1.5, **parts.pop("line", {})},
        **parts,
    }


# Of words that lines, but no data, would cross
GROUND: Part = {"bgcolor": "#ffffff", "borderpad": 1}


def words_at(x: float, y: float, words: str, **parts: Any) -> Part:
    """An annotation without an arrow; words: `text` already."""
    place = {"xanchor": "left", "yanchor": "bottom", "xref": "paper", "yref": "paper"}
    return {"x": x, "y": y, "text": words, "showarrow": False, "align": "left", **place, **parts}


def band(low: float, high: float, about: str, colour: str = BAND) -> Part:
    """A shaded region between two heights, across the whole plot and below everything."""
    return {
        "type": "rect",
        "layer": "below",
        "fillcolor": colour,
        "opacity": 0.18,
        "line": {"width": 0},
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": "y",
        "y0": low,
        "y1": high,
        "name": about,
        "showlegend": True,
    }


def spread(values: Iterable[float]) -> list[float]:
    """Limits of an axis around these values; finite, whatever a file has made of them."""
    return list(with_margin([min(max(value, -1e300), 1e300) for value in values]))
