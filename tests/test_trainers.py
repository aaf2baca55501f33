"""Which code does each arm run?  Real files and real git repositories."""

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.folder.materials import read_code, read_copy
from ablation.folder.repository import unpacked
from ablation.folder.trainers import codes_of, faults_of, filled, has_placeholders
from ablation.runs.run import Arm, Replacement
from ablation.study.heads import HEADS
from ablation.study.study import Study, Trainer

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "import model\nsteps = 100\nlr = 0.1\nprint(model.act, steps)\n"
FILES = {"train.py": TRAIN, "model.py": "act = 'relu'\n"}


def write(folder: Path, files: dict) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def study(folder: Path, *arms: Arm, base=(), refinements=(), **trainer) -> Study:
    return Study(
        name="mine",
        question="?",
        trainer=Trainer(**{"command": ("train.py",), "folder": str(folder)} | trainer),
        base=Arm("baseline", replacements=base),
        arms=arms,
        refinements=refinements,
    )


def replaced(name, *changes, file="train.py", **more) -> Arm:
    texts = tuple(Replacement(file, old, new) for old, new in changes)
    return Arm(name, replacements=texts, **more)


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path):
    """A repository whose branch `gelu` and tag `v1` differ from its last commit."""
    folder = write(tmp_path / "repo", FILES)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    git(folder, "checkout", "-qb", "gelu")
    write(folder, {"model.py": "import extra\nact = 'gelu'\n", "extra.py": "x = 1\n"})
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "gelu")
    git(folder, "tag", "v1")
    git(folder, "checkout", "-q", "main")
    return folder


def state(folder):
    """Everything below a folder, git's own files too."""
    return {
        path.relative_to(folder): (found.st_mtime_ns, found.st_size, found.st_mode)
        for path in folder.rglob("*")
        if (found := path.lstat())
    }


def code(s: Study, arm: Arm | None = None):
    return codes_of(s)[(arm or s.baseline()).trainer]


# ---------------------------------------------------------------------------------------------
# What runs


def test_the_built_in_study_runs_the_file_that_it_always_ran():
    codes = codes_of(HEADS)
    assert {*codes} == {()}
    assert codes[()] == read_code(ROOT / "train_gpt.py")


def test_another_script_in_place_of_the_trainer_is_named_as_it_always_was():
    script = ROOT / "tests" / "support" / "fake_train.py"
    assert codes_of(HEADS, script)[()] == read_code(script)


def test_another_script_for_a_study_of_a_file(tmp_path):
    write(tmp_path / "mine", FILES)
    other = write(tmp_path / "other", {"mine.py": "steps = 100\n"}) / "mine.py"
    arm = replaced("wide", ("steps = 100", "steps = 7"))
    for folder, name in (("mine", "mine.py"), (".", "other/mine.py")):
        s = study(tmp_path / folder, arm)
        assert faults_of(s, other) == []
        assert codes_of(s, other)[arm.trainer].files == ((name, b"steps = 7\n"),)


def test_arms_of_one_trainer_are_one_code_and_others_have_their_own(tmp_path):
    write(tmp_path, FILES | {"gated.py": "import model\ngate = 1\n"})
    arms = (
        Arm("low_lr", (("lr", 0.02),)),
        Arm("warm", env=(("WARMUP", "100"),)),
        Arm("gated", script="gated.py"),
        replaced("wide", ("steps = 100", "steps = 120")),
    )
    codes = codes_of(study(tmp_path, *arms))
    assert [c.names for c in codes.values()] == [
        ("train.py", "model.py"),
        ("gated.py", "model.py"),
        ("train.py", "model.py"),
    ]
    assert len({c.hash for c in codes.values()}) == 3
    assert b"steps = 120" in codes[arms[3].trainer].files[0][1]
    assert (tmp_path / "train.py").read_text() == TRAIN


