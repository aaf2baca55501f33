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
from pathlib import Path

from aux_evidence import (
    SELECTING,
    Block,
    Experiment,
    Group,
    blocks_of,
    contrast,
    field,
    ratio,
    read_experiment,
)
from aux_figures import FIGURES, STYLE, NothingToDraw
from records import STATUSES, duration, is_number, machine_seconds, printable
from staged_analysis_helper import p_text

REPORT = "analysis_report.txt"

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


def bare_p(p: float) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ").replace(" ", "")


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
        None if c.p is None else bare_p(c.p),
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
