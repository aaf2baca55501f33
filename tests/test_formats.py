"""Logs of other trainers: what counts as a whole training, whatever else lies in the log."""

import json
import math
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records import CLEAN, COMPLETE, FAILED, RUN

from ablation.runs import foreign_log
from ablation.runs.foreign_log import ForeignLog, metrics_in
from ablation.runs.formats import (
    FORMATS,
    KEYS,
    OURS,
    Reading,
    guess_format,
    may_take_for_ever,
    own_format,
)
from ablation.runs.log import LogReader, read_log, reader_of
from ablation.runs.outcome import judge, judge_attempt, result_from
from ablation.runs.printed import MAX_LINE
from tests.support.foreign_logs import (
    FORMS,
    HEAD,
    RULE,
    SOURCE,
    Form,
    flooded,
    log_of,
    metric_end,
    of_ranks,
)

TOTAL, LAST = 8, "3.2784"
BY_TIME = {"counts_steps": False}
EVERY = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def reading_of(form: Form, **changes) -> Reading:
    return Reading(**{"format": FORMATS[form.format], "metric": form.metric, **changes})


def read(log, reading, total=TOTAL, chunk=None):
    data = log if isinstance(log, bytes) else log.encode()
    reader, size = reader_of(total, reading), chunk or max(1, len(data))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    return reader.close()


def verdict(log, reading, exit=CLEAN):
    result = judge(RUN, 1, read(log, reading), exit)
    assert result_from(json.loads(json.dumps(asdict(result)))) == result
    return result


# ---------------------------------------------------------------------------------------------
# Whole logs

AROUND = {
    "alone": lambda log: log,
    "behind its source": lambda log: HEAD + log,
    "behind a source between rules": lambda log: f"{RULE}\n{HEAD}{log}",
    "in a flood": lambda log: flooded(log),
    "of two ranks": lambda log: of_ranks(log),
    "a rank that prints all at its end": lambda log: of_ranks(log, [0]) + of_ranks(log, [1]),
    "printed twice": lambda log: "".join(2 * line for line in log.splitlines(keepends=True)),
    "with carriage returns": lambda log: log.replace("\n", "\r\n"),
    "behind progress bars": lambda log: "".join(
        f"\r 50%|####    | 4/8 [00:01<00:01]\r{line}" for line in log.splitlines(keepends=True)
    ),
    "a rank late with its last line": lambda log: log + log.splitlines(keepends=True)[-1],
}


@EVERY
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_whole_log_is_ok_whatever_lies_around_it(form, around):
    result = verdict(around(log_of(form, last=LAST)), reading_of(form))
    assert (result.status, result.reason) == ("ok", "")
    assert (result.val_loss, result.steps_done) == (float(LAST), TOTAL)
    assert result.curve[-1][:2] == (TOTAL, float(LAST))
    assert f"{form.metric} at step 8 of 8" in result.evidence


@EVERY
def test_nothing_counts_without_exit_code_0(form):
    for exit in (FAILED, replace(CLEAN, returncode=None), replace(CLEAN, returncode=-9)):
        assert verdict(log_of(form), reading_of(form), exit).status == "crashed"
    stopped = replace(CLEAN, returncode=-15, ended_by="timeout")
    assert verdict(log_of(form), reading_of(form), stopped).status == "timeout"


@EVERY
def test_times_are_the_logs_own_where_it_has_any(form):
    result = verdict(log_of(form), reading_of(form))
    told = form.format != "nanogpt" and "/8 val_loss: " not in log_of(form)
    assert ("by the clock" in result.evidence) is not told
    expected = 80.0 if told else 1000 * result.wall_s
    assert result.train_time_ms == result.curve[-1][2] == pytest.approx(expected)
    assert result.step_avg_ms == pytest.approx(expected / TOTAL)


@pytest.mark.parametrize("told", ["800000000", "0"])
def test_a_time_that_the_attempt_did_not_have_is_not_believed(told):
    """Neither at the end, nor on the way there: a speedup would be read off both."""
    form = FORMS["speedrun"]
    log = re.sub(r"train_time:\d+ms", f"train_time:{told}ms", log_of(form))
    result = verdict(log, reading_of(form))
    assert result.train_time_ms == 1000 * result.wall_s
    assert "by the clock" in result.evidence
    assert [time_ms for *_, time_ms in result.curve] == [
        pytest.approx(1000 * result.wall_s * step / TOTAL) for step, *_ in result.curve
    ]


def test_times_of_some_points_are_no_times():
    log = '{"step": 2, "val_loss": 5.0, "time_s": 1}\n{"step": 8, "val_loss": 3.0}\n'
    result = verdict(log, Reading(FORMATS["json-lines"]))
    wall_ms = 1000 * result.wall_s
    assert result.curve == ((2, 5.0, wall_ms / 4), (8, 3.0, wall_ms))
    assert "by the clock" in result.evidence


