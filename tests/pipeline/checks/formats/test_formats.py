"""The forms of a report, for whatever a model may have put into its names."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from importlib import resources
from typing import Any

import pytest

from growpipe.checks.formats import FORMATS
from growpipe.checks.formats.github import MAX_ANNOTATIONS, to_github
from growpipe.checks.formats.markdown import MAX_BYTES, to_markdown
from growpipe.checks.registry import all_checks
from growpipe.checks.report import CheckReport, CheckResult, Finding, overall_exit_code
from growpipe.graph_ops.errors import UsageError

NASTY = 'a|b <img src=x> `c` "d" & @team\x00\x1b[31m ::error::\r\n%0A,: é \U0001f600 ]]>'


def report(*statuses: str, nasty: str = "", findings: int = 1) -> CheckReport:
    checks = [c for c in all_checks()]
    results = tuple(
        CheckResult(
            check=checks[i % len(checks)].id,
            title=checks[i % len(checks)].title,
            status=status,  # type: ignore[arg-type]
            message=f"message {i}{nasty}",
            measured={"value": 1.5, "worst": float("inf"), "none": None, "places": {"a": [1, float("nan")]}},
            findings=tuple(
                Finding(f"finding {n}{nasty}", f"node {n}{nasty}", "Conv", f"t{n}{nasty}", f"m{nasty}")
                for n in range(findings)
            ),
            seconds=0.25,
            waiver="ticket 12, until 2030-01-01" if status == "waived" else "",
        )
        for i, status in enumerate(statuses)
    )
    return CheckReport(f"dir/m{nasty}.onnx", "0" * 64, "ref.onnx", "cpu", results, 1.5, {"growpipe": "0.1.0"})


ALL = ("passed", "waived", "skipped", "failed", "warned", "inconclusive", "missing", "unsafe")


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("nasty", ["", NASTY])
def test_every_form_takes_every_status(name: str, nasty: str) -> None:
    text = FORMATS[name]([report(*ALL, nasty=nasty), report("passed", nasty=nasty)])
    assert text.endswith("\n")
    assert "message 3" in text
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (("passed", "skipped", "waived", "warned"), 0),
        (("passed", "inconclusive"), 5),
        (("failed", "inconclusive"), 1),
        (("failed", "missing"), 3),
        (("failed", "missing", "unsafe"), 4),
    ],
)
def test_exit_codes(statuses: tuple[str, ...], code: int) -> None:
    assert report(*statuses).exit_code == code
    assert overall_exit_code([report("passed"), report(*statuses)]) == code


def schema() -> dict[str, Any]:
    text = resources.files("growpipe.checks").joinpath("result.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def test_json_is_what_the_published_schema_says() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    for one in (report(*ALL, nasty=NASTY), report(), report("passed")):
        jsonschema.validate(json.loads(FORMATS["json"]([one])), schema())
    wrong = json.loads(FORMATS["json"]([report("passed")]))
    wrong["results"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())


def test_json_of_several_models_is_a_list() -> None:
    parsed = json.loads(FORMATS["json"]([report("passed"), report("failed")]))
    assert [p["exit_code"] for p in parsed] == [0, 1]
    assert parsed[0]["results"][0]["measured"] == {
        "value": 1.5,
        "worst": "inf",
        "none": None,
        "places": {"a": [1, "nan"]},
    }


def test_junit_counts_what_it_holds() -> None:
    root = ET.fromstring(FORMATS["junit"]([report(*ALL, nasty=NASTY)]).encode())
    assert root.tag == "testsuites"
    cases = root.findall("testsuite/testcase")
    assert len(cases) == int(root.attrib["tests"]) == len(ALL)
    assert len(root.findall(".//failure")) == int(root.attrib["failures"]) == 1
    assert len(root.findall(".//error")) == int(root.attrib["errors"]) == 3
    assert len(root.findall(".//skipped")) == int(root.attrib["skipped"]) == 2
    for suite in root.findall("testsuite"):
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    for case in cases:
        assert set(case.attrib) == {"name", "classname", "file", "time"}


def test_markdown_stays_below_the_limit_and_keeps_the_worst() -> None:
    huge = report(*(["passed"] * 50), "failed", nasty="é" * 400, findings=200)
    text = to_markdown([huge] * 40)
    assert len(text.encode()) <= MAX_BYTES
    assert "cut off" in text
    first_row = next(line for line in text.splitlines() if line.startswith("| **"))
    assert "FAILED" in first_row
    short = to_markdown([huge], limit=2000)
    assert len(short.encode()) <= 2000


def test_markdown_is_not_broken_by_names() -> None:
    text = to_markdown([report("failed", nasty=NASTY)])
    assert "<img" not in text
    row = next(line for line in text.splitlines() if "FAILED" in line)
    assert row.replace("\\|", "").count("|") == 4
    assert "@team" not in text


def test_annotations_are_worst_first_and_few() -> None:
    lines = to_github([report(*ALL, nasty=NASTY)]).splitlines()
    kinds = [line.split(" ")[0] for line in lines if line.startswith("::")]
    assert kinds == ["::error"] * 4 + ["::warning"]
    assert "unsafe" in lines[0]
    assert "missing" in lines[1]
    many = to_github([report(*(["failed"] * 30))]).splitlines()
    assert sum(line.startswith("::error") for line in many) == MAX_ANNOTATIONS
    assert "20 more" in many[-2]


SARIF_RESULT = {
    "ruleId": str,
    "ruleIndex": int,
    "level": str,
    "message": dict,
    "locations": list,
    "partialFingerprints": dict,
    "suppressions": list,
}


def test_sarif_holds_to_the_standard() -> None:
    document = json.loads(FORMATS["sarif"]([report(*ALL, nasty=NASTY, findings=2)]))
    assert set(document) == {"$schema", "version", "runs"}
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    assert set(run) == {"tool", "invocations", "columnKind", "results"}
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) == len(all_checks())
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 4}]
    assert len(run["results"]) == 2 * 6
    for result in run["results"]:
        assert set(result) <= set(SARIF_RESULT)
        assert all(isinstance(value, SARIF_RESULT[key]) for key, value in result.items())
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("dir/m")
        assert not set(uri) & set(' <>"`|\\^{}\x00\x1b\r\n')
        assert location["physicalLocation"]["region"] == {"startLine": 1}
        assert {entry["kind"] for entry in location["logicalLocations"]} == {"module", "function", "variable"}
    waived = [r for r in run["results"] if "suppressions" in r]
    assert len(waived) == 2
    assert waived[0]["suppressions"] == [{"kind": "external", "justification": "ticket 12, until 2030-01-01"}]


def test_a_report_knows_its_results() -> None:
    one = report("passed", "failed")
    assert one.of(one.results[1].check).status == "failed"
    assert one.results[1].area == "safety"
    with pytest.raises(UsageError, match="was not run"):
        one.of("latency/ratio")
    with pytest.raises(UsageError, match="not a check result"):
        CheckResult("x", "t", "passed", "m")
