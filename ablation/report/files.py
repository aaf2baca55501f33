"""How are report and figures written?  Each file whole or not at all, none through a link."""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from ablation.report import figures
from ablation.report.chapters import report
from ablation.report.content import Page
from ablation.report.evidence import Evidence
from ablation.report.figures import Picture
from ablation.report.page import render as page_text
from ablation.report.table import csv_of, rows_of_experiment
from ablation.report.text import render

REPORT, RUNS, PAGE = "analysis_report.txt", "runs.csv", "report.html"
OURS = (REPORT, RUNS, PAGE, *figures.FIGURES)  # all that is written


def write(path: Path, data: bytes) -> None:
    """Whole or not at all: whoever looks while this writes sees the old file. Nothing is written
    through a link: one of this name is replaced, and the temporary is nobody's but ours."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open(temporary, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove(path: Path) -> None:
    """Remove a figure of an earlier report; not what only has its name."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            path.unlink()


def pictures_of(evidence: Evidence) -> dict[str, Picture]:
    """Every figure, by the name of its file: drawn, or why not."""
    return {name: figures.picture(draw, evidence) for name, draw in figures.FIGURES.items()}


def write_figures(folder: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """What became of each, for the report; what was not drawn leaves no older one behind."""
    outcomes = {}
    for name, drawn in pictures.items():
        try:
            if drawn.png:
                write(folder / name, drawn.png)
            else:
                remove(folder / name)
            outcomes[name] = f"not drawn: {drawn.why}" if drawn.why else "drawn"
        except OSError as error:
            outcomes[name] = f"not written: {error.strerror}"
    return outcomes


def write_all(
    evidence: Evidence, folder: Path, pictures: Mapping[str, Picture], page: Page
) -> dict[str, str]:
    """The figures, then the report, which says what became of them, the runs as a table, and the
    page. Returns the same, by file. Raises OSError where a text cannot be written."""

    def text(outcomes: Mapping[str, str]) -> str:
        return render(report(evidence, outcomes))

    return write_texts(folder, pictures, text, csv_of(rows_of_experiment(evidence)), page)


def write_texts(
    folder: Path,
    pictures: Mapping[str, Picture],
    text: Callable[[Mapping[str, str]], str],
    table: str,
    page: Page,
) -> dict[str, str]:
    """The same of any report. text: of what became of the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = write_figures(folder, pictures)
    write(folder / REPORT, text(outcomes).encode())
    write(folder / RUNS, table.encode())
    try:
        write_page(folder, page)
    except ImportError as error:
        return {PAGE: f"not written: {error}; pip install -r requirements.txt", **outcomes}
    return {PAGE: "drawn", **outcomes}


def write_page(folder: Path, page: Page) -> None:
    """The page alone. Raises OSError, and the old page stays whole."""
    write(folder / PAGE, page_text(page, folder).encode())
