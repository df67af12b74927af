"""How the inputs of an ONNX model go into the forward of a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from growpipe.checks.child.torch_arguments import ways_to_call


def filled(forward: Callable[..., Any], names: list[str]) -> list[tuple[list[Any], dict[str, Any]]]:
    return [way.filled({n: n for n in names}) for way in ways_to_call(inspect.signature(forward), names)]


def test_names_come_before_positions() -> None:
    assert filled(lambda x, y: None, ["y", "x"])[0] == ([], {"y": "y", "x": "x"})
    assert filled(lambda image, mask: None, ["a", "b"])[0] == (["a", "b"], {})


def test_dicts_and_lists_are_put_together_from_the_names_of_their_parts() -> None:
    assert filled(lambda batch: None, ["batch_x", "batch_y"])[0] == (
        [],
        {"batch": {"x": "batch_x", "y": "batch_y"}},
    )
    assert filled(lambda xs: None, ["xs_0", "xs_1"])[:2] == [
        ([], {"xs": ["xs_0", "xs_1"]}),
        ([], {"xs": ("xs_0", "xs_1")}),
    ]
    nested = filled(lambda a, pair, opt: None, ["a", "pair_0", "pair_1", "opt_k_z"])[1]
    assert nested == ([], {"a": "a", "pair": ("pair_0", "pair_1"), "opt": {"k": {"z": "opt_k_z"}}})


def test_parameters_with_a_default_of_none_may_be_left_out() -> None:
    def forward(x, scale=None, *, bias=None, return_dict=True):  # type: ignore[no-untyped-def]
        return x

    ways = filled(forward, ["image", "offset"])
    assert ways[0] == (["image", "offset"], {})
    assert ([], {"x": "image", "bias": "offset"}) in ways
    assert not any("return_dict" in keywords for _, keywords in ways)


@pytest.mark.parametrize("names", [[], ["a", "b", "c"]])
def test_there_may_be_no_way(names: list[str]) -> None:
    assert ways_to_call(inspect.signature(lambda x, y: None), names) == []
