"""One pass over a graph: every rule states what its node does to the axes, and the solver does the rest.

The bodies of If, Loop and Scan are part of the pass: rules hold within a body as they hold outside. What goes
into a body or comes out of it stays as it is, so that every channel group lies within one graph. Weights are
the exception: a weight of an outer graph grows with the body that reads it, if no other graph reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, TooMuchWork, freeze, limited_work
from growpipe.graph_ops.axes.integers import Expression, axes_in
from growpipe.graph_ops.axes.rule_api import AxisInference, UnknownShape, size_of
from growpipe.graph_ops.axes.rules import RULES
from growpipe.graph_ops.axes.statements import Axes, Use
from growpipe.graph_ops.bodies import BodyInput, bodies_of, body_inputs, captured
from growpipe.graph_ops.operators import is_onnx, node_name, operator_name, plain_domain

__all__ = ["infer_axes"]

_MOST_STEPS = 5_000_000
"""Some seconds of work; the largest networks tried take a tenth of it."""


def infer_axes(model: ir.Model, within_bodies: bool = True) -> AxisInference:
    """The solved axes of the main graph of a model and of the bodies within it.

    Args:
        model: the model, which is left as it is.
        within_bodies: whether channels are followed within bodies; if not, all that a body reads stays.
    """
    walk = _Walk(AxisInference(model), within_bodies)
    walk.run()
    return walk.inference


class _Walk:
    """The pass over the nodes of one graph and of the bodies within it.

    Attributes:
        inference: what is known so far.
    """

    def __init__(self, inference: AxisInference, within_bodies: bool) -> None:
        self.inference = inference
        self._within_bodies = within_bodies
        self._symbols: dict[str, Axis] = {}
        self._late: list[tuple[ir.Value, Barrier]] = []

    def run(self) -> None:
        """Visit the inputs, the constants, every node, and the outputs."""
        graph = self.inference.graph
        for value in graph.inputs:
            if value.name not in graph.initializers:
                self._input(value)
        with limited_work(_MOST_STEPS):
            self._walk(graph, "the graph")
        for value, barrier in self._late:
            # In a graph that is not sorted, a node can be visited before its inputs.
            self._freeze(value, barrier)
        self._freeze_shared_weights()

    def _walk(self, graph: ir.Graph, called: str) -> None:
        """Visit the constants, every node, and the outputs of a graph."""
        for value in graph.initializers.values():
            if graph is self.inference.graph or not value.is_graph_input():
                self.inference.tensor_of(value, value.const_value)
        for node in graph:
            self._visit(node)
        for value in graph.outputs:
            self._freeze(value, Barrier("Output", value.name or "", None, f"an output of {called}"))

    def _input(self, value: ir.Value) -> None:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return  # a sequence, a map or an optional: its readers are barriers
        barrier = Barrier("Input", value.name or "", None, "an input of the graph")
        axes = self._frozen_axes(value.shape, barrier)
        if axes is not None:
            self.inference.axes[value] = axes
            self.inference.batch.update(axes[:1])

    def _visit(self, node: ir.Node) -> None:
        if any(bodies_of(node)):
            self._visit_bodies(node)
            return
        stated = len(self.inference.follows)
        rule = RULES.get((plain_domain(node.domain), node.op_type))
        try:
            if rule is None:
                raise UnknownShape("growpipe has no rule for this operator")
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

    def _visit_bodies(self, node: ir.Node) -> None:
        """Let everything that passes between a node, its bodies and outer graphs stay; visit the bodies."""
        inference = self.inference
        given = body_inputs(node, inference.opset) if self._within_bodies else None
        if given is None:
            self._give_up(node, "channels are not followed into its subgraphs", captured(node))
            return
        reason = "what goes into its subgraphs or comes out of them stays as it is"
        self._give_up(node, reason, [value for value in captured(node) if value not in inference.constants])
        place = f"{operator_name(node)} {node_name(node)}"
        for entry in given:
            self._body_input(entry, place)
        inference.entered.add(node)
        follows, claims, macs = len(inference.follows), len(inference.contradictions), len(inference.macs)
        for name, graph in bodies_of(node):
            self._walk(graph, f"the {name} of {place}")
        if not all(map(self._keeps_its_rank, given)):
            # What the rules stated rests on a rank that is wrong.
            del inference.follows[follows:], inference.contradictions[claims:], inference.macs[macs:]
            self._freeze_bodies(node, inference.barrier(node, None, "the rank of its state may change"))
        passes = next((axis for entry in given if (axis := self._scanned_axis(entry))), None)
        if passes is not None:
            inference.macs[macs:] = [term.times(passes) for term in inference.macs[macs:]]

    def _body_input(self, entry: BodyInput, place: str) -> None:
        """State the axes of an input of a body; if they are not known, what reads it is a barrier."""
        axes = self.inference.axes
        barrier = Barrier("Input", entry.value.name or "", None, f"an input of a body of {place}")
        if entry.source is None:
            # The number of the pass and the condition of a Loop: scalars, or vectors if they are declared so.
            rank = 0 if entry.value.shape is None else len(entry.value.shape)
            axes[entry.value] = [Axis(1, _at(barrier, position)) for position in range(rank)]
        elif entry.scan_axis is not None:
            if self._scanned_axis(entry) is not None:
                rest = list(axes[entry.source])
                del rest[entry.scan_axis]  # by its place: two axes of one symbol are the same object
                axes[entry.value] = rest
        elif entry.source in axes and entry.carried is None:
            axes[entry.value] = axes[entry.source]
        elif entry.source in axes:
            # The lengths of a state may change from pass to pass.
            rank = len(axes[entry.source])
            axes[entry.value] = [Axis(None, _at(barrier, position)) for position in range(rank)]

    def _scanned_axis(self, entry: BodyInput) -> Axis | None:
        """The axis of which every pass of a Scan gets one entry; None if it is not known."""
        axes = [] if entry.source is None else self.inference.axes.get(entry.source, [])
        axis = entry.scan_axis
        return axes[axis] if axis is not None and -len(axes) <= axis < len(axes) else None

    def _keeps_its_rank(self, entry: BodyInput) -> bool:
        """Whether every pass hands on a state of the rank that was assumed of it."""
        axes = self.inference.axes
        if entry.carried is None or entry.value not in axes:
            return True
        return entry.carried in axes and len(axes[entry.carried]) == len(axes[entry.value])

    def _freeze_bodies(self, node: ir.Node, barrier: Barrier) -> None:
        """Freeze everything that the nodes in the bodies of a node read or compute."""
        for _, graph in bodies_of(node):
            for inner in graph.all_nodes():
                for index, value in enumerate(inner.inputs):
                    for axis in self.inference.private_axes(inner, index) or ():
                        freeze(axis, barrier)
                    if value is not None:
                        self._freeze(value, barrier)
                for value in inner.outputs:
                    self._freeze(value, barrier)

    def _freeze_shared_weights(self) -> None:
        """Freeze the weights that are used in more than one graph."""
        first: dict[ir.Value, Use] = {}
        for use in self.inference.uses:
            shared = use.axes is self.inference.axes[use.base]  # not a tensor of zeros or ones
            if shared and first.setdefault(use.base, use).node.graph is not use.node.graph:
                reason = f"the weight {use.tensor!r} is used in several graphs, a body among them"
                for position, axis in enumerate(use.axes):
                    freeze(axis, self.inference.barrier(use.node, position, reason))

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

    def _give_up(self, node: ir.Node, reason: str, more: Iterable[ir.Value] = ()) -> None:
        """Make the whole node a barrier: all axes of its inputs and outputs, and all lengths it reads.

        Args:
            node: the node.
            reason: why.
            more: values that it uses besides its inputs.
        """
        inference, barrier = self.inference, self.inference.barrier(node, None, reason)
        inference.given_up[node] = barrier
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
        for value in (*node.inputs, *more, *node.outputs):
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
