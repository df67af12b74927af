"""What a model's types allow two of its forms to differ by."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from growpipe.checks.measure.tolerance import SINGLE, default_relative
from growpipe.graph_ops.files.load_save import load_model


@pytest.mark.parametrize(
    ("to", "opset", "expected"),
    [
        (TensorProto.FLOAT16, 17, 1e-2),
        (TensorProto.BFLOAT16, 17, 5e-2),
        (TensorProto.DOUBLE, 17, SINGLE),
        ("FLOAT16", 1, 1e-2),
        ("DOUBLE", 1, SINGLE),
        (-(2**63), 17, SINGLE),
        (99, 17, SINGLE),
        (None, 17, SINGLE),
    ],
)
def test_a_cast_to_a_coarse_type_widens_the_limit(
    tmp_path: Path, to: int | str | None, opset: int, expected: float
) -> None:
    """Before version 6 a Cast names its type; a number that is no type is nobody's type."""
    attributes = {} if to is None else {"to": to}
    nodes = [helper.make_node("Cast", ["x"], ["h"], **attributes), helper.make_node("Identity", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, tmp_path / "model.onnx")
    assert default_relative(load_model(tmp_path / "model.onnx")) == expected
