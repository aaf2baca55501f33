"""What lies in an experiment folder?  Its files as values, for the report and the figures alike.

What cannot be believed becomes a note, never a guess; what is decided is decided anew, from the
records.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from ablation.folder.registration import digest_of
from ablation.folder.standing import Standing, standing
from ablation.plan.decision import Decision
from ablation.plan.looks import Look, look_from
from ablation.runs.run import RunResult
from ablation.runs.store import Records, attempt_dir, attempts_in
from ablation.runs.untrusted import is_number, open_regular, printable, read_json
from ablation.study.profiles import Design
from ablation.study.study import Metric, Study


@dataclass(frozen=True)
class Recorded:
    """A decision in the words of the version that ran the experiment; not made anew, so only told
    as what the folder says."""

    title: str
    lines: tuple[str, ...]  # its reasons and facts


class Compared(Protocol):
    """What is compared, as figures ask for it: of an experiment, or of logs."""

    @property
    def metric(self) -> Metric: ...

    @property
    def blocks(self) -> Sequence: ...  # who is compared with whom, where no experiment says it


@dataclass(frozen=True)
class Evidence:
    """All that an experiment folder says. What is decided is decided anew, from the records."""

    standing: Standing
    design: Design  # the statistical terms in force
    circumstances: Mapping[tuple[str, int], Mapping[str, str]]  # (run, attempt): as FIXED
    grad_norms: Mapping[str, tuple["GradNorms", ...]]  # run: what its log says, where it does
    notes: tuple[str, ...]  # what could not be read
    recorded: Mapping[int, "Recorded"]  # by stage, where decisions are not made anew

    @property
    def exp_dir(self) -> Path:
        return self.standing.exp_dir

    @property
    def registered(self) -> dict:
        """What experiment_configs.json holds, registered or only noted: any, where `changed` is not
        empty."""
        document = self.standing.document
        return {**document, **document["registered"]}

    @property
    def study(self) -> Study:
        return self.standing.experiment.study

    @property
    def metric(self) -> Metric:
        return self.study.metric

    @property
    def records(self) -> Records:
        return self.standing.records

    @property
    def changed(self) -> tuple[str, ...]:
        """How the folder differs from what was registered; then no decision is shown."""
        return self.standing.changed

    @property
    def blocks(self) -> tuple[()]:
        """`blocks_of` makes them."""
        return ()

    @property
    def is_sequential(self) -> bool:
        """Its plan looks at the pairs of the last stage as they come."""
        return self.standing.stages[-1].sequential

    @property
    def decisions(self) -> Mapping[int, Decision]:
        return self.standing.step.decisions if self.standing.step else {}

    @property
    def looks(self) -> tuple[Look, ...]:
        """The looks of stage 4, adaptive plan; each as it was taken."""
        numbers = self.decisions[4].numbers if 4 in self.decisions else {}
        return tuple(look_from(look) for look in numbers.get("looks", ()))

    @property
    def verdict(self) -> str:
        """The adaptive plan's verdict as it fell, whatever later looks saw. Empty before one."""
        return self.decisions[4].numbers.get("verdict", "") if 4 in self.decisions else ""

    @property
    def empty_stages(self) -> dict[int, str]:
        """Why a stage asks for no runs, by its number, where one does not."""
        if self.changed:  # another version may have asked for some
            return {}
        e, stages = self.standing.experiment, self.standing.stages
        with_runs = {r.run.stage for r in self.records.results}
        found = {stage.number: stage.why_empty(e) for stage in stages}
        return {n: why for n, why in found.items() if why and n not in with_runs}

    def stage_name(self, number: int) -> str:
        if not number:
            return "Runs by hand"
        names = {stage.number: f", {stage.name}" for stage in self.standing.stages}
        return f"Stage {number}{names.get(number, '')}"

    def packing(self, r: RunResult) -> str:
        """How the run shared its machine: times are compared between equals only."""
        found = self.circumstances.get((r.run.name, r.attempt), {})
        parallel = found.get("side by side") or "1"
        return f"{parallel} side by side, {found.get('processes') or 'unknown'} process(es) each"


def field(value, *path: str):
    """A value deep in a JSON object; None where the object ends earlier."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


FEW = 20  # entries of a list, or of an object, that are shown; chosen, to fit a few lines
MOST_COUNTED = 1000  # entries of a list that are looked at: chosen, more than any machine has GPUs


def in_words(value) -> str | None:
    """Any JSON value as a short text; None for nothing. What is nested deeper is not looked at."""
    if isinstance(value, dict):
        shown = [f"{k} {simple(v)}" for k, v in islice(value.items(), FEW)]
        return listed(shown, cut_short=len(value) > FEW)
    if isinstance(value, list):
        counted = Counter(map(simple, value[:MOST_COUNTED]))
        shown = [f"{n} x {v}" for v, n in islice(counted.items(), FEW)]
        return listed(shown, cut_short=len(counted) > FEW or len(value) > MOST_COUNTED)
    return None if value is None else simple(value)


def listed(words: list[str], cut_short: bool) -> str:
    return ", ".join([*words, "…"] if cut_short else words)


def simple(value) -> str:
    """A text, a number, yes or no; anything else only by its kind."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float | str):
        return printable(str(value), limit=2000)
    return f"a {type(value).__name__}"


