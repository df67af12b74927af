"""One pass over a graph: every rule states what its node does to the axes, and the solver does the rest.

`Analysis` is what the rules under `growpipe.graph_ops.axes.rules` write to. It holds the axes of every
tensor, the symbolic value of every small integer tensor, how every weight is used, and what has to follow
when axes grow (attributes and integer inputs that spell out a length).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, freeze, root, unify
from growpipe.graph_ops.axes.integers import Expression, Ints, axes_in
from growpipe.graph_ops.axes.statements import Axes, Follow, MacTerm, Use, View
from growpipe.graph_ops.operators import is_onnx, node_name, operator_name, opset_version, plain_domain

__all__ = ["Analysis", "Rule", "UnknownShape", "analyse_graph", "size_of"]

Rule = Callable[["Analysis", ir.Node], None]

_MOST_INTEGERS = 64  # longer integer constants are data, not shapes


class Analysis:
    """What is known about the axes of one graph. Rules read and write it; see the module's docstring."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.opset: int = opset_version(model)
        self.axes: dict[ir.Value, Axes] = {}
        self.values: dict[ir.Value, Ints] = {}
        self.views: dict[ir.Value, View] = {}
        self.sequences: dict[ir.Value, list[Axes]] = {}
        self.tensors: dict[ir.Value, ir.TensorProtocol] = {}
        self.uses: list[Use] = []
        self.follows: list[Follow] = []
        self.macs: list[MacTerm] = []
        self.batch: set[Axis] = set()
        self.fills: set[ir.Value] = set()
        self._private: dict[tuple[int, int], Axes] = {}
        self._use_of: dict[tuple[int, int], Use] = {}
        self._followed: dict[tuple[int, int], tuple[Expression, ...]] = {}
        self._late: list[tuple[ir.Value, Barrier]] = []
        self._symbols: dict[str, Axis] = {}

    # -- what a rule reads ---------------------------------------------------------------------------

    def input(self, node: ir.Node, index: int) -> ir.Value | None:
        """The input, None where it is absent."""
        return node.inputs[index] if index < len(node.inputs) else None

    def axes_of(self, node: ir.Node, index: int) -> Axes:
        """The axes of an input.

        Raises:
            UnknownShape: the input is absent or of unknown rank; the caller's node becomes a barrier.
        """
        value = self.input(node, index)
        if value is None or value not in self.axes:
            raise UnknownShape(f"the rank of input {index} is not known")
        if value in self.fills:
            key = (id(node), index)
            if key not in self._private:
                self._private[key] = [Axis(axis.size) for axis in self.axes[value]]
            return self._private[key]
        return self.axes[value]

    def ints(self, node: ir.Node, index: int) -> Ints | None:
        """The symbolic value of an integer input.

        Axes whose lengths it holds are frozen, except where the rule states how the input must `follow`.
        """
        value = self.input(node, index)
        return None if value is None else self.constant(value)

    def constant(self, value: ir.Value) -> Ints | None:
        """The symbolic value of a small integer tensor; None for any other."""
        tensor = self.tensor(value)
        if (
            value not in self.values
            and tensor is not None
            and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
            and tensor.size <= _MOST_INTEGERS
        ):
            # Through a list, so that the elements are Python's own integers.
            array = tensor.numpy()
            numbers = np.array([int(element) for element in array.flat], object)
            self.values[value] = Ints(numbers.reshape(array.shape))
        return self.values.get(value)

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The data of an initializer or of the output of a Constant node."""
        return None if value is None else self.tensors.get(value)

    def attribute(self, node: ir.Node, name: str, default: Any = None) -> Any:
        attribute = node.attributes.get(name)
        if attribute is None or attribute.is_ref():
            return default
        value = attribute.value
        return list(value) if isinstance(value, tuple) else value

    # -- what a rule states --------------------------------------------------------------------------

    def output(self, node: ir.Node, axes: Sequence[Axis], index: int = 0) -> None:
        """State the axes of an output."""
        if index < len(node.outputs):
            self.axes[node.outputs[index]] = list(axes)

    def fixed(self, node: ir.Node, axis: int, size: int | None, index: int = 0) -> Axis:
        """A new axis of an output that cannot grow, because nothing in the file spells out its length.

        A length that nobody computed is taken from the file where it says.
        """
        if size is None and index < len(node.outputs):
            shape = node.outputs[index].shape
            declared = shape[axis] if shape is not None and axis < len(shape) else None
            size = declared if isinstance(declared, int) else None
        return Axis(size, self.barrier(node, axis, "a length that the operator computes"))

    def barrier(self, node: ir.Node, axis: int | None, reason: str) -> Barrier:
        return Barrier(operator_name(node), node_name(node), axis, reason)

    def unify(self, node: ir.Node, a: Axis, b: Axis, axis: int | None = None) -> None:
        unify(a, b, self.barrier(node, axis, "its operands divide the axis differently"))

    def freeze(self, node: ir.Node, axes: Axis | Iterable[Axis], axis: int | None, reason: str) -> None:
        barrier = self.barrier(node, axis, reason)
        for one in (axes,) if isinstance(axes, Axis) else axes:
            freeze(one, barrier)

    def freeze_node(self, node: ir.Node, reason: str) -> None:
        """Freeze all axes of all inputs and outputs, and all lengths that the inputs carry."""
        barrier = self.barrier(node, None, reason)
        for index in range(len(node.inputs)):
            for axis in self._private.get((id(node), index), ()):
                freeze(axis, barrier)
        for value in (*node.inputs, *_captured(node), *node.outputs):
            if value is not None:
                self._freeze_value(value, barrier)
                if value not in self.axes:
                    self._late.append((value, barrier))

    def view(self, node: ir.Node, axes: Sequence[tuple[int, ...]]) -> None:
        """State that output 0 is input 0 rearranged; ``axes`` as in `View`, but of input 0."""
        source = node.inputs[0]
        seen = self.views.get(source) if source is not None else None
        if seen is not None:
            composed = tuple(tuple(b for a in group for b in seen.axes[a]) for group in axes)
            self.views[node.outputs[0]] = View(seen.base, composed)

    def is_weight(self, node: ir.Node, index: int) -> bool:
        value = self.input(node, index)
        return value is not None and value in self.views

    def made(self, node: ir.Node, index: int, axis: int, part: Axis | None = None) -> None:
        """State that the weight at input ``index`` makes the channels of its ``axis``."""
        for base, meant in self._base_axes(node, index, axis, part):
            self.use(node, index).made.append((base, meant))

    def mixed(self, node: ir.Node, index: int, axis: int, part: Axis | None = None) -> None:
        """State that the node contracts ``axis`` of its weight: there the coefficients go."""
        for base, meant in self._base_axes(node, index, axis, part):
            use = self.use(node, index)
            use.mixed.append((base, meant))
            if use.base.dtype is not None and not use.base.dtype.is_floating_point():
                self.freeze(node, meant, axis, "an integer weight cannot hold the coefficients")

    def use(self, node: ir.Node, index: int) -> Use:
        key = (id(node), index)
        if key not in self._use_of:
            value = node.inputs[index]
            assert value is not None
            axes = self._private.get(key, self.axes[self.views[value].base])
            self._use_of[key] = Use(self.views[value].base, node, index, axes)
            self.uses.append(self._use_of[key])
        return self._use_of[key]

    def contract(self, node: ir.Node, left: tuple[int, int], right: tuple[int, int]) -> None:
        """State that the node sums over an axis of two inputs, each given as (input, axis).

        The weight among them takes the coefficients; without a weight both axes are frozen.
        """
        (i, axis_i), (j, axis_j) = left, right
        a, b = self.axes_of(node, i)[axis_i], self.axes_of(node, j)[axis_j]
        self.unify(node, a, b, axis_i)
        if self.is_weight(node, j):
            self.mixed(node, j, axis_j)
        elif self.is_weight(node, i):
            self.mixed(node, i, axis_i)
        else:
            quantised = [k for k in (i, j) if self._producer(node, k) == "DequantizeLinear"]
            reason = "contracted against another activation"
            self.freeze(node, (a, b), axis_i, self.no_weight(node, quantised[-1]) if quantised else reason)

    def no_weight(self, node: ir.Node, index: int) -> str:
        """The reason why an input that should be a weight cannot take coefficients."""
        source = self._producer(node, index) or "an input"
        return f"its weight comes from {source}, so no weight can take the coefficients"

    def _producer(self, node: ir.Node, index: int) -> str | None:
        value = self.input(node, index)
        producer = None if value is None else value.producer()
        return None if producer is None else producer.op_type

    def follow(self, node: ir.Node, target: str | int, elements: Iterable[Expression]) -> None:
        """State that an attribute, or an integer input, spells out lengths."""
        follow = Follow(node, target, tuple(elements))
        self.follows.append(follow)
        if isinstance(target, int):
            self._followed[id(node), target] = follow.elements

    def count(self, node: ir.Node, constant: int, axes: Iterable[Axis]) -> None:
        """State the multiply-accumulates of the node."""
        self.macs.append(MacTerm(node, constant, tuple(axes)))

    # -- the pass ------------------------------------------------------------------------------------

    def run(self, rules: Mapping[tuple[str, str], Rule], integers: Rule) -> None:
        """Visit every node: its rule, then ``integers``, which follows the values of small tensors."""
        self._integers = integers
        for value in self.graph.inputs:
            if value.name in self.graph.initializers:
                continue
            barrier = Barrier("Input", value.name or "", None, "an input of the graph")
            axes = self._declared(value, barrier)
            if axes is not None:
                self.axes[value] = axes
                if axes:
                    self.batch.add(axes[0])
        for value in self.graph.initializers.values():
            self._weight(value, value.const_value)
        for node in self.graph:
            self._visit(node, rules)
        for value in self.graph.outputs:
            self._freeze_value(value, Barrier("Output", value.name or "", None, "an output of the graph"))
        for value, barrier in self._late:
            # In a graph that is not sorted, a node can be visited before its inputs.
            self._freeze_value(value, barrier)

    def _visit(self, node: ir.Node, rules: Mapping[tuple[str, str], Rule]) -> None:
        rule = rules.get((plain_domain(node.domain), node.op_type))
        try:
            if rule is None:
                raise UnknownShape(_why_unknown(node))
            rule(self, node)
            self._integers(self, node)
        except UnknownShape as refusal:
            self._give_up(node, str(refusal))
            return
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
            # The file is anybody's, and rules are written for nodes as the operator's schema has them.
            self._give_up(node, "its inputs or attributes do not fit the operator")
            return
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if (
                value in self.views
                and not self.views.keys() & set(node.outputs[:1])
                and node.op_type != "Shape"
            ):
                self.use(node, index)
            if value in self.values and node.outputs[0] not in self.values:
                followed = self._followed.get((id(node), index), ())
                for position, element in enumerate(self.values[value].elements):
                    if position >= len(followed) or followed[position] is None:
                        self.freeze(node, axes_in(element), None, "its length is used as a number")

    def _give_up(self, node: ir.Node, reason: str) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.views:
                self.use(node, index)
        for value in node.outputs:
            if value not in self.axes:
                axes = self._declared(value, self.barrier(node, None, reason))
                if axes is not None:
                    self.axes[value] = axes
        self.freeze_node(node, reason)

    def _weight(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        if tensor is not None:
            self.tensors[value] = tensor
        shape = tensor.shape if tensor is not None else value.shape
        if shape is None:
            return
        sizes = [size if isinstance(size, int) else None for size in shape]
        self.axes[value] = [Axis(size) for size in sizes]
        self.views[value] = View(value, tuple((axis,) for axis in range(len(sizes))))
        readers = value.consumers()
        if (
            tensor is not None
            and len(value.uses()) > 1
            and not any(reader.op_type in _REARRANGING for reader in readers)
            and _is_fill(tensor)
        ):
            self.fills.add(value)

    def constant_node(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        """State that the node's output is this tensor."""
        self._weight(node.outputs[0], tensor)

    def _declared(self, value: ir.Value, barrier: Barrier) -> Axes | None:
        if value.shape is None:
            return None
        axes = []
        for position, size in enumerate(value.shape):
            own = Barrier(barrier.operator, barrier.node, position, barrier.reason)
            if isinstance(size, int):
                axes.append(Axis(size, own))
            elif size.value is None:
                axes.append(Axis(None, own))
            else:
                axes.append(self._symbols.setdefault(str(size.value), Axis(None, own)))
        return axes

    def _freeze_value(self, value: ir.Value, barrier: Barrier) -> None:
        for position, axis in enumerate(self.axes.get(value, ())):
            freeze(axis, Barrier(barrier.operator, barrier.node, position, barrier.reason))
        for axis in (a for part in self.sequences.get(value, ()) for a in part):
            freeze(axis, barrier)
        symbolic = self.values.get(value)
        for element in symbolic.elements if symbolic is not None else ():
            for axis in axes_in(element):
                freeze(axis, barrier)

    def _base_axes(
        self, node: ir.Node, index: int, axis: int, part: Axis | None
    ) -> Iterable[tuple[int, Axis]]:
        value = node.inputs[index]
        assert value is not None
        if part is None:
            part = self.axes_of(node, index)[axis]
        view = self.views.get(value)
        return [(base, part) for base in view.axes[axis]] if view is not None else []


