"""Plans that need no data: random signed splits, and the exact duplication of Net2Net."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.dims import channel_rows
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroup, ChannelGroups
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.joined_groups import JoinedGroups, joined_added, joined_factors
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters
from growpipe.graph_ops.plan.stored_precision import StoredChannels, exact_coefficients
from growpipe.graph_ops.plan.whole_factors import Factors, resolve_factors, split_by_factor, tied_to

__all__ = ["net2net_plan", "random_plan", "widening_plan"]


_INEXACT = (
    "its weights are stored in less than 32 bits, and no coefficients but 1 multiply enough channels exactly"
)


@dataclass(frozen=True)
class _Coefficients:
    """How the copies of one channel share its weight.

    Attributes:
        signed: random numbers of both signs; otherwise equal shares.
        bound: on the size of every coefficient.
    """

    signed: bool
    bound: float

    def __call__(self, copies: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        return _signed(copies, self.bound, rng) if self.signed else np.full(copies, 1.0 / copies)


def random_plan(
    groups: ChannelGroups,
    model: ir.Model,
    *,
    growth: float | Mapping[str, int],
    epsilon: float = 0.0,
    seed: int = 0,
    max_coefficient: float = 2.0,
    factors: Factors | None = None,
    joined: Sequence[JoinedGroups] = (),
) -> SplitPlan:
    """A split of random channels with random signed coefficients, in every splittable group.

    The coefficients of the copies of one channel sum to 1. At ε > 0 the copies leave their source in random
    directions, through the weights that make the channel: ``Σ w_i δ_i = 0`` and ``max ‖δ_i‖ = 1`` over all of
    a channel's weights together, as in S3D (arXiv 2003.10392), but blind.

    Weights stored in less than 32 bits only take coefficients that their type multiplies exactly, which are
    powers of two (`growpipe.graph_ops.plan.stored_precision`). A group without such coefficients is left out;
    ``notes["declined"]`` of the plan says so.

    Args:
        groups: the channel groups of ``model``.
        model: gives the parameters the plan belongs to.
        growth: the share of channels to add to each group, at least one channel each, or 0 for none; or by
            group name the number of channels to add.
        epsilon: the step ε; at 0 the function is preserved exactly.
        seed: the same seed gives the same plan.
        max_coefficient: the bound on every |w_i|, at least 1.
        factors: the groups of which every channel gets so many copies, whatever ``growth`` says; see
            `growpipe.graph_ops.plan.whole_factors`. Groups that are normalised over grow in no other way.
        joined: groups that grow in equal steps, as a torch module may need; see
            `growpipe.torch_module.module_fit.fit_module`. What ``growth`` gives them is rounded up, and a
            factor of one of them is a factor of all.

    Raises:
        UsageError: an argument is out of range, or no group can split.
    """
    if not max_coefficient >= 1:
        raise UsageError(f"max_coefficient must be at least 1, not {max_coefficient}")

    request = _Request(groups, growth, factors, epsilon, seed, joined)
    return _blind_plan(groups, request, "random", _Coefficients(signed=True, bound=max_coefficient))


def net2net_plan(
    groups: ChannelGroups,
    model: ir.Model,
    *,
    growth: float | Mapping[str, int],
    seed: int = 0,
    factors: Factors | None = None,
    joined: Sequence[JoinedGroups] = (),
) -> SplitPlan:
    """Exact duplication of random channels: m copies with coefficient 1/m each, no displacement.

    Net2WiderNet of Chen, Goodfellow, Shlens, arXiv 1511.05641. Arguments and errors as for `random_plan`, and
    so is what happens to weights stored in less than 32 bits.
    """
    request = _Request(groups, growth, factors, 0.0, seed, joined)
    return _blind_plan(groups, request, "net2net", _Coefficients(signed=False, bound=1.0))


def widening_plan(groups: ChannelGroups, model: ir.Model, widths: Mapping[str, int]) -> SplitPlan | None:
    """Exact duplication, as `net2net_plan`, to widths that are given.

    Args:
        groups: the channel groups of ``model``.
        model: gives the parameters the plan belongs to.
        widths: by group name; groups that are absent keep theirs. No width may be below the model's.

    Returns:
        None if no group grows.

    Raises:
        UsageError: a group cannot split, would shrink, or grows by whole factors and not to this width.
    """
    added: dict[str, int] = {}
    factors: dict[str, int] = {}
    for name, width in widths.items():
        group = groups[name]
        if width < group.width:
            raise UsageError(f"group {name!r} has {group.width} channels and cannot shrink to {width}")
        if width == group.width:
            continue
        if group.whole_factor is None:
            added[name] = width - group.width
        elif width % group.width:
            raise UsageError(f"group {name!r} {group.whole_factor}; {width} is not a multiple of its width")
        else:
            factors[name] = width // group.width
    if not added and not factors:
        return None
    return net2net_plan(groups, model, growth=added or 0.0, factors=factors or None)


class _Request:
    """What a plan without data is asked for.

    Attributes:
        added: by group the number of channels to add, one by one.
        factors: by group the number of copies of every channel.
        epsilon: the step ε.
        seed: of the random numbers.
        notes: the request, for the notes of the plan.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        growth: float | Mapping[str, int],
        factors: Factors | None,
        epsilon: float,
        seed: int,
        joined: Sequence[JoinedGroups],
    ) -> None:
        self.factors = joined_factors(resolve_factors(groups, factors), joined)
        self.added = joined_added(groups, _added_channels(groups, growth, self.factors), joined)
        self.epsilon = epsilon
        self.seed = seed
        self.notes: dict[str, Any] = {
            "growth": dict(growth) if isinstance(growth, Mapping) else growth,
            "seed": seed,
            **({"factors": self.factors} if self.factors else {}),
        }

    def generators(self, groups: ChannelGroups) -> dict[str, np.random.Generator]:
        """One generator per group: what happens to a group does not depend on the others."""
        single = [group.name for group in groups.groups if group.splittable]
        others = [name for name in self.factors if name not in single]
        return {
            name: np.random.default_rng([self.seed, number]) for number, name in enumerate(single + others)
        }

    def split(
        self,
        group: ChannelGroup,
        coefficients: _Coefficients,
        rng: np.random.Generator,
        stored: StoredChannels,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
        """The source and the coefficient of every grown channel; None if the stored weights hold none."""
        if group.name not in self.factors:
            return _split(group.width, self.added[group.name], coefficients, rng, stored)
        equal = self.epsilon > 0 or not coefficients.signed
        return split_by_factor(group.width, self.factors[group.name], rng, stored, equal=equal)


def _blind_plan(
    groups: ChannelGroups, request: _Request, scheme: str, coefficients: _Coefficients
) -> SplitPlan:
    wanted = request.added.keys() | request.factors.keys()
    layouts = groups.restricted(wanted)
    read = groups.read
    taken: set[str] = set()
    generators = request.generators(groups)
    splits: dict[str, GroupSplit] = {}
    declined: dict[str, str] = {}
    for group in groups.groups:
        if group.name not in wanted:
            continue
        rng, stored = generators[group.name], StoredChannels(group.name, layouts, read)
        chosen = request.split(group, coefficients, rng, stored)
        if chosen is None:
            declined[group.name] = _INEXACT
            continue
        source, weights = chosen
        displacements: dict[str, Displacement] = {}
        if request.epsilon > 0:
            displacements = _random_displacements(group, source, weights, layouts, read, taken, rng)
        splits[group.name] = GroupSplit(
            group.name, group.width, source, weights, displacements, evenly=group.whole_factor is not None
        )
    for name in tied_to(groups, declined):
        if splits.pop(name, None) is not None:
            declined[name] = f"it grows only together with a group that cannot: {_INEXACT}"
    if not splits:
        raise UsageError(f"no channel group can split: {_INEXACT}")
    layouts = groups.restricted(splits)
    return SplitPlan(
        groups=tuple(splits.values()),
        layouts=layouts,
        epsilon=request.epsilon,
        graph_hash=groups.graph_hash,
        parameters_hash=hash_parameters(layouts, read),
        scheme=scheme,
        notes=request.notes | ({"declined": declined} if declined else {}),
        unproved=tuple(name for name in splits if groups[name].of_pairs),
    )


def _added_channels(
    groups: ChannelGroups, growth: float | Mapping[str, int], factors: Container[str] = ()
) -> dict[str, int]:
    """By group the number of channels to add, one by one; groups that grow by a factor are left out."""
    if isinstance(growth, Mapping):
        for name in growth:
            group = groups[name]
            if group.barrier is not None:
                raise UsageError(f"group {name!r} cannot split: {group.barrier}")
            if group.whole_factor is not None and name not in factors:
                raise UsageError(f"group {name!r} {group.whole_factor}; name it in the factors instead")
        if not growth or min(growth.values()) < 1:
            raise UsageError(f"growth names no channels to add: {dict(growth)}")
        return {name: more for name, more in growth.items() if name not in factors}
    if not 0 <= growth <= 100 or (growth == 0 and not factors):
        raise UsageError(f"growth is the share of channels to add, above 0 and at most 100, not {growth}")
    added = {
        group.name: max(1, round(growth * group.width))
        for group in groups.groups
        if group.splittable and growth > 0 and group.name not in factors
    }
    if not added and not factors:
        if groups.nothing_found is not None:
            raise UsageError(groups.nothing_found)
        whole = next((group for group in groups.groups if group.whole_factor is not None), None)
        raise UsageError(
            "no channel group of the model can split; growpipe inspect says why"
            if whole is None
            else f"no channel of the model can split by itself, but {whole.name!r} {whole.whole_factor}"
        )
    return added


def _split(
    width: int,
    added: int,
    coefficients: _Coefficients,
    rng: np.random.Generator,
    stored: StoredChannels,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    """Copy ``added`` random channels, every channel once before any is copied twice.

    Returns:
        The source and the coefficient of every grown channel; None if too few channels have coefficients that
        the stored weights hold exactly.
    """
    if stored:
        return _exact_split(width, added, coefficients.signed, coefficients.bound, rng, stored)
    rounds = -(-added // width)
    copied = np.concatenate([rng.permutation(width) for _ in range(rounds)])[:added]
    source = np.concatenate([np.arange(width), copied]).astype(np.int64)
    weights = np.ones(len(source))
    for channel in np.unique(copied):
        copies = np.flatnonzero(source == channel)
        weights[copies] = coefficients(len(copies), rng)
    return source, weights


def _exact_split(
    width: int, added: int, signed: bool, bound: float, rng: np.random.Generator, stored: StoredChannels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    """As `_split`, with coefficients that are powers of two and that the stored weights hold exactly."""
    chosen: dict[int, npt.NDArray[np.float64]] = {channel: np.ones(1) for channel in range(width)}
    open_ = [int(channel) for channel in rng.permutation(width)]
    left = added
    while left and open_:
        for channel in list(open_):
            copies = len(chosen[channel]) + 1
            choices = exact_coefficients(copies, rng, bound=bound, signed=signed)
            fitting = [choice for choice in choices if stored.hold(channel, choice)]
            if not fitting:
                open_.remove(channel)
                continue
            chosen[channel] = fitting[int(rng.integers(len(fitting)))]
            left -= 1
            if not left:
                break
    if left:
        return None
    first = [weights[0] for weights in chosen.values()]
    more = [(channel, weight) for channel, weights in chosen.items() for weight in weights[1:]]
    source = np.array([*range(width), *(channel for channel, _ in more)], np.int64)
    return source, np.array([*first, *(weight for _, weight in more)])


def _signed(copies: int, bound: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """``copies`` numbers of at most ``bound`` in size that sum to 1."""
    weights = np.empty(copies)
    rest = 1.0
    for i in range(copies - 1):
        reach = bound * (copies - 1 - i)  # what the remaining ones can make up for
        weights[i] = rng.uniform(max(-bound, rest - reach), min(bound, rest + reach))
        rest -= weights[i]
    weights[-1] = rest
    return rng.permutation(weights)


def _random_displacements(
    group: ChannelGroup,
    source: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    layouts: Mapping[str, TensorLayout],
    read: Callable[[str], AnyArray],
    taken: set[str],
    rng: np.random.Generator,
) -> dict[str, Displacement]:
    """Random δ with ``Σ w_i δ_i = 0`` for the copies of each channel, on the weights that make the channels.

    A weight that makes the channels of two groups on two axes is displaced for the first of them.
    """
    copies = np.bincount(source)[source]
    displaced = np.flatnonzero(copies > 1)
    directions: dict[str, tuple[int, AnyArray]] = {}
    for member in group.members:
        layout = layouts.get(member.tensor)
        if member.role != "made" or layout is None or member.tensor in taken | directions.keys():
            continue
        dtype = read(member.tensor).dtype
        if not np.issubdtype(dtype, np.floating):
            continue
        entries = channel_rows(layout.axes[member.axis].dim, group.name).shape[1]
        others = layout.shape[: member.axis] + layout.shape[member.axis + 1 :]
        precision = np.float64 if dtype == np.float64 else np.float32
        values = rng.standard_normal((len(displaced), entries, *others), dtype=precision)
        directions[member.tensor] = (member.axis, values)
    taken.update(directions)
    for channel in np.unique(source[displaced]):
        rows = np.flatnonzero(source[displaced] == channel)
        w = weights[displaced[rows]]
        norms = np.zeros(len(rows))
        for _, values in directions.values():
            flat = values[rows].reshape(len(rows), -1)
            flat = flat - np.outer(w, w @ flat) / (w @ w)
            values[rows] = flat.reshape(len(rows), *values.shape[1:])
            norms += np.square(flat).sum(axis=1)
        longest = np.sqrt(norms.max())
        for _, values in directions.values():
            values[rows] /= longest
    return {name: Displacement(axis, displaced, values) for name, (axis, values) in directions.items()}
