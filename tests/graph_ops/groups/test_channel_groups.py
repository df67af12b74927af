"""Channel groups: members, roles, names, barriers, frozen tensors, cost."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from growpipe.graph_ops.axes.dims import Atom, Concat, Fixed, Product
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import Member, find_channel_groups
from tests.helpers.growing import signed_plan

BLOCK = """
<ir_version: 9, opset_import: ["" : 18]>
block (float[n,3,6,6] x) => (float[n,2,4,4] y)
<float[8,3,3,3] stem, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[8,1,1,1] dw,
 float[2,8,1,1] head>
{
    h = Conv (x, stem)
    [bn] k = BatchNormalization (h, scale, shift, mean, var)
    r = Relu (k)
    [depthwise] d = Conv <group = 8> (r, dw)
    y = Conv (d, head)
}
"""


def read(text: str) -> ir.Model:
    return with_values(onnx.parser.parse_model(text))


def with_values(proto: onnx.ModelProto) -> ir.Model:
    """Initializers that the text declares without values, in bodies too, get random ones."""
    _fill(proto.graph, np.random.default_rng(0))
    return ir.from_proto(proto)


def _fill(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    for declared in graph.value_info:
        shape = [size.dim_value for size in declared.type.tensor_type.shape.dim]
        values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, declared.name))
    del graph.value_info[:]
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):
            _fill(attribute.g, rng)


def test_members_say_which_tensor_holds_the_channel_and_how():
    group = find_channel_groups(read(BLOCK))["stem"]
    assert group.splittable
    assert group.width == 8
    assert group.members == (
        Member("stem", 0, "made", "h", "Conv", "W"),
        Member("scale", 0, "carried", "bn", "BatchNormalization", "scale"),
        Member("shift", 0, "carried", "bn", "BatchNormalization", "B"),
        Member("mean", 0, "carried", "bn", "BatchNormalization", "input_mean"),
        Member("var", 0, "carried", "bn", "BatchNormalization", "input_var"),
        Member("dw", 0, "carried", "depthwise", "Conv", "W"),
        Member("head", 1, "mixed", "y", "Conv", "W"),
    )


def test_channels_that_cannot_split_say_where_and_why():
    groups = find_channel_groups(read(BLOCK))
    barriers = {group.name: group.barrier for group in groups.groups if not group.splittable}
    assert str(barriers["stem:in"]) == "Input x axis 1: an input of the graph"
    assert str(barriers["head"]) == "Output y axis 1: an output of the graph"
    assert [group.name for group in groups.groups] == ["stem", "stem:in", "head"]


def test_layouts_hold_the_tensors_of_splittable_groups_alone():
    groups = find_channel_groups(read(BLOCK))
    assert set(groups.layouts) == {"stem", "scale", "shift", "mean", "var", "dw", "head"}
    assert groups.layouts["head"] == TensorLayout(
        (
            AxisLayout(Fixed(2), "copied"),
            AxisLayout(Atom("stem", 8), "mixed"),
            AxisLayout(Fixed(1), "copied"),
            AxisLayout(Fixed(1), "copied"),
        )
    )
    assert groups.restricted(["stem"]) == groups.layouts
    with pytest.raises(UsageError, match="'head'"):
        groups.restricted(["head"])


def test_cost_follows_the_widths():
    cost = find_channel_groups(read(BLOCK)).cost
    assert cost.parameters() == 8 * 27 + 2 * 8 + 8 + 16
    assert cost.macs() == 16 * (8 * 27 + 8 + 16)
    wide = {"stem": 10}
    assert cost.parameters(wide) == 10 * 27 + 2 * 10 + 10 + 20
    assert cost.macs(wide) == 16 * (10 * 27 + 10 + 20)


def test_cost_of_a_grown_model_is_the_cost_at_its_widths():
    model = read(BLOCK)
    plan = signed_plan(model, growth=0.5)
    predicted = find_channel_groups(model).cost
    actual = find_channel_groups(grow_graph(model, plan)).cost
    assert actual.parameters() == predicted.parameters(plan.widths) > predicted.parameters()
    assert actual.macs() == predicted.macs(plan.widths) > predicted.macs()


def test_finding_groups_leaves_the_model_alone_and_is_repeatable():
    model = read(BLOCK)
    before = ir.to_proto(model).SerializeToString()
    first, second = find_channel_groups(model), find_channel_groups(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert first.groups == second.groups
    assert first.layouts == second.layouts
    assert first.graph_hash == second.graph_hash


@pytest.mark.parametrize("pattern", ["scale", "sc*", "r"])
def test_frozen_tensors_keep_their_channels(pattern):
    groups = find_channel_groups(read(BLOCK), [pattern])
    assert groups["stem"].barrier is not None
    assert groups["stem"].barrier.reason == f"kept by --freeze {pattern}"
    assert groups.layouts == {}


def test_freezing_does_not_rename_other_groups():
    text = BLOCK.replace("y = Conv (d, head)", "e = Conv (d, head) y = Conv (e, last)").replace(
        "float[2,8,1,1] head", "float[5,8,1,1] head, float[2,5,1,1] last"
    )
    free, frozen = find_channel_groups(read(text)), find_channel_groups(read(text), ["dw"])
    assert [group.name for group in free.groups] == [group.name for group in frozen.groups]
    assert frozen["head"].splittable


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UsageError, match="'sterm' matches no tensor"):
        find_channel_groups(read(BLOCK), ["sterm"])


def test_several_groups_on_one_weight_are_told_apart():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        halves (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, int64[2] sizes = {2, 4}, int64[2] block = {0, -1}>
        { h = MatMul (x, a) p, q = Split <axis = 1> (h, sizes)
          r = Concat <axis = 1> (q, p) y = MatMul (r, b) }
    """)
    groups = find_channel_groups(model)
    assert {group.name: group.width for group in groups.groups if group.splittable} == {"a": 2, "a#2": 4}
    assert groups.layouts["b"].axes[0] == AxisLayout(Concat((Atom("a#2", 4), Atom("a", 2))), "mixed")


