"""Growing an ONNX graph by a split plan.

Growing is a substitution: every tensor axis, attribute and integer input that mentions a group which splits
follows the grown width. Nothing else of the graph changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.dims import atoms_of, grown_size
from growpipe.graph_ops.axes.integers import evaluate
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.axes.statements import Follow
from growpipe.graph_ops.edit.history import record_growth
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import Solution, solve
from growpipe.graph_ops.operators import node_name
from growpipe.graph_ops.plan.grow_tensor import TensorGrowth, grow_tensor
from growpipe.graph_ops.plan.lazy_tensor import GrownTensor
from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = ["grow_graph"]


def grow_graph(model: ir.Model, plan: SplitPlan) -> ir.Model:
    """The grown model; ``model`` is left untouched, and tensors that do not grow are shared with it.

    Grown tensors are computed when they are read or written (`GrownTensor`).

    Args:
        model: the model that ``plan`` was made for.
        plan: which channels are copied, with which coefficients and displacements.

    Raises:
        UsageError: the plan was made for another model, or splits what cannot split.
    """
    grown = model.clone()
    solution = solve(grown)
    _check(solution, plan, where=model.graph.name or "this model")
    sizes = _GrownSizes(solution, plan.widths)
    _grow_tensors(solution, plan)
    replaced = [_follow(solution, follow, sizes) for follow in solution.inference.follows]
    _update_shapes(solution, sizes)
    _drop_orphans(value for values in replaced for value in values)
    record_growth(grown, solution.groups.graph_hash, plan)
    return grown


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
    tensors = {value.name: tensor for value, tensor in solution.inference.tensors.items()}
    plan.check_belongs(lambda name: tensors[name].numpy(), where)
    for name, layout in plan.layouts.items():
        if _held(layout, plan.widths) != _held(groups.layouts.get(name), plan.widths):
            raise UsageError(f"the plan was not made for {where}: the channels of {name!r} lie differently")


def _held(layout: TensorLayout | None, widths: Mapping[str, int]) -> object:
    """What a layout says about the groups that grow: for each axis the role and the atoms in order."""
    if layout is None:
        return None
    return [
        (axis.role, [atom for atom in atoms_of(axis.dim) if atom.name in widths])
        for axis in layout.axes
        if any(atom.name in widths for atom in atoms_of(axis.dim))
    ]


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


def _grow_tensors(solution: Solution, plan: SplitPlan) -> None:
    inference = solution.inference
    for value, tensor in inference.tensors.items():
        layout = solution.groups.layouts.get(value.name or "")
        if layout is None or not _grows(layout, plan):
            continue
        lazy = _grown(tensor, value.name or "", layout, plan)
        producer = value.producer()
        if producer is None:
            value.const_value = lazy
            value.shape = ir.Shape(lazy.shape)
        else:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", lazy)
    for (node, index), layout in solution.private.items():
        shared = node.inputs[index]
        if shared is not None and _grows(layout, plan):
            array = inference.tensors[inference.views[shared].base].numpy()
            grown = grow_tensor(array, layout, plan.offspring, {}, 0.0)
            node.replace_input_with(index, _array(node, grown))


def _grows(layout: TensorLayout, plan: SplitPlan) -> bool:
    return any(atom.name in plan.widths for axis in layout.axes for atom in atoms_of(axis.dim))


def _grown(tensor: ir.TensorProtocol, name: str, layout: TensorLayout, plan: SplitPlan) -> GrownTensor:
    displacements = {g.group: g.displacements[name] for g in plan.groups if name in g.displacements}
    growth = TensorGrowth(layout, plan.offspring, displacements, plan.epsilon)
    return GrownTensor(tensor, growth, name)


def _follow(solution: Solution, follow: Follow, sizes: _GrownSizes) -> list[ir.Value]:
    """Make one attribute or integer input follow; the values that it no longer reads are returned."""
    wanted = [evaluate(element, sizes) for element in follow.elements]
    node = follow.node
    if isinstance(follow.target, str):
        attribute = node.attributes.get(follow.target)
        numbers = [number for number in wanted if number is not None]
        single = attribute is not None and attribute.type == ir.AttributeType.INT
        present = None if attribute is None else attribute.value
        if present != (numbers[0] if single else tuple(numbers)) and any(_changes(follow, sizes)):
            node.attributes[follow.target] = (
                ir.AttrInt64(follow.target, numbers[0])
                if single
                else ir.AttrInt64s(follow.target, tuple(numbers))
            )
        return []
    source = node.inputs[follow.target] if follow.target < len(node.inputs) else None
    if source is None:
        if any(_changes(follow, sizes)):
            # Equal parts by default: the lengths are no longer equal, so spell them out.
            node.resize_inputs(max(len(node.inputs), follow.target + 1))
            _replace(node, follow.target, _integers(node, wanted))
            node.attributes.pop("num_outputs", None)
        return []
    symbolic = solution.inference.integers.of(source)
    if symbolic is None:
        return []
    natural = [evaluate(element, sizes) for element in symbolic.elements]
    if symbolic.rank == 0 and follow.elements and any(_changes(follow, sizes)):
        # SplitToSequence: one length for all parts becomes a list of lengths.
        _replace(node, follow.target, _integers(node, wanted))
        return [source]
    if symbolic.rank == 0:
        return []
    changed = [
        want if want is not None and want != have else None
        for want, have in zip(wanted, natural, strict=True)
    ]
    if all(change is None for change in changed):
        return []
    patch = _Patch(solution.inference, node)
    _replace(node, follow.target, patch(source, changed, natural))
    return [source]


def _changes(follow: Follow, sizes: _GrownSizes) -> list[bool]:
    return [
        evaluate(element, sizes) != evaluate(element, lambda axis: root(axis).size)
        for element in follow.elements
    ]


class _Patch:
    """Builds, before a node, an integer tensor in which some elements have new values."""

    def __init__(self, inference: AxisInference, node: ir.Node) -> None:
        self._inference = inference
        self._node = node

    def __call__(
        self, value: ir.Value, changed: Sequence[int | None], natural: Sequence[int | None]
    ) -> ir.Value:
        if all(number is not None for number in natural):
            return self._constant(value, [c if c is not None else n for c, n in zip(changed, natural)])  # noqa: B905
        kept = np.array([change is None for change in changed])
        numbers = np.array([change or 0 for change in changed], self._type(value))
        inputs = [_array(self._node, kept), value, _array(self._node, numbers)]
        return _insert(self._node, "Where", inputs, numbers)

    def _constant(self, value: ir.Value, numbers: Sequence[int | None]) -> ir.Value:
        known = self._inference.integers.of(value)
        assert known is not None
        shape = known.array.shape
        return _array(self._node, np.array(numbers, self._type(value)).reshape(shape))

    @staticmethod
    def _type(value: ir.Value) -> type[np.integer]:
        return np.int32 if value.dtype == ir.DataType.INT32 else np.int64


def _integers(node: ir.Node, numbers: Sequence[int | None]) -> ir.Value:
    return _array(node, np.array(numbers, np.int64))


def _array(node: ir.Node, array: npt.NDArray) -> ir.Value:
    """A new initializer of the graph of ``node``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = _fresh_name(graph, f"{node_name(node)}_grown")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _insert(node: ir.Node, operator: str, inputs: Sequence[ir.Value], like: npt.NDArray) -> ir.Value:
    """The output of a new node before ``node``, of the type and shape of ``like``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    new = ir.node(operator, inputs)
    new.outputs[0].name = _fresh_name(graph, f"{node_name(node)}_grown")
    new.outputs[0].dtype = ir.DataType.from_numpy(like.dtype)
    new.outputs[0].shape = ir.Shape(like.shape)
    node.prepend(new)
    return new.outputs[0]


def _fresh_name(graph: ir.Graph, base: str) -> str:
    taken = graph.meta.get("growpipe.names")
    if taken is None:
        taken = set(graph.initializers) | {value.name for value in graph.inputs}
        taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
        graph.meta["growpipe.names"] = taken
    number, name = 0, base
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def _replace(node: ir.Node, index: int, value: ir.Value) -> None:
    node.replace_input_with(index, value)


def _update_shapes(solution: Solution, sizes: _GrownSizes) -> None:
    """Lengths that changed are written into the declared shapes."""
    for value, axes in solution.inference.axes.items():
        if value.shape is None or len(value.shape) != len(axes):
            continue
        shape = list(value.shape)
        for position, axis in enumerate(axes):
            if isinstance(shape[position], int) and sizes.grows(axis):
                shape[position] = _known(sizes(axis))
        if shape != list(value.shape):
            value.shape = ir.Shape(shape)


def _known(size: int | None) -> int:
    assert size is not None
    return size


def _drop_orphans(values: Iterable[ir.Value | None]) -> None:
    """Remove what computed a value that nobody reads any more."""
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
