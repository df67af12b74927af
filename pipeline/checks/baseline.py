"""The baseline: what was measured on a model that was good, to compare the next one with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from growpipe.checks.report import CheckReport
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.files.documents import json_document, read_json, validated
from growpipe.graph_ops.files.reading import MissingFile, hash_file, reading

__all__ = ["Baseline", "load_baseline", "sha256_of", "write_baseline"]

BASELINE_VERSION = "1.0"


@dataclass(frozen=True)
class Baseline:
    """A baseline file.

    Attributes:
        path: of the file.
        model: the file of the model it was measured on, absolute; it may be gone by now.
        sha256: of that model.
        measured: by check what it measured.
    """

    path: Path
    model: Path
    sha256: str
    measured: Mapping[str, Mapping[str, Any]]

    def value(self, check: str, key: str = "value") -> float | None:
        """A number that a check measured, if it did."""
        value = self.measured.get(check, {}).get(key)
        return float(value) if isinstance(value, (int, float)) else None

    def holds_model(self) -> bool:
        """Is the model that was measured still there, and still the same?"""
        return sha256_of(self.model) == self.sha256 != ""


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    model: str
    sha256: str
    measured: dict[str, dict[str, Any]]


def write_baseline(report: CheckReport, path: str | os.PathLike[str]) -> None:
    """Write what ``report`` measured; whole or not at all.

    Raises:
        UsageError: the report is of a model that did not pass; a baseline of it would hide that.
    """
    if not report.ok:
        raise UsageError(f"no baseline is written of a model whose checks {report.verdict}")
    target = Path(path)
    form = report.to_json()
    document = {
        "baseline_version": BASELINE_VERSION,
        "model": os.path.relpath(report.model, target.absolute().parent),
        "sha256": report.sha256,
        "device": report.device,
        "versions": form["versions"],
        "measured": {r["check"]: r["measured"] for r in form["results"] if r["measured"]},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json_document(document, sort_keys=True) + "\n")


def load_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read what `write_baseline` wrote.

    Raises:
        UsageError: the file is not there, or is not a baseline of this version.
    """
    file = Path(path)
    with reading("the baseline", file):
        try:
            document = read_json(file, "the baseline")
        except MissingFile as error:
            raise UsageError(f"{error}; write one with --write-baseline") from None
        version = document.get("baseline_version") if isinstance(document, dict) else None
        if version != BASELINE_VERSION:
            raise UsageError(f"it has version {version!r}; this is {BASELINE_VERSION}")
        content = validated(_Document, document)
    model = Path(os.path.realpath(file.absolute().parent / content.model))
    return Baseline(file, model, content.sha256, content.measured)


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file; empty if there is none that can be read."""
    try:
        return hash_file(path)
    except UsageError:
        return ""
