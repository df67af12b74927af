"""Bundles: a model that runs in every layout, words that are true of it, files that their readers accept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from growpipe.bundle.options import BundleOptions
from growpipe.bundle.readme import readme
from growpipe.bundle.triton import triton_config
from growpipe.cli import cli
from growpipe.graph_ops.edit.bundle import bundle_files, model_card
from growpipe.graph_ops.edit.description import (
    DESCRIPTION_KEY,
    Description,
    MeasuredOnTest,
    describe,
    read_description,
)
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError, UnsafeModel, UsageError
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import net2net_plan
from tests.helpers.text_models import text_model

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")

CLASSES = 3


def classifier() -> ir.Model:
    """A grown classifier of five numbers."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(5, 8)).astype(np.float32),
        "v": random.normal(size=(8, CLASSES)).astype(np.float32),
    }
    seed = text_model(
        "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", "float[N,5] x", "float[N,3] y", **weights
    )
    grown = grow_graph(seed, net2net_plan(find_channel_groups(seed), seed, growth=0.5))
    test = MeasuredOnTest("accuracy", 0.9, 0.85, 0.94, 200, percent=True)
    describe(grown, Description("five numbers, <b>each</b> divided by 7", test))
    return grown


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, data and labels."""
    save_model(classifier(), tmp_path / "model.onnx")
    random = np.random.default_rng(1)
    x = random.normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, targets=random.integers(0, CLASSES, 40))
    (tmp_path / "labels.txt").write_text("cat\ndog\n<b>|bird\n")
    return tmp_path


def deploy(place: Path, *options: str) -> dict[str, Any]:
    """The card of the bundle ``out``; errors are raised."""
    command = ["deploy", str(place / "model.onnx"), "-o", str(place / "out"), "--json", *options]
    done = CliRunner().invoke(cli, command, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    card: dict[str, Any] = json.loads(done.output)
    return card


def everything(place: Path) -> list[str]:
    data = str(place / "data.npz")
    return [
        "--labels",
        str(place / "labels.txt"),
        "--test-vectors",
        data,
        "--fp16",
        "--int8",
        "--calibration",
        data,
    ]


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "verify.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")


@pytest.mark.parametrize(
    ("layout", "model"),
    [("plain", "model.onnx"), ("huggingface", "onnx/model.onnx"), ("triton", "net/1/model.onnx")],
)
def test_every_layout_is_whole(place: Path, layout: str, model: str) -> None:
    card = deploy(place, "--layout", layout, "--name", "net", *everything(place))
    out = place / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"card.json", *card["files"]}
    assert files == set(bundle_files(out))
    assert card["model"] == model
    onnx.checker.check_model(str(out / model), full_check=True)
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == files - {"card.json", "SHA256SUMS"}
    assert all(
        hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items()
    )
    done = verify(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same on 32 samples" in done.stdout

    half, small = card["variants"]
    assert (half["kind"], small["kind"]) == ("fp16", "int8")
    for variant in card["variants"]:
        found = onnx.load(out / variant["file"])
        assert [value.type.tensor_type.elem_type for value in found.graph.input] == [onnx.TensorProto.FLOAT]
        assert 0 < variant["difference"] < 0.2
        assert variant["score"]["samples"] == 40
        assert abs(variant["score"]["value"] - variant["float32_score"]["value"]) <= 0.2
        assert variant["latency"]["low"] <= variant["latency"]["ratio"] <= variant["latency"]["high"]
        assert variant["judged_on"] == "40 samples of data.npz"
    assert {t.data_type for t in onnx.load(out / half["file"]).graph.initializer} == {
        onnx.TensorProto.FLOAT16
    }
    assert onnx.TensorProto.INT8 in {t.data_type for t in onnx.load(out / small["file"]).graph.initializer}


def test_a_bundle_is_replaced_by_the_next_one_of_any_layout(place: Path) -> None:
    for layout in ("triton", "huggingface", "plain", "triton"):
        card = deploy(place, "--layout", layout)
        out = place / "out"
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert found == {"card.json", *card["files"]}
        assert all(any(folder.iterdir()) for folder in out.rglob("*") if folder.is_dir())


@pytest.mark.parametrize("foreign", ["onnx/own.bin", ".git/config", "own/deep/x", "onnx/deep/x", "LICENSE"])
def test_a_file_of_somebody_else_is_never_lost(place: Path, foreign: str) -> None:
    deploy(place, "--layout", "huggingface")
    (place / "out" / foreign).parent.mkdir(parents=True, exist_ok=True)
    (place / "out" / foreign).write_text("precious")
    with pytest.raises(UsageError, match="growpipe did not write there"):
        deploy(place, "--layout", "plain")
    assert (place / "out" / foreign).read_text() == "precious"
    assert (place / "out" / "onnx" / "model.onnx").exists()


def test_a_file_that_was_changed_or_linked_is_somebody_elses(place: Path) -> None:
    deploy(place, "--layout", "huggingface")
    (place / "out" / "README.md").write_text("my own words")
    with pytest.raises(UsageError, match=r"README\.md"):
        deploy(place)
    deploy_again = place / "out" / "README.md"
    deploy_again.unlink()
    (place / "elsewhere").mkdir()
    (place / "out" / "onnx").rename(place / "elsewhere" / "onnx")
    (place / "out" / "onnx").symlink_to(place / "elsewhere" / "onnx")
    with pytest.raises(UsageError, match="did not write there"):
        deploy(place)
    assert (place / "elsewhere" / "onnx" / "model.onnx").exists()


def test_a_card_that_names_files_outside_owns_none_of_them(place: Path) -> None:
    deploy(place)
    (place / "precious").write_text("x")
    card = json.loads((place / "out" / "card.json").read_text())
    entry = card["files"]["README.md"]
    for name in ("../precious", "/etc/hostname", "a/../../precious", "./README.md", "", "a//b"):
        card["files"][name] = entry
    (place / "out" / "card.json").write_text(json.dumps(card))
    assert set(bundle_files(place / "out")) <= {path.name for path in (place / "out").iterdir()}


def test_a_changed_file_or_model_fails_its_verification(place: Path) -> None:
    deploy(place, "--test-vectors", str(place / "data.npz"))
    out = place / "out"
    (out / "README.md").write_text("other")
    assert verify(out).returncode == 1
    assert "README.md is not the file that was published" in verify(out).stdout
    model = onnx.load(out / "model.onnx")
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.01),
            model.graph.initializer[0].name,
        )
    )
    onnx.save(model, out / "model.onnx")
    (out / "SHA256SUMS").write_text("")
    done = verify(out)
    assert done.returncode == 1
    assert "NOT the same on 32 samples" in done.stdout


def test_verify_needs_onnxruntime_and_numpy_alone(place: Path) -> None:
    deploy(place, "--test-vectors", str(place / "data.npz"))
    text = (place / "out" / "verify.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.M))
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def triton_messages() -> ModuleType:
    """Triton's message definition, without the rest of its client."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, triton_messages().ModelConfig())


