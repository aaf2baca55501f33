"""Which code does a registered experiment run?  Its copies, by the arms that they are of."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from ablation.folder.materials import ROOT, Code, CodeCopy, read_copy
from ablation.folder.trainers import codes_of, layered
from ablation.runs.run import Replacement
from ablation.study.study import Study


def code_copies(codes: Mapping[tuple, Code], exp_dir: Path) -> dict[tuple, CodeCopy]:
    """What runs: the copies in the experiment, made again where they are gone."""
    copies = {}
    for trainer, code in codes.items():
        folder = (exp_dir / "code" / code.hash).resolve()
        if not all((folder / name).is_file() for name in code.names):
            code.copy_to(folder)
        copies[trainer] = CodeCopy(code, folder)
    return copies


def registered_codes(document: dict, study: Study, exp_dir: Path) -> dict[tuple, Code]:
    """The registered code of every arm: the copies in the experiment; where one is gone, the files
    it was made of, or the checkout's, if their hash is the registered one. Writes nothing.

    Raises ValueError where a copy was edited, or where no such files are left.
    """
    fixed = document["registered"]
    rows = [{"trainer": [], **fixed["code"]}, *fixed["codes_of_arms"]]
    found = {}
    for row in rows:
        folder = exp_dir / "code" / row["hash"]
        whole = all((folder / name).is_file() for name in row["files"])
        code = read_copy(folder, row["files"]) if whole else made_again(document, study, row)
        if code is None:
            raise ValueError(
                f"the trainer of this experiment is gone: neither {folder / row['files'][0]} nor"
                f" {document['train_script']} holds the registered files (hash {row['hash']});"
                " put them back, or begin anew"
            )
        if code.hash != row["hash"]:
            raise ValueError(f"{folder} was edited; its files no longer match their hash")
        found[trainer_from(row["trainer"])] = code
    for layers in layered(study):
        if layers.arm.trainer not in found:
            raise ValueError(f"{exp_dir}: no code of {layers.key} is registered; begin anew")
    return found


def made_again(document: dict, study: Study, row: dict) -> Code | None:
    """The code of a row whose copy is gone, from what it was made of; None where that is gone."""
    for script in (Path(document["train_script"]), ROOT / row["files"][0], None):
        with contextlib.suppress(ValueError):  # gone, or nothing that Python can read
            code = codes_of(study, script).get(trainer_from(row["trainer"]))
            if code and code.hash == row["hash"]:
                return code
    return None


def plain(trainer: tuple) -> list:
    """What tells the code of an arm apart, as JSON has it."""
    script, replacements, revision = trainer
    return [script, [[r.file, r.old, r.new] for r in replacements], revision]


def trainer_from(value: list) -> tuple:
    """The inverse. Raises TypeError, or ValueError, for anything else."""
    if not value:
        return ()
    script, replacements, revision = value
    texts = [script, revision, *(text for texts in replacements for text in texts)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"an arm's code is told by {texts!r:.80}, not by texts")
    return script, tuple(Replacement(*texts) for texts in replacements), revision


def check_code(code: dict) -> None:
    """Raise TypeError for code that lies anywhere but in its folder."""
    names = [code["hash"], *code["files"]]
    plain = re.compile(r"[\w.-]+(/[\w.-]+)*")
    if not all(isinstance(n, str) and plain.fullmatch(n) and ".." not in n for n in names):
        raise TypeError(f"code {names!r:.80} names no files")
    if len(names) < 2:
        raise TypeError("code names no trainer")
    trainer_from(code.get("trainer", []))
