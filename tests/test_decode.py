"""Streamed decoding against the plain one: softmax over queries, one-hot maximum, arg-max, thresholds."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearclip import decode
from clearclip.decode import Decoder
from clearclip.windows import Maps, Stitcher, plan


def plain_probabilities(scores, query_class, logit_scale):
    """Scores [Q, H, W] at full size to class probabilities [C, H, W]."""
    queries = (scores * logit_scale).softmax(dim=0)
    owner = F.one_hot(torch.tensor(query_class)).T  # [C, Q]
    return (owner[:, :, None, None] * queries).max(dim=1).values


def plain_labels(scores, query_class, logit_scale, threshold, area_threshold):
    classes = plain_probabilities(scores, query_class, logit_scale)
    if area_threshold:
        area = F.one_hot(classes.argmax(dim=0), len(classes)).sum(dim=(0, 1))[1:]
        classes[1:] *= (area > area_threshold * area.sum())[:, None, None]
    labels = classes.argmax(dim=0)
    labels[classes.max(dim=0).values < threshold] = 0
    return labels


@st.composite
def cases(draw):
    """Decoder arguments and tiled scores with their operators."""
    classes = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, classes - 1), max_size=4))
    query_class = tuple(draw(st.permutations([*range(classes), *extra])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    scores = torch.rand(len(query_class), 4, 3, generator=generator)
    rows = torch.rand(height, 4, generator=generator).softmax(dim=1)
    columns = torch.rand(width, 3, generator=generator).softmax(dim=1)
    return query_class, scores, rows, columns


@given(
    cases(),
    st.sampled_from([1.0, 20.0, 50.0]),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.1]),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
)
@settings(max_examples=200)
def test_labels_and_probabilities_are_the_plain_ones(case, logit_scale, threshold, area_threshold):
    query_class, scores, rows, columns = case
    decoder = Decoder(query_class, logit_scale, threshold, area_threshold)
    full = rows @ scores @ columns.T
    probabilities = decoder.probabilities(Maps(scores, rows, columns))
    torch.testing.assert_close(probabilities, plain_probabilities(full, query_class, logit_scale), rtol=1e-4, atol=1e-5)
    expected = plain_labels(full, query_class, logit_scale, threshold, area_threshold)
    assert torch.equal(decoder.labels(Maps(scores, rows, columns)).long(), expected)


@given(cases(), st.integers(0, 3))
@settings(max_examples=100)
def test_few_queries_of_a_block_give_the_same_labels(case, sharpness):
    query_class, scores, rows, columns = case
    rows, columns = rows.repeat_interleave(3, 0), columns.repeat_interleave(2, 0)
    scores[0] += sharpness  # where one query is far ahead, nothing is enlarged
    decoder = Decoder(query_class)
    with mock.patch.object(decode, "ENLARGED", 0):
        labels = decoder.labels(Maps(scores, rows, columns))
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), plain_labels(rows @ scores @ columns.T, query_class, 50.0, 0.0, 0.0))


@pytest.mark.parametrize("classes", [1, 20, 300])
def test_large_pictures_are_labelled_by_few_queries(classes, monkeypatch):
    scores = torch.rand(classes, 7, 14, generator=torch.Generator().manual_seed(0))
    maps = Stitcher(torch.device("cpu")).maps(
        scores.unflatten(2, (2, 7)).movedim(2, 0), plan(112, 168, 112, 56, 16), (350, 610)
    )
    decoder = Decoder(tuple(range(classes)))
    few = mock.Mock(side_effect=decode._best_of_few)
    monkeypatch.setattr(decode, "_best_of_few", few)
    labels = decoder.labels(maps)
    assert few.called
    monkeypatch.setattr(decode, "ENLARGED", torch.inf)
    expected = decoder.labels(maps)
    assert labels.dtype == expected.dtype
    assert torch.equal(labels, expected)
    assert few.call_count == 1


def test_scores_that_are_no_numbers_do_not_end_in_an_error(monkeypatch):
    """Whoever decodes them says so himself, see `check_finite`."""
    monkeypatch.setattr(decode, "ENLARGED", 0)
    scores = torch.full((3, 2, 2), torch.nan)
    assert Decoder((0, 1, 2)).labels(Maps(scores, torch.eye(2), torch.eye(2))).shape == (2, 2)


def test_area_is_measured_before_the_threshold():
    # Class 1 is the best of 3 of the 5 pixels that are not of class 0, but only one of them is sure.
    sure, unsure = torch.tensor([0.0, 9.0, 0.0]), torch.tensor([0.0, 0.2, 0.1])
    other = torch.tensor([0.0, 0.0, 9.0])
    scores = torch.stack([sure, unsure, unsure, other, other], dim=1)[:, None]  # [3, 1, 5]
    labels = Decoder((0, 1, 2), 1.0, 0.6, 0.3).labels(Maps(scores, torch.eye(1), torch.eye(5)))
    assert labels.tolist() == [[1, 0, 0, 2, 2]]
    # A share that equals the threshold does not exceed it.
    labels = Decoder((0, 1, 2), 1.0, 0.0, 0.6).labels(Maps(scores, torch.eye(1), torch.eye(5)))
    assert labels.tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_bands_do_not_change_the_result(monkeypatch, threshold):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(7, 6, 5, generator=generator)
    rows, columns = torch.rand(37, 6, generator=generator), torch.rand(11, 5, generator=generator)
    decoder = Decoder((2, 0, 1, 0, 3, 4, 4), 50.0, threshold, 0.05)
    labels, probabilities = (
        decoder.labels(Maps(scores, rows, columns)),
        decoder.probabilities(Maps(scores, rows, columns)),
    )
    for size in (4, 4 * 7 * 5, 4 * 7 * 100, 4 * 7 * 11 * 32):  # from a pixel at once to nearly all
        monkeypatch.setattr(decode, "BAND_BYTES", size)
        assert torch.equal(decoder.labels(Maps(scores, rows, columns)), labels)
        torch.testing.assert_close(decoder.probabilities(Maps(scores, rows, columns)), probabilities)


@pytest.mark.parametrize("threshold", [0.0, 1e-9])  # without and with the softmax
def test_ties_go_to_the_lowest_class(threshold):
    scores = torch.tensor([0.1, 0.5, 0.5, 0.5])[:, None, None]
    decoder = Decoder((0, 3, 2, 1), 50.0, threshold)
    assert decoder.labels(Maps(scores, torch.eye(1), torch.eye(1))).item() == 1


def test_a_probability_at_the_threshold_is_enough():
    scores = torch.tensor([-200.0, 3.0, 3.0])[:, None, None]  # of the two equals each has probability 0.5
    labels = [
        Decoder((0, 1, 2), 1.0, threshold).labels(Maps(scores, torch.eye(1), torch.eye(1))) for threshold in (0.5, 0.51)
    ]
    assert [label.item() for label in labels] == [1, 0]


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_label_type_holds_every_class(classes, dtype):
    scores = torch.eye(classes)[:, None]  # pixel i is of class i
    labels = Decoder(tuple(range(classes))).labels(Maps(scores, torch.eye(1), torch.eye(classes)))
    assert labels.dtype == dtype
    assert labels[0].tolist() == list(range(classes))


def test_half_precision_scores_are_decoded_in_float32():
    scores = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    decoder, eye = Decoder((0, 1, 2)), torch.eye(4)
    assert torch.equal(*(decoder.probabilities(Maps(given, eye, eye)) for given in (scores, scores.float())))


@pytest.mark.parametrize("query_class", [(), (1,), (0, 2), (-1, 0)])
def test_every_class_needs_a_query(query_class):
    with pytest.raises(ValueError, match="every class"):
        Decoder(query_class)
