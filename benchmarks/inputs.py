"""What does a machine, a trainer, a disk or a person hand to this project?  Generated, by a table.

Logs come from a grammar: a complete one of the README's contract, with decorations that change
nothing, perhaps with one fault that must be seen, perhaps with anything at all. Folders hold honest
records of which some files are damaged, byte by byte or value by value. Everything is drawn from
one random.Random: equal seeds give equal inputs.
"""

import copy
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

# ---------------------------------------------------------------------------------------------
# Logs

HONEST, FAULTY, DIVERGED, ANYTHING = "ok", "not ok", "diverged", "anything"


@dataclass(frozen=True)
class Log:
    """What an attempt left, and what it has to be judged to be, where that is known."""

    total: int
    screen: bytes
    own: bytes | None  # train_log.txt
    exit: dict  # the contents of exit.json
    truth: str

    @property
    def texts(self) -> list[bytes]:
        return [self.screen] if self.own is None else [self.screen, self.own]


BAR = " 50%|#####     | 4/8 [00:01<00:01,  3.90it/s]"
FRONTS = {  # in front of a line of the trainer: harmless
    "": 3,
    "\x1b[1;32m": 1,
    "\x1b[2K\r": 1,
    "\x1b]0;training\x07": 1,
    f"\r{BAR}\r": 1,
    f"\r{BAR}": 1,
    f"{BAR}\x1b[A\r": 1,
    "   \r": 1,
    "x.py:3: UserWarning: 'a' is deprecated (see b).": 1,
    "UserWarning: something ": 1,
    "2026-11-25 10:00:01,123 INFO ": 1,
    "[2026-11-25 10:00:01,123][train][INFO] - ": 1,
    "INFO:root:": 1,
    "I1125 10:00:01.123456 4711 train.py:12] ": 1,
    "[10:00:01] ": 1,
    "(worker pid=4711) ": 1,
}
RANKED = {"[rank{}]: ": 1, "[default{}]:": 1, "rank {}: ": 1, "(rank {}) ": 1, " {}: ": 1}
BACKS = ("", "", "", "  \t", "\r", "\r   \r", "\x1b[0m", " \x1b[0m \x1b[K")
FOREIGN = (  # lines of others: harmless wherever they stand
    b"",
    b"\x1b[33mwarning\x1b[0m: a thing is deprecated",
    b"W1125 10:02:03.192000 40 torch/distributed/run.py:851] *****************************",
    b"Setting OMP_NUM_THREADS environment variable for each process to be 1 in default",
    b"NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>",
    b'    print0(f"step:{step}/{total} val_loss:{val_loss:.6f}")',
    b"print('summary: ' + json.dumps(summary))",
    b"=" * 100,
    b"seed:1337",
    b"global_step:7/8 val_loss:9.000000 train_time:1ms step_avg:1.00ms",
    b"step:3/7777777 val_loss:nan train_time:1ms step_avg:1.00ms",
    b"# step:3/8 val_loss:nan is what a divergence looks like",
    b"stopping_early: wallclock_cap train_time:1ms step:3/8",
    b"final_int8_zlib_roundtrip_exact val_loss:3.1 val_bpb:1.2",
    b"model summary: 12 layers",
    b"\xff\xfe\x00 not text at all \x80",
    b"x" * 5000,
    b"peak memory: 31000 MiB",
)


def weighted(rng: random.Random, table: dict) -> str:
    return rng.choices([*table], weights=[*table.values()])[0]


def step_line(step, total, loss, time_ms, kind="val", end="ms") -> bytes:
    loss = loss if isinstance(loss, str) else f"{loss:.6f}"
    return (
        f"step:{step}/{total} {kind}_loss:{loss} train_time:{time_ms:.0f}{end}"
        f" step_avg:{time_ms / max(step, 1):.2f}ms"
    ).encode()


def summary_line(summary: dict) -> bytes:
    return b"summary: " + json.dumps(summary).encode()


