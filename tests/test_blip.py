"""BLIP against transformers' own model, in transformers' form and in that of the original checkpoints."""

import re

import numpy as np
import pytest
import torch
from conftest import features, picture, scores
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval

from clearclip import list_backbones, text
from clearclip.attention import mix
from clearclip.backbones import blip as family
from clearclip.backbones import load_backbone, resize_position_embedding
from clearclip.backbones.blip import ImageTower, TextTower, image_state
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.segmenter import Segmenter
from clearclip.text import embed_names, encode_prompts

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the cat dog grass ##s . ,"
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=16
)
TEXT = dict(
    vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=48,
)  # fmt: skip
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def save_vocabulary(folder):
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n") + "\n")


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    """A tiny BLIP as transformers saves it, every parameter, biases too, far from where training starts."""
    folder = tmp_path_factory.mktemp("blip-tiny")
    model = BlipForImageTextRetrieval(BlipConfig(text_config=TEXT, vision_config=VISION, image_text_hidden_size=24))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        norm = re.search("norm.*weight", name.lower())
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if norm else 0.2 * noise
    model.save_pretrained(folder)
    save_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def library_model(blip_folder):
    return BlipForImageTextRetrieval.from_pretrained(blip_folder).eval()


def load(backbone, pretrained="openai", **options):
    return load_backbone(backbone, str(pretrained), device="cpu", precision="fp32", **options)


@pytest.fixture(scope="module")
def blip(blip_folder):
    return load(f"local-dir:{blip_folder}")


@pytest.fixture
def tiny_arch(monkeypatch, library_model):
    """BLIP-B and BLIP-L are the tiny architecture."""
    monkeypatch.setattr(family, "_config", lambda arch: library_model.config.to_dict())


