"""What the page shows of answers, as HTML in which pictures lie inside: no address, no path, no request."""

import base64
import html
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clearclip import analysis
from clearclip.analysis import ATTENTIONS, FEED_FORWARDS, KNOWN, RESIDUALS, TERMS
from clearclip.app.answers import Region, regions
from clearclip.app.studio import Why
from clearclip.segmentation import Segmentation
from clearclip.visualize import encode_picture, heat_map
from clearclip.visualize.canvas import shown_shape, shrink

SHOWN = 1100  # pixels of the longer side of the large picture
POINTED = 480  # and of the label map in which a pointer looks up its label
HEAT = 720  # of heat maps
MAP = 360  # and of a map of why
BRIGHT = 0.99  # of a map's patches are below its last colour: a patch is like itself, and would outshine all others
COLUMNS = 2  # names are as large as in a sheet of so many: the picture has half of the page
WRITTEN = {**analysis.WRITTEN, "identity": "itself alone"}


def overlay(result: Segmentation) -> Image.Image:
    """The picture under the colours and names of its classes, of the size that the page shows."""
    return result.overlay(legend=False, max_side=SHOWN, columns=COLUMNS)


def regions_html(result: Segmentation) -> str:
    """The picture under its classes, with what a pointer needs to say which lies below it, and a legend with areas."""
    found = regions(result)
    there = [region for region in found if region.area > 0]
    missing = [region.name for region in found if region.area == 0]
    shape = shown_shape(result.labels.shape, POINTED)
    labels = shrink(np.minimum(result.labels, 255).astype(np.uint8), shape, smooth=False)
    what = ", ".join(f"{region.name} {percent(region.area)}" for region in there)
    return (
        '<figure class="cc-regions"><div class="cc-frame">'
        f'<img class="cc-picture" src="{jpeg(overlay(result))}" alt="{html.escape(what)}">'
        f'<img class="cc-labels" src="{png(Image.fromarray(labels))}" alt="" hidden>'
        '<canvas class="cc-light"></canvas><span class="cc-mark" hidden></span><output class="cc-tip" hidden></output>'
        f'</div><figcaption><ul class="cc-legend">{"".join(map(_entry, there))}</ul>{_missing(missing)}'
        '<p class="cc-faint">Click a place in the picture to see why it gets its name.</p></figcaption>'
        "</figure>"
    )


def _entry(region: Region) -> str:
    share = percent(region.area)
    return (
        f'<li tabindex="0" data-label="{min(region.label, 255)}"><i style="background:{region.colour}"></i>'
        f"<span>{html.escape(region.name)}</span> <b>{share}</b></li>"
    )


def _missing(names: Sequence[str]) -> str:
    return f'<p class="cc-faint">Nowhere: {html.escape(", ".join(names))}</p>' if names else ""


def heat_html(result: Segmentation) -> str:
    """A heat map for each name, with its range."""
    figures = "".join(
        f"<figure><figcaption>{html.escape(result.names[label])}</figcaption>"
        f'<img src="{jpeg(result.heat(label, max_side=HEAT, columns=COLUMNS))}" alt=""></figure>'
        for label in range(int(result.everything_else), len(result.names))
    )
    return (
        '<p class="cc-faint">How similar each place is to each name; every map has a range of its own.</p>'
        f'<div class="cc-maps cc-pairs">{figures}</div>'
    )


def why_html(why: Why, result: Segmentation) -> str:
    """Why a patch gets its class: the classes' scores, what other re-wirings say, and the maps of the patch."""
    found = why.explanation
    y, x = (int(value) for value in found.place.point)
    label = int(result.labels[y, x])
    named = result.names[label] if label < len(result.names) else "other"
    if named == found.name:
        head = f"This patch is <b>{html.escape(named)}</b>"
    else:
        head = (
            f"The region is <b>{html.escape(named)}</b>; this patch alone, in one window and without refinement or "
            f"threshold, is <b>{html.escape(found.name)}</b>"
        )
    order = np.argsort(-found.scores, kind="stable")
    names = [found.names[index] for index in order]
    colours = {region.name: region.colour for region in regions(result)}
    return (
        f'<section class="cc-why"><h3>{head}</h3><div class="cc-side">'
        f"<div><h4>How similar it is to each name</h4>{_bars(found.scores[order], names, colours)}"
        f"</div><div><h4>What it is where the last block is wired otherwise</h4>{_cells(why, colours)}</div>"
        f"{_alike(why)}</div>{_maps(why)}</section>"
    )


