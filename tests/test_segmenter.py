"""The whole road from image to labels, with the tiny model and text from the golden files."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import features, picture, scores
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearclip import Segmenter, TextEmbeddings, Vocabulary
from clearclip.errors import UserError
from clearclip.images import read_image, resize_short, resized_shape
from clearclip.methods import create_method
from clearclip.text import embed_names
from clearclip.view import normalise

SANITY = Path(__file__).parents[1] / "datasets" / "sanity" / "images"
NAMES = tuple("abcdefg")


# Images in


def test_every_kind_of_image_gives_the_same_labels(make, tmp_path):
    image = picture(50, 70)
    Image.fromarray(image).save(tmp_path / "picture.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    segmenter = make()
    expected = segmenter(image, NAMES).labels
    assert len(np.unique(expected)) > 1
    assert (expected.shape, expected.dtype) == ((50, 70), np.uint8)
    with Image.open(tmp_path / "picture.png") as pil:
        for same in (tmp_path / "picture.png", str(tmp_path / "picture.png"), pil, tensor, tensor / 255, image / 255):
            assert np.array_equal(segmenter(same, NAMES).labels, expected)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([224, 336, 448, 560]),
    st.sampled_from([2048, 1280, 560]),
)
def test_the_resize_rule_is_the_published_one(height, width, short_side, long_side):
    expected = mmcv.rescale_size((width, height), (long_side, short_side))[::-1]
    assert resized_shape(height, width, short_side, long_side) == tuple(max(1, side) for side in expected)
    assert resized_shape(height, width, short_side) == resized_shape(height, width, short_side, 2048)


@pytest.mark.parametrize("resize", ["cv2", "device", "pil"])
def test_the_long_side_has_a_bound_of_its_own(resize, tiny_backbone):
    image = torch.from_numpy(picture(108, 128)).permute(2, 0, 1)
    segmenter = Segmenter("ClearCLIP", tiny_backbone, short_side=64, long_side=64, resize=resize)
    assert segmenter.resize(image).shape == (3, 48 if resize == "pil" else 54, 64)
    assert segmenter.settings["long_side"] == 64
    with pytest.raises(UserError, match="long_side must be a whole number from 1 on, not 0"):
        Segmenter("ClearCLIP", tiny_backbone, long_side=0)


@pytest.mark.parametrize("shape", [(300, 500), (700, 500), (448, 448), (30, 400)])
def test_resizing_is_that_of_the_evaluation_pipeline(shape):
    image = picture(*shape)
    assert np.array_equal(resize_short(image, 448), mmcv.imrescale(image, (2048, 448)))
    assert resize_short(image, 0) is image


def shift_of_the_device(image, segmenter):
    """By how many grey levels a resize on the device differs from OpenCV's."""
    resized = segmenter.resize(torch.from_numpy(image).permute(2, 0, 1))
    assert resized.dtype == torch.uint8
    return np.abs(resized.permute(1, 2, 0).numpy().astype(int) - resize_short(image, segmenter.short_side))


