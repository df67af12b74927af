"""Which integers of which modules may follow the width of a channel group, and in which ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, takewhile

from torch import nn

from growpipe.graph_ops.axes.dims import Atom, Concat, Dim, Product, atoms_of, grown_size, uncopied
from growpipe.graph_ops.axes.layouts import AxisLayout
from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.graph_ops.plan.module_size import ModuleSize
from growpipe.torch_module.integers import held_integers, own_integers
from growpipe.torch_module.layer_sizes import layer_sizes
from growpipe.torch_module.trial_growth import Trials

__all__ = ["Change", "Place", "candidates_of", "common_module", "divided_lengths"]

_MOST_TIMES = 64  # constants that multiply a width, such as the pixels of a patch

Place = tuple[str, str]
"""The path of a module and the name of one of its integers."""


@dataclass(frozen=True)
class Change:
    """One integer, and what it becomes once a group has grown.

    Attributes:
        place: where the integer is.
        grown: what it becomes in the trial.
        sizes: the sizes that say so, those with the most groups first.
    """

    place: Place
    grown: int
    sizes: tuple[ModuleSize, ...]

    @property
    def name(self) -> str:
        return self.sizes[0].name


def candidates_of(trials: Trials, bundle: JoinedGroups, tier: int) -> list[Change]:
    """What may have to change if groups grow by one step, the most likely first.

    Args:
        trials: of the module.
        bundle: the groups, which grow together.
        tier: 0 for the integers of modules that equal a length the group is part of; 1 for those of objects
            that modules hold, too; 2 for multiples of such lengths, too.
    """
    lengths, widths = _lengths(trials, bundle.names), trials.widths_of(bundle)
    found: list[Change] = []
    for path, module in _modules_on_path(trials, bundle.names):
        read = None if trials.reads is None else trials.reads.get(path, set())
        layer = layer_sizes(module)
        integers = {k: v for k, v in own_integers(module).items() if k.split("[")[0] not in layer}
        if tier >= 1:
            integers |= held_integers(module)
        for name, value in integers.items():
            if value > 0 and (read is None or name.split("[")[0] in read):
                found += _changes((path, name), value, lengths, widths, multiples=tier >= 2)
    return found


def divided_lengths(trials: Trials, bundle: JoinedGroups) -> Iterator[tuple[Place, Fraction]]:
    """The integers of modules that divide a length of these groups, and their change if that is to stay so.

    ``forward`` may multiply an integer by a number that is nowhere kept.

    Args:
        trials: of the module.
        bundle: the groups, which grow by one step.
    """
    lengths, widths = _lengths(trials, bundle.names), trials.widths_of(bundle)
    for path, module in _modules_on_path(trials, bundle.names):
        read = None if trials.reads is None else trials.reads.get(path, set())
        for name, value in own_integers(module).items():
            if value > 1 and (read is None or name.split("[")[0] in read):
                for dim in lengths:
                    times, rest = divmod(dim.size, value)
                    if rest == 0 and times > 1:
                        yield (path, name), Fraction(grown_size(dim, widths) - dim.size, times)


def common_module(trials: Trials, names: Sequence[str]) -> str:
    """The path of the innermost module that holds every parameter of these groups."""
    owners = [name.split(".")[:-1] for name, layout in trials.layouts.items() if _touches(layout.axes, names)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
    return ".".join(parts[0] for parts in shared)


def _modules_on_path(trials: Trials, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside the common one, and those around it, the nearest first."""
    common = common_module(trials, names)
    start = f"{common}." if common else ""
    around = [path for path in trials.paths if f"{common}.".startswith(f"{path}.") or not path]
    inside = [path for path in trials.paths if path.startswith(start) and path]
    for path in dict.fromkeys([*inside, *sorted(around, key=len, reverse=True)]):
        yield path, trials.model.get_submodule(path)


def _touches(axes: Sequence[AxisLayout], names: Sequence[str]) -> bool:
    return any(atom.name in names for axis in axes for atom in atoms_of(axis.dim))


def _changes(
    place: Place, value: int, lengths: Sequence[Dim], widths: Mapping[str, int], *, multiples: bool
) -> list[Change]:
    """The ways in which an integer may follow, one for every number that it may become."""
    ways: dict[int, list[ModuleSize]] = {}
    for dim in lengths:
        times, rest = divmod(value, dim.size)
        if rest == 0 and (times == 1 or (multiples and 1 < times <= _MOST_TIMES)):
            ways.setdefault(times * grown_size(dim, widths), []).append(ModuleSize(*place, dim, times))
    return [
        Change(place, grown, tuple(sorted(sizes, key=lambda size: -len(size.groups))))
        for grown, sizes in ways.items()
    ]


def _lengths(trials: Trials, names: Sequence[str]) -> list[Dim]:
    """Every length of an axis, or of a part of one, that the groups are part of; without repetitions."""
    found: dict[Dim, None] = {}
    for layout in trials.layouts.values():
        for axis in layout.axes:
            found |= dict.fromkeys(_parts_with(uncopied(axis.dim), names))
    return sorted(found, key=lambda dim: dim.size)


def _parts_with(dim: Dim, names: Sequence[str]) -> Iterator[Dim]:
    if all(atom.name not in names for atom in atoms_of(dim)):
        return
    yield dim
    if isinstance(dim, Atom):
        return
    parts = dim.factors if isinstance(dim, Product) else dim.parts if isinstance(dim, Concat) else ()
    for part in parts:
        yield from _parts_with(part, names)
    for first, last in combinations(range(len(parts) + 1), 2):
        if 1 < last - first < len(parts):
            run = parts[first:last]
            if any(atom.name in names for part in run for atom in atoms_of(part)):
                yield Product(run) if isinstance(dim, Product) else Concat(run)