def _bars(scores: np.ndarray, names: Sequence[str], colours: dict[str, str]) -> str:
    """Cosines as bars, each a share of the way from a little below the least to the largest."""
    low, high = float(scores.min()), float(scores.max())
    low -= 0.15 * (high - low) or 1
    rows = "".join(
        f'<li><span>{html.escape(name)}</span><i style="--share:{(score - low) / (high - low):.3f};'
        f'background:{colours.get(name, "#888")}"></i><b>{score:.3f}</b></li>'
        for name, score in zip(names, scores)
    )
    return f'<ul class="cc-bars">{rows}</ul>'


def _cells(why: Why, colours: dict[str, str]) -> str:
    """Attention × residual × feed-forward, as a table."""
    cells = {(cell.attention, cell.residual, cell.feed_forward): cell for cell in why.explanation.cells}
    columns = [(residual, forward) for residual in RESIDUALS for forward in FEED_FORWARDS]
    head = "".join(
        f"<th>{'residual' if residual else 'no residual'},<br>{'feed-forward' if forward else 'no feed-forward'}</th>"
        for residual, forward in columns
    )
    rows = []
    for attention in ATTENTIONS:
        row = []
        for residual, forward in columns:
            cell = cells[attention, residual, forward]
            title = KNOWN.get((attention, residual, forward), "")
            row.append(
                f'<td><i style="background:{colours.get(cell.name, "#888")}"></i>{html.escape(cell.name)}'
                f"{f' <small>{title}</small>' if title else ''}</td>"
            )
        rows.append(f"<tr><th>{WRITTEN[attention]}</th>{''.join(row)}</tr>")
    return f'<div class="cc-scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _alike(why: Why) -> str:
    values = why.explanation.alike
    return "" if values is None else f"<div><h4>Features like its own</h4>{_figure(why, values)}</div>"


def _maps(why: Why) -> str:
    """Where the patch looks in the last block, and the cosines behind that."""
    found = why.explanation
    attention = "".join(_figure(why, found.attention[term], WRITTEN[term]) for term in TERMS)
    cosine = "".join(_figure(why, found.cosine[term], WRITTEN[term]) for term in TERMS)
    return (
        "<h4>Where it looks in the last block: attention, in the window that the network saw</h4>"
        f'<div class="cc-maps">{attention}</div>'
        f'<h4>What is behind that: cosines</h4><div class="cc-maps">{cosine}</div>'
    )


def _figure(why: Why, values: np.ndarray, title: str = "cosine") -> str:
    """A map [h, w] of patches upon what the network saw, the patch itself marked."""
    (row, column), (rows, columns) = why.explanation.place.patch, why.explanation.place.grid
    marker = (row + 0.5) / rows, (column + 0.5) / columns
    limits = float(values.min()), float(np.quantile(values, BRIGHT))
    picture = heat_map(why.window, values, limits=limits, marker=marker, max_side=MAP, columns=3)
    return f'<figure><img src="{jpeg(picture)}" alt=""><figcaption>{title}</figcaption></figure>'


def examples_html(pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """Thumbnails to choose from, each a button with its name and number."""
    buttons = "".join(
        f'<button type="button" data-index="{index}" title="{html.escape(name)}" aria-label="example: '
        f'{html.escape(name)}"><img src="{jpeg(picture)}" alt=""></button>'
        for index, (name, picture) in enumerate(pictures)
    )
    return f'<div class="cc-examples">{buttons}</div>'


def percent(share: float) -> str:
    """A share of 0 to 1 in words: "27 %", "<1 %"."""
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %" if share > 0 else "0 %"


def jpeg(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    return _address("jpeg", encode_picture(picture, "JPEG"))


def png(picture: Image.Image) -> str:
    """The same without loss."""
    return _address("png", encode_picture(picture))


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
