"""The reading of logs and records: hostile input gives a status, and `ok` is always earned."""

import json
import math
import os
import re
import resource
import shutil
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.runs.log import LogReader, read_log
from ablation.runs.outcome import Exit, exit_from, judge, result_from
from ablation.runs.printed import MAX_LINE
from ablation.runs.run import STATUSES, Arm, RunConfig, RunResult, machine_seconds
from ablation.runs.store import (
    Attempt,
    Records,
    attempts_in,
    read_config,
    read_records,
    write_json,
    write_result,
)
from ablation.runs.untrusted import printable
from ablation.study.heads import aux

TOTAL = 8
RUN = RunConfig(2, aux((4, 8)), 0, seed=2000, num_iterations=TOTAL)
SUMMARY = {
    "val_loss": 3.2741123,
    "steps_done": TOTAL,
    "train_time_ms": 12345.6,
    "step_avg_ms": 178.9,
    "peak_memory_mib": 31000.0,
    "tokens_seen": 1024,
    "num_parameters": 1000,
}
CLEAN = Exit(0, "itself", "boot", 10.0, 25.5)
FAILED = replace(CLEAN, returncode=1)


def val(step, loss=3.2741123, total=TOTAL):
    text = f"{loss:.6f}" if isinstance(loss, float) else loss
    return f"step:{step}/{total} val_loss:{text} train_time:{step * 10}ms step_avg:10.00ms\n"


def train(step, loss="3.5", total=TOTAL):
    return f"step:{step}/{total} train_loss:{loss} train_time:{step * 10}ms step_avg:10.00ms\n"


def summary(**changes):
    return "summary: " + json.dumps({**SUMMARY, **changes}) + "\n"


COMPLETE = val(0, 10.8) + "".join(map(train, range(1, TOTAL + 1))) + val(TOTAL) + summary()


def read(log, chunk=None):
    data = log if isinstance(log, bytes) else log.encode()
    reader, size = LogReader(TOTAL), chunk or max(1, len(data))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    return reader.close()


def verdict(log, exit=CLEAN, attempt=1):
    return judge(RUN, attempt, read(log), exit)


# ---------------------------------------------------------------------------------------------
# Logs of every kind


def test_a_complete_log_with_exit_code_0_is_ok():
    result = verdict(COMPLETE)
    assert result.status == "ok"
    assert result.val_loss == 3.2741123
    assert result.curve == ((0, 10.8, 0.0), (TOTAL, 3.274112, 80.0))
    assert (result.steps_done, result.tokens_seen, result.wall_s) == (TOTAL, 1024, 15.5)


BROKEN_LOGS = {
    "empty": ("", "no summary line"),
    "no summary": (COMPLETE.replace(summary(), ""), "no summary line"),
    "summary alone": (summary(), "no val_loss line at the last step"),
    "cut off in its last line": (COMPLETE[:-2], "no summary line"),
    "last newline missing": (COMPLETE[:-1], "no summary line"),
    "two summaries": (COMPLETE + summary(val_loss=3.27411), "val_loss 3.2741123 and 3.27411"),
    "two runs": (COMPLETE + COMPLETE, "more than one run"),
    "a run begun behind the summary": (COMPLETE + val(0), "more than one run"),
    "summary of too few steps": (val(TOTAL) + summary(steps_done=4), "summary after 4 of 8 steps"),
    "another length": (COMPLETE.replace(f"/{TOTAL} ", "/9 "), "no val_loss line"),
    "another program's": ("epoch 3: loss 0.1\nDONE\n" * 50, "no summary line"),
    "another loss": (COMPLETE.replace(summary(), summary(val_loss=2.0)), "not that of the last"),
    "nan in the summary": (val(TOTAL) + summary(val_loss=math.nan), "val_loss nan: give a"),
    "text in the summary": (val(TOTAL) + summary(val_loss="3.27"), "val_loss '3.27': give a"),
    "true in the summary": (val(TOTAL) + summary(steps_done=True), "steps_done True: give an"),
    "huge numbers": (val(TOTAL) + summary(val_loss=10**400), "summary line is damaged"),
    "digits beyond all bounds": (val(TOTAL) + f"summary: {'9' * 3000}\n", "is damaged"),
    "a list as summary": (val(TOTAL) + "summary: [1, 2]\n", "summary line is damaged"),
    "deep nesting": (val(TOTAL) + "summary: " + "[" * 4000 + "\n", "summary line is damaged"),
    "summary in an endless line": (val(TOTAL) + summary()[:-1] + " " * 5000 + "\n", "no summary"),
}


