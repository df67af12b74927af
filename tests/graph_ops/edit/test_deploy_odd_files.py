"""The deploy form of files that are old, odd, or wrong about their own shapes keeps their function."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser
from onnxruntime.capi import onnxruntime_pybind11_state as pybind11_state

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.folding import fold_constants
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.onnx_tools.shape_inference import infer_shapes

LOAD_ERRORS = (pybind11_state.Fail, pybind11_state.InvalidGraph, pybind11_state.NotImplemented)
Arrays = Mapping[str, npt.NDArray]


def weight(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def written(path: Path, text: str, weights: Arrays) -> onnx.ModelProto:
    """A model in ONNX's text form, with these initializers, as a file."""
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), k) for k, w in weights.items())
    onnx.save(proto, path)
    return proto


def run(path: Path, feeds: Arrays, *, optimised: bool) -> list[npt.NDArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def signature(path: Path) -> tuple[list[str], list[str]]:
    """What a user feeds and gets."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]


def assert_kept(path: Path, *feeds: Arrays) -> ir.Model:
    """The deploy form computes what the file computes on every set of inputs; return the form."""
    form = deploy_form(load_model(path))
    target = path.with_name("form.onnx")
    save_model(form, target)
    assert signature(target) == signature(path)
    for inputs in feeds:
        for optimised in (False, True):
            expected = run(path, inputs, optimised=optimised)
            for before, after in zip(expected, run(target, inputs, optimised=optimised), strict=True):
                assert before.shape == after.shape
                assert before.dtype == after.dtype
                np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return form


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


class TestScalars:
    """A scalar constant that is folded stays a scalar."""

    def test_an_index(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,5,8] x) => (float[N,8] y) {
            i = Sub(five, one) a = Gather<axis=1>(x, i) p = Softmax<axis=1>(a) y = Reshape(p, shape) }"""
        weights = {"five": np.array(5), "one": np.array(1), "shape": np.array([-1, 8])}
        written(tmp_path / "m.onnx", text, weights)
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(2, 5, 8)})
        (index,) = [node.inputs[1] for node in form.graph if node.op_type == "Gather"]
        assert index is not None
        assert index.const_value is not None
        assert index.const_value.shape == ir.Shape([])

    def test_the_limits_of_a_range(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,5,8] x) => (float[2,5,8] y) {
            s = Shape(x) n = Gather(s, one) r = Range(zero, n, one) e = Gather(table, r) y = Add(x, e) }"""
        weights = {"one": np.array(1), "zero": np.array(0), "table": weight(7, 8)}
        written(tmp_path / "m.onnx", text, weights)
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(2, 5, 8)})
        assert operators(form) == ["Range", "Gather", "Add"]

    def test_the_value_of_a_scalar_constant(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) {
            a = Constant<value_float=2.0>() b = Sqrt(a) c = Neg(b) y = Mul(x, c) }"""
        written(tmp_path / "m.onnx", text, {})
        assert operators(assert_kept(tmp_path / "m.onnx", {"x": weight(2, 4)})) == ["Mul"]


FLOATS = {"a": weight(2, 1, 3), "b": weight(1, 3, seed=1), "p": np.abs(weight(2, 3)) + 0.5}
INTEGERS = {"i": np.array([-7, 5, 9]), "j": np.array([2, -3, 4]), "one": np.array([1])}
FOLDED = {
    "elementwise": "m = Mul(a, b) n = Sub(m, a) o = Div(n, p) q = Pow(p, o) f = Max(q, o)",
    "unary": "l = Log(p) m = Exp(l) n = Sqrt(m) o = Reciprocal(n) q = Floor(a) r = Ceil(b) "
    "s = Abs(r) t = Neg(s) u = Add(t, q) f = Add(u, o)",
    "integers": "m = Div(i, j) n = Mul(m, i) o = Sub(n, j) f = Cast<to=1>(o)",
    "transposed": "m = Transpose<perm=[2,0,1]>(a) f = Flatten<axis=1>(m)",
    "gathered": "m = Gather<axis=2>(a, one) f = Concat<axis=1>(m, m)",
    "comparison": "m = Less(a, b) n = Greater(a, b) o = Or(m, n) q = Not(o) s = And(q, m) f = Cast<to=1>(s)",
    "reduced": "m = ReduceMax<axes=[0],keepdims=0>(a) n = ReduceMin<axes=[1]>(a) f = Add(m, n)",
    "product": "f = ReduceProd<axes=[1],keepdims=1>(a)",
    "squeezed": "f = Squeeze<axes=[1]>(a)",
    "unsqueezed": "m = Unsqueeze<axes=[0]>(a) f = Identity(m)",
    "summed": "f = ReduceSum<axes=[2],keepdims=0>(a)",
    "sliced": "f = Slice<axes=[2],starts=[1],ends=[3]>(a)",
    "split": "f, g = Split<axis=2,split=[1,2]>(a)",
    "padded": 'f = Pad<mode="reflect",pads=[0,0,1,0,0,1]>(a)',
    "tiled": "f = Tile(b, twice)",
    "expanded": "m = Shape(a) n = ConstantOfShape(m) o = Expand(b, m) q = Add(n, o) f = Where(yes, q, a)",
    "remainder": "m = Mod(i, j) n = Mod<fmod=1>(i, j) o = Add(m, n) f = Cast<to=1>(o)",
}
MORE = {"twice": np.array([2, 1]), "yes": np.array([True, False, True])}


