"""What did the plan foresee when it began, stage by stage, and what did it come to?"""

from dataclasses import dataclass

from ablation.folder.standing import Standing
from ablation.plan.costs import Costs
from ablation.plan.forecast import forecast, of_stage, paid_s
from ablation.plan.next_step import BUDGET_SPENT
from ablation.runs.run import RunResult, machine_seconds


@dataclass(frozen=True)
class StageCourse:
    """One stage: the longest that it could become within the budget, and what was run of it."""

    number: int
    foreseen: int  # runs
    foreseen_s: float  # machine time, as first expected
    cost_ratio: float  # what such runs cost, as is known now, to what was first expected
    runs: int  # that have an outcome
    begun: int  # runs that have a record
    spent_s: float  # machine time, of failed attempts too
    over: bool  # nothing of it is still to come
    cut: bool  # by the budget, or perhaps

    @property
    def spared(self) -> int:
        """Runs that the plan did without: by a rule, an early verdict or a gate. Those that the
        budget cut are not spared, and of a stage that goes on nothing is known yet."""
        return max(0, self.foreseen - self.begun) if self.over and not self.cut else 0

    @property
    def spared_s(self) -> float:
        """Their machine time, by what runs have cost."""
        share = self.spared / self.foreseen if self.foreseen else 0.0
        return self.foreseen_s * self.cost_ratio * share


def course_of(found: Standing) -> list[StageCourse]:
    """Every stage of the plan, in order; none of runs by hand, nor where no decision is shown."""
    e, step = found.experiment, found.step
    if step is None or e.plan == "manual":
        return []
    planned, first, now = forecast(e)[0], Costs(e), Costs(e, found.records.results)
    cut = step.ended == BUDGET_SPENT or bool(step.budget_cuts)
    courses = []
    for stage in found.stages:
        mine = of_stage(planned, stage.number)
        results = [r for r in found.records.results if r.run.stage == stage.number]
        decided = stage.number in step.decisions
        courses.append(
            StageCourse(
                number=stage.number,
                foreseen=len(mine),
                foreseen_s=paid_s(e, mine),
                cost_ratio=sum(now(p.run) for p in mine) / (sum(first(p.run) for p in mine) or 1.0),
                runs=len(names_of([r for r in results if r.has_outcome])),
                begun=len(names_of(results)),
                spent_s=machine_seconds(results),
                over=decided or bool(step.ended),
                cut=cut and not (decided and results),
            )
        )
    return courses


def names_of(results: list[RunResult]) -> set[str]:
    return {r.run.name for r in results}
