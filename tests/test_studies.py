"""Any study goes through both plans, in its own words: arms of any kind, one or twenty of them,
with and without refinements, known and unknown noise, and a metric of which more is better."""

import math
import random
import re
from dataclasses import replace

import pytest

from ablation.plan import power
from ablation.plan.classic import final_verdict, rules_of
from ablation.plan.decision import render
from ablation.plan.forecast import forecast, of_stage, simulate
from ablation.plan.looks import IMPROVES
from ablation.plan.next_step import ALL_DONE, conclude, next_step, stages_of
from ablation.plan.stage import design_in_force
from ablation.report.chapters import report
from ablation.report.evidence import read_experiment
from ablation.report.text import render as text_of
from ablation.runs.run import Arm, Replacement
from ablation.study.experiment import profile_of
from ablation.study.profiles import Design
from ablation.study.study import Metric, Study, Trainer, overlaid
from tests.support.invent import experiment, result
from tests.support.invented_folder import fall, make

NOISE = Design(sigma0=0.002, delta_eq=0.01, delta_target=0.04, drop=0.5)
UNKNOWN = replace(NOISE, noise_known=False)
OF_HEADS = re.compile(r"(?i)\b(aux\w*|heads?|layers?|taps?|placements?|deep dive|dive_\w*)\b")
ACCURACY = Metric("accuracy", unit="", better="higher")


def a_study(name="lower_lr", arms=(), refinements=(), noise=NOISE, metric=None, **fields) -> Study:
    """A study of another trainer, of which the second arm, if there is one, is the favourite."""
    trainer = Trainer(
        command=("train.py",),
        launch="plain",
        metric=metric or Metric(),
        full_iterations=1000,
        expected_hours=0.25,
    )
    base = Arm("baseline", env=(("SEED", "{seed}"), ("ITERS", "{num_iterations}")))
    told = {"trainer": trainer, "base": base, "noise": noise}
    study = Study(name, "Is it better?", **told, **fields)
    described = tuple(map(study.described, arms))
    return replace(study, arms=described, refinements=tuple(map(study.described, refinements)))


def with_flags(n: int) -> tuple[Arm, ...]:
    return tuple(Arm(f"lr_{k}", (("muon_lr", k / 100),)) for k in range(1, n + 1))


EMBED = Arm("slow_embed", (("embed_lr", 0.5),))
OF_ENV = Arm("warm", env=(("WARMUP", "100"),))
OF_SCRIPT = Arm("gated", script="train_gated.py")
WIDE = Arm("wide", replacements=(Replacement("train.py", "width = 8", "width = 16"),))
COOL = Arm("cool", env=(("COOLDOWN", "0.5"),))
COMPILED = Arm("compiled", script="train_compiled.py")
STUDIES = {
    "three arms": a_study(arms=with_flags(3), refinements=(EMBED,)),
    "one arm": a_study(arms=with_flags(1), refinements=(EMBED,)),
    "twenty arms": a_study(arms=with_flags(20), refinements=(EMBED, OF_ENV)),
    "no refinements": a_study(arms=with_flags(3)),
    "one arm alone": a_study(arms=with_flags(1)),
    "unknown noise": a_study(arms=with_flags(3), refinements=(EMBED,), noise=UNKNOWN),
    "more is better": a_study(arms=with_flags(3), refinements=(EMBED,), metric=ACCURACY),
    "negative": a_study(arms=with_flags(3), metric=Metric("score", "", "higher")),
    "every kind": a_study(
        arms=(*with_flags(1), OF_ENV, OF_SCRIPT, WIDE), refinements=(COOL, COMPILED)
    ),
}
LEVELS = {"more is better": -0.6, "negative": 0.8}  # the baseline's loss, as records have it
PLANS = ("classic", "adaptive")
BOTH = pytest.mark.parametrize("plan", PLANS)
EACH = pytest.mark.parametrize("name", STUDIES)


def asked(study: Study, plan: str, **changes):
    profile = profile_of(study, gpus=0)
    fields = {"full_iterations": profile.full_iterations, "budget_hours": 1e4}
    return experiment(study=study, profile=profile, plan=plan, **{**fields, **changes})