def constant_model(case: str, opset: int) -> onnx.ModelProto:
    """A model that computes ``f`` from constants, and hands it on through a Neg."""
    constants = {**FLOATS, **INTEGERS, **MORE}
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1] x) => (float[1] y, float h) '
        f"{{ y = Relu(x) {FOLDED[case]} h = Neg(f) }}"
    )
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items() if name in read
    )
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.parametrize("case", FOLDED)
def test_what_is_folded_is_computed_at_the_opset_of_the_model(case: str) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    tried = []
    # Before 13 shape inference does not follow the values that Expand reads, and its size is not known.
    for opset in (13, 18, 20) if case == "expanded" else (7, 8, 9, 10, 11, 12, 13, 18, 20):
        proto = constant_model(case, opset)
        with contextlib.suppress(LOAD_ERRORS):
            session = ort.InferenceSession(proto.SerializeToString(), options)
            (expected,) = session.run(["h"], {"x": np.ones(1, np.float32)})
            tried.append(opset)
        if opset not in tried:
            continue  # the operator, or this form of it, is not of this opset
        model = infer_shapes(ir.from_proto(proto))
        fold_constants(model)
        assert operators(model) == ["Relu", "Neg"], opset
        tensor = model.graph.initializers["f"].const_value
        assert tensor is not None
        np.testing.assert_allclose(-tensor.numpy(), expected, rtol=2e-6, atol=1e-6)
        assert tuple(tensor.shape.numpy()) == expected.shape
    assert tried


def test_nothing_is_computed_below_the_opset_that_the_reference_operators_know(tmp_path: Path) -> None:
    text = """<ir_version: 3, opset_import: ["" : 6]> g (float[N,2,3] x, float[2,3] a, float[2] b)
        => (float[N,2,3] y) { c = Add<axis=0, broadcast=1>(a, b) y = Add<axis=1, broadcast=1>(x, c) }"""
    written(tmp_path / "m.onnx", text, {"a": weight(2, 3), "b": weight(2)})
    model = infer_shapes(load_model(tmp_path / "m.onnx"))
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
    count, refusals = fold_constants(model)
    assert (count, [r.reason for r in refusals]) == (0, ["opset 6 is older than 7"])


