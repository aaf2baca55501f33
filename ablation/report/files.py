"""How are report and figures written?  Each file whole or not at all, none through a link."""

import contextlib
import os
import secrets
import stat
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ablation.report import figures
from ablation.report.captions import CAPTIONS
from ablation.report.chapters import report
from ablation.report.content import Page
from ablation.report.drawing import KINDS, USUAL, Paper
from ablation.report.evidence import Compared, Evidence
from ablation.report.figures import Picture
from ablation.report.page import render as page_text
from ablation.report.table import csv_of, rows_of_experiment
from ablation.report.text import render
from ablation.runs.untrusted import printable

REPORT, RUNS, PAGE = "analysis_report.txt", "runs.csv", "report.html"
CAPTION = "txt"  # how the name of a caption's file ends
OF_FIGURES = tuple(f"{name}.{kind}" for name in figures.FIGURES for kind in (*KINDS, CAPTION))
OURS = (REPORT, RUNS, PAGE, *OF_FIGURES)  # all that is written
OLDER = "is of an earlier report, and left as it was"
WIDTH = 90  # columns of a caption: chosen, as an editor or a mail shows it


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


def pictures_of(
    evidence: Compared, paper: Paper = USUAL, names: Iterable[str] | None = None
) -> dict[str, Picture]:
    """Figures by the names of their files: drawn, or why not. names: of FIGURES, or else all."""
    return {
        f"{name}.{kind}": figures.picture(
            figures.FIGURES[name], evidence, kind, paper, CAPTIONS[name]
        )
        for name in (figures.FIGURES if names is None else names)
        for kind in paper.kinds
    }


def write_figures(folder: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """What became of each, for the report. Beside a figure lies its caption. What was not drawn
    leaves no older one behind; a kind that was not asked for stays, and is told as older."""
    outcomes = {}
    for stem in dict.fromkeys(Path(name).stem for name in pictures):
        there = {f"{stem}.{kind}": pictures.get(f"{stem}.{kind}") for kind in KINDS}
        for name, drawn in there.items():
            if drawn is not None:
                outcome = placed(folder / name, drawn.image)
                outcomes[name] = f"not drawn: {drawn.why}" if drawn.why else outcome
            elif (folder / name).is_file():
                outcomes[name] = OLDER
        written = [d for name, d in there.items() if d and outcomes[name] == "drawn"]
        if not written and any((folder / name).is_file() for name in there):
            continue  # an older figure that could not be written over has its own caption
        caption = caption_text(written[0].caption) if written else ""
        if (outcome := placed(folder / f"{stem}.{CAPTION}", caption.encode())) != "drawn":
            outcomes[f"{stem}.{CAPTION}"] = outcome
    return outcomes


def placed(path: Path, data: bytes) -> str:
    """Write a file, or take an older one away where there is nothing to write; in words."""
    try:
        if data:
            write(path, data)
        else:
            remove(path)
    except OSError as error:
        return f"not written: {error.strerror}"
    return "drawn"


def caption_text(caption: str) -> str:
    """As a file: lines that any editor shows. A name in it is at most as long as it is drawn."""
    return "\n".join(textwrap.wrap(printable(caption, limit=20_000), WIDTH)) + "\n"


def write_all(
    evidence: Evidence, folder: Path, pictures: Mapping[str, Picture], page: Callable[[], Page]
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
    page: Callable[[], Page],
) -> dict[str, str]:
    """The same of any report. text: of what became of the figures. A page that cannot be made or
    written costs nothing else: the report's text is worth more."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = write_figures(folder, pictures)
    write(folder / REPORT, text(outcomes).encode())
    write(folder / RUNS, table.encode())
    try:
        write_page(folder, page())
        outcome = "drawn"
    except OSError as error:
        outcome = f"not written: {error.strerror}"
    except Exception as error:
        outcome = f"not written: {figures.in_a_line(error)}"
    return {PAGE: outcome, **outcomes}


def write_page(folder: Path, page: Page) -> None:
    """The page alone. Raises OSError, and the old page stays whole."""
    write(folder / PAGE, page_text(page, folder).encode())
