"""Edits that change nothing but the form of a model: versions, lifted constants, nodes that do nothing.

Each function edits the main graph of the model that it is given. Subgraphs of If, Loop and Scan stay as they
are; values of the main graph that they read are replaced there too, and never dropped.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from growpipe.graph_ops.edit.additions import Additions, constant_tensor
from growpipe.graph_ops.operators import is_onnx, opset_version

__all__ = [
    "drop_dropout",
    "drop_identities",
    "drop_unused",
    "lift_constants",
    "raise_ir_version",
]

_SEPARATE_INITIALIZERS = 4
"""The IR version from which an initializer need not be an input of the graph."""


def raise_ir_version(model: ir.Model) -> bool:
    """Bring a model of IR version 3 or less to 4; return whether it was one.

    There every initializer is listed as an input too, which no user may feed. They are taken off the list, so
    that the inputs that users feed stay as they are, and that edits may add initializers.
    """
    if model.ir_version >= _SEPARATE_INITIALIZERS:
        return False
    for value in list(model.graph.inputs):
        if value.is_initializer():
            model.graph.inputs.remove(value)
    model.ir_version = _SEPARATE_INITIALIZERS
    return True


def lift_constants(model: ir.Model) -> int:
    """Make an initializer of every Constant node; return how many there were.

    Not lifted: a Constant that is an output of the graph, holds strings, or is sparse.
    """
    additions = Additions(model.graph)
    lifted = 0
    for node in list(model.graph):
        if not is_onnx(node, "Constant") or node.outputs[0].is_graph_output():
            continue
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        additions.take_over(node.outputs[0], tensor)
        model.graph.remove(node, safe=True)
        lifted += 1
    return lifted


def drop_identities(model: ir.Model) -> int:
    """Remove every Identity of the main graph that a rename can stand in for; return how many there were."""
    dropped = 0
    for node in list(model.graph):
        if not is_onnx(node, "Identity") or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not node.graph or source.is_graph_output():
                continue
            name = result.name
            result.name = f"{name}.identity"
            source.name = name
            source.shape = source.shape or result.shape
            source.type = source.type or result.type
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        dropped += 1
    return dropped


def drop_dropout(model: ir.Model) -> int:
    """Remove every Dropout that does nothing at inference; return how many there were."""
    dropped = 0
    for node in list(model.graph):
        if is_onnx(node, "Dropout") and node.inputs[0] is not None and _is_idle(model, node):
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
            dropped += 1
    return dropped


def _is_idle(model: ir.Model, node: ir.Node) -> bool:
    if opset_version(model) < 7:  # an attribute says there whether it trains
        return False
    if node.outputs[0].is_graph_output():
        return False
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = constant_tensor(training)
    return training is None or (tensor is not None and not bool(tensor.numpy()))


def drop_unused(model: ir.Model) -> int:
    """Remove nodes, initializers, functions and operator sets that nothing needs; return how many nodes."""
    graph = model.graph
    dropped = 0
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            dropped += 1
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
    passes.RemoveUnusedFunctionsPass()(model)
    imported = dict(graph.opset_imports)
    passes.RemoveUnusedOpsetsPass()(model)
    # onnxruntime puts the bodies of functions into the graph: it must import what they use.
    for function in model.functions.values():
        for domain in function.opset_imports:
            if domain in imported:
                graph.opset_imports.setdefault(domain, imported[domain])
    return dropped
