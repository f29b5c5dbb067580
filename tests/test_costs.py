"""tools/costs.py: every method is measured, on weights of any kind."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import costs
from conftest import picture

from clearclip.methods import list_methods


def test_all_methods_are_measured():
    names = costs.default_methods()
    assert names[0] == "CLIP"
    assert {entry.name for entry in list_methods()} == {name.partition(":")[0].partition("+")[0] for name in names}


@pytest.mark.slow
def test_program(tiny_folder, tmp_path, capsys):
    file = tmp_path / "costs.json"
    methods = ["CLIP", "CLIPer", "ClearCLIP+PAMR"]
    backbone = ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu"]
    costs.main([*backbone, "--repeats", "1", "--json", str(file), "--methods", *methods])
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == methods
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["seconds"] > 0
        assert row["ratio"] == pytest.approx(row["seconds"] / rows[0]["seconds"])
    assert "ClearCLIP+PAMR" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["CorrCLIP", "TextRegion"])
def test_masks_are_made_up(name, tiny_backbone, make):
    segmenter = make(costs.make_method(name, tiny_backbone))
    assert segmenter(picture(48, 64), ["a", "b"]).labels.shape == (48, 64)


def test_a_vision_model_gets_random_weights(tiny_backbone):
    method = costs.make_method("ProxyCLIP:vfm=dinov2_vits14", tiny_backbone)
    with torch.inference_mode():
        assert method.features(tiny_backbone.trunk(torch.rand(1, 3, 56, 56))).shape[:3] == (1, 4, 4)
