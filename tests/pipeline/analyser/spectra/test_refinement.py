"""Ends known from an earlier set: the second block of products over that set alone, where it does."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from growpipe.analyser.curvature.metric import make_metric
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.spectra.drive import random_start
from growpipe.analyser.spectra.recurrence import Recurrence
from growpipe.analyser.spectra.solvers import Start, solve
from tests.helpers.splitting_cases import CASES, build

pytestmark = pytest.mark.slow

problem = functools.lru_cache(maxsize=None)(build)
NAMES = ["chain", "depthwise", "residual", "squeeze-excite"]


def matrices(operator, metric, batches: int | None) -> tuple[list[Tensor], list[Tensor]]:
    """S and S₁ − S₂ of every channel in whitened coordinates, by group [width, d, d]."""
    units = {
        i: torch.eye(v.shape[1], dtype=v.dtype)[:, None].expand(-1, *v.shape)
        for i, v in enumerate(operator.zeros())
    }
    results = operator.apply_halves({i: metric.raw(i, v) for i, v in units.items()}, batches)
    whole, difference = (
        [metric.white(i, part[i]).permute(1, 2, 0) for i in range(len(units))] for part in results
    )
    return whole, difference


def completed(full: Tensor, partial: Tensor, block: Tensor) -> Tensor:
    """M of `refinement`, written out: [width, d, d], from [block, width, d]."""
    p = torch.einsum("kci,kcj->cij", block, block)
    rest = torch.eye(p.shape[1], dtype=p.dtype) - p
    return full @ p + p @ full - p @ full @ p + rest @ partial @ rest


def orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block.permute(1, 2, 0)).Q.permute(2, 0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_block_over_the_earlier_set_is_that_of_the_stated_matrix(name):
    operator = problem(name).operator_of()
    metric = make_metric("input", operator)
    whole, contrast = matrices(operator, metric, None)
    part, part_contrast = matrices(operator, metric, 1)
    start = random_start(operator.zeros(), 3, 2)
    found, contrasts, _ = solve(
        operator,
        metric,
        Start(start, earlier=1),
        SpectraOptions(solver="lanczos", tolerance=1e-300, noise_share=1e9),
    )
    assert max(group.dimension for group in operator.groups) > 4
    for i, ends in enumerate(found.groups):
        block = orthonormal(start[i])
        # Two blocks of up to four dimensions are the whole space: their bounds would be 0 with any matrix.
        small = operator.groups[i].dimension <= 4
        matrix = whole[i] if small else completed(whole[i], part[i], block)
        run = Recurrence(start[i], 4)
        while not run.done:
            run.advance(torch.einsum("cij,scj->sci", matrix, run.current))
        expected = run.ends()
        size = float(whole[i].abs().max())
        torch.testing.assert_close(ends.low, expected.low, rtol=1e-9, atol=1e-9 * size)
        torch.testing.assert_close(ends.high, expected.high, rtol=1e-9, atol=1e-9 * size)
        differences = contrast[i] if small else completed(contrast[i], part_contrast[i], block)
        for vector, value in ((ends.minus, contrasts[0][i]), (ends.plus, contrasts[1][i])):
            q = torch.einsum("ci,cij,cj->c", vector, differences, vector)
            np.testing.assert_allclose(value, q.numpy(), rtol=1e-7, atol=1e-9 * size)


@pytest.mark.parametrize("name", NAMES)
def test_where_that_does_not_do_all_data_are_asked(name):
    """Bounds of next to nothing: the ends are those of the dense solver, and so are the contrasts."""
    operator = problem(name).operator_of()
    metric = make_metric("input", operator)
    whole, contrast = matrices(operator, metric, None)
    found, contrasts, _ = solve(
        operator, metric, Start(random_start(operator.zeros(), 3, 2), earlier=1),
        SpectraOptions(solver="lanczos", tolerance=1e-10, max_steps=200, noise_share=1e-12),
    )  # fmt: skip
    linear = CASES[name].linear
    for i, (group, ends) in enumerate(zip(operator.groups, found.groups, strict=True)):
        values = torch.linalg.eigvalsh(whole[i])
        size = float(values.abs().max())
        assert (size == 0) == (group.name in linear)
        torch.testing.assert_close(ends.low, values[:, 0], rtol=1e-6, atol=1e-9 * size)
        torch.testing.assert_close(ends.high, values[:, -1], rtol=1e-6, atol=1e-9 * size)
        for vector, value in ((ends.minus, contrasts[0][i]), (ends.plus, contrasts[1][i])):
            q = torch.einsum("ci,cij,cj->c", vector, contrast[i], vector)
            np.testing.assert_allclose(value, q.numpy(), rtol=1e-6, atol=1e-9 * size)


def test_the_ends_are_off_by_the_third_power_of_what_the_sets_differ_by():
    """What a vector has outside the block is as small as they differ, and what it meets there again is."""
    generator = torch.Generator().manual_seed(0)
    full, change = torch.randn(2, 8, 20, 20, generator=generator, dtype=torch.float64)
    full, change = full + full.mT, change + change.mT
    exact = torch.linalg.eigvalsh(full)[:, [0, -1]]
    errors, unaided = [], []
    for t in (4e-3, 2e-3, 1e-3):
        earlier = full + t * change
        ends = torch.linalg.eigh(earlier).eigenvectors[:, :, [0, -1]].permute(2, 0, 1)
        values = torch.linalg.eigvalsh(completed(full, earlier, ends))[:, [0, -1]]
        errors.append(float((values - exact).abs().mean()))
        quotients = torch.einsum("kci,cij,kcj->ck", ends, full, ends)
        unaided.append(float((quotients - exact).abs().mean()))
    assert errors[0] < 0.1 * unaided[0]
    for ends_of, power in ((unaided, 2), (errors, 3)):
        for one, other in pairwise(ends_of):
            assert 0.8 * 2**power < one / other < 1.25 * 2**power
