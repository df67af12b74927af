"""A micro-batch of the analysis set, and what is kept of it between products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growpipe.analyser.curvature.bent_path import PathProducts
from growpipe.analyser.curvature.closed_form import ClosedForm
from growpipe.analyser.program.captured import Captured
from growpipe.torch_module.outputs import LossFunction

__all__ = ["Batch", "Constants"]


@dataclass(frozen=True, eq=False)
class Constants:
    """What is held constant while θ moves: of paths as it was captured, of chains what products need."""

    captured: Captured
    closed: Mapping[int, ClosedForm]

    @property
    def nbytes(self) -> int:
        return self.captured.nbytes + sum(form.nbytes for form in self.closed.values())


@dataclass
class Batch:
    """One micro-batch, and what is kept of it between products.

    Attributes:
        inputs: its inputs.
        target: its target.
        loss_fn: the mean loss.
        samples: the number of samples.
        half: to which half of the data it belongs, 0 or 1.
        kept: what products need of it, where there is memory for it.
        keeps_graphs: whether there is memory for linearised paths, too.
        graphs: those, by position of the group.
    """

    inputs: Any
    target: Any
    loss_fn: LossFunction
    samples: int
    half: int
    kept: Constants | None = None
    keeps_graphs: bool = False
    graphs: dict[int, PathProducts] = field(default_factory=dict)
