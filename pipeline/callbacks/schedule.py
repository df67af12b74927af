"""When a network grows while somebody else's trainer trains it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from growpipe.graph_ops.errors import UsageError

__all__ = ["Cues", "Plateau", "When"]


@dataclass(frozen=True)
class Plateau:
    """A metric that has stopped to improve.

    Attributes:
        metric: its name, as the trainer logs it, e.g. ``"eval_loss"``.
        patience: growth is due after so many values in a row that do not improve on the best.
        min_delta: what a value has to be better by to improve on the best.
        mode: ``"min"`` if less is better, ``"max"`` if more is.
    """

    metric: str
    patience: int = 2
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.patience < 1 or not self.min_delta >= 0:
            raise UsageError(
                f"a plateau of {self.metric!r} needs patience >= 1 and min_delta >= 0, not {self.patience} "
                f"and {self.min_delta}"
            )
        if self.mode not in ("min", "max"):
            raise UsageError(f"the mode of a plateau is 'min' or 'max', not {self.mode!r}")


@dataclass(frozen=True)
class When:
    """When growth is due: at steps of the optimizer, after epochs, on a plateau, or at any of these.

    The network grows before the first step that follows, so that evaluation and checkpoints of that moment
    are of the network that was trained. What is due at the end of training is left out.

    Attributes:
        steps: growth is due after each of these numbers of optimizer steps.
        epochs: growth is due after each of these numbers of epochs.
        plateau: growth is due whenever this metric stops to improve; the best value is forgotten then.
        most: the largest number of growths in all; None for any number.
    """

    steps: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    plateau: Plateau | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "epochs"):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list, range)) or any(
                type(one) is not int or one < 1 for one in given
            ):
                raise UsageError(f"{name} are positive integers, e.g. {name}=(2, 4), not {given!r}")
            object.__setattr__(self, name, tuple(sorted(set(given))))
        if not self.steps and not self.epochs and self.plateau is None:
            raise UsageError("nothing says when to grow; give steps, epochs or a plateau")
        if self.most is not None and self.most < 1:
            raise UsageError(f"the largest number of growths is {self.most}; give a positive number")


class Cues:
    """Follows a training and says when growth is due.

    Attributes:
        when: what was asked for.
        due: whether growth is due.
        done: the growths so far.
        over: whether there will be no more.
    """

    def __init__(self, when: When) -> None:
        self.when = when
        self.due = False
        self.done = 0
        self.over = False
        self._best = math.inf
        self._bad = 0

    def step(self, number: int) -> None:
        """So many optimizer steps are done."""
        if number in self.when.steps:
            self._cue()

    def epoch(self, number: int) -> None:
        """So many epochs are done."""
        if number in self.when.epochs:
            self._cue()

    def value(self, metric: float) -> None:
        """A value of the plateau's metric was measured. One that is not a number does not improve."""
        plateau = self.when.plateau
        assert plateau is not None
        metric = metric if plateau.mode == "min" else -metric
        if metric < self._best - plateau.min_delta:
            self._best, self._bad = metric, 0
            return
        self._bad += 1
        if self._bad >= plateau.patience:
            self._cue()

    def grown(self) -> None:
        """The network has grown."""
        self.due, self._best, self._bad = False, math.inf, 0
        self.done += 1
        self.over = self.done == self.when.most

    def end(self) -> None:
        """There is nothing left to grow."""
        self.due, self.over = False, True

    def _cue(self) -> None:
        self.due = not self.over

    def state(self) -> dict[str, float | int | bool]:
        """What `restore` takes, as JSON values."""
        return {"due": self.due, "done": self.done, "over": self.over, "best": self._best, "bad": self._bad}

    def restore(self, state: dict[str, float | int | bool]) -> None:
        """Go on from where `state` was taken."""
        self.due, self.done, self.over = bool(state["due"]), int(state["done"]), bool(state["over"])
        self._best, self._bad = float(state["best"]), int(state["bad"])
