"""How long does it take to compare 2,000 logs of 1 MB, and in how much memory?

    python benchmarks/logs_speed.py                    # 2,000 logs in two groups, on 2 cores
    python benchmarks/logs_speed.py --logs 200         # fewer

The logs are invented, of four kinds in equal numbers: thousands of step lines, a long source at the
head, a flood of other lines between the steps, labels of ranks in front of each. The target is
under 60 s on 2 cores. Memory is the largest resident set of a process, the parent or a worker.
"""

import argparse
import random
import resource
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ablation.report import compare_logs
from tests.support.foreign_logs import FLOOD, FORMS, HEAD, RULE, flooded, of_ranks


def steps(every: int, last: str) -> str:
    """A training that is validated every 125 steps, as a speedrun's is; it tells so many others."""
    form, total, lines = FORMS["speedrun"], 14_700, []
    for step in range(total):
        if step % 125 == 0:
            lines.append(form.val(step, total, f"{3.2 + 7 / (1 + step / 50):.4f}"))
        lines.append(form.train(step, total) if step % every == 0 else "")
    return "".join([*lines, form.val(total, total, last)])


def source(of_bytes: int) -> str:
    line = "    x = self.layer(x)  # step:{step}/{total} val_loss:{loss:.4f}\n"
    return f"import os\n{line * (of_bytes // len(line))}{RULE}\nRunning Python 3.12\n{RULE}\n"


KINDS = {  # how a log of about 1 MB comes about
    "steps": lambda last: HEAD + steps(1, last),
    "source": lambda last: source(900_000) + steps(8, last),
    "flood": lambda last: HEAD + flooded(steps(7, last), FLOOD),
    "ranks": lambda last: HEAD + of_ranks(steps(2, last)),
}


def invent(folder: Path, count: int) -> None:
    """Half of them of a baseline, half .003 better; each one different."""
    rng = random.Random(0)
    kinds = {name: make("LAST.") for name, make in KINDS.items()}
    for n, (name, text) in zip(range(count), cycle(kinds.items()), strict=False):
        group = folder / ("baseline", "mine")[n % 8 < 4]
        group.mkdir(exist_ok=True)
        last = f"{rng.gauss(3.28 - 0.003 * (n % 8 < 4), 0.0013):.6f}"
        (group / f"{name}_{n}.txt").write_text(f"run {n}\n" + text.replace("LAST.", last))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast logs are compared.")
    parser.add_argument("--logs", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        invent(folder, args.logs)
        sizes = [path.stat().st_size for path in folder.rglob("*.txt")]
        began, cpu = time.perf_counter(), time.process_time()
        groups = {group: folder / group for group in ("baseline", "mine")}
        found = compare_logs(groups, jobs=args.jobs)
        took, own = time.perf_counter() - began, time.process_time() - cpu
        workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    (c,) = found.json["comparisons"]
    assert (c["n"] + c["n_baseline"], c["p"] < 0.01) == (args.logs, True), c
    largest = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, workers.ru_maxrss) / 1024
    busy = own + workers.ru_utime + workers.ru_stime
    print(
        f"{args.logs} logs of {sum(sizes) / len(sizes) / 1e6:.2f} MB, {args.jobs} processes:"
        f" {took:.1f} s by the clock, {busy:.1f} s of CPU, largest process {largest:.0f} MiB;"
        f" improvement {c['improvement']:+.4f}"
    )


if __name__ == "__main__":
    main()
