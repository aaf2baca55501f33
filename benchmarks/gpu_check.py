"""What does the trainer reach on a GPU?  One command for whoever has one for ten minutes.

    python benchmarks/gpu_check.py                     # the rows of ROWS, in order of worth
    python benchmarks/gpu_check.py --only heads,small  # some of them
    python benchmarks/gpu_check.py --emulate           # on a CPU, tiny: only tries the script

Each line is on the screen and in gpu_check.md (appended; --out) as soon as it is measured: what
cuts the check off loses no line. A failure is a line, and the next measurement goes on; what ran
out of memory is tried again with half the sequences a pass. Tokens are random, but `small` trains
on data/fineweb where it is.

Utilisation (MFU) is the share of the card's dense bf16 peak that the model's own FLOPs make up:

    (6 N + 6 L T D) x tokens of a step / seconds of a step / cards / PEAK_FLOPS of the card
    N = 12 L D^2 + V D: the matrices that multiply, not the embedding; 6 L T D: causal attention

as step_time.flops_per_step counts it. Muon, norms and softmax cost time, but are no FLOPs of it.
Peaks are those of nvidia.com's data sheets of the cards (Blackwell: of 2024; RTX 4090: Ada white
paper, with sums in fp32) and amd.com's of the MI300X; what is said "with sparsity" is halved.

Exit codes: 0 if all was measured that these cards can show, 1 if not, 2 without a GPU.
"""

import argparse
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_gpt
from ablation.execute.command import build_command, extra_environment
from ablation.execute.machine import git_state
from ablation.runs.log import read_log
from ablation.runs.outcome import Exit, judge
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, Share
from ablation.study.profiles import PROFILES, Profile
from benchmarks import step_time
from benchmarks.step_time import PLACEMENTS, Setting, graphs_compiled, rescaled, trainer_flags
from benchmarks.table import HEAD, Line, Row, measure, print_to
from tests.support.emulated_gpu import emulate
from tests.support.invent import code_at

# Dense bf16 with fp32 sums, by what the name that torch gives a card has in it; first come first.
# Only cards whose maker's own figure was seen (quoted, where the document itself was not at hand);
# those marked * are printed with sparsity, which is twice as much.
PEAK_FLOPS = {
    **{"H100 PCIe": 756e12, "H100 .*HBM2e": 756e12},  # NVIDIA H100 data sheet: 1,513*
    "H100(?! NVL)": 989e12,  # the same, SXM: 1,979*
    "H200(?! NVL)": 989e12,  # NVIDIA H200 data sheet, SXM: 1,979*
    **{"B200": 2250e12, "GB200": 2500e12},  # NVIDIA Blackwell data sheet, a GPU: 4.5, 5 PFLOPS*
    "A100": 312e12,  # NVIDIA A100 data sheet: 312 | 624*
    "A10": 125e12,  # NVIDIA A10 data sheet: 125 | 250*
    "L40S": 362e12,  # NVIDIA L40S data sheet: 362.05 | 733*
    "L4": 121e12,  # NVIDIA L4 data sheet: 242*
    "RTX 4090$": 165.2e12,  # NVIDIA Ada GPU architecture, appendix A: 165.2/330.4*
    "MI300X": 1307.4e12,  # ROCm documentation, MI300 microarchitecture
}
TURNS = 5  # of an arm with heads and the baseline
STEPS, LEAST_STEPS, TIMED_MS = 16, 3, 30_000  # so many, or what this time allows
TINY = {  # in place of a profile's own
    **{"n_head": 2, "model_dim": 16, "vocab_size": 64, "sequence_length": 32},
    **{"batch_size": 4, "device_batch_size": 2, "val_tokens": 96, "val_loss_every": 2},
}
AUX_4_8 = Setting("aux_4_8", PLACEMENTS["aux_4_8"], 0.125)