def test_flattened_channels_are_products():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        flat (float[n,3,4,4] x) => (float[n,2] y)
        <float[8,3,3,3] a, float[32,2] b>
        { h = Conv (x, a) f = Flatten (h) y = Gemm (f, b) }
    """)
    groups = find_channel_groups(model)
    assert groups.layouts["b"].axes[0] == AxisLayout(Product((Atom("a", 8), Fixed(4))), "mixed")


def test_subgraphs_are_barriers_with_everything_they_read():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        branch (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[4,5] d, float[5,2] e>
        {
            h = MatMul (x, a)
            g = MatMul (x, d)
            z = If (c) <then_branch = then () => (float[n,6] t) { t = Relu (h) },
                        else_branch = other () => (float[n,6] o) { o = Neg (h) }>
            p = MatMul (z, b)
            q = MatMul (g, e)
            y = Add (p, q)
        }
    """)
    groups = find_channel_groups(model)
    assert groups["a"].barrier is not None
    assert (groups["a"].barrier.operator, groups["a"].barrier.reason) == (
        "If",
        "what goes into its subgraphs or comes out of them stays as it is",
    )
    assert groups["d"].splittable


def test_quantised_weights_are_barriers():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        quantised (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, int8[6,2] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float s = {0.5}>
        { h = MatMul (x, a) w = DequantizeLinear (b, s) y = MatMul (h, w) }
    """)
    barrier = find_channel_groups(model)["a"].barrier
    assert barrier is not None
    assert barrier.reason == "the weight b is stored as int8, which cannot hold the coefficients"


def test_structure_decides_the_hash_and_values_do_not():
    model, other = read(BLOCK), read(BLOCK)
    other.graph.initializers["scale"].const_value = ir.tensor(
        [2.0] * 8, name="scale", dtype=ir.DataType.FLOAT
    )
    assert find_channel_groups(model).graph_hash == find_channel_groups(other).graph_hash
    changed = read(BLOCK.replace("Relu (k)", "Tanh (k)"))
    assert find_channel_groups(model).graph_hash != find_channel_groups(changed).graph_hash


def test_a_node_before_its_inputs_is_a_barrier():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        unsorted (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[6,2] c>
        { q = MatMul (h, c) h = MatMul (x, a) p = MatMul (h, b) y = Add (p, q) }
    """)
    barrier = find_channel_groups(model)["a"].barrier
    assert barrier is not None
    assert barrier.reason == "the rank of input 0 is not known"


