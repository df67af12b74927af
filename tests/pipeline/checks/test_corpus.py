"""Broken models are caught by the check that is for them, good ones pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from growpipe.checks import CheckReport, run_checks
from growpipe.checks.child.model_process import ModelProcess
from tests.helpers.broken_models import BROKEN, Broken, without_cuda
from tests.helpers.good_models import GOOD, cnn, save

pytestmark = pytest.mark.slow

BAD = ("failed", "unsafe", "missing", "inconclusive")


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    """One child for all models that need no limits of their own: it is what a crash must not outlive."""
    with ModelProcess(seconds=60, memory_mb=8192) as shared:
        yield shared


def test_the_corpus_is_large() -> None:
    assert len(BROKEN) >= 40
    assert len(GOOD) >= 15


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_model_is_caught(kind: str, tmp_path: Path, process: ModelProcess) -> None:
    case = BROKEN[kind]
    report = report_of(case, "release", tmp_path, process)
    result = report.of(case.check)
    assert result.status in BAD, "\n".join(f"{r.check} {r.status}: {r.message}" for r in report.worst)
    assert report.exit_code == case.exit_code, [(r.check, r.message) for r in report.worst if r.status in BAD]
    assert result.message
    assert "\n" not in result.message
    assert result.advice
    assert "broke, please report" not in "".join(r.message for r in report.results)
    faults = [r.check for r in report.results if r.status in BAD]
    others = {"too_many_macs": ["numerics/reference"]}  # a kind that has two defects
    assert faults == [*others.get(kind, []), case.check], "one defect is one line"


@pytest.mark.parametrize("kind", [k for k, case in BROKEN.items() if "latency" not in case.policy])
def test_the_default_profile_fails_what_is_a_fault_for_everyone(
    kind: str, tmp_path: Path, process: ModelProcess
) -> None:
    case = BROKEN[kind]
    report = report_of(case, "default", tmp_path, process)
    result = report.of(case.check)
    if case.by_default == "failed":
        assert result.status in BAD
        assert report.exit_code == case.exit_code
    else:
        assert (result.status, report.exit_code) == (case.by_default, 0)
        assert result.advice or "growpipe check" in result.message


def report_of(case: Broken, profile: str, folder: Path, process: ModelProcess) -> CheckReport:
    if case.needs_torch:
        pytest.importorskip("torch")
    if case.exit_code == 3 and not without_cuda():
        pytest.skip("this machine's onnxruntime has CUDA")
    made = case.make(folder)
    arguments = {"model": made} if isinstance(made, Path) else made
    own = None if "limits" in case.policy else process
    return run_checks(**arguments, policy={"profile": profile, **case.policy}, process=own)


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_good_model_passes(kind: str, tmp_path: Path, process: ModelProcess) -> None:
    model = GOOD[kind]()
    path = save(model, tmp_path)
    reference = save(model, tmp_path, "reference.onnx")
    report = run_checks(path, reference=reference, policy={"profile": "release"}, process=process)
    assert report.exit_code == 0, [(r.check, r.message) for r in report.worst if r.status in BAD]
    assert not [r.check for r in report.results if r.status == "warned" and r.area != "numerics"]
    assert report.of("structure/run").status == "passed"
    assert report.of("numerics/reference").status == "passed"


def test_external_data_passes(tmp_path: Path, process: ModelProcess) -> None:
    report = run_checks(save(cnn(), tmp_path, external=True), process=process)
    assert report.exit_code == 0
    assert report.of("cost/parameters").measured["value"] == 659
