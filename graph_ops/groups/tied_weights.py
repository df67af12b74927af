"""Where the coefficients go if a weight is tied: an embedding that is the output layer's weight, too.

The embedding makes the channels, so the tied weight W copies them. Its other use mixes them and should
multiply the copies by their coefficients, which it then cannot. A scale and a shift before that use can, if
nothing else reads their result: for k copies of each channel with Σ_i w_i = 1

    Σ_c Σ_i W_c · (w_i γ_c x̂_c + w_i β_c)  =  Σ_c W_c · (γ_c x̂_c + β_c).

This is the last normalisation of a language model with a tied head: its γ and β are multiplied by w_i.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.groups.touches import Touch

__all__ = ["NORMALISING", "Place", "ScaleSearch"]

_REARRANGING = {
    "Cast", "Dropout", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose output holds entries of input 0 and nothing else."""

NORMALISING = {
    "BatchNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
}
"""Operators that multiply by input 1 at the end, then add input 2 if it is there."""

Place = tuple[Touch, int]
"""A use of a weight, and an axis of it."""


class ScaleSearch:
    """Looks for the scales before uses of tied weights.

    Args:
        inference: the solved axes.
        touches: every use of every weight; changed by `move_coefficients`.
    """

    def __init__(self, inference: AxisInference, touches: Sequence[Touch]) -> None:
        self._inference = inference
        self._of_node: dict[ir.Node, list[Touch]] = {}
        self._of_base: dict[ir.Value, list[Touch]] = {}
        for touch in touches:
            self._of_node.setdefault(touch.use.node, []).append(touch)
            self._of_base.setdefault(touch.use.base, []).append(touch)

    def move_coefficients(self, base: ir.Value, axis: int, atom: Axis) -> bool:
        """Let every use that mixes ``atom`` by ``axis`` of a weight copy it, and scales before it mix it.

        Returns:
            Whether there is such a scale before each of the uses; if not, nothing is changed.
        """
        places: list[Place] = []
        mixing = [touch for touch in self._of_base[base] if atom in touch.mixed[axis]]
        for touch in mixing:
            found = self._scales_before(touch, atom) if _is_alone(touch, axis, atom) else None
            if found is None:
                return False
            places += found
        for touch in mixing:
            touch.mixed[axis].discard(atom)
        for touch, position in places:
            touch.mixed[position].add(atom)
        return True

    def _scales_before(self, touch: Touch, atom: Axis) -> list[Place] | None:
        """The scale, and the shifts after it, of what a use mixes; None if there is no scale of its own."""
        reader, shifts = touch.use.node, list[Place]()
        value = self._data(reader)
        while value is not None and self._is_read_by(value, reader):
            node = value.producer()
            if node is None or value is not node.outputs[0]:
                return None
            if node.op_type in NORMALISING:
                scales = [self._parameter(node, index, atom) for index in (1, 2)[: len(node.inputs) - 1]]
                return None if None in scales else [*shifts, *(place for place in scales if place)]
            index = next((i for i, v in enumerate(node.inputs) if v in self._inference.constants), None)
            place = None if index is None else self._parameter(node, index, atom)
            if node.op_type in _REARRANGING:
                value = node.inputs[0]
            elif node.op_type == "Mul" and place is not None:
                return [*shifts, place]
            elif node.op_type in ("Add", "Sub") and place is not None:
                shifts.append(place)
                value = self._data(node)
            elif node.op_type in ("Mul", "Div") and index is not None and not self._holds(node, atom):
                value = self._data(node) if node.op_type == "Mul" or index == 1 else None
            else:
                return None
            reader = node
        return None

    def _data(self, node: ir.Node) -> ir.Value | None:
        """The only input of a node that is no constant; None if there are several."""
        data = [
            value for value in node.inputs if value is not None and value not in self._inference.constants
        ]
        return data[0] if len(data) == 1 else None

    def _is_read_by(self, value: ir.Value, reader: ir.Node) -> bool:
        """Whether a node is the only one that reads the entries of a value."""
        others = [use.node for use in value.uses() if use.node is not reader]
        return not value.is_graph_output() and all(node.op_type == "Shape" for node in others)

    def _holds(self, node: ir.Node, atom: Axis) -> bool:
        """Whether a weight that the node reads holds the atom."""
        return any(atom in atoms for touch in self._of_node.get(node, ()) for atoms in touch.atoms)

    def _parameter(self, node: ir.Node, index: int, atom: Axis) -> Place | None:
        """The weight at an input of the node and its axis of ``atom``, if coefficients can go there."""
        touch = next((t for t in self._of_node.get(node, ()) if t.use.index == index), None)
        if touch is None or len(self._of_base[touch.use.base]) > 1 or self._inference.obstacle(node, index):
            return None
        axes = [axis for axis, atoms in enumerate(touch.atoms) if atom in atoms]
        return (touch, axes[0]) if len(axes) == 1 and _is_alone(touch, axes[0], atom) else None


def _is_alone(touch: Touch, axis: int, atom: Axis) -> bool:
    """Whether no other atom on the axis can grow."""
    return all(other is atom or other.barrier is not None for other in touch.atoms[axis])
