"""Models that are broken, one kind per function, with the check that must catch each and the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.good_models import (
    CNN_BODY,
    CNN_SIGNATURE,
    TRANSFORMER,
    build,
    cnn,
    cnn_weights,
    normal,
    quantised_qdq,
    save,
    transformer_weights,
)


@dataclass(frozen=True)
class Broken:
    """A kind of breakage.

    Attributes:
        make: writes the model into a folder; gives its path, or the arguments of `run_checks`.
        check: the check that must catch it.
        exit_code: of the whole.
        policy: tables of the policy.
        needs_torch: whether torch must be installed.
        by_default: what the check says in the profile ``default``. Not every kind is a fault for everyone:
            onnxruntime runs the model as its users run it.
    """

    make: Callable[[Path], Path | dict[str, Any]]
    check: str
    exit_code: int = 1
    policy: Mapping[str, Any] = field(default_factory=dict)
    needs_torch: bool = False
    by_default: str = "failed"


BROKEN: dict[str, Broken] = {}


def broken(
    check: str, exit_code: int = 1, needs_torch: bool = False, by_default: str = "failed", **policy: Any
) -> Callable[[Any], Any]:
    def enter(make: Callable[[Path], Path | dict[str, Any]]) -> Callable[[Path], Path | dict[str, Any]]:
        BROKEN[make.__name__] = Broken(make, check, exit_code, policy, needs_torch, by_default)
        return make

    return enter


def compared(
    folder: Path, model: onnx.ModelProto, reference: onnx.ModelProto | None = None
) -> dict[str, Any]:
    """The arguments for a model against a reference, by default the sound CNN."""
    return {"model": save(model, folder), "reference": save(reference or cnn(), folder, "reference.onnx")}


# Files that must not or cannot be read.


@broken("safety/load", 4)
def truncated_file(folder: Path) -> Path:
    path = save(cnn(), folder)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


@broken("safety/load", 4)
def empty_file(folder: Path) -> Path:
    (folder / "model.onnx").touch()
    return folder / "model.onnx"


@broken("safety/load", 4)
def text_file(folder: Path) -> Path:
    (folder / "model.onnx").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 9\n"
    )
    return folder / "model.onnx"


@broken("safety/load", 4)
def no_such_file(folder: Path) -> Path:
    return folder / "model.onnx"


@broken("safety/load", 4)
def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@broken("safety/load", 4)
def folder_instead_of_file(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


@broken("safety/load", 4)
def missing_external_data(folder: Path) -> Path:
    path = save(cnn(), folder, external=True)
    (folder / "model.onnx.data").unlink()
    return path


@broken("safety/load", 4)
def external_data_cut_short(folder: Path) -> Path:
    path = save(cnn(), folder, external=True)
    with (folder / "model.onnx.data").open("r+b") as file:
        file.truncate(100)
    return path


def _relocated(folder: Path, location: str) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    path = save(cnn(), inner, external=True)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    (inner / "model.onnx.data").rename(folder / "outside.data")
    return path


@broken("safety/load", 4)
def path_traversal(folder: Path) -> Path:
    return _relocated(folder, "../outside.data")


@broken("safety/load", 4)
def absolute_external_path(folder: Path) -> Path:
    return _relocated(folder, str(folder / "outside.data"))


@broken("safety/load", 4)
def symlink_out_of_the_folder(folder: Path) -> Path:
    path = _relocated(folder, "linked.data")
    (folder / "inner" / "linked.data").symlink_to(folder / "outside.data")
    return path


@broken("safety/load", 4)
def cyclic_graph(folder: Path) -> Path:
    return save(
        build("(float[N, 3] x) => (float[N, 3] y)", "a = Add (x, b)\n b = Relu (a)\n y = Relu (b)"), folder
    )


@broken("safety/load", 4)
def dangling_input(folder: Path) -> Path:
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Add (x, nowhere)"), folder)


@broken("safety/load", 4)
def bytes_do_not_match_the_shape(folder: Path) -> Path:
    model = cnn()
    model.graph.initializer[0].dims[0] += 1
    return save(model, folder)


@broken("safety/load", 4)
def function_that_calls_itself(folder: Path) -> Path:
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17, "mine": 1]>
    model (float[N, 3] x) => (float[N, 3] y) { y = mine.again (x) }
    <domain: "mine", opset_import: ["": 17, "mine": 1]>
    again (a) => (b) { b = mine.again (a) }
    """)
    return save(model, folder)


