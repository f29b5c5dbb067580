from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import make_benchmark
from conftest import assert_near, features, picture
from mmengine.config import Config
from PIL import Image

from clearclip.errors import UserError
from clearclip.evaluation.results import read_result
from clearclip.methods import METHODS, cliper, create_method, proxyclip
from clearclip.methods.cliper import Balanced, CLIPer, ImageLevelDecoder
from clearclip.methods.proxyclip import ProxyCLIP
from clearclip.products import HEAD_ROWS
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings
from clearclip.view import normalise
from clearclip.vocabulary import Vocabulary, load_templates, load_vocabulary
from clearclip.windows import Maps, Stitcher, plan
from eval import main

CONFIGS = Path(__file__).parents[1] / "configs"
STITCHER = Stitcher(torch.device("cpu"))
QUERY_CLASS = (1, 2, 3, 4, 5, 0, 0)  # the golden files' five classes, then two background words
RUNS = {
    "default": ("", 100),
    "select-2_thr.2_scale50": (",select=-2,attention_threshold=0.2", 50),
    "sliding224_stride112": (",window=224", 100),
    "q-q": (",attention=qq", 100),
    "k-k": (",attention=kk", 100),
    "v-v": (",attention=vv", 100),
    "vanilla": (",attention=qk", 100),
    "identity": (",attention=identity", 100),
}
GOLDEN = [
    *(f"{run}/image_{size}" for run in list(RUNS)[:2] for size in ("64x64", "64x96", "80x48", "112x160")),
    "sliding224_stride112/image_224x336",
    *(f"{run}/image_64x96" for run in list(RUNS)[3:]),
]

# data set: short side, crop, logit scale, threshold, score threshold, attention threshold, templates, window,
# background, and the published mIoU without and with diffusion
PROTOCOL = {
    "voc21": (336, 0, 100, 0.6, 0.7, 0.1, 15, 336, True, 62.1, 66.5),
    "voc20": (336, 0, 100, 0.001, 0, 0.1, 15, 0, False, 84.3, 85.5),
    "context60": (336, 0, 100, 0.45, 0.45, 0.2, 15, 224, True, 35.7, 38.3),
    "context59": (336, 0, 100, 0.3, 0.3, 0.2, 15, 224, False, 39.6, 42.4),
    "coco_object": (336, 0, 50, 0.3, 0.3, 0.2, 80, 224, True, 37.5, 40.0),
    "coco_stuff164k": (336, 0, 50, 0.1, 0.1, 0.2, 15, 0, False, 25.4, 27.6),
    "ade20k": (336, 0, 100, 0.3, 0.3, 0.2, 15, 0, False, 19.8, 21.5),
    "city_scapes": (560, 560, 100, 0.0001, 0, 0.35, 80, 0, False, 35.9, 37.0),
}
WORDS = {"voc20": 25} | dict.fromkeys(("context59", "coco_stuff164k", "ade20k", "city_scapes"), 1)  # besides classes
CLASSES = dict(voc21=21, voc20=20, context60=60, context59=59, coco_object=81, coco_stuff164k=171, ade20k=150)


def maps(options, backbone, images, text, query_class=QUERY_CLASS, logit_scale=100.0, **objects):
    method = CLIPer(backbone, **METHODS.parse(f"CLIPer:{options}").options, **objects)
    with torch.inference_mode():
        return method.scores(backbone.trunk(images), method.prepare(text, query_class, logit_scale))


def layers(name, backbone, images):
    """Features [L, 1+N, dim] and attention [N, N] of one image [1, 3, H, W]."""
    with torch.inference_mode():
        by_layer, attention = create_method(name, backbone).layers(backbone.trunk(images).repositioned("bilinear"))
    return by_layer[:, 0], attention[0]


