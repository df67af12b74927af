"""Integer arithmetic on small tensors: how computed Reshape targets are known symbolically."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from growpipe.graph_ops.analysis import Analysis
from growpipe.graph_ops.sizes import ArithmeticOperator, Expression, Ints, calculate

__all__ = ["integer_arithmetic"]

_ARITHMETIC: dict[str, ArithmeticOperator] = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Mod": "mod",
    "Min": "min",
    "Max": "max",
}


def integer_arithmetic(analysis: Analysis, node: ir.Node) -> None:
    """State the symbolic value of the output where all inputs have one and the operator is known."""
    if not node.inputs or any(value is None or analysis.constant(value) is None for value in node.inputs):
        return
    operation: Callable[..., Expression]
    if node.op_type in _ARITHMETIC and len(node.inputs) == 2:
        operator = _ARITHMETIC[node.op_type]
        operation = lambda a, b: calculate(operator, a, b)  # noqa: E731
    elif node.op_type == "Cast":
        operation = lambda a: a  # noqa: E731
    elif node.op_type == "Neg":
        operation = lambda a: calculate("sub", 0, a)  # noqa: E731
    elif node.op_type == "Equal":
        operation = _equal
    elif node.op_type == "Where":
        operation = _where
    else:
        return
    operands = [analysis.ints(node, index) for index in range(len(node.inputs))]
    present = [operand for operand in operands if operand is not None]
    length = max(len(operand.elements) for operand in present)
    rank = max(operand.rank for operand in present)
    if any(len(operand.elements) not in (1, length) for operand in present):
        return
    columns = [
        operand.elements * length if len(operand.elements) == 1 else operand.elements for operand in present
    ]
    analysis.values[node.outputs[0]] = Ints(
        rank, tuple(operation(*row) for row in zip(*columns, strict=True))
    )


def _equal(a: Expression, b: Expression) -> Expression:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    # A length is never negative: exporters ask ``size == -1`` to find the axes that Expand keeps.
    if any(isinstance(side, int) and side < 0 for side in (a, b)) and None not in (a, b):
        return 0
    return None


def _where(condition: Expression, yes: Expression, no: Expression) -> Expression:
    return (yes if condition else no) if isinstance(condition, int) else None