@EVERY
def test_a_log_of_another_length_is_no_log_of_this_run(form):
    longer, shorter = log_of(form, total=TOTAL + 1), log_of(form, total=TOTAL - 1)
    for log in (longer, shorter):
        result = verdict(log, reading_of(form))
        assert result.status == "crashed"
        if f"/{TOTAL - 1}" in log:
            assert "its lines tell 7 steps, the run has 8" in result.reason


# ---------------------------------------------------------------------------------------------
# Cut off, damaged, in pieces


@EVERY
@pytest.mark.parametrize("head", ["", HEAD, f"{RULE}\n{HEAD}"])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_log_that_is_cut_off_anywhere_is_not_complete(form, head, unknown):
    log = head + log_of(form, last=LAST)
    reading, total = reading_of(form), 0 if unknown else TOTAL
    end = metric_end(log, LAST)
    for at in range(end):
        assert read(log[:at], reading, total).incomplete, log[max(0, at - 80) : at]
    knows = not unknown or form.format not in ("nanogpt", "json-lines")
    assert (not read(log[:end], reading, total).incomplete) is knows


@EVERY
def test_a_log_by_time_that_is_cut_off_needs_the_exit_code(form):
    log = log_of(form, last=LAST, total=TOTAL).replace("/8", "/20000")
    reading = reading_of(form, **BY_TIME)
    end = metric_end(log, LAST)
    assert all(read(log[:at], reading, 5).incomplete for at in range(end))
    result = verdict(log, reading)
    assert (result.status, result.by_time, result.steps_done) == ("ok", True, TOTAL)
    assert verdict(log[: end - 1], reading).status == "crashed"
    assert verdict(log, reading, FAILED).status == "crashed"
    late = verdict(log + form.train(TOTAL + 1, 20000), reading)  # it went on, without the metric
    assert late.status == "crashed"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 400))
def test_pieces_of_any_size_say_the_same(data, chunk):
    form = data.draw(st.sampled_from(list(FORMS.values())))
    log = data.draw(st.sampled_from(list(AROUND.values())))(log_of(form))
    reading = reading_of(form)
    assert read(log, reading, chunk=chunk) == read(log, reading)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), format=st.sampled_from([row for row in FORMATS.values() if not row.summary]))
def test_any_bytes_are_a_log_of_some_kind(data, format):
    form = data.draw(st.sampled_from(list(FORMS.values())))
    whole = (HEAD + log_of(form)).encode()
    noise = data.draw(st.binary(max_size=60))
    a, b = sorted((data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))))
    log = data.draw(st.sampled_from([noise, whole[:a] + noise + whole[b:], whole[a:b] + noise]))
    for reading in (Reading(format), Reading(format, "val_loss", **BY_TIME)):
        reader = read(log, reading)
        result = judge(RUN, 1, reader, CLEAN)
        assert result_from(json.loads(json.dumps(asdict(result)))) == result
        assert isinstance(reader.contents + reader.incomplete, str)
    guess_format(log)


JUNK = st.text(st.sampled_from('step:8/ val_loss3.{}"nif,()=\t'), max_size=80)


@settings(max_examples=100, deadline=None)
@given(junk=st.lists(JUNK, max_size=6), data=st.data())
def test_lines_of_others_change_no_value(junk, data):
    form = data.draw(st.sampled_from(list(FORMS.values())))
    lines = log_of(form).splitlines(keepends=True)
    reading = reading_of(form)
    for text in junk:
        lines.insert(data.draw(st.integers(0, len(lines))), f"# {text}\n")
    assert verdict("".join(lines), reading).status == "ok"


# ---------------------------------------------------------------------------------------------
# What must not count


@EVERY
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
@pytest.mark.parametrize("step", [0, TOTAL])
def test_a_value_that_is_no_number_is_a_divergence_at_any_step(form, value, step):
    if form.format == "json-lines":
        value = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(value, value)
    log = log_of(form, last="7.7777", first="6.6666")
    was = "6.6666" if step == 0 and "6.6666" in log else "7.7777"
    assert verdict(log.replace(was, value), reading_of(form)).status == "diverged"
    assert verdict(log.replace(was, value), reading_of(form), FAILED).status == "diverged"


@pytest.mark.parametrize("line", [
    "step:3/8 train_loss:nan train_time:30ms step_avg:10.00ms",
    "step:3/8 train_loss:nan train_ti",
    "x [00:01<00:01, 3it/s]step:3/8 val_loss:inf",
    "step:3/8 train_loss:tensor(nan)",
])  # fmt: skip
def test_a_training_loss_that_is_no_number_is_a_divergence(line):
    form = FORMS["speedrun"]
    assert verdict(line + "\n" + log_of(form), reading_of(form)).status == "diverged"


