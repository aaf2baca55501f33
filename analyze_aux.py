"""What did an experiment find, and how sure is that?  The report and the figures.

    python analyze_aux.py                                      # the newest experiment
    python analyze_aux.py --exp_dir experiments/aux_heads_...
    python analyze_aux.py --exp_dir DIR --output_dir DIR2      # of a folder that stays as it is

reads the files of one experiment folder, finished or not, prints the answer, and writes
analysis_report.txt and what can be drawn of val_loss_comparison.png, layer_ablation.png,
training_curves.png, verdict.png (adaptive plan) and gradient_flow.png (where runs logged gradient
norms). It launches nothing, and decides as run_aux.py does: from the records, by the registered
rules. Everywhere, improvement = mean val_loss(baseline) - mean val_loss(arm) in nats/token:
positive is good. Runs are compared within a block only, the runs of one stage with one number of
steps, and there on the seeds that both have: all else differs by more than the arms.
"""

import os.path
import sys

if __name__ == "__main__":  # before imports that another Python cannot read or find
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out
    from ablation.cli import prerequisites

    prerequisites.check("analyze_aux.py")
    from ablation.cli import console

    console.stop_quietly("analyze_aux.py")  # Ctrl-C while the rest is imported

from collections.abc import Sequence
from pathlib import Path

from ablation.cli.arguments import Parser, a_path, plain_words
from ablation.folder.registration import EXPERIMENTS, newest_experiment
from ablation.report.chapters import chapters, opening
from ablation.report.evidence import Evidence, read_experiment
from ablation.report.files import REPORT, pictures_of, write_all
from ablation.report.text import render
from ablation.runs.untrusted import printable


def print_text(text: str, file=None) -> None:
    print(text.removesuffix("\n"), file=file or sys.stdout)


def complain(error: Exception | str) -> int:
    print_text(f"analyze_aux.py: error: {printable(str(error), limit=600)}", sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description="Write the report and the figures of an experiment, finished or not."
    )
    about = f"the experiment's folder (default: the newest in {EXPERIMENTS}/)"
    parser.add_argument("--exp_dir", type=a_path, help=about)
    parser.add_argument("--output_dir", type=a_path, help="where to write (default: there too)")
    args = parser.parse_args(argv)
    try:
        evidence = read_experiment(args.exp_dir or newest_experiment())
        print_text(render(opening(evidence)))
    except (ValueError, OSError) as error:
        return complain(plain_words(error))
    except ImportError as error:
        return complain(f"{error}; pip install -r requirements.txt")
    return report_to(args.output_dir or evidence.exp_dir, evidence)


def report_to(folder: Path, evidence: Evidence) -> int:
    """Write figures and report, and say where; on screen goes what cannot be written. 0 when all is
    there that can be."""
    pictures = pictures_of(evidence)
    try:
        outcomes = write_all(evidence, folder, pictures)
    except OSError as error:
        not_drawn = {n: f"not drawn: {drawn.why}" for n, drawn in pictures.items() if drawn.why}
        print_text(render(chapters(evidence, not_drawn)))
        remedy = "--output_dir DIR writes elsewhere"
        return complain(f"cannot write {folder / REPORT} ({error.strerror}); {remedy}")
    print_text("")
    for name, outcome in {REPORT: "drawn", **outcomes}.items():
        line = str(folder / name) if outcome == "drawn" else f"{folder / name} {outcome}"
        print_text(f"  {printable(line, limit=1000)}")
    unwritten = [name for name, outcome in outcomes.items() if outcome.startswith("not written")]
    failed = [name for name, drawn in pictures.items() if drawn.failed]
    if unwritten or failed:
        what = f"no {', '.join(unwritten + failed)}: see above for why"
        return complain(f"{what}; the report's text is complete")
    return 0


if __name__ == "__main__":
    sys.exit(console.run(main))
