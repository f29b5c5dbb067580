"""TIPSv2 as a backbone: tiny random networks, against transformers' own model and the architecture written out."""

import json
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import assert_near
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from transformers import Tipsv2Config, Tipsv2Model, Tipsv2Tokenizer

from clearclip import weights
from clearclip.backbones import load_backbone, tips
from clearclip.errors import UserError
from clearclip.methods import create_method, list_methods
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings, embed_names, encode_prompts
from clearclip.vocabulary import TEMPLATES

SIDE, WIDTH, HEADS = 56, 64, 2
VISION = dict(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS, image_size=SIDE, patch_size=14)
TEXT = dict(
    vocab_size=90, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
TOWER = dict(
    img_size=SIDE, patch_size=14, embed_dim=WIDTH, depth=3, num_heads=HEADS, init_values=1.0, reg_tokens=1,
    no_embed_class=True,
)  # fmt: skip
GATED = dict(mlp_layer=SwiGLUPacked, mlp_ratio=2 * 176 / WIDTH, act_layer=torch.nn.SiLU)  # DINOv2's rounding of 2/3
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,"


def tower(options):
    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **overrides):
        assert not pretrained
        return VisionTransformer(**{**TOWER, **options, **overrides})

    return build


@pytest.fixture(scope="module", autouse=True)
def towers():
    """timm and our family know the tiny towers."""
    from timm.models import _registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registry, "_model_entrypoints", dict(_registry._model_entrypoints))
        _registry._model_entrypoints |= {"test_tips": tower({}), "test_tips_gated": tower(GATED)}
        patch.setattr(tips, "NETWORKS", tips.NETWORKS | {"TIPSv2-B-14": "test_tips", "TIPSv2-g-14": "test_tips_gated"})
        yield


