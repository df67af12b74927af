"""What a model says to its users in its own metadata: how inputs are prepared, and how well it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import onnx_ir as ir
from pydantic import TypeAdapter, ValidationError

from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.documents import json_document, parse_json

__all__ = [
    "DESCRIPTION_KEY",
    "Description",
    "MeasuredOnTest",
    "describe",
    "drop_test_figure",
    "read_description",
]

DESCRIPTION_KEY = "growpipe.description"
"""The metadata property that holds it, as JSON."""


@dataclass(frozen=True)
class MeasuredOnTest:
    """How well the model did on a test set.

    Attributes:
        metric: its name, as in ``accuracy``.
        value: of the metric.
        low: the lower end of the 95 % interval; None without one.
        high: the upper end of the 95 % interval; None without one.
        samples: of the test set.
        percent: whether the value lies between 0 and 1 and is read in percent.
        lower_is_better: whether a smaller value is better.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    samples: int
    percent: bool = False
    lower_is_better: bool = False

    def __str__(self) -> str:
        def shown(value: float) -> str:
            return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" (95 % interval {shown(self.low)} to {shown(self.high)})"
        direction = ", lower is better" if self.lower_is_better else ""
        return f"{self.metric} {shown(self.value)}{interval} on {self.samples:,} test samples{direction}"


@dataclass(frozen=True)
class Description:
    """What a model says of itself.

    Attributes:
        preprocessing: how raw data become inputs, in words; empty if it is not known.
        test: how well it does; None if it was not measured.
    """

    preprocessing: str = ""
    test: MeasuredOnTest | None = None


_DESCRIPTIONS = TypeAdapter(Description)


def describe(model: ir.Model, description: Description) -> None:
    """Write a description into the metadata of ``model``, in the place of the one that is there."""
    model.metadata_props[DESCRIPTION_KEY] = json_document(asdict(description), indent=None)


def read_description(model: ir.Model) -> Description:
    """The description of a model; an empty one if it has none.

    Raises:
        UnsafeModel: it is damaged.
    """
    text = model.metadata_props.get(DESCRIPTION_KEY)
    if text is None:
        return Description()
    try:
        return _DESCRIPTIONS.validate_python(parse_json(text))
    except (UsageError, ValidationError):
        raise UnsafeModel(
            f"the description in the model's metadata ({DESCRIPTION_KEY}) is damaged; remove that entry"
        ) from None


def drop_test_figure(model: ir.Model) -> None:
    """Forget how well a model does, which has changed."""
    if DESCRIPTION_KEY in model.metadata_props:
        describe(model, Description(read_description(model).preprocessing))
