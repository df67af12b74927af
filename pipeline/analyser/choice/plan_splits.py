"""From chosen rows and eigenvectors to the split plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.schemes import ROWS
from growpipe.analyser.spectra.spectra import Directions
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit

__all__ = ["Rows", "Signs", "Step", "split_groups"]

Rows = Mapping[str, npt.NDArray[np.int64]]
"""By group int64 [width], the row of `ROWS` per channel, -1 for none."""

Signs = Mapping[str, npt.NDArray[np.floating]]
"""By group ±1 [width], the sign of every channel's v+."""


@dataclass(frozen=True, eq=False)
class Step:
    """How far displacements go.

    Attributes:
        epsilon: ε in the metric's unit.
        signs: the sign of every channel's v+; 1 for a group that is absent.
        lengths: by group ‖δ‖, at most 1; 1 for a group that is absent.
    """

    epsilon: float
    signs: Signs = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)


def split_groups(
    groups: Sequence[BoundGroup],
    rows: Rows,
    directions: Directions,
    values: Mapping[str, float],
    c: float,
    step: Step,
) -> tuple[GroupSplit, ...]:
    """The splits of all groups in which a channel splits.

    Channel c becomes ``Σ_i w_i σ(θ_c + ε δ_i)`` with the row's weights and ``δ_i = a_i v− + s_c b_i v+``; the
    predicted change of loss of a group is ``(ε²/2) Σ_c Σ_i w_i δ_iᵀ S_c δ_i`` (arXiv 2003.10392, the change
    of loss of a signed split). The tensors hold δ_i, not ε δ_i.

    Args:
        groups: the bound groups.
        rows: the chosen splits.
        directions: the eigenvectors.
        values: by group Σ w δᵀSδ over its channels.
        c: the bound on Σ|w_i|.
        step: how far displacements go.
    """
    return tuple(
        _split_group(group, rows[group.name], directions, values[group.name], c, step)
        for group in groups
        if np.any(rows[group.name] >= 0)
    )


def _split_group(
    group: BoundGroup, rows: npt.NDArray[np.int64], directions: Directions, value: float, c: float, step: Step
) -> GroupSplit:
    minus, plus = directions.minus[group.name], directions.plus[group.name]
    signs = step.signs.get(group.name, np.ones(group.width))
    length = step.lengths.get(group.name, 1.0)
    source = list(range(group.width))
    coefficient = [1.0] * group.width
    moved: list[int] = []
    displaced: list[npt.NDArray[np.floating]] = []
    for channel in np.flatnonzero(rows >= 0):
        for number, copy in enumerate(ROWS[rows[channel]].offspring(c)):
            if number == 0:
                grown = int(channel)
                coefficient[grown] = copy.weight
            else:
                grown = len(source)
                source.append(int(channel))
                coefficient.append(copy.weight)
            if copy.minus or copy.plus:
                moved.append(grown)
                turned = float(signs[channel]) * copy.plus
                displaced.append(copy.minus * minus[channel] + turned * plus[channel])
    return GroupSplit(
        group=group.name,
        width=group.width,
        source=np.array(source, dtype=np.int64),
        coefficient=np.array(coefficient, dtype=np.float64),
        displacements=_displacements(group, moved, length * np.stack(displaced)),
        predicted_change=0.5 * (step.epsilon * length) ** 2 * value,
    )


def _displacements(
    group: BoundGroup, moved: Sequence[int], delta: npt.NDArray[np.floating]
) -> dict[str, Displacement]:
    """By tensor the displacements of the ``moved`` channels; ``delta`` is [moved, d]."""
    displacements, start = {}, 0
    for block in group.blocks:
        part = delta[:, start : start + block.dimension]
        start += block.dimension
        values = part.reshape(len(moved), block.rows.shape[1], *block.others)
        if block.window is not None:
            kernel = block.shape[-len(block.window.taps) :]
            values = block.window.filled(torch.from_numpy(values), kernel).numpy()
        displacements[block.tensor] = Displacement(
            block.axis, np.array(moved, dtype=np.int64), np.ascontiguousarray(values)
        )
    return displacements
