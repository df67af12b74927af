"""From values to places on a chart, and from values to words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MINUS", "Scale", "grouped", "short", "signed"]

MINUS = "\u2212"
"""A minus sign, as wide as the plus."""

_LARGEST, _SMALLEST = 1e100, 1e-100
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of values to coordinates.

    Attributes:
        low: the value at ``start``.
        high: the value at ``end``, above ``low``.
        start: the coordinate of ``low``.
        end: the coordinate of ``high``.
        logarithmic: whether equal factors are equal distances; ``low`` is then above 0.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @staticmethod
    def over(
        values: Iterable[float], start: float, end: float, *, logarithmic: bool = False, margin: float = 0.08
    ) -> Scale:
        """A scale with room for all finite values.

        Args:
            values: what must fit; values that are not finite or beyond 1e100, and those not above 1e-100 on a
                logarithmic scale, are left out.
            start: the coordinate of the least value.
            end: the coordinate of the greatest value.
            logarithmic: whether equal factors are equal distances.
            margin: room on both sides, as a share of the range.
        """
        kept = [v for v in values if abs(v) < _LARGEST and (v > _SMALLEST or not logarithmic)]
        if not kept:
            return Scale(1.0 if logarithmic else 0.0, 10.0 if logarithmic else 1.0, start, end, logarithmic)
        low, high = min(kept), max(kept)
        if logarithmic:
            room = (math.log10(high) - math.log10(low)) * margin or 0.3
            return Scale(10 ** (math.log10(low) - room), 10 ** (math.log10(high) + room), start, end, True)
        room = (high - low) * margin or abs(high) * 0.1 or 1.0
        return Scale(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """The coordinate of a value; values outside lie on the edge."""
        if self.logarithmic:
            low, high = math.log10(self.low), math.log10(self.high)
            place = math.log10(max(value, self.low)) if value > 0 else low
        else:
            low, high, place = self.low, self.high, value
        share = min(1.0, max(0.0, (place - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the scale, at most about so many."""
        return self._decades(most) if self.logarithmic else self._round_values(self.low, self.high, most)

    def _decades(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= most:
                break
        if len(found) > most:
            found = found[:: math.ceil(len(found) / most)]
        return found if len(found) > 1 else self._round_values(self.low, self.high, most)

    @staticmethod
    def _round_values(low: float, high: float, most: int) -> list[float]:
        raw = (high - low) / most
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * s for s in _STEPS if size * s >= raw * (1 - 1e-9))
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: float) -> str:
    """A number in few characters: 1.2k, 3.4M, 0.05."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def grouped(value: float) -> str:
    """A whole number with its thousands apart; any other with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def signed(value: float) -> str:
    """A change with its sign, three digits."""
    if value == 0:
        return "0"
    return f"{value:+.3g}".replace("-", MINUS)
