"""What a log tells of the runs in it: whatever bytes it holds, and however it is cut."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ablation.runs import several
from ablation.runs.formats import FORMATS, Reading
from ablation.runs.several import STATUSES, Asked, Feeder, LogOfRuns, read_runs
from tests.support.foreign_logs import (
    FLOOD,
    FORMS,
    HEAD,
    SOURCE,
    flooded,
    log_of,
    metric_end,
    of_ranks,
)

WHOLE_STEPS = {"nanogpt": 8, "json": 8}  # these forms do not tell them
ON_DISK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def asked_for(name: str, **more) -> Asked:
    return Asked(metric=FORMS[name].metric, whole_steps=WHOLE_STEPS.get(name, 0), **more)


def told(folder: Path, *texts: str | bytes, asked: Asked | None = None):
    """The runs that a log tells of; several texts: a file for each rank."""
    asked = asked or Asked()
    paths = [folder / f"rank_{k}.log" for k in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_runs(paths, asked).runs


def outcomes(runs) -> list:
    return [run.loss if run.status == "ok" else run.status for run in runs]


# ---------------------------------------------------------------------------------------------
# One after the other


@pytest.mark.parametrize("name", FORMS)
def test_runs_lie_one_after_the_other_with_and_without_their_source(name, tmp_path):
    form = FORMS[name]
    values = ("3.2784", "3.3000", "3.4000", "nan", "3.5000")
    for head in (HEAD, ""):
        text = "".join(head + log_of(form, last=value) for value in values)
        runs = told(tmp_path, text, asked=asked_for(name))
        assert outcomes(runs) == [3.2784, 3.3, 3.4, "diverged", 3.5], head
        assert {run.format for run in runs} <= {form.format, "parameter-golf"}


def test_a_long_run_that_first_tells_a_training_step_begins_anew(tmp_path):
    form, total = FORMS["speedrun"], 150  # behind its first lines most are only glanced at
    run = "".join(form.train(step, total) for step in range(1, total + 1))
    text = run + form.val(total, total, "3.1") + run + form.val(total, total, "3.2")
    assert outcomes(told(tmp_path, text)) == [3.1, 3.2]
    broken = run[: len(run) // 2].rpartition("\n")[0] + "\n"
    assert outcomes(told(tmp_path, broken + text))[-2:] == [3.1, 3.2]


@pytest.mark.parametrize("name", FORMS)
def test_a_run_that_broke_off_stands_before_one_that_did_not(name, tmp_path):
    form = FORMS[name]
    first = HEAD + log_of(form)
    broken = first[: first.rindex("3.2784")].rpartition("\n")[0] + "\n"
    for head in (HEAD, ""):
        runs = told(tmp_path, broken + head + log_of(form, last="3.3"), asked=asked_for(name))
        assert outcomes(runs)[-1:] == [3.3], head
        assert "ok" not in [run.status for run in runs[:-1]]


def test_the_seed_of_each_run_and_its_validation_size_are_its_own(tmp_path):
    one = f"seed:1\nval_tokens: 4 * 1024\n{log_of(FORMS['speedrun'])}"
    other = f"seed:2\nval_tokens = 2_048\n{log_of(FORMS['speedrun'], last='3.3')}"
    runs = told(tmp_path, one + other)
    assert [(run.seed, run.val_tokens) for run in runs] == [(1, 4096), (2, 2048)]


def test_a_validation_size_is_read_in_the_source_but_a_seed_is_not(tmp_path):
    source = f"import os\nseed = 7\nval_tokens : int = 10485760 # of validation\n{'=' * 100}\n"
    one, other = (source + log_of(FORMS["speedrun"], last=last) for last in ("3.1", "3.2"))
    for run in (*told(tmp_path, one), *told(tmp_path, f"{one}{other}")):
        assert (run.status, run.seed, run.val_tokens) == ("ok", None, 10485760)


def test_ranks_of_a_run_are_one_run_and_their_contradiction_is_told(tmp_path):
    text = log_of(FORMS["speedrun"])
    assert outcomes(told(tmp_path, text, text)) == [3.2784]
    assert outcomes(told(tmp_path, text, "NCCL version 2.21.5\n")) == [3.2784]
    assert outcomes(told(tmp_path, HEAD + text, of_ranks(HEAD + text, (1,)))) == [3.2784]
    (run,) = told(tmp_path, text, log_of(FORMS["speedrun"], last="3.3"))
    assert (run.status, "3.278400 and 3.300000" in run.reason) == ("unclear", True)


def test_a_run_that_ends_by_its_wallclock_counts_there(tmp_path):
    text = "step:0/9 val_loss:9.0 train_time:0ms step_avg:nanms\n"
    text += "step:5/9 val_loss:3.3 train_time:50ms step_avg:10ms\n"
    assert outcomes(told(tmp_path, text)) == ["cut off"]
    end = "stopping_early: wallclock_cap train_time:50ms step:5/9\n"
    (run,) = told(tmp_path, text + end)
    assert (run.status, run.loss, run.step, run.length) == ("ok", 3.3, 5, None)


@pytest.mark.parametrize(
    "text, status, words",
    [
        ("", "unreadable", "empty"),
        ("\0\1" * 999, "unreadable", "binary"),
        ("my notes\nmore of them\n", "no metric", "it begins: my notes | more of them"),
        ("step:8/8 train_loss:3.5 train_time:80ms step_avg:9ms\n", "no metric", "train_loss"),
        ("step:4/8 train_loss:3.5 train_time:80ms step_avg:9ms\n", "cut off", "step 4 of 8"),
        ("step:8/8 val_loss:1e99 train_time:80ms step_avg:9ms\n", "unclear", "beyond"),
    ],
)
def test_what_does_not_count_has_a_status_and_a_reason(text, status, words, tmp_path):
    (run,) = told(tmp_path, text)
    assert run.status == status
    assert words in run.reason


# ---------------------------------------------------------------------------------------------
# Any bytes, any cut

LINES = [
    *(line for form in FORMS.values() for line in log_of(form, total=3).splitlines()),
    *SOURCE.splitlines(),
    *FLOOD,
    *("=" * 100, "", "\r", "seed:1", "[rank1]: step:3/3 val_loss:nan", "val_tokens: 9*9", "\x1b[A"),
]


@given(st.binary(max_size=300) | st.lists(st.sampled_from(LINES), max_size=40), st.booleans())
@ON_DISK
def test_any_bytes_give_rows_with_a_reason(tmp_path, content, ended):
    if isinstance(content, list):
        content = "\n".join(content).encode() + b"\n" * ended
    for asked in (Asked(), *map(asked_for, FORMS)):
        runs = told(tmp_path, content, asked=asked)
        assert runs
        for run in runs:
            assert run.status in STATUSES
            assert bool(run.reason) == (run.status != "ok")
            assert (run.loss is not None) == (run.status == "ok")


@pytest.mark.parametrize("name", FORMS)
def test_a_log_cut_anywhere_is_never_complete(name, tmp_path):
    form = FORMS[name]
    first = HEAD + log_of(form, last="3.1")
    text = first + HEAD + log_of(form, last="3.2784")
    end = len(first) + metric_end(text[len(first) :], "3.2784")
    places = [*range(len(first) - 300, len(first) + 3, 7), *range(end - 700, end, 3)]
    for place in (p for p in places if not metric_end(first, "3.1") <= p < len(first)):
        losses = [x for x in outcomes(told(tmp_path, text[:place], asked=asked_for(name)))]
        counted = [x for x in losses if isinstance(x, float)]
        assert counted == ([3.1] if place >= len(first) else []), place


# ---------------------------------------------------------------------------------------------
# Fewer lines to read

PARTS = st.lists(
    st.sampled_from(
        [
            *("whole", "whole", "cut", "nan", "source", "flood", "import torch\n", "seed:3\n"),
            *("lost", "x" * 300 + "\n", "bar"),
        ]
    ),
    min_size=1,
    max_size=8,
)


def built(parts: list[str], form) -> bytes:
    text = ""
    for k, part in enumerate(parts):
        log = log_of(form, total=40, last=f"3.{k + 1}")
        text += {
            "whole": log,
            "cut": log[: len(log) // 2] + "\n",
            "nan": log_of(form, total=40, last="nan"),
            "source": HEAD,
            "lost": form.train(3, 40).replace("3.5000", "nan"),
            "flood": flooded(log, FLOOD[:3]),
            "bar": "\rstep 1\rstep 2\n",
        }.get(part, part)
    return text.encode()


@pytest.mark.parametrize("name", ["speedrun", "a fraction", "nanogpt", "golf"])
@given(parts=PARTS, pieces=st.integers(200, 3000))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_left_out_of_the_reading_changes_nothing(name, monkeypatch, parts, pieces):
    runs = [k for k, part in enumerate(parts) if part in ("whole", "cut", "nan", "flood", "lost")]
    assume("import torch\n" not in parts[: min(runs, default=0)])  # else all is source to the RULE
    monkeypatch.setattr(several, "FULL", 150)
    form, data = FORMS[name], built(parts, FORMS[name])
    row = FORMATS[form.format]
    found = []
    for reader_of in (lambda log: log, Feeder):
        log = LogOfRuns(0, Reading(row, form.metric), whole_steps=asked_for(name).whole_steps * 5)
        reader = reader_of(log)
        for at in range(0, len(data), pieces):
            reader.feed(data[at : at + pieces])
        reader.close()
        runs = [several.told_by(run) for run in (*log.before, log)]
        found.append([(r.status, r.loss, r.seed, r.length, r.points) for r in runs])
    assert found[0] == found[1]


def test_a_log_of_a_megabyte_is_read_by_few_of_its_lines(monkeypatch):
    data = log_of(FORMS["speedrun"], total=14_000).encode()
    log, read = LogOfRuns(0, Reading(FORMATS["modded-nanogpt"])), []
    line = LogOfRuns._line
    monkeypatch.setattr(LogOfRuns, "_line", lambda self, text: (read.append(1), line(self, text)))
    feeder = Feeder(log)
    feeder.feed(data)
    feeder.close()
    assert several.told_by(log).loss == 3.2784
    assert len(read) < 2000
