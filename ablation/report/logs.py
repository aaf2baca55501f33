"""Which logs are compared?  From what a user names to groups of runs, with a reason for each.

    baseline='logs/old/*.txt'    mine=logs/new    mine=one.log

A run counts with the metric at its last step. Any other one is a row with its reason, never dropped
in silence; what cannot be compared at all is a ValueError of one line.
"""

import glob
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from ablation.report.comparisons import ArmRuns, Block
from ablation.report.files import OURS
from ablation.runs.formats import FORMATS
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.runs.several import STATUSES, Asked, ToldFile, ToldRun, read_runs, seed_in_name
from ablation.runs.untrusted import printable

Progress = Callable[[Iterable, int], Iterable]  # the parts as they come, of so many

# ---------------------------------------------------------------------------------------------
# Which files

GROUP = re.compile(r"[^\s=/\\]{1,64}")
SUFFIXES = ("", ".txt", ".log", ".out", ".err", ".jsonl", ".ndjson", ".json", ".stdout", ".stderr")
RANK = re.compile(r"(?<![A-Za-z])rank[-_=.]?[0-9]{1,6}(?![0-9])", re.IGNORECASE)
OF_TORCHRUN = re.compile(r"(attempt_[0-9]+/)[0-9]+(/std(?:out|err)\.log)\Z")  # its --log-dir


@dataclass(frozen=True)
class Named:
    """A group as it was asked for."""

    name: str
    logs: tuple[tuple[Path, ...], ...]  # a log each: one file, or those of its ranks; by name
    passed_over: tuple[str, ...] = ()  # what is no log, in folders
    again: tuple[str, ...] = ()  # files that were named twice


def named_groups(texts: Sequence[str]) -> list[Named]:
    """Groups by their names, in the order in which they were given; NAME=FILES each. ValueError
    where nothing can be meant."""
    places: dict[str, list[str]] = {}
    for text in texts:
        name, sign, where = text.partition("=")
        if not sign or not where.strip() or not GROUP.fullmatch(name) or not name.isprintable():
            shown = printable(repr(text), limit=120)
            raise ValueError(f"logs {shown}: give NAME=FILES, as in baseline='logs/old/*.txt'")
        places.setdefault(name, []).append(where)
    return [group_of(name, where) for name, where in places.items()]


def group_of(name: str, places: Sequence[str | os.PathLike]) -> Named:
    found: dict[Path, Path] = {}  # by what it is behind links
    again, passed_over = [], []
    for place in places:
        files, others = files_of(name, os.path.expanduser(os.fspath(place)))
        passed_over += others
        for path in files:
            if (real := Path(os.path.realpath(path))) in found:
                again.append(str(path))
            else:
                found[real] = path
    logs: dict[str, list[Path]] = {}
    for path in sorted(found.values()):
        logs.setdefault(log_of_rank(path), []).append(path)
    return Named(name, tuple(map(tuple, logs.values())), tuple(passed_over), tuple(again))


def log_of_rank(path: Path) -> str:
    """What files of one run's ranks have in common."""
    name = RANK.sub("rank", path.name)
    return OF_TORCHRUN.sub(r"\1rank\2", str(path.with_name(name)))


def files_of(name: str, place: str) -> tuple[list[Path], list[str]]:
    """The logs that a pattern, a folder or a file names, and what else lies in its folders."""
    there = [place] if os.path.lexists(place) else sorted(glob.glob(place, recursive=True))
    if not there:
        kind = "matches no file" if glob.has_magic(place) else "is no file, folder or pattern"
        raise ValueError(
            f"group {name}: {printable(repr(place), 200)} {kind} in {os.getcwd()}: give a path that"
            " is there, quoted if it is a pattern, as in 'logs/*.txt'"
        )
    files, others = [], []
    for each in map(Path, there):
        if each.is_dir():
            inside = [p for p in sorted(each.rglob("*")) if not p.is_dir()]
            inside = [p for p in inside if not any(s[:1] == "." for s in p.relative_to(each).parts)]
            files += [p for p in inside if is_log(p)]
            others += [str(p) for p in inside if not is_log(p)]
        else:
            files.append(each)
    if not files:
        seen = f": {', '.join(sorted({Path(p).suffix or p for p in others}))}" if others else ""
        suffixes = " ".join(filter(None, SUFFIXES))
        raise ValueError(
            f"group {name}: no log lies in {printable(place, 200)} (looked for {suffixes}; it holds"
            f" {len(others)} other file(s){printable(seen, 100)}): give the files, as in"
            f" {name}='{printable(place, 100)}/*'"
        )
    return files, others


