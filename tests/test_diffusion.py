import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.refine import diffusion
from clearclip.refine.diffusion import DiffusionAttention, head_attention


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Stable Diffusion of random weights, in diffusers' format: its last block attends on 16×16 positions."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("diffusion")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),  # which diffusers reads as numbers of heads
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"vocab_size": 4, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 8}
    config = transformers.CLIPTextConfig(**sizes, **special, num_hidden_layers=1, num_attention_heads=2)
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    begin, end = "<|startoftext|>", "<|endoftext|>"
    (tokenizer / "vocab.json").write_text(json.dumps({begin: 0, end: 1, "a</w>": 2, "a": 3}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 8, "bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps():
    return torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(1))


def test_heads_are_those_of_the_named_layers(model, image):
    """Both layers' attention, from diffusers' own processor run on what the U-Net hands them."""
    refine = DiffusionAttention(model)
    assert [layer for name in ("1", "0") for layer in [refine.unet.get_submodule(
        f"up_blocks.1.attentions.{name}.transformer_blocks.0.attn1"
    )]] == refine.layers  # fmt: skip
    seen = []
    hooks = [layer.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0])) for layer in refine.layers]
    with torch.inference_mode():
        heads = refine.heads(image)
        assert len(heads) == 4
        for layer, hidden, pair in zip(refine.layers, seen[::-1], (heads[:2], heads[2:])):
            q, k = (layer.head_to_batch_dim(part(hidden)) for part in (layer.to_q, layer.to_k))
            for head, expected in zip(pair, layer.get_attention_scores(q, k)):
                torch.testing.assert_close((head[0] @ head[1].T).softmax(dim=-1), expected)
    for hook in hooks:
        hook.remove()
    assert not any(layer._forward_pre_hooks for layer in refine.layers)


def test_ways_to_combine_heads(model, image, maps):
    refine = DiffusionAttention(model)
    with torch.inference_mode():
        matrices = [head_attention(q, k, 0.2) for q, k in refine.heads(image)]
    flat = F.interpolate(maps[None], size=(16, 16), mode="bilinear")[0].flatten(1)
    product = matrices[0] @ matrices[1] @ matrices[2] @ matrices[3]
    expected = {"product": product, "mean": sum(matrices) / 4, 0: matrices[0], 3: matrices[3]}
    for combine, matrix in expected.items():
        refined = DiffusionAttention(model, combine)(image, maps, threshold=0.2)
        assert refined.shape == (5, 16, 16)
        torch.testing.assert_close(refined.flatten(1), flat @ matrix.T)


def test_refined_values_are_means(model, image, maps):
    refined = DiffusionAttention(model)(image, maps)
    assert refined.min() >= maps.min()
    assert refined.max() <= maps.max()
    constant = DiffusionAttention(model)(image, torch.ones(1, 4, 6))
    torch.testing.assert_close(constant, torch.ones(1, 16, 16))


def test_noise_comes_from_the_seed(model, image, maps):
    first, again, other = (DiffusionAttention(model, seed=seed)(image, maps) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_latents_are_the_mean_with_the_noise_of_a_late_step(model, image):
    refine = DiffusionAttention(model)
    with torch.inference_mode():
        latents, timestep = refine.noised(image)
        resized = F.interpolate(image[None], size=(32, 32), mode="bilinear")
        clean = refine.vae.encode(2 * resized - 1).latent_dist.mean * refine.vae.config.scaling_factor
    assert latents.shape == (1, 4, 16, 16)
    assert timestep == 81  # 45 of 981, 961, …, 1
    kept = refine.scheduler.alphas_cumprod[81]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents, kept.sqrt() * clean + (1 - kept).sqrt() * noise)


def test_prompt_is_empty(model):
    from transformers import CLIPTextModel

    refine = DiffusionAttention(model)
    encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    with torch.inference_mode():
        expected = encoder(torch.tensor([[0] + 7 * [1]]))[0]  # the start, then ends up to the length
    torch.testing.assert_close(refine.prompt, expected)


def test_head_attention_as_written():
    q, k = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.softmax(q @ k.T, dim=1)
    weights = weights / weights.max(dim=0).values
    weights = torch.where(weights < 0.5, 0, weights)
    expected = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(head_attention(q, k, 0.5), expected)
    assert head_attention(q, k, 2.0).eq(0).all()  # a row of which nothing is left


def test_a_position_that_none_attends_to():
    """Its column is 0 in float32, and so is what it is divided by."""
    q, k = 30 * torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    unseen = (q @ k.T).softmax(dim=-1).amax(dim=0) == 0
    assert unseen.any()
    weights = head_attention(q, k, 0.1)
    assert weights.isfinite().all()
    assert weights[:, unseen].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype, model, image, maps):
    half = DiffusionAttention(model, dtype=dtype)(image, maps)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, DiffusionAttention(model)(image, maps), atol=0.02, rtol=0)


def test_cliper_with_diffusion(model, golden, tiny_backbone, monkeypatch):
    monkeypatch.setitem(diffusion.MODELS, "sd21", str(model))
    images, text = golden("inputs")["image_64x96"], golden("inputs")["text"]
    method = create_method("CLIPer:refine=sd21,combine=mean", tiny_backbone)
    with torch.inference_mode():
        prepared = method.prepare(text, tuple(range(7)), 50.0)
        scores = method.scores(tiny_backbone.trunk(images), prepared)
        alone = torch.cat([method.scores(tiny_backbone.trunk(image[None]), prepared) for image in images])
    assert scores.shape[:2] == (2, 7)
    assert scores.shape[2] == scores.shape[3] == 16
    assert torch.equal(scores, alone)


def test_by_folder(model, tiny_backbone):
    assert create_method(f"CLIPer:refine={model}", tiny_backbone).refine


@pytest.mark.parametrize("combine", ["sum", 4, -1, True])
def test_wrong_combination(combine, model):
    with pytest.raises(ValueError, match=f"combine.*{combine}"):
        DiffusionAttention(model, combine)


def test_without_the_library(monkeypatch, tiny_backbone):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="needs the library diffusers: pip install diffusers"):
        create_method("CLIPer:refine=sd21", tiny_backbone)


@pytest.mark.parametrize("name", ["sd21", "nobody/nothing"])
def test_model_that_cannot_be_had(name):
    pytest.importorskip("diffusers")
    reason = "only the hub's cache was searched, for the hub does not answer"
    with pytest.raises(
        UserError, match=f"Stable Diffusion {name} cannot be loaded .*; {reason}.; use one of sd21, sd15"
    ):
        DiffusionAttention(name)


def truncate(path):
    path.write_bytes(path.read_bytes()[:2000])


def reshape(path):
    state = load_file(path)
    save_file(state | {"conv_in.weight": state["conv_in.weight"][:16].contiguous()}, path)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("unet/config.json", lambda path: path.write_text("{")),
        ("unet/diffusion_pytorch_model.safetensors", truncate),
        ("unet/diffusion_pytorch_model.safetensors", reshape),
        ("vae/diffusion_pytorch_model.safetensors", Path.unlink),
        ("text_encoder/model.safetensors", truncate),
        ("tokenizer", shutil.rmtree),
    ],
)
def test_damaged_model(part, damage, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "damaged")
    damage(folder / part)
    with pytest.raises(UserError, match=r"^Stable Diffusion .*damaged cannot be loaded [^\n]*$"):
        DiffusionAttention(folder)


def test_u_net_without_the_layers(model):
    with pytest.raises(UserError, match=r"has no self-attention mid_block\.attn; use a Stable Diffusion 1 or 2"):
        DiffusionAttention(model, layers=["mid_block.attn"])
