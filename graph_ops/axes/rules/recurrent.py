"""LSTM, GRU and RNN: weights make and mix the hidden units, which are otherwise treated separately.

In every step a gate of unit j is ``W_j x + R_j h + b_j``. Everything else happens within a unit: activations,
clipping, peepholes, the cell. Copies that have the rows of W and R, the biases and the initial state of a
unit have its state in every step. The columns of R take the coefficients, as those of every reader do:

    Σ_j Σ_i R_kj w_i h_j  =  Σ_j R_kj h_j   for Σ_i w_i = 1.
"""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, product
from growpipe.graph_ops.axes.integers import Size
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_PEEPHOLES = 3
_ACTIVATIONS = {
    "affine", "elu", "hardsigmoid", "leakyrelu", "relu", "scaledtanh", "sigmoid", "softplus", "softsign",
    "tanh", "thresholdedrelu",
}  # fmt: skip
"""The activations of ONNX, all elementwise; their case is ignored."""


def recurrent(inference: AxisInference, node: ir.Node) -> None:
    """``x[s, b, i]``, ``W[d, g·h, i]`` and ``R[d, g·h, h]`` give the states ``y[s, d, b, h]``.

    A hidden unit j is unit j of every direction d, since all directions have equally many units. With
    ``layout = 1`` the batch comes first.
    """
    for name in attribute_of(node, "activations", ()):
        if _text(name).lower() not in _ACTIVATIONS:
            raise UnknownShape(f"growpipe does not know the activation {_text(name)!r}")
    x, (directions, rows, mixed), (_, _, hidden) = (
        inference.axes_of_rank(node, index, 3) for index in range(3)
    )
    batch_first = bool(attribute_of(node, "layout", 0))
    batch, steps, channels = x if batch_first else (x[1], x[0], x[2])
    last = [batch, directions, hidden] if batch_first else [directions, batch, hidden]
    gates = _GATES[node.op_type]
    _unify_all(inference, node, 1, [directions, _times(inference, node, gates, hidden), channels])
    _unify_all(inference, node, 2, [directions, _times(inference, node, gates, hidden), hidden])
    _unify_all(inference, node, 3, [directions, _times(inference, node, 2 * gates, hidden)])
    _unify_all(inference, node, 4, [batch])
    _unify_all(inference, node, 5, last)
    _unify_all(inference, node, 6, last)
    _unify_all(inference, node, 7, [directions, _times(inference, node, _PEEPHOLES, hidden)])
    for index, contracted in ((1, channels), (2, hidden)):
        inference.made(node, index, 1, hidden)
        inference.mixed(node, index, 2)
        if not inference.is_weight(node, index):
            inference.freeze(node, [contracted, hidden], 2, inference.no_weight(node, index))
    inference.freeze(node, steps, 0, "it steps along this axis")
    inference.freeze(node, directions, 0, "the number of directions cannot change")
    if attribute_of(node, "hidden_size") is not None:
        inference.follow(node, "hidden_size", [Size(hidden)])
    inference.count(node, 1, [steps, batch, directions, rows, mixed])
    inference.count(node, 1, [steps, batch, directions, rows, hidden])
    every = [batch, steps, directions, hidden] if batch_first else [steps, directions, batch, hidden]
    inference.output(node, every, 0)
    for index in range(1, len(node.outputs)):
        inference.output(node, last, index)


def _unify_all(inference: AxisInference, node: ir.Node, index: int, wanted: list[Axis]) -> None:
    """Let the axes of an input be these, if the input is there."""
    if inference.input(node, index) is None:
        return
    for position, (axis, other) in enumerate(zip(inference.axes_of(node, index), wanted, strict=True)):
        inference.unify(node, axis, other, position)


def _times(inference: AxisInference, node: ir.Node, count: int, hidden: Axis) -> Axis:
    """So many rows for each hidden unit, gate after gate."""
    blocks = Axis(count)
    inference.freeze(node, blocks, 1, "the number of gates cannot change")
    return product([blocks, hidden])


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


RULES: dict[str, Rule] = dict.fromkeys(_GATES, recurrent)
