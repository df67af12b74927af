"""Where positive splitting stops, signed splitting goes on: the analyser on the toy of arXiv 2003.10392."""

from __future__ import annotations

import pytest
import torch

from growpipe.analyser import analyse
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.models import rbf
from growpipe.torch_module.grow_module import grow

pytestmark = pytest.mark.slow

X = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]


def stuck_network() -> tuple[rbf.RBFNet, torch.Tensor]:
    """Two neurons far apart and a target for which both splitting matrices are positive definite.

    S_i = E[2 r w_i (u² − 1) σ (x, 1)(x, 1)ᵀ] with the residual r = Σ_j (u_j² − 1) σ_j / w_j.
    """
    model = rbf.RBFNet(2).double().eval()
    with torch.no_grad():
        model.theta.weight.copy_(torch.tensor([[2.0, 5.0], [2.0, -5.0]]))
        model.mix.weight.copy_(torch.tensor([[1.0, -0.5]]))
        u = torch.cat([X, torch.ones_like(X)], 1) @ model.theta.weight.T
        residual = ((u**2 - 1) * torch.exp(-(u**2) / 2) / model.mix.weight).sum(1, keepdim=True)
        return model, model(X) - 0.1 * residual


def arguments(model: rbf.RBFNet, target: torch.Tensor) -> tuple:
    return model, torch.nn.functional.mse_loss, [(X, target)], (X[:8],)


def test_s2d_has_no_candidate() -> None:
    with pytest.raises(NothingToSplit):
        analyse(*arguments(*stuck_network()), scheme="s2d", growth=1.0, metric="euclidean")


@pytest.mark.parametrize(("scheme", "added"), [("m2", 2), ("m4", 4)])
def test_s3d_goes_on_descending(scheme: str, added: int) -> None:
    model, target = stuck_network()
    plan = analyse(
        *arguments(model, target), scheme=scheme, c=3.0, growth=2.0, max_factor=4.0, metric="euclidean",
        hold_out=False,  # the samples are a grid in order: its end is no sample of the whole
    )  # fmt: skip
    # m = 4 has nothing to gain from a second pair where no eigenvalue is negative: triplets.
    assert plan.added_channels == added
    with torch.no_grad():
        before, after = ((network(X) - target).square().mean() for network in (model, grow(model, plan)))
    assert after < 0.98 * before
    assert plan.realised_change == pytest.approx(float(after - before), rel=1e-6)


def test_where_everything_is_fitted_s2d_always_has_a_candidate() -> None:
    """E[rσ] = E[rσu] = E[rσu²] = 0 leave a zero on the diagonal of the splitting matrix: it is indefinite."""
    torch.manual_seed(0)
    x, target = X, rbf.teacher(0).double()(X)
    model = rbf.build(2).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=2000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-6
    with torch.no_grad():
        inputs = torch.cat([x, torch.ones_like(x)], 1)
        u = inputs @ model.theta.weight.T
        weight = (model(x) - target) * model.mix.weight * (u**2 - 1) * torch.exp(-(u**2) / 2)
        matrices = torch.einsum("kn,ki,kj->nij", weight, inputs, inputs) / len(x)
    values = torch.linalg.eigvalsh(matrices)
    assert (values[:, 0] < -1e-6).all()
    assert (values[:, 1] > 1e-6).all()
