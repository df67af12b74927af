"""Everything of a bundle but the model and its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from growpipe.bundle.bom import BOM, bill_of_materials
from growpipe.bundle.options import BundleOptions
from growpipe.bundle.readme import readme, verify_script
from growpipe.bundle.triton import triton_config
from growpipe.bundle.variants import Variant, judged, write_half, write_int8
from growpipe.bundle.vectors import VECTORS, write_vectors
from growpipe.graph_ops.edit.bundle import Card
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import json_document
from growpipe.graph_ops.files.reading import hash_file

__all__ = ["LABELS", "completed"]

LABELS = "labels.txt"


def completed(options: BundleOptions) -> Callable[[Path, Card], None]:
    """What writes the rest of a bundle, for `growpipe.graph_ops.edit.bundle.write_bundle`.

    Args:
        options: what the bundle is to hold.
    """

    def complete(folder: Path, card: Card) -> None:
        _match_labels(options.labels, card)
        model = folder / options.place
        variants = _variants(options, folder, model)
        card["variants"] = [asdict(variant) for variant in variants]
        card["labels"] = list(options.labels)
        if options.labels:
            _write(folder / LABELS, "".join(f"{label}\n" for label in options.labels))
        if options.vectors is not None:
            names = tuple(value["name"] for value in card["inputs"])
            write_vectors(model, options.vectors, names, folder / VECTORS)
            _write(folder / "verify.py", verify_script(options.place))
        if options.layout == "triton":
            for kind in ("", *(variant.kind for variant in variants)):
                _write_triton(options, folder, card, kind)
        files = [options.place, *(variant.file for variant in variants)]
        hashes = {name: hash_file(folder / name) for name in files}
        bom = bill_of_materials(options, card, hashes, variants, metadata.version("growpipe"))
        _write(folder / BOM, json_document(bom, indent=2) + "\n")
        _write(folder / "README.md", readme(options, card, variants, vectors=options.vectors is not None))

    return complete


def _match_labels(labels: tuple[str, ...], card: Card) -> None:
    """Refuse labels that cannot be those of the first output, whose first axis is the batch.

    Raises:
        UsageError: no axis has, or may have, as many channels as there are labels.
    """
    output = card["outputs"][0]
    shape = output["shape"]
    if not labels or shape is None:
        return
    if not any(not isinstance(length, int) or length == len(labels) for length in shape[1:]):
        raise UsageError(
            f"there are {len(labels)} labels, but the first output, {output['name']!r}, is {shape}; "
            "give one label per class, in the order of the classes"
        )


def _variants(options: BundleOptions, folder: Path, model: Path) -> list[Variant]:
    """Write the variants that are asked for, and judge them."""
    kinds = (["fp16"] if options.half else []) + (["int8"] if options.calibration is not None else [])
    found = []
    for kind in kinds:
        place = options.place_of(kind)
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "fp16":
            write_half(model, target)
        else:
            assert options.calibration is not None
            write_int8(model, target, options.calibration)
        found.append(judged(kind, model, target, place, options.vectors or options.calibration))
    return found


def _write_triton(options: BundleOptions, folder: Path, card: Card, kind: str) -> None:
    place = folder / Path(options.place_of(kind)).parts[0]
    labels = LABELS if options.labels else None
    if labels is not None:
        _write(place / LABELS, "".join(f"{label}\n" for label in options.labels))
    _write(place / "config.pbtxt", triton_config(place.name, card, labels))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
