import pytest
import torch
from conftest import assert_near, features

from clearclip.errors import UserError
from clearclip.methods import create_method, list_methods
from clearclip.methods.clipseg import layer

IMAGES = ["image_64x64", "image_64x96", "image_112x160", "image_80x48"]


@pytest.mark.parametrize("image", IMAGES)
def test_as_written(image, golden, tiny_backbone):
    """The formula of the docstring in plain loops over images, heads and patches' rows."""
    images = golden("inputs")[image]
    method = create_method(
        "CLIPSeg:attention=kk,coherence=0.7,middle=0.5,sharpness=4,integration=0.3,deep=0.6", tiny_backbone
    )
    block, blocks = tiny_backbone.blocks[-1], tiny_backbone.blocks
    with torch.inference_mode():
        entering = [tiny_backbone.embed(images)]
        for earlier in blocks[:-1]:
            entering.append(earlier(entering[-1]))
        attn, expected = block.module.attn, []
        weight, bias = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        for b in range(len(images)):
            x = block.norm(entering[5][b])
            keys = x @ weight[1].T + bias[1]
            values = 0.7 * (x @ weight[2].T + bias[2])
            values = values + 0.3 * (block.norm(entering[4][b]) @ weight[2].T + bias[2])  # round(0.6 · 6) = 4
            middle = entering[3][b, 1:]
            middle = middle / middle.norm(dim=-1, keepdim=True)
            similarity = middle @ middle.T
            positive = (similarity - similarity.mean()).clamp(min=0)
            weights = torch.where(positive > 0, (4 * positive).exp(), 0)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            heads = []
            for k, v in zip(keys.chunk(attn.num_heads, -1), values.chunk(attn.num_heads, -1)):
                own = (k @ k.T / k.shape[-1] ** 0.5).softmax(dim=-1) @ v
                heads.append(own[1:] + 0.7 * weights @ v[1:])
            expected.append(tiny_backbone.project(attn.out_proj(torch.cat(heads, -1))))
        actual = method.features(tiny_backbone.trunk(images))
    assert_near(actual.flatten(1, 2), torch.stack(expected))


def test_without_its_two_parts_it_is_clearclip(golden, tiny_backbone):
    images = golden("inputs")["image_64x96"]
    expected = features("ClearCLIP", tiny_backbone, images)
    assert_near(features("CLIPSeg:coherence=0,integration=0", tiny_backbone, images), expected, 1e-5)
    for part in ("coherence=0", "integration=0"):
        assert (features(f"CLIPSeg:{part}", tiny_backbone, images) - expected).abs().max() > 1e-3


def test_images_of_a_batch_do_not_meet(golden, tiny_backbone):
    images = golden("inputs")["image_64x96"]
    images = torch.cat([images, 5 * images])
    alone = torch.cat([features("CLIPSeg", tiny_backbone, image[None]) for image in images])
    assert_near(features("CLIPSeg", tiny_backbone, images), alone, 1e-5)


def test_coherent_attention_of_equal_patches(tiny_backbone):
    method = create_method("CLIPSeg", tiny_backbone)
    weights = method.coherent_attention(torch.ones(2, 5, 8))
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 5))


def test_coherent_attention_keeps_to_like_patches(tiny_backbone):
    patches = torch.tensor([[[1.0, 0.1], [1.0, 0.2], [0.1, 1.0]]])
    weights = create_method("CLIPSeg", tiny_backbone).coherent_attention(patches)[0]
    assert weights[0, 2] == weights[2, 0] == weights[2, 1] == 0
    assert weights[2, 2] == 1


@pytest.mark.parametrize(("depth", "middle", "deep"), [(6, 4, [4]), (12, 7, [8, 9, 10]), (24, 14, list(range(16, 23)))])
def test_layers_scale_with_the_depth(depth, middle, deep):
    options = next(entry for entry in list_methods() if entry.name == "CLIPSeg").options
    assert layer("middle", options["middle"], depth) == middle
    assert list(range(layer("deep", options["deep"], depth), depth - 1)) == deep


def test_is_called_a_reconstruction():
    entry = next(entry for entry in list_methods() if entry.name == "CLIPSeg")
    assert entry.summary.startswith("reconstruction, unverified")


@pytest.mark.parametrize("option", ["middle=1.5", "deep=-0.1", "integration=2", "attention=xx", "depth=3"])
def test_wrong_options_are_named(option, tiny_backbone):
    with pytest.raises(UserError, match=option.partition("=")[0] if "xx" not in option else "xx"):
        create_method(f"CLIPSeg:{option}", tiny_backbone)
