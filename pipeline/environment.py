"""Where a run happens: versions, code, device. What a stage's result depends on besides its inputs."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

from growpipe.graph_ops.errors import MissingEnvironment

__all__ = [
    "PROVIDERS",
    "Device",
    "code_version",
    "how_to_install",
    "is_follower",
    "library_versions",
    "require",
    "require_installed",
    "resolve_device",
]

Device = Literal["cpu", "cuda"]

PROVIDERS: Mapping[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""The execution provider of onnxruntime that a device stands for."""

_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy", "scipy", "scikit-learn")


def is_follower() -> bool:
    """Whether ``torchrun`` started this process beside another one that speaks for both."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and (os.environ.get("RANK") or "0") != "0"


@functools.cache
def code_version() -> str:
    """The release of growpipe and a hash of its sources."""
    from importlib import metadata  # 40 ms that the help text does without

    digest = hashlib.sha256()
    # The three folders are one package when installed, and three in a checkout.
    roots = {
        Path(str(importlib.import_module(f"growpipe{part}").__file__)).parent
        for part in ("", ".graph_ops", ".models")
    }
    for root in sorted(roots):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{metadata.version('growpipe')}+{digest.hexdigest()[:16]}"


@functools.cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that shape a result; those that are not installed are left out."""
    from importlib import metadata

    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions["onnxruntime"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra brings it.

    Raises:
        MissingEnvironment: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise _missing(module, extra, purpose) from None


def require_installed(module: str, extra: str, purpose: str) -> None:
    """Like `require`, but looks only whether ``module`` is there: importing torch takes seconds.

    Raises:
        MissingEnvironment: it is not installed.
    """
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise _missing(module, extra, purpose)


def _missing(module: str, extra: str, purpose: str) -> MissingEnvironment:
    return MissingEnvironment(f"{purpose} needs {module}, which is not installed: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """What brings an extra, for error messages."""
    return f"pip install '.[{extra}]' in a checkout of growpipe"


def resolve_device(device: str) -> str:
    """``"cpu"`` or ``"cuda"`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        MissingEnvironment: CUDA was asked for and torch sees none.
    """
    torch = require("torch", "train", "training")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise MissingEnvironment("CUDA was asked for and torch sees no CUDA device; use --device cpu or auto")
    return "cuda" if device != "cpu" and available else "cpu"
