"""Do the widths of a graph fit together? ONNX's own checker accepts a convolution with the wrong channels.

Shapes are inferred again. Then every operator that relates the widths of its inputs is looked at. Only what
is known counts: a dimension without a number is never a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.process import check_model
from growpipe.graph_ops.onnx_tools.shape_inference import infer_shapes, skeleton
from growpipe.graph_ops.operators import is_onnx

__all__ = [
    "ShapeInference",
    "check_structure",
    "check_widths",
    "contradicting_widths",
    "infer_with_problems",
    "wrong_declarations",
]

Dims = Sequence[int | None]


@dataclass(frozen=True)
class ShapeInference:
    """What shape inference made of a model.

    Attributes:
        model: a copy with inferred shapes; None if inference did not survive the model.
        problems: the contradictions that inference found; empty if there are none.
    """

    model: ir.Model | None
    problems: tuple[str, ...]


def infer_with_problems(model: ir.Model) -> ShapeInference:
    """Infer all shapes again; go on without strictness if they contradict each other."""
    try:
        return ShapeInference(infer_shapes(model), ())
    except CheckFailed as error:
        problems = (str(error),)
    try:
        return ShapeInference(infer_shapes(model, strict=False), problems)
    except CheckFailed:
        return ShapeInference(None, problems)


def check_widths(model: ir.Model) -> list[str]:
    """The places where the shapes of a model contradict each other; empty when there are none.

    These are what shape inference finds, `wrong_declarations` and `contradicting_widths`.
    """
    inference = infer_with_problems(model)
    if inference.model is None:
        return list(inference.problems)
    return [
        *inference.problems,
        *wrong_declarations(model, inference.model),
        *contradicting_widths(inference.model),
    ]


def wrong_declarations(model: ir.Model, inferred: ir.Model) -> list[str]:
    """The values whose declared shape is not the inferred one, and the initializers of another shape.

    Args:
        model: the model as it was read.
        inferred: a copy of it with inferred shapes.
    """
    problems = []
    for graph, original in zip(inferred.graphs(), model.graphs(), strict=True):
        for value in original.initializers.values():
            tensor = value.const_value
            if tensor is not None and not _agree(_dims(value), tensor.shape.numpy()):
                problems.append(
                    f"initializer {value.name!r} is declared as {value.shape}, but is {tensor.shape}"
                )
        for node, node_before in zip(graph, original, strict=True):
            for output, before in zip(node.outputs, node_before.outputs, strict=True):
                if not _agree(_dims(before), _dims(output)):
                    problems.append(
                        f"{_call(node)}: {output.name!r} is declared as {before.shape}, but is {output.shape}"
                    )
    return problems


def contradicting_widths(inferred: ir.Model) -> list[str]:
    """The nodes whose inputs do not fit together, in a model with inferred shapes.

    Checked: convolutions (channels, groups, bias), Gemm, MatMul, normalisations, PRelu, recurrent weights,
    scales of Quantize and Dequantize, operators that broadcast, Concat, Split, Reshape, Expand, Einsum.
    """
    return [
        f"{_call(node)}: {problem}"
        for graph in inferred.graphs()
        for node in graph
        if is_onnx(node) and node.op_type in _RULES
        for problem in _RULES[node.op_type](node)
    ]


def check_structure(model: ir.Model) -> list[str]:
    """What ONNX's own checker and `check_widths` find; empty when the model is sound.

    The checker sees the graph with its small tensors only, so models above 2 GB are checked like any other.
    """
    problems = []
    try:
        check_model(skeleton(model))
    except CheckFailed as error:
        problems.append(str(error))
    return problems + check_widths(model)


def _call(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} of {node.outputs[0].name!r}"


def _dims(value: ir.Value | None) -> list[int | None] | None:
    """The dimensions of a value, None for one without a number; None when the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def _agree(one: Dims | None, other: Dims | None) -> bool:
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def _input(node: ir.Node, index: int) -> list[int | None] | None:
    return _dims(node.inputs[index]) if index < len(node.inputs) else None