def complete(rng: random.Random, total: int | None = None, val_loss: float | None = None):
    """(total, summary, lines) of a whole training, as the README has them."""
    total = total or rng.choice((1, 2, 8, 8, 20, 90, 1000, 5100))
    val_loss = val_loss or round(rng.uniform(0.5, 11.0), rng.choice((6, 7, 12)))
    ms = rng.uniform(0.5, 400.0)
    steps = sorted({0, total, *(rng.randrange(total + 1) for _ in range(rng.randrange(4)))})
    losses = {s: val_loss + 4 * (1 - s / total) for s in steps}
    lines = [step_line(s, total, losses[s], s * ms) for s in steps]
    if rng.random() < 0.5:
        at = rng.randrange(1, len(lines) + 1) - 1
        lines.insert(at, step_line(steps[at], total, losses[steps[at]], 1.0, "train"))
    summary = {
        "val_loss": val_loss,
        "steps_done": total,
        "train_time_ms": total * ms,
        "step_avg_ms": ms,
        "peak_memory_mib": rng.choice((0, 1.5, 31000)),
        "tokens_seen": total * rng.choice((1, 1024, 524288)),
        "num_parameters": rng.choice((1, 7, 123_587_328)),
    }
    return total, summary, [*lines, summary_line(summary)]


def exit_of(rng: random.Random, summary: dict) -> dict:
    """The end of an attempt that took as long as its training, and some."""
    start_s = rng.choice((0.0, 5.5, 1e5))
    wall_s = summary["train_time_ms"] / 1000 + rng.choice((0.5, 60.0))
    clock = {"clock": "boot", "start_s": start_s, "end_s": start_s + wall_s, "nodes": 1}
    return {"returncode": 0, "ended_by": "itself", **clock}


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def dressed(rng: random.Random, lines: list[bytes], ranked=True, times=3) -> list[bytes]:
    """The same lines with anything around them that a terminal or a logger may have put there."""
    lines = list(lines)
    for _ in range(rng.randrange(times + 1)):
        front = weighted(rng, FRONTS)
        if ranked and rng.random() < 0.2:
            front, ranked = weighted(rng, RANKED).format(rng.randrange(9)), False
        around = (front.encode(), rng.choice(BACKS).encode())
        which = rng.choice((range(len(lines)), [rng.randrange(len(lines))]))
        for at in which:
            lines[at] = around[0] + lines[at] + around[1]
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(FOREIGN))
    return lines


def honest_log(rng: random.Random) -> Log:
    total, summary, lines = complete(rng)
    exit, own, ranked = exit_of(rng, summary), None, False
    layout = rng.randrange(8)
    if layout == 1:  # every rank prints, in step
        label = weighted(rng, RANKED)
        lines = [label.format(n).encode() + line for line in lines for n in (0, 1)]
    elif layout == 2:  # one after the other
        label = weighted(rng, RANKED)
        lines = [label.format(n).encode() + line for n in (0, 1) for line in lines]
    elif layout == 3:  # without labels
        lines = [line for line in lines for _ in (0, 1)]
    elif layout == 4:  # without line ends
        at = rng.randrange(len(lines) - 1)
        lines[at : at + 2] = [lines[at] + lines[at + 1]]
    elif layout == 5:  # the screen's copy is damaged, the trainer's own is whole
        own = joined(dressed(rng, lines))
        lines = lines[: rng.randrange(len(lines))] or [b""]
    elif layout == 6:
        own = joined(lines)
    else:
        ranked = True
    screen = joined(dressed(rng, lines, ranked))
    if layout == 5 and rng.random() < 0.5:
        screen = screen[: rng.randrange(len(screen) + 1)]
    return Log(total, screen, own, exit, HONEST)


WRONG = {  # field of the summary: values that nobody can mean
    "val_loss": (None, "3.27", True, 0, -1.0, [], {}, 10**400, "nan"),
    "steps_done": (None, 8.0, "8", True, -1, 10**30),
    "train_time_ms": (None, 0, -5, "1", False, [1], 10**15),
    "step_avg_ms": (None, 0.0, -1, "x"),
    "peak_memory_mib": (None, -1, "1", [], -(10**400)),
    "tokens_seen": (None, 0, 1000.0, False, "1", -5),
    "num_parameters": (None, 0, 7.0, "7", {}, True),
}
NOT_FINITE = ("nan", "NaN", "inf", "-inf", "Infinity", "1e999", "+inf", "-nan")


