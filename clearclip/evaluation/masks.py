"""Ground truth in the forms that people's own data sets have, read as one label a pixel.

Label maps of 1 to 32 bits, colours with a palette file, COCO's panoptic PNGs and COCO's polygons and run lengths.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from clearclip.errors import UserError, one_line
from clearclip.images import LOSSY
from clearclip.vocabulary import Vocabulary

RGB = r"(?P<red>\d+)[\s,;]+(?P<green>\d+)[\s,;]+(?P<blue>\d+)"
RGB_FIRST = re.compile(rf"{RGB}(?:[\s,;:]+(?P<name>.+))?")
RGB_LAST = re.compile(rf"(?P<name>.+?)[\s,;:]+{RGB}")
BACKGROUND = "background"
Segmentation: TypeAlias = list[Any] | dict[str, Any]  # COCO's: polygons, or run lengths


@dataclass(frozen=True)
class Drawing:
    """The objects that COCO's JSON has of a picture.

    Attributes:
        objects: label and segmentation of each.
        size: height and width.
        elsewhere: the label of pixels that no object covers; None ignores them.
    """

    objects: tuple[tuple[int, Segmentation], ...]
    size: tuple[int, int]
    elsewhere: int | None = None


@dataclass(frozen=True)
class Mask:
    """The ground truth of one picture: a file, and for COCO what its JSON says of the picture.

    Attributes:
        path: the label map, or the JSON where that alone holds the ground truth.
        segments: label of each segment id of a panoptic PNG.
        drawing: the objects to be drawn, where there is no label map.
        name: what messages call it, the path by default.
    """

    path: Path
    segments: dict[int, int] | None = None
    drawing: Drawing | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.path)


@dataclass(frozen=True)
class MaskReader:
    """Turns masks into labels 0..C-1 and `ignored`, and refuses those that would be counted wrongly.

    Attributes:
        classes: C, the number of classes.
        class_file: where they are named, for messages.
        ignore: the values of label maps that stand for no class.
        first_label: the value of the first class in label maps.
        colours: label of each colour, R + 256 G + 65536 B, where masks are colour-coded.
    """

    classes: int
    class_file: str
    ignore: tuple[int, ...] = (255,)
    first_label: int = 0
    colours: dict[int, int] | None = field(default=None, repr=False)

    @property
    def ignored(self) -> int:
        """The label that ignored pixels are given: 255, or 65535 where 255 is a class."""
        return ignored_label(self.classes)

    @property
    def palette(self) -> list[list[int]] | None:
        """The first colour of each class, [C][3], where masks are colour-coded and every class has one."""
        first = {label: code for code, label in reversed((self.colours or {}).items())}
        if not all(label in first for label in range(self.classes)):
            return None
        return [[first[label] >> shift & 255 for shift in (0, 8, 16)] for label in range(self.classes)]

    @property
    def binary(self) -> bool:
        """Whether 255 may stand for the second of two classes."""
        return self.classes == 2 and self.first_label == 0 and 255 not in self.ignore

    def read(self, mask: Mask, shape: tuple[int, int]) -> np.ndarray:
        """The labels [H, W], int32, of a picture of `shape`.

        Raises UserError, naming the file, for a mask of another size and for a value that is not a label.
        """
        if mask.drawing is not None:
            _check_size(mask, mask.drawing.size, shape)
            return self._draw(mask.drawing, str(mask))
        pixels = read_pixels(mask.path, colours=self.colours is not None or mask.segments is not None)
        _check_size(mask, pixels.shape[:2], shape)
        if mask.segments is not None:
            return self._look_up_ids(mask.path, packed(pixels), mask.segments)
        if self.colours is not None:
            return _look_up_colours(mask.path, packed(pixels), self.colours)
        return self._look_up_labels(mask.path, pixels)

    @cached_property
    def _table(self) -> np.ndarray:
        """[65536] the label of each value of a label map, -1 where it has none."""
        table = np.full(65536, -1, np.int32)
        last = min(self.first_label + self.classes, len(table))
        table[self.first_label : last] = np.arange(last - self.first_label)
        if self.binary:
            table[255] = 1
        table[list(self.ignore)] = self.ignored
        return table

    def _look_up_labels(self, path: Path, values: np.ndarray) -> np.ndarray:
        if values.min() < 0 or values.max() >= len(self._table):
            raise self._strange(path, values[(values < 0) | (values >= len(self._table))][0])
        labels = self._table[values]
        if labels.min() < 0:
            raise self._strange(path, values[labels < 0][0])
        if self.binary and (values == 255).any() and (values == 1).any():
            raise self._strange(path, 255)
        return labels

    def _strange(self, path: Path, value: int) -> UserError:
        last = self.first_label + self.classes - 1
        ignored = " ".join(map(str, self.ignore)) or "none"
        if value == 255 and 255 not in self.ignore:
            remedy = "pass --ignore 255 if 255 is unlabelled"
        elif value == 0 and self.first_label:
            remedy = f"pass --ignore {' '.join(map(str, (0, *self.ignore)))} if 0 is unlabelled"
        elif value == self.classes and not self.first_label:
            remedy = "pass --first-label 1 if the labels begin at 1, or name the missing class"
        else:
            remedy = f"name the missing classes in {self.class_file}, or add the value to --ignore"
        return UserError(
            f"mask {path} holds {value}, which is none of the {self.classes} classes of {self.class_file} "
            f"({self.first_label} to {last}) nor ignored ({ignored}): {remedy}"
        )

    def _look_up_ids(self, path: Path, ids: np.ndarray, segments: dict[int, int]) -> np.ndarray:
        labels, unknown = look_up(ids, {0: self.ignored, **segments})
        if unknown:
            raise UserError(f"{path} has the segment {unknown[0]}, which the JSON does not list: use files that fit")
        return labels

    def _draw(self, drawing: Drawing, source: str) -> np.ndarray:
        """Objects drawn by decreasing area, so that a small one lies over a large one. Crowds count as their class."""
        elsewhere = self.ignored if drawing.elsewhere is None else drawing.elsewhere
        labels = np.full(drawing.size, elsewhere, np.int32)
        areas = [(label, rasterise(shape, drawing.size, source)) for label, shape in drawing.objects]
        for label, area in sorted(areas, key=lambda pair: pair[1].sum(), reverse=True):
            labels[area] = label
        return labels


def _look_up_colours(path: Path, codes: np.ndarray, colours: dict[int, int]) -> np.ndarray:
    labels, unknown = look_up(codes, colours)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"mask {path} has the colour {_rgb(unknown[0])}{more}, which is not in the palette: add it, under the "
            "name `void` if its pixels are to be ignored"
        )
    return labels


def _rgb(code: int) -> str:
    """A colour's code as the line of a palette writes it: `R G B`."""
    return " ".join(str(code >> shift & 255) for shift in (0, 8, 16))


