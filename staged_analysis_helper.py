"""What did a stage decide?  Between stages, from any terminal:

    python staged_analysis_helper.py --stage 1 --exp_dir experiments/aux_heads_...

prints a stage's results and its decision again, made anew from the records on disk; without
--exp_dir those of the newest experiment. It launches and writes nothing.
"""

import os.path
import sys

if __name__ == "__main__":  # before imports that another Python cannot read or find
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out
    from ablation.cli import prerequisites

    prerequisites.check("staged_analysis_helper.py")
    from ablation.cli import console

    console.stop_quietly("staged_analysis_helper.py")  # Ctrl-C while the rest is imported

from collections.abc import Sequence
from pathlib import Path

from ablation.cli.arguments import Parser, a_path, pasteable, plain_words
from ablation.folder.registration import newest_experiment
from ablation.folder.standing import standing
from ablation.plan.decision import is_overridden, render
from ablation.runs.untrusted import printable


def block(exp_dir: Path, stage: int) -> str:
    """The stage's results and decision as text. Raises ValueError where it has none."""
    s = standing(exp_dir)
    if s.step is None:
        raise ValueError(f"{exp_dir}: {'; '.join(s.changed)}; no decision is shown")
    decision = s.step.decisions.get(stage)
    if decision is None:
        numbers = [row.number for row in s.stages]
        if stage not in numbers:
            raise ValueError(
                f"--stage {stage}: the stages of {exp_dir} are {', '.join(map(str, numbers))}"
            )
        decided = ", ".join(map(str, s.step.decisions)) or "none"
        how = f"--stage {stage} " if stage else ""
        raise ValueError(
            f"--stage {stage}: not decided yet (decided: {decided}); "
            f"run: python run_aux.py {how}--exp_dir {pasteable(exp_dir)}"
        )
    return render(decision, is_overridden(decision, s.experiment.overrides))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        description="Print the results and the decision of a stage again, from the files on disk."
    )
    parser.add_argument("--stage", type=int, required=True, help="1 to 4; 0: runs by hand")
    parser.add_argument("--exp_dir", type=a_path, help="the experiment's folder (the newest)")
    args = parser.parse_args(argv)
    try:
        print(block(args.exp_dir or newest_experiment(), args.stage))
    except (ValueError, OSError) as error:
        text = printable(plain_words(error), limit=2000)
        print(f"staged_analysis_helper.py: error: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(console.run(main))
