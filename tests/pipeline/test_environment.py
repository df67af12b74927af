"""What is not installed is named, with the extra that brings it; importing growpipe is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from growpipe.environment import code_version, library_versions, require, resolve_device
from growpipe.graph_ops.errors import MissingEnvironment
from tests.helpers.torch_free import python_without


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("torch", "['run', '--out', 'x']", ".[train]"),
        ("onnxruntime", "['run', '--out', 'x']", ".[cpu]"),
        ("torch", "['analyse', 'x']", ".[train]"),
    ],
)
def test_a_command_names_the_missing_extra(missing: str, command: str, extra: str) -> None:
    done = python_without((missing,), f"from growpipe.cli import main\nmain({command})\n")
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert f"needs {missing}, which is not installed: pip install '{extra}'" in line


def test_the_python_calls_name_the_missing_extra() -> None:
    done = python_without(
        ("torch",), "import growpipe\nprint(growpipe.SplitPlan.__name__)\ngrowpipe.analyse\n"
    )
    assert done.stdout == "SplitPlan\n"
    assert "growpipe.analyse needs torch, which is not installed: pip install '.[train]'" in done.stderr


def test_every_public_name_is_there() -> None:
    import growpipe

    assert growpipe.__all__ == sorted(set(growpipe.__all__))
    for name in growpipe.__all__:
        public = getattr(growpipe, name)
        assert public.__name__ == {"analyze": "analyse"}.get(name, name)
        assert public.__doc__
    assert set(growpipe.__all__) <= set(dir(growpipe))


def test_importing_growpipe_imports_nothing_heavy() -> None:
    code = "import growpipe, sys; print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=100) == "[]\n"


def test_an_import_error_inside_a_module_is_not_hidden() -> None:
    with pytest.raises(MissingEnvironment, match=r"x needs no_such_package, .*\.\[train\]"):
        require("no_such_package", "train", "x")


def test_the_code_version_names_release_and_sources() -> None:
    assert code_version().startswith("0.1.0+")
    assert "torch" in library_versions()


def test_cuda_asked_for_and_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(MissingEnvironment, match="no CUDA device"):
        resolve_device("cuda")
