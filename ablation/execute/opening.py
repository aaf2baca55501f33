"""How does a sitting begin?  Register or compare, lock, clear up, and say what will run.

From here on `sitting.drive` runs the plan; here is all that comes before its first question, for a
new experiment (`begin`) and for one that goes on (`go_on`).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ablation.cli.arguments import pasteable, plain_words
from ablation.execute.answering import Told
from ablation.execute.before_run_1 import check_materials
from ablation.execute.command import check_torchrun
from ablation.execute.display import Display
from ablation.execute.launcher import Launcher
from ablation.execute.local import LocalLauncher
from ablation.execute.lock import Lock
from ablation.execute.machine import cores, git_state, machine, versions
from ablation.execute.page_writer import PageWriter
from ablation.execute.preview import announce
from ablation.execute.reconcile import reconcile
from ablation.execute.sitting import Sitting, drive, resume_command
from ablation.execute.slurm import SlurmLauncher
from ablation.execute.trainer_check import check_with_trainer
from ablation.folder.codes import code_copies, registered_codes
from ablation.folder.data import data_dir_of_study, data_faults, data_fingerprint
from ablation.folder.materials import ROOT, Materials
from ablation.folder.overrides import (
    NewOverrides,
    read_overrides,
    with_new_overrides,
    write_overrides,
)
from ablation.folder.registration import (
    check_unchanged,
    data_dir_of,
    is_new,
    new_folder,
    register,
    registered,
)
from ablation.folder.trainers import codes_of, faults_of, folder_of, start_of
from ablation.plan.forecast import forecast, too_few_pairs
from ablation.plan.next_step import next_step, pairs_begun
from ablation.runs.run import RunResult
from ablation.runs.store import read_records
from ablation.study.document import StudyFaults
from ablation.study.experiment import Experiment
from ablation.study.study import Study


@dataclass(frozen=True)
class SittingOptions:
    """What a command says of a sitting, beside the experiment that it asks for."""

    stage: int | None  # the only one that is to run
    ignore_gate: bool
    overrides: NewOverrides  # what it decides instead of a rule
    train_script: Path | None
    data_dir: Path | None
    slurm_args: str
    stall_s: float  # silence of a run that is allowed
    page: bool = True  # report.html is written while runs go on
    words: tuple[str, ...] = ()  # the command line
    told: Told = field(default_factory=Told)  # what it comes to, for whoever gave the command

    def stages(self, plan: str) -> range:
        if plan == "manual":
            return range(0, 1)
        return range(self.stage, self.stage + 1) if self.stage else range(1, 5)


class MachineFault(ValueError):
    """The machine failed in the middle of a sitting: a full disk, a process that cannot start."""


def materials_of(
    options: SittingOptions, document: dict | None, exp_dir: Path | None, e: Experiment
) -> Materials:
    """The trainer and the shards: what was named now, else what was registered or is its like."""
    study, script, data_dir = e.study, options.train_script, options.data_dir
    read = partial(codes_of, study, script and script.resolve())
    if document is not None and exp_dir is not None:
        if script is None:
            read = partial(registered_codes, document, study, exp_dir)
        data_dir = data_dir or data_dir_of(document, e)
    if study.trainer.is_ours:
        data_dir = (data_dir or ROOT / e.profile.data_dir).resolve()
        return Materials(script_of(study, script), data_dir, read)
    if options.data_dir:
        raise ValueError(
            f"--data_dir {options.data_dir}: the study {study.name} names its data; leave it out"
        )
    data_dir = data_dir_of_study(study) or folder_of(study)
    return Materials(script_of(study, script), data_dir, read, partial(data_fingerprint, study))


def script_of(study: Study, named: Path | None) -> Path:
    """The trainer's script, for a person; of a module, its folder."""
    start = start_of(study.trainer, study.base)
    return (named or folder_of(study) / ("" if start.is_module else start.name)).resolve()


def data_is_there(e: Experiment, m: Materials) -> bool:
    return m.data_dir.is_dir() if e.study.trainer.is_ours else not data_faults(e.study)


