"""The page says what the text says, in one file that asks nothing of anybody and runs only its own.

What a browser makes of it is told by test_page_browser.py.
"""

import base64
import errno
import gzip
import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import analyze_aux
from ablation.cli import exit_codes
from ablation.execute.status import status_of
from ablation.folder.course import course_of
from ablation.folder.overrides import write_overrides
from ablation.report import files, page, watch
from ablation.report.chapters import report
from ablation.report.content import (
    Column,
    Folded,
    Heading,
    Linked,
    Page,
    Pairs,
    Paragraph,
    Role,
    Section,
    Table,
)
from ablation.report.evidence import read_experiment
from ablation.report.page_sections import page_of
from ablation.report.text import render
from ablation.report.watch import GAP_S, LOOK_S, SHARE, keep_fresh, signature
from ablation.runs.run import machine_seconds
from ablation.study.heads import HEADS
from ablation.study.overrides import NOTHING_OVERRIDDEN, Override, Overrides
from tests.support.foreign_logs import FORMS, HEAD, log_of
from tests.support.invented_folder import adaptive_plan, make, manual, speedrun

VOID = {"meta", "br", "link", "img", "input", "hr"}
EXPERIMENTS = {
    "classic": dict(
        e=speedrun(overrides=NOTHING_OVERRIDDEN.ungated),
        failures={"screen_aux_3_6_9/run_0": ("diverged",), "final_best/run_2": ("crashed",) * 3},
    ),
    "adaptive": dict(e=adaptive_plan()),
    "null": dict(e=adaptive_plan(), scale=0.0, sd=0.004),
    "by_hand": dict(e=manual("baseline", "aux_6", seeds=(1, 2, 3))),
    "begun": dict(e=adaptive_plan(), most=5),
    "empty": dict(e=adaptive_plan(), most=0),
}


