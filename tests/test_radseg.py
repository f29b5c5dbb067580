"""RADSeg: its parts and the whole chain against golden arrays, and what a user may do with it."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from timm.models.vision_transformer import Block as LibraryBlock
from torch import nn

from clearclip import windows
from clearclip.attention import self_correlating_output
from clearclip.backbones.timm import TimmBlock
from clearclip.methods import similarity
from clearclip.methods.radseg import RADSeg
from clearclip.refine.scga import aggregate
from clearclip.view import View
from clearclip.windows import Stitcher

CHAINS = {"48_32": (48, 32, 0.5), "64_64": (64, 64, 0.5), "64_64.denoise0.96": (64, 64, 0.96)}


@pytest.fixture(scope="module")
def radseg(golden):
    return golden("radseg")


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture
def trunk(radseg):
    """One block at the place of a trunk's last, and what enters it."""
    block = LibraryBlock(32, 4, mlp_ratio=2, qkv_bias=True, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6))
    block.ls1, block.ls2 = LayerScale(32), LayerScale(32)
    block.load_state_dict({k.removeprefix("block/"): v for k, v in radseg.items() if k.startswith("block/")})
    ours = TimmBlock(block.eval().requires_grad_(False))
    x = radseg["scra/x"]
    return SimpleNamespace(backbone=SimpleNamespace(blocks=[ours]), tokens=lambda: x, qkv=lambda: ours.qkv(x))


def test_block_output(trunk, radseg):
    close(self_correlating_output(trunk), radseg["scra/block_out"])


@pytest.mark.parametrize(("scale", "name"), [(10, "attention_out"), (4, "attention_out.scale4")])
def test_attention_output(trunk, radseg, scale, name):
    """Seen through a block without LayerScale and feed-forward network."""
    (block,) = trunk.backbone.blocks
    block.module.ls1 = nn.Identity()
    block.mlp = torch.zeros_like
    close(self_correlating_output(trunk, scale) - trunk.tokens(), radseg[f"scra/{name}"])


def test_aggregation(radseg):
    close(aggregate(radseg["scga/map"].permute(1, 2, 0)).permute(2, 0, 1), radseg["scga/out"])


class Convolution(RADSeg):
    """RADSeg on the golden file's stand-in for a backbone."""

    def __init__(self, tensors, **options):
        head = lambda states: states @ tensors["chain/head_weight"].T + tensors["chain/head_bias"]  # noqa: E731
        super().__init__(SimpleNamespace(patch_size=16, dim=16, dtype=torch.float32, head=head), **options)
        self.weight = tensors["chain/patch_weight"]

    def states(self, trunk):
        return F.conv2d(trunk.images, self.weight, stride=16).permute(0, 2, 3, 1)


@pytest.fixture(params=CHAINS)
def chain(request, radseg):
    """The method, a view of the golden image and the expected arrays."""
    crop, stride, denoise = CHAINS[request.param]
    method = Convolution(radseg, denoise=denoise)
    backbone = method.backbone
    backbone.device = torch.device("cpu")
    backbone.trunk = lambda images: SimpleNamespace(images=images)
    image = radseg["chain/image"]
    plan = windows.plan(75, 130, crop, stride, 16)
    view = View(backbone, image, image, (101, 170), plan, 4, Stitcher(torch.device("cpu")))
    backbone.mean, backbone.std = (0, 0, 0), (1 / 255, 1 / 255, 1 / 255)
    backbone.constants = windows.TensorCache(1 << 20)
    expected = {k.rpartition("/")[2]: v for k, v in radseg.items() if k.startswith(f"chain/{request.param}/")}
    if "stitched" not in expected:
        expected["stitched"] = radseg["chain/64_64/stitched"]
        expected["low_probabilities"] = radseg["chain/64_64/low_probabilities"]
    return method, view, expected


def test_chain(chain, radseg):
    method, view, expected = chain
    close(method.stitched(view).permute(2, 0, 1), expected["stitched"])
    text = F.normalize(radseg["chain/text"], dim=-1)
    scores = similarity(method.image_features(view)[None], text)[0]
    close((100 * scores).softmax(dim=0), expected["low_probabilities"])
    maps = view.stitcher.resized(scores, view.shape)
    decoder = method.decoder(tuple(range(9)), 100, 0, 0)
    close(decoder.probabilities(maps)[:, ::4, ::4], expected["probabilities"])
    assert torch.equal(decoder.labels(maps), expected["labels"])