@pytest.mark.parametrize("line", ["iter 3: loss nan, time 10.00ms, mfu 1.00%",
    "step 3: train loss nan, val loss 3.2", "step 3: train loss 3.1, val loss nan, x"])  # fmt: skip
def test_a_divergence_of_nanogpt(line):
    form = FORMS["nanogpt"]
    assert verdict(line + "\n" + log_of(form), reading_of(form)).status == "diverged"


def test_the_word_for_a_divergence_is_one():
    form = FORMS["research"]
    assert verdict("FAIL\n", reading_of(form), FAILED).status == "diverged"
    assert verdict("FAILED to open x\n" + log_of(form), reading_of(form)).status == "ok"


QUOTES = [
    "# ",
    "> ",
    "    ",
    'print("',
    "global_",
    "[rank0]: # ",
    "INFO: > ",
    "> [rank0]: ",
    "x = [",
]


@EVERY
@pytest.mark.parametrize("value", ["7.7777", "nan"])
@pytest.mark.parametrize("front", QUOTES)
def test_a_quoted_line_is_no_value(form, front, value):
    log = log_of(form, last="7.7777")
    quoted = "".join(
        front + line if "7.7777" in line else line for line in log.splitlines(keepends=True)
    )
    assert verdict(quoted.replace("7.7777", value), reading_of(form)).status == "crashed"


@EVERY
def test_a_value_cut_short_in_its_line_is_none(form):
    log = log_of(form, last="7.7777")
    assert read(log[: log.rindex("7.7777") + 3], reading_of(form)).incomplete
    assert read(log[: log.rindex("7.7777") + 6], reading_of(form)).incomplete


@EVERY
def test_two_values_of_one_step_are_a_conflict(form):
    line = next(x for x in log_of(form, last=LAST).splitlines(keepends=True) if LAST in x)
    log = log_of(form, last=LAST).replace(line, line + "[rank1]: " + line.replace(LAST, "3.3000"))
    result = verdict(log, reading_of(form))
    assert result.status == "crashed"
    assert "3.278400 and 3.300000 at step 8" in result.reason


@EVERY
def test_two_runs_in_one_log_are_none(form):
    log = log_of(form)
    for reading in (reading_of(form), reading_of(form, **BY_TIME)):
        result = verdict(log + log, reading)
        assert result.status == "crashed"
        assert "more than one run" in result.reason


def test_a_source_that_is_cut_off_is_no_log():
    torn = read(SOURCE, reading_of(FORMS["speedrun"]))
    assert "in the source of its trainer" in torn.incomplete
    assert verdict(SOURCE, reading_of(FORMS["speedrun"])).status == "crashed"


def test_an_import_behind_the_training_is_no_source():
    form = FORMS["speedrun"]
    assert verdict(log_of(form) + "import os\n", reading_of(form)).status == "ok"
    assert verdict("from step 3 on\nimport takes long\n" + log_of(form), reading_of(form))


def test_what_a_source_says_of_memory_is_no_reason():
    form = FORMS["speedrun"]
    reason = verdict(HEAD + "bye\n", reading_of(form), FAILED).reason
    assert reason.startswith("exit code 1: Running Python 3.12.7")


# ---------------------------------------------------------------------------------------------
# Ends of a form's own

STOPPED = "stopping_early: wallclock_cap train_time:60ms step:6/20000\n"


def stopped(middle=""):
    form = FORMS["speedrun"]
    steps = "".join(form.train(step, 20000) for step in range(1, 7))
    return form.val(0, 20000, "10.8") + steps + form.val(6, 20000, LAST) + middle + STOPPED


@pytest.mark.parametrize("name", ["modded-nanogpt", "parameter-golf"])
def test_a_stop_by_the_clock_is_an_end_where_length_is_a_time(name):
    by_time = Reading(FORMATS[name], **BY_TIME)
    assert not read(stopped(), by_time).incomplete
    result = verdict(stopped(), by_time)
    assert (result.status, result.val_loss, result.steps_done) == ("ok", float(LAST), 6)
    assert result.evidence.startswith("exit code 0; stopping_early: wallclock_cap")
    assert read(stopped(), Reading(FORMATS[name]), 0).incomplete == ""  # of a length not known
    by_steps = read(stopped(), Reading(FORMATS[name]), 20000)
    assert "the log goes to 6" in by_steps.incomplete or "val_loss at step 6" in by_steps.incomplete


def test_a_stop_by_the_clock_without_the_metric_is_no_end():
    by_time = Reading(FORMATS["modded-nanogpt"], **BY_TIME)
    without = stopped().replace(f"val_loss:{LAST}", "train_loss:3.2")
    assert read(without, by_time).incomplete
    later = stopped().replace("step:6/20000\n", "step:7/20000\n")
    assert verdict(later, by_time).status == "crashed"


