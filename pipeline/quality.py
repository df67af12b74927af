"""What networks are judged by: the metrics that a recipe may name, in words. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT_METRICS", "METRICS", "METRICS_OF_TASKS", "Quality", "TaskName"]

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
"""The metrics that a recipe may name; `growpipe.training.metrics` computes them."""

_OF_LABELS = ("accuracy", "f1", "mean_iou", "loss")
METRICS_OF_TASKS: dict[TaskName, tuple[str, ...]] = {
    "classification": (*_OF_LABELS, "top5_accuracy"),
    "binary": _OF_LABELS,
    "multilabel": _OF_LABELS,
    "regression": ("rmse", "mae", "r2", "loss"),
}
"""Which of them fit a task."""

DEFAULT_METRICS: dict[TaskName, str] = {task: fitting[0] for task, fitting in METRICS_OF_TASKS.items()}
