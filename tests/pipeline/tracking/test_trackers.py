"""What trackers write is read back: event files of TensorBoard, data base of MLflow, offline files of W&B."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from growpipe.graph_ops.errors import UsageError
from growpipe.tracking.trackers import open_tracker

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's


def written(kind: str, folder: Path) -> str:
    """Tell a tracker two points and a picture; the run that they went to."""
    picture = folder / "picture.png"
    Image.new("RGB", (4, 3), (255, 0, 0)).save(picture)
    tracker = open_tracker(kind, folder / kind, "mine")
    for step, loss in ((1, 0.5), (3, 0.25)):
        tracker.scalars({"train/loss": loss, "growth/macs": 10 * step}, step)
    tracker.picture("run", picture, 3)
    tracker.close()
    return tracker.run


def gone_on(kind: str, folder: Path, run: str) -> str:
    """Tell one more point, after another process has told some; the run that it went to."""
    tracker = open_tracker(kind, folder / kind, "mine", run)
    tracker.scalars({"train/loss": 0.125}, 4)
    tracker.close()
    return tracker.run


def test_tensorboard_holds_curves_and_picture(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "mine"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (3, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("growth/macs")] == [(1, 10), (3, 30)]
    (image,) = events.Images("run")
    assert (image.step, image.width, image.height) == (3, 4, 3)


@pytest.mark.slow
def test_mlflow_holds_curves_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="the data base of mlflow needs it")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):
        written("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("growpipe")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    number = runs[0].info.run_id
    history = client.get_metric_history(number, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (3, 0.25)]
    assert [file.path for file in client.list_artifacts(number, "run")] == ["run/picture.png"]
    assert runs[0].info.status == "FINISHED"

    assert gone_on("mlflow", tmp_path, number) == number
    assert [point.step for point in client.get_metric_history(number, "train/loss")] == [1, 3, 4]
    assert gone_on("mlflow", tmp_path, "not-there-any-more") not in {run.info.run_id for run in runs}


@pytest.mark.slow
def test_wandb_keeps_curves_and_picture_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = written("wandb", tmp_path)
    (folder,) = (tmp_path / "wandb" / "wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    words = (b"train/loss", b"growth/macs", b"0.25")
    end = time.monotonic() + 30  # its service writes in its own time
    while not all(word in log.read_bytes() for word in words) and time.monotonic() < end:
        time.sleep(0.1)
    assert all(word in log.read_bytes() for word in words)
    assert list(folder.glob("files/media/images/run_*.png"))
    assert gone_on("wandb", tmp_path, run) == run


def test_a_tracker_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no tracker 'tensorbord'; did you mean 'tensorboard'"):
        open_tracker("tensorbord", tmp_path, "mine")

    def absent(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setattr("importlib.import_module", absent)
    from growpipe.graph_ops.errors import MissingEnvironment

    with pytest.raises(
        MissingEnvironment, match=r"needs wandb, which is not installed: pip install '\.\[wandb"
    ):
        open_tracker("wandb", tmp_path, "mine")