@dataclass(frozen=True)
class Check:
    """What all measurements get."""

    cards: int
    emulated: bool = False
    fits: int = 2**30  # sequences a pass

    def profile(self, name: str) -> Profile:
        p = PROFILES[name]
        if self.emulated:
            p = rescaled(replace(p, gpus=0, cpu_threads=1), **TINY)
        return rescaled(p, device_batch_size=min(p.own_scale.device_batch_size, self.fits))

    def card(self) -> str:
        return "an emulated GPU" if self.emulated else torch.cuda.get_device_name()

    def smaller(self) -> "Check | None":
        half = self.profile("speedrun").own_scale.device_batch_size // 2
        return replace(self, fits=half) if half else None

    def begin(self) -> None:
        torch._dynamo.config.recompile_limit = 64  # one process holds the graphs of every arm
        if self.emulated:
            torch.set_num_threads(1)
            step_time.peak_on_cpu = lambda *_: 0.0  # it would start a process each time
            emulate()


def peak_flops(card: str) -> float | None:
    """None for a card that is not in the table, and for a part of one."""
    found = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}(?!\w)", card))
    return None if "MIG" in card else next(found, None)


# ---------------------------------------------------------------------------------------------
# On one card


def card(check: Check) -> Iterator[Line]:
    yield Line("cards", f"{check.cards}, the first: {check.card()}")


def speedrun(check: Check) -> Iterator[Line]:
    """The whole batch on one card, in as many passes as it takes."""
    p, times = check.profile("speedrun"), []
    with tempfile.TemporaryDirectory() as folder:
        step_time.write_random_shards(Path(folder), p, STEPS + 2)
        arm = step_time.Arm(p, Setting(), Path(folder), STEPS + 2)
        while len(times) < LEAST_STEPS or (len(times) < STEPS and sum(times) < TIMED_MS):
            times.append(arm.step())
    low, middle, high = np.percentile(times, [25, 50, 75])
    spread = f"quartiles {low:.1f} to {high:.1f}, {len(times)} steps"
    yield Line(f"{on(p, 1)}, ms a step", f"{middle:.1f} ({spread})")
    yield utilisation(check, p, middle / 1000, cards=1)
    peak = arm.peak_mib or train_gpt.peak_memory_mib(arm.world)
    yield Line(f"{on(p, 1)}, peak MiB", f"{peak:.0f} ({p.own_scale.device_batch_size} a pass)")


def on(p: Profile, cards: int) -> str:
    return f"{p.name} on {cards} card{'s' * (cards > 1)}"


def utilisation(check: Check, p: Profile, step_s: float, cards: int) -> Line:
    flops = step_time.flops_per_step(p, Setting(), with_muon=False) / step_s / cards
    what, each = f"{on(p, cards)}, utilisation", f"{flops / 1e12:.3g} TFLOP/s a card"
    if not (peak := peak_flops(name := check.card())):
        return Line(what, f"not known: no peak of '{name}' in PEAK_FLOPS ({each})")
    share, aimed = flops / peak, p.name == "speedrun" and cards == 1
    measured = f"{share:.3f} of {peak / 1e12:.4g} TFLOP/s ({each})"
    met = share >= 0.5 if aimed and "H100" in name else None
    return Line(what, measured, "at least .50 on an H100" * aimed, met)


def heads(check: Check) -> Iterator[Line]:
    """In turns with the baseline, as step_time.py does it."""
    arms = ("aux_4_8", "aux_6", "aux_3_6_9")
    settings = [Setting(arm, PLACEMENTS[arm], share) for share in (0.125, 1.0) for arm in arms]
    for r in step_time.measure(check.profile("speedrun"), settings, TURNS, 1):
        if r["arm"] == "baseline":  # the last
            count = r["recompilations"]
            yield Line("graphs compiled during the turns", str(count), "0", count == 0)
            continue
        aimed = (r["arm"], r["token_fraction"]) == (AUX_4_8.arm, AUX_4_8.token_fraction)
        low, high = r["ratio_quartiles"]
        yield Line(
            f"`{r['arm']}` at {r['token_fraction']} of the positions, step over the baseline's",
            f"{r['ratio']:.3f} ({low:.3f} to {high:.3f}); by FLOPs {r['flops_ratio']:.3f};"
            f" {r['step_ms']:.1f} ms, peak {r['peak_mib']:.0f} MiB",
            "at most 1.05" * aimed,
            r["ratio"] <= 1.05 if aimed and not check.emulated else None,
        )


class CountingLog(train_gpt.Log):
    """Prints nothing; notes how many graphs there are at the end of each validation."""

    graphs: tuple[int, ...] = ()

    def line(self, text: str) -> None:
        if " val_loss:" in text:
            self.graphs += (graphs_compiled(),)


