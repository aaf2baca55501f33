"""What is told to other programs?  `staged_ablation_results.json`, derived after every run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ablation.plan.decision import is_overridden
from ablation.plan.next_step import Step, stages_of
from ablation.runs.run import RunResult, machine_seconds
from ablation.runs.store import write_json
from ablation.study.experiment import Experiment


def write_results(
    exp_dir: Path, experiment_id: str, e: Experiment, results: Sequence[RunResult], step: Step
) -> None:
    """staged_ablation_results.json: derived from the records, never read back by the plan."""
    latest = {}
    for r in sorted(results, key=lambda r: r.attempt):
        latest[r.run.name] = r
    stages = {}
    for stage in stages_of(e):
        decision = step.decisions.get(stage.number)
        mine = [r for r in latest.values() if r.run.stage == stage.number]
        if not mine and decision is None:
            continue
        stages[str(stage.number)] = {
            "name": stage.name,
            "runs": [{"run": r.run.name, "status": r.status, "val_loss": r.val_loss} for r in mine],
            "decision": asdict(decision) if decision else None,
            "overridden": bool(decision and is_overridden(decision, e.overrides)),
        }
    spent_hours = machine_seconds(results) / 3600
    write_json(
        exp_dir / "staged_ablation_results.json",
        {
            "experiment_id": experiment_id,
            "plan": e.plan,
            "ended": step.ended,
            "stages": stages,
            "overrides": [asdict(o) for o in e.overrides],
            "cut": list(step.budget_cuts),
            "budget": {"hours": e.budget_hours, "spent_hours": spent_hours},
        },
        durable=False,
    )
