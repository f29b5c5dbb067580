"""Masks from files and from tiny random networks of transformers' own classes."""

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, picture
from PIL import Image
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    SwinConfig,
    pipeline,
)

from clearclip.errors import UserError
from clearclip.masks import MASKS, MaskProvider, Masks, load_masks
from clearclip.masks.sam2 import SAM2, paint, stability
from clearclip.paths import cache_dir

SAM = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [128, 128],
            "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [8, 4, 4, 4],
            "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
        },
        "backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 8},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}  # fmt: skip


def save_random(model, processor, folder, spread=0.1):
    """Weights that are not near 0, as those of an untrained network are, so that masks differ."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), spread)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory):
    """A folder of a tiny SAM 2 that sees 128 pixels and gives masks of 32."""
    size = {"height": 128, "width": 128}
    processor = Sam2ImageProcessor(size=size, mask_size={"height": 32, "width": 32})
    return save_random(Sam2Model(Sam2Config(**SAM)), processor, tmp_path_factory.mktemp("sam"), 0.2)


@pytest.fixture(scope="session")
def tiny_eomt(tmp_path_factory):
    config = EomtConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16, num_blocks=1,
        num_queries=6, num_register_tokens=1, id2label={index: str(index) for index in range(4)},
    )  # fmt: skip
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_split_image=False, do_pad=True)
    return save_random(EomtForUniversalSegmentation(config), processor, tmp_path_factory.mktemp("eomt"), 0.3)


@pytest.fixture(scope="session")
def tiny_mask2former(tmp_path_factory):
    swin = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
        id2label={index: str(index) for index in range(4)},
    )  # fmt: skip
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=4)
    model = Mask2FormerForUniversalSegmentation(config)
    return save_random(model, processor, tmp_path_factory.mktemp("mask2former"), 0.3)


@pytest.fixture
def view(make):
    """`view(height, width, name=None)`: a picture as a provider sees it."""
    segmenter = make()

    def view(height=64, width=96, name=None, seed=0):
        image = torch.from_numpy(picture(height, width, seed)).permute(2, 0, 1)
        return segmenter.view(image, name=None if name is None else str(name))

    return view


# What masks are


def test_ids_at_another_size_are_the_nearest():
    ids = torch.arange(12, dtype=torch.int32).view(3, 4)
    assert torch.equal(Masks(ids).at((6, 8)), ids.repeat_interleave(2, 0).repeat_interleave(2, 1))
    large = torch.tensor([[2**24 + 1, 7]], dtype=torch.int32)  # no float32 holds it
    assert Masks(large).at((1, 4)).tolist() == [[2**24 + 1, 2**24 + 1, 7, 7]]


def test_regions_of_ids_are_the_masks_but_not_the_rest():
    ids = torch.tensor([[0, 4], [4, 9]])
    assert Masks(ids).regions((2, 2)).tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]
    assert Masks(ids + 1).regions((2, 2)).shape == (3, 2, 2)
    assert Masks(torch.zeros(2, 2)).regions((4, 4)).shape == (0, 4, 4)


def test_masks_survive_their_file(tmp_path):
    ids, levels = torch.arange(6, dtype=torch.int32).view(2, 3), torch.tensor([2, 2, 1, 0])
    masks = Masks(ids, torch.rand(4, 8, 8).half(), levels, torch.rand(4))
    masks.save(tmp_path / "a.npz")
    loaded = Masks.load(tmp_path / "a.npz")
    for name in ("ids", "logits", "level", "iou"):
        assert torch.equal(getattr(loaded, name), getattr(masks, name))
    Masks(masks.ids).save(tmp_path / "b.npz")
    assert Masks.load(tmp_path / "b.npz").logits is None


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"ids": np.zeros(3, np.int32)},
        {"ids": np.full((2, 2), np.nan)},
        {"ids": np.full((2, 2), 0.5)},
        {"ids": np.full((2, 2), -5)},
        {"ids": np.full((2, 2), 1 << 40)},
        {"ids": np.array([[object()]])},
        {"ids": np.zeros((2, 2), np.int32), "logits": np.zeros((2, 4, 4))},
        {"ids": np.zeros((2, 2), np.int32), "logits": np.zeros((2, 4, 4)), "level": np.zeros(2), "iou": np.zeros(3)},
    ],
)
def test_other_files_are_user_errors(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"a\.npz does not hold masks .*an array `ids` \[H, W\]"):
        Masks.load(tmp_path / "a.npz")


# Files


def test_the_folder_of_the_nearest_name_comes_first(view, tmp_path):
    for folder, number in ((".", 1), ("val", 2), ("city/val", 3)):
        (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 96), number, np.uint8)).save(tmp_path / "masks" / folder / "a.png")
    provider = load_masks(f"{tmp_path}/masks")
    for path, number in (("a.jpg", 1), ("train/a.jpg", 1), ("val/a.jpg", 2), ("x/city/val/a.b.jpg", None)):
        seen = view(name=tmp_path / "images" / path)
        if number is None:
            with pytest.raises(UserError, match=r"has neither a\.b\.png nor a\.b\.npz"):
                provider(seen)
        else:
            assert provider(seen).ids.unique().tolist() == [number]


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_pictures_of_all_depths_are_read(mode, view, tmp_path):
    numbers = np.arange(64 * 96).reshape(64, 96) % (2 if mode == "1" else 200)
    numbers += 60_000 * (mode[0] == "I")
    kinds = {"I;16": np.uint16, "1": bool}
    image = Image.fromarray(numbers.astype(kinds.get(mode, np.uint8)))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    image.save(tmp_path / "a.png")
    ids = load_masks(str(tmp_path))(view(name="a.jpg")).ids
    assert ids.dtype == torch.int32
    assert np.array_equal(ids, numbers)


def test_a_picture_is_not_its_own_mask(view, tmp_path):
    Image.fromarray(picture(64, 96)[..., 0]).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="no masks of"):
        load_masks(str(tmp_path))(view(name=tmp_path / "a.png"))


def test_files_that_do_not_fit_are_user_errors(view, tmp_path):
    provider = load_masks(str(tmp_path))
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small\.png are 10x20, their image 64x96; make them of the image as it is"):
        provider(view(name="small.jpg"))
    Image.fromarray(picture(64, 96)).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour\.png are a picture in colour"):
        provider(view(name="colour.jpg"))
    (tmp_path / "damaged.png").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot read masks .*damaged\.png"):
        provider(view(name="damaged.jpg"))
    with pytest.raises(UserError, match="this picture is no file: give its path"):
        provider(view())


def test_identity_follows_the_files(tmp_path):
    before = load_masks(str(tmp_path)).identity
    assert load_masks(str(tmp_path)).identity == before
    Image.fromarray(np.ones((2, 2), np.uint8)).save(tmp_path / "a.png")
    assert load_masks(str(tmp_path)).identity != before


# Networks


def test_masks_are_made_once(view, tiny_sam, monkeypatch):
    """For one view whoever asks, for one picture in all runs; for other settings again."""
    made = []
    original = SAM2.make
    monkeypatch.setattr(SAM2, "make", lambda self, image: made.append(1) or original(self, image))
    text = f"(SAM2:model={tiny_sam},points=4)"
    first, second = load_masks(text), load_masks(text)
    one = view()
    assert second(one) is first(one)
    again = load_masks(text)
    assert torch.equal(again(view()).ids, first(one).ids)
    assert "network" not in vars(again)
    assert len(made) == 1
    load_masks(f"(SAM2:model={tiny_sam},points=5)")(view())
    first(view(seed=1))
    assert len(made) == 3


def test_a_damaged_entry_is_made_anew(view, tiny_sam, caplog):
    provider = load_masks(f"(SAM2:model={tiny_sam},points=3,levels=3)")
    expected = provider(view())
    (entry,) = (cache_dir() / "masks").iterdir()
    entry.write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        actual = provider(view())
    assert "making masks anew" in caplog.text
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(Masks.load(entry).ids, expected.ids)


@pytest.mark.parametrize("overlap", [0.7, 1.0])
def test_sam_proposes_what_transformers_generates(overlap, tiny_sam):
    """The library's own pipeline, for a picture of the masks' own size, where both filter at one resolution."""
    image = torch.from_numpy(picture(32, 32)).permute(2, 0, 1)
    provider = load_masks(f"(SAM2.1:model={tiny_sam},points=6,iou=0.4,stability=0.305,overlap={overlap})")
    with torch.inference_mode():
        logits, level, iou = provider.propose(image)
    generate = pipeline("mask-generation", model=str(tiny_sam), device="cpu")
    expected = generate(
        Image.fromarray(picture(32, 32)), points_per_crop=6, points_per_batch=64, pred_iou_thresh=0.4,
        stability_score_thresh=0.305, crops_nms_thresh=overlap,
    )  # fmt: skip
    assert (len(logits) == 1) if overlap < 1 else (10 < len(logits) < 6 * 6 * 3)
    assert_near(iou, torch.as_tensor(expected["scores"]))
    assert torch.equal(logits > 0, torch.stack([torch.as_tensor(mask) for mask in expected["masks"]]))
    assert set(level.tolist()) <= {0, 1, 2}


def test_sam_gives_ids_and_proposals(view, tiny_sam):
    single = load_masks(f"(SAM2:model={tiny_sam},points=4,iou=-9,stability=0)")(view(50, 70))
    assert single.ids.shape == (50, 70)
    assert single.logits is None
    assert single.ids.max() >= 1
    three = load_masks(f"(SAM2.1:model={tiny_sam},points=4,iou=-9,stability=0)")(view(50, 70))
    assert three.logits.shape[1:] == (32, 32)
    assert three.logits.min() >= 0
    assert three.logits.max() <= 3
    assert three.regions((50, 70)).shape[1:] == (50, 70)


def test_sam_that_is_sure_of_nothing_gives_none(view, tiny_sam):
    masks = load_masks(f"(SAM2.1:model={tiny_sam},points=2,iou=99)")(view(50, 70))
    assert not masks.ids.any()
    assert masks.regions((50, 70)).shape == (0, 50, 70)


def test_the_larger_cover_the_smaller():
    logits = torch.full((3, 8, 8), -1.0)
    logits[0, 2:6, 2:6], logits[1, 0:6, 0:6], logits[2, 7, 7] = 1.0, 1.0, 1.0
    ids = paint(logits, (8, 8))
    assert ids[0, 0] == ids[3, 3] == 3  # the numbers go by size
    assert ids[7, 7] == 1
    assert ids[7, 0] == 0


def test_stability_is_the_overlap_of_a_small_and_a_large_mask():
    logits = torch.tensor([[[3.0, 0.5], [-0.5, -2.0]], [[-3.0, -3.0], [-3.0, -3.0]]])
    assert stability(logits).tolist() == [pytest.approx(1 / 3), 0]


@pytest.mark.parametrize(("name", "folder"), [("EoMT", "tiny_eomt"), ("Mask2Former", "tiny_mask2former")])
def test_panoptic_segments(name, folder, view, request):
    folder = request.getfixturevalue(folder)
    provider = load_masks(f"({name}:model={folder},sure=0.1)")
    seen = view(50, 70)
    ids = provider(seen).ids
    assert ids.shape == (50, 70)
    model, processor = provider.network["model"], provider.network["processor"]
    with torch.inference_mode():
        inputs = processor(images=Image.fromarray(picture(50, 70)), return_tensors="pt")
        out = model(**{key: inputs[key] for key in ("pixel_values", "pixel_mask") if key in inputs})
        (expected,) = processor.post_process_panoptic_segmentation(out, target_sizes=[(50, 70)], threshold=0.1)
    segments = expected["segments_info"]
    assert len(segments) >= 1
    for number, segment in enumerate(segments, 1):
        assert torch.equal(ids == number, expected["segmentation"] == segment["id"])
    assert ids.max() <= len(segments)


def test_defaults_are_those_of_the_papers():
    options = {entry.name: entry.options for entry in MASKS.entries()}
    assert options["SAM2"] | {"model": ""} == dict(model="", points=8, levels=1, iou=0.4, stability=0.4, overlap=0.7)
    assert options["SAM2.1"] | {"model": ""} == dict(model="", points=16, levels=3, iou=0.6, stability=0.6, overlap=0.9)
    assert options["EoMT"]["model"] == "tue-mps/coco_panoptic_eomt_large_640"
    assert options["Mask2Former"]["model"] == "facebook/mask2former-swin-large-coco-panoptic"


@pytest.mark.parametrize("name", ["SAM2", "SAM2.1", "EoMT", "Mask2Former"])
def test_models_that_cannot_be_had_are_named(name, tmp_path):
    with pytest.raises(UserError, match=r"which is to make masks, cannot be had .*model=PATH.*masks=PATH"):
        load_masks(name)
    with pytest.raises(UserError, match=f"the model {tmp_path}, which"):
        load_masks(f"({name}:model={tmp_path})")


def test_a_model_without_weights_is_named(tiny_sam, tmp_path, view):
    for file in tiny_sam.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=f"the model {tmp_path}, which is to make masks, cannot be had"):
        load_masks(f"(SAM2:model={tmp_path})")(view())


def test_no_code_of_a_model_s_folder_is_run(tiny_sam, tmp_path, view):
    victim, folder = tmp_path / "victim", tmp_path / "model"
    victim.write_text("untouched")
    folder.mkdir()
    for file in tiny_sam.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())

    class Evil:
        def __reduce__(self):
            return open, (str(victim), "w")

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="which is to make masks, cannot be had"):
        load_masks(f"(SAM2:model={folder})")(view())
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(victim)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UserError, match="which is to make masks, cannot be had"):
        load_masks(f"(SAM2:model={folder})")
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", r"masks 'nowhere' are no folder and none of EoMT, Mask2Former, SAM2, SAM2\.1; give the path"),
        ("(SAM2:points=0)", "points 0 must be 1 or more, levels 1 1 or 3"),
        ("(SAM2:levels=2)", "points 8 must be 1 or more, levels 2 1 or 3"),
        ("(SAM2:crops=1)", "has no option crops; its options are iou, levels, model"),
    ],
)
def test_wrong_masks_are_user_errors(text, message):
    with pytest.raises(UserError, match=message):
        load_masks(text)


def test_a_provider_of_one_s_own(view):
    class Halves(MaskProvider):
        identity = "halves"

        def find(self, view):
            ids = torch.ones(view.original.shape[1:], dtype=torch.int32)
            ids[:, ids.shape[1] // 2 :] = 2
            return Masks(ids)

    provider = load_masks(Halves())
    assert provider(view(4, 6)).ids[0].tolist() == [1, 1, 1, 2, 2, 2]
    assert F.one_hot(provider(view(4, 6)).ids.long())[..., 1:].sum() == 24
