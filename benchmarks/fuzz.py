"""Can a trainer, a disk or a person make us count what is none, or end us in a traceback?

    python benchmarks/fuzz.py --seconds 60 --seed 1
    python benchmarks/fuzz.py --inputs 1000000 --seed 1 --jobs 2 --json fuzz.json
    python benchmarks/fuzz.py --seed 1 --only 4711          # one input again, with all it did

Generates logs, records, registrations, overrides, environments and command lines (`inputs.py`), and
gives each to the readers, or to a whole program in this process. Nothing is launched. Counted:

    wrong ok    a run that counts although the log or the record does not deserve it (`oracle.py`, a
                second implementation); a decision of an experiment that was changed
    wrong else  an honest run that is not ok, a divergence that is not told, programs that disagree
                about a decision, something written or started where nothing may be
    tracebacks  an exception that the reader or program must not raise; output that is not
                printable, a refusal that is not one line
    hangs       an input that takes longer than --limit_s

Input number N of a seed is the same whatever --jobs says. Exit code 1 if anything was counted.
"""

import argparse
import atexit
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import analyze_aux
import run_aux
import staged_analysis_helper
from ablation.execute import (
    command,
    display,
    environment,
    machine,
    opening,
    preflight,
    reconcile,
    status,
    survey,
)
from ablation.execute.launcher import exit_of
from ablation.folder import registration, standing
from ablation.folder.materials import Materials
from ablation.plan.next_step import conclude, next_step
from ablation.report import figures, files
from ablation.runs import log as logs
from ablation.runs import outcome, store
from ablation.runs.formats import OURS
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, Share
from ablation.study.heads import HEADS, aux
from ablation.study.profiles import PROFILES
from benchmarks import inputs, oracle
from benchmarks.inputs import ANYTHING, DIVERGED, FAULTY, HONEST, Files, Log
from tests.support.invent import by_hand, code_at

WRONG_OK, WRONG_ELSE, TRACEBACK, HANG = "wrong ok", "wrong else", "tracebacks", "hangs"
COUNTED = (WRONG_OK, WRONG_ELSE, TRACEBACK, HANG)
LIMIT_S = 5.0
ID = "f" * 32  # of the experiment that invented records belong to


class Found(Exception):
    """Something to be counted."""

    def __init__(self, counted: str, what: str):
        super().__init__(what)
        self.counted = counted


class Hang(BaseException):
    """The alarm rang."""


def demand(holds: bool, what: str, counted: str = WRONG_ELSE) -> None:
    if not holds:
        raise Found(counted, what)


def is_plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


# ---------------------------------------------------------------------------------------------
# Where it happens: a scratch folder, honest material, and a machine that starts nothing


@dataclass(frozen=True)
class Simulated:
    """An experiment simulated to some point: its registration, and the files of its runs."""

    document: dict
    attempts: tuple[Files, ...]

    def files(self, most: int) -> Files:
        found: Files = {"experiment_configs.json": inputs.json_bytes(self.document)}
        for attempt in self.attempts[:most]:
            found |= attempt
        return found


@dataclass
class Shop:
    scratch: Path
    materials: Path  # a trainer and shards that nobody reads
    honest: tuple[Files, ...]  # records for the readers alone
    simulated: tuple[Simulated, ...]
    started: list  # commands of programs, and launches, that somebody wanted
    gpu_tool: tuple = (None, None)
    number: int = 0

    @contextlib.contextmanager
    def folder(self, files: Files) -> Iterator[Path]:
        self.number += 1
        folder = self.scratch / f"{self.number}" / "experiments" / "e"
        inputs.lay_out(files, folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.parent.parent, ignore_errors=True)


class FakeProgram:
    """What subprocess.Popen gives: there are no programs here but, perhaps, nvidia-smi."""

    shop: Shop
    pid, args = 0, ()

    def __init__(self, words, *_, **__):
        name = os.path.basename(words[0])
        said = self.shop.gpu_tool["-L" in words] if name == "nvidia-smi" else None
        if said is None:
            if name not in ("nvidia-smi", "git") and "--watch" not in words:  # a page is no run
                self.shop.started.append(words)
            raise FileNotFoundError(2, "No such file or directory", words[0])
        self.said, self.returncode = said, 9 if "Unable" in said else 0

    def communicate(self, *_, **__):
        return self.said, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def poll(self):
        return self.returncode

    wait = kill = poll


class NoLauncher:
    """Stands for a launcher in which nothing runs any more."""

    def settle(self, exp_dir):
        pass

    def find(self, folder):
        return None

    def end_of(self, folder):
        return exit_of(folder)


