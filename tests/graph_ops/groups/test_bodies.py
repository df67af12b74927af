"""Bodies of If, Loop and Scan: which groups within them split, what they are called, what they cost."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.difference import difference_of
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.edit.history import read_history
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.graph_ops.hashes import graph_hash
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from growpipe.graph_ops.plan.data_free import random_plan
from tests.graph_ops.groups.test_channel_groups import with_values
from tests.helpers.growing import assert_same_function

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
BOTH = [{"x": X, "c": np.array(flag)} for flag in (True, False)]
STAYS = "what goes into its subgraphs or comes out of them stays as it is"


def read(text: str) -> ir.Model:
    return with_values(onnx.parser.parse_model(HEAD + text))


def choice(then: str, other: str = "q = MatMul (x, f)", weights: str = "", after: str = "y = Neg (z)") -> str:
    """A model of an If that computes z, [n,2], and what comes after it."""
    return f"""
        choice (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[4,5] d, float[5,2] e, float[4,2] f{weights}>
        {{
            z = If (c) <then_branch = t () => (float[n,2] p) {{ {then} }},
                        else_branch = o () => (float[n,2] q) {{ {other} }}>
            {after}
        }}
    """


THEN, ELSE = "h = MatMul (x, a) r = Relu (h) p = MatMul (r, b)", "g = MatMul (x, d) q = MatMul (g, e)"


def splittable(groups: ChannelGroups) -> set[str]:
    return {group.name for group in groups.groups if group.splittable}


def reason(groups: ChannelGroups, name: str) -> tuple[str, str]:
    barrier = groups[name].barrier
    assert barrier is not None
    return barrier.operator, barrier.reason


def assert_grows(model: ir.Model, batches: list[dict[str, np.ndarray]]) -> ir.Model:
    """Every group grows, twice, and the function stays."""
    grown = model
    for seed in (0, 1):
        groups = find_channel_groups(grown)
        plan = random_plan(groups, grown, growth=0.5, seed=seed)
        wider = grow_graph(grown, plan)
        assert check_widths(wider) == []
        assert_same_function(model, wider, batches, tolerance=1e-4)
        found = find_channel_groups(wider)
        assert {g.name: g.width for g in found.groups if g.name in plan.widths} == plan.widths
        assert found.cost.parameters() == groups.cost.parameters(plan.widths)
        assert found.cost.macs() == groups.cost.macs(plan.widths)
        grown = wider
    return grown


def test_both_branches_grow_and_are_counted() -> None:
    model = read(choice(THEN, ELSE).replace(", float[4,2] f", ""))
    groups = find_channel_groups(model)
    assert splittable(groups) == {"a", "d"}
    assert groups.cost.macs() == 4 * 6 + 6 * 2 + 4 * 5 + 5 * 2
    assert groups.cost.parameters() == groups.cost.macs()
    assert groups.cost.alternatives == ("If z",)
    assert groups.cost.uncounted == ()
    assert [str(barrier) for barrier in groups.barriers] == [f"If z: {STAYS}"]
    grown = assert_grows(model, BOTH)
    assert [step.widths.keys() for step in read_history(grown)] == [{"a", "d"}, {"a", "d"}]
    changes = difference_of(model, grown)
    assert {change.group: change.after for change in changes.widths} == {"a": 13, "d": 11}
    assert {change.name for change in changes.tensors} == {"a", "b", "d", "e"}


def owned(w: str = "w", v: str = "v") -> ir.Model:
    """Both branches have initializers of their own, of the same names."""
    hidden = f"h = MatMul (x, {w}) r = Relu (h)"
    return read(f"""
        owned (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b>
        {{
            z = If (c) <
                then_branch = t () => (float[n,2] p) <float[4,6] {w}, float[6,2] {v}> {{
                    {hidden} p = MatMul (r, {v})
                }},
                else_branch = o () => (float[n,2] q) <float[4,5] {w}, float[5,2] {v}> {{
                    {hidden} q = MatMul (r, {v})
                }}
            >
            k = MatMul (x, a) l = MatMul (k, b) y = Add (z, l)
        }}
    """)


def test_the_path_of_a_body_tells_weights_of_the_same_name_apart() -> None:
    model = owned()
    groups = find_channel_groups(model)
    widths = {group.name: group.width for group in groups.groups if group.splittable}
    assert widths == {"z/then_branch/w": 6, "z/else_branch/w": 5, "a": 6}
    assert groups.cost.parameters({"z/else_branch/w": 8}) - groups.cost.parameters() == 3 * (4 + 2)
    grown = assert_grows(model, BOTH)
    changed = {change.name for change in difference_of(model, grown).tensors}
    assert changed == {"a", "b"} | {
        f"z/{branch}_branch/{name}" for branch in ("then", "else") for name in "wv"
    }
    assert splittable(find_channel_groups(model, ["z/then_branch/*"])) == {"z/else_branch/w", "a"}
    with pytest.raises(UsageError, match="matches no tensor"):
        find_channel_groups(model, ["z/then_branch/u"])


def test_a_weight_of_a_body_that_hides_an_outer_one_is_another_weight() -> None:
    model = owned("a", "b")
    groups = find_channel_groups(model)
    assert splittable(groups) == {"z/then_branch/a", "z/else_branch/a", "a"}
    assert_grows(model, BOTH)


def test_a_name_that_looks_like_a_path_stays_unique() -> None:
    model = owned()
    model.graph.initializers["a"].name = "z/then_branch/w"
    assert "z/then_branch/w~2" in splittable(find_channel_groups(model))
    assert_grows(model, BOTH)


def test_the_structure_of_a_body_is_part_of_the_hash() -> None:
    model, other = owned(), owned()
    assert graph_hash(model) == graph_hash(other)
    (node,) = (node for node in other.graph if node.op_type == "If")
    w = node.attributes["then_branch"].as_graph().initializers["w"]
    w.const_value = ir.tensor(np.zeros((4, 7), np.float32), name="w")
    assert graph_hash(model) != graph_hash(other)
    plan = random_plan(find_channel_groups(model), model, growth=0.5)
    with pytest.raises(UsageError, match="the plan was not made for"):
        grow_graph(other, plan)


SHARED = "the weight 'a' is used in several graphs, a body among them"
SHARING = {
    "two bodies": choice(THEN, "k = MatMul (x, a) s = Tanh (k) q = MatMul (s, e)"),
    "a body and the main graph": choice(THEN, after="k = MatMul (x, a) l = MatMul (k, e) y = Add (z, l)"),
    "a body and a body within it": choice(
        "h = MatMul (x, a) r = Relu (h) g = MatMul (r, b) k = If (c) <"
        "then_branch = tt () => (float[n,2] pp) { pp = MatMul (x, f) },"
        "else_branch = te () => (float[n,2] pq) { l = MatMul (x, a) pq = MatMul (l, e) }> p = Add (g, k)"
    ),
}


@pytest.mark.parametrize("where", SHARING)
def test_a_weight_of_several_graphs_stays(where: str) -> None:
    model = read(SHARING[where].replace("float[5,2] e", "float[6,2] e"))
    groups = find_channel_groups(model)
    assert reason(groups, "a") == ("MatMul", SHARED)
    assert splittable(groups) == set()


def test_what_a_body_returns_stays() -> None:
    model = read("""
        returned (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b, float[4,6] d>
        {
            z = If (c) <then_branch = t () => (float[n,6] p) { h = MatMul (x, a) p = Relu (h) },
                        else_branch = o () => (float[n,6] q) { q = MatMul (x, d) }>
            y = MatMul (z, b)
        }
    """)
    groups = find_channel_groups(model)
    assert splittable(groups) == set()
    assert reason(groups, "a") == ("Output", "an output of the then_branch of If z")
    assert reason(groups, "d") == ("Output", "an output of the else_branch of If z")
    assert reason(groups, "b:in") == ("If", STAYS)


LOOP = """
    loop (float[n,4] x, bool c) => (float[n,4] y)
    <float[4,6] a, float[6,4] b, float[4,4] d, int64 trips = {3}>
    {
        y = Loop (trips, c, x) <body = body (int64 i, bool on, float[n,4] s) => (bool more, float[n,4] next) {
            more = Identity (on)
            BODY
        }>
    }
"""


def test_the_state_of_a_loop_stays_and_what_is_within_a_pass_grows() -> None:
    model = read(
        LOOP.replace("BODY", "k = MatMul (s, d) h = MatMul (k, a) r = Relu (h) next = MatMul (r, b)")
    )
    groups = find_channel_groups(model)
    assert splittable(groups) == {"a", "d"}
    assert reason(groups, "d:in") == ("Input", "an input of a body of Loop y")
    assert reason(groups, "b") == ("Output", "an output of the body of Loop y")
    assert groups.cost.uncounted == ("Loop y",)
    assert groups.cost.macs() == 4 * 4 + 2 * 4 * 6
    assert_grows(model, BOTH)


def test_a_loop_that_picks_a_row_by_the_number_of_its_pass() -> None:
    model = read(
        LOOP.replace(
            "BODY",
            "row = Gather <axis = 0> (x, i) all = Add (s, row) h = MatMul (all, a) r = Relu (h) "
            "next = MatMul (r, b)",
        ).replace(", float[4,4] d", "")
    )
    assert splittable(find_channel_groups(model)) == {"a"}
    assert_grows(model, BOTH)


def test_declared_shapes_of_a_state_are_not_believed() -> None:
    model = read(
        LOOP.replace("BODY", "k = MatMul (s, d) h = MatMul (k, a) r = Relu (h) next = MatMul (r, b)")
    )
    (node,) = (node for node in model.graph if node.op_type == "Loop")
    body = node.attributes["body"].as_graph()
    for value in (body.inputs[2], body.outputs[1]):
        value.shape = ir.Shape([2, 7, "m"])
    assert splittable(find_channel_groups(model)) == {"a", "d"}


def test_a_state_whose_rank_changes_keeps_everything_in_the_body() -> None:
    """After the first pass the state has rank 3 and the product is another one."""
    model = read(
        LOOP.replace(
            "BODY",
            "zero = Constant <value_ints = [0]> () h = MatMul (s, a) r = Relu (h) k = MatMul (r, b) "
            "next = Unsqueeze (k, zero)",
        )
        .replace(", float[4,4] d", "")
        .replace("=> (float[n,4] y)", "=> (float[b,c,d,n,4] y)")
    )
    groups = find_channel_groups(model)
    assert reason(groups, "a") == ("Loop", "the rank of its state may change")


def test_a_scan_counts_every_pass() -> None:
    model = read("""
        scan (float[n,5,4] x, bool c) => (float[2,3] y, float[2,5,3] outs)
        <float[4,6] a, float[6,3] b, float[2,3] start, float[3,6] d>
        {
            y, outs = Scan <num_scan_inputs = 1, scan_input_axes = [-2], scan_output_axes = [1],
                body = body (float[2,3] s, float[2,4] e) => (float[2,3] next, float[2,3] out) {
                    h = MatMul (e, a) g = MatMul (s, d) k = Add (h, g) r = Tanh (k)
                    next = MatMul (r, b) out = Identity (next)
                }> (start, x)
        }
    """)
    groups = find_channel_groups(model)
    assert splittable(groups) == {"a"}
    assert groups.cost.uncounted == ()
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    assert groups.cost.macs() == 5 * (4 * 6 + 2 * 3 * 6 + 2 * 6 * 3)
    assert_grows(model, [{"x": x, "c": np.array(True)}])


def test_a_scan_of_a_value_with_two_axes_of_one_symbol() -> None:
    model = read("""
        scan (float[n,n] x) => (float[n,n,1] outs)
        <float[1,6] a, float[6,1] b, int64[1] one = {1}>
        {
            outs = Scan <num_scan_inputs = 1, body = body (float[n] e) => (float[n,1] out) {
                u = Unsqueeze (e, one) h = MatMul (u, a) r = Tanh (h) out = MatMul (r, b)
            }> (x)
        }
    """)
    assert splittable(find_channel_groups(model)) == {"a"}
    assert_grows(model, [{"x": np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)}])


def test_a_graph_of_another_operator_is_opaque() -> None:
    model = read("""
        each (float[n,4] x, bool c) => (float[n,2] y)
        <float[4,6] a, float[6,2] b>
        {
            s = SplitToSequence <axis = 0> (x)
            t = SequenceMap (s) <body = body (float[1,4] e) => (float[1,2] o) {
                    h = MatMul (e, a) o = MatMul (h, b)
                }>
            y = ConcatFromSequence <axis = 0> (t)
        }
    """)
    groups = find_channel_groups(model)
    assert groups.groups == ()
    assert "SequenceMap t: channels are not followed into its subgraphs" in map(str, groups.barriers)
    assert "SequenceMap t" in groups.cost.uncounted


def test_a_weight_that_the_main_graph_prepares_for_a_body_grows_with_it() -> None:
    model = read(
        choice(
            "h = MatMul (x, u) r = Relu (h) p = MatMul (r, b)",
            weights=", float[6,4] t",
        )
        .replace("z = If", "u = Transpose (t) z = If")
        .replace("float[4,6] a, ", "")
    )
    groups = find_channel_groups(model)
    assert splittable(groups) == {"t"}
    assert_grows(model, BOTH)


def test_zeros_that_both_branches_share_are_held_once_for_each() -> None:
    model = read(
        choice(
            "h = MatMul (x, a) k = Add (h, zero) r = Relu (k) p = MatMul (r, b)",
            "g = MatMul (x, d) l = Add (g, zero) q = MatMul (l, e)",
            weights=", float[6] zero = {0, 0, 0, 0, 0, 0}",
        ).replace("float[4,5] d, float[5,2] e, float[4,2] f", "float[4,6] d, float[6,2] e")
    )
    groups = find_channel_groups(model)
    assert splittable(groups) == {"a", "d"}
    plan = random_plan(groups, model, growth=0.5)
    assert_same_function(model, grow_graph(model, plan), BOTH)


def test_lengths_that_the_main_graph_computes_are_known_in_a_body() -> None:
    model = read(
        choice(
            "h = MatMul (x, a) r = Reshape (h, target) k = Relu (r) p = MatMul (k, b)",
        ).replace(
            "z = If",
            """
        shape = Shape <end = 1> (x) six = Constant <value_ints = [6]> ()
        target = Concat <axis = 0> (shape, six)
        z = If""",
        )
    )
    assert splittable(find_channel_groups(model)) == {"a"}
    assert_grows(model, BOTH)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_convolution_tells_the_rank_of_what_an_if_computes(operator: str) -> None:
    """The branches give different ranks, as those of old exporters that squeeze what they can."""
    model = read(f"""
        ranks (float[1,3,7] x, bool c) => (float[m,n,k] y)
        <float[4,4,3] a, float[2,4,3] b, float[4,3,1] d, int64[1] zero = {{0}}>
        {{
            v = Conv (x, d)
            u = If (c) <then_branch = t () => (float[i,j] p) {{ p = Squeeze (v, zero) }},
                        else_branch = o () => (float[i,j,k] q) {{ q = Tanh (v) }}>
            h = {operator} (u, a) r = Relu (h) y = Conv (r, b)
        }}
    """)
    groups = find_channel_groups(model)
    (group,) = (group for group in groups.groups if group.splittable)
    assert group.name == "a"
    assert {(member.tensor, member.role) for member in group.members} == {("a", "made"), ("b", "mixed")}
    assert reason(groups, "d") == ("If", STAYS)
    x = np.random.default_rng(0).normal(size=(1, 3, 7)).astype(np.float32)
    assert_grows(model, [{"x": x, "c": np.array(False)}])
