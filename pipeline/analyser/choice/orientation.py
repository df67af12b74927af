"""The sign of v+, channel by channel, where a split is not symmetric in it.

The negative pair and the mixed triplet have a term of third order that changes its sign with v+:

    L_split − L = (ε²/2) Σ_i w_i δ_iᵀ S δ_i + (ε³/6) Σ_i w_i ∇³F(δ_i, δ_i, δ_i) + O(ε⁴)

with ``F(θ) = Σ_e ⟨g_e, e(θ; x)⟩``. F is a sum over channels, and so is all of this: a channel moves its
consumers by O(ε²), because ``Σ_i w_i δ_i = 0``, so that two channels meet at order ε⁴ only. The best sign of
each channel is therefore its own, the one that makes its third-order term negative. With
``δ_i = a_i v− + b_i v+``, and as the copies of every row come in pairs ±a,

    Σ_i w_i ∇³F(δ_i, δ_i, δ_i) = Σ_i w_i b_i³ ∇³F(v+, v+, v+) + 3 Σ_i w_i b_i a_i² ∇³F(v+, v−, v−)

The two derivatives do not depend on the row, so that each is measured once for all rows that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from growpipe.analyser.choice.plan_splits import Rows
from growpipe.analyser.curvature.operator import join, split
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.program import Program
from growpipe.analyser.samples import MicroBatch
from growpipe.analyser.schemes import ROWS
from growpipe.analyser.spectra.spectra import Directions
from growpipe.graph_ops.arrays import Float64Array
from growpipe.torch_module.outputs import LossFunction

__all__ = ["SHARE", "STEP", "Orientation"]

STEP = 0.1
"""The step of the second difference, in the metric's unit: about that of a plan."""


SHARE = 0.25
"""The share of the samples for the steps on which signs are found.

A wrong sign turns a term of third order round, which is small beside the others at the step of a plan."""


@dataclass(eq=False)
class Orientation:
    """The signs of v+ by the third derivatives of F on some batches.

    Attributes:
        program: with its groups.
        data: micro-batches of this process.
        loss_fn: the mean loss.
        directions: the eigenvectors.
        c: the bound on Σ|w_i|.
        total: sums a tensor over all processes.
        step: h of the second difference, in the metric's unit.
    """

    program: Program
    data: Sequence[MicroBatch]
    loss_fn: LossFunction
    directions: Directions
    c: float
    total: Callable[[Tensor], Tensor]
    step: float = STEP
    _along: dict[str, Float64Array] = field(default_factory=dict, init=False, repr=False)
    _across: dict[str, Float64Array] = field(default_factory=dict, init=False, repr=False)

    def signs(self, rows: Rows) -> dict[str, Float64Array]:
        """The sign of v+ of every channel.

        Args:
            rows: the chosen splits.

        Returns:
            By group ±1, float64 [width]; 1 if the split is symmetric.

        Raises:
            CheckFailed: the loss or a gradient is not finite.
        """
        factors = np.array([_factors(row, self.c) for row in range(len(ROWS))] + [(0.0, 0.0)])
        along = {group: factors[chosen, 0] for group, chosen in rows.items()}
        across = {group: factors[chosen, 1] for group, chosen in rows.items()}
        self._measure(self._along, [name for name, factor in along.items() if factor.any()], False)
        self._measure(self._across, [name for name, factor in across.items() if factor.any()], True)
        signs = {}
        for name, chosen in rows.items():
            third = along[name] * self._along.get(name, 0.0) + across[name] * self._across.get(name, 0.0)
            signs[name] = np.where(third > 0, -1.0, np.ones(len(chosen)))
        return signs

    def _measure(self, known: dict[str, Float64Array], names: Sequence[str], across: bool) -> None:
        """``∇³F(v+, e, e)`` of every channel of the groups that are not known yet, e = v− or v+."""
        groups = [g for g in self.program.groups if g.name in names and g.name not in known]
        sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
        recording = self.program.recording(groups)
        for batch in self.data if groups else ():
            captured = self.program.capture(batch.inputs, batch.target, self.loss_fn, recording)
            for group in groups:
                plus = torch.from_numpy(self.directions.plus[group.name])
                moved = torch.from_numpy(self.directions.minus[group.name]) if across else plus
                second = sum(
                    factor * _gradient(self.program, group, captured, moved, at)
                    for factor, at in ((1.0, self.step), (-2.0, 0.0), (1.0, -self.step))
                )
                sums[group.name] += (plus.to(second) * second).sum(1).cpu() * batch.samples
        for group in groups:
            reference = self.program.tensor(group.blocks[0].tensor)
            known[group.name] = self.total(sums[group.name].to(reference.device)).cpu().numpy()


def _factors(row: int, c: float) -> tuple[float, float]:
    """``Σ w b³`` and ``3 Σ w b a²`` of a row; 0 if it is symmetric."""
    if ROWS[row].symmetric:
        return 0.0, 0.0
    copies = ROWS[row].offspring(c)
    cubes = sum(one.weight * one.plus**3 for one in copies)
    return cubes, 3 * sum(one.weight * one.plus * one.minus**2 for one in copies)


def _gradient(program: Program, group: BoundGroup, captured: Captured, delta: Tensor, t: float) -> Tensor:
    """``∇F(θ + tδ)`` of every channel, float64 [width, d]."""
    theta = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
    moved = delta.to(next(iter(theta.values())))
    for block, part in zip(group.blocks, split(group, moved), strict=True):
        theta[block.tensor] = theta[block.tensor] + t * block.scatter(part)
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    with torch.enable_grad():
        scalar = program.scalar([group], captured, leaves)
        gradients = torch.autograd.grad(scalar, list(leaves.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(leaves, gradients, strict=True)
    }
    return join([block.gather(found[block.tensor]) for block in group.blocks]).double()
