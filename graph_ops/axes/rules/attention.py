"""The Attention operator of opset 23 and later."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, product, root
from growpipe.graph_ops.axes.integers import Size
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.elementwise import broadcast
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def attention(inference: AxisInference, node: ir.Node) -> None:
    """``y[b,h,n,e] = softmax(q[b,h,n,d] k[b,h,m,d]ᵀ / √d) v[b,h,m,e]``: d is contracted, h and e pass.

    With fewer key than query heads, each serves equally many queries in a row. Operands of rank 3 have
    heads and channels on one axis, and say in attributes how many heads there are.
    """
    if any(value is not None for value in node.inputs[4:]) or len(node.outputs) > 1:
        raise UnknownShape("channels are not followed into a cache of keys and values")
    queries = _operand(inference, node, 0, "q_num_heads")
    keys = _operand(inference, node, 1, "kv_num_heads")
    values = _operand(inference, node, 2, "kv_num_heads")
    for axis in (0, 1, 2):
        inference.unify(node, keys[axis], values[axis], axis)
    inference.unify(node, queries[0], keys[0], 0)
    heads, served = root(queries[1]).size, root(keys[1]).size
    if heads is None or served is None or heads % served:
        raise UnknownShape("the number of its heads is not known")
    inference.unify(node, queries[1], product([keys[1], Axis(heads // served)]), 1)
    inference.unify(node, queries[3], keys[3], 3)
    inference.contract_activations(node, queries[3], (0, 1), 3)
    channels = root(queries[3]).size
    if attribute_of(node, "scale") is None and channels:
        inference.default(node, "scale", channels**-0.5, queries[3])
    inference.freeze(node, keys[2], 2, "it normalises over this axis")
    if inference.input(node, 3) is not None:
        broadcast(inference, node, [[*queries[:3], keys[2]], inference.axes_of(node, 3)])
    if len(inference.axes_of(node, 0)) == 3:
        inference.output(node, [queries[0], queries[2], product([queries[1], values[3]])])
    else:
        inference.output(node, [*queries[:3], values[3]])
    inference.count(node, 1, [*queries[:3], keys[2], queries[3]])
    inference.count(node, 1, [*queries[:3], keys[2], values[3]])


def _operand(inference: AxisInference, node: ir.Node, index: int, attribute: str) -> list[Axis]:
    """The axes [batch, heads, length, channels] of an operand."""
    axes = inference.axes_of(node, index)
    if len(axes) == 4:
        return axes
    count = attribute_of(node, attribute)
    total = root(axes[-1]).size
    if len(axes) != 3 or not count or total is None or total % count:
        raise UnknownShape("the number of its heads is not known")
    heads, channels = Axis(count), Axis(total // count)
    inference.unify(node, axes[2], product([heads, channels]), 2)
    inference.follow(node, attribute, [Size(heads)])
    return [axes[0], heads, axes[1], channels]


RULES: dict[str, Rule] = {"Attention": attention}
