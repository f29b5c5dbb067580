"""A method and what follows it in one written form."""

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

from clearclip import Spec
from clearclip.errors import UserError
from clearclip.methods import METHODS
from clearclip.methods.final_block import FinalBlock
from clearclip.refine import REFINEMENTS, Refinement
from clearclip.refine.pamr import PAMR
from clearclip.windows import Maps

NAMES = tuple("abcdefg")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("clearclip", "ClearCLIP"),
        (" naclip + pamr ", "NACLIP+PAMR"),
        ("sclip:residual=0.0+pamr:iterations=20", "SCLIP:residual=0+PAMR:iterations=20"),
        ("ClearCLIP:attention=qq+kk", "ClearCLIP:attention=qq+kk"),
        ("clearclip:attention=qq+kk+gaussian5,residual=1+PAMR", "ClearCLIP:attention=qq+kk+gaussian5,residual=1+PAMR"),
        ("ClearCLIP+PAMR:dilations=(1, 2)+PAMR", "ClearCLIP+PAMR:dilations=(1,2)+PAMR"),
    ],
)
def test_canonical_form(text, canonical):
    spec = Spec.parse(text)
    assert str(spec) == canonical
    assert Spec.parse(canonical) == spec


def test_parts():
    spec = Spec.parse("ClearCLIP:attention=qq+kk,residual=1+PAMR:iterations=20,dilations=(1,2)+PAMR")
    assert spec.method.name == "ClearCLIP"
    assert spec.method.options == {"attention": "qq+kk", "residual": 1.0}
    assert [refinement.name for refinement in spec.refinements] == ["PAMR", "PAMR"]
    assert spec.refinements[0].options == {"iterations": 20, "dilations": (1, 2)}
    assert spec.refinements[1].settings == {"iterations": 10, "dilations": (8, 16)}


values = {
    "attention": st.sampled_from(["qq", "kk", "qq+kk", "vv+gaussian2.5"]),
    "residual": st.floats(-9, 9),
    "feed_forward": st.booleans(),
}
dilations = st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple)
pamr = st.fixed_dictionaries({}, optional={"iterations": st.integers(1, 99), "dilations": dilations})


@given(st.sampled_from(["CLIP", "ClearCLIP"]), st.fixed_dictionaries({}, optional=values), st.lists(pamr, max_size=2))
def test_what_is_written_reads_back(name, options, refinements):
    method = type(METHODS.parse(name))(METHODS.find(name), options)
    spec = Spec(method, tuple(type(method)(REFINEMENTS.find("PAMR"), given) for given in refinements))
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Clear", "unknown method 'Clear'; use one of"),
        ("", "unknown method"),
        ("+PAMR", "unknown method"),
        ("ClearCLIP+", "unknown refinement '' after ClearCLIP; use one of .*PAMR"),
        ("ClearCLIP+PARM", "unknown refinement 'PARM' after ClearCLIP; use one of .*PAMR"),
        ("ClearCLIP:attention=qq+PARM", "unknown attention 'PARM'"),
        ("ClearCLIP+PAMR:steps=2", "refinement 'PAMR:steps=2' has no option steps; its options are dilations, iter"),
        ("ClearCLIP+PAMR:iterations=2.5", "option iterations must be a whole number"),
        ("ClearCLIP+PAMR:dilations=x", "option dilations must be whole numbers"),
        ("ClearCLIP+PAMR:iterations=0", r"'PAMR:iterations=0': iterations 0 and dilations \(8, 16\) must be 1 or more"),
        ("ClearCLIP+PAMR:dilations=()", "must be 1 or more"),
    ],
)
def test_what_is_wrong_is_named(text, message, tiny_backbone):
    with pytest.raises(UserError, match=message):
        Spec.parse(text).create(tiny_backbone)


def test_create(tiny_backbone):
    method, (first, second) = Spec.parse("SCLIP:residual=0.5+PAMR:iterations=3+PAMR").create(tiny_backbone)
    assert isinstance(method, FinalBlock)
    assert (method.residual, method.feed_forward) == (0.5, True)
    assert isinstance(first, PAMR)
    assert (first.iterations, second.iterations, second.dilations) == (3, 10, (8, 16))


def test_options_of_a_refinement_reach_it(make):
    image = picture(50, 70)
    plain, once, often, near = (
        make(f"ClearCLIP{refinement}")(image, NAMES, scores=True).scores
        for refinement in ("", "+PAMR:iterations=1", "+PAMR:iterations=20", "+PAMR:iterations=1,dilations=(1,)")
    )
    for one, other in ((plain, once), (once, often), (once, near)):
        assert not np.allclose(one, other, atol=1e-4)
    spec = Spec.parse("ClearCLIP+PAMR:iterations=1")
    assert np.array_equal(make(spec)(image, NAMES, scores=True).scores, once)


class Lift(Refinement):
    """A refinement of a test: the first query wins everywhere, by `by`."""

    def __init__(self, backbone, by: float = 2.0):
        super().__init__(backbone)
        self.by = by

    def __call__(self, view, maps, queries):
        full = maps.full()
        assert full.shape == (len(queries.text), *view.shape)
        full[0] += self.by
        return Maps.of(full)


def test_a_refinement_of_ones_own(make, monkeypatch):
    REFINEMENTS.entries()
    monkeypatch.setattr(REFINEMENTS, "_entries", dict(REFINEMENTS._entries))
    REFINEMENTS.register("Lift", Lift, "lifts the first query")
    image = picture(50, 70)
    assert make()(image, NAMES).labels.any()
    assert not make("ClearCLIP+lift")(image, NAMES).labels.any()
    assert not make("CLIPer+Lift+PAMR", crop=0)(image, NAMES).labels.any()
    assert np.array_equal(make("ClearCLIP+Lift:by=0")(image, NAMES).labels, make()(image, NAMES).labels)
