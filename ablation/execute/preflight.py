"""Would the runs to come go well here?  Asked in minutes, before the hours are spent.

    python run_aux.py --preflight --profile mini

looks at the machine (`survey`), makes short runs (`trial`), judges what was found (`checklist`) and
prints the plan's forecast from what was measured. Nothing stays behind but preflight.json, whose
costs `--staged --preflight_file F` registers.
"""

import contextlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ablation.cli import exit_codes
from ablation.cli.arguments import pasteable
from ablation.execute.checklist import (
    AFTER,
    BEFORE,
    FAIL,
    OFF,
    WARN,
    Line,
    allowed_s,
    exit_code,
    failed,
    first_costs,
    lines_of,
    prior,
    scale,
)
from ablation.execute.launcher import Launcher
from ablation.execute.lock import Lock, look_at
from ablation.execute.machine import machine
from ablation.execute.observed import Survey, Trials
from ablation.execute.preview import announce
from ablation.execute.survey import survey, told_as_fault
from ablation.execute.trial import Track, try_out
from ablation.execute.watcher import GRACE_S, MARGIN_S, UNKILLABLE_S
from ablation.folder.codes import code_copies
from ablation.folder.first_costs import write_findings
from ablation.folder.materials import Materials
from ablation.plan.forecast import forecast, of_stage, paid_s, pairs_of, too_few_pairs
from ablation.plan.next_step import stages_of
from ablation.runs.run import RunResult, duration
from ablation.runs.untrusted import printable_path
from ablation.study.experiment import Experiment, FirstCosts

END_S = 3.0  # for what follows the last run: the forecast, the file
TO_DIE_S = {  # that the last run may take for it; one that hangs in a GPU's driver takes longer
    "cpu": GRACE_S + MARGIN_S,
    "gpu": GRACE_S + 3 * MARGIN_S + UNKILLABLE_S,
}
LOOK = 0.05  # of the time allowed, for reading shards


@dataclass(frozen=True)
class Report:
    """What a preflight found."""

    lines: tuple[Line, ...]
    costs: FirstCosts | None
    forecast: tuple[str, ...]  # in words
    numbers: dict  # the forecast for programs
    took_s: float

    @property
    def code(self) -> int:
        return exit_code(self.lines)


def preflight(
    e: Experiment, m: Materials, launcher_in: Callable[[Path], Launcher], where: Path,
    gpus: Sequence[str], results: Sequence[RunResult], show: Callable[[Sequence, str], None],
    began_s: float,
) -> Report:  # fmt: skip
    """where: the folder of experiments; what is written lies in a folder of its own there, or above
    it where it is not there yet, and is removed in the end. show: as `Display.progress`. began_s:
    on the monotonic clock, the time allowed counts from then. Raises console.Stopped where somebody
    stops it."""
    with contextlib.ExitStack() as stack:
        with told_as_fault() as fault:
            folder = stack.enter_context(own_folder(existing(where)))
        if fault:
            line = Line("disk", **vars(failed(fault[0], "", exit_codes.FAULT)))
            return Report((line,), None, (), {}, time.monotonic() - began_s)
        sweep(folder, launcher_in)
        s = survey(e, m, folder, LOOK * allowed_s(e), gpus)
        lines, costs = lines_of(BEFORE, e, s), None
        if not exit_code(lines):
            deadline_s = began_s + allowed_s(e) - TO_DIE_S[scale(e)] - END_S
            more, costs = tried(e, m, folder, launcher_in, gpus, deadline_s, s, show)
            lines += more
    words, numbers = foreseen(e, costs, results) if costs else ((), {})
    return Report(tuple(lines), costs, tuple(words), numbers, time.monotonic() - began_s)


PREFIX = ".preflight_"
LONG_AGO_S = 3600.0  # chosen: no preflight takes so long, with all that it may wait in a queue


@contextlib.contextmanager
def own_folder(where: Path) -> Iterator[Path]:
    """A new folder, which tells whose it is, and is removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where)).resolve()
    try:
        with Lock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(mine: Path, launcher_in: Callable[[Path], Launcher]) -> None:
    """Remove what killed preflights left beside this one's folder, and end their runs."""
    now = mine.stat().st_mtime  # made just now, by the disk's clock
    for folder in mine.parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            if folder.is_dir() and not folder.is_symlink() and is_abandoned(folder, now):
                launcher = launcher_in(folder)
                launcher.settle(folder)
                for attempt in folder.glob("batch_*/*/run_*"):
                    if handle := launcher.find(attempt):
                        handle.stop("its preflight was killed")
                shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(folder: Path, now: float) -> bool:
    """Whether its owner is gone for certain, or for long."""
    try:
        _, lives, certain = look_at(folder / "lock.json", now)
    except FileNotFoundError:  # it was only just made, or is being removed
        lives = certain = False
    return not lives and (certain or now - folder.stat().st_mtime > LONG_AGO_S)


def existing(folder: Path) -> Path:
    """A folder, or the first above it that is there."""
    folder = folder.absolute()
    return next(part for part in (folder, *folder.parents) if part.is_dir())


