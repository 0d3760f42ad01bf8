"""HTML that is escaped by construction: text is text unless it says that it is markup."""

from __future__ import annotations

from html import escape

VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Child = str | int | float | None
Attribute = str | int | float | bool | None


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        name (str): of the element.
        *children (str, int, float or None): text, which is escaped; `Markup`, which is not; None
            is left out.
        **attributes (str, int, float, bool or None): a trailing underscore is dropped and others
            become hyphens; True gives the bare name; None and False leave it out.

    Example:
        >>> tag("p", "a < b", tag("br"), class_="note", data_value=0.5, hidden=False)
        '<p class="note" data-value="0.5">a &lt; b<br></p>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other, those that are text escaped."""
    parts = (c if isinstance(c, Markup) else escape(str(c)) for c in children if c is not None)
    return Markup("".join(parts))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
