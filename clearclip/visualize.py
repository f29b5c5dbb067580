"""Pictures of label maps: colours, overlays, legends, side-by-side sheets."""

import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clearclip.errors import UserError
from clearclip.paths import atomic_write

INK, PAPER = (30, 30, 30), (255, 255, 255)
OPACITY = 0.5  # of the colours in an overlay
FONTS = (  # of common systems, by how many scripts they have
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc"),
    *("FreeSans.ttf", "unifont.otf"),
)
NAME_LENGTH = 32  # characters of a class name that a legend shows
Placed: TypeAlias = tuple[Image.Image, int, int]  # a picture and its left and upper edges, x and y


def palette(num_classes: int) -> np.ndarray:
    """[C, 3] uint8 colours, each as different as possible from those before it. They repeat after 512 classes.

    The colours of a smaller palette begin every larger one.
    """
    colours = _distinct_colours()
    return colours[np.arange(num_classes) % len(colours)]


@functools.lru_cache(maxsize=1)
def _distinct_colours(count: int = 512) -> np.ndarray:
    """Farthest-point sampling of the RGB cube, in a space where distance is difference to the eye."""
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    points = _oklab(colours)
    lightness, chroma = points[:, 0], np.hypot(points[:, 1], points[:, 2])
    vivid = (lightness > 0.45) & (lightness < 0.93) & (chroma > 0.1)  # photographs are mostly grey and brown
    colours, points = colours[vivid], points[vivid]
    greys = _oklab(np.array([[g, g, g] for g in (0, 128, 255)]))
    nearest = np.linalg.norm(points[:, None] - greys, axis=-1).min(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=-1))
    return colours[chosen]


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [N, 3] in 0..255 to Oklab (Björn Ottosson, 2020)."""
    linear = np.where(rgb > 10.31475, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    to_lms = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    to_lab = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


def ignored(num_classes: int) -> int:
    """The label of pixels without a class: 255, or 65535 where 255 is a class."""
    return 255 if num_classes <= 255 else 65535


def overlay(
    image: np.ndarray | Image.Image, labels: np.ndarray, names: Sequence[str], legend: bool = True
) -> Image.Image:
    """The image with each class in its colour, outlined, and a legend of the classes that occur.

    image [H, W, 3] or [H, W], uint8; labels [H, W] index `names`; ignored pixels keep the image's colour.
    The legend stands at the right or below, whichever gives the smaller picture.
    Raises UserError where shapes or labels do not fit.
    """
    pixels, labels = _rgb(image), _labels(labels, len(names))
    if pixels.shape[:2] != labels.shape:
        sizes = ["×".join(map(str, shape)) for shape in (labels.shape, pixels.shape[:2])]
        raise UserError(f"labels of {sizes[0]} pixels do not fit an image of {sizes[1]}: resize one of them")

    labelled = labels != ignored(len(names))
    colours = palette(len(names))[np.where(labelled, labels, 0)]  # H W 3
    weight = np.where(_outlines(labels), 1, OPACITY).astype(np.float32) * labelled  # H W
    blended = pixels + weight[..., None] * (colours.astype(np.int16) - pixels)
    picture = Image.fromarray(blended.round().astype(np.uint8))
    if not legend:
        return picture

    height, width = labels.shape
    size = max(13, round(math.sqrt(height * width) / 36))
    right = _paste([(picture, 0, 0), (legend_panel(labels, names, size, max_height=height), width, 0)])
    below = _paste([(picture, 0, 0), (legend_panel(labels, names, size, max_width=width), 0, height)])
    return min(right, below, key=lambda picture: picture.width * picture.height)


def legend_panel(
    labels: np.ndarray,
    names: Sequence[str],
    size: int = 14,
    max_height: int | None = None,
    max_width: int | None = None,
) -> Image.Image:
    """Colour, name and share of each class in labels [..., H, W], the largest first; text of `size` pixels.

    Entries go into one column, or into as many as `max_width` allows, or into two or three where they would
    pass `max_height`.
    """
    labels = _labels(labels, len(names))
    counts = np.bincount(labels[labels != ignored(len(names))], minlength=len(names))
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    entries = [_shortened(names[i]) for i in present]
    shares = [_percentage(100 * counts[i] / labels.size) for i in present]

    font = _font(size, "".join(entries))
    entries = [entry if _draws(font, entry) else f"class {i}" for i, entry in zip(present, entries)]
    line, gap = round(1.5 * size), size // 2
    share_width = max((font.getlength(share) for share in shares), default=0)
    name_width = max((font.getlength(entry) for entry in entries), default=0)
    column = math.ceil(size + gap + name_width + gap + share_width + 2 * gap)
    count = max(1, len(entries))
    rows = count
    if max_height is not None:
        rows = min(count, max(8, (max_height - gap) // line, math.ceil(count / 3)))
    elif max_width is not None:
        rows = math.ceil(count / max(1, (max_width - gap) // column))
    columns = math.ceil(count / rows)

    panel = Image.new("RGB", (gap + columns * column, gap + rows * line), PAPER)
    draw = ImageDraw.Draw(panel)
    colours = palette(len(names))
    for place, (i, entry, share) in enumerate(zip(present, entries, shares)):
        x, y = gap + place // rows * column, gap + place % rows * line
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(colours[i]), outline=INK)
        draw.text((x + size + gap, y + size / 2), entry, INK, font, anchor="lm")
        draw.text((x + column - 2 * gap, y + size / 2), share, INK, font, anchor="rm")
    return panel


def _font(size: int, text: str) -> Any:
    """A font that has all letters of a text: Pillow's own, one of the system's, or else Pillow's."""
    own = ImageFont.load_default(size)
    if _draws(own, text):
        return own
    for name in FONTS:
        with contextlib.suppress(OSError):
            font = ImageFont.truetype(name, size)
            if _draws(font, text):
                return font
    return own


