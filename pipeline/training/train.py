"""Training one network for one stage: seeded per epoch, so that it can be killed and go on."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from growpipe.data import Loaders
from growpipe.data.loader_items import as_tuple, to_device
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import publish_folder
from growpipe.parallel.distributed import (
    ALONE,
    Piece,
    Processes,
    data_parallel,
    pieces,
    share_buffers,
    weights_hash,
)
from growpipe.progress import progress_bar
from growpipe.run.recipe import Training
from growpipe.seeding import seed_everything
from growpipe.torch_module.grow_module import load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.torch_module.outputs import evaluation_mode
from growpipe.torch_module.recalibration import recalibrate
from growpipe.training.compilation import compiled, compiler_errors
from growpipe.user_code import call_user_code

__all__ = ["Epoch", "Evaluation", "LossFunction", "evaluate", "make_optimizer", "seed_everything", "train"]

LossFunction = Callable[[Any, Any], torch.Tensor]

_CHECKPOINT_SHARE = 0.05  # at most this share of the time goes into checkpoints


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and, for classification, accuracy (0 to 1) over a set."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``."""

    stage: str
    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """The recipe's optimizer; biases, batch norm and other vectors are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: LossFunction,
    *,
    classify: bool,
    device: str,
    peers: Processes = ALONE,
) -> Evaluation:
    """Loss and accuracy in eval mode, weighted by the samples of each batch; the mode is put back.

    Several processes share the batches, and get the same figures.
    """
    total, correct, samples = 0.0, 0.0, 0.0
    with evaluation_mode(model):
        for piece in pieces(batches, peers, "evaluate"):
            target = to_device(piece.target, device)
            output = call_user_code("the network", model, *as_tuple(to_device(piece.inputs, device)))
            total += float(loss_fn(output, target)) * piece.samples
            if classify:
                correct += float((output.argmax(1) == target).sum()) * (piece.samples / len(target))
            samples += piece.samples
    if peers.world > 1:
        total, correct, samples = peers.totals(total, correct, samples, device=torch.device("cpu"))
    if samples == 0:
        raise UsageError("a data loader gave no batches; look at the recipe's data")
    return Evaluation(total / samples, correct / samples if classify else None)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Loaders,
    loss_fn: LossFunction,
    settings: Training,
    *,
    stage: str,
    epochs: int,
    until: Literal["plateau", "period", "end"],
    seed: int,
    device: str,
    classify: bool,
    checkpoint: Path | None = None,
    key: str = "",
    peers: Processes = ALONE,
) -> list[Epoch]:
    """Train ``model`` in place; it is left in eval mode.

    With ``settings.recalibrate`` the running statistics of batch norm are estimated anew at the end, and the
    last epoch's validation figures are those of the network that is left.

    Args:
        stage: names the stage in the metrics, and seeds it together with ``seed``.
        epochs: the most epochs.
        until: ``plateau`` trains at a constant rate and stops when the validation loss has not improved for
            ``settings.patience`` epochs; ``period`` trains at a constant rate for all of ``epochs``; ``end``
            lets the rate fall to zero along a cosine.
        checkpoint: a folder where progress is kept; a later call with the same ``key`` goes on from there
            and ends with the same weights.
        key: what the checkpoint belongs to.
        peers: the processes that share each batch; all end with the same weights. Process 0 alone writes.

    Returns:
        The history, an `Epoch` each.

    Raises:
        UsageError: the loss is not finite, a loader is empty, or the network cannot be compiled.
        MissingEnvironment: there is no compiler, or batch norm cannot be synchronised here.
        CheckFailed: the processes do not agree.
    """
    # Nobody reads the checkpoint before process 0 has ended what it was writing.
    peers.agree("which stage is trained", stage)
    history = _resume(checkpoint, key, model, optimizer)
    peers.agree(f"how far {stage} is", str(history))
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # What is called in a step; the network itself is what is evaluated, saved, exported and grown.
    called = data_parallel(model, peers, sync_batch_norm=settings.sync_batch_norm)
    if settings.compile:
        called = compiled(called, device)
    saving_ended, saving_took = time.monotonic(), 0.0
    with progress_bar(stage, epochs) as advance:
        for done in history:
            advance(_status(done))
        while len(history) < epochs and not (until == "plateau" and _plateaued(history, settings.patience)):
            number = len(history)
            rate = settings.learning_rate
            if until == "end":
                rate *= 0.5 * (1.0 + math.cos(math.pi * number / epochs))
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed_everything(seed, stage, number)
            where = f"{stage}, epoch {number + 1}"
            batches = pieces(loaders.train, peers, seed, stage, number)
            with compiler_errors(settings.compile), _unused_parameters(peers):
                model.train()
                train_loss = _train_epoch(called, optimizer, batches, loss_fn, settings, device, where, peers)
            share_buffers(model, peers)
            held_out = evaluate(
                model, loaders.validation, loss_fn, classify=classify, device=device, peers=peers
            )
            history.append(Epoch(stage, number + 1, rate, train_loss, held_out.loss, held_out.accuracy))
            advance(_status(history[-1]))
            now = time.monotonic()
            if (
                checkpoint is not None
                and peers.rank == 0
                and saving_took <= _CHECKPOINT_SHARE * (now - saving_ended)
            ):
                _save_progress(checkpoint, key, model, optimizer, history)
                saving_ended = time.monotonic()
                saving_took = saving_ended - now
    if settings.recalibrate and history:
        # Seeded by itself, so that a training resumed after its last epoch gets the same statistics.
        seed_everything(seed, stage, "recalibrate")
        if _recalibrate(model, loaders.train, settings, device, peers, seed, stage):
            held_out = evaluate(
                model, loaders.validation, loss_fn, classify=classify, device=device, peers=peers
            )
            history[-1] = replace(
                history[-1], validation_loss=held_out.loss, validation_accuracy=held_out.accuracy
            )
    if peers.world > 1:
        peers.agree(f"the weights after {stage}", weights_hash(model))
    model.eval()
    return history


def _recalibrate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    settings: Training,
    device: str,
    peers: Processes,
    *seed: object,
) -> int:
    def prepared() -> Iterator[tuple[Any, Any]]:
        for piece in pieces(batches, peers, *seed, "recalibrate"):
            yield _inputs(piece.inputs, settings, device), piece.target

    with _autocast(settings, device):
        seen = recalibrate(model, prepared(), samples=-(-settings.recalibrate // peers.world))
    share_buffers(model, peers)
    return seen


@contextlib.contextmanager
def _unused_parameters(peers: Processes) -> Iterator[None]:
    """What torch says in a page about a parameter without a gradient, in one line."""
    try:
        yield
    except (RuntimeError, UsageError) as error:
        if peers.world == 1 or "Expected to have finished reduction" not in str(error):
            raise
        raise UsageError(
            "a parameter of the network gets no gradient, which training by several processes needs; remove "
            "it, freeze it (requires_grad = False), or train with one process"
        ) from None


def _autocast(settings: Training, device: str) -> contextlib.AbstractContextManager[Any]:
    if settings.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)


def _inputs(inputs: Any, settings: Training, device: str) -> tuple[Any, ...]:
    """What ``forward`` is called with."""
    values = as_tuple(to_device(inputs, device))
    return tuple(_channels_last(value) for value in values) if settings.channels_last else values


def _train_epoch(
    called: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Piece],
    loss_fn: LossFunction,
    settings: Training,
    device: str,
    where: str,
    peers: Processes,
) -> float:
    autocast = _autocast(settings, device)
    total, samples, waiting = 0.0, 0.0, 0
    optimizer.zero_grad(set_to_none=True)
    for piece in batches:
        target = to_device(piece.target, device)
        steps = waiting + 1 == settings.accumulate
        with _gradients_kept(called, not (steps or piece.last)):
            with autocast:
                output = call_user_code("the network", called, *_inputs(piece.inputs, settings, device))
                loss = loss_fn(output, target)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UsageError(
                    f"{where}: the loss is {value}; lower the recipe's train.learning_rate, or look at the "
                    "data"
                )
            (loss * (piece.weight / settings.accumulate)).backward()
        waiting += 1
        if steps:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            waiting = 0
        total += value * piece.samples
        samples += piece.samples
    if waiting:
        # The last step of an epoch may have fewer batches; its gradient is still their mean.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(settings.accumulate / waiting)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if peers.world > 1:
        total, samples = peers.totals(total, samples, device=torch.device("cpu"))
    if samples == 0:
        raise UsageError(f"{where}: the training loader gave no batches; look at the recipe's data")
    return total / samples


def _gradients_kept(called: nn.Module, kept: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, gradients are summed up in this process instead of averaged over all of them."""
    inner = getattr(called, "_orig_mod", called)
    if kept and isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.no_sync()
    return contextlib.nullcontext()


def _channels_last(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _plateaued(history: list[Epoch], patience: int) -> bool:
    losses = [epoch.validation_loss for epoch in history]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _status(epoch: Epoch) -> str:
    text = f"loss {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f}"
    return text if epoch.validation_accuracy is None else f"{text}, {epoch.validation_accuracy:.1%}"


def _save_progress(
    folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with publish_folder(folder) as staging:
        save_grown(model, staging / "weights.safetensors")
        save_optimizer(optimizer, model, staging / "optimizer.safetensors")
        progress = {"key": key, "history": [asdict(epoch) for epoch in history]}
        (staging / "progress.json").write_text(json.dumps(progress))


def _resume(folder: Path | None, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
    if folder is None or not (folder / "progress.json").is_file():
        return []
    progress = json.loads((folder / "progress.json").read_text())
    if progress["key"] != key:
        return []
    load_grown(model, folder / "weights.safetensors")
    load_optimizer(optimizer, model, folder / "optimizer.safetensors")
    return [Epoch(**epoch) for epoch in progress["history"]]
