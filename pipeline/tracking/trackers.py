"""One interface of three methods, and the trackers behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import opened
from growpipe.suggestions import did_you_mean

__all__ = [
    "TRACKERS",
    "Mlflow",
    "ResumedTracker",
    "TensorBoard",
    "Tracker",
    "TrackerKind",
    "Wandb",
    "open_tracker",
]

TrackerKind = Literal["tensorboard", "mlflow", "wandb"]


class Tracker(Protocol):
    """Where curves and pictures go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""

    def close(self) -> None:
        """Write what is not written yet."""


class ResumedTracker(Tracker, Protocol):
    """A tracker that a later process can go on with.

    Attributes:
        run: names what is written to, for that process. Empty if that process must tell everything again,
            in the place of what is there.
    """

    run: str


_LARGEST_PICTURE = 2**25
"""Bytes of a PNG file."""


class TensorBoard:
    """Event files, which ``tensorboard --logdir FOLDER`` shows."""

    run = ""

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe", run: str = "") -> None:
        """Write to ``folder / name``; what an earlier run wrote there is hidden.

        Raises:
            MissingEnvironment: tensorboard is not installed.
        """
        require("tensorboard", "tensorboard", "tracking with TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(folder) / name), purge_step=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``, at once on the disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        import numpy as np
        from PIL import Image

        with opened(path, most=_LARGEST_PICTURE) as file, Image.open(file) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class Mlflow:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` if that is set, else in a data base in a folder."""

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe", run: str = "") -> None:
        """Begin a run of the experiment ``growpipe``, or go on with ``run`` if that is still there.

        Raises:
            MissingEnvironment: mlflow is not installed.
        """
        mlflow = require("mlflow", "mlflow", "tracking with MLflow")
        place = Path(folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlflow.db'}"
        self._client: Any = mlflow.MlflowClient(address)
        if run and self._goes_on(run, mlflow.MlflowException):
            self.run = run
            return
        experiment = self._client.get_experiment_by_name("growpipe")
        if experiment is not None:
            number = experiment.experiment_id
        else:
            own = None if "MLFLOW_TRACKING_URI" in os.environ else (place / "artifacts").as_uri()
            number = self._client.create_experiment("growpipe", artifact_location=own)
        self.run = str(self._client.create_run(number, run_name=name).info.run_id)

    def _goes_on(self, run: str, absent: type[Exception]) -> bool:
        try:
            self._client.update_run(run, status="RUNNING")
        except absent:
            return False
        return True

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""
        for name, value in values.items():
            self._client.log_metric(self.run, name, value, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Keep a PNG file; MLflow shows the last one."""
        self._client.log_artifact(self.run, str(path), name)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.run)


class Wandb:
    """A run of Weights & Biases, online or offline as its own settings say (``WANDB_MODE``)."""

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe", run: str = "") -> None:
        """Begin a run of the project ``growpipe``, or of ``WANDB_PROJECT``, or go on with ``run``.

        Raises:
            MissingEnvironment: wandb is not installed.
        """
        self._wandb: Any = require("wandb", "wandb", "tracking with Weights & Biases")
        Path(folder).mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "growpipe")
        more = {"id": run, "resume": "allow"} if run else {}
        self._run: Any = self._wandb.init(project=project, dir=str(folder), name=name, **more)
        self.run = str(self._run.id)
        # Its own steps only rise; the size of a network belongs to the step at which its training began.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""
        self._run.log({**values, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        self._run.log({name: self._wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, str, str], ResumedTracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}
"""By the name that people ask for."""


def open_tracker(kind: str, folder: Path, name: str, run: str = "") -> ResumedTracker:
    """The tracker of this kind.

    Args:
        kind: a key of `TRACKERS`.
        folder: where it keeps files.
        name: of the run in it.
        run: what `ResumedTracker.run` was, to go on with it; empty to begin.

    Raises:
        UsageError: there is no such kind.
        MissingEnvironment: its library is not installed.
    """
    if kind not in TRACKERS:
        hint = did_you_mean(kind, TRACKERS) or f"; there are {', '.join(TRACKERS)}"
        raise UsageError(f"there is no tracker {kind!r}{hint}")
    return TRACKERS[kind](folder, name, run)
