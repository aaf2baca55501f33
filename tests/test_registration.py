"""What is fixed before the first run, and what happens when something else is asked later."""

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import analyze_aux
import run_aux
from ablation.execute.machine import machine
from ablation.folder import registration
from ablation.folder.materials import ROOT, Materials
from ablation.folder.overrides import (
    read_overrides,
    write_overrides,
)
from ablation.folder.registration import (
    check_unchanged,
    experiment_of,
    read_document,
    registered,
)
from ablation.folder.standing import standing
from ablation.plan.decision import Decision, is_overridden, render
from ablation.plan.next_step import next_step
from ablation.runs.store import write_json, write_result
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES
from tests.support.invent import (
    ARMS,
    BASELINE,
    by_hand,
    experiment,
    layers_of,
    overridden,
    rescaled,
    result,
    with_share,
)
from tests.support.invented_folder import begin, train


@pytest.fixture
def materials(tmp_path):
    script, data_dir = tmp_path / "train.py", tmp_path / "data"
    script.write_text("print('training')\n")
    data_dir.mkdir()
    for kind in ("train", "val"):
        (data_dir / f"x_{kind}_0.bin").write_bytes(b"tokens")
    return Materials(script, data_dir)


def facts(e):
    return {"machine": machine(e, ()), "versions": {}, "git": {}, "slurm_args": ""}


ADAPTIVE = experiment(plan="adaptive")
MINI = PROFILES["mini"]
CHANGED = {  # field that the refusal has to name: what is asked instead
    "full_iterations": replace(ADAPTIVE, full_iterations=101),
    "validation_runs": replace(ADAPTIVE, validation_runs=3),
    "stop_on": replace(ADAPTIVE, stop_on="superiority"),
    "screen": replace(ADAPTIVE, screen=True),
    "plan": replace(ADAPTIVE, plan="classic"),
    "profile.name": replace(ADAPTIVE, profile=PROFILES["small"]),
    "profile.scale.muon_lr": replace(ADAPTIVE, profile=rescaled(MINI, muon_lr=0.5)),
    **{
        f"profile.design.{name}": replace(
            ADAPTIVE, profile=replace(MINI, design=replace(MINI.design, **{name: value}))
        )
        for name, value in (
            ("sigma0", 0.02),
            ("delta_eq", 0.05),
            ("delta_target", 0.07),
            ("alpha", 0.01),
            ("pairing", 0.0),
            ("rho", 0.0),
        )
    },
    "budget_hours": replace(ADAPTIVE, budget_hours=1.0),
    "unet_skips": replace(ADAPTIVE, unet_skips=True),
    "log_grad_norms": replace(ADAPTIVE, log_grad_norms=True),
    "share.parallel_runs": with_share(ADAPTIVE, parallel_runs=2),
    "share.processes": with_share(ADAPTIVE, processes=4),
    "share.launcher": with_share(ADAPTIVE, launcher="slurm"),
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_refusal_names_the_field_and_both_values(field, materials, tmp_path):
    exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    check_unchanged(read_document(exp_dir), registered(ADAPTIVE, materials), exp_dir)
    with pytest.raises(ValueError) as refusal:
        check_unchanged(read_document(exp_dir), registered(CHANGED[field], materials), exp_dir)
    said = str(refusal.value)
    assert f"{field}: registered " in said
    assert "give what was registered, or start a new experiment" in said


def test_other_code_other_tokens_and_other_arms_are_named(materials, tmp_path):
    by_hand = experiment(plan="manual", arms=(ARMS["aux_6"],), seeds=(1,))
    exp_dir = begin(by_hand, materials, tmp_path / "experiments", facts(by_hand))
    materials.script.write_text("print('something else')\n")
    (materials.data_dir / "x_train_0.bin").write_bytes(b"other!")
    asked = replace(by_hand, arms=(ARMS["aux_8"],), seeds=(2,))
    with pytest.raises(ValueError) as refusal:
        check_unchanged(read_document(exp_dir), registered(asked, replace(materials)), exp_dir)
    for field in ("code.hash", "data.fingerprint", "stages.0.arms", "stages.0.seeds"):
        assert f"{field}: registered " in str(refusal.value)


def test_rules_that_changed_are_named_with_the_commit_that_has_them(
    materials, tmp_path, monkeypatch
):
    exp_dir = begin(
        ADAPTIVE, materials, tmp_path / "e", facts(ADAPTIVE) | {"git": {"commit": "1a2b"}}
    )
    monkeypatch.setattr(registration, "DECIDING_FILES", ("ablation/stats.py",))
    with pytest.raises(ValueError, match=r"files that decide are not .*git checkout 1a2b"):
        check_unchanged(read_document(exp_dir), registered(ADAPTIVE, materials), exp_dir)


def files_visited(act) -> set[str]:
    """The files of the project whose functions run while act() runs."""
    seen = set()

    def notice(frame, event, _):
        if event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "ablation"):
                seen.add(str(path.relative_to(ROOT)))

    sys.setprofile(notice)
    try:
        act()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("plan", ["classic", "adaptive", "manual"])
