import io
import os
import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clearclip import images
from clearclip.errors import UserError
from clearclip.images import find_pictures, image_size, orientation, read_image, read_stored, turn

PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "datasets" / "sanity" / "images").glob("*.jpg"))
GREY16 = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip  # from how it should be seen to how it is stored


def noise(height=20, width=30, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


RGB = noise()


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def on_white(rgb, alpha):
    alpha = alpha[..., None] / 255
    return np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels, orientation=1, subfile=0):
    """An uncompressed TIFF of [H, W, C]."""
    height, width, channels = pixels.shape
    bits, data = pixels.itemsize * 8, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    after = 8 + 2 + 11 * 12 + 4
    tags = [
        (254, 4, 1, subfile), (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, after), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, after + 2 * channels), (274, 3, 1, orientation), (277, 3, 1, channels),
        (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack("<H", bits) * channels + data


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, bits=8, colours=2):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))


# Every form of one picture


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_photographs_are_decoded_as_opencv_does(path):
    expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    with Image.open(path) as image:
        assert np.array_equal(read_image(image), expected)
        assert np.array_equal(read_image(image), expected)  # the first time changed nothing
        image.load()
        assert np.array_equal(read_image(image), expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_files_are_decoded_as_opencv_does(suffix, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    assert np.array_equal(read_image(path), RGB)
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], RGB)


