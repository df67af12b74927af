"""The baseline: what was measured on a model that was good, to compare the next one with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growpipe.checks.report import CheckReport
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import hash_file, write_text

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
    write_text(target, json.dumps(document, indent=1, sort_keys=True) + "\n")


def load_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read what `write_baseline` wrote.

    Raises:
        UsageError: the file is not there, or is no baseline of this version.
    """
    file = Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"the baseline {file} cannot be read: {error.strerror}; write one with --write-baseline"
        ) from None
    except ValueError as error:
        raise UsageError(f"the baseline {file} is no JSON: {error}") from None
    version = document.get("baseline_version") if isinstance(document, dict) else None
    if version != BASELINE_VERSION:
        raise UsageError(f"the baseline {file} has version {version}; this is {BASELINE_VERSION}")
    try:
        model = (file.absolute().parent / document["model"]).resolve()
        measured = {str(check): dict(values) for check, values in document["measured"].items()}
        return Baseline(file, model, str(document["sha256"]), measured)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the baseline {file} is damaged: {type(error).__name__} {error}") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file; empty if there is none that can be read."""
    try:
        return hash_file(path) if path.is_file() else ""  # a named pipe would make us wait
    except OSError:
        return ""
