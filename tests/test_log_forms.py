"""Logs as they are: what a terminal, a second rank, a logger or a progress bar make of them."""

import contextlib
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records import CLEAN, COMPLETE, FAILED, RUN, TOTAL, read, summary, train, val, verdict

from ablation.runs import log as logs
from ablation.runs import printed
from ablation.runs.log import (
    SUMMARY_FIELDS,
    LogReader,
    read_log,
)
from ablation.runs.outcome import Exit, judge, judge_attempt, overlong, result_from
from ablation.runs.printed import LABEL, LABELS, QUOTATIONS, QUOTED

LAST = val(TOTAL)
BAR = " 50%|#####     | 4/8 [00:01<00:01,  3.90it/s]"


def decorated(front="", back="", only=None):
    """A complete log with something around each line, or around one."""
    lines = [line + "\n" for line in COMPLETE.splitlines()]
    around = [f"{front}{line[:-1]}{back}\n" if only in (None, line) else line for line in lines]
    return "".join(around)


# ---------------------------------------------------------------------------------------------
# Honest logs

DECORATIONS = {  # (in front of a line, behind it)
    "nothing": ("", ""),
    "trailing blanks": ("", "   \t "),
    "a carriage return": ("", "\r"),
    "blanks over it": ("", "\r    \r"),
    "colours": ("\x1b[1;32m", "\x1b[0m"),
    "colours and blanks": ("\x1b[32m", " \x1b[0m \x1b[K"),
    "a line that is cleared first": ("\x1b[2K\r", ""),
    "a title of the window": ("\x1b]0;training\x07", ""),
    "a progress bar that is overwritten": (f"\r{BAR}\r", ""),
    "a progress bar in front": (f"\r{BAR}", ""),
    "many of them": (f"\r{BAR}" * 500 + "\r", ""),
    "many of them and no return": (f"\r{BAR}" * 500, ""),
    "a bar that is moved up": (f"{BAR}\x1b[A\r", ""),
    "a warning without line end": ("x.py:3: UserWarning: 'a' is deprecated (see b).", ""),
    "one that ends in a quotation": ("UserWarning: 'a' is deprecated, take 'b'", ""),
    "one that ends in code": ("UserWarning: take `b`", ""),
    "one with a blank": ("UserWarning: something ", ""),
    "torchrun's label": ("[default0]:", ""),
    "pytorch's label": ("[rank0]: ", ""),
    "two labels": ("[default0]:[rank0]: ", ""),
    "a rank": ("rank 0: ", ""),
    "a rank in brackets": ("(rank 0) ", ""),
    "srun's label": (" 3: ", ""),
    "a logger": ("2026-11-25 10:00:01,123 INFO ", ""),
    "the plain logger": ("INFO:root:", ""),
    "a logger with dashes": ("2026-11-25 10:00:01,123 - root - INFO - ", ""),
    "a logger with bars": ("2026-11-25 10:00:01.123 | INFO     | __main__:main:10 - ", ""),
    "a logger in brackets": ("[2026-11-25 10:00:01,123][train][INFO] - ", ""),
    "glog": ("I1125 10:00:01.123456 4711 train.py:12] ", ""),
    "a worker": ("(worker pid=4711) ", ""),
    "rank and logger": ("[rank0]: 2026-11-25T10:00:01Z INFO ", ""),
}


@pytest.mark.parametrize("only", [None, LAST, summary()], ids=["all", "the last step", "summary"])
@pytest.mark.parametrize(("front", "back"), DECORATIONS.values(), ids=DECORATIONS)
def test_an_honest_log_is_ok_however_its_lines_are_decorated(front, back, only):
    result = verdict(decorated(front, back, only))
    assert (result.status, result.reason) == ("ok", "")
    assert result.curve == verdict(COMPLETE).curve


@pytest.mark.parametrize("odd", ["-  1: ", " 1 ", "1 2:3"])
def test_a_control_sequence_that_no_terminal_knows_takes_with_it_what_a_terminal_takes(odd):
    """ECMA-48: up to the first sign from @ to ~, here the s of step. What is left is no step."""
    result = verdict(COMPLETE.replace(LAST, f"\x1b[{odd}{LAST}"))
    assert result.status == "crashed"


def ranks(*texts):
    return "".join(f"[rank{rank}]: {line}\n" for line in "".join(texts).splitlines()
                   for rank in (0, 1))  # fmt: skip


def labelled(label, text):
    return "".join(label + line for line in text.splitlines(keepends=True))


