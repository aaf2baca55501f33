"""What did a stage decide?  Between stages, from any terminal:

    python staged_analysis_helper.py --stage 1 --exp_dir experiments/aux_heads_...

prints a stage's results and decision again; it launches and writes nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from decision import decision_from, render
from records import read_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Print the results and the decision of a stage again, from the files on disk.",
        allow_abbrev=False,
    )
    parser.add_argument("--stage", type=int, required=True, help="1 to 4")
    parser.add_argument("--exp_dir", type=Path, required=True, help="the experiment's folder")
    args = parser.parse_args(argv)
    try:
        path = args.exp_dir / "staged_ablation_results.json"
        if not path.exists():
            raise ValueError(
                f"--exp_dir {args.exp_dir}: no {path.name} there; "
                "give a folder that run_aux.py made, or run: python run_aux.py --stage 1"
            )
        stages = read_json(path).get("stages", {})
        decision = stages.get(str(args.stage), {}).get("decision")
        if decision is None:
            decided = ", ".join(n for n in stages if stages[n].get("decision")) or "none"
            raise ValueError(
                f"--stage {args.stage}: not decided yet (decided: {decided}); "
                f"run: python run_aux.py --stage {args.stage} --exp_dir {args.exp_dir}"
            )
        print(render(decision_from(decision), bool(stages[str(args.stage)].get("overridden"))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        print(f"staged_analysis_helper.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
