"""What three small experiments look like, word for word: what is said of them must not change by
accident. Where a change is meant: `WRITE_GOLDEN=1 pytest tests/test_golden.py`; read the diff."""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

import analyze_aux
import run_aux
import staged_analysis_helper
from ablation.report.evidence import read_experiment
from ablation.report.figures import FIGURES, NothingToDraw, plain_matplotlib
from tests.support.invented_folder import adaptive_plan, make, manual

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = {  # name: how its folder is made, the stages of its plan, and how it is asked for
    "classic": (lambda folder: make(folder), (1, 2, 3, 4), ("--staged",)),
    "adaptive": (
        lambda folder: make(folder, adaptive_plan()),
        (1, 2, 3, 4),
        ("--staged", "--plan", "adaptive", "--max_budget_hours", "3"),
    ),
    "by_hand": (
        lambda folder: make(
            folder,
            manual("baseline", "aux_6", "aux_4_8", seeds=(42, 43, 44)),
            failures={"aux_6/run_1": ("diverged",), "baseline/run_2": ("crashed",)},
        ),
        (0,),
        ("--experiment", "baseline,aux_4_8", "--runs", "2"),
    ),
}
VARIES = {  # what is of the moment or of the checkout, not of the experiment
    r"aux_heads_\d{8}_\d{6}": "aux_heads_TIME",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)": "TIME",
    r"(?<![.\w])[0-9a-f]{16,64}\b": "HASH",
}


def said(main, *arguments: str) -> str:
    """What a program prints, and its exit code where it is not 0."""
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        code = main(list(map(str, arguments)))
    return screen.getvalue() + (f"exit code {code}\n" if code else "")


def drawn(exp_dir: Path) -> str:
    """The figures as text: of each panel its words, and the points of every line, bar and area."""
    from matplotlib.colors import to_hex

    x = read_experiment(exp_dir)
    lines = []
    for name, draw in FIGURES.items():
        lines.append(f"== {name}.png")
        try:
            with plain_matplotlib():
                figure = draw(x)
        except NothingToDraw as why:
            lines.append(f"not drawn: {why}")
            continue
        for number, ax in enumerate(figure.axes, 1):
            words = (ax.get_title(loc=where) for where in ("left", "center", "right"))
            lines.append(f"-- panel {number}: {' | '.join(filter(None, words))}")
            lines += [f"axes {ax.get_xlabel()!r} {ax.get_ylabel()!r}"]
            lines += [f"text {text.get_text()!r}" for text in ax.texts]
            for line in ax.lines:
                points = " ".join(f"{x:.4g},{y:.4g}" for x, y in line.get_xydata())
                lines.append(f"line {line.get_color()} {line.get_label()!r} {points}")
            for bar in ax.patches:
                box = bar.get_extents().transformed(ax.transData.inverted())
                colour = to_hex(bar.get_facecolor(), keep_alpha=True)
                bounds = (f"{round(v, 12) + 0:.4g}" for v in box.bounds)
                lines.append(f"area {colour} {' '.join(bounds)}")
    return "\n".join(lines) + "\n"


def outputs(name: str, folder: Path) -> dict[str, str]:
    """Everything that the programs say of an experiment, by the file that holds it."""
    make_it, stages, asked = EXPERIMENTS[name]
    exp_dir = make_it(folder)
    screen = said(analyze_aux.main, "--exp_dir", exp_dir)
    found = {
        "answer": screen,
        "report": (exp_dir / "analysis_report.txt").read_text(),
        "status": said(run_aux.main, "--status", "--exp_dir", exp_dir),
        "status_json": rounded(said(run_aux.main, "--status", "--json", "--exp_dir", exp_dir)),
        "decisions": "\n".join(
            said(staged_analysis_helper.main, "--exp_dir", exp_dir, "--stage", n) for n in stages
        ),
        "dry_run": said(run_aux.main, "--dry_run", "--exp_dir", exp_dir),
        "before": said(run_aux.main, *asked, "--dry_run", "--profile", "speedrun"),
        "results": rounded((exp_dir / "staged_ablation_results.json").read_text()),
        "figures": drawn(exp_dir),
    }
    return {f"{name}.{what}.txt": made_alike(text, folder) for what, text in found.items()}


def rounded(document: str) -> str:
    """JSON with six digits a number: what comes behind is the processor's."""
    value = json.loads(document, parse_float=lambda text: float(f"{float(text):.6g}"))
    return json.dumps(value, indent=1)


def made_alike(text: str, folder: Path) -> str:
    """The same text at any time, in any place."""
    places = {folder.resolve(): "FOLDER", sys.executable: "PYTHON", ROOT: "CHECKOUT"}
    for place, word in places.items():
        text = text.replace(str(place), word)
    for pattern, word in VARIES.items():
        text = re.sub(pattern, word, text)
    return text.rstrip("\n") + "\n"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_that_is_said_of_an_experiment_is_as_it_was(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    for file, text in outputs(name, tmp_path).items():
        if os.environ.get("WRITE_GOLDEN"):
            (GOLDEN / file).write_text(text)
        assert text == (GOLDEN / file).read_text(), file