def check_data_is_there(e: Experiment, m: Materials) -> None:
    """Raise ValueError where the data of an experiment is gone, with the ways out."""
    if not e.study.trainer.is_ours:
        if faults := data_faults(e.study):
            raise StudyFaults(faults)
    elif not m.data_dir.is_dir():
        raise ValueError(
            f"the shards of this experiment are gone: {m.data_dir} is no folder. Give where they"
            " lie now with --data_dir DIR, or put them back (data/prepare.py makes them again)"
        )


def faults_on_disk(study: Study, script: Path | None) -> list[str]:
    """What is wrong with the code and the data of a study, a line each. script: in place of the
    trainer's own."""
    of_data = [] if study.trainer.is_ours else data_faults(study)
    return [*faults_of(study, script), *of_data]


def facts_of(e: Experiment, gpus: Sequence[str]) -> dict:
    """What every attempt's config.json tells of the machine and the checkout."""
    return {"machine": machine(e, gpus), "versions": versions(), "git": git_state()}


def provenance(document: dict) -> dict:
    """What every attempt's config.json tells of its code and its data."""
    fixed = document["registered"]
    return {"code": fixed["code"], "data": {"dir": document["data_dir"], **fixed["data"]}}


def begin(
    e: Experiment, options: SittingOptions, exp_dir: Path | None, output_dir: Path,
    gpus: Sequence[str], display: Display,
) -> int:  # fmt: skip
    """Register a new experiment, in exp_dir or in a new folder of output_dir; then sit."""
    m = materials_of(options, None, exp_dir, e)
    if faults := faults_on_disk(e.study, options.train_script):
        raise StudyFaults(faults)
    check_materials(m, e)
    if options.stage is None and (why := too_few_pairs(e)):
        raise ValueError(why)
    check_launch(e)
    check_with_trainer(e, m, exp_dir or output_dir)
    facts = facts_of(e, gpus)
    if exp_dir is None:
        exp_dir = new_folder(output_dir, e.study.name)
    exp_dir.mkdir(parents=True, exist_ok=True)
    with Lock(exp_dir, display.print_line) as lock:
        if not is_new(exp_dir):
            raise ValueError(
                f"{exp_dir}: somebody began an experiment there a moment ago; give the same"
                " command again to go on with it"
            )
        given = {"slurm_args": options.slurm_args, "command": [*options.words]}
        document = register(e, m, exp_dir, {**facts, **given})
        display.print_line(f"New experiment: {exp_dir}")
        for line in dict.fromkeys(line for code in m.codes.values() for line in code.notes()):
            display.print_line(line)
        return sit(e, options, exp_dir, document, m, facts, lock, display)


def go_on(
    e: Experiment, options: SittingOptions, exp_dir: Path, document: dict,
    gpus: Sequence[str], display: Display,
) -> int:  # fmt: skip
    """Go on with a registered experiment, which has to be what is asked for; its shards may be gone
    where no run is left to do."""
    m = materials_of(options, document, exp_dir, e)
    fingerprint = None
    if not data_is_there(e, m) and is_done(e, document, exp_dir):
        fingerprint = document["registered"]["data"]["fingerprint"]
    else:
        check_data_is_there(e, m)
        check_materials(m, e)
    check_launch(e)
    facts = facts_of(e, gpus)
    check_unchanged(document, registered(e, m, fingerprint), exp_dir)
    with Lock(exp_dir, display.print_line) as lock:
        return sit(e, options, exp_dir, document, m, facts, lock, display)


def is_done(e: Experiment, document: dict, exp_dir: Path) -> bool:
    """Nothing is left to run: an experiment that has ended is shown without its data."""
    records = read_records(exp_dir, document["experiment_id"])
    step = next_step(e.with_overrides(read_overrides(exp_dir)), records.results)
    return bool(step.ended) and not records.open


