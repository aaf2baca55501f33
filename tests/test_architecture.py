"""Which room may import from which, what the plan may touch, and what a start may cost."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOORS = {  # room: the rooms whose files it may import, beside its own
    "runs": set(),
    "stats": set(),
    "sequential": set(),
    "study": {"runs"},
    "plan": {"study", "runs", "stats", "sequential"},
    "cli": {"study", "runs"},
    "folder": {"plan", "study", "runs"},
    "execute": {"folder", "plan", "study", "runs", "cli"},
    "report": {"folder", "plan", "study", "runs", "stats", "sequential"},
}
REPORT_MAY_ASK = {"plan.decision", "plan.looks"}  # of the plan's files
PROGRAMS = {"run_aux", "analyze_aux", "staged_analysis_helper"}
TRAINER = {"train_gpt", "aux_heads"}
FILES = sorted(p for p in (ROOT / "ablation").rglob("*.py") if p.name != "__init__.py")
PATHS_OF_PROGRAMS = [ROOT / f"{name}.py" for name in sorted(PROGRAMS)]
IMPURE = {  # what a pure file has no use for
    *("os", "time", "datetime", "socket", "subprocess", "pathlib", "shutil", "tempfile", "glob"),
    *("platform", "threading", "psutil"),  # random: with a seed; power simulates in processes
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 600, 50
MOST_LINES_OF_A_PROGRAM = 400  # a command line, and what it calls


def named(path: Path) -> str:
    """A file of the package as its room and name: plan.looks; or only its name: stats."""
    return ".".join(path.relative_to(ROOT / "ablation").with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever it does; of ours as `named`, or a program."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            is_room = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= set(inside) if is_room else {node.module}
    return {module.removeprefix("ablation.") for module in found}


def test_every_file_has_a_room():
    assert {named(path).split(".")[0] for path in FILES} == DOORS.keys()
    assert {path.stem for path in ROOT.glob("*.py")} == PROGRAMS | TRAINER


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_imports_only_through_the_doors_of_its_room(path):
    room = named(path).split(".")[0]
    ours = {named(file) for file in FILES} | PROGRAMS | TRAINER
    entered = {module for module in imports(path) & ours if module.split(".")[0] != room}
    assert {module.split(".")[0] for module in entered} <= DOORS[room]
    if room == "report":
        assert {module for module in entered if module.startswith("plan.")} <= REPORT_MAY_ASK


def test_no_file_imports_itself_by_a_detour():
    left = {named(path): imports(path) for path in FILES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


SPEAK_OF_HEADS = {"study.heads", "report.layers"}  # the built-in study, and its figures
HAVE_THE_DEFAULT = {  # files for which the built-in study is the default, or one of two kinds
    *("study.experiment", "study.asked", "study.study_file", "folder.registration"),
    *("cli.options", "cli.checks"),
}
OF_HEADS = re.compile(r"aux_head|(?<![A-Za-z])(?:taps?|heads)(?![A-Za-z])")


@pytest.mark.parametrize("path", FILES, ids=named)
def test_only_the_built_in_study_and_its_figures_speak_of_heads(path):
    """In code, texts and comments. Apart from the name of the trainer's own file."""
    text = path.read_text().replace("aux_heads.py", "")
    if named(path) in HAVE_THE_DEFAULT:
        text = text.replace("from ablation.study.heads import", "")
    elif named(path) not in SPEAK_OF_HEADS:
        assert not re.search(r"\bHEADS\b", text)
    if named(path) not in SPEAK_OF_HEADS:
        lines = [line for line in text.splitlines() if OF_HEADS.search(line)]
        assert not lines


def test_programs_import_no_program_and_the_trainer_nothing_of_the_house():
    for name in PROGRAMS:
        assert not imports(ROOT / f"{name}.py") & ((PROGRAMS | TRAINER) - {name}), name
    for name in TRAINER:
        found = {module.split(".")[0] for module in imports(ROOT / f"{name}.py")}
        assert not found & (DOORS.keys() | PROGRAMS | {"ablation"}), name