@broken("safety/load", 4)
def value_produced_twice(folder: Path) -> Path:
    return save(
        build("(float[N, 3] x) => (float[N, 3] y)", "a = Relu (x)\n a = Tanh (x)\n y = Relu (a)"), folder
    )


@broken("safety/load", 4)
def two_initializers_of_one_name(folder: Path) -> Path:
    model = cnn()
    model.graph.initializer.append(numpy_helper.from_array(normal(5, seed=9), "head_bias"))
    return save(model, folder)


# Files that must not be given away.


@broken("safety/domains")
def custom_domain(folder: Path) -> Path:
    model = build(
        "(float[N, 3] x) => (float[N, 3] y)", "y = com.acme.Secret (x)", opset='"": 17, "com.acme": 1'
    )
    return save(model, folder)


@broken("safety/leaks", by_default="warned")
def stack_traces(folder: Path) -> Path:
    model = cnn()
    entry = model.graph.node[0].metadata_props.add()
    entry.key = "pkg.torch.onnx.stack_trace"
    entry.value = 'File "/home/alice/secret_project/net.py", line 12, in forward\n  return self.conv(x)'
    return save(model, folder)


@broken("safety/leaks", by_default="warned")
def source_path(folder: Path) -> Path:
    model = cnn()
    model.doc_string = r"exported from C:\Users\alice\experiments\run_17\export.py"
    return save(model, folder)


@broken("safety/size", safety={"max_bytes": 2000})
def larger_than_allowed(folder: Path) -> Path:
    return save(cnn(), folder)


# Structure.


@broken("structure/widths")
def too_many_channels_for_a_convolution(folder: Path) -> Path:
    # The rank is known and the channels are not, so nothing but a look at the weights or a run shows it.
    return save(cnn(features__3__weight=normal(8, 7, 3, 3)), folder)


@broken("structure/widths")
def wrong_width_of_a_batch_norm(folder: Path) -> Path:
    return save(cnn(features__1__running_mean=normal(7)), folder)


@broken("structure/widths")
def wrong_width_of_a_classifier(folder: Path) -> Path:
    return save(cnn(head__weight=normal(5, 9)), folder)


@broken("structure/widths")
def wrong_groups(folder: Path) -> Path:
    body = CNN_BODY.replace("<pads = [1,1,1,1], strides = [2,2]>", "<pads = [1,1,1,1], group = 4>")
    return save(cnn(body=body), folder)


@broken("structure/shapes", by_default="warned")
def stale_shape_of_an_output(folder: Path) -> Path:
    return save(cnn(signature=CNN_SIGNATURE.replace("N, 5", "N, 7")), folder)


@broken("structure/shapes", by_default="warned")
def stale_shape_of_an_inner_value(folder: Path) -> Path:
    model = cnn()
    model.graph.value_info.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, ["N", 4, 12, 12]))
    return save(model, folder)


@broken("structure/shapes")
def types_that_do_not_mix(folder: Path) -> Path:
    return save(build("(float[N, 3] x, int64[N, 3] i) => (float[N, 3] y)", "y = Add (x, i)"), folder)


@broken("structure/outputs", by_default="warned")
def output_longer_than_declared(folder: Path) -> Path:
    # The declared batch is a name, which shape inference does not contradict.
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Concat <axis = 0> (x, x)"), folder)


@broken("structure/names")
def two_nodes_of_one_name(folder: Path) -> Path:
    model = cnn()
    model.graph.node[1].name = model.graph.node[0].name
    return save(model, folder)


@broken("structure/checker")
def operator_newer_than_its_opset(folder: Path) -> Path:
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Gelu (x)"), folder)