def recompilations(check: Check) -> Iterator[Line]:
    """In whole short runs, with a smaller last pass of validation, and heads off at the end."""
    p, steps = check.profile("speedrun"), 6
    sequences = p.own_scale.device_batch_size + 1  # of validation
    for setting in (Setting(), AUX_4_8):
        with tempfile.TemporaryDirectory() as folder:
            step_time.write_random_shards(Path(folder), p, steps, sequences)
            flags = trainer_flags(p, setting, Path(folder), steps)
            flags += ["--aux_loss_schedule", "linear_decay", "--val_loss_every", "2"]
            flags += ["--val_tokens", str(sequences * p.own_scale.sequence_length)]
            trainer = trainer_of(flags)
            train_gpt.train(trainer, log := CountingLog("", trainer.world, steps))
        first, last = log.graphs[0], log.graphs[-1]
        measured = f"{last - first} ({len(log.graphs)} validations, {first} graphs at the first)"
        what = f"recompilations after the first validation, `{setting.arm}`"
        yield Line(what, measured, "0", first == last)


def trainer_of(flags: list[str]) -> train_gpt.Trainer:
    args = train_gpt.build_parser().parse_args(flags)
    shape = args.sequence_length, args.vocab_size
    windows = [train_gpt.Windows(args.data_dir, kind, *shape) for kind in ("train", "val")]
    return train_gpt.Trainer(args, train_gpt.join_world(args.device), *windows)


# ---------------------------------------------------------------------------------------------
# By the command of an experiment


def small(check: Check) -> Iterator[Line]:
    return end_to_end(check, check.profile("small"), 6 if check.emulated else 300, cards=1)


def all_cards(check: Check) -> Iterator[Line]:
    """As many as divide the batch."""
    return end_to_end(check, check.profile("speedrun"), 20, 2 ** int(math.log2(check.cards)))


def end_to_end(check: Check, p: Profile, iterations: int, cards: int) -> Iterator[Line]:
    scale, data, tokens = p.own_scale, ROOT / p.data_dir, "real text"
    val_windows = scale.val_tokens // scale.sequence_length
    with tempfile.TemporaryDirectory() as folder:
        if not holds(data, p, {"train": iterations * scale.batch_size, "val": val_windows}):
            data, best = Path(folder), f"at best {math.log(scale.vocab_size):.3f}"
            tokens = f"random tokens, for want of {p.data_dir}: {best}"
            step_time.write_random_shards(data, p, iterations, val_windows)
        r = run(check, p, iterations, cards, data)
    name, prior = on(p, cards), f"the profile's prior: {1000 * p.step_s:.0f}"
    yield Line(f"{name}, val loss after {iterations} iterations", f"{r.val_loss:.4f} ({tokens})")
    yield Line(f"{name}, s from the command to its end", f"{r.end_s - r.start_s:.1f}")
    yield Line(f"{name}, ms a step of the run", f"{r.step_avg_ms:.1f} ({prior} on {p.machine})")
    yield utilisation(check, p, r.step_avg_ms / 1000, cards)
    yield Line(f"{name}, peak MiB of the run", f"{r.peak_memory_mib:.0f}")


def holds(folder: Path, p: Profile, windows: dict[str, int]) -> bool:
    shape = p.own_scale.sequence_length, p.own_scale.vocab_size
    with suppress(ValueError, OSError):
        found = {kind: train_gpt.Windows(folder, kind, *shape).count for kind in windows}
        return all(found[kind] >= count for kind, count in windows.items())
    return False


def run(check: Check, p: Profile, iterations: int, cards: int, data: Path) -> RunResult:
    """A baseline through torchrun. Raises RuntimeError with the reason where it is not complete."""
    e = Experiment(p, "manual", 1.0, iterations, None, Share("cuda" if p.gpus else "cpu", cards))
    config = RunConfig(0, Arm("baseline"), 0, 42, iterations)
    script = ROOT / ("tests/support/emulated_gpu.py" if check.emulated else "train_gpt.py")
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        command = build_command(e, config, code_at(script), data, folder)
        how = {"env": os.environ | extra_environment(e, folder), "stderr": subprocess.STDOUT}
        with (folder / "output.log").open("wb") as output:
            code = subprocess.run(command, stdout=output, **how).returncode
        ended = Exit(code, "itself", "", started, time.monotonic())
        result = judge(config, 1, read_log(folder / "output.log", iterations), ended)
    if result.status != "ok":
        raise RuntimeError(f"{result.status}: {result.reason}")
    return result


