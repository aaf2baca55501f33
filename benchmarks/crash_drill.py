"""Is anything lost when processes are killed or stopped?  At random moments, many times.

    python benchmarks/crash_drill.py --kills 200
    python benchmarks/crash_drill.py --kills 5 --real     # the real trainer, torchrun, 2 processes

An undisturbed experiment comes first. Then the same experiment again, its processes struck at
random moments: orchestrator, guard, watcher, torchrun or trainer, alone and together, killed with
SIGKILL or stopped with SIGSTOP and a moment later killed or continued. An orchestrator that is
gone is started again, until the plan ends; then another experiment, until there were N kills;
every second one runs two trainers side by side. A fast fake trainer with invented losses runs
through the real launcher (with --real: the real one, in two very short runs with a very short
validation). Counted over all experiments:

    lost         runs of the undisturbed experiment without an outcome, decisions not taken,
                 attempts without a whole record, machine time that the ledger misses
    duplicated   runs that were run again although they had an outcome
    invented     results, runs, decisions or machine time that the undisturbed experiment or the
                 trainers' own trace does not have; failures of runs that nobody struck; records
                 that are damaged
    overlapping  trainers or attempts of one run that lived at the same time, or more at a time
                 than run side by side
    survivors    processes still there PATIENCE_S after an orchestrator was killed, or at the end

The ledger is right when it is the union of the recorded attempts, covers every sign of life that
the trainers traced themselves, and holds not more than SLACK_S an attempt that nobody struck beyond
that. No run is struck so often that it would be given up.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
sys.path.insert(0, str(ROOT))

from ablation.execute import local, watcher
from ablation.runs.run import RunResult, machine_seconds
from ablation.runs.store import Records, attempt_dir, read_records
from tests.support.processes import TOKEN, stand_in_shards, wait_until_gone

SLACK_S = 0.5  # machine time of an attempt outside the trainer's own signs of life
BLURRED_S = 0.1  # of an attempt whose watchers were both killed: its end is that of its log
COUNTED = ("lost", "duplicated", "invented", "overlapping", "survivors")
STRIKES = (  # who is stopped, who is killed, and how often of all that
    ((), ("orchestrator",), 6),
    ((), ("guard",), 1),
    ((), ("watcher",), 1),
    ((), ("torchrun",), 1),
    ((), ("trainer",), 1),
    ((), ("orchestrator", "guard"), 2),
    ((), ("orchestrator", "watcher"), 2),
    ((), ("orchestrator", "torchrun"), 2),
    ((), ("orchestrator", "watcher", "torchrun"), 2),
    ((), ("orchestrator", "guard", "trainer"), 2),
    (("orchestrator",), (), 2),
    (("orchestrator",), ("watcher",), 1),
    (("watcher",), (), 1),
    (("guard",), ("orchestrator",), 1),
    (("watcher",), ("orchestrator",), 1),
    (("trainer",), ("orchestrator",), 1),
    (("torchrun", "trainer"), ("orchestrator", "watcher"), 1),
    (("orchestrator", "watcher"), (), 1),
)
MOST_FAILURES = 5  # sittings in a row that end with an error, as after crashes in a row


SHORTLY = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv += ["--val_tokens", "2048"]  # the last one counts
runpy.run_path({str(ROOT / "train_gpt.py")!r}, run_name="__main__")
"""


