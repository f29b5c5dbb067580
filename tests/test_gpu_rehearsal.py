"""The road from uint8 pixels to counts on a GPU, rehearsed without one on fake CUDA tensors.

Mixing devices raises, and so does whatever would make the host wait for the device: `.item()`, `nonzero`, a boolean
mask, `torch.equal`, the length of a `bincount`. What goes up to the device for the second batch, when all that geometry
and names decide is there, are pictures and label maps; what comes down are counts.
"""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny_sam
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from benchmarking.fake_gpu import CACHES, CUDA, Kept, Traffic, eyes_on_fake_gpu, on_fake_gpu

from clearclip import decode, vision
from clearclip.backbones import openclip
from clearclip.evaluation.passes import count
from clearclip.masks import MaskProvider, Masks
from clearclip.methods import corrclip, list_methods, textregion, trident
from clearclip.refine import REFINEMENTS, mapvote, sam
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vision import TimmViT

SHAPES = ((120, 160), (110, 100))
NETWORKS = {"vfm", "masks", "sam", "model"}  # options that name another network
METHODS = [entry.name for entry in list_methods() if not NETWORKS & entry.options.keys()]
REFINED = [f"ClearCLIP+{entry.name}" for entry in REFINEMENTS.entries() if not NETWORKS & entry.options.keys()]
SEEN = ["ProxyCLIP:vfm=test_vit", "GLA-CLIP:vfm=test_vit", "LPOSS:vfm=test_vit", "ClearCLIP+LP:vfm=test_vit"]
WITH_SAM = ["Trident:vfm=test_vit,sam=tiny_samvit", "ClearCLIP+SAM"]
MASKED = ["CorrCLIP", "TextRegion:tile=64", "ClearCLIP+MAPVOTE"]


@pytest.fixture
def kernels(monkeypatch):
    """Which fused kernels were used, in order; they are stood in for, as there is no GPU to compile them for."""
    used = []

    def best_query(across, sources, weights):
        used.append("best_query")
        assert {across.device, sources.device, weights.device} == {CUDA}
        assert sources.shape == weights.shape
        return across.new_empty(len(sources), across.shape[1], dtype=torch.int32)

    def quick_gelu_(hidden):
        used.append("quick_gelu_")
        assert hidden.is_contiguous()
        return hidden

    for module in (decode, openclip):
        monkeypatch.setattr(module, "fused", lambda name, device: locals_[name])
    locals_ = dict(best_query=best_query, quick_gelu_=quick_gelu_)
    return used


