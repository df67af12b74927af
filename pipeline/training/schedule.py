"""The learning rate of every epoch of a stage: warm-up, constant, annealing."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Rises along a line, stays, and falls to zero along a cosine.

    Attributes:
        rate: the constant rate.
        epochs: of the stage.
        warm_up: the first epochs, in which the rate rises.
        annealed: the last epochs, in which the rate falls: the first of them has the constant rate, and after
            the last one the rate would be zero. 0 keeps the rate to the end.
    """

    rate: float
    epochs: int
    warm_up: int = 0
    annealed: int = 0

    def at(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0."""
        rate = self.rate
        if epoch < self.warm_up:
            rate *= (epoch + 1) / (self.warm_up + 1)
        falling = epoch - (self.epochs - self.annealed)
        if falling >= 0 and self.annealed:
            rate *= 0.5 * (1.0 + math.cos(math.pi * falling / self.annealed))
        return rate
