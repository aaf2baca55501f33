"""Invented runs and results, for tests of what is decided from them."""

from dataclasses import fields, replace

from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, Share
from ablation.study.overrides import Override
from ablation.study.profiles import PROFILES

BASELINE = Arm("baseline")


def arm(name: str, *layers: int, weight=0.1, schedule="constant") -> Arm:
    return Arm(name, layers, weight, schedule) if layers else Arm(name)


def result(
    arm: Arm,
    val_loss: float | None = None,
    *,
    status="ok",
    stage=1,
    index=0,
    seed=None,
    attempt=1,
    iterations=100,
    seconds=10.0,
    start=0.0,
    train_time_ms=8000.0,
    curve=(),
) -> RunResult:
    """A result that took so many seconds of machine time from `start` on a clock of its own."""
    return RunResult(
        run=RunConfig(
            stage, arm, index, 1000 * stage + index if seed is None else seed, iterations
        ),
        attempt=attempt,
        status=status,
        reason="" if status == "ok" else "invented",
        clock=f"{stage}/{arm.name}/{index}/{attempt}",
        start_s=start,
        end_s=start + seconds,
        val_loss=val_loss if status == "ok" else None,
        steps_done=iterations,
        train_time_ms=train_time_ms,
        step_avg_ms=train_time_ms / iterations,
        curve=curve,
    )


SHARE_FIELDS = {field.name for field in fields(Share)}


def experiment(**changes) -> Experiment:
    """An experiment with these fields, those of its share among them."""
    fields = {
        "profile": PROFILES["mini"],
        "plan": "classic",
        "budget_hours": 100.0,
        "full_iterations": 100,
        "validation_runs": None,
    }
    of_share = {name: changes.pop(name) for name in SHARE_FIELDS & changes.keys()}
    return Experiment(**{"share": Share(**{"device": "cpu", **of_share}), **fields, **changes})


def decided(e: Experiment, kind: str, stage: int, value: dict) -> Experiment:
    """The experiment after somebody decided instead of a rule."""
    return e.with_overrides(e.overrides.and_one(Override(kind, stage, value)))


def with_share(e: Experiment, **changes) -> Experiment:
    return replace(e, share=replace(e.share, **changes))