class Drill:
    """One experiment: how it is begun and gone on with, and what it left."""

    def __init__(self, folder: Path, real: bool, parallel_runs: int = 1):
        self.folder, self.real, self.parallel_runs = folder, real, parallel_runs
        self.struck: set[Path] = set()  # folders of attempts whose processes were struck
        self.token = uuid.uuid4().hex
        self.trace = folder / "trace"
        self.output = folder / "output"
        folder.mkdir(parents=True)
        self.script, self.data = SUPPORT / "fake_train.py", folder / "data"
        if real:
            self.script, self.data = folder / "train_shortly.py", ROOT / "data" / "stdlib"
            self.script.write_text(SHORTLY)
        else:
            stand_in_shards(self.data)
        fakes = {
            "TORCHRUN": str(SUPPORT / "fake_torchrun"),
            "FAKE_SECONDS": "0.05",
            "FAKE_TRACE": str(self.trace),
        }
        two_workers = {"TORCHRUN": str(SUPPORT / "two_workers"), "FAKE_PYTHON": sys.executable}
        self.env = {**os.environ, TOKEN: self.token, **(two_workers if real else fakes)}

    @property
    def exp_dir(self) -> Path | None:
        """The experiment's folder, once it is registered."""
        registered = sorted(self.folder.glob("aux_heads_*/experiment_configs.json"))
        return registered[0].parent if registered else None

    def start(self) -> subprocess.Popen:
        """An orchestrator that begins the experiment, or goes on with it."""
        how = ["--profile", "mini", "--max_budget_hours", "1", "--no_page"]  # survivors are counted
        how += ["--train_script", self.script, "--data_dir", self.data]
        if self.real:
            how += ["--experiment", "quick_baseline,quick_aux_4_8", "--full_iterations", "20"]
            how += ["--num_gpus", "0"]
        else:
            how += ["--staged", "--num_gpus", "0", "--parallel_runs", self.parallel_runs]
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
        for _ in range(MOST_FAILURES):
            if self.start().wait() == 0:
                return
        raise RuntimeError(f"the orchestrator failed: {self.output.read_text()[-2000:]}")

    def processes(self, moments: random.Random) -> tuple[Path | None, dict[str, int]]:
        """The processes of one of the runs in flight, by what they are, and its folder."""
        marked = watcher.marked(self.exp_dir.resolve()) if self.exp_dir else []
        folders = {pid: watcher.mark_of(pid) for pid in marked}
        if not any(folders.values()):
            return None, {}
        folder = moments.choice(sorted(filter(None, folders.values())))
        mine = [pid for pid in marked if folders[pid] == folder]
        parents, found = watcher.parents(), {}
        for pid in sorted(mine, key=lambda pid: len(ancestors(pid, parents))):
            if local.is_watcher(pid):
                found.setdefault("watcher" if "guard" in found else "guard", pid)
            else:
                found.setdefault("torchrun", pid)
                found["trainer"] = pid  # the last one; the fake torchrun becomes the trainer
        return Path(folder), found

    def spared(self, folder: Path) -> bool:
        """Whether this run has failed so often that once more might be its end."""
        run_dir = folder.parent if folder.name.startswith("attempt_") else folder
        failed = 0
        for path in (run_dir, *run_dir.glob("attempt_*")):
            failed += (watcher.read_object(path / "result.json") or {}).get("status") == "crashed"
        return failed >= 2

    def records(self) -> Records:
        document = json.loads((self.exp_dir / "experiment_configs.json").read_bytes())
        return read_records(self.exp_dir, document["experiment_id"])

    def decisions(self) -> dict[str, dict]:
        written = json.loads((self.exp_dir / "staged_ablation_results.json").read_bytes())
        return {n: stage["decision"] for n, stage in written["stages"].items() if stage["decision"]}

    def lives(self) -> dict[tuple[Path, str], tuple[float, float]]:
        """Of each trainer process, by its attempt's folder: first and last sign of life."""
        found: dict[tuple[Path, str], tuple[float, float]] = {}
        for line in self.trace.read_text().splitlines() if self.trace.exists() else ():
            log_file, pid, when = line.split()
            trainer = (Path(log_file).parent, pid)
            found[trainer] = (found.get(trainer, (float(when), 0.0))[0], float(when))
        return found


def ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = [process]
    while found[-1] in parents and parents[found[-1]] not in found:
        found.append(parents[found[-1]])
    return found


