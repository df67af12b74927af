"""The sizes of symbolic dimensions, whose names may be sums and products of other names.

Exporters name a dimension by how it follows from others: ``past_sequence_length + sequence_length``,
``2*length``, ``floor(width/4)``. Such a dimension has no size of its own, if the others are there.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

__all__ = ["computed_from", "size_of"]

_LONGEST = 200

Number = int | Fraction
_OPERATORS: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: Fraction(a) / b,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "max": max,
    "min": min,
}

_TOTALS: Mapping[str, str] = {
    # Decoders with a cache are exported with these names, whatever the exporter.
    "total_sequence_length": "past_sequence_length + sequence_length",
}


def computed_from(name: str, names: Collection[str]) -> frozenset[str]:
    """The dimensions that the size of ``name`` follows from; empty if it has a size of its own.

    Args:
        name: of the dimension.
        names: of all dimensions; a name that stands for a computation uses these alone.
    """
    expression = _expression(_TOTALS.get(name, name))
    if expression is None:
        return frozenset()
    called = {id(node.func) for node in ast.walk(expression) if isinstance(node, ast.Call)}
    parts = {n.id for n in ast.walk(expression) if isinstance(n, ast.Name) and id(n) not in called}
    return frozenset(parts) if parts <= set(names) else frozenset()


def size_of(name: str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension for which `computed_from` names others, from their sizes; at least 0."""
    expression = _expression(_TOTALS.get(name, name))
    assert expression is not None, name
    try:
        return max(0, int(_evaluate(expression, sizes)))
    except ZeroDivisionError:
        return 0


@functools.cache
def _expression(name: str) -> ast.expr | None:
    """The arithmetic that a name spells out; None for a plain name."""
    if len(name) > _LONGEST:
        return None
    try:
        tree = ast.parse(name.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    has_names = any(isinstance(node, ast.Name) for node in ast.walk(tree))
    return tree if has_names and not isinstance(tree, ast.Name) and _is_arithmetic(tree) else None


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=int(value)):
            return 0 <= value < 2**31
        case ast.BinOp(left, operation, right):
            return type(operation) in _OPERATORS and _is_arithmetic(left) and _is_arithmetic(right)
        case ast.Call(ast.Name(function), arguments, keywords):
            known = function in _FUNCTIONS and bool(arguments) and not keywords
            return known and all(map(_is_arithmetic, arguments))
    return False


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> Number:
    match node:
        case ast.Name(name):
            return sizes[name]
        case ast.Constant(value=int(value)):
            return value
        case ast.Call(ast.Name(function), arguments):
            values = [_evaluate(argument, sizes) for argument in arguments]
            return (
                values[0]
                if len(values) == 1 and function in ("max", "min")
                else _FUNCTIONS[function](*values)
            )
        case ast.BinOp(left, operation, right):
            return _OPERATORS[type(operation)](_evaluate(left, sizes), _evaluate(right, sizes))
    raise AssertionError(ast.dump(node))
