"""The child process that runs models."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from growpipe.checks.child.messages import NotAMessage, TooLarge, pack, read_message
from growpipe.checks.child.model_process import ModelCrashed, ModelHung, ModelProcess
from growpipe.checks.child.requests import FindDivergence, from_fields, to_fields
from growpipe.checks.measure.memory import MemoryRoom
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.onnx_tools.process_main import HEADER
from tests.helpers.broken_models import BROKEN
from tests.helpers.good_models import cnn, save


class Stream:
    """Bytes as `read_message` reads them."""

    def __init__(self, data: bytes) -> None:
        self.bytes = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        data = self.bytes.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def read_into(self, view: memoryview) -> None:
        view[:] = self.read(len(view))


def frame(content: bytes) -> bytes:
    return HEADER.pack(b"m", len(content)) + content


def test_messages_come_back_as_they_were_sent() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(True),
        "texts": np.array([["x", "ü"]], dtype=object),
    }
    document, received = read_message(Stream(b"".join(pack({"n": 1}, arrays))), room=1000)
    assert document == {"n": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(received[name], array)
        assert received[name].shape == array.shape


def test_arrays_that_need_more_room_than_there_is_are_not_read() -> None:
    stream = Stream(b"".join(pack({}, {"a": np.ones(3), "b": np.ones((2, 2), np.float32)})))
    with pytest.raises(TooLarge) as refused:
        read_message(stream, room=39)
    assert refused.value.needed == 40
    claimed = frame(b'{"arrays":[{"name":"a","shape":[1099511627776],"dtype":"f8"}]}')
    with pytest.raises(TooLarge):
        read_message(Stream(claimed), room=2**34)


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(b"m", 2**40),
        HEADER.pack(b"x", 2) + b"{}",
        frame(b"{}x"),
        frame(b"{}"),
        frame(b"[" * 100_000),
        frame(b'{"arrays":[{"name":"a","shape":[1],"dtype":"object"}]}'),
        frame(b'{"arrays":[{"name":"a","shape":[-1],"dtype":"f4"}]}'),
        frame(b'{"arrays":[{"name":"a","shape":[2],"strings":["x"]}]}'),
    ],
)
def test_a_damaged_message_is_refused(data: bytes) -> None:
    with pytest.raises(NotAMessage):
        read_message(Stream(data), room=1000)


@pytest.mark.parametrize("data", [b"", b"short", b"".join(pack({}, {"a": np.ones(3)}))[:-1]])
def test_a_message_that_ends_early_is_refused(data: bytes) -> None:
    with pytest.raises(EOFError):
        read_message(Stream(data), room=1000)


def test_a_crash_and_a_hang_cost_one_child_each(tmp_path: Path) -> None:
    (tmp_path / "crash").mkdir()
    crash = BROKEN["crash_of_the_runtime"].make(tmp_path / "crash")
    (tmp_path / "hang").mkdir()
    hang = BROKEN["endless_loop"].make(tmp_path / "hang")
    good = save(cnn(), tmp_path)
    image = {"image": np.zeros((1, 3, 12, 12), np.float32)}
    with ModelProcess(seconds=30) as process:
        with pytest.raises(ModelCrashed, match="SIGFPE"):
            process.run(crash, {"x": np.ones(2, np.int32)}, "cpu")
        assert process.run(good, image, "cpu")["logits"].shape == (1, 5)
        process.seconds = 1
        with pytest.raises(ModelHung, match="did not end within 1 s"):
            process.run(hang, {"x": np.ones((1, 3), np.float32)}, "cpu")
        process.seconds = 30
        assert process.run(good, image, "cpu")["logits"].shape == (1, 5)
        with pytest.raises(UsageError, match="needs inputs"):
            process.run(good, {}, "cpu")
        with pytest.raises(CheckFailed, match="could not run"):
            process.run(good, {"image": np.zeros((1, 3, 12), np.float32)}, "cpu")


def test_outputs_that_need_more_room_than_there_is_do_not_leave_the_child(tmp_path: Path) -> None:
    good = save(cnn(), tmp_path)
    image = {"image": np.zeros((3, 3, 12, 12), np.float32)}
    room = MemoryRoom(memory_mb=1000)
    room.left = 59
    with ModelProcess(seconds=30, memory_mb=1000) as process:
        with pytest.raises(CheckFailed, match=r"its outputs need .* limits.memory_mb = 1000 leaves"):
            process.run(good, image, "cpu", room=room)
        room.left = 60
        assert process.run(good, image, "cpu", room=room)["logits"].shape == (3, 5)


def test_a_request_is_the_same_on_the_other_side() -> None:
    request = FindDivergence("m.onnx", "cpu", 1e-4, "", False, {"a": "b"})
    assert from_fields(json.loads(json.dumps(to_fields(request)))) == request


def test_a_file_of_the_current_folder_does_not_stand_in_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    path = save(cnn(), tmp_path)
    with ModelProcess(seconds=30) as process:
        assert process.providers(path, "cpu") == ("CPUExecutionProvider",)
    assert os.getcwd() == str(tmp_path)
