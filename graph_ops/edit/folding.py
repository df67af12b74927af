"""Constant folding and batch-norm fusion on an ONNX graph, with numpy and ONNX's own reference operators.

Each function edits the main graph of the model it is given; subgraphs are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from growpipe.graph_ops.operators import is_onnx, opset_version

__all__ = ["drop_dropout", "fold_constants", "fuse_batch_norms", "settle_reshapes"]

MAX_FOLDED_BYTES = 2**20
"""A folded result may be this large, or as large as what it is computed from."""

# Deterministic and cheap. Dequantize is not among them: folding it would undo quantisation.
_FOLDABLE = (
    "Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Exp Expand Flatten Floor Gather Greater "
    "GreaterOrEqual Identity Less LessOrEqual Log Max Min Mod Mul Neg Not Or Pad Pow Range Reciprocal "
    "ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape Size Slice Split Sqrt Squeeze Sub Tile "
    "Transpose Unsqueeze Where"
)


def fold_constants(model: ir.Model) -> int:
    """Compute every node whose inputs are all known, and return how many there were.

    The model must carry inferred shapes: a node is only computed when the size of its result is known and not
    out of proportion to its inputs. Inputs of the graph are never taken as constants, default or not.
    """
    folded = 0
    for node in list(model.graph):
        results = _computed(node, model)
        if results is None:
            continue
        for value, array in zip(node.outputs, results, strict=True):
            constant = _add_initializer(model, f"{value.name}", array, replaces=value)
            value.replace_all_uses_with(constant, replace_graph_outputs=False)
        model.graph.remove(node, safe=True)
        folded += 1
    return folded


def _computed(node: ir.Node, model: ir.Model) -> Sequence[npt.NDArray] | None:
    if not is_onnx(node, *_FOLDABLE.split()):
        return None
    if any(value.is_graph_output() for value in node.outputs):
        return None
    if node.op_type == "Shape":
        array = _static_shape(node)
        return None if array is None else [array]
    tensors = [None if value is None else _constant(value) for value in node.inputs]
    if any(t is None and v is not None for t, v in zip(tensors, node.inputs, strict=True)) or not tensors:
        return None
    known = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    asked = sum(_nbytes(value) for value in node.outputs)
    if asked > max(known, MAX_FOLDED_BYTES):
        return None
    # The reference operators read a node of their own; inputs and attributes are this node's.
    names = [f"i{position}" if value is not None else "" for position, value in enumerate(node.inputs)]
    proto = ir.to_proto(node)
    del proto.input[:]
    proto.input.extend(names)
    feeds = {name: t.numpy() for name, t in zip(names, tensors, strict=True) if t is not None}
    try:
        version = opset_version(model)
        results = ReferenceEvaluator(proto, opsets={"": version}).run(None, feeds)
    except (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError):
        return None  # what the reference cannot compute stays in the graph
    arrays = [np.asarray(result) for result in results]
    if any(
        v.dtype is not None and v.dtype.numpy() != a.dtype for v, a in zip(node.outputs, arrays, strict=True)
    ):
        return None
    return arrays


def _static_shape(node: ir.Node) -> npt.NDArray | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    start, end = node.attributes.get("start"), node.attributes.get("end")
    dims = value.shape.dims[start.as_int() if start else 0 : end.as_int() if end else None]
    return np.array(dims, dtype=np.int64) if all(isinstance(dim, int) for dim in dims) else None


def _nbytes(value: ir.Value) -> float:
    """The size of a value, infinite where its shape or type is not known."""
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return math.inf
    return math.prod(value.shape.numpy()) * max(value.dtype.bitwidth, 8) / 8


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def _add_initializer(model: ir.Model, name: str, array: npt.NDArray, replaces: ir.Value) -> ir.Value:
    if replaces.name == name:
        replaces.name = f"{name}.before"
    taken = model.graph.initializers
    unique = name
    while unique in taken:
        unique += "_"
    tensor = ir.Tensor(np.ascontiguousarray(array), name=unique)
    value = ir.Value(
        name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def settle_reshapes(model: ir.Model) -> int:
    """Give every Reshape whose result is known but for one length a constant target; return how many.

    Exporters compute the target at run time from the size of the batch.
    """
    settled = 0
    for node in model.graph:
        if not is_onnx(node, "Reshape") or node.inputs[1] is None:
            continue
        shape = node.outputs[0].shape
        if _constant(node.inputs[1]) is not None or shape is None or 0 in shape:
            continue
        target = [dim if isinstance(dim, int) else -1 for dim in shape]
        if target.count(-1) > 1:
            continue
        array = np.array(target, dtype=np.int64)
        name = f"{node.outputs[0].name}.shape"
        node.replace_input_with(1, _add_initializer(model, name, array, replaces=node.inputs[1]))
        node.attributes.pop("allowzero", None)
        settled += 1
    return settled


def drop_dropout(model: ir.Model) -> int:
    """Remove every Dropout that does nothing at inference, and return how many there were."""
    dropped = 0
    for node in list(model.graph):
        if not is_onnx(node, "Dropout") or node.inputs[0] is None:
            continue
        training = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = _constant(training)
        if training is not None and (tensor is None or bool(tensor.numpy())):
            continue
        if (
            any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
            or node.outputs[0].is_graph_output()
        ):
            continue
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        model.graph.remove(node, safe=True)
        dropped += 1
    return dropped


def fuse_batch_norms(model: ir.Model) -> int:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it; return how many.

    With ``s = scale / sqrt(var + eps)``: ``W' = s W`` along the output axis and ``b' = s (b - mean) + bias``,
    computed in float64. Nodes whose result would not be finite in the weight's own type are left alone.
    """
    fused = 0
    for node in list(model.graph):
        producer = node.inputs[0].producer() if _is_inference_norm(node) and node.inputs[0] else None
        if producer is None or not is_onnx(producer, *_FUSERS):
            continue
        between = producer.outputs[0]
        if len(between.uses()) != 1 or between.is_graph_output() or producer.graph is not node.graph:
            continue
        tensors = [_constant(value) for value in node.inputs[1:5]]
        if any(tensor is None for tensor in tensors):
            continue
        gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in tensors if t is not None)
        epsilon = node.attributes.get("epsilon")
        with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite is not fused
            scale = gamma / np.sqrt(variance + (epsilon.as_float() if epsilon else 1e-5))
        if _FUSERS[producer.op_type](model, producer, scale, beta - scale * mean):
            name = node.outputs[0].name
            if node.outputs[0].is_graph_output():
                # The name of an output is part of the contract.
                shape, type_ = node.outputs[0].shape, node.outputs[0].type
                node.outputs[0].name = f"{name}.before"
                between.name, between.shape, between.type = name, shape, type_
            node.outputs[0].replace_all_uses_with(between, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            fused += 1
    return fused


def _is_inference_norm(node: ir.Node) -> bool:
    if not is_onnx(node, "BatchNormalization") or len(node.inputs) < 5:
        return False
    training, spatial = node.attributes.get("training_mode"), node.attributes.get("spatial")
    if (training and training.as_int()) or (spatial and not spatial.as_int()):
        return False
    return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def _fuse_conv(model: ir.Model, node: ir.Node, scale: npt.NDArray, shift: npt.NDArray) -> bool:
    weight = _constant(node.inputs[1])
    if weight is None:
        return False
    array = weight.numpy()
    if node.op_type == "Conv":
        wide = array.astype(np.float64) * scale.reshape(-1, *[1] * (array.ndim - 1))
    else:
        group = node.attributes.get("group")
        groups = group.as_int() if group else 1
        grouped = array.astype(np.float64).reshape(groups, -1, *array.shape[1:])
        wide = (grouped * scale.reshape(groups, 1, -1, *[1] * (array.ndim - 2))).reshape(array.shape)
    return _replace(model, node, wide, scale, shift, 1.0)


def _fuse_gemm(model: ir.Model, node: ir.Node, scale: npt.NDArray, shift: npt.NDArray) -> bool:
    weight, trans, beta = (
        _constant(node.inputs[1]),
        node.attributes.get("transB"),
        node.attributes.get("beta"),
    )
    if weight is None:
        return False
    column = scale[:, None] if trans and trans.as_int() else scale[None, :]
    if not _replace(
        model,
        node,
        weight.numpy().astype(np.float64) * column,
        scale,
        shift,
        beta.as_float() if beta else 1.0,
    ):
        return False
    node.attributes.pop("beta", None)
    return True


_FUSERS: dict[str, Callable[[ir.Model, ir.Node, npt.NDArray, npt.NDArray], bool]] = {
    "Conv": _fuse_conv,
    "ConvTranspose": _fuse_conv,
    "Gemm": _fuse_gemm,
}


def _replace(
    model: ir.Model, node: ir.Node, wide: npt.NDArray, scale: npt.NDArray, shift: npt.NDArray, factor: float
) -> bool:
    """Give ``node`` the weight ``wide`` and the bias ``factor * b * scale + shift``."""
    before = node.inputs[1]
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = _constant(old)
    if before is None or before.const_value is None or (old is not None and bias is None):
        return False
    dtype = before.const_value.numpy().dtype
    if bias is not None:
        values = bias.numpy().astype(np.float64)
        if values.size not in (1, len(scale)) or (values.ndim and values.shape[-1] != values.size):
            return False
        shift = factor * values.reshape(-1) * scale + shift
    with np.errstate(over="ignore", invalid="ignore"):
        weight, offset = wide.astype(dtype), shift.astype(dtype)
    if not (np.isfinite(weight).all() and np.isfinite(offset).all()):
        return False
    name = old.name if old is not None else f"{before.name}.bias"
    node.replace_input_with(1, _add_initializer(model, f"{before.name}.fused", weight, replaces=before))
    fused = _add_initializer(model, f"{name}.fused", offset, replaces=before)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, fused)
    return True
