import pytest
import torch
from conftest import assert_near, features, scores
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.resclip import chebyshev_decay, region_bias, regions

BASES = ["CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP"]


@pytest.mark.parametrize("base", BASES)
def test_both_parts_switch_off(base, golden, tiny_backbone):
    """In the authors' code neither does: its switches are tuples, and tuples are true."""
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    plain = scores(base, tiny_backbone, images, text)
    assert_near(scores(f"ResCLIP:base={base},rcs=False,sfr=False", tiny_backbone, images, text), plain, 1e-5)
    for off in ("rcs", "sfr"):
        one = scores(f"ResCLIP:base={base},{off}=False", tiny_backbone, images, text)
        if base == "MaskCLIP" and off == "rcs":  # it has no logits that feedback could change
            assert_near(one, plain, 1e-5)
        else:
            assert (one - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("base", "terms"), [("SCLIP", "qq+kk"), ("NACLIP", "kk"), ("ClearCLIP", "qq")])
def test_as_written(base, terms, golden, tiny_backbone):
    """The formulas of the docstring, in loops over images and heads."""
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    name = f"ResCLIP:base={base},rcs_tau=1.5,rcs_lambda=0.3,sfr_tau=2.2,sfr_lambda=0.6"
    block, blocks, grid = tiny_backbone.blocks[-1], tiny_backbone.blocks, (4, 6)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    gaussian = torch.zeros(25, 25)
    square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    gaussian[1:, 1:] = torch.exp(-square / 50) if base == "NACLIP" else 0

    def heads(block, tokens):
        attn = block.module.attn
        parts = (block.norm(tokens) @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
        return [dict(zip("qkv", part)) for part in zip(*(x.chunk(4, -1) for x in parts))]

    def logits(head, term):
        return head[term[0]] @ head[term[1]].T / 16**0.5

    def second_half(block, tokens):
        return tokens + block.mlp(tokens)

    with torch.inference_mode():
        for b in range(len(images)):
            entering = [tiny_backbone.embed(images[b : b + 1])[0]]
            for earlier in blocks[:-1]:
                entering.append(earlier(entering[-1][None])[0])
            middle = [heads(blocks[index], entering[index]) for index in (2, 3)]  # 5 to 8 of 12, of 6
            feedback = None
            for _ in range(2):
                mixed = []
                for index, head in enumerate(heads(block, entering[-1])):
                    attention = 0
                    for term in terms.split("+"):
                        own = logits(head, term) + gaussian
                        if feedback is not None:
                            own = 2.2 * (0.4 * own + 0.6 * feedback)
                        attention = attention + own.softmax(-1)
                    residual = sum(logits(layer[index], "qk").softmax(-1) for layer in middle) / 2
                    mixed.append(1.5 * (0.7 * attention + 0.3 * residual) @ head["v"])
                out = block.module.attn.out_proj(torch.cat(mixed, -1))
                if base == "SCLIP":
                    out = second_half(block, out + entering[-1])
                patches = tiny_backbone.project(out[1:])
                expected = text @ (patches / patches.norm(dim=-1, keepdim=True)).T  # [7, 24]
                if feedback is None:
                    region = regions(expected.argmax(0).reshape(1, *grid))[0]
                    away = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
                    feedback = torch.zeros(25, 25)
                    feedback[1:, 1:] = torch.exp(-(away**2) / 50) * (region[:, None] == region)
            actual = scores(name, tiny_backbone, images[b : b + 1], text)[0]
            assert_near(actual.flatten(1), expected)


def test_images_of_a_batch_do_not_meet(golden, tiny_backbone):
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    alone = torch.cat([scores("ResCLIP", tiny_backbone, image[None], text) for image in images])
    assert_near(scores("ResCLIP", tiny_backbone, images, text), alone, 1e-5)


def test_features_are_those_of_the_first_pass(golden, tiny_backbone):
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    first = features("ResCLIP", tiny_backbone, images)
    cosines = torch.einsum("bhwd,qd->bqhw", first / first.norm(dim=-1, keepdim=True), text)
    assert_near(scores("ResCLIP:sfr=False", tiny_backbone, images, text), cosines, 1e-5)


def flood(labels):
    """The first patch of each patch's region, by walking."""
    height, width = labels.shape
    region = -torch.ones(height, width, dtype=torch.long)
    for start in range(height * width):
        front = [divmod(start, width)]
        while front:
            y, x = front.pop()
            if 0 <= y < height and 0 <= x < width and region[y, x] < 0 and labels[y, x] == labels.flatten()[start]:
                region[y, x] = start
                front += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return region.flatten()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**30))
def test_regions_are_connected_patches_of_one_label(height, width, classes, seed):
    labels = torch.randint(classes, (2, height, width), generator=torch.Generator().manual_seed(seed))
    actual = regions(labels)
    for b in range(2):
        assert torch.equal(actual[b], flood(labels[b]))


def test_a_winding_region_is_one():
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[:, 1::4, :8] = 1
    labels[:, 3::4, 1:] = 1
    assert torch.equal(regions(labels)[0], flood(labels[0]))
    assert len(regions(labels)[0][labels.flatten() == 0].unique()) == 1


def test_bias_decays_within_a_region():
    labels = torch.tensor([[[0, 0, 1], [1, 0, 0]]])
    bias = region_bias(labels, chebyshev_decay((2, 3)))[0]
    assert not bias[0].any()
    assert not bias[:, 0].any()
    bias = bias[1:, 1:]
    assert torch.equal(bias, bias.T)
    assert torch.equal(bias.diagonal(), torch.ones(6))
    assert bias[0, 4] == bias[0, 1] > bias[0, 5] > 0  # Chebyshev distances 1, 1 and 2
    assert bias[0, 2] == bias[2, 3] == 0  # another label; the same label, apart


@pytest.mark.parametrize("option", ["rcs=no", "sfr=2", "rcs_lambda=1.5", "sfr_lambda=-0.1", "rcs_tau=much", "base=GEM"])
def test_wrong_options_name_the_known(option, tiny_backbone):
    with pytest.raises(UserError, match="its options are base, rcs, rcs_lambda, rcs_tau, sfr, sfr_lambda, sfr_tau"):
        create_method(f"ResCLIP:{option}", tiny_backbone)


def test_unknown_base(tiny_backbone):
    with pytest.raises(UserError, match="unknown method 'none'"):
        create_method("ResCLIP:base=none", tiny_backbone)
