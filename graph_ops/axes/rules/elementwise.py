"""Operators that treat every element by itself: axes are unified, lengths of 1 broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "broadcast", "elementwise"]


def broadcast(inference: AxisInference, node: ir.Node, operands: Sequence[Sequence[Axis]]) -> list[Axis]:
    """The axes of the operands broadcast together, aligned at the end as numpy does."""
    rank = max((len(axes) for axes in operands), default=0)
    result = []
    for position in range(rank):
        here = [axes[position - rank + len(axes)] for axes in operands if len(axes) >= rank - position]
        wide = [axis for axis in here if root(axis).size != 1]
        if not wide:
            result.append(here[0])
            continue
        sized = [axis for axis in wide if root(axis).size is not None]
        opaque = [axis for axis in wide if root(axis).size is None and root(axis).kind == "leaf"]
        if sized and opaque:
            reason = "an axis of unknown length may broadcast"
            inference.freeze(node, [*sized, *opaque], position, reason)
            result.append(sized[0])
            continue
        for axis in wide[1:]:
            inference.unify(node, wide[0], axis, position)
        result.append(wide[0])
    return result


def elementwise(inference: AxisInference, node: ir.Node) -> None:
    """All inputs broadcast together; every output has the common axes."""
    present = [index for index, value in enumerate(node.inputs) if value is not None]
    operands = [inference.axes_of(node, index) for index in present]
    if inference.opset < 7 and len(operands) == 2 and attribute_of(node, "axis") is not None:
        operands[1] = _aligned(operands[1], len(operands[0]), attribute_of(node, "axis"))
    axes = broadcast(inference, node, operands)
    for index in range(len(node.outputs)):
        inference.output(node, axes, index)
    if inference.is_constant(node):
        _weight_of_weights(inference, node, axes)


def _weight_of_weights(inference: AxisInference, node: ir.Node, axes: list[Axis]) -> None:
    """A weight that is computed from constants: masked, scaled, or put through a function.

    The operand of the result's full shape stands for the weight. Coefficients can go to a factor, or to what
    is divided; a mask of zeros and ones stays one. They can also go to what a number is added to.
    """
    sizes = [root(axis).size for axis in axes]
    same = [(axis,) for axis in range(len(axes))]
    full = [
        index
        for index, value in enumerate(node.inputs)
        if value in inference.views
        and value not in inference.fills
        and [root(axis).size for axis in inference.axes_of(node, index)] == sizes
    ]
    if None in sizes or not full:
        return
    number = _added_number(inference, node)
    if number is not None:
        inference.view(node, same, 0 if 0 in full else full[0], added=number)
        return
    linear = {"Mul": full, "Div": [0], "Neg": [0]}.get(node.op_type, [])
    able = [i for i in full if i in linear and not inference.obstacle(node, i)]
    if len(able) > 1:
        able.sort(key=lambda index: _is_mask(inference, node, index))
    reason = f"the weight is computed by {node.op_type}, so it cannot hold the coefficients"
    inference.view(node, same, able[0] if able else full[0], "" if able else reason, scaled=True)


def _added_number(inference: AxisInference, node: ir.Node) -> float | None:
    """The number that an Add or a Sub adds to its other operand; None if it does something else."""
    numbers = {"Add": (1, 0), "Sub": (1,)}.get(node.op_type, ())
    for index in numbers:
        tensor = inference.constant(node, index)
        if tensor is not None and tensor.size == 1 and tensor.dtype.is_floating_point():
            number = float(tensor.numpy().reshape(()))
            return -number if node.op_type == "Sub" else number
    return None


def _is_mask(inference: AxisInference, node: ir.Node, index: int) -> bool:
    """Whether the constants behind an input hold nothing but zeros and ones."""
    value = node.inputs[index]
    views = () if value is None else inference.views[value]
    arrays = [tensor.numpy() if (tensor := inference.tensors.get(view.base)) else None for view in views]
    return bool(arrays) and all(
        array is not None and bool(((array == 0) | (array == 1)).all()) for array in arrays
    )


def _aligned(axes: list[Axis], rank: int, start: int) -> list[Axis]:
    """Axes that stand from the position ``start`` of ``rank`` on, as old opsets broadcast them."""
    return [*axes, *(Axis(1) for _ in range(rank - start % rank - len(axes)))]


def first_input(inference: AxisInference, node: ir.Node) -> None:
    """Output 0 has the axes of input 0; the other inputs are scalars."""
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None and any(
            root(axis).size != 1 for axis in inference.axes_of(node, index)
        ):
            raise UnknownShape(f"input {index} is not a scalar")
    for index in range(len(node.outputs)):
        inference.output(node, inference.axes_of(node, 0), index)


def parametric_relu(inference: AxisInference, node: ir.Node) -> None:
    """The slope broadcasts to the input, never the other way. Before opset 7 it has one entry per channel."""
    axes, slope = inference.axes_of(node, 0), inference.axes_of(node, 1)
    if inference.opset < 7 and len(slope) == 1 and len(axes) > 1:
        slope = _aligned(slope, len(axes), 1)
    broadcast(inference, node, [axes, slope])
    inference.output(node, axes)


_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil
Celu Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN
LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    "Clip": first_input,
    "Dropout": first_input,
    "PRelu": parametric_relu,
}