def test_final_values_count_by_their_label():
    form = FORMS["golf"]
    log = log_of(form, last="1.2276")
    for metric, value in {
        form.metric: 1.2276,
        "final_int8_zlib_roundtrip_exact val_loss": 2.07,
        "final_int8_zlib_roundtrip val_bpb": 1.2,
        "val_loss": 2.5,
        "val_bpb": 1.5,
    }.items():
        assert verdict(log, reading_of(form, metric=metric)).val_loss == value
    assert set(metrics_in(read(log, reading_of(form)))) >= {form.metric, "val_loss", "val_bpb"}


def test_a_summary_without_steps_is_that_of_the_last_one():
    form = FORMS["research"]
    result = verdict("val_bpb: 0.9979\nnum_steps: 8\n", reading_of(form))
    assert (result.status, result.curve[-1][:2]) == ("ok", (8, 0.9979))


def test_a_value_that_stands_alone_is_not_that_of_a_later_step():
    form = FORMS["research"]
    log = (
        "step 00003 (37.5%) | loss: 3.5\nval_bpb: 1.1\nstep 00008 (100.0%) | loss: 3.5\ndepth: 8\n"
    )
    result = verdict(log, reading_of(form))
    assert (result.status, result.curve[-1][:2]) == ("crashed", (3, 1.1))
    assert verdict(log + "val_bpb: 1.0\n", reading_of(form)).val_loss == 1.0


# ---------------------------------------------------------------------------------------------
# Published lines

PUBLISHED = {  # a line: the form, what it says
    "step:3250/3250 val_loss:3.2767 train_time:486123ms step_avg:149.58ms":
        ("modded-nanogpt", 3250, {"val_loss": 3.2767}, 486123.0),
    "step:0/5100 val_loss:10.8258 train_time:0ms step_avg:nanms":
        ("modded-nanogpt", 0, {"val_loss": 10.8258}, 0.0),
    "step:3250/3250 val_loss:3.27951 train_time:491.250s step_avg:151.15ms":
        ("modded-nanogpt", 3250, {"val_loss": 3.27951}, 491250.0),
    "step:20/100 val_loss:3.2 val_bpb:1.1 train_time:20ms step_avg:1.00ms":
        ("modded-nanogpt", 20, {"val_loss": 3.2, "val_bpb": 1.1}, 20.0),
    "20/100 val_loss: 3.2 val_bpb: 1.1":
        ("modded-nanogpt", 20, {"val_loss": 3.2, "val_bpb": 1.1}, None),
    "final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22763402":
        ("parameter-golf", None, {
            "final_int8_zlib_roundtrip_exact val_loss": 2.07269931,
            "final_int8_zlib_roundtrip_exact val_bpb": 1.22763402}, None),
    "quantized_ttt_phased val_loss:2.07 val_bpb:1.06 eval_time:512345ms":
        ("parameter-golf", None, {
            "quantized_ttt_phased val_loss": 2.07, "quantized_ttt_phased val_bpb": 1.06}, None),
    "diagnostic quantized val_loss:2.07 val_bpb:1.06":
        ("parameter-golf", None, {
            "diagnostic quantized val_loss": 2.07, "diagnostic quantized val_bpb": 1.06}, None),
    "diagnostic pre-quantization post-ema val_bpb: 1.06304590":
        ("parameter-golf", None, {
            "diagnostic pre-quantization post-ema val_bpb": 1.0630459}, None),
    "final_int6_sliding_window val_loss:2.9142 val_bpb:1.1282 stride:64 eval_time:63275ms":
        ("parameter-golf", None, {
            "final_int6_sliding_window val_loss": 2.9142,
            "final_int6_sliding_window val_bpb": 1.1282,
            "final_int6_sliding_window stride": 64.0}, None),
    "step:1/1555 train_time:75ms step_avg:74.87ms": ("modded-nanogpt", 1, {}, 75.0),
    "val_bpb:          0.997900": ("autoresearch", None, {"val_bpb": 0.9979}, None),
    "val_bpb: 0.9979": ("autoresearch", None, {"val_bpb": 0.9979}, None),
    "step 2000: train loss 1.7648, val loss 1.8857":
        ("nanogpt", 2000, {"train_loss": 1.7648, "val_loss": 1.8857}, None),
    "iter 2000: loss 1.7648, time 31.74ms, mfu -100.00%":
        ("nanogpt", 2000, {"loss": 1.7648}, None),
    '{"step": 100, "val_loss": 3.28, "train_time_s": 1.5}':
        ("json-lines", 100, {"val_loss": 3.28}, 1500.0),
    '{"iteration": 100, "max_steps": 200, "val_loss": -0.5}':
        ("json-lines", 100, {"val_loss": -0.5}, None),
}  # fmt: skip


