"""Is anything lost when the orchestrator is killed?  SIGKILL at random moments, many times.

    python benchmarks/crash_drill.py --kills 200
    python benchmarks/crash_drill.py --kills 5 --real     # the real trainer, torchrun, 2 processes

An undisturbed experiment comes first. Then the same experiment again, its orchestrator killed with
SIGKILL at random moments and started again, until the plan ends; then another, until there were N
kills. A fast fake trainer with invented losses runs through the real launcher (with --real: the
real one, in two very short runs with a very short validation). Counted over all experiments:

    lost        runs of the undisturbed experiment without a settled result, decisions not taken,
                attempts without a whole record, machine time that the ledger misses
    duplicated  runs that were run again although they had a settled result; trainers of two
                attempts that lived at the same time
    invented    results, runs, decisions or machine time that the undisturbed experiment or the
                trainers' own trace does not have; records that are damaged
    survivors   processes still there 10 s after a kill or at the end

The ledger is right when it is the union of the recorded attempts, covers every sign of life that
the trainers traced themselves, and holds not more than SLACK_S an attempt beyond that.
Exit code 1 if anything was counted.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import launchers  # noqa: E402
from records import Records, RunResult, machine_seconds, read_records  # noqa: E402

TOKEN = "CRASH_DRILL"  # in the environment of every process of a drill
SLACK_S = 0.5  # machine time of an attempt outside the trainer's own signs of life
PATIENCE_S = 10.0  # for processes to be gone
COUNTED = ("lost", "duplicated", "invented", "survivors")


def survivors(token: str) -> list[int]:
    """Living processes with this token in their environment, by their ids."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdigit() and token.encode() in (entry / "environ").read_bytes()
            if mine and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def stand_in_shards(folder: Path) -> None:
    """Shards that the fake trainer does not read, but every run needs."""
    folder.mkdir(parents=True)
    for name in ("none_train_000001.bin", "none_val_000000.bin"):
        (folder / name).write_bytes(b"no tokens")