@broken("structure/checker")
def unknown_operator(folder: Path) -> Path:
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Relux (x)"), folder)


@broken("structure/checker")
def unknown_attribute(folder: Path) -> Path:
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Relu <slope = 2> (x)"), folder)


@broken("structure/checker", by_default="warned")
def misspelt_attribute(folder: Path) -> Path:
    model = build(
        "(float[N, 3] x) => (float[N, 3] y)", "c = Constant <value_float = 2.0> ()\n y = Mul (x, c)"
    )
    model.graph.node[0].attribute[0].name = "valu_float"
    return save(model, folder)


@broken("structure/checker")
def missing_attribute(folder: Path) -> Path:
    return save(build("(float[N, 3] x) => (float[N, 3] y)", "y = Concat (x)"), folder)


@broken("structure/checker")
def too_new_ir_version(folder: Path) -> Path:
    model = cnn()
    model.ir_version = 99
    return save(model, folder)


@broken("structure/versions", by_default="warned")
def too_old_opset(folder: Path) -> Path:
    return save(
        build("(float[N, 3] x) => (float[N, 3] y)", "y = Relu (x)", opset='"": 8'),
        folder,
    )


@broken("structure/versions", structure={"max_opset": 16})
def opset_above_the_policy(folder: Path) -> Path:
    return save(cnn(), folder)


@broken("structure/dynamic_dims", structure={"dynamic_dims": "none"})
def dynamic_dimension_against_the_policy(folder: Path) -> Path:
    return save(cnn(), folder)


@broken("structure/dynamic_dims", structure={"require_dynamic_batch": True})
def batch_fixed_by_accident(folder: Path) -> Path:
    return save(cnn(signature="(float[1, 3, 12, 12] image) => (float[1, 5] logits)"), folder)


@broken("structure/training")
def dropout_in_training_mode(folder: Path) -> Path:
    body = """
    half = Constant <value_float = 0.5> ()
    on = Constant <value = bool {1}> ()
    y = Dropout (x, half, on)
    """
    return save(build("(float[N, 64] x) => (float[N, 64] y)", body), folder)


@broken("structure/training")
def batch_norm_in_training_mode(folder: Path) -> Path:
    body = CNN_BODY.replace(
        "b0 = BatchNormalization <", "b0, mean, var = BatchNormalization <training_mode = 1, "
    )
    return save(cnn(body=body), folder)


@broken("structure/unused", by_default="warned")
def unused_initializer(folder: Path) -> Path:
    model = cnn()
    model.graph.initializer.append(numpy_helper.from_array(normal(3, 3), "left_over"))
    return save(model, folder)


