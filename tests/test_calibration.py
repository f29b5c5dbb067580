"""Calibrations: what is fitted, where it is added, what they refuse, and how results say so."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from clearclip.calibration import (
    SHRINKAGE,
    Calibration,
    Pixels,
    ascend,
    fit,
    line,
    mean_iou,
    overlap,
    shrunk,
    text_hash,
)
from clearclip.errors import UserError

NAMES = ("a", "b, c", "d")
QUERY_CLASS = (0, 1, 1, 2)


def sampled(images=12, pixels=60, bias=(0.0, 0.0, 0.0, 0.0), seed=0):
    """Noisy scores [Q, p] and labels [p] of images; `bias` is what the queries are favoured by."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(images):
        truth = torch.randint(0, 3, (pixels,), generator=generator)
        right = torch.tensor(QUERY_CLASS)[:, None] == truth
        noise = 0.02 * torch.randn(len(QUERY_CLASS), pixels, generator=generator)
        parts.append((0.02 * right + noise + torch.tensor(bias)[:, None], truth))
    return parts


@pytest.fixture
def biased():
    return Pixels.of(sampled(bias=(0.05, 0.0, 0.0, 0.0)), QUERY_CLASS, 50.0)


def test_scores_of_synonyms_are_the_best_and_their_masses_add_up(biased):
    raw = torch.cat([scores for scores, _ in sampled(bias=(0.05, 0.0, 0.0, 0.0))], dim=1)
    assert torch.equal(biased.scores[1], raw[1:3].amax(dim=0))
    torch.testing.assert_close(biased.mass[1], (50 * raw[1:3]).logsumexp(dim=0))
    assert biased.areas.sum() == len(biased.truth) == 12 * 60
    assert biased.images_of.tolist() == [12, 12, 12]


@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.6])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_line_is_what_each_value_gives_by_itself(biased, threshold, index):
    offsets, values = torch.tensor([0.01, -0.02, 0.005]), torch.linspace(-0.1, 0.1, 21)
    found = line(biased, offsets, threshold, index, values)
    for value, score in zip(values, found):
        tried = offsets.clone()
        tried[index] = value
        assert score * 100 == pytest.approx(mean_iou(*overlap(biased, tried, threshold)), abs=1e-3)


def test_a_bias_is_found_and_taken_back(biased):
    before = mean_iou(*overlap(biased, torch.zeros(3), 0.0))
    offsets, _ = ascend(biased, 0.0)
    assert mean_iou(*overlap(biased, offsets, 0.0)) > before + 10
    assert offsets[0] < offsets[1:].min() - 0.02
    found = fit(biased, 0.0)
    assert found.calibrated > found.plain + 10
    assert found.doubt in SHRINKAGE
    assert found.threshold == 0


def test_nothing_is_made_of_noise():
    fair = Pixels.of(sampled(images=4, pixels=8), QUERY_CLASS, 50.0)
    found = fit(fair, 0.0)
    assert found.calibrated >= found.plain  # no calibration is always among what is tried


def test_a_class_without_labels_keeps_its_offset():
    parts = [(scores[:, truth != 2], truth[truth != 2]) for scores, truth in sampled()]
    offsets, _ = ascend(Pixels.of(parts, QUERY_CLASS, 50.0), 0.0)
    assert offsets[2] == 0


def test_shrinkage_follows_the_number_of_images(biased):
    offsets = torch.tensor([0.1, 0.1, 0.1])
    assert torch.equal(shrunk(offsets, biased, 0.0), offsets)
    torch.testing.assert_close(shrunk(offsets, biased, 12.0), offsets / 2)
    assert not shrunk(offsets, biased, math.inf).any()


def test_a_threshold_is_fitted_where_there_is_one():
    """Pixels of class 0 look like nothing: a threshold sends them there."""
    generator, parts = torch.Generator().manual_seed(1), []
    for _ in range(8):
        truth = torch.randint(0, 3, (80,), generator=generator)
        right = (torch.tensor(QUERY_CLASS)[:, None] == truth) & (truth > 0)
        noise = 0.005 * torch.randn(4, 80, generator=generator)
        parts.append((0.08 * right + noise - torch.tensor([[0.05], [0], [0], [0]]), truth))
    pixels = Pixels.of(parts, QUERY_CLASS, 50.0)
    found = fit(pixels, 0.1)
    assert found.threshold > 0.3
    assert mean_iou(*overlap(pixels, found.offsets, found.threshold)) > 95


# As a file, and in use


def calibration(segmenter, names=NAMES, offsets=(0.3, 0.0, -0.3), **fields):
    from clearclip.vocabulary import Vocabulary

    queries = segmenter.queries(Vocabulary.of(names))
    return Calibration(Vocabulary.of(names).names, offsets, None, segmenter.settings, text_hash(queries), **fields)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def test_a_file_gives_back_what_was_saved(make, tmp_path):
    known = calibration(make(), fitted={"images": ["x#1"], "seed": 3})
    known.save(tmp_path / "a.json")
    assert Calibration.load(tmp_path / "a.json") == known


def test_offsets_are_added_to_scores(make, image, tmp_path):
    plain = make()
    known = calibration(plain)
    known.save(tmp_path / "a.json")
    before = plain(image, NAMES, scores=True)
    after = make(calibration=tmp_path / "a.json")(image, NAMES, scores=True)
    # The offsets act on logits, so that they change the odds of classes by a constant.
    odds = np.log(after.scores[0] / after.scores[2]) - np.log(before.scores[0] / before.scores[2])
    np.testing.assert_allclose(odds, 50 * 0.6, rtol=1e-3)
    assert (after.labels == 0).mean() > (before.labels == 0).mean()
    none = make(calibration=calibration(plain, offsets=(0.0, 0.0, 0.0)))(image, NAMES)
    assert np.array_equal(none.labels, before.labels)


