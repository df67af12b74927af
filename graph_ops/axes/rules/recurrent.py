"""LSTM, GRU and RNN: their inputs are mixed, their hidden units stay as they are."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]

_HIDDEN = "the hidden units of a recurrent layer feed each other, which growth does not follow"


def recurrent(inference: AxisInference, node: ir.Node) -> None:
    """``x[s, b, i]`` times ``W[d, g·h, i]`` in each step, and the state times ``R[d, g·h, h]``.

    Channels of x may grow, because W mixes them. With ``layout = 1`` the batch comes first.
    """
    x, weight, state = (inference.axes_of(node, index) for index in range(3))
    batch_first = bool(attribute_of(node, "layout", 0))
    batch, steps, channels = x if batch_first else (x[1], x[0], x[2])
    directions, gates, mixed = weight
    inference.unify(node, channels, mixed, 2)
    if inference.is_weight(node, 1):
        inference.mixed(node, 1, 2)
    else:
        inference.freeze(node, channels, 2, inference.no_weight(node, 1))
    inference.freeze(node, steps, 0, "it steps along this axis")
    inference.freeze(node, [directions, gates, *state], None, _HIDDEN)
    for index in range(3, len(node.inputs)):
        if inference.input(node, index) is not None:
            axes = inference.axes_of(node, index)
            inference.freeze(node, [axis for axis in axes if axis is not batch], None, _HIDDEN)
    inference.count(node, 1, [steps, batch, directions, gates, mixed])
    inference.count(node, 1, [steps, batch, *state])
    hidden, count = state[2], directions
    every = [batch, steps, count, hidden] if batch_first else [steps, count, batch, hidden]
    last: list[Axis] = [batch, count, hidden] if batch_first else [count, batch, hidden]
    inference.output(node, every, 0)
    for index in range(1, len(node.outputs)):
        inference.output(node, last, index)


RULES: dict[str, Rule] = dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent)