class Reader(HTMLParser):
    """The text of a page, its elements, and what is not closed as it was opened."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.elements, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] in (["script"], ["style"]) else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module", params=EXPERIMENTS)
def evidence(request, tmp_path_factory):
    made = dict(EXPERIMENTS[request.param])
    return read_experiment(make(tmp_path_factory.mktemp(request.param), made.pop("e"), **made))


def rendered(evidence, **how) -> str:
    return page.render(page_of(evidence, status_of(evidence.standing), **how), evidence.exp_dir)


def of(*contents, **how) -> str:
    """A page of these."""
    whole = Page("kicker", "title", contents, (), 0.0, **how)
    return page.render(whole, Path("/somewhere/exp"))


# ---------------------------------------------------------------------------------------------
# What it says

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?%?")


def test_every_number_of_the_text_is_on_the_page(evidence):
    chapters = (c for c in report(evidence, {}) if not isinstance(c, Heading))  # their numbers
    text = render(chapters)
    said = Reader(rendered(evidence)).text
    for number in set(NUMBER.findall(text)):
        assert len(re.findall(rf"(?<![\d.]){re.escape(number)}(?!\d)", said)), number


def test_every_row_of_the_text_is_a_row_of_the_page(evidence):
    tables = [c for c in report(evidence, {}) if isinstance(c, Table)]
    rows = [cells for table in tables for cells in table.rows]
    found = re.findall(r"<tr>(.*?)</tr>", rendered(evidence), re.DOTALL)
    on_page = [re.sub(r"<[^>]*>", "|", row).replace("||", "|") for row in found]
    for cells in rows:
        words = [page.shown(cell) for cell in cells]
        assert any(all(f"|{word}|" in row for word in words) for row in on_page), words


def test_a_page_is_whole_and_its_places_are_unique(evidence):
    found = Reader(rendered(evidence))
    places = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(places) == len(set(places))
    leads = [a["href"][1:] for tag, a in found.elements if tag == "a" and a["href"][0] == "#"]
    assert set(leads) <= set(places)


def test_links_lead_to_files_of_the_folder_and_nowhere_else(evidence):
    links = [a["href"] for tag, a in Reader(rendered(evidence)).elements if tag == "a"]
    files_of_it = [link for link in links if not link.startswith("#")]
    assert files_of_it
    for link in files_of_it:
        assert (evidence.exp_dir / link).resolve().is_relative_to(evidence.exp_dir.resolve()), link


def test_a_log_is_found_from_wherever_the_page_lies(tmp_path):
    table = Table((Column("run"),), ((Linked("a/run_0", tmp_path / "exp/a b/run_0/output.log"),),))
    whole = Page("k", "t", (table,), (), 0.0)
    assert 'href="../exp/a%20b/run_0/output.log"' in page.render(whole, tmp_path / "elsewhere")


def test_a_folder_without_a_finished_run_says_what_it_waits_for(tmp_path):
    evidence = read_experiment(make(tmp_path, adaptive_plan(), most=0))
    said = Reader(rendered(evidence)).text
    assert "There is no answer yet: no run has finished" in said
    assert "next aux_4/run_0, aux_6/run_0, aux_8/run_0 and " in said
    assert 'data-chart="' not in rendered(evidence)


def test_a_damaged_record_is_a_row_that_says_so(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), most=4)
    (exp_dir / "aux_6" / "run_0" / "result.json").write_text('{"half')
    said = Reader(rendered(read_experiment(exp_dir))).text
    assert re.search(r"aux_6/run_0 \S damaged .*result.json", said)


def test_empty_sections_do_not_appear(tmp_path):
    evidence = read_experiment(make(tmp_path, adaptive_plan(), most=0))
    assert 'id="validation"' not in rendered(evidence)
    assert 'id="curves"' not in rendered(evidence)


def test_the_answer_is_one_sentence_with_interval_level_and_hours(tmp_path):
    evidence = read_experiment(make(tmp_path, adaptive_plan()))
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', rendered(evidence))
    hours = re.search(r"spent: +([\d.]+) h", render(report(evidence, {})))[1]
    assert "improves" in answer and "sequential 95 % interval" in answer
    assert f"{hours} of 12 h of machine time." in answer


def test_what_was_not_run_is_named(tmp_path):
    said = Reader(rendered(read_experiment(make(tmp_path, adaptive_plan(), most=3)))).text
    looked_at, not_run = said.partition("explored")[2].split("not run")[:2]
    assert "aux_4, aux_6" in looked_at and "dive_w0p2" in not_run
    assert "aux_4," not in not_run.split("Stages")[0]


def test_an_arm_that_only_failed_or_runs_now_is_not_called_not_run(tmp_path):
    failures = {"aux_6/run_0": ("crashed",) * 3}
    exp_dir = make(tmp_path, adaptive_plan(), most=5, failures=failures)
    (exp_dir / "aux_8" / "run_0" / "result.json").unlink()  # as one in flight
    said = Reader(rendered(read_experiment(exp_dir))).text
    without, not_run = said.partition("no outcome")[2].split("not run")[:2]
    assert without.split() == ["aux_6,", "aux_8"]
    assert not {"aux_6,", "aux_8,"} & set(not_run.split("Stages")[0].split())


def test_of_a_changed_folder_nothing_is_called_tested_or_to_come(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan())
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    document["registered"]["budget_hours"] = 99
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    evidence = read_experiment(exp_dir)
    shown = page_of(evidence, status_of(evidence.standing)).first
    rows = dict(row for each in shown if isinstance(each, Pairs) for row in each.rows)
    assert evidence.changed and rows.keys() == {"running", "next", "hours", "explored"}
    assert rows["next"] is None and "to go" not in rows["hours"]


def test_what_is_to_be_pasted_can_be(tmp_path):
    exp_dir = make(tmp_path / "a folder; of $HOME's", adaptive_plan(), most=1)
    words = Reader(rendered(read_experiment(exp_dir))).text
    assert f"run_aux.py --staged --exp_dir {shlex.quote(str(exp_dir))} " in words
    assert f"analyze_aux.py --exp_dir {shlex.quote(str(exp_dir))} " in words


# ---------------------------------------------------------------------------------------------
# The stages, and what they saved


@pytest.mark.parametrize("hours", [2.0, 3.0])
def test_a_stage_that_the_budget_leaves_out_is_not_called_needless(tmp_path, hours):
    evidence = read_experiment(make(tmp_path, adaptive_plan(budget_hours=hours)))
    steps = Reader(rendered(evidence)).text.partition("Decisions, with their rules")[0]
    for course in course_of(evidence.standing):
        assert f"{course.runs} of 0 foreseen" not in steps
    assert course_of(evidence.standing)[-1].cut == ("none within the budget" in steps)
    assert ("1; 0 were foreseen" in steps) == (hours == 2.0)  # stage 3, cheaper than expected


def test_what_a_stage_did_without_is_foreseen_less_begun(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), scale=0.0, sd=0.004)
    evidence = read_experiment(exp_dir)
    last = course_of(evidence.standing)[-1]
    pairs = evidence.looks[-1]
    assert last.foreseen == 2 * evidence.looks[0].n_max or last.foreseen >= 2 * pairs.n
    assert last.spared == last.foreseen - 2 * pairs.n > 0
    each_s = machine_seconds([r for r in evidence.records.results if r.run.stage == 4])
    each_s /= 2 * pairs.n  # what they have cost, not what was expected
    assert last.spared_s == pytest.approx(each_s * last.spared, rel=0.01)
    assert last.spared_s < 0.95 * last.foreseen_s * last.spared / last.foreseen
    assert f"{last.spared} runs, about" in Reader(rendered(evidence)).text


def test_more_runs_than_were_foreseen_are_not_called_the_most(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), scale=0.2, sd=0.004)  # cheaper than expected
    evidence = read_experiment(exp_dir)
    last = course_of(evidence.standing)[-1]
    assert last.begun > last.foreseen > 0
    assert f"{last.runs}; {last.foreseen} were foreseen" in Reader(rendered(evidence)).text


def test_a_stage_that_a_person_chose_for_is_not_called_to_come(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)
    value = {"arm": asdict(HEADS.by_hand["aux_6"])}
    write_overrides(exp_dir, Overrides((Override("by_hand", 4, value),)))
    evidence = read_experiment(exp_dir)
    said = Reader(rendered(evidence)).text
    steps = said.partition("Decisions, with their rules")[0]
    assert steps.count("left out: chosen by hand") == 2  # stages 2 and 3
    assert "to come" not in steps
    assert "stage 4: by_hand: layers 6, weight 0.1, constant" in said


def test_attempts_that_are_not_held_against_their_runs_are_named(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)
    value = {"attempts": [["aux_4/run_0", 1], ["aux_6/run_0", 2]], "why": "a broken <machine>"}
    write_overrides(exp_dir, Overrides((Override("retry", 0, value),)))
    text = render(report(read_experiment(exp_dir), {}))
    words = "retry: aux_4/run_0, attempt 1; aux_6/run_0, attempt 2: a broken <machine>"
    assert words in re.sub(r"\s+", " ", text)


def test_a_stage_that_goes_on_has_saved_nothing(tmp_path):
    evidence = read_experiment(make(tmp_path, adaptive_plan(), most=3))
    assert [course.spared for course in course_of(evidence.standing)] == [0, 0, 0, 0]


def test_what_the_budget_cut_is_not_saved(tmp_path):
    e = speedrun(overrides=NOTHING_OVERRIDDEN.ungated)
    evidence = read_experiment(make(tmp_path, replace(e, budget_hours=3.0)))
    assert evidence.standing.step.ended
    assert all(course.spared == 0 for course in course_of(evidence.standing))


def test_a_gate_that_stops_the_plan_saves_the_later_stages(tmp_path):
    evidence = read_experiment(make(tmp_path, speedrun(), scale=0.0))
    courses = course_of(evidence.standing)
    assert evidence.standing.step.at_gate and courses[0].spared == 0
    assert all(course.spared == course.foreseen > 0 for course in courses[1:])


# ---------------------------------------------------------------------------------------------
# What may run, and what is only text

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "a' onmouseover='alert(1)",
    "&lt;b&gt; &amp; é ½ 中文 \u202eright to left",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_folder_says_is_text(text):
    cells = Table((Column(text), Column("status")), ((text, text), (Linked(text, Path(text)), 1)))
    contents = (Paragraph(text, Role.ANSWER), Paragraph(text), Pairs(((text, text),)), cells)
    inside = (*contents, Folded(text, contents))
    whole = Page(text, text, inside, (Section("x", text, inside),), 0.0)
    plain = Page("k", "t", of_same_shape(inside), (Section("x", "t", of_same_shape(inside)),), 0.0)
    folder = Path("/somewhere")
    found, tame = Reader(page.render(whole, folder)), Reader(page.render(plain, folder))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in tame.elements]
    assert [set(attrs) for _, attrs in found.elements] == [set(a) for _, a in tame.elements]
    assert found.scripts == tame.scripts
    links = [a["href"] for tag, a in found.elements if tag == "a"]
    assert not any(re.match(r"\s*[a-z]+:", link) for link in links)


def of_same_shape(contents):
    cells = Table((Column("a"), Column("status")), (("b", "c"), (Linked("d", Path("e")), 1)))
    tame = (Paragraph("a", Role.ANSWER), Paragraph("a"), Pairs((("a", "b"),)), cells)
    return (*tame, Folded("a", tame)) if len(contents) > len(tame) else tame


def test_the_policy_admits_the_two_scripts_of_the_page_alone(evidence):
    text = rendered(evidence)
    (policy,) = [a["content"] for _, a in Reader(text).elements if a.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]
    mine = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    packed = re.findall(r'<script type="application/gzip" id="plotly">(.*?)</script>', text)
    scripts = mine + [gzip.decompress(base64.b64decode(each)).decode() for each in packed]
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = {f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests}
    assert hashes <= set(rules["script-src"].split())
    assert len(rules["script-src"].split()) == 2
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def test_a_page_asks_for_no_other_file(evidence):
    loading = {"src", "srcset", "poster", "data", "background", "action"}
    for tag, attrs in Reader(rendered(evidence)).elements:
        assert not loading & set(attrs) and tag not in ("link", "iframe", "object", "img"), tag


def test_the_script_of_the_charts_is_there_once_and_only_where_there_are_charts(evidence):
    text = rendered(evidence)
    assert text.count('id="plotly"') == ('data-chart="' in text)
    assert len(text) < 6e6


def test_json_of_charts_ends_no_element():
    value = {"a": "</script><!--&", "b": [1.5, None, "é"]}
    text = page.json_text(value)
    assert not set("<>&") & set(text) and json.loads(text) == value
    with pytest.raises(ValueError):
        page.json_text([float("nan")])


# ---------------------------------------------------------------------------------------------
# Kept fresh


def test_only_a_page_that_goes_on_reloads_itself(tmp_path):
    going = read_experiment(make(tmp_path / "a", adaptive_plan(), most=4))
    ended = read_experiment(make(tmp_path / "b", adaptive_plan()))
    assert 'data-reload="10"' in rendered(going, live=True)
    assert 'data-reload="0"' in rendered(going)
    assert 'data-reload="0"' in rendered(ended, live=True)


class World:
    """A folder that changes at certain times, and a clock that only sleeping moves."""

    def __init__(self, changes=(), ends=1e9, takes=0.0, over=100.0):
        self.now, self.written = 0.0, []
        self.changes, self.ends, self.takes, self.end = changes, ends, takes, over

    def look(self):
        return sum(change <= self.now for change in self.changes)

    def write(self, last):
        self.written.append((self.now, last))
        self.now += self.takes
        return self.now >= self.ends

    def sleep(self, seconds):
        self.now += seconds

    def run(self):
        keep_fresh(
            self.look, self.write, lambda: self.now >= self.end, lambda: self.now, self.sleep
        )
        return self.written


def test_a_page_is_written_at_once_and_again_only_after_a_change():
    assert World(changes=(30.0,)).run() == [(0.0, False), (30.0, False), (100.0, True)]


def test_many_changes_are_one_page_every_ten_seconds():
    written = [at for at, last in World(changes=[k / 2 for k in range(200)]).run() if not last]
    gaps = [b - a for a, b in pairwise(written)]
    assert len(written) == 10 and all(GAP_S <= gap <= GAP_S + LOOK_S for gap in gaps)


def test_a_page_that_takes_long_is_written_seldom():
    world = World(changes=range(1000), takes=3.0, over=200.0)
    written = [at for at, last in world.run() if not last]
    assert all(b - a >= 60.0 for a, b in pairwise(written))


def test_a_folder_that_takes_long_to_look_at_is_looked_at_seldom():
    class Large(World):
        looks = ()

        def look(self):
            self.looks = (*self.looks, self.now)
            self.now += 0.5
            return 0

    large = Large()
    large.run()
    assert len(large.looks) > 5
    assert all(b - a >= 0.5 / SHARE for a, b in pairwise(large.looks))


def test_a_page_that_could_not_be_written_is_tried_again_though_nothing_changes():
    class FullDisk(World):
        def write(self, last):
            ended = super().write(last)
            return None if self.now < 25.0 else ended

    written = [at for at, last in FullDisk(ends=25.0).run() if not last]
    assert written == [0.0, 10.0, 20.0, 30.0]


def test_the_end_of_the_experiment_ends_the_watching():
    assert World(changes=(20.0, 40.0), ends=20.0).run() == [(0.0, False), (20.0, False)]


def test_every_event_changes_the_signature(tmp_path):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)
    seen = [signature(exp_dir)]

    def changed() -> bool:
        seen.append(signature(exp_dir))
        return seen[-1] != seen[-2]

    assert not changed()
    attempt = exp_dir / "aux_8" / "run_0" / "attempt_9"
    for act in (
        lambda: (exp_dir / "aux_4" / "run_0" / "output.log").write_text("step:1"),
        lambda: (exp_dir / "aux_4" / "run_0" / "output.log").write_text("step:1 step:2"),
        lambda: (exp_dir / "overrides.json").write_text("[]"),
        lambda: (exp_dir / "aux_4" / "run_0" / "result.json").unlink(),
        lambda: (exp_dir / "staged_ablation_results.json").write_text("{}"),
    ):
        act()
        assert changed()
    assert not attempt.exists()


# ---------------------------------------------------------------------------------------------
# Bad input


def test_a_full_disk_is_one_line_and_the_old_page_stays_whole(tmp_path, monkeypatch, capsys):
    exp_dir = make(tmp_path, manual("baseline", "aux_6", seeds=(1,)))
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 0
    before = (exp_dir / files.PAGE).read_bytes()
    capsys.readouterr()

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == exit_codes.REFUSED
    assert capsys.readouterr().err.count("\n") == 1
    assert (exp_dir / files.PAGE).read_bytes() == before
    assert not list(exp_dir.glob(".*.tmp"))


@pytest.mark.parametrize("error", [TypeError("a bug"), ModuleNotFoundError("No module plotly")])
def test_a_page_that_cannot_be_made_costs_nothing_else(tmp_path, monkeypatch, capsys, error):
    exp_dir = make(tmp_path, manual("baseline", "aux_6", seeds=(1,)))

    def broken(*_):
        raise error

    monkeypatch.setattr(page, "chart", broken)
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == exit_codes.REFUSED
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "no report.html" in err and str(error) in out
    assert (exp_dir / files.REPORT).exists() and (exp_dir / "training_curves.png").exists()


def test_a_page_is_written_elsewhere_and_its_links_lead_back(tmp_path, capsys):
    exp_dir = make(tmp_path, manual("baseline", "aux_6", seeds=(1,)))
    elsewhere = tmp_path / "elsewhere"
    assert analyze_aux.main(["--exp_dir", str(exp_dir), "--output_dir", str(elsewhere)]) == 0
    assert str(elsewhere / files.PAGE) in capsys.readouterr().out
    links = [a["href"] for tag, a in Reader((elsewhere / files.PAGE).read_text()).elements
             if tag == "a" and a["href"].endswith("output.log")]  # fmt: skip
    assert links and not (exp_dir / files.PAGE).exists()
    for link in links:
        assert (elsewhere / link).resolve().is_relative_to(exp_dir.resolve())


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_for_a_while_is_one_line_and_watched_on(
    tmp_path, monkeypatch, capsys, number
):
    exp_dir = make(tmp_path, adaptive_plan())
    away = iter([OSError(number, os.strerror(number))] * 2)

    def read(folder):
        raise next(away)

    def looked(folder):
        if error := next(away, None):
            raise error
        monkeypatch.setattr(analyze_aux, "read_experiment", read_experiment)
        return ()

    def first(folder):
        monkeypatch.setattr(analyze_aux, "read_experiment", read)
        return read_experiment(folder)

    monkeypatch.setattr(analyze_aux, "read_experiment", first)
    monkeypatch.setattr(analyze_aux, "signature", looked)
    monkeypatch.setattr(watch, "GAP_S", 0.0)
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    assert watched(exp_dir, monkeypatch) == exit_codes.DONE
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and os.strerror(number) in err and "--output_dir" not in err
    assert 'data-reload="0"' in (exp_dir / files.PAGE).read_text()


def test_watching_without_plotly_says_what_to_install(tmp_path, monkeypatch, capsys):
    exp_dir = make(tmp_path, adaptive_plan(), most=2)

    def broken(*_):
        raise ModuleNotFoundError("No module named 'plotly'")

    monkeypatch.setattr(page, "packed_plotly", broken)
    assert watched(exp_dir, monkeypatch) == exit_codes.REFUSED
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install -r requirements.txt" in err


def watched(exp_dir, monkeypatch) -> int:
    """--watch in this process, which keeps its own signals and priority."""
    monkeypatch.setattr(analyze_aux.signal, "signal", lambda *_: None)
    monkeypatch.setattr(analyze_aux.os, "nice", lambda _: None)
    return analyze_aux.main(["--exp_dir", str(exp_dir), "--watch"])


WRONG = {  # options, and what is said of them
    "--watch --json": "leave out --json",
    "--watch --logs a=b": "leave out --logs",
    "--pid 1": "--pid N goes with --watch",
    "--watch --pid 0": "--pid 0: give the number of a process",
    "--watch --figures svg": "leave out --figures",
    "--watch --dpi 300": "leave out --dpi",
    "--watch --columns 1": "leave out --columns",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_watched_is_one_line(words, capsys):
    try:
        code = analyze_aux.main(words.split())
    except SystemExit as end:
        code = end.code
    assert code == exit_codes.USAGE
    assert WRONG[words] in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------
# Of logs


def test_every_log_is_a_row_that_leads_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, losses in {"base": (3.28, 3.29), "mine": (3.26, 3.27)}.items():
        Path(name).mkdir()
        for seed, loss in enumerate(losses):
            log = log_of(FORMS["speedrun"], 8, f"{loss}")
            Path(name, f"run {seed}.txt").write_text(f"{HEAD}seed:{seed}\n{log}")
    assert analyze_aux.main(["--logs", "base=base", "--logs", "mine=mine"]) == 0
    found = Reader(Path("comparison", files.PAGE).read_text())
    links = [a["href"] for tag, a in found.elements if tag == "a" and "run%20" in a["href"]]
    assert links == [f"../{name}/run%20{k}.txt" for name in ("base", "mine") for k in (0, 1)]
    report = Path("comparison", files.REPORT).read_text()
    body = re.sub(r"(?m)^\d+\. .*$", "", report.partition("The answer")[2])
    for number in set(NUMBER.findall(body)):
        assert number in found.text, number


def test_a_watcher_leaves_the_last_room_of_a_disk_to_the_runs(tmp_path, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=0, free=watch.ROOM_BYTES)
    monkeypatch.setattr(watch.shutil, "disk_usage", lambda _: usage)
    watch.check_room(tmp_path)
    usage.free -= 1
    with pytest.raises(OSError, match="less than 64 MiB are left") as full:
        watch.check_room(tmp_path)
    assert full.value.errno == errno.ENOSPC


# ---------------------------------------------------------------------------------------------
# What a first reader asks


def test_runs_by_hand_tell_their_comparison_and_how_to_go_on(tmp_path):
    e = manual("baseline", "aux_6", seeds=(1, 2, 3))
    evidence = read_experiment(make(tmp_path, e))
    found = Reader(rendered(evidence))
    first = found.text.partition("Stages")[2].partition("Curves of every run")[0]
    assert all(fact in found.text for fact in evidence.decisions[0].facts[-2:]), first
    assert "python run_aux.py --experiment baseline,aux_6 --exp_dir " in found.text
    staged = read_experiment(make(tmp_path / "staged", adaptive_plan(), most=2))
    assert "python run_aux.py --staged --exp_dir " in Reader(rendered(staged)).text


def test_a_run_in_flight_is_no_failure_in_the_table():
    rows = tuple((status,) for status in ("ok", "no result", "damaged", "crashed"))
    text = of(Table((Column("status"),), rows))
    kinds = re.findall(r'<span class="status (\w+)">([\w ]+)</span>', text)
    assert kinds == [
        ("ok", "ok"), ("open", "no result"), ("bad", "damaged"), ("crashed", "crashed"),
    ]  # fmt: skip


def test_a_page_that_goes_on_tells_the_hours_once(tmp_path):
    evidence = read_experiment(make(tmp_path, adaptive_plan(), most=4))
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', rendered(evidence))
    assert "machine time" not in answer and "runs in flight included" in rendered(evidence)
    alone = page.render(page_of(evidence), evidence.exp_dir)
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', alone)
    assert answer.endswith("of machine time so far.")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_watching_what_may_not_be_written_ends_with_the_remedy(
    tmp_path, monkeypatch, capsys, number
):
    exp_dir = make(tmp_path, adaptive_plan(), most=3)

    def refused(*_):
        raise OSError(number, os.strerror(number), str(exp_dir / files.PAGE))

    monkeypatch.setattr(analyze_aux, "write_page", refused)
    monkeypatch.setattr(analyze_aux.signal, "signal", lambda *_: None)
    assert analyze_aux.main(["--exp_dir", str(exp_dir), "--watch"]) == exit_codes.REFUSED
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--output_dir DIR writes elsewhere" in err