def test_every_configuration_of_a_plan_has_its_code(tmp_path):
    arms = replaced("wide", ("steps = 100", "steps = 120")), Arm("low", (("lr", 1),))
    refinement = replaced("slow", ("lr = 0.1", "lr = 0.01"))
    s = study(write(tmp_path, FILES), *arms, refinements=(refinement,))
    codes = codes_of(s)
    for arm in (s.baseline(), *s.screened, *s.arms, *s.refined_arms(arms[0])):
        assert arm.trainer in codes, arm
    both = codes[s.refined(arms[0], refinement).trainer].files[0][1]
    assert b"steps = 120" in both and b"lr = 0.01" in both


def test_replacements_of_the_base_are_in_every_arm_also_in_another_script(tmp_path):
    write(tmp_path, FILES | {"gated.py": "steps = 100\n"})
    arms = (Arm("gated", script="gated.py"), replaced("wide", ("steps = 7", "steps = 70")))
    s = study(tmp_path, *arms, base=(Replacement("train.py", "steps = 100", "steps = 7"),))
    codes = codes_of(s)
    assert b"steps = 7\n" in codes[()].files[0][1]
    assert codes[arms[0].trainer].files == (("gated.py", b"steps = 7\n"),)
    assert b"steps = 70\n" in codes[arms[1].trainer].files[0][1]


def test_a_replacement_may_bring_an_import_and_be_in_an_imported_file(tmp_path):
    write(tmp_path, FILES | {"gelu.py": "act = 'gelu'\n"})
    arm = replaced("gelu", ("act = 'relu'", "from gelu import act"), file="model.py")
    found = code(study(tmp_path, arm), arm)
    assert found.names == ("train.py", "gelu.py", "model.py")


@pytest.mark.parametrize(
    ("contents", "old", "new", "expected"),
    [
        (b"a = 1\r\nb = 2\r\n", "a = 1\nb", "a = 3\nb", b"a = 3\r\nb = 2\r\n"),
        (b"a = 1\r\n", "a = 1", "a = 3\nb = 4", b"a = 3\r\nb = 4\r\n"),
        (b"# coding: latin-1\na = '\xe9'\n", "a = ", "b = ", b"# coding: latin-1\nb = '\xe9'\n"),
        ("a = 'é'\n".encode(), "é", "ü", "a = 'ü'\n".encode()),
        (b"a = f'{seed} {x}'\n", "a = ", "b = ", b"b = f'{seed} {x}'\n"),
    ],
)
def test_bytes_beside_a_replacement_stay_as_they_are(contents, old, new, expected, tmp_path):
    arm = replaced("other", (old, new))
    found = code(study(write(tmp_path, {"train.py": contents}), arm), arm)
    assert found.files[0][1] == expected
    assert not has_placeholders(found)


def test_a_run_gets_its_own_copy_where_a_replacement_has_its_seed(tmp_path):
    text = "steps = 100\nname = f'{seed}'\n"
    base = (Replacement("train.py", "steps = 100", "steps, s = {num_iterations}, 0.{seed}"),)
    s = study(write(tmp_path, {"train.py": text}), base=base)
    template = code(s)
    assert has_placeholders(template)
    mine = filled(template, {"num_iterations": 42, "seed": 7})
    assert mine.files[0][1] == b"steps, s = 42, 0.7\nname = f'{seed}'\n"
    assert filled(template, {"num_iterations": 42, "seed": 8}).hash != mine.hash
    assert code(s).hash == template.hash


