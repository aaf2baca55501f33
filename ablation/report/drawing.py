"""How does a figure look?  matplotlib as it comes, with one style, and what all figures share.

A figure is as wide as one column of a paper or as two, and its words are 6 points high at the least
there. matplotlib is imported inside the functions only, and without pyplot: no display is ever
asked for. Whatever a person or a notebook has set for it, a figure is drawn from its defaults and
the style below.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.runs.untrusted import printable
from ablation.study.study import Metric

# ---------------------------------------------------------------------------------------------
# What a figure is drawn for

KINDS = ("png", "svg", "pdf")
WIDTHS = {1: 3.5, 2: 7.1}  # inches, by columns: as IEEE, ACM and the American Physical Society ask
FEWEST_DPI, MOST_DPI = 72, 600  # of a screen, and what journals ask of drawings with half-tones


@dataclass(frozen=True)
class Paper:
    """What figures are drawn for: the files that are asked for, and their place on a page."""

    kinds: tuple[str, ...] = ("png",)  # each once
    dpi: int = 200  # of PNG
    columns: int = 2  # how many columns of a paper a figure is as wide as


USUAL = Paper()


def paper_of(kinds: str | None = None, dpi: int | None = None, columns: int | None = None) -> Paper:
    """From the words of a command line; None: the default. ValueError for what cannot be meant."""
    names = USUAL.kinds if kinds is None else tuple(dict.fromkeys(map(str.strip, kinds.split(","))))
    if strange := [name for name in names if name not in KINDS]:
        shown = printable(repr(strange[0]), 60)
        raise ValueError(f"figures {shown}: give one or more of {', '.join(KINDS)}, as in svg,pdf")
    dpi = USUAL.dpi if dpi is None else dpi
    if not FEWEST_DPI <= dpi <= MOST_DPI:
        raise ValueError(f"dpi {dpi}: give {FEWEST_DPI} to {MOST_DPI}; pdf and svg have no limit")
    columns = USUAL.columns if columns is None else columns
    if columns not in WIDTHS:
        raise ValueError(f"columns {columns}: give 1 or 2, of a paper")
    return Paper(names, dpi, columns)


# ---------------------------------------------------------------------------------------------
# Colours and styles

BLACK, BETTER, WORSE, GREY = "#000000", "#0072B2", "#D55E00", "#999999"
# Okabe & Ito (2008), told apart with any colour vision; yellow, faint on white, comes last
PALETTE = (BETTER, WORSE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("-", "--", ":", "-.")  # beyond seven configurations the line tells them apart
POINTS = {1: (7.0, 6.5), 2: (8.0, 7.0)}  # of words, by columns: of most, and of notes and legends
Style = dict[str, Any]  # how matplotlib is to draw something: its keyword arguments
A_RUN: Style = {"linestyle": "", "marker": "o", "color": "white", "markeredgecolor": BLACK}
A_MEAN: Style = {
    "linestyle": "",
    "marker": "|",
    "color": BLACK,
    "markersize": 10,
    "markeredgewidth": 2,
}


def style(paper: Paper) -> Style:
    """matplotlib's settings, where they are not its defaults."""
    words, notes = POINTS[paper.columns]
    ticks = {
        f"{axis}tick.{what}": value
        for axis in "xy"
        for what, value in (
            *(("labelsize", notes), ("major.width", 0.6), ("minor.width", 0.5)),
            *(("major.size", 3.0), ("minor.size", 2.0), ("major.pad", 2.5)),
        )
    }
    return ticks | {
        "figure.dpi": 200,  # at which figures are laid out
        "figure.figsize": (WIDTHS[paper.columns], 3.0),
        "font.size": words,
        "axes.titlesize": words,
        "axes.titlelocation": "left",
        "axes.titlepad": 4.0,
        "axes.labelsize": words,
        "axes.labelpad": 2.5,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 4.5 if paper.columns > 1 else 3.5,
        "lines.markeredgewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": notes,
        "legend.handlelength": 1.8,
        "legend.labelspacing": 0.35,
        "text.hinting": "no_hinting",  # words take the same room at any resolution
        "text.parse_math": False,  # names come from files
        "savefig.dpi": paper.dpi,
        "svg.fonttype": "none",  # words stay words, for search and for an editor
        "svg.hashsalt": "figure",  # else the names of its parts are random
        "pdf.fonttype": 42,  # TrueType: conferences refuse Type 3
    }


class NothingToDraw(Exception):
    """Why there is no such figure, for the report."""


# ---------------------------------------------------------------------------------------------
# matplotlib


@contextlib.contextmanager
def plain_matplotlib(paper: Paper = USUAL) -> Iterator[None]:
    """matplotlib with its defaults and our style, in silence."""
    matplotlib = imported_matplotlib()
    backends = ("backend", "backend_fallback")  # asking for them would choose one
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in backends}
    with warnings.catch_warnings(), matplotlib.rc_context({**defaults, **style(paper)}):
        warnings.simplefilter("ignore")  # of glyphs that its font lacks
        yield


def imported_matplotlib():
    """matplotlib without a setting of this machine.

    While it is imported, matplotlib obeys MPLBACKEND and the first matplotlibrc that it finds,
    of the working folder, of MATPLOTLIBRC or of the home folder, and may well fail of them. So it
    is imported in a folder where it finds an empty one."""
    if "matplotlib" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)
        # it complains of folders that it cannot write to, and uses another
        logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            Path("matplotlibrc").touch()
            import matplotlib
    import matplotlib

    return matplotlib


