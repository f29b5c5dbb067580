import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, picture
from PIL import Image
from test_methods import Bare, Registers

from clearclip import windows
from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.masks import MaskProvider, Masks
from clearclip.methods import create_method
from clearclip.methods.corrclip import (
    CorrCLIP,
    attention,
    component,
    cut_ids,
    merge_distances,
    middle_layers,
    number_regions,
)
from clearclip.refine.mapvote import vote
from clearclip.vocabulary import Vocabulary
from clearclip.windows import Maps

CASES = {"several": (14, 14), "several_nounmasked": (14, 14), "two": (14, 14), "none": (14, 14), "wide": (10, 14)}
MERGED = ["several", "several_nounmasked", "wide"]


class Given(MaskProvider):
    """Masks that a test gives."""

    identity = "given"

    def __init__(self, ids):
        self.ids = ids

    def find(self, view):
        return Masks(self.ids)


@pytest.fixture
def case(golden):
    """`case(name)`: an image [1, 3, H, W], external features [1, 24, h, w], ids [1, H, W], expected features."""

    def case(name):
        expected = golden("corrclip")
        square = golden("scclip")["image_112x112"]
        image = {"wide": golden("inputs")["image_112x160"][:1], "several": square[:1], "two": square[:1]}
        external = expected[f"{name}/external"].T.unflatten(1, CASES[name])[None]
        return image.get(name, square[1:]), external, expected[f"{name}/mask"][None], expected[f"{name}/features"]

    return case


def corrclip(backbone, external, ids=None, **options):
    return CorrCLIP(backbone, masks=Given(ids), vfm=lambda _: external, **options)


def masked(backbone, image, external, ids, **options):
    with torch.inference_mode():
        return corrclip(backbone, external, **options).masked_features(backbone.trunk(image), ids)


@pytest.mark.parametrize("name", CASES)
def test_golden_features(name, case, deep_backbone):
    image, external, ids, expected = case(name)
    assert_near(masked(deep_backbone, image, external, ids)[0].flatten(0, 1), expected)


@pytest.mark.parametrize("name", MERGED)
def test_golden_merging(name, case, golden):
    _, external, ids, _ = case(name)
    numbers, counts = number_regions(ids, CASES[name])
    count = torch.tensor(counts)
    distances = merge_distances(external.flatten(2).transpose(1, 2), numbers, count, *counts)
    assert_near(distances[0, 1:, 1:], golden("corrclip")[f"{name}/merge_distance"])
    first = component(distances, count, 0.2)[0, 1:]
    _, consecutive = first.unique(return_inverse=True)  # the reference numbers components in the order of their firsts
    assert torch.equal(consecutive.int(), golden("corrclip")[f"{name}/component"])


@pytest.mark.parametrize("name", ["with_zero", "all_masked", "constant"])
def test_golden_correction(name, golden):
    expected = golden("corrclip")
    scores = F.interpolate(expected["correction/scores_small"][None], size=(50, 71), mode="bilinear")[0]
    before = Decoder((0, 0, 0, 1, 2, 3, 4), logit_scale=40, threshold=0.3).labels(Maps.of(scores))
    assert torch.equal(before, expected["correction/labels_before"])
    assert torch.equal(vote(before, expected[f"correction/{name}/mask"], 5), expected[f"correction/{name}/labels"])


def test_every_array_of_the_golden_file_is_read(golden):
    cases = {key.split("/")[0] for key in golden("corrclip")} - {"correction"}
    assert cases == set(CASES)
    assert {key.split("/")[0] for key in golden("corrclip") if key.endswith("component")} == set(MERGED)


def test_windows_of_a_batch_do_not_meet(case, deep_backbone):
    """They differ in how many masks they show, and share shapes."""
    image, external, ids, _ = case("several")
    other, external2, ids2, _ = case("two")
    both = (torch.cat(pair) for pair in ((image, other), (external, external2), (ids, ids2)))
    together = masked(deep_backbone, *both)
    alone = torch.cat([
        masked(deep_backbone, image, external, ids), masked(deep_backbone, other, external2, ids2)
    ])  # fmt: skip
    assert_near(together, alone, 1e-5)


@pytest.mark.parametrize("kind", [Bare, Registers])
def test_any_number_of_prefix_tokens(kind, case, tiny_backbone):
    image, external, ids, _ = case("several")
    features = masked(kind(tiny_backbone.checkpoint, torch.device("cpu"), torch.float32), image, external, ids)
    assert features.shape == (1, 14, 14, 48)
    assert features.isfinite().all()


@pytest.mark.parametrize("options", [{"merge": None}, {"spatial": 0.0}, {"semantic": 0.0}])
def test_every_option_counts(options, case, deep_backbone):
    image, external, ids, expected = case("several")
    changed = masked(deep_backbone, image, external, ids, **options)[0].flatten(0, 1)
    assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()


def test_patches_of_a_mask_meet_and_no_others():
    torch.manual_seed(0)
    u = F.normalize(torch.randn(6, 4), dim=1)
    weights = attention(u, torch.tensor([1, 1, 2, 2, 2, 0]))
    assert torch.equal(weights[:5, :5] > 0, torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)) > 0)
    assert torch.equal(weights[5] > 0, (u[5] @ u.T > (u @ u.T).mean()))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))


