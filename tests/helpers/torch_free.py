"""An interpreter in which some packages are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

__all__ = ["TORCH", "python_without"]

TORCH = ("torch", "onnxscript", "transformers")
"""What the extra `train` brings and an installation for ONNX files lacks."""

_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def python_without(
    missing: tuple[str, ...], code: str, cwd: str | os.PathLike[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where importing one of ``missing`` fails as if it were not installed."""
    source = _BLOCKER.format(missing=missing) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
