"""What will run, and what will it cost?  Said before the first run, from the plan's forecast."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ablation.cli.arguments import pasteable
from ablation.execute.command import build_command, environment_of
from ablation.folder.materials import Code, CodeCopy, Materials, read_copy
from ablation.plan.forecast import Planned, forecast, of_stage, paid_s, too_few_pairs
from ablation.plan.next_step import Step, stages_of
from ablation.runs.run import RunResult, duration, machine_seconds
from ablation.study.experiment import Experiment


def announce(
    e: Experiment, results: Sequence[RunResult], planned: Sequence[Planned], last: Step,
    print_line: Callable[[str], None],
) -> None:  # fmt: skip
    """Runs and hours of each stage against the budget, and what the budget cuts. planned, last: as
    `forecast` gives them."""
    spent_s = machine_seconds(results)
    total_s = spent_s + paid_s(e, planned)
    for stage in stages_of(e):
        mine = of_stage(planned, stage.number)
        done = sum(r.run.stage == stage.number and r.has_outcome for r in results)
        name = f"stage {stage.number} {stage.name}:" if stage.number else "by hand:"
        if mine or done:
            print_line(
                f"  {name:<26} {len(mine):>3} runs to do{f', {done} done' if done else ''},"
                f" {duration(paid_s(e, mine))}"
            )
        elif why := stage.why_empty(e):
            print_line(f"  {name:<26} {why}")
    print_line(f"  total: {duration(total_s)} of the budget of {duration(3600 * e.budget_hours)}")
    for cut in last.budget_cuts:
        print_line(f"  cut by the budget: {cut}")
    if not results and (why := too_few_pairs(e)):
        print_line(f"  No verdict: {why}.")
    elif last.stage and last.stage < 4:
        print_line(
            f"  The budget ends in stage {last.stage}, before the final validation. To finish: a"
            " smaller --profile, a smaller --full_iterations, or a larger --max_budget_hours."
        )


def dry_run(
    e: Experiment, m: Materials, exp_dir: Path, results: Sequence[RunResult], words: Sequence[str]
) -> None:
    """Print every command, as it would run if each gate let the plan pass and 4,8 won. words: of
    the command line, for the offer to try this machine."""
    print("Dry run: nothing is launched or written. Every gate is assumed to let the plan pass;")
    best = e.study.expected_best
    print(f"later stages are shown as if {e.study.favourite_in_words(best)} won.\n")
    planned, last = forecast(e, results)
    copies = {trainer: copy_of(code, exp_dir) for trainer, code in m.codes.items()}
    for number, p in enumerate(planned, 1):
        copy = copies[p.run.arm.trainer]
        folder = exp_dir / p.run.name / ("" if e.study.trainer.is_ours else "work")
        command = build_command(e, p.run, copy, m.data_dir, folder)
        env = environment_of(e, p.run, copy, m.data_dir, exp_dir, folder)
        environment = "".join(f"{name}={shlex.quote(value)} " for name, value in env.items())
        print(f"# {number}/{len(planned)} stage {p.run.stage}: {p.run.name}, {duration(p.wall_s)}")
        print(environment + " ".join(map(pasteable, command)))
    print()
    announce(e, results, planned, last, print)
    if planned:
        print(offer(words))


def copy_of(code: Code, exp_dir: Path) -> CodeCopy:
    """Where code would run from: where it lies now, or, patched or of a commit, its copy."""
    lies = all((code.root / name).is_file() for name in code.names)
    as_it_is = lies and read_copy(code.root, code.names).hash == code.hash
    return CodeCopy(code, code.root if as_it_is else exp_dir / "code" / code.hash)


def offer(words: Sequence[str]) -> str:
    """The command that would try this machine for these runs."""
    words = ["--preflight" if word == "--dry_run" else word for word in words]
    command = f"python run_aux.py {' '.join(map(pasteable, words))}"
    return f"Try the machine first, in minutes: {command}"
