"""How long do `--status` and a resume take on an experiment with many finished runs?

    python benchmarks/many_runs.py                     # 1,000 runs, each command five times

The records are invented, with curves as long as a speedrun's. A resume reads them all, starts the
one run that is missing (a fake trainer that ends at once), and ends; each time is that of the whole
process. The target is under 1 s for both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
sys.path.insert(0, str(ROOT))

from ablation.execute.machine import git_state, machine, versions
from ablation.folder.materials import Materials
from ablation.plan.next_step import next_step
from ablation.runs.run import RunResult
from ablation.runs.store import write_json, write_result
from ablation.study.heads import HEADS
from tests.support.invent import experiment
from tests.support.invented_folder import begin
from tests.support.processes import stand_in_shards

WALL_S = 90.0


def invent(folder: Path, runs: int) -> Path:
    """An experiment by hand of which all runs but the last have finished."""
    stand_in_shards(folder / "data")
    e = experiment(
        plan="manual",
        budget_hours=2 * runs * WALL_S / 3600,
        full_iterations=200,
        arms=(HEADS.baseline(),),
        seeds=tuple(range(runs + 1)),
    )
    materials = Materials(SUPPORT / "fake_train.py", folder / "data")
    facts = {"machine": machine(e, ()), "versions": versions(), "git": git_state()}
    exp_dir = begin(e, materials, folder, {**facts, "slurm_args": ""})
    experiment_id = json.loads((exp_dir / "experiment_configs.json").read_bytes())["experiment_id"]
    for number, run in enumerate(next_step(e, []).runs[:runs]):
        val_loss, total = 3.3 - 1e-6 * number, run.num_iterations
        steps = range(0, total + 1, 5)
        result = RunResult(
            run=run,
            attempt=1,
            status="ok",
            reason="",
            clock="invented",
            start_s=2 * WALL_S * number,
            end_s=2 * WALL_S * number + WALL_S,
            val_loss=val_loss,
            steps_done=total,
            train_time_ms=80_000.0,
            step_avg_ms=400.0,
            peak_memory_mib=1.0,
            tokens_seen=1,
            num_parameters=1,
            curve=tuple((k, val_loss + (total - k) / 100, 400.0 * k) for k in steps),
        )
        attempt = exp_dir / run.name
        attempt.mkdir(parents=True)
        write_json(attempt / "config.json", {"run": asdict(run), "attempt": 1}, durable=False)
        write_result(attempt, result, experiment_id)
    return exp_dir


def timed(exp_dir: Path, *arguments: str) -> tuple[float, str]:
    """(wall time in seconds of a command on the experiment, what it printed)"""
    fakes = {"TORCHRUN": str(SUPPORT / "fake_torchrun"), "FAKE_PYTHON": sys.executable}
    command = [sys.executable, str(ROOT / "run_aux.py"), "--exp_dir", str(exp_dir), *arguments]
    began = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **fakes}, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="that have finished (1000)")
    parser.add_argument("--times", type=int, default=5, help="each command (5)")
    args = parser.parse_args(argv)
    taken = {"status": [], "resume, no page": [], "resume": []}
    with tempfile.TemporaryDirectory(prefix="many_runs_") as folder:
        for number in range(args.times):
            for words in ((), ("--no_page",)):  # the run to do is done once
                exp_dir = invent(Path(folder) / str(number) / str(len(words)), args.runs)
                name = "resume, no page" if words else "resume"
                taken[name].append(timed(exp_dir, *words)[0])
            taken["status"].append(timed(exp_dir, "--status")[0])
    print(f"{args.runs} finished runs; seconds of {args.times} each")
    for name, seconds in taken.items():
        print(f"{name}: median {statistics.median(seconds):.2f}, most {max(seconds):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
