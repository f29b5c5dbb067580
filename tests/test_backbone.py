"""The opened-up towers against OpenCLIP's own forward passes."""

import functools
import json
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import torch
from conftest import assert_near, scores
from open_clip.model import resize_pos_embed
from torch._dynamo.testing import CompileCounter

from clearclip.backbones import choose_device, choose_precision, load_backbone, resize_position_embedding
from clearclip.errors import UserError
from clearclip.text import encode_prompts


@pytest.fixture(scope="module")
def library_model(tiny_folder):
    """The same weights in OpenCLIP's own model."""
    return open_clip.create_model(f"local-dir:{tiny_folder}").eval()


def test_what_a_backbone_says_of_itself(tiny_backbone, tiny_folder):
    assert (tiny_backbone.patch_size, tiny_backbone.width, tiny_backbone.dim, tiny_backbone.prefix_tokens) == (
        16,
        64,
        48,
        1,
    )
    assert {block.heads for block in tiny_backbone.blocks} == {4}
    assert len(tiny_backbone.blocks) == 6
    assert tiny_backbone.name == tiny_folder.name
    assert not any(parameter.requires_grad for parameter in tiny_backbone.parameters())
    assert not tiny_backbone.visual.training


def test_image_tower_is_the_librarys(tiny_backbone, library_model):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = tiny_backbone.blocks[-1](tiny_backbone.trunk(images).tokens())
        embeddings = tiny_backbone.project(tokens)[:, 0]
        torch.testing.assert_close(embeddings, library_model.encode_image(images), rtol=1e-4, atol=1e-5)


PROMPTS = ["cat", "a photo of a cat.", "a low resolution photo of the traffic light, at night", "cat " * 90]


