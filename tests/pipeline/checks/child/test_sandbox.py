"""The child process that runs models."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from growpipe.checks.child.messages import BrokenPipeMessage, pack, read_message
from growpipe.checks.child.sandbox import ModelCrashed, ModelHung, Sandbox
from growpipe.graph_ops.errors import CheckFailed, UsageError
from tests.helpers.broken_models import BROKEN
from tests.helpers.good_models import cnn, save


def test_messages_come_back_as_they_were_sent() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(True),
        "texts": np.array([["x", "ü"]], dtype=object),
    }
    stream = io.BytesIO(b"".join(pack({"n": 1}, arrays)))
    document, received = read_message(stream.read)
    assert document == {"n": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(received[name], array)
        assert received[name].shape == array.shape


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 3) + b"{}x",
        b"".join(pack({}, {"a": np.ones(3)}))[:-1],
        struct.pack("<Q", 54) + b'{"arrays":[{"name":"a","shape":[1],"dtype":"object"}]}',
        struct.pack("<Q", 49) + b'{"arrays":[{"name":"a","shape":[-1],"dtype":"f4"}]}'[:49],
    ],
)
def test_a_damaged_message_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenPipeMessage):
        read_message(io.BytesIO(data).read)


def test_a_crash_and_a_hang_cost_one_child_each(tmp_path: Path) -> None:
    (tmp_path / "crash").mkdir()
    crash = BROKEN["crash_of_the_runtime"].make(tmp_path / "crash")
    (tmp_path / "hang").mkdir()
    hang = BROKEN["endless_loop"].make(tmp_path / "hang")
    good = save(cnn(), tmp_path)
    common = {"optimised": True, "device": "cpu"}
    image = {"image": np.zeros((1, 3, 12, 12), np.float32)}
    with Sandbox(seconds=30) as sandbox:
        with pytest.raises(ModelCrashed, match="SIGFPE"):
            sandbox.call("run", {"model": str(crash), **common}, {"x": np.ones(2, np.int32)})
        assert sandbox.call("run", {"model": str(good), **common}, image).arrays["logits"].shape == (1, 5)
        with pytest.raises(ModelHung, match="did not end within 1 s"):
            sandbox.call("run", {"model": str(hang), **common}, {"x": np.ones((1, 3), np.float32)}, seconds=1)
        assert sandbox.call("run", {"model": str(good), **common}, image).arrays["logits"].shape == (1, 5)
        with pytest.raises(UsageError, match="needs inputs"):
            sandbox.call("run", {"model": str(good), **common})
        with pytest.raises(CheckFailed, match="could not run"):
            sandbox.call("run", {"model": str(good), **common}, {"image": np.zeros((1, 3, 12), np.float32)})


def test_a_file_of_the_current_folder_does_not_stand_in_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    path = save(cnn(), tmp_path)
    with Sandbox(seconds=30) as sandbox:
        reply = sandbox.call("describe", {"model": str(path), "device": "cpu"})
    assert reply.data["outputs"] == ["logits"]
    assert os.getcwd() == str(tmp_path)
