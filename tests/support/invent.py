"""Invented runs and results, for tests of what is decided from them."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

from ablation.folder.materials import Code, CodeCopy
from ablation.plan.costs import Costs
from ablation.plan.decision import Decision
from ablation.plan.next_step import PLANS
from ablation.plan.stage import State
from ablation.runs.run import Arm, RunConfig, RunResult
from ablation.study.experiment import Experiment, Share
from ablation.study.heads import HEADS, aux, tap_layers
from ablation.study.overrides import Override
from ablation.study.profiles import PROFILES, Profile

ARMS = HEADS.by_hand  # of the built-in study, by name
BASELINE = Arm("baseline")
BEST = aux((4, 8), "final_best")


def arm(name: str, *layers: int, weight=0.1, schedule="constant") -> Arm:
    return aux(layers, name, weight, schedule) if layers else Arm(name)


def layers_of(arm: Arm) -> tuple[int, ...]:
    return tap_layers(arm)


def weight_of(arm: Arm) -> float:
    return dict(arm.flags)["aux_loss_weight"]


def schedule_of(arm: Arm) -> str:
    return dict(arm.flags)["aux_loss_schedule"]


def settings_of(arm: Arm) -> tuple[float, str]:
    """Its weight and schedule."""
    return weight_of(arm), schedule_of(arm)


def rescaled(profile: Profile, **changes) -> Profile:
    """The profile with these fields of its scale."""
    return replace(profile, scale=replace(profile.own_scale, **changes))


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
    role="arm",
) -> RunResult:
    """A result that took so many seconds of machine time from `start` on a clock of its own."""
    return RunResult(
        run=RunConfig(
            stage, arm, index, 1000 * stage + index if seed is None else seed, iterations, role
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


def by_hand(*layers: int, **settings) -> dict:
    """The value of an override that chooses heads after these layers."""
    return {"arm": json.loads(json.dumps(asdict(aux(layers, **settings))))}


def overridden(e: Experiment, kind: str, stage: int, value: dict) -> Experiment:
    """The experiment after somebody decided instead of a rule."""
    return e.with_overrides(e.overrides.and_one(Override(kind, stage, value)))


def with_share(e: Experiment, **changes) -> Experiment:
    return replace(e, share=replace(e.share, **changes))


def state_of(plan: str, number: int, results=(), expected=(), **fields) -> State:
    """The state of a stage that asked for the runs of these results, and for arms of these names.
    fields: others of the State."""
    arms, asked = tuple(map(Arm, expected)), {r.run: r for r in results}
    names = {run.arm.name for run in asked}
    runs = [*asked, *(RunConfig(number, arm, 0, 0, 1) for arm in arms if arm.name not in names)]
    (stage,) = (stage for stage in PLANS[plan](HEADS) if stage.number == number)
    e = fields.pop("experiment", None) or experiment(plan=plan, arms=arms)
    plain = {"choice": arm("chosen", 4, 8), "decisions": {}, "history": tuple(results)}
    plain |= {"left_s": 3600 * e.budget_hours, "costs": Costs(e)}
    return State(
        experiment=e,
        stage=replace(stage, arms=arms, runs_asked_for=lambda state: runs),
        results={run.key: r for run, r in asked.items()},
        **{**plain, **fields},
    )


def decided(plan: str, number: int, results=(), expected=(), **fields) -> Decision:
    """What a stage of a plan decides in such a state."""
    state = state_of(plan, number, results, expected, **fields)
    return state.stage.decide(state)


def pairs_of(baseline, best) -> list[tuple[RunResult, RunResult]]:
    """Pairs of stage 4 in order, of these losses; None is a run that diverged."""

    def run(an_arm, k, loss):
        status = "diverged" if loss is None else "ok"
        return result(an_arm, loss, status=status, stage=4, index=k)

    both = zip(baseline, best, strict=True)
    return [(run(BASELINE, k, b), run(BEST, k, a)) for k, (b, a) in enumerate(both)]


def noisy_pairs(n, improvement, sd=0.0013, seed=0, rho=0.0) -> list[tuple[RunResult, RunResult]]:
    """Pairs whose observed improvement is exactly this, at the last one. rho: correlation of the
    losses of a pair."""
    import numpy as np

    noise = np.random.default_rng(seed).standard_normal((3, n))
    noise -= noise.mean(axis=1, keepdims=True) if n else 0.0
    noise = np.sqrt(1 - rho) * noise[:2] + np.sqrt(rho) * noise[2]
    baseline, best = 3.28 + sd * noise - [[0.0], [improvement]]
    return pairs_of(baseline.tolist(), best.tolist())


def code_at(script) -> CodeCopy:
    """The code of a trainer that is one file, where it lies."""
    script = Path(script)
    return CodeCopy(Code(script.parent, ((script.name, b""),), ()), script.parent)
