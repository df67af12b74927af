"""Shapes that ONNX's inference derives, for what no rule knows. Shapes that a file declares are claims."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.process import infer_model_shapes
from growpipe.graph_ops.onnx_tools.shape_inference import skeleton, spell_out_defaults
from growpipe.graph_ops.operators import is_onnx

__all__ = ["InferredShapes"]


class InferredShapes:
    """The shapes of the values of one model, derived from its inputs and tensors alone.

    ONNX's inference runs in a process of its own at the first question, so a model whose operators all have
    rules never pays for it.

    Args:
        model: the model; not changed.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._by_name: dict[str, ir.Shape] | None = None

    def of(self, value: ir.Value) -> ir.Shape | None:
        """The shape of a value that a node computes; None if it is not known.

        An operator of another domain is unknown to ONNX: nothing can be derived, so its declaration is taken.
        """
        producer = value.producer()
        if producer is not None and not is_onnx(producer):
            return value.shape
        if self._by_name is None:
            self._by_name = self._infer()
        return self._by_name.get(value.name or "")

    def _infer(self) -> dict[str, ir.Shape]:
        try:
            proto = skeleton(self._model)
        except RuntimeError:
            return {}  # the graph is not sorted, and onnx_ir does not copy it
        spell_out_defaults(proto.graph)
        _forget_claims(proto.graph, {value.name for value in self._model.graph.inputs})
        try:
            inferred = infer_model_shapes(proto, strict=False)
        except CheckFailed:
            return {}  # a contradiction, or a model that inference does not survive: nothing is derived
        shapes = {}
        for info in (*inferred.graph.value_info, *inferred.graph.output):
            if not info.type.HasField("tensor_type"):
                continue  # a sequence has no shape, and onnx_ir has no type for a map
            value = ir.Value(name=info.name)
            ir.serde.deserialize_value_info_proto(info, value)
            if value.shape is not None:
                shapes[info.name] = value.shape
        return shapes


def _forget_claims(graph: onnx.GraphProto, given: set[str | None]) -> None:
    """Remove the shapes that the file declares for what its nodes compute, other domains excepted."""
    foreign = {name for node in graph.node if not is_onnx(node) for name in node.output}
    kept = [info for info in graph.value_info if info.name in foreign]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for info in graph.output:
        if info.name not in foreign | given and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _forget_claims(inner, set())
