"""Optimizer state through a split: every moment goes where its gradient went."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_json
from growpipe.graph_ops.files.reading import reading
from growpipe.graph_ops.plan.grow_tensor import grow_tensor
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.state_file import read_state

__all__ = ["carry_optimizer_state", "load_optimizer", "save_optimizer"]

_SCALARS_KEY = "growpipe.scalars"

_MOMENTS = {
    # state of torch.optim: the power of the gradient that it holds
    "momentum_buffer": 1,
    "exp_avg": 1,
    "grad_avg": 1,
    "exp_inf": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "acc_delta": 2,
    "sum": 2,
}


def carry_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, grown: nn.Module, plan: SplitPlan
) -> None:
    """Let ``optimizer`` hold the parameters of ``grown``, with its state grown along.

    A copy that enters its consumers with weight w has w times the gradient of its source, and the consumers'
    slices, being scaled themselves, have the gradient of theirs unscaled. So first moments are gathered on
    every axis and multiplied by w on the *copied* axes; second moments by w². Adaptive methods then take
    steps of the size they took before the split.

    Args:
        optimizer: of ``model``'s parameters; changed in place.
        model: the network before the split.
        grown: the network after it.
        plan: the split.

    Raises:
        UsageError: the optimizer holds parameters of another model, or state of a kind not known here.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # A tied parameter has one name here and maybe another in the plan.
    planned = {
        id(parameter): name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in plan.layouts
    }
    grown_parameters = dict(grown.named_parameters())
    state: dict[torch.Tensor, dict[str, Any]] = {}
    replaced: list[list[nn.Parameter]] = []
    for group in optimizer.param_groups:
        parameters: list[nn.Parameter] = []
        for old in group["params"]:
            if id(old) not in names:
                raise UsageError(
                    "the optimizer holds a parameter that is not the model's; pass the one it trains with"
                )
            new = grown_parameters[names[id(old)]]
            parameters.append(new)
            if old in optimizer.state:
                name = planned.get(id(old))
                state[new] = {
                    key: _grown_entry(key, value, old, new, name, plan)
                    for key, value in optimizer.state[old].items()
                }
        replaced.append(parameters)
    # Nothing is changed before everything is known to fit.
    for group, parameters in zip(optimizer.param_groups, replaced, strict=True):
        group["params"] = parameters
    optimizer.state.clear()
    optimizer.state.update(state)


def _grown_entry(
    key: str, value: Any, old: nn.Parameter, new: nn.Parameter, name: str | None, plan: SplitPlan
) -> Any:
    if not isinstance(value, torch.Tensor) or value.shape != old.shape or value.ndim == 0:
        return value
    if name is None:
        return value.clone()
    if key not in _MOMENTS:
        raise UsageError(
            f"the optimizer keeps {key!r} of {name!r}, which cannot be grown; make a new optimizer afterwards"
        )
    power = _MOMENTS[key]
    layout = TensorLayout(
        tuple(
            AxisLayout(axis.dim, "copied" if axis.role == "mixed" else "mixed")
            for axis in plan.layouts[name].axes
        )
    )
    offspring = {
        group: replace(what, coefficient=what.coefficient**power) for group, what in plan.offspring.items()
    }
    array = grow_tensor(value.detach().cpu().numpy(), layout, offspring, {}, 0.0)
    if key == "exp_inf":
        array = np.abs(array)
    return torch.from_numpy(np.ascontiguousarray(array)).to(value.device, value.dtype)


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state of an optimizer of ``model``'s parameters as safetensors, by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            entry = f"{key}/{names[id(parameter)]}"
            if isinstance(value, torch.Tensor):
                tensors[entry] = value.detach().cpu().contiguous().clone()
            else:
                scalars[entry] = value
    save_file(tensors, path, metadata={_SCALARS_KEY: json.dumps(scalars)})


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Give ``optimizer``, which holds the parameters of ``model``, the state that `save_optimizer` wrote.

    Raises:
        UsageError: the file is missing, damaged, or names a parameter that the model does not have.
    """
    tensors, metadata = read_state(path, "the optimizer state")
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, Any]] = {}
    with reading("the optimizer state", path):
        scalars = parse_json(metadata[_SCALARS_KEY])
        for entry, value in {**tensors, **scalars}.items():
            key, _, name = entry.partition("/")
            if name not in parameters:
                raise UsageError(f"it is of another network: it has {name!r}")
            if isinstance(value, torch.Tensor) and value.shape == parameters[name].shape:
                value = value.to(parameters[name].device)
            state.setdefault(name, {})[key] = value
    optimizer.state.clear()
    for name, entries in state.items():
        optimizer.state[parameters[name]].update(entries)
