"""The checkpoint of a stage of training: a killed process goes on from it, and ends with the same weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from growpipe.graph_ops.files.atomic import publish_folder
from growpipe.torch_module.grow_module import load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer

__all__ = ["Checkpoint", "Epoch"]

_SHARE = 0.05  # at most this share of the time goes into writing
_PROGRESS, _WEIGHTS, _OPTIMIZER = "progress.json", "weights.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``.

    Attributes:
        stage: e.g. ``round-00/train``.
        epoch: from 1, in its stage.
        learning_rate: the rate of the epoch.
        train_loss: the mean over the samples of the epoch, in training mode, while the weights changed.
        validation_loss: of the weights after the epoch.
        validation_accuracy: of the weights after the epoch; None if it is not measured.
    """

    stage: str
    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None


class Checkpoint:
    """A folder that holds a network, its optimizer and the history of its training.

    Args:
        folder: where the checkpoint is kept; None keeps none.
        key: what the checkpoint belongs to. A checkpoint with another key is not used.
        writes: whether this process writes.
    """

    def __init__(self, folder: Path | None, key: str, *, writes: bool) -> None:
        self.folder, self.key = folder, key
        self._writes = writes and folder is not None
        self._ended, self._took = time.monotonic(), 0.0

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        """Bring ``model`` and ``optimizer`` to where training stopped; the epochs until then."""
        if self.folder is None or not (self.folder / _PROGRESS).is_file():
            return []
        progress = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
        if progress["key"] != self.key:
            return []
        load_grown(model, self.folder / _WEIGHTS)
        load_optimizer(optimizer, model, self.folder / _OPTIMIZER)
        return [Epoch(**epoch) for epoch in progress["history"]]

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]) -> None:
        """Write where training stands, unless the last writing took a large share of the time since."""
        now = time.monotonic()
        if not self._writes or self._took > _SHARE * (now - self._ended):
            return
        assert self.folder is not None
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(self.folder) as filled:
            save_grown(model, filled / _WEIGHTS)
            save_optimizer(optimizer, model, filled / _OPTIMIZER)
            progress = {"key": self.key, "history": [asdict(epoch) for epoch in history]}
            (filled / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        self._ended = time.monotonic()
        self._took = self._ended - now
