"""One interface of three methods, and the trackers behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import opened
from growpipe.suggestions import did_you_mean

__all__ = ["TRACKERS", "Mlflow", "TensorBoard", "Tracker", "Wandb", "open_tracker"]


class Tracker(Protocol):
    """Where curves and pictures go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""

    def close(self) -> None:
        """Write what is not written yet."""


_LARGEST_PICTURE = 2**25
"""Bytes of a PNG file."""


class TensorBoard:
    """Event files, which ``tensorboard --logdir FOLDER`` shows."""

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe") -> None:
        """Write to ``folder / name``; what an earlier run wrote there is hidden.

        Raises:
            MissingEnvironment: tensorboard is not installed.
        """
        require("tensorboard", "tensorboard", "tracking with TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(folder) / name), purge_step=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

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

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe") -> None:
        """Begin a run of the experiment ``growpipe``.

        Raises:
            MissingEnvironment: mlflow is not installed.
        """
        mlflow = require("mlflow", "mlflow", "tracking with MLflow")
        place = Path(folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlflow.db'}"
        self._client: Any = mlflow.MlflowClient(address)
        experiment = self._client.get_experiment_by_name("growpipe")
        if experiment is not None:
            number = experiment.experiment_id
        else:
            own = None if "MLFLOW_TRACKING_URI" in os.environ else (place / "artifacts").as_uri()
            number = self._client.create_experiment("growpipe", artifact_location=own)
        self._run: str = self._client.create_run(number, run_name=name).info.run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Keep a PNG file; MLflow shows the last one."""
        self._client.log_artifact(self._run, str(path), name)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run)


class Wandb:
    """A run of Weights & Biases, online or offline as its own settings say (``WANDB_MODE``)."""

    def __init__(self, folder: str | os.PathLike[str], name: str = "growpipe") -> None:
        """Begin a run of the project ``growpipe``, or of ``WANDB_PROJECT``.

        Raises:
            MissingEnvironment: wandb is not installed.
        """
        self._wandb: Any = require("wandb", "wandb", "tracking with Weights & Biases")
        Path(folder).mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "growpipe")
        self._run: Any = self._wandb.init(project=project, dir=str(folder), name=name)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to every curve of ``values``."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}
"""By the name that people ask for."""


def open_tracker(kind: str, folder: Path, name: str) -> Tracker:
    """The tracker of this kind.

    Args:
        kind: a key of `TRACKERS`.
        folder: where it keeps files.
        name: of the run in it.

    Raises:
        UsageError: there is no such kind.
        MissingEnvironment: its library is not installed.
    """
    if kind not in TRACKERS:
        hint = did_you_mean(kind, TRACKERS) or f"; there are {', '.join(TRACKERS)}"
        raise UsageError(f"there is no tracker {kind!r}{hint}")
    return TRACKERS[kind](folder, name)
