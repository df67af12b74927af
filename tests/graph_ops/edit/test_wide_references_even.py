"""Groups that are normalised over, grown by whole factors, against a wide graph written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from tests.helpers.wide import Case, Move, Split, Weight, assert_grown_as_written
from tests.helpers.wide import beside as row
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import times as x
from tests.helpers.wide import weight as w

TWICE = Split(4, (0, 1, 2, 3, 0, 1, 2, 3), (1 / 3, 2 / 3, 0.25, -1, 2 / 3, 1 / 3, 0.75, 2))
MIXED_UP = Split(4, (0, 1, 2, 3, 3, 2, 1, 0), (0.5, 2, 0.25, 1.5, -0.5, 0.75, -1, 0.5))
THRICE = Split(2, (0, 1, 0, 1, 0, 1), (0.2, 2, 0.3, -2, 0.5, 1))
PAIR = Split(2, (0, 1, 0, 1), (0.2, 2, 0.8, -1))

TOKENS = "real[n,5,3] x"


def stream(norm: str, ints: str = "", wide: str | None = None, **rest) -> Case:
    """``norm`` computes z from h, which the columns of ``a`` make; the rows of ``b`` mix it."""
    split = rest.pop("split", TWICE)
    weights = {"a": w((3, 4), c(1, split)), "b": w((4, 2), m(0, split)), **rest.pop("weights", {})}
    bodies = [f"{ints} {{ h = MatMul (x, a) {body} y = MatMul (z, b) }}" for body in (norm, wide or norm)]
    given = {"splits": {"a": split}, "moves": {"a": Move(1)}, **rest}
    return Case(TOKENS, bodies[0], weights, bodies[1], **given)


LAST = "<int64[1] last = {-1}>"
SCALE = {"scale": w((4,), c(0, TWICE)), "shift": w((4,), c(0, TWICE))}

NORMS = {
    "LayerNormalization": stream("z = LayerNormalization <axis = -1> (h, scale, shift)", weights=SCALE),
    "in another order": stream(
        "z = LayerNormalization <axis = -1> (h, scale)",
        weights={"scale": w((4,), c(0, MIXED_UP))},
        split=MIXED_UP,
    ),
    "LayerNormalization, decomposed": stream(
        "m = ReduceMean (h, last) d = Sub (h, m) p = Pow (d, two) v = ReduceMean (p, last) e = Add (v, eps)"
        " s = Sqrt (e) q = Div (d, s) r = Mul (q, scale) z = Add (r, shift)",
        "<int64[1] last = {-1}, real eps = {0.001}, real two = {2}>",
        weights=SCALE,
    ),
    "RMSNormalization": stream(
        "z = RMSNormalization <axis = -1> (h, scale)", weights={"scale": SCALE["scale"]}, opset=23
    ),
    "RMSNormalization, decomposed": stream(
        "p = Mul (h, h) v = ReduceMean (p, last) e = Add (v, eps) s = Sqrt (e) i = Reciprocal (s)"
        " q = Mul (h, i) z = Mul (scale, q)",
        "<int64[1] last = {-1}, real eps = {0.001}>",
        weights={"scale": SCALE["scale"]},
    ),
    "SimplifiedLayerNormalization": stream(
        "z = SimplifiedLayerNormalization <axis = -1> (h, scale)", weights={"scale": SCALE["scale"]}
    ),
    "SkipLayerNormalization": stream(
        "z = com.microsoft.SkipLayerNormalization (h, h, scale, shift)", weights=SCALE, reals=("float",)
    ),
    "SkipSimplifiedLayerNormalization": stream(
        "u, i, j, k = com.microsoft.SkipSimplifiedLayerNormalization (h, h, scale) z = Add (u, k)",
        weights={"scale": SCALE["scale"]},
        reals=("float",),
    ),
    "a gate by the mean": stream("m = ReduceMean (h, last) g = Sigmoid (m) z = Mul (h, g)", LAST),
    "the stream is its own consumer": stream(
        "n = LayerNormalization <axis = -1> (h, scale) k = MatMul (n, d) z = Add (h, k)",
        weights={"scale": SCALE["scale"], "d": w((4, 4), m(0, TWICE), c(1, TWICE))},
    ),
    "channels and time": stream(
        "z = LayerNormalization <axis = 1> (h, scale)", weights={"scale": w((5, 4), c(1, TWICE))}
    ),
}

SIDE_BY_SIDE = """<int64[2] parts = PARTS> {
    h = MatMul (x, a) k = MatMul (x, d) j = Concat <axis = -1> (h, k)
    n = LayerNormalization <axis = -1> (j, scale) l, r = Split <axis = -1> (n, parts)
    t = MatMul (l, b) u = MatMul (r, e) y = Add (t, u)
}"""
TOGETHER = Case(
    TOKENS,
    SIDE_BY_SIDE.replace("PARTS", "{4, 2}"),
    {
        "a": w((3, 4), c(1, TWICE)),
        "d": w((3, 2), c(1, PAIR)),
        "scale": w((6,), c(0, row(TWICE, PAIR))),
        "b": w((4, 2), m(0, TWICE)),
        "e": w((2, 2), m(0, PAIR)),
    },
    SIDE_BY_SIDE.replace("PARTS", "{8, 4}"),
    splits={"a": TWICE, "d": PAIR},
)
NORMS["two groups side by side"] = TOGETHER

IMAGE = "real[n,3,4,4] x"


def image(norm: str, channels: int, split: Split, wide: str | None = None, ints=("", ""), **rest) -> Case:
    weights = {
        "a": w((channels, 3, 1, 1), c(0, split)),
        "b": w((2, channels, 1, 1), m(1, split)),
        **rest.pop("weights", {}),
    }
    bodies = [
        f"{integers} {{ h = Conv (x, a) {body} y = Conv (z, b) }}"
        for body, integers in zip((norm, wide or norm), ints, strict=True)
    ]
    return Case(IMAGE, bodies[0], weights, bodies[1], **rest)


IMAGES = {
    "GroupNormalization, channels within groups": image(
        "z = GroupNormalization <num_groups = 2> (h, scale, shift)",
        4,
        x(2, PAIR),
        weights={"scale": w((4,), c(0, x(2, PAIR))), "shift": w((4,), c(0, x(2, PAIR)))},
        splits={"a#2": PAIR},
        opset=21,
    ),
    "GroupNormalization, groups and channels": image(
        "z = GroupNormalization <num_groups = 2> (h, scale, shift)",
        4,
        x(Split(2, (0, 1, 1), (1, 0.5, 0.5)), PAIR),
        "z = GroupNormalization <num_groups = 3> (h, scale, shift)",
        weights={
            name: w((4,), c(0, x(Split(2, (0, 1, 1), (1, 0.5, 0.5)), PAIR))) for name in ("scale", "shift")
        },
        splits={"a": Split(2, (0, 1, 1), (1, 0.5, 0.5)), "a#2": PAIR},
        opset=21,
    ),
    "GroupNormalization, decomposed": image(
        "k = Reshape (h, flat) n = InstanceNormalization (k, scale, shift) z = Reshape (n, back)",
        4,
        x(2, PAIR),
        ints=(
            "<int64[3] flat = {0, 2, 32}, int64[4] back = {0, 4, 4, 4}>",
            "<int64[3] flat = {0, 2, 64}, int64[4] back = {0, 8, 4, 4}>",
        ),
        weights={"scale": w((2,)), "shift": w((2,))},
        splits={"a#2": PAIR},
    ),
    "global response normalisation": image(
        "g = ReduceL2 (h, space) m = ReduceMean (g, channels) e = Add (m, eps) n = Div (g, e) k = Mul (h, n)"
        " j = Mul (scale, k) i = Add (j, shift) z = Add (h, i)",
        4,
        TWICE,
        ints=("<int64[2] space = {2, 3}, int64[1] channels = {1}, real eps = {0.001}>",) * 2,
        weights={"scale": w((4, 1, 1), c(0, TWICE)), "shift": w((4, 1, 1), c(0, TWICE))},
        splits={"a": TWICE},
    ),
    "MeanVarianceNormalization": image(
        "z = MeanVarianceNormalization <axes = [1, 2, 3]> (h)", 4, TWICE, splits={"a": TWICE}
    ),
}

WORDS = "int64[n,5] x"
TABLE = Weight((10, 4), (c(1, TWICE),))


def tied(after: str, ints: str = "", **weights: Weight) -> Case:
    """An embedding, a normalisation, whatever is ``after`` it, and the embedding's table as the head."""
    body = f"{ints} {{ h = Gather (w, x) {after} t = Transpose <perm = [1, 0]> (w) y = MatMul (z, t) }}"
    return Case(WORDS, body, {"w": TABLE, **weights}, splits={"w#2": TWICE})


