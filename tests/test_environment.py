"""What a machine's settings do to each program: one row each, and a new row needs no new code.

A row is a name, a command, settings, and what must hold: the exit code, a pattern in what is
printed or complained, and files that are there afterwards. In every row: no traceback, and an end.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ablation.cli import prerequisites
from ablation.execute import environment

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
UNREAD = (  # a program whose output is a pipe that nobody reads any more
    "import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.close(r);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
REPORT_FILES = ("analysis_report.txt",)


@dataclass(frozen=True)
class Row:
    what: str
    command: str  # a line for bash; words in braces are those of `words` below
    env: dict[str, str | None] = field(default_factory=dict)  # None: unset
    code: int = 0
    prints: str = ""  # on standard output
    complains: str = ""  # on standard error; empty: nothing at all
    ok: int | None = None  # runs with result ok, of the new experiment
    wrote: tuple[str, ...] = ()  # files of the finished experiment


RUN = "{run} --experiment baseline --full_iterations 8 {fake}"
ONE_OK = {"prints": "1 ok", "ok": 1}
REAL = {"TORCHRUN": None}  # torch's own launcher, with the trainer that trains nothing
OF_TORCHRUN = {
    **{"PET_NNODES": "2", "PET_RDZV_BACKEND": "static", "PET_MAX_RESTARTS": "3"},
    **{"PET_NPROC_PER_NODE": "7", "PET_LOG_DIR": "/no/such/place", "PET_REDIRECTS": "3"},
    **{"MASTER_ADDR": "10.9.8.7", "MASTER_PORT": "1", "RANK": "5", "WORLD_SIZE": "9"},
    **{"LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "other", "TORCHELASTIC_USE_AGENT_STORE": "x"},
    **{"LOGLEVEL": "nonsense", "PYTHON_EXEC": "/bin/false", "PYTHONWARNINGS": "default"},
}
NOTEBOOK = "module://matplotlib_inline.backend_inline"

ROWS = [
    # streams
    Row("standard error closed", RUN + " 2>&-", **ONE_OK),
    Row("standard input closed", RUN + " <&-", **ONE_OK),
    Row("standard input that never ends", RUN + " </dev/zero", **ONE_OK),
    Row("a reader that has left", "{unread} " + RUN, ok=1),
    # a shell's settings
    Row("no HOME", RUN, {"HOME": None}, **ONE_OK),
    Row("a HOME that is not there", RUN, {"HOME": "/no/such/place"}, **ONE_OK),
    Row("no TERM", RUN, {"TERM": None}, **ONE_OK),
    Row("a terminal without lines", RUN, {"COLUMNS": "0", "LINES": "0"}, **ONE_OK),
    Row("hardly a variable", "env -i PATH=/usr/bin:/bin {fakes} " + RUN, **ONE_OK),
    Row("a current folder that takes no files", "cd /proc; " + RUN + " {elsewhere}", **ONE_OK),
    # languages
    *[
        Row(f"language {name}={value}", RUN, {"LC_ALL": None, "LANG": None, name: value}, **ONE_OK)
        for name in ("LC_ALL", "LANG")
        for value in ("C", "POSIX", "de_DE.ISO-8859-1", "no_SUCH.thing")
    ],
    *[
        Row(f"output in {signs}", RUN, {"PYTHONIOENCODING": signs}, **ONE_OK)
        for signs in ("ascii", "latin-1", "ascii:strict")
    ],
    Row("the helper without HOME", "{helper}", {"HOME": None}, prints="DECISION: PROCEED"),
    Row("the status without HOME", "{status}", {"HOME": None}, prints="stage 1 decided"),
    # tqdm, Python
    Row("no bars", RUN, {"TQDM_DISABLE": "1"}, **ONE_OK),
    Row("a setting of tqdm that is no number", RUN, {"TQDM_MININTERVAL": "soon"}, **ONE_OK),
    Row("modules named as ours", RUN, {"PYTHONPATH": "{shadows}"}, **ONE_OK),
    Row("unbuffered", RUN, {"PYTHONUNBUFFERED": "1"}, **ONE_OK),
    # launching
    Row("a launcher of several words", RUN, {"TORCHRUN": "sh {torchrun}"}, **ONE_OK),
    Row("a second node for torchrun", RUN, {**REAL, "PET_NNODES": "2"}, **ONE_OK),
    Row(
        "a host name that resolves to nothing",
        "unshare -u true || {{ echo 1 ok; exit; }}; unshare -u sh -c '"
        'hostname no-such-host.invalid && exec "$@"\' - ' + RUN,
        REAL,
        prints="1 ok",
    ),
    # run_aux.py, analyze_aux.py, staged_analysis_helper.py: console.run(main) under __main__
    Row("standard output closed", RUN + " >&-", ok=1),
    Row("all closed", RUN + " >&- 2>&- <&-", ok=1),
    Row("a full disk", RUN + " >/dev/full", ok=1),
    Row("the list, unread", "{unread} {run} --list", code=141),
    Row("the status, unread", "{unread} {status}", code=141),
    Row("the helper, unread", "{unread} {helper}", code=141),
    Row("the helper, closed", "{helper} >&-"),
    *[
        Row(f"the helper in {signs}", "{helper}", {"PYTHONIOENCODING": signs},
            prints=r"\? DECISION: PROCEED")
        for signs in ("ascii", "latin-1")
    ],
    Row("the report, unread", "{unread} {report}", code=141, wrote=REPORT_FILES),
    Row("the report, closed", "{report} >&- 2>&- <&-", wrote=REPORT_FILES),
    Row("the report in ascii", "{report}", {"PYTHONIOENCODING": "ascii"}, prints="VERDICT|Stage 1",
        wrote=REPORT_FILES),
    # the same programs: prerequisites.check before their imports
    *[
        Row(f"{how} {name}", how + " {" + name + "}", code=1,
            complains=r"^\w+\.py: error: .* runs with -O or PYTHONOPTIMIZE=\d, .*\n$")
        for how in ("{python} -O", "{python} -OO", "PYTHONOPTIMIZE=1 {python}")
        for name in ("run_py", "helper_py", "report_py")
    ],
    Row("a Python without packages", "{python} -S {run_py} --list", code=1,
        complains=r"^run_aux.py: error: .* has no .*psutil.*pip install.*\n$"),
    Row("a Python that does not look beside the script", RUN, {"PYTHONSAFEPATH": "1"}, **ONE_OK),
    # run_aux.py: command.check_torchrun()
    Row("a launcher that is not there", RUN, {"TORCHRUN": "/no/such/torchrun"}, code=1,
        complains=r"^run_aux.py: error: TORCHRUN=/no/such/torchrun: .*unset TORCHRUN.*\n$", ok=0),
    # local.py: environment.clean for the watcher
    Row("what configures torchrun", RUN, {**REAL, **OF_TORCHRUN}, **ONE_OK),
    Row("a trainer that tells of warnings", RUN, {**REAL, "PYTHONWARNINGS": "error"}, **ONE_OK),
    # machine.py: a GPU tool that fails is told
    Row("nvidia-smi that fails", "PATH={broken}:$PATH " + RUN, {"CUDA_VISIBLE_DEVICES": None},
        code=1, complains="Driver/library version mismatch.*--num_gpus", ok=0),
    Row("a GPU tool that fails, on the CPU", "PATH={broken}:$PATH " + RUN + " --num_gpus 0",
        {"CUDA_VISIBLE_DEVICES": None}, **ONE_OK),
    # figures.py: matplotlib's defaults and our style alone
    Row("a notebook's figures", "{report}", {"MPLBACKEND": NOTEBOOK}, wrote=REPORT_FILES),
    Row("figures that need TeX", "{report}", {"MATPLOTLIBRC": "{tex}"}, wrote=REPORT_FILES),
    Row("a style that is none", "{report}", {"MATPLOTLIBRC": "{nonsense}"}, wrote=REPORT_FILES),
    Row("a cache that cannot be made", "{report}", {"MPLCONFIGDIR": "/proc/none"},
        complains=".*", wrote=REPORT_FILES),
]  # fmt: skip


def words(home: Path, finished: Path) -> dict[str, str]:
    """What the names in braces stand for."""
    python, exp_dir = shlex.quote(sys.executable), f"--exp_dir {finished}"
    programs = {
        "run": str(ROOT / "run_aux.py"),
        "helper": f"{ROOT / 'staged_analysis_helper.py'} --stage 1 {exp_dir}",
        "report": f"{ROOT / 'analyze_aux.py'} {exp_dir}",
        "status": f"{ROOT / 'run_aux.py'} --status {exp_dir}",
    }
    fakes = {"TORCHRUN": SUPPORT / "fake_torchrun", "FAKE_PYTHON": sys.executable}
    fakes["CUDA_VISIBLE_DEVICES"] = ""
    return {
        "python": python,
        "unread": f"{python} -c {shlex.quote(UNREAD)}",
        **{f"{name}_py": line for name, line in programs.items()},
        **{name: f"{python} {line}" for name, line in programs.items()},
        "fake": f"--train_script {SUPPORT / 'fake_train.py'} --data_dir {home / 'shards'}"
        " --profile mini",
        "fakes": " ".join(f"{name}='{value}'" for name, value in fakes.items()),
        "torchrun": str(SUPPORT / "fake_torchrun"),
        "elsewhere": f"--output_dir {home / 'experiments'}",
        **{name: str(home / name) for name in ("shadows", "broken", "tex", "nonsense")},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment whose first stage is decided; made once."""
    home = furnish(tmp_path_factory.mktemp("finished"))
    line = "{run} --stage 1 {fake}".format(**words(home, home))
    done = bash(line, home, {})
    assert done.returncode == 0, done.stderr
    return next((home / "experiments").iterdir())