def is_log(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name not in OURS


# ---------------------------------------------------------------------------------------------
# Reading them

FEW_BYTES = 1 << 25  # that one process reads at once: chosen, about a second


def read_all(
    groups: Sequence[Named], asked: Asked, progress: Progress | None = None, jobs: int = 0
) -> list[list[ToldFile]]:
    """What the logs of each group say, in their order; by several processes where they are many.
    jobs: how many; 0 for as many as there are cores to use."""
    tasks = [(log, asked) for group in groups for log in group.logs]
    watched = progress or (lambda parts, total: parts)
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    if jobs < 2 or sum(size_of(path) for log, _ in tasks for path in log) < FEW_BYTES:
        told = list(watched(map(read_one, tasks), len(tasks)))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside threads: a notebook's has some
            pool = get_context("fork").Pool(jobs)
        with pool:
            parts = pool.imap(read_one, tasks, chunksize=max(1, min(8, len(tasks) // (8 * jobs))))
            told = list(watched(parts, len(tasks)))
            pool.close()
            pool.join()
    each = iter(told)
    return [[next(each) for _ in group.logs] for group in groups]


def read_one(task: tuple[tuple[Path, ...], Asked]) -> ToldFile:
    paths, asked = task
    file = read_runs([Path(os.path.realpath(path)) for path in paths], asked)
    return replace(file, paths=paths)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# ---------------------------------------------------------------------------------------------
# Groups of runs


@dataclass(frozen=True)
class Row:
    """One run of a group, whatever became of it."""

    group: str
    file: str
    told: ToldRun
    seed: int | None
    path: Path  # of its log, the first one where each rank has one

    @property
    def counts(self) -> bool:
        return self.told.status == "ok"


@dataclass(frozen=True)
class LogGroup(ArmRuns):
    """Runs of one length and validation size, of one group of logs."""

    name: str = ""
    rows: tuple[Row, ...] = ()
    length: int | None = None  # steps of a run; None where they end by themselves
    val_tokens: int | None = None  # the text that the metric is of; None: not told

    by_seed = False  # repeats: compared as they are

    @property
    def label(self) -> str:
        return self.name

    def told_apart(self, r: RunResult) -> str:
        row = self.rows[r.run.index]
        seed = "" if row.seed is None else f", seed {row.seed}"
        return f"{Path(row.file).name}{seed}"

    @property
    def lost(self) -> str:
        """What the mean leaves out, in words; empty when nothing."""
        count = Counter(row.told.status for row in self.rows if not row.counts)
        return ", ".join(f"{count[s]} {s}" for s in STATUSES if count[s] and s != "twice")

    def is_like(self, other: "LogGroup") -> bool:
        """Whether losses of both are of the same thing, as far as the logs tell."""
        sizes = {self.val_tokens, other.val_tokens} - {None}
        return self.length == other.length and len(sizes) < 2

    @property
    def kind_in_words(self) -> str:
        steps = f"{self.length} steps" if self.length else "runs that end by themselves"
        return f"{steps}, {self.val_tokens} validation tokens" if self.val_tokens else steps


def rows_of(group: Named, files: Sequence[ToldFile], seen: dict[str, tuple[str, str]]) -> list[Row]:
    """A row for each run. seen: of each content so far the group and the file that counts."""
    rows = []
    for file in files:
        name = str(file.paths[0])
        whose, twin = seen.setdefault(file.digest, (group.name, name))
        more = f" and {len(file.paths) - 1} more rank(s)" if len(file.paths) > 1 else ""
        for told in file.runs:
            if (whose, twin) != (group.name, name) and told.status != "unreadable":
                of = "" if whose == group.name else f" of group {whose}"
                told = ToldRun("twice", f"the same content as {twin}{of}", seed=told.seed)
            seed = told.seed
            if seed is None and len(file.runs) == 1:
                seed = seed_in_name(file.paths[0])
            rows.append(Row(group.name, name + more, told, seed, file.paths[0]))
    return rows


@dataclass(frozen=True)
class Groups:
    """What was read, and what is compared with what."""

    names: tuple[str, ...]  # the baseline's first
    parts: tuple[LogGroup, ...]  # of all groups, in that order
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]  # what must be known beside the numbers


def groups_of(named: Sequence[Named], files: Sequence[Sequence[ToldFile]], asked: Asked) -> Groups:
    """Groups as they are compared: the one called baseline first, or else the first."""
    seen: dict[str, tuple[str, str]] = {}
    told = {n.name: mine for n, mine in zip(named, files, strict=True)}
    rows = {n.name: rows_of(n, told[n.name], seen) for n in named}
    names = sorted(rows, key=lambda name: name != "baseline")
    for name in names:
        check_group(name, rows[name], told[name], asked)
    parts = {name: parts_of(name, k, rows[name]) for k, name in enumerate(names)}
    notes = [*notes_of(named, rows), *kinds_told(parts)]
    every = tuple(row for name in names for row in rows[name])
    all_parts = tuple(part for name in names for part in parts[name])
    blocks = tuple(blocks_of_parts(parts, names))
    return Groups(tuple(names), all_parts, every, blocks, tuple(notes))


def check_group(name: str, rows: list[Row], files: Sequence[ToldFile], asked: Asked) -> None:
    """ValueError where nothing can be said of a group."""
    told = [row.told for row in rows]
    names = sorted({n for each in told for n in each.names})
    metric = asked.metric or "val_loss"
    if all(each.status == "twice" for each in told):
        raise ValueError(
            f"group {name}: each of its files counts in another group: {told[0].reason}"
        )
    if all(each.status == "unreadable" for each in told):
        why = printable(told[0].reason, 200)
        raise ValueError(f"group {name}: no log that can be read: {rows[0].file}: {why}")
    if not names and not any(each.status == "diverged" for each in told):
        file = next((f for f in files if f.head), files[0])
        tried = asked.format or ", ".join(FORMATS)
        raise ValueError(
            f"group {name}: no line of a known form in {file.paths[0]}, which begins:"
            f" {file.head or '(nothing)'}; formats tried: {tried}"
            " (--format names one; docs/logs.md shows them)"
        )
    outcomes = [each for each in told if each.status in ("ok", "diverged")]
    if not outcomes and all(each.status in ("no metric", "unreadable", "twice") for each in told):
        raise ValueError(
            f"group {name}: no {metric} in its logs: --metric gives one of {', '.join(names)}"
        )
    if len(outcomes) < 2:
        raise ValueError(f"group {name}: {too_few(outcomes, told, asked)}")


def too_few(outcomes: Sequence[ToldRun], told: Sequence[ToldRun], asked: Asked) -> str:
    """What can and cannot be said of a group with one run or none."""
    others = Counter(each.status for each in told if each not in outcomes)
    lost = ", ".join(f"{n} {status}" for status, n in others.items())
    why = next((printable(each.reason, 200) for each in told if each not in outcomes), "")
    if not outcomes:
        remedy = "give logs of whole runs"
        if "nothing tells" in why:
            remedy = "--num_iterations gives the steps of a whole run"
        return f"no run counts: {lost} ({why}): {remedy}"
    loss = outcomes[0].loss
    value = "which diverged" if loss is None else f"which ends at {asked.sign * loss:.4f}"
    beside = f" and {lost} ({why})" if lost else ""
    return (
        f"one run, {value}{beside}: how far it lies from others can be read, but not how far runs"
        " differ, so there is no interval and no test; give a second run, better three"
    )


def parts_of(name: str, k: int, rows: list[Row]) -> list[LogGroup]:
    """The runs of a group, apart by their length and validation size: these are not averaged."""
    outcomes = [row for row in rows if row.told.status in ("ok", "diverged")]
    sizes = {row.told.val_tokens for row in outcomes if row.told.val_tokens}
    only = next(iter(sizes)) if len(sizes) == 1 else None

    def kind(row: Row) -> tuple[int | None, int | None]:
        return row.told.length, row.told.val_tokens or only

    kinds = Counter(kind(row) for row in rows if row.counts) or Counter(map(kind, outcomes))
    most = max(kinds, key=lambda each: (kinds[each], str(each)))
    by_kind: dict[tuple, list[Row]] = {each: [] for each in sorted(kinds, key=str)}
    for row in rows:
        by_kind[kind(row) if kind(row) in kinds else most].append(row)
    return [part_of(name, k, each, mine, len(kinds) > 1) for each, mine in by_kind.items()]


def part_of(name: str, k: int, kind: tuple, rows: list[Row], several: bool) -> LogGroup:
    arm = Arm(f"group_{k}", flags=(("logs", name),) if k else (), label=name)
    seeds = [row.seed for row in rows if row.told.status in ("ok", "diverged")]
    named = None not in seeds and len(set(seeds)) == len(seeds)
    runs = tuple(
        result_of(arm, n, row, row.seed if named and row.seed is not None else -1 - n - 10**6 * k)
        for n, row in enumerate(rows)
        if row.told.status != "twice"
    )
    plain = LogGroup(runs, name, tuple(rows), *kind)
    return replace(plain, name=f"{name} ({plain.kind_in_words})") if several else plain


def result_of(arm: Arm, index: int, row: Row, seed: int) -> RunResult:
    """A run of a log in the words of the house: of what is lost, only that it is."""
    told = row.told
    return RunResult(
        run=RunConfig(0, arm, index, seed, told.length or told.step),
        attempt=1,
        status=told.status if told.status in ("ok", "diverged") else "interrupted",
        reason=told.reason,
        clock="",
        start_s=0.0,
        end_s=0.0,
        val_loss=told.loss,
        steps_done=told.step,
        train_time_ms=told.time_ms,
        step_avg_ms=None if told.time_ms is None else told.time_ms / max(1, told.step),
        curve=tuple((s, v, 0.0 if t != t else t) for s, v, t in told.curve),
    )


def blocks_of_parts(parts: Mapping[str, list[LogGroup]], names: Sequence[str]) -> Iterable[Block]:
    """A block for each part of the baseline, with the groups that are compared with it; and one for
    those that have nothing of their kind."""
    bases = parts[names[0]]
    left = [part for name in names[1:] for part in parts[name]]
    for base in bases:
        mine = [part for part in left if part.is_like(base)]
        left = [part for part in left if part not in mine]
        if mine or len(bases) > 1 or not left:
            yield block_of([base, *mine], f"Runs of {base.kind_in_words}")
    for part in left:
        if len(bases) == 1:
            both = (bases[0], part)
            yield block_of(both, " and ".join(f"{g.name}: {g.kind_in_words}" for g in both))
        else:
            yield block_of([part], f"{part.name}: no baseline of {part.kind_in_words}")


@dataclass(frozen=True)
class LogBlock(Block):
    """Groups that are compared with each other."""

    @property
    def title(self) -> str:
        return self.name


def block_of(groups: Sequence[LogGroup], title: str) -> LogBlock:
    longest = max(r.run.num_iterations for g in groups for r in g.runs)
    return LogBlock(0, title, longest, tuple(groups))


# ---------------------------------------------------------------------------------------------
# What must be known beside the numbers


def notes_of(named: Sequence[Named], rows: Mapping[str, list[Row]]) -> Iterable[str]:
    for group in named:
        twice = [row for row in rows[group.name] if row.told.status == "twice"]
        if again := [*group.again, *(f"{row.file} ({row.told.reason})" for row in twice)]:
            yield f"{group.name}: counted once, though there twice: {listed(again)}"
        if group.passed_over:
            yield f"{group.name}: passed over, no logs by their names: {listed(group.passed_over)}"
        if lost := [row for row in rows[group.name] if row.told.status not in ("ok", "twice")]:
            count = Counter(row.told.status for row in lost)
            words = ", ".join(f"{n} {status}" for status, n in count.items())
            yield f"{group.name} lost {len(lost)} of {len(rows[group.name])} runs: {words}"
        formats = Counter(row.told.format for row in rows[group.name] if row.told.format)
        if len(formats) > 1:
            yield f"{group.name}: logs of several forms: {', '.join(sorted(formats))}"


def listed(items: Sequence[str], most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return printable(", ".join(items[:most]), 400) + more


def kinds_told(parts: Mapping[str, list[LogGroup]]) -> Iterable[str]:
    """Lengths and validation sizes that differ within a group, or from the baseline's."""
    bases, *others = parts.values()
    for name, mine in parts.items():
        if len(mine) > 1:
            sizes = "; ".join(f"{len(p.losses)} run(s) of {p.kind_in_words}" for p in mine)
            yield f"{name} has runs of different kinds, which are not averaged: {sizes}"
    for part in (p for mine in others for p in mine):
        if any(part.is_like(base) for base in bases):
            continue
        if len(bases) > 1:
            yield f"{part.name} is compared with nothing: no baseline of {part.kind_in_words}"
        elif part.length != bases[0].length:
            yield (
                f"{part.name} has {part.kind_in_words}, {bases[0].name} {bases[0].kind_in_words}:"
                " each is taken at its own end, so the difference is also one of length"
            )
        else:
            yield (
                f"{part.name} and {bases[0].name} are validated on {part.val_tokens} and"
                f" {bases[0].val_tokens} tokens: the difference is also one of the text"
            )
