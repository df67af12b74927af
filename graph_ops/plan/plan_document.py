"""The document of a plan on disk, ``plan.json``, as a type: what is not of this form is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from growpipe.graph_ops.axes.layouts import AxisRole
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import read_json

__all__ = ["DOCUMENT", "TENSORS", "PlanDocument", "plan_files"]

DOCUMENT, TENSORS = "plan.json", "plan.safetensors"
"""The two files of a plan."""

Size = Annotated[int, Field(ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Axis(_Part):
    dim: Any
    role: AxisRole


class _Group(_Part):
    group: str
    width: Size
    grown_width: Size
    displaced: dict[str, Size]
    predicted_change: float | None
    evenly: bool = False


class _ModuleSize(_Part):
    module: str
    attribute: str
    dim: Any
    times: Annotated[int, Field(ge=1, lt=2**31)]
    equals: list[Any] = []


class PlanDocument(_Part):
    """What ``plan.json`` holds; the fields are those of `growpipe.graph_ops.plan.split_plan.SplitPlan`.

    Attributes:
        widths: the width of every channel group that a layout names.
        layouts: by parameter its axes; ``dim`` as of `growpipe.graph_ops.axes.dims.dim_to_json`.
        offsets: by parameter what the network adds to it before it uses it; 0 for those that are absent.
    """

    format_version: int
    scheme: str
    c: FiniteFloat | None
    metric: str
    surrogate: str | None
    epsilon: FiniteFloat
    predicted_change: float | None
    realised_change: float | None
    graph_hash: str
    parameters_hash: str
    groups: list[_Group]
    widths: dict[str, Size]
    layouts: dict[str, list[_Axis]]
    offsets: dict[str, FiniteFloat] = {}
    notes: dict[str, Any]
    module_sizes: list[_ModuleSize] = []
    unproved: list[str] = []


def plan_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that `SplitPlan.save` wrote into a folder; empty if it holds no plan."""
    try:
        document = read_json(folder / DOCUMENT, "the plan", inside=folder)
    except UsageError:
        return ()
    is_plan = isinstance(document, dict) and {"format_version", "graph_hash", "layouts"} <= document.keys()
    return (DOCUMENT, TENSORS) if is_plan else ()
