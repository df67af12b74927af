"""The policy: what is allowed, how far, and what is waived until when. TOML; unknown keys are refused."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from growpipe.checks.measure.memory import default_memory_mb
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_toml, read_toml, table_at
from growpipe.graph_ops.files.reading import reading
from growpipe.quality import METRICS_OF_TASKS, TaskName, quality_of
from growpipe.validation import explained

__all__ = [
    "AccuracyPolicy",
    "CostLimit",
    "CostPolicy",
    "LatencyPolicy",
    "Level",
    "NumericsPolicy",
    "Policy",
    "ProcessLimits",
    "Profile",
    "ProviderPolicy",
    "SafetyPolicy",
    "StructurePolicy",
    "Waiver",
    "load_policy",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0)]


Profile = Literal["default", "release"]
Level = Literal["error", "unless-it-runs", "warning", "off"]
"""Of a check that fails. ``unless-it-runs``: an error, but a warning if onnxruntime runs the model."""

_LEVELS: Mapping[Profile, Mapping[str, Level]] = {
    # A model that onnxruntime runs as its users run it does not fail for what it says of itself.
    "default": {
        "safety/domains": "unless-it-runs",
        "safety/leaks": "warning",
        "structure/checker": "unless-it-runs",
        "structure/names": "unless-it-runs",
        "structure/outputs": "warning",
        "structure/shapes": "unless-it-runs",
        "structure/unused": "warning",
        "structure/widths": "unless-it-runs",
    },
    "release": {},
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Waiver(_Strict):
    """One check that may fail for now."""

    check: str
    reason: Annotated[str, Field(min_length=1)]
    expires: datetime.date


class ProcessLimits(_Strict):
    """Limits of one request, and of the memory of both processes together."""

    seconds: Annotated[float, Field(gt=0)] = 120.0
    memory_mb: Positive = Field(default_factory=default_memory_mb)
    """Default: half of the machine's memory, at most 16384."""


class SafetyPolicy(_Strict):
    domains: tuple[str, ...] = ("ai.onnx", "ai.onnx.ml", "com.microsoft")
    """Operator domains that are allowed; a domain that the model's own functions define needs no entry."""
    max_bytes: Positive = 16 * 2**30
    max_nodes: Positive = 500_000


class StructurePolicy(_Strict):
    min_opset: Positive | None = None
    """None: 11 in the profile ``release``; in ``default`` an older opset is a warning."""
    max_opset: Positive | None = None
    """None: what the installed onnxruntime supports, which `structure/run` shows."""
    min_ir: Positive | None = None
    """None: 4 in the profile ``release``; in ``default`` an older version is a warning."""
    max_ir: Positive | None = None
    dynamic_dims: Literal["any", "batch", "none"] = "any"
    """``batch``: axis 0 alone may be dynamic; ``none``: nothing may."""
    require_dynamic_batch: bool = False
    allow_unused_initializers: bool = False


class NumericsPolicy(_Strict):
    batch_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 3)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    samples: Positive = 64
    """How many samples of the user's inputs are compared."""
    dims: Mapping[str, Positive] = {}
    """Sizes of symbolic dimensions, by name; the batch is set by ``batch_sizes``."""
    batch_dim: str | None = None
    """The symbolic dimension that is the batch. None: the one of a usual name, else that on axis 0."""
    relative: NonNegative | None = None
    """Limit of max |difference| / max |reference|. None: by the model's precision and a float64 reference."""
    absolute: NonNegative | None = None
    """A difference below this is never too large."""
    quantile: NonNegative | None = None
    """Limit of the 99.9 % quantile of the relative difference."""
    cosine: Fraction | None = None
    """Least cosine similarity."""
    top1: Fraction | None = None
    """Least agreement of the largest entry."""
    float64: bool = True
    float64_seconds: Annotated[float, Field(gt=0)] = 20.0


class AccuracyPolicy(_Strict):
    task: TaskName | None = None
    """What the targets are. None: integers are classes, 0 and 1 in floats labels, other floats numbers."""
    metric: Annotated[str, Field(pattern=r"^(.+:)?[A-Za-z_][A-Za-z0-9_.]*$")] | None = None
    """By name, or ``file.py:name`` of a function of ``(output, target)``. None: that of the task."""
    metric_options: Mapping[str, Any] = {}
    """Of a metric of your own."""
    lower_is_better: bool | None = None
    """Of a metric of your own."""
    threshold: float = 0.0
    """Above it a label of a binary or multi-label task is there: 0 for logits, 0.5 for probabilities."""
    floor: Finite | None = None
    """The least value of a metric of which more is better; between 0 and 1 for a share."""
    ceiling: Finite | None = None
    """The largest value of a metric that is better if it is lower."""
    max_drop: NonNegative | None = None
    """How much worse than the reference, in units of the metric: 0.01 is one point of a hundred."""
    max_relative_drop: NonNegative | None = None
    """How much worse than the reference, as a share of its value."""
    batch_size: Positive = 64
    output: str | None = None

    @model_validator(mode="after")
    def _fits_a_task(self) -> AccuracyPolicy:
        if self.max_drop is not None and self.max_relative_drop is not None:
            raise ValueError("max_drop and max_relative_drop both bound the drop; set one")
        tasks = METRICS_OF_TASKS if self.task is None else (self.task,)
        faults = [self.fault(task) for task in tasks if self._may_be(task)]
        if not faults:
            known = sorted({name for names in METRICS_OF_TASKS.values() for name in names} - {"loss"})
            raise ValueError(f"there is no metric {self.metric!r}; known are {', '.join(known)}")
        if all(faults):
            raise ValueError(faults[0])
        return self

    @property
    def is_own(self) -> bool:
        """Whether the metric is code of the user."""
        return self.metric is not None and ":" in self.metric

    def _may_be(self, task: TaskName) -> bool:
        """Whether data without a word about their task may be of this one."""
        given = self.task is not None or self.metric is None or self.is_own
        return given or self.metric in METRICS_OF_TASKS[task]

    def fault(self, task: TaskName) -> str:
        """What is wrong with the policy if the task is this one; empty if nothing is."""
        try:
            quality = quality_of(task, self.metric, self.metric_options, self.lower_is_better)
        except ValueError as error:
            return str(error)
        if self.metric == "loss":
            return "the loss is code of a recipe, which the check does not have; name another metric"
        if quality.lower_is_better and self.floor is not None:
            return f"the {quality.name} is better if it is lower; set ceiling instead of floor"
        if not quality.lower_is_better and self.ceiling is not None:
            return f"more is better of the {quality.name}; set floor instead of ceiling"
        shares = [limit for limit in (self.floor, self.max_drop) if limit is not None]
        if quality.percent and not all(0 <= limit <= 1 for limit in shares):
            return f"limits of the {quality.name} are between 0 and 1: 0.9 is 90 %"
        return ""


