"""What do auxiliary heads cost?  Step time and memory of arms, beside what counting FLOPs predicts.

    python benchmarks/step_time.py --profile mini --options        # any CPU
    python benchmarks/step_time.py --profile middle                # a CPU, 50,304 tokens
    python benchmarks/step_time.py --profile speedrun              # a GPU; also small
    python benchmarks/step_time.py --profile mini --against REV    # steps/s beside an older trainer

Each arm takes turns with the baseline, step by step in one process, so that whatever else slows the
machine slows both; its ratio is the median over turns, with quartiles. Tokens are random: no data
is needed, and time does not depend on them. --json FILE writes the rows. What a GPU reaches, and
more about one, tells gpu_check.py.
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_gpt
from ablation.study.profiles import PROFILES, TRAINER_FLAGS, Profile


def rescaled(p: Profile, **changes) -> Profile:
    """The profile with these fields of its scale."""
    return replace(p, scale=replace(p.own_scale, **changes))


MIDDLE = rescaled(  # between mini and the GPU profiles: the 124M model's vocabulary on a CPU
    replace(PROFILES["small"], name="middle", machine="any CPU", gpus=0),
    sequence_length=256,
    batch_size=8,
    device_batch_size=8,
)
SIZES = {p.name: p for p in (PROFILES["mini"], MIDDLE, PROFILES["small"], PROFILES["speedrun"])}
PLACEMENTS = {"aux_6": (6,), "aux_4_8": (4, 8), "aux_3_6_9": (3, 6, 9)}
OPTIONS = {  # of heads, as docs/trainers.md has them: by what the table calls them
    "": (),
    "own unembedding": ("--aux_unembedding", "own"),
    "one layer": ("--aux_one_layer",),
    "stop at 2/3": ("--aux_stop_frac", "0.667"),
    "2 tokens ahead": ("--aux_tokens_ahead", "2"),
}

# ---------------------------------------------------------------------------------------------
# The count


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    arm: str = "baseline"
    layers: tuple[int, ...] = ()
    token_fraction: float = 1.0
    option: str = ""  # a key of OPTIONS


def flops_per_step(p: Profile, s: Setting, with_muon: bool = True) -> float:
    """Multiplications and additions of all matrix products in one step.

    A product with an (a x b) matrix takes 2ab for each position forward and twice that backward
    (gradients of the input and of the matrix), 6ab in all. A block has 12 D^2 of them (q, k, v and
    out, then up and down with 4 D^2 each), the main head V D, an auxiliary head D^2 + V D on its
    share of the positions, whether its unembedding is shared or its own. Attention takes T/2 scores
    a position (it is causal) of 2D, as much again for the values, and twice that backward: 6TD.

    Muon takes an (r x c) matrix, r <= c, through five steps of 2r^2c (gram matrix), 2r^3 (its
    square) and 2r^2c. That does not grow with the batch, and is not model FLOPs: it is left out
    where utilisation is computed.
    """
    scale = p.own_scale
    D, V, T = scale.model_dim, scale.vocab_size, scale.sequence_length
    positions = scale.batch_size * T
    main = scale.n_layer * (6 * 12 * D**2 + 6 * T * D) + 6 * V * D
    trained = {"one layer": 1, "stop at 2/3": 2 * len(s.layers) / 3}.get(s.option, len(s.layers))
    heads = trained * s.token_fraction * 6 * (D**2 + V * D)

    def polar_express(r: int, c: int) -> int:
        return 5 * (4 * r**2 * c + 2 * r**3)

    square = 4 * scale.n_layer + len(s.layers)
    muon = square * polar_express(D, D) + 2 * scale.n_layer * polar_express(D, 4 * D)
    return positions * (main + heads) + with_muon * muon


# ---------------------------------------------------------------------------------------------
# Measuring


def trainer_flags(p: Profile, s: Setting, data_dir: Path, num_iterations: int) -> list[str]:
    flags = {flag: getattr(p.own_scale, flag) for flag in TRAINER_FLAGS}
    flags |= {
        "aux_head_layers": ",".join(map(str, s.layers)),
        "aux_token_fraction": s.token_fraction,
        "data_dir": data_dir,
        "num_iterations": num_iterations,
        "val_tokens": p.own_scale.sequence_length,
        "val_loss_every": num_iterations,
        "device": "cuda" if p.gpus else "cpu",
    }
    named = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [*named, *OPTIONS[s.option]]


def write_random_shards(
    folder: Path, p: Profile, num_iterations: int, val_windows: int = 1
) -> None:
    rng = np.random.default_rng(0)
    header = np.zeros(256, dtype="<i4")
    scale = p.own_scale
    windows = num_iterations * scale.batch_size
    for kind, count in (("train", windows), ("val", val_windows)):
        tokens = rng.integers(0, scale.vocab_size, count * scale.sequence_length + 1, dtype="<u2")
        header[:3] = 20240520, 1, len(tokens)
        (folder / f"random_{kind}_000001.bin").write_bytes(header.tobytes() + tokens.tobytes())


class Arm:
    """A trainer that takes steps when asked, and remembers how long each took."""

    def __init__(self, p: Profile, s: Setting, data_dir: Path, num_iterations: int):
        flags = trainer_flags(p, s, data_dir, num_iterations)
        args = train_gpt.build_parser().parse_args(flags)
        self.world, self.on_gpu = train_gpt.join_world(args.device), bool(p.gpus)
        before = torch.cuda.memory_allocated() if self.on_gpu else 0
        shape = p.own_scale.sequence_length, p.own_scale.vocab_size
        windows = [train_gpt.Windows(data_dir, kind, *shape) for kind in ("train", "val")]
        self.trainer, self.next = train_gpt.Trainer(args, self.world, *windows), 0
        self.trainer.warm_up()
        self.peak_mib = self.own = 0
        for _ in range(2):
            self.step()
        self.own = torch.cuda.memory_allocated() - before if self.on_gpu else 0
        self.peak_mib = 0

    def step(self) -> float:
        """Milliseconds of one step."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            others = torch.cuda.memory_allocated()
        self.world.synchronize()
        started = time.perf_counter()
        self.trainer.step(self.next % self.trainer.args.num_iterations)
        self.world.synchronize()
        took_ms = 1000 * (time.perf_counter() - started)
        self.next += 1
        if self.on_gpu:
            above = torch.cuda.max_memory_allocated() - others
            self.peak_mib = max(self.peak_mib, (self.own + above) / 2**20)
        return took_ms

    def turn(self, steps: int) -> float:
        return statistics.fmean(self.step() for _ in range(steps))


