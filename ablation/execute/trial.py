"""How do runs go here?  The real command of two arms for a few steps, through the real launcher.

The baseline runs to its end. The arm that costs most is begun at full length and told to stop in
the middle, so that one run tells both how fast it is and how it dies. All that is written lies in a
folder that the caller removes.
"""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ablation.cli import console
from ablation.execute import watcher
from ablation.execute.checklist import STOPPED_HERE, allowed_s, prior, short_run, step_s, steps_of
from ablation.execute.command import command_for
from ablation.execute.launcher import Command, Launcher
from ablation.execute.observed import GpuState, Trials
from ablation.execute.orchestrator import Limits, Orchestrator
from ablation.execute.sitting import StopRequest
from ablation.execute.survey import AWAKE_S, gpu_states
from ablation.execute.watcher import GRACE_S, MARGIN_S
from ablation.folder.materials import CodeCopy
from ablation.plan.costs import Costs
from ablation.plan.forecast import Planned, longest_course
from ablation.runs.run import Arm, RunConfig, RunResult, duration
from ablation.study.experiment import Experiment, with_scale

QUEUE_S = 600.0  # that a job may wait in a queue; it costs nothing there


def dearest_of(e: Experiment, planned: Sequence[Planned]) -> Arm | None:
    """The arm whose steps cost most; None where only baselines are to run."""
    arms = [p.run.arm for p in planned if not p.run.arm.is_baseline]
    train_s = Costs(prior(e)).prior
    return max(arms, key=lambda arm: train_s(RunConfig(0, arm, 0, 0, 1))[0], default=None)


@dataclass
class Track:
    """Where and how short runs are made, and until when."""

    e: Experiment
    codes: Mapping[tuple, CodeCopy]
    data_dir: Path
    folder: Path  # empty; absolute
    launcher: Launcher
    facts: dict  # as in every config.json
    deadline_s: float  # on the monotonic clock; waiting in a queue puts it off
    show: Callable[[Sequence, str], None]
    stop: StopRequest = field(default_factory=StopRequest)
    batches: int = 0
    told_s: float | None = None  # when the last batch was told to stop
    gpus: tuple[GpuState, ...] = ()  # a moment before that

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def side_by_side(
        self, e: Experiment, runs: Sequence[RunConfig], slots: Sequence[int],
        enough: float = math.inf, patience_s: float = math.inf,
    ) -> tuple[RunResult, ...]:  # fmt: skip
        """Run these at once, each with the share of its slot, to their end, or until each has done
        enough steps or patience_s are over: their results, in that order. Nothing is started where
        no time is left."""
        if self.stop.signal or self.left_s < 1:
            return ()
        self.batches, self.told_s = self.batches + 1, None
        place = self.folder / f"batch_{self.batches}"

        def command_of(run: RunConfig, folder: Path, slot: int) -> Command:
            copy = self.codes[run.arm.trainer]
            return command_for(e, run, copy, self.data_dir, self.folder, folder, slots[slot])

        o = Orchestrator(
            place, "preflight", self.launcher, command_of, self.facts, len(runs),
            self.e.study.trainer.reading,
        )  # fmt: skip
        ended = []
        try:
            for run in runs:
                ended += o.launch(run, Limits(self.left_s, "timeout", self.left_s))
            ended += self.followed(o, enough, patience_s)
        finally:
            ended += o.stop("the operator stopped it")
        by_name = {r.run.name: r for r in ended}
        return tuple(by_name[run.name] for run in runs)

    def followed(self, o: Orchestrator, enough: float, patience_s: float) -> list[RunResult]:
        ended, launched_s = [], time.monotonic()
        while o.flights and not self.stop.signal:
            looked_s = time.monotonic()
            ended += o.wait(0.1)
            flights = list(o.flights.values())
            if flights and not any(f.handle.started for f in flights):
                self.deadline_s += time.monotonic() - looked_s
                if looked_s - launched_s > QUEUE_S:
                    o.order_stop(f"it waited in the queue for {duration(QUEUE_S)}")
            began_s = min((f.started_s for f in flights), default=looked_s)
            done = all(f.log.step >= enough for f in flights) or looked_s - began_s > patience_s
            if flights and done and self.told_s is None:
                self.tell_to_stop(o)
            self.show(flights, f"preflight: {duration(max(0.0, self.left_s))} left at the most")
        return ended

    def tell_to_stop(self, o: Orchestrator) -> None:
        if self.e.share.device == "cuda" and self.e.share.launcher == "local":
            self.gpus = gpu_states(AWAKE_S)
        self.told_s = time.monotonic()
        o.order_stop(STOPPED_HERE)


