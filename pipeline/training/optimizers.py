"""The optimizer of a recipe's ``[train]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.training.options import TrainingOptions

__all__ = ["make_optimizer"]

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def make_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer of the options; biases, batch norm and other vectors are not decayed.

    Raises:
        UsageError: the optimizer does not take its ``optimizer_options``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    make = _CLASSES[options.optimizer]
    try:
        optimizer: torch.optim.Optimizer = make(groups, lr=options.learning_rate, **_arguments(options))
    except (TypeError, ValueError) as error:
        raise UsageError(f"train.optimizer_options do not fit {options.optimizer}: {error}") from None
    return optimizer


def _arguments(options: TrainingOptions) -> dict[str, Any]:
    """What the optimizer takes besides rate and decay; TOML has no tuples, torch wants them."""
    further = options.optimizer_options
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in further.items()}
    return {"momentum": options.momentum, **given} if options.optimizer == "sgd" else given
