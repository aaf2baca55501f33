"""What is a decision, and how is it said?  What the plans, the report and the screen share.

Pure functions from the results of a stage to a `Decision` and its text. Everywhere, improvement =
mean val_loss(baseline) - mean val_loss(arm) in nats/token: positive is good.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ablation import stats
from ablation.runs.run import STATUSES, Arm, RunResult
from ablation.study.overrides import Overrides
from ablation.study.study import Metric


@dataclass(frozen=True)
class Rule:
    """One inequality: it holds when the quantity lies strictly (or not) beyond the threshold."""

    quantity: str
    sign: str  # ">", ">=" or "<"
    threshold: float
    unit: str = ""

    def holds(self, value: float) -> bool:
        return {
            ">": value > self.threshold,
            ">=": value >= self.threshold,
            "<": value < self.threshold,
        }[self.sign]

    def __str__(self) -> str:
        scale = 100 if self.unit == "%" else 1
        return f"{self.quantity} {self.sign} {self.threshold * scale:g} {self.unit}".rstrip()


# ---------------------------------------------------------------------------------------------
# Decisions

PROCEED, STOP, INCONCLUSIVE, FINAL = "PROCEED", "STOP", "INCONCLUSIVE", "FINAL"


@dataclass(frozen=True)
class Decision:
    """What a stage's results say about the next step."""

    stage: int
    verdict: str  # PROCEED, STOP, INCONCLUSIVE, or FINAL after the last stage
    title: str  # one line: what is decided
    because: tuple[str, ...]  # the lines under it
    facts: tuple[str, ...]  # the stage's results, as lines
    rule: str
    numbers: dict  # the same results for programs, at full precision
    chosen: Arm | None = None  # the configuration that the following stages use
    missing: tuple[str, ...] = ()  # arms of which there is no result

    @property
    def lets_pass(self) -> bool:
        return self.verdict in (PROCEED, FINAL)


@final  # so never false: `group and group.arm` is an arm, or None
@dataclass(frozen=True)
class Group:
    """All runs of one configuration within a stage."""

    names: tuple[str, ...]
    arm: Arm
    losses: tuple[float, ...]
    diverged: int

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def sd(self) -> float | None:
        """The standard deviation between runs; None of a single one."""
        return stats.mean_sd(self.losses)[1]

    @property
    def usable(self) -> bool:
        """A configuration that diverged is worse than any loss, not a smaller sample."""
        return bool(self.losses) and not self.diverged


def groups_of(results: Sequence[RunResult]) -> dict[tuple, Group]:
    """Results by configuration: an arm and its repeat are one, under the first one's name."""
    members: dict[tuple, list[RunResult]] = {}
    for result in results:
        members.setdefault(result.run.arm.configuration, []).append(result)
    return {
        configuration: Group(
            names=tuple(dict.fromkeys(r.run.arm.name for r in runs)),
            arm=runs[0].run.arm,
            losses=tuple(r.final_loss for r in runs if r.status == "ok"),
            diverged=sum(r.status == "diverged" for r in runs),
        )
        for configuration, runs in members.items()
    }


def missing_arms(results: Sequence[RunResult], expected: Sequence[str]) -> tuple[str, ...]:
    """The arms expected, each once, that have neither a loss nor a divergence to show."""
    found = {r.run.arm.name for r in results if r.has_outcome}
    return tuple(dict.fromkeys(name for name in expected if name not in found))


def on_shared_seed(results: Sequence[RunResult]) -> list[RunResult]:
    """The results on the stage's first seed, which all its arms share.

    A repeat on another seed shows how much runs differ; in a mean it would make its arm look
    better or worse by the seed alone, where seeds matter more than arms.
    """
    first = min((r.run.seed for r in results), default=None)
    return [r for r in results if r.run.seed == first or r.status == "diverged"]


def baseline_losses(results: Sequence[RunResult]) -> dict[int, float]:
    """Final val loss of the baseline, by seed, of the runs that finished."""
    return {r.run.seed: r.final_loss for r in results if r.status == "ok" and r.run.arm.is_baseline}


def counted(results: Sequence[RunResult]) -> str:
    """How many there are of each status, in words. Those that are ok have finished."""
    count = Counter(r.status for r in results)
    return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])


def sides(results: Sequence[RunResult]) -> tuple[Group | None, list[Group]]:
    """The two sides of a comparison: the baseline, None without any run of it; and every other
    configuration, in the order of the results."""
    groups = groups_of(results)
    return groups.pop((), None), list(groups.values())


