"""The policy: what is allowed, how far, and what is waived until when. TOML; unknown keys are refused."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_toml, read_toml, table_at
from growpipe.graph_ops.files.reading import reading
from growpipe.validation import explained

__all__ = [
    "AccuracyPolicy",
    "CostLimit",
    "CostPolicy",
    "LatencyPolicy",
    "NumericsPolicy",
    "Policy",
    "ProcessLimits",
    "ProviderPolicy",
    "SafetyPolicy",
    "StructurePolicy",
    "Waiver",
    "load_policy",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Waiver(_Strict):
    """One check that may fail for now."""

    check: str
    reason: Annotated[str, Field(min_length=1)]
    expires: datetime.date


class ProcessLimits(_Strict):
    """Of the child process in which models run."""

    seconds: Annotated[float, Field(gt=0)] = 120.0
    memory_mb: Positive = 16384


class SafetyPolicy(_Strict):
    domains: tuple[str, ...] = ("ai.onnx", "ai.onnx.ml", "com.microsoft")
    """Operator domains that are allowed; a domain that the model's own functions define needs no entry."""
    max_bytes: Positive = 16 * 2**30
    max_nodes: Positive = 500_000


class StructurePolicy(_Strict):
    min_opset: Positive = 11
    max_opset: Positive | None = None
    """None: what the installed onnxruntime supports, which `structure/run` shows."""
    min_ir: Positive = 4
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
    floor: Fraction | None = None
    max_drop: Fraction | None = None
    """Against the reference, in absolute terms: 0.01 is one point of a hundred."""
    batch_size: Positive = 64
    output: str | None = None


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
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    levels: Mapping[str, Literal["error", "warning", "off"]] = {}
    waivers: tuple[Waiver, ...] = ()
    limits: ProcessLimits = ProcessLimits()
    safety: SafetyPolicy = SafetyPolicy()
    structure: StructurePolicy = StructurePolicy()
    numerics: NumericsPolicy = NumericsPolicy()
    accuracy: AccuracyPolicy = AccuracyPolicy()
    cost: CostPolicy = CostPolicy()
    latency: LatencyPolicy = LatencyPolicy()
    provider: ProviderPolicy = ProviderPolicy()


def load_policy(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Policy:
    """Read a policy file.

    Args:
        path: a TOML file, or a ``pyproject.toml`` with ``[tool.growpipe.check]``; None for the defaults.
        overrides: nested keys to values, or texts such as ``latency.max_ratio=1.05``.

    Raises:
        UsageError: the file is not there, is no TOML, or has an unknown key or a wrong value.
    """
    data: dict[str, Any] = {}
    where = "the policy"
    if path is not None:
        file = Path(path)
        where = str(file)
        data = read_toml(file, "the policy")
        if file.name == "pyproject.toml":
            with reading("the policy", file):
                data = table_at(data, "tool", "growpipe", "check")
    if isinstance(overrides, Mapping):
        _merge(data, overrides)
    else:
        for text in overrides:
            _set(data, text)
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{where}: {explained(error, Policy)}") from None


def _merge(data: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = dict(value) if isinstance(value, Mapping) else value


def _set(data: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text!r}: give KEY=VALUE, such as latency.max_ratio=1.05")
    try:
        parsed = parse_toml(f"value = {value}")["value"]
    except UsageError:
        parsed = value  # a text without quotes, as one types it in a shell
    *tables, last = key.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {text!r}: {table!r} is no table")
    data[last] = parsed
