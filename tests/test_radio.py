"""C-RADIOv3 as a backbone: tiny random networks, against the words of the architecture written out with timm's ViT."""

import argparse
import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_sam import tiny_sam
from torch import nn
from transformers import RadioConfig, RadioModel, SiglipTextConfig, SiglipTextModel

from clearclip.attention import self_correlating_output
from clearclip.backbones import load_backbone
from clearclip.backbones.radio import TEXT_FOLDER, canonical, cut_position_embedding
from clearclip.errors import UserError
from clearclip.methods import list_methods
from clearclip.refine.sam import SAM
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings, encode_prompts
from clearclip.view import normalise

WIDTH, GRID, TOKENS, DIM = 128, 8, 3, 24


def vit():
    """timm's ViT of the same blocks, whose tensors RADIO's are called like."""
    return timm.models.VisionTransformer(
        img_size=GRID * 16, embed_dim=WIDTH, depth=3, num_heads=2, num_classes=0, init_values=1.0, global_pool=""
    ).eval()


def random_head(out, generator, width=WIDTH):
    def linear(rows, columns):
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns), torch.randn(
            rows, generator=generator
        )

    state = {}
    for name, shape in (("fc1", (40, width)), ("blocks.0.2", (40, 40)), ("final.2", (out, 40))):
        state[f"{name}.weight"], state[f"{name}.bias"] = linear(*shape)
    for name in ("blocks.0.0", "final.0"):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(40, generator=generator)
        state[f"{name}.bias"] = torch.randn(40, generator=generator)
    return state


@pytest.fixture(scope="module")
def state():
    """A tiny checkpoint in the layout of RADIO's own files, heads of other teachers included."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    state = {f"base_model.{k}": v for k, v in vit().state_dict().items() if k.startswith(("blocks.", "norm."))}
    for name, value in state.items():
        state[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
    generated = "base_model.patch_generator."
    state[generated + "embedder.weight"] = 0.05 * torch.randn(WIDTH, 768, generator=generator)
    state[generated + "pos_embed"] = torch.randn(1, GRID * GRID, WIDTH, generator=generator)
    state[generated + "cls_token.token"] = torch.randn(TOKENS, WIDTH, generator=generator)
    for name, out in (("_heads.clip", 12), ("_heads.siglip2-g", DIM), ("_feature_projections.sam", 32)):
        state |= {f"{name}.{key}": value for key, value in random_head(out, generator).items()}
    state["summary_idxs"] = torch.tensor([0, 1])
    return state


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """The checkpoint as a file, SigLIP2's text tower beside it."""
    folder = tmp_path_factory.mktemp("radio")
    save_file(state, folder / "radio.safetensors")
    torch.manual_seed(0)
    text_tower().save_pretrained(folder / TEXT_FOLDER)
    return folder / "radio.safetensors"


def text_tower(**options):
    size = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return SiglipTextModel(SiglipTextConfig(**size, projection_size=DIM, max_position_embeddings=64, **options)).eval()


@pytest.fixture(scope="module")
def radio(weights):
    return load_backbone("C-RADIOv3-B", str(weights), device="cpu", precision="fp32")


def expected_tokens(state, images):
    """The network in the words of section A.1, run by timm's blocks."""
    model = vit()
    own = {k.removeprefix("base_model."): v for k, v in state.items()}
    model.load_state_dict({k: v for k, v in own.items() if k.startswith(("blocks.", "norm."))}, strict=False)
    b, _, height, width = images.shape
    rows, columns = height // 16, width // 16
    patches = images.unflatten(2, (rows, 16)).unflatten(4, (columns, 16)).permute(0, 2, 4, 1, 3, 5)  # b, y, x, c, i, j
    x = patches.reshape(b, rows * columns, 768) @ own["patch_generator.embedder.weight"].T
    square = own["patch_generator.pos_embed"][0].T.unflatten(1, (GRID, GRID))[None]
    longer = max(rows, columns)
    position = F.interpolate(square, size=(longer, longer), mode="bilinear")[0, :, :rows, :columns]
    x = x + position.flatten(1).T
    x = torch.cat([own["patch_generator.cls_token.token"].expand(b, -1, -1), x], dim=1)
    return model.norm(model.blocks(x))


def expected_head(state, name, x):
    tensor = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
    y = F.linear(x, tensor["fc1.weight"], tensor["fc1.bias"])
    for index in ("blocks.0", "final"):
        z = F.gelu(F.layer_norm(y, (40,), tensor[f"{index}.0.weight"], tensor[f"{index}.0.bias"]))
        z = F.linear(z, tensor[f"{index}.2.weight"], tensor[f"{index}.2.bias"])
        y = y + z if index == "blocks.0" else z
    return y


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (128, 128)])
def test_features(radio, state, shape):
    assert (radio.name, radio.dim, radio.width, radio.patch_size, radio.prefix_tokens) == (
        "C-RADIOv3-B",
        DIM,
        WIDTH,
        16,
        3,
    )
    images = torch.randn(2, 3, *shape)
    trunk = radio.trunk(images)
    tokens = radio.run(2, trunk.tokens(), trunk.grid)
    expected = expected_tokens(state, images)
    close(radio.final_norm(tokens), expected)
    close(radio.project(tokens), expected_head(state, "_heads.siglip2-g", expected))
    close(radio.sam_features(expected), expected_head(state, "_feature_projections.sam", expected))


