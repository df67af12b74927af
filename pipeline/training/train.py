"""Training one network for one stage: seeded per epoch, so that it can be killed and go on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from growpipe.data.loader_items import as_tuple, to_device
from growpipe.graph_ops.errors import UsageError
from growpipe.parallel.distributed import Piece, data_parallel, pieces, share_buffers, weights_hash
from growpipe.parallel.processes import ALONE, Processes
from growpipe.progress import progress_bar
from growpipe.quality import METRICS, Quality
from growpipe.seeding import seed_everything
from growpipe.torch_module.memory_format import channels_last, contiguous_where_needed
from growpipe.torch_module.recalibration import recalibrate
from growpipe.training.checkpoint import Checkpoint, Epoch
from growpipe.training.compilation import compiled, compiler_errors
from growpipe.training.evaluation import Objective, evaluate
from growpipe.training.options import TrainingOptions
from growpipe.training.schedule import Schedule
from growpipe.user_code import call_user_code

__all__ = ["TrainingStage", "Until", "train"]


Until = Literal["plateau", "period", "end"]


@dataclass(frozen=True)
class TrainingStage:
    """One stretch of training.

    Attributes:
        name: names the stage in the metrics, and seeds it together with ``seed``.
        epochs: the most epochs.
        until: ``plateau`` trains at a constant rate and stops when the validation loss has not improved for
            the options' ``patience``; ``period`` trains at a constant rate for all of ``epochs``; ``end``
            lets the rate fall to zero in the options' share ``anneal`` of the epochs.
        seed: of everything random.
        checkpoint: a folder where progress is kept. A later call with the same ``key`` goes on from there,
            and ends with the same weights. None keeps no progress.
        key: what the checkpoint belongs to.
        fresh: whether the network is freshly initialised, so that the rate warms up.
        told: called with the epochs so far, whose figures are final, whenever there are more.
    """

    name: str
    epochs: int
    until: Until = "end"
    seed: int = 0
    checkpoint: Path | None = None
    key: str = ""
    fresh: bool = False
    told: Callable[[Sequence[Epoch]], None] | None = None

    def schedule(self, options: TrainingOptions) -> Schedule:
        """The rate of every epoch."""
        annealed = math.ceil(options.anneal * self.epochs) if self.until == "end" else 0
        warm_up = min(options.warm_up, self.epochs - 1) if self.fresh else 0
        return Schedule(options.learning_rate, self.epochs, warm_up, annealed)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    options: TrainingOptions,
    stage: TrainingStage,
    *,
    device: str = "cpu",
    peers: Processes = ALONE,
) -> list[Epoch]:
    """Train ``model`` in place; it is left in evaluation mode.

    With ``options.recalibrate`` the running statistics of batch norm are estimated again at the end. The last
    epoch's validation figures are then those of the recalibrated network.

    Args:
        model: on ``device``.
        optimizer: of the model's parameters; its rates are set in every epoch.
        objective: data, loss and metric.
        options: how to train.
        stage: how long, and under which name.
        device: where the batches are brought to.
        peers: the processes that share each batch; all end with the same weights. Process 0 alone writes.

    Returns:
        The history, an `Epoch` each.

    Raises:
        UsageError: the loss is not finite, a loader is empty, or the network cannot be compiled.
        MissingEnvironment: there is no compiler, or batch norm cannot be synchronised here.
        CheckFailed: the processes do not agree.
    """
    # Nobody reads the checkpoint before process 0 has ended what it was writing.
    peers.agree("which stage is trained", stage.name)
    checkpoint = Checkpoint(stage.checkpoint, stage.key, writes=peers.rank == 0)
    history = checkpoint.load(model, optimizer)
    peers.agree(f"how far {stage.name} is", str(history))
    trainer = _Trainer(model, optimizer, objective, options, stage, device, peers)
    with progress_bar(stage.name, stage.epochs) as advance:
        for done in history:
            advance(_status(done, objective.metric.quality))
        while len(history) < stage.epochs and not (
            stage.until == "plateau" and _plateaued(history, options.patience)
        ):
            if stage.told is not None:
                stage.told(history)
            history.append(trainer.epoch(len(history)))
            advance(_status(history[-1], objective.metric.quality))
            checkpoint.save(model, optimizer, history)
    if options.recalibrate and history:
        history[-1] = trainer.recalibrated(history[-1])
    if stage.told is not None:
        stage.told(history)
    if peers.world > 1:
        peers.agree(f"the weights after {stage.name}", weights_hash(model))
    model.eval()
    return history


class _Trainer:
    """One stage of training: what `train` is given, and the view of the network that steps call."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        options: TrainingOptions,
        stage: TrainingStage,
        device: str,
        peers: Processes,
    ) -> None:
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.options, self.stage, self.device, self.peers = options, stage, device, peers
        self.schedule = stage.schedule(options)
        if options.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What is called in a step; the network itself is what is evaluated, saved, exported and grown.
        self.called = data_parallel(model, peers, sync_batch_norm=options.sync_batch_norm)
        if options.compile:
            self.called = compiled(self.called, device)

    def epoch(self, number: int) -> Epoch:
        """Train epoch ``number``, from 0, and judge the network after it."""
        stage = self.stage
        rate = self.schedule.at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_everything(stage.seed, stage.name, number)
        batches = pieces(self.objective.loaders.train, self.peers, stage.seed, stage.name, number)
        formats = (
            contiguous_where_needed(self.model) if self.options.channels_last else contextlib.nullcontext()
        )
        with compiler_errors(self.options.compile), _unused_parameters(self.peers), formats:
            self.model.train()
            train_loss, samples = self._steps(batches, f"{stage.name}, epoch {number + 1}")
        share_buffers(self.model, self.peers)
        return self._judged(Epoch(stage.name, number + 1, rate, train_loss, math.nan, math.nan, samples))

    def recalibrated(self, last: Epoch) -> Epoch:
        """Average the running statistics of batch norm again; the last epoch with the figures after it."""
        stage, options, peers = self.stage, self.options, self.peers
        # Seeded by itself, so that a training resumed after its last epoch gets the same statistics.
        seed_everything(stage.seed, stage.name, "recalibrate")

        def prepared() -> Iterator[tuple[Any, Any]]:
            batches = self.objective.loaders.train
            for piece in pieces(batches, peers, stage.seed, stage.name, "recalibrate"):
                yield self._inputs(piece.inputs), piece.target

        with self._autocast():
            seen = recalibrate(self.model, prepared(), samples=-(-options.recalibrate // peers.world))
        share_buffers(self.model, peers)
        return self._judged(last) if seen else last

    def _judged(self, epoch: Epoch) -> Epoch:
        held_out = evaluate(
            self.model,
            self.objective.loaders.validation,
            self.objective,
            device=self.device,
            peers=self.peers,
        )
        return replace(epoch, validation_loss=held_out.loss, validation_score=held_out.score)

    def _steps(self, batches: Iterable[Piece], where: str) -> tuple[float, int]:
        """Train on these batches; the mean loss, and the samples of all processes."""
        total, samples, waiting = 0.0, 0.0, 0
        accumulate = self.options.accumulate
        self.optimizer.zero_grad(set_to_none=True)
        for piece in batches:
            steps = waiting + 1 == accumulate
            with _gradients_kept(self.called, not (steps or piece.last)):
                value = self._backward(piece, where)
            waiting += 1
            if steps:
                self._step()
                waiting = 0
            total += value * piece.samples
            samples += piece.samples
        if waiting:
            # The last step of an epoch may have fewer batches; its gradient is still their mean.
            self._step(accumulate / waiting)
        if self.peers.world > 1:
            total, samples = self.peers.totals(total, samples, device=torch.device("cpu"))
        if samples == 0:
            raise UsageError(f"{where}: the training loader gave no batches; look at the recipe's data")
        return total / samples, round(samples)

    def _backward(self, piece: Piece, where: str) -> float:
        """Add the gradient of a piece to those that wait; its loss."""
        target = to_device(piece.target, self.device)
        with self._autocast(), _single_samples(where):
            output = call_user_code("the network", self.called, *self._inputs(piece.inputs))
            loss = self.objective.loss_fn(output, target)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"{where}: the loss is {value}; lower the recipe's train.learning_rate, or look at the data"
            )
        (loss * (piece.weight / self.options.accumulate)).backward()
        return value

    def _step(self, factor: float = 1.0) -> None:
        """One step of the optimizer by ``factor`` times the gradients that wait."""
        if factor != 1.0:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.options.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _inputs(self, inputs: Any) -> tuple[Any, ...]:
        """What ``forward`` is called with."""
        values = as_tuple(to_device(inputs, self.device))
        return tuple(channels_last(value) for value in values) if self.options.channels_last else values


@contextlib.contextmanager
def _single_samples(where: str) -> Iterator[None]:
    """What torch says of a batch norm that sees a single value per channel, with what to do."""
    try:
        yield
    except UsageError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"{where}: batch norm cannot train on a batch of one sample; set drop_last = True in the "
            "training loader, or choose another batch_size"
        ) from error


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


def _gradients_kept(called: nn.Module, kept: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, gradients are summed up in this process instead of averaged over all of them."""
    inner = getattr(called, "_orig_mod", called)
    if kept and isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.no_sync()
    return contextlib.nullcontext()


def _plateaued(history: list[Epoch], patience: int) -> bool:
    losses = [epoch.validation_loss for epoch in history]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _status(epoch: Epoch, quality: Quality) -> str:
    text = (
        f"rate {epoch.learning_rate:.2g}, loss {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f}"
    )
    return text if quality == METRICS["loss"] else f"{text}, {quality.told(epoch.validation_score)}"
