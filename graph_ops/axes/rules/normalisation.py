"""Normalisations: per channel they let channels pass.

Over channels, those by mean and variance let all channels be copied equally often, because the moments of the
copies are those of the channels. Those by a sum or by neighbours are barriers.
"""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, product, root
from growpipe.graph_ops.axes.integers import Size
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.elementwise import broadcast
from growpipe.graph_ops.operators import attribute_of

__all__ = ["MOMENTS", "RULES"]


def per_channel(inference: AxisInference, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: one set of parameters per channel."""
    axes = inference.axes_of(node, 0)
    channels = axes[1] if len(axes) > 1 else axes[0]
    for index in range(1, len(node.inputs)):
        (parameter,) = inference.axes_of(node, index)
        inference.unify(node, parameter, channels, 1)
    if node.op_type == "InstanceNormalization":
        for position in range(2, len(axes)):
            inference.copy_evenly(node, axes[position], position, MOMENTS)
    inference.output(node, axes)
    for index in range(1, len(node.outputs)):
        inference.output(node, [channels], index)
    _normalised_weight(inference, node, axes)


def from_axis(inference: AxisInference, node: ir.Node) -> None:
    """LayerNormalization and its simplified forms: over this axis and all that follow."""
    axes = inference.axes_of(node, 0)
    start = attribute_of(node, "axis", -1) % len(axes)
    for position in range(start, len(axes)):
        inference.copy_evenly(node, axes[position], position, MOMENTS)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            broadcast(inference, node, [axes[start:], inference.axes_of(node, index)])
    inference.output(node, axes)
    reduced = [*axes[:start], *(Axis(1) for _ in axes[start:])]
    for index in range(1, len(node.outputs)):
        inference.output(node, reduced, index)
    _normalised_weight(inference, node, axes)


def over_axis(inference: AxisInference, node: ir.Node) -> None:
    """Softmax and its kin, LpNormalization: over one axis; before opset 13 over all that follow, too."""
    axes = inference.axes_of(node, 0)
    old = inference.opset < 13 and node.op_type != "LpNormalization"
    start = attribute_of(node, "axis", 1 if old else -1) % max(len(axes), 1)
    for position in range(start, len(axes) if old else start + 1):
        inference.freeze(node, axes[position], position, _SUM)
    inference.output(node, axes)


def group_normalisation(inference: AxisInference, node: ir.Node) -> None:
    """Over the channels of a group; whole groups may be copied, and all channels of a group equally often."""
    axes = inference.axes_of(node, 0)
    groups = attribute_of(node, "num_groups")
    total = root(axes[1]).size
    if total is None or not groups or total % groups:
        raise UnknownShape(f"{total} channels do not divide into {groups} groups")
    group, part = Axis(groups), Axis(total // groups)
    inference.unify(node, axes[1], product([group, part]), 1)
    inference.copy_evenly(node, part, 1, MOMENTS)
    for position in range(2, len(axes)):
        inference.copy_evenly(node, axes[position], position, MOMENTS)
    inference.follow(node, "num_groups", [Size(group)])
    for index in (1, 2):
        (parameter,) = inference.axes_of(node, index)
        inference.unify(node, parameter, group if inference.opset < 21 else axes[1], 1)
    inference.output(node, axes)


def local_response(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    inference.freeze(node, axes[1], 1, "it normalises over neighbours on this axis")
    inference.output(node, axes)


def mean_variance(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    for position in attribute_of(node, "axes", [0, 2, 3]):
        inference.copy_evenly(node, axes[position], position % len(axes), MOMENTS)
    inference.output(node, axes)


def _normalised_weight(inference: AxisInference, node: ir.Node, axes: list[Axis]) -> None:
    """A weight that is normalised, as weight standardisation does: its rows can be copied, but not scaled."""
    if inference.is_constant(node):
        obstacle = "the weight is normalised, so it cannot hold the coefficients"
        inference.view(node, [(axis,) for axis in range(len(axes))], obstacle=obstacle)


MOMENTS = "it normalises over this axis by moments"
_SUM = "it normalises over this axis by a sum, which copies would enlarge"


RULES: dict[str, Rule] = {
    "BatchNormalization": per_channel,
    "GroupNormalization": group_normalisation,
    "Hardmax": over_axis,
    "InstanceNormalization": per_channel,
    "LRN": local_response,
    "LayerNormalization": from_axis,
    "LogSoftmax": over_axis,
    "LpNormalization": over_axis,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": from_axis,
    "SimplifiedLayerNormalization": from_axis,
    "Softmax": over_axis,
}