def test_triton_reads_the_configuration(place: Path) -> None:
    deploy(place, "--layout", "triton", "--name", "net", "--labels", str(place / "labels.txt"))
    config = parsed((place / "out" / "net" / "config.pbtxt").read_text())
    assert (config.name, config.platform, config.max_batch_size) == ("net", "onnxruntime_onnx", 64)
    assert (config.input[0].name, list(config.input[0].dims), config.input[0].data_type) == ("x", [5], 11)
    assert (config.output[0].name, list(config.output[0].dims)) == ("y", [3])
    assert config.output[0].label_filename == "labels.txt"
    assert config.HasField("dynamic_batching")
    assert (place / "out" / "net" / "labels.txt").read_bytes() == (place / "labels.txt").read_bytes()


def test_triton_takes_odd_names_fixed_batches_and_scalars() -> None:
    odd = 'a"b\\c\n\u00e9\U0001f331" } evil'
    card = {
        "inputs": [{"name": odd, "type": "int64", "shape": [2, "width"]}],
        "outputs": [{"name": "y", "type": "float16", "shape": [None]}],
    }
    config = parsed(triton_config("net", card, None))
    assert config.input[0].name == odd
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (
        0,
        [2, -1],
        [-1],
    )
    assert not config.HasField("dynamic_batching")
    card["inputs"][0]["shape"] = ["N"]
    scalar = parsed(triton_config("net", card, None)).input[0]
    assert list(scalar.dims) == [1]
    assert scalar.HasField("reshape")
    for broken in ({"type": "float8e4m3fn"}, {"shape": None}):
        with pytest.raises(UsageError, match="Triton cannot serve"):
            triton_config("net", {**card, "inputs": [{**card["inputs"][0], **broken}]}, None)


