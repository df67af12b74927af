"""Growing a graph: what is refused, and what follows besides the weights."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups, solve
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.graph_ops.plan.split_plan import Displacement, hash_parameters
from tests.helpers.growing import assert_same_function, signed_plan

MLP = '<ir_version: 9, opset_import: ["" : 18]> mlp (float[n,4] x) => (float[n,2] y) '
BODY = "{ h = MatMul (x, a) s = Add (h, c) r = Relu (s) y = MatMul (r, b) }"
SHAPES = {"a": (4, 6), "c": (6,), "b": (6, 2)}


def read(text: str, shapes: dict[str, tuple[int, ...]], dtype=np.float32) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return ir.from_proto(proto)


def rows(batch: int, width: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, width)).astype(np.float32)}


def test_the_model_is_left_alone():
    model = read(MLP + BODY, SHAPES)
    before = ir.to_proto(model).SerializeToString()
    grown = grow_graph(model, signed_plan(model))
    assert ir.to_proto(model).SerializeToString() == before
    assert grown.graph.initializers["a"].shape == ir.Shape([4, 8])


def test_a_solution_of_the_model_is_used_and_one_of_another_is_refused():
    model, other = read(MLP + BODY, SHAPES), read(MLP + BODY, SHAPES)
    plan, solution = signed_plan(model), solve(model)
    expected = ir.to_proto(grow_graph(model, plan)).SerializeToString()
    assert ir.to_proto(grow_graph(model, plan, solution)).SerializeToString() == expected
    assert ir.to_proto(grow_graph(model, plan, solution)).SerializeToString() == expected
    with pytest.raises(UsageError, match="belongs to another model"):
        grow_graph(other, plan, solution)


def test_wrong_declarations_of_inner_values_do_not_stay_in_the_grown_model():
    model = read(MLP + BODY, SHAPES)
    h, s, r, _ = (node.outputs[0] for node in model.graph)
    h.shape, s.shape, r.shape = ir.Shape([1, 6]), ir.Shape([7, 5]), ir.Shape([1, 2, 3])
    grown = grow_graph(model, signed_plan(model))
    assert [node.outputs[0].shape for node in grown.graph][:3] == [
        ir.Shape([None, 8]),
        ir.Shape([None, 8]),
        None,
    ]
    assert_same_function(read(MLP + BODY, SHAPES), grown, [rows(1), rows(3)])


def test_a_plan_for_another_structure_is_refused():
    plan = signed_plan(read(MLP + BODY, SHAPES))
    with pytest.raises(UsageError, match="the structure of the graph differs"):
        grow_graph(read(MLP + BODY.replace("Relu", "Tanh"), SHAPES), plan)


def test_a_plan_for_other_values_is_refused():
    model = read(MLP + BODY, SHAPES)
    plan = signed_plan(model)
    array = model.graph.initializers["c"].const_value.numpy() + 1
    model.graph.initializers["c"].const_value = ir.tensor(array, name="c")
    with pytest.raises(UsageError, match="parameter values differ"):
        grow_graph(model, plan)


def test_a_plan_that_splits_a_barrier_is_refused():
    model = read(MLP + BODY, SHAPES)
    plan = signed_plan(model)
    wrong = replace(plan, groups=(replace(plan.groups[0], group="b"),))
    with pytest.raises(UsageError, match="which cannot split: Output y axis 1: an output of the graph"):
        grow_graph(model, wrong)


def test_a_plan_of_another_width_is_refused():
    model = read(MLP + BODY, SHAPES)
    plan = signed_plan(model)
    split = plan.groups[0]
    narrower = replace(split, width=5, source=np.arange(5), coefficient=np.ones(5))
    with pytest.raises(UsageError, match="has 6 channels, not 5"):
        grow_graph(model, replace(plan, groups=(narrower,)))


def test_displacements_reach_the_grown_weights():
    model = read(MLP + BODY, SHAPES)
    plan = signed_plan(model)
    direction = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    moved = replace(plan.groups[0], displacements={"a": Displacement(1, np.array([7]), direction)})
    still = grow_graph(model, plan).graph.initializers["a"].const_value.numpy()
    grown = grow_graph(model, replace(plan, groups=(moved,), epsilon=0.5))
    difference = grown.graph.initializers["a"].const_value.numpy() - still
    np.testing.assert_allclose(difference[:, 7], [0, 0.5, 1, 1.5], atol=1e-6)
    assert not difference[:, :7].any()


def test_parameters_that_a_plan_leaves_out_are_widened_all_the_same():
    model = read(MLP + BODY, SHAPES)
    plan = signed_plan(model)
    fewer = {name: layout for name, layout in plan.layouts.items() if name != "c"}
    values = {name: model.graph.initializers[name].const_value.numpy() for name in fewer}
    partial = replace(plan, layouts=fewer, parameters_hash=hash_parameters(fewer, values.__getitem__))
    assert_same_function(model, grow_graph(model, partial), [rows(3)])


def test_half_precision_weights_grow():
    text = MLP.replace("float[", "float16[") + BODY
    model = read(text, SHAPES, np.float16)
    grown = grow_graph(model, random_plan(find_channel_groups(model), model, growth=0.3))
    assert grown.graph.initializers["a"].dtype == ir.DataType.FLOAT16
    x = {"x": rows(3)["x"].astype(np.float16)}
    assert_same_function(model, grown, [x], tolerance=1e-2)


CAST = """<ir_version: 10, opset_import: ["" : 19]> g (float[N,16] x) => (float[N,4] y) {
    w1f = Cast<to=1>(w1) w2f = Cast<to=1>(w2) a = Gemm<transB=1>(x, w1f) r = Relu(a)
    y = Gemm<transB=1>(r, w2f) }"""
STORED = {
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "float8e4m3fn": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "float8e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
}


def stored_model(name: str, scale: float = 1.0) -> ir.Model:
    """Two layers whose weights are stored in few bits and cast to float32."""
    code, dtype = STORED[name]
    proto = onnx.parser.parse_model(CAST)
    rng = np.random.default_rng(0)
    for tensor, shape in (("w1", (8, 16)), ("w2", (4, 8))):
        array = (scale * rng.normal(size=shape)).astype(dtype)
        proto.graph.initializer.add(name=tensor, data_type=code, dims=shape, raw_data=array.tobytes())
    return ir.from_proto(proto)


@pytest.mark.parametrize("plan_of", [random_plan, net2net_plan])
@pytest.mark.parametrize("name", STORED)
def test_weights_stored_in_few_bits_grow_without_rounding(name, plan_of):
    model = stored_model(name)
    batch = {"x": rows(5, 16)["x"]}
    for seed in range(5):
        for growth in (0.5, 2.0):
            plan = plan_of(find_channel_groups(model), model, growth=growth, seed=seed)
            assert plan.widths == {"w1": round(8 * (1 + growth))}
            assert_same_function(model, grow_graph(model, plan), [batch], tolerance=2e-6)


@pytest.mark.parametrize("name", STORED)
def test_a_plan_whose_coefficients_a_stored_type_rounds_is_refused(name):
    model = stored_model(name)
    with pytest.raises(UsageError, match=r"'w2' is stored as .*ε = 0"):
        grow_graph(model, signed_plan(model))


def test_a_group_that_no_coefficients_fit_is_declined():
    # Too small to be halved, and doubling would need a bound of 2.
    model = stored_model("float16", scale=2.0**-24)
    groups = find_channel_groups(model)
    with pytest.raises(UsageError, match="stored in less than 32 bits"):
        net2net_plan(groups, model, growth=0.5)
    plan = random_plan(groups, model, growth=0.5)
    batch = {"x": 2**20 * rows(5, 16)["x"]}
    assert_same_function(model, grow_graph(model, plan), [batch])


@pytest.mark.parametrize("kind", ["value_floats", "value"])
def test_weights_in_every_kind_of_constant_are_planned_and_grown(kind):
    value = "value_floats=[1.0, 2.0, 3.0, 4.0]" if kind == "value_floats" else "value = float[4] {1, 2, 3, 4}"
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,2] y) {{
        b = Constant<{value}>() a = Gemm(x, w1, b) r = Relu(a) y = MatMul(r, w2) }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (4, 4)), ("w2", (4, 2))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name))
    model = ir.from_proto(proto)
    plan = random_plan(find_channel_groups(model), model, growth=0.5)
    assert plan.widths == {"w1": 6}
    assert_same_function(model, grow_graph(model, plan), [rows(3)])


def test_an_old_file_that_lists_its_weights_as_inputs_grows():
    proto = onnx.parser.parse_model("""<ir_version: 3, opset_import: ["" : 9]>
        g (float[n,4] x, float[4,6] a, float[6] c, float[6,2] b, int64[2] t) => (float[n,2] y) {
        h = MatMul (x, a) s = Add (h, c) r = Relu (s) f = Reshape (r, t) y = MatMul (f, b) }""")
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 6]), "t"))
    model = ir.from_proto(proto)
    grown = grow_graph(model, random_plan(find_channel_groups(model), model, growth=0.5))
    assert [value.name for value in grown.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.inputs] == ["x", "a", "c", "b", "t"]
    onnx.checker.check_model(ir.to_proto(grown), full_check=True)
    assert_same_function(model, grown, [rows(3)])


def test_weights_in_constant_nodes_grow():
    model = read(MLP + BODY, {"c": (6,)})
    rng = np.random.default_rng(1)
    proto = ir.to_proto(model)
    for name, shape in (("b", (6, 2)), ("a", (4, 6))):
        value = numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        proto.graph.node.insert(0, helper.make_node("Constant", [], [name], value=value))
    model = ir.from_proto(proto)
    grown = grow_graph(model, signed_plan(model))
    assert next(iter(grown.graph)).attributes["value"].value.shape == ir.Shape([4, 8])
    assert_same_function(model, grown, [rows(3)])


def test_initializers_that_are_also_inputs_grow():
    text = MLP.replace("(float[n,4] x)", "(float[n,4] x, float[4,6] a)") + BODY
    model = read(text, SHAPES)
    grown = grow_graph(model, signed_plan(model))
    assert grown.graph.inputs[1].shape == ir.Shape([4, 8])
    assert_same_function(model, grown, [rows(3)])


def test_zeros_shared_by_unrelated_layers_become_their_own():
    body = "{ h = Gemm (x, a, zero) r = Relu (h) k = Gemm (r, b, zero) q = Relu (k) y = Gemm (q, d) }"
    model = read(MLP + body, {"a": (4, 6), "b": (6, 6), "d": (6, 2)})
    zero = ir.tensor(np.zeros(6, np.float32), name="zero")
    value = ir.Value(name="zero", shape=ir.Shape([6]), type=ir.TensorType(zero.dtype), const_value=zero)
    model.graph.register_initializer(value)
    for node in model.graph:
        for index, given in enumerate(node.inputs):
            if given is not None and given.name == "zero" and given is not value:
                node.replace_input_with(index, value)
    plan = signed_plan(model)
    first, second = plan.groups
    grown = grow_graph(model, replace(plan, groups=(first,)))
    assert [node.inputs[2].shape for node in grown.graph if len(node.inputs) > 2] == [[8], [6]]
    assert_same_function(model, grown, [rows(3)])
    assert_same_function(model, grow_graph(model, replace(plan, groups=(first, second))), [rows(3)])


def test_a_weight_shared_by_two_layers_grows_once():
    body = "{ h = MatMul (x, a) k = MatMul (h, d) r = Relu (k) s = MatMul (r, d) y = MatMul (s, b) }"
    model = read(MLP + body, {"a": (4, 6), "d": (6, 6), "b": (6, 2)})
    plan = signed_plan(model)
    assert [split.group for split in plan.groups] == ["a"]
    assert_same_function(model, grow_graph(model, plan), [rows(3)])


def test_a_shared_shape_is_cloned_where_values_part():
    """One constant tells two Reshapes their target; only one of them grows."""
    body = """{
        h = MatMul (x, a) u = Reshape (h, six) r = Relu (u) p = MatMul (r, b)
        k = MatMul (x, d) v = Reshape (k, six) q = Softmax (v) t = MatMul (q, e)
        y = Add (p, t)
    }"""
    shapes = {"a": (4, 6), "b": (6, 2), "d": (4, 6), "e": (6, 2)}
    text = MLP + "<int64[2] six = {-1, 6}> " + body
    model = read(text, shapes)
    plan = signed_plan(model)
    assert [split.group for split in plan.groups] == ["a"]
    grown = grow_graph(model, plan)
    targets = [n.inputs[1].const_value.numpy().tolist() for n in grown.graph if n.op_type == "Reshape"]
    assert targets == [[-1, 8], [-1, 6]]
    assert_same_function(model, grown, [rows(3)])


def test_several_inputs_and_outputs():
    text = """<ir_version: 9, opset_import: ["" : 18]>
        two (float[n,4] x, float[n,3] z) => (float[n,2] y, float[n,5] w)
        {
            h = MatMul (x, a) k = MatMul (z, d) s = Add (h, k) r = Sigmoid (s)
            y = MatMul (r, b) w = MatMul (s, e)
        }"""
    model = read(text, {"a": (4, 6), "d": (3, 6), "b": (6, 2), "e": (6, 5)})
    plan = signed_plan(model)
    assert [split.group for split in plan.groups] == ["a"]
    inputs = {**rows(3), "z": rows(3, 3)["x"]}
    assert_same_function(model, grow_graph(model, plan), [inputs])


def test_a_dynamic_target_is_patched_where_it_spells_a_width():
    """Two unknown lengths, read off the input, and one number."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
        dynamic (float[n,m,4] x) => (float[n,m,2] y)
        <int64[1] six = {6}, int64[1] all = {-1}>
        {
            h = MatMul (x, a) t = Reshape (h, all) s = Shape <start = 0, end = 2> (x)
            k = Concat <axis = 0> (s, six) u = Reshape (t, k) r = Relu (u) y = MatMul (r, b)
        }"""
    model = read(text, {"a": (4, 6), "b": (6, 2)})
    grown = grow_graph(model, signed_plan(model))
    batches = [
        {"x": np.random.default_rng(0).normal(size=size).astype(np.float32)}
        for size in ((1, 5, 4), (3, 2, 4))
    ]
    assert_same_function(model, grown, batches)


def test_growing_twice_keeps_the_function():
    model = read(MLP + BODY, SHAPES)
    once = grow_graph(model, signed_plan(model, seed=1))
    twice = grow_graph(once, signed_plan(once, seed=2))
    assert find_channel_groups(twice)["a"].width == 10
    assert_same_function(model, twice, [rows(1), rows(7)])


def test_declared_shapes_follow():
    model = read(MLP + BODY, SHAPES)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    grown = ir.to_proto(grow_graph(inferred, signed_plan(inferred)))
    lengths = {value.name: value.type.tensor_type.shape.dim for value in grown.graph.value_info}
    assert {name: lengths[name][1].dim_value for name in "hsr"} == {"h": 8, "s": 8, "r": 8}
    onnx.checker.check_model(grown, full_check=True)
    onnx.shape_inference.infer_shapes(grown, strict_mode=True, data_prop=True)


def test_symbols_of_inner_values_that_count_channels_do_not_stay():
    weights = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
        heads (float[n,3] x, float[3,8] w, float[8,2] v) => (float[n,2] y)
        <int64[2] cut = {-1, 2}, int64[2] whole = {-1, 8}, float["4*n",2] parts>
        {
            h = MatMul(x, w)
            parts = Reshape(h, cut)
            t = Tanh(parts)
            back = Reshape(t, whole)
            y = MatMul(back, v)
        }""")
    del proto.graph.input[1:]
    for name, shape, values in (("w", (3, 8), weights[0]), ("v", (8, 2), weights[1][:16])):
        proto.graph.initializer.append(numpy_helper.from_array(values.reshape(shape), name))
    model = ir.from_proto(proto)
    wider = grow_graph(model, net2net_plan(find_channel_groups(model), model, growth=0.5))
    shapes = {out.name: out.shape for node in wider.graph for out in node.outputs}
    assert "4*n" in str({out.name: out.shape for node in model.graph for out in node.outputs}["parts"])
    assert "4*n" not in str(shapes["parts"])
