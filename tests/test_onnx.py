"""Programs of `clearclip.export`: the same labels as a segmenter gives, in PyTorch and in onnxruntime."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import assert_near, picture, tiny_vit
from PIL import Image
from safetensors.torch import save_file
from tiny_sam import tiny_sam

from clearclip.calibration import Calibration
from clearclip.cli.export import main, read_size, runner
from clearclip.errors import UserError
from clearclip.export import cause, linear, obstacle, opencv_resize, save_onnx, save_program, trace
from clearclip.images import resize_short
from clearclip.methods import list_methods
from clearclip.methods.scclip import squared_distances
from clearclip.refine import REFINEMENTS
from clearclip.windows import resize_matrix

ROOT = Path(__file__).parents[1]
NAMES = ("b, c", "a", "d")  # classes whose queries are not in the order of the text
SHAPES = [(50, 70), (100, 90), (80, 80)]
VIT, SAM = "vfm=test_vit,vfm_weights=test_vit.safetensors", "sam=tiny_samvit,sam_weights=tiny_samvit.safetensors"
# What a method or a refinement cannot do without, or is quicker with.
OPTIONS = {
    "ProxyCLIP": VIT,
    "GLA-CLIP": VIT,
    "LPOSS": VIT,
    "Trident": f"{VIT},{SAM}",
    "CorrCLIP": f"masks=masks,{VIT}",
    "TextRegion": "masks=masks,tile=64",
    "PAMR": "iterations=2",
    "LP": VIT,
    "LPP": "square=3",
    "MAPVOTE": "masks=masks",
    "SAM": "model=sam",
}
ANY_SIZE = {"CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP", "PEARL", "SC-CLIP", "GEM", "CLIPSeg"}
EVERYTHING = [entry.name for entry in list_methods()] + [f"ClearCLIP+{entry.name}" for entry in REFINEMENTS.entries()]
MASKS, OUTSIDE = "reads masks", "a library other than PyTorch"
REFUSED = {  # and why
    "CorrCLIP": MASKS,
    "TextRegion": MASKS,
    "MAPVOTE": MASKS,
    "LPOSS": "aten.sort has no counterpart",
    "LP": "aten.sort has no counterpart",
    "Trident": OUTSIDE,
    "SAM": OUTSIDE,
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with what `OPTIONS` name."""
    folder = tmp_path_factory.mktemp("networks")
    save_file(tiny_vit("test_vit").state_dict(), folder / "test_vit.safetensors")
    save_file(timm.create_model("tiny_samvit", num_classes=0).state_dict(), folder / "tiny_samvit.safetensors")
    tiny_sam().save_pretrained(folder / "sam")
    (folder / "masks").mkdir()
    return folder


def batch(*images):
    return np.stack([image.transpose(2, 0, 1) for image in images])


def share_that_differs(found, expected):
    return (np.asarray(found) != expected).mean()


def onnx_run(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]