def modes():
    """Name → a PIL image, the kind of file that keeps its mode, and the RGB that a person expects."""
    rgb, alpha = Image.fromarray(RGB), noise(seed=1)[..., 0]
    alpha[0] = 255, *alpha[0, 1:]
    transparent = rgb.copy()
    transparent.putalpha(Image.fromarray(alpha))
    palette = rgb.quantize(16)
    colours = np.asarray(palette.convert("RGB"))
    l, la = Image.fromarray(RGB[..., 0]), Image.fromarray(np.stack([RGB[..., 0], alpha], axis=2))  # noqa: E741
    bits = Image.fromarray(RGB[..., 0] > 99)
    unit = GREY16.astype(np.float32) / 65535
    hole = np.where((np.asarray(palette) == 3)[..., None], 255, colours).astype(np.uint8)
    key = np.where((RGB[0, 0] == RGB).all(axis=2, keepdims=True), 255, RGB).astype(np.uint8)
    return {
        "rgb": (rgb, "PNG", {}, RGB),
        "grey": (l, "PNG", {}, grey(RGB[..., 0])),
        "grey, alpha": (la, "PNG", {}, on_white(grey(RGB[..., 0]), alpha)),
        "rgb, alpha": (transparent, "PNG", {}, on_white(RGB, alpha)),
        "rgb, alpha, webp": (transparent, "WEBP", {"lossless": True, "exact": True}, on_white(RGB, alpha)),
        "rgb, alpha, tiff": (transparent, "TIFF", {}, on_white(RGB, alpha)),
        "rgb, one colour transparent": (rgb, "PNG", {"transparency": tuple(map(int, RGB[0, 0]))}, key),
        "palette": (palette, "PNG", {}, colours),
        "palette, one transparent": (palette, "PNG", {"transparency": 3}, hole),
        "palette, one transparent, gif": (palette, "GIF", {"transparency": 3}, hole),
        "1 bit": (bits, "PNG", {}, grey((RGB[..., 0] > 99) * 255)),
        "1 bit, tiff": (bits, "TIFF", {"compression": "group4"}, grey((RGB[..., 0] > 99) * 255)),
        "16 bits": (Image.fromarray(GREY16), "PNG", {}, grey(GREY16 >> 8)),
        "16 bits, tiff": (Image.fromarray(GREY16), "TIFF", {}, grey(GREY16 >> 8)),
        "12 of 16 bits": (Image.fromarray(GREY16 >> 4), "PNG", {}, grey(GREY16 >> 8)),
        "14 of 16 bits, tiff": (Image.fromarray(GREY16 >> 2), "TIFF", {}, grey(GREY16 >> 8)),
        "8 of 16 bits": (Image.fromarray(GREY16 >> 8), "PNG", {}, grey(GREY16 >> 8)),
        "32 bits": (Image.fromarray(GREY16.astype(np.int32) << 15), "TIFF", {}, grey(GREY16 >> 9)),
        "16 of 32 bits": (Image.fromarray(GREY16.astype(np.int32)), "TIFF", {}, grey(GREY16 >> 8)),
        "float, 0..1": (Image.fromarray(unit), "TIFF", {}, grey(np.rint(unit * 255))),
        "float, 0..255": (Image.fromarray(unit * 255), "TIFF", {}, grey(np.rint(unit * 255))),
        "float, 0..65535": (Image.fromarray(unit * 65535), "TIFF", {}, grey(GREY16 >> 8)),
        "cmyk": (rgb.convert("CMYK"), "TIFF", {}, RGB),
        "YCbCr": (rgb.convert("YCbCr"), "TIFF", {}, np.asarray(rgb.convert("YCbCr").convert("RGB"))),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", modes())
def test_a_file_and_its_pil_image_are_one_picture(name, tmp_path):
    image, kind, options, expected = modes()[name]
    if name == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:  # it does not read what it wrote
        assert np.array_equal(read_image(image), expected)
        return
    path = tmp_path / "picture"
    image.save(path, kind, **options)
    seen = read_image(path)
    assert (seen.dtype, seen.shape, seen.flags.c_contiguous) == (np.uint8, expected.shape, True)
    assert np.abs(seen.astype(int) - expected).max() <= (1 if "alpha" in name else 0)
    assert image_size(path) == expected.shape[:2]
    with Image.open(path) as lazy:
        assert np.array_equal(read_image(lazy), seen)
        lazy.load()
        assert np.array_equal(read_image(lazy), seen)
    if not options:
        assert np.array_equal(read_image(image), seen)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_of_16_bits(suffix, bits, channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << bits, (20, 30, channels), dtype=np.uint16)
    values[0, 0] = (1 << bits) - 1
    values[..., 3:] = 65535
    path = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        cv2.imwrite(str(path), values[..., [2, 1, 0, 3][:channels]])
    else:
        path.write_bytes(tiff(values[..., :3]))
    expected = values[..., :3] >> (bits - 8)
    assert np.array_equal(read_image(path), expected)
    with Image.open(path) as image:
        assert np.array_equal(read_image(image), expected)


def test_grey_and_alpha_of_16_bits(tmp_path):
    values = np.stack([GREY16 >> 4, GREY16[:, ::-1]], axis=2).astype(">u2")  # 12 bits of grey, 16 of alpha
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "deep.png").write_bytes(
        png_header(30, 20, bits=16, colours=4) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    expected = on_white(grey(GREY16 >> 8), GREY16[:, ::-1] >> 8)
    with Image.open(tmp_path / "deep.png") as image:
        for given in (tmp_path / "deep.png", image):
            assert np.abs(read_image(given).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "CMYK JPEG", "PNG", "WEBP", "TIFF", "AVIF", "deep TIFF"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_exif_turns_a_picture_upright(kind, turned, tmp_path):
    quadrants = np.zeros((32, 48, 3), np.uint8)  # as it should be seen: red, green / blue, white
    for place, colour in (((0, 0), (255, 0, 0)), ((0, 1), (0, 255, 0)), ((1, 0), (0, 0, 255)), ((1, 1), (255,) * 3)):
        y, x = place[0] * 16, place[1] * 24
        quadrants[y : y + 16, x : x + 24] = colour
    stored = Image.fromarray(quadrants)
    if turned > 1:
        stored = stored.transpose(Image.Transpose[TURNS[turned]])
    path = tmp_path / "photograph"
    if kind == "deep TIFF":
        path.write_bytes(tiff(np.asarray(stored).astype(np.uint16) * 257, turned))
    else:
        exif = Image.Exif()
        exif[0x0112] = turned
        options = {"quality": 95} if kind in ("WEBP", "AVIF") else {"quality": 95, "subsampling": 0}
        picture = stored.convert("CMYK") if kind == "CMYK JPEG" else stored
        picture.save(path, kind.split()[-1], exif=exif, **options)

    with Image.open(path) as lazy:
        pictures = [read_image(path), read_image(lazy)]
        lazy.load()
        pictures.append(read_image(lazy))
    for seen in pictures:
        assert np.abs(seen.astype(int) - quadrants)[4:12, 4:20].max() < 30
        assert np.array_equal(seen > 127, quadrants > 127)
    assert np.array_equal(pictures[0], pictures[1])
    assert image_size(path) == (32, 48)
    assert orientation(path) == turned
    as_stored = read_stored(path)
    assert np.array_equal(as_stored > 127, np.asarray(stored) > 127)
    assert np.array_equal(turn(as_stored, turned), pictures[0])


def test_xmp_and_damaged_exif_turn_nothing(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(RGB).save(tmp_path / "xmp.jpg", xmp=xmp)
    Image.fromarray(RGB).save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.fromarray(RGB).save(tmp_path / "nine.jpg", exif=exif)
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            for given in (path, image):
                assert read_image(given).shape == RGB.shape, path
        assert (orientation(path), image_size(path)) == (1, (20, 30))
        assert cv2.imread(str(path)).shape == RGB.shape  # as the published numbers were made


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_an_animation_is_its_first_frame(kind, tmp_path):
    first, second = (Image.new("RGB", (30, 20), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / "film", kind, save_all=True, append_images=[second], **options)
    with Image.open(tmp_path / "film") as film:
        assert film.n_frames == 2
        for seen in (read_image(tmp_path / "film"), read_image(film)):
            assert np.abs(seen.astype(int) - [200, 0, 0]).max() < 3
        film.seek(1)
        assert np.abs(read_image(film).astype(int) - [0, 0, 200]).max() < 3


def test_a_jpeg_may_be_followed_by_other_data(tmp_path):
    whole = PHOTOGRAPHS[0].read_bytes()
    (tmp_path / "motion.jpg").write_bytes(whole + b"\0\0\0\x18ftypmp42" + bytes(1000))
    assert np.array_equal(read_image(tmp_path / "motion.jpg"), read_image(PHOTOGRAPHS[0]))


def test_a_jpeg_that_opencv_would_complete_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cut.jpg").write_bytes(PHOTOGRAPHS[0].read_bytes()[:-500])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((20, 30, 3), np.uint8))  # as OpenCV 4 does
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(tmp_path / "cut.jpg")


def test_a_smaller_jpeg_that_pillow_was_asked_for(tmp_path):
    with Image.open(PHOTOGRAPHS[0]) as image:
        image.draft("RGB", (100, 100))
        assert read_image(image).shape == (image.height, image.width, 3)


# Arrays and tensors


def array_cases():
    rgb, tensor = RGB, torch.from_numpy(RGB).permute(2, 0, 1)
    alpha = np.full((20, 30, 1), 255, np.uint8)
    half = np.full((20, 30, 1), 128, np.uint8)
    readonly = rgb.copy()
    readonly.flags.writeable = False
    return {
        "uint8": (rgb, rgb),
        "read-only": (readonly, rgb),
        "Fortran order": (np.asfortranarray(rgb), rgb),
        "mirrored": (rgb[:, ::-1], rgb[:, ::-1]),
        "grey": (rgb[..., 0], grey(rgb[..., 0])),
        "grey, one channel": (rgb[..., :1], grey(rgb[..., 0])),
        "grey, alpha": (np.concatenate([rgb[..., :1], half], axis=2), on_white(grey(rgb[..., 0]), half[..., 0])),
        "rgba, opaque": (np.concatenate([rgb, alpha], axis=2), rgb),
        "rgba": (np.concatenate([rgb, half], axis=2), on_white(rgb, half[..., 0])),
        "float64": (rgb / 255, rgb),
        "float32": ((rgb / 255).astype(np.float32), rgb),
        "float16": ((rgb / 255).astype(np.float16), rgb),
        "float rgba": (np.concatenate([rgb, half], axis=2) / 255, on_white(rgb, half[..., 0])),
        "float, all 0": (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5, 3), np.uint8)),
        "float, rounded": (np.full((4, 5, 3), 0.7 / 255), np.ones((4, 5, 3), np.uint8)),
        "bool": (rgb[..., 0] > 99, grey((rgb[..., 0] > 99) * 255)),
        "int64": (rgb.astype(np.int64), rgb),
        "big-endian": (rgb.astype(">i4"), rgb),
        "uint16": (rgb.astype(np.uint16) * 257, rgb),
        "uint16, 12 bits": (rgb.astype(np.uint16) << 4, rgb),
        "one pixel": (np.full((1, 1, 3), 7, np.uint8), np.full((1, 1, 3), 7, np.uint8)),
        "tensor": (tensor, rgb),
        "tensor, channels last": (tensor[None].contiguous(memory_format=torch.channels_last)[0], rgb),
        "tensor, grey": (tensor[0], grey(rgb[..., 0])),
        "tensor, one channel": (tensor[:1], grey(rgb[..., 0])),
        "tensor, rgba": (torch.cat([tensor, torch.full((1, 20, 30), 128)]), on_white(rgb, half[..., 0])),
        "tensor, uint16": (torch.from_numpy(rgb.astype(np.uint16) * 257).permute(2, 0, 1), rgb),
        "tensor, bool": (tensor[0] > 99, grey((rgb[..., 0] > 99) * 255)),
        "tensor, float": (tensor / 255, rgb),
        "tensor, bf16, gradient": (
            torch.ones(3, 4, 5, dtype=torch.bfloat16, requires_grad=True),
            np.full((4, 5, 3), 255, np.uint8),
        ),
        "tensor, half": ((tensor / 255).half(), rgb),
        "tensor, sparse": (tensor.to_sparse(), rgb),
    }


@pytest.mark.parametrize("name", array_cases())
def test_arrays_and_tensors(name):
    image, expected = array_cases()[name]
    seen = read_image(image)
    assert (seen.dtype, seen.flags.c_contiguous, seen.flags.writeable) == (np.uint8, True, True)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() <= (1 if "alpha" in name or "rgba" in name else 0)


def test_what_is_an_image_already_is_not_copied():
    rgb = RGB.copy()
    assert read_image(rgb) is rgb


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((9, 9, 5), np.uint8), r"must be RGB, .* this array is \[9, 9, 5\] uint8$"),
        (np.zeros((3, 8, 9), np.uint8), r"\[3, 8, 9\] uint8; its channels .* use \.transpose\(1, 2, 0\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"\[2, 3, 4, 4\] uint8; give the images of a batch as a list"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((4, 0), np.uint8), r"\[4, 0\]"),
        (np.zeros(4, np.uint8), r"\[4\] uint8"),
        (np.zeros((), np.uint8), r"\[\] uint8"),
        (np.full((4, 4, 3), -1), r"within 0\.\.255; this one, int64, has -1 to -1"),
        (np.full((4, 4, 3), 1 << 40), r"within 0\.\.255; .* 1099511627776"),
        (np.full((4, 4, 3), 255.0), r"within 0\.\.1; divide by 255"),
        (np.full((4, 4, 3), -0.1), r"within 0\.\.1"),
        (np.full((4, 4, 3), np.nan), "finite"),
        (np.full((4, 4, 3), np.inf, np.float16), "finite"),
        (np.full((4, 4, 3), 1j), "not complex128"),
        (np.full((4, 4, 3), None), "not object"),
        (np.full((4, 4, 3), "7"), "not <U1"),
        (np.zeros((4, 4, 3), "datetime64[s]"), r"not datetime64\[s\]"),
        (torch.zeros(8, 9, 3), r"this tensor is \[8, 9, 3\] float32; its channels .* use \.permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 4, 4), "this tensor .* batch as a list"),
        (torch.zeros(3, 0, 4), r"\[3, 0, 4\]"),
        (torch.zeros(3, 4, 4, device="meta"), "a tensor on the device meta has none"),
        (torch.full((3, 4, 4), -1), "has -1 to -1"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "not complex64"),
        (torch.full((3, 4, 4), torch.nan), "finite"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point picture must be finite"),
        (Image.fromarray(np.full((4, 4), -5, np.int32)), "has -5 to -5"),
        (Image.new("RGB", (0, 4)), "must have pixels"),
        (7, "not int"),
        (None, "not NoneType"),
        (b"cat.jpg", "not bytes"),
        ([RGB], "not list"),
    ],
)
def test_what_is_no_image_is_refused(image, match):
    with pytest.raises(UserError, match=match):
        read_image(image)


# Files that cannot be read


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.jpg"))
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    for name, reason in (
        ("fifo.jpg", "not a regular file"),
        ("socket.jpg", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("gone.jpg", "No such file"),
        ("broken.jpg", "No such file"),
        ("loop.jpg", "symbolic links"),
        ("", "Is a directory"),
        ("a\0b.jpg", "null"),
        ("\ud800.jpg", "surrogates"),
        ("x" * 300, "name too long"),
    ):
        for read in (read_image, read_stored, image_size, orientation):
            with pytest.raises(UserError, match=f"cannot read image .*{reason}.*; give the path of a picture"):
                read(os.path.join(tmp_path, name))
    server.close()
    with pytest.raises(UserError, match="is an address, not a file; download"):
        read_image("https://example.com/cat.jpg")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "mine.png").write_bytes(encode(Image.fromarray(RGB), "PNG"))
    (tmp_path / "mine.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_image(tmp_path / "mine.png")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a picture but an empty file"),
        (b"this is no picture", "is not a picture that can be read; convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "is a HEIC picture, which cannot be read; convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypisom\0\0\2\0isomiso2", "is a video; save one of its frames"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "is a video"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document; save its page as PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "is an SVG drawing; save it as PNG"),
        (b"<!DOCTYPE html>\n<HTML><body><svg>", "is a web page; download the picture itself"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "is a PostScript drawing; save it as PNG",
        ),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n", "Radiance HDR"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
        (b"\xff\x0a\xfa\x01", "JPEG XL"),
        (b"PK\x03\x04\x14\0", "ZIP archive; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"II*\0\x08\0\0\0\0\0", "TIFF"),
        (tiff(RGB, subfile=1), "begins with a thumbnail, as a camera's raw files do; develop it"),
    ],
)
def test_other_files_are_named(content, match, tmp_path):
    path = tmp_path / "photograph.jpg"
    path.write_bytes(content)
    for read in (read_image, read_stored, image_size, orientation):
        with pytest.raises(UserError, match=match) as error:
            read(path)
        assert str(path) in str(error.value)


def whole_files():
    picture = Image.fromarray(noise(40, 60))
    kinds = {kind: encode(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000")}
    return kinds | {
        "progressive": encode(picture, "JPEG", progressive=True),
        "grey JPEG": encode(picture.convert("L"), "JPEG"),
        "LZW": encode(picture, "TIFF", compression="tiff_lzw"),
        "deep PNG": cv2.imencode(".png", noise(40, 60).astype(np.uint16) * 257)[1].tobytes(),
        "deep TIFF": tiff(noise(40, 60).astype(np.uint16) * 257),
    }


@pytest.mark.parametrize("kind", whole_files())
def test_a_file_that_is_cut_short_is_refused(kind, tmp_path):
    whole = whole_files()[kind]
    path = tmp_path / "photograph"
    for share in (0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(
            UserError, match=r"photograph.*(is a damaged picture|cannot be decoded|TIFF that is damaged).*download"
        ) as error:
            read_image(path)
        assert "\n" not in str(error.value)
        if "decoded" in str(error.value):  # Pillow can open it
            with Image.open(path) as image, pytest.raises(UserError, match=r"the PIL image .*cannot be decoded"):
                read_image(image)


def test_a_closed_pil_image_is_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pass
    with pytest.raises(UserError, match=r"the PIL image .*picture\.png cannot be decoded"):
        read_image(image)


# Large pictures


@pytest.mark.filterwarnings("error")
def test_the_pixel_limit_is_checked_before_decoding(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(30_000, 30_000) + b"\0\0\0\0IDAT")
    limit = Image.MAX_IMAGE_PIXELS
    assert image_size(path) == (30_000, 30_000)
    with pytest.raises(UserError, match=r"has 30000 × 30000 pixels, 900 million, and the limit is 200 million"):
        read_image(path)
    with pytest.raises(UserError, match=r"cannot be decoded"):  # there is nothing behind the header
        read_stored(path, max_pixels=None)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM", "ICO"])
def test_the_pixel_limit_counts_for_every_format(kind, tmp_path, monkeypatch):
    Image.fromarray(noise(32, 32)).save(tmp_path / "picture", kind)
    assert read_image(tmp_path / "picture", max_pixels=1024).shape == (32, 32, 3)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="32 × 32 pixels"):
        read_image(tmp_path / "picture", max_pixels=1023)
    with Image.open(tmp_path / "picture") as image, pytest.raises(UserError, match="32 × 32 pixels"):
        read_image(image, max_pixels=1023)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_large_pictures_within_the_limit_are_read(kind, tmp_path, monkeypatch):
    Image.fromarray(noise(32, 32)).save(tmp_path / "picture", kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(images, "LARGE", 100)
    assert read_image(tmp_path / "picture").shape == (32, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_lack_of_memory_is_no_damaged_file(kind, tmp_path, monkeypatch):
    path = tmp_path / "picture"
    Image.fromarray(RGB).save(path, kind)

    def exhausted(*_):
        raise MemoryError

    def exhausted_opencv(*_):
        error = cv2.error("Insufficient memory")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(Image.Image, "load", exhausted)
    monkeypatch.setattr(cv2, "imdecode", exhausted_opencv)
    with pytest.raises(UserError, match=r"not enough memory to decode .*, 30 × 20 pixels,; give"):
        read_image(path)


# Any bytes


@given(st.binary(max_size=200), st.sampled_from(sorted(whole_files())), st.integers(0, 2**16), st.booleans())
@example(b"", "PNG", 0, True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_bytes_give_an_image_or_one_sentence(tmp_path, change, kind, place, replace):
    whole = whole_files()[kind]
    place %= len(whole)
    path = tmp_path / "fuzz"
    path.write_bytes(whole[:place] + change + whole[place + len(change) * replace :])
    try:
        seen = read_image(path, max_pixels=100_000)
    except UserError as error:
        sentence = str(error)
    else:
        assert (seen.dtype, seen.shape[2]) == (np.uint8, 3)
        assert image_size(path) == seen.shape[:2]
        assert np.array_equal(turn(read_stored(path), orientation(path)), seen)
        return
    assert str(path) in sentence
    assert "\n" not in sentence


# Folders and globs


@pytest.fixture
def folder(tmp_path):
    names = ("10.jpg", "2.JPG", "b.png", "A.webp", ".hidden.jpg", "._2.JPG", "Thumbs.db", "notes.txt", "sub/3.png")
    for name in (*names, "sub/.git/4.png", "sub/deep/5.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "fifo.png")
    return tmp_path


def relative(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_pictures_of_a_folder(folder):
    pictures, skipped = find_pictures(folder)
    assert relative(pictures, folder) == ["2.JPG", "10.jpg", "A.webp", "b.png"]
    assert {path.name: reason for path, reason in skipped} == {
        ".hidden.jpg": "hidden",
        "._2.JPG": "hidden",
        "Thumbs.db": "no picture by its name",
        "notes.txt": "no picture by its name",
        "empty.png": "empty",
        "fifo.png": "no regular file",
    }
    pictures, _ = find_pictures([folder], recursive=True)
    assert relative(pictures, folder) == ["2.JPG", "10.jpg", "A.webp", "b.png", "sub/3.png", "sub/deep/5.tif"]


def test_pictures_of_files_and_globs(folder):
    given = [folder / "b.png", f"{folder}/*.[jJ]*", f"{folder}/**/*.png", folder / "notes.txt", str(folder / "b.png")]
    pictures, skipped = find_pictures(given)
    # A file that is named is taken, whatever its name; none is taken twice.
    assert relative(pictures, folder) == ["b.png", "2.JPG", "10.jpg", "sub/3.png", "notes.txt"]
    assert {path.name for path, _ in skipped} == {"empty.png", "fifo.png"}


def test_a_file_whose_name_is_a_pattern(tmp_path):
    (tmp_path / "cat[1].jpg").write_bytes(b"x")
    assert find_pictures(str(tmp_path / "cat[1].jpg"))[0] == [tmp_path / "cat[1].jpg"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("gone.jpg", "does not exist"),
        ("*.xyz", "holds no picture; known are"),
        ("sub/.git/none", "does not exist"),
        ("fifo.png", "not a regular file"),
        ("a\0b", "does not exist"),
    ],
)
def test_inputs_without_a_picture_are_refused(folder, given, match):
    with pytest.raises(UserError, match=match):
        find_pictures([folder / "b.png", f"{folder}/{given}"])
    (folder / "none").mkdir()
    with pytest.raises(UserError, match="none holds no picture"):
        find_pictures(folder / "none")
