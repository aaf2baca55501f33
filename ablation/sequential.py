"""Where does a look's bound lie, if one looks more than once?  Group-sequential tests.

Pure functions over numbers, as in `stats`. A test on t takes the bound on z at the same tail.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise


def upper_tail(z: float) -> float:
    """P(Z > z) of the standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def t_critical(z: float, df: float) -> float:
    """Critical value of t with the same upper tail as z: the bound z, at small n. By the lower
    tail, which keeps its digits at large z (to 1e-9 of the tail up to z = 20)."""
    if not df > 0:
        raise ValueError(f"degrees of freedom must be above 0, not {df!r}")
    from scipy.special import stdtrit

    return math.copysign(float(stdtrit(df, upper_tail(abs(z)))), z)


def cubic_spending(t: float, alpha: float) -> float:
    """One-sided alpha spent by information fraction t: alpha t^3, of the power family of Kim and
    DeMets (1987). Between O'Brien and Fleming's, which spends next to nothing on a first look at
    three pairs of nine, and Pocock's, which leaves too little for the last."""
    return alpha * min(1.0, max(0.0, t)) ** 3


NEVER = 8.0  # the bound where nothing is to be spent; chosen: upper_tail(8) is 6e-16
LEAST_ALPHA = 1e-14  # that is spent; chosen: below any level, above what rounding leaves of none
MOST_NODES = 4096  # of the integration; chosen: enough for looks one pair apart at 16,000 pairs


def bounds(ns: Sequence[int], cumulative_alpha: Sequence[float]) -> tuple[float, ...]:
    """One-sided upper bounds on z at looks with information in proportion to ns.

    The probability under the null of having crossed by look k is cumulative_alpha[k]; NEVER where
    nothing is to be spent, also where the level falls below an earlier one. A bound rests on the
    looks so far and on what they spent, never on plans: where n_max is lowered for reasons other
    than the losses, spend by the new fractions from then on, and all of alpha stays right (Lan and
    DeMets 1983). By recursive numerical integration (Armitage, McPherson and Rowe 1969); what was
    computed for the earlier looks is kept.
    """
    if len(ns) != len(cumulative_alpha):
        raise ValueError(f"{len(ns)} looks and {len(cumulative_alpha)} levels: {ns}")
    return _bounds(tuple(ns), tuple(cumulative_alpha))


@lru_cache(maxsize=1 << 13)
def _bounds(ns: tuple[int, ...], cumulative_alpha: tuple[float, ...]) -> tuple[float, ...]:
    if not ns:
        return ()
    if not ns[-1] > (0, *ns)[-2]:
        raise ValueError(f"information must grow from look to look: {ns}")
    if not 0 <= cumulative_alpha[-1] < 1:
        raise ValueError(f"the alpha spent must be in [0, 1): {cumulative_alpha}")
    earlier = _bounds(ns[:-1], cumulative_alpha[:-1])
    spent = max(cumulative_alpha[:-1], default=0.0)
    return (*earlier, _next_bound(ns, earlier, cumulative_alpha[-1] - spent))


def _next_bound(ns: tuple[int, ...], earlier: tuple[float, ...], alpha: float) -> float:
    if alpha < LEAST_ALPHA:
        return NEVER
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    if not earlier:
        return -float(ndtri(alpha))
    grid, mass = _surviving(ns, earlier)
    drift, noise = _step(*ns[-2:])

    def excess(z: float) -> float:
        return float(ndtr((grid * drift - z) / noise) @ mass) - alpha

    return brentq(excess, -NEVER, NEVER, xtol=1e-9) if excess(NEVER) < 0 else NEVER


def _step(before: int, n: int) -> tuple[float, float]:
    """z at n is drift * (z before) + noise * (an independent standard normal)."""
    return math.sqrt(before / n), math.sqrt((n - before) / n)


@lru_cache(maxsize=1 << 13)
def _surviving(ns: tuple[int, ...], crossed_at: tuple[float, ...]):
    """Nodes on z at the last look but one of ns, and on each the probability mass (density times
    Gauss-Legendre weight) of the paths that crossed no bound up to and including that look.

    The last of ns only says how fine a step the nodes must carry. The normal density needs about
    one node per standard deviation; with two, bounds are within 1e-8 of those by many more.
    """
    import numpy as np

    low, high = -NEVER, crossed_at[-1]
    finest = min(_step(*pair)[1] for pair in pairwise(ns[-3:]))
    needed = 2 * (high - low) / finest
    if needed > MOST_NODES:
        raise ValueError(f"looks too close to each other for the integration: {ns[-3:]}")
    nodes, weights = _legendre(1 << max(6, math.ceil(math.log2(needed))))
    grid = low + (high - low) * (nodes + 1) / 2
    if len(crossed_at) == 1:
        density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    else:
        before, mass = _surviving(ns[:-1], crossed_at[:-1])
        drift, noise = _step(*ns[-3:-1])
        steps = (grid[:, None] - before * drift) / noise
        density = np.exp(-(steps**2) / 2) @ mass / (math.sqrt(2 * math.pi) * noise)
    return grid, density * weights * (high - low) / 2


@lru_cache(maxsize=8)
def _legendre(count: int):
    from scipy.special import roots_legendre

    return roots_legendre(count)


@dataclass(frozen=True)
class Family:
    """One test at each of the looks, and the share of alpha that it spends."""

    share: float
    ts: Sequence[float | None]  # improvement / se; None where a look had no such test
    dfs: Sequence[float | None]  # math.inf where t is a z


def repeated_p(ns: Sequence[int], n_maxes: Sequence[int], families: Sequence[Family]) -> float:
    """Repeated p-value: the smallest two-sided alpha at which one of these tests would have crossed
    its bound at one of these looks.

    At each look this is the repeated p-value of Jennison and Turnbull (2000, chapter 9): the level
    at which the sequential interval just reaches zero, with `cubic_spending` at n / n_max of each
    family's share and the bound on z turned into one on t. The smallest over the looks so far is at
    most alpha with probability alpha under the null, whenever one stops (Liu and Anderson 2008);
    that of several families by Bonferroni.

    Resolved to a ten thousandth of itself, from above; 1e-6 stands for that or less.
    """
    fractions = [n / n_max for n, n_max in zip(ns, n_maxes, strict=True)]

    def crossed(alpha: float) -> bool:
        spent = (
            [cubic_spending(f, family.share * alpha / 2) for f in fractions] for family in families
        )
        return any(
            t is not None and df is not None and abs(t) >= t_critical(z, df)
            for family, levels in zip(families, spent, strict=True)
            for z, t, df in zip(bounds(ns, levels), family.ts, family.dfs, strict=True)
        )

    least, most = 1e-6, 1.0
    if not crossed(most):
        return most
    if crossed(least):
        return least
    while most > least * 1.0001:  # the bounds fall as alpha grows
        middle = math.sqrt(least * most)
        least, most = (least, middle) if crossed(middle) else (middle, most)
    return most
