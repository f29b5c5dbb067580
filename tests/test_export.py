"""Backbones and segmenters can be copied, pickled and traced, before and after they have seen an image."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from conftest import assert_near, picture
from torch.export import Dim, export

from clearclip.backbones import load_backbone
from clearclip.methods import create_method
from clearclip.segmenter import Segmenter
from clearclip.text import encode_prompts

NAMES = tuple("abcdefg")
SEGMENTERS = {
    "ClearCLIP": {},
    "NACLIP+PAMR:iterations=2": {},
    "ResCLIP": {},
    "SC-CLIP": {},
    "GEM": {},
    "CLIPSeg": {},
    "CLIPer": {"crop": 0},
    "ProxyCLIP:vfm=test_vit,vfm_weights={}": {},
    "CLIPer:refine=test_vit,refine_weights={}": {"crop": 0},
}


def load(folder, **options):
    return load_backbone(f"local-dir:{folder}", device="cpu", precision="fp32", **options)


@pytest.fixture(autouse=True)
def as_exported(monkeypatch):
    """Products as a tracer sees them: PyTorch's own, whose last digits are not oneDNN's."""
    monkeypatch.setattr("clearclip.products._takes", lambda *_: False)


def copies(thing):
    return pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)


# Copies


@pytest.mark.parametrize("method", SEGMENTERS)
def test_copies_of_a_segmenter_give_its_labels(method, make, vit_weights):
    segmenter = make(method.format(vit_weights), **SEGMENTERS[method])
    image = picture(50, 70)
    before = copies(segmenter)
    expected = segmenter(image, NAMES, scores=True, features=True)
    for other in (*before, *copies(segmenter)):
        assert other.backbone is not segmenter.backbone
        assert other.method.backbone is other.backbone
        result = other(image, NAMES, scores=True, features=True)
        assert np.array_equal(result.labels, expected.labels)
        assert np.array_equal(result.scores, expected.scores)
        assert np.array_equal(result.features, expected.features)


def test_a_copy_has_its_own_weights(make):
    segmenter = make()
    image = picture(50, 70)
    expected = segmenter(image, NAMES).labels
    other = copy.deepcopy(segmenter)
    with torch.no_grad():
        other.backbone.visual.proj.neg_()
    assert not np.array_equal(other(image, NAMES).labels, expected)
    assert np.array_equal(segmenter(image, NAMES).labels, expected)


def test_copies_of_a_backbone_embed_text(tiny_folder):
    backbone = load(tiny_folder)
    expected = encode_prompts(backbone, ["a cat"])  # with the text tower and the tokenizer loaded
    for other in copies(backbone):
        assert torch.equal(encode_prompts(other, ["a cat"]), expected)
        assert other.content_hash == backbone.content_hash


def test_what_is_made_for_a_grid_does_not_travel(tiny_folder):
    backbone = load(tiny_folder)
    for width in (48, 80, 96):
        create_method("NACLIP", backbone).features(backbone.trunk(torch.zeros(1, 3, 64, width)))
    assert len(backbone.constants) == 6
    for other in copies(backbone):
        assert len(other.constants) == 0


def test_a_compiled_backbone_is_compiled_anew(tiny_folder, monkeypatch):
    compiled = []

    def compile_once(function, **options):
        compiled.append(function)
        return functools.partial(function)

    monkeypatch.setattr(torch, "compile", compile_once)
    backbone, images = load(tiny_folder, compile=True), torch.zeros(1, 3, 64, 64)
    expected = backbone.trunk(images).tokens()
    for number, other in enumerate(copies(backbone), start=1):
        assert other.compiled
        assert len(compiled) == number
        assert torch.equal(other.trunk(images).tokens(), expected)


# Tracing

IMAGES, MORE = (torch.randn(size, 3, 64, 96, generator=torch.Generator().manual_seed(size)) for size in (2, 5))
BATCH = ({0: Dim("batch", min=1, max=64)},)
QUICK = [("embed", False), ("NACLIP", False), ("NACLIP", True)]
SLOW = [
    *((what, False) for what in ("tokens", "ClearCLIP", "ResCLIP", "SC-CLIP", "GEM", "CLIPSeg", "CLIPer")),
    ("GEM", True),
]


class Dense(torch.nn.Module):
    """A part of a backbone, or a method's features, as a module of its own."""

    def __init__(self, backbone, what):
        super().__init__()
        self.backbone, self.what = backbone, what
        self.method = None if what in ("embed", "tokens") else create_method(what, backbone)

    def forward(self, images):
        if self.what == "embed":
            return self.backbone.embed(images)
        trunk = self.backbone.trunk(images)
        return self.method.features(trunk) if self.method else trunk.tokens()


@pytest.mark.parametrize(("what", "seen"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_an_exported_program_computes_the_same_for_any_batch(what, seen, tiny_folder):
    backbone = load(tiny_folder)
    module = Dense(backbone, what)
    with torch.inference_mode():
        expected = Dense(load(tiny_folder), what)(MORE)
        if seen:
            module(IMAGES)
    known = len(backbone.constants)
    program = export(module, (IMAGES,), dynamic_shapes=BATCH)
    assert len(backbone.constants) == known  # what tracing makes is of no use to a real call
    with torch.inference_mode():
        assert_near(program.module()(MORE), expected, 1e-6)
        assert_near(module(MORE), expected, 1e-6)


@pytest.mark.slow
def test_strict_export_knows_clearclip_too(tiny_folder):
    module = Dense(load(tiny_folder), "ClearCLIP")
    program = export(module, (IMAGES,), dynamic_shapes=BATCH, strict=True)
    with torch.inference_mode():
        assert_near(program.module()(MORE), module(MORE), 1e-6)


def test_a_segmenter_works_after_a_failed_export(make, tiny_folder, names_and_text):
    """What breaks off in the middle of a trace leaves nothing behind."""

    class Breaks(Dense):
        def forward(self, images):
            super().forward(images)
            raise RuntimeError("broken off")

    backbone = load(tiny_folder)
    with pytest.raises(RuntimeError, match="broken off"):
        export(Breaks(backbone, "NACLIP"), (IMAGES,))
    segmenter = Segmenter("NACLIP", backbone, text_embeddings=names_and_text, short_side=80, crop=64, stride=32)
    image = picture(50, 70)
    assert np.array_equal(segmenter(image, NAMES).labels, make("NACLIP")(image, NAMES).labels)


@pytest.mark.slow
def test_proxyclip_exports_for_a_fixed_batch(tiny_folder, vit_weights):
    """It takes one window after the other, so that the similarities of a fine grid never lie beside one another."""
    module = Dense(load(tiny_folder), f"ProxyCLIP:vfm=test_vit,vfm_weights={vit_weights}")
    program = export(module, (IMAGES,))
    with torch.inference_mode():
        assert_near(program.module()(IMAGES), module(IMAGES), 1e-6)
