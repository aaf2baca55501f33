"""Who may import whom, and what a start may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARROWS = {  # file: the files of ours that it may import
    "aux_heads": set(),
    "aux_stats": set(),
    "console": set(),
    "environment": set(),
    "exit_codes": set(),
    "prerequisites": set(),
    "untrusted": set(),
    "arguments": {"untrusted"},
    "launchers": {"environment"},
    "logs": {"untrusted"},
    "train_gpt": {"aux_heads"},
    "records": {"logs", "untrusted"},
    "decision": {"aux_stats", "records"},
    "adaptive": {"aux_stats", "decision", "records"},
    "experiment": {"adaptive", "records"},
    "command": {"experiment", "machine", "records"},
    "machine": {"environment", "experiment", "records"},
    "plans": {"adaptive", "decision", "experiment", "records"},
    "materials": {"machine", "records"},
    "plan_report": {"adaptive", "aux_stats", "decision", "experiment", "plans", "records"},
    "slurm": {"command", "environment", "launchers"},
    "orchestrator": {"launchers", "records", "slurm"},
    "preflight": {"experiment", "machine", "materials", "plans", "records"},
    "registration": {"decision", "experiment", "machine", "materials", "plans", "records"},
    "aux_evidence": {"adaptive", "aux_stats", "decision", "plans", "records", "registration"},
    "display": {"console", "orchestrator", "records"},
    "staged_analysis_helper": {
        *("arguments", "console", "decision", "plans", "prerequisites", "records"),
        "registration",
    },
    "status": {"decision", "orchestrator", "plans", "records", "registration"},
    "aux_figures": {"adaptive", "aux_evidence", "aux_stats", "records"},
    "session": {
        *("arguments", "command", "decision", "display", "exit_codes", "experiment", "launchers"),
        *("orchestrator", "plans", "records", "registration"),
    },
    "analyze_aux": {
        *("adaptive", "arguments", "aux_evidence", "aux_figures", "aux_stats", "console"),
        *("decision", "plans", "prerequisites", "records", "registration"),
    },
    "run_aux": {
        *("arguments", "command", "console", "display", "exit_codes", "experiment", "launchers"),
        *("machine", "materials", "orchestrator", "plan_report", "plans", "preflight"),
        *("prerequisites", "records", "registration", "session", "slurm", "status"),
    },
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_every_program_has_its_place_in_the_table():
    assert {path.stem for path in ROOT.glob("*.py")} == ARROWS.keys()


@pytest.mark.parametrize("name", ARROWS)
def test_arrows_between_files_are_the_agreed_ones(name):
    assert imports(ROOT / f"{name}.py") & ARROWS.keys() == ARROWS[name]


def test_arrows_are_acyclic():
    left = dict(ARROWS)
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.parametrize("module", ["run_aux", "staged_analysis_helper"])
def test_importing_loads_nothing_heavy(module):
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "scipy", "numpy", "matplotlib", "tqdm"} & set(loaded)


def test_only_launchers_and_questions_to_the_machine_touch_processes():
    for name in ARROWS.keys() - {"launchers", "machine", "slurm"}:
        assert "subprocess" not in imports(ROOT / f"{name}.py"), name
