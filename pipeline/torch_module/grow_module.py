"""The torch mirror: a split plan applied to an ``nn.Module``, in lockstep with the ONNX rewriter.

Parameters grow through `SplitPlan.grow_parameter`, as everywhere. What is left to do here is torch's own:
the sizes that modules keep beside their parameters, tied parameters, and the optimizer's state.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from growpipe.graph_ops.axes.dims import Dim, Product, grown_size
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_json
from growpipe.graph_ops.files.reading import reading
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.torch_module.export import named_tensors, wrapped_in
from growpipe.torch_module.optimizer_state import carry_optimizer_state
from growpipe.torch_module.outputs import to_numpy, to_torch
from growpipe.torch_module.state_file import read_state

__all__ = ["SIZES_KEY", "grow", "grow_into", "load_grown", "plan_for_module", "save_grown"]

Module = TypeVar("Module", bound=nn.Module)

SIZES_KEY = "growpipe.module_sizes"
"""The metadata key of files that `save_grown` wrote."""

_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.GroupNorm: ("num_groups", "num_channels"),
    nn.PReLU: ("num_parameters",),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
}
"""The sizes a torch module keeps beside its parameters."""


def grow(model: Module, plan: SplitPlan, optimizer: torch.optim.Optimizer | None = None) -> Module:
    """The grown network: same class, wider, sharing nothing with ``model``.

    Args:
        model: the module the plan was made for. It is not changed.
        plan: the split plan.
        optimizer: an optimizer of ``model``'s parameters. It is changed in place: it holds the grown
            parameters afterwards, with its state carried along (see `carry_optimizer_state`).

    Raises:
        UsageError: the plan was not made for this module, the module is wrapped, or the optimizer keeps
            state that growpipe has no rule for.
    """
    inside = wrapped_in(model)
    if inside is not None:
        raise UsageError(
            f"{type(model).__name__} holds on to the old parameters; grow the network inside, its .{inside}, "
            "and wrap it again"
        )
    tensors = named_tensors(model)
    plan.check_belongs(lambda name: to_numpy(tensors[name]), f"this {type(model).__name__}")
    grown = grow_into(copy.deepcopy(model), model, plan)
    if optimizer is not None:
        carry_optimizer_state(optimizer, model, grown, plan)
    return grown


def grow_into(grown: Module, model: nn.Module, plan: SplitPlan) -> Module:
    """Give a copy of ``model`` the widths and parameters of a plan, whatever it was grown to before.

    For many plans of one module: a copy is made once, and each plan only sets sizes and tensors.

    Args:
        grown: a deep copy of ``model``, or what this function made of one; changed in place.
        model: the module the plan was made for, by whoever calls: that is not checked here.
        plan: the split plan.

    Returns:
        ``grown``.

    Raises:
        UsageError: the plan grows across the groups of a module.
    """
    tensors = named_tensors(model)
    # A tensor of several names is in the plan under one of them.
    planned = {_place(tensors[name]): layout for name, layout in plan.layouts.items()}
    layouts = {name: planned[_place(t)] for name, t in tensors.items() if _place(t) in planned}
    _replace_tensors(grown, {name: tensor for name, tensor in tensors.items() if name not in layouts})
    _replace_tensors(
        grown, {name: to_torch(plan.grow_parameter(name, to_numpy(tensors[name]))) for name in plan.layouts}
    )
    for path, module in model.named_modules():
        sizes = _grown_sizes(path, module, layouts, plan.widths)
        _set_sizes(grown.get_submodule(path), {**_sizes(module), **sizes})
    return grown


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    """What the names of one tensor have in common."""
    return tensor.data_ptr(), tensor.shape


def plan_for_module(plan: SplitPlan, model: nn.Module) -> SplitPlan:
    """A plan that was made on the graph alone, as a plan for the module too.

    The graph may hold constants that the exporter made, such as the unit scales of a normalisation. They grow
    with the graph and are not parameters of ``model``: the plan no longer vouches for them.
    """
    tensors = named_tensors(model)
    layouts = {name: layout for name, layout in plan.layouts.items() if name in tensors}
    return replace(
        plan,
        layouts=layouts,
        parameters_hash=hash_parameters(layouts, lambda name: to_numpy(tensors[name])),
    )


def save_grown(model: nn.Module, path: str | os.PathLike[str], **facts: str) -> None:
    """Write parameters, buffers and module sizes as one safetensors file that `load_grown` reads.

    Args:
        model: any module, grown or not.
        path: the file.
        facts: further text for the file's metadata.
    """
    sizes = {path_: _sizes(module) for path_, module in model.named_modules() if _sizes(module)}
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in named_tensors(model).items()}
    save_file(tensors, path, metadata={SIZES_KEY: json.dumps(sizes, sort_keys=True), **facts})


def load_grown(model: Module, path: str | os.PathLike[str]) -> Module:
    """Give ``model``, a freshly built seed network, the widths and parameters that `save_grown` wrote.

    Args:
        model: changed in place.
        path: the file.

    Returns:
        ``model``.

    Raises:
        UsageError: the file is missing, damaged, or of another network.
    """
    tensors, metadata = read_state(path, "the weights")
    with reading("the weights", path):
        sizes = parse_json(metadata.get(SIZES_KEY, "null"))
        _check_fits(model, tensors, sizes)
    _replace_tensors(model, tensors)
    for module_path, values in sizes.items():
        _set_sizes(model.get_submodule(module_path), values)
    return model


def _check_fits(model: nn.Module, tensors: Mapping[str, torch.Tensor], sizes: Any) -> None:
    """Refuse weights of another network before anything of ``model`` is changed."""
    own = named_tensors(model)
    if not isinstance(sizes, dict) or tensors.keys() != own.keys():
        other = sorted(tensors.keys() ^ own.keys())
        raise UsageError(
            f"they are of another network than {type(model).__name__}"
            + (f" (they differ in {other[0]!r})" if other else " (or were not written by growpipe)")
        )
    for name, tensor in tensors.items():
        if tensor.ndim != own[name].ndim:
            raise UsageError(f"{name!r} has {tensor.ndim} axes, not {own[name].ndim}")
    modules = dict(model.named_modules())
    for path, values in sizes.items():
        known = _sizes(modules[path]).keys() if path in modules else set()
        if not isinstance(values, dict) or not values.keys() <= known:
            raise UsageError(f"they give sizes that {path!r} does not have")
        if not all(type(value) is int and value > 0 for value in values.values()):
            raise UsageError(f"they give {path!r} a size that is not a positive number")


def _replace_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in the place of parameters and buffers; what was tied stays tied.

    A tensor of the same shape is filled in place: an optimizer goes on holding it.
    """
    replaced: dict[int, torch.Tensor] = {}
    registered = [
        *((name, tensor, True) for name, tensor in model.named_parameters(remove_duplicate=False)),
        *((name, tensor, False) for name, tensor in model.named_buffers(remove_duplicate=False)),
    ]
    for name, old, is_parameter in registered:
        if name not in tensors or id(old) in replaced:
            continue
        new = tensors[name].to(old.device, old.dtype)
        if new.shape == old.shape:
            with torch.no_grad():
                old.copy_(new)
            replaced[id(old)] = old
        elif is_parameter:
            replaced[id(old)] = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
        else:
            replaced[id(old)] = new.clone()
    for name, old, is_parameter in registered:
        if id(old) in replaced:
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            store: dict[str, Any] = module._parameters if is_parameter else module._buffers
            store[attribute] = replaced[id(old)]


