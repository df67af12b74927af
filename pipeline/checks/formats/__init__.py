"""The forms in which reports can be written, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from growpipe.checks.formats.github import to_github
from growpipe.checks.formats.json_report import to_json
from growpipe.checks.formats.junit import to_junit
from growpipe.checks.formats.markdown import to_markdown
from growpipe.checks.formats.sarif import to_sarif
from growpipe.checks.formats.text import to_text
from growpipe.checks.report import CheckReport

__all__ = ["DOCUMENTS", "FORMATS"]

FORMATS: Mapping[str, Callable[[Sequence[CheckReport]], str]] = {
    "text": to_text,
    "json": to_json,
    "junit": to_junit,
    "markdown": to_markdown,
    "github": to_github,
    "sarif": to_sarif,
}
"""By name: from the reports, one per model, to a text that ends with a newline."""

DOCUMENTS = frozenset({"json", "junit", "sarif"})
"""Those that are one document, which nothing else may stand beside."""
