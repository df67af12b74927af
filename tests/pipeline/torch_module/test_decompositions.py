"""Operators traced by themselves make the programs and the graphs that a trace of the whole makes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from growpipe.analyser.preparation import functional
from growpipe.torch_module import decompositions
from growpipe.torch_module.decompositions import decomposed
from growpipe.torch_module.export import GrowthExport, export_growth_form
from tests.helpers.networks import FAMILIES, seeded

pytestmark = pytest.mark.slow


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(self.cells(x)[0].flatten(1)[:, -8:], 0.5, self.training))


CASES = ["UNet", "VisionTransformer", "DGCNN", "mobilenet_v3"]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = FAMILIES.get(name, (Recurrent, (3, 3)))
    return seeded(build), torch.randn(2, *shape)


def operators(export: GrowthExport) -> list[tuple[str, list[str]]]:
    """Of every node the type and the parameters that it reads."""
    graph = export.graph.graph
    return [
        (node.op_type, [v.name for v in node.inputs if v is not None and v.name in export.program.state_dict])
        for node in graph.all_nodes()
    ]


def members(export: GrowthExport) -> list[tuple]:
    """Every channel group without the names of nodes, which count the nodes of their trace."""
    return [
        (g.name, g.width, g.splittable, [(m.tensor, m.axis, m.role, m.operator, m.input) for m in g.members])
        for g in export.groups().groups
    ]


@pytest.mark.parametrize("name", [*CASES, "LSTM"])
def test_a_program_gives_the_groups_and_values_of_one_that_is_traced_again(name, monkeypatch):
    model, x = network(name)
    found = export_growth_form(model, (x,))
    by_parts = functional(found.program, pairs=True)
    assert decomposed(found.program, {}) is not None  # not one of those that need a trace of the whole
    monkeypatch.setattr(decompositions, "decomposed", lambda program, table: None)
    traced = export_growth_form(model, (x,))
    assert operators(found) == operators(traced)
    assert list(found.graph.graph.initializers) == list(traced.graph.graph.initializers)
    assert found.groups().graph_hash == traced.groups().graph_hash
    assert found.groups().layouts == traced.groups().layouts
    assert members(found) == members(traced)
    whole = functional(traced.program, pairs=True)
    torch.testing.assert_close(by_parts.module()(x), whole.module()(x), rtol=1e-5, atol=1e-6)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(x + 1)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


class OwnStatistics(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    "model", [InPlace(), Branch(), OwnStatistics()], ids=lambda model: type(model).__name__
)
def test_what_only_a_trace_of_the_whole_takes_apart_is_left_to_it(model):
    program = torch.export.export(model.eval(), (torch.randn(2, 3),))
    assert decomposed(program, {}) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about copies of its tree specs
        again = decompositions.LocallyDecomposed.of(program).run_decompositions({})
    assert all(
        not node.target._schema.is_mutable
        for node in again.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    )


def test_the_program_itself_stays_as_it_is():
    model, x = network("VisionTransformer")
    program = torch.export.export(model, (x,))
    before = [(node.name, node.target, str(node.args)) for node in program.graph.nodes]
    found = decomposed(
        program, {torch.ops.aten.layer_norm.default: torch.ops.aten.layer_norm.default.decompose}
    )
    assert found is not None
    assert torch.ops.aten.layer_norm.default not in {node.target for node in found.graph.nodes}
    assert before == [(node.name, node.target, str(node.args)) for node in program.graph.nodes]
    torch.testing.assert_close(found.module()(x), program.module()(x))
