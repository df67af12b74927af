"""Loading and saving: sound models come through unchanged, every other file is refused in one line."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files import load_save as loading
from growpipe.graph_ops.files import proto_rules as safety
from growpipe.graph_ops.files import protobuf_size as wire
from growpipe.graph_ops.files.load_save import load_model, save_model

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def gemm(*initializers: TensorProto, **replaced) -> onnx.ModelProto:
    parts = {
        "nodes": [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "name": "g",
        "inputs": [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        "outputs": [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        "initializer": list(initializers) or [onnx.numpy_helper.from_array(WEIGHT, "w")],
    }
    graph = helper.make_graph(**(parts | replaced))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def external(location: str = "w.bin", **entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def assert_refused(path: Path, match: str) -> None:
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    with pytest.raises(UnsafeModel, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert (sorted(path.parent.iterdir()) if path.parent.is_dir() else []) == before


def test_a_sound_model_loads_from_a_bare_file_name(tmp_path, monkeypatch):
    write(tmp_path, gemm(external()))
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    tensor = load_model("model.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    assert os.path.isabs(tensor.base_dir)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not an ONNX model"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX model"),
        (b"\0" * 5000, "not an ONNX model"),
        (gemm().SerializeToString()[:-20], "truncated"),
        (gemm().graph.SerializeToString(), "no"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "no graph"),
        (onnx.ModelProto(graph=gemm().graph).SerializeToString(), "no IR version"),
    ],
    ids=["empty", "png", "random", "zeros", "truncated", "bare graph", "no graph", "no version"],
)
def test_files_that_are_no_model(tmp_path, content, match):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_refused(path, match)


def test_places_that_are_no_file(tmp_path):
    assert_refused(tmp_path / "absent.onnx", "cannot be read: No such file")
    assert_refused(tmp_path, "cannot be read: Is a directory|not a regular file")
    os.mkfifo(tmp_path / "pipe.onnx")
    assert_refused(tmp_path / "pipe.onnx", "not a regular file")
    assert_refused(tmp_path / ("a" * 300 + ".onnx"), "File name too long")


class TestExternalData:
    @pytest.mark.parametrize(
        "location",
        ["../w.bin", "a/../../w.bin", "/etc/hostname", "..\\w.bin", "C:/w", "", "w.bin/", "w.bin/."],
    )
    def test_a_path_out_of_the_folder(self, tmp_path, location):
        (tmp_path / "w.bin").write_bytes(bytes(48))
        (tmp_path / "inner").mkdir()
        assert_refused(write(tmp_path / "inner", gemm(external(location))), "relative path inside")

    def test_a_symbolic_link_out_of_the_folder(self, tmp_path):
        (tmp_path / "w.bin").write_bytes(bytes(48))
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "w.bin").symlink_to(tmp_path / "w.bin")
        assert_refused(write(tmp_path / "inner", gemm(external())), "link out of the model's folder")
        (tmp_path / "inner" / "folder").symlink_to(tmp_path)
        assert_refused(
            write(tmp_path / "inner", gemm(external("folder/w.bin"))), "link out of the model's folder"
        )

    def test_a_hard_link(self, tmp_path):
        (tmp_path / "other.bin").write_bytes(bytes(48))
        os.link(tmp_path / "other.bin", tmp_path / "w.bin")
        assert_refused(write(tmp_path, gemm(external())), "hard link")

    def test_no_regular_file(self, tmp_path):
        path = write(tmp_path, gemm(external()))
        assert_refused(path, "cannot be read: No such file")
        (tmp_path / "w.bin").mkdir()
        assert_refused(path, "not a regular file")
        (tmp_path / "w.bin").rmdir()
        os.mkfifo(tmp_path / "w.bin")
        assert_refused(path, "not a regular file")

    @pytest.mark.parametrize(
        ("entries", "match"),
        [
            ({}, "which has 47"),
            ({"offset": 1}, "reaches to byte 49"),
            ({"offset": -1}, "not a number"),
            ({"offset": "1e3"}, "not a number"),
            ({"offset": "9" * 5000}, "not a number"),
            ({"length": 47}, "is 48 bytes"),
            ({"length": 2**62}, "is 48 bytes"),
            ({"basepath": "/etc"}, "unknown or repeated"),
        ],
    )
    def test_entries_that_do_not_fit_the_file(self, tmp_path, entries, match):
        (tmp_path / "w.bin").write_bytes(bytes(47))
        assert_refused(write(tmp_path, gemm(external(**entries))), match)

    def test_it_is_looked_for_everywhere(self, tmp_path):
        outside = external("/etc/hostname")
        constant = helper.make_node("Constant", [], ["w"], value=outside)
        gemm_node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
        assert_refused(write(tmp_path, gemm(nodes=[constant, gemm_node], initializer=[])), "relative path")

        body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", 1, None)])
        inner = helper.make_graph([], "b", [], [helper.make_tensor_value_info("w", 1, None)], [outside])
        for branch in (body, inner):
            node = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
            condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
            assert_refused(write(tmp_path, gemm(condition, nodes=[node, gemm_node])), "relative path")

        model = gemm()
        model.functions.append(
            helper.make_function("d", "F", [], ["w"], [constant], [helper.make_opsetid("", 20)])
        )
        assert_refused(write(tmp_path, model), "relative path")

        model = gemm()
        model.training_info.add().algorithm.initializer.append(outside)
        assert_refused(write(tmp_path, model), "relative path")

    def test_constants_are_read_from_the_models_folder(self, tmp_path, monkeypatch):
        (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
        constant = helper.make_node("Constant", [], ["w"], value=external())
        nodes = [constant, helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
        path = write(tmp_path, gemm(nodes=nodes, initializer=[]))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        model = load_model(path)
        save_model(model, "copy.onnx")
        (tmp_path / "w.bin").unlink()
        copy = load_model("copy.onnx")
        np.testing.assert_array_equal(copy.graph.node(0).attributes["value"].as_tensor().numpy(), WEIGHT)


def inline(**fields) -> TensorProto:
    return TensorProto(**({"name": "w", "data_type": TensorProto.FLOAT, "dims": [4, 3]} | fields))


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (inline(), "holds nothing"),
        (inline(dims=[2**40, 2**40]), "impossible shape"),
        (inline(dims=[2**40]), "holds nothing"),
        (inline(dims=[-1], raw_data=b""), "impossible shape"),
        (inline(dims=[1] * 100, raw_data=bytes(4)), "impossible shape"),
        (inline(raw_data=bytes(47)), "47 bytes"),
        (inline(raw_data=bytes(48), float_data=[1.0]), "holds"),
        (inline(int32_data=range(12)), "holds"),
        (inline(data_type=999, raw_data=bytes(48)), "unknown element type"),
        (inline(data_type=0, raw_data=bytes(48)), "no element type"),
        (inline(data_type=TensorProto.STRING, raw_data=bytes(48)), "holds"),
        (
            inline(data_location=7, raw_data=bytes(48)) if False else inline(name="", raw_data=bytes(48)),
            "name",
        ),
        (inline(name="w" * 10_000, raw_data=bytes(48)), "10000 characters"),
    ],
)
def test_tensors_that_are_not_what_they_say(tmp_path, tensor, match):
    assert_refused(write(tmp_path, gemm(tensor)), match)


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        (TensorProto.FLOAT, "float_data", [0.5] * 6),
        (TensorProto.DOUBLE, "double_data", [0.5] * 6),
        (TensorProto.FLOAT16, "int32_data", [1] * 6),
        (TensorProto.INT64, "int64_data", [1] * 6),
        (TensorProto.UINT32, "uint64_data", [1] * 6),
        (TensorProto.INT4, "int32_data", [1] * 3),
        (TensorProto.COMPLEX64, "float_data", [0.5] * 12),
        (TensorProto.STRING, "string_data", [b"a"] * 6),
        (TensorProto.FLOAT8E4M3FN, "int32_data", [1] * 6),
    ],
)
def test_tensors_in_typed_fields(tmp_path, dtype, field, values):
    tensor = TensorProto(name="extra", data_type=dtype, dims=[200, 3], **{field: values * 100})
    path = write(tmp_path, gemm(onnx.numpy_helper.from_array(WEIGHT, "w"), tensor))
    loaded = load_model(path)
    value = loaded.graph.initializers["extra"].const_value
    assert value is not None
    assert value.numpy().shape == (200, 3)
    save_model(loaded, tmp_path / "copy.onnx", external_data=True)
    again = load_model(tmp_path / "copy.onnx").graph.initializers["extra"].const_value
    assert again is not None
    assert np.array_equal(again.numpy(), value.numpy())


class TestGraphs:
    def test_a_cycle(self, tmp_path):
        nodes = [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "w"], ["y"], transB=1),
        ]
        assert_refused(write(tmp_path, gemm(nodes=nodes)), "cycle")

    def test_a_cycle_through_a_subgraph(self, tmp_path):
        body = helper.make_graph(
            [helper.make_node("Relu", ["y"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
        )
        condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
        nodes = [
            helper.make_node("If", ["c"], ["a"], then_branch=body, else_branch=body),
            helper.make_node("Relu", ["a"], ["y"]),
        ]
        assert_refused(write(tmp_path, gemm(condition, nodes=nodes)), "cycle")

    def test_nodes_out_of_order_are_sorted(self, tmp_path):
        nodes = [
            helper.make_node("Gemm", ["b", "w"], ["y"], transB=1),
            helper.make_node("Relu", ["x"], ["b"]),
        ]
        assert [n.op_type for n in load_model(write(tmp_path, gemm(nodes=nodes))).graph] == ["Relu", "Gemm"]

    @pytest.mark.parametrize(
        ("nodes", "match"),
        [
            ([helper.make_node("Gemm", ["x", "nowhere"], ["y"])], "nothing produces"),
            ([helper.make_node("Relu", ["x"], ["z"])], "has the output 'y'"),
            ([helper.make_node("Relu", ["x"], ["y"])] * 2, "defines 'y' twice"),
            ([helper.make_node("Relu", ["x"], ["w"])], "defines 'w' twice"),
            ([helper.make_node("", ["x"], ["y"])], "without an operator"),
            ([helper.make_node("Relu", ["x"], ["y"], domain="custom")], "does not import"),
            ([helper.make_node("R" * 10**6, ["x"], ["y"])], "1000000 characters"),
        ],
    )
    def test_nodes_that_do_not_fit(self, tmp_path, nodes, match):
        assert_refused(write(tmp_path, gemm(nodes=nodes)), match)

    def test_negative_lengths_are_unknown_ones(self, tmp_path):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3])]
        assert load_model(write(tmp_path, gemm(inputs=inputs))).graph.inputs[0].shape == ir.Shape([None, 3])

    def test_sparse_tensors(self, tmp_path):
        model = gemm()
        model.graph.sparse_initializer.add()
        assert_refused(write(tmp_path, model), "sparse")

    def test_an_unknown_operator_is_read_and_nothing_is_loaded(self, tmp_path):
        model = gemm(
            nodes=[helper.make_node("Mystery", ["x", "w"], ["y"], domain="custom", library="/evil.so")]
        )
        model.opset_import.add(domain="custom", version=1)
        assert load_model(write(tmp_path, model)).graph.node(0).op_type == "Mystery"

    def test_deep_nesting(self, tmp_path):
        def nested(depth: int) -> onnx.GraphProto:
            graph = onnx.GraphProto(name="deep")
            for _ in range(depth):
                outer = onnx.GraphProto(name="deep")
                outer.node.add(op_type="If").attribute.add(name="g", type=5).g.CopyFrom(graph)
                graph = outer
            return graph

        load_model(write(tmp_path, gemm(nodes=nested(25).node, outputs=[])))
        payload = b""
        for _ in range(20_000):  # a graph in an attribute in a node in a graph ...
            for key in (b"\x32", b"\x2a", b"\x0a"):
                payload = key + _varint(len(payload)) + payload
        path = tmp_path / "deep.onnx"
        path.write_bytes(b"\x08\x0a\x3a" + _varint(len(payload)) + payload)
        assert_refused(path, "not an ONNX model")

    def test_functions_that_never_end(self, tmp_path):
        def calls(name: str, *called: str) -> onnx.FunctionProto:
            nodes = [helper.make_node(other, [], [f"o{i}"], domain="d") for i, other in enumerate(called)]
            return helper.make_function("d", name, [], [], nodes, [helper.make_opsetid("d", 1)])

        model = gemm()
        model.functions.extend([calls("A", "B"), calls("B", "A")])
        assert_refused(write(tmp_path, model), "calls itself")

        bomb = gemm(nodes=[helper.make_node("F40", [], ["y"], domain="d")])
        bomb.opset_import.add(domain="d", version=1)
        bomb.functions.append(calls("F0"))
        bomb.functions.extend(calls(f"F{i}", f"F{i - 1}", f"F{i - 1}") for i in range(1, 41))
        assert_refused(write(tmp_path, bomb), "expand to more than")


@pytest.mark.parametrize("claimed", [["N", 3], ["N"], None, [1, 6]])
def test_an_input_keeps_its_shape_whatever_an_output_claims_of_it(tmp_path, claimed):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,6] y) { y = Relu (x) }"""
    )
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, claimed))
    loaded = load_model(write(tmp_path, model))
    assert str(loaded.graph.inputs[0].shape) == "[N,6]"
    save_model(loaded, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph.input[0] == model.graph.input[0]


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


class TestProportion:
    """Files that are small on disk and vast in memory."""

    def test_millions_of_empty_nodes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(wire, "MAX_FIELDS", 100_000)
        payload = b"\x0a\x00" * 3_000_000
        path = tmp_path / "model.onnx"
        path.write_bytes(b"\x08\x0a\x3a" + _varint(len(payload)) + payload)
        assert path.stat().st_size > loading._WALKED_ABOVE
        assert_refused(path, "more than 100000 fields")

    def test_more_nodes_than_allowed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(safety, "MAX_NODES", 10)
        nodes = [helper.make_node("Relu", ["x"], [f"y{i}"]) for i in range(11)]
        assert_refused(write(tmp_path, gemm(nodes=nodes)), "more than 10 nodes")

    def test_packed_integers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(wire, "MAX_VARINT_BYTES", 2**20)
        tensor = inline(data_type=TensorProto.INT64, dims=[5 * 2**20], int64_data=[1] * (5 * 2**20))
        assert_refused(write(tmp_path, gemm(tensor)), "one by one")

    def test_an_honest_large_file_passes_the_walk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loading, "_WALKED_ABOVE", 0)
        assert load_model(write(tmp_path, gemm())).graph.num_nodes() == 1

    def test_damage_is_seen_by_the_walk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loading, "_WALKED_ABOVE", 0)
        path = tmp_path / "model.onnx"
        for content in (gemm().SerializeToString()[:-9], b"\xff" * 99, b"\x0b\x0c", b"\x09\0", b"\x0a"):
            path.write_bytes(content)
            assert_refused(path, "truncated")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["i"])], "b", [], [helper.make_tensor_value_info("i", 1, None)]
    )
    branching = gemm(
        onnx.numpy_helper.from_array(WEIGHT, "w"),
        helper.make_tensor("c", TensorProto.BOOL, [], [True]),
        nodes=[
            helper.make_node("If", ["c"], ["a"], then_branch=body, else_branch=body),
            helper.make_node("F", ["a", "w"], ["y"], domain="d"),
        ],
    )
    branching.opset_import.add(domain="d", version=1)
    branching.functions.append(
        helper.make_function(
            "d",
            "F",
            ["a", "w"],
            ["y"],
            [helper.make_node("Gemm", ["a", "w"], ["y"], transB=1)],
            [helper.make_opsetid("", 20)],
        )
    )
    return [model.SerializeToString() for model in (gemm(external()), gemm(), branching)]