@pytest.mark.parametrize("run", GOLDEN)
def test_golden(run, golden, tiny_backbone):
    name, image = run.split("/")
    options, logit_scale = RUNS[name]
    expected, images, text = golden("cliper"), golden("inputs")[image][:1], golden("inputs")["text"]
    actual = maps(f"background=True{options}", tiny_backbone, images, text, logit_scale=logit_scale)
    assert actual.shape[1] == 7
    assert_near(actual[0, :5], expected[f"{run}/seg"])
    if f"{run}/attention" in expected:
        by_layer, attention = layers(f"CLIPer:background=True{options}", tiny_backbone, images)
        assert_near(by_layer, expected[f"{run}/layer_features"])
        assert_near(attention, expected[f"{run}/attention"])


def test_one_balance_for_all_layers(golden, tiny_backbone):
    """Iterated, layer l's attention has been balanced l + 1 times: the first is the same, the others are not."""
    images = golden("inputs")["image_112x160"][:1]
    often, attention = layers("CLIPer", tiny_backbone, images)
    once, single = layers("CLIPer:iterate=False", tiny_backbone, images)
    assert torch.equal(often[0], once[0])
    assert not any(torch.allclose(a, b, rtol=1e-4) for a, b in zip(often[1:], once[1:]))
    assert not torch.allclose(attention, single, rtol=1e-4)


