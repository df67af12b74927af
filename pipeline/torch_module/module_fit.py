"""How a module follows the channel groups of its graph: by which integers, and where it cannot.

Nothing in a module says which of its integers are lengths of channels (``heads``, ``nf``, ``split_sizes``)
before it runs, and ``x.view(n, 16)`` follows no growth of 16 channels. So it is tried: groups get one more
channel, and the wider module has to compute what the module computes. If it does not, integers that equal a
length of the group are changed until it does.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from growpipe.graph_ops.axes.dims import Atom, Concat, Copied, Dim, Product, atoms_of
from growpipe.graph_ops.groups.channel_groups import ChannelGroup, ChannelGroups
from growpipe.graph_ops.plan.module_size import ModuleSize, sizes_of_groups
from growpipe.torch_module.size_candidates import Change, Place, candidates_of, common_module
from growpipe.torch_module.size_search import Found, find_sizes
from growpipe.torch_module.trial_growth import Trials

__all__ = ["ModuleFit", "fit_module"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModuleFit:
    """What a module makes of the groups of its graph.

    Attributes:
        rigid: by name the groups that the module cannot follow, and why.
        sizes: the integers of modules that follow the others, beyond the sizes of torch's own layers.
        pairs: the groups of queries and keys that the module follows with the scale that it has.
    """

    rigid: Mapping[str, str]
    sizes: tuple[ModuleSize, ...]
    pairs: tuple[str, ...] = ()

    def sizes_of(self, groups: Iterable[str]) -> tuple[ModuleSize, ...]:
        """The integers that follow one of the groups or several: ``module_sizes`` of a plan for them."""
        return sizes_of_groups(self.sizes, groups)


def fit_module(
    model: nn.Module,
    graph: ir.Model,
    groups: ChannelGroups,
    example_inputs: tuple[Any, ...],
    by_factor: Container[str] = (),
) -> ModuleFit:
    """Try which groups ``model`` can follow, and which of its integers have to change with them.

    Args:
        model: in eval mode; it is not changed.
        graph: its growth form.
        groups: of ``graph``.
        example_inputs: positional inputs of ``model``, on its device.
        by_factor: the groups among those that split by whole factors that are tried, too; they are doubled.
    """
    names = [group.name for group in groups.groups if group.splittable or group.name in by_factor]
    if not names:
        return ModuleFit({}, ())
    with torch.no_grad():
        trials = Trials(model, graph, groups, example_inputs)
        fit = ModuleFit({}, ())
        if trials.together(names) is not None:
            fitting = _Fitting(trials)
            fit = fitting.quick(names) or fitting.thorough(names)
        pairs = (name for name in names if groups[name].of_pairs and name not in fit.rigid)
        return replace(fit, pairs=tuple(pairs))


class _Fitting:
    """The search over all groups of one module.

    A network repeats its blocks: what a group of one block needs is tried first on its likes in the others.
    """

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._patterns: dict[Any, Found] = {}
        self._owners: dict[Any, str] = {}

    def quick(self, names: Sequence[str]) -> ModuleFit | None:
        """The fit if like groups need the like; None if they do not all grow together then."""
        rigid, chosen = self._searched(names, quick=True)
        sizes, clashing = _sizes(chosen)
        if clashing or (chosen and self._trials.together(list(chosen), sizes) is not None):
            return None
        return ModuleFit(rigid, sizes)

    def thorough(self, names: Sequence[str]) -> ModuleFit:
        """The fit, with every group searched by itself and the clashing ones rigid."""
        rigid, chosen = self._searched(names, quick=False)
        sizes, clashing = _sizes(chosen)
        if clashing or (chosen and self._trials.together(list(chosen), sizes) is not None):
            return self._one_by_one(chosen, rigid)
        return ModuleFit(rigid, sizes)

    def _searched(
        self, names: Sequence[str], *, quick: bool
    ) -> tuple[dict[str, str], dict[str, frozenset[Change]]]:
        """Why some groups are rigid, and what the others need."""
        found = {name: self._find(name, quick) for name in names}
        return (
            {name: one.fault for name, one in found.items() if one.fault is not None},
            {name: one.changes for name, one in found.items() if one.fault is None},
        )

    def _find(self, name: str, quick: bool) -> Found:
        """What one group needs."""
        group, trials = self._trials.groups[name], self._trials
        likeness = _likeness(trials, group)
        if quick and likeness in self._patterns:
            pattern, owner = self._patterns[likeness], self._owners[likeness]
            if pattern.fault is not None:
                here = common_module(trials, name)
                return Found(frozenset(), pattern.fault.replace(owner, here) if owner else pattern.fault)
            if not pattern.changes:
                return pattern
            trials.begin([name])
            moved = self._moved(pattern.changes, owner, name)
            if moved is not None:
                return Found(moved)
        fault = trials.begin([name])
        if fault is None:
            fault = trials.run().fault
            found = Found(frozenset()) if fault is None else find_sizes(trials, name, fault)
        else:
            found = Found(frozenset(), fault)
        if found.changes:
            logger.debug("%s: %s", name, ", ".join(sorted(change.name for change in found.changes)))
        self._patterns.setdefault(likeness, found)
        self._owners.setdefault(likeness, common_module(trials, name))
        return found

    def _moved(self, changes: Iterable[Change], owner: str, name: str) -> frozenset[Change] | None:
        """The changes that a like group in another block needs; None if that block lacks one of them."""
        block = common_module(self._trials, name)
        candidates = {
            (change.place, change.grown): change
            for tier in (0, 1, 2)
            for change in candidates_of(self._trials, name, tier)
        }
        moved = [
            candidates.get((_moved_place(change.place, owner, block), change.grown)) for change in changes
        ]
        return None if None in moved else frozenset(change for change in moved if change is not None)

    def _one_by_one(self, chosen: Mapping[str, frozenset[Change]], rigid: dict[str, str]) -> ModuleFit:
        """The groups that can grow together, taken in order; the others are rigid."""
        taken: dict[str, frozenset[Change]] = {}
        for name, changes in chosen.items():
            sizes, clashing = _sizes({**taken, name: changes})
            if clashing:
                rigid[name] = f"{clashing[0]} would have to follow it and another group in different ways"
                continue
            fault = self._trials.together([*taken, name], sizes)
            if fault is None:
                taken[name] = changes
            else:
                rigid[name] = f"it cannot grow together with other groups: {fault}"
        return ModuleFit(rigid, _sizes(taken)[0])


def _likeness(trials: Trials, group: ChannelGroup) -> Any:
    """Equal for groups that stand in the same way in blocks of the same class."""
    common = common_module(trials, group.name)
    start = len(common) + 1 if common else 0
    return (
        type(trials.model.get_submodule(common)),
        tuple(
            (name[start:], tuple((_pattern(axis.dim, group.name), axis.role) for axis in layout.axes))
            for name, layout in trials.layouts.items()
            if any(atom.name == group.name for axis in layout.axes for atom in atoms_of(axis.dim))
        ),
    )


def _pattern(dim: Dim, group: str) -> Any:
    """The dimension in numbers, with a mark for the group."""
    match dim:
        case Atom(name, size):
            return (group == name, size)
        case Product(factors):
            return ("product", *(_pattern(factor, group) for factor in factors))
        case Concat(parts):
            return ("concat", *(_pattern(part, group) for part in parts))
        case Copied(inner):
            return ("copied", _pattern(inner, group))
    return dim.size


def _moved_place(place: Place, owner: str, block: str) -> Place:
    """The place in ``block`` that corresponds to a place inside ``owner``; the same if it is elsewhere."""
    path, name = place
    if path == owner or path.startswith(f"{owner}."):
        return f"{block}{path[len(owner) :]}", name
    return place


def _sizes(chosen: Mapping[str, frozenset[Change]]) -> tuple[tuple[ModuleSize, ...], list[str]]:
    """The sizes that follow all groups as each needs it, and the names of those that no size can serve."""
    wanted: dict[Place, dict[str, Change]] = {}
    for group, changes in chosen.items():
        for change in changes:
            wanted.setdefault(change.place, {})[group] = change
    sizes: list[ModuleSize] = []
    clashing: list[str] = []
    for by_group in wanted.values():
        size = _common_size(by_group)
        if size is None:
            clashing.append(next(iter(by_group.values())).name)
        else:
            sizes.append(size.following(by_group))
    return tuple(sizes), clashing


def _common_size(by_group: Mapping[str, Change]) -> ModuleSize | None:
    """A size that grows with every group as that group's change says."""
    first, *others = by_group.values()
    return next((size for size in first.sizes if all(size in other.sizes for other in others)), None)