@pytest.mark.parametrize(("log", "why"), BROKEN_LOGS.values(), ids=BROKEN_LOGS)
def test_what_is_not_one_complete_log_is_not_a_result(log, why):
    result = verdict(log)
    assert result.status == "crashed"
    assert result.val_loss is None
    assert why in result.reason


def test_truncated_anywhere_a_log_is_not_a_result():
    for length in range(len(COMPLETE)):
        assert verdict(COMPLETE[:length]).status == "crashed"


@pytest.mark.parametrize(
    ("exit", "status"),
    [
        (CLEAN, "ok"),
        (FAILED, "crashed"),
        (replace(CLEAN, returncode=-9), "crashed"),
        (replace(CLEAN, returncode=None), "crashed"),
        (replace(CLEAN, returncode=None, ended_by="the orchestrator died"), "interrupted"),
        (replace(CLEAN, returncode=-15, ended_by="the budget is spent"), "interrupted"),
        (replace(CLEAN, returncode=-15, ended_by="timeout"), "timeout"),
        (replace(CLEAN, returncode=-15, ended_by="stall"), "timeout"),
        (replace(CLEAN, ended_by="the budget is spent"), "ok"),  # it had finished
    ],
)
def test_the_exit_decides_together_with_the_log(exit, status):
    assert verdict(COMPLETE, exit).status == status


@pytest.mark.parametrize("exit", [CLEAN, FAILED, replace(FAILED, ended_by="timeout")])
@pytest.mark.parametrize("loss", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("line", [train, val])
def test_a_non_finite_loss_is_a_divergence_however_it_ended(exit, loss, line):
    result = verdict(val(0) + line(3, loss) + "diverged: train_loss is nan at step 3/8\n", exit)
    assert result.status == "diverged"
    assert "step:3/8" in result.reason


@pytest.mark.parametrize("loss", ["1_0", "٣.٢", "", "0x10", "three", "3,2", "1" * 40])
def test_a_loss_that_only_looks_like_a_number_is_none(loss):
    assert verdict(COMPLETE.replace(val(TOTAL), val(TOTAL, loss))).status == "crashed"


def test_another_programs_output_around_the_lines_does_no_harm():
    noise = "W1123 torch/x.py:1] \xff\n\r\n\tstep:8/8 val_loss:1.0\n" + val(3, total=5)
    assert verdict(noise + COMPLETE.replace("\n", "\n" + noise)).status == "ok"
    assert verdict(noise * 50, FAILED).status == "crashed"


def test_windows_line_ends_are_line_ends():
    assert verdict(COMPLETE.replace("\n", "\r\n")).status == "ok"


REASONS = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 13.2 GiB\n", "batch_size"),
    ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried\n", "batch_size"),
    ("[rank3]: torch.OutOfMemoryError: CUDA out of memory.\n", "--device_batch_size"),
    ("Traceback (most recent call last):\nValueError: odd heads\nbye\n", "ValueError: odd heads"),
    ("[rank1]: ValueError: odd heads\nbye\n", "ValueError: odd heads"),
    ("train_gpt.py: error: no shard in x\n", "train_gpt.py: error: no shard in x"),
    ("a\nb\nc\nd\ne\nlast words", "b | c | d | e | last words"),
    ("ValueError: why\ntorch.distributed.elastic.ChildFailedError: x\n", "ValueError: why"),
    ("", "exit code 1, nothing printed"),
]


@pytest.mark.parametrize(("log", "named"), REASONS)
def test_a_crash_gives_its_reason(log, named):
    result = verdict(log, FAILED)
    assert result.status == "crashed"
    assert named in result.reason


def test_a_reason_is_safe_on_a_terminal():
    nasty = b"RuntimeError: \x1b[2J\x1b]0;gone\x07 \xff\xfe \xe2\x80\xae \xed\xa0\x80 \xc2\x9b31m\n"
    for exit in (FAILED, replace(FAILED, ended_by="\x1b[2Jstopped")):
        reason = verdict(nasty, exit).reason
        assert reason.isprintable()
        assert len(reason) <= 600


