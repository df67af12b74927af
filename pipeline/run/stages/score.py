"""How well an ONNX file does on the test set of a recipe, in onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from growpipe.checks.measure.sessions import open_session
from growpipe.data.loader_items import as_tuple, length_of, pairs
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import load_model
from growpipe.metrics import score_of
from growpipe.quality import Score
from growpipe.run.task import Task, as_feed, input_names
from growpipe.torch_module.outputs import filled

__all__ = ["score_on_test"]


def score_on_test(task: Task, path: Path) -> Score:
    """The recipe's metric of an ONNX file on the test set, with its interval.

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
    return score_of(value, tally.standard_error(), samples, metric.quality)
