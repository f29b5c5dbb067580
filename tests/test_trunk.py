"""A trunk computes what is asked for, once, and forgets what nobody will come back to."""

import weakref

import pytest
import torch
from conftest import assert_near, features, picture

from clearclip.methods import create_method
from clearclip.segmenter import see_together
from clearclip.trunk import Trunk
from clearclip.vocabulary import Vocabulary

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
LAST = 5


@pytest.fixture
def calls(tiny_backbone, monkeypatch):
    """What the tiny network computes: ("embed", position), ("pass", block), ("qkv", block)."""
    seen = []

    def watch(owner, name, note):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: seen.append(note(*given)) or original(*given))

    watch(tiny_backbone, "embed", lambda images, position=None: ("embed", position))
    for index, block in enumerate(tiny_backbone.blocks):
        watch(block, "mlp", lambda *_, index=index: ("pass", index))
        watch(block, "qkv", lambda *_, index=index: ("qkv", index))
    return seen


def passes(calls):
    """The blocks that were gone through, in order."""
    return [index for what, index in calls if what == "pass"]


@pytest.fixture(scope="module")
def plain(tiny_backbone):
    """The tokens that enter each block, by running one after the other."""
    with torch.inference_mode():
        tokens = [tiny_backbone.embed(IMAGES)]
        for block in tiny_backbone.blocks[:-1]:
            tokens.append(block.module(tokens[-1]))
    return tokens


def test_nothing_is_computed_before_it_is_asked_for(tiny_backbone, calls):
    trunk = tiny_backbone.trunk(IMAGES)
    assert (trunk.grid, trunk.prefix) == ((4, 6), 1)
    assert calls == []
    trunk.tokens(0)
    assert calls == [("embed", None)]


@torch.inference_mode()
def test_each_state_is_computed_once(tiny_backbone, calls):
    trunk = tiny_backbone.trunk(IMAGES)
    for block in range(6):
        for _ in range(2):
            trunk.tokens(block), trunk.patches(block), trunk.qkv(block), trunk.attention(block)
        assert passes(calls) == list(range(block))
    assert calls.count(("embed", None)) == 1
    assert [index for what, index in calls if what == "qkv"] == [*range(6)]


@torch.inference_mode()
def test_tokens_are_those_of_the_blocks_in_any_order(tiny_backbone, plain):
    for order in (range(6), reversed(range(6)), (3, 0, 5, 1), (-1, -6, -3)):
        trunk = tiny_backbone.trunk(IMAGES)
        for block in order:
            assert_near(trunk.tokens(block), plain[block])
            assert torch.equal(trunk.patches(block), trunk.tokens(block)[:, 1:])
    assert torch.equal(trunk.tokens(), trunk.tokens(LAST))


@torch.inference_mode()
def test_the_states_of_a_block_are_those_of_its_tokens(tiny_backbone, plain):
    trunk = tiny_backbone.trunk(IMAGES)
    for block in (4, 1, LAST):
        q, k, v = trunk.qkv(block)
        for actual, expected in zip((q, k, v), tiny_backbone.blocks[block].qkv(plain[block])):
            assert actual.shape == (2, 4, 25, 16)
            assert_near(actual, expected)
        weights = trunk.attention(block)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, (q @ k.mT / 4).softmax(dim=-1))


@torch.inference_mode()
def test_attention_is_added_up_and_serves_to_go_past_a_block(tiny_backbone, calls, plain):
    trunk, total = tiny_backbone.trunk(IMAGES), None
    for block in (1, 2, 4):
        total = trunk.add_attention(total, block)
        assert_near(trunk.tokens(block + 1), plain[block + 1] if block < 4 else plain[LAST])
    attention = [tiny_backbone.trunk(IMAGES).attention(block) for block in (1, 2, 4)]
    torch.testing.assert_close(total, sum(attention))
    assert passes(calls)[:3] == [0, 1, 2]


@torch.inference_mode()
def test_what_was_asked_of_a_block_serves_to_go_past_it(tiny_backbone, calls, plain):
    trunk = tiny_backbone.trunk(IMAGES)
    trunk.qkv(1), trunk.attention(3)
    assert_near(trunk.tokens(), plain[LAST])
    assert passes(calls) == [0, 1, 2, 3, 4]
    assert [index for what, index in calls if what == "qkv"] == [0, 1, 2, 3, 4]


