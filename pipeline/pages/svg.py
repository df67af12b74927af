"""SVG elements as safe text: names and numbers are the code's own, everything else is escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

from growpipe.printing import one_line

__all__ = ["Attribute", "group", "number", "tag", "text"]

Attribute = str | float | None


def tag(name: str, *children: str, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        name: of the element; never from a file.
        children: `Markup` is kept, any other text is escaped.
        attributes: an underscore in a name is a hyphen, one at its end is dropped (``class_``). Values are
            escaped; None leaves the attribute out.
    """
    shown = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _value(value))  # noqa: S704 - keywords
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(
        child if isinstance(child, Markup) else escape(one_line(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), shown, inner)  # noqa: S704 - names are the code's own


def group(*children: str, **attributes: Attribute) -> Markup:
    """A ``<g>``."""
    return tag("g", *children, **attributes)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text at a point."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def number(value: float) -> str:
    """A coordinate with at most two decimals, the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value == value else "0"


def _value(value: Attribute) -> str:
    return number(value) if isinstance(value, int | float) else one_line(value)