COMMANDS = {
    "script": (("train.py", "--x"), "torchrun", "train.py model.py"),
    "python and a script": (("python3", "train.py"), "plain", "train.py model.py"),
    "file of a module": (("python", "-m", "one"), "plain", "one.py model.py"),
    "package": (
        ("python", "-m", "pkg"),
        "torchrun",
        "pkg/__main__.py model.py pkg/__init__.py pkg/net.py",
    ),
    "module of a package": (
        ("-m", "pkg.train"),
        "plain",
        "pkg/train.py pkg/__init__.py pkg/net.py",
    ),
    "module of a folder": (("-m", "ns.train"), "plain", "ns/train.py"),
    "in a folder": (("src/train.py",), "plain", "src/train.py src/model.py"),
    "shell": (("bash", "-e", "train.sh", "train.py"), "command", "train.sh model.py train.py"),
    "a long word": (("train.py", "x" * 5000, "", "."), "plain", "train.py model.py"),
    "a program": (("./train.sh",), "command", "train.sh"),
    "as it stands": (("python", "-u", "train.py"), "command", "train.py model.py"),
    "module, as it stands": (
        ("env", "python", "-m", "pkg.train"),
        "command",
        "pkg/train.py pkg/__init__.py pkg/net.py",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_files_of_a_command_are_found(name, tmp_path):
    command, launch, names = COMMANDS[name]
    files = FILES | {"one.py": "import model\n", "train.sh": "#!/bin/sh\npython train.py\n"}
    files |= {"pkg/__init__.py": "", "pkg/__main__.py": "import model\nfrom . import net\n"}
    files |= {"pkg/net.py": "", "pkg/train.py": "from .net import *\n", "ns/train.py": ""}
    files |= {"src/train.py": "import model\n", "src/model.py": ""}
    s = study(write(tmp_path, files), command=command, launch=launch)
    assert faults_of(s) == []
    assert code(s).names == tuple(names.split())


def test_a_trainer_above_the_study_is_named_from_its_own_folder(tmp_path):
    write(tmp_path, FILES | {"studies/mine.toml": ""})
    arm = replaced("wide", ("steps = 100", "steps = 1"), file="../train.py")
    other = replaced("act", ("relu", "gelu"), file="../model.py")
    s = study(tmp_path / "studies", arm, other, command=("../train.py",))
    assert faults_of(s) == []
    assert code(s, arm).names == ("train.py", "model.py")
    assert b"gelu" in dict(code(s, other).files)["model.py"]


def test_companions_are_files_of_any_kind_and_folders(tmp_path):
    files = {"conf/a.yaml": "x: 1", "conf/.hidden": "", "tokens.bin": b"\0\xff", "tool.py": ""}
    files |= {"late.py": "import tool\n"}
    s = study(write(tmp_path, FILES | files), companions=("conf", "tokens.bin", "late.py"))
    names = ("train.py", "conf/a.yaml", "late.py", "model.py", "tokens.bin", "tool.py")
    assert code(s).names == names


def test_a_copy_is_what_was_read_and_its_programs_can_be_started(tmp_path):
    files = {"train.sh": "#!/bin/sh\necho hello\n", "a/b.txt": "b"}
    s = study(
        write(tmp_path / "mine", files),
        command=("./train.sh",),
        launch="command",
        companions=("a/b.txt",),
    )
    found, copy = code(s), tmp_path / "copy"
    found.copy_to(copy)
    assert read_copy(copy, found.names).hash == found.hash
    assert subprocess.check_output([copy / "train.sh"]) == b"hello\n"
    (copy / "a" / "b.txt").write_text("edited")
    assert read_copy(copy, found.names).hash != found.hash
    (copy / "a" / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
        read_copy(copy, found.names)


def test_a_copy_is_read_from_the_folder_that_it_lies_in(tmp_path, monkeypatch):
    """--exp_dir is often given relative to where a person stands."""
    write(tmp_path / "code", {"train.py": "import rates\n", "rates.py": "RATE = 1\n"})
    found = read_code(tmp_path / "code" / "train.py")
    monkeypatch.chdir(tmp_path)
    assert read_copy(Path("code"), found.names).hash == found.hash


# ---------------------------------------------------------------------------------------------
# A commit of the trainer's own repository


@pytest.mark.parametrize("revision", ["gelu", "v1", "main~0^{commit}", "gelu^0"])
def test_a_revision_is_the_trainer_as_it_was_committed(revision, repository):
    before = state(repository)
    arm = Arm("other", (("x", 1),), revision=revision)
    s = study(repository, arm)
    assert faults_of(s) == []
    found = code(s, arm)
    if revision.startswith("main"):
        assert found.hash == code(s).hash
    else:
        assert found.names == ("train.py", "extra.py", "model.py")
        assert dict(found.files)["model.py"] == b"import extra\nact = 'gelu'\n"
    assert state(repository) == before  # no file was written, git's own neither


def test_a_commit_by_its_hash_and_a_replacement_over_it(repository):
    arm = replaced("both", ("gelu", "silu"), file="model.py", revision="")
    arm = replace(arm, revision=git(repository, "rev-parse", "gelu")[:12])
    assert b"silu" in dict(code(study(repository, arm), arm).files)["model.py"]


def test_a_repository_in_a_parent_folder(repository):
    write(repository, {"lab/train.py": "import net\n", "lab/net.py": "w = 1\n"})
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "lab")
    git(repository, "branch", "narrow")
    write(repository, {"lab/net.py": "w = 2\n"})
    git(repository, "commit", "-qam", "wide")
    arm = Arm("narrow", revision="narrow")
    for folder, command in ((repository / "lab", "train.py"), (repository, "lab/train.py")):
        s = study(folder, arm, command=(command,))
        assert faults_of(s) == []
        assert code(s, arm).files[1][1] == b"w = 1\n"
        assert code(s, arm).names == code(s).names


def test_a_script_that_the_study_lies_below_at_a_revision(repository):
    write(repository, {"studies/mine.toml": ""})
    arm = Arm("gelu", revision="gelu")
    s = study(repository / "studies", arm, command=("../train.py",))
    assert faults_of(s) == []
    assert b"gelu" in dict(code(s, arm).files)["model.py"]


def test_a_module_at_a_revision(repository):
    arm = Arm("gelu", revision="gelu")
    s = study(repository, arm, command=("python", "-m", "train"))
    assert code(s, arm).names == ("train.py", "extra.py", "model.py")


def test_the_settings_of_a_hook_do_not_lead_to_another_repository(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    arm = Arm("gelu", revision="gelu")
    assert faults_of(study(repository, arm)) == []


@pytest.mark.parametrize("absent", [False, True])
def test_a_submodule_is_named_where_a_revision_does_not_bring_it(absent, repository, tmp_path):
    sub = write(tmp_path / "sub", {"kernels.py": ""})
    git(sub, "init", "-q")
    git(sub, "add", "-A")
    git(sub, "commit", "-qm", "kernels")
    git(repository, "submodule", "add", "-q", str(sub), "sub")
    write(repository, {"train.py": "import sub.kernels\n"})
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "with a submodule")
    if absent:
        git(repository, "submodule", "deinit", "-f", "sub")
    arm = Arm("now", revision="main")
    codes = codes_of(study(repository, arm))
    assert ("sub/kernels.py" in codes[()].names) is not absent
    notes = codes[arm.trainer].left_out
    assert any(note.startswith("train.py, line 1: imports sub.kernels") for note in notes)
    assert "sub: a submodule, which a revision does not bring" in notes


# ---------------------------------------------------------------------------------------------
# What is refused: everything at once, with key, value and remedy


def edit(folder, name="train.py"):
    (folder / name).write_text("edited = 1\n")


def untrack(folder):
    write(folder, {"train.py": "import new\n", "new.py": "", ".gitignore": "new.py\n"})
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "new")


REFUSED_REVISIONS = {
    "misspelt": ("geluu", None, "arms.other.revision: geluu is no commit of {top} (perhaps gelu);"),
    "no name": ("--all", None, "arms.other.revision: '--all' is no revision; give a branch"),
    "dirty script": ("gelu", edit, "trainer: train.py is not as it was committed, and arms.other"),
    "dirty import": ("gelu", lambda f: edit(f, "model.py"), "trainer: model.py is not as it was"),
    "ignored import": ("gelu", untrack, "trainer: new.py is not as it was committed"),
    "a tree": ("gelu:model.py", None, "arms.other.revision: gelu:model.py is no commit of {top};"),
}


@pytest.mark.parametrize("name", REFUSED_REVISIONS)
def test_a_revision_that_cannot_be_compared_is_one_line(name, repository):
    revision, prepare, told = REFUSED_REVISIONS[name]
    if prepare:
        prepare(repository)
    (fault,) = faults_of(study(repository, Arm("other", revision=revision)))
    assert fault.startswith(told.format(top=repository))
    assert fault.isprintable()


def test_edits_do_not_matter_where_no_arm_is_a_revision(repository):
    edit(repository)
    assert faults_of(study(repository, Arm("low", (("lr", 1),)))) == []


def test_a_companion_that_is_not_committed(repository):
    write(repository, {"tokens.bin": b"1"})
    s = study(repository, Arm("other", revision="gelu"), companions=("tokens.bin",))
    missing, dirty = faults_of(s)
    assert missing.startswith("trainer.companions[0]: there is no tokens.bin in ")
    assert f"{repository} at gelu" in missing
    assert dirty.startswith("trainer: tokens.bin is not as it was committed")


def test_no_repository_and_no_git(tmp_path, repository, monkeypatch):
    s = study(write(tmp_path / "plain", FILES), Arm("other", revision="gelu"))
    (fault,) = faults_of(s)
    assert fault.startswith("arms.other.revision: git rev-parse in")
    assert "not a git repository" in fault
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = faults_of(study(repository, Arm("other", revision="gelu")))
    assert fault == "arms.other.revision: there is no program git here; install it"


def test_a_tree_that_git_cannot_write_is_told_in_its_words(repository):
    write(repository, {".gitattributes": "*.py filter=gone\n"})
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "filtered")
    git(repository, "config", "filter.gone.smudge", "no-such-program")
    git(repository, "config", "filter.gone.required", "true")
    (fault,) = faults_of(study(repository, Arm("other", revision="main~0")))
    assert fault.startswith(f"arms.other.revision: git archive in {repository}: ")
    assert "smudge filter gone failed" in fault


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("../a",)])
def test_nothing_is_unpacked_behind_a_link_or_above(names, tmp_path):
    write(tmp_path, {"precious/b": "precious"})
    tree, folder = tmp_path / "tree.tar", tmp_path / "folder"
    folder.mkdir()
    with tarfile.open(tree, "w") as archive:
        link = tarfile.TarInfo(names[0])
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "precious")
        archive.addfile(link)
        for name in names[1:]:
            archive.addfile(tarfile.TarInfo(name))
    with tarfile.open(tree) as archive, pytest.raises(ValueError, match="behind a link"):
        unpacked(archive, folder)
    assert (tmp_path / "precious" / "b").read_text() == "precious"