@pytest.fixture
def rehearse(deep_backbone, monkeypatch, tmp_path):
    """`rehearse(spec, classes, **settings)`: labels of two images, their counts, and the traffic of a second batch."""
    for module in (decode, openclip):
        monkeypatch.setattr(module, "fused", lambda name, device: None)
    for name in CACHES:
        monkeypatch.setattr(f"{name}.TensorCache", Kept)

    def rehearse(spec, classes=20, **settings):
        mode = FakeTensorMode()
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
        eyes = eyes_on_fake_gpu(TimmViT(network, torch.device("cpu"), torch.float32), mode)
        monkeypatch.setattr(vision, "load_vision_model", lambda *arguments: eyes)
        encoder = on_fake_gpu(timm.create_model("tiny_samvit", num_classes=0), mode)
        monkeypatch.setattr(trident, "build_timm", lambda *arguments, **options: encoder)
        whole = on_fake_gpu(tiny_sam.tiny_sam(), mode)
        monkeypatch.setattr(sam, "load_sam", lambda name: whole)
        monkeypatch.setattr(sam.Square, "fitted", lambda square, image: torch.zeros(40, 64, 3, dtype=torch.uint8))
        for module in (sam, trident):  # what OpenCV and Pillow resize is real, and what these hold is not
            monkeypatch.setattr(module, "rounded_up", lambda image, multiple: image)
        monkeypatch.setattr(sam, "hub_model", lambda name: "tiny")
        backbone = on_fake_gpu(copy.deepcopy(deep_backbone), mode)
        with mode:
            windows = dict(short_side=96, crop=64, stride=32, window_batch=64) | settings
            segmenter = Segmenter(spec, backbone, **windows)
            text = torch.randn(classes, backbone.dim, device=CUDA)
            query_class = tuple(range(classes))
            words = torch.randn(len(segmenter.method.words), backbone.dim, device=CUDA)
            prepared = segmenter.method.prepare(torch.cat([text, words]), query_class, segmenter.logit_scale)
            queries = Queries(text, query_class, tuple(map(str, query_class)), prepared)
        for _ in range(2):
            images = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in SHAPES]
            if windows.get("resize") == "device":
                images = [mode.from_tensor(image) for image in images]
            else:
                views = [segmenter.view(image) for image in images]
                views = [
                    dataclasses.replace(view, image=fake_image, original=mode.from_tensor(view.original))
                    for view, fake_image in zip(views, (mode.from_tensor(view.image) for view in views))
                ]
            with mode, Traffic() as traffic:
                if windows.get("resize") == "device":
                    views = [segmenter.view(image) for image in images]
                labels, finite = segmenter.labels(views, queries)
                counts = [
                    count(one, torch.zeros(one.shape, dtype=torch.uint8, device=CUDA), classes, 255, finite)
                    for one in labels
                ]
        return labels, torch.cat(counts), traffic

    return rehearse


def assert_only_pictures_move(traffic, pictures=2, masks=0):
    """Up go pictures [3, H, W] or [H, W, 3], in bytes, and so many masks; nothing comes down."""
    moved = [shape for dtype, shape in traffic.up if dtype == torch.uint8 and len(shape) == 3 and 3 in shape[::2]]
    assert (len(moved), len(traffic.up)) == (pictures, pictures + masks), traffic.up
    assert traffic.down == []


@pytest.mark.parametrize("spec", METHODS + REFINED + SEEN)
def test_nothing_waits_and_no_device_is_mixed(spec, rehearse):
    labels, counts, traffic = rehearse(spec)
    for one, shape in zip(labels, SHAPES):
        assert isinstance(one, FakeTensor)
        assert (one.device, tuple(one.shape)) == (CUDA, shape)
    assert (counts.device, tuple(counts.shape)) == (CUDA, (2 * (20 * 21 + 2),))
    assert_only_pictures_move(traffic)


def test_every_method_and_refinement_is_rehearsed():
    rehearsed = {
        part.partition(":")[0] for spec in [*METHODS, *REFINED, *SEEN, *MASKED, *WITH_SAM] for part in spec.split("+")
    }
    assert rehearsed == {entry.name for entry in list_methods()} | {entry.name for entry in REFINEMENTS.entries()}


