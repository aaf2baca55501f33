"""What did an experiment find, and how sure is that?  The report and the figures.

    python analyze_aux.py --exp_dir experiments/aux_heads_...

reads the files of one experiment folder, finished or not, and writes four into it:
analysis_report.txt, val_loss_comparison.png, layer_ablation.png, training_curves.png. It launches
and decides nothing. Everywhere, improvement = mean val_loss(baseline) - mean val_loss(arm) in
nats/token: positive is good. Runs are compared within a block only, the runs of one stage with one
number of steps: other stages have other seeds, and other lengths other losses.
"""

import argparse
import io
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aux_stats
from records import (
    STATUSES,
    Arm,
    Records,
    RunResult,
    attempt_dirs,
    duration,
    is_number,
    machine_seconds,
    printable,
    read_json,
    read_records,
)
from staged_analysis_helper import Decision, decision_from, p_text

REPORT = "analysis_report.txt"

# ---------------------------------------------------------------------------------------------
# Reading an experiment folder


@dataclass(frozen=True)
class Experiment:
    """All that an experiment folder says."""

    exp_dir: Path
    registered: dict  # experiment_configs.json
    derived: dict  # staged_ablation_results.json; empty where there is none
    decisions: dict[int, Decision]
    records: Records
    run_configs: tuple[dict, ...] = ()  # config.json of every attempt
    notes: tuple[str, ...] = ()  # what could not be read, or does not fit together

    def stage_name(self, number: int) -> str:
        if not number:
            return "Runs by hand"
        name = field(self.registered, "stages", str(number), "name")
        return f"Stage {number}, {name}"