@given(st.integers(2, 150), st.integers(2, 150), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_resizing_on_the_device_is_within_a_level_of_opencv(make, height, width, short_side, extreme, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = image // 128 * 255 if extreme else image
    assert shift_of_the_device(image, make(resize="device", short_side=short_side)).max() <= 1


@pytest.mark.parametrize("short_side", [224, 448, 640])
def test_resizing_on_the_device_changes_few_values(short_side, make):
    segmenter = make(resize="device", short_side=short_side)
    noise = np.random.default_rng(0).integers(0, 256, (333, 500, 3), np.uint8)
    for image in (noise, read_image(SANITY / "cat.jpg"), read_image(SANITY / "coffee.jpg")):
        shift = shift_of_the_device(image, segmenter)
        assert shift.max() == 1
        assert shift.mean() < 0.14


def test_labels_hardly_depend_on_where_images_are_resized(make):
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    results = (make(resize=resize)(images, NAMES) for resize in ("cv2", "device"))
    changed = [(one.labels != other.labels).mean() for one, other in zip(*results)]
    assert 0 < np.mean(changed) < 0.1  # of the tiny network, which is far less smooth than a trained one
    untouched = (make(short_side=0, resize=resize)(images, NAMES) for resize in ("cv2", "device"))
    for one, other in zip(*untouched):
        assert np.array_equal(one.labels, other.labels)


# From images to labels


def test_one_window_is_resize_normalise_score_and_upsample(make, tiny_backbone, golden):
    image = picture(100, 150)
    result = make("CLIP", short_side=64, crop=96, logit_scale=30)(image, NAMES, scores=True, features=True)
    resized = torch.from_numpy(cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.4814547, 0.4578275, 0.4082107]), torch.tensor([0.2686295, 0.2613026, 0.2757771])
    normalised = ((resized - mean[:, None, None]) / std[:, None, None])[None]
    cosines = scores("CLIP", tiny_backbone, normalised, golden("inputs")["text"])
    pixels = F.interpolate(F.interpolate(cosines, (64, 96), mode="bilinear"), (100, 150), mode="bilinear")[0]
    expected = (30 * pixels).softmax(dim=0)
    torch.testing.assert_close(torch.from_numpy(result.scores), expected, rtol=1e-3, atol=1e-5)
    unit = F.normalize(features("CLIP", tiny_backbone, normalised)[0], dim=-1)
    torch.testing.assert_close(torch.from_numpy(result.features), unit, rtol=1e-4, atol=1e-5)
    assert np.array_equal(result.labels, result.scores.argmax(axis=0))


def assert_same(result, expected):
    """To rounding: a batch of another size may be summed in another order."""
    assert result.names == expected.names
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)
    assert (result.labels != expected.labels).mean() < 1e-3


SIZES = [(50, 70), (70, 50), (50, 70), (90, 33), (64, 64), (200, 40)]


@pytest.mark.parametrize("crop", [0, 64, 100])  # windows of many shapes, of one, of some
def test_a_batch_gives_what_its_images_give_alone(crop, make):
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    alone = [make(crop=crop)(image, NAMES, scores=True) for image in images]
    assert len({result.labels.tobytes() for result in alone}) == len(SIZES)
    for window_batch in (1, 3, 100):
        together = make(crop=crop, window_batch=window_batch)(images, NAMES, scores=True)
        assert isinstance(together, list)
        assert [result.labels.shape for result in together] == SIZES
        for result, expected in zip(together, alone):
            assert_same(result, expected)
    assert make()([], NAMES) == []


def test_windows_of_different_images_share_batches(make, monkeypatch):
    segmenter = make(window_batch=100)
    batches = []
    original = segmenter.method.scores
    monkeypatch.setattr(
        segmenter.method, "scores", lambda trunk, text: batches.append(len(trunk.images)) or original(trunk, text)
    )
    segmenter([picture(*size) for size in SIZES], NAMES)
    assert len(batches) == 1  # all are at least as large as the crop once they are resized


def test_segment_is_the_same_road(make):
    images = [picture(*size) for size in SIZES]
    segmenter, by_hand = make(), make(short_side=0)
    queries = segmenter.queries(Vocabulary.of(NAMES))
    originals = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    resized = [torch.from_numpy(resize_short(image, 80)).permute(2, 0, 1) for image in images]
    assert all(map(torch.equal, map(segmenter.resize, originals), resized))
    results = zip(segmenter.segment(originals, queries), by_hand.segment(resized, queries, SIZES))
    for (labels, labels_by_hand), result in zip(results, segmenter(images, NAMES)):
        assert np.array_equal(labels.numpy(), result.labels)
        assert np.array_equal(labels_by_hand.numpy(), result.labels)


@pytest.mark.parametrize("crop", [0, 64])
@pytest.mark.parametrize(
    ("shape", "short_side"), [((1, 1), 80), ((1, 1), 0), ((1, 300), 80), ((300, 2), 0), ((13, 17), 0), ((30, 2500), 64)]
)
def test_images_of_extreme_shape(shape, short_side, crop, make):
    result = make(short_side=short_side, crop=crop)(picture(*shape), NAMES, scores=True, features=True)
    assert result.labels.shape == shape
    assert result.scores.shape == (7, *shape)
    assert np.isfinite(result.scores).all()
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("crop", [0, 64, 112])
def test_what_comes_out(crop, make):
    image = picture(50, 70)  # 80 × 112 once resized
    plain = make(crop=crop)(image, NAMES[:4])
    assert plain.names == NAMES[:4]
    assert plain.scores is None
    assert plain.features is None
    result = make(crop=crop)(image, NAMES[:4], scores=True, features=True)
    assert np.array_equal(result.labels, plain.labels)
    assert result.scores.shape == (4, 50, 70)
    assert result.scores.dtype == np.float32
    np.testing.assert_allclose(result.scores.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(result.scores.argmax(axis=0), result.labels)
    assert result.features.shape == (5, 7, 48)
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=2), 1, atol=1e-5)


