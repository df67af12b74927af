"""Growth in the ``Trainer`` of transformers: ``from growpipe.callbacks import TrainerGrowth``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from growpipe.analyser.options import GrowthOptions
from growpipe.budgets.budget import GrowthBudget
from growpipe.callbacks.batches import Converted, apart, tensor_names
from growpipe.callbacks.grower import Grower, Growth, Learner, kept_random_state
from growpipe.callbacks.schedule import When
from growpipe.data.loader_items import length_of
from growpipe.graph_ops.errors import UsageError
from growpipe.progress import log
from growpipe.suggestions import did_you_mean
from growpipe.torch_module.called import called_as
from growpipe.torch_module.grow_module import save_grown
from growpipe.torch_module.outputs import LossFunction
from growpipe.torch_module.state_file import read_state
from growpipe.tracking.trackers import Tracker

__all__ = ["GROWN", "TrainerGrowth"]

GROWN = "grown.safetensors"
"""The file in a checkpoint that `growpipe.load_grown` reads."""


class TrainerGrowth(TrainerCallback):
    """Lets the model of a ``Trainer`` grow while it is trained.

    The model object stays the same and becomes wider. The optimizer and its state, the schedule of the
    learning rate, averages of the weights and the scale of a ``GradScaler`` go on. The analysis runs in
    evaluation mode and in the precision of the parameters, on samples of the training set.

    Every checkpoint that is saved after a growth also holds ``grown.safetensors``. To load it, or to resume
    from it, build the model as before training::

        model = growpipe.load_grown(build(), "out/checkpoint-300/grown.safetensors")
        Trainer(model, ..., callbacks=[TrainerGrowth(...)]).train(resume_from_checkpoint="out/checkpoint-300")

    The folder of such a checkpoint, or one of ``save_pretrained``, may be given to ``load_grown`` as well.
    ``from_pretrained`` builds the model from a configuration, which cannot say that layers differ in width,
    and refuses them.

    Attributes:
        history: the growths so far.

    Example:
        >>> TrainerGrowth(When(steps=(200, 400)), GrowthBudget(macs=2_000_000))  # doctest: +SKIP
        >>> TrainerGrowth(When(plateau=Plateau("eval_loss")), 2.0, freeze=("*embed*",))  # doctest: +SKIP
    """

    def __init__(
        self,
        when: When,
        budget: GrowthBudget | float | None = None,
        growth: GrowthOptions | float | None = None,
        *,
        loss: LossFunction | None = None,
        averaged: Sequence[nn.Module] = (),
        trackers: Sequence[Tracker] = (),
        **options: Any,
    ) -> None:
        """Say when and how far to grow.

        Args:
            when: when to grow.
            budget: what the model may grow to; a number is a multiple of the parameters that training began
                with. None bounds each growth by its share of channels alone.
            growth: the growth options, or the share of channels to add each time.
            loss: ``(logits, labels)`` to the mean loss. None takes the loss that the model itself computes;
                give the function that the ``Trainer`` uses if it is another one (``compute_loss_func``).
            averaged: averages of the model's weights, each a ``torch.optim.swa_utils.AveragedModel``.
            trackers: are told what the trainer logs, and every growth; closed at the end of training. See
                `growpipe.tracking.trackers`.
            options: single options of the analysis by name, as `growpipe.analyse` takes them.

        Raises:
            UsageError: one makes no sense.
        """
        self._grower = Grower(when, budget, growth, options, trackers)
        self._loss = loss
        self._averaged = tuple(averaged)
        self._logged: set[str] = set()

    @property
    def history(self) -> list[Growth]:
        """The growths so far."""
        return self._grower.history

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot work, before any step; after a resumption, go on where the checkpoint was."""
        _refuse(args, self._grower.cues.when)
        if state.global_step and not self.history:
            self._resume(args, state)
        with kept_random_state(), self._learner(args, kwargs) as learner:
            self._grower.begin(learner, state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Grow if growth is due: no gradient waits now."""
        if not self._grower.cues.due:
            return
        with self._learner(args, kwargs) as learner:
            first = not self.history
            grown = self._grower.grow(learner, state.global_step)
        if grown is not None and first:
            log(f"checkpoints hold {GROWN} from now on: growpipe.load_grown(model, path) reads it")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look whether this is a step to grow after."""
        self._grower.cues.step(state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look whether this is an epoch to grow after."""
        self._grower.cues.epoch(round(state.epoch or 0))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Watch the metric of the plateau; tell the trackers."""
        self._watch(logs or {})
        self._grower.track(logs or {}, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the trackers."""
        self._grower.end()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a metric that neither training nor evaluation logs.

        Raises:
            UsageError: there is none of that name.
        """
        plateau = self._grower.cues.when.plateau
        if plateau is not None and plateau.metric not in self._logged:
            hint = did_you_mean(plateau.metric, self._logged) or f"; there are {sorted(self._logged)}"
            raise UsageError(f"no metric {plateau.metric!r} was logged{hint}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what `growpipe.load_grown` reads beside the checkpoint of a grown model."""
        folder = _checkpoint(args, state)
        if self._grower.cues.done and state.is_world_process_zero and folder.is_dir():
            save_grown(kwargs["model"], folder / GROWN, **{_SEED: str(self._grower.seed_parameters)})

    def _watch(self, logs: Mapping[str, Any]) -> None:
        self._logged |= logs.keys()
        plateau = self._grower.cues.when.plateau
        if plateau is not None and plateau.metric in logs:
            self._grower.cues.value(float(logs[plateau.metric]))

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        """Replay what was due until the checkpoint; what was due at its very end is due now."""
        cues = self._grower.cues
        per_epoch = state.global_step / state.epoch if state.epoch else 0.0
        epochs = {round(epoch * per_epoch): epoch for epoch in cues.when.epochs}
        logs: dict[int, list[Mapping[str, Any]]] = {}
        for entry in state.log_history:
            logs.setdefault(int(entry["step"]), []).append(entry)
        for step in sorted({*cues.when.steps, *epochs, *logs}):
            if step > state.global_step:
                break
            cues.step(step)
            cues.epoch(epochs.get(step, 0))
            for values in logs.get(step, []):
                self._watch(values)
            if cues.due and step < state.global_step:
                cues.grown()
        if cues.done:
            self._grower.seed_parameters = _seed_parameters(_checkpoint(args, state) / GROWN)

    @contextlib.contextmanager
    def _learner(self, args: TrainingArguments, kwargs: Mapping[str, Any]) -> Iterator[Learner]:
        """The model, called as the analyser calls it, while the block runs."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        loader = apart(kwargs["train_dataloader"], args.train_batch_size)
        labels = [*(args.label_names or ["labels"])]
        names = tensor_names(next(iter(loader), None))
        call: Callable[..., Any] = _loss_and_logits
        if self._loss is not None:
            if labels[0] not in names:
                raise UsageError(f"a batch has no key {labels[0]!r} for the loss; it has {list(names)}")
            names = tuple(name for name in names if name not in labels)
            call = _logits

        def pair(batch: Mapping[str, Any]) -> tuple[Any, Any]:
            inputs = tuple(batch[name] for name in names)
            return inputs, torch.zeros(length_of(inputs)) if self._loss is None else batch[labels[0]]

        with called_as(model, names, call):
            yield Learner(
                model,
                self._loss or _own_loss,
                Converted(loader, pair),
                getattr(optimizer, "optimizer", optimizer),  # accelerate wraps it
                self._averaged,
            )


_SEED = "growpipe.seed_parameters"


def _seed_parameters(path: Path) -> int:
    """The parameters of the model that training began with, from a checkpoint of a grown one."""
    return int(read_state(path, "the grown weights of the checkpoint")[1][_SEED])


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _refuse(args: TrainingArguments, when: When) -> None:
    """Say at once which settings cannot go with growth."""
    if args.world_size > 1 or args.n_gpu > 1:
        raise UsageError(
            "the model cannot grow in several processes or on several devices: they hold on to its old "
            "parameters; train on one device"
        )
    if args.deepspeed or args.fsdp or args.torch_compile:
        name = "deepspeed" if args.deepspeed else "fsdp" if args.fsdp else "torch_compile"
        raise UsageError(
            f"the model cannot grow under {name}, which holds on to its old parameters; turn it off"
        )
    if args.load_best_model_at_end:
        raise UsageError(
            "load_best_model_at_end cannot go back to a checkpoint of another width; set it to False, and "
            f"read {GROWN} of the best checkpoint with growpipe.load_grown"
        )
    plateau = when.plateau
    if plateau is not None and plateau.metric.startswith("eval_") and args.eval_strategy == "no":
        raise UsageError(
            f"{plateau.metric!r} is never measured: set eval_strategy, or watch 'loss', the training loss"
        )


def _loss_and_logits(forward: Callable[..., Any], values: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the model computes when it is given labels."""
    output = forward(**values)
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise UsageError(
            f"the model gives no loss for a batch with the keys {list(values)}; add the labels, or give "
            "TrainerGrowth the loss"
        )
    return (loss, *_scores(output, skip=1))


def _logits(forward: Callable[..., Any], values: dict[str, Any]) -> torch.Tensor:
    """What the model computes without labels."""
    return _scores(forward(**values), skip=0)[0]


def _scores(output: Any, skip: int) -> tuple[torch.Tensor, ...]:
    """The logits, in a tuple; empty if there are none."""
    if isinstance(output, torch.Tensor):
        return (output,)
    logits = output.get("logits") if isinstance(output, Mapping) else next(iter(output[skip:]), None)
    return (logits,) if isinstance(logits, torch.Tensor) else ()


def _own_loss(output: Iterable[torch.Tensor], _: Any) -> torch.Tensor:
    return next(iter(output))
