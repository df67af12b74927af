"""Ways back from a value to the weights that make its channels, if everything between is linear in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.groups.tied_weights import NORMALISING, Place
from growpipe.graph_ops.groups.touches import Touch
from growpipe.graph_ops.operators import attribute_of, operator_name

__all__ = ["CUTTING", "Edge", "LinearWays", "NoWay", "Place", "Way"]

Edge = tuple[ir.Node, int]
"""A node and one of its inputs."""

CUTTING = ("Gather", "SequenceAt", "Slice", "Split")
"""Operators that give some entries of an axis."""

_LINEAR = {
    "AveragePool", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool", "Identity", "Neg",
    "ReduceMean", "ReduceSum", "Reshape", "SequenceAt", "Slice", "Split", "SplitToSequence", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that are linear in input 0 and treat the channels that they let pass by themselves."""

_PRODUCTS = {"Conv", "ConvTranspose", "FusedMatMul", "Gemm", "MatMul"}
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_FLOATING = {ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16}
_LONGEST = 100


class NoWay(Exception):
    """There is no linear way back to weights; the message is why."""


@dataclass(frozen=True)
class Way:
    """How a factor on the channels of a value comes about.

    Attributes:
        places: the weights that are multiplied by it, and their axes.
        edges: the inputs of nodes that it passes.
        values: the values that it multiplies, the last one first.
    """

    places: tuple[Place, ...] = ()
    edges: frozenset[Edge] = frozenset()
    values: tuple[ir.Value, ...] = field(default=())

    def beside(self, other: Way) -> Way:
        """Both ways, without repetitions."""
        return Way(
            tuple(dict.fromkeys(self.places + other.places)),
            self.edges | other.edges,
            tuple(dict.fromkeys(self.values + other.values)),
        )


class LinearWays:
    """Finds ways.

    Args:
        inference: the solved axes.
        touches: every use of every weight.
    """

    def __init__(self, inference: AxisInference, touches: Sequence[Touch]) -> None:
        self._inference = inference
        self._of_input: dict[Edge, list[Touch]] = {}
        self._uses: dict[ir.Value, int] = {}
        for touch in touches:
            self._of_input.setdefault((touch.use.node, touch.use.index), []).append(touch)
            self._uses[touch.use.base] = self._uses.get(touch.use.base, 0) + 1

    def to(self, value: ir.Value, atoms: frozenset[Axis], *, nearest: bool = False) -> Way:
        """The way of a factor on the channels ``atoms`` of ``value``.

        Args:
            value: what is multiplied.
            atoms: its channels.
            nearest: whether to stop at the first learned scale, such as that of a norm, which is itself not
                linear. Otherwise the way goes on to what makes the channels.

        Raises:
            NoWay: there is none.
        """
        return _Walk(self, atoms, nearest).to(value, 0)

    def is_constant(self, value: ir.Value | None) -> bool:
        return value in self._inference.constants

    def place(self, node: ir.Node, index: int, atoms: frozenset[Axis]) -> Place | None:
        """The weight at an input and its axis of ``atoms``; None if it does not hold them all on one axis."""
        found = self._of_input.get((node, index), [])
        if len(found) != 1:
            return None
        (touch,) = found
        axes = [position for position, held in enumerate(touch.atoms) if atoms & held.keys()]
        if len(axes) != 1 or not atoms <= touch.atoms[axes[0]].keys() or touch.mixed[axes[0]] & atoms:
            return None
        obstacle = self._inference.obstacle(node, index)
        if obstacle:
            raise NoWay(obstacle)
        return touch, axes[0]

    def is_private(self, place: Place) -> bool:
        """Whether the weight serves nothing else."""
        return self._uses[place[0].use.base] == 1

    def siblings(self, value: ir.Value, way: Way) -> Iterator[str]:
        """The operators that read the value on the way and have outputs beside it that somebody reads."""
        for use in value.uses():
            if (
                use.node.op_type == "Split"
                and (use.node, use.idx) in way.edges
                and any(
                    out not in way.values and (out.uses() or out.is_graph_output())
                    for out in use.node.outputs
                )
            ):
                yield operator_name(use.node)

    def is_cut(self, value: ir.Value, way: Way, edges: Set[Edge]) -> bool:
        """Whether only some channels of a value go on along the way, and nodes that cut read the others."""
        others = [
            use for use in value.uses() if (use.node, use.idx) not in edges and use.node.op_type != "Shape"
        ]
        if not others and not any(self.siblings(value, way)):
            return False
        readers = [use.node for use in value.uses() if use.node.op_type != "Shape"]
        return not value.is_graph_output() and all(node.op_type in CUTTING for node in readers)


