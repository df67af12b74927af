"""Batches of a data set that fits into memory: sliced whole, not collated sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from growpipe.graph_ops.errors import UsageError

__all__ = ["Batches"]


class Batches:
    """Iterates over ``(inputs, target)`` batches, as often as wanted.

    Order and augmentation come from torch's generator, which the trainer seeds for every epoch.

    Args:
        inputs: the batch on axis 0, on any device.
        targets: as long.
        size: of a batch.
        shuffle: a new order at every iteration; an incomplete last batch is then left out, unless it is
            the only one.
        transform: from the slice of ``inputs`` to what the network is fed.
        draw: with ``shuffle``, an iteration ends after so many samples, drawn again each time; None for all.

    Raises:
        UsageError: there are no samples, not as many inputs as targets, or fewer than are to be drawn.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        size: int,
        *,
        shuffle: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
        draw: int | None = None,
    ) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise UsageError(f"a data set has {len(inputs)} inputs and {len(targets)} targets")
        if draw is not None and not 1 <= draw <= len(inputs):
            raise UsageError(f"an epoch cannot draw {draw} of {len(inputs)} samples")
        self.inputs, self.targets = inputs, targets
        self.size, self.shuffle, self.transform, self.draw = size, shuffle, transform, draw

    def __len__(self) -> int:
        count = self.draw if self.shuffle and self.draw is not None else len(self.inputs)
        full, rest = divmod(count, self.size)
        return max(1, full) if self.shuffle else full + bool(rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.inputs)
        order = torch.randperm(count)[: self.draw] if self.shuffle else torch.arange(count)
        order = order.to(self.inputs.device)
        for number in range(len(self)):
            chosen = order[number * self.size : (number + 1) * self.size]
            inputs, targets = self.inputs[chosen], self.targets[chosen]
            yield (inputs if self.transform is None else self.transform(inputs)), targets

    def to(self, device: str | torch.device) -> Batches:
        """The same batches with the data on a device; what is drawn at random stays the same."""
        return Batches(
            self.inputs.to(device),
            self.targets.to(device),
            self.size,
            shuffle=self.shuffle,
            transform=self.transform,
            draw=self.draw,
        )