@pytest.mark.parametrize("columns", [77, None])
def test_text_tower_is_the_librarys(tiny_backbone, library_model, columns):
    """All 77 columns, and as few as keep the end-of-text token."""
    with torch.inference_mode():
        for prompts in (PROMPTS, PROMPTS[:3], PROMPTS[:1]):
            tokens = tiny_backbone.tokenizer(prompts)
            assert tokens.shape[1] == 77
            kept = columns or int(tokens.argmax(dim=1).max()) + 1
            trimmed = tiny_backbone.encode_text(tokens[:, :kept])
            torch.testing.assert_close(trimmed, library_model.encode_text(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text_config",
    [
        {"pool_type": "last"},
        {"pool_type": "argmax", "no_causal_mask": True},
        {"embed_cls": True, "pad_id": 0, "pool_type": "last"},
    ],
    ids=["last token", "not causal", "class token"],
)
def test_text_towers_that_cannot_be_trimmed(text_config, tiny_folder, tmp_path):
    from safetensors.torch import save_file

    config = json.loads((tiny_folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"] |= text_config
    config["custom_text"] = True
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    state = {key: value.contiguous() for key, value in model.state_dict().items() if not key.endswith("attn_mask")}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    backbone = load_backbone(f"local-dir:{tmp_path}", device="cpu", precision="fp32")
    with torch.inference_mode():
        expected = model.encode_text(backbone.tokenizer(PROMPTS))
    torch.testing.assert_close(encode_prompts(backbone, PROMPTS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["offset", "size"])
def test_position_embedding_of_the_native_grid_is_untouched(mode):
    embedding = torch.randn(1 + 9, 8)
    assert torch.equal(resize_position_embedding(embedding, (3, 3), mode), embedding)


@pytest.mark.parametrize("grid", [(7, 7), (3, 3), (5, 3)])
@pytest.mark.parametrize("mode", ["size", "antialias"])
def test_position_embedding_modes_are_the_librarys(grid, mode):
    embedding = torch.randn(1 + 25, 8, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": embedding.clone()}
    network = SimpleNamespace(visual=SimpleNamespace(grid_size=grid))
    resize_pos_embed(state, network, interpolation="bicubic", antialias=mode == "antialias")
    resized = resize_position_embedding(embedding, grid, mode)
    torch.testing.assert_close(resized, state["visual.positional_embedding"])


def test_unknown_position_mode():
    with pytest.raises(ValueError, match="nearest"):
        resize_position_embedding(torch.randn(1 + 9, 8), (5, 4), "nearest")


def test_position_modes_differ_and_are_chosen_at_loading(tiny_folder, tiny_backbone):
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    exact = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="fp32", position="size")
    with torch.inference_mode():
        assert not torch.allclose(exact.embed(images), tiny_backbone.embed(images), atol=1e-4)


@pytest.mark.parametrize(("precision", "correlation"), [("bf16", 0.95), ("fp16", 0.998)])
def test_low_precision_roughly_agrees(precision, correlation, tiny_folder, tiny_backbone, golden):
    low = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision=precision)
    images, text = golden("inputs")["image_112x160"], golden("inputs")["text"]
    for name in ("ClearCLIP", "CLIP", "NACLIP"):
        actual, expected = (scores(name, backbone, images, text) for backbone in (low, tiny_backbone))
        assert torch.stack([actual.flatten(), expected.flatten()]).corrcoef()[0, 1] > correlation
        assert actual.dtype == torch.float32
        assert not torch.equal(actual, actual.to(low.dtype).float())  # the cosine itself is taken in float32
    embeddings, expected = encode_prompts(low, PROMPTS), encode_prompts(tiny_backbone, PROMPTS)
    assert embeddings.dtype == torch.float32
    assert torch.cosine_similarity(embeddings, expected).min() > 0.99


def test_devices_and_precisions():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision("auto", torch.device("cpu")) == torch.float32
    assert choose_precision("auto", torch.device("cuda")) == torch.float16
    assert choose_precision("bf16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UserError, match="unknown precision 'half'; use auto, fp32, fp16 or bf16"):
        choose_precision("half", torch.device("cpu"))
    with pytest.raises(UserError, match="'gpu' is not available"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named(tiny_folder):
    assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(UserError, match="device 'cuda' is not available here; use auto or cpu"):
        load_backbone(f"local-dir:{tiny_folder}", device="cuda")


@pytest.fixture
def compiling(tmp_path, monkeypatch):
    """No compiled code from before, none left; without vector instructions, whose probing alone takes seconds."""
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with inductor.patch({"cpp.vec_isa_ok": False, "compile_threads": 1}):
        yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_what_eager_ones_do(compiling, tiny_folder, tiny_backbone, golden):
    compiled = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="fp32", compile=True)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    text = golden("inputs")["text"]
    with torch.inference_mode():
        tokens, expected = (backbone.trunk(images).tokens() for backbone in (compiled, tiny_backbone))
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    actual, expected = (scores("ClearCLIP", backbone, images, text) for backbone in (compiled, tiny_backbone))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert compiled.compiled
    assert not tiny_backbone.compiled


def test_all_blocks_and_batches_share_what_is_compiled(compiling, tiny_folder, tiny_backbone, monkeypatch):
    """Else torch gives up after eight shapes."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    compiled = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="fp32", compile=True)
    counts = []
    with torch.inference_mode():
        for batch, width in [*((size, 64) for size in (4, 3, 1, *range(5, 14))), (2, 80), (3, 96)]:
            images = torch.randn(batch, 3, 64, width, generator=torch.Generator().manual_seed(batch))
            tokens, expected = (backbone.trunk(images).tokens() for backbone in (compiled, tiny_backbone))
            assert_near(tokens, expected, 1e-3)  # other kernels
            counts.append(counter.frame_count)
    assert counts[0] == 1
    assert counts[-1] <= 4


def test_compiling_needs_a_compiler(tiny_folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler and finds none; install g\+\+ or"):
        load_backbone(f"local-dir:{tiny_folder}", device="cpu", compile=True)
    with pytest.raises(UserError, match="compile must be True or False, not 'yes'"):
        load_backbone(f"local-dir:{tiny_folder}", device="cpu", compile="yes")