@broken("structure/run", limits={"seconds": 2.5})
def endless_loop(folder: Path) -> Path:
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    model (float[N, 3] x) => (float[N, 3] y)
    {
        n = Constant <value = int64 {9223372036854775807}> ()
        c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool go, float[N, 3] a) => (bool go2, float[N, 3] a2)
        {
            go2 = Identity (go)
            a2 = Tanh (a)
        }>
    }""")
    return save(model, folder)


@broken("structure/run")
def crash_of_the_runtime(folder: Path) -> Path:
    # The least integer over -1 does not fit: the processor traps, and the process dies of it.
    body = """
    zero = Sub (x, x)
    one = Constant <value = int32 {1}> ()
    least = Constant <value = int32 {-2147483648}> ()
    minus = Sub (zero, one)
    most = Add (zero, least)
    y = Div (most, minus)
    """
    return save(build("(int32[N] x) => (int32[N] y)", body), folder)


@broken("structure/run", limits={"memory_mb": 4096})
def huge_allocation(folder: Path) -> Path:
    body = """
    shape = Constant <value = int64[2] {400000, 1000000}> ()
    many = ConstantOfShape (shape)
    most = ReduceMax <keepdims = 0> (many)
    y = Add (x, most)
    """
    return save(build("(float[N, 3] x) => (float[N, 3] y)", body), folder)


@broken("structure/run", by_default="warned")
def batch_of_one_in_a_reshape(folder: Path) -> Path:
    body = "shape = Constant <value = int64[2] {1, 12}> ()\n y = Reshape (x, shape)"
    return save(build("(float[N, 3, 4] x) => (float[N, 12] y)", body), folder)


@broken("structure/run", by_default="skipped")
def index_out_of_bounds(folder: Path) -> Path:
    body = "i = Constant <value = int64[1] {7}> ()\n off = Sub (i, zero)\n y = Gather <axis = 1> (x, off)"
    model = build("(float[N, 3] x, int64[1] zero) => (float[N, 1] y)", body)
    return save(model, folder)


@broken("structure/run")
def operator_without_a_kernel(folder: Path) -> Path:
    # Valid ONNX, but no execution provider has it for this type.
    weights = {"w": normal(4, 3, 3, 3).astype(np.float64)}
    return save(build("(double[N, 3, 8, 8] x) => (double[N, 4, 6, 6] y)", "y = Conv (x, w)", weights), folder)


# Numbers that are not finite, not the same, or not those of the reference.


@broken("numerics/weights")
def nan_weights(folder: Path) -> Path:
    weight = cnn_weights()["features.3.weight"]
    weight[2, 1, 0, 0] = np.nan
    return save(cnn(features__3__weight=weight), folder)


@broken("numerics/weights")
def weights_that_overflowed_float16(folder: Path) -> Path:
    with np.errstate(over="ignore"):
        weight = (normal(6, 3) * 1e5).astype(np.float16)
    return save(build("(float16[N, 6] x) => (float16[N, 3] y)", "y = MatMul (x, w)", {"w": weight}), folder)


@broken("numerics/finite")
def activations_that_overflow_float16(folder: Path) -> Path:
    weights = {"w": np.full((6, 6), 200, np.float16), "v": np.full((6, 6), 200, np.float16)}
    body = "a = Abs (x)\n h = MatMul (a, w)\n y = MatMul (h, v)"
    return save(build("(float16[N, 6] x) => (float16[N, 6] y)", body, weights), folder)


@broken("numerics/finite")
def logarithm_of_a_negative_number(folder: Path) -> Path:
    return save(build("(float[N, 30] x) => (float[N, 30] y)", "y = Log (x)"), folder)


@broken("numerics/determinism")
def random_operator(folder: Path) -> Path:
    body = "noise = RandomNormalLike (x)\n y = Add (x, noise)"
    return save(build("(float[N, 9] x) => (float[N, 9] y)", body), folder)


@broken("numerics/batch")
def normalised_over_the_batch(folder: Path) -> Path:
    body = "m = ReduceMean <axes = [0]> (x)\n y = Sub (x, m)"
    return save(build("(float[N, 9] x) => (float[N, 9] y)", body), folder)


@broken("numerics/optimisation")
def finite_only_when_fused(folder: Path) -> Path:
    # The squares overflow float16; onnxruntime's fused layer normalisation computes them in float32.
    body = """
    m = ReduceMean <axes = [-1]> (x)
    d = Sub (x, m)
    two = Constant <value = float16 {2}> ()
    s = Pow (d, two)
    v = ReduceMean <axes = [-1]> (s)
    e = Constant <value = float16 {1}> ()
    ve = Add (v, e)
    root = Sqrt (ve)
    n = Div (d, root)
    g = Mul (n, gamma)
    y = Add (g, beta)
    """
    weights = {"gamma": np.ones(8, np.float16), "beta": np.zeros(8, np.float16)}
    scaled = "big = Constant <value = float16 {1000}> ()\n x = Mul (x0, big)\n" + body
    return save(build("(float16[N, 8] x0) => (float16[N, 8] y)", scaled, weights), folder)


@broken("numerics/reference")
def swapped_weights(folder: Path) -> dict[str, Any]:
    weight = cnn_weights()["features.3.weight"]
    return compared(folder, cnn(features__3__weight=weight[[1, 0, 2, 3, 4, 5, 6, 7]]))


@broken("numerics/reference")
def transposed_kernel(folder: Path) -> dict[str, Any]:
    weight = cnn_weights()["features.0.weight"].transpose(0, 1, 3, 2)
    return compared(folder, cnn(features__0__weight=np.ascontiguousarray(weight)))


def _folded(epsilon: float, mean_sign: float = 1.0) -> onnx.ModelProto:
    w = cnn_weights()
    scale = w["features.1.weight"] / np.sqrt(w["features.1.running_var"] + epsilon)
    weights = {
        "w0": w["features.0.weight"] * scale[:, None, None, None],
        "b0": w["features.1.bias"] - mean_sign * w["features.1.running_mean"] * scale,
        "w1": w["features.3.weight"],
        "b1": w["features.3.bias"],
        "wh": w["head.weight"],
        "bh": w["head.bias"],
    }
    body = """
    n0 = Conv <pads = [1,1,1,1]> (image, w0, b0)
    r0 = Relu (n0)
    c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (r0, w1, b1)
    r1 = Relu (c1)
    pooled = GlobalAveragePool (r1)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, wh, bh)
    """
    return build(CNN_SIGNATURE, body, weights)


@broken("numerics/reference")
def batch_norm_folded_with_the_wrong_sign(folder: Path) -> dict[str, Any]:
    return compared(folder, _folded(1e-5, mean_sign=-1.0))


@broken("numerics/reference")
def batch_norm_folded_without_its_epsilon(folder: Path) -> dict[str, Any]:
    return compared(folder, _folded(0.0))


@broken("numerics/reference")
def missing_activation(folder: Path) -> dict[str, Any]:
    return compared(folder, cnn(body=CNN_BODY.replace("r1 = Relu (c1)", "r1 = Identity (c1)")))


@broken("numerics/reference")
def softmax_over_the_wrong_axis(folder: Path) -> dict[str, Any]:
    signature = "(int64[batch, seq] tokens, int64[batch, seq] mask) => (float[batch, seq, 16] hidden)"
    wrong = TRANSFORMER.replace("Softmax (masked)", "Softmax <axis = 1> (masked)")
    weights = transformer_weights()
    return compared(folder, build(signature, wrong, weights), build(signature, TRANSFORMER, weights))


@broken("numerics/reference")
def outputs_in_the_wrong_order(folder: Path) -> dict[str, Any]:
    weights = {"wa": normal(4, 3), "wb": normal(4, 3, seed=1)}
    right = build(
        "(float[N, 4] x) => (float[N, 3] a, float[N, 3] b)", "a = MatMul(x, wa)\n b = MatMul(x, wb)", weights
    )
    wrong = build(
        "(float[N, 4] x) => (float[N, 3] a, float[N, 3] b)", "b = MatMul(x, wa)\n a = MatMul(x, wb)", weights
    )
    return compared(folder, wrong, right)


@broken("numerics/reference")
def missing_output(folder: Path) -> dict[str, Any]:
    weights = {"wa": normal(4, 3), "wb": normal(4, 3, seed=1)}
    both = build(
        "(float[N, 4] x) => (float[N, 3] a, float[N, 3] b)", "a = MatMul(x, wa)\n b = MatMul(x, wb)", weights
    )
    one = build("(float[N, 4] x) => (float[N, 3] a)", "a = MatMul(x, wa)", {"wa": weights["wa"]})
    return compared(folder, one, both)


@broken("numerics/reference")
def wrong_quantisation_scale(folder: Path) -> dict[str, Any]:
    wrong = quantised_qdq()
    scale = next(t for t in wrong.graph.initializer if t.name == "sw")
    scale.CopyFrom(numpy_helper.from_array(np.float32(0.008), "sw"))
    return compared(folder, wrong, quantised_qdq())


@broken("numerics/reference")
def stale_weights_of_an_earlier_epoch(folder: Path) -> dict[str, Any]:
    drift = {
        n.replace(".", "__"): a + 1e-3 * normal(*a.shape, seed=77)
        for n, a in cnn_weights().items()
        if "var" not in n
    }
    return compared(folder, cnn(**drift))


SATURATED = """
    h = MatMul (x, w)
    a = Relu (h)
    z = MatMul (a, v)
    far = Sub (z, offset)
    y = Sigmoid (far)
