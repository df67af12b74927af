"""Models with maps among their inputs and outputs are read, edited and written with their types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TypeProto, helper, numpy_helper

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_structure


def classifier() -> onnx.ModelProto:
    """A hidden layer, a linear classifier, and the probabilities of its classes as a sequence of maps."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((4, 6)), "v": random.standard_normal((6, 3))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Identity", ["h"], ["i"]),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["s"]),
        helper.make_node("ZipMap", ["s"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9]),
    ]
    scores = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    mapped = TypeProto(map_type=TypeProto.Map(key_type=onnx.TensorProto.INT64, value_type=scores))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(mapped))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(path: Path) -> list[dict[int, float]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)})[0]


def test_a_map_keeps_its_type(path, tmp_path):
    model = load_model(path)
    save_model(model, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert again.graph.output[0].type == classifier().graph.output[0].type
    assert run(tmp_path / "again.onnx") == run(path)


def test_a_model_with_maps_is_deployed(path, tmp_path):
    save_model(deploy_form(load_model(path)), tmp_path / "form.onnx")
    form = onnx.load(tmp_path / "form.onnx")
    assert [node.op_type for node in form.graph.node] == ["MatMul", "Relu", "MatMul", "ZipMap"]
    assert form.graph.output[0].type == classifier().graph.output[0].type
    assert run(tmp_path / "form.onnx") == run(path)


def test_layers_before_a_map_are_sound_and_can_grow(path):
    model = load_model(path)
    assert check_structure(model) == []
    assert [group.name for group in find_channel_groups(model).groups if group.splittable] == ["w"]


def test_a_map_as_an_input_is_read(tmp_path):
    model = classifier()
    del model.graph.node[:]
    node = helper.make_node("CastMap", ["m"], ["x"], domain="ai.onnx.ml", map_form="DENSE", max_map=4)
    model.graph.node.append(node)
    scores = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    mapped = TypeProto(map_type=TypeProto.Map(key_type=onnx.TensorProto.INT64, value_type=scores))
    model.graph.output[0].CopyFrom(model.graph.input[0])
    model.graph.input[0].CopyFrom(helper.make_value_info("m", mapped))
    onnx.save(model, tmp_path / "model.onnx")
    save_model(load_model(tmp_path / "model.onnx"), tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph.input[0].type == mapped


def test_a_map_beside_an_operator_without_a_rule_is_no_obstacle(tmp_path):
    model = classifier()
    model.graph.node.insert(0, helper.make_node("Unique", ["x"], ["u"]))  # asks for inferred shapes
    model.graph.output.append(helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, ["M"]))
    onnx.save(model, tmp_path / "model.onnx")
    groups = find_channel_groups(load_model(tmp_path / "model.onnx"))
    assert [group.width for group in groups.groups if group.splittable] == [6]


def zip_map(read: str) -> onnx.NodeProto:
    return helper.make_node("ZipMap", [read], ["m"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9])


@pytest.mark.parametrize("place", ["branch", "function"])
def test_a_map_that_is_declared_elsewhere_is_read(tmp_path, place):
    model = classifier()
    mapped = onnx.ValueInfoProto(name="m", type=model.graph.output[0].type)
    if place == "branch":
        branches = {}
        for name in ("then_branch", "else_branch"):
            given = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            nodes = [zip_map("s"), helper.make_node("Relu", ["s"], [name])]
            branches[name] = helper.make_graph(nodes, name, [], [given], value_info=[mapped])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
        model.graph.node.insert(4, helper.make_node("If", ["flag"], ["z"], **branches))
    else:
        nodes = [zip_map("a"), helper.make_node("Relu", ["a"], ["b"])]
        function = helper.make_function("own", "f", ["a"], ["b"], nodes, model.opset_import)
        function.value_info.append(mapped)
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.insert(4, helper.make_node("f", ["s"], ["z"], domain="own"))
    onnx.save(model, tmp_path / "model.onnx")
    save_model(load_model(tmp_path / "model.onnx"), tmp_path / "again.onnx")
    assert run(tmp_path / "again.onnx") == run(tmp_path / "model.onnx")