def drive(e, session, results, shown) -> int:
    """In place of a sitting: what it would begin with."""
    conclude(next_step(e, results))
    return 0


@contextlib.contextmanager
def shop() -> Iterator[Shop]:
    """Set everything up; the working folder, the environment and all else are as before after."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    here, stack = os.getcwd(), contextlib.ExitStack()
    with stack, tempfile.TemporaryDirectory(prefix="fuzz_", dir=parent) as scratch:
        made = Shop(Path(scratch), Path(scratch) / "materials", (), (), [])
        FakeProgram.shop = made
        for what, name, instead in (
            (subprocess, "Popen", FakeProgram),
            (atexit, "register", lambda *_, **__: None),  # of a display: one for each
            (opening, "launcher_of", lambda *_: NoLauncher()),
            (opening, "drive", drive),
            (opening, "check_with_trainer", lambda *_: None),
            (preflight, "tried", lambda *_: ([], None)),
            (survey, "busy_cores", lambda: 0.0),
        ):
            stack.enter_context(mock.patch.object(what, name, instead))
        variables = {"TORCHRUN": "/bin/true", "CUDA_VISIBLE_DEVICES": ""}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        for name in (*("runs", "materials"), "cwd/x/y/z"):
            (made.scratch / name).mkdir(parents=True, exist_ok=True)
        os.chdir(made.scratch / "cwd/x/y/z")
        stack.callback(os.chdir, here)
        made.honest = tuple(honest_records(random.Random("honest")))
        made.simulated = tuple(simulated_experiments(made, random.Random("played")))
        yield made


def attempt_files(result: RunResult, experiment_id: str, attempt: int = 1) -> Files:
    """What the orchestrator leaves of an attempt."""
    folder = result.run.name if attempt == 1 else f"{result.run.name}/attempt_{attempt}"
    config = {
        "experiment_id": experiment_id,
        "run": asdict(result.run),
        "attempt": attempt,
        "machine": {"host": "node1", "device": "cpu", "processes": 1, "gpus": [], "cpu": "A CPU"},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "git": {"commit": "0123abc", "dirty": False},
        "limit_s": 1e6,
        "limit_why": "timeout",
        "launched": {"clock": result.clock, "monotonic_s": result.start_s, "utc": ""},
    }
    record = {"experiment_id": experiment_id, **asdict(result)}
    return {
        f"{folder}/config.json": inputs.json_bytes(config),
        f"{folder}/result.json": inputs.json_bytes(record),
    }


def judged(run: RunConfig, log: Log, attempt: int = 1) -> RunResult:
    exit = outcome.exit_from(log.exit)
    return outcome.judge(run, attempt, read(log.screen, log.total), exit)


def read(text: bytes | None, total: int, chunk: int = 1 << 20) -> logs.LogReader:
    reader = logs.LogReader(total)
    for at in range(0, len(text or b""), chunk):
        reader.feed(text[at : at + chunk])
    return reader.close()


def honest_records(rng: random.Random) -> Iterator[Files]:
    for n, arm in enumerate([*HEADS.by_hand.values()][:24]):
        total, summary, lines = inputs.complete(rng)
        log = Log(total, inputs.joined(lines), None, inputs.exit_of(rng, summary), HONEST)
        yield attempt_files(judged(RunConfig(n % 5, arm, n % 3, n, total), log), ID)


# What differs from one registration to the next; paths are relative to the working folder
MATERIALS = "../../../../materials"
ALIKE = {
    "experiment_id": "e" * 32,
    "created": "2026-11-25T10:00:00.000000Z",
    "train_script": f"{MATERIALS}/train.py",
}


def simulated_experiments(shop: Shop, rng: random.Random) -> Iterator[Simulated]:
    """Each plan, simulated with losses that let it go on, so far as a few decisions."""
    (shop.materials / "train.py").write_text("print('trained')\n")
    for kind in ("train", "val"):
        (shop.materials / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    m = Materials(shop.materials / "train.py", shop.materials)
    for plan in ("classic", "adaptive", "manual"):
        by_hand = {"arms": (HEADS.by_hand["baseline"], HEADS.by_hand["aux_4_8"]), "seeds": (42, 43)}
        e = Experiment(
            profile=PROFILES["mini"], plan=plan, budget_hours=50.0, full_iterations=90,
            validation_runs=4, share=Share("cpu", cores=2),
            **(by_hand if plan == "manual" else {}),
        )  # fmt: skip
        exp_dir = shop.scratch / "runs" / plan
        exp_dir.mkdir()
        facts = {"machine": {}, "versions": {}, "git": {}, "slurm_args": ""}
        document = registration.register(e, m, exp_dir, facts)
        document |= ALIKE | {"data_dir": MATERIALS}
        attempts, results = [], []
        while (step := next_step(e, results)).runs and len(results) < 40:
            for run in step.runs:
                loss = 3.3 - 0.1 * (not run.arm.is_baseline) + rng.gauss(0, 0.001)
                total, summary, lines = inputs.complete(rng, run.num_iterations, loss)
                exit = inputs.exit_of(rng, summary) | {"clock": f"boot {len(results)}"}
                log = Log(total, inputs.joined(lines), None, exit, HONEST)
                results.append(judged(run, log))
                attempts.append(attempt_files(results[-1], document["experiment_id"]))
        yield Simulated(document, tuple(attempts))


# ---------------------------------------------------------------------------------------------
# Logs and records


def try_log(rng: random.Random, shop: Shop) -> None:
    log = inputs.a_log(rng)
    chunk = rng.choice((1 << 20, 1 << 20, 7, 64, 1000))
    run, exit = RunConfig(1, Arm("baseline"), 0, 42, log.total), outcome.exit_from(log.exit)
    demand(exit is not None, f"an honest exit.json is not read: {log.exit}")
    screen = read(log.screen, log.total, chunk)
    if rng.random() < 0.03:
        left = {} if log.own is None else {"a/run_0/train_log.txt": log.own}
        if rng.random() < 0.1 and log.own is None:
            odd = inputs.FIFO if rng.random() < 0.2 else inputs.Link("/dev/zero")
            left = {"a/run_0/train_log.txt": odd}
        with shop.folder(left) as folder:
            result = outcome.judge_attempt(run, 1, folder / "a/run_0", screen, exit)
    else:
        own = read(log.own, log.total, chunk)
        result = outcome.judge(run, 1, screen.with_file(own), exit)
    check_verdict(log, result)


def check_verdict(log: Log, result: RunResult) -> None:
    said = oracle.heard(log.texts, log.total)
    wall_s = log.exit["end_s"] - log.exit["start_s"]
    faults = oracle.why_not_ok(said, log.exit["returncode"], wall_s)
    ok = result.status == "ok"
    if ok and faults and log.truth == ANYTHING and len(log.texts) > 1:
        # bytes were changed in one copy: what is whole in the other counts
        alone = [oracle.heard([text], log.total) for text in log.texts]
        why_not = [oracle.why_not_ok(one, log.exit["returncode"], wall_s) for one in alone]
        faults = min(why_not, key=len)
    demand(not (ok and faults), f"ok, but {faults[:3]}", WRONG_OK)
    demand(not (ok and log.truth in (FAULTY, DIVERGED)), f"ok of a {log.truth} log", WRONG_OK)
    if log.truth == HONEST:
        demand(not faults, f"the oracle itself refuses an honest log: {faults[:3]}")
        demand(ok, f"an honest log is {result.status}: {result.reason}")
    if log.truth == DIVERGED:
        demand(result.status == "diverged", f"a divergence is {result.status}: {result.reason}")
    if ok:
        losses = {summary["val_loss"] for summary in said.summaries if summary}
        demand(result.val_loss in losses, f"{result.val_loss} is nobody's loss", WRONG_OK)
        demand(result.steps_done == log.total == result.curve[-1][0], "not all steps", WRONG_OK)
    plain = result.reason.isprintable() and len(result.reason) <= 1000
    demand(plain, f"reason {result.reason!r}", TRACEBACK)
    again = outcome.result_from(json.loads(json.dumps(asdict(result))))
    demand(again == result, "a record that says something else when it is read again")


def try_records(rng: random.Random, shop: Shop) -> None:
    files: Files = {}
    for found in rng.sample(shop.honest, rng.choice((1, 1, 2, 3))):
        files |= found
    honest = {inputs.run_of(path) for path in files}
    for _ in range(rng.choice((1, 1, 2, 4))):
        honest -= inputs.damage(rng, files)
    with shop.folder(files) as folder:
        found = store.read_records(folder, ID)
        check_records(folder, ID, found, honest)


def check_records(folder: Path, experiment_id: str, found, honest: set[str]) -> None:
    believable = oracle.believable(folder, experiment_id)
    for r in found.results:
        if r.status == "ok":
            place = (r.run.name, r.attempt)
            demand(place in believable, f"{place} is ok, and must not be", WRONG_OK)
            demand(r.val_loss == believable[place], f"{place} has another loss", WRONG_OK)
        demand(r.reason.isprintable(), f"reason {r.reason!r}", TRACEBACK)
    places = [(r.run.name, r.attempt) for r in found.results]
    demand(len(places) == len(set(places)), "a record that counts twice", WRONG_OK)
    lost = honest - {name for name, attempt in places if attempt == 1}
    demand(not lost, f"honest records are lost: {sorted(lost)}")
    for _, why in found.damaged:
        demand(why.isprintable(), f"of a damaged file: {why!r}", TRACEBACK)


def try_open_attempts(rng: random.Random, shop: Shop) -> None:
    """What a sitting does first: everything that an earlier one left is given its record."""
    files, left = {}, {}
    for arm in rng.sample([*HEADS.by_hand], rng.choice((1, 1, 2))):
        log = inputs.a_log(rng)
        run = RunConfig(1, Arm(arm), 0, 42, log.total)
        made = attempt_files(judged(run, log), ID)
        del made[f"{run.name}/result.json"]
        made |= {f"{run.name}/exit.json": inputs.json_bytes(log.exit)}
        made |= {f"{run.name}/output.log": log.screen}
        made |= {f"{run.name}/train_log.txt": log.own} if log.own is not None else {}
        files |= made
        left[run.name] = log
    for _ in range(rng.choice((0, 1, 1, 2))):
        for touched in inputs.damage(rng, files):
            left.pop(touched, None)
    with shop.folder(files) as folder:
        said: list[str] = []
        found = refusable(reconcile.reconcile, folder, ID, NoLauncher(), OURS, said.append)
        for line in said:
            demand(line.isprintable(), f"said {line!r}", TRACEBACK)
        if found is None:
            return
        for r in found.results:
            if r.run.name in left and r.attempt == 1:
                check_verdict(left.pop(r.run.name), r)
        demand(not left, f"attempts without a record: {sorted(left)}")
        again = store.read_records(folder, ID)
        demand(again.results == found.results, "the records are others a moment later")


def refusable(act: Callable, *args):
    """What it gives; None where it refuses, in one printable line."""
    try:
        return act(*args)
    except (ValueError, OSError) as error:
        ours = (ValueError, json.JSONDecodeError, machine.NotCounted)
        if type(error) not in ours and not isinstance(error, OSError):
            raise Found(TRACEBACK, f"a refusal that is a bug: {error!r}") from error
        return None


def try_exit(rng: random.Random, shop: Shop) -> None:
    log = inputs.a_log(rng)
    value = inputs.altered(rng, log.exit)
    exit = outcome.exit_from(value)
    if exit is not None:
        run = RunConfig(1, Arm("baseline"), 0, 42, log.total)
        result = outcome.judge(run, 1, read(log.screen, log.total), exit)
        known = {**value, "returncode": exit.returncode}
        check_verdict(replace(log, own=None, exit=known, truth=inputs.ANYTHING), result)


# ---------------------------------------------------------------------------------------------
# Registrations, overrides, and whole programs on whole folders

OVERRIDES = {
    "overrides": [
        {"kind": "ignore_gate", "stage": 1, "value": {}, "when": "2026-11-25T10:00:00Z"},
        {"kind": "budget", "stage": 0, "when": "", "value": {"hours": 60.0, "was": 50.0,
                                                            "pairs": -1}},
        {"kind": "by_hand", "stage": 3, "when": "", "value": by_hand(4, 8)},
        {"kind": "retry", "stage": 1, "when": "", "value": {"attempts": [["aux_4/run_0", 1]]}},
    ]
}  # fmt: skip


def an_experiment(rng: random.Random, shop: Shop, most: int) -> tuple[Files, Simulated]:
    """A folder whose registration or overrides somebody may have edited, perhaps its hash too."""
    simulated = rng.choice(shop.simulated)
    files = simulated.files(rng.randrange(most + 1))
    if rng.random() < 0.6:
        document = inputs.altered(rng, simulated.document)
        if rng.random() < 0.7:
            with contextlib.suppress(Exception):  # what is no registration any more
                document["hash"] = oracle.registered_hash(document)
        files["experiment_configs.json"] = inputs.json_bytes(document)
    if rng.random() < 0.05:
        data = files["experiment_configs.json"]
        files["experiment_configs.json"] = inputs.mangled(rng, data)
    if rng.random() < 0.4:
        some = {"overrides": rng.sample(OVERRIDES["overrides"], rng.randrange(1, 4))}
        some = inputs.altered(rng, some) if rng.random() < 0.8 else some
        files["overrides.json"] = inputs.json_bytes(some)
    return files, simulated


def try_registration(rng: random.Random, shop: Shop) -> None:
    files, _ = an_experiment(rng, shop, 2)
    with shop.folder(files) as folder:
        s = refusable(standing.standing, folder)
        if s is None:
            return
        check_unchanged(folder, s.changed, s.step)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            status.print_status(status.status(folder))
        about = text.getvalue()
        demand(is_plain(about), f"--status prints {about!r:.300}", TRACEBACK)


def check_unchanged(folder: Path, changed, step) -> None:
    document = json.loads((folder / "experiment_configs.json").read_bytes())
    edited = oracle.registered_hash(document) != document["hash"]
    demand(not edited or (changed and step is None), "a decision of an edited folder", WRONG_OK)


@dataclass(frozen=True)
class Printed:
    code: object
    out: str
    err: str


def in_process(main: Callable, argv: Sequence[str], encoding: str = "utf-8") -> Printed:
    """Run a program as a shell would see it. Anything it raises but SystemExit is a traceback."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in "12")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(argv))
        except SystemExit as end:
            code = end.code
    texts = [s.buffer.getvalue().decode(encoding) if not s.closed else "" for s in (out, err)]
    printed = Printed(code, *texts)
    called = f"{main.__module__} {[*argv]!r:.300}"
    demand(type(code) is int and 0 <= code < 256, f"{called}: exit code {code!r}", TRACEBACK)
    for text in texts:
        demand(is_plain(text), f"{called} prints {text!r:.400}", TRACEBACK)
    usage = printed.err.startswith("usage:") and code == 2 and main is not run_aux.main
    in_a_table = "NOT FIT: " in printed.out or '"exit_code": ' in printed.out  # a preflight's
    if code and not (usage or in_a_table or printed.err.startswith("run_aux.py: stopped")):
        one = printed.err.count("\n") == 1 and printed.err.endswith("\n")
        demand(one, f"{called}: exit code {code}, and said {printed.err!r:.400}", TRACEBACK)
    return printed


