"""A mean with its standard error, as tables write it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

__all__ = ["with_error"]


def with_error(values: Sequence[float], *, sign: bool = False, digits: int = 2) -> str:
    """``96.28 ± 0.25``: the mean and its standard error, which is ``nan`` of a single value.

    Args:
        values: one of each seed, say.
        sign: whether a mean above zero has a plus sign, as differences have.
        digits: after the decimal point.
    """
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):{'+' if sign else ''}.{digits}f} ± {error:.{digits}f}"
