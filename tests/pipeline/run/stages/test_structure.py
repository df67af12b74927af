"""The structure checks as a list of problems."""

from __future__ import annotations

import numpy as np
import onnx

from growpipe.run.stages.check import structure_problems

SOUND = """
<ir_version: 8, opset_import: ["": 17]>
sound (float[N, 3] x) => (float[N, 4] y) <float[4, 3] w = {1,0,0, 0,1,0, 0,0,1, 1,1,1}>
{
    h = Gemm <transB = 1> (x, w)
    y = Relu(h)
}
"""


def test_a_sound_model_has_no_problems(tmp_path) -> None:
    onnx.save(onnx.parser.parse_model(SOUND), tmp_path / "m.onnx")
    assert structure_problems(tmp_path / "m.onnx", (1, 2)) == []


def test_an_operator_whose_default_onnx_forgets(tmp_path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> standard (float[N, 3, 4, 4] x) => (float[N, 3, 1, 1] y)
        { h = MeanVarianceNormalization (x) y = GlobalMaxPool (h) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert structure_problems(tmp_path / "m.onnx", (1, 2)) == []


def test_a_wrong_width_is_named(tmp_path) -> None:
    model = onnx.parser.parse_model(SOUND)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 5), np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    (problem,) = structure_problems(tmp_path / "m.onnx")  # the run fails for the same defect: one line
    assert problem.startswith("structure/widths")
    assert "takes 5" in problem


def test_a_file_that_is_no_model(tmp_path) -> None:
    (tmp_path / "m.onnx").write_text("no model")
    (problem,) = structure_problems(tmp_path / "m.onnx")
    assert problem.startswith("safety/load")
