"""Every method through eval.py on a tiny data set: a new file in clearclip/methods is covered as it stands.

Images are resized to 64 pixels and cut into windows of 64 every 32, so that two of the three have several.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from benchmarks import SHAPES, make_benchmark
from PIL import Image
from safetensors.torch import save_file
from tiny_sam import tiny_sam

from clearclip.evaluation.results import read_result
from clearclip.methods import create_method, list_methods
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import load_vocabulary
from eval import main

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = [entry.name for entry in list_methods()]
VIT, SAM = "vfm=test_vit,vfm_weights=test_vit.safetensors", "sam=tiny_samvit,sam_weights=tiny_samvit.safetensors"
# What a method cannot do without.
OPTIONS = {
    "ProxyCLIP": f":{VIT}",
    "GLA-CLIP": f":{VIT}",
    "LPOSS": f":{VIT}",
    "Trident": f":{VIT},{SAM}",
    "CorrCLIP": f":masks=masks,{VIT}",
    "TextRegion": ":masks=masks,tile=64",
}
REFINED = {"CorrCLIP": "+MAPVOTE:masks=masks"}  # what its own config has besides
VARIANTS = [  # a method with more to it, and the one that it must differ from
    ("ClearCLIP+PAMR", "ClearCLIP"),
    (f"ClearCLIP+LP:{VIT}", "ClearCLIP"),
    ("ClearCLIP+LPP", "ClearCLIP"),
    ("PEARL+TLP", "PEARL"),
    (f"LPOSS:{VIT}+LPP", "LPOSS"),
    ("GEM+PAMR", "GEM"),
    ("GEM+SCGA", "GEM"),
    ("RADSeg:denoise=0", "RADSeg"),
    ("NACLIP+SAM:model=sam,coarse_threshold=0,minimal_area=4,iou_threshold=-99", "NACLIP"),
    ("ClearCLIP+MAPVOTE:masks=masks", "ClearCLIP"),
    (f"CorrCLIP:masks=masks,{VIT}+MAPVOTE:masks=masks", "CorrCLIP"),
    ("ResCLIP:base=SCLIP", "SCLIP"),
    ("ResCLIP:base=NACLIP", "NACLIP"),
    ("ResCLIP:base=ClearCLIP", "ClearCLIP"),
    ("CLIPer:words=ship", "CLIPer"),
    ("CLIPer:window=64", "CLIPer"),
    ("CLIPer:background=True", "CLIPer"),
    ("CLIPer:refine=test_vit,refine_weights=test_vit.safetensors", "CLIPer"),
]
SCORES = ("mIoU", "aAcc", "mAcc", "per_class_IoU")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in: the data of VOC, embeddings of its names, timm's smallest ViT, tiny SAMs, masks."""
    folder = tmp_path_factory.mktemp("methods")
    make_benchmark(folder / "data", "voc21")
    torch.manual_seed(0)
    for name in ("test_vit", "tiny_samvit"):
        save_file(timm.create_model(name, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    tiny_sam().save_pretrained(folder / "sam")
    (folder / "masks").mkdir()
    for image, (height, width) in SHAPES.items():  # three masks side by side, the last row in none
        ids = np.repeat(np.arange(width, dtype=np.uint8)[None] * 3 // width + 1, height, axis=0)
        ids[-9:] = 0
        Image.fromarray(ids).save(folder / "masks" / f"{image}.png")
    names = load_vocabulary(CONFIGS / "cls_voc21.txt").queries
    text = torch.randn(len(names), 48, generator=torch.Generator().manual_seed(2))
    TextEmbeddings(names, text).save(folder / "text.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLEARCLIP_DATA", "data")


@pytest.fixture
def evaluate(tiny_folder, tmp_path):
    """`evaluate(config, *arguments, side=…, **model_settings)`: run eval.py and return the result."""

    def evaluate(config, *arguments, side, batch_size=4, **settings):
        main([
            str(CONFIGS / f"{config}.py"), "--backbone", f"local-dir:{tiny_folder}", *arguments,
            "--fresh", "--work-dir", str(tmp_path), "--results", str(tmp_path / "results.xlsx"), "--cfg-options",
            f"model.short_side={side}", f"test_dataloader.batch_size={batch_size}",
            "test_dataloader.num_workers=0", "model.device=cpu",
            *(f"model.{key}={value}" for key, value in settings.items()),
        ])  # fmt: skip
        return read_result(tmp_path / "result.json")

    return evaluate


@pytest.fixture
def measure(evaluate):
    """`measure(method)`: the result of a method in windows."""

    def measure(method, **settings):
        arguments = ["--method", method + OPTIONS.get(method, ""), "--text-embeddings", "text.safetensors"]
        return evaluate("cfg_voc21", *arguments, side=64, crop=64, stride=32, threshold=0, **settings)

    return measure


@pytest.fixture(scope="module")
def known():
    """Results by method, for the tests that compare methods."""
    return {}


def scores(result):
    return {key: result[key] for key in SCORES}


@pytest.mark.parametrize("name", NAMES)
def test_every_method(name, measure, known, tiny_backbone, monkeypatch):
    known[name] = result = measure(name)
    method = name + OPTIONS.get(name, "")
    assert result["method"] == method
    assert 0 <= result["mIoU"] <= 100
    assert (result["images"], len(result["per_class_IoU"])) == (len(SHAPES), 21)
    assert scores(measure(name, batch_size=1)) == scores(result)
    # The labels are the method's: with its scores in another order they are others.
    built = create_method(method, tiny_backbone)
    function = "image_scores" if built.sees_images else "scores"
    original = getattr(type(built), function)
    monkeypatch.setattr(type(built), function, lambda *arguments: original(*arguments).flip(-3))
    assert scores(measure(name)) != scores(result)


def test_methods_differ(measure, known):
    ious = {tuple((known.get(name) or measure(name))["per_class_IoU"].values()) for name in NAMES}
    assert len(ious) == len(NAMES)


@pytest.mark.parametrize(("variant", "plain"), VARIANTS)
def test_variants(variant, plain, measure, known):
    result = measure(variant)
    assert result["method"] == variant
    assert scores(result) != scores(known.get(plain) or measure(plain))
    assert scores(measure(variant, batch_size=1)) == scores(result)


@pytest.mark.parametrize("name", [name for name in NAMES if (CONFIGS / name.lower()).is_dir()])
def test_protocols(name, evaluate):
    """A method's own config as it stands, but for the networks, the size of images and the templates."""
    protocol = name.lower()
    dataset = "voc20" if protocol == "radseg" else "voc21"  # RADSeg has none with a background
    method = ["--method", name + OPTIONS[name] + REFINED.get(name, "")] if name in OPTIONS else []
    result = evaluate(f"{protocol}/cfg_{dataset}", *method, side=112, templates="single")
    assert result["method"].startswith(name)
    assert (result["protocol"], result["dataset"], result["images"]) == (protocol, dataset, len(SHAPES))
    assert 0 <= result["mIoU"] <= 100
