"""Operators of which whole lists share a rule, each against a wide graph; no rule is without a reference."""

from __future__ import annotations

import pytest

from growpipe.graph_ops.axes.rules import RULES
from tests.graph_ops.edit import (
    test_wide_references,
    test_wide_references_even,
    test_wide_references_layout,
    test_wide_references_quantised,
    test_wide_references_recurrent,
)
from tests.helpers.wide import FOUR, TWO, Case, assert_grown_as_written, image
from tests.helpers.wide import beside as row
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import weight as w

B = w((2, 4, 1, 1), m(1))
D = {"d": w((4, 1, 1), c(0))}

ON_ALL_NUMBERS = """
Asinh Atan Ceil Celu Cos Cosh Dropout Elu Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg
Relu Round Selu Shrink Sign Sin Sinh Softsign Tan ThresholdedRelu
"""
BETWEEN_0_AND_1 = "Acos Asin Atanh Log Reciprocal Sqrt"
OF_TRUTH = "And Or Xor Equal"
COMPARISONS = "GreaterOrEqual Less LessOrEqual"
OF_INTEGERS = "BitwiseAnd BitwiseOr BitwiseXor"
REDUCTIONS = "L1 L2 LogSumExp Min Prod Sum SumSquare"
SPACE = ("int64[2] k = {2, 3}",) * 2


def alike(z: str, **rest) -> Case:
    """A graph that spells out no length, so that the wide one has the same text."""
    return image(z, B, **rest)


CASES = {
    **{name: alike(f"z = {name} (h)", opset=20) for name in ON_ALL_NUMBERS.split()},
    **{name: alike(f"q = Sigmoid (h) z = {name} (q)") for name in BETWEEN_0_AND_1.split()},
    "Acosh": alike("q = Cosh (h) z = Acosh (q)"),
    "Swish": alike("z = Swish (h)", opset=24),
    "Min": alike("z = Min (h, d)", weights=D),
    "Mean": alike("z = Mean (h, d)", weights=D),
    "Mod": alike("z = Mod <fmod = 1> (h, d)", weights=D),
    **{name: alike(f"p = {name} (h, d) z = Where (p, d, h)", weights=D) for name in COMPARISONS.split()},
    **{
        name: alike(
            f"p = Greater (h, d) q = Less (h, half) t = {name} (p, q) z = Where (t, d, h)",
            weights=D,
            ints=("real half = {0.5}",) * 2,
        )
        for name in OF_TRUTH.split()
    },
    "Not": alike("p = Greater (h, d) q = Not (p) z = Where (q, d, h)", weights=D),
    "IsNaN": alike("k = Log (h) p = IsNaN (k) z = Where (p, d, h)", weights=D),
    "IsInf": alike("r = Relu (h) k = Log (r) p = IsInf (k) z = Where (p, d, h)", weights=D),
    **{
        name: alike(
            f"i = Cast <to = 6> (h) j = {name} (i, three) z = Cast <to = 1> (j)",
            ints=("int32 three = {3}",) * 2,
            reals=("float",),
        )
        for name in OF_INTEGERS.split()
    },
    "BitwiseNot": alike("i = Cast <to = 6> (h) j = BitwiseNot (i) z = Cast <to = 1> (j)", reals=("float",)),
    "BitShift": alike(
        'q = Abs (h) i = Cast <to = 12> (q) j = BitShift <direction = "LEFT"> (i, three) '
        "z = Cast <to = 1> (j)",
        ints=("uint32 three = {3}",) * 2,
        reals=("float",),
    ),
    "GlobalLpPool": alike("z = GlobalLpPool (h)"),
    **{f"Reduce{name}": alike(f"z = Reduce{name} (h, k)", ints=SPACE) for name in REDUCTIONS.split()},
    "ReduceLogSum": alike("q = Exp (h) z = ReduceLogSum (q, k)", ints=SPACE),
    "ArgMin": alike("i = ArgMin <axis = 2> (h) f = CastLike (i, h) z = Add (h, f)"),
    "LogSoftmax": alike("z = LogSoftmax (h)"),
    "Hardmax": alike("z = Hardmax <axis = 2> (h)"),
    "LayerNormalization over space": alike(
        "z = LayerNormalization <axis = 2> (h, e, f)", weights={"e": w((4, 4)), "f": w((4, 4))}
    ),
    "RMSNormalization over space": alike("z = RMSNormalization (h, e)", weights={"e": w((4,))}, opset=23),
    "Trilu over space": alike("z = Trilu (h)"),
    "GridSample": alike("z = GridSample (h, grid)", weights={"grid": w((2, 3, 3, 2))}, batch=2),
    "Upsample": alike("z = Upsample (h, s)", opset=9, ints=("float[4] s = {1.0, 1.0, 2.0, 2.0}",) * 2),
    "positions by Range": alike(
        "i = Range (zero, four, one) f = CastLike (i, h) z = Add (h, f)",
        ints=("int64 zero = {0}, int64 four = {4}, int64 one = {1}",) * 2,
    ),
    "scaled by the Size of the input": alike("s = Size (x) f = CastLike (s, h) z = Div (h, f)"),
    "shortcut with padded channels": image(
        "k = Conv (x, d) p = Pad (k, pads) s = Add (h, p) z = Tanh (s)",
        w((2, 6, 1, 1), m(1, row(FOUR, TWO))),
        a=w((6, 3, 3, 3), c(0, row(FOUR, TWO))),
        weights={"d": w((4, 3, 3, 3), c(0))},
        ints=(
            "int64[8] pads = {0, 0, 0, 0, 0, 2, 0, 0}",
            "int64[8] pads = {0, 0, 0, 0, 0, 4, 0, 0}",
        ),
        splits={"a": FOUR, "a#2": TWO},
    ),
}

ALWAYS_A_BARRIER = {"LRN"}


@pytest.mark.parametrize("name", CASES)
def test_grown_is_the_wide_reference(name):
    assert_grown_as_written(CASES[name])


def test_every_rule_has_a_reference():
    others = (
        test_wide_references,
        test_wide_references_even,
        test_wide_references_layout,
        test_wide_references_quantised,
        test_wide_references_recurrent,
    )
    cases = [CASES, *(module.CASES for module in others)]
    graphs = [case.original("float").graph for some in cases for case in some.values()]
    tried = {(node.domain, node.op_type) for graph in graphs for node in graph}
    assert RULES.keys() - tried == {("", operator) for operator in ALWAYS_A_BARRIER}