@pytest.mark.slow
@pytest.mark.parametrize("written", EVERYTHING)
def test_every_method_and_refinement_is_written_as_onnx_or_says_why(written, make, networks, tmp_path, monkeypatch):
    """A new one is covered as it stands. What cannot be written has its reason in `REFUSED`."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(networks)
    name = written.rpartition("+")[2]
    method = f"{written}:{OPTIONS[name]}" if name in OPTIONS else written
    segmenter, path = make(method, short_side=64), tmp_path / "x.onnx"
    size, shapes = (None, SHAPES) if written in ANY_SIZE else (SHAPES[0], SHAPES[:1])
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]) as raised:
            save_onnx(trace(segmenter, NAMES, size), path)
        assert str(raised.value).startswith(f"{method} cannot be ")
        assert len(str(raised.value)) < 150 + len(method)
        assert str(raised.value).isprintable()
        return
    save_onnx(trace(segmenter, NAMES, size), path)
    found = set()
    for shape in shapes:
        image = picture(*shape)
        labels = onnx_run(path, batch(image))[0]
        assert share_that_differs(labels, segmenter(image, NAMES).labels) < 0.02
        found |= set(labels.flat)
    assert len(found) > 1


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
        ("ClearCLIP+EDGES", {}, "Edges works on whole pictures"),
        ("Overview", {}, "Overview works on whole pictures"),
        ("ClearCLIP+SCGA", {}, "whole pictures"),
        ("CLIPer", {}, "labels are made"),
        ("ClearCLIP", {"area_threshold": 0.1}, "labels are made"),
        ("ClearCLIP", {"crop": 0}, "any size needs windows"),
        ("ClearCLIP", {"resize": "device"}, "any size is resized as OpenCV does it"),
    ],
)
def test_what_needs_a_size_says_why(method, options, reason, make):
    segmenter = make(method, **options)
    assert not obstacle(segmenter)
    with pytest.raises(UserError, match=f"{reason}.*give the size of your pictures, such as --size"):
        trace(segmenter, NAMES)


def test_pillows_resize_is_refused(make):
    with pytest.raises(UserError, match="Pillow's resize"):
        trace(make(resize="pil"), NAMES, (50, 70))


@pytest.mark.parametrize(
    ("method", "options", "size"),
    [
        ("ClearCLIP", {"crop": 0}, (50, 70)),
        ("ClearCLIP", {"area_threshold": 0.3, "threshold": 0.2}, (50, 70)),
        ("ClearCLIP", {"short_side": 0}, (90, 70)),
        ("ClearCLIP", {"resize": "device"}, (50, 70)),
        ("ClearCLIP", {"long_side": 100}, (40, 90)),  # shrunk further than the short side asks for
        ("Overview", {"threshold": 0.5}, (50, 70)),
        ("CLIPer:normalise=True", {"crop": 0}, (50, 70)),
    ],
)
def test_of_one_size_all_settings_are_those_of_the_segmenter(method, options, size, make):
    segmenter, image = make(method, **options), picture(*size)
    labels = trace(segmenter, NAMES, size).program.module()(torch.from_numpy(batch(image)))[0].numpy()
    expected = segmenter(image, NAMES).labels
    assert labels.dtype == expected.dtype
    assert share_that_differs(labels, expected) < 0.005
    assert len(np.unique(labels)) > 1


def test_a_calibration_is_exported(make):
    segmenter, image = make(), picture(50, 70)
    plain = segmenter(image, NAMES).labels
    names = tuple(tuple(name.split(", ")) for name in NAMES)
    segmenter = make(calibration=Calibration(names, (0.0, 0.05, -0.05), None))
    expected = segmenter(image, NAMES).labels
    assert share_that_differs(plain, expected) > 0.05
    labels = trace(segmenter, NAMES, (50, 70)).program.module()(torch.from_numpy(batch(image)))[0]
    assert share_that_differs(labels, expected) < 0.005


@pytest.mark.parametrize("count", [9, 40])
def test_distances_without_cdist(count, monkeypatch):
    """PyTorch's `cdist`, which has no counterpart in ONNX, computes them so where there are more than 25 patches."""
    patches = torch.randn(2, count, 32, generator=torch.Generator().manual_seed(0)) + 3
    expected = squared_distances(patches)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert_near(squared_distances(patches), expected, 1e-5)


def test_a_cause_is_one_short_sentence():
    """What PyTorch says of an operation that cannot be converted, escape codes and advice included."""
    deepest = RuntimeError(
        "No ONNX function found for <OpOverload(op='aten.kthvalue', overload='default')>. \x1b[96mBad"
    )
    outer = RuntimeError("\x1b[96mThis is step 3/3\x1b[0m of exporting.\nNext steps:\n- Create an issue")
    outer.__cause__ = deepest
    assert cause(outer) == "its operation aten.kthvalue has no counterpart"
    assert cause(ValueError("\x1b[96mOne thing\x1b[0m is wrong. See there.\nAnd more")) == "One thing is wrong"
    assert "what is in the picture" in cause(RuntimeError("Could not guard on data-dependent expression Eq(u0, 1)"))
    assert cause(KeyError()) == "KeyError"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'need {package}: pip install "clearclip\[export\]"$'):
        save_onnx(None, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_the_program_names_a_missing_package_before_it_loads_anything(package, desk, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("clearclip.segmenter.Segmenter", None)
    with pytest.raises(SystemExit) as stopped:
        main(["x.onnx", "--names", "a"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f'error: ONNX files need {package}: pip install "clearclip[export]"\n'


@pytest.mark.slow
def test_a_file_of_more_than_2_gb_is_refused(make, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("clearclip.export.LARGEST_FILE", 1000)
    with pytest.raises(UserError, match=r"GB of weights, and an ONNX file holds 2; write a \.pt2 file"):
        save_onnx(trace(make(), NAMES, (50, 70)), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_the_program_compares_with_pytorch(desk, capsys):
    """On each picture that it is given, at the size of the file."""
    main(["pets.pt2", "--names", "cat", "grass, lawn", "--size", "48", "64", "--check", "photo.jpg", "photos/a.jpg"])
    made, *compared = capsys.readouterr().out.splitlines()
    assert made.startswith("pets.pt2: ")
    assert made.endswith(" MB, RGB, uint8, [B, 3, 48, 64] to labels")
    for line, name in zip(compared, ("photo.jpg", "photos/a.jpg"), strict=True):
        assert line.startswith(f"{name}, 64 × 48 pixels: ")
        assert re.search(r"all labels are PyTorch's; [\d.]+ s, in PyTorch [\d.]+ s$", line)


@pytest.mark.slow
def test_the_program_runs_the_onnx_file_that_it_wrote(desk, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    main(["pets.onnx", "--names", "cat", "grass", "--scores", "--float", "--check", "photo.jpg"])
    assert "scores differ from PyTorch's by at most " in capsys.readouterr().out
    Path("pets.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"pets\.onnx is written, but onnxruntime does not load it"):
        runner(Path("pets.onnx"), "onnx")


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
