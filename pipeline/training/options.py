"""The options of training, a recipe's ``[train]``. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from growpipe.validation import Section

__all__ = ["TrainingOptions"]

Optimizer = Annotated[str, Field(pattern=r"^(.+:)?[A-Za-z_][A-Za-z0-9_.]*$")]


class TrainingOptions(Section):
    """How a network is trained, in every stage of a run.

    Before the last growth the rate is constant. The last stage is the long one: there the rate falls to zero
    along a cosine. (Growing early and training long afterwards is worth several points.)

    Attributes:
        optimizer: an optimizer of `torch.optim` by its name, in any case, or a class of your own. LBFGS,
            ASGD, SparseAdam, Muon and others whose state cannot follow growth are refused before training.
        optimizer_options: further arguments of the optimizer, such as ``{ betas = [0.9, 0.95] }``.
        learning_rate: the constant rate, and the rate that the cosine starts from.
        momentum: of SGD.
        weight_decay: of weights; biases, norms and other vectors are not decayed.
        batch_size: the samples of a step; under ``torchrun`` those of all processes together.
        epochs: the most epochs of a stage before the last growth.
        final_epochs: the epochs of the last stage.
        warm_up: the first epochs of a freshly initialised network, in which the rate rises along a line.
        anneal: the share of the last stage along which the rate falls; the epochs before have the constant
            rate.
        patience: with ``trigger = "plateau"``, a stage ends once the validation loss has not improved for
            this many epochs.
        trigger: what ends a stage before the last growth: ``plateau``, or ``period`` (after ``epochs``).
        accumulate: the batches of one step.
        precision: of products, under autocast; parameters stay float32.
        channels_last: images are kept in torch's channels-last memory format.
        threads: the threads of torch on the CPU; None for all cores. A small network trains fastest on one.
        recalibrate: the training samples on which the running statistics of batch norm are averaged at the
            end of a stage (see `growpipe.recalibrate`); 0 keeps training's running averages.
        compile: steps run through `torch.compile`.
        weights: a file of trained weights (see `growpipe.torch_module.weights`), relative to the recipe. The
            run begins with them, and trains nothing before the first growth.
        sync_batch_norm: under ``torchrun``, batch norm sees the whole batch (CUDA only).
    """

    optimizer: Optimizer = "adamw"
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    learning_rate: float = Field(default=1e-2, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=1e-2, ge=0.0)
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=30, ge=1)
    final_epochs: int = Field(default=60, ge=1)
    warm_up: int = Field(default=0, ge=0)
    anneal: float = Field(default=1.0, ge=0.0, le=1.0)
    patience: int = Field(default=5, ge=1)
    trigger: Literal["plateau", "period"] = "plateau"
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    threads: int | None = Field(default=None, ge=1)
    recalibrate: int = Field(default=1024, ge=0)
    compile: bool = False
    weights: str | None = None
    sync_batch_norm: bool = False
