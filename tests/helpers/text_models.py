"""Models in ONNX text form with initializers given as arrays, and running them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort


def text_model(
    body: str, inputs: str, outputs: str = "y", opset: int = 20, **weights: npt.NDArray
) -> ir.Model:
    """``body`` over typed ``inputs`` ("float[N,3] x"); every keyword is an initializer."""
    types = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(np.float16): "float16"}
    types |= {np.dtype(np.int64): "int64", np.dtype(np.bool_): "bool"}
    declared = [f"{types[w.dtype]}{list(w.shape) if w.ndim else ''} {name}" for name, w in weights.items()]
    imports = f'"": {opset}, "custom": 1'
    parsed = ir.from_onnx_text(
        f"<ir_version: 10, opset_import: [{imports}]> g ({', '.join([inputs, *declared])}) => ({outputs}) "
        f"{{ {body} }}"
    )
    by_name = {value.name: value for value in parsed.graph.inputs}
    for name, weight in weights.items():
        value = by_name[name]
        parsed.graph.inputs.remove(value)
        value.const_value = ir.tensor(weight, name=name)
        parsed.graph.register_initializer(value)
    for value in parsed.graph.outputs:
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return parsed


def two_layers(channels: int, hidden: int = 9) -> ir.Model:
    """MatMul, Relu, MatMul, from float[N,channels] x to float[N,channels] y; all weights are 1."""
    weights = {"a": np.ones((channels, hidden), np.float32), "b": np.ones((hidden, channels), np.float32)}
    body = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"
    return text_model(body, f"float[N,{channels}] x", f"float[N,{channels}] y", **weights)


def ort_run(
    model: ir.Model, feeds: Mapping[str, npt.NDArray], *, optimised: bool = False
) -> list[npt.NDArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))
