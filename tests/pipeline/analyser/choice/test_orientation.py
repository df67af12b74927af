"""The sign of v+ where a split is not symmetric in it: each channel's own, by the third-order term."""

from __future__ import annotations

import numpy as np
import pytest

from growpipe.analyser.choice.orientation import Orientation
from growpipe.analyser.choice.plan_splits import Step, split_groups
from growpipe.analyser.curvature.metric import Euclidean
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.samples import MicroBatch
from growpipe.analyser.schemes import best_rows
from growpipe.analyser.spectra.solvers import Start, solve
from growpipe.analyser.spectra.spectra import Directions
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow
from growpipe.torch_module.outputs import to_numpy
from tests.helpers.splitting_cases import build, is_asymmetric

pytestmark = pytest.mark.slow

C = 3.0


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("name", ["chain", "residual"])
def test_every_channel_has_the_better_sign(name, copies):
    case = build(name)
    groups = case.prepared.program.groups
    extremes, _, _ = solve(
        case.operator, Euclidean(), Start(case.operator.zeros()), SpectraOptions(solver="dense")
    )
    minus = {g.name: v.numpy() for g, v in zip(groups, extremes.minus, strict=True)}
    plus = {g.name: v.numpy() for g, v in zip(groups, extremes.plus, strict=True)}
    directions = Directions(minus, plus)
    rows = {
        g.name: best_rows(low.numpy(), high.numpy(), C, copies)[1]
        for g, low, high in zip(groups, extremes.low, extremes.high, strict=True)
    }
    assert is_asymmetric(rows)
    data = [MicroBatch((case.x,), case.y, len(case.x), 0, 0, 1)]
    orientation = Orientation(
        case.prepared.program, data, case.loss_fn, directions, C, lambda t: t, step=1e-3
    )
    signs = orientation.signs(rows)
    tensors, found = named_tensors(case.model), case.prepared.groups

    def change(signs, chosen=rows):
        splits = split_groups(groups, chosen, directions, dict.fromkeys(rows, 0.0), C, Step(0.01, signs))
        layouts = {n: t for n, t in found.restricted([s.group for s in splits]).items() if n in tensors}
        plan = SplitPlan(
            groups=splits, layouts=layouts, epsilon=0.01, graph_hash=found.graph_hash, scheme="test", c=C,
            parameters_hash=hash_parameters(layouts, lambda n: to_numpy(tensors[n])),
        )  # fmt: skip
        return case.loss(grow(case.model, plan)) - case.loss(case.model)

    ones = {n: np.ones(len(s)) for n, s in signs.items()}
    turned = {n: -s for n, s in signs.items()}
    best = change(signs)
    assert best < change(turned)
    # Better than any one sign for all, unless it is that one.
    assert best <= min(change(ones), change({n: -s for n, s in ones.items()})) + 1e-12
    # And each channel by itself: alone, its own sign is the better one.
    for group in groups:
        for channel in np.flatnonzero(rows[group.name] >= 0)[:2]:
            alone = {n: np.full_like(r, -1) for n, r in rows.items()}
            alone[group.name][channel] = rows[group.name][channel]
            if is_asymmetric(alone):
                assert change(signs, alone) < change(turned, alone)
            else:
                assert signs[group.name][channel] == 1.0
