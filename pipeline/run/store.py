"""The run directory: stages that are there whole or not at all, and are done again only when they must be.

    DIR/run.json                    recipe, seed, device
    DIR/metrics.jsonl               one line per epoch and event, of all published stages in order
    DIR/round-00/train/manifest.json …
    DIR/control/train/, DIR/final/

A stage's manifest holds its key: a hash of the code, the library versions, the part of the configuration it
reads and the hashes of the files it reads. A stage whose key is unchanged and whose files are whole is
skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from growpipe.environment import code_version, library_versions
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import STAGING, publish_folder, sweep, write_text
from growpipe.graph_ops.files.documents import parse_json, read_json, validated
from growpipe.graph_ops.files.reading import MissingFile, hash_file, one_line, read_text, reading
from growpipe.parallel.processes import ALONE, Processes
from growpipe.progress import activity
from growpipe.run.locate import RUN_FILE, require_run
from growpipe.run.lock import LOCK_FILE, hold
from growpipe.run.recipe import Recipe, parse_recipe
from growpipe.validation import Section

if TYPE_CHECKING:
    from growpipe.training.checkpoint import Epoch

__all__ = ["Observer", "PublishedFile", "Run", "Stage", "StageRecord", "read_metrics"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
MAX_METRICS = 64 << 20  # bytes; an epoch takes about 200


class _RunDocument(Section):
    format_version: int
    recipe: dict[str, Any]
    recipe_folder: str | None
    seed: int = Field(ge=0)
    device: str


class _Manifest(Section):
    model_config = ConfigDict(extra="ignore")

    key: str
    outputs: dict[str, str]
    facts: dict[str, Any]


Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Stage(Generic[Facts]):
    """A stage of a run, done or not.

    Attributes:
        name: e.g. ``round-00/train``.
        facts: the type of what it reports of itself, a dataclass.
    """

    name: str
    facts: type[Facts]


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published stage.

    Attributes:
        name: e.g. ``round-00/train/weights.safetensors``.
        path: where the file is.
        digest: its SHA-256.
    """

    name: str
    path: Path
    digest: str

    def as_input(self) -> dict[str, str]:
        """The hash by name, as an input of another stage."""
        return {self.name: self.digest}


@dataclass(frozen=True)
class StageRecord(Generic[Facts]):
    """A published stage.

    Attributes:
        name: e.g. ``round-00/train``.
        folder: where its files are.
        outputs: SHA-256 by file name, relative to the folder.
        facts: what the stage reported of itself.
        skipped: the stage was there already.
        key: changes if what the stage depends on does.
    """

    name: str
    folder: Path
    outputs: Mapping[str, str]
    facts: Facts
    skipped: bool = False
    key: str = ""

    def file(self, name: str) -> PublishedFile:
        """One of its files."""
        return PublishedFile(f"{self.name}/{name}", self.folder / name, self.outputs[name])

    def inputs(self, *files: str) -> dict[str, str]:
        """The hashes of these files, as inputs of another stage."""
        return {f"{self.name}/{file}": self.outputs[file] for file in files}


class Observer(Protocol):
    """Is told what a run does while it does it."""

    def epochs(self, stage: str, history: Sequence[Epoch]) -> None:
        """A stage has been trained for so many epochs, of which some may be known already."""

    def done(self, record: StageRecord[Any]) -> None:
        """A stage is published, or was. Stages come in order, in every call that goes on with a run."""