FINAL = {"scale": w((4,), m(0, TWICE)), "shift": w((4,), m(0, TWICE))}

TIED = {
    "LayerNormalization": tied("z = LayerNormalization <axis = -1> (h, scale, shift)", **FINAL),
    "a scale of its own": tied(
        "p = Mul (h, h) v = ReduceMean (p, last) s = Sqrt (v) q = Div (h, s) z = Mul (scale, q)",
        LAST,
        scale=FINAL["scale"],
    ),
    "a scale of 1 + w": tied(
        "p = Mul (h, h) v = ReduceMean (p, last) s = Sqrt (v) q = Div (h, s) g = Add (own, one)"
        " z = Mul (q, g)",
        LAST.replace(">", ", real one = {1.0}>"),
        own=Weight((4,), (m(0, TWICE),), offset=1.0),
    ),
    "a shift after the scale": tied(
        "n = LayerNormalization <axis = -1> (h, g) r = Mul (n, scale) q = Add (r, shift) z = Identity (q)",
        g=w((4,), c(0, TWICE)),
        **FINAL,
    ),
    "the last token, scaled": tied(
        "n = LayerNormalization <axis = -1> (h, scale, shift) k = Gather <axis = 1> (n, four)"
        " z = Mul (k, half)",
        "<int64 four = {4}, real half = {0.5}>",
        **FINAL,
    ),
}