def faulty_log(rng: random.Random) -> Log:
    """One thing is wrong with it, which has to be seen through all decorations."""
    total, summary, lines = complete(rng)
    exit, truth = exit_of(rng, summary), FAULTY
    at, last = rng.randrange(len(lines)), len(lines) - 2
    other = summary["val_loss"] + rng.choice((-0.3, 0.001, 1.0))
    match rng.randrange(14):
        case 0:  # cut off
            text = joined(dressed(rng, lines, times=1))
            end = text.rindex(b'summary: {"val_loss"')
            return Log(total, text[: rng.randrange(end + 9)], None, exit, truth)
        case 1:  # a field of the wrong kind
            name = rng.choice([*WRONG])
            lines[-1] = summary_line({**summary, name: rng.choice(WRONG[name])})
        case 2:  # a field that is missing
            del summary[rng.choice([*summary])]
            lines[-1] = summary_line(summary)
        case 3:  # not all steps
            lines[-1] = summary_line({**summary, "steps_done": total - 1})
        case 4:  # another loss than the last step's
            lines[-1] = summary_line({**summary, "val_loss": other})
        case 5:  # no last step
            del lines[last]
            lines = [x for x in lines if not x.startswith(f"step:{total}/".encode())]
        case 6:
            loss, kind = rng.choice(NOT_FINITE), rng.choice(("val", "train"))
            step = rng.randrange(total + 1)
            lines.insert(rng.randrange(len(lines) + 1), step_line(step, total, loss, 1.0, kind))
            truth = DIVERGED
        case 7:  # a second summary that says otherwise
            name, value = rng.choice((("val_loss", other), ("tokens_seen", 3), ("steps_done", 0)))
            lines.insert(len(lines) - at, summary_line({**summary, name: value}))
        case 8:  # two losses of one step
            lines.insert(rng.randrange(len(lines) + 1), step_line(total, total, other, 5.0))
        case 9:  # a second run
            again = complete(rng, total)[2]
            lines += again[: rng.randrange(1, len(again) + 1)] if total > 1 else again
        case 10:  # more training than there was time
            lines[-1] = summary_line({**summary, "train_time_ms": 1e3 * exit["end_s"] * 3 + 1e9})
        case 11:
            exit["returncode"] = rng.choice((1, 2, 3, 137, 127, -9, -15, -11, None, 255))
        case 12:  # a summary whose numbers are none
            lines[-1] = lines[-1].replace(str(summary["val_loss"]).encode(), b"NaN", 1)
        case 13:  # a summary without its line end
            text = joined(dressed(rng, lines[:-1])) + lines[-1]
            return Log(total, text, None, exit, truth)
    if rng.random() < 0.2 and truth is DIVERGED:
        exit["returncode"] = 3
    return Log(total, joined(dressed(rng, lines)), None, exit, truth)


SPLINTERS = (
    *(b"step:", b"summary: ", b'summary: {"val_loss": 1.0}', b"step:8/8 val_loss:", b"nan", b"\r"),
    *(b"\n", b"\x1b[", b"\x1b]0;", b"\x07", b"\xff\xfe", b"\x00", b'"', b"{", b"}", b"[rank1]: "),
    *(b" 1: ", b"RuntimeError: x\n", b"CUDA out of memory", b"failed (exitcode: 2) local_rank: 0 "),
    *(b"  exitcode  : 2 (pid: 1)\n", b"Root Cause (first observed failure):\n", b"train_time:"),
    *(b"9" * 30, b"9" * 5000, b"[" * 3000, b"-", b".", b"e", b"ms", b"step:1/1", b"a: error: b\n"),
    *(
        b"the kernel killed a process of this run: out of memory\n",
        "\u017ftep:\uff11/\uff18".encode(),
        b" " * 60,
    ),
)
ENDINGS = (
    "itself",
    "timeout",
    "stall",
    "operator",
    "budget",
    "",
    "\x1b[2J\nx",
    "é" * 900,
    "died",
    "the launcher could not be started: x",
    "0",
    "The budget",
)
RETURNCODES = (0, 0, 0, 0, 1, 2, 3, -9, -15, None, 137, 2**31, -(2**31))


def any_log(rng: random.Random) -> Log:
    """A log with anything done to it: only what is written in it can say what it is."""
    log = rng.choice((honest_log, faulty_log))(rng)
    texts = [mangled(rng, text, SPLINTERS) for text in log.texts]
    exit = dict(log.exit)
    if rng.random() < 0.3:
        exit |= {"returncode": rng.choice(RETURNCODES), "ended_by": rng.choice(ENDINGS)}
    if rng.random() < 0.1:
        texts = [texts[0], *log.texts[:1]]
    return Log(log.total, texts[0], texts[1] if len(texts) > 1 else None, exit, ANYTHING)


def a_log(rng: random.Random) -> Log:
    return rng.choices((honest_log, faulty_log, any_log), weights=(3, 4, 4))[0](rng)


