"""Taps of a kernel that never meet the input are not displaced, and the products stay those of all taps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from growpipe import grow
from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.curvature.metric import make_metric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.curvature.splitting_operator import SplittingOperator
from growpipe.analyser.options import AnalysisOptions, GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.program.kernel_window import KernelWindow, kernel_windows
from growpipe.analyser.report import Analysis

CPU = torch.device("cpu")


class Block(nn.Module):
    """A residual block that halves the map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6))
        self.short = nn.Conv2d(4, 6, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.second(self.first(x)) + self.short(x))
        return out


def network() -> nn.Sequential:
    """Maps of 4, 2 and 1 positions a side: of the last kernels 4 and 1 taps of 9 meet the input."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), Block(), nn.Conv2d(6, 5, 5, 2, 2), nn.Tanh(),
        nn.Conv2d(5, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.double().eval()


def data(size: int = 4, samples: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def analysed(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Analysis:
    """The analysis of a network whose example inputs have 4 positions a side."""
    example = (torch.zeros(2, 3, 4, 4, dtype=torch.float64),)
    options = AnalysisOptions.of(0.5, None, None, {})
    return analysis_of(model, cross_entropy, batches, example, options, None)


def convolution(size: int, kernel: int, stride: int, padding: int, dilation: int) -> KernelWindow | None:
    """The window of one convolution of square maps."""
    program = torch.export.export(
        nn.Conv2d(2, 3, kernel, stride, padding, dilation), (torch.zeros(2, 2, size, size),)
    )
    names = {n: n.name for n in program.graph.nodes if n.op == "placeholder"}
    return kernel_windows(program.graph.nodes, names).get("p_weight")


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "taps"),
    [
        (1, 3, 1, 1, 1, (1, 2)),  # the centre
        (2, 3, 2, 1, 1, (1, 3)),
        (2, 3, 1, 1, 1, None),  # both positions see all taps between them
        (3, 3, 1, 6, 6, (1, 2)),  # dilated beyond the map
        (8, 3, 1, 1, 1, None),
        (1, 5, 1, 2, 1, (2, 3)),
    ],
)
def test_window_of_a_convolution(
    size: int, kernel: int, stride: int, padding: int, dilation: int, taps: tuple[int, int] | None
) -> None:
    window = convolution(size, kernel, stride, padding, dilation)
    assert (None if window is None else window.taps) == (None if taps is None else (taps, taps))


def test_windows_give_the_same_output() -> None:
    generator = torch.Generator().manual_seed(0)
    found = 0
    for size, kernel, stride, padding, dilation in itertools.product(
        (1, 2, 3, 5), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 3), (1, 2, 3)
    ):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        window = convolution(size, kernel, stride, padding, dilation)
        if window is None:
            continue
        found += 1
        x = torch.randn(2, 2, size, size, generator=generator, dtype=torch.float64)
        w = torch.randn(3, 2, kernel, kernel, generator=generator, dtype=torch.float64)
        whole = conv2d(x, w, None, stride, padding, dilation)
        part = conv2d(x, window.of(w), None, stride, window.padding, dilation)
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(window.of(window.filled(window.of(w), w.shape[2:])), window.of(w))
    assert found > 50


def test_free_sizes_have_no_window() -> None:
    side = torch.export.Dim("side", min=1, max=64)
    program = torch.export.export(
        nn.Conv2d(2, 3, 5, padding=2), (torch.zeros(2, 2, 4, 4),), dynamic_shapes=({2: side, 3: side},)
    )
    names = {n: n.name for n in program.graph.nodes if n.op == "placeholder"}
    assert kernel_windows(program.graph.nodes, names) == {}


@pytest.mark.parametrize("closed_forms", [True, False])
def test_products_are_those_of_whole_kernels(closed_forms: bool) -> None:
    x, y = data()
    prepared = prepare(network(), (x[:2],), GrowthOptions(), CPU)
    program, whole = prepared.program, prepared.program.with_whole_kernels()
    operators = [SplittingProducts(one, closed_forms=closed_forms) for one in (program, whole)]
    for operator in operators:
        operator.add((x[:12],), y[:12], cross_entropy)
        operator.add((x[12:],), y[12:], cross_entropy)
    dimensions = {
        g.name: (g.dimension, w.dimension) for g, w in zip(program.groups, whole.groups, strict=True)
    }
    assert dimensions["3.weight"] == (6, 150)
    assert dimensions["5.weight"] == (5, 45)
    generator = torch.Generator().manual_seed(2)
    vectors = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in operators[0].zeros()]
    own = operators[0].apply(vectors)
    for group, larger, v, product in zip(program.groups, whole.groups, vectors, own, strict=True):
        position = program.groups.index(group)
        filled = [torch.zeros_like(v) for v in operators[1].zeros()]
        parts = v.split(group.sizes, dim=1)
        filled[position] = torch.cat(
            [w.gather(b.scatter(p)) for b, w, p in zip(group.blocks, larger.blocks, parts, strict=True)], 1
        )
        found = operators[1].apply(filled)[position]
        expected = [
            b.scatter(p) for b, p in zip(group.blocks, product.split(group.sizes, dim=1), strict=True)
        ]
        blocks = zip(larger.blocks, found.split(larger.sizes, dim=1), expected, strict=True)
        for block, part, tensor in blocks:
            # Beyond the window the products are 0.
            torch.testing.assert_close(block.scatter(part), tensor, rtol=1e-9, atol=1e-12)


def test_metric_is_that_of_whole_kernels() -> None:
    x, y = data()
    prepared = prepare(network(), (x[:2],), GrowthOptions(), CPU)
    program, whole = prepared.program, prepared.program.with_whole_kernels()
    squares = []
    for one in (program, whole):
        operator = SplittingProducts(one)
        operator.add((x,), y, cross_entropy)
        metric = make_metric("input", operator, damping=1e-9)
        (position,) = [i for i, group in enumerate(one.groups) if group.name == "5.weight"]
        block = one.groups[position].blocks[0]
        ones = torch.zeros(block.shape, dtype=torch.float64)
        ones[..., 1, 1] = 1.0
        v = block.gather(ones)
        squares.append(metric.whitened(position, v).square().sum(1))
    torch.testing.assert_close(*squares, rtol=1e-6, atol=0.0)


def test_plans_leave_other_taps_alone_and_grow() -> None:
    x, y = data(samples=64)
    model = network()
    analysis = analysed(model, [(x, y)])
    plan = analysis.plan
    assert analysis.report.groups["5.weight"].dimension == 5
    (split,) = [split for split in plan.groups if split.group == "5.weight"]
    values = split.displacements["5.weight"].values
    assert values.shape[1:] == (1, 5, 3, 3)
    outside = values.copy()
    outside[..., 1, 1] = 0.0
    assert not outside.any()
    assert values[..., 1, 1].any()
    grown = grow(model, plan)
    assert grown(x).shape == (64, 3)


def test_kernels_are_whole_if_batches_have_other_sizes_than_the_example() -> None:
    x, y = data(samples=64)
    larger, _ = data(8, 64)
    model = network()
    model[7] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for batches in ([(larger, y)], [(x[:32], y[:32]), (larger[32:], y[32:])]):
        assert analysed(model, batches).report.groups["5.weight"].dimension == 45


def test_splitting_operator_has_all_entries() -> None:
    x, y = data()
    operator = SplittingOperator(network(), cross_entropy, [(x, y)], (x[:2],))
    assert operator.shapes["5.weight"] == (4, 45)