# ---------------------------------------------------------------------------------------------
# On two cards


def processes(check: Check) -> Iterator[Line]:
    """One batch: a pass of each of two processes, or two passes of one."""
    p = check.profile("speedrun")
    p = rescaled(p, batch_size=2 * p.own_scale.device_batch_size)
    with tempfile.TemporaryDirectory() as folder:
        step_time.write_random_shards(Path(folder), p, 1)
        for size in (1, 2):
            torch.multiprocessing.spawn(save_gradients, (size, check, p, Path(folder)), size)
        (one, again), (two, _) = (torch.load(f"{folder}/{size}.pt") for size in (1, 2))
    worst, twice = farthest(one, two), f"one process, twice: {farthest(one, again):.1e}"
    measured = f"{worst:.1e} (the farthest of {len(one)} tensors; {twice})"
    yield Line("gradients of 2 processes and of 1, relative", measured, "to 1e-2", worst <= 1e-2)


def farthest(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The largest |a - b| / |a| of a pair; a tensor that is nearly zero counts as a small one."""
    least = 1e-3 * max(a.norm().item() for a in ones)
    pairs = zip(ones, others, strict=True)
    return max((a - b).norm().item() / max(a.norm().item(), least) for a, b in pairs)


def save_gradients(rank: int, size: int, check: Check, p: Profile, folder: Path) -> None:
    """Of two tries. Weights are moved first: as they begin, most gradients are zero."""
    check.begin()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    if size > 1:
        train_gpt.join_world("cuda" if p.gpus else "cpu")  # NCCL takes the device that is set
        where = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": size}
        torch.distributed.init_process_group("nccl" if p.gpus else "gloo", **where)
    trainer, found = trainer_of(trainer_flags(p, AUX_4_8, folder, 1)), []
    generator = torch.Generator().manual_seed(0)
    for q in trainer.parameters:
        q.data += 0.02 * torch.randn(q.shape, generator=generator).to(q.device)
    for _ in range(2):
        trainer.gradients(0, 0.1)
        grads = [torch.zeros_like(q) if q.grad is None else q.grad for q in trainer.parameters]
        found.append([grad.clone().cpu() for grad in grads])
        trainer.forget_gradients()
    if rank == 0:
        torch.save(found, folder / f"{size}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------------------------------
# The table

ROWS = (  # in order of worth; estimates are for an H100, compilation included
    Row("card", card, 10),
    Row("speedrun", speedrun, 90),
    Row("heads", heads, 240),
    Row("recompilations", recompilations, 70),
    Row("small", small, 100),
    Row("processes", processes, 70, cards=2),
    Row("all_cards", all_cards, 80, cards=2),
)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", default=",".join(names), help="of " + ", ".join(names))
    parser.add_argument("--minutes", type=float, default=10.0, help="starts what fits into them")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"), help="appended to")
    how = "the same on a CPU, at a tiny size: only tries the script itself"
    parser.add_argument("--emulate", action="store_true", help=how)
    args = parser.parse_args(argv)
    if unknown := set(args.only.split(",")) - {*names}:
        parser.error(f"--only {','.join(sorted(unknown))}: give some of {', '.join(names)}")
    cards = 2 if args.emulate else torch.cuda.is_available() and torch.cuda.device_count()
    if not cards:
        print("gpu_check.py: error: torch sees no GPU, nothing was measured", file=sys.stderr)
        return 2
    try:
        file = args.out.open("a")
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    with file:
        say, commit = partial(print_to, file), git_state()["commit"][:7] or "unknown"
        versions = f"commit {commit}, torch {torch.__version__}, Python {platform.python_version()}"
        say(f"\n{time.strftime('%F %R')}, {versions}{', EMULATED' * args.emulate}\n\n{HEAD}")
        rows = [row for row in ROWS if row.name in args.only.split(",")]
        return int(not measure(rows, Check(cards, args.emulate), args.minutes, say))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # not at once: what was started is ended too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
