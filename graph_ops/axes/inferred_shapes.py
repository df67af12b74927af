"""Shapes that ONNX's inference derives, for what no rule knows. Shapes that a file declares are claims."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from growpipe.graph_ops.bodies import bodies_of
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
        self._known: dict[ir.Value, ir.Shape] | None = None

    def of(self, value: ir.Value) -> ir.Shape | None:
        """The shape of a value that a node computes, in the main graph or in a body; None if it is not known.

        An operator of another domain is unknown to ONNX: nothing can be derived, so its declaration is taken.
        """
        producer = value.producer()
        if producer is not None and not is_onnx(producer):
            return value.shape
        if self._known is None:
            self._known = self._infer()
        return self._known.get(value)

    def _infer(self) -> dict[ir.Value, ir.Shape]:
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
        return dict(_shapes(self._model.graph, inferred.graph))


def _shapes(graph: ir.Graph, inferred: onnx.GraphProto) -> Iterator[tuple[ir.Value, ir.Shape]]:
    """The shapes of what the nodes of a graph compute, and the nodes of the bodies within it."""
    # A sequence has no shape, and onnx_ir has no type for a map.
    infos = {
        info.name: info
        for info in (*inferred.value_info, *inferred.output)
        if info.type.HasField("tensor_type")
    }
    for node, proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            if value.name in infos:
                read = ir.Value(name=value.name)
                ir.serde.deserialize_value_info_proto(infos[value.name], read)
                if read.shape is not None:
                    yield value, read.shape
        for (_, body), body_proto in zip(bodies_of(node), _bodies(proto), strict=True):
            yield from _shapes(body, body_proto)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


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
        for body in _bodies(node):
            for info in body.input:
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")
            _forget_claims(body, set())