@dataclass(frozen=True)
class Run:
    """An open run directory.

    Attributes:
        path: the directory.
        recipe: what is run.
        folder: where the recipe's ``file.py:name`` references start; None for a shipped recipe.
        seed: of everything random.
        device: ``cpu`` or ``cuda``, resolved.
        peers: the processes that work on it together. The first alone writes into the directory; all must
            see the same file system.
        observers: are told of epochs and stages.
    """

    path: Path
    recipe: Recipe
    folder: Path | None
    seed: int
    device: str
    peers: Processes = ALONE
    observers: tuple[Observer, ...] = ()

    @staticmethod
    def create(
        path: Path,
        recipe: Recipe,
        folder: Path | None,
        *,
        seed: int,
        device: str,
        peers: Processes = ALONE,
    ) -> Run:
        """Open ``path`` for this recipe, making it if need be.

        Raises:
            UsageError: ``path`` is a file, a folder of something else, a run of another recipe, or a run that
                another process works on.
        """
        run = Run(path, recipe, folder, seed, device, peers)
        if peers.rank:
            peers.broadcast(None)  # the first has made it
            return run
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; --out names a directory")
        if (path / RUN_FILE).exists():
            other = Run.open(path)
            for what in ("name", "model", "data"):
                mine, theirs = getattr(recipe, what), getattr(other.recipe, what)
                if mine != theirs:
                    raise UsageError(
                        f"{path} holds a run of another recipe ({what} is {theirs!r} there, {mine!r} here); "
                        "choose another --out"
                    )
        elif path.exists() and any(_foreign(entry.name) for entry in path.iterdir()):
            raise UsageError(f"{path} is not empty and holds no run; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        document = {
            "format_version": FORMAT_VERSION,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_folder": None if folder is None else os.path.relpath(folder.resolve(), path.resolve()),
            "seed": seed,
            "device": device,
        }
        with run.locked():
            write_text(path / RUN_FILE, json.dumps(document, indent=1) + "\n")
        peers.broadcast(None)
        return run

    @staticmethod
    def open(path: Path, peers: Processes = ALONE) -> Run:
        """Open a run directory that is there.

        Raises:
            UsageError: there is none, or its ``run.json`` is damaged.
        """
        require_run(path)
        file = path / RUN_FILE
        with reading("the run's record", file):
            document = read_json(file, "the run's record", inside=path)
            version = document.get("format_version") if isinstance(document, dict) else None
            if version != FORMAT_VERSION:
                raise UsageError(f"it has format version {version!r}; this is {FORMAT_VERSION}")
            record = validated(_RunDocument, document)
        recipe = parse_recipe(record.recipe, f"in {file}")
        folder = None if record.recipe_folder is None else path / record.recipe_folder
        return Run(path, recipe, folder, record.seed, record.device, peers)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, for all processes; leftovers of a killed one are removed.

        Raises:
            UsageError: another process holds it.
        """
        if self.peers.rank:
            yield
            return
        with hold(self.path):
            for parent in sorted({leftover.parent for leftover in self.path.rglob(f"{STAGING}*")}):
                if parent.is_dir():  # not itself in a folder that has just been swept
                    sweep(parent)
            self._gather_metrics()
            yield

    def published(self, stage: Stage[Facts]) -> StageRecord[Facts] | None:
        """The stage as it was published, whatever its key; None if there is none.

        Raises:
            UsageError: its manifest is damaged, or was written by another version of growpipe.
        """
        try:
            manifest = self._manifest(stage.name)
            facts = _facts(stage, manifest)
        except MissingFile:
            return None
        except UsageError as error:
            raise UsageError(f"{error}; remove {self.path / stage.name}") from None
        return StageRecord(stage.name, self.path / stage.name, manifest.outputs, facts)

    def _manifest(self, name: str) -> _Manifest:
        file = self.path / name / MANIFEST
        with reading("the manifest", file):
            return validated(_Manifest, read_json(file, "the manifest", inside=self.path))

    def stage(
        self,
        stage: Stage[Facts],
        produce: Callable[[Path], Facts],
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        everywhere: bool = False,
    ) -> StageRecord[Facts]:
        """Do a stage, or find it done.

        Args:
            stage: which one.
            produce: writes the stage's files into the folder it is given and returns its facts.
            config: the part of the configuration that the stage reads.
            inputs: SHA-256 of every file that the stage reads.
            everywhere: all processes produce, together; what the first writes is kept. Otherwise the others
                wait for it.

        Returns:
            The record; ``skipped`` if nothing had to be done.

        Raises:
            CheckFailed: the processes do not agree on the key.
        """
        name = stage.name
        described = {
            "stage": name,
            "code": code_version(),
            "libraries": library_versions(),
            "config": dict(config),
            "inputs": dict(sorted(inputs.items())),
        }
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.peers.agree(f"what {name} depends on (code, libraries, recipe and files)", key)
        folder = self.path / name
        done = self.peers.broadcast(None if self.peers.rank else self._finished(stage, key))
        if done is not None:
            return self._told(done)
        if self.peers.rank:
            if everywhere:
                with tempfile.TemporaryDirectory() as scratch:
                    produce(Path(scratch))
            record: StageRecord[Facts] | None = self.peers.broadcast(None)
            assert record is not None  # what process 0 has published
            return record
        folder.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(folder) as staging:
            started = time.monotonic()
            with activity(name):
                facts = produce(staging)
            outputs = {
                path.relative_to(staging).as_posix(): hash_file(path)
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            }
            manifest = {
                "key": key,
                **described,
                "outputs": outputs,
                "facts": TypeAdapter(stage.facts).dump_python(facts, mode="json"),
                "seconds": round(time.monotonic() - started, 3),
            }
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._gather_metrics()
        return self._told(self.peers.broadcast(StageRecord(name, folder, outputs, facts, key=key)))

    def tell_epochs(self, stage: str, history: Sequence[Epoch]) -> None:
        """Tell the observers how a stage that trains gets on."""
        for observer in self.observers:
            observer.epochs(stage, history)

    def _told(self, record: StageRecord[Facts]) -> StageRecord[Facts]:
        for observer in self.observers:
            observer.done(record)
        return record

    def _finished(self, stage: Stage[Facts], key: str) -> StageRecord[Facts] | None:
        folder = self.path / stage.name
        try:
            manifest = self._manifest(stage.name)
            if manifest.key != key:
                return None
            for file, digest in manifest.outputs.items():
                if hash_file(folder / file, inside=self.path) != digest:
                    return None
            facts = _facts(stage, manifest)
        except UsageError:
            return None  # whatever is damaged is made again
        return StageRecord(stage.name, folder, manifest.outputs, facts, skipped=True, key=key)

    def _gather_metrics(self) -> None:
        """Write the metrics of all published stages into one file, unless it holds them already."""
        lines: list[str] = []
        for part in sorted(self.path.glob(f"*/*/{METRICS}")):
            lines += read_metrics(part, inside=self.path)
        target, text = self.path / METRICS, "".join(f"{line}\n" for line in lines)
        try:
            if read_text(target, "the metrics", most=MAX_METRICS, inside=self.path) == text:
                return
        except UsageError:
            if not text:
                return
        write_text(target, text)


def _facts(stage: Stage[Facts], manifest: _Manifest) -> Facts:
    """What the stage reported.

    Raises:
        UsageError: another version of growpipe reported it, or it is damaged.
    """
    try:
        return TypeAdapter(stage.facts).validate_python(manifest.facts)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise UsageError(
            f"what {stage.name} reported is damaged, or of another version of growpipe: "
            f"{one_line(key)!r}, {one_line(fault['msg'])}"
        ) from None


def read_metrics(path: Path, inside: Path) -> list[str]:
    """The lines of a stage's metrics that are whole: JSON objects. Damaged lines are left out.

    Raises:
        UsageError: the file cannot be read.
    """
    lines = []
    for line in read_text(path, "the metrics", most=MAX_METRICS, inside=inside).splitlines():
        try:
            whole = isinstance(parse_json(line), dict)
        except UsageError:
            whole = False
        if whole:
            lines.append(line)
    return lines


def _foreign(name: str) -> bool:
    """Whether a file of this name is none that a killed `Run.create` leaves."""
    return name != LOCK_FILE and not name.startswith(STAGING)
