"""What several test files share: a tiny CLIP whose image tower is that of the golden files."""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it once, at the first film
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
TINY_CONFIG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 6, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PLAIN = {"mean": [0.0] * 3, "std": [1 / 255] * 3}  # of RGB in 0..1: images are normalised already

settings.register_profile("clearclip", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("clearclip")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """A test that starts a program by the fixture `run_program` is slow; others say so by the mark `slow`."""
    for item in items:
        if "run_program" in item.fixturenames:
            item.add_marker("slow")


def features(name, backbone, images):
    """Patch features [B, h, w, dim] of the method `name` for normalised images [B, 3, H, W]."""
    from clearclip.methods import create_method

    with torch.inference_mode():
        return create_method(name, backbone).features(backbone.trunk(images))


def scores(name, backbone, images, text):
    """Scores [B, Q, h, w] of the method `name` for normalised images [B, 3, H, W] and text [Q, dim]."""
    from clearclip.methods import create_method

    with torch.inference_mode():
        return create_method(name, backbone).scores(backbone.trunk(images), text)


def picture(height, width, seed=0):
    """A smooth coloured picture [H, W, 3]: noise of a few cells, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def tiny_vit(name="vit_tiny_patch16_224", **options):
    """A random ViT of timm's."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options).eval()
    for parameter in model.parameters():  # what starts as 0 or 1 would hide what is done with it
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return model


def assert_near(actual, expected, tolerance=1e-4):
    """Equal to within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def golden_keys(name, prefix=""):
    """The keys of tests/golden/<name>.safetensors that begin so."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return sorted(key for key in file.keys() if key.startswith(prefix))  # noqa: SIM118


def save_model(folder, config, state):
    """Make `folder` an OpenCLIP model folder: load it as the backbone `local-dir:<folder>`."""
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path_factory):
    """No test sees the user's caches, weights, data or network."""
    monkeypatch.setenv("CLEARCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CLEARCLIP_WEIGHTS", raising=False)
    monkeypatch.delenv("CLEARCLIP_DATA", raising=False)


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch):
    """`auto` is float32 on every CPU, so that digits are the same; a program that a test starts is told so."""
    monkeypatch.setattr("clearclip.backbones.bfloat16_pays", lambda: False)


@pytest.fixture
def run_program(tmp_path):
    """`run_program(*command, cwd=tmp_path, **variables)`: run a program as its user does, on the CPU, to its end."""

    def run(*command, cwd=tmp_path, **variables):
        fixed = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}  # for dist_test.sh
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=os.environ | fixed | {name: str(value) for name, value in variables.items()},
            capture_output=True,
            text=True,
            timeout=280,
        )

    return run


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the tensors of tests/golden/<name>.safetensors by key."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def tiny_state():
    """Weights of a tiny CLIP in OpenCLIP's keys: the golden image tower and a random text tower."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CONFIG)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.") and k != "attn_mask"}
    vision = load_file(GOLDEN / "tiny_vit.safetensors")
    return state | {f"visual.{key}": value for key, value in vision.items()}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_state):
    """The tiny CLIP as an OpenCLIP model folder: load it as the backbone `local-dir:<tiny_folder>`."""
    return save_model(tmp_path_factory.mktemp("tiny"), {"model_cfg": TINY_CONFIG}, tiny_state)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder):
    """The tiny CLIP, float32 on the CPU. It is shared: do not change it."""
    from clearclip.backbones import load_backbone

    return load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def deep_backbone(golden, tmp_path_factory):
    """The golden network of 12 blocks, for images that are normalised already; without text tower. It is shared."""
    from clearclip.backbones import load_backbone

    state = {f"visual.{key}": value for key, value in golden("tiny_vit12").items()}
    model = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": 12}, "text_cfg": {}}
    config = {"model_cfg": model, "preprocess_cfg": PLAIN}
    folder = save_model(tmp_path_factory.mktemp("tiny12"), config, state)
    return load_backbone(f"local-dir:{folder}", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def names_and_text(golden):
    """Seven names, "a" to "g", and their embeddings, from the golden files."""
    from clearclip.text import TextEmbeddings

    return TextEmbeddings(tuple("abcdefg"), golden("inputs")["text"])


@pytest.fixture(scope="session")
def make(tiny_backbone, names_and_text):
    """A segmenter of the tiny CLIP with small windows, for the names "a" to "g"; options as those of `Segmenter`."""
    from clearclip.segmenter import Segmenter

    small = {"text_embeddings": names_and_text, "short_side": 80, "crop": 64, "stride": 32}

    def build(method="ClearCLIP", backbone=tiny_backbone, **options):
        return Segmenter(method, backbone, **small | options)

    return build


@pytest.fixture
def vit_weights(tmp_path):
    """A checkpoint of timm's smallest ViT, `test_vit`."""
    path = tmp_path / "test_vit.safetensors"
    save_file(tiny_vit("test_vit").state_dict(), path)
    return path


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_backbone):
    """A folder with the files that documents name; all weights are those of the tiny model, templates are one."""
    from PIL import Image

    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("photo.jpg", "photos/a.jpg", "photos/more/b.jpg"):
        Image.fromarray(picture(48, 64)).save(tmp_path / name)
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for seed in range(3):
        writer.write(picture(48, 64, seed))
    writer.release()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clearclip.segmenter.load_backbone", lambda *_: tiny_backbone)
    monkeypatch.setitem(__import__("clearclip.vocabulary").vocabulary.TEMPLATES, "imagenet80", ("a photo of a {}.",))
    return tmp_path
