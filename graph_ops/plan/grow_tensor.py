"""Growing one tensor: gather, displace, scale. Everybody who grows a tensor calls `grow_tensor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.dims import Offspring, atoms_of, axis_map, channel_rows
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError

__all__ = ["Displacement", "TensorGrowth", "grow_tensor"]


@dataclass(frozen=True, eq=False)
class Displacement:
    """The directions δ_i in which the copies of one group leave their source, within one tensor.

    Attributes:
        axis: the axis of the tensor on which the group stands.
        channels: int64 [k], the grown channels that are displaced.
        values: floating [k, entries per channel, *other axes of the original tensor]; the second axis
            follows `growpipe.graph_ops.axes.dims.channel_rows` of the source channel.
    """

    axis: int
    channels: npt.NDArray[np.int64]
    values: npt.NDArray[np.floating]


def grow_tensor(
    array: AnyArray,
    layout: TensorLayout,
    offspring: Mapping[str, Offspring],
    displacements: Mapping[str, Displacement],
    epsilon: float,
) -> AnyArray:
    """The grown tensor: ``σ(θ) → Σ_i w_i σ(θ + ε δ_i)`` as seen by one parameter.

    Every axis is gathered by the source of its grown entries. Displaced entries get ``ε δ`` (in the
    coordinates of the original tensor) before the other axes are gathered, so a channel's displacement
    acts on the function the channel computed before its inputs split too. ``mixed`` axes are then
    multiplied by the coefficients, together with the ``offset`` of the layout: w becomes
    ``w_i (w + offset) - offset``.

    Args:
        array: the original tensor, floating, of the layout's shape. Arithmetic is in its own type.
        layout: the axes of the tensor.
        offspring: by group; groups that are absent do not grow.
        displacements: by group, for this tensor.
        epsilon: the step ε.

    Raises:
        UsageError: the tensor is not of the layout's shape, or a displacement does not fit it.
    """
    growth = TensorGrowth(layout, offspring, displacements, epsilon)
    return growth.rows(array, 0, growth.shape[0] if growth.shape else 1)


class TensorGrowth:
    """How one tensor grows, ready to be computed a few rows of its first axis at a time.

    A large tensor written row by row stays in the processor's cache and never has to be held whole.
    Arguments and errors are those of `grow_tensor`.

    Attributes:
        shape: the shape of the grown tensor.
    """

    def __init__(
        self,
        layout: TensorLayout,
        offspring: Mapping[str, Offspring],
        displacements: Mapping[str, Displacement],
        epsilon: float,
    ) -> None:
        self._layout = layout
        self._epsilon = epsilon
        self._axes = [_Axis(axis, offspring) for axis in layout.axes]
        self._displacements = dict(displacements) if epsilon != 0.0 else {}
        displaced = {displacement.axis for displacement in self._displacements.values()}
        if len(displaced) > 1:
            raise UsageError(f"one tensor is displaced on several axes: {sorted(displaced)}")
        for group, displacement in self._displacements.items():
            self._check(group, displacement)
        # The displaced axis first: displacements are given in the original coordinates of all others.
        self._order = sorted(range(len(self._axes)), key=lambda axis: axis not in displaced)
        self.shape = tuple(len(axis.source) for axis in self._axes)

    def _check(self, group: str, displacement: Displacement) -> None:
        shape, axis = self._layout.shape, displacement.axis
        rows = channel_rows(self._layout.axes[axis].dim, group)
        expected = (len(displacement.channels), rows.shape[1], *shape[:axis], *shape[axis + 1 :])
        if displacement.values.shape != expected:
            raise UsageError(
                f"the displacement of group {group!r} has shape {displacement.values.shape}, "
                f"expected {expected}"
            )

    def rows(self, array: AnyArray, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop`` of the first axis of the grown tensor; a scalar has one row.

        Raises:
            UsageError: ``array`` is not of the layout's shape.
        """
        if array.shape != self._layout.shape:
            raise UsageError(
                f"a tensor of shape {array.shape} was to grow by a plan for shape {self._layout.shape}"
            )
        if not self._axes:
            return array
        # Rows first; a displacement on another axis, which knows the original rows, is gathered along.
        first = _Gather(self._axes[0].source[start:stop])
        grown, owned = first(array, 0)
        for position in self._order:
            axis = self._axes[position]
            if position > 0 and axis.grows:
                grown, copied = axis.gather(grown, position)
                owned = owned or copied
            for group, displacement in self._displacements.items():
                if displacement.axis == position:
                    grown, owned = grown if owned else grown.copy(), True
                    self._displace(grown, group, displacement, first, slice(start, stop))
        for position, axis in enumerate(self._axes):
            changed, offset = axis.changed, 0
            if position == 0:
                changed, offset = changed[(changed >= start) & (changed < stop)], start
            if len(changed):
                grown, owned = grown if owned else grown.copy(), True
                view = np.moveaxis(grown, position, -1)
                if self._layout.offset:
                    places, number = changed - offset, self._layout.offset
                    sums = view[..., places].astype(np.float64) + number
                    view[..., places] = (sums * axis.coefficient[changed] - number).astype(grown.dtype)
                elif position > 0 and len(changed) > view.shape[-1] // 16:
                    # Multiplying by 1 as well is faster than picking out the others.
                    view *= axis.coefficient.astype(grown.dtype)
                else:
                    view[..., changed - offset] *= axis.coefficient[changed].astype(grown.dtype)
        return grown

    def _displace(
        self,
        grown: AnyArray,
        group: str,
        displacement: Displacement,
        first: _Gather,
        rows: slice,
    ) -> None:
        """Add ``ε δ`` in place to the displaced entries of ``grown``, whose rows are ``rows``."""
        axis = self._axes[displacement.axis]
        source, channel, values = axis.source, axis.channel[group], displacement.values
        if displacement.axis == 0:
            source, channel = source[rows], channel[rows]
        else:
            values = first(values, 2)[0]
        own = channel_rows(axis.dim, group)
        within = np.zeros(axis.dim.size, np.int64)  # which entry of its channel an entry is
        within[own] = np.arange(own.shape[1])
        which = np.full(
            max(axis.channel[group].max(initial=-1), displacement.channels.max(initial=-1)) + 2, -1
        )
        which[displacement.channels] = np.arange(len(displacement.channels))
        moved = which[channel]  # entries of no channel are -1, and so is the last place
        entries = np.flatnonzero(moved >= 0)
        view = np.moveaxis(grown, displacement.axis, 0)
        view[entries] += (self._epsilon * values[moved[entries], within[source[entries]]]).astype(grown.dtype)


