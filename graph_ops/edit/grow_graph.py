"""Growing an ONNX graph by a split plan.

Growing is a substitution: every tensor axis, attribute and integer input that mentions a group which splits
follows the grown width. Nothing else of the graph changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.dims import atoms_of, grown_size
from growpipe.graph_ops.axes.integers import Expression, evaluate, known_factor
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.axes.statements import Follow
from growpipe.graph_ops.bodies import bodies_of
from growpipe.graph_ops.edit.additions import Additions
from growpipe.graph_ops.edit.clean_up import raise_ir_version
from growpipe.graph_ops.edit.description import drop_test_figure
from growpipe.graph_ops.edit.history import record_growth
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import Solution, solve
from growpipe.graph_ops.onnx_tools.shape_inference import input_symbols
from growpipe.graph_ops.operators import node_name
from growpipe.graph_ops.plan.grow_tensor import TensorGrowth, grow_tensor
from growpipe.graph_ops.plan.lazy_tensor import GrownTensor
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.graph_ops.plan.stored_precision import is_exact, is_low_precision
from growpipe.graph_ops.plan.whole_factors import check_whole_factors

__all__ = ["grow_graph"]


def grow_graph(model: ir.Model, plan: SplitPlan, solution: Solution | None = None) -> ir.Model:
    """The model grown by a plan.

    Requires: every group of the plan can split in ``model``, and every parameter of the plan has the values
    that it had when the plan was made.

    Ensures: ``model`` is as before, and tensors that do not grow are shared with it. At ε = 0 the grown model
    computes the same function, up to rounding. Declared shapes of everything that grew follow. The metadata
    records the step (`growpipe.graph_ops.edit.history`).

    Grown tensors are computed when they are read or written (`GrownTensor`).

    Args:
        model: the model that ``plan`` was made for.
        plan: which channels are copied, with which coefficients and displacements.
        solution: what `solve` says of ``model`` as it is now; None to solve here.

    Raises:
        UsageError: the plan was made for another model, splits what cannot split, or has coefficients that
            change the function at ε = 0 because a weight is stored in less than 32 bits; or the solution is
            of another model.
    """
    if solution is None:
        solution = solve(model)
    elif solution.model is not model:
        raise UsageError("the solution of the channel groups belongs to another model; solve this one")
    _check(solution, plan, where=model.graph.name or "this model")
    growth = _Growth(solution, plan)
    growth.grow_tensors()
    growth.follow_lengths()
    growth.update_shapes()
    raise_ir_version(growth.grown)
    record_growth(growth.grown, solution.groups.graph_hash, plan)
    drop_test_figure(growth.grown)
    return growth.grown


def _check(solution: Solution, plan: SplitPlan, where: str) -> None:
    groups = solution.groups
    if plan.graph_hash != groups.graph_hash:
        raise UsageError(f"the plan was not made for {where}: the structure of the graph differs")
    for split in plan.groups:
        group = groups[split.group]
        if group.barrier is not None:
            raise UsageError(f"the plan splits {split.group!r}, which cannot split: {group.barrier}")
        if group.width != split.width:
            raise UsageError(
                f"the plan was not made for {where}: {split.group!r} has {group.width} channels, "
                f"not {split.width}"
            )
    check_whole_factors(groups, plan)
    plan.check_belongs(groups.read, where)
    _check_precision(plan, groups.read)
    for name, layout in plan.layouts.items():
        if _held(layout, plan.widths) != _held(groups.layouts.get(name), plan.widths):
            raise UsageError(f"the plan was not made for {where}: the channels of {name!r} lie differently")


def _held(layout: TensorLayout | None, widths: Mapping[str, int]) -> object:
    """What a layout says about the groups that grow: by axis the role and the atoms in order; the offset."""
    if layout is None:
        return None
    axes = [
        (axis.role, [atom for atom in atoms_of(axis.dim) if atom.name in widths])
        for axis in layout.axes
        if any(atom.name in widths for atom in atoms_of(axis.dim))
    ]
    return axes, layout.offset if axes else 0.0


def _check_precision(plan: SplitPlan, read: Callable[[str], AnyArray]) -> None:
    for name, layout in plan.layouts.items():
        array = read(name)
        if is_low_precision(array.dtype) and not is_exact(array, layout, plan.offspring):
            raise UsageError(
                f"{name!r} is stored as {array.dtype}, which cannot hold its products with the plan's "
                "coefficients: the function would change at ε = 0; make a plan with growpipe plan"
            )


class _GrownSizes:
    """The grown length of every axis."""

    def __init__(self, solution: Solution, widths: Mapping[str, int]) -> None:
        self._solution = solution
        self._widths = widths
        self._grown: dict[Axis, int | None] = {}

    def __call__(self, axis: Axis) -> int | None:
        axis = root(axis)
        if axis not in self._grown:
            if axis.size is None:
                self._grown[axis] = None
            else:
                self._grown[axis] = grown_size(self._solution.dim(axis), self._widths)
        return self._grown[axis]

    def grows(self, axis: Axis) -> bool:
        return self(axis) != root(axis).size


class _Growth:
    """One application of a plan: a clone of the model, and the edits that make it grow.

    The solution speaks of the original's values and nodes; `_value` and `_node` give their clones.

    Attributes:
        grown: the clone.
    """

    def __init__(self, solution: Solution, plan: SplitPlan) -> None:
        original = solution.inference.model
        self.grown = original.clone()
        self._solution = solution
        self._plan = plan
        self._sizes = _GrownSizes(solution, plan.widths)
        self._additions = Additions(self.grown.graph)
        self._node: dict[ir.Node, ir.Node] = {}
        self._value: dict[ir.Value, ir.Value] = {}
        self._input_symbols = input_symbols(original)
        self._pair(original.graph, self.grown.graph)

    def _pair(self, before: ir.Graph, after: ir.Graph) -> None:
        """Remember which node and value of a clone belongs to which original, in bodies too."""
        self._value.update(zip(before.inputs, after.inputs, strict=True))
        self._value.update(zip(before.initializers.values(), after.initializers.values(), strict=True))
        for node, clone in zip(before, after, strict=True):
            self._node[node] = clone
            self._value.update(zip(node.outputs, clone.outputs, strict=True))
            for (_, body), (_, cloned) in zip(bodies_of(node), bodies_of(clone), strict=True):
                self._pair(body, cloned)

    def grow_tensors(self) -> None:
        """Every parameter that a growing group touches gets its grown tensor."""
        inference, plan = self._solution.inference, self._plan
        for value, tensor in inference.tensors.items():
            name = inference.names[value]
            layout = self._solution.groups.layouts.get(name)
            if layout is None or not _grows(layout, plan):
                continue
            displacements = {g.group: g.displacements[name] for g in plan.groups if name in g.displacements}
            growth = TensorGrowth(layout, plan.offspring, displacements, plan.epsilon)
            lazy = GrownTensor(tensor, growth, value.name or "")
            clone = self._value[value]
            producer = clone.producer()
            if producer is None:
                clone.const_value = lazy
                clone.shape = ir.Shape(lazy.shape)
            else:
                producer.attributes.clear()
                producer.attributes["value"] = ir.AttrTensor("value", lazy)
        for (node, index), layout in self._solution.private.items():
            shared = node.inputs[index]
            if shared is not None and _grows(layout, plan):
                array = inference.tensors[inference.views[shared][0].base].numpy()
                grown = grow_tensor(array, layout, plan.offspring, {}, 0.0)
                self._node[node].replace_input_with(index, self._constant(node, grown))

    def follow_lengths(self) -> None:
        """Attributes and integer inputs that spell out a grown length follow; defaults of one stay."""
        for default in self._solution.inference.defaults:
            if self._sizes.grows(default.axis):
                attributes = self._node[default.node].attributes
                attributes[default.attribute] = ir.AttrFloat32(default.attribute, default.value)
        unread: list[ir.Value] = []
        for follow in self._solution.inference.follows:
            if isinstance(follow.target, str):
                self._follow_attribute(follow, follow.target)
            else:
                unread += self._follow_input(follow, follow.target)
        _drop_orphans(unread)

    def update_shapes(self) -> None:
        """Declared lengths follow. Of inner values only those stay that the solution knows to be right.

        A runtime believes what a file declares, and what was harmless in the model may not be in its growth.
        """
        axes_of = self._solution.inference.axes
        for value, clone in self._value.items():
            axes = axes_of.get(value)
            is_inner = clone.producer() is not None and not clone.is_graph_output()
            if clone.shape is None:
                continue
            if axes is None or len(clone.shape) != len(axes):
                clone.shape = None if is_inner else clone.shape
                continue
            lengths = [self._length(*pair, is_inner) for pair in zip(clone.shape, axes, strict=True)]
            if lengths != list(clone.shape):
                clone.shape = ir.Shape(lengths)

    def _length(
        self, declared: int | ir.SymbolicDim, axis: Axis, is_inner: bool
    ) -> int | ir.SymbolicDim | None:
        """The length of an axis to declare in the grown model; None if it is not known."""
        if not isinstance(declared, int):
            # A symbol such as "4*batch" counts channels, too; only those of inputs surely do not.
            return declared if not is_inner or declared.value in self._input_symbols else None
        return self._sizes(axis) if is_inner or self._sizes.grows(axis) else declared

    def _follow_attribute(self, follow: Follow, name: str) -> None:
        if not self._changes(follow):
            return
        node = self._node[follow.node]
        numbers = [number for number in self._wanted(follow) if number is not None]
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT:
            node.attributes[name] = ir.AttrInt64(name, numbers[0])
        else:
            node.attributes[name] = ir.AttrInt64s(name, tuple(numbers))

    def _follow_input(self, follow: Follow, index: int) -> list[ir.Value]:
        """Make one integer input follow; the value that the node no longer reads is returned."""
        node = self._node[follow.node]
        source = follow.node.inputs[index] if index < len(follow.node.inputs) else None
        if source is None:
            if self._changes(follow):
                # Equal parts by default: the lengths are no longer equal, so spell them out.
                node.resize_inputs(max(len(node.inputs), index + 1))
                node.replace_input_with(index, self._constant(follow.node, _integers(self._wanted(follow))))
                node.attributes.pop("num_outputs", None)
            return []
        symbolic = self._solution.inference.integers.of(source)
        if symbolic is None:
            return []
        if symbolic.rank == 0:
            if not (follow.elements and self._changes(follow)):
                return []
            # SplitToSequence: one length for all parts becomes a list of lengths.
            value = self._constant(follow.node, _integers(self._wanted(follow)))
        else:
            natural = [evaluate(element, self._sizes) for element in symbolic.elements]
            changed = [
                want if want is not None and want != have else None
                for want, have in zip(self._wanted(follow), natural, strict=True)
            ]
            times = [self._times(*pair) for pair in zip(follow.elements, symbolic.elements, strict=True)]
            if all(change is None for change in changed) and all(factor == 1 for factor in times):
                return []
            value = self._patched(follow.node, source, changed, natural, times, symbolic.array.shape)
        node.replace_input_with(index, value)
        return [self._value[source]]

    def _times(self, wanted: Expression, natural: Expression) -> Fraction:
        """What an element that is known only when the model runs is to be multiplied by.

        Of ``batch * heads`` only the heads are known, which is enough.
        """
        if None in (wanted, natural) or evaluate(wanted, self._sizes) is not None:
            return Fraction(1)
        known = [known_factor(expression, self._sizes) for expression in (wanted, natural)]
        return Fraction(1) if None in known or 0 in known else Fraction(known[0] or 1, known[1] or 1)

    def _wanted(self, follow: Follow) -> list[int | None]:
        return [evaluate(element, self._sizes) for element in follow.elements]

    def _changes(self, follow: Follow) -> bool:
        """Whether any of the lengths grows."""
        now = [evaluate(element, lambda axis: root(axis).size) for element in follow.elements]
        return self._wanted(follow) != now

    def _patched(
        self,
        node: ir.Node,
        source: ir.Value,
        changed: Sequence[int | None],
        natural: Sequence[int | None],
        times: Sequence[Fraction],
        shape: tuple[int, ...],
    ) -> ir.Value:
        """An integer tensor like ``source`` in which the elements that ``changed`` names have new values.

        Args:
            node: what reads it.
            source: the integer tensor as it is.
            changed: by element the new value; None for an element that stays.
            natural: by element the value that ``source`` will have in the grown graph; None if that is known
                only when the model runs.
            times: by element the factor of a value that is known only when the model runs.
            shape: of the tensor.
        """
        integer = np.int32 if source.dtype == ir.DataType.INT32 else np.int64
        if None not in natural:
            numbers = [have if new is None else new for new, have in zip(changed, natural, strict=True)]
            return self._constant(node, np.array(numbers, integer).reshape(shape))
        value = self._value[source]
        for operator, factors in (
            ("Mul", [factor.numerator for factor in times]),
            ("Div", [factor.denominator for factor in times]),
        ):
            if any(factor != 1 for factor in factors):
                value = self._computed(node, operator, [value], np.array(factors, integer).reshape(shape))
        if all(new is None for new in changed):
            return value
        kept = self._constant(node, np.array([new is None for new in changed]).reshape(shape))
        patch = np.array([new or 0 for new in changed], integer).reshape(shape)
        return self._computed(node, "Where", [kept, value], patch)

    def _computed(self, node: ir.Node, operator: str, inputs: list[ir.Value], last: AnyArray) -> ir.Value:
        """The output of a new node before ``node``; its inputs are these and a constant of its shape."""
        inputs = [*inputs, self._constant(node, last)]
        name = f"{node_name(node)}_grown"
        return self._additions.node_before(self._node[node], operator, inputs, name, last)

    def _constant(self, node: ir.Node, array: AnyArray) -> ir.Value:
        return self._additions.constant(f"{node_name(node)}_grown", array)


def _grows(layout: TensorLayout, plan: SplitPlan) -> bool:
    return any(atom.name in plan.widths for axis in layout.axes for atom in atoms_of(axis.dim))


def _integers(numbers: Sequence[int | None]) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _drop_orphans(values: Iterable[ir.Value | None]) -> None:
    """Remove what computed a value that nothing reads any more."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            if value.is_initializer() and value.graph is not None:
                value.graph.initializers.pop(value.name or "")
            continue
        if producer.graph is None or any(o.uses() or o.is_graph_output() for o in producer.outputs):
            continue
        inputs = list(producer.inputs)
        producer.graph.remove(producer, safe=True)
        stack.extend(inputs)