def test_features_of_windows_that_do_not_overlap_are_theirs(make, tiny_backbone):
    image = picture(64, 128)
    segmenter = make(short_side=0, stride=64)
    result = segmenter(image, NAMES, features=True)
    normalised = normalise(torch.from_numpy(image).permute(2, 0, 1), tiny_backbone)
    halves = torch.stack([normalised[:, :, :64], normalised[:, :, 64:]])
    left, right = features("ClearCLIP", tiny_backbone, halves)
    expected = F.normalize(torch.cat([left, right], dim=1), dim=-1).numpy()
    inner = [0, 1, 2, 5, 6, 7]  # bilinear sampling at the centres of patches does not reach across
    np.testing.assert_allclose((result.features * expected).sum(axis=2)[:, inner], 1, atol=2e-3)


def test_options_reach_the_decoder(make):
    image = picture(50, 70)
    synonyms = ["b, a", "d, c, g", "f, e"]
    segmenter = make(logit_scale=7.0, threshold=0.4, area_threshold=0.2)
    queries = segmenter.queries(Vocabulary.of(synonyms))
    decoder = segmenter.decoder(queries)
    assert queries.names == ("b", "d", "f")
    assert queries.query_class == (0, 0, 1, 1, 1, 2, 2)
    assert (decoder.logit_scale, decoder.threshold, decoder.area_threshold) == (7.0, 0.4, 0.2)
    assert set(np.unique(make()(image, synonyms).labels)) <= {0, 1, 2}
    assert not make(threshold=1.0)(image, NAMES).labels.any()
    assert make()(image, NAMES).labels.any()


def test_names_are_embedded_by_the_text_tower(tiny_backbone):
    segmenter = Segmenter("CLIP", tiny_backbone, templates=["a {}"], short_side=64, crop=0)
    queries = segmenter.queries(Vocabulary.of(["cat, kitten", "dog"]))
    with torch.inference_mode():
        expected = F.normalize(
            tiny_backbone.encode_text(tiny_backbone.tokenizer(["a cat", "a kitten", "a dog"])), dim=-1
        )
    torch.testing.assert_close(queries.text, expected, rtol=1e-5, atol=1e-5)
    assert queries.query_class == (0, 0, 1)
    result = segmenter(picture(30, 40), Vocabulary.of(["cat, kitten", "dog"]))
    assert result.names == ("cat", "dog")
    assert result.labels.shape == (30, 40)


def test_the_last_names_are_embedded_once(tiny_backbone, monkeypatch):
    seen = []

    def embed(backbone, names, templates):
        seen.append(names)
        return embed_names(backbone, names, templates)

    monkeypatch.setattr("clearclip.embedder.embed_names", embed)
    segmenter = Segmenter("CLIP", tiny_backbone, templates=["a {}"], short_side=64, crop=0)
    first = segmenter.queries(Vocabulary.of(["cat, kitten", "dog"]))
    regrouped = segmenter.queries(Vocabulary.of(["cat", "kitten, dog"]))
    assert torch.equal(first.text, regrouped.text)
    assert regrouped.query_class == (0, 1, 1)
    segmenter.queries(Vocabulary.of(["dog"]))
    assert seen == [("cat", "kitten", "dog"), ("dog",)]


# Wrong arguments