def _sizes(module: nn.Module) -> dict[str, int]:
    return {
        attribute: getattr(module, attribute)
        for kind, attributes in _SIZES.items()
        if isinstance(module, kind)
        for attribute in attributes
    }


def _set_sizes(module: nn.Module, sizes: Mapping[str, int]) -> None:
    for attribute, value in sizes.items():
        setattr(module, attribute, value)


def _grown_sizes(
    path: str, module: nn.Module, layouts: Mapping[str, TensorLayout], widths: Mapping[str, int]
) -> dict[str, int]:
    """The sizes of ``module`` once its parameters, laid out so, have grown to these widths of groups."""
    prefix = f"{path}." if path else ""
    own = _own_names(prefix, module)
    touched = next((layout for name, layout in layouts.items() if name in own), None)
    layout = _weight_layout(prefix, module, layouts) or touched
    if layout is None:
        return {}
    if len(layout.axes) < 2 and isinstance(module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)):
        raise UsageError(
            f"{path}: its weight is computed from parameters of another shape, which cannot grow"
        )
    dims = [axis.dim for axis in layout.axes]
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
        case nn.PReLU():
            return {"num_parameters": grown[0]}
        case nn.Embedding():
            return {"num_embeddings": grown[0], "embedding_dim": grown[1]}
    return {}


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
