"""Nothing of the training: no dropout, no statistics of the batch at hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from growpipe.checks.context import Context
from growpipe.checks.measure.protos import placed_nodes
from growpipe.checks.measure.trace import module_of
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed
from growpipe.graph_ops.operators import is_onnx

__all__: list[str] = []


@register(
    "structure/training",
    "no dropout and no batch normalisation in training mode",
    "call model.eval() before the export",
)
def training(context: Context) -> Outcome:
    """A model exported in training mode drops activations at random, or normalises by the batch at hand:
    its outputs depend on chance and on what else is in the batch.
    """
    findings = [
        Finding(reason, node.name, node.op_type, module=module_of(node))
        for graph, node in placed_nodes(context.proto)
        if (reason := _trains(graph, node))
    ]
    if findings:
        return failed(
            f"{len(findings)} nodes are in training mode",
            *findings,
        )
    return passed("no node is in training mode")


def _trains(graph: GraphProto, node: NodeProto) -> str:
    if not is_onnx(node):
        return ""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "BatchNormalization":
        if "training_mode" in attributes and attributes["training_mode"].i:
            return "it normalises by the batch at hand"
        if len([name for name in node.output if name]) > 1:
            return "it gives running statistics, as in training"
    if node.op_type == "Dropout":
        if len(node.input) >= 3 and node.input[2]:
            mode = _constant(graph, node.input[2])
            if mode is None:
                return "whether it drops is decided while it runs"
            if mode.any():
                ratio = _constant(graph, node.input[1]) if node.input[1] else None
                return "" if ratio is not None and not ratio.any() else "it drops activations at random"
        if "is_test" in attributes and not attributes["is_test"].i:
            return "it drops activations at random"
    return ""


def _constant(graph: GraphProto, name: str) -> np.ndarray | None:
    for tensor in graph.initializer:
        if tensor.name == name and tensor.data_location != TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and name in node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    return onnx.numpy_helper.to_array(attribute.t)
                if attribute.name.startswith("value_"):
                    return np.asarray(onnx.helper.get_attribute_value(attribute))
    return None