def test_a_script_that_a_revision_does_not_have(repository):
    write(repository, {"new.py": ""})
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "new")
    (fault,) = faults_of(study(repository, Arm("other", revision="gelu"), command=("new.py",)))
    assert fault.startswith(f"arms.other.revision: {repository} at gelu/new.py: no such file")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("steps = 5", "x"), "arms.a.replace[0].find: occurs 0 times in train.py, not once; give"),
        (("steps", "x"), "arms.a.replace[0].find: occurs 2 times in train.py, not once; give more"),
        (("", "x"), "arms.a.replace[0].find: occurs 0 times in train.py"),
    ],
)
def test_a_text_that_does_not_occur_once(change, told, tmp_path):
    arm = replaced("a", change)
    (fault,) = faults_of(study(write(tmp_path, FILES), arm))
    assert fault.startswith(told)


def test_overlapping_occurrences_are_two(tmp_path):
    arm = replaced("a", ("0, 0", "1"))
    (fault,) = faults_of(study(write(tmp_path, {"train.py": "x = 0, 0, 0\n"}), arm))
    assert "occurs 2 times" in fault


def test_the_second_replacement_sees_what_the_first_made(tmp_path):
    arm = replaced("a", ("steps = 100", "steps = 7"), ("steps = 100", "x"))
    (fault,) = faults_of(study(write(tmp_path, FILES), arm))
    assert fault.startswith("arms.a.replace[1].find: occurs 0 times in train.py")


