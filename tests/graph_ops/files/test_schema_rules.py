"""A file whose attributes are not what its operators define is refused, in one line that names the node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, helper

from growpipe.graph_ops.errors import UnsafeModel
from growpipe.graph_ops.files.load_save import load_model
from tests.helpers.text_models import text_model


def gemm() -> onnx.ModelProto:
    weight = np.ones((4, 3), np.float32)
    return ir.to_proto(text_model("y = Gemm <transB = 1> (x, w)", "float[N,3] x", w=weight))


def load(model: onnx.ModelProto, folder: Path) -> ir.Model:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_model(path)


def test_right_attributes_are_read(tmp_path):
    assert load(gemm(), tmp_path).graph[0].attributes["transB"].as_int() == 1


@pytest.mark.parametrize(
    ("attribute", "what"),
    [
        (helper.make_attribute("transA", 1.0), "'transA' of type FLOAT; the operator asks for INT"),
        (helper.make_attribute("alpha", 1), "'alpha' of type INT; the operator asks for FLOAT"),
        (helper.make_attribute("beta", "1"), "'beta' of type STRING; the operator asks for FLOAT"),
        (helper.make_attribute("transA", [1]), "'transA' of type INTS; the operator asks for INT"),
        (helper.make_attribute("transB", 1), "'transB' twice"),
        (AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="a"), "is in none"),
    ],
)
def test_an_attribute_that_the_operator_does_not_define_so_is_refused(tmp_path, attribute, what):
    model = gemm()
    model.graph.node[0].attribute.append(attribute)
    with pytest.raises(UnsafeModel, match=what) as refusal:
        load(model, tmp_path)
    assert "'Gemm'" in str(refusal.value)


@pytest.mark.parametrize("version", [0, 1, 9, 30, 2**62])
def test_operators_are_held_against_a_schema_at_any_opset(tmp_path, version):
    model = gemm()
    model.opset_import[0].version = version
    model.graph.node[0].attribute.append(helper.make_attribute("transA", 1.0))
    with pytest.raises(UnsafeModel, match="transA"):
        load(model, tmp_path)


def test_attributes_inside_a_branch_are_held_against_the_schema(tmp_path):
    branch = "{ p = Softmax <axis = 1> (x) }"
    body = f"y = If (c) <then_branch = t () => (p) {branch}, else_branch = e () => (p) {branch}>"
    model = ir.to_proto(text_model(body, "float[N,3] x, bool c"))
    model.graph.node[0].attribute[1].g.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", 1.0))
    with pytest.raises(UnsafeModel, match="'Softmax' has the attribute 'axis' of type FLOAT"):
        load(model, tmp_path)


def test_a_function_may_take_attributes_from_its_caller(tmp_path):
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18, "own": 1]> g (float[N,3] x) => (float[N,3] y)
        { y = own.norm <a = 1> (x) }
        <domain: "own", opset_import: ["": 18]> norm <a> (x) => (z) { z = Softmax <axis : int = @a> (x) }"""
    )
    (function,) = load(model, tmp_path).functions.values()
    assert function[0].attributes["axis"].ref_attr_name == "a"


@pytest.mark.parametrize("count", [0, 2])
def test_a_constant_has_one_value(tmp_path, count):
    model = ir.to_proto(text_model("k = Constant <value_float = 1.0> () y = Add (x, k)", "float[N,3] x"))
    node = model.graph.node[0]
    del node.attribute[:]
    if count:
        node.attribute.extend(
            [helper.make_attribute("value_int", 1), helper.make_attribute("value_float", 1.0)]
        )
    with pytest.raises(UnsafeModel, match=f"'Constant' has {count} attributes"):
        load(model, tmp_path)


def test_an_attribute_of_another_version_is_held_against_that_version(tmp_path):
    vector = np.ones(3, np.float32)
    vectors = {name: vector for name in ("s", "b", "m", "v")}
    model = ir.to_proto(text_model("y = BatchNormalization (x, s, b, m, v)", "float[N,3] x", **vectors))
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("spatial", 1))  # of versions 1 to 8
    assert load(model, tmp_path).graph[0].attributes["spatial"].value == 1
    node.attribute[0].CopyFrom(helper.make_attribute("spatial", 1.0))
    with pytest.raises(UnsafeModel, match="'spatial' of type FLOAT"):
        load(model, tmp_path)


def test_attributes_of_unknown_operators_are_left_alone(tmp_path):
    model = ir.to_proto(text_model("y = custom.Foo <axis = 1.0> (x)", "float[N,3] x"))
    assert load(model, tmp_path).graph[0].attributes["axis"].value == 1.0


def test_a_branch_cannot_give_what_its_own_node_computes(tmp_path):
    body = (
        "y = If (c) <then_branch = t () => (p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (x) }>"
    )
    model = ir.to_proto(text_model(body, "float[N,3] x, bool c"))
    branch = model.graph.node[0].attribute[0].g
    del branch.node[:]
    branch.output[0].name = "y"
    with pytest.raises(UnsafeModel, match="the output 'y', which nothing produces"):
        load(model, tmp_path)
