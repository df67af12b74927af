"""Files of other exporters: wrong declarations, subgraphs, sequences, operators of other domains."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from tests.graph_ops.groups.test_channel_groups import with_values
from tests.helpers.growing import assert_same_function, signed_plan


def read(text: str) -> ir.Model:
    return with_values(onnx.parser.parse_model(text))


def declare(model: ir.Model, name: str, *shape: int | str) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                value.shape = ir.Shape(shape)


@pytest.mark.parametrize("shape", [(1, "seqlen"), (3, 5, 7), (3, 5, 6, 1), (5, 6)])
def test_a_wrong_declaration_is_reported_and_not_believed(shape: tuple[int | str, ...]) -> None:
    model = read("""
        <ir_version: 8, opset_import: ["" : 17]>
        declared (float[3,5,4] x) => (float[3,5,2] y)
        <float[4,6] a, float[6,2] b>
        { h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }
    """)
    declare(model, "h", *shape)
    groups = find_channel_groups(model)
    assert groups["a"].splittable
    wanted = ",".join(str(size) for size in shape)
    assert groups.contradictions == (f"h is declared as [{wanted}], but its shape is [3,5,6]",)
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)}
    wider = grow_graph(model, signed_plan(model, growth=0.5))
    for value in (v for node in (*model.graph, *wider.graph) for v in node.outputs if v.name == "h"):
        value.shape = None  # onnxruntime refuses to load some of these declarations
    assert_same_function(model, wider, [inputs])


def test_a_wrong_declaration_behind_an_operator_without_a_rule_is_not_believed() -> None:
    """Declared with rank 2, the reshape would seem to keep the channels; it mixes them with the rows."""
    model = read("""
        <ir_version: 8, opset_import: ["" : 17]>
        declared (float[3,4] x) => (float[m,2] y)
        <float[2,6] a, float[6,2] b, int64[2] flat = {-1, 6}>
        {
            i = NonZero (x)
            j = Cast <to = 1> (i)
            t = Transpose (j)
            h = MatMul (t, a)
            f = Reshape (h, flat)
            y = MatMul (f, b)
        }
    """)
    declare(model, "i", 1, 7, 2)
    assert find_channel_groups(model)["a"].splittable
    declare(model, "h", 1, "rows", 6)
    assert find_channel_groups(model)["a"].splittable


BODIES = {
    "If": """
        z = If (c) <then_branch = t () => (float[n,6] p) { p = Mul (h, w) },
                    else_branch = e () => (float[n,6] q) { q = Identity (h) }>
    """,
    "If in If": """
        z = If (c) <then_branch = t () => (float[n,6] p) {
                        p = If (c) <then_branch = tt () => (float[n,6] pp) { pp = Mul (h, w) },
                                    else_branch = te () => (float[n,6] pq) { pq = Neg (h) }>
                    },
                    else_branch = e () => (float[n,6] q) { q = Sub (h, w) }>
    """,
    "Loop": """
        z = Loop (trips, c, h) <body = b (int64 i, bool go, float[n,6] s) => (bool on, float[n,6] next) {
            on = Identity (go)
            next = Mul (s, w)
        }>
    """,
}


@pytest.mark.parametrize("name", BODIES)
def test_what_a_body_reads_stays_and_what_is_beside_it_grows(name: str) -> None:
    model = read(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        bodies (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[1,6] w, float[4,5] d, float[5,2] e, int64 trips = {{2}}>
        {{
            h = MatMul (x, a)
            {BODIES[name]}
            m = MatMul (z, b)
            k = MatMul (x, d)
            l = MatMul (k, e)
            y = Add (m, l)
        }}
    """)
    groups = find_channel_groups(model)
    assert {group.name for group in groups.groups if group.splittable} == {"d"}
    barrier = groups["a"].barrier
    assert barrier is not None
    assert barrier.reason == "what goes into its subgraphs or comes out of them stays as it is"
    inner = ("If p",) if name == "If in If" else ()
    assert groups.cost.alternatives == (() if name == "Loop" else ("If z", *inner))
    assert groups.cost.uncounted == (("Loop z", "MatMul m") if name == "Loop" else ())
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    wider = grow_graph(model, signed_plan(model, growth=0.5))
    assert_same_function(model, wider, [{"x": x, "c": np.array(flag)} for flag in (True, False)])


