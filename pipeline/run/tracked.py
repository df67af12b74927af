"""The curves and the picture of a run, for a tracker. Steps are epochs of the grown network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from growpipe.graph_ops.files.documents import parse_json
from growpipe.run.stages.names import FINAL
from growpipe.run.store import METRICS, Run, read_metrics
from growpipe.run.summary import rows_of
from growpipe.tracking.curves import growth_curves
from growpipe.tracking.trackers import Tracker

__all__ = ["track_run"]


def track_run(run: Run, tracker: Tracker) -> None:
    """Tell a tracker what a finished run did, and close it.

    The curves ``growth/…`` have a point at every split: the size of the grown network, and the predicted and
    realised decrease of the loss.

    Args:
        run: the run.
        tracker: gets losses and the metric on the validation set by epoch, the network of every round, and
            the picture of the run.
    """
    rows = {row.name: row for row in rows_of(run)}
    name = run.recipe.quality.name
    step = 0
    for number, part in enumerate(sorted(run.path.glob(f"round-*/train/{METRICS}"))):
        row = rows.get(f"round {number}")
        if row is not None:
            curves = growth_curves(
                row.parameters, row.macs, row.predicted_change, row.realised_change, row.epsilon
            )
            tracker.scalars(curves, step)
        for line in read_metrics(part, inside=run.path):
            epoch = parse_json(line)
            if "train_loss" in epoch:
                step += 1
                tracker.scalars(dict(_epoch(epoch, name)), step)
        if row is not None:
            tracker.scalars({f"test/{name}": row.test_score}, step)
    picture = run.path / FINAL.name / "run.png"
    if picture.is_file():
        tracker.picture("run", picture, step)
    tracker.close()


def _epoch(line: Mapping[str, float], name: str) -> Iterator[tuple[str, float]]:
    yield "train/loss", line["train_loss"]
    yield "train/learning_rate", line["learning_rate"]
    yield "validation/loss", line["validation_loss"]
    if "validation_score" in line and name != "loss":
        yield f"validation/{name}", line["validation_score"]
