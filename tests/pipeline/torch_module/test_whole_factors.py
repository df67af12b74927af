"""Streams that are normalised over, grown by whole factors in the module and in its graph."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.data_free import random_plan, widening_plan
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters
from growpipe.torch_module.export import GrowthExport, export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow, load_grown, plan_for_module, save_grown
from tests.helpers.streams import HIDDEN, STREAMS, WIDTH, WORDS, stream_network
from tests.helpers.text_models import ort_run

pytestmark = pytest.mark.slow


@functools.cache
def exported(name: str) -> GrowthExport:
    model, inputs = stream_network(name)
    return export_growth_form(model, (inputs,))


def doubled(name: str, epsilon: float = 0.0, factor: int = 2):
    """A network of `STREAMS`, an input, its growth form, and the plan that grows all that is normalised."""
    model, inputs = stream_network(name)
    export = exported(name)
    plan = random_plan(export.groups(), export.graph, growth=0.0, factors=factor, epsilon=epsilon, seed=1)
    return model, inputs, export, plan_for_module(plan, model)


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_doubles_in_the_module_and_in_the_graph(name):
    model, inputs, export, plan = doubled(name)
    widths = {split.grown_width for split in plan.groups}
    assert 2 * WIDTH in widths
    assert (2 * HIDDEN in widths) == (name == "ConvNeXt V2")
    (word,) = (str(value.name) for value in export.graph.graph.inputs)
    with torch.no_grad():
        before, after = model(inputs).numpy(), grow(model, plan)(inputs).numpy()
    (rewritten,) = ort_run(grow_graph(export.graph, plan), {word: inputs.numpy()})
    scale = np.abs(before).max()
    assert np.abs(after - before).max() <= 1e-5 * scale
    assert np.abs(rewritten - before).max() <= 1e-5 * scale


@pytest.mark.parametrize("name", ["LLaMA, tied", "ConvNeXt V2"])
def test_displaced_copies_are_the_same_in_both(name):
    model, inputs, export, plan = doubled(name, epsilon=0.1, factor=4)
    (word,) = (str(value.name) for value in export.graph.graph.inputs)
    with torch.no_grad():
        before, after = model(inputs).numpy(), grow(model, plan)(inputs).numpy()
    (rewritten,) = ort_run(grow_graph(export.graph, plan), {word: inputs.numpy()})
    scale = np.abs(before).max()
    assert np.abs(after - before).max() > 1e-4 * scale
    assert np.abs(rewritten - after).max() <= 5e-5 * scale


def loss(plan: SplitPlan, model: torch.nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        output = grow(model, plan)(inputs)
    return float(functional.cross_entropy(output.flatten(0, 1), inputs.flatten()))


def test_changes_of_loss_add_over_channels_and_fall_with_the_square_of_the_step():
    """The loss change has no term of first order, and no cross terms between channels at second order."""
    model, inputs = stream_network("BERT")
    model = model.double()
    export = export_growth_form(model, (inputs,))
    plan = random_plan(export.groups(), export.graph, growth=0.0, factors=2, epsilon=1e-3, seed=1)
    plan = plan_for_module(plan, model)
    base = loss(plan.with_epsilon(0.0), model, inputs)
    together = loss(plan, model, inputs) - base
    alone = [
        loss(replace(plan, groups=(*others, only)), model, inputs) - base
        for others, only in _single_channels(plan)
    ]
    assert sum(alone) == pytest.approx(together, rel=0.01)
    assert loss(plan.with_epsilon(2e-3), model, inputs) - base == pytest.approx(4 * together, rel=0.01)


def _single_channels(plan: SplitPlan):
    """For each channel the splits of the other groups without displacements, and its own group's with its."""
    for split in plan.groups:
        others = [replace(other, displacements={}) for other in plan.groups if other is not split]
        for channel in range(split.width):
            kept = {
                name: replace(d, channels=d.channels[chosen], values=d.values[chosen])
                for name, d in split.displacements.items()
                for chosen in [np.flatnonzero(split.source[d.channels] == channel)]
            }
            yield others, replace(split, displacements=kept)


def test_a_doubled_stream_is_saved_and_loaded(tmp_path):
    model, inputs, _, plan = doubled("GPT-2")
    grown = grow(model, plan)
    save_grown(grown, tmp_path / "weights.safetensors")
    loaded = load_grown(stream_network("GPT-2")[0], tmp_path / "weights.safetensors")
    assert loaded.norm.normalized_shape == (2 * WIDTH,)
    assert loaded.head.weight is loaded.words.weight
    assert loaded.words.embedding_dim == loaded.head.in_features == 2 * WIDTH
    torch.testing.assert_close(loaded(inputs), grown(inputs))


def _reader(model: torch.nn.Module):
    tensors = named_tensors(model)
    return lambda name: tensors[name].detach().numpy()


def test_uneven_shares_let_the_copies_part():
    """Adam's steps have no scale: with equal shares the copies would stay copies."""
    parted = {}
    for shares in ("uneven", "equal"):
        model, inputs, _, plan = doubled("LLaMA, tied")
        if shares == "equal":
            halves = tuple(replace(s, coefficient=np.full(s.grown_width, 0.5)) for s in plan.groups)
            plan = replace(plan, groups=halves)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        functional.cross_entropy(model(inputs).flatten(0, 1), inputs.flatten()).backward()
        optimizer.step()
        plan = replace(plan, parameters_hash=hash_parameters(plan.layouts, _reader(model)))
        grown = grow(model, plan, optimizer=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(grown(inputs).flatten(0, 1), inputs.flatten()).backward()
            optimizer.step()
        table = grown.words.weight
        assert table.shape == (WORDS, 2 * WIDTH)
        parted[shares] = float((table[:, :WIDTH] - table[:, WIDTH:]).detach().abs().max())
    assert parted["uneven"] > 1e-4
    assert parted["equal"] < 1e-5


def test_given_widths_are_multiples():
    _, _, export, _ = doubled("BERT")
    groups = export.groups()
    (name,) = (group.name for group in groups.groups if group.whole_factor is not None)
    plan = widening_plan(groups, export.graph, {name: 3 * WIDTH, "mlp.0.weight": HIDDEN + 1})
    assert plan.widths == {name: 3 * WIDTH, "mlp.0.weight": HIDDEN + 1}
    assert widening_plan(groups, export.graph, {name: WIDTH}) is None
    with pytest.raises(UsageError, match="is not a multiple of its width"):
        widening_plan(groups, export.graph, {name: WIDTH + 1})


def test_a_plan_that_copies_unevenly_is_refused():
    with pytest.raises(UsageError, match="every channel must have equally many copies"):
        GroupSplit("a", 2, np.array([0, 1, 0]), np.array([0.5, 1.0, 0.5]), evenly=True)