HONEST = {
    "two ranks in step": ranks(COMPLETE),
    "without labels": "".join(line + line for line in COMPLETE.splitlines(keepends=True)),
    "a rank late with its last line": COMPLETE + LAST + summary(),
    "a rank that prints all at its end": labelled("0: ", COMPLETE) + labelled("1: ", COMPLETE),
    "two lines in one": COMPLETE.replace(LAST, LAST.strip() + LAST.strip() + "\n\n"),
    "the summary behind the last step": COMPLETE.replace(LAST, LAST.strip()),
    "clocks and memories of two ranks": COMPLETE
    + summary(train_time_ms=12346.1, step_avg_ms=178.95, peak_memory_mib=30500.0),
    "more fields": COMPLETE.replace(summary(), summary(world_size=8, torch="2.13", x=[1, {}])),
    "its whole source in front": 'print0(f"step:{step}/{total} val_loss:{val_loss:.6f}")\n'
    'print("summary: " + json.dumps(s))\nx = f"summary: {json.dumps(s)}"\n' + COMPLETE,
    "another step counter": COMPLETE.replace(LAST, "global_" + val(TOTAL, 9.0) + LAST),
    "another program's summary": COMPLETE + 'model summary: {"layers": 12}\n',
    "another program's torn summary": COMPLETE + "model summary: {layers: 12\n",
    "a warning in front of a rank's summary": labelled("[rank0]: ", COMPLETE).replace(
        "[rank0]: summary", f"{BAR}[rank0]: summary") + labelled("[rank1]: ", COMPLETE),
    "a look back at the end": COMPLETE + "the first was " + val(0, 10.8),
    "another logger's summary": COMPLETE + "INFO summary: 12 files\n",
    "late lines of another length": COMPLETE + val(0, total=5),
}  # fmt: skip


@pytest.mark.parametrize("log", HONEST.values(), ids=HONEST)
def test_equal_repetitions_and_foreign_lines_do_no_harm(log):
    assert (verdict(log).status, verdict(log).reason) == ("ok", "")


@pytest.mark.parametrize("label", LABELS)
def test_every_label_in_the_table_is_one(label):
    assert LABEL.fullmatch(label.encode())


@pytest.mark.parametrize(("label", "rank"), [("[rank7]: ", b"7"), ("[default12]:", b"12"),
    ("rank 3: ", b"3"), ("(rank 0) ", b"0"), (" 5: ", b"5"), ("INFO:root:", None)])  # fmt: skip
def test_a_label_names_its_rank(label, rank):
    assert printed.rank_of(LABEL.match(label.encode())) == rank


# ---------------------------------------------------------------------------------------------
# What must not count

QUOTES = [*QUOTATIONS, "\t", "// ", "- ", "best = '", 'x = {"', "f('a', 'b', '"]
QUOTES += ["> [rank0]: ", "[rank0]: > ", "INFO: # "]


@pytest.mark.parametrize("front", QUOTATIONS)
def test_every_quotation_in_the_table_is_one(front):
    assert QUOTED.fullmatch(front.encode())


@pytest.mark.parametrize("front", QUOTES)
def test_a_quoted_line_is_no_evidence(front):
    result = verdict(decorated(front, only=LAST))
    assert result.status == "crashed"
    assert "no val_loss line at the last step" in result.reason


@pytest.mark.parametrize("front", QUOTES)
def test_a_quoted_line_contradicts_nothing(front):
    quoted = front + val(TOTAL, 9.0) + front + summary(val_loss=9.0)
    assert verdict(quoted + COMPLETE + quoted).status == "ok"


@pytest.mark.parametrize("back", [" <- best", ".", "'", '")', " lr:0.1", "s", "\x1b[31m!"])
def test_text_behind_a_step_line_makes_it_another_line(back):
    assert verdict(decorated(back=back, only=LAST)).status == "crashed"


NOT_ONE_RUN = {
    "another loss of a rank": (COMPLETE.replace(LAST, LAST + "[rank1]: " + val(TOTAL, 3.3)),
                               "val_loss 3.274112 and 3.300000 at step 8"),
    "in a line that is glued": (COMPLETE.replace(LAST, LAST + "Warning: x" + val(TOTAL, 3.3)),
                                "val_loss 3.274112 and 3.300000 at step 8"),
    "another loss before the end": (COMPLETE.replace(LAST, val(4, 5.0) + val(4, 5.1) + LAST),
                                    "val_loss 5.000000 and 5.100000 at step 4"),
    "another loss of a late rank": (COMPLETE.replace(LAST, LAST + "[rank1]: " + val(0, 10.9)),
                                    "val_loss 10.800000 and 10.900000 at step 0"),
    "another loss behind the summary": (COMPLETE + val(TOTAL, 3.3), "3.274112 and 3.300000"),
    "another summary": (COMPLETE + summary(val_loss=3.3), "val_loss 3.2741123 and 3.3"),
    "another one in its line": (COMPLETE[:-1] + summary(val_loss=3.3), "3.2741123 and 3.3"),
    "another one behind text": (COMPLETE + "done " + summary(val_loss=3.3), "3.2741123 and 3.3"),
    "another one with a label": (COMPLETE + "[rank1]: " + summary(tokens_seen=5), "1024 and 5"),
    "a summary beside its last step": (COMPLETE.replace(summary(), summary(val_loss=3.27415)),
                                       "not that of the last step (3.27415 and 3.274112)"),
    "other training times": (COMPLETE + summary(train_time_ms=9999.0), "12345.6 and 9999.0"),
    "a damaged one beside it": (COMPLETE + 'x summary: {"val_loss": 3.2, "st\n', "is damaged"),
    "one that says a thing twice": (
        COMPLETE.replace('{"val_loss"', '{"val_loss": 3.1, "val_loss"'), "is damaged"),
    "a second run": (COMPLETE + COMPLETE, "more than one run"),
    "one with labels": (labelled("[rank0]: ", COMPLETE + COMPLETE), "more than one run"),
    "a second run that breaks off": (COMPLETE + val(0, 10.8), "more than one run"),
    "one that trains only": (COMPLETE + train(1), "more than one run"),
    "one behind a warning": (COMPLETE + "Warning: x." + train(1), "more than one run"),
    "one of a rank behind a warning": (
        labelled("[rank0]: ", COMPLETE) + "Warning: x.[rank0]: " + train(1), "more than one run"),
}  # fmt: skip


