"""A run whose recipe asks for whole factors: a small decoder's stream doubles, and its rival's with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from growpipe.parallel.processes import ALONE
from growpipe.run import loop
from growpipe.run.recipe import parse_recipe
from growpipe.run.stages import check
from growpipe.run.stages.names import EXPORT, RIVAL, previous_stage
from growpipe.run.store import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RECIPE = {
    "name": "text",
    "model": "growpipe.models.decoder:build",
    "data": "growpipe.data.text:loaders",
    "inputs": ["text"],
    "outputs": ["scores"],
    "model_options": {"width": 8, "heads": 2, "hidden": [6], "length": 8},
    "data_options": {"length": 8, "epoch_samples": 64},
    "train": {"epochs": 1, "final_epochs": 1, "batch_size": 32, "threads": 1},
    "growth": {"rounds": 1, "factors": 2, "samples": 32, "metric": "input"},
}


def test_the_stream_doubles_in_the_run_and_in_its_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_LATENCY_SECONDS", 0.05)
    run = Run.create(
        tmp_path / "run", parse_recipe(RECIPE, "of the test"), None, seed=0, device="cpu", peers=ALONE
    )
    with run.locked():
        loop.run_all(run)
    first, grown = (previous_stage(run, number, EXPORT).facts.size for number in (0, 1))
    rival = run.published(RIVAL)
    assert rival is not None
    (stream,) = (name for name, width in first.widths.items() if width == 8)
    assert grown.widths[stream] == 16
    assert rival.facts.size.widths[stream] == 16
    assert rival.facts.size.macs <= grown.macs
    others = {name for name in first.widths if name != stream}
    assert all(rival.facts.size.widths[name] >= first.widths[name] for name in others)
