"""The deploy form: batch norms fused, constants folded, nothing in it that the function does not need."""

from __future__ import annotations

import re

import onnx_ir as ir

from growpipe.graph_ops.edit.clean_up import (
    drop_dropout,
    drop_identities,
    drop_unused,
    lift_constants,
    raise_ir_version,
)
from growpipe.graph_ops.edit.folding import fold_constants, fuse_batch_norms, settle_reshapes
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.shape_inference import (
    forget_symbols,
    infer_shapes,
    restore_output_shapes,
)
from growpipe.graph_ops.onnx_tools.width_check import (
    check_structure,
    contradicting_widths,
    infer_with_problems,
)

__all__ = ["deploy_form", "strip_traces"]

# A path to a source file, or a frame of a stack trace, on any system.
_SOURCE = re.compile(r"""File\s+"|Traceback|(?:[A-Za-z]:)?[\\/](?:[^\\/\s:]+[\\/])+[^\\/\s:]+|\w+\.py\b""")


def deploy_form(model: ir.Model) -> ir.Model:
    """The model as it ships: the same function of the same inputs, up to rounding.

    Batch norms are fused into the layer before them, constants are folded, Dropout and Identity are removed,
    and whatever nothing uses is dropped. Documentation and metadata of nodes, values and graphs go, because
    exporters write source paths and stack traces there. Metadata of the model stays unless it holds such a
    path. A model of IR version 3 becomes one of IR version 4 with the same inputs to feed.

    Requires: the widths of ``model`` fit together.

    Ensures: ``model`` is as before. The form has the same inputs and outputs, by name, type and order, and
    subgraphs compute what they computed. Only shapes that inference derives from inputs and initializers are
    relied on. A declared shape of an output that inference contradicts is replaced by the inferred one.

    Args:
        model: a model for inference.

    Raises:
        CheckFailed: the model has no outputs; widths in it contradict each other; or its deploy form does not
            pass ONNX's checker, strict shape inference and the width check, and the model does.
    """
    if not model.graph.outputs:
        raise CheckFailed(
            "the model has no outputs, so that nothing of it would be left; declare its outputs"
        )
    inference = infer_with_problems(model)
    form = inference.model
    problems = [*inference.problems, *([] if form is None else contradicting_widths(form))]
    if form is None or problems:
        raise CheckFailed(f"the model is not sound: {problems[0]}")
    raise_ir_version(form)
    strip_traces(form)
    lift_constants(form)
    drop_dropout(form)
    drop_identities(form)
    fold_constants(form)
    settle_reshapes(form)
    fuse_batch_norms(form)
    drop_unused(form)
    result = infer_shapes(form)
    restore_output_shapes(result, model)
    problems = check_structure(result)
    # A model may come with faults of its own that do not keep it from running; no edit may add one.
    if problems and len(problems) > len(check_structure(model)):
        raise CheckFailed(f"the deploy form is not sound: {problems[0]}")
    forget_symbols(result)
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
