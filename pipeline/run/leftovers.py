"""What an earlier run has left in the directory that is not part of this one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from growpipe.progress import log
from growpipe.run.stages.names import BRANCH, rival_of_branch, round_stage
from growpipe.run.store import Run, Stage

__all__ = ["discard_rounds", "remove_branches", "remove_stage"]


def remove_stage(run: Run, stage: Stage[Any]) -> None:
    """Remove what an earlier run has left of a stage that this run does not have."""
    if run.peers.rank == 0:
        shutil.rmtree(run.path / stage.name, ignore_errors=True)
    run.peers.broadcast(None)  # nobody reads what is being removed


def remove_branches(run: Run, *, beyond: int, rivals_too: bool) -> None:
    """Remove what an earlier family has left.

    Args:
        run: the run.
        beyond: the last round of this family, 0 if it is none.
        rivals_too: remove the rivals of all branches, not only of those that are removed.
    """
    if run.peers.rank == 0:
        for folder in sorted(run.path.glob(f"round-*/{BRANCH.name}")):
            if not folder.parent.name[6:].isdecimal() or int(folder.parent.name[6:]) > beyond:
                shutil.rmtree(folder)
        kept = {rival_of_branch(number).name for number in range(1, beyond + 1)} if not rivals_too else set()
        for folder in sorted(run.path.glob(f"{rival_of_branch(0).name[:-2]}*")):
            if folder.relative_to(run.path).as_posix() not in kept:
                shutil.rmtree(folder)
    run.peers.broadcast(None)  # nobody reads what is being removed


def discard_rounds(run: Run, number: int, unread: Iterable[Stage[Any]], *, later: bool) -> None:
    """Remove what an earlier run left that is not part of this one.

    Args:
        run: the run.
        number: the round that the run has come to.
        unread: the stages of round ``number`` that this run does not have.
        later: whether this run has no round after ``number``.
    """
    if run.peers.rank == 0:
        for stage in unread:
            shutil.rmtree(run.path / round_stage(number, stage).name, ignore_errors=True)
        beyond = number + 1
        while later and (folder := run.path / f"round-{beyond:02d}").exists():
            shutil.rmtree(folder)
            log(f"{folder.name}: of an earlier, longer run, removed")
            beyond += 1
    run.peers.broadcast(None)  # nobody reads what is being removed
