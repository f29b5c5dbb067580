"""`other`: which words stand for everything else, and what they do to labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture

from clearclip import Segmenter, TextEmbeddings, Vocabulary
from clearclip.errors import UserError
from clearclip.evaluation.segmentor import class_queries
from clearclip.other import ENOUGH, SAME, OtherWords, class_names, read_other, set_apart
from clearclip.vocabulary import plain

NAMES = tuple("abcdefg")


def test_shipped_words_are_plain_and_each_stands_once():
    shipped = OtherWords.shipped()
    assert len(shipped.words) > 200
    assert len({plain(word) for word in shipped.words}) == len(shipped.words)
    assert all(word == word.lower().strip() for word in (*shipped.words, *shipped.groups))
    assert {"sky", "grass", "building", "wall", "dog", "chair"} <= set(shipped.words)


def test_words_that_mean_a_name_take_no_part():
    first, groups = ("dog", "cat", "car", "Sky-Scraper"), ("animal", "animal", "vehicle", "building")
    names = (*first, *(f"word {index}" for index in range(ENOUGH)))
    words = OtherWords(names, (*groups, *names[4:]), alike=True)
    eye = torch.eye(len(names) + 1)
    own = eye[:-1]
    common = own.mean(dim=0)
    direction = F.normalize(own[2] - common, dim=0)
    across = F.normalize(eye[-1] - (eye[-1] @ direction) * direction, dim=0)

    def alike(cosine):  # to "car", without what all have in common
        return (common + cosine * direction + (1 - cosine**2) ** 0.5 * across)[None]

    everything = list(range(len(names)))
    assert words.kept(["automobile"], alike(SAME + 0.01), own) == [i for i in everything if i != 2]
    assert words.kept(["tool"], alike(SAME - 0.01), own) == everything
    assert replace(words, alike=False).kept(["automobile"], alike(SAME + 0.01), own) == everything
    assert words.kept(["sky scraper", "Animal"], eye[[-1, -1]], own) == [2, *everything[4:]]


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


def test_an_evaluation_needs_a_background(make, tmp_path):
    (tmp_path / "with.txt").write_text("background\na\nb\n")
    (tmp_path / "without.txt").write_text("a\nb\n")
    segmenter = make(other=["f", "g"])
    queries = class_queries(segmenter, tmp_path / "with.txt")
    assert (queries.names, queries.query_class) == (("background", "a", "b"), (0, 0, 1, 2))
    with pytest.raises(UserError, match=r"without\.txt is 'a'; leave out --other"):
        class_queries(segmenter, tmp_path / "without.txt")