def best_arm(study: Study) -> Arm:
    return study.arms[-1]


def best_of(study: Study) -> tuple:
    """The configuration that is best: the last arm, with the last refinement."""
    last = study.refinements[-1:]
    whole = overlaid(best_arm(study), last[0]) if last else best_arm(study)
    return whole.configuration


def loss_in(study: Study, level: float, effect=0.08, sd=0.002):
    """Every arm helps a little, the best one by `effect`, and a third more with its refinement."""

    def loss(run) -> float:
        noise = random.Random(repr(run.key)).gauss(0, sd)
        better = 0.0 if run.arm.is_baseline else 0.01
        if run.arm.configuration == best_arm(study).configuration:
            better = effect
        if run.arm.configuration == best_of(study):
            better = 4 / 3 * effect
        return level - better + noise

    return loss


def carried_out(name: str, plan: str, **changes):
    """The runs of a plan with invented results, and its last step with the verdict."""
    study = STUDIES[name]
    e = asked(study, plan, **changes)
    planned, step = simulate(e, (), loss_in(study, LEVELS.get(name, 3.0)))
    return e, planned, conclude(step)


def texts_of(e, step) -> str:
    """All that is said of the stages and their decisions."""
    rows = [f"{s.name} {s.question} {s.rule_text(e.profile.design)}" for s in stages_of(e)]
    return "\n".join([*rows, *map(render, step.decisions.values())])


# ---------------------------------------------------------------------------------------------
# Both plans, to a verdict


@BOTH
@EACH
def test_a_plan_is_carried_through_to_the_right_verdict_of_the_best_configuration(name, plan):
    e, planned, step = carried_out(name, plan)
    assert step.ended == ALL_DONE and not step.fault and not step.at_gate
    assert [*step.decisions] == [1, 2, 3, 4]
    assert step.decisions[4].chosen.configuration == best_of(e.study)
    verdict = step.decisions[4]
    assert verdict.numbers.get("verdict") == {"adaptive": IMPROVES}.get(plan)
    assert ("HELP: " in verdict.title) == (plan == "classic")
    pairs = [p.run for p in of_stage(planned, 4)]
    assert {run.arm.configuration for run in pairs} == {(), best_of(e.study)}
    earlier = {p.run.seed for p in planned if p.run.stage < 4}
    assert not earlier & {run.seed for run in pairs}
    assert len({(p.run.name, p.run.stage) for p in planned}) == len(planned)


@BOTH
@EACH
def test_decisions_speak_of_the_study_and_its_metric_alone(name, plan):
    e, _, step = carried_out(name, plan)
    text = texts_of(e, step)
    assert not OF_HEADS.search(text), OF_HEADS.search(text)
    if name == "more is better":
        assert "accuracy" in text and "loss" not in text
        assert "0.6" in text
    if name == "negative":
        assert re.search(r"(Baseline|Best)[^\n]*-0\.[78]\d", text) and "loss" not in text
    if e.study.metric.better == "higher":
        assert "nats" not in text


@BOTH
def test_a_metric_of_which_more_is_better_is_shown_as_the_trainer_prints_it(plan):
    _, _, step = carried_out("more is better", plan)
    facts = "\n".join(fact for d in step.decisions.values() for fact in d.facts)
    assert not re.search(r"(?m)(Baseline|Best|Validation|run_\d)[^\n(]*: -0\.[567]", facts)
    assert re.search(r"(?m)^Baseline\b.*\b0\.\d+", facts)
    improvement = step.decisions[4].numbers["improvement"]
    assert improvement == pytest.approx(4 / 3 * 0.08, abs=0.01)


