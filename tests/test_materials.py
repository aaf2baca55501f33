"""Which files are the trainer, and which data is it?"""

import importlib.machinery
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.cli.arguments import plain_words
from ablation.folder import materials
from ablation.folder.materials import Materials, read_code, shards_in
from data import prepare

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"


def write(folder: Path, files: dict[str, str]) -> Path:
    """These files below a folder; its trainer."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "train.py"


# ---------------------------------------------------------------------------------------------
# What the trainer imports from its own folder

FOUND = {  # the files of a trainer's folder, and which of them are copied beside train.py
    "import": ({"train.py": "import model", "model.py": ""}, "model.py"),
    "as": (
        {"train.py": "import model as m, util", "model.py": "", "util.py": ""},
        "model.py util.py",
    ),
    "from": ({"train.py": "from model import GPT", "model.py": "GPT = 1"}, "model.py"),
    "nothing": ({"train.py": "import json, torch", "model.py": ""}, ""),
    "companions of companions": (
        {"train.py": "import a", "a.py": "import b", "b.py": "import c", "c.py": "", "d.py": ""},
        "a.py b.py c.py",
    ),
    "cycle": ({"train.py": "import a", "a.py": "import b, train", "b.py": "import a"}, "a.py b.py"),
    "in a function": ({"train.py": "def f():\n    import model", "model.py": ""}, "model.py"),
    "in try": (
        {"train.py": "try:\n    import fast\nexcept ImportError:\n    import slow"}
        | {"fast.py": "", "slow.py": ""},
        "fast.py slow.py",
    ),
    "under if": ({"train.py": "if 1:\n  if 2:\n    import model", "model.py": ""}, "model.py"),
    "in a class of a lambda": (
        {"train.py": "class A:\n    f = lambda: __import__('model')", "model.py": ""},
        "model.py",
    ),
    "package": (
        {"train.py": "import pkg", "pkg/__init__.py": "", "pkg/a.py": ""},
        "pkg/__init__.py",
    ),
    "module of a package": (
        {"train.py": "import pkg.a", "pkg/__init__.py": "", "pkg/a.py": "", "pkg/b.py": ""},
        "pkg/__init__.py pkg/a.py",
    ),
    "from a package": (
        {"train.py": "from pkg import a, name", "pkg/__init__.py": "name = 1", "pkg/a.py": ""},
        "pkg/__init__.py pkg/a.py",
    ),
    "deep": (
        {"train.py": "import p.q.r", "p/__init__.py": "", "p/q/__init__.py": "", "p/q/r.py": ""},
        "p/__init__.py p/q/__init__.py p/q/r.py",
    ),
    "relative": (
        {"train.py": "import pkg.a", "pkg/__init__.py": "from . import c"}
        | {"pkg/a.py": "from .b import x\nfrom . import sub", "pkg/b.py": "x = 1", "pkg/c.py": ""}
        | {"pkg/sub/__init__.py": "from ..d import y\nfrom .. import e", "pkg/d.py": "y = 1"}
        | {"pkg/e.py": "", "b.py": "", "c.py": "", "d.py": "", "e.py": ""},
        "pkg/__init__.py pkg/a.py pkg/b.py pkg/c.py pkg/d.py pkg/e.py pkg/sub/__init__.py",
    ),
    "star": (
        {"train.py": "from pkg import *", "pkg/a.py": "", "pkg/b.py": ""}
        | {"pkg/__init__.py": "__all__ = ['a', 'x']\nx = 1"},
        "pkg/__init__.py pkg/a.py",
    ),
    "a folder without __init__": (
        {"train.py": "import parts.model", "parts/model.py": "from .util import x"}
        | {"parts/util.py": "x = 1", "util.py": ""},
        "parts/model.py parts/util.py",
    ),
    "import_module": (
        {"train.py": "import importlib\nimportlib.import_module('model')", "model.py": ""},
        "model.py",
    ),
    "import_module, relative": (
        {"train.py": "import pkg", "pkg/b.py": "", "b.py": "", "pkg/c.py": ""}
        | {
            "pkg/__init__.py": "from importlib import import_module\nimport_module('.b', 'pkg')\n"
            "import_module('.c', __name__)"
        },
        "pkg/__init__.py pkg/b.py pkg/c.py",
    ),
    "before the standard library": ({"train.py": "import random", "random.py": ""}, "random.py"),
    "before what is installed": ({"train.py": "import psutil", "psutil.py": ""}, "psutil.py"),
    "a package before a module": (
        {"train.py": "import m", "m.py": "", "m/__init__.py": ""},
        "m/__init__.py",
    ),
    "a module before a folder": ({"train.py": "import m", "m.py": "", "m/a.py": ""}, "m.py"),
    "what is built in comes first": (
        {"train.py": "import sys, time", "sys.py": "", "time.py": ""},
        "",
    ),
    "what is installed before a folder": (
        {"train.py": "import psutil, json", "psutil/log.txt": "", "json/a.py": ""},
        "",
    ),
    "what is installed before a folder, and its modules": (
        {"train.py": "import psutil._common", "psutil/_common.py": ""},
        "",
    ),
    "a file of this project is not the trainer's": (
        {"train.py": "try:\n  import plans\nexcept: 0"},
        "",
    ),
    "encodings": (
        {"train.py": "import m", "m.py": "# coding: latin-1\nimport n", "n.py": ""},
        "m.py n.py",
    ),
    "an attribute of a module": (
        {"train.py": "from m import n", "m.py": "n = 1", "n.py": ""},
        "m.py",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_the_trainer_imports_from_its_folder_is_found(case, tmp_path):
    files, expected = FOUND[case]
    code = read_code(write(tmp_path, files))
    assert code.names == ("train.py", *expected.split())
    assert code.left_out == ()


@pytest.mark.parametrize("case", FOUND)
def test_the_copy_runs_alone_and_imports_what_python_imported_from_the_folder(case, tmp_path):
    """The reference is Python: the modules of the folder that a run of the trainer loads."""
    folder, copy = tmp_path / "trainer", tmp_path / "copy"
    files, _ = FOUND[case]
    script = write(folder, files)
    with open(script, "a") as file:
        file.write(
            "\nimport sys as _s\nprint(*sorted(str(m.__file__) for m in [*_s.modules.values()]"
            " if getattr(m, '__file__', None)), sep='\\n')\n"
        )
    code = read_code(script)
    code.copy_to(copy)

    def loaded(root):
        done = subprocess.run(
            [sys.executable, root / "train.py"], capture_output=True, text=True, check=True
        )
        paths = [Path(line) for line in done.stdout.splitlines() if line.startswith(str(root))]
        return sorted(path.relative_to(root).as_posix() for path in paths)

    if "torch" in files["train.py"] or "random" in files["train.py"]:
        return  # slow to load; breaks the standard library, in the folder as in the copy
    assert loaded(copy) == loaded(folder)
    assert set(loaded(folder)) <= set(code.names)


def test_a_compiled_module_is_copied_as_it_is(tmp_path):
    script = write(tmp_path, {"train.py": "import fast, slow", "fast.py": "", "slow.py": ""})
    compiled = f"fast{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    (tmp_path / compiled).write_bytes(b"\x7fELF \0\xff")
    code = read_code(script)
    assert code.names == ("train.py", compiled, "slow.py")
    code.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / compiled).read_bytes() == b"\x7fELF \0\xff"


def test_the_trainer_of_the_project_is_found_by_the_same_rule():
    code = read_code(ROOT / "train_gpt.py")
    assert code.names == ("train_gpt.py", "aux_heads.py")
    assert code.left_out == ()
    assert list(code.notes()) == [
        "The trainer is train_gpt.py with what it imports beside it: aux_heads.py."
    ]
    assert list(read_code(SUPPORT / "fake_train.py").notes()) == []


def test_the_copy_has_the_hash_of_the_original_wherever_it_lies(tmp_path):
    files, _ = FOUND["relative"]
    code = read_code(write(tmp_path / "a", files))
    code.copy_to(tmp_path / "b" / "deeper")
    copied = read_code(tmp_path / "b" / "deeper" / "train.py")
    assert (copied.hash, copied.names) == (code.hash, code.names)
    (tmp_path / "b" / "deeper" / "pkg" / "e.py").write_text("edited = 1\n")
    assert read_code(tmp_path / "b" / "deeper" / "train.py").hash != code.hash


def as_package(folder):
    """The same bytes under another name, for the same import."""
    (folder / "model").mkdir()
    (folder / "model.py").rename(folder / "model" / "__init__.py")


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda folder: None, False),
        (lambda folder: (folder / "unused.py").write_text("x = 2\n"), False),
        (lambda folder: (folder / "model.py").write_text("x = 2\n"), True),
        (lambda folder: (folder / "pkg" / "a.py").write_text("x = 2\n"), True),
        (lambda folder: (folder / "model.py").unlink(), True),
        (lambda folder: (folder / "pkg").rename(folder / "package"), True),
        (as_package, True),
    ],
)
def test_the_hash_is_of_every_file_that_is_copied_and_of_no_other(tmp_path, change, other):
    text = "import model\nimport pkg.a\n"
    files = {
        "train.py": text,
        "model.py": "",
        "pkg/__init__.py": "",
        "pkg/a.py": "",
        "unused.py": "",
    }
    script = write(tmp_path, files)
    before = read_code(script).hash
    change(tmp_path)
    assert (read_code(script).hash != before) is other


def test_the_order_of_imports_and_of_the_folder_does_not_matter_to_the_hash(tmp_path, monkeypatch):
    names = ("zeta", "alpha", "mid")
    script = write(
        tmp_path, {"train.py": "import zeta, alpha, mid"} | {f"{n}.py": "" for n in names}
    )
    before = read_code(script)
    assert before.names == ("train.py", "alpha.py", "mid.py", "zeta.py")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *a: sorted(listed(*a), reverse=True))
    assert read_code(script).hash == before.hash


def test_nothing_of_a_trainer_is_executed_to_read_it(tmp_path):
    crash = "raise SystemExit('executed')"
    files = {"train.py": f"import pkg.a\n{crash}", "pkg/__init__.py": crash, "pkg/a.py": crash}
    assert read_code(write(tmp_path, files)).names[1:] == ("pkg/__init__.py", "pkg/a.py")


# ---------------------------------------------------------------------------------------------
# What is left outside


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"train.py": "import no_such"},
            "train.py, line 1: imports no_such, which is not beside it",
        ),
        ({"train.py": "\nfrom no_such.sub import x"}, "train.py, line 2: imports no_such, which"),
        ({"train.py": "def f():\n    import no_such"}, "line 2: imports no_such"),
        ({"train.py": "import m", "m.py": "import no_such"}, "m.py, line 1: imports no_such"),
        ({"train.py": "import p.no", "p/__init__.py": ""}, "imports p.no, which is not in "),
        ({"train.py": "import m.no", "m.py": ""}, "imports no of m, which is no package"),
        ({"train.py": "import plans"}, "imports plans, which is not beside it nor installed"),
        ({"train.py": "from . import x", "x.py": ""}, "imports ., which leads nowhere"),
        (
            {"train.py": "import p", "p/__init__.py": "from ... import x"},
            "imports ..., which leads",
        ),
        ({"train.py": "__import__('no_such')"}, "imports no_such, which is not beside it"),
        ({"train.py": "__import__('a/b')"}, "imports a/b, which leads nowhere"),
        ({"train.py": "n = 1\n__import__(str(n))"}, "train.py, line 2: imports by a name that is"),
        (
            {"train.py": "exec(open('configurator.py').read())", "configurator.py": ""},
            "train.py: names configurator.py, which lies beside it and is not copied",
        ),
        *[
            ({"train.py": f"x = {named}", "conf/a.yaml": ""}, "train.py: names conf/a.yaml, which")
            for named in (
                "'conf/a.yaml'",
                "os.path.join('conf', 'a.yaml')",
                "join(here(), 'conf', 'a.yaml')",
                "here.joinpath('conf', 'a.yaml')",
                "Path(__file__).parent / 'conf' / 'a.yaml'",
                "Path('conf') / 'a.yaml'",
                "here / Path('conf', 'a.yaml')",
                "dirname(__file__) + '/conf/a.yaml'",
            )
        ],
    ],
)
def test_what_is_left_outside_is_named(files, told, tmp_path):
    code = read_code(write(tmp_path, files))
    (line,) = code.left_out
    assert told in line
    assert list(code.notes())[-2:] == ["Not in the copy that will run:", f"  {line}"]


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    import no_such\nexcept ImportError:\n    no_such = None",
        "if fast:\n    import no_such",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from no_such import X",
        "import torch, numpy as np, xml.dom.minidom, os.path",
        "x = '../outside.txt', '/etc/passwd', 'no such file', '', '.', 'train.py', 'a' * 3",
        "x = '/', 1 / 'train.py', join('..', 'out.txt'), join(), Path('/etc') / 'passwd', Path()",
    ],
)
def test_what_may_be_missing_or_is_elsewhere_is_not_named(text, tmp_path):
    (tmp_path / "outside.txt").touch()
    assert read_code(write(tmp_path / "trainer", {"train.py": text})).left_out == ()


def test_code_from_another_folder_of_the_path_is_named_with_that_folder(tmp_path, monkeypatch):
    write(tmp_path / "shared", {"mylib/__init__.py": "", "single.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "shared"))
    script = write(tmp_path / "trainer", {"train.py": "import mylib.a, single, psutil"})
    assert read_code(script).left_out == (
        f"train.py, line 1: imports mylib, which is not copied from {tmp_path}/shared/mylib",
        f"train.py, line 1: imports single, which is not copied from {tmp_path}/shared",
    )


def test_a_long_list_of_what_is_left_outside_is_cut(tmp_path):
    text = "\n".join(f"import no_such_{n}" for n in range(40))
    lines = list(read_code(write(tmp_path, {"train.py": text})).notes())
    assert len(lines) == 14
    assert lines[-1] == "  and 28 more of this kind"


# ---------------------------------------------------------------------------------------------
# What is refused


def deep(depth: int) -> str:
    return "x = " + "(" * depth + ")" * depth


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"train.py": "def f(:"}, ["train.py, line 1", "invalid syntax"]),
        ({"train.py": "\n\n  x = 1"}, ["train.py, line 3", "unexpected indent"]),
        ({"train.py": "import m", "m.py": "print 'x'"}, ["m.py, line 1", "Missing parentheses"]),
        ({"train.py": "x = '\0'"}, ["train.py", "null bytes"]),
        ({"train.py": "# coding: no-such\n"}, ["train.py", "no-such"]),
        ({"train.py": deep(5000)}, ["train.py", "cannot read it"]),
        ({"other.py": ""}, ["train.py: no such file", "--train_script"]),
        ({"train.py/x": ""}, ["train.py: not a regular file", "--train_script"]),
    ],
)
def test_a_trainer_that_cannot_be_read_is_one_line(files, parts, tmp_path):
    with pytest.raises(ValueError) as refused:
        read_code(write(tmp_path, files))
    for part in parts:
        assert part in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.py")
    with pytest.raises(ValueError, match="not a regular file"):
        read_code(tmp_path / "train.py")


def test_links_inside_the_folder_are_copied_as_what_they_point_to(tmp_path):
    folder = tmp_path / "trainer"
    script = write(folder, {"train.py": "import model", "lib/model_v2.py": "x = 2\n"})
    (folder / "model.py").symlink_to("lib/model_v2.py")
    code = read_code(script)
    code.copy_to(tmp_path / "copy")
    assert code.names == ("train.py", "model.py")
    assert (tmp_path / "copy" / "model.py").read_text() == "x = 2\n"
    assert not (tmp_path / "copy" / "model.py").is_symlink()
    assert read_code(tmp_path / "copy" / "train.py").hash == code.hash


@pytest.mark.parametrize("linked", ["model.py", "pkg"])
def test_a_link_out_of_the_folder_is_refused_with_both_places(linked, tmp_path):
    script = write(tmp_path / "trainer", {"train.py": "import model, pkg"})
    write(tmp_path / "elsewhere", {"model.py": "", "pkg/__init__.py": ""})
    (tmp_path / "trainer" / linked).symlink_to(tmp_path / "elsewhere" / linked)
    with pytest.raises(ValueError, match="is a link out of the trainer's folder") as refused:
        read_code(script)
    assert str(tmp_path / "elsewhere" / linked) in str(refused.value)


def test_a_trainer_behind_a_link_is_read_where_it_lies(tmp_path):
    """As Python does: the script's folder is that of the file the link leads to."""
    script = write(tmp_path / "real", {"train.py": "import model", "model.py": ""})
    (tmp_path / "link.py").symlink_to(script)
    (tmp_path / "model.py").write_text("not = 'this'")
    assert read_code(tmp_path / "link.py") == read_code(script)


