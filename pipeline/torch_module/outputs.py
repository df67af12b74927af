"""Tensors as arrays and back, bfloat16 included."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["to_numpy", "to_torch"]


def to_numpy(tensor: torch.Tensor) -> npt.NDArray:
    """The tensor's values; bfloat16 as ``ml_dtypes.bfloat16``, as onnx-ir has it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: npt.NDArray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
