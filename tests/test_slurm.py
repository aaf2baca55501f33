"""Runs as jobs of a real Slurm: two nodes of 8 fake GPUs on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_foreign_studies import STUDY

from ablation.execute import slurm
from ablation.execute.command import build_command
from ablation.execute.launcher import Command
from ablation.runs.run import RunConfig
from tests.support.invent import arm, code_at, experiment
from tests.support.slurm_cluster import SlurmCluster, why_not

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
FAKE = ["--train_script", str(SUPPORT / "fake_train.py")]
ON_SLURM = ["--profile", "mini", "--launcher", "slurm"]
PACKED = [*ON_SLURM, "--num_gpus", "16", "--gpus_per_run", "1"]


OTHER_WORK = {  # settings that somebody has for other work, in all tests with run_aux.py
    **{"SQUEUE_STATES": "COMPLETED", "SQUEUE_FORMAT": "%j", "SQUEUE_NAMES": "other"},
    **{"SCANCEL_STATE": "PENDING", "SCANCEL_NAME": "other", "SLURM_TIME_FORMAT": "relative"},
    **{"SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "1-2", "SBATCH_JOB_NAME": "other"},
    **{"SBATCH_REQUEUE": "1", "SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "1", "LANG": "C.UTF-8"},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why_not():
        pytest.skip(why_not())
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def home(tmp_path):
    (tmp_path / "shards").mkdir()
    for kind in ("train", "val"):
        (tmp_path / "shards" / f"x_{kind}_000000.bin").write_bytes(b"tokens")
    return tmp_path


def environment(cluster, seconds):
    return {
        **os.environ,
        **cluster.env,
        **OTHER_WORK,
        "TORCHRUN": str(SUPPORT / "fake_torchrun"),
        "FAKE_PYTHON": sys.executable,
        "FAKE_SECONDS": str(seconds),
    }


def start(cluster, home, *arguments, seconds=0.5, program=(str(ROOT / "run_aux.py"),)):
    """run_aux in a process of its own, in the folder `home`; seconds for each 100 iterations."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments, "--no_page"],
        cwd=home,
        env=environment(cluster, seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=120) -> str:
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out


def folder_of(home) -> Path:
    return next((home / "experiments").glob("aux_heads_*"))


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
    return found


def results(home) -> list[dict]:
    found = [json.loads(path.read_text()) for path in home.rglob("result.json")]
    return sorted(found, key=lambda r: r["attempt"])


def test_a_whole_experiment_as_jobs_killed_in_the_middle(cluster, home):
    """The orchestrator is killed while stage 1 runs, started again, and finds its jobs."""
    arguments = ["--staged", *PACKED, *FAKE, "--data_dir", "shards", "--validation_runs", "2"]
    arguments.append("--slurm_args=--partition=main --time=10")
    first = start(cluster, home, *arguments, seconds=40)
    until(lambda: len(list(home.rglob("claim.json"))) == 4)  # stage 1 is running
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert cluster.command("squeue", "-h", "-t", "running").count("\n") == 4
    out = finish(start(cluster, home, "--exp_dir", str(folder_of(home)), seconds=0.2))
    assert "DECISION: AUX HEADS HELP: target met" in out
    assert "24 ok" in out
    assert cluster.command("squeue", "-h") == ""
    assert not list(home.rglob("attempt_2"))  # nothing was submitted twice
    assert len(results(home)) == 24
    exits = [json.loads(path.read_text()) for path in home.rglob("exit.json")]
    assert len({exit["clock"] for exit in exits}) == 24  # each job is paid for on its own


def test_what_ended_while_nobody_looked_counts(cluster, home):
    arguments = ["--stage", "1", *PACKED, *FAKE, "--data_dir", "shards"]
    first = start(cluster, home, *arguments, seconds=30)
    until(lambda: len(list(home.rglob("claim.json"))) == 4)
    first.kill()
    first.communicate()
    until(lambda: cluster.command("squeue", "-h") == "")
    out = finish(start(cluster, home, "--stage", "1", "--exp_dir", str(folder_of(home))))
    assert "without a result: val loss" in out
    assert "4 ok" in out
    assert not list(home.rglob("attempt_2"))


def test_a_job_cancelled_by_hand_is_interrupted_and_run_again(cluster, home):
    process = start(cluster, home, "--experiment", "aux_6", *PACKED, *FAKE,
                    "--data_dir", "shards", seconds=5)  # fmt: skip
    until(lambda: list(home.rglob("claim.json")))
    job = cluster.command("squeue", "-h", "-o", "%i").split()[0]
    cluster.command("scancel", job)
    finish(process)
    attempts = results(home)
    assert [r["status"] for r in attempts] == ["interrupted", "ok"]
    assert "cancelled" in attempts[0]["reason"]