@pytest.mark.parametrize("line", PUBLISHED)
def test_a_published_line_says_what_it_says(line):
    name, step, values, time_ms = PUBLISHED[line]
    said = FORMATS[name].said(line.encode())
    found = {k: v for k, v in said.values.items() if math.isfinite(v)}
    assert (said.step, found, said.time_ms) == (step, values, time_ms)


@pytest.mark.parametrize("line", [line for line, said in PUBLISHED.items() if said[2]])
def test_a_form_is_guessed_by_a_line(line):
    assert guess_format(f"NCCL version 2\n{line}\nbye\n".encode()) is FORMATS[PUBLISHED[line][0]]


@EVERY
@pytest.mark.parametrize("head", ["", HEAD])
def test_a_form_is_guessed_by_what_was_printed(form, head, tmp_path):
    (tmp_path / "log.txt").write_text(head + flooded(log_of(form)))
    assert guess_format(tmp_path / "log.txt") is FORMATS[form.format]


@EVERY
def test_a_form_is_guessed_in_a_long_log_behind_one_rule(form):
    log = f"{SOURCE}{RULE}\n{log_of(form, total=4000)}"
    assert guess_format(log.encode()) is FORMATS[form.format]


def test_our_own_form_is_guessed_by_its_summary():
    assert guess_format((HEAD + COMPLETE).encode()) is FORMATS["ours"]
    assert guess_format(HEAD.encode()) is None
    assert guess_format(b"\x00\xff" * 999) is None


# ---------------------------------------------------------------------------------------------
# Readings


def test_our_own_reading_is_the_strict_reader(tmp_path):
    (tmp_path / "train_log.txt").write_text(COMPLETE)
    assert type(reader_of(TOTAL)) is LogReader
    assert type(reader_of(TOTAL, Reading(FORMATS["nanogpt"]))) is ForeignLog
    assert read_log(tmp_path / "train_log.txt", TOTAL) == read(COMPLETE, OURS)
    result = verdict(COMPLETE, OURS)
    assert (result.status, result.evidence, result.by_time) == ("ok", "", False)


def test_a_metric_that_is_better_higher_is_a_loss_with_its_sign_turned():
    reading = Reading(FORMATS["json-lines"], "accuracy", better="higher")
    log = '{"step": 4, "accuracy": 0.25}\n{"step": 8, "accuracy": 0.5}\n'
    result = verdict(log, reading)
    assert (result.val_loss, [loss for _, loss, _ in result.curve]) == (-0.5, [-0.25, -0.5])
    assert "accuracy (higher is better: its sign is turned) at step 8" in result.evidence
    assert read(log, reading).contents == "the log is complete, accuracy 0.5000"
    two = verdict(log + '{"step": 8, "accuracy": 0.75}\n', reading)
    assert "accuracy 0.500000 and 0.750000" in two.reason
    with pytest.raises(ValueError, match=r"better 'more': give 'lower' or 'higher'"):
        Reading(better="more")


@pytest.mark.parametrize("changes", [{"metric": "x"}, {"better": "higher"}, BY_TIME])
def test_our_own_form_has_one_reading(changes):
    with pytest.raises(ValueError, match="ours"):
        Reading(**changes)


def test_nothing_recognisable_tells_what_was_sought_and_is_not_tried_again():
    form = FORMS["nanogpt"]
    result = verdict("hello\nepoch 1 done\n", reading_of(form))
    assert result.status == "crashed"
    assert result.final
    for words in ("step I: train loss F, val loss F", "epoch 1 done", "forms tried: nanogpt"):
        assert words in result.reason
    other = verdict(log_of(form), reading_of(form, metric="val_bpb"))
    assert "no val_bpb in its lines, which name loss, train_loss, val_loss" in other.reason
    assert other.final
    assert not verdict("hello\n", reading_of(form), FAILED).final
    assert not verdict(log_of(form, total=4), reading_of(form)).final  # exit 0, half of its steps


def test_a_log_of_another_form_is_told(tmp_path):
    (tmp_path / "output.log").write_text(HEAD + log_of(FORMS["nanogpt"]))
    log = read_log(tmp_path / "output.log", TOTAL, reading_of(FORMS["speedrun"]))
    result = judge_attempt(RUN, 1, tmp_path, log, CLEAN)
    assert result.reason.startswith("its lines are of the form 'nanogpt', not 'modded-nanogpt': ")
    assert result.final
    other = read_log(tmp_path / "output.log", TOTAL, reading_of(FORMS["nanogpt"], metric="x"))
    assert "of the form" not in judge_attempt(RUN, 1, tmp_path, other, CLEAN).reason
    ours = read_log(tmp_path / "output.log", TOTAL)
    assert "of the form" not in judge_attempt(RUN, 1, tmp_path, ours, CLEAN).reason


