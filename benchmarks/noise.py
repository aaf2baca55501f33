"""How much do final losses differ between seeds, and how much of that do two arms share?

    python run_aux.py --experiment baseline,aux_4_8 --runs 12 --profile mini --parallel_runs 2
    python benchmarks/noise.py                    # the newest experiment
    python benchmarks/noise.py experiments/aux_heads_... --baseline baseline --arm aux_4_8

prints, from the seeds on which both arms finished: the sd of each arm's final val loss between
seeds, the sd of the difference within a seed, and the correlation of the two arms, each with a 95 %
interval (sd: chi-square; correlation: Fisher's z, its lower bound one-sided). `Design` in
ablation/study/profiles.py rests on these numbers; they hold for the length that was run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import scipy.stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ablation.folder.registration import newest_experiment
from ablation.folder.standing import standing


def losses_of(exp_dir: Path, *arms: str) -> np.ndarray:
    """Final val losses (seeds, arms) of the seeds on which all of these arms finished."""
    by_arm: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    for r in standing(exp_dir).records.latest().values():
        if r.status == "ok" and r.run.arm.name in by_arm:
            by_arm[r.run.arm.name][r.run.seed] = r.final_loss
    seeds = sorted(set.intersection(*map(set, by_arm.values())))
    if len(seeds) < 4:
        raise SystemExit(f"{exp_dir}: {len(seeds)} seeds with {' and '.join(arms)}; give 4 or more")
    return np.array([[by_arm[arm][seed] for arm in arms] for seed in seeds])


def sd_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(sd, lower, upper) of the 95 % interval for normal values."""
    df, sd = len(values) - 1, values.std(ddof=1)
    low, high = sd * np.sqrt(df / scipy.stats.chi2.ppf([0.975, 0.025], df))
    return sd, low, high


def correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(Pearson's r, its one-sided 95 % lower bound by Fisher's z)."""
    r = np.corrcoef(a, b)[0, 1]
    bound = np.tanh(np.arctanh(r) - scipy.stats.norm.ppf(0.95) / np.sqrt(len(a) - 3))
    return float(r), float(bound)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("exp_dir", type=Path, nargs="?")
    parser.add_argument("--baseline", default="baseline")
    parser.add_argument("--arm", default="aux_4_8")
    args = parser.parse_args(argv)
    losses = losses_of(args.exp_dir or newest_experiment(), args.baseline, args.arm)
    base, arm = losses.T
    rows = {args.baseline: base, args.arm: arm, "difference": base - arm}
    print(f"{len(base)} seeds")
    for name, values in rows.items():
        sd, low, high = sd_interval(values)
        print(f"{name}: mean {values.mean():+.4f}, sd {sd:.4f} ({low:.4f} to {high:.4f})")
    print("correlation within seeds: {:.3f}, at least {:.3f}".format(*correlation(base, arm)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