@pytest.mark.parametrize(("log", "why"), NOT_ONE_RUN.values(), ids=NOT_ONE_RUN)
def test_what_differs_is_a_failure_that_names_both(log, why):
    result = verdict(log)
    assert result.status == "crashed"
    assert why in result.reason


@pytest.mark.parametrize("front", ["", "[rank0]: ", f"\r{BAR}", "UserWarning: something "])
@pytest.mark.parametrize("loss", ["-1.#IND", "1.#QNAN00", "1.#INF", "nan(ind)", "tensor(nan)",
    "tensor(-inf, device='cuda:0')", "torch.tensor(nan)", "np.float32(inf)"])  # fmt: skip
def test_a_loss_that_is_no_number_is_a_divergence_however_it_is_spelled(loss, front):
    assert verdict(COMPLETE.replace(LAST, front + val(TOTAL, loss))).status == "diverged"


@pytest.mark.parametrize("loss", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999"])
@pytest.mark.parametrize(("front", "back"), [*DECORATIONS.values(), ("    ", ""), ("", " <- !"),
    ("!!! ", " !!!"), ("", "\rsomething else"), ("a\r", "\r\r")])  # fmt: skip
def test_a_loss_that_is_no_number_is_a_divergence_however_it_is_decorated(loss, front, back):
    line = f"{front}{train(3, loss)[:-1]}{back}\n"
    assert verdict(COMPLETE.replace(LAST, line + LAST)).status == "diverged"


@pytest.mark.parametrize("text", ["print('step:3/8 train_loss:nan')\n", "# step:3/8 val_loss:nan\n",
    "> step:3/8 val_loss:nan\n", "step:3/9 val_loss:nan\n", "step:9/8 val_loss:nan\n",
    "step:3/8 val_loss:nano\n", "global_step:3/8 val_loss:nan\n",
    "step:3/8 val_loss:1.#\n", "step:3/8 val_loss:tensor(3.2)\n",
    "step:3/8 val_loss:f(none)\n"])  # fmt: skip
def test_a_word_about_divergences_is_none(text):
    assert verdict(text + COMPLETE).status == "ok"


def test_a_divergence_is_seen_in_a_line_that_was_cut_off():
    assert verdict(val(0) + "step:3/8 train_loss:nan train_ti", FAILED).status == "diverged"
    assert verdict(val(0) + "step:3/8 train_loss:nan", FAILED).status == "diverged"
    assert verdict(val(0) + "step:3/8 train_loss:na", FAILED).status == "crashed"


# ---------------------------------------------------------------------------------------------
# Any honest log, decorated anyhow, and one lie


@settings(max_examples=150, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 3000))
def test_any_decoration_of_an_honest_log_is_ok_and_one_lie_ends_that(data, chunk):
    pick = st.sampled_from(list(DECORATIONS.values()))
    lines = [f"{front}{line}{back}\n" for line in COMPLETE.splitlines()
             for front, back in [data.draw(pick)]]  # fmt: skip
    log = "".join(lines)
    assert judge(RUN, 1, read(log, chunk), CLEAN).status == "ok"
    front, back = data.draw(pick)
    lie = data.draw(st.sampled_from([val(TOTAL, 3.3), summary(val_loss=3.3), val(3, "nan")]))
    lines.insert(data.draw(st.integers(0, len(lines))), f"{front}{lie[:-1]}{back}\n")
    assert judge(RUN, 1, read("".join(lines), chunk), CLEAN).status in ("crashed", "diverged")


# ---------------------------------------------------------------------------------------------
# The fields of a summary

