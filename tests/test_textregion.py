import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, picture
from PIL import Image
from test_methods import Bare, Registers
from timm.layers import AttentionPoolLatent
from torch import nn

from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.masks import MaskProvider, Masks
from clearclip.masks.fusion import bounding_boxes, fuse, order
from clearclip.methods import create_method
from clearclip.methods.textregion import AttentionPoolHead, TextRegion, belongs
from clearclip.text import Queries
from clearclip.windows import Maps

SHAPE = (95, 147)  # of the labels in the golden file
PLAIN = (Decoder(tuple(range(7)), 50.0), {})
VARIANTS = {  # a decoder and the method's options
    "raw": PLAIN,
    "unit_values": (PLAIN[0], {"unit_values": True}),
    "no_removal": (PLAIN[0], {"removal": None}),
    "strict_removal": (PLAIN[0], {"removal": 0.2}),
    "halves": (PLAIN[0], {"halves": True}),
    "threshold": (Decoder((0, 0, 0, 1, 2, 3, 4), 20.0, 0.35), {}),
}


class Fused(MaskProvider):
    """Fused masks at the size of the labels."""

    identity = "fused"

    def __init__(self, masks):
        self.masks = masks

    def find(self, view):
        return self

    def regions(self, shape):
        assert shape == tuple(self.masks.shape[1:])
        return self.masks


@pytest.fixture
def masks(golden):
    """The golden file's masks [6, H, W]."""
    return F.interpolate(golden("textregion")["mask_logits"].clamp(0, 3)[None], size=SHAPE, mode="bilinear")[0]


@pytest.fixture
def look(golden, masks, make, tiny_backbone):
    """`look(**options)`: a method on the golden masks, and the golden image's view."""

    def look(**options):
        method = TextRegion(tiny_backbone, Fused(masks), tile=64, **options)
        return method, make(method, short_side=0).view(golden("textregion")["image"], SHAPE)

    return look


@pytest.mark.parametrize("name", VARIANTS)
def test_golden(name, golden, look):
    expected, text = golden("textregion"), golden("inputs")["text"]
    decoder, options = VARIANTS[name]
    method, view = look(**options)
    with torch.inference_mode():
        trunks, layout = method.trunks(view)
        weights, tokens = method.region_tokens(trunks, layout, method.regions(view))
        patches = method.lay_out(torch.cat([method.head.patch_scores(trunk, text) for trunk in trunks]), layout)
        maps = Maps.of(method.image_scores(view, text))
    kept = weights[:5].any(dim=1)
    assert torch.equal(kept, expected[f"{name}/kept"].bool())
    assert_near(weights[:5], expected[f"{name}/canvas_masks"])
    assert_near(F.normalize(tokens[:5][kept], dim=1) @ text.T, expected[f"{name}/region_scores"])
    assert_near(patches, expected[f"{name}/fallback_scores"])
    assert_near(decoder.probabilities(maps)[:, ::3, ::3], expected[f"{name}/probabilities"])
    assert torch.equal(decoder.labels(maps), expected[f"{name}/labels"])


def test_golden_views_and_canvas(golden, look):
    method, view = look(removal=None)
    with torch.inference_mode():
        trunks, layout = method.trunks(view)
        assert layout == (2, 3)
        assert_near(torch.cat([trunk.images for trunk in trunks]), golden("textregion")["views"])
        weights, _ = method.region_tokens(trunks, layout, method.regions(view))
    assert_near(weights[:5], golden("textregion")["raw/canvas_masks_before"])


def test_golden_fusion(golden):
    expected = golden("textregion")
    proposals = [expected[f"fuse/{name}"] for name in ("logits", "level", "predicted_iou")]
    assert torch.equal(order(*proposals).int(), expected["fuse/order"])
    assert_near(fuse(*proposals, SHAPE)[:, ::2, ::2], expected["fuse/masks"])


def siglip(golden):
    pool = nn.Module()
    pool.kv, pool.proj = nn.Linear(32, 64), nn.Linear(32, 32)
    pool.load_state_dict(
        {
            key.removeprefix("heads/siglip/"): value
            for key, value in golden.items()
            if key.startswith(("heads/siglip/kv", "heads/siglip/proj"))
        }
    )
    return AttentionPoolHead.of_timm(pool, nn.Identity(), scale=math.exp(2), bias=-3.0)