def snapshot(folder: Path) -> dict:
    found = {}
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            about = os.lstat(os.path.join(base, name))
            size = about.st_size if name in names else 0
            found[os.path.relpath(os.path.join(base, name), folder)] = (about.st_mode, size)
    return found


def differing(before: dict, after: dict) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def try_programs(rng: random.Random, shop: Shop) -> None:
    files, simulated = an_experiment(rng, shop, rng.choice((3, 8, 40)))
    for _ in range(rng.choice((0, 0, 1, 3))):
        inputs.damage(rng, files)
    code = simulated.document["registered"]["code"]
    name = f"code/{code['hash']}/{code['files'][0]}"
    if rng.random() < 0.9:
        files[name] = (shop.materials / "train.py").read_bytes()
    if rng.random() < 0.2:
        log = inputs.a_log(rng)
        files["screen_baseline/run_0/output.log"] = log.screen
    with shop.folder(files) as folder:
        rng.choices((look, report, go_on), weights=(6, 3, 3))[0](rng, shop, folder)
        demand(not shop.started, f"started {shop.started}")


def look(rng: random.Random, shop: Shop, folder: Path) -> None:
    """Programs that only look: they agree, and leave everything as it was."""
    before, at = snapshot(folder), ["--exp_dir", str(folder)]
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "latin-1", "ascii"))
    with contextlib.nullcontext() if encoding == "utf-8" else safe_streams():
        told = in_process(run_aux.main, ["--status", "--json", *at], encoding)
        in_process(run_aux.main, ["--status", *at], encoding)
        stage = rng.randrange(6)
        helped = in_process(staged_analysis_helper.main, ["--stage", str(stage), *at], encoding)
        in_process(run_aux.main, inputs.command_line(rng, "--dry_run", *at))
    changed = differing(before, snapshot(folder))
    demand(not changed, f"looking changed {sorted(changed)}")
    if told.code == 0:
        known = json.loads(told.out)
        decided, shown = str(stage) in known["decisions"], helped.code == 0
        demand(decided == shown, f"stage {stage}: --status {decided}, the helper {shown}")
        check_unchanged(folder, known["changed"], known["decisions"] or None)
    else:
        demand(helped.code != 0, "the helper shows what --status refuses")


