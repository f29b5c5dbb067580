"""Trident: every golden array, SAM's attention against timm's own block, and the whole road with tiny networks."""

import pytest
import timm
import tiny_sam  # noqa: F401 (timm then knows it)
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from clearclip import windows
from clearclip.errors import UserError
from clearclip.methods.trident import SAMAttention, Trident, correlation
from clearclip.state import content_hash
from clearclip.view import View
from clearclip.windows import Stitcher, covering_shape

CORRELATIONS = [(0.0, "kept"), (1.2, "kept"), (1.2, "raised"), (3.0, "raised")]
FEATURES = [(5, 1.2, "kept"), (6, 1.2, "kept"), (8, 0.0, "kept"), (8, 1.2, "kept"), (8, 1.2, "raised"),
            (8, 3.0, "raised")]  # fmt: skip


@pytest.fixture(scope="module")
def trident(golden):
    return golden("trident")


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture
def view(golden, tiny_backbone, monkeypatch):
    """The six golden windows; the image is normalised already."""
    image = golden("inputs")["image_112x160"][0, :, :96, :128]
    view = View(
        tiny_backbone, image, image, (96, 128), windows.plan(96, 128, 64, 32, 16), 4, Stitcher(torch.device("cpu"))
    )
    monkeypatch.setitem(vars(view), "pixels", image)
    return view


def method(backbone, external, **options):
    """Trident whose vision model hands out the golden features, window by window."""
    given = list(external)
    return Trident(
        backbone, vfm=lambda images: torch.stack([given.pop(0) for _ in images]), sam=lambda image: None, **options
    )


def options(factor, negative):
    return {"cos_factor": factor, "keep_negative": negative == "kept"}


def test_windows_lie_where_they_should(view, trident):
    corners = [[y, x] for y in view.plan.rows.starts for x in view.plan.columns.starts]
    assert corners == trident["crop_corners"].tolist()


def test_sizes(trident):
    for height, width, patch, window, *expected in trident["sizes"].tolist():
        assert covering_shape(height, width, patch, window) == tuple(expected)


@pytest.mark.parametrize("side", [5, 6, 8])
def test_spliced(side, view, trident):
    out = method(view.backbone, trident[f"external{side}"]).spliced(view)
    close(out.permute(2, 0, 1), trident[f"stitched/external{side}"])


@pytest.mark.parametrize(("factor", "negative"), CORRELATIONS)
def test_correlation(factor, negative, trident):
    values = trident["sam/values"].flatten(1, 2)
    weights = correlation(trident["sam/attention"], values, factor, negative == "kept")
    close(weights, trident[f"correlation/cos{factor}.neg_{negative}"])


@pytest.mark.parametrize(("side", "factor", "negative"), FEATURES)
def test_features(side, factor, negative, view, trident):
    some = method(view.backbone, trident[f"external{side}"], **options(factor, negative))
    mixed = some.correlated(some.spliced(view), [(trident["sam/attention"], trident["sam/values"])])
    features = view.backbone.project(mixed)
    assert features.shape[:2] == (9, 13)
    close(features.flatten(0, 1), trident[f"features/external{side}.cos{factor}.neg_{negative}"])


def test_halves(view, trident):
    some = method(view.backbone, trident["external8"], **options(3.0, "raised"))
    seen = list(zip(trident["halves/attention"], trident["halves/values"]))
    mixed = some.correlated(some.spliced(view), seen)
    close(view.backbone.project(mixed).flatten(0, 1), trident["halves/features"])


def tiny_encoder(seed=0):
    """timm's tiny SAM encoder with weights that matter everywhere, also where they start as 0."""
    torch.manual_seed(seed)
    model = timm.create_model("tiny_samvit", num_classes=0).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def sam_weights(tmp_path):
    path = tmp_path / "tiny_samvit.safetensors"
    save_file(tiny_encoder().state_dict(), path)
    return path


