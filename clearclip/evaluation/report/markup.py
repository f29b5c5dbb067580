"""HTML and SVG from Python: text is escaped unless it was made here.

>>> tag("p", "cats & dogs ", tag("b", "<here>"), class_="note")
'<p class="note">cats &amp; dogs <b>&lt;here&gt;</b></p>'
"""

import html
from collections.abc import Container, Iterable, Sequence
from typing import TypeAlias

from clearclip.errors import printable

VOID = {"meta", "img", "br", "line", "circle", "rect", "path"}  # without contents, and so without an end


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content: TypeAlias = str | int | float | Iterable["Content"] | None


def escaped(text: object) -> Markup:
    """Any text as HTML shows it: `<` is no tag, and control characters are seen as `\\x1b`."""
    return Markup(html.escape(printable(str(text))))


def markup(*content: Content) -> Markup:
    """Contents one after the other; None is nothing."""
    return Markup("".join(_parts(content)))


def _parts(content: Iterable[Content]) -> Iterable[str]:
    for one in content:
        if isinstance(one, Markup):
            yield one
        elif isinstance(one, str | int | float):
            yield escaped(one)
        elif one is not None:
            yield from _parts(one)


def tag(name: str, /, *content: Content, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` is the attribute class, `data_value` data-value; False and None leave one out."""
    given = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            given.append(f" {key}")
        elif value is not None and value is not False:
            given.append(f' {key}="{escaped(value)}"')
    start = f"<{name}{''.join(given)}>"
    if name in VOID and not content:
        return Markup(start.replace(">", "/>") if name in SHAPES else start)
    return Markup(f"{start}{markup(*content)}</{name}>")


SHAPES = {"line", "circle", "rect", "path"}  # of SVG, where what is not closed swallows what follows


def table(
    head: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    caption: Content,
    left: Container[int] = (),
    sortable: bool = True,
    class_: str | None = None,
) -> Markup:
    """A table with a header row, whose first column names the rows; columns of `left` are text, the others numbers.

    Cells that are `td` elements stay so. Headers of a sortable one are buttons, which the page's script listens to.
    """
    kinds = ["text" if index in left else None for index in range(len(head))]
    cells = [tag("button", one, type="button") if sortable and one else one for one in head]
    top = tag("tr", (tag("th", cell, scope="col", class_=kind) for cell, kind in zip(cells, kinds)))
    body = (
        tag("tr", tag("th", first, scope="row"), (_cell(one, kind) for one, kind in zip(rest, kinds[1:])))
        for first, *rest in rows
    )
    made = tag("table", tag("caption", tag("span", caption)), tag("thead", top), tag("tbody", body), class_=class_)
    return tag("div", made, class_="scroll", tabindex=0)


def _cell(content: Content, kind: str | None) -> Markup:
    if isinstance(content, Markup) and content.startswith("<td"):
        return content
    return tag("td", content, class_=kind)