# ---------------------------------------------------------------------------------------------
# Any bytes, cut anywhere

PIECES = st.sampled_from(
    [
        *(piece.encode() for piece in (val(0), train(3), val(TOTAL), summary(), COMPLETE)),
        *(val(3, loss).encode() for loss in ("nan", "inf", "1e5", "-0")),
        *(b"\n", b"\r", b"\xff\xfe", b"\x00", b"summary: {", b"step:8/8 val_loss:", b"x" * 5000),
        *(b"CUDA out of memory", b"ValueError: \x1b[31m", summary(steps_done=1).encode()),
        *(b"\x1b[0m", b" \r", b"  ", b"> ", b"50%|## | 4/8\r", b"UserWarning: x ", b"[rank1]: "),
        *(b"2: ", val(TOTAL, 3.3).encode(), summary(val_loss=3.4).encode()),
        *(COMPLETE.strip().encode(), val(TOTAL).strip().encode(), b"[W1125 ", b"\r" * 5000),
        *(b"  exitcode  : 2 (pid: 3)\n", b"Root Cause (first observed failure):\n"),
        *(b"failed (exitcode: 2) local_rank: 0 \n", b"x.py: error: y\n"),
    ]
)
LOGS = st.lists(PIECES | st.binary(max_size=40), max_size=12).map(b"".join)
EXITS = st.builds(
    Exit,
    returncode=st.none() | st.integers(-64, 255),
    ended_by=st.sampled_from(["itself", "timeout", "stall", "the budget is spent"]) | st.text(),
    clock=st.just("boot"),
    start_s=st.just(1.0),
    end_s=st.floats(1.0, 1e9) | st.just(1e6),
)


LABELS = (b"", b"[rank1]: ", b"2: ")


def shown(line: bytes) -> bytes:
    """A line as a terminal shows it, slowly."""
    parts = [re.sub(rb"\x1b\[[0-9;]*[a-zA-Z]", b"", part).rstrip() for part in line.split(b"\r")]
    return ([b"", *filter(None, parts)])[-1]


def is_complete(log: bytes) -> bool:
    """What `ok` asks of a log, said once more and slowly."""
    last, other, one, two = (
        text.strip().encode()
        for text in (val(TOTAL), val(TOTAL, 3.3), summary(), summary(val_loss=3.4))
    )
    lines = [shown(line) for line in log.split(b"\n")[:-1]]
    own = {line.removeprefix(label) for line in lines for label in LABELS}
    evident = any(last in line for line in lines) and any(one in line for line in lines)
    begun_anew = b"\n".join(lines).partition(one)[2].split(b"\n")[1:]
    again = val(0).strip().encode() in begun_anew
    return evident and not again and not own & {other, two}


@settings(max_examples=400, deadline=None)
@given(log=LOGS, exit=EXITS)
def test_any_log_gives_a_status_and_ok_is_earned(log, exit):
    result = verdict(log, exit)
    assert result.status in STATUSES
    assert result.reason.isprintable()
    if result.status == "ok":
        assert exit.returncode == 0
        assert is_complete(log)
        assert result.val_loss == SUMMARY["val_loss"]
    assert result_from(json.loads(json.dumps(asdict(result)))) == result


@settings(max_examples=300, deadline=None)
@given(log=LOGS, chunk=st.integers(1, 6000))
def test_where_a_log_is_cut_makes_no_difference(log, chunk):
    assert read(log, chunk) == read(log)


@settings(max_examples=100, deadline=None)
@given(text=st.text(), limit=st.integers(1, 50))
def test_printable_is_printable(text, limit):
    assert printable(text, limit).isprintable()
    assert len(printable(text, limit)) <= limit


