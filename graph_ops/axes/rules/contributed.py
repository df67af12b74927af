"""Operators of onnxruntime's own domain, as its optimiser and its quantiser write them.

Those that are one of ONNX's operators with an activation behind it grow like that one. For the others the
shapes and the multiply-accumulates are known, and the channels stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.attention import (
    group_query_attention,
    multi_head_attention,
    packed_attention,
)
from growpipe.graph_ops.axes.rules.contraction import gemm, multiply
from growpipe.graph_ops.axes.rules.convolution import convolve
from growpipe.graph_ops.axes.rules.elementwise import broadcast, elementwise
from growpipe.graph_ops.axes.rules.normalisation import MOMENTS
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def fused_convolution(inference: AxisInference, node: ir.Node) -> None:
    """FusedConv: a convolution, plus input 3 if it is there, through an activation."""
    result = convolve(inference, node, 1, 2)
    if inference.input(node, 3) is not None:
        broadcast(inference, node, [result, inference.axes_of(node, 3)])


def fused_product(inference: AxisInference, node: ir.Node) -> None:
    """FusedMatMul, if it transposes nothing."""
    if any(attribute_of(node, name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB")):
        raise UnknownShape("growpipe has no rule for this operator if it transposes its inputs")
    multiply(inference, node, 0, 1)


def packed_product(inference: AxisInference, node: ir.Node) -> None:
    """MatMulNBits: the weight is packed into blocks of a few bits."""
    axes = inference.axes_of(node, 0)
    inner, out = Axis(attribute_of(node, "K")), Axis(attribute_of(node, "N"))
    inference.unify(node, axes[-1], inner, len(axes) - 1)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            inference.freeze(node, inference.axes_of(node, index), None, _PACKED)
    inference.freeze(node, [inner, out], None, _PACKED)
    inference.output(node, [*axes[:-1], out])
    inference.count(node, 1, [*axes[:-1], inner, out])


def dynamic_product(inference: AxisInference, node: ir.Node) -> None:
    """DynamicQuantizeMatMul: ``a, b, scale, zero, bias``; MatMulIntegerToFloat has scale and zero of both."""
    result = multiply(inference, node, 0, 1)
    per_column = (2, 3, 4) if node.op_type == "DynamicQuantizeMatMul" else (3, 5, 6)
    for index in per_column:
        if inference.input(node, index) is not None:
            own = [axis for axis in inference.axes_of(node, index) if root(axis).size != 1]
            broadcast(inference, node, [result[-1:], own])


def skip_normalisation(inference: AxisInference, node: ir.Node) -> None:
    """SkipLayerNormalization and SkipSimplifiedLayerNormalization: a sum, normalised over its last axis.

    Inputs are the operands, the scale, and shift and bias where they are there. Output 3 is the sum.
    """
    operands = [inference.axes_of(node, i) for i, value in enumerate(node.inputs) if value is not None]
    axes = broadcast(inference, node, operands)
    inference.copy_evenly(node, axes[-1], len(axes) - 1, MOMENTS)
    inference.output(node, axes)
    for index in (1, 2):
        inference.output(node, [*axes[:-1], Axis(1)], index)
    inference.output(node, axes, 3)


_PACKED = "the weight is packed into blocks, which cannot be copied channel by channel"

RULES: dict[str, Rule] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), elementwise),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), dynamic_product),
    "Attention": packed_attention,
    "FusedConv": fused_convolution,
    "FusedGemm": gemm,
    "FusedMatMul": fused_product,
    "GroupQueryAttention": group_query_attention,
    "MatMulNBits": packed_product,
    "MultiHeadAttention": multi_head_attention,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_normalisation),
}
