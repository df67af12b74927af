"""The deployable bundle: a folder with the model and a card that says what it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.description import read_description
from growpipe.graph_ops.edit.history import read_history
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import check_folder_target, publish_folder
from growpipe.graph_ops.files.documents import json_document, read_json, validated
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.files.reading import hash_file
from growpipe.graph_ops.groups.channel_groups import find_channel_groups

__all__ = ["CARD", "CHECKSUMS", "MODEL", "Card", "bundle_files", "model_card", "write_bundle"]

MODEL = "model.onnx"
CARD = "card.json"
CHECKSUMS = "SHA256SUMS"
_FORMAT_VERSION = 1

Card = dict[str, Any]
"""What a user of the model must know, as JSON values; see `model_card`."""


Verify = Callable[[Path], Mapping[str, Any]]
"""Proves a file that is about to be published: what the card says of the proof, or `CheckFailed`."""

Complete = Callable[[Path, Card], None]
"""Writes further files into the folder that is about to be published, and may add to the card."""


def write_bundle(
    model: ir.Model,
    folder: str | os.PathLike[str],
    verify: Verify | None = None,
    *,
    place: str = MODEL,
    complete: Complete | None = None,
) -> Card:
    """Write the deploy form of a model and its card as ``folder``, whole or not at all; return the card.

    ``SHA256SUMS`` holds the hashes of all files but itself and the card, as ``sha256sum --check`` reads them.

    A bundle that is already there is replaced.

    Args:
        model: the model.
        folder: the folder to write.
        verify: proves the written deploy form before anything is published; what it returns becomes
            ``verification`` of the card. None if the caller does not prove it.
        place: where the model stands in the folder, with ``/`` between folders.
        complete: writes what else belongs into the folder.

    Raises:
        UsageError: ``folder`` is a file, a link or the working folder, or holds files that no bundle wrote;
            or its parent is missing.
        CheckFailed: the deploy form is not sound, or ``verify`` refuses it.
        OSError: the disk is full, read-only or otherwise not writable.
    """
    target = check_folder_target(folder, bundle_files)
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}; make it first")
    form = deploy_form(model)
    with publish_folder(target, bundle_files) as staging:
        stored = staging / place
        stored.parent.mkdir(parents=True, exist_ok=True)
        save_model(form, stored)
        card = model_card(form)
        card["model"] = place
        card["verification"] = {"verified": False, "reason": "not asked for"}
        if verify is not None:
            card["verification"] = dict(verify(stored))
        if complete is not None:
            complete(staging, card)
        files = {
            path.relative_to(staging).as_posix(): path
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        described = {name: _describe_file(path) for name, path in files.items()}
        lines = "".join(f"{file['sha256']}  {name}\n" for name, file in described.items())
        (staging / CHECKSUMS).write_text(lines, encoding="utf-8")
        card["files"] = {**described, CHECKSUMS: _describe_file(staging / CHECKSUMS)}
        (staging / CARD).write_text(json_document(card, indent=2) + "\n", encoding="utf-8")
    return card


class _File(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    sha256: str


class _Card(BaseModel):
    """What must be read of a card again: the files that it describes."""

    model_config = ConfigDict(strict=True, frozen=True)

    files: dict[str, _File]


def bundle_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that `write_bundle` wrote into a folder and that have not been changed since.

    Empty if the folder holds no bundle.
    """
    try:
        card = validated(_Card, read_json(folder / CARD, "the card", inside=folder))
        unchanged = [name for name, file in card.files.items() if _holds(folder, name, file.sha256)]
    except UsageError:
        return ()
    return (CARD, *unchanged)


def _holds(folder: Path, name: str, digest: str) -> bool:
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or not (folder / name).exists():
        return False
    return hash_file(folder / name, inside=folder) == digest


def model_card(model: ir.Model) -> Card:
    """What a user of the model must know, as JSON values.

    Keys: ``inputs`` and ``outputs`` (name, type, shape; a symbolic length is its name, an unknown one null),
    ``opsets``, ``ir_version``, ``parameters``, ``macs`` (per sample), ``growth`` (the history, oldest
    first), ``preprocessing`` and ``test`` (see `growpipe.graph_ops.edit.description`). A bundle adds
    ``model`` (its place), ``verification``, and ``files`` (bytes and SHA-256 of each).
    """
    cost = find_channel_groups(model).cost
    return {
        "format_version": _FORMAT_VERSION,
        "inputs": [_describe(value) for value in model.graph.inputs],
        "outputs": [_describe(value) for value in model.graph.outputs],
        "opsets": dict(model.graph.opset_imports),
        "ir_version": model.ir_version,
        "parameters": cost.parameters(),
        "macs": cost.macs(),
        "growth": [asdict(step) for step in read_history(model)],
        **asdict(read_description(model)),
    }


def _describe(value: ir.Value) -> dict[str, Any]:
    shape = value.shape
    return {
        "name": value.name,
        "type": None if value.dtype is None else value.dtype.name.lower(),
        "shape": None if shape is None else [d if isinstance(d, int) else d.value for d in shape],
    }


def _describe_file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}