def original_state(state):
    """Transformers' names to those of the original retrieval checkpoints, with what only training needs."""
    renames = (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
        ("vision_model.encoder.layers", "visual_encoder.blocks"),
        ("vision_model.post_layernorm", "visual_encoder.norm"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn.qkv", "attn.qkv"),
        ("layer_norm1", "norm1"),
        ("layer_norm2", "norm2"),
    )
    renamed = {}
    for name, value in state.items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        renamed[name] = value
    momentum = {
        re.sub(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.", r"\1_m.", name): torch.full_like(value, 9)
        for name, value in renamed.items()
        if not name.startswith("itm_head")
    }
    queues = {"image_queue": torch.ones(24, 8), "text_queue": torch.ones(24, 8), "queue_ptr": torch.zeros(1).long()}
    buffers = {"temp": torch.tensor(0.07), "text_encoder.embeddings.position_ids": torch.arange(48)[None]}
    return renamed | momentum | queues | buffers


@pytest.fixture
def original_file(blip_folder, tmp_path):
    path = tmp_path / "model_base_retrieval_coco.pth"
    torch.save({"model": original_state(load_file(blip_folder / "model.safetensors"))}, path)
    save_vocabulary(tmp_path)
    return path


# The towers


def test_what_a_blip_says_of_itself(blip, blip_folder):
    assert (blip.patch_size, blip.blocks[0].heads, blip.width, blip.dim, len(blip.blocks)) == (16, 4, 64, 24, 3)
    assert (blip.name, blip.tag) == (blip_folder.name, "model.safetensors")
    assert len(blip.content_hash) == 64
    assert not any(parameter.requires_grad for parameter in [*blip.parameters(), *blip.text_tower.parameters()])


@pytest.mark.parametrize("size", [(64, 64), (48, 112)])
@torch.inference_mode()
def test_image_tower_is_the_librarys(size, blip, library_model):
    """The CLIP method's features, and its class token, are the projected last hidden state; at any size."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = library_model.vision_proj(
        library_model.vision_model(images, interpolate_pos_encoding=True).last_hidden_state
    )
    clip, trunk = create_method("CLIP", blip), blip.trunk(images)
    tokens = clip.output(mix(clip.attention, *trunk.qkv(), trunk), trunk)
    torch.testing.assert_close(blip.project(tokens), expected, rtol=1e-5, atol=1e-5)
    actual = features("CLIP", blip, images)
    torch.testing.assert_close(actual.flatten(1, 2), expected[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(blip.project(blip.blocks[-1](trunk.tokens())), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_original_image_towers_compute_what_timms_vit_does():
    """The original's ViT is built after timm's: the same names, the same epsilon."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(64, embed_dim=64, depth=2, num_heads=4, mlp_ratio=2, num_classes=0).eval()
    proj = torch.nn.Linear(64, 24)
    vision = VISION | {"num_hidden_layers": 2, "layer_norm_eps": 1e-6}
    tower = ImageTower(BlipConfig(vision_config=vision, image_text_hidden_size=24))
    state = {f"visual_encoder.{name}": value for name, value in vit.state_dict().items()}
    tower.load_state_dict(image_state(state | {f"vision_proj.{k}": v for k, v in proj.state_dict().items()}))
    tokens = torch.cat([tower.class_embedding.expand(2, 1, -1), tower.conv1(IMAGES).flatten(2).transpose(1, 2)], dim=1)
    tokens = tower.transformer(tokens + tower.positional_embedding)
    expected = proj(vit.forward_features(IMAGES))
    torch.testing.assert_close(tower.proj(tower.ln_post(tokens)), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_clearclip_is_the_output_projection_of_query_query_attention(blip, library_model):
    layer = library_model.vision_model.encoder.layers[-1]
    captured = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    library_model.vision_model(IMAGES)
    hook.remove()
    qkv = layer.self_attn.qkv(layer.layer_norm1(captured[0])).reshape(2, 17, 3, 4, 16).permute(2, 0, 3, 1, 4)
    mixed = (qkv[0] @ qkv[0].transpose(-1, -2) / 4).softmax(dim=-1) @ qkv[2]
    out = layer.self_attn.projection(mixed.transpose(1, 2).reshape(2, 17, 64))
    expected = library_model.vision_proj(library_model.vision_model.post_layernorm(out))[:, 1:]
    actual = features("ClearCLIP", blip, IMAGES)
    torch.testing.assert_close(actual.flatten(1, 2), expected, rtol=1e-5, atol=1e-5)


def test_position_embedding_is_resampled_to_the_size_unless_asked_otherwise(blip, blip_folder):
    offset = load(f"local-dir:{blip_folder}", position="offset")
    images = torch.zeros(1, 3, 48, 112)
    embedding = blip.visual.positional_embedding
    moved = resize_position_embedding(embedding, (3, 7), "offset") - resize_position_embedding(
        embedding, (3, 7), "size"
    )
    torch.testing.assert_close((offset.embed(images) - blip.embed(images))[0], moved, rtol=1e-4, atol=1e-6)
    assert moved.abs().max() > 1e-3


PROMPTS = ["cat", "A photo of the CATS.", "the dog, a cat", "cat " * 60, "grass zebra"]


@torch.inference_mode()
def test_text_tower_is_the_librarys(blip, blip_folder, library_model):
    batch = BertTokenizerFast.from_pretrained(blip_folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    hidden = library_model.text_encoder(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    expected = library_model.text_proj(hidden[:, 0])
    torch.testing.assert_close(blip.encode_text(batch.input_ids), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encode_prompts(blip, PROMPTS), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(st.permutations([*range(1, 6), 1, 1, 90]), st.sampled_from([1, 20, 4096]))
def test_prompts_are_independent_of_order_batch_and_trimming(blip, words, batch_tokens):
    prompts = [" ".join(["cat"] * count) for count in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BATCH_TOKENS", batch_tokens)
        embeddings = encode_prompts(blip, prompts)
    alone = torch.cat([encode_prompts(blip, [prompt]) for prompt in prompts])
    torch.testing.assert_close(embeddings, alone, rtol=1e-5, atol=1e-5)


def test_batches_are_trimmed(blip, monkeypatch):
    shapes = []
    encode = blip.encode_text
    monkeypatch.setattr(text, "BATCH_TOKENS", 40)
    monkeypatch.setattr(blip, "encode_text", lambda tokens: shapes.append(tuple(tokens.shape)) or encode(tokens))
    encode_prompts(blip, ["cat " * count for count in (90, 1, 3, 1)])
    assert shapes == [(3, 5), (1, 35)]  # a prompt has a class token and an end as well


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close(precision, blip, blip_folder):
    low = load_backbone(f"local-dir:{blip_folder}", device="cpu", precision=precision)
    names = ["cat", "the dogs"]
    close = dict(rtol=0, atol=0.05)
    torch.testing.assert_close(embed_names(low, names).embeddings, embed_names(blip, names).embeddings, **close)
    towers = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    queries = torch.nn.functional.normalize(towers, dim=-1)
    both = [scores("ClearCLIP", backbone, IMAGES, queries) for backbone in (low, blip)]
    torch.testing.assert_close(*both, **close)


# Names, files and folders


def same_model(one, other):
    images, prompts = IMAGES[:1], PROMPTS[:3]
    with torch.inference_mode():
        mine, theirs = (backbone.project(backbone.trunk(images).tokens()) for backbone in (one, other))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    torch.testing.assert_close(encode_prompts(one, prompts), encode_prompts(other, prompts), rtol=0, atol=0)


def test_original_checkpoints_are_the_same_model(tiny_arch, original_file, blip):
    original = load("BLIP-B", original_file)
    assert (original.name, original.tag) == ("BLIP-B", "model_base_retrieval_coco.pth")
    same_model(original, blip)


def test_files_and_folders_by_name(tiny_arch, blip_folder, blip, tmp_path):
    same_model(load("BLIP-L", blip_folder), blip)
    same_model(load("BLIP-B", blip_folder / "model.safetensors"), blip)
    torch.save(load_file(blip_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    save_vocabulary(tmp_path)
    loaded = load("BLIP-B", tmp_path)
    assert (loaded.tag, loaded.checkpoint.path) == (tmp_path.name, tmp_path / "pytorch_model.bin")
    same_model(loaded, blip)


@pytest.mark.parametrize("tag", ["openai", "auto", "coco", "flickr"])
def test_tags_from_a_folder_of_weights(tag, tiny_arch, original_file, tmp_path, monkeypatch):
    wanted = "flickr" if tag == "flickr" else "coco"
    original_file.rename(tmp_path / f"BLIP-B.{wanted}.pth")
    monkeypatch.setenv("CLEARCLIP_WEIGHTS", str(tmp_path))
    loaded = load("BLIP-B", tag)
    assert (loaded.name, loaded.tag) == ("BLIP-B", wanted)
    assert encode_prompts(loaded, ["cat"]).isfinite().all()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_tags_from_the_hubs_cache(name, tiny_arch, blip_folder, blip, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Salesforce--blip-itm-large-coco" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    save_vocabulary(snapshot)
    state = load_file(blip_folder / "model.safetensors")
    save_file(state, snapshot / name) if name.endswith("safetensors") else torch.save(state, snapshot / name)
    loaded = load("BLIP-L:coco")
    assert loaded.checkpoint.path == snapshot / name
    same_model(loaded, blip)


def test_the_vocabulary_may_come_from_the_hubs_cache(tiny_arch, blip_folder, blip, tmp_path, monkeypatch):
    hub, files = tmp_path / "hub", tmp_path / "files"
    files.mkdir()
    save_file(load_file(blip_folder / "model.safetensors"), files / "blip.safetensors")
    loaded = load("BLIP-B", files / "blip.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    with pytest.raises(UserError, match=r"tokenizer of BLIP-B is missing: put the vocab.txt .* beside .*blip.safetens"):
        encode_prompts(loaded, ["cat"])
    snapshot = hub / "models--Salesforce--blip-itm-base-coco" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_vocabulary(snapshot)
    same_model(loaded, blip)


def test_blip_is_listed():
    assert dict(list_backbones())["BLIP-B"] == ("coco", "flickr")
    assert dict(list_backbones())["BLIP-L"] == ("coco", "flickr")


@pytest.mark.parametrize(("arch", "shape"), [("BLIP-B", (12, 12, 768, 12)), ("BLIP-L", (24, 16, 1024, 16))])
def test_the_named_networks_are_those_of_the_paper(arch, shape):
    """ViT-B/16 and ViT-L/16 at 384 pixels, BERT-base with 12 heads, a joint space of 256."""
    config = BlipConfig.from_dict(family._config(arch))
    with torch.device("meta"):
        image, words = ImageTower(config), TextTower(config)
    blocks = image.transformer.resblocks
    assert (len(blocks), blocks[0].attn.num_heads, len(image.class_embedding)) == shape[:3]
    assert (blocks[0].ln_1.eps, image.ln_post.eps, image.patch_size, len(image.positional_embedding)) == (
        1e-6, 1e-6, (16, 16), 577,
    )  # fmt: skip
    bert = words.text_encoder.config
    assert (bert.num_hidden_layers, bert.num_attention_heads, bert.hidden_size, bert.vocab_size) == (12, 12, 768, 30524)
    assert image.output_dim == words.text_proj.out_features == 256
    # Millions of parameters: ViT-B/16 or ViT-L/16, and BERT-base without its pooler.
    counts = [round(sum(p.numel() for p in tower.parameters()) / 1e6) for tower in (image, words)]
    assert counts == [86 if arch == "BLIP-B" else 304, 109]


def test_what_a_user_reads(tiny_arch, blip_folder, original_file, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        UserError,
        match=r"BLIP-B coco \(Salesforce/blip-itm-base-coco\) could not be downloaded: give "
        r"the path .*model_base_retrieval_coco.pth.*BLIP-B.coco.safetensors .*fill the hub's cache",
    ):
        load("BLIP-B")  # fmt: skip
    with pytest.raises(UserError, match="no weights 'laion' for BLIP-L; known are coco, flickr"):
        load("BLIP-L:laion")
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        load("BLIP-B", tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load("BLIP-B", tmp_path)
    for name in ("bert", "odd"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(1)}, tmp_path / name / "model.safetensors")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is not a model folder"):
        load(f"local-dir:{tmp_path / 'bert'}")
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "blip", "vision_config": {"hidden_size": "x"}}')
    with pytest.raises(UserError, match=r"config\.json beside .* does not describe a BLIP model"):
        load(f"local-dir:{tmp_path / 'odd'}")
    state = torch.load(original_file, weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in state.items() if k != "vision_proj.bias"}}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth does not hold a BLIP-B: .*proj\.bias"):
        load("BLIP-B", tmp_path / "part.pth")


def test_a_checkpoint_that_would_run_code_is_refused(tiny_arch, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath, ("sprung",))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth cannot be read as weights"):
        load("BLIP-B", tmp_path / "trap.pth")


def test_a_picture_is_segmented(tiny_arch, original_file):
    segmenter = Segmenter("ClearCLIP", load("BLIP-B", original_file), short_side=64, crop=64, stride=32)
    result = segmenter(picture(50, 70), ["cat", "dog, dogs", "grass"], scores=True)
    assert result.labels.shape == (50, 70)
    assert result.scores.shape == (3, 50, 70)
    np.testing.assert_array_equal(result.scores.argmax(axis=0), result.labels)
