"""A module that becomes what a copy of it has grown into, for those who hold on to the module object."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from growpipe.torch_module.integers import changed_integers, set_integers
from growpipe.torch_module.layer_sizes import layer_sizes, set_layer_sizes

__all__ = ["adopt", "exchange_parameters"]

Kept = Mapping[torch.Tensor, torch.Tensor]
"""By tensor of the grown copy, the tensor of the same shape that the module keeps in its stead."""


def adopt(model: nn.Module, grown: nn.Module) -> Kept:
    """Give ``model`` the tensors and sizes of ``grown``, a wider deep copy of it.

    Tensors that have the same shape in both stay the same objects and get the values; the others are those of
    ``grown`` afterwards.

    Returns:
        What was kept.
    """
    own = _registered(model)
    kept: dict[torch.Tensor, torch.Tensor] = {}
    for place, new in _registered(grown).items():
        old = own[place]
        if old.shape == new.shape and new not in kept:
            with torch.no_grad():
                old.copy_(new)
            kept[new] = old
    for path, module in grown.named_modules():
        target = model.get_submodule(path)
        stores: list[tuple[dict[str, torch.Tensor | None], Mapping[str, torch.Tensor | None]]] = [
            (target._parameters, module._parameters),  # type: ignore[list-item]
            (target._buffers, module._buffers),
        ]
        for theirs, ours in stores:
            theirs.update({name: kept.get(t, t) for name, t in ours.items() if t is not None})
        set_layer_sizes(target, layer_sizes(module))
        set_integers(target, changed_integers(module))
    return kept


def exchange_parameters(optimizer: torch.optim.Optimizer, kept: Kept) -> None:
    """Let an optimizer of the grown copy hold what the module kept."""
    for group in optimizer.param_groups:
        group["params"] = [kept.get(parameter, parameter) for parameter in group["params"]]
    state = {kept.get(parameter, parameter): entries for parameter, entries in optimizer.state.items()}
    optimizer.state.clear()
    optimizer.state.update(state)


def _registered(model: nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    """Every parameter and buffer by its place."""
    return {
        (path, name): tensor
        for path, module in model.named_modules()
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if tensor is not None
    }
