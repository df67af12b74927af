"""Test vectors: inputs with the outputs that the model gives, for whoever runs it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from growpipe.checks.measure.compare import run_model
from growpipe.checks.measure.inputs import Dataset
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError

__all__ = ["MOST_VECTORS", "VECTORS", "write_vectors"]

VECTORS = "test-vectors.npz"
MOST_VECTORS = 32


def write_vectors(model: Path, data: Dataset, names: tuple[str, ...], target: Path) -> Mapping[str, AnyArray]:
    """Write samples and what onnxruntime answers, as ``input/NAME`` and ``output/NAME``.

    At most `MOST_VECTORS` samples are taken, the first ones.

    Args:
        model: the model.
        data: the samples.
        names: of the model's inputs.
        target: the ``.npz`` file to write.

    Returns:
        The arrays that were written.

    Raises:
        UsageError: an input is missing.
        CheckFailed: the model does not run on the samples.
    """
    missing = [name for name in names if name not in data.inputs]
    if missing:
        raise UsageError(
            f"{data.path} has no array {missing[0]!r}; the model's inputs are {', '.join(names)}"
        )
    inputs = {name: data.inputs[name][:MOST_VECTORS] for name in names}
    outputs = run_model(model, inputs)
    arrays = {
        **{f"input/{name}": array for name, array in inputs.items()},
        **{f"output/{name}": array for name, array in outputs.items()},
    }
    np.savez(target, **arrays)  # type: ignore[arg-type]  # numpy's keywords are names
    return arrays
