"""Safetensors files that may be anybody's, as NumPy arrays."""

from __future__ import annotations

from safetensors.numpy import load_file

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.files.reading import Place, opened, reading

__all__ = ["MAX_TENSORS", "read_tensors"]

MAX_TENSORS = 1 << 36
"""Bytes of a file; tensors take no more in memory than on disk."""


def read_tensors(path: Place, what: str, *, inside: Place | None = None) -> dict[str, AnyArray]:
    """Read the tensors of a safetensors file by name.

    See `growpipe.graph_ops.files.reading.opened` for ``inside``.

    Raises:
        MissingFile: there is no such file.
        UsageError: it cannot be read, is damaged, or holds a type that NumPy does not have.
    """
    with reading(what, path), opened(path, most=MAX_TENSORS, inside=inside):
        # The library maps the file by its name. It checks the header against the length before it reads.
        return load_file(path)