def _at(dims: Dims | None, axis: int) -> int | None:
    return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _constant(node: ir.Node, index: int) -> list[int] | None:
    """The integers of an input that is known without running the graph."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > 4096 or not tensor.dtype.is_integer():
        return None
    return [int(entry) for entry in np.ravel(tensor.numpy())]


def _conv(x: int, w: int, bias: int | None) -> Callable[[ir.Node], Iterator[str]]:
    def rule(node: ir.Node) -> Iterator[str]:
        channels, weight = _at(_input(node, x), 1), _input(node, w)
        groups = _int(node, "group", 1)
        if groups < 1:
            yield f"it has {groups} groups"
        if weight is None or groups < 1:
            return
        taken, made = _at(weight, 1), _at(weight, 0)
        if channels is not None and taken is not None and channels != taken * groups:
            yield f"its input has {channels} channels, its weight takes {taken} x {groups} group(s)"
        if made is not None and made % groups:
            yield f"its {made} filters do not divide into {groups} groups"
        if bias is not None and not _same(made, _at(_input(node, bias), 0)):
            yield f"it makes {made} channels, its bias has {_at(_input(node, bias), 0)}"

    return rule


def _conv_transpose(node: ir.Node) -> Iterator[str]:
    channels, weight, groups = _at(_input(node, 0), 1), _input(node, 1), _int(node, "group", 1)
    if groups < 1:
        yield f"it has {groups} groups"
        return
    taken, made = _at(weight, 0), _at(weight, 1)
    if not _same(channels, taken):
        yield f"its input has {channels} channels, its weight takes {taken}"
    if taken is not None and taken % groups:
        yield f"its {taken} input channels do not divide into {groups} groups"
    if made is not None and not _same(made * groups, _at(_input(node, 2), 0)):
        yield f"it makes {made * groups} channels, its bias has {_at(_input(node, 2), 0)}"


def _gemm(node: ir.Node) -> Iterator[str]:
    a, b = _input(node, 0), _input(node, 1)
    inner_a = _at(a, 0 if _int(node, "transA", 0) else 1)
    inner_b = _at(b, 1 if _int(node, "transB", 0) else 0)
    outer = _at(b, 0 if _int(node, "transB", 0) else 1)
    if not _same(inner_a, inner_b):
        yield f"its input has {inner_a} features, its weight takes {inner_b}"
    bias = _at(_input(node, 2), -1)
    if outer is not None and bias is not None and bias not in (1, outer):
        yield f"it makes {outer} features, its bias has {bias}"


def _matmul(node: ir.Node) -> Iterator[str]:
    a, b = _input(node, 0), _input(node, 1)
    if not a or not b:
        return
    inner = _at(b, -2) if len(b) > 1 else b[0]
    if not _same(a[-1], inner):
        yield f"its left factor has {a[-1]} columns, its right one {inner} rows"
    yield from _broadcast([a[:-2], b[:-2]])


def _vectors(first: int) -> Callable[[ir.Node], Iterator[str]]:
    """Inputs from ``first`` on are vectors with one entry per channel (axis 1) of input 0."""

    def rule(node: ir.Node) -> Iterator[str]:
        channels = _at(_input(node, 0), 1)
        for index in range(first, len(node.inputs)):
            length = _at(_input(node, index), 0)
            if not _same(channels, length):
                yield f"its input has {channels} channels, {_name(node, index)} has {length}"

    return rule


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return repr(value.name) if value is not None else f"input {index}"


def _layer_norm(node: ir.Node) -> Iterator[str]:
    x = _input(node, 0)
    axis = _int(node, "axis", -1)
    for index in range(1, len(node.inputs)):
        scale = _input(node, index)
        if x is not None and scale is not None:
            yield from _fits(scale, x[axis:] if axis < 0 else x[axis - len(x) :], _name(node, index))


def _prelu(node: ir.Node) -> Iterator[str]:
    x, slope = _input(node, 0), _input(node, 1)
    if x is not None and slope is not None:
        yield from _fits(slope, x, _name(node, 1))


def _fits(small: Dims, large: Dims, name: str) -> Iterator[str]:
    """``small`` must broadcast to ``large`` without changing it."""
    for one, other in zip(reversed(small), reversed(large), strict=False):
        if one not in (None, 1) and not _same(one, other):
            yield f"{name} has {one} entries where its input has {other}"


def _elementwise(node: ir.Node) -> Iterator[str]:
    yield from _broadcast([_dims(value) for value in node.inputs if value is not None])


def _broadcast(shapes: Sequence[Dims | None]) -> Iterator[str]:
    known = [shape for shape in shapes if shape is not None]
    for axis in range(1, max(map(len, known), default=0) + 1):
        sizes = sorted({size for shape in known if (size := _at(shape, -axis)) is not None and size != 1})
        if len(sizes) > 1:
            yield f"its inputs have {' and '.join(map(str, sizes))} entries on axis {-axis}"


def _concat(node: ir.Node) -> Iterator[str]:
    shapes = [dims for value in node.inputs if (dims := _dims(value)) is not None]
    if not shapes or not shapes[0] or len({len(shape) for shape in shapes}) > 1:
        return
    axis = _int(node, "axis", 0) % len(shapes[0])
    for position in range(len(shapes[0])):
        sizes = {shape[position] for shape in shapes} - {None}
        if position != axis and len(sizes) > 1:
            yield f"its inputs differ on axis {position}: {sorted(filter(None, sizes))}"


def _split(node: ir.Node) -> Iterator[str]:
    axis = _int(node, "axis", 0)
    length = _at(_input(node, 0), axis)
    attribute = node.attributes.get("split")
    sizes = list(attribute.as_ints()) if attribute is not None else _constant(node, 1)
    if sizes is not None and length is not None and sum(sizes) != length:
        yield f"its sizes {sizes} add to {sum(sizes)}, axis {axis} has {length}"


def _reshape(node: ir.Node) -> Iterator[str]:
    shape, target = _input(node, 0), _constant(node, 1)
    if shape is None or target is None:
        return
    copies_zero = not _int(node, "allowzero", 0)
    wanted: list[int | None] = [
        _at(shape, i) if size == 0 and copies_zero else size for i, size in enumerate(target)
    ]
    # Dimensions without a number that are copied (0) stand on both sides and cancel.
    copied = {i for i, size in enumerate(target) if size == 0 and copies_zero}
    unknown = [i for i, size in enumerate(shape) if size is None and i not in copied]
    held = math.prod(size for size in shape if size is not None)
    asked = math.prod(size for size in wanted if size is not None and size != -1)
    if unknown:
        # Only one length that any value may take, such as a batch, cannot hold a missing factor.
        if -1 not in wanted or len(unknown) > 1 or not _is_free(node, unknown[0]):
            return
        if asked and held and asked % held == 0:
            return  # the open dimension may be batch times length
    if (held % asked if -1 in wanted and asked else held != asked) or any(i >= len(shape) for i in copied):
        yield f"its input of {_text(shape)} does not fill {target}"


def _is_free(node: ir.Node, axis: int) -> bool:
    """Whether the length of an axis of input 0 is a symbol of the model, not one that inference made up."""
    value = node.inputs[0]
    length = value.shape[axis] if value is not None and value.shape is not None else None
    name = None if length is None or isinstance(length, int) else length.value
    return name is not None and not name.startswith("unk__")


def _text(dims: Dims) -> str:
    return " x ".join("?" if dim is None else str(dim) for dim in dims)


def _expand(node: ir.Node) -> Iterator[str]:
    target = _constant(node, 1)
    if target is not None:
        yield from _broadcast([_input(node, 0), target])


def _recurrent(gates: int) -> Callable[[ir.Node], Iterator[str]]:
    def rule(node: ir.Node) -> Iterator[str]:
        hidden = _int(node, "hidden_size", 0)
        x, w, r, bias = (_input(node, index) for index in range(4))
        if not _same(_at(x, 2), _at(w, 2)):
            yield f"its input has {_at(x, 2)} features, its weight takes {_at(w, 2)}"
        for name, length, expected in (
            ("weight", _at(w, 1), gates * hidden),
            ("recurrent weight", _at(r, 1), gates * hidden),
            ("recurrent weight", _at(r, 2), hidden),
            ("bias", _at(bias, 1), 2 * gates * hidden),
        ):
            if hidden and not _same(length, expected):
                yield f"its {name} has {length} entries, hidden size {hidden} asks for {expected}"

    return rule


def _quantised(node: ir.Node) -> Iterator[str]:
    x, scale, zero = (_input(node, index) for index in range(3))
    axis = _int(node, "axis", 1)
    if scale is not None and len(scale) == 1 and not _int(node, "block_size", 0):
        length = _at(x, axis)
        if scale[0] != 1 and x is not None and len(x) > 1 and not _same(scale[0], length):
            yield f"axis {axis} has {length} entries, its scale {scale[0]}"
    one_each = scale in ([], [1]) and zero in ([], [1])  # both spellings of one scale for the whole tensor
    if not one_each and not _agree(scale, zero):
        yield f"its scale has shape {scale}, its zero point {zero}"


def _einsum(node: ir.Node) -> Iterator[str]:
    attribute = node.attributes.get("equation")
    equation = attribute.as_string().replace(" ", "") if attribute is not None else ""
    if "." in equation:
        return
    sizes: dict[str, int] = {}
    for term, value in zip(equation.split("->")[0].split(","), node.inputs, strict=False):
        dims = _dims(value)
        if dims is None or len(dims) != len(term):
            continue
        for letter, size in zip(term, dims, strict=True):
            if size not in (None, 1) and sizes.setdefault(letter, size or 0) != size:
                yield f"{letter!r} of {equation!r} is {sizes[letter]} in one input and {size} in another"


_ELEMENTWISE = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual "
    "Max Mean Min Mod Mul Or Pow Sub Sum Where Xor"
)

_RULES: dict[str, Callable[[ir.Node], Iterator[str]]] = {
    "BatchNormalization": _vectors(1),
    "Concat": _concat,
    "Conv": _conv(0, 1, 2),
    "ConvInteger": _conv(0, 1, None),
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _quantised,
    "Einsum": _einsum,
    "Expand": _expand,
    "GRU": _recurrent(3),
    "Gemm": _gemm,
    "InstanceNormalization": _vectors(1),
    "LSTM": _recurrent(4),
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "PRelu": _prelu,
    "QLinearConv": _conv(0, 3, 8),
    "QuantizeLinear": _quantised,
    "RMSNormalization": _layer_norm,
    "RNN": _recurrent(1),
    "Reshape": _reshape,
    "Split": _split,
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
}
