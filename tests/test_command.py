"""The command of a run and its environment: what is launched, with whose Python, on which share."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.execute import command
from ablation.execute.command import build_command, extra_environment
from ablation.execute.machine import named_gpus
from ablation.runs.run import RunConfig
from tests.support.invent import arm, code_at, experiment

ROOT = Path(__file__).resolve().parents[1]
RUN = RunConfig(1, arm("aux_6", 6), 0, 1000, 10)


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.delenv("TORCHRUN", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def built(**changes):
    return build_command(experiment(**changes), RUN, code_at("t.py"), Path("d"), Path("log"))


def test_a_run_is_launched_with_this_python_on_this_machine_alone():
    words = built(processes=4)
    assert words[:3] == (sys.executable, "-m", "torch.distributed.run")
    options = words[3 : words.index("t.py")]
    assert options == (
        "--standalone", "--nnodes=1", "--local-addr=127.0.0.1", "--nproc_per_node=4",
        "--log-dir=/dev/null",
    )  # fmt: skip


def test_the_installed_torchrun_takes_these_options():
    from torch.distributed.run import parse_args

    args = parse_args(list(built(processes=4)[3:]))
    assert (args.standalone, args.nnodes, args.local_addr) == (True, "1", "127.0.0.1")
    assert (args.nproc_per_node, args.training_script) == ("4", "t.py")


def test_the_installed_torchrun_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    """It would make a folder for each run; and the exit code of a worker is told without one."""
    (tmp_path / "t.py").write_text("import os, sys\nprint('rank', os.environ['RANK'])\nsys.exit(2)")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    words = built(processes=2)
    command = [*words[: words.index("t.py")], str(tmp_path / "t.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(r"exitcode\s*: 2 ", done.stderr)
    assert done.stdout.count("rank") >= 1
    assert not list((tmp_path / "tmp").iterdir())


def program(folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("sh", ("sh",)),
        ("  ", (sys.executable, "-m", "torch.distributed.run")),
        ("{folder}/torchrun", ("{folder}/torchrun",)),
        ("{folder}/a b/torchrun", ("{folder}/a b/torchrun",)),
        ("'{folder}/a b/torchrun' --role=x", ("{folder}/a b/torchrun", "--role=x")),
        ("sh -m torch.distributed.run", ("sh", "-m", "torch.distributed.run")),
    ],
)
def test_the_variable_torchrun_names_a_program_or_words(tmp_path, monkeypatch, named, words):
    program(tmp_path, "torchrun")
    program(tmp_path / "a b", "torchrun")
    monkeypatch.setenv("TORCHRUN", named.format(folder=tmp_path))
    words = tuple(word.format(folder=tmp_path) for word in words)
    assert built()[: len(words) + 1] == (*words, "--standalone")
    command.check_torchrun()


@pytest.mark.parametrize("named", ["no_such_program", "/no/such/file", "no such words", "a'b", "/"])
def test_a_launcher_that_cannot_be_started_is_named_with_the_remedy(monkeypatch, named):
    monkeypatch.setenv("TORCHRUN", named)
    with pytest.raises(ValueError, match="unset TORCHRUN") as error:
        command.check_torchrun()
    assert f"TORCHRUN={named}:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("broken", [False, True])
def test_a_python_without_torch_is_named_with_the_remedy(monkeypatch, tmp_path, broken):
    place = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: place if broken else None)
    with pytest.raises(ValueError, match="pip install") as error:
        command.check_torchrun()
    assert sys.executable in str(error.value)


def test_looking_for_the_launcher_does_not_import_torch():
    code = (
        "import sys; from ablation.execute import command; command.check_torchrun();"
        "print('torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"


# ---------------------------------------------------------------------------------------------
# A run's share


@pytest.mark.parametrize(
    ("cores", "parallel_runs", "processes", "device", "threads"),
    [
        (16, 8, 1, "cuda", "2"),
        (16, 2, 4, "cuda", "2"),
        (16, 1, 4, "cuda", "4"),
        (4, 8, 1, "cuda", "1"),
        (16, 1, 1, "cuda", None),  # a run that has the machine to itself: torch's own choice
        (16, 4, 1, "cpu", "1"),  # mini asks for one thread at most
    ],
)
def test_cores_are_shared_by_all_processes_of_all_runs(
    tmp_path, cores, parallel_runs, processes, device, threads
):
    e = experiment(device=device, cores=cores, parallel_runs=parallel_runs, processes=processes)
    assert extra_environment(e, tmp_path).get("OMP_NUM_THREADS") == threads


def test_the_share_is_the_registered_one_not_this_machine_s(tmp_path):
    e = experiment(device="cuda", parallel_runs=8, cores=8 * (os.cpu_count() or 1) * 3)
    share = str(3 * (os.cpu_count() or 1))
    assert extra_environment(e, tmp_path)["OMP_NUM_THREADS"] == share


def test_a_job_has_its_share_from_slurm(tmp_path):
    e = experiment(device="cuda", parallel_runs=8, cores=16, launcher="slurm")
    assert not {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & extra_environment(e, tmp_path).keys()


@pytest.mark.parametrize(
    ("listed", "entries"),
    [
        ("", []),
        ("1,1", []),  # a device given twice: none at all
        ("2,+1,07x", ["2", "1", "7"]),
        ("0,GPU-8c1f", ["0"]),
        ("GPU-8c1f, GPU-99", ["GPU-8c1f"]),
        ("0,1", ["0", "1"]),
        (" 3 , 1 ", ["3", "1"]),
        ("1,0,", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("-1", []),
        ("0,,1", ["0"]),
        ("GPU-8c1f,GPU-99", ["GPU-8c1f", "GPU-99"]),
        ("MIG-11aa,MIG-22bb", ["MIG-11aa", "MIG-22bb"]),
        ("MIG-GPU-8c1f/1/0", ["MIG-GPU-8c1f/1/0"]),
    ],
)
def test_gpus_are_read_as_cuda_reads_them(listed, entries):
    assert named_gpus(listed) == entries


@pytest.mark.parametrize(
    ("listed", "each", "shares"),
    [
        (None, 1, ["0", "1", "2", "3"]),
        ("7,5,3,1", 1, ["7", "5", "3", "1"]),
        ("7, 5 ,3,1,-1,9", 2, ["7,5", "3,1"]),
        ("+7,05,3,1,GPU-a", 2, ["7,5", "3,1"]),  # what visible_gpus counts is what is shared
        ("GPU-a,GPU-b,GPU-c,GPU-d,", 2, ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
        ("MIG-a,MIG-b,MIG-c", 1, ["MIG-a", "MIG-b", "MIG-c"]),
    ],
)
def test_packed_runs_divide_the_gpus_that_a_person_chose(
    tmp_path, monkeypatch, listed, each, shares
):
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    e = experiment(device="cuda", processes=each, parallel_runs=len(shares))
    environments = [extra_environment(e, tmp_path, slot) for slot in range(e.share.parallel_runs)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments] == shares