@torch.inference_mode()
def test_what_nobody_asked_for_is_not_kept(tiny_backbone, monkeypatch):
    run, made = tiny_backbone.run, []

    def note(index, tokens, grid):
        out = run(index, tokens, grid)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(tiny_backbone, "run", note)
    trunk = tiny_backbone.trunk(IMAGES)
    trunk.tokens(2), trunk.tokens()
    assert [ref() is not None for ref in made] == [False, True, False, False, True]
    for keep, alive in (((), False), ((1,), True)):
        trunk = tiny_backbone.trunk(IMAGES, keep)
        q, weights = weakref.ref(trunk.qkv(1)[0]), weakref.ref(trunk.attention(1))
        assert q() is not None
        trunk.tokens()
        assert (q() is not None) == alive
        assert (weights() is not None) == alive


@torch.inference_mode()
def test_blocks_to_keep_are_not_computed_again(tiny_backbone, calls):
    for keep, again in ((), 2), ((2,), 0), ((-4, 1), 0), ((1,), 1):
        trunk = tiny_backbone.trunk(IMAGES, keep)
        trunk.tokens()
        calls.clear()
        trunk.tokens(2)
        assert len(passes(calls)) == again


@torch.inference_mode()
def test_another_position_embedding_is_another_trunk(tiny_backbone, calls):
    trunk = tiny_backbone.trunk(IMAGES, keep=(1,))
    assert trunk.repositioned("offset") is trunk
    other = trunk.repositioned("bilinear")
    assert trunk.repositioned("bilinear") is other
    assert other.keep == trunk.keep
    assert not torch.allclose(trunk.tokens(), other.tokens(), atol=1e-3)
    assert [what for what in calls if what[0] == "embed"] == [("embed", None), ("embed", "bilinear")]
    assert_near(other.tokens(0), tiny_backbone.embed(IMAGES, "bilinear"))


def test_what_is_made_once(tiny_backbone):
    trunk, seen = tiny_backbone.trunk(IMAGES), []

    def model(images):
        seen.append(images)
        return images[:, :1]

    assert trunk.vision(model) is trunk.vision(model)
    assert seen == [IMAGES]
    assert trunk.once("key", lambda: IMAGES) is trunk.once("key", lambda: 0 * IMAGES)


def test_constants_are_made_once_a_grid(tiny_backbone):
    made = []

    def make():
        made.append(1)
        return torch.ones(3, dtype=torch.float64)

    key = object()
    first = tiny_backbone.trunk(IMAGES).constant(key, make)
    assert first.dtype == torch.float32
    assert tiny_backbone.trunk(IMAGES[:1]).constant(key, make) is first
    assert tiny_backbone.trunk(IMAGES[..., :64]).constant(key, make) is not first
    assert len(made) == 2


def test_blocks_that_are_not_there(tiny_backbone):
    for block in (6, -7):
        with pytest.raises(IndexError, match=f"no block {block} in 6"):
            tiny_backbone.trunk(IMAGES).tokens(block)
        with pytest.raises(IndexError):
            Trunk(tiny_backbone, IMAGES, keep=(block,))


METHODS = ["ClearCLIP", "ResCLIP", "CLIPSeg", "SC-CLIP", "NACLIP", "MaskCLIP"]


def test_methods_on_one_trunk_share_its_blocks(tiny_backbone, calls):
    alone = [features(name, tiny_backbone, IMAGES) for name in METHODS]
    calls.clear()
    methods = [create_method(name, tiny_backbone) for name in METHODS]
    trunk = tiny_backbone.trunk(IMAGES, keep={block for method in methods for block in method.blocks})
    with torch.inference_mode():
        for method, expected in zip(methods, alone):
            torch.testing.assert_close(method.features(trunk), expected, rtol=1e-4, atol=1e-5)
    assert passes(calls) == [0, 1, 2, 3, 4]
    assert calls.count(("embed", None)) == 1


def test_segmenters_on_the_same_images_share_the_blocks(make, calls):
    segmenters = [make(name, window_batch=100) for name in METHODS]
    image = torch.from_numpy(picture(50, 70)).permute(2, 0, 1)
    queries = [segmenter.queries(Vocabulary.of(tuple("abcdefg"))) for segmenter in segmenters]
    views = [segmenters[0].view(image)]
    alone = [segmenter.look(views, given)[0] for segmenter, given in zip(segmenters, queries)]
    calls.clear()
    together = see_together(list(zip(segmenters, queries)), views)
    assert passes(calls) == [0, 1, 2, 3, 4]
    for (dense,), expected in zip(together, alone):
        torch.testing.assert_close(dense.scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ClearCLIP", "CLIPSeg", "GEM"])
def test_scores_and_features_of_an_image_are_one_pass(method, make, calls):
    segmenter = make(method, crop=0)
    segmenter(picture(50, 70), tuple("abcdefg"))
    without = list(calls)
    calls.clear()
    segmenter(picture(50, 70), tuple("abcdefg"), scores=True, features=True)
    assert calls == without
    assert passes(calls).count(0) == 1
