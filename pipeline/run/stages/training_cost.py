"""What growth has cost: multiply-accumulates of training and of analysis."""

from __future__ import annotations

from growpipe.run.facts import NetworkSize, TrainFacts
from growpipe.run.stages.names import ANALYSE, BRANCH, EXPORT, TRAIN, previous_stage
from growpipe.run.store import Run

__all__ = ["TRAIN_COST", "macs_of_branch", "macs_of_growth", "macs_of_training"]

TRAIN_COST = 3
"""Forward and backward pass of a sample, in forward passes."""


def macs_of_training(size: NetworkSize, training: TrainFacts) -> int:
    """The multiply-accumulates that training a network took; validation is left out."""
    return TRAIN_COST * size.macs * training.samples


def macs_of_growth(run: Run, number: int) -> int:
    """What training and analyses took up to the trained network of round ``number``.

    Raises:
        UsageError: the round is not exported yet.
    """
    training = sum(
        macs_of_training(previous_stage(run, n, EXPORT).facts.size, previous_stage(run, n, TRAIN).facts)
        for n in range(number + 1)
    )
    return training + sum(previous_stage(run, n, ANALYSE).facts.analysis_macs for n in range(number))


def macs_of_branch(run: Run, number: int) -> int:
    """What the branch of round ``number`` took by itself: trunk and analyses up to its round, and annealing.

    Raises:
        UsageError: the round has no branch yet.
    """
    branch = previous_stage(run, number, BRANCH).facts
    return macs_of_growth(run, number) + macs_of_training(branch.size, branch.training)
