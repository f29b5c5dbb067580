"""OpenCLIP's models with image towers of timm's, and its own that pool otherwise, against the library's own forward."""

import json
import re

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import assert_near
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from clearclip.backbones import list_backbones, load_backbone
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings

SIDE = 64
SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 2, "img_size": SIDE, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 300, "width": 32, "heads": 2, "layers": 2}
EVA02 = dict(
    qkv_fused=False, mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True,
    ref_feat_shape=(4, 4), global_pool="token",
)  # fmt: skip
PE = dict(
    mlp_ratio=4.0, global_pool="map", attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
    ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=2, attn_pool_mlp_ratio=4,
)  # fmt: skip
TOWERS = {
    "test_siglip": (VisionTransformer, dict(class_token=False, global_pool="map")),
    "test_mobileclip": (VisionTransformer, dict(pre_norm=True, init_values=0.5)),
    "test_registers": (VisionTransformer, dict(reg_tokens=2, no_embed_class=True, init_values=0.5)),
    "test_average": (VisionTransformer, dict(class_token=False, global_pool="avg", fc_norm=True)),
    "test_eva01": (Eva, dict(qkv_fused=True, global_pool="token")),
    "test_eva02": (Eva, EVA02),
    "test_eva02e": (Eva, dict(use_post_norm=True, global_pool="token")),
    "test_pe": (Eva, PE),
    "test_pe_without_class": (Eva, {**PE, "class_token": False}),
}
SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
MODELS = {  # OpenCLIP's configurations
    "SigLIP": ({"timm_model_name": "test_siglip", "timm_pool": "map", "timm_proj": "none"}, SIGLIP_TEXT),
    "MobileCLIP2": ({"timm_model_name": "test_mobileclip", "timm_pool": "token", "timm_proj": None}, {}),
    "registers": ({"timm_model_name": "test_registers", "timm_pool": "token", "timm_proj": None}, {}),
    "average": ({"timm_model_name": "test_average", "timm_pool": "avg", "timm_proj": None}, {}),
    "EVA01": ({"timm_model_name": "test_eva01", "timm_pool": "token", "timm_proj": None}, {}),
    "EVA02": ({"timm_model_name": "test_eva02", "timm_pool": "token", "timm_proj": None}, {}),
    "EVA02-E": ({"timm_model_name": "test_eva02e", "timm_pool": "token", "timm_proj": None}, {}),
    "PE-Core": ({"timm_model_name": "test_pe", "timm_pool": "map", "timm_proj": None}, {}),
    "PE-Core-T": ({"timm_model_name": "test_pe_without_class", "timm_pool": "map", "timm_proj": None}, {}),
    "CLIPA": (
        {
            "image_size": SIDE, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32, "no_ln_pre": True,
            "pool_type": "avg", "final_ln_after_pool": True,
        },
        {"no_causal_mask": True, "pool_type": "last"},
    ),
    "MetaCLIP2": (
        {"image_size": SIDE, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
        {"pool_type": "eos", "eos_id": 2},
    ),
}  # fmt: skip
HAS_CLASS_TOKEN = {"SigLIP": False, "average": False, "PE-Core-T": False}


def tower(kind, options):
    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **overrides):
        assert not pretrained
        return kind(**{**SMALL, **options, **overrides})

    return build


@pytest.fixture(scope="module", autouse=True)
def towers():
    """The tiny towers, known to timm by name."""
    from timm.models import _registry

    known = dict(_registry._model_entrypoints)
    _registry._model_entrypoints |= {name: tower(*spec) for name, spec in TOWERS.items()}
    yield
    _registry._model_entrypoints.clear()
    _registry._model_entrypoints.update(known)


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = re.search(r"norm.*weight|ln_.*weight|gamma|ls\d", name)
        parameter.data = 1 + 0.2 * noise if scale else 0.15 * noise
    return model.eval()