# ---------------------------------------------------------------------------------------------
# Bytes and values, mangled


def mangled(rng: random.Random, text: bytes, splinters=(b"\x00", b"\xff", b"{", b'"', b"9" * 400)):
    """A text after one to six accidents."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((1, 1, 2, 10, 100)))
        match rng.randrange(8):
            case 0:
                text = text[:at] + rng.choice(splinters) + text[end:]
            case 1:
                text = text[:at] + rng.choice(splinters) + text[at:]
            case 2:
                text = text[:at] + text[end:]
            case 3:
                text = text[:at] + text[at:end] * rng.choice((2, 3)) + text[end:]
            case 4:
                text = text[:at]
            case 5:
                text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
            case 6:  # a line somewhere else
                lines = text.split(b"\n")
                line = lines.pop(rng.randrange(len(lines)))
                lines.insert(rng.randrange(len(lines) + 1), line)
                text = b"\n".join(lines)
            case 7:  # another digit
                digits = [n for n in range(len(text)) if 48 <= text[n] < 58][:2000]
                if digits:
                    at = rng.choice(digits)
                    text = text[:at] + b"%d" % rng.randrange(10) + text[at + 1 :]
    return text


NASTY = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.0,
        -0.0,
        1.5,
        1e308,
        -1e308,
        1e-320,
        10**18,
        2**63,
        -(2**63),
    ),
    *(
        2**64,
        10**40,
        10**399,
        "",
        "x",
        "nan",
        "8",
        "../../etc",
        "a/b",
        "\x1b[31mred\x07",
        "\u202e",
        "é",
    ),
    *(
        "\n",
        "x" * 5000,
        "\ud800",
        "\x00",
        "baseline",
        "ok",
        "classic",
        "adaptive",
        "manual",
        "mini",
    ),
    *([], {}, [[]], [0], [1, 2, 3], ["x"], {"x": 1}, {"name": "mini"}, [None], [[8, 3.2, 1.0]]),
    *(
        float("inf"),
        float("-inf"),
        float("nan"),
        "2026-11-25T10:00:00Z",
        "9999-99-99",
        "cuda",
        "slurm",
    ),
)


def nasty(rng: random.Random):
    """A copy: what is put into one input must not be altered in the next."""
    return copy.deepcopy(rng.choice(NASTY))


def places(value, path=()):
    """(path) of every value inside a JSON value, itself included."""
    yield path
    if len(path) > 50:  # deep enough to be altered anywhere
        return
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, part in inner:
        yield from places(part, (*path, key))


def altered(rng: random.Random, value):
    """A copy of a JSON value in which one to three values are others, gone or new."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice([*places(value)])
        if not path:
            if rng.random() < 0.05:
                value = nasty(rng)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        match rng.randrange(8):
            case 0 if isinstance(holder, dict):
                del holder[path[-1]]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("x", "\x1b[31m", "", "name", "x" * 300))] = nasty(rng)
            case 2 if isinstance(holder, list):
                holder.insert(path[-1], nasty(rng))
            case 3:
                holder[path[-1]] = deep(rng.choice((3, 60, 70, 3000)), rng.choice((list, dict)))
            case 4 | 5 if type(holder[path[-1]]) in (int, float):
                holder[path[-1]] = another(rng, holder[path[-1]])
            case _:
                holder[path[-1]] = nasty(rng)
        if not isinstance(value, dict | list):
            break
    return value


