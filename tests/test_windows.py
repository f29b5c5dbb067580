"""Windows and stitching against the published loop: upsample, add up, divide by the count, resize."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clearclip import windows


@st.composite
def geometries(draw):
    """Height, width, crop, stride, patch."""
    patch = draw(st.sampled_from([1, 4, 7, 16]))
    crop = draw(st.just(0) | st.integers(1, 96))
    stride = draw(st.integers(max(1, crop // 4), crop)) if crop else draw(st.sampled_from([0, 32]))
    side = st.integers(1, max(6 * stride, 20)) if crop else st.integers(1, 100)
    return draw(side), draw(side), crop, stride, patch


def plain_windows(length, crop, stride):
    """Where the published loop puts windows along one axis: (first, end) pairs."""
    spans = []
    for index in range(max(length - crop + stride - 1, 0) // stride + 1):
        end = min(index * stride + crop, length)
        spans.append((max(end - crop, 0), end))
    return spans


def padding(size, patch):
    """Before and after, up to the next multiple of the patch."""
    total = -size % patch
    return total // 2, total - total // 2


@given(geometries())
def test_windows_are_those_of_the_loop_and_cover_the_image(geometry):
    height, width, crop, stride, patch = geometry
    plan = windows.plan(*geometry)
    for axis, length in ((plan.rows, height), (plan.columns, width)):
        spans = [(start, start + axis.size) for start in axis.starts]
        if crop:
            assert spans == plain_windows(length, crop, stride)
            assert set().union(*(range(*span) for span in spans)) == set(range(length))
        else:
            assert spans == [(0, length // patch * patch or length)]
        assert axis.padded % patch == 0
        assert 0 <= axis.padded - axis.size < patch
    assert len(plan) == len(plan.rows.starts) * len(plan.columns.starts)


@given(geometries())
def test_cut_takes_the_pixels_and_pads_with_zero(geometry):
    height, width, _, _, patch = geometry
    plan = windows.plan(*geometry)
    image = 1 + torch.arange(3.0 * height * width).reshape(3, height, width)
    cut = windows.cut(image, plan)
    assert cut.shape == (len(plan), 3, *plan.window_shape)
    starts = [(y, x) for y in plan.rows.starts for x in plan.columns.starts]
    for window, (y, x) in zip(cut, starts):
        part = image[:, y : y + plan.rows.size, x : x + plan.columns.size]
        pads = (*padding(plan.columns.size, patch), *padding(plan.rows.size, patch))
        assert torch.equal(window, F.pad(part, pads))


def plain_stitch(scores, plan, shape, patch):
    """Window scores [n, Q, h, w] to [Q, H, W], as the published loops do it."""
    rows, columns = plan.rows, plan.columns
    if rows.whole:
        return F.interpolate(scores, size=shape, mode="bilinear")[0]
    total = torch.zeros(scores.shape[1], rows.length, columns.length)
    count = torch.zeros(rows.length, columns.length)
    pixels = F.interpolate(scores, size=plan.window_shape, mode="bilinear")
    top, left = padding(rows.size, patch)[0], padding(columns.size, patch)[0]
    pixels = pixels[:, :, top : top + rows.size, left : left + columns.size]
    starts = [(y, x) for y in rows.starts for x in columns.starts]
    for window, (y, x) in zip(pixels, starts):
        total[:, y : y + rows.size, x : x + columns.size] += window
        count[y : y + rows.size, x : x + columns.size] += 1
    assert count.min() >= 1
    return F.interpolate((total / count)[None], size=shape, mode="bilinear")[0]


@given(geometries(), st.tuples(st.integers(1, 130), st.integers(1, 130)), st.booleans())
def test_operators_equal_the_loop(geometry, shape, same):
    height, width, _, _, patch = geometry
    shape = (height, width) if same else shape
    plan = windows.plan(*geometry)
    grid = tuple(side // patch for side in plan.window_shape)
    scores = torch.rand(len(plan), 2, *grid, generator=torch.Generator().manual_seed(0))
    maps = windows.Stitcher(torch.device("cpu")).maps(scores, plan, shape)
    assert maps.shape == shape
    torch.testing.assert_close(maps.full(), plain_stitch(scores, plan, shape, patch), rtol=1e-4, atol=1e-5)


@given(st.tuples(*[st.integers(1, 100)] * 2), st.tuples(*[st.integers(1, 130)] * 2), st.sampled_from([8, 16]))
def test_a_whole_image_in_two_steps(size, shape, patch):
    """Its grid, of full patches, to the image's size and from there to the output's; the network drops the rest."""
    plan = windows.plan(*size, 0, 0, patch, two_steps=True)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    cut = windows.cut(image, plan)
    assert cut.shape[2:] == tuple(max(side, patch) for side in size)
    if min(size) >= patch:
        assert torch.equal(cut[0], image)
    grid = tuple(max(side // patch, 1) for side in size)
    scores = torch.rand(1, 2, *grid, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(scores, size=plan.window_shape, mode="bilinear")
    top, left = ((max(side, patch) - side) // 2 for side in size)
    expected = F.interpolate(full[:, :, top : top + size[0], left : left + size[1]], size=shape, mode="bilinear")[0]
    maps = windows.Stitcher(torch.device("cpu")).maps(scores, plan, shape)
    torch.testing.assert_close(maps.full(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(7, 3), (1, 1), (56, 56)])
def test_grids_that_are_not_the_patch_grid(grid):
    # A method may score on a grid of its own, finer than the patches.
    plan = windows.plan(75, 101, 64, 32, 16)
    scores = torch.rand(len(plan), 3, *grid, generator=torch.Generator().manual_seed(0))
    maps = windows.Stitcher(torch.device("cpu")).maps(scores, plan, (90, 80))
    torch.testing.assert_close(maps.full(), plain_stitch(scores, plan, (90, 80), 16), rtol=1e-4, atol=1e-5)


@given(geometries(), st.integers(1, 130))
def test_constant_scores_stay_constant(geometry, target):
    plan = windows.plan(*geometry)
    operator = windows.stitch_operator(plan.rows, 3, target)
    torch.testing.assert_close(operator.sum(dim=1), torch.ones(target), rtol=1e-5, atol=1e-5)


@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 40)] * 2))
def test_scores_of_a_whole_image_are_resized(grid, shape):
    scores = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    maps = windows.Stitcher(torch.device("cpu")).resized(scores, shape)
    expected = F.interpolate(scores[None], size=shape, mode="bilinear")[0]
    torch.testing.assert_close(maps.full(), expected, rtol=1e-4, atol=1e-5)


def test_maps_of_full_scores_are_these():
    scores = torch.rand(2, 5, 7)
    maps = windows.Maps.of(scores)
    assert maps.shape == (5, 7)
    torch.testing.assert_close(maps.full(), scores)


def test_operators_are_made_once_for_a_geometry(monkeypatch):
    made = []
    original = windows.stitch_operator
    monkeypatch.setattr(windows, "stitch_operator", lambda *key: made.append(key) or original(*key))
    stitcher, plan = windows.Stitcher(torch.device("cpu")), windows.plan(80, 112, 64, 32, 16)
    for _ in range(2):
        stitcher.maps(torch.rand(len(plan), 2, 4, 4), plan, (70, 90))
    assert len(made) == 2
    stitcher.maps(torch.rand(len(plan), 2, 4, 4), plan, (70, 91))
    assert len(made) == 3  # the rows are those of before


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.integers(1, 120))
def test_taps_bound_the_entries_of_a_row(length, crop, stride, patch, target):
    for axis in (windows.plan_axis(length, crop, min(stride, crop), patch), windows.plan_axis(length, 0, 0, patch)):
        patches = axis.padded // patch or 1
        operator = windows.stitch_operator(axis, patches, target)
        assert (operator != 0).sum(dim=1).max() <= windows.taps(axis, patches)