WRONG = [
    ("val_loss", None, "val_loss None: give a number"),
    ("val_loss", "3.27", "val_loss '3.27': give a number"),
    ("val_loss", True, "val_loss True: give a number"),
    ("val_loss", math.nan, "val_loss nan: give a number"),
    ("val_loss", math.inf, "val_loss inf: give a number"),
    ("val_loss", 0, "val_loss 0: give a number above 0"),
    ("val_loss", 1e10, "val_loss 10000000000.0: give a number up to 1e+09"),
    ("steps_done", 8.0, "steps_done 8.0: give an integer"),
    ("steps_done", -1, "steps_done -1: give an integer of 0 or more"),
    ("train_time_ms", 0, "train_time_ms 0: give a number above 0"),
    ("train_time_ms", -5.0, "train_time_ms -5.0: give a number above 0"),
    ("train_time_ms", [1], "train_time_ms [1]: give a number"),
    ("step_avg_ms", 0.0, "step_avg_ms 0.0: give a number above 0"),
    ("peak_memory_mib", -1, "peak_memory_mib -1: give a number of 0 or more"),
    ("tokens_seen", 1000.0, "tokens_seen 1000.0: give an integer"),
    ("tokens_seen", False, "tokens_seen False: give an integer"),
    ("tokens_seen", 0, "tokens_seen 0: give an integer of 1 or more"),
    ("tokens_seen", 10**400, "up to 1e+18"),
    ("num_parameters", "7", "num_parameters '7': give an integer"),
    ("num_parameters", {}, "num_parameters {}: give an integer"),
]


@pytest.mark.parametrize(("name", "value", "why"), WRONG)
def test_a_field_that_is_wrong_is_named_with_what_belongs_there(name, value, why):
    result = verdict(COMPLETE.replace(summary(), summary(**{name: value})))
    assert result.status == "crashed"
    assert why in result.reason
    assert result.final


@pytest.mark.parametrize("name", [field.name for field in SUMMARY_FIELDS])
def test_a_field_that_is_missing_is_named(name):
    without = json.loads(summary().removeprefix("summary: "))
    del without[name]
    result = verdict(COMPLETE.replace(summary(), f"summary: {json.dumps(without)}\n"))
    assert f"no {name}: give a" in result.reason


def test_every_field_has_a_wrong_example():
    assert {name for name, *_ in WRONG} == {field.name for field in SUMMARY_FIELDS}


@pytest.mark.parametrize(("train_time_ms", "status"), [(15500.0, "ok"), (15700.0, "ok"),
    (15800.0, "crashed"), (1e12, "crashed"), (1e-3, "ok")])  # fmt: skip
def test_nobody_trains_longer_than_the_clock_says(train_time_ms, status):
    result = verdict(COMPLETE.replace(summary(), summary(train_time_ms=train_time_ms)))
    assert result.status == status
    if status == "crashed":
        assert f"train_time_ms {train_time_ms}: more than the 15.5 s" in result.reason
        assert result.final


def test_the_clock_may_be_a_little_behind():
    assert not overlong({"train_time_ms": 100.0}, 0.0)
    assert overlong({"train_time_ms": 101.0}, 0.0)


@pytest.mark.parametrize(
    "odd",
    [
        LAST.replace("ms step_avg", "s step_avg"),
        LAST.replace(" train_time", " val_bpb:1.1 train_time"),
        LAST.replace("\n", BAR + "\n"),
    ],
)
def test_a_last_step_line_in_another_form_is_quoted_beside_the_form(odd):
    reason = verdict(COMPLETE.replace(LAST, odd)).reason
    assert logs.STEP_LINE_AS in reason
    assert odd.strip() in reason


# ---------------------------------------------------------------------------------------------
# An attempt that would print the same again


@pytest.mark.parametrize(
    ("log", "exit", "final"),
    [
        (COMPLETE.replace(summary(), summary(tokens_seen=0)), CLEAN, True),
        (COMPLETE.replace(summary(), ""), CLEAN, True),
        (COMPLETE.replace("ms step", "s step"), CLEAN, True),  # lines of another form
        (COMPLETE.replace("ms step", "s step").replace(summary(), ""), CLEAN, False),
        (COMPLETE, CLEAN, False),  # it is ok
        (val(0) + train(3), CLEAN, False),  # it did not get there
        (COMPLETE, FAILED, False),  # a crash at the end: it may have been the machine
        (COMPLETE.replace(summary(), ""), replace(CLEAN, ended_by="stall"), False),
        (COMPLETE.replace(LAST, val(TOTAL, "nan")), CLEAN, False),  # an outcome of its own
    ],
)
def test_final_is_a_training_that_ended_well_and_a_log_that_did_not(log, exit, final):
    result = verdict(log, exit)
    assert result.final is final
    again = result_from(json.loads(json.dumps(asdict(result))))
    assert again.final is final


# ---------------------------------------------------------------------------------------------
# Reasons


