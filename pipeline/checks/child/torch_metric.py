"""A metric that is code of the user: a function of torch's tensors, as recipes have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from growpipe.checks.measure.judge import Judge, Judged, outputs_of
from growpipe.checks.measure.sessions import Session
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError
from growpipe.user_code import call_user_code, load_reference

__all__ = ["judge_by_own_metric"]


def judge_by_own_metric(
    session: Session, inputs: Mapping[str, AnyArray], targets: AnyArray, judge: Judge
) -> Judged:
    """What a user's metric says, a function of ``(output, target)`` or a class that gathers the batches.

    The output is the one that the judge names, else the only one, else a tuple of all.

    Raises:
        UsageError: the metric fails or does not give what it should, or inputs and targets do not fit.
        CheckFailed: the model cannot be run.
    """
    import torch

    own = load_reference(judge.name, None)
    options = dict(judge.metric_options)
    gathers = hasattr(own, "update") and hasattr(own, "compute")
    gatherer = call_user_code(judge.name, own, **options) if gathers else None
    values: list[AnyArray] = []
    single = True
    for outputs, wanted in outputs_of(session, inputs, targets, judge.batch_size):
        output, target = _chosen(outputs, judge.output), torch.from_numpy(np.ascontiguousarray(wanted))
        if gatherer is not None:
            call_user_code(judge.name, gatherer.update, output, target)
            continue
        found = call_user_code(judge.name, own, output, target, **options)
        told = torch.as_tensor(found).detach().to(torch.float64).reshape(-1).numpy()
        if len(told) not in (1, len(wanted)):
            raise UsageError(
                f"{judge.name} gave {len(told)} values for {len(wanted)} samples; give one for each, or "
                "their mean"
            )
        single &= len(told) == len(wanted)
        values.append(np.broadcast_to(told, (len(wanted),)))
    if gatherer is not None:
        return Judged(float(call_user_code(judge.name, gatherer.compute)), len(targets), None)
    means = np.concatenate(values)
    rows = np.stack([means, np.ones_like(means)], axis=1) if single else None
    return Judged(float(means.mean()), len(targets), rows)


def _chosen(outputs: Mapping[str, AnyArray], name: str | None) -> Any:
    import torch

    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in outputs.items()}
    if name is not None:
        if name not in tensors:
            raise UsageError(f"the model has no output {name!r}; it has {list(tensors)}")
        return tensors[name]
    return next(iter(tensors.values())) if len(tensors) == 1 else tuple(tensors.values())