def width() -> float:
    """Of the figures that are drawn now, in inches."""
    return imported_matplotlib().rcParams["figure.figsize"][0]


def is_narrow() -> bool:
    """A figure of one column is drawn."""
    return width() <= WIDTHS[1]


def new_figure(height: float, rows: int, columns: int, **options):
    """A figure and its axes; height in inches, without the legend below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width(), height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def settle(figure) -> None:
    """Lay a figure out, the same for every kind of file. The solver of layouts works in the order
    of addresses in memory, so the last digits of what it finds are rounded away."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.set_position([round(share, 6) for share in ax.get_position(original=True).bounds])


def legend_below(figure, handles: Sequence, labels: Sequence[str], **options) -> None:
    """A legend under a figure, which grows by it, in as many columns as its width holds."""
    labels = [folded(label, width() - 0.5, notes=True) for label in labels]
    for columns in (4, 3, 2, 1):
        how: Style = {"ncols": columns, "columnspacing": 1.2, **options}
        legend = figure.legend(handles, labels, loc="outside lower center", **how)
        extent = legend.get_window_extent()
        if extent.width <= 0.97 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width(), figure.get_figheight() + extent.height / figure.dpi)


# ---------------------------------------------------------------------------------------------
# Words and axes

LINE = 0.125  # inches from line to line: of 7 to 8 points


def plain(text: str) -> str:
    """A name or a schedule as it may be drawn: they come from files."""
    return printable(text, limit=120)


@functools.cache
def inches(text: str, points: float) -> float:
    """How long a line of text is drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=points)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def note_points() -> float:
    """How high words of notes, ticks and legends are."""
    return POINTS[1 if is_narrow() else 2][1]


def folded(text: str, room: float, notes: bool = False, most: int = 4) -> str:
    """Text in lines of at most so many inches; where that takes too many lines, its middle goes.
    notes: it is drawn as small as ticks and legends are."""
    whole, points = plain(text), POINTS[1 if is_narrow() else 2][notes]
    for cut in range(0, len(whole) - 2, max(1, len(whole) // 20)):
        begin, end = (len(whole) - cut + 1) // 2, (len(whole) - cut) // 2
        lines = broken(f"{whole[:begin]}…{whole[-end:]}" if cut else whole, room, points)
        if len(lines) <= most:
            return "\n".join(lines)
    return whole


WORD = re.compile(r"\(?n = \d+(?: pairs)?\)?[\s;,]*|[^\s_/.,;:=+-]*[\s_/.,;:=+-]?")


def broken(text: str, room: float, points: float) -> list[str]:
    """Lines of at most so many inches, broken behind a space or a sign, or else anywhere."""
    lines = [""]
    for part in WORD.findall(text):
        if inches((lines[-1] + part).rstrip(), points) > room and lines[-1]:
            lines.append("")
        while inches(part.rstrip(), points) > room and len(part) > 1:
            fits = (k for k in range(len(part) - 1, 1, -1) if inches(part[:k], points) <= room)
            fit = next(fits, 1)
            lines[-1], part = part[:fit], part[fit:]
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()] or [""]


def height_of(*texts: str) -> float:
    """The lines of the longest of these, in inches."""
    return LINE * max((text.count("\n") + 1 for text in texts), default=0)


def signed(value: float) -> str:
    """An improvement with its sign, a minus as wide as a plus."""
    return f"{value:+.4f}".replace("-", MINUS)


MINUS = "\N{MINUS SIGN}"


def with_margin(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis around values: 5 % of their range at either end, as matplotlib leaves."""
    margin = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def numbered_ticks(n: int, most: int) -> list[int]:
    """Of 1 to n: all, every second one, or the first and those of a round step."""
    step = next(s * 10**k for k in range(20) for s in (1, 2, 5) if n / (s * 10**k) <= most)
    return [k for k in range(1, n + 1) if k == 1 or k % step == (step == 2)]


def improvement_entries(line: str, *more, band: bool, by_seed: bool = True) -> list:
    """The legend of both figures of improvements; bars pale, so that the runs on them stand out.
    line: what arms are compared with; band: whether an sd of it is drawn; by_seed: whether arms are
    compared on shared seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    arm = "arm, same seeds" if by_seed else "group"
    sd = Patch(facecolor=BLACK, alpha=0.12, linewidth=0, label="baseline ± sd of its runs (n > 1)")
    return [
        Line2D([], [], label="one run", **A_RUN),
        Line2D([], [], color=BLACK, label=line),
        *([sd] if band else []),
        Patch(facecolor=BETTER, alpha=0.5, linewidth=0, label=f"{arm}: better"),
        Patch(facecolor=WORSE, alpha=0.5, linewidth=0, label=f"{arm}: worse"),
        *more,
    ]


def with_unit(what: str, metric: Metric) -> str:
    """The label of an axis of differences."""
    return f"{what}\n({metric.unit})" if metric.unit else what


def as_logged(axis, metric: Metric) -> str:
    """Let an axis of losses show the metric as it is logged; returns its label."""
    if metric.sign < 0:
        axis.set_major_formatter(lambda value, _: f"{-value:g}".replace("-", MINUS))
        axis.set_inverted(True)  # larger values lie to the right, or above
    return f"{metric.words} ({metric.unit})" if metric.unit else metric.words
