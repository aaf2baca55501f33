"""What does the orchestrator cost?  A staged experiment against a bash loop of its own commands.

    python benchmarks/overhead.py                      # 36 runs of up to 4 s, twice: 5 minutes
    python benchmarks/overhead.py --seconds 0.5        # the same cost a run, seen sooner
    python benchmarks/overhead.py --real               # the real trainer under the real torchrun

The trainer is a stand-in that sleeps, so that the difference is the orchestrator's and not the
noise of training. Measured is the wall time of `run_aux.py --staged` as a whole, from its start to
its end, and of `bash` with the very commands that it recorded, one after the other; --rounds
repeats both in turn. The target: at most 2 % and at most 150 ms a run more than the loop.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
sys.path.insert(0, str(ROOT))

from tests.support.processes import stand_in_shards

MOST_PERCENT, MOST_MS = 2.0, 150.0


def timed(command: list[str], env: dict[str, str], output: Path) -> float:
    """Wall time in seconds. Raises CalledProcessError when the command fails."""
    with open(output, "ab") as file:
        began = time.perf_counter()
        subprocess.run(command, env=env, stdout=file, stderr=file, check=True)
        return time.perf_counter() - began


def commands_of(exp_dir: Path) -> list[list[str]]:
    """What the experiment launched, in its order."""
    configs = [json.loads(path.read_bytes()) for path in exp_dir.glob("*/run_*/config.json")]
    configs.sort(key=lambda config: config["launched"]["monotonic_s"])
    return [config["command"] for config in configs]


def bash_script(commands: list[list[str]], scratch: Path) -> str:
    """A loop as people write it; each run logs to a file of its own."""
    lines = ["set -e"]
    for number, command in enumerate(commands):
        log_file = command.index("--log_file") + 1
        command = [*command[:log_file], str(scratch / f"train_{number}.txt")]
        lines.append(f"{shlex.join(command)} > {scratch}/output_{number}.log 2>&1")
    return "\n".join(lines) + "\n"


def measure(seconds: float, rounds: int, real: bool, print_line=print) -> dict[str, float]:
    """Both ways in turn; sums over the rounds."""
    fakes = {
        "TORCHRUN": str(SUPPORT / "fake_torchrun"),
        "FAKE_SECONDS": str(seconds / 2),  # of 100 iterations; a full run of the profile has 200
    }
    env = {**os.environ, **({} if real else fakes)}
    figures = {"runs": 0, "orchestrated_s": 0.0, "bash_loop_s": 0.0}
    head = f"{'round':>5} {'runs':>5} {'orchestrated':>13} {'bash loop':>10} {'a run':>9} {'':>7}"
    print_line(head)
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(prefix="overhead_") as folder:
            scratch = Path(folder)
            what = []
            if not real:
                stand_in_shards(scratch / "data")
                what = ["--train_script", str(SUPPORT / "fake_train.py")]
                what += ["--data_dir", str(scratch / "data")]
            orchestrate = [sys.executable, str(ROOT / "run_aux.py"), "--staged", *what]
            orchestrate += ["--profile", "mini", "--full_iterations", "200", "--num_gpus", "0"]
            orchestrate += ["--max_budget_hours", "24", "--output_dir", str(scratch / "exp")]
            orchestrated_s = timed(orchestrate, env, scratch / "orchestrated.log")
            (exp_dir,) = (scratch / "exp").iterdir()
            commands = commands_of(exp_dir)
            script = scratch / "loop.sh"
            script.write_text(bash_script(commands, scratch))
            bash_loop_s = timed(["bash", str(script)], env, scratch / "loop.log")
        figures["runs"] += len(commands)
        figures["orchestrated_s"] += orchestrated_s
        figures["bash_loop_s"] += bash_loop_s
        print_line(row(number, len(commands), orchestrated_s, bash_loop_s))
    if rounds > 1:
        print_line(row("all", *figures.values()))
    return figures


def row(name, runs: int, orchestrated_s: float, bash_loop_s: float) -> str:
    more_ms = 1000 * (orchestrated_s - bash_loop_s) / runs
    percent = 100 * (orchestrated_s / bash_loop_s - 1)
    return (
        f"{name:>5} {runs:>5} {orchestrated_s:>11.2f} s {bash_loop_s:>8.2f} s"
        f" {more_ms:>+6.1f} ms {percent:>+5.2f} %"
    )


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="a full run sleeps (4)")
    parser.add_argument("--rounds", type=int, default=1, help="of both, in turn (1)")
    parser.add_argument("--real", action="store_true", help="train, under the real torchrun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    figures = measure(args.seconds, args.rounds, args.real)
    print(f"target: at most {MOST_PERCENT:g} % and {MOST_MS:g} ms a run beyond the loop")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
