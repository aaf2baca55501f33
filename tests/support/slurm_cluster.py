"""A real Slurm on one machine, for tests: two nodes of 8 fake GPUs, everything in one folder.

    with SlurmCluster(folder) as cluster: ...      # SLURM_CONF is cluster.env["SLURM_CONF"]
    python tests/support/slurm_cluster.py FOLDER           # runs until Ctrl-C

Its patience is that of a busy machine: a slurmd that answers late is no lost node.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "munged")
NODES, GPUS = 2, 8

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ctld_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,defer
SlurmdTimeout=300
BatchStartTimeout=120
MessageTimeout=60
TCPTimeout=30
KillWait=5
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16"
    " RealMemory=2000 Gres=gpu:8 State=UNKNOWN"
)


def why_not() -> str:
    """Why no cluster can be started here; empty when one can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


def keeps_others(process) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.name() in ("slurmd", "slurmstepd")
    return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class SlurmCluster:
    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.processes: dict[str, subprocess.Popen] = {}
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "SlurmCluster":
        try:
            self._configure()
            self._start("munged", "munged", "--foreground", "--force", *self._munge_files())
            self._wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "slurmctld", "-D")
            for n in range(1, NODES + 1):
                self.start_node(n)
            self._wait_for(lambda: self.idle_nodes() == NODES, "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", *(f"spool.n{n}" for n in range(1, NODES + 1))):
            (self.folder / name).mkdir(exist_ok=True)
        host = socket.gethostname().split(".")[0]
        nodes = [NODE.format(n=n, host=host, port=free_port()) for n in range(1, NODES + 1)]
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host,
                folder=self.folder,
                ctld_port=free_port(),
                nodes="\n".join(nodes),
                count=NODES,
            )
        )
        for n in range(GPUS):  # character devices, or Slurm sets no CUDA_VISIBLE_DEVICES
            device = self.folder / f"nvidia{n}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/nvidia[0-7]\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)

    def _munge_files(self) -> list[str]:
        files = {"key": "key", "socket": "socket", "pid": "pid", "seed": "seed", "log": "log"}
        options = {"key": "key-file", "seed": "seed-file", "log": "log-file", "pid": "pid-file"}
        return [f"--{options.get(k, k)}={self.folder}/munge.{v}" for k, v in files.items()]

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.env},
                start_new_session=True,
            )

    def start_node(self, n: int) -> None:
        self._start(f"slurmd.n{n}", "slurmd", "-D", "-N", f"n{n}")

    def kill_node(self, n: int) -> None:
        """As if the node lost its power: slurmd and all job processes of that node are gone.

        All are stopped before the first is killed, until a look finds none that is not: one that
        lives on could tell. The processes of a job go before the slurmstepd that keeps them: when
        that dies, the kernel sends its stopped group SIGHUP and lets it go on.
        """
        import psutil

        slurmd = psutil.Process(self.processes[f"slurmd.n{n}"].pid)
        stopped: list[psutil.Process] = []
        while found := [p for p in [slurmd, *self._on_node(n)] if p not in stopped]:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            stopped += found
        for process in sorted(stopped, key=keeps_others):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.command("scontrol", "update", f"nodename=n{n}", "state=down", "reason=lost")

    def _on_node(self, n: int) -> list:
        """The processes of a node's jobs, and slurmd's helpers that keep them."""
        import psutil

        spool, found = str(self.folder / f"spool.n{n}"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                ours = env.get("SLURM_CONF") == self.env["SLURM_CONF"]  # others have an n1 too
                here = ours and env.get("SLURMD_NODENAME") == f"n{n}"
                if here or spool in " ".join(process.cmdline()):
                    found += filter(keeps_others, process.parents())
                    found += [process, *process.children(recursive=True)]
        return found

    def command(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.env}, timeout=30
        )
        return done.stdout

    def idle_nodes(self) -> int:
        return sum(
            line.split()[1].startswith("idle") and int(line.split()[0])
            for line in self.command("sinfo", "-h", "-o", "%D %T").splitlines()
        )

    def _wait_for(self, ready, what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {seconds:g} s; see {self.folder}/*.log")
            time.sleep(0.1)

    def __exit__(self, *_) -> None:
        with contextlib.suppress(Exception):
            self.command("scancel", "--user=root", "--full")
            self._wait_for(lambda: not self.command("squeue", "-h"), "empty queue", 5)
        for name, process in reversed(self.processes.items()):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            del name


if __name__ == "__main__":
    with SlurmCluster(Path(sys.argv[1])) as running:
        print(f"export SLURM_CONF={running.env['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(1e6)