def test_wrong_options_are_refused(tiny_backbone, make, tmp_path):
    for stride in (0, 65):
        with pytest.raises(UserError, match=f"stride {stride} must be between 1 and the crop, 64"):
            make(stride=stride)
    with pytest.raises(UserError, match="unknown method 'Clear'"):
        make("Clear")
    with pytest.raises(UserError, match=r"method must be a name of .*, not None"):
        make(None)
    with pytest.raises(UserError, match=r"text embeddings have 24 dimensions, .* has 48"):
        make(text_embeddings=TextEmbeddings(("a",), torch.ones(1, 24)))
    with pytest.raises(UserError, match=r"gone\.safetensors do not exist"):
        make(text_embeddings=tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="no row for cat"):
        make()(picture(9, 9), ["a", "cat"])
    with pytest.raises(UserError, match="not the one string"):
        make()(picture(9, 9), "cat")
    with pytest.raises(UserError, match="no template set or file imagenet81"):
        Segmenter("CLIP", tiny_backbone, templates="imagenet81")(picture(9, 9), ["cat"])


@pytest.mark.parametrize("key", ["short_side", "crop", "stride", "window_batch"])
@pytest.mark.parametrize("value", [-1, 64.0, "64", True])
def test_sizes_are_whole_numbers(key, value, make):
    with pytest.raises(UserError, match=f"{key} must be a whole number from . on, not {value!r}"):
        make(**{key: value})


@pytest.mark.parametrize("key", ["logit_scale", "temperature", "threshold", "area_threshold"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True])
def test_weights_are_numbers(key, value, make):
    with pytest.raises(UserError, match=f"{key} must be a number .*, not {value!r}"):
        make(**{key: value})


@pytest.mark.parametrize("key", ["logit_scale", "threshold", "area_threshold"])
def test_only_the_old_spelling_may_be_none(key, make):
    with pytest.raises(UserError, match=f"{key} must be a number .*, not None"):
        make(**{key: None})
    assert make(temperature=None).logit_scale == 50


def test_temperature_is_another_name_of_logit_scale(make):
    one, other = (make(**{key: 7.0})(picture(50, 70), NAMES, scores=True) for key in ("temperature", "logit_scale"))
    assert np.array_equal(one.scores, other.scores)
    assert not np.array_equal(one.scores, make()(picture(50, 70), NAMES, scores=True).scores)


def test_the_logit_scale_that_a_model_was_trained_to(make, tiny_backbone, monkeypatch):
    for key in ("logit_scale", "temperature"):
        assert make(**{key: "model"}).logit_scale == pytest.approx(1 / 0.07)  # where OpenCLIP starts it
    image = picture(50, 70)
    assert np.array_equal(*(make(logit_scale=scale)(image, ["a"], scores=True).scores for scale in (50, "model")))
    monkeypatch.setitem(tiny_backbone.__dict__, "logit_scale", None)
    with pytest.raises(UserError, match=r"does not hold the logit scale that .* was trained to; give a number"):
        make(logit_scale="model")


def test_settings_at_their_ends(make):
    make(short_side=0, crop=0, stride=0, window_batch=1, logit_scale=np.float32(0.1), threshold=1, area_threshold=1.0)
    make(window_batch=None, short_side=np.int64(64), threshold=0)
    for settings, message in (
        ({"window_batch": 0}, "window_batch must be a whole number from 1 on, not 0"),
        ({"two_steps": "no"}, "two_steps must be True or False, not 'no'"),
        ({"logit_scale": 0}, "logit_scale must be a number above 0, or model, not 0"),
        ({"temperature": 0}, "temperature must be a number above 0, or model, not 0"),
        ({"threshold": 1.5}, r"threshold must be a number within 0\.\.1, not 1\.5"),
    ):
        with pytest.raises(UserError, match=message):
            make(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "meta"}, "device meta is not that of the loaded backbone, cpu; load it so, or leave it out"),
        ({"precision": "bf16"}, r"precision torch\.bfloat16 is not that of the loaded backbone, torch\.float32"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"compile": True}, "compile True is not that of the loaded backbone, False"),
        ({"resize": "gpu"}, "unknown resize 'gpu'; use one of cv2, device, pil"),
    ],
)
def test_settings_that_contradict_a_loaded_backbone(settings, message, make, tiny_backbone):
    for method in ("CLIP", create_method("CLIP", tiny_backbone)):
        with pytest.raises(UserError, match=message):
            make(method, **settings)
    make(device="cpu", precision="fp32")
