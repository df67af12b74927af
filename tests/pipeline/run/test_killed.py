"""Killed at every step that changes the disk: the next call ends with the same files, and no other file."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.torture.formats import made_run, trained
from growpipe.graph_ops.edit.bundle import write_bundle
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.run.facts import TrainFacts
from growpipe.run.stages.names import TRAIN, round_stage
from tests.helpers.text_models import text_model

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")

WEIGHTS = {"a": np.ones((20, 30), np.float32), "b": np.ones((30, 1), np.float32)}
MODEL = text_model(
    "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", "float[N,20] x", "float[N,1] y", **WEIGHTS
)
GROUPS = find_channel_groups(MODEL)


def run_twice(folder: Path) -> None:
    """A run whose first stage is made again with another configuration."""
    run = made_run(folder / "run")
    with run.locked():

        def produce(place: Path) -> TrainFacts:
            (place / "deep").mkdir()
            (place / "deep" / "a.txt").write_text("second")
            (place / "metrics.jsonl").write_text('{"epoch": 1}\n')
            return trained()

        run.stage(round_stage(0, TRAIN), produce, config={"epochs": 3}, inputs={})


def plan_twice(folder: Path) -> None:
    for seed in (0, 1):
        random_plan(GROUPS, MODEL, growth=0.5, seed=seed).save(folder / "plan")


def model_twice(folder: Path) -> None:
    for _ in range(2):
        save_model(MODEL, folder / "model.onnx", external_data=True)


def bundle_twice(folder: Path) -> None:
    for _ in range(2):
        write_bundle(MODEL, folder / "bundle")


_left = -1  # changes until the kill; negative for none


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    global _left
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if _left >= 0 and (event in CHANGES or writes):
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        _left -= 1


sys.addaudithook(_count)  # does nothing until a forked child counts


def killed(work: Callable[[Path], None], folder: Path, step: int) -> bool:
    """Do ``work`` in a forked process that is killed before its change number ``step``; whether it was."""
    global _left
    child = os.fork()
    if child == 0:
        _left = step
        try:
            work(folder)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder; a manifest without the time that its stage took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if path.is_file() else "folder"
        if path.name == "manifest.json":
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "seconds"}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("work", [run_twice, plan_twice, model_twice, bundle_twice])
def test_killed_at_every_change_the_next_call_ends_alike(
    work: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    work(tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    step = 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        if not killed(work, folder, step):
            break
        assert not killed(work, folder, 10**9)
        assert contents(folder) == wanted, f"after a kill before change {step}"
        step += 1
    assert step > 10