"""


def _saturated(**changed: Any) -> onnx.ModelProto:
    weights = {"w": normal(4, 6), "v": normal(6, 3, seed=1), "offset": np.full(3, 60, np.float32), **changed}
    return build("(float[N, 4] x) => (float[N, 3] y)", SATURATED, weights)


@broken("numerics/reference")
def wrong_weights_behind_a_saturated_sigmoid(folder: Path) -> dict[str, Any]:
    return compared(folder, _saturated(w=normal(4, 6, seed=5)), _saturated())


TORCH_MODULE = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
"""


@broken("numerics/torch", needs_torch=True)
def activation_other_than_in_torch(folder: Path) -> dict[str, Any]:
    import torch

    (folder / "net.py").write_text(TORCH_MODULE)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    weights = {f"p{i}": p.detach().numpy() for i, p in enumerate(module.parameters())}
    body = "a = Gemm <transB = 1> (x, p0, p1)\n b = Sigmoid (a)\n y = Gemm <transB = 1> (b, p2, p3)"
    model = save(build("(float[N, 4] x) => (float[N, 3] y)", body, weights), folder)
    return {"model": model, "torch": f"{folder / 'net.py'}:build"}


# Accuracy, cost, latency, provider.


def labelled(folder: Path, wrong: float, samples: int = 400) -> Path:
    """Inputs, and the classes that the sound CNN gives them, a share of which is made wrong."""
    from growpipe.checks.measure.compare import run_model

    images = normal(samples, 3, 12, 12, seed=5)
    classes = run_model(cnn().SerializeToString(), {"image": images})["logits"].argmax(axis=1)
    count = int(wrong * samples)
    classes[:count] = (classes[:count] + 1) % 5
    np.savez(folder / "data.npz", image=images, targets=classes)
    return folder / "data.npz"