def test_equal_patches_under_no_mask_keep_themselves():
    assert attention(F.normalize(torch.ones(4, 3), dim=1), torch.zeros(4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("length", [2, 3, 5, 9, 17])
def test_components_reach_along_chains(length):
    """Every region is linked to its neighbours alone: all are one component, named by its first."""
    order = torch.arange(length + 1)
    distances = (order[:, None] - order).abs().float()
    distances[0] = distances[:, 0] = torch.inf
    first = component(distances[None], torch.tensor([length + 1]), 1.0)
    assert first.tolist() == [[0] + [1] * length]


def test_masks_are_cut_as_images_are():
    ids = torch.arange(75 * 50, dtype=torch.int32).view(75, 50)
    plan = windows.plan(75, 50, 64, 32, 16)
    cut = cut_ids(ids, plan)
    expected = windows.cut((ids + 1)[None].expand(3, -1, -1).float(), plan)[:, 0]
    inside = expected > 0  # the rest is padding
    assert torch.equal(cut[inside] + 1, expected[inside].int())
    assert torch.equal(cut[:, :, 0], cut[:, :, 7])  # 50 columns are padded to 64, 7 on the left


def test_middle_layers_are_those_of_the_paper():
    """A block's output is what enters the next."""
    assert list(middle_layers(12)) == [6, 7, 8, 9, 10]
    assert list(middle_layers(24)) == list(range(11, 23))
    assert list(middle_layers(32)) == list(range(3, 31))
    for depth in (1, 2, 3, 6):
        assert len(middle_layers(depth))
        assert 0 <= middle_layers(depth)[0] <= middle_layers(depth)[-1] < depth


def test_image_scores_are_windows_scores_stitched(make, tiny_backbone):
    """What `image_scores` gives at the resized image's size goes on as windows of other methods would."""
    torch.manual_seed(0)
    ids = torch.randint(0, 4, (5, 6), dtype=torch.int32).repeat_interleave(20, 0).repeat_interleave(24, 1)
    external = torch.randn(1, 8, 6, 6)
    method = CorrCLIP(tiny_backbone, Given(ids), vfm=lambda images: external.expand(len(images), -1, -1, -1))
    segmenter = make(method)
    image = torch.from_numpy(picture(100, 144)).permute(2, 0, 1)
    view = segmenter.view(image, (90, 130))
    queries = segmenter.queries(Vocabulary.of(["a", "b", "c"]))
    with torch.inference_mode():
        maps = segmenter.maps(view, segmenter.look([view], queries)[0], queries).full()
        features = F.normalize(method.window_features(view), dim=-1)
        scores = (features @ queries.text.T).permute(0, 3, 1, 2)
        expected = segmenter.stitcher.maps(scores, view.plan, (90, 130)).full()
    assert_near(maps, expected, 1e-5)


def test_through_the_segmenter(make, tmp_path, vit_weights):
    """From a file and a folder of masks to labels that follow these."""
    (tmp_path / "masks").mkdir()
    ids = np.ones((80, 120), np.uint8)
    ids[20:60, 30:90] = 2
    Image.fromarray(ids).save(tmp_path / "masks" / "cat.png")
    Image.fromarray(picture(80, 120)).save(tmp_path / "cat.jpg")
    method = f"CorrCLIP:masks={tmp_path}/masks,vfm=test_vit,vfm_weights={vit_weights}"
    segmenter = make(method)
    result = segmenter(tmp_path / "cat.jpg", ["a", "b", "c"], scores=True, features=True)
    assert result.labels.shape == (80, 120)
    assert result.features.shape[2] == 48
    torch.testing.assert_close(torch.from_numpy(result.scores).sum(dim=0), torch.ones(80, 120))
    Image.fromarray(np.rot90(ids, 2) * (np.arange(120) > 60).astype(np.uint8)).save(tmp_path / "masks" / "cat.png")
    assert (make(method)(tmp_path / "cat.jpg", ["a", "b", "c"], scores=True).scores != result.scores).any()
    with pytest.raises(UserError, match=r"this picture is no file: give its path"):
        segmenter(picture(80, 120), ["a", "b"])


def test_queries_and_keys_are_those_of_the_last_block(vit_weights, tmp_path, tiny_backbone, golden):
    (tmp_path / "masks").mkdir()
    options = f"masks={tmp_path}/masks,vfm=test_vit,vfm_weights={vit_weights}"
    external = create_method(f"CorrCLIP:{options}", tiny_backbone).external
    model, images = external.model.model, torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        block = model.blocks[-1]
        x = block.norm1(model.forward_intermediates(images, indices=[len(model.blocks) - 2], norm=False,
                                                    intermediates_only=True, output_fmt="NLC")[0])  # fmt: skip
        q, k, v = (F.linear(x, w, b) for w, b in zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)))
        actual = external.model.last_qkv(images)
        for one, expected in zip(actual, (q, k, v)):
            torch.testing.assert_close(one.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)
        as_clip = images * external.own_std + external.own_mean - external.mean
        torch.testing.assert_close(external(as_clip / external.std), actual[0] + actual[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("masks=nowhere", "masks 'nowhere' are no folder and none of EoMT, .*SAM2"),
        ("masks=SAM2", "the model facebook/sam2-hiera-large, which is to make masks, cannot be had"),
        ("masks=(SAM2:points=0)", "points 0 must be 1 or more"),
        ("merge=much", "option merge must be a finite number"),
    ],
)
def test_wrong_options_are_user_errors(option, message, tiny_backbone):
    with pytest.raises(UserError, match=message):
        create_method(f"CorrCLIP:{option}", tiny_backbone)
