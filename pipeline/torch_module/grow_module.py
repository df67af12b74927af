"""The torch mirror: a split plan applied to an ``nn.Module``, in lockstep with the ONNX rewriter.

Parameters grow through `SplitPlan.grow_parameter`, as everywhere. What is left to do here is torch's own:
the sizes that modules keep beside their parameters, tied parameters, and the optimizer's state.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_json
from growpipe.graph_ops.files.reading import reading
from growpipe.graph_ops.plan.joined_groups import JoinedGroups, check_joined
from growpipe.graph_ops.plan.module_size import ModuleSize, sizes_of_groups
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.torch_module.adopt import adopt, exchange_parameters
from growpipe.torch_module.export import named_tensors, wrapped_in
from growpipe.torch_module.integers import changed_integers, get_integer, set_integers
from growpipe.torch_module.layer_sizes import grown_layer_sizes, layer_sizes, set_layer_sizes
from growpipe.torch_module.optimizer_state import carry_optimizer_state
from growpipe.torch_module.outputs import to_numpy, to_torch
from growpipe.torch_module.pretrained import note_sizes, read_pretrained
from growpipe.torch_module.state_file import read_state

__all__ = [
    "SIZES_KEY",
    "grow",
    "grow_in_place",
    "grow_into",
    "load_grown",
    "module_sizes",
    "plan_for_module",
    "save_grown",
    "take_state",
]

Module = TypeVar("Module", bound=nn.Module)

SIZES_KEY = "growpipe.module_sizes"
"""The metadata key of files that `save_grown` wrote."""


def grow(
    model: Module,
    plan: SplitPlan,
    optimizer: torch.optim.Optimizer | None = None,
    averaged: Iterable[nn.Module] = (),
) -> Module:
    """The grown network: same class, wider, sharing nothing with ``model``.

    Args:
        model: the module the plan was made for. It is not changed.
        plan: the split plan. Beside the sizes of torch's own layers, the integers in its ``module_sizes``
            change, each of one module. A configuration that modules share is never changed: a module whose
            ``config.…`` has to change gets a copy of its own.
        optimizer: an optimizer of ``model``'s parameters. It is changed in place: it holds the grown
            parameters afterwards, with its state carried along (see `carry_optimizer_state`).
        averaged: averages of ``model``'s weights, each a ``torch.optim.swa_utils.AveragedModel`` or any copy
            of ``model`` with other values. They are changed in place: each gets the same copies, coefficients
            and displacements, so that at ε = 0 it computes what it did. How often it was updated is kept.

    Raises:
        UsageError: the plan was not made for this module, the module is wrapped, the optimizer keeps state
            that growpipe has no rule for, or an average is of another network. Nothing is changed then.
    """
    grown = _grown(model, plan)
    _bring_along(model, grown, plan, optimizer, averaged)
    note_sizes(grown, module_sizes(model), module_sizes(grown))
    return grown


def _grown(model: Module, plan: SplitPlan) -> Module:
    """The grown network, if the plan was made for this one."""
    inside = wrapped_in(model)
    if inside is not None:
        raise UsageError(
            f"{type(model).__name__} holds on to the old parameters; grow the network inside, its .{inside}, "
            "and wrap it again"
        )
    if plan.unproved:
        raise UsageError(
            f"the plan splits the queries and keys of {plan.unproved[0]!r}, and {type(model).__name__} may "
            "compute its scale from their width; try it with fit_module, and give what it finds to "
            "plan_for_module, or leave this group out"
        )
    tensors = named_tensors(model)
    plan.check_belongs(lambda name: to_numpy(tensors[name]), f"this {type(model).__name__}")
    return grow_into(copy.deepcopy(model), model, plan)


def _bring_along(
    model: nn.Module,
    grown: nn.Module,
    plan: SplitPlan,
    optimizer: torch.optim.Optimizer | None,
    averaged: Iterable[nn.Module],
    others: Iterable[nn.Parameter] = (),
) -> None:
    """Let optimizer and averages follow; nothing is changed before everything is known to fit."""
    averages = [(average, _grown_average(average, model, plan)) for average in map(_inside, averaged)]
    if optimizer is not None:
        carry_optimizer_state(optimizer, model, grown, plan, others)
    for average, wider in averages:
        adopt(average, wider)


def grow_in_place(
    model: nn.Module,
    plan: SplitPlan,
    optimizer: torch.optim.Optimizer | None = None,
    averaged: Iterable[nn.Module] = (),
    others: Iterable[nn.Parameter] = (),
) -> None:
    """Let ``model`` itself become what `grow` would return, for a trainer that holds on to the module object.

    Parameters that keep their shape stay the same objects. The others are new ones, without a gradient.

    Args:
        model: the module the plan was made for; changed in place.
        plan: the split plan.
        optimizer: an optimizer of ``model``'s parameters; changed in place, as by `grow`.
        averaged: averages of ``model``'s weights; changed in place, as by `grow`.
        others: parameters of other modules that the optimizer trains as well; it keeps them as they are.

    Raises:
        UsageError: as `grow`. Nothing is changed then.
    """
    grown = _grown(model, plan)
    _bring_along(model, grown, plan, optimizer, averaged, others)
    before = module_sizes(model)
    kept = adopt(model, grown)
    note_sizes(model, before, module_sizes(model))
    if optimizer is not None:
        exchange_parameters(optimizer, kept)


def _inside(average: nn.Module) -> nn.Module:
    return average.module if isinstance(average, torch.optim.swa_utils.AveragedModel) else average


def _grown_average(average: nn.Module, model: nn.Module, plan: SplitPlan) -> nn.Module:
    """What an average of ``model``'s weights grows into; UsageError if it is one of another network."""
    own, theirs = (
        {name: tensor.shape for name, tensor in named_tensors(module).items()} for module in (model, average)
    )
    differing = next((name for name in [*own, *theirs] if own.get(name) != theirs.get(name)), None)
    if differing is not None:
        raise UsageError(
            f"an average is not of this {type(model).__name__}: they differ in {differing!r}; give averages "
            "of the network that grows"
        )
    return grow_into(copy.deepcopy(average), average, plan)


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
        sizes = grown_layer_sizes(path, module, layouts, plan.widths)
        set_layer_sizes(grown.get_submodule(path), {**layer_sizes(module), **sizes})
    set_module_sizes(grown, model, plan.module_sizes, plan.widths)
    _forget_computed(grown)
    return grown


