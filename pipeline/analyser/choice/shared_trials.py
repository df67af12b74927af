"""What each group's splits are worth and how far each should go, from trials that all groups share.

The quadratic prediction ``½ ε² Σ w δᵀSδ`` holds within a trust region whose size differs between groups by
more than the predictions themselves. To try every group by itself costs as many passes as there are groups.
Here all groups are split at once, each channel into two, and one backward pass says what each contributes.

**Steps.** Let L(u) be the loss with group g displaced by ``ε_g = √u_g``, and ``a_g = −∂L/∂u_g`` at 0, the
predicted gain. About 0 it is ``L(u) = L(0) − Σ_g a_g u_g + Σ_gh B_gh u_g u_h``. The steps come from

    u_g ← u_g · a_g / (a_g + ∂L/∂u_g)

which is ``a_g / (2 B u)_g`` times u_g: the image space reconstruction algorithm (Daube-Witherspoon and
Muehllehner, 1986). For non-negative B it never raises that quadratic (Lee and Seung, 2001). A group that goes
on in one direction goes faster: its factor is taken to a power, which grows by `FASTER` from round to round
and falls to half if the group turns round, in the manner of Rprop (Riedmiller and Braun, 1993). A power above
1 may raise the quadratic. No change of u_g is by more than a factor of `REACH`. If groups replace each other
the minimum leaves most of them at no step at all, which overfits the few samples: the rounds end long before
it. With four rounds of equal powers plans were worse on unseen samples, with ten of those they were as good
as with these (``benchmarks/analyser/quality.py``).

**Worth.** At these steps u* the worth of a group is the price of Aumann and Shapley (1974),

    W_g = −u*_g ∫₀¹ ∂L/∂u_g (t u*) dt,        Σ_g W_g = L(0) − L(u*)

If groups do not interact, W_g is what the group gains by itself, without bias. If they do, both groups of a
pair get half of its interaction, and the sum is what is gained together. The integral is Gauss's with two
nodes, exact as long as L is a polynomial of degree 4 in t, which is degree 8 in ε. One half of every
micro-batch is at the first node and one at the second.

**Precision.** Every sample says something of every group, so the standard error of W_g is that of a mean
over all samples, as if the group had been tried on them by itself; the price does not depend on the number of
groups. Noise is taken from the differences between micro-batches, about the mean of their node and set.
Directions are fitted to few samples, and gain several times as much on those as on others. In expectation
the one exceeds what enough data would show by about as much as the other falls short of it (the symmetry
behind Akaike's criterion), so samples of both kinds have equal weight. The trials stop once the noise is at
most ``1 − SETTLED`` of the variance between groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from growpipe.analyser.samples import MicroBatch
from growpipe.graph_ops.arrays import Float64Array

__all__ = ["NODES", "REACH", "ROUNDS", "SETTLED", "START", "SharedTrials"]

START = 0.2
"""The first step of every group, in the metric's unit."""

ROUNDS = (0.5, 0.5, 0.5, 0.5, 1.0)
"""The share of the samples for the steps that each round sees.

The first rounds need not be exact, as the next ones go on from there. But on a quarter of the samples they
can take a group so far back that the others do not bring it up again."""

FASTER, FASTEST = 1.5, 3.0
"""By what the power of a group's factor grows while the group goes on in one direction, and its bound."""

REACH = 4.0
"""The largest factor by which one round changes ε² of a group."""

SETTLED = 0.8
"""The share of the variance between groups that is no noise, at which the trials stop.

More is not worth its price on networks of four groups: plans by half of the samples are as good on others."""

NODES = ((1 - 1 / math.sqrt(3)) / 2, (1 + 1 / math.sqrt(3)) / 2)
"""Gauss's two nodes on the unit interval; their weights are equal."""


