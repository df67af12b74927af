"""The sign of v+, channel by channel, where a split is not symmetric in it.

The negative pair and the mixed triplet have a term of third order that changes its sign with v+:

    L_split − L = (ε²/2) Σ_i w_i δ_iᵀ S δ_i + (ε³/6) Σ_i w_i ∇³F(δ_i, δ_i, δ_i) + O(ε⁴)

with ``F(θ) = Σ_e ⟨g_e, e(θ; x)⟩``. F is a sum over channels, and so is all of this: a channel moves its
consumers by O(ε²), because ``Σ_i w_i δ_i = 0``, so that two channels meet at order ε⁴ only. The best sign of
each channel is therefore its own, the one that makes its third-order term negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
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
from growpipe.graph_ops.arrays import FloatArray
from growpipe.torch_module.outputs import LossFunction

__all__ = ["STEP", "best_signs"]

STEP = 0.1
"""The step of the second difference, in the metric's unit: about that of a plan."""


def best_signs(
    program: Program,
    data: Sequence[MicroBatch],
    loss_fn: LossFunction,
    rows: Rows,
    directions: Directions,
    c: float,
    total: Callable[[Tensor], Tensor],
    step: float = STEP,
) -> dict[str, npt.NDArray[np.float64]]:
    """The sign of v+ of every channel, from one pass over some batches.

    Along a copy's direction δ the derivative of every channel's share of F, ``f'(t) = δ·∇F(θ + tδ)``, comes
    from one gradient; ``f'(h) − 2 f'(0) + f'(−h)`` is h² times the third derivative, up to O(h⁴).

    Args:
        program: with its groups.
        data: micro-batches of this process.
        loss_fn: the mean loss.
        rows: the chosen splits.
        directions: the eigenvectors.
        c: the bound on Σ|w_i|.
        total: sums a tensor over all processes.
        step: h.

    Returns:
        By group ±1, float64 [width]; 1 if the split is symmetric.

    Raises:
        CheckFailed: the loss or a gradient is not finite.
    """
    signs = {group.name: np.ones(group.width) for group in program.groups}
    bent = [
        group
        for group in program.groups
        if any(row >= 0 and not ROWS[row].symmetric for row in rows[group.name])
    ]
    copies = {
        g.name: _copies(rows[g.name], directions.minus[g.name], directions.plus[g.name], c) for g in bent
    }
    sums = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in bent}
    recording = program.recording(bent)
    for batch in data:
        captured = program.capture(batch.inputs, batch.target, loss_fn, recording)
        for group in bent:
            for weight, direction in copies[group.name]:
                delta = torch.from_numpy(direction)
                change = sum(
                    factor * _slopes(program, group, captured, delta, t)
                    for factor, t in ((1.0, step), (-2.0, 0.0), (1.0, -step))
                )
                sums[group.name] += torch.from_numpy(weight) * change * batch.samples
    for group in bent:
        reference = program.tensor(group.blocks[0].tensor)
        third = total(sums[group.name].to(reference.device)).cpu().numpy()
        asymmetric = np.array([row >= 0 and not ROWS[row].symmetric for row in rows[group.name]])
        signs[group.name][asymmetric & (third > 0)] = -1.0
    return signs


def _copies(
    rows: npt.NDArray[np.int64], minus: FloatArray, plus: FloatArray, c: float
) -> list[tuple[npt.NDArray[np.float64], FloatArray]]:
    """For every place among a channel's copies the weights [width] and the displacements [width, d]."""
    offspring = [ROWS[row].offspring(c) if row >= 0 and not ROWS[row].symmetric else () for row in rows]
    result = []
    for place in range(max(len(copies) for copies in offspring)):
        weight, direction = np.zeros(len(rows)), np.zeros_like(plus)
        for channel, copies in enumerate(offspring):
            if place < len(copies):
                copy = copies[place]
                weight[channel] = copy.weight
                direction[channel] = copy.minus * minus[channel] + copy.plus * plus[channel]
        result.append((weight, direction))
    return result


def _slopes(program: Program, group: BoundGroup, captured: Captured, delta: Tensor, t: float) -> Tensor:
    """``δ·∇F(θ + tδ)`` of every channel, float64 [width]."""
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
    along = join([block.gather(found[block.tensor]) for block in group.blocks])
    return (along.double() * moved.double()).sum(1).cpu()