def _check_size(mask: Mask, size: tuple[int, ...], shape: tuple[int, int]) -> None:
    if tuple(size) != tuple(shape):
        sizes = "{}x{}, its picture {}x{}".format(*size, *shape)
        raise UserError(f"mask {mask} is {sizes} (height x width): make both of one size")


def ignored_label(classes: int) -> int:
    return 255 if classes <= 255 else 65535


def look_up(codes: np.ndarray, table: dict[int, int]) -> tuple[np.ndarray, list[int]]:
    """`table[code]` of each of the codes [H, W], int32, and the codes that are not in `table`."""
    found, index = np.unique(codes, return_inverse=True)
    unknown = [code for code in found.tolist() if code not in table]
    labels = np.array([table.get(code, -1) for code in found.tolist()], np.int32)
    return labels[index.reshape(codes.shape)], unknown


def packed(pixels: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3], uint8, as R + 256 G + 65536 B [H, W]: the code of a colour and COCO's id of a segment."""
    return pixels.astype(np.int64) @ np.array([1, 256, 65536])


def read_pixels(path: Path, colours: bool = False) -> np.ndarray:
    """A mask's values [H, W], integers, or with `colours` its RGB [H, W, 3], uint8.

    Without `colours` a PNG with a palette gives its indices, and a picture in shades of grey its levels. Raises
    UserError for what cannot be read, what is in colours or in fractions, and a JPEG, whose values are not the ones
    that were saved.
    """
    if not path.is_file():
        raise UserError(f"mask {path} is {'no ordinary file' if path.exists() else 'missing'}: give a PNG or TIFF")
    try:
        with Image.open(path) as image:
            form, mode = image.format or "", image.mode
            lossy = form in LOSSY or image.info.get("compression") == "jpeg"  # the latter of a TIFF
            is_map = mode in ("1", "L", "P", "I", "F") or mode.startswith("I;")
            if is_map and not colours:
                pixels = np.array(image)
            else:
                grey = mode in ("LA", "La") and not colours
                pixels = np.array(image.getchannel("L") if grey else image.convert("RGB"))
    except MemoryError:
        raise UserError(f"mask {path} does not fit in memory: use fewer workers or smaller masks") from None
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read mask {path} ({one_line(error)}): save it as PNG again") from error
    if lossy:
        raise UserError(f"mask {path} is a {form}, whose compression alters labels: save it as PNG from its source")
    if colours:
        if is_map and mode != "P":
            raise UserError(f"mask {path} is a map of labels, not of colours: leave out --palette")
        return pixels
    return _levels(path, pixels)