def saved(name, folder):
    """OpenCLIP's own model, and a folder of it."""
    vision, text = MODELS[name]
    config = {
        "embed_dim": 64 if vision.get("timm_proj") == "none" else 24,
        "vision_cfg": vision,
        "text_cfg": TEXT | text,
    }
    model = randomise(
        open_clip.CustomTextCLIP(**{**config, "vision_cfg": {"image_size": SIDE, **vision}}, init_logit_bias=-10)
    )
    folder.mkdir(exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    model = saved(request.param, folder)
    return model, load_backbone(f"local-dir:{folder}", device="cpu", precision="fp32"), request.param


IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
GENERATOR = torch.Generator().manual_seed(5)


@torch.inference_mode()
def test_the_blocks_as_trained_give_the_librarys_tokens_and_its_pooled_output(pair):
    model, backbone, name = pair
    trunk = backbone.trunk(IMAGES)
    assert backbone.prefix_tokens == {"registers": 3}.get(name, int(HAS_CLASS_TOKEN.get(name, True)))
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.5,) * 3)
    if hasattr(model.visual, "trunk"):
        expected = model.visual.trunk.forward_features(IMAGES)
        assert_near(backbone.final_norm(trunk.output()), expected, 1e-5)
    else:
        model.visual.output_tokens = True
        final = torch.nn.Identity() if model.visual.final_ln_after_pool else backbone.final_norm
        assert_near(final(trunk.output())[:, 1:], model.visual(IMAGES)[1], 1e-5)
        model.visual.output_tokens = False
    assert_near(pooled(backbone, trunk.output()), model.encode_image(IMAGES), 1e-5)


def pooled(backbone, tokens):
    """What the library's own head makes of tokens [B, P+N, D] of the last block's output."""
    if hasattr(backbone.visual, "forward_head"):
        return backbone.visual.forward_head(backbone.final_norm(tokens))
    return backbone.head(backbone.visual._pool(tokens)[0])


def test_the_logit_scale_and_bias_are_the_checkpoints(pair):
    model, backbone, _ = pair
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert backbone.logit_bias == pytest.approx(model.logit_bias.item())


def test_one_name_has_the_probability_that_the_model_was_trained_to_give(pair):
    """σ(scale · cos + bias); of several names the bias cancels."""
    _, backbone, _ = pair
    text = TextEmbeddings(("a", "b"), F.normalize(torch.randn(2, backbone.dim, generator=GENERATOR), dim=-1))
    options = dict(text_embeddings=text, short_side=SIDE, crop=SIDE, stride=SIDE)
    image = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=GENERATOR)
    plain, trained = (Segmenter("CLIP", backbone, logit_scale=scale, **options) for scale in (50.0, "model"))
    assert trained.logit_scale == backbone.logit_scale
    similarity = torch.from_numpy(plain(image, ["a"], scores=True).scores)
    alone = torch.from_numpy(trained(image, ["a"], scores=True).scores)
    assert_near(alone, (backbone.logit_scale * similarity + backbone.logit_bias).sigmoid(), 1e-5)
    both = trained(image, ["a", "b"], scores=True)
    expected = (backbone.logit_scale * torch.from_numpy(both.similarity)).softmax(dim=0)
    assert_near(torch.from_numpy(both.scores), expected, 1e-5)


@torch.inference_mode()
def test_text_is_the_librarys(pair):
    model, backbone, name = pair
    tokens = torch.randint(3, 299, (3, 16), generator=torch.Generator().manual_seed(2))
    tokens[:, 9] = 299  # the end of the text: the largest id
    if name == "MetaCLIP2":
        tokens[:, 9] = 2
    assert_near(backbone.encode_text(tokens), model.encode_text(tokens), 1e-5)


