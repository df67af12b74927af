"""Dimensions: sizes, the maps of grown axes, and the way to JSON and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growpipe.graph_ops.axes.dims import (
    Atom,
    Concat,
    Dim,
    Fixed,
    Offspring,
    Product,
    atoms_of,
    axis_map,
    channel_rows,
    dim_from_json,
    dim_to_json,
    grown_size,
)
from growpipe.graph_ops.errors import UsageError

A, B = Atom("a", 3), Atom("b", 2)
SPLIT = {"a": Offspring(np.array([0, 1, 2, 1]), np.array([1.0, 1.5, 1.0, -0.5]))}

dims = st.recursive(
    st.sampled_from([A, B, Fixed(1), Fixed(2), Fixed(4)]),
    lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
        lambda some: st.sampled_from([Product(tuple(some)), Concat(tuple(some))])
    ),
    max_leaves=4,
)


def expand(dim: Dim) -> list[frozenset]:
    """Every entry of the axis as the set of (occurrence of an atom, channel): what the entry is made of."""
    match dim:
        case Fixed(size):
            return [frozenset()] * size
        case Atom(name, size):
            return [frozenset([(name, channel)]) for channel in range(size)]
        case Concat(parts):
            return [entry for part in parts for entry in expand(part)]
        case Product(factors):
            entries = [frozenset()]
            for factor in factors:
                entries = [outer | inner for outer in entries for inner in expand(factor)]
            return entries


def test_flattened_channels_are_copied_with_all_their_pixels():
    grown = axis_map(Product((A, Fixed(2))), SPLIT)
    np.testing.assert_array_equal(grown.source, [0, 1, 2, 3, 4, 5, 2, 3])
    np.testing.assert_array_equal(grown.coefficient, [1, 1, 1.5, 1.5, 1, 1, -0.5, -0.5])
    np.testing.assert_array_equal(grown.channel["a"], [0, 0, 1, 1, 2, 2, 3, 3])


def test_concatenated_channels_are_counted_from_where_they_begin():
    grown = axis_map(Concat((B, A)), SPLIT)
    np.testing.assert_array_equal(grown.source, [0, 1, 2, 3, 4, 3])
    np.testing.assert_array_equal(grown.channel["b"], [0, 1, -1, -1, -1, -1])


@given(dims)
def test_an_axis_without_offspring_maps_to_itself(dim):
    same = axis_map(dim, {})
    np.testing.assert_array_equal(same.source, np.arange(dim.size))
    assert (same.coefficient == 1).all()
    assert len(same.source) == grown_size(dim, {})


@given(dims)
def test_the_grown_length_is_the_length_of_the_map(dim):
    assert len(axis_map(dim, SPLIT).source) == grown_size(dim, {"a": 4})


@given(dims)
def test_the_rows_of_a_channel_are_the_entries_that_hold_it(dim):
    entries = expand(dim)
    for atom in {a.name: a for a in atoms_of(dim)}.values():
        if sum(a.name == atom.name for a in atoms_of(dim)) > 1:
            continue
        rows = channel_rows(dim, atom.name)
        for channel in range(atom.size):
            wanted = [i for i, entry in enumerate(entries) if (atom.name, channel) in entry]
            np.testing.assert_array_equal(rows[channel], wanted)


def test_the_rows_of_an_absent_group_are_refused():
    with pytest.raises(UsageError, match="'c' is not on an axis"):
        channel_rows(Product((A, B)), "c")


@given(dims)
def test_dimensions_survive_json(dim):
    assert dim_from_json(dim_to_json(dim), {"a": 3, "b": 2}) == dim


@pytest.mark.parametrize("data", [True, -1, "c", {"sum": [1]}, None, [1]])
def test_what_is_no_dimension_is_refused(data):
    with pytest.raises(UsageError, match="not a dimension"):
        dim_from_json(data, {"a": 3})