@pytest.mark.parametrize(("name", "limit"), [("MOST_FILES", 3), ("MOST_BYTES", 20)])
def test_a_library_is_not_a_trainer(name, limit, tmp_path, monkeypatch):
    names = [f"m{n}" for n in range(9)]
    script = write(
        tmp_path, {"train.py": f"import {', '.join(names)}"} | {f"{n}.py": "" for n in names}
    )
    assert len(read_code(script).names) == 10
    monkeypatch.setattr(materials, name, limit)
    with pytest.raises(ValueError, match="install them as a package"):
        read_code(script)


def as_link(copy, outside):
    copy.symlink_to(outside)


def of_links(copy, outside):
    (copy / "deep").mkdir(parents=True)
    (copy / "m.py").symlink_to(outside / "m.py")
    (copy / "pkg").symlink_to(outside)


def half_made(copy, outside):
    copy.mkdir()
    (copy / "train.py").write_text("half")
    (copy / "random.py").write_text("left by somebody")


@pytest.mark.parametrize("found", [as_link, of_links, half_made])
def test_the_copy_replaces_what_lies_there_and_follows_no_link(found, tmp_path):
    files = {"train.py": "import m, pkg", "m.py": "x = 1\n", "pkg/__init__.py": "x = 2\n"}
    code = read_code(write(tmp_path / "trainer", files))
    outside = {"m.py": "precious", "__init__.py": "precious"}
    write(tmp_path / "outside", outside)
    found(tmp_path / "copy", tmp_path / "outside")
    code.copy_to(tmp_path / "copy")
    assert {p.name: p.read_text() for p in (tmp_path / "outside").iterdir()} == outside
    copied = [p for p in (tmp_path / "copy").rglob("*") if p.is_file()]
    assert {p.relative_to(tmp_path / "copy").as_posix() for p in copied} == set(code.names)
    assert read_code(tmp_path / "copy" / "train.py").hash == code.hash


