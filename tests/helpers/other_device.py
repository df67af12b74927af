"""A second device without the hardware: tensors that compute on the CPU, and refuse to meet the CPU's.

torch's ``lazy`` device type stands in for a GPU: nothing else answers to it, and its backward passes run
where those of the CPU do. Inside `other_device` a tensor moved there holds its values in a tensor of the CPU.
Operators that mix it with the CPU's raise what CUDA raises, but for what CUDA allows, too: scalars, and
indices. What runs here to the CPU's own numbers never leaves a tensor behind on the wrong device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "other_device"]

DEVICE = torch.device("lazy", 0)

aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Elsewhere(Tensor):
    """A tensor on `DEVICE`; ``here`` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.here!r})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    """Operators without a tensor of `DEVICE` among their arguments can make one, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """``torch.tensor`` and its like reach no dispatcher before they allocate."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_elsewhere(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _execute(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return func(*args, **kwargs)
    away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if func is aten._local_scalar_dense.default and away:
        return func(away[0].here)
    moves = func in (aten._to_copy.default, aten.copy_.default)
    if away and not moves:
        for tensor in tensors:
            index = func in _INDEXED and not tensor.dtype.is_floating_point
            if tensor.ndim > 0 and not isinstance(tensor, Elsewhere) and not index:
                raise RuntimeError(f"{func} of tensors on two devices, {DEVICE} and cpu")
    device = kwargs.get("device")
    if func is aten.copy_.default:
        leaves_here = not isinstance(args[0], Elsewhere)
    else:
        leaves_here = not away if device is None else not _is_elsewhere(device)
    args, kwargs = pytree.tree_map(_here, (args, kwargs))
    result = func(*args, **kwargs)
    if leaves_here:
        return result
    # What is returned as it was given, by an operator in place, stays the same tensor.
    known = {id(tensor.here): tensor for tensor in away}

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return pytree.tree_map(moved, result)


def _here(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.here
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Tensors can live on `DEVICE` inside."""
    with _Operators(), _Constructors():
        yield DEVICE