def test_a_threshold_takes_the_place_of_the_segmenters(make, image):
    import dataclasses

    known = dataclasses.replace(calibration(make(), offsets=(0.0,) * 3), threshold=1.0)
    assert (make(calibration=known)(image, NAMES).labels == 0).all()


def test_other_names_and_settings_are_refused(make, image):
    known = calibration(make())
    with pytest.raises(UserError, match=r"other names.*'e' is not among them"):
        make(calibration=known)(image, ["a", "e", "d"])
    with pytest.raises(UserError, match="fitted for short_side 80, not 96"):
        make(calibration=known, short_side=96)
    import dataclasses

    other = dataclasses.replace(known, settings={"method": "NACLIP"})
    with pytest.raises(UserError, match="fitted for method NACLIP, not ClearCLIP"):
        make(calibration=other)


def test_other_text_is_said(make, image, caplog, names_and_text):
    from clearclip.text import TextEmbeddings

    known = calibration(make())
    other = TextEmbeddings(names_and_text.names, names_and_text.embeddings.flip(0))
    make(calibration=known, text_embeddings=other)(image, NAMES)
    assert "other text embeddings" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no calibration"),
        ("[" * 100_000, "no calibration"),
        ("[]", "no calibration"),
        ('{"format": "x"}', "another format"),
        ('{"format": "clearclip calibration 1"}', "no calibration"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        Calibration.load(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json")


def test_an_edited_file_is_refused(make, tmp_path):
    path = tmp_path / "a.json"
    calibration(make()).save(path)
    content = json.loads(path.read_text())
    content["offsets"][0] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="changed after it was fitted"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offsets", [math.nan, 0.0, 0.0]),
        ("threshold", math.nan),
        ("threshold", "0.5"),
        ("threshold", True),
        ("threshold", 5),
        ("names", [[], ["b"], ["c"]]),
        ("names", [[1], [2], [3]]),
        ("settings", None),
        ("settings", ["method"]),
        ("text_hash", 5),
        ("fitted", None),
        ("fitted", {"images": 3}),
        ("fitted", {"images": [["a"]]}),
    ],
)
def test_a_file_whose_hash_was_made_to_fit_is_still_checked(key, value, tmp_path):
    saved = Calibration((("a",), ("b",), ("c",)), (0.1, 0.0, 0.0), 0.5, {}, "", {"images": []})
    edited = dataclasses.replace(saved, **{key: value})
    edited.save(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.json is no calibration \(its"):
        Calibration.load(tmp_path / "a.json")


# On a benchmark


@pytest.fixture
def benchmark(tmp_path, tiny_folder):
    """A folder of six pictures and a config for it."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(rng.integers(0, 3, (64, 80), dtype=np.uint8)).save(tmp_path / f"labels/{number}.png")
    (tmp_path / "classes.txt").write_text("a\nb, c\nd\n")
    path = tmp_path / "cfg_own.py"
    path.write_text(f"""
_base_ = "base.py"
model = dict(
    backbone="local-dir:{tiny_folder}", vocabulary="{tmp_path}/classes.txt", templates="single", short_side=64, crop=64,
    stride=32, device="cpu", precision="fp32",
)
test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset", data_root="{tmp_path}", img_suffix=".png", seg_map_suffix=".png",
        data_prefix=dict(img_path="images", seg_map_path="labels"), metainfo=dict(classes=("a", "b", "d")),
    )
)
benchmark = dict(name="own", images=6, published={{}}, source={{}})
""")
    return path


def test_calibrate_fits_on_some_and_reports_on_the_others(benchmark, tmp_path, monkeypatch, capsys):
    from clearclip.cli.main import main

    monkeypatch.chdir(tmp_path)
    main(["calibrate", str(benchmark), "--images", "3", "--output", "own.json"])
    said = capsys.readouterr().out
    assert "fitted on 3 images" in said
    assert "the same 3 images" in said
    known = Calibration.load("own.json")
    assert known.classes == ("a", "b", "d")
    assert len(known.fitted["images"]) == 3
    assert known.settings["method"] == "ClearCLIP"
    results = [json.loads(path.read_text()) for path in tmp_path.glob("work_dirs/**/result.json")]
    assert len(results) == 2
    calibrated = next(result for result in results if "calibration" in result)
    assert calibrated["settings"]["altered"] == ["calibration"]
    assert calibrated["calibration"]["seen"] == 0
    assert calibrated["calibration"]["hash"] == known.hash
    assert "clearclip*" in said

    # On all images the result says that some are those of the fit.
    main(["eval", str(benchmark), "--calibration", "own.json", "--work-dir", "out"])
    assert "fitted on 3 of these 6 images" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/result.json").read_text())["calibration"]["seen"] == 3

    with pytest.raises(SystemExit):
        main(["eval", str(benchmark), "--calibration", "own.json", "--method", "NACLIP"])
    assert "fitted for method ClearCLIP, not NACLIP" in capsys.readouterr().err


def test_calibrate_leaves_images_to_report_on(benchmark, tmp_path, monkeypatch, capsys):
    from clearclip.cli.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["calibrate", str(benchmark), "--images", "6"])
    assert "leaves none of the 6 images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", str(benchmark), "--images", "2", "--method", "CLIPer"])
    assert "decoder of its own" in capsys.readouterr().err
