"""What did an experiment find, for a program?  The object of --json; docs/scripts.md has its keys.

Every number is one that a decision or a record holds already: nothing is computed here anew.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from ablation.folder.standing import Standing
from ablation.plan.classic import CLASSIC_RULES
from ablation.plan.decision import Decision, groups_of
from ablation.plan.looks import look_from
from ablation.plan.next_step import verdict_in
from ablation.plan.stage import FINAL_STAGE
from ablation.runs.run import Arm, RunResult, machine_seconds
from ablation.study.study import Metric

SCHEMA = 1  # of the object: a key that is renamed or that means something else raises it
KEYS = (
    *("verdict", "title", "ended", "improvement", "interval", "p", "pairs", "runs", "hours"),
    *("metric", "arms", "chosen", "folder"),
)


def answer(found: Standing | None, until: int) -> dict:
    """What is known, at the decision of stage `until` or the last one before it; found: None where
    no run could begin. Every key is there, always."""
    if found is None:
        return {"schema": SCHEMA, **dict.fromkeys(KEYS), "arms": []}
    step, results = found.step, found.records.results
    decisions = {n: d for n, d in step.decisions.items() if n <= until} if step else {}
    decision = decisions[max(decisions)] if decisions else None
    return {
        "schema": SCHEMA,
        "verdict": verdict_in(decisions) or None,
        "title": decision.title if decision else None,
        "ended": (step.ended if step else "") or None,
        **tested(found, decision),
        "runs": counts(found.records.latest().values(), len(results)),
        "hours": {
            "spent": machine_seconds(results) / 3600,
            "budget": found.experiment.budget_hours,
        },
        "metric": asdict(found.experiment.study.metric),
        "arms": [*arms_of(found.experiment.study.metric, found.records.latest().values())],
        "chosen": named(decision.chosen) if decision and decision.chosen else None,
        "folder": str(found.exp_dir.resolve()),
    }


@dataclass(frozen=True)
class Tested:
    """What the last stage's test gave."""

    improvement: float | None = None
    low: float | None = None
    high: float | None = None
    alpha: float = 0.0  # two-sided, of the interval
    sequential: bool = False  # it holds over all looks
    p: float | None = None
    kind: str = ""  # of p
    pairs: int = 0


def tested(found: Standing, decision: Decision | None) -> dict:
    """The keys of the test."""
    t = test_in(decision, found.design.alpha)
    interval = {"low": t.low, "high": t.high, "level": 1 - t.alpha, "sequential": t.sequential}
    return {
        "improvement": t.improvement,
        "interval": interval if t.low is not None else None,
        "p": {"value": t.p, "kind": t.kind} if t.p is not None else None,
        "pairs": t.pairs,
    }


def test_in(decision: Decision | None, alpha: float) -> Tested:
    """What a decision's numbers say of its test; alpha: the level that was registered."""
    numbers = decision.numbers if decision and decision.stage == FINAL_STAGE else {}
    if "looks" not in numbers:
        return test_at_once(numbers) if numbers else Tested()
    if not numbers["looks"]:
        return Tested(pairs=numbers["n"])
    last = look_from(numbers["looks"][-1])
    p, kind = last.decides.p, f"nominal, {last.decides.name}"
    return Tested(last.improvement, last.low, last.high, alpha, True, p, kind, last.n)


def test_at_once(numbers: dict) -> Tested:
    """The one test of the classic plan. Where a run diverged ranks decide, and the runs that
    finished are only the better ones: their interval is not the verdict's."""
    ranked = "favours_arm" in numbers
    low, high = (None, None) if ranked else (numbers["ci_low"], numbers["ci_high"])
    alpha, kind = CLASSIC_RULES["significant"].threshold, "ranks" if ranked else "Welch"
    pairs = numbers["baseline_n"] + numbers["baseline_diverged"]
    return Tested(numbers["improvement"], low, high, alpha, False, numbers["p"], kind, pairs)


def counts(latest: Iterable[RunResult], attempts: int) -> dict:
    """What became of the runs that began, and how many attempts that took."""
    statuses = [r.status for r in latest]
    finished, diverged = statuses.count("ok"), statuses.count("diverged")
    failed = len(statuses) - finished - diverged
    return {"finished": finished, "diverged": diverged, "failed": failed, "attempts": attempts}


def named(arm: Arm) -> dict:
    return {"name": arm.name, "description": arm.label}


def arms_of(metric: Metric, latest: Iterable[RunResult]) -> Iterator[dict]:
    """A row for each configuration of a stage, and of a length: only such runs are compared."""
    rows: dict[tuple[int, int], list[RunResult]] = {}
    for r in latest:
        rows.setdefault((r.run.stage, r.run.num_iterations), []).append(r)
    for (stage, iterations), mine in sorted(rows.items()):
        for group in groups_of(mine).values():
            yield {
                **named(group.arm),
                "stage": stage,
                "iterations": iterations,
                "n": len(group.losses),
                "mean": metric.sign * group.mean if group.losses else None,
                "sd": group.sd if group.losses else None,
                "diverged": group.diverged,
            }
