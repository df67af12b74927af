"""Every kind of channel group: the solvers agree, and the predicted change of loss is the measured one."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser.choice.plan_splits import Step, split_groups
from growpipe.analyser.curvature.closed_form import find_chain
from growpipe.analyser.curvature.metric import Euclidean, make_metric
from growpipe.analyser.options import GrowthOptions, SpectraOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.program.binding import DISPLACEABLE
from growpipe.analyser.schemes import best_rows, scheme_of
from growpipe.analyser.spectra.drive import random_start
from growpipe.analyser.spectra.solvers import Start, cheaper_solver, solve
from growpipe.analyser.spectra.spectra import Directions
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow
from growpipe.torch_module.outputs import to_numpy
from tests.helpers.splitting_cases import CASES, Problem, build, is_asymmetric

pytestmark = pytest.mark.slow

problem = functools.lru_cache(maxsize=None)(build)
C = 3.0
DENSE = SpectraOptions(solver="dense")


def exactly(solver: str) -> SpectraOptions:
    return SpectraOptions(solver=solver, tolerance=1e-9, max_steps=200, noise_share=0.0)


@functools.cache
def dense(name: str, metric_name: str = "euclidean"):
    operator = problem(name).operator
    metric = make_metric(metric_name, operator)
    extremes, _, _ = solve(operator, metric, Start(operator.zeros()), DENSE)
    return metric, extremes


def numpy(tensors, names):
    return {n: t.numpy() for n, t in zip(names, tensors, strict=True)}


def measured(case: Problem, rows, value, minus, plus, epsilon: float) -> tuple[float, float]:
    """Predicted and measured change of loss of one plan."""
    groups = case.prepared.program.groups
    splits = split_groups(groups, rows, Directions(minus, plus), value, C, Step(epsilon))
    found, tensors = case.prepared.groups, named_tensors(case.model)
    layouts = {n: t for n, t in found.restricted([s.group for s in splits]).items() if n in tensors}
    plan = SplitPlan(
        groups=splits,
        layouts=layouts,
        epsilon=epsilon,
        graph_hash=found.graph_hash,
        parameters_hash=hash_parameters(layouts, lambda n: to_numpy(tensors[n])),
        scheme="test",
        c=C,
    )
    change = case.loss(grow(case.model, plan)) - case.loss(case.model)
    return sum(s.predicted_change for s in splits), change


@pytest.mark.parametrize("metric_name", ["euclidean", "input"])
@pytest.mark.parametrize("name", CASES)
def test_matrix_free_equals_dense(name, metric_name):
    operator = problem(name).operator
    metric, reference = dense(name, metric_name)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in operator.zeros()]
    found, _, _ = solve(operator, metric, Start(start), exactly("lanczos"))
    assert found.relative_error <= 1e-9
    for group, low, high, low_ref, high_ref in zip(
        operator.groups, found.low, found.high, reference.low, reference.high, strict=True
    ):
        radius = torch.maximum(low_ref.abs(), high_ref.abs()).max()
        assert (radius == 0) == (group.name in CASES[name].linear), group.name
        torch.testing.assert_close(low, low_ref, rtol=1e-6, atol=1e-9 * float(radius))
        torch.testing.assert_close(high, high_ref, rtol=1e-6, atol=1e-9 * float(radius))


@pytest.mark.parametrize("metric_name", ["euclidean", "input"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth])
def test_predicted_change_of_loss_is_the_measured_one(name, metric_name):
    case = problem(name)
    names = [group.name for group in case.prepared.program.groups]
    metric, extremes = dense(name, metric_name)
    minus = numpy(metric.to_raw(extremes.minus), names)
    plus = numpy(metric.to_raw(extremes.plus), names)
    low, high = numpy(extremes.low, names), numpy(extremes.high, names)
    tested = set()
    for scheme_name in ("s2d", "m2", "m3", "m4"):
        scheme = scheme_of(scheme_name, C)
        rows, values = {}, {}
        for group in names:
            best, rows[group] = best_rows(low[group], high[group], scheme.c, scheme.max_copies)
            values[group] = float(best.sum())
        for chosen in [*([n] for n in names), [n for n in names if n not in CASES[name].linear]]:
            picked = {n: rows[n] if n in chosen else np.full_like(rows[n], -1) for n in names}
            if sum(values[n] for n in chosen) > -1e-9:
                continue
            tested.update(chosen)
            # Negative pairs and mixed triplets have a third-order term: their error is linear in ε.
            asymmetric = is_asymmetric(picked)
            assert not (asymmetric and scheme_name in {"s2d", "m4"})
            predicted, change = measured(case, picked, values, minus, plus, 1e-3)
            error = abs(change / predicted - 1.0)
            assert error <= (0.03 if asymmetric else 0.01), (scheme_name, chosen)
            predicted, change = measured(case, picked, values, minus, plus, 2e-4)
            assert abs(change / predicted - 1.0) <= max(error / 3, 1e-3), (scheme_name, chosen)
    assert tested == set(names) - set(CASES[name].linear)


@pytest.mark.parametrize("name", ["depthwise", "squeeze-excite"])
def test_auto_mixes_solvers_group_by_group(name):
    """Dense for the smaller dimensions, Lanczos for the others, in one loop; the ends are those of dense."""
    operator = problem(name).operator
    metric, reference = dense(name)
    dimensions = [group.dimension for group in operator.groups]
    start = random_start(operator.zeros(), 0)
    found, _, solvers = solve(
        operator, metric, Start(start, [1 if d == max(dimensions) else 10**6 for d in dimensions]),
        exactly("auto"),
    )  # fmt: skip
    assert solvers == ["lanczos" if d == max(dimensions) else "dense" for d in dimensions]
    assert len(set(solvers)) == 2
    for ends, exact in ((found.low, reference.low), (found.high, reference.high)):
        for one, other in zip(ends, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * float(other.abs().max()))


def test_auto_counts_work():
    assert cheaper_solver(4, 1e6) == cheaper_solver(8, 1e6) == "dense"
    assert cheaper_solver(27, 1e6) == cheaper_solver(576, 1e9) == "lanczos"
    # With little data an eigh of the whole is cheaper than one at every step.
    assert cheaper_solver(9, 1.0) == "dense"
    assert cheaper_solver(64, 1e6, products=60) == "dense"


@pytest.mark.parametrize("name", CASES)
def test_closed_form_equals_double_backward(name):
    case = problem(name)
    general = case.operator_of(closed_forms=False)
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in general.zeros()]
    for one, other in zip(case.operator.apply(vectors), general.apply(vectors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_chains_through_depthwise_convolutions():
    """Normalisations before and behind them, multipliers, strides, several activations in one chain."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3),
        nn.ReLU6(), nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.SiLU(),
        nn.Conv2d(6, 4, 1, bias=False), nn.Tanh(), nn.Conv2d(4, 4, (1, 2), groups=4, bias=False),
        nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for tensor in [*model.parameters(), *(m.running_mean for m in model if hasattr(m, "running_mean"))]:
            tensor.add_(0.3 * torch.randn_like(tensor))
    x, y = torch.randn(24, 2, 6, 6, dtype=torch.float64), torch.randint(0, 3, (24,))
    prepared = prepare(model, (x[:2],), GrowthOptions(), torch.device("cpu"))
    case = Problem(model, cross_entropy, x, y, prepared)
    chains = [find_chain(group) for group in prepared.program.groups]
    assert [len(chain.steps) for chain in chains if chain] == [6, 1, 4]
    vectors = random_start(case.operator.zeros(), 0)
    general = case.operator_of(closed_forms=False)
    for one, other in zip(case.operator.apply(vectors), general.apply(vectors), strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("limit", [0, 40_000, 100_000])
def test_a_memory_limit_changes_nothing_but_the_memory(limit):
    case = problem("chain")
    tight = case.operator_of(memory_limit=limit)
    assert tight.kept_bytes <= limit
    vectors = [torch.ones_like(v) for v in tight.zeros()]
    for _ in range(2):
        for one, other in zip(tight.apply(vectors), case.operator.apply(vectors), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["chain", "depthwise"])
def test_half_the_storage_keeps_the_ranking(name):
    case = problem(name)
    operator = case.operator_of(storage=torch.bfloat16)
    _, reference = dense(name)
    found, _, _ = solve(operator, Euclidean(), Start(operator.zeros()), DENSE)
    for ends, exact in ((found.low, reference.low), (found.high, reference.high)):
        for one, other in zip(ends, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.abs().max()))
        ranks = spearmanr(torch.cat(ends).numpy(), torch.cat(exact).numpy()).statistic
        assert ranks > 0.98
    assert all(
        value.dtype == torch.bfloat16 for captured in operator.kept() for value in captured.gradients.values()
    )