def tried(
    e: Experiment, m: Materials, folder: Path, launcher_in: Callable[[Path], Launcher],
    gpus: Sequence[str], deadline_s: float, s: Survey, show: Callable[[Sequence, str], None],
) -> tuple[list[Line], FirstCosts | None]:  # fmt: skip
    """The lines of the short runs, and what they cost."""
    found: list[Trials] = []
    with told_as_fault() as fault:
        codes = code_copies(m.codes, folder)  # as in an experiment: what is left out is missed
        launcher, facts = launcher_in(folder), {"machine": machine(e, gpus)}
        found.append(
            try_out(Track(e, codes, m.data_dir, folder, launcher, facts, deadline_s, show))
        )
    if not found:
        value, _, remedy = fault[0].partition("; ")
        return [Line("short runs", **vars(failed(value, remedy, exit_codes.FAULT)))], None
    return lines_of(AFTER, e, s, found[0]), first_costs(found[0])


# ---------------------------------------------------------------------------------------------
# The plan's forecast, by what was measured


def foreseen(
    e: Experiment, costs: FirstCosts, results: Sequence[RunResult]
) -> tuple[list[str], dict]:
    """The forecast in words and in numbers: hours by stage, what the budget cuts, the smallest
    effect, and how far it is from the prior's."""
    from ablation.plan import power

    measured = replace(e, first_costs=costs)
    words: list[str] = []
    planned, last = forecast(measured, results)
    announce(measured, results, planned, last, words.append)
    pairs = len(e.seeds) if e.plan == "manual" else pairs_of(planned)
    smallest = power.resolution(measured, pairs)
    words.append(f"  smallest effect to be found: {smallest} ({power.last_test_in_words(e)})")
    differing = list(differences(e, costs, results))
    words += [f"  unlike the profile's prior: {line}" for line in differing]
    hours = {
        str(stage.number): paid_s(e, of_stage(planned, stage.number)) / 3600
        for stage in stages_of(e)
    }
    numbers = {"hours_by_stage": hours, "hours": paid_s(e, planned) / 3600}
    numbers |= {"budget_hours": e.budget_hours, "cut": list(last.budget_cuts), "pairs": pairs}
    return words, {**numbers, "smallest_effect": smallest, "unlike_the_prior": differing}


def differences(e: Experiment, costs: FirstCosts, results: Sequence[RunResult]) -> Iterator[str]:
    """What is more than OFF from the profile's prior, in words."""
    measured, before = replace(e, first_costs=costs), prior(e)
    both = [forecast(replace(x, budget_hours=1e5), results)[0] for x in (measured, before)]
    all_s, all_before_s = (paid_s(e, planned) for planned in both)
    rows = (
        ("a training step takes", costs.train_ratio),
        ("start-up and validations take", costs.rest_ratio),
        ("the whole plan, no budget set, takes", all_s / all_before_s if all_before_s else 1.0),
    )
    for what, ratio in rows:
        if abs(ratio - 1) > OFF:
            yield f"{what} {ratio:.2f} times as long ({ratio - 1:+.0%})"


# ---------------------------------------------------------------------------------------------
# How it is told


def tell(
    report: Report, e: Experiment, m: Materials, file: Path, words: Sequence[str], as_json: bool
) -> int:
    """Write the file, and show what it says: in words, or for programs. words: of the command line,
    for the one that goes on with what was measured. The exit code."""
    code_hash = ""
    with told_as_fault():
        code_hash = m.code.hash
    written = write_findings(file, e, code_hash, report.costs, findings(report, e))
    lines = [json.dumps(written, indent=1)] if as_json else [*table(report), *outlook(report, e)]
    if not as_json:
        lines += ["", f"Took {duration(report.took_s)}. All of this is in {printable_path(file)}."]
        if not report.code:
            too_few = too_few_pairs(replace(e, first_costs=report.costs or e.first_costs))
            budget = ", and with the budget that a verdict takes" if too_few else ""
            lines.append(f"Begin with what was measured{budget}: {command_with(file, words)}")
    print("\n".join(lines))
    return report.code


def table(report: Report) -> Iterator[str]:
    """Each line with its value, and below it the remedy, if it needs one."""
    wide = max(len(line.name) for line in report.lines)
    for x in report.lines:
        yield f"  {x.level}  {x.name:<{wide}}  {x.value}"
        if x.remedy:
            yield f"  {'':4}  {'':<{wide}}  remedy: {x.remedy}"


def outlook(report: Report, e: Experiment) -> Iterator[str]:
    """How it came out, and the forecast."""
    warnings = sum(x.level == WARN for x in report.lines)
    bad = [x.name for x in report.lines if x.level == FAIL]
    yield ""
    if bad:
        yield f"NOT FIT: {', '.join(bad)} (exit code {report.code})."
    else:
        yield f"FIT, with {warnings} warning(s)." if warnings else "FIT."
    if report.forecast:
        yield f"\nThe plan {e.plan} by what was measured:"
        yield from report.forecast


def command_with(file: Path, words: Sequence[str]) -> str:
    """The command that registers the costs in this file: the preflight's own, without what makes it
    one."""
    mine = [word for word in without_file(words) if word not in ("--preflight", "--json")]
    named = any(word.partition("=")[0] in VERBS for word in mine)
    words = [*(() if named else ("--staged",)), *mine, "--preflight_file", str(file)]
    return f"python run_aux.py {' '.join(map(pasteable, words))}"


VERBS = ("--staged", "--stage", "--experiment", "--phase", "--exp_dir")


def without_file(words: Sequence[str]) -> Iterator[str]:
    skip = False
    for word in words:
        if not skip and not word.startswith("--preflight_file"):
            yield word
        skip = word == "--preflight_file"


def findings(report: Report, e: Experiment) -> dict:
    """The report for programs: what preflight.json holds beside the costs."""
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "plan": e.plan,
        "lines": [asdict(line) for line in report.lines],
        "forecast": report.numbers,
        "took_s": report.took_s,
        "exit_code": report.code,
    }