def another(rng: random.Random, number: int | float):
    """A number beside it, or the same one as another kind of value."""
    try:
        near = (number + 1, -number, number * 1e6, float(number), number // 2)
    except OverflowError:
        near = (number + 1, -number, number // 2)
    return rng.choice((*near, str(number)))


def deep(levels: int, kind: type):
    value = kind()
    for _ in range(levels):
        value = {"x": value} if kind is dict else [value]
    return value


def json_bytes(value) -> bytes:
    """As Python writes it: numbers that are none, lone surrogates and all; deep ones by hand."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b'{"x":' * 3000 + b"1" + b"}" * 3000


# ---------------------------------------------------------------------------------------------
# Folders: what lies under which path. Not bytes: a link to a text, or a FIFO, or a folder.


@dataclass(frozen=True)
class Link:
    target: str


FIFO, FOLDER = object(), object()
Files = dict[str, object]
JSON_FILES = ("result.json", "result.json", "config.json", "exit.json")


def damage(rng: random.Random, files: Files, fifos: bool = True) -> set[str]:
    """Do something to the files of one run; the names of the runs that were touched."""
    runs = sorted({run_of(path) for path in files if run_of(path)})
    if not runs:
        return set()
    run = rng.choice(runs)
    mine = sorted(path for path in files if run_of(path) == run)
    path = rng.choice(mine)
    data = files[path] if isinstance(files[path], bytes) else b"{}"
    match rng.randrange(12):
        case 0 | 1 | 2 if path.endswith(".json"):
            files[path] = mangled(rng, data)
        case 3 | 4 | 5 | 6 if path.endswith(".json"):
            try:
                files[path] = json_bytes(altered(rng, json.loads(data)))
            except (ValueError, RecursionError):
                files[path] = mangled(rng, data)
        case 7:
            del files[path]
        case 8:  # of another run
            other = rng.choice(runs)
            twin = path.replace(run, other, 1)
            if twin in files:
                files[path], files[twin] = files[twin], files[path]
            return {run, other}
        case 9:  # somebody copied it
            to = rng.choice(("copy", "baseline_2", "x y", "run_0", "aux_4_old", "é"))
            for path in mine:
                files[f"{to}/{path.split('/', 1)[1]}"] = files[path]
            return {f"{to}/{run.split('/')[1]}"}
        case 10:
            target = rng.choice(
                (
                    "/dev/zero",
                    "/dev/null",
                    "/etc/passwd",
                    "nowhere",
                    "config.json",
                    ".",
                    "/proc/self/mem",
                    path.rsplit("/", 1)[-1],
                )
            )
            files[path] = FIFO if fifos and rng.random() < 0.1 else Link(target)
            if rng.random() < 0.2:
                files[path] = FOLDER
        case 11:  # an attempt that cannot be
            name = rng.choice(
                (
                    "attempt_2",
                    "attempt_0",
                    "attempt_1",
                    "attempt_02",
                    "attempt_x",
                    "attempt_99999999999",
                    "attempt_2/attempt_3",
                )
            )
            files[f"{run}/{name}/{path.rsplit('/', 1)[-1]}"] = files[path]
        case _:
            files[path] = mangled(rng, data)
    return {run}


def run_of(path: str) -> str:
    """arm/run_k of a path in an experiment folder; empty for the folder's own files."""
    parts = path.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 and parts[1].startswith("run_") else ""


def lay_out(files: Files, folder: Path) -> None:
    """Make a folder of files; what cannot lie beside each other, does not."""
    base, made = os.fspath(folder), set()
    os.makedirs(base, exist_ok=True)
    for path, content in files.items():
        full = f"{base}/{path}"
        parent = full.rsplit("/", 1)[0]
        try:
            if parent not in made:
                os.makedirs(parent, exist_ok=True)
                made.add(parent)
            if isinstance(content, Link):
                os.symlink(content.target, full)
            elif content is FIFO:
                os.mkfifo(full)
            elif content is FOLDER:
                os.mkdir(full)
            else:
                with open(full, "wb") as file:
                    file.write(content)
        except (OSError, ValueError):
            continue


# ---------------------------------------------------------------------------------------------
# Command lines and environments

NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "8",
    "1e308",
    "nan",
    "inf",
    "-inf",
    "",
    "x",
    "0x10",
    "1_000",
    "1.5",
    "9" * 30,
    "9" * 5000,
    "٣",
    " 7",
    "1e-400",
    "+3",
    "--",
    "16",
    "4294967296",
)
TEXTS = (
    "",
    "x",
    "mini",
    "small",
    "speedrun",
    "classic",
    "adaptive",
    "manual",
    "any",
    "superiority",
    "label",
    "baseline",
    "aux_4_8",
    "baseline,baseline",
    "baseline,aux_4_8",
    "basline",
    ",",
    ",,",
    "local",
    "slurm",
    "screening",
    "é",
    "\x1b[31mred",
    "a\nb",
    "../..",
    "\udcff",
    "constant",
    "cosine",
    "~no_such_user/x",
    "42,42,43",
    "1,2,3",
    "4,8",
    "8,4",
    "13",
    "0",
    "-5",
    "'",
    "--exclude=\x07",
    "/dev/null",
    "/dev/null/x",
    ".",
    "nowhere",
    "x" * 300,
)
FLAGS = (
    "--staged",
    "--list",
    "--status",
    "--dry_run",
    "--json",
    "--exit_verdict",
    "--screen",
    "--unet_skips",
    "--ignore_gate",
    "--preflight",
    "--log_grad_norms",
    "--no_page",
    "--help",
)
WITH_NUMBER = (
    "--stage",
    "--max_budget_hours",
    "--full_iterations",
    "--validation_runs",
    "--runs",
    "--best_weight",
    "--sigma0",
    "--delta_eq",
    "--delta_target",
    "--alpha",
    "--pairing",
    "--rho",
    "--num_gpus",
    "--gpus_per_run",
    "--parallel_runs",
    "--nodes_per_run",
    "--device_batch_size",
    "--first_seed",
    "--stall_timeout",
)
WITH_TEXT = (
    "--study",
    "--arm",
    "--best",
    "--experiment",
    "--phase",
    "--profile",
    "--plan",
    "--stop_on",
    "--seeds",
    "--best_layers",
    "--best_schedule",
    "--exp_dir",
    "--output_dir",
    "--launcher",
    "--slurm_args",
    "--data_dir",
    "--train_script",
    "--preflight_file",
    "--unknown",
    "-x",
)


def command_line(rng: random.Random, *begin: str) -> list[str]:
    words = list(begin)
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        match rng.randrange(4):
            case 0:
                words.append(rng.choice(FLAGS[:-1] if rng.random() < 0.98 else FLAGS))
            case 1:
                words += [rng.choice(WITH_NUMBER), rng.choice(NUMBERS)]
            case 2:
                words.append(f"{rng.choice(WITH_NUMBER + WITH_TEXT)}={rng.choice(TEXTS + NUMBERS)}")
            case 3:
                words += [rng.choice(WITH_TEXT), rng.choice(TEXTS)]
    return words


VISIBLE = (
    "0",
    "1",
    "-1",
    "",
    " ",
    "0,1",
    "GPU-1234",
    "GPU-",
    "GPU-abcd",
    "MIG-1",
    "MIG-GPU-1/2/3",
    "99999999999999999999",
    "x",
    "0x1",
    "٣",
    "all",
    "none",
    "NoDevFiles",
    "\x1b",
    "+1",
    "3,",
)
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "TORCHRUN",
    "PET_NNODES",
    "PET_X",
    "MPLBACKEND",
    "SQUEUE_STATES",
    "TERM",
    "COLUMNS",
    "LINES",
    "TQDM_DISABLE",
    "TQDM_MININTERVAL",
    "GIT_DIR",
    "HOME",
    "LANG",
    "LC_ALL",
    "RANK",
    "SLURM_CONF",
    "SBATCH_EXPORT",
    "NCCL_DEBUG",
    "http_proxy",
    "OMP_NUM_THREADS",
    "PYTHONOPTIMIZE",
    "MATPLOTLIBRC",
    "XDG_CONFIG_HOME",
    "SLURM_JOB_ID",
    "NO_COLOR",
)


