"""Latency by widths: the fit against laws that are known, and a real network in onnxruntime.

Speed itself is measured in benchmarks, not asserted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from growpipe.budgets import measured_latency
from growpipe.budgets.measured_latency import DESIGNS, MeasuredLatency
from growpipe.checks.measure.latency import LatencyRatio
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.models.convnet import ConvNet
from growpipe.models.digits import DigitsNet
from growpipe.torch_module.export import export_growth_form

pytestmark = pytest.mark.slow

Law = Callable[[Mapping[str, int]], float]


@pytest.fixture(scope="module")
def digits() -> ir.Model:
    return export_growth_form(DigitsNet((4, 6, 8, 8)).eval(), (torch.rand(2, 1, 8, 8),)).graph


def widths_in(graph: ir.Model) -> dict[str, int]:
    return {group.name: group.width for group in find_channel_groups(graph).groups if group.splittable}


def obeying(law: Law, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Let networks take as long as a law says; gives the widths of those that were measured."""
    measured = []

    def widths_of(serialised: bytes) -> dict[str, int]:
        deployed = widths_in(ir.from_proto(onnx.load_model_from_string(serialised)))
        return {name.removesuffix(".fused"): width for name, width in deployed.items()}

    def paired_latency(reference: bytes, candidate: bytes, *_: Any, **__: Any) -> LatencyRatio:
        now, then = law(widths_of(reference)), law(widths_of(candidate))
        measured.append(widths_of(candidate))
        return LatencyRatio(then / now, then / now, then / now, 0.95, now, then, 60, 0.0, "cpu", 1)

    monkeypatch.setattr(measured_latency, "paired_latency", paired_latency)
    return measured


def errors(latency: MeasuredLatency, law: Law, own: dict[str, int]) -> np.ndarray:
    """Of the estimate at random widths up to twice the own ones, as shares."""
    rng = np.random.default_rng(0)
    random = [
        {name: int(rng.integers(width, 2 * width + 1)) for name, width in own.items()} for _ in range(50)
    ]
    return np.array([latency.of(widths) / law(widths) - 1 for widths in random])


def test_the_fit_follows_layers_channels_and_a_constant(
    digits: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, cost = widths_in(digits), find_channel_groups(digits).cost
    first = next(iter(own))

    def law(widths: Mapping[str, int]) -> float:
        return 0.5 + 2e-5 * cost.macs(widths) + 0.02 * widths[first]

    measured = obeying(law, monkeypatch)
    latency = MeasuredLatency(digits, {})
    assert latency.own == pytest.approx(law(own))
    assert latency.of(own) == latency.own
    assert len(measured) == len(own) + 2
    assert np.sqrt(np.mean(errors(latency, law, own) ** 2)) < 0.05
    # In proportion to MACs, as most people would reckon, is further off.
    by_macs = latency.own * cost.macs({n: 2 * w for n, w in own.items()}) / cost.macs()
    assert by_macs > 1.2 * law({n: 2 * w for n, w in own.items()})


def test_a_layer_that_takes_most_of_the_time_is_found(
    digits: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = widths_in(digits)
    slow = list(own)[2]
    obeying(lambda widths: 1.0 + 0.5 * widths[slow], monkeypatch)
    latency = MeasuredLatency(digits, {})
    prices = {name: latency.of({**own, name: width + 1}) - latency.own for name, width in own.items()}
    assert prices[slow] == pytest.approx(0.5, rel=0.1)
    assert min(prices.values()) > 0, "no layer is free"
    assert max(price for name, price in prices.items() if name != slow) < 0.1


def test_a_network_that_was_tried_is_measured_itself(
    digits: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = widths_in(digits)
    odd = {name: 2 * width - 1 for name, width in own.items()}

    def law(widths: Mapping[str, int]) -> float:
        return 1.0 + 5.0 * any(width % 2 for width in widths.values())

    measured = obeying(law, monkeypatch)
    latency = MeasuredLatency(digits, {})
    designs = len(measured)
    assert latency.tried(odd) == pytest.approx(6.0)
    assert measured[designs:] == [odd]
    assert latency.tried(own) == latency.own, "what the network itself takes is known"
    assert len(measured) == designs + 1


def test_many_groups_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = ConvNet((2,) * (DESIGNS + 3))
    graph = export_growth_form(deep.eval(), (torch.rand(2, 3, 32, 32),)).graph
    own, cost = widths_in(graph), find_channel_groups(graph).cost

    def law(widths: Mapping[str, int]) -> float:
        return 0.1 + 1e-5 * cost.macs(widths)

    measured = obeying(law, monkeypatch)
    latency = MeasuredLatency(graph, {})
    assert len(measured) == DESIGNS + 2
    assert set().union(*({n for n, w in widths.items() if w > own[n]} for widths in measured)) == set(own)
    assert np.abs(errors(latency, law, own)).mean() < 0.05


def test_every_measurement_is_shared(digits: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    own = widths_in(digits)
    measured = obeying(lambda widths: float(sum(widths.values())), monkeypatch)
    answers: list[Any] = []

    def first(measure: Callable[[], Any]) -> Any:
        answers.append(measure())
        return answers[-1]

    lines: list[str] = []
    leading = MeasuredLatency(digits, {}, share=first, told=lines.append)
    leading.tried({name: width + 1 for name, width in own.items()})
    assert len(lines) == len(measured) == len(answers)
    count, waiting = len(measured), iter(answers)
    following = MeasuredLatency(digits, {}, share=lambda _: next(waiting))
    assert len(measured) == count, "another process measures nothing"
    assert following.own == leading.own
    wider = {name: width + 3 for name, width in own.items()}
    assert following.of(wider) == leading.of(wider)


def test_a_real_network_in_onnxruntime(digits: ir.Model) -> None:
    own = widths_in(digits)
    sample = {digits.graph.inputs[0].name: np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)}
    latency = MeasuredLatency(digits, sample)
    assert latency.own > 0
    # Hundreds of times the MACs: no noise hides that.
    assert latency.tried({name: 20 * width for name, width in own.items()}) > 1.5 * latency.own


def test_a_network_without_a_group_is_refused() -> None:
    graph = export_growth_form(nn.Linear(3, 2).eval(), (torch.rand(2, 3),)).graph
    with pytest.raises(UsageError, match="no channel group that can split"):
        MeasuredLatency(graph, {})
