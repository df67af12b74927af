"""SARIF 2.1.0, for code scanning."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from growpipe.checks.registry import all_checks
from growpipe.checks.report import CheckReport, CheckResult, Finding, overall_exit_code
from growpipe.printing import json_text

__all__ = ["to_sarif"]

_LEVELS = {
    "unsafe": "error",
    "missing": "error",
    "failed": "error",
    "inconclusive": "warning",
    "warned": "warning",
    "waived": "error",
}


def to_sarif(reports: Sequence[CheckReport]) -> str:
    """One run with a rule per check, and a result per finding of every check that is not all right.

    A waived check is a suppressed result. The place of a result is the model's file; the node and the tensor
    are logical locations.
    """
    rules = [
        {
            "id": check.id,
            "name": "".join(part.capitalize() for part in check.id.replace("/", "_").split("_")),
            "shortDescription": {"text": check.title},
            "fullDescription": {"text": " ".join(check.explanation.split())},
            "help": {"text": check.explanation},
        }
        for check in all_checks()
    ]
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    results: list[dict[str, Any]] = []
    for report in reports:
        for result in report.worst:
            if result.status in _LEVELS:
                findings = result.findings or (Finding(""),)
                results += [_result(report, result, f, index[result.check]) for f in findings]
    run = {
        "tool": {
            "driver": {
                "name": "growpipe check",
                "semanticVersion": reports[0].versions.get("growpipe", "0.0.0") if reports else "0.0.0",
                "rules": rules,
            }
        },
        "invocations": [
            {
                "executionSuccessful": not any(r.exit_code in (3, 4) for r in reports),
                "exitCode": overall_exit_code(reports),
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    document = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json_text(document)


def _result(report: CheckReport, result: CheckResult, finding: Finding, rule: int) -> dict[str, Any]:
    text = f"{result.message}: {finding}" if finding.message else result.message
    text += f"; {result.advice}" if result.advice else ""
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(report.model)}, "region": {"startLine": 1}}
    }
    logical = [
        {"name": name, "fullyQualifiedName": name, "kind": kind}
        for name, kind in (
            (finding.module, "module"),
            (finding.node, "function"),
            (finding.tensor, "variable"),
        )
        if name
    ]
    if logical:
        location["logicalLocations"] = logical
    identity = "\0".join((result.check, report.model, finding.node, finding.tensor))
    entry: dict[str, Any] = {
        "ruleId": result.check,
        "ruleIndex": rule,
        "level": _LEVELS[result.status],
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"growpipeCheck/v1": hashlib.sha256(identity.encode()).hexdigest()},
    }
    if result.status == "waived":
        entry["suppressions"] = [{"kind": "external", "justification": result.waiver}]
    return entry


def _uri(path: str) -> str:
    """Relative to the current folder where it lies within: code scanning wants paths of the repository."""
    if os.path.isabs(path):
        inside = os.path.relpath(path)
        if not inside.startswith(".."):
            path = inside
        else:
            return PurePath(path).as_uri()
    return quote(PurePath(os.path.normpath(path)).as_posix())