@contextlib.contextmanager
def safe_streams():
    """As the programs make their streams safe when they are started."""
    make = io.TextIOWrapper

    def made(buffer, encoding, **named):
        stream = make(buffer, encoding, **named)
        console = sys.modules.get("console")
        if console:
            console.write_plainly(stream)
        else:
            stream.reconfigure(errors="replace")
        return stream

    with mock.patch.object(io, "TextIOWrapper", made):
        yield


FIGURES_EVERY = 200  # reports: drawing takes seconds


def report(rng: random.Random, shop: Shop, folder: Path) -> None:
    before = snapshot(folder)
    argv, allowed = ["--exp_dir", str(folder)], {*files.OURS}
    drawn = rng.randrange(FIGURES_EVERY) == 0
    with mock.patch.object(figures, "FIGURES", figures.FIGURES if drawn else {}):
        in_process(analyze_aux.main, argv)
    written = differing(before, snapshot(folder))
    demand(written <= allowed, f"the report wrote {sorted(written - allowed)}")
    text = folder / "analysis_report.txt"
    if text.is_file():
        demand(is_plain(text.read_text()), "the report holds control signs", TRACEBACK)


def go_on(rng: random.Random, shop: Shop, folder: Path) -> None:
    """A sitting up to its first launch."""
    words = inputs.command_line(rng, "--exp_dir", str(folder))[:6]
    in_process(run_aux.main, [*words, *["--num_gpus", "0"] * (rng.random() < 0.5)])


