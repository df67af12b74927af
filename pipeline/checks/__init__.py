"""The checks of an exported model, run in onnxruntime. Needs no torch unless a torch module is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growpipe.checks.report import CheckReport, CheckResult, Finding

if TYPE_CHECKING:
    from growpipe.checks.runner import run_checks

__all__ = ["CheckReport", "CheckResult", "Finding", "run_checks"]


def __getattr__(name: str) -> Any:
    # At first use: the command line reads the names of the formats here, and should not wait for onnx.
    if name == "run_checks":
        from growpipe.checks.runner import run_checks

        return run_checks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