def peak_on_cpu(p: Profile, s: Setting, data_dir: Path) -> float:
    """Of a run of two steps in a process of its own, MiB."""
    return run_trainer(ROOT / "train_gpt.py", trainer_flags(p, s, data_dir, 2))["peak_memory_mib"]


def run_trainer(script: Path, flags: list[str]) -> dict:
    done = subprocess.run(
        [sys.executable, str(script), *flags],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    return json.loads(re.search(r"^summary: (.*)$", done.stdout, re.MULTILINE)[1])


def measure(p: Profile, settings: list[Setting], turns: int, steps: int):
    """Rows, one by one; the baseline's last, over all its turns."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_shards(Path(folder), p, 64)
        base, all_base, recompiled = Arm(p, Setting(), Path(folder), 64), [], 0
        for setting in settings:
            arm, ratios, times = Arm(p, setting, Path(folder), 64), [], []
            compiled = graphs_compiled()
            for turn in range(turns):
                pair = {a: a.turn(steps) for a in ((base, arm), (arm, base))[turn % 2]}
                ratios.append(pair[arm] / pair[base])
                times.append(pair[arm])
                all_base.append(pair[base])
            peak = arm.peak_mib if arm.on_gpu else peak_on_cpu(p, setting, Path(folder))
            del arm, pair
            gc.collect()
            recompiled += graphs_compiled() - compiled
            yield row(p, setting, times, ratios, peak)
        peak = base.peak_mib if base.on_gpu else peak_on_cpu(p, Setting(), Path(folder))
        yield row(p, Setting(), all_base, [1.0], peak) | {"recompilations": recompiled}


def row(p: Profile, s: Setting, times: list[float], ratios: list[float], peak_mib: float) -> dict:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "profile": p.name,
        "arm": s.arm,
        "token_fraction": s.token_fraction if s.layers else None,
        "option": s.option,
        "step_ms": round(statistics.median(times), 3),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "flops_ratio": round(flops_per_step(p, s) / flops_per_step(p, Setting()), 4),
        "peak_mib": round(peak_mib, 1),
    }


def graphs_compiled() -> int:
    if "torch._dynamo" not in sys.modules:
        return 0
    return sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]


# ---------------------------------------------------------------------------------------------
# Side by side with an older version


def against(p: Profile, revision: str, pairs: int, num_iterations: int) -> list[float]:
    """New steps per second over old, of whole runs of the baseline taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        old, data = Path(folder) / "old", Path(folder) / "data"
        old.mkdir()
        data.mkdir()
        for name in ("train_gpt.py", "aux_heads.py"):
            show = ["git", "-C", str(ROOT), "show", f"{revision}:{name}"]
            (old / name).write_bytes(subprocess.run(show, capture_output=True, check=True).stdout)
        write_random_shards(data, p, num_iterations)
        flags = trainer_flags(p, Setting(), data, num_iterations)
        ratios = []
        for pair in range(pairs):
            order = (ROOT, old) if pair % 2 else (old, ROOT)
            ms = {d: run_trainer(d / "train_gpt.py", flags)["step_avg_ms"] for d in order}
            ratios.append(ms[old] / ms[ROOT])
            print(f"{ms[old]:9.2f} ms  {ms[ROOT]:9.2f} ms  {ratios[-1]:6.3f}", flush=True)
        return ratios


# ---------------------------------------------------------------------------------------------
# Command line


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--profile", choices=SIZES, default="mini")
    parser.add_argument("--arms", default=",".join(PLACEMENTS), help="of " + ", ".join(PLACEMENTS))
    parser.add_argument("--options", action="store_true", help="of heads, each with aux_4_8")
    parser.add_argument("--turns", type=int, default=15, help="of each arm and the baseline")
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--against", metavar="REV", help="compare with the trainer of a revision")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    p = SIZES[args.profile]
    if p.gpus and not torch.cuda.is_available():
        print(f"step_time.py: error: --profile {p.name} needs a GPU", file=sys.stderr)
        return 2
    torch.set_num_threads(threads := p.cpu_threads or torch.get_num_threads())
    if p.gpus:
        torch._dynamo.config.recompile_limit = 64  # one process holds the graphs of every arm
    print(f"{p.name}: torch {torch.__version__}, Python {platform.python_version()},", end=" ")
    print(torch.cuda.get_device_name() if p.gpus else f"{threads} threads of a CPU", flush=True)

    if args.against:
        print("   an old step   a new step  new / old steps per second")
        ratios = against(p, args.against, args.turns, 40)
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"median {middle:.3f}, quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs")
        return 0
    rows = []
    print("| arm | positions | option | step, ms | ratio (quartiles) | by FLOPs | peak, MiB |")
    print("|---|---|---|---|---|---|---|")
    arms = args.arms.split(",")
    settings = [Setting(arm, PLACEMENTS[arm], share) for arm in arms for share in (0.125, 1.0)]
    if args.options:
        arm = "aux_4_8" if "aux_4_8" in arms else arms[0]
        settings += [Setting(arm, PLACEMENTS[arm], 0.125, option) for option in OPTIONS if option]
    for r in measure(p, settings, args.turns, args.steps):
        rows.append(r)
        spread = "{:.3f} to {:.3f}".format(*r["ratio_quartiles"])
        print(
            f"| `{r['arm']}` | {r['token_fraction'] or '-'} | {r['option'] or '-'} |"
            f" {r['step_ms']:.1f} | {r['ratio']:.3f} ({spread}) | {r['flops_ratio']:.3f} |"
            f" {r['peak_mib']:.0f} |",
            flush=True,
        )
    if p.gpus:
        print(f"recompilations after warming up: {rows[-1]['recompilations']}")
    if args.json:
        args.json.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
