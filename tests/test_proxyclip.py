import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import assert_near, features, tiny_vit
from PIL import Image
from safetensors.torch import save_file

import clearclip
import eval as program
from clearclip import vision
from clearclip.backbones import resize_position_embedding
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.proxyclip import ProxyCLIP
from clearclip.vision import VISION, TimmViT, load_vision_model

CPU = torch.device("cpu")
SMALL = dict(img_size=160, depth=2, embed_dim=64, num_heads=4)
REGISTERS = SMALL | dict(reg_tokens=4, no_embed_class=True)  # as DINOv2's, the class token's position in the token


def proxy(backbone, external, images, **options):
    with torch.inference_mode():
        return ProxyCLIP(backbone, vfm=lambda _: external, **options).features(backbone.trunk(images))


def test_golden(golden, tiny_backbone):
    images, external, expected = golden("inputs")["image_64x64"], golden("inputs")["vfm_64x64"], golden("proxyclip")
    actual = proxy(tiny_backbone, external, images).flatten(1, 2)
    assert_near(actual[0], expected["window0"])
    assert_near(actual[1], expected["window1"])
    actual = proxy(tiny_backbone, external, images, beta=1, gamma=2).flatten(1, 2)
    assert_near(actual[0], expected["window0/beta1_gamma2"])


def test_windows_of_a_batch_do_not_meet(golden, tiny_backbone):
    """The published code averages the similarity over the batch; the published numbers come from batches of one."""
    images, external = golden("inputs")["image_64x64"], golden("inputs")["vfm_64x64"].clone()
    external[1] += 10  # all its patches alike: another mean similarity
    together = proxy(tiny_backbone, external, images)
    alone = torch.cat([proxy(tiny_backbone, e[None], i[None]) for e, i in zip(external, images)])
    assert_near(together, alone, 1e-5)


def test_values_are_resized_to_the_external_grid(golden, tiny_backbone):
    images, block = golden("inputs")["image_64x96"], tiny_backbone.blocks[-1]
    unlike = torch.eye(55).reshape(1, 55, 5, 11).expand(2, -1, -1, -1)  # no patch is like another: it sees itself
    actual = proxy(tiny_backbone, unlike, images)
    with torch.inference_mode():
        v = tiny_backbone.trunk(images).qkv()[2]
        local = block.attention_output(v)[:, 1:].transpose(1, 2).unflatten(2, (4, 6))  # [2, 64, 4, 6]
        resized = F.interpolate(local, size=(5, 11), mode="bilinear").permute(0, 2, 3, 1)
        assert_near(actual, tiny_backbone.project(resized), 1e-5)


def test_uniform_window_has_scores(golden, tiny_backbone):
    """Where all patches look alike, all similarities lie below the shifted mean, and none may be left."""
    images = golden("inputs")["image_64x64"]
    flat = proxy(tiny_backbone, torch.ones(2, 8, 4, 4), images)
    assert flat.isfinite().all()
    assert_near(flat, features("MaskCLIP", tiny_backbone, images))  # each patch keeps itself


def test_attention_excludes_unlike_patches(tiny_backbone):
    external = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[:, None]  # [2, 1, 4], two pairs
    weights = ProxyCLIP(tiny_backbone, vfm=lambda _: external).attention(external)
    assert torch.equal(weights, torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) / 2)


# The vision models.


@pytest.mark.parametrize("options", [SMALL, REGISTERS])
def test_native_grid_is_timm_s_own_forward(options):
    model = tiny_vit(**options)
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        expected = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(TimmViT(model, CPU, torch.float32)(images), expected)


@pytest.mark.parametrize(("options", "mode"), [(SMALL, "offset"), (REGISTERS, "antialias")])
def test_other_grids_follow_the_authors_resampling(options, mode):
    """DINO and DINOv2 resample with an offset of 0.1, DINOv2 with registers antialiased."""
    model = tiny_vit(**options)
    images = torch.randn(1, 3, 96, 144)
    class_rows = 0 if options is REGISTERS else 1
    resized = resize_position_embedding(F.pad(model.pos_embed[0], (0, 0, 1 - class_rows, 0)), (6, 9), mode)
    sized = tiny_vit(**options | dict(img_size=(96, 144)))
    sized.load_state_dict(model.state_dict() | {"pos_embed": resized[None, 1 - class_rows :]})
    with torch.inference_mode():
        expected = sized.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(TimmViT(model, CPU, torch.float32)(images), expected)


def test_rotary_models_are_left_to_timm():
    model = tiny_vit("vit_tiny_patch16_dinov3_qkvb", depth=2, embed_dim=64, num_heads=4)
    with torch.inference_mode():
        assert TimmViT(model, CPU, torch.float32)(torch.randn(1, 3, 64, 96)).shape == (1, 64, 4, 6)


@pytest.mark.parametrize(("size", "grid"), [((167, 170), (10, 11)), ((5, 24), (1, 2)), ((160, 144), (10, 9))])
def test_sizes_go_to_the_nearest_multiple_of_the_patch(size, grid):
    model = TimmViT(tiny_vit("test_vit"), CPU, torch.float32)
    images = torch.randn(1, 3, *size)
    resized = F.interpolate(images, size=(16 * grid[0], 16 * grid[1]), mode="bilinear")
    with torch.inference_mode():
        assert model(images).shape[2:] == grid
        torch.testing.assert_close(model(images), model(resized))