def around_zero(run) -> float:
    """The baseline's mean is 0, where it is tested too; every arm is better."""
    apart = (-1) ** run.index * (run.index // 2 + 1) * 2.0**-10 if run.stage == 4 else 0.0
    better = 0.0 if run.arm.is_baseline else 0.1 + run.seed * 1e-7
    return apart - better


@BOTH
def test_a_baseline_of_which_the_mean_is_0_is_compared_without_a_share(plan):
    e = asked(STUDIES["no refinements"], plan)
    step = conclude(simulate(e, (), around_zero)[1])
    assert step.ended == ALL_DONE and [*step.decisions] == [1, 2, 3, 4]
    assert step.decisions[4].numbers["improvement"] == pytest.approx(0.1, abs=0.01)
    if plan == "classic":
        assert all("no share of 0" in " ".join(step.decisions[n].facts) for n in (1, 2, 4))
        worse = conclude(simulate(e, (), lambda run: -around_zero(run))[1])
        assert worse.at_gate and worse.stage == 1


@BOTH
@EACH
def test_equal_seeds_give_equal_results(name, plan):
    first, again = (carried_out(name, plan)[1:] for _ in range(2))
    assert first == again


@BOTH
@EACH
def test_the_forecast_knows_every_run_that_a_plan_can_ask_for(name, plan):
    e, planned, _ = carried_out(name, plan)
    longest = forecast(e)[0]
    for stage in (1, 2):
        runs, most = ([p.run.arm.name for p in of_stage(x, stage)] for x in (planned, longest))
        assert len(runs) == len(most)
    assert len(of_stage(longest, 4)) >= len(of_stage(planned, 4))


def test_a_change_adds_its_replacements_and_its_time_and_takes_the_place_of_the_rest():
    deep = Replacement("train.py", "depth = 8", "depth = 16")
    under = replace(WIDE, script="a.py", revision="old", slower=0.25)
    over = Arm("deep", script="b.py", replacements=(deep,), revision="new", slower=0.5)
    whole = overlaid(under, over)
    assert whole.replacements == (*WIDE.replacements, deep)
    assert (whole.name, whole.script, whole.revision) == ("wide", "b.py", "new")
    assert whole.slower == 0.75
    assert overlaid(under, Arm("nothing")) == under


def test_cells_of_a_study_take_the_place_of_its_refinements_where_it_gives_them():
    study = STUDIES["three arms"]
    cells = (Arm("as_it_is"), OF_ENV)
    assert [c.name for c in study.compared_cells] == ["unrefined", "slow_embed"]
    assert replace(study, cells=cells).compared_cells == cells


# ---------------------------------------------------------------------------------------------
# Stages with nothing to decide


@pytest.mark.parametrize(
    ("name", "plan", "stage", "why"),
    [
        ("one arm", "adaptive", 2, "one arm, and nothing to choose"),
        ("one arm alone", "adaptive", 2, "one arm, and nothing to choose"),
        ("no refinements", "adaptive", 3, "no refinements"),
        ("no refinements", "classic", 3, "no refinements"),
        ("one arm alone", "adaptive", 3, "no refinements"),
        ("one arm alone", "classic", 3, "no refinements"),
    ],
)
def test_a_stage_with_nothing_to_decide_is_empty_says_so_and_lets_the_plan_pass(
    name, plan, stage, why
):
    e, planned, step = carried_out(name, plan)
    assert of_stage(planned, stage) == []
    decision = step.decisions[stage]
    assert decision.lets_pass and decision.missing == ()
    assert why in " ".join(decision.because)
    assert why in stages_of(e)[stage - 1].why_empty(e)
    assert decision.chosen.configuration == best_of(replace(e.study, refinements=()))


def test_one_arm_is_run_twice_by_the_classic_plan_to_see_how_runs_differ():
    _, planned, step = carried_out("one arm", "classic")
    names = [p.run.arm.name for p in of_stage(planned, 2)]
    assert names == ["baseline", "lr_1", "lr_1_repeat"]
    assert step.decisions[2].numbers["repeat_difference"] > 0


@BOTH
def test_every_one_of_twenty_arms_is_tried_once(plan):
    e, planned, _ = carried_out("twenty arms", plan)
    tried = [p.run.arm.configuration for p in of_stage(planned, 2) if p.run.index == 0]
    assert {*tried} - {()} == {arm.configuration for arm in e.study.arms}


# ---------------------------------------------------------------------------------------------
# Noise and rules


def test_classic_rules_take_the_target_of_the_study():
    rules = rules_of(STUDIES["three arms"])
    assert rules["target_loss"].threshold == NOISE.delta_target
    e, _, step = carried_out("three arms", "classic")
    assert f"improvement >= {NOISE.delta_target:g} nats/token" in step.decisions[4].rule
    numbers = {"p": 0.01, "speedup": None, "baseline_n": 8, "best_n": 8, "ci_low": 0, "ci_high": 1}
    for by, title in ((1e-9, "target met"), (-1e-9, "below the target")):
        found = final_verdict(numbers | {"improvement": NOISE.delta_target + by}, e.study)[0]
        assert title in found


def test_no_improvement_is_a_target_where_nobody_knows_the_noise():
    assert "target_loss" not in rules_of(STUDIES["unknown noise"])
    _, _, step = carried_out("unknown noise", "classic")
    assert "nats/token" not in step.decisions[4].rule


def test_three_repeats_of_the_baseline_say_what_matters():
    e, planned, step = carried_out("unknown noise", "adaptive")
    repeats = [p.run for p in of_stage(planned, 1)]
    assert [run.name for run in repeats] == [f"noise_baseline/run_{k}" for k in range(3)]
    assert all(run.arm.is_baseline for run in repeats)
    assert len({run.seed for run in repeats}) == 3
    assert {run.num_iterations for run in repeats} == {e.full_iterations}
    losses = [loss_in(e.study, 3.0)(run) for run in repeats]
    mean = math.fsum(losses) / 3
    sd = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / 2)
    assert step.decisions[1].numbers["sd"] == pytest.approx(sd, rel=0.02)  # to two digits
    rough = f"{0.5207 * sd:.2g} to {6.285 * sd:.2g}"  # by chi-squared with 2 degrees of freedom
    assert step.decisions[1].because[1].endswith(f"95 % interval of their sd {rough}.")
    design = design_in_force(e, step.decisions)
    assert design.delta_eq == pytest.approx(2 * sd, rel=0.03) != NOISE.delta_eq
    assert f"±{design.delta_eq:g}" in step.decisions[4].rule
    assert design_in_force(asked(STUDIES["three arms"], "adaptive"), step.decisions) == NOISE


