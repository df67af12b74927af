"""The table of optimal signed splits: extreme eigenpairs in, weights and directions out.

A neuron θ is replaced by m copies, ``σ(θ, x) → Σ_i w_i σ(θ + ε δ_i, x)`` with ``Σ w_i = 1``,
``Σ w_i δ_i = 0``, ``‖δ_i‖ ≤ 1`` and ``Σ |w_i| ≤ c``. The loss changes by
``(ε²/2) Σ_i w_i δ_iᵀ S δ_i + O(ε³)``, S the splitting matrix (arXiv 2003.10392). With ``p = (c+1)/2``,
``n = (c−1)/2`` and the extreme eigenpairs (λ−, v−) and (λ+, v+) of S the optimal splits are

| row | weights | displacements | value Σ w δᵀSδ |
|---|---|---|---|
| positive pair (S2D) | ½, ½ | +v−, −v− | λ− |
| negative pair | p, −n | (n/p) v+, v+ | −(n/p) λ+ |
| positive triplet | p/2, p/2, −n | +v−, −v−, 0 | p λ− |
| negative triplet | −n/2, −n/2, p | +v+, −v+, 0 | −n λ+ |
| mixed triplet | p/2, p/2, −n | (n/p) v+ ± √(1−n²/p²) v−, v+ | −(n/p) λ+ + (c/p) λ− |
| quadruplet | p/2, p/2, −n/2, −n/2 | ±v−, ±v+ | p λ− − n λ+ |

The optimum over m copies is the least value of the rows with at most m copies, and 0, which is not to split.
The quadruplet is the best only where λ− < 0 < λ+: otherwise one of its pairs is useless, and a triplet, in
which that pair has collapsed into one copy, does no worse. The rows hold in any metric in which (λ, v) are
the generalised eigenpairs and ‖δ‖ is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.arrays import Float64Array
from growpipe.graph_ops.errors import UsageError

__all__ = ["ROWS", "SCHEMES", "Copy", "OptimalSplit", "Scheme", "best_rows", "exact_rows", "scheme_of"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a channel: its weight w_i and its displacement ``minus · v− + plus · v+``."""

    weight: float
    minus: float
    plus: float


@dataclass(frozen=True, slots=True)
class OptimalSplit:
    """One row of the table.

    Attributes:
        name: how the row is called.
        copies: the number m of copies.
        symmetric: whether the split is unchanged when v− or v+ changes its sign; where it is not, the
            O(ε³) term depends on the sign.
        value: ``(λ−, λ+, c) → Σ w δᵀSδ``; arrays of one shape, inf where the row does not apply.
        offspring: ``c →`` the copies.
    """

    name: str
    copies: int
    symmetric: bool
    value: Callable[[Float64Array, Float64Array, float], Float64Array]
    offspring: Callable[[float], tuple[Copy, ...]]


def _p(c: float) -> float:
    return (c + 1.0) / 2.0


def _n(c: float) -> float:
    return (c - 1.0) / 2.0


def _signed(values: Float64Array, c: float) -> Float64Array:
    # With c = 1 there are no negative weights: the row is the identity or a positive split with fewer copies.
    return values if c > 1.0 else np.full_like(values, np.inf)


def _positive_pair(_c: float) -> tuple[Copy, ...]:
    return (Copy(0.5, 1.0, 0.0), Copy(0.5, -1.0, 0.0))


def _negative_pair(c: float) -> tuple[Copy, ...]:
    p, n = _p(c), _n(c)
    return (Copy(p, 0.0, n / p), Copy(-n, 0.0, 1.0))


def _positive_triplet(c: float) -> tuple[Copy, ...]:
    p, n = _p(c), _n(c)
    return (Copy(p / 2, 1.0, 0.0), Copy(p / 2, -1.0, 0.0), Copy(-n, 0.0, 0.0))


def _negative_triplet(c: float) -> tuple[Copy, ...]:
    p, n = _p(c), _n(c)
    return (Copy(p, 0.0, 0.0), Copy(-n / 2, 0.0, 1.0), Copy(-n / 2, 0.0, -1.0))


def _mixed_triplet(c: float) -> tuple[Copy, ...]:
    p, n = _p(c), _n(c)
    along, across = n / p, math.sqrt(1.0 - (n / p) ** 2)
    return (Copy(p / 2, across, along), Copy(p / 2, -across, along), Copy(-n, 0.0, 1.0))


