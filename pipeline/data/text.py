"""Any text, byte by byte: the network predicts every next byte of a window.

Without a text of one's own it is the documentation of Python's own topics and keywords, half a megabyte of
English that every Python brings along (the module `pydoc_data.topics`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.graph_ops.errors import MissingEnvironment, UsageError
from growpipe.graph_ops.files.reading import read_bytes

__all__ = ["loaders", "python_topics"]

MAX_FILE = 64 << 20  # bytes; the targets take eight times as many
EVALUATION_BATCH = 100


def loaders(
    batch_size: int,
    seed: int,
    path: str | None = None,
    length: int = 64,
    held_out: float = 0.05,
    epoch_samples: int | None = None,
) -> Loaders:
    """Windows of a text, each with the bytes that follow one place later.

    The text is cut into windows of ``length`` bytes, which do not overlap. The end of the text is the test
    set, what comes before it the validation set, and everything else is trained on.

    Args:
        batch_size: of the training batches.
        seed: not used: the order comes from torch's generator, which the trainer seeds for every epoch.
        path: a text file in any encoding. None takes Python's own documentation; see `python_topics`.
        length: of a window, in bytes.
        held_out: the share of the text that is the validation set, and as much again the test set.
        epoch_samples: an epoch ends after so many training windows, drawn again each time; None for all.

    Returns:
        Batches of texts int64 [N, length] and their next bytes int64 [N, length], 0 to 255.

    Raises:
        UsageError: the file cannot be read, has more than 64 MiB, or is too short to hold out windows.
    """
    del seed
    if not 0.0 < held_out < 0.5 or length < 1:
        raise UsageError(
            f"held_out is above 0 and below 0.5, and length at least 1, not {held_out} and {length}"
        )
    if path is None:
        where, content = "Python's documentation", python_topics().encode()
    else:
        where, content = path, read_bytes(Path(path).expanduser(), "the text", most=MAX_FILE)
    count = (len(content) - 1) // length
    aside = round(held_out * count)
    if aside < 1 or count - 2 * aside < 1:
        raise UsageError(
            f"{where} has {max(0, count)} windows of {length} bytes, too few to hold out {held_out:.0%} "
            "twice; give a longer text"
        )
    numbers = np.frombuffer(content, np.uint8)
    text, following = (
        torch.from_numpy(numbers[start : start + count * length].reshape(count, length).copy())
        for start in (0, 1)
    )

    def part(begin: int, end: int, size: int, *, learn: bool = False) -> Batches:
        return Batches(
            text[begin:end],
            following[begin:end].long(),
            size,
            shuffle=learn,
            transform=Tensor.long,
            draw=epoch_samples if learn else None,
        )

    first, second = count - 2 * aside, count - aside
    return Loaders(
        part(0, first, batch_size, learn=True),
        part(first, second, EVALUATION_BATCH),
        part(second, count, EVALUATION_BATCH),
    )


def python_topics() -> str:
    """The documentation of Python's topics and keywords, in the order of their names.

    It is part of Python's own library and differs from one version of Python to the next.

    Raises:
        MissingEnvironment: this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise MissingEnvironment(
            "this Python comes without its documentation, the default text; give data_options.path in the "
            "recipe"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))
