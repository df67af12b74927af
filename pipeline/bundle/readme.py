"""The README of a bundle: a model card in Markdown, with front matter in the Hugging Face layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from growpipe.bundle.options import BundleOptions
from growpipe.bundle.variants import Variant
from growpipe.graph_ops.edit.description import MeasuredOnTest
from growpipe.printing import for_markdown, for_markdown_code

__all__ = ["readme", "verify_script"]

_NUMPY = {"float": "float32", "double": "float64", "bool": "bool_"}


def readme(
    options: BundleOptions, card: Mapping[str, Any], variants: Sequence[Variant], *, vectors: bool
) -> str:
    """The text.

    Args:
        options: name, layout, labels, licence, task.
        card: describes the model.
        variants: further files, with their figures.
        vectors: whether test vectors ship.
    """
    first = card["inputs"][0] if card["inputs"] else None
    return _environment().get_template("README.md").render(
        options=options, card=card, variants=variants, vectors=vectors, first=first,
        sample=None if first is None else _sample(first),
        test=None if card["test"] is None else MeasuredOnTest(**card["test"]),
    )  # fmt: skip


def _sample(value: Mapping[str, Any]) -> dict[str, Any]:
    """An example of an input for the code of the README: its shape with a batch of one, and its types."""
    shape = [d if isinstance(d, int) else 1 for d in value["shape"] or []]
    kind = value["type"] or "float"
    return {"shape": shape, "numpy": _NUMPY.get(kind, kind), "web": {"float": "float32"}.get(kind, kind)}


def verify_script(place: str) -> str:
    """``verify.py`` for the model at ``place``."""
    return _environment().get_template("verify.py.txt").render(model=place)


@functools.cache
def _environment() -> Environment:
    # Markdown is no HTML: every text of a file goes through a filter of the printing border.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        md=lambda value: for_markdown(str(value)),
        code=lambda value: for_markdown_code(str(value)),
        quoted=_quoted,
    )
    return environment


def _quoted(words: str) -> str:
    """A string for Python and JavaScript alike, which cannot end the block of code that it stands in."""
    return json.dumps(words).replace("`", "\\u0060").replace("<", "\\u003c")
