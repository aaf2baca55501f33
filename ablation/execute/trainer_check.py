"""What does the trainer say of its arguments and data?  Asked for every arm, before anything is
registered.

Only this project's trainer is asked, and only where it has `--check`: nobody knows what another one
would do. All arms are asked in one process, since importing torch is nearly all that it takes.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ablation.execute.before_run_1 import is_ours
from ablation.execute.command import build_command
from ablation.execute.machine import ask
from ablation.folder.materials import Code, CodeCopy, Materials
from ablation.plan.forecast import longest_course
from ablation.runs.run import RunConfig
from ablation.study.experiment import Experiment

FLAG = "--check"
ASK = f"""
import json, sys
sys.path.insert(0, sys.argv[1])
import train_gpt
for words in json.loads(sys.argv[2]):
    if code := train_gpt.main([*words, {FLAG!r}]):
        sys.exit(code)
"""
REFUSED = "exit code 2: "


def has_check(code: Code) -> bool:
    return is_ours(code) and f'"{FLAG}"'.encode() in code.files[0][1]


def check_with_trainer(e: Experiment, m: Materials, where: Path) -> None:
    """Raise ValueError in the trainer's words where it refuses an arm. where: of experiments.

    One that cannot be asked here (a login node has no GPU, torch is not there for this Python)
    stops nothing: its first run will say so.
    """
    if e.share.launcher == "slurm" or not has_check(m.code):
        return
    copy, words = CodeCopy(m.code, m.script.parent), []
    for run in distinct(p.run for p in longest_course(e)):
        if not run.arm.trainer:
            command = build_command(e, run, copy, m.data_dir, where)
            words.append(command[command.index(str(copy.script)) + 1 :])
    answer = ask(sys.executable, "-B", "-c", ASK, str(copy.folder), json.dumps(words))
    if answer.failed.startswith(REFUSED):
        raise ValueError(answer.failed.removeprefix(REFUSED))


def distinct(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """The longest run of each arm: what it can begin with, shorter ones can."""
    longest: dict[tuple, RunConfig] = {}
    for run in sorted(runs, key=lambda run: run.num_iterations):
        longest[run.arm.configuration] = run
    return [*longest.values()]
