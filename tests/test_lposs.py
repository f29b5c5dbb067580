"""LPOSS, and label propagation after other methods: golden numbers, formulas in plain loops, the road of an image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, assert_near, features, picture, tiny_vit
from safetensors import safe_open

from clearclip import windows
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.lposs import LPOSS
from clearclip.refine import propagation
from clearclip.refine.lp import LP, LPP, patch_means, untile
from clearclip.refine.propagation import PatchGraph, PixelGraph, lab, patch_centres, solve
from clearclip.segmenter import Queries, Segmenter
from clearclip.vision import TimmViT, VisionModel

NAMES = list("abcdefg")
SHAPE = (101, 150)  # of the golden scores
BACKGROUND, DISTINCT = (0, 0, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5, 6)


def keys(prefix=""):
    with safe_open(GOLDEN / "lposs.safetensors", framework="pt") as file:
        return sorted(key for key in file.keys() if key.startswith(prefix))  # noqa: SIM118


def neighbours(key):
    return int(key.rpartition("/k")[2])


def seen(array):
    """Golden features [n, h, w, D] of windows as a vision model gives them, [n, D, h, w]."""
    return array.permute(0, 3, 1, 2)


class Given(LPOSS):
    """LPOSS with the features that the golden files give."""

    def __init__(self, backbone, tensors, neighbours):
        super().__init__(backbone, vfm=lambda _: seen(tensors["external"]), neighbours=neighbours)
        self.given = tensors["clip"]

    def features(self, trunk):
        return self.given


@pytest.fixture(scope="module")
def road(golden, tiny_backbone):
    """`road(neighbours, query_class, *refinements)`: scores [C, 101, 150] and labels of the golden image."""
    tensors = golden("lposs")

    def road(neighbours, query_class, *refinements):
        settings = dict(short_side=0, crop=64, stride=32, window_batch=6, refinements=refinements)
        segmenter = Segmenter(Given(tiny_backbone, tensors, neighbours), **settings)
        queries = Queries(tensors["text"], query_class, tuple(NAMES[: max(query_class) + 1]))
        view = segmenter.view(tensors["image"] * 255, SHAPE)
        maps = segmenter.maps(view, segmenter.look([view], queries)[0], queries)
        decoder = segmenter.decoder(queries)
        return maps, decoder.merged(maps).full(), decoder.labels(maps)

    return road


def golden_graph(golden, neighbours):
    tensors, image = golden("lposs"), windows.plan(96, 128, 64, 32, 16)
    flat = tensors["external"].flatten(0, 2)
    return PatchGraph.of(flat, patch_centres(image, (4, 4)), neighbours)


@pytest.mark.parametrize("key", keys("operator/"))
def test_golden_operator(key, golden):
    identity = torch.eye(96)
    assert_near(identity - 0.95 * golden_graph(golden, neighbours(key))(identity), golden("lposs")[key])


@pytest.mark.parametrize("key", keys("patches/"))
def test_golden_patches(key, golden):
    tensors = golden("lposs")
    scores = tensors["text"] @ F.normalize(tensors["clip"].flatten(0, 2), dim=1).T
    assert_near(solve(golden_graph(golden, neighbours(key)), scores, 0.95).T, tensors[key])


@pytest.mark.parametrize("key", keys("scores/"))
def test_golden_scores(key, golden, road):
    _, scores, _ = road(neighbours(key), BACKGROUND)
    assert_near(scores[:, ::3, ::3] / (1 - 0.95), golden("lposs")[key])


@pytest.mark.parametrize(
    ("name", "query_class", "options"),
    [("plus", BACKGROUND, {}), ("plus.r5.tau.05", BACKGROUND, dict(square=5, tau=0.05)), ("plus.q7", DISTINCT, {})],
)
def test_golden_pixels(name, query_class, options, golden, road, tiny_backbone):
    tensors = golden("lposs")
    maps, scores, labels = road(20, query_class, LPP(tiny_backbone, **options))
    assert_near(scores[:, ::3, ::3] / (1 - 0.95) ** 2, tensors[f"{name}/scores"])
    if name == "plus":
        assert_near(maps.scores[:, ::4, ::4] / (1 - 0.95) ** 2, tensors["plus/pixels"])
        assert torch.equal(labels, tensors["plus/labels"])


def test_golden_lab(golden):
    assert_near(lab(golden("lposs")["image"])[:, ::4, ::4], golden("lposs")["lab"])


@pytest.mark.parametrize("key", keys("clip_features/"))
def test_golden_clip_features(key, golden, tiny_backbone):
    method = LPOSS(tiny_backbone, vfm=lambda _: None)
    with torch.inference_mode():
        actual = method.features(tiny_backbone.trunk(golden("inputs")[key.partition("/")[2]]))
    assert_near(actual.flatten(1, 2), golden("lposs")[key])


def test_every_golden_array_is_tested():
    plus = {"plus/scores", "plus.r5.tau.05/scores", "plus.q7/scores", "plus/pixels", "plus/labels"}
    tested = [key for prefix in ("operator/", "patches/", "scores/", "clip_features/") for key in keys(prefix)]
    assert set(keys()) == {*tested, *plus, "lab", "image", "external", "clip", "text"}


# The parts, beside plain loops.


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normalised(weights):
    """W + Wᵀ without its diagonal, each entry divided by the roots of both degrees."""
    weights = weights + weights.T
    weights.fill_diagonal_(0)
    degree = weights.sum(dim=1)
    degree[degree == 0] = 1
    return weights / torch.outer(degree, degree).sqrt()


def test_patch_graph_by_loops():
    features, centres = noise(12, 4) - 0.5, 30 * noise(12, 2, seed=1)
    weights = torch.zeros(12, 12)
    for i in range(12):
        cosines = F.cosine_similarity(features[i : i + 1], features)
        for j in cosines.argsort(descending=True)[:4]:
            weights[i, j] = max(cosines[j], 0) ** 3 * torch.exp(-0.01 * (centres[i] - centres[j]).norm())
    torch.testing.assert_close(PatchGraph.of(features, centres, 4)(torch.eye(12)), normalised(weights))


@pytest.mark.parametrize("shape", [(5, 6), (1, 7), (4, 1)])
def test_pixel_graph_by_loops(shape):
    image, reach, tau = noise(3, *shape), 2, 0.3
    colours = lab(image) / torch.tensor([100, 128, 128])[:, None, None]
    places = [(y, x) for y in range(shape[0]) for x in range(shape[1])]
    weights = torch.tensor([
        [
            float(torch.exp(-(colours[:, *p] - colours[:, *q]).norm() / tau))
            if max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= reach
            else 0
            for q in places
        ]
        for p in places
    ])  # fmt: skip
    actual = PixelGraph.of(image, reach, tau)(torch.eye(len(places)).unflatten(1, shape)).flatten(1)
    torch.testing.assert_close(actual, normalised(weights))


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.02, 0.02, 0.02), (1.40, 0, 0)),  # 903.3 · 0.02 / 12.92
    ],
)
def test_lab_of_known_colours(colour, expected):
    actual = lab(torch.tensor(colour, dtype=torch.float32)[:, None, None])[:, 0, 0]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), atol=0.02, rtol=0)


def test_solution_solves_and_stops():
    matrix = normalised(noise(30, 30))
    y = torch.cat([noise(2, 30, seed=1) - 0.5, torch.zeros(1, 30)])
    x = solve(lambda maps: maps @ matrix, y, 0.5)
    torch.testing.assert_close(x - 0.5 * x @ matrix, y, atol=1e-5, rtol=0)
    assert torch.equal(x[2], torch.zeros(30))  # it is solved before it begins
    alone = solve(lambda maps: maps @ matrix, y[:1], 0.5)
    torch.testing.assert_close(alone, x[:1])


def test_accurate_maps_stay(monkeypatch):
    """Without the bound, later steps would go on."""
    matrix, y = normalised(noise(30, 30)), noise(2, 30, seed=1)
    monkeypatch.setattr(propagation, "ACCURACY", 0.1)
    first = solve(lambda maps: maps @ matrix, y, 0.5)
    monkeypatch.setattr(propagation, "STEPS", 100)
    assert torch.equal(solve(lambda maps: maps @ matrix, y, 0.5), first)
    residual = y - first + 0.5 * first @ matrix
    assert (residual.norm(dim=1) <= 0.1 * y.norm(dim=1)).all()


def test_chunks_do_not_show(golden, monkeypatch):
    whole = golden_graph(golden, 20)(torch.eye(96))
    monkeypatch.setattr(propagation, "SIMILARITY_BYTES", 4 * 96 * 7)
    torch.testing.assert_close(golden_graph(golden, 20)(torch.eye(96)), whole)


@pytest.mark.parametrize(("length", "crop", "grid", "target"), [(96, 64, 4, 96), (80, 64, 6, 53), (50, 0, 3, 75)])
def test_patch_means_of_a_ramp(length, crop, grid, target):
    """A mean over a patch of what grows evenly is the value at its centre."""
    axis = windows.plan_axis(length, crop, crop // 2, 16)
    ramp = (torch.arange(target) + 0.5) * length / target
    centres = propagation.axis_centres(axis, grid).flatten()
    torch.testing.assert_close(patch_means(axis, grid, target) @ ramp, centres, atol=0.02, rtol=0)


def test_patch_means_in_padding():
    axis = windows.plan_axis(17, 32, 16, 32)  # 7 pixels of padding before, 8 after
    means = patch_means(axis, 16, 17)
    torch.testing.assert_close(means.sum(dim=1), torch.ones(16))
    assert means[0, 0] == means[-1, -1] == 1


def test_untile_is_the_inverse_of_tile():
    plan, scores = windows.plan(96, 128, 64, 32, 16), noise(6, 3, 4, 5)
    assert torch.equal(untile(windows.tile(scores, plan), plan), scores)


# The vision model's second reading.


@pytest.mark.parametrize("options", [dict(), dict(reg_tokens=4, no_embed_class=True)])
def test_queries_keys_and_values_of_the_last_block(options):
    model = tiny_vit(img_size=160, depth=2, embed_dim=64, num_heads=4, **options)
    images = noise(2, 3, 96, 160)
    reader = TimmViT(model, torch.device("cpu"), torch.float32)
    tokens = []
    model.blocks[-1].register_forward_pre_hook(lambda module, arguments: tokens.append(arguments[0]))
    with torch.inference_mode():
        actual = reader.last_qkv(images)
        block = model.blocks[-1]
        parts = block.attn.qkv(block.norm1(tokens[0]))[:, model.num_prefix_tokens :].split(64, dim=2)
        for part, expected in zip(actual, parts, strict=True):
            assert part.shape == (2, 64, 6, 10)
            torch.testing.assert_close(part.flatten(2).transpose(1, 2), expected)


def test_other_vision_models_may_not_have_them(tiny_backbone):
    with pytest.raises(NotImplementedError):
        VisionModel().last_qkv(noise(1, 3, 16, 16))
    model = TimmViT(tiny_vit("eva02_tiny_patch14_224", depth=1), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="no common qkv; use a DINO or DINOv2"):
        model.last_qkv(noise(1, 3, 224, 224))


# The road of an image.


@pytest.fixture
def vision(vit_weights):
    return f"vfm=test_vit,vfm_weights={vit_weights}"


def test_through_segmenter(make, vision):
    image = picture(60, 90)
    result = make(f"LPOSS:{vision}")(image, NAMES, scores=True, features=True)
    one_by_one = make(f"LPOSS:{vision}", window_batch=1)(image, NAMES, scores=True)
    np.testing.assert_allclose(one_by_one.scores, result.scores, atol=1e-5)
    assert result.labels.shape == (60, 90)
    assert result.features.shape == (5, 8, 48)  # the patches of 80 × 120 pixels
    still = make(f"LPOSS:{vision},alpha=0")(image, NAMES, scores=True)
    plain = make("CLIP:attention=identity")(image, NAMES, scores=True)
    np.testing.assert_allclose(still.scores, plain.scores, atol=1e-4)  # no score has flown
    assert np.abs(result.scores - plain.scores).max() > 0.01


@pytest.mark.parametrize("crop", [0, 64])
@pytest.mark.parametrize("name", ["LPOSS:{}", "LPOSS:{}+LPP", "ClearCLIP+LP:{}", "ClearCLIP+LPP:square=3"])
def test_any_window(name, crop, make, vision):
    result = make(name.format(vision), short_side=50, crop=crop)(picture(40, 62), NAMES, scores=True)
    assert result.scores.shape == (7, 40, 62)
    assert np.isfinite(result.scores).all()
    np.testing.assert_array_equal(result.labels, result.scores.argmax(axis=0))


def test_synonyms_take_the_best_score(make, vision):
    image = picture(60, 90)
    seven = make(f"LPOSS:{vision}")(image, NAMES)
    three = make(f"LPOSS:{vision}")(image, ["a, b, c", "d, e", "f, g"])
    assert (np.array([0, 0, 0, 1, 1, 2, 2])[seven.labels] == three.labels).mean() > 0.95  # but where the best change


def test_lp_after_a_method_is_linear_in_its_scores(tiny_backbone, make):
    """Maps that are the same everywhere, and features that are all alike: scores flow and stay."""
    segmenter = make("ClearCLIP")
    image = torch.from_numpy(picture(60, 90)).permute(2, 0, 1)
    view = segmenter.view(image)
    flat = windows.Maps.of(torch.ones(2, 60, 90) * torch.tensor([1.0, -0.5])[:, None, None])
    refined = LP(tiny_backbone, vfm=lambda images: torch.ones(len(images), 5, 4, 4))(view, flat, None)
    assert_near(refined.full(), flat.full(), 0.2)
    assert_near(refined.full()[0], -2 * refined.full()[1], 1e-4)


def test_pixels_propagation_follows_edges(tiny_backbone, make):
    """Two colours, and labels that are known up to their edge but for noise."""
    image = np.full((64, 64, 3), 200, np.uint8)
    image[:, 37:] = (20, 60, 160)
    right = torch.zeros(64, 64)
    right[:, 32:] = 1  # the edge is five pixels off
    view = make("ClearCLIP", short_side=64).view(torch.from_numpy(image).permute(2, 0, 1))
    scores = torch.stack([1 - right, right]) + 0.1 * noise(2, 64, 64)
    labels = LPP(tiny_backbone)(view, windows.Maps.of(scores), None).full().argmax(dim=0)
    assert (labels == torch.from_numpy(image[..., 0] == 20)).float().mean() > 0.99
    assert (right.bool() == torch.from_numpy(image[..., 0] == 20)).float().mean() < 0.93


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LPOSS:{},neighbours=1", "neighbours must be 2 or more"),
        ("LPOSS:{},alpha=1", "alpha must be 0 or more and below 1, not 1"),
    ],
)
def test_wrong_options_of_the_method(name, message, tiny_backbone, vision):
    with pytest.raises(UserError, match=message):
        create_method(name.format(vision), tiny_backbone)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ClearCLIP+LP:{},alpha=-0.1", "alpha must be 0 or more and below 1, not -0.1"),
        ("ClearCLIP+LPP:square=4", "square must be an odd number from 3 on, not 4"),
        ("ClearCLIP+LPP:tau=0", "tau must be above 0, not 0"),
        ("ClearCLIP+LPP:alpha=1", "alpha must be 0 or more"),
        ("ClearCLIP+LP:vfm=resnet18", "unknown vision model 'resnet18'"),
    ],
)
def test_wrong_options_of_refinements(name, message, make, vision):
    with pytest.raises(UserError, match=message):
        make(name.format(vision))


def test_values_are_clip_s_own(golden, tiny_backbone):
    images = golden("inputs")["image_64x64"]
    method = LPOSS(tiny_backbone, vfm=lambda _: None)
    with torch.inference_mode():
        actual = method.features(tiny_backbone.trunk(images))
    assert_near(actual, features("CLIP:attention=identity", tiny_backbone, images))
