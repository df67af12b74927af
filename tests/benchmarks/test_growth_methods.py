"""The methods of the growth benchmark: each does what its name says, at the widths it was given."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.growth import methods as growth_methods
from benchmarks.growth.methods import CHOOSERS, METHODS, RANDOM_STEP, Moment
from benchmarks.growth.new_copies import REMEDIES, WARM, rates_of
from growpipe import grow
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.models.convnet import build
from growpipe.seeding import seed_everything
from growpipe.torch_module.added_copies import added_entries
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


@pytest.mark.parametrize("method", ["net2net", "uneven", "padded", "gradmax"])
def test_the_function_stays(moment: Moment, method: str) -> None:
    inputs = moment.batches[0][0]
    grown = grow(moment.model, METHODS[method](moment, added(moment))).eval()
    with torch.no_grad():
        torch.testing.assert_close(grown(inputs), moment.model(inputs), rtol=1e-4, atol=1e-5)


def test_uneven_copies_have_one_and_two_thirds(moment: Moment) -> None:
    plan = METHODS["uneven"](moment, added(moment))
    for split in plan.groups:
        for source in range(split.width):
            weights = split.coefficient[split.source == source]
            assert weights[0] == weights.min()
            assert len(weights) != 2 or weights == pytest.approx([1 / 3, 2 / 3])


def test_the_best_of_eight_random_growths_is_no_worse_than_one(moment: Moment) -> None:
    def loss(method: str, seed: int) -> float:
        plan = METHODS[method](replace(moment, seed=seed), added(moment))
        grown = grow(moment.model, plan).eval()
        with torch.no_grad():
            return sum(float(moment.loss_fn(grown(x), y)) for x, y in moment.batches)

    best = loss("best-random", 3)
    assert all(best <= loss("random", 8 * 3 + number) for number in (0, 5))


def test_what_a_remedy_does_is_done_to_added_copies_alone(moment: Moment) -> None:
    optimizer = torch.optim.SGD(moment.model.parameters(), lr=0.1, momentum=0.9)
    inputs, target = moment.batches[0]

    def step(model: nn.Module) -> None:
        optimizer.zero_grad()
        moment.loss_fn(model(inputs), target).backward()
        optimizer.step()

    before = {name: p.detach().clone() for name, p in moment.model.named_parameters()}
    step(moment.model)
    moment.model.load_state_dict({**moment.model.state_dict(), **before})
    plan = METHODS["net2net"](moment, added(moment))
    grown = grow(moment.model, plan, optimizer=optimizer)
    weight = grown.get_parameter("features.3.weight")
    new = added_entries(grown, plan)[weight]
    old = torch.zeros_like(new)
    old[: WIDTHS[1], : WIDTHS[0]] = True
    assert torch.equal(new, ~old)
    copies = np.bincount(plan.groups[0].source, minlength=WIDTHS[0])
    squares = np.bincount(plan.groups[1].source, plan.groups[1].coefficient ** 2, WIDTHS[1])
    assert rates_of(grown, plan)[weight][0, 0, 0, 0] == pytest.approx(1 / copies[0] / squares[0])

    carried = optimizer.state[weight]["momentum_buffer"].clone()
    REMEDIES["reset"](grown, optimizer, plan)
    buffer = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(buffer[new], torch.zeros(int(new.sum())))
    assert torch.equal(buffer[old], carried[old])

    plain = copy.deepcopy(weight.detach())
    moved = weight.detach().clone()
    optimizer.state.clear()
    step(grown)
    unscaled = weight.detach() - plain
    with torch.no_grad():
        weight.copy_(moved)
    optimizer.state.clear()
    REMEDIES["warm"](grown, optimizer, plan)
    step(grown)
    scaled = weight.detach() - moved
    torch.testing.assert_close(scaled[old], unscaled[old], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scaled[new], WARM * unscaled[new], rtol=1e-3, atol=1e-6)


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
