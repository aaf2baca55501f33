"""What was decided against, or instead of, a rule?  By a person, or because the machine broke."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ablation.runs.run import Arm, arm_from


@dataclass(frozen=True)
class Override:
    """One such decision; its value depends on its kind."""

    kind: str  # "ignore_gate", "by_hand", "budget" or "retry"
    stage: int  # 0 where it is of no stage: a budget, a retry
    value: dict = field(default_factory=dict)
    when: str = ""  # UTC


@dataclass(frozen=True)
class Overrides:
    """All of an experiment, in the order in which they were made. Of several of one kind for one
    stage the last one counts."""

    made: tuple[Override, ...] = ()

    def __iter__(self) -> Iterator[Override]:
        return iter(self.made)

    def latest(self, kind: str, stage: int = 0) -> Override | None:
        return next((o for o in reversed(self.made) if (o.kind, o.stage) == (kind, stage)), None)

    def and_one(self, override: Override) -> "Overrides":
        """These and one more; the same where it says what is in force already."""
        known = self.latest(override.kind, override.stage)
        if known and known.value == override.value:
            return self
        return replace(self, made=(*self.made, override))

    def passes_gate(self, stage: int) -> bool:
        """The plan goes on past this stage, whatever it decides."""
        return self.latest("ignore_gate", stage) is not None

    def chosen_for(self, stage: int) -> Arm | None:
        """The configuration that a person chose for this stage, instead of the stages before it."""
        found = self.latest("by_hand", stage)
        if found is None:
            return None
        return arm_from(found.value["arm"])

    @property
    def first_stage(self) -> int:
        """The last stage that a person chose for: no stage before it has to be run."""
        return max((o.stage for o in self if o.kind == "by_hand"), default=0)

    def budget_hours(self, registered: float) -> float:
        """The budget in force now."""
        found = self.latest("budget")
        return found.value["hours"] if found else registered

    def budget_hours_at(self, pairs: int, now: float) -> float:
        """The budget in force when so many pairs of stage 4 were complete. What a look was taken
        under does not change with a budget that is given later. now: the one in force now."""
        later = (o.value["was"] for o in self if o.kind == "budget" and pairs <= o.value["pairs"])
        return next(later, now)

    @property
    def forgiven(self) -> frozenset[tuple[str, int]]:
        """(run, attempt) of crashes that were the machine's: paid for, not held against runs."""
        faults = [o.value["attempts"] for o in self if o.kind == "retry"]
        return frozenset((name, attempt) for fault in faults for name, attempt in fault)

    @property
    def ungated(self) -> "Overrides":
        """These, and every gate passed."""
        gates = tuple(Override("ignore_gate", stage) for stage in (1, 2, 3))
        return replace(self, made=(*self.made, *gates))


NOTHING_OVERRIDDEN = Overrides()
