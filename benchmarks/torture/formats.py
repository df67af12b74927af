"""The formats that growpipe reads, other than ONNX: a well-formed input, its mutations, and who reads it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.torture.mutations import (
    mutate_bytes,
    mutate_json,
    mutate_npy,
    mutate_safetensors,
    mutate_tar,
    mutate_text,
    mutate_zip,
)

if TYPE_CHECKING:
    from growpipe.run.facts import TrainFacts
    from growpipe.run.store import Run

__all__ = ["FORMATS", "METRICS", "Format", "made_run", "seed_files", "trained"]

Mutate = Callable[[bytes, bytes, Random], bytes]


@dataclass(frozen=True)
class Format:
    """One kind of input.

    Attributes:
        write: writes a well-formed input into a folder.
        mutations: by file of that input what may happen to it.
        read: reads the input as growpipe does.
        share: how often it comes, relative to the others; a slow one comes less often.
    """

    write: Callable[[Path], object]
    mutations: Mapping[str, tuple[Mutate, ...]]
    read: Callable[[Path], object]
    share: float = 1.0


RECIPE = """name = "mine"
model = "net.py:build"
data = "data.py:loaders"
[data_options]
path = "a"
[train]
learning_rate = 0.1
epochs = 3
[growth]
rounds = 2
c = 1.5
freeze = ["a", "b"]
[growth.max_widths]
conv = 12
[budget]
parameters = 1000
[budget.table]
limit = 5.0
[[budget.table.terms]]
groups = ["conv"]
widths = [1, 2]
costs = [1.0, 2.0]
"""

METRICS = '{"validation_loss": 1.0}\n{"validation_loss": 0.5}\n'

POLICY = """version = 1
skip = ["latency"]
[levels]
"safety/leaks" = "warning"
[[waivers]]
check = "cost/macs"
reason = "for now"
expires = 2030-01-01
[limits]
seconds = 10.0
[numerics]
batch_sizes = [1, 3]
[numerics.dims]
length = 7
[latency]
max_ratio = 1.05
"""


def _plan(folder: Path) -> None:
    import onnx_ir as ir

    from growpipe.graph_ops.files.load_save import save_model
    from growpipe.graph_ops.groups.channel_groups import find_channel_groups
    from growpipe.graph_ops.plan.data_free import random_plan

    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 18]> tiny (float[n,2] x) => (float[n,1] y) '
        "<float[2,3] a = {1, 2, 3, 4, 5, 6}, float[3,1] b = {1, 2, 3}> "
        "{ h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }"
    )
    save_model(model, folder / "model.onnx")
    random_plan(find_channel_groups(model), model, growth=1.0, epsilon=0.1, seed=0).save(folder / "plan")


def _grow(folder: Path) -> None:
    from growpipe.graph_ops.edit.grow_graph import grow_graph
    from growpipe.graph_ops.files.load_save import load_model, save_model
    from growpipe.graph_ops.plan.split_plan import SplitPlan

    plan = SplitPlan.load(folder / "plan")
    save_model(grow_graph(load_model(folder / "model.onnx"), plan), folder / "grown.onnx")


def _policy(folder: Path) -> None:
    from growpipe.checks.policy import load_policy

    load_policy(folder / "policy.toml", ["latency.max_ratio=1.1"])


def _project(folder: Path) -> None:
    from growpipe.checks.policy import load_policy

    load_policy(folder / "pyproject.toml")


def _project_text() -> str:
    text = POLICY.replace("[[waivers]]", "[[tool.growpipe.check.waivers]]")
    for table in ("levels", "limits", "numerics.dims", "numerics", "latency"):
        text = text.replace(f"[{table}]", f"[tool.growpipe.check.{table}]")
    return f"[tool.growpipe.check]\n{text}"


def _recipe(folder: Path) -> None:
    from growpipe.run.recipe import load_recipe

    load_recipe(str(folder / "recipe.toml"))


def _baseline(folder: Path) -> None:
    from growpipe.checks.baseline import load_baseline

    load_baseline(folder / "baseline.json").value("cost/macs")


def _card(folder: Path) -> None:
    from growpipe.graph_ops.edit.bundle import bundle_files

    bundle_files(folder)


def trained() -> TrainFacts:
    """What a stage of training reports."""
    from growpipe.run.facts import TrainFacts

    return TrainFacts(epochs=2, samples=100, train_loss=1.0, validation_loss=0.5, validation_score=0.9)


def made_run(folder: Path) -> Run:
    """A run directory with a round that is trained, exported, checked and analysed."""
    from growpipe.quality import Score
    from growpipe.run.facts import AnalyseFacts, CheckFacts, ExportFacts, NetworkSize
    from growpipe.run.recipe import Recipe
    from growpipe.run.stages import names
    from growpipe.run.store import Run

    recipe = Recipe(name="mine", model="net.py:build", data="data.py:loaders")
    run = Run.create(folder, recipe, None, seed=3, device="cpu")
    score = Score(0.9, 0.85, 0.95, 0.03, 100, recipe.quality)
    facts = {
        names.TRAIN: trained(),
        names.EXPORT: ExportFacts(NetworkSize({"a": 3, "b": 4}, 100, 1000), 1e-7),
        names.ANALYSE: AnalyseFacts(epsilon=0.1, predicted_change=-0.1, realised_change=-0.05),
        names.CHECK: CheckFacts(score),
    }
    for stage, told in facts.items():

        def produce(place: Path, told: Any = told) -> Any:
            (place / "metrics.jsonl").write_text(METRICS)
            return told

        run.stage(names.round_stage(0, stage), produce, config={}, inputs={})
    return run


def _run_in(folder: Path) -> None:
    made_run(folder / "run")


def _report(folder: Path) -> None:
    from growpipe.cli import cli

    cli.main(["report", str(folder / "run")], standalone_mode=False)
    cli.main(["report", str(folder / "run"), "--html", str(folder / "page.html")], standalone_mode=False)


def _locked(folder: Path) -> None:
    from growpipe.run.stages import names
    from growpipe.run.store import Run

    run = Run.open(folder / "run")
    with run.locked():
        train = names.round_stage(0, names.TRAIN)
        run.stage(train, lambda place: trained(), config={}, inputs={})


def _npz(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.zeros((4, 3), np.float32), targets=np.zeros(4, np.float32))


def _dataset(folder: Path) -> None:
    from growpipe.checks.measure.inputs import load_dataset

    load_dataset(folder / "data.npz")


def _image(form: str, size: tuple[int, int] = (9, 7)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _decode(folder: Path) -> None:
    from growpipe.data.images import decode

    for file in sorted(folder.iterdir()):
        decode(file.read_bytes(), str(file))


def _images(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cat/1.png", "cat/2.png", "dog/1.jpg"):
            archive.writestr(name, _image("JPEG" if name.endswith("jpg") else "PNG"))


def _read_images(folder: Path) -> None:
    from growpipe.data.images import open_images, read_images

    read_images(open_images(folder / "images.zip"))


def _cifar(folder: Path) -> None:
    record = b"".join(bytes([n % 10]) + bytes([n]) * 3072 for n in range(20))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(record)
            archive.addfile(entry, io.BytesIO(record))
    (folder / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(buffer.getvalue(), 1))


def _within_gzip(mutate: Mutate) -> Mutate:
    return lambda content, other, random: gzip.compress(mutate(gzip.decompress(content), other, random), 1)


def _read_cifar(folder: Path) -> None:
    from growpipe.data.cifar import cifar10

    cifar10(10, 0, str(folder))


def _idx(folder: Path) -> None:
    for part, samples in (("train", 12), ("t10k", 4)):
        shapes = {"images-idx3": (samples, 3, 2), "labels-idx1": (samples,)}
        for kind, shape in shapes.items():
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            entries = (np.arange(math.prod(shape)) % 4).astype(np.uint8).tobytes()
            name = f"{part}-{kind}-ubyte"
            if part == "train":
                (folder / name).write_bytes(header + entries)
            else:
                (folder / f"{name}.gz").write_bytes(gzip.compress(header + entries))


def _read_idx(folder: Path) -> None:
    from growpipe.data.idx import images

    for part in vars(images(2, 0, str(folder))).values():
        list(part)


def _read_text(folder: Path) -> None:
    from growpipe.data.text import loaders

    list(loaders(2, 0, str(folder / "a.txt"), length=4, held_out=0.2).train)


def _hdf5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "ply_data_train0.h5", "w") as file:
        file.create_dataset(
            "data", data=np.zeros((4, 8, 3), np.float32), chunks=(2, 8, 3), compression="gzip"
        )
        file["label"] = np.zeros((4, 1), np.uint8)


def _read_hdf5(folder: Path) -> None:
    from growpipe.data.modelnet import read_hdf5

    read_hdf5(folder, "train", 8)


def _mesh(folder: Path) -> None:
    lines = ["OFF", "5 2 0", "0 0 0", "2 0 0", "2 2 0", "0 2 0", "0 0 2", "4 0 1 2 3", "3 0 1 4 255 0 0", ""]
    for part in ("train", "test"):
        (folder / "chair" / part).mkdir(parents=True)
        (folder / "chair" / part / "a.off").write_text("\n".join(lines))


def _read_mesh(folder: Path) -> None:
    from growpipe.data.modelnet import read_meshes

    read_meshes(folder, "train", 16, None)


def _network() -> object:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def _checkpoint(folder: Path) -> None:
    import torch

    from growpipe.training.checkpoint import Checkpoint, Epoch

    model = _network()
    optimizer = torch.optim.AdamW(model.parameters())  # type: ignore[attr-defined]
    model(torch.zeros(5, 4)).sum().backward()  # type: ignore[operator]
    optimizer.step()
    history = [Epoch("round-00/train", 1, 0.1, 1.0, 1.0, 0.5, samples=5)]
    Checkpoint(folder / "p", "key", writes=True).save(model, optimizer, history)  # type: ignore[arg-type]


def _resume(folder: Path) -> None:
    import torch

    from growpipe.training.checkpoint import Checkpoint

    model = _network()
    optimizer = torch.optim.AdamW(model.parameters())  # type: ignore[attr-defined]
    Checkpoint(folder / "p", "key", writes=True).load(model, optimizer)  # type: ignore[arg-type]


def _load_state(folder: Path) -> None:
    import torch

    from growpipe.torch_module.grow_module import load_grown
    from growpipe.torch_module.optimizer_state import load_optimizer

    model = load_grown(_network(), folder / "p" / "weights.safetensors")  # type: ignore[type-var]
    optimizer = torch.optim.AdamW(model.parameters())  # type: ignore[attr-defined]
    load_optimizer(optimizer, model, folder / "p" / "optimizer.safetensors")  # type: ignore[arg-type]


def _text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def _json(name: str, document: object) -> Callable[[Path], object]:
    return _text(name, json.dumps(document, indent=1))


_BASELINE = {
    "baseline_version": "1.0",
    "model": "model.onnx",
    "sha256": "0" * 64,
    "device": "cpu",
    "measured": {"cost/macs": {"value": 100}, "latency/ratio": {"value": 1.0, "low": 0.9}},
}
_CARD = {
    "format_version": 1,
    "files": {"card.json": {"bytes": 3, "sha256": "0" * 64}, "a": {"bytes": 1, "sha256": ""}},
}

_DOCUMENT = (mutate_json, mutate_json, mutate_text, mutate_bytes)
_TOML = (mutate_text, mutate_text, mutate_bytes)
_TENSORS = (mutate_safetensors, mutate_bytes)
_MANIFESTS = {
    f"run/round-00/{stage}/manifest.json": _DOCUMENT for stage in ("train", "export", "check", "analyse")
}


def _npy_inside(content: bytes, other: bytes, random: Random) -> bytes:
    return mutate_zip(content, other, random, mutate_npy)


FORMATS: dict[str, Format] = {
    "plan": Format(_plan, {"plan/plan.json": _DOCUMENT, "plan/plan.safetensors": _TENSORS}, _grow),
    "policy": Format(_text("policy.toml", POLICY), {"policy.toml": _TOML}, _policy),
    "pyproject": Format(_text("pyproject.toml", _project_text()), {"pyproject.toml": _TOML}, _project),
    "recipe": Format(_text("recipe.toml", RECIPE), {"recipe.toml": _TOML}, _recipe),
    "baseline": Format(_json("baseline.json", _BASELINE), {"baseline.json": _DOCUMENT}, _baseline),
    "card": Format(_json("card.json", _CARD), {"card.json": _DOCUMENT}, _card),
    "run, reported": Format(
        lambda folder: made_run(folder / "run"), {"run/run.json": _DOCUMENT, **_MANIFESTS}, _report
    ),
    "run, resumed": Format(
        _run_in, {**_MANIFESTS, "run/round-00/train/metrics.jsonl": (mutate_text, mutate_bytes)}, _locked
    ),
    "npz": Format(_npz, {"data.npz": (mutate_bytes, mutate_zip, _npy_inside)}, _dataset),
    "image": Format(
        lambda folder: (folder / "a.png").write_bytes(_image("PNG")),
        {"a.png": (mutate_bytes,)},
        _decode,
    ),
    "JPEG": Format(
        lambda folder: (folder / "a.jpg").write_bytes(_image("JPEG")),
        {"a.jpg": (mutate_bytes,)},
        _decode,
    ),
    "zip of images": Format(_images, {"images.zip": (mutate_bytes, mutate_zip)}, _read_images),
    "CIFAR archive": Format(
        _cifar,
        {"cifar-10-binary.tar.gz": (mutate_bytes, _within_gzip(mutate_tar), _within_gzip(mutate_bytes))},
        _read_cifar,
        share=0.3,
    ),
    "idx": Format(
        _idx,
        {
            "train-images-idx3-ubyte": (mutate_bytes,),
            "train-labels-idx1-ubyte": (mutate_bytes,),
            "t10k-images-idx3-ubyte.gz": (mutate_bytes, _within_gzip(mutate_bytes)),
            "t10k-labels-idx1-ubyte.gz": (mutate_bytes, _within_gzip(mutate_bytes)),
        },
        _read_idx,
    ),
    "text": Format(_text("a.txt", "Words, and more words.\n" * 3), {"a.txt": (mutate_bytes,)}, _read_text),
    "HDF5": Format(_hdf5, {"ply_data_train0.h5": (mutate_bytes,)}, _read_hdf5, share=0.04),
    "mesh": Format(_mesh, {"chair/train/a.off": (mutate_text, mutate_bytes)}, _read_mesh),
    "weights": Format(
        _checkpoint, {"p/weights.safetensors": _TENSORS, "p/optimizer.safetensors": _TENSORS}, _load_state
    ),
    "checkpoint": Format(
        _checkpoint,
        {
            "p/progress.json": _DOCUMENT,
            "p/weights.safetensors": _TENSORS,
            "p/optimizer.safetensors": _TENSORS,
        },
        _resume,
        share=0.3,
    ),
}


@cache
def seed_files(name: str) -> dict[str, bytes]:
    """The files of the well-formed input of a format. It is read once, so that its imports are done."""
    with tempfile.TemporaryDirectory() as folder:
        FORMATS[name].write(Path(folder))
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
        with contextlib.redirect_stdout(io.StringIO()):
            FORMATS[name].read(Path(folder))
        return files
