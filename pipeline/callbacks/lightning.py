"""Growth in a Lightning ``Trainer``: ``from growpipe.callbacks import LightningGrowth``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
from torch import nn
from torch.optim.swa_utils import AveragedModel

from growpipe.analyser.options import GrowthOptions
from growpipe.budgets.budget import GrowthBudget
from growpipe.callbacks.batches import Converted, apart
from growpipe.callbacks.grower import Grower, Growth, Learner, kept_random_state
from growpipe.callbacks.schedule import When
from growpipe.graph_ops.errors import UsageError
from growpipe.suggestions import did_you_mean
from growpipe.torch_module.export import named_tensors, wrapped_in
from growpipe.torch_module.grow_module import module_sizes, take_state
from growpipe.torch_module.outputs import LossFunction
from growpipe.tracking.trackers import Tracker

__all__ = ["LightningGrowth"]

_KEY = "growpipe"
"""Where a checkpoint keeps what cannot be seen from its tensors."""


class LightningGrowth(lightning.Callback):
    """Lets a network inside a ``LightningModule`` grow while it is trained.

    The network object stays the same and becomes wider. The optimizer and its state, the schedules, the scale
    of a ``GradScaler``, and the averages that Lightning's ``WeightAveraging`` and
    ``StochasticWeightAveraging`` keep go on. ``trainer.fit(module, ckpt_path=...)`` takes a checkpoint that
    was saved after growth: the freshly built network gets its widths first.
    ``load_from_checkpoint`` builds the module in its first size, and refuses a grown one. For other programs
    keep the network with `growpipe.save_grown`.

    Attributes:
        history: the growths so far.

    Example:
        >>> when, budget = When(epochs=(5, 10)), GrowthBudget(macs=2_000_000)
        >>> LightningGrowth(when, budget, net="net", loss=nn.CrossEntropyLoss())  # doctest: +SKIP
    """

    def __init__(
        self,
        when: When,
        budget: GrowthBudget | float | None = None,
        growth: GrowthOptions | float | None = None,
        *,
        net: str,
        loss: LossFunction,
        pair: Callable[[Any], tuple[Any, Any]] | None = None,
        trackers: Sequence[Tracker] = (),
        **options: Any,
    ) -> None:
        """Say when and how far to grow.

        Args:
            when: when to grow; the metric of a plateau is one that the module logs.
            budget: what the network may grow to; a number is a multiple of the parameters that training began
                with. None bounds each growth by its share of channels alone.
            growth: the growth options, or the share of channels to add each time.
            net: the attribute of the module that is the network; it takes its inputs by position.
            loss: ``(output, target)`` to the mean loss.
            pair: from a batch to ``(inputs, target)``; None if the batches are such pairs.
            trackers: are told what the trainer logs, and every growth; closed at the end of training. See
                `growpipe.tracking.trackers`.
            options: single options of the analysis by name, as `growpipe.analyse` takes them. ``averaged`` is
                a sequence of further averages of the network's weights.

        Raises:
            UsageError: one makes no sense.
        """
        self._averaged: Sequence[nn.Module] = tuple(options.pop("averaged", ()))
        self._grower = Grower(when, budget, growth, options, trackers)
        self._net, self._loss, self._pair = net, loss, pair
        self._step = 0
        self._validated: bool | None = None

    @property
    def history(self) -> list[Growth]:
        """The growths so far."""
        return self._grower.history

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the module give a freshly built network the widths of a checkpoint before it is loaded."""
        loaded = pl_module.on_load_checkpoint

        def widened(checkpoint: dict[str, Any]) -> None:
            if _KEY in checkpoint:
                self._widen(checkpoint, [pl_module, *_averages(trainer)])
            loaded(checkpoint)

        if stage == "fit":  # callbacks are asked after the module has been loaded
            pl_module.on_load_checkpoint = widened

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the module's own hook."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def _widen(self, checkpoint: dict[str, Any], modules: Sequence[nn.Module]) -> None:
        prefix, kept = f"{self._net}.", checkpoint[_KEY]
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        for module in modules:
            take_state(_network(module, self._net), {**tensors, **kept["beside"]}, kept["sizes"])

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the sizes of modules, and the buffers that a state dict leaves out."""
        model = _network(pl_module, self._net)
        held = model.state_dict().keys()
        checkpoint[_KEY] = {
            "sizes": module_sizes(model),
            "beside": {name: tensor for name, tensor in named_tensors(model).items() if name not in held},
        }

    def state_dict(self) -> dict[str, Any]:
        """When growth is due, for a checkpoint."""
        return {"cues": self._grower.cues.state(), "seed_parameters": self._grower.seed_parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was."""
        self._grower.cues.restore(state_dict["cues"])
        self._grower.seed_parameters = state_dict["seed_parameters"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what cannot work, before any step."""
        if trainer.world_size > 1:
            raise UsageError(
                "the network cannot grow in several processes: they hold on to its old parameters; train "
                "with devices=1"
            )
        if len(trainer.optimizers) != 1:
            raise UsageError(f"the module has {len(trainer.optimizers)} optimizers; growth works with one")
        self._step = trainer.global_step
        with kept_random_state():
            self._grower.begin(self._learner(trainer, pl_module), trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the trackers."""
        self._grower.end()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Grow if growth is due and no gradient waits."""
        if self._grower.cues.due and batch_idx % trainer.accumulate_grad_batches == 0:
            self._grower.grow(self._learner(trainer, pl_module), trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look whether this is a step to grow after."""
        if trainer.global_step != self._step:  # not in the middle of an accumulation
            self._step = trainer.global_step
            self._grower.cues.step(self._step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Watch the metric of the plateau, if validation logs it."""
        plateau = self._grower.cues.when.plateau
        if plateau is None or trainer.sanity_checking:
            return
        if self._validated is None:
            self._validated = plateau.metric in trainer.callback_metrics
        if self._validated:
            self._grower.cues.value(float(trainer.callback_metrics[plateau.metric]))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Look whether this is an epoch to grow after; watch the metric, if training logs it.

        Raises:
            UsageError: neither training nor validation logs a metric of that name.
        """
        self._grower.track(trainer.callback_metrics, trainer.global_step)
        self._grower.cues.epoch(trainer.current_epoch + 1)
        plateau = self._grower.cues.when.plateau
        if plateau is None or self._validated:
            return
        metrics = trainer.callback_metrics
        if plateau.metric not in metrics:
            hint = did_you_mean(plateau.metric, metrics) or f"; there are {sorted(metrics)}"
            raise UsageError(f"no metric {plateau.metric!r} was logged by the end of the epoch{hint}")
        self._grower.cues.value(float(metrics[plateau.metric]))

    def _learner(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> Learner:
        model = _network(module, self._net)
        loader = apart(trainer.train_dataloader)
        own = {id(parameter) for parameter in model.parameters()}
        return Learner(
            model,
            self._loss,
            loader if self._pair is None else Converted(loader, self._pair),
            trainer.optimizers[0],
            (*self._averaged, *(_network(average, self._net) for average in _averages(trainer))),
            tuple(parameter for parameter in module.parameters() if id(parameter) not in own),
        )


def _averages(trainer: Any) -> list[nn.Module]:
    """The averages of the module that other callbacks keep."""
    kept = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)
    return [
        average.module if isinstance(average, AveragedModel) else average
        for average in kept
        if isinstance(average, nn.Module)
    ]


def _network(module: nn.Module, name: str) -> nn.Module:
    """The network inside a module."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, nn.Module) or found is module:
        names = [child for child, _ in module.named_children()]
        hint = did_you_mean(name, names) or f"; there are {names}"
        raise UsageError(f"net={name!r} names no network inside {type(module).__name__}{hint}")
    inside = wrapped_in(found)
    if inside is not None:
        raise UsageError(
            f"net={name!r} is wrapped and holds on to old parameters; give what is inside, its .{inside}"
        )
    return found