def save_tokenizer(folder):
    vocabulary = {piece: index for index, piece in enumerate(["<pad>", "<unk>", *LETTERS, "▁a", "ca", "cat", "▁cat"])}
    merges = [("▁", "a"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    Tipsv2Tokenizer(vocabulary, merges).save_pretrained(folder)


@pytest.fixture(scope="module", params=["TIPSv2-B-14", "TIPSv2-g-14"])
def pair(request, tmp_path_factory):
    """transformers' model, every parameter far from where training starts, and the backbone of its folder."""
    folder = tmp_path_factory.mktemp("tips")
    gated = request.param == "TIPSv2-g-14"
    config = Tipsv2Config(text_config=TEXT, vision_config=VISION | {"use_swiglu_ffn": gated})
    model = Tipsv2Model(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if re.search("norm.*weight|lambda", name) else 0.15 * noise
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model, load_backbone(request.param, str(folder), device="cpu", precision="fp32"), folder


def images(*shape):
    return torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (70, 42), (84, 98)])
def test_the_blocks_as_trained_give_the_librarys_tokens_and_its_pooled_output(pair, shape):
    model, backbone, _ = pair
    assert (backbone.patch_size, backbone.prefix_tokens, backbone.width, backbone.dim) == (14, 2, WIDTH, WIDTH)
    assert (backbone.mean, backbone.std) == ((0.0,) * 3, (1.0,) * 3)
    expected = model.vision_model(images(*shape))
    trunk = backbone.trunk(images(*shape))
    assert_near(backbone.final_norm(trunk.output()), expected.last_hidden_state, 1e-5)
    assert_near(backbone.project(trunk.output()), expected.last_hidden_state, 1e-5)
    assert_near(backbone.project(trunk.output()[:, 0]), expected.pooler_output, 1e-5)


TOKENS = torch.tensor([[5, 9, 3, 0, 0], [7, 2, 2, 8, 4], [6, 0, 0, 0, 0]])


def written_out(state, tokens, heads, scaled=True):
    """The text tower in the words of section F: sinusoids, pre-norm blocks, ReLU, padding unseen, a masked mean."""
    tensor = {name.removeprefix("text_encoder."): value for name, value in state.items()}
    width = tensor["token_embedding.weight"].shape[1]
    out = []
    for row in tokens:
        row = row[row != 0]
        x = tensor["token_embedding.weight"][row] * (math.sqrt(width) if scaled else 1)
        for place in range(len(row)):
            for i in range(width // 2):
                angle = place / 10000 ** (i / (width // 2 - 1))
                x[place, i] += math.sin(angle)
                x[place, width // 2 + i] += math.cos(angle)
        for layer in range(2):
            part = {k.split(".", 3)[3]: v for k, v in tensor.items() if k.startswith(f"transformer.resblocks.{layer}.")}
            y = F.layer_norm(x, (width,), part["ln_1.weight"], part["ln_1.bias"])
            q, k, v = F.linear(y, part["attn.in_proj_weight"], part["attn.in_proj_bias"]).chunk(3, dim=1)
            mixed = []
            for head in range(heads):
                some = slice(head * width // heads, (head + 1) * width // heads)
                weights = (q[:, some] @ k[:, some].T / math.sqrt(width // heads)).softmax(dim=1)
                mixed.append(weights @ v[:, some])
            x = x + F.linear(torch.cat(mixed, dim=1), part["attn.out_proj.weight"], part["attn.out_proj.bias"])
            y = F.layer_norm(x, (width,), part["ln_2.weight"], part["ln_2.bias"])
            y = F.linear(y, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"]).clamp(min=0)
            x = x + F.linear(y, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
        out.append(F.layer_norm(x, (width,), tensor["ln_final.weight"], tensor["ln_final.bias"]).mean(dim=0))
    return torch.stack(out)


@torch.inference_mode()
def test_text_is_the_librarys_and_as_it_is_written_out(pair):
    model, backbone, folder = pair
    expected = model.text_model(TOKENS, attention_mask=(TOKENS != 0).long()).pooler_output
    assert backbone.prompt_lengths(TOKENS).tolist() == [3, 5, 1]
    assert_near(backbone.encode_text(TOKENS), expected, 1e-5)
    assert_near(written_out(load_file(folder / "model.safetensors"), TOKENS, heads=4), expected, 1e-5)


def moved(folder, path, **text):
    """The weights of a folder alone, or with a config.json of that text tower."""
    path.parent.mkdir(exist_ok=True)
    state = load_file(folder / "model.safetensors")
    save_file(state, path)
    if text:
        (path.parent / "config.json").write_text(json.dumps({"text_config": text}))
    return state


@torch.inference_mode()
def test_without_a_config_the_text_tower_has_the_image_towers_heads(pair, tmp_path):
    _, backbone, folder = pair
    state = moved(folder, tmp_path / "alone" / "tips.safetensors")
    alone = load_backbone(backbone.name, str(tmp_path / "alone" / "tips.safetensors"), device="cpu", precision="fp32")
    assert_near(alone.encode_text(TOKENS), written_out(state, TOKENS, HEADS), 1e-5)
    moved(folder, tmp_path / "plain" / "model.safetensors", num_attention_heads=8, scale_sqrt_depth=False)
    plain = load_backbone(backbone.name, str(tmp_path / "plain"), device="cpu", precision="fp32")
    assert_near(plain.encode_text(TOKENS), written_out(state, TOKENS, 8, scaled=False), 1e-5)


def test_the_hubs_weights_come_with_their_config(pair, monkeypatch):
    _, backbone, folder = pair
    asked = []

    def hub_file(repository, *names):
        asked.append((repository, *names))
        return folder / names[0]

    monkeypatch.setattr(weights, "hub_file", hub_file)
    monkeypatch.setattr(tips, "hub_file", hub_file)
    found = load_backbone(backbone.name, device="cpu", precision="fp32")
    repository = tips.REPOSITORIES[backbone.name]
    assert (found.tag, found.checkpoint.config) == ("google", backbone.checkpoint.config)
    assert asked == [(repository, "model.safetensors"), (repository, "config.json")]


@torch.inference_mode()
def test_the_authors_reading_is_a_cell_of_the_grid(pair):
    """x + ls1(proj(v)), then + ls2(mlp(LN2 x)), then the final norm, by timm's own modules."""
    _, backbone, _ = pair
    trunk = backbone.trunk(images(SIDE, SIDE))
    x, block = trunk.tokens(), backbone.visual.blocks[-1]
    v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)[2]
    x = x + block.ls1(block.attn.proj(v))
    x = backbone.visual.norm(x + block.ls2(block.mlp(block.norm2(x))))
    method = create_method("ClearCLIP:attention=identity,residual=1,feed_forward=True", backbone)
    assert_near(method.features(trunk), x[:, 2:].unflatten(1, (4, 4)), 1e-5)


# Those that need other networks are tested on the tiny CLIP.
@pytest.mark.parametrize(
    "method", [entry.name for entry in list_methods() if not {"vfm", "masks"} & entry.options.keys()]
)
def test_every_method(method, pair):
    backbone = pair[1]
    torch.manual_seed(0)
    embeddings = TextEmbeddings(tuple("abcd"), torch.randn(4, WIDTH))
    segmenter = Segmenter(method, backbone, text_embeddings=embeddings, short_side=70, crop=56, stride=28)
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    assert segmenter(image, list("abcd")).labels.shape == (70, 90)


@torch.inference_mode()
def test_names_by_the_nine_templates(pair):
    model, backbone, _ = pair
    tokens = backbone.tokenizer(["A Cat", "a cat."])
    assert tokens.tolist() == [[tokens[0, 0], tokens[0, 1], 0], tokens[1].tolist()]  # lower case, no ends, padded
    assert backbone.tokenizer(["a cat"])[0].tolist() == tokens[0, :2].tolist()
    assert backbone.tokenizer(["a " * 99]).shape == (1, 64)
    templates = TEMPLATES["tips9"]
    assert len(set(templates)) == 9
    prompts = [template.format("dog") for template in templates]
    tokens = backbone.tokenizer(prompts)
    rows = model.text_model(tokens, attention_mask=(tokens != 0).long()).pooler_output
    assert_near(encode_prompts(backbone, prompts), rows, 1e-5)
    expected = F.normalize(F.normalize(rows, dim=-1).mean(dim=0), dim=0)
    assert_near(embed_names(backbone, ["dog"], "tips9", cache=False).embeddings[0], expected, 1e-5)


def test_a_file_of_timms_has_no_text_tower(pair, tmp_path):
    _, backbone, _ = pair
    save_file(backbone.visual.state_dict(), tmp_path / "timm.safetensors")
    other = load_backbone(backbone.name, str(tmp_path / "timm.safetensors"), device="cpu", precision="fp32")
    some = images(SIDE, SIDE)
    assert torch.equal(other.trunk(some).output(), backbone.trunk(some).output())
    with pytest.raises(UserError, match=r"timm.safetensors holds no text tower; give text embeddings"):
        _ = other.text_tower


def test_what_a_user_reads(pair, tmp_path, monkeypatch):
    _, backbone, folder = pair

    def load(pretrained, name="TIPSv2-L-14"):
        return load_backbone(name, str(pretrained), device="cpu", precision="fp32")

    with pytest.raises(UserError, match=r"TIPSv2-L-14 google \(google/tipsv2-l14\) could not be downloaded: give .*"):
        load("google")
    with pytest.raises(UserError, match="no weights 'laion' for TIPSv2-L-14; known are google"):
        load("laion")
    with pytest.raises(UserError, match=r"missing.pth does not exist"):
        load("missing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no weights; .*model.safetensors"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"model.safetensors does not hold a TIPSv2-L-14"):
        load(folder)
    state = moved(folder, tmp_path / "tips.safetensors")
    alone = load(tmp_path / "tips.safetensors", backbone.name)
    with pytest.raises(UserError, match=r"tokenizer of TIPSv2.* could not be downloaded: put its tokenizer.model"):
        _ = alone.tokenizer
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(tips, "_installed", lambda package: False)
    with pytest.raises(UserError, match=r"tokenizer.model is read by other packages: pip install sentencepiece"):
        _ = alone.tokenizer
    del state["text_encoder.token_embedding.weight"]
    save_file(state, tmp_path / "tips.safetensors")
    with pytest.raises(UserError, match=r"the text tower in .* is none of TIPSv2's"):
        _ = load(tmp_path / "tips.safetensors", backbone.name).text_tower


@pytest.mark.parametrize("arch", tips.REPOSITORIES)
def test_the_named_networks(arch):
    sizes = {"B": (768, 12), "L": (1024, 24), "SO400M": (1152, 27), "g": (1536, 40)}
    network = {"B": "base", "L": "large", "SO400M": "so400m", "g": "giant"}[arch.split("-")[1]]
    with torch.device("meta"):
        model = timm.create_model(f"vit_{network}_patch14_reg1_tipsv2")
    assert (model.embed_dim, len(model.blocks)) == sizes[arch.split("-")[1]]
    assert (model.num_prefix_tokens, model.patch_embed.patch_size) == (2, (14, 14))
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.0,) * 3, (1.0,) * 3)
