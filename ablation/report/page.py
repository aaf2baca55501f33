"""How does a report look as a page?  One HTML file that opens anywhere and asks no network.

Everything from a folder is escaped, and the page's own policy lets two scripts run: `page.js` and
plotly's, which draws the charts (https://plotly.com/javascript). Plotly comes from its Python
package, 4.8 MB in one build; the page holds it compressed, 1.9 MB, and the browser unpacks it.
"""

import base64
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from ablation.report.content import (
    AND_SO,
    Chart,
    Column,
    Figure,
    Folded,
    Heading,
    Linked,
    Page,
    PageContent,
    Pairs,
    Paragraph,
    Role,
    Section,
    Step,
    Steps,
    Table,
)
from ablation.report.text import cell
from ablation.runs.run import STATUSES

RELOAD_S = 10  # of a page that will be written again; chosen, as it is written no more often
SORTABLE = 5  # rows, and a table can be sorted; chosen
PRINTED = 40  # rows of a table that go on paper; chosen, for a paper of at most 6 pages


def render(page: Page, folder: Path) -> str:
    """The whole file. folder: where it will lie, as links lead from there."""
    return "".join(parts_of(page, folder))


def parts_of(page: Page, folder: Path) -> Iterable[str]:
    draw = renderer(folder)
    charts = [*charts_in([*page.first, *(c for s in page.sections for c in s.contents)])]
    reload_s = RELOAD_S if page.live else 0
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy()}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield f"<title>{shown(page.kicker)}</title>\n<style>\n{asset('page.css')}</style>\n</head>\n"
    yield f'<body data-written="{page.written_s:.0f}" data-reload="{reload_s}">\n'
    yield '<a class="skip" href="#answer">To the answer</a>\n<header>\n'
    yield f'<p class="kicker">{shown(page.kicker)}</p>\n<h1>{shown(page.title)}</h1>\n'
    yield f'<p class="age">{age(page)}</p>\n</header>\n'
    yield contents_table(page.sections)
    yield '<main>\n<section id="answer" aria-labelledby="answer-title">\n'
    yield '<h2 id="answer-title" class="unseen">The answer</h2>\n'
    yield from map(draw, page.first)
    yield "</section>\n"
    for section in page.sections:
        yield f'<section id="{section.name}" aria-labelledby="{section.name}-title">\n'
        yield f'<h2 id="{section.name}-title">{shown(section.title)}</h2>\n'
        yield from map(draw, section.contents)
        yield "</section>\n"
    yield "</main>\n"
    specs = {c.name: {"data": c.data, "layout": c.layout} for c in charts}
    yield data_script("charts", "application/json", json_text(specs))
    if charts:
        yield data_script("plotly", "application/gzip", packed_plotly()[0])
    yield f"<script>{asset('page.js')}</script>\n</body>\n</html>\n"


# ---------------------------------------------------------------------------------------------
# What the browser may run


