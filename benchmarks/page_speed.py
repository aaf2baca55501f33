"""How long does a page take, and how large is it?  Of invented experiments, small and large.

    python benchmarks/page_speed.py                    # 60 and 1,000 runs, a minute
    python benchmarks/page_speed.py --runs 200

Four arms run by hand, on as many seeds as it takes; curves of 200 points. Timed is a process of its
own from its start to its end, as `analyze_aux.py --watch` writes a page for the first time; and a
second writing in the same process, as it is done from then on. The targets: 60 runs in under 2 s,
1,000 runs in under 10 s and 6 MB.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import invented_folder
from tests.support.invented_folder import fall, make, manual, train

POINTS = 200  # of a curve
WRITE = """
import time
began_s = time.time()
import sys
from pathlib import Path
from ablation.execute.status import status_of
from ablation.report.evidence import read_experiment
from ablation.report.files import PAGE, write_page
from ablation.report.page_sections import page_of

folder = Path(sys.argv[1])
for _ in range(2):
    evidence = read_experiment(folder)
    write_page(folder, page_of(evidence, status_of(evidence.standing), live=True))
    print(time.time() - began_s)
    began_s = time.time()
print((folder / PAGE).stat().st_size)
"""


def long_curves(run, *args, **world):
    """An invented run with as many points as a page has to thin."""
    result = train(run, *args, **world)
    total, step_ms = run.num_iterations, result.step_avg_ms or 165.0
    steps = [total * k // (POINTS - 1) for k in range(POINTS)]
    curve = [(s, (result.val_loss or 4.0) + fall(s / total), s * step_ms) for s in steps]
    return replace(result, curve=tuple(curve), val_loss=curve[-1][1])


def measure(runs: int, scratch: Path) -> tuple[float, float, float]:
    """(seconds of a process, of its second writing; MB of the page)."""
    invented_folder.train = long_curves
    e = manual("baseline", "aux_6", "aux_8", "aux_4_8", seeds=tuple(range(1, runs // 4 + 1)))
    exp_dir = make(scratch / str(runs), replace(e, budget_hours=10_000.0))
    command = [sys.executable, "-c", WRITE, str(exp_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, size = map(float, done.stdout.split())
    return first, second, size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[60, 1000])
    print(f"{'runs':>6} {'first, s':>9} {'again, s':>9} {'MB':>6}")
    for runs in parser.parse_args().runs:
        with tempfile.TemporaryDirectory(prefix="page_speed_") as scratch:
            first_s, again_s, size = measure(runs, Path(scratch))
        print(f"{runs:>6} {first_s:>9.2f} {again_s:>9.2f} {size:>6.2f}")


if __name__ == "__main__":
    main()
