"""How often does a test find something in nothing, if it is asked again after each added run?

    python -m benchmarks.repeated_testing          # 200,000 replicates, about 10 s

Prints the share of false positives, where all runs come from one normal distribution and the first
p below the level ends the search. At two-sided .05: a t test of one group (or of the differences of
pairs), and Welch's, of two arms that grow together. At one-sided .01, as communities ask: the same
two again, and by the sequential bounds that a report offers instead.
"""

import argparse
from collections.abc import Mapping

import numpy as np
from scipy.special import stdtr

from ablation.report.rules import FIRST, LAST, rule_named, sequential_bound

LEVEL = 0.05  # two-sided


def moments(losses: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the first n runs of each replicate."""
    return losses[:, :n].mean(axis=1), losses[:, :n].var(axis=1, ddof=1)


def welch_p(baseline: np.ndarray, arm: np.ndarray, n: int) -> np.ndarray:
    """One-sided p that the arm is better."""
    (mean_b, var_b), (mean_a, var_a) = moments(baseline, n), moments(arm, n)
    df = (n - 1) * (var_b + var_a) ** 2 / (var_b**2 + var_a**2)
    return stdtr(df, (mean_a - mean_b) / np.sqrt((var_b + var_a) / n))


def mean_p(losses: np.ndarray, n: int) -> np.ndarray:
    """One-sided p that the mean lies below 0, where it lies."""
    mean, variance = moments(losses, n)
    return stdtr(n - 1, mean / np.sqrt(variance / n))


def false_positives(replicates: int, seed: int) -> Mapping[str, float]:
    rng = np.random.default_rng(seed)
    baseline, arm = rng.standard_normal((2, replicates, LAST))
    ns = range(FIRST, LAST + 1)
    asked = {  # one-sided p at each look, and a rule that asks for it
        "one group": (np.array([mean_p(arm, n) for n in ns]), "mean<0,p<0.01"),
        "Welch": (np.array([welch_p(baseline, arm, n) for n in ns]), "improvement>0,p<0.01"),
    }
    found = {}
    for name, (p, rule) in asked.items():
        form = rule_named(rule).forms[0]
        bounds = np.array([[look.p] for look in sequential_bound(form)])
        found[name] = 2 * np.minimum(p, 1 - p) < LEVEL
        found |= {f"{name}, rule": p < form.level, f"{name}, rule by bounds": p < bounds}
    return {name: float(crossed.any(axis=0).mean()) for name, crossed in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicates", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"asked at {FIRST} to {LAST} runs, {args.replicates:,} replicates, seed {args.seed}")
    for name, share in false_positives(args.replicates, args.seed).items():
        print(f"{name:<26} {share:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
