"""Batched block Lanczos: both ends of the spectrum of many symmetric matrices at once, from products alone.

Every channel of every group has Krylov spaces of its own; one call of the operator advances all of them by a
block of vectors. What the operator computes again at every call it so computes for several vectors at once.
Full reorthogonalisation keeps the small projected matrices honest (without it, converged ends come back as
ghosts). A channel's recurrence ends early when its Krylov space is exhausted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from growpipe.analyser.spectra.recurrence import Ends, Estimate, Recurrence
from growpipe.graph_ops.errors import CheckFailed

__all__ = [
    "LEAST",
    "Apply",
    "Extremes",
    "Iteration",
    "StoppingRule",
    "drive",
    "lanczos",
    "random_start",
    "random_starts",
]


@dataclass(frozen=True, eq=False)
class Extremes:
    """The extreme eigenpairs of every channel of every group.

    Attributes:
        groups: one entry for every group.
        steps: how often the operator was called.
        group_products: the number of vectors it was applied to per channel, summed over the groups.
    """

    groups: tuple[Ends, ...]
    steps: int
    group_products: int

    @property
    def low(self) -> list[Tensor]:
        return [ends.low for ends in self.groups]

    @property
    def high(self) -> list[Tensor]:
        return [ends.high for ends in self.groups]

    @property
    def minus(self) -> list[Tensor]:
        return [ends.minus for ends in self.groups]

    @property
    def plus(self) -> list[Tensor]:
        return [ends.plus for ends in self.groups]

    @property
    def error(self) -> list[Tensor]:
        return [ends.error for ends in self.groups]

    @property
    def relative_error(self) -> float:
        """The worst error bound over all channels, as a share of the channel's spectral radius."""
        return max((float(s.max()) for ends in self.groups if (s := ends.shares()).numel()), default=0.0)


def random_start(like: Sequence[Tensor], seed: int, block: int | None = None) -> list[Tensor]:
    """Normal entries from a generator of its own, the same on every device.

    Args:
        like: tensors of the shapes, types and devices wanted.
        seed: of the generator.
        block: how many of each, in an axis before the others; one and no such axis by default.
    """
    return list(random_starts(like, seed, block))


def random_starts(like: Iterable[Tensor], seed: int, block: int | None = None) -> Iterator[Tensor]:
    """Those of `random_start`, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    leading = () if block is None else (block,)
    for v in like:
        yield torch.randn(*leading, *v.shape, generator=generator, dtype=torch.float64).to(v)


class Iteration(Protocol):
    """One group on its way to its extreme eigenpairs, a product at a time."""

    @property
    def current(self) -> Tensor:
        """The vectors to apply S to next, [block, width, d]."""

    @property
    def done(self) -> bool:
        """Whether no further product is needed."""

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``, [block, width, d]."""

    def project(self, covectors: Tensor) -> Tensor:
        """Inner products of [block, width, d] with the vectors S was applied to and ``current``.

        Returns:
            [width, k + block, block].
        """

    def preview(self) -> Estimate | None:
        """What is known so far, with error bounds; None if that is nothing yet."""

    def ends(self) -> Ends:
        """The result."""


Apply = Callable[[dict[int, Tensor]], Mapping[int, Tensor] | Iterable[tuple[int, Tensor]]]
"""S·v of some groups: by position [block, width, d] to [block, width, d], symmetric per channel.

As pairs the products are taken one after the other, so that they need not all be there at once."""


@dataclass(frozen=True, eq=False)
class StoppingRule:
    """When a group's ends are known well enough.

    Attributes:
        tolerance: the bound on the error, as a share of the spectral radius.
        noise: by position of a group and its estimate the standard errors of ``low · λ− − high · λ+`` as
            shares of the spectral radii, in root mean square. None if they are not known.
        noise_share: a group is also done when the bounds on the errors of ``low · λ− − high · λ+`` are this
            share of ``noise``, in root mean square; 0 leaves ``tolerance`` alone.
        weights: ``low`` and ``high``: how much λ− and λ+ count, neither below 0.
    """

    tolerance: float
    noise: Callable[[int, Estimate], float] | None = None
    noise_share: float = 0.0
    weights: tuple[float, float] = (1.0, 1.0)

    def met(self, position: int, known: Estimate) -> bool:
        shares = known.shares()
        if shares.numel() == 0 or bool((shares <= self.tolerance).all()):
            return True
        if self.noise is None or self.noise_share <= 0:
            return False
        error = float(known.weighted_shares(*self.weights).square().mean().sqrt())
        return error <= self.noise_share * self.noise(position, known)


LEAST = 4
"""The least number of products of Lanczos: with fewer nothing is known of what lies between the ends."""


def lanczos(
    apply: Apply,
    start: Sequence[Tensor],
    *,
    tolerance: float,
    max_steps: int,
    noise: Callable[[int, Estimate], float] | None = None,
    noise_share: float = 0.0,
) -> Extremes:
    """λ−, v−, λ+, v+ of every channel.

    A group is done when each of its channels meets the `StoppingRule`, when its Krylov spaces are exhausted,
    or after ``max_steps`` products; no product is spent on it from then on. A Ritz value is off by no more
    than its residual ``r = ‖S v − λ v‖``, and by no more than ``r² / gap``, gap the distance to the next Ritz
    value less its own residual (Parlett, The Symmetric Eigenvalue Problem, theorem 11.7.1).

    Args:
        apply: the operator: of the groups it is given [block, width, d] to the same, symmetric per channel.
        start: start vectors, for every group [block, width, d], or [width, d] for one; no first row zero.
        tolerance: the bound on the error, as a share of the spectral radius.
        max_steps: the largest number of vectors that S is applied to, per channel.
        noise: see `StoppingRule`.
        noise_share: see `StoppingRule`.

    Raises:
        CheckFailed: a start vector is zero, or a product is not finite.
    """
    runs: dict[int, Iteration] = {i: Recurrence(v, max_steps) for i, v in enumerate(start)}
    return drive(apply, runs, StoppingRule(tolerance, noise, noise_share))


def drive(apply: Apply, runs: dict[int, Iteration], rule: StoppingRule) -> Extremes:
    """All groups to their end, each with its own solver.

    Args:
        apply: the operator.
        runs: by position of the group its iteration. A group that is done is taken out, so that its memory
            is free.
        rule: when a group is done.

    Raises:
        CheckFailed: a product is not finite.
    """
    found: dict[int, Ends] = {}
    spent = dict.fromkeys(runs, 0)
    steps = 0
    while runs:
        products = apply({i: run.current for i, run in runs.items()})
        steps += 1
        for i, product in products.items() if isinstance(products, Mapping) else products:
            run = runs[i]
            if not torch.isfinite(product.sum()):
                raise CheckFailed("a splitting-matrix product is not finite; check the data and the loss")
            spent[i] += len(product)
            run.advance(product)
            known = run.preview() if spent[i] >= LEAST and not run.done else None
            if run.done or (known is not None and rule.met(i, known)):
                found[i] = run.ends()
                del runs[i]
    return Extremes(tuple(found[i] for i in sorted(found)), steps, sum(spent.values()))