def _levels(path: Path, pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            number = len(np.unique(packed(pixels)))
            raise UserError(
                f"mask {path} is a picture in {number} colours, not a map of labels: say which colour is which class "
                "with --palette FILE, a line `name R G B` for each"
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and (pixels == np.round(pixels)).all()):
            strange = pixels[~np.isfinite(pixels) | (pixels != np.round(pixels))][0]
            raise UserError(
                f"mask {path} holds {strange:g}, no whole label: save labels as integers, not scaled to 0..1"
            )
        pixels = pixels.astype(np.int64)
    return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels


# Names


def normal(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def match_names(
    names: Iterable[str], vocabulary: Vocabulary, source: Path, optional: Sequence[int] = ()
) -> dict[str, int]:
    """{name: class} for the `names` of `source` that are any name of a class.

    Raises UserError where a class that is not among the `optional` ones has none.
    """
    classes = {normal(name): index for index, synonyms in enumerate(vocabulary.names) for name in synonyms}
    matched = {name: classes[normal(name)] for name in names if normal(name) in classes}
    missing = sorted(set(range(len(vocabulary))) - set(matched.values()) - set(optional))
    if missing:
        name = vocabulary.classes[missing[0]]
        near = difflib.get_close_matches(normal(name), {normal(other): other for other in names}, n=1, cutoff=0.5)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names)[:8])} …"
        raise UserError(f"{source} has no {name!r}{more}, a class of the class file: {hint}")
    return matched


def read_palette(path: Path, vocabulary: Vocabulary) -> dict[int, int]:
    """{colour: label} from a palette file, a colour as R + 256 G + 65536 B.

    A line is `name R G B`, `R G B name` or, in the order of the class file, `R G B`; spaces, commas or tabs part
    them and `#` starts a comment. A name is any of a class's names, case and hyphens left aside. A class may have
    several colours; a colour whose name is no class is ignored in evaluation. Raises UserError, naming file and line.
    """
    lines = _palette_lines(path)
    named = [line.name for line in lines if line.name]
    if named and len(named) < len(lines):
        number = next(line.number for line in lines if not line.name)
        raise UserError(f"palette {path}, line {number} has no name, others have: name every colour or none")
    if not named:
        if len(lines) != len(vocabulary):
            raise UserError(
                f"palette {path} has {len(lines)} colours without names, the class file {len(vocabulary)} classes: "
                "write one colour for each class in its order, or name them"
            )
        lines = [line._replace(name=name) for line, name in zip(lines, vocabulary.classes)]
    classes = match_names([line.name for line in lines], vocabulary, path)
    table: dict[int, int] = {}
    for number, code, name in lines:
        label = classes.get(name, ignored_label(len(vocabulary)))
        if table.setdefault(code, label) != label:
            raise UserError(f"palette {path}, line {number}: {_rgb(code)} stands for another class already")
    return table