def test_images_change_normalisation(vit_weights, golden, tiny_backbone):
    rgb = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    model = load_vision_model("test_vit", vit_weights)
    as_clip, own = (
        (rgb - torch.tensor(x.mean)[:, None, None]) / torch.tensor(x.std)[:, None, None] for x in (tiny_backbone, model)
    )
    method = create_method(f"ProxyCLIP:vfm=test_vit,vfm_weights={vit_weights}", tiny_backbone)
    with torch.inference_mode():
        torch.testing.assert_close(method.external(as_clip), model(own), atol=1e-4, rtol=1e-4)


def test_names_are_timm_s():
    for entry in VISION.entries():
        known = entry.preset["architecture"]
        assert timm.is_model(known), entry.name
        assert timm.get_pretrained_cfg(known).tag == known.partition(".")[2]


@pytest.mark.parametrize("options", [SMALL, REGISTERS])
def test_dinov2_s_own_checkpoints_load(options, tmp_path, monkeypatch):
    """They have a mask token; registers go by another name and leave the class token its position."""
    model = tiny_vit(**options)
    own = model.state_dict() | {"mask_token": torch.zeros(1, 64)}
    if options is REGISTERS:
        position = torch.randn(1, 1, 64)
        own["register_tokens"] = own.pop("reg_token")
        own["pos_embed"] = torch.cat([position, own["pos_embed"]], dim=1)
        own["cls_token"] = own["cls_token"] - position
    torch.save({"model": own}, tmp_path / "own.pth")
    monkeypatch.setattr(
        vision, "_create", lambda *names: timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    )
    loaded = load_vision_model("small", tmp_path / "own.pth").model.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded[key], value)


def test_half_precision_weights_load(vit_weights, tmp_path):
    half = {key: value.half() for key, value in tiny_vit("test_vit").state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    model = load_vision_model("test_vit", tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_are_found(vit_weights, monkeypatch, tiny_backbone):
    expected = load_vision_model("test_vit", vit_weights).state_dict()

    def same(model):
        return all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    assert same(load_vision_model(str(vit_weights)))  # the file is called as its model
    monkeypatch.setenv("CLEARCLIP_WEIGHTS", f"/nowhere{os.pathsep}{vit_weights.parent}")
    assert same(load_vision_model("test_vit"))


def test_hub_cache_is_used(vit_weights, monkeypatch, tmp_path):
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    vit_weights.rename(repository / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_vision_model("test_vit").patch_size == (16, 16)


def test_no_weights_is_a_user_error(monkeypatch, tmp_path, tiny_backbone):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"test_vit \(timm/test_vit.r160_in1k\) could not be .*vfm_weights=PATH"):
        create_method("ProxyCLIP:vfm=test_vit", tiny_backbone)


@pytest.mark.parametrize("name", ["dino_vitb9", "resnet18", "vit_base_patch8_224.nonsense"])
def test_unknown_model_is_a_user_error(name, tiny_backbone):
    with pytest.raises(UserError, match=f"unknown vision model '{name}'; use one of dino_vits8, .*dinov2_vitl14_reg"):
        create_method(f"ProxyCLIP:vfm={name}", tiny_backbone)


def test_bad_files_are_user_errors(vit_weights, tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt does not exist"):
        load_vision_model("test_vit", tmp_path / "absent.pt")
    with pytest.raises(UserError, match=r"test_vit\.safetensors does not hold a test_vit2: .*reg_token"):
        load_vision_model("test_vit2", vit_weights)
    with pytest.raises(UserError, match="unknown vision model 'mine'"):
        load_vision_model(str(tmp_path / "mine.safetensors"))
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"damaged\.safetensors cannot be read"):
        load_vision_model("test_vit", tmp_path / "damaged.safetensors")


@pytest.mark.slow
def test_through_eval(vit_weights, tmp_path, tiny_folder, monkeypatch):
    random = np.random.default_rng(0)
    for folder, shape, top in (("images", (40, 60, 3), 256), ("labels", (40, 60), 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(random.integers(0, top, shape, np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    base = Path(clearclip.__file__).parents[1] / "configs/base.py"
    (tmp_path / "cfg_mine.py").write_text(f"""
_base_ = "{base}"
model = dict(vocabulary="{tmp_path}/classes.txt", templates="single", short_side=64, crop=64, stride=32)
test_dataloader = dict(
    num_workers=0,
    dataset=dict(
        type="BaseSegDataset", metainfo=dict(classes=("cat", "dog")), data_root="{tmp_path}", img_suffix=".png",
        seg_map_suffix=".png", data_prefix=dict(img_path="images", seg_map_path="labels"),
    ),
)
benchmark = dict(name="mine")
""")
    monkeypatch.chdir(tmp_path)
    method = f"ProxyCLIP:vfm=test_vit,vfm_weights={vit_weights}"
    arguments = ["cfg_mine.py", "--backbone", f"local-dir:{tiny_folder}", "--method", method, "--work-dir", "out"]
    program.main(arguments)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["method"] == method
    assert 0 <= result["mIoU"] <= 100