def strike(drill: Drill, orchestrator: subprocess.Popen, longest_s: float, moments) -> int:
    """Stop and kill some processes; a moment later kill or continue the stopped ones: kills."""
    weights = [weight for _, _, weight in STRIKES]
    ((to_stop, to_kill, _),) = moments.choices(STRIKES, weights)
    folder, processes = drill.processes(moments)
    if folder is None or drill.spared(folder):
        processes = {}
    processes["orchestrator"] = orchestrator.pid
    if folder and {*to_stop, *to_kill} & processes.keys() - {"orchestrator"}:
        drill.struck.add(folder)
    stopped = [pid for name in to_stop if (pid := processes.get(name))]
    killed = [pid for name in to_kill if (pid := processes.get(name))]
    for pid in stopped:
        send(drill, pid, signal.SIGSTOP)
    kills = sum([send(drill, pid, signal.SIGKILL) for pid in killed])
    if stopped:
        time.sleep(moments.uniform(0.0, longest_s))
        to_end = moments.random() < 0.5
        number = signal.SIGKILL if to_end else signal.SIGCONT
        kills += to_end * sum([send(drill, pid, number) for pid in stopped])
    return kills


def send(drill: Drill, process: int, number: int) -> bool:
    """Send a signal, if that process is still the drill's own."""
    try:
        if drill.token.encode() in watcher.of_process(process, "environ"):
            os.kill(process, number)
            return True
    except OSError:
        pass
    return False


def disturb(drill: Drill, kills: int, longest_s: float, moments: random.Random) -> tuple[int, int]:
    """Strike until the plan ends or so many processes were killed: (kills, survivors)."""
    killed = left = failures = 0
    while killed < kills:
        orchestrator = drill.start()
        while orchestrator.poll() is None and killed < kills:
            try:
                orchestrator.wait(moments.uniform(0.0, longest_s))
            except subprocess.TimeoutExpired:
                killed += strike(drill, orchestrator, longest_s, moments)
                time.sleep(0.01)  # a moment to die of it
        if orchestrator.poll() is None:
            orchestrator.kill()
            killed += 1
        if orchestrator.wait() == 0:
            return killed, left  # the plan ended
        failures = 0 if orchestrator.returncode == -signal.SIGKILL else failures + 1
        if failures >= MOST_FAILURES:
            raise RuntimeError(f"the orchestrator failed: {drill.output.read_text()[-2000:]}")
        if moments.random() < 0.1:  # else the next orchestrator has to clean up
            left += wait_until_gone(drill.token)
    drill.finish()
    return killed, left


def outcome(r: RunResult, real: bool) -> tuple:
    """What of a result depends on the trainer alone; the real one's times are real, too."""
    times = (r.train_time_ms, r.step_avg_ms, r.curve)
    return r.run, r.status, r.val_loss, r.steps_done, () if real else times


Finding = tuple[str, str]  # which kind of COUNTED, and what it is


def compare(undisturbed: Drill, drill: Drill) -> list[Finding]:
    """What the disturbed experiment lost, ran twice or made up."""
    expected = {r.run.name: r for r in undisturbed.records().results}
    records = drill.records()
    outcomes = Counter(r.run.name for r in records.results if r.has_outcome)
    found = [("lost", f"{name} has no result") for name in expected.keys() - outcomes.keys()]
    found += [("lost", f"{a.run_name}, attempt {a.number} has no record") for a in records.open]
    found += [("invented", f"{path}: {why}") for path, why in records.damaged]
    found += [("invented", f"{name} is new") for name in outcomes.keys() - expected.keys()]
    found += [("duplicated", f"{name} has {n} results") for name, n in outcomes.items() if n > 1]
    for r in records.results:
        was = expected.get(r.run.name)
        if r.has_outcome and was and outcome(was, drill.real) != outcome(r, drill.real):
            found.append(("invented", f"{r.run.name}: {r.status} {r.val_loss}, not {was.val_loss}"))
        owed = r.status == "interrupted" or (r.status == "crashed" and is_struck(drill, r))
        if not r.has_outcome and not owed:
            found.append(("invented", f"{r.run.name}: {r.status}: {r.reason}"))

    before, after = undisturbed.decisions(), drill.decisions()
    found += [("lost", f"stage {n} is undecided") for n in before.keys() - after.keys()]
    if not drill.real:  # whose decisions also tell real times
        different = [n for n in after if after[n] != before.get(n)]
        found += [("invented", f"stage {n}: {before.get(n)} {after[n]}") for n in different]
    return found + compare_times(drill, records.results)