@pytest.mark.parametrize(
    "block",
    [
        b"x" * (1 << 20),  # one endless line
        b"\n" * (1 << 20),
        (b"y" * 79 + b"\n") * (1 << 14),
        (train(3) + val(3)).encode() * 8000,
        bytes(range(256)) * 4096,
    ],
    ids=["one line", "newlines", "lines", "step lines", "all bytes"],
)
def test_a_huge_log_is_read_in_bounded_memory(block):
    reader = LogReader(TOTAL)
    reader.feed(val(TOTAL).encode())
    reader.feed(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        reader.feed(block)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 16 << 10
    assert len(reader._rest) <= 2 * MAX_LINE + 1
    assert len(reader.curve) <= TOTAL + 1


def test_a_gigabyte_on_disk_is_streamed(tmp_path):
    log = tmp_path / "output.log"
    with open(log, "wb") as file:
        file.write(COMPLETE.encode())
        file.truncate(1 << 30)  # a hole: zeros that take no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = read_log(log, TOTAL)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    assert judge(RUN, 1, reader, CLEAN).status == "ok"


def test_a_missing_log_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "output.log", TOTAL).summaries == 0


# ---------------------------------------------------------------------------------------------
# Values that refuse what was not earned


@pytest.mark.parametrize(
    "changes",
    [
        {"val_loss": None},
        {"val_loss": math.nan},
        {"val_loss": math.inf},
        {"val_loss": "3.2"},
        {"status": "crashed"},
        {"status": "diverged"},
        {"status": "finished"},
        {"end_s": 1.0},
        {"end_s": math.nan},
    ],
)
def test_a_result_refuses_a_loss_that_was_not_earned(changes):
    with pytest.raises(ValueError):
        replace(verdict(COMPLETE), **changes)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "/tmp", "a b", "a\n", "\x1b", "x" * 65, 3]
)
def test_a_name_that_is_no_plain_word_becomes_no_path(name):
    with pytest.raises(ValueError):
        RunConfig(1, Arm(name), 0, 1, 10)


# ---------------------------------------------------------------------------------------------
# Records on disk

ID = "0123abcd"


def put(exp_dir, result=None, run=RUN, attempt=1):
    """An attempt on disk, with its result if there is one."""
    folder = exp_dir / run.arm.name / f"run_{run.index}"
    folder = folder if attempt == 1 else folder / f"attempt_{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"run": asdict(run), "attempt": attempt})
    if result:
        write_result(folder, result, ID)
    return folder


def damaged(exp_dir):
    """Why each record that is not believed is not."""
    records = read_records(exp_dir, ID)
    assert not records.results
    return [why for _, why in records.damaged]


def test_records_come_back_as_they_were_written(tmp_path):
    first = verdict("ValueError: x\n", FAILED)
    second = replace(verdict(COMPLETE, attempt=2), run=RUN)
    put(tmp_path, first)
    put(tmp_path, second, attempt=2)
    records = read_records(tmp_path, ID)
    assert records.results == (first, second)
    assert records.latest() == {RUN.name: second}
    assert not records.damaged
    assert not records.open


def test_an_attempt_without_a_result_is_open(tmp_path):
    folder = put(tmp_path)
    assert read_records(tmp_path, ID).open == (Attempt(RUN.name, 1, folder),)


