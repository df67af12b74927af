"""From chosen rows and eigenvectors to the split plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.schemes import ROWS
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit

__all__ = ["is_asymmetric", "split_groups"]


def is_asymmetric(rows: Mapping[str, npt.NDArray[np.int64]]) -> bool:
    """Whether any chosen split depends on the sign of v+."""
    return any(row >= 0 and not ROWS[row].symmetric for chosen in rows.values() for row in chosen)


def split_groups(
    groups: Sequence[BoundGroup],
    rows: Mapping[str, npt.NDArray[np.int64]],
    minus: Mapping[str, npt.NDArray[np.floating]],
    plus: Mapping[str, npt.NDArray[np.floating]],
    values: Mapping[str, float],
    c: float,
    epsilon: float,
    signs: Mapping[str, npt.NDArray[np.floating]] | None = None,
    lengths: Mapping[str, float] | None = None,
) -> tuple[GroupSplit, ...]:
    """The splits of all groups in which a channel splits.

    Channel c becomes ``Σ_i w_i σ(θ_c + ε δ_i)`` with the row's weights and ``δ_i = a_i v− + s_c b_i v+``; the
    predicted change of loss of a group is ``(ε²/2) Σ_c Σ_i w_i δ_iᵀ S_c δ_i`` (arXiv 2003.10392, the change
    of loss of a signed split). The tensors hold δ_i, not ε δ_i.

    Args:
        groups: the bound groups.
        rows: by group int64 [width], the row of `ROWS` per channel, −1 for none.
        minus: by group v− in parameter coordinates, [width, d].
        plus: by group v+, likewise.
        values: by group Σ w δᵀSδ over its channels.
        c: the bound on Σ|w_i|.
        epsilon: the step ε.
        signs: by group ±1 [width], the sign of every channel's v+; 1 by default.
        lengths: by group ‖δ‖, at most 1; 1 where absent.
    """
    splits = []
    for group in groups:
        chosen = rows[group.name]
        channels = np.flatnonzero(chosen >= 0)
        if not len(channels):
            continue
        source = list(range(group.width))
        coefficient = [1.0] * group.width
        moved: list[int] = []
        directions: list[npt.NDArray[np.floating]] = []
        sign = np.ones(group.width) if signs is None else signs[group.name]
        for channel in channels:
            for number, copy in enumerate(ROWS[chosen[channel]].offspring(c)):
                if number == 0:
                    grown = int(channel)
                    coefficient[grown] = copy.weight
                else:
                    grown = len(source)
                    source.append(int(channel))
                    coefficient.append(copy.weight)
                if copy.minus or copy.plus:
                    moved.append(grown)
                    directions.append(
                        copy.minus * minus[group.name][channel]
                        + float(sign[channel]) * copy.plus * plus[group.name][channel]
                    )
        length = 1.0 if lengths is None else lengths.get(group.name, 1.0)
        delta = length * np.stack(directions)
        displacements, start = {}, 0
        for block in group.blocks:
            part = delta[:, start : start + block.dimension]
            start += block.dimension
            displacements[block.tensor] = Displacement(
                block.axis,
                np.array(moved, dtype=np.int64),
                np.ascontiguousarray(part.reshape(len(moved), block.rows.shape[1], *block.others)),
            )
        splits.append(
            GroupSplit(
                group=group.name,
                width=group.width,
                source=np.array(source, dtype=np.int64),
                coefficient=np.array(coefficient, dtype=np.float64),
                displacements=displacements,
                predicted_change=0.5 * (epsilon * length) ** 2 * values[group.name],
            )
        )
    return tuple(splits)
