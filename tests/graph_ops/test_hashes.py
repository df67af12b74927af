"""The hash that ties a plan to a graph: structure and initializer names, not the names a user may choose."""

from __future__ import annotations

import math
from pathlib import Path

import onnx_ir as ir

from growpipe.graph_ops.groups.channel_groups import find_channel_groups


def values(*shape: int) -> str:
    return "{" + ", ".join("0.5" for _ in range(math.prod(shape))) + "}"


def declared(name: str, *shape: int) -> str:
    return f"float[{', '.join(map(str, shape))}] {name} = {values(*shape)}"


W, V = declared("w", 3, 4), declared("v", 2, 3)
TEXT = f"""
<ir_version: 10, opset_import: ["" : 20]>
mlp (float[batch, 4] x) => (float[batch, 2] y)
<{W}, {V}>
{{
    h = Gemm<transB = 1>(x, w)
    a = Tanh(h)
    y = Gemm<transB = 1>(a, v)
}}
"""


def graph_hash(text: str) -> str:
    return find_channel_groups(ir.from_onnx_text(text)).graph_hash


def test_names_of_inputs_outputs_results_and_free_axes_do_not_count() -> None:
    renamed = TEXT.replace(" x)", " image)").replace("(x,", "(image,").replace("batch", "N")
    renamed = renamed.replace("h = ", "hidden = ").replace("Tanh(h)", "Tanh(hidden)")
    assert renamed != TEXT
    assert graph_hash(renamed) == graph_hash(TEXT)


def test_saving_and_loading_does_not_count(tmp_path: Path) -> None:
    # 0.1 in memory is another float than 0.1 on disk.
    model = ir.from_onnx_text(TEXT)
    model.graph[0].attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)
    ir.save(model, tmp_path / "m.onnx")
    loaded = ir.load(tmp_path / "m.onnx")
    assert find_channel_groups(loaded).graph_hash == find_channel_groups(model).graph_hash


def test_initializer_names_shapes_operators_and_topology_count() -> None:
    changed = {
        "name": TEXT.replace(W, declared("u", 3, 4)).replace("(x, w)", "(x, u)"),
        "shape": TEXT.replace(W, declared("w", 5, 4)).replace(V, declared("v", 2, 5)),
        "operator": TEXT.replace("Tanh", "Sigmoid"),
        "attribute": TEXT.replace("Gemm<transB = 1>(a", "Gemm<transB = 1, alpha = 2.0>(a"),
        "topology": TEXT.replace("(a, v)", "(h, v)"),
    }
    hashes = {what: graph_hash(text) for what, text in changed.items()}
    assert len({graph_hash(TEXT), *hashes.values()}) == 1 + len(changed)
