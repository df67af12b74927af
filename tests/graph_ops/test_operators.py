"""Questions about a node that everybody asks: which operator it is, and what it is called."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper

from growpipe.graph_ops.operators import is_onnx, node_name, operator_name, opset_version, plain_domain


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_both_spellings_of_onnxs_own_domain_are_one(domain: str) -> None:
    node = ir.node("Relu", [ir.Value(name="x")], domain=domain)
    proto = helper.make_node("Relu", ["x"], ["y"], domain=domain)
    assert plain_domain(domain) == ""
    assert is_onnx(node)
    assert is_onnx(proto)
    assert is_onnx(node, "Tanh", "Relu")
    assert is_onnx(proto, "Tanh", "Relu")
    assert not is_onnx(node, "Tanh")
    assert not is_onnx(proto, "Tanh")
    assert operator_name(node) == "Relu"


def test_an_operator_of_another_domain_is_not_onnxs_own() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], domain="com.acme")
    assert not is_onnx(node)
    assert not is_onnx(node, "Relu")
    assert operator_name(node) == "com.acme::Relu"


@pytest.mark.parametrize(
    ("imports", "expected"), [({"": 18}, 18), ({"ai.onnx": 9}, 9), ({"com.acme": 2}, 1), ({}, 1)]
)
def test_opset_version(imports: dict[str, int], expected: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports=imports)
    assert opset_version(ir.Model(graph, ir_version=10)) == expected


def test_a_node_without_a_name_is_called_by_its_first_named_output() -> None:
    node = ir.node("Split", [ir.Value(name="x")], num_outputs=2)
    node.outputs[1].name = "second"
    assert node_name(node) == "second"
    node.name = "own"
    assert node_name(node) == "own"
