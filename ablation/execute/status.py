"""Where does an experiment stand?  From its files alone, from any terminal, at any time."""

import time
from pathlib import Path

from ablation.execute import watcher
from ablation.execute.closing import pricing_of
from ablation.execute.lock import holder
from ablation.folder.standing import Standing, standing
from ablation.plan.decision import counted
from ablation.plan.forecast import forecast, paid_s
from ablation.runs.formats import Reading
from ablation.runs.log import read_log
from ablation.runs.run import duration, machine_seconds, part_of
from ablation.runs.store import Attempt, read_config
from ablation.runs.untrusted import printable


def read_in_flight(attempt: Attempt, reading: Reading) -> dict:
    """An attempt without a result as another terminal shows it; empty where its config.json cannot
    be believed. `interval` is its machine time so far."""
    try:
        run, config = read_config(attempt)
        interval = pricing_of(config).interval_so_far(attempt, config)
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return {}
    log = read_log(attempt.folder / "output.log", run.num_iterations, reading)
    return {
        "run": run.name,
        "attempt": attempt.number,
        "stage": run.stage,
        "step": log.step,
        "num_iterations": run.num_iterations,
        "val_loss": reading.sign * log.curve[-1][1] if log.curve else None,
        "seconds": interval.end_s - interval.start_s if interval else None,
        "interval": interval,
    }


def processes_left(exp_dir: Path) -> int:
    """How many processes of this experiment's runs live on this machine."""
    return len(watcher.marked(exp_dir.resolve()))


def status(exp_dir: Path) -> dict:
    """What --status --json prints. Raises ValueError where this is no experiment."""
    return status_of(standing(exp_dir))


def status_of(s: Standing) -> dict:
    """The same, of a folder that was read."""
    exp_dir, e, records, step = s.exp_dir, s.experiment, s.records, s.step
    planned = forecast(e, records.results)[0] if step and not step.ended else []
    latest = records.latest().values()
    orchestrator, lives = "none", False
    try:
        who, lives = holder(exp_dir / "lock.json", time.time())
        orchestrator = who if lives else f"gone ({who})"
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        orchestrator = f"unknown: {printable(str(error))}"
    reading = e.study.trainer.reading
    attempts = (read_in_flight(attempt, reading) for attempt in records.open)
    open_attempts = [found for found in attempts if found]
    in_flight = [found.pop("interval") for found in open_attempts]
    spent_s = machine_seconds(records.results)
    in_flight_s = machine_seconds((), [i for i in in_flight if i]) if lives else 0.0
    return {
        "exp_dir": str(exp_dir),
        "plan": e.plan,
        "changed": list(s.changed),
        "stage": step.stage if step else None,
        "ended": step.ended if step else "",
        "orchestrator": orchestrator,
        "processes_left": 0 if lives else processes_left(exp_dir),  # that nobody looks after
        "in_flight": open_attempts if lives else [],
        "broken_off": [] if lives else open_attempts,
        "done": [r.run.name for r in latest if r.has_outcome],
        "counted": counted(list(latest)),
        "failed": {r.run.name: f"{r.status}: {r.reason}" for r in latest if not r.has_outcome},
        "damaged": {str(path): why for path, why in records.damaged},
        "passed_over": [str(folder) for folder in records.stray],
        "left": [p.run.name for p in planned],
        "decisions": {str(n): d.title for n, d in step.decisions.items()} if step else {},
        "hours_spent": (spent_s + in_flight_s) / 3600,
        "hours_to_go": max(0.0, paid_s(e, planned) - in_flight_s) / 3600,
        "budget_hours": e.budget_hours,
    }


def print_status(s: dict) -> None:
    print(f"{printable(s['exp_dir'])} (plan {s['plan']})")
    for line in s["changed"]:
        print(f"  Beware: {line}; no decision is shown.")
    if s["stage"] is not None:
        print(f"  stage {s['stage']}{': ended, ' + s['ended'] if s['ended'] else ''}")
    print(f"  orchestrator: {s['orchestrator']}")
    if s["processes_left"]:
        print(f"  {s['processes_left']} processes of its runs still live; going on ends them first")
    for kind in ("in_flight", "broken_off"):
        for found in s[kind]:
            loss = "none yet" if found["val_loss"] is None else f"{found['val_loss']:.4f}"
            print(
                f"  {kind.replace('_', ' ')}: {found['run']},"
                f" step {found['step']}/{found['num_iterations']}, val loss {loss}"
            )
    for number, title in s["decisions"].items():
        print(f"  stage {number} decided: {title}")
    words = f" ({s['counted']})" if s["counted"] else ""
    print(f"  done {len(s['done'])}, failed {len(s['failed'])}, left {len(s['left'])} runs{words}")
    for kind in ("failed", "damaged"):
        for name, why in s[kind].items():
            print(f"  {kind}: {printable(name)}: {why}")
    for folder in s["passed_over"]:
        print(f"  passed over: {printable(folder)}: a copy of another run, or a link")
    budget = s["budget_hours"]
    spent, to_go = (part_of(3600 * s[name], budget) for name in ("hours_spent", "hours_to_go"))
    print(
        f"  {spent} spent, about {to_go} to go,"
        f" budget {f'{budget:g} h' if budget >= 1 else duration(3600 * budget)}"
    )