def test_an_outer_value_that_a_branch_returns_as_it_is_stays() -> None:
    """ONNX asks for an Identity there and runtimes refuse it, so nothing is to run."""
    model = read("""
        <ir_version: 8, opset_import: ["" : 17]>
        returned (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[6,6] d>
        {
            h = MatMul (x, a)
            g = MatMul (h, d)
            z = If (c) <then_branch = t () => (float[n,6] g) { },
                        else_branch = e () => (float[n,6] q) { q = Neg (g) }>
            y = MatMul (z, b)
        }
    """)
    groups = find_channel_groups(model)
    assert groups["a"].splittable
    assert not groups["d"].splittable


def test_operators_of_machine_learning_are_named_barriers() -> None:
    model = read("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        forest (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b>
        {
            h = MatMul (x, a)
            [scaler] s = ai.onnx.ml.Scaler <offset = [0.0], scale = [2.0]> (h)
            y = MatMul (s, b)
        }
    """)
    groups = find_channel_groups(model)
    assert str(groups["a"].barrier) == (
        "ai.onnx.ml::Scaler scaler axis 1: growpipe has no rule for this operator"
    )


@pytest.mark.parametrize("kind", ["sequence", "optional"])
def test_inputs_that_are_no_tensors_are_barriers(kind: str) -> None:
    tensor = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2, 4])
    make = (
        onnx.helper.make_sequence_type_proto if kind == "sequence" else onnx.helper.make_optional_type_proto
    )
    read_first = "first = SequenceAt (s, zero)" if kind == "sequence" else "first = OptionalGetElement (s)"
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        odd (float[2,4] x) => (float[2,2] y)
        <float[4,6] a, float[6,2] b, int64 zero = {{0}}>
        {{ {read_first} z = Add (x, first) h = MatMul (z, a) r = Relu (h) y = MatMul (r, b) }}
    """)
    proto.graph.input.append(onnx.helper.make_value_info("s", make(tensor)))
    groups = find_channel_groups(with_values(proto))
    assert all("0x" not in str(group.barrier) for group in groups.groups)
    assert groups.barriers[0].operator == ("SequenceAt" if kind == "sequence" else "OptionalGetElement")
    assert groups["a"].splittable


def test_the_opset_may_be_declared_under_both_names_of_the_domain() -> None:
    model = read("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx" : 17]>
        twice (float[n,4] x) => (float[n,2] y)
        <float[4,6] a, float[6,2] b>
        { h = ai.onnx.MatMul (x, a) r = Relu (h) y = MatMul (r, b) }
    """)
    assert find_channel_groups(model)["a"].splittable


WEIGHTS = {
    "Constant": "w = Constant <value = float[6,2] {1,2,3,4,5,6,7,8,9,1,2,3}> ()",
    "value_floats": "v = Constant <value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> () w = Unsqueeze (v, one)",
    "Identity": "w = Identity (b)",
    "Cast": "w = Cast <to = 1> (b)",
    "Transpose": "t = Transpose (c) w = Identity (t)",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_behind_other_nodes_take_the_coefficients(name: str) -> None:
    columns = 1 if name == "value_floats" else 2
    model = read(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        behind (float[n,4] x) => (float[n,{columns}] y)
        <float[4,6] a, float[6,2] b, float[2,6] c, int64[1] one = {{1}}>
        {{ h = MatMul (x, a) r = Relu (h) {WEIGHTS[name]} y = MatMul (r, w) }}
    """)
    assert find_channel_groups(model)["a"].splittable
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert_same_function(model, grow_graph(model, signed_plan(model, growth=0.5)), [{"x": x}])


@pytest.mark.parametrize("axis", [-4, 4, 2**62, -(2**62)])
def test_a_flatten_at_an_axis_that_is_not_there_is_a_barrier(axis: int) -> None:
    model = read(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        flattened (float[3,5,4] x) => (float[m,2] y)
        <float[4,6] a, float[6,2] b>
        {{ h = MatMul (x, a) f = Flatten <axis = {axis}> (h) y = MatMul (f, b) }}
    """)
    assert not any(group.splittable for group in find_channel_groups(model).groups)