def try_out(track: Track) -> Trials:
    """All short runs, in order of worth, as far as the time allowed goes. Raises console.Stopped
    where somebody asked to stop."""
    e, planned = track.e, longest_course(track.e)
    steps = steps_of(e)
    as_run = short_run(e)
    t = Trials(as_run, steps, allowed_s(e), grace_s=grace_s(e))
    t = replace(t, iterations_to_come=sum(p.run.num_iterations for p in planned))
    first = e.study.baseline()
    t = replace(t, baseline=in_all_slots(track, as_run, first, steps))
    log_bytes, cache_bytes = bytes_written(track.folder)
    t = replace(t, log_bytes=log_bytes, cache_bytes=cache_bytes)
    dearest = dearest_of(e, planned)
    if dearest and trained(t.baseline):
        t = stopped_in_the_middle(track, t, dearest)
    elif t.baseline and "memory" in t.baseline[0].reason:
        t = replace(t, smaller=smaller_pass(track, as_run, dearest or first, steps))
    if is_one_run_on_many_gpus(e) and trained(t.baseline):
        t = replace(t, ends=first_and_last_alone(track, first))
    if track.stop.signal:
        raise console.Stopped(signal.Signals[track.stop.signal])
    return t


def trained(results: Sequence[RunResult]) -> bool:
    return bool(results) and all(r.status == "ok" for r in results)


def grace_s(e: Experiment) -> float:
    """That the end of a run may take; Slurm's own part of it takes as long again."""
    return (GRACE_S + MARGIN_S) * (5 if e.share.launcher == "slurm" else 1)


def in_all_slots(
    track: Track, e: Experiment, arm: Arm, length: int,
    enough: float = math.inf, patience_s: float = math.inf,
) -> tuple[RunResult, ...]:  # fmt: skip
    """One run in each slot: packed runs share caches, memory and disk. On a cluster two will do."""
    slots = range(min(e.share.parallel_runs, 2) if e.share.paid_each else e.share.parallel_runs)
    runs = [RunConfig(0, arm, slot, 42 + slot, length) for slot in slots]
    return track.side_by_side(e, runs, slots, enough, patience_s)


def stopped_in_the_middle(track: Track, t: Trials, arm: Arm) -> Trials:
    """The dearest arm at full length, told to stop. With fewer sequences a pass where its memory
    is too small; and where it logs no step so soon, once more for a few steps only."""
    e, length = t.experiment, max(track.e.full_iterations, t.steps)
    patience_s = 2 + 1.5 * max(r.wall_s for r in t.baseline)
    results = in_all_slots(track, e, arm, length, t.steps, patience_s)
    t = replace(t, dearest=results, gpus=track.gpus)
    if track.told_s is not None:
        stop_s = time.monotonic() - track.told_s
        left = 0 if e.share.launcher == "slurm" else len(watcher.marked(track.folder))
        t = replace(t, stop_s=stop_s, left=left)
        if any(r.status != "ok" and step_s(r) is None for r in results):
            t = replace(t, dearest=in_all_slots(track, e, arm, t.steps))
        return t
    if any("memory" in r.reason for r in results):
        return replace(t, smaller=smaller_pass(track, e, arm, length))
    return t


def smaller_pass(track: Track, e: Experiment, arm: Arm, length: int) -> int | None:
    """The most sequences a pass, halved and halved again, with which an arm trains. None on a CPU,
    with another trainer, where none was found, and where the time was up."""
    if e.profile.scale is None:
        return None
    share = e.profile.scale.batch_size // e.share.processes
    size = min(e.profile.scale.device_batch_size, share)
    while e.share.device == "cuda" and size > 1:
        size = max(n for n in range(1, size // 2 + 1) if share % n == 0)
        smaller = with_scale(e, device_batch_size=size)
        results = in_all_slots(track, smaller, arm, length, steps_of(e))
        if results and not any("memory" in r.reason for r in results):
            return size if all(r.curve for r in results) else None
        if not results:
            return None
    return None


def is_one_run_on_many_gpus(e: Experiment) -> bool:
    share = e.share
    one = share.parallel_runs == 1 and share.processes > 1
    return one and share.device == "cuda" and share.launcher == "local"


def first_and_last_alone(track: Track, arm: Arm) -> tuple[RunResult, ...]:
    """The same run on the first GPU alone and on the last, side by side."""
    share = track.e.share
    alone = replace(track.e, share=replace(share, processes=1, parallel_runs=share.processes))
    runs = [RunConfig(0, arm, k, 42, steps_of(alone)) for k in range(2)]
    return track.side_by_side(short_run(alone), runs, (0, share.processes - 1))


def bytes_written(folder: Path) -> tuple[int, int]:
    """(bytes of one run's logs, bytes of what torch compiled)."""
    logs = [
        path.stat().st_size
        for name in ("output.log", "train_log.txt")
        for path in sorted(folder.glob(f"batch_1/*/run_0/{name}"))
    ]
    cache = [p.stat().st_size for p in (folder / "compile_cache").rglob("*") if p.is_file()]
    return sum(logs), sum(cache)