@broken("accuracy/floor", accuracy={"floor": 0.95})
def accuracy_below_the_floor(folder: Path) -> dict[str, Any]:
    return {"model": save(cnn(), folder), "data": [labelled(folder, 0.2)]}


@broken("accuracy/floor", 5, accuracy={"floor": 0.9})
def too_few_samples_for_the_floor(folder: Path) -> dict[str, Any]:
    return {"model": save(cnn(), folder), "data": [labelled(folder, 0.15, samples=20)]}


@broken("accuracy/drop", accuracy={"max_drop": 0.02}, levels={"numerics/reference": "off"})
def accuracy_regression(folder: Path) -> dict[str, Any]:
    return {**compared(folder, with_noise(0.4)), "data": [labelled(folder, 0.0)]}


def regression(folder: Path, *, of: onnx.ModelProto, noise: float = 0.05) -> Path:
    """Inputs, and numbers that are what a model gives for them, up to some noise."""
    from growpipe.checks.measure.compare import run_model

    images = normal(400, 3, 12, 12, seed=5)
    numbers = run_model(of.SerializeToString(), {"image": images})["logits"]
    np.savez(folder / "data.npz", image=images, targets=numbers + normal(400, 5, seed=6, scale=noise))
    return folder / "data.npz"


def with_noise(scale: float) -> onnx.ModelProto:
    """The sound CNN with another head."""
    return cnn(head__weight=cnn_weights()["head.weight"] + normal(5, 8, seed=3, scale=scale))


@broken("accuracy/floor", accuracy={"metric": "mae", "ceiling": 0.06})
def error_above_the_ceiling(folder: Path) -> dict[str, Any]:
    return {"model": save(with_noise(0.4), folder), "data": [regression(folder, of=cnn())]}


@broken("accuracy/drop", levels={"numerics/reference": "off"})
def error_that_rose(folder: Path) -> dict[str, Any]:
    return {**compared(folder, with_noise(0.1)), "data": [regression(folder, of=cnn())]}


