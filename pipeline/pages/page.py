"""Pages as one HTML text: no request leaves them, and nothing that came from a file is obeyed in them."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from growpipe.graph_ops.edit.difference import ModelDifference
from growpipe.pages import charts
from growpipe.pages.content import RunStory
from growpipe.pages.scales import grouped, short, signed
from growpipe.printing import for_log, one_line

__all__ = ["difference_page", "run_page"]

_TEMPLATES = Path(__file__).parent / "templates"

# A page stays readable, and small, whatever it is about.
_MOST_TEXT = 400  # characters of a name or a value
_MOST_LINES = 100_000  # characters of a recipe
_MOST_TENSORS = 300
_MOST_GROUPS = 60
_MOST_SPECTRA = 16  # of a round


def run_page(story: RunStory) -> str:
    """A run as a page. The same story gives the same bytes."""
    return _rendered("run.html", story.title, story=story, groups=_MOST_GROUPS, spectra=_MOST_SPECTRA)


def difference_page(difference: ModelDifference, parent: str, child: str) -> str:
    """What changed between two models, as a page.

    Args:
        difference: what changed.
        parent: the name of the first model.
        child: the name of the second model.
    """
    widths = [width for change in difference.widths for width in (change.before, change.after) if width]
    return _rendered(
        "difference.html",
        f"{parent} and {child}",
        difference=difference,
        parent=parent,
        child=child,
        largest=max(widths, default=1),
        shown=_MOST_TENSORS,
    )


def _rendered(template: str, title: str, **content: Any) -> str:
    page = _environment().get_template(template)
    return page.render(
        title=title, policy=_policy(), style=_source("style.css"), script=_source("script.js"), **content
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(grouped=grouped, short=short, signed=signed, lines=_lines)
    environment.globals.update(charts=charts)
    return environment


def _harmless(value: Any) -> Any:
    """What an expression of a template shows: one line without control characters; then it is escaped."""
    if isinstance(value, Markup):
        return value
    words = one_line(value)
    return words if len(words) <= _MOST_TEXT else words[: _MOST_TEXT - 1] + "…"


def _lines(words: str) -> Markup:
    """Several lines, for a ``<pre>``."""
    return escape(for_log(words[:_MOST_LINES]))


@functools.cache
def _source(name: str) -> Markup:
    """The style or the script, which stand in the page as they are."""
    loader = FileSystemLoader(_TEMPLATES)
    return Markup(loader.get_source(Environment(autoescape=True), name)[0])  # noqa: S704 - growpipe's own file


def _policy() -> str:
    """The Content-Security-Policy: this style and this script by their hashes, and nothing else at all."""

    def digest(name: str) -> str:
        return base64.b64encode(hashlib.sha256(_source(name).encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest('style.css')}'; "
        f"script-src 'sha256-{digest('script.js')}'; base-uri 'none'; form-action 'none'"
    )
