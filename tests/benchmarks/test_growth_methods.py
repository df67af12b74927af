"""The methods of the growth benchmark: each does what its name says, at the widths it was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.growth import methods as growth_methods
from benchmarks.growth.methods import CHOOSERS, METHODS, RANDOM_STEP, Moment
from growpipe import grow
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.models.convnet import build
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form

pytestmark = pytest.mark.slow

WIDTHS = (4, 5, 6, 7)
ADDED = (2, 1, 3, 2)


@pytest.fixture(scope="module")
def moment() -> Moment:
    """A convnet that is drawn anew, on noise."""
    seed_everything(0, "seed network")
    model = build(widths=WIDTHS).eval()
    images = torch.randn(64, 3, 32, 32)
    batches = [(images[i : i + 32], torch.arange(32) % 10) for i in (0, 32)]
    with torch.no_grad():
        # Statistics of these images, so that no layer is dead.
        model.train()(images)
    export = export_growth_form(model.eval(), (images[:2],))
    groups = find_channel_groups(export.graph)
    return Moment(model, nn.functional.cross_entropy, batches, 48, (images[:2],), export, groups, seed=3)


def added(moment: Moment) -> dict[str, int]:
    names = [group.name for group in moment.groups.groups if group.splittable]
    return dict(zip(names, ADDED, strict=True))


def new_outgoing_gradient(moment: Moment, module: nn.Module) -> float:
    """‖∂L/∂W‖ over the weights with which the second convolution reads the first's new channels."""
    module.zero_grad()
    inputs, target = moment.batches[0]
    moment.loss_fn(module(inputs), target).backward()
    gradient = module.get_parameter("features.3.weight").grad
    assert gradient is not None
    return float(gradient[: WIDTHS[1], WIDTHS[0] :].norm())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reaches_the_widths_it_is_given(moment: Moment, method: str) -> None:
    plan = METHODS[method](moment, added(moment))
    assert [split.grown_width for split in plan.groups] == [w + n for w, n in zip(WIDTHS, ADDED, strict=True)]
    grown = grow(moment.model, plan).eval()
    assert grown(moment.batches[0][0]).isfinite().all()


@pytest.mark.parametrize("method", CHOOSERS)
def test_a_chooser_spends_what_it_is_given_and_no_more(moment: Moment, method: str) -> None:
    budget = 2 * moment.groups.cost.macs()
    plan = METHODS[method](moment, budget)
    macs = moment.groups.cost.macs({split.group: split.grown_width for split in plan.groups})
    assert 0.9 * budget < macs <= budget


@pytest.mark.parametrize("method", ["net2net", "gradmax"])
def test_the_function_stays(moment: Moment, method: str) -> None:
    inputs = moment.batches[0][0]
    grown = grow(moment.model, METHODS[method](moment, added(moment))).eval()
    with torch.no_grad():
        torch.testing.assert_close(grown(inputs), moment.model(inputs), rtol=1e-4, atol=1e-5)


def test_random_steps_are_shares_of_the_copied_filters(moment: Moment) -> None:
    plan = METHODS["random"](moment, added(moment))
    weight = moment.model.get_parameter("features.0.weight").detach().flatten(1).numpy()
    split = plan.groups[0]
    displacement = split.displacements["features.0.weight"]
    lengths = np.linalg.norm(displacement.values.reshape(len(displacement.channels), -1), axis=1)
    # What balances a step (Σ w δ = 0) is shorter; the longest of a filter's copies takes the whole of it.
    for source in set(split.source[displacement.channels]):
        longest = lengths[split.source[displacement.channels] == source].max()
        assert longest == pytest.approx(np.linalg.norm(weight[source]), rel=1e-5)
    assert plan.epsilon == RANDOM_STEP


def test_gradmax_gives_new_neurons_larger_gradients(moment: Moment, monkeypatch: pytest.MonkeyPatch) -> None:
    found = new_outgoing_gradient(moment, grow(moment.model, METHODS["gradmax"](moment, added(moment))))
    monkeypatch.setattr(growth_methods, "GRADMAX_STEPS", 0)
    start = new_outgoing_gradient(moment, grow(moment.model, METHODS["gradmax"](moment, added(moment))))
    assert found > 1.2 * start
