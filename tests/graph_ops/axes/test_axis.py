"""Axes: unified, refined by reshapes and concatenations, frozen where nothing fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growpipe.graph_ops.axes.axis import (
    Axis,
    Barrier,
    TooMuchWork,
    concat,
    extent,
    freeze,
    leaves,
    limited_work,
    product,
    root,
)
from growpipe.graph_ops.axes.solver import align, match, unify

WHY = Barrier("Reshape", "node", None, "does not fit")


def axes(*sizes):
    return [Axis(size) for size in sizes]


def frozen(axis):
    return [leaf.barrier is not None for leaf in leaves(axis)]


def test_unified_axes_are_one():
    a, b, c = axes(4, 4, 4)
    unify(a, b, WHY)
    unify(b, c, WHY)
    assert root(a) is root(b) is root(c)


def test_a_frozen_axis_freezes_what_it_meets():
    a, b = axes(4, 4)
    freeze(a, WHY)
    unify(b, a, WHY)
    assert root(b).barrier == WHY


def test_a_barrier_that_is_there_stays():
    (a,) = axes(4)
    freeze(a, WHY)
    freeze(a, Barrier("Conv", "later", 1, "another"))
    assert root(a).barrier == WHY


def test_lengths_that_disagree_freeze_both():
    a, b = axes(4, 5)
    unify(a, b, WHY)
    assert frozen(a) == frozen(b) == [True]
    assert root(a) is not root(b)
    assert "lengths 4 and 5 disagree" in str(root(a).barrier)


def test_flatten_refines_nothing():
    c, h, w, flat = axes(3, 4, 4, 48)
    match([c, h, w], [flat], WHY)
    assert root(flat).kind == "product"
    assert leaves(flat) == [root(c), root(h), root(w)]


def test_a_reshape_refines_an_atom_and_the_way_back_finds_it():
    channels, groups, rest, back = axes(12, 3, 4, 12)
    match([channels], [groups, rest], WHY)
    assert leaves(channels) == [root(groups), root(rest)]
    match([groups, rest], [back], WHY)
    assert leaves(back) == leaves(channels)
    assert frozen(back) == [False, False]


def test_unknown_lengths_match_from_both_ends():
    batch, channels, height, merged, kept = Axis(), Axis(8), Axis(5), Axis(), Axis(5)
    match([batch, channels, height], [merged, kept], WHY)
    assert leaves(merged) == [root(batch), root(channels)]
    assert root(kept) is root(height)
    assert frozen(channels) == [False]


def test_lengths_without_common_factors_freeze():
    left, right = axes(4, 6), axes(6, 4)
    match(left, right, WHY)
    assert all(all(frozen(axis)) for axis in (*left, *right))


def test_a_split_refines_an_atom_into_parts():
    whole, first, second = axes(10, 4, 6)
    align([whole], [first, second], WHY)
    assert root(whole).kind == "concat"
    assert leaves(whole) == [root(first), root(second)]


def test_two_splits_have_a_common_refinement():
    whole, a, b, c, d = axes(10, 4, 6, 7, 3)
    align([whole], [a, b], WHY)
    align([whole], [c, d], WHY)
    assert [leaf.size for leaf in leaves(whole)] == [4, 3, 3]
    assert leaves(b) == leaves(whole)[1:]
    assert leaves(c) == leaves(whole)[:2]


def test_a_product_is_cut_between_its_blocks():
    outer, inner, first, second = axes(5, 2, 4, 6)
    align([product([outer, inner])], [first, second], WHY)
    assert [leaf.size for leaf in leaves(outer)] == [2, 3]
    assert leaves(first) == [leaves(outer)[0], root(inner)]


def test_a_cut_inside_a_block_makes_the_blocks_equal():
    outer, inner, first, second = axes(2, 4, 2, 6)
    align([product([outer, inner])], [first, second], WHY)
    assert frozen(outer) == [True]
    assert leaves(inner) == [root(first), leaves(inner)[1]]
    assert leaves(second) == [leaves(inner)[1], root(first)]
    assert extent(second, {}) == (3, 2)


def test_a_concatenation_of_equal_parts_is_a_product():
    a, b, groups, each = axes(4, 4, 2, 4)
    match([concat([a, b])], [groups, each], WHY)
    assert root(a) is root(b) is root(each)
    assert frozen(each) == [False]


def test_what_contains_itself_is_frozen():
    a = Axis()
    whole = product([a, Axis(2)])
    unify(a, whole, WHY)
    assert frozen(a) == [True]


def test_a_product_that_comes_to_hold_its_own_factor_is_frozen():
    """A factor of unknown length is as long as the whole, if the other one turns out to be 1."""
    part, other = axes(6, None)
    whole = product([part, other])
    root(whole).size = 6
    unify(part, whole, WHY)
    assert frozen(part) == [True]
    assert root(part) is not root(whole)


def test_leaves_are_listed_once_however_often_they_occur():
    axis = Axis(1 << 1)
    for _ in range(60):
        axis = concat([axis, axis])
    assert len(leaves(axis)) == 1
    assert extent(axis, {}) == (1 << 60, 60)


def test_work_is_limited():
    parts = axes(*[1 << level for level in range(20)])
    with pytest.raises(TooMuchWork), limited_work(10):
        align([Axis((1 << 20) - 1)], parts, WHY)


def entries(axis: Axis) -> list[tuple]:
    """Every entry of an axis as the path of (leaf, index) that leads to it."""
    axis = root(axis)
    if axis.kind == "leaf":
        return [((id(axis), i),) for i in range(axis.size)] if axis.size != 1 else [()]
    if axis.kind == "concat":
        return [entry for child in axis.children for entry in entries(child)]
    result: list[tuple] = [()]
    for child in axis.children:
        result = [outer + inner for outer in result for inner in entries(child)]
    return result


factorings = st.sampled_from([(24,), (2, 12), (12, 2), (3, 8), (4, 6), (2, 3, 4), (4, 3, 2), (1, 24), (6, 4)])
partitions = st.sampled_from([(24,), (8, 16), (12, 12), (5, 19), (4, 8, 12), (6, 6, 6, 6), (20, 4)])
steps = st.lists(st.one_of(st.tuples(st.just("match"), factorings), st.tuples(st.just("align"), partitions)))


@settings(deadline=None)
@given(steps)
def test_all_views_of_one_axis_name_the_same_entries(applied):
    """However an axis was divided, what is not frozen is named the same way from every side."""
    whole = Axis(24)
    views = []
    for kind, sizes in applied:
        pieces = axes(*sizes)
        (match if kind == "match" else align)([whole], pieces, WHY)
        views.append(product(pieces) if kind == "match" else concat(pieces))
    free = {id(leaf) for leaf in leaves(whole) if leaf.barrier is None}
    own = [frozenset(step for step in entry if step[0] in free) for entry in entries(whole)]
    for view in views:
        seen = [frozenset(step for step in entry if step[0] in free) for entry in entries(view)]
        assert len(seen) == 24
        assert seen == own


@pytest.mark.parametrize("together", [product, concat])
def test_a_length_beyond_int64_stays_unknown(together):
    assert together(axes(2**62, 2**62)).size is None
    assert Axis(2**63).size is None
    assert Axis(2**63 - 1).size == 2**63 - 1


def test_an_axis_of_negative_length_is_refused():
    with pytest.raises(ValueError, match="-2"):
        Axis(-2)


def test_factors_in_another_order_are_not_one_by_place():
    batch, heads, number = axes(None, 4, 4)
    unify(product([batch, heads]), product([number, batch]), WHY)
    assert batch.size is None
    assert root(heads) is not root(batch)
    assert frozen(heads) == frozen(number) == [True]


def test_a_factor_of_unknown_length_is_what_the_known_factors_leave():
    batch, heads, repetitions, copied = axes(None, 4, None, 4)
    unify(product([batch, heads]), product([repetitions, copied]), WHY)
    assert root(batch) is root(repetitions)
    assert root(heads) is root(copied)
    assert frozen(heads) == frozen(batch) == [False]


def test_a_leaf_of_known_length_divides_by_the_known_factors_of_a_product():
    leaf, batch, heads = axes(8, None, 4)
    unify(leaf, product([batch, heads]), WHY)
    assert [part.size for part in leaves(leaf)] == [2, 4]
    assert root(batch).size == 2
    assert frozen(heads) == [False]


def test_a_leaf_of_known_length_does_not_meet_two_unknown_factors():
    leaf, batch, steps = axes(8, None, None)
    unify(leaf, product([batch, steps]), WHY)
    assert frozen(leaf) == frozen(batch) == frozen(steps) == [True]
    assert batch.size is None


def test_parts_of_unknown_length_are_not_one_by_place():
    past, new, channels, more = axes(None, 4, 4, None)
    unify(concat([past, new]), concat([channels, more]), WHY)
    assert past.size is None
    assert all(frozen(axis) == [True] for axis in (past, new, channels, more))
