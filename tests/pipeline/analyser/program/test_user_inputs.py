"""Inputs in containers, and inputs that are not tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from growpipe.analyser import analyse
from growpipe.graph_ops.errors import UsageError

pytestmark = pytest.mark.slow


class Sum(nn.Module):
    """tanh(A x + B z), times a number, to one output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor, z: Tensor, scale: float = 1.0, tanh: bool = True) -> Tensor:
        hidden = self.a(x) + self.b(z)
        return self.head(torch.tanh(hidden) if tanh else hidden) * scale


class Nested(Sum):
    """The same network with its inputs in containers."""

    def forward(self, scale: float, inputs: dict[str, Any], extra: Any = None) -> Tensor:  # type: ignore[override]
        return super().forward(inputs["x"], inputs["more"][0], scale)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(64, size, generator=generator) for size in (4, 2))
    return x, z, (x[:, :1] * z[:, :1]).sin()


def plan_of(model: nn.Module, inputs: Any, target: Tensor, example: Any) -> Any:
    plan = analyse(model, mse_loss, [(inputs, target)], example, growth=0.5, epsilon=0.1, hold_out=False)
    return plan.widths, plan.predicted_change


def test_inputs_in_containers_are_those_side_by_side(data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, z, target = data
    model, nested = Sum(), Nested()
    nested.load_state_dict(model.state_dict())
    expected = plan_of(model, (x, z, 2.0), target, (x[:2], z[:2], 2.0))
    # One sample in the example inputs is enough, in a container too.
    example = (2.0, {"x": x[:1], "more": [z[:1]]}, None)
    assert plan_of(nested, (2.0, {"x": x, "more": [z]}, None), target, example) == expected
    other = plan_of(model, (x, z, 1.0), target, (x[:2], z[:2], 1.0))
    assert other != expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (3.0, True),
            "a batch has scale = 3.0, and the example inputs 2.0; what is not a tensor must be the same",
        ),
        ((2.0, False), "a batch has tanh = False, and the example inputs True"),
        ((2,), "a batch has 3 inputs, the model takes 4"),
        ((2, True), "a batch has scale = 2, and the example inputs 2.0"),
    ],
)
def test_what_is_not_a_tensor_is_as_in_the_example_inputs(
    data: tuple[Tensor, Tensor, Tensor], given: tuple[Any, ...], message: str
) -> None:
    x, z, target = data
    with pytest.raises(UsageError, match=message):
        plan_of(Sum(), (x, z, *given), target, (x[:2], z[:2], 2.0, True))
