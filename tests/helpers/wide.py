"""Wide references: what a split of a micro-graph must give, built without the code that grows graphs.

A case holds a graph in ONNX text form twice, narrow and wide, each with its own lengths and attributes
written out. The wide weights follow from the definition of a signed split by loops over channels: copies of
a channel repeat its entries, consumers multiply the copies' entries by their coefficients.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.split_plan import Displacement, GroupSplit, SplitPlan, hash_parameters
from tests.helpers.growing import parameters, session

EPSILON = 0.25


@dataclass(frozen=True)
class Split:
    """Which entry each grown entry of an axis copies, and with which coefficient."""

    width: int
    source: tuple[int, ...]
    coefficient: tuple[float, ...]


FOUR = Split(4, (0, 1, 2, 3, 1, 3, 1), (1, 2, 1, 0.5, -1.5, 0.5, 0.5))
THREE = Split(3, (0, 1, 2, 2), (1, 1, -1, 2))
TWO = Split(2, (0, 1, 1, 0), (0.5, 2, -1, 0.5))


def plain(part: Split | int) -> Split:
    """A number stands for so many entries that do not split."""
    return Split(part, tuple(range(part)), (1,) * part) if isinstance(part, int) else part


def times(outer: Split | int, inner: Split | int) -> Split:
    """Entries numbered (outer, inner), the inner one running fastest."""
    outer, inner = plain(outer), plain(inner)
    source, coefficient = [], []
    for o, v in zip(outer.source, outer.coefficient, strict=True):
        for i, w in zip(inner.source, inner.coefficient, strict=True):
            source.append(o * inner.width + i)
            coefficient.append(v * w)
    return Split(outer.width * inner.width, tuple(source), tuple(coefficient))


def beside(*parts: Split | int) -> Split:
    """Entries of one part after those of another."""
    start, source, coefficient = 0, [], []
    for part in map(plain, parts):
        source += [start + entry for entry in part.source]
        coefficient += part.coefficient
        start += part.width
    return Split(start, tuple(source), tuple(coefficient))


@dataclass(frozen=True)
class Step:
    """What happens to one axis of a weight."""

    axis: int
    split: Split
    mixed: bool

    def factors(self, array: npt.NDArray) -> npt.NDArray:
        """The coefficients, to multiply an array that has the grown axis."""
        shape = [1] * array.ndim
        shape[self.axis] = -1
        return np.array(self.split.coefficient, array.dtype).reshape(shape)

    def __call__(self, array: npt.NDArray) -> npt.NDArray:
        assert array.shape[self.axis] == self.split.width
        entries = []
        for source, coefficient in zip(self.split.source, self.split.coefficient, strict=True):
            entry = array.take(source, self.axis)
            entries.append(entry * coefficient if self.mixed else entry)
        return np.stack(entries, self.axis).astype(array.dtype)


def copied(axis: int, split: Split = FOUR) -> Step:
    return Step(axis, split, mixed=False)


def mixed(axis: int, split: Split = FOUR) -> Step:
    return Step(axis, split, mixed=True)


@dataclass(frozen=True)
class Weight:
    """A random tensor of this shape and what happens to its axes; ``values`` instead of random ones.

    Attributes:
        offset: a number that the graph adds to the tensor, so that coefficients multiply the sum.
    """

    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    values: npt.ArrayLike | None = None
    offset: float = 0.0

    def array(self, name: str, real: str) -> npt.NDArray:
        if self.values is not None:
            return np.asarray(self.values)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.normal(size=self.shape)
        values = np.abs(values) + 0.5 if name in ("var", "scale") else values
        return values.astype(np.float64 if real == "double" else np.float32)


def weight(shape: tuple[int, ...], *steps: Step) -> Weight:
    return Weight(shape, steps)


@dataclass(frozen=True)
class Move:
    """The displacement of one grown channel of a group in one weight.

    Attributes:
        entries: the grown entries of the axis that belong to the channel.
    """

    axis: int
    channel: int = 4
    entries: tuple[int, ...] = (4,)
    group: str = "a"

    def delta(self, shape: tuple[int, ...]) -> npt.NDArray:
        """[entries, other axes of the narrow weight]."""
        others = shape[: self.axis] + shape[self.axis + 1 :]
        return np.random.default_rng(9).normal(size=(len(self.entries), *others))


@dataclass(frozen=True)
class Case:
    """A narrow and a wide graph.

    Attributes:
        inputs: the typed input; ``real`` stands for double or float.
        narrow: integer initializers and nodes of the narrow graph.
        weights: by name; ``z/body/w`` is the weight ``w`` of the body ``body`` of the node that computes z.
        wide: integer initializers and nodes of the wide graph; by default those of the narrow one, where
            no length is written out.
        splits: by group.
        moves: by weight.
        reals: the types to try; onnxruntime runs the graph in float.
        constants: weights that are held by Constant nodes.
    """

    inputs: str
    narrow: str
    weights: Mapping[str, Weight]
    wide: str | None = None
    splits: Mapping[str, Split] = field(default_factory=lambda: {"a": FOUR})
    moves: Mapping[str, Move] = field(default_factory=dict)
    opset: int = 18
    batch: int = 2
    reals: tuple[str, ...] = ("double", "float")
    constants: tuple[str, ...] = ()

    def original(self, real: str) -> ir.Model:
        return self._model(self.narrow, real, {n: w.array(n, real) for n, w in self.weights.items()})

    def reference(self, real: str, epsilon: float) -> ir.Model:
        wide = {}
        for name, given in self.weights.items():
            array, move = given.array(name, real), self.moves.get(name)
            kind = array.dtype
            array = array.astype(np.float64) + given.offset if given.offset else array
            delta = None if move is None else move.delta(array.shape)
            # A displacement is given in the narrow coordinates of all other axes: the others come later.
            for step in sorted(given.steps, key=lambda s: move is None or s.axis != move.axis):
                if move is None or delta is None or step.axis != move.axis:
                    array = step(array)
                    continue
                array = replace(step, mixed=False)(array)
                for entry, direction in zip(move.entries, delta, strict=True):
                    where = (slice(None),) * move.axis + (entry,)
                    array[where] += (epsilon * direction).astype(array.dtype)
                if step.mixed:
                    array = array * step.factors(array)
            wide[name] = (array - given.offset).astype(kind) if given.offset else array
        return self._model(self.wide or self.narrow, real, wide)

    def _model(self, body: str, real: str, weights: Mapping[str, npt.NDArray]) -> ir.Model:
        opsets = f'"" : {self.opset}' + (', "com.microsoft" : 1' if "com.microsoft" in body else "")
        text = f"<ir_version: 10, opset_import: [{opsets}]> case ({self.inputs}) => (real y) {body}"
        proto = onnx.parser.parse_model(text.replace("real", real))
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        for name, array in weights.items():
            *path, own = name.split("/")
            graph, tensor = _body(proto.graph, path), numpy_helper.from_array(array, own)
            if name in self.constants:
                graph.node.insert(0, onnx.helper.make_node("Constant", [], [own], value=tensor))
            else:
                graph.initializer.append(tensor)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    def plan(self, model: ir.Model, epsilon: float) -> SplitPlan:
        groups = find_channel_groups(model)
        tensors = parameters(model.graph)
        layouts = groups.restricted(self.splits)
        displacements: dict[str, dict[str, Displacement]] = {name: {} for name in self.splits}
        for name, move in self.moves.items():
            delta = move.delta(tuple(tensors[name].shape.numpy()))
            displacements[move.group][name] = Displacement(move.axis, np.array([move.channel]), delta[None])
        splits = tuple(
            GroupSplit(
                name, split.width, np.array(split.source), np.array(split.coefficient), displacements[name]
            )
            for name, split in self.splits.items()
        )
        digest = hash_parameters(layouts, lambda name: tensors[name].numpy())
        return SplitPlan(splits, layouts, epsilon, groups.graph_hash, digest, "by hand")

    def feeds(self, flag: bool = True) -> dict[str, npt.NDArray]:
        """Values of all inputs; ``flag`` of those that are true or false."""
        declared = onnx.parser.parse_graph(f"g ({self.inputs.replace('real', 'float')}) => () {{ }}").input
        rng = np.random.default_rng(1)
        feeds = {}
        for value in declared:
            shape = [dim.dim_value or self.batch for dim in value.type.tensor_type.shape.dim]
            match value.type.tensor_type.elem_type:
                case onnx.TensorProto.INT64:
                    feeds[value.name] = rng.integers(0, 10, shape)
                case onnx.TensorProto.BOOL:
                    feeds[value.name] = np.full(shape, flag)
                case _:
                    feeds[value.name] = rng.normal(size=shape).astype(np.float32)
        return feeds


def _body(graph: onnx.GraphProto, path: list[str]) -> onnx.GraphProto:
    for node, attribute in zip(path[::2], path[1::2], strict=True):
        (holder,) = (each for each in graph.node if node in each.output)
        (graph,) = (each.g for each in holder.attribute if each.name == attribute)
    return graph


def image(z: str, b: Weight, wide: str | None = None, a: Weight | None = None, ints=("", ""), **rest) -> Case:
    """``z`` computes z from h, which the filters ``a`` make; the filters ``b`` mix it."""
    weights = {"a": a or weight((4, 3, 3, 3), copied(0)), "b": b, **rest.pop("weights", {})}
    bodies = [
        f"{f'<{integers}>' if integers else ''} {{ h = Conv (x, a) {body} y = Conv (z, b) }}"
        for body, integers in ((z, ints[0]), (wide or z, ints[1]))
    ]
    return Case("real[n,3,6,6] x", bodies[0], weights, bodies[1], **rest)


def mlp(h: str, y: str, wide: str | None = None, inputs="real[n,5,3] x", **rest) -> Case:
    """h, a Tanh to r, and y."""
    narrow = f"{{ {h} r = Tanh (h) {y} }}"
    weights = {name: rest.pop(name) for name in ("a", "b", "d") if name in rest}
    return Case(inputs, narrow, weights, wide, **rest)


def assert_grown_as_written(case: Case) -> None:
    """Grown by its plan, the narrow graph of a case is the wide one, and computes what that computes.

    At ε = 0 both compute what the narrow one does, so the reference itself is right.
    """
    for real in case.reals:
        model = case.original(real)
        for epsilon in (0.0, EPSILON) if case.moves else (0.0,):
            grown, wide = grow_graph(model, case.plan(model, epsilon)), case.reference(real, epsilon)
            assert_same_graph(grown, wide)
            for flag in _flags(case) if real == "float" else ():
                feeds = case.feeds(flag)
                (expected,) = session(wide, optimised=False).run(None, feeds)
                (found,) = session(grown, optimised=False).run(None, feeds)
                (before,) = session(model, optimised=False).run(None, feeds)
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
                scale = max(float(np.abs(before).max()), 1e-6)
                difference = float(np.abs(expected - before).max())
                assert (difference > 1e-4 * scale) if epsilon else (difference < 1e-5 * scale)


def _flags(case: Case) -> tuple[bool, ...]:
    return (True, False) if "bool" in case.inputs else (True,)


def assert_same_graph(one: ir.Model, other: ir.Model) -> None:
    """The same operators in the same order, wired alike, with equal attributes, integers, weights, and shapes
    of what lies between."""
    _assert_same_nodes(one.graph, other.graph, {})
    assert _weights(one) == _weights(other)


def _assert_same_nodes(one: ir.Graph, other: ir.Graph, pairs: dict[ir.Value, ir.Value]) -> None:
    """As `assert_same_graph`; ``pairs`` are the values of outer graphs, to which those of the graphs come."""
    assert [node.op_type for node in one] == [node.op_type for node in other]
    inputs = list(zip(one.inputs, other.inputs, strict=True))
    assert all(a.name == b.name and a.dtype == b.dtype and a.shape == b.shape for a, b in inputs)
    pairs.update(inputs)
    for left, right in zip(one, other, strict=True):
        assert left.domain == right.domain
        assert left.attributes.keys() == right.attributes.keys(), left
        for name, attribute in left.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _assert_same_nodes(attribute.as_graph(), right.attributes[name].as_graph(), pairs)
            else:
                _assert_same_attribute(attribute, right.attributes[name])
        for a, b in zip(_given(left), _given(right), strict=True):
            if a is None or b is None:
                assert a is b
            elif a in pairs:
                assert pairs[a] is b
            else:
                assert a.is_initializer(), a
                assert b.is_initializer(), b
                assert a.shape == a.const_value.shape
                _assert_same_tensor(a.const_value, b.const_value)
        pairs |= zip(left.outputs, right.outputs, strict=True)
        for a, b in zip(left.outputs, right.outputs, strict=True):
            assert a.dtype == b.dtype, a
            if isinstance(a.type, ir.TensorType):
                assert _numbers(a) == _numbers(b), a
            else:
                # What the parts of a sequence have in common is not known of the grown ones.
                assert a.shape is None, a
    assert [pairs[value] for value in one.outputs] == list(other.outputs)
    assert all(value.uses() for graph in (one, other) for value in graph.initializers.values())


def _numbers(value: ir.Value) -> list[int | None] | None:
    """The declared shape, None for a length that is no number."""
    return None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]


def _weights(model: ir.Model) -> list[str]:
    """The names of floating initializers; equal integers may be held once or once for each reader."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    return sorted(value.name for value in values if value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE))


def _given(node: ir.Node) -> list[ir.Value | None]:
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _assert_same_attribute(one: ir.Attr, other: ir.Attr) -> None:
    assert one.type == other.type
    if one.type == ir.AttributeType.TENSOR:
        _assert_same_tensor(one.value, other.value)
    else:
        assert one.value == other.value, one.name


def _assert_same_tensor(one: ir.TensorProtocol, other: ir.TensorProtocol) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=0)
