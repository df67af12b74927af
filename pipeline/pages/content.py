"""What the pages show, as types. Every text may be anybody's: the pages make it harmless, nobody before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from growpipe.quality import Quality

__all__ = [
    "CheckLine",
    "Curve",
    "GroupGrowth",
    "Kind",
    "Measured",
    "Network",
    "RoundStory",
    "RunStory",
]

Kind = Literal["seed", "grown", "rival", "control", "family"]
"""What a network of a run is, ``family`` for a branch of a family; each kind has its colour and its mark."""


@dataclass(frozen=True)
class Measured:
    """A measured value and its interval.

    Attributes:
        value: the value.
        low: the lower end of the interval; None without one.
        high: the upper end of the interval; None without one.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Network:
    """One network of a run.

    Attributes:
        name: e.g. ``round 2`` or ``rival``.
        kind: what it is.
        widths: by channel group, in graph order.
        parameters: the number of parameters.
        macs: multiply-accumulates per sample.
        epochs: trained in all, up to this network.
        training_macs: multiply-accumulates of training and analyses, up to this network.
        score: what networks are judged by, on the test set in onnxruntime.
        validation_loss: of the trained network.
        milliseconds: of one sample in onnxruntime; None if it was not measured.
        cost: in the unit of the budget; None if the budget is of parameters or MACs.
        unit: of ``cost``.
        deployed: whether the run ships this network.
    """

    name: str
    kind: Kind
    widths: Mapping[str, int]
    parameters: int
    macs: int
    epochs: int
    training_macs: int
    score: Measured
    validation_loss: float
    milliseconds: float | None = None
    cost: float | None = None
    unit: str = ""
    deployed: bool = False


@dataclass(frozen=True)
class GroupGrowth:
    """What a round did to one channel group, and why.

    Attributes:
        name: of the channel group.
        before: its width before the round.
        after: its width after the round.
        predicted: the predicted change of the loss by its splits, at the step of the plan; None if the group
            did not split.
        decrease: by how much its splits alone lowered the loss in a trial; None without a trial.
        worth: what the group competed with: the decrease, drawn towards that of all groups.
        parameters: what its growth alone adds; None if it is not known.
        macs: what its growth alone adds, per sample; None if it is not known.
        splits: by name of the split, the number of channels that split so.
        low: λ− of every channel.
        high: λ+ of every channel.
    """

    name: str
    before: int
    after: int
    predicted: float | None = None
    decrease: float | None = None
    worth: float | None = None
    parameters: int | None = None
    macs: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class RoundStory:
    """What one round did.

    Attributes:
        number: of the round, from 0.
        stopped: why nothing split; None if something did.
        epsilon: the step of the splits.
        predicted: the predicted change of the loss.
        realised: the change of the loss on samples that the analysis did not see.
        base_loss: the loss before the splits, on the samples of the trials; None if it is not known.
        selection: why no further channel was chosen.
        groups: every group that was looked at, in graph order.
    """

    number: int
    stopped: str | None = None
    epsilon: float | None = None
    predicted: float | None = None
    realised: float | None = None
    base_loss: float | None = None
    selection: str = ""
    groups: tuple[GroupGrowth, ...] = ()


@dataclass(frozen=True)
class Curve:
    """How the training of one line of networks went.

    Attributes:
        name: what was trained.
        kind: what it is.
        validation_loss: after each epoch.
        train_loss: of each epoch.
        splits: after how many epochs the network grew.
        start: after how many epochs of the grown network the training began.
    """

    name: str
    kind: Kind
    validation_loss: tuple[float, ...]
    train_loss: tuple[float, ...]
    splits: tuple[int, ...] = ()
    start: int = 0


@dataclass(frozen=True)
class CheckLine:
    """One thing that was checked or measured in onnxruntime.

    Attributes:
        network: which network.
        what: what was looked at.
        found: what was found.
        allowed: the bound; empty for a measurement without one.
    """

    network: str
    what: str
    found: str
    allowed: str = ""


@dataclass(frozen=True)
class RunStory:
    """A run, finished or not.

    Attributes:
        title: the heading.
        verdict: one sentence: who won, and what is deployed; or that the run is not finished.
        stopped: why growth ended.
        networks: in the order in which they were trained.
        size: what networks are compared by: ``parameters``, ``MACs`` or the unit of the budget.
        limit: the budget in ``size``; None without one.
        rounds: what each round did.
        curves: how training went.
        checks: what was checked.
        environment: name and value of what the run depends on.
        command: the command that repeats the run.
        recipe: the recipe as TOML, every key with its value.
        quality: what networks are judged by, in words.
    """

    title: str
    verdict: str
    stopped: str
    networks: tuple[Network, ...]
    size: str
    limit: float | None
    rounds: tuple[RoundStory, ...]
    curves: tuple[Curve, ...]
    checks: tuple[CheckLine, ...]
    environment: tuple[tuple[str, str], ...]
    command: str
    recipe: str
    quality: Quality