class _Walk:
    """One walk back from a value, which may branch and join."""

    def __init__(self, ways: LinearWays, atoms: frozenset[Axis], nearest: bool) -> None:
        self._ways = ways
        self._nearest = nearest
        self._atoms = atoms
        self._known: dict[ir.Value, Way] = {}

    def to(self, value: ir.Value, depth: int) -> Way:
        if value not in self._known:
            node = value.producer()
            if node is None or depth > _LONGEST:
                raise NoWay("its channels come from an input of the graph")
            way = self._through(node, depth + 1)
            self._known[value] = Way((), frozenset(), (value,)).beside(way)
        return self._known[value]

    def _through(self, node: ir.Node, depth: int) -> Way:
        operator = node.op_type
        if operator in _PRODUCTS:
            return self._product(node)
        if operator in NORMALISING:
            return self._parameters(node, range(1, min(len(node.inputs), 3)))
        if operator in _LINEAR or (operator == "Cast" and attribute_of(node, "to") in _FLOATING):
            return self._along(node, 0, depth)
        if operator == "Concat":
            return self._all(node, range(len(node.inputs)), depth)
        if operator in ("Add", "Sub", "Sum"):
            return self._sum(node, depth)
        if operator == "Div":
            return self._along(node, 0, depth)
        if operator == "Mul":
            return self._factor(node, depth)
        raise NoWay(f"{operator_name(node)} is not linear")

    def _along(self, node: ir.Node, index: int, depth: int) -> Way:
        """Through one input."""
        value = node.inputs[index]
        if value is None or self._ways.is_constant(value):
            raise NoWay(f"{operator_name(node)} puts a constant there")
        return Way((), frozenset({(node, index)})).beside(self.to(value, depth))

    def _all(self, node: ir.Node, indices: Sequence[int], depth: int) -> Way:
        way = Way()
        for index in indices:
            way = way.beside(self._along(node, index, depth))
        return way

    def _sum(self, node: ir.Node, depth: int) -> Way:
        """Through all terms; a constant one is multiplied itself."""
        constant = [i for i, value in enumerate(node.inputs) if self._ways.is_constant(value)]
        others = [i for i in range(len(node.inputs)) if i not in constant]
        return self._parameters(node, constant).beside(self._all(node, others, depth))

    def _factor(self, node: ir.Node, depth: int) -> Way:
        """Through one factor of a product, or the constant one itself if nothing else can be multiplied."""
        places = (
            self._ways.place(node, index, self._atoms)
            for index, value in enumerate(node.inputs)
            if self._ways.is_constant(value)
        )
        scale = next((place for place in places if place is not None and self._ways.is_private(place)), None)
        if scale is not None and self._nearest:
            return Way((scale,))
        refusals: list[str] = []
        for index, value in enumerate(node.inputs):
            if not self._ways.is_constant(value):
                try:
                    return self._along(node, index, depth)
                except NoWay as refusal:
                    refusals.append(str(refusal))
        if scale is not None:
            return Way((scale,))
        raise NoWay(refusals[0] if refusals else "it is a constant")

    def _product(self, node: ir.Node) -> Way:
        """To the weight of a matrix product or convolution, and its bias."""
        places = [self._ways.place(node, index, self._atoms) for index in range(min(len(node.inputs), 2))]
        places = [place for place in places if place is not None]
        if len(places) != 1:
            raise NoWay(f"{operator_name(node)} makes its channels without a weight")
        bias = _BIAS.get(node.op_type)
        has_bias = bias is not None and len(node.inputs) > bias and node.inputs[bias] is not None
        own = self._parameters(node, [bias]) if has_bias and bias is not None else Way()
        return Way((places[0],)).beside(own) if places[0] is not None else own

    def _parameters(self, node: ir.Node, indices: Sequence[int]) -> Way:
        places = []
        for index in indices:
            place = self._ways.place(node, index, self._atoms)
            if place is None:
                raise NoWay(f"input {index} of {operator_name(node)} is no weight of its channels")
            places.append(place)
        return Way(tuple(places))