ONLY_AS_A_PROGRAM = ("run_aux.py", "ablation/cli/prerequisites.py")


def test_the_files_of_a_program_of_this_project_are_those_that_it_loads():
    code = (
        "import run_aux, ablation.plan.power, ablation.execute.preflight, sys;"  # on demand
        "print(*[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(file) for file in done.stdout.split()]
    loaded = {str(f.relative_to(ROOT)) for f in files if f.is_relative_to(ROOT / "ablation")}
    assert {*read_code(ROOT / "run_aux.py").names} == {*loaded, *ONLY_AS_A_PROGRAM}


# ---------------------------------------------------------------------------------------------
# Data


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    prepare.write_shard(folder / "x_train_000001.bin", bytes(range(250)) * 40)
    prepare.write_shard(folder / "x_val_000000.bin", bytes(range(250)))
    return folder


def record(folder):
    rows = [prepare.describe_shard(path) for path in sorted(folder.glob("*.bin"))]
    prepare.finish(folder, rows, 256, "a test")


def fingerprint(folder):
    return Materials(folder / "train.py", folder).data_fingerprint


def link_farm(folder, tmp_path):
    (tmp_path / "farm").mkdir()
    for path in folder.iterdir():
        (tmp_path / "farm" / path.name).symlink_to(path)
    return tmp_path / "farm"


def linked(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    return tmp_path / "linked"


MOVES = {
    "renamed": lambda folder, tmp_path: folder.rename(tmp_path / "renamed"),
    "copied": lambda folder, tmp_path: shutil.copytree(folder, tmp_path / "copied"),
    "behind a link": linked,
    "links to the files": link_farm,
}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("move", MOVES)
def test_the_fingerprint_is_of_the_data_wherever_it_lies(move, recorded, data, tmp_path, capsys):
    if recorded:
        record(data)
    before = fingerprint(data)
    assert before.startswith("sha256:" if recorded else "sampled-sha256:")
    assert fingerprint(MOVES[move](data, tmp_path)) == before


def other_bytes(data):
    with open(data / "x_train_000001.bin", "r+b") as file:
        file.seek(1030)
        file.write(b"\xff")


@pytest.mark.parametrize(
    "change",
    [
        other_bytes,
        lambda data: prepare.write_shard(data / "x_train_000002.bin", b"more"),
        lambda data: (data / "x_val_000000.bin").unlink(),
        lambda data: (data / "x_train_000001.bin").rename(data / "x_train_000003.bin"),
        lambda data: os.truncate(data / "x_train_000001.bin", 3000),
    ],
)
def test_other_data_is_another_fingerprint(change, data):
    before = fingerprint(data)
    change(data)
    assert fingerprint(data) != before


def test_a_fingerprint_of_other_shards_is_not_believed(data, capsys):
    record(data)
    before = fingerprint(data)
    prepare.write_shard(data / "x_train_000002.bin", b"more")
    assert fingerprint(data).startswith("sampled-sha256:")
    (data / "x_train_000002.bin").unlink()
    assert fingerprint(data) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda listed: [],
        lambda listed: {},
        lambda listed: listed | {"files": None},
        lambda listed: listed | {"files": 7},
        lambda listed: listed | {"files": [1]},
        lambda listed: listed | {"files": [{}]},
        lambda listed: listed | {"files": [row | {"name": ["x"]} for row in listed["files"]]},
        lambda listed: listed | {"files": [row | {"sha256": "0"} for row in listed["files"]]},
        lambda listed: listed | {"fingerprint": 7},
        lambda listed: listed | {"fingerprint": "sha256:made up"},
        lambda listed: listed | {"fingerprint": "\x1b[31m"},
        lambda listed: {k: v for k, v in listed.items() if k != "fingerprint"},
    ],
)
def test_a_fingerprint_file_that_prepare_did_not_write_is_one_line(edit, data, capsys):
    record(data)
    path = data / "fingerprint.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ValueError) as refused:
        fingerprint(data)
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
)
def test_what_is_no_file_among_the_shards_is_named(make, words, data):
    make(data / "x_train_000009.bin")
    with pytest.raises(ValueError, match=f"x_train_000009.bin: .*{words}"):
        fingerprint(data)


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "No such file"), ("train.bin", "Not a directory")]
)
def test_a_data_folder_that_cannot_be_read_is_named(name, words, tmp_path):
    (tmp_path / "train.bin").touch()
    with pytest.raises(ValueError, match=f"--data_dir .*{name}: {words}"):
        shards_in(tmp_path / name)


def test_a_shard_that_fails_while_it_is_read_is_named(data, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(ValueError, match=r"x_train_000001.bin: cannot be read \(Input/output"):
        fingerprint(data)


def test_a_copy_that_does_not_fit_is_one_line_and_leaves_no_half_of_a_file(tmp_path):
    """The limit on the size of files fails as a full disk does: in write(2), without a name."""
    script = write(tmp_path / "a", {"train.py": "import big", "big.py": f"'{'x' * 5000}'"})
    code, copy = read_code(script), tmp_path / "copy"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            code.copy_to(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert plain_words(caught.value).startswith(f"{copy / 'big.py'}: File too large; raise the")
    assert [path.name for path in copy.iterdir()] == ["train.py"]
    code.copy_to(copy)
    assert read_code(copy / "train.py").hash == code.hash