def files_below(folder: Path) -> set[str]:
    return {os.path.join(base, name) for base, _, names in os.walk(folder) for name in names}


def try_mistakes(rng: random.Random, shop: Shop) -> None:
    """A command line that perhaps nobody can mean, in an empty folder."""
    here = shop.scratch / "cwd"
    shards = ["--data_dir", str(shop.materials)] * (rng.random() < 0.5)
    words, there = inputs.command_line(rng), files_below(here)
    began = in_process(run_aux.main, [*words, *shards])
    demand(not shop.started, f"started {shop.started}")
    left = files_below(here) - there
    tried = "--preflight" in words and len(left) == 1  # it tells what it found wrong
    demand(not left or began.code == 0 or tried, f"refused, but wrote {left}")
    for name in os.listdir(here / "x/y/z"):
        shutil.rmtree(here / "x/y/z" / name, ignore_errors=True)
    if left:
        shutil.rmtree(here, ignore_errors=True)
        (here / "x/y/z").mkdir(parents=True)
        os.chdir(here / "x/y/z")


# ---------------------------------------------------------------------------------------------
# Environments and displays


def share_of(rng: random.Random) -> Share:
    return Share(
        device=rng.choice(("cpu", "cuda")),
        processes=rng.choice((1, 2)),
        parallel_runs=rng.choice((1, 3)),
        cores=rng.choice((1, 4)),
    )


