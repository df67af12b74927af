"""A micro-batch of the analysis set, and what is kept of it between products."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from growpipe.analyser.curvature.bent_path import PathProducts
from growpipe.analyser.curvature.closed_form import ClosedForm
from growpipe.analyser.curvature.pairs import PairForm
from growpipe.analyser.program.captured import Captured
from growpipe.torch_module.outputs import LossFunction

__all__ = ["Batch", "Constants", "Form"]

Form: TypeAlias = ClosedForm | PairForm
"""S·v of a chain, or of queries and keys, over one micro-batch."""


@dataclass(frozen=True, eq=False)
class Constants:
    """What is held constant while θ moves.

    Attributes:
        positions: of the groups whose products it is enough for.
        captured: the values and gradients that paths read, and the inputs of the chains' producers.
        forms: by position of the group what products of chains and of queries and keys need besides.
    """

    positions: frozenset[int]
    captured: Captured
    forms: Mapping[int, Form]

    @property
    def nbytes(self) -> int:
        """The memory of all of it."""
        return self.captured.nbytes + sum(form.nbytes for form in self.forms.values())

    def cast(self, dtype: torch.dtype) -> Constants:
        """The same with what is large in another floating type."""
        forms = {i: form.cast(dtype) for i, form in self.forms.items()}
        return Constants(self.positions, self.captured.cast(dtype), forms)


@dataclass
class Batch:
    """One micro-batch, and what is kept of it between products.

    Attributes:
        inputs: its inputs.
        target: its target.
        loss_fn: the mean loss.
        samples: the number of samples.
        half: to which half of the data it belongs, 0 or 1.
        kept: what products need of it, if there is memory for it.
        graphs: by position of the group what the products of its path need, if there is memory for that too.
    """

    inputs: Any
    target: Any
    loss_fn: LossFunction
    samples: int
    half: int
    kept: Constants | None = None
    graphs: dict[int, PathProducts] = field(default_factory=dict)

    def serves(self, positions: AbstractSet[int]) -> bool:
        """Whether products of these groups compute nothing of the program again."""
        return self.kept is not None and positions <= self.kept.positions

    @property
    def nbytes(self) -> int:
        """The memory of what is kept."""
        constants = 0 if self.kept is None else self.kept.nbytes
        return constants + sum(graph.nbytes for graph in self.graphs.values())