def furnish(home: Path) -> Path:
    """Shards that nobody reads, and what some rows need."""
    for folder in ("shards", "shadows", "broken"):
        (home / folder).mkdir()
    for kind in ("train", "val"):
        (home / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    for name in ("records", "plans", "experiment", "display"):
        (home / "shadows" / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
    tool = home / "broken" / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVML: Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    (home / "tex").write_text("text.usetex: True\nbackend: QtAgg\n")
    (home / "nonsense").write_text("\x00 : what\nlines.linewidth: wide\n")
    return home


def bash(line: str, home: Path, settings: dict[str, str | None]):
    env = {
        **os.environ,
        "TORCHRUN": str(SUPPORT / "fake_torchrun"),
        "FAKE_PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": None,
        **settings,
    }
    return subprocess.run(
        ["bash", "-c", line],
        cwd=home,
        env={name: value for name, value in env.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
    )


def check(row: Row, home: Path, finished: Path) -> None:
    meant = words(home, finished)
    settings = {name: value and value.format(**meant) for name, value in row.env.items()}
    done = bash(row.command.format(**meant), home, settings)
    complaints = re.sub("^bash: warning: .*\n", "", done.stderr, flags=re.MULTILINE)  # the shell's
    told = f"{row.what}: {done.returncode}\n{done.stdout}\n{complaints}"
    assert done.returncode == row.code, told
    assert "Traceback" not in done.stdout + done.stderr, told
    assert "Exception ignored" not in done.stderr, told
    assert re.search(row.prints, done.stdout), told
    assert re.search(row.complains or r"\A\Z", complaints), told
    if row.ok is not None:
        results = [json.loads(path.read_text()) for path in home.rglob("result.json")]
        assert [r["status"] for r in results] == ["ok"] * row.ok, told
    for name in row.wrote:
        assert (finished / name).stat().st_size, told


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_whatever_the_settings_are(row, tmp_path, finished):
    for name in row.wrote:
        (finished / name).unlink(missing_ok=True)
    check(row, furnish(tmp_path), finished)


# ---------------------------------------------------------------------------------------------
# The table of what is dropped

MEANT = {  # what a person means by a run, and reaches it
    **{"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "NCCL_DEBUG": "INFO"},
    **{"NCCL_SOCKET_IFNAME": "eth0", "TORCH_NCCL_BLOCKING_WAIT": "1", "OMP_NUM_THREADS": "4"},
    **{"https_proxy": "http://p:1", "HTTP_PROXY": "http://p:1", "NO_PROXY": "a", "HF_HOME": "/h"},
    **{"PATH": "/bin", "HOME": "/h", "LD_LIBRARY_PATH": "/l", "PYTHONPATH": "/p", "TMPDIR": "/t"},
    **{"VIRTUAL_ENV": "/v", "CONDA_PREFIX": "/c", "PYTHONHASHSEED": "0", "USER": "me"},
    **{"SLURM_CONF": "/s", "SLURM_CLUSTERS": "c", "SBATCH_ACCOUNT": "a", "SBATCH_PARTITION": "p"},
    **{"SBATCH_QOS": "q", "SBATCH_RESERVATION": "r", "SBATCH_TIMELIMIT": "9", "TORCH_LOGS": "x"},
    **{"TORCHINDUCTOR_CACHE_DIR": "/i", "AUX_HEADS_RUN": "/r", "GROUP": "g", "AWS_ROLE_ARN": "a"},
    **{"MKL_NUM_THREADS": "2", "WANDB_MODE": "offline", "FAKE_SECONDS": "1", "TORCHRUN": "x"},
}


def test_what_a_person_means_is_kept():
    assert environment.clean(MEANT) == MEANT


@pytest.mark.parametrize("entry", environment.DROPPED)
def test_what_configures_from_outside_is_dropped(entry):
    for name in {entry.replace("*", "X"), entry.replace("*", "")}:
        given = {name: "value", "PATH": "/bin"}
        assert environment.clean(given) == {"PATH": "/bin"}
        assert given == {name: "value", "PATH": "/bin"}  # the caller's is left alone
    assert environment.DROPPED[entry], "each entry says why"


@pytest.mark.parametrize("language", ["C", "POSIX", "de_DE.ISO-8859-1", "no_SUCH.thing"])
def test_programs_answer_in_english_and_a_trainer_may_print_any_sign(language):
    settings = {"LC_ALL": language, "LANG": language, "LC_NUMERIC": language, "LANGUAGE": "de"}
    settings |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given = {**os.environ, **settings}
    code = "import locale; locale.setlocale(locale.LC_ALL, ''); print(chr(0x2705), 1.5)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment.clean(given), capture_output=True, check=True
    )
    assert done.stdout.decode() == "\u2705 1.5\n"
    told = subprocess.run(["ls", "/no/such"], env=environment.clean(given), capture_output=True)
    assert b"No such file or directory" in told.stderr


def options_of_torchrun() -> set[str]:
    from torch.distributed.run import get_args_parser

    return {f"PET_{action.dest.upper()}" for action in get_args_parser()._actions}


def variables_of_workers() -> set[str]:
    """What torchrun sets for the processes that it starts: ours may be started by one of them."""
    import torch.distributed.elastic.agent.server.local_elastic_agent as agent

    source = Path(agent.__file__).read_text()
    return set(re.findall(r'^ +"([A-Z][A-Z_]+)": ', source, re.MULTILINE))


@pytest.mark.parametrize("of", [options_of_torchrun, variables_of_workers])
def test_everything_that_this_torchrun_reads_is_in_the_table(of):
    names = of()
    assert len(names) > 10
    assert {name for name in names if not environment.is_dropped(name)} <= {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # a person's to choose
    }


LOOKING = ("squeue", "scontrol", "scancel")  # nothing that these take from outside is ours to want
READ_BY = re.compile(r"^ {7}((?:SQUEUE|SCONTROL|SCANCEL|SLURM)_[A-Z0-9_]+)\b", re.MULTILINE)


@pytest.mark.skipif(not (shutil.which("man") and shutil.which("squeue")), reason="no manual here")
@pytest.mark.parametrize("program", LOOKING)
def test_everything_that_this_slurm_takes_from_outside_is_in_the_table(program):
    settings = environment.clean(os.environ)
    manual = subprocess.run(["man", program], capture_output=True, text=True, env=settings)
    names = set(READ_BY.findall(re.sub(".\b", "", manual.stdout)))
    assert not {n for n in names if not environment.is_dropped(n)} - environment.KEPT.keys()


# ---------------------------------------------------------------------------------------------
# Which Python


@pytest.mark.parametrize(
    ("version", "optimize", "lacks", "words"),
    [
        ((3, 11, 0), 0, (), ""),
        ((3, 14, 2), 0, (), ""),
        ((3, 10, 12), 0, (), r"Python 3\.11 or later is needed.* is 3\.10; use \.venv/bin/python"),
        ((2, 7, 18), 0, ("scipy",), "Python 3.11 or later"),
        ((3, 11, 7), 1, (), "PYTHONOPTIMIZE=1.*leave it out"),
        ((3, 11, 7), 2, (), "PYTHONOPTIMIZE=2"),
        ((3, 11, 7), 0, ("scipy", "numpy"), "has no numpy, scipy; .*pip install -r requirements"),
    ],
)
@pytest.mark.parametrize("program", prerequisites.NEEDED)
def test_a_python_that_does_not_fit_is_told_in_one_line(program, version, optimize, lacks, words):
    told = prerequisites.problem(program, version, optimize, lambda package: package not in lacks)
    lacking = set(lacks) & set(prerequisites.NEEDED[program])
    if lacks and version >= (3, 11):
        words = f"has no {', '.join(sorted(lacking))}; "
    assert re.search(words, told) if words else told == ""
    assert "\n" not in told


def test_this_python_fits():
    assert not any(map(prerequisites.problem, prerequisites.NEEDED))


def test_what_is_needed_is_found_without_importing_it():
    code = (
        "import sys; from ablation.cli import prerequisites; prerequisites.check('run_aux.py');"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "scipy", "psutil", "tqdm"} & set(loaded)


@pytest.mark.parametrize(("name", "oldest"), [("prerequisites", (3, 6)), ("console", (3, 8))])
def test_what_comes_before_the_question_is_in_words_of_an_old_python(name, oldest):
    ast.parse((ROOT / "ablation" / "cli" / f"{name}.py").read_text(), feature_version=oldest)
