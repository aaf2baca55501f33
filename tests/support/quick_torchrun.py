"""torchrun where it is not what is tested: the workers are forks of one process that has torch.

    python tests/support/quick_torchrun.py --nproc_per_node=4 SCRIPT ...

Importing torch costs more than all else that a small run does, and torchrun imports it once for
itself and once in each worker. Of its options only the number of workers is read; the exit code is
1 where a worker fails, as torchrun's. QUICK_ARGUMENTS are more words for the script, after its own.
"""

import os
import runpy
import shlex
import socket
import sys
import traceback

import torch  # noqa: F401  what the workers need not import again


def work(rank: int, size: int, port: int, words: list[str]) -> int:
    """One worker; its exit code."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = words
    sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def forked(rank: int, *run) -> int:
    """The process id of a worker."""
    if process := os.fork():
        return process
    code = 1
    try:
        code = work(rank, *run)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(words: list[str]) -> int:
    size = 1
    while words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        size = int(value) if name == "--nproc_per_node" else size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words += shlex.split(os.environ.get("QUICK_ARGUMENTS", ""))
    workers = [forked(rank, size, port, words) for rank in range(size)]
    return int(any([os.waitpid(worker, 0)[1] for worker in workers]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
