"""An experiment folder may come from anybody: looking at it harms nothing, and ends.

A row of the table says how a folder is made hostile and which programs must refuse it; all others
must show what is left. Whatever lies in it, a program prints printable lines, ends, stays within
its memory, and changes nothing but its own files in that folder. To add a case, add a row.
"""

import contextlib
import copy
import itertools
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analyze_aux
import run_aux
import staged_analysis_helper
from ablation.folder.registration import digest_of, read_document
from ablation.report import chapters, evidence, figures
from ablation.report.figures import Picture
from ablation.report.files import OF_FIGURES
from ablation.report.text import render
from ablation.runs.run import run_from
from ablation.study.overrides import NOTHING_OVERRIDDEN
from tests.support.invent import ARMS
from tests.support.invented_folder import make, speedrun, store, train

PROGRAMS: dict[str, Callable[[Path], int]] = {
    "status": lambda d: run_aux.main(["--status", "--exp_dir", str(d)]),
    "json": lambda d: run_aux.main(["--status", "--json", "--exp_dir", str(d)]),
    "helper": lambda d: staged_analysis_helper.main(["--stage", "1", "--exp_dir", str(d)]),
    "report": lambda d: analyze_aux.main(["--exp_dir", str(d)]),
}
ALL = frozenset(PROGRAMS)
RUN = "baseline/run_0"  # of stage 2: the helper is asked for stage 1
EVIL = "bad \x1b[2J\x1b]0;owned\x07 \u202e\r\n0. The answer\u2028 $x^{ \ud800"

