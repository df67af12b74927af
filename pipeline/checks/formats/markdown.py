"""Markdown, for a step summary or a comment; never above GitHub's size limit."""

from __future__ import annotations

from collections.abc import Sequence

from growpipe.checks.formats.text import MARKS, summary
from growpipe.checks.report import CheckReport, CheckResult
from growpipe.printing import for_markdown, for_markdown_code

__all__ = ["MAX_BYTES", "to_markdown"]

MAX_BYTES = 1024 * 1024 - 64 * 1024
"""A step summary may have 1 MiB for the whole step; larger ones are not shown at all."""

_CUT = "\n_More was cut off to stay within the size limit; see the JSON report._\n"


def to_markdown(reports: Sequence[CheckReport], limit: int = MAX_BYTES) -> str:
    """A table of all checks per model, worst first, then the places where something was found.

    Args:
        reports: one per model.
        limit: bytes of the text; whole lines are left out at the end when there are more.
    """
    lines: list[str] = []
    for report in reports:
        lines += _one(report)
    # Every report's verdict comes before any of the details, so that cutting takes the details first.
    head = [f"**{for_markdown(r.model)}**: {summary(r)}\n" for r in reports] if len(reports) > 1 else []
    size = len(_CUT.encode())
    kept: list[str] = []
    for line in (*head, *lines):
        size += len(line.encode()) + 1
        if size > limit:
            return "\n".join(kept) + _CUT
        kept.append(line)
    return "\n".join(kept) + "\n"


def _one(report: CheckReport) -> list[str]:
    title = f"### growpipe check: {report.verdict}"
    against = f" against {for_markdown_code(report.reference)}" if report.reference else ""
    lines = [
        title,
        "",
        f"{for_markdown_code(report.model)}{against}: {summary(report)} in {report.seconds:.1f} s",
        "",
    ]
    lines += ["| status | check | what was found |", "|---|---|---|"]
    lines += [_row(result) for result in report.worst]
    found = [r for r in report.worst if r.findings and r.status not in ("passed", "skipped")]
    for result in found:
        lines += ["", f"<details><summary>{result.check}</summary>", ""]
        lines += [f"- {for_markdown(str(finding))}" for finding in result.findings]
        lines += ["", "</details>"]
    return [*lines, ""]


def _row(result: CheckResult) -> str:
    message = result.message + (f" (waived: {result.waiver})" if result.waiver else "")
    message += f"; {result.advice}" if result.advice else ""
    mark = MARKS[result.status]
    return f"| {f'**{mark}**' if mark.isupper() else mark} | `{result.check}` | {for_markdown(message)} |"
