"""JUnit XML, as the viewers of GitLab, GitHub actions and Jenkins read it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from growpipe.checks.registry import AREAS
from growpipe.checks.report import CheckReport, CheckResult
from growpipe.printing import for_xml

__all__ = ["to_junit"]


def to_junit(reports: Sequence[CheckReport]) -> str:
    """One suite per model and area, one case per check.

    A failed check is a failure; an unsafe model, a missing device and an inconclusive measurement are errors;
    waived and skipped checks are skipped.
    """
    cases = [result for report in reports for result in report.results]
    root = ET.Element("testsuites", {"name": "growpipe check", **_counts(cases)})
    for report in reports:
        for area in AREAS:
            results = [r for r in report.results if r.area == area]
            if not results:
                continue
            attributes = {"name": for_xml(f"{report.model} {area}"), **_counts(results)}
            suite = ET.SubElement(root, "testsuite", attributes)
            for result in results:
                suite.append(_case(report, result))
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(report: CheckReport, result: CheckResult) -> ET.Element:
    case = ET.Element(
        "testcase",
        {
            "name": result.check,
            "classname": for_xml(report.model),
            "file": for_xml(report.model),
            "time": f"{result.seconds:.3f}",
        },
    )
    text = for_xml("\n".join([result.message, *map(str, result.findings), result.advice]).rstrip())
    message = {"message": for_xml(result.message)}
    if result.status == "failed":
        ET.SubElement(case, "failure", {**message, "type": result.status}).text = text
    elif result.status in ("unsafe", "missing", "inconclusive"):
        ET.SubElement(case, "error", {**message, "type": result.status}).text = text
    elif result.status in ("skipped", "waived"):
        reason = f"{result.waiver}: {result.message}" if result.waiver else result.message
        ET.SubElement(case, "skipped", {"message": for_xml(reason)})
    else:
        ET.SubElement(case, "system-out").text = text
    return case


def _counts(results: Sequence[CheckResult]) -> dict[str, str]:
    def count(*statuses: str) -> str:
        return str(sum(r.status in statuses for r in results))

    return {
        "tests": str(len(results)),
        "failures": count("failed"),
        "errors": count("unsafe", "missing", "inconclusive"),
        "skipped": count("skipped", "waived"),
        "time": f"{sum(r.seconds for r in results):.3f}",
    }