def folder_of(drill: Drill, r: RunResult) -> Path:
    return attempt_dir(drill.exp_dir.resolve() / r.run.name, r.attempt)


def is_struck(drill: Drill, r: RunResult) -> bool:
    return folder_of(drill, r) in drill.struck


def compare_times(drill: Drill, results) -> list[Finding]:
    """Whether attempts and trainers lived one after the other, and were paid for."""
    found = []
    attempts = {folder_of(drill, r): (r.start_s, r.end_s) for r in results}
    trainers = drill.lives()
    for what, lives in (("attempts", attempts), ("trainers", trainers)):
        if most := overlaps([*lives.values()], drill.parallel_runs):
            found.append(("overlapping", f"{most} {what} at once"))
    for r in results:
        mine = [s for (folder, _), s in trainers.items() if run_of(folder) == r.run.name]
        if r.attempt == 1 and (most := overlaps(mine, 1)):
            found.append(("overlapping", f"{r.run.name}: {most} trainers at once"))
    ledger_s, union_s = machine_seconds(results), covered_s([*attempts.values()])
    if abs(ledger_s - union_s) > 1e-6:
        found.append(("lost", f"a ledger of {ledger_s} s is not the union, {union_s} s"))
    traced_s: Counter = Counter()
    for (folder, _), (first, last) in trainers.items():
        traced_s[folder] += last - first
        start, end = attempts.get(folder, (first, first))
        if not (start <= first and last <= end + BLURRED_S * (folder in drill.struck)):
            found.append(("lost", f"nobody paid for a trainer's {first} to {last}"))
    beyond_s = [end - start - traced_s[folder] for folder, (start, end) in attempts.items()
                if folder not in drill.struck]  # fmt: skip
    if not drill.real and sum(beyond_s) > SLACK_S * len(beyond_s):
        found.append(("invented", f"{sum(beyond_s):.1f} s are paid beyond the trainers' own"))
    return found


def run_of(folder: Path) -> str:
    run_dir = folder.parent if folder.name.startswith("attempt_") else folder
    return f"{run_dir.parent.name}/{run_dir.name}"


def overlaps(spans: list[tuple[float, float]], allowed: int) -> int:
    """How many lived at the same time, if more than are allowed; else 0."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in moments:  # of one moment, ends come first
        now += change
        most = max(most, now)
    return most if most > allowed else 0


def covered_s(spans: list[tuple[float, float]]) -> float:
    """The length of the union."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def run(kills: int, seed: int, real: bool, print_line=print) -> dict[str, int]:
    """The whole drill; its figures."""
    moments = random.Random(seed)
    total = Counter(kills=0, **dict.fromkeys(COUNTED, 0))
    with tempfile.TemporaryDirectory(prefix="crash_drill_") as scratch:
        undisturbed = Drill(Path(scratch) / "undisturbed", real)
        began = time.monotonic()
        undisturbed.finish()
        runs = len(undisturbed.records().results)
        longest_s = 0.1 + (1 if real else 1.5) * (time.monotonic() - began) / runs
        head = " ".join(f"{name:>11}" for name in COUNTED)
        print_line(f"{'experiment':>10} {'packed':>6} {'kills':>6} {'attempts':>9} {head}")
        number = 0
        while total["kills"] < kills:
            number += 1
            parallel_runs = 1 if real or number % 2 else 2
            drill = Drill(Path(scratch) / f"disturbed_{number}", real, parallel_runs)
            killed, left = disturb(drill, kills - total["kills"], longest_s, moments)
            findings = compare(undisturbed, drill)
            left += wait_until_gone(drill.token)
            local.end_marked(drill.exp_dir.resolve())
            found = Counter(kind for kind, _ in findings) + Counter(survivors=left)
            total.update(found, kills=killed)
            attempts = len(drill.records().results)
            row = " ".join(f"{found[name]:>11}" for name in COUNTED)
            print_line(f"{number:>10} {parallel_runs:>6} {killed:>6} {attempts:>9} {row}")
            for kind, what in findings:
                print_line(f"    {kind}: {what}")
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
