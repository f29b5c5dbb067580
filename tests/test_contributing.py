"""The examples of CONTRIBUTING.md, each put where a user of the installed package has it: in a module of one's own."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clearclip import Segmenter, TextEmbeddings, UserError
from clearclip.registry import import_modules
from clearclip.spec import Spec
from clearclip.vocabulary import load_vocabulary

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    Path(path).stem: code for path, code in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, flags=re.DOTALL)
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(name)`: import an example as a module outside of the package; it is forgotten afterwards."""
    from clearclip.masks import MASKS
    from clearclip.methods import METHODS
    from clearclip.refine import REFINEMENTS

    monkeypatch.syspath_prepend(tmp_path)
    registries = [
        (registry, dict(registry._entries)) for registry in (METHODS, REFINEMENTS, MASKS) if registry.entries()
    ]

    def load(name):
        (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
        import_modules([name])

    yield load
    for registry, entries in registries:
        registry._entries = entries
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def segment(method, backbone):
    embeddings = TextEmbeddings(("cat", "dog"), torch.eye(2, backbone.dim))
    segmenter = Segmenter(method, backbone, text_embeddings=embeddings, short_side=64, crop=64, stride=32)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    return segmenter(picture, ["cat", "dog"], scores=True)


def test_there_are_examples():
    assert set(EXAMPLES) == {"mine", "blur", "squares", "cfg_mine"}


def test_the_method(own, tiny_backbone):
    own("mine")
    plain = segment("ClearCLIP:attention=vv", tiny_backbone)
    np.testing.assert_allclose(segment("Mine", tiny_backbone).scores, plain.scores, atol=1e-6)
    kept = segment("ClearCLIP:attention=vv,residual=0.5", tiny_backbone)
    np.testing.assert_allclose(segment("mine:residual=0.5", tiny_backbone).scores, kept.scores, atol=1e-6)
    assert np.abs(kept.scores - plain.scores).max() > 1e-3
    assert str(Spec.parse("mine:residual=0.5+PAMR")) == "Mine:residual=0.5+PAMR"


def test_the_refinement(own, tiny_backbone):
    own("blur")
    sharp, blurred = (segment(method, tiny_backbone).scores for method in ("ClearCLIP", "ClearCLIP+Blur:radius=3"))
    assert blurred.shape == sharp.shape
    assert 0 < np.abs(np.diff(blurred)).sum() < np.abs(np.diff(sharp)).sum()
    with pytest.raises(UserError, match="radius 0 must be 1 or more"):
        segment("ClearCLIP+Blur:radius=0", tiny_backbone)


def test_the_masks(own, tiny_backbone):
    own("squares")
    labels = segment("ClearCLIP+MAPVOTE:masks=(Squares:side=32)", tiny_backbone).labels
    squares = labels.reshape(2, 32, 3, 32).swapaxes(1, 2).reshape(6, -1)
    assert (squares[1:] == squares[1:, :1]).all()  # the first square's number is the smallest, and means no mask
    assert (labels != segment("ClearCLIP", tiny_backbone).labels).any()


def test_the_data_set(tmp_path):
    from clearclip.config import read_config

    (classes,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "cls_mine.txt").write_text(classes)
    (tmp_path / "cfg_mine.py").write_text(EXAMPLES["cfg_mine"])
    config = read_config(tmp_path / "cfg_mine.py")
    assert load_vocabulary(config.model.vocabulary).classes == config.test_dataloader.dataset.metainfo["classes"]
    assert (config.benchmark.name, config.benchmark.protocol) == ("mine", "clearclip")
    assert config.model.method == "ClearCLIP"  # from base.py of the package
