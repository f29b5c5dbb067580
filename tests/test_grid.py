"""A grid of options and its pivot table."""

import pytest
from sample_results import result

from clearclip.cli.grid import Grid
from clearclip.errors import UserError

GRID = Grid.parse("ClearCLIP:attention=qq|kk|vv,residual=0|1")


def test_every_combination_is_a_method():
    assert GRID.methods == [
        f"ClearCLIP:attention={attention},residual={residual}" for attention in ("qq", "kk", "vv") for residual in "01"
    ]


@pytest.mark.parametrize(
    "text",
    ["ClearCLIP", "ClearCLIP:", "ClearCLIP:attention=qq", "ClearCLIP:attention=|qq", "ClearCLIP:attention=qq|qq",
     "ClearCLIP:a=1|2,a=3|4", "ClearCLIP:attention", "ClearCLIP:=1|2"],
)  # fmt: skip
def test_a_grid_must_have_several_cells(text):
    with pytest.raises(UserError, match="--grid"):
        Grid.parse(text)


def cells(dataset="voc20", **changes):
    """A result for each cell but the last."""
    scores = zip(GRID.methods[:-1], (70.0, 60.5, 80.25, 71.0, 50.0))
    return [result(dataset, score, method=method, **changes) for method, score in scores]


def test_the_longest_option_is_down_and_the_best_has_a_star():
    (pivot,) = GRID.pivots(cells(interval=1.5))
    assert pivot.text().splitlines() == [
        "ClearCLIP, voc20, clearclip, ViT-B-16, openai, fp32",
        "residual      0               1",
        "attention=qq  70.00 ± 1.50    60.50 ± 1.50",
        "attention=kk  80.25 ± 1.50 *  71.00 ± 1.50",
        "attention=vv  50.00 ± 1.50",
    ]


def test_backbones_and_data_sets_have_tables_of_their_own():
    found = GRID.pivots([*cells(), *cells(backbone="ViT-L-14"), *cells("voc21")])
    assert [pivot.title.split(", ")[1:4:2] for pivot in found] == [
        ["voc20", "ViT-B-16"], ["voc20", "ViT-L-14"], ["voc21", "ViT-B-16"],
    ]  # fmt: skip
    assert all(pivot.lines()[2][1] == "80.25 *" for pivot in found)


def test_markdown():
    (pivot,) = GRID.pivots(cells())
    assert pivot.markdown().splitlines()[2:] == [
        "| residual | 0 | 1 |",
        "| --- | ---: | ---: |",
        "| attention=qq | 70.00 | 60.50 |",
        "| attention=kk | **80.25** | 71.00 |",
        "| attention=vv | 50.00 |  |",
    ]


def test_three_options_and_a_fixed_one():
    grid = Grid.parse("ClearCLIP:attention=qq|kk,residual=0|1,feed_forward=false|true,scale=1")
    assert len(grid.methods) == 8
    one = Grid.parse("ClearCLIP:residual=0|1,attention=kk")
    (pivot,) = one.pivots([result(mIoU=70.0, method="ClearCLIP:residual=1,attention=kk")])
    assert pivot.lines() == [["", "mIoU"], ["residual=0", ""], ["residual=1", "70.00 *"]]