@pytest.mark.parametrize("count", [9, HEAD_ROWS + 7])
def test_balance_and_fuse(count):
    """Written out: columns to sum 1, then rows, three times; then symmetric, above the column's mean, rows to sum 1."""
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, count, count, generator=generator)
    values = torch.rand(2, 3, count, 4, generator=generator)
    balanced, expected = Balanced(attention), attention
    for _ in range(3):
        balanced.step()
        expected = expected / expected.sum(dim=-2, keepdim=True)
        expected = expected / expected.sum(dim=-1, keepdim=True)
        symmetric = (expected + expected.mT) / 2
        fused = (symmetric - symmetric.mean(dim=-2, keepdim=True)).clamp(min=0)
        fused = fused / fused.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(balanced.mean(), fused.mean(dim=1), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(balanced.mix(values), fused @ values, atol=1e-5, rtol=1e-4)


def test_attention_that_is_even_everywhere_is_finite():
    balanced = Balanced(torch.full((1, 1, 4, 4), 0.25))
    balanced.step()
    assert balanced.mean().isfinite().all()


@pytest.mark.parametrize("options", ["background=True", "background=True,window=64"])
def test_images_of_a_batch_do_not_meet(options, golden, tiny_backbone):
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    alone = torch.cat([maps(options, tiny_backbone, image[None], text) for image in images])
    assert torch.equal(maps(options, tiny_backbone, images, text), alone)


def test_a_window_of_the_whole_image_is_carried_once_more(golden, tiny_backbone):
    images, text = golden("inputs")["image_64x64"][:1], golden("inputs")["text"]
    method = create_method("CLIPer:window=64", tiny_backbone)
    with torch.inference_mode():
        prepared = method.prepare(text, tuple(range(7)), 50.0)
        by_layer, attention = layers("CLIPer:window=64", tiny_backbone, images)
        cosines = F.normalize(by_layer[:, 1:], dim=-1) @ prepared.T  # [L, N, Q+1]
        expected = cosines.mT @ (attention / attention.sum(dim=1, keepdim=True))
        torch.testing.assert_close(method.window_scores(images[0], prepared), expected)


def test_windows_smaller_than_their_stride_leave_no_gaps(golden, tiny_backbone):
    images, text = golden("inputs")["image_112x160"][:1], golden("inputs")["text"]
    for window in (16, 64):
        assert maps(f"window={window}", tiny_backbone, images, text).isfinite().all()


def test_prepared_text(tiny_backbone):
    text = F.normalize(torch.randn(4, 48), dim=-1)
    method = create_method("CLIPer:background=True", tiny_backbone)
    prepared = method.prepare(text, (0, 1, 2, 0), 20.0)
    torch.testing.assert_close(prepared[:4], 20 * text)
    torch.testing.assert_close(prepared[4], 20 * F.normalize(text[1:3].mean(dim=0), dim=0))
    everything = create_method("CLIPer", tiny_backbone).prepare(text, (0, 1, 2, 0), 20.0)
    torch.testing.assert_close(everything[4], 20 * F.normalize(text.mean(dim=0), dim=0))
    with pytest.raises(UserError, match="background=True takes class 0 for background words; name a class after it"):
        method.prepare(text, (0, 0, 0, 0), 20.0)


def test_words_besides_the_classes_are_what_background_words_are(golden, tiny_backbone):
    """The golden files' two background words are nobody's now: the same maps, and labels that are one less."""
    images, text, expected = golden("inputs")["image_64x96"][:1], golden("inputs")["text"], golden("cliper")
    method = create_method("CLIPer:words=sky; sea", tiny_backbone)
    assert method.words == ("sky", "sea")
    with torch.inference_mode():
        prepared = method.prepare(text, tuple(range(5)), 100.0)
        actual = method.scores(tiny_backbone.trunk(images), prepared)
    assert_near(actual[0], expected["default/image_64x96/seg"])
    torch.testing.assert_close(prepared[7], 100 * F.normalize(text[:5].mean(dim=0), dim=0))
    shifted = maps("background=True", tiny_backbone, images, text)[:, [5, 0, 1, 2, 3, 4]]
    operators = (
        STITCHER.maps(actual, plan(64, 96, 0, 0, 16), (50, 60)),
        STITCHER.maps(shifted, plan(64, 96, 0, 0, 16), (50, 60)),
    )
    without = ImageLevelDecoder(tuple(range(5)), 0.3, 0.1).labels(operators[0]).int()
    kept = ImageLevelDecoder(tuple(range(6)), 0.3, 0.1, background=True).labels(operators[1]).int()
    assert len(kept.unique()) > 1
    assert torch.equal(torch.where(without == 255, 0, without + 1), kept)


def test_words_of_voc_are_those_of_the_class_file(tiny_backbone):
    first = load_vocabulary(CONFIGS / "cliper/cls_voc21.txt").names[0]
    assert create_method("CLIPer:words=voc", tiny_backbone).words == first
    assert create_method("CLIPer:words=background", tiny_backbone).words == ("background",)
    assert create_method("CLIPer", tiny_backbone).words == ()


def test_features_are_the_last_layer_s(golden, tiny_backbone):
    images = golden("inputs")["image_64x96"]
    actual = features("CLIPer", tiny_backbone, images)
    assert_near(actual[0].flatten(0, 1), golden("cliper")["default/image_64x96/layer_features"][-1, 1:])


# Refinement


def test_refined_maps_keep_the_mean_of_both_scores(golden, tiny_backbone):
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    coarse = maps("", tiny_backbone, images, text)
    seen = []

    def refine(image, given):
        seen.append(image)
        return 3 * F.avg_pool2d(given[None], 2)[0]

    refined = maps("", tiny_backbone, images, text, refine=refine)
    assert torch.equal(torch.stack(seen), images)
    pooled = 3 * F.avg_pool2d(coarse, 2)
    level = (pooled.amax(dim=(2, 3)) + coarse.amax(dim=(2, 3))) / 2
    torch.testing.assert_close(refined.amax(dim=(2, 3)), level)
    torch.testing.assert_close(F.normalize(refined.flatten(2), dim=2), F.normalize(pooled.flatten(2), dim=2))


def test_refinement_by_a_vision_model(golden, tiny_backbone, monkeypatch):
    """Maps go to the model's grid and are averaged as ProxyCLIP averages values."""
    external = golden("inputs")["vfm_64x64"]
    monkeypatch.setattr(proxyclip, "Eyes", lambda backbone, vfm, weights: lambda images: external[:1])
    images, text = golden("inputs")["image_64x64"][:1], golden("inputs")["text"]
    coarse = maps("", tiny_backbone, images, text)
    refined = maps("refine=dino_vitb8", tiny_backbone, images, text)
    weights = ProxyCLIP(tiny_backbone, vfm=len).attention(external[0])
    expected = F.interpolate(coarse, size=(6, 6), mode="bilinear").flatten(2) @ weights.T
    torch.testing.assert_close(F.normalize(refined.flatten(2), dim=2), F.normalize(expected, dim=2))


def test_refinement_by_diffusion_takes_the_image_in_its_colours(golden, tiny_backbone, monkeypatch):
    calls = []

    class Diffusion:
        def __init__(self, *arguments, **options):
            calls.append((arguments, options))

        def __call__(self, image, maps, threshold):
            calls.append((image, threshold))
            return maps

    monkeypatch.setattr(cliper, "DiffusionAttention", Diffusion)
    rgb = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(s)[:, None, None] for s in (tiny_backbone.mean, tiny_backbone.std))
    options = "refine=sd15,combine=mean,attention_threshold=0.3"
    maps(options, tiny_backbone, (rgb - mean) / std, golden("inputs")["text"])
    assert calls[0] == (("sd15", "mean"), {"device": tiny_backbone.device, "dtype": torch.float32})
    torch.testing.assert_close(calls[1][0], rgb[0])
    assert calls[1][1] == 0.3


