"""Splits by whole factors: every channel of a group becomes k channels.

A group that is normalised over, such as the residual stream of a transformer, keeps its mean and every
other moment if all channels have equally many copies (`growpipe.graph_ops.groups.even_copies`). The norm
then gives each copy what it gave the channel, and the consumers' coefficients are free: at ε = 0 the
function is the same for any w_i with Σ_i w_i = 1.

**What breaks the symmetry.** Copies with equal coefficients stay copies for ever: their gradients are
equal, and so are those of their consumers' slices V_i = w_i V. Shares of 1 : 2 : … : k in a random order of
each channel's copies (the "uneven outgoing weights" of SPARKLING, arXiv 2602.02472) break it. Under
gradient descent copies move by shares of their source's step that differ at once. Under Adam, whose steps
have no scale, copies move alike in the first step, and so do the slices: V_i + Δ. These are then no
multiples of each other, so the gradients of the copies differ in direction from the second step on. The
shares are positive and below 1, so Σ|w_i| = 1, and no copy works against another.

**Copies that differ.** A displacement ε δ_i must keep the function at first order, Σ_i w_i δ_i = 0, and the
moments, Σ_i δ_i = 0. For k = 2 both hold only for equal shares and δ = ±v, so copies that are displaced
have equal shares. The mean then stays exact at any ε for a channel that is linear in its weights. The
second moment moves by ε² times the mean of δ², so the function moves by O(ε²) as in every split. The change
of loss is a sum over channels without cross terms,

    (ε²/2) Σ_c Σ_i δ_ciᵀ B_c δ_ci,      B_c = H[c1, c1] − H[c1, c2],

with H the Hessian of the loss after the split: the loss does not change if copies of one channel are
swapped, so H[ci, dj] is the same for all i and j if c ≠ d, and vanishes against Σ_i δ_ci = 0.

Exact second moments at ε > 0 would need a rotation of pairs of channels against each other. The scale of
the norm, one number per channel, could then not follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroup, ChannelGroups
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan
from growpipe.graph_ops.plan.stored_precision import StoredChannels, exact_coefficients

__all__ = [
    "Factors",
    "check_whole_factors",
    "factor_splits",
    "growth_by_factors",
    "resolve_factors",
    "split_by_factor",
    "tied_to",
]

Factors = int | Mapping[str, int]
"""By group name the number of copies of every channel; a number is for all that split by whole factors."""

_MOST_FACTOR = 64


def resolve_factors(groups: ChannelGroups, factors: Factors | None) -> dict[str, int]:
    """By name the factor of every group that grows by one, those that are tied to a named group included.

    Raises:
        UsageError: a factor is out of range, a group is unknown or cannot split, tied groups have different
            factors, or no group splits by whole factors.
    """
    if factors is None:
        return {}
    if isinstance(factors, int):
        named = {group.name: factors for group in groups.groups if group.whole_factor is not None}
        if not named:
            raise UsageError("no channel group splits by whole factors; growpipe inspect shows all groups")
    else:
        named = dict(factors)
    resolved: dict[str, int] = {}
    for name, factor in named.items():
        group = groups[name]
        if isinstance(factor, bool) or not isinstance(factor, int) or not 2 <= factor <= _MOST_FACTOR:
            raise UsageError(f"the factor of {name!r} is a number from 2 to {_MOST_FACTOR}, not {factor}")
        if group.barrier is not None:
            raise UsageError(f"group {name!r} cannot split: {group.barrier}")
        for member in _tied(group):
            if resolved.setdefault(member, factor) != factor:
                raise UsageError(
                    f"{member!r} has the factors {resolved[member]} and {factor}: {name!r} is tied to it"
                )
    return resolved


def growth_by_factors(groups: ChannelGroups) -> str | None:
    """Which groups grow by whole factors and how to ask for that, in words; None if there is none."""
    names = [group.name for group in groups.groups if group.whole_factor is not None]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]!r}{more} can grow by whole factors alone, which needs no analysis: growpipe plan "
        "MODEL.onnx --random --growth 0 --factor 2 -o PLAN, or growpipe.graph_ops.random_plan(groups, model, "
        "growth=0.0, factors=2)"
    )


def check_whole_factors(groups: ChannelGroups, plan: SplitPlan) -> None:
    """Refuse a plan that copies the channels of a group unevenly although they are normalised over.

    Raises:
        UsageError: such a group, or one that is tied to it, is not copied by the same whole factor.
    """
    copies = {split.group: split.factor for split in plan.groups}
    for split in plan.groups:
        group = groups[split.group]
        if group.whole_factor is None:
            continue
        for member in _tied(group):
            if split.factor is None or copies.get(member) != split.factor:
                raise UsageError(
                    f"the plan does not copy every channel of {member!r} equally often, although "
                    f"{split.group!r} {group.whole_factor}"
                )


def tied_to(groups: ChannelGroups, names: Iterable[str]) -> list[str]:
    """The groups that grow only together with one of those named."""
    return [member for name in names for member in _tied(groups[name])[1:]]


def factor_splits(groups: ChannelGroups, factors: Factors, seed: int = 0) -> tuple[GroupSplit, ...]:
    """Exact copies of every channel, with uneven shares that break the symmetry.

    Args:
        groups: the channel groups of a model.
        factors: by group name the number of copies.
        seed: orders the shares of each channel's copies.

    Raises:
        UsageError: as `resolve_factors`; or weights are stored in less than 32 bits and cannot hold shares.
    """
    resolved = resolve_factors(groups, factors)
    layouts = groups.restricted(resolved)
    splits = []
    for number, (name, factor) in enumerate(sorted(resolved.items())):
        group, stored = groups[name], StoredChannels(name, layouts, groups.read)
        chosen = split_by_factor(
            group.width, factor, np.random.default_rng([seed, number]), stored, equal=False
        )
        if chosen is None:
            raise UsageError(f"the weights that mix {name!r} are stored too coarsely for {factor} copies")
        splits.append(GroupSplit(name, group.width, *chosen, evenly=group.whole_factor is not None))
    return tuple(splits)


def split_by_factor(
    width: int, factor: int, rng: np.random.Generator, stored: StoredChannels, *, equal: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    """The source and the coefficient of every grown channel, ``factor`` copies of each.

    Args:
        width: the number of channels.
        factor: the number of copies.
        rng: orders the shares of each channel's copies.
        stored: the weights in low precision, which take powers of two alone.
        equal: whether all copies of a channel have the same share, as displaced ones must.

    Returns:
        None if the stored weights cannot hold the products with any shares that were tried.
    """
    source = np.tile(np.arange(width), factor)
    if stored:
        shares = [_exact_shares(channel, factor, rng, stored, equal) for channel in range(width)]
        if any(share is None for share in shares):
            return None
        return source, np.array(shares, float).T.reshape(-1)
    even = np.ones(factor) if equal else np.arange(1.0, factor + 1.0)
    weights = np.tile(even / even.sum(), (width, 1))
    return source, rng.permuted(weights, axis=1).T.reshape(-1)


def _exact_shares(
    channel: int, factor: int, rng: np.random.Generator, stored: StoredChannels, equal: bool
) -> npt.NDArray[np.float64] | None:
    choices = exact_coefficients(factor, rng, bound=2.0, signed=not equal)
    fitting = (c for c in choices if stored.hold(channel, c) and not (equal and np.ptp(c) > 0))
    return next(fitting, None)


def _tied(group: ChannelGroup) -> tuple[str, ...]:
    return (group.name, *(group.whole_factor.tied if group.whole_factor is not None else ()))
