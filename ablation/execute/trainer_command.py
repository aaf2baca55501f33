"""With which words and variables does a study's trainer start?  Pure functions.

A launcher comes before these words: torchrun with its options, this Python, or none.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablation.folder.trainers import folder_of, start_of
from ablation.runs.run import Arm, Flags, Repeated, RunConfig
from ablation.study.study import Study, overlaid, placed, text_of


def values_of(run: RunConfig, run_dir: Path, data_dir: Path | None, num_gpus: int) -> dict:
    """What {num_iterations} and the like stand for in this run."""
    length = run.num_iterations
    return {
        "num_iterations": length,
        "seconds": length,
        "seed": run.seed,
        "run_dir": run_dir,
        "data_dir": data_dir or "",
        "num_gpus": num_gpus,
    }


def command_of(
    study: Study, arm: Arm, names: Sequence[str], code_dir: Path, values: Mapping[str, object]
) -> tuple[str, ...]:
    """The words behind the launcher: the script, or -m and the module, its own words, and flags.

    names: of the files of the arm's code, which lie in code_dir. A word that names one of them
    stands for the copy.
    """
    whole = overlaid(study.base, arm)
    start = start_of(study.trainer, whole)
    words = []
    for number, word in enumerate(start.words):
        if number == start.entry and not start.is_module:
            words.append(str(code_dir / names[0]))
        elif (name := name_of(word, start.name, study)) in names and number != start.entry:
            words.append(str(code_dir / name))
        else:
            words.append(placed(word, values))
    return (*words, *flag_words(whole.flags, study.trainer.flag_form, values))


def name_of(word: str, entry: str, study: Study) -> str:
    """The name in the code of a file that the study names beside the entry."""
    folder = str(folder_of(study))
    script = os.path.normpath(os.path.join(folder, entry))
    is_below = script.startswith(folder + os.sep)
    return os.path.relpath(os.path.join(folder, word), folder if is_below else script + "/..")


def flag_words(flags: Flags, form: str, values: Mapping[str, object]) -> list[str]:
    """true is a bare flag and false none, except for a form that has no bare ones."""
    words = []
    has_bare = form.startswith("--")
    for name, value in flags:
        dashed = name if name.startswith("-") or not has_bare else f"--{name}"
        for each in value.values if isinstance(value, Repeated) else (value,):
            text = placed(text_of(each), values)
            if has_bare and isinstance(each, bool):
                words += [dashed] if each else []
            else:
                words += [dashed, text] if " " in form else [f"{dashed}={text}"]
    return words


def env_of(
    study: Study,
    arm: Arm,
    code_dir: Path,
    values: Mapping[str, object],
    around: Mapping[str, str],
) -> dict[str, str]:
    """Variables of a run, beside those around it. A module is found in its copy before all that
    is installed; a script finds what lies beside it by itself."""
    whole = overlaid(study.base, arm)
    env = {name: placed(text, values) for name, text in whole.env}
    if start_of(study.trainer, whole).is_module:
        path = env.get("PYTHONPATH", around.get("PYTHONPATH", ""))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code_dir), path)))
    return env
