"""Model-local functions: their bodies are looked into, or their calls are named barriers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups, solve
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from growpipe.graph_ops.plan.data_free import random_plan
from tests.graph_ops.groups.test_channel_groups import with_values
from tests.helpers.growing import assert_same_function

LAYERS = """
<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
layers (float[n,16] x) => (float[n,4] y)
<float[8,16] w1, float[8] b1, float[6,8] w2, float[6] b2, float[4,6] w3>
{
    a = my.block (x, w1, b1)
    b = my.block (a, w2, b2)
    y = Gemm <transB = 1> (b, w3)
}
<domain: "my", opset_import: ["" : OPSET, "my" : 1]>
linear (x, w, b) => (y) { t = Transpose (w) m = MatMul (x, t) y = Add (m, b) }
<domain: "my", opset_import: ["" : OPSET, "my" : 1]>
block (x, w, b) => (y) {
    m = my.linear (x, w, b) c = Constant <value_float = 0.5> () s = Mul (m, c) y = Relu (s)
}
"""


def layers(opset: int = 17) -> ir.Model:
    return with_values(onnx.parser.parse_model(LAYERS.replace("OPSET", str(opset))))


def test_channels_pass_through_the_bodies_of_functions() -> None:
    model = layers()
    groups = find_channel_groups(model)
    assert {group.name for group in groups.groups if group.splittable} == {"w1", "w2"}
    assert groups.cost.macs() == 16 * 8 + 8 * 6 + 6 * 4
    assert groups.cost.uncounted == ()
    assert len(model.functions) == 2
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    for solution in (None, solve(model)):
        wider = grow_graph(model, random_plan(groups, model, growth=0.5), solution)
        assert check_widths(wider) == []
        assert_same_function(model, wider, [{"x": x}])


def test_a_constant_in_a_function_is_a_weight_of_each_call() -> None:
    model = with_values(
        onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        shifted (float[n,4] x) => (float[n,2] y)
        <float[4,3] a, float[3,3] b, float[3,2] c>
        {
            p = MatMul (x, a)
            q = my.shift (p)
            r = MatMul (q, b)
            s = my.shift (r)
            y = MatMul (s, c)
        }
        <domain: "my", opset_import: ["" : 17]>
        shift (x) => (y) { c = Constant <value_floats = [0.5, -1.0, 2.0]> () s = Add (x, c) y = Tanh (s) }
        """)
    )
    groups = find_channel_groups(model)
    assert {group.name for group in groups.groups if group.splittable} == {"a", "b"}
    plan = random_plan(groups, model, growth={"b": 2})
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert_same_function(model, grow_graph(model, plan), [{"x": x}])


def test_a_function_in_another_opset_is_a_named_barrier() -> None:
    """A node means another thing in another opset, so the body cannot stand in the graph."""
    groups = find_channel_groups(layers(opset=12))
    assert not any(group.splittable for group in groups.groups)
    assert [barrier.operator for barrier in groups.barriers] == ["my::block", "my::block", "Gemm"]
    assert groups.cost.uncounted == ("my::block a", "my::block b", "Gemm y")


@pytest.mark.parametrize("depth", [30])
def test_functions_that_call_functions_are_followed(depth: int) -> None:
    bodies = "\n".join(
        f'<domain: "my", opset_import: ["" : 17, "my" : 1]> f{i} (x) => (y) {{ y = my.f{i + 1} (x) }}'
        for i in range(depth)
    )
    model = with_values(
        onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        deep (float[n,4] x) => (float[n,2] y)
        <float[4,3] a, float[3,2] b>
        {{ p = MatMul (x, a) q = my.f0 (p) y = MatMul (q, b) }}
        {bodies}
        <domain: "my", opset_import: ["" : 17]> f{depth} (x) => (y) {{ y = Relu (x) }}
        """)
    )
    assert find_channel_groups(model)["a"].splittable
