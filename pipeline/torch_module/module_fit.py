"""How a module follows the channel groups of its graph: by which integers, and where it cannot.

Nothing in a module says which of its integers are lengths of channels (``heads``, ``nf``, ``split_sizes``)
before it runs, and ``x.view(n, 16)`` follows no growth of 16 channels. So it is tried: groups get one more
channel, and the wider module has to compute what the module computes. If it does not, integers that equal a
length of the group are changed until it does. Groups that need the same integer are tried together.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from growpipe.graph_ops.axes.dims import Atom, Concat, Copied, Dim, Fixed, Product, atoms_of
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.graph_ops.plan.module_size import ModuleSize, sizes_of_groups
from growpipe.torch_module.joint_search import JointSearch
from growpipe.torch_module.size_candidates import Change, Place, candidates_of, common_module
from growpipe.torch_module.size_search import Found, find_sizes
from growpipe.torch_module.trial_growth import Trials

__all__ = ["ModuleFit", "fit_module"]

logger = logging.getLogger(__name__)

_Chosen = dict[JoinedGroups, frozenset[Change]]
"""What the module needs to follow groups that grow together, or one that grows by itself."""


@dataclass(frozen=True)
class ModuleFit:
    """What a module makes of the groups of its graph.

    Attributes:
        rigid: by name the groups that the module cannot follow, and why.
        sizes: the integers of modules that follow the others, beyond the sizes of torch's own layers.
        pairs: the groups of queries and keys that the module follows with the scale that it has.
        joined: the groups that the module follows only if they grow in equal steps.
    """

    rigid: Mapping[str, str]
    sizes: tuple[ModuleSize, ...]
    pairs: tuple[str, ...] = ()
    joined: tuple[JoinedGroups, ...] = ()

    @property
    def joined_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of the groups that grow in equal steps."""
        return tuple(one.names for one in self.joined)

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

    Raises:
        UsageError: no output of ``model`` is finite.
    """
    names = [group.name for group in groups.groups if group.splittable or group.name in by_factor]
    if not names:
        return ModuleFit({}, ())
    with torch.no_grad():
        trials = Trials(model, graph, groups, example_inputs)
        fit = ModuleFit({}, ())
        alone = [JoinedGroups.of([groups[name]]) for name in names]
        if trials.together(alone) is not None:
            fitting = _Fitting(trials)
            fit = fitting.quick(alone) or fitting.thorough(alone)
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

    def quick(self, alone: Sequence[JoinedGroups]) -> ModuleFit | None:
        """The fit if like groups need the like; None if they do not all grow together then."""
        rigid, chosen = self._searched(alone, quick=True)
        return self._fit(rigid, chosen)

    def thorough(self, alone: Sequence[JoinedGroups]) -> ModuleFit:
        """The fit, with every group searched by itself and the clashing ones rigid."""
        rigid, chosen = self._searched(alone, quick=False)
        return self._fit(rigid, chosen) or self._one_by_one(chosen, rigid)

    def _fit(self, rigid: Mapping[str, str], chosen: _Chosen) -> ModuleFit | None:
        """The fit with all that was chosen; None if it does not grow together."""
        sizes, clashing = _sizes(chosen)
        if clashing or (chosen and self._trials.together(list(chosen), sizes) is not None):
            return None
        joined = tuple(bundle for bundle in chosen if len(bundle.names) > 1)
        return ModuleFit(rigid, sizes, joined=joined)

    def _searched(self, alone: Sequence[JoinedGroups], *, quick: bool) -> tuple[dict[str, str], _Chosen]:
        """Why some groups are rigid, and what the others need, by themselves or together."""
        found = {one: self._find(one, quick) for one in alone}
        rigid = {one.names[0]: what.fault for one, what in found.items() if what.fault is not None}
        joint = JointSearch(
            self._trials,
            rigid,
            lambda bundle, alike: self._find(bundle, quick and alike),
            lambda bundle: _likeness(self._trials, bundle.names),
        )
        joined = {name for bundle in joint.bundles for name in bundle.names}
        faults = {name: fault for name, fault in rigid.items() if name not in joined} | joint.faults
        chosen = {one: what for one, what in found.items() if what.fault is None} | joint.bundles
        return faults, {bundle: what.changes for bundle, what in chosen.items()}

    def _find(self, bundle: JoinedGroups, quick: bool) -> Found:
        """What one group needs, or several that grow together."""
        trials = self._trials
        likeness = _likeness(trials, bundle.names), bundle.step
        if quick and likeness in self._patterns:
            pattern, owner = self._patterns[likeness], self._owners[likeness]
            if pattern.fault is not None:
                here = common_module(trials, bundle.names)
                return Found(frozenset(), pattern.fault.replace(owner, here) if owner else pattern.fault)
            if not pattern.changes and len(bundle.names) == 1:
                return pattern
            trials.begin([bundle])
            moved = self._moved(pattern.changes, owner, bundle)
            if moved is not None and (len(bundle.names) == 1 or self._follows(moved)):
                return Found(moved)
        fault = trials.begin([bundle])
        found = find_sizes(trials, bundle) if fault is None else Found(frozenset(), fault)
        if found.changes:
            changes = ", ".join(sorted(change.name for change in found.changes))
            logger.debug("%s: %s", bundle, changes)
        self._patterns.setdefault(likeness, found)
        self._owners.setdefault(likeness, common_module(trials, bundle.names))
        return found

    def _follows(self, changes: Iterable[Change]) -> bool:
        """Whether the module follows the groups of the trial that was begun."""
        return self._trials.run(change.sizes[0] for change in changes).fault is None

    def _moved(self, changes: Iterable[Change], owner: str, bundle: JoinedGroups) -> frozenset[Change] | None:
        """The changes that a like bundle in another block needs; None if that block lacks one of them."""
        block = common_module(self._trials, bundle.names)
        candidates = {
            (change.place, change.grown): change
            for tier in (0, 1, 2)
            for change in candidates_of(self._trials, bundle, tier)
        }
        moved = [
            candidates.get((_moved_place(change.place, owner, block), change.grown)) for change in changes
        ]
        return None if None in moved else frozenset(change for change in moved if change is not None)

    def _one_by_one(self, chosen: _Chosen, rigid: dict[str, str]) -> ModuleFit:
        """The groups that can grow together, taken in order; the others are rigid."""
        taken: _Chosen = {}
        fit = ModuleFit({}, ())
        for bundle, changes in chosen.items():
            _, clashing = _sizes({**taken, bundle: changes})
            if clashing:
                why = f"{clashing[0]} would have to follow it and another group in different ways"
                rigid |= dict.fromkeys(bundle.names, why)
                continue
            wider = self._fit({}, {**taken, bundle: changes})
            if wider is None:
                fault = self._trials.together([*taken, bundle], _sizes({**taken, bundle: changes})[0])
                rigid |= dict.fromkeys(bundle.names, f"it cannot grow together with other groups: {fault}")
            else:
                taken[bundle], fit = changes, wider
        return replace(fit, rigid=rigid)


def _likeness(trials: Trials, names: Sequence[str]) -> Any:
    """Equal for groups that stand in the same way in blocks of the same class."""
    common = common_module(trials, names)
    start = len(common) + 1 if common else 0
    return (
        type(trials.model.get_submodule(common)),
        len(names),
        tuple(
            (name[start:], tuple((_pattern(axis.dim, names), axis.role) for axis in layout.axes))
            for name, layout in trials.layouts.items()
            if any(atom.name in names for axis in layout.axes for atom in atoms_of(axis.dim))
        ),
    )


def _pattern(dim: Dim, names: Sequence[str]) -> Any:
    """The dimension in numbers, with the place of its groups among the names."""
    match dim:
        case Atom(name, size):
            return (names.index(name) if name in names else -1, size)
        case Product(factors):
            return ("product", *(_pattern(factor, names) for factor in factors))
        case Concat(parts):
            return ("concat", *(_pattern(part, names) for part in parts))
        case Copied(inner):
            return ("copied", _pattern(inner, names))
    return dim.size


def _moved_place(place: Place, owner: str, block: str) -> Place:
    """The place in ``block`` that corresponds to a place inside ``owner``; the same if it is elsewhere."""
    path, name = place
    if path == owner or path.startswith(f"{owner}."):
        return f"{block}{path[len(owner) :]}", name
    return place


def _sizes(chosen: _Chosen) -> tuple[tuple[ModuleSize, ...], list[str]]:
    """The sizes that follow all groups as each needs it, and the names of those that no size can serve."""
    wanted: dict[Place, dict[JoinedGroups, Change]] = {}
    for bundle, changes in chosen.items():
        for change in changes:
            wanted.setdefault(change.place, {})[bundle] = change
    sizes: list[ModuleSize] = []
    clashing: list[str] = []
    for by_bundle in wanted.values():
        size = _common_size(by_bundle)
        if size is None:
            clashing.append(next(iter(by_bundle.values())).name)
        else:
            sizes.append(size)
    return tuple(sizes), clashing


def _common_size(by_bundle: Mapping[JoinedGroups, Change]) -> ModuleSize | None:
    """A size that grows with every bundle as that bundle's change says."""
    first, *others = by_bundle.values()
    size = next((size for size in first.sizes if all(size in other.sizes for other in others)), None)
    if size is None:
        return None
    names = frozenset(name for bundle in by_bundle for name in bundle.names)
    covered, equals = size.groups, []
    for other in (other for change in by_bundle.values() for other in change.sizes):
        alike = all(other.grown(bundle.widths(1)) == size.grown(bundle.widths(1)) for bundle in by_bundle)
        if alike and other.groups & names - covered:
            covered |= other.groups
            equals.append(other.dim if other.times == 1 else Product((Fixed(other.times), other.dim)))
    return replace(size, equals=tuple(equals)).following(names)