def test_every_file_that_a_decision_can_depend_on_is_registered(plan, materials, tmp_path):
    by_hand = {"arms": (ARMS["baseline"], ARMS["aux_6"]), "seeds": (1, 2, 3)}
    e = experiment(plan=plan, validation_runs=4, **(by_hand if plan == "manual" else {}))
    exp_dir = begin(e, materials, tmp_path / "experiments", facts(e))
    document = read_document(exp_dir)
    clock_s = 0.0
    while runs := standing(exp_dir).step.runs:
        for run in runs:
            layers, seed = len(layers_of(run.arm)), run.seed
            loss = 3.3 - 0.1 * layers * (layers < 3) + seed % 7 / 1e4 + seed / 1e9
            losses = {"val_loss": loss, "curve": ((run.num_iterations, loss, 4000.0),)}
            done = replace(
                result(run.arm, loss, start=clock_s, seconds=5.0, train_time_ms=4000.0),
                run=run,
                steps_done=run.num_iterations,
                peak_memory_mib=1.0,
                tokens_seen=1,
                num_parameters=1,
                **losses,
            )
            clock_s += 5.0
            (exp_dir / run.name).mkdir(parents=True)
            write_json(exp_dir / run.name / "config.json", {"run": asdict(run), "attempt": 1})
            write_result(exp_dir / run.name, done, document["experiment_id"])

    def decide():
        for decision in standing(exp_dir).step.decisions.values():
            render(decision)

    visited = files_visited(decide)
    some = ("plan/next_step", "plan/decision", "runs/store")
    assert {f"ablation/{name}.py" for name in some} <= visited
    only_hashes = {"ablation/folder/materials.py"}
    assert visited - only_hashes <= {*registration.DECIDING_FILES}


def test_everything_that_a_verdict_rests_on_is_inside_the_hash(materials, tmp_path):
    exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    document = read_document(exp_dir)
    fixed = document["registered"]
    assert fixed == json.loads(json.dumps(registered(ADAPTIVE, materials)))
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    assert document["hash"] == f"sha256:{digest}"
    assert {"estimand", "failure_rule", "budget_hours"} <= fixed.keys()
    assert fixed["study"]["question"] == HEADS.question
    assert fixed["study"]["hypothesis"] == HEADS.hypothesis
    design = fixed["profile"]["design"]
    assert {"alpha", "delta_eq", "delta_target", "speedup", "sigma0"} <= design.keys()
    stages = fixed["stages"].values()
    assert all(stage["rule"] and stage["arms"] for stage in stages)
    ranges = [range(s["seeds"]["first"], s["seeds"]["last"] + 1) for s in stages]
    assert ranges[2] == ranges[1]  # stage 3 is compared with stage 2, seed by seed
    others = [*ranges[:2], *ranges[3:]]
    assert len(set().union(*others)) == sum(map(len, others))  # disjoint


@pytest.mark.parametrize(
    ("field", "value"),
    [("budget_hours", 99), ("stop_on", "superiority"), ("question", "why?"), ("hash", "sha256:0")],
)
def test_a_registration_that_was_edited_is_refused(field, value, materials, tmp_path):
    exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    (document if field in document else document["registered"])[field] = value
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    found = standing(exp_dir)
    assert "edited since" in found.changed[0]
    assert found.step is None


def test_the_terms_and_ends_that_were_asked_for_are_those_of_who_goes_on(materials, tmp_path):
    design = replace(MINI.design, sigma0=0.02, pairing=0.0, rho=0.0, alpha=0.01)
    e = replace(ADAPTIVE, profile=replace(MINI, design=design), screen=True, stop_on="label")
    exp_dir = begin(e, materials, tmp_path / "experiments", facts(e))
    assert standing(exp_dir).experiment == e
    check_unchanged(read_document(exp_dir), registered(e, materials), exp_dir)


