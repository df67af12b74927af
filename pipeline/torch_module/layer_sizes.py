"""The sizes that torch's own layers keep beside their parameters, before and after growth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from growpipe.graph_ops.axes.dims import Dim, Product, grown_size, uncopied
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.errors import UsageError

__all__ = ["LayerSize", "grown_layer_sizes", "layer_sizes", "set_layer_sizes"]

LayerSize = int | tuple[int, ...]

_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.GroupNorm: ("num_groups", "num_channels"),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.PReLU: ("num_parameters",),
    nn.RNNBase: ("input_size", "hidden_size"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
}


def layer_sizes(module: nn.Module) -> dict[str, LayerSize]:
    """The sizes of a layer of torch, by attribute; empty for other modules."""
    return {
        attribute: getattr(module, attribute)
        for kind, attributes in _SIZES.items()
        if isinstance(module, kind)
        for attribute in attributes
    }


def set_layer_sizes(module: nn.Module, sizes: Mapping[str, LayerSize | list[int]]) -> None:
    """Give a layer these sizes, by attribute."""
    for attribute, value in sizes.items():
        setattr(module, attribute, tuple(value) if isinstance(value, list) else value)


def grown_layer_sizes(
    path: str, module: nn.Module, layouts: Mapping[str, TensorLayout], widths: Mapping[str, int]
) -> dict[str, LayerSize]:
    """The sizes of ``module`` once its parameters, laid out so, have grown to these widths of groups."""
    prefix = f"{path}." if path else ""
    if isinstance(module, nn.RNNBase):
        return _recurrent_sizes(prefix, layouts, widths)
    own = _own_names(prefix, module)
    touched = next((layout for name, layout in layouts.items() if name in own), None)
    layout = _weight_layout(prefix, module, layouts) or touched
    if layout is None:
        return {}
    if len(layout.axes) < 2 and isinstance(module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)):
        raise UsageError(
            f"{path}: its weight is computed from parameters of another shape, which cannot grow"
        )
    dims = [uncopied(axis.dim) for axis in layout.axes]
    grown = [grown_size(dim, widths) for dim in dims]
    match module:
        case nn.modules.conv._ConvTransposeNd():
            groups = _grown_groups(path, module.groups, dims[0], widths)
            return {"in_channels": grown[0], "out_channels": grown[1] * groups, "groups": groups}
        case nn.modules.conv._ConvNd():
            groups = _grown_groups(path, module.groups, dims[0], widths)
            return {"in_channels": grown[1] * groups, "out_channels": grown[0], "groups": groups}
        case nn.Linear():
            return {"in_features": grown[1], "out_features": grown[0]}
        case nn.modules.batchnorm._NormBase():
            return {"num_features": grown[0]}
        case nn.GroupNorm():
            groups = _grown_groups(path, module.num_groups, dims[0], widths)
            return {"num_groups": groups, "num_channels": grown[0]}
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": tuple(grown)}
        case nn.PReLU():
            return {"num_parameters": grown[0]}
        case nn.Embedding():
            return {"num_embeddings": grown[0], "embedding_dim": grown[1]}
    return {}


def _recurrent_sizes(
    prefix: str, layouts: Mapping[str, TensorLayout], widths: Mapping[str, int]
) -> dict[str, LayerSize]:
    """The sizes of a recurrent module, those of its first layer; the other layers have the same states."""
    sizes: dict[str, LayerSize] = {}
    for attribute, weight in (("input_size", "weight_ih_l0"), ("hidden_size", "weight_hh_l0")):
        layout = layouts.get(f"{prefix}{weight}")
        if layout is not None:
            sizes[attribute] = grown_size(layout.axes[1].dim, widths)
    return sizes


def _weight_layout(
    prefix: str, module: nn.Module, layouts: Mapping[str, TensorLayout]
) -> TensorLayout | None:
    """The layout of the module's weight, or of the parameter of its shape that the weight is computed from.

    Such parameters are ``weight_orig`` under a pruning mask, ``weight_v`` or
    ``parametrizations.weight.original1`` under weight norm, ``parametrizations.weight.original`` under other
    parametrizations.
    """
    if f"{prefix}weight" in layouts:
        return layouts[f"{prefix}weight"]
    stems = (f"{prefix}weight_", f"{prefix}parametrizations.weight.")
    candidates = [layout for name, layout in layouts.items() if name.startswith(stems)]
    if not candidates:
        return None
    with torch.no_grad():
        shape = tuple(module.weight.shape) if isinstance(module.weight, torch.Tensor) else None
    return next((layout for layout in candidates if layout.shape == shape), None)


def _own_names(prefix: str, module: nn.Module) -> set[str]:
    return {f"{prefix}{name}" for name in (*module._parameters, *module._buffers)}


def _grown_groups(path: str, groups: int, out_axis: Dim, widths: Mapping[str, int]) -> int:
    """The grown ``groups`` of a module whose axis 0 is (groups x channels per group), row-major."""
    if groups == 1:
        return 1
    if groups == out_axis.size:
        return grown_size(out_axis, widths)
    if isinstance(out_axis, Product):
        for count in range(1, len(out_axis.factors)):
            leading = out_axis.factors[:count]
            if math.prod(factor.size for factor in leading) == groups:
                return math.prod(grown_size(factor, widths) for factor in leading)
    if grown_size(out_axis, widths) == out_axis.size:
        return groups
    raise UsageError(f"{path}: a plan grows across its {groups} groups; freeze that channel group")
