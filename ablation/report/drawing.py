"""How does a figure look?  matplotlib as it comes, with one style, and what all figures share.

matplotlib is imported inside the functions only, and without pyplot: no display is ever asked for.
Whatever a person or a notebook has set for it, a figure is drawn from its defaults and the style
below.
"""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ablation.runs.untrusted import printable
from ablation.study.study import Metric

# ---------------------------------------------------------------------------------------------
# Colours and styles

BLACK, BETTER, WORSE = "#000000", "#0072B2", "#D55E00"
# Okabe & Ito (2008), told apart with any colour vision; yellow, faint on white, comes last
PALETTE = (BETTER, WORSE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("-", "--", ":", "-.")  # beyond seven configurations the line tells them apart
STYLE = {  # chosen, for a figure in a column of a paper
    "font.size": 13,  # on 8 inches: in a column of 3.5 inches still 6 points
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "text.parse_math": False,  # names come from files
    "savefig.dpi": 200,
}
Style = dict[str, Any]  # how matplotlib is to draw something: its keyword arguments
A_RUN: Style = {"linestyle": "", "marker": "o", "color": "white", "markeredgecolor": BLACK}
A_MEAN: Style = {
    "linestyle": "",
    "marker": "|",
    "color": BLACK,
    "markersize": 18,
    "markeredgewidth": 3,
}


class NothingToDraw(Exception):
    """Why there is no such figure, for the report."""


# ---------------------------------------------------------------------------------------------
# matplotlib


@contextlib.contextmanager
def plain_matplotlib() -> Iterator[None]:
    """matplotlib with its defaults and our style, in silence."""
    matplotlib = imported_matplotlib()
    backends = ("backend", "backend_fallback")  # asking for them would choose one
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in backends}
    with warnings.catch_warnings(), matplotlib.rc_context({**defaults, **STYLE}):
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


def new_figure(size: tuple[float, float], rows: int, columns: int, **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


# ---------------------------------------------------------------------------------------------
# Words and axes


def plain(text: str) -> str:
    """A name or a schedule as it may be drawn: they come from files."""
    return printable(text, limit=120)


def signed(value: float) -> str:
    """An improvement with its sign, a minus as wide as a plus."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def with_margin(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis around values: 5 % of their range at either end, as matplotlib leaves."""
    margin = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def legend_entries(line: str, *more, band: bool, by_seed: bool = True) -> list:
    """The legend of both figures of improvements; bars pale, so that the runs on them stand out.
    line: what arms are compared with; band: whether an sd of it is drawn; by_seed: whether arms are
    compared on shared seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    arm = "arm, same seeds" if by_seed else "group"
    sd = Patch(color=BLACK, alpha=0.12, label="baseline ± sd of its runs (n > 1)")
    return [
        Line2D([], [], label="one run", **A_RUN),
        Line2D([], [], color=BLACK, label=line),
        *([sd] if band else []),
        Patch(color=BETTER, alpha=0.5, label=f"{arm}: better"),
        Patch(color=WORSE, alpha=0.5, label=f"{arm}: worse"),
        *more,
    ]


def with_unit(what: str, metric: Metric) -> str:
    """The label of an axis of differences."""
    return f"{what}\n({metric.unit})" if metric.unit else what


def as_logged(axis, metric: Metric) -> str:
    """Let an axis of losses show the metric as it is logged; returns its label."""
    if metric.sign < 0:
        axis.set_major_formatter(lambda value, _: f"{-value:g}")
        axis.set_inverted(True)  # larger values lie to the right, or above
    return f"{metric.words} ({metric.unit})" if metric.unit else metric.words