def test_all_faults_are_told_at_once(tmp_path):
    write(tmp_path, FILES | {"bad.py": "def f(:", "copy.py": TRAIN})
    arms = (
        Arm("gone", script="gone.py"),
        Arm("bad", script="bad.py"),
        replaced("elsewhere", ("a", "b"), file="other.py"),
        replaced("syntax", ("steps = 100", "steps = (")),
        Arm("copied", script="copy.py"),
        Arm("off", (("x", False),)),
    )
    refinements = (replaced("deep", ("lr", "x"), ("no such", "x")),)
    s = study(tmp_path, *arms, refinements=refinements, companions=("lost.txt", "../far.txt"))
    told = [
        "trainer.companions[0]: there is no lost.txt in ",
        "trainer.companions[1]: ../far.txt is not below ",
        "arms.gone.script: ",
        "arms.bad.script: ",
        "arms.elsewhere.replace[0].file: other.py is none of the files that run (train.py, model.",
        "arms.syntax.replace: ",
        "refinements.deep.replace[1].find: occurs 0 times in train.py",
        "arms.copied: the same code and the same settings as the baseline; leave it out",
        "arms.off: the same code and the same settings as the baseline; leave it out",
    ]
    faults = faults_of(s)
    for line in told:
        assert any(fault.startswith(line) for fault in faults), line
    assert all(fault.isprintable() for fault in faults)
    with pytest.raises(ValueError) as refused:
        codes_of(s)
    assert (
        str(refused.value).split("\n") == faults[:-2]
    )  # of code; what runs twice is no fault of it