FIXED = {  # line of the report: where its value lies; the first three vary with nothing we compare
    "text": ("data", "fingerprint"),
    "code": ("code", "hash"),
    "versions": ("versions",),
    "host": ("machine", "host"),
    "U-net skips": ("unet_skips",),
    "device": ("machine", "device"),
    "GPUs": ("machine", "gpus"),
    "CPU": ("machine", "cpu"),
    "processes": ("machine", "processes"),
    "side by side": ("machine", "parallel_runs"),
    "git commit": ("git", "commit"),
    "uncommitted": ("git", "dirty"),
}


def read_experiment(exp_dir: Path) -> Evidence:
    """A folder's evidence. Raises ValueError where this is no experiment; what is merely damaged
    becomes a note."""
    found = standing(exp_dir)
    circumstances, notes = {}, []
    for name, attempt, folder in attempts_in(exp_dir):
        try:
            config = read_json(folder / "config.json")
        except (ValueError, OSError) as error:
            notes.append(f"A run's configuration cannot be read: {error}")
            continue
        words = {what: in_words(field(config, *at)) for what, at in FIXED.items()}
        circumstances[name, attempt] = {k: v for k, v in words.items() if v is not None}
    return Evidence(
        standing=found,
        design=found.design,
        circumstances=circumstances,
        grad_norms=read_grad_norms(exp_dir, found.records),
        notes=tuple(notes),
        recorded=recorded_in(found),
    )


def recorded_in(found: Standing) -> dict[int, Recorded]:
    """What staged_ablation_results.json says was decided, by stage: of an experiment whose deciding
    files are another version's; of one whose registration was edited, nothing."""
    document = found.document
    if not found.changed or digest_of(document["registered"]) != document["hash"]:
        return {}
    try:
        results = read_json(found.exp_dir / "staged_ablation_results.json")
    except (ValueError, OSError):
        return {}
    if field(results, "experiment_id") != document["experiment_id"]:
        return {}
    decisions = {
        stage.number: field(results, "stages", str(stage.number), "decision")
        for stage in found.stages
    }
    return {
        n: Recorded(title, (*texts(field(decision, "because")), *texts(field(decision, "facts"))))
        for n, decision in decisions.items()
        if isinstance(title := field(decision, "title"), str)
    }


def texts(value) -> tuple[str, ...]:
    """The first texts of a list; of anything else none."""
    listed = value[:MOST_COUNTED] if isinstance(value, list) else []
    return tuple(line for line in listed if isinstance(line, str))


@dataclass(frozen=True)
class GradNorms:
    """Gradient norm of each block at one step: of the main loss alone, and of the total."""

    step: int
    main: tuple[float, ...]
    total: tuple[float, ...]


GRAD_NORMS = b"grad_norms: "  # train_gpt.py --log_grad_norms: one line at each validation
LOG_BYTES = 1 << 26  # 64 MiB: chosen, more than any log has; what lies beyond is not looked at
MOST_LINES, LINE_BYTES = 10_000, 1 << 14  # of these lines, chosen likewise


def read_grad_norms(exp_dir: Path, records: Records) -> dict[str, tuple[GradNorms, ...]]:
    """Gradient norms of finished runs, by run; log lines that do not fit are passed over."""
    found = {}
    for r in records.latest().values():
        folder = attempt_dir(exp_dir / r.run.name, r.attempt)
        for name in ("train_log.txt", "output.log") if r.status == "ok" else ():
            try:
                with open_regular(folder / name) as file:
                    norms = grad_norms_in(file.read(LOG_BYTES), r.run.num_iterations)
            except (OSError, ValueError):
                continue
            if norms:
                found[r.run.name] = norms
                break
    return found


def grad_norms_in(log: bytes, num_iterations: int) -> tuple[GradNorms, ...]:
    """Gradient norms in a log, of steps that such a run has, with as many blocks as most have."""
    by_step = {}
    lines = re.finditer(rb"^" + GRAD_NORMS + rb"(.{1,%d})$" % LINE_BYTES, log, re.MULTILINE)
    for line in islice(lines, MOST_LINES):
        try:
            value = json.loads(line[1])
            step, main, total = value["step"], tuple(value["main"]), tuple(value["total"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        whole = type(step) is int and 0 <= step <= num_iterations
        if whole and len(main) == len(total) > 0 and all(map(is_norm, main + total)):
            by_step[step] = GradNorms(step, main, total)
    blocks = Counter(len(norms.main) for norms in by_step.values())
    return tuple(n for _, n in sorted(by_step.items()) if len(n.main) == max(blocks))


def is_norm(value) -> bool:
    return is_number(value) and 0 <= value < 1e100
