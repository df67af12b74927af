"""A grown tensor that is computed while it is written."""

from __future__ import annotations

import sys
import threading
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.plan.grow_tensor import TensorGrowth

__all__ = ["GrownTensor"]

_BLOCK_BYTES = 2**20
"""Small enough for a processor's cache, large enough that the calls do not count."""

_MAPPING = threading.RLock()
"""External tensors map their file at the first use, which two threads must not do at once."""


class GrownTensor(ir.LazyTensor):
    """The grown form of a tensor, which is only read when the grown one is.

    Written to a file, it is computed a block of rows at a time and never held whole.
    """

    __slots__ = ("_before", "_growth")

    def __init__(self, before: ir.TensorProtocol, growth: TensorGrowth, name: str) -> None:
        super().__init__(self._whole, dtype=before.dtype, shape=ir.Shape(growth.shape), name=name)
        self._before = before
        self._growth = growth

    def __repr__(self) -> str:
        # The base class would show the function that computes it, a method of this very object.
        return f"{self._repr_base()}(name={self.name!r})"

    def _whole(self) -> ir.TensorProtocol:
        with _MAPPING:
            before = self._before.numpy()
        array = self._growth.rows(before, 0, self._growth.shape[0] if self._growth.shape else 1)
        return ir.Tensor(array, dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes of the tensor, little-endian."""
        if self.nbytes <= _BLOCK_BYTES or self.dtype.bitwidth < 8 or sys.byteorder != "little":
            super().tofile(file)
            return
        with _MAPPING:
            array = self._before.numpy()
        count = self._growth.shape[0]
        step = max(1, _BLOCK_BYTES * count // self.nbytes)
        for start in range(0, count, step):
            file.write(_bytes(self._growth.rows(array, start, min(start + step, count))))


def _bytes(array: AnyArray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