def _draws(font: Any, text: str) -> bool:
    """Whether a font has all letters of a text: it draws a box for those that it lacks, as for U+FFFF."""
    box = bytes(font.getmask("\uffff"))
    return not any(not letter.isspace() and bytes(font.getmask(letter)) == box for letter in set(text))


def sheet(rows: Sequence[Sequence[tuple[str, np.ndarray | Image.Image]]]) -> Image.Image:
    """Rows of (title, picture) pairs as one picture. Titles equal to those of the row above are not repeated."""
    cells = [[(_shortened(title), Image.fromarray(_rgb(picture))) for title, picture in row] for row in rows if row]
    if not cells:
        raise UserError("a sheet needs at least one picture")
    tallest = max(picture.height for row in cells for _, picture in row)
    size = min(48, max(13, tallest // 22))
    font, gap = ImageFont.load_default(size), size // 2

    lefts = [gap]  # of each column, and of one more
    for column in range(max(map(len, cells))):
        below = [row[column] for row in cells if column < len(row)]
        width = max(max(picture.width, math.ceil(font.getlength(title))) for title, picture in below)
        lefts.append(lefts[-1] + width + gap)
    pictures: list[Placed] = []
    captions: list[tuple[str, int, int]] = []
    above: list[str] = []
    y = gap
    for row in cells:
        titles = [title for title, _ in row]
        if titles != above and any(titles):
            captions += [(title, left, y) for title, left in zip(titles, lefts)]
            y += round(1.5 * size)
        above = titles
        pictures += [(picture, left, y) for (_, picture), left in zip(row, lefts)]
        y += max(picture.height for _, picture in row) + gap
    paper = _paste(pictures, width=lefts[-1], height=y)
    draw = ImageDraw.Draw(paper)
    for title, left, top in captions:
        draw.text((left, top), title, INK, font)
    return paper


def save_label_map(labels: np.ndarray, path: str | Path, num_classes: int) -> None:
    """Write labels [H, W] as a PNG: 8-bit with a palette up to 255 classes, else 16-bit grey.

    Raises UserError for a label that is neither a class nor `ignored(num_classes)`.
    """
    labels = _labels(labels, num_classes)
    if num_classes <= 255:
        picture = Image.fromarray(labels.astype(np.uint8))
        colours = np.full((256, 3), 224, np.uint8)
        colours[:num_classes] = palette(num_classes)
        picture.putpalette(colours.tobytes())
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """[H, W, 3] uint8"""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise UserError(f"an image must be uint8 [H, W, 3] or [H, W], not {pixels.dtype} {list(pixels.shape)}")
    if pixels.shape[2:] != (3,):
        pixels = np.stack([pixels.reshape(pixels.shape[:2])] * 3, axis=-1)
    return pixels


def _labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim < 2 or not labels.size or labels.dtype.kind not in "iu":
        raise UserError(f"labels must be integers [H, W], not {labels.dtype} {list(labels.shape)}")
    labels = labels.astype(np.int64)
    wrong = labels[(labels != ignored(num_classes)) & ((labels < 0) | (labels >= num_classes))]
    if wrong.size:
        raise UserError(
            f"label {wrong[0]} has no name: there are {num_classes} classes, and {ignored(num_classes)} is ignored"
        )
    return labels


def _outlines(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixels at either side of a border between labels."""
    edges = np.zeros(labels.shape, bool)
    for step in range(1, max(1, round(min(labels.shape) / 500)) + 1):
        down, right = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edges[step:] |= down
        edges[:-step] |= down
        edges[:, step:] |= right
        edges[:, :-step] |= right
    return edges


def _paste(parts: Sequence[Placed], width: int = 0, height: int = 0) -> Image.Image:
    """Pictures on white paper that is just large enough, and at least `width` × `height`."""
    width = max(width, *(x + picture.width for picture, x, _ in parts))
    height = max(height, *(y + picture.height for picture, _, y in parts))
    paper = Image.new("RGB", (width, height), PAPER)
    for picture, x, y in parts:
        paper.paste(picture, (x, y))
    return paper


def _percentage(share: float) -> str:
    return f"{share:.1f}%" if share >= 0.05 else "<0.1%"


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "…"