def test_what_sam_attends_to(tiny_backbone, sam_weights):
    """Of an image that fills SAM's square, attention and values make the output of timm's own attention."""
    model, attn = tiny_encoder(), tiny_encoder().blocks[-1].attn
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    attention, values = SAMAttention(tiny_backbone, "tiny_samvit", str(sam_weights))(image)
    assert values.shape == (2, 4, 4, 16)
    mixed = torch.stack([head @ v for head, v in zip(attention, values.flatten(1, 2))], dim=1).flatten(1)  # [16, 32]
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    seen = []
    model.blocks[-1].attn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(((image / 255 - mean) / std)[None])
    close(attn.proj(mixed).view(1, 4, 4, 32), seen[0])


def test_sam_leaves_out_what_is_beside_the_image(tiny_backbone, sam_weights):
    sam = SAMAttention(tiny_backbone, "tiny_samvit", str(sam_weights))
    image = torch.randint(256, (3, 24, 48), dtype=torch.uint8)  # grows to 32 × 64
    attention, values = sam(image)
    assert values.shape == (2, 2, 4, 16)
    rows = torch.stack([head.sum(dim=-1) for head in attention])
    assert rows.shape == (2, 8)
    assert (rows < 1).all()


def test_patches_alike_in_values_only():
    """The formula in plain loops."""
    torch.manual_seed(0)
    attention, values = torch.rand(2, 5, 5).softmax(dim=-1), torch.randn(2, 5, 3)
    cosine = F.cosine_similarity(values[:, :, None], values[:, None], dim=-1)
    weights = correlation(attention, values, 1.5, keep_negative=False)
    for i in range(5):
        least = 1.5 * cosine[:, i].mean().item()
        least = min(0.6 if least < 0 else least, 0.9)
        row = [sum(float(attention[h, i, j]) * bool(cosine[h, i, j] > least) for h in range(2)) for j in range(5)]
        assert weights[i].tolist() == pytest.approx([x / sum(row) for x in row], abs=1e-6)


def spec(vit_weights, sam_weights, more=""):
    return f"Trident:vfm=test_vit,vfm_weights={vit_weights},sam=tiny_samvit,sam_weights={sam_weights}{more}"


def test_the_whole_road(make, vit_weights, sam_weights):
    torch.manual_seed(0)
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    segmenter = make(spec(vit_weights, sam_weights))
    result = segmenter(image, list("abcdefg"), scores=True, features=True)
    assert result.labels.shape == (70, 90)
    assert result.features.shape == (3, 4, 48)  # SAM's grid: 70 × 90 becomes 80 × 96, then 53 × 64
    scores = torch.from_numpy(result.features) @ segmenter.embedder.embeddings.embeddings.T
    full = F.interpolate(scores.permute(2, 0, 1)[None], size=(70, 90), mode="bilinear")[0]
    close(torch.from_numpy(result.scores), (50 * full).softmax(dim=0))
    for other in (",cos_factor=0", ",halves=True", ",keep_negative=False,cos_factor=3", ",beta=0"):
        assert (
            make(spec(vit_weights, sam_weights, other))(image, list("abcdefg"), scores=True).scores != result.scores
        ).any()


def test_whole_image_at_once(make, vit_weights, sam_weights):
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    assert make(spec(vit_weights, sam_weights), crop=0)(image, list("abcdefg")).labels.shape == (70, 90)


def test_stride_beside_the_patches(make, vit_weights, sam_weights):
    with pytest.raises(UserError, match="stride that is a multiple of the patch, 16, not 24"):
        make(spec(vit_weights, sam_weights), stride=24)(torch.zeros(3, 70, 90, dtype=torch.uint8), list("abcdefg"))


def test_wrong_encoders(make, vit_weights):
    with pytest.raises(UserError, match="test_vit is no SAM image encoder"):
        make(f"Trident:vfm=test_vit,vfm_weights={vit_weights},sam=test_vit,sam_weights={vit_weights}")
    with pytest.raises(UserError, match="sam_weights=PATH"):
        make(f"Trident:vfm=test_vit,vfm_weights={vit_weights}")


def test_files(make, vit_weights, sam_weights):
    """What records are kept apart by."""
    files = make(spec(vit_weights, sam_weights)).method.files()
    assert files == {"vfm": content_hash(vit_weights), "sam": content_hash(sam_weights)}
