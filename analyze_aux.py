"""What did an experiment find, and how sure is that?  The report and the figures.

    python analyze_aux.py                                      # the newest experiment
    python analyze_aux.py --exp_dir experiments/aux_heads_...
    python analyze_aux.py --exp_dir DIR --output_dir DIR2      # of a folder that stays as it is
    python analyze_aux.py --exp_dir DIR --watch                # keeps its page fresh
    python analyze_aux.py --logs baseline='logs/old/*.txt' --logs mine='logs/new/*.txt'
    python analyze_aux.py --logs mine=logs/new --rule speedrun
    python analyze_aux.py --figures pdf,svg --columns 1        # for a paper, in a column of it

reads the files of one experiment folder, finished or not, prints the answer, and writes
report.html (a page to look at), analysis_report.txt, runs.csv (a row for each run) and what can be
drawn of val_loss_comparison.png, layer_ablation.png, training_curves.png, verdict.png (adaptive
plan) and gradient_flow.png (where runs logged gradient norms), each with its caption, verdict.txt
and so on. It launches nothing, and decides as run_aux.py does: from the records, by the registered
rules. With --logs the same is said of training logs, of any trainer and without an experiment:
docs/logs.md. Everywhere, improvement = mean val_loss(baseline) - mean val_loss(arm) in nats/token:
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

import argparse
import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablation.cli import exit_codes
from ablation.cli.arguments import BadUsage, Parser, a_path, plain_words
from ablation.cli.progress import progress
from ablation.execute.lock import process_birth
from ablation.execute.status import status_of
from ablation.folder.answer import answer
from ablation.folder.registration import EXPERIMENTS, newest_experiment
from ablation.report.chapters import chapters, opening
from ablation.report.compare import compare_logs
from ablation.report.content import Page
from ablation.report.drawing import FEWEST_DPI, KINDS, MOST_DPI, Paper, paper_of
from ablation.report.evidence import Evidence, read_experiment
from ablation.report.figures import Picture
from ablation.report.files import PAGE, REPORT, RUNS, pictures_of, write_all, write_page
from ablation.report.log_chapters import KEYS
from ablation.report.page_sections import page_of
from ablation.report.rules import RULES
from ablation.report.table import rows_of_experiment
from ablation.report.text import render
from ablation.report.watch import check_room, keep_fresh, signature
from ablation.runs.formats import FORMATS
from ablation.runs.untrusted import printable

LAST_STAGE = 4
COMPARISON = Path("comparison")  # where a report on logs is written, unless another is named


# ---------------------------------------------------------------------------------------------
# What is asked

OF_LOGS = {  # options that go with --logs
    "metric": "what is compared, as the logs name it (default: val_loss)",
    "better": "lower or higher: where the metric is better (default: lower)",
    "format": f"of the logs, where they do not tell: {', '.join(FORMATS)}",
    "num_iterations": "steps of a whole run, where the logs do not tell",
    "rule": f"of a community: {', '.join(RULES)}, or 'mean<=3.28,p<0.01'; several times",
    "delta_eq": "the smallest improvement of interest (default: 0.005)",
    "alpha": "level of two-sided tests (default: 0.05)",
}
TYPES: dict[str, dict] = {
    "better": {"choices": ("lower", "higher")},
    "format": {"choices": tuple(FORMATS)},
    "num_iterations": {"type": int},
    "rule": {"action": "append"},
    "delta_eq": {"type": float},
    "alpha": {"type": float},
}


OF_FIGURES: dict[str, dict] = {  # options, with how they are read
    "figures": {
        "metavar": "KINDS",
        "help": f"one or more of {', '.join(KINDS)}, as in svg,pdf (default: png)",
    },
    "dpi": {
        "type": int,
        "metavar": "N",
        "help": f"dots per inch of png, {FEWEST_DPI} to {MOST_DPI} (default: 200)",
    },
    "columns": {
        "type": int,
        "metavar": "N",
        "help": "of a paper, as wide as figures are: 1 is 3.5 inches, 2 is 7.1 (default: 2)",
    },
}


def parser() -> Parser:
    p = Parser(description="Write the report and the figures of an experiment, or of logs.")
    about = f"the experiment's folder (default: the newest in {EXPERIMENTS}/)"
    p.add_argument("--exp_dir", type=a_path, help=about)
    about = "logs to compare: NAME=PATTERN, FOLDER or FILE, several times; docs/logs.md"
    p.add_argument("--logs", action="append", metavar="NAME=FILES", help=about)
    for name, about in OF_LOGS.items():
        p.add_argument(f"--{name}", help=f"with --logs: {about}", **TYPES.get(name, {}))
    about = f"where to write (default: there too; with --logs {COMPARISON}/)"
    p.add_argument("--output_dir", type=a_path, help=about)
    about = "keep report.html fresh until the experiment ends"
    p.add_argument("--watch", action="store_true", help=about)
    about = "with --watch: until that process has ended"
    p.add_argument("--pid", type=int, metavar="N", help=about)
    for name, how in OF_FIGURES.items():
        p.add_argument(f"--{name}", **how)
    about = "for programs: one object of JSON on standard output, and nothing else there"
    p.add_argument("--json", action="store_true", help=about)
    return p


def parsed(words: Sequence[str]) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(words)
    if args.logs and args.exp_dir:
        p.error("--logs and --exp_dir are two questions: give one of them")
    lone = [f"--{name}" for name in OF_LOGS if getattr(args, name) is not None]
    if lone and not args.logs:
        p.error(f"{', '.join(lone)} goes with --logs NAME=FILES")
    beside = [name for name in ("logs", "json", *OF_FIGURES) if getattr(args, name)]
    if args.watch and beside:
        p.error(f"--watch is for an experiment and its page: leave out --{beside[0]}")
    if args.pid is not None and not args.watch:
        p.error("--pid N goes with --watch")
    if args.pid is not None and args.pid < 1:
        p.error(f"--pid {args.pid}: give the number of a process")
    try:
        args.paper = paper_of(args.figures, args.dpi, args.columns)
    except ValueError as error:
        p.error(f"--{error}")
    return args


# ---------------------------------------------------------------------------------------------
# What is said


def print_text(text: str, file=None) -> None:
    print(text.removesuffix("\n"), file=file or sys.stdout)


@dataclass
class Told:
    """What a command comes to, filled in as it becomes known."""

    found: dict  # for programs
    code: int = exit_codes.DONE
    error: str = ""  # one line

    def complain(self, error: Exception | str, code: int = exit_codes.REFUSED) -> int:
        self.error, self.code = printable(str(error), limit=1000), code
        print_text(f"analyze_aux.py: error: {self.error}", sys.stderr)
        return code

    def complain_once(self, error: str) -> None:
        """The same, unless it is what was said last."""
        if self.error != printable(error, limit=1000):
            self.complain(error)


def main(argv: Sequence[str] | None = None) -> int:
    words = [*map(str, sys.argv[1:] if argv is None else argv)]
    told, out = Told({}), sys.stdout
    with contextlib.redirect_stdout(sys.stderr if "--json" in words else out):
        try:
            args = parsed(words)
            if args.logs:
                told.found = dict.fromkeys(KEYS)
                on_logs(args, told)
            else:
                told.found = {**answer(None, LAST_STAGE), "rows": []}
                (on_watch if args.watch else on_experiment)(args, told)
        except BadUsage as end:
            if "--json" not in words:
                raise
            told.code, told.error = exit_codes.USAGE, end.line
    if "--json" in words:
        ended = {"exit_code": told.code, "error": told.error or None}
        print(json.dumps({**told.found, **ended}), file=out, flush=True)
    return told.code


def on_logs(args: argparse.Namespace, told: Told) -> int:
    """The report on logs. Bad input is exit code 2, and nothing is written."""
    given = {name: value for name in OF_LOGS if (value := getattr(args, name)) is not None}

    def shown(parts, total):
        return progress(parts, total, "reading logs")

    try:
        found = compare_logs(args.logs, **given, progress=shown, paper=args.paper)
    except ValueError as error:
        return told.complain(error, exit_codes.USAGE)
    except OSError as error:
        return told.complain(plain_words(error), exit_codes.USAGE)
    except ImportError as error:
        return told.complain(f"{error}; pip install -r requirements.txt")
    told.found = found.json
    print_text(found.answer)
    folder = args.output_dir or COMPARISON
    return written(told, folder, found.figures, lambda: found.write(folder), lambda: found.chapters)


def on_experiment(args: argparse.Namespace, told: Told) -> int:
    """The report of an experiment."""
    try:
        evidence = read_experiment(args.exp_dir or newest_experiment())
        print_text(render(opening(evidence)))
    except (ValueError, OSError) as error:
        return told.complain(plain_words(error))
    except ImportError as error:
        return told.complain(f"{error}; pip install -r requirements.txt")
    if args.json:
        rows = [dict(row) for row in rows_of_experiment(evidence)]
        told.found = {**answer(evidence.standing, LAST_STAGE), "rows": rows}
    return report_to(args.output_dir or evidence.exp_dir, evidence, args.paper, told)


def on_watch(args: argparse.Namespace, told: Told) -> int:
    """Keep the page of an experiment fresh, until it ends, or somebody or --pid says so. What
    cannot be read or written is one line, and tried again."""
    try:
        exp_dir = args.exp_dir or newest_experiment()
        read_experiment(exp_dir)
    except (ValueError, OSError) as error:
        return told.complain(plain_words(error))
    folder, born = args.output_dir or exp_dir, process_birth(args.pid)
    os.nice(10)  # after whatever trains here
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a sitting blocks it till here

    def over() -> bool:
        return bool(stopped) or (args.pid is not None and process_birth(args.pid) != (born or -1))

    def look() -> object:
        try:
            return signature(exp_dir)
        except (ValueError, OSError) as error:  # a disk of another machine that is away for a while
            return str(error)

    def write(last: bool) -> bool | None:
        try:
            evidence = read_experiment(exp_dir)
            now = now_of(evidence, last and args.pid is not None)
        except (ValueError, OSError) as error:
            told.complain_once(plain_words(error))
            return None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_room(folder)
            write_page(folder, page_of(evidence, now, live=not last))
        except OSError as error:
            never = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)  # no waiting mends it
            elsewhere = "; --output_dir DIR writes elsewhere" if never else ""
            told.complain_once(plain_words(error) + elsewhere)
            return never or None
        told.code, told.error = exit_codes.DONE, ""
        return bool(now["ended"]) and args.pid is None

    print_text(f"Writing {folder / PAGE} until {exp_dir} has ended; Ctrl-C ends that.")
    try:
        keep_fresh(look, write, over)
    except ImportError as error:
        return told.complain(f"{error}; pip install -r requirements.txt")
    return told.code


def now_of(evidence: Evidence, at_end: bool) -> dict:
    """Where the experiment stands. at_end: its sitting waits for this page alone, or is gone."""
    now = status_of(evidence.standing)
    nobody = {"orchestrator": "none"} if at_end and not now["in_flight"] else {}
    return {**now, **nobody}


def report_to(folder: Path, evidence: Evidence, paper: Paper, told: Told) -> int:
    pictures = pictures_of(evidence, paper)

    def text() -> str:
        not_drawn = {n: f"not drawn: {drawn.why}" for n, drawn in pictures.items() if drawn.why}
        return render(chapters(evidence, not_drawn))

    def page() -> Page:
        return page_of(evidence, status_of(evidence.standing))

    def write() -> Mapping[str, str]:
        return write_all(evidence, folder, pictures, page)

    return written(told, folder, pictures, write, text)


def written(
    told: Told,
    folder: Path,
    pictures: Mapping[str, Picture],
    write: Callable[[], Mapping[str, str]],
    text: Callable[[], str],
) -> int:
    """Write figures and report, and say where; on screen goes what cannot be written. 0 when all is
    there that can be."""
    try:
        outcomes = write()
    except OSError as error:
        print_text(text())
        remedy = "--output_dir DIR writes elsewhere"
        return told.complain(f"cannot write {folder / REPORT} ({error.strerror}); {remedy}")
    print_text("")
    for name, outcome in {REPORT: "drawn", RUNS: "drawn", **outcomes}.items():
        line = str(folder / name) if outcome == "drawn" else f"{folder / name} {outcome}"
        print_text(f"  {printable(line, limit=1000)}")
    unwritten = [name for name, outcome in outcomes.items() if outcome.startswith("not written")]
    failed = [name for name, drawn in pictures.items() if drawn.failed]
    if unwritten or failed:
        what = f"no {', '.join(unwritten + failed)}: see above for why"
        return told.complain(f"{what}; the report's text is complete")
    return told.code


if __name__ == "__main__":
    sys.exit(console.run(main))
