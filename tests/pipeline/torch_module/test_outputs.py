"""What a module gives: one answer for every container of tensors, in the exporter's order."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growpipe.data.loader_items import joined_samples, samples_of, to_device
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.outputs import (
    denormals_as_zero,
    evaluation_mode,
    output_tensors,
    to_numpy,
    to_torch,
)

Pair = namedtuple("Pair", ["scores", "hidden"])


@dataclass
class Result:
    scores: Tensor
    hidden: Tensor | None = None
    name: str = "result"


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "named tuple": lambda a, b: Pair(a, b),
    "dict": lambda a, b: {"z": a, "a": b},
    "ordered dict": lambda a, b: OrderedDict(z=a, a=b),
    "other mapping": lambda a, b: UserDict(z=a, a=b),
    "dataclass": lambda a, b: Result(a, b),
    "nest": lambda a, b: {"z": (a, None, "text", 3), "a": [Result(b)]},
    "iterable": lambda a, b: iter((a, b)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_its_tensors_in_order(kind: str) -> None:
    first, second = torch.zeros(2), torch.ones(3)
    found = output_tensors(CONTAINERS[kind](first, second))
    assert len(found) == 2
    assert found[0] is first
    assert found[1] is second


def test_a_tensor_is_itself_and_nothing_else_is_a_tensor() -> None:
    assert output_tensors(torch.ones(2))[0].tolist() == [1, 1]
    assert output_tensors(None) == output_tensors("text") == output_tensors((1, 2.0)) == []


@pytest.mark.parametrize("kind", ["tuple", "list", "named tuple", "dict"])
def test_the_order_is_that_of_the_exported_graph(kind: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return CONTAINERS[kind](x.sum(1), x + 1)

    x = torch.rand(2, 3)
    outputs = export_growth_form(Two().eval(), (x,)).graph.graph.outputs
    ranks = [len(value.shape) for value in outputs if value.shape is not None]
    assert ranks == [tensor.ndim for tensor in output_tensors(Two()(x))] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_become_arrays_and_back(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert to_numpy(tensor).dtype.name == str(dtype).removeprefix("torch.")
    assert torch.equal(to_torch(to_numpy(tensor.t())), tensor.t())


def test_evaluation_ends_with_the_mode_of_every_submodule_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(UsageError, match=r"\[False, False, False, False\]"), evaluation_mode(model):
        raise UsageError(str([module.training for module in model.modules()]))
    assert [module.training for module in model.modules()] == before == [True, True, False, False]


def test_samples_of_a_batch_are_cut_in_every_container_and_the_rest_stays_whole() -> None:
    batch = {
        "x": torch.arange(4),
        "more": (torch.ones(4, 2), torch.ones(3)),
        "text": "t",
        "one": torch.tensor(1),
    }
    part = samples_of(batch, 1, 3, 4)
    assert part["x"].tolist() == [1, 2]
    assert [tuple(tensor.shape) for tensor in part["more"]] == [(2, 2), (3,)]
    assert part["text"] == "t"
    assert part["one"] is batch["one"]
    assert to_device(batch, "meta")["more"][0].device.type == "meta"


def test_batches_are_joined_in_every_container_if_they_fit() -> None:
    batch = {"x": torch.arange(4), "more": (torch.ones(4, 2), torch.ones(3)), "text": "t", "none": None}
    parts = [samples_of(batch, start, stop, 4) for start, stop in ((0, 1), (1, 4))]
    joined = joined_samples(*parts, (1, 3))
    assert joined is not None
    assert joined["x"].tolist() == [0, 1, 2, 3]
    assert [tuple(tensor.shape) for tensor in joined["more"]] == [(4, 2), (3,)]
    for other in (
        {**parts[1], "text": "u"},
        {**parts[1], "x": parts[1]["x"].float()},
        {**parts[1], "more": (torch.ones(3, 5), torch.ones(3))},
        {**parts[1], "more": (torch.ones(3, 2), torch.zeros(3))},
        {"x": parts[1]["x"]},
    ):
        assert joined_samples(parts[0], other, (1, 3)) is None


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU always computes with denormals")
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_count_as_zero_inside_and_as_before_outside(flushed, default):
    def denormal() -> float:
        return (torch.tensor(2e-38, dtype=torch.float32) * 0.5).item()

    torch.set_flush_denormal(flushed)
    torch.set_default_dtype(default)
    try:
        with denormals_as_zero():
            assert denormal() == 0
        assert (denormal() == 0) == flushed
    finally:
        torch.set_flush_denormal(False)
        torch.set_default_dtype(torch.float32)