DAMAGE = {
    "another experiment's": lambda text: text.replace(ID, "ffff"),
    "ok without a loss": lambda text: text.replace("3.2741123", "null"),
    "a loss that is NaN": lambda text: text.replace("3.2741123", "NaN"),
    "a loss beyond all bounds": lambda text: text.replace("3.2741123", "1" + "0" * 400),
    "a loss in words": lambda text: text.replace("3.2741123", '"3.27"'),
    "a time in words": lambda text: text.replace("25.5", '"25.5"'),
    "a time that never ends": lambda text: text.replace("25.5", "Infinity"),
    "a time before its start": lambda text: text.replace("25.5", "1.5"),
    "no training time": lambda text: text.replace("12345.6", "null"),
    "a foreign status": lambda text: text.replace('"ok"', '"done"'),
    "a curve of words": lambda text: text.replace("10.8", '"10.8"'),
    "a curve of infinity": lambda text: text.replace("10.8", "Infinity"),
    "steps in words": lambda text: text.replace('"steps_done": 8', '"steps_done": "8"'),
    "one field too many": lambda text: text.replace("{", '{"extra": 1,', 1),
    # an `ok` that nobody can have written
    "a loss beside its curve": lambda text: text.replace("3.2741123", "3.2741"),
    "a curve beside its loss": lambda text: text.replace("3.274112,", "3.2742,"),
    "a curve that ends early": lambda text: text.replace("   8,\n   3.27", "   7,\n   3.27"),
    "a curve backwards": lambda text: text.replace("   0,\n   10.8", "   9,\n   10.8"),
    "a curve that stands still": lambda text: text.replace("   0,\n   10.8", "   8,\n   10.8"),
    "a step before the first": lambda text: text.replace("   0,\n   10.8", "   -1,\n   10.8"),
    "half a step": lambda text: text.replace("   0,\n   10.8", "   0.5,\n   10.8"),
    "fewer steps": lambda text: text.replace('"steps_done": 8', '"steps_done": 7'),
    "a training time of 0": lambda text: text.replace("12345.6", "0"),
    "a training time before its start": lambda text: text.replace("12345.6", "-12345.6"),
    "more training than time": lambda text: text.replace("12345.6", "15800.0"),
    "half a token": lambda text: text.replace("1024", "1024.5"),
    "no tokens": lambda text: text.replace("1024", "0"),
    "a loss of 0": lambda text: text.replace("3.2741123", "0.0").replace("3.274112", "0.0"),
    "a failed exit": lambda text: text.replace('"returncode": 0', '"returncode": 1'),
    "an exit in words": lambda text: text.replace('"returncode": 0', '"returncode": "0"'),
    "nodes beyond all bounds": lambda text: text.replace('"nodes": 1', f'"nodes": {10**30}'),
    "times beyond all clocks": lambda text: text.replace("25.5", "1e300"),
    "a loss given twice": lambda text: text.replace('"val_loss"', '"val_loss": 3.0, "val_loss"'),
}
BOTH_DAMAGE = {  # of what is in both files of an attempt
    "emptied": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "zeros": lambda text: "\0" * len(text),
    "a list": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "deep and closed": lambda text: text.replace("2000", "[" * 70 + "]" * 70),
    "no fields": lambda text: "{}",
    "another run's": lambda text: text.replace("aux_4_8", "aux_4"),
    "another attempt's": lambda text: text.replace('"attempt": 1', '"attempt": 2'),
    "the first attempt in words": lambda text: text.replace('"attempt": 1', '"attempt": "1"'),
    "another seed": lambda text: text.replace("2000", "2001"),
    "a seed in words": lambda text: text.replace("2000", '"2000"'),
    "a seed beyond all bounds": lambda text: text.replace("2000", "2" * 30),
    "a seed of 100,000 digits": lambda text: text.replace("2000", "2" * 100_000),
    "an arm that is a path": lambda text: text.replace("aux_4_8", "../../x"),
    "layers that are nothing": lambda text: text.replace('"4,8"', "null"),
    "a layer below the first": lambda text: text.replace('"4,8"', '"0,8"'),
    "a weight that is NaN": lambda text: text.replace(" 0.1", " NaN"),
    "a weight beyond all bounds": lambda text: text.replace(" 0.1", " 1e999"),
    "another length": lambda text: text.replace('"num_iterations": 8', '"num_iterations": 9'),
    "a truth for a number": lambda text: text.replace('"index": 0', '"index": false'),
    "one field too many in its run": lambda text: text.replace('"stage"', '"x": 1, "stage"'),
    "no index": lambda text: text.replace('"index": 0,', ""),
    "a name given twice": lambda text: text.replace('"stage"', '"stage": 1, "stage"'),
    "half a character": lambda text: text.replace("aux_4_8", "aux_4_8\udcff"),
}


def harm(path, damage):
    """Damage a file; what it says afterwards is something else."""
    before = path.read_text()
    after = damage(before)
    assert after != before
    path.write_text(after, errors="surrogateescape")


@pytest.mark.parametrize("damage", [*DAMAGE.values(), *BOTH_DAMAGE.values()],
                         ids=[*DAMAGE, *BOTH_DAMAGE])  # fmt: skip
def test_a_damaged_record_is_named_and_never_believed(tmp_path, damage):
    harm(put(tmp_path, verdict(COMPLETE)) / "result.json", damage)
    (why,) = damaged(tmp_path)
    assert why.isprintable()


@pytest.mark.parametrize("damage", BOTH_DAMAGE.values(), ids=BOTH_DAMAGE)
def test_a_record_beside_a_damaged_config_is_not_believed(tmp_path, damage):
    harm(put(tmp_path, verdict(COMPLETE)) / "config.json", damage)
    (why,) = damaged(tmp_path)
    assert why.isprintable()