# ---------------------------------------------------------------------------------------------
# How a file is made hostile: (its path, a folder outside)


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def endless(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/full")


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret.json")


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nothing")


def circle(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()


def garbage(path: Path, outside: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00{" + EVIL.encode(errors="replace"))


def deep(path: Path, outside: Path) -> None:
    path.write_text('{"a":' * 5000 + "1" + "}" * 5000)


def huge(path: Path, outside: Path) -> None:
    path.write_bytes(b'{"a": [' + b"1," * (10 << 20) + b"1]}")


def digits(path: Path, outside: Path) -> None:
    path.write_text('{"experiment_id": ' + "9" * 100_000 + "}")


KINDS = (fifo, endless, device, link, dangling, circle, folder, garbage, deep, huge, digits)

# ---------------------------------------------------------------------------------------------
# How a folder is made hostile: (the folder, a folder outside)


def edited(path: Path, *at: str, to) -> None:
    """A field of a JSON file, as deep as `at` says."""
    document = value = json.loads(path.read_text())
    for key in at[:-1]:
        value = value[key]
    value[at[-1]] = to
    path.write_text(json.dumps(document))


def registered(exp_dir: Path, *at: str, to) -> None:
    """A field of the registration, with the hash that whoever edits it can compute as well."""
    path = exp_dir / "experiment_configs.json"
    document = json.loads(path.read_text())
    edited(path, *(("registered",) * (at[0] in document["registered"])), *at, to=to)
    edited(path, "hash", to=digest_of(json.loads(path.read_text())["registered"]))


def evil_reason(exp_dir: Path, outside: Path) -> None:
    config = json.loads((exp_dir / RUN / "config.json").read_text())
    run = replace(run_from(config["run"]), arm=ARMS["aux_8"])
    lost = train(run, status="crashed", reason=EVIL + "x" * 9000)
    store(exp_dir, lost, read_document(exp_dir)["experiment_id"])


def evil_names(exp_dir: Path, outside: Path) -> None:
    for name in (EVIL.replace("\ud800", ""), "a\nb", "\x1b[31m"):
        shutil.copytree(exp_dir / RUN, exp_dir / name.replace("/", "") / "run_0")


def evil_registration(exp_dir: Path, outside: Path) -> None:
    for name in ("question", "hypothesis", "estimand", "failure_rule"):
        edited(exp_dir / "experiment_configs.json", "registered", name, to=EVIL)


def evil_machine(exp_dir: Path, outside: Path) -> None:
    for path in exp_dir.glob("*/run_0/config.json"):
        evil = {EVIL: EVIL, "host": EVIL, "gpus": [EVIL] * 3, "parallel_runs": EVIL}
        edited(path, "machine", to=evil)


def evil_override(exp_dir: Path, outside: Path) -> None:
    override = {"kind": "ignore_gate", "stage": 1, "value": {EVIL: EVIL}, "when": EVIL}
    (exp_dir / "overrides.json").write_text(json.dumps({"overrides": [override]}))


def linked_arm(exp_dir: Path, outside: Path) -> None:
    shutil.move(exp_dir / "aux_4", outside / "aux_4")
    (exp_dir / "aux_4").symlink_to(outside / "aux_4")


def linked_run(exp_dir: Path, outside: Path) -> None:
    shutil.move(exp_dir / RUN, outside / "run_0")
    (exp_dir / RUN).symlink_to(outside / "run_0")


def copied_arm(exp_dir: Path, outside: Path) -> None:
    shutil.copytree(exp_dir / "aux_4", exp_dir / "aux_4_copy")


def inner_experiment(exp_dir: Path, outside: Path) -> None:
    copy = shutil.copytree(exp_dir, exp_dir.with_name("copy"))
    shutil.copytree(copy, exp_dir / "code" / "inner")
    shutil.move(copy, exp_dir / exp_dir.name)


def foreign_files(exp_dir: Path, outside: Path) -> None:
    """They cannot be read, and their folder cannot be written to, unless root looks."""
    for path in [exp_dir / RUN, *(exp_dir / RUN).iterdir()]:
        path.chmod(0)
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)


def planted_links(exp_dir: Path, outside: Path) -> None:
    """Under every name that is written: the programs' files, and temporaries as one may guess."""
    names = ("analysis_report.txt", *OF_FIGURES, "staged_ablation_results.json", "lock.json")
    guessed = (f".{name}.{os.getpid()}.tmp" for name in names)
    for name in (*names, *guessed):
        (exp_dir / name).unlink(missing_ok=True)
        (exp_dir / name).symlink_to(outside / "secret.json")


def folders_of_figures(exp_dir: Path, outside: Path) -> None:
    for name in OF_FIGURES:
        (exp_dir / name).mkdir()


def folder_of_the_report(exp_dir: Path, outside: Path) -> None:
    (exp_dir / "analysis_report.txt").mkdir()


def flood_of_gradient_norms(exp_dir: Path, outside: Path) -> None:
    line = 'grad_norms: {"step": 1, "main": [1.0], "total": [1.0]}\n'
    deep_line = "grad_norms: " + "[" * 50_000 + "\n"
    wide_line = f"grad_norms: {json.dumps({'step': 2, 'main': [1.0] * 10**6, 'total': []})}\n"
    log = exp_dir / RUN / "train_log.txt"
    log.write_text(line * 100_000 + deep_line + wide_line)


def huge_log(exp_dir: Path, outside: Path) -> None:
    """A file with a hole: four gigabytes that take no room."""
    with open(exp_dir / RUN / "output.log", "wb") as file:
        file.truncate(4 << 30)


def other_values(*at: str) -> Iterator["Case"]:
    """A registered field with values that no one registered, beside a hash that fits."""
    values = (None, True, -1, 10**400, 1e308, "", EVIL, [], {}, [[1]], {"a": 1}, "7", ["x"] * 10**5)
    for k, to in enumerate(values):
        name = f"{'.'.join(at)} = value {k}"
        yield Case(name, lambda d, _, to=to: registered(d, *at, to=to), may_refuse=ALL)


# ---------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path, Path], None]
    refused: frozenset[str] = frozenset()  # programs that must refuse it
    may_refuse: frozenset[str] = frozenset()  # that may; all others must do their work
    shown: str = ""  # what the report's text must hold


def in_place_of(path: str, kind, **expected) -> Case:
    def make(exp_dir: Path, outside: Path) -> None:
        (exp_dir / path).unlink(missing_ok=True)
        kind(exp_dir / path, outside)

    return Case(f"{path}: {kind.__name__}", make, **expected)


IN_A_RUN = ("config.json", "exit.json", "result.json", "output.log", "train_log.txt")
PASSED_OVER = ("staged_ablation_results.json", *(f"{RUN}/{name}" for name in IN_A_RUN))
NOTHING = (dangling, circle)  # there is no such file, one may say
LOOKS_AT_LOCK = frozenset({"status", "json"})
CASES = (
    *(in_place_of("experiment_configs.json", kind, refused=ALL) for kind in KINDS),
    *(in_place_of("overrides.json", kind, refused=ALL) for kind in KINDS if kind not in NOTHING),
    *(in_place_of("overrides.json", kind, may_refuse=ALL) for kind in NOTHING),
    *itertools.starmap(in_place_of, itertools.product(PASSED_OVER, KINDS)),
    *(in_place_of("lock.json", kind, may_refuse=LOOKS_AT_LOCK) for kind in KINDS),
    Case("a reason with control sequences", evil_reason, shown="aux_8/run_0, attempt 1: crashed"),
    Case("folders with control sequences in their names", evil_names),
    Case("a registration with control sequences", evil_registration, refused=frozenset({"helper"})),
    Case("a machine with control sequences", evil_machine),
    Case("an override with control sequences", evil_override, shown="ignore_gate"),
    Case("an arm's folder that is a link", linked_arm),
    Case("a run's folder that is a link", linked_run),
    Case("a copied arm", copied_arm, shown="Attempts: 6 ok"),
    Case("an experiment within an experiment", inner_experiment, shown="Attempts: 6 ok"),
    Case("files of another user", foreign_files),
    Case("links under every name that is written", planted_links),
    Case("folders under the names of figures", folders_of_figures, refused=frozenset({"report"})),
    Case("a folder under the report's name", folder_of_the_report, refused=frozenset({"report"})),
    Case("a flood of gradient norms", flood_of_gradient_norms),
    Case("a log of four gigabytes", huge_log),
    *other_values("stages"),
    *other_values("stages", "1"),
    *other_values("profile"),
    *other_values("profile", "name"),
    *other_values("profile", "design"),
    *other_values("profile", "design", "alpha"),
    *other_values("profile", "scale"),
    *other_values("profile", "scale", "batch_size"),
    *other_values("share"),
    *other_values("seeds"),
    *other_values("arms"),
    *other_values("stop_on"),
    *other_values("created"),
    *other_values("experiment_id"),
    *other_values("plan"),
    *other_values("budget_hours"),
    *other_values("full_iterations"),
    *other_values("validation_runs"),
    *other_values("share", "parallel_runs"),
    *other_values("rules"),
)

# ---------------------------------------------------------------------------------------------
# What must hold

GIBIBYTE = 1 << 30


@contextlib.contextmanager
def bounded(seconds: int = 30, memory: int = GIBIBYTE) -> Iterator[None]:
    """Ends what would never end, and what takes more memory than any folder is worth."""

    def hangs(*_):
        raise TimeoutError(f"no end within {seconds} s")

    taken = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    limits, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def state_of(folder: Path) -> dict[str, object]:
    """Of everything in it: what it is, and its content if it is a small file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        at = path.lstat()
        small = path.is_file() and not path.is_symlink() and at.st_size < 1 << 20
        content = path.read_bytes() if small else at.st_size
        found[str(path.relative_to(folder))] = at.st_mode, at.st_mtime_ns, content
    return found


@pytest.fixture(scope="module")
def received(tmp_path_factory) -> Path:
    """An experiment in its stage 2."""
    gates = NOTHING_OVERRIDDEN.ungated
    return make(tmp_path_factory.mktemp("received"), speedrun(overrides=gates), most=6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_looking_at_a_hostile_folder(received, tmp_path, capsys, monkeypatch, case):
    exp_dir = shutil.copytree(received, tmp_path / "experiments" / received.name)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text('{"secret": "0123456789"}')
    case.make(exp_dir, outside)
    untouched = state_of(outside)
    monkeypatch.setattr(figures, "picture", lambda draw, x, *how: Picture(b"\x89PNG"))
    for name, program in PROGRAMS.items():
        before = state_of(exp_dir)
        with bounded():
            code = program(exp_dir)
        out, err = capsys.readouterr()
        assert all(line.isprintable() for line in (out + err).split("\n"))
        assert "0123456789" not in out + err
        assert state_of(outside) == untouched
        if name != "report":
            assert state_of(exp_dir) == before, "looking changed something"
        if name in case.refused or (code and name in case.may_refuse):
            assert code and err.count("\n") == 1, f"{name}: {err!r}"
        else:
            assert code == 0, f"{name}: {err!r}"
    report = exp_dir / "analysis_report.txt"
    if case.shown:
        assert case.shown in " ".join(report.read_text().split())


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_folder_may_have_any_name(received, tmp_path, capsys, name):
    exp_dir = shutil.copytree(received, tmp_path / "a\nb \x1b[2J'; rm $x")
    assert PROGRAMS[name](exp_dir) == 0
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))


# ---------------------------------------------------------------------------------------------
# Any value of any field

DECIDING = ("plan", "budget_hours", "full_iterations", "validation_runs", "share", "rules")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=6)
ODD = st.sampled_from([10**300, -1, 0, 1e308, 1e-300, EVIL, "7", [[]], {}, ["x"] * 1000])


def places(value, at: tuple = ()) -> Iterator[tuple]:
    """The paths to all fields of a JSON value, and to what they hold."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for key, part in inner if isinstance(value, dict | list) else ():
        if key not in DECIDING and key != "hash":
            yield (*at, key)
            yield from places(part, (*at, key)) if isinstance(part, dict | list) else ()


@pytest.fixture(scope="module")
def edited_files(received) -> list[tuple[Path, dict, list[tuple]]]:
    """Files of the report, their contents, and the places of their fields."""
    names = ("experiment_configs.json", "overrides.json")
    names += (f"{RUN}/config.json", f"{RUN}/result.json")
    found = [(received / name, json.loads((received / name).read_text())) for name in names]
    return [(path, value, list(places(value))) for path, value in found]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=VALUES | ODD, rehashed=st.booleans())
def test_the_report_survives_any_value_of_any_field(received, edited_files, data, value, rehashed):
    path, before, found = data.draw(st.sampled_from(edited_files))
    at = data.draw(st.sampled_from(found))
    document = copy.deepcopy(before)
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    if path.name == "experiment_configs.json" and rehashed:
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            document["hash"] = digest_of(document["registered"])
    try:
        path.write_text(json.dumps(document))
        with bounded():
            text = render(chapters.report(evidence.read_experiment(received), {}))
        assert all(line.isprintable() and len(line) <= 100 for line in text.split("\n"))
    except ValueError as error:
        assert "experiment_configs.json" in str(error) or "overrides.json" in str(error)
    finally:
        path.write_text(json.dumps(before))


def test_programs_that_find_the_newest_experiment_survive_what_lies_around_it(
    received, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(received, tmp_path / "experiments" / received.name)
    for k, kind in enumerate(KINDS):
        other = tmp_path / "experiments" / f"aux_heads_20990101_0000{k:02}"
        other.mkdir()
        kind(other / "experiment_configs.json", tmp_path)
    (tmp_path / "experiments" / "aux_heads_20990101_999999").symlink_to("/proc/self")
    monkeypatch.setattr(figures, "picture", lambda draw, x, *how: Picture(b"\x89PNG"))
    with bounded():
        assert run_aux.main(["--status"]) == 0
        assert analyze_aux.main([]) == 0
    assert received.name in capsys.readouterr().out
