"""Does stage 4 keep its level whatever the noise is like?  Its sequential test alone, simulated.

    python benchmarks/level.py                                        # 40 s of one core
    python benchmarks/level.py --replicates 10000 --seed 1 --json level.json

Counts how often a look of the adaptive plan's stage 4 comes to an error of either kind: a verdict,
improves or harmful, where baseline and arm do not differ; and an equivalence interval that lies
below delta_eq where the improvement is delta_eq. Both have the nominal level .05. By the shape of
the noise, the ratio of the arm's sd to the baseline's, the correlation within a seed, the share w
of pairs and the limit, the most pairs that the budget allows. The rule is that of looks.py, for all
replicates at once; tests/test_level.py holds it to that one. Prints the worst limit of each cell,
with * where it is above .05 + 2 standard errors. --json writes a row for each limit.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ablation import sequential
from ablation.plan.power import standard_error
from ablation.study.profiles import PROFILES

DESIGN = PROFILES["speedrun"].design
LIMITS = range(3, 11)
NOISES = (("normal", 0.5), ("normal", 1.0), ("normal", 2.0), ("t3", 1.0))  # shape, ratio of sds
RHOS = (0.0, 0.3, 0.6, 0.9, 0.98)
SHARES = (0.0, 0.2, 0.5, 0.8)
ERRORS = {"p_verdict": "improves or harmful", "p_equivalent": "no meaningful effect at delta_eq"}

# ---------------------------------------------------------------------------------------------
# The rule, at once for all replicates (rows of an array; its columns are pairs)


def draws(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Noise of sd 1."""
    normal = kind == "normal"
    return rng.standard_normal(shape) if normal else rng.standard_t(3, shape) / np.sqrt(3)


def first_ones(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample variance of the first 1, 2, ... values; no variance of one."""
    n = np.arange(1, x.shape[1] + 1)
    mean = np.cumsum(x, 1) / n
    squares = np.maximum(np.cumsum(x * x, 1) - n * mean**2, 1e-300)
    return mean, squares / np.maximum(n - 1, 1)


@cache
def t_by_df(n: int, z: float) -> tuple[np.ndarray, np.ndarray]:
    """(-1/df, critical t) over the df that Welch's test can have with n runs an arm; between these
    it is next to linear, and looking it up is faster than a quantile for each replicate."""
    dfs = 1 / np.linspace(1 / (n - 1), 1 / (2 * n - 2), 129)
    return -1 / dfs, np.array([sequential.t_critical(z, df) for df in dfs])


def reaches(
    baseline: np.ndarray, arm: np.ndarray, limit: int, share: float, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """(improvement, how far its interval reaches to either side), a column for each look."""
    looks = np.arange(min(DESIGN.first_look, limit), limit + 1)
    mean, of_pairs = first_ones(baseline - arm)
    of_baseline, of_arm = first_ones(baseline)[1], first_ones(arm)[1]
    reach = np.full((len(mean), len(looks)), np.inf)
    for part, is_paired in ((1 - share, False), (share, True)):
        spent = [sequential.cubic_spending(n / limit, part * alpha) for n in looks]
        for k, (n, z) in enumerate(
            zip(looks, sequential.bounds(looks.tolist(), spent), strict=True)
        ):
            if is_paired:
                t, variance = sequential.t_critical(z, n - 1), of_pairs[:, n - 1]
            else:
                b, a = of_baseline[:, n - 1], of_arm[:, n - 1]
                t = np.interp(-(b**2 + a**2) / ((b + a) ** 2 * (n - 1)), *t_by_df(int(n), z))
                variance = b + a
            if part:
                reach[:, k] = np.minimum(reach[:, k], t * np.sqrt(variance / n))
    return mean[:, looks - 1], reach


# ---------------------------------------------------------------------------------------------
# Its errors


def rows_of(replicates: int, seed: int) -> Iterator[dict]:
    """A row for each cell and limit."""
    shape = (replicates, max(LIMITS))
    for number, (kind, ratio) in enumerate(NOISES):
        for rho in RHOS:
            rng = np.random.default_rng([seed, number, round(100 * rho)])
            shared = np.sqrt(rho) * draws(rng, shape, kind)
            baseline, arm = (shared + np.sqrt(1 - rho) * draws(rng, shape, kind) for _ in "ba")
            arm *= ratio
            for share in SHARES:
                for limit in LIMITS:
                    mean, reach = reaches(baseline, arm, limit, share, DESIGN.alpha / 2)
                    _, eq_reach = reaches(baseline, arm, limit, share, DESIGN.alpha)
                    cell = {"noise": kind, "sd_ratio": ratio, "rho": rho, "pairing": share}
                    yield {
                        **cell,
                        "limit": limit,
                        "p_verdict": float((np.abs(mean) > reach).any(1).mean()),
                        "p_equivalent": float((mean + eq_reach < 0).any(1).mean()),
                        "replicates": replicates,
                    }


def table(rows: list[dict], error: str) -> list[str]:
    """The worst limit of each cell."""
    most = DESIGN.alpha + 2 * standard_error(DESIGN.alpha, rows[0]["replicates"])
    lines = [
        f"P({ERRORS[error]}); * more than {most:.4f}; in brackets the limit\n",
        "| noise | sd ratio | w | " + " | ".join(f"rho {rho:g}" for rho in RHOS) + " |",
        "|---" * (3 + len(RHOS)) + "|",
    ]
    for (kind, ratio), w in product(NOISES, SHARES):
        line = [r for r in rows if (r["noise"], r["sd_ratio"], r["pairing"]) == (kind, ratio, w)]
        cells = [max((r for r in line if r["rho"] == rho), key=lambda r: r[error]) for rho in RHOS]
        texts = [f"{c[error]:.3f}{'*' * (c[error] > most)} ({c['limit']})" for c in cells]
        lines.append(f"| {kind} | {ratio:g} | {w:g} | {' | '.join(texts)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--replicates", type=int, default=40_000, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args(argv)
    for name, least in (("replicates", 1), ("seed", 0)):
        if (value := getattr(args, name)) < least:
            print(f"level.py: error: --{name} {value}: give {least} or more", file=sys.stderr)
            return 1
    rows = list(rows_of(args.replicates, args.seed))
    print("\n\n".join("\n".join(table(rows, error)) for error in ERRORS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
