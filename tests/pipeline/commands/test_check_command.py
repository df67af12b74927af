"""The command ``growpipe check`` and the assertion for test suites."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from growpipe.cli import main
from growpipe.graph_ops.errors import UsageError
from growpipe.testing import assert_export_ok
from tests.helpers.broken_models import TORCH_MODULE, regression
from tests.helpers.good_models import build, cnn, cnn_weights, normal, save
from tests.helpers.torch_free import TORCH, python_without

pytestmark = pytest.mark.slow

FAST = ["--only", "safety", "--only", "structure/checker"]


def check(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["check", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_a_good_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(save(cnn(), tmp_path), *FAST) == 0
    output = capsys.readouterr()
    assert "safety/load" in output.out
    assert "exit code 0" in output.out
    assert output.err == ""


def test_several_formats_to_files_and_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    model = cnn()
    model.doc_string = "made in /home/alice/project/export.py"
    path = save(model, tmp_path)
    files = {name: tmp_path / f"out.{name}" for name in ("junit", "sarif", "markdown", "text")}
    formats = [f"--format={name}={file}" for name, file in files.items()]
    assert (
        check(
            path,
            *FAST,
            "--profile=release",
            "--json",
            *formats,
            f"--format=github={tmp_path / 'annotations'}",
        )
        == 1
    )
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["exit_code"] == 1
    assert ET.parse(files["junit"]).getroot().attrib["failures"] == "1"
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "safety/leaks" in files["text"].read_text()
    assert "::error" in (tmp_path / "annotations").read_text()
    assert "growpipe check: failed" in (tmp_path / "summary.md").read_text()


def test_several_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(cnn(), tmp_path)
    bad = tmp_path / "bad.onnx"
    bad.write_text("nothing")
    assert check(good, bad, *FAST, "--format", "json") == 4
    assert [p["exit_code"] for p in json.loads(capsys.readouterr().out)] == [0, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model"),
        (["m.onnx", "--format", "jnit"], "did you mean 'junit'"),
        (["m.onnx", "--format", "json", "--format", "junit"], "cannot share stdout"),
        (["m.onnx", "--format", "junit="], "give a file"),
        (["m.onnx", "--only", "strucure"], "did you mean 'structure'"),
        (["m.onnx", "--set", "latency.max_ration=1"], "did you mean 'max_ratio'"),
        (["m.onnx", "--set", "latency"], "KEY=VALUE"),
        (["m.onnx", "--weights", "w.safetensors"], "give --torch"),
        (["m.onnx", "--policy", "nowhere.toml"], "cannot be read"),
        (["m.onnx", "--baseline", "nowhere.json"], "--write-baseline"),
        (["m.onnx", "--data", "nowhere.npz"], "cannot be read"),
        (["--explain", "safety/lod"], "did you mean 'safety/load'"),
        (["a.onnx", "b.onnx", "--write-baseline", "b.json"], "one by one"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_list_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--list-checks") == 0
    listed = capsys.readouterr().out
    assert "numerics/reference" in listed
    assert check("--list-checks", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) >= 30
    assert check("--explain", "numerics/reference") == 0
    assert "float64" in capsys.readouterr().out


def test_a_baseline_is_written_of_a_model_that_passed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(cnn(), tmp_path)
    baseline = tmp_path / "baseline.json"
    assert check(path, "--only", "cost/parameters", "--write-baseline", baseline) == 0
    assert json.loads(baseline.read_text())["measured"]["cost/parameters"]["value"] == 659
    baseline.unlink()
    limits = ["--set", "cost.parameters.max=5"]
    assert check(path, "--only", "cost/parameters", "--write-baseline", baseline, *limits) == 1
    assert not baseline.exists()
    assert "no baseline was written" in capsys.readouterr().err


def test_a_key_of_the_policy_may_be_a_quoted_name(tmp_path: Path) -> None:
    path = save(cnn(), tmp_path)
    limits = ["--set", "cost.parameters.max=5"]
    assert check(path, "--only", "cost/parameters", *limits) == 1
    assert (
        check(path, "--only", "cost/parameters", *limits, "--set", 'levels."cost/parameters"="warning"') == 0
    )


def test_it_starts_and_runs_without_torch(tmp_path: Path) -> None:
    path = save(cnn(), tmp_path)
    code = f"""
        from growpipe.cli import main
        main(['check', {str(path)!r}, '--reference', {str(path)!r}, '--only', 'numerics'])
    """
    done = python_without(TORCH, code)
    assert done.returncode == 0, done.stderr
    assert "numerics/reference" in done.stdout


def test_metrics_need_no_torch_either(tmp_path: Path) -> None:
    data, path = regression(tmp_path, of=cnn()), save(cnn(), tmp_path)
    code = f"""
        import numpy as np
        from growpipe.checks.measure.judge import Judge, score
        arrays = np.load({str(data)!r})
        for name in ("rmse", "mae", "r2"):
            found = score({str(path)!r}, arrays, arrays["targets"], Judge("regression", name))
            print(found.quality.told(found.value))
    """
    done = python_without(TORCH, code)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["RMSE", "MAE", "R²"]


def test_torch_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    (tmp_path / "net.py").write_text(TORCH_MODULE)
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    weights = {f"p{i}": p.detach().numpy() for i, p in enumerate(module.parameters())}
    body = "a = Gemm <transB = 1> (x, p0, p1)\n b = Tanh (a)\n y = Gemm <transB = 1> (b, p2, p3)"
    path = save(build("(float[N, 4] x) => (float[N, 3] y)", body, weights), tmp_path)
    target = f"{tmp_path / 'net.py'}:build"
    only = ["--only", "numerics/torch"]
    assert check(path, "--torch", target, "--weights", tmp_path / "w.safetensors", *only) == 0
    assert "they agree" in capsys.readouterr().out
    assert check(path, "--torch", target + "er", *only) == 2


def test_assert_export_ok_in_a_test_suite(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 6)
            self.drop = torch.nn.Dropout(0.5)
            self.second = torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.second(self.drop(torch.relu(self.first(x))))

    net = Net()
    weights = {n.replace(".", "_"): p.detach().numpy() for n, p in net.named_parameters()}
    body = """
    a = Gemm <transB = 1> (x, first_weight, first_bias)
    b = Relu (a)
    y = Gemm <transB = 1> (b, second_weight, second_bias)
    """
    model = build("(float[N, 4] x) => (float[N, 3] y)", body, weights)
    for node, scope in zip(model.graph.node, ("first", "", "second"), strict=True):
        entry = node.metadata_props.add()
        entry.key, entry.value = (
            "pkg.torch.onnx.name_scopes",
            repr(["", scope, "op"] if scope else ["", "op"]),
        )
    path = save(model, tmp_path)
    report = assert_export_ok(path, net, (torch.randn(5, 4),), skip=["latency"])
    assert report.of("numerics/torch").status == "passed"
    assert net.training
    assert net.drop.training

    with torch.no_grad():
        net.second.bias += 0.5
    with pytest.raises(AssertionError, match="numerics/torch") as failure:
        assert_export_ok(path, net, {"x": np.ones((2, 4), np.float32)}, only=["numerics/torch"])
    assert "module 'second'" in str(failure.value)
    with pytest.raises(UsageError, match="example inputs"):
        assert_export_ok(path, net, (torch.randn(5, 4), torch.randn(5, 4)))


def test_assert_export_ok_against_a_reference(tmp_path: Path) -> None:
    reference = save(cnn(), tmp_path, "reference.onnx")
    assert_export_ok(reference, reference=reference, only=["numerics/reference"])
    worse = save(cnn(head__bias=cnn_weights()["head.bias"] + normal(5)), tmp_path)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_export_ok(worse, reference=reference, only=["numerics/reference"])


@pytest.mark.parametrize("renamed", [False, True])
def test_assert_export_ok_with_nested_and_skipped_arguments(renamed: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(4, 3)
            self.b = torch.nn.Linear(2, 3)

        def forward(self, batch, scale=None, *, bias=None):
            y = self.a(batch["x"]) + self.b(batch["y"])
            y = y if scale is None else y * scale
            return y if bias is None else y + bias

    net = Net().eval()
    weights = {n.replace(".", "_"): p.detach().numpy() for n, p in net.named_parameters()}
    names = ["image", "extra", "offset"] if renamed else ["batch_x", "batch_y", "bias"]
    body = f"""
    p = Gemm <transB = 1> ({names[0]}, a_weight, a_bias)
    q = Gemm <transB = 1> ({names[1]}, b_weight, b_bias)
    s = Add (p, q)
    y = Add (s, {names[2]})
    """
    signature = f"(float[N, 4] {names[0]}, float[N, 2] {names[1]}, float[3] {names[2]}) => (float[N, 3] y)"
    path = save(build(signature, body, weights), tmp_path)
    x, y, bias = torch.randn(2, 4), torch.randn(2, 2), torch.randn(3)
    only = {"only": ["numerics/torch"]}
    assert_export_ok(path, net, {"batch": {"x": x, "y": y}, "bias": bias}, **only)
    if renamed:
        with pytest.raises(UsageError, match="wrap the module"):
            assert_export_ok(path, net, [x, y, bias], **only)
    else:
        assert_export_ok(path, net, (x, y, bias), **only)
    with torch.no_grad():
        net.b.bias += 0.5
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_export_ok(path, net, {"batch": {"x": x, "y": y}, "bias": bias}, **only)


def test_usage_errors_of_odd_files_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text("tool = 3")
    for arguments, message in (
        ([""], "the name of the model is empty"),
        (["m.onnx", "--policy", tmp_path / "pyproject.toml"], "not a table"),
        (["m.onnx", "--set", "skip.x=1"], "skip"),
        (["m.onnx", "--set", "waivers.check=1"], "waivers"),
        (["m.onnx", "--set", "=3"], "KEY=VALUE"),
        (["m.onnx", "--profile", "relase"], "relase"),
    ):
        assert check(*arguments) == 2, arguments
        assert message in capsys.readouterr().err