@hypothesis.settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(data=st.data())
def test_mutated_models_are_read_or_refused(seeds, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                content[at] = data.draw(st.integers(0, 255))
            case 1:
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case 2:
                del content[at : at + data.draw(st.integers(1, 8))]
            case _:
                content[at : at + 8] = struct.pack("<q", data.draw(st.integers(-(2**63), 2**63 - 1)))
        if not content:
            content = bytearray(b"\0")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    started = time.monotonic()
    try:
        model = load_model(path)
    except UnsafeModel:
        pass  # a damaged file may be refused, by this error alone
    else:
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                value.const_value.numpy()
        save_model(model, tmp_path / "copy.onnx")
        load_model(tmp_path / "copy.onnx")
    assert time.monotonic() - started < 10


class TestSaving:
    @pytest.fixture
    def model(self, tmp_path) -> ir.Model:
        weight = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
        return load_model(write(tmp_path, gemm(onnx.numpy_helper.from_array(weight, "w"))))

    @pytest.mark.parametrize("external_data", [True, False, None])
    def test_roundtrip(self, tmp_path, model, external_data):
        save_model(model, tmp_path / "a.onnx", external_data=external_data)
        assert (tmp_path / "a.onnx.data").exists() == bool(external_data)
        first = load_model(tmp_path / "a.onnx")
        save_model(first, tmp_path / "b.onnx")
        # External data stays external unless told otherwise.
        assert (tmp_path / "b.onnx.data").exists() == bool(external_data)
        save_model(first, tmp_path / "c.onnx", external_data=False)
        assert not (tmp_path / "c.onnx.data").exists()
        for name in "abc":
            tensor = load_model(tmp_path / f"{name}.onnx").graph.initializers["w"].const_value
            expected = model.graph.initializers["w"].const_value
            assert tensor is not None
            assert expected is not None
            np.testing.assert_array_equal(tensor.numpy(), expected.numpy())
        assert isinstance(model.graph.initializers["w"].const_value, ir.serde.TensorProtoTensor)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []

    def test_large_models_become_external(self, tmp_path, model, monkeypatch):
        monkeypatch.setattr(loading, "EXTERNAL_ABOVE", 100)
        save_model(model, tmp_path / "a.onnx")
        assert (tmp_path / "a.onnx.data").stat().st_size == 480
        with pytest.raises(UsageError, match="does not fit into one file"):
            save_model(model, tmp_path / "b.onnx", external_data=False)

    def test_nothing_is_left_of_a_failed_write(self, tmp_path, model):
        (tmp_path / "a.onnx").write_bytes(b"old")

        def fail() -> ir.Tensor:
            raise ValueError("computed too late")

        lazy = ir.LazyTensor(fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([40, 3]), name="w")
        model.graph.initializers["w"].const_value = lazy
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError, match="computed too late"):
            save_model(model, tmp_path / "a.onnx", external_data=True)
        assert sorted(tmp_path.iterdir()) == before
        assert (tmp_path / "a.onnx").read_bytes() == b"old"

    def test_places_that_cannot_be_written(self, tmp_path, model):
        with pytest.raises(UsageError, match="is a folder"):
            save_model(model, tmp_path)
        with pytest.raises(UsageError, match="no folder"):
            save_model(model, tmp_path / "absent" / "a.onnx")
        save_model(model, tmp_path / "a.onnx", external_data=True)
        with pytest.raises(UsageError, match="of this very model"):
            save_model(load_model(tmp_path / "a.onnx"), tmp_path / "a.onnx")
