"""Growing one tensor: gather, displace, scale. Everybody who grows a tensor calls `grow_tensor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.dims import AxisMap, Dim, Offspring, atoms_of, axis_map, channel_rows
from growpipe.graph_ops.errors import UsageError

__all__ = ["AxisLayout", "AxisRole", "Displacement", "TensorLayout", "grow_tensor"]

AxisRole = Literal["copied", "mixed"]
"""What a split does along an axis: ``copied`` gathers, ``mixed`` gathers and scales by the coefficients."""


@dataclass(frozen=True, slots=True)
class AxisLayout:
    """One axis of a parameter: the dimension it is made of, and its role."""

    dim: Dim
    role: AxisRole


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """All axes of a parameter that at least one channel group touches."""

    axes: tuple[AxisLayout, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.dim.size for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Displacement:
    """The directions δ_i in which the copies of one group leave their source, within one tensor.

    Attributes:
        axis: the axis of the tensor on which the group stands.
        channels: int64 [k], the grown channels that are displaced.
        values: floating [k, entries per channel, *other axes of the original tensor]; the second axis
            follows `growpipe.graph_ops.dims.channel_rows` of the source channel.
    """

    axis: int
    channels: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating]


def grow_tensor(
    array: npt.NDArray,
    layout: TensorLayout,
    offspring: Mapping[str, Offspring],
    displacements: Mapping[str, Displacement],
    epsilon: float,
) -> npt.NDArray:
    """The grown tensor: ``σ(θ) → Σ_i w_i σ(θ + ε δ_i)`` as seen by one parameter.

    Every axis is gathered by the source of its grown entries. Displaced entries get ``ε δ`` (in the
    coordinates of the original tensor) before the other axes are gathered, so a channel's displacement
    acts on the function the channel computed before its inputs split too. ``mixed`` axes are then
    multiplied by the coefficients.

    Args:
        array: the original tensor, floating, of the layout's shape. Arithmetic is in its own type.
        layout: the axes of the tensor.
        offspring: by group; groups that are absent do not grow.
        displacements: by group, for this tensor.
        epsilon: the step ε.

    Raises:
        UsageError: the tensor is not of the layout's shape, or a displacement does not fit it.
    """
    if array.shape != layout.shape:
        raise UsageError(f"a tensor of shape {array.shape} was to grow by a plan for shape {layout.shape}")
    maps = [axis_map(axis.dim, offspring) for axis in layout.axes]
    by_axis: dict[int, list[tuple[str, Displacement]]] = {}
    if epsilon != 0.0:
        for group, displacement in displacements.items():
            by_axis.setdefault(displacement.axis, []).append((group, displacement))
    if len(by_axis) > 1:
        raise UsageError(f"one tensor is displaced on several axes: {sorted(by_axis)}")
    grown = array
    # The displaced axis first: displacements are given in the original coordinates of all others.
    for position in sorted(range(len(maps)), key=lambda p: p not in by_axis):
        changed = any(atom.name in offspring for atom in atoms_of(layout.axes[position].dim))
        if changed:
            grown = grown.take(maps[position].source, axis=position)
        for group, displacement in by_axis.get(position, ()):
            if not changed:
                grown = grown.copy()
            _displace(
                grown, position, layout.axes[position].dim, maps[position], group, displacement, epsilon
            )
    for position, axis in enumerate(layout.axes):
        if axis.role == "mixed" and not np.all(maps[position].coefficient == 1.0):
            shape = [1] * grown.ndim
            shape[position] = -1
            grown = grown * maps[position].coefficient.astype(grown.dtype).reshape(shape)
    return grown


def _displace(
    grown: npt.NDArray,
    axis: int,
    dim: Dim,
    axis_map_: AxisMap,
    group: str,
    displacement: Displacement,
    epsilon: float,
) -> None:
    """Add ``ε δ`` in place to the displaced entries of ``axis``, which is grown already."""
    rows = channel_rows(dim, group)
    others = grown.shape[:axis] + grown.shape[axis + 1 :]
    expected = (len(displacement.channels), rows.shape[1], *others)
    if displacement.values.shape != expected:
        raise UsageError(
            f"the displacement of group {group!r} has shape {displacement.values.shape}, expected {expected}"
        )
    view = np.moveaxis(grown, axis, 0)
    channel = axis_map_.channel[group]
    for grown_channel, values in zip(displacement.channels, displacement.values, strict=True):
        entries = np.flatnonzero(channel == grown_channel)
        source_rows = axis_map_.source[entries]
        # Other atoms of the axis may have been copied too; every row of the source channel is still there.
        own_rows = np.unique(source_rows)
        view[entries] += (epsilon * values[np.searchsorted(own_rows, source_rows)]).astype(grown.dtype)
