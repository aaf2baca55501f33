"""What will a run cost?  Measured where possible, else as registered before the first run."""

import math
import statistics
from collections.abc import Sequence
from functools import cached_property

from ablation.runs.run import RunConfig, RunResult
from ablation.study.experiment import Experiment
from ablation.study.profiles import CPU_FLOPS


class Costs:
    """Expected seconds of machine time of a run: measured where possible, else the profile's prior.

    A run of a configuration and length that has been measured costs the median of those. Any other
    costs the prior, with its training part and its remainder (start-up, validation) each scaled by
    the median ratio of measurement to prior over all runs so far; before the first, by the ratios
    that were registered as the experiment's first costs.
    """

    def __init__(self, experiment: Experiment, results: Sequence[RunResult] = ()):
        self.experiment = experiment
        self.done = [r for r in results if r.status == "ok"]

    # Worked out when asked for: a plan makes many of these, and most are of stages that are over.

    @cached_property
    def measured(self) -> dict[tuple, list[float]]:
        """Seconds by the clock, by configuration and length."""
        found: dict[tuple, list[float]] = {}
        for result in self.done:
            found.setdefault(self._key(result.run), []).append(result.wall_s)
        return found

    @cached_property
    def ratios(self) -> tuple[float, float]:
        """Median (training, remainder) as multiples of the prior."""
        first = self.experiment.first_costs
        if not self.done:
            return first.train_ratio, first.rest_ratio
        train, rest = [], []
        for r in self.done:
            prior_train, prior_rest = self.prior(r.run)
            train.append(r.trained_ms / 1000 / prior_train)
            rest.append(max(0.0, r.wall_s - r.trained_ms / 1000) / prior_rest)
        return statistics.median(train), statistics.median(rest)

    @staticmethod
    def _key(run: RunConfig) -> tuple:
        return run.arm.configuration, run.num_iterations

    def prior(self, run: RunConfig) -> tuple[float, float]:
        """(training, remainder) in seconds, before anything was measured."""
        e, profile = self.experiment, self.experiment.profile
        if profile.scale and profile.gpus and e.share.device == "cpu":
            step_s = profile.scale.flops_per_step / (
                CPU_FLOPS * e.share.cores / e.share.parallel_runs
            )
        else:
            step_s = profile.step_s * (profile.gpus / e.share.processes if profile.gpus else 1)
        step_s *= 1 + run.arm.slower
        every = profile.scale.val_loss_every if profile.scale else run.num_iterations
        validations = 1 + math.ceil(run.num_iterations / every)
        slower = step_s / profile.step_s
        val_s = profile.val_s * max(1.0, slower) + 2 * step_s * e.log_grad_norms  # main, and all
        return run.num_iterations * step_s, profile.start_s + validations * val_s

    def __call__(self, run: RunConfig) -> float:
        """Expected machine time, in seconds: that of every node."""
        return self.wall_s(run) * self.experiment.share.nodes

    def wall_s(self, run: RunConfig) -> float:
        """Expected seconds by the clock."""
        if walls := self.measured.get(self._key(run)):
            return statistics.median(walls)
        train, rest = self.prior(run)
        train_ratio, rest_ratio = self.ratios
        return train * train_ratio + rest * rest_ratio
