"""Is this machine fit for the runs to come?  A table of checks: what was found, and the remedy.

Pure: `Survey` is what was seen before any run, `Trials` what short runs told. Each check makes of
them one line that passes, warns or fails. A line that fails has the exit code that it asks for; one
of the first table keeps the short runs from being started.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ablation.cli import exit_codes
from ablation.execute.observed import Survey, Trials
from ablation.plan.costs import Costs
from ablation.runs.run import RunConfig, RunResult, duration
from ablation.study.experiment import Experiment, FirstCosts, with_scale

# ---------------------------------------------------------------------------------------------
# Lines

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What a check says."""

    level: str
    value: str
    remedy: str = ""
    code: int = exit_codes.DONE  # of the program, for one that fails


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    level: str
    value: str
    remedy: str
    code: int


def passed(value: str) -> Finding:
    return Finding(PASS, value)


def warned(value: str, remedy: str) -> Finding:
    return Finding(WARN, value, remedy)


def failed(value: str, remedy: str, code: int = exit_codes.REFUSED) -> Finding:
    return Finding(FAIL, value, remedy, code)


def refused(fault: str, code: int = exit_codes.REFUSED) -> Finding:
    """A refusal that was put into words already: what was seen; what to do about it."""
    value, _, remedy = fault.partition("; ")
    return failed(value, remedy, code)


def lines_of(checks: dict[str, Callable[..., Finding]], *found) -> list[Line]:
    return [Line(name, **vars(check(*found))) for name, check in checks.items()]


def exit_code(lines: Iterable[Line]) -> int:
    """A machine or a trainer that fails outweighs runs that do, and these what is known before."""
    return max((line.code for line in lines), default=exit_codes.DONE)


# ---------------------------------------------------------------------------------------------
# How short a short run is

ALLOWED_S = {"cpu": 30.0, "gpu": 180.0}  # of a profile for CPUs, for GPUs: the whole preflight
MOST_STEPS, LEAST_STEPS = 20, 2


def scale(e: Experiment) -> str:
    return "gpu" if e.profile.gpus else "cpu"


def allowed_s(e: Experiment) -> float:
    return ALLOWED_S[scale(e)]


def steps_of(e: Experiment) -> int:
    """So many that they take a fiftieth of the time allowed, by the prior; an even number."""
    step_s = Costs(prior(e)).prior(RunConfig(0, e.study.baseline(), 0, 0, 1))[0]
    fit = int(allowed_s(e) / 50 / step_s)
    return min(max(fit, LEAST_STEPS), MOST_STEPS) // 2 * 2


