"""Where benchmark results go: every run with its environment, and a summary people can read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import growpipe
import growpipe.graph_ops
import growpipe.models
from growpipe.environment import library_versions

__all__ = ["FOLDER", "append", "code_hash", "environment", "summarise"]

PACKAGES = (growpipe, growpipe.graph_ops, growpipe.models)
FOLDER = Path(__file__).parents[1]


def environment() -> dict[str, Any]:
    """The machine and the versions a measurement belongs to."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {"growpipe": importlib.metadata.version("growpipe"), **library_versions()},
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def code_hash() -> str:
    """A hash of the code of growpipe: measurements of the same code may be joined."""
    folders = {Path(str(package.__file__)).parent for package in PACKAGES}
    contents = {path.resolve(): path.read_bytes() for folder in folders for path in folder.rglob("*.py")}
    # The same for a checkout and for what is installed from it, which lie in other folders.
    return hashlib.sha256(b"".join(sorted(map(_digest, contents.values())))).hexdigest()[:16]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def append(name: str, measurement: dict[str, Any]) -> None:
    """Add one run to ``results/<name>.json``."""
    path = FOLDER / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append({"environment": environment(), **measurement})
    path.write_text(json.dumps(runs, indent=1) + "\n")


def summarise(name: str, text: str) -> None:
    """Replace the section of ``RESULTS.md`` that belongs to the benchmark ``name``, or add it."""
    path = FOLDER / "RESULTS.md"
    page = path.read_text() if path.exists() else "# Benchmark results\n"
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    where = environment()
    note = f"{where['processor']}, {where['cores']} cores, load {where['load']}, {where['date']}"
    section = f"{begin}\n{text.strip()}\n\nMeasured on: {note}.\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    replaced, count = pattern.subn(lambda _: section, page)
    path.write_text(replaced if count else f"{page.rstrip()}\n\n{section}\n")