def test_find_chains_are_recognised():
    """A closed form where there is one activation and all else is linear, and nowhere else."""

    def chains(name):
        groups = problem(name).prepared.program.groups
        return {g.name for g in groups if find_chain(g) is not None}

    assert chains("chain") == {"a.weight", "b.weight", "hidden.weight"}
    assert chains("pointnet") == {"a.weight", "b.weight", "hidden.weight"}
    assert chains("concat") == {"c.weight"}
    # Where depthwise filters are displaced, too, there are two blocks.
    assert chains("depthwise") == {"net.9.weight"}
    alone = build("depthwise", ("weights",)).prepared.program.groups
    assert [len(chain.steps) for g in alone if (chain := find_chain(g))] == [5, 4, 1]
    assert chains("swiglu") == chains("fused glu") == set()
    assert chains("squeeze-excite") == {"squeeze.weight"}
    assert chains("attention") == {"up.weight"}


@pytest.mark.parametrize("name", ["chain", "depthwise", "residual"])
@pytest.mark.parametrize("metric_name", ["euclidean", "input"])
def test_everything_that_can_be_displaced(name, metric_name):
    """Biases and batch-norm entries too: the blocks of θ meet in S, and the prediction still holds."""
    case = build(name, DISPLACEABLE)
    names = [group.name for group in case.prepared.program.groups]
    metric = make_metric(metric_name, case.operator)
    extremes, _, _ = solve(case.operator, metric, Start(case.operator.zeros()), DENSE)
    kinds = {b.tensor.rsplit(".")[-1] for g in case.operator.groups for b in g.blocks}
    assert kinds == {"weight", "bias"}
    low, high = numpy(extremes.low, names), numpy(extremes.high, names)
    best = {n: best_rows(low[n], high[n], C, 4) for n in names}
    predicted, change = measured(
        case,
        {n: rows for n, (_, rows) in best.items()},
        {n: float(value.sum()) for n, (value, _) in best.items()},
        numpy(metric.to_raw(extremes.minus), names),
        numpy(metric.to_raw(extremes.plus), names),
        1e-3,
    )
    assert change / predicted == pytest.approx(1.0, abs=0.01)


def test_every_kind_of_group_is_there():
    """The cases cover what they claim."""
    groups = {name: problem(name).prepared.program.groups for name in CASES}
    assert max(len(g.blocks) for g in groups["residual"]) >= 3
    assert any(not b.mixing for g in groups["depthwise"] for b in g.blocks)
    assert any(b.rows.shape[1] == 2 for g in groups["fused glu"] for b in g.blocks)
    assert any(len(g.edges) >= 2 for g in groups["squeeze-excite"])
    assert len(groups["concat"]) >= 3
    assert {g.name for g in groups["attention"]} == {"q.weight", "v.weight", "up.weight"}
