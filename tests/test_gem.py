import pytest
import torch
from conftest import assert_near, features

from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.gem import self_self

IMAGES = ["image_64x64", "image_64x96", "image_112x160", "image_80x48"]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(("name", "key"), [("GEM", "cumulative"), ("GEM:cumulative=False", "plain")])
def test_golden(name, key, image, golden, tiny_backbone):
    actual = features(name, tiny_backbone, golden("inputs")[image])
    assert_near(actual.flatten(1, 2), golden("features")[f"gem/{key}/{image}"])


@pytest.mark.parametrize("name", ["GEM", "GEM:cumulative=False", "GEM:iterations=2"])
def test_images_of_a_batch_do_not_meet(name, golden, tiny_backbone):
    images = golden("inputs")["image_64x96"]
    images = torch.cat([images, 5 * images])  # of other contrast, so of another temperature
    alone = torch.cat([features(name, tiny_backbone, image[None]) for image in images])
    assert_near(features(name, tiny_backbone, images), alone, 1e-5)


def test_depth_beyond_the_network_is_all_of_it(golden, tiny_backbone):
    images = golden("inputs")["image_80x48"]
    assert torch.equal(
        features("GEM:depth=12", tiny_backbone, images), features("GEM:depth=6", tiny_backbone, images)
    )  # fmt: skip


def test_position_embedding_is_resampled_its_own_way(golden, tiny_backbone, monkeypatch):
    images = golden("inputs")["image_112x160"]
    before = features("GEM", tiny_backbone, images)
    embed = tiny_backbone.embed
    monkeypatch.setattr(tiny_backbone, "embed", lambda images, position=None: embed(images))
    assert (features("GEM", tiny_backbone, images) - before).abs().max() > 1e-2


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_self_self_attention_as_written(iterations):
    torch.manual_seed(0)
    x, v = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    sharpness = torch.tensor([2.0, 0.5])
    for b in range(2):
        for head in range(3):
            rows, values = x[b, head], v[b, head]

            def attention(rows, strength=sharpness[b]):
                unit = rows / rows.norm(dim=1, keepdim=True)
                return torch.softmax(strength * unit @ unit.T, dim=1), unit

            for _ in range(iterations):
                weights, unit = attention(rows)
                rows = weights @ unit
            actual = self_self(x, v, sharpness[:, None, None, None], iterations)[b, head]
            torch.testing.assert_close(actual, attention(rows)[0] @ values)


@pytest.mark.parametrize("option", ["layers=3", "depth=0", "depth=-1", "depth=1.5", "iterations=-1", "cumulative=no"])
def test_wrong_options_name_the_known(option, tiny_backbone):
    with pytest.raises(UserError, match="its options are cumulative, depth, iterations"):
        create_method(f"GEM:{option}", tiny_backbone)
