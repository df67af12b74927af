"""What the checks found: the result of every check, and the exit code of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import json_values

__all__ = [
    "SCHEMA_VERSION",
    "CheckReport",
    "CheckResult",
    "Finding",
    "Outcome",
    "Status",
    "failed",
    "inconclusive",
    "overall_exit_code",
    "passed",
    "skipped",
    "warned",
]

SCHEMA_VERSION = "1.1"
"""Of the JSON form: the first number changes when a reader of the old form would stumble."""

Status = Literal["failed", "unsafe", "missing", "inconclusive", "warned", "waived", "skipped", "passed"]
"""``unsafe``: the model cannot or must not be read. ``missing``: the environment lacks something."""

SEVERITY: tuple[Status, ...] = (
    "unsafe",
    "missing",
    "failed",
    "inconclusive",
    "warned",
    "waived",
    "skipped",
    "passed",
)
"""Worst first."""

SHOWN = 20
"""Findings that an outcome keeps; its message counts them all."""

TO_MEND = frozenset({"unsafe", "missing", "failed", "inconclusive", "warned", "waived"})
"""The statuses after which somebody has something to do."""

_EXIT_CODES: Mapping[Status, int] = {"unsafe": 4, "missing": 3, "failed": 1, "inconclusive": 5}


@dataclass(frozen=True, slots=True)
class Finding:
    """One place at which a check found something.

    Attributes:
        message: one line.
        node, operator, tensor: the place in the graph, as far as there is one.
        module: the torch module the node was exported from, as far as the exporter wrote it down.
    """

    message: str
    node: str = ""
    operator: str = ""
    tensor: str = ""
    module: str = ""

    def __str__(self) -> str:
        place = []
        if self.operator or self.node:
            place.append(f"node {' '.join(p for p in (self.operator, repr(self.node)) if p)}")
        if self.tensor:
            place.append(f"tensor {self.tensor!r}")
        if self.module:
            place.append(f"module {self.module!r}")
        return f"{', '.join(place)}: {self.message}" if place else self.message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check returns.

    Attributes:
        status: as the check sees it, before policy and waivers.
        message: one line: what was found, and what to do.
        measured: numbers and short texts, for the baseline and the reports.
        findings: the places.
        advice: what to do next; empty for the advice of the check.
    """

    status: Status
    message: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    advice: str = ""


def passed(message: str, **measured: Any) -> Outcome:
    return Outcome("passed", message, measured)


def skipped(message: str) -> Outcome:
    return Outcome("skipped", message)


def failed(message: str, *findings: Finding, advice: str = "", **measured: Any) -> Outcome:
    return Outcome("failed", message, measured, findings[:SHOWN], advice)


def warned(message: str, *findings: Finding, advice: str = "", **measured: Any) -> Outcome:
    return Outcome("warned", message, measured, findings[:SHOWN], advice)


def inconclusive(message: str, **measured: Any) -> Outcome:
    return Outcome("inconclusive", message, measured)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check, after policy and waivers.

    Attributes:
        check: the id, ``area/name``.
        title: what holds when it passes.
        status, message, measured, findings: as `Outcome`.
        advice: what to do next; empty if nothing need be done.
        seconds: how long it took.
        waiver: why it is waived, and until when; empty where it is not.
    """

    check: str
    title: str
    status: Status
    message: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    advice: str = ""
    seconds: float = 0.0
    waiver: str = ""

    def __post_init__(self) -> None:
        if self.status not in SEVERITY or "/" not in self.check:
            raise UsageError(f"not a check result: {self.check!r} {self.status!r}")

    @property
    def area(self) -> str:
        return self.check.partition("/")[0]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All results, in the order in which the checks ran.

    Attributes:
        model: the path that was given.
        sha256: of the model file; empty where it could not be read.
        reference: what it was compared with; empty where there was nothing.
        device: where it ran.
        results: of every check that was selected.
        seconds: the whole time.
        versions: of growpipe, onnx, onnxruntime, Python.
    """

    model: str
    sha256: str
    reference: str
    device: str
    results: tuple[CheckResult, ...]
    seconds: float
    versions: Mapping[str, str]

    @property
    def worst(self) -> tuple[CheckResult, ...]:
        """The results, worst first; equally bad ones in the order in which they ran."""
        return tuple(sorted(self.results, key=lambda r: SEVERITY.index(r.status)))

    @property
    def exit_code(self) -> int:
        """The first that holds: 4 unsafe, 3 something missing, 1 a check failed, 5 inconclusive, else 0."""
        return next((_EXIT_CODES[r.status] for r in self.worst if r.status in _EXIT_CODES), 0)

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        return {0: "passed", 1: "failed", 3: "environment missing", 4: "unsafe", 5: "inconclusive"}[
            self.exit_code
        ]

    def count(self, status: Status) -> int:
        return sum(result.status == status for result in self.results)

    def of(self, check: str) -> CheckResult:
        """The result of one check.

        Raises:
            UsageError: it was not selected.
        """
        for result in self.results:
            if result.check == check:
                return result
        raise UsageError(f"the check {check!r} was not run; run were {[r.check for r in self.results]}")

    def to_json(self) -> dict[str, Any]:
        """The form that ``result.schema.json`` describes. Numbers that JSON lacks become texts."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": "growpipe check",
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "model": self.model,
            "sha256": self.sha256,
            "reference": self.reference,
            "device": self.device,
            "seconds": round(self.seconds, 3),
            "versions": dict(self.versions),
            "results": [
                {
                    "check": result.check,
                    "area": result.area,
                    "title": result.title,
                    "status": result.status,
                    "message": result.message,
                    "measured": json_values(result.measured),
                    "findings": [
                        {
                            "message": finding.message,
                            "node": finding.node,
                            "operator": finding.operator,
                            "tensor": finding.tensor,
                            "module": finding.module,
                        }
                        for finding in result.findings
                    ],
                    "advice": result.advice,
                    "seconds": round(result.seconds, 3),
                    "waiver": result.waiver,
                }
                for result in self.results
            ],
        }


def overall_exit_code(reports: Iterable[CheckReport]) -> int:
    """Of several models: the worst, in the order of `CheckReport.exit_code`."""
    codes = {report.exit_code for report in reports}
    return next((code for code in (4, 3, 1, 5) if code in codes), 0)