def _forget_computed(grown: nn.Module) -> None:
    """Let modules drop what they keep in evaluation mode of the weights that they had.

    A module that computes a table from its weights once drops it in its own ``train``.
    """
    modes = [(module, module.training) for module in grown.modules()]
    for module, _ in modes:
        if type(module).train is not nn.Module.train:
            module.train()
    for module, training in modes:
        module.training = training


def set_module_sizes(
    grown: nn.Module, model: nn.Module, sizes: Iterable[ModuleSize], widths: Mapping[str, int]
) -> None:
    """Give ``grown`` the integers of ``model``, those of ``sizes`` as they are at these widths of groups.

    Args:
        grown: a deep copy of ``model``, or what growth made of one; changed in place.
        model: the module before growth.
        sizes: the integers that follow the widths.
        widths: the grown width by group.

    Raises:
        UsageError: ``model`` has no such integer, or another value.
    """
    for path, module in grown.named_modules():
        before = model.get_submodule(path)
        held = {name: get_integer(before, name) for name in changed_integers(module)}
        set_integers(module, {name: value for name, value in held.items() if value is not None})
    for size in sizes:
        try:
            value = get_integer(model.get_submodule(size.module), size.attribute)
        except AttributeError:
            value = None
        if value != size.size:
            raise UsageError(
                f"the plan was not made for this {type(model).__name__}: {size.name} is {value}, not "
                f"{size.size}"
            )
        set_integers(grown.get_submodule(size.module), {size.attribute: size.grown(widths)})


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    """What the names of one tensor have in common."""
    return tensor.data_ptr(), tensor.shape