class _Axis:
    """One axis of a growing tensor."""

    def __init__(self, axis: AxisLayout, offspring: Mapping[str, Offspring]) -> None:
        mapped = axis_map(axis.dim, offspring)
        self.dim = axis.dim
        self.source, self.coefficient, self.channel = mapped.source, mapped.coefficient, mapped.channel
        self.grows = any(atom.name in offspring for atom in atoms_of(axis.dim))
        self.gather = _Gather(mapped.source)
        # Where a coefficient is to be applied.
        self.changed = np.flatnonzero(mapped.coefficient != 1.0) if axis.role == "mixed" else np.arange(0)


_LONG_RUN = 32


class _Gather:
    """``array.take(source, axis)`` for a source that is mostly runs of neighbours, as grown axes are.

    Runs are copied as slices, which is several times as fast as taking entry by entry.
    """

    def __init__(self, source: npt.NDArray[np.int64]) -> None:
        starts = np.flatnonzero(np.diff(source, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(source))
        self.length = len(source)
        self.is_slice = len(starts) == 1
        self._runs = [
            (slice(start, start + length), slice(source[start], source[start] + length))
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            if length >= _LONG_RUN or self.is_slice
        ]
        single = np.ones(len(source), bool)
        for target, _ in self._runs:
            single[target] = False
        entries = np.flatnonzero(single)
        self._taken = source[entries]
        # The copies mostly stand at the end of the axis, in one piece.
        whole = len(entries) and entries[-1] - entries[0] + 1 == len(entries)
        self._entries = slice(int(entries[0]), int(entries[-1]) + 1) if whole else entries

    def __call__(self, array: AnyArray, axis: int) -> tuple[AnyArray, bool]:
        """The gathered array, and whether it is a copy."""
        before = (slice(None),) * axis
        if self.is_slice:
            return array[(*before, self._runs[0][1])], False
        grown = np.empty((*array.shape[:axis], self.length, *array.shape[axis + 1 :]), array.dtype)
        for target, source in self._runs:
            grown[(*before, target)] = array[(*before, source)]
        if len(self._taken):
            grown[(*before, self._entries)] = array.take(self._taken, axis)
        return grown, True
