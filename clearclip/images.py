"""Pictures from anywhere to RGB: what a person sees in a viewer, as uint8 [H, W, 3].

A file and the PIL image opened from it give the same pixels: turned as EXIF says; transparent pixels on white;
the first frame of an animation, the first page of a TIFF. JPEGs are decoded by OpenCV, as the published numbers
were; everything else by Pillow.

A picture of more than 8 bits is read at the fewest of 8, 10, 12, 14, 16 and 32 bits that hold its largest value, so
that a 12-bit picture in a 16-bit file is not nearly black. Pillow keeps 8 bits of a colour picture that it has
decoded: give the path of a 12-bit colour file, or the PIL image before its pixels are loaded.
"""

import contextlib
import glob
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clearclip.errors import UserError, one_line

StrPath: TypeAlias = str | os.PathLike[str]

LONG_SIDE = 2048  # the published resize never makes an image longer than this
MAX_PIXELS = 200_000_000  # 0.6 GB once decoded; the largest sensors of phones have just as many
LARGE = 50_000_000  # below it, no version of Pillow has a limit of its own
DEPTHS = (8, 10, 12, 14, 16, 32)
EXIF_ORIENTATION = 0x0112
TIFF_SUBFILE_TYPE, TIFF_THUMBNAIL = 254, 1
TIFF_SIZE = (256, 257)  # width, height

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"}  # Pillow's names; labels do not survive them, or may not
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini")

