"""Programs of `clearclip.export`: the same labels as a segmenter gives, in PyTorch and in onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image

from clearclip.cli.export import read_size
from clearclip.errors import UserError
from clearclip.export import linear, obstacle, opencv_resize, save_onnx, save_program, trace
from clearclip.images import resize_short
from clearclip.windows import resize_matrix

ROOT = Path(__file__).parents[1]
NAMES = ("b, c", "a", "d")  # classes whose queries are not in the order of the text
SHAPES = [(50, 70), (100, 90), (80, 80)]
METHODS = ["ClearCLIP"]


def batch(*images):
    return np.stack([image.transpose(2, 0, 1) for image in images])


def share_that_differs(found, expected):
    return (np.asarray(found) != expected).mean()


def onnx_run(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_onnx_gives_the_labels_of_pytorch_for_pictures_of_any_size(method, make, tmp_path):
    pytest.importorskip("onnxscript")
    segmenter = make(method)
    save_onnx(trace(segmenter, NAMES), tmp_path / "any.onnx")
    for shape in SHAPES:
        image = picture(*shape)
        labels = onnx_run(tmp_path / "any.onnx", batch(image))[0]
        assert share_that_differs(labels, segmenter(image, NAMES).labels) < 0.005
        assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_onnx_of_one_size_takes_any_batch(make, tmp_path):
    pytest.importorskip("onnxscript")
    segmenter = make(threshold=0.4)
    save_onnx(trace(segmenter, NAMES, (50, 70)), tmp_path / "one.onnx")
    images = [picture(50, 70, seed) for seed in range(3)]
    for labels, image in zip(onnx_run(tmp_path / "one.onnx", batch(*images)), images):
        assert share_that_differs(labels, segmenter(image, NAMES).labels) < 0.005


@pytest.mark.parametrize("size", [None, (50, 70)])
def test_a_program_gives_scores(size, make):
    segmenter, image = make(), picture(50, 70)
    made = trace(segmenter, NAMES, size, "scores", floats=True).program.module()
    found = made(torch.from_numpy(batch(image)).float() / 255)[0]
    expected = segmenter(image, NAMES, scores=True).similarity
    # Pixels that the two resizes round apart, and a network of random weights after them.
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)
    assert np.abs(found.numpy() - expected).mean() < 1e-3


def test_a_saved_program_knows_its_names(make, tmp_path):
    save_program(trace(make(), NAMES, (50, 70)), tmp_path / "x.pt2")
    about = {"about.json": ""}
    module = torch.export.load(tmp_path / "x.pt2", extra_files=about).module()
    assert json.loads(about["about.json"])["names"] == ["b", "a", "d"]
    assert module(torch.zeros(1, 3, 50, 70, dtype=torch.uint8)).shape == (1, 50, 70)


@pytest.mark.parametrize("shape", [(50, 70), (120, 90), (80, 80)])
def test_the_resize_is_that_of_opencv(shape):
    image = picture(*shape)
    expected = resize_short(image, 80)
    pixels = torch.from_numpy(batch(image)).int()
    found = opencv_resize(pixels, *expected.shape[:2])[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected.astype(int)).max() <= 1
    assert share_that_differs(found, expected) < 0.005


@pytest.mark.parametrize(("source", "target"), [(7, 16), (16, 7), (5, 5)])
def test_two_pixels_and_a_share_are_a_bilinear_resize(source, target):
    low, high, share = linear(source, target)
    line = torch.randn(source)
    torch.testing.assert_close((1 - share) * line[low] + share * line[high], resize_matrix(source, target) @ line)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("ClearCLIP+PAMR", {}, "PAMR refines"),
        ("LPOSS", {}, "whole pictures"),
        ("ClearCLIP", {"area_threshold": 0.1}, "area_threshold"),
        ("ClearCLIP", {"resize": "pil"}, "Pillow"),
        ("ClearCLIP", {"crop": 0}, "fixed size"),
    ],
)
def test_what_cannot_be_exported_says_why(method, options, reason, make, vit_weights):
    if method == "LPOSS":
        method += f":vfm=test_vit,vfm_weights={vit_weights}"
    segmenter = make(method, **options)
    assert reason in obstacle(segmenter, dynamic=True)
    with pytest.raises(UserError, match=reason):
        trace(segmenter, NAMES)


def test_sizes_are_read():
    assert read_size(["dynamic"]) is None
    assert read_size(["448", "672"]) == (448, 672)
    for wrong in (["448"], ["0", "3"], ["a", "b"]):
        with pytest.raises(UserError, match="--size"):
            read_size(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (50, 70)])
def test_the_example_runs_without_this_package(size, make, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    save_onnx(trace(make(), NAMES, size), tmp_path / "x.onnx")
    Image.fromarray(picture(60, 90)).save(tmp_path / "in.png")
    example = ROOT / "examples" / "onnx_segment.py"
    command = [sys.executable, str(example), *(str(tmp_path / name) for name in ("x.onnx", "in.png", "out.png"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["b", "a", "d"]
    assert Image.open(tmp_path / "out.png").size == (90, 60)
    assert "clearclip" not in example.read_text().replace("clearclip export", "")
