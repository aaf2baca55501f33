"""What does `ok` demand of a log and of a record?  Said a second time, to be compared.

Written from the README's contract and from what users were promised, not from the readers in
`logs` and `records`: slow, plain, byte by byte, with no line in common with them. Each function
returns the reasons why something must not count; none means that it may. Where a reading is open to
dispute, nothing is said: a reason here is one that nobody can argue with.
"""

import hashlib
import json
import math
import os
import stat
from pathlib import Path

NEAR = 1.5e-5  # the last step line has six decimals, the summary all of them
MOST_BYTES = 64 << 20


def is_whole(value, least: int) -> bool:
    return type(value) is int and least <= value < 10**19


MOST = 1.7976931348623157e308  # the largest double


def is_real(value, least: float = -MOST, above: bool = False) -> bool:
    if type(value) not in (int, float) or not -MOST <= value <= MOST:
        return False
    return value > least if above else value >= least


def faults_of_numbers(numbers: dict, total: int, wall_s: float) -> list[str]:
    """Of a summary, or of the same fields in a record."""
    get = numbers.get
    demands = {
        "val_loss": is_real(get("val_loss"), 0.0, above=True),
        "steps_done": is_whole(get("steps_done"), 0) and get("steps_done") == total,
        "train_time_ms": is_real(get("train_time_ms"), 0.0, above=True),
        "step_avg_ms": is_real(get("step_avg_ms"), 0.0, above=True),
        "peak_memory_mib": is_real(get("peak_memory_mib"), 0.0),
        "tokens_seen": is_whole(get("tokens_seen"), 1),
        "num_parameters": is_whole(get("num_parameters"), 1),
    }
    faults = [f"{name} {get(name)!r:.40}" for name, met in demands.items() if not met]
    if not faults and get("train_time_ms") > 1000 * wall_s * 1.02 + 150:
        faults.append(f"trained {get('train_time_ms')} ms in {wall_s} s")
    return faults


