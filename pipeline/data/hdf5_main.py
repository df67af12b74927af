"""A process that reads arrays of numbers from one HDF5 file for `growpipe.data.hdf5`.

Run as a file: the HDF5 file is standard input, the names of the arrays are the arguments. The answer is one
line of JSON, ``{"arrays": [[type, shape], ...]}`` or ``{"error": ...}``, then the bytes of the arrays.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from typing import Any

MOST = 256 << 20  # bytes of all arrays; a file of ModelNet40 has 48 MiB
MEMORY = 1 << 30  # bytes of address space
SECONDS = 30  # of processor time; a file of ModelNet40 takes one


def limit() -> None:
    """The HDF5 library can be made to fill the memory, or to turn in circles, before it gives a size."""
    for kind, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def chosen(file: Any, names: list[str]) -> list[Any]:
    """The data sets of these names, if what they take is known and in this file alone."""
    import h5py

    found = []
    for name in names:
        # A link, a virtual data set and external storage all read other files of the machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"it keeps {name!r} in another file, or has none")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"its {name!r} is not an array")
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"it keeps {name!r} in another file")
        if dataset.shape is None or dataset.dtype.kind not in "fiu":
            raise ValueError(f"its {name!r} holds {dataset.dtype}, not numbers")
        found.append(dataset)
    size = sum(math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in found)
    if size > MOST:
        raise ValueError(f"its arrays take {size:,} bytes; at most {MOST:,} are read")
    return found


def main(names: list[str]) -> None:
    limit()
    import h5py
    import numpy as np

    try:
        with h5py.File("/dev/stdin", "r") as file:
            arrays = [np.asarray(dataset[()]) for dataset in chosen(file, names)]
        answer: dict[str, Any] = {"arrays": [[array.dtype.str, array.shape] for array in arrays]}
    except Exception as error:
        arrays, answer = [], {"error": str(error) or type(error).__name__}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    for array in arrays:
        sys.stdout.buffer.write(array.reshape(-1).view(np.uint8).data)
    sys.stdout.flush()
    os._exit(0)  # the library's own clean-up trips over damaged files


if __name__ == "__main__":
    main(sys.argv[1:])
