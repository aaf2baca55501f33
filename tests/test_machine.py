"""What the machine is found to have, and what the checkout is found to be."""

import contextlib
import os
import signal
import subprocess
import time

import pytest
import torch

from ablation.execute import machine
from ablation.execute.machine import Gpu, as_cuda_sees

# ---------------------------------------------------------------------------------------------
# GPUs: as CUDA understands its variable

WHOLE = (("H100", "GPU-aa11"), ("H100", "GPU-ab22"), ("H100", "GPU-bb33"))
DIVIDED = ("A100", "GPU-cc44", (("A100 MIG 3g", "MIG-dd55"), ("A100 MIG 1g", "MIG-de66")))


def gpu(name, uuid, instances=()):
    return Gpu(name, uuid, tuple(Gpu(*i) for i in instances))


GPUS = tuple(gpu(*row) for row in WHOLE)
MIXED = (*GPUS[:1], gpu(*DIVIDED))
ROWS = [  # CUDA_VISIBLE_DEVICES of three whole GPUs, and which are seen
    (None, "aa11 ab22 bb33"),
    ("", ""),
    (" ", ""),
    ("1", "ab22"),
    ("2,0", "bb33 aa11"),
    (" 2 , 0 ", "bb33 aa11"),
    ("0,2,-1,1", "aa11 bb33"),
    ("-1", ""),
    ("0,1,7,2", "aa11 ab22"),
    ("7", ""),
    ("0,,1", "aa11"),
    ("0,1,0", ""),
    ("00,0", ""),
    ("0,9,0", ""),
    ("0,-1,0", "aa11"),
    ("1gpu2,2ampere", "ab22 bb33"),
    ("+1", "ab22"),
    ("NoDevFiles", ""),
    ("void", ""),
    ("all", ""),
    ("GPU-bb33,GPU-aa11", "bb33 aa11"),
    ("GPU-bb", "bb33"),
    ("GPU-a", ""),
    ("GPU-aa, GPU-bb", "aa11"),
    ("GPU-aa ,GPU-bb", ""),
    (" GPU-aa", ""),
    ("GPU-aa,GPU-a,GPU-bb", "aa11"),
    ("GPU-aa,GPU-zz,GPU-bb", "aa11"),
    ("GPU-aa,GPU-aa11", ""),
    ("GPU-aa,GPU-aa", ""),
    ("GPU-aa,GPU-zz,GPU-aa", ""),
    ("GPU-bb,0", "bb33"),
    ("0,GPU-bb", "aa11"),
]


@pytest.mark.parametrize(("visible", "seen"), ROWS)
def test_entries_are_understood_as_cuda_understands_them(visible, seen):
    found = as_cuda_sees(GPUS, visible)
    assert " ".join(g.uuid.removeprefix("GPU-") for g in found) == seen


@pytest.mark.parametrize("visible", [row[0] for row in ROWS if row[0] is not None])
def test_torch_sees_the_same_gpus(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = torch.cuda._parse_visible_devices()
    if found and isinstance(found[0], str):
        found = torch.cuda._transform_uuid_to_ordinals(found, [g.uuid for g in GPUS])
    known = [n in range(len(GPUS)) for n in found]
    known.append(False)
    wanted = [GPUS[n] for n in found[: known.index(False)]]
    assert list(as_cuda_sees(GPUS, visible)) == wanted


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, "MIG-dd55"),  # of instances one, and no whole GPU beside it
        ("MIG-de66", "MIG-de66"),
        ("MIG-de", "MIG-de66"),
        ("MIG-d", ""),
        ("MIG-de66,MIG-dd55", "MIG-de66"),
        ("MIG-GPU-cc44/2/0", "MIG-dd55"),
        ("MIG-GPU-aa11/2/0", ""),
        ("MIG-zz", ""),
        ("1", "MIG-dd55"),
        ("0", "GPU-aa11"),
        ("GPU-cc44", "MIG-dd55"),
        ("GPU-aa11", "GPU-aa11"),
    ],
)
def test_of_divided_gpus_a_process_sees_one_instance(visible, seen):
    assert " ".join(g.uuid for g in as_cuda_sees(MIXED, visible)) == seen