@torch.inference_mode()
def test_an_image_of_another_shape(pair):
    model, backbone, name = pair
    if not hasattr(model.visual, "trunk"):
        pytest.skip("OpenCLIP's own ViTs take images of one size")
    vision = MODELS[name][0]
    flexible = timm.create_model(
        vision["timm_model_name"], num_classes=model.visual.trunk.num_classes, global_pool=vision["timm_pool"],
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    flexible.load_state_dict(model.visual.trunk.state_dict())
    images = torch.randn(1, 3, 48, 96, generator=torch.Generator().manual_seed(3))
    trunk = backbone.trunk(images).repositioned("antialias")  # timm's own resampling
    assert_near(backbone.final_norm(trunk.output()), flexible.forward_features(images), 1e-5)


@torch.inference_mode()
def test_every_method_of_one_last_block_runs_and_clip_is_the_trained_output(pair):
    _, backbone, _ = pair
    trunk = backbone.trunk(IMAGES)
    for name in ("MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP", "PEARL", "GEM", "SC-CLIP", "ResCLIP", "CLIPSeg"):
        features = create_method(name, backbone).features(trunk)
        assert features.shape == (2, 4, 4, backbone.dim)
        assert features.isfinite().all()
    assert_near(create_method("CLIP", backbone).features(trunk), trunk.project(trunk.output()[:, trunk.prefix :]), 1e-5)


@torch.inference_mode()
def test_a_map_head_read_for_one_patch_is_the_head_with_all_its_weight_there(tmp_path):
    """Where all patches are the same, attention pooling has nothing to choose."""
    model = saved("SigLIP", tmp_path / "model")
    backbone = load_backbone(f"local-dir:{tmp_path / 'model'}", device="cpu", precision="fp32")
    pool = model.visual.trunk.attn_pool
    pool.mlp = None
    patch = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(4))
    assert_near(backbone.head(patch)[:, 0], pool(patch.expand(-1, 16, -1)), 1e-5)


def test_towers_that_are_no_vits_are_refused_by_name_before_any_download():
    for arch, reason in {
        "convnext_base": "layers of its own", "ViTamin-B": "layers of its own", "MobileCLIP-S1": "no plain ViT",
        "RN50": "ResNet", "coca_ViT-B-32": "attention",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"backbone {arch} is not supported.*{reason}"):
            load_backbone(arch, "none")


def test_weights_that_cannot_be_had_are_what_the_message_is_about(monkeypatch):
    for arch, tags in list_backbones():
        if arch.startswith(("ViT-", "EVA", "PE", "Mobile")):
            with pytest.raises(UserError, match=re.escape(arch)) as caught:
                load_backbone(f"{arch}:{tags[-1]}")
            assert "could not be downloaded" in str(caught.value), arch


def test_each_listed_architecture_is_one_of_openclip_with_these_weights():
    for arch, tags in list_backbones():
        if arch.startswith(("EVA", "PE", "Mobile")) or "SigLIP" in arch:
            assert set(tags) <= set(open_clip.list_pretrained_tags_by_model(arch)), arch


def test_a_model_of_the_hub(tmp_path, monkeypatch):
    from clearclip import weights

    saved("SigLIP", tmp_path / "model")
    asked = []

    def hub_file(repository, *names):
        asked.append((repository, names))
        return tmp_path / "model" / names[0]

    monkeypatch.setattr(weights, "hub_file", hub_file)
    backbone = load_backbone("hf-hub:somebody/some-model", device="cpu", precision="fp32")
    assert (backbone.name, backbone.prefix_tokens) == ("somebody-some-model", 0)
    assert {repository for repository, _ in asked} == {"somebody/some-model"}
    with pytest.raises(UserError, match=r"tokenizer of somebody-some-model could not be downloaded"):
        _ = backbone.tokenizer


def test_a_model_of_the_hub_that_cannot_be_had():
    with pytest.raises(UserError, match=r"weights of hf-hub:somebody/nothing could not be downloaded.*local-dir"):
        load_backbone("hf-hub:somebody/nothing")
