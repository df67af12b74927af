"""How well an ONNX file does on the test set of a recipe, in onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from scipy.special import ndtri

from growpipe.checks.measure.accuracy import wilson_interval
from growpipe.checks.measure.sessions import open_session
from growpipe.data.loader_items import as_tuple, length_of, pairs
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import load_model
from growpipe.quality import METRICS
from growpipe.run.facts import Score
from growpipe.run.task import Task, as_feed, input_names
from growpipe.torch_module.outputs import filled

__all__ = ["score_on_test"]

_LEVEL = 0.95
_SHARES = (METRICS["accuracy"], METRICS["top5_accuracy"])


def score_on_test(task: Task, path: Path) -> Score:
    """The recipe's metric of an ONNX file on the test set, with its interval.

    The interval of a share of right samples is Wilson's, that of another metric is 1.96 standard errors wide
    on both sides. Targets of one sample are not independent of each other: samples are counted.

    Raises:
        UsageError: the test loader gives nothing, or the metric fails or is not finite.
        CheckFailed: the model cannot be run.
    """
    metric = task.objective.metric
    session, names = open_session(path), input_names(load_model(path))
    template = task.output_template()
    tally, samples = metric.tally(), 0
    for inputs, target in pairs(task.objective.loaders.test):
        outputs = session.run(as_feed(names, as_tuple(inputs)))
        output = filled(template, [torch.from_numpy(array) for array in outputs.values()])
        count = length_of(inputs)
        tally.add(output, target, count)
        samples += count
    if samples == 0:
        raise UsageError("the test loader gave no batches; look at the recipe's data")
    value = tally.value()
    if not math.isfinite(value):
        raise UsageError(f"the {metric.quality.name} is {value} on the test set; look at the data")
    error = tally.standard_error()
    if error is None:
        return Score(value, None, None, None, samples, metric.quality)
    if metric.quality in _SHARES:
        error = math.sqrt(value * (1 - value) / samples)
        low, high = wilson_interval(value, samples, _LEVEL)
    else:
        reach = float(ndtri(0.5 + _LEVEL / 2)) * error
        low, high = value - reach, value + reach
    return Score(value, low, high, error, samples, metric.quality)
