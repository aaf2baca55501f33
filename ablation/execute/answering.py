"""How does a sitting answer a program?  One object on standard output, and a code that tells.

`--json`: all that is for people goes to standard error, and the last thing of all is one JSON
object, also where the command line cannot be read, nothing can begin, or somebody stops it.
`--exit_verdict`: the exit code tells the verdict, where there is one and no fault.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablation.cli import exit_codes
from ablation.cli.arguments import BadUsage
from ablation.folder.answer import answer
from ablation.folder.standing import standing
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT, UNDECIDED
from ablation.plan.stage import FINAL_STAGE

CODES = {
    IMPROVES: exit_codes.IMPROVES,
    NO_EFFECT: exit_codes.NO_EFFECT,
    HARMFUL: exit_codes.HARMFUL,
    UNDECIDED: exit_codes.UNDECIDED,
}
OTHERS = {"--status", "--preflight"}  # their --json is an object of its own


@dataclass
class Told:
    """What a command comes to, filled in as it becomes known."""

    code: int = exit_codes.DONE
    error: str = ""  # one line: why it was refused, was stopped, or failed
    exp_dir: Path | None = None  # where it sat
    until: int = FINAL_STAGE  # the last stage that was asked for


@contextlib.contextmanager
def answering(words: Sequence[str]) -> Iterator[Told]:
    """In here a command line is obeyed; its answer is given afterwards, where it asks for one. The
    words are asked, and not what was read in them: there may be an error in them."""
    told, asked = Told(), {"--json", "--exit_verdict"}.intersection(words)
    if not asked or OTHERS.intersection(words):
        yield told
        return
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if "--json" in asked else out):
        try:
            yield told
        except BadUsage as end:
            told.code, told.error = exit_codes.USAGE, end.line
    found = what_is_known(told)
    if "--exit_verdict" in asked:
        told.code = with_verdict(told.code, found)
    if "--json" in asked:
        ended = {"exit_code": told.code, "error": told.error or None}
        print(json.dumps({**found, **ended}), file=out, flush=True)


def what_is_known(told: Told) -> dict:
    """The answer so far; that of nothing where no folder was sat in, or it can be read no more."""
    if told.exp_dir is not None:
        with contextlib.suppress(ValueError, OSError):
            found = standing(told.exp_dir)
            if found.changed and not told.error:  # the code that decides was edited meanwhile
                told.error = f"{found.changed[0]}; no decision is shown"
            return answer(found, told.until)
    return answer(None, told.until)


def with_verdict(code: int, found: dict) -> int:
    """The exit code that tells the verdict as well. A fault, a run that failed or a signal goes
    before it; that the budget is spent goes before it where nothing could be tested."""
    concluded = code == exit_codes.DONE or (code == exit_codes.BUDGET_SPENT and found["p"])
    return CODES[found["verdict"]] if concluded and found["verdict"] else code