def test_a_line_of_another_form_is_quoted():
    form = FORMS["speedrun"]
    result = verdict(log_of(form).replace("step:8/8 val", "step:8/8, val"), reading_of(form))
    assert "not in this form: step:8/8, val_loss" in result.reason


def test_a_trainer_that_counts_from_0_ends_one_step_earlier():
    row = replace(FORMATS["nanogpt"], first_step=0)
    form = FORMS["nanogpt"]
    to_7 = log_of(form, total=7)
    assert verdict(to_7, Reading(FORMATS["nanogpt"])).status == "crashed"
    result = verdict(to_7, Reading(row))
    assert (result.status, result.steps_done) == ("ok", 8)
    assert verdict(log_of(form, total=8), Reading(row)).status == "crashed"


@pytest.mark.parametrize("value", ["0.0000", "-1.5000"])
def test_a_metric_may_be_zero_or_below(value):
    result = verdict(log_of(FORMS["nanogpt"], last=value), reading_of(FORMS["nanogpt"]))
    assert (result.status, result.val_loss) == ("ok", float(value))


def test_a_value_beyond_all_bounds_is_no_result():
    result = verdict(log_of(FORMS["nanogpt"], last="1e30"), reading_of(FORMS["nanogpt"]))
    assert result.status == "crashed"
    assert "beyond 1e+09" in result.reason


def test_the_file_of_its_own_and_the_screen_are_one_evidence(tmp_path):
    form = FORMS["speedrun"]
    log, reading = log_of(form, last=LAST), reading_of(form)
    (tmp_path / "train_log.txt").write_text(HEAD + log)
    for screen in ("", log[:200], "import os\n", log):
        result = judge_attempt(RUN, 1, tmp_path, read(screen, reading), CLEAN)
        assert (result.status, result.val_loss) == ("ok", float(LAST))
    other = read(log.replace(LAST, "3.3000"), reading)
    assert judge_attempt(RUN, 1, tmp_path, other, CLEAN).status == "crashed"


@pytest.mark.parametrize(("log", "form"), [(stopped(), FORMS["speedrun"]),
    (log_of(FORMS["research"]), FORMS["research"])])  # fmt: skip
def test_an_end_in_the_file_of_its_own_is_one(log, form):
    reading = reading_of(form, **BY_TIME)
    both = read("", reading).with_file(read(log, reading))
    assert both.incomplete == read(log, reading).incomplete == ""
    assert read(log, reading).with_file(read("", reading)).incomplete == ""


def record(**changes):
    form = FORMS["speedrun"]
    return {**asdict(verdict(log_of(form), reading_of(form))), **changes}


@pytest.mark.parametrize("changes", [
    {"returncode": None}, {"returncode": 1}, {"steps_done": 7}, {"val_loss": 3.0}, {"curve": []},
    {"train_time_ms": None}, {"train_time_ms": 1e9}, {"evidence": ""}, {"evidence": 3},
    {"steps_done": 7, "curve": [[7, 3.2784, 70.0]]},
    {"by_time": 1}, {"val_loss": 1e12}, {"steps_done": 20}, {"by_time": True, "steps_done": 20},
])  # fmt: skip
def test_a_record_that_nobody_can_have_written_is_not_believed(changes):
    with pytest.raises(ValueError, match="not a run's record"):
        result_from(json.loads(json.dumps(record(**changes))))


# ---------------------------------------------------------------------------------------------
# A user's own form

OWN = {
    "step": r"epoch=(?P<step>\d+) of (?P<total>\d+), loss=(?P<value>\S+) after (?P<time_s>\S+) s.*",
    "end": "done early",
    "example": "epoch=3 of 8, loss=-0.25 after 1.5 s (best)",
}


def own_log(total=TOTAL, last="0.5"):
    lines = [f"epoch={k} of {total}, loss={1 / k:.4f} after {k / 100} s\n" for k in range(1, total)]
    return "".join(lines) + f"epoch={total} of {total}, loss={last} after 0.08 s\n"


def test_a_users_own_form_is_read():
    reading = Reading(own_format(OWN, "perplexity"), "perplexity")
    result = verdict(HEAD + flooded(own_log()), reading)
    assert (result.status, result.val_loss, result.train_time_ms) == ("ok", 0.5, 80.0)
    assert verdict(own_log(last="nan"), reading).status == "diverged"
    assert verdict(of_ranks(own_log()), reading).status == "ok"
    log = own_log()
    assert all(read(log[:at], reading).incomplete for at in range(len(log)))
    early = own_log(4).replace("of 4", "of 8") + "done early\n"
    by_time = replace(reading, **BY_TIME)
    assert verdict(early, by_time).status == "ok"
    assert not read(early, by_time).incomplete
    assert verdict(early, reading).status == "crashed"


