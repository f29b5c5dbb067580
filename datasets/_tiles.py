"""Large pictures and their label maps, cut into tiles; labels given as colours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import check_file, write_image
from PIL import Image

from clearclip.errors import UserError

Image.MAX_IMAGE_PIXELS = None  # aerial pictures are larger than Pillow lets pass

Colours = Mapping[tuple[int, int, int], int]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `height` × `width` pixels every `down` and `across`.

    `inside`: the last tile of a row or column is shifted inside the picture. Otherwise it is padded, as every picture
    smaller than a tile is: the picture with 0, its labels with 255.
    """

    height: int
    width: int
    down: int
    across: int
    inside: bool = True

    def corners(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Top and left of each tile of a picture, row by row."""
        for top in self._starts(height, self.height, self.down):
            for left in self._starts(width, self.width, self.across):
                yield top, left

    def _starts(self, length: int, size: int, step: int) -> list[int]:
        last = max(length - size, 0)
        return [*range(0, last, step), last] if self.inside else list(range(0, length, step))

    def cut(self, pixels: np.ndarray, top: int, left: int, fill: int) -> np.ndarray:
        """One tile of [H, W, …], padded with `fill` where the picture ends."""
        tile = pixels[top : top + self.height, left : left + self.width]
        padding = [(0, self.height - tile.shape[0]), (0, self.width - tile.shape[1])]
        return np.pad(tile, padding + [(0, 0)] * (tile.ndim - 2), constant_values=fill)


def square(side: int, step: int | None = None, inside: bool = True) -> Tiling:
    """Square tiles, side by side unless there is a `step`."""
    return Tiling(side, side, step or side, step or side, inside)


def size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, whose pixels are not read."""
    check_file(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read {path} ({error})") from error


def read_rgb(path: Path) -> np.ndarray:
    """A picture [H, W, 3] in RGB, whatever its mode."""
    return _read(path, "RGB")


def read_grey(path: Path) -> np.ndarray:
    """A picture [H, W] in 8-bit grey, whatever its mode."""
    return _read(path, "L")


def _read(path: Path, mode: str) -> np.ndarray:
    check_file(path)
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode))
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"cannot read {path} ({error})") from error


def by_colour(rgb: np.ndarray, colours: Colours, path: Path) -> np.ndarray:
    """The labels [H, W], uint8, that the colours [H, W, 3] of a file stand for. Raises UserError for another colour."""
    codes = rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    labels = np.full(codes.shape, -1, np.int16)
    for (red, green, blue), label in colours.items():
        labels[codes == 65536 * red + 256 * green + blue] = label
    if labels.min() < 0:
        odd = ", ".join(map(str, rgb[labels < 0][0].tolist()))
        raise UserError(f"{path} has the colour ({odd}), which is none of this data set's")
    return labels.astype(np.uint8)


def read_colours(path: Path, colours: Colours) -> np.ndarray:
    """The labels [H, W], uint8, of a picture whose colours are labels."""
    return by_colour(read_rgb(path), colours, path)


def write_tiles(image: Path, labels: np.ndarray, tiling: Tiling, targets: list[tuple[Path, Path]]) -> None:
    """Write the tiles of a picture and of its labels to `targets`, (picture, label map) in the order of `corners`.

    The last label map is written last: where it is there, all are. Raises UserError where the two sizes differ.
    """
    pixels = read_rgb(image)
    if pixels.shape[:2] != labels.shape:
        raise UserError(f"{image} is {pixels.shape[:2]}, its label map {labels.shape}: one of them is another's")
    for (top, left), (picture, label_map) in zip(tiling.corners(*labels.shape), targets, strict=True):
        write_image(picture, tiling.cut(pixels, top, left, 0))
        write_image(label_map, tiling.cut(labels, top, left, 255))