def palette_names(path: Path) -> list[str]:
    """The names in a palette file, each once."""
    return list(dict.fromkeys(line.name for line in _palette_lines(path) if line.name))


class _PaletteLine(NamedTuple):
    number: int
    code: int  # of the colour
    name: str  # "" where there is none


def _palette_lines(path: Path) -> list[_PaletteLine]:
    lines = []
    for number, line in read_lines(path, "palette"):
        match = RGB_FIRST.fullmatch(line) or RGB_LAST.fullmatch(line)
        if not match:
            raise UserError(f"palette {path}, line {number}: {line!r} is not of the form `name R G B`")
        red, green, blue = (int(match[channel]) for channel in ("red", "green", "blue"))
        if max(red, green, blue) > 255:
            raise UserError(f"palette {path}, line {number}: {line!r} has a value above 255; write 0 to 255")
        lines.append(_PaletteLine(number, red + 256 * green + 65536 * blue, (match["name"] or "").strip()))
    if not lines:
        raise UserError(f"palette {path} is empty: write a line `name R G B` for each class")
    return lines


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """Number and text of each line of the text file `path` that holds more than a comment. Raises UserError."""
    if path.exists() and not path.is_file():
        raise UserError(f"{what} {path} is not a file: give a text file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text: save it as UTF-8") from None
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line]


# COCO's shapes


def rasterise(segmentation: Segmentation, shape: tuple[int, int], source: str) -> np.ndarray:
    """COCO's `segmentation`, a list of polygons or run lengths, as a bool map of `shape`. Raises UserError."""
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != tuple(shape):
                raise ValueError(f"run lengths for {segmentation['size']}, a picture of {list(shape)}")
            counts = segmentation["counts"]
            return from_run_lengths(unpack(counts) if isinstance(counts, str) else counts, shape)
        area = np.zeros(shape, bool)
        for polygon in segmentation:
            area |= fill(np.array(polygon, float).reshape(-1, 2), shape)
        return area
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(f"{source} has a segmentation that is not COCO's ({error}): export it again") from error


def from_run_lengths(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Lengths of runs, outside and inside in turn, down one column after the other."""
    height, width = shape
    lengths = np.array(counts, np.int64)
    if lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise ValueError(f"run lengths of {lengths.sum()} pixels for {height} times {width}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def unpack(text: str) -> list[int]:
    """Run lengths from COCO's characters: 5 bits each and one that says that more follow, low bits first.

    From the fourth on, a run is stored as its difference from the one before the last.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for byte in text.encode("ascii"):
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of `shape` whose centres lie inside the polygon `points` [N, 2], x and y (even-odd rule).

    COCO's own tools take in half a pixel more or less along the edges.
    """
    height, width = shape
    if len(points) < 3 or not (np.abs(points) < 1e6).all():
        raise ValueError("a polygon needs three points or more, in pixels")
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    centres = np.arange(height) + 0.5
    row, edge = np.nonzero((y <= centres[:, None]) != (next_y <= centres[:, None]))
    crossing = x[edge] + (centres[row] - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)  # the first centre right of the crossing
    flips = np.zeros((height, width + 1), int)
    np.add.at(flips, (row, column), 1)
    return flips.cumsum(axis=1)[:, :width] % 2 == 1
