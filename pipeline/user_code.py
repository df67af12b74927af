"""Finding what a recipe names: ``file.py:name`` of the user, or ``package.module:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from growpipe.graph_ops.errors import GrowpipeError, UsageError
from growpipe.suggestions import did_you_mean

__all__ = ["call_user_code", "hash_user_files", "load_reference"]

_NOT_OF_USERS = ("growpipe", "__main__")  # growpipe's own version is known otherwise


def load_reference(reference: str, folder: Path | None) -> Callable[..., Any]:
    """The callable that ``reference`` names.

    Args:
        reference: ``file.py:name``, relative to ``folder``, or ``package.module:name``.
        folder: where the recipe stands; the current folder when None. While a file is imported its folder is
            on the module path, so that it can import its neighbours.

    Raises:
        UsageError: there is no such file, module or name, it is not a callable, or its import fails.
    """
    place, _, attribute = reference.rpartition(":")
    if place.endswith(".py"):
        path = _user_path(place, folder)
        if not path.is_file():
            raise UsageError(f"{reference}: there is no file {path}")
        # The name is the path's, so that two files of one name do not meet.
        name = f"growpipe_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
        module = sys.modules.get(name) or _import_file(name, path, reference)
    else:
        try:
            module = importlib.import_module(place)
        except GrowpipeError:
            raise
        except Exception as error:  # the user's module may raise anything
            beside = f"{place.replace('.', '/')}.py"
            there = _user_path(beside, folder).is_file()
            hint = f"; the file beside the recipe is {beside}:{attribute}" if there else ""
            raise UsageError(f"{reference} cannot be imported: {_one_line(error)}{hint}") from error
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        hint = did_you_mean(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise UsageError(f"{place} has no {attribute!r}{hint}") from None
    if not callable(found):
        raise UsageError(f"{reference} is not a function or class but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def call_user_code(reference: str, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call what `load_reference` found; an exception of the user's code becomes one line.

    Raises:
        UsageError: the call failed.
    """
    try:
        return function(*args, **options)
    except GrowpipeError:
        raise
    except Exception as error:
        place = _innermost_line(error)
        raise UsageError(f"{reference} failed{place}: {_one_line(error)}") from error


def hash_user_files(references: Iterable[str], depends: Iterable[str], folder: Path | None) -> dict[str, str]:
    """SHA-256 of the files that user code consists of, by their names relative to ``folder``.

    Args:
        references: loaded before; those of the form ``file.py:name`` name a file.
        depends: further files, relative to ``folder``.
        folder: where the recipe stands. Every module in it that is imported belongs to the user's code too;
            None for a shipped recipe, which has no such modules.

    Raises:
        UsageError: a file of ``depends`` is not there.
    """
    places = [reference.rpartition(":")[0] for reference in references]
    files = {place: _user_path(place, folder) for place in places if place.endswith(".py")}
    for name in depends:
        files[name] = _user_path(name, folder)
        if not files[name].is_file():
            raise UsageError(f"depends: there is no file {files[name]}")
    if folder is not None:
        home = folder.resolve()
        for name, module in list(sys.modules.items()):
            file = None if name.partition(".")[0] in _NOT_OF_USERS else getattr(module, "__file__", None)
            if isinstance(file, str) and home in (path := Path(file).resolve()).parents and _is_own(path):
                files.setdefault(path.relative_to(home).as_posix(), path)
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if path.is_file()
    }


def _user_path(place: str, folder: Path | None) -> Path:
    return (folder or Path()) / place


def _import_file(name: str, path: Path, reference: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except GrowpipeError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"{reference} cannot be imported{_innermost_line(error)}: {_one_line(error)}"
        ) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _innermost_line(error: BaseException) -> str:
    """Where in the user's own code it happened, as far as one can tell."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f" (line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(Path(f.filename))]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _is_own(file: Path) -> bool:
    """Whether a file is neither growpipe's, nor Python's, nor of an installed package."""
    libraries = {Path(__file__).parent, Path(sysconfig.get_path("stdlib"))}
    installed = {"site-packages", "dist-packages"}.intersection(file.parts)
    return file.is_file() and not installed and not libraries.intersection(file.parents)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
