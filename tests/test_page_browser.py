"""report.html in a real browser: what a reader sees, hears, clicks and prints, and what runs.

    pytest tests/test_page_browser.py                        # skipped where there is no Chromium
    SCREENSHOTS=shots pytest tests/test_page_browser.py -k screenshots      # to look at them

A page is opened once, by `look`, for all tests that leave it as it is.
"""

import contextlib
import os
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ablation.folder.results import write_results
from ablation.plan.next_step import conclude, next_step
from ablation.report import compare_logs
from ablation.report.chapters import chapters, report
from ablation.report.content import Column, Page, Section, Table
from ablation.report.evidence import read_experiment
from ablation.report.files import PAGE, write_page
from ablation.report.page import PRINTED
from ablation.report.page_sections import page_of_logs
from ablation.report.text import cell, render
from tests.support import page_probes as probes
from tests.support.browser import chromium, opened, why_not
from tests.support.invented_folder import make, manual, store, train
from tests.support.invented_pages import EVIL, MAKERS, evil_folder, of_logs, written

SIZES = ((1440, 900), (768, 1024), (390, 844))  # a desk, a tablet upright, a phone
MOST_BYTES = 6_000_000
MOST_SHEETS = 6


@pytest.fixture(scope="module")
def browser():
    if why_not():
        pytest.skip(why_not())
    with chromium() as running:
        yield running