class UnknownShape(Exception):
    """A rule cannot tell what its node does; the node becomes a barrier."""


def analyse_graph(model: ir.Model) -> Analysis:
    """The solved axes of the main graph of ``model``, which is left as it is."""
    from growpipe.graph_ops.axes.rules import RULES
    from growpipe.graph_ops.axes.rules.arithmetic import integer_value

    analysis = Analysis(model)
    analysis.run(RULES, integer_value)
    return analysis


def size_of(axis: Axis) -> int | None:
    """The length of an axis as it is now."""
    return root(axis).size


_REARRANGING = {"Cast", "CastLike", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_LARGEST_FILL = 1 << 16


def _is_fill(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is all zeros or all ones, as exporters share among unrelated nodes."""
    if not tensor.dtype.is_floating_point() or not 1 < tensor.size <= _LARGEST_FILL:
        return False
    array = tensor.numpy()
    return bool((array == 0).all() or (array == 1).all())


def _why_unknown(node: ir.Node) -> str:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return "its subgraphs are not followed"
    if is_onnx(node, "GRU", "LSTM", "RNN"):
        return "channels of a recurrent layer mix in its own state"
    return "unknown operator"


def _captured(node: ir.Node) -> list[ir.Value]:
    """The outer values that the subgraphs of a node read."""
    captured: list[ir.Value] = []
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.value)
    for graph in graphs:
        for inner in graph.all_nodes():
            captured.extend(value for value in inner.inputs if value is not None)
        captured.extend(graph.outputs)
    return captured
