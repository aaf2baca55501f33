"""With which words and variables does a study's trainer start, and where does it find its data?"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.execute.trainer_command import command_of, env_of, values_of
from ablation.folder.data import data_dir_of_study, data_faults, data_fingerprint, link_data
from ablation.folder.materials import CodeCopy, read_copy
from ablation.folder.trainers import code_for_run, codes_of, filled
from ablation.runs.run import Arm, Repeated, Replacement, RunConfig
from ablation.study.study import Study, Trainer
from data import prepare

RUN = RunConfig(stage=1, arm=Arm("baseline"), index=0, seed=7, num_iterations=42)
VALUES = values_of(RUN, Path("/runs/work"), Path("/text"), num_gpus=2)
CODE = Path("/code/abc")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def study(folder="/lab", flags=(), env=(), arms=(), **trainer) -> Study:
    whole = Trainer(
        **{"command": ("train.py",), "folder": str(folder), "launch": "plain"} | trainer
    )
    return Study("mine", "?", trainer=whole, base=Arm("baseline", flags, env), arms=arms)


# ---------------------------------------------------------------------------------------------
# Words

WORDS = {  # command, launch, an arm's script, names of its code: the words behind the launcher
    "script": (("train.py",), "plain", "", "train.py", "/code/abc/train.py"),
    "its own words": (
        ("python", "train.py", "a={seed}", "-v"),
        "torchrun",
        "",
        "train.py",
        "/code/abc/train.py a=7 -v",
    ),
    "another script": (("train.py", "x"), "plain", "g.py", "g.py", "/code/abc/g.py x"),
    "module": (("python", "-m", "pkg.train", "x"), "plain", "", "pkg/train.py", "-m pkg.train x"),
    "script for a module": (("-m", "pkg", "x"), "plain", "g.py", "g.py", "/code/abc/g.py x"),
    "above": (("../train.py", "../a.txt"), "plain", "", "train.py a.txt", "{}/train.py {}/a.txt"),
    "companion": (
        ("train.py", "conf/a.txt"),
        "plain",
        "",
        "train.py conf/a.txt",
        "{}/train.py {}/conf/a.txt",
    ),
    "as it stands": (
        ("bash", "-e", "train.sh", "{num_iterations}", "{num_gpus}"),
        "command",
        "",
        "train.sh",
        "bash -e {}/train.sh 42 2",
    ),
    "python as it stands": (
        ("python3", "-u", "train.py", "{data_dir}/x", "{run_dir}"),
        "command",
        "",
        "train.py",
        "python3 -u {}/train.py /text/x /runs/work",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_command_starts_the_copy(name):
    command, launch, script, names, words = WORDS[name]
    s = study(command=command, launch=launch)
    found = command_of(s, Arm("a", script=script), names.split(), CODE, VALUES)
    assert found == tuple(words.replace("{}", str(CODE)).split())


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("--name value", "--lr 0.02 --steps 42 --fast --b 1,2 --tag x --tag y -q 1 --n seed-7"),
        ("--name=value", "--lr=0.02 --steps=42 --fast --b=1,2 --tag=x --tag=y -q=1 --n=seed-7"),
        (
            "name=value",
            "lr=0.02 steps=42 fast=true slow=false b=1,2 tag=x tag=y -q=1 n=seed-7 off=false",
        ),
    ],
)
def test_flags_are_those_of_the_base_with_the_arms_laid_over(form, words):
    base = (("lr", 0.1), ("steps", "{num_iterations}"), ("fast", True), ("slow", False))
    mine = (("b", (1, 2)), ("tag", Repeated(("x", "y"))), ("-q", 1), ("n", "seed-{seed}"))
    arm = Arm("a", (("lr", 0.02), *mine, ("off", False)))
    s = study(flags=base, flag_form=form)
    assert " ".join(command_of(s, arm, ["train.py"], CODE, VALUES)[1:]) == words


def test_variables_are_those_of_the_base_with_the_arms_laid_over():
    s = study(env=(("ITERS", "{num_iterations}"), ("SEED", "{seed}"), ("JSON", '{"a": 1}')))
    arm = Arm("a", env=(("SEED", "0{seed}"), ("DATA", "{data_dir}")))
    expected = {"ITERS": "42", "SEED": "07", "JSON": '{"a": 1}', "DATA": "/text"}
    assert env_of(s, arm, CODE, VALUES, {"PYTHONPATH": "/mine"}) == expected


@pytest.mark.parametrize(
    ("around", "told", "path"),
    [("", "", "/code/abc"), ("/mine", "", "/code/abc:/mine"), ("/mine", "/x", "/code/abc:/x")],
)
def test_a_module_is_found_in_its_copy_first(around, told, path):
    env = (("PYTHONPATH", told),) if told else ()
    s = study(command=("-m", "pkg"), env=env)
    found = env_of(s, Arm("a"), CODE, VALUES, {"PYTHONPATH": around} if around else {})
    assert found["PYTHONPATH"] == path


# ---------------------------------------------------------------------------------------------
# A run, in a folder of its own

TRAIN = """
import os, sys, json
from pathlib import Path
{}
Path("left.txt").write_text("by a run")
print(json.dumps([model.name, steps, Path("text/a.txt").read_text(), Path("c.txt").read_text()]))
"""
STARTS = {
    "script": (("train.py",), "plain", {"train.py": TRAIN.format("import model; steps = 0")}),
    "module": (
        ("python", "-m", "pkg"),
        "plain",
        {"pkg/__main__.py": TRAIN.format("from . import model; steps = 0")}
        | {"pkg/__init__.py": "", "pkg/model.py": "name = 'mine'\n"},
    ),
    "shell": (
        ("bash", "go.sh"),
        "command",
        {"go.sh": f"exec {sys.executable} train.py\n"}
        | {"train.py": TRAIN.format("import model; steps = 0")},
    ),
    "program": (
        ("./go.py",),
        "command",
        {"go.py": f"#!{sys.executable}\n" + TRAIN.format("import model; steps = 0")},
    ),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_run_executes_the_copy_and_leaves_what_it_writes_in_its_folder(name, tmp_path):
    command, launch, files = STARTS[name]
    common = {"model.py": "name = 'mine'\n", "text/a.txt": "text", "c.txt": "companion"}
    lab = write(tmp_path / "lab", common | files)
    companions = ("c.txt", "train.py") if name == "shell" else ("c.txt",)
    s = study(lab, command=command, launch=launch, companions=companions, data=("text",))
    (main,) = (file for file in files if "left.txt" in files[file])
    change = Replacement(main, "steps = 0", "steps = {num_iterations}")
    arm = Arm("longer", replacements=(change,))
    code = filled(codes_of(replace(s, arms=(arm,)))[arm.trainer], VALUES)
    copy, work = tmp_path / "copy", tmp_path / "work"
    code.copy_to(copy)
    work.mkdir()
    link_data(s, work, copy)
    shutil.rmtree(lab / "pkg", ignore_errors=True)  # the run needs nothing of it but its data
    for path in lab.glob("*.*"):
        path.unlink()
    words = command_of(s, arm, code.names, copy, VALUES)
    launcher = (sys.executable,) if launch == "plain" else ()
    env = {**os.environ, **env_of(s, arm, copy, VALUES, os.environ)}
    done = subprocess.run([*launcher, *words], cwd=work, env=env, capture_output=True, text=True)
    assert done.stdout == '["mine", 42, "text", "companion"]\n', done.stderr
    assert (work / "left.txt").exists()
    assert [path.name for path in lab.iterdir()] == ["text"]


@pytest.mark.parametrize(("new", "is_own"), [("steps = 5", False), ("steps = {seed}", True)])
def test_code_that_differs_from_run_to_run_lies_in_the_attempt(new, is_own, tmp_path):
    lab = write(tmp_path / "lab", {"train.py": "import model\nsteps = 0\n", "model.py": ""})
    arm = Arm("a", replacements=(Replacement("train.py", "steps = 0", new),))
    code, copy = codes_of(study(lab, arms=(arm,)))[arm.trainer], tmp_path / "code"
    code.copy_to(copy)
    where = code_for_run(CodeCopy(code, copy), tmp_path / "run_0", VALUES).folder
    assert where == (tmp_path / "run_0" / "code" if is_own else copy)
    found = read_copy(where, code.names)
    assert found.files[0][1] == f"import model\nsteps = {7 if is_own else 5}\n".encode()
    assert (found.hash == code.hash) is not is_own
    assert read_copy(copy, code.names).hash == code.hash


# ---------------------------------------------------------------------------------------------
# Data


def test_links_replace_links_and_nothing_else(tmp_path):
    lab = write(tmp_path / "lab", {"text/a.txt": "text", "deep/b.txt": "b", "taken": "data"})
    write(tmp_path, {"above/c.txt": "c"})
    data = ("text", "deep/b.txt", "taken", "../above", str(tmp_path / "above"), ".")
    s, work = study(lab, data=data), write(tmp_path / "work", {"taken": "the run's own"})
    (work / "text").symlink_to("/nowhere")
    for _ in range(2):  # of the same attempt, begun again
        link_data(s, work, tmp_path / "copy")
    assert {path.relative_to(work).as_posix() for path in work.rglob("*")} == {
        *("text", "deep", "deep/b.txt", "taken")
    }
    assert (work / "text" / "a.txt").read_text() == "text"
    assert (work / "deep" / "b.txt").readlink() == lab / "deep" / "b.txt"
    assert (work / "taken").read_text() == "the run's own"
    assert [path.name for path in tmp_path.iterdir() if path.is_symlink()] == []


def test_an_entry_below_another_changes_nothing_of_the_data(tmp_path):
    lab = write(tmp_path / "lab", {"text/a.txt": "text", "elsewhere/b.txt": "b"})
    (lab / "text" / "sub").symlink_to(lab / "elsewhere")
    work = write(tmp_path / "work", {})
    work.mkdir()
    for _ in range(2):
        link_data(study(lab, data=("text", "text/sub", "text/new/x")), work, tmp_path / "copy")
    assert (lab / "text" / "sub").is_symlink()
    assert sorted(path.name for path in (lab / "text").iterdir()) == ["a.txt", "sub"]


def test_the_first_entry_is_the_data_dir(tmp_path):
    lab = write(tmp_path / "lab", {"mine.toml": ""})
    write(tmp_path, {"text/a.txt": ""})
    assert data_dir_of_study(study(lab)) is None
    s = study(lab, data=("../text", "gone", "/no/such"))
    assert data_dir_of_study(s) == tmp_path / "text"
    assert [fault.partition(";")[0] for fault in data_faults(s)] == [
        f"trainer.data[1]: there is no {lab}/gone",
        "trainer.data[2]: there is no /no/such",
    ]


CHANGES = {
    "contents": lambda d: (d / "text/a.bin").write_bytes(b"0" * 9999 + b"1"),
    "size": lambda d: (d / "text/a.bin").write_bytes(b"0" * 10001),
    "one more": lambda d: (d / "text/deep/c.txt").write_text("c"),
    "one less": lambda d: (d / "text/deep/b.txt").unlink(),
    "a name": lambda d: (d / "text/a.bin").rename(d / "text/b.bin"),
    "the file": lambda d: (d / "one.txt").write_text("two"),
}
SAME = {
    "moved": lambda d: d.rename(d.with_name("moved")),
    "when": lambda d: os.utime(d / "text/a.bin", (1, 1)),
    "hidden": lambda d: write(d, {"text/.cache/x": "", "text/.DS_Store": "", "other": ""}),
    "compiled": lambda d: write(d, {"text/__pycache__/x.pyc": ""}),
}


@pytest.mark.parametrize("name", [*CHANGES, *SAME])
def test_the_fingerprint_is_of_names_sizes_and_contents(name, tmp_path):
    lab = write(tmp_path / "lab", {"text/deep/b.txt": "b", "one.txt": "one"})
    (lab / "text/a.bin").write_bytes(b"0" * 10000)
    entries = ("text", "one.txt")
    before = data_fingerprint(study(lab, data=entries))
    (CHANGES | SAME)[name](lab)
    (lab,) = tmp_path.iterdir()
    assert (data_fingerprint(study(lab, data=entries)) == before) is (name in SAME)
    assert before.startswith("sampled-sha256:")


def test_shards_with_a_record_have_the_recorded_fingerprint(tmp_path):
    prepare.write_shard(tmp_path / "x_train_000001.bin", b"text")
    rows = [prepare.describe_shard(path) for path in tmp_path.glob("*.bin")]
    prepare.finish(tmp_path, rows, 256, "a test")
    assert data_fingerprint(study(tmp_path, data=(".",))).startswith("sha256:")


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: p.symlink_to("gone")]
)
def test_what_is_no_file_is_named_and_not_read(make, tmp_path):
    write(tmp_path, {"text/a.txt": ""})
    make(tmp_path / "text" / "odd")
    with pytest.raises(ValueError, match=r"text/odd: (not a regular file|cannot be read)"):
        data_fingerprint(study(tmp_path, data=("text",)))
