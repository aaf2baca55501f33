"""Which environment do the programs that are called here get?  One that this project chose.

torchrun, the trainer, Slurm's commands, git and nvidia-smi all read settings from the environment
that a cluster's operators, a notebook or a person's shell left there for other work. What would
change how they start or what they print is dropped or set; what a person means by a run
(CUDA_VISIBLE_DEVICES, NCCL_*, proxies, PYTHONPATH, an account and a partition of Slurm) is kept.
"""

from collections.abc import Mapping

DROPPED = {  # a name, or with * the beginning of names: what it would do
    # torchrun
    "PET_*": "torchrun's own options: PET_NNODES=2 waits for a second node for ever",
    "TORCHELASTIC_*": "of a torchrun around us, and how ours restarts and labels its workers",
    "TORCH_ELASTIC_*": "the same under newer names",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "how the workers of a torchrun find each other",
    "TORCH_WORKER_SERVER_SOCKET": "a socket of a torchrun around us",
    "MASTER_ADDR": "where the workers of another run meet",
    "MASTER_PORT": "where the workers of another run meet",
    "RANK": "a worker's place in another run",
    "LOCAL_RANK": "a worker's place in another run",
    "NODE_RANK": "a worker's place in another run",
    "WORLD_SIZE": "a worker's place in another run",
    "LOCAL_WORLD_SIZE": "a worker's place in another run",
    "GROUP_RANK": "a worker's place in another run",
    "GROUP_WORLD_SIZE": "a worker's place in another run",
    "ROLE_RANK": "a worker's place in another run",
    "ROLE_NAME": "a worker's place in another run",
    "ROLE_WORLD_SIZE": "a worker's place in another run",
    "PYTHON_EXEC": "torchrun would start the workers with another interpreter",
    "LOGLEVEL": "torchrun's: a word it does not know ends it, DEBUG floods the log",
    # Python
    "PYTHONOPTIMIZE": "drops the trainer's own checks",
    "PYTHONINSPECT": "goes on after an error, and the exit code is lost",
    "PYTHONSAFEPATH": "the trainer no longer finds the files beside it",
    "PYTHONWARNINGS": "'error' makes a failure of any warning",
    "PYTHONVERBOSE": "floods the log",
    "PYTHONPROFILEIMPORTTIME": "floods the log",
    "PYTHONDUMPREFS": "floods the log",
    "PYTHONMALLOCSTATS": "floods the log",
    "PYTHONIOENCODING": "logs are read as UTF-8, which Python writes where no language is named",
    "PYTHONUTF8": "the same",
    "PYTHONCOERCECLOCALE": "the same",
    # Slurm
    "SQUEUE_*": "which jobs are listed, and how: SQUEUE_STATES hides queued ones",
    "SCONTROL_*": "which jobs are shown",
    "SCANCEL_*": "which jobs are cancelled, and whether somebody is asked first",
    "SLURM_*": "describes the job that we may be in, not the ones we start; forms of output",
    "SLURMD_*": "describes the node that we may be on",
    "SRUN_*": "how a job's steps start",
    "SBATCH_ARRAY_INX": "one attempt would be many jobs",
    "SBATCH_BATCH": "where a job's script runs",
    "SBATCH_DEBUG": "what sbatch prints",
    "SBATCH_ERROR": "hides a job's last words elsewhere",
    "SBATCH_EXPORT": "which of these variables reach the job",
    "SBATCH_GET_USER_ENV": "brings a login shell's settings back",
    "SBATCH_INPUT": "a job reads nothing",
    "SBATCH_JOB_NAME": "jobs are found by their names",
    "SBATCH_OUTPUT": "hides a job's last words elsewhere",
    "SBATCH_OPEN_MODE": "may erase a job's last words",
    "SBATCH_REQUEUE": "a job would begin again by itself",
    "SBATCH_SIGNAL": "signals that the run does not expect",
    "SBATCH_TEST_ONLY": "nothing would be submitted",
    "SBATCH_WAIT": "sbatch would not return before the job ends",
    # others
    "GIT_*": "which repository git looks at: GIT_DIR is set within hooks",
    "MPLBACKEND": "a notebook's own figures, which need the notebook",
    "MATPLOTLIBRC": "a person's own style",
    "TQDM_*": "how progress bars look, and whether there are any",
    "LC_*": "in which language programs answer",
    "LANG": "in which language programs answer",
    "LANGUAGE": "in which language programs answer",
}
KEPT = {  # though the beginning of its name is dropped: where it says which cluster is meant
    "SLURM_CONF": "where Slurm's configuration lies",
    "SLURM_CONF_SERVER": "who hands it out",
    "SLURM_CLUSTERS": "which of several clusters is meant",
    "SLURM_JWT": "who we are for Slurm",
}


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings that configure the called programs from outside."""
    return {name: value for name, value in environ.items() if not is_dropped(name)}


def is_dropped(name: str) -> bool:
    beginnings = tuple(entry[:-1] for entry in DROPPED if entry.endswith("*"))
    return name not in KEPT and (name in DROPPED or name.startswith(beginnings))
