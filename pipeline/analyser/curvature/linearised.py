"""S·v of a group that is not a chain: by automatic differentiation along its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.kernel_window import KernelWindow
from growpipe.analyser.program.program import Program

__all__ = ["Linearised"]


@dataclass(frozen=True, eq=False)
class Linearised:
    """∇_θ of the scalar of one batch and group, as a graph that can be differentiated again and again.

    Attributes:
        theta: the group's displaced tensors, by name.
        gradients: ∇_θ by name; without a graph where it does not depend on θ.
        windows: by name the part of a kernel that is displaced, if that is not all.
        nbytes: about its memory besides what the batch leaves constant: as much again for the forward and
            for the backward run.
    """

    theta: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    windows: Mapping[str, KernelWindow]
    nbytes: int

    @staticmethod
    def of(program: Program, batch: Captured, group: BoundGroup) -> Linearised:
        """From what a batch leaves constant."""
        names = dict.fromkeys(block.tensor for block in group.blocks)
        theta = {name: program.tensor(name).detach().clone().requires_grad_() for name in names}
        with torch.enable_grad():
            scalar = program.scalar([group], batch, theta)
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                scalar, list(theta.values()), create_graph=True, allow_unused=True
            )
        filled = {
            name: torch.zeros_like(theta[name]) if gradient is None else gradient
            for name, gradient in zip(names, gradients, strict=True)
        }
        return Linearised(theta, filled, group.windows, 2 * batch.nbytes)

    def product(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """S·v by name, of the tensors' shapes, from v by name; what is absent is zero."""
        whole = {
            name: self.windows[name].filled(v, self.theta[name].shape[2:]) if name in self.windows else v
            for name, v in direction.items()
        }
        live = [(g, whole[name]) for name, g in self.gradients.items() if g.requires_grad]
        if not live:
            return {}
        results = torch.autograd.grad(
            [g for g, _ in live],
            list(self.theta.values()),
            [v for _, v in live],
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: self.windows[name].of(r) if name in self.windows else r
            for name, r in zip(self.theta, results, strict=True)
            if r is not None
        }