def test_groups_are_metrics_by_their_names():
    step = r"it (?P<step>\d+) acc (?P<acc>\S+) bpb (?P<bpb>\S+)"
    row = own_format({"step": step, "example": "it 3 acc 0.5 bpb 1.1"}, "bpb")
    assert row.said(b"it 3 acc 0.5 bpb 1.1").values == {"acc": 0.5, "bpb": 1.1}


@pytest.mark.parametrize("value", ["3.2x", "3.", "", "-", "3_2", "0x1"])
def test_what_is_no_number_is_no_value(value):
    row = own_format({"step": r"(?P<step>\d+) (?P<value>\S*)", "example": "3 0.5"})
    said = row.said(f"3 {value}".encode())
    assert said is None or value == "3."


def test_the_first_part_of_a_number_is_no_value():
    row = own_format({"step": r"(?P<step>\d+) (?P<value>nan|\d+\.\d).*", "example": "3 0.5"})
    assert row.said(b"3 0.5, x").values == {"val_loss": 0.5}
    assert row.said(b"3 0.51") is None
    assert row.said(b"3 0.5e-3") is None


def test_a_line_of_a_users_form_is_bounded():
    row = own_format({"step": r"(?P<step>\d+) (?P<value>\S+) .*", "example": "3 0.5 x"})
    assert row.said(b"3 0.5 " + b"x" * 1000)
    assert row.said(b"3 0.5 " + b"x" * 1100) is None


@pytest.mark.parametrize("text", [
    b'{"step": 8, "val_loss": 3.2, "val_loss": 3.1}', b'{"step": 8.5, "val_loss": 3.2}', b"{8}",
    b'{"step": -1, "val_loss": 3.2}', b'["step"]', b'{"step": 1e300}', b'{"step": NaN}',
])  # fmt: skip
def test_what_is_no_step_in_json_is_no_line(text):
    assert FORMATS["json-lines"].said(text) is None


def test_a_line_that_says_a_thing_twice_is_none():
    row = FORMATS["modded-nanogpt"]
    assert row.said(b"step:8/8 val_loss:3.2 lr:1 val_loss:3.1") is None
    assert row.said(b"step:8/8 val_loss:3.2 lr:1 val_bpb:3.1")


@pytest.mark.parametrize(("value", "said"), [('"nan"', math.nan), ('"3.2"', None), ("null", None),
    ("true", None), ("[3]", None), ("1e999", math.inf), ("9" * 400, math.inf),
    ("-3", -3.0)])  # fmt: skip
def test_a_value_of_json_is_a_number(value, said):
    found = FORMATS["json-lines"].said(f'{{"step": 8, "x": {value}}}'.encode()).values.get("x")
    assert found == said or (math.isnan(said) and math.isnan(found))


