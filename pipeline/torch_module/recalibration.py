"""Running statistics of batch norm, estimated again: growth at ε > 0 leaves stale ones behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.outputs import evaluation_mode
from growpipe.user_code import call_user_code

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Any, Any]], *, samples: int = 1024) -> int:
    """Estimate the running mean and variance of every batch norm of ``model`` on real batches.

    They become the plain average of the batches' statistics instead of training's exponential one, which
    remembers weights that are gone. Everything but batch norm runs as in evaluation. Parameters are not
    touched, nor is a batch norm that is frozen (momentum 0, or out of reach of ``model.train()``). At ε = 0
    the copies of a channel get the statistics of the channel, so that a network recalibrated and then grown
    equals the same network grown and then recalibrated on the same batches.

    Args:
        model: changed in place; its mode is put back.
        batches: gives ``(inputs, target)`` pairs, at least one; on the model's device.
        samples: how many are looked at, rounded up to whole batches; at least 1.

    Returns:
        The samples that were looked at: 0 if there are no running statistics.

    Raises:
        UsageError: ``batches`` is empty, or a running statistic is not finite.
    """
    if samples < 1:
        raise UsageError(f"recalibration needs at least one sample, not {samples}")
    seen = 0
    with evaluation_mode(model), _averaging(model) as norms:
        if not norms:
            return 0
        for inputs, _ in batches:
            arguments = as_tuple(inputs)
            call_user_code("the network", model, *arguments)
            seen += len(next(value for value in arguments if isinstance(value, torch.Tensor)))
            if seen >= samples:
                break
        if seen == 0:
            raise UsageError(
                "recalibration got no batches; give a loader with data that can be iterated again"
            )
        for name, module in norms.items():
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None and not bool(torch.isfinite(statistic).all()):
                    raise UsageError(
                        f"the statistics of {name!r} are not finite on the recalibration batches; "
                        "lower the learning rate, or look at the data"
                    )
    return seen


@contextmanager
def _averaging(model: nn.Module) -> Iterator[dict[str, _BatchNorm]]:
    """Inside, batch norm alone trains, and averages cumulatively.

    Momenta are restored afterwards, and after an error the statistics too; modes are the caller's to restore.
    A batch norm that training leaves alone, because its momentum is 0 or ``model.train()`` does not reach it,
    is left alone here.
    """
    model.train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.training
        and module.running_mean is not None
        and module.momentum != 0
    }
    model.eval()
    momenta = {name: module.momentum for name, module in norms.items()}
    buffers = {
        name: {kind: buffer.clone() for kind, buffer in module.named_buffers()}
        for name, module in norms.items()
    }
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None  # torch's name for the cumulative average
        module.training = True
    try:
        yield norms
    except BaseException:
        for name, module in norms.items():
            for kind, buffer in module.named_buffers():
                buffer.copy_(buffers[name][kind])
        raise
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
            # How many batches the network was trained on is no business of recalibration.
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(buffers[name]["num_batches_tracked"])
