"""Growing one tensor, against a loop that follows the definition."""

from __future__ import annotations

import numpy as np
import pytest

from growpipe.graph_ops.axes.dims import Atom, Concat, Fixed, Offspring, Product, axis_map, channel_rows
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.grow_tensor import Displacement, grow_tensor
from growpipe.graph_ops.plan.stored_precision import is_exact

rng = np.random.default_rng(0)
OFFSPRING = {
    "a": Offspring(np.array([0, 1, 2, 1, 1]), np.array([1.0, 1.75, 1.0, -1.25, 0.5])),
    "b": Offspring(np.array([0, 1, 0]), np.array([-0.5, 1.0, 1.5])),
}
A, B = Atom("a", 3), Atom("b", 2)
LAYOUTS = {
    "filter": TensorLayout((AxisLayout(A, "copied"), AxisLayout(B, "mixed"), AxisLayout(Fixed(2), "copied"))),
    "flattened": TensorLayout(
        (AxisLayout(A, "copied"), AxisLayout(Concat((Product((B, Fixed(2))), Fixed(1))), "mixed"))
    ),
    "heads": TensorLayout((AxisLayout(Product((A, B)), "copied"), AxisLayout(Fixed(2), "copied"))),
    "own input": TensorLayout((AxisLayout(A, "copied"), AxisLayout(A, "mixed"))),
    "a number is added": TensorLayout((AxisLayout(A, "mixed"), AxisLayout(B, "mixed")), offset=0.75),
    "vector": TensorLayout((AxisLayout(Concat((B, A)), "copied"),)),
}


def by_definition(array, layout, displacements, epsilon):
    """Entry by entry: the source entry, displaced with its channel, times the mixed coefficients.

    What is added to the tensor is multiplied as well.
    """
    maps = [axis_map(axis.dim, OFFSPRING) for axis in layout.axes]
    grown = np.zeros([len(m.source) for m in maps])
    for index in np.ndindex(grown.shape):
        source = tuple(int(m.source[i]) for m, i in zip(maps, index, strict=True))
        value = array[source]
        for group, d in displacements.items():
            channel = maps[d.axis].channel[group][index[d.axis]]
            if channel in d.channels:
                rows = channel_rows(layout.axes[d.axis].dim, group)[OFFSPRING[group].source[channel]]
                row = int(np.flatnonzero(rows == source[d.axis])[0])
                others = source[: d.axis] + source[d.axis + 1 :]
                value += epsilon * d.values[(list(d.channels).index(channel), row, *others)]
        value += layout.offset
        for axis, m, i in zip(layout.axes, maps, index, strict=True):
            if axis.role == "mixed":
                value *= m.coefficient[i]
        grown[index] = value - layout.offset
    return grown


def displacement(layout, axis, group, channels):
    rows = channel_rows(layout.axes[axis].dim, group).shape[1]
    others = [a.dim.size for i, a in enumerate(layout.axes) if i != axis]
    return Displacement(axis, np.array(channels), rng.normal(size=(len(channels), rows, *others)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_grown_tensor_follows_the_definition(name, epsilon):
    layout = LAYOUTS[name]
    array = rng.normal(size=layout.shape)
    displaced = {"a": displacement(layout, 0, "a", [1, 4, 3])}
    if name in ("heads", "vector"):
        displaced["b"] = displacement(layout, 0, "b", [2])
    before = array.copy()
    grown = grow_tensor(array, layout, OFFSPRING, displaced, epsilon)
    np.testing.assert_allclose(grown, by_definition(array, layout, displaced, epsilon), rtol=1e-12)
    np.testing.assert_array_equal(array, before)


def test_the_type_of_the_tensor_is_kept():
    layout = LAYOUTS["filter"]
    grown = grow_tensor(np.ones(layout.shape, np.float16), layout, OFFSPRING, {}, 0.0)
    assert grown.dtype == np.float16


def test_a_displaced_group_need_not_grow():
    layout = LAYOUTS["vector"]
    array = rng.normal(size=layout.shape)
    moved = Displacement(0, np.array([1]), np.ones((1, 1)))
    grown = grow_tensor(array, layout, {}, {"b": moved}, 0.5)
    np.testing.assert_allclose(grown - array, [0, 0.5, 0, 0, 0])


def test_wrong_shapes_are_refused():
    layout = LAYOUTS["filter"]
    with pytest.raises(UsageError, match="plan for shape"):
        grow_tensor(np.ones((3, 2)), layout, OFFSPRING, {}, 0.0)
    wrong = Displacement(0, np.array([1]), np.ones((1, 2, 2, 2)))
    with pytest.raises(UsageError, match=r"has shape \(1, 2, 2, 2\), expected \(1, 1, 2, 2\)"):
        grow_tensor(np.ones(layout.shape), layout, OFFSPRING, {"a": wrong}, 0.1)


def test_displacements_on_two_axes_are_refused():
    layout = LAYOUTS["filter"]
    both = {"a": displacement(layout, 0, "a", [1]), "b": displacement(layout, 1, "b", [1])}
    with pytest.raises(UsageError, match="several axes"):
        grow_tensor(np.ones(layout.shape), layout, OFFSPRING, both, 0.1)


@pytest.mark.parametrize(("number", "exact"), [(0.5, True), (0.1, False)])
def test_a_number_that_is_added_counts_in_low_precision(number, exact):
    """Half of 1 + 0.1 less 1 is -0.45, which has more digits than 0.1 and than float16 holds."""
    layout = TensorLayout((AxisLayout(Atom("a", 1), "mixed"),), offset=1.0)
    halves = {"a": Offspring(np.array([0, 0]), np.array([0.5, 0.5]))}
    array = np.array([number], np.float16)
    assert is_exact(array, layout, halves) == exact
    assert is_exact(array, TensorLayout(layout.axes), halves)
