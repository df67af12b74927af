"""Data sets: loaders of public formats as they are distributed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Loaders"]


@dataclass(frozen=True)
class Loaders:
    """The three parts of a data set; each can be iterated again and gives ``(inputs, target)`` batches.

    ``inputs`` is a tensor or a tuple of tensors, the batch on axis 0. The network learns from ``train``,
    training is steered by ``validation``, and ``test`` is looked at by the checks alone.
    """

    train: Iterable[tuple[Any, Any]]
    validation: Iterable[tuple[Any, Any]]
    test: Iterable[tuple[Any, Any]]
