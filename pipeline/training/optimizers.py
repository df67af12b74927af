"""The optimizer of a recipe's ``[train]``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.suggestions import did_you_mean
from growpipe.torch_module.optimizer_state import require_state_that_grows
from growpipe.training.options import TrainingOptions
from growpipe.user_code import call_user_code, load_reference

__all__ = ["make_optimizer", "try_optimizer"]

_NAMED = {
    name.casefold(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}


def make_optimizer(
    model: nn.Module, options: TrainingOptions, folder: Path | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the options; biases, batch norm and other vectors are not decayed.

    Args:
        model: whose parameters it is of.
        options: name it.
        folder: where the recipe stands, from which a file of the user's is named.

    Raises:
        UsageError: there is no such optimizer, or it does not take its options.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    make = _class_of(options.optimizer, folder)
    try:
        made = make(groups, lr=options.learning_rate, **_arguments(options))
    except (TypeError, ValueError) as error:
        raise UsageError(f"train.optimizer_options do not fit {options.optimizer}: {error}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise UsageError(f"{options.optimizer} gave {type(made).__name__}, not a torch.optim.Optimizer")
    return made


def try_optimizer(
    model: nn.Module,
    options: TrainingOptions,
    folder: Path | None,
    loss: Callable[[nn.Module], torch.Tensor],
) -> None:
    """Take one step with a copy of the model, which is left alone.

    Args:
        model: the network.
        options: name the optimizer.
        folder: where the recipe stands.
        loss: of a network.

    Raises:
        UsageError: the optimizer cannot be made, cannot step, or keeps state that cannot follow growth.
    """
    tried = copy.deepcopy(model)
    optimizer = make_optimizer(tried, options, folder)
    loss(tried).backward()
    call_user_code(f"a step of the optimizer {options.optimizer}", optimizer.step)
    require_state_that_grows(optimizer, tried)


def _class_of(name: str, folder: Path | None) -> Callable[..., Any]:
    if ":" in name:
        return load_reference(name, folder)
    found = _NAMED.get(name.casefold())
    if found is None:
        hint = did_you_mean(name.casefold(), _NAMED) or f"; it has {', '.join(sorted(_NAMED))}"
        raise UsageError(f"torch.optim has no optimizer {name!r}{hint}")
    return found


def _arguments(options: TrainingOptions) -> dict[str, Any]:
    """What the optimizer takes besides rate and decay; TOML has no tuples, torch wants them."""
    further = options.optimizer_options
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in further.items()}
    return {"momentum": options.momentum, **given} if options.optimizer.casefold() == "sgd" else given
