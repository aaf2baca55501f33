"""Can this Python run the project?  Asked before what an older one cannot even read is imported.

Only the standard library, in words that Python 3.6 understands.
"""

import importlib.util
import sys

OLDEST = (3, 11)
NEEDED = {  # program: the packages that it cannot do without
    "run_aux.py": ("numpy", "scipy", "psutil", "tqdm"),  # torch: where a launcher is looked for
    "staged_analysis_helper.py": ("scipy",),
    "analyze_aux.py": ("numpy", "scipy"),  # without matplotlib there is a report all the same
}
REMEDY = "use .venv/bin/python, which `make run` makes"


def problem(program, version=sys.version_info, optimize=sys.flags.optimize, has=None):
    """Why this Python cannot run a program, and the remedy, in one line; empty when it can."""
    has = has or (lambda package: importlib.util.find_spec(package) is not None)
    here = sys.executable or "this Python"
    if tuple(version[:2]) < OLDEST:
        needed, found = (".".join(map(str, numbers[:2])) for numbers in (OLDEST, version))
        return f"Python {needed} or later is needed, and {here} is {found}; {REMEDY}"
    if optimize:
        return f"{here} runs with -O or PYTHONOPTIMIZE={optimize}, without its checks; leave it out"
    missing = ", ".join(package for package in NEEDED[program] if not has(package))
    if missing:
        return f"{here} has no {missing}; {REMEDY}, or: {here} -m pip install -r requirements.txt"
    return ""


def check(program, code=1):
    """End the program with one line and this exit code where its Python cannot run it."""
    found = problem(program)
    if found:
        if sys.stderr is not None:
            sys.stderr.write(f"{program}: error: {found}\n")
        sys.exit(code)
