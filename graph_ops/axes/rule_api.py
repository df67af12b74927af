"""What a rule can read and state: the interface between the rules per operator and the walk over a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, freeze, root
from growpipe.graph_ops.axes.inferred_shapes import InferredShapes
from growpipe.graph_ops.axes.integer_values import IntegerValues
from growpipe.graph_ops.axes.integers import Expression, Ints
from growpipe.graph_ops.axes.solver import unify
from growpipe.graph_ops.axes.statements import Axes, Contraction, Default, Even, Follow, MacTerm, Use, View
from growpipe.graph_ops.bodies import tensor_names
from growpipe.graph_ops.operators import node_name, operator_name, opset_version

__all__ = ["AxisInference", "Rule", "UnknownShape", "size_of"]

Rule = Callable[["AxisInference", ir.Node], None]


class UnknownShape(Exception):
    """A rule cannot tell what its node does; the node becomes a barrier with this reason."""


class AxisInference:
    """What is known about the axes of a graph and of the bodies within it. Rules read and write it.

    Attributes:
        model: the model; not changed.
        opset: the version of ONNX's own operators.
        axes: the axes of every tensor of known rank.
        integers: the symbolic values of small integer tensors.
        views: which tensors are computed from constants, entry by entry, and how from each of them.
        sequences: the axes of the tensors in a sequence of known length.
        names: the name of every constant, which no other constant has.
        tensors: the constants: initializers, and the outputs of Constant nodes.
        constants: the values that are computed from constants alone.
        uses: how the nodes use the constants, in graph order.
        follows: the attributes and integer inputs that spell out lengths.
        evens: the axes whose entries must all be copied equally often.
        contractions: the sums over an axis of two activations.
        defaults: the attributes that must be written out when axes grow.
        macs: the multiply-accumulates of the nodes.
        given_up: the nodes that are barriers as a whole, and why.
        entered: the nodes among them whose bodies were visited.
        contradictions: what the file declares about shapes and is not so.
        batch: the first axes of the graph inputs.
        shapes: what ONNX's shape inference says, for values that no rule knows.
        fills: tensors of zeros or ones that several unrelated nodes may share.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = opset_version(model)
        self.names = tensor_names(model.graph)
        self.axes: dict[ir.Value, Axes] = {}
        self.views: dict[ir.Value, tuple[View, ...]] = {}
        self.sequences: dict[ir.Value, list[Axes]] = {}
        self.tensors: dict[ir.Value, ir.TensorProtocol] = {}
        self.constants: set[ir.Value] = set()
        self.integers = IntegerValues(self.tensors)
        self.uses: list[Use] = []
        self.follows: list[Follow] = []
        self.evens: list[Even] = []
        self.contractions: list[Contraction] = []
        self.defaults: list[Default] = []
        self.macs: list[MacTerm] = []
        self.given_up: dict[ir.Node, Barrier] = {}
        self.entered: set[ir.Node] = set()
        self.contradictions: list[str] = []
        self.batch: set[Axis] = set()
        self.shapes = InferredShapes(model)
        self.fills: set[ir.Value] = set()
        self._private: dict[tuple[int, int], Axes] = {}
        self._use_of: dict[tuple[int, int, ir.Value], Use] = {}

    # -- what a rule reads ---------------------------------------------------------------------------

    def input(self, node: ir.Node, index: int) -> ir.Value | None:
        """The input, None if it is absent."""
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

    def axes_of_rank(self, node: ir.Node, index: int, rank: int) -> Axes:
        """The axes of an input that the operator takes with this rank alone.

        If its rank is not known because the node that computes it is a barrier, as an If whose branches give
        different ranks, the operator tells the rank.

        Raises:
            UnknownShape: the input is absent, of another rank, or of unknown rank for another reason.
        """
        value = self.input(node, index)
        producer = None if value is None or value in self.axes else value.producer()
        if value is not None and producer is not None and producer in self.given_up:
            self.axes[value] = [Axis(None, self.given_up[producer]) for _ in range(rank)]
        axes = self.axes_of(node, index)
        if len(axes) != rank:
            raise UnknownShape(f"input {index} has {len(axes)} axes, not {rank}")
        return axes

    def private_axes(self, node: ir.Node, index: int) -> Axes | None:
        """The axes that an input has for itself, because its tensor of zeros or ones serves several nodes."""
        return self._private.get((id(node), index))

    def ints(self, node: ir.Node, index: int) -> Ints | None:
        """The symbolic value of an integer input.

        Axes whose lengths it holds are frozen, unless the rule states how the input must `follow`.
        """
        return self.integers.of(self.input(node, index))

    def constant(self, node: ir.Node, index: int) -> ir.TensorProtocol | None:
        """The data of an input that is an initializer or the output of a Constant node."""
        value = self.input(node, index)
        return None if value is None else self.tensors.get(value)

    # -- what a rule states --------------------------------------------------------------------------

    def output(self, node: ir.Node, axes: Sequence[Axis], index: int = 0) -> None:
        """State the axes of an output."""
        if index < len(node.outputs):
            self.axes[node.outputs[index]] = list(axes)

    def fixed(self, node: ir.Node, axis: int, size: int | None, index: int = 0) -> Axis:
        """A new axis of an output that cannot grow, because nothing in the file spells out its length.

        Args:
            node: the node.
            axis: the position of the axis.
            size: its length; None to ask ONNX's shape inference, if the file declares a length at all.
            index: the output.

        Raises:
            UnknownShape: the length is negative, as that of a window that does not fit.
        """
        if size is None and index < len(node.outputs):
            size = self._inferred_size(node.outputs[index], axis)
        if size is not None and size < 0:
            raise UnknownShape(f"axis {axis} of its output would have the length {size}")
        return Axis(size, self.barrier(node, axis, "the operator computes this length"))

    def _inferred_size(self, value: ir.Value, axis: int) -> int | None:
        declared = value.shape
        if declared is None or axis >= len(declared) or not isinstance(declared[axis], int):
            return None
        shape = self.shapes.of(value)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        return size if isinstance(size, int) else None

    def barrier(self, node: ir.Node, axis: int | None, reason: str) -> Barrier:
        return Barrier(operator_name(node), node_name(node), axis, reason)

    def unify(self, node: ir.Node, a: Axis, b: Axis, axis: int | None = None) -> None:
        unify(a, b, self.barrier(node, axis, "its inputs divide this axis into different parts"))

    def freeze(self, node: ir.Node, axes: Axis | Iterable[Axis], axis: int | None, reason: str) -> None:
        barrier = self.barrier(node, axis, reason)
        for one in (axes,) if isinstance(axes, Axis) else axes:
            freeze(one, barrier)

    def copy_evenly(self, node: ir.Node, axis: Axis, position: int, reason: str) -> None:
        """State that the entries of an axis must all be copied equally often, because of their moments."""
        self.evens.append(Even(axis, self.barrier(node, position, reason)))

    def tensor_of(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        """State that a value is a constant: a weight, unless a rule finds otherwise.

        Args:
            value: an initializer, or the output of a Constant node.
            tensor: its data; None if the file does not hold them.
        """
        self.constants.add(value)
        if tensor is not None:
            self.tensors[value] = tensor
        shape = tensor.shape if tensor is not None else value.shape
        if shape is None:
            return
        self.axes[value] = [Axis(size if isinstance(size, int) else None) for size in shape]
        self.views[value] = (View(value, tuple((axis,) for axis in range(len(self.axes[value])))),)
        if (
            tensor is not None
            and len(value.uses()) > 1
            and not any(reader.op_type in _REARRANGING for reader in value.consumers())
            and _is_fill(tensor)
        ):
            self.fills.add(value)

    def view(
        self,
        node: ir.Node,
        axes: Sequence[tuple[int, ...]],
        source: int = 0,
        obstacle: str = "",
        *,
        added: float = 0.0,
        scaled: bool = False,
    ) -> None:
        """State that output 0 holds entries of the constant at input ``source`` alone.

        Args:
            node: the node. Its other inputs, if any, are constants too.
            axes: for each axis of the output, the axes of the input that it runs over.
            source: the input.
            obstacle: why a coefficient on the input is not one on the output; empty if it is.
            added: a number that the node adds to the input.
            scaled: whether the node multiplies the input.
        """
        value = self.input(node, source)
        seen = () if value is None else self.views.get(value, ())
        if not seen:
            return
        self.views[node.outputs[0]] = tuple(
            View(
                view.base,
                tuple(tuple(b for a in group for b in view.axes[a]) for group in axes),
                view.obstacle or (_ADDED if added and view.scaled else obstacle),
                view.offset + added,
                view.scaled or scaled,
            )
            for view in seen
        )
        for index, other in enumerate(node.inputs):
            if index != source and other is not None and other in self.views:
                self.use(node, index)

    def view_parts(self, node: ir.Node, sources: Iterable[int]) -> None:
        """State that the outputs hold entries of the constants at these inputs, axis by axis.

        A node that cuts a weight into parts or joins several: Slice, Split, Concat.
        """
        if not self.is_constant(node):
            return
        seen = [self.views.get(value, ()) for index in sources if (value := self.input(node, index))]
        if all(seen):
            joined = tuple(dict.fromkeys(view for views in seen for view in views))
            self.views.update(dict.fromkeys(node.outputs, joined))

    def is_constant(self, node: ir.Node) -> bool:
        """Whether everything that the node reads is computed from constants alone."""
        return all(value is None or value in self.constants for value in node.inputs)

    def is_weight(self, node: ir.Node, index: int) -> bool:
        value = self.input(node, index)
        return value is not None and value in self.views

    def made(self, node: ir.Node, index: int, axis: int, part: Axis | None = None) -> None:
        """State that the weight at input ``index`` makes the channels of its ``axis``.

        A node that only computes another weight makes no channels.
        """
        if self.is_constant(node):
            return
        for use, base, meant in self._base_axes(node, index, axis, part):
            use.made.append((base, meant))

    def mixed(self, node: ir.Node, index: int, axis: int, part: Axis | None = None) -> None:
        """State that the node contracts ``axis`` of its weight: there the coefficients go."""
        for use, base, meant in self._base_axes(node, index, axis, part):
            use.mixed.append((base, meant))
            obstacle = self.obstacle(node, index)
            if obstacle:
                self.freeze(node, meant, axis, obstacle)

    def folded(
        self, node: ir.Node, index: int, axis: int, part: Axis, entries: npt.NDArray[np.bool_]
    ) -> None:
        """State that a node sums over ``part`` of two products that it makes of its weight.

        Args:
            node: the node.
            index: the input of the weight, or of a bias.
            axis: the axis of the input whose channels the node makes.
            part: the channels that are summed over.
            entries: by entry of the axis whether it takes their coefficients; those of one product do.
        """
        found = list(self._base_axes(node, index, axis, part))
        if len(found) != 1 or size_of(found[0][0].axes[found[0][1]]) != len(entries):
            self.freeze(node, part, axis, self.no_weight(node, index))
            return
        ((use, base, meant),) = found
        use.folded.append((base, meant, entries))
        obstacle = self.obstacle(node, index)
        if obstacle:
            self.freeze(node, part, axis, obstacle)

    def obstacle(self, node: ir.Node, index: int) -> str:
        """Why the weight at an input cannot hold the coefficients of a split; empty if it can."""
        value = node.inputs[index]
        assert value is not None
        for view in self.views[value]:
            dtype = view.base.dtype
            if dtype is not None and not dtype.is_floating_point():
                name, stored = self.names[view.base], dtype.name.lower()
                return f"the weight {name} is stored as {stored}, which cannot hold the coefficients"
            if view.obstacle:
                return view.obstacle
            if any(view.offset != other.offset for other in self.views[value] if other.base is view.base):
                return _ADDED
        return ""

    def use(self, node: ir.Node, index: int) -> tuple[Use, ...]:
        """How an input of the node uses the constants behind it; recorded at the first call."""
        value = node.inputs[index]
        assert value is not None
        bases = dict.fromkeys(view.base for view in self.views[value])
        return tuple(self._use(node, index, base) for base in bases)

    def _use(self, node: ir.Node, index: int, base: ir.Value) -> Use:
        key = (id(node), index, base)
        if key not in self._use_of:
            axes = self._private.get((id(node), index), self.axes[base])
            value = node.inputs[index]
            seen = () if value is None else self.views[value]
            offset = next(view.offset for view in seen if view.base is base)
            self._use_of[key] = Use(base, self.names[base], node, index, axes, offset)
            self.uses.append(self._use_of[key])
        return self._use_of[key]

    def contract(self, node: ir.Node, left: tuple[int, int], right: tuple[int, int]) -> None:
        """State that the node sums over an axis of two inputs, each given as (input, axis).

        The weight among them takes the coefficients. Of two activations one may take them on its way
        (`growpipe.graph_ops.groups.contracted_pairs`).
        """
        (i, axis_i), (j, axis_j) = left, right
        a, b = self.axes_of(node, i)[axis_i], self.axes_of(node, j)[axis_j]
        self.unify(node, a, b, axis_i)
        if self.is_weight(node, j):
            self.mixed(node, j, axis_j)
        elif self.is_weight(node, i):
            self.mixed(node, i, axis_i)
        else:
            self.contract_activations(node, a, (i, j), axis_i)

    def contract_activations(
        self, node: ir.Node, axis: Axis, operands: tuple[int, int], position: int
    ) -> None:
        """State that the node sums over an axis of two inputs that are no weights."""
        computed = [index for index in operands if self.input(node, index) in self.constants]
        if computed:
            self.freeze(node, axis, position, self.no_weight(node, computed[-1]))
        else:
            because = self.barrier(node, position, "it sums over this axis of two activations")
            self.contractions.append(Contraction(axis, operands, because, node))

    def default(self, node: ir.Node, attribute: str, value: float, axis: Axis) -> None:
        """State that an attribute which the node does not have is ``value`` because of a length."""
        self.defaults.append(Default(node, attribute, value, axis))

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
        self.follows.append(Follow(node, target, tuple(elements)))

    def count(self, node: ir.Node, constant: int, axes: Iterable[Axis]) -> None:
        """State the multiply-accumulates of the node."""
        self.macs.append(MacTerm(node, constant, tuple(axes)))

    def _base_axes(
        self, node: ir.Node, index: int, axis: int, part: Axis | None
    ) -> Iterator[tuple[Use, int, Axis]]:
        value = node.inputs[index]
        assert value is not None
        if part is None:
            part = self.axes_of(node, index)[axis]
        for view in self.views.get(value, ()):
            for base in view.axes[axis]:
                yield self._use(node, index, view.base), base, part


def size_of(axis: Axis) -> int | None:
    """The length of an axis as it is now."""
    return root(axis).size


_ADDED = "a number is added to a part of the weight, or to its product with another"
_REARRANGING = {
    "Cast", "CastLike", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_LARGEST_FILL = 1 << 16


def _is_fill(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is all zeros or all ones, as exporters share among unrelated nodes."""
    if not tensor.dtype.is_floating_point() or not 1 < tensor.size <= _LARGEST_FILL:
        return False
    array = tensor.numpy()
    return bool((array == 0).all() or (array == 1).all())
