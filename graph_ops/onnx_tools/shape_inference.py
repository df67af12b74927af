"""Shape inference from graph inputs and tensors alone, for models of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from growpipe.graph_ops.files.load_save import hold_in_memory
from growpipe.graph_ops.files.map_types import to_proto
from growpipe.graph_ops.onnx_tools.process import infer_model_shapes
from growpipe.graph_ops.operators import is_onnx

__all__ = [
    "clear_shapes",
    "forget_symbols",
    "infer_shapes",
    "input_symbols",
    "restore_output_shapes",
    "skeleton",
    "spell_out_defaults",
]

_SEPARATE_INITIALIZERS = 4  # the IR version from which an initializer that is an input is a default
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


def infer_shapes(model: ir.Model, *, strict: bool = True) -> ir.Model:
    """A copy of the model with the shape of every value inferred again from the inputs and the initializers.

    What the file declares of a value that a node computes is a claim, and is not used; see
    `restore_output_shapes`. An initializer that a caller may replace counts by its shape, not by its values.

    Args:
        model: the model; not changed. Its tensors are shared with the copy.
        strict: whether a contradiction is an error. (ONNX itself keeps silent about contradictions in a graph
            with operators it does not know.)

    Raises:
        CheckFailed: inference found a contradiction and ``strict`` is set, or did not survive the model.
    """
    copy = model.clone()
    clear_shapes(copy)
    proto = skeleton(copy)
    spell_out_defaults(proto.graph)
    inferred = infer_model_shapes(proto, strict=strict)
    _merge(copy.graph, inferred.graph)
    return copy


def restore_output_shapes(inferred: ir.Model, model: ir.Model) -> None:
    """Give the outputs back what was declared of them, as far as it does not contradict what was inferred.

    Args:
        inferred: what `infer_shapes` made of a model with the same outputs; changed.
        model: the model that declares the outputs.
    """
    for value, before in zip(inferred.graph.outputs, model.graph.outputs, strict=True):
        shape = before.shape
        if shape is not None and _compatible(value.shape, shape):
            value.shape = shape.copy() if value.shape is None else _merged(value.shape, shape)


def input_symbols(model: ir.Model) -> set[str | None]:
    """The names of the open lengths of the inputs."""
    lengths = (length for value in model.graph.inputs for length in value.shape or ())
    return {length.value for length in lengths if not isinstance(length, int)}


def forget_symbols(model: ir.Model) -> None:
    """Forget the open lengths of inner values that are not named at an input.

    A runtime believes that two lengths of one name are equal, and reuses memory. Inference gives names by the
    rules of ONNX; onnxruntime also runs models beyond them, such as a PRelu whose slope widens its input.
    """
    known, outputs = input_symbols(model), set(model.graph.outputs)
    for value in _computed(model):
        if value.shape is not None and value not in outputs:
            value.shape = ir.Shape(
                [d if isinstance(d, int) or d.value in known else None for d in value.shape]
            )


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
    """The model as a message without large tensors: nothing to copy, and never above 2 GB.

    Large tensors of the main graph are inputs in the message, and so are initializers that a caller may
    replace. The others hold their own data, wherever the model keeps it.
    """
    small = model.clone()
    graph = small.graph
    replaceable = model.ir_version >= _SEPARATE_INITIALIZERS
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not (tensor.nbytes > _SMALL or (replaceable and value.is_graph_input())):
            continue
        value.type = ir.TensorType(tensor.dtype)
        graph.initializers.pop(name)
        if not value.is_graph_input():
            graph.inputs.append(value)
    hold_in_memory(small)
    return to_proto(small)


def _merge(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    for node, proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if info is not None:
                with contextlib.suppress(ir.serde.SerdeError):  # maps, of which onnx_ir knows nothing
                    ir.serde.deserialize_value_info_proto(info, value)
        subgraphs = {a.name: (a.g, *a.graphs) for a in proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _merge(attribute.as_graph(), subgraphs[name][0])
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                for inner, inner_proto in zip(attribute.as_graphs(), subgraphs[name][1:], strict=True):
                    _merge(inner, inner_proto)
