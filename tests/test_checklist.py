"""From what was found to a line that passes, warns or fails; at the boundary of each."""

from dataclasses import replace

import pytest

from ablation.cli import exit_codes
from ablation.execute import checklist
from ablation.execute.checklist import (
    AFTER,
    BEFORE,
    exit_code,
    first_costs,
    largest_pass,
    lines_of,
    short_run,
    step_s,
    steps_of,
)
from ablation.execute.observed import Data, Disk, GpuState, Survey, Trials
from ablation.plan.costs import Costs
from ablation.plan.forecast import forecast, paid_s
from ablation.runs.run import Arm
from ablation.study.experiment import FirstCosts
from ablation.study.profiles import PROFILES
from tests.support.invent import arm, experiment, result

BASELINE, HEADS = Arm("baseline"), arm("aux_4_8", 4, 8)
ON_CPU = experiment()
ON_GPUS = experiment(profile=PROFILES["speedrun"], device="cuda", processes=8, cores=64)
ON_A_CLUSTER = replace(ON_GPUS, share=replace(ON_GPUS.share, launcher="slurm"))
ON_NODES = replace(ON_CPU, share=replace(ON_CPU.share, launcher="slurm"))
GPU = GpuState("H100", "GPU-a", 80_000.0, 400.0, 1980.0, 1980.0, 60.0)
FIT = Survey(
    host="h",
    processor="p",
    busy=0.1,
    gpus=(GPU,) * 8,
    versions={"python": "3.11.7", "torch": "2.13.0+cpu"},
    pinned={"torch": "2.13.0"},
    trainer="train.py",
    data=Data("2 train, 1 val", "3 of 3 checksums right", read_s=0.001),
    disk=Disk("/x", 10**12, 0.0),
)


def run(of=BASELINE, step_ms=60.0, steps=10, rest=4.0, first_ms=None, **changes):
    """A short run whose first half took first_ms a step, and its second half step_ms."""
    half = steps // 2
    middle = half * (first_ms or step_ms)
    end = middle + (steps - half) * step_ms
    curve = ((0, 5.0, 0.0), (half, 4.5, middle), (steps, 4.0, end))
    return result(
        of, 4.0, iterations=steps, seconds=end / 1000 + rest, train_time_ms=end, curve=curve,
        **changes,
    )  # fmt: skip


def trials(e=ON_CPU, **changes):
    plain = {"baseline": (run(),), "dearest": (run(HEADS),), "stop_s": 0.3, "grace_s": 6.0}
    plain |= {"log_bytes": 1000, "iterations_to_come": 1000, "gpus": (GPU,) * 8}
    return Trials(short_run(e), 10, 30.0, **{**plain, **changes})


def before(name, e=ON_CPU, **changes):
    return BEFORE[name](e, replace(FIT, **changes))


def after(name, e=ON_CPU, survey=FIT, **changes):
    return AFTER[name](e, survey, trials(e, **changes))


def test_a_machine_that_is_fit_passes_every_line():
    lines = [*lines_of(BEFORE, ON_CPU, FIT), *lines_of(AFTER, ON_CPU, FIT, trials())]
    assert {line.level for line in lines} == {"pass"}
    assert exit_code(lines) == exit_codes.DONE
    assert all(line.value for line in lines)


GIB = 1024.0
HELD = replace(GPU, used_mib=1025.0)
BAD_SURVEYS = [  # check, experiment, what was seen otherwise, level, words of value or remedy
    ("machine", ON_CPU, {"busy": 0.31}, "warn", "what else computes"),
    ("machine", ON_CPU, {"busy": 0.3}, "pass", "0.3 busy"),
    ("GPUs", ON_GPUS, {"gpus": ()}, "warn", "8 asked for: nvidia-smi tells nothing"),
    ("GPUs", ON_GPUS, {"gpus": (), "gpu_fault": "unknown (x)"}, "warn", "asked for: unknown (x)"),
    ("GPUs", ON_GPUS, {"gpu_fault": "x", "gpus_counted": False}, "fail", "give --num_gpus N"),
    ("GPUs", ON_A_CLUSTER, {"gpus": ()}, "warn", "srun nvidia-smi"),
    ("GPUs", ON_NODES, {"gpus": ()}, "pass", "none is used"),
    ("GPU memory", ON_A_CLUSTER, {"gpus": ()}, "pass", "the nodes have them"),
    ("other processes", ON_GPUS, {"gpus": ()}, "pass", "not told by nvidia-smi"),
    ("GPUs", ON_GPUS, {"gpus": (GPU, replace(GPU, name="A100")) * 4}, "warn", "4 x A100"),
    ("GPU memory", ON_GPUS, {"gpus": (GPU, HELD)}, "warn", "77.1 of 78.1 GiB free on GPU-a"),
    ("GPU memory", ON_GPUS, {"gpus": (replace(HELD, used_mib=GIB),)}, "pass", "free"),
    ("other processes", ON_GPUS, {"gpus": (replace(GPU, others=("x",)),)}, "fail", "x on GPU-a"),
    ("versions", ON_CPU, {"pinned": {"torch": "2.11.0"}}, "warn", "torch 2.11.0"),
    ("profile", replace(ON_CPU, profile=PROFILES["small"]), {}, "fail", "on this CPU"),
    ("trainer", ON_CPU, {"trainer_fault": "no file; give one"}, "fail", "give one"),
    ("launcher", ON_CPU, {"launcher_fault": "no torch; get it"}, "fail", "get it"),
    ("data", ON_CPU, {"data": None, "data_fault": "no shard; make it"}, "fail", "make it"),
    ("data", ON_CPU, {"data": Data("", "", damaged="x.bin")}, "fail", "x.bin"),
    ("disk", ON_CPU, {"disk": None, "disk_fault": "/x: Read-only"}, "fail", "Read-only"),
    ("clock", ON_CPU, {"disk": Disk("/x", 1, -5.1)}, "warn", "-5.1 s off"),
    ("clock", ON_CPU, {"disk": Disk("/x", 1, 5.0)}, "pass", "agree to 5.0 s"),
]


