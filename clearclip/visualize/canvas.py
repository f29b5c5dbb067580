"""What all pictures are drawn on: pixels of any image, its size when shown, sheets of paper, files."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clearclip.errors import UserError
from clearclip.paths import atomic_write

Picture: TypeAlias = np.ndarray | Image.Image | str | os.PathLike[str]  # uint8 [H, W, 3] or [H, W], or a file
Placed: TypeAlias = tuple[Image.Image, int, int]  # a picture and its left and upper edges, x and y

INK, PAPER = (30, 30, 30), (255, 255, 255)
SHOWN_WIDTH = 1200  # pixels in which a picture or sheet is meant to be seen
SHOWN_TEXT = 14  # height of its text then
SMALLEST_TEXT = 13
RUNS = 3  # zlib's Z_RLE: it makes photographs and label maps as small as a thorough search, several times as fast


def to_rgb(image: Picture) -> np.ndarray:
    """An image to pixels [H, W, 3], uint8. Raises UserError for arrays of other shapes and types."""
    if isinstance(image, str | os.PathLike):
        from clearclip.images import read_image

        return read_image(image)
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise UserError(f"an image must be uint8 [H, W, 3] or [H, W], not {pixels.dtype} {list(pixels.shape)}")
    if pixels.shape[2:] != (3,):
        pixels = np.stack([pixels.reshape(pixels.shape[:2])] * 3, axis=-1)
    return np.ascontiguousarray(pixels)


def shown_shape(shape: tuple[int, ...], max_side: int | None) -> tuple[int, int]:
    """(H, W) of an image [H, W, …] whose longer side is made `max_side` where it is more."""
    height, width = shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return height, width
    scale = max_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(pixels: np.ndarray, shape: tuple[int, int], smooth: bool = True) -> np.ndarray:
    """An image, or with `smooth` False a label map, [H, W, …] to a smaller `shape` (h, w)."""
    if pixels.shape[:2] == shape:
        return pixels
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA if smooth else cv2.INTER_NEAREST_EXACT)


def text_size(shape: tuple[int, ...], columns: int = 1) -> int:
    """Pixels of text for a picture [H, W, …] in a sheet of `columns`, to be read when that is shown at 1,200."""
    height, width = shape[:2]
    return max(SMALLEST_TEXT, round(SHOWN_TEXT * max(width * columns, height) / SHOWN_WIDTH))


def paste(parts: Sequence[Placed], width: int = 0, height: int = 0) -> Image.Image:
    """Pictures on white paper that is just large enough, and at least `width` × `height`."""
    width = max(width, *(x + picture.width for picture, x, _ in parts))
    height = max(height, *(y + picture.height for picture, _, y in parts))
    paper = Image.new("RGB", (width, height), PAPER)
    for picture, x, y in parts:
        paper.paste(picture, (x, y))
    return paper


def encode_picture(
    picture: Image.Image, format: str = "PNG", text: Mapping[str, str] | None = None, smallest: bool = False
) -> bytes:
    """A picture as the bytes of a file, "PNG", "JPEG" or "WEBP"; `text` is kept inside a PNG, by keyword.

    A PNG is compressed lightly; `smallest` takes some hundred times as long for a tenth less.
    """
    if format == "PNG" and picture.mode == "RGB" and not text and not smallest:  # OpenCV is three times as fast
        return bytes(cv2.imencode(".png", cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))[1])
    options: dict[str, Any] = dict(quality=90)
    if format == "JPEG":
        options |= dict(subsampling=0)
    elif format == "PNG":
        effort = dict(compress_level=9) if smallest else dict(compress_level=1, compress_type=RUNS)
        options = dict(**effort, pnginfo=png_text(text or {}))
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def save_picture(
    picture: Image.Image, path: str | Path, text: Mapping[str, str] | None = None, smallest: bool = False
) -> None:
    """Write a picture as its suffix says (.png, .jpg, .webp; none is .png), whole or not at all.

    `text` and `smallest` are those of `encode_picture`. Raises UserError for a suffix that is no picture's.
    """
    formats = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise UserError(f"{path}: pictures are written as .png, .jpg or .webp, not as {suffix}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_picture(picture, formats[suffix], text, smallest))


def png_text(text: Mapping[str, str]) -> PngInfo:
    """Text for a PNG, by keyword, in any script."""
    info = PngInfo()
    for keyword, words in text.items():
        info.add_itxt(keyword, words, zip=len(words) > 1000)
    return info
