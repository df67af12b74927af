"""Refine eigenpairs found on a small sample set into those of the full set, with about one block over it.

Let S be the matrix of the full set and S' that of the earlier, smaller one. Step 1 applies S to the old
eigenvectors, with P the projection on them. Step 2 needs S on the residuals as well; the cheap S' stands in
there, which means to use

    M = S P + P S − P S P + (1 − P) S' (1 − P)

M is symmetric and equals S on the first block. The eigenvalue errors are O(‖S' − S‖³); with the first block
alone they would be O(‖S' − S‖²).

A third block is never taken with M: it would pull the result back towards the noise of S'. If two blocks do
not suffice, Lanczos continues with S itself from the first one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.analyser.spectra.recurrence import Ends, Estimate, Recurrence

__all__ = ["Completion", "Refinement"]


@dataclass(frozen=True, eq=False)
class Completion:
    """The products of the first block P along some vectors v orthogonal to it; [block, width, block] each.

    Attributes:
        product: (S P)ᵀ v, which is Pᵀ S v.
        contrast: Pᵀ (S₁ − S₂) v.
    """

    product: Tensor
    contrast: Tensor

    def of_product(self, first: Tensor, product: Tensor) -> Tensor:
        """M v: what of a product lies in P is that of all data.

        Args:
            first: P, orthonormal per channel, [block, width, d].
            product: S' v, [block, width, d].
        """
        return _completed(first, self.product, product)

    def of_contrast(self, first: Tensor, contrast: Tensor) -> Tensor:
        """The same of (S'₁ − S'₂) v, [block, width, d]."""
        return _completed(first, self.contrast, contrast)


def _completed(first: Tensor, inside: Tensor, partial: Tensor) -> Tensor:
    missing = inside - torch.einsum("kcd,scd->kcs", first, partial)
    return partial + torch.einsum("kcs,kcd->scd", missing, first)


class Refinement:
    """Block Lanczos that applies M to its second block first, and S only where that was not enough.

    Args:
        start: the first block, [block, width, d].
        steps: the largest number of vectors that S is applied to.
    """

    def __init__(self, start: Tensor, steps: int) -> None:
        self._lanczos = Recurrence(start, steps)
        self._trial: Recurrence | None = None

    @property
    def applied(self) -> int:
        """How many vectors S itself was applied to."""
        return self._lanczos.applied

    @property
    def first(self) -> Tensor:
        """The first block, orthonormal per channel, [block, width, d]."""
        return self._lanczos.first

    def completion(self, contrast: Tensor) -> Completion:
        """What completes products of ``current`` with M; to be asked for when the first block was applied.

        Args:
            contrast: (S₁ − S₂) P, [block, width, d].
        """
        # S P less its part in P, to which ``current`` is orthogonal. It becomes ``current`` in place.
        assert self._lanczos.residue is not None
        product = self._lanczos.residue.clone()
        inside, outside = (torch.einsum("kcd,scd->kcs", seen, self.current) for seen in (product, contrast))
        return Completion(inside, outside)

    @property
    def tries(self) -> bool:
        """Whether the next product may be one with M."""
        after_first = self.applied == self._lanczos.block
        # Two blocks that are the whole space have bounds of 0, whatever the product was with.
        return self._trial is None and after_first and self._lanczos.limit > 2 * self._lanczos.block

    @property
    def tried(self) -> bool:
        """Whether the last product was one with M."""
        return self._trial is not None

    @property
    def _latest(self) -> Recurrence:
        return self._lanczos if self._trial is None else self._trial

    @property
    def current(self) -> Tensor:
        """The vectors to apply S to next, or M where it `tries`; [block, width, d]."""
        return self._lanczos.current

    @property
    def done(self) -> bool:
        return self._latest.done

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``, or M times it."""
        if self.tries:
            # It replaces its tensors and never writes into them: they need no copies.
            self._trial = copy.copy(self._lanczos)
            self._trial.advance(product, last=True)
        else:
            self._lanczos.advance(product)
            self._trial = None

    def project(self, covectors: Tensor) -> Tensor:
        return self._lanczos.project(covectors)

    def preview(self) -> Estimate:
        return self._latest.preview()

    def ends(self) -> Ends:
        return self._latest.ends()
