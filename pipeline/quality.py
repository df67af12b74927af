"""What networks are judged by: the metrics that a recipe or a policy may name, in words. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from growpipe.graph_ops.errors import UsageError

__all__ = ["DEFAULT_METRICS", "METRICS", "METRICS_OF_TASKS", "Quality", "Score", "TaskName", "quality_of"]

TaskName = Literal["classification", "binary", "multilabel", "regression"]


@dataclass(frozen=True)
class Quality:
    """A metric in words.

    Attributes:
        name: what people call it, as in ``accuracy``.
        lower_is_better: whether a smaller value is a better network.
        percent: whether values lie between 0 and 1 and are shown in percent.
    """

    name: str
    lower_is_better: bool = False
    percent: bool = False

    def shown(self, value: float) -> str:
        """A value as people read it."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    def told(self, value: float) -> str:
        """A value with its name; an accuracy is known by its percent sign."""
        return self.shown(value) if self.name == "accuracy" else f"{self.name} {self.shown(value)}"

    def scaled(self, value: float) -> float:
        """A value as it stands on the axis of a chart, whose label says %, if it is in percent."""
        return 100 * value if self.percent else value

    def axis(self, of: str) -> str:
        """The label of an axis of a chart; ``of`` is what comes before the name, as in ``test``."""
        unit = ", %" if self.percent else ""
        return f"{of} {self.name}{unit}" + (" (lower is better)" if self.lower_is_better else "")

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is of the better network."""
        return first < second if self.lower_is_better else first > second


@dataclass(frozen=True)
class Score:
    """How well a network does on a set.

    Attributes:
        value: of the metric.
        low: the lower end of the 95 % interval of ``value``; None without one.
        high: the upper end of the 95 % interval of ``value``; None without one.
        standard_error: of ``value``; None if the metric does not say how single samples do.
        samples: of the set.
        quality: the metric, in words.
    """

    value: float
    low: float | None
    high: float | None
    standard_error: float | None
    samples: int
    quality: Quality

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.value, self.high) if end is not None]
        ordered = all(a <= b + 1e-9 * max(1.0, abs(b)) for a, b in itertools.pairwise(ends))
        if not all(map(math.isfinite, ends)) or not ordered or self.samples < 1:
            raise UsageError(
                f"not a score: {self.value} in [{self.low}, {self.high}], {self.samples} samples"
            )


METRICS = {
    "accuracy": Quality("accuracy", percent=True),
    "top5_accuracy": Quality("top-5 accuracy", percent=True),
    "f1": Quality("F1", percent=True),
    "mean_iou": Quality("mean IoU", percent=True),
    "mae": Quality("MAE", lower_is_better=True),
    "rmse": Quality("RMSE", lower_is_better=True),
    "r2": Quality("R²"),
    "loss": Quality("loss", lower_is_better=True),
}
"""The metrics that have a name; `growpipe.metrics` computes them, and the loss is the recipe's own."""

_OF_LABELS = ("accuracy", "f1", "mean_iou", "loss")
METRICS_OF_TASKS: dict[TaskName, tuple[str, ...]] = {
    "classification": (*_OF_LABELS, "top5_accuracy"),
    "binary": _OF_LABELS,
    "multilabel": _OF_LABELS,
    "regression": ("rmse", "mae", "r2", "loss"),
}
"""Which of them fit a task."""

DEFAULT_METRICS: dict[TaskName, str] = {task: fitting[0] for task, fitting in METRICS_OF_TASKS.items()}


def quality_of(
    task: TaskName, metric: str | None, options: Mapping[str, Any], lower_is_better: bool | None
) -> Quality:
    """What networks are judged by, in words.

    Args:
        task: gives the metric if none is named.
        metric: the name of one that fits the task, or ``file.py:name``.
        options: of a metric of the user's own.
        lower_is_better: of a metric of the user's own.

    Raises:
        ValueError: the metric does not fit the task, or the words about it do not fit the metric.
    """
    if metric is None or ":" not in metric:
        if lower_is_better is not None or options:
            raise ValueError("lower_is_better and metric_options are of a metric of your own; remove them")
        name = DEFAULT_METRICS[task] if metric is None else metric
        if name not in METRICS_OF_TASKS[task]:
            fitting = ", ".join(METRICS_OF_TASKS[task])
            raise ValueError(
                f"a {task} task has no metric {name!r}; the metrics are {fitting}, or file.py:name"
            )
        return METRICS[name]
    if lower_is_better is None:
        raise ValueError(f"set lower_is_better = true or false, for the metric {metric}")
    name = metric.rpartition(":")[2].rpartition(".")[2].replace("_", " ")
    return Quality(name, lower_is_better=lower_is_better)