@pytest.mark.parametrize(
    "settings",
    [
        dict(threshold=0.3), dict(threshold=0.1, area_threshold=0.1), dict(crop=0), dict(crop=0, two_steps=True),
        dict(short_side=0), dict(resize="device"), dict(window_batch=3),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting(settings, rehearse):
    labels, _, traffic = rehearse("ClearCLIP", **settings)
    assert [(one.device, tuple(one.shape)) for one in labels] == [(CUDA, shape) for shape in SHAPES]
    assert_only_pictures_move(traffic)


@pytest.mark.parametrize("spec", ["ClearCLIP", "LPOSS:vfm=test_vit", "ClearCLIP+TLP"])
@pytest.mark.parametrize("classes", [20, 300])
def test_fused_kernels(spec, classes, rehearse, kernels):
    labels, _, traffic = rehearse(spec, classes)
    assert labels[0].dtype == (torch.uint8 if classes == 20 else torch.int16)
    blocks = 12 if spec.startswith("LPOSS") else 11
    assert kernels.count("quick_gelu_") % blocks == 0
    assert kernels[-2:] == ["best_query"] * 2
    assert_only_pictures_move(traffic)


@pytest.mark.parametrize("spec", MASKED)
def test_masks_are_counted_on_the_cpu_alone(spec, rehearse, monkeypatch):
    """How many there are is what the host has to know; fake tensors hold no values, so that is given here.

    Besides pictures what goes up are masks: regions' numbers for a batch and how many each window has, or one tensor
    for an image.
    """

    class Two(Masks):
        def regions(self, shape):
            return torch.zeros(2, *shape)

    class Provider(MaskProvider):
        identity = "two"

        def find(self, view):
            return Two(torch.zeros(view.original.shape[1:], dtype=torch.int32))

    for module in (corrclip, textregion, mapvote):
        monkeypatch.setattr(module, "load_masks", lambda *arguments: Provider())
    patches = lambda images: torch.zeros(len(images), 8, 6, 6, device=CUDA)  # noqa: E731
    monkeypatch.setattr(corrclip, "QueriesAndKeys", lambda *arguments: patches)
    monkeypatch.setattr(
        corrclip, "number_regions", lambda ids, grid: (torch.zeros(len(ids), 36, dtype=torch.long), [3] * len(ids))
    )
    monkeypatch.setattr(mapvote, "number", lambda ids: (ids.long(), 3))
    labels, _, traffic = rehearse(spec)
    assert [(one.device, tuple(one.shape)) for one in labels] == [(CUDA, shape) for shape in SHAPES]
    assert_only_pictures_move(traffic, masks=4 if spec == "CorrCLIP" else 2)


def test_networks_of_sam_upload_nothing_of_their_own(rehearse):
    """Trident's SAM sees an image of its own size, a second upload for each."""
    labels, _, traffic = rehearse(WITH_SAM[0])
    assert [(one.device, tuple(one.shape)) for one in labels] == [(CUDA, shape) for shape in SHAPES]
    assert_only_pictures_move(traffic, pictures=4)


def test_refinement_by_sam(rehearse, monkeypatch):
    """Which regions there are the host has to know: one download for each image, and their places go up."""
    waits = []

    def find_regions(labels, probabilities, rules):
        waits.append(labels.device)
        shape = tuple(labels.shape)
        corners = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]])
        return sam.Regions(np.array([0, 0, 4]), corners[:, :2], corners, np.zeros(shape, np.int64))

    monkeypatch.setattr(sam, "find_regions", find_regions)
    labels, _, traffic = rehearse(WITH_SAM[1])
    assert [(one.device, tuple(one.shape)) for one in labels] == [(CUDA, shape) for shape in SHAPES]
    assert waits == [CUDA] * 4  # in two batches of two
    assert traffic.down == []
    places = [torch.float32, torch.float32, torch.int64, torch.float32, torch.float32]
    assert [dtype for dtype, _ in traffic.up] == [torch.uint8] * 2 + [torch.uint8, *places] * 2


def test_traffic_is_seen():
    """The test's own eyes: what would be a copy is noted, what is none is not."""
    with FakeTensorMode(), Traffic() as traffic:
        there = torch.zeros(4, 4, device=CUDA)
        there = there * torch.tensor(2.0) + 1  # numbers are arguments of kernels
        assert (traffic.up, traffic.down) == ([], [])
        there[torch.zeros(2, dtype=torch.long)]
        there.new_tensor((1.0, 2.0))
        torch.tensor(3, device=CUDA)
        there.copy_(torch.ones(4, 4))
        with torch.inference_mode():
            torch.ones(5).to(there)
        assert [shape for _, shape in traffic.up] == [(2,), (2,), (), (4, 4), (5,)]
        there.cpu()
        torch.empty(4, 4).copy_(there)
        assert [shape for _, shape in traffic.down] == [(4, 4), (4, 4)]
