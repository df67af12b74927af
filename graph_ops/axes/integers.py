"""Symbolic values of small integer tensors: which axis lengths a computed Reshape target is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.axes.axis import Axis, root

__all__ = [
    "Arithmetic",
    "Expression",
    "Ints",
    "Size",
    "axes_in",
    "calculate",
    "evaluate",
    "factors_of",
    "known_factor",
]

ArithmeticOperator = Literal["add", "sub", "mul", "div", "mod", "min", "max"]


_MOST_TERMS = 256  # an expression can hold another twice, which again holds another twice


@dataclass(frozen=True, eq=False, slots=True)
class Size:
    """The length of an axis."""

    axis: Axis


@dataclass(frozen=True, eq=False, slots=True)
class Arithmetic:
    """Integer arithmetic on two expressions; `calculate` makes it.

    Attributes:
        operator: the operator.
        left: the left operand.
        right: the right operand.
        terms: the number of lengths and numbers in it.
    """

    operator: ArithmeticOperator
    left: Expression
    right: Expression
    terms: int


Expression = int | Size | Arithmetic | None
"""One integer; None is an unknown value."""


@dataclass(frozen=True, eq=False, slots=True)
class Ints:
    """A small integer tensor as it runs through the shape arithmetic of a graph.

    Attributes:
        array: an object array of expressions.
    """

    array: npt.NDArray[np.object_]

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def elements(self) -> tuple[Expression, ...]:
        return tuple(self.array.reshape(-1).tolist())


def evaluate(expression: Expression, size_of: Callable[[Axis], int | None]) -> int | None:
    """The value when every axis has the length that ``size_of`` says; None if it is unknown."""
    match expression:
        case Size(axis):
            return size_of(axis)
        case Arithmetic(operator, left, right, _):
            a, b = evaluate(left, size_of), evaluate(right, size_of)
            return None if a is None or b is None else _apply(operator, a, b)
        case _:
            return expression


def calculate(operator: ArithmeticOperator, left: Expression, right: Expression) -> Expression:
    """The expression for ``left operator right``, a number if both are.

    None if an operand is not known, or if the expression would have more than 256 terms.
    """
    if left is None or right is None:
        return None
    if isinstance(left, int) and isinstance(right, int):
        return _apply(operator, left, right)
    if operator == "mul" and 1 in (left, right):
        return right if left == 1 else left
    if operator in ("add", "sub") and right == 0:
        return left
    if operator == "div" and right == 1:
        return left
    terms = _terms(left) + _terms(right)
    return Arithmetic(operator, left, right, terms) if terms <= _MOST_TERMS else None


def _terms(expression: Expression) -> int:
    return expression.terms if isinstance(expression, Arithmetic) else 1


def axes_in(expression: Expression) -> Iterator[Axis]:
    """Every axis whose length the expression reads."""
    match expression:
        case Size(axis):
            yield root(axis)
        case Arithmetic(_, left, right, _):
            yield from axes_in(left)
            yield from axes_in(right)


def factors_of(expression: Expression) -> list[int | Size] | None:
    """The factors of a pure product of numbers and lengths; None for any other expression."""
    match expression:
        case int() | Size():
            return [expression]
        case Arithmetic("mul", left, right, _):
            a, b = factors_of(left), factors_of(right)
            return None if a is None or b is None else a + b
        case _:
            return None


def known_factor(expression: Expression, size_of: Callable[[Axis], int | None]) -> int | None:
    """The product of the lengths that ``size_of`` knows among the factors; None if it is no pure product.

    Example:
        8 for ``batch * heads * 2`` if the batch is not known and the heads are 4.
    """
    factors = factors_of(expression)
    if factors is None:
        return None
    known = 1
    for factor in factors:
        known *= factor if isinstance(factor, int) else _known_length(factor.axis, size_of)
    return known


def _known_length(axis: Axis, size_of: Callable[[Axis], int | None]) -> int:
    """The length of an axis; if it is not known, the product of the known lengths of its factors."""
    axis, size = root(axis), size_of(axis)
    if size is None and axis.kind == "product":
        return math.prod(_known_length(child, size_of) for child in axis.children)
    return 1 if size is None else size


def _apply(operator: ArithmeticOperator, a: int, b: int) -> int | None:
    match operator:
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            return a * b
        case "div":
            # ONNX divides integers towards zero.
            return None if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)
        case "mod":
            return None if b == 0 else a % b
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
