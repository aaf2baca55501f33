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

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablation.cli.arguments import Parser, a_path, plain_words
from ablation.folder.registration import newest_experiment
from ablation.report.chapters import chapters, opening, render_report
from ablation.report.evidence import Evidence, read_experiment
from ablation.report.figures import FIGURES, Picture, picture
from ablation.runs.untrusted import printable

OUTPUT_DIR = Path("experiments")
REPORT = "analysis_report.txt"


# ---------------------------------------------------------------------------------------------
# Writing


def write(path: Path, data: bytes) -> None:
    """Whole or not at all: whoever looks while this writes sees the old file. Nothing is written
    through a link: one of this name is replaced, and the temporary is nobody's but ours."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open(temporary, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove(path: Path) -> None:
    """A figure of an earlier report; not what only has its name."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            path.unlink()


def write_figures(folder: Path, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """What became of each, for the report; what was not drawn leaves no older one behind."""
    told = {}
    for name, drawn in pictures.items():
        try:
            if drawn.png:
                write(folder / name, drawn.png)
            else:
                remove(folder / name)
            told[name] = f"not drawn: {drawn.why}" if drawn.why else "drawn"
        except OSError as error:
            told[name] = f"not written: {error.strerror}"
    return told


# ---------------------------------------------------------------------------------------------
# The command line


def say(text: str, file=None) -> None:
    print(text.removesuffix("\n"), file=file or sys.stdout)


def complain(error: Exception | str) -> int:
    say(f"analyze_aux.py: error: {printable(str(error), limit=600)}", sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description="Write the report and the figures of an experiment, finished or not."
    )
    about = f"the experiment's folder (default: the newest in {OUTPUT_DIR}/)"
    parser.add_argument("--exp_dir", type=a_path, help=about)
    parser.add_argument("--output_dir", type=a_path, help="where to write (default: there too)")
    args = parser.parse_args(argv)
    try:
        x = read_experiment(args.exp_dir or newest_experiment(OUTPUT_DIR))
        say(opening(x))
    except (ValueError, OSError) as error:
        return complain(plain_words(error))
    except ImportError as error:
        return complain(f"{error}; pip install -r requirements.txt")
    return write_all(x, args.output_dir or x.exp_dir)


def write_all(x: Evidence, into: Path) -> int:
    """The figures, then the report, which says what became of them: in the folder, or on screen
    where nothing can be written. 0 when all is there that can be."""
    pictures = {name: picture(draw, x) for name, draw in FIGURES.items()}
    try:
        into.mkdir(parents=True, exist_ok=True)
        told = write_figures(into, pictures)
        write(into / REPORT, render_report(x, told).encode())
    except OSError as error:
        told = {name: f"not drawn: {drawn.why}" for name, drawn in pictures.items() if drawn.why}
        say(chapters(x, told))
        remedy = "--output_dir DIR writes elsewhere"
        return complain(f"cannot write {into / REPORT} ({error.strerror}); {remedy}")
    files = {REPORT: "drawn", **told}
    lines = [f"{into / name}" + f" {files[name]}" * (files[name] != "drawn") for name in files]
    say("\n".join(["", *(f"  {printable(line, limit=1000)}" for line in lines)]))
    unwritten = [name for name, words in told.items() if words.startswith("not written")]
    failed = [name for name, drawn in pictures.items() if drawn.failed]
    if unwritten or failed:
        what = f"no {', '.join(unwritten + failed)}: see above for why"
        return complain(f"{what}; the report's text is complete")
    return 0



if __name__ == "__main__":
    sys.exit(console.run(main))