def try_environment(rng: random.Random, shop: Shop) -> None:
    values = inputs.environment(rng)
    shop.gpu_tool = rng.choice(inputs.GPU_TOOLS)
    e = Experiment(
        profile=PROFILES["mini"], plan="classic", budget_hours=1.0, full_iterations=90,
        validation_runs=None, share=share_of(rng),
    )  # fmt: skip
    run = RunConfig(1, aux((4,)), 0, 42, 90)
    with mock.patch.dict(os.environ, values):
        kept = environment.clean(dict(os.environ))
        demand(not any(name.startswith(("PET_", "SQUEUE_")) for name in kept), f"kept {[*kept]}")
        given = os.environ["CUDA_VISIBLE_DEVICES"]
        demand(kept.get("CUDA_VISIBLE_DEVICES") == given, "what the user means is gone")
        names = refusable(machine.visible_gpus) or ()
        demand(all(isinstance(name, str) for name in names), f"GPUs {names!r}")
        copy, data = code_at("t.py"), Path("d")
        words = refusable(command.build_command, e, run, copy, data, Path("l")) or ()
        demand(all(isinstance(word, str) and word for word in words), f"command {words}")
        own = command.extra_environment(e, Path("e"), rng.randrange(e.share.parallel_runs))
        demand(all(isinstance(v, str) for v in own.values()), f"environment {own}")
        if rng.random() < 0.1:
            in_process(run_aux.main, [rng.choice(("--list", "--status"))])


