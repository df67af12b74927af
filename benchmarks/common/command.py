"""How a benchmark ends when its user made a mistake: one line and an exit code, as ``growpipe`` itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from growpipe.graph_ops.errors import GrowpipeError

__all__ = ["run_command"]


def run_command(main: Callable[[], None]) -> None:
    """Call a script's ``main``; print a `GrowpipeError` as one line and exit with its code."""
    try:
        main()
    except GrowpipeError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
