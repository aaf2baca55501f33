"""What does the result of an experiment look like?  The pictures of the README, made anew.

    python benchmarks/pictures.py                      # a real mini experiment first: 3 minutes
    python benchmarks/pictures.py --exp_dir DIR        # of one that is there

writes docs/page.png, the first screen of report.html in Chromium, and docs/verdict.png, the figure
of the verdict. The experiment is what `make run` runs (adaptive plan, profile mini, on the CPU),
but for its end: an equivalence does not stop it, so that there are more looks to see.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.browser import chromium, opened, why_not

MOST_BYTES = 300_000  # of a picture, as it is loaded with the README
SCREEN = {"width": 1280, "height": 900}
SMALL = ("--num_gpus", "0", "--parallel_runs", "2", "--validation_runs", "8")
ALL_LOOKS = ("--stop_on", "superiority", "--max_budget_hours", "0.3")


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def page(file: Path, picture: Path) -> None:
    with chromium() as browser, opened(browser, file, **SCREEN) as seen:
        seen.page.wait_for_function("document.body.dataset.drawn === 'yes'")
        seen.page.screenshot(path=picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp_dir", type=Path, help="an experiment that has a verdict")
    exp_dir = parser.parse_args().exp_dir
    if why := why_not():
        print(f"pictures.py: error: {why}", file=sys.stderr)
        return 1
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory(prefix="pictures_") as scratch:
        if exp_dir is None:
            exp_dir = Path(scratch) / "aux_heads_mini"
            plan = ("--staged", "--profile", "mini", "--plan", "adaptive", *SMALL, *ALL_LOOKS)
            run("run_aux.py", *plan, "--exp_dir", exp_dir)
        shown = Path(scratch) / "shown"
        run("analyze_aux.py", "--exp_dir", exp_dir.resolve(), "--output_dir", shown, "--dpi", 120)
        page(shown / "report.html", docs / "page.png")
        (docs / "verdict.png").write_bytes((shown / "verdict.png").read_bytes())
    sizes = {name: (docs / name).stat().st_size for name in ("page.png", "verdict.png")}
    print(", ".join(f"docs/{name} {size / 1000:.0f} kB" for name, size in sizes.items()))
    return int(max(sizes.values()) > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