# Labels


def reference_labels(maps, query_class, threshold, score_threshold, normalise, background):
    """The rule on the full tensor."""
    classes = torch.tensor(query_class)
    stacked = torch.stack([maps.scores[classes == index].amax(dim=0) for index in range(max(query_class) + 1)])
    level = stacked.amax(dim=(1, 2))[:, None, None]
    values = maps.rows @ stacked @ maps.columns.T
    values = values / values.amax(dim=(1, 2), keepdim=True) * level
    if normalise:
        least, largest = values.amin(dim=(1, 2), keepdim=True), values.amax(dim=(1, 2), keepdim=True)
        values = (values - least) / (largest - least)
    values[(values < threshold) | (level <= score_threshold)] = 0
    if background:
        values[0] = 0
    best, labels = values.max(dim=0)
    labels[best == 0] = 0 if background else 255
    return values, labels


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("threshold", "score_threshold"), [(0.0, 0.0), (0.6, 0.5), (0.3, 0.9), (2.0, 0.0)])
def test_labels(threshold, score_threshold, normalise, background):
    query_class = (0, 1, 1, 2, 3, 0, 4)
    scores = torch.rand(7, 5, 6, generator=torch.Generator().manual_seed(0))
    scores *= torch.linspace(0.4, 1.2, 7)[:, None, None]
    whole = STITCHER.maps(scores[None], plan(80, 96, 0, 0, 16), (43, 61))
    decoder = ImageLevelDecoder(query_class, threshold, score_threshold, normalise, background)
    values, expected = reference_labels(whole, query_class, threshold, score_threshold, normalise, background)
    labels = decoder.labels(whole)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected)
    probabilities = decoder.probabilities(whole)
    torch.testing.assert_close(probabilities[1:], values[1:])
    if background:
        assert (probabilities[0] == threshold).all()
        assert torch.equal((probabilities[1:] >= max(threshold, 1e-9)).any(dim=0), expected > 0)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_groups_of_classes_do_not_show(normalise, background, monkeypatch):
    """Which a GPU decodes at once, to launch fewer kernels."""
    query_class = (0, 1, 1, 2, 3, 0, 4, 5)
    scores = torch.rand(8, 5, 6, generator=torch.Generator().manual_seed(0))
    scores[7] = scores[6]  # equals, in one group and in two
    whole = STITCHER.maps(scores[None], plan(80, 96, 0, 0, 16), (43, 61))
    decoder = ImageLevelDecoder(query_class, 0.3, 0.5, normalise, background)
    labels, probabilities = decoder.labels(whole), decoder.probabilities(whole)
    for size in (2, 3, 4, 9):
        monkeypatch.setattr("clearclip.methods.cliper.group_size", lambda maps, size=size: size)
        assert torch.equal(decoder.labels(whole), labels)
        torch.testing.assert_close(decoder.probabilities(whole), probabilities)


