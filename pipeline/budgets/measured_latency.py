"""Milliseconds by the widths of the channel groups: measured in onnxruntime, so that a budget can be of them.

Latency is not a sum over groups and not proportional to MACs: small layers wait for memory, and the speed of
a kernel depends on its shape. What is fitted to networks of several widths, by bounded least squares, is

    t(w) = t₀ + Σ_n a_n · macs_n(w) / macs_n + Σ_g b_g · w_g / width_g,

with a term for every layer n that multiplies, which couples the groups on both of its sides, and one for what
is done channel by channel. Where measurements do not tell layers apart, a weak prior shares the time out by
MACs. The fit says which channels are cheap; what a network of chosen widths takes is measured on it itself,
for kernels have steps that no smooth function follows (16 channels can be faster than 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from scipy.optimize import lsq_linear

from growpipe.checks.measure.latency import Timing, paired_latency
from growpipe.checks.measure.sessions import Device
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.cost.cost import CostTerm
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.graph_ops.plan.data_free import widening_plan

__all__ = ["MeasuredLatency"]

Broadcast = Callable[[Callable[[], Any]], Any]

DESIGNS = 12
"""Networks measured for the fit, at most, besides those that grow everywhere."""
_FACTOR = 2.0
_BLOCKS, _RUNS = 4, 60
_LEAST = 0.05
"""The least time of a layer, as a share of what MACs alone would give it."""
_NOISE = 0.01
"""The standard error of a measured ratio that the fit reckons with."""


@dataclass(eq=False)
class MeasuredLatency:
    """The latency of a network's deploy form at any widths, in milliseconds; see the module.

    With one thread on a CPU it is the time of the thread itself, which other processes disturb little. Two
    measurements of one network agree within a few percent at best, so that two runs under a budget of
    milliseconds may end at different widths.

    Args:
        graph: the growth form of the network; its weights do not matter.
        inputs: what one call is fed, by input name.
        threads: within an operator.
        device: ``cpu`` or ``cuda``.
        told: called with a line for people before every measurement.
        share: runs a measurement and gives every process its result; by default in this process.

    Raises:
        UsageError: no group of the graph is splittable.
    """

    graph: ir.Model
    inputs: Mapping[str, AnyArray]
    threads: int = 1
    device: Device = "cpu"
    told: Callable[[str], None] = lambda line: None
    share: Broadcast = lambda measure: measure()
    own: float = field(init=False)
    """Milliseconds of the network as it is."""

    unit = "ms"
    alignment = 16
    """Kernels of onnxruntime work on blocks of 16 channels: a 17th takes as long as 16 more."""
    resolution = 0.02
    """Less than this share of a latency cannot be told apart."""

    def __post_init__(self) -> None:
        self._groups = find_channel_groups(self.graph)
        self._widths = {group.name: group.width for group in self._groups.groups}
        self._splittable = [group.name for group in self._groups.groups if group.splittable]
        if not self._splittable:
            raise UsageError("the graph has no channel group that can split; see growpipe inspect")
        self._terms = _layers(self._groups)
        self._deployed = _serialised_deploy_form(self.graph)
        designs = _designs(self._splittable, self._widths)
        ratios, references = [], []
        for number, widths in enumerate(designs, 1):
            self.told(f"latency: network {number} of {len(designs)}")
            measured = self._measure(widths)
            ratios.append(measured[0])
            references.append(measured[1])
        self.own = float(np.median(references))
        self._time = _fit(
            np.stack([self._features(widths) for widths in [{}, *designs]]),
            self.own * np.array([1.0, *ratios]),
            np.array([term.value({}) for term in self._terms], dtype=np.float64),
        )

    def of(self, widths: Mapping[str, int]) -> float:
        """Milliseconds at these widths, by the fit; exactly what was measured for the network as it is."""
        return self.own + float(self._time @ (self._features(widths) - self._features({})))

    def tried(self, widths: Mapping[str, int]) -> float:
        """Milliseconds at these widths, measured."""
        if all(width == self._widths.get(name) for name, width in widths.items()):
            return self.own
        self.told("latency: chosen widths")
        return self.own * self._measure(widths)[0]

    def _features(self, widths: Mapping[str, int]) -> npt.NDArray[np.float64]:
        """1, and over what they are now: the MACs of every layer, and the width of every group."""
        layers = [term.value(widths) / term.value({}) for term in self._terms]
        groups = [widths.get(name, self._widths[name]) / self._widths[name] for name in self._splittable]
        return np.array([1.0, *layers, *groups])

    def _measure(self, widths: Mapping[str, int]) -> tuple[float, float]:
        """The latency at these widths over that of the network as it is, and the latter in milliseconds."""

        def measure() -> tuple[float, float]:
            plan = widening_plan(self._groups, self.graph, widths)
            wider = self.graph if plan is None else grow_graph(self.graph, plan)
            found = paired_latency(
                self._deployed,
                _serialised_deploy_form(wider),
                self.inputs,
                Timing(threads=self.threads, device=self.device, min_runs=_RUNS, blocks=_BLOCKS),
            )
            return found.ratio, found.reference_ms

        ratio, reference = self.share(measure)
        return float(ratio), float(reference)


def _serialised_deploy_form(graph: ir.Model) -> bytes:
    return bytes(ir.to_proto(deploy_form(graph)).SerializeToString())


def _layers(groups: ChannelGroups) -> list[CostTerm]:
    """The layers whose MACs depend on a width."""
    return [term for term in groups.cost.terms if term.kind == "macs" and term.dims and term.value({})]


def _designs(names: Sequence[str], widths: Mapping[str, int]) -> list[dict[str, int]]:
    """Which networks to measure: every group wider by itself (of many, random halves of them), and all."""

    def wider(which: Sequence[str], factor: float) -> dict[str, int]:
        return {name: math.ceil(factor * widths[name]) for name in which}

    if len(names) <= DESIGNS:
        alone = [wider([name], _FACTOR) for name in names]
    else:
        random = np.random.default_rng(0)
        alone = [
            wider(sorted(random.permutation(names)[: len(names) // 2].tolist()), _FACTOR)
            for _ in range(DESIGNS)
        ]
    return [*alone, wider(names, math.sqrt(_FACTOR)), wider(names, _FACTOR)]


def _fit(
    features: npt.NDArray[np.float64], times: npt.NDArray[np.float64], macs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The time of every feature, under a prior that shares the network's time out by MACs.

    Args:
        features: [networks, features], 1 for the network as it is.
        times: [networks], that of the network as it is first.
        macs: [layers], of the features after the first.
    """
    count = features.shape[1]
    prior = np.zeros(count)
    prior[1 : 1 + len(macs)] = times[0] * macs / macs.sum()
    # As far off as it is large: a layer's time is rarely more than twice its share of the MACs.
    spread = np.maximum(prior, times[0] / count)
    rows = np.concatenate([features / (_NOISE * times)[:, None], np.diag(1 / spread)])
    wanted = np.concatenate([times / (_NOISE * times), prior / spread])
    # No layer is free, whatever the noise says: growth would spend all on it.
    result: npt.NDArray[np.float64] = lsq_linear(rows, wanted, bounds=(_LEAST * prior, np.inf)).x
    return result
