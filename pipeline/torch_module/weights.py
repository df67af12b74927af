"""Weights that somebody else has trained, strictly: every name and every shape has to fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import opened, reading
from growpipe.torch_module.grow_module import SIZES_KEY, load_grown

__all__ = ["load_weights"]

Module = TypeVar("Module", bound=nn.Module)

_MOST_BYTES = 1 << 40
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile put these before all names
_INSIDE = ("state_dict", "model_state_dict", "model")  # where training loops keep the state in a checkpoint
_SHOWN = 3


def load_weights(model: Module, path: str | os.PathLike[str]) -> Module:
    """Give ``model`` the weights of a file.

    Args:
        model: changed in place.
        path: a safetensors file, a file of `growpipe.torch_module.grow_module.save_grown` (which may be wider
            than ``model``), or what `torch.save` wrote of a state dict. The last is read with
            ``weights_only=True``, so that no code in it runs. A checkpoint that holds the state dict under
            ``state_dict``, ``model_state_dict`` or ``model`` will do.

    Returns:
        ``model``.

    Raises:
        UsageError: the file cannot be read, lacks a name of the model, holds a name that the model has not, or
            a tensor of another shape.
    """
    place = Path(path)
    with reading("the weights", place):
        if place.suffix != ".safetensors":
            with opened(place, most=_MOST_BYTES) as file:
                return _fill(model, _state_dict(torch.load(file, map_location="cpu", weights_only=True)))
        with opened(place, most=_MOST_BYTES), safe_open(place, framework="pt") as tensors:
            if SIZES_KEY not in (tensors.metadata() or {}):
                state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, not a mapping
                return _fill(model, state)
    return load_grown(model, place)


def _state_dict(loaded: Any) -> dict[str, torch.Tensor]:
    for name in _INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise UsageError("it holds no state dict; save model.state_dict()")
    return dict(loaded)


def _fill(model: Module, state: dict[str, torch.Tensor]) -> Module:
    own: dict[str, torch.Tensor] = model.state_dict()
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state) and not any(n.startswith(wrapper) for n in own):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    # A tied tensor may be saved under one of its names.
    by_place = {own[name].data_ptr(): tensor for name, tensor in state.items() if name in own}
    for name, tensor in own.items():
        if name not in state and tensor.numel() and tensor.data_ptr() in by_place:
            state[name] = by_place[tensor.data_ptr()]
    faults = []
    if missing := [name for name in own if name not in state]:
        faults.append(f"they lack {_names(missing)}")
    if unexpected := [name for name in state if name not in own]:
        faults.append(f"they hold {_names(unexpected)}, which the network has not")
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            faults.append(f"{name!r} has shape {list(state[name].shape)}, not {list(tensor.shape)}")
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        raise UsageError(f"the weights are not those of {type(model).__name__}: {shown}")
    model.load_state_dict(state)
    return model


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
