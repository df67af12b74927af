"""Gemm, MatMul and Einsum: sums over a shared axis, which a weight mixes."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.elementwise import broadcast
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "gemm", "multiply"]


def gemm(inference: AxisInference, node: ir.Node) -> None:
    """``y[m, n] = Σ_k a[m, k] b[k, n] + c``, either operand possibly transposed."""
    a, b = inference.axes_of(node, 0), inference.axes_of(node, 1)
    if len(a) != 2 or len(b) != 2:
        raise UnknownShape("its operands are not matrices")
    rows, inner_a = (1, 0) if attribute_of(node, "transA", 0) else (0, 1)
    inner_b, columns = (1, 0) if attribute_of(node, "transB", 0) else (0, 1)
    inference.contract(node, (0, inner_a), (1, inner_b))
    result = [a[rows], b[columns]]
    _makes(inference, node, 0, rows)
    _makes(inference, node, 1, columns)
    if inference.input(node, 2) is not None:
        broadcast(inference, node, [result, inference.axes_of(node, 2)])
    inference.output(node, result)
    inference.count(node, 1, [*result, a[inner_a]])


def matmul(inference: AxisInference, node: ir.Node) -> None:
    """``y[..., m, n] = Σ_k a[..., m, k] b[..., k, n]``, as numpy's matmul."""
    multiply(inference, node, 0, 1)


def multiply(inference: AxisInference, node: ir.Node, left: int, right: int) -> list[Axis]:
    """State the axes of the matrix product of the inputs ``left`` and ``right``, and return them."""
    a, b = inference.axes_of(node, left), inference.axes_of(node, right)
    if not a or not b:
        raise UnknownShape("an operand is a scalar")
    inner_b = len(b) - 2 if len(b) > 1 else 0
    inference.contract(node, (left, len(a) - 1), (right, inner_b))
    leading = broadcast(inference, node, [a[:-2], b[:-2]])
    result = [*leading, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]
    if len(a) > 1:
        _makes(inference, node, left, len(a) - 2)
    if len(b) > 1:
        _makes(inference, node, right, len(b) - 1)
    for index, axes in ((left, a), (right, b)):
        # A stack of weight matrices makes the leading axes too, one matrix each.
        for axis in range(len(axes) - 2):
            _makes(inference, node, index, axis)
    inference.output(node, result)
    inference.count(node, 1, [*result, a[-1]])
    return result


def einsum(inference: AxisInference, node: ir.Node) -> None:
    """A sum of products in index notation; without ellipsis, and no letter twice in an operand."""
    equation = str(attribute_of(node, "equation", "")).replace(" ", "")
    given, arrow, wanted = equation.partition("->")
    terms = given.split(",")
    if "." in equation or len(terms) != len(node.inputs) or any(len(set(t)) != len(t) for t in terms):
        raise UnknownShape(f"the equation {equation!r} is not supported")
    if not arrow:
        letters = "".join(terms)
        wanted = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    places: dict[str, list[tuple[int, int]]] = {}
    for index, term in enumerate(terms):
        if len(inference.axes_of(node, index)) != len(term):
            raise UnknownShape(f"the equation {equation!r} does not fit its operands")
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((index, axis))
    axis_of: dict[str, Axis] = {}
    for letter, found in places.items():
        axes = broadcast(inference, node, [[inference.axes_of(node, i)[a]] for i, a in found])
        axis_of[letter] = axes[0]
        weights = [(i, a) for i, a in found if inference.is_weight(node, i)]
        if letter in wanted:
            for index, axis in weights:
                _makes(inference, node, index, axis)
        elif len(found) > 1 and weights:
            inference.mixed(node, *weights[-1])
        elif len(found) == 2:
            (first, position), (second, _) = found
            inference.contract_activations(node, axis_of[letter], (first, second), position)
        else:
            reason = f"it sums over this axis of {len(found)} activations"
            inference.freeze(
                node, axis_of[letter], found[0][1], reason if len(found) > 1 else "it sums over this axis"
            )
    inference.output(node, [axis_of[letter] for letter in wanted])
    inference.count(node, 1, axis_of.values())


def _makes(inference: AxisInference, node: ir.Node, index: int, axis: int) -> None:
    if inference.is_weight(node, index):
        inference.made(node, index, axis)


RULES: dict[str, Rule] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