def test_repeats_that_all_fail_end_the_plan_without_a_guess():
    e = asked(STUDIES["unknown noise"], "adaptive")
    step = conclude(simulate(e, (), lambda run: math.inf)[1])
    assert step.at_gate and "INCONCLUSIVE" in step.ended
    assert next_step(e, []).runs[0].arm.name == "noise_baseline"


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda run: 3.25, "3 repeats have the same val loss, 3.2500"),
        (lambda run: 0.05, "3 repeats have the same val loss, 0.0500"),  # of which the sd is 8e-18
        (lambda run: 3.25 if run.index == 1 else math.inf, "1 usable repeat(s) of the baseline"),
    ],
)
def test_repeats_that_do_not_say_how_much_runs_differ_are_told_as_what_they_are(loss, why):
    """Of one printed loss each, equal ones can be so by chance: no copies, and no usable noise."""
    e = asked(STUDIES["unknown noise"], "adaptive")
    results = [printed_once(run, loss(run)) for run in repeats_of(e)]
    step = conclude(next_step(e, results))
    assert step.at_gate and why in step.ended and "[noise]" in step.decisions[1].because[0]


def repeats_of(e) -> list:
    return [p.run for p in of_stage(forecast(e)[0], 1)]


def printed_once(run, loss: float):
    """A result of which the log had no more than the final loss."""
    whole = result(run.arm, 3.0 if math.isinf(loss) else loss)
    length = {"run": run, "steps_done": run.num_iterations, "evidence": "told"}
    whole = replace(whole, **length, curve=((run.num_iterations, whole.val_loss, 1.0),))
    return replace(whole, status="diverged", val_loss=None) if math.isinf(loss) else whole


def test_copies_of_a_trainer_without_a_seed_are_not_blamed_on_its_seed():
    study = STUDIES["no refinements"]
    for seed, words in (("told", "use its seed?"), ("none", "are no repeats")):
        e = asked(replace(study, trainer=replace(study.trainer, seed=seed)), "adaptive")
        step = simulate(e, (), lambda run: 3.0 - 0.1 * (run.arm.name == "lr_3"))[1]
        assert step.fault and words in step.ended


