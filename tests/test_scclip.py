import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, features

from clearclip.attention import mix_terms
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.scclip import (
    LAYERS,
    average_alike,
    calibration_layers,
    cosine,
    find_outliers,
    outlier_factors,
    replace_outliers,
)


def test_golden(golden, deep_backbone):
    expected = golden("scclip")
    actual = features("SC-CLIP", deep_backbone, expected["image_112x112"]).flatten(1, 2)
    assert_near(actual[0], expected["features/0"])
    assert_near(actual[1], expected["features/1"])


def test_golden_outliers(golden, deep_backbone):
    expected = golden("scclip")
    with torch.inference_mode():
        patches = deep_backbone.trunk(expected["image_112x112"]).patches()
    assert_near(outlier_factors(patches)[0], expected["outlier_scores/0"])
    assert torch.equal(find_outliers(patches)[0].nonzero().flatten(), expected["outliers/0"])


@pytest.mark.parametrize("name", ["SC-CLIP", "SC-CLIP:attention=qq+kk,second_pass=False", "SC-CLIP:repair=False"])
def test_images_of_a_batch_do_not_meet(name, golden, tiny_backbone):
    images = golden("inputs")["image_64x96"]
    images = torch.cat([images, 5 * images])
    alone = torch.cat([features(name, tiny_backbone, image[None]) for image in images])
    assert_near(features(name, tiny_backbone, images), alone, 1e-5)


@pytest.mark.parametrize(
    "option", ["attention=qq", "repair=False", "threshold=0.9", "second_pass=False", "class_token=0"]
)
def test_every_option_counts(option, golden, deep_backbone):
    images = golden("scclip")["image_112x112"]
    changed = features(f"SC-CLIP:{option}", deep_backbone, images)
    assert (changed - features("SC-CLIP", deep_backbone, images)).abs().max() > 1e-3


def test_half_its_attention_is_that_of_the_base(golden, deep_backbone):
    """Without what calibrates, and with a similarity that excludes all others, it is MaskCLIP's and the base's mean."""
    images, block = golden("scclip")["image_112x112"], deep_backbone.blocks[-1]
    method = create_method("SC-CLIP:attention=qq+kk,class_token=0", deep_backbone)
    with torch.inference_mode():
        patches = deep_backbone.trunk(images).patches()
        alone = torch.eye(49).expand(2, -1, -1)
        actual = method.rewire(block, patches, torch.zeros(2, 1, 64), alone)
        qkv = block.qkv(patches)
        by_itself, base = (block.attention_output(mix_terms(terms, *qkv)) for terms in (("identity",), ("qq", "kk")))
        bias = block.module.attn.out_proj.bias
        torch.testing.assert_close(actual - bias, (by_itself - bias) / 2 + (base - bias) / 4)


def test_isolated_patch_is_an_outlier():
    torch.manual_seed(0)
    patches = torch.randn(2, 60, 8)
    patches[1, 7] += 100
    factors = outlier_factors(patches)
    assert factors[1].argmax() == 7
    assert factors[1, 7] > 10 > factors[0].max()
    assert find_outliers(patches).sum(dim=1).tolist() == [3, 3]  # above the 95 % quantile


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_patches_have_no_outliers(count):
    assert not find_outliers(torch.ones(2, count, 4)).any()
    assert outlier_factors(torch.randn(2, count, 4)).isfinite().all()


def test_outliers_take_the_mean_of_sound_neighbours():
    maps = torch.arange(12.0).reshape(1, 12, 1)  # a grid of 3 rows and 4 columns
    outliers = torch.zeros(1, 12, dtype=torch.bool)
    outliers[0, [0, 1]] = True
    replaced = replace_outliers(maps, outliers, (3, 4)).flatten()
    assert replaced[:2].tolist() == [(4 + 5) / 2, (2 + 4 + 5 + 6) / 4]
    assert torch.equal(replaced[2:], maps.flatten()[2:])
    everything = torch.ones_like(outliers)
    assert torch.equal(replace_outliers(maps, everything, (3, 4)), maps)


def test_alike_patches_are_averaged():
    patches = F.normalize(torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]), dim=-1)
    averaged = average_alike(patches, cosine(patches), 0.4)
    weight = float(patches[0, 0] @ patches[0, 1])
    torch.testing.assert_close(averaged[0, 0], (patches[0, 0] + weight * patches[0, 1]) / (1 + weight))
    torch.testing.assert_close(averaged[0, 2], patches[0, 2])


def test_uniform_image_has_features(tiny_backbone):
    assert features("SC-CLIP", tiny_backbone, torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_layers_of_other_depths():
    assert calibration_layers(12) is LAYERS[12]
    assert calibration_layers(24) is LAYERS[24]
    for depth in (2, 6, 32):
        middle, shallow, summed, _ = calibration_layers(depth)
        assert 0 <= shallow <= middle < depth - 1
        assert 0 <= summed.start < summed.stop <= depth - 1


@pytest.mark.parametrize(
    "option", ["attention=kk+gaussian5", "repair=no", "second_pass=2", "threshold=much", "threshold=1", "beta=1"]
)
def test_wrong_options_name_the_known(option, tiny_backbone):
    with pytest.raises(UserError, match="its options are attention, class_token, repair, second_pass, threshold"):
        create_method(f"SC-CLIP:{option}", tiny_backbone)
