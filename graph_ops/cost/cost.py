"""What a graph costs as a function of the widths of its channel groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.dims import Dim, Fixed, atoms_of, grown_size
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.bodies import bodies_of
from growpipe.graph_ops.operators import is_onnx, node_name

__all__ = ["CostKind", "CostModel", "CostTerm", "cost_model", "is_parameter"]

CostKind = Literal["parameters", "macs"]


@dataclass(frozen=True, slots=True)
class CostTerm:
    """``constant`` times the product of the lengths of ``dims``.

    Attributes:
        kind: what is counted.
        name: the initializer, or the node.
        constant: a whole number.
        dims: the dimensions that hold channel groups; all other lengths are in ``constant``.
    """

    kind: CostKind
    name: str
    constant: int
    dims: tuple[Dim, ...]

    def value(self, widths: Mapping[str, int]) -> int:
        return self.constant * math.prod(grown_size(dim, widths) for dim in self.dims)


@dataclass(frozen=True, slots=True)
class CostModel:
    """The cost of a graph: a sum of terms, so that others can differentiate it.

    Multiply-accumulates are those of convolutions and matrix products for one sample; an axis of unknown
    length other than the batch counts as 1. The body of a Scan counts once for each entry it scans, that of a
    Loop once, and all branches of an If count. Parameters are the elements of all tensors of `is_parameter`,
    as ``sum(p.numel() for p in module.parameters())``.
    """

    terms: tuple[CostTerm, ...]
    uncounted: tuple[str, ...] = ()
    """Nodes that may multiply and accumulate and are not in the terms; then `macs` is a lower bound."""
    alternatives: tuple[str, ...] = ()
    """If nodes: the terms hold all branches of each, though only one of them runs."""

    def parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """The number of parameters when the groups in ``widths`` have those widths."""
        return self._total("parameters", widths or {})

    def macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates per sample when the groups in ``widths`` have those widths."""
        return self._total("macs", widths or {})

    def one_more(self, kind: CostKind, widths: Mapping[str, int]) -> dict[str, int]:
        """What one more channel of each group in ``widths`` adds to the parameters or to the MACs."""
        added = dict.fromkeys(widths, 0)
        wider = dict(widths)
        for term in self.terms:
            if term.kind != kind:
                continue
            here = term.value(widths)
            for name in {atom.name for dim in term.dims for atom in atoms_of(dim)} & widths.keys():
                wider[name] += 1
                added[name] += term.value(wider) - here
                wider[name] -= 1
        return added

    def _total(self, kind: CostKind, widths: Mapping[str, int]) -> int:
        return sum(term.value(widths) for term in self.terms if term.kind == kind)


def cost_model(inference: AxisInference, dim_of: Callable[[Axis], Dim]) -> CostModel:
    """Collect the terms of a solved graph; ``dim_of`` gives the dimension of an axis."""
    batch = {root(axis) for axis in inference.batch}

    def term(kind: CostKind, name: str, constant: int, axes: list[Axis]) -> CostTerm:
        dims = []
        for axis in axes:
            if root(axis) in batch:
                continue
            dim = dim_of(axis)
            if isinstance(dim, Fixed):
                constant *= dim.size
            else:
                dims.append(dim)
        return CostTerm(kind, name, constant, tuple(dims))

    terms = [
        term("parameters", inference.names[value], 1, inference.axes[value])
        for value, tensor in inference.tensors.items()
        if inference.axes[value] and is_parameter(value, tensor)
    ]
    terms += [term("macs", node_name(t.node), t.constant, list(t.axes)) for t in inference.macs]
    given_up = [(node, f"{barrier.operator} {barrier.node}") for node, barrier in inference.given_up.items()]
    return CostModel(
        tuple(terms),
        uncounted=tuple(name for node, name in given_up if _is_uncounted(node, inference)),
        alternatives=tuple(
            name for node, name in given_up if node in inference.entered and is_onnx(node, "If")
        ),
    )


_MULTIPLIES = (
    *("Attention", "Conv", "ConvInteger", "ConvTranspose", "DFT", "DeformConv", "Einsum", "GRU", "Gemm"),
    *("LSTM", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN", "STFT"),
)


def _is_uncounted(node: ir.Node, inference: AxisInference) -> bool:
    """Whether a barrier may hold multiply-accumulates that no term counts.

    What the bodies of If and Scan hold is counted by itself. How often a Loop runs its body is not known.
    """
    if any(bodies_of(node)):
        return is_onnx(node, "Loop") or node not in inference.entered
    return not is_onnx(node) or is_onnx(node, *_MULTIPLIES)


_QUANTISED = {
    "DequantizeLinear": (0,),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
}
"""By operator, the inputs whose integers stand for floats."""


def is_parameter(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether the elements of a constant tensor count as parameters.

    Args:
        value: an initializer, or the output of a Constant node.
        tensor: what it holds.

    Returns:
        True for tensors of rank 1 or more that are floating-point, or integers that stand for floats in a
        quantised operator, and are not running statistics.
    """
    if not len(tensor.shape) or _is_running_statistic(value):
        return False
    return tensor.dtype.is_floating_point() or any(
        use.idx in _QUANTISED.get(use.node.op_type, ()) for use in value.uses()
    )


def _is_running_statistic(value: ir.Value) -> bool:
    """Whether a tensor is nothing but the running mean or variance of batch norms: data, no parameter."""
    uses = value.uses()
    return bool(uses) and all(is_onnx(use.node, "BatchNormalization") and use.idx in (3, 4) for use in uses)
