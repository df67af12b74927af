"""Plain text, for a terminal and for a log."""

from __future__ import annotations

from collections.abc import Sequence

from growpipe.checks.report import SEVERITY, CheckReport

__all__ = ["summary", "to_text"]

MARKS = {
    "passed": "ok",
    "failed": "FAILED",
    "unsafe": "UNSAFE",
    "missing": "MISSING",
    "inconclusive": "UNCLEAR",
    "warned": "warning",
    "waived": "waived",
    "skipped": "skipped",
}


def to_text(reports: Sequence[CheckReport]) -> str:
    """One line per check in the order in which they ran, what was found below it, the verdict at the end."""
    return "\n".join(_one(report) for report in reports)


def summary(report: CheckReport) -> str:
    """``failed: 1 failed, 3 skipped, 20 passed``."""
    counts = [f"{n} {status}" for status in SEVERITY if (n := report.count(status))]
    return f"{report.verdict}: {', '.join(counts)}"


def _one(report: CheckReport) -> str:
    width = max((len(r.check) for r in report.results), default=0)
    lines = [report.model + (f" against {report.reference}" if report.reference else "")]
    for result in report.results:
        lines.append(f"  {MARKS[result.status]:<8}{result.check:<{width}}  {result.message}")
        if result.waiver:
            lines.append(f"  {'':<8}{'':<{width}}  waived: {result.waiver}")
        if result.status not in ("passed", "skipped"):
            lines += [f"  {'':<8}{'':<{width}}  - {finding}" for finding in result.findings]
    lines.append(f"{summary(report)} in {report.seconds:.1f} s (exit code {report.exit_code})")
    return "\n".join(lines) + "\n"
