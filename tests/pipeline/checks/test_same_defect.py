"""One defect is one line."""

from __future__ import annotations

from growpipe.checks.report import CheckResult, Finding, Status
from growpipe.checks.same_defect import without_repeats


def result(check: str, status: Status, message: str = "m", tensor: str = "") -> CheckResult:
    findings = (Finding("here", tensor=tensor),) if tensor else ()
    return CheckResult(check, "title", status, message, findings=findings, advice="do something")


def statuses(*results: CheckResult) -> list[str]:
    return [r.status for r in without_repeats(results, ["y", "conv/node_1", "z"])]


def test_what_follows_from_a_defect_is_not_told_again() -> None:
    assert statuses(result("structure/widths", "failed"), result("structure/run", "failed")) == [
        "failed",
        "skipped",
    ]
    (_, repeat) = without_repeats(
        [result("numerics/weights", "failed"), result("numerics/finite", "failed", "NaN")], []
    )
    assert repeat.message == "the same defect as numerics/weights: NaN"
    assert repeat.advice == ""


def test_a_warning_hides_no_failure() -> None:
    assert statuses(result("structure/shapes", "warned"), result("structure/run", "failed")) == [
        "warned",
        "failed",
    ]
    assert statuses(result("structure/checker", "warned"), result("structure/shapes", "warned")) == [
        "warned",
        "skipped",
    ]


def test_places_tell_defects_apart() -> None:
    shapes = result("structure/shapes", "warned", "Conv 'conv/node_1': 'y' is declared as [3], but is [4]")
    assert statuses(shapes, result("structure/outputs", "warned", tensor="y")) == ["warned", "skipped"]
    assert statuses(shapes, result("structure/outputs", "warned", tensor="z")) == ["warned", "warned"]


def test_other_checks_keep_their_lines() -> None:
    assert statuses(result("safety/leaks", "failed"), result("structure/unused", "failed")) == [
        "failed",
        "failed",
    ]


def test_a_missing_device_is_told_once_and_where_it_belongs() -> None:
    lacking = [result(c, "missing") for c in ("structure/run", "provider/used", "numerics/finite")]
    assert statuses(*lacking) == ["skipped", "missing", "skipped"]
    assert statuses(lacking[0], lacking[2]) == ["missing", "skipped"]
