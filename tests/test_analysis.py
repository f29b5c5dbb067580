"""Inspections and explanations: they agree with what methods compute, and the command writes what it says."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clearclip.analysis import ATTENTIONS, FEED_FORWARDS, RESIDUALS, TERMS, explain_patch, inspect, save_arrays
from clearclip.attention import mix_terms
from clearclip.errors import UserError
from clearclip.methods import create_method, similarity
from clearclip.vocabulary import Vocabulary

NAMES = ("a", "b, c", "d")
POINT = (50.0, 30.0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def trunk_of(segmenter, image):
    """The trunk of a picture that is one window."""
    view = segmenter.view(torch.from_numpy(image).permute(2, 0, 1))
    assert len(view.trunks) == 1
    return view.trunks[0]


def class_scores(segmenter, method, trunk):
    """Cosine scores [C, h, w] of a method for NAMES, the better of b and c."""
    queries = segmenter.queries(Vocabulary.of(NAMES))
    with torch.inference_mode():
        scores = similarity(create_method(method, segmenter.backbone).features(trunk), queries.text)[0]
    return torch.stack([scores[0], scores[1:3].amax(dim=0), scores[3]])


@pytest.mark.parametrize(
    ("method", "cell"),
    [("CLIP", ("qk", 1.0, True)), ("ClearCLIP", ("qq", 0.0, False)), ("MaskCLIP", ("identity", 0.0, False))],
)
def test_cells_are_the_methods_that_they_write(make, image, method, cell):
    segmenter = make(method, crop=0)
    found = explain_patch(segmenter, image, NAMES, POINT)
    row, column = found.place.patch
    expected = class_scores(segmenter, method, trunk_of(segmenter, image))[:, row, column].numpy()
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    mine = next(one for one in found.cells if (one.attention, one.residual, one.feed_forward) == cell)
    assert mine.name == found.name == ("a", "b", "d")[expected.argmax()]
    assert mine.probability == mine.probabilities.max()
    odds = np.log(mine.probabilities[0] / mine.probabilities[2])
    assert odds == pytest.approx(50 * (expected[0] - expected[2]), abs=1e-3)


def test_labels_of_all_patches_are_those_of_the_methods(make, image):
    segmenter = make(crop=0)
    found = inspect(segmenter, image, NAMES)
    assert set(found.labels) == {(a, r, f) for a in ATTENTIONS for r in RESIDUALS for f in FEED_FORWARDS}
    expected = class_scores(segmenter, "SCLIP:attention=kk", trunk_of(segmenter, image)).argmax(dim=0)
    assert np.array_equal(found.labels["kk", 1.0, True], expected)
    why = explain_patch(segmenter, image, NAMES, POINT)
    chosen = inspect(segmenter, image, NAMES, point=POINT)
    for cell in why.cells:
        label = chosen.labels[cell.attention, cell.residual, cell.feed_forward][chosen.place.patch]
        assert chosen.names[label] == cell.name


def test_streams_add_up_to_the_next_layer(make, image):
    """Norms and entropies by layer, against the block written out."""
    segmenter = make(crop=0)
    found, trunk = inspect(segmenter, image), trunk_of(segmenter, image)
    assert found.layers == tuple(range(6))
    assert found.labels == {}
    with torch.inference_mode():
        for layer, block in enumerate(segmenter.backbone.blocks):
            tokens = trunk.tokens(layer)
            q, k, v = block.qkv(tokens)
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            added = block.attention_output(weights @ v)
            for norms, stream in (
                (found.residual_norm, tokens),
                (found.attention_norm, added),
                (found.feed_forward_norm, block.mlp(tokens + added)),
            ):
                np.testing.assert_allclose(norms[layer].ravel(), stream[0, 1:].norm(dim=-1), rtol=1e-4)
            entropy = -(weights * weights.log()).sum(dim=-1)[0, :, 1:] / np.log(weights.shape[-1])
            np.testing.assert_allclose(found.entropy[layer].reshape(block.heads, -1), entropy, atol=1e-5)
    assert ((found.entropy >= 0) & (found.entropy <= 1 + 1e-6)).all()
    assert ((found.stream_entropy > 0) & (found.stream_entropy <= 1 + 1e-6)).all()


@pytest.mark.parametrize("term", TERMS)
def test_maps_are_rows_of_the_attention(make, image, term):
    segmenter = make(crop=0)
    found, trunk = inspect(segmenter, image, layers=[2, -1], point=POINT), trunk_of(segmenter, image)
    row, column = found.place.patch
    token = 1 + row * found.place.grid[1] + column
    with torch.inference_mode():
        for place, layer in enumerate(found.layers):
            q, k, v = trunk.qkv(layer)
            identity = torch.eye(q.shape[2]).expand(*q.shape[:3], -1)
            weights = mix_terms((term,), q, k, identity) if term != "vv" else mix_terms(("qq",), v, k, identity)
            expected = weights[0, :, token, 1:].mean(dim=0)
            np.testing.assert_allclose(found.attention[term][place].ravel(), expected, atol=1e-6)
            x, y = {"qk": (q, k), "qq": (q, q), "kk": (k, k), "vv": (v, v)}[term]
            cosine = F.cosine_similarity(x[0, :, token, None], y[0, :, 1:], dim=-1).mean(dim=0)
            np.testing.assert_allclose(found.cosine[term][place].ravel(), cosine, atol=1e-5)
    if term != "qk":
        assert found.cosine[term][0][found.place.patch] == pytest.approx(1, abs=1e-5)


def test_the_nearest_window_is_looked_at(make):
    """Windows of 64 every 32 pixels of a picture of 80 × 160: a point at the right is in the last."""
    wide = np.random.default_rng(1).integers(0, 256, (80, 160, 3), dtype=np.uint8)
    segmenter = make()
    right = explain_patch(segmenter, wide, NAMES, (79, 159)).place
    assert (right.top, right.left, right.height, right.width) == (16, 96, 64, 64)
    assert right.patch == (3, 3)
    left = explain_patch(segmenter, wide, NAMES, (0, 0)).place
    assert (left.top, left.left, left.patch) == (0, 0, (0, 0))
    middle = explain_patch(segmenter, wide, NAMES, (40, 100)).place
    assert middle.left == 64  # of 64 and 96 its middle is nearer
    assert middle.patch[1] == (100 - 64) // 16


def test_the_layers_between_those_asked_for_change_nothing(make, image):
    segmenter = make(crop=0)
    some, everything = (inspect(segmenter, image, layers=layers) for layers in ([4, 1], None))
    assert some.layers == (1, 4)
    for index, layer in enumerate(some.layers):
        np.testing.assert_allclose(some.residual_norm[index], everything.residual_norm[layer], rtol=1e-5)
        np.testing.assert_allclose(some.attention["qk"][index], everything.attention["qk"][layer], atol=1e-6)


def test_methods_of_whole_images_and_of_scores_have_an_explanation(make, image, deep_backbone):
    found = explain_patch(make("ClearCLIP+TLP"), image, NAMES, POINT)
    assert found.alike is not None
    whole = explain_patch(make("SC-CLIP", deep_backbone, short_side=64, crop=0), image, NAMES, POINT)
    assert whole.scores.shape == (3,)
    assert len(whole.cells) == len(ATTENTIONS) * 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"layers": [6]}, "there is no layer 6; the backbone has 6, 0 to 5"),
        ({"layers": []}, "no layers are given"),
        ({"point": (96, 0)}, r"point y=96 is outside of the picture, whose y goes from 0 to 95"),
        ({"point": (0, -1)}, r"point x=-1 is outside"),
    ],
)
def test_what_is_not_there_is_said(make, image, arguments, reason):
    with pytest.raises(UserError, match=reason):
        inspect(make(crop=0), image, **arguments)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_are_kept_by_name(make, image, tmp_path, suffix):
    found = inspect(make(crop=0), image, NAMES)
    found.save(tmp_path / f"a.{suffix}")
    if suffix == "npz":
        with np.load(tmp_path / "a.npz") as file:
            loaded = dict(file)
    else:
        from safetensors.numpy import load_file

        loaded = load_file(tmp_path / "a.safetensors")
    arrays = found.arrays()
    assert loaded.keys() == arrays.keys() >= {"entropy", "attention.qk", "labels.qq.residual0.ff0", "layers"}
    assert all(np.array_equal(loaded[key], arrays[key]) for key in arrays)
    with pytest.raises(UserError, match="one of these endings"):
        save_arrays(arrays, tmp_path / "a.txt")


def test_an_explanation_says_itself(make, image):
    text = str(explain_patch(make(crop=0), image, NAMES, POINT))
    assert text.count("\n") == 1 + len(ATTENTIONS)
    assert "patch (2, 1) of (5, 6)" in text


# The command


def analyze(*arguments):
    from clearclip.cli.main import main

    main(["analyze", *map(str, arguments)])


@pytest.fixture
def saved(image, tmp_path):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_the_command_writes_figures_arrays_and_words(saved, tiny_folder, tmp_path, capsys):
    analyze(
        saved, "--names", "cat", "grass, lawn", "--backbone", f"local-dir:{tiny_folder}", "--short-side", 64,
        "--point", "30,50", "--layers", "2,6", "--output", tmp_path / "out", "--formats", "png", "pdf",
    )  # fmt: skip
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.{kind}" for name in ("streams", "maps", "cells") for kind in ("png", "pdf")}
    assert names == figures | {"inspection.npz", "analysis.json"}
    found = json.loads((tmp_path / "out/analysis.json").read_text())
    assert found["point"] == {"x": 30.0, "y": 50.0}
    assert found["layers"] == [2, 6]
    assert len(found["cells"]) == 20
    assert found["label"] in ("cat", "grass")
    assert "query" not in capsys.readouterr().err
    with np.load(tmp_path / "out/inspection.npz") as arrays:
        assert arrays["residual_norm"].shape[0] == 2


def test_the_residuals_weight_is_tried_on_a_data_set(saved, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    analyze(
        "--backbone", f"local-dir:{tiny_folder}", "--short-side", 64, "--output", "out", "--dataset", "sanity",
        "--limit", 2, "--residuals", 0, 1,
    )  # fmt: skip
    found = json.loads((tmp_path / "out/residual.json").read_text())
    assert set(found["curves"]) == {"qq, feed-forward off", "qq, feed-forward on"}
    assert [point[0] for point in found["curves"]["qq, feed-forward off"]] == [0, 1]
    assert len({result["method"] for result in found["results"]}) == 4
    assert all(result["images"] == 2 for result in found["results"])
    assert (tmp_path / "out/residual.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["x.jpg"], "say what may be in the picture"),
        (["--limit", "3"], "--limit needs --dataset"),
        (["--names", "a", "--classes", "b.txt"], "not by both"),
        (["none.jpg", "--names", "a"], "none.jpg"),
        (["--dataset", "nowhere"], "no config 'nowhere'"),
        (["--dataset", "sanity", "--method", "GEM"], "GEM does not have"),
        (["--point", "a"], "must be X,Y"),
        (["--layers", "0"], "must be numbers from 1 on"),
        (["--dataset", "sanity", "--residuals", "-1"], "must be a number from 0 on"),
    ],
)
def test_mistakes_are_said_before_anything_slow(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        analyze(*arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        analyze()
    assert "pip install 'clearclip[analysis]'" in capsys.readouterr().err
