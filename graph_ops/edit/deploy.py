"""The deploy form: batch norms fused, constants folded, nothing in it that the function does not need."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import common as passes

from growpipe.graph_ops.edit.folding import drop_dropout, fold_constants, fuse_batch_norms, settle_reshapes
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.shape_inference import infer_shapes
from growpipe.graph_ops.onnx_tools.width_check import check_structure, check_widths

__all__ = ["deploy_form", "strip_traces"]

# A path to a source file, or a frame of a stack trace, on any system.
_SOURCE = re.compile(r"""File\s+"|Traceback|(?:[A-Za-z]:)?[\\/](?:[^\\/\s:]+[\\/])+[^\\/\s:]+|\w+\.py\b""")


def deploy_form(model: ir.Model) -> ir.Model:
    """The model as it ships: the same function of the same inputs, up to rounding.

    Batch norms are fused into the layer before them, constants folded, Dropout and Identity removed, what
    nothing uses dropped. Documentation and metadata of nodes, values and graphs go (exporters write source
    paths and stack traces there); metadata of the model stays unless it holds such a path.

    Args:
        model: a model for inference; not changed.

    Raises:
        CheckFailed: the model does not pass the width check, or its deploy form does not pass ONNX's checker,
            strict shape inference and the width check.
    """
    problems = check_widths(model)
    if problems:
        raise CheckFailed(f"the model is not sound: {problems[0]}")
    form = infer_shapes(model, keep_declared=True)
    strip_traces(form)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(form)
    drop_dropout(form)
    passes.IdentityEliminationPass()(form)
    fold_constants(form)
    settle_reshapes(form)
    fuse_batch_norms(form)
    passes.RemoveUnusedNodesPass()(form)
    passes.RemoveUnusedFunctionsPass()(form)
    passes.RemoveUnusedOpsetsPass()(form)
    result = infer_shapes(form, keep_declared=True)
    problems = check_structure(result)
    if problems:
        raise CheckFailed(f"the deploy form is not sound: {problems[0]}")
    return result


def strip_traces(model: ir.Model) -> None:
    """Remove documentation and metadata below the model, and the model's own where it names a source file."""
    if model.doc_string and _SOURCE.search(model.doc_string):
        model.doc_string = None
    for key, text in list(model.metadata_props.items()):
        if _SOURCE.search(text) and not key.startswith("growpipe."):
            del model.metadata_props[key]
    graphs = [*model.graphs()]
    for function in model.functions.values():
        function.doc_string = None
        function.metadata_props.clear()
        graphs.extend([function.graph, *function.subgraphs()])
    for graph in graphs:
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    tensor = value.const_value
    if tensor is not None and (tensor.doc_string or tensor.metadata_props):
        if isinstance(tensor, ir.StringTensor):
            value.const_value = ir.StringTensor(tensor.string_data(), shape=tensor.shape, name=tensor.name)
        else:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