def test_forms_of_files(radio, state, tmp_path):
    """RADIO's own pickle with its arguments, and transformers' names."""
    torch.save({"state_dict": state, "args": argparse.Namespace(teachers=[{"name": "clip"}])}, tmp_path / "own.pth.tar")
    ours = "radio_model.adaptors.siglip2-g.head_mlp"
    renamed = {
        name.replace("base_model.", "radio_model.model.")
        .replace("_heads.siglip2-g", ours)
        .replace("gamma", "grandma"): value
        for name, value in state.items()
    }
    save_file(renamed, tmp_path / "hub.safetensors")
    images = torch.randn(1, 3, 32, 48)
    expected = radio.project(radio.trunk(images).tokens())
    (tmp_path / "model.safetensors").symlink_to("hub.safetensors")
    for name in ("own.pth.tar", "hub.safetensors", "."):
        other = load_backbone("C-RADIOv3-B", str(tmp_path / name), device="cpu", precision="fp32")
        assert torch.equal(other.project(other.trunk(images).tokens()), expected)
    other.visual.sam_head = None
    with pytest.raises(UserError, match="has no head for SAM"):
        other.sam_features(expected)


@torch.inference_mode()
def test_version_4_is_transformers_own_network(tmp_path):
    """As wide as SO400M, whose heads are wider than others; what SAM 3 taught is nothing that SAM reads."""
    torch.manual_seed(0)
    model = RadioModel(RadioConfig(hidden_size=1152, num_hidden_layers=2, mlp_ratio=0.125, max_img_size=128)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lambda" not in name:  # C-RADIO has no LayerScale
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path)
    state = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "layer_scale" not in k}
    for name, out in (("_heads.siglip2-g", DIM), ("_heads.sam3", 12), ("_feature_projections.sam3", 32)):
        state |= {f"{name}.{key}": value for key, value in random_head(out, generator, width=1152).items()}
    save_file(state, tmp_path / "so400m.safetensors")
    radio = load_backbone("C-RADIOv4-SO400M", str(tmp_path / "so400m.safetensors"), device="cpu", precision="fp32")
    assert (radio.prefix_tokens, radio.blocks[0].heads, radio.dim) == (10, 16, DIM)
    for shape in ((64, 96), (128, 128)):
        images = torch.rand(2, 3, *shape, generator=generator)
        mean, std = (torch.tensor(values)[:, None, None] for values in (radio.mean, radio.std))
        trunk = radio.trunk((images - mean) / std)
        tokens = radio.run(1, trunk.tokens(), trunk.grid)
        expected = model(images).last_hidden_state
        close(radio.final_norm(tokens), expected)
        close(radio.project(tokens), expected_head(state, "_heads.siglip2-g", expected))
    with pytest.raises(UserError, match=r"so400m.safetensors has no head for SAM"):
        radio.sam_features(expected)


def test_older_heads_and_turned_features(state, tmp_path):
    state = {k: v for k, v in state.items() if "_heads.siglip2" not in k and "pos_embed" not in k}
    state["base_model.patch_generator.pos_embed"] = torch.zeros(1, 4, WIDTH)
    generator = torch.Generator().manual_seed(1)
    norms = {name: nn.LayerNorm(20) for name in ("norm", "inner.1")}
    linears = {"fc1": nn.Linear(WIDTH, 20), "inner.0": nn.Linear(20, 20), "fc2": nn.Linear(20, DIM)}
    for name, module in (norms | linears).items():
        state |= {f"_heads.siglip2.{name}.{key}": value.detach() for key, value in module.state_dict().items()}
    mean, tx = torch.randn(WIDTH, generator=generator), torch.randn(WIDTH, WIDTH, generator=generator)
    state |= {"base_model.feature_normalizer.mean": mean, "base_model.feature_normalizer.tx": tx}
    save_file(state, tmp_path / "older.safetensors")
    radio = load_backbone("C-RADIOv3-L", str(tmp_path / "older.safetensors"), device="cpu", precision="fp32")
    tokens = torch.randn(1, 5, WIDTH)
    x = (radio.visual.norm(tokens) - mean) @ tx.T
    y = norms["inner.1"](linears["inner.0"](norms["norm"](linears["fc1"](x)).relu())).relu()
    close(radio.project(tokens), linears["fc2"](y).detach())


def test_position_embedding():
    embedding = torch.randn(GRID * GRID, 5)
    assert cut_position_embedding(embedding, (GRID, GRID)) is embedding
    assert torch.equal(cut_position_embedding(embedding, (3, GRID)), embedding[: 3 * GRID])


