"""Generated inputs: none is misjudged, and what would misjudge one is found."""

import dataclasses
import json
import random
import time

import pytest

import run_aux
from ablation.execute import status
from ablation.folder import standing
from ablation.runs import log as logs
from ablation.runs import outcome, printed, store
from benchmarks import fuzz, inputs, oracle
from benchmarks.fuzz import COUNTED, HANG, KINDS, TRACEBACK, WRONG_ELSE, WRONG_OK, Tally
from tests.support.invent import by_hand

PATIENT_S = 60.0  # a busy machine is no hang


@pytest.fixture(scope="module")
def shop():
    with fuzz.shop() as made:
        yield made


def of(kind):
    return [k for k in KINDS if k.name == kind]


def findings(tally: Tally) -> str:
    return "\n".join(fuzz.told(tally, 1, 0.0))


def test_a_short_run_of_every_kind_finds_nothing(shop):
    tally = fuzz.some(1, range(2500), shop, PATIENT_S)
    assert not tally.findings, findings(tally)
    assert tally.inputs.keys() == {kind.name for kind in KINDS}


# ---------------------------------------------------------------------------------------------
# Readers that are broken on purpose


def believes_a_log_that_was_cut_off(monkeypatch):
    incomplete = logs.LogReader.incomplete.fget

    def believing(log):
        if log.summaries == 0 and log.curve:
            log.summaries, (_, loss, time_ms) = 1, log.curve[-1]
            log.step = log.num_iterations
            whole = {"steps_done": log.step, "train_time_ms": time_ms + 1, "step_avg_ms": 1.0}
            rest = {"peak_memory_mib": 1.0, "tokens_seen": 1, "num_parameters": 1}
            log.summary = {"val_loss": loss, **whole, **rest}
            log.curve[-1] = (log.step, loss, time_ms)
        return incomplete(log)

    monkeypatch.setattr(logs.LogReader, "incomplete", property(believing))


def judges_without(name, value):
    def broken(monkeypatch):
        judge = outcome.judge

        def forgetful(run, attempt, log, exit):
            setattr(log, name, value)
            return judge(run, attempt, log, exit)

        monkeypatch.setattr(outcome, "judge", forgetful)

    return broken


def gives(where, name, value):
    return lambda monkeypatch: monkeypatch.setattr(where, name, lambda *_, **__: value)


def does(where, name, act):
    return lambda monkeypatch: monkeypatch.setattr(where, name, act)


def fails(*_):
    raise KeyError("a bug")


def read_whatever_is_there(path):
    with open(path, "rb") as file:  # waits for a FIFO's writer
        return json.loads(file.read(1 << 20))


def never_ends(*_):
    time.sleep(600)


def print_raw(_):
    print("\x1b[31mred")


def believes_any_exit(monkeypatch):
    judge = outcome.judge

    def believing(run, attempt, log, exit):
        return judge(run, attempt, log, dataclasses.replace(exit, returncode=0))

    monkeypatch.setattr(outcome, "judge", believing)


