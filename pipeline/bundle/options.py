"""What a bundle is to hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from growpipe.checks.measure.inputs import Dataset
from growpipe.graph_ops.errors import UsageError

__all__ = ["LAYOUTS", "BundleOptions", "Layout"]

Layout = Literal["plain", "huggingface", "triton"]
LAYOUTS: tuple[Layout, ...] = ("plain", "huggingface", "triton")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, eq=False)
class BundleOptions:
    """What a bundle is to hold.

    Attributes:
        name: of the model, e.g. for Triton.
        layout: where the files stand: ``plain``; ``huggingface``, as the Hugging Face hub and transformers.js
            look for them; ``triton``, a model repository of the Triton server.
        labels: the names of the classes, in the order of the outputs.
        vectors: inputs whose outputs ship with the model; with targets, variants are judged on them.
        half: whether a variant in float16 ships too.
        calibration: inputs that settle the ranges of a variant in int8; None for no such variant.
        licence: an SPDX identifier; None if it is not known.
        task: what the model does, in the hub's words, e.g. ``image-classification``; None if it is not known.

    Raises:
        UsageError: the name cannot be that of a folder, or the labels are not distinct lines.
    """

    name: str = "model"
    layout: Layout = "plain"
    labels: tuple[str, ...] = ()
    vectors: Dataset | None = None
    half: bool = False
    calibration: Dataset | None = None
    licence: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is not a name for a model: letters, digits, dots, dashes, underscores"
            )
        for what, word in (("licence", self.licence), ("task", self.task)):
            if word is not None and not _NAME.fullmatch(word):
                raise UsageError(f"{word!r} is not a {what}: one word of letters, digits, dots and dashes")
        if any(not label.strip() for label in self.labels) or len(set(self.labels)) != len(self.labels):
            raise UsageError("the labels are one name per line, each once and none empty")

    @property
    def place(self) -> str:
        """Where the model stands in the bundle."""
        return self.place_of("")

    def place_of(self, variant: str) -> str:
        """Where a variant stands: ``""`` for the model itself, ``fp16`` or ``int8``."""
        suffix = f"_{variant}" if variant else ""
        if self.layout == "huggingface":
            return f"onnx/model{suffix}.onnx"
        if self.layout == "triton":
            return f"{self.name}{suffix}/1/model.onnx"
        return f"model{suffix}.onnx"
