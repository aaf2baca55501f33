"""How near to the ideal do packed runs come?  Sleeping trainers on 8 GPUs that do not exist.

    python benchmarks/packing.py                          # 64 runs of 20 s: ideally 8 rounds, 160 s
    python benchmarks/packing.py --launcher slurm         # the same as jobs of a real Slurm (root)

Prints the time of the whole command against runs / 8 x seconds; --json FILE writes the same
figures. Needs tests/ (the fake trainer, the Slurm of the tests).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
GPUS = 8
NVIDIA_SMI = f"""#!/bin/sh
for n in $(seq 0 {GPUS - 1}); do echo "$n, GPU-$n, fake"; done
"""


def measure(folder: Path, launcher: str, runs: int, seconds: float) -> dict:
    sys.path.insert(0, str(ROOT))
    from tests.support.slurm_cluster import SlurmCluster

    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    (folder / "shards").mkdir()
    for kind in ("train", "val"):
        (folder / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    command = [sys.executable, str(ROOT / "run_aux.py"), "--experiment", "baseline"]
    command += ["--profile", "mini", "--full_iterations", "100", "--max_budget_hours", "24"]
    command += ["--runs", str(runs), "--num_gpus", str(GPUS), "--gpus_per_run", "1"]
    command += ["--train_script", str(SUPPORT / "fake_train.py"), "--data_dir", "shards"]
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "TORCHRUN": str(SUPPORT / "fake_torchrun"),
        "FAKE_PYTHON": sys.executable,
        "FAKE_SECONDS": str(seconds),
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with contextlib.ExitStack() as stack:
        if launcher == "slurm":
            cluster = stack.enter_context(SlurmCluster(folder / "slurm"))
            environment |= cluster.env
            command += ["--launcher", "slurm"]
        started = time.perf_counter()
        subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        took_s = time.perf_counter() - started
    results = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    assert [r["status"] for r in results] == ["ok"] * runs
    ideal_s = -(-runs // GPUS) * seconds
    return {
        "launcher": launcher,
        "runs": runs,
        "seconds": seconds,
        "took_s": round(took_s, 2),
        "ideal_s": ideal_s,
        "ratio": round(took_s / ideal_s, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packing_") as folder:
        row = measure(Path(folder), args.launcher, args.runs, args.seconds)
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
