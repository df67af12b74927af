"""Second moments and their roots against dense linear algebra, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from growpipe.analyser import analyse
from growpipe.analyser.curvature.factors import root_of
from growpipe.analyser.curvature.metric import FARTHEST
from growpipe.analyser.curvature.moments import Matrix, Patches, Restricted, Sum, added, restricted
from growpipe.graph_ops.errors import CheckFailed

WIDE = {"dtype": torch.float64}


def patches(count: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), **WIDE)


@pytest.mark.parametrize("count", [1, 5, 8, 40])
def test_a_root_is_one_of_the_damped_moment(count: int) -> None:
    rows = patches(count, 16)
    damping = torch.tensor(1e-3, **WIDE)
    moment = added(None, Patches(rows), math.inf)
    assert isinstance(moment, Patches if count <= 8 else Sum)
    root = root_of(moment, 10, damping, torch.float64)
    sigma = rows.T @ rows / 10 + 1e-3 * torch.eye(16, **WIDE)
    delta, other = patches(3, 16, 1), patches(3, 16, 2)
    white = root.whitened(delta)
    torch.testing.assert_close(white @ root.whitened(other).T, delta @ sigma @ other.T)
    torch.testing.assert_close(root.raw(white), delta)
    # A gradient c and a displacement keep their inner product.
    torch.testing.assert_close(root.white(other) @ white.T, other @ delta.T)


def test_moments_add_up_in_whatever_form() -> None:
    parts = [patches(n, 16, n) for n in (3, 4, 20, 2)]
    held = None
    kinds = []
    for part in parts:
        held = added(held, Patches(part), math.inf)
        kinds.append(type(held))
    assert kinds == [Patches, Patches, Sum, Sum]
    rows = torch.cat(parts)
    torch.testing.assert_close(held.matrix().values, rows.T @ rows)
    torch.testing.assert_close(held.scaled(0.5).matrix().values, rows.T @ rows / 2)
    torch.testing.assert_close(Patches(parts[2], 0.3).scaled(4.0).matrix().values,
                               4 * (parts[2].T @ parts[2] + 0.3 * torch.eye(16, **WIDE)))  # fmt: skip


def test_no_matrix_is_made_beyond_the_limit_and_the_energy_stays() -> None:
    rows = patches(40, 16) * torch.logspace(0, -2, 16, **WIDE)
    held = None
    for part in rows.split(10):
        held = added(held, Patches(part), limit=8 * 16 * 5)
    assert isinstance(held, Patches)
    assert len(held.rows) == 5
    sigma = rows.T @ rows
    assert float(held.matrix().values.trace()) == pytest.approx(float(sigma.trace()))
    exact, found = (torch.linalg.eigvalsh(m) for m in (sigma, held.matrix().values))
    torch.testing.assert_close(found[-2:], exact[-2:], rtol=0.02, atol=0)
    root = root_of(held, 1, torch.tensor(1e-3, **WIDE), torch.float64)
    delta = patches(3, 16, 1)
    torch.testing.assert_close(root.raw(root.whitened(delta)), delta)


def silent(count: int, used: list[int], seed: int = 0) -> torch.Tensor:
    """Patches of 16 entries, all but ``used`` of which are 0."""
    rows = torch.zeros(count, 16, **WIDE)
    rows[:, used] = patches(count, len(used), seed)
    return rows


@pytest.mark.parametrize("count", [2, 3, 30])
@pytest.mark.parametrize("summed", [False, True])
def test_entries_that_are_always_zero_are_left_out_of_the_root(count: int, summed: bool) -> None:
    rows = silent(count, [1, 2, 7, 8, 11, 13])
    sigma = rows.T @ rows
    moment = restricted(Matrix(sigma)) if summed else added(None, restricted(Patches(rows)), math.inf)
    assert isinstance(moment, Restricted)
    assert isinstance(moment.inner, Matrix if summed else Sum if count > 3 else Patches)
    torch.testing.assert_close(moment.matrix().values, sigma)
    torch.testing.assert_close(moment.mean(5), sigma.diagonal().mean() / 5)
    root = root_of(moment, 10, torch.tensor(1e-3, **WIDE), torch.float64)
    assert root.dimension == 16
    delta, other = patches(3, 16, 1), patches(3, 16, 2)
    white = root.whitened(delta)
    damped = sigma / 10 + 1e-3 * torch.eye(16, **WIDE)
    torch.testing.assert_close(white @ root.whitened(other).T, delta @ damped @ other.T)
    torch.testing.assert_close(root.raw(white), delta)
    torch.testing.assert_close(root.white(other) @ white.T, other @ delta.T)
    if not isinstance(moment.inner, Patches):
        # The coordinates are those of the whole matrix: the processes of a run must agree on them.
        whole = root_of(Matrix(sigma), 10, torch.tensor(1e-3, **WIDE), torch.float64)
        torch.testing.assert_close(white, whole.whitened(delta))


@pytest.mark.parametrize(
    ("sets", "kind"),
    [
        ([[0, 3, 5], [0, 3, 5]], Restricted),
        ([[0, 3, 5], [2, 3]], Restricted),
        ([[0, 3, 5], list(range(16))], Matrix),
        ([list(range(16)), [0, 3, 5]], Matrix),
        ([list(range(8)), list(range(8, 16))], Matrix),
    ],
)
@pytest.mark.parametrize("counts", [(1, 1), (1, 20), (20, 1), (9, 9)])
def test_moments_without_some_entries_add_up(
    sets: list[list[int]], kind: type, counts: tuple[int, int]
) -> None:
    parts = [silent(n, used, n + k) for k, (n, used) in enumerate(zip(counts, sets, strict=True))]
    held = None
    for part in parts:
        held = added(held, restricted(Patches(part)), math.inf)
    rows = torch.cat(parts)
    whole = Patches if sum(counts) <= 2 else (Matrix, Sum)
    assert isinstance(held, whole if kind is Matrix else kind)
    torch.testing.assert_close(held.matrix().values, rows.T @ rows)
    torch.testing.assert_close(held.scaled(0.5).matrix().values, rows.T @ rows / 2)


def test_the_energy_stays_if_entries_are_left_out_and_no_matrix_fits() -> None:
    parts = [silent(10, [0, 3, 5, 6, 9, 12]), silent(10, [0, 3, 5, 6, 10, 12, 14], 1)]
    held = None
    for part in parts:
        held = added(held, restricted(Patches(part)), limit=8 * 6 * 2)
    assert isinstance(held, Restricted)
    assert isinstance(held.inner, Patches)
    assert held.spread > 0
    rows = torch.cat(parts)
    assert float(held.matrix().values.trace()) == pytest.approx(float((rows.T @ rows).trace()))


def faint(scale: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Two branches; what the first one sees is ``scale`` times a picture."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.faint, self.plain = nn.Linear(6, 4), nn.Linear(6, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            branches = [torch.tanh(self.faint(scale * x)), torch.tanh(self.plain(x))]
            return self.head(torch.cat(branches, 1))

    torch.manual_seed(0)
    model = Branches()
    return model, torch.randn(128, 6), torch.randint(0, 3, (128,))


@pytest.mark.parametrize("scale", [1e-3, 1e-8, 1e-25, 0.0])
def test_inputs_that_are_numerically_zero_move_no_weight_beyond_its_scale(scale: float) -> None:
    model, x, y = faint(scale)
    plan = analyse(
        model, nn.functional.cross_entropy, [(x, y)], (x[:2],), growth=0.5, balance=0.0, ranking="predicted"
    )
    groups = plan.notes["analysis"]["groups"]
    weight = model.faint.weight.detach()
    for split in plan.groups:
        for name, displacement in split.displacements.items():
            scale_of = model.get_parameter(name).detach().norm(dim=1).square().mean().sqrt()
            longest = abs(displacement.values.reshape(len(displacement.channels), -1)).max()
            assert longest <= 1.2 * FARTHEST * float(scale_of)
    # Where nothing comes in, nothing is to be won.
    if scale < 1e-6:
        assert {split.group for split in plan.groups} == {"plain.weight"}
        low, high = groups["faint.weight"]["lowest"], groups["faint.weight"]["highest"]
        assert max(abs(low), abs(high)) < 1e-6 * abs(groups["plain.weight"]["lowest"])
    assert torch.equal(weight, model.faint.weight)


def test_inputs_that_are_not_finite_are_refused() -> None:
    model, x, y = faint(1.0)
    x[40, 0] = math.inf  # what tanh makes of it is finite
    with torch.no_grad():
        model.faint.weight[:, 0].abs_()
        model.plain.weight[:, 0].abs_()
    with pytest.raises(CheckFailed, match="not finite"):
        analyse(model, nn.functional.cross_entropy, [(x, y)], (x[:2],), growth=0.5)