def test_a_stop_cancels_the_jobs_and_says_why(cluster, home):
    process = start(cluster, home, "--stage", "1", *PACKED, *FAKE, "--data_dir", "shards",
                    seconds=99)  # fmt: skip
    until(lambda: len(list(home.rglob("claim.json"))) == 4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {r["status"] for r in results(home)} == {"interrupted"}
    assert "operator" in results(home)[0]["reason"]
    until(lambda: cluster.command("squeue", "-h") == "")


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_real_trainer_as_a_job_of_one_node_or_two(cluster, home, nodes):
    subprocess.run([sys.executable, str(ROOT / "data" / "prepare.py")], check=True)
    arguments = ["--experiment", "quick_aux_4_8", "--num_gpus", "0", "--full_iterations", "40"]
    spread = ["--nodes_per_run", str(nodes)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_aux.py"), *arguments, *spread, *ON_SLURM],
        cwd=home,
        env={**os.environ, **cluster.env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (result,) = results(home)
    assert (result["status"], result["nodes"]) == ("ok", nodes)
    (log,) = home.rglob("output.log")
    assert f'"world_size": {nodes}' in log.read_text()
    derived = json.loads((folder_of(home) / "staged_ablation_results.json").read_text())
    wall_s = result["end_s"] - result["start_s"]
    assert derived["budget"]["spent_hours"] == pytest.approx(nodes * wall_s / 3600)


def test_only_one_job_can_claim_an_attempt(cluster, home):
    """As after a requeue, when the orphan of a lost node runs on beside the new job."""
    launcher = slurm.SlurmLauncher(home)
    os.environ.update(cluster.env)
    folder = home / "attempt"
    folder.mkdir()
    job = Command(("sh", "-c", "echo ran; sleep 1"), {}, folder)
    runs = [launcher.start(job), launcher.start(job)]
    until(lambda: cluster.command("squeue", "-h") == "")
    assert (folder / "output.log").read_text().count("ran") == 1
    assert [run.poll().returncode for run in runs] == [0, 0]


# run_aux.py where a file of a job that has ended is not waited for as long as on a shared disk
IMPATIENT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import run_aux
from ablation.cli import console
from ablation.execute import slurm
slurm.VISIBLE_S = 3.0
sys.exit(console.run(run_aux.main))
"""


def test_a_lost_node_is_an_interruption_and_the_run_goes_elsewhere(cluster, home):
    process = start(cluster, home, "--experiment", "aux_8", *PACKED, *FAKE,
                    "--data_dir", "shards", seconds=6, program=("-c", IMPATIENT))  # fmt: skip
    until(lambda: list(home.rglob("claim.json")))
    node = int(cluster.command("squeue", "-h", "-o", "%N").strip()[1:])
    cluster.kill_node(node)
    try:
        finish(process)
    finally:
        cluster.start_node(node)
        cluster.command("scontrol", "update", f"nodename=n{node}", "state=resume")
    attempts = results(home)
    assert [r["status"] for r in attempts] == ["interrupted", "ok"]
    assert "node" in attempts[0]["reason"] or "job" in attempts[0]["reason"]


RUN = RunConfig(1, arm("aux_6", 6), 0, 1000, 10)


def script_of(tmp_path, nodes):
    e = experiment(processes=8 * nodes, nodes=nodes, launcher="slurm")
    command = build_command(e, RUN, code_at("t.py"), Path("d"), Path("log"))
    return slurm.job_script(Command(command, {"A": "b c"}, tmp_path), Path("watcher.py"), nodes, 8)


def test_script_of_a_run_that_spans_nodes(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHRUN", raising=False)
    script = script_of(tmp_path, nodes=2)
    assert f"srun --ntasks-per-node=1 {sys.executable} -m torch.distributed.run --rdzv_b" in script
    assert '--rdzv_endpoint="$(hostname):' in script
    assert script.count("--nnodes=") == script.count("--nnodes=2") == 1
    assert "--nproc_per_node=8 --log-dir=/dev/null t.py --num_iterations" in script
    assert "--standalone" not in script
    assert "--local-addr" not in script  # each node has an address of its own


def test_script_of_a_run_on_one_node(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHRUN", "'sh' -x")
    script = script_of(tmp_path, nodes=1)
    assert "sh -x --standalone --nnodes=1 --local-addr=127.0.0.1 --nproc_per_node=8 --log" in script
    assert "export A='b c'\n" in script
    assert "srun" not in script


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:01:05", 65), ("1-02:00:00", 93600), ("", 0), ("UNLIMITED", 0)]
)
def test_run_times_of_slurm(text, seconds):
    assert slurm.run_time_s(text) == seconds


def test_what_slurm_ended_while_nobody_looked_is_told_as_if_watched(cluster, home):
    """One job is cancelled while it runs; another loses its node, and leaves no exit.json."""
    arguments = ["--experiment", "aux_6,aux_8", *PACKED, *FAKE, "--data_dir", "shards"]
    arguments.append("--slurm_args=--nodelist=n1")
    process = start(cluster, home, *arguments, seconds=99)
    until(lambda: len(list(home.rglob("claim.json"))) == 2)
    process.kill()
    process.communicate()
    claims = {path.parent.parent.name: path for path in home.rglob("claim.json")}
    cluster.command("scancel", json.loads(claims["aux_6"].read_text())["job"])
    until(lambda: list(home.rglob("aux_6/**/exit.json")))
    cluster.kill_node(1)
    try:
        until(lambda: cluster.command("squeue", "-h") == "", seconds=60)
    finally:
        cluster.start_node(1)
        cluster.command("scontrol", "update", "nodename=n1", "state=resume")
    finish(start(cluster, home, *arguments, "--exp_dir", str(folder_of(home)), seconds=0.2))
    first = {r["run"]["arm"]["name"]: r["reason"] for r in results(home) if r["attempt"] == 1}
    assert "cancelled" in first["aux_6"]
    assert "its node failed" in first["aux_8"]
    assert {r["status"] for r in results(home) if r["attempt"] == 2} == {"ok"}


def preflight(cluster, home, *arguments, seconds=20.0):
    """(exit code, lines by their names) of a preflight."""
    process = start(cluster, home, "--preflight", *PACKED, *FAKE, "--data_dir", "shards",
                    *arguments, seconds=seconds)  # fmt: skip
    out, _ = process.communicate(timeout=120)
    found = json.loads((home / "preflight.json").read_text())
    assert "Traceback" not in out and found["exit_code"] == process.returncode, out
    until(lambda: cluster.command("squeue", "-h") == "")  # a job that has ended is listed a while
    assert sorted(path.name for path in home.iterdir()) == ["preflight.json", "shards"]
    return process.returncode, {line["name"]: line for line in found["lines"]}


def test_a_preflight_is_made_of_jobs(cluster, home):
    code, lines = preflight(cluster, home, "--slurm_args=--partition=main")
    assert code == 0, lines
    assert "(2 side by side): 10 steps in" in lines["baseline"]["value"]
    assert "after the order, 30 s allowed" in lines["stop"]["value"]
    assert "those of the nodes were not looked at" in lines["GPUs"]["value"]


def test_jobs_of_a_killed_preflight_are_cancelled_by_the_next(cluster, home):
    arguments = ("--preflight", *PACKED, *FAKE, "--data_dir", "shards")
    killed = start(cluster, home, *arguments, seconds=999)
    until(lambda: list(home.rglob("claim.json")))
    killed.kill()
    killed.communicate()
    assert cluster.command("squeue", "-h")
    preflight(cluster, home, seconds=2)


def test_a_partition_that_does_not_exist_is_a_line_of_the_preflight(cluster, home):
    code, lines = preflight(cluster, home, "--slurm_args=--partition=moon")
    assert code == 4
    assert lines["baseline"]["level"] == "fail"
    assert "invalid partition" in lines["baseline"]["value"]
    assert "mend --slurm_args" in lines["baseline"]["remedy"]


def test_a_study_of_a_trainer_that_knows_nothing_of_this_project(cluster, home):
    """Told by variables, from a copy of its code for a run; killed, and gone on with without its
    file and its trainer."""
    lab = home / "lab"
    (lab / "text").mkdir(parents=True)
    (lab / "text" / "a.txt").write_text("text\n")
    text = (SUPPORT / "foreign_train.py").read_text()
    (lab / "train.py").write_text(text)
    (lab / "other.py").write_text(text.replace("EXTRA = 0.0", "EXTRA = 0.01"))
    change = 'file = "train.py", find = "EXTRA = 0.0", with = "EXTRA = {seed} * 1e-9"'
    arms = (
        f'seeded = {{ replace = [{{ {change} }}], env = {{ MISCHIEF = "slow" }} }}\n[refinements]'
    )
    (lab / "s.toml").write_text(STUDY.replace("[refinements]", arms))
    on_slurm = ["--launcher", "slurm", "--num_gpus", "4", "--gpus_per_run", "1"]
    words = ["--study", "lab/s.toml", "--experiment", "baseline,other,seeded", *on_slurm]
    first = start(cluster, home, *words)
    until(lambda: list(home.rglob("seeded/run_0/claim.json")))
    first.kill()
    first.communicate()
    for name in ("s.toml", "train.py", "other.py"):
        (lab / name).unlink()
    exp_dir = next((home / "experiments").glob("s_*"))
    assert "3 ok" in finish(start(cluster, home, "--exp_dir", str(exp_dir)))
    assert not list(home.rglob("attempt_2"))
    assert {r["status"] for r in results(home)} == {"ok"}
    assert "EXTRA = 42 * 1e-9" in (exp_dir / "seeded/run_0/code/train.py").read_text()
    assert cluster.command("squeue", "-h") == ""
