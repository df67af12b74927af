"""Shape inference from graph inputs and tensors alone, for models of any size."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.process import infer_model_shapes
from growpipe.graph_ops.operators import is_onnx

__all__ = ["clear_shapes", "infer_shapes", "skeleton", "spell_out_defaults"]

_SMALL = 4096
"""Bytes of a tensor whose values inference may need (shapes, split sizes, axes); larger ones are left out."""


def clear_shapes(model: ir.Model) -> None:
    """Forget the shapes of everything that a node of the main graph or of a subgraph computes.

    Shapes left over from before an edit would make inference leave the model as it is, silently.
    """
    for value in _computed(model):
        value.shape = None
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(value.const_value.shape.numpy())


def infer_shapes(model: ir.Model, *, strict: bool = True, keep_declared: bool = False) -> ir.Model:
    """A copy of the model with the shape of every value inferred anew; tensors are shared with the original.

    Args:
        model: the model; not changed.
        strict: whether a contradiction is an error. (ONNX itself keeps silent about contradictions in a graph
            with operators it does not know; an output that differs from its declaration is always found.)
        keep_declared: whether declared lengths stand in where inference finds none. Only for models whose
            declarations are right.

    Raises:
        CheckFailed: inference found a contradiction and ``strict`` is set.
    """
    copy = model.clone()
    declared = {
        value: value.shape
        for value in (_computed(copy) if keep_declared else copy.graph.outputs)
        if value.shape is not None
    }
    clear_shapes(copy)
    proto = skeleton(copy)
    spell_out_defaults(proto.graph)
    inferred = infer_model_shapes(proto, strict=strict)
    _merge(copy.graph, inferred.graph)
    for value, shape in declared.items():
        if not _compatible(value.shape, shape):
            if strict and value.is_graph_output():
                raise CheckFailed(f"the output {value.name!r} is declared as {shape}, but is {value.shape}")
            continue
        value.shape = shape if value.shape is None else _merged(value.shape, shape)
    return copy


def spell_out_defaults(graph: onnx.GraphProto) -> None:
    """Write down the axes of MeanVarianceNormalization, in place.

    ONNX's shape inference expands it to a function that forgets the default, and fails on what follows.
    """
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                spell_out_defaults(inner)
        stated = any(attribute.name == "axes" for attribute in node.attribute)
        if is_onnx(node, "MeanVarianceNormalization") and not stated:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))


def _computed(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        for node in graph:
            yield from node.outputs


def _compatible(inferred: ir.Shape | None, declared: ir.Shape) -> bool:
    if inferred is None:
        return True
    return len(inferred) == len(declared) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(inferred, declared, strict=True)
    )


def _merged(inferred: ir.Shape, declared: ir.Shape) -> ir.Shape:
    """Numbers that inference found, else what was declared, else the symbols that inference made up."""
    return ir.Shape(
        [
            a if isinstance(a, int) or (not isinstance(b, int) and b.value is None) else b
            for a, b in zip(inferred, declared, strict=True)
        ]
    )


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model as a message in which large tensors are inputs: nothing to copy, and never above 2 GB.

    The model is as before when this returns.
    """
    graph = model.graph
    large = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _SMALL
    }
    everything = list(graph.initializers.values())
    declared = set(graph.inputs)
    count = len(graph.inputs)
    for name, value in large.items():
        tensor = value.const_value
        assert tensor is not None
        value.type = ir.TensorType(tensor.dtype)
        graph.initializers.pop(name)
        if value not in declared:
            graph.inputs.append(value)
    try:
        return ir.to_proto(model)
    finally:
        graph.inputs[count:] = []  # del would leave them marked as inputs
        graph.initializers.clear()
        for value in everything:  # in their old order
            graph.initializers.add(value)


def _merge(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    for node, proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if info is not None:
                ir.serde.deserialize_value_info_proto(info, value)
        subgraphs = {a.name: (a.g, *a.graphs) for a in proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _merge(attribute.as_graph(), subgraphs[name][0])
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                for inner, inner_proto in zip(attribute.as_graphs(), subgraphs[name][1:], strict=True):
                    _merge(inner, inner_proto)