def plan_for_module(
    plan: SplitPlan,
    model: nn.Module,
    sizes: Iterable[ModuleSize] = (),
    pairs: Iterable[str] = (),
    joined: Iterable[JoinedGroups] = (),
) -> SplitPlan:
    """A plan that was made on the graph alone, as a plan for the module too.

    Args:
        plan: the plan.
        model: the module that the graph was exported from.
        sizes: the integers of ``model`` that follow the widths, as
            `growpipe.torch_module.module_fit.fit_module` finds them; those that follow no group of the plan
            are left out.
        pairs: the groups of queries and keys that ``model`` follows, as ``fit_module`` finds them, too.
        joined: the groups that ``model`` follows only if they grow in equal steps, as ``fit_module`` finds
            them, too.

    Raises:
        UsageError: the plan grows joined groups in different steps.

    The graph may hold constants that the exporter made, such as the unit scales of a normalisation. They grow
    with the graph and are not parameters of ``model``: the plan no longer vouches for them.
    """
    check_joined(plan.widths, joined)
    tensors = named_tensors(model)
    layouts = {name: layout for name, layout in plan.layouts.items() if name in tensors}
    return replace(
        plan,
        layouts=layouts,
        parameters_hash=hash_parameters(layouts, lambda name: to_numpy(tensors[name])),
        module_sizes=sizes_of_groups(sizes, plan.widths),
        unproved=tuple(name for name in plan.unproved if name not in set(pairs)),
    )


def save_grown(model: nn.Module, path: str | os.PathLike[str], **facts: str) -> None:
    """Write parameters, buffers and module sizes as one safetensors file that `load_grown` reads.

    Args:
        model: any module, grown or not.
        path: the file.
        facts: further text for the file's metadata.
    """
    sizes = module_sizes(model)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in named_tensors(model).items()}
    save_file(tensors, path, metadata={SIZES_KEY: json.dumps(sizes, sort_keys=True), **facts})


def module_sizes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """By path of a submodule the sizes that `take_state` gives back, as JSON values or tuples."""
    found = {
        path: {**layer_sizes(module), **changed_integers(module)} for path, module in model.named_modules()
    }
    return {path: values for path, values in found.items() if values}


def load_grown(model: Module, path: str | os.PathLike[str]) -> Module:
    """Give ``model``, a freshly built seed network, the widths and parameters that `save_grown` wrote.

    Args:
        model: changed in place.
        path: the file; or a folder that ``save_pretrained`` of the transformers library wrote of a grown
            model, whose configuration notes what growth has changed.

    Returns:
        ``model``.

    Raises:
        UsageError: the file is missing, damaged, or of another network.

    Example:
        >>> model = load_grown(Model(Config.from_pretrained("folder")), "folder")  # doctest: +SKIP
    """
    if os.path.isdir(path):
        with reading("the grown model", path):
            take_state(model, *read_pretrained(model, named_tensors(model), Path(path)))
        return model
    tensors, metadata = read_state(path, "the weights")
    with reading("the weights", path):
        take_state(model, tensors, parse_json(metadata.get(SIZES_KEY, "null")))
    return model


def take_state(model: nn.Module, tensors: Mapping[str, torch.Tensor], sizes: Any) -> None:
    """Give a freshly built seed network the widths and tensors of what it was grown to.

    Args:
        model: changed in place.
        tensors: every parameter and buffer by name.
        sizes: of `module_sizes`.

    Raises:
        UsageError: they are of another network.
    """
    _check_fits(model, tensors, sizes)
    _replace_tensors(model, tensors)
    for module_path, values in sizes.items():
        module = model.get_submodule(module_path)
        layer = layer_sizes(module).keys()
        set_layer_sizes(module, {name: value for name, value in values.items() if name in layer})
        set_integers(module, {name: value for name, value in values.items() if name not in layer})


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
        module = modules.get(path)
        if (
            module is None
            or not isinstance(values, dict)
            or any(name not in layer_sizes(module) and get_integer(module, name) is None for name in values)
        ):
            raise UsageError(f"they give sizes that {path!r} does not have")
        lengths = [n for value in values.values() for n in (value if isinstance(value, list) else [value])]
        if not all(type(length) is int and length > 0 for length in lengths):
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
            if isinstance(module, nn.RNNBase):
                setattr(module, attribute, replaced[id(old)])  # it lists its weights besides
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN wants them in one piece of memory