class TestDeclaredShapes:
    """What a file declares of a value that a node computes is a claim."""

    def test_a_batch_of_one_that_is_left_over(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,6,6] x) => (float[N,4] y) {
            a = Conv(x, w1) b = Relu(a) s = Shape(b) n = Gather(s, zero) n1 = Unsqueeze(n, ax0)
            t = Concat<axis=0>(n1, rest) c = Reshape(b, t) y = Gemm(c, w2) }"""
        weights = {"w1": weight(8, 3, 3, 3), "w2": weight(128, 4), "zero": np.array(0)}
        proto = written(tmp_path / "m.onnx", text, {**weights, "ax0": np.array([0]), "rest": np.array([128])})
        for name, shape in (("c", [1, 128]), ("t", [7])):
            kind = onnx.TensorProto.INT64 if name == "t" else onnx.TensorProto.FLOAT
            proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
        onnx.save(proto, tmp_path / "m.onnx")
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(1, 3, 6, 6)}, {"x": weight(3, 3, 6, 6)})
        assert "Shape" not in operators(form)

    @pytest.mark.parametrize("declared", ["float[1,L]", "float[N,3]", "float[N,5,4,1]", "float"])
    def test_an_output_of_another_rank_or_size(self, tmp_path: Path, declared: str) -> None:
        text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,6] x) => ({declared} y) {{
            s = Shape(x) z = Slice(s, zero, one) t = Concat<axis=0>(z, rest) y = Reshape(x, t) }}"""
        weights = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([6, -1])}
        written(tmp_path / "m.onnx", text, weights)
        assert_kept(tmp_path / "m.onnx", {"x": weight(1, 4, 6)}, {"x": weight(3, 4, 6)})

    def test_a_length_that_only_a_custom_operator_knows(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
            g (float[N,4] x) => (float[1,L] y) {
            a = com.microsoft.BiasGelu(x, b) s = Shape(a) t = Concat<axis=0>(s, one) y = Reshape(a, t) }"""
        written(tmp_path / "m.onnx", text, {"b": weight(4), "one": np.array([1])})
        assert_kept(tmp_path / "m.onnx", {"x": weight(3, 4)})

    def test_lengths_that_inference_takes_to_be_equal_are_not_declared(self, tmp_path: Path) -> None:
        """A slope of [1, 16] widens maps of width 1 in onnxruntime; ONNX's inference does not know that."""
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,H,W] x) => (float[A,B,C,D] y) {
            c = Conv(x, w) p = PRelu(c, s) d = Conv(p, v) y = Relu(d) }"""
        weights = {"w": weight(16, 3, 3, 3), "s": weight(1, 16), "v": weight(8, 16, 3, 3)}
        written(tmp_path / "m.onnx", text, weights)
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(1, 3, 31, 3)}, {"x": weight(2, 3, 20, 18)})
        inner = [value.shape for node in form.graph for value in node.outputs if value.name == "p"]
        assert [list(shape) for shape in inner if shape] == [["N", 16, None, None]]


BRANCHES = """
    h = MatMul(x, w) r = Relu(h) k = Add(c1, c1) i = Identity(r) d = Constant<value_floats=[1.0, 2.0, 3.0]>()
    y = If(c) <
        then_branch = t () => (float[N,3] a) { e = Add(i, k) a = Identity(e) },
        else_branch = f () => (float[N,3] b) {
            g = Constant<value_floats=[4.0, 5.0, 6.0]>() m = Mul(r, g) n = Mul(m, d) b = Identity(n) }
    >"""


PASSING = BRANCHES.replace("e = Add(i, k) a = Identity(e)", "a = Identity(i)")


class TestSubgraphs:
    """If, Loop and Scan stay as they are, and what they read of the outer graph survives."""

    @pytest.mark.parametrize(
        "body", [BRANCHES, BRANCHES.replace("e = Add(i, k) a = Identity(e)", "a = Identity(i)")]
    )
    def test_branches_that_read_outer_values(self, tmp_path: Path, body: str) -> None:
        head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x, bool c) => (float[N,3] y)'
        text = f"{head} {{ {body} }}"
        written(tmp_path / "m.onnx", text, {"w": weight(4, 3), "c1": weight(3)})
        feeds = [{"x": weight(2, 4), "c": np.array(flag)} for flag in (True, False)]
        form = assert_kept(tmp_path / "m.onnx", *feeds)
        assert "If" in operators(form)

    def test_a_loop_whose_body_reads_folded_values(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) {
            k = Add(c1, c1) i = Identity(x) t = Constant<value_int=3>() go = Constant<value=bool {1}>()
            y = Loop(t, go, i) <body = b (int64 it, bool on, float[N,3] v) => (bool out, float[N,3] u) {
                out = Identity(on) s = Add(v, k) u = Mul(s, i) }> }"""
        written(tmp_path / "m.onnx", text, {"c1": weight(3)})
        assert_kept(tmp_path / "m.onnx", {"x": weight(2, 3)})

    def test_a_norm_whose_input_a_branch_reads_is_not_fused(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N,2,5,5] x, bool c) => (float[N,3,3,3] y) {
            a = Conv(x, w) n = BatchNormalization(a, s, s, s, s) y = If(c) <
            then_branch = t () => (float[N,3,3,3] p) { p = Add(a, n) },
            else_branch = f () => (float[N,3,3,3] q) { q = Neg(n) }> }"""
        written(tmp_path / "m.onnx", text, {"w": weight(3, 2, 3, 3), "s": np.abs(weight(3))})
        feeds = [{"x": weight(2, 2, 5, 5), "c": np.array(flag)} for flag in (True, False)]
        assert "BatchNormalization" in operators(assert_kept(tmp_path / "m.onnx", *feeds))

    def test_a_scan(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]>
            g (float[3] h, float[T,3] x) => (float[3] l, float[T,3] y) {
            k = Add(c1, c1) l, y = Scan<num_scan_inputs=1, body = b (float[3] s, float[3] v) =>
            (float[3] n, float[3] o) { n = Add(s, v) m = Mul(n, k) o = Identity(m) }>(h, x) }"""
        written(tmp_path / "m.onnx", text, {"c1": weight(3)})
        assert_kept(tmp_path / "m.onnx", {"h": weight(3), "x": weight(4, 3)})