@pytest.mark.parametrize(
    ("command", "launch", "told"),
    [
        (("gone.py",), "torchrun", "gone.py: no such file; give the trainer's file"),
        (("pkg",), "torchrun", "pkg: not a regular file"),
        (("python", "-m", "gone"), "plain", "-m gone: there is no gone in /"),
        (("python", "-m", "json"), "plain", "-m json: there is no json in /"),
        (("python", "-m", "pkg"), "plain", "-m pkg: there is no pkg.__main__ in /"),
        (("python", "-u", "train.py"), "plain", "-u: an option of Python's own; leave it out"),
        (("bash", "gone.sh"), "command", "gone.sh: no such file"),
        (("make", "train"), "command", "make train: names no script and no module; name one"),
        (("python",), "plain", "nothing: names no script"),
    ],
)
def test_a_command_that_starts_nothing(command, launch, told, tmp_path):
    write(tmp_path, FILES | {"pkg/__init__.py": ""})
    (fault,) = faults_of(study(tmp_path, Arm("low", (("lr", 1),)), command=command, launch=launch))
    assert fault.startswith("trainer.command: ")
    assert told in fault


@pytest.mark.parametrize("name", ["my file.txt", "a..b", "ta\tb"])
def test_a_name_that_cannot_be_registered(name, tmp_path):
    (fault,) = faults_of(study(write(tmp_path, FILES | {name: ""}), companions=(name,)))
    assert fault.startswith("trainer: '") and "cannot be registered; rename it" in fault
    assert fault.isprintable()


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path, {"outside.py": ""})
    write(tmp_path / "mine", FILES)
    (tmp_path / "mine" / "model.py").unlink()
    (tmp_path / "mine" / "model.py").symlink_to(tmp_path / "outside.py")
    (fault,) = faults_of(study(tmp_path / "mine"))
    assert fault.startswith(f"trainer.command: {tmp_path}/mine/model.py is a link out of")


def test_a_link_out_of_a_revision_is_refused(repository):
    (repository / "model.py").unlink()
    (repository / "model.py").symlink_to("/etc/hostname")
    git(repository, "commit", "-qam", "link")
    git(repository, "branch", "linked")
    git(repository, "reset", "-q", "--hard", "HEAD~1")
    (fault,) = faults_of(study(repository, Arm("other", revision="linked")))
    assert fault.startswith(f"arms.other.revision: {repository} at linked/model.py is a link out")


def test_nothing_is_executed_to_find_out(tmp_path):
    text = "import pathlib\npathlib.Path('ran').touch()\n"
    files = {"train.py": text, "pkg/__init__.py": text, "pkg/__main__.py": text}
    os_before = set(sys.modules)
    for command in (("train.py",), ("-m", "pkg")):
        assert faults_of(study(write(tmp_path, files), command=command)) == []
    assert not (tmp_path / "ran").exists() and not os.path.exists("ran")
    assert set(sys.modules) == os_before