def sit(
    e: Experiment, options: SittingOptions, exp_dir: Path, document: dict, m: Materials,
    facts: dict, lock: Lock, display: Display,
) -> int:  # fmt: skip
    """One sitting, in a folder that is ours alone; its exit code."""
    told, stages = options.told, options.stages(e.plan)
    told.exp_dir, told.until = exp_dir, stages[-1]
    slurm_args = options.slurm_args or document["slurm_args"]
    launcher = launcher_of(e, slurm_args, exp_dir / "code")
    records = reconcile(
        exp_dir, document["experiment_id"], launcher, e.study.trainer.reading, display.print_line
    )
    results = list(records.results)
    e = as_decided(e, options, exp_dir, results, display.print_line)
    step = next_step(e, results)
    to_come, last = forecast(e, results)
    if step.runs and step.stage <= stages[-1]:
        announce(e, results, to_come, last, display.print_line)
    work = bool(step.runs or records.open) and step.stage <= stages[-1]
    page = PageWriter(exp_dir, display.print_line)
    sitting = Sitting(
        exp_dir=exp_dir,
        experiment_id=document["experiment_id"],
        codes=code_copies(m.codes, exp_dir),
        data_dir=m.data_dir,
        facts=facts | provenance(document),
        lock=lock,
        launcher=launcher,
        running=records.open,
        stages=stages,
        ignore_gate=options.ignore_gate,
        stall_s=options.stall_s,
        decided=frozenset(step.decisions),
        to_come=to_come,
        told=told,
        page=page,
    )
    try:
        with page.beside(options.page and work):
            return drive(e, sitting, results, display)
    except (OSError, ValueError) as error:  # ValueError: the lock or a folder is not ours any more
        raise MachineFault(
            f"{plain_words(error)}. What was finished is kept; when that is mended, go on:"
            f" {resume_command(e, exp_dir)}"
        ) from error


def as_decided(
    e: Experiment, options: SittingOptions, exp_dir: Path, results: Sequence[RunResult], print_line
) -> Experiment:
    """The experiment with what was decided instead of a rule, before and by this command, which is
    put on record. Raises ValueError where that cannot be, or it is not the stage's turn."""
    on_record = e.with_overrides(read_overrides(exp_dir))
    e = with_new_overrides(on_record, options.overrides, results)
    if options.stage:
        check_turn(e, results, options.stage, options.ignore_gate, exp_dir)
    for warning in warnings_for(on_record, e, results):
        print_line(warning)
    write_overrides(exp_dir, e.overrides)
    return e


def warnings_for(on_record: Experiment, e: Experiment, results: Sequence[RunResult]) -> list[str]:
    """What a person may expect of a resume that is not so. on_record: before this command."""
    found = []
    if e.budget_hours > on_record.budget_hours and pairs_begun(results) >= 0:
        found.append("Stage 4 has begun: a larger budget does not raise its number of pairs.")
    if e.share.device == "cpu" and cores() != e.share.cores:
        found.append(
            f"Beware: {cores()} cores may be used here, {e.share.cores} were registered: times and"
            " costs are not those of the earlier runs."
        )
    return found


def check_launch(e: Experiment) -> None:
    """Raise ValueError where no run could be started."""
    if e.study.trainer.launch == "torchrun":
        check_torchrun()
    elif e.share.nodes > 1:
        raise ValueError(
            f"--nodes_per_run {e.share.nodes}: for a trainer that torchrun starts; leave it out"
        )


def launcher_of(e: Experiment, slurm_args: str, code_dir: Path) -> Launcher:
    share = e.share
    if share.launcher == "local":
        return LocalLauncher(code_dir)
    workers = share.processes // share.nodes
    gpus = workers if share.device == "cuda" else 0
    return SlurmLauncher(code_dir, tuple(shlex.split(slurm_args)), gpus, share.nodes, workers)


def check_turn(
    e: Experiment, results: Sequence[RunResult], stage: int, ignore_gate: bool, exp_dir: Path
) -> None:
    """Raise ValueError when the stage asked for cannot begin: earlier ones decide first."""
    step = next_step(e, results)
    if step.stage >= stage or stage in step.decisions:
        return
    if step.at_gate and step.stage == stage - 1:
        if ignore_gate:
            return
        raise ValueError(
            f"--stage {stage}: stage {step.stage} decided: {step.ended};"
            " --ignore_gate goes on all the same, on record"
        )
    by_hand = ", or choose by hand with --best ARM" if stage > 2 else ""
    raise ValueError(
        f"--stage {stage}: stage {step.stage} comes first"
        f"{' (' + step.ended + ')' if step.ended else ''};"
        f" run: python run_aux.py --stage {step.stage} --exp_dir {pasteable(exp_dir)}{by_hand}"
    )
