"""Run lengths are those of pycocotools, and say what the mask was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clearclip.coco import annotations, box, categories, encode_mask

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 120)))


def decoded(encoded):
    """The mask [H, W] of run lengths, read letter by letter."""
    counts, values, group, shift = [], [], 0, 0
    for letter in encoded["counts"].encode():
        bits = letter - 48
        group |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value = group - (1 << shift) if bits & 16 else group
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            group, shift = 0, 0
    for place, count in enumerate(counts):
        values += [place % 2] * count
    return np.array(values, bool).reshape(encoded["size"], order="F")


@given(MASKS)
def test_masks_are_read_back(mask):
    assert np.array_equal(decoded(encode_mask(mask)), mask)


@pytest.mark.parametrize("shape", [(1, 1), (300, 500), (1, 70000)])
@pytest.mark.parametrize("value", [False, True])
def test_masks_of_one_value(shape, value):
    assert np.array_equal(decoded(encode_mask(np.full(shape, value))), np.full(shape, value))


@given(MASKS)
def test_letters_are_those_of_pycocotools(mask):
    reference = pytest.importorskip("pycocotools.mask")
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == {"size": list(mask.shape), "counts": expected["counts"].decode()}


def test_letters_that_pycocotools_gave():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    assert encode_mask(mask) == {"size": [5, 7], "counts": ";32000004"}


@given(MASKS.filter(np.any))
def test_boxes_are_the_smallest(mask):
    left, top, width, height = box(mask)
    inside = mask[top : top + height, left : left + width]
    assert inside.sum() == mask.sum()
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


def test_annotations_are_of_classes_that_are_there():
    labels = np.array([[0, 2, 2], [0, 0, 2]], np.uint8)
    found = annotations(labels, range(1, 3), image_id=7, first_id=5)
    assert [(one["id"], one["image_id"], one["category_id"], one["area"], one["bbox"]) for one in found] == [
        (5, 7, 3, 3, [1, 0, 2, 2])
    ]
    assert categories(("other", "cat", "dog"), range(1, 3)) == [{"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