def test_a_record_of_an_older_version_is_read(tmp_path):
    path = put(tmp_path, verdict(COMPLETE)) / "result.json"
    harm(path, lambda text: text.replace(',\n "returncode": 0', ""))
    (result,) = read_records(tmp_path, ID).results
    assert result == replace(verdict(COMPLETE), returncode=None)


def test_a_record_copied_into_another_runs_folder_is_not_believed(tmp_path):
    folder = put(tmp_path, verdict(COMPLETE))
    other = put(tmp_path, run=replace(RUN, index=1))
    (other / "result.json").write_bytes((folder / "result.json").read_bytes())
    (why,) = [why for _, why in read_records(tmp_path, ID).damaged]
    assert why == "it is the record of aux_4_8/run_0, attempt 1"


def test_a_record_without_a_config_is_named(tmp_path):
    folder = put(tmp_path, verdict(COMPLETE))
    (folder / "config.json").unlink()
    assert len(damaged(tmp_path)) == 1


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["experiment_id", *asdict(verdict(COMPLETE))]), inner, max_size=12
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_in_a_record_are_an_answer_and_never_an_exception(tmp_path_factory, data):
    exp_dir = tmp_path_factory.mktemp("any")
    folder = put(exp_dir, verdict(COMPLETE))
    (folder / "result.json").write_bytes(data)
    assert len(damaged(exp_dir)) == 1


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from([name for name in asdict(verdict(COMPLETE)) if name != "run"]),
    value=st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2),
)
def test_any_value_in_any_field_is_read_or_refused(field, value):
    record = {**asdict(verdict(COMPLETE)), field: value}
    try:
        result = result_from(json.loads(json.dumps(record)))
    except ValueError:
        return
    assert isinstance(result, RunResult)
    assert math.isfinite(result.wall_s)
    assert result.reason.isprintable()
    assert (result.status == "ok") == (result.val_loss is not None)


def test_a_copied_arm_is_passed_over_and_left_alone(tmp_path):
    put(tmp_path, verdict(COMPLETE))
    put(tmp_path, attempt=2)
    shutil.copytree(tmp_path / "aux_4_8", tmp_path / "aux_4_8_copy")
    shutil.copytree(tmp_path / "aux_4_8" / "run_0", tmp_path / "aux_4_8" / "run_7")
    copy, again = tmp_path / "aux_4_8_copy" / "run_0", tmp_path / "aux_4_8" / "run_7"
    before = sorted(tmp_path.rglob("*"))
    records = read_records(tmp_path, ID)
    assert records.results == (verdict(COMPLETE),)
    assert records.open == (Attempt(RUN.name, 2, tmp_path / RUN.name / "attempt_2"),)
    assert records.damaged == ()
    assert {*records.stray} == {copy, copy / "attempt_2", again, again / "attempt_2"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_record_whose_config_was_edited_is_damaged_and_not_stray(tmp_path):
    path = put(tmp_path, verdict(COMPLETE)) / "config.json"
    path.write_text(path.read_text().replace("aux_4_8", "aux_4"))
    records = read_records(tmp_path, ID)
    assert not records.stray
    assert "config.json is that of aux_4/run_0" in records.damaged[0][1]


def test_a_copy_with_a_damaged_record_is_damaged(tmp_path):
    put(tmp_path)
    copy = shutil.copytree(tmp_path / "aux_4_8", tmp_path / "copy") / "run_0"
    (copy / "result.json").write_text("{")
    assert [path for path, _ in read_records(tmp_path, ID).damaged] == [copy / "result.json"]


@pytest.mark.parametrize("linked", ["aux_4/run_0", "aux_4_8/run_1", "aux_4_8/run_0/attempt_2"])
@pytest.mark.parametrize("there", [True, False])
def test_linked_folders_are_named_and_not_followed(tmp_path, linked, there):
    folder = put(tmp_path / "elsewhere", verdict(COMPLETE)) if there else tmp_path / "gone"
    exp_dir = tmp_path / "exp"
    put(exp_dir, verdict(COMPLETE))
    link = exp_dir / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder)
    records = read_records(exp_dir, ID)
    assert records.results == (verdict(COMPLETE),)
    assert records.stray == (link,)
    assert not records.damaged
    assert [attempt.folder for attempt in attempts_in(exp_dir)] == [exp_dir / RUN.name]


