"""Where does an experiment stand?  Registration, records, and what they call for."""

from dataclasses import dataclass
from pathlib import Path

from ablation.folder.overrides import read_overrides
from ablation.folder.registration import changes, experiment_of, read_document
from ablation.plan.next_step import Step, conclude, next_step, stages_of
from ablation.plan.stage import Stage, design_in_force
from ablation.runs.store import Records, read_records
from ablation.study.experiment import Experiment
from ablation.study.profiles import Design


@dataclass(frozen=True)
class Standing:
    """Where an experiment stands, by its files alone: what every program shows."""

    exp_dir: Path
    document: dict  # experiment_configs.json
    experiment: Experiment  # with what a person decided
    records: Records
    step: Step | None  # the plan's next step, with every decision; None where `changed` says why
    changed: tuple[str, ...]  # how the folder differs from what was registered

    @property
    def design(self) -> Design:
        """The statistical terms, those that stage 1 measured among them."""
        return design_in_force(self.experiment, self.step.decisions if self.step else {})

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The rows of its plan's table."""
        return stages_of(self.experiment)


def standing(exp_dir: Path) -> Standing:
    """Read a folder, and decide anew from its records by the registered rules. Launches and writes
    nothing. Raises ValueError where this is no experiment."""
    document = read_document(exp_dir)
    e = experiment_of(document).with_overrides(read_overrides(exp_dir))
    records = read_records(exp_dir, document["experiment_id"])
    changed = changes(document)
    running = frozenset(a.run_name for a in records.open)  # or broken off: to be run again
    step = None if changed else conclude(next_step(e, records.results, running))
    return Standing(exp_dir, document, e, records, step, changed)
