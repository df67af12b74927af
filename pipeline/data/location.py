"""Where a data set lies: the recipe's ``data_options.path``, or the folder that GROWPIPE_DATA names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from growpipe.graph_ops.errors import UsageError

__all__ = ["VARIABLE", "locate"]

VARIABLE = "GROWPIPE_DATA"


def locate(
    path: str | None, names: Sequence[str], data_set: str, source: str, installed: Sequence[str] = ()
) -> Path:
    """The file or folder that holds a data set.

    Args:
        path: the recipe's ``data_options.path``, relative to the current folder: the data itself, or a folder
            that holds it under one of ``names``. None looks in the folder that the environment variable
            GROWPIPE_DATA names.
        names: what the data set is called as it is distributed, best first.
        data_set: how to call it in the message.
        source: where to get it, for the message.
        installed: where packages of operating systems put it; looked at last, and only if ``path`` is None.

    Raises:
        UsageError: it is not there; the message says where to get it and where to put it.
    """
    told = path if path is not None else os.environ.get(VARIABLE)
    help_ = (
        f"get {names[0]} from {source} and set {VARIABLE} to the folder it lies in "
        "(or data_options.path in the recipe)"
    )
    place = None if told is None else Path(told).expanduser()
    if place is not None:
        for name in names:
            if (place / name).exists():
                return place / name
    if path is None:
        for folder in map(Path, installed):
            if folder.exists():
                return folder
    if place is None:
        raise UsageError(f"nothing says where {data_set} is: {help_}")
    if path is not None and place.exists():
        return place
    raise UsageError(f"{data_set} is not in {place}: {help_}")
