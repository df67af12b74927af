"""Annotations of GitHub Actions, worst first: it shows only the first ten of a kind."""

from __future__ import annotations

from collections.abc import Sequence

from growpipe.checks.formats.text import summary
from growpipe.checks.report import CheckReport
from growpipe.printing import for_annotation, one_line

__all__ = ["MAX_ANNOTATIONS", "to_github"]

MAX_ANNOTATIONS = 10
"""Per kind and step; GitHub drops the rest."""

_KINDS = {
    "unsafe": "error",
    "missing": "error",
    "failed": "error",
    "inconclusive": "error",
    "warned": "warning",
}
_MAX_MESSAGE = 2000


def to_github(reports: Sequence[CheckReport]) -> str:
    """Workflow commands: an annotation per check that is not all right, and a verdict per model."""
    rank = {"unsafe": 0, "missing": 1, "failed": 2, "inconclusive": 3, "warned": 4}
    entries = sorted(
        (
            (rank[result.status], report, result)
            for report in reports
            for result in report.worst
            if result.status in rank
        ),
        key=lambda entry: entry[0],
    )
    lines, counts = [], {"error": 0, "warning": 0}
    left_out = 0
    for _, report, result in entries:
        kind = _KINDS[result.status]
        counts[kind] += 1
        if counts[kind] > MAX_ANNOTATIONS:
            left_out += 1
            continue
        text = "\n".join(
            [result.message, *(f"- {finding}" for finding in result.findings[:5]), result.advice]
        )
        file = for_annotation(report.model, is_property=True)
        title = for_annotation(f"{result.check} {result.status}", is_property=True)
        lines.append(f"::{kind} file={file},title={title}::{for_annotation(text[:_MAX_MESSAGE])}")
    if left_out:
        lines.append(f"{left_out} more annotations are left out; see the step summary")
    lines += [one_line(f"{report.model}: {summary(report)}") for report in reports]
    return "\n".join(lines) + "\n"