def test_a_linked_arm_is_named_and_not_followed(tmp_path):
    put(tmp_path / "elsewhere", verdict(COMPLETE))
    exp_dir = tmp_path / "exp"
    exp_dir.mkdir()
    (exp_dir / "aux_4_8").symlink_to(tmp_path / "elsewhere" / "aux_4_8")
    (exp_dir / "notes").symlink_to(tmp_path)  # of no concern: no run in it
    records = read_records(exp_dir, ID)
    assert records == Records(stray=(exp_dir / "aux_4_8",))
    assert attempts_in(exp_dir) == []


def test_more_folders_than_any_experiment_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ablation.runs.store.MAX_FOUND", 5)
    for number in range(5):
        put(tmp_path, run=replace(RUN, index=number))
    assert len(attempts_in(tmp_path)) == 5
    put(tmp_path, run=replace(RUN, index=5))
    with pytest.raises(ValueError, match="holds more than 5 files"):
        attempts_in(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_record_that_is_no_file_is_damaged(tmp_path, name, make):
    path = put(tmp_path, verdict(COMPLETE)) / name
    path.unlink()
    make(path)
    (why,) = damaged(tmp_path)
    assert name in why


def test_folders_that_are_no_runs_are_passed_over(tmp_path):
    for name in ("aux_4/run_x", "a b/run_0", "aux_4/run_0/attempt_x", "aux_4/sub/run_0"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
    assert attempts_in(tmp_path) == []


def test_a_config_of_another_run_is_not_believed(tmp_path):
    folder = put(tmp_path)
    assert read_config(Attempt(RUN.name, 1, folder))[0] == RUN
    with pytest.raises(ValueError, match="that of aux_4_8/run_0"):
        read_config(Attempt("aux_4/run_0", 1, folder))


@pytest.mark.parametrize("value", [None, [], {}, {"returncode": 0}, {**asdict(CLEAN), "x": 1},
    {**asdict(CLEAN), "end_s": 1.0}, {**asdict(CLEAN), "start_s": "1"},
    {**asdict(CLEAN), "returncode": "0"}, {**asdict(CLEAN), "ended_by": None},
    {**asdict(CLEAN), "returncode": False}, {**asdict(CLEAN), "returncode": 10**30},
    {**asdict(CLEAN), "end_s": 1e300}, {**asdict(CLEAN), "nodes": 10**30}])  # fmt: skip
def test_a_damaged_exit_was_seen_by_nobody(value):
    assert exit_from(value) is None
    assert exit_from(asdict(CLEAN)) == CLEAN


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


# ---------------------------------------------------------------------------------------------
# The ledger

INTERVALS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 10)), max_size=8
)


@given(INTERVALS)
def test_the_ledger_is_the_union_of_all_attempts(intervals):
    results = [
        replace(verdict("", FAILED), clock=clock, start_s=float(start), end_s=float(start + long))
        for clock, start, long in intervals
    ]
    seconds = {(clock, start + k) for clock, start, long in intervals for k in range(long)}
    assert machine_seconds(results) == len(seconds)
    in_flight = [r.interval for r in results]
    assert machine_seconds(results[:3], in_flight[3:]) == len(seconds)


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["curve"].insert(0, [False, 11.0, 0.0]),
        lambda value: value["run"]["arm"].update(flags=""),
        lambda value: value["run"]["arm"].update(flags={}),
        lambda value: value["run"]["arm"].update(flags=["ab"]),
        lambda value: value["run"]["arm"].update(env={"ab": 1}),
        lambda value: value["run"]["arm"].update(replacements=""),
    ],
    ids=[
        *("a step that is no number", "flags that are a text", "flags that are an object"),
        *("a flag that is a text", "variables that are an object", "replacements as a text"),
    ],
)
def test_what_only_counts_as_a_number_or_a_list_is_none(edit):
    value = json.loads(json.dumps(asdict(verdict(COMPLETE))))
    value["curve"] = value["curve"][1:]
    assert result_from(value).status == "ok"
    edit(value)
    with pytest.raises(ValueError, match="not a run's record"):
        result_from(value)
