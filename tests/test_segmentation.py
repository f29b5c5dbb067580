"""What a Segmentation draws, saves and exports."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from safetensors import safe_open

from clearclip import Segmentation
from clearclip.errors import UserError
from clearclip.segmentation import OUTPUTS, output_files
from clearclip.visualize import read_legend

NAMES = ["a", "a red thing", "c/d"]


@pytest.fixture
def embeddings(names_and_text):
    from clearclip import TextEmbeddings

    return TextEmbeddings((*NAMES, "sky", "sea"), names_and_text.embeddings[:5])


@pytest.fixture
def path(tmp_path):
    Image.fromarray(picture(50, 70)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def result(make, embeddings, path):
    return make(text_embeddings=embeddings)(path, NAMES, scores=True, features=True)


@pytest.fixture
def with_other(make, embeddings, path):
    return make(text_embeddings=embeddings, other=["sky", "sea"])(path, NAMES, scores=True)


def test_similarity_is_what_softmax_was_made_of(result):
    similarity = torch.from_numpy(result.similarity)
    assert similarity.shape == (3, 50, 70)
    assert similarity.abs().max() <= 1
    torch.testing.assert_close((50 * similarity).softmax(dim=0).numpy(), result.scores, rtol=1e-3, atol=1e-5)
    assert np.array_equal(result.similarity.argmax(axis=0), result.labels)


def test_a_phrase_alone_has_its_similarity_as_score(make, embeddings, path):
    alone = make(text_embeddings=embeddings)(path, NAMES[1:2], scores=True)
    together = make(text_embeddings=embeddings)(path, NAMES, scores=True)
    assert alone.scores.shape == (1, 50, 70)
    assert np.ptp(alone.scores) > 0.01
    np.testing.assert_allclose(alone.scores[0], together.similarity[1], atol=1e-5)
    np.testing.assert_array_equal(alone.scores, alone.similarity)


def test_synonyms_give_the_similarity_of_the_best(make, embeddings, path):
    segmenter = make(text_embeddings=embeddings)
    one = segmenter(path, ["a, sky", "sea"], scores=True)
    each = segmenter(path, ["a", "sky", "sea"], scores=True)
    np.testing.assert_allclose(one.similarity[0], each.similarity[:2].max(axis=0), atol=1e-6)


def test_areas_are_shares_the_largest_first(with_other):
    areas = with_other.areas
    assert sum(areas.values()) == pytest.approx(1)
    assert list(areas.values()) == sorted(areas.values(), reverse=True)
    assert areas["other"] == (with_other.labels == 0).mean()


def test_the_image_is_read_when_it_is_wanted(result, path, make):
    assert np.array_equal(result.image, picture(50, 70))
    Image.fromarray(picture(40, 40)).save(path)
    with pytest.raises(UserError, match="its size differs"):
        Segmentation(result.labels, result.names, source=path).overlay()
    with pytest.raises(UserError, match="does not know its image"):
        Segmentation(result.labels, result.names).overlay()


def test_what_is_other_keeps_the_look_of_the_photograph(with_other):
    inside = np.asarray(with_other.overlay(legend=False, write=False))
    coloured = np.ptp(inside.astype(int), axis=-1) > 8
    assert not coloured[with_other.labels == 0].any()
    assert coloured[with_other.labels != 0].mean() > 0.5
    without = Segmentation(with_other.labels, with_other.names)
    assert np.array_equal(with_other.colours[1:], without.colours[:-1])


def test_heat_is_of_names_that_were_looked_for(result, with_other):
    assert result.heat("a red thing").width == result.heat(1).width == 70
    with pytest.raises(UserError, match="'dog' was not looked for; the names are a, a red thing"):
        result.heat("dog")
    with pytest.raises(UserError, match="scores=True"):
        Segmentation(result.labels, result.names, source=result.source).heat("a")


def test_every_kind_is_saved_and_read_back(with_other, make, embeddings, path, tmp_path):
    segmenter = make(text_embeddings=embeddings, other=["sky", "sea"])
    result = segmenter(path, NAMES, scores=True, features=True)
    paths = result.save(tmp_path / "new" / "out", OUTPUTS)
    assert sorted(paths) == sorted(OUTPUTS)
    written = {path.name for of_kind in paths.values() for path in of_kind}
    assert written == {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert {"cat_heat_1-a.png", "cat_heat_2-a-red-thing.png", "cat_heat_3-c-d.png"} <= written

    (labels,), (scores,), (features,), (manifest,) = (paths[kind] for kind in ("labels", "scores", "features", "json"))
    with Image.open(labels) as saved:
        assert np.array_equal(np.asarray(saved), result.labels)
    inside, beside = read_legend(labels), json.loads(manifest.read_text())
    assert [one["name"] for one in inside["classes"]] == ["other", *NAMES]
    assert beside == {"picture": str(path), **inside}
    assert (beside["method"], beside["backbone"]) == ("ClearCLIP", result.about["backbone"])
    assert beside["version"].startswith("clearclip ")
    with safe_open(scores, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("similarity"), result.similarity)
        assert json.loads(file.metadata()["names"]) == ["other", *NAMES]
    with safe_open(features, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("features"), result.features)

    (array,) = result.save(tmp_path, ["features"], stem="x", arrays="npy")["features"]
    assert array.name == "x_features.npy"
    np.testing.assert_array_equal(np.load(array), result.features)


def test_coco_leaves_out_what_is_other(with_other):
    dataset = json.loads(json.dumps(with_other.to_coco(image_id=3)))
    assert dataset["images"] == [{"id": 3, "file_name": "cat.png", "height": 50, "width": 70}]
    assert [one["name"] for one in dataset["categories"]] == NAMES
    areas = {one["category_id"] - 1: one["area"] for one in dataset["annotations"]}
    assert areas == {label: (with_other.labels == label).sum() for label in (1, 2, 3) if label in with_other.labels}


@pytest.mark.parametrize(
    ("what", "arrays", "message"),
    [
        (["masks"], "npy", "nothing called 'masks' can be saved; there are labels, overlay"),
        (["labels"], "mat", "saved as safetensors or npy, not as 'mat'"),
        (["features"], "npy", "features=True"),
        (["heat"], "npy", "scores=True"),
    ],
)
def test_what_cannot_be_saved(what, arrays, message, make, path, tmp_path):
    result = make()(path, ["a", "b"])
    with pytest.raises(UserError, match=message):
        result.save(tmp_path / "out", what, arrays=arrays)


def test_names_of_files_are_known_before():
    assert output_files("x", ["heat", "labels", "heat"], ("other", "a b"), everything_else=True) == {
        "heat": ["x_heat_1-a-b.png"],
        "labels": ["x_labels.png"],
    }


def test_a_notebook_shows_the_overlay(result):
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert (shown.format, shown.mode) == ("PNG", "RGB")
    assert Segmentation(result.labels, result.names)._repr_png_() is None


def test_supervision_is_optional(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        result.to_supervision()


def test_supervision_gets_masks_boxes_and_names(with_other, monkeypatch):
    class Detections(types.SimpleNamespace):
        pass

    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))
    found = with_other.to_supervision()
    for label, mask, name, (left, top, right, bottom), confidence in zip(
        found.class_id, found.mask, found.data["class_name"], found.xyxy, found.confidence
    ):
        assert np.array_equal(mask, with_other.labels == label)
        assert name == with_other.names[label] != "other"
        rows, columns = np.nonzero(mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert confidence == pytest.approx(with_other.scores[label][mask].mean())


def test_lists_are_streamed(make, path):
    segmenter = make(window_batch=1)
    seen = []

    def images():
        for seed in range(3):
            seen.append(seed)
            yield picture(64, 64, seed)

    first = next(segmenter.stream(images(), ["a", "b"]))
    assert seen == [0]
    assert np.array_equal(first.labels, segmenter(picture(64, 64, 0), ["a", "b"]).labels)
    with pytest.raises(UserError, match=r"gone\.png"):
        segmenter([picture(64, 64), path.with_name("gone.png")], ["a", "b"])
