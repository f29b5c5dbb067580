"""The road from uint8 pixels to counts on a GPU, rehearsed without one on fake CUDA tensors.

Mixing devices raises, and so does whatever would make the host wait for the device: `.item()`, `nonzero`, a boolean
mask, `torch.equal`, the length of a `bincount`.
"""

import copy

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from clearclip import decode, vision
from clearclip.evaluation.passes import count
from clearclip.masks import MaskProvider, Masks
from clearclip.methods import corrclip, list_methods, textregion
from clearclip.refine import REFINEMENTS, mapvote
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vision import TimmViT

CUDA = torch.device("cuda:0")
NETWORKS = {"vfm", "masks", "sam"}  # options that name another network
METHODS = [entry.name for entry in list_methods() if not NETWORKS & entry.options.keys()]
REFINED = [
    f"ClearCLIP+{entry.name}" for entry in REFINEMENTS.entries() if not {"masks", "model", "vfm"} & entry.options.keys()
]


def on_fake_gpu(module, mode):
    """The module's parameters and buffers as fake CUDA tensors, fp16."""
    for child in module.modules():
        for kind in (child._parameters, child._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach())
                    with mode:
                        fake = fake.to(CUDA, torch.float16 if fake.is_floating_point() else fake.dtype)
                        kind[name] = nn.Parameter(fake, requires_grad=False) if kind is child._parameters else fake
    return module


@pytest.fixture
def rehearse(deep_backbone, monkeypatch):
    """`rehearse(spec, classes, **settings)`: labels of two images and their counts, all on the fake GPU."""
    monkeypatch.setattr(decode, "_fused_kernel", lambda device: None)

    def rehearse(spec, classes=20, **settings):
        mode = FakeTensorMode()
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
        eyes = on_fake_gpu(TimmViT(network, torch.device("cpu"), torch.float32), mode)
        eyes.device, eyes.dtype, eyes.embedding = CUDA, torch.float16, mode.from_tensor(eyes.embedding)
        monkeypatch.setattr(vision, "load_vision_model", lambda *arguments: eyes)
        backbone = on_fake_gpu(copy.deepcopy(deep_backbone), mode)
        backbone.device, backbone.dtype = CUDA, torch.float16
        with mode:
            windows = dict(short_side=96, crop=64, stride=32, resize="device") | settings
            segmenter = Segmenter(spec, backbone, **windows)
            text = torch.randn(classes, backbone.dim, device=CUDA)
            query_class = tuple(range(classes))
            prepared = segmenter.method.prepare(text, query_class, segmenter.logit_scale)
            queries = Queries(text, query_class, tuple(map(str, query_class)), prepared)
            views = [segmenter.view(torch.zeros(3, *shape, dtype=torch.uint8)) for shape in ((120, 160), (110, 100))]
            labels, finite = segmenter.labels(views, queries)
            counts = [
                count(one, torch.zeros(one.shape, dtype=torch.uint8, device=CUDA), classes, 255, finite)
                for one in labels
            ]
        return labels, torch.cat(counts)

    return rehearse


SEEN = [f"{name}:vfm=test_vit" for name in ("ProxyCLIP", "GLA-CLIP", "LPOSS")] + ["ClearCLIP+LP:vfm=test_vit"]


@pytest.mark.parametrize("spec", METHODS + REFINED + SEEN)
def test_nothing_waits_and_no_device_is_mixed(spec, rehearse):
    labels, counts = rehearse(spec)
    for one, shape in zip(labels, ((120, 160), (110, 100))):
        assert isinstance(one, FakeTensor)
        assert (one.device, tuple(one.shape)) == (CUDA, shape)
    assert (counts.device, tuple(counts.shape)) == (CUDA, (2 * (20 * 21 + 2),))


@pytest.mark.parametrize("spec", ["CorrCLIP", "TextRegion:tile=64", "ClearCLIP+MAPVOTE"])
def test_masks_are_counted_on_the_cpu_alone(spec, rehearse, monkeypatch):
    """How many there are is what the host has to know; fake tensors hold no values, so that is given here."""

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
    labels, counts = rehearse(spec)
    assert [(one.device, tuple(one.shape)) for one in labels] == [(CUDA, (120, 160)), (CUDA, (110, 100))]
    assert counts.device == CUDA


@pytest.mark.parametrize(
    "settings", [dict(threshold=0.3), dict(threshold=0.1, area_threshold=0.1), dict(crop=0)], ids=str
)
def test_every_way_to_decode(settings, rehearse):
    labels, _ = rehearse("ClearCLIP", **settings)
    assert labels[0].device == CUDA


def test_large_vocabulary(rehearse):
    labels, _ = rehearse("ClearCLIP", classes=300)
    assert labels[0].dtype == torch.int16
