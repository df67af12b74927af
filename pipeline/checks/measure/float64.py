"""A model in float64: how much of a difference is mere rounding of float32."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from growpipe.checks.measure.protos import all_graphs, all_nodes
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.operators import is_onnx

__all__ = ["run_in_double", "to_double"]

# Integer arithmetic stands between these and the outputs: a float64 run would not tell rounding from it.
_QUANTISED = ("Quantize", "QLinear", "ConvInteger", "MatMulInteger", "QAttention", "QGemm", "MatMulNBits")
_TYPE_ATTRIBUTES = {
    ("Cast", "to"),
    ("EyeLike", "dtype"),
    ("RandomNormalLike", "dtype"),
    ("RandomUniformLike", "dtype"),
}
_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}


def run_in_double(path: str | os.PathLike[str], inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The outputs of the model with every float32 made a float64.

    onnxruntime runs it where it has float64 kernels for all operators, else ONNX's reference evaluator.

    Raises:
        CheckFailed: the model has operators for which this is not possible.
    """
    model = to_double(onnx.load(path))
    feed = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}
    from growpipe.checks.measure.sessions import open_session

    try:
        return open_session(model.SerializeToString(), optimised=False).run(feed)
    except (CheckFailed, ValueError) as error:
        # Some kernels, convolutions among them, exist for float32 alone; ValueError: above 2 GB.
        refused = _shortened(error)
    try:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        wanted = {i.name: feed[i.name] for i in model.graph.input if i.name in feed}
        with np.errstate(all="ignore"):
            values = evaluator.run(None, wanted)
    except Exception as error:
        # The evaluator raises whatever its operators raise.
        raise CheckFailed(
            f"no float64 evaluation: {type(error).__name__} {_shortened(error)} (onnxruntime: {refused})"
        ) from None
    outputs = {o.name: np.asarray(v) for o, v in zip(model.graph.output, values, strict=True)}
    single = [name for name, value in outputs.items() if value.dtype in (np.float32, np.float16)]
    if single:
        raise CheckFailed(f"no float64 evaluation: outputs {single} came out in a lower precision")
    return outputs


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which float32 is float64: weights, constants, casts and declared types.

    Raises:
        CheckFailed: the model is quantised, half precision, random or uses operators of other domains.
    """
    doubled = onnx.ModelProto()
    doubled.CopyFrom(model)
    del doubled.graph.value_info[:]
    for node in all_nodes(doubled):
        if not is_onnx(node):
            raise CheckFailed(f"no float64 evaluation of {node.domain}.{node.op_type}")
        if any(mark in node.op_type for mark in _QUANTISED) or node.op_type in _RANDOM:
            raise CheckFailed(f"no float64 evaluation of {node.op_type}")
        for attribute in node.attribute:
            _double_attribute(node, attribute)
    for graph in all_graphs(doubled):
        for tensor in graph.initializer:
            _double_tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _double_type(value)
    return doubled


def _double_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.TENSOR:
        _double_tensor(attribute.t)
    elif (node.op_type, attribute.name) in _TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.DOUBLE
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        values = np.asarray(attribute.f if attribute.name == "value_float" else list(attribute.floats))
        tensor = numpy_helper.from_array(values.astype(np.float64))
        attribute.Clear()
        attribute.name, attribute.type = "value", AttributeProto.TENSOR
        attribute.t.CopyFrom(tensor)
    elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _LOW:
        raise CheckFailed("no float64 evaluation of a model that computes in half precision")
    if node.op_type == "ConstantOfShape" and not node.attribute:
        raise CheckFailed("no float64 evaluation of ConstantOfShape without a value")


_LOW = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def _double_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _LOW:
        raise CheckFailed("no float64 evaluation of a model that computes in half precision")
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )


def _double_type(value: ValueInfoProto) -> None:
    kind = value.type
    if kind.WhichOneof("value") != "tensor_type":
        if kind.WhichOneof("value") is not None:
            raise CheckFailed("no float64 evaluation of sequences and optional values")
        return
    if kind.tensor_type.elem_type in _LOW:
        raise CheckFailed("no float64 evaluation of a model that computes in half precision")
    if kind.tensor_type.elem_type == TensorProto.FLOAT:
        kind.tensor_type.elem_type = TensorProto.DOUBLE
