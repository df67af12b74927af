"""What each stage of a run reports of itself: written into its manifest, read by the stages after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from growpipe.checks.measure.latency import LatencyRatio
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.quality import Score

__all__ = [
    "AnalyseFacts",
    "CheckFacts",
    "ExportFacts",
    "FinalFacts",
    "JudgedFacts",
    "MemberFacts",
    "NetworkSize",
    "RewriteFacts",
    "SplitFacts",
    "TrainFacts",
]


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        widths: of the channel groups that can grow, by name, in graph order.
        parameters: the number of trainable entries.
        macs: multiply-accumulates per sample.
    """

    widths: Mapping[str, int]
    parameters: int
    macs: int

    @staticmethod
    def of(groups: ChannelGroups, grown: Mapping[str, int] | None = None) -> NetworkSize:
        """The size of a network, or of the same network with the widths of ``grown``."""
        wider = dict(grown or {})
        return NetworkSize(
            {g.name: wider.get(g.name, g.width) for g in groups.groups if g.barrier is None},
            int(groups.cost.parameters(wider)),
            int(groups.cost.macs(wider)),
        )


@dataclass(frozen=True)
class TrainFacts:
    """A stage of training.

    Attributes:
        epochs: how many were trained.
        train_loss: of the last epoch; None if nothing was trained.
        samples: how many were trained on, over all epochs.
        validation_loss: of the weights that the stage ended with.
        validation_score: the recipe's metric of the weights that the stage ended with.
        processes: how many trained together; None for one alone.
    """

    epochs: int
    samples: int
    train_loss: float | None
    validation_loss: float
    validation_score: float
    processes: int | None = None


@dataclass(frozen=True)
class ExportFacts:
    """The graph of a trained network.

    Attributes:
        size: of the network.
        torch_divergence: how far onnxruntime is from torch, as a share of the output's scale.
    """

    size: NetworkSize
    torch_divergence: float


@dataclass(frozen=True)
class AnalyseFacts:
    """The split plan of a round, or why there is none.

    Attributes:
        stopped: why nothing splits; None if there is a plan, which the other attributes are of.
        budget_spent: whether the grown network can have no channel more.
        epsilon: the step ε of the splits.
        predicted_change: of the loss.
        realised_change: of the loss, on samples that the analysis did not see.
        added_channels: by all splits together.
        analysis_macs: what the analysis multiplied, counted by torch.
        cost: of the grown network, in ``unit``, if the budget is of something else than parameters and MACs.
        unit: of ``cost``.
    """

    stopped: str | None = None
    budget_spent: bool = False
    epsilon: float | None = None
    predicted_change: float | None = None
    realised_change: float | None = None
    added_channels: int = 0
    analysis_macs: int = 0
    cost: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class RewriteFacts:
    """The grown network before it is trained.

    Attributes:
        size: of the network.
        gradient_ratio: the gradient of weights of added copies over that of the others, on a training batch;
            see `growpipe.torch_module.added_copies`.
    """

    size: NetworkSize
    gradient_ratio: float | None = None


@dataclass(frozen=True)
class SplitFacts:
    """What onnxruntime says of a split.

    Attributes:
        parity: parent against child at ε = 0, as a share of the output's scale.
        torch_parity: the grown module against the grown graph at the chosen ε, as a share of the output's
            scale.
        drift: parent against child at the chosen ε, as a share of the output's scale.
        child_test_score: of the child before training.
        latency: of the child over its parent, batch 1.
    """

    parity: float
    torch_parity: float
    drift: float
    child_test_score: Score
    latency: LatencyRatio


@dataclass(frozen=True)
class CheckFacts:
    """What onnxruntime says of a trained network.

    Attributes:
        test_score: of the network.
        split: of the network's split; None if it did not split.
    """

    test_score: Score
    split: SplitFacts | None = None


@dataclass(frozen=True)
class JudgedFacts:
    """A network that one stage trains, exports and judges: a control, a rival, a branch of a family.

    Attributes:
        size: of the network.
        training: how it was trained.
        test_score: of the network; None in a process that does not measure.
        cost: of the network in ``unit``, if the budget is of something else than parameters and MACs.
        unit: of ``cost``.
    """

    size: NetworkSize
    training: TrainFacts
    test_score: Score | None
    cost: float | None = None
    unit: str = ""

    @property
    def score(self) -> Score:
        """``test_score`` of a published network.

        Raises:
            UsageError: it is missing.
        """
        if self.test_score is None:
            raise UsageError(
                "a network of the run has no test score; its stage is damaged, remove its folder"
            )
        return self.test_score


@dataclass(frozen=True)
class MemberFacts:
    """One network of a family.

    Attributes:
        folder: its folder in ``final``.
        number: the round that it branched off from.
        budget: what its size was bounded by, in the family's measure; None if no sizes were named.
        grown: the network that was grown and annealed.
        rival: trained from scratch at its size; None without rivals.
        deployed: ``grown`` or ``rival``.
        deploy_parity: deploy form against growth form, as a share of the output's scale.
        training_macs: what this network took by itself: the trunk up to its round, the analyses and its own
            annealing.
        verdict: grown network against rival, in words.
        latency: of the grown network over the grown network of the first member, in deploy form, batch 1.
        rival_latency: of the rival over the grown network of the first member, in deploy form, batch 1.
    """

    folder: str
    number: int
    budget: float | None
    grown: JudgedFacts
    rival: JudgedFacts | None
    deployed: str
    deploy_parity: float
    training_macs: int
    verdict: str
    latency: LatencyRatio
    rival_latency: LatencyRatio | None


@dataclass(frozen=True)
class FinalFacts:
    """The final artifacts.

    Attributes:
        stopped: why growth ended.
        deploy_parity: deploy form against growth form, as a share of the output's scale; of a family the
            worst.
        deployed: ``grown``, ``rival``, or ``family``.
        verdict: grown network against rival, in words.
        members: the networks of a family, the smallest first; none in a run of one network.
        training_macs: of the whole family: the trunk once, the analyses and all branches.
    """

    stopped: str
    deploy_parity: float
    deployed: str
    verdict: str
    members: tuple[MemberFacts, ...] = ()
    training_macs: int | None = None