@pytest.mark.parametrize(("name", "e", "changes", "level", "words"), BAD_SURVEYS)
def test_what_is_seen_before_any_run(name, e, changes, level, words):
    found = before(name, e, **changes)
    assert found.level == level
    assert words in f"{found.value} {found.remedy}"
    assert (found.code == exit_codes.DONE) == (level != "fail")


CRASHED = {"baseline": (result(BASELINE, status="crashed", iterations=10),), "dearest": ()}
SLOW_DISK = replace(FIT, data=Data("", "", read_s=0.061))
BUSY_AND_UNEVEN = {"ends": (run(), run(step_ms=70.0)), "survey": replace(FIT, busy=20.0)}
FULL = replace(FIT, disk=Disk("/x", 99_999, 0.0))
ONE_OF_TWO = {"baseline": (run(step_ms=100.0),), "dearest": ()}
PACKED = replace(ON_GPUS, share=replace(ON_GPUS.share, processes=1, parallel_runs=8))


def busy_gpu(before_mib, in_training_mib):
    survey = replace(FIT, gpus=(replace(GPU, used_mib=before_mib),))
    return {"survey": survey, "gpus": (replace(GPU, used_mib=in_training_mib),)}


BAD_TRIALS = [
    ("baseline", ON_CPU, CRASHED, "fail", "crashed"),
    ("dearest arm", ON_CPU, {"dearest": ()}, "warn", "the time was up"),
    ("step time", ON_CPU, {"baseline": (run(step_ms=66.1),)}, "warn", "66 ms"),
    ("step time", ON_CPU, {"baseline": (run(step_ms=65.9),)}, "pass", "(+10%)"),
    ("step time", ON_CPU, {"baseline": (run(first_ms=9000.0),)}, "pass", "baseline 60 ms"),
    ("stop", ON_CPU, {"stop_s": 6.0}, "pass", "6.0 s after the order, 6 s allowed"),
    ("stop", ON_CPU, {"stop_s": 6.1}, "warn", "it ended late"),
    ("stop", ON_CPU, {"stop_s": 12.0}, "warn", "12.0 s after the order"),
    ("stop", ON_CPU, {"stop_s": 12.1}, "fail", "see what its processes wait for"),
    ("stop", ON_CPU, {"left": 1}, "fail", "1 process(es) left"),
    ("stop", ON_CPU, {"stop_s": None}, "pass", "not asked"),
    ("reading", ON_CPU, {"survey": SLOW_DISK}, "fail", "local disk"),
    ("reading", ON_CPU, {"survey": replace(SLOW_DISK, busy=0.3)}, "fail", "local disk"),
    ("reading", ON_CPU, {"survey": replace(SLOW_DISK, busy=0.31)}, "warn", "when it is quiet"),
    ("reading", ON_NODES, {"survey": replace(SLOW_DISK, busy=0.31)}, "fail", "local disk"),
    ("space", ON_CPU, {"survey": FULL}, "fail", "100 kB for logs"),
    ("memory", ON_CPU, {}, "pass", "not asked on a CPU"),
    ("memory", ON_GPUS, {"smaller": 16}, "warn", "give --device_batch_size 16"),
    ("memory", PACKED, busy_gpu(400, 20_400), "pass", "19.5 by the run, at 64 sequences a pass"),
    ("memory", PACKED, busy_gpu(400, 18_300), "pass", "fits: 256, reckoned from that"),
    ("memory", PACKED, busy_gpu(400, 18_301), "pass", "fits: 128, reckoned from that"),
    ("memory", PACKED, busy_gpu(20_400, 40_400), "pass", "fits: 128, reckoned from that"),
    ("memory", PACKED, busy_gpu(20_400, 20_400), "pass", "the GPU's own word is not known"),
    ("evenness", ON_GPUS, {"ends": (run(), run(step_ms=61.9))}, "warn", "3.2% apart"),
    ("evenness", ON_GPUS, {"ends": (run(), run(step_ms=61.7))}, "pass", "2.8% apart"),
    ("evenness", ON_GPUS, {"ends": (run(), run(step_ms=70.0))}, "fail", "one card is slow"),
    ("evenness", ON_GPUS, BUSY_AND_UNEVEN, "warn", "one card is slow"),
    ("network", ON_GPUS, {"ends": (run(step_ms=335.0),) * 2}, "warn", "the work of 5.6"),
    ("network", ON_GPUS, {"ends": (run(step_ms=337.0),) * 2}, "pass", "the work of 5.6"),
    ("clocks", ON_GPUS, {"gpus": (replace(GPU, slowed=("hot",)),)}, "warn", "GPU-a: hot"),
    ("clocks", ON_GPUS, {"gpus": ()}, "pass", "did not tell"),
]