def pe(golden):
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    state = {key.removeprefix("heads/pe/attn."): value for key, value in golden.items() if "pe/attn" in key}
    attention.load_state_dict(state)
    return AttentionPoolHead.of_torch(attention, golden["heads/pe/projection"], nn.Identity())


@pytest.mark.parametrize(("name", "head", "text"), [("siglip", siglip, "text32"), ("pe", pe, "text24")])
def test_golden_heads(name, head, text, golden, look, monkeypatch):
    expected = golden("textregion")
    method, _ = look()
    method.head = head(expected)
    tokens = expected["heads/tokens"].transpose(1, 2).unflatten(2, (4, 4))  # [7, 32, 4, 4]
    with torch.inference_mode():
        patches = method.lay_out(tokens, (2, 3)).flatten(1).T
        weights = expected["raw/canvas_masks_before"]
        weights = weights * belongs(F.normalize(patches, dim=1), weights > 0, 0.07)
        seen = F.normalize(method.head.tokens(weights, patches), dim=1)
    assert torch.equal(weights.any(dim=1), expected[f"heads/{name}/kept"].bool())
    scores = method.head.calibrated(seen @ expected[f"heads/{text}"].T)
    assert_near(scores, expected[f"heads/{name}/scores"])


def test_every_array_of_the_golden_file_is_read(golden):
    read = {"image", "mask_logits", "views", "raw/canvas_masks_before"}
    first = {key.split("/")[0] for key in golden("textregion").keys() - read}
    assert first == {*VARIANTS, "fuse", "heads"}


def test_timm_s_pool_agrees_where_a_region_is_a_patch():
    """Its attention over one token gives that token; without its feed-forward network, that is what it returns."""
    torch.manual_seed(0)
    pool = AttentionPoolLatent(32, num_heads=4, mlp_ratio=2.0).eval()
    nn.init.zeros_(pool.mlp.fc2.weight)
    nn.init.zeros_(pool.mlp.fc2.bias)
    patches = torch.randn(5, 32)
    head = AttentionPoolHead.of_timm(pool, nn.Identity())
    with torch.inference_mode():
        torch.testing.assert_close(head.tokens(torch.eye(5), patches), pool(patches[:, None]))


def test_attention_pool_heads_run_on_a_backbone(look, golden):
    """A head of another kind takes the place of the last block's for regions and for what is in none."""
    torch.manual_seed(0)
    method, view = look()
    method.head = AttentionPoolHead(nn.Linear(64, 64), nn.Linear(64, 48), nn.LayerNorm(64), scale=2.0, bias=-1.0)
    with torch.inference_mode():
        scores, features = method.image_scores(view, golden("inputs")["text"]), method.image_features(view)
    assert scores.shape == (7, *SHAPE)
    assert features.shape == (8, 12, 48)
    assert scores.isfinite().all()


def test_removal_is_the_paper_s_formula():
    torch.manual_seed(0)
    unit, member = F.normalize(torch.randn(12, 4), dim=1), torch.rand(3, 12) > 0.6
    member[:, 7] = False
    kept = belongs(unit, torch.cat([member, torch.zeros(2, 12, dtype=torch.bool)]), 0.07)  # empty regions do not count
    for patch in range(12):
        means = [float((unit[region] @ unit[patch]).mean()) for region in member]
        inside = [mean for mean, region in zip(means, member) if region[patch]]
        outside = [mean for mean, region in zip(means, member) if not region[patch]]
        difference = (np.mean(inside) if inside else 0) - (np.mean(outside) if outside else 0)
        assert bool(kept[patch]) == (difference >= 0.07)


def test_contained_proposals_join_the_surer_whole():
    logits = torch.full((4, 32, 32), -3.0)
    logits[0, 4:24, 4:24] = 1.2  # a part in the whole
    logits[1, 2:28, 2:28] = 1.0  # the whole
    logits[2, 2:12, 20:31] = 3.0  # beside it, mostly
    logits[3, :5, :5] = 3.0  # too small
    regions = fuse(logits, torch.tensor([0, 2, 2, 1]), torch.tensor([0.9, 0.8, 0.7, 0.99]), (32, 32))
    assert len(regions) == 2
    assert torch.equal(regions[0], torch.maximum(logits[0], logits[1]).clamp(min=0))
    assert torch.equal(regions[1], logits[2].clamp(min=0))


