"""Safetensors files that may be anybody's, as torch's tensors."""

from __future__ import annotations

import torch
from safetensors import safe_open

from growpipe.graph_ops.files.reading import Place, opened, reading
from growpipe.graph_ops.files.tensors import MAX_TENSORS

__all__ = ["read_state"]


def read_state(path: Place, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file by name, and the texts of its metadata.

    Raises:
        MissingFile: there is no such file.
        UsageError: it cannot be read, is damaged, or holds a type that torch does not have.
    """
    with reading(what, path), opened(path, most=MAX_TENSORS), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        return tensors, file.metadata() or {}