def lowest(groups: Sequence[Group]) -> Group | None:
    """The usable configuration with the lowest mean loss; None where none is usable."""
    return min((g for g in groups if g.usable), key=lambda group: group.mean, default=None)


def relative(improvement: float, baseline: float) -> float | None:
    """An improvement as a share of the baseline's mean loss; None where that is 0."""
    return improvement / abs(baseline) if baseline else None


def percent(share: float | None) -> str:
    return "no share of 0" if share is None else f"{share:+.2%}"


def loss_lines(
    metric: Metric, results: Sequence[RunResult], beside: Mapping[int, float] | None = None,
    of: tuple = (),
) -> tuple[str, ...]:  # fmt: skip
    """A line for each run; with its improvement over another configuration's run of the same seed,
    where there is one. beside: that one's final val loss, by seed; of: that configuration, the
    baseline's if none is said.

    Two runs of one seed start from the same weights and see the same batches. Across seeds, a
    difference would be that of the seeds as much as that of the arms.
    """
    lines = []
    for result in results:
        name = result.run.name
        if result.status != "ok":
            lines.append(f"{name}: {result.status} ({result.reason})")
            continue
        is_other = result.run.arm.configuration != of
        base = (beside or {}).get(result.run.seed) if is_other else None
        improvement = "" if base is None else f" ({base - result.final_loss:+.4f})"
        lines.append(f"{name}: {metric.text(result.final_loss)}{improvement}")
    return tuple(lines)


def arm_lines(metric: Metric, results: Sequence[RunResult]) -> tuple[str, ...]:
    """A line for each run of an arm, with its improvement over the baseline of its seed."""
    arms = [r for r in results if not r.run.arm.is_baseline]
    return loss_lines(metric, arms, baseline_losses(results))


def finished_pairs(results: Sequence[RunResult]) -> list[tuple[float, float]]:
    """Final val losses (baseline, best) of each seed on which both finished, by seed: what a
    difference of means is of, also where other runs diverged."""
    baselines = baseline_losses(results)
    mine = [r for r in results if r.status == "ok" and not r.run.arm.is_baseline]
    best = {r.run.seed: r.final_loss for r in mine}
    return [(baselines[seed], best[seed]) for seed in sorted(baselines.keys() & best.keys())]


def losses_text(metric: Metric, losses: Sequence[float]) -> str:
    return f"{metric.words} {loss_mean(metric, losses)}" if losses else "every run diverged"


def loss_mean(metric: Metric, losses: Sequence[float]) -> str:
    """The mean of losses as the log has them, ± their standard deviation, and n."""
    return mean_text([metric.sign * loss for loss in losses], 4)


def mean_text(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The mean ± the standard deviation between runs, and n, to so many digits."""
    if not values:
        return "unknown"
    mean, sd = stats.mean_sd(values)
    spread = f" ± {sd:.{digits}f} sd" if sd is not None else ""
    return f"{mean:.{digits}f}{spread}{unit} (n = {len(values)})"


def delta_text(metric: Metric, improvement: float | None) -> str:
    return "unknown" if improvement is None else metric.delta(improvement)


def interval(comparison) -> str:
    if comparison.ci_low is None:
        return ""
    return f", 95 % interval {comparison.ci_low:+.4f} to {comparison.ci_high:+.4f}"


def p_text(p: float | None) -> str:
    return "p undefined" if p is None else "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def is_overridden(decision: Decision, overrides: Overrides) -> bool:
    """A person went on all the same, where the decision did not let the plan pass."""
    return not decision.lets_pass and overrides.passes_gate(decision.stage)


# ---------------------------------------------------------------------------------------------
# What a person reads

SIGNS = {PROCEED: "✅", STOP: "🛑", INCONCLUSIVE: "❔", FINAL: "🏁"}


def render(decision: Decision, overridden: bool = False) -> str:
    """The block on screen after a stage."""
    heading = f"STAGE {decision.stage} RESULTS" if decision.stage else "RESULTS"
    lines = [f"📊 {heading}:", *(f"  {fact}" for fact in decision.facts)]
    if decision.missing:
        lines.append(f"  Missing: {', '.join(decision.missing)} (no result; see the failed runs)")
    lines += ["", f"{SIGNS[decision.verdict]} DECISION: {decision.title}"]
    lines += [f"  {line}" for line in decision.because]
    if overridden:
        lines.append("  OVERRIDE: --ignore_gate was given; the plan goes on all the same.")
    return "\n".join(lines)
