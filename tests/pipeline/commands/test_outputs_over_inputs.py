"""No command writes over what it reads: one line, exit code 2, and every file is as it was."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from benchmarks.torture.formats import made_run
from growpipe.cli import cli
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.text_models import two_layers

COMMANDS = [
    "grow model.onnx --plan plan -o model.onnx",
    "grow model.onnx --plan plan -o plan/plan.json",
    "grow model.onnx --plan plan -o weights.bin",
    "diff model.onnx other.onnx --html model.onnx",
    "diff other.onnx model.onnx --html weights.bin",
    "check other.onnx --reference model.onnx --format json=weights.bin",
    "check model.onnx --write-baseline weights.bin",
    "diff model.onnx other.onnx --html ./plan/../other.onnx",
    "check model.onnx --format json=model.onnx",
    "check model.onnx other.onnx --format junit=out --format sarif=other.onnx",
    "check model.onnx --reference other.onnx --format markdown=other.onnx",
    "check model.onnx --policy policy.toml --format github=policy.toml",
    "check model.onnx --torch net.py:build --format json=net.py",
    "check model.onnx --weights weights --format json=weights",
    "check model.onnx --data data.npz --format json=data.npz",
    "check model.onnx --baseline base.json --format json=base.json",
    "check model.onnx --write-baseline model.onnx",
    "check model.onnx --data data.npz --write-baseline data.npz",
    "check model.onnx --format json=out --format junit=./out",
    "check model.onnx --format json=out --write-baseline out",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model = two_layers(2)
    for name in ("model.onnx", "other.onnx"):
        save_model(model, tmp_path / name)
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.save(
        proto, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin"
    )
    assert (tmp_path / "weights.bin").exists()
    random_plan(find_channel_groups(model), model, growth=0.5).save(tmp_path / "plan")
    (tmp_path / "policy.toml").write_text("version = 1\n")
    for name in ("net.py", "weights", "data.npz", "base.json"):
        (tmp_path / name).write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(command: list[str], folder: Path) -> str:
    """The one line of the refusal; nothing in the folder may change."""
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    done = CliRunner().invoke(cli, command, standalone_mode=False)
    assert isinstance(done.exception, UsageError), done.output
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before
    assert len(str(done.exception).splitlines()) == 1
    return str(done.exception)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_read_is_not_overwritten(folder: Path, command: str) -> None:
    message = refusal(command.split(), folder)
    assert "is not overwritten; choose another file" in message or "two outputs go to one file" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", ".lock", "metrics.jsonl", "round-00/train/manifest.json"])
def test_a_page_does_not_replace_a_file_of_the_run(tmp_path: Path, name: str) -> None:
    run = made_run(tmp_path / "run")
    message = refusal(["report", str(run.path), "--html", str(run.path / name)], tmp_path)
    assert message.endswith("is not overwritten; choose another file")
