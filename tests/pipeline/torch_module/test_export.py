"""Growth-form export: names kept, values equal, batch free, nothing of the exporting machine inside."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.torch_module import export
from growpipe.torch_module.export import export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        # A parameter whose name the exporter also gives to a result.
        self.mean = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = nn.functional.silu(self.norm(self.conv(image)))
        return self.head(features.mean(dim=(2, 3)) + self.mean)


def test_every_parameter_keeps_its_name_and_its_bits() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    graph = export_growth_form(model, (torch.rand(1, 1, 8, 8),)).graph.graph
    for name, tensor in named_tensors(model).items():
        if name.endswith("num_batches_tracked"):
            assert name not in graph.initializers
            continue
        const = graph.initializers[name].const_value
        assert const is not None
        np.testing.assert_array_equal(const.numpy(), tensor.numpy())
    assert "BatchNormalization" in {node.op_type for node in graph}


def test_a_branch_that_no_output_depends_on_is_left_out() -> None:
    class Branched(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.conv(image) * 2
            return self.head(image.mean(dim=(2, 3)).expand(-1, 3))

    graph = export_growth_form(Branched().eval(), (torch.rand(2, 1, 8, 8),)).graph.graph
    assert set(graph.initializers) >= {"head.weight", "head.bias"}
    assert "conv.weight" not in graph.initializers


def test_half_precision_keeps_its_bits_too() -> None:
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        model = Net().eval().to(dtype)
        graph = export_growth_form(model, (torch.rand(1, 1, 8, 8, dtype=dtype),)).graph.graph
        const = graph.initializers["conv.weight"].const_value
        assert const is not None
        held = torch.from_numpy(const.numpy().view(np.int16)).view(dtype)
        assert torch.equal(held, model.conv.weight.detach())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_graph_computes_what_the_module_computes(batch: int) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    proto = ir.to_proto(export_growth_form(model, (torch.rand(1, 1, 8, 8),), output_names=["scores"]).graph)
    onnx.checker.check_model(proto, full_check=True)
    image = torch.rand(batch, 1, 8, 8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"image": image.numpy()})
    np.testing.assert_allclose(scores, model(image).detach().numpy(), atol=1e-6)


def test_no_source_path_leaks() -> None:
    proto = ir.to_proto(export_growth_form(Net().eval(), (torch.rand(2, 1, 8, 8),)).graph)
    text = str(proto)
    assert ".py" not in text
    assert "stack_trace" not in text
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_model_in_train_mode_is_refused() -> None:
    model = Net().eval()
    model.norm.train()
    with pytest.raises(UsageError, match=r"norm is in train mode.*eval\(\)"):
        export_growth_form(model, (torch.rand(2, 1, 8, 8),))


def test_a_model_that_cannot_be_exported_says_why_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="Branching cannot be exported") as caught:
        export_growth_form(Branching().eval(), (torch.rand(2, 3),))
    assert "\n" not in str(caught.value)


def test_the_groups_of_an_export_are_solved_once_and_again_where_some_are_frozen() -> None:
    export = export_growth_form(Net().eval(), (torch.rand(1, 1, 8, 8),))
    assert export.groups() is export.solution.groups
    assert export.solution is export.solution
    (group,) = (group for group in export.groups().groups if group.splittable)
    assert not any(frozen.splittable for frozen in export.groups(freeze=("conv.weight",)).groups)
    assert export.groups()[group.name].splittable


def test_groups_in_branches_of_cond_are_no_matter_of_the_analysis_and_grow_by_data_free_plans() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)
            self.d, self.e = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.cond(x.sum() > 0, lambda x: self.b(torch.tanh(self.a(x))), lambda x: self.c(x), (x,))
            return self.e(torch.tanh(self.d(y)))

    model, x = Choice().eval(), torch.rand(3, 4)
    export = export_growth_form(model, (x,))
    assert {group.name for group in export.groups().groups if group.splittable} == {"d.weight"}
    groups = find_channel_groups(export.graph)
    assert {group.name for group in groups.groups if group.splittable} == {"a.weight", "d.weight"}
    grown = grow(model, random_plan(groups, export.graph, growth=0.5))
    assert grown.a.weight.shape == (9, 4)
    for inputs in (x, -x):
        torch.testing.assert_close(grown(inputs), model(inputs), rtol=1e-5, atol=1e-5)


class Steps(torch.nn.Module):
    """An LSTM that reads its inputs as they come."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.body = torch.nn.LSTM(4, 5, **options)

    def forward(self, x):
        return self.body(x)[0].mean(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 3, "batch_first": True}, r"body is an LSTM with proj_size=3, .*nn.Linear behind it"),
        ({}, r"body has batch_first=False: axis 0 of the inputs must be the batch"),
    ],
)
def test_what_the_exporter_makes_of_recurrent_modules_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        export_growth_form(Steps(**options).eval(), (torch.randn(3, 6, 4),))


def test_an_exporter_without_a_registry_to_keep_gives_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    assert export._exporter("torchvision" in sys.modules) is not None
    kept = export_growth_form(model, (torch.rand(1, 1, 8, 8),), output_names=["scores"])
    monkeypatch.setattr(export, "_exporter", lambda with_torchvision: None)
    public = export_growth_form(model, (torch.rand(1, 1, 8, 8),), output_names=["scores"])
    assert ir.to_proto(kept.graph).SerializeToString() == ir.to_proto(public.graph).SerializeToString()
