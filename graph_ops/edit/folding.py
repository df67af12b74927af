"""Constant folding and batch-norm fusion on an ONNX graph, with numpy and ONNX's own reference operators.

Each function edits the main graph of the model it is given; subgraphs are left as they are. All require a
model whose shapes are inferred, not declared (`growpipe.graph_ops.onnx_tools.shape_inference`): what a file
declares of an inner value is a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.edit.additions import Additions, constant_tensor
from growpipe.graph_ops.operators import is_onnx, node_name, operator_name, opset_version

__all__ = ["FoldRefusal", "fold_constants", "fuse_batch_norms", "settle_reshapes"]

MAX_FOLDED_BYTES = 2**20
"""A folded result may be this large, or as large as what it is computed from."""

MIN_OPSET = 7
"""Below, elementwise operators broadcast by attributes, which ONNX's reference operators do not know."""

# Deterministic and cheap. Dequantize is not among them: folding it would undo quantisation.
_FOLDABLE = (
    "Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Exp Expand Flatten Floor Gather Greater "
    "GreaterOrEqual Identity Less LessOrEqual Log Max Min Mod Mul Neg Not Or Pad Pow Range Reciprocal "
    "ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape Size Slice Split Sqrt Squeeze Sub Tile "
    "Transpose Unsqueeze Where"
)


@dataclass(frozen=True, slots=True)
class FoldRefusal:
    """Why a node whose inputs are all known was not computed.

    Attributes:
        node: its name.
        operator: its operator type.
        reason: the guard that refused.
    """

    node: str
    operator: str
    reason: str


class _Refused(Exception):
    """A guard of folding refuses a node whose inputs are all known."""


def fold_constants(model: ir.Model) -> tuple[int, list[FoldRefusal]]:
    """Compute every node whose inputs are all known.

    A node is only computed if the size of its result is known and not out of proportion to its inputs. Inputs
    of the graph are never taken as constants, with a default or without.

    Returns:
        How many nodes were computed, and which were not although all their inputs are known.
    """
    foldable = frozenset(_FOLDABLE.split())
    folded = 0
    refusals: list[FoldRefusal] = []
    additions = Additions(model.graph)
    for node in list(model.graph):
        if not is_onnx(node) or node.op_type not in foldable:
            continue
        try:
            results = _computed(node, model)
        except _Refused as refusal:
            refusals.append(FoldRefusal(node_name(node), operator_name(node), str(refusal)))
            continue
        if results is None:
            continue
        for value, array in zip(node.outputs, results, strict=True):
            additions.take_over(value, ir.Tensor(np.asarray(array, order="C"), dtype=value.dtype))
        model.graph.remove(node, safe=True)
        folded += 1
    return folded, refusals


def _computed(node: ir.Node, model: ir.Model) -> Sequence[AnyArray] | None:
    """The outputs of a node; None if they are not known before the model runs.

    Raises:
        _Refused: they could be known, but a guard refuses to compute them.
    """
    if node.op_type == "Shape":
        array = _static_shape(node)
        results = None if array is None else [array]
    else:
        feeds = _known_inputs(node)
        results = None if feeds is None else _evaluated(node, model, feeds)
    if results is not None and any(value.is_graph_output() for value in node.outputs):
        raise _Refused("it makes an output of the graph")
    return results


def _known_inputs(node: ir.Node) -> dict[int, AnyArray] | None:
    """The inputs by position; None if one of them is not known, or if there is none."""
    tensors = {i: constant_tensor(value) for i, value in enumerate(node.inputs) if value is not None}
    if not tensors or None in tensors.values():
        return None
    return {i: tensor.numpy() for i, tensor in tensors.items() if tensor is not None}


def _evaluated(node: ir.Node, model: ir.Model, feeds: dict[int, AnyArray]) -> list[AnyArray]:
    version = opset_version(model)
    if version < MIN_OPSET:
        raise _Refused(f"opset {version} is older than {MIN_OPSET}")
    known = sum(array.nbytes for array in feeds.values())
    if sum(map(_nbytes, node.outputs)) > max(known, MAX_FOLDED_BYTES):
        raise _Refused("its result is large, or of unknown size")
    try:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            arrays = _run(node, version, feeds)
    except (TypeError, ValueError, IndexError, ArithmeticError, NotImplementedError, RuntimeError) as error:
        raise _Refused(f"the reference operator fails: {error}") from None
    for value, array in zip(node.outputs, arrays, strict=True):
        if value.dtype is not None and value.dtype.numpy() != array.dtype:
            raise _Refused(f"the reference operator gives {array.dtype}, not {value.dtype}")
    return arrays


def _run(node: ir.Node, version: int, feeds: dict[int, AnyArray]) -> list[AnyArray]:
    """One node in a model of its own, of the same opset: the meaning of an operator depends on it."""
    proto = ir.to_proto(node)
    names = [f"i{i}" if i in feeds else "" for i in range(len(node.inputs))]
    proto.domain = ""
    proto.input[:] = names
    proto.output[:] = [f"o{i}" for i in range(len(node.outputs))]
    graph = onnx.GraphProto(name="folded", node=[proto])
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in names if name)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    results = ReferenceEvaluator(single).run(None, {f"i{i}": array for i, array in feeds.items()})
    return [np.asarray(result) for result in results]


def _static_shape(node: ir.Node) -> AnyArray | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    start, end = node.attributes.get("start"), node.attributes.get("end")
    dims = value.shape.dims[start.as_int() if start else 0 : end.as_int() if end else None]
    return np.array(dims, dtype=np.int64) if all(isinstance(dim, int) for dim in dims) else None


def _nbytes(value: ir.Value) -> float:
    """The size of a value; infinite if its shape or type is not known."""
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return math.inf
    return math.prod(value.shape.numpy()) * max(value.dtype.bitwidth, 8) / 8


