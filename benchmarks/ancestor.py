"""Does the baseline learn better than an older one?  Final loss and step time, seed by seed.

    python benchmarks/ancestor.py                 # data/stdlib; beside commit 94d8d97
    python benchmarks/ancestor.py --against REV --seeds 42,43 --json ancestor.jsonl

Both trainers get the same arguments, data and seeds, and take turns, the first one changing from
seed to seed. 6 layers of width 128, 150 iterations of 2,048 bytes with the learning rates of the
ancestor (profile speedrun's), fp32, one thread of a CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from step_time import run_trainer

from ablation.study.profiles import PROFILES, TRAINER_FLAGS

BEFORE = "94d8d97"  # without gains, biases and weight decay; five equal steps in Muon
DATA = PROFILES["mini"].data_dir
SIZE = replace(
    PROFILES["speedrun"].own_scale,  # for its learning rates
    n_layer=6,
    n_head=2,
    model_dim=128,
    vocab_size=256,
    sequence_length=128,
    batch_size=16,
    val_tokens=65_536,
)
ITERATIONS = 150


def flags(seed: int, data_dir: Path) -> list[str]:
    values = {flag: getattr(SIZE, flag) for flag in TRAINER_FLAGS}
    values |= {"data_dir": data_dir, "num_iterations": ITERATIONS, "device": "cpu", "seed": seed}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def older(revision: str, folder: Path) -> Path:
    """The trainer of a revision, in a folder of its own."""
    for name in ("train_gpt.py", "aux_heads.py"):
        show = ["git", "-C", str(ROOT), "show", f"{revision}:{name}"]
        (folder / name).write_bytes(subprocess.run(show, capture_output=True, check=True).stdout)
    return folder / "train_gpt.py"


def compare(before: Path, seeds: list[int], data_dir: Path):
    """A row for each seed."""
    now = ROOT / "train_gpt.py"
    for turn, seed in enumerate(seeds):
        order = (before, now) if turn % 2 else (now, before)
        ran = {script: run_trainer(script, flags(seed, data_dir)) for script in order}
        yield {
            "seed": seed,
            "before": ran[before]["val_loss"],
            "now": ran[now]["val_loss"],
            "lower_by": ran[before]["val_loss"] - ran[now]["val_loss"],
            "step_before_ms": ran[before]["step_avg_ms"],
            "step_now_ms": ran[now]["step_avg_ms"],
            "step_ratio": ran[now]["step_avg_ms"] / ran[before]["step_avg_ms"],
        }


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--against", metavar="REV", default=BEFORE)
    parser.add_argument("--seeds", default="42,43,44,45,46")
    parser.add_argument("--data_dir", type=Path, default=ROOT / DATA)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # those of the runs
    rows = []
    print("| seed | before | now | lower by | step before, ms | now, ms | ratio |", flush=True)
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        before = older(args.against, Path(folder))
        for row in compare(before, [int(seed) for seed in args.seeds.split(",")], args.data_dir):
            rows.append(row)
            print(
                f"| {row['seed']} | {row['before']:.4f} | {row['now']:.4f} |"
                f" {row['lower_by']:.4f} | {row['step_before_ms']:.1f} | {row['step_now_ms']:.1f} |"
                f" {row['step_ratio']:.3f} |",
                flush=True,
            )
    lower = [row["lower_by"] for row in rows]
    low, middle, high = np.percentile([row["step_ratio"] for row in rows], [25, 50, 75])
    print(f"lower by {statistics.fmean(lower):.4f} nats/token, for each seed by {min(lower):.4f}")
    print(f"step time {middle:.3f} of before (quartiles {low:.3f} to {high:.3f})")
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
