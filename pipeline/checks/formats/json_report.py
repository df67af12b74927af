"""JSON, as ``result.schema.json`` describes it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from growpipe.checks.report import CheckReport

__all__ = ["to_json"]


def to_json(reports: Sequence[CheckReport]) -> str:
    """One object for one model, a list of such objects for several."""
    forms = [report.to_json() for report in reports]
    return json.dumps(forms[0] if len(forms) == 1 else forms, indent=1, allow_nan=False) + "\n"
