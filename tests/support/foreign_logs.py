"""Logs as other trainers write them, of any length, with whatever else lies in them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

RULE = "=" * 100
SOURCE = '''"""A trainer. Its last line is, for example:

step:8/8 val_loss:1.0000 train_time:80ms step_avg:10.00ms
"""
import os
import sys
from torch import nn

with open(sys.argv[0]) as f:
    code = f.read()
print0(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{ms:.0f}ms")
# step:8/8 val_loss:nan train_time:80ms step_avg:10.00ms
raise torch.OutOfMemoryError("out of memory")
step 8: train loss 1.0000, val loss 1.0000
val_bpb: 1.0000
{"step": 8, "val_loss": 1.0}
'''
ENVIRONMENT = """Running Python 3.12.7 (main, Oct 16 2024)
Running pytorch 2.6.0.dev20241203+cu124 compiled for CUDA 12.4
| NVIDIA-SMI 560.35.03    Driver Version: 560.35.03    CUDA Version: 12.6     |
"""
HEAD = f"{SOURCE}{RULE}\n{ENVIRONMENT}{RULE}\n"
FLOOD = (
    "NCCL version 2.21.5+cuda12.4",
    "[W1125 10:00:01.123 socket.cpp:767] [c10d] The IPv6 network addresses of (x, 1) ...",
    "/x/y.py:3: UserWarning: `torch.foo` is deprecated",
    "peak memory allocated: 10184 MiB reserved: 10200 MiB",
    "seed:42",
    "micro_step:3/8 loss:9.9",
    "tokens per iteration will be: 491,520",
    "saving checkpoint to out",
    "Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025)",
)


@dataclass(frozen=True)
class Form:
    """How a trainer prints a step with the metric, one without, and its end."""

    val: Callable[[int, int, str], str]  # step, total, value
    train: Callable[[int, int], str]
    end: Callable[[int, int, str], str] = lambda step, total, value: ""
    metric: str = "val_loss"
    format: str = ""


def speedrun(step, total, value, middle="", unit="ms"):
    time = f"{step * 10}" if unit == "ms" else f"{step / 100:.2f}"
    front = f"step:{step}/{total} val_loss:{value}{middle}"
    return f"{front} train_time:{time}{unit} step_avg:{'10.00' if step else 'nan'}ms\n"


def trained(step, total):
    return f"step:{step}/{total} train_loss:3.5000 train_time:{step * 10}ms step_avg:10.00ms\n"


def nanogpt_iter(step, total):
    return f"iter {step}: loss 3.5000, time 10.00ms, mfu -100.00%\n"


def research_step(step, total):
    share = 100 * step / total
    return f"step {step:05d} ({share:.1f}%) | loss: 3.500 | lrm: 1.00 | dt: 10ms | remaining: 0s\n"


FORMS = {
    "speedrun": Form(speedrun, trained, format="modded-nanogpt"),
    "track 3": Form(lambda *told: speedrun(*told, unit="s"), trained, format="modded-nanogpt"),
    "with bytes": Form(
        lambda *told: speedrun(*told, middle=" val_bpb:1.1000"), trained, format="modded-nanogpt"
    ),
    "a fraction": Form(
        lambda step, total, value: f"{step}/{total} val_loss: {value} val_bpb: 1.1000\n",
        lambda step, total: f"{step}/{total} train_loss: 3.5000\n",
        format="modded-nanogpt",
    ),
    "golf": Form(
        lambda step, total, value: speedrun(step, total, "2.5000", " val_bpb:1.5000"),
        trained,
        lambda step, total, value: (
            "final_int8_zlib_roundtrip val_loss:2.0 val_bpb:1.2"
            f" eval_time:1400ms\nfinal_int8_zlib_roundtrip_exact val_loss:2.07 val_bpb:{value}\n"
        ),
        metric="final_int8_zlib_roundtrip_exact val_bpb",
        format="parameter-golf",
    ),
    "nanogpt": Form(
        lambda step, total, value: f"step {step}: train loss 3.4000, val loss {value}\n",
        nanogpt_iter,
        format="nanogpt",
    ),
    "research": Form(
        lambda step, total, value: "",
        research_step,
        lambda step, total, value: (
            f"---\nval_bpb:          {value}\n"
            f"training_seconds: {step / 100:.2f}\nnum_steps:        {step}\ndepth:            8\n"
        ),
        metric="val_bpb",
        format="autoresearch",
    ),
    "json": Form(
        lambda step, total, value: (
            json.dumps({"step": step, "val_loss": float(value), "train_time_ms": step * 10.0})
            + "\n"
        ),
        lambda step, total: json.dumps({"step": step, "train_loss": 3.5}) + "\n",
        format="json-lines",
    ),
}


def log_of(form: Form, total=8, last="3.2784", first="10.8000", steps: Iterable[int] | None = None):
    """The lines of a whole training, without what stands at its head."""
    lines = [form.val(0, total, first)] if form.val(0, total, first) else []
    for step in steps or range(1, total + 1):
        lines.append(form.train(step, total))
    return "".join([*lines, form.val(total, total, last), form.end(total, total, last)])


def flooded(text: str, every=FLOOD) -> str:
    """The same lines with others between all of them."""
    lines = text.splitlines(keepends=True)
    return "".join(line + "".join(f"{more}\n" for more in every) for line in lines)


def of_ranks(text: str, ranks=(0, 1)) -> str:
    """Every line from several processes, with their labels."""
    lines = text.splitlines(keepends=True)
    return "".join(f"[rank{rank}]: {line}" for line in lines for rank in ranks)


def metric_end(text: str, value: str) -> int:
    """Where the line ends that holds the last value: what is shorter is cut off."""
    return text.index("\n", text.rindex(value)) + 1
