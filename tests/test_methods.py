"""The written form of a method, the cells between the published ones, and methods of one's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture

import clearclip
from clearclip.attention import mix
from clearclip.backbones.openclip import OpenCLIPBackbone
from clearclip.errors import UserError
from clearclip.methods import METHODS, Method, create_method, list_methods, register
from clearclip.methods.final_block import FinalBlock
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import Vocabulary

NAMES = tuple("abcdefg")
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
    files = [entry.build.__module__ for entry in list_methods()]
    others = [file for file in files if file != "clearclip.methods.final_block"]
    assert files == ["clearclip.methods.final_block"] * (len(files) - len(others)) + sorted(others)


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


# What a method may override


def segmenter_of(method, **options):
    """With windows of 64 pixels every 32, for the names "a" and "b", whose embeddings are the first two axes."""
    text = TextEmbeddings(("a", "b"), torch.eye(48)[:2])
    return Segmenter(method, text_embeddings=text, **dict(short_side=0, crop=64, stride=32) | options)


IMAGE = torch.from_numpy(picture(96, 128)).permute(2, 0, 1)


class Stitched(FinalBlock):
    """ClearCLIP, its stitched features mirrored."""

    def image_features(self, view):
        return view.stitch(self.window_features(view)).flip(1)


def test_a_method_on_stitched_features(tiny_backbone, make):
    plain = make(FinalBlock(tiny_backbone), short_side=0)(IMAGE, NAMES, features=True).features
    result = make(Stitched(tiny_backbone), short_side=0)(IMAGE, NAMES, scores=True, features=True)
    np.testing.assert_allclose(result.features, plain[:, ::-1], atol=1e-6)
    cosines = torch.from_numpy(plain[:, ::-1].copy()) @ make().embedder.embeddings.embeddings.T  # [6, 8, 7]
    full = F.interpolate(cosines.permute(2, 0, 1)[None], (96, 128), mode="bilinear")[0]
    torch.testing.assert_close(torch.from_numpy(result.scores), (50 * full).softmax(dim=0), rtol=1e-3, atol=1e-4)


class Corners(Method):
    """The first axis is where a window begins, the second the colour of the whole image at its own size."""

    def image_features(self, view):
        rows, columns = view.plan.rows, view.plan.columns
        places = [(y, x) for y in rows.starts for x in columns.starts]
        assert len(places) == len(view.plan) == sum(len(trunk.images) for trunk in view.trunks)
        height, width = (side // self.backbone.patch_size for side in view.plan.window_shape)
        windows = torch.zeros(len(places), height, width, self.backbone.dim)
        windows[..., 0] = torch.tensor([float(y + x) for y, x in places])[:, None, None]
        windows[..., 1] = view.original.float().mean()
        assert view.original.shape == (3, 96, 128)
        assert view.shape == (96, 128)
        return view.stitch(windows)


@pytest.mark.parametrize("short_side", [0, 192])
def test_a_method_on_all_windows_and_the_original_image(short_side, tiny_backbone):
    method = Corners(tiny_backbone)
    segmenter = segmenter_of(method, short_side=short_side, window_batch=2)
    assert method.sees_images
    features = segmenter(IMAGE, ["a", "b"], features=True).features
    scale = 2 if short_side else 1
    assert features.shape == (6 * scale, 8 * scale, 48)
    ratio = features[..., 0] / features[..., 1] * IMAGE.float().mean().item()
    assert ratio[0, 0] == pytest.approx(0, abs=1e-4)  # the first window alone sees it
    last = (96 * scale - 64) + (128 * scale - 64)
    assert ratio[-1, -1] == pytest.approx(last, rel=1e-4)


class Prefers(Method):
    """Whole images are of the text that comes last."""

    def image_scores(self, view, text):
        return torch.arange(len(text)).float()[:, None, None].expand(-1, 3, 5)


def test_a_method_of_image_scores(tiny_backbone):
    labels = segmenter_of(Prefers(tiny_backbone))([IMAGE, IMAGE[:, :50]], ["a", "b"])
    assert [result.labels.shape for result in labels] == [(96, 128), (50, 128)]
    assert all((result.labels == 1).all() for result in labels)


def test_images_and_windows_give_one_result(tiny_backbone, make):
    """That a method works on whole images does not change what it makes of one window."""

    class Whole(FinalBlock):
        def image_features(self, view):
            return super().image_features(view)

    by_window, by_image = (make(kind(tiny_backbone), short_side=64, crop=0) for kind in (FinalBlock, Whole))
    one, other = (segmenter(IMAGE, NAMES, scores=True) for segmenter in (by_window, by_image))
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


# What a method gives back


def gives(**functions):
    """A method whose functions return what is given, made of what they are asked of."""
    members = {name: lambda self, given, text=None, make=make: make(given) for name, make in functions.items()}
    return type("Odd", (Method,), members)


def count(trunk):
    return len(trunk.images)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"features": lambda t: t.patches()}, r"features \[6, h, w, 48\] of a floating-point type, not \[6, 16, 64\]"),
        ({"features": lambda t: torch.ones(6, 4, 4, 64)}, r"features \[6, h, w, 48\] .*, not \[6, 4, 4, 64\] torch.fl"),
        ({"features": lambda t: torch.ones(1, 4, 4, 48)}, r"features \[6, h, w, 48\] .*, not \[1, 4, 4, 48\]"),
        (
            {"features": lambda t: torch.ones(6, 4, 4, 48).long()},
            r"features .* floating-point type, not \[6, 4, 4, 48\] torch.int",
        ),
        ({"features": lambda t: None}, "not NoneType; check its `features`"),
        ({"scores": lambda t: torch.ones(6, 3, 4, 4)}, r"scores \[6, 2, h, w\] .*, not \[6, 3, 4, 4\]"),
        ({"scores": lambda t: torch.ones(6, 2, 16)}, r"scores \[6, 2, h, w\] .*, not \[6, 2, 16\]"),
        ({"scores": lambda t: [1]}, "not list; check its `scores`"),
        ({"image_features": lambda v: torch.ones(6, 8, 3)}, r"image_features \[h, w, 48\] .*, not \[6, 8, 3\]"),
        ({"image_features": lambda v: torch.ones(48)}, r"image_features \[h, w, 48\] .*, not \[48\]"),
        ({"image_features": lambda v: None}, "not NoneType; check its `image_features`"),
        ({"image_scores": lambda v: torch.ones(3, 4, 4)}, r"image_scores \[2, h, w\] .*, not \[3, 4, 4\]"),
        (
            {"image_scores": lambda v: torch.ones(2, 4, 4).bool()},
            r"not \[2, 4, 4\] torch.bool; check its `image_scores`",
        ),
    ],
)
def test_what_a_method_gives_wrongly_is_named(functions, message, tiny_backbone):
    segmenter = segmenter_of(gives(**functions)(tiny_backbone), window_batch=100)
    with pytest.raises(UserError, match=f"method Odd must return {message}" if "check its" not in message else message):
        segmenter(IMAGE, ["a", "b"])


@pytest.mark.parametrize(
    "functions",
    [
        {"features": lambda t: torch.full((count(t), 4, 4, 48), torch.nan)},
        {"scores": lambda t: torch.full((count(t), 2, 4, 4), torch.inf)},
        {"image_features": lambda v: torch.full((4, 4, 48), torch.nan)},
        {"image_scores": lambda v: torch.full((2, 4, 4), -torch.inf)},
    ],
)
def test_scores_that_are_not_finite_are_named(functions, tiny_backbone):
    segmenter = segmenter_of(gives(**functions)(tiny_backbone))
    queries = segmenter.queries(Vocabulary.of(["a", "b"]))
    for run in (lambda: segmenter(IMAGE, ["a", "b"]), lambda: segmenter.segment([IMAGE], queries)):
        with pytest.raises(UserError, match="method Odd gives scores that are not finite: use precision fp32"):
            run()


def test_a_method_that_writes_nothing_says_so(tiny_backbone):
    with pytest.raises(NotImplementedError):
        segmenter_of(Method(tiny_backbone))(IMAGE, ["a", "b"])


# Other networks


class Bare(OpenCLIPBackbone):
    """The tiny network without its class token."""

    prefix_tokens = 0

    def embed(self, images, position=None):
        return super().embed(images, position)[:, 1:]


class Registers(OpenCLIPBackbone):
    """The tiny network with two registers after its class token."""

    prefix_tokens = 3

    def embed(self, images, position=None):
        tokens = super().embed(images, position)
        return torch.cat([tokens[:, :1], 0.5 * tokens[:, :1], -tokens[:, :1], tokens[:, 1:]], dim=1)


@pytest.mark.parametrize("kind", [Bare, Registers])
@pytest.mark.parametrize(
    "name", [entry.name for entry in list_methods() if not {"vfm", "masks"} & entry.options.keys()]
)
def test_any_number_of_prefix_tokens(name, kind, tiny_backbone, golden):
    backbone = kind(tiny_backbone.checkpoint, torch.device("cpu"), torch.float32)
    method, images = create_method(name, backbone), golden("inputs")["image_64x96"]
    text = method.prepare(golden("inputs")["text"], tuple(range(7)), 50.0)
    if method.sees_images:
        view = Segmenter(method, short_side=0).view(torch.randint(256, (3, 64, 96), dtype=torch.uint8))
        with torch.inference_mode():
            assert method.image_scores(view, text).isfinite().all()
        return
    with torch.inference_mode():
        scores = method.scores(backbone.trunk(images), text)
        features = method.features(backbone.trunk(images))
    assert scores.shape == (2, 7, 4, 6)
    assert features.shape == (2, 4, 6, 48)
    assert scores.isfinite().all()
    if name == "MaskCLIP":  # whose patches see themselves alone in the last block, others before it
        assert (
            scores - create_method(name, tiny_backbone).scores(tiny_backbone.trunk(images), text)
        ).abs().max() > 1e-3