@broken("accuracy/drop", accuracy={"metric": "r2", "max_drop": 0.1}, levels={"numerics/reference": "off"})
def explained_variation_that_dropped(folder: Path) -> dict[str, Any]:
    return {**compared(folder, with_noise(0.4)), "data": [regression(folder, of=cnn())]}


@broken("accuracy/drop", accuracy={"metric": "f1", "max_drop": 0.05}, levels={"numerics/reference": "off"})
def labels_that_got_worse(folder: Path) -> dict[str, Any]:
    from growpipe.checks.measure.compare import run_model

    images = normal(400, 3, 12, 12, seed=5)
    logits = run_model(cnn().SerializeToString(), {"image": images})["logits"]
    np.savez(folder / "data.npz", image=images, targets=(logits > 0).astype(np.float32))
    return {**compared(folder, with_noise(0.4)), "data": [folder / "data.npz"]}


@broken("cost/parameters", cost={"parameters": {"max": 500}})
def too_many_parameters(folder: Path) -> Path:
    return save(cnn(), folder)


@broken("cost/parameters", cost={"parameters": {"max": 40}})
def too_many_parameters_in_constant_nodes(folder: Path) -> Path:
    model = _saturated()
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    return save(model, folder)


@broken("cost/macs", cost={"macs": {"max_growth": 0.1}})
def too_many_macs(folder: Path) -> dict[str, Any]:
    slower = CNN_BODY.replace("strides = [2,2]", "strides = [1,1]")
    reference = cnn()
    return compared(folder, cnn(body=slower), reference)


@broken(
    "cost/file_size", cost={"file_bytes": {"max_growth": 0.0}}, structure={"allow_unused_initializers": True}
)
def larger_file(folder: Path) -> dict[str, Any]:
    model = cnn()
    model.graph.initializer.append(numpy_helper.from_array(normal(50, 50), "left_over"))
    return compared(folder, model)


@broken("cost/peak_memory", cost={"peak_memory_bytes": {"max": 50_000_000}})
def too_much_memory(folder: Path) -> Path:
    body = """
    shape = Constant <value = int64[2] {5000, 5000}> ()
    top = ReduceMax <keepdims = 0> (x)
    many = Expand (top, shape)
    most = ReduceMax <keepdims = 0> (many)
    y = Add (x, most)
    """
    return save(build("(float[1, 3] x) => (float[1, 3] y)", body), folder)


@broken("cost/operators", cost={"require_operators": ["FusedConv"]})
def lost_fusion(folder: Path) -> Path:
    # The value between convolution and activation is an output too, so that they cannot be fused.
    body = "c = Conv (x, w)\n y = Relu (c)"
    return save(
        build(
            "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] c)",
            body,
            {"w": normal(4, 3, 3, 3)},
        ),
        folder,
    )


SLOW_STEPS = "\n".join(f"m{i + 1} = MatMul (m{i}, m{i})" for i in range(20))
SLOW_BRANCH = f"""
    shape = Constant <value = int64[2] {{96, 96}}> ()
    top = ReduceMax <keepdims = 0> (image)
    none = Sub (top, top)
    m0 = Expand (none, shape)
    {SLOW_STEPS}
    nothing = ReduceMax <keepdims = 0> (m20)
    faster = Identity (pooled)
"""


def slow_cnn() -> onnx.ModelProto:
    """The sound CNN with a slow branch that does not change its outputs."""
    body = CNN_BODY.replace(
        "flat = Flatten (pooled)", SLOW_BRANCH + "late = Add (faster, nothing)\n flat = Flatten (late)"
    )
    return cnn(body=body)


@broken("latency/ratio", latency={"max_ratio": 1.5, "seconds": 4.0})
def slow_branch(folder: Path) -> dict[str, Any]:
    return compared(folder, slow_cnn())


@broken("latency/budget", latency={"max_ms": 0.002, "seconds": 2.0})
def slower_than_the_budget(folder: Path) -> Path:
    return save(slow_cnn(), folder)


def without_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@broken("provider/used", 3)
def device_that_is_not_there(folder: Path) -> dict[str, Any]:
    return {"model": save(cnn(), folder), "device": "cuda"}
