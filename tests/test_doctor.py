"""The vocabulary doctor: pairs, synonyms and regions, on scores that are made up, and by its command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clearclip.doctor import Examination, plain_words
from clearclip.errors import UserError
from clearclip.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(["a", "b, c", "d"])


def scores_of(labels, second=None, queries=4, gap=0.1, close=0.05):
    """Scores [Q, 1, p]: the best query of each pixel has `gap`, the second `close`, the others 0."""
    scores = torch.zeros(queries, len(labels))
    if second is not None:
        scores[second, torch.arange(len(labels))] = close
    scores[labels, torch.arange(len(labels))] = gap
    return scores[:, None]


@pytest.fixture
def examination(make):
    return Examination(make(), VOCABULARY, words=())


def test_confusions_are_counted_by_ground_truth(examination):
    # Queries 0, 1 and 2, 3 are of the classes a, b, d.
    best, truth = torch.tensor([0, 0, 0, 3, 1, 2, 3, 3]), torch.tensor([0, 0, 2, 0, 1, 1, 2, -1])
    examination.add("one", scores_of(best, second=(best + 1) % 4), truth[None], None)
    found = examination.diagnosis()
    assert (found.images, found.pixels, found.truth) == (1, 7, True)
    assert {(pair.one, pair.other): pair.share for pair in found.by_pixels} == {
        ("a", "d"): pytest.approx(1 / 3),
        ("d", "a"): pytest.approx(1 / 2),
    }
    assert found.mIoU == pytest.approx((2 / 4 + 1 + 1 / 3) / 3 * 100)


def test_what_a_synonym_gains_is_the_miou_without_it(examination):
    # Query 2, a name of b, is right twice, where without it d and b would win.
    best, second = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([1, 2, 3, 1, 0])
    truth = torch.tensor([0, 1, 1, 1, 2])
    examination.add("one", scores_of(best, second), truth[None], None)
    by_name = {one.name: one for one in examination.diagnosis().synonyms}
    assert by_name.keys() == {"b", "c"}
    one = by_name["c"]
    assert (one.of, one.claims, one.kept) == ("b", pytest.approx(2 / 5), pytest.approx(1 / 2))
    assert one.class_gain == pytest.approx((1 - 2 / 3) * 100)
    assert one.gain == pytest.approx((1 - (1 + 2 / 3 + 1 / 2) / 3) * 100)
    assert by_name["b"].gain == 0  # its only pixel stays with its class


def test_a_harmful_synonym_comes_first(examination):
    best, second = torch.tensor([0, 2, 2, 1]), torch.tensor([1, 0, 0, 2])
    examination.add("one", scores_of(best, second), torch.tensor([[0, 0, 0, 1]]), None)
    first = examination.diagnosis().synonyms[0]
    assert first.name == "c"
    assert first.gain < 0


def test_without_ground_truth_close_calls_count(examination):
    best, second = torch.tensor([0, 0, 0, 3]), torch.tensor([3, 3, 1, 1])
    scores = scores_of(best, second)
    scores[3, 0, 0] = 0.095  # nearer than a ratio of 2 at a scale of 50
    examination.add("one", scores, None, None)
    found = examination.diagnosis()
    assert found.mIoU is None
    assert [(pair.one, pair.other) for pair in found.by_pixels] == [("a", "d")]
    assert found.by_pixels[0].share == pytest.approx(1 / 3)
    assert found.claims == pytest.approx({"a": 0.75, "b": 0, "d": 0.25})
    assert "without a pixel: b" in str(found)
    assert all(one.gain is None for one in found.synonyms)


def test_pairs_by_text_are_the_nearest_names(examination, names_and_text):
    examination.add("one", scores_of(torch.tensor([0, 1]), torch.tensor([1, 0])), None, None)
    text = names_and_text.embeddings
    a, b, c, d = text[:4]
    expected = {("a", "b"): max(a @ b, a @ c), ("a", "d"): a @ d, ("b", "d"): max(b @ d, c @ d)}
    found = examination.diagnosis().by_text
    assert found
    for pair in found:
        assert pair.cosine == pytest.approx(float(expected[pair.one, pair.other]), abs=1e-5)
    assert list(found) == sorted(found, key=lambda pair: -pair.cosine)


def test_regions_have_the_words_that_fit(make):
    """Patches that are a word's own embedding are its region; those of a name have none."""
    examination = Examination(make(), VOCABULARY, words=["cow", "tractor", "a"])
    assert examination.words == ("cow", "tractor")  # "a" is in the vocabulary
    axes = torch.eye(examination._name_text.shape[1])
    examination._name_text, examination._word_text = axes[:4], axes[4:6]
    features = examination._name_text[0].expand(10, 10, -1).clone()
    features[:, :3] = examination._word_text[0]
    features[7:, 6:] = examination._word_text[1]
    features[0, 9] = examination._word_text[1]  # too small
    scores = scores_of(torch.tensor([0]), torch.tensor([1]))
    examination.add("one.jpg", scores, None, features)
    regions = examination.diagnosis().regions
    assert [(region.words[0], round(region.share, 2)) for region in regions] == [("cow", 0.3), ("tractor", 0.12)]
    assert regions[0].box == pytest.approx((0, 0, 0.3, 1))
    assert regions[1].box == pytest.approx((0.6, 0.7, 1, 1))
    assert examination.diagnosis().words == {"cow": 1, "tractor": 1}