BROKEN = {  # what is broken: how, what then is counted, for inputs of which kind
    "a log that was cut off": (believes_a_log_that_was_cut_off, WRONG_OK, "logs"),
    "no look at losses that are not finite": (judges_without("non_finite", b""), WRONG_OK, "logs"),
    "no look at what differs": (judges_without("conflict", ""), WRONG_OK, "logs"),
    "no look at a second run": (judges_without("restarted", False), WRONG_OK, "logs"),
    "any exit code": (believes_any_exit, WRONG_OK, "logs"),
    "no look at the clock": (gives(outcome, "overlong", ""), WRONG_OK, "logs"),
    "nothing is good enough": (gives(outcome, "overlong", "too long"), WRONG_ELSE, "logs"),
    "no word of a divergence": (judges_without("non_finite", b""), WRONG_ELSE, "logs"),
    "colours are no colours": (does(printed, "plain", bytes.rstrip), WRONG_ELSE, "logs"),
    "a bug": (does(outcome, "judge", fails), TRACEBACK, "logs"),
    "it never ends": (does(outcome, "judge", never_ends), HANG, "logs"),
    "a reason as it was printed": (
        does(outcome, "printable", lambda text, **_: text), TRACEBACK, "logs"),
    "a record that did not earn its ok": (gives(outcome, "unearned", ""), WRONG_OK, "records"),
    "a record under another name": (
        gives(store, "read_config", (None, {})), WRONG_ELSE, "records"),
    "a FIFO is waited for": (does(store, "read_json", read_whatever_is_there), HANG, "records"),
    "an edited registration": (gives(standing, "changes", ()), WRONG_OK, "registrations"),
    "raw words": (does(status, "print_status", print_raw), TRACEBACK, "registrations"),
    "two lines of refusal": (
        does(run_aux, "check_options", print_raw), TRACEBACK, "command lines"),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "counted", "kind"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_found(shop, monkeypatch, broken, counted, kind):
    broken(monkeypatch)
    limit_s = 0.05 if counted is HANG else PATIENT_S
    numbers = range(2000)
    while numbers:
        some, numbers = numbers[:50], numbers[50:]
        if fuzz.some(1, some, shop, limit_s, of(kind)).count(counted):
            return
    pytest.fail(f"nothing is counted as {counted}")


# ---------------------------------------------------------------------------------------------
# What was found, and is mended

RECORD = {  # what somebody wrote into a record: (file, where in it, value), why it is not believed
    "a time below 0": ("result.json", ("curve", -1, 2), -5.0, "a time of its curve"),
    "a time beyond all": ("result.json", ("curve", 0, 2), 1e308, "a time of its curve"),
    "an attempt that is no count": ("config.json", ("attempt",), 1.0, "attempt 1.0"),
    "an attempt that is a yes": ("config.json", ("attempt",), True, "attempt True"),
}


@pytest.mark.parametrize(("file", "place", "value", "why"), RECORD.values(), ids=RECORD)
def test_a_record_whose_value_nobody_can_have_written_is_damaged(shop, file, place, value, why):
    files = dict(shop.honest[0])
    path = next(path for path in files if path.endswith(file))
    changed = inner = json.loads(files[path])
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    files[path] = inputs.json_bytes(changed)
    with shop.folder(files) as folder:
        found = store.read_records(folder, fuzz.ID)
    assert not found.results
    assert why in found.damaged[0][1]


@pytest.mark.parametrize("name", ["attempt_1", "attempt_01", "attempt_0", "attempt_02"])
def test_a_copy_under_a_number_that_no_attempt_has_counts_for_nothing(shop, name):
    files = dict(shop.honest[0])
    files |= {path.replace("/run_0/", f"/run_0/{name}/"): files[path] for path in files}
    with shop.folder(files) as folder:
        found = store.read_records(folder, fuzz.ID)
    assert len(found.results) == 1


def test_a_choice_by_hand_of_more_than_an_arm_has_is_refused(shop):
    files = shop.simulated[0].files(0)
    value = by_hand(4) | {"name": "x"}
    override = {"kind": "by_hand", "stage": 3, "value": value}
    files["overrides.json"] = inputs.json_bytes({"overrides": [override]})
    with shop.folder(files) as folder, pytest.raises(ValueError, match=r"a choice of .*mend it"):
        standing.standing(folder)


def test_a_dry_run_does_not_make_the_copy_of_the_trainer_again(shop):
    with shop.folder(shop.simulated[0].files(0)) as folder:
        argv = ["--dry_run", "--staged", "--num_gpus", "0", "--exp_dir", str(folder)]
        assert fuzz.in_process(run_aux.main, argv).code == 0
        assert [path.name for path in folder.iterdir()] == ["experiment_configs.json"]


# ---------------------------------------------------------------------------------------------
# The oracle, and the inputs


@pytest.mark.parametrize("generate", [inputs.a_log, inputs.command_line, inputs.environment])
def test_equal_seeds_give_equal_inputs(generate):
    first, again, other = (
        [generate(rng) for _ in range(50)] for rng in map(random.Random, (1, 1, 2))
    )
    assert first == again != other


def test_every_option_of_run_aux_is_drawn():
    actions = run_aux.build_parser()._actions
    options = {option for a in actions for option in a.option_strings if option.startswith("--")}
    drawn = {*inputs.FLAGS, *inputs.WITH_NUMBER, *inputs.WITH_TEXT}
    assert options - drawn == {"--plan_report"}, "which takes seconds each time"


def test_what_is_found_does_not_depend_on_what_came_before(shop, monkeypatch):
    judges_without("non_finite", b"")(monkeypatch)
    whole = fuzz.some(1, range(200), shop, PATIENT_S).findings
    alone = [f for n in range(200) for f in fuzz.some(1, [n], shop, PATIENT_S).findings]
    assert whole == alone != []


def test_the_oracle_shares_no_code_with_the_readers():
    ours = {"log", "outcome", "store", "untrusted", "registration", "ablation", "re"}
    assert not ours & vars(oracle).keys()


def test_every_kind_of_log_is_generated():
    made = [inputs.a_log(random.Random(n)).truth for n in range(300)]
    assert set(made) == {inputs.HONEST, inputs.FAULTY, inputs.DIVERGED, inputs.ANYTHING}


# ---------------------------------------------------------------------------------------------
# The command line


def test_jobs_share_the_inputs_and_find_what_one_would(shop):
    tally = fuzz.many(1, 600, 600.0, 2, PATIENT_S, print)
    assert tally.inputs == fuzz.some(1, range(600), shop, PATIENT_S).inputs
    assert not tally.findings, findings(tally)


@pytest.mark.parametrize("counted", [None, *COUNTED])
def test_figures_are_written_as_they_are_printed(tmp_path, capsys, monkeypatch, counted):
    found = [fuzz.Finding(counted, "logs", 7, "log.py:1 feed", "x")] if counted else []
    tally = Tally(fuzz.Counter(logs=9), found)
    monkeypatch.setattr(fuzz, "many", lambda *_: tally)
    file = tmp_path / "fuzz.json"
    assert fuzz.main(["--seed", "3", "--json", str(file)]) == (1 if counted else 0)
    shown, written = capsys.readouterr().out, json.loads(file.read_text())
    assert written["inputs"] == 9
    for name in COUNTED:
        assert written[name.replace(" ", "_")] == (name == counted)
        assert f"{name}: {int(name == counted)}" in shown
    assert ("--seed 3 --only 7" in shown) == bool(counted)
