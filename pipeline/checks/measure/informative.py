"""Does an output show whether a model has changed? A saturated sigmoid hides nearly all, and so does a class.

An output that stays the same whatever the inputs are stays the same whatever the weights are, too: to compare
it proves nothing. What such an output is computed from may still tell: the values behind its last saturating
or rounding operators, which two forms of one model have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import onnx_ir as ir

from growpipe.checks.measure.tolerance import MOVING, ROUNDING
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.operators import is_onnx

__all__ = ["HiddenValue", "any_is_informative", "hidden_values", "is_informative", "paired_hidden_values"]

_HIDING = (
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Clip",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Less",
    "LessOrEqual",
    "LogSoftmax",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Tanh",
    "TopK",
)
"""Operators whose result may be the same for very different inputs."""
_SCALING = ("Add", "Div", "Max", "Min", "Mul", "Neg", "Not", "Pow", "Sub")
_FURTHEST = 200
_NOTICED = 10.0
"""A tenth of what other inputs change must be too large a difference."""
_NOTICED_SHARE = 0.1
"""The share of an output's scale, or of its integers, whose change is enough for the coarsest model."""


@dataclass(frozen=True)
class HiddenValue:
    """A value that an output is computed from, by operators that may hide what it is.

    Attributes:
        operators: from the output to the value, without those that only move numbers.
        value: its name.
    """

    operators: tuple[str, ...]
    value: str


def hidden_values(model: ir.Model) -> list[list[HiddenValue]]:
    """For each output, in order, the values behind its last hiding operators.

    Args:
        model: the model.

    Returns:
        No value for an output that is made by another kind of operator, such as a convolution.
    """
    return [list(_behind(output, (), None, [_FURTHEST])) for output in model.graph.outputs]


def _behind(
    value: ir.Value, operators: tuple[str, ...], found: HiddenValue | None, left: list[int]
) -> Iterator[HiddenValue]:
    """The deepest hidden values above ``value``; ``found`` is the deepest one so far on this path."""
    node = value.producer()
    left[0] -= 1
    if node is None or left[0] <= 0 or not is_onnx(node, *_HIDING, *_SCALING, *MOVING):
        if found is not None:
            yield found
        return
    varying = [v for v in node.inputs if v is not None and not _is_constant(v)]
    if not is_onnx(node, *MOVING):
        operators = (*operators, node.op_type)
    if is_onnx(node, *_HIDING) and varying:
        found = HiddenValue(operators, str(varying[0].name))
    if len(varying) > 1 and not is_onnx(node, "Concat"):
        varying = varying[:1]
        if is_onnx(node, *_SCALING):  # such as SiLU, x · σ(x): the value itself is in the product
            varying = []
    if not varying and found is not None:
        yield found
    for source in varying:
        yield from _behind(source, operators, found, left)


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.const_value is not None or (node is not None and is_onnx(node, "Constant"))


def is_informative(outputs: Sequence[AnyArray], relative: float) -> bool:
    """Whether a change of the model would show in an output.

    Args:
        outputs: the same output on different inputs.
        relative: the largest relative difference that passes.

    Returns:
        True if a tenth of the change from some inputs to others would be too large a difference. True also if
        no two of ``outputs`` have the same shape, as nothing is known then.
    """
    alike = [(a, b) for a, b in combinations(outputs, 2) if a.shape == b.shape and a.dtype == b.dtype]
    return not alike or any(_differ(a, b, relative) for a, b in alike)


def any_is_informative(runs: Sequence[Mapping[str, AnyArray]], relative: float) -> bool:
    """Whether a change of the model would show in one of several values.

    Args:
        runs: the values by name, on different inputs.
        relative: as of `is_informative`.
    """
    names = runs[0] if runs else {}
    return any(is_informative([run[name] for run in runs], relative) for name in names)


def _differ(one: AnyArray, other: AnyArray, relative: float) -> bool:
    if one.dtype.kind not in "fV":
        return one.size > 0 and float(np.mean(one != other)) >= _NOTICED_SHARE
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    scale = float(np.abs(a[finite]).max(initial=0.0))
    moved = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return moved > max(min(_NOTICED * relative, _NOTICED_SHARE) * scale, _NOTICED * ROUNDING)


def paired_hidden_values(reference: ir.Model, candidate: ir.Model) -> list[dict[str, str]]:
    """For each output, in order, the names of its hidden values in two forms of one model.

    Args:
        reference: a model.
        candidate: another form of it, with as many outputs.

    Returns:
        By the name in the reference, the name in the candidate; nothing for an output that the two models
        compute by different operators from there on.
    """
    pairs = []
    for ours, theirs in zip(hidden_values(reference), hidden_values(candidate), strict=False):
        alike = [value.operators for value in ours] == [value.operators for value in theirs]
        pairs.append({a.value: b.value for a, b in zip(ours, theirs, strict=True)} if alike else {})
    return pairs