def test_an_older_registration_is_shown_and_nobody_goes_on_with_it(
    materials, tmp_path, monkeypatch, capsys
):
    """It lacks the terms and options that came later, has one that is gone, and other rules."""
    with monkeypatch.context() as older:
        older.setattr(registration, "rules_hash", lambda: "0" * 64)
        fixed = registered(ADAPTIVE, materials)
        design = fixed["profile"]["design"]
        design["power"] = 0.9
        for missing, of in (("pairing", design), ("rho", design), ("screen", fixed)):
            del of[missing]
        older.setattr(registration, "registered", lambda e, m: fixed)
        exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    found = standing(exp_dir)
    assert found.experiment == ADAPTIVE and found.step is None
    assert len(found.changed) == 1 and "files that decide are not those" in found.changed[0]
    assert analyze_aux.main(["--exp_dir", str(exp_dir)]) == 0
    assert "files that decide are not those" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot be gone on with: the files that decide") as no:
        check_unchanged(read_document(exp_dir), registered(ADAPTIVE, materials), exp_dir)
    assert "\n" not in str(no.value)
    assert run_aux.main(["--exp_dir", str(exp_dir), "--staged", "--dry_run"]) == 1
    assert capsys.readouterr().err == f"run_aux.py: error: {no.value}\n"


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"alpha": 0.5}, "profile.design.alpha 0.5: give a level"),
        ({"pairing": 0.9}, "profile.design.pairing 0.9: give a share"),
        ({"rho": "x" * 300}, "profile.design.rho 'xxx"),
        ({"delta_eq": 0.06}, "profile.design.delta_eq 0.06: give less than delta_target"),
    ],
)
def test_registered_terms_that_cannot_be_are_one_line(terms, words, materials, tmp_path):
    exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    document["registered"]["profile"]["design"] |= terms
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=words) as refused:
        read_document(exp_dir)
    assert len(str(refused.value)) < 400 and "start a new experiment" in str(refused.value)


