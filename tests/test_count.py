"""Counts of two label maps, against counting pixel by pixel."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearclip.evaluation.passes import count, narrow


@given(
    st.integers(1, 6),
    st.sampled_from([0, 3, 255]),
    st.lists(st.tuples(st.sampled_from([-1, 0, 1, 2, 3, 5, 6, 7, 255, 300, 65535]), st.integers(-1, 9)), min_size=1),
    st.booleans(),
)
def test_every_pixel_is_counted_once(classes, ignored, pixels, finite):
    truth, labels = torch.tensor(pixels).T
    expected = Counter()
    for true, label in pixels:
        if true == ignored:
            continue
        place = true * (classes + 1) + (label if 0 <= label < classes else classes)
        expected[place if 0 <= true < classes else classes * (classes + 1)] += 1
    counts = count(labels[None], truth[None], classes, ignored, torch.tensor(finite))
    assert counts[-1] == finite
    assert counts[:-1].tolist() == [expected[place] for place in range(classes * (classes + 1) + 1)]
    assert [truth.tolist(), labels.tolist()] == [list(part) for part in zip(*pixels)]  # left as they were


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 7, 255], torch.uint8), ([0, 256], torch.int64), ([-1, 3], torch.int64)]
)
def test_labels_take_one_byte_where_they_fit(values, dtype):
    labels = narrow(torch.tensor(values))
    assert (labels.tolist(), labels.dtype) == (values, dtype)