def torchrun(*codes, root=0, torn=False):
    """What torchrun of torch 2.13 prints of workers that ended with these exit codes."""
    names = {-9: "  (SIGKILL)", -15: "  (SIGTERM)", -6: "  (SIGABRT)"}

    def block(rank):
        code = codes[rank]
        end = f"Signal {-code} received by PID 41" if code < 0 else "To enable traceback see: x"
        return (
            f"[{rank}]:\n  time      : 2026-11-25_10:02:03\n  host      : localhost\n"
            f"  rank      : {rank} (local_rank: {rank})\n"
            f"  exitcode  : {code} (pid: 41{rank}) {names.get(code, '')}\n"
            f"  error_file: <N/A>\n  traceback : {end}\n"
        )

    others = [block(rank) for rank in range(len(codes)) if rank != root]
    head = "Setting OMP_NUM_THREADS environment variable for each process to be 1 in default\n"
    text = (
        "W1125 10:02:03.192000 40 site-packages/torch/distributed/elastic/multiprocessing/api.py:"
        "1028] Sending process 411 closing signal SIGTERM\n"
        "E1125 10:02:03.194000 40 site-packages/torch/distributed/elastic/multiprocessing/api.py:"
        f"1002] failed (exitcode: {codes[root]}) local_rank: {root} (pid: 41{root}) of binary: x\n"
    )
    report = (
        'Traceback (most recent call last):\n  File "run.py", line 1032, in <module>\n'
        "    main()\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        f"{'=' * 60}\nx.py FAILED\n{'-' * 60}\nFailures:\n"
        f"{''.join(others) or '  <NO_OTHER_FAILURES>' + chr(10)}{'-' * 60}\n"
        f"Root Cause (first observed failure):\n{block(root)}{'=' * 60}\n"
    )
    stars = "*" * 41 + "\n"
    return stars + head + stars, text + ("" if torn else report)


REFUSAL = "train_gpt.py: error: no shard in x; see --help\n"
WORKERS = {  # words of the trainer, exit codes of the workers, which was first: status, reason
    "it refuses": (REFUSAL, (2,), 0, "refused", REFUSAL.strip()),
    "all refuse": (REFUSAL, (2, 2), 0, "refused", REFUSAL.strip()),
    "one refuses, the other is ended": (REFUSAL, (-15, 2), 1, "refused", REFUSAL.strip()),
    "one refuses, the other loses it": (REFUSAL, (2, 1), 0, "refused", REFUSAL.strip()),
    "it refuses in its own words": ("give me more heads\n", (2,), 0, "refused", "give me more"),
    "it refuses in silence": ("", (2,), 0, "refused", "exit code 2, nothing printed"),
    "it refuses late": (val(3, 5.0), (2, -15), 0, "refused",
                        "exit code 2; the log ends at step 3 of 8"),
    "one ends with 2 in silence, one fails": ("", (2, 1), 0, "crashed", "exit code 2, nothing"),
    "one ends with 2, one fails": ("bye\n", (2, 1), 0, "crashed", "exit code 2: bye"),
    "one fails, the other ends with 2": (REFUSAL, (1, 2), 0, "crashed", "exit code 1: train"),
    "it fails": ("bye\n", (3,), 0, "crashed", "exit code 3: bye"),
    "it raises": ("[rank0]: ValueError: x\n", (1, -15), 0, "crashed", "exit code 1: [rank0]: Va"),
    "it is killed": ("", (-9, -15), 0, "crashed", "killed by signal 9, nothing printed"),
    "it aborts": ("bye\n", (-6, -6), 1, "crashed", "killed by signal 6: bye"),
    "it is killed in training": (val(3, 5.0), (-9,), 0, "crashed",
                                 "killed by signal 9; the log ends at step 3 of 8"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "codes", "root", "status", "reason"), WORKERS.values(), ids=WORKERS
)
def test_the_workers_end_is_read_in_torchruns_report(words, codes, root, status, reason):
    head, report = torchrun(*codes, root=root)
    result = verdict(head + words + report, FAILED)
    assert result.status == status
    assert result.reason.startswith(reason)


@pytest.mark.parametrize(("end", "status", "reason"), [
    ("print('x.py: error: no shard', flush=True); sys.exit(2)", "refused", "x.py: error: no shard"),
    ("import os; os.kill(os.getpid(), 9)", "crashed", "killed by signal 9, nothing printed"),
])  # fmt: skip
def test_the_installed_torchrun_reports_in_the_words_that_are_read(tmp_path, end, status, reason):
    (tmp_path / "x.py").write_text(f"import sys\n{end}\n")
    words = "-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc_per_node=1 x.py"
    done = subprocess.run(
        [sys.executable, *words.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    result = judge(RUN, 1, read(done.stdout), replace(FAILED, returncode=done.returncode))
    assert (result.status, result.reason) == (status, reason)


def test_the_reports_of_two_nodes_are_read_together():
    reports = torchrun(2)[1] + torchrun(-15, 2, root=1)[1]
    assert verdict(REFUSAL + reports, FAILED).status == "refused"
    reports = torchrun(2)[1] + torchrun(1, -15)[1]  # which was first is not known
    assert verdict(REFUSAL + reports, FAILED).status == "crashed"


def test_a_report_that_is_torn_refuses_nothing():
    head, report = torchrun(2, torn=True)
    result = verdict(head + REFUSAL + report, FAILED)
    assert (result.status, result.reason) == ("crashed", f"exit code 2: {REFUSAL.strip()}")


@pytest.mark.parametrize("exit", [CLEAN, replace(FAILED, returncode=-9), replace(FAILED,
    returncode=None), replace(FAILED, returncode=3)])  # fmt: skip
def test_only_torchruns_own_failure_makes_its_report_count(exit):
    head, report = torchrun(2)
    result = verdict(head + REFUSAL + report, exit)
    assert result.status == "crashed"
    assert "exit code 2" not in result.reason


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "exit code 2, nothing printed"),
        (val(3, 5.0), "exit code 2; the log ends at step 3 of 8"),
        (COMPLETE, "exit code 2, but the log is complete, val_loss 3.2741"),
    ],
)
def test_exit_code_2_is_a_refusal_also_without_a_word(log, reason):
    result = verdict(log, replace(FAILED, returncode=2))
    assert (result.status, result.reason) == ("refused", reason)