# ---------------------------------------------------------------------------------------------
# GPUs: what nvidia-smi says, or fails to say

LISTED = """
GPU 0: NVIDIA H100 (UUID: GPU-aa11)
GPU 1: NVIDIA A100 (UUID: GPU-bb22)
  MIG 3g.20gb     Device  0: (UUID: MIG-cc33)
  MIG 1g.5gb      Device  1: (UUID: MIG-GPU-bb22/9/0)
"""
SMI = f"""#!/bin/sh
case "$1" in
-L) echo '{LISTED}' ;;
*) printf '0, GPU-aa11, NVIDIA H100\\n1, GPU-bb22, NVIDIA A100\\n' ;;
esac
"""
HANGS = "PATH=/usr/bin:/bin exec sleep 60"
BROKEN = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a program nvidia-smi, and no other, on the path of a machine without any driver."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(machine, "ROOT_FOLDER", tmp_path)
    monkeypatch.setattr(machine, "PATIENCE_S", 0.3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(script):
        path = tmp_path / "bin" / "nvidia-smi"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("GPU-aa", ("NVIDIA H100",)),
        ("MIG-cc", ("NVIDIA A100 MIG 3g.20gb",)),
        ("MIG-GPU-bb22/9/0", ("NVIDIA A100 MIG 1g.5gb",)),
        ("MIG-cc33,MIG-GPU-bb22/9/0", ("NVIDIA A100 MIG 3g.20gb",)),
        ("0", ("NVIDIA H100",)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_gpus_are_those_that_a_trainer_would_see(smi, monkeypatch, visible, names):
    smi(SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.visible_gpus() == names


def test_all_gpus_are_seen_where_nothing_was_chosen(smi):
    smi("printf '0, GPU-aa, H100, 80GB\\n1, GPU-bb, H100, 80GB\\n'")
    assert machine.visible_gpus() == ("H100, 80GB",) * 2


@pytest.mark.parametrize(
    "script",
    [None, "echo 'No devices were found'", "echo 'No devices were found'; exit 6"],
)
def test_a_machine_without_gpus_has_none(smi, script):
    if script:
        smi(script)
    assert machine.visible_gpus() == ()
    assert machine.visible_gpus(asked=2) == ()


ONE, LOST = "echo '0, GPU-a, H100'", "nvidia-smi: lists a GPU that it cannot name"
FAILURES = {
    "exit 9": "nvidia-smi: exit code 9: no words",
    BROKEN: "nvidia-smi: exit code 18: Failed to initialize NVML: Driver/library version mismatch",
    "printf '\\033[31mGPU is lost\\n' >&2; exit 15": "nvidia-smi: exit code 15: [31mGPU is lost",
    "echo 'Unable to determine the device handle'": "nvidia-smi: lists no GPU: Unable to determine",
    "true": "nvidia-smi: lists no GPU: nothing is printed",
    f"{ONE}; echo '[Unknown Error], [Unknown Error], x'": f"{LOST}: [Unknown Error], ",
    f"{ONE}; echo '[GPU is lost], [GPU is lost], x'": f"{LOST}: [GPU is lost], [GPU is lost], x",
    HANGS: "nvidia-smi: did not answer within 0.3 s",
    "#!/no/such/shell\n": "dev/nvidia0 is there, but no program nvidia-smi to ask",
    "": "dev/nvidia0 is there, but no program nvidia-smi to ask",
}


@pytest.mark.parametrize("script", FAILURES)
def test_a_gpu_tool_that_fails_is_quoted_and_the_number_asked_for(smi, script, tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    if script:
        smi(script)
    with pytest.raises(ValueError, match="give --num_gpus N") as refused:
        machine.visible_gpus()
    assert FAILURES[script] in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("script", ["exit 9", HANGS])
def test_who_says_how_many_gpus_there_are_is_believed_where_the_tool_fails(smi, script):
    smi(script)
    names = machine.visible_gpus(asked=2)
    assert len(names) == 2 and names[0].startswith("unknown (nvidia-smi: ")
    assert machine.visible_gpus(asked=0) == ()


def test_a_program_that_is_asked_ends_with_the_question(smi, tmp_path, monkeypatch):
    smi(f"echo $$ > {tmp_path}/pid; {HANGS}")
    ask_once = subprocess.Popen.communicate

    def interrupted(asked, timeout=None):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.visible_gpus()
    monkeypatch.setattr(subprocess.Popen, "communicate", ask_once)
    pid = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ChildProcessError):  # it has been waited for: it ended
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_instances_that_cannot_be_listed_are_not_taken_for_none(smi, monkeypatch):
    smi(SMI.replace("echo '", "exit 4; echo '"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cc33")
    with pytest.raises(ValueError, match="exit code 4"):
        machine.visible_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa11")
    assert machine.visible_gpus() == ("NVIDIA H100",)


def test_a_tool_is_not_asked_where_its_answer_could_not_matter(smi, monkeypatch):
    smi("exit 9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.visible_gpus() == ()


def test_called_programs_get_the_environment_of_this_project(smi, monkeypatch):
    smi("""[ -z "$GIT_DIR$PET_NNODES" ] && [ -n "$KEPT" ] && printf '0, GPU-aa, H100\\n'""")
    monkeypatch.setenv("GIT_DIR", "elsewhere")
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("KEPT", "yes")
    assert machine.visible_gpus() == ("H100",)


# ---------------------------------------------------------------------------------------------
# Processor and packages


@pytest.mark.parametrize(
    ("own", "quotas", "allowed"),
    [
        ("0::/", {"": "max 100000"}, 8),
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "150000 100000"}, 2),  # a core and a half keep two threads busy
        ("0::/", {"": "10000 100000"}, 1),
        ("0::/", {"": "1600000 100000"}, 8),
        ("0::/a/b", {"a": "300000 100000", "a/b": "max 100000"}, 3),
        ("0::/a/b", {"a": "300000 100000", "a/b": "100000 100000"}, 1),
        ("0::/of/the/host", {"": "400000 100000"}, 4),  # not visible from inside a container
        ("9:cpu:/x\n0::/a", {"a": "500000 100000"}, 5),
        ("", {}, 8),
        ("0::/", {"": "nonsense"}, 8),
    ],
)
def test_cores_are_those_that_affinity_and_quota_leave(tmp_path, monkeypatch, own, quotas, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text(own + "\n")
    for group, quota in quotas.items():
        (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / group / "cpu.max").write_text(quota + "\n")
    assert machine.cores() == allowed


@pytest.mark.parametrize("failure", [None, KeyError("Version"), TypeError("no metadata")])
def test_a_package_that_is_broken_is_said_to_be(monkeypatch, failure):
    def version(_):
        if failure:
            raise failure

    monkeypatch.setattr(machine.metadata, "version", version)
    assert machine.versions()["torch"] == "unreadable"


# ---------------------------------------------------------------------------------------------
# The checkout


def git(folder, *arguments):
    person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *person, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


OURS = "ablation/execute/machine.py"  # by which a repository is known to be this project's


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with our files, and its commit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "checkout"
    (root / "experiments").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / OURS).parent.mkdir(parents=True)
    names = (OURS, "run_aux.py", "README.md", "requirements.txt", "tests/test_a.py")
    for name in names:
        (root / name).write_text(f"# {name}\n")
    (root / "experiments" / ".gitkeep").touch()
    (root / ".gitignore").write_text("data/*/\n.venv/\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "all")
    return root, git(root, "rev-parse", "HEAD")


def edit(name):
    def change(root):
        (root / name).write_text("changed = True\n")

    return change


def moved_experiments(root):
    (root / "experiments" / ".gitkeep").unlink()
    (root / "experiments").rmdir()
    (root / "experiments").symlink_to(root.parent)


CHANGES = {  # what somebody did: is what would run another than the commit's?
    "nothing": (lambda root: None, False),
    "a program": (edit("run_aux.py"), True),
    "a file of the package": (edit(OURS), True),
    "the requirements": (edit("requirements.txt"), True),
    "a program removed": (lambda root: (root / "run_aux.py").unlink(), True),
    "a program staged": (lambda root: (edit("run_aux.py")(root), git(root, "add", ".")), True),
    "a program touched": (lambda root: os.utime(root / "run_aux.py", (0, 0)), False),
    "an executable bit": (lambda root: (root / "run_aux.py").chmod(0o755), False),
    "the README": (edit("README.md"), False),
    "a test": (edit("tests/test_a.py"), False),
    "a new trainer": (edit("my_trainer.py"), False),  # its bytes are registered by themselves
    "a link where a folder is ignored": (lambda r: (r / ".venv").symlink_to(r.parent), False),
    "experiments on another disk": (moved_experiments, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_uncommitted_is_what_would_run_otherwise(checkout, change):
    root, commit = checkout
    act, dirty = CHANGES[change]
    act(root)
    assert machine.git_state(root) == {"commit": commit, "dirty": dirty}


def unpacked(tmp_path, inside):
    folder = inside / "ablation-main"
    (folder / OURS).parent.mkdir(parents=True)
    (folder / OURS).write_text("# ours\n")
    return folder


def test_the_commit_of_somebody_elses_repository_is_not_recorded(checkout, tmp_path):
    theirs, _ = checkout
    folder = unpacked(tmp_path, theirs)
    found = machine.git_state(folder)
    assert (found["commit"], found["dirty"]) == ("", None)
    assert "not in 'HEAD'" in found["why"]
    git(theirs, "add", ".")  # staged is not committed
    assert machine.git_state(folder)["commit"] == ""


def test_a_repository_that_has_our_files_in_a_folder_is_recorded(checkout, tmp_path):
    theirs, _ = checkout
    folder = unpacked(tmp_path, theirs)
    git(theirs, "add", ".")
    git(theirs, "commit", "-m", "vendored")
    edit("run_aux.py")(theirs)  # theirs, not ours
    commit = git(theirs, "rev-parse", "HEAD")
    assert machine.git_state(folder) == {"commit": commit, "dirty": False}


def test_a_worktree_is_a_checkout(checkout, tmp_path):
    root, commit = checkout
    git(root, "worktree", "add", str(tmp_path / "second"))
    assert machine.git_state(tmp_path / "second") == {"commit": commit, "dirty": False}


def test_variables_of_git_do_not_lead_elsewhere(checkout, tmp_path, monkeypatch):
    root, _ = checkout
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("GIT_DIR", str(root / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(root))
    assert machine.git_state(other)["commit"] == ""


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "no program git"),
        ("echo 'fatal: detected dubious ownership' >&2; exit 128", "dubious ownership"),
        ("exec sleep 60", "did not answer"),
    ],
)
def test_a_git_that_does_not_answer_is_no_commit_and_says_why(tmp_path, monkeypatch, script, why):
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "PATIENCE_S", 0.3)
    found = machine.git_state(tmp_path)
    assert (found["commit"], found["dirty"]) == ("", None)
    assert why in found["why"]


def test_where_git_takes_too_long_to_compare_the_commit_is_kept(checkout, monkeypatch, tmp_path):
    root, commit = checkout
    (tmp_path / "git").write_text(
        f"#!/bin/sh\ncase $* in *status*) exec sleep 60;; esac\necho {commit} blob\n"
    )
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "PATIENCE_S", 0.5)
    assert machine.git_state(root) == {"commit": commit, "dirty": None}


def test_asking_changes_nothing_in_the_repository(checkout):
    root, _ = checkout
    os.utime(root / "run_aux.py", (0, 0))
    before = (root / ".git" / "index").read_bytes()
    machine.git_state(root)
    assert (root / ".git" / "index").read_bytes() == before
