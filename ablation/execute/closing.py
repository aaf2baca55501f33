"""How is an attempt judged that nobody followed to its end, and what did it cost?"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

from ablation.execute import local, slurm, watcher
from ablation.execute.launcher import Pricing
from ablation.runs.formats import Reading
from ablation.runs.log import read_log, reader_of
from ablation.runs.outcome import Exit, judge, judge_attempt
from ablation.runs.run import Interval, RunResult
from ablation.runs.store import Attempt, read_config, write_result

PRICING: dict[str, Pricing] = {"local": local, "slurm": slurm}  # by the launcher's registered name


def pricing_of(config: Mapping) -> Pricing:
    """The module that tells what an attempt with this config.json costs. Raises as `Pricing`."""
    return PRICING[config.get("machine", {}).get("launcher", "local")]


def close_attempt(
    attempt: Attempt,
    experiment_id: str,
    ended: Exit | None,
    reading: Reading,
    distrust: str = "",
) -> RunResult:
    """Judge an attempt by what it left; with a reason for distrust, it has to be run again.

    ended: what its exit.json says, or its launcher in its place; None where nobody knows.

    Raises ValueError when config.json cannot be believed.
    """
    run, config = read_config(attempt)
    try:
        pricing = pricing_of(config)
        interval = pricing.machine_interval(attempt, config)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it does not say when the attempt began ({error!r})") from None
    here = interval.clock == watcher.boot_clock()
    latest_s = time.monotonic() if here else math.inf
    exit = believed(ended, interval._replace(end_s=latest_s))
    if exit is None:
        why = watcher.read_order(attempt.folder) or pricing.unrecorded(attempt.folder)
        exit = Exit(None, why, *interval)
    if distrust:
        exit = replace(exit, returncode=None, ended_by=distrust)
        result = judge(run, attempt.number, reader_of(run.num_iterations, reading), exit)
    else:
        log = read_log(attempt.folder / "output.log", run.num_iterations, reading)
        result = judge_attempt(run, attempt.number, attempt.folder, log, exit)
    write_result(attempt.folder, result, experiment_id)
    return result


def close_unstarted(attempt: Attempt, experiment_id: str, why: str, reading: Reading) -> RunResult:
    """Judge an attempt whose launcher could not be started: it has cost nothing."""
    clock, now = pricing_of(read_config(attempt)[1]).clock_of(attempt), time.monotonic()
    exit = Exit(None, f"{watcher.CANNOT_START}: {why}", clock, now, now)
    watcher.write_whole(attempt.folder / "exit.json", asdict(exit))
    return close_attempt(attempt, experiment_id, exit, reading)


def believed(exit: Exit | None, within: Interval) -> Exit | None:
    """What is said of an attempt's end, if that can be; None for anything else.

    It is on the attempt's own clock and inside of what its launch leaves open; of a job, whose
    clock is another machine's, only that it is a job's.
    """
    if exit is None:
        return None
    said = exit.interval
    if within.of_a_job:
        return exit if said.of_a_job else None
    same = (said.clock, said.nodes) == (within.clock, within.nodes)
    return exit if same and within.start_s <= said.start_s and said.end_s <= within.end_s else None