class OddStream(io.StringIO):
    """A terminal that fails in its own way."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.error = rng.choice((None, BrokenPipeError(32, "x"), OSError(5, "x"), ValueError("x")))
        self.after, self.live = rng.randrange(4), rng.random() < 0.5
        self.signs = rng.choice((None, "ascii", "latin-1"))

    def write(self, text):
        self.after -= 1
        if self.error and self.after < 0:
            raise self.error
        text.encode(self.signs or "utf-8")
        return super().write(text)

    def isatty(self):
        return self.live

    def fileno(self):
        return 1 if self.live else super().fileno()


def try_display(rng: random.Random, shop: Shop) -> None:
    stream, log = OddStream(rng), read(inputs.a_log(rng).screen, 8)
    run = RunConfig(1, Arm("baseline"), 0, 42, 8)
    handle = SimpleNamespace(started=rng.random() < 0.5)
    flight = SimpleNamespace(log=log, run=run, handle=handle, started_s=time.monotonic() - 1)
    with mock.patch.dict(os.environ, inputs.environment(rng)), safe_stdout():
        shown = display.Display(stream)
        shown.printed_s -= rng.choice((0.0, 100.0))
        for _ in range(rng.randrange(1, 4)):
            shown.print_line(rng.choice(("a line", "", "ünïcode ±", "x" * 500)))
            shown.progress([flight] * rng.randrange(3), "plan")
        shown.clear()


@contextlib.contextmanager
def safe_stdout():
    """A display that loses its stream takes the standard ones away: they come back."""
    standard = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = standard


# ---------------------------------------------------------------------------------------------
# Many of them


@dataclass(frozen=True)
class Kind:
    name: str
    share: int  # of the inputs, in thousandths
    patience: float  # times --limit_s: whole programs, on a busy machine
    attempt: Callable[[random.Random, Shop], None]


KINDS = (
    Kind("logs", 700, 1, try_log),
    Kind("records", 160, 1, try_records),
    Kind("open attempts", 30, 1, try_open_attempts),
    Kind("ends", 40, 1, try_exit),
    Kind("registrations", 25, 2, try_registration),
    Kind("environments", 20, 2, try_environment),
    Kind("displays", 5, 2, try_display),
    Kind("command lines", 10, 4, try_mistakes),
    Kind("programs", 10, 20, try_programs),
)


@dataclass
class Finding:
    counted: str
    kind: str
    number: int
    where: str  # the frame of ours that it came from: equal ones are one fault, probably
    what: str


def one(seed: int, number: int, shop: Shop, limit_s: float, kinds=KINDS) -> tuple[str, object]:
    """(kind, finding or None) of input `number` of a seed."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(kinds, weights=[k.share for k in kinds])[0]
    shop.started.clear()
    signal.setitimer(signal.ITIMER_REAL, kind.patience * limit_s, 1.0)  # and again: one may
    # come in a callback of the interpreter, which swallows it
    try:
        kind.attempt(rng, shop)
        return kind.name, None
    except Found as found:
        counted, error = found.counted, found
    except Hang as hang:
        counted, error = HANG, hang
    except Exception as bug:
        counted, error = TRACEBACK, bug
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    what = f"{type(error).__name__}: {error}"[:1500]
    return kind.name, Finding(counted, kind.name, number, where(error), what)