class TestOldAndOddFiles:
    def test_initializers_that_are_inputs_of_an_old_file(self, tmp_path: Path) -> None:
        text = """<ir_version: 3, opset_import: ["" : 9]>
            g (float[N,3,6,6] x, float[4,3,3,3] w, float[4] s, float[4] z, int64[2] t) => (float[N,64] y) {
            c = Conv(x, w) n = BatchNormalization(c, s, z, z, s) a = Relu(n) y = Reshape(a, t) }"""
        weights = {"w": weight(4, 3, 3, 3), "s": np.abs(weight(4)), "z": weight(4), "t": np.array([-1, 64])}
        written(tmp_path / "m.onnx", text, weights)
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(2, 3, 6, 6)})
        assert [value.name for value in form.graph.inputs] == ["x"]
        assert "BatchNormalization" not in operators(form)
        onnx.checker.check_model(onnx.load(tmp_path / "form.onnx"), full_check=True)

    def test_defaults_that_a_user_may_replace_are_no_constants(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N,4,6] x, int64[3] t, float[6] k) => (float[A,B,C] y) {
            s = Add(k, k) m = Mul(x, s) r = Reshape(m, t) q = Shape(r) y = Reshape(r, q) }"""
        written(tmp_path / "m.onnx", text, {"t": np.array([-1, 2, 12]), "k": weight(6)})
        x = {"x": weight(2, 4, 6)}
        assert_kept(tmp_path / "m.onnx", x, {**x, "t": np.array([-1, 8, 3])}, {**x, "k": weight(6, seed=3)})

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            ("y = Relu(x)", "float[N,3] y, float[N,3] x"),
            ("y = Add(x, w)", "float[N,3] y, float[3] w"),
            ("a = Identity(x) y = Relu(a)", "float[N,3] y, float[N,3] a"),
            ("a = Identity(w) y = Add(x, a)", "float[N,3] y, float[3] a"),
            ("r = Relu(x) y = Identity(r) z = Identity(r)", "float[N,3] y, float[N,3] z"),
            ("r = Relu(x) y = Identity(r)", "float[N,3] y, float[N,3] r"),
            ("k = Constant<value_floats=[1.0,2.0,3.0]>() y = Add(x, k)", "float[N,3] y, float[3] k"),
            ("k = Add(w, w) y = Add(x, k)", "float[N,3] y, float[3] k"),
            ("y = Dropout(x)", "float[N,3] y"),
        ],
    )
    def test_outputs_that_are_inputs_constants_or_other_outputs(
        self, tmp_path: Path, body: str, outputs: str
    ) -> None:
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => ({outputs}) {{ {body} }}'
        written(tmp_path / "m.onnx", text, {"w": weight(3)} if "w" in body + outputs else {})
        assert_kept(tmp_path / "m.onnx", {"x": weight(2, 3)})

    @pytest.mark.parametrize(
        "versions", [[("", 13), ("ai.onnx", 12)], [("ai.onnx", 13), ("", 12)], [("", 9), ("", 12)]]
    )
    def test_of_several_entries_of_one_operator_set_the_last_holds(
        self, tmp_path: Path, versions: list[tuple[str, int]]
    ) -> None:
        text = """<ir_version: 7, opset_import: ["" : 12]> g (float[N,4,4] x) => (float[N,4,4] y) {
            c = Squeeze<axes=[0]>(k) y = Mul(x, c) }"""
        proto = written(tmp_path / "m.onnx", text, {"k": weight(1, 4, 1)})
        del proto.opset_import[:]
        entries = [*versions, ("nobody.uses", 3)]
        proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in entries)
        onnx.save(proto, tmp_path / "m.onnx")
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(2, 4, 4)})
        assert form.graph.opset_imports == {"": 12}
        assert operators(form) == ["Mul"]

    def test_the_other_name_of_the_operator_set(self, tmp_path: Path) -> None:
        head = '<ir_version: 7, opset_import: ["ai.onnx" : 12]> g (float[N,4] x) => (float[N,4] y)'
        text = f"{head} {{ y = Relu(x) }}"
        proto = written(tmp_path / "m.onnx", text, {})
        proto.graph.node[0].domain = "ai.onnx"
        onnx.save(proto, tmp_path / "m.onnx")
        assert assert_kept(tmp_path / "m.onnx", {"x": weight(2, 4)}).graph.opset_imports == {"": 12}

    @pytest.mark.parametrize("at_once", [True, False])
    def test_external_data_in_another_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
    ) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,6,6] x) => (float[N,8,4,4] y) {
            c = Conv(x, w) k = Constant<value_floats=[2.0]>() y = Mul(c, k) }"""
        (tmp_path / "sub").mkdir()
        proto = written(tmp_path / "m.onnx", text, {"w": weight(8, 4, 3, 3)})
        onnx.save(
            proto,
            tmp_path / "sub" / "m.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=at_once,
            size_threshold=0,
            convert_attribute=True,
        )
        monkeypatch.chdir(tmp_path)
        form = deploy_form(load_model("sub/m.onnx"))
        assert operators(form) == ["Conv", "Mul"]

    def test_quantised_models_stay_quantised(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear<axis=1>(wq, ws)
            k = DequantizeLinear(kq, ks) t = MatMul(d, w) u = Add(t, k) v, vs, vz = DynamicQuantizeLinear(u)
            i = MatMulInteger(v, wi, vz) f = Cast<to=1>(i) y = Mul(f, vs) }"""
        rng = np.random.default_rng(0)
        weights: dict[str, Any] = {
            "s": np.float32(0.05),
            "z": np.uint8(128),
            "wq": rng.integers(-127, 127, (4, 3), np.int8),
            "ws": np.abs(weight(3)),
            "kq": np.array([5, -9, 3], np.int32),
            "ks": np.float32(0.1),
            "wi": rng.integers(-127, 127, (3, 3), np.int8),
        }
        written(tmp_path / "m.onnx", text, weights)
        form = assert_kept(tmp_path / "m.onnx", {"x": weight(5, 4)})
        assert operators(form).count("DequantizeLinear") == 3
        assert "MatMulInteger" in operators(form)


def test_operator_sets_of_functions_stay_imported(tmp_path: Path) -> None:
    """onnxruntime puts the body of a function into the graph, which must import the operators of the body."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "ai.onnx.ml": 3, "unused": 1, "own": 1]>
        g (float[N,3] x) => (float[N,3] y) { s = own.scaled (x) y = Relu (s) }
        <domain: "own", opset_import: ["ai.onnx.ml": 3]>
        scaled (x) => (z) { z = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (x) }"""
    )
    form = deploy_form(ir.from_proto(model))
    assert dict(form.graph.opset_imports) == {"": 18, "ai.onnx.ml": 3, "own": 1}
    save_model(form, tmp_path / "form.onnx")
    session = ort.InferenceSession(str(tmp_path / "form.onnx"), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(result, np.ones((1, 3)))


def test_outputs_that_are_maps_keep_their_type(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]>
        g (float[N,3] x) => (float[N,2] p, float[N,2] z) {
        h = MatMul(x, w) p = Softmax(h) z = ai.onnx.ml.ZipMap<classlabels_int64s=[4, 7]>(p) }"""
    proto = written(tmp_path / "m.onnx", text, {"w": weight(3, 2)})
    map_type = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    )
    proto.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(map_type))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    for form in (model, deploy_form(model)):
        save_model(form, tmp_path / "form.onnx")
        saved = onnx.load(tmp_path / "form.onnx")
        assert saved.graph.output[1].type == proto.graph.output[1].type
        x = {"x": weight(2, 3)}
        expected = run(tmp_path / "m.onnx", x, optimised=True)
        actual = run(tmp_path / "form.onnx", x, optimised=True)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
        assert [sorted(row) for row in actual[1]] == [[4, 7], [4, 7]]