@pytest.mark.parametrize(
    "field", ["share", "train_script", "data_dir", "experiment_id", "registered", "hash", "code"]
)
def test_a_registration_that_lacks_something_is_one_line(field, materials, tmp_path):
    exp_dir = begin(ADAPTIVE, materials, tmp_path / "experiments", facts(ADAPTIVE))
    document = json.loads((exp_dir / "experiment_configs.json").read_text())
    del (document if field in document else document["registered"])[field]
    (exp_dir / "experiment_configs.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"no field '{field}'; it is not an experiment of ours"):
        read_document(exp_dir)


CHOICE = by_hand(4, 8)


@pytest.mark.parametrize(
    "override",
    [
        {"kind": "budget", "stage": 0, "value": {}},
        {"kind": "budget", "stage": 0, "value": {"hours": "ten", "was": 1, "pairs": 0}},
        {"kind": "budget", "stage": 0, "value": {"hours": float("nan"), "was": 1, "pairs": 0}},
        {"kind": "by_hand", "stage": 3, "value": {}},
        {"kind": "by_hand", "stage": 3, "value": {"arm": asdict(BASELINE)}},
        {"kind": "budget", "stage": 0, "value": {"hours": 1e308, "was": 1.0, "pairs": 0}},
        {"kind": "budget", "stage": 4, "value": {"hours": 2.0, "was": 1.0, "pairs": 0}},
        {"kind": "by_hand", "stage": 2, "value": CHOICE},
        {"kind": "by_hand", "stage": 3, "value": [*CHOICE]},
        *(
            {"kind": "by_hand", "stage": 3, "value": CHOICE | odd}
            for odd in ({"arm": None}, {"arm": []}, {"arm": {"name": "x"}}, {"colour": "red"})
        ),
        *(
            {"kind": "by_hand", "stage": 3, "value": {"arm": CHOICE["arm"] | odd}}
            for odd in (
                *({"flags": None}, {"flags": []}, {"flags": [["a"]]}, {"flags": [["a", None]]}),
                *({"flags": [["a", [[1]]]]}, {"flags": [[1, 1]]}, {"env": [["A", 1]]}),
                *({"slower": "fast"}, {"replacements": [{"file": "x"}]}, {"colour": "red"}),
            )
        ),
        {"kind": "retry", "stage": 1, "value": {"attempts": []}},
        {"kind": "retry", "stage": 0, "value": {"attempts": [["baseline/run_0", -1]]}},
        {"kind": "ignore_gate", "stage": 0},
        {"kind": "ignore_gate", "stage": "1"},
        {"kind": "something", "stage": 1},
        {"colour": "red"},
        "ignore_gate",
    ],
)
def test_an_override_that_nobody_can_have_given_is_one_line(override, tmp_path):
    (tmp_path / "overrides.json").write_text(json.dumps({"overrides": [override]}))
    with pytest.raises(ValueError, match=r"overrides\.json: .*mend it, or remove it"):
        read_overrides(tmp_path)
    (tmp_path / "overrides.json").write_text('{"overrides": {}}')
    with pytest.raises(ValueError, match="not a list"):
        read_overrides(tmp_path)


def test_overrides_are_read_back_as_they_were_given(tmp_path):
    e = overridden(ADAPTIVE, "budget", 0, {"hours": 3.0, "was": 2.0, "pairs": -1})
    e = overridden(overridden(e, "by_hand", 3, CHOICE), "ignore_gate", 1, {})
    assert overridden(e, "ignore_gate", 1, {}) == e  # once is enough
    write_overrides(tmp_path, e.overrides)
    assert read_overrides(tmp_path) == e.overrides
    assert ADAPTIVE.with_overrides(read_overrides(tmp_path)) == e
    assert e.budget_hours == 3.0


@pytest.mark.parametrize(
    "e",
    [
        ADAPTIVE,
        CHANGED["unet_skips"],
        experiment(launcher="slurm", nodes=2, processes=4, parallel_runs=3, device="cuda"),
        experiment(plan="manual", arms=(ARMS["aux_6"], ARMS["baseline"]), seeds=(1, 5)),
    ],
)
def test_what_was_registered_is_what_is_read_back(e, materials, tmp_path):
    exp_dir = begin(e, materials, tmp_path / "experiments", facts(e))
    assert asdict(experiment_of(read_document(exp_dir))) == asdict(e)


def test_a_stage_with_a_run_in_flight_is_not_decided_for_whoever_looks(materials, tmp_path):
    """The last run that the budget allows is in flight; by what it leaves, the budget is spent."""
    e = experiment(budget_hours=100 / 3600)
    exp_dir = begin(e, materials, tmp_path / "experiments", facts(e))
    first, second = next_step(e, []).runs[:2]
    slow = train(first)  # more than half of the budget
    for run in (first, second):
        config = {"run": asdict(run), "attempt": 1}
        (exp_dir / run.name).mkdir(parents=True)
        write_json(exp_dir / run.name / "config.json", config)
    write_result(exp_dir / first.name, slow, read_document(exp_dir)["experiment_id"])
    step = standing(exp_dir).step
    assert step == next_step(e, [slow], frozenset({second.name}))
    assert next_step(e, [slow]).ended and not step.ended and not step.decisions


def test_an_override_is_told_of_where_it_overrode_something_only():
    e = overridden(ADAPTIVE, "ignore_gate", 1, {})
    stop = Decision(1, "STOP", "STOP", (), (), "", {})
    assert is_overridden(stop, e.overrides)
    assert not is_overridden(replace(stop, verdict="PROCEED"), e.overrides)
    assert not is_overridden(replace(stop, stage=2), e.overrides)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("slurm-12.out",),
        ("slurm-12.err", "slurm-12_3.out", "train.sh.o4711", "train.e4711.2"),
        ("code/", "lock.json", ".lock.guard", "slurm-7.out"),
    ],
)
def test_an_experiment_begins_where_only_its_queue_has_written(tmp_path, names):
    put(tmp_path, names)
    assert registration.is_new(tmp_path)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("notes.txt",), "but notes.txt; give"),
        (("slurm-12.out", "b", "a"), "but a and 1 more; give"),
        (("slurm-12.out/",), "but slurm-12.out; give"),
        (("slurm-x.out",), "but slurm-x.out; give"),
        (("my slurm-12.out",), "but my slurm-12.out; give"),
        (("\x1b[2J",), "but [2J; give"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_by_its_name(tmp_path, names, told):
    put(tmp_path, names)
    with pytest.raises(ValueError, match=f"--exp_dir {tmp_path}: ") as refused:
        registration.is_new(tmp_path)
    assert told in str(refused.value)


def test_a_link_with_the_name_of_a_queue_s_file_is_something_else(tmp_path):
    (tmp_path / "slurm-12.out").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"but slurm-12\.out"):
        registration.is_new(tmp_path)


def put(folder, names):
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
