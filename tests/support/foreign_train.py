"""A trainer of another project that trains nothing: it is told by variables, and logs like nanoGPT.

GAIN lowers its losses, MISCHIEF says what goes wrong; it reads its data by a relative path, and
leaves a file where it was started.
"""

import os
import random
import sys
import time
from pathlib import Path

EXTRA = 0.0  # a replacement changes it


def main() -> int:
    seed, steps = os.environ["SEED"], int(os.environ["ITERS"])
    mischief = os.environ.get("MISCHIEF", "")
    assert Path("text/a.txt").read_text() == "text\n"
    Path("config.json").write_text("the trainer's own\n")
    noise = random.Random(f"{seed} {os.environ.get('GAIN')} {EXTRA}")
    final = 3.0 - float(os.environ.get("GAIN", "0")) - EXTRA + noise.gauss(0, 0.002)
    for step in range(0, steps + 1, max(1, steps // 5)):
        loss = final + (1 - step / steps) + noise.gauss(0, 1e-4) * (step < steps)
        if mischief == "nan" and step:
            loss = float("nan")
        if mischief == "other words":
            print(f"epoch {step} done", flush=True)
            continue
        if mischief == "slow":
            time.sleep(0.3)
        print(f"step {step}: train loss {loss + 0.1:.6f}, val loss {loss:.6f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
