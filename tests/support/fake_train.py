"""A trainer that trains nothing: invented losses in the real trainer's words, in milliseconds.

The loss depends on the arm and the seed alone. FAKE_SECONDS is how long a run of 100 iterations
takes; FAKE_MISCHIEF, as JSON, names what goes wrong for which `--aux_head_layers`; FAKE_FITS is the
largest `--device_batch_size` that fits into memory; FAKE_TRACE names a file that gets a line (log
file, process id, monotonic time) at every sign of life.
"""

import json
import os
import random
import signal
import sys
import time

EFFECTS = {"": 0.0, "4": 0.05, "6": 0.08, "8": 0.06, "4,8": 0.12, "3,6,9": 0.07}
HYPER = {"0.05": -0.01, "0.2": -0.02, "linear_decay": 0.01, "cosine_decay": 0.005}


def main() -> int:
    words = [word for word in sys.argv[1:] if word not in ("--unet_skips", "--log_grad_norms")]
    args = dict(zip(words[::2], words[1::2], strict=True))
    layers, seed = args.get("--aux_head_layers", ""), args["--seed"]
    weight, schedule = args.get("--aux_loss_weight", ""), args.get("--aux_loss_schedule", "")
    total = int(args["--num_iterations"])
    mischief = json.loads(os.environ.get("FAKE_MISCHIEF", "{}")).get(layers, "")
    seconds = float(os.environ.get("FAKE_SECONDS", "0")) * total / 100
    step_ms = max(1000 * seconds / total, 0.001)  # the time it sleeps, so the clock agrees

    effect = EFFECTS.get(layers, 0.0)
    if layers:
        effect += HYPER.get(weight, 0.0) + HYPER.get(schedule, 0.0)
    if mischief == "unseeded":
        seed = "the same for all"
    noise = random.Random(f"{layers}/{weight}/{schedule}/{seed}/{total}").gauss(0, 0.0013)
    final = 3.3 - effect + noise

    if mischief == "crash":
        print("Traceback (most recent call last):\nRuntimeError: a cable was cut", flush=True)
        return 1
    if mischief == "refuse":
        print("train.py: error: --batch_size 3: give a multiple of 2", flush=True)
        return 2
    fits = int(args["--device_batch_size"]) <= float(os.environ.get("FAKE_FITS", "inf"))
    if mischief == "oom" or not fits:
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", flush=True)
        return 1
    if mischief == "stubborn":  # children that ignore SIGTERM, in a session of their own
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(2):
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
    steps = [total * k // 4 for k in range(5)]
    trace(args["--log_file"])
    for step in steps:
        time.sleep(seconds / 4 if step else 0)
        trace(args["--log_file"])
        loss = final + 1.0 * (1 - step / total)
        if mischief in ("hang", "stubborn") and step:
            time.sleep(600)
        if mischief == "flood":
            for _ in range(2):
                os.write(1, b"noise \x1b[31m\xff\n" * 100_000)
        if mischief == "truncated" and step == total:
            return 0
        if mischief == "nan" and step == steps[2]:
            print(f"step:{step}/{total} train_loss:nan train_time:{step}ms step_avg:1.00ms")
            print(f"diverged: train_loss is nan at step {step}/{total}", flush=True)
            return 3
        print(
            f"step:{step}/{total} val_loss:{loss:.6f} train_time:{step * step_ms:.0f}ms"
            f" step_avg:{step_ms:.2f}ms",
            flush=True,
        )
    summary = {
        "val_loss": final,
        "steps_done": total,
        "train_time_ms": total * step_ms,
        "step_avg_ms": step_ms,
        "peak_memory_mib": 1.0,
        "tokens_seen": total * 1000,
        "num_parameters": 1000,
    }
    for _ in range(2 if mischief == "twice" else 1):
        print("summary: " + json.dumps(summary), flush=True)
    return 0


def trace(log_file: str) -> None:
    if path := os.environ.get("FAKE_TRACE"):
        with open(path, "a") as file:
            file.write(f"{log_file} {os.getpid()} {time.monotonic()}\n")


if __name__ == "__main__":
    sys.exit(main())
