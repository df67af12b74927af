"""Plain text, for a terminal and for a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from growpipe.checks.report import SEVERITY, CheckReport, Status
from growpipe.printing import for_log

__all__ = ["MARKS", "MARK_AT", "lines_of", "summary", "to_text"]

MARKS: Mapping[Status, str] = {
    "passed": "ok",
    "failed": "FAILED",
    "unsafe": "UNSAFE",
    "missing": "MISSING",
    "inconclusive": "UNCLEAR",
    "warned": "warning",
    "waived": "waived",
    "skipped": "skipped",
}
MARK_AT = 2


def to_text(reports: Sequence[CheckReport]) -> str:
    """One line per check in the order in which they ran, what was found below it, the verdict at the end."""
    return "".join(f"{line}\n" for _, line in lines_of(reports))


def lines_of(reports: Sequence[CheckReport]) -> Iterator[tuple[Status | None, str]]:
    """The lines of `to_text`, each with the status that its `MARKS` word stands for, if it begins with one.

    The word starts at column `MARK_AT`.
    """
    for position, report in enumerate(reports):
        if position:
            yield None, ""
        yield from ((status, for_log(line.replace("\n", " "))) for status, line in _one(report))


def summary(report: CheckReport) -> str:
    """``failed: 1 failed, 3 skipped, 20 passed``."""
    counts = [f"{n} {status}" for status in SEVERITY if (n := report.count(status))]
    return f"{report.verdict}: {', '.join(counts)}"


def _one(report: CheckReport) -> Iterator[tuple[Status | None, str]]:
    width = max((len(r.check) for r in report.results), default=0)
    margin = " " * MARK_AT
    below = f"{margin}{'':<8}{'':<{width}}  "
    yield None, report.model + (f" against {report.reference}" if report.reference else "")
    for result in report.results:
        mark = MARKS[result.status]
        yield result.status, f"{margin}{mark:<8}{result.check:<{width}}  {result.message}"
        if result.waiver:
            yield None, f"{below}waived: {result.waiver}"
        if result.status not in ("passed", "skipped"):
            yield from ((None, f"{below}- {finding}") for finding in result.findings)
        if result.advice:
            yield None, f"{below}> {result.advice}"
    yield None, f"{summary(report)} in {report.seconds:.1f} s (exit code {report.exit_code})"
