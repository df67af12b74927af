"""Model-local functions: their calls are replaced by their bodies before axes are inferred."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import PassError
from onnx_ir.passes.common import InlinePass

from growpipe.graph_ops.operators import plain_domain

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> ir.Model:
    """A copy in which the bodies of functions stand where they were called; the model itself if none is.

    A function that is written in another opset than the model stays a call, because its nodes mean something
    else there. So does a function that takes a graph as an attribute.
    """
    own = {plain_domain(domain): version for domain, version in model.graph.opset_imports.items()}

    def fits(function: ir.Function) -> bool:
        return all(own.get(plain_domain(d), v) == v for d, v in function.opset_imports.items())

    called = {node.op_identifier() for node in model.graph.all_nodes()}
    if not any(fits(function) for key, function in model.functions.items() if key in called):
        return model
    try:
        inlined = model.clone()
        InlinePass(fits)(inlined)
    except (PassError, RuntimeError, ValueError):
        return model
    return inlined
