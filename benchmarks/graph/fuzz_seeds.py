"""The well-formed ONNX files that the fuzzer mutates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from benchmarks.graph.corpus import PACKAGES, cache_folder, fetch
from growpipe.graph_ops.errors import GrowpipeError

__all__ = ["own_seeds", "seeds"]

LARGEST = 120_000
"""Bytes of the largest file that is a seed; larger ones are slow and mutate no differently."""

TEXTS = (
    """<ir_version: 8, opset_import: ["": 13]> g (float[N,3,8,8] x) => (float[N,4] y)
    <float[6,3,3,3] w, float[6] b, float[4,6] v> {
      c = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (c) p = GlobalAveragePool (r)
      f = Flatten (p) y = Gemm <transB = 1> (f, v) }""",
    """<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,3] y)
    <float[6,8] w, float[8,3] v> {
      h = MatMul (x, w) s = Sigmoid (h) t = Mul (h, s) m = MatMul (t, v) y = Softmax <axis = -1> (m) }""",
    """<ir_version: 9, opset_import: ["": 18]> g (float[N,4,6] x) => (float[N,2,4] y)
    <int64[3] target, int64[1] starts, int64[1] ends, int64[1] axes, float[12,8] w, float[8,8] v> {
      t = Transpose <perm = [0,2,1]> (x) r = Reshape (t, target) h = MatMul (r, w) a = Relu (h)
      m = MatMul (a, v) s = Slice (m, starts, ends, axes) y = Identity (s) }""",
    """<ir_version: 3, opset_import: ["": 9]>
    g (float[1,3,8,8] x, float[4,3,1,1] w, float[4] s, float[4] b, float[4] m, float[4] variance)
    => (float[1,4,8,8] y) <float[4,3,1,1] w, float[4] s, float[4] b, float[4] m, float[4] variance> {
      c = Conv (x, w) n = BatchNormalization (c, s, b, m, variance) y = Relu (n) }""",
    """<ir_version: 9, opset_import: ["": 16]> g (float[N,4] x, bool flag) => (float[N,4] y)
    <float[4,6] w, float[6,4] v> {
      h = MatMul (x, w)
      a = If (flag) <
        then_branch = t () => (float[N,6] p) { p = Relu (h) },
        else_branch = e () => (float[N,6] q) { q = Tanh (h) }>
      y = MatMul (a, v) }""",
    """<ir_version: 9, opset_import: ["": 18, "own": 1]> g (float[N,4] x) => (float[N,2] y)
    <float[4,6] w, float[6,2] v> { h = own.layer (x, w) y = MatMul (h, v) }
    <domain: "own", opset_import: ["": 18]> layer (x, w) => (z) { m = MatMul (x, w) z = Relu (m) }""",
    """<ir_version: 9, opset_import: ["": 14]> g (float[5,N,4] x) => (float[N,3] y)
    <float[1,24,4] w, float[1,24,6] r, float[6,3] v, int64[1] zero> {
      s, h, c = LSTM <hidden_size = 6> (x, w, r) k = Squeeze (h, zero) y = MatMul (k, v) }""",
    """<ir_version: 9, opset_import: ["": 19]> g (float[N,4,8] x) => (float[N,4,8] y)
    <float[8] s, float[8] b, float[8,8] w, float[8,8] u, float[8,8] v, float[8,8] o, float scale> {
      n = LayerNormalization <axis = -1> (x, s, b) q = MatMul (n, w) k = MatMul (n, u) e = MatMul (n, v)
      kt = Transpose <perm = [0,2,1]> (k) a = MatMul (q, kt) d = Mul (a, scale) p = Softmax <axis = -1> (d)
      c = MatMul (p, e) z = MatMul (c, o) y = Add (x, z) }""",
)
"""Graphs whose float initializers are drawn at random."""

INTEGERS = {"target": [0, 2, 12], "starts": [0], "ends": [4], "axes": [2], "zero": [0]}
"""What the integer initializers of `TEXTS` are."""


def seeds(work: Path) -> list[bytes]:
    """The files, smallest first, kept in ``work`` so that every process mutates the same ones.

    They are those of `own_seeds`, the growth forms of the families of ``tests/helpers/networks.py``, the good
    models of ``tests/helpers/good_models.py``, and the small files of the corpus of `benchmarks.graph.wild`.
    """
    place = work / "seeds"
    if not place.is_dir():
        making = work / ".seeds"
        making.mkdir(parents=True, exist_ok=True)
        for content in {*own_seeds(), *_exported(), *_good(), *_wild()}:
            if len(content) <= LARGEST:
                (making / f"{hashlib.sha256(content).hexdigest()[:16]}.onnx").write_bytes(content)
        making.rename(place)
    contents = [path.read_bytes() for path in sorted(place.iterdir())]
    return sorted(contents, key=lambda content: (len(content), content))


def own_seeds() -> list[bytes]:
    """The models of `TEXTS`."""
    found = []
    for number, text in enumerate(TEXTS):
        model = parser.parse_model(text)
        random = np.random.default_rng(number)
        for info in model.graph.value_info:
            model.graph.initializer.append(_drawn(info, random))
        del model.graph.value_info[:]
        found.append(model.SerializeToString())
    return found


def _drawn(info: onnx.ValueInfoProto, random: np.random.Generator) -> onnx.TensorProto:
    declared = info.type.tensor_type
    if declared.elem_type == onnx.TensorProto.INT64:
        return onnx.numpy_helper.from_array(np.array(INTEGERS[info.name], np.int64), info.name)
    values = np.asarray(random.standard_normal([dim.dim_value for dim in declared.shape.dim]), np.float32)
    if info.name == "variance":
        values = np.square(values) + np.float32(0.5)
    return onnx.numpy_helper.from_array(values, info.name)


def _exported() -> Iterator[bytes]:
    import onnx_ir as ir
    import torch

    from growpipe.torch_module.export import export_growth_form
    from tests.helpers.networks import FAMILIES, seeded

    for build, shape in FAMILIES.values():
        graph = export_growth_form(seeded(build), (torch.randn(2, *shape),)).graph
        proto = ir.to_proto(graph)
        assert isinstance(proto, onnx.ModelProto)
        yield proto.SerializeToString()


def _good() -> Iterator[bytes]:
    from tests.helpers.good_models import GOOD

    for make in GOOD.values():
        yield make().SerializeToString()


def _wild() -> Iterator[bytes]:
    try:
        files = fetch(PACKAGES, cache_folder("wild"))
    except GrowpipeError as error:
        raise GrowpipeError(f"{error}; the fuzzer mutates the files of benchmarks.graph.wild too") from None
    for file in files:
        if file.path.stat().st_size <= LARGEST:
            yield file.path.read_bytes()