@pytest.mark.parametrize(("name", "e", "changes", "level", "words"), BAD_TRIALS)
def test_what_short_runs_tell(name, e, changes, level, words):
    found = after(name, e, **changes)
    assert found.level == level, found
    assert words in f"{found.value} {found.remedy}"


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        ("refused", "error: no", exit_codes.FAULT),
        ("interrupted", "the launcher could not be started: no partition", exit_codes.FAULT),
        ("crashed", "exit code 1", exit_codes.RUNS_FAILED),
        ("timeout", "stopped", exit_codes.RUNS_FAILED),
        ("diverged", "nan", exit_codes.RUNS_FAILED),
    ],
)
def test_the_exit_code_is_a_sittings(status, reason, code):
    bad = replace(result(BASELINE, status=status, iterations=10), reason=reason)
    lines = lines_of(AFTER, ON_CPU, FIT, trials(baseline=(bad,), dearest=()))
    assert exit_code(lines) == code


def test_an_arm_that_had_less_time_than_the_baseline_need_not_hang():
    for seconds, level in ((9.0, "warn"), (9.3, "fail")):  # the baseline took 4.6 s
        late = result(HEADS, status="timeout", seconds=seconds, iterations=90)
        assert after("dearest arm", dearest=(late,)).level == level


def test_one_that_trains_too_slowly_does_not_hang():
    for steps, words in ((0, "it hangs"), (6, "it trains, but too slowly")):
        late = replace(result(BASELINE, status="timeout", seconds=22.0), steps_done=steps)
        assert after("baseline", baseline=(late,), dearest=()).remedy.startswith(words)


def test_a_stopped_arm_has_done_what_it_should():
    stopped = replace(run(HEADS), status="interrupted", val_loss=None)
    stopped = replace(stopped, reason=f"{checklist.STOPPED_HERE}, at step 10")
    assert after("dearest arm", dearest=(stopped,)).level == "pass"


@pytest.mark.parametrize(
    ("share", "ran", "used", "room", "most"),
    [(64, 16, 100, 400, 64), (64, 16, 100, 399, 32), (48, 16, 100, 299, 24), (8, 8, 1, 100, 8)],
)
def test_the_largest_pass_is_reckoned_in_proportion(share, ran, used, room, most):
    assert largest_pass(share, ran, used, room) == most


def test_short_runs_are_short_at_every_scale():
    scales = {"mini": 10, "small": 20, "speedrun": 20}
    for name, steps in scales.items():
        profile = PROFILES[name]
        device = "cuda" if profile.gpus else "cpu"
        e = experiment(profile=profile, device=device, processes=profile.gpus or 1)
        assert steps_of(e) == steps
        assert short_run(e).profile.own_scale.val_loss_every == steps // 2


# ---------------------------------------------------------------------------------------------
# First costs


def test_a_step_is_timed_after_compilation():
    assert step_s(run(step_ms=50.0, first_ms=3000.0)) == pytest.approx(0.050)
    assert step_s(replace(run(), curve=((0, 5.0, 0.0), (10, 4.0, 900.0)))) == pytest.approx(0.090)
    assert step_s(replace(run(), curve=((0, 5.0, 0.0),))) is None


def test_runs_as_the_prior_says_cost_what_it_says():
    e = short_run(ON_CPU)
    rest = Costs(e).prior(run().run)[1]
    dearer = 1000 * Costs(e).prior(run(HEADS).run)[0] / 10
    t = trials(baseline=(run(rest=rest),), dearest=(run(HEADS, step_ms=dearer),))
    assert first_costs(t).train_ratio == pytest.approx(1)
    assert first_costs(t).rest_ratio == pytest.approx(1)
    twice = trials(baseline=(run(step_ms=120.0, rest=2 * rest),), dearest=())
    assert first_costs(twice).train_ratio == pytest.approx(2)
    assert first_costs(twice).rest_ratio == pytest.approx(2)
    assert first_costs(trials(**CRASHED)) is None


def test_a_plan_expects_its_first_costs_until_a_run_has_ended():
    slow = replace(ON_CPU, first_costs=FirstCosts(2.0, 3.0))
    train, rest = Costs(ON_CPU).prior(run().run)
    assert Costs(slow).wall_s(run().run) == pytest.approx(2 * train + 3 * rest)
    fast, slower = (paid_s(e, forecast(e)[0]) for e in (ON_CPU, slow))
    assert 2 < slower / fast < 3
    measured = [run(HEADS, steps=100)]
    assert Costs(slow, measured).wall_s(run().run) == Costs(ON_CPU, measured).wall_s(run().run)