def test_boxes_are_first_and_last_pixels():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    assert bounding_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 0, 0, 0]]


def test_without_masks_it_is_sclip(make, tiny_backbone, golden):
    """An image in which no mask is found gets the scores of pixels under none."""
    method = TextRegion(tiny_backbone, Fused(torch.zeros(0, 64, 64)), tile=64)
    segmenter = make(method, short_side=0)
    view = segmenter.view(torch.from_numpy(picture(64, 64)).permute(2, 0, 1))
    text = golden("inputs")["text"]
    with torch.inference_mode():
        scores = method.image_scores(view, text)
        trunk = tiny_backbone.trunk(view.pixels[None])
        once = create_method("SCLIP", tiny_backbone).scores(trunk, text)
        expected = F.interpolate(2 * once, size=(64, 64), mode="bilinear")[0]  # the image is its only tile
    assert_near(scores, expected, 1e-5)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (90, 210), (200, 70), (30, 40)])
def test_all_layouts(size, halves, make, tiny_backbone, golden):
    ids = torch.ones(size, dtype=torch.int32)
    ids[: size[0] // 2] = 2

    class Two(MaskProvider):
        identity = "two"

        def find(self, view):
            return Masks(ids)

    segmenter = make(TextRegion(tiny_backbone, Two(), tile=64, halves=halves), short_side=0)
    image = torch.from_numpy(picture(*size)).permute(2, 0, 1)
    queries = Queries(golden("inputs")["text"], tuple(range(7)), tuple("abcdefg"))
    (labels,) = segmenter.segment([image], queries)
    assert labels.shape == size
    assert len(labels[ids == 1].unique()) == 1  # a region has one score


def test_through_the_segmenter(make, tmp_path):
    """Overlapping proposals in a file, from a picture's path to its labels, with features."""
    logits = torch.full((2, 32, 32), -4.0)
    logits[0, :, :20], logits[1, 8:24, 4:30] = 3.0, 2.0
    ids = torch.zeros(80, 120, dtype=torch.int32)
    masks = Masks(ids, logits.clamp(0, 3).half(), torch.tensor([2, 1]), torch.tensor([0.9, 0.8]))
    (tmp_path / "masks" / "val").mkdir(parents=True)
    masks.save(tmp_path / "masks" / "val" / "cat.npz")
    (tmp_path / "val").mkdir()
    Image.fromarray(picture(80, 120)).save(tmp_path / "val" / "cat.jpg")
    segmenter = make(f"TextRegion:masks={tmp_path}/masks,tile=64")
    result = segmenter(tmp_path / "val" / "cat.jpg", ["a", "b", "c"], scores=True, features=True)
    assert result.labels.shape == (80, 120)
    assert result.features.shape == (4, 4, 48)
    assert len(np.unique(result.labels[:, :10])) == 1
    other = make(f"TextRegion:masks={tmp_path}/masks,tile=64,removal=None")
    assert (other(tmp_path / "val" / "cat.jpg", ["a", "b", "c"], scores=True).scores != result.scores).any()


@pytest.mark.parametrize("kind", [Bare, Registers])
def test_any_number_of_prefix_tokens(kind, tiny_backbone, make, masks, golden):
    backbone = kind(tiny_backbone.checkpoint, torch.device("cpu"), torch.float32)
    method = TextRegion(backbone, Fused(masks), tile=64)
    view = make(method, short_side=0).view(golden("textregion")["image"], SHAPE)
    with torch.inference_mode():
        assert method.image_scores(view, golden("inputs")["text"]).isfinite().all()
        assert method.image_features(view).shape == (8, 12, 48)


@pytest.mark.parametrize("option", ["tile=40", "tile=0", "halves=left", "removal=much", "overlap=1"])
def test_wrong_options_name_the_known(option, tiny_backbone, tmp_path):
    with pytest.raises(UserError, match="its options are halves, masks, removal, tile, unit_values"):
        create_method(f"TextRegion:masks={tmp_path},{option}", tiny_backbone)
