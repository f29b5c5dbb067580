"""Agreement with the reference numbers of independent implementations (tests/golden/README.md)."""

import pytest
import torch
from conftest import PLAIN, TINY_CONFIG, assert_near, features, golden_keys, save_model

from clearclip.backbones import load_backbone, resize_position_embedding
from clearclip.segmenter import Queries, Segmenter


@pytest.mark.parametrize("key", golden_keys("features", "final_block/"))
def test_final_block(key, golden, tiny_backbone):
    _, attention, variant, image = key.split("/")
    kept = variant == "residual_ffn"
    method = f"ClearCLIP:attention={attention},residual={int(kept)},feed_forward={kept}"
    images, expected = golden("inputs")[image], golden("features")[key]  # expected [B, N, 48]
    for batch in (slice(None), slice(0, 1), slice(-1, None)):
        assert_near(features(method, tiny_backbone, images[batch]).flatten(1, 2), expected[batch])


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("CLIP", "qk/residual_ffn"),
        ("MaskCLIP", "identity/plain"),
        ("SCLIP", "qq+kk/residual_ffn"),
        ("NACLIP", "kk+gaussian5/plain"),
        ("ClearCLIP", "qq/plain"),
    ],
)
def test_methods_are_points_of_the_grid(method, key, golden, tiny_backbone):
    actual = features(method, tiny_backbone, golden("inputs")["image_64x96"])
    assert_near(actual.flatten(1, 2), golden("features")[f"final_block/{key}/image_64x96"])


@pytest.mark.parametrize("key", golden_keys("features", "pos_embed/"))
def test_position_embedding(key, golden, tiny_backbone):
    height, width = map(int, key.removeprefix("pos_embed/image_").split("x"))
    resized = resize_position_embedding(tiny_backbone.visual.positional_embedding, (height // 16, width // 16))
    assert_near(resized, golden("features")[key])


DISTINCT, SYNONYMS = (0, 1, 2, 3, 4, 5, 6), (0, 0, 1, 2, 2, 3, 4)
PIPELINES = {  # name: input, crop, stride, classes of the queries, logit_scale, threshold, method
    "whole.112x160.ori150x213.q7": ("image_112x160", 0, 0, DISTINCT, 50, 0, "ClearCLIP"),
    "slide64_32.112x160.ori150x213.q7": ("image_112x160", 64, 32, DISTINCT, 50, 0, "ClearCLIP"),
    "slide64_32.112x160.ori150x213.synonyms": ("image_112x160", 64, 32, SYNONYMS, 50, 0, "ClearCLIP"),
    "slide64_32.112x160.ori150x213.threshold": ("image_112x160", 64, 32, SYNONYMS, 20, 0.6, "ClearCLIP"),
    "slide96_48.224x336.ori200x300.sclip": ("image_224x336", 96, 48, DISTINCT, 40, 0.3, "SCLIP"),
    "slide448_224.80x48.small": ("image_80x48", 448, 224, DISTINCT, 50, 0, "ClearCLIP"),
    "slide64_32.odd_75x101.pad": ("image_112x160", 64, 32, DISTINCT, 50, 0, "ClearCLIP"),
}


@pytest.fixture(scope="session")
def plain_backbone(tiny_state, tmp_path_factory):
    """The tiny model for images that are normalised already: mean 0 and standard deviation 1/255 of RGB in 0..1."""
    config = {"model_cfg": TINY_CONFIG, "preprocess_cfg": PLAIN}
    folder = save_model(tmp_path_factory.mktemp("plain"), config, tiny_state)
    return load_backbone(f"local-dir:{folder}", device="cpu", precision="fp32")


def test_every_pipeline_is_listed():
    assert {key.split("/")[0] for key in golden_keys("pipeline")} == set(PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name, golden, plain_backbone):
    source, crop, stride, query_class, logit_scale, threshold, method = PIPELINES[name]
    image, text = golden("inputs")[source][0], golden("inputs")["text"]
    if "odd" in name:
        image = image[:, :75, :50]
    labels, probabilities = (golden("pipeline")[f"{name}/{what}"] for what in ("labels", "probabilities"))
    shape = tuple(labels.shape[1:])
    segmenter = Segmenter(
        method, plain_backbone, short_side=0, crop=crop, stride=stride, logit_scale=logit_scale, threshold=threshold
    )  # fmt: skip
    queries = Queries(text, query_class, tuple("abcdefg"[: max(query_class) + 1]))
    assert torch.equal(segmenter.segment([image], queries, [shape])[0], labels[0])

    view = segmenter.view(image, shape)
    maps = segmenter.maps(view, segmenter.look([view], queries)[0], queries)
    decoded = segmenter.decoder(queries).probabilities(maps)
    assert_near(decoded[:, ::4, ::4], probabilities)
