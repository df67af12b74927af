"""The checks of an exported model, run in onnxruntime. Needs no torch unless a torch module is compared."""

from __future__ import annotations

from growpipe.checks.report import CheckReport, CheckResult, Finding
from growpipe.checks.runner import run_checks

__all__ = ["CheckReport", "CheckResult", "Finding", "run_checks"]