class CostLimit(_Strict):
    """Limits of one cost."""

    max: Positive | None = None
    """Absolute."""
    max_growth: Annotated[float, Field(ge=0)] | None = None
    """Over the baseline (or the reference, where there is no baseline): 0.1 is 10 % more."""


class CostPolicy(_Strict):
    parameters: CostLimit = CostLimit()
    macs: CostLimit = CostLimit()
    file_bytes: CostLimit = CostLimit()
    peak_memory_bytes: CostLimit = CostLimit()
    require_operators: tuple[str, ...] = ()
    """Operators that must be there after optimisation, such as FusedConv: that a fusion still happens."""
    forbid_operators: tuple[str, ...] = ()


class LatencyPolicy(_Strict):
    max_ratio: Annotated[float, Field(gt=0)] | None = None
    """Over the reference: 1.05 is at most 5 % slower. None: measured, and warned of above ``warn_ratio``."""
    warn_ratio: Annotated[float, Field(gt=0)] = 1.1
    max_ms: Annotated[float, Field(gt=0)] | None = None
    threads: Positive = 1
    seconds: Annotated[float, Field(gt=0)] = 30.0
    min_runs: Annotated[int, Field(ge=12)] = 120
    batch_size: Positive = 1


class ProviderPolicy(_Strict):
    max_nodes_elsewhere: Annotated[int, Field(ge=0)] | None = None
    """How many nodes may run on another provider than the one asked for."""


class Policy(_Strict):
    """Everything that a policy file can say; each has a default."""

    version: Literal[1] = 1
    profile: Profile = "default"
    """``release``: everything that a stranger's runtime or a server may stumble over is an error."""
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    levels: Mapping[str, Level] = {}
    """By id or area; an id comes first. What is not named has the level of the profile."""
    waivers: tuple[Waiver, ...] = ()
    limits: ProcessLimits = ProcessLimits()
    safety: SafetyPolicy = SafetyPolicy()
    structure: StructurePolicy = StructurePolicy()
    numerics: NumericsPolicy = NumericsPolicy()
    accuracy: AccuracyPolicy = AccuracyPolicy()
    cost: CostPolicy = CostPolicy()
    latency: LatencyPolicy = LatencyPolicy()
    provider: ProviderPolicy = ProviderPolicy()

    @property
    def is_strict(self) -> bool:
        """Whether what could not be shown to be right counts as wrong."""
        return self.profile == "release"

    def level(self, check: str) -> Level:
        """What the check of this id does if it fails."""
        area = check.partition("/")[0]
        given = self.levels.get(check, self.levels.get(area))
        return given or _LEVELS[self.profile].get(check, "error")


def load_policy(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Policy:
    """Read a policy file.

    Args:
        path: a TOML file, or a ``pyproject.toml`` with ``[tool.growpipe.check]``; None for the defaults.
        overrides: nested keys to values, or texts such as ``latency.max_ratio=1.05``.

    Raises:
        UsageError: the file is not there, is not TOML, or has an unknown key or a wrong value.
    """
    data: dict[str, Any] = {}
    where = "the policy"
    if path is not None:
        where = f"the policy {os.fspath(path)}"
        data = read_toml(path, "the policy")
        if Path(path).name == "pyproject.toml":
            with reading("the policy", path):
                data = table_at(data, "tool", "growpipe", "check")
        _anchor(data, Path(path).absolute().parent)
    if isinstance(overrides, Mapping):
        _merge(data, overrides)
    else:
        for text in overrides:
            _merge(data, _setting(text))
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{where}: {explained(error, Policy)}") from None


def _anchor(data: dict[str, Any], folder: Path) -> None:
    """Let a metric ``file.py:name`` of a policy file be one of the file's folder."""
    table = data.get("accuracy")
    if not isinstance(table, dict) or not isinstance(metric := table.get("metric"), str):
        return
    if metric.rpartition(":")[0].endswith(".py"):
        data["accuracy"] = {**table, "metric": str(folder / metric)}


def _merge(data: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = dict(value) if isinstance(value, Mapping) else value


def _setting(text: str) -> dict[str, Any]:
    """The tables that ``KEY=VALUE`` says; parts of a key may stand in quotes, as in TOML."""
    cuts = [position for position, character in enumerate(text) if character == "="]
    for cut in cuts:  # a name within quotes may hold one too
        for value in (text[cut + 1 :], json.dumps(text[cut + 1 :])):  # as TOML, or as one types it in a shell
            try:
                return parse_toml(f"{text[:cut]} = {value}")
            except UsageError:
                continue
    raise UsageError(f"--set {text!r}: give KEY=VALUE, such as latency.max_ratio=1.05")
