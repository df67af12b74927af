"""Small integer tensors computed symbolically: how the targets of computed Reshapes are known.

This module follows only the values; what operators do to axes stands under `rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.integers import ArithmeticOperator, Expression, Ints, calculate
from growpipe.graph_ops.operators import attribute_of, is_onnx

__all__ = ["IntegerValues"]

Objects = npt.NDArray[np.object_]

_MOST_ELEMENTS = 64  # longer integer tensors are data, not shapes


class IntegerValues:
    """The symbolic values of the small integer tensors of a graph.

    Args:
        tensors: the constants of the graph, by value; read when a value is asked for.
    """

    def __init__(self, tensors: Mapping[ir.Value, ir.TensorProtocol]) -> None:
        self._tensors = tensors
        self._known: dict[ir.Value, Ints] = {}

    def __contains__(self, value: object) -> bool:
        """Whether the value was stated, computed or asked for before."""
        return value in self._known

    def state(self, value: ir.Value, array: npt.NDArray[np.object_]) -> None:
        """Say what the elements of an integer tensor are."""
        self._known[value] = Ints(array)

    def of(self, value: ir.Value | None) -> Ints | None:
        """The symbolic value of a small integer tensor; None for any other."""
        if value is None:
            return None
        tensor = self._tensors.get(value)
        if (
            value not in self._known
            and tensor is not None
            and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
            and tensor.size <= _MOST_ELEMENTS
        ):
            # Through a list, so that the elements are Python's own integers.
            array = tensor.numpy()
            numbers = np.array([int(element) for element in array.flat], object)
            self._known[value] = Ints(numbers.reshape(array.shape))
        return self._known.get(value)

    def compute(self, node: ir.Node) -> None:
        """Find the value of the output, if all inputs have one and the operator is known."""
        function = _COMPUTE.get(node.op_type)
        if function is None or not is_onnx(node) or not node.inputs:
            return
        inputs: list[Objects | None] = []
        for value in node.inputs:
            known = self.of(value)
            if value is not None and known is None:
                return
            inputs.append(None if known is None else known.array)
        try:
            result = function(node, inputs)
        except (ValueError, IndexError, TypeError, AttributeError):
            return  # not all numbers are known, or they do not fit: nothing is stated
        if result is not None and result.size <= _MOST_ELEMENTS:
            self.state(node.outputs[0], result)


def _elementwise(function: Callable[..., Expression], count: int) -> Callable[..., Objects]:
    apply = np.frompyfunc(function, count, 1)

    def compute(_: ir.Node, inputs: list[Objects]) -> Objects:
        return np.asarray(apply(*inputs), object)

    return compute


def _calculation(operator: ArithmeticOperator) -> Callable[..., Objects]:
    return _elementwise(lambda a, b: calculate(operator, a, b), 2)


def _equal(a: Expression, b: Expression) -> Expression:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    # A length is never negative: exporters ask ``size == -1`` to find the axes that Expand keeps.
    if any(isinstance(side, int) and side < 0 for side in (a, b)) and None not in (a, b):
        return 0
    return None


def _where(condition: Expression, yes: Expression, no: Expression) -> Expression:
    return (yes if condition else no) if isinstance(condition, int) else None


def _numbers(array: Objects | None) -> list[int]:
    """The elements, all of them numbers."""
    if array is None or not all(isinstance(element, int) for element in array.flat):
        raise ValueError
    return [int(element) for element in array.flat]


def _axes(node: ir.Node, inputs: list[Objects | None]) -> list[int] | None:
    stated: list[int] | None = attribute_of(node, "axes")
    if stated is None and len(inputs) > 1 and inputs[1] is not None:
        stated = _numbers(inputs[1])
    return stated


def _cast(node: ir.Node, inputs: list[Objects]) -> Objects | None:
    whole = (ir.DataType.INT64, ir.DataType.INT32)
    return inputs[0] if attribute_of(node, "to") in whole else None


def _concat(node: ir.Node, inputs: list[Objects]) -> Objects:
    return np.concatenate(inputs, axis=attribute_of(node, "axis"))


def _constant_of_shape(node: ir.Node, inputs: list[Objects]) -> Objects | None:
    filler = attribute_of(node, "value")
    if filler is None or filler.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    shape = _numbers(inputs[0])
    return (
        None
        if math.prod(shape) > _MOST_ELEMENTS
        else np.full(shape, int(filler.numpy().reshape(-1)[0]), object)
    )


def _expand(_: ir.Node, inputs: list[Objects]) -> Objects:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(_numbers(inputs[1])))
    return np.broadcast_to(inputs[0], shape)


def _gather(node: ir.Node, inputs: list[Objects]) -> Objects:
    index = np.array(_numbers(inputs[1]), np.int64).reshape(inputs[1].shape)
    return np.asarray(inputs[0].take(index, axis=attribute_of(node, "axis", 0)), object)


def _product(node: ir.Node, inputs: list[Objects | None]) -> Objects | None:
    array, axes = inputs[0], _axes(node, inputs)
    if array is None or array.ndim != 1 or axes not in (None, [0], [-1]):
        return None
    total: Expression = 1
    for element in Ints(array).elements:
        total = calculate("mul", total, element)
    return np.array([total] if attribute_of(node, "keepdims", 1) else total, object)


def _reshape(node: ir.Node, inputs: list[Objects]) -> Objects:
    target = _numbers(inputs[1])
    if not attribute_of(node, "allowzero", 0):
        target = [inputs[0].shape[i] if size == 0 else size for i, size in enumerate(target)]
    return inputs[0].reshape(target)


def _slice(_: ir.Node, inputs: list[Objects | None]) -> Objects | None:
    array, starts, ends = inputs[0], _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = _numbers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    if array is None:
        return None
    cut = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Past the beginning, backwards: numpy says None where ONNX says a very negative number.
        stop = None if step < 0 and end < -array.shape[axis] else end
        cut[axis] = slice(start, stop, step)
    return array[tuple(cut)]


def _squeeze(node: ir.Node, inputs: list[Objects]) -> Objects:
    axes = _axes(node, list(inputs))
    return inputs[0].squeeze(None if axes is None else tuple(axes))


def _transpose(node: ir.Node, inputs: list[Objects]) -> Objects:
    return inputs[0].transpose(attribute_of(node, "perm"))


def _unsqueeze(node: ir.Node, inputs: list[Objects]) -> Objects:
    return np.expand_dims(inputs[0], tuple(_axes(node, list(inputs)) or ()))


def _range(_: ir.Node, inputs: list[Objects]) -> Objects | None:
    start, limit, step = (_numbers(bound)[0] for bound in inputs)
    count = math.ceil((limit - start) / step) if step else 0
    return np.array(range(start, limit, step), object) if 0 <= count <= _MOST_ELEMENTS else None


_COMPUTE: dict[str, Callable[..., Any]] = {
    "Add": _calculation("add"),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _calculation("div"),
    "Equal": _elementwise(_equal, 2),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _elementwise(lambda a: a, 1),
    "Max": _calculation("max"),
    "Min": _calculation("min"),
    "Mod": _calculation("mod"),
    "Mul": _calculation("mul"),
    "Neg": _elementwise(lambda a: calculate("sub", 0, a), 1),
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _calculation("sub"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(_where, 3),
}