def test_many_classes_have_a_label_for_none():
    scores = torch.zeros(300, 1, 2)
    scores[299, 0, 0] = 1
    labels = ImageLevelDecoder(tuple(range(300)), threshold=0.5).labels(Maps(scores, torch.eye(1), torch.eye(2)))
    assert labels.tolist() == [[299, 65535]]


def test_first_of_equal_classes():
    scores = torch.ones(3, 1, 1)
    assert ImageLevelDecoder((0, 1, 2)).labels(Maps(scores, torch.eye(1), torch.eye(1))) == 0
    assert ImageLevelDecoder((0, 1, 2), background=True).labels(Maps(scores, torch.eye(1), torch.eye(1))) == 1


# Through the engine


def test_segmenter_uses_its_text_and_its_decoder(golden, tiny_backbone):
    text = golden("inputs")["text"]
    names = ["sky, sea", "cat", "dog", "cow", "car", "cup"]
    embeddings = TextEmbeddings(("cat", "dog", "cow", "car", "cup", "sky", "sea"), text)
    settings = dict(text_embeddings=embeddings, short_side=0, crop=0, logit_scale=30.0, threshold=0.2)
    method = "CLIPer:background=True,score_threshold=0.1"
    segmenter = Segmenter(method, tiny_backbone, **settings)
    image = (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255).byte()
    result = segmenter(image, names, scores=True)
    query_class, rows = (0, 0, 1, 2, 3, 4, 5), [5, 6, 0, 1, 2, 3, 4]
    images = normalise(image, tiny_backbone)[None]
    expected = maps("background=True", tiny_backbone, images, text[rows], query_class, logit_scale=30.0)
    whole = STITCHER.maps(expected, plan(64, 96, 0, 0, 16), (64, 96))
    decoder = ImageLevelDecoder(query_class, 0.2, 0.1, False, True)
    assert torch.equal(torch.from_numpy(result.labels), decoder.labels(whole))
    torch.testing.assert_close(torch.from_numpy(result.scores), decoder.probabilities(whole))
    with pytest.raises(UserError, match="area_threshold"):
        Segmenter(method, tiny_backbone, area_threshold=0.1, **settings)(image, names)


def test_segmenter_embeds_the_words(golden, tiny_backbone):
    text, names = golden("inputs")["text"], ["cat", "dog", "cow", "car", "cup"]
    image = (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255).byte()
    settings = dict(short_side=0, crop=0, logit_scale=100.0)
    segmenter = Segmenter(
        "CLIPer:words=sky;sea", tiny_backbone, text_embeddings=TextEmbeddings((*names, "sky", "sea"), text), **settings
    )
    queries = segmenter.queries(Vocabulary.of(names))
    assert (queries.text.shape, queries.for_scores.shape) == ((5, 48), (8, 48))
    images = normalise(image, tiny_backbone)[None]
    expected = maps("background=True", tiny_backbone, images, text)[:, :5]
    view = segmenter.view(image)
    assert_near(segmenter.look([view], queries)[0].scores, expected)
    without = Segmenter("CLIPer", tiny_backbone, text_embeddings=TextEmbeddings(tuple(names), text[:5]), **settings)
    assert (without(image, names, scores=True).scores != segmenter(image, names, scores=True).scores).any()
    segmenter.embedder.embeddings = TextEmbeddings(tuple(names), text[:5])
    with pytest.raises(UserError, match=r"no row for sky, sea, .* set its option words=None"):
        segmenter.queries(Vocabulary.of(names))
    named = Segmenter("CLIPer:words=background", tiny_backbone, templates=["{}"], **settings)  # by the text tower
    both = named.queries(Vocabulary.of(["cat", "background"]))
    assert torch.equal(both.for_scores[1], both.for_scores[2])
    assert named(image, names).labels.shape == (64, 96)