@pytest.mark.parametrize("reads", [False, True])
def test_an_arm_that_changes_nothing_at_all_is_asked_about(reads):
    """A variable that the trainer does not know, say."""
    e = asked(STUDIES["one arm alone"], "adaptive")

    def loss(run) -> float:
        own = 1e-6 * (reads and not run.arm.is_baseline and run.index == 0)
        return 3.0 + random.Random(run.seed).gauss(0, 0.002) + own

    decision = conclude(simulate(e, (), loss)[1]).decisions[4]
    asks = "does the trainer read what differs?" in " ".join(decision.because)
    assert asks is not reads


def test_rules_and_choices_of_a_metric_of_which_more_is_better_say_highest():
    for plan in PLANS:
        text = texts_of(*carried_out("more is better", plan)[::2])
        assert "highest" in text and "lowest" not in text and "the lower mean" not in text


def test_a_trainer_without_a_seed_has_no_rule_about_pairs():
    study = STUDIES["no refinements"]
    trainer = replace(study.trainer, seed="none")
    e = asked(replace(study, trainer=trainer, noise=replace(NOISE, pairing=0.0)), "adaptive")
    rule = stages_of(e)[3].rule_text(e.profile.design)
    assert rule.endswith("The interval is Welch's: without a seed there are no pairs")


def test_a_single_target_is_missed_without_a_neither():
    numbers = {"p": 0.01, "speedup": None, "baseline_n": 8, "best_n": 8, "ci_low": 0, "ci_high": 1}
    for name, text in (("unknown noise", "but not speedup"), ("one arm", "but neither impr")):
        found = final_verdict(numbers | {"improvement": 1e-5}, STUDIES[name])
        assert text in found[1][0]


# ---------------------------------------------------------------------------------------------
# Simulation and the power report


@BOTH
@pytest.mark.parametrize("name", ["one arm", "no refinements", "twenty arms", "unknown noise"])
def test_the_power_report_is_of_the_study_and_equal_for_equal_seeds(name, plan):
    e = asked(STUDIES[name], plan, budget_hours=12.0)
    text = power.render(e, replicates=2, seed=1)
    assert text == power.render(e, replicates=2, seed=1)
    assert not OF_HEADS.search(text)


@EACH
def test_worlds_have_an_effect_for_every_configuration_of_a_study(name):
    study = STUDIES[name]
    assert len({*study.configurations}) == len(study.configurations)
    assert len(study.configurations) == len(study.arms) * (1 + len(study.refinements))
    truth = power.Truth(study, power.plain_scenario("w", 0.01, 0.01, 0.001), "0")
    found = [truth.improvement(which) for which in study.configurations]
    assert found == pytest.approx([0.01] * len(found))
    assert best_of(study) in truth.rank


# ---------------------------------------------------------------------------------------------
# Reports


def report_of(exp_dir) -> str:
    evidence = read_experiment(exp_dir)
    assert evidence.records.results and not evidence.records.damaged
    return text_of(report(evidence, {}))


@BOTH
@pytest.mark.parametrize("name", ["three arms", "one arm", "no refinements", "more is better"])
def test_a_whole_report_speaks_of_the_study_and_its_metric(name, plan, tmp_path):
    study, level = STUDIES[name], LEVELS.get(name, 3.0)
    effects = {arm.configuration: 0.01 for arm in study.arms} | {best_of(study): 0.1}
    how = {"effects": effects, "level": level, "sd": 0.002, "evidence": "its log"}
    exp_dir = make(tmp_path, asked(study, plan), **how)
    assert exp_dir.name.startswith("lower_lr_")
    said = report_of(exp_dir)
    assert not OF_HEADS.search(said)
    assert study.question in " ".join(said.split())
    if name == "more is better":
        assert "accuracy" in said and "nats" not in said
        assert not re.search(r"(Baseline|Best):? +-0\.[567]", said)


def test_a_report_of_a_baseline_at_0_tells_no_share_of_it(tmp_path):
    e = asked(STUDIES["one arm alone"], "adaptive")
    how = {"effects": {best_of(e.study): 0.1}, "level": -fall(1.0), "sd": 0.0}
    said = report_of(make(tmp_path, e, **how, evidence="its log"))
    assert "+0.1000 nats/token (no share of 0 of the baseline's)" in " ".join(said.split())