CONVERT = "convert it to JPEG or PNG"
# Files that are often taken for pictures: where their mark stands, the mark, what they are, what to do.
FOREIGN = (
    *((8, mark, "a HEIC picture, which cannot be read", CONVERT) for mark in (b"hei", b"hev", b"mif1", b"msf1")),
    (8, b"avi", "an AVIF picture, which this Pillow cannot decode", f"install a newer Pillow, or {CONVERT}"),
    (8, b"crx ", "a camera's raw file", "develop it to JPEG or PNG"),
    (0, b"FUJIFILM", "a camera's raw file", "develop it to JPEG or PNG"),
    (4, b"ftyp", "a video", "save one of its frames as a picture"),
    (8, b"AVI ", "a video", "save one of its frames as a picture"),
    (0, b"\x1aE\xdf\xa3", "a video", "save one of its frames as a picture"),
    (0, b"\xff\x0a", "a JPEG XL picture, which cannot be read", CONVERT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture, which cannot be read", CONVERT),
    (0, b"#?R", "a Radiance HDR picture", "map its tones to 8 bits, as JPEG or PNG"),
    (0, b"v/1\x01", "an OpenEXR picture", "map its tones to 8 bits, as JPEG or PNG"),
    (0, b"II*\0", "a TIFF that is damaged or of a kind that cannot be read", f"download it again, or {CONVERT}"),
    (0, b"MM\0*", "a TIFF that is damaged or of a kind that cannot be read", f"download it again, or {CONVERT}"),
    (None, b"%pdf-", "a PDF document", "save its page as PNG"),
    (None, b"<html", "a web page", "download the picture itself"),
    (None, b"<svg", "an SVG drawing", "save it as PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull`"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
)


class Skipped(NamedTuple):
    """A file that `find_pictures` left out, and why, in a few words."""

    path: Path
    reason: str


def read_image(image: StrPath | Image.Image | np.ndarray | Tensor, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """A picture as RGB, uint8 [H, W, 3], C-contiguous, turned upright as EXIF says.

    `image` is a path, a PIL image, an array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W], where C is 1 (grey),
    2 (grey, alpha), 3 (RGB) or 4 (RGBA). Arrays and tensors hold floats in 0..1, integers (see the head of this
    module for their depth) or bool. Transparent pixels are laid on white. An array that is already RGB uint8 is
    returned without a copy.

    Raises UserError, naming the file, where it is missing, not a regular file, damaged, of an unknown format or, by
    its header, larger than `max_pixels` pixels (None: no limit); and for anything else that is not an image.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(image, max_pixels, upright=True)
    if isinstance(image, Image.Image):
        name = f"the PIL image {getattr(image, 'filename', '')}".strip()
        with _decoding(name):
            _check_pixels(name, image.size, max_pixels)
            return _decode(image, upright=True)
    if isinstance(image, Tensor):
        return _to_rgb(_tensor_pixels(image))
    if isinstance(image, np.ndarray):
        _check_form(image.shape, image.dtype, "array", channels_at=2)
        return _to_rgb(np.asarray(image))
    raise UserError(f"an image must be a path, a PIL image, an array or a tensor, not {type(image).__name__}")


def read_stored(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, but in the order in which the pixels are stored: EXIF's orientation is ignored."""
    return _read_file(path, max_pixels, upright=False)


def image_size(path: str | Path, max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width of what `read_image` would give, from the file's header alone. Raises UserError as it does."""
    with _opened(path) as image:
        _check_pixels(str(path), image.size, max_pixels)
        width, height = image.size
        if image.format == "TIFF":  # newer versions of Pillow turn this size as they will turn the pixels
            width, height = (_tiff_tag(image, tag) for tag in TIFF_SIZE)
        return (width, height) if _orientation(image) >= 5 else (height, width)


def orientation(path: str | Path) -> int:
    """EXIF's orientation of a picture, 1 (upright) to 8, from its header; see `turn`. Raises UserError as above."""
    with _opened(path) as image:
        return _orientation(image)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, …] as they should be seen, a view: [W, H, …] for an orientation from 5 on."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def resized_shape(height: int, width: int, short_side: int, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """The published resize rule: short side to `short_side`, unless that makes the long side exceed `long_side`."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_short(image: np.ndarray, short_side: int, long_side: int = LONG_SIDE) -> np.ndarray:
    """Resize [H, W, 3] by that rule, bilinear without antialiasing as OpenCV does it; 0 keeps the size."""
    if not short_side:
        return image
    import cv2

    height, width, _ = image.shape
    height, width = resized_shape(height, width, short_side, long_side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_patches(image: np.ndarray, short_side: int, patch: int, long_side: int = LONG_SIDE) -> np.ndarray:
    """CLIPer's resize of [H, W, 3]: the same scale, each side to the nearest multiple of a patch, Pillow's bicubic."""
    height, width = image.shape[:2]
    scale = min(long_side / max(height, width), short_side / min(height, width))
    height, width = (max(1, round(side * scale / patch)) * patch for side in (height, width))
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


# Files


def _read_file(path: StrPath, max_pixels: int | None, upright: bool) -> np.ndarray:
    with _opened(path) as image:
        _check_pixels(str(path), image.size, max_pixels)
        with _decoding(f"{path}, {image.width} × {image.height} pixels,"):
            return _decode(image, upright)


@contextlib.contextmanager
def _opened(path: StrPath) -> Iterator[Image.Image]:
    """The picture at `path`, its header read by Pillow and its pixels not yet decoded."""
    if re.match(r"\w+://", str(path)):
        raise UserError(f"{path} is an address, not a file; download the picture and give its path")
    try:
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # to open a FIFO would wait for ever
            raise UserError(f"cannot read image {path}: not a regular file; give the path of a picture")
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}; give the path of a picture") from None
    except ValueError as error:  # a NUL, or a character that no file name can have
        raise UserError(f"cannot read image {str(path)!r}: {error}; give the path of a picture") from None
    if not head:
        raise UserError(f"{path} is not a picture but an empty file; copy or download it again")
    try:
        with _without_pillow_limit():
            image = Image.open(path)
    except UnidentifiedImageError:
        raise UserError(f"{path} is {_describe(head)}") from None
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"{path} is a damaged picture ({one_line(error)}); copy or download it again") from error
    with image:
        if image.format == "EPS":
            raise UserError(f"{path} is a PostScript drawing; save it as PNG")
        if image.format == "TIFF" and _tiff_tag(image, TIFF_SUBFILE_TYPE) & TIFF_THUMBNAIL:
            raise UserError(f"{path} begins with a thumbnail, as a camera's raw files do; develop it to JPEG or PNG")
        yield image


def _describe(head: bytes) -> str:
    """What a file that Pillow does not know seems to be, and what to do with it."""
    for place, mark, what, remedy in FOREIGN:
        if head.startswith(mark, place) if place is not None else mark in head.lower():
            return f"{what}; {remedy}"
    return f"not a picture that can be read; {CONVERT}"


_pillow_limit = threading.RLock()


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Pillow has one limit for the whole process, below ours, that warns first: lift it where ours is checked."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise UserError(
            f"{name} has {width} × {height} pixels, {width * height / 1e6:,.0f} million, and the limit is "
            f"{max_pixels / 1e6:,.0f} million; give a smaller copy, or raise max_pixels"
        )


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn what decoders raise into UserError. A lack of memory is not called a damaged file."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"not enough memory to decode {name}; give a smaller copy") from None
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"{name} cannot be decoded ({one_line(error)}); copy or download the file again") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. Pillow's own reading is not used: it would decode a PNG, and believe XMP."""
    value: object = _tiff_tag(image, EXIF_ORIENTATION)
    if "exif" in image.info:
        exif = Image.Exif()
        with contextlib.suppress(Exception):  # damaged EXIF turns nothing
            exif.load(image.info["exif"])
            value = exif.get(EXIF_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _tiff_tag(image: Image.Image, tag: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, 0) if image.format == "TIFF" else 0
    return value if isinstance(value, int) else 0


# Pixels


def _decode(image: Image.Image, upright: bool) -> np.ndarray:
    """A Pillow image to RGB, uint8 [H, W, 3]."""
    if 0 in image.size:
        raise UserError("an image must have pixels; this one has none")
    stored = _orientation(image)  # to be asked before the pixels are: a TIFF forgets its own
    pixels = _opencv_pixels(image)
    if pixels is None:
        with _without_pillow_limit() if image.width * image.height > LARGE else contextlib.nullcontext():
            image.load()
        pixels = _pillow_pixels(image)
    turned = image.format == "TIFF"  # both libraries turn these, and only these, by themselves
    if turned and not upright:
        pixels = turn(pixels, {6: 8, 8: 6}.get(stored, stored))
    if upright and not turned:
        pixels = turn(pixels, stored)
    return _to_rgb(pixels)


def _opencv_pixels(image: Image.Image) -> np.ndarray | None:
    """Pixels [H, W, C] decoded by OpenCV where that is wanted, else None.

    That is where it made the published numbers, JPEG files, and where Pillow would keep 8 bits of 16.
    """
    tiles = getattr(image, "tile", ())  # where the encoded pixels are in the file; none once they are loaded
    deep = image.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile) for tile in tiles)
    jpeg = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    file = getattr(image, "fp", None)
    drafted = getattr(image, "decoderconfig", ())  # Pillow was asked for a smaller JPEG than is stored
    if not (deep or jpeg) or drafted or file is None or not tiles or image.tell():
        return None
    import cv2

    position = file.tell()
    file.seek(0)
    encoded = file.read()
    file.seek(position)
    if jpeg and not encoded.endswith(b"\xff\xd9"):
        image.load()  # Pillow finds out whether it is cut short; some versions of OpenCV leave the rest grey
    flags = cv2.IMREAD_UNCHANGED if deep else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        pixels = None
    if pixels is None:
        image.load()  # Pillow says what is wrong, as a rule
        raise ValueError("OpenCV finds it damaged")
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _pillow_pixels(image: Image.Image) -> np.ndarray:
    """Pixels [H, W] or [H, W, C] of an image that is loaded: integers of any width, grey, RGB or RGBA."""
    if image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high < 1 << DEPTHS[-1]:  # NaN is not, either
            raise UserError(f"a floating-point picture must be finite and within 0..255; this one has {low} to {high}")
        return values if high <= 1 else np.rint(values).astype(np.int64)
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _tensor_pixels(tensor: Tensor) -> np.ndarray:
    """A tensor [H, W] or [C, H, W], wherever it lies, as an array [H, W] or [H, W, C]."""
    if tensor.is_meta:
        raise UserError("an image must hold pixels, a tensor on the device meta has none")
    _check_form(tuple(tensor.shape), tensor.dtype, "tensor", channels_at=0)
    try:
        tensor = tensor.detach().to_dense().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
        return (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(f"a tensor {tensor.dtype} {tensor.layout} is no image ({one_line(error)})") from error


def _check_form(shape: tuple[int, ...], dtype: object, what: str, channels_at: int) -> None:
    """Raise UserError for an array or tensor whose shape is no image's; `channels_at` is 0 or 2."""
    kind = str(dtype).removeprefix("torch.")
    sound = len(shape) == 2 or (len(shape) == 3 and 1 <= shape[channels_at] <= 4)
    if sound and 0 not in shape:
        return
    hint = ""
    if len(shape) == 3 and 1 <= shape[2 - channels_at] <= 4:
        order = "(2, 0, 1)" if channels_at == 0 else "(1, 2, 0)"
        hint = f"; its channels stand at the wrong end, use .{'permute' if channels_at == 0 else 'transpose'}{order}"
    if len(shape) == 4:
        hint = "; give the images of a batch as a list"
    raise UserError(
        f"an image must be RGB, [H, W, 3] as an array or [3, H, W] as a tensor, uint8 or float in 0..1; this {what} "
        f"is {list(shape)} {kind}{hint}"
    )


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] or [H, W, C] of any sound type to RGB, uint8 [H, W, 3]."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] == 3:
        colour, alpha = _to_uint8(pixels), None
    else:
        colours = 1 if pixels.shape[2] < 3 else 3
        colour = np.repeat(_to_uint8(pixels[..., :colours]), 3 // colours, axis=2)
        alpha = _to_uint8(pixels[..., colours:]) if pixels.shape[2] > colours else None
    if alpha is not None and (alpha < 255).any():
        alpha = alpha.astype(np.uint16)  # 255 · 255 + 127 fits
        colour = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.require(colour, requirements=["C", "W"])  # torch wants what it shares to be writable


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Floats in 0..1, bool or integers, at the fewest of `DEPTHS` that hold the largest, to uint8."""
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UserError("a floating-point image must be finite and within 0..1; divide by 255 or convert to uint8")
        return np.rint(values.astype(np.promote_types(values.dtype, np.float32)) * 255).astype(np.uint8)
    if kind not in "iu":
        raise UserError(f"an image must hold numbers, uint8 or float in 0..1, not {values.dtype}")
    low, high = int(values.min()), int(values.max())
    bits = next((bits for bits in DEPTHS if high < 1 << bits), None)
    if low < 0 or bits is None:
        raise UserError(f"an image of integers must be within 0..255; this one, {values.dtype}, has {low} to {high}")
    return (values >> (bits - 8)).astype(np.uint8)


# Folders


def find_pictures(inputs: StrPath | Iterable[StrPath], recursive: bool = False) -> tuple[list[Path], list[Skipped]]:
    """The pictures that files, folders and globs name, each once, and what was left out.

    A file is taken as it is. Of a folder, and of what a glob matches (`**` for any depth), pictures are known by
    their suffix, in any case; hidden files, macOS's `._` files, Thumbs.db, empty files and files that cannot be read
    are left out. Sub-folders are read where `recursive`, hidden ones never. Inputs keep their order; within one,
    2.jpg is before 10.jpg.
    Raises UserError for an input that does not exist or holds no picture.
    """
    pictures: dict[Path, Path] = {}  # by the real path
    skipped: dict[Path, Skipped] = {}
    for given in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        found = [Path(given)] if _is(os.path.isfile, given) else []
        if not found:
            for path in sorted(_candidates(given, recursive), key=_natural):
                reason = _why_not(path)
                if reason:
                    skipped[path] = Skipped(path, reason)
                else:
                    found.append(path)
        if not found:
            raise UserError(f"{given} holds no picture; known are {', '.join(SUFFIXES)}")
        for path in found:
            pictures.setdefault(path.resolve(), path)
    return list(pictures.values()), list(skipped.values())


def _candidates(given: StrPath, recursive: bool) -> Iterator[Path]:
    """The files of a folder, or what a glob matches."""
    if _is(os.path.isdir, given):
        for folder, folders, files in os.walk(given):
            if recursive:
                folders[:] = [name for name in folders if not name.startswith(".")]
            else:
                folders.clear()
            yield from (Path(folder, name) for name in files)
    elif _is(os.path.lexists, given):  # a FIFO, a device, a broken link: reading it says so
        raise UserError(f"cannot read image {given}: not a regular file; give pictures, folders or globs")
    elif glob.has_magic(str(given)):
        matches = glob.glob(str(given), recursive=True)
        yield from (Path(match) for match in matches if not os.path.isdir(match))
    else:
        raise UserError(f"{str(given)!r} does not exist; give pictures, folders or globs")


def _is(test: Callable[[StrPath], bool], path: StrPath) -> bool:
    try:
        return test(path)
    except ValueError:  # a NUL
        return False


def _why_not(path: Path) -> str:
    """Why a file of a folder is left out, in a few words; empty for a picture."""
    if path.name.startswith("."):
        return "hidden"
    if path.name.lower() in JUNK or path.suffix.lower() not in SUFFIXES:
        return "no picture by its name"
    if not path.is_file():
        return "no regular file"
    if not os.access(path, os.R_OK):
        return "not readable"
    return "" if path.stat().st_size else "empty"


def _natural(path: Path) -> tuple[list[int | str], str]:
    """Sort key of a path: numbers by their value, letters whatever their case."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [int(part) if part.isdecimal() else part for part in parts], str(path)
