"""The displaced entries of one tensor, channel by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from growpipe.analyser.program.kernel_window import KernelWindow

__all__ = ["Block"]


@dataclass(frozen=True, eq=False)
class Block:
    """The part of a group's θ that lies in one tensor.

    Attributes:
        tensor: the parameter's name.
        axis: the axis of the tensor on which the channels stand.
        rows: int64 [width, entries], the entries of that axis that belong to each channel.
        shape: the shape of the tensor.
        mixing: whether the tensor mixes its producer's inputs (a filter bank, a matrix); otherwise it acts
            on each channel alone (a depthwise filter, a bias, an affine entry).
        window: the part of a kernel that is displaced; None for all of the tensor.
    """

    tensor: str
    axis: int
    rows: Tensor
    shape: tuple[int, ...]
    mixing: bool
    window: KernelWindow | None = None

    @property
    def width(self) -> int:
        return self.rows.shape[0]

    def whole(self) -> Block:
        """The same block with all taps displaced."""
        return replace(self, window=None)

    @property
    def reached(self) -> tuple[int, ...]:
        """The shape of the part of the tensor that is displaced."""
        if self.window is None:
            return self.shape
        kernel = self.window.kernel
        return self.shape[: -len(kernel)] + kernel

    @property
    def others(self) -> tuple[int, ...]:
        """The lengths of all other axes of that part."""
        return self.reached[: self.axis] + self.reached[self.axis + 1 :]

    @property
    def dimension(self) -> int:
        """The number of entries of one channel, d."""
        return self.rows.shape[1] * math.prod(self.others)

    @cached_property
    def _in_order(self) -> bool:
        """Whether the channels stand one after the other and fill the axis: no entry has to be looked up."""
        return torch.equal(self.rows.reshape(-1).cpu(), torch.arange(self.shape[self.axis]))

    def gather(self, tensor: Tensor) -> Tensor:
        """The entries of every channel: [width, d], which may share the memory of the tensor.

        Args:
            tensor: of ``shape``, or of ``reached``.
        """
        if self.window is not None and tensor.shape == self.shape:
            tensor = self.window.of(tensor)
        moved = tensor.movedim(self.axis, 0)
        if self._in_order:
            return moved.reshape(self.width, self.dimension)
        return moved[self.rows.to(tensor.device)].reshape(self.width, self.dimension)

    def scatter(self, values: Tensor) -> Tensor:
        """The inverse of `gather`: a tensor of ``shape`` from [width, d], zero where no channel is."""
        part = self.part(values)
        return part if self.window is None else self.window.filled(part, self.shape[-len(self.window.taps) :])

    def part(self, values: Tensor) -> Tensor:
        """The same of ``reached``."""
        if self._in_order:
            return values.reshape(self.shape[self.axis], *self.others).movedim(0, self.axis)
        rows = self.rows.reshape(-1).to(values.device)
        moved = values.new_zeros((self.shape[self.axis], *self.others))
        moved[rows] = values.reshape(len(rows), *self.others)
        return moved.movedim(0, self.axis)
