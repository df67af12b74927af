"""Groups that grow in equal steps: widths, alignment, bounds, and what a request for growth becomes."""

from __future__ import annotations

import numpy as np
import pytest

from growpipe.graph_ops.axes.dims import Atom, Fixed, Product
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import net2net_plan
from growpipe.graph_ops.plan.joined_groups import JoinedGroups, check_joined, joined_factors
from growpipe.graph_ops.plan.module_size import ModuleSize
from tests.helpers.text_models import text_model

PAIRS = JoinedGroups(("pairs", "values"), before=(4, 8), step=(1, 2))


def test_widths_and_steps_are_each_others_inverse() -> None:
    assert PAIRS.widths(3) == {"pairs": 7, "values": 14}
    assert PAIRS.steps({"pairs": 7, "values": 14}) == 3
    assert PAIRS.are_equal({"pairs": 7, "values": 14})
    assert not PAIRS.are_equal({"pairs": 7})
    assert PAIRS.are_equal({"others": 5})


def test_alignment_is_of_all_widths() -> None:
    assert PAIRS.aligned(1, 8) == 4
    assert PAIRS.aligned(5, 8) == 12
    assert JoinedGroups(("a", "b"), (6, 8), (1, 1)).aligned(1, 8) is None
    assert PAIRS.within(9, 4, {}) == 8
    assert PAIRS.within(9, 4, {"values": 23}) == 4
    assert PAIRS.within(9, 4, {"values": 9}) == 0


def test_factors_are_of_all_joined_groups() -> None:
    stream = JoinedGroups(("stream", "heads"), (32, 4), (32, 4), by_factor=True)
    assert joined_factors({"stream": 3}, [stream]) == {"stream": 3, "heads": 3}
    assert joined_factors({"other": 3}, [stream]) == {"other": 3}
    with pytest.raises(UsageError, match=r"the factors \[2, 3\] do not suit 'stream', 'heads'"):
        joined_factors({"stream": 2, "heads": 3}, [stream])
    partly = JoinedGroups(("a", "b"), (6, 8), (1, 1))
    with pytest.raises(UsageError, match="equal steps"):
        joined_factors({"a": 2}, [partly])


def test_an_integer_of_several_groups_has_one_value() -> None:
    size = ModuleSize("block", "inner", Product((Atom("heads", 4), Atom("pairs", 8))), 1,
                      (Product((Fixed(4), Atom("values", 8))),))  # fmt: skip
    assert size.groups == {"heads", "pairs", "values"}
    assert size.grown({"pairs": 10, "values": 10}) == 40
    with pytest.raises(UsageError, match=r"block\.inner of the module is one size .* would need 40 and 32"):
        size.grown({"pairs": 10})
    assert size.following({"pairs"}).groups == {"pairs"}


def test_plans_without_data_give_joined_groups_equal_steps() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3), "w2": (8, 4), "w3": (2, 8)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    body = """
        a = Gemm<transB=1>(x, w1)
        b = Tanh(a)
        c = Gemm<transB=1>(b, w2)
        d = Tanh(c)
        y = Gemm<transB=1>(d, w3)
    """
    model = text_model(body, "float[N,3] x", "float[N,2] y", **weights)
    groups = find_channel_groups(model)
    joined = [JoinedGroups(("w1", "w2"), before=(4, 8), step=(1, 2))]
    for growth, widths in ((0.3, {"w1": 5, "w2": 10}), ({"w2": 3}, {"w1": 6, "w2": 12})):
        plan = net2net_plan(groups, model, growth=growth, joined=joined)
        assert plan.widths == widths
        check_joined(plan.widths, joined)
    with pytest.raises(UsageError, match=r"different steps: 'w1' from 4 to 4, 'w2' from 8 to 9"):
        check_joined(net2net_plan(groups, model, growth={"w2": 1}).widths, joined)
