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
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growpipe.environment import code_version, library_versions
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import STAGING, hash_file, publish_folder, sweep, write_text
from growpipe.parallel.processes import ALONE, Processes
from growpipe.run.locate import RUN_FILE, require_run
from growpipe.run.recipe import Recipe, parse_recipe

__all__ = ["Run", "StageRecord"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StageRecord:
    """A published stage.

    Attributes:
        name: e.g. ``round-00/train``.
        folder: where its files are.
        outputs: SHA-256 by file name, relative to the folder.
        facts: what the stage reported of itself; JSON values.
        skipped: it was there already.
    """

    name: str
    folder: Path
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    skipped: bool = False

    def inputs(self, *files: str) -> dict[str, str]:
        """The hashes of these files, as inputs of another stage."""
        return {f"{self.name}/{file}": self.outputs[file] for file in files}


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
    """

    path: Path
    recipe: Recipe
    folder: Path | None
    seed: int
    device: str
    peers: Processes = ALONE

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
        elif path.exists() and any(path.iterdir()):
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
        try:
            document = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
            version = document["format_version"]
            folder = document["recipe_folder"]
            recipe, seed, device = document["recipe"], document["seed"], document["device"]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path / 'run.json'} is damaged ({type(error).__name__}: {error})") from None
        if version != FORMAT_VERSION:
            raise UsageError(f"{path} is a run of format version {version}; this is {FORMAT_VERSION}")
        return Run(
            path,
            parse_recipe(recipe, f"in {path / 'run.json'}"),
            None if folder is None else path / folder,
            seed,
            device,
            peers,
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, for all processes; leftovers of a killed one are removed.

        Raises:
            UsageError: another process holds it.
        """
        if self.peers.rank:
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another growpipe is working on {self.path}; wait for it or stop it"
                ) from None
            for parent in sorted({leftover.parent for leftover in self.path.rglob(f"{STAGING}*")}):
                if parent.is_dir():  # not itself in a folder that has just been swept
                    sweep(parent)
            yield

    def published(self, name: str) -> StageRecord | None:
        """The stage as it was published, whatever its key; None where there is none."""
        folder = self.path / name
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return StageRecord(name, folder, manifest["outputs"], manifest["facts"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder / MANIFEST} is damaged ({error}); remove {folder}") from None

    def stage(
        self,
        name: str,
        produce: Callable[[Path], Mapping[str, Any]],
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        everywhere: bool = False,
    ) -> StageRecord:
        """Do a stage, or find it done.

        Args:
            name: e.g. ``round-00/train``.
            produce: writes the stage's files into the folder it is given and returns its facts (JSON).
            config: the part of the configuration that the stage reads.
            inputs: SHA-256 of every file that the stage reads.
            everywhere: all processes produce, together; what the first writes is kept. Otherwise the others
                wait for it.

        Returns:
            The record; ``skipped`` when nothing had to be done.

        Raises:
            CheckFailed: the processes do not agree on the key.
        """
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
        done = self.peers.broadcast(None if self.peers.rank else self._finished(name, key))
        if done is not None:
            return done
        if self.peers.rank:
            if everywhere:
                with tempfile.TemporaryDirectory() as scratch:
                    produce(Path(scratch))
            return self.peers.broadcast(StageRecord(name, folder, {}, {}))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(folder) as staging:
            started = time.monotonic()
            facts = dict(produce(staging))
            outputs = {
                path.relative_to(staging).as_posix(): hash_file(path)
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            }
            manifest = {
                "key": key,
                **described,
                "outputs": outputs,
                "facts": facts,
                "seconds": round(time.monotonic() - started, 3),
            }
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._gather_metrics()
        return self.peers.broadcast(StageRecord(name, folder, outputs, facts))

    def _finished(self, name: str, key: str) -> StageRecord | None:
        folder = self.path / name
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["key"] != key:
                return None
            outputs: dict[str, str] = manifest["outputs"]
            if any(hash_file(folder / file) != digest for file, digest in outputs.items()):
                return None
            return StageRecord(name, folder, outputs, manifest["facts"], skipped=True)
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
            return None

    def _gather_metrics(self) -> None:
        parts = sorted(self.path.glob(f"*/*/{METRICS}"))
        write_text(self.path / METRICS, "".join(part.read_text(encoding="utf-8") for part in parts))
