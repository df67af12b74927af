"""Whatever file an option names, and whatever number it is given: one line and exit code 2 or 4, in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from growpipe.cli import cli
from growpipe.graph_ops.errors import GrowpipeError
from growpipe.graph_ops.files.load_save import save_model
from tests.helpers.text_models import two_layers

pytestmark = pytest.mark.slow

FILES = ["pipe", "zeros", "bytes", "empty", "deep", "folder", "absent", "model.onnx/x", "loop"]
COMMANDS = [
    "inspect FILE",
    "diff model.onnx FILE",
    "grow model.onnx --plan FILE -o out.onnx",
    "deploy model.onnx -o out --labels FILE",
    "deploy model.onnx -o out --test-vectors FILE",
    "deploy model.onnx -o out --int8 --calibration FILE",
    "check model.onnx --only cost --baseline FILE",
    "check model.onnx --only cost --data FILE",
    "check model.onnx --only cost --reference FILE",
    "run FILE --out out",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(two_layers(2), tmp_path / "model.onnx")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty").touch()
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(command: list[str]) -> GrowpipeError:
    done = CliRunner().invoke(cli, command, standalone_mode=False)
    assert isinstance(done.exception, GrowpipeError), (command, done.exception, done.output)
    assert len(str(done.exception).splitlines()) == 1
    assert not Path("out").exists()
    return done.exception


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_what_the_option_wants(folder: Path, command: str) -> None:
    for file in FILES:
        assert refusal(command.replace("FILE", file).split()).exit_code in (2, 4)


@pytest.mark.parametrize(
    "options",
    [
        "--growth nan", "--growth -1", "--growth 1e400", "--growth 0.5 --epsilon nan",
        "--growth 0.5 --epsilon -inf", "--growth 0.5 --seed -1", "--growth 1e9",
    ],
)  # fmt: skip
def test_a_number_that_is_out_of_range(folder: Path, options: str) -> None:
    assert refusal(["plan", "model.onnx", "--random", "-o", "out", *options.split()]).exit_code == 2
