"""`SplittingOperator` against the dense second derivative, channel by channel, for every kind of group."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser.curvature import splitting_operator
from growpipe.analyser.curvature.splitting_operator import SplittingOperator
from growpipe.graph_ops.errors import UsageError
from tests.helpers.splitting_cases import CASES, Problem, build


def hessian(case: Problem, position: int) -> torch.Tensor:
    """∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩ of one group by torch, all its channels at once: [width · d, width · d]."""
    program = case.prepared.program
    group = program.groups[position]
    captured = program.capture((case.x,), case.y, case.loss_fn, program.recording([group]))

    def scalar(theta: torch.Tensor) -> torch.Tensor:
        moved = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
        for block, part in zip(group.blocks, theta.split(group.sizes, dim=-1), strict=True):
            moved[block.tensor] = moved[block.tensor] + block.scatter(part)
        return program.scalar([group], captured, moved)

    zero = torch.zeros(group.width, group.dimension, dtype=torch.float64)
    dense = torch.autograd.functional.hessian(scalar, zero)
    return dense.reshape(zero.numel(), zero.numel())


QUICK = ("chain", "shared", "swiglu")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_equals_the_dense_second_derivative(name):
    case = build(name)
    operator = SplittingOperator(
        case.model, case.loss_fn, [(case.x, case.y)], case.export, displace=("weights", "filters")
    )
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((operator.shape[0], 3))
    products = operator.split(operator @ vectors)
    for position, (group, (width, d)) in enumerate(operator.shapes.items()):
        dense = hessian(case, position).numpy()
        scale = {"rtol": 1e-9, "atol": 1e-12 * max(1.0, float(np.abs(dense).max()))}
        # Channels do not meet: the dense matrix of all of them is block diagonal.
        np.testing.assert_allclose(operator.group(group) @ np.eye(width * d), dense, **scale)
        blocks = dense.reshape(width, d, width, d)
        for channel, matrix in enumerate(operator.matrices(group)):
            np.testing.assert_allclose(matrix, blocks[channel, :, channel], **scale)
        last = width - 1
        np.testing.assert_allclose(operator.channel(group, last) @ np.eye(d), blocks[last, :, last], **scale)
        own = operator.split(vectors)[group]
        np.testing.assert_allclose(products[group], (own.reshape(3, -1) @ dense).reshape(own.shape), **scale)


def test_is_a_linear_operator():
    case = build("chain")
    operator = SplittingOperator(case.model, case.loss_fn, [(case.x, case.y)], (case.x[:2],), micro_batch=5)
    v, w = np.random.default_rng(1).standard_normal((2, operator.shape[0]))
    assert (operator @ v).shape == v.shape
    np.testing.assert_allclose(operator @ v, operator.T @ v)
    assert w @ (operator @ v) == pytest.approx(v @ (operator @ w), rel=1e-10)
    np.testing.assert_allclose(operator.join(operator.split(v)), v)
    width, _ = operator.shapes["a.weight"]
    values = np.linalg.eigvalsh(operator.matrices("a.weight"))
    lowest = eigsh(operator.group("a.weight"), k=1, which="SA", return_eigenvectors=False)
    assert lowest[0] == pytest.approx(values.min(), rel=1e-6)
    with pytest.raises(UsageError, match=r"no splittable group 'a.weigth'; did you mean 'a.weight'\?"):
        operator.group("a.weigth")
    with pytest.raises(UsageError, match=f"has the channels 0 to {width - 1}, and no channel {width}"):
        operator.channel("a.weight", width)


def test_the_model_trains_on_without_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(32, 3, dtype=torch.float64), torch.randint(0, 2, (32,))
    operator = SplittingOperator(model, cross_entropy, [(x, y)], (x[:2],), memory_limit=0)
    before = operator.matrices("0.weight")
    assert model.training
    with torch.no_grad():
        model[0].weight.add_(1.0)
    np.testing.assert_array_equal(operator.matrices("0.weight"), before)


def test_its_example_runs():
    torch.manual_seed(0)
    found = doctest.testmod(splitting_operator)
    assert (found.failed, found.attempted > 5) == (0, True)


def test_the_settings_around_it_do_not_change_products():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    denormals = []

    def loss_fn(output, target):
        denormals.append((torch.tensor(2e-38) * 0.5).item())
        return cross_entropy(output, target)

    def product():
        operator = SplittingOperator(model, loss_fn, [(x, y)], (x[:2],), memory_limit=0)
        return operator @ np.ones(operator.shape[0], np.float32)

    plain = product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = product()
    assert np.array_equal(plain, mixed)
    assert set(denormals) == {0.0}