def short_run(e: Experiment) -> Experiment:
    """The experiment as short runs are made of it: our own trainer validates half way, too."""
    if e.profile.scale is None:
        return e
    return with_scale(e, val_loss_every=steps_of(e) // 2)


def prior(e: Experiment) -> Experiment:
    """The same before anything was measured."""
    return replace(e, first_costs=FirstCosts())


# ---------------------------------------------------------------------------------------------
# Before any run. Each check takes the experiment and the survey.

BUSY = 0.3  # of the cores, in use by others: times measured then are not a quiet machine's
ROOM_MIB = 1024  # of a GPU's memory in use: more than a display and a driver take
CLOCK_OFF_S = 5.0
TOO_SLOW = 2.0  # times the time allowed
ELSEWHERE = "not asked: on Slurm the nodes have them, this host need not"
LOOK_THERE = "the short runs tell whether they train; for the rest, srun nvidia-smi on such a node"
ON_A_CPU = "not asked on a CPU"
UNTOLD = "not told by nvidia-smi"


def machine(e: Experiment, s: Survey) -> Finding:
    runs = f"{e.share.parallel_runs} run(s) at a time, {e.share.processes} process(es) each"
    value = f"{s.host}, {s.processor}, {e.share.cores} core(s), {s.busy:.1f} busy; {runs}"
    if e.share.device == "cpu" and is_busy(e, s):
        return warned(value, "end what else computes here, or its times are measured, too")
    return passed(value)


def is_busy(e: Experiment, s: Survey) -> bool:
    """Whether others compute where the runs would."""
    return e.share.launcher == "local" and s.busy > BUSY * e.share.cores


def gpus(e: Experiment, s: Survey) -> Finding:
    if e.share.device == "cpu":
        meant = f" (the profile {e.profile.name} is for {e.profile.machine})" * bool(e.profile.gpus)
        return passed(f"none is used{meant}")
    if e.share.launcher == "slurm":
        return warned("those of the nodes were not looked at", LOOK_THERE)
    needed, names = e.share.processes * e.share.parallel_runs, [gpu.name for gpu in s.gpus]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    if not s.gpus_counted:
        return failed(s.gpu_fault, "mend that, or give --num_gpus N (0: the CPU)")
    if not s.gpus:
        why = s.gpu_fault or "nvidia-smi tells nothing of them"
        remedy = "see nvidia-smi by hand; the short runs say whether they train"
        return warned(f"{needed} asked for: {why}", remedy)
    if len({*names[:needed]}) > 1:
        remedy = "runs wait for the slowest: choose like ones with CUDA_VISIBLE_DEVICES"
        return warned(kinds, remedy)
    return passed(f"{kinds}, {needed} used")


def gpu_memory(e: Experiment, s: Survey) -> Finding:
    if why := not_asked(e):
        return passed(why)
    known = [
        (gpu.total_mib - gpu.used_mib, gpu.used_mib, gpu.total_mib, gpu.uuid)
        for gpu in s.gpus
        if gpu.total_mib is not None and gpu.used_mib is not None
    ]
    if not known:
        return passed(UNTOLD)
    free_mib, used_mib, total_mib, uuid = min(known)
    free = f"{free_mib / 1024:.1f} of {total_mib / 1024:.1f} GiB"
    if used_mib > ROOM_MIB:
        remedy = "end what holds it (nvidia-smi lists it), or leave this GPU out"
        return warned(f"{free} free on {uuid}: something holds the rest", remedy)
    return passed(f"{free} free on the fullest")


def other_processes(e: Experiment, s: Survey) -> Finding:
    if why := not_asked(e):
        return passed(why)
    if not s.gpus:
        return passed(UNTOLD)
    held = [f"{other} on {g.uuid}" for g in s.gpus for other in g.others]
    if held:
        remedy = "wait for them, end them if they are yours, or name others: CUDA_VISIBLE_DEVICES"
        return failed(f"in use by somebody else: {'; '.join(held)}", remedy)
    return passed("none on these GPUs")


def not_asked(e: Experiment) -> str:
    """Why nothing is asked of GPUs; empty where it is."""
    if e.share.launcher == "slurm":
        return ELSEWHERE
    return ON_A_CPU if e.share.device == "cpu" else ""


def profile(e: Experiment, s: Survey) -> Finding:
    """Whether the machine is of the kind that the profile is for, as far as the prior tells."""
    steps, of_short_run = steps_of(e), Costs(prior(short_run(e)))
    expected_s = of_short_run.wall_s(RunConfig(0, e.study.baseline(), 0, 0, steps))
    value = f"{e.profile.name}: {steps} steps and their validations take {duration(expected_s)}"
    if expected_s > TOO_SLOW * allowed_s(e):
        remedy = f"it is for {e.profile.machine}: rent that, or give a smaller --profile"
        return failed(f"{value} on this {'CPU' if e.share.device == 'cpu' else 'share'}", remedy)
    return passed(f"{value}, by its prior")


def trainer(e: Experiment, s: Survey) -> Finding:
    if s.trainer_fault:
        return refused(s.trainer_fault)
    own = "is asked for every arm before a registration" if s.has_check else "is not known to it"
    return passed(f"{s.trainer}; --check {own}, here the short runs tell")


def launcher(e: Experiment, s: Survey) -> Finding:
    if s.launcher_fault:
        return refused(s.launcher_fault)
    return passed(e.share.launcher)


def data(e: Experiment, s: Survey) -> Finding:
    if s.trainer_fault:
        return passed("not asked: the trainer comes first")
    if s.data is None:
        return refused(s.data_fault)
    if s.data.damaged:
        return failed(s.data.damaged, "prepare it again: data/prepare.py")
    return passed(f"{s.data.words}; {s.data.checked}")


def disk(e: Experiment, s: Survey) -> Finding:
    if s.disk is None:
        return refused(s.disk_fault)
    return passed(f"{s.disk.place} can be written, {size(s.disk.free_bytes)} free")


def clock(e: Experiment, s: Survey) -> Finding:
    if s.disk is None:
        return passed("not asked: nothing can be written")
    off_s = s.disk.clock_off_s
    if abs(off_s) > CLOCK_OFF_S:
        value = f"the disk's clock is {off_s:+.1f} s off this host's"
        return warned(value, "set both by NTP: whether an orchestrator lives is told by file times")
    return passed(f"the disk's clock and this host's agree to {abs(off_s):.1f} s")


def versions(e: Experiment, s: Survey) -> Finding:
    found, pinned = s.versions or {}, s.pinned or {}
    value = ", ".join(f"{name} {version}" for name, version in found.items())
    others = [
        f"{name} {pinned[name]}"
        for name, version in found.items()
        if name in pinned and version.partition("+")[0] != pinned[name]
    ]
    if others:
        remedy = f"requirements.txt has {', '.join(others)}; losses depend on the version"
        return warned(value, f"{remedy}: keep to one throughout")
    return passed(value)


BEFORE: dict[str, Callable[[Experiment, Survey], Finding]] = {
    "machine": machine,
    "GPUs": gpus,
    "GPU memory": gpu_memory,
    "other processes": other_processes,
    "versions": versions,
    "profile": profile,
    "trainer": trainer,
    "launcher": launcher,
    "data": data,
    "disk": disk,
    "clock": clock,
}


# ---------------------------------------------------------------------------------------------
# What short runs measured


def step_s(r: RunResult) -> float | None:
    """Seconds of a step, of the second half of a run, in which nothing is compiled any more; of all
    of it where only its end was logged. None for one that logged no step."""
    points = [(0, 0.0), *((step, ms) for step, _, ms in r.curve if step > 0)]
    if len(points) < 2:
        return None
    (first, before_ms), (last, after_ms) = points[-2:]
    return max(1e-9, (after_ms - before_ms) / (last - first) / 1000)


def measured_step_s(results: Sequence[RunResult]) -> float | None:
    """The median of runs side by side."""
    found = [seconds for r in results if (seconds := step_s(r)) is not None]
    return statistics.median(found) if found else None


def prior_step_s(e: Experiment, r: RunResult) -> float:
    return Costs(prior(e)).prior(r.run)[0] / r.run.num_iterations


def rest_s(r: RunResult) -> float:
    """Seconds of start-up, compilation and validation: what a run took beside its steps."""
    return max(0.0, r.wall_s - (step_s(r) or 0.0) * r.run.num_iterations)


def first_costs(t: Trials) -> FirstCosts | None:
    """The short runs as multiples of the profile's prior; None where the baseline did not train."""
    trained = [r for r in t.baseline if r.status == "ok"]
    if not trained:
        return None
    train = [
        measured_s / prior_step_s(t.experiment, r)
        for r in (*trained, *t.dearest)
        if (measured_s := step_s(r)) is not None
    ]
    rest = [rest_s(r) / Costs(t.experiment).prior(r.run)[1] for r in trained]
    return FirstCosts(*(within(statistics.median(ratios)) for ratios in (train, rest)))


def within(ratio: float) -> float:
    """A ratio that can be registered."""
    return min(max(ratio, 1e-3), 1e3)


# ---------------------------------------------------------------------------------------------
# After short runs. Each check takes the experiment to come, the survey and the trials.

OFF = 0.10  # of the prior: more is said
TO_HANG = 2.0  # times the grace: by then every process was sent SIGKILL, by whoever was left to
STOPPED_HERE = "the preflight stopped it"
# of the faster; chosen: a card that throttles loses more, and cores are never shared so evenly
UNEVEN, VERY_UNEVEN = 0.03, 0.15
LEAST_SHARED = 0.7  # of the work of so many GPUs, that they do together
RESERVE = 0.9  # of a GPU's memory: fragments and NCCL take the rest
REFUSALS = {"refused": exit_codes.FAULT, "interrupted": exit_codes.FAULT}
LOG_OF_IT = "these are the trainer's own words: mend it; --dry_run prints its commands"
SKIPPED = "not asked: the baseline did not train"


def too_slow(e: Experiment, s: Survey, value: str, remedy: str) -> Finding:
    """A part of the machine that by the clock is not fit. Where others compute, a warning: what
    was measured is their time, too, and a busy machine is not a broken one."""
    if is_busy(e, s):
        return warned(value, f"{remedy}; or others' work slows it: again when it is quiet")
    return failed(value, remedy, exit_codes.FAULT)


def of_runs(results: Sequence[RunResult], t: Trials) -> Finding:
    """What became of the short runs of an arm."""
    if not results:
        return warned("not started: the time was up", LATER)
    bad = [r for r in results if not (r.status == "ok" or r.reason.startswith(STOPPED_HERE))]
    arm, several = results[0].run.arm.name, f" ({len(results)} side by side)" * (len(results) > 1)
    if not bad:
        took = duration(max(r.wall_s for r in results))
        return passed(f"{arm}{several}: {min(r.steps_done for r in results)} steps in {took}")
    worst = bad[0]
    value = f"{arm}{several}: {worst.in_words()}"
    if worst.status == "timeout" and ran_out_of_time(worst, t):
        return warned(value, LATER)
    return failed(value, remedy_of(worst, t), REFUSALS.get(worst.status, exit_codes.RUNS_FAILED))


LATER = "the machine is slower than the time allowed for this: run it again when it is quiet"


def ran_out_of_time(r: RunResult, t: Trials) -> bool:
    """It had not even twice the time that the baseline took, so it need not hang."""
    baseline_s = max((b.wall_s for b in t.baseline if b.status == "ok"), default=0.0)
    return r.wall_s < 2 * baseline_s


def remedy_of(r: RunResult, t: Trials) -> str:
    if "memory" in r.reason:
        fits = f"give --device_batch_size {t.smaller}, with which it trained"
        return fits if t.smaller else "take a smaller --profile, or fewer runs side by side"
    if r.status == "timeout":
        if r.steps_done:
            return "it trains, but too slowly: again when nothing else runs, or a smaller --profile"
        return "it hangs, or this machine is too slow for the profile: take a smaller --profile"
    if r.status == "interrupted":
        return "the launcher's own words: mend --slurm_args, or the machine"
    return LOG_OF_IT


def baseline(e: Experiment, s: Survey, t: Trials) -> Finding:
    return of_runs(t.baseline, t)


def dearest_arm(e: Experiment, s: Survey, t: Trials) -> Finding:
    if not any(r.status == "ok" for r in t.baseline):
        return passed(SKIPPED)
    return of_runs(t.dearest, t)


def step_time(e: Experiment, s: Survey, t: Trials) -> Finding:
    """The step times of both arms against the profile's prior."""
    parts, worst = [], 0.0
    for results in (t.baseline, t.dearest):
        if (seconds := measured_step_s(results)) is not None:
            expected = prior_step_s(t.experiment, results[0])
            parts.append(f"{results[0].run.arm.name} {against(seconds, expected)}")
            worst = max(worst, seconds / expected - 1)
    if not parts:
        return passed("not asked: no step was logged")
    if worst > OFF:
        slower = "the forecast below goes by what was measured; --preflight_file registers it"
        return warned("; ".join(parts), slower)
    return passed("; ".join(parts))


def start_up(e: Experiment, s: Survey, t: Trials) -> Finding:
    trained = [r for r in t.baseline if r.status == "ok"]
    if not trained:
        return passed(SKIPPED)
    seconds = statistics.median(map(rest_s, trained))
    expected = Costs(prior(t.experiment)).prior(trained[0].run)[1]
    return passed(f"start, compilation and validations {against(seconds, expected)}")


def against(seconds: float, expected: float) -> str:
    return f"{short(seconds)}, the prior says {short(expected)} ({seconds / expected - 1:+.0%})"


def short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def reading(e: Experiment, s: Survey, t: Trials) -> Finding:
    """A step's windows from the disk, against the time of a step that waits for them."""
    if s.data is None or s.data.read_s is None:
        return passed("not asked: the shards are in a format of their own")
    step = measured_step_s(t.baseline)
    if step is None:
        return passed(SKIPPED)
    need = s.data.read_s * e.share.parallel_runs / step
    value = f"a step's windows in {short(s.data.read_s)}, {need:.1%} of a step"
    if need > 1:
        return too_slow(e, s, value, "copy the shards to a local disk: --data_dir DIR")
    if need > 0.5:
        return warned(value, "copy the shards to a local disk, or steps may wait: --data_dir DIR")
    return passed(value)


def memory(e: Experiment, s: Survey, t: Trials) -> Finding:
    """Peak memory, and how many sequences a pass may have."""
    peaks = [r.peak_memory_mib for r in t.baseline if r.peak_memory_mib]
    peak = f"peak {max(peaks):,.0f} MiB a process, by the baseline's word; " if peaks else ""
    if e.profile.scale is None:
        return passed(f"{peak}its batch is the trainer's own affair")
    if e.share.device == "cpu":
        return passed(f"{peak}the largest --device_batch_size: {ON_A_CPU}")
    if t.smaller:
        remedy = f"give --device_batch_size {t.smaller}"
        return warned(
            f"{e.profile.own_scale.device_batch_size} sequences a pass do not fit", remedy
        )
    idle = {gpu.uuid: gpu.used_mib or 0.0 for gpu in s.gpus}
    known = [
        (gpu.used_mib / gpu.total_mib, gpu.used_mib, gpu.total_mib, idle.get(gpu.uuid, 0.0))
        for gpu in t.gpus
        if gpu.used_mib and gpu.total_mib and gpu.used_mib > idle.get(gpu.uuid, 0.0)
    ]
    if not known:
        return passed(f"{peak}the GPU's own word is not known")
    _, used_mib, total_mib, idle_mib = max(known)  # of the fullest
    own_mib = used_mib - idle_mib
    share = e.profile.own_scale.batch_size // e.share.processes
    ran = min(e.profile.own_scale.device_batch_size, share)
    most = largest_pass(share, ran, own_mib, RESERVE * total_mib - idle_mib)
    used = f"{used_mib / 1024:.1f} of {total_mib / 1024:.1f} GiB in use"
    used += f", {own_mib / 1024:.1f} by the run,"
    by = "" if most == ran else ", reckoned from that in proportion"
    return passed(f"{peak}{used} at {ran} sequences a pass; the largest that fits: {most}{by}")


def largest_pass(share: int, ran: int, own_mib: float, room_mib: float) -> int:
    """The most sequences a pass that divide a process's share and should fit: what a run takes
    grows at most in proportion to them. room_mib: what is free without it, less a reserve."""
    fits = [n for n in range(ran, share + 1) if share % n == 0 and own_mib * n / ran <= room_mib]
    return max(fits, default=ran)


def evenness(e: Experiment, s: Survey, t: Trials) -> Finding:
    """The first against the last: of runs side by side, or of single GPUs."""
    pair = t.ends or t.dearest or t.baseline
    if e.share.processes * e.share.parallel_runs == 1:
        return passed("not asked: one process in all")
    ends = (pair[0], pair[-1]) if len(pair) > 1 else ()
    times = [measured_s for r in ends if (measured_s := step_s(r)) is not None]
    if len(times) < 2:
        return passed("not measured: no two of them trained alone in the time allowed")
    what = "the first and the last GPU" if t.ends else "the first and the last run side by side"
    apart = max(times) / min(times) - 1
    value = f"{what}: {short(times[0])} and {short(times[1])} a step, {apart:.1%} apart"
    on_gpus = e.share.device == "cuda"
    if apart > VERY_UNEVEN and on_gpus:
        return too_slow(e, s, value, "one card is slow: see nvidia-smi -q; leave it out")
    if apart > (UNEVEN if on_gpus else VERY_UNEVEN):
        waits = "every step waits for the slowest" if t.ends else "they share unevenly"
        return warned(value, f"see what else runs there: {waits}")
    return passed(value)


def clocks(e: Experiment, s: Survey, t: Trials) -> Finding:
    if why := not_asked(e):
        return passed(why)
    known = [gpu for gpu in t.gpus if gpu.clock_mhz]
    if not known:
        return passed("nvidia-smi did not tell them while a run trained")
    slowest = min(known, key=lambda gpu: gpu.clock_mhz or 0.0)
    value = f"{slowest.clock_mhz:.0f} MHz at the least"
    value += f" of {slowest.most_mhz:.0f}" if slowest.most_mhz else ""
    value += f", {max(g.celsius or 0 for g in known):.0f} C at the most, in training"
    if held := [f"{g.uuid}: {', '.join(g.slowed)}" for g in known if g.slowed]:
        return warned(f"{value}; {'; '.join(held)}", "see to cooling and power before paying")
    return passed(value)


def network(e: Experiment, s: Survey, t: Trials) -> Finding:
    """What the processes of a run lose by talking: against the same work on one GPU."""
    n = e.share.processes
    if n == 1:
        return passed("not asked: a run is one process")
    together, alone = measured_step_s(t.baseline), measured_step_s(t.ends)
    if together is None:
        return passed(SKIPPED)
    if alone is None:
        return passed(f"{n} processes of a run trained together; how well was not asked")
    shared = alone / (n * together)
    value = f"{n} GPUs do the work of {n * shared:.1f}"
    if shared < LEAST_SHARED:
        remedy = "see nvidia-smi topo -m, and NCCL_DEBUG=INFO for the way that NCCL took"
        return warned(value, remedy)
    return passed(value)


def stop(e: Experiment, s: Survey, t: Trials) -> Finding:
    if t.stop_s is None:
        return passed("not asked: no run was in flight when it would have been told to stop")
    value = f"{t.stop_s:.1f} s after the order, {t.grace_s:.0f} s allowed"
    if t.left or t.stop_s > TO_HANG * t.grace_s:
        value += f"; {t.left} process(es) left" * bool(t.left)
        return failed(value, "see what its processes wait for", exit_codes.FAULT)
    if t.stop_s > t.grace_s:
        return warned(value, "it ended late: see what its processes wait for, or what else runs")
    return passed(value)


def space(e: Experiment, s: Survey, t: Trials) -> Finding:
    """The logs of all runs to come, by those of the baseline, and what torch compiles."""
    if s.disk is None or not t.log_bytes:
        return passed("not asked: no log was written")
    needed = t.log_bytes / t.steps * t.iterations_to_come + 2 * t.cache_bytes  # chosen: twice
    value = f"{size(needed)} for logs and caches of all runs, {size(s.disk.free_bytes)} free"
    remedy = f"make room in {s.disk.place}, or give another --output_dir"
    if needed > s.disk.free_bytes:
        return failed(value, remedy)
    return warned(value, remedy) if 3 * needed > s.disk.free_bytes else passed(value)


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


AFTER: dict[str, Callable[[Experiment, Survey, Trials], Finding]] = {
    "baseline": baseline,
    "dearest arm": dearest_arm,
    "step time": step_time,
    "start-up": start_up,
    "reading": reading,
    "memory": memory,
    "evenness": evenness,
    "clocks": clocks,
    "network": network,
    "stop": stop,
    "space": space,
}
