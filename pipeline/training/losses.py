"""The loss of a recipe: that of its task, one of `torch.nn` by name, or the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growpipe.graph_ops.errors import UsageError
from growpipe.quality import TaskName
from growpipe.suggestions import did_you_mean
from growpipe.torch_module.outputs import LossFunction, output_tensors
from growpipe.training.metrics import aligned, classes_last
from growpipe.user_code import call_user_code, load_reference

__all__ = ["loss_of"]

_OF_TASKS: Mapping[TaskName, str] = {
    "classification": "CrossEntropyLoss",
    "binary": "BCEWithLogitsLoss",
    "multilabel": "BCEWithLogitsLoss",
    "regression": "MSELoss",
}
_OF_CLASSES = ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")
_NAMED = {
    name.casefold(): name
    for name, kind in vars(nn).items()
    if name.endswith("Loss") and inspect.isclass(kind)
}


def loss_of(
    task: TaskName, reference: str | None, options: Mapping[str, Any], folder: Path | None, device: str
) -> LossFunction:
    """The loss that a recipe asks for, a function of ``(output, target)``.

    Args:
        task: gives the loss if there is no ``reference``.
        reference: the name of a loss of `torch.nn` (in any case), ``file.py:name`` or
            ``package.module:name``; None for that of the task. A class is made with ``options``, a function
            is called with them.
        options: of the loss; lists become tensors, as torch wants class weights.
        folder: where the recipe stands.
        device: of the run, where tensors of the loss are kept.

    Raises:
        UsageError: there is no such loss, or it does not take the options.
    """
    given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in options.items()}
    if reference is None or ":" not in reference:
        name = _OF_TASKS[task] if reference is None else _NAMED.get(reference.casefold())
        if name is None:
            hint = did_you_mean(str(reference), _NAMED.values())
            raise UsageError(f"torch.nn has no loss {reference!r}{hint or '; see torch.nn'}")
        function = _made(name, getattr(nn, name), given, device)
        words = f"the loss of a {task} task" if reference is None else name
        fit = _of_classes if name in _OF_CLASSES else _of_numbers
        return lambda output, target: fit(words, function, output, target)
    found = load_reference(reference, folder)
    if inspect.isclass(found):
        found, given = _made(reference, found, given, device), {}
    own: Callable[..., Any] = found
    given = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in given.items()}
    return lambda output, target: call_user_code(reference, own, output, target, **given)


def _made(name: str, kind: Callable[..., Any], options: Mapping[str, Any], device: str) -> Callable[..., Any]:
    try:
        made = kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"loss_options do not fit {name}: {error}") from None
    function: Callable[..., Any] = made.to(device) if isinstance(made, nn.Module) else made
    return function


def _of_classes(words: str, function: Callable[..., Any], output: Any, target: Any) -> Tensor:
    """Scores go to torch with the classes on axis 1; targets that are no classes are torch's to judge."""
    scores = _only(words, output)
    if isinstance(target, Tensor) and scores.ndim == target.ndim + 1 > 2:
        scores = classes_last(scores, target).movedim(-1, 1)
    loss: Tensor = call_user_code(words, function, scores, target)
    return loss


def _of_numbers(words: str, function: Callable[..., Any], output: Any, target: Any) -> Tensor:
    """Outputs get the shape of the targets, and targets the type of the outputs."""
    values = _only(words, output)
    if isinstance(target, Tensor) and target.ndim:
        values, target = aligned(values, target), target.to(values.dtype)
    loss: Tensor = call_user_code(words, function, values, target)
    return loss


def _only(words: str, output: Any) -> Tensor:
    """The single tensor of an output."""
    tensors = output_tensors(output)
    if len(tensors) != 1:
        raise UsageError(
            f"{words} takes one tensor, and the network gives {len(tensors)} ({type(output).__name__}); set "
            'loss = "file.py:name" in the recipe, a function of (output, target)'
        )
    return tensors[0]
