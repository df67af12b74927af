"""Broken models are caught by the check that is for them, good ones pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from growpipe.checks import run_checks
from growpipe.checks.child.model_process import ModelProcess
from tests.helpers.broken_models import BROKEN, without_cuda
from tests.helpers.good_models import GOOD, cnn, save

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
    if case.needs_torch:
        pytest.importorskip("torch")
    if case.exit_code == 3 and not without_cuda():
        pytest.skip("this machine's onnxruntime has CUDA")
    made = case.make(tmp_path)
    arguments = {"model": made} if isinstance(made, Path) else made
    own_limits = "limits" in case.policy
    report = run_checks(**arguments, policy=case.policy, process=None if own_limits else process)
    result = report.of(case.check)
    assert result.status in BAD, "\n".join(f"{r.check} {r.status}: {r.message}" for r in report.worst)
    assert report.exit_code == case.exit_code, [(r.check, r.message) for r in report.worst if r.status in BAD]
    assert result.message
    assert "\n" not in result.message
    assert "broke, please report" not in "".join(r.message for r in report.results)


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_good_model_passes(kind: str, tmp_path: Path, process: ModelProcess) -> None:
    model = GOOD[kind]()
    path = save(model, tmp_path)
    report = run_checks(path, reference=save(model, tmp_path, "reference.onnx"), process=process)
    assert report.exit_code == 0, [(r.check, r.message) for r in report.worst if r.status in BAD]
    assert not [r.check for r in report.results if r.status == "warned" and r.area != "numerics"]
    assert report.of("structure/run").status == "passed"
    assert report.of("numerics/reference").status == "passed"


def test_external_data_passes(tmp_path: Path, process: ModelProcess) -> None:
    report = run_checks(save(cnn(), tmp_path, external=True), process=process)
    assert report.exit_code == 0
    assert report.of("cost/parameters").measured["value"] == 659