def field(value, *path: str):
    """A value deep in a JSON object; None where the object ends earlier."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


REGISTERED = {"experiment_id": str, "plan": str, "profile": dict, "stages": dict}  # at the least


def read_experiment(exp_dir: Path) -> Experiment:
    """Raises ValueError where this is no experiment; what is merely damaged becomes a note."""
    path = exp_dir / "experiment_configs.json"
    remedy = "give a folder that run_aux.py made (experiments/aux_heads_...)"
    if not exp_dir.is_dir():
        raise ValueError(f"--exp_dir {exp_dir}: no such folder; {remedy}")
    if not path.is_file():
        raise ValueError(f"--exp_dir {exp_dir}: no {path.name} there; {remedy}")
    registered = read_json(path)
    for name, kind in REGISTERED.items():
        if not isinstance(registered.get(name), kind):
            raise ValueError(f"{path}: {name} is {registered.get(name)!r:.40}; {remedy}")
    records = read_records(exp_dir, registered["experiment_id"])
    derived, decisions, notes = read_derived(exp_dir, registered["experiment_id"], records)
    configs = []
    for _, _, folder in attempt_dirs(exp_dir):
        try:
            configs.append(read_json(folder / "config.json"))
        except (ValueError, OSError) as error:
            notes.append(f"A run's configuration cannot be read: {error}")
    return Experiment(
        exp_dir, registered, derived, decisions, records, tuple(configs), tuple(notes)
    )


def read_derived(
    exp_dir: Path, experiment_id: str, records: Records
) -> tuple[dict, dict[int, Decision], list[str]]:
    """staged_ablation_results.json as (document, decisions, notes), held against the records."""
    path = exp_dir / "staged_ablation_results.json"
    again = "python run_aux.py --exp_dir DIR with --staged or --stage writes it anew"
    if not path.exists():
        return {}, {}, [f"There is no {path.name}, so no decision is shown; {again}."]
    try:
        derived = read_json(path)
        if derived.get("experiment_id") != experiment_id:
            raise ValueError("it belongs to another experiment")
        stages = derived["stages"]
        decisions = {
            int(number): decision_from(stage["decision"])
            for number, stage in stages.items()
            if stage["decision"]
        }
        known = {(run["run"], run["status"]) for s in stages.values() for run in s["runs"]}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        why = f"{path.name} cannot be believed ({error}), so no decision is shown; {again}."
        return {}, {}, [why]
    found = {(r.run.name, r.status) for r in records.latest().values()}
    if known == found:
        return derived, decisions, []
    names = ", ".join(sorted({name for name, _ in known ^ found}))
    stale = f"{path.name} and the records of runs differ in: {names}. The tables follow the"
    return derived, decisions, [f"{stale} records, the decisions the older state; {again}."]


# ---------------------------------------------------------------------------------------------
# Who is compared with whom

SELECTING = (1, 2, 3)  # stages that choose what runs next; stage 4 tests it
FRESH = "validation_"  # runs of what others, with other seeds, had selected: kept apart from those


@dataclass(frozen=True)
class Group:
    """All runs of one configuration within a block: aux_6 and aux_6_repeat are one."""

    runs: tuple[RunResult, ...]  # the last word on each

    @property
    def arm(self) -> Arm:
        return self.runs[0].run.arm

    @property
    def key(self) -> tuple:
        return self.arm.configuration, self.arm.name.startswith(FRESH)

    @property
    def label(self) -> str:
        names = list(dict.fromkeys(r.run.arm.name for r in self.runs))
        return f"{names[0]} … {names[-1]}" if len(names) > 2 else " + ".join(names)

    @property
    def ok(self) -> list[RunResult]:
        return [r for r in self.runs if r.status == "ok"]

    @property
    def losses(self) -> list[float]:
        return [r.val_loss for r in self.ok]

    @property
    def seeds(self) -> set[int]:
        return {r.run.seed for r in self.runs if r.settled}

    @property
    def diverged(self) -> int:
        return sum(r.status == "diverged" for r in self.runs)

    @property
    def lost(self) -> str:
        """What the mean leaves out, in words; empty when nothing."""
        count = Counter(r.status for r in self.runs if r.status != "ok")
        return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])

    def mean_sd(self, name: str = "val_loss") -> tuple[float | None, float | None]:
        """Over the runs that finished; None where there are too few."""
        values = [getattr(r, name) for r in self.ok]
        return aux_stats.mean_sd(values) if values else (None, None)


@dataclass(frozen=True)
class Block:
    """The runs of one stage with one number of steps: the only ones that are compared."""

    stage: int
    name: str
    num_iterations: int
    groups: tuple[Group, ...]  # the baseline first, where there is one

    @property
    def title(self) -> str:
        exploratory = ", exploratory" if self.stage in SELECTING else ""
        return f"{self.name} ({self.num_iterations} steps{exploratory})"

    @property
    def baseline(self) -> Group | None:
        return next((g for g in self.groups if not g.arm.layers), None)

    @property
    def baseline_losses(self) -> list[float]:
        return self.baseline.losses if self.baseline else []

    @property
    def arms(self) -> list[Group]:
        return [g for g in self.groups if g.arm.layers]


def blocks_of(x: Experiment) -> list[Block]:
    """The last word on every run, by stage and length, by configuration."""
    blocks: dict[tuple, dict[tuple, list[RunResult]]] = {}
    by_name = sorted(x.records.latest().values(), key=lambda r: (r.run.arm.name, r.run.index))
    for r in sorted(by_name, key=lambda r: (len(r.run.arm.layers), r.run.arm.layers)):
        groups = blocks.setdefault((r.run.stage, r.run.num_iterations), {})
        groups.setdefault(Group((r,)).key, []).append(r)
    return [
        Block(stage, x.stage_name(stage), steps, tuple(Group(tuple(g)) for g in groups.values()))
        for (stage, steps), groups in sorted(blocks.items())
    ]


# ---------------------------------------------------------------------------------------------
# Layout: plain text, at most WIDTH columns, nothing unprintable

WIDTH = 100
DASH = "\N{EN DASH}"  # undefined


def cell(value) -> str:
    return DASH if value is None or value == "" else printable(str(value), limit=2000)


def number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def paragraph(text: str, indent: int = 2, hang: int = 0) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(
        cell(text), WIDTH, initial_indent=pad, subsequent_indent=pad + " " * hang
    )


def pairs(rows: Iterable[tuple[str, object]]) -> list[str]:
    """Name and value, one a line or wrapped under itself."""
    return [
        line
        for name, value in rows
        for line in paragraph(f"{name + ':':<14} {cell(value)}", hang=15)
    ]


def table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Aligned columns; a heading that begins with ">" is a column of numbers, flush right.

    The last column is cut where the line would grow too long.
    """
    rows = [[cell(value) for value in row] for row in rows]
    right = [name.startswith(">") for name in head]
    lines = [[name.lstrip(">") for name in head], *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = [
        "  " + "  ".join(
            value.rjust(width) if flush else value.ljust(width)
            for value, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    text = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in text]
    return [text[0], "  " + "-" * (max(map(len, text)) - 2), *text[1:]]


# ---------------------------------------------------------------------------------------------
# The report, chapter by chapter

SELECTS = "exploratory and biased: what is picked as the best of several looks better than it is"


def answer(x: Experiment) -> list[str]:
    """The latest decision, and no more than the data carry."""
    finished = sum(r.status == "ok" for r in x.records.latest().values())
    ended = field(x.derived, "ended")
    state = f"Ended: {ended}." if ended else "NOT FINISHED: the plan has not come to an end."
    state = state if x.derived else "Whether the plan has ended is not on record."
    if not finished:
        return paragraph(f"There is no answer yet: no run has finished. {state}")
    if not x.decisions:
        return paragraph(f"No stage is decided yet; {finished} run(s) have finished. {state}")
    last = x.decisions[max(x.decisions)]
    lines = paragraph(f"{x.stage_name(last.stage)}: {last.title}.", hang=2)
    for because in last.because if last.stage else ():
        lines += paragraph(because, indent=4)
    for block in blocks_of(x):
        if block.stage == last.stage == 4:
            lines += paragraph(effect_line(block), indent=4)
    if last.stage == 0:
        lines += paragraph("No rule was registered, so nothing is concluded beyond the tables.")
    elif last.stage in SELECTING:
        lines += paragraph(
            f"Numbers of this stage are {SELECTS}. They choose what runs next; only stage 4, on"
            " seeds used nowhere else, can confirm an effect."
        )
        if last.stage == 1:
            lines += paragraph("Short runs say little about full ones: inconclusive either way.")
    return lines + paragraph(state)


def effect_line(block: Block) -> str:
    """Of the final validation: the effect with all that qualifies it."""
    group = block.arms[0] if block.arms else None
    if not (group and contrast(block, group).comparison):
        return "There are no finished runs of both arms to compare."
    row = dict(zip(ARM_COLUMNS, arm_row(block, group), strict=True))
    line = (
        f"{group.arm.label}: improvement {row['>improvem.']} nats/token, 95 % interval"
        f" {cell(row['>95 % interval'])}, n = {row['>n']} and {len(block.baseline.losses)} baseline"
    )
    lost = [f"{g.label} {g.lost}" for g in block.groups if g.lost]
    return line + (f"; not in these means: {', '.join(lost)}" if lost else "") + "."


SCALE = ("n_layer", "model_dim", "n_head", "sequence_length", "batch_size", "val_tokens")


def asked(x: Experiment) -> list[str]:
    r, profile = x.registered, x.registered["profile"]
    scale = ", ".join(f"{name} {profile[name]}" for name in SCALE if name in profile)
    between = ", " if r["plan"] == "manual" else " to "  # by hand a list of seeds, else a range
    rows = [
        ("question", r.get("question")),
        ("plan", r["plan"]),
        ("profile", f"{profile.get('name')}: {scale}"),
        ("full run", f"{r.get('full_iterations')} steps"),
        ("estimand", r.get("estimand", "final val loss of the main head, nats/token")),
        ("improvement", "mean(baseline) - mean(arm), positive is good"),
        ("failures", r.get("failure_rule")),
        ("registered", f"{r.get('created')}, {r.get('hash')}"),
    ]
    for n, stage in r["stages"].items():
        arms = ", ".join(str(field(arm, "name")) for arm in field(stage, "arms") or [])
        what, steps = field(stage, "question"), field(stage, "num_iterations")
        seeds = between.join(map(str, field(stage, "seeds") or []))
        about = f"{field(stage, 'name')}: {what} {steps} steps, seeds {seeds}: {arms}"
        rows.append((f"stage {n}", about))
    return pairs(rows)


ENVIRONMENT = {  # line of the report: where its value lies
    "versions": ("versions",),
    "host": ("machine", "host"),
    "device": ("machine", "device"),
    "GPUs": ("machine", "gpus"),
    "CPU": ("machine", "cpu"),
    "processes": ("machine", "processes"),
    "side by side": ("machine", "slots"),
    "code hash": ("code", "hash"),
    "data": ("data", "fingerprint"),
    "git commit": ("git", "commit"),
    "uncommitted": ("git", "dirty"),
}


def in_words(value) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(f"{n} x {v}" for v, n in Counter(map(str, value)).items())
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value


def environment(x: Experiment) -> list[str]:
    """As registered; and where runs were made in another one, which makes their times differ."""
    lines = pairs((name, in_words(field(x.registered, *at))) for name, at in ENVIRONMENT.items())
    for name, at in ENVIRONMENT.items():
        seen = Counter(str(in_words(field(config, *at))) for config in x.run_configs)
        if len(seen) > 1:
            which = "; ".join(f"{value} ({n} runs)" for value, n in seen.most_common())
            lines += paragraph(f"Beware, runs differ in {name}: {which}", hang=2)
    return lines


def decided(x: Experiment) -> list[str]:
    lines = []
    for n, stage in x.registered["stages"].items():
        decision = x.decisions.get(int(n))
        title = decision.title if decision else "not decided"
        rule = decision.rule if decision else field(stage, "rule")
        lines += paragraph(f"{x.stage_name(int(n))}: {title}", hang=2)
        lines += paragraph(f"rule: {rule}", indent=4, hang=6)
        for line in (*decision.because, *decision.facts) if decision else ():
            lines += paragraph(line, indent=4, hang=2)
        if decision and decision.missing:
            lines += paragraph(f"no result of: {', '.join(decision.missing)}", indent=4, hang=2)
        if field(x.derived, "stages", n, "overridden"):
            lines += paragraph("OVERRIDDEN: --ignore_gate was given; the plan went on.", indent=4)
    for o in field(x.derived, "overrides") or []:
        words = (f"stage {field(o, 'stage')}", field(o, "kind"), in_words(field(o, "value")))
        lines += paragraph(f"Override {field(o, 'when')}: {': '.join(filter(None, words))}", hang=2)
    for cut in field(x.derived, "cut") or []:
        lines += paragraph(f"Cut by the budget: {cut}", hang=2)
    return lines


@dataclass(frozen=True)
class Contrast:
    """An arm against the baseline of its block, and why what is missing is missing."""

    comparison: aux_stats.Comparison | None = None
    p: float | None = None
    why: str = ""


def contrast(block: Block, group: Group) -> Contrast:
    """Welch's test; where runs diverged the exact worst-rank test, which counts them as worst."""
    base = block.baseline
    if base is None:
        return Contrast(why="no baseline of this stage and length ran")
    if group is base:
        return Contrast()
    found = None
    if base.losses and group.losses:
        found = aux_stats.compare(base.losses, group.losses)
    if base.diverged or group.diverged:
        test = aux_stats.worst_rank(base.losses, group.losses, base.diverged, group.diverged)
        return Contrast(found, test.p, "p by the exact worst-rank test, diverged runs as the worst")
    if found is None:
        return Contrast(why=f"no finished run of the {'arm' if base.losses else 'baseline'}")
    n = min(len(base.losses), len(group.losses))
    why = "" if found.p is not None else "n = 1 on a side" if n < 2 else "no spread on both sides"
    return Contrast(found, found.p, why and f"{why}: no interval, p or d")


def ratio(block: Block, group: Group, name: str) -> float | None:
    """Of means, to the baseline of the block."""
    over, mine = block.baseline and block.baseline.mean_sd(name)[0], group.mean_sd(name)[0]
    return mine / over if over and mine is not None else None


ARM_COLUMNS = ("arm", ">n", ">mean", ">sd", ">improvem.", ">95 % interval", ">p", ">d", ">step")
ARM_NOTES = (
    "n: runs that finished. improvem.: baseline mean - mean, nats/token, with its Welch interval;"
    " p: Welch, two-sided; d: Cohen's; step: time per step over the baseline's. Stages are not"
    f" pooled: they differ in seeds, and in length. Stages that select are {SELECTS}."
)
MULTIPLE = "Several arms against one baseline: these p are not corrected for choosing among them."
SEQUENTIAL = "The plan looked after every pair: its decision allows for that, a nominal p does not."


def arm_row(block: Block, group: Group) -> tuple:
    c, (mean, sd) = contrast(block, group), group.mean_sd()
    f = c.comparison
    return (
        group.label,
        len(group.losses),
        number(mean, ".4f"),
        number(sd, ".4f"),
        number(f and f.improvement, "+.4f"),
        f"{f.ci_low:+.4f} to {f.ci_high:+.4f}" if f and f.ci_low is not None else None,
        None if c.p is None else p_text(c.p).replace(" ", ""),
        number(f and f.cohens_d, "+.1f"),
        number(ratio(block, group, "step_avg_ms"), ".3f"),
    )


def arm_notes(x: Experiment, block: Block) -> Iterable[str]:
    """What a dash means, what a mean leaves out, which configuration a name is."""
    reasons: dict[str, list[str]] = {}
    for group in block.groups:
        left_out = group.lost and f"{group.lost}, not in the mean"
        one = "n = 1, no sd" if group is block.baseline and len(group.losses) == 1 else ""
        other = block.baseline_losses and group.losses and group.seeds != block.baseline.seeds
        apart = other and "not the baseline's seeds, the difference holds theirs too"
        for why in filter(None, (contrast(block, group).why, left_out, one, apart)):
            reasons.setdefault(why, []).append(group.label)
    yield from (f"{', '.join(names)}: {why}." for why, names in reasons.items())
    yield from (f"{group.label} = {group.arm.label}" for group in block.arms)
    if sum(bool(g.losses) for g in block.arms) > 1 and len(block.baseline_losses) > 1:
        yield MULTIPLE
    if x.registered["plan"] == "adaptive" and block.stage == 4:
        yield SEQUENTIAL


def compared(x: Experiment) -> list[str]:
    lines = paragraph(ARM_NOTES)
    for block in blocks_of(x):
        lines += ["", *paragraph(block.title, hang=2)]
        lines += table(ARM_COLUMNS, [arm_row(block, group) for group in block.groups])
        for note in arm_notes(x, block):
            lines += paragraph(note, indent=4, hang=2)
    return lines


def timed(x: Experiment) -> list[str]:
    """Time is compared on one machine only; the environment says whether there were several."""
    lines = paragraph(
        "Training time without start-up and validation, mean and sd; ratio to the baseline of the"
        " same stage and length. Wall time is all of it, of runs that finished."
    )
    for block in blocks_of(x):
        rows = []
        for group in block.groups:
            mean_ms, sd_ms = group.mean_sd("train_time_ms")
            rows.append(
                (
                    group.label,
                    len(group.ok),
                    number(mean_ms and mean_ms / 1000, ".1f"),
                    number(sd_ms and sd_ms / 1000, ".1f"),
                    number(ratio(block, group, "train_time_ms"), ".3f"),
                    number(group.mean_sd("step_avg_ms")[0], ".2f"),
                    number(group.mean_sd("wall_s")[0], ".1f"),
                    number(group.mean_sd("peak_memory_mib")[0], ".0f"),
                )
            )
        head = ("arm", ">n", ">train, s", ">sd", ">ratio", ">ms/step", ">wall, s", ">peak MiB")
        lines += ["", *paragraph(block.title), *table(head, rows)]
    return lines


def every_run(x: Experiment) -> list[str]:
    counted = Counter(r.status for r in x.records.results)
    words = [f"{counted[s]} {s}" for s in STATUSES if counted[s]]
    words += [f"{len(x.records.open)} without a result (in flight, or lost)"] * bool(x.records.open)
    words += [f"{len(x.records.damaged)} with a damaged record"] * bool(x.records.damaged)
    rows = [
        (
            r.run.stage,
            r.run.name,
            r.attempt,
            r.status,
            r.run.seed,
            f"{r.steps_done}/{r.run.num_iterations}",
            number(r.val_loss, ".6f"),
            duration(r.wall_s),
            r.reason,
        )
        for r in x.records.results
    ]
    rows += [(None, name, n, "no result", *[None] * 5) for name, n, _ in x.records.open]
    for path, why in x.records.damaged:
        where = path.parent.relative_to(x.exp_dir).as_posix()
        rows.append((None, where, None, "damaged", *[None] * 4, why))
    head = (">st", "run", ">try", "status", ">seed", ">steps", ">val loss", ">wall", "reason")
    return [*paragraph(f"Attempts: {', '.join(words) or 'none'}."), *table(head, rows)]


def failed(x: Experiment) -> list[str]:
    lines = []
    latest = x.records.latest()
    for r in x.records.results:
        if r.status != "ok":
            later = latest[r.run.name]
            then = f"; attempt {later.attempt}: {later.status}" if later is not r else ""
            what = f"{r.run.name}, attempt {r.attempt}: {r.status} at step {r.steps_done}{then}"
            lines += paragraph(what) + paragraph(r.reason, indent=6)
    for path, why in x.records.damaged:
        lines += paragraph(f"{path.relative_to(x.exp_dir)}: not believed: {why}", hang=4)
    return lines or ["  None."]


def spent(x: Experiment) -> list[str]:
    """The ledger: every attempt is paid for, failed ones too."""
    hours = machine_seconds(x.records.results) / 3600
    lost = hours - machine_seconds([r for r in x.records.results if r.settled]) / 3600
    budget = field(x.derived, "budget", "hours") or x.registered.get("budget_hours")
    lines = pairs(
        [
            ("spent", f"{hours:.2f} h of machine time, start-up and validation included"),
            ("thereof", f"{lost:.2f} h on attempts that crashed, hung or were interrupted"),
            ("budget", f"{budget:g} h ({hours / budget:.0%} spent)" if is_number(budget) else None),
        ]
    )
    if x.records.open:
        lines += paragraph("Attempts without a result are not counted.")
    return lines


CHAPTERS: dict[str, Callable[[Experiment], list[str]]] = {
    "The answer": answer,
    "What was asked": asked,
    "Environment": environment,
    "Decisions, with their rules": decided,
    "Arms against their baseline": compared,
    "Training time": timed,
    "Every run, every attempt": every_run,
    "Runs that failed": failed,
    "Hours": spent,
}


def render_report(x: Experiment, figures: Mapping[str, str]) -> str:
    """The whole report; figures maps each name to why it was not drawn ('' when it was)."""
    lines = [*paragraph(f"Staged ablation of auxiliary prediction heads: {x.exp_dir.name}", 0)]
    for n, (title, chapter) in enumerate(CHAPTERS.items()):
        heading = f"{n}. {title}" if n else title
        lines += ["", heading, "=" * len(heading), *chapter(x)]
        if not n:
            lines += [line for note in x.notes for line in paragraph(f"Beware: {note}", hang=2)]
    lines += ["", f"{len(CHAPTERS)}. Figures", "=" * 10]
    lines += pairs((name, f"not drawn: {why}" if why else "drawn") for name, why in figures.items())
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------
# Figures.  matplotlib is imported here only, and without pyplot: no display is ever asked for.

BLACK, BETTER, WORSE = "#000000", "#0072B2", "#D55E00"
# Okabe & Ito (2008), told apart with any colour vision; yellow, faint on white, comes last
PALETTE = (BETTER, WORSE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("-", "--", ":", "-.")  # beyond seven configurations the line tells them apart
STYLE = {
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
A_RUN = {"linestyle": "", "marker": "o", "color": "white", "markeredgecolor": BLACK}
A_MEAN = {"linestyle": "", "marker": "|", "color": BLACK, "markersize": 18, "markeredgewidth": 3}
LOSS = "val loss (nats/token)"


class NothingToDraw(Exception):
    """Why there is no such figure, for the report."""


def new_figure(size: tuple[float, float], rows: int, columns: int, **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_entries(*more) -> list:
    """Of both figures of improvements; bars pale, so that the runs on them stand out."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], label="one run", **A_RUN),
        Line2D([], [], color=BLACK, label="baseline's mean"),
        Patch(color=BLACK, alpha=0.12, label="baseline ± sd (n > 1)"),
        Patch(color=BETTER, alpha=0.5, label="arm's mean: better"),
        Patch(color=WORSE, alpha=0.5, label="arm's mean: worse"),
        *more,
    ]


def draw_comparison(x: Experiment):
    """Final val loss, a panel for each stage and length: bars, runs as points, baseline as a line.

    A bar from zero would hide every effect (0.02 of 3.28), and a cut one would exaggerate it. So
    bars start at the baseline's mean: their length is the improvement, which has a true zero, while
    the axis still reads as val loss. Without a baseline there are only points and their mean.
    """
    blocks = [b for b in blocks_of(x) if any(g.losses for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no run has finished")
    heights = [0.4 * len(b.groups) + 0.4 for b in blocks]
    figure, axes = new_figure(
        (9, sum(heights) + 0.75 * len(blocks) + 1.2), len(blocks), 1, height_ratios=heights
    )
    for ax, block in zip(axes[:, 0], blocks, strict=True):
        draw_block(ax, block)
        about = f"\nbest: {block.arms[0].arm.label}" if len(block.arms) == 1 else ""
        ax.set_title(block.title + about)
    axes[-1, 0].set_xlabel(f"final {LOSS}; left is better")
    from matplotlib.lines import Line2D

    lone = Line2D([], [], label="mean, no baseline", **A_MEAN)
    more = () if all(b.baseline_losses for b in blocks) else (lone,)
    figure.legend(handles=legend_entries(*more), loc="outside lower center", ncols=3)
    return figure


def draw_block(ax, block: Block) -> None:
    base, base_sd = block.baseline.mean_sd() if block.baseline else (None, None)
    if base is not None:
        ax.axvline(base, color=BLACK, linewidth=1.5)
    if base_sd is not None:
        ax.axvspan(base - base_sd, base + base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for y, group in enumerate(block.groups):
        mean, words = group.mean_sd()[0], [f"n = {len(group.losses)}"]
        if mean is not None:
            if base is not None and group.arm.layers:
                colour = BETTER if mean < base else WORSE
                ax.barh(y, mean - base, left=base, height=0.6, color=colour, alpha=0.5)
                words.insert(0, f"{base - mean:+.4f}".replace("-", "\N{MINUS SIGN}"))
            elif base is None:
                ax.plot([mean], [y], **A_MEAN)
            apart = 0.15 if len(group.losses) > 2 else 0  # so that equal losses stay countable
            rows = [y + apart * (k % 3 - 1) for k in range(len(group.losses))]
            ax.plot(group.losses, rows, markersize=6, **A_RUN)
        words += [f"✕ {group.lost}"] if group.lost else []
        ax.text(1.02, y, "  ".join(words), transform=ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(block.groups)), [g.label for g in block.groups])
    ax.set_ylim(len(block.groups) - 0.4, -0.6)
    ax.use_sticky_edges = False  # room beyond the baseline, where bars begin
    ax.margins(x=0.06)
    ax.autoscale_view(scaley=False)
    ax.locator_params(axis="x", nbins=5)
    ax.ticklabel_format(axis="x", useOffset=False)


def placements(blocks: Sequence[Block]) -> tuple[Block, list[Group]]:
    """The block that tells most about layers, and its arms of one weight and schedule, by depth."""
    for stage in (2, 0, 1):  # full runs about layers, runs by hand, short runs
        for block in blocks:
            usable = [g for g in block.arms if g.losses or g.diverged]
            if block.stage == stage and block.baseline_losses and usable:
                settings = Counter((g.arm.weight, g.arm.schedule) for g in usable)
                most = settings.most_common(1)[0][0]
                chosen = [g for g in usable if (g.arm.weight, g.arm.schedule) == most]
                taps = sorted(chosen, key=lambda g: (len(g.arm.layers), sum(g.arm.layers)))
                return block, taps
    raise NothingToDraw("needs finished runs of a baseline and of an arm, of one stage and length")


def draw_layers(x: Experiment):
    """Improvement by placement, over a map of which layers are tapped: one head, two, more."""
    block, groups = placements(blocks_of(x))
    base, base_sd = block.baseline.mean_sd()
    n_layer = field(x.registered, "profile", "n_layer") or 12
    figure, axes = new_figure(
        (max(7, 3 + 0.8 * len(groups)), 7), 2, 1, sharex=True, height_ratios=(3, 2)
    )
    effect, taps = axes[:, 0]
    effect.axhline(0, color=BLACK, linewidth=1.5)
    if base_sd is not None:
        effect.axhspan(-base_sd, base_sd, color=BLACK, alpha=0.12, linewidth=0)
    for k, group in enumerate(groups):
        mean = group.mean_sd()[0]
        colour = BLACK if mean is None else BETTER if mean < base else WORSE
        if mean is not None:
            effect.bar(k, base - mean, width=0.6, color=colour, alpha=0.5)
        if group.lost:
            where = (k + 0.4 * (mean is not None), 0.1)  # beside the bar, if there is one
            at = {"transform": effect.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            effect.text(*where, f"✕ {group.lost}", rotation=90, fontsize=11, **at)
        effect.plot([k] * len(group.losses), [base - v for v in group.losses], **A_RUN)
        taps.plot([k] * len(group.arm.layers), group.arm.layers, "-o", color=colour, markersize=10)
    effect.use_sticky_edges = False  # room on both sides of zero
    effect.autoscale_view(scalex=False)
    arm = groups[0].arm
    effect.set_title(f"{block.title}\nweight {arm.weight:g}, {arm.schedule}")
    effect.set_ylabel("improvement\n(nats/token)")
    taps.set_ylabel("tap layer")
    taps.set_ylim(0.3, n_layer - 0.3)
    taps.set_yticks(range(2, n_layer, 2))
    taps.set_yticks(range(1, n_layer, 2), minor=True)
    taps.set_xticks(range(len(groups)), [", ".join(map(str, g.arm.layers)) for g in groups])
    taps.set_xlim(-0.6, len(groups) - 0.4)
    taps.set_xlabel("tap layers of the heads")
    taps.grid(axis="y", which="both", alpha=0.3)
    figure.align_ylabels()
    figure.legend(handles=legend_entries(), loc="outside lower center", ncols=2)
    return figure


STEP, MEAN, LOW, HIGH, TIME = range(5)  # columns of a mean curve


def mean_curve(group: Group) -> list[tuple[int, float, float, float, float]]:
    """Step; mean, lowest and highest val loss; mean training time in s. Only where all runs are."""
    curves = [{step: (loss, t / 1000) for step, loss, t in r.curve} for r in group.ok]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    rows = []
    for step in steps:
        losses, times = zip(*(curve[step] for curve in curves), strict=True)
        mean, time_s = aux_stats.mean_sd(losses)[0], aux_stats.mean_sd(times)[0]
        rows.append((step, mean, min(losses), max(losses), time_s))
    return rows


def draw_curves(x: Experiment):
    """Val loss over steps and over training time, of the longest runs, a row for each stage.

    A run begins by falling through several nats, and the effects are hundredths: the axis leaves
    out the beginning, and an inset magnifies the end, where bands can be seen.
    """
    blocks = [b for b in blocks_of(x) if any(mean_curve(g) for g in b.groups)]
    if not blocks:
        raise NothingToDraw("no finished run has a curve")
    longest = max(b.num_iterations for b in blocks)
    blocks = [b for b in blocks if b.num_iterations == longest]
    figure, axes = new_figure((12, 0.8 + 4.2 * len(blocks)), len(blocks), 2, sharey="row")
    looks = curve_looks(blocks)
    for panels, block in zip(axes, blocks, strict=True):
        for ax, column in zip(panels, (STEP, TIME), strict=True):
            draw_panel(ax, block, looks, column)
        panels[0].set_title(block.title)
        panels[0].set_ylabel(LOSS)
        panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    axes[-1, 0].set_xlabel("steps")
    axes[-1, 1].set_xlabel("training time (s)")
    about = "Means over finished runs; bands: lowest to highest; ✕: where a run diverged."
    figure.supxlabel(f"{about} Early losses lie above the axis.", fontsize=12)
    return figure


def curve_looks(blocks: Sequence[Block]) -> dict[tuple, tuple[str, str]]:
    """(colour, line) of each configuration, the same in all panels; the baseline is black."""
    keys = dict.fromkeys(g.key for b in blocks for g in b.arms)
    looks = [(colour, dashes) for dashes in DASHES for colour in PALETTE]
    return {((), False): (BLACK, "-"), **{key: looks[k % len(looks)] for k, key in enumerate(keys)}}


def draw_panel(ax, block: Block, looks: Mapping, column: int) -> None:
    """The curves; the axis is as high as keeps their right half below the inset."""
    inset = ax.inset_axes((0.5, 0.54, 0.5, 0.46))
    for group in block.groups:
        for axes in (ax, inset):
            draw_curve(axes, group, *looks[group.key], column)
    curves = [rows for group in block.groups if (rows := mean_curve(group))]
    for axes, share, height in ((ax, 0.4, 0.45), (inset, 0.85, 1.0)):
        shown = [row for rows in curves for row in rows_from(rows, share * block.num_iterations)]
        low, high = with_margin([loss for row in shown for loss in row[LOW:TIME]])
        axes.set_ylim(low, low + (high - low) / height)
    inset.set_xlim(*with_margin([row[column] for row in shown]))
    inset.tick_params(labelsize=11)
    inset.locator_params(nbins=4)
    ax.set_xlim(left=0)


def rows_from(rows: list[tuple], step: float) -> list[tuple]:
    """The end of a curve, from its last point before a step on; two points at least."""
    before = sum(row[STEP] <= step for row in rows)
    return rows[max(0, min(before - 1, len(rows) - 2)) :]


def with_margin(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def draw_curve(ax, group: Group, colour: str, dashes: str, column: int) -> None:
    label = f"{group.label} (n = {len(group.ok)})" + (f"\n✕ {group.lost}" if group.lost else "")
    if rows := mean_curve(group):
        columns = list(zip(*rows, strict=True))
        at = columns[column]
        front = 2 + (not group.arm.layers)  # the baseline lies on top
        ax.plot(at, columns[MEAN], dashes, color=colour, linewidth=2, label=label, zorder=front)
        if len(group.ok) > 1:
            ax.fill_between(at, columns[LOW], columns[HIGH], color=colour, alpha=0.2, linewidth=0)
        label = None
    for r in group.runs:
        if r.status == "diverged" and r.curve:
            steps, losses, times = zip(*r.curve, strict=True)
            at = steps if column == STEP else [t / 1000 for t in times]
            ax.plot(at, losses, ":", color=colour, linewidth=1.5, label=label)
            ax.plot(at[-1:], losses[-1:], "X", color=colour, markersize=9)
            label = None


FIGURES = {
    "val_loss_comparison.png": draw_comparison,
    "layer_ablation.png": draw_layers,
    "training_curves.png": draw_curves,
}


# ---------------------------------------------------------------------------------------------
# Writing


def write(path: Path, data: bytes) -> None:
    """Whole or not at all: whoever looks while this writes sees the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_figures(x: Experiment) -> dict[str, str]:
    """Draw what can be drawn, remove what would be stale; name -> why it was not drawn."""
    from matplotlib import rc_context

    reasons = {}
    for name, draw in FIGURES.items():
        try:
            with rc_context(STYLE):
                image = io.BytesIO()
                draw(x).savefig(image, format="png")
            write(x.exp_dir / name, image.getvalue())
            reasons[name] = ""
        except NothingToDraw as why:
            (x.exp_dir / name).unlink(missing_ok=True)
            reasons[name] = str(why)
    return reasons


def refuse(error: Exception) -> int:
    print(f"analyze_aux.py: error: {printable(str(error), limit=600)}", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write the report and the figures of an experiment, finished or not.",
        allow_abbrev=False,
    )
    parser.add_argument("--exp_dir", type=Path, required=True, help="the experiment's folder")
    args = parser.parse_args(argv)
    try:
        x = read_experiment(args.exp_dir)
    except (ValueError, OSError) as error:
        return refuse(error)
    try:
        figures = write_figures(x)
        write(x.exp_dir / REPORT, render_report(x, figures).encode())
    except OSError as error:  # a ValueError by now is a bug of ours
        return refuse(error)
    print("\n".join(answer(x)) + "\n")
    for name, why in {REPORT: "", **figures}.items():
        print(f"  {x.exp_dir / name}" + (f" not drawn: {why}" if why else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
