"""Lanczos and the metric by themselves."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from growpipe.analyser.curvature import metric as input_metric
from growpipe.analyser.curvature.metric import InputMetric, make_metric
from growpipe.analyser.curvature.operator import split
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.program.activations import ACTIVATIONS, Surrogate
from growpipe.analyser.spectra.drive import StoppingRule, drive, lanczos, random_start
from growpipe.analyser.spectra.recurrence import Recurrence
from growpipe.analyser.spectra.solvers import Start, solve
from growpipe.graph_ops.errors import CheckFailed, UsageError
from tests.helpers.splitting_cases import build

problem = functools.lru_cache(maxsize=None)(build)


def symmetric(width: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, d, d, generator=generator, dtype=torch.float64)
    return matrix + matrix.mT


def test_both_ends_of_many_matrices_of_different_size():
    matrices = [symmetric(5, 30, 0), symmetric(3, 4, 1), symmetric(1, 1, 2), symmetric(4, 12, 3)]
    matrices[0][1] = 0.0  # a linear neuron
    matrices[0][2] = torch.eye(30)  # one eigenvalue only
    matrices[3][0] = -torch.eye(12) + 3 * torch.ones(12, 12) / 12  # two of them

    def apply(vectors):
        return {i: torch.einsum("cij,...cj->...ci", matrices[i], v) for i, v in vectors.items()}

    start = random_start([m[:, 0] for m in matrices], 0)
    found = lanczos(apply, start, tolerance=1e-12, max_steps=40)
    assert found.steps <= 30
    for matrix, low, high, minus, plus in zip(
        matrices, found.low, found.high, found.minus, found.plus, strict=True
    ):
        values = torch.linalg.eigvalsh(matrix)
        torch.testing.assert_close(low, values[:, 0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(high, values[:, -1], rtol=1e-9, atol=1e-9)
        for value, vector in ((low, minus), (high, plus)):
            torch.testing.assert_close(
                torch.einsum("cij,cj->ci", matrix, vector), value[:, None] * vector, rtol=0, atol=1e-6
            )


def applying(matrix: torch.Tensor):
    return lambda vectors: {0: torch.einsum("cij,...cj->...ci", matrix, vectors[0])}


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("steps", [3, 7, 12])
def test_residuals_of_a_block_are_those_of_its_ritz_pairs(block, steps):
    """‖S v − λ v‖ from what a block leaves over, with rounding errors alone between them."""
    matrix = symmetric(6, 12, 3)
    run = Recurrence(random_start([matrix[:, 0]], 1, block)[0], steps)
    while not run.done:
        run.advance(torch.einsum("cij,scj->sci", matrix, run.current))
    ends = run.ends()
    values, _, bounds = run.ritz()
    assert values.shape[1] == (12 if steps == 12 else steps - steps % block)
    for value, vector, bound in ((ends.low, ends.minus, 0), (ends.high, ends.plus, -1)):
        image = torch.einsum("cij,cj->ci", matrix, vector)
        torch.testing.assert_close((vector * image).sum(1), value, rtol=1e-12, atol=1e-12)
        residual = torch.linalg.vector_norm(image - value[:, None] * vector, dim=1)
        assert (bounds[:, bound] <= residual + 1e-7).all()
    if steps == 12:
        torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix), rtol=1e-10, atol=1e-10)


def test_a_block_may_begin_with_the_ends_themselves():
    """Nothing is left to find where they are exact, and a dependent start vector is left out."""
    matrix = symmetric(5, 20, 7)
    values, vectors = torch.linalg.eigh(matrix)
    both = torch.stack([vectors[:, :, 0], vectors[:, :, -1]])
    for start in (both, torch.stack([both.sum(0), 2 * both.sum(0)])):
        found = lanczos(applying(matrix), [start], tolerance=1e-9, max_steps=40)
        torch.testing.assert_close(found.low[0], values[:, 0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.high[0], values[:, -1], rtol=1e-9, atol=1e-9)
        for value, vector in ((found.low[0], found.minus[0]), (found.high[0], found.plus[0])):
            image = torch.einsum("cij,cj->ci", matrix, vector)
            torch.testing.assert_close(image, value[:, None] * vector, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["chain", "depthwise", "residual"])
def test_a_block_of_vectors_is_as_many_products(name):
    operator = problem(name).operator
    blocks = random_start(operator.zeros(), 0, 3)
    before = operator.products
    whole, difference = operator.apply_halves(dict(enumerate(blocks)))
    assert operator.products == before + 1
    for j in range(3):
        one, other = operator.apply_halves({i: v[j : j + 1] for i, v in enumerate(blocks)})
        for i in whole:
            torch.testing.assert_close(whole[i][j], one[i][0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(difference[i][j], other[i][0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("operator", ACTIVATIONS, ids=str)
def test_slope_and_curvature_in_one_are_the_two_derivatives(operator):
    phi, surrogate = ACTIVATIONS[operator](), Surrogate()
    u = torch.linspace(-5, 5, 401, dtype=torch.float64)
    gradient = torch.cos(3 * u)
    for wanted in (True, False):
        slope, curvature = phi.bend(u.clone(), gradient, surrogate, wanted)
        torch.testing.assert_close(curvature, gradient * phi.second(u, surrogate), rtol=1e-12, atol=1e-14)
        assert (slope is not None) == wanted
        if slope is not None:
            torch.testing.assert_close(slope, phi.first(u), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_the_error_bound_bounds_the_error(steps):
    matrix = symmetric(40, 60, 5)

    def apply(vectors):
        return {0: torch.einsum("cij,...cj->...ci", matrix, vectors[0])}

    found = lanczos(apply, random_start([matrix[:, 0]], 1), tolerance=0.0, max_steps=steps)
    values = torch.linalg.eigvalsh(matrix)
    error = torch.maximum(found.low[0] - values[:, 0], values[:, -1] - found.high[0])
    assert found.steps == steps
    # The bound is of some eigenvalue: an end that is not seen yet may lie further out.
    assert (error <= found.error[0] + 1e-9).float().mean() > (0.0 if steps < 12 else 0.7)
    assert (error >= -1e-9).all()


def test_lanczos_ends_at_half_the_noise():
    """With noise the bounds need only be half of it in root mean square; the tolerance holds without."""
    matrix = symmetric(40, 60, 5)

    def apply(vectors):
        return {0: torch.einsum("cij,...cj->...ci", matrix, vectors[0])}

    start = random_start([matrix[:, 0]], 1)
    exact = lanczos(apply, start, tolerance=1e-3, max_steps=40)
    rough = lanczos(apply, start, tolerance=1e-3, max_steps=40, noise=lambda *_: 0.2, noise_share=0.5)
    assert 4 <= rough.steps < exact.steps
    for found, limit in ((exact, 1e-3), (rough, 0.1)):
        shares = found.error[0] / torch.maximum(found.low[0].abs(), found.high[0].abs())
        assert float(shares.square().mean().sqrt()) <= 1.5 * limit
    assert (
        lanczos(apply, start, tolerance=1e-3, max_steps=40, noise=lambda *_: 0.0, noise_share=0.5).steps
        == exact.steps
    )


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_the_noise_rule_asks_for_the_ends_by_their_weights(weights):
    """An end that counts little needs no products of its own; what counts meets the bound."""
    matrix = symmetric(40, 60, 5)
    values = torch.linalg.eigvalsh(matrix)

    def apply(vectors):
        return {0: torch.einsum("cij,...cj->...ci", matrix, vectors[0])}

    def found(weights):
        rule = StoppingRule(1e-9, lambda *_: 1.0, 0.02, weights)
        start = random_start([matrix[:, 0]], 1)[0]
        return drive(apply, {0: Recurrence(start, 60)}, rule)

    low, high = weights
    one, both = found(weights), found((1.0, 1.0))
    assert one.steps < both.steps
    radius = torch.maximum(values[:, 0].abs(), values[:, -1].abs())
    off = low * (one.low[0] - values[:, 0]) + high * (values[:, -1] - one.high[0])
    assert float((off / radius).square().mean().sqrt()) <= 0.02
    ends = one.groups[0]
    bound = (low * ends.low_error + high * ends.high_error) / torch.maximum(ends.low.abs(), ends.high.abs())
    assert float(bound.square().mean().sqrt()) <= 0.02


@pytest.mark.parametrize("name", ["chain", "residual", "squeeze-excite", "attention"])
def test_values_on_demand_are_those_of_the_path(name):
    operator = problem(name).operator_of(closed_forms=False)
    program, captured = operator.program, operator.captured(0)
    for group in operator.groups:
        theta = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
        values = program.values_on_demand(group, captured, theta)
        for node, value in reversed(program.run_path([group], captured, theta).items()):
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(values[node], value, rtol=0, atol=0)


def test_products_that_are_not_finite_are_refused():
    with pytest.raises(CheckFailed, match="not finite"):
        lanczos(lambda v: {0: v[0] * float("nan")}, [torch.ones(2, 5)], tolerance=0.0, max_steps=40)


@pytest.mark.parametrize("name", ["chain", "depthwise", "swiglu", "pointnet", "residual", "fused glu"])
def test_input_metric_is_what_a_displacement_does_to_the_producers_output(name, monkeypatch):
    """δᵀ Σ δ against the mean square change of the producers' outputs."""
    monkeypatch.setattr(input_metric, "FARTHEST", 1e9)
    operator = problem(name).operator_of(closed_forms=False)
    metric = make_metric("input", operator, damping=1e-12)
    assert isinstance(metric, InputMetric)
    program = operator.program
    generator = torch.Generator().manual_seed(0)
    for position, group in enumerate(operator.groups):
        for block, root in zip(group.blocks, metric.roots(position), strict=True):
            delta = torch.randn(block.width, block.dimension, generator=generator, dtype=torch.float64)
            theta = {b.tensor: program.tensor(b.tensor) for b in group.blocks}
            moved = {**theta, block.tensor: theta[block.tensor] + block.scatter(delta)}
            users = program.users(group, block.tensor)
            total, samples = 0.0, 0
            for index in range(len(operator)):
                captured = operator.captured(index)
                before = program.run_path([group], captured, theta)
                after = program.run_path([group], captured, moved)
                for user, _ in users:
                    change = (after[user] - before[user]).square()
                    share = change.numel() / block.shape[block.axis] * block.rows.shape[1]
                    # Mean over samples and positions, summed over the entries of a channel.
                    total += (
                        float(change.sum() / (share / block.rows.shape[1])) * captured.samples / len(users)
                    )
                samples += captured.samples
            quadratic = root.whitened(delta.reshape(block.width, -1, root.dimension)).square().sum()
            # A filter multiplier sees several inputs: Σ is the multiple of the identity that fits on average.
            rough = block.mixing and name == "depthwise" and block.rows.shape[1] > 1
            assert float(quadratic) == pytest.approx(total / samples, rel=0.6 if rough else 1e-6)


