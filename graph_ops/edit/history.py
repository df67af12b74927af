"""The growth history of a model, kept in the model's own metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.documents import json_document, parse_json
from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = ["HISTORY_KEY", "GrowthStep", "read_history", "record_growth"]

HISTORY_KEY = "growpipe.growth"
"""The metadata property that holds the history: a JSON list, the oldest step first."""


@dataclass(frozen=True)
class GrowthStep:
    """One application of a plan.

    Attributes:
        parent_hash: the structure hash of the graph that grew.
        parameters_hash: the hash of the parameters of that graph that the plan touches.
        plan_hash: `SplitPlan.content_hash`.
        scheme: what made the plan.
        epsilon: the step ε.
        widths: by group that split, its width before and after.
        predicted_change: predicted change of loss; None without a prediction.
        realised_change: measured change of loss at the split; None if it was not measured.
    """

    parent_hash: str
    parameters_hash: str
    plan_hash: str
    scheme: str
    epsilon: float
    widths: Mapping[str, tuple[int, int]]
    predicted_change: float | None = None
    realised_change: float | None = None


def record_growth(model: ir.Model, parent_hash: str, plan: SplitPlan) -> None:
    """Append the step that ``plan`` took to the history of ``model``, the grown model.

    Args:
        model: the grown model; its metadata is changed.
        parent_hash: `ChannelGroups.graph_hash` of the graph that grew.
        plan: the plan that was applied.

    Raises:
        UnsafeModel: the history that is there is damaged.
    """
    step = GrowthStep(
        parent_hash=parent_hash,
        parameters_hash=plan.parameters_hash,
        plan_hash=plan.content_hash,
        scheme=plan.scheme,
        epsilon=plan.epsilon,
        widths={group.group: (group.width, group.grown_width) for group in plan.groups},
        predicted_change=_finite(plan.predicted_change),
        realised_change=_finite(plan.realised_change),
    )
    steps = [asdict(past) for past in (*read_history(model), step)]
    model.metadata_props[HISTORY_KEY] = json_document(steps, indent=None)


def read_history(model: ir.Model) -> tuple[GrowthStep, ...]:
    """The growth history of a model, the oldest step first; empty for one that never grew.

    Raises:
        UnsafeModel: the history is damaged.
    """
    text = model.metadata_props.get(HISTORY_KEY)
    if text is None:
        return ()
    try:
        return tuple(_step(entry) for entry in parse_json(text))
    except (UsageError, TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise UnsafeModel(
            f"the growth history in the model's metadata ({HISTORY_KEY}) is damaged; remove that entry"
        ) from None


def _step(entry: dict[str, Any]) -> GrowthStep:
    return GrowthStep(
        **{key: str(entry[key]) for key in ("parent_hash", "parameters_hash", "plan_hash", "scheme")},
        epsilon=_number(entry["epsilon"]),
        widths={str(name): (int(before), int(after)) for name, (before, after) in entry["widths"].items()},
        predicted_change=_optional(entry["predicted_change"]),
        realised_change=_optional(entry["realised_change"]),
    )


def _optional(number: Any) -> float | None:
    return None if number is None else _number(number)


def _number(number: Any) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not finite")
    return float(number)


def _finite(number: float | None) -> float | None:
    """JSON has no infinities."""
    return number if number is not None and math.isfinite(number) else None
