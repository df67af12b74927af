"""The border for printing: text that came from a file or a path is made harmless, for each output form.

Names within a model and paths are anybody's. A terminal obeys escape sequences in them, a CI runner obeys
workflow commands (``::error::`` at the beginning of a line, ``##[error]`` anywhere in it), and a page renders
markdown and HTML. Everything that a command writes goes through one of these functions.
"""

from __future__ import annotations

import re
from typing import Any

from growpipe.graph_ops.files.documents import json_document

__all__ = [
    "for_annotation",
    "for_log",
    "for_markdown",
    "for_markdown_code",
    "for_xml",
    "json_text",
    "one_line",
]

_OLD_COMMAND = "##["
_LINE_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Everything that begins, ends or links something in GitHub's markdown, as entities; HTML is made of the first
# three. A backslash would not do: it is shown where nothing needed to be escaped.
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "&<>|`*_[]\\~#$"}
_LINKS = re.compile(r"://|@|www\.", re.IGNORECASE)
_NOTHING = "\u200b"


def one_line(text: object) -> str:
    """One line without control characters, escapes, marks of direction and workflow commands."""
    return for_log(" ".join(str(text).split()))


def for_log(text: str) -> str:
    """Text for a terminal or a log; its lines stay lines.

    Args:
        text: one line or several.
    """
    lines = ("".join(c if c.isprintable() else "\ufffd" for c in line) for line in text.split("\n"))
    harmless = _LINE_COMMAND.sub(r"\1: :", "\n".join(lines))
    return harmless.replace(_OLD_COMMAND, "## [")


def for_annotation(text: str, *, is_property: bool = False) -> str:
    """Text within a workflow command.

    Args:
        text: one line or several.
        is_property: whether it stands before the second ``::``, such as a file or a title.
    """
    data = for_log(text).replace("%", "%25").replace("\n", "%0A")
    return data.replace(":", "%3A").replace(",", "%2C") if is_property else data


def for_markdown(text: str, most: int = 500) -> str:
    """Text within a line or a cell of a table: nothing of it is rendered, linked or mentioned.

    Args:
        text: is made one line.
        most: characters that are kept.
    """
    entities = _shortened(one_line(text), most).translate(_MARKUP)
    return _LINKS.sub(lambda found: found.group()[:1] + _NOTHING + found.group()[1:], entities)


def for_markdown_code(text: str, most: int = 500) -> str:
    """`for_markdown`, shown as code."""
    return f"<code>{for_markdown(text, most)}</code>"


def for_xml(text: str) -> str:
    """Text that XML can hold, once it is escaped."""
    return _NOT_XML.sub("\ufffd", for_log(text))


def json_text(document: Any, indent: int = 1) -> str:
    """A JSON document whose lines are not workflow commands; a reader finds every text as it was."""
    text = json_document(document, indent=indent)
    return text.replace(_OLD_COMMAND, "#\\u0023[") + "\n"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