def test_the_bill_of_materials_follows_its_schema(place: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    schemas = pytest.importorskip("cyclonedx.schema")
    deploy(place, "--licence", "apache-2.0", "--task", "image-classification", *everything(place))
    first = (place / "out" / "bom.cdx.json").read_text()
    document = json.loads(first)
    folder = Path(schemas.__file__).parent / "_res"
    loaded = [json.loads(path.read_text()) for path in folder.glob("*.SNAPSHOT.schema.json")]
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in loaded if "$id" in schema
    )
    whole = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    validator = jsonschema.validators.validator_for(whole)(whole, registry=registry)
    assert list(validator.iter_errors(document)) == []
    assert list(validator.iter_errors({**document, "components": [{"type": "thing"}]})) != []
    (fp16, int8), model = document["components"], document["metadata"]["component"]
    assert [fp16["bom-ref"], int8["bom-ref"]] == ["model_fp16.onnx", "model_int8.onnx"]
    assert (
        model["hashes"][0]["content"]
        == json.loads((place / "out/card.json").read_text())["files"]["model.onnx"]["sha256"]
    )
    assert "accuracy" in {m["type"] for m in int8["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}


def test_the_readme_is_true_and_harmless(place: Path) -> None:
    deploy(place, "--layout", "huggingface", "--licence", "mit", "--task", "tabular-classification")
    text = (place / "out" / "README.md").read_text()
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(front) == {
        "license": "mit",
        "library_name": "onnx",
        "pipeline_tag": "tabular-classification",
        "tags": ["onnx", "growpipe"],
    }
    assert "<code>w</code> 8 → 12" in body
    (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(outputs[0].shape)"],
        cwd=place / "out",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "(1, 3)", done.stderr

    odd = '``` <script>alert(1)</script> | "][x](javascript:1)'
    card = model_card(classifier())
    card |= {"model": "model.onnx", "verification": {"verified": False, "reason": odd}}
    card["inputs"][0]["name"] = odd
    card["growth"][0]["scheme"] = odd
    card["growth"][0]["widths"] = {odd: [1, 2]}
    text = readme(BundleOptions(), card, (), vectors=False)
    assert "<script>" not in text
    assert text.count("```") == 4
    assert "](" not in re.sub(r"```.*?```", "", text, flags=re.S)


def test_what_the_model_says_of_itself_is_in_every_document(place: Path) -> None:
    card = deploy(place)
    assert card["preprocessing"] == "five numbers, <b>each</b> divided by 7"
    assert (card["test"]["metric"], card["test"]["value"], card["test"]["samples"]) == ("accuracy", 0.9, 200)
    readme = (place / "out" / "README.md").read_text()
    assert "Inputs: five numbers, " in readme
    assert "<b>" not in readme
    assert "accuracy 90.0 % (95 % interval 85.0 % to 94.0 %) on 200 test samples." in readme
    bom = json.loads((place / "out" / "bom.cdx.json").read_text())
    analysis = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    assert analysis["performanceMetrics"][0]["value"] == "0.9"


def test_a_model_that_grows_again_forgets_how_well_it_did() -> None:
    model = classifier()
    grown = grow_graph(model, net2net_plan(find_channel_groups(model), model, growth=0.5))
    assert read_description(model).test is not None
    assert read_description(grown) == Description("five numbers, <b>each</b> divided by 7")
    assert read_description(text_model("y = Relu(x)", "float[N] x", "float[N] y")) == Description()


@pytest.mark.parametrize("text", ["{", "[]", '{"test": {"value": "many"}}', '{"preprocessing": 3}'])
def test_a_damaged_description_is_one_line(text: str) -> None:
    model = classifier()
    model.metadata_props[DESCRIPTION_KEY] = text
    with pytest.raises(UnsafeModel, match=r"growpipe\.description\) is damaged; remove that entry"):
        read_description(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "go together"),
        (["--calibration", "data.npz"], "go together"),
        (["--name", "../up"], "not a name"),
        (["--task", "a\nb"], "not a task"),
        (["--labels", "twice.txt"], "each once"),
        (["--labels", "two.txt"], r"2 labels, but the first output, '\w+', is \['N', 3\]"),
        (["--test-vectors", "other.npz"], "no array 'x'"),
        (["--test-vectors", "absent.npz"], "absent.npz"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    (place / "twice.txt").write_text("a\na\n")
    (place / "two.txt").write_text("a\nb\n")
    np.savez(place / "other.npz", z=np.zeros(3))
    with pytest.raises(GrowpipeError, match=message) as caught:
        deploy(place, *options)
    assert len(str(caught.value).splitlines()) == 1
    assert not (place / "out").exists()


@pytest.mark.parametrize("options", [[], ["--layout", "triton"], ["--labels", "labels.txt"]])
def test_a_model_without_outputs_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(place)
    silent = classifier()
    silent.graph.outputs.clear()
    save_model(silent, place / "model.onnx")
    with pytest.raises(CheckFailed, match="has no outputs"):
        deploy(place, *options)
    assert not (place / "out").exists()


def test_a_variant_that_overflows_is_not_shipped(place: Path) -> None:
    large = text_model("y = MatMul(x, a)", "float[N,2] x", "float[N,2] y", a=np.full((2, 2), 3e4, np.float32))
    save_model(large, place / "model.onnx")
    np.savez(place / "data.npz", x=np.full((4, 2), 100, np.float32))
    with pytest.raises(CheckFailed, match=r"reaches 6e\+06, and float16 ends at 65504"):
        deploy(place, "--fp16", "--test-vectors", str(place / "data.npz"))
    assert not (place / "out").exists()
