"""`other`: which words stand for everything else, and what they do to labels."""

import numpy as np
import pytest
import torch
from conftest import picture

from clearclip import Segmenter, TextEmbeddings, Vocabulary
from clearclip.errors import UserError
from clearclip.other import SAME, OtherWords, class_names, read_other, set_apart
from clearclip.vocabulary import plain

NAMES = tuple("abcdefg")


def test_shipped_words_are_plain_and_each_stands_once():
    shipped = OtherWords.shipped()
    assert len(shipped.words) > 200
    assert len({plain(word) for word in shipped.words}) == len(shipped.words)
    assert all(word == word.lower().strip() for word in (*shipped.words, *shipped.groups))
    assert {"sky", "grass", "building", "wall", "dog", "chair"} <= set(shipped.words)


def test_words_that_mean_a_name_take_no_part():
    words = OtherWords(
        ("dog", "cat", "car", "Sky-Scraper", "sea"), ("animal", "animal", "vehicle", "building", "water")
    )
    eye = torch.eye(6)
    own = eye[:5]
    near = SAME * eye[2] + (1 - SAME**2) ** 0.5 * eye[5]  # as alike to "car" as means the same
    assert words.kept(["automobile"], near[None], own) == [0, 1, 3, 4]
    assert words.kept(["pet"], (near * 0.9)[None], own) == [0, 1, 2, 3, 4]
    assert words.kept(["sky scraper", "Animal"], eye[[5, 5]], own) == [2, 4]


def test_a_class_that_means_other_is_set_apart():
    vocabulary = Vocabulary.of(["cat", "background, wall", "dog"])
    assert set_apart(vocabulary) == ("background", ("wall",), Vocabulary.of(["cat", "dog"]))
    assert set_apart(Vocabulary.of(["cat"])) == ("other", (), Vocabulary.of(["cat"]))
    assert class_names(vocabulary, True) == ("background", "cat", "dog")
    assert class_names(vocabulary, False) == ("cat", "background", "dog")
    with pytest.raises(UserError, match="'background' alone leaves nothing to look for"):
        set_apart(Vocabulary.of(["background"]))


@pytest.mark.parametrize("wrong", ["sky", 1, {"sky"}])
def test_what_other_may_be(wrong):
    assert read_other(None) is read_other(False) is None
    assert read_other(["x", "y"]).words == ("x", "y")
    with pytest.raises(UserError, match="other must be True, False or a list"):
        read_other(wrong)


def test_words_compete_with_the_names(make):
    image = picture(50, 70)
    everything = make()(image, NAMES)
    result = make()(image, ["c", "a"], other=["b", "d", "e", "f", "g"])
    assert result.names == ("other", "c", "a")
    assert result.everything_else
    expected = np.zeros_like(everything.labels)
    expected[everything.labels == 2], expected[everything.labels == 0] = 1, 2
    assert np.array_equal(result.labels, expected)
    assert 0 < (expected == 0).mean() < 1
    kept = make(other=list("bdefg"))(image, ["c", "a"])
    assert np.array_equal(kept.labels, expected)
    assert not make(other=list("bdefg"))(image, ["c", "a"], other=False).everything_else
    background = make()(image, ["c", "background, b", "a"], other=list("defg"))
    assert background.names == ("background", "c", "a")
    assert np.array_equal(background.labels, expected)


def test_below_the_threshold_a_pixel_is_other_and_not_the_first_name(make):
    image = picture(50, 70)
    plain, strict = (make(threshold=share, other=["g"])(image, ["a", "b"]) for share in (0.0, 0.6))
    lost = plain.labels != strict.labels
    assert lost.any()
    assert (strict.labels[lost] == 0).all()
    assert strict.names[0] == "other"


def test_text_embeddings_say_which_words_they_lack(make, names_and_text, caplog):
    segmenter = make()
    rows = TextEmbeddings(("a", "b", "sky"), names_and_text.embeddings[:3])
    result = make(text_embeddings=rows)(picture(40, 40), ["a", "b"], other=True)
    assert result.names == ("other", "a", "b")
    assert "have 1 of the" in caplog.text
    with pytest.raises(UserError, match="none of the words for other"):
        segmenter(picture(40, 40), ["a", "b"], other=True)


def test_a_text_tower_reads_the_words(tiny_backbone):
    segmenter = Segmenter("ClearCLIP", tiny_backbone, short_side=64, templates="single", other=True)
    queries = segmenter.queries(Vocabulary.of(["animal", "grass"]))
    assert queries.names == ("other", "animal", "grass")
    assert queries.everything_else
    shipped = OtherWords.shipped()
    animals = shipped.groups.count("animal")
    assert 0 < queries.query_class.count(0) <= len(shipped.words) - animals - 1