def test_the_exit_code_2_of_a_trainer_without_torchrun_is_a_refusal():
    result = verdict("usage: x\n" + REFUSAL + "bye\n", replace(FAILED, returncode=2))
    assert (result.status, result.reason) == ("refused", REFUSAL.strip())
    assert verdict("usage: x\n", replace(FAILED, returncode=2)).status == "refused"
    stopped = replace(FAILED, returncode=2, ended_by="the budget is spent")
    assert verdict(REFUSAL, stopped).status == "interrupted"


KERNEL = "the kernel killed a process of this run: out of memory\n"
ENDINGS = {  # log, exit, the reason
    "killed for memory": (
        val(3, 5.0) + KERNEL, FAILED, "killed by the kernel for memory at step 3; try fewer runs "
        "side by side (--parallel_runs), or a smaller --device_batch_size; the log ends at step"),
    "on a GPU": ("torch.OutOfMemoryError: CUDA out of memory.\n", FAILED,
                 "out of memory; try a smaller --device_batch_size (torch.OutOfMemoryError: CUDA"),
    "a limit": (val(3, 5.0) + "eating tokens\nstill\n", replace(FAILED, ended_by="timeout"),
                "stopped after its time limit at step 3: eating tokens | still"),
    "a silence": ("waiting for a peer\n", replace(FAILED, ended_by="stall"),
                  "stopped after a silence that was too long at step 0: waiting for a peer"),
    "a silence with an error": ("ValueError: x\nbye\n", replace(FAILED, ended_by="stall"),
                                "stopped after a silence that was too long at step 0: ValueErr"),
    "a silence in training": (val(3, 5.0), replace(FAILED, ended_by="stall"), "stopped after a "
                              "silence that was too long at step 3; the log ends at step 3 of 8"),
    "a silence from the start": ("", replace(FAILED, ended_by="stall"), "stopped after a "
                                 "silence that was too long at step 0, nothing printed"),
    "a silence at the end": (COMPLETE, replace(FAILED, returncode=-15, ended_by="stall"),
                             "stopped after a silence that was too long at step 8, but the log "
                             "is complete, val_loss 3.2741"),
    "a crash at the end": (COMPLETE + "bye\n", FAILED,
                           "exit code 1, but the log is complete, val_loss 3.2741: bye"),
    "no launcher": ("", replace(FAILED, returncode=None, ended_by="the launcher could not be "
                    "started: no x"), "the launcher could not be started: no x"),
    "the budget": (val(3, 5.0), replace(FAILED, ended_by="the budget is spent"),
                   "the budget is spent, at step 3"),
}  # fmt: skip


@pytest.mark.parametrize(("log", "exit", "reason"), ENDINGS.values(), ids=ENDINGS)
def test_a_reason_is_true_and_quotes_the_last_words(log, exit, reason):
    found = verdict(log, exit).reason
    assert found.startswith(reason)
    assert ("nothing printed" in found) == (log == "" and exit.ended_by == "stall")


# ---------------------------------------------------------------------------------------------
# The screen's copy and the trainer's own file

