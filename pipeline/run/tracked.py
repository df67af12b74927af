"""The curves and the picture of a run, told to trackers while it goes on, and told once if it is resumed.

Steps are epochs of the grown network; what is trained beside it (branches, rivals, the seed control) has
steps of its own. A call that goes on with a run passes by every stage again, in order. So what is told is a
sequence that begins the same in every call, up to the first stage that is done again with other inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.files.documents import parse_json
from growpipe.graph_ops.files.reading import read_text
from growpipe.printing import one_line
from growpipe.progress import log
from growpipe.run.facts import AnalyseFacts, CheckFacts, ExportFacts, FinalFacts, JudgedFacts, TrainFacts
from growpipe.run.store import METRICS, Run, StageRecord, read_metrics
from growpipe.tracking.curves import growth_curves
from growpipe.tracking.trackers import ResumedTracker, open_tracker
from growpipe.training.checkpoint import Epoch

__all__ = ["Tracking", "tracked"]

_TOLD = "told.jsonl"
_LARGEST = 64 << 20  # bytes of that file
_TRUNK = re.compile(r"round-\d+/train")


@contextlib.contextmanager
def tracked(run: Run) -> Iterator[Run]:
    """The run, observed by the trackers of its recipe; they are closed at the end."""
    if run.peers.rank or not run.recipe.tracking.trackers:
        yield run
        return
    trackings = tuple(Tracking(run, kind) for kind in run.recipe.tracking.trackers)
    try:
        yield dataclasses.replace(run, observers=trackings)
    finally:
        for tracking in trackings:
            tracking.close()


@dataclass(frozen=True)
class _Point:
    """What is told at once.

    Attributes:
        what: the same in every call that tells the same.
        values: a value of every curve.
        step: where it stands.
        picture: a PNG file to show.
    """

    what: str
    values: Mapping[str, float]
    step: int
    picture: Path | None = None


class Tracking:
    """Tells one tracker what a run does. A tracker that fails does not end the run.

    Args:
        run: the run.
        kind: of the tracker, which keeps its files in the folder ``kind`` of the run.
    """

    def __init__(self, run: Run, kind: str) -> None:
        self._run, self._kind = run, kind
        self._metric = run.recipe.quality.name
        self._voice = _Voice(run.path / kind, kind, run.recipe.tracking.name or run.path.resolve().name)
        self._epochs: dict[str, int] = {}
        self._step = 0
        self._begin = 0
        self._split: AnalyseFacts | None = None
        self._failed = False

    def epochs(self, stage: str, history: Sequence[Epoch]) -> None:
        """Losses, rate and metric of the epochs that are new."""
        self._epochs_of(stage, [dataclasses.asdict(epoch) for epoch in history])

    def done(self, record: StageRecord[Any]) -> None:
        """Epochs that were trained before this call, and what the stage found."""
        metrics = record.folder / METRICS
        if METRICS in record.outputs:
            lines = [parse_json(line) for line in read_metrics(metrics, inside=self._run.path)]
            self._epochs_of(record.name, [line for line in lines if "train_loss" in line])
        values, step, picture = self._of_facts(record)
        self._tell(_Point(f"{record.name} {record.key}", values, step, picture))

    def close(self) -> None:
        """Close the tracker."""
        self._attempt(self._voice.close)

    def _epochs_of(self, stage: str, history: Sequence[Mapping[str, Any]]) -> None:
        is_trunk = _TRUNK.fullmatch(stage) is not None
        known = self._epochs.get(stage, 0)
        for number, epoch in enumerate(history[known:], known + 1):
            if is_trunk:
                self._step += 1
            step = self._step if is_trunk else number
            values = {
                f"{'' if is_trunk else f'{stage}/'}{name}": value for name, value in self._curves(epoch)
            }
            self._tell(_Point(f"{stage} epoch {number}", values, step))
        self._epochs[stage] = max(known, len(history))

    def _curves(self, epoch: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "train/loss", epoch["train_loss"]
        yield "train/learning_rate", epoch["learning_rate"]
        yield "validation/loss", epoch["validation_loss"]
        if self._metric != "loss":
            yield f"validation/{self._metric}", epoch["validation_score"]

    def _of_facts(self, record: StageRecord[Any]) -> tuple[Mapping[str, float], int, Path | None]:
        """What is shown of a stage that is done: values, step, picture."""
        match record.facts:
            case TrainFacts() as facts:
                self._begin = self._step - facts.epochs
            case AnalyseFacts() as facts:
                self._split = facts if facts.stopped is None else None
            case ExportFacts(size=size):
                split, self._split = self._split, None
                found = (
                    () if split is None else (split.predicted_change, split.realised_change, split.epsilon)
                )
                return growth_curves(size.parameters, size.macs, *found), self._begin, None
            case CheckFacts() as facts:
                return {f"test/{self._metric}": facts.test_score.value}, self._step, None
            case JudgedFacts() as facts:
                name = f"{record.name}/test/{self._metric}"
                return {name: facts.score.value}, facts.training.epochs, None
            case FinalFacts():
                return {}, self._step, record.folder / "run.png"
        return {}, self._step, None

    def _tell(self, point: _Point) -> None:
        self._attempt(functools.partial(self._voice.tell, point))

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do something with the tracker; if it fails say so, and leave it alone from then on."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # a tracker may raise anything, such as what its server says
            self._failed = True
            log(f"tracking with {self._kind} has stopped: {one_line(f'{type(error).__name__}: {error}')}")


class _Voice:
    """A tracker that is opened if there is something to tell, and what it was told in earlier calls.

    Args:
        folder: of its files; ``told.jsonl`` in it has a line with the tracker's run, then one per point.
        kind: of the tracker.
        name: of the run in the tracker.
    """

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        self._folder, self._kind, self._name = folder, kind, name
        self._tracker: ResumedTracker | None = None
        self._run, self._known = _read(folder / _TOLD, folder.parent)
        self._passed: list[_Point] = []

    def tell(self, point: _Point) -> None:
        """Tell a point, unless it has been told."""
        if self._tracker is None:
            place = len(self._passed)
            self._passed.append(point)
            if place < len(self._known) and self._known[place] == point.what:
                return
            self._open(goes_on=place >= len(self._known) > 0)
        else:
            self._show(point)

    def _open(self, *, goes_on: bool) -> None:
        """Open the tracker, and tell what it does not know."""
        asked = self._run if goes_on else ""
        self._tracker = open_tracker(self._kind, self._folder, self._name, asked)
        if asked and self._tracker.run == asked:
            untold = self._passed[len(self._known) :]
        else:
            untold = self._passed
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / _TOLD, json.dumps(self._tracker.run) + "\n")
        for point in untold:
            self._show(point)

    def _show(self, point: _Point) -> None:
        assert self._tracker is not None
        if point.values:
            self._tracker.scalars(point.values, point.step)
        if point.picture is not None and point.picture.is_file():
            self._tracker.picture("run", point.picture, point.step)
        if self._tracker.run:
            _append(self._folder / _TOLD, json.dumps(point.what) + "\n")

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()


def _append(path: Path, line: str) -> None:
    """Add a line to a file that is there; a link in its place is not followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(line)


def _read(path: Path, inside: Path) -> tuple[str, list[str]]:
    """The tracker's run and what it was told, up to the first damaged line; nothing if there is no file."""
    found: list[str] = []
    try:
        for line in read_text(path, "what was tracked", most=_LARGEST, inside=inside).splitlines():
            value = parse_json(line)
            if not isinstance(value, str):
                break
            found.append(value)
    except UsageError:
        pass
    return (found[0], found[1:]) if found else ("", [])
