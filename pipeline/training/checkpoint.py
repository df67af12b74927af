"""The checkpoint of a stage of training: a killed process goes on from it, and ends with the same weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import publish_folder
from growpipe.graph_ops.files.documents import read_json, validated
from growpipe.graph_ops.files.reading import hash_file, reading
from growpipe.progress import log
from growpipe.torch_module.grow_module import load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.validation import Section

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
        validation_score: the metric of the weights after the epoch.
        samples: how many were trained on, by all processes together.
    """

    stage: str
    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_score: float
    samples: int


class _Progress(Section):
    model_config = ConfigDict(strict=False)  # JSON objects become epochs

    key: str
    files: dict[str, str]
    history: list[Epoch]


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
        if self.folder is None or not (self.folder / _PROGRESS).exists():
            return []
        try:
            return self._load(self.folder, model, optimizer)
        except UsageError as error:
            if self._writes:
                log(f"{error}; the checkpoint is left aside, and the stage trains from its start")
            return []

    def _load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        file = folder / _PROGRESS
        with reading("the checkpoint", file):
            progress = validated(_Progress, read_json(file, "the checkpoint", inside=folder))
        if progress.key != self.key:
            return []
        for name in (_WEIGHTS, _OPTIMIZER):
            if hash_file(folder / name, inside=folder) != progress.files.get(name):
                raise UsageError(f"the checkpoint {folder / name} is damaged: its checksum is another")
        # What has the right checksum fits the network of this key: both are loaded, or nothing was changed.
        load_grown(model, folder / _WEIGHTS)
        load_optimizer(optimizer, model, folder / _OPTIMIZER)
        return progress.history

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
            files = {name: hash_file(filled / name) for name in (_WEIGHTS, _OPTIMIZER)}
            progress = {"key": self.key, "files": files, "history": [asdict(epoch) for epoch in history]}
            (filled / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        self._ended = time.monotonic()
        self._took = self._ended - now