def test_whitening_and_back():
    operator = problem("depthwise").operator
    metric = make_metric("input", operator)
    vectors = random_start(operator.zeros(), 4)
    for one, other in zip(metric.from_raw(metric.to_raw(vectors)), vectors, strict=True):
        torch.testing.assert_close(one, other)
    assert [sum(p.shape[1] for p in split(g, v)) for g, v in zip(operator.groups, vectors, strict=True)]


def test_a_settled_root_is_computed_again_for_what_it_lacks():
    operator = problem("depthwise").operator
    metric = make_metric("input", operator)
    for position, v in enumerate(random_start(operator.zeros(), 4)):
        before = [metric.whitened(position, v), metric.raw(position, v), metric.white(position, v)]
        metric.settle(position)
        after = [metric.raw(position, v), metric.white(position, v), metric.whitened(position, v)]
        for one, other in zip([*before[1:], before[0]], after, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_groups_solved_in_portions_have_the_same_ends(name):
    """A case that keeps nothing of its batches solves all groups at once."""
    found = []
    for limit in (None, 0):
        operator = problem(name).operator_of(memory_limit=limit)
        metric = make_metric("input", operator)
        start = metric.from_raw(random_start(operator.zeros(), 3, 2))
        solution = solve(operator, metric, Start(start), SpectraOptions(solver="lanczos"), raw=limit is None)
        assert operator.keeps_all == (limit is None)
        minus = solution.extremes.minus
        found.append((solution, minus if limit is None else metric.to_raw(minus)))
    (portions, minus), (whole, other) = found
    assert len(portions.extremes.groups) == len(operator.groups) > 1
    assert portions.extremes.group_products == whole.extremes.group_products
    for one, two in zip([*portions.extremes.low, *minus], [*whole.extremes.low, *other], strict=True):
        torch.testing.assert_close(one, two)
    for one, two in zip(portions.contrasts[1], whole.contrasts[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def test_metric_arguments():
    operator = problem("chain").operator
    with pytest.raises(UsageError, match="unknown metric"):
        make_metric("fisher", operator)
    with pytest.raises(UsageError, match="must be positive"):
        make_metric("input", operator, damping=0.0)
