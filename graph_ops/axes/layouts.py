"""How the axes of one parameter grow: what a plan and everybody who grows a tensor must know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from growpipe.graph_ops.axes.dims import Dim

__all__ = ["AxisLayout", "AxisRole", "TensorLayout"]

AxisRole = Literal["copied", "mixed"]
"""What a split does along an axis: ``copied`` gathers, ``mixed`` gathers and scales by the coefficients."""


@dataclass(frozen=True, slots=True)
class AxisLayout:
    """One axis of a parameter: the dimension it is made of, and its role."""

    dim: Dim
    role: AxisRole


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """All axes of a parameter that at least one channel group touches.

    Attributes:
        axes: the axes.
        offset: what the network adds to the parameter before it uses it, as in the scale 1 + w of a norm. A
            coefficient c makes w to c (w + offset) - offset.
    """

    axes: tuple[AxisLayout, ...]
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.dim.size for axis in self.axes)