def test_some_images_with_labels_and_some_without_are_refused(examination):
    one = scores_of(torch.tensor([0]), torch.tensor([1]))
    examination.add("one", one, torch.tensor([[0]]), None)
    with pytest.raises(ValueError, match="or none"):
        examination.add("two", one, None, None)


def test_nothing_to_judge_by_is_said(examination):
    with pytest.raises(UserError, match="no pixel"):
        examination.diagnosis()
    examination.add("one", scores_of(torch.tensor([0]), torch.tensor([1])), torch.tensor([[-1]]), None)
    with pytest.raises(UserError, match="no pixel"):
        examination.diagnosis()


def test_the_word_list_is_plain():
    words = plain_words()
    assert 2000 <= len(words) <= 2100
    assert all(word == word.strip() and len(word.split()) <= 5 for word in words)
    assert {"horse", "sky", "wine glass", "brick wall"} <= {*words}


def test_a_word_list_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("cow, tractor # farm\nplough\n")
    assert plain_words(tmp_path / "words.txt") == ("cow", "tractor", "plough")
    (tmp_path / "words.txt").write_text("# none\n")
    with pytest.raises(UserError, match="is empty"):
        plain_words(tmp_path / "words.txt")
    with pytest.raises(UserError, match="cannot be read"):
        plain_words(tmp_path / "no.txt")


# The command


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(rng.integers(0, 3, (64, 80), dtype=np.uint8)).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "classes.txt").write_text("cat\ngrass, lawn\nsky\n")
    (tmp_path / "words.txt").write_text("cow, tractor\n")
    return tmp_path


def names(folder, tiny_folder, *arguments):
    from clearclip.cli.main import main

    options = ["--images", folder / "images", "--backbone", f"local-dir:{tiny_folder}", *arguments]
    main(["names", *map(str, [folder / "classes.txt", *options])])


@pytest.mark.parametrize("labelled", [False, True])
def test_the_command_says_what_it_found(folder, tiny_folder, capsys, labelled):
    masks = ["--masks", folder / "masks"] if labelled else []
    names(folder, tiny_folder, *masks, "--words", folder / "words.txt", "--output", folder / "out.json")
    said = capsys.readouterr().out
    found = json.loads((folder / "out.json").read_text())
    assert (found["images"], found["truth"]) == (3, labelled)
    assert ("most confused" in said) == labelled
    assert {one["name"] for one in found["synonyms"]} == {"grass", "lawn"}
    assert all((one["gain"] is not None) == labelled for one in found["synonyms"])
    assert {word for region in found["regions"] for word in region["words"]} <= {"cow", "tractor"}


def test_a_picture_that_cannot_be_read_costs_no_other(folder, tiny_folder, capsys):
    (folder / "images/bad.png").write_bytes(b"no picture")
    names(folder, tiny_folder, "--words", "none")
    said = capsys.readouterr()
    assert "3 images" in said.out
    assert "bad.png" in said.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["names", "--images", "x"], "give one class file"),
        (["names", "a.txt"], "by --images"),
        (["names", "a.txt", "--images", "x"], "a.txt"),
        (["names", "a.txt", "--images", "x", "--method", "none"], "none"),
    ],
)
def test_mistakes_are_said(arguments, reason, tmp_path, monkeypatch, capsys):
    from clearclip.cli.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert reason in capsys.readouterr().err
