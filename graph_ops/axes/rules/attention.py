"""Attention as one operator: that of opset 23 and later, and three of onnxruntime's own domain."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, concat, product, root
from growpipe.graph_ops.axes.integers import Size
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.elementwise import broadcast
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "group_query_attention", "multi_head_attention", "packed_attention"]


def attention(inference: AxisInference, node: ir.Node) -> None:
    """``y[b,h,n,e] = softmax(q[b,h,n,d] k[b,h,m,d]ᵀ / √d) v[b,h,m,e]``: d is contracted, h and e pass.

    With fewer key than query heads, each serves equally many queries in a row. Operands of rank 3 have
    heads and channels on one axis, and say in attributes how many heads there are.
    """
    _refuse_cache(inference, node, range(4, len(node.inputs)))
    queries = _operand(inference, node, 0, "q_num_heads")
    keys = _operand(inference, node, 1, "kv_num_heads")
    values = _operand(inference, node, 2, "kv_num_heads")
    _attend(inference, node, queries, keys, values)
    inference.contract_activations(node, queries[3], (0, 1), 3)
    if inference.input(node, 3) is not None:
        broadcast(inference, node, [[*queries[:3], keys[2]], inference.axes_of(node, 3)])
    if len(inference.axes_of(node, 0)) == 3:
        inference.output(node, [queries[0], queries[2], product([queries[1], values[3]])])
    else:
        inference.output(node, [*queries[:3], values[3]])


def multi_head_attention(inference: AxisInference, node: ir.Node) -> None:
    """MultiHeadAttention of com.microsoft: operands of rank 3, as many key as query heads, masks.

    Its bias is added to queries, keys and values, one after the other on one axis.
    """
    _refuse_cache(inference, node, range(6, len(node.inputs)))
    queries, keys, values = (_operand(inference, node, index, "num_heads", 3) for index in range(3))
    _attend(inference, node, queries, keys, values)
    inference.contract_activations(node, queries[3], (0, 1), 3)
    if inference.input(node, 3) is not None:
        parts = [product([operand[1], operand[3]]) for operand in (queries, keys, values)]
        inference.unify(node, inference.axes_of_rank(node, 3, 1)[0], concat(parts), 0)
        inference.freeze(node, queries[3], 3, "the operator adds a bias to queries and keys itself")
    if inference.input(node, 4) is not None:
        inference.freeze(node, [queries[0], *inference.axes_of(node, 4)], None, "a mask of lengths")
    if inference.input(node, 5) is not None:
        broadcast(inference, node, [[*queries[:3], keys[2]], inference.axes_of(node, 5)])
    inference.output(node, [queries[0], queries[2], product([queries[1], values[3]])])


def group_query_attention(inference: AxisInference, node: ir.Node) -> None:
    """GroupQueryAttention of com.microsoft: heads grow; keys and values have one number of channels.

    Inputs 5 and 6 are the lengths of the sequences. A cache, rotary tables, packed operands and scales of
    quantised keys are not followed.
    """
    _refuse_cache(inference, node, [3, 4, *range(7, len(node.inputs))])
    queries = _operand(inference, node, 0, "num_heads", 3)
    keys, values = (_operand(inference, node, index, "kv_num_heads", 3) for index in (1, 2))
    inference.freeze(
        node, [queries[3], values[3]], 2, "the operator has one number of channels for keys and values"
    )
    _attend(inference, node, queries, keys, values)
    inference.contract_activations(node, queries[3], (0, 1), 3)
    lengths = [axis for index in (5, 6) for axis in inference.axes_of(node, index)]
    inference.freeze(node, [queries[0], queries[2], *lengths], None, "an input of lengths counts it")
    inference.output(node, [queries[0], queries[2], product([queries[1], values[3]])])


def packed_attention(inference: AxisInference, node: ir.Node) -> None:
    """Attention of com.microsoft: one weight and one bias make queries, keys and values, side by side.

    The operator sums over channels of queries and keys that it has made itself, so the columns of the queries
    take the coefficients. Inputs are x, the weight, the bias, a mask, a cache, and what is added to logits.
    """
    _refuse_cache(inference, node, [4, *range(6, len(node.inputs))])
    batch, length, channels = inference.axes_of_rank(node, 0, 3)
    columns = inference.axes_of_rank(node, 1, 2)[1]
    total, count = root(columns).size, attribute_of(node, "num_heads")
    if total is None or not count:
        raise UnknownShape("the number of its heads is not known")
    widths = attribute_of(node, "qkv_hidden_sizes") or [total // 3] * 3
    if sum(widths) != total or widths[0] != widths[1] or any(width % count for width in widths):
        raise UnknownShape("its heads do not make up the columns of its weight")
    heads, pairs, values = Axis(count), Axis(widths[0] // count), Axis(widths[2] // count)
    parts = [product([heads, own]) for own in (pairs, pairs, values)]
    made = concat(parts)
    inference.contract(node, (0, 2), (1, 0))
    inference.unify(node, columns, made, 1)
    if inference.is_weight(node, 1):
        inference.made(node, 1, 1)
    if inference.input(node, 2) is not None:
        inference.unify(node, inference.axes_of_rank(node, 2, 1)[0], made, 0)
    inference.follow(node, "num_heads", [Size(heads)])
    inference.follow(node, "qkv_hidden_sizes", [Size(part) for part in parts])
    operands = [[batch, heads, length, own] for own in (pairs, pairs, values)]
    _attend(inference, node, *operands)
    of_queries = np.arange(total) < widths[0]
    for index, axis in ((1, 1), (2, 0)):
        if inference.input(node, index) is not None:
            inference.folded(node, index, axis, pairs, of_queries)
    if attribute_of(node, "do_rotary", 0):
        inference.freeze(node, pairs, 1, "the operator turns the channels of queries and keys by their place")
    if inference.input(node, 3) is not None:
        inference.freeze(node, [batch, *inference.axes_of(node, 3)], None, "a mask of lengths")
    if inference.input(node, 5) is not None:
        broadcast(inference, node, [[batch, heads, length, length], inference.axes_of(node, 5)])
    inference.output(node, [batch, length, parts[2]])
    inference.count(node, 1, [batch, length, channels, made])


def _refuse_cache(inference: AxisInference, node: ir.Node, inputs: Iterable[int]) -> None:
    """Give up on a node that has one of these inputs, or more results than the first."""
    more = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if more or any(inference.input(node, index) is not None for index in inputs):
        raise UnknownShape("channels are not followed into a cache of keys and values")


def _attend(
    inference: AxisInference, node: ir.Node, queries: list[Axis], keys: list[Axis], values: list[Axis]
) -> None:
    """What all kinds of attention have in common, on axes [batch, heads, length, channels]."""
    for axis in (0, 1, 2):
        inference.unify(node, keys[axis], values[axis], axis)
    inference.unify(node, queries[0], keys[0], 0)
    heads, served = root(queries[1]).size, root(keys[1]).size
    if heads is None or served is None or heads % served:
        raise UnknownShape("the number of its heads is not known")
    inference.unify(node, queries[1], product([keys[1], Axis(heads // served)]), 1)
    inference.unify(node, queries[3], keys[3], 3)
    channels = root(queries[3]).size
    unsaid = (None, 0.0) if node.domain == "com.microsoft" else (None,)
    if attribute_of(node, "scale") in unsaid and channels:
        inference.default(node, "scale", channels**-0.5, queries[3])
    inference.freeze(node, keys[2], 2, "it normalises over this axis")
    inference.count(node, 1, [*queries[:3], keys[2], queries[3]])
    inference.count(node, 1, [*queries[:3], keys[2], values[3]])


def _operand(
    inference: AxisInference, node: ir.Node, index: int, attribute: str, rank: int | None = None
) -> list[Axis]:
    """The axes [batch, heads, length, channels] of an operand, which may have to be of one rank."""
    if inference.input(node, index) is None:
        raise UnknownShape("channels are not followed into operands that are packed into one")
    axes = inference.axes_of(node, index) if rank is None else inference.axes_of_rank(node, index, rank)
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
