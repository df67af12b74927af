"""Growing a tensor in one piece, by blocks of rows and into a file, against the definition entry by entry."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from growpipe.graph_ops.axes.dims import Atom, Concat, Fixed, Offspring, Product, axis_map, channel_rows
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.hashes import hash_parameters
from growpipe.graph_ops.plan import lazy_tensor as grown_tensor
from growpipe.graph_ops.plan.grow_tensor import Displacement, TensorGrowth, grow_tensor
from growpipe.graph_ops.plan.lazy_tensor import GrownTensor

A, B = Atom("a", 40), Atom("b", 5)
LAYOUTS = {
    "vector": [(A, "copied")],
    "made and mixed": [(A, "copied"), (B, "mixed")],
    "mixed first": [(B, "mixed"), (A, "copied"), (Fixed(3), "copied")],
    "flattened": [(Fixed(4), "copied"), (Product((A, Fixed(6))), "mixed")],
    "grouped": [(Product((B, Fixed(2))), "copied"), (A, "mixed")],
    "joined": [(Concat((B, Fixed(2), A)), "copied"), (Product((Fixed(2), B)), "mixed")],
    "scalar": [],
}


def offspring(rng: np.random.Generator, width: int) -> Offspring:
    source = np.concatenate([np.arange(width), rng.integers(0, width, width // 2)])
    return Offspring(source, rng.standard_normal(len(source)))


def reference(array, layout, grown, displacements, epsilon):
    """Σ over nothing: every entry of the grown tensor, one by one, in float64."""
    maps = [axis_map(axis.dim, grown) for axis in layout.axes]
    result = np.empty([len(m.source) for m in maps])
    for place in np.ndindex(*result.shape):
        origin = tuple(int(m.source[i]) for m, i in zip(maps, place, strict=True))
        value = float(array[origin])
        for group, displacement in displacements.items():
            axis = displacement.axis
            channel = maps[axis].channel[group][place[axis]]
            for k in np.flatnonzero(displacement.channels == channel):
                rows = channel_rows(layout.axes[axis].dim, group)
                (within,) = np.flatnonzero(
                    rows[grown[group].source[channel] if group in grown else channel] == origin[axis]
                )
                others = origin[:axis] + origin[axis + 1 :]
                value += epsilon * displacement.values[(k, within, *others)]
        for axis, m, i in zip(layout.axes, maps, place, strict=True):
            value *= m.coefficient[i] if axis.role == "mixed" else 1.0
        result[place] = value
    return result


CASES = [
    (name, grows, axis)
    for name, layout in LAYOUTS.items()
    for grows in (("a", "b"), ("a",), ())
    for axis in (None, *range(len(layout)))
    if name != "scalar" or not grows
]


@pytest.mark.parametrize(("name", "grows", "displaced"), CASES)
def test_growth_is_what_the_definition_says(name, grows, displaced, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    layout = TensorLayout(tuple(AxisLayout(dim, role) for dim, role in LAYOUTS[name]))
    grown = {group: offspring(rng, {"a": 40, "b": 5}[group]) for group in grows}
    array = rng.standard_normal(layout.shape)
    displacements = {}
    for group in ("a", "b") if displaced is not None else ():
        dim = layout.axes[displaced].dim
        if group not in axis_map(dim, {}).channel:
            continue
        width = len(grown[group].source) if group in grown else {"a": 40, "b": 5}[group]
        channels = rng.permutation(width)[: width // 2]
        entries = channel_rows(dim, group).shape[1]
        others = layout.shape[:displaced] + layout.shape[displaced + 1 :]
        values = rng.standard_normal((len(channels), entries, *others))
        displacements[group] = Displacement(displaced, channels, values)
    before = array.copy()
    result = grow_tensor(array, layout, grown, displacements, 0.1)
    np.testing.assert_allclose(
        result, reference(array, layout, grown, displacements, 0.1), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_array_equal(array, before)

    growth = TensorGrowth(layout, grown, displacements, 0.1)
    assert growth.shape == result.shape
    if growth.shape:
        edges = [*range(0, growth.shape[0], 7), growth.shape[0]]
        pieces = [growth.rows(array, i, j) for i, j in itertools.pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate(pieces), result)

    monkeypatch.setattr(grown_tensor, "_BLOCK_BYTES", 500)
    tensor = GrownTensor(ir.tensor(array, name="w"), growth, "w")
    with (tmp_path / "w.bin").open("wb") as file:
        tensor.tofile(file)
    assert (tmp_path / "w.bin").read_bytes() == result.tobytes() == tensor.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), result)


def test_a_grown_tensor_can_be_shown_without_computing_it():
    growth = TensorGrowth(TensorLayout((AxisLayout(A, "copied"),)), {}, {}, 0.0)
    absent = ir.ExternalTensor("absent.bin", 0, 160, ir.DataType.FLOAT, shape=ir.Shape([40]), name="w")
    assert repr(GrownTensor(absent, growth, "w")) == "GrownTensor<FLOAT,[40]>(name='w')"


def test_what_does_not_fit_is_refused():
    layout = TensorLayout((AxisLayout(A, "copied"), AxisLayout(B, "mixed")))
    with pytest.raises(UsageError, match="was to grow by a plan for shape"):
        grow_tensor(np.zeros((40, 6)), layout, {}, {}, 0.0)
    wrong = {"a": Displacement(0, np.arange(2), np.zeros((2, 1, 6)))}
    with pytest.raises(UsageError, match="displacement of group 'a'"):
        grow_tensor(np.zeros((40, 5)), layout, {}, wrong, 0.1)
    both = {
        "a": Displacement(0, np.arange(2), np.zeros((2, 1, 5))),
        "b": Displacement(1, np.arange(2), np.zeros((2, 1, 40))),
    }
    with pytest.raises(UsageError, match="several axes"):
        grow_tensor(np.zeros((40, 5)), layout, {}, both, 0.1)


def test_the_hash_of_parameters_sees_every_part():
    big = np.arange(3 * 2**20, dtype=np.float32)
    tensors = {"big": big, "small": np.ones((2, 3)), "scalar": np.float32(1).reshape(())}
    first = hash_parameters(tensors, tensors.__getitem__)
    assert hash_parameters(reversed(tensors), tensors.__getitem__) == first
    for name, changed in (
        ("big", np.where(np.arange(len(big)) == len(big) - 5, -big, big)),
        ("big", -big),
        ("big", big[::-1]),
        ("big", big.reshape(3, -1)),
        ("small", np.ones((3, 2))),
        ("small", np.ones((2, 3), np.int64)),
    ):
        other = tensors | {name: changed}
        assert hash_parameters(other, other.__getitem__) != first
