"""What a module takes and gives: the tensors of its outputs, as arrays, its loss, its mode and precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import nn

from growpipe.graph_ops.arrays import AnyArray

__all__ = [
    "LossFunction",
    "denormals_as_zero",
    "evaluation_mode",
    "filled",
    "output_tensors",
    "own_precision",
    "to_autograd",
    "to_numpy",
    "to_torch",
]

LossFunction = Callable[[Any, Any], torch.Tensor]
"""``(output, target)`` to a scalar, the mean loss over the samples of a batch."""


def output_tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of what ``forward`` returned, in the order in which the ONNX exporter lists them.

    Args:
        output: a tensor, or any nest of tuples, lists, mappings, dataclasses and iterables of tensors, e.g. a
            named tuple or a ``ModelOutput`` of transformers. What is not a tensor is left out.
    """
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    # torch.export flattens by torch's registry of containers; an unregistered container is a leaf there.
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors(list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        elif isinstance(leaf, Iterable) and not isinstance(leaf, (str, bytes)):
            yield from _tensors(list(leaf))


def filled(template: Any, tensors: Iterable[torch.Tensor]) -> Any:
    """An output of the form of ``template`` with other tensors, in the order of `output_tensors`.

    Args:
        template: what ``forward`` returned.
        tensors: as many as ``template`` has, e.g. the outputs of the ONNX graph.
    """
    rest = iter(tensors)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return next(rest)
        if isinstance(leaf, Mapping):
            return {key: nested(value) for key, value in leaf.items()}
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = [field.name for field in dataclasses.fields(leaf)]
            return dataclasses.replace(leaf, **{name: nested(getattr(leaf, name)) for name in names})
        if isinstance(leaf, Iterable) and not isinstance(leaf, (str, bytes)):
            return [nested(value) for value in leaf]
        return leaf

    def nested(value: Any) -> Any:
        return pytree.tree_map(put, value)

    return nested(template)


def to_autograd(value: Any) -> Any:
    """A tensor that was made in ``torch.inference_mode`` as one that autograd may keep; all else as it is."""
    if isinstance(value, torch.Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


def to_numpy(tensor: torch.Tensor) -> AnyArray:
    """The tensor's values; bfloat16 as ``ml_dtypes.bfloat16``, as onnx-ir has it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: AnyArray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def own_precision() -> Iterator[None]:
    """Every operator in the type of its inputs inside, whatever ``torch.autocast`` says outside."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1e-38 count as 0 on the CPU inside; the user's setting afterwards.

    Gradients that hardly reach a layer are full of them, and some CPUs take many times as long for each.
    """
    before = not (torch.tensor(2e-38, dtype=torch.float32, device="cpu") * 0.5).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
