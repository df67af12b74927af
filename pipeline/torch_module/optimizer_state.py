"""Optimizer state through a split: every moment goes where its gradient went."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from growpipe.graph_ops.axes.dims import swapped
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_json
from growpipe.graph_ops.files.reading import reading
from growpipe.graph_ops.plan.grow_tensor import grow_tensor
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.state_file import read_state

__all__ = ["carry_optimizer_state", "load_optimizer", "require_state_that_grows", "save_optimizer"]

_SCALARS_KEY = "growpipe.scalars"

_MOMENTS = {
    # state of torch.optim: the power of the gradient that it holds
    "momentum_buffer": 1,
    "exp_avg": 1,
    "grad_avg": 1,
    "exp_inf": 1,
    "prev": 1,
    "step_size": 0,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "variance": 2,
    "acc_delta": 2,
    "sum": 2,
}


_FACTORS = ("row_var", "col_var")
"""Adafactor's second moment: means over the last axis and over the one before."""


def carry_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    grown: nn.Module,
    plan: SplitPlan,
    others: Iterable[nn.Parameter] = (),
) -> None:
    """Let ``optimizer`` hold the parameters of ``grown``, with its state grown along.

    A copy that enters its consumers with weight w has w times the gradient of its source, and the consumers'
    slices, being scaled themselves, have the gradient of theirs unscaled. So first moments are gathered on
    every axis and multiplied by w on the *copied* axes; second moments by w². Adaptive methods then take
    steps of the size they took before the split.

    This is approximate behind a normalisation whose channels grow by a whole factor with uneven shares. Each
    copy's gradient also passes through the moments of the norm, to which all k copies of a channel contribute
    alike: that part is 1/k of its source's, not w. Even shares, w = 1/k, are exact.

    Args:
        optimizer: of ``model``'s parameters; changed in place.
        model: the network before the split.
        grown: the network after it.
        plan: the split.
        others: parameters of other modules that the optimizer trains as well; it keeps them as they are.

    Raises:
        UsageError: the optimizer holds parameters of another model, or state of a kind or a shape not known
            here. Nothing is changed then.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # A tied parameter has one name here and maybe another in the plan.
    planned = {
        id(parameter): name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in plan.layouts
    }
    grown_parameters = dict(grown.named_parameters())
    beside = {id(parameter) for parameter in others}
    state: dict[torch.Tensor, dict[str, Any]] = {}
    replaced: list[list[nn.Parameter]] = []
    for group in optimizer.param_groups:
        parameters: list[nn.Parameter] = []
        for old in group["params"]:
            if id(old) not in names and id(old) in beside:
                parameters.append(old)
                if old in optimizer.state:
                    state[old] = optimizer.state[old]
                continue
            if id(old) not in names:
                raise UsageError(
                    "the optimizer holds a parameter that is not the model's; pass the one it trains with"
                )
            new = grown_parameters[names[id(old)]]
            parameters.append(new)
            if old in optimizer.state:
                layout = plan.layouts.get(planned.get(id(old), ""))
                state[new] = _grown_state(optimizer.state[old], old, names[id(old)], layout, plan)
        replaced.append(parameters)
    # Nothing is changed before everything is known to fit.
    for group, parameters in zip(optimizer.param_groups, replaced, strict=True):
        group["params"] = parameters
    optimizer.state.clear()
    optimizer.state.update(state)


def require_state_that_grows(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer, which has taken a step, if its state could not follow growth.

    Raises:
        UsageError: it keeps something of an unknown kind or shape; the message names it.
    """
    for name, parameter in model.named_parameters():
        entries = optimizer.state.get(parameter, {})
        for key, value in entries.items():
            if not _is_of(value, parameter) or not (
                _is_factor(key, entries) or _is_moment(key, value, parameter)
            ):
                raise _cannot_grow(key, name)


def _is_factor(key: str, entries: Mapping[str, Any]) -> bool:
    return key in _FACTORS and entries.keys() >= set(_FACTORS)


def _is_moment(key: str, value: Any, parameter: nn.Parameter) -> bool:
    """Whether an entry is a moment that is known here, or a number, which stays as it is."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return True
    return key in _MOMENTS and value.shape == parameter.shape


def _grown_state(
    state: Mapping[str, Any], old: nn.Parameter, name: str, layout: TensorLayout | None, plan: SplitPlan
) -> dict[str, Any]:
    """The state of a parameter; grown with it if the parameter has a layout."""
    for key, value in state.items():
        if not _is_of(value, old):
            raise _cannot_grow(key, name)
    entries = {
        key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()
    }
    if layout is None:
        return entries
    if entries.keys() >= set(_FACTORS):
        row, column = (entries.pop(key) for key in _FACTORS)
        # The factors are means over the last two axes of one moment, which is their product.
        scale = row.mean(dim=-2, keepdim=True).clamp_(min=torch.finfo(row.dtype).tiny)
        moment = _grown_moment(row @ column / scale, 2, layout, plan)
        means = (moment.mean(dim=-1, keepdim=True), moment.mean(dim=-2, keepdim=True))
        factors = dict(zip(_FACTORS, means, strict=True))
    else:
        factors = {}
    for key, value in entries.items():
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            if not _is_moment(key, value, old):
                raise _cannot_grow(key, name)
            grown = _grown_moment(value, _MOMENTS[key], layout, plan)
            entries[key] = grown.abs() if key == "exp_inf" else grown
    return {**entries, **factors}


def _is_of(value: Any, parameter: nn.Parameter) -> bool:
    """Whether a value is of this parameter alone: a number, a tensor of its shape, or means over its axes."""
    if not isinstance(value, torch.Tensor):
        return value is None or isinstance(value, (bool, int, float, str))
    if value.ndim == 0:
        return True
    return value.ndim == parameter.ndim and all(
        size in (1, whole) for size, whole in zip(value.shape, parameter.shape, strict=True)
    )


def _cannot_grow(key: str, name: str) -> UsageError:
    return UsageError(
        f"the optimizer keeps {key!r} of {name!r}, which cannot be grown; make a new optimizer afterwards"
    )


def _grown_moment(moment: torch.Tensor, power: int, layout: TensorLayout, plan: SplitPlan) -> torch.Tensor:
    """A moment of the gradient of a parameter that is laid out so, after the split."""
    # Where the parameter takes a coefficient its gradient takes none, and the other way round.
    turned = TensorLayout(
        tuple(
            AxisLayout(swapped(axis.dim) if axis.role == "mixed" else axis.dim, "mixed")
            for axis in layout.axes
        )
    )
    offspring = {
        group: replace(what, coefficient=what.coefficient**power) for group, what in plan.offspring.items()
    }
    array = grow_tensor(moment.detach().cpu().numpy(), turned, offspring, {}, 0.0)
    return torch.from_numpy(np.ascontiguousarray(array)).to(moment.device, moment.dtype)


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
