"""The grown network against its rival: which one is deployed, and who won, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growpipe.quality import Quality, Score
from growpipe.run.facts import JudgedFacts, TrainFacts
from growpipe.run.recipe import Recipe
from growpipe.run.recipe_limits import budget_of
from growpipe.run.stages.names import BRANCH, CHECK, RIVAL, TRAIN, previous_stage, rival_of_branch
from growpipe.run.store import Run, StageRecord

__all__ = ["Verdict", "judge", "judge_branch", "verdict_words"]


@dataclass(frozen=True)
class Verdict:
    """The end of a run.

    Attributes:
        deployed: ``grown`` or ``rival``.
        words: one sentence for people.
    """

    deployed: str
    words: str


@dataclass(frozen=True)
class Contender:
    """A trained network.

    Attributes:
        training: how it was trained, with its figures on the validation set.
        test_score: in onnxruntime.
    """

    training: TrainFacts
    test_score: Score


def judge(run: Run, number: int) -> Verdict:
    """Compare the network of round ``number`` with the rival, if there is one.

    Raises:
        UsageError: the round is not checked yet.
    """
    grown = Contender(
        previous_stage(run, number, TRAIN).facts, previous_stage(run, number, CHECK).facts.test_score
    )
    return _compare(run.recipe, grown, run.published(RIVAL))


def judge_branch(run: Run, number: int) -> Verdict:
    """Compare the branch of round ``number`` in a family with its rival, if there is one.

    Raises:
        UsageError: the round has no branch yet.
    """
    branch = previous_stage(run, number, BRANCH).facts
    grown = Contender(branch.training, branch.score)
    return _compare(run.recipe, grown, run.published(rival_of_branch(number)))


def _compare(recipe: Recipe, grown: Contender, trained: StageRecord[JudgedFacts] | None) -> Verdict:
    """Compare a grown network with its rival.

    Args:
        recipe: says which of them is to be deployed.
        grown: the grown network.
        trained: the rival; None if there is none.
    """
    finish = recipe.growth.finish
    own = "grown and retrained" if finish == "retrain" else "grown"
    if trained is None:
        return Verdict("grown", f"{own} {_figure(grown.test_score)}; no rival was trained")
    rival = Contender(trained.facts.training, trained.facts.score)
    better = "rival" if _better(rival.training, grown.training, recipe.quality) else "grown"
    deployed = {"best": better, "rival": "rival"}.get(finish, "grown")
    reason = "better on the validation set" if finish == "best" else f'as finish = "{finish}" asks'
    words = (
        f"{own} {_figure(grown.test_score)}, uniform from scratch {_figure(rival.test_score)} at the same "
        f"{_measure(recipe)}: "
        + verdict_words(grown.test_score, rival.test_score)
        + f"; deployed: the {deployed} network, {reason}"
    )
    return Verdict(deployed, words)


def verdict_words(grown: Score, rival: Score) -> str:
    """Who won on the test set.

    Args:
        grown: of the grown network.
        rival: of the rival.
    """
    quality = grown.quality
    if grown.standard_error is not None and rival.standard_error is not None:
        error = math.hypot(grown.standard_error, rival.standard_error)
        if abs(grown.value - rival.value) <= error:
            shown = f"{100 * error:.1f} points" if quality.percent else f"{error:.2g}"
            return f"no difference beyond the standard error of {shown}"
    if grown.value == rival.value:
        return "no difference"
    better = quality.better(grown.value, rival.value)
    return "growth wins here" if better else "plain training wins here"


def _better(first: TrainFacts, second: TrainFacts, quality: Quality) -> bool:
    """Whether the first network is better on the validation set: by the metric, then by the loss."""

    def badness(facts: TrainFacts) -> tuple[float, float]:
        score = facts.validation_score if quality.lower_is_better else -facts.validation_score
        loss = facts.validation_loss
        return math.inf if math.isnan(score) else score, math.inf if math.isnan(loss) else loss

    return badness(first) < badness(second)


def _figure(score: Score) -> str:
    return score.quality.told(score.value)


def _measure(recipe: Recipe) -> str:
    """What the two networks have in common."""
    budget = budget_of(recipe, 0)
    measures = {
        "parameters": budget.parameters is not None,
        "MACs": budget.macs is not None,
        "latency": budget.milliseconds is not None,
        "cost": budget.table is not None,
    }
    return " and ".join(name for name, bounded in measures.items() if bounded) or "MACs"