def given_once(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name given twice")
    return value


# ---------------------------------------------------------------------------------------------
# A log


def without_escapes(text: bytes) -> bytes:
    """Without colours, cursor movements and titles, as far as they are whole."""
    shown, at = bytearray(), 0
    while at < len(text):
        after = end_of_escape(text, at) if text[at] == 0x1B else 0
        if after:
            at = after
        else:
            shown.append(text[at])
            at += 1
    return bytes(shown)


def end_of_escape(text: bytes, at: int) -> int:
    """The place behind an escape sequence; 0 where none that is whole begins."""
    kind = text[at + 1 : at + 2]
    if kind == b"[":
        for end in range(at + 2, len(text)):
            if 0x40 <= text[end] <= 0x7E:
                return end + 1
            if not 0x20 <= text[end] <= 0x3F:
                return 0
        return 0
    if kind == b"]":
        for end in range(at + 2, len(text)):
            if text[end] == 0x07:
                return end + 1
            if text[end] == 0x1B:
                return end + 2 if text[end + 1 : end + 2] == b"\\" else 0
        return 0
    return at + 2 if kind and (0x40 <= kind[0] <= 0x5A or kind in b"\\_") else 0


def shown(line: bytes) -> list[bytes]:
    """The parts of a line between carriage returns that show anything; the last one stays."""
    parts = [without_escapes(part).rstrip() for part in line.split(b"\r")]
    return [part for part in parts if part]


def number_at(text: bytes, at: int) -> tuple[int, int]:
    """(value, place behind it) of a whole number; -1 where there is none."""
    end = at
    while end < len(text) and text[end] in b"0123456789":
        end += 1
    return (int(text[at:end]), end) if 0 < end - at < 15 else (-1, at)


def word_at(text: bytes, at: int, ends: bytes) -> tuple[bytes, int]:
    end = at
    while end < len(text) and text[end] not in ends:
        end += 1
    return text[at:end], end


def step_at(text: bytes, at: int) -> tuple[int, int, str, bytes, bytes] | None:
    """(step, total, kind, loss, rest) of what looks like a step line at a place."""
    if text[at : at + 5] != b"step:":
        return None
    step, at = number_at(text, at + 5)
    if step < 0 or text[at : at + 1] != b"/":
        return None
    total, at = number_at(text, at + 1)
    for kind in ("val", "train"):
        name = f" {kind}_loss:".encode()
        if total >= 0 and text[at : at + len(name)] == name:
            loss, end = word_at(text, at + len(name), b" \t\r\n")
            return step, total, kind, loss, text[end:]
    return None


def is_end_of_step_line(rest: bytes) -> bool:
    """Whether ` train_time:Tms step_avg:Tms` follows the loss, and nothing more."""
    words = rest.split(b" ")
    if len(words) != 3 or words[0] != b"":
        return False
    time, average = words[1:]
    if not (time.startswith(b"train_time:") and time.endswith(b"ms")):
        return False
    if float_of(time[len(b"train_time:") : -2]) is None:
        return False
    shown = average[len(b"step_avg:") : -2]  # no verdict hangs on it: any word will do
    plain = shown.translate(None, b"+-.").isalnum()
    return average.startswith(b"step_avg:") and average.endswith(b"ms") and plain


def is_another_word(front: bytes) -> bool:
    """Of what stands in front of `step:` or `summary:`: global_step: counts something else."""
    return front[-1:] in (b"_", b"-", b"/") or front.endswith(
        (b"sub", b"micro", b"mini", b"global")
    )


def is_quoted(front: bytes) -> bool:
    """Whether what stands in front of it in its line makes it a quotation: source code, mail."""
    bare, lead = front.rstrip(b" \t"), front.lstrip(b" \t")
    if front and not bare:
        return True  # indented
    quotes = tuple(b"%c" % sign for sign in b"\"'`({[=")
    return bare.endswith(quotes) or lead.startswith((b">", b"# ", b"//", b"- ", b"* ", b"+ "))


def is_object(text: bytes) -> bool:
    return text.lstrip(b" \t").startswith(b"{")


def beginnings(line: bytes) -> list[int]:
    """Where the trainer's words may begin in a line."""
    found = []
    for word in (b"step:", b"summary: "):
        at = line.find(word)
        while at >= 0:
            begins = step_at(line, at) if word == b"step:" else is_object(line[at + 9 :])
            if begins and not is_another_word(line[:at]):
                found.append(at)
            at = line.find(word, at + 1)
    return sorted(found)


class Said:
    """What the texts of one attempt say, everything that anybody could read out of them."""

    def __init__(self, total: int):
        self.total = total
        self.losses: dict[int, set[float]] = {}  # by step
        self.summaries: list[dict | None] = []  # None: one that cannot be read
        self.not_finite = False
        self.begun_anew = False
        self.texts = 0
        self.disputed = False  # a line that may be too long to be a trainer's

    def read(self, text: bytes) -> None:
        self.texts += 1
        *lines, _cut_off = text.split(b"\n")
        ended = False
        for line in lines:
            parts = shown(line)
            for part in parts[:-1]:
                self.overwritten(part)
            self.disputed |= 3500 < len(line) < 5000 or (len(line) > 3500 and b"\x1b" in line)
            if parts and len(parts[-1]) <= 4096:
                ended = self.line(parts[-1], ended)

    def overwritten(self, part: bytes) -> None:
        """A loss that is no number was said, whether or not something was written over it."""
        found = step_at(part, 0)
        if found and found[1] == self.total >= found[0] and is_no_number(found[3]):
            self.not_finite = True

    def line(self, line: bytes, ended: bool) -> bool:
        """Read a line; whether a summary was seen so far."""
        places = beginnings(line)
        if not places or is_quoted(line[: places[0]]):
            return ended
        for at, end in zip(places, [*places[1:], len(line)], strict=True):
            piece = line[at:end].rstrip()
            if piece.startswith(b"summary"):
                ended |= self.summary(piece[len(b"summary: ") :], at == 0)
                continue
            step, total, kind, loss, rest = step_at(piece, 0)
            if total != self.total or step > total or float_of(loss) is None:
                continue
            self.begun_anew |= ended and at == 0 and step < total and is_end_of_step_line(rest)
            if is_no_number(loss):
                self.not_finite = True
            elif kind == "val" and is_end_of_step_line(rest):
                self.losses.setdefault(step, set()).add(float_of(loss))
        return ended

    def summary(self, text: bytes, begins_its_line: bool) -> bool:
        try:
            value = json.loads(text, object_pairs_hook=given_once)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or "val_loss" not in value:
            if not begins_its_line:
                return False  # perhaps another program's
            value = None
        self.summaries.append(value)
        return True


def is_no_number(text: bytes) -> bool:
    loss = float_of(text)
    return loss is not None and not math.isfinite(loss)


def float_of(text: bytes) -> float | None:
    try:
        return float(text) if len(text) <= 32 and b"_" not in text else None
    except ValueError:
        return None


def heard(texts: list[bytes], total: int) -> Said:
    said = Said(total)
    for text in texts:
        said.read(text)
    return said


def why_not_ok(said: Said, returncode, wall_s: float) -> list[str]:
    """Reasons why an attempt must not be `ok`, from the logs that it left and how it ended."""
    total = said.total
    if said.disputed:
        return []
    faults = [] if returncode == 0 else [f"exit code {returncode}"]
    if said.not_finite:
        faults.append("a loss that is not finite")
    if said.begun_anew:
        faults.append("steps behind a summary")
    for step, losses in said.losses.items():
        losses.discard(None)  # of a line that says no number
        if len(losses) > 1:
            faults.append(f"losses {losses} at step {step}")
    if not said.summaries:
        return [*faults, "no summary"]
    whole = [summary for summary in said.summaries if summary]
    if not whole or (said.texts == 1 and len(whole) < len(said.summaries)):
        faults.append("a damaged summary")
    for summary in whole:
        faults += faults_of_numbers(summary, total, wall_s)
        for exact in ("val_loss", "tokens_seen", "num_parameters"):
            if summary.get(exact) != whole[0].get(exact):
                faults.append(f"summaries differ in {exact}")
        last = said.losses.get(total)
        if not last:
            faults.append("no loss at the last step")
        elif not faults and any(abs(loss - summary["val_loss"]) > NEAR for loss in last):
            faults.append("the summary's loss is not that of the last step")
    return faults


# ---------------------------------------------------------------------------------------------
# A registration


def registered_hash(document: dict) -> str:
    """Of what was fixed before the first run, and of nothing beside it."""
    text = json.dumps(document["registered"], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# ---------------------------------------------------------------------------------------------
# A record


def why_not_believed(folder: Path, arm: str, index: int, attempt: int, experiment: str):
    """Reasons why the record in a folder must not be an `ok` of the run that it lies under."""
    try:
        result, config = object_in(folder / "result.json"), object_in(folder / "config.json")
        run = result["run"]
        total = run["num_iterations"]
        faults = [] if result["experiment_id"] == experiment else ["another experiment's"]
        if not is_same_run(run, config["run"]) or type(run["seed"]) is not int:
            faults.append("not the run that was launched")
        if (run["arm"]["name"], run["index"]) != (arm, index) or type(run["index"]) is not int:
            faults.append("another run's")
        for attempts in (result["attempt"], config["attempt"]):
            if attempts != attempt or type(attempts) is not int:
                faults.append("another attempt's")
        if result["status"] != "ok":
            faults.append(f"status {result['status']!r:.20}")
        if result.get("returncode") not in (0, None) or result.get("returncode") is False:
            faults.append("its exit code")
        start_s, end_s = result["start_s"], result["end_s"]
        if not (is_real(start_s) and is_real(end_s) and start_s <= end_s):
            return [*faults, "no interval"]
        if not (is_whole(total, 0) and is_whole(result.get("nodes", 1), 1)):
            return [*faults, "no count"]
        faults += faults_of_numbers(result, total, end_s - start_s)
        return faults + faults_of_curve(result, total)
    except (ValueError, KeyError, TypeError, OSError, RecursionError, OverflowError) as error:
        return [repr(error)]


def is_same_run(one: dict, other: dict) -> bool:
    """Fields of an arm, and a run's role, may be left out as they are for most; what both say has
    to be the same."""
    arms = one["arm"], other["arm"]
    if not all(isinstance(arm, dict) for arm in arms):
        return False
    both = [{name: arm[name] for name in arms[0].keys() & arms[1].keys()} for arm in arms]
    needed = both[0].keys() >= {"name", "flags", "env", "replacements"}
    runs = [{"role": "arm", **run, "arm": arm} for run, arm in zip((one, other), both, strict=True)]
    return needed and runs[0] == runs[1]


def faults_of_curve(result: dict, total: int) -> list[str]:
    curve, before = result["curve"], -1
    for step, loss, time_ms in curve:
        if not (is_whole(step, 0) and is_real(loss) and is_real(time_ms, 0.0)):
            return ["a point of the curve that is none"]
        if step <= before:
            return ["the curve goes back"]
        before = step
    if not curve or curve[-1][0] != total:
        return ["its curve does not end at the last step"]
    if not abs(curve[-1][1] - result["val_loss"]) <= NEAR:
        return ["its loss is not the end of its curve"]
    return []


def object_in(path: Path) -> dict:
    """One JSON object of a regular file that is no link. Raises ValueError or OSError if not."""
    about = os.lstat(path)
    if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
        raise ValueError(f"{path.name} is no regular file of a record's size")
    value = json.loads(path.read_bytes(), object_pairs_hook=given_once)
    if type(value) is not dict:
        raise ValueError(f"{path.name} holds no object")
    return value


def believable(exp_dir: Path, experiment: str) -> dict[tuple[str, int], float]:
    """(run, attempt): val_loss of every record in a folder that may be an `ok`."""
    found = {}
    for arm in real_folders(exp_dir):
        for run in real_folders(arm):
            kind, _, number = run.name.partition("_")
            if kind != "run" or not number.isdecimal():
                continue
            for folder in (run, *real_folders(run)):
                name, _, nth = folder.name.rpartition("_")
                attempt = 1 if folder == run else int(nth) if nth.isdecimal() else 0
                if folder != run and name != "attempt":
                    continue
                place = (f"{arm.name}/{run.name}", attempt)
                same = run.name == f"run_{int(number)}"
                if same and not why_not_believed(
                    folder, arm.name, int(number), attempt, experiment
                ):
                    found[place] = object_in(folder / "result.json")["val_loss"]
    return found


def real_folders(parent: Path) -> list[Path]:
    with os.scandir(parent) as entries:
        return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