def policy() -> str:
    """The content policy: our script and plotly's, by their hashes; no network at all. Plotly
    writes styles of its own, so these are allowed."""
    scripts = f"{hash_of(asset('page.js'))} {packed_plotly()[1]}"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def hash_of(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def asset(name: str) -> str:
    """A file of this room's that goes into the page as it is."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def packed_plotly() -> tuple[str, str]:
    """plotly.js, compressed and as text, and its hash for the policy."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    packed = gzip.compress(script.encode(), mtime=0)
    return base64.b64encode(packed).decode(), hash_of(script)


def json_text(value) -> str:
    """JSON that ends no element of HTML."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_script(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


# ---------------------------------------------------------------------------------------------
# Pieces


def shown(value) -> str:
    """A value in words, as in the text, and escaped."""
    return escape(cell(value))


def age(page: Page) -> str:
    """When the page was written; the script counts on from there."""
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(page.written_s))
    state = "; it is written again while the experiment goes on" if page.live else ""
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(page.written_s))
    return f'Written <time datetime="{iso}">{at}</time><span id="ago"></span>{state}.'


def contents_table(sections: Sequence[Section]) -> str:
    items = (f'<li><a href="#{s.name}">{s.name.capitalize()}</a></li>' for s in sections)
    return f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>\n'


def charts_in(contents: Iterable[PageContent]) -> Iterable[Chart]:
    for content in contents:
        if isinstance(content, Chart):
            yield content
        elif isinstance(content, Folded):
            yield from charts_in(content.contents)


def renderer(folder: Path) -> Callable[[PageContent], str]:
    """How each piece is drawn in a page that lies in this folder."""

    def draw(content: PageContent) -> str:
        match content:
            case Heading(text):
                return f"<h3>{shown(text)}</h3>\n"
            case Paragraph(text, role):
                return paragraph(text, role)
            case Pairs(rows):
                return pairs(rows, folder)
            case Figure(name, outcome):
                return pairs(((name, outcome),), folder)
            case Table(columns, rows):
                return table(columns, rows, folder)
            case Chart():
                return chart(content)
            case Steps(steps):
                return f'<ol class="steps">{"".join(map(step, steps))}</ol>\n'
            case Folded(title, inside):
                whole = "".join(map(draw, inside))
                return f"<details><summary>{shown(title)}</summary>\n{whole}</details>\n"

    return draw


def paragraph(text: str, role: Role) -> str:
    if role is Role.SUBHEADING:
        return f"<h3>{shown(text)}</h3>\n"
    if role is Role.ANSWER and AND_SO in text:
        verdict, _, ground = text.partition(AND_SO)
        return f'<p class="answer"><strong>{shown(verdict)}</strong>{AND_SO} {shown(ground)}</p>\n'
    return f'<p class="{role.value}">{shown(text)}</p>\n'


def pairs(rows: Iterable[tuple[str, object]], folder: Path) -> str:
    """Names with their values; those without a value are left out, as nothing can be read there."""
    items = (
        f"<div><dt>{shown(name)}</dt><dd>{linked(value, folder)}</dd></div>"
        for name, value in rows
        if value not in (None, "")
    )
    return f"<dl>{''.join(items)}</dl>\n"


def linked(value, folder: Path) -> str:
    """A value, as a link where it leads to a file."""
    if not isinstance(value, Linked):
        return shown(value)
    where = os.path.relpath(value.file, folder)
    return f'<a href="{escape(quote(where))}">{shown(str(value))}</a>'


def table(columns: Sequence[Column], rows: Sequence[Sequence], folder: Path) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    sortable = len(rows) >= SORTABLE
    titles = "".join(head(column, sortable) for column in columns)
    body = "".join(
        f"<tr>{''.join(map(table_cell, columns, row, [folder] * len(columns)))}</tr>\n"
        for row in rows
    )
    more = ""
    if len(rows) > PRINTED:
        about = f"On paper {PRINTED} of {len(rows)} rows; the page and runs.csv have all."
        more = f'<p class="on-paper">{about}</p>\n'
    name = f"Table: {', '.join(c.title for c in columns)}"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{shown(name)}"><table>\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{more}"
    )


def head(column: Column, sortable: bool) -> str:
    title, side = shown(column.title), f' class="{column.align}"'
    if not sortable:
        return f'<th scope="col"{side}>{title}</th>'
    return f'<th scope="col"{side} aria-sort="none"><button type="button">{title}</button></th>'


def table_cell(column: Column, value, folder: Path) -> str:
    inside = linked(value, folder)
    if column.title == "status":
        kind = value if value in STATUSES else "open" if value == "no result" else "bad"
        inside = f'<span class="status {kind}">{inside}</span>'
    return f'<td class="{column.align}">{inside}</td>'


def chart(content: Chart) -> str:
    """Its place, which the script fills. A screen reader hears title and caption: the numbers are
    in the tables."""
    name, height = content.name, content.layout.get("height", 400)
    title, caption = escape(content.title), escape(content.caption)
    views = "".join(
        view_buttons(title, number, menu["buttons"])
        for number, menu in enumerate(content.layout.get("updatemenus", ()))
    )
    return (
        f'<figure id="chart-{name}" aria-labelledby="chart-{name}-title">\n'
        f'<figcaption><h3 id="chart-{name}-title">{title}</h3><p>{caption}</p></figcaption>\n'
        f"{views}"
        f'<div class="plot" data-chart="{name}" style="height:{height}px" role="img"'
        f' aria-label="{title}: {caption}">This chart needs JavaScript.</div>\n</figure>\n'
    )


def view_buttons(title: str, menu: int, views: Sequence[Mapping]) -> str:
    """Plotly draws such buttons too, but no keyboard reaches those."""
    buttons = "".join(
        f'<button type="button" data-view="{menu}.{number}">{view["label"]}</button>'
        for number, view in enumerate(views)
    )
    return (
        f'<div class="views" role="group" aria-label="{title}: view {menu + 1}">{buttons}</div>\n'
    )


def step(s: Step) -> str:
    numbers = "".join(f"<div><dt>{shown(n)}</dt><dd>{shown(v)}</dd></div>" for n, v in s.numbers)
    title = f'<p class="decision">{shown(s.title)}</p>' if s.title else ""
    kind = s.state.partition(":")[0].replace(" ", "-")
    return (
        f'<li class="{kind}"><h3>{shown(s.name)}</h3><p class="state">{shown(s.state)}</p>{title}'
        f'<dl>{numbers}</dl><p class="rule">{shown(s.rule)}</p></li>'
    )
