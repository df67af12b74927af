"""Gemm, MatMul and Einsum: sums over a shared axis, which a weight mixes."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.elementwise import broadcast

__all__ = ["RULES"]


def gemm(analysis: Analysis, node: ir.Node) -> None:
    """``y[m, n] = Σ_k a[m, k] b[k, n] + c``, either operand possibly transposed."""
    a, b = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    if len(a) != 2 or len(b) != 2:
        raise UnknownShape("its operands are not matrices")
    rows, inner_a = (1, 0) if analysis.attribute(node, "transA", 0) else (0, 1)
    inner_b, columns = (1, 0) if analysis.attribute(node, "transB", 0) else (0, 1)
    analysis.contract(node, (0, inner_a), (1, inner_b))
    result = [a[rows], b[columns]]
    _makes(analysis, node, 0, rows)
    _makes(analysis, node, 1, columns)
    if analysis.input(node, 2) is not None:
        broadcast(analysis, node, [result, analysis.axes_of(node, 2)])
    analysis.output(node, result)
    analysis.count(node, 1, [*result, a[inner_a]])


def matmul(analysis: Analysis, node: ir.Node) -> None:
    """``y[..., m, n] = Σ_k a[..., m, k] b[..., k, n]``, as numpy's matmul."""
    a, b = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    if not a or not b:
        raise UnknownShape("an operand is a scalar")
    inner_b = len(b) - 2 if len(b) > 1 else 0
    analysis.contract(node, (0, len(a) - 1), (1, inner_b))
    leading = broadcast(analysis, node, [a[:-2], b[:-2]])
    result = [*leading, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]
    if len(a) > 1:
        _makes(analysis, node, 0, len(a) - 2)
    if len(b) > 1:
        _makes(analysis, node, 1, len(b) - 1)
    for index, axes in ((0, a), (1, b)):
        # A stack of weight matrices makes the leading axes too, one matrix each.
        for axis in range(len(axes) - 2):
            _makes(analysis, node, index, axis)
    analysis.output(node, result)
    analysis.count(node, 1, [*result, a[-1]])


def einsum(analysis: Analysis, node: ir.Node) -> None:
    """A sum of products in index notation; without ellipsis, and no letter twice in an operand."""
    equation = str(analysis.attribute(node, "equation", "")).replace(" ", "")
    given, arrow, wanted = equation.partition("->")
    terms = given.split(",")
    if "." in equation or len(terms) != len(node.inputs) or any(len(set(t)) != len(t) for t in terms):
        raise UnknownShape(f"the equation {equation!r} is not supported")
    if not arrow:
        letters = "".join(terms)
        wanted = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    places: dict[str, list[tuple[int, int]]] = {}
    for index, term in enumerate(terms):
        if len(analysis.axes_of(node, index)) != len(term):
            raise UnknownShape(f"the equation {equation!r} does not fit its operands")
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((index, axis))
    axis_of: dict[str, Axis] = {}
    for letter, found in places.items():
        axes = broadcast(analysis, node, [[analysis.axes_of(node, i)[a]] for i, a in found])
        axis_of[letter] = axes[0]
        weights = [(i, a) for i, a in found if analysis.is_weight(node, i)]
        if letter in wanted:
            for index, axis in weights:
                _makes(analysis, node, index, axis)
        elif len(found) > 1 and weights:
            analysis.mixed(node, *weights[-1])
        else:
            reason = "contracted against another activation" if len(found) > 1 else "summed over"
            analysis.freeze(node, axis_of[letter], found[0][1], reason)
    analysis.output(node, [axis_of[letter] for letter in wanted])
    analysis.count(node, 1, axis_of.values())


def _makes(analysis: Analysis, node: ir.Node, index: int, axis: int) -> None:
    if analysis.is_weight(node, index):
        analysis.made(node, index, axis)


RULES: dict[str, Rule] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
