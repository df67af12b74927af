"""Networks of given widths, freshly initialised: for retraining what growth found, and as its rivals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.data_free import widening_plan
from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.graph_ops.plan.module_size import ModuleSize
from growpipe.torch_module.export import GrowthExport
from growpipe.torch_module.grow_module import grow, plan_for_module

__all__ = ["largest_multiple", "obstacle_to_reinitialising", "reinitialise", "uniform_widths", "with_widths"]

Module = TypeVar("Module", bound=nn.Module)

_MOST_FACTOR = 1024.0  # bounds may hold back every group


def reinitialise(model: Module) -> Module:
    """Draw all parameters again, in place, as their modules do at construction (``reset_parameters``).

    Raises:
        UsageError: a module has parameters and no ``reset_parameters``.
    """
    obstacle = obstacle_to_reinitialising(model)
    if obstacle is not None:
        raise UsageError(obstacle)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model


def obstacle_to_reinitialising(model: nn.Module) -> str | None:
    """Why `reinitialise` refuses ``model``; None if it does not."""
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not callable(getattr(module, "reset_parameters", None)):
            return (
                f"{name or 'the model'} ({type(module).__name__}) has parameters and no reset_parameters(); "
                "give it one, so that it can be trained from scratch at other widths"
            )
    return None


def with_widths(
    model: Module,
    export: GrowthExport,
    groups: ChannelGroups,
    widths: Mapping[str, int],
    sizes: Iterable[ModuleSize] = (),
) -> Module:
    """A copy of ``model`` with these widths, freshly initialised.

    Args:
        model: the module that ``export`` and ``groups`` are of.
        export: of ``model``.
        groups: of ``export.graph``.
        widths: by group name; groups that are absent keep theirs. No width may be below the model's.
        sizes: the integers of ``model`` that follow the widths; see
            `growpipe.torch_module.module_fit.fit_module`.

    Raises:
        UsageError: a group cannot split, would shrink, or grows by whole factors and not to this width.
    """
    plan = widening_plan(groups, export.graph, widths)
    if plan is None:
        return reinitialise(copy.deepcopy(model))
    # New weights need no scale of the old ones.
    return reinitialise(grow(model, plan_for_module(plan, model, sizes, plan.unproved)))


def uniform_widths(groups: ChannelGroups, *, macs: int) -> dict[str, int]:
    """The widths of the largest width multiplier whose network has at most ``macs`` MACs.

    Raises:
        UsageError: the network itself has more.
    """
    if groups.cost.macs() > macs:
        raise UsageError(f"the network has {groups.cost.macs()} MACs already, more than {macs}")
    own = {group.name: group.width for group in groups.groups if group.splittable}
    return largest_multiple(own, lambda widths: groups.cost.macs(widths) <= macs)


def largest_multiple(
    widths: Mapping[str, int],
    fits: Callable[[dict[str, int]], bool],
    *,
    align: int = 1,
    most: Mapping[str, int] | None = None,
    joined: Iterable[JoinedGroups] = (),
) -> dict[str, int]:
    """The widths, all multiplied by the largest factor with which they fit, at least 1.

    Args:
        widths: by group name; they fit.
        fits: whether a network of these widths is within its bounds.
        align: widths that grow are rounded to a multiple of this.
        most: by group name the greatest width.
        joined: the groups among them that grow in equal steps, as they have to these widths.
    """
    bounds = most or {}
    alike = list(joined)

    def scaled(factor: float) -> dict[str, int]:
        found = {
            name: max(width, min(align * round(factor * width / align), bounds.get(name, 1 << 30)))
            for name, width in widths.items()
        }
        for one in alike:
            least, added = one.steps(widths), (factor - 1) * sum(widths[name] for name in one.names)
            wanted = least + round(added / sum(one.step))
            found |= one.widths(max(least, one.within(wanted, align, bounds)))
        return found

    low, high = 1.0, 2.0
    while high <= _MOST_FACTOR and fits(scaled(high)):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(scaled(middle)) else (low, middle)
    return scaled(low)