def test_its_resize(tiny_backbone):
    """Pillow's bicubic, the short side to the short side, both to the nearest multiple of the patch, 16."""
    image = torch.from_numpy(picture(75, 101)).permute(2, 0, 1)
    segmenter = Segmenter("CLIPer", tiny_backbone, short_side=120, crop=0, resize="pil")
    resized = segmenter.view(image).image
    assert resized.shape == (3, 128, 160)  # 120, 161.6
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((160, 128), Image.Resampling.BICUBIC)
    assert torch.equal(resized, torch.from_numpy(np.array(pil)).permute(2, 0, 1))
    labels = segmenter(image, ["cat", "dog"]).labels
    assert labels.shape == (75, 101)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc21", "city_scapes"])
def test_through_eval(name, tiny_folder, tmp_path, monkeypatch):
    make_benchmark(tmp_path, name)
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main([
        str(CONFIGS / f"cliper/cfg_{name}.py"), "--backbone", f"local-dir:{tiny_folder}", "--work-dir", "run",
        "--cfg-options", "test_dataloader.num_workers=0", "model.templates=single", "model.device=cpu",
        "model.short_side=64", "model.stride=64",
        f"model.crop={0 if name == 'voc21' else 64}", "model.threshold=0.01",
    ])  # fmt: skip
    result = read_result("run/result.json")
    assert (result["protocol"], result["dataset"], result["images"]) == ("cliper", name, 3)
    assert result["method"].startswith("CLIPer:")
    assert 0 <= result["mIoU"] <= 100


# The protocol


@pytest.mark.parametrize("name", PROTOCOL)
def test_config(name, tiny_backbone):
    config = Config.fromfile(CONFIGS / f"cliper/cfg_{name}.py", import_custom_modules=False)
    side, crop, logit_scale, threshold, score, attention, templates, window, background, plain, diffusion = PROTOCOL[
        name
    ]
    model, benchmark = config.model, config.benchmark
    assert (model.short_side, model.crop, model.logit_scale, model.threshold) == (side, crop, logit_scale, threshold)
    assert crop == 0 or model.stride == crop
    assert model.area_threshold == 0
    assert len(load_templates(model.templates)) == templates
    method = create_method(model.method, tiny_backbone)
    assert (method.score_threshold, method.attention_threshold) == (score, attention)
    assert (method.window, method.background, method.normalise) == (window, background, name == "voc21")
    assert (method.select, method.iterate, method.refine) == (-1, True, None)
    assert (len(method.words), model.resize) == (WORDS.get(name, 0), "pil")
    assert (benchmark.protocol, benchmark.name) == ("cliper", name)
    (first, second) = benchmark.published["ViT-B-16"].items()
    assert first == (model.method, plain)
    assert second[1] == diffusion
    assert METHODS.parse(second[0]).options == METHODS.parse(first[0]).options | {"refine": "sd21"}
    assert {first[0], second[0]} <= set(benchmark.source)
    vocabulary = load_vocabulary(model.vocabulary)
    assert len(vocabulary) == CLASSES.get(name, 19)
    assert background == (len(vocabulary.names[0]) > 1 or vocabulary.classes[0] == "background")


def test_templates_of_the_protocol():
    templates = load_templates("car15")
    assert len(set(templates)) == 15
    assert templates[0] == "a clean origami {}."
    assert "There is a medium {} in the scene." in templates
    assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ("attention=q-q", "one of fused, qk, qq, kk, vv, identity, not 'q-q'"),
        ("select=6", "one of 6 layers, not 6"),
        ("select=-7", "one of 6 layers"),
        ("window=100", "multiple of the patch, 16, not 100"),
        ("iterate=no", "iterate must be True or False"),
        ("background=True,words=sky", "words are for sets without background"),
        ("background=2", "background must be True or False"),
        ("attention_threshold=much", "much"),
        ("layers=3", "its options are attention, attention_threshold, background, combine, iterate"),
    ],
)
def test_wrong_options_are_refused(option, match, tiny_backbone):
    with pytest.raises(UserError, match=match):
        create_method(f"CLIPer:{option}", tiny_backbone)