def where(error: BaseException) -> str:
    """The innermost frame of the project's own that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    package = ROOT / "ablation"
    ours = [f for f in frames if Path(f.filename).is_relative_to(package)] or frames
    mine = [f for f in frames if Path(f.filename).name == "fuzz.py"]
    deepest = ours[-1] if not isinstance(error, Found) else mine[-2 if len(mine) > 1 else -1]
    return f"{Path(deepest.filename).name}:{deepest.lineno} {deepest.name}"


def alarm(*_):
    raise Hang("longer than its limit")


@dataclass
class Tally:
    inputs: Counter
    findings: list[Finding]

    def __iadd__(self, other: "Tally") -> "Tally":
        self.inputs += other.inputs
        self.findings += other.findings
        return self

    def count(self, counted: str) -> int:
        return sum(f.counted == counted for f in self.findings)


def some(
    seed: int, numbers: Iterable[int], made: Shop, limit_s: float = LIMIT_S, kinds=KINDS
) -> Tally:
    """Inputs of a seed, in this process. For its main thread: the alarm is a signal."""
    before = signal.signal(signal.SIGALRM, alarm)
    tally = Tally(Counter(), [])
    try:
        for number in numbers:
            name, finding = one(seed, number, made, limit_s, kinds)
            tally.inputs[name] += 1
            tally.findings += [finding] if finding else []
    finally:
        signal.signal(signal.SIGALRM, before)
    return tally


def worker(seed: int, limit_s: float, blocks, tallies) -> None:
    """Take blocks of numbers until there is none."""
    with shop() as made:
        for block in iter(blocks.get, None):
            tallies.put(some(seed, block, made, limit_s))
    tallies.put(None)


BLOCK = 500


def many(seed: int, most: int, seconds: float, jobs: int, limit_s: float, print_line) -> Tally:
    """Inputs 0 to `most` of a seed, or as many as there is time for, over several processes."""
    context = multiprocessing.get_context("spawn")
    blocks, tallies = context.Queue(2 * jobs), context.Queue()
    workers = [
        context.Process(target=worker, args=(seed, limit_s, blocks, tallies), daemon=True)
        for _ in range(jobs)
    ]
    for process in workers:
        process.start()
    total, given, working = Tally(Counter(), []), 0, jobs
    deadline, printed_s = time.monotonic() + seconds, time.monotonic()
    while working:
        over = given >= most or time.monotonic() > deadline
        with contextlib.suppress(Exception):  # the queue is full
            blocks.put(None if over else range(given, min(given + BLOCK, most)), timeout=0.02)
            given += 0 if over else BLOCK
        while not tallies.empty():
            tally = tallies.get()
            working -= tally is None
            if tally:
                for f in tally.findings[: max(0, 20 - len(total.findings))]:
                    again = f"--seed {seed} --only {f.number}"
                    print_line(f"  {f.counted}: {again} ({f.kind}, {f.where})")
                total += tally
        if not any(process.is_alive() for process in workers) and tallies.empty() and working:
            total.findings.append(Finding(HANG, "process", given, "", "a worker process died"))
            break
        if time.monotonic() - printed_s > 30:
            printed_s = time.monotonic()
            print_line(f"  {total.inputs.total():,} inputs, {len(total.findings)} findings")
    return total


def told(total: Tally, seed: int, seconds: float) -> Iterator[str]:
    yield f"{total.inputs.total():,} inputs in {seconds:.0f} s, seed {seed}"
    yield "  " + ", ".join(f"{total.inputs[k.name]:,} {k.name}" for k in KINDS)
    yield "  " + ", ".join(f"{counted}: {total.count(counted)}" for counted in COUNTED)
    alike: dict[tuple, list[Finding]] = {}
    for f in sorted(total.findings, key=lambda f: f.number):
        alike.setdefault((f.counted, f.where), []).append(f)
    for (counted, place), found in sorted(alike.items()):
        yield f"{counted} ({len(found)}), {found[0].kind}, {place}"
        for f in found[:3]:
            yield f"    {f.what!r:.700}"
            yield f"    again: python benchmarks/fuzz.py --seed {seed} --only {f.number}"


def as_json(total: Tally, seed: int, seconds: float) -> dict:
    return {
        "seed": seed,
        "seconds": seconds,
        "inputs": total.inputs.total(),
        "by_kind": dict(total.inputs),
        **{counted.replace(" ", "_"): total.count(counted) for counted in COUNTED},
        "findings": [asdict(f) for f in total.findings[:1000]],
    }


def only(seed: int, number: int, limit_s: float) -> int:
    """One input again, and all of its traceback."""
    signal.signal(signal.SIGALRM, alarm)
    with shop() as made:
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choices(KINDS, weights=[k.share for k in KINDS])[0]
        print(f"input {number} of seed {seed}: {kind.name}")
        signal.setitimer(signal.ITIMER_REAL, kind.patience * limit_s, 1.0)
        try:
            kind.attempt(rng, made)
        except (Exception, Hang):
            signal.setitimer(signal.ITIMER_REAL, 0)
            traceback.print_exc()
            return 1
        signal.setitimer(signal.ITIMER_REAL, 0)
    print("nothing was found")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most (3600)")
    parser.add_argument("--inputs", type=int, default=10**9, help="at most (as time allows)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--limit_s", type=float, default=LIMIT_S, help="for one input")
    parser.add_argument("--only", type=int, metavar="N", help="input N of this seed, by itself")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.only is not None:
        return only(args.seed, args.only, args.limit_s)
    begun_s = time.monotonic()
    total = many(args.seed, args.inputs, args.seconds, args.jobs, args.limit_s, print)
    seconds = time.monotonic() - begun_s
    print("\n".join(told(total, args.seed, seconds)))
    if args.json:
        args.json.write_text(json.dumps(as_json(total, args.seed, seconds), indent=1) + "\n")
    return int(bool(total.findings))


if __name__ == "__main__":
    sys.exit(main())