@pytest.mark.parametrize(
    "body",
    [
        "q = Transpose <perm = [0, 5]> (h)",
        "q = Concat (h, h)",
        "q = Conv (h, a)",
        "q = Softmax <axis = 7> (h)",
        "q = Split <axis = 1> (h, none)",
        "q = Gemm (h)",
        "q = BatchNormalization (h, a, a, a, a)",
        "q = Reshape (h, none)",
        "q = Slice (h, none)",
    ],
)
def test_nodes_that_fit_no_definition_are_barriers(body):
    model = read(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        odd (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, int64[0] none = {{}}>
        {{ h = MatMul (x, a) {body} y = MatMul (h, b) }}
    """)
    assert not find_channel_groups(model)["a"].splittable


def test_an_axis_that_would_come_to_contain_itself_is_a_barrier():
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        rolled (float[n,4] x) => (float[n,2,1] y)
        <float[6,4,1] a, float[6,6,1] b, float[6,1,1] c, float[6,6,1] d, float[2,6,1] e,
         int64[3] apart = {0, 6, 1}, int64[3] together = {1, 6, -1}, int64[3] rows = {-1, 4, 1}>
        {
            i = Reshape (x, rows)
            h = Relu (i)
            p = Conv (h, a)
            q = Conv (p, b)
            r = Reshape (q, together)
            s = Conv <group = 6, pads = [0, 0]> (r, c)
            t = Reshape (s, apart)
            u = Add (p, t)
            v = Conv (u, d)
            y = Conv (v, e)
        }
    """)
    assert find_channel_groups(model)["d"].splittable


@pytest.mark.parametrize("join", ["Concat <axis = 1> (h, h)", "Concat <axis = 0> (h, h)"])
def test_parts_of_parts_of_parts_are_a_barrier(join):
    doubling = "".join(
        f"h = {join}\n".replace("h =", f"h{i + 1} =").replace("(h, h)", f"(h{i}, h{i})") for i in range(60)
    )
    model = read(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        doubled (float[n,4] x) => (y)
        <float[4,6] a, float[6,2] b>
        {{ h0 = MatMul (x, a) {doubling} z = ReduceSum (h60) k = MatMul (h0, b) y = Add (z, k) }}
    """)
    assert find_channel_groups(model)["a"].barrier is not None


def test_lengths_that_double_sixty_times_end():
    doubling = "".join(f"s{i + 1} = Add (s{i}, s{i})\n" for i in range(60))
    model = read(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        doubled (float[n,4] x) => (y)
        <float[4,6] a, float[6,2] b>
        {{ h = MatMul (x, a) s0 = Shape (h) {doubling} z = Expand (h, s60) y = MatMul (z, b) }}
    """)
    assert find_channel_groups(model)["a"].barrier is not None


def test_a_length_that_decides_is_a_barrier():
    """The comparison changes when the channels grow, and with it the scale."""
    model = read("""
        <ir_version: 9, opset_import: ["" : 18]>
        deciding (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, int64 one = {1}, int64 six = {6}, int64 four = {4}>
        {
            h = MatMul (x, a)
            s = Shape (h)
            width = Gather (s, one)
            same = Equal (width, six)
            number = Where (same, four, one)
            scale = Cast <to = 1> (number)
            z = Mul (h, scale)
            y = MatMul (z, b)
        }
    """)
    barrier = find_channel_groups(model)["a"].barrier
    assert barrier is not None
    assert barrier.operator == "Equal"
