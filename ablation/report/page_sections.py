"""What is on the page of an experiment, or of groups of logs, and in which order?

The answer first, then what happens now, then a section for each question. The words and numbers are
those of the chapters of the text, the pictures those of `charts`; here they are only put in order.
"""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ablation.folder.course import StageCourse, course_of
from ablation.report import chapters, charts, log_chapters
from ablation.report.comparisons import final_block
from ablation.report.content import (
    AND_SO,
    Chart,
    Content,
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
from ablation.report.drawing import NothingToDraw
from ablation.report.evidence import Compared, Evidence, field, listed, simple
from ablation.report.figures import in_a_line
from ablation.report.log_chapters import Findings
from ablation.report.validation import effect_line, validated
from ablation.runs.run import Arm, RunConfig, machine_seconds, part_of, spent_of
from ablation.runs.store import attempt_dir
from ablation.study.experiment import asked_by

# ---------------------------------------------------------------------------------------------
# The page as a whole

Now = Mapping[str, Any]  # what `run_aux.py --status --json` tells


def page_of(evidence: Evidence, now: Now | None = None, live: bool = False) -> Page:
    """The page of an experiment. now: what runs, where somebody asked; live: it will be written
    again."""
    about = evidence.study.words.title or evidence.study.name
    live = live and (now is None or not now["ended"])
    return Page(
        kicker=f"Staged ablation of {about}: {evidence.exp_dir.name}",
        title=simple(field(evidence.registered, "study", "question") or about),
        first=tuple(first_screen(evidence, now)),
        sections=sections_of(SECTIONS, evidence),
        written_s=time.time(),
        live=live,
    )


def page_of_logs(f: Findings) -> Page:
    """The same of groups of logs."""
    title, *answer = log_chapters.opening(f)
    assert isinstance(title, Paragraph)
    shown = [c for c in answer if not isinstance(c, Heading)]
    return Page(
        kicker="Training logs compared",
        title=title.text,
        first=(*answered(shown), *pictures(f, charts.effects)),
        sections=sections_of(SECTIONS_OF_LOGS, f),
        written_s=time.time(),
    )


Part = Callable[[Any], Iterable[PageContent]]


def sections_of(table: Mapping[str, tuple[str, tuple[Part, ...]]], of: Compared) -> tuple:
    """The sections that have anything to show."""
    found = []
    for name, (title, parts) in table.items():
        contents = tuple(content for part in parts for content in part(of))
        if contents:
            found.append(Section(name, title, contents))
    return tuple(found)


def picture(draw: Callable[[Any], Chart]) -> Part:
    """A chart as a part of a section."""
    return lambda of: pictures(of, draw)


def pictures(of: Compared, *draw: Callable[[Any], Chart]) -> Iterator[PageContent]:
    """The charts that there are."""
    for each in draw:
        try:
            yield each(of)
        except NothingToDraw:
            continue
        except Exception as error:  # the rest of the page is worth more
            yield Paragraph(f"A chart could not be made: {in_a_line(error)}", Role.WARNING)


def with_tables(part: Part) -> Part:
    """A part that is nothing but words about tables, where these have no row yet."""

    def told(of) -> Iterable[PageContent]:
        contents = tuple(part(of))
        return contents if any(isinstance(c, Table) and c.rows for c in contents) else ()

    return told


def folded(title: str, *parts: Part) -> Part:
    """Parts behind one line; nothing where they are empty."""

    def part(of) -> Iterator[PageContent]:
        if contents := tuple(content for each in parts for content in each(of)):
            yield Folded(title, contents)

    return part


# ---------------------------------------------------------------------------------------------
# The first screen


def first_screen(evidence: Evidence, now: Now | None) -> Iterator[PageContent]:
    yield from (Paragraph(f"Beware: {words}", Role.WARNING) for words in evidence.changed)
    effect = effect_line(evidence, final_block(evidence)) if 4 in evidence.decisions else ""
    told = [c for c in chapters.answer(evidence) if c != Paragraph(effect, Role.DETAIL)]
    spent = f"{hours_spent(evidence)} of machine time"
    told_below = now is not None and not now["ended"]  # with those of runs in flight
    beside = "" if told_below else f". {spent} so far."
    if effect:
        beside = f"{AND_SO} {effect.removesuffix('.')}; {spent}."
    yield from answered(told, beside)
    yield from (Paragraph(fact, Role.DETAIL) for fact in facts_by_hand(evidence))
    yield from (Paragraph(f"Beware: {note}", Role.WARNING) for note in evidence.notes)
    if now and not now["ended"]:
        yield Pairs(tuple(now_rows(evidence, now)))
    yield from pictures(evidence, charts.verdict)
    yield Pairs(tuple(tested_rows(evidence)))


def facts_by_hand(evidence: Evidence) -> tuple[str, ...]:
    """What runs by hand came to: nothing is decided there, so that the answer does not say it."""
    decision = evidence.decisions.get(0)
    return decision.facts[-MOST_FACTS:] if decision else ()


MOST_FACTS = 6  # lines: chosen, the last ones are the comparisons


def answered(told: Sequence[Content], beside: str = "") -> Iterator[Content]:
    """The first sentence as the page's answer, with what is said beside it; then the rest."""
    first, *rest = told
    assert isinstance(first, Paragraph)
    yield Paragraph(first.text.removesuffix(".") + beside if beside else first.text, Role.ANSWER)
    yield from rest


def hours_spent(evidence: Evidence) -> str:
    budget_hours = evidence.standing.experiment.budget_hours
    return spent_of(machine_seconds(evidence.records.results), budget_hours)


def now_rows(evidence: Evidence, now: Now) -> Iterator[tuple[str, object]]:
    """What runs, what comes next, and what it will have cost."""
    metric = evidence.metric
    for kind, name in (("in_flight", "running"), ("broken_off", "broken off")):
        for run in now[kind]:
            value = run["val_loss"]
            loss = "none yet" if value is None else f"{value:.4f}"
            at = f"step {run['step']} of {run['num_iterations']}"
            yield name, f"{run['run']}: {at}, {metric.words} {loss}"
    if not now["in_flight"]:
        yield "running", f"nothing; orchestrator: {now['orchestrator']}"
    flying = {run["run"] for run in now["in_flight"]}
    left = [name for name in now["left"] if name not in flying]
    more = f" and {len(left) - FEW_NEXT} more" if len(left) > FEW_NEXT else ""
    yield "next", f"{', '.join(left[:FEW_NEXT])}{more}" if left else None
    budget = now["budget_hours"]
    to_go = f"; about {part_of(3600 * now['hours_to_go'], budget)} to go, by what is known so far"
    spent = spent_of(3600 * now["hours_spent"], budget)
    yield "hours", f"{spent} spent, runs in flight included{'' if now['changed'] else to_go}"


FEW_NEXT = 3  # runs that are named


def tested_rows(evidence: Evidence) -> Iterator[tuple[str, object]]:
    """What was tested, what was only explored, and what no run was spent on."""
    block = final_block(evidence)
    if evidence.standing.stages[-1].most_pairs and not evidence.changed:
        n = len(block.baseline.runs) if block and block.baseline else 0
        label = block.arms[0].arm.label if block else ""
        seeds = "1 seed" if n == 1 else f"{n} seeds"
        tested = f"{label}; on {seeds} used nowhere else, each with its baseline"
        yield "tested", tested if block else "nothing yet: only stage 4 tests"
    begun = [r.run for r in evidence.records.latest().values()]
    outcomes = [r.run for r in evidence.records.latest().values() if r.has_outcome]
    looked = Counter(run.arm.name for run in outcomes if run.stage != 4 and run.arm.configuration)
    yield "explored", named_with_runs(looked)
    if evidence.changed or not evidence.standing.stages[-1].most_pairs:  # by hand: as was asked
        return
    ended, ran = known(outcomes), known(begun)
    ran |= {a.run_name.partition("/")[0] for a in evidence.records.open}
    arms = [*evidence.study.arms]
    if evidence.standing.experiment.plan == "classic":  # another plan counts what it left out
        arms += evidence.study.refinements
    for about, mine in (
        ("no outcome", [a for a in arms if ran & known_by(a) and not ended & known_by(a)]),
        ("not run", [a for a in arms if not ran & known_by(a)]),
    ):
        names = [arm.name for arm in mine[:MOST_NAMED]]
        yield about, listed(names, cut_short=len(mine) > MOST_NAMED)


def named_with_runs(looked: Mapping[str, int]) -> str:
    """Arms, each with the number of its runs; that once, where it is the same."""
    counts, few = set(looked.values()), list(looked.items())[:MOST_NAMED]
    one_count = len(counts) == 1 and len(looked) > 1
    names = [name if n == 1 or one_count else f"{name} ({n} runs)" for name, n in few]
    each = f"; {max(counts)} runs each" if one_count and max(counts) > 1 else ""
    return listed(names, cut_short=len(looked) > MOST_NAMED) + each


def known(runs: Iterable[RunConfig]) -> set:
    return {each for run in runs for each in known_by(run.arm)}


def known_by(arm: Arm) -> set:
    """An arm's configuration may have run under the name of another stage's."""
    return {arm.configuration, arm.name}


MOST_NAMED = 12  # arms in a line; chosen: a longer one is not read

# ---------------------------------------------------------------------------------------------
# The sections


def stages(evidence: Evidence) -> Iterator[PageContent]:
    """The way to the answer: each stage with its runs, decision, rule, and what was saved."""
    courses = {course.number: course for course in course_of(evidence.standing)}
    if courses:
        yield Steps(tuple(step_of(evidence, courses[n]) for n in sorted(courses)))


def step_of(evidence: Evidence, course: StageCourse) -> Step:
    decision, step = evidence.decisions.get(course.number), evidence.standing.step
    assert step is not None
    going = not step.ended and step.stage == course.number
    state = "decided" if decision else "not reached"
    if going and not decision:
        state = "under way" if course.begun or evidence.records.open else "next"
    state = "to come" if not (decision or step.ended or going) else state
    if not decision and course.number < evidence.standing.experiment.overrides.first_stage:
        state = "left out: chosen by hand"
    budget = evidence.standing.experiment.budget_hours
    numbers = [("runs", runs_of(course, cut=course.cut and not decision))]
    numbers += [("spent", part_of(course.spent_s, budget))] if course.spent_s else []
    if course.spared:
        less = f"{course.spared} runs, about {part_of(course.spared_s, budget)}"
        numbers.append(("saved", less))
    rule = field(evidence.registered, "stages", str(course.number), "rule")
    return Step(
        name=evidence.stage_name(course.number),
        state=state,
        title=decision.title if decision else "",
        rule=decision.rule if decision else simple(rule),
        numbers=tuple(numbers),
    )


def runs_of(course: StageCourse, cut: bool) -> str:
    """How many have an outcome, of how many. There may be more than foreseen: runs that are cheaper
    than expected leave room for others, and a person may choose to go on elsewhere."""
    if course.begun > course.foreseen:
        return f"{course.runs}; {course.foreseen} were foreseen"
    if course.foreseen:
        return f"{course.runs} of {course.foreseen} foreseen"
    return "none within the budget" if cut else "none needed"


def every_run(evidence: Evidence) -> Iterator[PageContent]:
    """The table of the text, each run leading to its log."""
    for content in chapters.every_run(evidence):
        if isinstance(content, Table):
            rows = tuple(linked(evidence, row) for row in content.rows)
            content = Table(content.columns, rows)
        yield content


RUN, TRY = 1, 2  # columns of the table of runs


def linked(evidence: Evidence, row: tuple) -> tuple:
    """A row whose run leads to the log of its attempt, where it has a number."""
    if not isinstance(row[TRY], int):
        return row
    folder = attempt_dir(evidence.exp_dir / row[RUN], row[TRY])
    return (*row[:RUN], Linked(row[RUN], folder / "output.log"), *row[RUN + 1 :])


def every_log(f: Findings) -> Iterator[PageContent]:
    """Every run of the logs, leading to its log; also those that a text has no room for."""
    rows = f.groups.rows
    shown = [log_chapters.run_row(f, row) for row in rows]
    linked = (
        (*cells[:FILE], Linked(cells[FILE], row.path), *cells[FILE + 1 :])
        for row, cells in zip(rows, shown, strict=True)
    )
    yield Table(log_chapters.run_columns(f.metric), tuple(linked))


FILE = 1  # column of the table of logs


def reproduced(evidence: Evidence) -> Iterator[PageContent]:
    """How to get the same again: the checkout, the command, the registration, the copies."""
    on_file, exp_dir, e = evidence.registered, evidence.exp_dir, evidence.standing.experiment
    commit, dirty = (field(on_file, "git", name) for name in ("commit", "dirty"))
    edited = " and edits that were not committed" if dirty else ""
    command = field(on_file, "command")
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    there = ["--exp_dir", str(exp_dir)]
    registration = Linked("experiment_configs.json", exp_dir / "experiment_configs.json")
    yield Pairs(
        (
            ("checkout", f"commit {simple(commit)}{edited}" if commit else None),
            ("command", shlex.join(["python", "run_aux.py", *words]) if words else None),
            ("registration", registration),
            ("what ran", Linked("code", exp_dir / "code")),
            ("go on", f"python run_aux.py {asked_by(e)} {shlex.join(there)}"),
            ("this page", shlex.join(["python", "analyze_aux.py", *there])),
        )
    )
    yield Paragraph(
        "The command of each run is in its config.json, with its seed and machine;"
        " analyze_aux.py writes runs.csv, a row for each."
    )


def validation(evidence: Evidence) -> Iterator[PageContent]:
    """The chapter of the final validation, where there is one."""
    if evidence.standing.stages[-1].most_pairs and final_block(evidence):
        yield from validated(evidence)


def deviated(evidence: Evidence) -> Iterator[PageContent]:
    """What was done otherwise."""
    yield Paragraph("Deviations and overrides", Role.SUBHEADING)
    yield from chapters.deviations(evidence)


def failures(evidence: Evidence) -> Iterator[PageContent]:
    """Every failure in full, where there is one; many behind one line, as the table has them."""
    records = evidence.records
    count = sum(r.status != "ok" for r in records.results) + len(records.damaged)
    told, title = tuple(chapters.failed(evidence)) if count else (), "Runs that failed"
    if count > MOST_FAILED:
        yield Folded(f"{title}, all {count}", told)
    elif count:
        yield Paragraph(title, Role.SUBHEADING)
        yield from told


MOST_FAILED = 12  # that are told in full at once; chosen: more fill a screen, and a sheet


SECTIONS: Mapping[str, tuple[str, tuple[Part, ...]]] = {
    "validation": ("Final validation", (validation,)),
    "stages": ("Stages", (stages, folded("Decisions, with their rules", chapters.decided))),
    "curves": ("Curves", (picture(charts.curves),)),
    "arms": (
        "Arms against their baseline",
        (
            picture(charts.effects),
            picture(charts.layers),
            folded("Every number", with_tables(chapters.compared)),
        ),
    ),
    "hours": (
        "Time and hours",
        (
            picture(charts.costs),
            chapters.spent,
            folded("Training time", with_tables(chapters.timed)),
        ),
    ),
    "runs": ("Every run, every attempt", (with_tables(every_run), failures)),
    "registered": (
        "What was registered",
        (
            folded("What was asked", chapters.asked),
            folded("What was held fixed", chapters.held_fixed),
            deviated,
        ),
    ),
    "reproduce": ("How to reproduce it", (reproduced,)),
}
SECTIONS_OF_LOGS: Mapping[str, tuple[str, tuple[Part, ...]]] = {
    "curves": ("Curves", (picture(charts.curves),)),
    "groups": ("Groups", (log_chapters.groups_told,)),
    "arms": ("Each group against the baseline", (log_chapters.compared,)),
    "rules": ("Rules", (log_chapters.ruled,)),
    "time": ("Time", (log_chapters.timed,)),
    "runs": ("Every run", (log_chapters.runs_counted, every_log)),
}
