"""One role for each axis of each weight: channels are either copied on it, or mixed by coefficients."""

from __future__ import annotations

from collections.abc import Container, Sequence

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, freeze
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.groups.contracted_pairs import fold_into_pairs
from growpipe.graph_ops.groups.tied_weights import ScaleSearch
from growpipe.graph_ops.groups.touches import Touch
from growpipe.graph_ops.operators import node_name

__all__ = ["resolve_roles"]


def resolve_roles(inference: AxisInference, touches: Sequence[Touch], even: Container[Axis]) -> None:
    """Freeze atoms that would have to be mixed and copied on one axis of one weight.

    Args:
        inference: the solved axes.
        touches: every use of every weight; changed where one side of a product takes the coefficients
            (`growpipe.graph_ops.groups.contracted_pairs`), or a scale those of a tied weight
            (`growpipe.graph_ops.groups.tied_weights`).
        even: the atoms whose channels are all copied equally often.
    """
    fold_into_pairs(inference, touches)
    search = ScaleSearch(inference, touches)
    for base, position, atom in _conflicts(touches):
        if atom in even:
            search.move_coefficients(base, position, atom)
    _freeze_different_offsets(touches)
    mixed_on = _mixed_on(touches)
    for touch in touches:
        name = touch.use.tensor
        for position, atoms in enumerate(touch.atoms):
            conflicting = mixed_on[touch.use.base, position] - touch.mixed[position]
            copied = {atom for atom in atoms if atom not in touch.mixed[position]}
            if touch.mixed[position]:
                conflicting |= {atom for atom in copied if atom.barrier is None}
            for atom in conflicting:
                reason = f"{name!r} both mixes and carries the channels on one axis"
                if atom in even:
                    reason += ", and no scale of its own before it can take the coefficients"
                freeze(atom, Barrier(touch.use.node.op_type, node_name(touch.use.node), position, reason))


def _freeze_different_offsets(touches: Sequence[Touch]) -> None:
    """Freeze the atoms whose coefficients would act on a weight with different numbers added to it."""
    offsets: dict[ir.Value, set[float]] = {}
    for touch in touches:
        offsets.setdefault(touch.use.base, set()).add(touch.use.offset)
    for touch in touches:
        if len(offsets[touch.use.base]) > 1:
            for position, (mixed, folded) in enumerate(zip(touch.mixed, touch.folded, strict=True)):
                reason = f"{touch.use.tensor!r} is read with different numbers added to it"
                barrier = Barrier(touch.use.node.op_type, node_name(touch.use.node), position, reason)
                for atom in mixed | folded:
                    freeze(atom, barrier)


def _mixed_on(touches: Sequence[Touch]) -> dict[tuple[ir.Value, int], set[Axis]]:
    mixed_on: dict[tuple[ir.Value, int], set[Axis]] = {}
    for touch in touches:
        for position, mixed in enumerate(touch.mixed):
            mixed_on.setdefault((touch.use.base, position), set()).update(mixed)
    return mixed_on


def _conflicts(touches: Sequence[Touch]) -> list[tuple[ir.Value, int, Axis]]:
    """The weight, the axis and the atom, wherever one use mixes what another one copies."""
    mixed_on = _mixed_on(touches)
    return [
        (touch.use.base, position, atom)
        for touch in touches
        for position, atoms in enumerate(touch.atoms)
        for atom in atoms
        if atom.barrier is None and atom in mixed_on[touch.use.base, position] - touch.mixed[position]
    ]