def _quadruplet(c: float) -> tuple[Copy, ...]:
    p, n = _p(c), _n(c)
    return (
        Copy(p / 2, 1.0, 0.0),
        Copy(p / 2, -1.0, 0.0),
        Copy(-n / 2, 0.0, 1.0),
        Copy(-n / 2, 0.0, -1.0),
    )


ROWS: tuple[OptimalSplit, ...] = (
    OptimalSplit("positive pair", 2, True, lambda low, high, c: low + 0.0 * high, _positive_pair),
    OptimalSplit(
        "negative pair",
        2,
        False,
        lambda low, high, c: _signed(-(_n(c) / _p(c)) * high + 0.0 * low, c),
        _negative_pair,
    ),
    OptimalSplit(
        "positive triplet",
        3,
        True,
        lambda low, high, c: _signed(_p(c) * low + 0.0 * high, c),
        _positive_triplet,
    ),
    OptimalSplit(
        "negative triplet",
        3,
        True,
        lambda low, high, c: _signed(-_n(c) * high + 0.0 * low, c),
        _negative_triplet,
    ),
    OptimalSplit(
        "mixed triplet",
        3,
        False,
        lambda low, high, c: _signed(-(_n(c) / _p(c)) * high + (c / _p(c)) * low, c),
        _mixed_triplet,
    ),
    OptimalSplit(
        "quadruplet",
        4,
        True,
        lambda low, high, c: _signed(_p(c) * low - _n(c) * high, c),
        _quadruplet,
    ),
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """The rows a plan may use: at most ``max_copies`` copies, and ``c`` at least 1.

    Attributes:
        name: ``"s2d"``, ``"m2"``, ``"m3"`` or ``"m4"``.
        max_copies: 2, 3 or 4.
        c: the bound on Σ|w_i|; 1 leaves positive splits only.
    """

    name: str
    max_copies: int
    c: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.c) and self.c >= 1.0):
            raise UsageError(f"c bounds the sum of |w_i| and is at least 1, not {self.c}")

    @property
    def weights(self) -> tuple[float, float]:
        """p and n: the quadruplet is worth ``p λ− − n λ+``, and the ends count likewise in the other rows."""
        return _p(self.c), _n(self.c)


SCHEMES = {"s2d": 2, "m2": 2, "m3": 3, "m4": 4}


def scheme_of(name: str, c: float) -> Scheme:
    """The scheme of a name; ``"s2d"`` is the positive pair alone, which is c = 1.

    Raises:
        UsageError: no such scheme, or c below 1.
    """
    if name not in SCHEMES:
        raise UsageError(f"unknown scheme {name!r}; choose one of {', '.join(SCHEMES)}")
    return Scheme(name, SCHEMES[name], 1.0 if name == "s2d" else float(c))


def best_rows(
    low: Float64Array, high: Float64Array, c: float, copies: int
) -> tuple[Float64Array, npt.NDArray[np.int64]]:
    """The optimum over all splits with at most ``copies`` copies, channel by channel.

    Args:
        low: λ−, float [channels].
        high: λ+, float [channels].
        c: the bound on Σ|w_i|.
        copies: the largest number m of copies.

    Returns:
        The least value Σ w δᵀSδ, float [channels], never above 0, and the index in `ROWS` that reaches it,
        int64 [channels], −1 where the channel is not split.
    """
    values = np.stack(
        [
            row.value(low, high, c) if row.copies <= copies else np.full_like(low, np.inf, dtype=np.float64)
            for row in ROWS
        ]
    )
    choice = values.argmin(axis=0)
    best = values.min(axis=0)
    split = best < 0.0
    return np.where(split, best, 0.0), np.where(split, choice, -1).astype(np.int64)


def exact_rows(
    low: Float64Array, high: Float64Array, c: float, copies: int
) -> tuple[Float64Array, npt.NDArray[np.int64]]:
    """The best of the rows with exactly ``copies`` copies, even where it raises the loss.

    Args:
        low: λ−, float [channels].
        high: λ+, float [channels].
        c: the bound on Σ|w_i|.
        copies: the number m of copies.

    Returns:
        The least value Σ w δᵀSδ, float [channels], of any sign, and the index in `ROWS` that reaches it,
        int64 [channels]; inf and −1 where there is no such row, which is with c = 1 and more than two copies.
    """
    indices = np.array([index for index, row in enumerate(ROWS) if row.copies == copies], dtype=np.int64)
    values = np.stack([ROWS[index].value(low, high, c) for index in indices])
    best = values.min(axis=0)
    return best, np.where(np.isfinite(best), indices[values.argmin(axis=0)], -1)
