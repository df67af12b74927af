"""Arrays of HDF5 files, read in a process of their own.

The HDF5 library is written for honest files: a damaged one makes it crash, turn in circles, fill the memory,
or read other files of the machine. The process has limits of time and memory, and reads no other file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import opened, reading

__all__ = ["MAX_FILE", "read_numbers"]

MAX_FILE = 256 << 20
"""Bytes of one file."""

_SECONDS = 300.0  # by the clock: a busy machine may take long


def read_numbers(path: Path, names: Sequence[str]) -> list[AnyArray]:
    """The arrays of these names at the root of an HDF5 file.

    Raises:
        UsageError: the file cannot be read, has more than 256 MiB, lacks an array, keeps it in another file,
            or holds something else than numbers; or its arrays take more than 256 MiB.
    """
    with reading("the HDF5 file", path), opened(path, most=MAX_FILE) as file:
        # -P: no folder of ours or of the user's may stand in for a module of Python or of h5py.
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("hdf5_main.py")), *names],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        line, _, content = done.stdout.partition(b"\n")
        if not line:
            raise UsageError("it is damaged: the HDF5 library crashed, or took too much time or memory")
        answer = json.loads(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        arrays, start = [], 0
        for dtype, shape in answer["arrays"]:
            flat = np.frombuffer(content, dtype, math.prod(shape), start)
            start += flat.nbytes
            arrays.append(flat.reshape(shape))
        return arrays