def test_prompts():
    assert canonical("A photo of a  Traffic_Light, (red).") == "a photo of a traffic light red"


def test_text(radio, weights, monkeypatch):
    monkeypatch.setitem(
        radio.__dict__, "tokenizer", lambda prompts: torch.tensor([[7, len(p) % 90] + [1] * 62 for p in prompts])
    )
    tower = SiglipTextModel.from_pretrained(weights.parent / TEXT_FOLDER).eval()
    expected = tower(radio.tokenizer(["a cat", "a dog there"])).pooler_output
    close(encode_prompts(radio, ["a cat", "a dog there"]), expected.detach())


def test_text_tower_of_another_model(state, tmp_path):
    save_file(state, tmp_path / "radio.safetensors")
    radio = load_backbone("C-RADIOv3-B", str(tmp_path / "radio.safetensors"), device="cpu", precision="fp32")
    with pytest.raises(UserError, match=rf"cannot be had .* folder {TEXT_FOLDER} beside"):
        _ = radio.text_tower
    wrong = text_tower()
    wrong.config.projection_size, wrong.head = 7, nn.Linear(32, 7)
    wrong.save_pretrained(tmp_path / TEXT_FOLDER)
    radio = load_backbone("C-RADIOv3-B", str(tmp_path / "radio.safetensors"), device="cpu", precision="fp32")
    with pytest.raises(UserError, match="has 7 dimensions, C-RADIOv3-B 24"):
        _ = radio.text_tower


def test_wrong_files(state, tmp_path):
    def load(pretrained="nvidia", name="C-RADIOv3-B"):
        return load_backbone(name, pretrained, device="cpu", precision="fp32")

    with pytest.raises(UserError, match=r"C-RADIOv3-B.nvidia.safetensors"):
        load()
    with pytest.raises(UserError, match=r"missing.pth does not exist"):
        load("missing.pth")
    with pytest.raises(UserError, match="no weights 'laion' for C-RADIOv3-B"):
        load("laion")
    headless = {k: v for k, v in state.items() if not k.startswith("_heads.siglip2")}
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(UserError, match="no head that is named for SigLIP2"):
        load(str(tmp_path / "headless.safetensors"))
    missing = {k: v for k, v in state.items() if not k.endswith("blocks.1.attn.proj.bias")}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match=r"missing.safetensors does not hold a C-RADIOv3-B: .*attn.proj.bias"):
        load(str(tmp_path / "missing.safetensors"))


# Those that need other networks are tested on the tiny CLIP.
@pytest.mark.parametrize(
    "method", [entry.name for entry in list_methods() if not {"vfm", "masks"} & entry.options.keys()]
)
def test_every_method(method, radio):
    torch.manual_seed(0)
    embeddings = TextEmbeddings(tuple("abcd"), torch.randn(4, DIM))
    segmenter = Segmenter(method, radio, text_embeddings=embeddings, short_side=80, crop=64, stride=32)
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    assert segmenter(image, list("abcd")).labels.shape == (70, 90)


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    tiny_sam().save_pretrained(folder)
    return folder


def test_its_features_for_sam(radio, sam_folder):
    """RADSeg+: of an image whose long side SAM's square has, those of the whole image, and 0 below it."""
    refinement = SAM(radio, model=str(sam_folder), encoder="own")
    image = torch.randint(256, (3, 40, 64), dtype=torch.uint8)  # 4 columns and int(2.5) rows
    features = refinement.own_features(image)
    assert features.shape == (4, 4, 32)
    pixels = F.interpolate(normalise(image, radio)[None], size=(32, 64), mode="bilinear")
    states = radio.final_norm(self_correlating_output(radio.trunk(pixels))[:, TOKENS:])
    close(features[:2], radio.sam_features(states)[0].unflatten(0, (2, 4)))
    assert not features[2:].any()
    embedding = refinement.network.through_neck(features)
    assert embedding.shape == refinement.network.encode(image).shape


def test_radseg_plus(radio, sam_folder):
    torch.manual_seed(0)
    embeddings = TextEmbeddings(tuple("abcd"), torch.randn(4, DIM))
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    rules = "coarse_threshold=0,minimal_area=4,iou_threshold=-99"
    scores = []
    for encoder in ("", "+SAM:encoder=own,", "+SAM:encoder=sam,"):
        spec = f"RADSeg:denoise=0{encoder and f'{encoder}model={sam_folder},{rules}'}"
        segmenter = Segmenter(spec, radio, text_embeddings=embeddings, short_side=80, crop=64, stride=32)
        scores.append(segmenter(image, list("abcd"), scores=True).scores)
    assert all((one != other).any() for one, other in itertools.combinations(scores, 2))


def test_another_sam(radio, sam_folder):
    refinement = SAM(radio, model=str(sam_folder), encoder="own")
    with pytest.raises(UserError, match="features for SAM are 7 wide and this SAM's are 32"):
        refinement.network.through_neck(torch.zeros(4, 4, 7))
