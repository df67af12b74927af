"""One pass over a graph: every rule states what its node does to the axes, and the solver does the rest."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, TooMuchWork, freeze, limited_work
from growpipe.graph_ops.axes.integers import Expression, axes_in
from growpipe.graph_ops.axes.rule_api import AxisInference, UnknownShape, size_of
from growpipe.graph_ops.axes.rules import RULES
from growpipe.graph_ops.axes.statements import Axes
from growpipe.graph_ops.operators import is_onnx, plain_domain

__all__ = ["infer_axes"]

_MOST_STEPS = 5_000_000
"""Some seconds of work; the largest networks tried take a tenth of it."""


def infer_axes(model: ir.Model) -> AxisInference:
    """The solved axes of the main graph of ``model``, which is left as it is."""
    walk = _Walk(AxisInference(model))
    walk.run()
    return walk.inference


class _Walk:
    """The pass over the nodes of one graph.

    Attributes:
        inference: what is known so far.
    """

    def __init__(self, inference: AxisInference) -> None:
        self.inference = inference
        self._symbols: dict[str, Axis] = {}
        self._late: list[tuple[ir.Value, Barrier]] = []

    def run(self) -> None:
        """Visit the inputs, the constants, every node, and the outputs."""
        graph = self.inference.graph
        for value in graph.inputs:
            if value.name not in graph.initializers:
                self._input(value)
        for value in graph.initializers.values():
            self.inference.tensor_of(value, value.const_value)
        with limited_work(_MOST_STEPS):
            for node in graph:
                self._visit(node)
        for value in graph.outputs:
            self._freeze(value, Barrier("Output", value.name or "", None, "an output of the graph"))
        for value, barrier in self._late:
            # In a graph that is not sorted, a node can be visited before its inputs.
            self._freeze(value, barrier)

    def _input(self, value: ir.Value) -> None:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return  # a sequence, a map or an optional: its readers are barriers
        barrier = Barrier("Input", value.name or "", None, "an input of the graph")
        axes = self._frozen_axes(value.shape, barrier)
        if axes is not None:
            self.inference.axes[value] = axes
            self.inference.batch.update(axes[:1])

    def _visit(self, node: ir.Node) -> None:
        stated = len(self.inference.follows)
        rule = RULES.get((plain_domain(node.domain), node.op_type))
        try:
            if rule is None:
                raise UnknownShape(_why_unknown(node))
            rule(self.inference, node)
            self.inference.integers.compute(node)
        except UnknownShape as refusal:
            self._give_up(node, str(refusal))
        except (TooMuchWork, RecursionError):
            self._give_up(node, "the reshapes and concatenations up to here are too entangled to be followed")
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            StopIteration,
            TypeError,
            ValueError,
        ):
            # The file is anybody's, and rules are written for nodes as the operator's schema has them.
            self._give_up(node, "its inputs or attributes do not fit the operator")
        else:
            self._compare_claims(node)
            if node.inputs and self.inference.is_constant(node):
                self.inference.constants.update(node.outputs)
            self._record_uses(node)
            follows = self.inference.follows[stated:]
            self._freeze_numbers(node, {f.target: f.elements for f in follows if isinstance(f.target, int)})

    def _compare_claims(self, node: ir.Node) -> None:
        """Note where the file declares another shape than the rule found."""
        for value in node.outputs:
            axes = self.inference.axes.get(value)
            if axes is None or value.shape is None:
                continue
            found = [size_of(axis) for axis in axes]
            differs = len(found) != len(value.shape) or any(
                isinstance(claim, int) and size is not None and claim != size
                for claim, size in zip(value.shape, found, strict=True)
            )
            if differs:
                wanted = ",".join("?" if size is None else str(size) for size in found)
                text = f"{value.name} is declared as {value.shape}, but its shape is [{wanted}]"
                self.inference.contradictions.append(text)

    def _record_uses(self, node: ir.Node) -> None:
        """Record that the node uses its constants, unless it only rearranges one or asks for its shape."""
        views = self.inference.views
        if is_onnx(node, "Shape") or any(value in views for value in node.outputs[:1]):
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value in views:
                self.inference.use(node, index)

    def _freeze_numbers(self, node: ir.Node, followed: dict[int, tuple[Expression, ...]]) -> None:
        """Freeze the axes whose lengths go into a node as numbers that will not follow."""
        integers = self.inference.integers
        result = integers.of(node.outputs[0]) if node.outputs[0] in integers else None
        if result is not None and None not in result.elements:
            return
        for index, value in enumerate(node.inputs):
            known = integers.of(value) if value in integers else None
            follows = followed.get(index, ())
            for position, element in enumerate(known.elements if known is not None else ()):
                if position >= len(follows) or follows[position] is None:
                    self.inference.freeze(
                        node, axes_in(element), None, "the graph computes with the length of this axis"
                    )

    def _give_up(self, node: ir.Node, reason: str) -> None:
        """Make the whole node a barrier: all axes of its inputs and outputs, and all lengths it reads."""
        inference, barrier = self.inference, self.inference.barrier(node, None, reason)
        inference.given_up.append((node, barrier))
        for index, value in enumerate(node.inputs):
            if value is not None and value in inference.views:
                inference.use(node, index)
        for value in node.outputs:
            if value not in inference.axes:
                axes = self._frozen_axes(inference.shapes.of(value), barrier)
                if axes is not None:
                    inference.axes[value] = axes
        for index in range(len(node.inputs)):
            for axis in inference.private_axes(node, index) or ():
                freeze(axis, barrier)
        for value in (*node.inputs, *_captured(node), *node.outputs):
            if value is not None:
                self._freeze(value, barrier)
                if value not in inference.axes:
                    self._late.append((value, barrier))

    def _frozen_axes(self, shape: ir.Shape | None, barrier: Barrier) -> Axes | None:
        """New axes of these lengths, all frozen; one axis for each symbol."""
        if shape is None:
            return None
        axes = []
        for position, size in enumerate(shape):
            own = _at(barrier, position)
            if isinstance(size, int):
                axes.append(Axis(size if size >= 0 else None, own))
            elif size.value is None:
                axes.append(Axis(None, own))
            else:
                axes.append(self._symbols.setdefault(str(size.value), Axis(None, own)))
        return axes

    def _freeze(self, value: ir.Value, barrier: Barrier) -> None:
        """Freeze the axes of a value, of the sequence it is, and those whose lengths it holds."""
        for position, axis in enumerate(self.inference.axes.get(value, ())):
            freeze(axis, _at(barrier, position))
        for axis in (a for part in self.inference.sequences.get(value, ()) for a in part):
            freeze(axis, barrier)
        known = self.inference.integers.of(value) if value in self.inference.integers else None
        for element in known.elements if known is not None else ():
            for axis in axes_in(element):
                freeze(axis, barrier)


def _at(barrier: Barrier, axis: int) -> Barrier:
    return Barrier(barrier.operator, barrier.node, axis, barrier.reason)


def _why_unknown(node: ir.Node) -> str:
    if any(_graphs(node)):
        return "channels are not followed into its subgraphs"
    return "growpipe has no rule for this operator"


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values that the subgraphs of a node read or return, outer ones among them."""
    for graph in _graphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from (value for value in inner.inputs if value is not None)
            yield from _captured(inner)


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value
