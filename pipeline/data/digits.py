"""The 1,797 real handwritten digits that scikit-learn ships (UCI, optical recognition of digits)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from growpipe.data import Loaders
from growpipe.environment import require

__all__ = ["loaders"]

_SPLIT_SEED = 20200311
_VALIDATION, _TEST = 297, 500


def loaders(batch_size: int, seed: int) -> Loaders:
    """1,000 training, 297 validation and 500 test images, stratified by digit; the split never changes.

    Args:
        batch_size: of the training batches.
        seed: not used: the order of the training images comes from torch's generator, which the trainer
            seeds for every epoch.

    Returns:
        Batches of images float32 [N, 1, 8, 8], raw pixel / 16, and digits int64 [N].

    Raises:
        MissingEnvironment: scikit-learn is not installed.
    """
    del seed
    datasets = require("sklearn.datasets", "train", "the digits recipe")
    selection = require("sklearn.model_selection", "train", "the digits recipe")
    digits = datasets.load_digits()
    images = torch.from_numpy((digits.images / 16.0).astype(np.float32)[:, None])
    targets = torch.from_numpy(digits.target.astype(np.int64))
    rest, test = selection.train_test_split(
        np.arange(len(targets)), test_size=_TEST, stratify=targets, random_state=_SPLIT_SEED
    )
    train, validation = selection.train_test_split(
        rest, test_size=_VALIDATION, stratify=targets[rest], random_state=_SPLIT_SEED
    )

    def part(index: np.ndarray, size: int, shuffle: bool = False) -> DataLoader[Any]:
        chosen = torch.from_numpy(np.sort(index))
        return DataLoader(
            TensorDataset(images[chosen], targets[chosen]),
            batch_size=size,
            shuffle=shuffle,
            drop_last=shuffle,
        )

    return Loaders(part(train, batch_size, shuffle=True), part(validation, _TEST), part(test, _TEST))