def wait_until_gone(token: str, patience_s: float = PATIENCE_S) -> int:
    """How many processes of the drill are left after so many seconds."""
    deadline = time.monotonic() + patience_s
    while (left := survivors(token)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(left)


SHORTLY = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv += ["--val_tokens", "2048"]  # the last one counts
runpy.run_path({str(ROOT / "train_gpt.py")!r}, run_name="__main__")
"""


class Drill:
    """One experiment: how it is begun and gone on with, and what it left."""

    def __init__(self, folder: Path, real: bool):
        self.folder, self.real = folder, real
        self.token = uuid.uuid4().hex
        self.trace = folder / "trace"
        self.output = folder / "output"
        folder.mkdir(parents=True)
        self.script, self.data = ROOT / "tests" / "fake_train.py", folder / "data"
        if real:
            self.script, self.data = folder / "train_shortly.py", ROOT / "data" / "stdlib"
            self.script.write_text(SHORTLY)
        else:
            stand_in_shards(self.data)
        fakes = {
            "TORCHRUN": str(ROOT / "tests" / "fake_torchrun"),
            "FAKE_SECONDS": "0.05",
            "FAKE_TRACE": str(self.trace),
        }
        self.env = {**os.environ, TOKEN: self.token, **({} if real else fakes)}

    @property
    def exp_dir(self) -> Path | None:
        """The experiment's folder, once it is registered."""
        registered = sorted(self.folder.glob("aux_heads_*/experiment_configs.json"))
        return registered[0].parent if registered else None

    def start(self) -> subprocess.Popen:
        """An orchestrator that begins the experiment, or goes on with it."""
        how = ["--profile", "mini", "--max_budget_hours", "1"]
        how += ["--train_script", self.script, "--data_dir", self.data]
        if self.real:
            how += ["--experiment", "quick_baseline,quick_aux_4_8", "--full_iterations", "20"]
            how += ["--num_gpus", "0", "--cpu_processes", "2"]
        else:
            how += ["--staged"]
        how += ["--exp_dir", self.exp_dir] if self.exp_dir else ["--output_dir", self.folder]
        with open(self.output, "ab") as output:
            return subprocess.Popen(
                [sys.executable, ROOT / "run_aux.py", *map(str, how)],
                env=self.env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Let the plan come to its end."""
        if self.start().wait():
            raise RuntimeError(f"the orchestrator failed: {self.output.read_text()[-2000:]}")

    def records(self) -> Records:
        document = json.loads((self.exp_dir / "experiment_configs.json").read_bytes())
        return read_records(self.exp_dir, document["experiment_id"])

    def decisions(self) -> dict[str, dict]:
        written = json.loads((self.exp_dir / "staged_ablation_results.json").read_bytes())
        return {n: stage["decision"] for n, stage in written["stages"].items() if stage["decision"]}

    def lives(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Of each trainer process: first and last sign of life."""
        found: dict[tuple[str, str], tuple[float, float]] = {}
        for line in self.trace.read_text().splitlines() if self.trace.exists() else ():
            log_file, pid, when = line.split()
            first, _ = found.get((log_file, pid), (float(when), 0.0))
            found[log_file, pid] = (first, float(when))
        return found


def disturb(drill: Drill, kills: int, longest_s: float, moments: random.Random) -> tuple[int, int]:
    """Kill orchestrators until the plan ends or so many are killed: (kills, survivors).

    Each lives for a random time of at most longest_s.
    """
    killed = left = 0
    while killed < kills:
        orchestrator = drill.start()
        try:
            orchestrator.wait(moments.uniform(0.0, longest_s))
        except subprocess.TimeoutExpired:
            orchestrator.kill()
            orchestrator.wait()
            killed += 1
        if orchestrator.returncode == 0:
            return killed, left  # the plan ended
        if orchestrator.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the orchestrator failed: {drill.output.read_text()[-2000:]}")
        if moments.random() < 0.2:  # else the next orchestrator has to clean up
            left += wait_until_gone(drill.token)
    drill.finish()
    return killed, left


def outcome(r: RunResult, real: bool) -> tuple:
    """What of a result depends on the trainer alone; the real one's times are real, too."""
    times = (r.train_time_ms, r.step_avg_ms, r.curve)
    return r.run, r.status, r.val_loss, r.steps_done, () if real else times


def compare(undisturbed: Drill, drill: Drill) -> list[tuple[str, str]]:
    """What the killed experiment lost, ran twice or made up: (kind, what it is) of each."""
    expected = {r.run.name: r for r in undisturbed.records().results}
    records = drill.records()
    settled = Counter(r.run.name for r in records.results if r.settled)
    found = [("lost", f"{name} has no result") for name in expected.keys() - settled.keys()]
    found += [("lost", f"{name}, attempt {n} has no record") for name, n, _ in records.open]
    found += [("invented", f"{path}: {why}") for path, why in records.damaged]
    found += [("invented", f"{name} is new") for name in settled.keys() - expected.keys()]
    found += [("duplicated", f"{name} has {n} results") for name, n in settled.items() if n > 1]
    for r in records.results:
        was = expected.get(r.run.name)
        if r.settled and was and outcome(was, drill.real) != outcome(r, drill.real):
            found.append(("invented", f"{r.run.name}: {r.status} {r.val_loss}, not {was.val_loss}"))
        if not r.settled and r.status != "interrupted":
            found.append(("invented", f"{r.run.name}: {r.status}: {r.reason}"))

    before, after = undisturbed.decisions(), drill.decisions()
    found += [("lost", f"stage {n} is undecided") for n in before.keys() - after.keys()]
    if not drill.real:  # whose decisions also tell real times
        different = [n for n in after if after[n] != before.get(n)]
        found += [("invented", f"stage {n}: {before.get(n)} {after[n]}") for n in different]

    intervals = sorted((r.start_s, r.end_s) for r in records.results)
    ledger_s = machine_seconds(records.results)
    found += [("duplicated", f"attempts at once: {a} {b}") for a, b in overlaps(intervals)]
    if abs(ledger_s - sum(end - start for start, end in intervals)) > 1e-6:
        found.append(("lost", f"a ledger of {ledger_s} s is not the sum of {intervals}"))
    if spans := sorted(drill.lives().values()):
        found += [("duplicated", f"trainers at once: {a} {b}") for a, b in overlaps(spans)]
        for first, last in spans:
            if not any(start <= first and last <= end for start, end in intervals):
                found.append(("lost", f"nobody paid for a trainer's {first} to {last}"))
        beyond_s = ledger_s - sum(last - first for first, last in spans)
        if beyond_s > SLACK_S * len(intervals):
            found.append(("invented", f"{beyond_s:.1f} s are paid beyond the trainers' own"))
    return found


def overlaps(spans: list[tuple[float, float]]) -> list[tuple]:
    return [(a, b) for a, b in pairwise(spans) if a[1] > b[0]]


def run(kills: int, seed: int, real: bool, say=print) -> dict[str, int]:
    """The whole drill; its figures."""
    moments = random.Random(seed)
    total = Counter(kills=0, **dict.fromkeys(COUNTED, 0))
    with tempfile.TemporaryDirectory(prefix="crash_drill_") as scratch:
        undisturbed = Drill(Path(scratch) / "undisturbed", real)
        began = time.monotonic()
        undisturbed.finish()
        runs = len(undisturbed.records().results)
        longest_s = 0.5 + (1 if real else 3) * (time.monotonic() - began) / runs
        head = " ".join(f"{name:>10}" for name in COUNTED)
        say(f"{'experiment':>10} {'kills':>6} {'attempts':>9} {head}")
        number = 0
        while total["kills"] < kills:
            number += 1
            drill = Drill(Path(scratch) / f"disturbed_{number}", real)
            killed, left = disturb(drill, kills - total["kills"], longest_s, moments)
            findings = compare(undisturbed, drill)
            left += wait_until_gone(drill.token)
            launchers.end_marked(drill.exp_dir.resolve())
            found = Counter(kind for kind, _ in findings) + Counter(survivors=left)
            total.update(found, kills=killed)
            attempts = len(drill.records().results)
            row = " ".join(f"{found[name]:>10}" for name in COUNTED)
            say(f"{number:>10} {killed:>6} {attempts:>9} {row}")
            for kind, what in findings:
                say(f"    {kind}: {what}")
    return dict(total)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, help="of the moments (a new one each time)")
    parser.add_argument("--real", action="store_true", help="the real trainer under torchrun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    if args.kills < 1:
        parser.error(f"--kills {args.kills}: give a number above 0")
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    figures = run(args.kills, seed, args.real)
    print("\n" + "\n".join(f"{name:<11} {value}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(figures[name] for name in COUNTED))


if __name__ == "__main__":
    sys.exit(main())
