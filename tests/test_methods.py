"""The written form of a method, the cells between the published ones, and methods of one's own."""

import pytest
import torch
import torch.nn.functional as F
from conftest import picture

import clearclip
from clearclip.attention import mix
from clearclip.errors import UserError
from clearclip.methods import METHODS, Method, create_method, list_methods, register
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings

PUBLISHED = ("CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP")


def test_each_listed_method_says_what_it_is():
    entries = {entry.name: entry for entry in clearclip.list_methods()}
    assert set(PUBLISHED) <= set(entries)
    for entry in entries.values():
        assert entry.summary
        assert "\n" not in entry.summary
        assert any(year in entry.paper for year in map(str, range(2021, 2027)))


def test_methods_are_listed_in_the_order_of_their_files():
    names = [entry.name for entry in list_methods()]
    assert tuple(names[: len(PUBLISHED)]) == PUBLISHED
    files = [entry.build.__module__ for entry in list_methods()[len(PUBLISHED) :]]
    assert files == sorted(files)


def test_written_options():
    choice = METHODS.parse("clearclip:attention=qq+kk, residual=0.5,feed_forward=true")
    assert choice.name == "ClearCLIP"
    assert choice.options == {"attention": "qq+kk", "residual": 0.5, "feed_forward": True}
    assert METHODS.parse("SCLIP").options == {}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("CLEAR", "unknown method 'CLEAR'; use one of .*ClearCLIP"),
        ("", "unknown method"),
        ("ClearCLIP:residual", "key=value"),
        ("ClearCLIP:depth=3", "no option depth; its options are attention, feed_forward, residual"),
        ("ClearCLIP:attention=xx", "unknown attention 'xx'"),
        ("ClearCLIP:attention=5", "unknown attention '5'"),
        ("ClearCLIP:residual=much", "option residual must be a finite number, not 'much'; its options are attention"),
        ("ClearCLIP:residual=[1]", "option residual must be a finite number"),
        ("ClearCLIP:residual=1,residual=2", "option residual is there twice"),
        ("ClearCLIP:feed_forward=no", "feed_forward must be True or False"),
    ],
)
def test_wrong_form_is_refused(text, match, tiny_backbone):
    with pytest.raises(UserError, match=match):
        create_method(text, tiny_backbone)


def output(name, trunk):
    """The last block's output [B, 1+N, D] under a method."""
    method = create_method(name, trunk.backbone)
    return method.output(mix(method.attention, *trunk.qkv(), trunk), trunk)


def test_residual_and_feed_forward_are_separate(tiny_backbone, golden):
    """Cells that no published method takes: their tokens, from the block's own parts."""
    images = golden("inputs")["image_64x96"]
    block, trunk = tiny_backbone.blocks[-1], tiny_backbone.trunk(images)
    with torch.inference_mode():
        tokens = trunk.tokens()
        mixed = output("ClearCLIP", trunk)
        for weight in (0.0, 0.3, 1.0):
            without = output(f"ClearCLIP:residual={weight}", trunk)
            torch.testing.assert_close(without, mixed + weight * tokens)
            name = f"ClearCLIP:residual={weight},feed_forward=True"
            module = block.module
            expected = without + module.mlp(module.ln_2(without))
            torch.testing.assert_close(output(name, trunk), expected)
            features = tiny_backbone.project(expected[:, 1:]).unflatten(1, (4, 6))
            torch.testing.assert_close(create_method(name, tiny_backbone).features(trunk), features)


def test_clip_is_the_untouched_network(tiny_backbone, golden):
    """The last block under CLIP's options is OpenCLIP's own, and its class token the library's image embedding."""
    images = golden("inputs")["image_64x64"]
    with torch.inference_mode():
        trunk = tiny_backbone.trunk(images)
        rewired = output("CLIP", trunk)
        torch.testing.assert_close(rewired, tiny_backbone.blocks[-1].module(trunk.tokens()), rtol=1e-4, atol=1e-5)
        embedding = tiny_backbone.project(rewired[:, 0])
        torch.testing.assert_close(embedding, tiny_backbone.visual(images), rtol=1e-4, atol=1e-5)


def test_scores_are_cosines_in_float32(tiny_backbone, golden):
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    method = create_method("ClearCLIP", tiny_backbone)
    trunk = tiny_backbone.trunk(images)
    with torch.inference_mode():
        scores, features = method.scores(trunk, text), method.features(trunk)
    assert scores.shape == (2, 7, 4, 6)
    assert scores.dtype == torch.float32
    for row in range(4):
        for column in range(6):
            cosine = F.cosine_similarity(features[:, None, row, column], text[None], dim=-1)
            torch.testing.assert_close(scores[:, :, row, column], cosine, rtol=1e-4, atol=1e-5)


class Brightness(Method):
    """A method of a test: a patch's feature is its mean colour, repeated."""

    def __init__(self, backbone, sign=1):
        super().__init__(backbone)
        self.sign = sign

    def features(self, trunk):
        patch = self.backbone.patch_size
        colour = F.avg_pool2d(trunk.images, patch).mean(dim=1)  # [B, h, w]
        first = torch.zeros(self.backbone.dim)
        first[0] = self.sign
        return colour[..., None] * first


def test_a_method_of_ones_own(monkeypatch, tiny_backbone):
    list_methods()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    register("Brightness", Brightness, "bright or dark", "nowhere, 2024")
    assert "Brightness" in [entry.name for entry in list_methods()]

    axis = F.one_hot(torch.tensor([0, 0]), 48) * torch.tensor([[1], [-1]])
    text = TextEmbeddings(("bright", "dark"), axis.float())
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, :, 48:] = 255
    expected = torch.tensor([1, 0]).repeat_interleave(48).expand(64, 96)
    by_name = Segmenter("Brightness:sign=-1", tiny_backbone, text_embeddings=text, short_side=0)
    assert torch.equal(torch.from_numpy(by_name(image, ["bright", "dark"]).labels).long(), 1 - expected)
    by_object = Segmenter(Brightness(tiny_backbone), text_embeddings=text, short_side=0)
    assert by_object.backbone is tiny_backbone
    assert torch.equal(torch.from_numpy(by_object(image, ["bright", "dark"]).labels).long(), expected)
