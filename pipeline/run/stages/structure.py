"""The structure checks as one list of problems, for the pipeline's own stages."""

from __future__ import annotations

import os
from collections.abc import Sequence

from growpipe.checks.runner import run_checks

__all__ = ["structure_problems"]


def structure_problems(path: str | os.PathLike[str], batch_sizes: Sequence[int] = (1, 3)) -> list[str]:
    """What the safety and structure checks find wrong, real runs at these batch sizes included.

    Args:
        path: of the model.
        batch_sizes: run where the model's batch is dynamic.

    Returns:
        One line per failed check; empty when the model is sound.
    """
    report = run_checks(
        path,
        policy={"numerics": {"batch_sizes": list(batch_sizes)}},
        only=("safety", "structure"),
    )
    return [
        f"{r.check}: {r.message}" + "".join(f"; {finding}" for finding in r.findings[:3])
        for r in report.worst
        if r.status not in ("passed", "skipped", "waived", "warned")
    ]