def settle_reshapes(model: ir.Model) -> int:
    """Give every Reshape whose result is known but for one length a constant target; return how many.

    Exporters compute the target at run time from the size of the batch.
    """
    settled = 0
    additions = Additions(model.graph)
    for node in model.graph:
        if not is_onnx(node, "Reshape") or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        shape = node.outputs[0].shape
        if constant_tensor(node.inputs[1]) is not None or shape is None or 0 in shape:
            continue
        target = [dim if isinstance(dim, int) else -1 for dim in shape]
        if target.count(-1) > 1:
            continue
        array = np.array(target, dtype=np.int64)
        node.replace_input_with(1, additions.constant(f"{node.outputs[0].name}.shape", array))
        node.attributes.pop("allowzero", None)
        settled += 1
    return settled


def fuse_batch_norms(model: ir.Model) -> int:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it; return how many.

    With ``s = scale / sqrt(var + eps)``: ``W' = s W`` along the output axis and ``b' = s (b - mean) + bias``,
    computed in float64. Nodes whose result would not be finite in the weight's own type are left alone.
    """
    fused = 0
    additions = Additions(model.graph)
    for node in list(model.graph):
        producer = _fusable_producer(node)
        affine = None if producer is None else _affine(node, _output_channels(producer))
        if producer is None or affine is None:
            continue
        if _FUSERS[producer.op_type](additions, producer, *affine):
            _bypass(node, producer.outputs[0])
            fused += 1
    return fused


def _fusable_producer(node: ir.Node) -> ir.Node | None:
    """The layer that makes the input of a batch norm and feeds nothing else; None if there is none."""
    if not _is_inference_norm(node) or node.inputs[0] is None:
        return None
    between = node.inputs[0]
    producer = between.producer()
    if producer is None or not is_onnx(producer, *_FUSERS) or producer.graph is not node.graph:
        return None
    return producer if len(between.uses()) == 1 and not between.is_graph_output() else None


def _output_channels(node: ir.Node) -> int | None:
    """The output channels of a Conv, ConvTranspose or Gemm; None if no constant weight says them."""
    weight = constant_tensor(node.inputs[1])
    if weight is None or len(weight.shape) < 2:
        return None
    axes = tuple(weight.shape.numpy())
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        groups = group.as_int() if group else 1
        return groups * axes[1] if groups > 0 and axes[0] % groups == 0 else None
    trans = node.attributes.get("transB")
    return axes[0] if node.op_type == "Conv" or (trans and trans.as_int()) else axes[1]


def _affine(node: ir.Node, channels: int | None) -> tuple[AnyArray, AnyArray] | None:
    """Scale and shift of a batch norm, in float64; None if they are not constants of ``channels`` values."""
    tensors = [constant_tensor(value) for value in node.inputs[1:5]]
    known = [tensor for tensor in tensors if tensor is not None and tensor.shape.dims == (channels,)]
    if len(known) < len(tensors):
        return None
    gamma, beta, mean, variance = (tensor.numpy().astype(np.float64) for tensor in known)
    epsilon = node.attributes.get("epsilon")
    with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite is not fused
        scale = gamma / np.sqrt(variance + (epsilon.as_float() if epsilon else 1e-5))
        return scale, beta - scale * mean


def _bypass(node: ir.Node, value: ir.Value) -> None:
    """Put ``value`` in the place of the node's first output, and remove the node."""
    output = node.outputs[0]
    # The name goes along: that of an output is part of the contract, and others are compared by name.
    name = output.name
    output.name = f"{name}.before"
    value.name, value.shape, value.type = name, output.shape, output.type
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _is_inference_norm(node: ir.Node) -> bool:
    if not is_onnx(node, "BatchNormalization") or len(node.inputs) < 5:
        return False
    training, spatial = node.attributes.get("training_mode"), node.attributes.get("spatial")
    if (training and training.as_int()) or (spatial and not spatial.as_int()):
        return False
    return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def _fuse_conv(additions: Additions, node: ir.Node, scale: AnyArray, shift: AnyArray) -> bool:
    weight = constant_tensor(node.inputs[1])
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
    return _replace(additions, node, wide, (scale, shift), 1.0)


def _fuse_gemm(additions: Additions, node: ir.Node, scale: AnyArray, shift: AnyArray) -> bool:
    weight, trans, beta = (
        constant_tensor(node.inputs[1]),
        node.attributes.get("transB"),
        node.attributes.get("beta"),
    )
    if weight is None:
        return False
    column = scale[:, None] if trans and trans.as_int() else scale[None, :]
    wide = weight.numpy().astype(np.float64) * column
    if not _replace(additions, node, wide, (scale, shift), beta.as_float() if beta else 1.0):
        return False
    node.attributes.pop("beta", None)
    return True


_FUSERS: dict[str, Callable[[Additions, ir.Node, AnyArray, AnyArray], bool]] = {
    "Conv": _fuse_conv,
    "ConvTranspose": _fuse_conv,
    "Gemm": _fuse_gemm,
}


def _replace(
    additions: Additions,
    node: ir.Node,
    wide: AnyArray,
    affine: tuple[AnyArray, AnyArray],
    factor: float,
) -> bool:
    """Give ``node`` the weight ``wide`` and the bias ``factor * b * scale + shift``.

    Returns:
        False, with the node as it was, if the bias is not constant or a result is not finite.
    """
    scale, shift = affine
    before = node.inputs[1]
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_tensor(old)
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
    node.replace_input_with(1, additions.constant(f"{before.name}.fused", weight))
    node.resize_inputs(3)
    node.replace_input_with(2, additions.constant(f"{name}.fused", offset))
    return True