HALF = COMPLETE.replace(LAST, "").replace(summary(), "")
TORN = COMPLETE.replace(LAST, LAST[:30] + "\n")
TWO_LOGS = {  # output.log, train_log.txt: status, a word of the reason
    "both complete": (COMPLETE, COMPLETE, "ok", ""),
    "no file of its own": (COMPLETE, "", "ok", ""),
    "its own cut off": (COMPLETE, COMPLETE[:-30], "ok", ""),
    "nothing on screen": ("", COMPLETE, "ok", ""),
    "a last step that is damaged": (TORN, COMPLETE, "ok", ""),
    "a summary that is damaged": (COMPLETE[:-2] + "x\n", COMPLETE, "ok", ""),
    "damaged on disk": (COMPLETE, COMPLETE[:-2] + "x\n", "ok", ""),
    "a half each": (HALF + summary(), HALF + LAST, "ok", ""),
    "a summary on neither side": (HALF + LAST, HALF + LAST, "crashed", "no summary"),
    "damaged on both sides": (COMPLETE[:-2] + "x\n", HALF + LAST, "crashed", "damaged"),
    "half a summary more on screen": (COMPLETE + 'summary: {"val_\n', "", "crashed", "damaged"),
    "half a summary more in both": (COMPLETE + 'summary: {"val_\n',) * 2 + ("crashed", "damaged"),
    "NaN on screen": (COMPLETE.replace(LAST, val(4, "nan") + LAST), COMPLETE, "diverged", "nan"),
    "NaN in its own": (COMPLETE, COMPLETE.replace(LAST, val(4, "nan") + LAST), "diverged", "nan"),
    "another loss": (COMPLETE, COMPLETE.replace(LAST, val(TOTAL, 3.3)), "crashed",
                     "val_loss 3.274112 and 3.300000 at step 8"),
    "another loss underway": (COMPLETE, COMPLETE.replace(val(0, 10.8), val(0, 10.9)), "crashed",
                              "val_loss 10.800000 and 10.900000 at step 0"),
    "another summary": (COMPLETE, COMPLETE.replace(summary(), summary(val_loss=3.274)), "crashed",
                        "val_loss 3.2741123 and 3.274"),
    "a wrong field": (COMPLETE.replace(summary(), summary(tokens_seen=0)), COMPLETE, "crashed",
                      "tokens_seen 0"),
    "a wrong field of its own": (COMPLETE, COMPLETE.replace(summary(), summary(tokens_seen=0)),
                                 "crashed", "tokens_seen 0"),
    "two runs on screen": (COMPLETE + COMPLETE, COMPLETE, "crashed", "more than one run"),
    "two runs of its own": (COMPLETE, COMPLETE + COMPLETE, "crashed", "more than one run"),
    "another run's": (COMPLETE, COMPLETE.replace("/8", "/9"), "ok", ""),
}  # fmt: skip


@pytest.mark.parametrize(("screen", "own", "status", "why"), TWO_LOGS.values(), ids=TWO_LOGS)
def test_two_copies_of_a_log_are_one_evidence(tmp_path, screen, own, status, why):
    (tmp_path / "train_log.txt").write_text(own)
    result = judge_attempt(RUN, 1, tmp_path, read(screen), CLEAN)
    assert result.status == status
    assert why in result.reason
    if status == "ok":
        assert result.curve == verdict(COMPLETE).curve
        assert result_from(json.loads(json.dumps(asdict(result)))) == result


@pytest.mark.parametrize("exit", [FAILED, replace(FAILED, ended_by="timeout")])
def test_a_complete_file_of_its_own_does_not_undo_the_exit(tmp_path, exit):
    (tmp_path / "train_log.txt").write_text(COMPLETE)
    assert judge_attempt(RUN, 1, tmp_path, read(TORN), exit).status in ("crashed", "timeout")


def test_the_evidence_changes_neither_log():
    screen, own = read(HALF + summary()), read(HALF + LAST)
    screen.with_file(own)
    assert (screen, own) == (read(HALF + summary()), read(HALF + LAST))


# ---------------------------------------------------------------------------------------------
# Signs of life

GLOG = b"[W1125 10:00:01.123 socket.cpp:767] [c10d] The IPv6 network addresses of (x, 1) ...\n"
SIGNS = {
    "a line": (b"epoch 1\n", True),
    "a part of a line": (b"...", True),
    "a progress bar": (f"\r{BAR}".encode(), True),
    "an endless line": (b"x" * 9000, True),
    "a step": (train(3).encode(), True),
    "a warning of Python": (b"UserWarning: x\n", True),
    "a log line in brackets": (b"[WANDB] syncing\n", True),
    "a warning of C++": (GLOG, False),
    "an old one": (b"[W socket.cpp:558] [c10d] The client socket has failed\n", False),
    "a rank's": (b"[rank0]:" + GLOG, False),
    "many of them": (GLOG * 100, False),
    "half of one": (GLOG[:40], False),
    "its beginning": (b"[", False),
    "blank lines": (b"\n \r\n\n", False),
    "nothing": (b"", False),
    "one of them and a line": (GLOG + b"epoch 1\n", True),
}


@pytest.mark.parametrize(("data", "alive"), SIGNS.values(), ids=SIGNS)
def test_signs_of_life_are_told_from_what_is_repeated_for_ever(data, alive):
    reader = LogReader(TOTAL)
    for _ in range(3):
        before = reader.signs_of_life
        reader.feed(data)
        assert (reader.signs_of_life > before) == alive
        reader.feed(b"\n" if not data.endswith(b"\n") else b"")


def test_a_warning_that_comes_in_pieces_is_no_sign_of_life():
    reader = LogReader(TOTAL)
    for at in range(len(GLOG)):
        reader.feed(GLOG[at : at + 1])
    assert reader.signs_of_life == 0


# ---------------------------------------------------------------------------------------------
# Logs on disk


def socket_at(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))