# ---------------------------------------------------------------------------------------------
# Pages


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Each experiment's folder, made once, its page in it."""
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name))
            written(made[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def page_named(folder_of, tmp_path_factory):
    """Each page's file."""

    def get(name: str) -> Path:
        if name != "logs":
            return folder_of(name) / PAGE
        folder = tmp_path_factory.mktemp("logs")
        write_page(folder, page_of_logs(compare_logs(of_logs(folder)).findings))
        return folder / PAGE

    return get


def drawn(seen):
    """Wait until the charts are there, if the page has any, and as wide as their places."""
    seen.page.wait_for_function(probes.DRAWN)
    return seen.page


@pytest.fixture(scope="module")
def look(browser, page_named):
    """A page that is opened once, made as wide and as dark as a test wants, its folds closed or
    open; for tests that leave it as it is."""
    with contextlib.ExitStack() as stack:
        windows = {}

        def get(name, width=1280, height=800, colors="light", unfolded=False):
            if name not in windows:
                windows[name] = stack.enter_context(opened(browser, page_named(name)))
                drawn(windows[name])
            seen = windows[name]
            seen.page.set_viewport_size({"width": width, "height": height})
            seen.page.emulate_media(media="screen", color_scheme=colors)
            seen.page.evaluate(probes.FOLD, unfolded)
            drawn(seen)
            return seen

        yield get


# ---------------------------------------------------------------------------------------------
# It opens, and says all


@pytest.mark.parametrize("name", [*MAKERS, "logs"])
def test_it_opens_from_disk_without_one_request_or_complaint(look, page_named, name):
    assert page_named(name).stat().st_size < MOST_BYTES
    seen = look(name)
    seen.page.wait_for_load_state("networkidle")
    assert seen.misdeeds == []
    assert seen.page.title()
    assert seen.page.locator("h1").inner_text()
    assert len(seen.visits) == 1


NUMBER = re.compile(r"(?<![\w.])[-+±]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\d.]*…)")


def numbers_in(text: str) -> set[str]:
    return {found.rstrip(",") for found in NUMBER.findall(text)}


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["classic", "adaptive", "large", "unbegun"])
def test_every_number_and_row_of_the_text_report_is_on_it(look, folder_of, name):
    evidence = read_experiment(folder_of(name))
    text = render(report(evidence, {}))
    text = re.sub(r"^\d+\. .*\n=+$", "", text, flags=re.MULTILINE)  # chapters have numbers there
    page = look(name).page
    words = squeezed(page.evaluate(probes.WORDS))
    known = [[*map(squeezed, row)] for row in page.evaluate(probes.ROWS)]
    assert numbers_in(text) - numbers_in(words) == set()
    tables = [c for c in chapters(evidence, {}) if isinstance(c, Table)]
    rows = [[squeezed(cell(value)) for value in row] for table in tables for row in table.rows]
    assert rows or name == "unbegun"
    assert [row for row in rows if row not in known] == []


@pytest.mark.parametrize("name", ["classic", "adaptive"])
def test_the_verdict_stands_on_the_first_screen(look, folder_of, name):
    title = read_experiment(folder_of(name)).decisions[4].title
    box = look(name, 1440, 900).page.get_by_text(title).first.bounding_box()
    assert 0 < box["y"] < box["y"] + box["height"] < 900


@pytest.mark.parametrize("name", ["classic", "adaptive"])
def test_the_picture_of_the_evidence_begins_on_the_first_screen(look, name):
    box = look(name, 1440, 900).page.locator('[data-chart="verdict"]').bounding_box()
    assert box["y"] < 900 - 200


def test_without_scripts_the_words_and_numbers_are_there(browser, folder_of):
    with opened(browser, folder_of("classic") / PAGE, java_script_enabled=False) as seen:
        assert "target met" in seen.page.locator("main").inner_text()
        assert seen.page.locator("tbody tr").count() > 38
        assert seen.page.get_by_text("needs JavaScript").count() > 1


def test_before_the_first_run_it_says_what_it_waits_for(look):
    words = squeezed(look("unbegun").page.locator("main > section").first.inner_text())
    assert "no run has finished" in words


def test_a_damaged_record_has_a_row_that_says_so(browser, tmp_path):
    exp_dir = make(tmp_path, most=9)
    record = next(exp_dir.glob("baseline/run_0/result.json"))
    record.write_text("{")
    with opened(browser, written(exp_dir)) as seen:
        rows = [" ".join(row) for row in seen.page.evaluate(probes.ROWS)]
        assert any("baseline/run_0" in row and "damaged" in row.lower() for row in rows)


# ---------------------------------------------------------------------------------------------
# A mouse


MARKS = {"curves": ("seed 40", "step"), "verdict": ("seed ",), "effects": ("seed ",)}


@pytest.mark.parametrize(("chart", "words"), MARKS.items())
def test_a_mark_under_the_mouse_tells_its_seed_and_step(look, chart, words):
    page = look("adaptive").page
    points = page.evaluate(probes.POINTS, chart)
    x, y = points[len(points) // 2]
    page.mouse.move(x - 30, y - 30)
    page.mouse.move(x, y)
    page.wait_for_selector(".hoverlayer .hovertext")
    told = " ".join(page.locator(".hoverlayer .hovertext").all_text_contents())
    page.mouse.move(0, 0)
    assert [word for word in words if word not in told] == [], told


def test_a_chart_says_which_line_is_whose(look):
    legend = look("large").page.locator('.plot[data-chart="curves"] .legend text')
    told = " ".join(legend.all_text_contents())
    assert "baseline" in told and "arm_07" in told


SHOWN_RUNS = ["run", "status", "val loss"]  # columns that the table of all runs has


def column(page, title):
    return page.evaluate(probes.COLUMN, [title, SHOWN_RUNS])


def test_a_click_on_a_columns_title_sorts_its_numbers_as_numbers(browser, folder_of):
    with opened(browser, folder_of("large") / PAGE) as seen:
        page = drawn(seen)
        table = page.locator("table", has=page.get_by_role("button", name="status"))
        head = table.get_by_role("columnheader", name="seed").get_by_role("button")
        before = column(page, "seed")
        assert before["sort"] == "none"
        head.click()
        rising = column(page, "seed")
        assert [*map(int, rising["values"])] == sorted(map(int, before["values"]))
        assert rising["sort"] == "ascending"
        assert [s for s in rising["sorts"] if s not in (None, "none")] == ["ascending"]
        head.click()
        falling = column(page, "seed")
        assert [*map(int, falling["values"])] == sorted(map(int, before["values"]), reverse=True)
        assert falling["sort"] == "descending"
        assert seen.misdeeds == []


def test_a_missing_number_comes_after_all_others(browser, folder_of):
    with opened(browser, folder_of("classic") / PAGE) as seen:
        page = drawn(seen)
        table = page.locator("table", has=page.get_by_role("button", name="status"))
        table.get_by_role("columnheader", name="val loss").get_by_role("button").click()
        values = column(page, "val loss")["values"]
        table.get_by_role("columnheader", name="val loss").get_by_role("button").click()
        falling = column(page, "val loss")["values"]
    numbers = [float(value) for value in values if re.match(r"[\d.]+$", value)]
    assert falling[: len(numbers)] == values[: len(numbers)][::-1]
    assert 30 < len(numbers) < len(values)
    assert values[: len(numbers)] == [*map(str, sorted(values[: len(numbers)], key=float))]
    assert numbers == sorted(numbers)


def test_durations_and_bounds_are_sorted_by_what_they_mean(browser, tmp_path):
    rising = ["<0.0001", "0.02", "1.5 s", "45 s", "2.5 min", "89.0 min", "1.6 h", "\N{EN DASH}"]
    table = Table((Column("time"),), tuple((value,) for value in reversed(rising)))
    sections = (Section("times", "Times", (table,)),)
    write_page(tmp_path, Page("kicker", "title", (), sections, 0.0))
    with opened(browser, tmp_path / PAGE) as seen:
        seen.page.get_by_role("button", name="time").click()
        assert seen.page.locator("tbody td").all_inner_texts() == rising
        assert seen.misdeeds == []


# ---------------------------------------------------------------------------------------------
# Any reader, any screen, and paper


@pytest.mark.parametrize("name", ["classic", "adaptive", "large", "logs"])
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(look, name, colors):
    page = look(name, colors=colors, unfolded=True).page
    paper = page.evaluate(probes.PAPER)
    assert paper < 60 if colors == "dark" else paper > 240
    assert page.evaluate(probes.FAINT) == []


@pytest.mark.parametrize("width", [390, 320])  # 320: what WCAG asks for (1.4.10)
@pytest.mark.parametrize("name", ["classic", "adaptive", "large", "unbegun", "logs"])
def test_on_a_phone_only_tables_scroll_sideways(look, name, width):
    page = look(name, width, 844, unfolded=True).page
    assert page.evaluate(probes.TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_chart_keeps_its_scale_when_its_window_changes(look):
    look("adaptive", 1440, 900)
    assert look("adaptive", 390, 844).page.evaluate(probes.SCALES) == [1]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_screenshots_are_kept_for_who_reviews_them(look, tmp_path, width, height):
    wanted = os.environ.get("SCREENSHOTS")
    folder = Path(wanted or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in MAKERS if wanted else ("classic",):
        for colors in ("light", "dark"):
            path = folder / f"{name}_{colors}_{width}x{height}.png"
            look(name, width, height, colors).page.screenshot(path=path, full_page=bool(wanted))
            assert path.stat().st_size > 10_000


SHEET = re.compile(rb"/Type\s*/Page\b(?!s)")


@pytest.mark.parametrize("name", ["classic", "adaptive", "sixty", "large"])
def test_on_paper_it_is_at_most_six_sheets_in_ink_on_white(look, name):
    page = look(name, colors="dark").page
    sheets = len(SHEET.findall(page.pdf(format="A4")))
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(probes.PAPER) > 240
    assert page.evaluate(probes.FAINT) == []
    assert page.evaluate(probes.MOST_ROWS) <= PRINTED
    assert 1 <= sheets <= MOST_SHEETS


def test_paper_is_the_same_whatever_the_window(look):
    sheets = set()
    for width in (390, 1440):
        page = look("adaptive", width, 844).page
        sheets.add(len(SHEET.findall(page.pdf(format="A4"))))
        assert page.evaluate(probes.SCALES) == [1], "on the screen it is as before"
    assert len(sheets) == 1


AXE = [("classic", "light", 1280), ("classic", "dark", 390), ("adaptive", "dark", 1280),
       ("adaptive", "light", 390), ("unbegun", "light", 390), ("logs", "dark", 1280)]  # fmt: skip


@pytest.mark.parametrize(("name", "colors", "width"), AXE)
def test_axe_finds_nothing_serious(look, name, colors, width):
    from axe_playwright_python.sync_playwright import Axe

    page = look(name, width, 844, colors, unfolded=True).page
    found = Axe().run(page).response["violations"]
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in bad] == []


@pytest.mark.parametrize("name", ["classic", "unbegun", "logs"])
def test_a_screen_readers_order_has_no_gap(look, name):
    page = look(name).page
    titles = "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')]"
    found = page.evaluate(f"{titles}.map((e) => [Number(e.tagName[1]), e.textContent])")
    levels = [level for level, _ in found]
    assert levels[0] == 1 and levels.count(1) == 1
    gaps = [after for before, after in pairwise(found) if after[0] > before[0] + 1]
    assert gaps == []
    assert [page.locator(tag).count() for tag in ("main", "header", "nav")] == [1, 1, 1]
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_keyboard_reaches_every_control_and_shows_where_it_is(browser, folder_of):
    with opened(browser, folder_of("classic") / PAGE) as seen:
        page, reached = drawn(seen), []
        wanted = page.evaluate(probes.CONTROLS)
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            number, tag, is_seen, text = page.evaluate(probes.FOCUSED)
            if tag == "BODY" or number in reached:
                break
            assert is_seen, text
            reached.append(number)
    assert len(reached) == wanted
    assert reached == sorted(reached)


def test_a_keyboard_sorts_and_opens(browser, folder_of):
    with opened(browser, folder_of("classic") / PAGE) as seen:
        page = drawn(seen)
        table = page.locator("table", has=page.get_by_role("button", name="status"))
        table.get_by_role("columnheader", name="val loss").get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert column(page, "val loss")["sort"] == "ascending"
        fold = page.locator("summary").first
        fold.focus()
        page.keyboard.press("Enter")
        assert page.locator("details").first.evaluate("(each) => each.open")


# ---------------------------------------------------------------------------------------------
# An experiment goes on while somebody reads


def gone_on(exp_dir: Path, e, results: list, count: int) -> None:
    """The next runs of a plan, stored in its folder, and what is known then."""
    experiment_id = read_experiment(exp_dir).registered["experiment_id"]
    for _ in range(count):
        step = next_step(e, results)
        if not step.runs:
            break
        results.append(train(step.runs[0], start_s=results[-1].end_s if results else 0.0))
        store(exp_dir, results[-1], experiment_id)
    write_results(exp_dir, experiment_id, e, results, conclude(next_step(e, results)))


RELOAD_MS = 31_000  # more than a page waits, one that saw nothing new among them


@pytest.fixture
def going_on(tmp_path):
    """(folder, experiment, results) of one that has done 12 of its runs."""
    e = manual("baseline", "aux_4", "aux_6", "aux_8", seeds=tuple(range(12)))
    e, results = replace(e, budget_hours=100.0), []
    exp_dir = make(tmp_path, e, most=0)
    gone_on(exp_dir, e, results, 12)
    return exp_dir, e, results


HAS_ROWS = """(count) => [...document.querySelectorAll("table")].some(
    (table) => table.tBodies[0].rows.length === count)"""


def until_reloaded(page, runs: int) -> None:
    page.clock.fast_forward(RELOAD_MS)
    page.wait_for_function(HAS_ROWS, arg=runs)
    page.wait_for_load_state()


PLACE = "[scrollY, [...document.querySelectorAll('details')].map((each) => each.open)]"


def test_it_shows_what_is_new_and_keeps_the_readers_place(browser, going_on):
    exp_dir, e, results = going_on
    with opened(browser, written(exp_dir, live=True), clock=True) as seen:
        page = drawn(seen)
        page.locator("summary").nth(1).click()
        table = page.locator("table", has=page.get_by_role("button", name="status"))
        head = table.get_by_role("columnheader", name="seed").get_by_role("button")
        head.click()
        head.click()
        page.evaluate("scrollTo({ top: 700, behavior: 'instant' })")
        place = page.evaluate(PLACE)
        assert place[0] == 700 and any(place[1])
        assert len(column(page, "seed")["values"]) == 12
        gone_on(exp_dir, e, results, 8)
        written(exp_dir, live=True)
        until_reloaded(page, 20)
        drawn(seen)
        assert page.evaluate(PLACE) == place
        found = column(page, "seed")
        assert found["sort"] == "descending"
        assert [*map(int, found["values"])] == sorted(map(int, found["values"]), reverse=True)
        assert seen.misdeeds == []


CURVES = "document.querySelector('.plot[data-chart=curves]')"
IN_SIGHT = f"{CURVES}._fullData.filter((t) => t.visible === true).map((t) => t.name.split(' ')[0])"
ACROSS = f"{CURVES}._fullLayout.xaxis.range"


def test_what_the_legend_hides_stays_hidden_and_a_view_has_axes_of_its_own(browser, going_on):
    exp_dir, e, results = going_on
    with opened(browser, written(exp_dir, live=True), clock=True) as seen:
        page = drawn(seen)
        whole = page.evaluate(ACROSS)
        page.evaluate(f"Plotly.relayout({CURVES}, {{'xaxis.range': [2000, 3000]}})")
        assert page.evaluate(ACROSS) == [2000, 3000]
        page.get_by_role("button", name="training time").click()
        page.wait_for_function(f"{ACROSS}[1] < 1000")  # of 841 s
        page.get_by_role("button", name="steps", exact=True).click()
        page.wait_for_function(f"{ACROSS}[1] > 3000")
        assert page.evaluate(ACROSS) == whole
        page.evaluate(f"Plotly.restyle({CURVES}, {{visible: 'legendonly'}}, [0, 1])")
        before = page.evaluate(IN_SIGHT)
        gone_on(exp_dir, e, results, 8)
        written(exp_dir, live=True)
        until_reloaded(page, 20)
        drawn(seen)
        page.wait_for_function("document.body.dataset.drawn")
        assert before and "baseline" not in before and page.evaluate(IN_SIGHT) == before
        assert seen.misdeeds == []


def test_it_waits_while_somebody_reads_a_mark_or_selects_text(browser, going_on):
    exp_dir, _, _ = going_on
    with opened(browser, written(exp_dir, live=True), clock=True) as seen:
        page = drawn(seen)
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        page.clock.fast_forward(RELOAD_MS)
        page.wait_for_timeout(300)
        assert len(seen.visits) == 1
        page.clock.fast_forward(180_000)  # old by now, and not for want of news
        age = page.locator("#ago").inner_text()
        assert "it waits while you" in age and "may be gone" not in age
        page.evaluate("getSelection().removeAllRanges()")
        with page.expect_navigation():
            page.clock.fast_forward(RELOAD_MS)
        assert "its writer may be gone" in page.locator("#ago").inner_text()


def test_it_rests_once_the_experiment_has_ended(browser, going_on):
    exp_dir, e, results = going_on
    with opened(browser, written(exp_dir, live=True), clock=True) as seen:
        page = drawn(seen)
        gone_on(exp_dir, e, results, 100)
        written(exp_dir, live=False)
        until_reloaded(page, 48)
        visits = len(seen.visits)
        page.clock.fast_forward(20 * RELOAD_MS)
        page.wait_for_timeout(300)
        assert len(seen.visits) == visits == 2


# ---------------------------------------------------------------------------------------------
# What comes from a folder is text, whatever it looks like


def is_harmless(seen) -> bool:
    page = seen.page
    assert page.evaluate("window.owned") is None
    assert page.evaluate(probes.FOREIGN) == []
    assert page.locator("img, iframe, object, embed, form, base, link").count() == 0
    assert seen.misdeeds == []
    return True


def test_hostile_words_of_a_folder_are_text_and_nothing_else(browser, tmp_path):
    with opened(browser, written(evil_folder(tmp_path))) as seen:
        page = drawn(seen)
        page.evaluate(probes.FOLD, True)
        for chart in ("curves", "effects"):
            for x, y in page.evaluate(probes.POINTS, chart)[:3]:
                page.mouse.move(x - 20, y - 20)
                page.mouse.move(x, y)
        words = page.evaluate(probes.WORDS)
        assert page.locator("h1").count() == 1
        assert [text for text in EVIL if text not in words] == []
        assert is_harmless(seen)


def test_hostile_names_of_logs_are_text_and_nothing_else(browser, tmp_path):
    groups = {}
    for k, (name, folder) in enumerate(of_logs(tmp_path / "logs").items()):
        evil = EVIL[k].replace("/", "\N{DIVISION SLASH}")
        shutil.move(folder / "run_0.txt", folder / f"{evil}.txt")
        groups[f"{name} {EVIL[k]}"] = folder
    write_page(tmp_path, page_of_logs(compare_logs(groups).findings))
    with opened(browser, tmp_path / PAGE) as seen:
        drawn(seen)
        words = seen.page.evaluate(probes.WORDS)
        assert EVIL[0] in words and EVIL[1] in words
        assert is_harmless(seen)


FOREIGN = (
    "<script>window.owned = 1</script>",
    '<img src="x" onerror="window.owned = 1">',
    '<script src="https://example.com/x.js"></script>',
    '<iframe srcdoc="<script>parent.owned = 1</script>"></iframe>',
    '<a id="evil" href="javascript:window.owned = 1">click</a>',
    '<link rel="stylesheet" href="https://example.com/x.css">',
    '<form id="evil_form" action="https://example.com/"><button>send</button></form>',
)


def test_what_somebody_puts_into_a_copy_of_the_page_does_not_run(browser, page_named, tmp_path):
    file = tmp_path / PAGE
    text = page_named("unbegun").read_text()
    assert text.count("<main>") == 1
    file.write_text(text.replace("<main>", f"<main>{''.join(FOREIGN)}"))
    with opened(browser, file) as seen:
        page = drawn(seen)
        page.evaluate("document.querySelector('#evil').click()")
        page.evaluate("document.querySelector('#evil_form button').click()")
        page.wait_for_timeout(200)
        assert page.evaluate("window.owned") is None
        assert seen.visits == [file.as_uri(), *seen.visits[1:]]
        assert page.url == file.as_uri()
        assert {*seen.requests} <= {*seen.forbidden}, "all stopped by the page's own policy"
        assert len(seen.messages) >= len(FOREIGN) - 1