@pytest.mark.parametrize("path", [p for p in FILES if named(p).startswith("plan.")], ids=named)
def test_the_plan_asks_no_clock_no_disk_and_no_machine(path):
    assert not {module.split(".")[0] for module in imports(path)} & IMPURE


def test_the_watcher_needs_the_standard_library_alone():
    """It is copied into an experiment, and runs there with `python -I`."""
    found = {module.split(".")[0] for module in imports(ROOT / "ablation/execute/watcher.py")}
    assert found <= sys.stdlib_module_names


@pytest.mark.parametrize("path", [*FILES, *PATHS_OF_PROGRAMS], ids=lambda path: path.stem)
def test_a_file_is_read_in_one_sitting_and_a_function_on_one_screen(path):
    text = path.read_text()
    most = MOST_LINES_OF_A_PROGRAM if path in PATHS_OF_PROGRAMS else MOST_LINES
    assert len(text.splitlines()) <= most
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines < MOST_LINES_OF_A_FUNCTION, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("module", ["run_aux", "staged_analysis_helper"])
def test_importing_loads_nothing_heavy(module):
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "scipy", "numpy", "matplotlib", "tqdm"} & set(loaded)


def test_only_who_starts_or_asks_programs_touches_processes():
    may = {"execute.watcher", "execute.local", "execute.machine", "execute.slurm"}
    may |= {"folder.repository", "execute.page_writer"}
    users = {named(path) for path in FILES if "subprocess" in imports(path)}
    assert users <= may


TO_THE_FIRST_LAUNCH = """
import os, sys
import run_aux
from ablation.execute.orchestrator import Orchestrator

PLAN = ("next_step", "forecast")  # one question each, whatever is inside
STUDY = ("study_asked", "stages_of", "codes_of", "faults_of", "document_of")  # the same

class Call:
    def __init__(self, code, caller):
        self.file, self.name, self.caller, self.calls = code.co_filename, code.co_name, caller, []

    def leads_to(self):  # the files of what it calls, as far as that calls something in its turn
        further = [call for call in self.calls if call.calls]
        return {call.file for call in further}.union(*(call.leads_to() for call in further))

    def walk(self):
        yield self
        for call in self.calls if self.name not in PLAN + STUDY else ():
            yield from call.walk()

    def is_visit(self):
        elsewhere = self.caller.file != self.file and self.name != "__init__"
        return elsewhere and bool(self.leads_to() - {self.file})

first = current = Call(sys._getframe().f_code, None)

def notice(frame, event, _):
    global current
    ours = frame.f_code.co_filename.startswith(ROOT) and ".venv" not in frame.f_code.co_filename
    if ours and event == "call":
        current.calls.append(Call(frame.f_code, current))
        current = current.calls[-1]
    elif ours and event == "return":
        current = current.caller or current

def launched(*_, **__):
    sys.setprofile(None)
    walked = [call for call in first.walk() if call is not first]
    print()
    print(*(os.path.relpath(call.file, ROOT) for call in walked if call.is_visit()))
    print(*([call.name for call in walked].count(name) for name in PLAN))
    sys.stdout.flush()
    os._exit(0)

ROOT = sys.argv[1]
Orchestrator.launch = launched
sys.setprofile(notice)
run_aux.main(sys.argv[2:])
"""


def test_the_way_to_the_first_launch_is_short(home):
    """A visit: a call into another file that leads on to a third one. What a file can answer by
    itself is no way that a reader has to go."""
    fake = str(ROOT / "tests" / "support" / "fake_train.py")
    words = ["--staged", "--profile", "mini", "--train_script", fake, "--data_dir", "shards"]
    done = subprocess.run(
        [sys.executable, "-c", TO_THE_FIRST_LAUNCH, str(ROOT), *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    visits, asked = done.stdout.splitlines()[-2:]
    assert 10 <= len(visits.split()) <= 30, visits
    next_step, forecast = map(int, asked.split())
    assert 1 <= next_step <= 4  # apart from the forecast's own
    assert forecast == 1