def environment(rng: random.Random) -> dict[str, str]:
    """Variables as the kernel would take them: no zero byte in them."""
    chosen = rng.sample(VARIABLES, rng.randrange(1, 6))
    values = {name: rng.choice((*TEXTS, *NUMBERS, *VISIBLE)).replace("\x00", "") for name in chosen}
    entries = rng.choices(VISIBLE, k=rng.choice((1, 1, 2, 3, 9)))
    return values | {"CUDA_VISIBLE_DEVICES": ",".join(entries)}


GPU_TOOLS = (  # what nvidia-smi says: (query, -L); None: there is none
    (None, None),
    ("", ""),
    ("No devices were found", ""),
    ("0, GPU-1234, NVIDIA H100\n1, GPU-abcd, NVIDIA H100\n", ""),
    ("0, GPU-12, A\n1, GPU-1234, A\n2, GPU-abc\n", "GPU 0: A (UUID: GPU-12)\n"),
    (
        "0, GPU-1234, NVIDIA A100\n",
        "GPU 0: NVIDIA A100 (UUID: GPU-1234)\n  MIG 1g.5gb Device  0: (UUID: MIG-1)\n"
        "  MIG 1g.5gb     Device  1: (UUID: MIG-12)\n",
    ),
    ("Unable to determine the device handle\x1b[31m\n\x07", "\xff"),
    (", , , ,\n,,,\n", "  MIG x Device 0: (UUID: MIG-1)\n"),
)
