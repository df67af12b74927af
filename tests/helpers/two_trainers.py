"""What test_distributed runs in each process: train, and tell what came of it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.graph_ops.errors import UsageError
from growpipe.parallel.distributed import launched, pieces, weights_hash
from growpipe.parallel.processes import ALONE, Processes
from growpipe.seeding import seed_everything
from growpipe.training.evaluation import Objective, evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, train

SETTINGS = {"optimizer": "sgd", "learning_rate": 0.05, "recalibrate": 32}


class Killed(BaseException):
    pass


def data(count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


def plain() -> nn.Module:
    seed_everything(0, "seed network")
    return nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2))


def normalised() -> nn.Module:
    seed_everything(0, "seed network")
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def trained(
    model: nn.Module, batches: Any, peers: Processes, checkpoint: Path | None = None, **settings: Any
) -> list[float]:
    options = TrainingOptions(**{**SETTINGS, **settings})
    held_out = DataLoader(data(), 24)
    objective = Objective(Loaders(batches, held_out, held_out), nn.functional.cross_entropy)
    stage = TrainingStage("s", 3, checkpoint=checkpoint, key="k")
    history = train(model, make_optimizer(model, options), objective, options, stage, peers=peers)
    return [value for epoch in history for value in (epoch.train_loss, epoch.validation_loss)]


class Partial(nn.Module):
    """A network with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def refusal(peers: Processes) -> str | None:
    """What is said to a network that several processes cannot train."""
    try:
        trained(Partial(), DataLoader(data(), 8), peers)
    except UsageError as error:
        return str(error)
    return None


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


class Shuffled(Batches):
    """Batches whose inputs are changed at random, as augmentation does."""

    def __init__(self, size: int) -> None:
        inputs, targets = data().tensors
        super().__init__(inputs, targets, size, shuffle=True, transform=lambda x: x + torch.randn(len(x), 1))


class Fragile:
    """Breaks off when it is iterated the third time."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.left = batches, 3

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return iter(self.batches)


def resumed(peers: Processes, folder: Path) -> str:
    """The hash of the weights of a training that was broken off after two epochs."""
    first, second = normalised(), normalised()
    loader = DataLoader(data(), 8, shuffle=True)
    try:
        trained(first, Fragile(loader), peers, folder)
    except Killed:
        trained(second, loader, peers, folder)
        return weights_hash(second)
    raise AssertionError("the training was not broken off")


def facts(peers: Processes, folder: Path) -> dict[str, Any]:
    """What one process and two must have in common, and what two must have in common."""
    together: dict[str, Any] = {}
    for name, batches, settings in (
        ("loader", DataLoader(data(), 8, shuffle=True), {}),
        ("augmented", Shuffled(8), {}),
        ("uneven", DataLoader(data(), 9, shuffle=True), {"accumulate": 3}),
        ("a lone last sample", DataLoader(data(), 21, shuffle=True), {"accumulate": 2}),
    ):
        model = plain()
        together[name] = {"losses": trained(model, batches, peers, **settings), "weights": weights(model)}
    model = normalised()
    trained(model, DataLoader(data(), 8, shuffle=True), peers)
    batches = DataLoader(data(), 7)
    objective = Objective(Loaders(batches, batches, batches), nn.functional.cross_entropy)
    held_out = evaluate(model, batches, objective, peers=peers)
    samples = [piece.samples for piece in pieces(DataLoader(data(), 9), peers, 0)]
    return {
        "together": together,
        "normalised": weights_hash(model),
        "resumed": resumed(peers, folder),
        "held_out": [held_out.loss, held_out.score],
        "samples": samples,
        "refusal": refusal(peers),
    }


def print_facts(folder: str) -> None:
    """What one of the processes has to say."""
    with launched("cpu") as group:
        json.dump(facts(group, Path(folder)), sys.stdout)


def alone() -> dict[str, Any]:
    """The same by this process."""
    with tempfile.TemporaryDirectory() as folder:
        return facts(ALONE, Path(folder) / "progress")
