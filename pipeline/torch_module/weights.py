"""Weights that somebody else has trained, strictly: every name and every shape has to fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import opened, reading
from growpipe.graph_ops.files.tensors import MAX_TENSORS
from growpipe.torch_module.grow_module import SIZES_KEY, load_grown
from growpipe.torch_module.state_file import read_state

__all__ = ["load_weights"]

Module = TypeVar("Module", bound=nn.Module)

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
        UsageError: the file cannot be read, lacks a name of the model, or holds a name or a shape that the
            model does not have.
    """
    place = Path(path)
    if place.suffix == ".safetensors":
        state, metadata = read_state(place, "the weights")
        if SIZES_KEY in metadata:
            return load_grown(model, place)
    else:
        with reading("the weights", place), opened(place, most=MAX_TENSORS) as file:
            state = _state_dict(torch.load(file, map_location="cpu", weights_only=True))
    own: dict[str, torch.Tensor] = model.state_dict()
    state = _renamed(state, own)
    faults = _faults(state, own)
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        raise UsageError(f"the weights {place} do not fit {type(model).__name__}: {shown}")
    model.load_state_dict(state)
    return model


def _state_dict(loaded: Any) -> dict[str, torch.Tensor]:
    for name in _INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise UsageError("it holds no state dict; save model.state_dict()")
    return dict(loaded)


def _renamed(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state without the names of wrappers, and with every name of a tied tensor."""
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state) and not any(n.startswith(wrapper) for n in own):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    by_place = {own[name].data_ptr(): tensor for name, tensor in state.items() if name in own}
    tied = {
        name: by_place[tensor.data_ptr()]
        for name, tensor in own.items()
        if name not in state and tensor.numel() and tensor.data_ptr() in by_place
    }
    return {**state, **tied}


def _faults(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """What does not fit, in words."""
    faults = []
    if missing := [name for name in own if name not in state]:
        faults.append(f"they lack {_names(missing)}")
    if unexpected := [name for name in state if name not in own]:
        faults.append(f"they hold {_names(unexpected)}, which the network does not have")
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            faults.append(f"{name!r} has shape {list(state[name].shape)}, not {list(tensor.shape)}")
    return faults


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