CASES = {**NORMS, **IMAGES, **{f"tied, {name}": case for name, case in TIED.items()}}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_written_by_hand(case):
    assert_grown_as_written(case)


def declined(case: Case, name: str) -> str:
    group = find_channel_groups(case.original("double"))[name]
    assert group.barrier is not None
    return group.barrier.reason


@pytest.mark.parametrize(
    "after",
    {
        "no scale": "m = ReduceMean (h) z = Sub (h, m)",
        "the scale is read twice": "n = LayerNormalization <axis = -1> (h, scale, shift)"
        " k = MatMul (n, d) z = Add (n, k)",
        "the scaled value is read twice": "n = LayerNormalization <axis = -1> (h, scale, shift)"
        " z = Identity (n) other = MatMul (n, d)",
        "what follows the scale is not linear": "n = LayerNormalization <axis = -1> (h, scale, shift)"
        " z = Tanh (n)",
        "the scale serves two": "k = LayerNormalization <axis = -1> (h, scale, shift)"
        " z = LayerNormalization <axis = -1> (k, scale, shift)",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_tied_weight_without_a_scale_of_its_own_is_declined(after):
    case = tied(after[1], **FINAL, d=w((4, 4)))
    assert declined(case, "w#2") == (
        "'w' both mixes and carries the channels on one axis, and no scale of its own before it can take the "
        "coefficients"
    )


@pytest.mark.parametrize(
    ("norm", "reason"),
    {
        "Softmax": ("z = Softmax (h)", "it normalises over this axis by a sum, which copies would enlarge"),
        "LpNormalization": (
            "z = LpNormalization (h)",
            "it normalises over this axis by a sum, which copies would enlarge",
        ),
        "ReduceL2": ("s = ReduceL2 (h, last) z = Div (h, s)", "it reduces this axis to one value"),
        "ReduceSum": ("s = ReduceSum (h, last) z = Div (h, s)", "it reduces this axis to one value"),
        "beside what cannot grow": (
            "j = Concat <axis = -1> (h, x) n = LayerNormalization <axis = -1> (j, scale)"
            " z, r = Split <axis = -1> (n, parts)",
            "it normalises over this axis by moments, and only some of its parts could be copied",
        ),
    }.values(),
    ids=lambda value: value[:12],
)
def test_what_is_not_exact_is_declined(norm, reason):
    case = stream(norm, "<int64[1] last = {-1}, int64[2] parts = {4, 3}>", weights={"scale": w((7,))})
    assert declined(case, "a") == reason


def test_a_weight_that_is_standardised_over_its_inputs_is_declined():
    case = image(
        "m = ReduceMean (d, rows) u = Sub (d, m) z = Conv (h, u)",
        4,
        TWICE,
        ints=("<int64[1] rows = {1}>",) * 2,
        weights={"d": w((4, 4, 1, 1))},
    )
    assert declined(case, "a") == (
        "a weight is computed from a reduction over this axis, which copies would change"
    )


@pytest.mark.parametrize(
    "splits",
    [
        {"a": Split(4, (0, 1, 2, 3, 0), (0.5, 1, 1, 1, 0.5))},
        {"a": TWICE},
        {"a": TWICE, "d": THRICE},
    ],
    ids=["unevenly", "without the tied group", "by another factor"],
)
def test_a_plan_that_copies_unevenly_is_refused(splits):
    case = replace(TOGETHER, splits=splits)
    model = case.original("double")
    with pytest.raises(UsageError, match=r"does not copy every channel of '[ad]' equally often"):
        grow_graph(model, case.plan(model, 0.0))


def test_tied_groups_know_each_other():
    groups = find_channel_groups(TOGETHER.original("double"))
    assert groups["a"].whole_factor.tied == ("d",)
    assert groups["d"].whole_factor.tied == ("a",)
    assert not groups["a"].splittable
    assert str(groups["a"].whole_factor).startswith("splits by whole factors: LayerNormalization")
    assert (groups["a"].barrier, groups["d"].barrier) == (None, None)