WRONG = {  # a change of the table: words of the fault
    "an unknown key": ({"exmple": "x"}, "log.exmple is no key of a log's form; 'example' is"),
    "another one": ({"zzz": "x"}, "log.zzz is no key of a log's form: give step, end, example"),
    "no step": ({"step": None}, "no log.step: give a regular expression"),
    "no example": ({"example": None}, "no log.example: give a line that it matches"),
    "no text": ({"step": 3}, "log.step 3: give a text"),
    "an example that is no text": ({"example": 3}, "log.example 3: give a text"),
    "no expression": ({"step": "(?P<step>"}, "is no regular expression"),
    "no group for the step": ({"step": "(?P<value>.*)"}, "no group for the step: write (?P<step>"),
    "no metric": ({"step": r"(?P<step>\d+) (?P<x>\S+)"}, "no group for val_loss (it names x)"),
    "another line": ({"example": "hello"}, "log.step matches nothing of it"),
    "half a line": ({"step": r"epoch=(?P<step>\d+) of 8, loss=(?P<value>\S+)"},
                    "only 'epoch=3 of 8, loss=-0.25' of it; it has to match the whole line: write"),
    "no number": ({"example": "epoch=3 of 8, loss=a after 1.5 s"}, "no number for val_loss"),
    "no NaN": ({"step": r"epoch=(?P<step>\d+) of 8, loss=(?P<value>[-\d.]+) .*"},
               r"would not see a divergence: write (?P<value>\S+)"),
    "a repeated repetition": ({"step": r"(?P<step>\d+) (\w+)* (?P<value>\S+)"}, "take for ever"),
    "a deeper one": ({"end": r"((a|b)+c)+"}, "log.end '((a|b)+c)+': a group that repeats holds"),
    "alternatives that overlap": ({"end": r"(?:a|aa)+b"}, "a group that repeats holds * + ? {"),
    "a part that may lack": ({"end": r"(?P<x>a?a?)*b"}, "may take for ever"),
    "a wrong end": ({"end": "["}, "log.end '[' is no regular expression"),
    "too long": ({"end": "a" * 2000}, "longer than 1024 characters"),
    "another first step": ({"first_step": 2}, "log.first_step 2: give 0 or 1"),
    "no first step": ({"first_step": True}, "log.first_step True: give 0 or 1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_form_is_named_with_the_remedy(change, words):
    table = {key: value for key, value in {**OWN, **change}.items() if value is not None}
    with pytest.raises(ValueError) as error:
        own_format(table)
    assert words in str(error.value)


def test_all_faults_of_a_form_are_told_at_once():
    with pytest.raises(ValueError) as error:
        own_format({"stp": "x", "end": "(", "first_step": "a"})
    assert len(str(error.value).splitlines()) == 5


@pytest.mark.parametrize("text", [r"(?P<step>\d+) .* (?P<value>\S+)", r"(a|b)c+", r"\(a+\)*x",
    r"[(a+)]*", r"(?:ab)+c+", r"(a)?(b+)?"])  # fmt: skip
def test_a_plain_repetition_is_allowed(text):
    assert not may_take_for_ever(text)


@settings(max_examples=200, deadline=None)
@given(
    table=st.dictionaries(
        st.sampled_from(["step", "end", "example", "first_step", "x"]),
        st.one_of(st.text(max_size=30), st.integers(-1, 2), st.none()),
    )
)
def test_any_table_is_a_form_or_has_faults(table):
    try:
        own_format(table)
    except ValueError as error:
        assert str(error)


PAGE = (Path(__file__).resolve().parents[1] / "docs/logs.md").read_text()


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_every_form_has_its_row_in_the_documentation(row):
    shown = "<br>".join(f"`{line}`".replace("|", "\\|") for line in row.shown)
    assert f"| `{row.name}` | {shown} |" in PAGE


def test_the_example_of_the_documentation_is_a_form():
    table = tomllib.loads(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    row = own_format(table["log"], "val_loss")
    assert row.said(table["log"]["example"].encode()).values == {"val_loss": 3.28}
    assert {f"`{key}`" for key in KEYS} <= set(re.findall(r"^\| (`\w+`) \|", PAGE, re.MULTILINE))


# ---------------------------------------------------------------------------------------------
# Long logs, of which most lines are looked at in passing


@EVERY
def test_a_long_log_is_read_as_a_short_one(form):
    total, reading = 700, reading_of(form)
    log = log_of(form, total=total, last=LAST)
    reader = read(log, reading, total)
    assert (reader.incomplete, reader.step, reader.curve[-1][:2]) == ("", total, (total, 3.2784))
    assert "more than one run" in read(log + log, reading, total).incomplete
    lines = log.splitlines(keepends=True)
    cut = "".join(lines[:500])
    assert read(cut, reading, total).incomplete
    assert read(cut, reading, total).step in (499, 500)
    damaged = re.sub(r"3\.50*", "NaN", form.train(500, total))
    assert read("".join([*lines[:500], damaged, *lines[500:]]), reading, total).non_finite
    other = "".join([*lines[:500], form.train(300, 900), *lines[500:]])
    assert not read(other, reading, total).incomplete


def test_a_late_change_of_the_total_is_seen():
    form = FORMS["speedrun"]
    log = log_of(form, total=700) + form.train(3, 900)
    assert "runs of 700 and of 900 steps" in read(log, reading_of(form), 0).incomplete


# ---------------------------------------------------------------------------------------------
# Bounds


def test_a_reader_is_bounded_whatever_is_printed(monkeypatch):
    monkeypatch.setattr(foreign_log, "MAX_NAMES", 5)
    lines = "".join(f'{{"step": {n}, "m{n}": 1}}\n' for n in range(100))
    log = read(lines, Reading(FORMATS["json-lines"]))
    assert len(log.names) <= 6
    endless = read(b'{"step": 8, "val_loss": 3}' * MAX_LINE, Reading(FORMATS["json-lines"]))
    assert endless.incomplete
    deep = read(b'{"step":' + b"[" * 4000 + b"\n", Reading(FORMATS["json-lines"]))
    assert deep.incomplete


@pytest.mark.parametrize(("steps", "hint"), [(range(8), True), (range(1, 8), False)])
def test_a_log_of_the_users_form_that_ends_a_step_early_says_where_and_perhaps_why(steps, hint):
    form = {"step": r"(?P<step>\d+) (?P<value>\S+)", "example": "3 0.5"}
    log = "".join(f"{step} 3.25\n" for step in steps)
    reason = verdict(log, Reading(own_format(form))).reason
    assert "the log ends with val_loss at step 7 of 8" in reason
    assert ("say first_step = 0" in reason) is hint
    assert verdict(log, Reading(own_format(form | {"first_step": 0}))).status == "ok"