@dataclass(frozen=True, eq=False)
class SharedTrials:
    """All groups split at once.

    Attributes:
        groups: their names.
        gains: a_g of every group, float64 [groups], positive.
        slopes: ``(batch, ε float64 [groups]) →`` the derivative of the batch's mean loss by every group's ε,
            float64 [groups].
        total: sums an array over all processes.
    """

    groups: Sequence[str]
    gains: Float64Array
    slopes: Callable[[MicroBatch, Float64Array], Float64Array]
    total: Callable[[Float64Array], Float64Array]

    def steps(self, rounds: Sequence[Sequence[MicroBatch]]) -> Float64Array:
        """ε of every group, float64 [groups].

        Args:
            rounds: the micro-batches of this process that each round sees.
        """
        steps = np.full_like(self.gains, START)
        powers, directions = np.ones_like(steps), np.zeros_like(steps)
        for batches in rounds:
            sums = np.zeros(len(steps) + 1)
            for batch in batches:
                sums += batch.samples * np.append(self._by_square(batch, steps), 1.0)
            sums = self.total(sums)
            if not sums[-1]:
                break
            slopes = sums[:-1] / sums[-1]
            # A loss that is not finite has gone too far with all groups.
            left = self.gains + np.where(np.isfinite(slopes), slopes, np.inf)
            with np.errstate(divide="ignore"):
                factor = np.where(left > 0, self.gains / left, REACH)
            # What the bound stops says nothing of how far it would have gone.
            free = (factor > 1 / REACH) & (factor < REACH)
            turned = np.where(free, np.sign(factor - 1), 0.0)
            powers = np.where(turned * directions > 0, np.minimum(powers * FASTER, FASTEST), powers)
            powers = np.where(turned * directions < 0, powers / 2, powers)
            directions = turned
            steps = steps * np.sqrt(np.clip(factor**powers, 1 / REACH, REACH))
        return steps

    def _by_square(self, batch: MicroBatch, steps: Float64Array) -> Float64Array:
        """The derivative by every group's ε²."""
        return self.slopes(batch, steps) / (2 * steps)

    def worth(
        self, sets: Sequence[Sequence[MicroBatch]], steps: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """The worth of every group at these steps and its standard error, float64 [groups] each.

        Args:
            sets: by kind of samples the micro-batches of this process; all kinds count alike.
            steps: ε of every group.
        """
        strata = [_Stratum(len(steps)) for _ in range(2 * len(sets))]
        own = max(batch.count for batch in itertools.chain([_NONE], *sets))
        portions = int(self.total(np.array([own]))[0])
        for number in range(portions):
            for place, batches in enumerate(sets):
                self._take(
                    strata[2 * place : 2 * place + 2],
                    [batch for batch in batches if batch.number == number],
                    steps,
                )
            if 0 < number < portions - 1 and _settled(*self._combined(strata)):
                break
        return self._combined(strata)

    def _take(self, strata: Sequence[_Stratum], batches: Sequence[MicroBatch], steps: Float64Array) -> None:
        """Half of every micro-batch at each node."""
        for batch in batches:
            for stratum, part, share in zip(strata, batch.halves(), NODES, strict=True):
                found = -(steps**2) * self._by_square(part, steps * math.sqrt(share))
                stratum.take(part.samples, found)

    def _combined(self, strata: Sequence[_Stratum]) -> tuple[Float64Array, Float64Array]:
        """The mean of the strata, and its standard error."""
        sums = np.stack([self.total(stratum.sums) for stratum in strata])
        samples, pieces, totals, squares = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3]
        # A loss that is not finite shows nothing.
        totals, squares = (np.where(np.isfinite(t).all(0), t, 0.0) for t in (totals, squares))
        means = totals / samples
        spread = np.maximum(squares - totals * means, 0).sum(0)
        freedom = np.maximum((pieces - 1).sum(0), 1)
        variance = spread / freedom * (1 / samples).sum(0) / len(strata) ** 2
        return means.mean(0), np.sqrt(variance)


_NONE = MicroBatch((), None, 0, 0, 0, 0)


class _Stratum:
    """The sums over the micro-batches of one set at one node, float64 [4, groups]."""

    def __init__(self, groups: int) -> None:
        self.sums = np.zeros((4, groups))

    def take(self, samples: int, found: Float64Array) -> None:
        self.sums += np.stack([np.full_like(found, samples), np.ones_like(found), samples * found,
                               samples * found**2])  # fmt: skip


def _settled(worth: Float64Array, error: Float64Array) -> bool:
    """Whether what groups differ by is hardly noise."""
    if len(worth) < 2:
        return False
    total = float(np.var(worth, ddof=1))
    return float((error**2).mean()) <= (1 - SETTLED) * total
