"""Examples and documents do what they say: their code runs, their commands exist, their lines are true."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from growpipe.cli import cli
from growpipe.torch_module.export import export_growth_form

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
)
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
NEEDED = {"transformer.py": "accelerate", "lightning_callback.py": "lightning"}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), re.S | re.M)


def commands(document: str) -> Iterator[list[str]]:
    """The arguments of every line of a document that calls growpipe."""
    for line in re.sub(r"\\\n\s+", " ", text_of(document)).splitlines():
        if line.startswith("    growpipe "):
            yield shlex.split(line, comments=True)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "transformer.py"])  # see its tutorial
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if name in NEEDED:  # the warnings are those of other libraries
            warnings.simplefilter("ignore")
        runpy.run_path(str(ROOT / "examples" / name))
    if name == "own_loop.py":
        assert (tmp_path / "own_loop.onnx").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len(text_of(f"examples/{name}").splitlines()) < 60


def follow(document: str) -> None:
    """Do what a tutorial says, in its order, in the current folder."""
    steps = re.compile(
        r"`(?P<file>[\w.]+)`[^`]*:\n\n```\w+\n(?P<content>.*?)^```"
        r"|^```python\n(?P<code>.*?)^```"
        r"|^    (?P<command>(?:growpipe|python) [^\n]*)$",
        re.S | re.M,
    )
    for found in steps.finditer(re.sub(r"\\\n\s+", " ", text_of(document))):
        if found["file"]:
            Path(found["file"]).write_text(found["content"])
        elif found["code"]:
            exec(compile(found["code"], document, "exec"), {})  # noqa: S102 - our own documents
        else:
            program, *arguments = shlex.split(found["command"], comments=True)
            if program == "python":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's exporter warns of itself
                    runpy.run_path(arguments[0], run_name="__main__")
                continue
            done = CliRunner().invoke(cli, arguments, standalone_mode=False)
            assert done.exception is None, (arguments, done.exception)
            # A machine that is too busy to measure latency is no fault of a tutorial.
            assert done.return_value in (None, 0) or (arguments[0], done.return_value) == ("check", 5), (
                arguments,
                done.output,
            )


@pytest.fixture
def own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files of the first tutorial; latencies are measured only briefly."""
    pytest.importorskip("onnxruntime")
    from growpipe.run import family_finish
    from growpipe.run.stages import check

    for module in (check, family_finish):
        monkeypatch.setattr(module, "_LATENCY_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as Python does for a script
    for name in ("my_net.py", "my_data.py"):
        (tmp_path / name).write_text(text_of(f"examples/own_recipe/{name}"))
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_works_as_it_is_written(own_recipe: Path) -> None:
    torch.save(runpy.run_path("my_net.py")["build"](2).state_dict(), "trained.pt")
    follow("docs/tutorial.md")
    for name in ("my_net.py", "my_data.py", "irises.toml"):
        assert Path(name).read_text() == text_of(f"examples/own_recipe/{name}"), "it shows the example"
    for made in ("irises.html", "runs/irises/final/report.html", "irises/README.md", "wider.onnx", "plan"):
        assert Path(made).exists(), made


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("documents", "files"),
    [
        (["docs/tutorial-trained.md"], ["runs/larger/final/model.onnx"]),
        (
            ["docs/tutorial-family.md"],
            [
                "runs/sizes/final/40-parameters/model.onnx",
                "runs/sizes/final/60-parameters",
                "small/card.json",
            ],
        ),
        (
            ["docs/tutorial-onnx.md", "docs/tutorial-ci.md"],
            ["bundle/card.json", "check.xml", "baseline.json"],
        ),
    ],
)
def test_further_tutorials_work_as_they_are_written(
    documents: list[str], files: list[str], own_recipe: Path
) -> None:
    for document in documents:
        follow(document)
    for made in files:
        assert Path(made).exists(), made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_of_transformers_works_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as Python does for a script
    monkeypatch.delitem(sys.modules, "transformer", raising=False)
    follow("docs/tutorial-transformer.md")
    assert Path("transformer.py").read_text() == text_of("examples/transformer.py"), "it shows the example"
    assert Path("transformer.safetensors").exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_exists(document: str) -> None:
    for arguments in commands(document):
        if arguments == ["--help"]:
            continue
        name, *rest = arguments
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        with contextlib.ExitStack() as stack:
            for parameter in command.params:
                if isinstance(parameter.type, click.Path):  # a file of the reader's
                    stack.enter_context(mock.patch.object(parameter.type, "exists", False))
            command.make_context(name, list(rest))


def test_the_workflow_gives_the_action_what_it_takes() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(text_of("examples/check_workflow/export.yml"))
    step = workflow["jobs"]["check"]["steps"][-1]
    assert step["uses"] == "OWNER/growpipe@COMMIT"
    assert step["with"].keys() <= yaml.safe_load(text_of("action.yml"))["inputs"].keys()


class Net(nn.Module):
    """A network with a stem, so that the documents may freeze it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.stem(x)))
        return out


def around() -> dict[str, Any]:
    """What the documents take for granted."""
    torch.manual_seed(0)
    model = Net()
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 3, (16,))) for _ in range(4)]
    return {
        "model": model,
        "batches": batches,
        "loss_fn": nn.functional.cross_entropy,
        "example_inputs": (batches[0][0][:2],),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "one_sample": np.zeros((1, 3, 8, 8), np.float32),
        "build_net": Net,
        "torch": torch,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if "docs/tutorial" not in name and blocks(name, "python")]
)
def test_the_python_of_a_document_runs(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    known = around()
    torch.save(known["model"].state_dict(), "trained.pt")
    for block in blocks(document, "python"):
        if "run_checks(" in block:
            from growpipe.graph_ops.files.load_save import save_model

            for name in ("old.onnx", "new.onnx"):
                save_model(export_growth_form(Net().eval(), known["example_inputs"]).graph, name)
        from growpipe import analyse, grow

        known |= {"analyse": analyse, "grow": grow, **around(), "tmp_path": tmp_path}
        exec(compile(block, document, "exec"), known)  # noqa: S102 - our own documents
