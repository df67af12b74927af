"""Folders of ``save_pretrained`` of a grown model: its configuration tells the sizes that growth has changed.

``from_pretrained`` builds a model from the configuration, which has one number for the width of all layers,
and refuses weights of other sizes. So growth notes what it changed in the configuration, as an entry that the
library keeps and does not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_json, read_json
from growpipe.torch_module.state_file import read_state

__all__ = ["CONFIG_KEY", "note_sizes", "read_pretrained"]

CONFIG_KEY = "growpipe_module_sizes"
"""The entry of a configuration: by path of a submodule the sizes that growth has changed."""

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

Sizes = Mapping[str, Mapping[str, Any]]


def note_sizes(model: nn.Module, before: Sizes, after: Sizes) -> None:
    """Write the changed sizes into the configurations of models that save themselves with one.

    Args:
        model: after growth; it is such a model, or has some among its modules.
        before: its `growpipe.torch_module.grow_module.module_sizes` before growth.
        after: the same after it.
    """
    changed = {
        path: values
        for path, sizes in after.items()
        if (values := {name: n for name, n in sizes.items() if before.get(path, {}).get(name) != n})
    }
    for path, module in _that_save_themselves(model):
        if any(name.startswith("config.") for name in changed.get(path, {})):
            continue  # its configuration builds another network than the one that growth began with
        start = f"{path}." if path else ""
        noted = dict(getattr(module.config, CONFIG_KEY, None) or {})
        for inner, values in changed.items():
            if inner == path or inner.startswith(start):
                name = inner[len(start) :] if inner != path else ""
                noted[name] = {**noted.get(name, {}), **parse_json(json.dumps(values))}
        if noted:
            setattr(module.config, CONFIG_KEY, noted)


def _that_save_themselves(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost modules with ``save_pretrained`` and a configuration, by path."""
    found: list[str] = []
    for path, module in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in found):
            continue
        if hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "to_json_string"):
            found.append(path)
            yield path, module


def read_pretrained(
    model: nn.Module, own: Mapping[str, torch.Tensor], folder: Path
) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors and changed sizes of a grown model that ``save_pretrained`` wrote.

    Buffers that are never saved are those of ``model``. A tied parameter has the values of the saved one.

    Args:
        model: built as before growth.
        own: its parameters and buffers by name.
        folder: of ``save_pretrained``.

    Raises:
        UsageError: a file is missing or damaged, or the model was not grown.
    """
    config = read_json(folder / _CONFIG, "the configuration")
    sizes = config.get(CONFIG_KEY) if isinstance(config, dict) else None
    if sizes is None:
        raise UsageError(
            f"its {_CONFIG} has no entry {CONFIG_KEY!r}, so nothing in it has grown, and "
            "from_pretrained reads it, or it was saved by an earlier version"
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(folder):
        tensors |= read_state(folder / file, "the weights")[0]
    saved = model.state_dict()
    by_place = {own[name].data_ptr(): tensor for name, tensor in tensors.items() if name in own}
    for name, tensor in own.items():
        if name not in tensors and name in saved and tensor.data_ptr() in by_place:
            tensors[name] = by_place[tensor.data_ptr()]
        elif name not in tensors and name not in saved:
            tensors[name] = tensor
    return tensors, sizes


def _files(folder: Path) -> list[str]:
    """The files of the weights, all of them in the folder itself."""
    if not (folder / _INDEX).exists():
        return [_WEIGHTS]
    index = read_json(folder / _INDEX, "the index of the weights")
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in names.values()
    ):
        raise UsageError(f"its {_INDEX} is damaged")
    return sorted(set(names.values()))
