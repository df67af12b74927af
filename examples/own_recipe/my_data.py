"""The data of the recipe: Fisher's irises."""

import torch
from sklearn.datasets import load_iris

from growpipe import Loaders


def loaders(batch_size: int, seed: int) -> Loaders:
    iris = load_iris()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
    flowers = torch.from_numpy(iris.data).float()[order]
    flowers = (flowers - flowers.mean(0)) / flowers.std(0)
    kinds = torch.from_numpy(iris.target)[order]

    def batches(start: int, stop: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (flowers[i : min(i + batch_size, stop)], kinds[i : min(i + batch_size, stop)])
            for i in range(start, stop, batch_size)
        ]

    return Loaders(train=batches(0, 90), validation=batches(90, 120), test=batches(120, 150))
