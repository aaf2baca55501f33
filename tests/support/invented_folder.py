"""Invented experiment folders, as the orchestrator would leave them, for tests of what is read."""

import math
import random
from dataclasses import asdict
from pathlib import Path

from ablation.folder.materials import Materials
from ablation.folder.overrides import write_overrides
from ablation.folder.registration import new_folder, read_document, register
from ablation.folder.results import write_results
from ablation.plan.next_step import conclude, next_step
from ablation.runs.run import RunResult
from ablation.runs.store import attempt_dir, write_json, write_result
from ablation.study.heads import HEADS, tap_layers
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.profiles import PROFILES
from tests.support.invent import experiment

FACTS = {
    "slurm_args": "",
    "machine": {"host": "node1", "device": "cpu", "processes": 1, "gpus": [], "cpu": "A CPU"},
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "git": {"commit": "0123abc", "dirty": True},
}
EFFECTS = {(4,): 0.004, (6,): 0.008, (8,): -0.003, (4, 8): 0.015, (3, 6, 9): 0.006}


def fall(x: float) -> float:
    """How far above its end a curve is, after a share x of the run."""
    return 0.42 * (1 - x) ** 1.1 + 0.8 * math.exp(-15 * x) + 6 * math.exp(-60 * x) - 7e-7


def train(
    run, attempt=1, status="ok", reason="", start_s=0.0, sd=0.0013, seed_sd=0.0, scale=1.0,
    effects=None, level=3.28, evidence="",
) -> RunResult:  # fmt: skip
    """An invented run with a speedrun's shape of curve, noise and cost. seed_sd: of what all runs
    of a seed have in common; effects: by configuration, of another study's arms; evidence: by what
    a run of another trainer counts."""
    noise = random.Random(f"{run.arm.name} {run.seed}").gauss(0, sd)
    noise += random.Random(run.seed).gauss(0, seed_sd)
    arm, total = run.arm, run.num_iterations
    layers, flags = tap_layers(arm), dict(arm.flags)
    effect = (
        EFFECTS.get(layers, 0.0)
        + 0.01 * (flags.get("aux_loss_weight") == 0.2)
        - 0.004 * (flags.get("aux_loss_schedule") == "linear_decay")
    )
    if effects is not None:
        effect = effects.get(arm.configuration, 0.0)
    effect *= scale
    short = 0.25 * (total < 1000)  # a short run ends higher, and its effects are larger
    val_loss = level + short - effect * (1 + 40 * short) + noise
    step_ms = 165 * (1 + 0.02 * len(layers))
    steps = [*range(0, total, max(1, total // 20)), total]
    if status != "ok":
        steps = steps[: len(steps) // 2]
    curve = [(s, val_loss + fall(s / total), s * step_ms) for s in steps]
    ok = status == "ok"
    return RunResult(
        run=run,
        attempt=attempt,
        status=status,
        reason=reason,
        clock="boot",
        start_s=start_s,
        end_s=start_s + 60 + steps[-1] * step_ms / 1000,
        val_loss=curve[-1][1] if ok else None,
        steps_done=steps[-1],
        train_time_ms=steps[-1] * step_ms if ok else None,
        step_avg_ms=step_ms if ok else None,
        peak_memory_mib=31000.0 if ok else None,
        tokens_seen=total * 524288 if ok else None,
        num_parameters=123_587_328 if ok else None,
        curve=tuple(curve),
        **({"evidence": evidence, "returncode": 0} if evidence else {}),
    )


def make(
    tmp_path, e=None, *, most=1000, failures=None, facts=FACTS, reason="invented reason of", **world
) -> Path:
    """A folder as the orchestrator would leave it after so many attempts.

    failures: run name -> statuses of its first attempts; reason: how these speak of it.
    """
    e = e or speedrun(overrides=NOTHING_OVERRIDDEN.ungated)
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "x_train_1.bin").write_bytes(b"tokens")
    materials = Materials(tmp_path / "train.py", tmp_path)
    exp_dir = begin(e, materials, tmp_path / "experiments", facts)
    experiment_id = read_document(exp_dir)["experiment_id"]
    results, clock_s = [], 0.0
    while (step := next_step(e, results)).runs and len(results) < most:
        run = step.runs[0]
        attempt = 1 + sum(r.run.name == run.name for r in results)
        planned = (failures or {}).get(run.name, ())
        status = planned[attempt - 1] if attempt <= len(planned) else "ok"
        why = "" if status == "ok" else f"{reason} {run.name}, attempt {attempt}"
        results.append(train(run, attempt, status, why, clock_s, **world))
        clock_s = results[-1].end_s
        store(exp_dir, results[-1], experiment_id, facts)
    write_overrides(exp_dir, e.overrides)
    write_results(exp_dir, experiment_id, e, results, conclude(step))
    return exp_dir


def begin(e, materials, output_dir: Path, facts: dict) -> Path:
    """The folder of an experiment that is registered, and has no run yet."""
    exp_dir = new_folder(output_dir, e.study.name)
    register(e, materials, exp_dir, facts)
    return exp_dir


def store(exp_dir, result, experiment_id, facts=FACTS) -> Path:
    folder = attempt_dir(exp_dir / result.run.name, result.attempt)
    folder.mkdir(parents=True)
    config = {"run": asdict(result.run), "attempt": result.attempt, **facts}
    write_json(folder / "config.json", config)
    write_result(folder, result, experiment_id)
    return folder


def speedrun(**changes):
    scale = {"profile": PROFILES["speedrun"], "full_iterations": 5100, "processes": 8}
    return experiment(**{**scale, "device": "cuda", "budget_hours": 12.0, **changes})


def adaptive_plan(**changes):
    return speedrun(plan="adaptive", **changes)


def manual(*names, seeds=(42,)):
    return speedrun(plan="manual", arms=tuple(HEADS.by_hand[name] for name in names), seeds=seeds)
