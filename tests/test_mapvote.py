import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearclip.errors import UserError
from clearclip.refine.mapvote import vote


def test_a_tie_gives_the_smallest_label():
    labels = torch.tensor([[2, 1, 0, 0]], dtype=torch.uint8)
    assert vote(labels, torch.tensor([[5, 5, 0, 0]]), 3).tolist() == [[1, 1, 0, 0]]


def test_the_smallest_number_is_left_alone():
    labels = torch.tensor([[0, 1, 1, 2, 2, 0]], dtype=torch.uint8)
    assert vote(labels, torch.tensor([[3, 3, 3, 4, 4, 4]]), 3).tolist() == [[0, 1, 1, 2, 2, 2]]


@pytest.mark.parametrize(("none", "dtype"), [(255, torch.uint8), (65535, torch.int32)])
def test_no_class_has_a_vote(none, dtype):
    """CLIPer may give a pixel none."""
    labels = torch.tensor([[none, none, 1, 0, 0, none, 2]], dtype=dtype)
    voted = vote(labels, torch.tensor([[1, 1, 1, 2, 2, 2, 0]]), 3)
    assert voted.tolist() == [[none, none, none, 0, 0, 0, 2]]
    assert voted.dtype == dtype


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 5))
def test_is_the_commonest_label_of_every_mask(seed, classes, masks):
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(random.integers(0, classes, (7, 9), np.uint8))
    ids = torch.from_numpy(random.integers(0, masks, (7, 9), np.int32))
    voted = vote(labels, ids, classes)
    for number in ids.unique().tolist():
        inside = ids == number
        if number == ids.min():
            assert torch.equal(voted[inside], labels[inside])
        else:
            assert voted[inside].unique().tolist() == [int(torch.bincount(labels[inside].int()).argmax())]


def test_follows_any_method(make, tmp_path):
    """Masks of another size than the labels are sampled; scores and features stay as they are."""
    ids = np.zeros((60, 90), np.uint16)
    ids[:40, :50], ids[40:, 50:] = 700, 3
    Image.fromarray(ids).save(tmp_path / "a.png")
    Image.fromarray(picture(60, 90)).save(tmp_path / "a.jpg")
    plain, voted = (
        make(f"ClearCLIP+PAMR{rest}")(tmp_path / "a.jpg", ["a", "b", "c, d"], scores=True)
        for rest in ("", f"+MAPVOTE:masks={tmp_path}")
    )
    assert np.array_equal(plain.scores, voted.scores)
    assert np.array_equal(plain.labels[ids == 0], voted.labels[ids == 0])
    for number in (3, 700):
        commonest = np.bincount(plain.labels[ids == number]).argmax()
        assert len(np.unique(plain.labels[ids == number])) > 1
        assert (voted.labels[ids == number] == commonest).all()


def test_masks_that_are_missing_are_named(make, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture(60, 90)).save(tmp_path / "dog.jpg")
    segmenter = make(f"ClearCLIP+MAPVOTE:masks={tmp_path}/masks")
    with pytest.raises(UserError, match=r"no masks of .*dog\.jpg: .*masks has neither dog\.png nor dog\.npz; put"):
        segmenter(tmp_path / "dog.jpg", ["a", "b"])