NO_LOGS = {
    "a FIFO": (os.mkfifo, "a FIFO"),
    "a link to an endless device": (lambda path: path.symlink_to("/dev/zero"), "a link"),
    "a link to a log": (lambda path: path.symlink_to(path.with_name("other")), "a link"),
    "a folder": (os.mkdir, "a folder"),
    "a socket": (socket_at, "a socket"),
}


@pytest.mark.parametrize(("make", "why"), NO_LOGS.values(), ids=NO_LOGS)
def test_what_is_no_file_is_told_and_never_read(tmp_path, monkeypatch, make, why):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train_log.txt"
    (tmp_path / "other").write_text(COMPLETE)
    make(path.relative_to(tmp_path) if make is socket_at else path)
    log = read_log(path, TOTAL)
    assert why in log.incomplete
    assert judge(RUN, 1, log, CLEAN).status == "crashed"
    assert judge_attempt(RUN, 1, tmp_path, read(COMPLETE), CLEAN).status == "ok"


def test_a_log_that_is_too_long_gives_its_last_words_and_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MAX_LOG", 10_000)
    monkeypatch.setattr(logs, "LAST", 2000)
    path = tmp_path / "output.log"
    path.write_text("noise\n" * 2000 + COMPLETE)
    result = judge(RUN, 1, read_log(path, TOTAL), CLEAN)
    assert result.status == "crashed"
    assert "longer than 10000 bytes" in result.reason
    path.write_text("noise\n" * 2000 + "ValueError: x\n")
    assert "ValueError: x" in judge(RUN, 1, read_log(path, TOTAL), FAILED).reason
    (tmp_path / "train_log.txt").write_text(COMPLETE)
    assert judge_attempt(RUN, 1, tmp_path, read_log(path, TOTAL), CLEAN).status == "ok"


def test_a_log_that_grows_is_read_as_far_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "output.log"
    path.write_text("x\n" * (1 << 20))
    feed = LogReader.feed

    def grow(self, data):
        with open(path, "ab") as file:
            file.write(b"x\n" * (1 << 20))
        feed(self, data)

    monkeypatch.setattr(LogReader, "feed", grow)
    read_log(path, TOTAL)
    assert path.stat().st_size == 3 * (2 << 20)  # it was read in two pieces


def test_a_curve_without_end_is_bounded(monkeypatch):
    monkeypatch.setattr(printed, "MAX_CURVE", 5)
    reader = LogReader(TOTAL)
    reader.feed("".join(val(step, 5.0) for step in range(TOTAL)).encode())
    assert len(reader.curve) == 5
    assert "more than 5 val_loss lines" in reader.incomplete


# ---------------------------------------------------------------------------------------------
# The real trainer's lines


def test_the_reader_reads_what_the_real_trainer_prints(tmp_path):
    train_gpt = pytest.importorskip("train_gpt")
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        log = train_gpt.Log(str(tmp_path / "train_log.txt"), SimpleNamespace(rank=0), TOTAL)
        log.loss("val", 0, 10.825, 0.0)
        log.loss("train", 1, 10.5, 0.0123)
        log.loss("val", TOTAL, 3.2741123, 12.3456)
        log.line(summary().strip())
        log.file.close()
    for text in (screen.getvalue(), (tmp_path / "train_log.txt").read_text()):
        result = verdict(text)
        assert (result.status, result.steps_done) == ("ok", TOTAL)
        assert result.curve == ((0, 10.825, 0.0), (TOTAL, 3.274112, 12346.0))
        assert read(text).train_loss == 10.5


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["train", "val"])
def test_the_reader_sees_the_real_trainers_divergence(kind, loss):
    train_gpt = pytest.importorskip("train_gpt")
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), pytest.raises(train_gpt.Diverged):
        train_gpt.Log("", SimpleNamespace(rank=0), TOTAL).loss(kind, 3, loss, 0.1)
    assert verdict(screen.getvalue(), replace(FAILED, returncode=3)).status == "diverged"


def test_a_real_training_gives_every_field_that_the_reader_demands(tmp_path, capsys):
    train_gpt = pytest.importorskip("train_gpt")
    from test_train_gpt import STEPS, arguments, text, write_shard

    write_shard(tmp_path / "text_train_000001.bin", text(9_000, 1))
    write_shard(tmp_path / "text_val_000000.bin", text(1_000, 3))
    own = tmp_path / "train_log.txt"
    begun_s = time.monotonic()
    assert train_gpt.main(arguments(tmp_path, {"--log_file": own})) == 0
    exit = Exit(0, "itself", "boot", begun_s, time.monotonic())
    run, out = replace(RUN, num_iterations=STEPS), capsys.readouterr().out
    for screen in (LogReader(STEPS), LogReader(STEPS)):  # the screen's copy, and nothing on screen
        screen.feed(out.encode())
        result = judge_attempt(run, 1, tmp_path, screen.close(), exit)
        assert (result.status, result.reason) == ("ok", "")
        assert all(getattr(result, field.name) is not None for field in SUMMARY_FIELDS)
        assert result_from(json.loads(json.dumps(asdict(result)))) == result
        out = ""
